/* config.json: what the published files say is understood, what we do not compute is refused, and no value however
 * wrong gives anything but an error that names its key or a config that holds together. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/json.h"
#include "config/mem.h"
#include "engine/model.h"

static json_t *fixture(const char *name)
{
	char *path = xasprintf("tests/fixtures/%s/config.json", name);
	json_t *root;
	struct err err;

	if (json_read(&root, path, 1 << 20, &err))
		fail_msg("%s", err.text);
	free(path);
	return root;
}

static int parse(struct model_config *c, const json_t *root, struct err *err)
{
	char *text = json_dumps(root, 0);
	int failed = model_config_parse(c, "config.json", text, strlen(text), NULL, err);

	free(text);
	return failed;
}

/* The fixture with `key` set to a JSON value (NULL: removed). A key "a.b" is b of object a. */
static json_t *changed(const char *name, const char *key, const char *value)
{
	json_t *root = fixture(name), *in = root;
	const char *dot = strchr(key, '.');

	if (dot) {
		char *object = xstrndup(key, (size_t)(dot - key));

		in = json_object_get(root, object);
		free(object);
		key = dot + 1;
	}
	if (value)
		json_object_set_new(in, key, json_loads(value, JSON_DECODE_ANY, NULL));
	else
		json_object_del(in, key);
	return root;
}

static void assert_loads(struct model_config *c, json_t *root)
{
	struct err err;

	if (parse(c, root, &err))
		fail_msg("%s", err.text);
	json_decref(root);
}

static void assert_refused(json_t *root, const char *why)
{
	struct model_config c;
	struct err err = {0};

	if (!parse(&c, root, &err))
		fail_msg("accepted, though \"%s\"", why);
	if (!strstr(err.text, why) || strncmp(err.text, "config.json", 11))
		fail_msg("\"%s\" does not say \"%s\"", err.text, why);
	json_decref(root);
}

static char *full_layers(const struct model_config *c)
{
	static char text[MODEL_MAX_LAYERS + 1];

	for (int i = 0; i < c->n_layers; i++)
		text[i] = c->layer_is_full[i] ? 'F' : 'S';
	text[c->n_layers] = '\0';
	return text;
}

/* ---- published files ------------------------------------------------------------------------------------------- */

static void glm_5_2_is_what_it_says(void **state)
{
	struct model_config c;

	(void)state;
	assert_int_equal(model_config_load(&c, "tests/fixtures/glm-5.2", NULL, NULL), 0);

	assert_string_equal(c.architecture, "glm_moe_dsa");
	assert_int_equal(c.hidden, 6144);
	assert_int_equal(c.rope_dim, 64); /* head_dim says 192 */
	assert_float_equal(c.attention_scale, 0.0625f, 0);
	assert_true(c.rope.theta == 8e6 && !c.rope.yarn && c.rope.factor == 1);
	assert_true(c.rope_interleaved && c.index_rope_interleaved && c.has_indexer);
	assert_string_equal(full_layers(&c), "FFFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSS");
	assert_true(c.layer_is_dense[2] && !c.layer_is_dense[3]);
	assert_float_equal(c.norm_eps, 1e-5f, 0);
	assert_float_equal(c.mla_norm_eps, 1e-6f, 0);
	assert_float_equal(c.index_norm_eps, 1e-6f, 0);
	assert_int_equal(c.n_eos, 3);
	assert_int_equal(c.eos[2], 154829);
}

/* Spec: 0.1 ln 40 + 1 squared is 1.8739, 0.1 ln 32 + 1 squared 1.8133. */
static void yarn_multiplies_the_attention_scale(void **state)
{
	struct model_config c;

	(void)state;
	assert_loads(&c, fixture("deepseek-v3"));
	assert_true(c.rope.yarn && c.rope.factor == 40 && c.rope.original_positions == 4096 && c.rope.theta == 10000);
	assert_float_equal(c.attention_scale, 1.8739 / sqrt(192), 1e-5);
	assert_true(c.rope_interleaved && !c.has_indexer);
	assert_int_equal(c.n_eos, 1);
	assert_loads(&c, fixture("kimi-k2"));
	assert_float_equal(c.attention_scale, 1.8133 / sqrt(192), 1e-5);
	assert_true(c.rope.beta_fast == 1 && c.rope.beta_slow == 1);
}

