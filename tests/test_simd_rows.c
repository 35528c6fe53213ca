/*
 * What works value by value or row by row: every table against the scalar definition, bit for bit, for 1 to 37 rows, 1 to 4
 * threads and dimensions that no vector divides, with and without values that are hard to get right.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config/mem.h"
#include "engine/latents.h"
#include "engine/numeric.h"
#include "engine/ops.h"
#include "tests/support/op_cases.h"

static const struct ops *tables[MAX_TABLES];
static int n_tables;

static struct random seed = {11};

static const int32_t dims[] = {1, 7, 31, 33, 96, 257, 6144};
enum { N_DIMS = sizeof dims / sizeof dims[0], MOST_ROWS = 37, GAP = 3 };

/* One case of an op: n rows of dim values. The op's own function below runs it on a table and writes `out`
 * [MOST_ROWS * (dim + GAP)]; what it leaves alone must be alike, too. */
struct rows_case {
	int64_t n;
	int32_t dim;
	const float *a, *b, *c; /* [MOST_ROWS * (dim + GAP)] each */
	const int32_t *rows;    /* [n], distinct, below MOST_ROWS */
};

typedef void run_case(struct backend *b, float *out, const struct rows_case *c);

static float *numbers(size_t n, bool hostile)
{
	float *x = random_floats(&seed, n);

	for (size_t i = 0; i < n; i++)
		x[i] *= 8;
	if (hostile)
		make_hostile(&seed, x, n);
	return x;
}

/* Every table does what the scalar definition on one thread does. */
static void every_table_agrees(run_case *run, const char *what)
{
	static const int64_t counts[] = {1, 2, 37};

	for (int d = 0; d < N_DIMS; d++)
		for (int hostile = 0; hostile < 2; hostile++) {
			size_t room = MOST_ROWS * (size_t)(dims[d] + GAP);
			float *a = numbers(room, hostile), *b = numbers(room, hostile), *c = numbers(room, hostile);
			float *start = numbers(room, hostile), *want = xmalloc(room, sizeof *want), *got = xmalloc(room, sizeof *got);
			int32_t rows[MOST_ROWS];

			for (int32_t i = 0; i < MOST_ROWS; i++) {
				int32_t j = random_below(&seed, i + 1);

				rows[i] = i;
				rows[i] = rows[j];
				rows[j] = i;
			}
			for (int k = 0; k < 3; k++) {
				struct rows_case x = {counts[k], dims[d], a, b, c, rows};

				for (int t = 0; t < n_tables; t++)
					for (int n_threads = 1; n_threads <= (t ? 4 : 1); n_threads++) {
						struct backend backend;
						char name[80];

						snprintf(name, sizeof name, "%s, %s, %lld x %d, %d threads", what, tables[t]->isa,
							 (long long)x.n, x.dim, n_threads);
						memcpy(t ? got : want, start, room * sizeof *got);
						backend_open(&backend, tables[t], n_threads);
						run(&backend, t ? got : want, &x);
						backend_close(&backend);
						if (t)
							assert_true(same_numbers(got, want, room, name));
					}
			}
			free(a);
			free(b);
			free(c);
			free(start);
			free(want);
			free(got);
		}
}

static void run_rmsnorm(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->rmsnorm(&b->dev, out, c->dim + 1, c->a, c->dim + GAP, c->b, c->n, c->dim, 1e-5f);
}

static void run_rmsnorm_in_place(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->rmsnorm(&b->dev, out, c->dim, out, c->dim, c->b, c->n, c->dim, 1e-5f);
}

static void run_layernorm(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->layernorm(&b->dev, out, c->dim + 1, c->a, c->dim + GAP, c->b, c->c, c->n, c->dim, 1e-6f);
}

static void run_layernorm_in_place(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->layernorm(&b->dev, out, c->dim, out, c->dim, c->b, c->c, c->n, c->dim, 1e-6f);
}

