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

/* The first 16 hex digits of a key: enough for a message. Returns out. */
enum { KEY_NAME_BYTES = 17 };
char *span_key_name(const struct span_key *key, char out[KEY_NAME_BYTES]);

#endif
