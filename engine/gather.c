#include "engine/gather.h"

#include <assert.h>
#include <stdlib.h>

#include "cache/cache.h"
#include "engine/latents.h"

enum {
	SPAN = CACHE_SPAN_TOKENS,
	PIECE = 1024,      /* records fetched at a time: enough for a drive to be busy with, a few MB */
	LOAD_PART = 4096,  /* tokens whose index keys are asked for at a time where something is lost */
	LOAD_BYTES = 16 << 20, /* of records at a time, when all of them come */
	NOWHERE = -1, OWN = -2,
};

enum span_state { ATTACHED, LOST, OWNED };

/* The slots of a group: a list by the time of last use, and who is where. */
struct slots {
	int32_t *slot_of;          /* [n] NOWHERE, OWN, or a slot */
	int32_t *position;         /* [n_slots] NOWHERE: free */
	int32_t *newer, *older;    /* [n_slots] -1: none */
	int32_t newest, oldest;
};

struct gather {
	struct session *s;
	struct latent_source source;
	int64_t n;                 /* tokens 0 .. n - 1 are attached, or were lost */
	int32_t n_slots;
	struct slots *groups;      /* [n_groups]; NULL: no slots */
	int32_t *group_of;         /* [n_layers] */
	uint8_t *spans;            /* [n / 64] enum span_state */
	int64_t n_spans, n_lost;
	uint64_t *wanted;          /* [n] bits, all 0 between calls */
	struct session_gathers count;
};

/*
 * Slots
 */

static void unlink_slot(struct slots *g, int32_t slot)
{
	int32_t newer = g->newer[slot], older = g->older[slot];

	*(newer < 0 ? &g->newest : &g->older[newer]) = older;
	*(older < 0 ? &g->oldest : &g->newer[older]) = newer;
}

static void link_newest(struct slots *g, int32_t slot)
{
	g->newer[slot] = -1;
	g->older[slot] = g->newest;
	*(g->newest < 0 ? &g->oldest : &g->newer[g->newest]) = slot;
	g->newest = slot;
}

static void link_oldest(struct slots *g, int32_t slot)
{
	g->older[slot] = -1;
	g->newer[slot] = g->oldest;
	*(g->oldest < 0 ? &g->newest : &g->older[g->oldest]) = slot;
	g->oldest = slot;
}

static void touch(struct slots *g, int32_t slot)
{
	if (slot == g->newest)
		return;
	unlink_slot(g, slot);
	link_newest(g, slot);
}

/* The slot of longest ago for a position. */
static int32_t take_slot(struct gather *g, struct slots *in, int32_t position)
{
	int32_t slot = in->oldest;

	if (in->position[slot] >= 0) {
		in->slot_of[in->position[slot]] = NOWHERE;
		g->count.evicted++;
	}
	in->position[slot] = position;
	in->slot_of[position] = slot;
	touch(in, slot);
	return slot;
}

/* Positions first .. end - 1 of all groups become `what`, and their slots free. */
static void leave_slots(struct gather *g, int64_t first, int64_t end, int32_t what)
{
	for (int32_t i = 0; g->groups && i < g->s->layout->n_groups; i++) {
		struct slots *in = &g->groups[i];

		for (int64_t t = first; t < end; t++) {
			int32_t slot = in->slot_of[t];

			in->slot_of[t] = what;
			if (slot < 0)
				continue;
			in->position[slot] = NOWHERE;
			unlink_slot(in, slot);
			link_oldest(in, slot);
		}
	}
}

static void slots_new(struct slots *in, int64_t n, int32_t n_slots)
{
	*in = (struct slots){
		.slot_of = xmalloc((size_t)n, sizeof *in->slot_of),
		.position = xmalloc((size_t)n_slots, sizeof *in->position),
		.newer = xmalloc((size_t)n_slots, sizeof *in->newer),
		.older = xmalloc((size_t)n_slots, sizeof *in->older),
		.newest = -1,
		.oldest = -1,
	};
	for (int64_t t = 0; t < n; t++)
		in->slot_of[t] = NOWHERE;
	for (int32_t i = 0; i < n_slots; i++) {
		in->position[i] = NOWHERE;
		link_oldest(in, i); /* so that row 0 is used first: rows that nobody has used take no memory */
	}
}