static void deepseek_v32_does_not_interleave_its_indexer(void **state)
{
	struct model_config c;

	(void)state;
	assert_loads(&c, changed("deepseek-v3.2", "indexer_rope_interleave", "true")); /* the key is ignored */
	assert_true(c.rope_interleaved && c.has_indexer && !c.index_rope_interleaved);
	for (int i = 0; i < c.n_layers; i++)
		assert_true(c.layer_is_full[i]);
}

static void assert_near(uint64_t n, double wanted)
{
	if (fabs((double)n / wanted - 1) > 0.005)
		fail_msg("%llu is not within half a percent of %g", (unsigned long long)n, wanted);
}

static struct model_parameters count(const char *name)
{
	struct model_config c;

	assert_loads(&c, fixture(name));
	return model_count_parameters(&c);
}

static void parameters_are_the_published_ones(void **state)
{
	struct model_parameters p = count("glm-5.2");

	(void)state;
	assert_true(p.total == 743377019904u);
	assert_true(p.mtp == 9952920576u);
	assert_true(p.active == 40298947584u);
	p = count("glm-5");
	assert_true(p.total == 743911218432u && p.total + p.mtp == 753864139008u);
	assert_near(p.active, 40.83e9);
	p = count("deepseek-v3");
	assert_near(p.total, 671.0e9);
	assert_near(p.total + p.mtp, 682.6e9);
	assert_near(p.active, 36.63e9);
	p = count("kimi-k2");
	assert_near(p.total, 1026.4e9);
	assert_int_equal(p.mtp, 0);
	assert_near(p.active, 31.69e9);
}

/* ---- one value, several spellings ------------------------------------------------------------------------------ */

static void the_index_schedule_comes_from_the_first_source_there_is(void **state)
{
	struct model_config c;
	json_t *root = changed("glm-5", "num_hidden_layers", "9");

	(void)state;
	assert_loads(&c, json_incref(root));
	assert_string_equal(full_layers(&c), "FFFFFFFFF"); /* freq 1 */
	json_object_set_new(root, "index_topk_freq", json_integer(4));
	assert_loads(&c, json_incref(root));
	assert_string_equal(full_layers(&c), "FFSSSFSSS"); /* offset 2 */
	json_object_set_new(root, "index_skip_topk_offset", json_integer(3));
	assert_loads(&c, json_incref(root));
	assert_string_equal(full_layers(&c), "FFFSSSFSS");
	json_object_set_new(root, "index_topk_pattern", json_string("FSFSFSFSF"));
	assert_loads(&c, json_incref(root));
	assert_string_equal(full_layers(&c), "FSFSFSFSF");
	json_object_set_new(root, "index_topk_pattern", json_pack("[sssssssss]", "full", "full", "shared", "shared",
								  "shared", "shared", "shared", "shared", "full"));
	assert_loads(&c, json_incref(root));
	assert_string_equal(full_layers(&c), "FFSSSSSSF");
	json_object_set_new(root, "indexer_types", json_pack("[sssssssss]", "full", "shared", "shared", "shared", "shared",
							     "shared", "shared", "shared", "shared"));
	assert_loads(&c, root);
	assert_string_equal(full_layers(&c), "FSSSSSSSS");
}

static void both_spellings_of_the_rope_settings_mean_the_same(void **state)
{
	struct model_config old, new;
	json_t *root = fixture("deepseek-v3"), *rope;
	char *a, *b;

	(void)state;
	assert_loads(&old, json_incref(root));
	rope = json_deep_copy(json_object_get(root, "rope_scaling"));
	json_object_del(rope, "type");
	json_object_set_new(rope, "rope_type", json_string("yarn"));
	json_object_set_new(rope, "rope_theta", json_integer(10000));
	json_object_set_new(root, "rope_parameters", rope);
	assert_loads(&new, json_incref(root)); /* both, and they agree */
	json_object_del(root, "rope_scaling");
	json_object_del(root, "rope_theta");
	assert_loads(&new, root);

	a = model_config_text(&old);
	b = model_config_text(&new);
	assert_string_equal(a, b);
	free(a);
	free(b);
}

