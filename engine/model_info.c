#include "engine/model_info.h"

#include "config/json.h"
#include "engine/checkpoint.h"
#include "engine/layout.h"
#include "engine/model.h"

/* All of it is gathered as one JSON object first; the lines for people are printed from that. */

static void put_integer(json_t *to, const char *key, uint64_t n)
{
	json_object_set_new(to, key, json_integer((json_int_t)n));
}

static json_t *shapes(const struct model_config *c)
{
	const struct {
		const char *key;
		int32_t value;
	} all[] = {
		{"hidden_size", c->hidden}, {"num_hidden_layers", c->n_layers},
		{"num_nextn_predict_layers", c->n_mtp_layers}, {"vocab_size", c->vocab},
		{"num_attention_heads", c->n_heads}, {"q_lora_rank", c->q_lora}, {"kv_lora_rank", c->kv_lora},
		{"qk_nope_head_dim", c->nope_dim}, {"qk_rope_head_dim", c->rope_dim}, {"v_head_dim", c->v_dim},
		{"intermediate_size", c->dense_dim}, {"moe_intermediate_size", c->expert_dim},
		{"n_routed_experts", c->n_experts}, {"num_experts_per_tok", c->experts_per_token},
		{"n_shared_experts", c->n_shared_experts}, {"n_group", c->n_groups}, {"topk_group", c->topk_groups},
		{"index_n_heads", c->index_n_heads}, {"index_head_dim", c->index_dim}, {"index_topk", c->index_topk},
	};
	size_t n = sizeof all / sizeof all[0] - (c->has_indexer ? 0 : 3);
	json_t *to = json_object();

	for (size_t i = 0; i < n; i++)
		put_integer(to, all[i].key, (uint64_t)all[i].value);
	put_integer(to, "max_position_embeddings", (uint64_t)c->max_positions);
	return to;
}

/* "FFFSSSF...": F a full layer, S one that shares; "" without an indexer. */
static json_t *schedule(const struct model_config *c)
{
	char letters[MODEL_MAX_LAYERS];
	size_t n = c->has_indexer ? (size_t)c->n_layers : 0;

	for (size_t i = 0; i < n; i++)
		letters[i] = c->layer_is_full[i] ? 'F' : 'S';
	return json_stringn(letters, n);
}

static json_t *parameters(const struct model_config *c)
{
	struct model_parameters p = model_count_parameters(c);
	json_t *to = json_object();

	put_integer(to, "total", p.total);
	put_integer(to, "mtp", p.mtp);
	put_integer(to, "active", p.active);
	return to;
}

/* One token in the store: latents of all layers, index keys of the full ones. */
static json_t *record_bytes(const struct model_config *c)
{
	static const enum latent_format formats[] = {LATENTS_BF16, LATENTS_FP8};
	json_t *to = json_object();

	for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
		struct layout *l = layout_new(c, formats[i]);
		json_t *one = json_object();

		put_integer(one, "per_layer", l->row_bytes);
		put_integer(one, "latents", l->row_bytes * (size_t)l->n_layers);
		put_integer(one, "index_keys", l->index_key_bytes * (size_t)l->n_index_layers);
		json_object_set_new(to, latent_format_name(formats[i]), one);
		layout_free(l);
	}
	return to;
}

static json_t *bytes_by_kind(const struct model_bytes *b)
{
	const struct {
		const char *key;
		uint64_t bytes;
	} all[] = {
		{"embedding", b->embedding}, {"head", b->head}, {"attention", b->attention}, {"indexer", b->indexer},
		{"norms", b->norms}, {"dense", b->dense}, {"shared", b->shared}, {"routed", b->routed},
		{"router", b->router}, {"mtp", b->mtp}, {"other", b->other},
	};
	json_t *to = json_object();
	uint64_t total = 0;

	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		put_integer(to, all[i].key, all[i].bytes);
		total += all[i].bytes;
	}
	put_integer(to, "total", total);
	return to;
}

