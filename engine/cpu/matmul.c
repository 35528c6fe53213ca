/* Dot products along the rows of a weight: order (L) of ops.h, the definition. */
#include "engine/cpu/cpu.h"

#include <stdlib.h>

#include "config/mem.h"

/* Inputs over which lanes run before a scale is applied; without scales, of which a row is widened at a time. */
static int block_of(const struct weight *w)
{
	return w->dtype == DTYPE_INT4 ? INT4_GROUP : WEIGHT_BLOCK;
}

/* w[r] . x; x is [cols], rounded already if the profile rounds. */
static float dot(const struct weight *w, int32_t r, const float *x, enum compute_profile profile)
{
	bool pairs = profile == COMPUTE_BF16, scaled = w->scale || w->group_scale;
	float lane[LANES] = {0}, total[LANES] = {0}, a[WEIGHT_BLOCK], b[WEIGHT_BLOCK];
	int block = block_of(w);

	for (int32_t k = 0; k < w->cols; k += block) {
		int n = w->cols - k < block ? w->cols - k : block, padded = (n + LANE_PAD - 1) / LANE_PAD * LANE_PAD;

		memset(a, 0, sizeof a);
		memset(b, 0, sizeof b);
		memcpy(a, x + k, (size_t)n * sizeof *a);
		weight_widen(b, w, r, k, n);
		for (int j = 0; j < padded; j += LANE_PAD)
			for (int step = 0; step < 2; step++)
				for (int l = 0; l < LANES; l++) {
					int e = j + (pairs ? 2 * l + 1 - step : LANES * step + l);

					lane[l] = num_fma(a[e], b[e], lane[l], pairs);
				}
		for (int l = 0; scaled && l < LANES; l++) {
			total[l] = num_fma(weight_scale(w, r, k), lane[l], total[l], pairs);
			lane[l] = 0;
		}
	}
	if (scaled)
		memcpy(lane, total, sizeof lane);
	for (int step = LANES / 2; step; step /= 2)
		for (int l = 0; l < step; l++)
			lane[l] = num_add(lane[l], lane[l + step], pairs);
	return lane[0];
}

struct job {
	float *y;
	const float *x;
	const struct weight *w;
	int64_t y_stride, x_stride, n;
	enum compute_profile profile;
};

/* Item: a row of w, or when there are more of them, a row of x. */
static void by_row(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	bool by_input = j->n > j->w->rows;
	int64_t i_first = by_input ? first : 0, i_end = by_input ? end : j->n;
	int32_t r_first = by_input ? 0 : (int32_t)first, r_end = by_input ? j->w->rows : (int32_t)end;
	float *x = xmalloc((size_t)j->w->cols, sizeof *x);

	(void)thread;
	for (int64_t i = i_first; i < i_end; i++) {
		for (int32_t k = 0; k < j->w->cols; k++)
			x[k] = j->profile == COMPUTE_BF16 ? num_bf16(j->x[i * j->x_stride + k]) : j->x[i * j->x_stride + k];
		for (int32_t r = r_first; r < r_end; r++)
			j->y[i * j->y_stride + r] = dot(j->w, r, x, j->profile);
	}
	free(x);
}

void CPU(matmul)(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride,
		 const struct weight *w, int64_t n, enum compute_profile profile)
{
	struct job j = {y, x, w, y_stride, x_stride, n, profile};

	pool_run(dev->queue, by_row, &j, n > w->rows ? n : w->rows, (n > w->rows ? w->rows : n) * (int64_t)w->cols);
}

void CPU(expand_values)(struct device *dev, float *out, const float *x, const struct weight *kv_b, int32_t n_heads,
			int32_t nope_dim, int32_t v_dim, int64_t n, enum compute_profile profile)
{
	for (int32_t h = 0; h < n_heads; h++) {
		struct weight uv = weight_rows(kv_b, h * (nope_dim + v_dim) + nope_dim, v_dim);

		CPU(matmul)(dev, out + (int64_t)h * v_dim, (int64_t)n_heads * v_dim, x + (int64_t)h * kv_b->cols,
			    (int64_t)n_heads * kv_b->cols, &uv, n, profile);
	}
}
