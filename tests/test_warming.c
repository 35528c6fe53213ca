/* Experts that come before anybody asks: those that a corpus's tokens chose most often, in slots that have nothing better, while
 * nobody wants the drive. No bit changes, the first question finds more of what it wants, and it does not wait for the rest.
 * (Counting them: test_routing.c; a daemon that does it: test_daemon.c.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "config/mem.h"
#include "engine/experts.h"
#include "tests/support/fake_io.h"
#include "tests/support/golden.h"
#include "tests/support/slow_io.h"

enum { N_TEXT = 200, N_QUESTION = 12 };

static struct {
	struct engine *engine;
	struct model *all;      /* every expert loaded */
	int32_t text[N_TEXT];
	int64_t *chosen;        /* by the tokens of text */
	float *logits;          /* [N_QUESTION, vocab] of its first tokens */
	int64_t slot_bytes;
	size_t n;               /* experts, those of dense layers too */
} x;

static struct model *open_model(const struct experts_options *experts)
{
	const struct model_options opt = {.experts = experts};
	struct model *m;
	struct err err;

	if (model_open(&m, "tests/golden/glm52", &opt, &err))
		fail_msg("%s", err.text);
	return m;
}

/* Room for what a token uses, one more, and so many more. */
static struct experts_options room_for(int more)
{
	return (struct experts_options){.bytes = (x.all->config.experts_per_token + 1 + more) * x.slot_bytes, .no_prediction = true};
}

static struct experts_stats stats_of(const struct model *m)
{
	struct experts_stats s;

	experts_stats(m->experts, &s);
	return s;
}

static int count(void *ctx, int32_t layer, int64_t position, const float *scores, const int32_t *chosen, struct err *err)
{
	const struct model_config *c = &x.all->config;

	(void)ctx, (void)position, (void)scores, (void)err;
	for (int32_t i = 0; i < c->experts_per_token; i++)
		x.chosen[layer * c->n_experts + chosen[i]]++;
	return 0;
}

/* The first tokens one by one, as an answer comes: all their logits. -1: it failed. */
static int try_answer(struct model *m, float *logits, struct err *err)
{
	const struct session_options opt = {.latents = LATENTS_BF16};
	size_t vocab = (size_t)m->config.vocab;
	struct session *s;
	int rc = 0;

	assert_int_equal(session_new(&s, x.engine, m, &opt, err), 0);
	for (int i = 0; i < N_QUESTION && !rc; i++)
		rc = session_append(s, x.text + i, 1, logits + (size_t)i * vocab, NULL, err);
	session_free(s);
	return rc;
}

static void answer_as_ever(struct model *m)
{
	size_t n = (size_t)N_QUESTION * (size_t)m->config.vocab;
	float *logits = xmalloc(n, sizeof *logits);
	struct err err;

	if (try_answer(m, logits, &err))
		fail_msg("%s", err.text);
	assert_memory_equal(logits, x.logits, n * sizeof *logits);
	free(logits);
}

static int set_up(void **state)
{
	const struct engine_options engine = {.n_threads = 2, .compute = COMPUTE_BF16};
	const struct session_options opt = {.latents = LATENTS_BF16};
	const struct session_tap tap = {.router = count};
	struct experts_options large = {.bytes = (int64_t)1 << 30};
	struct session *s;
	struct model *m;
	struct err err;

	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	if (engine_open(&x.engine, &engine, &err))
		return -1;
	x.all = open_model(NULL);
	x.n = (size_t)x.all->config.n_layers * (size_t)x.all->config.n_experts;
	x.chosen = xcalloc(x.n, sizeof *x.chosen);
	x.logits = xmalloc((size_t)N_QUESTION * (size_t)x.all->config.vocab, sizeof *x.logits);
	for (int i = 0; i < N_TEXT; i++) /* few words, as texts have */
		x.text[i] = (i * i * 7 + 3) % 23 * 5 % x.all->config.vocab;
	if (session_new(&s, x.engine, x.all, &opt, &err) || session_append(s, x.text, N_TEXT, NULL, &tap, &err))
		return -1;
	session_free(s);
	m = open_model(&large);
	x.slot_bytes = stats_of(m).slot_bytes;
	model_close(m);
	return try_answer(x.all, x.logits, &err);
}

static int tear_down(void **state)
{
	(void)state;
	free(x.chosen);
	free(x.logits);
	model_close(x.all);
	engine_close(x.engine);
	return 0;
}

static void warm_all(struct experts *e)
{
	while (experts_warm(e))
		;
}

/* ---- what comes, and what for --------------------------------------------------------------------------------------- */

