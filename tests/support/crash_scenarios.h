/*
 * What a store does, cut short by a power failure: for tests/test_crash.c and the soak. The real code works on a
 * simulated disk, then opens each state that the disk may have been left in, and does its work again.
 */
#ifndef QUIRE_TESTS_SUPPORT_CRASH_SCENARIOS_H
#define QUIRE_TESTS_SUPPORT_CRASH_SCENARIOS_H

#include <stdint.h>

#include "tests/support/sim_disk.h"

enum crash_scenario {
	CRASH_FIRST_APPEND,
	CRASH_SHARED_PREFIX,  /* a second corpus that begins as the first */
	CRASH_SWITCH,         /* a corpus's next snapshot */
	CRASH_DROP,
	CRASH_EVICTION,       /* of what was used longest ago, for a corpus that has no room */
	CRASH_REPAIR,         /* of a flipped bit, and what it took is computed again */
	N_CRASH_SCENARIOS
};

extern const char *const crash_scenario_names[N_CRASH_SCENARIOS];

struct crash_result {
	int64_t n_states;     /* different ones */
	int64_t n_wrong;
	char first[600];      /* what was wrong with the first of these */
};

/*
 * Every state: the store opens, `check --read-data` is clean, every corpus is the old one or the new one (the new one,
 * when the work had come to its end), whole, with every byte as it was written, what rows name is what is used, and
 * the same work comes to its end and leaves what it leaves without a failure. done_at of opt is set here. dir is empty.
 */
void crash_run(const char *dir, enum crash_scenario which, enum sim_swallow swallow, const struct sim_options *opt,
	       struct crash_result *out);

#endif
