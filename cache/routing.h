/*
 * How often the tokens of a corpus chose each expert of each layer: counted while they are computed, kept with the runs that they
 * were written in (run.h), and gone with those. It says what is worth having in memory before a question comes, and nothing
 * else: no latent and no answer depends on it, and where it is missing nothing else is.
 */
#ifndef QUIRE_CACHE_ROUTING_H
#define QUIRE_CACHE_ROUTING_H

#include "cache/cache.h"

/* Add it up over a snapshot, id 0: the current one: chosen [n_layers, n_experts], and the tokens it is of. Of a run that has more
 * tokens than the snapshot shares with it, that share of its counts. *n_tokens 0: nothing was counted, as in a store that was
 * made before there were counts, or all of it was evicted. ERR_NOT_FOUND as cache_load_snapshot; ERR_MISMATCH, saying
 * which shapes, when it was not counted for such a model; ERR_DAMAGED names the row. */
int cache_routing(struct cache *c, const char *corpus, int64_t id, int32_t n_layers, int32_t n_experts, int64_t *chosen,
		  int64_t *n_tokens, struct err *err);

/* The corpus of this identity that was used last (asked, or ingested): 1, its name and current snapshot; 0: there is none. */
int cache_last_used(struct cache *c, const uint8_t identity[32], char corpus[128], int64_t *id, struct err *err);

#endif
