/*
 * config.json to struct model_config.
 *
 * What the struct cannot say is refused by key and value, so that a checkpoint which needs something we do not
 * compute never answers wrongly. Keys that change nothing we compute (dropout, pad token, head_dim, ...) are not
 * read: head_dim above all, which published files set to a number that is no dimension of the model.
 *
 * Absent means default only where transformers 5.17.0 and the published files agree on one:
 *   num_nextn_predict_layers 0, index_share_for_mtp_iteration false, tie_word_embeddings false, index_topk_freq 1,
 *   index_skip_topk_offset 2, beta_fast 32, beta_slow 1, and the one value we compute for hidden_act, scoring_func, topk_method, ...
 * Rotary pairs: rope_interleave is a key of deepseek_v3, kimi_k2 and glm4_moe_lite, absent = true. glm_moe_dsa and
 * deepseek_v32 always interleave; their files may say so, and a false is refused. The indexer interleaves in
 * glm_moe_dsa (a false is refused: engines disagree on its meaning) and never in deepseek_v32, where the key
 * indexer_rope_interleave is ignored.
 */
#include "engine/model.h"

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "config/mem.h"

enum { MAX_FILE = 16 << 20, MAX_POSITIONS = 1 << 24 /* the last of which float32 still counts exactly */ };

#define LATENT_EPS 1e-6 /* q_a_layernorm, kv_a_layernorm: built without the config's eps in transformers */
#define INDEX_EPS  1e-6 /* k_norm of the indexer, in every implementation that agrees with the weights */

static const struct architecture {
	const char *name;
	bool has_indexer, index_interleaved, shares_index;
	bool interleave_is_a_key; /* else the main rotary embedding always pairs (2j, 2j + 1) */
} architectures[] = {
	{"glm_moe_dsa", .has_indexer = true, .index_interleaved = true, .shares_index = true},
	{"deepseek_v32", .has_indexer = true},
	{"deepseek_v3", .interleave_is_a_key = true},
	{"kimi_k2", .interleave_is_a_key = true},
	{"glm4_moe_lite", .interleave_is_a_key = true},
};

enum { N_ARCHITECTURES = sizeof architectures / sizeof architectures[0] };

/* What the functions below pass around. Sentences open with the file's name. */
struct reader {
	struct model_config *c;
	const struct architecture *arch;
	const json_t *root;
	const char *name;
	struct err *err;
};

/* A member, NULL when it is absent or null: files write null for "the default". */
static const json_t *member(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	return json_is_null(value) ? NULL : value;
}

__attribute__((format(printf, 2, 3))) static int refuse(const struct reader *r, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	return err_set(r->err, ERR_FORMAT, "%s: %s", r->name, text);
}

/* A value as the file spells it, cut to fit a sentence. */
static const char *spelled(char out[64], const json_t *value)
{
	char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;

	snprintf(out, 64, "%s", text ? text : "absent");
	free(text);
	return out;
}

/* ---- integers and numbers: one table row each ------------------------------------------------------------------ */

enum when { ALWAYS, WITH_INDEXER };
enum { REQUIRED = -1 };

#define FIELD(f) offsetof(struct model_config, f)

/* Largest values: far above any model, and small enough that no product of two of them leaves 62 bits. */
static const struct integer_key {
	const char *key;
	size_t field;
	int32_t least, most, absent;
	enum when when;
} integer_keys[] = {
	{"vocab_size", FIELD(vocab), 1, 1 << 24, REQUIRED, ALWAYS},
	{"hidden_size", FIELD(hidden), 1, 1 << 18, REQUIRED, ALWAYS},
	{"num_hidden_layers", FIELD(n_layers), 1, MODEL_MAX_LAYERS, REQUIRED, ALWAYS},
	{"num_nextn_predict_layers", FIELD(n_mtp_layers), 0, 16, 0, ALWAYS},
	{"num_attention_heads", FIELD(n_heads), 1, 1 << 12, REQUIRED, ALWAYS},
	{"q_lora_rank", FIELD(q_lora), 1, 1 << 18, 0, ALWAYS},
	{"kv_lora_rank", FIELD(kv_lora), 1, 1 << 14, REQUIRED, ALWAYS},
	{"qk_nope_head_dim", FIELD(nope_dim), 1, 1 << 14, REQUIRED, ALWAYS},
	{"qk_rope_head_dim", FIELD(rope_dim), 2, 1 << 14, 0, ALWAYS}, /* else qk_head_dim - qk_nope_head_dim */
	{"v_head_dim", FIELD(v_dim), 1, 1 << 14, REQUIRED, ALWAYS},
	{"intermediate_size", FIELD(dense_dim), 1, 1 << 18, REQUIRED, ALWAYS},
	{"moe_intermediate_size", FIELD(expert_dim), 1, 1 << 18, REQUIRED, ALWAYS},
	{"n_routed_experts", FIELD(n_experts), 1, 1 << 12, 0, ALWAYS}, /* else one of its other names */
	{"num_experts_per_tok", FIELD(experts_per_token), 1, 1 << 12, REQUIRED, ALWAYS},
	{"n_shared_experts", FIELD(n_shared_experts), 1, 1 << 8, REQUIRED, ALWAYS},
	{"n_group", FIELD(n_groups), 1, 1 << 12, REQUIRED, ALWAYS},
	{"topk_group", FIELD(topk_groups), 1, 1 << 12, REQUIRED, ALWAYS},
	{"index_n_heads", FIELD(index_n_heads), 1, 1 << 12, REQUIRED, WITH_INDEXER},
	{"index_head_dim", FIELD(index_dim), 1, 1 << 14, REQUIRED, WITH_INDEXER},
	{"index_topk", FIELD(index_topk), 1, MAX_POSITIONS, REQUIRED, WITH_INDEXER},
};

