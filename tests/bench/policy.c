/*
 * Which experts are worth keeping, and what prediction brings, in virtual time over made-up traces (offload/trace.h) and
 * those of files given as arguments.
 *
 *   policy.hit                a token's experts that are resident when its router asks, nothing moved for it
 *   policy.hit_over_lru, policy.hit_over_belady
 *                             over a list of the recently used, and over the choice that knows the future
 *   policy.speed_over_demand  tokens per second with prediction (recall .74, as measured on GLM-5.2) over those without,
 *                             the least of five balances of transfer and compute; "balanced" where both take as long
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "tests/support/measure.h"
#include "tests/support/tier_sim.h"

enum { LAYERS = 12, EXPERTS = 256, CHOSEN = 8, TOKENS = 600, WARM = 100 };

static const double shares[] = {.05, .10, .25, .50};
static const double balances[] = {.25, .5, 1, 2, 4};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static double hit(const struct trace *t, enum tier_rule rule, double share, int64_t *misses)
{
	struct tier_options opt = {.rule = rule, .share = share, .recall = rule == TIER_POLICY ? .74 : 0, .seed = 1, .warm_tokens = t->n_tokens / 6};
	struct tier_result r;

	tier_run(&r, t, &opt);
	*misses = r.transfers;
	return (double)r.hits / (double)r.asked;
}

/* Prediction over none where transfers of an expert take so long. */
static double gain(const struct trace *t, double share, double transfer_s)
{
	struct tier_options opt = {.rule = TIER_POLICY, .share = share, .recall = .74, .transfer_s = transfer_s, .compute_s = 1,
				   .warm_tokens = t->n_tokens / 6, .seed = 1};
	struct tier_result without, with;

	tier_run(&without, t, &opt);
	opt.prefetch = true;
	tier_run(&with, t, &opt);
	return without.seconds / with.seconds;
}

static void bench_trace(const struct trace *t, const char *name)
{
	for (size_t i = 0; i < COUNT(shares); i++) {
		int64_t ours, lru, belady;
		double h = hit(t, TIER_POLICY, shares[i], &ours), h_lru = hit(t, TIER_LRU, shares[i], &lru);
		double h_belady = hit(t, TIER_BELADY, shares[i], &belady), least = 0, balanced = 0;
		double steps = (double)(t->n_tokens - t->n_tokens / 6) * t->n_layers, per_layer = (double)ours / steps;
		char list[160] = "";

		for (size_t b = 0; b < COUNT(balances); b++) {
			double g = gain(t, shares[i], balances[b] / per_layer);

			least = !b || g < least ? g : least;
			balanced = balances[b] == 1 ? g : balanced;
			snprintf(list + strlen(list), sizeof list - strlen(list), "%s%.3f", b ? "," : "", g);
		}
#define CELL "\"trace\":\"%s\",\"share\":%.2f"
		measure_print(stdout, "policy.hit", h, "of experts asked for", 1, CELL ",\"lru\":%.3f,\"belady\":%.3f", name, shares[i],
			      h_lru, h_belady);
		measure_print(stdout, "policy.hit_over_lru", h / h_lru, "ratio", 0, CELL, name, shares[i]);
		measure_print(stdout, "policy.hit_over_belady", h / h_belady, "ratio", 1, CELL ",\"policy_eff\":%.3f", name, shares[i],
			      (double)belady / (double)ours);
		measure_print(stdout, "policy.speed_over_demand", least, "ratio", 2,
			      CELL ",\"balanced\":%.3f,\"by_transfer_over_compute\":[%s]", name, shares[i], balanced, list);
	}
}

int main(int argc, char **argv)
{
	for (int i = 0; i < N_TRACE_PRESETS; i++) {
		struct trace *t = trace_make(&trace_presets[i], LAYERS, EXPERTS, CHOSEN, TOKENS, 1);

		bench_trace(t, trace_presets[i].name);
		trace_free(t);
	}
	for (int i = 1; i < argc; i++) {
		const char *slash = strrchr(argv[i], '/');
		struct trace *t;
		struct err err;

		if (trace_read(&t, argv[i], &err))
			measure_fail(&err);
		bench_trace(t, slash ? slash + 1 : argv[i]);
		trace_free(t);
	}
	return 0;
}
