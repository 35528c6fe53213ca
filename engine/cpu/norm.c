/* Norms of rows. Sums are products of order (L). */
#include "engine/cpu/cpu.h"

/* sum over k of x[k] y[k]; y NULL: ones. */
static float dot(const float *x, const float *y, int32_t n)
{
	lanes sum = lanes_all(0), one = lanes_all(1);
	float tail[2][LANE_PAD] = {{0}};
	int32_t k = 0, rest = n % LANE_PAD;

	for (; k + rest < n; k += LANES)
		sum = lanes_fma(lanes_load(x + k), y ? lanes_load(y + k) : one, sum);
	if (rest) {
		memcpy(tail[0], x + k, (size_t)rest * sizeof *x);
		memcpy(tail[1], y ? y + k : tail[0], (size_t)rest * sizeof *x);
		for (int l = 0; l < LANE_PAD; l += LANES)
			sum = lanes_fma(lanes_load(tail[0] + l), y ? lanes_load(tail[1] + l) : one, sum);
	}
	return lanes_sum(sum);
}

struct job {
	float *out;
	const float *x, *weight, *bias;
	int64_t out_stride, x_stride;
	int32_t dim;
	float eps;
};

static void rms_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *x = j->x + i * j->x_stride;
		float *out = j->out + i * j->out_stride;
		float root = sqrtf(dot(x, x, j->dim) / (float)j->dim + j->eps);

		for (int32_t k = 0; k < j->dim; k++)
			out[k] = j->weight[k] * (x[k] / root);
	}
}

void CPU(rmsnorm)(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
		  const float *weight, int64_t n, int32_t dim, float eps)
{
	struct job j = {out, x, weight, NULL, out_stride, x_stride, dim, eps};

	pool_run(dev->queue, rms_rows, &j, n, 4 * dim);
}

static void layer_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *x = j->x + i * j->x_stride;
		float *out = j->out + i * j->out_stride;
		float mean = dot(x, NULL, j->dim) / (float)j->dim, root;

		for (int32_t k = 0; k < j->dim; k++)
			out[k] = x[k] - mean;
		root = sqrtf(dot(out, out, j->dim) / (float)j->dim + j->eps);
		for (int32_t k = 0; k < j->dim; k++)
			out[k] = fmaf(out[k] / root, j->weight[k], j->bias[k]);
	}
}

void CPU(layernorm)(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
		    const float *weight, const float *bias, int64_t n, int32_t dim, float eps)
{
	struct job j = {out, x, weight, bias, out_stride, x_stride, dim, eps};

	pool_run(dev->queue, layer_rows, &j, n, 8 * dim);
}