int gather_new(struct gather **out, struct session *s, const struct latent_source *source, int64_t n, size_t bytes,
	       struct err *err)
{
	const struct model_config *c = &s->model->config;
	const struct layout *l = s->layout;
	size_t position = (size_t)l->n_layers * session_row_bytes(c, s->engine->compute), fit = bytes ? bytes / position : (size_t)n;
	int64_t least = n < c->index_topk ? n : c->index_topk;
	struct gather *g;

	assert(n >= 1 && n <= s->opt.max_tokens);
	if (c->has_indexer && fit < (size_t)least)
		return err_set(err, ERR_TOO_LARGE, "a token attends to up to %lld latents of others, which take %zu bytes: "
			       "the budget for latents is %zu, allow as many at least", (long long)least,
			       (size_t)least * position, bytes);
	g = xcalloc(1, sizeof *g);
	g->s = s;
	g->source = *source;
	g->n = n;
	g->n_spans = (n + SPAN - 1) / SPAN;
	g->spans = xcalloc((size_t)g->n_spans, 1);
	g->group_of = xcalloc((size_t)l->n_layers, sizeof *g->group_of);
	for (int32_t i = 0; i < l->n_groups; i++)
		for (int32_t k = 0; k < l->groups[i].n_layers; k++)
			g->group_of[l->groups[i].layers[k]] = i;
	if (c->has_indexer) {
		g->n_slots = (int32_t)(fit < (size_t)n ? (int64_t)fit : n);
		g->wanted = xcalloc((size_t)(n + 63) / 64, sizeof *g->wanted);
		g->groups = xcalloc((size_t)l->n_groups, sizeof *g->groups);
		for (int32_t i = 0; i < l->n_groups; i++)
			slots_new(&g->groups[i], n, g->n_slots);
	}
	g->count = (struct session_gathers){.n_slots = g->n_slots, .slot_bytes = (size_t)g->n_slots * position};
	*out = g;
	return 0;
}

void gather_free(struct gather *g)
{
	if (!g)
		return;
	for (int32_t i = 0; g->groups && i < g->s->layout->n_groups; i++) {
		free(g->groups[i].slot_of);
		free(g->groups[i].position);
		free(g->groups[i].newer);
		free(g->groups[i].older);
	}
	free(g->groups);
	free(g->group_of);
	free(g->spans);
	free(g->wanted);
	free(g);
}

int32_t gather_slots(const struct gather *g)
{
	return g->n_slots;
}

int64_t gather_n_tokens(const struct gather *g)
{
	return g->n;
}

void gather_count(const struct gather *g, struct session_gathers *out)
{
	*out = g->count;
}

/*
 * What is lost, and computed again
 */

static int64_t span_end(const struct gather *g, int64_t span)
{
	return (span + 1) * SPAN < g->n ? (span + 1) * SPAN : g->n;
}

static void set_span(struct gather *g, int64_t span, enum span_state state)
{
	g->n_lost += (state == LOST) - (g->spans[span] == LOST);
	g->spans[span] = (uint8_t)state;
}

/* The source has failed at a position. True: then its span is lost, which is not the end of anything. */
static bool lose(struct gather *g, int64_t bad, const struct err *why)
{
	int64_t span = bad / SPAN;

	if (bad < 0 || bad >= g->n || g->spans[span] == LOST)
		return false;
	set_span(g, span, LOST);
	leave_slots(g, span * SPAN, span_end(g, span), NOWHERE);
	if (g->source.lost)
		g->source.lost(g->source.ctx, span * SPAN, span_end(g, span) - span * SPAN, why);
	return true;
}

bool gather_lost(const struct gather *g, int64_t *first, int64_t *n)
{
	int64_t span = 0;

	if (!g->n_lost)
		return false;
	while (g->spans[span] != LOST)
		span++;
	*first = span * SPAN;
	*n = span_end(g, span) - *first;
	return true;
}

void gather_own(struct gather *g, int64_t first)
{
	leave_slots(g, first, span_end(g, first / SPAN), OWN);
	set_span(g, first / SPAN, OWNED);
	g->count.recomputed_tokens += span_end(g, first / SPAN) - first;
}

