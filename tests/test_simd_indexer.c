/*
 * Index scores and the choice of positions, of every instruction set, against the scalar definition: awkward shapes, any
 * number of queries and threads, numbers of all kinds, and scores made to be hard to choose from.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>

#include "config/mem.h"
#include "engine/numeric.h"
#include "engine/ops.h"
#include "tests/support/op_cases.h"

static const struct ops *tables[MAX_TABLES];
static int n_tables;
static struct backend scalar;

static struct random seed = {21};

/* Keys of n positions as a session keeps them in that profile; places after the last hold noise. */
static void *random_keys(int64_t n, int32_t dim, enum compute_profile profile, bool hostile)
{
	int32_t even = (dim + 1) / 2 * 2;
	size_t count = (size_t)((n + KEYS_ABREAST - 1) / KEYS_ABREAST * KEYS_ABREAST * even);
	float *x = random_floats(&seed, count);
	uint16_t *pairs;

	if (hostile)
		make_hostile(&seed, x, count);
	if (profile == COMPUTE_F32)
		return x;
	pairs = xmalloc(count, sizeof *pairs);
	for (size_t i = 0; i < count; i++) {
		size_t d = i / (2 * KEYS_ABREAST) % (size_t)(even / 2) * 2 + i % 2;

		pairs[i] = d < (size_t)dim ? f32_to_bf16(x[i]) : 0;
	}
	free(x);
	return pairs;
}

static void assert_scores_are_scalar(int32_t heads, int32_t dim, int64_t n, int64_t keys, enum compute_profile profile, bool hostile)
{
	size_t n_q = (size_t)(n * heads * dim), n_w = (size_t)(n * heads), n_scores = (size_t)(n * keys);
	float *q = random_floats(&seed, n_q), *w = random_floats(&seed, n_w);
	float *want = random_floats(&seed, n_scores), *got = xmalloc(n_scores, sizeof *got), *before = xmalloc(n_scores, 4);
	void *k = random_keys(keys, dim, profile, hostile);
	int64_t *visible = xcalloc((size_t)n, sizeof *visible);

	if (hostile) {
		make_hostile(&seed, q, n_q);
		make_hostile(&seed, w, n_w);
	}
	/* Some queries see all, some any number. What they do not see is left as it was. */
	for (int64_t i = 0; i < n; i++)
		visible[i] = i % 2 ? 1 + random_below(&seed, (int32_t)keys) : keys;
	memcpy(before, want, n_scores * sizeof *want);
	scalar.ops->index_scores(&scalar.dev, want, keys, q, w, k, visible, heads, dim, n, profile);
	for (int isa = 1; isa < n_tables; isa++)
		for (int n_threads = 1; n_threads <= 4; n_threads++) {
			struct backend b;
			char what[99];

			snprintf(what, sizeof what, "%s, %d threads, %d heads of %d, %lld queries, %lld keys, profile %d",
				 tables[isa]->isa, n_threads, heads, dim, (long long)n, (long long)keys, profile);
			memcpy(got, before, n_scores * sizeof *got);
			backend_open(&b, tables[isa], n_threads);
			b.ops->index_scores(&b.dev, got, keys, q, w, k, visible, heads, dim, n, profile);
			backend_close(&b);
			assert_true(same_numbers(got, want, n_scores, what));
		}
	free(q);
	free(w);
	free(want);
	free(got);
	free(before);
	free(k);
	free(visible);
}

static void index_scores_have_the_bits_of_their_definition_at_any_shape(void **state)
{
	static const int32_t shapes[][4] = {{1, 1, 1, 1},     {1, 2, 1, 16},    {3, 10, 2, 17},   {5, 31, 3, 33},   {32, 128, 1, 300},
					    {70, 16, 4, 100}, {13, 7, 37, 49},  {8, 64, 70, 30},  {6, 20, 9, 1100}, {17, 33, 5, 255}};

	(void)state;
	for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
		for (int p = 0; p < 2; p++)
			for (int hostile = 0; hostile < 2; hostile++)
				assert_scores_are_scalar(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3],
							 (enum compute_profile)p, hostile);
}