static int read_integers(struct reader *r)
{
	for (size_t i = 0; i < sizeof integer_keys / sizeof integer_keys[0]; i++) {
		const struct integer_key *k = &integer_keys[i];
		int64_t n = k->absent;

		if (k->when == WITH_INDEXER && !r->arch->has_indexer)
			continue;
		if ((member(r->root, k->key) || k->absent == REQUIRED) &&
		    json_get_integer(&n, r->root, k->key, k->least, k->most, r->name, "", r->err))
			return -1;
		*(int32_t *)((char *)r->c + k->field) = (int32_t)n;
	}
	return 0;
}

/* A number of `object` between least and most; *out keeps its value where the key is absent. */
static int optional_number(const struct reader *r, double *out, const json_t *object, const char *where,
			   const char *key, double least, double most)
{
	const json_t *value = member(object, key);
	double x;

	if (!value)
		return 0;
	if (!json_is_number(value))
		return refuse(r, "%s%s is %s, a number is expected", where, key, json_kind(value));
	x = json_number_value(value);
	if (!(x >= least && x <= most))
		return refuse(r, "%s%s is %g, it must lie between %g and %g", where, key, x, least, most);
	*out = x;
	return 0;
}

static int number(const struct reader *r, double *out, const json_t *object, const char *where, const char *key,
		  double least, double most)
{
	if (!member(object, key))
		return refuse(r, "%s%s is %s, a number is expected", where, key,
			      json_kind(json_object_get(object, key)));
	return optional_number(r, out, object, where, key, least, most);
}

static int read_numbers(struct reader *r, const struct model_options *opt)
{
	double eps, scale;
	int64_t positions;
	int normalize, tied = 0;
	float latent_eps = opt ? opt->mla_norm_eps : 0;

	if (number(r, &eps, r->root, "", "rms_norm_eps", 1e-12, 0.1) ||
	    number(r, &scale, r->root, "", "routed_scaling_factor", 1e-6, 1e6) ||
	    json_get_integer(&positions, r->root, "max_position_embeddings", 1, MAX_POSITIONS, r->name, "", r->err) ||
	    json_get_boolean(&normalize, r->root, "norm_topk_prob", r->name, "", r->err))
		return -1;
	if (member(r->root, "tie_word_embeddings") &&
	    json_get_boolean(&tied, r->root, "tie_word_embeddings", r->name, "", r->err))
		return -1;
	if (latent_eps != 0 && !(latent_eps >= 1e-12f && latent_eps <= 0.1f))
		return err_set(r->err, ERR_USAGE, "mla_norm_eps is %g, it must lie between 1e-12 and 0.1",
			       (double)latent_eps);
	r->c->norm_eps = (float)eps;
	r->c->mla_norm_eps = latent_eps != 0 ? latent_eps : (float)LATENT_EPS;
	r->c->index_norm_eps = (float)INDEX_EPS;
	r->c->routed_scale = (float)scale;
	r->c->max_positions = positions;
	r->c->normalize_topk = normalize;
	r->c->tied_head = tied;
	return 0;
}

/* ---- what we compute in one way only --------------------------------------------------------------------------- */

static const struct {
	const char *key;
	const char *value; /* as JSON */
} fixed_keys[] = {
	{"hidden_act", "\"silu\""},  {"scoring_func", "\"sigmoid\""},      {"topk_method", "\"noaux_tc\""},
	{"attention_bias", "false"}, {"mlp_bias", "false"},                {"moe_layer_freq", "1"},
	{"partial_rotary_factor", "1"}, {"moe_router_dtype", "\"float32\""},
};

static bool is_number(const json_t *value, double x)
{
	return json_is_number(value) && json_number_value(value) == x;
}

