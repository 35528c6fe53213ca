/* Dot products along the rows of a weight: order (L) of ops.h. */
#include "engine/cpu/cpu.h"

#include <assert.h>

enum { TILE = 4 };

/* y[i] = w[r] . x[i] for `tile` rows of x, which share the widening of w[r]. */
static inline __attribute__((always_inline)) void dot_rows(float *y, int64_t y_stride, const float *x,
							   int64_t x_stride, const struct weight *w, int32_t r,
							   int tile)
{
	lanes sum[TILE], total[TILE];
	float wide[WEIGHT_BLOCK], padded[TILE][WEIGHT_BLOCK];

	for (int i = 0; i < tile; i++)
		sum[i] = total[i] = lanes_all(0);
	for (int32_t k = 0; k < w->cols; k += WEIGHT_BLOCK) {
		int n = w->cols - k < WEIGHT_BLOCK ? w->cols - k : WEIGHT_BLOCK;
		int n_pad = (n + LANE_PAD - 1) / LANE_PAD * LANE_PAD;
		const float *in[TILE];

		widen(wide, w->dtype, w->data, (int64_t)r * w->cols + k, n);
		for (int i = 0; i < tile; i++)
			in[i] = x + i * x_stride + k;
		if (n < n_pad) {
			memset(wide + n, 0, sizeof *wide * (size_t)(n_pad - n));
			for (int i = 0; i < tile; i++) {
				memcpy(padded[i], in[i], sizeof *wide * (size_t)n);
				memset(padded[i] + n, 0, sizeof *wide * (size_t)(n_pad - n));
				in[i] = padded[i];
			}
		}
		for (int j = 0; j < n_pad; j += LANES) {
			lanes weight = lanes_load(wide + j);

			for (int i = 0; i < tile; i++)
				sum[i] = lanes_fma(lanes_load(in[i] + j), weight, sum[i]);
		}
		if (w->scale) {
			lanes scale = lanes_all(weight_scale(w, r, k));

			for (int i = 0; i < tile; i++) {
				total[i] = lanes_fma(scale, sum[i], total[i]);
				sum[i] = lanes_all(0);
			}
		}
	}
	for (int i = 0; i < tile; i++)
		y[i * y_stride] = lanes_sum(w->scale ? total[i] : sum[i]);
}

struct job {
	float *y;
	const float *x;
	const struct weight *w;
	int64_t y_stride, x_stride, n;
};

static void rows_of(const struct job *j, int64_t first, int64_t end, int64_t x_first, int64_t x_end)
{
	for (int64_t r = first; r < end; r++) {
		int64_t i = x_first;

		for (; i + TILE <= x_end; i += TILE)
			dot_rows(j->y + i * j->y_stride + r, j->y_stride, j->x + i * j->x_stride, j->x_stride, j->w,
				 (int32_t)r, TILE);
		for (; i < x_end; i++)
			dot_rows(j->y + i * j->y_stride + r, j->y_stride, j->x + i * j->x_stride, j->x_stride, j->w,
				 (int32_t)r, 1);
	}
}

static void by_output(void *arg, int64_t first, int64_t end, int thread)
{
	struct job *j = arg;

	(void)thread;
	rows_of(j, first, end, 0, j->n);
}

static void by_input(void *arg, int64_t first, int64_t end, int thread)
{
	struct job *j = arg;

	(void)thread;
	rows_of(j, 0, j->w->rows, first, end);
}

void CPU(matmul)(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride,
		 const struct weight *w, int64_t n, enum compute_profile profile)
{
	struct job j = {y, x, w, y_stride, x_stride, n};

	assert(profile == COMPUTE_F32);
	if (w->rows >= n)
		pool_run(dev->queue, by_output, &j, w->rows, n * w->cols);
	else
		pool_run(dev->queue, by_input, &j, n, (int64_t)w->rows * w->cols);
}
