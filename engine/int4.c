#include "engine/int4.h"

#include <assert.h>

#include "engine/numeric.h"

/* Values k .. k + 63 of row r. */
static void widen(float out[INT4_GROUP], const struct weight *w, int32_t r, int32_t k)
{
	size_t at = (size_t)r * (size_t)w->cols + (size_t)k;
	float scale;

	switch (w->dtype) {
	case DTYPE_F32:
		memcpy(out, (const float *)w->data + at, INT4_GROUP * sizeof *out);
		return;
	case DTYPE_BF16:
		for (int i = 0; i < INT4_GROUP; i++)
			out[i] = bf16_to_f32(((const uint16_t *)w->data)[at + (size_t)i]);
		return;
	case DTYPE_F16:
		for (int i = 0; i < INT4_GROUP; i++)
			out[i] = f16_to_f32(((const uint16_t *)w->data)[at + (size_t)i]);
		return;
	default:
		assert(w->dtype == DTYPE_F8_E4M3);
		scale = w->scale[(int64_t)((w->first_row + r) / WEIGHT_BLOCK) * ((w->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK) +
				 k / WEIGHT_BLOCK];
		for (int i = 0; i < INT4_GROUP; i++)
			out[i] = e4m3_to_f32(((const uint8_t *)w->data)[at + (size_t)i]) * scale;
	}
}

/* Four lanes of the compiler's own vectors: the baseline of every processor, in an order that it may not change. */
enum { LANES = 4 };
typedef float lanes_f __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t lanes_i __attribute__((vector_size(LANES * sizeof(int32_t))));

static lanes_f load(const float *x)
{
	lanes_f v;

	memcpy(&v, x, sizeof v);
	return v;
}

/* The bits of |x| grow with it, and those of infinity and of a NaN are beyond all others. */
static uint32_t greatest(const float x[INT4_GROUP])
{
	lanes_i most = {0};
	int32_t all = 0;

	for (int i = 0; i < INT4_GROUP; i += LANES) {
		lanes_i bits = (lanes_i)load(x + i) & 0x7fffffff, more = bits > most;

		most = (bits & more) | (most & ~more);
	}
	for (int l = 0; l < LANES; l++)
		all = most[l] > all ? most[l] : all;
	return (uint32_t)all;
}

/* With scale >= 2^-126 no |value / scale| is as much as 7.5: the scale's rounding changes it by 2^-8 at most. */
static void pack_group(uint8_t codes[INT4_GROUP / 2], float scale, struct int4_error *error, const float x[INT4_GROUP])
{
	/* Added to a number of at most 2^22, rounds it to a whole one, which is then in the lowest bits. */
	const lanes_f to_whole = {0x1.8p23f, 0x1.8p23f, 0x1.8p23f, 0x1.8p23f};
	lanes_f lost = {0}, whole = {0};
	uint32_t code[INT4_GROUP];

	for (int i = 0; i < INT4_GROUP; i += LANES) {
		lanes_f v = load(x + i), rounded = v / scale + to_whole, off = v - (rounded - to_whole) * scale;
		lanes_i c = (lanes_i)rounded - (lanes_i)to_whole + 8;

		memcpy(code + i, &c, sizeof c);
		lost += off * off;
		whole += v * v;
	}
	for (int i = 0; i < INT4_GROUP / 2; i++)
		codes[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
	error->lost += (double)((lost[0] + lost[2]) + (lost[1] + lost[3]));
	error->whole += (double)((whole[0] + whole[2]) + (whole[1] + whole[3]));
}

/* All of it is lost. */
static void pack_nothing(uint8_t codes[INT4_GROUP / 2], struct int4_error *error, const float x[INT4_GROUP])
{
	double sum = 0;

	memset(codes, 0x88, INT4_GROUP / 2);
	for (int i = 0; i < INT4_GROUP; i++)
		sum += (double)x[i] * (double)x[i];
	error->lost += sum;
	error->whole += sum;
}

int32_t int4_pack_row(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w, int32_t r)
{
	float x[INT4_GROUP], scale;

	*error = (struct int4_error){0};
	for (int32_t k = 0; k < w->cols; k += INT4_GROUP) {
		uint32_t most;

		widen(x, w, r, k);
		most = greatest(x);
		if (most >= 0x7f800000) {
			while (num_all_finite(&x[k % INT4_GROUP], 1))
				k++;
			return k;
		}
		scale = bf16_to_f32(f32_to_bf16(f32_from_bits(most) / 7));
		scale = scale < 0x1p-126f ? 0 : scale;
		scales[k / INT4_GROUP] = f32_to_bf16(scale);
		if (scale > 0)
			pack_group(codes + k / 2, scale, error, x);
		else
			pack_nothing(codes + k / 2, error, x);
	}
	return -1;
}
