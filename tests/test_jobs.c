#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/mem.h"
#include "daemon/jobs.h"
#include "tests/support/temp_dir.h"

enum { MANY = 50 };

static struct jobs *jobs_in(const char *dir)
{
	struct jobs *j = NULL;
	struct err err = {0};

	if (jobs_open(&j, dir, &err))
		fail_msg("%s", err.text);
	return j;
}

static int setup(void **state)
{
	*state = temp_dir_new();
	return 0;
}

static int teardown(void **state)
{
	temp_dir_free(*state);
	return 0;
}

static struct api_ingest request_for(const char *corpus, const char *source)
{
	struct api_ingest r = {.source = (char *)source};

	snprintf(r.corpus, sizeof r.corpus, "%s", corpus);
	return r;
}

static int64_t add(struct jobs *j, const char *corpus)
{
	struct api_ingest r = request_for(corpus, "/src");
	struct err err = {0};
	int64_t id = 0;

	if (jobs_add(j, &r, MANY, &id, &err))
		fail_msg("%s", err.text);
	return id;
}

/* Up to so many jobs run: the ids of those that begin, "1 3"; free() it. */
static char *begin_all(struct jobs *j, size_t max_running)
{
	struct api_job *list = NULL;
	char *ids = xstrdup("");
	struct err err = {0};
	size_t n;

	if (jobs_begin(j, max_running, &list, &n, &err))
		fail_msg("%s", err.text);
	for (size_t i = 0; i < n; i++) {
		char *longer = xasprintf("%s%s%lld", ids, i ? " " : "", (long long)list[i].id);

		free(ids);
		ids = longer;
		api_job_clear(&list[i]);
	}
	free(list);
	return ids;
}

static void assert_begin(struct jobs *j, const char *want)
{
	char *ids = begin_all(j, MANY);

	assert_string_equal(ids, want);
	free(ids);
}

/* The id of the one job that was begun, 0 when none may. */
static int64_t begin(struct jobs *j)
{
	char *ids = begin_all(j, 1);
	int64_t id = atoll(ids);

	free(ids);
	return id;
}

static int64_t add_request(struct jobs *j, const struct api_ingest *r)
{
	struct err err = {0};
	int64_t id = 0;

	if (jobs_add(j, r, MANY, &id, &err))
		fail_msg("%s", err.text);
	return id;
}

static enum job_state state_of(struct jobs *j, int64_t id, int *attempts)
{
	struct api_job job;
	struct err err;
	enum job_state s;

	assert_int_equal(jobs_get(j, id, &job, &err), 0);
	s = job.state;
	if (attempts)
		*attempts = job.attempts;
	api_job_clear(&job);
	return s;
}

static void jobs_run_in_the_order_they_were_accepted(void **state)
{
	struct jobs *j = jobs_in(*state);
	int64_t a = add(j, "a"), b = add(j, "b");
	struct err err;

	assert_int_equal(begin(j), a);
	assert_int_equal(begin(j), 0);
	assert_int_equal(jobs_end(j, a, NULL, NULL, &err), 0);
	assert_int_equal(begin(j), b);
	assert_int_equal(state_of(j, a, NULL), JOB_DONE);
	assert_int_equal(state_of(j, b, NULL), JOB_RUNNING);
	jobs_close(j);
}

static void jobs_that_wait_together_begin_together_and_a_later_one_waits_for_their_end(void **state)
{
	struct jobs *j = jobs_in(*state);
	struct err err;
	int64_t n;

	add(j, "a");
	add(j, "b");
	assert_begin(j, "1 2");
	assert_int_equal(jobs_count(j, JOB_RUNNING, &n, &err), 0);
	assert_int_equal(n, 2);
	add(j, "c");
	add(j, "d");
	assert_begin(j, "");
	assert_int_equal(jobs_end(j, 1, NULL, NULL, &err), 0);
	assert_begin(j, "");
	assert_int_equal(jobs_end(j, 2, NULL, NULL, &err), 0);
	assert_begin(j, "3 4");
	jobs_close(j);
}

static void a_dry_run_begins_whatever_runs_and_keeps_no_ingest_waiting(void **state)
{
	struct api_ingest dry = request_for("dry", "/src"), again = request_for("again", "/src");
	struct jobs *j = jobs_in(*state);

	dry.dry_run = again.dry_run = true;
	add_request(j, &dry);
	assert_begin(j, "1");
	add(j, "a");
	assert_begin(j, "2");
	add(j, "b");
	add_request(j, &again);
	assert_begin(j, "4");
	jobs_close(j);
}

