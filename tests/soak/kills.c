/*
 * quired, killed with SIGKILL at work and started again (tests/support/daemon_kills.h says what must then hold): at
 * every call by which a small ingest, re-index, eviction and repair change the disk, at every fourth also with its
 * write made by half, and at random moments of larger ones. The former are the daemon as it is linked into this
 * program, reading by threads, so that calls can be counted; the latter are the program itself, on a disk. One JSON
 * line; what was wrong is on stderr.
 *
 *   STEP=n     one call in n instead of each
 *   KILLS=n    as many random moments instead of 1000
 *   SEED=n     of their choice
 *   BUILD=dir  where quired is, instead of build
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/mem.h"
#include "tests/support/daemon_kills.h"
#include "tests/support/environment.h"
#include "tests/support/temp_dir.h"

enum { PROCESSES = 2, SMALL_LINES = 20, LARGE_LINES = 40, TORN_EACH = 4, MOST_WRONG = 10 };

struct counts {
	int64_t n_kills[N_KILL_ACTIVITIES], n_boundaries, n_torn, n_random, n_wrong;
};

static void count(struct counts *c, const struct kills *k, int activity, bool killed, int failed, int64_t *kind,
		  const struct err *err)
{
	char *show;

	if (failed) {
		fprintf(stderr, "kills: %s\n", err->text);
		show = xasprintf("tail -n 40 %s >&2", kills_log(k));
		if (system(show))
			fprintf(stderr, "kills: %s cannot be shown\n", kills_log(k));
		free(show);
		c->n_wrong++;
	}
	c->n_kills[activity] += killed;
	*kind += killed;
}

/* Of one boundary in `step`, those of this part. */
static int at_boundaries(struct counts *c, int part, int step)
{
	char *dir = temp_dir_new_in_memory();
	const struct kills_options opt = {.dir = dir, .lines = SMALL_LINES};
	struct kills *k;
	struct err err;

	if (kills_open(&k, &opt, &err)) {
		fprintf(stderr, "kills: %s\n", err.text);
		return -1;
	}
	for (int i = 0; i < N_KILL_ACTIVITIES; i++) {
		bool killed = true;

		for (int nth = 1 + part * step; killed && c->n_wrong < MOST_WRONG; nth += PROCESSES * step)
			for (int torn = 0; killed && torn < (nth / PROCESSES % TORN_EACH ? 1 : 2); torn++) {
				int failed = kills_at_call(k, (enum kill_activity)i, nth, torn, &killed, &err);

				count(c, k, i, killed, failed, torn ? &c->n_torn : &c->n_boundaries, &err);
			}
	}
	kills_close(k);
	temp_dir_free(dir);
	return 0;
}

static int at_moments(struct counts *c, int part, int64_t n, uint64_t seed)
{
	const char *build = getenv("BUILD");
	char *dir = temp_dir_new(), *program = xasprintf("%s/quired", build ? build : "build");
	const struct kills_options opt = {.dir = dir, .lines = LARGE_LINES, .program = program};
	struct kills *k;
	struct err err;

	if (kills_open(&k, &opt, &err)) {
		fprintf(stderr, "kills: %s\n", err.text);
		return -1;
	}
	srandom((unsigned)seed + (unsigned)part);
	while (c->n_random < n && c->n_wrong < MOST_WRONG) {
		int activity = (int)(c->n_random % N_KILL_ACTIVITIES);
		double share = (double)random() / ((double)RAND_MAX + 1);
		bool killed = false;
		int failed = kills_at_moment(k, (enum kill_activity)activity, share, &killed, &err);

		count(c, k, activity, killed, failed, &c->n_random, &err);
	}
	kills_close(k);
	temp_dir_free(dir);
	free(program);
	return 0;
}

int main(void)
{
	int64_t n = (int64_t)count_from_environment("KILLS", 1000), began_ms = clock_now_ms();
	int step = (int)count_from_environment("STEP", 1);
	uint64_t seed = count_from_environment("SEED", 1);
	int pipes[2], failed = 0;
	struct counts all = {0};

	if (pipe(pipes))
		return 1;
	for (int part = 0; part < PROCESSES; part++) {
		pid_t child = fork();

		if (child < 0)
			return 1;
		if (!child) {
			struct counts c = {0};

			failed = at_boundaries(&c, part, step) || at_moments(&c, part, (n + PROCESSES - 1 - part) / PROCESSES, seed);
			exit(write(pipes[1], &c, sizeof c) != sizeof c || failed);
		}
	}
	close(pipes[1]);
	for (int part = 0; part < PROCESSES; part++) {
		struct counts c;
		int status;

		if (read(pipes[0], &c, sizeof c) == sizeof c) {
			for (int i = 0; i < N_KILL_ACTIVITIES; i++)
				all.n_kills[i] += c.n_kills[i];
			all.n_boundaries += c.n_boundaries;
			all.n_torn += c.n_torn;
			all.n_random += c.n_random;
			all.n_wrong += c.n_wrong;
		}
		if (wait(&status) < 0 || status)
			failed = 1;
	}
	printf("{\"bench\":\"soak.kills\",\"value\":%" PRId64 ",\"unit\":\"kills\",\"wrong\":%" PRId64,
	       all.n_boundaries + all.n_torn + all.n_random, all.n_wrong);
	printf(",\"boundaries\":%" PRId64 ",\"torn\":%" PRId64 ",\"random\":%" PRId64, all.n_boundaries, all.n_torn,
	       all.n_random);
	for (int i = 0; i < N_KILL_ACTIVITIES; i++)
		printf(",\"%s\":%" PRId64, kill_activity_names[i], all.n_kills[i]);
	printf(",\"seed\":%" PRIu64 ",\"seconds\":%.0f}\n", seed, (double)(clock_now_ms() - began_ms) / 1e3);
	return failed || all.n_wrong ? 1 : 0;
}
