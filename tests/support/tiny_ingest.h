/*
 * Ingests in tests: a tiny model, a directory to read, and a store for what becomes of it. Whatever fails ends the test.
 */
#ifndef QUIRE_TESTS_SUPPORT_TINY_INGEST_H
#define QUIRE_TESTS_SUPPORT_TINY_INGEST_H

#include "cache/cache.h"
#include "engine/engine.h"
#include "engine/tokenizer.h"
#include "ingest/ingest.h"

/* A tiny checkpoint with random weights: what it says means nothing, and has to be the same every time. One thread, so that
 * a test may fork. */
extern struct tiny {
	struct engine *engine;
	struct model *model;
	struct tokenizer *tokenizer;
} tiny;

/* Of a group of tests. */
int tiny_open(void **state);
int tiny_close(void **state);

/* Of a test: a directory with an empty source, and where a store may be made. */
struct place {
	char *dir, *source, *store;
};
int place_set_up(void **state);
int place_set_up_in_memory(void **state);
int place_tear_down(void **state);

void place_text(const struct place *p, const char *path, const char *text);
/* A file of n numbered lines, of about ten tokens each. */
void place_lines(const struct place *p, const char *path, const char *word, int n);

struct cache *tiny_store(const char *dir);
/* The source as corpus "code", and the corpus's snapshot. */
struct ingest_options tiny_options(const struct place *p, const struct cache_snapshot *previous);
struct cache_snapshot *tiny_load(struct cache *c);
struct cache_snapshot *tiny_load_corpus(struct cache *c, const char *corpus);
/* All of an ingest, with latents in bf16. */
struct cache_snapshot *tiny_ingest(struct cache *c, const struct ingest_options *opt);

/* Every record and index key of a snapshot is the same in both stores. */
void tiny_assert_same_latents(struct cache *a, struct cache *b, const struct cache_snapshot *s);

#endif
