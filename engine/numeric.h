/*
 * Numbers: the conversions and the transcendental functions that every backend and every instruction set shares.
 *
 * They are part of the numeric definition (NUMERICS in engine.h): fused multiply-adds are written out, contraction is
 * off, rounding is to nearest even, and nothing here calls a float function of libm but fmaf, whose result IEEE 754
 * fixes, and sqrtf, which is an instruction. So the bits do not depend on compiler, library or processor.
 */
#ifndef QUIRE_ENGINE_NUMERIC_H
#define QUIRE_ENGINE_NUMERIC_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Kernels for GPUs are made of the same functions. */
#ifdef __CUDACC__
#define NUMERIC static inline __host__ __device__
#else
#define NUMERIC static inline
#endif

NUMERIC uint32_t f32_bits(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof u);
	return u;
}

NUMERIC float f32_from_bits(uint32_t u)
{
	float x;

	memcpy(&x, &u, sizeof x);
	return x;
}

/* One of two words, without a branch: compilers make vectors of loops over what is written with it. */
NUMERIC uint32_t num_choose(bool which, uint32_t yes, uint32_t no)
{
	uint32_t mask = 0u - (uint32_t)which;

	return (yes & mask) | (no & ~mask);
}

NUMERIC float bf16_to_f32(uint16_t h)
{
	return f32_from_bits((uint32_t)h << 16);
}

/* To nearest even; a NaN stays a NaN. */
NUMERIC uint16_t f32_to_bf16(float x)
{
	uint32_t u = f32_bits(x), rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;

	return (uint16_t)num_choose((u & 0x7fffffff) > 0x7f800000, u >> 16 | 0x40, rounded);
}

NUMERIC float f16_to_f32(uint16_t h)
{
	/* Shift exponent and mantissa to float32's places, then correct the bias by an exact multiplication, which also
	 * normalises subnormals. Infinities and NaN are put right afterwards. */
	uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
	uint32_t u = f32_bits(f32_from_bits(magnitude) * 0x1p112f);

	u = num_choose((h & 0x7c00) == 0x7c00, magnitude | 0x7f800000, u);
	return f32_from_bits(u | (uint32_t)(h & 0x8000) << 16);
}

/* The fn variant: 4 exponent bits of bias 7, 3 mantissa bits, no infinities, 0x7f and 0xff NaN, largest 448. */
NUMERIC float e4m3_to_f32(uint8_t c)
{
	uint32_t u = f32_bits(f32_from_bits((uint32_t)(c & 0x7f) << 20) * 0x1p120f);

	u = num_choose((c & 0x7f) == 0x7f, 0x7fc00000, u);
	return f32_from_bits(u | (uint32_t)(c & 0x80) << 24);
}

/* To nearest even. |x| <= 448 (the caller scales); beyond, the result saturates. NaN gives NaN. */
NUMERIC uint8_t f32_to_e4m3(float x)
{
	uint32_t u = f32_bits(x), sign = u >> 24 & 0x80, m = u & 0x7fffffff;
	uint32_t r = ((m + 0x7ffff + (m >> 20 & 1)) >> 20) - (120u << 3);
	/* Subnormal codes are multiples of 2^-9: adding 2^14 rounds to them. */
	uint32_t subnormal = f32_bits(f32_from_bits(m) + 0x1p14f) - f32_bits(0x1p14f);

	r = num_choose(m < f32_bits(0x1p-6f), subnormal, r);
	r = num_choose(m >= f32_bits(448.0f), 0x7e, r);
	r = num_choose(m > 0x7f800000, 0x7f, r);
	return (uint8_t)(sign | r);
}

/* Whether no value is infinite or a NaN. */
NUMERIC bool num_all_finite(const float *x, int64_t n)
{
	uint32_t bad = 0;

	for (int64_t i = 0; i < n; i++)
		bad |= 0u - (uint32_t)((f32_bits(x[i]) & 0x7f800000) == 0x7f800000);
	return !bad;
}

/*
 * Arithmetic by rule (F) of ops.h, for scalar definitions: with `flush`, a subnormal operand counts as zero and a
 * subnormal result becomes zero, signs kept. A result is subnormal when it lies below 2^-126 after rounding to 24 bits
 * without a limit to the exponent, as x86 has it: rounding in the subnormal range may say 2^-126 where that says
 * less, so a result of 2^-126 is looked at again, 2^24 times as large. (Above 2^104 nothing that small is left over.)
 */
NUMERIC float num_flushed(float x)
{
	return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x;
}

NUMERIC float num_fma(float a, float b, float c, bool flush)
{
	float r;

	if (!flush)
		return fmaf(a, b, c);
	a = num_flushed(a);
	b = num_flushed(b);
	c = num_flushed(c);
	r = fmaf(a, b, c);
	if (fabsf(r) > 0x1p-126f || r != r)
		return r;
	if (fabsf(r) == 0x1p-126f) {
		float more = fabsf(a) < fabsf(b) ? fmaf(a * 0x1p24f, b, c * 0x1p24f) : fmaf(a, b * 0x1p24f, c * 0x1p24f);

		if (fabsf(more) >= 0x1p-102f)
			return r;
	}
	return copysignf(0.0f, r);
}

NUMERIC float num_mul(float a, float b, bool flush)
{
	return flush ? num_fma(a, b, copysignf(0.0f, a * b), true) : a * b;
}

NUMERIC float num_add(float a, float b, bool flush)
{
	/* A subnormal sum is exact. */
	return flush ? num_flushed(num_flushed(a) + num_flushed(b)) : a + b;
}

/* Rounded to bf16 and widened again. */
NUMERIC float num_bf16(float x)
{
	return bf16_to_f32(f32_to_bf16(x));
}

/*
 * exp(x), relative error below 1.2e-7. x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) = 1 + r + r^2 q(r), q fitted to the
 * least largest relative error. Results below the smallest normal number (x < -87.33655) are 0.
 */
NUMERIC float num_exp(float x)
{
	/* Adding and taking away 1.5 x 2^23 rounds to an integer, to nearest even. */
	float n = fmaf(x, 0x1.715476p+0f, 0x1.8p23f) - 0x1.8p23f;
	float r = fmaf(n, -0x1.62e43p-1f, x), q;
	int32_t i, half;

	if (!(x >= -87.33655f)) /* NaN, too */
		return x != x ? x : 0.0f;
	if (x > 88.72284f)
		return INFINITY;
	r = fmaf(n, 0x1.05c61p-29f, r);
	q = fmaf(0x1.6a2256p-10f, r, 0x1.123b02p-7f);
	q = fmaf(q, r, 0x1.5558f8p-5f);
	q = fmaf(q, r, 0x1.55549p-3f);
	q = fmaf(q, r, 0x1.fffffcp-2f);
	q = fmaf(q, r * r, r) + 1.0f;
	/* 2^n in two factors: n may be 128. */
	i = (int32_t)n;
	half = i / 2;
	return q * f32_from_bits((uint32_t)(half + 127) << 23) * f32_from_bits((uint32_t)(i - half + 127) << 23);
}

NUMERIC float num_sigmoid(float x)
{
	return 1.0f / (1.0f + num_exp(-x));
}

NUMERIC float num_silu(float x)
{
	return x / (1.0f + num_exp(-x));
}

#endif
