#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/check.h"
#include "config/log.h"
#include "config/mem.h"
#include "tests/support/disk_calls.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

static const struct cache_check_options everything = {.read_share = 1};

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

static struct cache_check *check(struct cache *c, const struct cache_check_options *opt)
{
	struct cache_check *k;
	struct err err;
	int rc = cache_check_begin(&k, c, opt, &err);

	while (!rc && (rc = cache_check_step(k, &err)) > 0)
		rc = 0;
	if (rc)
		fail_msg("%s", err.text);
	return k;
}

static int64_t n_found(struct cache *c, const struct cache_check_options *opt)
{
	struct cache_check *k = check(c, opt);
	int64_t n = cache_check_report(k)->n_damaged;

	cache_check_free(k);
	return n;
}

/* Check everything, mend it. The report is to be cleared. */
static void repair(struct cache *c, struct cache_repair_report *report)
{
	struct cache_check *k = check(c, &everything);
	struct err err;

	if (cache_repair(c, k, report, &err))
		fail_msg("%s", err.text);
	cache_check_free(k);
}

static void must_be_whole(struct cache *c)
{
	struct cache_check *k = check(c, &everything);
	const struct cache_check_report *r = cache_check_report(k);

	if (r->n_damaged)
		fail_msg("%s", r->findings[0].text);
	cache_check_free(k);
}

/* Two corpora of five spans that share two. */
static const char *const names[] = {"a", "b"};

static void two_corpora(const char *dir, struct text t[2])
{
	struct cache *c = store_open(dir);

	for (int i = 0; i < 2; i++) {
		t[i] = text_of(names[i], 300, 128, i + 1);
		must_store(c, &t[i]);
	}
	cache_close(c);
}

