#include "engine/layout.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"

enum { LAYERS_PER_GROUP = 4, SCALE_RUN = 128 };

static const char *const names[N_LATENT_FORMATS] = {"bf16", "fp8", "f32"};

const char *latent_format_name(enum latent_format format)
{
	return names[format];
}

int latent_format_from_name(const char *name)
{
	for (int i = 0; i < N_LATENT_FORMATS; i++)
		if (!strcmp(name, names[i]))
			return i;
	return -1;
}

static size_t row_bytes(const struct model_config *c, enum latent_format format)
{
	size_t latent = (size_t)c->kv_lora, rope = (size_t)c->rope_dim;

	switch (format) {
	case LATENTS_FP8:
		return latent + 4 * ((latent + SCALE_RUN - 1) / SCALE_RUN) + 2 * rope;
	case LATENTS_F32:
		return 4 * (latent + rope);
	default:
		return 2 * (latent + rope);
	}
}

static void add_layer(struct layout_group *g, int32_t layer)
{
	assert(g->n_layers < (int32_t)(sizeof g->layers / sizeof g->layers[0]));
	g->layers[g->n_layers++] = layer;
}

/* Layers after `layer` that reuse its choice. */
static int32_t n_sharing(const struct model_config *c, int32_t layer)
{
	int32_t n = 0;

	while (layer + 1 + n < c->n_layers && !c->layer_is_full[layer + 1 + n])
		n++;
	return n;
}

static void group_by_indexer(struct layout *l, const struct model_config *c)
{
	struct layout_group *lone = NULL; /* holds one unshared full layer and has room for the next */

	for (int32_t i = 0; i < c->n_layers; i++) {
		struct layout_group *g;
		int32_t n;

		if (!c->layer_is_full[i])
			continue;
		n = n_sharing(c, i);
		if (!n && lone) {
			add_layer(lone, i);
			lone = NULL;
			continue;
		}
		g = &l->groups[l->n_groups++];
		for (int32_t j = 0; j <= n; j++)
			add_layer(g, i + j);
		if (!n)
			lone = g;
	}
}

struct layout *layout_new(const struct model_config *c, enum latent_format format)
{
	struct layout *l = xcalloc(1, sizeof *l);

	l->n_layers = c->n_layers;
	l->groups = xcalloc((size_t)c->n_layers, sizeof *l->groups);
	l->index_layers = xcalloc((size_t)c->n_layers, sizeof *l->index_layers);
	l->row_bytes = row_bytes(c, format);
	if (c->has_indexer) {
		group_by_indexer(l, c);
		l->index_key_bytes = (format == LATENTS_F32 ? 4 : 2) * (size_t)c->index_dim;
		for (int32_t i = 0; i < c->n_layers; i++)
			if (c->layer_is_full[i])
				l->index_layers[l->n_index_layers++] = i;
	} else {
		for (int32_t i = 0; i < c->n_layers; i++) {
			if (i % LAYERS_PER_GROUP == 0)
				l->n_groups++;
			add_layer(&l->groups[l->n_groups - 1], i);
		}
	}
	return l;
}

size_t layout_record_bytes(const struct layout *l, int32_t group)
{
	return (size_t)l->groups[group].n_layers * l->row_bytes;
}

void layout_free(struct layout *l)
{
	if (!l)
		return;
	free(l->groups);
	free(l->index_layers);
	free(l);
}
