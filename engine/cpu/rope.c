/* Rotary embedding: pairs of values turned by the angle of their position. */
#include "engine/cpu/cpu.h"

struct job {
	float *x;
	const float *cos, *sin;
	int64_t stride, head_stride;
	int32_t n_heads, dim;
	bool interleaved;
};

static void rotate_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	int32_t half = j->dim / 2;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *c = j->cos + i * half, *s = j->sin + i * half;

		for (int32_t h = 0; h < j->n_heads; h++) {
			float *x = j->x + i * j->stride + h * j->head_stride;

			for (int32_t p = 0; p < half; p++) {
				float *a = j->interleaved ? x + 2 * p : x + p;
				float *b = j->interleaved ? a + 1 : a + half;
				float a0 = *a, b0 = *b;

				*a = fmaf(a0, c[p], -(b0 * s[p]));
				*b = fmaf(b0, c[p], a0 * s[p]);
			}
		}
	}
}

void CPU(rope)(struct device *dev, float *x, int64_t stride, int32_t n_heads, int64_t head_stride, int32_t dim,
	       const float *cos, const float *sin, int64_t n, bool interleaved)
{
	struct job j = {x, cos, sin, stride, head_stride, n_heads, dim, interleaved};

	pool_run(dev->queue, rotate_rows, &j, n, 4 * (int64_t)n_heads * dim);
}
