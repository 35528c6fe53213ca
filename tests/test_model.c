/* Checkpoints opened: good ones tensor by tensor, and broken ones by the sentence their user reads. Every broken one
 * is a golden checkpoint with one thing changed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "config/file.h"
#include "config/json.h"
#include "config/mem.h"
#include "engine/checkpoint.h"
#include "engine/model.h"
#include "engine/model_info.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temp_dir.h"

static const char *const golden[] = {"glm52", "glm52-fp8", "glm52-fused", "glm52-group", "glm5", "deepseek_v3",
				     "deepseek_v32", "kimi_k2", "glm4_moe_lite"};

/* ---- a checkpoint to change ------------------------------------------------------------------------------------ */

struct copy {
	char *dir;
	json_t *config;
	struct safetensors_writer tensors;
};

static char *golden_path(const char *name, const char *file)
{
	return xasprintf("tests/golden/%s/%s", name, file);
}

/* Every tensor of a golden checkpoint, and its config; to be changed, then saved as one file. */
static struct copy copy_of(const char *name)
{
	struct copy c = {.dir = temp_dir_new()};
	char *config = golden_path(name, "config.json"), *dir = golden_path(name, "");
	struct checkpoint *files = NULL;
	struct err err;

	if (json_read(&c.config, config, 1 << 20, &err) || checkpoint_open(&files, dir, &err))
		fail_msg("%s", err.text);
	for (size_t i = 0; i < files->n_shards; i++)
		writer_load(&c.tensors, files->shards[i].file.path);
	checkpoint_close(files);
	free(config);
	free(dir);
	return c;
}

static void free_copy(struct copy *c)
{
	temp_dir_free(c->dir);
	json_decref(c->config);
	writer_free(&c->tensors);
}

static void write_text(const struct copy *c, const char *name, const char *text)
{
	free(temp_text(c->dir, name, text));
}

static void save_config(const struct copy *c)
{
	char *text = json_dumps(c->config, 0);

	write_text(c, "config.json", text);
	free(text);
}

static void save(const struct copy *c)
{
	char *path = temp_path(c->dir, "model.safetensors");

	save_config(c);
	writer_save(&c->tensors, path);
	free(path);
}

/* Cut the tensors in two shards after the first n, with an index. */
static json_t *save_shards(struct copy *c, size_t n)
{
	static const char *const names[] = {"a.safetensors", "b.safetensors"};
	json_t *map = json_object();

	save_config(c);
	for (int i = 0; i < 2; i++) {
		size_t first = i ? n : 0, end = i ? c->tensors.n_tensors : n;
		struct safetensors_writer part = {.tensors = c->tensors.tensors + first, .n_tensors = end - first};
		char *path = temp_path(c->dir, names[i]);

		writer_save(&part, path);
		free(path);
		for (size_t j = 0; j < part.n_tensors; j++)
			json_object_set_new(map, part.tensors[j].name, json_string(names[i]));
	}
	return json_pack("{s:o}", "weight_map", map);
}

static void save_index(const struct copy *c, json_t *index)
{
	char *text = json_dumps(index, 0);

	write_text(c, "model.safetensors.index.json", text);
	free(text);
	json_decref(index);
}

static struct model *open_good(const char *dir)
{
	struct model *m;
	struct err err;

	if (model_open(&m, dir, NULL, &err))
		fail_msg("%s", err.text);
	return m;
}

static struct model *open_golden(const char *name)
{
	char *dir = golden_path(name, "");
	struct model *m = open_good(dir);

	free(dir);
	return m;
}

/* Opening fails, and the sentence has all of up to four parts. */
static void assert_refused(const char *dir, const char *a, const char *b, const char *c, const char *d)
{
	const char *parts[] = {a, b, c, d};
	struct model *m;
	struct err err = {0};

	if (!model_open(&m, dir, NULL, &err))
		fail_msg("opened, though \"%s\"", a);
	for (int i = 0; i < 4; i++)
		if (parts[i] && !strstr(err.text, parts[i]))
			fail_msg("\"%s\" does not say \"%s\"", err.text, parts[i]);
	assert_in_range(err.code, ERR_FAILED, N_ERR_CODES - 1);
}

static uint64_t sum(const struct model_bytes *b)
{
	return b->embedding + b->head + b->attention + b->indexer + b->norms + b->dense + b->shared + b->routed +
	       b->router + b->mtp + b->other;
}

/* ---- good ones ------------------------------------------------------------------------------------------------- */