static int read_fixed(const struct reader *r)
{
	char text[64];

	for (size_t i = 0; i < sizeof fixed_keys / sizeof fixed_keys[0]; i++) {
		const json_t *value = member(r->root, fixed_keys[i].key);

		if (value && strcmp(spelled(text, value), fixed_keys[i].value) &&
		    !(strcmp(fixed_keys[i].value, "1") == 0 && is_number(value, 1)))
			return refuse(r, "%s is %s; only %s is computed", fixed_keys[i].key, text,
				      fixed_keys[i].value);
	}
	return 0;
}

/* What `quire model pack` writes: routed experts in int4, and under `rest` how the source was quantized. */
static int read_packed(const struct reader *r, const json_t *q)
{
	const json_t *bits = member(q, "bits"), *group = member(q, "group_size");
	char text[64];

	if (!is_number(bits, 4))
		return refuse(r, "quantization_config.bits is %s; int4-g64 has 4", spelled(text, bits));
	if (!is_number(group, INT4_GROUP))
		return refuse(r, "quantization_config.group_size is %s; int4-g64 has 64", spelled(text, group));
	return 0;
}

/* modules_to_not_convert is not read: published lists name tensors that do not exist, and the tensors say what they
 * are. A block of another size would be read wrongly, though. */
static int read_quantization(const struct reader *r)
{
	const json_t *q = member(r->root, "quantization_config"), *method, *format, *block;
	char text[64];

	if (!q)
		return 0;
	if (!json_is_object(q))
		return refuse(r, "quantization_config is %s, an object is expected", json_kind(q));
	method = member(q, "quant_method");
	if (json_is_string(method) && !strcmp(json_string_value(method), "int4-g64")) {
		if (read_packed(r, q))
			return -1;
		q = member(q, "rest");
		if (!q)
			return 0;
		if (!json_is_object(q))
			return refuse(r, "quantization_config.rest is %s, an object is expected", json_kind(q));
		method = member(q, "quant_method");
	}
	format = member(q, "fmt");
	block = member(q, "weight_block_size");
	if (!json_is_string(method) || strcmp(json_string_value(method), "fp8"))
		return refuse(r, "quantization_config.quant_method is %s; only \"fp8\", \"int4-g64\" and unquantized files "
			      "are read", spelled(text, method));
	if (format && (!json_is_string(format) || strcmp(json_string_value(format), "e4m3")))
		return refuse(r, "quantization_config.fmt is %s; only \"e4m3\" is read", spelled(text, format));
	if (block && strcmp(spelled(text, block), "[128,128]"))
		return refuse(r, "quantization_config.weight_block_size is %s; only [128,128] is read", text);
	return 0;
}

/* Names the list of layer types may use: each layer's attention is the architecture's. */
static int read_attention_types(const struct reader *r)
{
	const json_t *types = member(r->root, "layer_types"), *type;
	const char *only = r->arch->has_indexer ? "deepseek_sparse_attention" : "full_attention";
	char text[64];
	size_t i;

	if (!types)
		return 0;
	if (!json_is_array(types))
		return refuse(r, "layer_types is %s, an array is expected", json_kind(types));
	json_array_foreach(types, i, type)
		if (!json_is_string(type) || strcmp(json_string_value(type), only))
			return refuse(r, "layer_types[%zu] is %s; %s has only \"%s\"", i, spelled(text, type),
				      r->arch->name, only);
	return 0;
}

/* ---- values with several names --------------------------------------------------------------------------------- */

/* *n has been read under `key`, 0 if that was absent; other names must say the same. */
static int also_named(const struct reader *r, int32_t *n, const char *key, const char *other, int64_t most)
{
	int64_t m;

	if (!member(r->root, other))
		return 0;
	if (json_get_integer(&m, r->root, other, 0, most, r->name, "", r->err))
		return -1;
	if (member(r->root, key) && m != *n)
		return refuse(r, "%s is %d, but %s is %lld", key, *n, other, (long long)m);
	*n = (int32_t)m;
	return 0;
}

static int read_other_names(struct reader *r)
{
	struct model_config *c = r->c;
	int64_t query;

	if (also_named(r, &c->n_experts, "n_routed_experts", "num_experts", 1 << 12) ||
	    also_named(r, &c->n_experts, "n_routed_experts", "num_local_experts", 1 << 12) ||
	    also_named(r, &c->n_mtp_layers, "num_nextn_predict_layers", "num_mtp_layers", 16))
		return -1;
	if (!c->n_experts)
		return refuse(r, "n_routed_experts is absent, an integer is expected");
	if (member(r->root, "qk_head_dim")) {
		if (json_get_integer(&query, r->root, "qk_head_dim", 1, 1 << 15, r->name, "", r->err))
			return -1;
		if (!c->rope_dim)
			c->rope_dim = (int32_t)query - c->nope_dim;
		if (query != (int64_t)c->nope_dim + c->rope_dim)
			return refuse(r, "qk_head_dim is %lld, but qk_nope_head_dim + qk_rope_head_dim is %d + %d",
				      (long long)query, c->nope_dim, c->rope_dim);
	}
	if (c->rope_dim <= 0)
		return refuse(r, "qk_rope_head_dim is absent, an integer is expected");
	return 0;
}

