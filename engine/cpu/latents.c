/* Rows of latents and index keys as stored (latents.h), each way. Instruction sets with vectors use this file, too: the
 * loops have no branches, and gcc and clang make vectors of them. */
#include "engine/cpu/cpu.h"

enum { RUN = 128 }; /* values that share one FP8 scale */

/* All ones where the exponent bits are all set (infinite or NaN). To be gathered with |. */
static inline uint32_t not_finite(uint32_t bits)
{
	return 0u - (uint32_t)((bits & 0x7f800000) == 0x7f800000);
}

static bool pack_bf16(uint8_t *restrict out, const float *restrict x, int64_t n)
{
	uint32_t bad = 0;

	for (int64_t i = 0; i < n; i++) {
		uint16_t h = f32_to_bf16(x[i]);

		memcpy(out + 2 * i, &h, 2);
		bad |= not_finite((uint32_t)h << 16);
	}
	return !bad;
}

static bool unpack_bf16(float *restrict out, const uint8_t *restrict in, int64_t n)
{
	uint32_t bad = 0;

	for (int64_t i = 0; i < n; i++) {
		uint16_t h;

		memcpy(&h, in + 2 * i, 2);
		out[i] = bf16_to_f32(h);
		bad |= not_finite((uint32_t)h << 16);
	}
	return !bad;
}

static bool copy_f32(void *out, const void *in, int64_t n)
{
	uint32_t bad = 0;

	memcpy(out, in, (size_t)n * sizeof(float));
	for (int64_t i = 0; i < n; i++) {
		uint32_t u;

		memcpy(&u, (const char *)in + 4 * i, 4);
		bad |= not_finite(u);
	}
	return !bad;
}

/* The scale of a run whose largest magnitude is `most`: least power of two s >= 2^-100, 448 s >= most. */
static float run_scale(float most)
{
	/* most = f x 2^e with f in [1, 2): 448 = 1.75 x 2^8, so s = 2^(e - 8), or twice that when f > 1.75. */
	uint32_t u = f32_bits(most);
	int e = (int)(u >> 23) - 127 - 8 + ((u & 0x7fffff) > 0x600000);

	return f32_from_bits((uint32_t)((e < -100 ? -100 : e) + 127) << 23);
}

static float reciprocal(float power_of_two)
{
	return f32_from_bits((254u << 23) - f32_bits(power_of_two));
}

/* The bits of the largest magnitude: those of magnitudes are in their order, what is not finite above all numbers. */
static int32_t largest_magnitude(const float *x, int32_t n)
{
	int32_t most = 0;

	for (int32_t k = 0; k < n; k++) {
		int32_t m = (int32_t)(f32_bits(x[k]) & 0x7fffffff);

		most = m > most ? m : most;
	}
	return most;
}

static void encode(uint8_t *restrict codes, const float *restrict x, float inverse, int32_t n)
{
	for (int32_t k = 0; k < n; k++)
		codes[k] = f32_to_e4m3(x[k] * inverse);
}

static bool pack_fp8(uint8_t *codes, uint8_t *scales, const float *x, int32_t n)
{
	for (int32_t i = 0; i < n; i += RUN) {
		int32_t run = n - i < RUN ? n - i : RUN, most = largest_magnitude(x + i, run);
		float scale;

		if (most >= 0x7f800000)
			return false;
		scale = run_scale(f32_from_bits((uint32_t)most));
		encode(codes + i, x + i, reciprocal(scale), run);
		memcpy(scales + i / RUN * 4, &scale, 4);
	}
	return true;
}

static uint32_t decode(float *restrict x, const uint8_t *restrict codes, float scale, int32_t n)
{
	uint32_t bad = 0;

	for (int32_t k = 0; k < n; k++) {
		x[k] = e4m3_to_f32(codes[k]) * scale;
		bad |= not_finite(f32_bits(x[k]));
	}
	return bad;
}

static bool unpack_fp8(float *x, const uint8_t *codes, const uint8_t *scales, int32_t n)
{
	uint32_t bad = 0;

	for (int32_t i = 0; i < n; i += RUN) {
		float scale;

		memcpy(&scale, scales + i / RUN * 4, 4);
		bad |= decode(x + i, codes + i, scale, n - i < RUN ? n - i : RUN);
	}
	return !bad;
}

bool CPU(latent_pack)(enum latent_format format, uint8_t *row, const float *values, int32_t kv_lora, int32_t rope_dim)
{
	switch (format) {
	case LATENTS_FP8: {
		uint8_t *scales = row + kv_lora, *rope = scales + (kv_lora + RUN - 1) / RUN * 4;

		return pack_fp8(row, scales, values, kv_lora) && pack_bf16(rope, values + kv_lora, rope_dim);
	}
	case LATENTS_F32:
		return copy_f32(row, values, kv_lora + rope_dim);
	default:
		return pack_bf16(row, values, kv_lora + rope_dim);
	}
}

bool CPU(latent_unpack)(enum latent_format format, float *values, const uint8_t *row, int32_t kv_lora, int32_t rope_dim)
{
	switch (format) {
	case LATENTS_FP8: {
		const uint8_t *scales = row + kv_lora, *rope = scales + (kv_lora + RUN - 1) / RUN * 4;

		return unpack_fp8(values, row, scales, kv_lora) && unpack_bf16(values + kv_lora, rope, rope_dim);
	}
	case LATENTS_F32:
		return copy_f32(values, row, kv_lora + rope_dim);
	default:
		return unpack_bf16(values, row, kv_lora + rope_dim);
	}
}

bool CPU(to_bf16)(uint16_t *out, const float *x, int64_t n)
{
	return pack_bf16((uint8_t *)out, x, n);
}
