#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "config/log.h"
#include "tests/support/crash_scenarios.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_dir.h"

/* All that there are with one seed, a tenth of the soak's; under sanitizers one in PARTS of them. */
enum { PARTS = SANITIZED ? 60 : 1, LEAST = SANITIZED ? 100 : 10000 };
static const struct sim_options all = {.seed = 7, .subsets_most = 5, .n_random = 10, .n_parts = PARTS};

static void whatever_a_power_cut_leaves_the_store_is_the_old_one_or_the_new_one(void **state)
{
	int64_t n_states = 0;

	(void)state;
	for (int i = 0; i < N_CRASH_SCENARIOS; i++) {
		char *dir = temp_dir_new_in_memory();
		struct crash_result r;

		crash_run(dir, (enum crash_scenario)i, SIM_SYNCS_ALL, &all, &r);
		temp_dir_free(dir);
		if (r.n_wrong)
			fail_msg("%lld of %lld states: %s", (long long)r.n_wrong, (long long)r.n_states, r.first);
		n_states += r.n_states;
	}
	assert_true(n_states > LEAST);
}

/* What is found first when syncs are said to be made and are not. */
static struct crash_result found_without(enum sim_swallow swallow)
{
	const struct sim_options few = {.seed = 7, .subsets_most = 2, .n_random = 1, .n_parts = 40};
	char *dir = temp_dir_new_in_memory();
	struct crash_result r;

	crash_run(dir, CRASH_SWITCH, swallow, &few, &r);
	temp_dir_free(dir);
	assert_true(r.n_wrong > 0);
	return r;
}

/* The test is worth nothing if it finds nothing in a store that does not sync its data before the rows that name it. */
static void without_the_sync_before_the_rows_states_are_found_that_are_neither(void **state)
{
	struct crash_result r = found_without(SIM_NO_SEGMENT_SYNCS);

	(void)state;
	assert_non_null(strstr(r.first, "is wrong")); /* a checksum */
}

/* Nor if it finds nothing where the rows themselves are not synced. */
static void without_the_syncs_of_the_index_states_are_found_that_are_neither(void **state)
{
	struct crash_result r = found_without(SIM_NO_INDEX_SYNCS);

	(void)state;
	assert_non_null(strstr(r.first, "neither the old nor the new, corpus: a")); /* as it was, and it was said to be new */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whatever_a_power_cut_leaves_the_store_is_the_old_one_or_the_new_one),
		cmocka_unit_test(without_the_sync_before_the_rows_states_are_found_that_are_neither),
		cmocka_unit_test(without_the_syncs_of_the_index_states_are_found_that_are_neither),
	};

	log_set_level(LOG_LEVEL_WARN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
