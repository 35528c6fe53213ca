/*
 * Every op of every instruction set against its contract in ops.h, written out once more in the plainest way, and
 * against the scalar definition bit for bit at awkward shapes, row counts and thread counts.
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
#include "engine/numeric.h"
#include "engine/ops.h"
#include "engine/pool.h"
#include "tests/support/op_cases.h"

static const struct ops *tables[MAX_TABLES];
static int n_tables;

static struct random seed = {1};

static float uniform(void)
{
	return random_uniform(&seed);
}

static double value(const struct weight *w, int32_t r, int32_t c)
{
	const uint8_t *row = (const uint8_t *)w->data + (size_t)r * weight_row_bytes(w);

	switch (w->dtype) {
	case DTYPE_F32:
		return ((const float *)row)[c];
	case DTYPE_BF16:
		return bf16_to_f32(((const uint16_t *)row)[c]);
	case DTYPE_F16:
		return f16_to_f32(((const uint16_t *)row)[c]);
	case DTYPE_INT4:
		return (c % 2 ? row[c / 2] >> 4 : row[c / 2] & 15) - 8;
	default:
		return e4m3_to_f32(row[c]);
	}
}

static float scale_of(const struct weight *w, int32_t r, int32_t c)
{
	if (w->dtype == DTYPE_INT4)
		return bf16_to_f32(w->group_scale[r * ((w->cols + 63) / 64) + c / 64]);
	return w->scale[(w->first_row + r) / 128 * ((w->cols + 127) / 128) + c / 128];
}

/* Order (L), from its words. No value here is subnormal. */
static float dot_by_definition(const struct weight *w, int32_t r, const float *x, enum compute_profile profile)
{
	float lane[16] = {0}, total[16] = {0};
	int32_t padded = (w->cols + 31) / 32 * 32, block = w->dtype == DTYPE_INT4 ? 64 : 128;
	bool scaled = w->scale || w->group_scale;

	for (int32_t step = 0; step < padded; step++) {
		int32_t k = profile == COMPUTE_BF16 ? step ^ 1 : step, l = profile == COMPUTE_BF16 ? k % 32 / 2 : k % 16;
		float a = k < w->cols ? x[k] : 0, b = k < w->cols ? (float)value(w, r, k) : 0;

		if (profile == COMPUTE_BF16)
			a = bf16_to_f32(f32_to_bf16(a));
		lane[l] = fmaf(a, b, lane[l]);
		if (scaled && (step % block == block - 1 || step == padded - 1))
			for (l = 0; l < 16; l++) {
				total[l] = fmaf(scale_of(w, r, step < w->cols ? step : w->cols - 1), lane[l], total[l]);
				lane[l] = 0;
			}
	}
	if (scaled)
		memcpy(lane, total, sizeof lane);
	for (int step = 8; step; step /= 2)
		for (int l = 0; l < step; l++)
			lane[l] += lane[l + step];
	return lane[0];
}

static void matmul_keeps_the_order_of_summation_for_any_rows_threads_and_instructions(void **state)
{
	static const int32_t shapes[][2] = {{1, 1}, {3, 31}, {5, 32}, {7, 33}, {9, 127}, {129, 129}, {17, 300}, {260, 47}};
	static const int64_t counts[] = {1, 1, 3, 4, 37, 11};

	(void)state;
	for (int isa = 0; isa < n_tables; isa++)
		for (int n_threads = 1; n_threads <= 4; n_threads++) {
			struct backend b;

			backend_open(&b, tables[isa], n_threads);
			for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
				for (int dtype = 0; dtype < N_DTYPES; dtype++) {
					int32_t rows = shapes[s][0], cols = shapes[s][1];
					struct weight w = random_weight(&seed, (enum dtype)dtype, rows, cols, false);
					float *x = random_floats(&seed, 37 * (size_t)cols), *y = xcalloc(37 * (size_t)rows, 4);

					for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
						enum compute_profile profile = c % 2 ? COMPUTE_BF16 : COMPUTE_F32;

						b.ops->matmul(&b.dev, y, rows, x, cols, &w, counts[c], profile);
						for (int64_t i = 0; i < counts[c]; i++)
							for (int32_t r = 0; r < rows; r++) {
								float want = dot_by_definition(&w, r, x + i * cols, profile);

								assert_memory_equal(&y[i * rows + r], &want, 4);
							}
					}
					free(x);
					free(y);
					free_weight(&w);
				}
			backend_close(&b);
		}
}