/* Bytes of the files by dtype, every tensor counted. */
static json_t *bytes_by_dtype(const struct checkpoint *files)
{
	json_t *to = json_object();

	for (size_t i = 0; i < files->n_tensors; i++) {
		const struct tensor *t = files->tensors[i];
		json_int_t before = json_integer_value(json_object_get(to, t->dtype));

		json_object_set_new(to, t->dtype, json_integer(before + (json_int_t)t->bytes));
	}
	return to;
}

static int add_files(json_t *to, const char *dir, struct err *err)
{
	struct checkpoint *files;
	struct model *m;

	if (model_open_headers(&m, dir, NULL, err))
		return -1;
	json_object_set_new(to, "bytes", bytes_by_kind(&m->bytes));
	put_integer(to, "n_tensors", m->n_tensors);
	model_close(m);
	if (checkpoint_open(&files, dir, err))
		return -1;
	put_integer(to, "n_files", files->n_shards);
	json_object_set_new(to, "formats", bytes_by_dtype(files));
	checkpoint_close(files);
	return 0;
}

static int gather(json_t *to, const char *dir, struct err *err)
{
	struct model_config c;

	if (model_config_load(&c, dir, NULL, err))
		return -1;
	json_object_set_new(to, "architecture", json_string(c.architecture));
	json_object_set_new(to, "shapes", shapes(&c));
	json_object_set_new(to, "index_schedule", schedule(&c));
	json_object_set_new(to, "parameters", parameters(&c));
	json_object_set_new(to, "bytes_per_token", record_bytes(&c));
	json_object_set_new(to, "bytes", json_null());
	return checkpoint_exists(dir) ? add_files(to, dir, err) : 0;
}

/* ---- for people ------------------------------------------------------------------------------------------------ */

static const char *grouped(char out[32], uint64_t n)
{
	char digits[24];
	int length = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n), at = 0;

	for (int i = 0; i < length; i++) {
		if (i && (length - i) % 3 == 0)
			out[at++] = ',';
		out[at++] = digits[i];
	}
	out[at] = '\0';
	return out;
}

static uint64_t integer(const json_t *from, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(from, key));
}

static void print_numbers(FILE *out, const char *title, const json_t *from)
{
	const char *key;
	json_t *value;
	char text[32];

	fprintf(out, "%s\n", title);
	json_object_foreach((json_t *)from, key, value)
		fprintf(out, "  %-26s %22s\n", key, grouped(text, (uint64_t)json_integer_value(value)));
}

static void print_records(FILE *out, const json_t *all)
{
	const char *format;
	json_t *one;
	char a[32], b[32], c[32];

	fprintf(out, "stored bytes per token\n");
	json_object_foreach((json_t *)all, format, one)
		fprintf(out, "  %-6s latents %s (%s a layer), index keys %s\n", format,
			grouped(a, integer(one, "latents")),
			grouped(b, integer(one, "per_layer")),
			grouped(c, integer(one, "index_keys")));
}

static void print_for_people(FILE *out, const json_t *info)
{
	const char *layers = json_string_value(json_object_get(info, "index_schedule"));
	char a[32], b[32];

	fprintf(out, "%s\n", json_string_value(json_object_get(info, "architecture")));
	print_numbers(out, "shapes", json_object_get(info, "shapes"));
	fprintf(out, "indexer by layer (F full, S shares the last full one's choice)\n  %s\n", *layers ? layers : "none");
	print_numbers(out, "parameters", json_object_get(info, "parameters"));
	print_records(out, json_object_get(info, "bytes_per_token"));
	if (json_is_null(json_object_get(info, "bytes"))) {
		fprintf(out, "no safetensors files here: described from config.json alone\n");
		return;
	}
	print_numbers(out, "bytes on disk", json_object_get(info, "bytes"));
	print_numbers(out, "bytes by dtype", json_object_get(info, "formats"));
	fprintf(out, "%s tensors in %s files\n", grouped(a, integer(info, "n_tensors")),
		grouped(b, integer(info, "n_files")));
}

int model_info_print(FILE *out, const char *dir, int json, struct err *err)
{
	json_t *info = json_object();
	int failed = gather(info, dir, err);

	if (!failed && json) {
		json_dumpf(info, out, JSON_COMPACT);
		fputc('\n', out);
	} else if (!failed) {
		print_for_people(out, info);
	}
	json_decref(info);
	return failed;
}
