/*
 * Which experts are worth keeping, and what prediction brings, in virtual time over made-up traces (offload/trace.h), what the
 * trained model of tests/pocket chooses as it reads quire's docs ("pocket"), and the traces of files given as arguments.
 *
 *   policy.hit                a token's experts that are resident when its router asks, nothing moved for it
 *   policy.hit_over_lru, policy.hit_over_belady
 *                             over a list of the recently used (null where that has none), and over the choice that knows the future
 *   policy.speed_over_demand  tokens per second with prediction (of three layers, offload/ahead.h, and of who is worth having,
 *                             offload/spare.h) over those without, the least of five balances of transfer and compute; "balanced"
 *                             where both take as long in all, and beside it what it would be if all that is guessed of routers came
 *                             true, and the most that guesses at the next layer alone can give ("of_next_layer"): a layer's
 *                             transfers X beside its own compute C, (C + X) over the longer, summed. Where an expert takes
 *                             longer than a layer ("expert_over_layer"), most layers have no X and others several C: they
 *                             balance in all and in none
 *   policy.engine_over_demand the same of the engine itself (tests/support/engine_tier.h), with and without prediction, of some shares and
 *                             balances. Without prediction it computes what is there while it reads, as the model of a tier does
 *                             not: there is less to gain, "most", which is all the time that neither computing nor reading needs.
 *                             "balanced_over_waiting" is the engine with prediction over that model without, which waits for all of a
 *                             layer's experts before it computes any
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/engine.h"
#include "engine/internal.h"
#include "engine/tokenizer.h"
#include "tests/support/engine_tier.h"
#include "tests/support/measure.h"
#include "tests/support/tier_sim.h"

enum { LAYERS = 12, EXPERTS = 256, CHOSEN = 8, TOKENS = 600, READ_TOKENS = 3000, ENGINE_TOKENS = 240 };

static const char pocket[] = "tests/pocket/model/bf16", *const texts[] = {"docs/store.md", "docs/ingest.md"};

static const double known[N_AHEAD_KINDS] = {1, 1, 1, 1};
static const double shares[] = {.05, .10, .25, .50};
static const double balances[] = {.25, .5, 1, 2, 4};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static double hit(struct tier_result *r, const struct trace *t, enum tier_rule rule, double share)
{
	struct tier_options opt = {.rule = rule, .share = share, .seed = 1, .warm_tokens = t->n_tokens / 6};

	if (rule == TIER_POLICY)
		memcpy(opt.recall, tier_recall, sizeof tier_recall);
	tier_run(r, t, &opt);
	return (double)r->hits / (double)r->asked;
}

/* Prediction over none where transfers of an expert take so long. */
static double gain(const struct trace *t, double share, double transfer_s, const double *recall)
{
	struct tier_options opt = {.rule = TIER_POLICY, .share = share, .transfer_s = transfer_s, .compute_s = 1,
				   .warm_tokens = t->n_tokens / 6, .seed = 1};
	struct tier_result without, with;

	memcpy(opt.recall, recall, sizeof opt.recall);
	tier_run(&without, t, &opt);
	opt.prefetch = true;
	tier_run(&with, t, &opt);
	return without.seconds / with.seconds;
}

/* What there is to gain where each layer's transfers go beside its own compute, and nothing is guessed wrong. */
static double gain_of_next_layer(const struct tier_result *without, double transfer_s)
{
	double one_by_one = 0, beside = 0;

	for (int i = 0; i <= TIER_CHOSEN_MOST; i++) {
		double n = (double)without->layers[i];

		one_by_one += n * (1 + i * transfer_s);
		beside += n * fmax(1, i * transfer_s);
	}
	return one_by_one / beside;
}

static void bench_trace(const struct trace *t, const char *name)
{
	for (size_t i = 0; i < COUNT(shares); i++) {
		struct tier_result ours, lru, belady;
		double h = hit(&ours, t, TIER_POLICY, shares[i]), h_lru = hit(&lru, t, TIER_LRU, shares[i]);
		double h_belady = hit(&belady, t, TIER_BELADY, shares[i]), least = 0, balanced = 0;
		double steps = (double)(t->n_tokens - t->n_tokens / 6) * t->n_layers, per_layer = (double)ours.transfers / steps;
		char list[160] = "";

		for (size_t b = 0; b < COUNT(balances); b++) {
			double g = gain(t, shares[i], balances[b] / per_layer, tier_recall);

			least = !b || g < least ? g : least;
			balanced = balances[b] == 1 ? g : balanced;
			snprintf(list + strlen(list), sizeof list - strlen(list), "%s%.3f", b ? "," : "", g);
		}
#define CELL "\"trace\":\"%s\",\"share\":%.2f"
		measure_print(stdout, "policy.hit", h, "of experts asked for", 1, CELL ",\"lru\":%.3f,\"belady\":%.3f", name, shares[i],
			      h_lru, h_belady);
		measure_print(stdout, "policy.hit_over_lru", h / h_lru, "ratio", 0, CELL, name, shares[i]);
		measure_print(stdout, "policy.hit_over_belady", h / h_belady, "ratio", 1, CELL ",\"policy_eff\":%.3f", name, shares[i],
			      (double)belady.transfers / (double)ours.transfers);
		measure_print(stdout, "policy.speed_over_demand", least, "ratio", 2,
			      CELL ",\"balanced\":%.3f,\"balanced_if_all_came_true\":%.3f,\"of_next_layer\":%.3f,"
			      "\"expert_over_layer\":%.2f,\"by_transfer_over_compute\":[%s]", name, shares[i], balanced,
			      gain(t, shares[i], 1 / per_layer, known), gain_of_next_layer(&ours, 1 / per_layer), 1 / per_layer, list);
	}
}

