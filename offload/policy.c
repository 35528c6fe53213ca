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

struct policy {
	int32_t n_layers, n_experts, n_chosen;
	float *average;           /* [n_layers, n_experts, N_SCALES] */
	float *worth;             /* [n_layers, n_experts] */
	bool *resident, *held;    /* [n_layers, n_experts] */
	int32_t *least;           /* [n_layers] the resident expert not held that is worth least; -1: none */
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
	p->z = xmalloc((size_t)n_experts, sizeof *p->z);
	p->soon = xmalloc((size_t)n_layers, sizeof *p->soon);
	for (int32_t i = 0; i < n_layers; i++)
		p->soon[i] = powf(WAIT, (float)i / (float)n_layers);
	p->chosen = xmalloc((size_t)n_experts, sizeof *p->chosen);
	memcpy(p->weights, first_weights, sizeof first_weights);
	p->weights[N_SCALES] = share < 1 ? logf(share / (1 - share)) - 1 : 8;
	for (size_t i = 0; i < n; i++)
		p->worth[i] = share;
	for (int32_t i = 0; i < n_layers; i++)
		p->least[i] = -1;
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
	free(p->z);
	free(p->chosen);
	free(p->soon);
	free(p);
}

static size_t at(const struct policy *p, int32_t layer, int32_t expert)
{
	return (size_t)layer * (size_t)p->n_experts + (size_t)expert;
}

static void find_least(struct policy *p, int32_t layer)
{
	int32_t least = -1;

	for (int32_t e = 0; e < p->n_experts; e++) {
		size_t i = at(p, layer, e);

		if (p->resident[i] && !p->held[i] && (least < 0 || p->worth[i] < p->worth[at(p, layer, least)]))
			least = e;
	}
	p->least[layer] = least;
}

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
	find_least(p, layer);
}

void policy_observe(struct policy *p, int32_t layer, const struct trace_entry *entries, int32_t n_listed)
{
	float slope[N_WEIGHTS] = {0};
	size_t first = at(p, layer, 0);
	bool learns = p->steps++ >= p->n_layers;

	p->layer = layer;

	take_scores(p, entries, n_listed);
	memset(p->chosen, 0, (size_t)p->n_experts);
	for (int32_t i = 0; i < p->n_chosen; i++)
		p->chosen[entries[i].expert] = true;
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
	find_least(p, layer);
}

float policy_worth(const struct policy *p, int32_t layer, int32_t expert)
{
	return p->worth[at(p, layer, expert)];
}

/* An expert has come, has gone, or may go or not: is it its layer's least now, or not any more? */
static void has_changed(struct policy *p, int32_t layer, int32_t expert)
{
	size_t i = at(p, layer, expert);
	int32_t least = p->least[layer];

	if (!p->resident[i] || p->held[i]) {
		if (least == expert)
			find_least(p, layer);
		return;
	}
	if (least < 0 || p->worth[i] < p->worth[at(p, layer, least)] || (p->worth[i] == p->worth[at(p, layer, least)] && expert < least))
		p->least[layer] = expert;
}

void policy_arrived(struct policy *p, int32_t layer, int32_t expert)
{
	p->resident[at(p, layer, expert)] = true;
	has_changed(p, layer, expert);
}

void policy_left(struct policy *p, int32_t layer, int32_t expert)
{
	p->resident[at(p, layer, expert)] = false;
	has_changed(p, layer, expert);
}

void policy_hold(struct policy *p, int32_t layer, int32_t expert, bool held)
{
	p->held[at(p, layer, expert)] = held;
	has_changed(p, layer, expert);
}

bool policy_resident(const struct policy *p, int32_t layer, int32_t expert)
{
	return p->resident[at(p, layer, expert)];
}

float policy_worth_now(const struct policy *p, int32_t layer, int32_t expert)
{
	return p->worth[at(p, layer, expert)] * p->soon[(layer - p->layer - 1 + 2 * p->n_layers) % p->n_layers];
}

bool policy_victim(const struct policy *p, int32_t *layer, int32_t *expert, float *worth)
{
	float least = 0;
	bool found = false;

	for (int32_t l = 0; l < p->n_layers; l++) {
		float w;

		if (p->least[l] < 0)
			continue;
		w = policy_worth_now(p, l, p->least[l]);
		if (!found || w < least) {
			found = true;
			*worth = least = w;
			*layer = l;
			*expert = p->least[l];
		}
	}
	return found;
}