static void matmul_is_a_matrix_product(void **state)
{
	struct weight w = random_weight(&seed, DTYPE_F8_E4M3, 200, 320, false);
	float *x = random_floats(&seed, 320), y[200];
	struct backend b;

	(void)state;
	backend_open(&b, cpu_ops(NULL), 1);
	b.ops->matmul(&b.dev, y, 200, x, 320, &w, 1, COMPUTE_F32);
	for (int32_t r = 0; r < 200; r++) {
		double sum = 0, size = 0;

		for (int32_t k = 0; k < 320; k++) {
			double term = value(&w, r, k) * (double)scale_of(&w, r, k) * (double)x[k];

			sum += term;
			size += fabs(term);
		}
		assert_true(fabs(sum - (double)y[r]) < 1e-6 * size);
	}
	backend_close(&b);
	free(x);
	free_weight(&w);
}

static void views_of_fp8_rows_change_scales_where_the_stored_matrix_does(void **state)
{
	struct weight w = random_weight(&seed, DTYPE_F8_E4M3, 300, 140, false), view = weight_rows(&w, 100, 60);
	float *x = random_floats(&seed, 140), whole[300], part[60];
	struct backend b;

	(void)state;
	backend_open(&b, cpu_ops(NULL), 2);
	b.ops->matmul(&b.dev, whole, 300, x, 140, &w, 1, COMPUTE_F32);
	b.ops->matmul(&b.dev, part, 60, x, 140, &view, 1, COMPUTE_F32);
	assert_memory_equal(part, whole + 100, sizeof part);
	backend_close(&b);
	free(x);
	free_weight(&w);
}

/* Order (A) for the transposed product. */
static void absorbed_queries_keep_their_order_also_where_scales_straddle_heads(void **state)
{
	enum { HEADS = 5, NOPE = 40, V = 30, LORA = 70, N = 3 };

	(void)state;
	for (int isa = 0; isa < n_tables; isa++)
		for (int dtype = 0; dtype < N_DTYPES; dtype++) {
			struct weight w = random_weight(&seed, (enum dtype)dtype, HEADS * (NOPE + V), LORA, false);
			float *q = random_floats(&seed, N * HEADS * NOPE), out[N * HEADS * LORA];
			struct backend b;

			backend_open(&b, tables[isa], 3);
			b.ops->absorb_query(&b.dev, out, LORA, q, NOPE, &w, HEADS, NOPE, V, N);
			for (int i = 0; i < N * HEADS; i++)
				for (int c = 0; c < LORA; c++) {
					float run = 0, total = 0;

					for (int d = 0; d < NOPE; d++) {
						int32_t row = i % HEADS * (NOPE + V) + d;

						run = fmaf(q[i * NOPE + d], (float)value(&w, row, c), run);
						if (w.scale && ((row + 1) % 128 == 0 || d == NOPE - 1)) {
							total = fmaf(scale_of(&w, row, c), run, total);
							run = 0;
						}
					}
					if (w.scale)
						run = total;
					assert_memory_equal(&out[i * LORA + c], &run, 4);
				}
			free(q);
			free_weight(&w);
			backend_close(&b);
		}
}

