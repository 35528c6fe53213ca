/*
 * The engine: what computes (an `engine`: a backend, its threads and kernels, a compute profile) and one sequence
 * of tokens with its latents (a `session`). All of it belongs to one thread, the engine thread, unless said
 * otherwise.
 *
 * The promise that everything else stands on: logits and latents have the same bits for any split of the tokens
 * into calls, any number of threads, any instruction set, and whether latents were computed here or imported.
 */
#ifndef QUIRE_ENGINE_ENGINE_H
#define QUIRE_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "engine/layout.h"
#include "engine/model.h"

/* Changes whenever any bit of a latent or a logit changes; part of the model identity. tests/test_digest.c holds
 * the digest that belongs to it. */
enum { NUMERICS = 1 };

/* Changes whenever the rendering of documents changes (render.h). */
enum { RENDER_FORMAT = 1 };

enum compute_profile {
	COMPUTE_F32,  /* activations float32 */
	COMPUTE_BF16, /* the inputs of products rounded to bf16 (ops.h): what users get */
};

/* "f32", "bf16"; -1 for anything else. */
const char *compute_profile_name(enum compute_profile compute);
int compute_profile_from_name(const char *name);

struct engine_options {
	int n_threads;               /* 0: all cores this process may use */
	enum compute_profile compute;
	const char *isa;             /* NULL: the best this processor has; else "scalar", "avx2", "avx512" or "avx512bf16" */
	const char *device;          /* beside it, which computes routed experts: "cuda:0" (offload/accelerator.h); NULL: none */
};

struct engine;

int engine_open(struct engine **out, const struct engine_options *opt, struct err *err);
/* Takes NULL. */
void engine_close(struct engine *e);
int engine_n_threads(const struct engine *e);
/* For a model's experts_options, which must be closed before the engine; NULL: none. */
struct accelerator *engine_device(const struct engine *e);
const char *engine_isa(const struct engine *e);
/* The instruction sets that this build has kernels for and this processor can run, best first; the first is what isa
 * NULL means. Returns how many there are; at most `room` are written. */
int cpu_isas(const char **names, int room);
enum compute_profile engine_compute(const struct engine *e);

/* Everything a stored latent depends on besides the tokens: the model's fingerprint, render format, compute profile,
 * latent format, backend class and NUMERICS, as BLAKE2b-256. */
void engine_identity(const struct engine *e, const struct model *m, enum latent_format format,
		     uint8_t identity[MODEL_ID_BYTES]);
/* Its first eight bytes as sentences name it: 16 hex digits. Returns out. */
char *engine_identity_name(char out[17], const uint8_t *identity);

struct session;

struct session_options {
	enum latent_format latents;
	int64_t max_tokens;          /* refuse to grow beyond; 0: the model's max_positions */
	bool keep_records;           /* keep rows as stored, for session_export_* */
	/* Have latents in memory only while a sweep is at their group of layers (sweep.h), the way an ingest goes: the session
	 * can be swept, skipped into, truncated and freed, and nothing else. Not together with keep_records. */
	bool by_group;
};

/* Engine and model must outlive the session. Memory grows with its tokens. */
int session_new(struct session **out, struct engine *e, const struct model *m, const struct session_options *opt,
		struct err *err);
/* Takes NULL. */
void session_free(struct session *s);

int64_t session_n_tokens(const struct session *s);
/* By group: n further tokens, which a sweep_source has. */
void session_skip(struct session *s, int64_t n);
const struct layout *session_layout(const struct session *s);
/* Bytes that latents and index keys have room in, now. Room that no token has come to takes no memory. */
size_t session_bytes(const struct session *s);

/* What somebody may want to see of a forward pass; each may be NULL. Rows are valid during the call only. */
struct session_tap {
	void *ctx;
	/* Logits [vocab] of every position in ascending order: asking for them computes them all. */
	int (*logits)(void *ctx, int64_t position, const float *row, struct err *err);
	/* Positions chosen by a full layer for a query, ascending. Layers ascend, positions ascend in a layer. */
	int (*selected)(void *ctx, int32_t layer, int64_t position, const int32_t *set, int32_t n, struct err *err);
	/* What a router chose for a token, experts_per_token of them, and what it chose by: a score [n_experts] (sigmoid + bias,
	 * for the eye: rounded as no op rounds). Order as above. */
	int (*router)(void *ctx, int32_t layer, int64_t position, const float *scores, const int32_t *chosen, struct err *err);
	/* What the head reads, the final norm's output [hidden], of every position in ascending order; before its logits. */
	int (*output)(void *ctx, int64_t position, const float *row, struct err *err);
};