/* ---- rotary embedding ------------------------------------------------------------------------------------------ */

static double yarn_mscale(double factor, double mscale)
{
	return factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
}

static int known_rope_keys(const struct reader *r, const json_t *rope, const char *where)
{
	static const char *const known[] = {
		"rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings", "beta_fast",
		"beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate", "partial_rotary_factor",
	};
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)rope, key, value) {
		size_t i = 0;

		while (i < sizeof known / sizeof known[0] && strcmp(key, known[i]))
			i++;
		if (i == sizeof known / sizeof known[0])
			return refuse(r, "%s%s is nothing we know of", where, key);
	}
	return 0;
}

static int read_yarn(const struct reader *r, struct rope_config *rope, const json_t *from, const char *where)
{
	const json_t *truncate = member(from, "truncate");
	double gain;
	char text[64];

	rope->yarn = true;
	rope->beta_fast = 32;
	rope->beta_slow = 1;
	if (number(r, &rope->factor, from, where, "factor", 1, 1e6) ||
	    number(r, &rope->original_positions, from, where, "original_max_position_embeddings", 1, MAX_POSITIONS) ||
	    optional_number(r, &rope->beta_fast, from, where, "beta_fast", 1e-3, 1e6) ||
	    optional_number(r, &rope->beta_slow, from, where, "beta_slow", 1e-3, 1e6) ||
	    optional_number(r, &rope->mscale, from, where, "mscale", 0, 100) ||
	    optional_number(r, &rope->mscale_all_dim, from, where, "mscale_all_dim", 0, 100))
		return -1;
	if (rope->beta_fast < rope->beta_slow)
		return refuse(r, "%sbeta_fast is %g, less than beta_slow %g", where, rope->beta_fast, rope->beta_slow);
	if (truncate && !json_is_true(truncate))
		return refuse(r, "%struncate is %s; only true is computed", where, spelled(text, truncate));
	gain = yarn_mscale(rope->factor, 1);
	if (rope->mscale > 0 && rope->mscale_all_dim > 0)
		gain = yarn_mscale(rope->factor, rope->mscale) / yarn_mscale(rope->factor, rope->mscale_all_dim);
	if (optional_number(r, &gain, from, where, "attention_factor", 1e-6, 1e6))
		return -1;
	return gain == 1 ? 0 : refuse(r, "%sattention_factor, or mscale %g and mscale_all_dim %g, multiply cos and sin by "
				      "%g; only 1 is computed, which mscale = mscale_all_dim gives", where, rope->mscale,
				      rope->mscale_all_dim, gain);
}

/* The kind is spelled rope_type or type. */
static int read_rope_kind(const struct reader *r, bool *yarn, const json_t *from, const char *where)
{
	static const char *const keys[] = {"rope_type", "type"};
	const char *kind = NULL;
	char text[64];

	for (int i = 0; i < 2; i++) {
		const json_t *value = member(from, keys[i]);

		if (!value)
			continue;
		if (!json_is_string(value) || (strcmp(json_string_value(value), "default") &&
					       strcmp(json_string_value(value), "yarn")))
			return refuse(r, "%s%s is %s; only \"default\" and \"yarn\" are computed", where, keys[i],
				      spelled(text, value));
		if (kind && strcmp(kind, json_string_value(value)))
			return refuse(r, "%srope_type is \"%s\", but %stype is \"%s\"", where, kind, where,
				      json_string_value(value));
		kind = json_string_value(value);
	}
	*yarn = kind && !strcmp(kind, "yarn");
	return 0;
}

static int read_rope_object(const struct reader *r, struct rope_config *rope, const char *key)
{
	const json_t *from = member(r->root, key), *partial;
	char where[32], text[64];
	bool yarn = false;

	*rope = (struct rope_config){.factor = 1};
	if (from && !json_is_object(from))
		return refuse(r, "%s is %s, an object is expected", key, json_kind(from));
	snprintf(where, sizeof where, "%s.", key);
	if (known_rope_keys(r, from, where) || read_rope_kind(r, &yarn, from, where) ||
	    optional_number(r, &rope->theta, from, where, "rope_theta", 1.001, 1e15))
		return -1;
	partial = member(from, "partial_rotary_factor");
	if (partial && !is_number(partial, 1))
		return refuse(r, "%spartial_rotary_factor is %s; only 1 is computed", where, spelled(text, partial));
	return yarn ? read_yarn(r, rope, from, where) : 0;
}

static bool same_rope(const struct rope_config *a, const struct rope_config *b)
{
	return a->yarn == b->yarn && a->factor == b->factor && a->original_positions == b->original_positions &&
	       a->beta_fast == b->beta_fast && a->beta_slow == b->beta_slow &&
	       a->mscale_all_dim == b->mscale_all_dim;
}

