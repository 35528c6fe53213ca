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

/* Those this processor has; the scalar definition is first. */
static const char *isas[3];
static int n_isas;

struct backend {
	struct pool *pool;
	struct device dev;
	const struct ops *ops;
};

static void backend_open(struct backend *b, const char *isa, int n_threads)
{
	assert_int_equal(pool_new(&b->pool, n_threads, NULL), 0);
	device_init(&b->dev, "cpu", b->pool);
	b->ops = cpu_ops(isa);
}

static uint32_t seed = 1;

static float uniform(void)
{
	seed = seed * 1664525u + 1013904223u;
	return (float)(int32_t)seed * 0x1p-31f;
}

static float *random_floats(size_t n)
{
	float *x = xmalloc(n, sizeof *x);

	for (size_t i = 0; i < n; i++)
		x[i] = uniform();
	return x;
}

/* Random data of a type, with scales where it has them. */
static struct weight random_weight(enum dtype dtype, int32_t rows, int32_t cols)
{
	size_t n = (size_t)rows * (size_t)cols, across = (size_t)(cols + 127) / 128, down = (size_t)(rows + 127) / 128;
	struct weight w = {.dtype = dtype, .rows = rows, .cols = cols};
	uint8_t *data = xcalloc(n, dtype_bytes(dtype));
	float *x = random_floats(n);

	for (size_t i = 0; i < n; i++) {
		uint16_t h = f32_to_bf16(x[i]), f16 = (uint16_t)(0x3000 + (h & 0x8fff) % 0x0c00);

		if (dtype == DTYPE_F32)
			memcpy(data + 4 * i, &x[i], 4);
		else if (dtype == DTYPE_BF16)
			memcpy(data + 2 * i, &h, 2);
		else if (dtype == DTYPE_F16)
			memcpy(data + 2 * i, &f16, 2);
		else
			data[i] = f32_to_e4m3(x[i] * 400);
	}
	if (dtype == DTYPE_F8_E4M3)
		w.scale = random_floats(across * down);
	free(x);
	w.data = data;
	return w;
}

static void free_weight(struct weight *w)
{
	free((void *)(uintptr_t)w->data);
	free((void *)(uintptr_t)w->scale);
}

static double value(const struct weight *w, int32_t r, int32_t c)
{
	size_t i = (size_t)r * (size_t)w->cols + (size_t)c;
	double v;

	if (w->dtype == DTYPE_F32)
		v = ((const float *)w->data)[i];
	else if (w->dtype == DTYPE_BF16)
		v = bf16_to_f32(((const uint16_t *)w->data)[i]);
	else if (w->dtype == DTYPE_F16)
		v = f16_to_f32(((const uint16_t *)w->data)[i]);
	else
		v = e4m3_to_f32(((const uint8_t *)w->data)[i]);
	return v;
}

static float scale_of(const struct weight *w, int32_t r, int32_t c)
{
	return w->scale[(w->first_row + r) / 128 * ((w->cols + 127) / 128) + c / 128];
}

/* Order (L), from its words. */
static float dot_by_definition(const struct weight *w, int32_t r, const float *x)
{
	float lane[16] = {0}, total[16] = {0};
	int32_t padded = (w->cols + 31) / 32 * 32;

	for (int32_t k = 0; k < padded; k++) {
		float a = k < w->cols ? x[k] : 0, b = k < w->cols ? (float)value(w, r, k) : 0;

		lane[k % 16] = fmaf(a, b, lane[k % 16]);
		if (w->scale && (k % 128 == 127 || k == padded - 1))
			for (int l = 0; l < 16; l++) {
				total[l] = fmaf(scale_of(w, r, k < w->cols ? k : w->cols - 1), lane[l], total[l]);
				lane[l] = 0;
			}
	}
	if (w->scale)
		memcpy(lane, total, sizeof lane);
	for (int step = 8; step; step /= 2)
		for (int l = 0; l < step; l++)
			lane[l] += lane[l + step];
	return lane[0];
}

