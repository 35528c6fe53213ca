/*
 * One sweep: many tokens to the end of a session, all of them through layer 0, then all through layer 1, and so on, so
 * that each expert is taken up once for all tokens that chose it, not once for each few hundred tokens. What a token
 * carries from layer to layer is scratch memory, within a budget; when that is short, the tokens go in the largest
 * chunks that fit, one after another, and an expert is taken up once a chunk.
 *
 * Records, index keys and logits have the bits that session_append gives, for any budget, chunk and tile.
 *
 * Engine thread. A sweep runs in steps of about half a second at most on its own measure (the first tile of a kind may
 * take longer); between two steps the engine may serve other sessions.
 */
#ifndef QUIRE_ENGINE_SWEEP_H
#define QUIRE_ENGINE_SWEEP_H

#include "engine/engine.h"

/* Scratch of one token, by part. */
struct sweep_bytes {
	size_t residual;  /* 4 hidden */
	size_t input;     /* the MLP's input: 2 hidden in profile bf16, 4 in f32 */
	size_t choices;   /* positions that the last full layer chose, 4 index_topk, and their number */
	size_t latents;   /* records and index keys as stored, until their group ends: the most at any layer */
	size_t router;    /* experts and weights, by token and by expert */
	size_t angles;    /* cos and sin of the position */
};

static inline size_t sweep_token_bytes(const struct sweep_bytes *b)
{
	return b->residual + b->input + b->choices + b->latents + b->router + b->angles;
}

struct sweep_plan {
	int64_t n_tokens;
	int64_t chunk_tokens;     /* of every chunk but the last */
	int64_t n_chunks;
	int64_t reads_per_expert; /* = n_chunks: of an expert that is chosen in every chunk; no expert has more */
	struct sweep_bytes token; /* scratch of each token of a chunk */
	size_t scratch_bytes;     /* of the largest chunk: at most the budget */
};

/* Chunks of equal work are not sought: as many tokens as fit, in whole spans of 64 where there are several chunks of at
 * least that. budget_bytes 0: no limit. Not counted are what lies in the session (session_bytes), and what a tile
 * needs while it is computed, which does not depend on the number of tokens. Pure. ERR_TOO_LARGE, with both numbers,
 * when one token does not fit. n_tokens >= 1. */
int sweep_plan(struct sweep_plan *plan, const struct model_config *c, enum compute_profile compute,
	       enum latent_format latents, int64_t n_tokens, size_t budget_bytes, struct err *err);

/* What a group of layers stores of a chunk's tokens, lent during the call. */
struct sweep_group {
	int32_t group;
	int64_t first, n;               /* positions */
	const uint8_t *records;         /* [n, layout_record_bytes(group)], as session_export_records gives them */
	int32_t n_index_layers;         /* those of the group */
	const int32_t *index_layers;    /* their places among the index layers, ascending */
	const uint8_t *const *index_keys; /* of each [n, index_key_bytes], as session_export_index_keys gives them */
};

struct sweep_options {
	size_t scratch_bytes;           /* the budget; 0: no limit */
	int64_t tile_tokens;            /* at most so many rows a step; 0: as many as are good */
	float *last_logits;             /* [vocab] of the last token, written at the end; may be NULL */
	/* Called when a group's last layer is done, chunk by chunk, groups in the order in which they end; may be NULL.
	 * The session need not keep records for it. -1 ends the sweep. */
	int (*group)(void *ctx, const struct sweep_group *g, struct err *err);
	void *ctx;
};

struct sweep_stats {
	int64_t n_chunks;               /* begun */
	size_t scratch_bytes;           /* most held so far */
	/* Each time an expert is taken up for a chunk's tokens, which is what a tier below must bring its weights in for.
	 * (Within it the processor goes through them once a tile.) [n_layers, n_experts] each, and the sum; NULL: no
	 * experts. */
	const int64_t *expert_reads, *expert_tokens;
	int64_t n_expert_reads;
	uint64_t expert_read_bytes;     /* of the weights */
};

struct sweep;

/* ids [n] must stay until sweep_end. The session must outlive the sweep; until it ends nothing but session_n_tokens may be
 * called for it. Refuses what session_append refuses, and what sweep_plan refuses. n >= 1. */
int sweep_begin(struct sweep **out, struct session *s, const int32_t *ids, size_t n, const struct sweep_options *opt,
		struct err *err);

/* The next tile. 1: there is more; 0: done; -1: error, the callback's or one of session_append, and the sweep can only
 * be ended. */
int sweep_step(struct sweep *w, struct err *err);

/* All steps; `pause`, if not NULL, is called between two of them, and -1 from it ends the sweep with its error. */
int sweep_run(struct sweep *w, int (*pause)(void *ctx, struct err *err), void *ctx, struct err *err);

/* Progress: tokens x layers done, of all n x n_layers of them. */
int64_t sweep_token_layers(const struct sweep *w);

/* Valid until sweep_end; its arrays are the sweep's. */
void sweep_count(const struct sweep *w, struct sweep_stats *stats);

/* Takes NULL. Before its end: the session keeps the tokens of the chunks that were done. */
void sweep_end(struct sweep *w);

#endif
