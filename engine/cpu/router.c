/* The router: which experts a token goes to, and how much each counts. */
#include "engine/cpu/cpu.h"

#include <stdlib.h>

#include "config/mem.h"

struct job {
	int32_t *experts;
	float *weights;
	const float *logits, *bias;
	int32_t n_experts, k, n_groups, topk_groups;
	bool normalize;
	float scale;
};

/* The k largest of value[0 .. n), largest first, a tie to the lower index. Taken ones become -infinity. */
static void take_largest(int32_t *out, float *value, int32_t n, int32_t k)
{
	for (int32_t i = 0; i < k; i++) {
		int32_t best = -1;

		for (int32_t e = 0; e < n; e++)
			if (value[e] > -INFINITY && (best < 0 || value[e] > value[best]))
				best = e;
		if (best < 0) /* only when values are not finite: any choice, but a distinct and valid one */
			for (best = 0; best < n - 1; best++) {
				int32_t seen = 0;

				while (seen < i && out[seen] != best)
					seen++;
				if (seen == i)
					break;
			}
		out[i] = best;
		value[best] = -INFINITY;
	}
}

/* Experts outside the best groups can not be chosen. */
static void keep_groups(float *choice, float *group_score, int32_t *groups, const struct job *j)
{
	int32_t size = j->n_experts / j->n_groups;

	for (int32_t g = 0; g < j->n_groups; g++) {
		float first = -INFINITY, second = -INFINITY;

		for (int32_t e = g * size; e < (g + 1) * size; e++) {
			if (choice[e] > first) {
				second = first;
				first = choice[e];
			} else if (choice[e] > second) {
				second = choice[e];
			}
		}
		group_score[g] = size > 1 ? first + second : first;
	}
	take_largest(groups, group_score, j->n_groups, j->topk_groups);
	for (int32_t g = 0; g < j->n_groups; g++) {
		int32_t kept = 0;

		while (kept < j->topk_groups && groups[kept] != g)
			kept++;
		if (kept == j->topk_groups)
			for (int32_t e = g * size; e < (g + 1) * size; e++)
				choice[e] = -INFINITY;
	}
}

static void route(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	float *sigmoid = xmalloc(3 * (size_t)j->n_experts, sizeof *sigmoid);
	float *choice = sigmoid + j->n_experts, *group_score = choice + j->n_experts;
	int32_t *groups = xmalloc((size_t)j->n_groups, sizeof *groups);

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		int32_t *experts = j->experts + i * j->k;
		float *weights = j->weights ? j->weights + i * j->k : NULL, sum = 0;

		for (int32_t e = 0; e < j->n_experts; e++) {
			sigmoid[e] = num_sigmoid(j->logits[i * j->n_experts + e]);
			choice[e] = sigmoid[e] + j->bias[e];
		}
		if (j->n_groups > 1)
			keep_groups(choice, group_score, groups, j);
		take_largest(experts, choice, j->n_experts, j->k);
		if (!weights)
			continue;
		for (int32_t r = 0; r < j->k; r++) {
			weights[r] = sigmoid[experts[r]];
			sum += weights[r];
		}
		for (int32_t r = 0; r < j->k; r++)
			weights[r] = (j->normalize ? weights[r] / (sum + 1e-20f) : weights[r]) * j->scale;
	}
	free(sigmoid);
	free(groups);
}

void CPU(router_topk)(struct device *dev, int32_t *experts, float *weights, const float *logits, const float *bias,
		      int64_t n, int32_t n_experts, int32_t k, int32_t n_groups, int32_t topk_groups, bool normalize,
		      float scale)
{
	struct job j = {experts, weights, logits, bias, n_experts, k, n_groups, topk_groups, normalize, scale};

	pool_run(dev->queue, route, &j, n, (int64_t)n_experts * (32 + k));
}
