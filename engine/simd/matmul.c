#include "engine/simd/matmul.h"

/* One block: two steps of float32 values, in the order of lanes or of pairs, or one step of words. */
static ALWAYS_INLINE void ready_block(char *out, size_t step_bytes, size_t half_bytes, const float x[BLOCK], bool words,
				      bool pairs)
{
	vf v[2][HALVES];

	decode_steps(v, DTYPE_F32, pairs, x);
	for (int s = 0; pairs && s < 2; s++)
		for (int h = 0; h < HALVES; h++)
			v[s][h] = vf_round_bf16(v[s][h]);
	for (int h = 0; words && h < HALVES; h++)
		vi_store(out + (size_t)h * half_bytes, vi_or(vi_bits(v[0][h]), vi_shift_right(vi_bits(v[1][h]), 16)));
	for (int s = 0; !words && s < 2; s++)
		for (int h = 0; h < HALVES; h++)
			vf_store((float *)(out + (size_t)s * step_bytes + (size_t)h * half_bytes), v[s][h]);
}

static ALWAYS_INLINE void ready_blocks(char *out, size_t step_bytes, size_t half_bytes, const float *x, int32_t cols,
				       bool words, bool pairs)
{
	size_t block = words ? step_bytes : 2 * step_bytes;
	int32_t k = 0;

	for (; k + BLOCK <= cols; k += BLOCK, out += block)
		ready_block(out, step_bytes, half_bytes, x + k, words, pairs);
	if (k < cols) {
		float padded[BLOCK] = {0};

		memcpy(padded, x + k, (size_t)(cols - k) * sizeof *x);
		ready_block(out, step_bytes, half_bytes, padded, words, pairs);
	}
}

void CPU(ready_row)(char *out, size_t step_bytes, size_t half_bytes, const float *x, int32_t cols, enum dtype dtype,
		    bool pairs)
{
	if (uses_words(dtype, pairs))
		ready_blocks(out, step_bytes, half_bytes, x, cols, true, true);
	else if (pairs)
		ready_blocks(out, step_bytes, half_bytes, x, cols, false, true);
	else
		ready_blocks(out, step_bytes, half_bytes, x, cols, false, false);
}

static void sum_items(void *arg, int64_t first, int64_t end, int thread)
{
	const struct product *p = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		weight_sum_item(p->w, i);
}

void CPU(matmul)(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride,
		 const struct weight *w, int64_t n, enum compute_profile profile)
{
	struct product p = {y, x, w, y_stride, x_stride, n, profile, dev->queue, NULL, false};

	if (!n || !w->rows)
		return;
	if (n <= GEMV_ROWS) {
		CPU(gemv)(&p);
		return;
	}
	if (w->sums)
		pool_run(dev->queue, sum_items, &p, weight_sum_items(w), WEIGHT_SUM_BYTES);
	CPU(gemm)(&p);
}

struct heads {
	float *out;
	const float *x;
	const struct weight *kv_b;
	int32_t n_heads, nope_dim, v_dim;
	int64_t n;
	enum compute_profile profile;
	struct pool *pool;
};

/* Item: a head, with few rows. A product for each, shared by all threads, would be a barrier for each. */
static void expand_heads(void *arg, int64_t first, int64_t end, int thread)
{
	const struct heads *j = arg;

	for (int32_t h = (int32_t)first; h < end; h++) {
		struct weight uv = weight_rows(j->kv_b, h * (j->nope_dim + j->v_dim) + j->nope_dim, j->v_dim);
		struct product p = {j->out + (int64_t)h * j->v_dim, j->x + (int64_t)h * j->kv_b->cols, &uv,
				    (int64_t)j->n_heads * j->v_dim, (int64_t)j->n_heads * j->kv_b->cols, j->n, j->profile,
				    j->pool, NULL, false};

		p.packed = pool_scratch(j->pool, thread, CPU(gemv_ready_bytes)(&p));
		CPU(gemv_here)(&p);
	}
}

void CPU(expand_values)(struct device *dev, float *out, const float *x, const struct weight *kv_b, int32_t n_heads,
			int32_t nope_dim, int32_t v_dim, int64_t n, enum compute_profile profile)
{
	struct heads j = {out, x, kv_b, n_heads, nope_dim, v_dim, n, profile, dev->queue};

	if (n > 0 && n <= GEMV_ROWS) {
		pool_run(dev->queue, expand_heads, &j, n_heads, n * v_dim * kv_b->cols);
		return;
	}
	for (int32_t h = 0; h < n_heads; h++) {
		struct weight uv = weight_rows(kv_b, h * (nope_dim + v_dim) + nope_dim, v_dim);

		CPU(matmul)(dev, out + (int64_t)h * v_dim, (int64_t)n_heads * v_dim, x + (int64_t)h * kv_b->cols,
			    (int64_t)n_heads * kv_b->cols, &uv, n, profile);
	}
}
