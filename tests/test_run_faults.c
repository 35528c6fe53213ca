#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/check.h"
#include "config/log.h"
#include "tests/support/as_user.h"
#include "tests/support/disk_calls.h"
#include "tests/support/run_text.h"
#include "tests/support/sanitized.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

/* Of calls, bytes and disks, one in so many. */
enum { STEP = SANITIZED ? 3 : 1 };

static int set_up(void **state)
{
	log_set_level(LOG_LEVEL_ERROR);
	disk_calls_reset();
	*state = temp_dir_new_in_memory(); /* thousands of stores: what a disk does is in test_segment.c */
	return 0;
}

static int tear_down(void **state)
{
	log_set_level(LOG_LEVEL_INFO);
	disk_calls_reset();
	temp_dir_free(*state);
	return 0;
}

/* Corpus "a" is replaced by an ingest that is saved after each layer. Wherever it ends, the corpus is whole, the old one
 * or the new one; the same ingest comes to its end, and leaves nothing behind. */
struct replacement {
	struct text old, new;
	int64_t used_bytes; /* of a store that holds only the new one */
};

static struct replacement replacement_of(const char *dir)
{
	struct replacement r = {text_of("a", 200, 64, 1), text_of("a", 500, 64, 2)};
	char *clean = temp_path(dir, "clean");
	struct cache *c = store_open(clean);
	int32_t from;
	struct err err;

	must_store(c, &r.old);
	assert_int_equal(run_text(c, &r.new, N_PARTS, &from, &err), 0);
	r.used_bytes = stats_of(c).used_bytes;
	cache_close(c);
	free(clean);
	return r;
}

/* The layer with which the ingest was taken up, or 0. */
static int32_t must_end_well(const char *dir, const struct replacement *r)
{
	struct cache *c = store_open(dir);
	int32_t from;
	struct err err;

	must_be_whole(c);
	if (!is_stored(c, &r->old))
		assert_true(is_stored(c, &r->new));
	if (run_text(c, &r->new, N_PARTS, &from, &err))
		fail_msg("%s", err.text);
	assert_true(is_stored(c, &r->new));
	must_be_whole(c);
	assert_int_equal(stats_of(c).used_bytes, r->used_bytes);
	assert_int_equal(stats_of(c).scratch_bytes, 0);
	cache_close(c);
	return from;
}

static char *store_of(const char *dir, const struct replacement *r, const char *name)
{
	char *path = temp_path(dir, name);
	struct cache *c = store_open(path);

	must_store(c, &r->old);
	cache_close(c);
	return path;
}

