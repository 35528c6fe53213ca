/*
 * A checkpoint: its config.json read into one struct, and its tensors in owned memory.
 *
 * One core serves glm_moe_dsa (GLM-5, 5.1, 5.2, 5.3), deepseek_v32, deepseek_v3, kimi_k2 and glm4_moe_lite: a
 * difference between them is a field here, never a test for a name. Field meanings and formulas: the comments
 * give the symbol of the model's description (docs/model.md) where it has one.
 */
#ifndef QUIRE_ENGINE_MODEL_H
#define QUIRE_ENGINE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "engine/weight.h"

enum { MODEL_MAX_LAYERS = 512, MODEL_MAX_EOS = 16, MODEL_ID_BYTES = 32 };

/* Rotary embedding. Without YaRN, factor is 1 and the rest is not used. Cos and sin are multiplied by nothing: a
 * config that asks for it is refused. */
struct rope_config {
	double theta;
	bool yarn;
	double factor, original_positions, beta_fast, beta_slow;
	double mscale, mscale_all_dim; /* 0: the file has none */
};

struct model_config {
	char architecture[48];  /* model_type, e.g. "glm_moe_dsa" */
	int32_t hidden;         /* H */
	int32_t n_layers;       /* L, without MTP layers */
	int32_t n_mtp_layers;   /* layers n_layers, n_layers + 1, ...: may be in the files; loaded when asked for */
	int32_t vocab;
	int64_t max_positions;
	bool tied_head;         /* the head is the embedding */

	int32_t n_heads;        /* NH */
	int32_t q_lora;         /* RQ; 0: queries come straight from q_proj, kept in layer.q_b */
	int32_t kv_lora;        /* RKV */
	int32_t nope_dim, rope_dim, v_dim; /* DN, DR, DV: per head; a query is [nope | rope] */
	float attention_scale;  /* s: (DN + DR)^-1/2, times YaRN's mscale squared where there is one */
	struct rope_config rope;
	bool rope_interleaved;  /* pairs (2j, 2j+1), else (j, j + DR/2) */

	bool has_indexer;
	int32_t index_n_heads, index_dim, index_topk; /* IH, ID, k */
	bool index_rope_interleaved;
	bool layer_is_full[MODEL_MAX_LAYERS]; /* owns an indexer; a layer that does not uses the last full one's set.
	                                         All false without an indexer: every visible position is attended */

	bool mtp_shares_choice; /* drafts after the first attend to what the first one chose (mtp.h). In no latent, and so not in
	                           model_config_text */

	bool layer_is_dense[MODEL_MAX_LAYERS]; /* one dense MLP in place of experts */
	int32_t dense_dim;      /* FD */
	int32_t expert_dim;     /* FE */
	int32_t n_experts, experts_per_token, n_shared_experts; /* E, K; shared ones are one MLP of n x FE */
	int32_t n_groups, topk_groups;
	bool normalize_topk;    /* divide the chosen weights by their sum */
	float routed_scale;

	float norm_eps;         /* layer norms, final norm */
	float mla_norm_eps;     /* q_a_layernorm, kv_a_layernorm */
	float index_norm_eps;   /* k_norm of the indexer */

	int32_t n_eos;
	int32_t eos[MODEL_MAX_EOS];
};

struct expert {
	struct weight gate, up, down; /* [FE, H], [FE, H], [H, FE] */
};

/* Vectors are widened to float32 when they are loaded (exact). */
struct layer {
	const float *input_norm;          /* [H] */
	struct weight q_a;                /* [RQ, H] */
	const float *q_a_norm;            /* [RQ] */
	struct weight q_b;                /* [NH * (DN + DR), RQ] */
	struct weight kv_a;               /* [RKV + DR, H] */
	const float *kv_a_norm;           /* [RKV] */
	struct weight kv_b;               /* [NH * (DN + DV), RKV]; head h: rows h (DN + DV) .., UK then UV */
	struct weight o;                  /* [H, NH * DV] */

	struct weight index_q;            /* [IH * ID, RQ]; full layers only, as the next four */
	struct weight index_k;            /* [ID, H] */
	const float *index_k_norm;        /* [ID] */
	const float *index_k_norm_bias;   /* [ID] */
	struct weight index_weights;      /* [IH, H] */

