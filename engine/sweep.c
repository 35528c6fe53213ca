#include "engine/sweep.h"

#include <assert.h>
#include <stdlib.h>

#include "cache/cache.h"
#include "engine/internal.h"

/* ---- the plan --------------------------------------------------------------------------------------------------- */

static int32_t last_layer(const struct layout_group *g)
{
	return g->layers[g->n_layers - 1];
}

/* Bytes of a token in a group: its record, and its index keys. */
static size_t group_bytes(const struct model_config *c, const struct layout *l, int32_t group)
{
	const struct layout_group *g = &l->groups[group];
	size_t bytes = layout_record_bytes(l, group);

	for (int32_t i = 0; i < g->n_layers; i++)
		bytes += c->has_indexer && c->layer_is_full[g->layers[i]] ? l->index_key_bytes : 0;
	return bytes;
}

/* A group is held from its first layer to the end of its last one. Layers of different groups may alternate: a full
 * layer that nobody shares waits for the next such one. */
static size_t held_bytes(const struct model_config *c, enum latent_format latents)
{
	struct layout *l = layout_new(c, latents);
	size_t most = 0;

	for (int32_t layer = 0; layer < c->n_layers; layer++) {
		size_t held = 0;

		for (int32_t g = 0; g < l->n_groups; g++)
			if (l->groups[g].layers[0] <= layer && layer <= last_layer(&l->groups[g]))
				held += group_bytes(c, l, g);
		most = held > most ? held : most;
	}
	layout_free(l);
	return most;
}

int sweep_plan(struct sweep_plan *plan, const struct model_config *c, enum compute_profile compute,
	       enum latent_format latents, int64_t n_tokens, size_t budget_bytes, struct err *err)
{
	int64_t most = c->n_experts ? INT32_MAX / c->experts_per_token : INT32_MAX; /* choices are counted in 32 bits */
	size_t fixed, token, fit;

	assert(n_tokens >= 1);
	*plan = (struct sweep_plan){.n_tokens = n_tokens};
	chunk_bytes(c, compute, &plan->token, &fixed);
	plan->token.latents = held_bytes(c, latents);
	token = sweep_token_bytes(&plan->token);
	fit = budget_bytes < fixed ? 0 : (budget_bytes - fixed) / token;
	if (budget_bytes && !fit)
		return err_set(err, ERR_TOO_LARGE, "a sweep needs %zu bytes of scratch memory for one token, the budget is "
			       "%zu: allow more", fixed + token, budget_bytes);
	if (budget_bytes && fit < (size_t)most)
		most = (int64_t)fit;
	plan->chunk_tokens = n_tokens < most ? n_tokens : most;
	if (plan->chunk_tokens < n_tokens && plan->chunk_tokens > CACHE_SPAN_TOKENS)
		plan->chunk_tokens -= plan->chunk_tokens % CACHE_SPAN_TOKENS;
	plan->n_chunks = (n_tokens + plan->chunk_tokens - 1) / plan->chunk_tokens;
	plan->reads_per_expert = plan->n_chunks;
	plan->scratch_bytes = (size_t)plan->chunk_tokens * token + fixed;
	return 0;
}

/* ---- the sweep -------------------------------------------------------------------------------------------------- */

struct sweep {
	struct session *s;
	struct sweep_options opt;
	struct sweep_plan plan;
	const int32_t *ids;
	int64_t n, at;                  /* tokens; those of the chunks that are done */
	bool under_way;                 /* a chunk is: `chunk` */
	struct chunk chunk;
	int32_t *group_of;              /* [n_layers] */
	uint8_t **records;              /* [n_groups] of the groups that are open, else NULL */
	uint8_t **index_keys;           /* [n_index_layers] likewise */
	size_t held, most_held;
	int64_t n_chunks;
	int64_t *expert_reads, *expert_tokens;
};

int sweep_begin(struct sweep **out, struct session *s, const int32_t *ids, size_t n, const struct sweep_options *opt,
		struct err *err)
{
	const struct model_config *c = &s->model->config;
	const struct layout *l = s->layout;
	struct sweep_plan plan;
	struct sweep *w;

	if (session_admit(s, ids, n, err) ||
	    sweep_plan(&plan, c, s->engine->compute, s->opt.latents, (int64_t)n, opt->scratch_bytes, err))
		return -1;
	w = xcalloc(1, sizeof *w);
	w->s = s;
	w->opt = *opt;
	w->plan = plan;
	w->ids = ids;
	w->n = (int64_t)n;
	w->group_of = xcalloc((size_t)c->n_layers, sizeof *w->group_of);
	for (int32_t g = 0; g < l->n_groups; g++)
		for (int32_t i = 0; i < l->groups[g].n_layers; i++)
			w->group_of[l->groups[g].layers[i]] = g;
	w->records = xcalloc((size_t)l->n_groups, sizeof *w->records);
	w->index_keys = xcalloc((size_t)l->n_index_layers, sizeof *w->index_keys);
	if (c->n_experts) {
		w->expert_reads = xcalloc((size_t)c->n_layers * (size_t)c->n_experts, sizeof *w->expert_reads);
		w->expert_tokens = xcalloc((size_t)c->n_layers * (size_t)c->n_experts, sizeof *w->expert_tokens);
	}
	*out = w;
	return 0;
}

static void hold(struct sweep *w, size_t bytes)
{
	w->held += bytes;
	if (w->held > w->most_held)
		w->most_held = w->held;
}