static void norms_have_the_same_bits_everywhere(void **state)
{
	(void)state;
	every_table_agrees(run_rmsnorm, "rmsnorm");
	every_table_agrees(run_rmsnorm_in_place, "rmsnorm in place");
	every_table_agrees(run_layernorm, "layernorm");
	every_table_agrees(run_layernorm_in_place, "layernorm in place");
}

static void run_rope_pairs(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->rope(&b->dev, out, c->dim + GAP, 1, 0, c->dim, c->a, c->b, c->n, true);
}

static void run_rope_halves(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->rope(&b->dev, out, c->dim + GAP, 1, 0, c->dim, c->a, c->b, c->n, false);
}

/* Three heads share a row: each rotates the beginning of its part. */
static void run_rope_heads(struct backend *b, float *out, const struct rows_case *c)
{
	for (int interleaved = 0; interleaved < 2; interleaved++)
		b->ops->rope(&b->dev, out, c->dim + GAP, 3, c->dim / 3, c->dim / 4, c->a, c->b, c->n, interleaved);
}

static void rope_has_the_same_bits_everywhere_and_leaves_what_it_does_not_rotate(void **state)
{
	(void)state;
	every_table_agrees(run_rope_pairs, "rope of pairs");
	every_table_agrees(run_rope_halves, "rope of halves");
	every_table_agrees(run_rope_heads, "rope of heads");
}

/* At position 0 every sine is +0, and -(b x 0) is a zero of b's other sign, which a vector form may lose. */
static void rope_at_position_0_keeps_the_signs_of_zeros(void **state)
{
	enum { DIM = 64 };
	float cos[DIM / 2], sin[DIM / 2] = {0}, start[DIM];

	(void)state;
	for (int i = 0; i < DIM; i++)
		start[i] = (float[]){0.0f, -0.0f, 1.0f, -1.0f}[random_below(&seed, 4)];
	for (int i = 0; i < DIM / 2; i++)
		cos[i] = 1;
	for (int interleaved = 0; interleaved < 2; interleaved++) {
		float want[DIM];

		for (int t = 0; t < n_tables; t++) {
			struct backend b;
			float x[DIM];

			memcpy(x, start, sizeof x);
			backend_open(&b, tables[t], 1);
			b.ops->rope(&b.dev, x, DIM, 1, 0, DIM, cos, sin, 1, interleaved);
			backend_close(&b);
			if (!t)
				memcpy(want, x, sizeof want);
			assert_memory_equal(x, want, sizeof want);
		}
	}
}

static void run_swiglu(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->swiglu(&b->dev, out, c->a, c->n, c->dim);
}

static void run_gather(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->gather(&b->dev, out, c->a, c->rows, c->n, c->dim);
}

static void run_add_scaled(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->add_scaled(&b->dev, out, c->a, c->rows, c->b, c->n, c->dim);
}

static void run_add_plain(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->add_scaled(&b->dev, out, c->a, NULL, NULL, c->n, c->dim);
}

static void run_exp(struct backend *b, float *out, const struct rows_case *c)
{
	b->ops->exp(out, c->a, c->n * c->dim);
	b->ops->exp(out, out, c->dim);
}

static void what_works_value_by_value_has_the_same_bits_everywhere(void **state)
{
	(void)state;
	every_table_agrees(run_swiglu, "swiglu");
	every_table_agrees(run_gather, "gather");
	every_table_agrees(run_add_scaled, "add_scaled");
	every_table_agrees(run_add_plain, "add_scaled without rows and weights");
	every_table_agrees(run_exp, "exp");
}

static void embeddings_have_the_same_bits_everywhere(void **state)
{
	enum { ROWS = 300, N = 37 };

	(void)state;
	for (int dtype = 0; dtype < N_DTYPES; dtype++)
		for (int d = 0; d < N_DIMS - 1; d++) {
			struct weight w = random_weight(&seed, (enum dtype)dtype, ROWS, dims[d], true);
			size_t n = N * (size_t)dims[d];
			float *want = xmalloc(n, sizeof *want), *got = xmalloc(n, sizeof *got);
			int32_t ids[N];

			for (int i = 0; i < N; i++)
				ids[i] = random_below(&seed, ROWS);
			for (int t = 0; t < n_tables; t++)
				for (int n_threads = 1; n_threads <= 4; n_threads++) {
					struct backend b;

					backend_open(&b, tables[t], n_threads);
					b.ops->embed(&b.dev, t || n_threads > 1 ? got : want, &w, ids, N);
					backend_close(&b);
					if (t || n_threads > 1)
						assert_true(same_numbers(got, want, n, tables[t]->isa));
				}
			free(want);
			free(got);
			free_weight(&w);
		}
}

