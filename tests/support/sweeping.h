/*
 * Sweeps in tests: what to open and begin, where any failure ends the test with its sentence; and a store in memory that is
 * source and sink of one.
 */
#ifndef QUIRE_TESTS_SUPPORT_SWEEPING_H
#define QUIRE_TESTS_SUPPORT_SWEEPING_H

#include "engine/sweep.h"

/* An engine of two threads; a golden checkpoint by its name; a session. */
struct engine *sweeping_engine(enum compute_profile compute);
struct model *sweeping_model(const char *checkpoint);
struct session *sweeping_session_of(struct engine *e, const struct model *m, const struct session_options *opt);
struct session *sweeping_session(struct engine *e, const struct model *m, enum latent_format latents, bool keep);
/* n may be 0; logits NULL. */
void sweeping_append(struct session *s, const int32_t *ids, int64_t n, float *logits);

/* The budget that makes chunks of so many tokens; 0: none. */
size_t sweeping_budget(const struct engine *e, const struct model *m, enum latent_format latents, int64_t chunk);
struct sweep *sweeping_begin(const struct sweep_sequence *q, int32_t n, const struct sweep_options *opt);
struct sweep *sweeping_begin_one(struct session *s, const int32_t *ids, int64_t n, float *last_logits,
				 const struct sweep_options *opt);
/* To its end. */
void sweeping_run(struct sweep *w);

/* A store in memory: what a sink of it was given, a source of it gives. It must come in order, and be what the exports of
 * a session are, which keeps its records and outlives the store. */
struct sweep_store {
	const struct session *as;
	int64_t n_records[MODEL_MAX_LAYERS], n_keys[MODEL_MAX_LAYERS]; /* positions that each group and index layer has */
	int32_t bad_group;       /* < 0, or a group of which it cannot give position 70 */
	int64_t given_tokens;
	/* The checkpoint under way, or the last one, and how many have come whole: */
	int32_t next_layer;
	uint8_t *residual;       /* free() it */
	size_t residual_bytes, residual_at;
	int n_checkpoints;
	/* Pieces in all; of these the one that is refused, from 1; the most bytes of one. */
	int n_pieces, refused_piece;
	size_t piece_most;
};

/* One that has the first n tokens of a session. */
struct sweep_store sweep_store_of(const struct session *as, int64_t n);
void sweep_store_assert_has(const struct sweep_store *t, int64_t n);
/* A sink without checkpoints, which are sweep_store_checkpoint's to take. */
struct sweep_sink sweep_store_sink(struct sweep_store *t);
struct sweep_source sweep_store_source(struct sweep_store *t);
int sweep_store_checkpoint(void *ctx, int32_t next_layer, size_t bytes, size_t at, const void *piece, size_t n,
			   struct err *err);
int sweep_store_residual(void *ctx, size_t bytes, size_t at, void *piece, size_t n, struct err *err);

#endif
