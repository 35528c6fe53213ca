/*
 * Norms of rows. One row at a time: the lanes of its sum of squares are HALVES registers, and what bounds a row is
 * the division of each value, which is part of the definition; so nothing would be gained by summing rows abreast.
 */
#include "engine/simd/rows.h"

/* The tree at the end of order (L). */
static ALWAYS_INLINE float tree(const vf sum[HALVES])
{
	float lane[LANES];

	for (int h = 0; h < HALVES; h++)
		vf_store(lane + h * VL, sum[h]);
	return lanes_sum(lanes_load(lane));
}

/*
 * sum over k of x[k] y[k]; y NULL: ones. The padding of order (L) is left out beyond the last vector: adding +0 changes
 * a sum only where that is -0, and a lane is never -0, since it starts at +0 and squares or whole values are added.
 */
static ALWAYS_INLINE float dot(const float *x, const float *y, int32_t n)
{
	vf sum[HALVES], one = vf_all(1);
	int32_t k = 0;

	for (int h = 0; h < HALVES; h++)
		sum[h] = vf_zero();
	for (; k + LANES <= n; k += LANES)
		for (int h = 0; h < HALVES; h++)
			sum[h] = vf_fma(vf_load(x + k + h * VL), y ? vf_load(y + k + h * VL) : one, sum[h]);
	for (int h = 0; h < HALVES && k < n; h++, k += VL) {
		int32_t some = n - k < VL ? n - k : VL;

		sum[h] = vf_fma(vf_load_some(x + k, some), y ? vf_load_some(y + k, some) : one, sum[h]);
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
	int32_t dim = j->dim, rest = dim % VL, whole = dim - rest;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *x = j->x + i * j->x_stride;
		float *out = j->out + i * j->out_stride;
		vf root = vf_all(sqrtf(dot(x, x, dim) / (float)dim + j->eps));

		for (int32_t k = 0; k < whole; k += VL)
			vf_store(out + k, vf_mul(vf_load(weight + k), vf_div(vf_load(x + k), root)));
		if (rest)
			vf_store_some(out + whole, vf_mul(vf_load_some(weight + whole, rest),
							  vf_div(vf_load_some(x + whole, rest), root)), rest);
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
	int32_t dim = j->dim, rest = dim % VL, whole = dim - rest;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *x = j->x + i * j->x_stride;
		float *out = j->out + i * j->out_stride;
		vf mean = vf_all(dot(x, NULL, dim) / (float)dim), root;

		for (int32_t k = 0; k < whole; k += VL)
			vf_store(out + k, vf_sub(vf_load(x + k), mean));
		if (rest)
			vf_store_some(out + whole, vf_sub(vf_load_some(x + whole, rest), mean), rest);
		root = vf_all(sqrtf(dot(out, out, dim) / (float)dim + j->eps));
		for (int32_t k = 0; k < whole; k += VL)
			vf_store(out + k, vf_fma(vf_div(vf_load(out + k), root), vf_load(weight + k), vf_load(bias + k)));
		if (rest)
			vf_store_some(out + whole, vf_fma(vf_div(vf_load_some(out + whole, rest), root),
							  vf_load_some(weight + whole, rest),
							  vf_load_some(bias + whole, rest)), rest);
	}
}

void CPU(layernorm)(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
		    const float *weight, const float *bias, int64_t n, int32_t dim, float eps)
{
	struct job j = {out, x, weight, bias, out_stride, x_stride, dim, eps};

	pool_run(dev->queue, layer_rows, &j, n, 8 * dim);
}