/* The order it asks for is that which the other one is about to make. */
static void a_job_that_follows_a_corpus_begins_after_the_ingest_of_it(void **state)
{
	struct api_ingest r = request_for("b", "/src");
	struct jobs *j = jobs_in(*state);
	struct err err;

	snprintf(r.order_from, sizeof r.order_from, "a@7");
	add(j, "a");
	add_request(j, &r);
	add(j, "c");
	assert_begin(j, "1 3");
	assert_int_equal(jobs_end(j, 1, NULL, NULL, &err), 0);
	assert_int_equal(jobs_end(j, 3, NULL, NULL, &err), 0);
	assert_begin(j, "2");
	jobs_close(j);
}

/* Three run when the process dies, twice; "b" is what kills it. */
static void after_two_crashes_jobs_run_one_by_one_and_only_the_one_that_kills_us_is_failed(void **state)
{
	struct api_ingest dry = request_for("dry", "/src");
	struct jobs *j = jobs_in(*state);
	struct api_job job;
	struct err err;

	dry.dry_run = true;
	add(j, "a");
	add(j, "b");
	add(j, "c");
	for (int crash = 0; crash < 2; crash++) {
		assert_begin(j, "1 2 3");
		jobs_close(j); /* without an end */
		j = jobs_in(*state);
	}
	add(j, "d");
	add_request(j, &dry);
	assert_begin(j, "1");
	assert_begin(j, ""); /* nor the dry run */
	assert_int_equal(jobs_end(j, 1, NULL, NULL, &err), 0);
	assert_begin(j, "2");
	jobs_close(j);
	j = jobs_in(*state);
	assert_int_equal(jobs_get(j, 2, &job, &err), 0);
	assert_int_equal(job.state, JOB_FAILED);
	assert_non_null(strstr(job.error.text, "3 times"));
	api_job_clear(&job);
	assert_begin(j, "3");
	assert_int_equal(jobs_end(j, 3, NULL, NULL, &err), 0);
	assert_begin(j, "4 5");
	jobs_close(j);
}