void gather_own_failed(struct gather *g, int64_t first)
{
	g->count.recomputed_tokens -= span_end(g, first / SPAN) - first;
	leave_slots(g, first, span_end(g, first / SPAN), NOWHERE);
	set_span(g, first / SPAN, LOST);
}

void gather_truncate(struct gather *g, int64_t n)
{
	if (n >= g->n)
		return;
	leave_slots(g, n, g->n, OWN);
	for (int64_t span = (n + SPAN - 1) / SPAN; span < g->n_spans; span++)
		set_span(g, span, OWNED);
	g->n_spans = (n + SPAN - 1) / SPAN;
	g->n = n;
}

/*
 * What comes at once
 */

/* The source's error leaves no trace where what it could not give is computed again. */
static int fail(struct err *err, const struct err *why)
{
	if (err)
		*err = *why;
	return -1;
}

/* Tokens from `first` on, before `end` and at most `most`, none of them in a lost span; 0: the first one is. */
static int64_t whole_run(const struct gather *g, int64_t first, int64_t end, int64_t most)
{
	int64_t at = first;

	end = end - first < most ? end : first + most;
	while (at < end && g->spans[at / SPAN] != LOST)
		at = span_end(g, at / SPAN);
	return (at < end ? at : end) - first;
}

static int take_keys(void *ctx, int32_t index_layer, int64_t at, int64_t n, const uint8_t *keys, int64_t *bad,
		     struct err *err)
{
	return session_place_index_keys(ctx, index_layer, at, n, keys, bad, err);
}

/* Index keys of all layers, all tokens. */
static int load_keys(struct gather *g, struct err *err)
{
	int32_t n_layers = g->s->layout->n_index_layers;
	int64_t most = g->n, n;

	for (int64_t at = 0; at < g->n; at += n) {
		struct err why = {0};
		int64_t bad = -1;

		n = whole_run(g, at, g->n, most);
		if (!n) {
			n = span_end(g, at / SPAN) - at;
			continue;
		}
		if (!g->source.index_keys(g->source.ctx, 0, n_layers, at, n, take_keys, g->s, &bad, &why))
			continue;
		if (!lose(g, bad, &why))
			return fail(err, &why);
		most = LOAD_PART; /* what is read again for a lost span is bounded */
		n = 0;
	}
	return 0;
}

/* Records of a group, all tokens. */
static int load_records(struct gather *g, int32_t group, struct err *err)
{
	size_t bytes = layout_record_bytes(g->s->layout, group);
	int64_t most = LOAD_BYTES / (int64_t)bytes + 1, n;
	int32_t *positions = xmalloc((size_t)most, sizeof *positions);
	uint8_t *buffer = xmalloc((size_t)most, bytes);
	int rc = 0;

	for (int64_t at = 0; !rc && at < g->n; at += n) {
		struct err why = {0};
		int64_t bad = -1;

		n = whole_run(g, at, g->n, most);
		if (!n) {
			n = span_end(g, at / SPAN) - at;
			continue;
		}
		for (int64_t i = 0; i < n; i++)
			positions[i] = (int32_t)(at + i);
		if (!g->source.records(g->source.ctx, group, positions, n, buffer, &bad, &why) &&
		    !session_place_records(g->s, group, at, n, buffer, &bad, &why))
			continue;
		rc = lose(g, bad, &why) ? 0 : fail(err, &why);
		n = 0; /* the same again, without what was lost */
	}
	free(buffer);
	free(positions);
	return rc;
}

int gather_load(struct gather *g, struct err *err)
{
	const struct layout *l = g->s->layout;
	int rc = 0;

	if (l->n_index_layers)
		rc = load_keys(g, err);
	for (int32_t i = 0; !rc && !g->groups && i < l->n_groups; i++)
		rc = load_records(g, i, err);
	return rc;
}

/*
 * What comes when it is wanted
 */

/* Some records on their way into their slots. */
struct arrival {
	struct gather *g;
	const struct layout_group *group;
	const int32_t *positions;         /* [n] */
	int32_t *slots;                   /* [n] */
	uint8_t *records;
	float *values;                    /* [n, layers of the group, kv_lora + rope_dim] */
	float *cos, *sin;                 /* [n, rope_dim / 2] */
	bool *finite;                     /* [n] */
};