	const float *post_attention_norm; /* [H] */
	struct expert mlp;                /* dense layers: the MLP; sparse ones: the shared expert */
	struct weight router;             /* [E, H]; sparse layers only, as the next two */
	const float *router_bias;         /* [E] */
	struct expert *experts;           /* [E] */
};

/* The layer behind the last one, which drafts (mtp.h): a sparse layer, full where the model has an indexer, and what
 * stands around it. */
struct mtp {
	struct layer layer;
	const float *enorm, *hnorm;   /* [H] of the next token's embedding, of the model's output */
	struct weight eh_proj;        /* [H, 2 H]; the embedding's half first */
	const float *norm;            /* [H] shared_head.norm */
	struct weight embedding, head; /* [vocab, H] its own where the files have them, else the model's */
};

/* Bytes on disk by kind, MTP layers counted whether loaded or not. */
struct model_bytes {
	uint64_t embedding, head, attention, indexer, norms, dense, shared, routed, router, mtp, other;
};

struct model {
	char *dir;
	struct model_config config;
	struct weight embedding;      /* [vocab, H] */
	struct weight head;           /* [vocab, H] */
	const float *final_norm;      /* [H] */
	struct layer *layers;         /* [L] */
	struct mtp *mtp;              /* NULL: not asked for. Its experts are in memory, whatever the tier */
	struct experts *experts;      /* the tier of routed experts that are not all in memory (experts.h): their matrices have data
	                                 only while they are taken. NULL: all are loaded */
	struct checkpoint *files;     /* of the tier; NULL */
	struct model_bytes bytes;
	uint64_t n_tensors;
	uint64_t loaded_bytes;        /* owned memory, this struct's vectors included */
	uint8_t fingerprint[MODEL_ID_BYTES]; /* config fields used, tokenizer.json, every tensor's name, dtype, shape and
	                                        hashed bytes: the part of the model identity that the files decide */
	void *memory;                 /* private to model.c */
};

struct model_options {
	float mla_norm_eps;           /* 0: the architecture's (1e-6) */
	int n_threads;                /* that read; 0: 1 */
	bool mtp;                     /* load the MTP layer; ERR_USAGE where there is none. The fingerprint is the same */
	const struct experts_options *experts; /* NULL: routed experts are loaded like all weights; else the tier they are in,
	                                          whose fingerprint is filled in here */
};

/* Read and check DIR/config.json. *config is complete or not to be used. Errors name the file, the key, and the two
 * values that disagree; an unknown architecture is refused by name. */
int model_config_load(struct model_config *config, const char *dir, const struct model_options *opt, struct err *err);

/* The same from text; `name` opens every sentence. */
int model_config_parse(struct model_config *config, const char *name, const char *text, size_t bytes,
		       const struct model_options *opt, struct err *err);

/* Every field of the config that a latent or a logit depends on, one "key value" line each, floats in hexadecimal: equal texts, equal configs. free(). */
char *model_config_text(const struct model_config *c);

/* Read a checkpoint: config, then every tensor, each dimension checked against the config. Weights are read into
 * owned memory, so that a file which changes later cannot change an answer. opt may be NULL. On error nothing is
 * left behind. A model does not change after this: any thread may read it. */
int model_open(struct model **out, const char *dir, const struct model_options *opt, struct err *err);

/* The same from the headers alone: config, bytes, n_tensors, loaded_bytes (what model_open would own) and each weight's
 * dtype and shape. No weight is read: every data is NULL, and there is no fingerprint. */
int model_open_headers(struct model **out, const char *dir, const struct model_options *opt, struct err *err);

/* For who reads routed experts one after another and nothing else: the headers, and the tier of opt->experts over the
 * files, so that experts_take gives an expert's matrices. Has a fingerprint. */
int model_open_experts(struct model **out, const char *dir, const struct model_options *opt, struct err *err);

/* Takes NULL. */
void model_close(struct model *m);

/* Parameters: all of them without the MTP layers, those of the MTP layers, and those a token uses (head counted,
 * embedding row not). From the config alone. */
struct model_parameters {
	uint64_t total, mtp, active;
};
struct model_parameters model_count_parameters(const struct model_config *c);

#endif
