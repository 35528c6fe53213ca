/*
 * A weight matrix as the checkpoint stores it, and views of its rows.
 *
 * Nothing is converted when it is loaded: an op widens what it reads. Widening BF16, F16 and E4M3 to float32 is
 * exact; the product with an FP8 block scale is never rounded into a weight (ops.h says where it enters).
 */
#ifndef QUIRE_ENGINE_WEIGHT_H
#define QUIRE_ENGINE_WEIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
	DTYPE_F32,
	DTYPE_BF16,
	DTYPE_F16,
	DTYPE_F8_E4M3, /* fn variant: no infinities, largest 448; 0x7f and 0xff are NaN, and refused when a model is read */
	DTYPE_INT4,    /* of expert files only: value = (code - 8) x scale, two codes a byte, low nibble = even input */
	N_DTYPES
};

enum {
	WEIGHT_BLOCK = 128, /* rows and columns that share one FP8 scale */
	INT4_GROUP = 64,    /* inputs of a row that share one int4 scale */
	WEIGHT_SUM_BYTES = 64 << 10, /* of data that have one checksum; a few of them fit into a thread's second cache */
};

struct weight {
	enum dtype dtype;
	int32_t rows, cols;  /* out, in */
	const void *data;    /* [rows, cols], row-major, rows packed at weight_row_bytes; NULL: the model has no such matrix */
	const float *scale;  /* F8_E4M3 only: [ceil(stored rows / 128), ceil(cols / 128)] of the stored matrix */
	int32_t first_row;   /* row 0 of this view is that row of the stored matrix: scales change at stored rows
	                        divisible by 128, wherever the view begins */
	const uint16_t *group_scale; /* INT4 only: bf16 [rows, ceil(cols / 64)], of this view's rows */
	uint64_t *sums;      /* NULL, or XXH3-64 of each WEIGHT_SUM_BYTES of data, 0 where nobody has looked yet: products that read all
	                        of it anyway fill them in (ops.h). A view of rows has none */
	uint64_t *group_sums; /* the same of group_scale */
};

/* Bytes of one row. */
size_t weight_row_bytes(const struct weight *w);

/* int4 scales of a row. */
static inline int32_t weight_groups(const struct weight *w)
{
	return (w->cols + INT4_GROUP - 1) / INT4_GROUP;
}

/* Bytes of one element (not INT4), and the name safetensors uses ("BF16"). */
size_t dtype_bytes(enum dtype dtype);
/* Bytes of the least that can be read alone, and how it is aligned: an element; of INT4 a byte, which is two of them. */
size_t dtype_unit_bytes(enum dtype dtype);
const char *dtype_name(enum dtype dtype);

/* Whether any of n values is a NaN or infinite. No INT4 code is, and `data` is not looked at. */
bool weight_any_not_finite(const void *data, size_t n, enum dtype dtype);

/* How many checksums `bytes` bytes have, the last one of what is left. */
static inline size_t weight_n_sums(size_t bytes)
{
	return (bytes + WEIGHT_SUM_BYTES - 1) / WEIGHT_SUM_BYTES;
}

/* sums[i] of `bytes` bytes, unless it is known. */
void weight_sum(uint64_t *sums, size_t i, const void *data, size_t bytes);

/* Of a weight with room for sums, for threads that share them out: weight_sum_items of them, each sums[i] and as large a share of
 * group_sums. */
int64_t weight_sum_items(const struct weight *w);
void weight_sum_item(const struct weight *w, int64_t i);

/* Rows first .. first + n - 1 of w. */
struct weight weight_rows(const struct weight *w, int32_t first, int32_t n);

/* Bytes that w occupies, scales included (a view counts the scale rows that it touches); 0 while it has no data. */
size_t weight_bytes(const struct weight *w);
/* The same, whether it has data or not. */
size_t weight_full_bytes(const struct weight *w);

#endif