static void other_names_and_shapes_of_a_value_are_read(void **state)
{
	struct model_config c;
	json_t *root = changed("glm-5.2", "n_routed_experts", NULL);

	(void)state;
	json_object_set_new(root, "num_experts", json_integer(256));
	assert_loads(&c, root);
	assert_int_equal(c.n_experts, 256);
	assert_loads(&c, changed("glm-5.2", "qk_rope_head_dim", NULL)); /* qk_head_dim 256 - 192 */
	assert_int_equal(c.rope_dim, 64);
	assert_loads(&c, changed("glm-5.2", "first_k_dense_replace", NULL));
	assert_true(c.layer_is_dense[2] && !c.layer_is_dense[3]);
	assert_loads(&c, changed("deepseek-v3", "q_lora_rank", "null"));
	assert_int_equal(c.q_lora, 0);
	assert_loads(&c, changed("glm-4.7-flash", "rope_interleave", "false"));
	assert_false(c.rope_interleaved);
	assert_loads(&c, changed("glm-4.7-flash", "rope_interleave", NULL));
	assert_true(c.rope_interleaved);
	assert_loads(&c, changed("glm-4.7-flash", "tie_word_embeddings", "true"));
	assert_true(c.tied_head);
}

static void the_option_overrides_the_latent_eps(void **state)
{
	struct model_options opt = {.mla_norm_eps = 1e-5f};
	struct model_config c;
	struct err err;

	(void)state;
	assert_int_equal(model_config_load(&c, "tests/fixtures/glm-5.2", &opt, &err), 0);
	assert_float_equal(c.mla_norm_eps, 1e-5f, 0);
	opt.mla_norm_eps = NAN;
	assert_int_equal(model_config_load(&c, "tests/fixtures/glm-5.2", &opt, &err), -1);
	assert_non_null(strstr(err.text, "mla_norm_eps"));
}

/* ---- refusals -------------------------------------------------------------------------------------------------- */

