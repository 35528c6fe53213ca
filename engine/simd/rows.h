/* The ends of rows: what is left of one when whole vectors are done, 1 to VL - 1 values. */
#ifndef QUIRE_ENGINE_SIMD_ROWS_H
#define QUIRE_ENGINE_SIMD_ROWS_H

#include "engine/simd/vec.h"

/* n values, then zeros. */
static ALWAYS_INLINE vf vf_load_some(const float *x, int32_t n)
{
	float padded[VL] = {0};

	memcpy(padded, x, (size_t)n * sizeof *x);
	return vf_load(padded);
}

/* The first n values of x. */
static ALWAYS_INLINE void vf_store_some(float *out, vf x, int32_t n)
{
	float padded[VL];

	vf_store(padded, x);
	memcpy(out, padded, (size_t)n * sizeof *out);
}

#endif