static void every_byte_of_a_good_checkpoint_is_accounted_for(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof golden / sizeof golden[0]; i++) {
		struct copy c = copy_of(golden[i]);
		struct model *m = open_golden(golden[i]), *headers;
		char *dir = golden_path(golden[i], "");
		uint64_t bytes = 0;

		for (size_t j = 0; j < c.tensors.n_tensors; j++)
			bytes += c.tensors.tensors[j].bytes;
		assert_int_equal(sum(&m->bytes), bytes);
		assert_int_equal(m->bytes.other, 0);
		assert_int_equal(m->n_tensors, c.tensors.n_tensors);
		assert_int_equal((uintptr_t)m->embedding.data % 64, 0);
		assert_int_equal(model_open_headers(&headers, dir, NULL, NULL), 0);
		assert_memory_equal(&headers->bytes, &m->bytes, sizeof m->bytes);
		assert_true(m->loaded_bytes > 0);
		assert_int_equal(headers->loaded_bytes, m->loaded_bytes);
		assert_null(headers->embedding.data);
		assert_int_equal(headers->layers[0].o.rows, m->config.hidden);
		model_close(headers);
		model_close(m);
		free_copy(&c);
		free(dir);
	}
}

static void assert_same_bytes(const void *data, const struct written_tensor *t)
{
	assert_memory_equal(data, t->data, t->bytes);
}

static void tensors_go_where_their_names_say(void **state)
{
	struct copy c = copy_of("glm52");
	struct model *m = open_golden("glm52");
	const struct layer *l = &m->layers[6];
	const uint16_t *norm = (const void *)writer_find(&c.tensors, "model.layers.6.self_attn.indexer.k_norm.bias")->data;

	(void)state;
	assert_same_bytes(m->embedding.data, writer_find(&c.tensors, "model.embed_tokens.weight"));
	assert_same_bytes(m->head.data, writer_find(&c.tensors, "lm_head.weight"));
	assert_same_bytes(l->kv_b.data, writer_find(&c.tensors, "model.layers.6.self_attn.kv_b_proj.weight"));
	assert_same_bytes(l->index_weights.data,
			  writer_find(&c.tensors, "model.layers.6.self_attn.indexer.weights_proj.weight"));
	assert_same_bytes(l->experts[7].down.data, writer_find(&c.tensors, "model.layers.6.mlp.experts.7.down_proj.weight"));
	assert_same_bytes(l->mlp.up.data, writer_find(&c.tensors, "model.layers.6.mlp.shared_experts.up_proj.weight"));
	assert_int_equal(l->q_a.dtype, DTYPE_BF16);
	assert_null(l->q_a.scale);
	assert_null(m->layers[3].index_q.data); /* a shared layer has none */
	assert_null(m->layers[0].experts);
	for (int i = 0; i < m->config.index_dim; i++) {
		uint32_t bits;

		memcpy(&bits, &l->index_k_norm_bias[i], sizeof bits);
		assert_int_equal(bits, (uint32_t)norm[i] << 16);
	}
	model_close(m);
	free_copy(&c);
}

