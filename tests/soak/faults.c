/*
 * Every read and write of a small ingest, of one that is taken up, and of a question goes wrong once, and from then on,
 * in every way of tests/support/store_faults.h. One JSON line; what was wrong is on stderr.
 *
 *   STEP=n     one call in n instead of each
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "tests/support/environment.h"
#include "tests/support/store_faults.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_ingest.h"

enum { PROCESSES = 2, MOST_WRONG = 20 };

struct counts {
	int64_t n[N_FAULT_OUTCOMES], of_work[N_FAULT_WORKS], n_wrong;
};

/* The calls of one kind of fault, one in `step` from the first on. */
static void try_calls(struct counts *c, struct store_faults *f, enum fault_work work, int kind, bool then_on, int first,
		      int step)
{
	enum fault_outcome outcome = N_FAULT_OUTCOMES;
	struct err err;

	for (int nth = first; outcome != FAULT_NOT_MET && c->n_wrong < MOST_WRONG; nth += step) {
		if (store_faults_try(f, work, kind, nth, then_on, &outcome, &err)) {
			fprintf(stderr, "faults: %s\n", err.text);
			c->n_wrong++;
		}
		if (outcome > FAULT_VOID) {
			c->n[outcome]++;
			c->of_work[work]++;
		}
	}
}

static int try_all(struct counts *c, int part, int step)
{
	char *dir = temp_dir_new_in_memory();
	struct store_faults *f;
	struct err err;

	if (tiny_open(NULL))
		return -1;
	if (store_faults_open(&f, dir, &err)) {
		fprintf(stderr, "faults: %s\n", err.text);
		return -1;
	}
	for (int work = 0; work < N_FAULT_WORKS; work++)
		for (int kind = 0; kind < store_faults_n_kinds(); kind++)
			for (int then_on = 0; then_on < 1 + store_faults_kind_lasts(kind); then_on++)
				try_calls(c, f, (enum fault_work)work, kind, then_on, 1 + part * step, PROCESSES * step);
	store_faults_close(f);
	temp_dir_free(dir);
	return tiny_close(NULL);
}

int main(void)
{
	int64_t began_ms = clock_now_ms(), n = 0;
	int step = (int)count_from_environment("STEP", 1), pipes[2], failed = 0;
	struct counts all = {0};

	/* Damage is what this is about: thousands of lines that tell of it would tell nobody anything. */
	log_set_level(LOG_LEVEL_ERROR);
	if (pipe(pipes))
		return 1;
	for (int part = 0; part < PROCESSES; part++) {
		pid_t child = fork();

		if (child < 0)
			return 1;
		if (!child) {
			struct counts c = {0};

			failed = try_all(&c, part, step);
			exit(write(pipes[1], &c, sizeof c) != sizeof c || failed);
		}
	}
	close(pipes[1]);
	for (int part = 0; part < PROCESSES; part++) {
		struct counts c;
		int status;

		if (read(pipes[0], &c, sizeof c) == sizeof c) {
			for (int i = 0; i < N_FAULT_OUTCOMES; i++)
				all.n[i] += c.n[i];
			for (int i = 0; i < N_FAULT_WORKS; i++)
				all.of_work[i] += c.of_work[i];
			all.n_wrong += c.n_wrong;
		}
		if (wait(&status) < 0 || status)
			failed = 1;
	}
	for (int i = 0; i < N_FAULT_OUTCOMES; i++)
		n += all.n[i];
	printf("{\"bench\":\"soak.faults\",\"value\":%" PRId64 ",\"unit\":\"faults\",\"wrong\":%" PRId64 ",\"kinds\":%d", n,
	       all.n_wrong, store_faults_n_kinds());
	for (int i = FAULT_HARMLESS; i < N_FAULT_OUTCOMES; i++)
		printf(",\"%s\":%" PRId64, fault_outcome_names[i], all.n[i]);
	for (int i = 0; i < N_FAULT_WORKS; i++)
		printf(",\"%s\":%" PRId64, fault_work_names[i], all.of_work[i]);
	printf(",\"seconds\":%.0f}\n", (double)(clock_now_ms() - began_ms) / 1e3);
	return failed || all.n_wrong ? 1 : 0;
}
