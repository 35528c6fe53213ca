#include "engine/weight.h"

#include <assert.h>

#include "config/xxh3.h"

static const struct {
	const char *name;
	size_t bytes;
} dtypes[N_DTYPES] = {
	[DTYPE_F32] = {"F32", 4},
	[DTYPE_BF16] = {"BF16", 2},
	[DTYPE_F16] = {"F16", 2},
	[DTYPE_F8_E4M3] = {"F8_E4M3", 1},
	[DTYPE_INT4] = {"INT4_G64", 0},
};

size_t dtype_bytes(enum dtype dtype)
{
	assert(dtype != DTYPE_INT4);
	return dtypes[dtype].bytes;
}

size_t dtype_unit_bytes(enum dtype dtype)
{
	return dtype == DTYPE_INT4 ? 1 : dtypes[dtype].bytes;
}

const char *dtype_name(enum dtype dtype)
{
	return dtypes[dtype].name;
}

size_t weight_row_bytes(const struct weight *w)
{
	return w->dtype == DTYPE_INT4 ? ((size_t)w->cols + 1) / 2 : (size_t)w->cols * dtype_bytes(w->dtype);
}

struct weight weight_rows(const struct weight *w, int32_t first, int32_t n)
{
	struct weight view = *w;

	assert(first >= 0 && n >= 0 && first <= w->rows - n);
	view.data = (const char *)w->data + (size_t)first * weight_row_bytes(w);
	view.first_row += first;
	if (view.group_scale)
		view.group_scale += (size_t)first * (size_t)weight_groups(w);
	view.rows = n;
	view.sums = view.group_sums = NULL;
	return view;
}

void weight_sum(uint64_t *sums, size_t i, const void *data, size_t bytes)
{
	size_t at = i * WEIGHT_SUM_BYTES, left = bytes - at;

	if (!sums[i])
		sums[i] = xxh3_sum((const char *)data + at, left < WEIGHT_SUM_BYTES ? left : WEIGHT_SUM_BYTES, 0);
}

int64_t weight_sum_items(const struct weight *w)
{
	return (int64_t)weight_n_sums((size_t)w->rows * weight_row_bytes(w));
}

void weight_sum_item(const struct weight *w, int64_t i)
{
	size_t scale_bytes = w->group_sums ? (size_t)w->rows * (size_t)weight_groups(w) * sizeof *w->group_scale : 0;
	int64_t n = weight_sum_items(w), n_scales = (int64_t)weight_n_sums(scale_bytes);

	weight_sum(w->sums, (size_t)i, w->data, (size_t)w->rows * weight_row_bytes(w));
	for (int64_t k = i * n_scales / n; k < (i + 1) * n_scales / n; k++)
		weight_sum(w->group_sums, (size_t)k, w->group_scale, scale_bytes);
}

size_t weight_full_bytes(const struct weight *w)
{
	size_t bytes = (size_t)w->rows * weight_row_bytes(w);

	if (w->dtype == DTYPE_INT4)
		bytes += sizeof *w->group_scale * (size_t)w->rows * (size_t)weight_groups(w);
	if (w->dtype == DTYPE_F8_E4M3 && w->rows)
		bytes += sizeof(float) * (size_t)((w->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK) *
			 (size_t)((w->first_row + w->rows - 1) / WEIGHT_BLOCK - w->first_row / WEIGHT_BLOCK + 1);
	return bytes;
}

size_t weight_bytes(const struct weight *w)
{
	return w->data ? weight_full_bytes(w) : 0;
}

/* One pass without a branch, which compilers vectorise. */
bool weight_any_not_finite(const void *data, size_t n, enum dtype dtype)
{
	const uint32_t *f32 = data;
	const uint16_t *f16 = data;
	const uint8_t *f8 = data;
	uint32_t bad = 0;
	uint16_t bad16 = 0;
	uint8_t bad8 = 0;

	switch (dtype) {
	case DTYPE_INT4:
		return false;
	case DTYPE_F32:
		for (size_t i = 0; i < n; i++)
			bad |= (f32[i] & 0x7f800000u) == 0x7f800000u;
		return bad;
	case DTYPE_BF16:
		for (size_t i = 0; i < n; i++)
			bad16 |= (f16[i] & 0x7f80) == 0x7f80;
		return bad16;
	case DTYPE_F16:
		for (size_t i = 0; i < n; i++)
			bad16 |= (f16[i] & 0x7c00) == 0x7c00;
		return bad16;
	default:
		for (size_t i = 0; i < n; i++)
			bad8 |= (f8[i] & 0x7f) == 0x7f;
		return bad8;
	}
}