static void matmul_keeps_the_order_of_summation_for_any_rows_threads_and_instructions(void **state)
{
	static const int32_t shapes[][2] = {{1, 1}, {3, 31}, {5, 32}, {7, 33}, {9, 127}, {129, 129}, {17, 300}, {260, 47}};
	static const int64_t counts[] = {1, 2, 3, 4, 5, 37};

	(void)state;
	for (int isa = 0; isa < n_isas; isa++)
		for (int n_threads = 1; n_threads <= 4; n_threads++) {
			struct backend b;

			backend_open(&b, isas[isa], n_threads);
			for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
				for (int dtype = 0; dtype < N_DTYPES; dtype++) {
					int32_t rows = shapes[s][0], cols = shapes[s][1];
					struct weight w = random_weight((enum dtype)dtype, rows, cols);
					float *x = random_floats(37 * (size_t)cols), *y = xcalloc(37 * (size_t)rows, 4);

					for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
						b.ops->matmul(&b.dev, y, rows, x, cols, &w, counts[c], COMPUTE_F32);
						for (int64_t i = 0; i < counts[c]; i++)
							for (int32_t r = 0; r < rows; r++) {
								float want = dot_by_definition(&w, r, x + i * cols);

								assert_memory_equal(&y[i * rows + r], &want, 4);
							}
					}
					free(x);
					free(y);
					free_weight(&w);
				}
			pool_free(b.pool);
		}
}

static void matmul_is_a_matrix_product(void **state)
{
	struct weight w = random_weight(DTYPE_F8_E4M3, 200, 320);
	float *x = random_floats(320), y[200];
	struct backend b;

	(void)state;
	backend_open(&b, NULL, 1);
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
	pool_free(b.pool);
	free(x);
	free_weight(&w);
}

static void views_of_fp8_rows_change_scales_where_the_stored_matrix_does(void **state)
{
	struct weight w = random_weight(DTYPE_F8_E4M3, 300, 140), view = weight_rows(&w, 100, 60);
	float *x = random_floats(140), whole[300], part[60];
	struct backend b;

	(void)state;
	backend_open(&b, NULL, 2);
	b.ops->matmul(&b.dev, whole, 300, x, 140, &w, 1, COMPUTE_F32);
	b.ops->matmul(&b.dev, part, 60, x, 140, &view, 1, COMPUTE_F32);
	assert_memory_equal(part, whole + 100, sizeof part);
	pool_free(b.pool);
	free(x);
	free_weight(&w);
}

/* Order (A) for the transposed product. */
static void absorbed_queries_keep_their_order_also_where_scales_straddle_heads(void **state)
{
	enum { HEADS = 5, NOPE = 40, V = 30, LORA = 70, N = 3 };

	(void)state;
	for (int isa = 0; isa < n_isas; isa++)
		for (int dtype = 0; dtype < N_DTYPES; dtype++) {
			struct weight w = random_weight((enum dtype)dtype, HEADS * (NOPE + V), LORA);
			float *q = random_floats(N * HEADS * NOPE), out[N * HEADS * LORA];
			struct backend b;

			backend_open(&b, isas[isa], 3);
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
			pool_free(b.pool);
		}
}

static void attention_keeps_its_order_for_any_selection_and_any_heads(void **state)
{
	enum { T = 50, LORA = 70, ROPE = 6, DIM = LORA + ROPE, N = 4 };
	static const int32_t few[] = {0, 3, 4, 9, 17, 31, 49};

	(void)state;
	for (int isa = 0; isa < n_isas; isa++)
		for (int32_t heads = 1; heads <= 11; heads += 5) {
			struct selection sel[N] = {{NULL, 1}, {NULL, T}, {few, 7}, {few + 1, 1}};
			float *rows = random_floats(T * DIM), *q = random_floats((size_t)(N * heads * DIM));
			float *out = xcalloc((size_t)(N * heads * LORA), 4);
			struct latent_rows latents = {rows, DIM, LORA, ROPE};
			struct backend b;

			backend_open(&b, isas[isa], 2);
			b.ops->attend(&b.dev, out, q, &latents, sel, heads, 3.0f, N, COMPUTE_F32);
			for (int64_t i = 0; i < N * heads; i++) {
				const struct selection *s = &sel[i / heads];
				float e[T], max = -INFINITY, sum = 0;

				for (int t = 0; t < s->n; t++) {
					const float *row = rows + (s->set ? s->set[t] : t) * DIM;

					e[t] = 0;
					for (int d = 0; d < DIM; d++)
						e[t] = fmaf(q[i * DIM + d], row[d], e[t]);
					e[t] *= 3.0f;
					max = e[t] > max ? e[t] : max;
				}
				for (int t = 0; t < s->n; t++)
					sum += e[t] = num_exp(e[t] - max);
				for (int c = 0; c < LORA; c++) {
					float want = 0;

					for (int t = 0; t < s->n; t++)
						want = fmaf(e[t], rows[(s->set ? s->set[t] : t) * DIM + c], want);
					want *= 1.0f / sum;
					assert_memory_equal(&out[i * LORA + c], &want, 4);
				}
			}
			free(rows);
			free(q);
			free(out);
			pool_free(b.pool);
		}
}