static void a_whole_store_has_nothing_to_find_and_every_span_is_read(void **state)
{
	const struct cache_check_options half = {.read_share = .5, .seed = 3}, one = {.corpus = "b", .read_share = 1};
	const struct cache_check_options none = {0}, unknown = {.corpus = "c"};
	struct text t[2];
	struct cache_check *k;
	const struct cache_check_report *r;
	struct cache *c;
	int64_t n;
	struct err err;

	two_corpora(*state, t);
	c = store_open(*state);

	r = cache_check_report(k = check(c, &everything));
	assert_int_equal(r->n_damaged, 0);
	assert_int_equal(r->n_spans, 8);
	assert_int_equal(r->read_spans, 8);
	assert_int_equal(r->to_read, 0);
	/* Tokens of 24 + 40 + 2 x 8 bytes: 300 of each, 128 of them the same. */
	assert_int_equal(r->read_bytes, (600 - 128) * 80);
	cache_check_free(k);
	r = cache_check_report(k = check(c, &none));
	assert_int_equal(r->read_spans, 0);
	cache_check_free(k);
	r = cache_check_report(k = check(c, &one));
	assert_int_equal(r->read_spans, 5);
	cache_check_free(k);
	r = cache_check_report(k = check(c, &half));
	n = r->read_spans;
	assert_in_range(n, 1, 7);
	cache_check_free(k);
	r = cache_check_report(k = check(c, &half));
	assert_int_equal(r->read_spans, n);
	cache_check_free(k);
	assert_int_equal(cache_check_begin(&k, c, &unknown, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	cache_close(c);
}

static void a_flipped_byte_names_the_corpora_that_it_touches_and_only_its_span_is_quarantined(void **state)
{
	const struct cache_check_options rows = {0}, other = {.corpus = "b", .read_share = 1};
	char *path = temp_path(*state, "segment-000001");
	int fd = -1;

	/* The first span is shared, the fifth is a's alone: the first run has two spans, the third one. */
	for (int shared = 0; shared < 2; shared++) {
		char name[16], *dir;
		struct cache_repair_report report;
		struct cache_check *k;
		const struct cache_check_report *r;
		struct span_key keys[5];
		struct text t[2];
		struct cache *c;

		snprintf(name, sizeof name, "store%d", shared);
		dir = temp_path(*state, name);
		two_corpora(dir, t);
		free(path);
		path = temp_path(dir, "segment-000001");
		fd = open(path, O_RDWR);
		/* Extents of a run: 3, 2 (or 1) pages of latents, a page of keys for each layer, and one of sums. */
		flip(fd, shared ? 5 : 6 * 4096 + 6 * 4096 + 5, 1);
		c = store_open(dir);
		keys_of(keys, t[0].ids, 300);

		assert_int_equal(n_found(c, &rows), 0);
		assert_int_equal(n_found(c, &other), shared);
		k = check(c, &everything);
		r = cache_check_report(k);
		assert_int_equal(r->n_damaged, 1);
		assert_int_equal(r->n_findings, 1);
		assert_non_null(strstr(r->findings[0].text, "checksum of "));
		assert_int_equal(r->findings[0].n_corpora, shared ? 2 : 1);
		assert_string_equal(r->findings[0].corpora[0], "a");
		cache_check_free(k);
		repair(c, &report);

		assert_int_equal(report.quarantined_spans, 1);
		assert_int_equal(report.lost_spans, 0);
		assert_int_equal(report.n_corpora, 0);
		cache_repair_clear(&report);
		for (int i = 0; i < 5; i++)
			assert_int_equal(cache_has_span(c, &keys[i]), i != (shared ? 0 : 4));
		must_be_whole(c);
		must_store(c, &t[0]);
		assert_true(is_stored(c, &t[0]));
		assert_true(is_stored(c, &t[1]));
		must_be_whole(c);
		close(fd);
		cache_close(c);
		temp_dir_free(dir);
	}
	free(path);
}

/* Whatever row was changed: it is found, mended, what is whole stays, and the next ingest makes everything as it was. */
static void any_changed_row_is_found_and_mended(void **state)
{
	static const char *const changes[] = {
		"UPDATE layout SET identity = randomblob(32)", "UPDATE layout SET n_index_layers = 3",
		"UPDATE run SET layout = 7", "UPDATE run SET n_places = 1 WHERE id = 1", "UPDATE run SET n_living = 1",
		"UPDATE run SET id = 70 WHERE id = 2", "DELETE FROM run WHERE id = 3",
		"UPDATE extent SET segment = 2 WHERE run = 2", "UPDATE extent SET offset = offset + 4096 * 4096",
		"UPDATE extent SET bytes = bytes + 4096 WHERE run = 1", "DELETE FROM extent WHERE run = 2 AND kind = 1",
		"UPDATE span SET parent = NULL WHERE id = 3", "UPDATE span SET parent = 5 WHERE id = 3",
		"UPDATE span SET run = 1 WHERE id = 4", "UPDATE span SET place = 9 WHERE id = 2",
		"UPDATE span SET ids = zeroblob(256) WHERE id = 3", "UPDATE span SET ids = zeroblob(256) WHERE id = 1",
		"UPDATE span SET key = randomblob(32) WHERE id = 2", "UPDATE span SET refs = 7 WHERE id = 2",
		"UPDATE span SET damaged = 1 WHERE id = 1", "UPDATE span SET sum = 5", "DELETE FROM span WHERE id = 4",
		"UPDATE span SET n_tokens = 63, ids = substr(ids, 1, 252) WHERE id = 4",
		"UPDATE snapshot SET source = x'41' WHERE id = 1", "UPDATE snapshot SET n_tokens = 299 WHERE id = 1",
		"UPDATE snapshot SET tip = 2 WHERE id = 1", "UPDATE snapshot SET n_documents = 3 WHERE id = 1",
		"UPDATE snapshot SET layout = 4 WHERE id = 1", "UPDATE snapshot SET is_current = 0 WHERE id = 1", "UPDATE snapshot SET corpus = 'c' WHERE id = 1",
		"UPDATE document SET path = x'62' WHERE snapshot = 1", "DELETE FROM document WHERE snapshot = 1",
		"UPDATE skipped SET reason = 'none' WHERE snapshot = 1", "DELETE FROM skipped WHERE snapshot = 1",
		"INSERT INTO pending VALUES ('a', 3, 5)",
	};

	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		char name[32], *dir;
		struct cache_repair_report report;
		struct text t[2];
		struct cache *c;

		snprintf(name, sizeof name, "store%zu", i);
		dir = temp_path(*state, name);
		two_corpora(dir, t);
		change_index(dir, changes[i]);
		c = store_open(dir);
		if (!n_found(c, &everything))
			fail_msg("nothing was found after: %s", changes[i]);

		repair(c, &report);

		if (n_found(c, &everything))
			fail_msg("not mended: %s", changes[i]);
		/* What is changed in one snapshot's rows does not touch the other's. */
		if (strstr(changes[i], "snapshot ") || strstr(changes[i], "snapshot =")) {
			assert_true(is_stored(c, &t[1]));
			assert_int_equal(cache_known_prefix(c, text_identity, t[0].ids, 300), 300);
		}
		cache_repair_clear(&report);
		for (int j = 0; j < 2; j++) {
			must_store(c, &t[j]);
			assert_true(is_stored(c, &t[j]));
		}
		must_be_whole(c);
		cache_close(c);
		c = store_open(dir);
		must_be_whole(c);
		cache_close(c);
		temp_dir_free(dir);
	}
}

static void lost_ids_cost_their_corpus_and_keep_what_came_before_them(void **state)
{
	struct cache_repair_report report;
	struct text t[2];
	struct cache *c;

	two_corpora(*state, t);
	change_index(*state, "UPDATE span SET ids = zeroblob(256) WHERE id = 4"); /* a's fourth span */
	c = store_open(*state);

	repair(c, &report);

	assert_int_equal(report.lost_spans, 2);
	assert_int_equal(report.n_corpora, 1);
	assert_string_equal(report.corpora[0].name, "a");
	assert_string_equal(report.corpora[0].source, "/src");
	cache_repair_clear(&report);
	assert_int_equal(cache_known_prefix(c, text_identity, t[0].ids, 300), 192);
	assert_true(is_stored(c, &t[1]));
	cache_close(c);
}

static void a_cut_segment_is_found_and_mended(void **state)
{
	struct cache_repair_report report;
	struct text t[2];
	char *path = temp_path(*state, "segment-000001");
	struct cache *c;

	two_corpora(*state, t);
	assert_int_equal(truncate(path, 3 * 4096), 0);
	c = store_open(*state);
	assert_true(n_found(c, &everything) > 0);

	repair(c, &report);

	assert_int_equal(report.quarantined_spans, 8);
	cache_repair_clear(&report);
	must_be_whole(c);
	assert_int_equal(stats_of(c).used_bytes, 0);
	for (int i = 0; i < 2; i++) {
		must_store(c, &t[i]);
		assert_true(is_stored(c, &t[i]));
	}
	must_be_whole(c);
	cache_close(c);
	free(path);
}

/* Whatever bit of the index flips: a repair says that it is past mending, or after it and an ingest all is well. */
static void a_flipped_bit_anywhere_in_the_index_is_mended_or_said_to_be_past_it(void **state)
{
	size_t most = getenv("QUIRE_TEST_FLIPS") ? strtoul(getenv("QUIRE_TEST_FLIPS"), NULL, 10) : 200, bytes = 0, step;
	int n_mended = 0, n_refused = 0;

	for (size_t at = 0, i = 0; !i || at < bytes; at += step, i++) {
		struct cache_repair_report report;
		struct cache_check *k = NULL;
		struct cache *c = NULL;
		struct text t[2];
		char name[32], *dir, *path;
		struct err err;
		int fd, rc;

		snprintf(name, sizeof name, "store%zu", i);
		dir = temp_path(*state, name);
		two_corpora(dir, t);
		path = temp_path(dir, "index.sqlite");
		fd = open(path, O_RDWR);
		bytes = (size_t)lseek(fd, 0, SEEK_END);
		step = bytes / most + 1;
		flip(fd, (int64_t)at, (int)(i % 8));
		close(fd);
		free(path);
		rc = cache_open(&c, dir, &err) || cache_check_begin(&k, c, &everything, &err) ? -1 : 1;
		while (rc > 0)
			rc = cache_check_step(k, &err);
		if (!rc)
			rc = cache_repair(c, k, &report, &err);
		cache_check_free(k);
		if (rc) {
			/* In the pages of the file, its header or its schema: not ours to mend, and said so. */
			n_refused++;
			assert_true(err.code == ERR_DAMAGED || err.code == ERR_FORMAT || err.code == ERR_MISMATCH ||
				    err.code == ERR_FAILED || err.code == ERR_IO);
			assert_non_null(strstr(err.text, "index.sqlite"));
		} else {
			n_mended++;
			cache_repair_clear(&report);
			must_be_whole(c);
			for (int j = 0; j < 2; j++) {
				must_store(c, &t[j]);
				assert_true(is_stored(c, &t[j]));
			}
			must_be_whole(c);
		}
		cache_close(c);
		temp_dir_free(dir);
	}
	assert_true(n_mended > n_refused);
}

/* A store with a wrong byte, a wrong row and a corpus without documents. */
static void damage(const char *dir, struct text t[2])
{
	char *path;
	int fd;

	two_corpora(dir, t);
	path = temp_path(dir, "segment-000001");
	fd = open(path, O_RDWR);
	flip(fd, 5, 1);
	close(fd);
	free(path);
	change_index(dir, "UPDATE span SET refs = 7 WHERE id = 2; DELETE FROM document WHERE snapshot = 1");
}

static void killed_before_any_write_of_a_repair_the_next_one_mends(void **state)
{
	int status = -1, n_kills = 0;

	for (int nth = 1; status != 0; nth++) {
		for (int torn = 0; torn < 2 && status != 0; torn++) {
			struct cache_repair_report report;
			struct text t[2];
			struct cache *c;
			char name[32], *dir;
			pid_t child;

			snprintf(name, sizeof name, "store%d%d", nth, torn);
			dir = temp_path(*state, name);
			damage(dir, t);
			child = fork();
			if (!child) {
				disk_calls_reset();
				disk_calls_kill(nth, torn);
				c = store_open(dir);
				repair(c, &report);
				cache_repair_clear(&report);
				cache_close(c);
				_exit(0);
			}
			assert_int_equal(waitpid(child, &status, 0), child);
			assert_true(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
			n_kills += status != 0;
			c = store_open(dir);
			repair(c, &report);
			cache_repair_clear(&report);
			must_be_whole(c);
			for (int i = 0; i < 2; i++) {
				must_store(c, &t[i]);
				assert_true(is_stored(c, &t[i]));
			}
			cache_close(c);
			temp_dir_free(dir);
		}
	}
	assert_true(n_kills > 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_whole_store_has_nothing_to_find_and_every_span_is_read, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			a_flipped_byte_names_the_corpora_that_it_touches_and_only_its_span_is_quarantined, set_up, tear_down),
		cmocka_unit_test_setup_teardown(any_changed_row_is_found_and_mended, set_up, tear_down),
		cmocka_unit_test_setup_teardown(lost_ids_cost_their_corpus_and_keep_what_came_before_them, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_cut_segment_is_found_and_mended, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_flipped_bit_anywhere_in_the_index_is_mended_or_said_to_be_past_it, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(killed_before_any_write_of_a_repair_the_next_one_mends, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
