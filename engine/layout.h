/*
 * How a model's latents lie in the store: groups of layers, and the bytes of a record.
 *
 * A group is a full-indexer layer and the shared layers that reuse its choice, since their records are needed
 * together. Full layers that nobody shares are paired with the next such neighbour, an odd last one alone. Models
 * without an indexer: four consecutive layers, the last group shorter.
 */
#ifndef QUIRE_ENGINE_LAYOUT_H
#define QUIRE_ENGINE_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "engine/model.h"

enum latent_format {
	LATENTS_BF16, /* the latent, then the unrotated rope values, bf16 */
	LATENTS_FP8,  /* E4M3 codes, one float32 scale per 128 (the last run may be shorter), bf16 rope values */
	LATENTS_F32,  /* nothing rounded; for comparison with a float reference, never stored */
	N_LATENT_FORMATS
};

/* "bf16", "fp8", "f32"; -1 for anything else. */
const char *latent_format_name(enum latent_format format);
int latent_format_from_name(const char *name);

struct layout {
	int32_t n_layers;
	int32_t n_groups;
	struct layout_group {
		int32_t n_layers;
		int32_t layers[MODEL_MAX_LAYERS];       /* ascending */
	} *groups;
	int32_t n_index_layers;
	int32_t *index_layers;        /* the full layers, ascending */
	size_t row_bytes;             /* one token, one layer: a latent as stored */
	size_t index_key_bytes;       /* one token, one full layer: index_dim bf16 values (float32 in LATENTS_F32) */
};

/* Bytes of one token's record in a group: its layers' rows adjacent, in the order of `layers`. */
size_t layout_record_bytes(const struct layout *l, int32_t group);

struct layout *layout_new(const struct model_config *c, enum latent_format format);
/* Takes NULL. */
void layout_free(struct layout *l);

#endif
