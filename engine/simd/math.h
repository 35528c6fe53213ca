/*
 * The transcendental functions of numeric.h for vectors, with the same bits for every float32 (of NaN: a NaN).
 *
 * They are numeric.h's own steps. Its two early returns become choices at the end, and 2^n is put together from the
 * bits of the sum that rounded n, which are 0x4b400000 + n: no conversion, whose result is undefined out of range.
 */
#ifndef QUIRE_ENGINE_SIMD_MATH_H
#define QUIRE_ENGINE_SIMD_MATH_H

#include "engine/simd/vec.h"

/* num_exp. */
static ALWAYS_INLINE vf vf_exp(vf x)
{
	vf shifted = vf_fma(x, vf_all(0x1.715476p+0f), vf_all(0x1.8p23f)), n = vf_sub(shifted, vf_all(0x1.8p23f));
	vf r = vf_fma(n, vf_all(0x1.05c61p-29f), vf_fma(n, vf_all(-0x1.62e43p-1f), x));
	vf q = vf_fma(vf_all(0x1.6a2256p-10f), r, vf_all(0x1.123b02p-7f));
	/* n + 254, halved and the rest: two biased exponents. The first product is exact, however n is halved. */
	vi twice = vi_sub(vi_bits(shifted), vi_all(0x4b400000 - 254)), half = vi_shift_right(twice, 1);

	q = vf_fma(q, r, vf_all(0x1.5558f8p-5f));
	q = vf_fma(q, r, vf_all(0x1.55549p-3f));
	q = vf_fma(q, r, vf_all(0x1.fffffcp-2f));
	q = vf_add(vf_fma(q, vf_mul(r, r), r), vf_all(1));
	q = vf_mul(q, vf_of_bits(vi_shift_left(half, 23)));
	q = vf_mul(q, vf_of_bits(vi_shift_left(vi_sub(twice, half), 23)));
	/* A NaN went through r, and neither comparison holds for it. */
	q = vf_select(vm_less(x, vf_all(-87.33655f)), vf_zero(), q);
	return vf_select(vm_less(vf_all(88.72284f), x), vf_all(INFINITY), q);
}

/* num_sigmoid. */
static ALWAYS_INLINE vf vf_sigmoid(vf x)
{
	return vf_div(vf_all(1), vf_add(vf_all(1), vf_exp(vf_sub(vf_zero(), x))));
}

/* num_silu. */
static ALWAYS_INLINE vf vf_silu(vf x)
{
	return vf_div(x, vf_add(vf_all(1), vf_exp(vf_sub(vf_zero(), x))));
}

#endif
