/*
 * What a span is called, and what its records must sum to. Private to cache/.
 *
 * The sum of a record is seeded with where it belongs, so that bytes which are whole but in another's place are
 * found as surely as a flipped bit.
 */
#ifndef QUIRE_CACHE_KEY_H
#define QUIRE_CACHE_KEY_H

#include "cache/cache.h"

enum extent_kind {
	EXTENT_LATENTS,    /* blocks of one group */
	EXTENT_INDEX_KEYS, /* of one index layer */
	EXTENT_SUMS,       /* of all blocks and index keys of a run */
	N_EXTENT_KINDS
};

/* XXH3-64 of data. The seed is XXH3-64 of (key, u32 kind, u32 part, u32 token), little-endian; part counts groups
 * or index layers as cache_layout does; token counts in the span, 0 for index keys. */
uint64_t record_sum(const struct span_key *key, enum extent_kind kind, uint32_t part, uint32_t token,
		    const void *data, size_t bytes);

/* Where among the sums of a run of n_places spans those of a block (64 of them) or of a span's index keys (one) stand:
 * [n_groups][n_places][64], then [n_index_layers][n_places]. */
int64_t sums_place(enum extent_kind kind, int32_t part, int64_t place, int64_t n_places, int32_t n_groups);

/* Tokens of the span that begins at `first` of n_tokens. */
static inline int32_t span_tokens(int64_t n_tokens, int64_t first)
{
	return (int32_t)(n_tokens - first < CACHE_SPAN_TOKENS ? n_tokens - first : CACHE_SPAN_TOKENS);
}

/* The first 16 hex digits of a key: enough for a message. Returns out. */
enum { KEY_NAME_BYTES = 17 };
char *span_key_name(const struct span_key *key, char out[KEY_NAME_BYTES]);

#endif