static void fp8_weights_come_with_their_scales(void **state)
{
	struct copy c = copy_of("glm52-fp8");
	struct model *m = open_golden("glm52-fp8");
	const struct weight *w = &m->layers[0].kv_a;

	(void)state;
	assert_int_equal(w->dtype, DTYPE_F8_E4M3);
	assert_int_not_equal(w->rows % WEIGHT_BLOCK, 0); /* a partial edge block */
	assert_same_bytes(w->data, writer_find(&c.tensors, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"));
	assert_same_bytes(w->scale, writer_find(&c.tensors, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"));
	assert_int_equal(m->layers[0].index_weights.dtype, DTYPE_BF16); /* whatever modules_to_not_convert says */
	model_close(m);
	free_copy(&c);
}

static void stacked_experts_are_views_of_their_tensors(void **state)
{
	struct copy c = copy_of("glm52-fused");
	struct model *m = open_golden("glm52-fused");
	int32_t dim = m->config.expert_dim, hidden = m->config.hidden, i = m->config.n_layers - 1;
	char *name = xasprintf("model.layers.%d.mlp.experts.gate_up_proj", i);
	const struct written_tensor *t = writer_find(&c.tensors, name);
	size_t matrix = (size_t)dim * (size_t)hidden * 2; /* bytes, in bf16 */

	(void)state;
	for (int32_t e = 0; e < m->config.n_experts; e++) {
		const struct expert *x = &m->layers[i].experts[e];

		assert_int_equal(x->gate.rows, dim);
		assert_memory_equal(x->gate.data, t->data + 2 * (size_t)e * matrix, matrix);
		assert_memory_equal(x->up.data, t->data + (2 * (size_t)e + 1) * matrix, matrix);
		assert_int_equal(x->up.first_row, dim);
	}
	free(name);
	model_close(m);
	free_copy(&c);
}

/* F16 to float32: normal, subnormal, negative, largest, minus zero. */
static void half_precision_vectors_are_widened_exactly(void **state)
{
	static const uint16_t halves[] = {0x3c00, 0x0001, 0xc000, 0x7bff, 0x8000, 0x03ff, 0x0400};
	static const float floats[] = {1, 0x1p-24f, -2, 65504, -0.0f, 0x1.ff8p-15f, 0x1p-14f};
	struct copy c = copy_of("glm4_moe_lite");
	struct model *m;

	(void)state;
	memcpy(writer_find(&c.tensors, "model.norm.weight")->data, halves, sizeof halves);
	save(&c);
	m = open_good(c.dir);
	assert_memory_equal(m->final_norm, floats, sizeof floats);
	model_close(m);
	free_copy(&c);
}

static void add_zeros(struct copy *c, const char *name, const char *dtype, int n_dims, int64_t d0, int64_t d1, int64_t d2,
		      size_t element)
{
	int64_t shape[3] = {d0, d1, d2};
	size_t n = (size_t)d0 * (size_t)(n_dims > 1 ? d1 : 1) * (size_t)(n_dims > 2 ? d2 : 1);

	writer_add(&c->tensors, name, dtype, n_dims, shape, NULL, n * element);
}

/* Stacked FP8 experts whose up rows begin inside a block: the view remembers where. */
static void stacked_fp8_experts_share_blocks_between_gate_and_up(void **state)
{
	struct copy c = copy_of("glm52-fused");
	int64_t e = json_integer_value(json_object_get(c.config, "n_routed_experts"));
	int64_t f = json_integer_value(json_object_get(c.config, "moe_intermediate_size"));
	int64_t h = json_integer_value(json_object_get(c.config, "hidden_size"));
	int64_t n = json_integer_value(json_object_get(c.config, "num_hidden_layers")) - 1;
	char *both = xasprintf("model.layers.%d.mlp.experts.gate_up_proj", (int)n);
	char *scale = xasprintf("%s.weight_scale_inv", both), *weight = xasprintf("%s.weight", both);
	char *down = xasprintf("model.layers.%d.mlp.experts.down_proj", (int)n), *down2 = xasprintf("%s.weight", down);
	struct model *m;
	const struct expert *x;

	(void)state;
	writer_remove(&c.tensors, both); /* the names may end in .weight */
	add_zeros(&c, weight, "F8_E4M3", 3, e, 2 * f, h, 1);
	add_zeros(&c, scale, "F32", 3, e, (2 * f + 127) / 128, (h + 127) / 128, 4);
	writer_remove(&c.tensors, down);
	add_zeros(&c, down2, "BF16", 3, e, h, f, 2);
	save(&c);
	m = open_good(c.dir);
	x = &m->layers[n].experts[e - 1];
	assert_int_equal(x->gate.dtype, DTYPE_F8_E4M3);
	assert_ptr_equal(x->gate.scale, x->up.scale);
	assert_int_equal(x->up.first_row, f);
	assert_int_equal(x->up.scale - m->layers[n].experts[0].up.scale, (e - 1) * ((2 * f + 127) / 128) * ((h + 127) / 128));
	model_close(m);
	free(both);
	free(scale);
	free(weight);
	free(down);
	free(down2);
	free_copy(&c);
}

static void threads_and_shards_do_not_change_what_is_read(void **state)
{
	struct model_options opt = {.n_threads = 5};
	struct copy c = copy_of("glm52");
	struct model *one = open_golden("glm52"), *many;
	struct err err;
	char *tokenizer;
	size_t n;

	(void)state;
	if (model_open(&many, "tests/golden/glm52", &opt, &err))
		fail_msg("%s", err.text);
	assert_int_equal(one->loaded_bytes, many->loaded_bytes);
	assert_memory_equal(one->fingerprint, many->fingerprint, MODEL_ID_BYTES);
	for (int i = 0; i < one->config.n_layers; i++)
		assert_memory_equal(one->layers[i].o.data, many->layers[i].o.data, weight_bytes(&one->layers[i].o));
	model_close(many);
	assert_int_equal(file_read(&tokenizer, &n, "tests/golden/glm52/tokenizer.json", 1 << 20, &err), 0);
	write_text(&c, "tokenizer.json", tokenizer);
	save(&c); /* one file in place of three */
	many = open_good(c.dir);
	assert_memory_equal(one->fingerprint, many->fingerprint, MODEL_ID_BYTES);
	model_close(many);
	model_close(one);
	free(tokenizer);
	free_copy(&c);
}

static void the_head_may_be_the_embedding(void **state)
{
	struct copy c = copy_of("glm4_moe_lite");
	struct model *m;

	(void)state;
	writer_remove(&c.tensors, "lm_head.weight");
	json_object_set_new(c.config, "tie_word_embeddings", json_true());
	save(&c);
	m = open_good(c.dir);
	assert_ptr_equal(m->head.data, m->embedding.data);
	assert_int_equal(m->bytes.head, 0);
	model_close(m);
	free_copy(&c);
}

static void queries_may_come_straight_from_q_proj(void **state)
{
	struct copy c = copy_of("deepseek_v3");
	int64_t rows = 0, hidden = json_integer_value(json_object_get(c.config, "hidden_size"));
	int n = (int)json_integer_value(json_object_get(c.config, "num_hidden_layers"));
	struct model *m;

	(void)state;
	for (int i = 0; i < n; i++) {
		static const char *const gone[] = {"q_a_proj", "q_a_layernorm", "q_b_proj"};
		char name[96];

		for (int j = 0; j < 3; j++) {
			snprintf(name, sizeof name, "model.layers.%d.self_attn.%s.weight", i, gone[j]);
			rows = writer_find(&c.tensors, name)->shape[0];
			writer_remove(&c.tensors, name);
		}
		snprintf(name, sizeof name, "model.layers.%d.self_attn.q_proj.weight", i);
		add_zeros(&c, name, "BF16", 2, rows, hidden, 0, 2);
	}
	json_object_set_new(c.config, "q_lora_rank", json_null());
	save(&c);
	m = open_good(c.dir);
	assert_null(m->layers[0].q_a.data);
	assert_null(m->layers[0].q_a_norm);
	assert_int_equal(m->layers[0].q_b.cols, hidden);
	model_close(m);
	free_copy(&c);
}

static void what_is_not_used_is_counted_by_what_it_is(void **state)
{
	struct copy c = copy_of("glm52");
	struct model *m, *before = open_golden("glm52");

	(void)state;
	add_zeros(&c, "model.layers.3.self_attn.indexer.wk.weight", "BF16", 2, 20, 44, 0, 2); /* layer 3 shares */
	add_zeros(&c, "model.layers.11.embed_tokens.weight", "BF16", 2, 350, 44, 0, 2);        /* MTP's own copy */
	add_zeros(&c, "model.layers.4.self_attn.rotary_emb.inv_freq", "Q9", 1, 4, 0, 0, 4);    /* a dtype nobody knows */
	save(&c);
	m = open_good(c.dir);
	assert_int_equal(m->bytes.indexer, before->bytes.indexer + 20 * 44 * 2);
	assert_int_equal(m->bytes.mtp, before->bytes.mtp + 350 * 44 * 2);
	assert_int_equal(m->bytes.other, 16);
	assert_int_equal(m->loaded_bytes, before->loaded_bytes);
	model_close(m);
	model_close(before);
	free_copy(&c);
}

/* ---- what the fingerprint knows -------------------------------------------------------------------------------- */

static void print_of(uint8_t out[MODEL_ID_BYTES], const struct copy *c)
{
	struct model *m;

	save(c);
	m = open_good(c->dir);
	memcpy(out, m->fingerprint, MODEL_ID_BYTES);
	model_close(m);
}

static void the_fingerprint_changes_with_every_part_and_with_no_other(void **state)
{
	struct copy c = copy_of("glm4_moe_lite");
	uint8_t first[MODEL_ID_BYTES], next[MODEL_ID_BYTES];
	struct written_tensor *t, swap;

	(void)state;
	print_of(first, &c);
	json_object_set_new(c.config, "initializer_range", json_real(0.5)); /* nobody reads it */
	swap = c.tensors.tensors[0];                                         /* nor the order in the file */
	c.tensors.tensors[0] = c.tensors.tensors[3];
	c.tensors.tensors[3] = swap;
	print_of(next, &c);
	assert_memory_equal(first, next, MODEL_ID_BYTES);

	t = writer_find(&c.tensors, "model.layers.1.mlp.experts.0.up_proj.weight");
	t->data[t->bytes / 2] ^= 1;
	print_of(next, &c);
	assert_memory_not_equal(first, next, MODEL_ID_BYTES);
	t->data[t->bytes / 2] ^= 1;

	json_object_set_new(c.config, "routed_scaling_factor", json_real(1.75));
	print_of(next, &c);
	assert_memory_not_equal(first, next, MODEL_ID_BYTES);
	json_object_set_new(c.config, "routed_scaling_factor", json_real(1.8));
	print_of(next, &c);
	assert_memory_equal(first, next, MODEL_ID_BYTES);

	write_text(&c, "tokenizer.json", "{}");
	print_of(next, &c);
	assert_memory_not_equal(first, next, MODEL_ID_BYTES);
	free_copy(&c);
}

/* ---- broken ones ----------------------------------------------------------------------------------------------- */

static void a_tensor_that_does_not_fit_is_named_with_both_shapes(void **state)
{
	struct copy c = copy_of("glm52");
	struct written_tensor *t = writer_find(&c.tensors, "model.layers.2.self_attn.q_a_proj.weight");
	int64_t rows = t->shape[0];

	(void)state;
	t->shape[0] = t->shape[1];
	t->shape[1] = rows;
	save(&c);
	assert_refused(c.dir, "/model.safetensors: tensor model.layers.2.self_attn.q_a_proj.weight",
		       "has shape [44, 28], but config.json makes it [28, 44]", "q_lora_rank x hidden_size",
		       "do not belong together");
	t->shape[0] = rows * t->shape[0];
	t->n_dims = 1;
	save(&c);
	assert_refused(c.dir, "has shape [1232], but config.json makes it [28, 44]", NULL, NULL, NULL);
	free_copy(&c);
}

static void a_tensor_that_is_missing_is_named(void **state)
{
	static const char *const names[] = {
		"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight",
		"model.layers.10.input_layernorm.weight", "model.layers.6.self_attn.indexer.k_norm.bias",
		"model.layers.4.mlp.gate.e_score_correction_bias", "model.layers.4.mlp.experts.7.down_proj.weight",
	};

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		struct copy c = copy_of("glm52");
		char *says = xasprintf("tensor %s (", names[i]);

		writer_remove(&c.tensors, names[i]);
		save(&c);
		assert_refused(c.dir, says, "is missing", c.dir, NULL);
		free(says);
		free_copy(&c);
	}
}

/* Element (row, column) of a tensor set to the bytes of a value that is not finite. */
static void assert_value_refused(const char *from, const char *name, size_t at, const void *value, size_t bytes,
				 const char *where)
{
	struct copy c = copy_of(from);
	char *says = xasprintf("tensor %s holds a NaN or infinity at %s", name, where);

	memcpy(writer_find(&c.tensors, name)->data + at * bytes, value, bytes);
	save(&c);
	assert_refused(c.dir, says, "/model.safetensors", "damaged", NULL);
	free(says);
	free_copy(&c);
}

static void values_that_are_not_finite_are_named_by_row_and_column(void **state)
{
	static const uint16_t bf16_nan = 0x7fc0, bf16_minus_infinity = 0xff80, f16_infinity = 0x7c00;
	static const uint8_t e4m3_nan = 0xff, e4m3_other_nan = 0x7f;
	static const uint32_t f32_infinity = 0x7f800000;

	(void)state;
	assert_value_refused("glm52", "model.embed_tokens.weight", 349 * 44 + 43, &bf16_nan, 2, "row 349, column 43");
	assert_value_refused("glm52", "model.layers.7.mlp.experts.3.gate_proj.weight", 44 + 5, &bf16_minus_infinity, 2,
			     "row 1, column 5");
	assert_value_refused("glm52", "model.layers.0.self_attn.q_a_layernorm.weight", 3, &bf16_nan, 2, "row 0, column 3");
	assert_value_refused("glm4_moe_lite", "model.norm.weight", 2, &f16_infinity, 2, "row 0, column 2");
	assert_value_refused("glm5", "model.norm.weight", 0, &f32_infinity, 4, "row 0, column 0");
	assert_value_refused("glm5", "model.layers.0.mlp.gate_proj.weight", 1, &f32_infinity, 4, "row 0, column 1");
	assert_value_refused("glm52-fp8", "model.layers.0.self_attn.kv_b_proj.weight", 7, &e4m3_nan, 1, "row 0, column 7");
	assert_value_refused("glm52-fp8", "model.layers.0.self_attn.kv_b_proj.weight", 0, &e4m3_other_nan, 1,
			     "row 0, column 0");
	assert_value_refused("glm52-fp8", "model.layers.0.self_attn.kv_b_proj.weight_scale_inv", 0, &f32_infinity, 4,
			     "row 0, column 0");
}

static void scales_must_be_there_fit_and_belong(void **state)
{
	static const char kv_a[] = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight";
	static const char scale[] = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv";
	struct copy c = copy_of("glm52-fp8");
	struct written_tensor *t = writer_find(&c.tensors, scale);

	(void)state;
	t->n_dims = 1;
	t->shape[0] = (int64_t)t->bytes / 4;
	save(&c);
	assert_refused(c.dir, scale, "has shape [", "128 x 128 block", NULL);
	strcpy(t->dtype, "I32");
	t->n_dims = 2;
	t->shape[0] = (writer_find(&c.tensors, kv_a)->shape[0] + 127) / 128;
	t = writer_find(&c.tensors, scale);
	t->shape[1] = (int64_t)t->bytes / 4 / t->shape[0];
	save(&c);
	assert_refused(c.dir, scale, "has dtype I32", NULL, NULL);
	writer_remove(&c.tensors, scale);
	save(&c);
	assert_refused(c.dir, scale, "is missing", NULL, NULL);
	free_copy(&c);

	c = copy_of("glm52");
	add_zeros(&c, scale, "F32", 2, 1, 1, 0, 4);
	save(&c);
	assert_refused(c.dir, kv_a, "has dtype BF16, but there is a", scale, NULL);
	free_copy(&c);
}

static void a_dtype_we_do_not_read_is_refused_where_it_is_wanted(void **state)
{
	struct copy c = copy_of("glm52");

	(void)state;
	strcpy(writer_find(&c.tensors, "lm_head.weight")->dtype, "I16");
	save(&c);
	assert_refused(c.dir, "tensor lm_head.weight has dtype I16", "BF16", NULL, NULL);
	free_copy(&c);
}

/* config.json off by one against the tensors; `key` must appear in the sentence. */
static void a_config_of_another_checkpoint_is_refused(void **state)
{
	static const char *const keys[] = {
		"hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "v_head_dim", "intermediate_size",
		"moe_intermediate_size", "n_routed_experts", "vocab_size", "index_n_heads", "index_head_dim",
		"num_hidden_layers", "first_k_dense_replace", "n_shared_experts", "qk_nope_head_dim",
	};

	(void)state;
	for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
		for (int by = -1; by <= 1; by += 2) {
			struct copy c = copy_of("glm52");
			json_int_t v = json_integer_value(json_object_get(c.config, keys[i]));

			/* Lists and sums that would already disagree inside config.json go, so that the tensors must tell. */
			json_object_del(c.config, "indexer_types");
			json_object_del(c.config, "mlp_layer_types");
			json_object_del(c.config, "qk_head_dim");
			json_object_set_new(c.config, keys[i], json_integer(v + by));
			save(&c);
			assert_refused(c.dir, !strcmp(keys[i], "first_k_dense_replace") ? "mlp" : keys[i], NULL, NULL, NULL);
			free_copy(&c);
		}
	}
}

static void a_schedule_of_another_checkpoint_is_refused(void **state)
{
	struct copy c = copy_of("glm52");

	(void)state;
	json_array_set_new(json_object_get(c.config, "indexer_types"), 3, json_string("full"));
	save(&c);
	assert_refused(c.dir, "tensor model.layers.3.self_attn.indexer.wq_b.weight", "is missing", NULL, NULL);
	free_copy(&c);
}

static void experts_both_stacked_and_single_are_refused(void **state)
{
	struct copy c = copy_of("glm52");

	(void)state;
	add_zeros(&c, "model.layers.5.mlp.experts.gate_up_proj", "BF16", 3, 8, 48, 44, 2);
	save(&c);
	assert_refused(c.dir, "both stacked (model.layers.5.mlp.experts.gate_up_proj)", NULL, NULL, NULL);
	free_copy(&c);
}

/* ---- files of the directory ------------------------------------------------------------------------------------ */

static void an_index_and_its_shards_must_agree(void **state)
{
	struct copy c = copy_of("glm4_moe_lite");
	json_t *index = save_shards(&c, 10), *map;
	const char *last = c.tensors.tensors[c.tensors.n_tensors - 1].name;

	(void)state;
	save_index(&c, json_deep_copy(index));
	model_close(open_good(c.dir));

	map = json_object_get(index, "weight_map");
	json_object_set_new(map, "ghost", json_string("b.safetensors"));
	save_index(&c, json_deep_copy(index));
	assert_refused(c.dir, "model.safetensors.index.json: tensor ghost should be in b.safetensors", "does not have it", NULL,
		       NULL);
	json_object_del(map, "ghost");

	json_object_del(map, last);
	save_index(&c, json_deep_copy(index));
	assert_refused(c.dir, "/b.safetensors: tensor ", last, "is not in", "model.safetensors.index.json");

	json_object_set_new(map, last, json_string("a.safetensors"));
	save_index(&c, json_deep_copy(index));
	assert_refused(c.dir, last, "should be in a.safetensors, but it is in", "/b.safetensors", NULL);

	json_object_set_new(map, last, json_string("c.safetensors"));
	save_index(&c, json_deep_copy(index));
	assert_refused(c.dir, "names a shard that is not there", "/c.safetensors", "No such file", NULL);
	json_object_set_new(map, last, json_string("b.safetensors"));

	save(&c); /* a single file beside the index */
	save_index(&c, json_deep_copy(index));
	assert_refused(c.dir, "has both model.safetensors and model.safetensors.index.json", NULL, NULL, NULL);
	json_decref(index);
	free_copy(&c);
}

static void a_tensor_in_two_shards_is_refused(void **state)
{
	struct copy c = copy_of("glm4_moe_lite");
	json_t *index;
	int64_t shape = 1;

	(void)state;
	writer_add(&c.tensors, "zzz", "U8", 1, &shape, NULL, 1);
	writer_add(&c.tensors, "zzz", "U8", 1, &shape, NULL, 1);
	index = save_shards(&c, c.tensors.n_tensors - 1);
	save_index(&c, index);
	assert_refused(c.dir, "tensor zzz is in two shards", "/a.safetensors", "/b.safetensors", NULL);
	free_copy(&c);
}

static void a_shard_is_a_name_and_never_a_path(void **state)
{
	static const char *const names[] = {"../b.safetensors", "/etc/passwd", "x/b.safetensors", "..", ".", ""};
	struct copy c = copy_of("glm4_moe_lite");
	json_t *index = save_shards(&c, 10);

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		char *says = xasprintf("is \"%s\"; a shard must be a name in the same directory", names[i]);

		json_object_set_new(json_object_get(index, "weight_map"), "lm_head.weight", json_string(names[i]));
		save_index(&c, json_deep_copy(index));
		assert_refused(c.dir, says, "weight_map.lm_head.weight", NULL, NULL);
		free(says);
	}
	json_object_set_new(json_object_get(index, "weight_map"), "lm_head.weight", json_integer(3));
	save_index(&c, json_deep_copy(index));
	assert_refused(c.dir, "weight_map.lm_head.weight is an integer", NULL, NULL, NULL);
	save_index(&c, json_pack("{s:{}}", "weight_map"));
	assert_refused(c.dir, "weight_map is empty", NULL, NULL, NULL);
	json_decref(index);
	free_copy(&c);
}

/* As a Hugging Face cache has them. */
static void shards_may_be_symbolic_links(void **state)
{
	struct copy c = copy_of("glm4_moe_lite");
	char *from = temp_path(c.dir, "model.safetensors"), *to = temp_path(c.dir, "blob");

	(void)state;
	save(&c);
	assert_int_equal(rename(from, to), 0);
	assert_int_equal(symlink("blob", from), 0);
	model_close(open_good(c.dir));
	assert_int_equal(unlink(to), 0);
	assert_refused(c.dir, "/model.safetensors", "No such file", NULL, NULL);
	free(from);
	free(to);
	free_copy(&c);
}

static void files_that_are_none_are_refused_by_what_they_are(void **state)
{
	struct copy c = copy_of("glm4_moe_lite");
	char *weights = temp_path(c.dir, "model.safetensors"), *config = temp_path(c.dir, "config.json");

	(void)state;
	assert_refused("/nonexistent/model", "open /nonexistent/model/config.json: No such file or directory", NULL, NULL, NULL);
	save_config(&c);
	assert_refused(c.dir, "has neither model.safetensors.index.json nor model.safetensors", NULL, NULL, NULL);
	write_text(&c, "model.safetensors", "");
	assert_refused(c.dir, "/model.safetensors is empty (0 bytes)", NULL, NULL, NULL);
	assert_int_equal(unlink(weights), 0);
	assert_int_equal(mkdir(weights, 0700), 0);
	assert_refused(c.dir, "/model.safetensors is a directory", NULL, NULL, NULL);
	assert_int_equal(rmdir(weights), 0);
	assert_int_equal(mkfifo(weights, 0600), 0);
	assert_refused(c.dir, "/model.safetensors is a FIFO", NULL, NULL, NULL);
	write_text(&c, "model.safetensors.index.json", "");
	assert_refused(c.dir, "/model.safetensors.index.json: empty", NULL, NULL, NULL);
	write_text(&c, "config.json", "");
	assert_refused(c.dir, "/config.json: empty", NULL, NULL, NULL);
	write_text(&c, "config.json", "{\"model_type\": \"gpt2\"}");
	assert_refused(c.dir, "/config.json: model_type is \"gpt2\"", "glm_moe_dsa", NULL, NULL);
	assert_int_equal(unlink(config), 0);
	assert_int_equal(mkdir(config, 0700), 0);
	assert_refused(c.dir, "/config.json is a directory", NULL, NULL, NULL);
	free(weights);
	free(config);
	free_copy(&c);
}

static void a_shard_cut_short_is_refused_before_it_is_read(void **state)
{
	struct copy c = copy_of("glm4_moe_lite");
	char *path = temp_path(c.dir, "model.safetensors");
	struct stat st;

	(void)state;
	save(&c);
	assert_int_equal(stat(path, &st), 0);
	for (off_t n = st.st_size - 1; n > 0; n = n * 7 / 8) {
		assert_int_equal(truncate(path, n), 0);
		assert_refused(c.dir, "/model.safetensors", n < 8 ? "at least 8" : "truncated", NULL, NULL);
	}
	free(path);
	free_copy(&c);
}

/* Root reads everything, so the test becomes an ordinary user for a moment. */
static void a_file_we_may_not_read_is_refused(void **state)
{
	struct copy c = copy_of("glm4_moe_lite");
	char *path = temp_path(c.dir, "model.safetensors");
	bool root = geteuid() == 0;
	struct model *m;
	struct err err;

	(void)state;
	save(&c);
	assert_int_equal(chmod(path, 0), 0);
	assert_int_equal(chmod(c.dir, 0755), 0);
	if (root)
		assert_int_equal(seteuid(65534), 0);
	assert_int_equal(model_open(&m, c.dir, NULL, &err), -1);
	if (root)
		assert_int_equal(seteuid(0), 0);
	assert_int_equal(err.code, ERR_PERMISSION);
	assert_non_null(strstr(err.text, "/model.safetensors: Permission denied"));
	free(path);
	free_copy(&c);
}

/* ---- model info ------------------------------------------------------------------------------------------------ */

static char *info(const char *dir, int json)
{
	char *text = NULL;
	size_t n;
	FILE *f = open_memstream(&text, &n);
	struct err err;

	if (model_info_print(f, dir, json, &err))
		fail_msg("%s", err.text);
	fclose(f);
	return text;
}

static json_int_t at(const json_t *o, const char *a, const char *b, const char *c)
{
	o = json_object_get(json_object_get(o, a), b);
	return json_integer_value(c ? json_object_get(o, c) : o);
}

static void info_needs_only_a_config(void **state)
{
	char *text = info("tests/fixtures/glm-5.2", 1), *lines = info("tests/fixtures/glm-5.2", 0);
	json_t *o = json_loads(text, 0, NULL);

	(void)state;
	assert_non_null(o);
	assert_true(at(o, "parameters", "total", NULL) == 743377019904);
	assert_true(at(o, "parameters", "active", NULL) == 40298947584);
	assert_int_equal(at(o, "bytes_per_token", "fp8", "latents"), 51168);
	assert_int_equal(at(o, "bytes_per_token", "bf16", "latents"), 89856);
	assert_int_equal(at(o, "bytes_per_token", "fp8", "per_layer"), 656);
	assert_int_equal(at(o, "bytes_per_token", "bf16", "index_keys"), 5376);
	assert_true(json_is_null(json_object_get(o, "bytes")));
	assert_non_null(strstr(lines, "743,377,019,904"));
	assert_non_null(strstr(lines, "from config.json alone"));
	json_decref(o);
	free(text);
	free(lines);
}

static void info_counts_what_the_files_hold(void **state)
{
	char *text = info("tests/golden/glm52", 1);
	json_t *o = json_loads(text, 0, NULL), *index = NULL;
	json_int_t bytes;

	(void)state;
	assert_non_null(o);
	assert_int_equal(json_read(&index, "tests/golden/glm52/model.safetensors.index.json", 1 << 20, NULL), 0);
	bytes = at(index, "metadata", "total_size", NULL);
	json_decref(index);
	assert_int_equal(at(o, "bytes", "total", NULL), bytes);
	assert_int_equal(at(o, "formats", "BF16", NULL), bytes);
	assert_int_equal(json_integer_value(json_object_get(o, "n_files")), 3);
	assert_int_equal(json_integer_value(json_object_get(o, "n_tensors")), 415);
	assert_string_equal(json_string_value(json_object_get(o, "index_schedule")), "FFFSSSFSSSF");
	assert_int_equal((at(o, "parameters", "total", NULL) + at(o, "parameters", "mtp", NULL)) * 2, bytes);
	json_decref(o);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_byte_of_a_good_checkpoint_is_accounted_for),
		cmocka_unit_test(tensors_go_where_their_names_say),
		cmocka_unit_test(fp8_weights_come_with_their_scales),
		cmocka_unit_test(stacked_experts_are_views_of_their_tensors),
		cmocka_unit_test(half_precision_vectors_are_widened_exactly),
		cmocka_unit_test(stacked_fp8_experts_share_blocks_between_gate_and_up),
		cmocka_unit_test(threads_and_shards_do_not_change_what_is_read),
		cmocka_unit_test(the_head_may_be_the_embedding),
		cmocka_unit_test(queries_may_come_straight_from_q_proj),
		cmocka_unit_test(what_is_not_used_is_counted_by_what_it_is),
		cmocka_unit_test(the_fingerprint_changes_with_every_part_and_with_no_other),
		cmocka_unit_test(a_tensor_that_does_not_fit_is_named_with_both_shapes),
		cmocka_unit_test(a_tensor_that_is_missing_is_named),
		cmocka_unit_test(values_that_are_not_finite_are_named_by_row_and_column),
		cmocka_unit_test(scales_must_be_there_fit_and_belong),
		cmocka_unit_test(a_dtype_we_do_not_read_is_refused_where_it_is_wanted),
		cmocka_unit_test(a_config_of_another_checkpoint_is_refused),
		cmocka_unit_test(a_schedule_of_another_checkpoint_is_refused),
		cmocka_unit_test(experts_both_stacked_and_single_are_refused),
		cmocka_unit_test(an_index_and_its_shards_must_agree),
		cmocka_unit_test(a_tensor_in_two_shards_is_refused),
		cmocka_unit_test(a_shard_is_a_name_and_never_a_path),
		cmocka_unit_test(shards_may_be_symbolic_links),
		cmocka_unit_test(files_that_are_none_are_refused_by_what_they_are),
		cmocka_unit_test(a_shard_cut_short_is_refused_before_it_is_read),
		cmocka_unit_test(a_file_we_may_not_read_is_refused),
		cmocka_unit_test(info_needs_only_a_config),
		cmocka_unit_test(info_counts_what_the_files_hold),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
