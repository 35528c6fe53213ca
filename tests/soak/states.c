/*
 * Power cuts on a simulated disk (tests/support/sim_disk.h): every scenario of tests/support/crash_scenarios.h with one seed
 * after another, until there are as many different states as asked for. One JSON line; what was wrong is on stderr.
 *
 *   STATES=n    as many instead of 100,000
 *   SEED=n      the first seed
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "tests/support/crash_scenarios.h"
#include "tests/support/environment.h"
#include "tests/support/temp_dir.h"

enum { PROCESSES = 2 };

/* One scenario of one seed, its states shared by processes that tell what they found through a pipe. */
static int run(enum crash_scenario which, uint64_t seed, int64_t *n_states, int64_t *n_wrong)
{
	int pipes[2], failed = 0;

	if (pipe(pipes))
		return -1;
	for (int i = 0; i < PROCESSES; i++) {
		pid_t child = fork();

		if (child < 0)
			return -1;
		if (!child) {
			const struct sim_options opt = {.seed = seed, .subsets_most = 5, .n_random = 6, .part = i,
							.n_parts = PROCESSES};
			char *dir = temp_dir_new();
			struct crash_result r;
			int64_t counts[2];

			crash_run(dir, which, SIM_SYNCS_ALL, &opt, &r);
			temp_dir_free(dir);
			if (r.n_wrong)
				fprintf(stderr, "states: %s, seed %" PRIu64 ": %s\n", crash_scenario_names[which], seed, r.first);
			counts[0] = r.n_states;
			counts[1] = r.n_wrong;
			_exit(write(pipes[1], counts, sizeof counts) != sizeof counts);
		}
	}
	close(pipes[1]);
	for (int i = 0; i < PROCESSES; i++) {
		int64_t counts[2];
		int status;

		if (read(pipes[0], counts, sizeof counts) == sizeof counts) {
			*n_states += counts[0];
			*n_wrong += counts[1];
		}
		if (wait(&status) < 0 || status)
			failed = -1;
	}
	close(pipes[0]);
	return failed;
}

int main(void)
{
	int64_t wanted = (int64_t)count_from_environment("STATES", 100000), began = clock_now_ms(), n_states = 0, n_wrong = 0;
	uint64_t first = count_from_environment("SEED", 1), seed = first;
	int failed = 0;

	log_set_level(LOG_LEVEL_ERROR);
	for (; n_states < wanted && !failed; seed++)
		for (int i = 0; i < N_CRASH_SCENARIOS && !failed; i++)
			failed = run((enum crash_scenario)i, seed, &n_states, &n_wrong);
	printf("{\"bench\":\"soak.states\",\"value\":%" PRId64 ",\"unit\":\"states\",\"wrong\":%" PRId64
	       ",\"seeds\":%" PRIu64 ",\"seconds\":%.0f}\n", n_states, n_wrong, seed - first, (double)(clock_now_ms() - began) / 1e3);
	return failed || n_wrong ? 1 : 0;
}
