/* The daemon, killed at work and started again; tests/soak/kills.c kills it ten times as often. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "tests/support/daemon_kills.h"
#include "tests/support/sanitized.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

/* One boundary in STEP, and MOMENTS random moments: a tenth of the soak's, and less where sanitizers make it slow. */
enum { STEP = SANITIZED ? 300 : 10, MOMENTS = SANITIZED ? 3 : 100 };
enum { LINES = 20 };

struct fixture {
	char *dir;
	struct kills *k;
};

static int set_up(void **state)
{
	struct fixture *x = xcalloc(1, sizeof *x);
	struct kills_options opt = {.lines = LINES};
	struct err err;

	*state = x;
	x->dir = temp_dir_new_in_memory();
	opt.dir = x->dir;
	if (!kills_open(&x->k, &opt, &err))
		return 0;
	fprintf(stderr, "%s\n", err.text);
	return -1;
}

static int tear_down(void **state)
{
	struct fixture *x = *state;

	kills_close(x->k);
	temp_dir_free(x->dir);
	free(x);
	return 0;
}

/* What the daemons said, if something was wrong. */
static void must(struct fixture *x, int failed, const struct err *err)
{
	char line[1000];
	FILE *f;

	if (!failed)
		return;
	f = fopen(kills_log(x->k), "r");
	while (f && fgets(line, sizeof line, f))
		fputs(line, stderr);
	if (f)
		fclose(f);
	fail_msg("%s", err->text);
}

static void killed_before_or_within_a_write_the_daemon_goes_on_as_if_nothing_had_been(void **state)
{
	struct fixture *x = *state;
	struct err err;

	for (int i = 0; i < N_KILL_ACTIVITIES; i++) {
		bool killed = true;
		int n = 0;

		for (int nth = 1 + i; killed; nth += STEP, n++)
			must(x, kills_at_call(x->k, (enum kill_activity)i, nth, n % 2, &killed, &err), &err);
		assert_true(n * STEP > 100); /* nothing of this is done in fewer calls */
	}
}

static void killed_at_any_moment_the_daemon_goes_on_as_if_nothing_had_been(void **state)
{
	struct fixture *x = *state;
	int n_killed = 0;
	struct err err;

	srandom(20261126);
	for (int i = 0; n_killed < MOMENTS; i++) {
		double share = (double)random() / ((double)RAND_MAX + 1);
		bool killed; /* or it has just ended by then */

		assert_true(i < 10 * MOMENTS);
		must(x, kills_at_moment(x->k, (enum kill_activity)(i % N_KILL_ACTIVITIES), share, &killed, &err), &err);
		n_killed += killed;
	}
}

static void forget_jobs(const char *store)
{
	char *path = temp_path(store, "jobs.sqlite");
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "DELETE FROM job", NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	free(path);
}

static void shorten_a_document(const char *store)
{
	change_index(store, "UPDATE document SET n_tokens = n_tokens - 1 WHERE snapshot = 2");
}

static void leave_a_file(const char *store)
{
	free(temp_text(store, "left", ""));
}

static void other_tokens(const char *store)
{
	change_index(store, "UPDATE span SET key = randomblob(32) WHERE rowid = 5");
}

/* A comparison that cannot fail would be worth nothing. */
static void what_is_lost_or_left_behind_by_a_kill_is_seen(void **state)
{
	static const struct {
		void (*spoil)(const char *store);
		const char *says;
	} cases[] = {
		{forget_jobs, "what was accepted: "},
		{shorten_a_document, "after a restart: "},
		{other_tokens, "after a restart: "},
		{leave_a_file, "the store's files are"},
	};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct fixture *x = *state;
		struct err err;
		bool killed;

		kills_spoil(x->k, cases[i].spoil);
		/* Its job is accepted by then, and not yet done. */
		assert_int_equal(kills_at_call(x->k, KILL_REINDEX, 150, false, &killed, &err), -1);
		assert_true(killed);
		if (!strstr(err.text, cases[i].says))
			fail_msg("\"%s\" does not say \"%s\"", err.text, cases[i].says);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(killed_before_or_within_a_write_the_daemon_goes_on_as_if_nothing_had_been),
		cmocka_unit_test(killed_at_any_moment_the_daemon_goes_on_as_if_nothing_had_been),
		cmocka_unit_test(what_is_lost_or_left_behind_by_a_kill_is_seen),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
