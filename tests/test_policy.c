/* Traces keep what they are, and the policy of the fast tier beats a list of the recently used and never loses to itself without
 * prediction. Smaller than BENCH=policy, which prints the figures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/plan.h"
#include "offload/ahead.h"
#include "offload/policy.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tier_sim.h"

static const int64_t SECOND = 1000000000;

static struct tier_result run(const struct trace *t, struct tier_options opt)
{
	struct tier_result r;

	opt.warm_tokens = t->n_tokens / 6;
	opt.seed = 1;
	tier_run(&r, t, &opt);
	return r;
}

static double hits(const struct trace *t, enum tier_rule rule, double share)
{
	struct tier_result r = run(t, (struct tier_options){.rule = rule, .share = share});

	assert_int_equal(r.hits + r.transfers, r.asked);
	return (double)r.hits / (double)r.asked;
}

/* A preset's overlap of tokens, and the hits of lists of the recently used with 8 and 64 of 256 experts, as others
 * simulated them (from a cold start: a few hundredths less). */
static void made_up_routers_are_as_local_as_they_should_be(void **state)
{
	static const double overlap[N_TRACE_PRESETS] = {.27, .29, .30, .03}, lru_64[N_TRACE_PRESETS] = {.57, .64, .85, .24};

	(void)state;
	for (int i = 0; i < N_TRACE_PRESETS; i++) {
		struct trace *t = trace_make(&trace_presets[i], 2, 256, 8, 300, 7);

		assert_true(fabs(trace_overlap(t) - overlap[i]) < .03);
		assert_true(fabs(hits(t, TIER_LRU, .25) - lru_64[i]) < .05);
		trace_free(t);
	}
}

static void the_policy_lies_between_a_list_of_the_recent_and_the_future(void **state)
{
	static const double shares[] = {.05, .10, .25, .50};

	(void)state;
	for (int i = 0; i < N_TRACE_PRESETS; i++) {
		struct trace *t = trace_make(&trace_presets[i], 4, 256, 8, 300, 3);

		for (int k = 0; k < 4; k++) {
			double ours = hits(t, TIER_POLICY, shares[k]), best = hits(t, TIER_BELADY, shares[k]);

			assert_true(ours >= hits(t, TIER_LRU, shares[k]) - (i == 3 ? .005 : 0));
			assert_true(ours <= best);
			if (i == 0 && k == 1)
				assert_true(ours > .73 * best);
		}
		trace_free(t);
	}
}

/* What a plan counts on is what this policy finds (engine/plan.c), but for the smallest shares, of which less was measured. */
static void a_plan_counts_on_the_hits_of_the_policy(void **state)
{
	static const double shares[] = {.10, .15, .25, .33, .50, .75, .90};
	struct trace *t = trace_make(&trace_presets[0], 12, 256, 8, 400, 1);

	(void)state;
	for (int i = 0; i < 7; i++) {
		double found = hits(t, TIER_POLICY, shares[i]), counted = plan_hits_least(shares[i]);

		if (fabs(found - counted) > .03)
			fail_msg("at %g a plan counts on %.3f, and %.3f is found", shares[i], counted, found);
	}
	trace_free(t);
}

static void prediction_is_never_slower_and_much_faster_where_it_can_be(void **state)
{
	struct trace *t = trace_make(&trace_presets[0], 4, 256, 8, 200, 5);

	(void)state;
	for (double transfer = .02; transfer < 3; transfer *= 2)
		for (double recall = 0; recall <= 1; recall += .25) {
			struct tier_options opt = {.rule = TIER_POLICY, .share = .1, .transfer_s = transfer, .compute_s = 1,
						   .recall = {.8 * recall + .2, recall, .7 * recall, .5 * recall}};
			double without, with;

			without = run(t, opt).seconds;
			opt.prefetch = true;
			with = run(t, opt).seconds;
			if (with > 1.01 * without)
				fail_msg("transfer %g, recall %g: %g s with prediction, %g without", transfer, recall, with, without);
			if (transfer == .16 && recall == .75)
				assert_true(with < without / 1.3);
		}
	trace_free(t);
}