static void what_we_do_not_compute_is_refused_by_key_and_value(void **state)
{
	static const struct {
		const char *fixture, *key, *value, *why;
	} cases[] = {
		{"glm-5.2", "model_type", "\"llama\"",
		 "model_type is \"llama\", an architecture this engine does not know; it knows glm_moe_dsa, deepseek_v32, "
		 "deepseek_v3, kimi_k2, glm4_moe_lite"},
		{"glm-5.2", "model_type", NULL, "model_type is absent"},
		{"glm-5.2", "hidden_act", "\"gelu\"", "hidden_act is \"gelu\"; only \"silu\" is computed"},
		{"glm-5.2", "scoring_func", "\"softmax\"", "scoring_func is \"softmax\"; only \"sigmoid\""},
		{"glm-5.2", "topk_method", "\"greedy\"", "topk_method is \"greedy\""},
		{"glm-5.2", "attention_bias", "true", "attention_bias is true; only false"},
		{"glm-5.2", "mlp_bias", "true", "mlp_bias is true"},
		{"glm-5.2", "moe_layer_freq", "2", "moe_layer_freq is 2; only 1"},
		{"glm-5.2", "partial_rotary_factor", "0.5", "partial_rotary_factor is 0.5"},
		{"glm-5.2", "rope_interleave", "false", "rope_interleave is false"},
		{"glm-5.2", "indexer_rope_interleave", "false", "indexer_rope_interleave is false"},
		{"glm-5.2", "rope_parameters.rope_type", "\"linear\"", "rope_parameters.rope_type is \"linear\""},
		{"glm-5.2", "rope_parameters.type", "\"yarn\"", "rope_parameters.rope_type is \"default\", but"},
		{"glm-5.2", "rope_parameters.short_factor", "[1]", "rope_parameters.short_factor is nothing we know"},
		{"glm-5.2", "rope_parameters.rope_theta", NULL, "rope_theta is absent"},
		{"glm-5.2", "rope_theta", "10000", "rope_theta is 10000, but rope_parameters.rope_theta is 8e+06"},
		{"glm-5.2", "rope_scaling", "{\"type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":4096,"
		 "\"mscale\":1,\"mscale_all_dim\":1}", "rope_parameters and rope_scaling disagree"},
		{"deepseek-v3", "rope_scaling.mscale_all_dim", NULL, "multiply cos and sin by 1.36"},
		{"deepseek-v3", "rope_scaling.attention_factor", "2.0", "multiply cos and sin by 2"},
		{"deepseek-v3", "rope_scaling.truncate", "false", "truncate is false"},
		{"deepseek-v3", "rope_scaling.factor", "null", "rope_scaling.factor is null"},
		{"deepseek-v3", "rope_scaling.beta_fast", "0.5", "beta_fast is 0.5, less than beta_slow 1"},
		{"deepseek-v3", "quantization_config.quant_method", "\"compressed-tensors\"",
		 "quantization_config.quant_method is \"compressed-tensors\""},
		{"deepseek-v3", "quantization_config.fmt", "\"e5m2\"", "quantization_config.fmt is \"e5m2\""},
		{"deepseek-v3", "quantization_config.weight_block_size", "[64,64]", "weight_block_size is [64,64]"},
		{"deepseek-v3", "quantization_config.quant_method", "\"int4-g64\"", "quantization_config.bits is absent; int4-g64 has 4"},
		{"deepseek-v3", "quantization_config", "{\"quant_method\":\"int4-g64\",\"bits\":4,\"group_size\":32}",
		 "quantization_config.group_size is 32; int4-g64 has 64"},
		{"deepseek-v3", "quantization_config", "{\"quant_method\":\"int4-g64\",\"bits\":4,\"group_size\":64,\"rest\":[]}",
		 "quantization_config.rest is an array"},
		{"deepseek-v3", "quantization_config", "{\"quant_method\":\"int4-g64\",\"bits\":4,\"group_size\":64,\"rest\":"
		 "{\"quant_method\":\"fp8\",\"weight_block_size\":[64,64]}}", "weight_block_size is [64,64]"},
		{"deepseek-v3", "layer_types", "[\"sliding_attention\"]", "layer_types[0] is \"sliding_attention\""},
		{"deepseek-v3.2", "index_topk_freq", "4", "layer 2 has no indexer"},
		{"deepseek-v3.2", "q_lora_rank", "null", "q_lora_rank is absent"},
		{"glm-5.2", "num_experts", "128", "n_routed_experts is 256, but num_experts is 128"},
		{"glm-5.2", "qk_head_dim", "255", "qk_head_dim is 255, but qk_nope_head_dim + qk_rope_head_dim is 192 + 64"},
		{"glm-5.2", "first_k_dense_replace", "4", "mlp_layer_types[3] is \"sparse\", but first_k_dense_replace is 4"},
		{"glm-5.2", "num_hidden_layers", "79", "num_hidden_layers is 79"},
		{"glm-5.2", "eos_token_id", "[1, 154880]", "eos_token_id is 154880, but vocab_size is 154880"},
		{"glm-5.2", "eos_token_id", "[]", "eos_token_id has 0 entries"},
		{"glm-5.2", "n_group", "3", "n_routed_experts is 256, no multiple of n_group 3"},
		{"glm-5.2", "topk_group", "2", "topk_group is 2, more than n_group 1"},
		{"deepseek-v3", "n_group", "256", "n_group is 256: a group of 1 expert"},
		{"deepseek-v3", "num_experts_per_tok", "129", "num_experts_per_tok is 129, more than 128: n_routed_experts 256 / n_group 8 x topk_group 4"},
		{"glm-5.2", "index_head_dim", "32", "index_head_dim is 32, less than qk_rope_head_dim 64"},
		{"glm-5", "index_topk_pattern", "\"F\"", "index_topk_pattern has 1 letters, but num_hidden_layers is 78"},
		{"glm-5.2", "hidden_size", "6144.0", "hidden_size is a number, an integer is expected"},
		{"glm-5.2", "hidden_size", "99999999999", "hidden_size is 99999999999, it must lie between 1 and"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
		assert_refused(changed(cases[i].fixture, cases[i].key, cases[i].value), cases[i].why);
}

static void layer_0_needs_an_indexer_of_its_own(void **state)
{
	json_t *root = changed("glm-5", "index_topk_freq", "4");

	(void)state;
	json_object_set_new(root, "index_skip_topk_offset", json_integer(0));
	assert_refused(root, "layer 0 has no indexer");
}

/* ---- every key, every wrong value ------------------------------------------------------------------------------ */

static void assert_holds_together(const struct model_config *c)
{
	struct model_parameters p = model_count_parameters(c);

	assert_true(c->hidden > 0 && c->n_layers > 0 && c->n_layers + c->n_mtp_layers <= MODEL_MAX_LAYERS);
	assert_true(c->vocab > 0 && c->n_heads > 0 && c->q_lora >= 0 && c->kv_lora > 0 && c->nope_dim > 0);
	assert_true(c->rope_dim > 0 && c->rope_dim % 2 == 0 && c->v_dim > 0 && c->max_positions > 0);
	assert_true(isfinite(c->attention_scale) && c->attention_scale > 0 && c->rope.theta > 1);
	assert_true(!c->rope.yarn || (c->rope.factor >= 1 && c->rope.original_positions >= 1 && c->rope.beta_slow > 0));
	assert_true(c->n_experts % c->n_groups == 0 && c->topk_groups <= c->n_groups);
	assert_true(c->experts_per_token <= c->topk_groups * (c->n_experts / c->n_groups));
	assert_true(c->norm_eps > 0 && c->mla_norm_eps > 0 && c->index_norm_eps > 0 && c->routed_scale > 0);
	assert_true(!c->has_indexer || (c->layer_is_full[0] && c->q_lora && c->index_dim >= c->rope_dim && c->index_topk));
	assert_true(c->n_eos > 0 && c->n_eos <= MODEL_MAX_EOS && p.active <= p.total);
	for (int i = 0; i < c->n_eos; i++)
		assert_true(c->eos[i] >= 0 && c->eos[i] < c->vocab);
}

enum { MUTATIONS = 11 };

/* A new value, or NULL: the key goes. */
static json_t *mutated(const json_t *v, int how)
{
	double x = json_number_value(v);
	json_int_t n = json_integer_value(v);

	switch (how) {
	case 0:
		return json_integer(0);
	case 1:
		return json_integer(1);
	case 2:
		return json_is_real(v) ? json_real(x - 1) : json_integer(n - 1);
	case 3:
		return json_is_real(v) ? json_real(x + 1) : json_integer(n + 1);
	case 4:
		return json_is_real(v) ? json_real(2 * x) : json_integer(2 * n);
	case 5:
		return json_integer(-1);
	case 6:
		return json_string("v");
	case 7:
		return json_null();
	case 8:
		return json_is_boolean(v) ? json_boolean(!json_is_true(v)) : json_integer((json_int_t)1 << 62);
	case 9:
		return json_array();
	default:
		return NULL;
	}
}

/* An error must name the key (or, in a list or object, the one that holds it). */
static void try_mutations(json_t *root, json_t *in, const char *key)
{
	json_t *before = json_incref(json_object_get(in, key));

	for (int how = 0; how < MUTATIONS; how++) {
		json_t *value = mutated(before, how);
		struct model_config c;
		struct err err = {0};

		if (value)
			json_object_set_new(in, key, value);
		else
			json_object_del(in, key);
		if (!parse(&c, root, &err))
			assert_holds_together(&c);
		else if (!strstr(err.text, key))
			fail_msg("%s, mutation %d: \"%s\" does not name it", key, how, err.text);
		json_object_set(in, key, before);
	}
	json_decref(before);
}

static void every_key_wrong_in_every_way_is_named_or_harmless(void **state)
{
	static const char *const fixtures[] = {"glm-5.2", "glm-5", "deepseek-v3", "deepseek-v3.2", "kimi-k2",
					       "glm-4.7-flash"};

	(void)state;
	for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
		json_t *root = fixture(fixtures[i]), *keys = json_deep_copy(root), *value, *inner;
		const char *key, *inner_key;

		json_object_foreach(keys, key, value) {
			try_mutations(root, root, key);
			if (json_is_object(value))
				json_object_foreach(value, inner_key, inner)
					try_mutations(root, json_object_get(root, key), inner_key);
		}
		json_decref(keys);
		json_decref(root);
	}
}

static void a_list_entry_that_is_wrong_is_named(void **state)
{
	json_t *root = fixture("glm-5.2");

	(void)state;
	json_array_set_new(json_object_get(root, "indexer_types"), 5, json_string("half"));
	assert_refused(root, "indexer_types[5] is \"half\"; \"full\" and \"shared\" are known");
	root = fixture("glm-5.2");
	json_array_set_new(json_object_get(root, "mlp_layer_types"), 77, json_integer(3));
	assert_refused(root, "mlp_layer_types[77] is 3");
	root = fixture("glm-5.2");
	json_array_append_new(json_object_get(root, "indexer_types"), json_string("full"));
	assert_refused(root, "indexer_types has 79 entries, but num_hidden_layers is 78");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(glm_5_2_is_what_it_says),
		cmocka_unit_test(yarn_multiplies_the_attention_scale),
		cmocka_unit_test(deepseek_v32_does_not_interleave_its_indexer),
		cmocka_unit_test(parameters_are_the_published_ones),
		cmocka_unit_test(the_index_schedule_comes_from_the_first_source_there_is),
		cmocka_unit_test(both_spellings_of_the_rope_settings_mean_the_same),
		cmocka_unit_test(other_names_and_shapes_of_a_value_are_read),
		cmocka_unit_test(the_option_overrides_the_latent_eps),
		cmocka_unit_test(what_we_do_not_compute_is_refused_by_key_and_value),
		cmocka_unit_test(layer_0_needs_an_indexer_of_its_own),
		cmocka_unit_test(every_key_wrong_in_every_way_is_named_or_harmless),
		cmocka_unit_test(a_list_entry_that_is_wrong_is_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
