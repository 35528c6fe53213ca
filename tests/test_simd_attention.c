/*
 * Attention and absorbed queries of every instruction set against the scalar definition, bit for bit: awkward shapes, any
 * number of queries and threads, numbers of all kinds.
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

static struct random seed = {20};

enum kind { USUAL, TINY, HOSTILE, N_KINDS };

/* Numbers of a kind; TINY: around the smallest normal one, so that sums and products are subnormal. */
static float *numbers(enum kind kind, size_t n)
{
	float *x = random_floats(&seed, n);

	if (kind == HOSTILE)
		make_hostile(&seed, x, n);
	for (size_t i = 0; i < n && kind == TINY; i++)
		x[i] *= random_below(&seed, 2) ? 0x1p-62f : 0x1p-66f;
	return x;
}

struct attend_case {
	int32_t kv_lora, rope_dim, n_heads, n_rows;
	int64_t n;
	enum compute_profile profile;
	enum kind kind;
	bool all_negative;
};

/* Selections: all rows; one; sparse ones of any length. */
static void select_rows(struct selection *s, int32_t *set, const struct attend_case *c, int64_t i)
{
	int32_t step = 1 + random_below(&seed, 7), n = 0;

	*s = (struct selection){NULL, c->n_rows};
	if (i % 3 == 0)
		return;
	for (int32_t t = random_below(&seed, c->n_rows); t < c->n_rows; t += 1 + random_below(&seed, step))
		set[n++] = t;
	*s = (struct selection){set, i % 3 == 1 ? 1 : n};
}

static void assert_attend_is_scalar(const struct attend_case *c)
{
	int32_t dim = c->kv_lora + c->rope_dim;
	int64_t stride = dim + 3;
	size_t n_rows = (size_t)c->n_rows * (size_t)stride, n_out = (size_t)(c->n * c->n_heads * c->kv_lora);
	float *rows = numbers(c->kind, n_rows), *q = numbers(c->kind, (size_t)(c->n * c->n_heads * dim));
	float *want = xcalloc(n_out, 4), *got = xcalloc(n_out, 4);
	uint16_t *rounded = xmalloc(n_rows, sizeof *rounded);
	struct selection *s = xcalloc((size_t)c->n, sizeof *s);
	int32_t *sets = xcalloc((size_t)c->n * (size_t)c->n_rows, sizeof *sets);
	struct latent_rows latents = {c->profile == COMPUTE_BF16 ? (void *)rounded : (void *)rows, stride, c->kv_lora, c->rope_dim};

	for (size_t i = 0; i < n_rows; i++) {
		if (c->all_negative)
			rows[i] = -fabsf(rows[i]);
		rounded[i] = f32_to_bf16(rows[i]);
	}
	for (int64_t i = 0; c->all_negative && i < c->n * c->n_heads * dim; i++)
		q[i] = fabsf(q[i]);
	for (int64_t i = 0; i < c->n; i++)
		select_rows(&s[i], sets + i * c->n_rows, c, i);
	scalar.ops->attend(&scalar.dev, want, q, &latents, s, c->n_heads, 1.5f, c->n, c->profile);
	for (int isa = 1; isa < n_tables; isa++)
		for (int n_threads = 1; n_threads <= 4; n_threads++) {
			struct backend b;
			char what[99];

			snprintf(what, sizeof what, "%s, %d threads, %d heads, %lld queries, profile %d, kind %d", tables[isa]->isa,
				 n_threads, c->n_heads, (long long)c->n, c->profile, c->kind);
			backend_open(&b, tables[isa], n_threads);
			b.ops->attend(&b.dev, got, q, &latents, s, c->n_heads, 1.5f, c->n, c->profile);
			backend_close(&b);
			assert_true(same_numbers(got, want, n_out, what));
		}
	free(rows);
	free(q);
	free(want);
	free(got);
	free(rounded);
	free(s);
	free(sets);
}

