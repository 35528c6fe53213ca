/*
 * What the engine's files share and nobody else sees: an engine, a session, and the pass of some tokens through the
 * layers.
 */
#ifndef QUIRE_ENGINE_INTERNAL_H
#define QUIRE_ENGINE_INTERNAL_H

#include <string.h>

#include "config/mem.h"
#include "engine/engine.h"
#include "engine/ops.h"
#include "engine/pool.h"
#include "engine/sweep.h"
#include "offload/device.h"

struct engine {
	struct device device;
	struct pool *pool;
	const struct ops *ops;
	enum compute_profile compute;
	struct accelerator *accelerator; /* NULL: none */
};

struct session {
	struct engine *engine;
	const struct model *model;
	struct session_options opt;
	struct layout *layout;
	struct arena *arena, *scratch; /* of the pass under way, and of the part of a layer under way */
	float *inv_freq;              /* [rope_dim / 2] */
	int64_t n_tokens, room;       /* room: a multiple of KEYS_ABREAST */
	struct gather *gather;        /* NULL: no token is attached (gather.h) */
	struct angles_kept *angles;   /* while keys are loaded; NULL: nothing is kept */
	int64_t n_slots;              /* rows of attached tokens, before those of the session's own */
	size_t open_bytes;            /* by_group: of the arrays that are there, all of this room; the others are NULL */
	/* Rotated, in the types and places that ops.h says for the engine's profile: */
	void **rows;                  /* [n_layers] of [n_slots + room, kv_lora + rope_dim] */
	void **keys;                  /* [n_index_layers] of [room / 16, index_dim, 16] */
	uint8_t **stored_rows;        /* [n_layers] of [room, row_bytes]; only with keep_records */
	uint8_t **stored_keys;        /* [n_index_layers] of [room, index_key_bytes]; likewise */
};

/* A tile: n tokens on their way through a part of a layer. What attention, indexer and MLP need for a moment comes from
 * `scratch`, which is reset before each part. */
struct pass {
	struct session *s;
	const struct model *m;
	const struct model_config *c;
	const struct ops *ops;
	struct device *dev;
	struct arena *scratch;
	const struct session_tap *tap;
	int64_t first, n;             /* positions first .. first + n - 1 */
	float *h;                     /* [n, hidden] the residual stream */
	float *u;                     /* [n, hidden] its norm: the input of the part under way */
	float *cos, *sin;             /* [n, rope_dim / 2] */
	struct selection *selections; /* [n] of the last full layer, used by the shared layers after it */
	const struct selection *chosen; /* [n] what all layers attend to, full ones, too; NULL: what those choose */
	int32_t *sets;                /* [n, index_topk] what selections point to */
	/* Where the layer's latents and index keys go as stored, besides the session; NULL: nowhere. Token i's row at
	 * records + i x record_bytes, its key at index_keys + i x index_key_bytes. */
	uint8_t *records, *index_keys;
	size_t record_bytes;
};

/* How many rows a tile has. */
struct pace {
	int64_t rows, most;
};
enum { PACE_FULL, PACE_SHARED, PACE_MLP, N_PACES };

/* A tile of so many rows took so long: halved, to no fewer than 16, where that was more than half a second; doubled,
 * to no more than `most`, where it was a whole one and took less than a tenth. */
void pace_learn(struct pace *p, int64_t rows, int64_t ns);

/* A chunk's tokens row .. row + n - 1: a session's positions first .. first + n - 1. It attends to those before, and has
 * room for these. */
struct chunk_part {
	struct session *s;
	const int32_t *ids;           /* [n]; NULL: h is given */
	int64_t first, row, n;
};

/*
 * A chunk: n tokens on their way through all layers, in tiles (forward.c). A tile is attention of some tokens of one
 * part, or one expert or dense MLP over some tokens; between two tiles the engine is free for others. The arrays lie in
 * one piece of memory, of chunk_bytes.
 */
