#include "tests/support/op_cases.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/numeric.h"

#if defined HAVE_WIDE
extern const struct ops ops_wide, ops_widebf16;
#endif

int op_tables(const struct ops **tables)
{
	static const char *const names[] = {"scalar", "avx2", "avx512", "avx512bf16"};
	static bool told;
	int n = 0;

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (cpu_ops(names[i]))
			tables[n++] = cpu_ops(names[i]);
		else if (!told)
			printf("skipped: this processor lacks %s\n", names[i]);
	}
	told = true;
#if defined HAVE_WIDE
	if (cpu_ops("avx2")) {
		tables[n++] = &ops_wide;
		tables[n++] = &ops_widebf16;
	}
#endif
	return n;
}

void backend_open(struct backend *b, const struct ops *ops, int n_threads)
{
	if (pool_new(&b->pool, n_threads, NULL))
		abort();
	device_init(&b->dev, "cpu", b->pool);
	b->ops = ops;
}

void backend_close(struct backend *b)
{
	pool_free(b->pool);
}

static uint32_t next(struct random *r)
{
	r->state = r->state * 1664525u + 1013904223u;
	return r->state;
}

float random_uniform(struct random *r)
{
	return (float)(int32_t)next(r) * 0x1p-31f;
}

int32_t random_below(struct random *r, int32_t n)
{
	return (int32_t)((uint64_t)next(r) * (uint64_t)n >> 32);
}

float *random_floats(struct random *r, size_t n)
{
	float *x = xmalloc(n, sizeof *x);

	for (size_t i = 0; i < n; i++)
		x[i] = random_uniform(r);
	return x;
}

void make_hostile(struct random *r, float *x, size_t n)
{
	static const float hostile[] = {0x1p-149f, -0x1p-130f, 0x1p-133f, 0x1.fep-127f, 0x1p127f,   -0x1p127f, INFINITY,
					-INFINITY, 0.0f,       -0.0f,     0x1p-126f,    -0x1p-126f, 0x1p-64f,  0x1.8p-63f};

	for (size_t i = 0; i < n; i++)
		if (random_below(r, 3) == 0) {
			x[i] = hostile[random_below(r, (int32_t)(sizeof hostile / sizeof hostile[0]))];
			if (random_below(r, 2))
				x[i] *= random_uniform(r);
		}
}

/* The float16 of a bf16's bits, somewhere in its range; subnormal ones, too. */
static uint16_t some_f16(struct random *r, bool hostile)
{
	uint16_t h = (uint16_t)(random_below(r, hostile ? 0x7c01 : 0x0c00) + (hostile ? 0 : 0x3000));

	return h | (uint16_t)(random_below(r, 2) << 15);
}

struct weight random_weight(struct random *r, enum dtype dtype, int32_t rows, int32_t cols, bool hostile)
{
	struct weight w = {.dtype = dtype, .rows = rows, .cols = cols};
	size_t row_bytes = weight_row_bytes(&w), across = (size_t)(cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;
	uint8_t *data = xcalloc((size_t)rows, row_bytes);
	float *x = random_floats(r, (size_t)cols);

	for (int32_t i = 0; i < rows; i++) {
		uint8_t *row = data + (size_t)i * row_bytes;

		for (int32_t k = 0; k < cols; k++)
			x[k] = random_uniform(r);
		if (hostile)
			make_hostile(r, x, (size_t)cols);
		for (int32_t k = 0; k < cols; k++) {
			if (dtype == DTYPE_F32)
				((float *)row)[k] = x[k];
			else if (dtype == DTYPE_BF16)
				((uint16_t *)row)[k] = f32_to_bf16(x[k]);
			else if (dtype == DTYPE_F16)
				((uint16_t *)row)[k] = some_f16(r, hostile);
			else if (dtype == DTYPE_INT4)
				row[k / 2] |= (uint8_t)(random_below(r, 16) << k % 2 * 4);
			else
				row[k] = (uint8_t)(random_below(r, 0x7f) | random_below(r, 2) << 7);
		}
	}
	free(x);
	w.data = data;
	if (dtype == DTYPE_F8_E4M3) {
		size_t n = across * (size_t)((rows + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK);
		float *scale = random_floats(r, n);

		if (hostile)
			make_hostile(r, scale, n);
		w.scale = scale;
	}
	if (dtype == DTYPE_INT4) {
		size_t n = (size_t)rows * (size_t)weight_groups(&w);
		float *scale = random_floats(r, n);
		uint16_t *rounded = xmalloc(n, sizeof *rounded);

		if (hostile)
			make_hostile(r, scale, n);
		for (size_t i = 0; i < n; i++)
			rounded[i] = f32_to_bf16(scale[i]);
		free(scale);
		w.group_scale = rounded;
	}
	return w;
}

void free_weight(struct weight *w)
{
	free((void *)(uintptr_t)w->data);
	free((void *)(uintptr_t)w->scale);
	free((void *)(uintptr_t)w->group_scale);
}

bool same_numbers(const float *a, const float *b, size_t n, const char *what)
{
	for (size_t i = 0; i < n; i++)
		if (f32_bits(a[i]) != f32_bits(b[i]) && !(isnan(a[i]) && isnan(b[i]))) {
			printf("%s: value %zu of %zu is %a, it should be %a\n", what, i, n, (double)a[i], (double)b[i]);
			return false;
		}
	return true;
}