static void warmed_experts_give_the_same_bits_in_any_number_of_slots(void **state)
{
	static const int more[] = {0, 1, 9, 1000};

	(void)state;
	for (size_t i = 0; i < sizeof more / sizeof more[0]; i++) {
		struct experts_options opt = room_for(more[i]);
		struct model *m = open_model(&opt);
		struct experts_stats s;

		experts_expect(m->experts, x.chosen);
		warm_all(m->experts);
		s = stats_of(m);
		assert_int_equal(s.warmed, s.resident);
		assert_int_equal(s.warmed, s.reads);
		if (more[i] < 1000)
			assert_int_equal(s.warmed, s.n_slots);
		assert_true(s.warmed > 0 && !s.taken && !s.ahead && !s.warmed_used);
		answer_as_ever(m);
		s = stats_of(m);
		assert_true(s.warmed_used <= s.warmed && (s.warmed_used || !more[i]));
		warm_all(m->experts); /* what is left to do, in the middle and after */
		answer_as_ever(m);
		model_close(m);
	}
}

static void the_most_chosen_come_first_and_no_more_than_there_are_slots(void **state)
{
	struct experts_options opt = room_for(2);
	struct model *m = open_model(&opt);
	const struct model_config *c = &m->config;
	int32_t n_slots = experts_slots(m->experts), layer = c->n_layers - 1, last = c->n_experts - 2, odd[4] = {1, 3, 5, 7};
	int64_t *chosen = xcalloc(x.n, sizeof *chosen);
	struct experts_stats s;

	(void)state;
	assert_true(c->n_experts == 8 && n_slots == 6 && !c->layer_is_dense[layer]);
	for (int32_t e = 0; e < 8; e++)
		chosen[layer * 8 + e] = e % 2 ? 10 + e : 1;
	experts_expect(m->experts, chosen);
	warm_all(m->experts);
	s = stats_of(m);
	assert_int_equal(s.warmed, n_slots);
	experts_want(m->experts, layer, odd, 4);
	experts_forget(m->experts);
	assert_int_equal(stats_of(m).reads, s.reads); /* the odd ones are all there */
	assert_int_equal(stats_of(m).warmed_used, 4);

	/* Another corpus chose others: they take the place of these. */
	memset(chosen, 0, x.n * sizeof *chosen);
	chosen[layer * 8 + last] = 7;
	experts_expect(m->experts, chosen);
	warm_all(m->experts);
	assert_int_equal(stats_of(m).reads, s.reads + 1);
	experts_want(m->experts, layer, &last, 1);
	experts_forget(m->experts);
	assert_int_equal(stats_of(m).reads, s.reads + 1);
	free(chosen);
	model_close(m);
}

/* Counted in reads, whose number is the same on any machine. */
static void the_first_question_finds_more_of_what_it_wants(void **state)
{
	static const int more[] = {8, 16, 24};

	(void)state;
	for (size_t i = 0; i < sizeof more / sizeof more[0]; i++) {
		struct experts_options opt = room_for(more[i]);
		struct model *cold = open_model(&opt), *warm = open_model(&opt);
		struct experts_stats without, with;
		int64_t reads;

		answer_as_ever(cold);
		without = stats_of(cold);
		experts_expect(warm->experts, x.chosen);
		warm_all(warm->experts);
		reads = stats_of(warm).reads;
		answer_as_ever(warm);
		with = stats_of(warm);
		print_message("%2lld of %lld slots: of %lld wanted %lld are there cold, %lld warmed; %lld and %lld reads\n",
			      (long long)with.n_slots, (long long)with.n_experts, (long long)with.taken, (long long)without.hits,
			      (long long)with.hits, (long long)without.reads, (long long)(with.reads - reads));
		assert_int_equal(with.taken, without.taken);
		assert_true(with.hits > without.hits);
		assert_true(with.reads - reads < without.reads);
		model_close(cold);
		model_close(warm);
	}
}

static void without_counts_nothing_is_read(void **state)
{
	struct experts_options opt = room_for(4);
	struct model *m = open_model(&opt);
	int64_t *none = xcalloc(x.n, sizeof *none);

	(void)state;
	assert_false(experts_warm(m->experts));
	experts_expect(m->experts, none);
	assert_false(experts_warm(m->experts));
	assert_int_equal(stats_of(m).reads, 0);
	answer_as_ever(m);
	free(none);
	model_close(m);
}

