/*
 * Negative controls: mistakes that engines of this model have really made, switched on one at a time. Each must make a
 * golden case fail; one that nothing catches would be a missing test. They are made from outside, by changing a model's
 * fields or an op of the table, so that the engine itself has no such switches. (The mistakes of the MTP layer are
 * test_mtp.c's.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "config/mem.h"
#include "engine/internal.h"
#include "engine/numeric.h"
#include "tests/support/golden.h"

/* The engine and model of the control under way, its changed table, and what it allocated. */
static struct fault {
	struct engine *e;
	struct model *m;
	struct ops ops;
	const struct ops *right;
	struct arena *arena;
} f;


/* ---- fields ---- */

static void half_split_main_rope(void)
{
	f.m->config.rope_interleaved = !f.m->config.rope_interleaved;
}

static void indexer_rope_of_the_other_kind(void)
{
	f.m->config.index_rope_interleaved = !f.m->config.index_rope_interleaved;
}

static void latent_norms_with_the_other_eps(void)
{
	f.m->config.mla_norm_eps = 1e-5f;
}

static void layer_norms_with_the_other_eps(void)
{
	f.m->config.norm_eps = 1e-6f;
}

static void one_position_too_many(void)
{
	f.m->config.index_topk++;
}

static void dense_attention(void)
{
	f.m->config.index_topk = 1 << 20;
}

static void routed_scale_missing(void)
{
	f.m->config.routed_scale = 1;
}

static void softmax_scale_from_head_dim(void)
{
	f.m->config.attention_scale = 1 / sqrtf(22);
}

/* ---- weights: reading rows in another order is the same mistake as rows in another order ---- */

/* In each run of `run` rows, the first `first` go behind the others. */
static void rotate_rows(struct weight *w, int32_t run, int32_t first)
{
	size_t row = (size_t)w->cols * dtype_bytes(w->dtype);
	uint8_t *out = arena_alloc(f.arena, (size_t)w->rows, row);
	const uint8_t *in = w->data;

	for (int32_t r = 0; r < w->rows; r += run) {
		memcpy(out + (size_t)r * row, in + (size_t)(r + first) * row, (size_t)(run - first) * row);
		memcpy(out + (size_t)(r + run - first) * row, in + (size_t)r * row, (size_t)first * row);
	}
	w->data = out;
}

static void rotate_vector(const float **x, int32_t n, int32_t first)
{
	float *out = arena_alloc(f.arena, (size_t)n, sizeof *out);

	memcpy(out, *x + first, (size_t)(n - first) * sizeof *out);
	memcpy(out + n - first, *x, (size_t)first * sizeof *out);
	*x = out;
}

static void rope_before_nope_in_queries(void)
{
	const struct model_config *c = &f.m->config;

	for (int32_t i = 0; i < c->n_layers; i++)
		rotate_rows(&f.m->layers[i].q_b, c->nope_dim + c->rope_dim, c->rope_dim);
}

static void values_before_keys_in_kv_b(void)
{
	const struct model_config *c = &f.m->config;

	for (int32_t i = 0; i < c->n_layers; i++)
		rotate_rows(&f.m->layers[i].kv_b, c->nope_dim + c->v_dim, c->v_dim);
}

static void rope_part_last_in_the_indexer(void)
{
	const struct model_config *c = &f.m->config;
	int32_t pass = c->index_dim - c->rope_dim;

	for (int32_t i = 0; i < c->n_layers; i++) {
		struct layer *l = &f.m->layers[i];

		if (!c->layer_is_full[i])
			continue;
		rotate_rows(&l->index_q, c->index_dim, pass);
		rotate_rows(&l->index_k, c->index_dim, pass);
		rotate_vector(&l->index_k_norm, c->index_dim, pass);
		rotate_vector(&l->index_k_norm_bias, c->index_dim, pass);
	}
}

static void no_bias_in_the_key_norm(void)
{
	const struct model_config *c = &f.m->config;
	float *zero = arena_alloc(f.arena, (size_t)c->index_dim, sizeof *zero);

	memset(zero, 0, (size_t)c->index_dim * sizeof *zero);
	for (int32_t i = 0; i < c->n_layers; i++)
		f.m->layers[i].index_k_norm_bias = zero;
}

static void shared_layers_choose_for_themselves(void)
{
	struct model_config *c = &f.m->config;

	for (int32_t i = 1; i < c->n_layers; i++) {
		struct layer *l = &f.m->layers[i], *before = l - 1;

		if (c->layer_is_full[i])
			continue;
		c->layer_is_full[i] = true; /* with the indexer that the layer before it used */
		l->index_q = before->index_q;
		l->index_k = before->index_k;
		l->index_weights = before->index_weights;
		l->index_k_norm = before->index_k_norm;
		l->index_k_norm_bias = before->index_k_norm_bias;
	}
}

