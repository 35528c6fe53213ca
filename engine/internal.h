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
#include "offload/device.h"

struct engine {
	struct device device;
	struct pool *pool;
	const struct ops *ops;
	enum compute_profile compute;
};

struct session {
	struct engine *engine;
	const struct model *model;
	struct session_options opt;
	struct layout *layout;
	struct arena *arena, *scratch; /* of the pass under way, and of the part of a layer under way */
	float *inv_freq;              /* [rope_dim / 2] */
	int64_t n_tokens, room;       /* room: a multiple of KEYS_ABREAST */
	/* Rotated, in the types and places that ops.h says for the engine's profile: */
	void **rows;                  /* [n_layers] of [room, kv_lora + rope_dim] */
	void **keys;                  /* [n_index_layers] of [room / 16, index_dim, 16] */
	uint8_t **stored_rows;        /* [n_layers] of [room, row_bytes]; only with keep_records */
	uint8_t **stored_keys;        /* [n_index_layers] of [room, index_key_bytes]; likewise */
};

/* n tokens on their way through the layers. Its arrays come from the session's arena; what attention, indexer and MLP
 * need for a moment comes from `scratch`, which is reset before each part of a layer. */
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
	int32_t *sets;                /* [n, index_topk] what selections point to */
};

/* forward.c: run the pass's tokens, filling rows first .. first + n - 1 of the session. */
int forward(struct session *s, const int32_t *ids, int64_t n, float *last_logits, const struct session_tap *tap,
	    struct err *err);

/* attention.c: h += attention(u) of a layer. */
int attention_forward(struct pass *p, int32_t layer, struct err *err);

/* indexer.c: choose positions for every token of the pass, from the layer's input u and its query latents qr
 * [n, q_lora]; index keys of the tokens are kept first. */
int indexer_select(struct pass *p, int32_t layer, const float *qr, struct err *err);

/* moe.c: h += mlp(u) of a layer, dense or sparse. */
void mlp_forward(struct pass *p, int32_t layer);

/* session.c: the index of a full layer among the index layers. */
int32_t session_index_layer(const struct session *s, int32_t layer);

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

#endif
