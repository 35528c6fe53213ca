/* Rows of weights to int4 (int4.h). */
#include "engine/cpu/cpu.h"

#include "engine/int4.h"

/* Values k .. k + 63 of row r. */
static void widen(float out[INT4_GROUP], const struct weight *w, int32_t r, int32_t k)
{
	float scale = w->scale ? weight_scale(w, r, k) : 1;

	weight_widen(out, w, r, k, INT4_GROUP);
	for (int i = 0; i < INT4_GROUP; i++)
		out[i] *= scale;
}

/* The bits of |x| grow with it, and those of infinity and of a NaN are beyond all others. */
static uint32_t greatest(const float x[INT4_GROUP])
{
	uint32_t most = 0;

	for (int i = 0; i < INT4_GROUP; i++) {
		uint32_t bits = f32_bits(x[i]) & 0x7fffffff;

		most = bits > most ? bits : most;
	}
	return most;
}

/* With scale >= 2^-126 no |value / scale| is as much as 7.5: the scale's rounding changes it by 2^-8 at most. */
static void pack_group(uint8_t codes[INT4_GROUP / 2], float scale, double lost[LANES], double whole[LANES], const float x[INT4_GROUP])
{
	/* Added to a number of at most 2^22, rounds it to a whole one, which is then in the lowest bits. */
	const float to_whole = 0x1.8p23f;
	float off_squared[LANES] = {0}, squared[LANES] = {0};
	uint32_t code[INT4_GROUP];

	for (int k = 0; k < INT4_GROUP; k += LANES)
		for (int l = 0; l < LANES; l++) {
			float v = x[k + l], rounded = v / scale + to_whole, off = v - (rounded - to_whole) * scale;

			code[k + l] = (f32_bits(rounded) + 8) & 15;
			off_squared[l] += off * off;
			squared[l] += v * v;
		}
	for (int l = 0; l < LANES; l++) {
		lost[l] += (double)off_squared[l];
		whole[l] += (double)squared[l];
	}
	for (int i = 0; i < INT4_GROUP / 2; i++)
		codes[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
}

int32_t CPU(int4_pack_row)(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w, int32_t r)
{
	double lost[LANES] = {0}, whole[LANES] = {0};
	float x[INT4_GROUP];

	for (int32_t k = 0; k < w->cols; k += INT4_GROUP) {
		uint32_t most;

		widen(x, w, r, k);
		most = greatest(x);
		if (most >= 0x7f800000) {
			while (num_all_finite(&x[k % INT4_GROUP], 1))
				k++;
			return k;
		}
		scales[k / INT4_GROUP] = int4_scale(f32_from_bits(most));
		if (scales[k / INT4_GROUP])
			pack_group(codes + k / 2, bf16_to_f32(scales[k / INT4_GROUP]), lost, whole, x);
		else
			memset(codes + k / 2, INT4_NOTHING, INT4_GROUP / 2);
	}
	*error = (struct int4_error){int4_sum(lost), int4_sum(whole)};
	return -1;
}
