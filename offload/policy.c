#include "offload/policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"

/* Averages of an expert's scores: an average forgets a share of 1 - keep a token. The last score itself is the first. */
enum { N_SCALES = 5, N_WEIGHTS = N_SCALES + 1, LASTING = 2 }; /* LASTING: the first that is longer than a few tokens */
static const float keep[N_SCALES] = {0, .3f, .75f, .96f, .997f};

/* Before anything is known: recent scores count, older ones less. The last one is the constant, set by how many are chosen. */
static const float first_weights[N_SCALES] = {.3f, .6f, .4f, .2f, .1f};

#define STEP   .3f /* of learning: of each weight by the root of its slopes so far */
#define LATER  .6f /* what being chosen one token later counts */
#define WAIT   .6f /* what worth counts in a layer that is asked a whole token later */

/* Of swaps: some hundred are remembered, for some hundred tokens, so that what has not paid is tried again. */
#define FADE       .995
#define TOKENS     200
#define FIRST_GAIN .25 /* before anything is known, as if seen in so many: */
#define FIRST      4

enum { NOBODY = -1, NO_PARTNER = -2 };

struct policy {
	int32_t n_layers, n_experts, n_chosen;
	float *average;           /* [n_layers, n_experts, N_SCALES] */
	float *worth;             /* [n_layers, n_experts] */
	bool *resident, *held;    /* [n_layers, n_experts] */
	int32_t *least;           /* [n_layers] the resident expert not held that is worth least; -1: none */
	int32_t *most;            /* [n_layers] the one that is neither, and worth most; -1: none */
	int64_t *went, *came;     /* [n_layers, n_experts] of a swap that is not judged: by who came, who went for it (NOBODY), and by
	                             who went, who came; else NO_PARTNER */
	double n_swaps, gained;   /* judged; right ones less wrong ones */
	float weights[N_WEIGHTS];
	double slopes[N_WEIGHTS]; /* squared, added up */
	int64_t steps;
	float *z;                 /* [n_experts] scores of the layer that speaks, and what it chose */
	bool *chosen;
	int32_t layer;            /* that spoke last */
	float *soon;              /* [n_layers] what worth in a layer counts that is asked so many layers later */
};

struct policy *policy_new(int32_t n_layers, int32_t n_experts, int32_t n_chosen)
{
	struct policy *p = xcalloc(1, sizeof *p);
	size_t n = (size_t)n_layers * (size_t)n_experts;
	float share = (float)n_chosen / (float)n_experts;

	p->n_layers = n_layers;
	p->n_experts = n_experts;
	p->n_chosen = n_chosen;
	p->average = xcalloc(n * N_SCALES, sizeof *p->average);
	p->worth = xmalloc(n, sizeof *p->worth);
	p->resident = xcalloc(n, sizeof *p->resident);
	p->held = xcalloc(n, sizeof *p->held);
	p->least = xmalloc((size_t)n_layers, sizeof *p->least);
	p->most = xmalloc((size_t)n_layers, sizeof *p->most);
	p->went = xmalloc(n, sizeof *p->went);
	p->came = xmalloc(n, sizeof *p->came);
	p->z = xmalloc((size_t)n_experts, sizeof *p->z);
	p->soon = xmalloc((size_t)n_layers, sizeof *p->soon);
	for (int32_t i = 0; i < n_layers; i++)
		p->soon[i] = powf(WAIT, (float)i / (float)n_layers);
	p->chosen = xmalloc((size_t)n_experts, sizeof *p->chosen);
	memcpy(p->weights, first_weights, sizeof first_weights);
	p->weights[N_SCALES] = share < 1 ? logf(share / (1 - share)) - 1 : 8;
	for (size_t i = 0; i < n; i++) {
		p->worth[i] = share;
		p->went[i] = p->came[i] = NO_PARTNER;
	}
	for (int32_t i = 0; i < n_layers; i++)
		p->least[i] = p->most[i] = -1; /* nothing is worth more than another before a router has spoken */
	return p;
}

