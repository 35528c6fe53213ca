/* The engine against transformers in float64: logits, index sets, greedy continuations of every tiny checkpoint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>

#include "config/mem.h"
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

static int32_t greatest(const float *x, int32_t n)
{
	int32_t best = 0;

	for (int32_t i = 1; i < n; i++)
		if (x[i] > x[best])
			best = i;
	return best;
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
			int32_t id = greatest(logits, vocab);

			assert_int_equal(id, c->greedy[g]);
			assert_int_equal(session_append(s, &id, 1, logits, NULL, &err), 0);
		}
		n_greedy += c->n_greedy;
		session_free(s);
	}
	free(logits);
	assert_true(n_greedy >= 64);
}

int main(void)
{
	int failed = 0;

	for (int i = 0; golden_checkpoints[i]; i++) {
		void *name = (void *)(uintptr_t)golden_checkpoints[i];
		const struct CMUnitTest tests[] = {
			{"logits_and_index_sets_are_the_references", logits_and_index_sets_are_the_references,
			 open_checkpoint, close_checkpoint, name},
			{"greedy_continuations_are_the_references", greedy_continuations_are_the_references,
			 open_checkpoint, close_checkpoint, name},
		};

		failed += cmocka_run_group_tests_name(golden_checkpoints[i], tests, NULL, NULL);
	}
	return failed != 0;
}
