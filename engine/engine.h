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
};

struct engine;

int engine_open(struct engine **out, const struct engine_options *opt, struct err *err);
/* Takes NULL. */
void engine_close(struct engine *e);
int engine_n_threads(const struct engine *e);
const char *engine_isa(const struct engine *e);
/* The instruction sets that this build has kernels for and this processor can run, best first; the first is what isa
 * NULL means. Returns how many there are; at most `room` are written. */
int cpu_isas(const char **names, int room);
enum compute_profile engine_compute(const struct engine *e);

/* Everything a stored latent depends on besides the tokens: the model's fingerprint, render format, compute profile,
 * latent format, backend class and NUMERICS, as BLAKE2b-256. */
void engine_identity(const struct engine *e, const struct model *m, enum latent_format format,
		     uint8_t identity[MODEL_ID_BYTES]);

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
};

/* Run n tokens through the model at positions n_tokens .., all at once, and keep their latents. last_logits, when
 * not NULL, receives [vocab] of the last one. tap may be NULL. On error (an id out of range: ERR_USAGE; beyond
 * max_tokens: ERR_TOO_LARGE; a value that is not finite: ERR_FORMAT, naming layer and position) the session is as
 * before the call. n >= 1. */
int session_append(struct session *s, const int32_t *ids, size_t n, float *last_logits,
		   const struct session_tap *tap, struct err *err);

/* Forget all tokens from position n_tokens on. */
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

/* Fill n further positions with seeded random latents and index keys in place of computed ones, for measuring at a
 * depth. They are rounded as stored ones are; each depends on seed, layer and position alone. Without room for all of
 * them (ERR_TOO_LARGE) the session is as before. */
int session_fill(struct session *s, int64_t n, uint64_t seed, struct err *err);

#endif
