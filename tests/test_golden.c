/*
 * The engine against transformers in float64: logits, index sets, greedy continuations of every tiny checkpoint; and
 * what is rounded to bf16 against transformers in bf16.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>

#include "config/mem.h"
#include "engine/internal.h"
#include "engine/numeric.h"
#include "tests/support/golden.h"

struct checkpoint {
	struct engine *engine;
	struct model *model;
	struct golden_case *cases;
	int n_cases;
};

static int open_checkpoint(void **state)
{
	const char *name = *state;
	struct checkpoint *k = xcalloc(1, sizeof *k);
	struct engine_options opt = {.n_threads = 2};
	char *dir = golden_dir(name);
	struct err err = {0};

	if (engine_open(&k->engine, &opt, &err) || model_open(&k->model, dir, NULL, &err)) {
		fprintf(stderr, "%s: %s\n", name, err.text);
		return -1;
	}
	free(dir);
	k->cases = golden_load(name, k->model->config.vocab, &k->n_cases);
	*state = k;
	return 0;
}

static int close_checkpoint(void **state)
{
	struct checkpoint *k = *state;

	golden_free(k->cases, k->n_cases);
	model_close(k->model);
	engine_close(k->engine);
	free(k);
	return 0;
}

/* design: relative error of logits below 1e-4 of the largest, and identical index sets where scores are kept apart. */
static void logits_and_index_sets_are_the_references(void **state)
{
	struct checkpoint *k = *state;

	assert_true(k->n_cases > 0);
	for (int i = 0; i < k->n_cases; i++) {
		const struct golden_case *c = &k->cases[i];
		const struct golden_set *first = NULL;
		struct golden_run run;
		int different;
		double error;

		golden_run(&run, k->engine, k->model, LATENTS_F32, c, 0);
		error = golden_error(&run, c);
		different = golden_set_differences(&run, c, &first);
		print_message("%-14s %-8s error %.1e, %d of %d sets differ\n", c->checkpoint, c->name, error, different,
			      c->n_sets);
		if (different)
			print_message("  the first: layer %d, position %d\n", first->layer, first->position);
		golden_run_free(&run);
		assert_true(error < 1e-4);
		assert_int_equal(different, 0);
	}
}

static void greedy_continuations_are_the_references(void **state)
{
	struct checkpoint *k = *state;
	struct session_options opt = {.latents = LATENTS_F32};
	int32_t vocab = k->model->config.vocab;
	float *logits = xcalloc((size_t)vocab, sizeof *logits);
	int n_greedy = 0;

	for (int i = 0; i < k->n_cases; i++) {
		const struct golden_case *c = &k->cases[i];
		struct err err = {0};
		struct session *s;

		assert_int_equal(session_new(&s, k->engine, k->model, &opt, &err), 0);
		if (c->n_greedy)
			assert_int_equal(session_append(s, c->ids, (size_t)c->n_ids, logits, NULL, &err), 0);
		for (int32_t g = 0; g < c->n_greedy; g++) {
			int32_t id = golden_greatest(logits, vocab);

			assert_int_equal(id, c->greedy[g]);
			assert_int_equal(session_append(s, &id, 1, logits, NULL, &err), 0);
		}
		n_greedy += c->n_greedy;
		session_free(s);
	}
	free(logits);
	assert_true(n_greedy >= 64);
}

/* ---- figures, by hand ---- */

/* Two prompt positions whose logits are stored, of four, and one that is not; two ids by greedy choice. */
static float by_hand_reference[] = {3, 4, /**/ 0, 8};
static float by_hand_logits[] = {3, 4.5f, /**/ 100, 200, /**/ 0.25f, 8, /**/ 7, 7, /**/ 1, 0};
static int32_t by_hand_rows[] = {0, 2}, by_hand_greedy[] = {1, 0, 1};

static const struct golden_case by_hand_case = {
	.name = "by hand",
	.n_ids = 3,
	.rows = by_hand_rows,
	.n_rows = 2,
	.logits = by_hand_reference,
};
static const struct golden_run by_hand_run = {.logits = by_hand_logits, .n_positions = 5, .vocab = 2};

static void errors_of_rows_are_pooled_as_squares_or_as_logarithms(void **state)
{
	struct golden_figures f = golden_measure(&by_hand_run, &by_hand_case, 1);

	(void)state;
	assert_float_equal(f.max_error, 0.0625, 1e-7);          /* 0.5 / 8 */
	assert_float_equal(f.rms_error, 0.0592565, 1e-6);       /* sqrt((0.5^2 + 0.25^2) / (25 + 64)) */
	assert_float_equal(f.geometric_error, 0.0559017, 1e-6); /* sqrt(0.5 / 5 x 0.25 / 8) */
	assert_true(isnan(f.set_overlap));
	assert_true(isnan(f.greedy_agreement));
}

