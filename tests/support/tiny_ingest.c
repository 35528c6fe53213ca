#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "config/mem.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_ingest.h"

struct tiny tiny;

int tiny_open(void **state)
{
	const struct engine_options opt = {.n_threads = 1, .compute = COMPUTE_F32};
	struct err err;

	(void)state;
	if (engine_open(&tiny.engine, &opt, &err) || model_open(&tiny.model, "tests/golden/glm52", NULL, &err) ||
	    tokenizer_open(&tiny.tokenizer, "tests/golden/glm52/tokenizer.json", &err)) {
		fprintf(stderr, "%s\n", err.text);
		return -1;
	}
	return 0;
}

int tiny_close(void **state)
{
	(void)state;
	tokenizer_close(tiny.tokenizer);
	model_close(tiny.model);
	engine_close(tiny.engine);
	return 0;
}

static int make_place(void **state, char *dir)
{
	struct place *p = xcalloc(1, sizeof *p);

	p->dir = dir;
	p->source = temp_path(p->dir, "source");
	p->store = temp_path(p->dir, "store");
	*state = p;
	return mkdir(p->source, 0700);
}

int place_set_up(void **state)
{
	return make_place(state, temp_dir_new());
}

int place_set_up_in_memory(void **state)
{
	return make_place(state, temp_dir_new_in_memory());
}

int place_tear_down(void **state)
{
	struct place *p = *state;

	temp_dir_free(p->dir);
	free(p->source);
	free(p->store);
	free(p);
	return 0;
}

void place_text(const struct place *p, const char *path, const char *text)
{
	free(temp_text(p->source, path, text));
}

void place_lines(const struct place *p, const char *path, const char *word, int n)
{
	struct bytes b = {0};

	for (int i = 0; i < n; i++) {
		char line[128];

		snprintf(line, sizeof line, "int %s_%d = %d;\n", word, i, i * i);
		bytes_append(&b, line, strlen(line));
	}
	free(temp_file(p->source, path, b.data, b.n));
	bytes_free(&b);
}

struct cache *tiny_store(const char *dir)
{
	struct cache *c;
	struct err err;

	if (cache_open(&c, dir, &err))
		fail_msg("%s", err.text);
	return c;
}

struct ingest_options tiny_options(const struct place *p, const struct cache_snapshot *previous)
{
	return (struct ingest_options){.corpus = "code", .source = p->source, .max_file_bytes = 1 << 20,
				       .max_tokens = 4000, .previous = previous};
}

struct cache_snapshot *tiny_load_corpus(struct cache *c, const char *corpus)
{
	struct cache_snapshot *s;
	struct err err;

	if (cache_load_snapshot(c, corpus, &s, &err))
		fail_msg("%s", err.text);
	return s;
}

struct cache_snapshot *tiny_load(struct cache *c)
{
	return tiny_load_corpus(c, "code");
}

struct cache_snapshot *tiny_ingest(struct cache *c, const struct ingest_options *opt)
{
	struct ingest *in;
	struct err err;
	int rc = 1;

	if (ingest_prepare(&in, opt, tiny.tokenizer, NULL, NULL, NULL, &err) ||
	    ingest_bind(in, tiny.engine, tiny.model, LATENTS_BF16, c, &err) || ingest_begin(in, &err))
		fail_msg("%s", err.text);
	while (rc > 0)
		rc = ingest_step(in, NULL, &err);
	if (rc < 0)
		fail_msg("%s", err.text);
	ingest_free(in);
	return tiny_load_corpus(c, opt->corpus);
}

void tiny_assert_same_latents(struct cache *a, struct cache *b, const struct cache_snapshot *s)
{
	struct layout *l = layout_new(&tiny.model->config, LATENTS_BF16);
	uint8_t *x = xmalloc(1 << 20, 1), *y = xmalloc(1 << 20, 1);
	struct span_key keys[2];
	struct err err;

	for (int64_t at = 0, i = 0; at < s->n_tokens; at += CACHE_SPAN_TOKENS, i++) {
		int64_t n = s->n_tokens - at < CACHE_SPAN_TOKENS ? s->n_tokens - at : CACHE_SPAN_TOKENS;
		struct span_key *key = &keys[i & 1];

		span_key_make(key, s->identity, i ? &keys[(i - 1) & 1] : NULL, s->ids + at, (int32_t)n);
		for (int32_t g = 0; g < l->n_groups; g++) {
			size_t bytes = (size_t)n * layout_record_bytes(l, g);

			assert_int_equal(cache_read_records(a, key, g, x, bytes, &err), 0);
			assert_int_equal(cache_read_records(b, key, g, y, bytes, &err), 0);
			assert_memory_equal(x, y, bytes);
		}
		for (int32_t g = 0; g < l->n_index_layers; g++) {
			size_t bytes = (size_t)n * l->index_key_bytes;

			assert_int_equal(cache_read_index_keys(a, key, g, x, bytes, &err), 0);
			assert_int_equal(cache_read_index_keys(b, key, g, y, bytes, &err), 0);
			assert_memory_equal(x, y, bytes);
		}
	}
	free(x);
	free(y);
	layout_free(l);
}
