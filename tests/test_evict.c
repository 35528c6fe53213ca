#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cache/evict.h"

static void what_was_used_longest_ago_goes_first_and_from_its_end(void **state)
{
	struct evict_run runs[] = {
		{.run = 1, .bytes = 10, .corpus = 0, .last_used_s = 200, .end = 4},
		{.run = 2, .bytes = 10, .corpus = 1, .last_used_s = 100, .end = 2},
		{.run = 3, .bytes = 10, .corpus = 1, .last_used_s = 100, .end = 6},
		{.run = 4, .bytes = 10, .corpus = 1, .last_used_s = 100, .end = 4},
	};
	size_t n;

	(void)state;
	assert_int_equal(evict_choose(runs, 4, 35, &n), 40);

	assert_int_equal(n, 4);
	assert_int_equal(runs[0].run, 3);
	assert_int_equal(runs[1].run, 4);
	assert_int_equal(runs[2].run, 2);
	assert_int_equal(runs[3].run, 1);
}

static void no_more_goes_than_is_needed(void **state)
{
	struct evict_run runs[] = {
		{.run = 1, .bytes = 10, .last_used_s = 1, .end = 1}, {.run = 2, .bytes = 10, .last_used_s = 1, .end = 2},
		{.run = 3, .bytes = 10, .last_used_s = 1, .end = 3},
	};
	size_t n;

	(void)state;
	assert_int_equal(evict_choose(runs, 3, 20, &n), 20);
	assert_int_equal(n, 2);
	assert_int_equal(evict_choose(runs, 3, 11, &n), 20);
	assert_int_equal(n, 2);
	assert_int_equal(evict_choose(runs, 3, 0, &n), 0);
	assert_int_equal(n, 0);
	assert_int_equal(evict_choose(NULL, 0, 5, &n), 0);
	assert_int_equal(n, 0);
}

static void what_is_pinned_or_shared_stays_even_when_the_rest_is_not_enough(void **state)
{
	struct evict_run runs[] = {
		{.run = 1, .bytes = 10, .corpus = 0, .last_used_s = 1, .end = 1, .pinned = true},
		{.run = 2, .bytes = 10, .corpus = -1, .last_used_s = 0, .end = 2},
		{.run = 3, .bytes = 10, .corpus = 1, .last_used_s = 9, .end = 3},
	};
	size_t n;

	(void)state;
	assert_int_equal(evict_choose(runs, 3, 30, &n), 10);

	assert_int_equal(n, 1);
	assert_int_equal(runs[0].run, 3);
}

/* The same runs in another order give the same choice. */
static void the_choice_does_not_depend_on_the_order_of_the_rows(void **state)
{
	(void)state;
	for (int turn = 0; turn < 6; turn++) {
		struct evict_run runs[6];
		size_t n;

		for (int i = 0; i < 6; i++)
			runs[(i + turn) % 6] = (struct evict_run){.run = i, .bytes = 1, .corpus = i % 3, .last_used_s = 5,
								  .end = i / 3};
		assert_int_equal(evict_choose(runs, 6, 4, &n), 4);
		assert_int_equal(runs[0].run, 3);
		assert_int_equal(runs[1].run, 0);
		assert_int_equal(runs[2].run, 4);
		assert_int_equal(runs[3].run, 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_used_longest_ago_goes_first_and_from_its_end),
		cmocka_unit_test(no_more_goes_than_is_needed),
		cmocka_unit_test(what_is_pinned_or_shared_stays_even_when_the_rest_is_not_enough),
		cmocka_unit_test(the_choice_does_not_depend_on_the_order_of_the_rows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
