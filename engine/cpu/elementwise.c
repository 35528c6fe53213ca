/* What moves rows or works value by value. */
#include "engine/cpu/cpu.h"

struct job {
	float *out;
	const float *x;
	const struct weight *w;
	const int32_t *rows;
	const float *weights;
	int32_t dim;
};

static void embed_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		float *out = j->out + i * j->dim;

		weight_widen(out, j->w, j->rows[i], 0, j->dim);
		if (j->w->scale || j->w->group_scale)
			for (int32_t k = 0; k < j->dim; k++)
				out[k] *= weight_scale(j->w, j->rows[i], k);
	}
}

void CPU(embed)(struct device *dev, float *out, const struct weight *w, const int32_t *ids, int64_t n)
{
	struct job j = {.out = out, .w = w, .rows = ids, .dim = w->cols};

	pool_run(dev->queue, embed_rows, &j, n, w->cols);
}

static void swiglu_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;

	(void)thread;
	for (int64_t k = first * j->dim; k < end * j->dim; k++)
		j->out[k] = num_silu(j->out[k]) * j->x[k];
}

void CPU(swiglu)(struct device *dev, float *gate, const float *up, int64_t n, int32_t dim)
{
	struct job j = {.out = gate, .x = up, .dim = dim};

	pool_run(dev->queue, swiglu_rows, &j, n, 32 * (int64_t)dim);
}

static void gather_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		memcpy(j->out + i * j->dim, j->x + (int64_t)j->rows[i] * j->dim, (size_t)j->dim * sizeof(float));
}

void CPU(gather)(struct device *dev, float *out, const float *x, const int32_t *rows, int64_t n, int32_t dim)
{
	struct job j = {.out = out, .x = x, .rows = rows, .dim = dim};

	pool_run(dev->queue, gather_rows, &j, n, dim);
}

static void add_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		float *h = j->out + (j->rows ? j->rows[i] : i) * j->dim;
		const float *x = j->x + i * j->dim;
		float weight = j->weights ? j->weights[i] : 1.0f;

		for (int32_t k = 0; k < j->dim; k++)
			h[k] = fmaf(weight, x[k], h[k]);
	}
}

void CPU(add_scaled)(struct device *dev, float *h, const float *x, const int32_t *rows, const float *weights,
		     int64_t n, int32_t dim)
{
	struct job j = {.out = h, .x = x, .rows = rows, .weights = weights, .dim = dim};

	pool_run(dev->queue, add_rows, &j, n, dim);
}
