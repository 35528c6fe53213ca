/*
 * Products of rows with weights, order (L) of ops.h, in two shapes: a few rows, which live from reading the weights once
 * (gemv.c), and many, which live from using what is in registers often (gemm.c). matmul.c chooses; the bits are the same.
 */
#ifndef QUIRE_ENGINE_SIMD_MATMUL_H
#define QUIRE_ENGINE_SIMD_MATMUL_H

#include "engine/simd/decode.h"

struct product {
	float *y;
	const float *x;
	const struct weight *w;
	int64_t y_stride, x_stride, n;
	enum compute_profile profile;
	struct pool *pool;
	char *packed; /* x as lanes are multiplied with it: gemv.c, gemm.c; in the pool's scratch */
	bool lifted;  /* gemv.c: it is made larger, for DTYPE_F8_LIFTED */
};

/* Blocks of 32 inputs in a row, the last one padded. */
static inline int64_t product_blocks(const struct product *p)
{
	return (p->w->cols + BLOCK - 1) / BLOCK;
}

/* Bytes of 32 inputs of x when they are ready: 32 float32 values as two steps of 16 lanes, or 16 words. */
static ALWAYS_INLINE int ready_bytes(enum dtype dtype, bool pairs)
{
	return uses_words(dtype, pairs) ? 2 * BLOCK : 4 * BLOCK;
}

/* One row of x made ready. Step s of the row (two a block, or one of words), half h goes to out + s x step_bytes +
 * h x half_bytes. */
void CPU(ready_row)(char *out, size_t step_bytes, size_t half_bytes, const float *x, int32_t cols, enum dtype dtype,
		    bool pairs);

/* The last `rest` inputs of a row of w, less than a block, copied to tail with padding that decodes to zeros (which an
 * int4 code of 8 does). */
static inline const char *padded_block(char *tail, const char *in, int rest, enum dtype dtype)
{
	int bytes = dtype == DTYPE_INT4 ? (rest + 1) / 2 : block_bytes(dtype) / BLOCK * rest;

	memset(tail, dtype == DTYPE_INT4 ? 0x88 : 0, (size_t)block_bytes(dtype));
	memcpy(tail, in, (size_t)bytes);
	if (dtype == DTYPE_INT4 && rest % 2)
		tail[rest / 2] = (char)((tail[rest / 2] & 0x0f) | 0x80);
	return tail;
}

/* The 16 lanes of a sum added up, by the tree of (L). */
static ALWAYS_INLINE float lanes_total(const vf sum[HALVES])
{
#if defined SIMD_WIDE
	float s[LANES];

	vf_store(s, sum[0]);
	for (int step = LANES / 2; step; step /= 2)
		for (int l = 0; l < step; l++)
			s[l] += s[l + step];
	return s[0];
#else
#if defined __AVX512F__
	__m256 by_8 = _mm256_add_ps(_mm512_castps512_ps256(sum[0]), _mm512_extractf32x8_ps(sum[0], 1));
#else
	__m256 by_8 = _mm256_add_ps(sum[0], sum[1]);
#endif
	__m128 by_4 = _mm_add_ps(_mm256_castps256_ps128(by_8), _mm256_extractf128_ps(by_8, 1));
	__m128 by_2 = _mm_add_ps(by_4, _mm_movehl_ps(by_4, by_4));

	return _mm_cvtss_f32(_mm_add_ss(by_2, _mm_movehdup_ps(by_2)));
#endif
}

/* Rows of x that gemv takes: beyond, gemm is faster. */
enum { GEMV_ROWS = 8 };

void CPU(gemv)(struct product *p);
/* The same on this thread alone, as part of a job; p->packed has room for gemv_ready_bytes. */
void CPU(gemv_here)(struct product *p);
size_t CPU(gemv_ready_bytes)(const struct product *p);
void CPU(gemm)(struct product *p);

#endif
