/*
 * The tile that order (A) is computed in: M outputs down, two vectors across, one accumulator each, all in registers.
 *
 *   acc[i][v] = fma(a[i across + k along], b_v[k step ..], acc[i][v])    for k = 0 .. n - 1, ascending
 *
 * Each step loads two vectors and M numbers (broadcast) for 2 M fused multiply-adds: with AVX2's 16 registers M = 6, so
 * 12 accumulators hide the 4 cycles that one takes, and 8 loads the 6 cycles that 12 need; with AVX-512's 32, M = 8.
 * Longer sums stop and go on through memory, which rounds nothing.
 */
#ifndef QUIRE_ENGINE_SIMD_TILE_H
#define QUIRE_ENGINE_SIMD_TILE_H

#include "engine/simd/vec.h"

enum {
	TILE = VL == 8 ? 6 : 8, /* the largest M */
	ACROSS = 2 * VL,        /* outputs across */
};

/* What a and b hold. PAIRS_SPLIT: float32 in natural order, but of elements 2j and 2j + 1 the odd one goes first; n is
 * even. PAIRS: words of two bf16 values; across, along, step and n count words; only with HAS_DOT. */
enum order { IN_ORDER, PAIRS_SPLIT, PAIRS };

/* How profile bf16 sums here. */
#define BF16_ORDER (HAS_DOT ? PAIRS : PAIRS_SPLIT)

struct tile_in {
	const float *a, *b[2];
	int64_t across, along, step;
	int32_t n;
};

static ALWAYS_INLINE void tile_step(vf (*acc)[2], const int m, const struct tile_in *in, int64_t k, const enum order order)
{
	const float *a = in->a + k * in->along, *b0 = in->b[0] + k * in->step, *b1 = in->b[1] + k * in->step;

	if (order == PAIRS) {
#if HAS_DOT
		vi x0 = vi_load(b0), x1 = vi_load(b1);

		UNROLL(8)
		for (int i = 0; i < m; i++) {
			vi y = vi_all((int32_t)f32_bits(a[i * in->across]));

			acc[i][0] = vf_dot(acc[i][0], y, x0);
			acc[i][1] = vf_dot(acc[i][1], y, x1);
		}
#endif
	} else {
		vf x0 = vf_load(b0), x1 = vf_load(b1);

		UNROLL(8)
		for (int i = 0; i < m; i++) {
			vf y = vf_all(a[i * in->across]);

			acc[i][0] = vf_fma(y, x0, acc[i][0]);
			acc[i][1] = vf_fma(y, x1, acc[i][1]);
		}
	}
}

static ALWAYS_INLINE void tile_sum(vf (*acc)[2], const int m, const struct tile_in *in, const enum order order)
{
	if (order == PAIRS_SPLIT)
		for (int64_t k = 0; k < in->n; k += 2) {
			tile_step(acc, m, in, k + 1, order);
			tile_step(acc, m, in, k, order);
		}
	else
		for (int64_t k = 0; k < in->n; k++)
			tile_step(acc, m, in, k, order);
}

/* Accumulators from a place where those of one i lie together, `stride` from i to i + 1; p NULL: +0. */
static ALWAYS_INLINE void tile_load(vf (*acc)[2], const int m, const float *p, int64_t stride)
{
	UNROLL(8)
	for (int i = 0; i < m; i++)
		UNROLL(2)
		for (int v = 0; v < 2; v++)
			acc[i][v] = p ? vf_load(p + i * stride + v * VL) : vf_zero();
}

static ALWAYS_INLINE void tile_store(float *p, int64_t stride, vf (*acc)[2], const int m)
{
	UNROLL(8)
	for (int i = 0; i < m; i++)
		UNROLL(2)
		for (int v = 0; v < 2; v++)
			vf_store(p + i * stride + v * VL, acc[i][v]);
}

/* f(m, ...) with m a constant: f is always inlined, so that its accumulators are registers. */
#define TILE_CASE(m, f, ...) \
	case m: \
		f(m, __VA_ARGS__); \
		break;
#define TILE_TO_6(f, ...) \
	TILE_CASE(1, f, __VA_ARGS__) \
	TILE_CASE(2, f, __VA_ARGS__) \
	TILE_CASE(3, f, __VA_ARGS__) \
	TILE_CASE(4, f, __VA_ARGS__) \
	TILE_CASE(5, f, __VA_ARGS__) \
	TILE_CASE(6, f, __VA_ARGS__)
#if defined SIMD_WIDE
#define TILE_OF(count, f, ...) f(count, __VA_ARGS__);
#elif defined __AVX512F__
#define TILE_OF(count, f, ...) \
	switch (count) { \
		TILE_TO_6(f, __VA_ARGS__) \
		TILE_CASE(7, f, __VA_ARGS__) \
		TILE_CASE(8, f, __VA_ARGS__) \
	}
#else
#define TILE_OF(count, f, ...) \
	switch (count) { \
		TILE_TO_6(f, __VA_ARGS__) \
	}
#endif

/* n things in as few tiles as can be, and those as equal as can be: the first of tile i. */
static inline int32_t n_tiles(int32_t n)
{
	return (n + TILE - 1) / TILE;
}

static inline int32_t tile_first(int32_t i, int32_t n)
{
	return (int32_t)((int64_t)i * n / n_tiles(n));
}

#endif