/* Without any guess, what an idle link carries for its worth (offload/spare.h): much where a subject stays, and nowhere a loss. */
static void what_nobody_guessed_pays_where_subjects_last(void **state)
{
	(void)state;
	for (int i = 0; i < N_TRACE_PRESETS; i++) {
		struct trace *t = trace_make(&trace_presets[i], 4, 256, 8, 300, 5);

		for (double transfer = .05; transfer < 100; transfer *= 4) {
			struct tier_options opt = {.rule = TIER_POLICY, .share = .5, .transfer_s = transfer, .compute_s = 1};
			double without = run(t, opt).seconds, with;

			opt.prefetch = true;
			with = run(t, opt).seconds;
			if (with > 1.01 * without)
				fail_msg("%s, transfer %g: %g s with, %g without", trace_presets[i].name, transfer, with, without);
			if (!strcmp(trace_presets[i].name, "topic") && transfer > 3 && transfer < 4)
				assert_true(with < without / 1.2);
		}
		trace_free(t);
	}
}

static void a_nearer_look_at_the_next_router_pays(void **state)
{
	struct trace *t = trace_make(&trace_presets[0], 4, 256, 8, 200, 5);
	struct tier_options opt = {.rule = TIER_POLICY, .share = .1, .transfer_s = .2, .compute_s = 1, .prefetch = true,
				   .recall = {0, .5, .35, .25}};
	double once, again;

	(void)state;
	once = run(t, opt).seconds;
	opt.recall[AHEAD_WHOLE] = .5; /* which sees nothing new */
	again = run(t, opt).seconds;
	assert_true(fabs(again / once - 1) < .01);
	opt.recall[AHEAD_WHOLE] = .9;
	assert_true(run(t, opt).seconds < .95 * once);
	trace_free(t);
}

/* Transfers that nothing of can be taken back, far longer than a layer computes, and some of them stalling: what is lost behind a
 * wrong guess is more than a right one saves. */
static void prediction_is_not_slower_on_a_disk_that_is_slow_and_stalls(void **state)
{
	struct trace *t = trace_make(&trace_presets[0], 4, 256, 8, 200, 5);

	(void)state;
	for (double transfer = .5; transfer < 100; transfer *= 6)
		for (double recall = 0; recall <= .75; recall += .25) {
			struct tier_options opt = {.rule = TIER_POLICY, .share = .1, .transfer_s = transfer, .compute_s = 1, .n_pieces = 1,
						   .stall_every = 40, .stall = 10};
			double without = run(t, opt).seconds, with;

			opt.recall[AHEAD_WHOLE] = .8 * recall + .2;
			for (int kind = AHEAD_NEXT; kind < N_AHEAD_KINDS; kind++)
				opt.recall[kind] = recall * (1.25 - .25 * kind);
			opt.prefetch = true;
			with = run(t, opt).seconds;
			if (with > 1.01 * without)
				fail_msg("transfer %g, recall %g: %g s with prediction, %g without", transfer, recall, with, without);
		}
	trace_free(t);
}

/* A trace without any future: worth learns the past, and says so. */
static void what_is_always_chosen_is_worth_most(void **state)
{
	struct policy *p = policy_new(2, 16, 2);
	struct trace_entry step[16];
	int32_t layer, expert;
	float worth;

	(void)state;
	for (int i = 0; i < 16; i++)
		step[i] = (struct trace_entry){(i + 5) % 16, (float)-i};
	for (int token = 0; token < 100; token++)
		for (int l = 0; l < 2; l++)
			policy_observe(p, l, step, 16);
	assert_true(policy_worth(p, 0, 5) > .6f && policy_worth(p, 1, 6) > .6f);
	assert_true(policy_worth(p, 0, 4) < .2f);
	assert_false(policy_victim(p, &layer, &expert, &worth));
	policy_arrived(p, 0, 5);
	policy_arrived(p, 1, 12);
	assert_true(policy_victim(p, &layer, &expert, &worth));
	assert_true(layer == 1 && expert == 12);
	policy_hold(p, 1, 12, true);
	assert_true(policy_victim(p, &layer, &expert, &worth));
	assert_true(layer == 0 && expert == 5);
	policy_left(p, 0, 5);
	assert_false(policy_victim(p, &layer, &expert, &worth));
	assert_true(policy_resident(p, 1, 12) && !policy_resident(p, 0, 5));
	policy_free(p);
}