/* Run n tokens through the model at positions n_tokens .., all at once, and keep their latents. last_logits, when
 * not NULL, receives [vocab] of the last one. tap may be NULL. On error (an id out of range: ERR_USAGE; beyond
 * max_tokens: ERR_TOO_LARGE; a value that is not finite: ERR_FORMAT, naming layer and position) the session is as
 * before the call. n >= 1. */
int session_append(struct session *s, const int32_t *ids, size_t n, float *last_logits,
		   const struct session_tap *tap, struct err *err);

/* Forget all tokens from position n_tokens on, attached ones, too. */
void session_truncate(struct session *s, int64_t n_tokens);

/* Move latents as stored. Records are token-major, [n][layout_record_bytes(group)]; index keys [n][index_key_bytes],
 * unrotated. Exports need keep_records. Imports put tokens at the end: call session_import for every group and every
 * index layer with the same first and n (first = n_tokens), then session_import_commit(n). Values are checked to be
 * finite. */
void session_export_records(const struct session *s, int32_t group, int64_t first, int64_t n, uint8_t *out);
void session_export_index_keys(const struct session *s, int32_t index_layer, int64_t first, int64_t n, uint8_t *out);
int session_import_records(struct session *s, int32_t group, int64_t first, int64_t n, const uint8_t *records,
			   struct err *err);
int session_import_index_keys(struct session *s, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
			      struct err *err);
void session_import_commit(struct session *s, int64_t n);

/*
 * Attached tokens: their latents stay at a source until somebody attends to them. Index keys come at once, since every
 * token scores them all; a record comes when it is chosen, and stays while there is room. The bits are those of latents
 * that were imported.
 */
typedef int latent_taker(void *taker, int32_t index_layer, int64_t at, int64_t n, const uint8_t *keys, int64_t *bad,
			 struct err *err);
struct latent_source {
	void *ctx;
	/* What session_import_index_keys and session_import_records take: of n_layers index layers and tokens first ..
	 * first + n - 1, which are given to `take` in parts, in any order, so that a source may read while the session takes; or
	 * of n ascending positions. On failure *bad, which is -1 before, is a position whose latents cannot be had; where it is
	 * still -1, whatever wanted them fails with this error. take fails in the same way, and then so does index_keys. */
	int (*index_keys)(void *ctx, int32_t first_layer, int32_t n_layers, int64_t first, int64_t n, latent_taker *take,
			  void *taker, int64_t *bad, struct err *err);
	int (*records)(void *ctx, int32_t group, const int32_t *positions, int64_t n, uint8_t *out, int64_t *bad,
		       struct err *err);
	/* Told once that the session has given up the latents of these tokens, and why. May be NULL. */
	void (*lost)(void *ctx, int64_t first, int64_t n, const struct err *why);
};

/* The first n >= 1 tokens of an empty session that keeps no records. latent_bytes: memory for records, 0: as much as all
 * of them take. A model without an indexer attends to all latents, and gets them all now, whatever they take.
 * ERR_TOO_LARGE when what one token attends to is more than latent_bytes, saying how many it takes. The source must
 * outlive the session. On error the session is empty. */
int session_attach(struct session *s, const struct latent_source *source, int64_t n, size_t latent_bytes,
		   struct err *err);

/* What one token attends to of others at most: the least latent_bytes. */
size_t session_least_latent_bytes(const struct engine *e, const struct model *m);

/* Whether tokens wait to be computed again, since the source could not give their latents: the first ones, at most 64.
 * While there are any, and they may come up in any session_attach, session_append or session_recompute (a failed one
 * leaves the session as it was), tokens are refused with ERR_DAMAGED. */
bool session_lost(const struct session *s, int64_t *first, int64_t *n);
/* Compute just those again: ids [n] are theirs. Their latents then belong to the session. On error they are still
 * lost, and others before them may be, too: those first. */
int session_recompute(struct session *s, const int32_t *ids, int64_t first, int64_t n, struct err *err);

struct session_gathers {
	int64_t n_slots;             /* records of each group that there is memory for */
	size_t slot_bytes;           /* what they all take */
	int64_t wanted, hits;        /* records that full layers chose of attached tokens, each once for the tokens that were
				      * computed together; those that were there already */
	int64_t fetched, evicted;    /* records */
	int64_t fetched_bytes;       /* as stored */
	int64_t recomputed_tokens;
};
/* Since session_attach; zeros without. */
void session_count_gathers(const struct session *s, struct session_gathers *out);

/* Fill n further positions with seeded random latents and index keys in place of computed ones, for measuring at a
 * depth. They are rounded as stored ones are; each depends on seed, layer and position alone. Without room for all of
 * them (ERR_TOO_LARGE) the session is as before. */
int session_fill(struct session *s, int64_t n, uint64_t seed, struct err *err);

#endif
