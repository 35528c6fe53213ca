/* Whether asking routers ahead pays: what is tried, when, and what is made of it (offload/trial.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "offload/trial.h"

/* Passes that lose `asked` with asking, of which `asking` is what that takes, and `not` without, each up to `noise` of it more or less.
 * Returns how many asked. */
static int pass(struct trial *t, int n, double asked, double asking, double not, double noise)
{
	static uint32_t seed = 1;
	int n_asked = 0;

	for (int i = 0; i < n; i++) {
		double by = 1 + noise * ((double)((seed = seed * 1664525 + 1013904223) >> 8) / (1 << 23) - 1);

		n_asked += t->asks;
		trial_passed(t, by * (t->asks ? asked : not), t->asks ? asking : 0);
	}
	return n_asked;
}

/* All is there, or comes in time by itself. */
static void where_nobody_waits_nobody_is_asked(void **state)
{
	struct trial t;

	(void)state;
	trial_init(&t);
	assert_true(t.asks && t.better);
	pass(&t, 30, .002, .002, 0, 0);
	assert_false(t.better);
	assert_true(pass(&t, 10000, .002, .002, 0, 0) < 80); /* and then ever more rarely */
}

/* Tries cost what asking gains: where it is clear that it pays there are next to none. */
static void where_asking_saves_waiting_it_goes_on(void **state)
{
	struct trial t;

	(void)state;
	trial_init(&t);
	assert_true(pass(&t, 300, .1, .002, .3, .5) > 290);
	assert_true(pass(&t, 20000, .1, .002, .3, .5) > 19900 && t.better);
	/* It gains little, and that is less clear. */
	trial_init(&t);
	assert_true(pass(&t, 20000, .01, .008, .012, 0) > 19000 && t.better);
}

/* What a few tokens lose says little where each loses something else; and one unlucky try does not end it. */
static void chance_does_not_end_it(void **state)
{
	int n_asked = 0;

	(void)state;
	for (int i = 0; i < 50; i++) {
		struct trial t;

		trial_init(&t);
		n_asked += pass(&t, 2000, .01, .006, .0105, .8);
	}
	assert_true(n_asked > 50 * 2000 * .8);
}

/* A cache that fills: every token waits less than the one before, so that those of a try are better than those before it. */
static void what_becomes_better_by_itself_is_no_proof(void **state)
{
	struct trial t;
	double lost = 1;

	(void)state;
	trial_init(&t);
	for (int i = 0; i < 400; i++, lost *= .985) {
		trial_passed(&t, lost * (t.asks ? 1 : 1.05) + (t.asks ? .3 * lost : 0), t.asks ? .7 * lost : 0);
		if (i == 60)
			assert_false(t.better); /* asking takes .3 and saves .05 */
	}
	trial_init(&t);
	lost = 1;
	for (int i = 0; i < 400; i++, lost *= .985) {
		trial_passed(&t, lost * (t.asks ? 1 : 1.05), t.asks ? .6 * lost : 0);
		assert_true(t.better);
	}
}

/* Nobody had to wait, and then everybody has to: it is soon found out. */
static void it_comes_back_when_it_pays_again(void **state)
{
	struct trial t;

	(void)state;
	trial_init(&t);
	pass(&t, 5000, .002, .002, 0, 0);
	assert_false(t.better);
	pass(&t, 40, .1, .002, .3, .2);
	assert_true(t.better);
	assert_true(pass(&t, 1000, .1, .002, .3, .2) > 980);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(where_nobody_waits_nobody_is_asked),
		cmocka_unit_test(where_asking_saves_waiting_it_goes_on),
		cmocka_unit_test(chance_does_not_end_it),
		cmocka_unit_test(what_becomes_better_by_itself_is_no_proof),
		cmocka_unit_test(it_comes_back_when_it_pays_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
