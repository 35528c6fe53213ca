/*
 * A snapshot's latents back from the store into a session. Every record is verified; the tokens of a span that is
 * damaged or missing are computed again from the snapshot's ids, with a warning, and those after it come from the
 * store again: a bad block never reaches attention, and the answer has the bits it would have had.
 */
#ifndef QUIRE_ENGINE_RECALL_H
#define QUIRE_ENGINE_RECALL_H

#include "cache/cache.h"
#include "engine/engine.h"

struct recall_stats {
	int64_t loaded_tokens, recomputed_tokens;
	int64_t read_bytes;
};

/* Load the first n_tokens of the snapshot into an empty session. ERR_MISMATCH, naming both identities and
 * `quire ingest`, when the snapshot was made under another identity. Engine thread. */
int recall_snapshot(struct session *s, struct engine *e, const struct model *m, enum latent_format format,
		    struct cache *c, const struct cache_snapshot *snapshot, int64_t n_tokens,
		    struct recall_stats *stats, struct err *err);

/* One span to the end of a session: n_wanted of its n_tokens tokens. On error the session has the tokens it had. */
int recall_span(struct session *s, struct cache *c, const struct span_key *key, int32_t n_tokens, int32_t n_wanted,
		int64_t *read_bytes, struct err *err);

#endif
