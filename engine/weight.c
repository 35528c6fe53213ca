#include "engine/weight.h"

#include <assert.h>

static const struct {
	const char *name;
	size_t bytes;
} dtypes[N_DTYPES] = {
	[DTYPE_F32] = {"F32", 4},
	[DTYPE_BF16] = {"BF16", 2},
	[DTYPE_F16] = {"F16", 2},
	[DTYPE_F8_E4M3] = {"F8_E4M3", 1},
};

size_t dtype_bytes(enum dtype dtype)
{
	return dtypes[dtype].bytes;
}

const char *dtype_name(enum dtype dtype)
{
	return dtypes[dtype].name;
}

struct weight weight_rows(const struct weight *w, int32_t first, int32_t n)
{
	struct weight view = *w;

	assert(first >= 0 && n >= 0 && first <= w->rows - n);
	view.data = (const char *)w->data + (size_t)first * (size_t)w->cols * dtype_bytes(w->dtype);
	view.first_row += first;
	view.rows = n;
	return view;
}

size_t weight_bytes(const struct weight *w)
{
	size_t bytes;

	if (!w->data)
		return 0;
	bytes = (size_t)w->rows * (size_t)w->cols * dtype_bytes(w->dtype);
	if (w->scale && w->rows)
		bytes += sizeof(float) * (size_t)((w->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK) *
			 (size_t)((w->first_row + w->rows - 1) / WEIGHT_BLOCK - w->first_row / WEIGHT_BLOCK + 1);
	return bytes;
}
