/*
 * Corpora for tests of the store: token ids, the bytes that a model would compute from them, and the way of an ingest
 * and of a question through cache.h. Failures end the test.
 */
#ifndef QUIRE_TESTS_SUPPORT_STORE_TEXT_H
#define QUIRE_TESTS_SUPPORT_STORE_TEXT_H

#include <stdint.h>

#include "cache/cache.h"

enum { N_GROUPS = 2, N_INDEX_LAYERS = 2, KEY_BYTES = 8, STEP_TOKENS = 128, MOST_TOKENS = 512 };

extern const uint8_t text_identity[32];
extern const struct cache_layout text_layout; /* 24 and 40 bytes in the two groups */

/* A corpus of a test: n tokens, the first `same` of which depend on nothing but their position. */
struct text {
	const char *corpus;
	int32_t n, same, ids[MOST_TOKENS];
};

struct text text_of(const char *corpus, int32_t n, int32_t same, int32_t seed);
/* The keys of its spans, [(n + 63) / 64]. */
void keys_of(struct span_key *keys, const int32_t *ids, int32_t n);

/* What the model computes of n tokens: part counts groups, then index layers. */
void text_compute(uint8_t *out, const struct text *t, int part, int32_t first, int32_t n);

struct cache *store_open(const char *dir);
/* The way of an ingest: begin, write what is missing in steps, commit. */
int store_text(struct cache *c, const struct text *t, struct err *err);
/* Its end: the spans are there. */
int commit_text(struct cache *c, const struct text *t, struct err *err);
void must_store(struct cache *c, const struct text *t);
/* How many parts of the first n tokens are damaged; all others are right. */
int n_damaged(struct cache *c, const int32_t *ids, int32_t n);
/* The corpus is there, whole, and says what t says. */
int is_stored(struct cache *c, const struct text *t);
struct cache_stats stats_of(struct cache *c);

/* Run SQL on the index of a closed store, behind its back. */
void change_index(const char *dir, const char *statement);
/* Flip one bit of an open file. */
void flip(int fd, int64_t byte, int bit);

#endif
