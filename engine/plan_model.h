/*
 * A model as a plan counts it: parameters, and what a token costs, from a config.json of many architectures, those too that
 * the engine does not run. No weight is needed.
 *
 * The counts are those of the text part, without biases of norms and the like that round to nothing; each family's
 * formula stands beside its function. An architecture that is not known is counted from the headers of the safetensors
 * files, if there are any: its total is right then, and what a token uses is not known.
 */
#ifndef QUIRE_ENGINE_PLAN_MODEL_H
#define QUIRE_ENGINE_PLAN_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"
#include "engine/model.h"

enum plan_component {
	PLAN_EMBEDDING,
	PLAN_HEAD,
	PLAN_ATTENTION,
	PLAN_INDEXER,
	PLAN_DENSE,      /* MLPs of layers without experts */
	PLAN_SHARED,
	PLAN_ROUTED,
	PLAN_ROUTER,
	PLAN_NORMS,
	PLAN_MTP,
	N_PLAN_COMPONENTS
};

/* "embedding", "head", ... */
const char *plan_component_name(enum plan_component c);

struct plan_model {
	char architecture[48];      /* model_type, of the text part */
	bool known;                 /* false: counted from headers alone, `total` is all there is */
	bool int4_experts;          /* it says that `quire model pack` wrote it */
	bool runs;                  /* the engine has this architecture, and config is how it reads the file */
	struct model_config config;
	int64_t hidden, n_layers, n_moe_layers, n_experts, experts_per_token, max_positions;
	/* Parameters by component; `used`: by one token (a chosen expert's, not all; of the embedding one row, not counted). */
	uint64_t parameters[N_PLAN_COMPONENTS], used[N_PLAN_COMPONENTS];
	uint64_t total;             /* without MTP layers, a tied head counted once */
	uint64_t active;            /* of compute: head, not embedding */
	uint64_t active_with_embedding;
	uint64_t expert_parameters; /* of one routed expert */
	/* What a token leaves behind for later ones: numbers, of attention and of the indexer, over all layers. */
	uint64_t kv_numbers, index_numbers;
	/* Of those kv_numbers, rows of MLA: a latent of kv_lora and rope_dim numbers in each of so many layers; 0: none. */
	int64_t mla_layers, kv_lora, rope_dim;
	/* Operations of one token at a context of C tokens (a multiply-add is two), beside 2 x active:
	 *   index_flops_per_key x C + attention_flops_per_key x min(C, attended) + unlimited_flops_per_key x C */
	uint64_t index_flops_per_key, attention_flops_per_key, unlimited_flops_per_key;
	int64_t attended;           /* index_topk, or a window; 0 where nothing is limited */
};

/* From the text of a config.json; `name` opens every sentence. An unknown architecture: 0, with known false and no counts. */
int plan_model_parse(struct plan_model *m, const char *name, const char *text, size_t bytes, struct err *err);

/* From a config.json, or a directory with one; where the architecture is not known, from the headers beside it. */
int plan_model_load(struct plan_model *m, const char *path, struct err *err);

/* All architectures that are known, for sentences: NULL-terminated. */
extern const char *const plan_architectures[];

#endif
