#include "engine/plan_model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "config/file.h"
#include "config/json.h"
#include "config/mem.h"
#include "engine/checkpoint.h"
#include "engine/safetensors.h"

enum { MAX_FILE = 16 << 20, MOST = 1 << 24 /* of any dimension */ };

/* What a family's function reads from and writes to. */
struct counter {
	struct plan_model *m;
	const json_t *config; /* the text part, and that as text */
	const char *text;
	size_t bytes;
	const char *name;
	struct err *err;
	bool failed;          /* a key was missing or wrong: err says which */
};

static const char *const component_names[N_PLAN_COMPONENTS] = {
	[PLAN_EMBEDDING] = "embedding", [PLAN_HEAD] = "head", [PLAN_ATTENTION] = "attention", [PLAN_INDEXER] = "indexer",
	[PLAN_DENSE] = "dense", [PLAN_SHARED] = "shared", [PLAN_ROUTED] = "routed", [PLAN_ROUTER] = "router",
	[PLAN_NORMS] = "norms", [PLAN_MTP] = "mtp",
};

const char *plan_component_name(enum plan_component c)
{
	return component_names[c];
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static bool has(const struct counter *c, const char *key)
{
	const json_t *value = json_object_get(c->config, key);

	return value && !json_is_null(value);
}

static uint64_t get(struct counter *c, const char *key)
{
	int64_t value = 0;

	if (!c->failed && json_get_integer(&value, c->config, key, 0, (int64_t)1 << 32, c->name, "", c->err))
		c->failed = true;
	if (!c->failed && value > MOST && strcmp(key, "max_position_embeddings")) {
		err_set(c->err, ERR_FORMAT, "%s: %s is %lld, more than any dimension of a model", c->name, key, (long long)value);
		c->failed = true;
	}
	return (uint64_t)value;
}

static uint64_t get_or(struct counter *c, const char *key, uint64_t otherwise)
{
	return has(c, key) ? get(c, key) : otherwise;
}

/* The first of several names that is there. */
static uint64_t get_any(struct counter *c, const char *a, const char *b)
{
	return get(c, has(c, a) ? a : b);
}

static bool get_flag(const struct counter *c, const char *key, bool otherwise)
{
	const json_t *value = json_object_get(c->config, key);

	return json_is_boolean(value) ? json_is_true(value) : otherwise;
}

/* ---- what families share ------------------------------------------------------------------------------------------ */

static void add(struct counter *c, enum plan_component what, uint64_t all, uint64_t used)
{
	c->m->parameters[what] += all;
	c->m->used[what] += used;
}

static uint64_t swiglu(uint64_t hidden, uint64_t width)
{
	return 3 * hidden * width;
}

/* Embedding, head, final norm, and what says how far a context may reach. Returns hidden. */
static uint64_t count_ends(struct counter *c)
{
	uint64_t hidden = get(c, "hidden_size"), table = get(c, "vocab_size") * hidden;
	bool tied = get_flag(c, "tie_word_embeddings", false);

	c->m->hidden = (int64_t)hidden;
	c->m->n_layers = (int64_t)get(c, "num_hidden_layers");
	c->m->max_positions = (int64_t)get_or(c, "max_position_embeddings", 0);
	add(c, PLAN_EMBEDDING, table, 0);
	add(c, PLAN_HEAD, tied ? 0 : table, table);
	add(c, PLAN_NORMS, hidden, hidden);
	return hidden;
}

/* n layers of experts, `bias` counting one number for each. */
static void count_experts(struct counter *c, uint64_t n, uint64_t hidden, uint64_t width, uint64_t experts, uint64_t chosen,
			  uint64_t shared_width, bool bias)
{
	struct plan_model *m = c->m;

	if (!n)
		return;
	m->n_moe_layers += (int64_t)n;
	m->n_experts = (int64_t)experts;
	m->experts_per_token = (int64_t)chosen;
	m->expert_parameters = swiglu(hidden, width);
	add(c, PLAN_ROUTED, n * experts * m->expert_parameters, n * chosen * m->expert_parameters);
	add(c, PLAN_SHARED, n * swiglu(hidden, shared_width), n * swiglu(hidden, shared_width));
	add(c, PLAN_ROUTER, n * experts * (hidden + bias), n * experts * (hidden + bias));
}

static void count_attention(struct counter *c, uint64_t n, uint64_t of_layer)
{
	add(c, PLAN_ATTENTION, n * of_layer, n * of_layer);
}

static void count_norms(struct counter *c, uint64_t n, uint64_t of_layer)
{
	add(c, PLAN_NORMS, n * of_layer, n * of_layer);
}

/* Attention over all positions with K and V in n layers: scores and weighted sums. */
static void cost_kv(struct counter *c, uint64_t n, uint64_t heads, uint64_t kv_heads, uint64_t dim)
{
	c->m->kv_numbers += n * 2 * kv_heads * dim;
	c->m->unlimited_flops_per_key += n * 4 * heads * dim;
}

/* ---- families ----------------------------------------------------------------------------------------------------- */

/*
 * Multi-head latent attention, with or without an indexer, and experts behind a few dense layers:
 *   layer    h q + q + q H (nope + rope) + h (kv + rope) + kv + kv H (nope + v) + H v h    (q 0: h H (nope + rope))
 *   indexer  q I d + h d + 2 d + h I                                                       (full layers)
 *   MTP      a layer with experts and an indexer, 2 h h, three norms
 * A token's cost by key: attention 2 H (2 kv + rope) a layer, absorbed; indexer 2 I d a full layer.
 */
static void count_mla(struct counter *c, const struct model_config *k)
{
	struct plan_model *m = c->m;
	uint64_t h = (uint64_t)k->hidden, n = (uint64_t)k->n_layers, heads = (uint64_t)k->n_heads, q = (uint64_t)k->q_lora;
	uint64_t kv = (uint64_t)k->kv_lora, nope = (uint64_t)k->nope_dim, rope = (uint64_t)k->rope_dim, v = (uint64_t)k->v_dim;
	uint64_t index_heads = k->has_indexer ? (uint64_t)k->index_n_heads : 0, index_dim = k->has_indexer ? (uint64_t)k->index_dim : 0;
	uint64_t experts = (uint64_t)k->n_experts, width = (uint64_t)k->expert_dim, shared = (uint64_t)k->n_shared_experts * width;
	uint64_t attention = (q ? h * q + q + q * heads * (nope + rope) : h * heads * (nope + rope)) + h * (kv + rope) + kv +
			     kv * heads * (nope + v) + heads * v * h;
	uint64_t indexer = k->has_indexer ? q * index_heads * index_dim + h * index_dim + 2 * index_dim + h * index_heads : 0;
	uint64_t full = 0, dense = 0;

	for (int32_t i = 0; i < k->n_layers; i++) {
		full += k->layer_is_full[i];
		dense += k->layer_is_dense[i];
	}
	m->hidden = k->hidden;
	m->n_layers = k->n_layers;
	m->max_positions = k->max_positions;
	add(c, PLAN_EMBEDDING, (uint64_t)k->vocab * h, 0);
	add(c, PLAN_HEAD, k->tied_head ? 0 : (uint64_t)k->vocab * h, (uint64_t)k->vocab * h);
	count_attention(c, n, attention);
	count_norms(c, 1, 2 * n * h + h);
	add(c, PLAN_INDEXER, full * indexer, full * indexer);
	add(c, PLAN_DENSE, dense * swiglu(h, (uint64_t)k->dense_dim), dense * swiglu(h, (uint64_t)k->dense_dim));
	count_experts(c, n - dense, h, width, experts, (uint64_t)k->experts_per_token, shared, true);
	add(c, PLAN_MTP, (uint64_t)k->n_mtp_layers * (attention + indexer + 2 * h + experts * (swiglu(h, width) + h + 1) +
						      swiglu(h, shared) + 2 * h * h + 3 * h), 0);
	m->mla_layers = (int64_t)n;
	m->kv_lora = (int64_t)kv;
	m->rope_dim = (int64_t)rope;
	m->attended = k->has_indexer ? k->index_topk : 0;
	m->kv_numbers = n * (kv + rope);
	m->index_numbers = full * index_dim;
	m->index_flops_per_key = full * 2 * index_heads * index_dim;
	*(m->attended ? &m->attention_flops_per_key : &m->unlimited_flops_per_key) = n * 2 * heads * (2 * kv + rope);
}

/* What the engine runs is read as the engine reads it. */
static void count_ours(struct counter *c)
{
	if (model_config_parse(&c->m->config, c->name, c->text, c->bytes, NULL, c->err))
		c->failed = true;
	else
		count_mla(c, &c->m->config);
}

/* Mistral 4: the same layers, experts in all of them. */
static void count_mistral4(struct counter *c)
{
	struct model_config *k = xcalloc(1, sizeof *k);

	k->hidden = (int32_t)get(c, "hidden_size");
	k->n_layers = (int32_t)get(c, "num_hidden_layers");
	k->vocab = (int32_t)get(c, "vocab_size");
	k->max_positions = (int64_t)get_or(c, "max_position_embeddings", 0);
	k->tied_head = get_flag(c, "tie_word_embeddings", false);
	k->n_heads = (int32_t)get(c, "num_attention_heads");
	k->q_lora = (int32_t)get_or(c, "q_lora_rank", 0);
	k->kv_lora = (int32_t)get(c, "kv_lora_rank");
	k->nope_dim = (int32_t)get(c, "qk_nope_head_dim");
	k->rope_dim = (int32_t)get(c, "qk_rope_head_dim");
	k->v_dim = (int32_t)get(c, "v_head_dim");
	k->n_experts = (int32_t)get(c, "n_routed_experts");
	k->experts_per_token = (int32_t)get(c, "num_experts_per_tok");
	k->n_shared_experts = (int32_t)get_or(c, "n_shared_experts", 0);
	k->expert_dim = (int32_t)get(c, "moe_intermediate_size");
	k->dense_dim = (int32_t)get_or(c, "intermediate_size", 0);
	if (!c->failed && k->n_layers > MODEL_MAX_LAYERS) {
		err_set(c->err, ERR_FORMAT, "%s: num_hidden_layers is %d, more than %d", c->name, k->n_layers, MODEL_MAX_LAYERS);
		c->failed = true;
	}
	for (uint64_t i = 0, dense = get_or(c, "first_k_dense_replace", 0); !c->failed && i < dense && i < MODEL_MAX_LAYERS; i++)
		k->layer_is_dense[i] = true;
	if (!c->failed)
		count_mla(c, k);
	free(k);
}

/* Grouped-query attention: h H d + 2 h K d + H d h, and 2 d where q and k are normed (`gated`: h H d more). */
static uint64_t gqa(uint64_t h, uint64_t heads, uint64_t kv_heads, uint64_t d, bool gated, bool normed)
{
	return h * heads * d * (gated ? 2 : 1) + 2 * h * kv_heads * d + heads * d * h + (normed ? 2 * d : 0);
}

/* qwen3_moe, mixtral, granite and llama: grouped-query attention, experts in all layers or in none. */
static void count_gqa(struct counter *c)
{
	struct plan_model *m = c->m;
	uint64_t h = count_ends(c), n = (uint64_t)m->n_layers, heads = get(c, "num_attention_heads");
	uint64_t kv_heads = get_or(c, "num_key_value_heads", heads), d = get_or(c, "head_dim", heads ? h / heads : 0);
	uint64_t experts = has(c, "num_experts") ? get(c, "num_experts") : get_or(c, "num_local_experts", 0);
	bool normed = !strncmp(m->architecture, "qwen3", 5);

	count_attention(c, n, gqa(h, heads, kv_heads, d, false, normed));
	count_norms(c, n, 2 * h);
	cost_kv(c, n, heads, kv_heads, d);
	if (experts)
		count_experts(c, n, h, get_any(c, "moe_intermediate_size", "intermediate_size"), experts,
			      get(c, "num_experts_per_tok"), 0, false);
	else
		add(c, PLAN_DENSE, n * swiglu(h, get(c, "intermediate_size")), n * swiglu(h, get(c, "intermediate_size")));
}

/* Llama 4: every interleave_moe_layer_step-th layer has experts and a shared one, as wide as they. */
static void count_llama4(struct counter *c)
{
	struct plan_model *m = c->m;
	uint64_t h = count_ends(c), n = (uint64_t)m->n_layers, heads = get(c, "num_attention_heads");
	uint64_t kv_heads = get(c, "num_key_value_heads"), d = get_or(c, "head_dim", heads ? h / heads : 0);
	uint64_t step = get_or(c, "interleave_moe_layer_step", 1), sparse = step ? n / step : 0;
	uint64_t width = get(c, "intermediate_size"), dense = (n - sparse) * swiglu(h, get(c, "intermediate_size_mlp"));

	count_attention(c, n, gqa(h, heads, kv_heads, d, false, false));
	count_norms(c, n, 2 * h);
	cost_kv(c, n, heads, kv_heads, d);
	add(c, PLAN_DENSE, dense, dense);
	count_experts(c, sparse, h, width, get(c, "num_local_experts"), get(c, "num_experts_per_tok"), width, false);
}

/*
 * Qwen3.5: every full_attention_interval-th layer has gated attention, the others a gated DeltaNet, whose state does not grow
 * with the context:  h (2 K + 2 V) + 2 h heads + conv (2 K + V) + 2 heads + dim + V h, K and V being heads x dim of each
 * kind. Experts everywhere, one shared one with a gate of its own (h).
 */
static void count_qwen3_5(struct counter *c)
{
	struct plan_model *m = c->m;
	uint64_t h = count_ends(c), n = (uint64_t)m->n_layers, heads = get(c, "num_attention_heads");
	uint64_t kv_heads = get(c, "num_key_value_heads"), d = get(c, "head_dim"), every = get_or(c, "full_attention_interval", 4);
	uint64_t full = every ? n / every : n, v_heads = get(c, "linear_num_value_heads"), v_dim = get(c, "linear_value_head_dim");
	uint64_t k = get(c, "linear_num_key_heads") * get(c, "linear_key_head_dim"), v = v_heads * v_dim;
	uint64_t delta = h * (2 * k + 2 * v) + 2 * h * v_heads + get(c, "linear_conv_kernel_dim") * (2 * k + v) + 2 * v_heads + v_dim +
			 v * h;

	count_attention(c, full, gqa(h, heads, kv_heads, d, true, true));
	count_attention(c, n - full, delta);
	count_norms(c, n, 2 * h);
	cost_kv(c, full, heads, kv_heads, d);
	count_experts(c, n, h, get(c, "moe_intermediate_size"), get(c, "num_experts"), get(c, "num_experts_per_tok"),
		      get(c, "shared_expert_intermediate_size"), false);
	add(c, PLAN_ROUTER, n * h, n * h);
}

/*
 * DeepSeek-V4: one key-value head, queries through q_lora, outputs through o_groups low-rank products. Its compressors,
 * indexers and hyper-connections are not counted, which is 2 to 3 percent:
 *   h q + q + q H d + h d + d + (H d / groups) o_lora groups + groups o_lora h
 */
static void count_deepseek_v4(struct counter *c)
{
	struct plan_model *m = c->m;
	uint64_t h = count_ends(c), n = (uint64_t)m->n_layers, heads = get(c, "num_attention_heads"), d = get(c, "head_dim");
	uint64_t q = get(c, "q_lora_rank"), o = get(c, "o_lora_rank"), groups = get(c, "o_groups"), width = get(c, "moe_intermediate_size");

	count_attention(c, n, h * q + q + q * heads * d + h * d + d + heads * d * o + groups * o * h);
	count_norms(c, n, 2 * h);
	count_experts(c, n, h, width, get(c, "n_routed_experts"), get(c, "num_experts_per_tok"),
		      get_or(c, "n_shared_experts", 0) * width, true);
	m->attended = (int64_t)get_or(c, "index_topk", 0);
	m->kv_numbers = n * d;
	*(m->attended ? &m->attention_flops_per_key : &m->unlimited_flops_per_key) = n * 4 * heads * d;
}

static const struct {
	const char *model_type;
	bool runs;
	void (*count)(struct counter *c);
} families[] = {
	{"glm_moe_dsa", true, count_ours},
	{"deepseek_v3", true, count_ours},
	{"deepseek_v32", true, count_ours},
	{"kimi_k2", true, count_ours},
	{"glm4_moe_lite", true, count_ours},
	{"mistral4", false, count_mistral4},
	{"deepseek_v4", false, count_deepseek_v4},
	{"qwen3_moe", false, count_gqa},
	{"qwen3_5_moe_text", false, count_qwen3_5},
	{"llama4_text", false, count_llama4},
	{"mixtral", false, count_gqa},
	{"granite", false, count_gqa},
	{"llama", false, count_gqa},
};

enum { N_FAMILIES = sizeof families / sizeof families[0] };

const char *const plan_architectures[N_FAMILIES + 1] = {
	"glm_moe_dsa", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe_lite", "mistral4", "deepseek_v4", "qwen3_moe",
	"qwen3_5_moe_text", "llama4_text", "mixtral", "granite", "llama", NULL,
};

/* ---- from files --------------------------------------------------------------------------------------------------- */

static void add_up(struct plan_model *m)
{
	for (int i = 0; i < N_PLAN_COMPONENTS; i++) {
		m->total += i == PLAN_MTP ? 0 : m->parameters[i];
		m->active += m->used[i];
	}
	m->active_with_embedding = m->active + m->parameters[PLAN_EMBEDDING];
	/* Tied: the one table is counted as the head that a token uses. */
	if (!m->parameters[PLAN_HEAD])
		m->active_with_embedding = m->active;
}

/* The part that describes the text model, where one for images or sound stands beside it. */
static const json_t *text_part(const json_t *root)
{
	const json_t *text = json_object_get(root, "text_config");

	return json_is_object(text) && json_object_get(text, "model_type") ? text : root;
}

static int count(struct plan_model *m, const char *name, const json_t *root, struct err *err)
{
	struct counter c = {.m = m, .config = text_part(root), .name = name, .err = err};
	const char *type;
	char *text;

	*m = (struct plan_model){0};
	if (json_get_string(&type, c.config, "model_type", name, c.config == root ? "" : "text_config", err))
		return -1;
	snprintf(m->architecture, sizeof m->architecture, "%s", type);
	c.text = text = json_dumps(c.config, JSON_COMPACT);
	c.bytes = strlen(text);
	for (int i = 0; i < N_FAMILIES; i++)
		if (!strcmp(type, families[i].model_type)) {
			m->known = true;
			m->runs = families[i].runs;
			families[i].count(&c);
			add_up(m);
		}
	free(text);
	return c.failed ? -1 : 0;
}

int plan_model_parse(struct plan_model *m, const char *name, const char *text, size_t bytes, struct err *err)
{
	const char *method;
	json_t *root;
	int rc;

	if (json_parse(&root, name, text, bytes, err))
		return -1;
	rc = json_is_object(root) ? count(m, name, root, err)
				  : err_set(err, ERR_FORMAT, "%s: %s is outermost, an object is expected", name, json_kind(root));
	method = json_string_value(json_object_get(json_object_get(root, "quantization_config"), "quant_method"));
	m->int4_experts = !rc && method && !strcmp(method, "int4-g64");
	json_decref(root);
	return rc;
}

/* Numbers in tensors, scales of quantised weights not counted. */
static int count_headers(struct plan_model *m, const char *dir, struct err *err)
{
	struct checkpoint *files;

	if (checkpoint_open(&files, dir, err))
		return -1;
	for (size_t i = 0; i < files->n_tensors; i++) {
		const struct tensor *t = files->tensors[i];
		const char *end = strrchr(t->name, '.');
		uint64_t n = 1;

		if (end && (!strcmp(end, ".weight_scale_inv") || !strcmp(end, ".weight_scale")))
			continue;
		for (int d = 0; d < t->n_dims; d++)
			n *= (uint64_t)t->shape[d];
		m->total += n;
	}
	checkpoint_close(files);
	return 0;
}

int plan_model_load(struct plan_model *m, const char *path, struct err *err)
{
	char *file = NULL, *text = NULL;
	struct stat st;
	size_t bytes;
	int rc;

	if (stat(path, &st))
		return err_errno(err, errno, "look at %s", path);
	file = S_ISDIR(st.st_mode) ? xasprintf("%s/config.json", path) : xstrdup(path);
	rc = file_read(&text, &bytes, file, MAX_FILE, err) || plan_model_parse(m, file, text, bytes, err);
	if (!rc && !m->known) {
		if (S_ISDIR(st.st_mode) && checkpoint_exists(path))
			rc = count_headers(m, path, err);
		else
			rc = err_set(err, ERR_FORMAT, "%s: architecture \"%s\" is not known, and there are no safetensors files beside "
				     "it to count", file, m->architecture);
	}
	free(text);
	free(file);
	return rc;
}
