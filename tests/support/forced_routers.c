#include "tests/support/forced_routers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/tier_sim.h"

static struct {
	const struct model *m;
	const struct trace *trace;
	const double *recall;
	int64_t token;
	uint64_t seed;
	int32_t first, layer; /* the first with experts; whose turn it is, counted among those */
	bool asked;           /* what that one will choose, since the router before it spoke */
} route;

/* Who is asked the second time sees all of the layer before. */
static void guess(int32_t *experts, int32_t layer)
{
	bool is_next = layer == route.layer;
	enum ahead_kind kind = is_next && route.asked ? AHEAD_WHOLE : AHEAD_NEXT + (enum ahead_kind)(layer - route.layer);

	route.asked |= is_next;
	tier_guess(experts, route.trace, route.token, layer, route.recall[kind], route.seed);
}

/* The logit of which the sigmoid, with the router's bias, ranks as the trace's score does: between .1 and .9, where a bias has room. */
static float logit_of(float score, float bias)
{
	float y = .1f + .8f / (1 + expf(-score)) - bias;

	return logf(y / (1 - y));
}

/* One token. Callers read their logits once more to learn from them, and so they get the trace's. */
static void choose(struct device *dev, int32_t *experts, float *weights, const float *logits, const float *bias, int64_t n,
		   int32_t n_experts, int32_t k, int32_t n_groups, int32_t topk_groups, bool normalize, float scale)
{
	float *told = (float *)(uintptr_t)logits;
	const struct trace *t = route.trace;
	const struct trace_entry *step;
	int32_t layer = 0;

	(void)dev, (void)n_groups, (void)topk_groups, (void)normalize, (void)scale;
	while (layer < t->n_layers && route.m->layers[route.first + layer].router_bias != bias)
		layer++;
	if (n != 1 || n_experts != t->n_listed || k != t->n_chosen || layer == t->n_layers || (weights && layer != route.layer)) {
		fprintf(stderr, "router %d of %d asked for %d of %d experts for %lld tokens\n", layer, t->n_layers, k, n_experts,
			(long long)n);
		exit(1);
	}
	if (!weights) { /* nobody computes with it */
		guess(experts, layer);
		return;
	}
	step = trace_step(t, route.token, layer);
	for (int i = 0; i < n_experts; i++)
		told[step[i].expert] = logit_of(step[i].score, bias[step[i].expert]);
	for (int i = 0; i < k; i++) {
		experts[i] = step[i].expert;
		weights[i] = 1.0f / (float)k;
	}
	route.layer++;
	route.asked = false;
}

struct ops forced_routers(const struct ops *from)
{
	struct ops ops = *from;

	ops.router_topk = choose;
	return ops;
}

void forced_routers_token(const struct model *m, const struct trace *t, int64_t token, const double *recall, uint64_t seed)
{
	memset(&route, 0, sizeof route);
	route.m = m;
	route.trace = t;
	route.recall = recall;
	route.token = token;
	route.seed = seed;
	while (m->config.layer_is_dense[route.first])
		route.first++;
}

void forced_routers_done(void)
{
	if (route.layer == route.trace->n_layers)
		return;
	fprintf(stderr, "%d of %d routers were asked\n", route.layer, route.trace->n_layers);
	exit(1);
}
