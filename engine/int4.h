/*
 * Weights to int4 in groups of 64 (DTYPE_INT4 of weight.h), by the one rule that `quire model pack` has: a group's scale is its
 * greatest magnitude / 7, rounded to bf16; a code is 8 + the nearest whole number to value / scale, halves to even: from 1 to
 * 15. Where that scale would be below 2^-126, a group of zeros for one, it is 0 and the codes are 8. An FP8 value is the e4m3
 * value x its block's scale, rounded once to float32. Nothing of it depends on the processor or on how many rows are done
 * together. The op int4_pack_row (ops.h) does it.
 */
#ifndef QUIRE_ENGINE_INT4_H
#define QUIRE_ENGINE_INT4_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/numeric.h"
#include "engine/weight.h"

struct int4_error {
	double lost, whole; /* sums of squares: of value - packed value, and of the values */
};

/* What kernels of the op share. */

/* Two codes of 8. */
enum { INT4_NOTHING = 0x88 };

/* The scale of a group whose greatest magnitude is `most`, finite, in bf16. */
static inline uint16_t int4_scale(float most)
{
	uint16_t scale = f32_to_bf16(most / 7);

	return bf16_to_f32(scale) < 0x1p-126f ? 0 : scale;
}

/* Of 16 lanes. */
static inline double int4_sum(double lane[16])
{
	for (int step = 8; step; step /= 2)
		for (int l = 0; l < step; l++)
			lane[l] += lane[l + step];
	return lane[0];
}

/* Bytes of a matrix's codes, and of its scales. */
static inline uint64_t int4_code_bytes(int64_t rows, int64_t cols)
{
	return (uint64_t)rows * (uint64_t)cols / 2;
}

static inline uint64_t int4_scale_bytes(int64_t rows, int64_t cols)
{
	return (uint64_t)rows * (uint64_t)(cols / INT4_GROUP) * sizeof(uint16_t);
}

#endif