struct routing {
	int32_t n_experts, k, n_groups, topk_groups;
};

/* Scores that crowd: many equal ones, some that are not numbers. */
static float *crowded(size_t n, int kind)
{
	float *x = random_floats(&seed, n);

	for (size_t i = 0; i < n; i++)
		if (kind == 1)
			x[i] = floorf(x[i] * 3);
		else if (kind == 2)
			x[i] = 0;
		else if (kind == 3 && random_below(&seed, 4) == 0)
			x[i] = (float[]){NAN, INFINITY, -INFINITY, -0.0f}[random_below(&seed, 4)];
	if (kind == 4)
		make_hostile(&seed, x, n);
	return x;
}

static void experts_are_the_same_everywhere_also_where_scores_are_equal_or_no_numbers(void **state)
{
	enum { N = 37 };
	static const struct routing cases[] = {
		{1, 1, 1, 1},    {6, 3, 1, 1},     {8, 8, 1, 1},    {33, 5, 1, 1},     {64, 8, 8, 4},
		{96, 6, 8, 3},   {256, 8, 1, 1},   {256, 8, 8, 4},  {257, 20, 1, 1},   {300, 9, 100, 2},
		{160, 160, 1, 1}, {40, 12, 20, 5},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
		for (int kind = 0; kind < 25; kind++) {
			const struct routing *c = &cases[i];
			size_t n = N * (size_t)c->n_experts, n_chosen = N * (size_t)c->k;
			float *logits = crowded(n, kind % 5), *bias = crowded((size_t)c->n_experts, kind / 5);
			int32_t *want = xmalloc(n_chosen, sizeof *want), *got = xmalloc(n_chosen, sizeof *got);
			float *weights = xmalloc(2 * n_chosen, sizeof *weights);

			for (int t = 0; t < n_tables; t++)
				for (int n_threads = 1; n_threads <= 4; n_threads += 3) {
					bool first = !t && n_threads == 1;
					struct backend b;

					backend_open(&b, tables[t], n_threads);
					b.ops->router_topk(&b.dev, first ? want : got, weights + (first ? 0 : n_chosen), logits,
							   bias, N, c->n_experts, c->k, c->n_groups, c->topk_groups, kind % 2,
							   2.5f);
					backend_close(&b);
					if (first)
						continue;
					assert_memory_equal(got, want, n_chosen * sizeof *got);
					assert_true(same_numbers(weights + n_chosen, weights, n_chosen, tables[t]->isa));
				}
			free(logits);
			free(bias);
			free(want);
			free(got);
			free(weights);
		}
}

static void rows_are_stored_the_same_everywhere_and_refused_the_same(void **state)
{
	static const int32_t shapes[][2] = {{1, 2}, {7, 0}, {96, 6}, {129, 1}, {300, 8}, {512, 64}, {33, 31}};
	int n_refused = 0, n_taken = 0;

	(void)state;
	for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
		for (int format = 0; format < N_LATENT_FORMATS; format++)
			for (int round = 0; round < 60; round++) {
				int32_t lora = shapes[s][0], rope = shapes[s][1], width = lora + rope;
				float *x = numbers((size_t)width, round % 3 == 2), want[576], got[576];
				uint8_t packed[2][4 * 576] = {{0}};

				if (round % 3 == 1)
					x[random_below(&seed, width)] = (float[]){NAN, INFINITY, -INFINITY}[round / 3 % 3];
				for (int t = 0; t < n_tables; t++) {
					bool pack = tables[0]->latent_pack(format, packed[0], x, lora, rope), unpack;

					assert_int_equal(tables[t]->latent_pack(format, packed[1], x, lora, rope), pack);
					n_refused += !pack;
					n_taken += pack;
					if (!pack)
						continue;
					assert_memory_equal(packed[0], packed[1], sizeof packed[0]);
					unpack = tables[0]->latent_unpack(format, want, packed[0], lora, rope);
					assert_int_equal(tables[t]->latent_unpack(format, got, packed[0], lora, rope), unpack);
					assert_true(same_numbers(got, want, (size_t)width, tables[t]->isa));
				}
				free(x);
			}
	assert_true(n_refused > 100 && n_taken > 100);
}

/* Bytes from a damaged store: whatever they are, every table reads them alike. */
static void any_bytes_are_read_alike(void **state)
{
	(void)state;
	for (int round = 0; round < 300; round++) {
		enum latent_format format = (enum latent_format)(round % N_LATENT_FORMATS);
		float want[308], got[308];
		uint8_t bytes[4 * 308];

		for (size_t i = 0; i < sizeof bytes; i++)
			bytes[i] = (uint8_t)random_below(&seed, round < 150 ? 0x7f : 256);
		for (int t = 0; t < n_tables; t++) {
			bool good = tables[0]->latent_unpack(format, want, bytes, 300, 8);

			assert_int_equal(tables[t]->latent_unpack(format, got, bytes, 300, 8), good);
			if (good)
				assert_true(same_numbers(got, want, 308, tables[t]->isa));
		}
	}
}

/* Every code there is, and values on both sides of every tie between two codes. */
static void codes_are_the_nearest_ones_by_the_conversions_definition(void **state)
{
	(void)state;
	for (int t = 0; t < n_tables; t++)
		for (uint32_t code = 0; code < 0x7e; code++) {
			float low = e4m3_to_f32((uint8_t)code), high = e4m3_to_f32((uint8_t)(code + 1));
			float tie = low + (high - low) / 2, x[5] = {448, low, tie, nextafterf(tie, 0), nextafterf(tie, 999)};
			uint8_t row[5 + 4], even = (uint8_t)(code + code % 2);

			assert_true(tables[t]->latent_pack(LATENTS_FP8, row, x, 5, 0)); /* 448: the scale is 1 */
			assert_int_equal(row[1], code);
			assert_int_equal(row[2], even);
			assert_int_equal(row[3], code);
			assert_int_equal(row[4], code + 1);
		}
}

static void bf16_is_rounded_the_same_everywhere(void **state)
{
	(void)state;
	for (size_t n = 1; n < 200; n += 13) {
		float *x = numbers(n, n % 2);
		uint16_t want[200], got[200];

		for (int t = 0; t < n_tables; t++) {
			bool finite = true;

			assert_int_equal(tables[t]->to_bf16(got, x, (int64_t)n), tables[0]->to_bf16(want, x, (int64_t)n));
			for (size_t i = 0; i < n; i++) {
				assert_int_equal(got[i], f32_to_bf16(x[i]));
				finite &= isfinite(bf16_to_f32(got[i])) != 0;
			}
			assert_int_equal(tables[t]->to_bf16(got, x, (int64_t)n), finite);
		}
		free(x);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(norms_have_the_same_bits_everywhere),
		cmocka_unit_test(rope_has_the_same_bits_everywhere_and_leaves_what_it_does_not_rotate),
		cmocka_unit_test(rope_at_position_0_keeps_the_signs_of_zeros),
		cmocka_unit_test(what_works_value_by_value_has_the_same_bits_everywhere),
		cmocka_unit_test(embeddings_have_the_same_bits_everywhere),
		cmocka_unit_test(experts_are_the_same_everywhere_also_where_scores_are_equal_or_no_numbers),
		cmocka_unit_test(rows_are_stored_the_same_everywhere_and_refused_the_same),
		cmocka_unit_test(any_bytes_are_read_alike),
		cmocka_unit_test(codes_are_the_nearest_ones_by_the_conversions_definition),
		cmocka_unit_test(bf16_is_rounded_the_same_everywhere),
	};

	n_tables = op_tables(tables);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