/* x, rounded to bf16 in that profile. */
static float rounded(float x, enum compute_profile profile)
{
	return profile == COMPUTE_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

/* float32 values rounded to bf16, in bf16. */
static uint16_t *in_bf16(const float *x, size_t n)
{
	uint16_t *h = xmalloc(n, sizeof *h);

	for (size_t i = 0; i < n; i++)
		h[i] = f32_to_bf16(x[i]);
	return h;
}

static void attention_keeps_its_order_for_any_selection_and_any_heads(void **state)
{
	enum { T = 50, LORA = 70, ROPE = 6, DIM = LORA + ROPE, N = 4 };
	static const int32_t few[] = {0, 3, 4, 9, 17, 31, 49};

	(void)state;
	for (int isa = 0; isa < n_tables; isa++)
		for (int32_t heads = 1; heads <= 11; heads += 5)
			for (int p = 0; p < 2; p++) {
				enum compute_profile profile = (enum compute_profile)p;
				struct selection sel[N] = {{NULL, 1}, {NULL, T}, {few, 7}, {few + 1, 1}};
				float *rows = random_floats(&seed, T * DIM);
				float *q = random_floats(&seed, (size_t)(N * heads * DIM));
				float *out = xcalloc((size_t)(N * heads * LORA), 4);
				uint16_t *rows_bf16 = in_bf16(rows, T * DIM);
				struct latent_rows latents = {p ? (void *)rows_bf16 : (void *)rows, DIM, LORA, ROPE};
				struct backend b;

				backend_open(&b, tables[isa], 2);
				b.ops->attend(&b.dev, out, q, &latents, sel, heads, 3.0f, N, profile);
				for (int64_t i = 0; i < N * heads; i++) {
					const struct selection *s = &sel[i / heads];
					float e[T], max = -INFINITY, sum = 0;

					for (int t = 0; t < s->n; t++) {
						const float *row = rows + (s->set ? s->set[t] : t) * DIM;

						e[t] = 0;
						for (int k = 0; k < DIM; k++) {
							int d = p ? k ^ 1 : k;

							e[t] = fmaf(rounded(q[i * DIM + d], profile),
								    rounded(row[d], profile), e[t]);
						}
						e[t] *= 3.0f;
						max = e[t] > max ? e[t] : max;
					}
					for (int t = 0; t < s->n; t++)
						sum += e[t] = num_exp(e[t] - max);
					for (int c = 0; c < LORA; c++) {
						float want = 0;

						for (int t = 0; t < s->n; t++)
							want = fmaf(e[t], rounded(rows[(s->set ? s->set[t] : t) * DIM + c],
										  profile), want);
						want *= 1.0f / sum;
						assert_memory_equal(&out[i * LORA + c], &want, 4);
					}
				}
				free(rows);
				free(rows_bf16);
				free(q);
				free(out);
				backend_close(&b);
			}
}

static void index_scores_keep_their_order_and_stop_at_what_is_visible(void **state)
{
	enum { T = 2100, HEADS = 3, DIM = 10, N = 3, BLOCKS = (T + 15) / 16 };
	const int64_t visible[N] = {1, 17, T};

	(void)state;
	for (int isa = 0; isa < n_tables; isa++)
		for (int p = 0; p < 2; p++) {
			enum compute_profile profile = (enum compute_profile)p;
			float *keys = random_floats(&seed, BLOCKS * 16 * DIM), *q = random_floats(&seed, N * HEADS * DIM);
			float *w = random_floats(&seed, N * HEADS), *scores = random_floats(&seed, N * T), mark = 777;
			uint16_t *pairs = xcalloc(BLOCKS * 16 * DIM, sizeof *pairs);
			struct backend b;

			for (int t = 0; t < BLOCKS * 16; t++)
				for (int d = 0; d < DIM; d++)
					pairs[((t / 16 * (DIM / 2) + d / 2) * 16 + t % 16) * 2 + d % 2] =
						f32_to_bf16(keys[(t / 16 * DIM + d) * 16 + t % 16]);
			backend_open(&b, tables[isa], 3);
			scores[1] = scores[T + 17] = mark;
			b.ops->index_scores(&b.dev, scores, T, q, w, p ? (void *)pairs : (void *)keys, visible, HEADS, DIM, N,
					    profile);
			assert_true(scores[1] == mark && scores[T + 17] == mark);
			for (int i = 0; i < N; i++)
				for (int64_t t = 0; t < visible[i]; t++) {
					float sum = 0;

					for (int h = 0; h < HEADS; h++) {
						float dot = 0;

						for (int k = 0; k < DIM; k++) {
							int d = p ? k ^ 1 : k;

							dot = fmaf(rounded(q[(i * HEADS + h) * DIM + d], profile),
								   rounded(keys[(t / 16 * DIM + d) * 16 + t % 16], profile),
								   dot);
						}
						sum = fmaf(w[i * HEADS + h], dot > 0 ? dot : 0, sum);
					}
					assert_memory_equal(&scores[i * T + t], &sum, 4);
				}
			free(keys);
			free(pairs);
			free(q);
			free(w);
			free(scores);
			backend_close(&b);
		}
}

static void topk(int32_t *set, int32_t *n, const float *scores, int64_t visible, int32_t k, const struct ops *ops)
{
	struct backend b;

	backend_open(&b, ops, 1);
	b.ops->topk_positions(&b.dev, set, k, n, scores, visible, &visible, k, 1);
	backend_close(&b);
}

static void the_best_positions_come_ascending_and_ties_go_to_the_lower_one(void **state)
{
	const float scores[] = {0, 5, 0, -1, 5, 0, 7, 0};
	int32_t set[8], n;

	(void)state;
	for (int isa = 0; isa < n_tables; isa++) {
		topk(set, &n, scores, 8, 4, tables[isa]);
		assert_int_equal(n, 4);
		assert_memory_equal(set, ((int32_t[]){0, 1, 4, 6}), 16);
		topk(set, &n, scores, 8, 2, tables[isa]);
		assert_memory_equal(set, ((int32_t[]){1, 6}), 8);
		topk(set, &n, scores, 3, 4, tables[isa]);
		assert_int_equal(n, 3);
		assert_memory_equal(set, ((int32_t[]){0, 1, 2}), 12);
	}
}

static const float *sorted_scores;

static int better_first(const void *a, const void *b)
{
	int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

	if (sorted_scores[x] != sorted_scores[y])
		return sorted_scores[x] > sorted_scores[y] ? -1 : 1;
	return (x > y) - (x < y);
}

static int ascending(const void *a, const void *b)
{
	int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

	return (x > y) - (x < y);
}

static void the_choice_is_that_of_a_stable_sort_on_scores_full_of_ties(void **state)
{
	enum { T = 3000 };
	float scores[T];
	int32_t set[T], order[T], n;

	(void)state;
	for (int round = 0; round < 30; round++) {
		int32_t k = 1 + (int32_t)((uniform() + 1) * T / 2) % T;

		for (int t = 0; t < T; t++) {
			scores[t] = floorf(uniform() * (round < 15 ? 5 : 2000));
			order[t] = t;
		}
		scores[7] = -INFINITY;
		scores[8] = round % 2 ? INFINITY : -0.0f;
		sorted_scores = scores;
		qsort(order, T, sizeof *order, better_first);
		qsort(order, (size_t)k, sizeof *order, ascending);
		for (int isa = 0; isa < n_tables; isa++) {
			topk(set, &n, scores, T, k, tables[isa]);
			assert_int_equal(n, k);
			assert_memory_equal(set, order, (size_t)k * sizeof *set);
		}
	}
}

/* The bias balances load between experts: it may change who is chosen, never how much they count. */
static void bias_moves_the_choice_but_not_the_weight(void **state)
{
	const float logits[4] = {2.0f, 1.0f, 0.0f, -1.0f}, bias[4] = {0.0f, 0.0f, 9.0f, 0.0f};

	(void)state;
	for (int isa = 0; isa < n_tables; isa++) {
		struct backend b;
		int32_t experts[2];
		float weights[2];

		backend_open(&b, tables[isa], 1);
		b.ops->router_topk(&b.dev, experts, weights, logits, bias, 1, 4, 2, 1, 1, true, 1.0f);
		assert_int_equal(experts[0], 2);
		assert_int_equal(experts[1], 0);
		assert_true(fabsf(weights[0] - 0.362110f) < 1e-5f); /* sigmoid(0) / (sigmoid(0) + sigmoid(2)) */
		assert_true(fabsf(weights[0] + weights[1] - 1) < 1e-6f);
		b.ops->router_topk(&b.dev, experts, weights, logits, bias, 1, 4, 2, 1, 1, false, 2.5f);
		assert_true(fabsf(weights[0] - 1.25f) < 1e-6f); /* 2.5 sigmoid(0), not divided */
		experts[0] = experts[1] = -1;
		b.ops->router_topk(&b.dev, experts, NULL, logits, bias, 1, 4, 2, 1, 1, true, 1.0f);
		assert_true(experts[0] == 2 && experts[1] == 0);
		backend_close(&b);
	}
}

static void equal_experts_go_by_lower_id(void **state)
{
	const float logits[6] = {0}, bias[6] = {0};
	int32_t experts[3];
	float weights[3];
	struct backend b;

	(void)state;
	backend_open(&b, cpu_ops(NULL), 1);
	b.ops->router_topk(&b.dev, experts, weights, logits, bias, 1, 6, 3, 1, 1, true, 1.0f);
	assert_memory_equal(experts, ((int32_t[]){0, 1, 2}), 12);
	backend_close(&b);
}

static void experts_outside_the_best_groups_are_not_chosen(void **state)
{
	/* Groups of two. Group 1 has the best single expert, group 2 the best pair, group 0 the next best pair. */
	const float logits[6] = {1.0f, 1.0f, 1.5f, -9.0f, 1.2f, 1.2f}, bias[6] = {0};
	int32_t experts[3];
	float weights[3];
	struct backend b;

	(void)state;
	backend_open(&b, cpu_ops(NULL), 1);
	b.ops->router_topk(&b.dev, experts, weights, logits, bias, 1, 6, 3, 3, 2, true, 1.0f);
	assert_memory_equal(experts, ((int32_t[]){4, 5, 0}), 12);
	backend_close(&b);
}

static void norms_do_what_their_formulas_say(void **state)
{
	enum { DIM = 77 };
	float *x = random_floats(&seed, 2 * DIM), *w = random_floats(&seed, DIM), *bias = random_floats(&seed, DIM), y[2][DIM], z[2][DIM];

	(void)state;
	for (int isa = 0; isa < n_tables; isa++) {
		struct backend b;

		backend_open(&b, tables[isa], 2);
		b.ops->rmsnorm(&b.dev, y[0], DIM, x, DIM, w, 2, DIM, 1e-5f);
		b.ops->layernorm(&b.dev, z[0], DIM, x, DIM, w, bias, 2, DIM, 1e-6f);
		for (int i = 0; i < 2; i++) {
			double squares = 0, sum = 0, variance = 0;

			for (int k = 0; k < DIM; k++) {
				squares += (double)x[i * DIM + k] * (double)x[i * DIM + k];
				sum += (double)x[i * DIM + k];
			}
			for (int k = 0; k < DIM; k++)
				variance += pow((double)x[i * DIM + k] - sum / DIM, 2) / DIM;
			for (int k = 0; k < DIM; k++) {
				double v = x[i * DIM + k];

				assert_true(fabs((double)y[i][k] - (double)w[k] * v / sqrt(squares / DIM + 1e-5)) < 1e-6);
				assert_true(fabs((double)z[i][k] - ((double)w[k] * (v - sum / DIM) / sqrt(variance + 1e-6) +
								    (double)bias[k])) < 2e-6);
			}
		}
		backend_close(&b);
	}
	free(x);
	free(w);
	free(bias);
}

static void rows_are_gathered_and_added_where_they_came_from(void **state)
{
	const float x[6] = {1, 2, 3, 4, 5, 6}, weights[2] = {10, 100};
	const int32_t rows[2] = {2, 0};
	struct backend b;

	(void)state;
	for (int isa = 0; isa < n_tables; isa++) {
		float picked[4], h[6] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};

		backend_open(&b, tables[isa], 2);
		b.ops->gather(&b.dev, picked, x, rows, 2, 2);
		assert_memory_equal(picked, ((float[]){5, 6, 1, 2}), 16);
		b.ops->add_scaled(&b.dev, h, picked, rows, weights, 2, 2);
		assert_memory_equal(h, ((float[]){100.5f, 200.5f, 0.5f, 0.5f, 50.5f, 60.5f}), 24);
		b.ops->add_scaled(&b.dev, h, x, NULL, NULL, 3, 2);
		assert_true(h[0] == 101.5f && h[5] == 66.5f);
		backend_close(&b);
	}
}