/* rope_parameters {rope_theta, rope_type, ...}, or rope_theta with rope_scaling {type, ...}; both when they agree. */
static int read_rope(struct reader *r)
{
	struct rope_config *rope = &r->c->rope, old;
	double theta = 0;

	if (read_rope_object(r, rope, "rope_parameters") || read_rope_object(r, &old, "rope_scaling") ||
	    optional_number(r, &theta, r->root, "", "rope_theta", 1.001, 1e15))
		return -1;
	if (member(r->root, "rope_parameters") && member(r->root, "rope_scaling") && !same_rope(rope, &old))
		return refuse(r, "rope_parameters and rope_scaling disagree; remove rope_scaling if rope_parameters is "
				 "right");
	if (!member(r->root, "rope_parameters")) {
		old.theta = old.theta > 0 ? old.theta : rope->theta;
		*rope = old;
	}
	if (theta > 0 && rope->theta > 0 && theta != rope->theta)
		return refuse(r, "rope_theta is %g, but rope_parameters.rope_theta is %g", theta, rope->theta);
	if (rope->theta <= 0)
		rope->theta = theta;
	if (rope->theta <= 0)
		return refuse(r, "rope_theta is absent, both in rope_parameters and beside it; a number is expected");
	return 0;
}

static int read_flag(const struct reader *r, bool *out, const char *key, bool absent)
{
	int value = absent;

	if (member(r->root, key) && json_get_boolean(&value, r->root, key, r->name, "", r->err))
		return -1;
	*out = value;
	return 0;
}

static int read_interleaving(struct reader *r)
{
	bool index = true;

	if (read_flag(r, &r->c->rope_interleaved, "rope_interleave", true))
		return -1;
	if (!r->c->rope_interleaved && !r->arch->interleave_is_a_key)
		return refuse(r, "rope_interleave is false; %s is only defined with true", r->arch->name);
	if (r->arch->index_interleaved && read_flag(r, &index, "indexer_rope_interleave", true))
		return -1;
	if (!index)
		return refuse(r, "indexer_rope_interleave is false; %s is only defined with true", r->arch->name);
	r->c->index_rope_interleaved = r->arch->index_interleaved;
	return 0;
}

/* ---- layers ---------------------------------------------------------------------------------------------------- */

/* A list with one of two words for each layer; out[i] = it is the first. */
static int read_layer_list(const struct reader *r, bool *out, const char *key, const char *first, const char *second)
{
	const json_t *list = member(r->root, key);
	char text[64];

	if (!json_is_array(list))
		return refuse(r, "%s is %s, an array is expected", key, json_kind(list));
	if (json_array_size(list) != (size_t)r->c->n_layers)
		return refuse(r, "%s has %zu entries, but num_hidden_layers is %d", key, json_array_size(list),
			      r->c->n_layers);
	for (int i = 0; i < r->c->n_layers; i++) {
		const json_t *kind = json_array_get(list, (size_t)i);

		out[i] = json_is_string(kind) && !strcmp(json_string_value(kind), first);
		if (!out[i] && (!json_is_string(kind) || strcmp(json_string_value(kind), second)))
			return refuse(r, "%s[%d] is %s; \"%s\" and \"%s\" are known", key, i, spelled(text, kind),
				      first, second);
	}
	return 0;
}

static int read_dense_layers(struct reader *r)
{
	bool listed = member(r->root, "mlp_layer_types"), counted = member(r->root, "first_k_dense_replace");
	int64_t n_dense = 0;

	if (!listed && !counted)
		return refuse(r, "first_k_dense_replace is absent, and so is mlp_layer_types; an integer is expected");
	if (counted && json_get_integer(&n_dense, r->root, "first_k_dense_replace", 0, MODEL_MAX_LAYERS, r->name, "",
					r->err))
		return -1;
	if (n_dense > r->c->n_layers)
		return refuse(r, "first_k_dense_replace is %lld, more than num_hidden_layers %d", (long long)n_dense,
			      r->c->n_layers);
	if (listed && read_layer_list(r, r->c->layer_is_dense, "mlp_layer_types", "dense", "sparse"))
		return -1;
	for (int i = 0; i < r->c->n_layers && counted; i++) {
		if (listed && r->c->layer_is_dense[i] != (i < n_dense))
			return refuse(r, "mlp_layer_types[%d] is \"%s\", but first_k_dense_replace is %lld", i,
				      r->c->layer_is_dense[i] ? "dense" : "sparse", (long long)n_dense);
		r->c->layer_is_dense[i] = i < n_dense;
	}
	return 0;
}