static void two_cases_count_by_their_rows_and_an_exact_row_as_a_rounding(void **state)
{
	const struct golden_run runs[] = {by_hand_run, {.logits = by_hand_reference, .n_positions = 2, .vocab = 2}};
	struct golden_case cases[] = {by_hand_case, by_hand_case};

	(void)state;
	cases[1].n_rows = 1;
	assert_float_equal(golden_rms_error(runs, cases, 2), 0.0523570, 1e-6); /* sqrt(0.3125 / (89 + 25)) */
	assert_float_equal(golden_geometric_error(runs, cases, 2), 0.000571097, 1e-9); /* (1/320 x 2^-24)^(1/3) */
}

static void set_overlap_is_the_share_that_was_chosen_too(void **state)
{
	int32_t want[] = {1, 2, 4, 5}, got[] = {0, 2, 4, 5}, two[] = {0, 1};
	struct golden_set reference[] = {{0, 5, 4, want}, {3, 5, 2, two}, {3, 6, 2, two}};
	struct golden_set chosen[] = {{3, 5, 2, two}, {0, 5, 4, got}, {0, 6, 2, two}};
	struct golden_case c = by_hand_case;
	struct golden_run run = by_hand_run;

	(void)state;
	c.sets = reference;
	c.n_sets = 3;
	run.sets = chosen;
	run.n_sets = 3;
	assert_float_equal(golden_set_overlap(&run, &c, 1), 7.0 / 12, 1e-6); /* 3/4, 2/2, and one that is not there */
}

static void greedy_agreement_looks_at_the_logits_before_each_id(void **state)
{
	struct golden_case c = by_hand_case;

	(void)state;
	c.greedy = by_hand_greedy;
	c.n_greedy = 3;
	/* After position 2: id 1, as the reference. 3: equal, so id 0, as the reference. 4: id 0, and not 1. */
	assert_float_equal(golden_greedy_agreement(&by_hand_run, &c, 1), 2.0 / 3, 1e-6);
}

/* ---- bf16 here and in transformers ---- */

/* Ours/theirs, "-" for what could not be measured. */
static const char *pair(char text[32], double ours, double theirs)
{
	if (isnan(ours) || isnan(theirs))
		return "-";
	snprintf(text, 32, "%.4f/%.4f", ours, theirs);
	return text;
}

static void print_beside_transformers(const char *checkpoint, const char *name, const struct golden_figures *f)
{
	struct golden_figures t = golden_transformers_bf16(checkpoint, name);
	char text[5][32];

	print_message("%-14s %-8s max %s, rms %s, geometric %s, top-k %s, greedy %s\n", checkpoint, name,
		      pair(text[0], f->max_error, t.max_error), pair(text[1], f->rms_error, t.rms_error),
		      pair(text[2], f->geometric_error, t.geometric_error), pair(text[3], f->set_overlap, t.set_overlap),
		      pair(text[4], f->greedy_agreement, t.greedy_agreement));
}

/* The figures of all cases pooled, with latents in bf16; printed as those of `what` beside those of transformers in
 * bf16, case by case. */
static struct golden_figures measure(const struct checkpoint *k, struct engine *e, const char *what)
{
	struct golden_run *runs = xcalloc((size_t)k->n_cases, sizeof *runs);
	struct golden_figures f;

	print_message("%s/transformers in bf16\n", what);
	for (int i = 0; i < k->n_cases; i++) {
		golden_run_forced(&runs[i], e, k->model, LATENTS_BF16, &k->cases[i]);
		f = golden_measure(&runs[i], &k->cases[i], 1);
		print_beside_transformers(k->cases[i].checkpoint, k->cases[i].name, &f);
	}
	f = golden_measure(runs, k->cases, k->n_cases);
	print_beside_transformers(k->cases[0].checkpoint, "all", &f);
	for (int i = 0; i < k->n_cases; i++)
		golden_run_free(&runs[i]);
	free(runs);
	return f;
}

/* Rms errors over those of transformers in bf16, of the checkpoints so far: left for the test over all of them. */
struct tally {
	double log_ratio;
	int n;
};
static struct tally of_profile, of_float32, of_coarse;

static double mean_ratio(const struct tally *t)
{
	return exp(t->log_ratio / t->n);
}

static bool lies_nearer(const struct checkpoint *k, const struct golden_figures *ours, struct tally *t)
{
	struct golden_figures theirs = golden_transformers_bf16(k->cases[0].checkpoint, "all");

	t->log_ratio += log(ours->rms_error / theirs.rms_error);
	t->n++;
	return ours->geometric_error < theirs.geometric_error;
}

/* The negative control: an engine whose residual stream has five significant bits, where bf16 has eight. */
static const struct ops *right;