void policy_free(struct policy *p)
{
	if (!p)
		return;
	free(p->average);
	free(p->worth);
	free(p->resident);
	free(p->held);
	free(p->least);
	free(p->most);
	free(p->went);
	free(p->came);
	free(p->z);
	free(p->chosen);
	free(p->soon);
	free(p);
}

static size_t at(const struct policy *p, int32_t layer, int32_t expert)
{
	return (size_t)layer * (size_t)p->n_experts + (size_t)expert;
}

/* Who is worth least of those that are there, and most of those that are not. */
static void find_ends(struct policy *p, int32_t layer)
{
	size_t first = at(p, layer, 0);
	const float *worth = p->worth + first;
	int32_t least = -1, most = -1;

	for (int32_t e = 0; e < p->n_experts; e++) {
		if (p->held[first + (size_t)e])
			continue;
		if (!p->resident[first + (size_t)e])
			most = most < 0 || worth[e] > worth[most] ? e : most;
		else
			least = least < 0 || worth[e] < worth[least] ? e : least;
	}
	p->least[layer] = least;
	p->most[layer] = most;
}

/* ---- swaps -------------------------------------------------------------------------------------------------------- */

static void judge(struct policy *p, int64_t came, double gain)
{
	if (p->went[came] >= 0)
		p->came[p->went[came]] = NO_PARTNER;
	p->went[came] = NO_PARTNER;
	p->n_swaps = FADE * p->n_swaps + 1;
	p->gained = FADE * p->gained + gain;
}

/* What is known of an expert's swap, by who it is in it. */
static void judge_chosen(struct policy *p, int64_t expert)
{
	if (p->came[expert] >= 0)
		judge(p, p->came[expert], -1);
	if (p->went[expert] != NO_PARTNER)
		judge(p, expert, 1);
}

void policy_swapped(struct policy *p, int32_t layer, int32_t expert, int32_t went_layer, int32_t went_expert)
{
	int64_t came = (int64_t)at(p, layer, expert), went = went_layer < 0 ? NOBODY : (int64_t)at(p, went_layer, went_expert);

	if (p->went[came] != NO_PARTNER)
		judge(p, came, 0);
	if (went >= 0 && p->came[went] >= 0)
		judge(p, p->came[went], 0);
	p->went[came] = went;
	if (went >= 0)
		p->came[went] = came;
}

double policy_swap_gain(const struct policy *p)
{
	return (p->gained + FIRST * FIRST_GAIN) / (p->n_swaps + FIRST);
}

/* ---- what is learned --------------------------------------------------------------------------------------------- */

static float chance(const struct policy *p, const float *average)
{
	float x = p->weights[N_SCALES];

	for (int s = 0; s < N_SCALES; s++)
		x += p->weights[s] * average[s];
	return 1 / (1 + expf(-x));
}

/* Scores in deviations from the layer's mean. */
static void standardise(struct policy *p)
{
	double sum = 0, squares = 0, n = p->n_experts, scale;

	for (int32_t e = 0; e < p->n_experts; e++) {
		sum += (double)p->z[e];
		squares += (double)p->z[e] * (double)p->z[e];
	}
	scale = squares / n - sum / n * (sum / n);
	scale = scale > 1e-12 ? 1 / sqrt(scale) : 0;
	for (int32_t e = 0; e < p->n_experts; e++)
		p->z[e] = (float)(((double)p->z[e] - sum / n) * scale);
}

/* Those not listed are taken to stand just below the last one. */
static void take_scores(struct policy *p, const struct trace_entry *entries, int32_t n_listed)
{
	for (int32_t e = 0; e < p->n_experts; e++)
		p->z[e] = entries[n_listed - 1].score;
	for (int32_t i = 0; i < n_listed; i++)
		p->z[entries[i].expert] = entries[i].score;
	standardise(p);
}

void policy_expect(struct policy *p, int32_t layer, const double *share)
{
	for (int32_t e = 0; e < p->n_experts; e++)
		p->z[e] = (float)log(share[e] / (1 - share[e]));
	standardise(p);
	for (int32_t e = 0; e < p->n_experts; e++) {
		float *average = p->average + at(p, layer, e) * N_SCALES;

		for (int s = LASTING; s < N_SCALES; s++)
			average[s] = p->z[e];
		p->worth[at(p, layer, e)] = chance(p, average);
	}
	find_ends(p, layer);
}