/* Whatever comes, goes, is held and is learned: it is the first of those that are worth least, of all that are there and may go. */
static void who_goes_is_worth_least_of_all_that_may(void **state)
{
	enum { LAYERS = 3, EXPERTS = 12 };
	struct policy *p = policy_new(LAYERS, EXPERTS, 2);
	bool resident[LAYERS][EXPERTS] = {{0}}, held[LAYERS][EXPERTS] = {{0}};

	(void)state;
	for (int i = 0; i < 20000; i++) {
		int32_t l = (int32_t)(tier_luck(1, i, 0) * LAYERS), e = (int32_t)(tier_luck(1, i, 1) * EXPERTS), layer, expert;
		int what = (int)(tier_luck(1, i, 2) * 5), n = 0;
		struct trace_entry step[EXPERTS];
		float worth, least = 0;

		if (what == 0) {
			for (int32_t k = 0; k < EXPERTS; k++) /* half of them score alike */
				step[k] = (struct trace_entry){(e + k) % EXPERTS, k < EXPERTS / 2 ? (float)-k : -EXPERTS};
			policy_observe(p, l, step, EXPERTS);
		} else if (what < 3) {
			policy_hold(p, l, e, held[l][e] = what == 1);
		} else if ((resident[l][e] = what == 3)) {
			policy_arrived(p, l, e);
		} else {
			policy_left(p, l, e);
		}
		for (int32_t a = 0; a < LAYERS; a++)
			for (int32_t b = 0; b < EXPERTS; b++)
				if (resident[a][b] && !held[a][b] && (!n++ || policy_worth_now(p, a, b) < least))
					least = policy_worth_now(p, a, b);
		assert_int_equal(policy_victim(p, &layer, &expert, &worth), n > 0);
		if (!n)
			continue;
		assert_true(worth == least && policy_worth_now(p, layer, expert) == least && resident[layer][expert] && !held[layer][expert]);
		for (int32_t b = 0; b < expert; b++)
			assert_false(resident[layer][b] && !held[layer][b] && policy_worth(p, layer, b) == policy_worth(p, layer, expert));
	}
	policy_free(p);
}

static void what_was_chosen_elsewhere_is_worth_most_until_routers_say_otherwise(void **state)
{
	struct policy *p = policy_new(2, 16, 2);
	struct trace_entry step[16];
	double share[16], equal[16];
	int32_t layer, expert;
	float worth;

	(void)state;
	for (int i = 0; i < 16; i++) {
		share[i] = .4 / (1 + i);
		equal[i] = 2. / 16;
		step[i] = (struct trace_entry){15 - i, (float)-i};
	}
	policy_expect(p, 0, share);
	for (int i = 1; i < 16; i++)
		assert_true(policy_worth(p, 0, i) < policy_worth(p, 0, i - 1));
	policy_expect(p, 1, equal);
	assert_true(policy_worth(p, 1, 0) == policy_worth(p, 1, 15));
	assert_true(policy_worth(p, 0, 0) > policy_worth(p, 1, 0) && policy_worth(p, 1, 0) > policy_worth(p, 0, 15));
	policy_arrived(p, 0, 3);
	policy_arrived(p, 0, 9);
	assert_true(policy_victim(p, &layer, &expert, &worth));
	assert_int_equal(expert, 9);
	for (int token = 0; token < 30; token++)
		for (int l = 0; l < 2; l++)
			policy_observe(p, l, step, 16);
	assert_true(policy_victim(p, &layer, &expert, &worth));
	assert_int_equal(expert, 3);
	policy_free(p);
}

/* A window of 1 s, transfers of .5 s in ten pieces, and guesses of which the first come true. */
static struct ahead taught(double piece_share)
{
	struct ahead a;

	ahead_init(&a, 8, piece_share);
	for (int i = 1; i < 2000; i++) {
		ahead_idle(&a, 0, i * SECOND * 10);
		ahead_spoken(&a, 0, i * SECOND * 10 + SECOND);
		ahead_carried(&a, .5);
		for (int rank = 0; rank < 8; rank++)
			ahead_judge(&a, AHEAD_NEXT, rank, i % 8 >= rank);
	}
	ahead_idle(&a, 0, SECOND);
	return a;
}

static void a_guess_is_worth_what_became_of_its_rank(void **state)
{
	struct ahead a = taught(.1);

	(void)state;
	for (int rank = 1; rank < 8; rank++)
		assert_true(ahead_bid(&a, AHEAD_NEXT, rank, 0, SECOND) <= ahead_bid(&a, AHEAD_NEXT, rank - 1, 0, SECOND));
	/* The fifth comes true in half of the cases, and costs nothing else: .5 x .5 s saved for .5 x .5 s at the most. */
	assert_float_equal(ahead_bid(&a, AHEAD_NEXT, 4, 0, SECOND), 1, .02);
	/* The last in an eighth: .0625 s saved, for a chance of 7 / 8 that .5 s are to be made good for. */
	assert_float_equal(ahead_bid(&a, AHEAD_NEXT, 7, 0, SECOND), 1 / 7., .02);
}

