/*
 * The engine's tier of experts in virtual time (tests/support/engine_tier.h), beside the model of one, and with prediction beside without:
 * that never makes tokens slower, however fast the drive is, however often guesses come true, and on a drive that stalls; and where
 * computing and reading take as long it makes them faster.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "config/log.h"
#include "tests/support/engine_tier.h"
#include "tests/support/sanitized.h"

enum { LAYERS = 6, EXPERTS = 64, CHOSEN = 4, TOKENS = 480, WARM = 240 };

static struct engine_tier *tier;

/* Tokens per second with prediction, over those without. A layer computes as long as its transfers take / balance. */
static double gain(const struct trace *t, struct tier_options opt, double balance, const double *recall)
{
	struct tier_result without, with;

	opt.rule = TIER_POLICY;
	opt.warm_tokens = WARM;
	opt.seed = 1;
	memcpy(opt.recall, recall, sizeof opt.recall);
	opt.transfer_s = 1e-3;
	tier_run(&without, t, &opt);
	opt.compute_s = opt.transfer_s * (double)without.transfers / ((TOKENS - WARM) * LAYERS) / balance;
	engine_tier_run(tier, &without, t, &opt);
	opt.prefetch = true;
	engine_tier_run(tier, &with, t, &opt);
	return without.seconds / with.seconds;
}

/* The model of a tier (tier_sim.h), of which most figures are, keeps what the engine does. */
static void the_model_of_a_tier_has_the_hits_of_the_engine(void **state)
{
	static const double shares[] = {.1, .25, .5};

	(void)state;
	for (int preset = 0; preset < (SANITIZED ? 1 : N_TRACE_PRESETS); preset++) {
		struct trace *t = trace_make(&trace_presets[preset], LAYERS, EXPERTS, CHOSEN, TOKENS, 1);

		for (int i = 0; i < 3; i++) {
			struct tier_options opt = {.rule = TIER_POLICY, .share = shares[i], .transfer_s = 1, .compute_s = 1,
						   .warm_tokens = WARM};
			struct tier_result model, engine;
			double hit_model, hit_engine;

			tier_run(&model, t, &opt);
			engine_tier_run(tier, &engine, t, &opt);
			assert_int_equal(engine.asked, model.asked);
			hit_model = (double)model.hits / (double)model.asked;
			hit_engine = (double)engine.hits / (double)engine.asked;
			if (fabs(hit_model - hit_engine) > .01)
				fail_msg("%s, share %g: hits %.3f in the model, %.3f in the engine", trace_presets[preset].name, shares[i],
					 hit_model, hit_engine);
		}
		trace_free(t);
	}
}

static void prediction_is_never_slower(void **state)
{
	static const double none[N_AHEAD_KINDS] = {.02, .02, .02, .02}, shares[] = {.06, .25, .5}, balances[] = {.1, .3, 1, 4};
	struct trace *t = trace_make(&trace_presets[0], LAYERS, EXPERTS, CHOSEN, TOKENS, 1);

	(void)state;
	for (int i = 0; i < (SANITIZED ? 1 : 3); i++)
		for (int b = 0; b < 4; b++) {
			struct tier_options opt = {.share = shares[i], .n_pieces = 1 + 9 * (b % 2)};
			double usual = gain(t, opt, balances[b], tier_recall), vain = gain(t, opt, balances[b], none);

			if (usual < .99 || vain < .98)
				fail_msg("share %g, transfer over compute %g: %.3f of the tokens/s without prediction, %.3f where it is wrong",
					 shares[i], balances[b], usual, vain);
			assert_true(balances[b] != 1 || usual > 1.06);
		}
	trace_free(t);
}

/* Some transfers take ten times as long; or few of them four hundred times, so that one more or less is some hundredths of all. What is
 * begun in vain may be one of those. */
static void nor_on_a_drive_that_stalls(void **state)
{
	static const struct {
		int every;
		double times, least;
	} stalls[] = {{20, 10, .99}, {100, 400, .92}};
	struct trace *t = trace_make(&trace_presets[0], LAYERS, EXPERTS, CHOSEN, TOKENS, 1);

	(void)state;
	for (int i = 0; i < 2; i++)
		for (double balance = .25; balance <= 4; balance *= 4)
			for (int n_pieces = 1; n_pieces <= (SANITIZED ? 1 : 10); n_pieces += 9) {
				struct tier_options opt = {.share = .1, .n_pieces = n_pieces, .stall_every = stalls[i].every,
							   .stall = stalls[i].times};
				double g = gain(t, opt, balance, tier_recall);

				if (g < stalls[i].least)
					fail_msg("each %dth transfer takes %g times as long, in %d pieces, transfer over compute %g: %.3f of "
						 "the tokens/s without prediction",
						 stalls[i].every, stalls[i].times, n_pieces, balance, g);
			}
	trace_free(t);
}

static int set_up(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	tier = engine_tier_new(LAYERS, EXPERTS, CHOSEN);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	engine_tier_free(tier);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_model_of_a_tier_has_the_hits_of_the_engine),
		cmocka_unit_test(prediction_is_never_slower),
		cmocka_unit_test(nor_on_a_drive_that_stalls),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
