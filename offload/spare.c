#include "offload/spare.h"

#include <stdlib.h>

#include "config/mem.h"

enum {
	WATCHED_MOST = 1024, /* of those that came and went, until it is known what came of them; others are not counted */
	TRY_EVERY = 64,      /* routers that speak */
};

#define FADE   .99 /* of a count with each new one: a hundred are remembered */
#define LITTLE .02 /* of a transfer saved */
#define MAYBE  .1  /* saved by one that is tried */

/* Of those that came, or went: so many, and how many of them were chosen. The older, the less they count. */
struct count {
	double n, chosen;
};

struct watched {
	int32_t layer, expert;
	bool came;      /* else it went */
	bool there;     /* seen there since; what came and is there no more has gone */
	int tokens;     /* that are left to it */
};

struct spare {
	const struct policy *policy;
	spare_is_there *is_there;
	const void *ctx;
	int32_t n_layers, n_experts;
	int32_t *best;  /* [n_layers] of those that are not there; NONE: nobody has spoken, or all are */
	struct watched watched[WATCHED_MOST];
	int n_watched, n_spoken; /* n_spoken: since one was carried */
	bool failed;             /* that one */
	struct count came, went;
};

enum { NONE = -1 };

static bool is_resident(const void *policy, int32_t layer, int32_t expert)
{
	return policy_resident(policy, layer, expert);
}

struct spare *spare_new(const struct policy *p, int32_t n_layers, int32_t n_experts, spare_is_there *is_there, const void *ctx)
{
	struct spare *s = xmalloc(1, sizeof *s);

	if (!is_there) {
		is_there = is_resident;
		ctx = p;
	}
	/* Before anything is known it saves a little. */
	*s = (struct spare){.policy = p, .is_there = is_there, .ctx = ctx, .n_layers = n_layers, .n_experts = n_experts, .came = {10, 1},
			    .went = {10, .3}};
	s->best = xmalloc((size_t)n_layers, sizeof *s->best);
	for (int32_t l = 0; l < n_layers; l++)
		s->best[l] = NONE;
	return s;
}

void spare_free(struct spare *s)
{
	if (!s)
		return;
	free(s->best);
	free(s);
}

static void find_best(struct spare *s, int32_t layer)
{
	float most = 0;

	s->best[layer] = NONE;
	for (int32_t e = 0; e < s->n_experts; e++) {
		float worth = policy_worth(s->policy, layer, e);

		if (worth <= most || s->is_there(s->ctx, layer, e))
			continue;
		most = worth;
		s->best[layer] = e;
	}
}

static void add(struct count *c, bool chosen)
{
	c->n = FADE * c->n + 1;
	c->chosen = FADE * c->chosen + chosen;
}

/* False: it is known what came of it. */
static bool stays_watched(struct spare *s, struct watched *w, const int32_t *chosen, int32_t n_chosen)
{
	bool is_chosen = false, is_there = s->is_there(s->ctx, w->layer, w->expert), has_gone = w->came && w->there && !is_there;

	w->there |= is_there;
	for (int32_t k = 0; k < n_chosen; k++)
		is_chosen |= chosen[k] == w->expert;
	if (!is_chosen && !has_gone && --w->tokens)
		return true;
	add(w->came ? &s->came : &s->went, is_chosen);
	return false;
}

void spare_spoken(struct spare *s, int32_t layer, const int32_t *chosen, int32_t n_chosen)
{
	int n = 0;

	for (int i = 0; i < s->n_watched; i++)
		if (s->watched[i].layer != layer || stays_watched(s, &s->watched[i], chosen, n_chosen))
			s->watched[n++] = s->watched[i];
	s->n_watched = n;
	s->n_spoken++;
	find_best(s, layer);
}

double spare_saves(const struct spare *s)
{
	double saves = s->came.chosen / s->came.n - s->went.chosen / s->went.n;

	return saves > LITTLE ? saves : 0;
}

double spare_may_save(const struct spare *s)
{
	double saves = spare_saves(s);

	if (s->n_spoken < TRY_EVERY)
		return s->failed ? 0 : saves;
	return saves < MAYBE ? MAYBE : saves;
}

bool spare_next(struct spare *s, int32_t *layer, int32_t *expert, float *worth)
{
	*layer = NONE;
	for (int32_t l = 0; l < s->n_layers; l++) {
		float w;

		if (s->best[l] != NONE && s->is_there(s->ctx, l, s->best[l]))
			find_best(s, l);
		if (s->best[l] == NONE)
			continue;
		w = policy_worth_now(s->policy, l, s->best[l]);
		if (*layer != NONE && w <= *worth)
			continue;
		*layer = l;
		*expert = s->best[l];
		*worth = w;
	}
	return *layer != NONE;
}

static void watch(struct spare *s, int32_t layer, int32_t expert, bool came)
{
	if (layer >= 0 && s->n_watched < WATCHED_MOST)
		s->watched[s->n_watched++] = (struct watched){layer, expert, .came = came, .tokens = SPARE_TOKENS};
}

void spare_began(struct spare *s, int32_t layer, int32_t expert, int32_t gone_layer, int32_t gone_expert)
{
	s->n_spoken = 0;
	s->failed = false;
	watch(s, layer, expert, true);
	watch(s, gone_layer, gone_expert, false);
}

void spare_failed(struct spare *s)
{
	s->failed = true;
}