static void nothing_begins_that_the_window_has_no_time_for(void **state)
{
	struct ahead a = taught(.1);

	(void)state;
	assert_float_equal(ahead_left(&a, AHEAD_NEXT, SECOND), 1, 1e-6);
	assert_int_equal(ahead_pieces(&a, SECOND), 20);
	assert_true(ahead_bid(&a, AHEAD_NEXT, 7, 1, SECOND) > 0 && ahead_bid(&a, AHEAD_NEXT, 7, 2, SECOND) == 0);
	/* A quarter of a second before the end half a transfer can be saved. */
	assert_float_equal(ahead_bid(&a, AHEAD_NEXT, 7, 0, SECOND + SECOND / 4 * 3), 1 / 14., .01);
	assert_int_equal(ahead_pieces(&a, SECOND + SECOND / 4 * 3), 5);
	assert_true(ahead_bid(&a, AHEAD_NEXT, 0, 0, 2 * SECOND) == 0);
	assert_int_equal(ahead_pieces(&a, 2 * SECOND), 1);
	ahead_forget(&a);
	assert_true(ahead_bid(&a, AHEAD_NEXT, 0, 0, SECOND) == 0);
	ahead_init(&a, 8, .1);
	ahead_idle(&a, 0, SECOND);
	assert_true(ahead_bid(&a, AHEAD_NEXT, 0, 0, SECOND) == 0); /* of windows and transfers nothing is known yet */
}

/* Once a second is lost behind a wrong guess, only sure ones begin; and after some hundred windows others are tried again. */
static void what_held_others_up_is_feared_for_a_while(void **state)
{
	struct ahead a = taught(.1);
	int n = 0;

	(void)state;
	for (int i = 0; i < 20; i++)
		ahead_held_up(&a, 20, 20, 2); /* pieces of .05 s */
	assert_true(ahead_bid(&a, AHEAD_NEXT, 0, 0, SECOND) > 0 && ahead_bid(&a, AHEAD_NEXT, 4, 0, SECOND) == 0);
	ahead_spoken(&a, 0, 2 * SECOND);
	for (; ahead_bid(&a, AHEAD_NEXT, 4, 0, n * 10 * SECOND) == 0 && n < 10000; n++) {
		ahead_spoken(&a, 0, n * 10 * SECOND + SECOND);
		ahead_idle(&a, 0, (n + 1) * 10 * SECOND);
	}
	assert_true(n > 150 && n < 1500);
}

/* A piece that cannot be taken back and takes longer than the window is begun for what is nearly sure alone. */
static void a_slow_disk_is_read_ahead_of_by_who_is_sure(void **state)
{
	struct ahead a = taught(1);

	(void)state;
	for (int i = 0; i < 100; i++)
		ahead_carried(&a, 4);
	assert_true(ahead_bid(&a, AHEAD_NEXT, 0, 0, SECOND) > 0);
	assert_true(ahead_bid(&a, AHEAD_NEXT, 3, 0, SECOND) == 0); /* .625 x 1 s saved, .375 x 3 s lost */
}

/* Where a transfer takes three windows, what begins in those of earlier layers is what makes it come in time; where it takes half of
 * one, most of that can wait until more is known. */
static void a_guess_further_on_has_the_windows_before_it_too(void **state)
{
	struct ahead a = taught(.1);
	double soon = ahead_bid(&a, AHEAD_NEXT, 0, 0, SECOND), later = ahead_bid(&a, AHEAD_SECOND, 0, 0, SECOND);

	(void)state;
	assert_float_equal(ahead_left(&a, AHEAD_WHOLE, SECOND), 1, 1e-6);
	assert_float_equal(ahead_left(&a, AHEAD_SECOND, SECOND), 2, .01);
	assert_float_equal(ahead_left(&a, AHEAD_THIRD, SECOND + SECOND / 2), 2.5, .01);
	assert_true(later > 0 && later < soon / 2);
	for (int i = 0; i < 100; i++)
		ahead_carried(&a, 3);
	assert_true(ahead_bid(&a, AHEAD_SECOND, 0, 0, SECOND) > 1.5 * later);
	/* Several of the next layer share its window, and so do those of the one after it. */
	a = taught(.1);
	for (int i = 0; i < 100; i++) {
		ahead_idle(&a, 0, i * SECOND * 10);
		ahead_spoken(&a, 8, i * SECOND * 10 + SECOND);
	}
	ahead_idle(&a, 0, SECOND);
	assert_true(ahead_bid(&a, AHEAD_SECOND, 0, 0, SECOND) > 2 * later);
	/* Each kind is judged by what came of it. */
	for (int i = 0; i < 2000; i++)
		ahead_judge(&a, AHEAD_SECOND, 0, false);
	assert_true(ahead_bid(&a, AHEAD_SECOND, 0, 0, SECOND) < .01 && ahead_bid(&a, AHEAD_THIRD, 0, 0, SECOND) > .1);
}

