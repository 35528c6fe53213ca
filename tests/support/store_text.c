#include "tests/support/store_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "tests/support/temp_dir.h"


static const uint32_t record_bytes[N_GROUPS] = {24, 40};
const struct cache_layout text_layout = {N_GROUPS, record_bytes, N_INDEX_LAYERS, KEY_BYTES};
const uint8_t text_identity[32] = "a model";

struct text text_of(const char *corpus, int32_t n, int32_t same, int32_t seed)
{
	struct text t = {.corpus = corpus, .n = n, .same = same};

	for (int32_t i = 0; i < n; i++)
		t.ids[i] = i < same ? i : 1000 * seed + i;
	return t;
}

void keys_of(struct span_key *keys, const int32_t *ids, int32_t n)
{
	for (int32_t i = 0; i * CACHE_SPAN_TOKENS < n; i++) {
		int32_t left = n - i * CACHE_SPAN_TOKENS;

		span_key_make(&keys[i], text_identity, i ? &keys[i - 1] : NULL, ids + i * CACHE_SPAN_TOKENS,
			      left < CACHE_SPAN_TOKENS ? left : CACHE_SPAN_TOKENS);
	}
}

/* What the model would compute: bytes that depend on all tokens up to here, and on nothing else. */
static void compute(uint8_t *out, const struct span_key *key, int part, int token, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) { /* which divides what there is */
		uint64_t x = XXH3_64bits_withSeed(key, sizeof *key, (uint64_t)part << 40 | (uint64_t)token << 20 | i);

		memcpy(out + i, &x, sizeof x);
	}
}

static size_t part_bytes(int part)
{
	return part < N_GROUPS ? record_bytes[part] : KEY_BYTES;
}

void text_compute(uint8_t *out, const struct text *t, int part, int32_t first, int32_t n)
{
	struct span_key keys[MOST_TOKENS / CACHE_SPAN_TOKENS + 1];

	keys_of(keys, t->ids, t->n);
	for (int32_t i = first; i < first + n; i++)
		compute(out + (size_t)(i - first) * part_bytes(part), &keys[i / CACHE_SPAN_TOKENS], part, i % CACHE_SPAN_TOKENS,
			part_bytes(part));
}

struct cache *store_open(const char *dir)
{
	struct cache *c;
	struct err err;

	if (cache_open(&c, dir, &err))
		fail_msg("%s", err.text);
	return c;
}

int commit_text(struct cache *c, const struct text *t, struct err *err)
{
	const struct cache_document document = {"a.c", {1}, 0, t->n, 2, (const uint32_t[]){3, 7}};
	const struct cache_skipped skipped = {"b\n\xff.bin", "binary"};
	const struct cache_snapshot s = {.corpus = t->corpus, .source = "/src", .identity = text_identity, .created_s = 12,
					 .n_tokens = t->n, .ids = t->ids, .n_documents = 1, .documents = &document,
					 .n_skipped = 1, .skipped = &skipped};
	int64_t id;

	return cache_commit_snapshot(c, &s, &id, err);
}

int store_text(struct cache *c, const struct text *t, struct err *err)
{
	struct span_key keys[MOST_TOKENS / CACHE_SPAN_TOKENS + 1];
	uint8_t bytes[N_GROUPS + N_INDEX_LAYERS][STEP_TOKENS * 40];
	const uint8_t *parts[N_GROUPS + N_INDEX_LAYERS];
	int64_t known;

	keys_of(keys, t->ids, t->n);
	if (cache_begin_ingest(c, t->corpus, text_identity, t->ids, t->n, &known, err))
		return -1;
	for (int32_t at = (int32_t)known; at < t->n; at += STEP_TOKENS) {
		int32_t n = t->n - at < STEP_TOKENS ? t->n - at : STEP_TOKENS, span = at / CACHE_SPAN_TOKENS;

		for (int p = 0; p < N_GROUPS + N_INDEX_LAYERS; p++) {
			parts[p] = bytes[p];
			text_compute(bytes[p], t, p, at, n);
		}
		if (cache_write_spans(c, t->corpus, &text_layout, text_identity, span ? &keys[span - 1] : NULL, t->ids + at, n,
				      parts, parts + N_GROUPS, err))
			return -1;
	}
	return commit_text(c, t, err);
}

void must_store(struct cache *c, const struct text *t)
{
	struct err err;

	if (store_text(c, t, &err))
		fail_msg("%s", err.text);
}

/* Read one part of a span: 1 and it is right, 0 and the store says that it is damaged; anything else fails. */
static int check_part(struct cache *c, const struct span_key *key, int part, int32_t n)
{
	uint8_t got[CACHE_SPAN_TOKENS * 40], want[40];
	size_t bytes = part_bytes(part);
	struct err err;
	int rc = part < N_GROUPS ? cache_read_records(c, key, part, got, (size_t)n * bytes, &err)
				 : cache_read_index_keys(c, key, part - N_GROUPS, got, (size_t)n * bytes, &err);

	if (rc) {
		if (err.code != ERR_DAMAGED)
			fail_msg("%s", err.text);
		return 0;
	}
	for (int32_t i = 0; i < n; i++) {
		compute(want, key, part, i, bytes);
		assert_memory_equal(got + (size_t)i * bytes, want, bytes);
	}
	return 1;
}

int n_damaged(struct cache *c, const int32_t *ids, int32_t n)
{
	struct span_key keys[MOST_TOKENS / CACHE_SPAN_TOKENS + 1];
	int damaged = 0;

	keys_of(keys, ids, n);
	for (int32_t i = 0; i * CACHE_SPAN_TOKENS < n; i++) {
		int32_t left = n - i * CACHE_SPAN_TOKENS;

		for (int p = 0; p < N_GROUPS + N_INDEX_LAYERS; p++)
			damaged += !check_part(c, &keys[i], p, left < CACHE_SPAN_TOKENS ? left : CACHE_SPAN_TOKENS);
	}
	return damaged;
}

int is_stored(struct cache *c, const struct text *t)
{
	struct cache_snapshot *s;
	struct err err;
	int same;

	if (cache_load_snapshot(c, t->corpus, &s, &err))
		fail_msg("%s", err.text);
	assert_int_equal(n_damaged(c, s->ids, (int32_t)s->n_tokens), 0);
	same = s->n_tokens == t->n && !memcmp(s->ids, t->ids, (size_t)t->n * sizeof *t->ids);
	cache_free_snapshot(s);
	return same;
}

struct cache_stats stats_of(struct cache *c)
{
	struct cache_stats s;

	cache_stats(c, &s);
	return s;
}

void change_index(const char *dir, const char *statement)
{
	char *path = temp_path(dir, "index.sqlite");
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, statement, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	free(path);
}

void flip(int fd, int64_t byte, int bit)
{
	uint8_t b;

	assert_int_equal(pread(fd, &b, 1, byte), 1);
	b ^= (uint8_t)(1 << bit);
	assert_int_equal(pwrite(fd, &b, 1, byte), 1);
}
