/*
 * Rotary embedding. Adjacent pairs stay where they are: with each cos and sin twice, and the sin of even places negated,
 * x' = fma(x, cos, swapped x * sin) does both values of a pair. The doubled tables are made once for a row's heads.
 */
#include "engine/simd/rows.h"

struct job {
	struct pool *pool;
	float *x;
	const float *cos, *sin;
	int64_t stride, head_stride;
	int32_t n_heads, dim;
};

static void rotate_pairs(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	int32_t half = j->dim / 2, dim = 2 * half, rest = dim % VL, whole = dim - rest;
	float *restrict cos = pool_scratch(j->pool, thread, 2 * (size_t)dim * sizeof *cos), *restrict sin = cos + dim;

	for (int64_t i = first; i < end; i++) {
		const float *c = j->cos + i * half, *s = j->sin + i * half;

		for (int32_t p = 0; p < half; p++) {
			cos[2 * p] = cos[2 * p + 1] = c[p];
			sin[2 * p] = -s[p];
			sin[2 * p + 1] = s[p];
		}
		for (int32_t h = 0; h < j->n_heads; h++) {
			float *x = j->x + i * j->stride + h * j->head_stride;

			for (int32_t k = 0; k < whole; k += VL) {
				vf v = vf_load(x + k), t = vf_mul(vf_swap_pairs(v), vf_load(sin + k));

				vf_store(x + k, vf_fma(v, vf_load(cos + k), t));
			}
			if (rest) {
				vf v = vf_load_some(x + whole, rest);
				vf t = vf_mul(vf_swap_pairs(v), vf_load_some(sin + whole, rest));

				vf_store_some(x + whole, vf_fma(v, vf_load_some(cos + whole, rest), t), rest);
			}
		}
	}
}

/* -x, of zeros, too. */
static ALWAYS_INLINE vf vf_negative(vf x)
{
	return vf_of_bits(vi_xor(vi_bits(x), vi_all(INT32_MIN)));
}

static void rotate_halves(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	int32_t half = j->dim / 2, rest = half % VL;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *cos = j->cos + i * half, *sin = j->sin + i * half;

		for (int32_t h = 0; h < j->n_heads; h++) {
			float *x = j->x + i * j->stride + h * j->head_stride, *y = x + half;
			int32_t k = 0;

			for (; k < half - rest; k += VL) {
				vf a = vf_load(x + k), b = vf_load(y + k), c = vf_load(cos + k), s = vf_load(sin + k);

				vf_store(x + k, vf_fma(a, c, vf_negative(vf_mul(b, s))));
				vf_store(y + k, vf_fma(b, c, vf_mul(a, s)));
			}
			for (; k < half; k++) {
				float a = x[k], b = y[k];

				x[k] = fmaf(a, cos[k], -(b * sin[k]));
				y[k] = fmaf(b, cos[k], a * sin[k]);
			}
		}
	}
}

void CPU(rope)(struct device *dev, float *x, int64_t stride, int32_t n_heads, int64_t head_stride, int32_t dim,
	       const float *cos, const float *sin, int64_t n, bool interleaved)
{
	struct job j = {dev->queue, x, cos, sin, stride, head_stride, n_heads, dim};

	pool_run(dev->queue, interleaved ? rotate_pairs : rotate_halves, &j, n, 2 * (int64_t)n_heads * dim);
}