static void routed_scale_on_the_shared_expert_too(void)
{
	for (int32_t i = 0; i < f.m->config.n_layers; i++) {
		struct weight *down = &f.m->layers[i].mlp.down;
		float *out;

		if (f.m->config.layer_is_dense[i])
			continue;
		assert_int_equal(down->dtype, DTYPE_BF16);
		out = arena_alloc(f.arena, (size_t)down->rows * (size_t)down->cols, sizeof *out);
		for (int32_t k = 0; k < down->rows * down->cols; k++)
			out[k] = bf16_to_f32(((const uint16_t *)down->data)[k]) * f.m->config.routed_scale;
		down->data = out;
		down->dtype = DTYPE_F32;
	}
}

static void gate_and_up_swapped(void)
{
	for (int32_t i = 0; i < f.m->config.n_layers; i++)
		for (int32_t e = 0; !f.m->config.layer_is_dense[i] && e < f.m->config.n_experts; e++) {
			struct expert *x = &f.m->layers[i].experts[e];
			struct weight gate = x->gate;

			x->gate = x->up;
			x->up = gate;
		}
}

static void router_bias_ignored(void)
{
	float *zero = arena_alloc(f.arena, (size_t)f.m->config.n_experts, sizeof *zero);

	memset(zero, 0, (size_t)f.m->config.n_experts * sizeof *zero);
	for (int32_t i = 0; i < f.m->config.n_layers; i++)
		f.m->layers[i].router_bias = zero;
}

static void weights_not_normalised(void)
{
	f.m->config.normalize_topk = false;
}

/* ---- ops ---- */

static void scores_without_relu(struct device *dev, float *scores, int64_t stride, const float *q, const float *w,
				const void *index_keys, const int64_t *n_visible, int32_t n_heads, int32_t dim, int64_t n,
				enum compute_profile profile)
{
	const float *keys = index_keys; /* of profile f32 */

	(void)dev;
	(void)profile;
	for (int64_t i = 0; i < n; i++)
		for (int64_t t = 0; t < n_visible[i]; t++) {
			float sum = 0;

			for (int32_t h = 0; h < n_heads; h++) {
				float dot = 0;

				for (int32_t d = 0; d < dim; d++)
					dot = fmaf(q[(i * n_heads + h) * dim + d],
						   keys[(t / KEYS_ABREAST * dim + d) * KEYS_ABREAST + t % KEYS_ABREAST],
						   dot);
				sum = fmaf(w[i * n_heads + h], dot, sum);
			}
			scores[i * stride + t] = sum;
		}
}

static void missing_relu(void)
{
	f.ops.index_scores = scores_without_relu;
}

static void rms_plus_bias(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
			  const float *weight, const float *bias, int64_t n, int32_t dim, float eps)
{
	f.right->rmsnorm(dev, out, out_stride, x, x_stride, weight, n, dim, eps);
	for (int64_t i = 0; i < n; i++)
		for (int32_t k = 0; k < dim; k++)
			out[i * out_stride + k] += bias[k];
}

static void rms_in_place_of_layer_norm(void)
{
	f.ops.layernorm = rms_plus_bias;
}

/* Which residual a layer's input was made from. */
static const float *residual, *normed;

static void remember_residual(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
			      const float *weight, int64_t n, int32_t dim, float eps)
{
	f.right->rmsnorm(dev, out, out_stride, x, x_stride, weight, n, dim, eps);
	for (int32_t i = 0; i < f.m->config.n_layers; i++)
		if (weight == f.m->layers[i].input_norm) {
			residual = x;
			normed = out;
		}
}

static void matmul_of_residual(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride,
			       const struct weight *w, int64_t n, enum compute_profile profile)
{
	for (int32_t i = 0; i < f.m->config.n_layers && x == normed; i++)
		if (f.m->config.layer_is_full[i] && (w->data == f.m->layers[i].index_k.data ||
						     w->data == f.m->layers[i].index_weights.data))
			x = residual;
	f.right->matmul(dev, y, y_stride, x, x_stride, w, n, profile);
}

static void residual_into_the_indexer(void)
{
	f.ops.rmsnorm = remember_residual;
	f.ops.matmul = matmul_of_residual;
}