/* Every table and 1 to 4 threads choose `want` for each of n rows. */
static void assert_choice(const float *scores, int64_t stride, const int64_t *visible, int32_t k, int64_t n, const char *what)
{
	int32_t *want = xcalloc((size_t)(n * k), 4), *got = xcalloc((size_t)(n * k), 4);
	int32_t *n_want = xcalloc((size_t)n, 4), *n_got = xcalloc((size_t)n, 4);

	scalar.ops->topk_positions(&scalar.dev, want, k, n_want, scores, stride, visible, k, n);
	for (int isa = 1; isa < n_tables; isa++)
		for (int n_threads = 1; n_threads <= 4; n_threads++) {
			struct backend b;

			memset(got, 0, (size_t)(n * k) * sizeof *got);
			backend_open(&b, tables[isa], n_threads);
			b.ops->topk_positions(&b.dev, got, k, n_got, scores, stride, visible, k, n);
			backend_close(&b);
			if (memcmp(n_got, n_want, (size_t)n * sizeof *n_got) || memcmp(got, want, (size_t)(n * k) * sizeof *got))
				fail_msg("%s, %d threads, %lld rows, the best %d: not the definition's choice among %s", tables[isa]->isa,
					 n_threads, (long long)n, k, what);
		}
	free(want);
	free(got);
	free(n_want);
	free(n_got);
}

enum shape { RANDOM, EQUAL, LOWEST, RISING, FALLING, FEW_VALUES, LAST_BITS, ZEROS, ANY_BITS, SAMPLED, N_SHAPES };
static const char *const shape_names[N_SHAPES] = {"random scores",      "equal scores",        "scores of -infinity",
						  "rising scores",      "falling scores",      "scores of few values",
						  "scores alike but for their last bits", "zeros of both signs", "any bits",
						  "scores whose best lie where the sample of a long row is taken"};

static void make_scores(float *x, int64_t n, enum shape shape)
{
	for (int64_t i = 0; i < n; i++) {
		float u = random_uniform(&seed);

		x[i] = shape == RANDOM       ? u
		       : shape == EQUAL      ? 1.5f
		       : shape == LOWEST     ? (i % 3 ? -INFINITY : NAN)
		       : shape == RISING     ? (float)i
		       : shape == FALLING    ? (float)-i
		       : shape == FEW_VALUES ? floorf(u * 4)
		       : shape == LAST_BITS  ? f32_from_bits(f32_bits(-3.0f) + (uint32_t)random_below(&seed, 1000))
		       : shape == ZEROS      ? (u < 0 ? -0.0f : 0.0f)
		       : shape == SAMPLED    ? (i / 8 % 32 == 0 || i / 16 % 32 == 0 ? u + 4 : u)
					     : f32_from_bits((uint32_t)random_below(&seed, 65536) << 16 |
							     (uint32_t)random_below(&seed, 65536));
	}
}

static void choices_are_those_of_the_definition_for_any_rows_and_any_k(void **state)
{
	enum { ROWS = 37, KEYS = 700 };
	float *scores = xmalloc(ROWS * KEYS, sizeof *scores);
	int64_t visible[ROWS];

	(void)state;
	for (int shape = 0; shape < N_SHAPES; shape++)
		for (int32_t k = 1; k <= KEYS; k += 1 + random_below(&seed, 150)) {
			int64_t n = 1 + random_below(&seed, ROWS);

			make_scores(scores, ROWS * KEYS, (enum shape)shape);
			for (int64_t i = 0; i < n; i++)
				visible[i] = i == n - 1 ? KEYS : 1 + random_below(&seed, KEYS);
			assert_choice(scores, KEYS, visible, k, n, shape_names[shape]);
		}
	free(scores);
}

/* Long enough that one row is shared by all threads. */
static void choices_from_a_long_row_are_those_of_the_definition(void **state)
{
	enum { KEYS = 100003 };
	const int64_t visible[3] = {KEYS - 1, 5, KEYS};
	float *scores = xmalloc(3 * KEYS, sizeof *scores);

	(void)state;
	for (int shape = 0; shape < N_SHAPES; shape++) {
		make_scores(scores, 3 * KEYS, (enum shape)shape);
		assert_choice(scores, KEYS, visible + 2, 2048, 1, shape_names[shape]);
		assert_choice(scores, KEYS, visible, 2048, 3, shape_names[shape]);
	}
	free(scores);
}

static void choices_from_a_million_scores_are_those_of_the_definition(void **state)
{
	const int64_t visible = 1 << 20;
	float *scores = xmalloc((size_t)visible, sizeof *scores);

	(void)state;
	make_scores(scores, visible, RANDOM);
	assert_choice(scores, visible, &visible, 2048, 1, "a million");
	free(scores);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(index_scores_have_the_bits_of_their_definition_at_any_shape),
		cmocka_unit_test(choices_are_those_of_the_definition_for_any_rows_and_any_k),
		cmocka_unit_test(choices_from_a_long_row_are_those_of_the_definition),
		cmocka_unit_test(choices_from_a_million_scores_are_those_of_the_definition),
	};
	int failed;

	n_tables = op_tables(tables);
	backend_open(&scalar, tables[0], 1);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	backend_close(&scalar);
	return failed;
}
