#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "config/log.h"
#include "tests/support/crash_scenarios.h"
#include "tests/support/temp_dir.h"

static void whatever_a_power_cut_leaves_the_store_is_the_old_one_or_the_new_one(void **state)
{
	/* One in forty of what there is with few random choices. */
	const struct sim_options opt = {.seed = 7, .subsets_most = 2, .n_random = 1, .n_parts = 40};

	(void)state;
	for (int i = 0; i < N_CRASH_SCENARIOS; i++) {
		char *dir = temp_dir_new();
		struct crash_result r;

		crash_run(dir, (enum crash_scenario)i, SIM_SYNCS_ALL, &opt, &r);
		temp_dir_free(dir);
		if (r.n_wrong)
			fail_msg("%lld of %lld states: %s", (long long)r.n_wrong, (long long)r.n_states, r.first);
		assert_true(r.n_states > 5);
	}
}

/* The test is worth nothing if it finds nothing in a store that does not sync its data before the rows that name it. */
static void without_the_sync_before_the_rows_states_are_found_that_are_neither(void **state)
{
	const struct sim_options opt = {.seed = 7, .subsets_most = 2, .n_random = 1, .n_parts = 40};
	char *dir = temp_dir_new();
	struct crash_result r;

	(void)state;
	crash_run(dir, CRASH_SWITCH, SIM_NO_SEGMENT_SYNCS, &opt, &r);
	temp_dir_free(dir);
	assert_true(r.n_wrong > 0);
	assert_non_null(strstr(r.first, "is wrong")); /* a checksum */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whatever_a_power_cut_leaves_the_store_is_the_old_one_or_the_new_one),
		cmocka_unit_test(without_the_sync_before_the_rows_states_are_found_that_are_neither),
	};

	log_set_level(LOG_LEVEL_WARN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