static void index_scores_keep_their_order_and_stop_at_what_is_visible(void **state)
{
	enum { T = 2100, HEADS = 3, DIM = 10, N = 3, BLOCKS = (T + 15) / 16 };
	const int64_t visible[N] = {1, 17, T};

	(void)state;
	for (int isa = 0; isa < n_isas; isa++) {
		float *keys = random_floats(BLOCKS * 16 * DIM), *q = random_floats(N * HEADS * DIM);
		float *w = random_floats(N * HEADS), *scores = random_floats(N * T), mark = 777;
		struct backend b;

		backend_open(&b, isas[isa], 3);
		scores[1] = scores[T + 17] = mark;
		b.ops->index_scores(&b.dev, scores, T, q, w, keys, visible, HEADS, DIM, N, COMPUTE_F32);
		assert_true(scores[1] == mark && scores[T + 17] == mark);
		for (int i = 0; i < N; i++)
			for (int64_t t = 0; t < visible[i]; t++) {
				float sum = 0;

				for (int h = 0; h < HEADS; h++) {
					float dot = 0;

					for (int d = 0; d < DIM; d++)
						dot = fmaf(q[(i * HEADS + h) * DIM + d],
							   keys[(t / 16 * DIM + d) * 16 + t % 16], dot);
					sum = fmaf(w[i * HEADS + h], dot > 0 ? dot : 0, sum);
				}
				assert_memory_equal(&scores[i * T + t], &sum, 4);
			}
		free(keys);
		free(q);
		free(w);
		free(scores);
		pool_free(b.pool);
	}
}

static void topk(int32_t *set, int32_t *n, const float *scores, int64_t visible, int32_t k, const char *isa)
{
	struct backend b;

	backend_open(&b, isa, 1);
	b.ops->topk_positions(&b.dev, set, k, n, scores, visible, &visible, k, 1);
	pool_free(b.pool);
}