/* Item: one record, as stored to values. */
static void unpack_records(void *arg, int64_t first, int64_t end, int thread)
{
	const struct arrival *a = arg;
	const struct session *s = a->g->s;
	const struct model_config *c = &s->model->config;
	int64_t width = c->kv_lora + c->rope_dim, half = c->rope_dim / 2;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const uint8_t *row = a->records + (size_t)i * (size_t)a->group->n_layers * s->layout->row_bytes;
		float *values = a->values + i * a->group->n_layers * width;

		a->finite[i] = true;
		for (int32_t k = 0; k < a->group->n_layers; k++, row += s->layout->row_bytes, values += width)
			a->finite[i] &= latent_unpack(s->opt.latents, values, row, c->kv_lora, c->rope_dim);
		rope_cos_sin(s->inv_freq, c->rope_dim, a->positions[i], 1, a->cos + i * half, a->sin + i * half);
	}
}

/* Item: one record, its rotated values to its slot. */
static void place_records(void *arg, int64_t first, int64_t end, int thread)
{
	const struct arrival *a = arg;
	const struct session *s = a->g->s;
	int64_t width = s->model->config.kv_lora + s->model->config.rope_dim;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *values = a->values + i * a->group->n_layers * width;

		for (int32_t k = 0; k < a->group->n_layers; k++, values += width)
			session_place_row(s, a->group->layers[k], a->slots[i], values);
	}
}

/* Memory for so many records on their way. */
static struct arrival arrival_new(struct gather *g, struct arena *scratch, int32_t group, int64_t n)
{
	const struct model_config *c = &g->s->model->config;
	const struct layout_group *lg = &g->s->layout->groups[group];
	size_t half = (size_t)(c->rope_dim / 2), row = (size_t)lg->n_layers * (size_t)(c->kv_lora + c->rope_dim);

	return (struct arrival){
		.g = g,
		.group = lg,
		.slots = arena_alloc(scratch, (size_t)n, sizeof(int32_t)),
		.records = arena_alloc(scratch, (size_t)n, layout_record_bytes(g->s->layout, group)),
		.values = arena_alloc(scratch, (size_t)n * row, sizeof(float)),
		.cos = arena_alloc(scratch, (size_t)n * half, sizeof(float)),
		.sin = arena_alloc(scratch, (size_t)n * half, sizeof(float)),
		.finite = arena_alloc(scratch, (size_t)n, sizeof(bool)),
	};
}

/* Records of n positions from the source into slots. */
static int fetch(struct gather *g, struct arrival *a, int32_t group, const int32_t *positions, int64_t n, struct err *err)
{
	const struct session *s = g->s;
	const struct model_config *c = &s->model->config;
	int32_t n_layers = a->group->n_layers;
	int64_t width = c->kv_lora + c->rope_dim, row = n_layers * width, bad = -1;
	struct err why = {0};

	a->positions = positions;
	if (g->source.records(g->source.ctx, group, positions, n, a->records, &bad, &why))
		goto failed;
	pool_run(s->engine->pool, unpack_records, a, n, 4 * row);
	for (int64_t i = 0; i < n; i++) {
		if (a->finite[i])
			continue;
		bad = positions[i];
		err_set(&why, ERR_DAMAGED, "group %d, position %d: the stored latents are not finite", group, positions[i]);
		goto failed;
	}
	for (int64_t i = 0; i < n; i++)
		a->slots[i] = take_slot(g, &g->groups[group], positions[i]);
	s->engine->ops->rope(&s->engine->device, a->values + c->kv_lora, row, n_layers, width, c->rope_dim, a->cos, a->sin, n,
			     c->rope_interleaved);
	pool_run(s->engine->pool, place_records, a, n, row);
	g->count.fetched += n;
	g->count.fetched_bytes += n * (int64_t)layout_record_bytes(s->layout, group);
	return 0;
failed:
	lose(g, bad, &why);
	return fail(err, &why);
}

/* Mark what a selection wants of the source, its positions behind the n that `added` has; how many it has then. */
static int64_t want(struct gather *g, const struct slots *in, const struct selection *s, int32_t *added, int64_t n)
{
	for (int32_t i = 0; i < s->n; i++) {
		int32_t t = s->set ? s->set[i] : i;

		if (t >= g->n)
			break; /* they ascend */
		if (in->slot_of[t] == OWN || g->wanted[t / 64] >> (t % 64) & 1)
			continue;
		g->wanted[t / 64] |= 1ull << (t % 64);
		added[n++] = t;
	}
	return n;
}

