/* What moves rows or works value by value, a vector at a time. */
#include "engine/simd/math.h"
#include "engine/simd/rows.h"

struct job {
	float *out;
	const float *x;
	const int32_t *rows;
	const float *weights;
	int32_t dim;
};

/* Rows lie one behind the other, so a thread's share is one long row. */
static void swiglu_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	float *gate = j->out + first * j->dim;
	const float *up = j->x + first * j->dim;
	int64_t n = (end - first) * j->dim, k = 0;

	(void)thread;
	for (; k + VL <= n; k += VL)
		vf_store(gate + k, vf_mul(vf_silu(vf_load(gate + k)), vf_load(up + k)));
	if (k < n) {
		int32_t rest = (int32_t)(n - k);
		vf y = vf_mul(vf_silu(vf_load_some(gate + k, rest)), vf_load_some(up + k, rest));

		vf_store_some(gate + k, y, rest);
	}
}

void CPU(swiglu)(struct device *dev, float *gate, const float *up, int64_t n, int32_t dim)
{
	struct job j = {.out = gate, .x = up, .dim = dim};

	pool_run(dev->queue, swiglu_rows, &j, n, 12 * (int64_t)dim);
}

/* Not memcpy: for rows of some KiB it takes the processor's string moves, which some processors run at a tenth of the
 * speed when addresses of source and target are alike in their low bits. */
static void gather_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	int32_t dim = j->dim, rest = dim % VL;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *x = j->x + (int64_t)j->rows[i] * dim;
		float *out = j->out + i * dim;

		for (int32_t k = 0; k < dim - rest; k += VL)
			vf_store(out + k, vf_load(x + k));
		memcpy(out + dim - rest, x + dim - rest, (size_t)rest * sizeof *x);
	}
}

void CPU(gather)(struct device *dev, float *out, const float *x, const int32_t *rows, int64_t n, int32_t dim)
{
	struct job j = {.out = out, .x = x, .rows = rows, .dim = dim};

	pool_run(dev->queue, gather_rows, &j, n, dim);
}

static void add_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	int32_t dim = j->dim, rest = dim % VL;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		float *h = j->out + (j->rows ? j->rows[i] : i) * dim;
		const float *x = j->x + i * dim;
		float weight = j->weights ? j->weights[i] : 1.0f;
		int32_t k = 0;

		for (vf w = vf_all(weight); k < dim - rest; k += VL)
			vf_store(h + k, vf_fma(w, vf_load(x + k), vf_load(h + k)));
		for (; k < dim; k++)
			h[k] = fmaf(weight, x[k], h[k]);
	}
}

void CPU(add_scaled)(struct device *dev, float *h, const float *x, const int32_t *rows, const float *weights,
		     int64_t n, int32_t dim)
{
	struct job j = {.out = h, .x = x, .rows = rows, .weights = weights, .dim = dim};

	pool_run(dev->queue, add_rows, &j, n, dim);
}

void CPU(exp)(float *out, const float *x, int64_t n)
{
	int64_t k = 0;

	for (; k + VL <= n; k += VL)
		vf_store(out + k, vf_exp(vf_load(x + k)));
	for (; k < n; k++)
		out[k] = num_exp(x[k]);
}