static void add_to_a_coarse_residual(struct device *dev, float *h, const float *x, const int32_t *rows,
				     const float *weights, int64_t n, int32_t dim)
{
	right->add_scaled(dev, h, x, rows, weights, n, dim);
	for (int64_t i = 0; i < n; i++)
		for (int32_t k = 0; k < dim; k++) {
			float *value = h + (rows ? rows[i] : i) * dim + k;
			uint32_t u = f32_bits(*value);

			*value = f32_from_bits((u + 0x3ffff + (u >> 19 & 1)) & ~0x7ffffu);
		}
}

static void profile_bf16_lies_nearer_to_the_reference_than_transformers_in_bf16(void **state)
{
	struct checkpoint *k = *state;
	struct engine_options opt = {.n_threads = 2, .compute = COMPUTE_BF16};
	struct golden_figures f;
	struct engine *e;
	struct err err = {0};

	if (engine_open(&e, &opt, &err))
		fail_msg("%s", err.text);
	f = measure(k, e, "profile bf16");
	engine_close(e);

	assert_true(lies_nearer(k, &f, &of_profile));
}

static void float32_with_latents_in_bf16_lies_nearer_to_the_reference_than_transformers_in_bf16(void **state)
{
	struct checkpoint *k = *state;
	struct golden_figures f = measure(k, k->engine, "float32 with latents in bf16");

	assert_true(lies_nearer(k, &f, &of_float32));
}

static void a_residual_of_five_bits_lies_farther_from_the_reference(void **state)
{
	struct checkpoint *k = *state;
	struct golden_figures f;
	struct ops coarse;

	right = k->engine->ops;
	coarse = *right;
	coarse.add_scaled = add_to_a_coarse_residual;
	k->engine->ops = &coarse;
	f = measure(k, k->engine, "a residual of five bits");
	k->engine->ops = right;

	assert_false(lies_nearer(k, &f, &of_coarse));
}

/* After the tests of every checkpoint. */
static void over_all_checkpoints_the_rms_error_tells_the_same(void **state)
{
	int n = 0;

	(void)state;
	while (golden_checkpoints[n])
		n++;
	print_message("rms error over that of transformers in bf16, geometric mean of all checkpoints: %.2f of profile bf16, "
		      "%.2f of float32 with latents in bf16, %.2f of a residual of five bits\n",
		      mean_ratio(&of_profile), mean_ratio(&of_float32), mean_ratio(&of_coarse));
	assert_int_equal(of_profile.n, n);
	assert_int_equal(of_float32.n, n);
	assert_int_equal(of_coarse.n, n);
	assert_true(mean_ratio(&of_profile) < 1);
	assert_true(mean_ratio(&of_float32) < 1);
	assert_true(mean_ratio(&of_coarse) > 1);
}

int main(void)
{
	const struct CMUnitTest figures[] = {
		cmocka_unit_test(errors_of_rows_are_pooled_as_squares_or_as_logarithms),
		cmocka_unit_test(two_cases_count_by_their_rows_and_an_exact_row_as_a_rounding),
		cmocka_unit_test(set_overlap_is_the_share_that_was_chosen_too),
		cmocka_unit_test(greedy_agreement_looks_at_the_logits_before_each_id),
	};
	const struct CMUnitTest over_all[] = {
		cmocka_unit_test(over_all_checkpoints_the_rms_error_tells_the_same),
	};
	int failed = cmocka_run_group_tests(figures, NULL, NULL);

	for (int i = 0; golden_checkpoints[i]; i++) {
		void *name = (void *)(uintptr_t)golden_checkpoints[i];
		const struct CMUnitTest tests[] = {
			{"logits_and_index_sets_are_the_references", logits_and_index_sets_are_the_references,
			 open_checkpoint, close_checkpoint, name},
			{"greedy_continuations_are_the_references", greedy_continuations_are_the_references,
			 open_checkpoint, close_checkpoint, name},
			{"profile_bf16_lies_nearer_to_the_reference_than_transformers_in_bf16",
			 profile_bf16_lies_nearer_to_the_reference_than_transformers_in_bf16,
			 open_checkpoint, close_checkpoint, name},
			{"float32_with_latents_in_bf16_lies_nearer_to_the_reference_than_transformers_in_bf16",
			 float32_with_latents_in_bf16_lies_nearer_to_the_reference_than_transformers_in_bf16,
			 open_checkpoint, close_checkpoint, name},
			{"a_residual_of_five_bits_lies_farther_from_the_reference",
			 a_residual_of_five_bits_lies_farther_from_the_reference,
			 open_checkpoint, close_checkpoint, name},
		};

		failed += cmocka_run_group_tests_name(golden_checkpoints[i], tests, NULL, NULL);
	}
	failed += cmocka_run_group_tests(over_all, NULL, NULL);
	return failed != 0;
}