static void killed_before_any_write_a_saved_ingest_goes_on_and_leaves_nothing(void **state)
{
	const struct replacement r = replacement_of(*state);
	int status = -1, n_kills = 0, n_from[N_PARTS] = {0};

	for (int nth = 1; status != 0; nth += STEP) {
		for (int torn = 0; torn < 2 && status != 0; torn++) {
			char *dir = store_of(*state, &r, "store");
			pid_t child = fork();

			if (!child) {
				struct cache *c;
				int32_t from;
				struct err err;

				disk_calls_reset();
				disk_calls_kill(nth, torn);
				if (cache_open(&c, dir, &err) || run_text(c, &r.new, N_PARTS, &from, &err))
					_exit(1);
				cache_close(c);
				_exit(0);
			}
			assert_int_equal(waitpid(child, &status, 0), child);
			assert_true(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
			n_kills += status != 0;
			n_from[must_end_well(dir, &r)]++;
			temp_dir_free(dir);
		}
	}
	assert_true(n_kills > 60 / STEP);
	for (int i = 0; i < N_PARTS; i++) /* from each layer there is a way on */
		assert_true(n_from[i] >= 10 / STEP);
}

/* It is killed again and again, a little later each time, and loses no more than what came after its last checkpoint. */
static void killed_again_and_again_an_ingest_comes_to_its_end(void **state)
{
	const struct replacement r = replacement_of(*state);

	for (int step = 30; step < 60; step += 7) {
		char *dir = store_of(*state, &r, "store");
		int status = -1, n = 0;

		for (; status != 0; n++) {
			pid_t child = fork();

			assert_true(n < 60);
			if (!child) {
				struct cache *c;
				int32_t from;
				struct err err;

				disk_calls_reset();
				disk_calls_kill(step + n, n % 2);
				if (cache_open(&c, dir, &err) || run_text(c, &r.new, N_PARTS, &from, &err))
					_exit(1);
				cache_close(c);
				_exit(0);
			}
			assert_int_equal(waitpid(child, &status, 0), child);
			assert_true(status == 0 || WIFSIGNALED(status));
		}
		assert_true(n > 1);
		must_end_well(dir, &r);
		temp_dir_free(dir);
	}
}

/* Every call fails once, or from some point on. A checkpoint that fails is done without. */
static void any_failed_call_is_an_error_or_a_checkpoint_less(void **state)
{
	static const int numbers[] = {EIO, ENOSPC};
	const struct replacement r = replacement_of(*state);
	int n_errors = 0, n_without = 0;

	for (int variant = 0; variant < 4; variant++) {
		for (int nth = 1, failed = 1; failed; nth += STEP) {
			char *dir = store_of(*state, &r, "store");
			struct cache *c = store_open(dir);
			int32_t from;
			struct err err;

			disk_calls_reset();
			disk_calls_fail(nth, numbers[variant / 2], variant % 2);
			failed = run_text(c, &r.new, N_PARTS, &from, &err) != 0;
			if (failed) {
				n_errors++;
				assert_int_equal(err.code, ERR_IO);
				if (!is_stored(c, &r.old))
					assert_true(is_stored(c, &r.new));
			} else if (disk_calls() >= nth) {
				n_without++;
				failed = 1;
			}
			disk_calls_reset();
			cache_close(c);
			must_end_well(dir, &r);
			temp_dir_free(dir);
		}
	}
	assert_true(n_errors > 100 / STEP);
	assert_true(n_without > 20 / STEP);
}

/* A store whose corpus was being replaced, with two layers saved. */
static char *interrupted(const char *dir, const struct replacement *r)
{
	char *path = store_of(dir, r, "store");
	struct cache *c = store_open(path);
	int32_t from;
	struct err err;

	assert_int_equal(run_text(c, &r->new, 2, &from, &err), 0);
	cache_close(c);
	return path;
}

static void repair(struct cache *c, int64_t want_dropped)
{
	const struct cache_check_options opt = {.read_share = 1};
	struct cache_repair_report report;
	struct cache_check *k;
	struct err err;
	int rc = cache_check_begin(&k, c, &opt, &err);

	while (!rc && (rc = cache_check_step(k, &err)) > 0)
		rc = 0;
	if (rc)
		fail_msg("%s", err.text);
	assert_true(cache_check_report(k)->n_damaged > 0);
	if (cache_repair(c, k, &report, &err))
		fail_msg("%s", err.text);
	assert_int_equal(report.dropped_jobs, want_dropped);
	assert_int_equal(report.quarantined_spans + report.lost_spans, 0);
	cache_repair_clear(&report);
	cache_check_free(k);
}

/* What was damaged is found, and the ingest begins anew: with a repair first, or without one. */
static void must_begin_anew(const char *dir, const struct replacement *r, bool mended, const char *what)
{
	struct cache *c = store_open(dir);
	int32_t from;
	struct err err;

	if (mended) {
		repair(c, 1);
		must_be_whole(c);
		assert_int_equal(stats_of(c).scratch_bytes, 0);
	}
	if (run_text(c, &r->new, N_PARTS, &from, &err))
		fail_msg("%s: %s", what, err.text);
	if (from)
		fail_msg("%s: taken up at layer %d", what, from);
	assert_true(is_stored(c, &r->new));
	if (mended) {
		must_be_whole(c);
		assert_int_equal(stats_of(c).used_bytes, r->used_bytes);
		assert_int_equal(stats_of(c).scratch_bytes, 0);
	}
	cache_close(c);
}

/* How many bytes a column of the job has. */
static int column_bytes(const char *dir, const char *column, bool *is_integer)
{
	char *path = temp_path(dir, "index.sqlite"), text[128];
	sqlite3_stmt *st;
	sqlite3 *db;
	int n;

	snprintf(text, sizeof text, "SELECT %s FROM job", column);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, text, -1, &st, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(st), SQLITE_ROW);
	*is_integer = sqlite3_column_type(st, 0) == SQLITE_INTEGER;
	n = *is_integer ? 8 : sqlite3_column_bytes(st, 0);
	sqlite3_finalize(st);
	sqlite3_close(db);
	free(path);
	return n;
}