/* "FFFSSSFSSS...": one letter a layer. */
static int read_pattern_string(struct reader *r, const char *pattern)
{
	if (strlen(pattern) != (size_t)r->c->n_layers)
		return refuse(r, "index_topk_pattern has %zu letters, but num_hidden_layers is %d", strlen(pattern),
			      r->c->n_layers);
	for (int i = 0; i < r->c->n_layers; i++) {
		if (pattern[i] != 'F' && pattern[i] != 'S')
			return refuse(r, "index_topk_pattern has '%c' for layer %d; F and S are known", pattern[i], i);
		r->c->layer_is_full[i] = pattern[i] == 'F';
	}
	return 0;
}

static int read_schedule(struct reader *r)
{
	int64_t freq = 1, offset = 2;

	if ((member(r->root, "index_topk_freq") &&
	     json_get_integer(&freq, r->root, "index_topk_freq", 1, MODEL_MAX_LAYERS, r->name, "", r->err)) ||
	    (member(r->root, "index_skip_topk_offset") &&
	     json_get_integer(&offset, r->root, "index_skip_topk_offset", 0, MODEL_MAX_LAYERS, r->name, "", r->err)))
		return -1;
	for (int64_t i = 0; i < r->c->n_layers; i++)
		r->c->layer_is_full[i] = (i - offset + 1 > 0 ? i - offset + 1 : 0) % freq == 0;
	return 0;
}

/* indexer_types, else index_topk_pattern, else index_topk_freq and index_skip_topk_offset. */
static int read_index_layers(struct reader *r)
{
	const json_t *pattern = member(r->root, "index_topk_pattern");
	int failed;

	r->c->has_indexer = r->arch->has_indexer;
	if (!r->arch->has_indexer)
		return 0;
	if (member(r->root, "indexer_types"))
		failed = read_layer_list(r, r->c->layer_is_full, "indexer_types", "full", "shared");
	else if (json_is_string(pattern))
		failed = read_pattern_string(r, json_string_value(pattern));
	else if (pattern)
		failed = read_layer_list(r, r->c->layer_is_full, "index_topk_pattern", "full", "shared");
	else
		failed = read_schedule(r);
	if (failed)
		return -1;
	if (!r->c->layer_is_full[0])
		return refuse(r, "layer 0 has no indexer by indexer_types, index_topk_pattern or "
				 "index_skip_topk_offset, and no layer before it whose choice it could use");
	for (int i = 0; i < r->c->n_layers && !r->arch->shares_index; i++)
		if (!r->c->layer_is_full[i])
			return refuse(r, "layer %d has no indexer by indexer_types, index_topk_pattern or "
					 "index_topk_freq; %s has one on every layer", i, r->arch->name);
	return 0;
}

/* ---- the rest -------------------------------------------------------------------------------------------------- */

static int read_eos(struct reader *r)
{
	const json_t *eos = member(r->root, "eos_token_id");
	size_t n = json_is_array(eos) ? json_array_size(eos) : 1;

	if (n < 1 || n > MODEL_MAX_EOS)
		return refuse(r, "eos_token_id has %zu entries, between 1 and %d are expected", n, MODEL_MAX_EOS);
	for (size_t i = 0; i < n; i++) {
		const json_t *id = json_is_array(eos) ? json_array_get(eos, i) : eos;

		if (!json_is_integer(id))
			return refuse(r, "eos_token_id is %s, an integer or an array of them is expected",
				      json_kind(id));
		if (json_integer_value(id) < 0 || json_integer_value(id) >= r->c->vocab)
			return refuse(r, "eos_token_id is %lld, but vocab_size is %d",
				      (long long)json_integer_value(id), r->c->vocab);
		r->c->eos[i] = (int32_t)json_integer_value(id);
	}
	r->c->n_eos = (int32_t)n;
	return 0;
}

/* Rows and columns are int32_t from here on. */
static int fits(const struct reader *r, const char *what, int64_t a, int64_t b)
{
	return a * b <= INT32_MAX ? 0 : refuse(r, "%s is %lld x %lld, more than %d", what, (long long)a, (long long)b,
					       INT32_MAX);
}

static int check_dimensions(const struct reader *r)
{
	const struct model_config *c = r->c;

	if (c->rope_dim % 2)
		return refuse(r, "qk_rope_head_dim is %d; rotation needs pairs", c->rope_dim);
	if (c->n_layers + c->n_mtp_layers > MODEL_MAX_LAYERS)
		return refuse(r, "num_hidden_layers %d and num_nextn_predict_layers %d are more than %d together",
			      c->n_layers, c->n_mtp_layers, MODEL_MAX_LAYERS);
	if (c->has_indexer && c->index_dim < c->rope_dim)
		return refuse(r, "index_head_dim is %d, less than qk_rope_head_dim %d", c->index_dim, c->rope_dim);
	if (c->has_indexer && !c->q_lora)
		return refuse(r, "q_lora_rank is absent, but the indexer of %s reads that vector", r->arch->name);
	if (fits(r, "num_attention_heads x (qk_nope_head_dim + qk_rope_head_dim)", c->n_heads,
		 (int64_t)c->nope_dim + c->rope_dim) ||
	    fits(r, "num_attention_heads x (qk_nope_head_dim + v_head_dim)", c->n_heads,
		 (int64_t)c->nope_dim + c->v_dim) ||
	    fits(r, "n_shared_experts x moe_intermediate_size", c->n_shared_experts, c->expert_dim))
		return -1;
	return 0;
}