void policy_observe(struct policy *p, int32_t layer, const struct trace_entry *entries, int32_t n_listed)
{
	float slope[N_WEIGHTS] = {0};
	size_t first = at(p, layer, 0);
	bool learns = p->steps++ >= p->n_layers;

	p->layer = layer;

	take_scores(p, entries, n_listed);
	memset(p->chosen, 0, (size_t)p->n_experts);
	for (int32_t i = 0; i < p->n_chosen; i++) {
		p->chosen[entries[i].expert] = true;
		judge_chosen(p, (int64_t)first + entries[i].expert);
	}
	p->n_swaps *= 1 - 1.0 / (TOKENS * p->n_layers);
	p->gained *= 1 - 1.0 / (TOKENS * p->n_layers);
	for (int32_t e = 0; e < p->n_experts; e++) {
		float *average = p->average + (first + (size_t)e) * N_SCALES, before[N_SCALES], was = p->worth[first + (size_t)e], miss;

		memcpy(before, average, sizeof before);
		for (int s = 0; s < N_SCALES; s++)
			average[s] = keep[s] * average[s] + (1 - keep[s]) * p->z[e];
		p->worth[first + (size_t)e] = chance(p, average);
		miss = (1 - LATER) * p->chosen[e] + LATER * p->worth[first + (size_t)e] - was;
		for (int s = 0; s < N_SCALES; s++)
			slope[s] += miss * before[s];
		slope[N_SCALES] += miss;
	}
	for (int s = 0; s < N_WEIGHTS && learns; s++) {
		p->slopes[s] += (double)(slope[s] * slope[s]);
		p->weights[s] += STEP * slope[s] / (float)sqrt(1 + p->slopes[s]);
	}
	find_ends(p, layer);
}

float policy_worth(const struct policy *p, int32_t layer, int32_t expert)
{
	return p->worth[at(p, layer, expert)];
}

void policy_arrived(struct policy *p, int32_t layer, int32_t expert)
{
	p->resident[at(p, layer, expert)] = true;
	find_ends(p, layer);
}

void policy_left(struct policy *p, int32_t layer, int32_t expert)
{
	p->resident[at(p, layer, expert)] = false;
	if (p->went[at(p, layer, expert)] != NO_PARTNER)
		judge(p, (int64_t)at(p, layer, expert), 0);
	find_ends(p, layer);
}

void policy_hold(struct policy *p, int32_t layer, int32_t expert, bool held)
{
	p->held[at(p, layer, expert)] = held;
	find_ends(p, layer);
}

bool policy_resident(const struct policy *p, int32_t layer, int32_t expert)
{
	return p->resident[at(p, layer, expert)];
}

/* What it counts that a layer is not asked at once. */
static float soon(const struct policy *p, int32_t layer)
{
	return p->soon[(layer - p->layer - 1 + 2 * p->n_layers) % p->n_layers];
}

bool policy_victim(const struct policy *p, int32_t *layer, int32_t *expert, float *worth)
{
	bool found = false;

	for (int32_t l = 0; l < p->n_layers; l++) {
		float w = p->least[l] < 0 ? 0 : p->worth[at(p, l, p->least[l])] * soon(p, l);

		if (p->least[l] < 0 || (found && w >= *worth))
			continue;
		found = true;
		*worth = w;
		*layer = l;
		*expert = p->least[l];
	}
	return found;
}

bool policy_missed(const struct policy *p, int32_t *layer, int32_t *expert, float *worth)
{
	bool found = false;

	for (int32_t l = 0; l < p->n_layers; l++) {
		float w = p->most[l] < 0 ? 0 : p->worth[at(p, l, p->most[l])] * soon(p, l);

		if (p->most[l] < 0 || (found && w <= *worth))
			continue;
		found = true;
		*worth = w;
		*layer = l;
		*expert = p->most[l];
	}
	return found;
}