/* Its first tokens. */
static void bench_engine(const struct trace *whole, const char *name)
{
	struct engine_tier *e = engine_tier_new(whole->n_layers, whole->n_experts, whole->n_chosen);
	struct trace t = *whole;
	const int64_t warm = ENGINE_TOKENS / 3;

	t.n_tokens = ENGINE_TOKENS;
	for (size_t i = 1; i < COUNT(shares); i += 2) {
		struct tier_options opt = {.rule = TIER_POLICY, .share = shares[i], .transfer_s = 1, .warm_tokens = warm, .seed = 1};
		double least = 0, balanced = 0, most = 0, over_waiting = 0, steps = (double)(ENGINE_TOKENS - warm) * t.n_layers;
		struct tier_result none, without, with;
		char list[160] = "";

		memcpy(opt.recall, tier_recall, sizeof opt.recall);
		tier_run(&none, &t, &opt);
		for (size_t b = 0; b < COUNT(balances); b += 2) {
			double g;

			opt.compute_s = (double)none.transfers / steps / balances[b];
			opt.prefetch = false;
			engine_tier_run(e, &without, &t, &opt);
			opt.prefetch = true;
			engine_tier_run(e, &with, &t, &opt);
			g = without.seconds / with.seconds;
			least = !b || g < least ? g : least;
			if (balances[b] == 1) {
				opt.prefetch = false;
				tier_run(&none, &t, &opt);
				balanced = g;
				over_waiting = none.seconds / with.seconds;
				most = without.seconds / fmax((double)without.transfers, steps * opt.compute_s);
			}
			snprintf(list + strlen(list), sizeof list - strlen(list), "%s%.3f", b ? "," : "", g);
		}
		measure_print(stdout, "policy.engine_over_demand", least, "ratio", 2,
			      CELL ",\"balanced\":%.3f,\"most\":%.3f,\"balanced_over_waiting\":%.3f,\"by_transfer_over_compute\":[%s]", name,
			      shares[i], balanced, most, over_waiting, list);
	}
	engine_tier_free(e);
}

/* What the pocket model's routers choose. */

struct recording {
	struct trace *trace;
	const struct model_config *config;
};

static int record(void *ctx, int32_t layer, int64_t position, const float *scores, const int32_t *chosen, struct err *err)
{
	struct recording *r = ctx;
	int32_t step = 0;

	(void)err;
	for (int32_t i = 0; i < layer; i++)
		step += !r->config->layer_is_dense[i];
	trace_put(r->trace, position, step, scores, chosen);
	return 0;
}

/* READ_TOKENS of the texts. */
static void read_texts(struct ids *ids)
{
	struct tokenizer *t;
	struct err err;
	char *path = xasprintf("%s/tokenizer.json", pocket);

	if (tokenizer_open(&t, path, &err))
		measure_fail(&err);
	for (size_t i = 0; i < COUNT(texts); i++) {
		char *text;
		size_t bytes;

		if (file_read(&text, &bytes, texts[i], 1 << 20, &err) || tokenizer_encode(t, ids, text, bytes, 0, &err))
			measure_fail(&err);
		free(text);
	}
	if (ids->n < READ_TOKENS) {
		fprintf(stderr, "%zu tokens of text are too few for a trace of %d\n", ids->n, READ_TOKENS);
		exit(1);
	}
	ids->n = READ_TOKENS;
	tokenizer_close(t);
	free(path);
}

static struct trace *record_pocket(void)
{
	struct recording r = {0};
	struct session_tap tap = {.ctx = &r, .router = record};
	struct session_options so = {0};
	struct ids ids = {0};
	struct engine *e;
	struct model *m;
	struct session *s;
	struct err err;
	int32_t layers = 0;

	read_texts(&ids);
	if (engine_open(&e, &(struct engine_options){0}, &err) || model_open(&m, pocket, &(struct model_options){0}, &err) ||
	    session_new(&s, e, m, &so, &err))
		measure_fail(&err);
	r.config = &m->config;
	for (int32_t i = 0; i < m->config.n_layers; i++)
		layers += !m->config.layer_is_dense[i];
	r.trace = trace_new(layers, m->config.n_experts, m->config.experts_per_token, m->config.n_experts);
	if (session_append(s, ids.id, ids.n, NULL, &tap, &err))
		measure_fail(&err);
	session_free(s);
	model_close(m);
	engine_close(e);
	ids_free(&ids);
	return r.trace;
}

int main(int argc, char **argv)
{
	struct trace *recorded;

	log_set_level(LOG_LEVEL_WARN);
	for (int i = 0; i < N_TRACE_PRESETS; i++) {
		struct trace *t = trace_make(&trace_presets[i], LAYERS, EXPERTS, CHOSEN, TOKENS, 1);

		bench_trace(t, trace_presets[i].name);
		bench_engine(t, trace_presets[i].name);
		trace_free(t);
	}
	recorded = record_pocket();
	bench_trace(recorded, "pocket");
	bench_engine(recorded, "pocket");
	trace_free(recorded);
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
