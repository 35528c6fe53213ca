#include "engine/latents.h"

#include <string.h>

#include "engine/numeric.h"

enum { RUN = 128 }; /* values that share one FP8 scale */

/* Exponent bits all set: infinite or NaN. */
static bool finite_f32(float x)
{
	return (f32_bits(x) & 0x7f800000) != 0x7f800000;
}

static bool pack_bf16(uint8_t *out, const float *x, int32_t n)
{
	bool finite = true;

	for (int32_t i = 0; i < n; i++) {
		uint16_t h = f32_to_bf16(x[i]);

		memcpy(out + 2 * i, &h, 2);
		finite &= (h & 0x7f80) != 0x7f80;
	}
	return finite;
}

static bool unpack_bf16(float *out, const uint8_t *in, int32_t n)
{
	bool finite = true;

	for (int32_t i = 0; i < n; i++) {
		uint16_t h;

		memcpy(&h, in + 2 * i, 2);
		out[i] = bf16_to_f32(h);
		finite &= finite_f32(out[i]);
	}
	return finite;
}

static bool copy_f32(void *out, const void *in, int32_t n)
{
	bool finite = true;

	for (int32_t i = 0; i < n; i++) {
		float x;

		memcpy(&x, (const char *)in + 4 * i, 4);
		memcpy((char *)out + 4 * i, &x, 4);
		finite &= finite_f32(x);
	}
	return finite;
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

static bool pack_fp8(uint8_t *codes, uint8_t *scales, const float *x, int32_t n)
{
	for (int32_t i = 0; i < n; i += RUN) {
		int32_t end = n - i < RUN ? n : i + RUN;
		float most = 0, scale, inverse;

		for (int32_t k = i; k < end; k++) {
			float a = f32_from_bits(f32_bits(x[k]) & 0x7fffffff);

			if (!finite_f32(x[k]))
				return false;
			most = a > most ? a : most;
		}
		scale = run_scale(most);
		inverse = reciprocal(scale);
		for (int32_t k = i; k < end; k++)
			codes[k] = f32_to_e4m3(x[k] * inverse);
		memcpy(scales + i / RUN * 4, &scale, 4);
	}
	return true;
}

static bool unpack_fp8(float *x, const uint8_t *codes, const uint8_t *scales, int32_t n)
{
	bool finite = true;

	for (int32_t i = 0; i < n; i++) {
		float scale;

		memcpy(&scale, scales + i / RUN * 4, 4);
		x[i] = e4m3_to_f32(codes[i]) * scale;
		finite &= finite_f32(x[i]);
	}
	return finite;
}

bool latent_pack(enum latent_format format, uint8_t *row, const float *values, int32_t kv_lora, int32_t rope_dim)
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

bool latent_unpack(enum latent_format format, float *values, const uint8_t *row, int32_t kv_lora, int32_t rope_dim)
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

bool index_key_pack(enum latent_format format, uint8_t *key, const float *values, int32_t dim)
{
	return format == LATENTS_F32 ? copy_f32(key, values, dim) : pack_bf16(key, values, dim);
}

bool index_key_unpack(enum latent_format format, float *values, const uint8_t *key, int32_t dim)
{
	return format == LATENTS_F32 ? copy_f32(values, key, dim) : unpack_bf16(values, key, dim);
}