static void an_unknown_instruction_set_has_no_table(void **state)
{
	(void)state;
	assert_null(cpu_ops("sse9"));
	assert_non_null(cpu_ops(NULL));
	assert_string_equal(cpu_ops("scalar")->isa, "scalar");
}

static void usable_instruction_sets_are_listed_best_first(void **state)
{
	const char *names[8], *best[2] = {NULL, NULL};
	int n = cpu_isas(names, 8);

	(void)state;
	assert_true(n >= 1);
	for (int i = 0; i < n; i++) {
		assert_non_null(cpu_ops(names[i]));
		assert_string_equal(cpu_ops(names[i])->isa, names[i]);
	}
	assert_ptr_equal(cpu_ops(names[0]), cpu_ops(NULL));
	assert_string_equal(names[n - 1], "scalar");
	assert_int_equal(cpu_isas(best, 1), n);
	assert_string_equal(best[0], names[0]);
	assert_null(best[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(matmul_keeps_the_order_of_summation_for_any_rows_threads_and_instructions),
		cmocka_unit_test(matmul_is_a_matrix_product),
		cmocka_unit_test(views_of_fp8_rows_change_scales_where_the_stored_matrix_does),
		cmocka_unit_test(absorbed_queries_keep_their_order_also_where_scales_straddle_heads),
		cmocka_unit_test(attention_keeps_its_order_for_any_selection_and_any_heads),
		cmocka_unit_test(index_scores_keep_their_order_and_stop_at_what_is_visible),
		cmocka_unit_test(the_best_positions_come_ascending_and_ties_go_to_the_lower_one),
		cmocka_unit_test(the_choice_is_that_of_a_stable_sort_on_scores_full_of_ties),
		cmocka_unit_test(bias_moves_the_choice_but_not_the_weight),
		cmocka_unit_test(equal_experts_go_by_lower_id),
		cmocka_unit_test(experts_outside_the_best_groups_are_not_chosen),
		cmocka_unit_test(norms_do_what_their_formulas_say),
		cmocka_unit_test(rows_are_gathered_and_added_where_they_came_from),
		cmocka_unit_test(an_unknown_instruction_set_has_no_table),
		cmocka_unit_test(usable_instruction_sets_are_listed_best_first),
	};

	n_tables = op_tables(tables);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
