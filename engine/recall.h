/*
 * A snapshot's latents behind a session: index keys come when it is opened, records when a token attends to them. Every
 * read is verified; the tokens of a span that is damaged or missing are computed again from the snapshot's ids, with a
 * warning, at the moment it is found: a bad record never reaches attention, and the answer has the bits it would have had.
 * What was computed so is held in the session's memory, whatever the budget; the next ingest of the corpus mends that.
 */
#ifndef QUIRE_ENGINE_RECALL_H
#define QUIRE_ENGINE_RECALL_H

#include "cache/cache.h"
#include "engine/engine.h"

struct recall;

struct recall_options {
	struct engine *engine;
	const struct model *model;
	enum latent_format latents;
	size_t latent_bytes;           /* memory for records (session_attach); 0: no limit */
};

struct recall_stats {
	int64_t loaded_tokens;         /* of the store: not computed */
	int64_t recomputed_tokens;
	int64_t read_bytes;            /* of the store's files: checksums, index keys, records */
	struct session_gathers gathers;
};

/*
 * The first n_tokens of the snapshot, into an empty session. ERR_MISMATCH, naming both identities and `quire ingest`, when
 * the snapshot was made under another identity. Session, store and snapshot must outlive the recall, and while it is
 * there tokens come to the session by recall_append alone. Nothing that the snapshot names may be dropped meanwhile
 * (cache_pin). Engine thread.
 */
int recall_open(struct recall **out, struct session *s, const struct recall_options *opt, struct cache *c,
		const struct cache_snapshot *snapshot, int64_t n_tokens, struct err *err);
/* Takes NULL. The session can only be freed. */
void recall_close(struct recall *r);

/* session_append, and what is found to be damaged meanwhile is computed again. */
int recall_append(struct recall *r, const int32_t *ids, size_t n, float *last_logits, const struct session_tap *tap,
		  struct err *err);

/* Since recall_open. */
void recall_count(const struct recall *r, struct recall_stats *stats);

#endif