static int open_chunk(struct sweep *w, struct err *err)
{
	int64_t left = w->n - w->at, n = left < w->plan.chunk_tokens ? left : w->plan.chunk_tokens;
	struct sweep_bytes token;
	size_t fixed;

	if (chunk_begin(&w->chunk, w->s, w->ids + w->at, n, w->opt.tile_tokens, NULL, err))
		return -1;
	w->under_way = true;
	w->n_chunks++;
	w->chunk.expert_reads = w->expert_reads;
	w->chunk.expert_tokens = w->expert_tokens;
	chunk_bytes(&w->s->model->config, w->s->engine->compute, &token, &fixed);
	hold(w, (size_t)n * sweep_token_bytes(&token) + fixed);
	return 0;
}

static void close_chunk(struct sweep *w)
{
	chunk_end(&w->chunk);
	w->under_way = false;
	w->held = 0;
}

/* Before a layer: where what it stores goes. */
static int open_layer(struct sweep *w, struct err *err)
{
	struct chunk *k = &w->chunk;
	const struct layout *l = w->s->layout;
	int32_t group = w->group_of[k->layer], place = 0;
	const struct layout_group *g = &l->groups[group];
	size_t n = (size_t)k->n, record_bytes = layout_record_bytes(l, group);

	if (!w->opt.group)
		return 0;
	if (!w->records[group]) {
		w->records[group] = mem_try(n, record_bytes, "latents on their way to the store", err);
		if (!w->records[group])
			return -1;
		hold(w, n * record_bytes);
	}
	while (g->layers[place] != k->layer)
		place++;
	k->records = w->records[group] + (size_t)place * l->row_bytes;
	k->record_bytes = record_bytes;
	k->index_keys = NULL;
	if (w->s->model->config.has_indexer && w->s->model->config.layer_is_full[k->layer]) {
		k->index_keys = mem_try(n, l->index_key_bytes, "index keys on their way to the store", err);
		if (!k->index_keys)
			return -1;
		w->index_keys[session_index_layer(w->s, k->layer)] = k->index_keys;
		hold(w, n * l->index_key_bytes);
	}
	return 0;
}

/* After a layer: when it is its group's last one, what the group stores is handed over. */
static int close_layer(struct sweep *w, int32_t layer, struct err *err)
{
	const struct layout *l = w->s->layout;
	int32_t group = w->group_of[layer], index_layers[MODEL_MAX_LAYERS];
	const uint8_t *keys[MODEL_MAX_LAYERS];
	struct sweep_group g = {.group = group, .first = w->chunk.first, .n = w->chunk.n, .index_layers = index_layers,
				.index_keys = keys};
	int rc;

	if (!w->opt.group || layer != last_layer(&l->groups[group]))
		return 0;
	g.records = w->records[group];
	for (int32_t i = 0; i < l->n_index_layers; i++) {
		if (w->group_of[l->index_layers[i]] != group)
			continue;
		index_layers[g.n_index_layers] = i;
		keys[g.n_index_layers++] = w->index_keys[i];
	}
	rc = w->opt.group(w->opt.ctx, &g, err);
	for (int32_t i = 0; i < g.n_index_layers; i++) {
		free(w->index_keys[index_layers[i]]);
		w->index_keys[index_layers[i]] = NULL;
	}
	free(w->records[group]);
	w->records[group] = NULL;
	w->held -= (size_t)w->chunk.n * (layout_record_bytes(l, group) + (size_t)g.n_index_layers * l->index_key_bytes);
	return rc;
}

int sweep_step(struct sweep *w, struct err *err)
{
	struct chunk *k = &w->chunk;
	int32_t layer;
	int more;

	if (!w->under_way && open_chunk(w, err))
		return -1;
	layer = k->layer;
	if (k->part == PART_ATTENTION && !k->row && open_layer(w, err))
		return -1;
	more = chunk_step(k, err);
	if (more < 0 || (k->layer != layer && close_layer(w, layer, err)))
		return -1;
	if (more)
		return 1;
	if (w->at + k->n == w->n && chunk_logits(k, w->opt.last_logits, err))
		return -1;
	w->s->n_tokens += k->n;
	w->at += k->n;
	close_chunk(w);
	return w->at < w->n;
}

int sweep_run(struct sweep *w, int (*pause)(void *ctx, struct err *err), void *ctx, struct err *err)
{
	int more;

	while ((more = sweep_step(w, err)) > 0)
		if (pause && pause(ctx, err))
			return -1;
	return more;
}

int64_t sweep_token_layers(const struct sweep *w)
{
	return w->at * w->s->model->config.n_layers + (w->under_way ? w->chunk.n * w->chunk.layer : 0);
}

void sweep_count(const struct sweep *w, struct sweep_stats *stats)
{
	const struct model_config *c = &w->s->model->config;

	*stats = (struct sweep_stats){
		.n_chunks = w->n_chunks,
		.scratch_bytes = w->most_held,
		.expert_reads = w->expert_reads,
		.expert_tokens = w->expert_tokens,
	};
	for (int32_t i = 0; i < c->n_layers; i++) {
		const struct expert *experts = w->s->model->layers[i].experts;

		for (int32_t e = 0; !c->layer_is_dense[i] && e < c->n_experts; e++) {
			uint64_t reads = (uint64_t)w->expert_reads[(int64_t)i * c->n_experts + e];

			stats->n_expert_reads += (int64_t)reads;
			stats->expert_read_bytes += reads * (weight_bytes(&experts[e].gate) +
							     weight_bytes(&experts[e].up) +
							     weight_bytes(&experts[e].down));
		}
	}
}

void sweep_end(struct sweep *w)
{
	if (!w)
		return;
	close_chunk(w);
	for (int32_t g = 0; g < w->s->layout->n_groups; g++)
		free(w->records[g]);
	for (int32_t i = 0; i < w->s->layout->n_index_layers; i++)
		free(w->index_keys[i]);
	free(w->records);
	free(w->index_keys);
	free(w->group_of);
	free(w->expert_reads);
	free(w->expert_tokens);
	free(w);
}
