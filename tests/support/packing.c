#include "tests/support/packing.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/numeric.h"
#include "tests/support/temp_dir.h"

struct synth_options packing_options(enum synth_format format)
{
	struct synth_options o = synth_glm52;

	o.n_dense_layers = 1;
	o.n_moe_layers = 4;
	o.format = format;
	o.hidden = 192;
	o.n_heads = 3;
	o.q_lora = 70;
	o.kv_lora = 50;
	o.nope_dim = 22;
	o.rope_dim = 10;
	o.v_dim = 26;
	o.dense_dim = 170;
	o.expert_dim = 128;
	o.n_experts = 9;
	o.experts_per_token = 3;
	o.index_n_heads = 2;
	o.index_dim = 34;
	o.index_topk = 7;
	o.vocab = 331;
	o.max_positions = 777;
	o.n_threads = 2;
	return o;
}

char *packing_prepare(const struct synth_options *o)
{
	char *dir = temp_dir_new(), *a = temp_path(dir, "a");
	struct err err = {0};

	if (synth_write(a, o, NULL, &err))
		fail_msg("%s", err.text);
	free(a);
	return dir;
}

struct pack_report packing_pack(const char *dir, const char *from, const char *to, const struct pack_options *opt)
{
	static const struct pack_options usual = {.n_threads = 2};
	char *a = temp_path(dir, from), *b = temp_path(dir, to);
	struct pack_report report;
	struct err err = {0};

	if (model_pack(a, b, opt ? opt : &usual, &report, &err))
		fail_msg("%s", err.text);
	free(a);
	free(b);
	return report;
}

int packing_try_open(struct model **m, const char *dir, const char *name, const struct experts_options *experts, struct err *err)
{
	struct model_options opt = {.experts = experts};
	char *path = temp_path(dir, name);
	int rc = model_open(m, path, &opt, err);

	free(path);
	return rc;
}

struct model *packing_open(const char *dir, const char *name, const struct experts_options *experts)
{
	struct model *m;
	struct err err;

	if (packing_try_open(&m, dir, name, experts, &err))
		fail_msg("%s", err.text);
	return m;
}

int packing_code(const uint8_t *codes, int32_t i)
{
	return codes[i / 2] >> 4 * (i % 2) & 15;
}

double packing_value(const struct weight *w, int32_t r, int32_t k)
{
	size_t i = (size_t)r * (size_t)w->cols + (size_t)k;

	switch (w->dtype) {
	case DTYPE_BF16:
		return (double)bf16_to_f32(((const uint16_t *)w->data)[i]);
	case DTYPE_F8_E4M3:
		return (double)(e4m3_to_f32(((const uint8_t *)w->data)[i]) *
				w->scale[(w->first_row + r) / 128 * ((w->cols + 127) / 128) + k / 128]);
	case DTYPE_INT4:
		return (packing_code((const uint8_t *)w->data + (size_t)r * (size_t)w->cols / 2, k) - 8) *
		       (double)bf16_to_f32(w->group_scale[r * (w->cols / 64) + k / 64]);
	default:
		fail_msg("no matrix of type %d here", w->dtype);
		return 0;
	}
}

void packing_copy(const char *dir, const char *to)
{
	static const char *const names[] = {"config.json", "tokenizer.json"};

	for (int i = 0; i < 2; i++) {
		char *from = xasprintf("%s/a/%s", dir, names[i]), *name = xasprintf("%s/%s", to, names[i]), *text;
		size_t bytes;

		assert_int_equal(file_read(&text, &bytes, from, 1 << 20, NULL), 0);
		free(temp_file(dir, name, text, bytes));
		free(text);
		free(from);
		free(name);
	}
}

void packing_rewrite(const char *dir, const char *dtype, packing_fill *fill, void *ctx, const char *to)
{
	char *from = temp_path(dir, "a/model-00001-of-00001.safetensors"), *single = xasprintf("%s/model.safetensors", to);
	size_t size = !strcmp(dtype, "F32") ? 4 : 2;
	struct safetensors_writer w = {0};

	writer_load(&w, from);
	for (size_t i = 0; i < w.n_tensors; i++) {
		struct written_tensor *t = &w.tensors[i];

		if (!strstr(t->name, ".mlp.experts."))
			continue;
		free(t->data);
		t->bytes = (size_t)(t->shape[0] * t->shape[1]) * size;
		t->data = xmalloc(t->bytes, 1);
		snprintf(t->dtype, sizeof t->dtype, "%s", dtype);
		fill(ctx, t, t->data, t->shape[0], t->shape[1]);
	}
	free(from);
	from = temp_path(dir, single);
	writer_save(&w, from);
	writer_free(&w);
	free(from);
	free(single);
}

void packing_exact(void *ctx, const struct written_tensor *t, void *data, int64_t rows, int64_t cols)
{
	uint16_t *out = data;
	uint32_t seed = 1;

	(void)ctx;
	for (const char *c = t->name; *c; c++)
		seed = seed * 31 + (unsigned char)*c;
	for (int64_t r = 0; r < rows; r++)
		for (int64_t k = 0; k < cols; k++) {
			int whole;

			seed = seed * 1664525u + 1013904223u;
			whole = k ? (int)((seed >> 16) % 15) - 7 : r % 2 ? 7 : -7;
			out[r * cols + k] = f32_to_bf16(ldexpf((float)whole, (int)(r % 3) - 7));
		}
}

void packing_says(const struct err *err, enum err_code code, const char *words)
{
	if (err->code != code || !strstr(err->text, words))
		fail_msg("no '%s' of code %d in %d: %s", words, code, err->code, err->text);
}
