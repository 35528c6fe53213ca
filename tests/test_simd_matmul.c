/*
 * Products with weights: every instruction set has the bits of the scalar definition, whatever the type of the weight, the
 * profile, the shape, the number of rows and of threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "config/mem.h"
#include "engine/numeric.h"
#include "engine/simd/tables.h"
#include "tests/support/op_cases.h"

static const struct ops *tables[MAX_TABLES];
static int n_tables;
static struct random seed = {1};

/* All tables on one case, against the first; y has a guard on both sides of every row. */
static void compare(const struct weight *w, const float *x, int64_t n, enum compute_profile profile, int n_threads)
{
	int64_t stride = w->rows + 2;
	size_t size = (size_t)(n * stride);
	float *want = xcalloc(size, sizeof *want), *got = xmalloc(size, sizeof *got);
	char what[128];

	for (int t = 0; t < n_tables; t++) {
		float *y = t ? got : want;
		struct backend b;

		for (size_t i = 0; i < size; i++)
			y[i] = 777;
		backend_open(&b, tables[t], t ? n_threads : 1);
		b.ops->matmul(&b.dev, y + 1, stride, x, w->cols, w, n, profile);
		backend_close(&b);
		snprintf(what, sizeof what, "%s, %s, %s, %d threads, %d x %d times %lld rows", tables[t]->isa,
			 dtype_name(w->dtype), compute_profile_name(profile), n_threads, w->rows, w->cols, (long long)n);
		assert_true(same_numbers(y, want, size, what));
	}
	free(want);
	free(got);
}

static void sweep(bool hostile)
{
	static const int32_t shapes[][2] = {{1, 1},   {3, 31},   {5, 33},   {7, 64},   {49, 127}, {50, 128}, {17, 300},
					    {100, 47}, {131, 96}, {30, 513}, {13, 1100}};

	for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
		for (int dtype = 0; dtype < N_DTYPES; dtype++)
			for (int profile = 0; profile < 2; profile++) {
				struct weight w = random_weight(&seed, (enum dtype)dtype, shapes[s][0], shapes[s][1], hostile);
				float *x = random_floats(&seed, 37 * (size_t)w.cols);

				if (hostile)
					make_hostile(&seed, x, 37 * (size_t)w.cols);
				for (int64_t n = 1; n <= 37; n += n < 9 ? 1 : 7)
					compare(&w, x, n, (enum compute_profile)profile, 1 + (int)n % 4);
				free(x);
				free_weight(&w);
			}
}

static void every_instruction_set_has_the_bits_of_the_definition(void **state)
{
	(void)state;
	sweep(false);
}

/* Subnormals, infinities, huge and tiny side by side, in x, in weights and in scales. */
static void also_on_hostile_values(void **state)
{
	(void)state;
	sweep(true);
}

/* FP8 rows have a way of their own for x from 2^-70 to 2^25 (gemv.c): up to those borders, beyond them, and with scales of
 * every kind. */
static void also_where_fp8_rows_are_lifted_and_where_they_are_not(void **state)
{
	(void)state;
	for (int round = 0; round < 40; round++) {
		struct weight w = random_weight(&seed, DTYPE_F8_E4M3, 20, 300, true);
		float *x = random_floats(&seed, 4 * 300);

		for (int i = 0; i < 4 * 300; i++) {
			/* A fraction of all bits, and an exponent from -70 to 24; one in a few rounds is just too small or large. */
			x[i] = copysignf(1 + fabsf(x[i]) / 2, x[i]) * ldexpf(1, random_below(&seed, 95) - 70);
			if (random_below(&seed, 10) == 0)
				x[i] = 0;
		}
		if (round % 4 == 1)
			x[7] = round % 8 == 1 ? 0x1p-71f : 0x1.01p25f;
		for (int64_t n = 1; n <= 4; n++)
			compare(&w, x, n, (enum compute_profile)(round % 2), 2);
		free(x);
		free_weight(&w);
	}
}

static void also_at_every_number_of_rows_and_threads(void **state)
{
	struct weight w = random_weight(&seed, DTYPE_F8_E4M3, 70, 200, false);
	float *x = random_floats(&seed, 37 * 200);

	(void)state;
	for (int64_t n = 1; n <= 37; n++)
		for (int threads = 1; threads <= 4; threads++)
			compare(&w, x, n, COMPUTE_BF16, threads);
	free(x);
	free_weight(&w);
}

/* More rows of x than are made ready at a time. */
static void also_for_more_rows_than_fit_at_once(void **state)
{
	enum { COLS = 40000, N = 150 };
	struct weight w = random_weight(&seed, DTYPE_BF16, 3, COLS, false);
	float *x = random_floats(&seed, (size_t)N * COLS);

	(void)state;
	compare(&w, x, N, COMPUTE_BF16, 2);
	free(x);
	free_weight(&w);
}

static void views_of_fp8_rows_keep_the_scales_of_the_stored_matrix(void **state)
{
	struct weight w = random_weight(&seed, DTYPE_F8_E4M3, 300, 140, false), view = weight_rows(&w, 100, 130);
	float *x = random_floats(&seed, 11 * 140);

	(void)state;
	compare(&view, x, 1, COMPUTE_BF16, 2);
	compare(&view, x, 11, COMPUTE_BF16, 2);
	free(x);
	free_weight(&w);
}