/* What nobody guessed is begun while it saves more than it holds up, and what it saves is lost by a guess that is wrong. */
static void what_nobody_guessed_is_read_where_it_saves_more_than_it_holds_up(void **state)
{
	struct ahead a, unknown;
	double alone;

	(void)state;
	ahead_init(&unknown, 8, .1);
	ahead_idle(&unknown, 0, SECOND);
	assert_false(ahead_is_worth(&unknown, 1, SECOND));
	a = taught(.1);
	assert_true(ahead_is_worth(&a, .05, SECOND) && !ahead_is_worth(&a, 0, SECOND) && !ahead_is_worth(&a, .05, 2 * SECOND));
	for (int i = 0; i < 50; i++)
		ahead_held_up(&a, 1, 0, i % 2 * .05); /* .025 s in a window in which .5 s are carried */
	assert_true(ahead_is_worth(&a, .1, SECOND) && !ahead_is_worth(&a, .03, SECOND));
	a = taught(.1);
	alone = ahead_bid(&a, AHEAD_NEXT, 7, 0, SECOND);
	ahead_instead(&a, .1); /* .0625 s saved, and with a chance of 7 / 8 .025 s lost: .0406 in .4375 s */
	assert_float_equal(ahead_bid(&a, AHEAD_NEXT, 7, 0, SECOND), .0928, .01);
	ahead_instead(&a, 1);
	assert_true(ahead_bid(&a, AHEAD_NEXT, 7, 0, SECOND) == 0 && ahead_bid(&a, AHEAD_NEXT, 0, 0, SECOND) > .9);
	/* Where guesses bring what is wanted anyway, others save nothing. */
	for (int i = 0; i < 3000; i++)
		ahead_wanted(&a, true);
	assert_float_equal(ahead_bid(&a, AHEAD_NEXT, 7, 0, SECOND), alone, .001);
	assert_true(ahead_is_worth(&a, 1, SECOND));
	ahead_held_up(&a, 1, 0, .05);
	assert_false(ahead_is_worth(&a, 1, SECOND));
	ahead_wanted(&a, false);
	assert_true(ahead_bid(&a, AHEAD_NEXT, 7, 0, SECOND) < alone);
}

static void equal_scores_do_no_harm(void **state)
{
	struct policy *p = policy_new(1, 8, 2);
	struct trace_entry step[8];

	(void)state;
	for (int i = 0; i < 8; i++)
		step[i] = (struct trace_entry){i, 1};
	for (int i = 0; i < 20; i++)
		policy_observe(p, 0, step, 8);
	for (int i = 0; i < 8; i++)
		assert_true(isfinite(policy_worth(p, 0, i)));
	policy_free(p);
}

static int read_text(struct trace **t, const char *text, struct err *err)
{
	char *dir = temp_dir_new(), *path = temp_text(dir, "a.trace", text);
	int rc = trace_read(t, path, err);

	free(path);
	temp_dir_free(dir);
	return rc;
}

static void a_trace_comes_back_as_it_was_written(void **state)
{
	struct trace *t = trace_make(&trace_presets[1], 3, 20, 4, 10, 1), *back;
	char *dir = temp_dir_new(), *path = temp_path(dir, "a.trace");
	FILE *f = fopen(path, "w");
	struct err err;

	(void)state;
	assert_int_equal(trace_write(f, t), 0);
	fclose(f);
	assert_int_equal(trace_read(&back, path, &err), 0);
	assert_int_equal(back->n_tokens, 10);
	assert_true(back->n_layers == 3 && back->n_experts == 20 && back->n_chosen == 4 && back->n_listed == 20);
	for (size_t i = 0; i < 10 * 3 * 20; i++) {
		assert_int_equal(back->entries[i].expert, t->entries[i].expert);
		assert_true(fabsf(back->entries[i].score - t->entries[i].score) <= 1e-5f * fabsf(t->entries[i].score));
	}
	trace_free(t);
	trace_free(back);
	free(path);
	temp_dir_free(dir);
}