static void the_best_positions_come_ascending_and_ties_go_to_the_lower_one(void **state)
{
	const float scores[] = {0, 5, 0, -1, 5, 0, 7, 0};
	int32_t set[8], n;

	(void)state;
	for (int isa = 0; isa < n_isas; isa++) {
		topk(set, &n, scores, 8, 4, isas[isa]);
		assert_int_equal(n, 4);
		assert_memory_equal(set, ((int32_t[]){0, 1, 4, 6}), 16);
		topk(set, &n, scores, 8, 2, isas[isa]);
		assert_memory_equal(set, ((int32_t[]){1, 6}), 8);
		topk(set, &n, scores, 3, 4, isas[isa]);
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
		for (int isa = 0; isa < n_isas; isa++) {
			topk(set, &n, scores, T, k, isas[isa]);
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
	for (int isa = 0; isa < n_isas; isa++) {
		struct backend b;
		int32_t experts[2];
		float weights[2];

		backend_open(&b, isas[isa], 1);
		b.ops->router_topk(&b.dev, experts, weights, logits, bias, 1, 4, 2, 1, 1, true, 1.0f);
		assert_int_equal(experts[0], 2);
		assert_int_equal(experts[1], 0);
		assert_true(fabsf(weights[0] - 0.362110f) < 1e-5f); /* sigmoid(0) / (sigmoid(0) + sigmoid(2)) */
		assert_true(fabsf(weights[0] + weights[1] - 1) < 1e-6f);
		b.ops->router_topk(&b.dev, experts, weights, logits, bias, 1, 4, 2, 1, 1, false, 2.5f);
		assert_true(fabsf(weights[0] - 1.25f) < 1e-6f); /* 2.5 sigmoid(0), not divided */
		pool_free(b.pool);
	}
}

static void equal_experts_go_by_lower_id(void **state)
{
	const float logits[6] = {0}, bias[6] = {0};
	int32_t experts[3];
	float weights[3];
	struct backend b;

	(void)state;
	backend_open(&b, NULL, 1);
	b.ops->router_topk(&b.dev, experts, weights, logits, bias, 1, 6, 3, 1, 1, true, 1.0f);
	assert_memory_equal(experts, ((int32_t[]){0, 1, 2}), 12);
	pool_free(b.pool);
}

static void experts_outside_the_best_groups_are_not_chosen(void **state)
{
	/* Groups of two. Group 1 has the best single expert, group 2 the best pair, group 0 the next best pair. */
	const float logits[6] = {1.0f, 1.0f, 1.5f, -9.0f, 1.2f, 1.2f}, bias[6] = {0};
	int32_t experts[3];
	float weights[3];
	struct backend b;

	(void)state;
	backend_open(&b, NULL, 1);
	b.ops->router_topk(&b.dev, experts, weights, logits, bias, 1, 6, 3, 3, 2, true, 1.0f);
	assert_memory_equal(experts, ((int32_t[]){4, 5, 0}), 12);
	pool_free(b.pool);
}

static void norms_do_what_their_formulas_say(void **state)
{
	enum { DIM = 77 };
	float *x = random_floats(2 * DIM), *w = random_floats(DIM), *bias = random_floats(DIM), y[2][DIM], z[2][DIM];

	(void)state;
	for (int isa = 0; isa < n_isas; isa++) {
		struct backend b;

		backend_open(&b, isas[isa], 2);
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
		pool_free(b.pool);
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
	for (int isa = 0; isa < n_isas; isa++) {
		float picked[4], h[6] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};

		backend_open(&b, isas[isa], 2);
		b.ops->gather(&b.dev, picked, x, rows, 2, 2);
		assert_memory_equal(picked, ((float[]){5, 6, 1, 2}), 16);
		b.ops->add_scaled(&b.dev, h, picked, rows, weights, 2, 2);
		assert_memory_equal(h, ((float[]){100.5f, 200.5f, 0.5f, 0.5f, 50.5f, 60.5f}), 24);
		b.ops->add_scaled(&b.dev, h, x, NULL, NULL, 3, 2);
		assert_true(h[0] == 101.5f && h[5] == 66.5f);
		pool_free(b.pool);
	}
}

/* A NaN is a NaN, whatever its bits: which one an operation passes on is the processor's choice. */
static void same_number(float a, float b)
{
	assert_true(f32_bits(a) == f32_bits(b) || (isnan(a) && isnan(b)));
}

/* Subnormals, infinities, huge and tiny side by side: instruction sets may not differ in a bit. */
static void instruction_sets_agree_on_hostile_values(void **state)
{
	enum { ROWS = 50, COLS = 200, N = 6 };
	static const float hostile[] = {0x1p-149f, -0x1p-130f, 0x1p127f, -0x1p127f, INFINITY, 0.0f, -0.0f, 0x1p-126f, 1.0f};
	float y[3][N * ROWS], g[3][N * COLS], r[3][N * COLS];

	(void)state;
	for (int round = 0; round < 50; round++) {
		struct weight w = random_weight(DTYPE_F32, ROWS, COLS);
		float *x = random_floats(N * COLS), *scale = random_floats(COLS);

		for (int i = 0; i < N * COLS; i++)
			if (uniform() > 0.7f)
				x[i] = hostile[(unsigned)i * 7u % 9u] * (round % 2 ? 1 : uniform());
		for (int isa = 0; isa < n_isas; isa++) {
			struct backend b;

			backend_open(&b, isas[isa], 1 + isa);
			b.ops->matmul(&b.dev, y[isa], ROWS, x, COLS, &w, N, COMPUTE_F32);
			memcpy(g[isa], x, sizeof g[isa]);
			b.ops->swiglu(&b.dev, g[isa], x, N, COLS);
			b.ops->rmsnorm(&b.dev, r[isa], COLS, x, COLS, scale, N, COLS, 1e-6f);
			pool_free(b.pool);
		}
		for (int isa = 1; isa < n_isas; isa++) {
			for (int i = 0; i < N * ROWS; i++)
				same_number(y[0][i], y[isa][i]);
			for (int i = 0; i < N * COLS; i++) {
				same_number(g[0][i], g[isa][i]);
				same_number(r[0][i], r[isa][i]);
			}
		}
		free(x);
		free(scale);
		free_weight(&w);
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
		cmocka_unit_test(instruction_sets_agree_on_hostile_values),
		cmocka_unit_test(an_unknown_instruction_set_has_no_table),
		cmocka_unit_test(usable_instruction_sets_are_listed_best_first),
	};

	static const char *const known[] = {"scalar", "fma", "avx512"};

	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
		if (cpu_ops(known[i]))
			isas[n_isas++] = known[i];
		else
			printf("skipped: this processor lacks %s\n", known[i]);
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