/* Change byte i of a column, as a flipped bit would. */
static void change_column(const char *dir, const char *column, bool is_integer, int i, bool is_text)
{
	char text[512];

	if (is_integer) /* a XOR b = a + b - 2 (a AND b) */
		snprintf(text, sizeof text, "UPDATE job SET %s = (%s | (1 << %d)) - (%s & (1 << %d))", column, column, 8 * i + i % 7,
			 column, 8 * i + i % 7);
	else if (is_text)
		snprintf(text, sizeof text, "UPDATE job SET %s = char(unicode(%s) + 1)", column, column);
	else
		snprintf(text, sizeof text, "UPDATE job SET %s = CAST(substr(%s, 1, %d) || CASE WHEN substr(%s, %d, 1) = x'01'"
			 " THEN x'00' ELSE x'01' END || substr(%s, %d) AS BLOB)", column, column, i, column, i + 1, column, i + 2);
	change_index(dir, text);
}

static void every_changed_byte_of_a_jobs_row_is_found_and_the_ingest_begins_anew(void **state)
{
	static const char *const columns[] = {"id", "corpus", "run", "tip", "n_tokens", "places", "whole", "next_layer", "file",
					      "state_bytes", "state_sum", "sum"};
	const struct replacement r = replacement_of(*state);
	int n_cases = 0;

	for (size_t k = 0; k < sizeof columns / sizeof *columns; k++) {
		bool is_text = !strcmp(columns[k], "corpus"), is_integer;
		int n = 1;

		for (int i = 0; i < n; i += STEP, n_cases++) {
			char *dir = interrupted(*state, &r), what[64];
			bool mended = (i + n) % 2;

			n = column_bytes(dir, columns[k], &is_integer);
			change_column(dir, columns[k], is_integer, i, is_text);
			snprintf(what, sizeof what, "byte %d of %s", i, columns[k]);
			must_begin_anew(dir, &r, mended, what);
			temp_dir_free(dir);
		}
	}
	assert_true(n_cases > 100 / STEP);
}

static void other_rows_of_a_job_are_checked_as_well(void **state)
{
	static const char *const changes[] = {
		"DELETE FROM extent WHERE run = (SELECT run FROM job) AND kind = 1 AND part = 1",
		"UPDATE extent SET bytes = bytes + 4096 WHERE run = (SELECT run FROM job) AND kind = 0 AND part = 0",
		"UPDATE extent SET offset = offset + 4096 * 4096 WHERE run = (SELECT run FROM job) AND kind = 2",
		"UPDATE run SET n_places = 3 WHERE id = (SELECT run FROM job)",
		"UPDATE run SET n_living = 1 WHERE id = (SELECT run FROM job)",
		"DELETE FROM run WHERE id = (SELECT run FROM job)",
	};
	const struct replacement r = replacement_of(*state);

	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		for (int mended = 0; mended < 2; mended++) {
			char *dir = interrupted(*state, &r);

			change_index(dir, changes[i]);
			must_begin_anew(dir, &r, mended, changes[i]);
			temp_dir_free(dir);
		}
	}
}

static void change_state(const char *path, int how)
{
	int fd = open(path, O_RDWR);
	struct stat st;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	switch (how) {
	case 0:
		assert_int_equal(unlink(path), 0);
		break;
	case 1:
		assert_int_equal(ftruncate(fd, 0), 0);
		break;
	case 2:
		assert_int_equal(ftruncate(fd, st.st_size - 1), 0);
		break;
	case 3:
		assert_int_equal(ftruncate(fd, st.st_size + 1), 0);
		break;
	default: /* a byte of the state, or of its sums */
		flip(fd, how == 4 ? st.st_size - 1 : (how - 5) * 97 % st.st_size, how % 8);
	}
	close(fd);
}

static void a_damaged_state_is_found_and_the_ingest_begins_anew(void **state)
{
	const struct replacement r = replacement_of(*state);

	for (int how = 0; how < 40; how += how < 5 ? 1 : STEP) {
		for (int mended = 0; mended < 2; mended++) {
			char *dir = interrupted(*state, &r), *path = temp_path(dir, "scratch-000001-1"), what[32];
			struct cache *c;

			change_state(path, how);
			snprintf(what, sizeof what, "change %d", how);
			must_begin_anew(dir, &r, mended, what);
			c = store_open(dir);
			must_be_whole(c);
			assert_int_equal(stats_of(c).used_bytes, r.used_bytes);
			assert_int_equal(stats_of(c).scratch_bytes, 0);
			cache_close(c);
			free(path);
			temp_dir_free(dir);
		}
	}
}