struct chunk {
	struct session *s;            /* of the first part: engine, model and scratch are taken from there */
	const struct session_tap *tap; /* of a chunk of one part */
	const struct chunk_part *parts; /* [n_parts], their rows in this order */
	int32_t n_parts, at_part;     /* at_part: where `row` is in attention */
	int32_t first_layer;          /* h of all tokens is given there, unless it is 0 */
	int64_t n;
	void *memory;
	float *h;                     /* [n, hidden] */
	void *u;                      /* [n, hidden] the MLP's input: bf16 in profile bf16, else float32 */
	float *cos, *sin;             /* [n, rope_dim / 2] */
	struct selection *selections; /* [n] */
	const struct selection *chosen; /* as in struct pass; set by whoever wants it */
	int32_t *sets;                /* [n, index_topk]; NULL: no indexer */
	int32_t *experts;             /* [n, experts_per_token] what the router chose, and with what weights */
	float *weights;
	/* The same by expert: e has tokens[start[e]] .. tokens[start[e + 1] - 1], ascending, with their weights. */
	int32_t *start, *tokens;
	float *token_weights;
	/* Of layers that score all positions, of those that do not, and of MLPs. */
	struct pace pace[N_PACES];
	/* Where it stands: */
	int32_t layer;
	enum { PART_ATTENTION, PART_EXPERTS, PART_FEW, PART_MLP } part;
	int32_t expert;
	int64_t row;                  /* of the part: a token, or one of the expert's tokens */
	/* Few tokens with a tier of experts, PART_FEW: the experts that are not computed yet, n_few - row of them, in any order, and
	 * what those gave that are, [n, experts_per_token, hidden] by expert. While an expert is waited for, the shared one gives
	 * shared_out [n, hidden] (NULL: it has not), and of expert `half` gate and up are multiplied, of its read half_reading (0: of
	 * none), into half_gate [n, its width]. */
	int32_t *few, n_few;
	float *few_out, *shared_out, *half_gate;
	int32_t half;
	int64_t half_reading;
	/* What of these is computed on a device, or will be: n_on_device, all given to it once it has begun. */
	struct device_work *on_device; /* experts_device.h */
	int32_t n_on_device;
	/* Set before each layer by whoever wants what it stores: as in struct pass, of token 0. */
	uint8_t *records, *index_keys;
	size_t record_bytes;
	/* [n_layers, n_experts] added to; NULL: nobody counts. */
	int64_t *expert_reads, *expert_tokens;
	int (*take_up)(void *ctx, int32_t layer, int32_t expert, struct err *err); /* sweep_options has it */
	void *take_up_ctx;
};

enum {
	/* Tokens of a pass from which a tier of experts learns, for which it reads ahead, and whose experts are computed as they come. */
	CHUNK_FEW = 8,
	TILE_ROWS = 256, /* rows of a tile at most: enough for products to run at full speed */
};

/* A chunk of n tokens takes n x sweep_token_bytes(token) (latents not among them) and fixed_bytes. */
enum { CHUNK_ARRAYS = 11, CHUNK_ALIGN = 64 };
void chunk_bytes(const struct model_config *c, enum compute_profile compute, struct sweep_bytes *token,
		 size_t *fixed_bytes);

/* n_parts >= 1 of at least a token each, which must stay. tile: most rows of a tile, 0: as many as are good. Without
 * memory for it: ERR_TOO_LARGE. tap may be NULL. To begin at a later layer than 0, set k->layer = k->first_layer and
 * k->h before the first step. */
int chunk_begin(struct chunk *k, const struct chunk_part *parts, int32_t n_parts, int64_t tile,
		const struct session_tap *tap, struct err *err);
/* The next tile. 1: there is more; 0: all layers are done; -1: error. */
int chunk_step(struct chunk *k, struct err *err);
/* After the last step: logits of a part for the tap, and of its last token to last_logits [vocab] unless NULL. */
int chunk_logits(struct chunk *k, const struct chunk_part *part, float *last_logits, struct err *err);
/* Once chunk_begin has been called, whatever it said, or for all zeros; once more does nothing. */
void chunk_end(struct chunk *k);

/* forward.c: run n tokens, filling rows n_tokens .. n_tokens + n - 1 of the session. */
int forward(struct session *s, const int32_t *ids, int64_t n, float *last_logits, const struct session_tap *tap,
	    struct err *err);

/* attention.c: h += attention(u) of a layer. */
int attention_forward(struct pass *p, int32_t layer, struct err *err);

/* indexer.c: choose positions for every token of the pass, from the layer's input u and its query latents qr
 * [n, q_lora]; index keys of the tokens are kept first. */
