#include "engine/expert_warming.h"

#include <stdlib.h>

#include "config/mem.h"

/* Each has been chosen half a time more, of one token more: what nobody chose in so many tokens may be chosen yet. */
static double smoothed(int64_t chosen, double tokens)
{
	double n = (double)chosen < tokens ? (double)chosen : tokens;

	return (n + .5) / (tokens + 1);
}

static int by_share(const void *a, const void *b, void *ctx)
{
	const int32_t *x = a, *y = b;
	const double *share = ctx;

	if (share[*x] != share[*y])
		return share[*x] < share[*y] ? 1 : -1;
	return *x < *y ? -1 : *x > *y;
}

void expert_warming_list(struct expert_warming *w, const int64_t *chosen, int32_t n_layers, int32_t n_experts, int32_t n_chosen,
			 int32_t n_most, struct policy *policy)
{
	size_t n = (size_t)n_layers * (size_t)n_experts;

	expert_warming_clear(w);
	w->n_layers = n_layers;
	w->n_experts = n_experts;
	w->share = xcalloc(n, sizeof *w->share);
	w->list = xmalloc(n, sizeof *w->list);
	for (int32_t l = 0; l < n_layers; l++) {
		const int64_t *of_layer = chosen + (size_t)l * (size_t)n_experts;
		double *share = w->share + (size_t)l * (size_t)n_experts, sum = 0;

		for (int32_t e = 0; e < n_experts; e++)
			sum += (double)of_layer[e];
		if (sum <= 0)
			continue;
		for (int32_t e = 0; e < n_experts; e++) {
			share[e] = smoothed(of_layer[e], sum / n_chosen);
			if (of_layer[e])
				w->list[w->n++] = l * n_experts + e;
		}
		policy_expect(policy, l, share);
	}
	qsort_r(w->list, (size_t)w->n, sizeof *w->list, by_share, w->share);
	w->n = w->n < n_most ? w->n : n_most;
}

void expert_warming_clear(struct expert_warming *w)
{
	free(w->share);
	free(w->list);
	*w = (struct expert_warming){0};
}
