/* What an idle link is given to carry, and what is counted of what came of it (offload/spare.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "offload/spare.h"

enum { LAYERS = 3, EXPERTS = 8, CHOSEN = 2 };

/* A router scores experts the higher the nearer they are to `first`, and chooses the first two, or others if it is said so. */
static void speak(struct policy *p, struct spare *s, int32_t layer, int32_t first, int32_t instead)
{
	struct trace_entry step[EXPERTS];
	int32_t chosen[CHOSEN];

	for (int32_t i = 0; i < EXPERTS; i++)
		step[i] = (struct trace_entry){(first + i) % EXPERTS, (float)-i};
	for (int32_t i = 0; i < CHOSEN; i++)
		chosen[i] = instead < 0 ? step[i].expert : instead + i;
	policy_observe(p, layer, step, EXPERTS);
	spare_spoken(s, layer, chosen, CHOSEN);
}

static void it_is_what_is_worth_most_of_those_that_are_not_there(void **state)
{
	struct policy *p = policy_new(LAYERS, EXPERTS, CHOSEN);
	struct spare *s = spare_new(p, LAYERS, EXPERTS, NULL, NULL);
	int32_t layer, expert;
	float worth;

	(void)state;
	assert_false(spare_next(s, &layer, &expert, &worth)); /* no router has spoken */
	for (int i = 0; i < 20; i++)
		speak(p, s, 1, 4, -1);
	assert_true(spare_next(s, &layer, &expert, &worth));
	assert_true(layer == 1 && expert == 4 && worth == policy_worth_now(p, 1, 4));
	for (int32_t e = 4; e < 8; e++) {
		assert_true(spare_next(s, &layer, &expert, &worth));
		assert_int_equal(expert, e);
		policy_arrived(p, 1, e);
	}
	policy_left(p, 1, 5);
	speak(p, s, 1, 4, -1);
	assert_true(spare_next(s, &layer, &expert, &worth));
	assert_int_equal(expert, 5);
	policy_arrived(p, 1, 5);
	for (int32_t e = 0; e < 4; e++)
		policy_arrived(p, 1, e);
	assert_false(spare_next(s, &layer, &expert, &worth));
	/* As much is worth less in a layer that is asked later. */
	for (int i = 0; i < 20; i++)
		for (int32_t l = 0; l < LAYERS; l += 2)
			speak(p, s, l, 0, -1);
	speak(p, s, 1, 4, -1);
	assert_true(spare_next(s, &layer, &expert, &worth));
	assert_true(layer == 2 && worth > policy_worth_now(p, 0, 0));
	spare_free(s);
	policy_free(p);
	spare_free(NULL);
}

static const int elsewhere;

static bool the_even_ones(const void *ctx, int32_t layer, int32_t expert)
{
	assert_ptr_equal(ctx, &elsewhere);
	return layer == 1 && expert % 2 == 0;
}

/* A tier above may have what the policy does not know of. */
static void what_is_elsewhere_is_there_too(void **state)
{
	struct policy *p = policy_new(LAYERS, EXPERTS, CHOSEN);
	struct spare *s = spare_new(p, LAYERS, EXPERTS, the_even_ones, &elsewhere);
	int32_t layer, expert;
	float worth;

	(void)state;
	for (int i = 0; i < 20; i++)
		speak(p, s, 1, 4, -1);
	assert_true(spare_next(s, &layer, &expert, &worth));
	assert_true(layer == 1 && expert == 5);
	spare_free(s);
	policy_free(p);
}

/* So many times expert 2 comes for expert 5, and then the layer's router chooses. */
static void exchange(struct policy *p, struct spare *s, int times, int32_t chosen)
{
	for (int i = 0; i < times; i++) {
		spare_began(s, 0, 2, 0, 5);
		policy_left(p, 0, 5);
		policy_arrived(p, 0, 2);
		speak(p, s, 0, 0, chosen);
		policy_left(p, 0, 2);
		policy_arrived(p, 0, 5);
	}
	for (int i = 0; i < SPARE_TOKENS; i++) /* all is known now */
		speak(p, s, 0, 0, 0);
}

static void what_it_saves_is_how_often_it_is_chosen_less_how_often_what_went_is(void **state)
{
	struct policy *p = policy_new(LAYERS, EXPERTS, CHOSEN);
	struct spare *s = spare_new(p, LAYERS, EXPERTS, NULL, NULL);

	(void)state;
	policy_arrived(p, 0, 5);
	assert_true(spare_saves(s) > 0 && spare_saves(s) < .2); /* nothing is known */
	for (int i = 0; i < 8; i++)
		exchange(p, s, 50, 2);
	assert_true(spare_saves(s) > .95);
	for (int i = 0; i < 8; i++)
		exchange(p, s, 50, 0); /* neither */
	assert_true(spare_saves(s) == 0);
	for (int i = 0; i < 8; i++) {
		exchange(p, s, 50, 2);
		exchange(p, s, 50, 5);
	}
	assert_true(spare_saves(s) == 0); /* as often the one as the other */
	spare_free(s);
	policy_free(p);
}