int indexer_select(struct pass *p, int32_t layer, const float *qr, struct err *err);

/* moe.c: the experts that the pass's tokens choose, from u: experts, weights [n, experts_per_token]. -1: the tap's error. */
int router_forward(struct pass *p, int32_t layer, int32_t *experts, float *weights, struct err *err);
/* With a tier of experts, which says whether it pays (experts_ask): what routers that have yet to speak would choose, that of `layer` or
 * the first behind it, and those after it. residual(ctx) [hidden]: of the last token, as far as it is known. whole: that is all
 * that comes before the layer's attention. waits: it is all that there is to do. */
void look_ahead(struct pass *p, int32_t layer, bool whole, bool waits, const float *(*residual)(void *ctx), void *ctx);
/* The choices of a chunk by expert: start, tokens, token_weights. */
void experts_assign(struct chunk *k);
/* mlp(u[rows[i]]) for i in [0, n), [n, hidden] in the pass's scratch; as below. */
float *mlp_whole(struct pass *p, const struct expert *e, const void *u, const int32_t *rows, int64_t n);
/* h[rows[i]] += weights[i] mlp(u[rows[i]]) for i in [0, n), with the h and u of a chunk; of the pass only what does not
 * depend on its tokens is used. rows NULL: row i; weights NULL: 1. */
void mlp_forward(struct pass *p, const struct expert *e, float *h, const void *u, const int32_t *rows,
		 const float *weights, int64_t n);
/* The products alone, in two steps: out[i] = mlp(u[rows[i]]). gate: [n, the MLP's width]. */
void mlp_half(struct pass *p, const struct expert *e, float *gate, const void *u, const int32_t *rows, int64_t n);
void mlp_down(struct pass *p, const struct expert *e, float *out, const float *gate, int64_t n);
/* u[i] as a chunk keeps it: rounded to bf16 where the profile does. to: [n, hidden]. */
void mlp_input_keep(struct pass *p, void *to);

/* session.c: what session_append refuses, and room for n more tokens. */
int session_admit(struct session *s, const int32_t *ids, size_t n, struct err *err);

/* session.c: the index of a full layer among the index layers. */
int32_t session_index_layer(const struct session *s, int32_t layer);

/* session.c: bytes of a token in what a layer attends to, and in a full layer's index keys. */
size_t session_row_bytes(const struct model_config *c, enum compute_profile compute);
size_t session_key_bytes(const struct model_config *c, enum compute_profile compute);

/* session.c, of a session by_group: what a layer attends to, with room for n_tokens, all zeros; and without it again. While
 * a layer is open, all that are have the same room. */
int session_open_layer(struct session *s, int32_t layer, int64_t n_tokens, struct err *err);
void session_close_layer(struct session *s, int32_t layer);
/* Of any session: tokens as stored to where open layers attend to them. ERR_DAMAGED, with *bad, when they are not finite. */
int session_place_records(struct session *s, int32_t group, int64_t first, int64_t n, const uint8_t *records,
			  int64_t *bad, struct err *err);
int session_place_index_keys(struct session *s, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
			     int64_t *bad, struct err *err);

/* keep.c: rows and keys on their way into a session's memory.
 * values [n, kv_lora + rope_dim], normed and not rotated, overwritten: packed, unpacked, rotated, at positions first ..
 * (p->cos and p->sin belong to them). What is not finite fails the device, naming layer and position. */
void keep_latents(struct pass *p, int32_t layer, float *values);
/* values [n, index_dim], after the norm, not rotated; overwritten. */
void keep_index_keys(struct pass *p, int32_t layer, float *values);
/* The way from unpacked values to a session's memory at positions first ..: rotate them in place, round them if the
 * profile does, and put them where attention reads. values [n, kv_lora + rope_dim], and [n, index_dim]. */
void place_latents(struct session *s, int32_t layer, float *values, int64_t first, int64_t n, const float *cos,
		   const float *sin);
void place_index_keys(struct session *s, int32_t index_layer, float *values, int64_t first, int64_t n,
		      const float *cos, const float *sin);
/* One row of rotated values to row `row` of a layer: a slot. From inside pool jobs, too. */
void session_place_row(const struct session *s, int32_t layer, int64_t row, const float *values);

#endif