/* The state of another layer is whole, and is not the one that is asked for. */
static void an_older_state_in_its_place_is_not_taken_for_the_last_one(void **state)
{
	const struct replacement r = replacement_of(*state);
	char *dir = interrupted(*state, &r);
	char *last = temp_path(dir, "scratch-000001-1"), *older = temp_path(dir, "scratch-000001-0");

	assert_int_equal(rename(older, last), 0);
	must_begin_anew(dir, &r, true, "an older state");
	free(last);
	free(older);
	temp_dir_free(dir);
}

/* Space for everything but some pages, which are taken by somebody else. In a child, which asserts by its result. */
struct full_disk {
	char *dir;
	struct replacement r;
};

enum { DISK_BYTES = 16 << 20, N_DISKS = 70 };

static int fill(const char *path, int64_t leave)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	char page[4096] = {1};
	int64_t n = 0;

	while (fd >= 0 && write(fd, page, sizeof page) == (ssize_t)sizeof page)
		n += (int64_t)sizeof page;
	return fd < 0 || ftruncate(fd, n > leave ? n - leave : 0) || close(fd) ? -1 : 0;
}

/* 0: good, 77: this machine lets nobody mount, else the line of what was not. */
static int ingest_on_full_disks(void *arg)
{
	const struct full_disk *f = arg;
	char *ballast = temp_path(f->dir, "ballast");
	int n_errors = 0;

	if (small_disk_mount(f->dir, DISK_BYTES))
		return 77;
	for (int i = 0; i < N_DISKS; i += STEP) {
		char *dir = temp_path(f->dir, "store");
		struct cache *c;
		int32_t from;
		struct err err;
		int rc;

		if (cache_open(&c, dir, &err) || store_text(c, &f->r.old, &err))
			return __LINE__ % 255;
		cache_close(c); /* which empties the log of the index */
		if (fill(ballast, i * 4096))
			return __LINE__ % 255;
		rc = cache_open(&c, dir, &err);
		if (!rc) {
			rc = run_text(c, &f->r.new, N_PARTS, &from, &err);
			cache_close(c);
		}
		n_errors += rc != 0;
		if (rc && (err.code != ERR_IO || !(strstr(err.text, "free space there") || strstr(err.text, "No space left"))))
			return __LINE__ % 255;
		if (unlink(ballast))
			return __LINE__ % 255;
		must_end_well(dir, &f->r);
		temp_dir_free(dir);
	}
	free(ballast);
	return n_errors > 10 / STEP && n_errors < N_DISKS / STEP ? 0 : __LINE__ % 255;
}

static void a_disk_that_is_full_at_any_moment_costs_no_corpus_and_no_space(void **state)
{
	struct full_disk f = {.dir = temp_path(*state, "disk"), .r = replacement_of(*state)};
	int rc;

	assert_int_equal(mkdir(f.dir, 0700), 0);
	give_to_user(*state);
	give_to_user(f.dir);
	rc = as_user(ingest_on_full_disks, &f);
	free(f.dir);
	if (rc == 77) {
		print_message("skipped: this machine lets nobody mount a small disk\n");
		skip();
	}
	assert_int_equal(rc, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(killed_before_any_write_a_saved_ingest_goes_on_and_leaves_nothing, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(killed_again_and_again_an_ingest_comes_to_its_end, set_up, tear_down),
		cmocka_unit_test_setup_teardown(any_failed_call_is_an_error_or_a_checkpoint_less, set_up, tear_down),
		cmocka_unit_test_setup_teardown(every_changed_byte_of_a_jobs_row_is_found_and_the_ingest_begins_anew, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(other_rows_of_a_job_are_checked_as_well, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_damaged_state_is_found_and_the_ingest_begins_anew, set_up, tear_down),
		cmocka_unit_test_setup_teardown(an_older_state_in_its_place_is_not_taken_for_the_last_one, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_disk_that_is_full_at_any_moment_costs_no_corpus_and_no_space, set_up,
						tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
