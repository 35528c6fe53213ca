/* Guesses at routers that have yet to speak: each kind in its place, and of each layer the nearest kind counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/expert_guesses.h"

static void put(struct expert_guesses *g, int32_t layer, enum ahead_kind kind, int32_t n)
{
	struct guess_list *l = expert_guesses_at(g, layer, kind);

	l->layer = layer;
	l->kind = kind;
	l->n = n;
}

static void the_nearest_kind_of_guess_counts(void **state)
{
	struct expert_guesses g;

	(void)state;
	expert_guesses_init(&g, 2);
	assert_null(expert_guesses_of(&g, 7));
	put(&g, 7, AHEAD_THIRD, 2);
	assert_int_equal(expert_guesses_of(&g, 7)->kind, AHEAD_THIRD);
	put(&g, 7, AHEAD_NEXT, 2);
	assert_int_equal(expert_guesses_of(&g, 7)->kind, AHEAD_NEXT);
	put(&g, 7, AHEAD_WHOLE, 1);
	assert_int_equal(expert_guesses_of(&g, 7)->kind, AHEAD_WHOLE);
	put(&g, 7, AHEAD_WHOLE, 0);
	assert_int_equal(expert_guesses_of(&g, 7)->kind, AHEAD_NEXT);
	assert_null(expert_guesses_of(&g, 7 + GUESS_ROUTERS)); /* stands in the same place */
	expert_guesses_free(&g);
}

static void layers_come_in_their_order(void **state)
{
	struct guess_list *lists[GUESS_ROUTERS];
	struct expert_guesses g;

	(void)state;
	expert_guesses_init(&g, 2);
	assert_int_equal(expert_guesses_all(&g, lists), 0);
	put(&g, 5, AHEAD_THIRD, 2);
	put(&g, 4, AHEAD_SECOND, 2);
	put(&g, 3, AHEAD_NEXT, 2);
	put(&g, 4, AHEAD_THIRD, 2);
	assert_int_equal(expert_guesses_all(&g, lists), 3);
	for (int i = 0; i < 3; i++)
		assert_int_equal(lists[i]->layer, 3 + i);
	assert_int_equal(lists[1]->kind, AHEAD_SECOND);
	expert_guesses_free(&g);
	expert_guesses_free(&g); /* one that is all zeros */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_nearest_kind_of_guess_counts),
		cmocka_unit_test(layers_come_in_their_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