/* Of one that is on its way it is not known that it was in vain; of one that came and went unasked it is, though it be chosen then. */
static void what_goes_before_it_is_chosen_came_in_vain(void **state)
{
	struct policy *p = policy_new(LAYERS, EXPERTS, CHOSEN);
	struct spare *s = spare_new(p, LAYERS, EXPERTS, NULL, NULL);
	double before = spare_saves(s);

	(void)state;
	spare_began(s, 0, 2, -1, 0);
	for (int i = 0; i < SPARE_TOKENS - 1; i++)
		speak(p, s, 0, 0, 0);
	assert_true(spare_saves(s) == before);
	speak(p, s, 0, 0, 2);
	assert_true(spare_saves(s) > before);
	before = spare_saves(s);
	spare_began(s, 0, 2, -1, 0);
	policy_arrived(p, 0, 2);
	speak(p, s, 0, 0, 0);
	assert_true(spare_saves(s) == before);
	policy_left(p, 0, 2);
	speak(p, s, 1, 0, 2); /* of another layer */
	assert_true(spare_saves(s) == before);
	speak(p, s, 0, 0, 0);
	assert_true(spare_saves(s) < before);
	before = spare_saves(s);
	speak(p, s, 0, 0, 2);
	assert_true(spare_saves(s) == before);
	/* And what took too long came in vain. */
	spare_began(s, 0, 2, -1, 0);
	for (int i = 0; i < SPARE_TOKENS; i++)
		speak(p, s, 0, 0, 0);
	assert_true(spare_saves(s) < before);
	spare_free(s);
	policy_free(p);
}

/* More at a time than are watched: the rest is not counted, and nothing is written behind the end. */
static void what_is_not_watched_is_not_counted(void **state)
{
	struct policy *p = policy_new(LAYERS, EXPERTS, CHOSEN);
	struct spare *s = spare_new(p, LAYERS, EXPERTS, NULL, NULL);

	(void)state;
	for (int i = 0; i < 3000; i++)
		spare_began(s, 2, 3, 2, 6);
	for (int i = 0; i < SPARE_TOKENS; i++)
		speak(p, s, 2, 0, 3);
	assert_true(spare_saves(s) > .9);
	spare_free(s);
	policy_free(p);
}

static void what_saves_nothing_or_fails_is_tried_now_and_then(void **state)
{
	struct policy *p = policy_new(LAYERS, EXPERTS, CHOSEN);
	struct spare *s = spare_new(p, LAYERS, EXPERTS, NULL, NULL);
	int n_tries = 0;

	(void)state;
	policy_arrived(p, 0, 5);
	for (int i = 0; i < 8; i++)
		exchange(p, s, 50, 5);
	assert_true(spare_saves(s) == 0);
	spare_began(s, 0, 2, -1, 0);
	for (int i = 0; i < 1000; i++) {
		speak(p, s, 1, 0, -1);
		if (!(spare_may_save(s) > 0))
			continue;
		n_tries++;
		spare_began(s, 0, 2, -1, 0);
	}
	assert_true(n_tries >= 5 && n_tries <= 50);
	/* And what failed is not tried again at once, though it saved much. */
	for (int i = 0; i < 8; i++)
		exchange(p, s, 50, 2);
	spare_began(s, 0, 2, -1, 0);
	assert_true(spare_may_save(s) > .9);
	spare_failed(s);
	for (n_tries = 0; spare_may_save(s) == 0 && n_tries < 1000; n_tries++)
		speak(p, s, 1, 0, -1);
	assert_true(n_tries >= 20 && n_tries <= 200);
	spare_began(s, 0, 2, -1, 0);
	assert_true(spare_may_save(s) > .9);
	spare_free(s);
	policy_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_what_is_worth_most_of_those_that_are_not_there),
		cmocka_unit_test(what_is_elsewhere_is_there_too),
		cmocka_unit_test(what_it_saves_is_how_often_it_is_chosen_less_how_often_what_went_is),
		cmocka_unit_test(what_goes_before_it_is_chosen_came_in_vain),
		cmocka_unit_test(what_is_not_watched_is_not_counted),
		cmocka_unit_test(what_saves_nothing_or_fails_is_tried_now_and_then),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