static void biased_weights(struct device *dev, int32_t *experts, float *weights, const float *logits, const float *bias,
			   int64_t n, int32_t n_experts, int32_t k, int32_t n_groups, int32_t topk_groups, bool normalize,
			   float scale)
{
	f.right->router_topk(dev, experts, weights, logits, bias, n, n_experts, k, n_groups, topk_groups, normalize, scale);
	for (int64_t i = 0; i < n; i++) {
		float sum = 0;

		for (int32_t r = 0; r < k; r++) {
			int32_t e = experts[i * k + r];

			weights[i * k + r] = num_sigmoid(logits[i * n_experts + e]) + bias[e];
			sum += weights[i * k + r];
		}
		for (int32_t r = 0; r < k; r++)
			weights[i * k + r] *= scale / sum;
	}
}

static void router_weights_from_biased_scores(void)
{
	f.ops.router_topk = biased_weights;
}

/* ---- */

static const struct control {
	const char *checkpoint, *name;
	void (*apply)(void);
} controls[] = {
	{"glm52", "half-split RoPE in attention", half_split_main_rope},
	{"glm52", "half-split RoPE in the indexer", indexer_rope_of_the_other_kind},
	{"deepseek_v32", "interleaved RoPE in a half-split indexer", indexer_rope_of_the_other_kind},
	{"glm52", "rope before nope in queries", rope_before_nope_in_queries},
	{"glm52", "values before keys in kv_b", values_before_keys_in_kv_b},
	{"glm52", "rope part last in the indexer", rope_part_last_in_the_indexer},
	{"glm52", "index scores without ReLU", missing_relu},
	{"glm52", "key norm without its bias", no_bias_in_the_key_norm},
	{"glm52", "key norm as RMS norm", rms_in_place_of_layer_norm},
	{"glm52", "the residual, not its norm, into the indexer", residual_into_the_indexer},
	{"glm52", "latent norms with eps 1e-5", latent_norms_with_the_other_eps},
	{"glm52", "layer norms with eps 1e-6", layer_norms_with_the_other_eps},
	{"glm52", "shared layers choose for themselves", shared_layers_choose_for_themselves},
	{"glm52", "one position too many", one_position_too_many},
	{"glm52", "dense attention", dense_attention},
	{"glm52", "softmax scale from head_dim", softmax_scale_from_head_dim},
	{"glm52", "router weights from biased scores", router_weights_from_biased_scores},
	{"glm52", "router bias ignored", router_bias_ignored},
	{"glm52", "router weights not normalised", weights_not_normalised},
	{"glm52", "routed scale missing", routed_scale_missing},
	{"glm52", "routed scale on the shared expert too", routed_scale_on_the_shared_expert_too},
	{"glm52", "gate and up swapped", gate_and_up_swapped},
};

/* The worst error over all cases of a checkpoint; apply NULL: no mistake. */
static double worst_error(const struct control *c, void (*apply)(void))
{
	struct engine_options opt = {.n_threads = 1};
	char *dir = golden_dir(c->checkpoint);
	struct golden_case *cases;
	double worst = 0;
	int n;

	memset(&f, 0, sizeof f);
	f.arena = arena_new();
	assert_int_equal(engine_open(&f.e, &opt, NULL), 0);
	assert_int_equal(model_open(&f.m, dir, NULL, NULL), 0);
	f.right = f.e->ops;
	f.ops = *f.right;
	f.e->ops = &f.ops;
	if (apply)
		apply();
	cases = golden_load(c->checkpoint, f.m->config.vocab, &n);
	for (int i = 0; i < n; i++) {
		struct golden_run run;
		double error;

		golden_run(&run, f.e, f.m, LATENTS_F32, &cases[i], 0);
		error = golden_error(&run, &cases[i]);
		golden_run_free(&run);
		worst = error > worst ? error : worst;
	}
	golden_free(cases, n);
	model_close(f.m);
	engine_close(f.e);
	arena_free(f.arena);
	free(dir);
	return worst;
}

static void every_mistake_makes_a_golden_fail(void **state)
{
	int uncaught = 0;

	(void)state;
	for (size_t i = 0; i < sizeof controls / sizeof controls[0]; i++) {
		double error = worst_error(&controls[i], controls[i].apply);

		print_message("%-14s %-45s error %.2g\n", controls[i].checkpoint, controls[i].name, error);
		uncaught += !(error > 1e-4);
	}
	assert_int_equal(uncaught, 0);
}

static void without_a_mistake_none_does(void **state)
{
	(void)state;
	assert_true(worst_error(&controls[0], NULL) < 1e-4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_mistake_makes_a_golden_fail),
		cmocka_unit_test(without_a_mistake_none_does),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