static void steps_come_in_any_order_and_are_listed_from_the_best_down(void **state)
{
	struct trace *t = trace_new(2, 5, 2, 4);
	const float a[5] = {1, 5, 3, 4, 2}, b[5] = {.5f, .25f, 1, .125f, 0};

	(void)state;
	trace_put(t, 1, 1, b, (int32_t[]){0, 2});
	trace_put(t, 0, 0, a, (int32_t[]){2, 1}); /* expert 3 scores more than 2 and was not chosen: groups can do that */
	trace_put(t, 0, 1, a, (int32_t[]){1, 3});
	trace_put(t, 1, 0, b, (int32_t[]){2, 0});
	assert_int_equal(t->n_tokens, 2);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(trace_step(t, 0, 0)[i].expert, ((int32_t[]){1, 2, 3, 4})[i]);
		assert_int_equal(trace_step(t, 0, 1)[i].expert, ((int32_t[]){1, 3, 2, 4})[i]);
		assert_int_equal(trace_step(t, 1, 1)[i].expert, ((int32_t[]){2, 0, 1, 3})[i]);
	}
	trace_free(t);
}

static void what_is_no_trace_is_refused_with_its_line(void **state)
{
#define HEAD "quire-trace 1 layers 2 experts 4 chosen 1 listed 2\n"
	static const struct {
		const char *text, *says;
	} cases[] = {
		{"", ":1: not"},
		{"quire-trace 2 layers 1 experts 4 chosen 1 listed 2\n", ":1: not"},
		{"quire-trace 1 layers 1 experts 4 chosen 3 listed 2\n", "no more than listed"},
		{HEAD, "no whole tokens"},
		{HEAD "0:1 1:0\n", "no whole tokens of 2 layers"},
		{HEAD "0:1 4:0\n", ":2: word 2 of 2"},
		{HEAD "# a remark\n0:1 0:0\n", ":3: expert 0 is listed twice"},
		{HEAD "0:1 1:x\n", "expert 1 has no score"},
		{HEAD "0:1 1:nan\n", "expert 1 has no score"},
		{"quire-trace 1 layers 1 experts 4 chosen 2 listed 3\n0:1 1:2 2:0\n", "scores more"},
		{HEAD "0:1 1:0 2:0\n", "more than 2 words"},
		{HEAD "0:1\n", "word 2 of 2"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct trace *t;
		struct err err = {0};

		assert_int_equal(read_text(&t, cases[i].text, &err), -1);
		if (!strstr(err.text, cases[i].says))
			fail_msg("%s gives: %s", cases[i].text, err.text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(made_up_routers_are_as_local_as_they_should_be),
		cmocka_unit_test(the_policy_lies_between_a_list_of_the_recent_and_the_future),
		cmocka_unit_test(a_plan_counts_on_the_hits_of_the_policy),
		cmocka_unit_test(prediction_is_never_slower_and_much_faster_where_it_can_be),
		cmocka_unit_test(what_nobody_guessed_pays_where_subjects_last),
		cmocka_unit_test(a_nearer_look_at_the_next_router_pays),
		cmocka_unit_test(prediction_is_not_slower_on_a_disk_that_is_slow_and_stalls),
		cmocka_unit_test(what_is_always_chosen_is_worth_most),
		cmocka_unit_test(who_goes_is_worth_least_of_all_that_may),
		cmocka_unit_test(what_was_chosen_elsewhere_is_worth_most_until_routers_say_otherwise),
		cmocka_unit_test(a_guess_is_worth_what_became_of_its_rank),
		cmocka_unit_test(nothing_begins_that_the_window_has_no_time_for),
		cmocka_unit_test(what_held_others_up_is_feared_for_a_while),
		cmocka_unit_test(a_slow_disk_is_read_ahead_of_by_who_is_sure),
		cmocka_unit_test(a_guess_further_on_has_the_windows_before_it_too),
		cmocka_unit_test(what_nobody_guessed_is_read_where_it_saves_more_than_it_holds_up),
		cmocka_unit_test(equal_scores_do_no_harm),
		cmocka_unit_test(a_trace_comes_back_as_it_was_written),
		cmocka_unit_test(steps_come_in_any_order_and_are_listed_from_the_best_down),
		cmocka_unit_test(what_is_no_trace_is_refused_with_its_line),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
