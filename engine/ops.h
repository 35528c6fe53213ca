/*
 * Every kernel's contract: shapes, units, ties, and the order of summation. Private to engine.
 *
 * THE ORDER OF SUMMATION is part of the result. It does not depend on an instruction set, nor on how many rows are
 * computed together, nor on threads; every implementation of a table keeps it, bit for bit:
 *
 * (L) Lane sums: dot products along the rows of a weight. K is padded with zeros to a multiple of 32. There are 16
 *     float32 lanes, each one accumulator that starts at +0, and only fused multiply-adds. Element k goes to lane
 *     k mod 16, k ascending. At the end lanes l and l + 8 are added, then l and l + 4, l + 2, l + 1.
 *       FP8 weights: the lanes start anew for each 128 inputs, over the E4M3 values; then, per lane,
 *       total = fma(scale, lane, total); the totals are added in the same tree. A weight is never rounded.
 *       INT4 weights: likewise, over code - 8, for each 64 inputs.
 * (A) Abreast sums: outputs that lie abreast in memory have one accumulator each, starting at +0, fused, in ascending
 *     order of the summed index: index scores, attention scores, sums over tokens, the transposed kv_b product.
 *       FP8 weights: one accumulator per run of rows with one scale, then total = fma(scale, run, total).
 *       INT4 weights: total = fma(scale, q x (code - 8), total) would round twice; there is no INT4 kv_b.
 *
 * PROFILE COMPUTE_BF16, in the ops that take a profile: inputs named x or q are rounded to bf16 first, and elements go
 * in pairs, as the bf16 dot product instructions of processors have it: (L) elements 32j + 2l + 1, then 32j + 2l, go to
 * lane l; (A) of scores: element 2j + 1, then 2j (an odd length is padded with a zero). Latents and index keys are bf16.
 * (F) Subnormal numbers count as zero within such an op, in that profile: operands, and results of every addition,
 *     multiplication and fma, the sign kept. A result is subnormal that is below 2^-126 after rounding to 24 bits.
 *
 * Transcendental functions are those of numeric.h. 1/sqrt is a correctly rounded sqrtf and a division. All arrays are
 * row-major, float32 unless it is said; a `stride` is in elements, from one row to the next. Outputs never overlap
 * inputs unless it is said. No op fails for its values: what is not finite goes through and is found where latents are
 * packed; which NaN comes out of several is not promised.
 */
#ifndef QUIRE_ENGINE_OPS_H
#define QUIRE_ENGINE_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "engine/layout.h"
#include "engine/weight.h"
#include "offload/device.h"

/*
 * Index keys of a session stand 16 abreast. Profile f32: float32, key t, dimension d at [t / 16][d][t % 16]. Profile
 * bf16: bf16, at [t / 16][d / 2][t % 16][d % 2], an odd dimension's partner zero.
 */
enum { KEYS_ABREAST = 16 };

/* Latents of a session, ready for attention: row t is [kv_lora values | rope_dim rotated values], float32 in profile
 * f32, bf16 in profile bf16. */
struct latent_rows {
	const void *rows;
	int64_t stride;
	int32_t kv_lora, rope_dim;
};

/* Which positions a query attends to: ascending. set NULL: all of 0 .. n - 1. For `attend`, which rows: of ascending
 * positions, while the rows of some may lie anywhere (gather.h). */
struct selection {
	const int32_t *set;
	int32_t n;
};

struct int4_error;

struct ops {
	const char *isa;

	/* out[i] = row ids[i] of w, widened. Ids are in range. FP8: code x scale. */
	void (*embed)(struct device *dev, float *out, const struct weight *w, const int32_t *ids, int64_t n);

	/* out = weight x (x / sqrt(mean(x^2) + eps)); x^2 summed by (L). out may be x (same stride). */
	void (*rmsnorm)(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
			const float *weight, int64_t n, int32_t dim, float eps);

	/* out = fma(y, weight, bias), y = d / sqrt(mean(d^2) + eps), d = x - mean(x); the sum of x as a (L) product with
	 * ones, d^2 by (L). out may be x. */
	void (*layernorm)(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
			  const float *weight, const float *bias, int64_t n, int32_t dim, float eps);

	/* y[i, r] = w[r] . x[i] by (L), r in [0, w->rows). Fills in checksums of w where it has room
	 * for them, but for the definition, which leaves them. */
	void (*matmul)(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride,
		       const struct weight *w, int64_t n, enum compute_profile profile);

	/* Rotate n x n_heads vectors of `dim` values in place; vector (i, h) begins at x + i stride + h head_stride.
	 *   cos, sin [n, dim / 2]   of row i's position
	 * interleaved: pairs (2j, 2j + 1), else (j, j + dim / 2). For a pair (a, b):
	 * a' = fma(a, cos, -(b sin)), b' = fma(b, cos, a sin), the inner product rounded. */
	void (*rope)(struct device *dev, float *x, int64_t stride, int32_t n_heads, int64_t head_stride, int32_t dim,
		     const float *cos, const float *sin, int64_t n, bool interleaved);

	/* Carry queries to the latent space: out[i, h, c] = sum_d q[i, h, d] UK_h[d, c] by (A), d ascending.
	 *   q    [n, n_heads, q_head]             the first nope_dim values of each head
	 *   kv_b [n_heads (nope_dim + v_dim), kv_lora]; UK_h = rows h (nope_dim + v_dim) .. + nope_dim
	 *   out  [n, n_heads, out_head]           the first kv_lora values of each head */
	void (*absorb_query)(struct device *dev, float *out, int64_t out_head, const float *q, int64_t q_head,
			     const struct weight *kv_b, int32_t n_heads, int32_t nope_dim, int32_t v_dim, int64_t n);