static void forget(struct gather *g, const int32_t *added, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		g->wanted[added[i] / 64] &= ~(1ull << (added[i] % 64));
}

/* The marked positions, ascending, which are then no longer marked; lowest and highest are among them. */
static void collect(struct gather *g, int32_t *out, int32_t lowest, int32_t highest)
{
	for (int32_t w = lowest / 64; w <= highest / 64; w++) {
		uint64_t bits = g->wanted[w];

		g->wanted[w] = 0;
		for (; bits; bits &= bits - 1)
			*out++ = w * 64 + __builtin_ctzll(bits);
	}
}

/* What tokens sel[0 .. *n) want together, ascending, of as many of them as the slots hold. */
static int32_t *choose(struct gather *g, struct arena *scratch, const struct slots *in, const struct selection *sel,
		       int64_t *n, int64_t *n_wanted)
{
	int64_t most = 0, have = 0, i;
	int32_t *added, lowest = INT32_MAX, highest = -1;

	for (i = 0; i < *n; i++)
		most = sel[i].n > most ? sel[i].n : most;
	added = arena_alloc(scratch, (size_t)(g->n_slots + most), sizeof *added);
	for (i = 0; i < *n; i++) {
		int64_t with = want(g, in, &sel[i], added, have);

		if (with > g->n_slots) {
			forget(g, added + have, with - have);
			break;
		}
		have = with;
	}
	assert(i); /* gather_new has seen to it that any one fits */
	*n = i;
	*n_wanted = have;
	for (int64_t k = 0; k < have; k++) {
		lowest = added[k] < lowest ? added[k] : lowest;
		highest = added[k] > highest ? added[k] : highest;
	}
	if (i == 1)
		forget(g, added, have); /* of one token: in order already */
	else if (have)
		collect(g, added, lowest, highest);
	return added;
}

/* Row numbers of a choice, in its order. */
static struct selection translate(const struct gather *g, const struct slots *in, const struct selection *s, int32_t *rows)
{
	for (int32_t i = 0; i < s->n; i++) {
		int32_t t = s->set ? s->set[i] : i;

		rows[i] = t < g->n && in->slot_of[t] != OWN ? in->slot_of[t] : g->n_slots + t;
		assert(rows[i] >= 0);
	}
	return (struct selection){rows, s->n};
}

int gather_rows(struct pass *p, int32_t layer, int64_t first, int64_t *n, const struct selection **rows, struct err *err)
{
	struct gather *g = p->s->gather;
	int32_t group = g->group_of[layer];
	struct slots *in = &g->groups[group];
	const struct selection *sel = p->selections + first;
	struct selection *out = arena_alloc(p->scratch, (size_t)*n, sizeof *out);
	int64_t n_wanted, n_missing = 0;
	int32_t *wanted = choose(g, p->scratch, in, sel, n, &n_wanted);
	struct arrival a;

	/* Those that are here first, so that none of them gives way to the others. */
	for (int64_t i = 0; i < n_wanted; i++) {
		int32_t slot = in->slot_of[wanted[i]];

		if (slot >= 0)
			touch(in, slot);
		else
			wanted[n_missing++] = wanted[i];
	}
	/* The layers that reuse a choice find what its full layer brought: that is no merit of the slots. */
	if (p->c->layer_is_full[layer]) {
		g->count.wanted += n_wanted;
		g->count.hits += n_wanted - n_missing;
	}
	if (n_missing)
		a = arrival_new(g, p->scratch, group, n_missing < PIECE ? n_missing : PIECE);
	for (int64_t i = 0; i < n_missing; i += PIECE)
		if (fetch(g, &a, group, wanted + i, n_missing - i < PIECE ? n_missing - i : PIECE, err))
			return -1;
	for (int64_t i = 0; i < *n; i++)
		out[i] = translate(g, in, &sel[i], arena_alloc(p->scratch, (size_t)sel[i].n, sizeof(int32_t)));
	*rows = out;
	return 0;
}