static void attention_has_the_bits_of_its_definition_at_any_shape(void **state)
{
	static const struct attend_case cases[] = {
		{.kv_lora = 1, .rope_dim = 0, .n_heads = 1, .n_rows = 1, .n = 1},
		{.kv_lora = 17, .rope_dim = 4, .n_heads = 5, .n_rows = 47, .n = 1},
		{.kv_lora = 64, .rope_dim = 16, .n_heads = 16, .n_rows = 49, .n = 5},
		{.kv_lora = 70, .rope_dim = 7, .n_heads = 33, .n_rows = 97, .n = 3},
		{.kv_lora = 130, .rope_dim = 66, .n_heads = 7, .n_rows = 150, .n = 2},
		{.kv_lora = 33, .rope_dim = 8, .n_heads = 70, .n_rows = 20, .n = 6},
		{.kv_lora = 24, .rope_dim = 8, .n_heads = 3, .n_rows = 30, .n = 37},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
		for (int kind = 0; kind < N_KINDS; kind++)
			for (int p = 0; p < 2; p++) {
				struct attend_case c = cases[i];

				c.kind = (enum kind)kind;
				c.profile = (enum compute_profile)p;
				assert_attend_is_scalar(&c);
			}
}

static void attention_over_scores_that_are_all_negative_finds_the_largest(void **state)
{
	struct attend_case c = {.kv_lora = 40, .rope_dim = 10, .n_heads = 9, .n_rows = 60, .n = 4, .all_negative = true};

	(void)state;
	for (int p = 0; p < 2; p++) {
		c.profile = (enum compute_profile)p;
		assert_attend_is_scalar(&c);
	}
}

/* 300,000 positions x 33 heads are more scores than are kept at a time, whatever the width of vectors. */
static void a_long_context_is_attended_to_by_groups_of_heads(void **state)
{
	enum { ROWS = 300000, HEADS = 33, DIM = 2 };
	uint16_t *rows = xmalloc(ROWS, DIM * sizeof *rows);
	float *q = random_floats(&seed, HEADS * DIM), want[HEADS], got[HEADS];
	struct latent_rows latents = {rows, DIM, 1, 1};
	struct selection s = {NULL, ROWS};

	(void)state;
	for (int i = 0; i < ROWS * DIM; i++)
		rows[i] = f32_to_bf16(random_uniform(&seed));
	scalar.ops->attend(&scalar.dev, want, q, &latents, &s, HEADS, 1, 1, COMPUTE_BF16);
	for (int isa = 1; isa < n_tables; isa++) {
		struct backend b;

		backend_open(&b, tables[isa], 2);
		b.ops->attend(&b.dev, got, q, &latents, &s, HEADS, 1, 1, COMPUTE_BF16);
		backend_close(&b);
		assert_true(same_numbers(got, want, HEADS, tables[isa]->isa));
	}
	free(rows);
	free(q);
}

static void assert_absorb_is_scalar(int32_t heads, int32_t nope, int32_t v, int32_t cols, int64_t n, enum dtype dtype, bool hostile)
{
	struct weight w = random_weight(&seed, dtype, 100 + heads * (nope + v), cols, hostile);
	struct weight view = weight_rows(&w, 100, heads * (nope + v));
	int32_t q_head = nope + 3, out_head = cols + 5;
	size_t n_q = (size_t)(n * heads * q_head), n_out = (size_t)(n * heads * out_head);
	float *q = numbers(hostile ? HOSTILE : USUAL, n_q), *want = xcalloc(n_out, 4), *got = xcalloc(n_out, 4);

	scalar.ops->absorb_query(&scalar.dev, want, out_head, q, q_head, &view, heads, nope, v, n);
	for (int isa = 1; isa < n_tables; isa++)
		for (int n_threads = 1; n_threads <= 4; n_threads += 3) {
			struct backend b;
			char what[99];

			snprintf(what, sizeof what, "%s, %s, %d heads, %d x %d, %lld queries", tables[isa]->isa, dtype_name(dtype),
				 heads, nope, cols, (long long)n);
			backend_open(&b, tables[isa], n_threads);
			b.ops->absorb_query(&b.dev, got, out_head, q, q_head, &view, heads, nope, v, n);
			backend_close(&b);
			assert_true(same_numbers(got, want, n_out, what));
		}
	free(q);
	free(want);
	free(got);
	free_weight(&w);
}

/* Views begin at stored row 100, so that scales change within heads. */
static void absorbed_queries_have_the_bits_of_their_definition_at_any_shape(void **state)
{
	static const int32_t shapes[][4] = {{1, 1, 1, 1}, {3, 40, 30, 70}, {2, 192, 64, 300}, {5, 33, 1, 129}, {2, 130, 3, 512}};
	static const int64_t counts[] = {1, 2, 3, 4, 7, 37};

	(void)state;
	for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
		for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
			for (int dtype = 0; dtype < N_DTYPES; dtype++)
				assert_absorb_is_scalar(shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3], counts[c],
							(enum dtype)dtype, (s + c) % 2);
	assert_absorb_is_scalar(1, 20, 2, 40, 400, DTYPE_BF16, false);
}

/* Other than attention, which is given a profile, this op never flushes. */
static void absorbed_queries_keep_subnormal_sums(void **state)
{
	struct weight w = {.dtype = DTYPE_F32, .rows = 2, .cols = 16};
	float data[32], q[4] = {0x1p-100f, 0x1p-100f, 0x1p-100f, 0x1p-100f}, out[64];

	(void)state;
	for (int i = 0; i < 32; i++)
		data[i] = 0x1p-30f;
	w.data = data;
	for (int isa = 1; isa < n_tables; isa++) {
		struct backend b;

		backend_open(&b, tables[isa], 1);
		b.ops->absorb_query(&b.dev, out, 16, q, 1, &w, 1, 1, 1, 4);
		backend_close(&b);
		for (int i = 0; i < 64; i++)
			assert_true(out[i] == 0x1p-130f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(attention_has_the_bits_of_its_definition_at_any_shape),
		cmocka_unit_test(attention_over_scores_that_are_all_negative_finds_the_largest),
		cmocka_unit_test(a_long_context_is_attended_to_by_groups_of_heads),
		cmocka_unit_test(absorbed_queries_have_the_bits_of_their_definition_at_any_shape),
		cmocka_unit_test(absorbed_queries_keep_subnormal_sums),
	};
	int failed;

	n_tables = op_tables(tables);
	backend_open(&scalar, tables[0], 1);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	backend_close(&scalar);
	return failed;
}