static void the_same_request_is_the_same_job_and_another_one_is_busy(void **state)
{
	struct jobs *j = jobs_in(*state);
	struct api_ingest other = request_for("a", "/elsewhere");
	int64_t a = add(j, "a"), id = 0;
	struct err err = {0};

	assert_int_equal(add(j, "a"), a);
	assert_int_equal(jobs_add(j, &other, MANY, &id, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	assert_non_null(strstr(err.text, "/src"));
	assert_non_null(strstr(err.text, "quire cancel j-1"));
	begin(j);
	assert_int_equal(add(j, "a"), a);
	jobs_end(j, a, NULL, NULL, &err);
	assert_int_not_equal(add(j, "a"), a);
	jobs_close(j);
}

/* A process that is killed leaves no time for anything: what was accepted is there all the same. */
static void what_was_accepted_survives_kill_9(void **state)
{
	struct jobs *j;
	int status;
	pid_t child = fork();

	if (!child) {
		struct api_ingest r = request_for("a", "/src");
		int64_t id;
		struct err err;

		if (jobs_open(&j, *state, &err) || jobs_add(j, &r, MANY, &id, &err))
			_exit(1);
		kill(getpid(), SIGKILL);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	j = jobs_in(*state);
	assert_int_equal(begin(j), 1);
	jobs_close(j);
}

static void a_job_that_was_running_goes_on_and_fails_after_the_third_time(void **state)
{
	struct jobs *j = jobs_in(*state);
	int64_t id = add(j, "a");
	struct api_job job;
	struct err err;

	for (int attempt = 1; attempt <= JOBS_MAX_ATTEMPTS; attempt++) {
		int attempts;

		assert_int_equal(begin(j), id);
		assert_int_equal(state_of(j, id, &attempts), JOB_RUNNING);
		assert_int_equal(attempts, attempt);
		jobs_close(j); /* without an end */
		j = jobs_in(*state);
	}
	assert_int_equal(begin(j), 0);
	assert_int_equal(jobs_get(j, id, &job, &err), 0);
	assert_int_equal(job.state, JOB_FAILED);
	assert_non_null(strstr(job.error.text, "3 times"));
	api_job_clear(&job);
	/* The queue goes on behind it. */
	assert_int_not_equal(add(j, "a"), id);
	jobs_close(j);
}

static void a_stop_in_good_order_does_not_count_as_an_attempt(void **state)
{
	struct jobs *j = jobs_in(*state);
	int64_t id = add(j, "a");
	int attempts;
	struct err err;

	for (int i = 0; i < 2 * JOBS_MAX_ATTEMPTS; i++) {
		assert_int_equal(begin(j), id);
		assert_int_equal(jobs_put_back(j, id, &err), 0);
		jobs_close(j);
		j = jobs_in(*state);
	}
	assert_int_equal(state_of(j, id, &attempts), JOB_QUEUED);
	assert_int_equal(attempts, 0);
	jobs_close(j);
}

static void the_end_of_a_job_keeps_its_reason_and_its_progress(void **state)
{
	const struct ingest_progress p = {INGEST_PREFILL, 1, 2, 3, 4, 5, 6};
	struct jobs *j = jobs_in(*state);
	int64_t a = add(j, "a"), b = add(j, "b");
	struct api_job job;
	struct err err, reason;

	begin(j);
	err_set(&reason, ERR_TOO_LARGE, "corpus a has 9 tokens");
	jobs_end(j, a, &p, &reason, &err);
	err_set(&reason, ERR_CANCELLED, "cancelled");
	jobs_end(j, b, NULL, &reason, &err);
	jobs_close(j);

	j = jobs_in(*state);
	assert_int_equal(jobs_get(j, a, &job, &err), 0);
	assert_int_equal(job.state, JOB_FAILED);
	assert_int_equal(job.error.code, ERR_TOO_LARGE);
	assert_string_equal(job.error.text, "corpus a has 9 tokens");
	assert_int_equal(job.progress.phase, p.phase); /* field by field: the padding between them is anything */
	assert_int_equal(job.progress.n_files, p.n_files);
	assert_int_equal(job.progress.n_skipped, p.n_skipped);
	assert_int_equal(job.progress.read_bytes, p.read_bytes);
	assert_int_equal(job.progress.n_tokens, p.n_tokens);
	assert_int_equal(job.progress.reused_tokens, p.reused_tokens);
	assert_int_equal(job.progress.done_tokens, p.done_tokens);
	api_job_clear(&job);
	assert_int_equal(state_of(j, b, NULL), JOB_CANCELLED);
	assert_int_equal(jobs_get(j, 99, &job, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	jobs_close(j);
}

static void jobs_are_listed_newest_first(void **state)
{
	struct jobs *j = jobs_in(*state);
	struct api_job *list;
	struct err err;
	size_t n;

	add(j, "a");
	add(j, "b");
	add(j, "c");
	assert_int_equal(jobs_list(j, 2, &list, &n, &err), 0);
	assert_int_equal(n, 2);
	assert_string_equal(list[0].request.corpus, "c");
	assert_string_equal(list[1].request.corpus, "b");
	for (size_t i = 0; i < n; i++)
		api_job_clear(&list[i]);
	free(list);
	jobs_close(j);
}

static void old_ended_jobs_go_and_waiting_ones_stay(void **state)
{
	struct jobs *j = jobs_in(*state);
	int64_t waiting = add(j, "waits"), last = 0, n;
	struct err err;

	for (int i = 0; i < JOBS_KEPT + 5; i++) {
		last = add(j, "a");
		assert_int_equal(jobs_end(j, last, NULL, NULL, &err), 0);
	}
	assert_int_equal(jobs_count(j, JOB_DONE, &n, &err), 0);
	assert_int_equal(n, JOBS_KEPT);
	assert_int_equal(state_of(j, waiting, NULL), JOB_QUEUED);
	assert_int_equal(state_of(j, last, NULL), JOB_DONE);
	jobs_close(j);
}

static void a_flood_of_jobs_is_refused(void **state)
{
	struct jobs *j = jobs_in(*state);
	struct api_ingest r = request_for("one-more", "/src");
	int64_t id;
	struct err err;

	for (int i = 0; i < MANY; i++) {
		char name[32];

		snprintf(name, sizeof name, "c%d", i);
		add(j, name);
	}
	assert_int_equal(jobs_add(j, &r, MANY, &id, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	jobs_close(j);
}

static void change(const char *dir, const char *sql)
{
	char *path = temp_path(dir, "jobs.sqlite");
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	free(path);
}

static void a_file_of_a_newer_format_is_refused(void **state)
{
	struct jobs *j = jobs_in(*state);
	struct err err;

	jobs_close(j);
	change(*state, "pragma user_version = 3");
	assert_int_equal(jobs_open(&j, *state, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
	assert_non_null(strstr(err.text, "newer"));
}

static void a_file_of_the_first_format_gets_what_it_lacks_and_keeps_its_jobs(void **state)
{
	struct jobs *j = jobs_in(*state);
	struct api_job job;
	struct err err;

	add(j, "a");
	jobs_close(j);
	change(*state, "alter table job drop column report; pragma user_version = 1");
	j = jobs_in(*state);
	assert_int_equal(jobs_report(j, 1, "{\"tokens\":7}", &err), 0);
	jobs_close(j);
	j = jobs_in(*state);
	assert_int_equal(jobs_get(j, 1, &job, &err), 0);
	assert_string_equal(job.report, "{\"tokens\":7}");
	assert_int_equal(job.state, JOB_QUEUED);
	api_job_clear(&job);
	jobs_close(j);
}

static void the_speed_is_that_of_the_last_ingest_that_computed_anything(void **state)
{
	struct ingest_progress computed = {.n_tokens = 1000, .reused_tokens = 400, .done_tokens = 1000};
	struct ingest_progress nothing_new = {.n_tokens = 1000, .reused_tokens = 1000, .done_tokens = 1000};
	struct jobs *j = jobs_in(*state);
	double speed = -1;
	struct err err;

	assert_int_equal(jobs_speed(j, &speed, &err), 0);
	assert_true(speed == 0);
	assert_int_equal(begin((add(j, "a"), j)), 1);
	assert_int_equal(jobs_end(j, 1, &computed, NULL, &err), 0);
	assert_int_equal(begin((add(j, "b"), j)), 2);
	assert_int_equal(jobs_end(j, 2, &nothing_new, NULL, &err), 0);
	change(*state, "update job set started_s = finished_s - 30 where id = 1");
	assert_int_equal(jobs_speed(j, &speed, &err), 0);
	assert_true(speed == 20);
	/* Another one began and ended with it: their tokens came in the same time. */
	add(j, "c");
	assert_int_equal(jobs_end(j, 3, &computed, NULL, &err), 0);
	change(*state, "update job set started_s = (select started_s from job where id = 1),"
		       " finished_s = (select finished_s from job where id = 1) where id = 3");
	assert_int_equal(jobs_speed(j, &speed, &err), 0);
	assert_true(speed == 40);
	jobs_close(j);
}

static void a_row_that_somebody_changed_is_an_error_and_not_a_job(void **state)
{
	struct jobs *j = jobs_in(*state);
	struct api_job *list;
	struct err err;
	size_t n;

	add(j, "a");
	change(*state, "update job set request = '{\"source\":7}'");
	assert_int_equal(jobs_begin(j, MANY, &list, &n, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_non_null(strstr(err.text, "j-1"));
	jobs_close(j);
}

static void a_file_that_is_not_sqlite_is_an_error_that_names_it(void **state)
{
	char *path = temp_text(*state, "jobs.sqlite", "this is not a database, and long enough to have a header of one");
	struct jobs *j;
	struct err err;

	assert_int_equal(jobs_open(&j, *state, &err), -1);
	assert_non_null(strstr(err.text, path));
	free(path);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(jobs_run_in_the_order_they_were_accepted),
		CASE(jobs_that_wait_together_begin_together_and_a_later_one_waits_for_their_end),
		CASE(a_dry_run_begins_whatever_runs_and_keeps_no_ingest_waiting),
		CASE(a_job_that_follows_a_corpus_begins_after_the_ingest_of_it),
		CASE(after_two_crashes_jobs_run_one_by_one_and_only_the_one_that_kills_us_is_failed),
		CASE(the_same_request_is_the_same_job_and_another_one_is_busy),
		CASE(what_was_accepted_survives_kill_9),
		CASE(a_job_that_was_running_goes_on_and_fails_after_the_third_time),
		CASE(a_stop_in_good_order_does_not_count_as_an_attempt),
		CASE(the_end_of_a_job_keeps_its_reason_and_its_progress),
		CASE(jobs_are_listed_newest_first),
		CASE(old_ended_jobs_go_and_waiting_ones_stay),
		CASE(a_flood_of_jobs_is_refused),
		CASE(a_file_of_a_newer_format_is_refused),
		CASE(a_file_of_the_first_format_gets_what_it_lacks_and_keeps_its_jobs),
		CASE(the_speed_is_that_of_the_last_ingest_that_computed_anything),
		CASE(a_row_that_somebody_changed_is_an_error_and_not_a_job),
		CASE(a_file_that_is_not_sqlite_is_an_error_that_names_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
