#include "engine/sweep.h"

#include <assert.h>
#include <stdlib.h>

#include "cache/cache.h"
#include "config/clock.h"
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

size_t sweep_rows_bytes(const struct model_config *c, enum compute_profile compute, int64_t n_tokens)
{
	struct layout *l = layout_new(c, LATENTS_BF16); /* for its groups, which are those of every format */
	size_t row = session_row_bytes(c, compute), key = session_key_bytes(c, compute), most = 0;

	for (int32_t layer = 0; layer < c->n_layers; layer++) {
		size_t held = 0;

		for (int32_t g = 0; g < l->n_groups; g++) {
			const struct layout_group *group = &l->groups[g];

			for (int32_t i = 0; group->layers[0] <= layer && i < group->n_layers; i++)
				if (group->layers[i] >= layer)
					held += row + (c->has_indexer && c->layer_is_full[group->layers[i]] ? key : 0);
		}
		most = held > most ? held : most;
	}
	layout_free(l);
	return most * (size_t)((n_tokens + KEYS_ABREAST - 1) / KEYS_ABREAST * KEYS_ABREAST);
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

/*   open_chunk --> enter_layer --> LOAD --> TILE --> leave_layer --> STORE --> CHECKPOINT --+
 *        |           ^   |  (its group    ^  |  ^      |  (it is its group's last)          |
 *        |           |   |   begins)      |  +--+      |                                    |
 *        +-> RESTORE-+   +----------------+            |                                    |
 *                    +---------------------------------+------------------------------------+--> the chunk is done
 *
 * (1) A group is open from its first layer to the end of STORE: then, and only then, there are buffers for what it stores.
 * (2) A session by_group has the rows of a layer from the beginning of its group to the end of the layer.
 * (3) At CHECKPOINT no group is open: residual rows are all that a token brings along.                                 */

/* Tokens that are brought from a source, or handed to a sink, in one step: some megabytes. */
enum { PIECE_TOKENS = 16 * CACHE_SPAN_TOKENS, STATE_PIECE_BYTES = 4 << 20 };

/* Whatever a checkpoint takes, a second's work is not worth one. */
enum { CHECKPOINT_LEAST_NS = 1000000000 };

struct sweep {
	struct sweep_sequence *sequences; /* [n_sequences] */
	int32_t n_sequences;
	const struct model_config *config;
	const struct layout *layout;
	enum compute_profile compute;
	struct sweep_options opt;
	struct sweep_plan plan;
	int32_t *group_of;              /* [n_layers] */

	int64_t n, at;                  /* tokens; those of the chunks that are done */
	bool under_way;                 /* a chunk is: */
	struct chunk chunk;
	struct chunk_part *parts;       /* [at most n_sequences] of the chunk: part i is of sequence at_sequence + i */
	int32_t at_sequence;
	int64_t at_token;               /* of that sequence, where its part begins */

	enum { RESTORE, LOAD, TILE, STORE, CHECKPOINT } stage;
	int32_t group;                  /* that is loaded or stored */
	/* How far: items of a group are the index keys of its full layers, then its records. */
	int32_t item, part;
	int64_t token;
	size_t state_at;                /* of the part's residual rows, in bytes */
	uint8_t *piece;                 /* [PIECE_TOKENS] of the widest item, from a source */

	int32_t n_open;                 /* groups */
	bool *is_open;                  /* [n_groups] */
	uint8_t **records;              /* [n_groups] of all tokens of the chunk, NULL: the group is not open */
	uint8_t **index_keys;           /* [n_index_layers] likewise */

	int64_t checkpoint_ns, checkpointed_ns; /* what the last one's steps took, and when it ended */
	int64_t bad;
	int32_t bad_sequence;
	size_t held;
	struct sweep_stats stats;
	int64_t *expert_reads, *expert_tokens;
};

static bool is_full(const struct sweep *w, int32_t layer)
{
	return w->config->has_indexer && w->config->layer_is_full[layer];
}

/* Admit every sequence, and count the tokens. */
static int admit(const struct sweep_sequence *q, int32_t n_sequences, int64_t *n, struct err *err)
{
	*n = 0;
	for (int32_t i = 0; i < n_sequences; i++) {
		const struct session *s = q[i].session;

		assert(q[i].n >= 1 && s->engine == q->session->engine && s->model == q->session->model);
		assert(s->opt.latents == q->session->opt.latents);
		if (session_admit(q[i].session, q[i].ids, (size_t)q[i].n, err))
			return -1;
		*n += q[i].n;
	}
	return 0;
}

/* Where a checkpoint can have been made: between two layers in no group. */
static int check_first_layer(const struct sweep *w, struct err *err)
{
	int32_t first = w->opt.first_layer;

	for (int32_t g = 0; g < w->layout->n_groups; g++)
		if (w->layout->groups[g].layers[0] < first && first <= last_layer(&w->layout->groups[g]))
			return err_set(err, ERR_USAGE, "a sweep cannot begin at layer %d, in the middle of group %d", first, g);
	if (first < 0 || first >= w->config->n_layers)
		return err_set(err, ERR_USAGE, "a sweep cannot begin at layer %d of %d", first, w->config->n_layers);
	if (first && w->plan.n_chunks > 1)
		return err_set(err, ERR_TOO_LARGE, "a sweep cannot begin at layer %d: a chunk has %lld of its %lld tokens", first,
			       (long long)w->plan.chunk_tokens, (long long)w->n);
	return 0;
}

static void find_groups(struct sweep *w)
{
	size_t widest = w->layout->index_key_bytes;
	bool any_source = false;

	w->group_of = xcalloc((size_t)w->config->n_layers, sizeof *w->group_of);
	for (int32_t g = 0; g < w->layout->n_groups; g++) {
		size_t bytes = layout_record_bytes(w->layout, g);

		for (int32_t i = 0; i < w->layout->groups[g].n_layers; i++)
			w->group_of[w->layout->groups[g].layers[i]] = g;
		widest = bytes > widest ? bytes : widest;
	}
	for (int32_t i = 0; i < w->n_sequences; i++)
		any_source = any_source || w->sequences[i].source;
	w->piece = any_source ? xmalloc(PIECE_TOKENS, widest) : NULL;
	w->is_open = xcalloc((size_t)w->layout->n_groups, sizeof *w->is_open);
	w->records = xcalloc((size_t)w->layout->n_groups, sizeof *w->records);
	w->index_keys = xcalloc((size_t)w->layout->n_index_layers, sizeof *w->index_keys);
}

int sweep_begin(struct sweep **out, const struct sweep_sequence *sequences, int32_t n_sequences,
		const struct sweep_options *opt, struct err *err)
{
	const struct session *s = sequences->session;
	const struct model_config *c = &s->model->config;
	struct sweep_plan plan;
	struct sweep *w;
	int64_t n;

	assert(n_sequences >= 1);
	if (admit(sequences, n_sequences, &n, err) ||
	    sweep_plan(&plan, c, s->engine->compute, s->opt.latents, n, opt->scratch_bytes, err))
		return -1;
	for (int32_t i = 0; i < n_sequences; i++)
		assert(!sequences[i].session->opt.by_group || sequences[i].source ||
		       (!sequences[i].session->n_tokens && plan.n_chunks == 1));
	w = xcalloc(1, sizeof *w);
	w->n_sequences = n_sequences;
	w->sequences = xcalloc((size_t)n_sequences, sizeof *w->sequences);
	memcpy(w->sequences, sequences, (size_t)n_sequences * sizeof *sequences);
	w->parts = xcalloc((size_t)n_sequences, sizeof *w->parts);
	w->config = c;
	w->layout = s->layout;
	w->compute = s->engine->compute;
	w->opt = *opt;
	w->plan = plan;
	w->n = n;
	w->bad = -1;
	w->checkpointed_ns = clock_now_ns();
	find_groups(w);
	if (c->n_experts) {
		w->expert_reads = xcalloc((size_t)c->n_layers * (size_t)c->n_experts, sizeof *w->expert_reads);
		w->expert_tokens = xcalloc((size_t)c->n_layers * (size_t)c->n_experts, sizeof *w->expert_tokens);
	}
	if (check_first_layer(w, err)) {
		sweep_end(w);
		return -1;
	}
	*out = w;
	return 0;
}

static void hold(struct sweep *w, size_t bytes)
{
	w->held += bytes;
	if (w->held > w->stats.scratch_bytes)
		w->stats.scratch_bytes = w->held;
}

/*
 * Chunks
 */

/* The next tokens that a chunk has room for. */
static int32_t choose_parts(struct sweep *w)
{
	int64_t row = 0, from = w->at_token;
	int32_t n = 0;

	while (row < w->plan.chunk_tokens && w->at_sequence + n < w->n_sequences) {
		const struct sweep_sequence *q = &w->sequences[w->at_sequence + n];
		int64_t left = q->n - from, room = w->plan.chunk_tokens - row;
		struct chunk_part part = {q->session, q->ids + from, q->session->n_tokens, row, left < room ? left : room};

		w->parts[n++] = part;
		row += part.n;
		from = 0;
	}
	return n;
}

static int open_chunk(struct sweep *w, struct err *err)
{
	struct sweep_bytes token;
	size_t fixed;

	if (chunk_begin(&w->chunk, w->parts, choose_parts(w), w->opt.tile_tokens, NULL, err))
		return -1;
	w->under_way = true;
	w->stats.n_chunks++;
	w->chunk.expert_reads = w->expert_reads;
	w->chunk.expert_tokens = w->expert_tokens;
	w->chunk.take_up = w->opt.take_up;
	w->chunk.take_up_ctx = w->opt.take_up_ctx;
	chunk_bytes(w->config, w->compute, &token, &fixed);
	hold(w, (size_t)w->chunk.n * sweep_token_bytes(&token) + fixed);
	w->chunk.layer = w->chunk.first_layer = w->opt.first_layer;
	return 0;
}

static void close_chunk(struct sweep *w)
{
	chunk_end(&w->chunk);
	w->under_way = false;
	w->held = 0;
}

/* All tokens of a chunk have been through all layers. */
static int finish_chunk(struct sweep *w, struct err *err)
{
	struct chunk *k = &w->chunk;

	for (int32_t i = 0; i < k->n_parts; i++) {
		const struct sweep_sequence *q = &w->sequences[w->at_sequence + i];
		bool ends = k->parts[i].ids + k->parts[i].n == q->ids + q->n;

		if (ends && chunk_logits(k, &k->parts[i], q->last_logits, err))
			return -1;
	}
	for (int32_t i = 0; i < k->n_parts; i++) {
		k->parts[i].s->n_tokens += k->parts[i].n;
		w->at_token = k->parts[i].ids + k->parts[i].n - w->sequences[w->at_sequence + i].ids;
	}
	w->at_sequence += k->n_parts - 1;
	if (w->at_token == w->sequences[w->at_sequence].n) {
		w->at_sequence++;
		w->at_token = 0;
	}
	w->at += k->n;
	close_chunk(w);
	return w->at < w->n;
}

/*
 * Groups
 */

/* The index layer that an item of the group is; -1: the records. */
static int32_t item_index_layer(const struct sweep *w, int32_t group, int32_t item)
{
	for (int32_t i = 0; i < w->layout->n_index_layers; i++)
		if (w->group_of[w->layout->index_layers[i]] == group && !item--)
			return i;
	return -1;
}

static void close_rows(struct sweep *w, int32_t layer)
{
	for (int32_t i = 0; i < w->chunk.n_parts; i++)
		if (w->parts[i].s->opt.by_group)
			session_close_layer(w->parts[i].s, layer);
}

static void close_group(struct sweep *w, int32_t group)
{
	int32_t index_layer;

	for (int32_t i = 0; i < w->layout->groups[group].n_layers; i++)
		close_rows(w, w->layout->groups[group].layers[i]);
	for (int32_t i = 0; (index_layer = item_index_layer(w, group, i)) >= 0; i++) {
		if (w->index_keys[index_layer])
			w->held -= (size_t)w->chunk.n * w->layout->index_key_bytes;
		free(w->index_keys[index_layer]);
		w->index_keys[index_layer] = NULL;
	}
	if (w->records[group])
		w->held -= (size_t)w->chunk.n * layout_record_bytes(w->layout, group);
	free(w->records[group]);
	w->records[group] = NULL;
	w->n_open -= w->is_open[group];
	w->is_open[group] = false;
}

static int open_rows(struct sweep *w, const struct layout_group *g, struct err *err)
{
	size_t bytes = 0;

	for (int32_t i = 0; i < w->chunk.n_parts; i++) {
		const struct chunk_part *p = &w->parts[i];

		for (int32_t k = 0; p->s->opt.by_group && k < g->n_layers; k++)
			if (session_open_layer(p->s, g->layers[k], p->first + p->n, err))
				return -1;
		bytes += p->s->opt.by_group ? session_bytes(p->s) : 0;
	}
	w->stats.rows_bytes = bytes > w->stats.rows_bytes ? bytes : w->stats.rows_bytes;
	return 0;
}

/* Where what a group stores goes until it ends; nowhere if nobody wants it. */
static int open_buffers(struct sweep *w, int32_t group, struct err *err)
{
	const struct layout *l = w->layout;
	size_t n = (size_t)w->chunk.n, bytes = layout_record_bytes(l, group);
	bool wanted = false;
	int32_t index_layer;

	for (int32_t i = 0; i < w->chunk.n_parts; i++)
		wanted = wanted || w->sequences[w->at_sequence + i].sink;
	if (!wanted)
		return 0;
	w->records[group] = mem_try(n, bytes, "latents on their way to the store", err);
	if (!w->records[group])
		return -1;
	hold(w, n * bytes);
	for (int32_t i = 0; (index_layer = item_index_layer(w, group, i)) >= 0; i++) {
		w->index_keys[index_layer] = mem_try(n, l->index_key_bytes, "index keys on their way to the store", err);
		if (!w->index_keys[index_layer])
			return -1;
		hold(w, n * l->index_key_bytes);
	}
	return 0;
}

/* Tokens of a part that go the way of the stage: from 0 on. */
static int64_t part_tokens(const struct sweep *w, int32_t part)
{
	const struct sweep_sequence *q = &w->sequences[w->at_sequence + part];

	if (w->stage == LOAD)
		return q->session->opt.by_group ? w->parts[part].first : 0;
	return q->sink ? w->parts[part].n : 0;
}

/* Whether there is a piece of the group left; then item, part and token say which. */
static bool find_piece(struct sweep *w)
{
	for (;; w->item++, w->part = 0) {
		for (; w->part < w->chunk.n_parts; w->part++, w->token = 0)
			if (w->token < part_tokens(w, w->part))
				return true;
		if (item_index_layer(w, w->group, w->item) < 0)
			return false;
	}
}

static bool begin_stage(struct sweep *w, int stage, int32_t group)
{
	w->stage = stage;
	w->group = group;
	w->item = w->part = 0;
	w->token = 0;
	return find_piece(w);
}

static int load_piece(struct sweep *w, struct err *err)
{
	const struct chunk_part *p = &w->parts[w->part];
	const struct sweep_source *from = w->sequences[w->at_sequence + w->part].source;
	int32_t index_layer = item_index_layer(w, w->group, w->item);
	int64_t left = p->first - w->token, n = left < PIECE_TOKENS ? left : PIECE_TOKENS, bad = -1;
	int rc;

	if (index_layer >= 0)
		rc = from->index_keys(from->ctx, index_layer, w->token, n, w->piece, &bad, err) ||
		     session_place_index_keys(p->s, index_layer, w->token, n, w->piece, &bad, err);
	else
		rc = from->records(from->ctx, w->group, w->token, n, w->piece, &bad, err) ||
		     session_place_records(p->s, w->group, w->token, n, w->piece, &bad, err);
	if (rc) {
		w->bad = bad;
		w->bad_sequence = w->at_sequence + w->part;
		return -1;
	}
	w->token += n;
	if (index_layer < 0)
		w->stats.source_tokens += n;
	return 0;
}

static int store_piece(struct sweep *w, struct err *err)
{
	const struct chunk_part *p = &w->parts[w->part];
	const struct sweep_sink *to = w->sequences[w->at_sequence + w->part].sink;
	int32_t index_layer = item_index_layer(w, w->group, w->item);
	int64_t left = p->n - w->token, n = left < PIECE_TOKENS ? left : PIECE_TOKENS, first = p->first + w->token;
	size_t row = (size_t)(p->row + w->token), record_bytes = layout_record_bytes(w->layout, w->group);

	if (index_layer >= 0 ? to->index_keys(to->ctx, index_layer, first, n,
					      w->index_keys[index_layer] + row * w->layout->index_key_bytes, err)
			     : to->records(to->ctx, w->group, first, n, w->records[w->group] + row * record_bytes, err))
		return -1;
	w->token += n;
	return 0;
}

/*
 * Residual rows, on their way from a checkpoint or to one
 */

/* A part's, and how many bytes they are. */
static uint8_t *state_of(const struct sweep *w, int32_t part, size_t *bytes)
{
	const struct chunk_part *p = &w->parts[part];

	*bytes = (size_t)(p->n * w->config->hidden) * sizeof *w->chunk.h;
	return (uint8_t *)(w->chunk.h + p->row * w->config->hidden);
}

/* Whether there is a piece of them left; then part and state_at say which. */
static bool find_state(struct sweep *w)
{
	for (; w->part < w->chunk.n_parts; w->part++, w->state_at = 0) {
		const struct sweep_sink *to = w->sequences[w->at_sequence + w->part].sink;
		size_t bytes;

		state_of(w, w->part, &bytes);
		if (w->state_at < bytes && (w->stage == RESTORE || (to && to->checkpoint)))
			return true;
	}
	return false;
}

static bool begin_state(struct sweep *w, int stage)
{
	w->stage = stage;
	w->part = 0;
	w->state_at = 0;
	return find_state(w);
}

static size_t state_piece(const struct sweep *w, size_t bytes)
{
	size_t most = w->opt.state_piece_bytes ? w->opt.state_piece_bytes : STATE_PIECE_BYTES;

	return bytes - w->state_at < most ? bytes - w->state_at : most;
}

static int restore_piece(struct sweep *w, struct err *err)
{
	const struct sweep_sequence *q = &w->sequences[w->at_sequence + w->part];
	size_t bytes, n;
	uint8_t *rows = state_of(w, w->part, &bytes);

	n = state_piece(w, bytes);
	if (q->residual(q->residual_ctx, bytes, w->state_at, rows + w->state_at, n, err))
		return -1;
	w->state_at += n;
	return 0;
}

static int save_piece(struct sweep *w, struct err *err)
{
	const struct sweep_sink *to = w->sequences[w->at_sequence + w->part].sink;
	int64_t began = clock_now_ns();
	size_t bytes, n;
	const uint8_t *rows = state_of(w, w->part, &bytes);
	int rc;

	n = state_piece(w, bytes);
	rc = to->checkpoint(to->ctx, w->chunk.layer, bytes, w->state_at, rows + w->state_at, n, err);
	if (rc < 0)
		return -1;
	w->state_at = rc ? bytes : w->state_at + n;
	w->checkpoint_ns += clock_now_ns() - began;
	return 0;
}

/*
 * Layers
 */

/* Before a layer's tiles: where what it stores goes. */
static void begin_tiles(struct sweep *w)
{
	struct chunk *k = &w->chunk;
	int32_t group = w->group_of[k->layer], place = 0;

	w->stage = TILE;
	k->records = k->index_keys = NULL;
	if (!w->records[group])
		return;
	while (w->layout->groups[group].layers[place] != k->layer)
		place++;
	k->records = w->records[group] + (size_t)place * w->layout->row_bytes;
	k->record_bytes = layout_record_bytes(w->layout, group);
	if (is_full(w, k->layer))
		k->index_keys = w->index_keys[session_index_layer(k->s, k->layer)];
}

/* Before a layer: its group, if it begins here. */
static int enter_layer(struct sweep *w, struct err *err)
{
	int32_t group = w->group_of[w->chunk.layer];

	if (!w->is_open[group]) {
		w->is_open[group] = true;
		w->n_open++;
		if (open_rows(w, &w->layout->groups[group], err) || open_buffers(w, group, err))
			return -1;
		if (begin_stage(w, LOAD, group))
			return 1;
	}
	begin_tiles(w);
	return 1;
}

/* Behind a layer, and the group that may have ended with it. */
static int go_on(struct sweep *w, struct err *err)
{
	return w->chunk.layer == w->config->n_layers ? finish_chunk(w, err) : enter_layer(w, err);
}

static bool checkpoint_is_due(const struct sweep *w)
{
	int64_t least = SWEEP_CHECKPOINT_SHARE * w->checkpoint_ns;
	bool wanted = false;

	for (int32_t i = 0; i < w->n_sequences; i++)
		wanted = wanted || (w->sequences[i].sink && w->sequences[i].sink->checkpoint);
	if (!wanted || w->n_open || w->plan.n_chunks > 1 || w->chunk.layer == w->config->n_layers)
		return false;
	least = least < CHECKPOINT_LEAST_NS ? CHECKPOINT_LEAST_NS : least;
	return w->opt.always_checkpoint || clock_now_ns() - w->checkpointed_ns >= least;
}

/* Behind a group. */
static int end_group(struct sweep *w, struct err *err)
{
	close_group(w, w->group);
	if (!checkpoint_is_due(w))
		return go_on(w, err);
	w->checkpoint_ns = 0;
	begin_state(w, CHECKPOINT);
	return 1;
}

static int end_checkpoint(struct sweep *w, struct err *err)
{
	w->checkpointed_ns = clock_now_ns();
	w->stats.n_checkpoints++;
	return go_on(w, err);
}

/* Behind a layer, whose choices the chunk still has: to whom each of them belongs. */
static void count_choices(struct sweep *w, int32_t layer)
{
	const struct model_config *c = w->config;

	for (int32_t i = 0; !c->layer_is_dense[layer] && i < w->chunk.n_parts; i++) {
		uint32_t *chosen = w->sequences[w->at_sequence + i].chosen;
		const int32_t *experts = w->chunk.experts + w->parts[i].row * c->experts_per_token;

		for (int64_t k = 0; chosen && k < w->parts[i].n * c->experts_per_token; k++)
			chosen[(int64_t)layer * c->n_experts + experts[k]]++;
	}
}

static int tile(struct sweep *w, struct err *err)
{
	int32_t layer = w->chunk.layer, group = w->group_of[layer];

	if (chunk_step(&w->chunk, err) < 0)
		return -1;
	if (w->chunk.layer == layer)
		return 1;
	count_choices(w, layer);
	close_rows(w, layer);
	if (layer != last_layer(&w->layout->groups[group]))
		return go_on(w, err);
	return begin_stage(w, STORE, group) ? 1 : end_group(w, err);
}

int sweep_step(struct sweep *w, struct err *err)
{
	if (!w->under_way) {
		if (open_chunk(w, err))
			return -1;
		if (w->opt.first_layer)
			begin_state(w, RESTORE);
		else if (enter_layer(w, err) < 0)
			return -1;
	}
	switch (w->stage) {
	case RESTORE:
		if (restore_piece(w, err))
			return -1;
		return find_state(w) ? 1 : enter_layer(w, err);
	case LOAD:
		if (load_piece(w, err))
			return -1;
		if (!find_piece(w))
			begin_tiles(w);
		return 1;
	case TILE:
		return tile(w, err);
	case STORE:
		if (store_piece(w, err))
			return -1;
		return find_piece(w) ? 1 : end_group(w, err);
	case CHECKPOINT:
		if (save_piece(w, err))
			return -1;
		return find_state(w) ? 1 : end_checkpoint(w, err);
	}
	assert(!"a stage");
	return -1;
}

int sweep_run(struct sweep *w, int (*pause)(void *ctx, struct err *err), void *ctx, struct err *err)
{
	int more;

	while ((more = sweep_step(w, err)) > 0)
		if (pause && pause(ctx, err))
			return -1;
	return more;
}

int64_t sweep_bad_position(const struct sweep *w, int32_t *sequence)
{
	*sequence = w->bad_sequence;
	return w->bad;
}

int64_t sweep_token_layers(const struct sweep *w)
{
	return w->at * w->config->n_layers + (w->under_way ? w->chunk.n * w->chunk.layer : 0);
}

void sweep_count(const struct sweep *w, struct sweep_stats *stats)
{
	const struct model_config *c = w->config;

	*stats = w->stats;
	stats->expert_reads = w->expert_reads;
	stats->expert_tokens = w->expert_tokens;
	for (int32_t i = 0; i < c->n_layers; i++) {
		const struct expert *experts = w->sequences->session->model->layers[i].experts;

		for (int32_t e = 0; !c->layer_is_dense[i] && e < c->n_experts; e++) {
			uint64_t reads = (uint64_t)w->expert_reads[(int64_t)i * c->n_experts + e];

			stats->n_expert_reads += (int64_t)reads;
			stats->expert_read_bytes += reads * (weight_full_bytes(&experts[e].gate) +
							     weight_full_bytes(&experts[e].up) +
							     weight_full_bytes(&experts[e].down));
		}
	}
}

void sweep_end(struct sweep *w)
{
	if (!w)
		return;
	for (int32_t g = 0; g < w->layout->n_groups; g++)
		close_group(w, g);
	close_chunk(w);
	free(w->records);
	free(w->index_keys);
	free(w->is_open);
	free(w->piece);
	free(w->group_of);
	free(w->parts);
	free(w->sequences);
	free(w->expert_reads);
	free(w->expert_tokens);
	free(w);
}
