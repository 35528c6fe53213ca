/*
 * Norms of rows. One row at a time: the lanes of its sum of squares are HALVES registers, and what bounds a row is
 * the division of each value, which is part of the definition; so nothing would be gained by summing rows abreast.
 */
#include "engine/simd/vec.h"

/* The tree at the end of order (L). */
static ALWAYS_INLINE float tree(const vf sum[HALVES])
{
	float lane[LANES];

	for (int h = 0; h < HALVES; h++)
		vf_store(lane + h * VL, sum[h]);
	return lanes_sum(lanes_load(lane));
}

/* Whole vectors of x, then the rest with zeros behind it. */
static ALWAYS_INLINE vf load_some(const float *x, int32_t n)
{
	float padded[VL] = {0};

	if (n >= VL)
		return vf_load(x);
	for (int32_t k = 0; k < n; k++)
		padded[k] = x[k];
	return vf_load(padded);
}

static ALWAYS_INLINE void store_some(float *out, vf x, int32_t n)
{
	float padded[VL];

	if (n >= VL) {
		vf_store(out, x);
		return;
	}
	vf_store(padded, x);
	for (int32_t k = 0; k < n; k++)
		out[k] = padded[k];
}

/* sum over k of x[k] y[k], y NULL: ones; where the rest is all zeros, adding it changes nothing but the sign of a
 * zero, and a lane is never -0 since it starts at +0. */
static ALWAYS_INLINE float dot(const float *x, const float *y, int32_t n)
{
	vf sum[HALVES], one = vf_all(1);

	for (int h = 0; h < HALVES; h++)
		sum[h] = vf_zero();
	for (int32_t k = 0; k < n; k += LANES)
		for (int h = 0; h < HALVES && k + h * VL < n; h++) {
			int32_t at = k + h * VL;

			sum[h] = vf_fma(load_some(x + at, n - at), y ? load_some(y + at, n - at) : one, sum[h]);
		}
	return tree(sum);
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
	const float *weight = j->weight;
	int32_t dim = j->dim;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *x = j->x + i * j->x_stride;
		float *out = j->out + i * j->out_stride;
		vf root = vf_all(sqrtf(dot(x, x, dim) / (float)dim + j->eps));

		for (int32_t k = 0; k < dim; k += VL) {
			vf y = vf_mul(load_some(weight + k, dim - k), vf_div(load_some(x + k, dim - k), root));

			store_some(out + k, y, dim - k);
		}
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
	const float *weight = j->weight, *bias = j->bias;
	int32_t dim = j->dim;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *x = j->x + i * j->x_stride;
		float *out = j->out + i * j->out_stride;
		vf mean = vf_all(dot(x, NULL, dim) / (float)dim), root;

		for (int32_t k = 0; k < dim; k += VL)
			store_some(out + k, vf_sub(load_some(x + k, dim - k), mean), dim - k);
		root = vf_all(sqrtf(dot(out, out, dim) / (float)dim + j->eps));
		for (int32_t k = 0; k < dim; k += VL) {
			vf y = vf_div(load_some(out + k, dim - k), root);

			y = vf_fma(y, load_some(weight + k, dim - k), load_some(bias + k, dim - k));
			store_some(out + k, y, dim - k);
		}
	}
}

void CPU(layernorm)(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
		    const float *weight, const float *bias, int64_t n, int32_t dim, float eps)
{
	struct job j = {out, x, weight, bias, out_stride, x_stride, dim, eps};

	pool_run(dev->queue, layer_rows, &j, n, 8 * dim);
}