/* Three that a router chose again and again, seven free slots, and eight others of another layer, one as good as the other. */
static void what_a_question_has_used_stays_if_it_is_worth_more(void **state)
{
	struct experts_options opt = room_for(6);
	struct model *m = open_model(&opt);
	const struct model_config *c = &m->config;
	int32_t layer = c->n_layers - 1, ids[3] = {0, 1, 2};
	int64_t *chosen = xcalloc(x.n, sizeof *chosen), reads;
	float scores[8] = {5, 5, 5};
	struct err err;

	(void)state;
	assert_true(c->experts_per_token == 3 && c->n_experts == 8 && experts_slots(m->experts) == 10);
	for (int token = 0; token < 40; token++) {
		experts_observe(m->experts, layer, scores, ids);
		for (int32_t i = 0; i < 3; i++) {
			assert_int_equal(experts_take(m->experts, layer, i, &err), 0);
			experts_done(m->experts, layer, i, false);
		}
	}
	for (int32_t e = 0; e < 8; e++)
		chosen[(layer - 1) * 8 + e] = 30;
	experts_expect(m->experts, chosen);
	warm_all(m->experts);
	reads = stats_of(m).reads;
	assert_int_equal(reads, 3 + 7);
	experts_want(m->experts, layer, ids, 3);
	experts_forget(m->experts);
	assert_int_equal(stats_of(m).reads, reads);
	free(chosen);
	model_close(m);
}

enum { RATE = 500000 }; /* bytes a second, of the drive's own time */

/* ---- a question comes ------------------------------------------------------------------------------------------------ */

/* A slow drive: experts of the tiny model come one by one, none before the question wants its first; then what is on its way for
 * nobody is given up, and to the question's end nothing else is read. */
static void a_question_does_not_wait_for_what_nobody_has_asked_for(void **state)
{
	struct slow_io quiet_disk = {.bytes_per_s = RATE}, busy_disk = {.bytes_per_s = RATE};
	struct experts_options opt = room_for(16);
	struct model *cold, *m;
	struct experts_stats before, after;
	double begun;

	(void)state;
	opt.backend = &slow_io_backend;
	opt.backend_state = &quiet_disk;
	cold = open_model(&opt);
	answer_as_ever(cold);
	opt.backend_state = &busy_disk;
	m = open_model(&opt);
	experts_expect(m->experts, x.chosen);
	assert_true(experts_warm(m->experts));
	before = stats_of(m);
	assert_true(before.reads > 3 && !before.warmed); /* they are on their way */
	begun = busy_disk.busy_s;

	answer_as_ever(m);

	after = stats_of(m);
	assert_true(after.warmed <= after.late && after.warmed == after.warmed_used); /* such as were wanted on their way */
	assert_true(after.reads - before.reads <= stats_of(cold).reads);
	if (busy_disk.busy_s - begun > quiet_disk.busy_s + 1e-9)
		fail_msg("the drive is asked for %.3f s of reads by a question, and for %.3f s by one that nobody warmed for",
			 busy_disk.busy_s - begun, quiet_disk.busy_s);
	assert_true(experts_warm(m->experts)); /* and then it goes on */
	warm_all(m->experts);
	assert_true(stats_of(m).warmed > after.warmed);
	model_close(cold);
	model_close(m);
}

/* The nth read fails, is short, or changes a bit on its way: nobody notices who did not ask, and who asks gets the right bytes. */
static void what_goes_wrong_before_anybody_asks_harms_nobody(void **state)
{
	static const enum fake_fault faults[] = {FAKE_ERROR, FAKE_SHORT, FAKE_ZERO, FAKE_LATE};

	(void)state;
	for (size_t f = 0; f < sizeof faults / sizeof faults[0]; f++)
		for (int nth = 1; nth < 12; nth += 3)
			for (int then_on = 0; then_on < 2; then_on++) {
				struct fake_io fake = {.fault = faults[f], .error = EIO, .nth = nth, .then_on = then_on};
				struct experts_options opt = room_for(9);
				struct model *m;

				opt.backend = &fake_io_backend;
				opt.backend_state = &fake;
				m = open_model(&opt);
				experts_expect(m->experts, x.chosen);
				warm_all(m->experts);
				fake.nth = 0;
				answer_as_ever(m);
				model_close(m);
			}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(warmed_experts_give_the_same_bits_in_any_number_of_slots),
		cmocka_unit_test(the_most_chosen_come_first_and_no_more_than_there_are_slots),
		cmocka_unit_test(the_first_question_finds_more_of_what_it_wants),
		cmocka_unit_test(without_counts_nothing_is_read),
		cmocka_unit_test(what_a_question_has_used_stays_if_it_is_worth_more),
		cmocka_unit_test(a_question_does_not_wait_for_what_nobody_has_asked_for),
		cmocka_unit_test(what_goes_wrong_before_anybody_asks_harms_nobody),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