static int check_router(const struct reader *r)
{
	const struct model_config *c = r->c;
	int32_t per_group;

	if (c->n_experts % c->n_groups)
		return refuse(r, "n_routed_experts is %d, no multiple of n_group %d", c->n_experts, c->n_groups);
	if (c->topk_groups > c->n_groups)
		return refuse(r, "topk_group is %d, more than n_group %d", c->topk_groups, c->n_groups);
	per_group = c->n_experts / c->n_groups;
	if (c->n_groups > 1 && per_group < 2)
		return refuse(r, "n_group is %d: a group of %d expert has no two best ones to be judged by",
			      c->n_groups, per_group);
	if (c->experts_per_token > c->topk_groups * per_group)
		return refuse(r, "num_experts_per_tok is %d, more than %d: n_routed_experts %d / n_group %d x topk_group %d",
			      c->experts_per_token, c->topk_groups * per_group, c->n_experts, c->n_groups,
			      c->topk_groups);
	return 0;
}

static void derive_attention_scale(struct model_config *c)
{
	double scale = 1 / sqrt((double)c->nope_dim + c->rope_dim), mscale = 1;

	if (c->rope.yarn && c->rope.mscale_all_dim > 0)
		mscale = yarn_mscale(c->rope.factor, c->rope.mscale_all_dim);
	c->attention_scale = (float)(scale * mscale * mscale);
}

static int read_architecture(struct reader *r)
{
	char known[256] = "";
	const char *name;

	if (json_get_string(&name, r->root, "model_type", r->name, "", r->err))
		return -1;
	for (int i = 0; i < N_ARCHITECTURES; i++) {
		snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
			 architectures[i].name);
		if (!strcmp(architectures[i].name, name))
			r->arch = &architectures[i];
	}
	if (!r->arch)
		return refuse(r, "model_type is \"%.64s\", an architecture this engine does not know; it knows %s", name,
			      known);
	snprintf(r->c->architecture, sizeof r->c->architecture, "%s", name);
	return 0;
}

static int read_all(struct reader *r, const struct model_options *opt)
{
	if (!json_is_object(r->root))
		return refuse(r, "the file holds %s, an object is expected", json_kind(r->root));
	if (read_architecture(r) || read_integers(r) || read_other_names(r) || read_numbers(r, opt) || read_fixed(r) ||
	    read_quantization(r) || read_attention_types(r) || read_rope(r) || read_interleaving(r) ||
	    read_flag(r, &r->c->mtp_shares_choice, "index_share_for_mtp_iteration", false) ||
	    read_dense_layers(r) || read_index_layers(r) || read_eos(r) || check_dimensions(r) || check_router(r))
		return -1;
	derive_attention_scale(r->c);
	return 0;
}

static int from_json(struct model_config *config, const char *name, const json_t *root, const struct model_options *opt,
		     struct err *err)
{
	struct reader r = {.c = config, .root = root, .name = name, .err = err};

	memset(config, 0, sizeof *config);
	return read_all(&r, opt);
}

int model_config_parse(struct model_config *config, const char *name, const char *text, size_t bytes,
		       const struct model_options *opt, struct err *err)
{
	json_t *root;
	int failed;

	if (json_parse(&root, name, text, bytes, err))
		return -1;
	failed = from_json(config, name, root, opt, err);
	json_decref(root);
	return failed;
}

int model_config_load(struct model_config *config, const char *dir, const struct model_options *opt, struct err *err)
{
	char *path = xasprintf("%s/config.json", dir);
	json_t *root;
	int failed = json_read(&root, path, MAX_FILE, err);

	if (!failed) {
		failed = from_json(config, path, root, opt, err);
		json_decref(root);
	}
	free(path);
	return failed;
}

/* ---- as text, and as numbers ----------------------------------------------------------------------------------- */

/* One letter a layer, as in index_topk_pattern. */
static void layer_letters(char out[MODEL_MAX_LAYERS + 1], const bool *is, int32_t n, char yes, char no)
{
	for (int32_t i = 0; i < n; i++)
		out[i] = is[i] ? yes : no;
	out[n] = '\0';
}

