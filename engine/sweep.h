/*
 * One sweep: many tokens to the ends of their sessions, all of them through layer 0, then all through layer 1, and so on, so
 * that each expert is taken up once for all tokens that chose it, not once for each few hundred tokens. What a token
 * carries from layer to layer is scratch memory, within a budget; when that is short, the tokens go in the largest
 * chunks that fit, one after another, and an expert is taken up once a chunk.
 *
 * The tokens may be several sequences, of a session each: attention sees a token's own sequence, experts run over the tokens
 * of all.
 *
 * Latents need not stay in memory. A session `by_group` has those of a group of layers while these are under way:
 * what was computed before comes from a source as the group begins, and what is computed leaves for a sink as it ends.
 *
 * Records, index keys and logits have the bits that session_append gives, for any budget, chunk and tile, whatever other
 * sequences there are, and for a sweep that goes on where another one left off.
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
 * least that. budget_bytes 0: no limit. Not counted are what lies in the sessions (session_bytes; sweep_rows_bytes), and
 * what a tile needs while it is computed, which does not depend on the number of tokens. Pure. ERR_TOO_LARGE, with both
 * numbers, when one token does not fit. n_tokens >= 1. */
int sweep_plan(struct sweep_plan *plan, const struct model_config *c, enum compute_profile compute,
	       enum latent_format latents, int64_t n_tokens, size_t budget_bytes, struct err *err);

/* The most that a session by_group has in memory on the way through the layers, when it ends with n_tokens tokens: what the
 * layers of a group attend to, of those from the one under way to the group's last. Pure. */
size_t sweep_rows_bytes(const struct model_config *c, enum compute_profile compute, int64_t n_tokens);

/* Where tokens before those of a chunk come from, as stored (session_import_records and _index_keys have the shapes): in
 * pieces, once a chunk for each group that begins. -1 ends the sweep; *bad may say the position that is to blame. */
struct sweep_source {
	void *ctx;
	int (*records)(void *ctx, int32_t group, int64_t first, int64_t n, uint8_t *out, int64_t *bad, struct err *err);
	int (*index_keys)(void *ctx, int32_t index_layer, int64_t first, int64_t n, uint8_t *out, int64_t *bad,
			  struct err *err);
};

/*
 * Where a sequence's latents go, chunk by chunk when their group ends: index keys of its full layers, then records, each
 * in pieces of ascending positions, a multiple of 64 tokens but for the last. What is lent is lent during the call, and
 * has the shapes of session_export_records and _index_keys. -1 ends the sweep.
 */
struct sweep_sink {
	void *ctx;
	int (*records)(void *ctx, int32_t group, int64_t first, int64_t n, const uint8_t *records, struct err *err);
	int (*index_keys)(void *ctx, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys, struct err *err);
	/* NULL, or called now and then between a group's end and the next one's beginning, while no group is open and all that
	 * was computed has left: the residual rows of the sequence, all that a later sweep needs to begin at next_layer. They
	 * are so many bytes, and come piece by piece, a step each: bytes at .. at + n - 1, ascending from 0. 1: this
	 * checkpoint is given up, and no more of it is wanted. */
	int (*checkpoint)(void *ctx, int32_t next_layer, size_t bytes, size_t at, const void *piece, size_t n,
			  struct err *err);
};

struct sweep_sequence {
	struct session *session;
	const int32_t *ids;             /* [n] at the end of the session; they stay until sweep_end */
	int64_t n;                      /* >= 1 */
	/* Of a session by_group the tokens before, chunks of this sweep that are done among them; NULL: there are none. */
	const struct sweep_source *source;
	const struct sweep_sink *sink;  /* NULL: nobody wants them */
	float *last_logits;             /* [vocab] of the last token, written at the end; may be NULL */
	/* [n_layers, n_experts] or NULL: behind each layer, how many of the tokens chose each of its experts is added to it. */
	uint32_t *chosen;
	/* Of a sweep that begins behind a checkpoint: the residual rows that were given to it, piece by piece likewise. -1 ends
	 * the sweep. */
	int (*residual)(void *ctx, size_t bytes, size_t at, void *piece, size_t n, struct err *err);
	void *residual_ctx;
};

struct sweep_options {
	size_t scratch_bytes;           /* the budget; 0: no limit */
	int64_t tile_tokens;            /* at most so many rows a step; 0: as many as are good */
	/* Begin here, where a checkpoint was made of each of the sequences and they fit into one chunk. 0: with the tokens. */
	int32_t first_layer;
	/* Checkpoints wherever one can be made. Else: once SWEEP_CHECKPOINT_SHARE times what the last one took has passed
	 * since, and a second at the least. */
	bool always_checkpoint;
	size_t state_piece_bytes;       /* residual rows that come or go in a step; 0: some megabytes */
	/* NULL, or called before an expert is taken up for a chunk's tokens, in ascending order within a layer: whoever has to
	 * bring its weights must have them there when it returns. -1 ends the sweep. */
	int (*take_up)(void *ctx, int32_t layer, int32_t expert, struct err *err);
	void *take_up_ctx;
};

enum { SWEEP_CHECKPOINT_SHARE = 20 };

struct sweep_stats {
	int64_t n_chunks;               /* begun */
	int64_t n_checkpoints;
	size_t scratch_bytes;           /* most held so far */
	size_t rows_bytes;              /* most that the sessions by_group had at once */
	int64_t source_tokens;          /* tokens x groups that sources gave */
	/* Each time an expert is taken up for a chunk's tokens, which is what a tier below must bring its weights in for.
	 * (Within it the processor goes through them once a tile.) [n_layers, n_experts] each, and the sum; NULL: no
	 * experts. */
	const int64_t *expert_reads, *expert_tokens;
	int64_t n_expert_reads;
	uint64_t expert_read_bytes;     /* of the weights */
};

struct sweep;

/* Sequences that share engine, model and latent format, each with a session of its own. The array is copied; what it
 * points to, the sessions among them, must stay until sweep_end, and until then nothing but session_n_tokens may be called for
 * those sessions. Refuses what session_append refuses, and what sweep_plan refuses. */
int sweep_begin(struct sweep **out, const struct sweep_sequence *sequences, int32_t n_sequences,
		const struct sweep_options *opt, struct err *err);

/* The next tile, or piece of what comes from a source or goes to a sink, or of a checkpoint. 1: there is more; 0: done; -1:
 * error, that of a source or sink or one of session_append, and the sweep can only be ended. */
int sweep_step(struct sweep *w, struct err *err);

/* All steps; `pause`, if not NULL, is called between two of them, and -1 from it ends the sweep with its error. */
int sweep_run(struct sweep *w, int (*pause)(void *ctx, struct err *err), void *ctx, struct err *err);

/* After an error: the position of a sequence whose stored latents are not to be used (a source said so, or they are not
 * finite), and the place of the sequence. -1: the error was another one. */
int64_t sweep_bad_position(const struct sweep *w, int32_t *sequence);

/* Progress: tokens x layers done, of all n x n_layers of them. */
int64_t sweep_token_layers(const struct sweep *w);

/* Valid until sweep_end; its arrays are the sweep's. */
void sweep_count(const struct sweep *w, struct sweep_stats *stats);

/* Takes NULL. Before its end: the sessions keep the tokens of the chunks that were done. */
void sweep_end(struct sweep *w);

#endif