	/* Carry mixtures of latents out of the latent space: out[i, h, r] = UV_h[r] . x[i, h] by (L).
	 *   x    [n, n_heads, kv_lora]
	 *   kv_b as above; UV_h = rows h (nope_dim + v_dim) + nope_dim .. + v_dim
	 *   out  [n, n_heads, v_dim] */
	void (*expand_values)(struct device *dev, float *out, const float *x, const struct weight *kv_b, int32_t n_heads,
			      int32_t nope_dim, int32_t v_dim, int64_t n, enum compute_profile profile);

	/* Attention over latents, every head the same keys.
	 *   q   [n, n_heads, kv_lora + rope_dim]  absorbed, then rotated
	 *   out [n, n_heads, kv_lora]
	 *   selections [n]
	 * s_t = scale x (q . row_t) by (A), latent first; e_t = exp(s_t - max s); out = (sum e_t latent_t) x (1 / sum e_t),
	 * both sums by (A), t in the order of the set. */
	void (*attend)(struct device *dev, float *out, const float *q, const struct latent_rows *latents,
		       const struct selection *selections, int32_t n_heads, float scale, int64_t n,
		       enum compute_profile profile);

	/* scores[i, t] = sum_h w[i, h] relu(q[i, h] . key_t), both sums by (A), for t in [0, n_visible[i]).
	 *   q [n, n_heads, dim], w [n, n_heads] scaled already and never rounded, keys 16 abreast */
	void (*index_scores)(struct device *dev, float *scores, int64_t scores_stride, const float *q, const float *w,
			     const void *keys, const int64_t *n_visible, int32_t n_heads, int32_t dim, int64_t n,
			     enum compute_profile profile);

	/* The k best of scores[i, 0 .. n_visible[i]): higher score first, then lower position; all of them when there are
	 * no more than k. set[i, 0 .. min(k, n_visible)) is written ascending, n_set[i] counts. NaN counts as lowest. */
	void (*topk_positions)(struct device *dev, int32_t *set, int64_t set_stride, int32_t *n_set,
			       const float *scores, int64_t scores_stride, const int64_t *n_visible, int32_t k,
			       int64_t n);

	/* Choose k experts per token.
	 *   logits  [n, n_experts]    router output, before the sigmoid
	 *   bias    [n_experts]       moves the choice, never the weight
	 *   experts [n, k]       out  best first; a tie goes to the lower id
	 *   weights [n, k]       out  sigmoid(logit), divided by (their sum, best first, + 1e-20) if normalize, x scale;
	 *                            NULL: not wanted
	 * With n_groups > 1 only experts of the topk_groups best groups can be chosen; a group's score is the sum of its
	 * two highest sigmoid + bias, a tie goes to the lower group. */
	void (*router_topk)(struct device *dev, int32_t *experts, float *weights, const float *logits,
			    const float *bias, int64_t n, int32_t n_experts, int32_t k, int32_t n_groups,
			    int32_t topk_groups, bool normalize, float scale);

	/* gate[i] = silu(gate[i]) x up[i], element by element. */
	void (*swiglu)(struct device *dev, float *gate, const float *up, int64_t n, int32_t dim);

	/* out[i] = x[rows[i]]. */
	void (*gather)(struct device *dev, float *out, const float *x, const int32_t *rows, int64_t n, int32_t dim);

	/* h[rows[i]] = fma(weights[i], x[i], h[rows[i]]), element by element; rows are distinct. rows NULL: row i;
	 * weights NULL: 1. */
	void (*add_scaled)(struct device *dev, float *h, const float *x, const int32_t *rows, const float *weights,
			   int64_t n, int32_t dim);

	/* What follows works on host memory, in the calling thread. */

	/* out[i] = exp(x[i]); out may be x. */
	void (*exp)(float *out, const float *x, int64_t n);

	/* out[i] = x[i] rounded to bf16. False: a result is not finite. */
	bool (*to_bf16)(uint16_t *out, const float *x, int64_t n);

	/* Rows of latents as stored, each way: latents.h. */
	bool (*latent_pack)(enum latent_format format, uint8_t *row, const float *values, int32_t kv_lora,
			    int32_t rope_dim);
	bool (*latent_unpack)(enum latent_format format, float *values, const uint8_t *row, int32_t kv_lora,
			      int32_t rope_dim);

	/* Row r of w, cols a multiple of 64, to int4 (int4.h): codes [cols / 2], scales [cols / 64] in bf16. -1: all is well;
	 * else the first column that holds, or with its block's scale gives, a NaN or infinity. */
	int32_t (*int4_pack_row)(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w,
				 int32_t r);
};

/* The table for an instruction set by name (scalar, avx2, avx512, avx512bf16), NULL: unknown, or this processor lacks it. NULL name: the best one. */
const struct ops *cpu_ops(const char *isa);

enum { CPU_MAX_ISAS = 4 }; /* cpu_isas of engine.h names those there are */

/* The sin and cos of rope for positions first .. first + n - 1: out [n, dim / 2] each. inv_freq is float32,
 * the angle a float32 product, its double cos and sin rounded (rope.c). */
void rope_inv_freq(const struct rope_config *r, int32_t dim, float *inv_freq);
void rope_cos_sin(const float *inv_freq, int32_t dim, int64_t first, int64_t n, float *cos, float *sin);

#endif