char *model_config_text(const struct model_config *c)
{
	char full[MODEL_MAX_LAYERS + 1], dense[MODEL_MAX_LAYERS + 1], eos[MODEL_MAX_EOS * 12] = "";

	layer_letters(full, c->layer_is_full, c->has_indexer ? c->n_layers : 0, 'F', 'S');
	layer_letters(dense, c->layer_is_dense, c->n_layers, 'D', 'E');
	for (int32_t i = 0; i < c->n_eos; i++)
		snprintf(eos + strlen(eos), sizeof eos - strlen(eos), " %d", c->eos[i]);
	return xasprintf(
		"architecture %s\nhidden %d\nn_layers %d\nvocab %d\nmax_positions %lld\ntied_head %d\nn_heads %d\n"
		"q_lora %d\nkv_lora %d\nnope_dim %d\nrope_dim %d\nv_dim %d\nattention_scale %a\nrope_theta %a\n"
		"rope_yarn %d\nrope_factor %a\nrope_original_positions %a\nrope_beta_fast %a\nrope_beta_slow %a\n"
		"rope_interleaved %d\nhas_indexer %d\nindex_n_heads %d\nindex_dim %d\nindex_topk %d\n"
		"index_rope_interleaved %d\nlayer_is_full %s\nlayer_is_dense %s\ndense_dim %d\nexpert_dim %d\n"
		"n_experts %d\nexperts_per_token %d\nn_shared_experts %d\nn_groups %d\ntopk_groups %d\n"
		"normalize_topk %d\nrouted_scale %a\nnorm_eps %a\nmla_norm_eps %a\nindex_norm_eps %a\neos%s\n",
		c->architecture, c->hidden, c->n_layers, c->vocab, (long long)c->max_positions, c->tied_head,
		c->n_heads, c->q_lora, c->kv_lora, c->nope_dim, c->rope_dim, c->v_dim, (double)c->attention_scale,
		c->rope.theta, c->rope.yarn, c->rope.factor, c->rope.original_positions, c->rope.beta_fast,
		c->rope.beta_slow, c->rope_interleaved, c->has_indexer, c->index_n_heads, c->index_dim,
		c->index_topk, c->index_rope_interleaved, full, dense, c->dense_dim, c->expert_dim, c->n_experts,
		c->experts_per_token, c->n_shared_experts, c->n_groups, c->topk_groups, c->normalize_topk,
		(double)c->routed_scale, (double)c->norm_eps, (double)c->mla_norm_eps, (double)c->index_norm_eps, eos);
}

static uint64_t product(int64_t a, int64_t b)
{
	return (uint64_t)a * (uint64_t)b;
}

static uint64_t attention_parameters(const struct model_config *c)
{
	int64_t query = (int64_t)c->n_heads * (c->nope_dim + c->rope_dim);
	uint64_t n = c->q_lora ? product(c->q_lora, c->hidden) + (uint64_t)c->q_lora + product(query, c->q_lora)
			       : product(query, c->hidden);

	n += product((int64_t)c->kv_lora + c->rope_dim, c->hidden) + (uint64_t)c->kv_lora;
	n += product((int64_t)c->n_heads * (c->nope_dim + c->v_dim), c->kv_lora);
	n += product((int64_t)c->n_heads * c->v_dim, c->hidden);
	return n + 2 * (uint64_t)c->hidden; /* the layer's two norms */
}

static uint64_t indexer_parameters(const struct model_config *c)
{
	return product((int64_t)c->index_n_heads * c->index_dim, c->q_lora) + product(c->index_dim, c->hidden) +
	       2 * (uint64_t)c->index_dim + product(c->index_n_heads, c->hidden);
}

/* A block in which n_experts experts take part, with the shared one, the whole router and its bias. */
static uint64_t moe_parameters(const struct model_config *c, int32_t n_experts)
{
	uint64_t expert = 3 * product(c->expert_dim, c->hidden);

	return expert * ((uint64_t)n_experts + (uint64_t)c->n_shared_experts) + product(c->n_experts, c->hidden) +
	       (uint64_t)c->n_experts;
}

struct model_parameters model_count_parameters(const struct model_config *c)
{
	uint64_t head = product(c->vocab, c->hidden), hidden = (uint64_t)c->hidden;
	struct model_parameters p = {.total = head * (c->tied_head ? 1 : 2) + hidden, .active = head + hidden};

	for (int32_t i = 0; i < c->n_layers; i++) {
		uint64_t both = attention_parameters(c) + (c->layer_is_full[i] ? indexer_parameters(c) : 0);

		if (c->layer_is_dense[i])
			both += 3 * product(c->dense_dim, c->hidden);
		p.total += both + (c->layer_is_dense[i] ? 0 : moe_parameters(c, c->n_experts));
		p.active += both + (c->layer_is_dense[i] ? 0 : moe_parameters(c, c->experts_per_token));
	}
	p.mtp = (uint64_t)c->n_mtp_layers *
		(attention_parameters(c) + (c->has_indexer ? indexer_parameters(c) : 0) +
		 moe_parameters(c, c->n_experts) +
		 2 * hidden * hidden + 3 * hidden); /* eh_proj; enorm, hnorm and the norm before its head */
	return p;
}