/* Blocks of checksums end within rows, at their ends, and after rows that are longer than they. What is known already stays. */
static void products_sum_what_they_read(void **state)
{
	enum { N = 9 };
	static const int32_t shapes[][2] = {{70, 1100}, {64, 2048}, {300, 513}, {3, 70000}, {1, 1}, {2, 40000}, {700, 6144}};

	(void)state;
	for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
		for (int dtype = 0; dtype < N_DTYPES; dtype++) {
			struct weight w = random_weight(&seed, (enum dtype)dtype, shapes[s][0], shapes[s][1], false), summed = w;
			size_t bytes = (size_t)w.rows * weight_row_bytes(&w), n_sums = weight_n_sums(bytes);
			float *x = random_floats(&seed, N * (size_t)w.cols), *want = xmalloc(N * (size_t)w.rows, sizeof *want);
			float *y = xmalloc(N * (size_t)w.rows, sizeof *y);
			size_t scale_bytes = w.group_scale ? (size_t)w.rows * (size_t)weight_groups(&w) * 2 : 0, n_scales = weight_n_sums(scale_bytes);

			for (int t = 0; t < n_tables; t++)
				for (int64_t n = 1; n <= N; n += 4) { /* few, and many */
					struct backend b;

					summed.sums = xcalloc(n_sums + 1, sizeof *summed.sums);
					summed.sums[n_sums - 1] = 77;
					summed.sums[n_sums] = 99;
					summed.group_sums = n_scales ? xcalloc(n_scales, sizeof *summed.group_sums) : NULL;
					backend_open(&b, tables[t], 1 + t % 3);
					b.ops->matmul(&b.dev, want, w.rows, x, w.cols, &w, n, COMPUTE_BF16);
					b.ops->matmul(&b.dev, y, w.rows, x, w.cols, &summed, n, COMPUTE_BF16);
					backend_close(&b);
					assert_true(same_numbers(y, want, (size_t)(n * w.rows), tables[t]->isa));
					for (size_t i = 0; i + 1 < n_sums; i++) /* the definition leaves it to others */
						assert_true(t ? summed.sums[i] == XXH3_64bits((const char *)w.data + i * WEIGHT_SUM_BYTES,
												WEIGHT_SUM_BYTES)
							      : !summed.sums[i]);
					assert_true(summed.sums[n_sums - 1] == 77 && summed.sums[n_sums] == 99);
					for (size_t i = 0; i < n_scales; i++) {
						size_t at = i * WEIGHT_SUM_BYTES, left = scale_bytes - at;

						assert_true(t ? summed.group_sums[i] == XXH3_64bits((const char *)w.group_scale + at,
												      left < WEIGHT_SUM_BYTES ? left : WEIGHT_SUM_BYTES)
							      : !summed.group_sums[i]);
					}
					free(summed.group_sums);
					free(summed.sums);
				}
			free(y);
			free(want);
			free(x);
			free_weight(&w);
		}
}

static void values_of_all_heads_are_the_products_of_each(void **state)
{
	enum { HEADS = 5, NOPE = 20, V = 30, LORA = 70, N = 13 };

	(void)state;
	for (int dtype = 0; dtype < DTYPE_INT4; dtype++)
		for (int64_t n = 1; n <= N; n += 4) {
			struct weight w = random_weight(&seed, (enum dtype)dtype, HEADS * (NOPE + V), LORA, false);
			float *x = random_floats(&seed, N * HEADS * LORA), want[N * HEADS * V], got[N * HEADS * V];

			for (int t = 0; t < n_tables; t++) {
				struct backend b;

				backend_open(&b, tables[t], 1 + t);
				b.ops->expand_values(&b.dev, t ? got : want, x, &w, HEADS, NOPE, V, n, COMPUTE_BF16);
				backend_close(&b);
				assert_true(same_numbers(t ? got : want, want, (size_t)n * HEADS * V, tables[t]->isa));
			}
			free(x);
			free_weight(&w);
		}
}

static void the_table_of_e4m3_in_bf16_has_every_value(void **state)
{
	(void)state;
	for (int c = 0; c < 0x7f; c++)
		assert_int_equal(e4m3_bf16[0][c] | e4m3_bf16[1][c] << 8, f32_to_bf16(e4m3_to_f32((uint8_t)c)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_instruction_set_has_the_bits_of_the_definition),
		cmocka_unit_test(also_on_hostile_values),
		cmocka_unit_test(also_where_fp8_rows_are_lifted_and_where_they_are_not),
		cmocka_unit_test(also_at_every_number_of_rows_and_threads),
		cmocka_unit_test(also_for_more_rows_than_fit_at_once),
		cmocka_unit_test(views_of_fp8_rows_keep_the_scales_of_the_stored_matrix),
		cmocka_unit_test(products_sum_what_they_read),
		cmocka_unit_test(values_of_all_heads_are_the_products_of_each),
		cmocka_unit_test(the_table_of_e4m3_in_bf16_has_every_value),
	};

	n_tables = op_tables(tables);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
