#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/check.h"
#include "cache/history.h"
#include "config/log.h"
#include "tests/support/disk_calls.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

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

static struct cache *open_keeping(const char *dir, int64_t keep)
{
	struct cache *c = store_open(dir);

	cache_keep_snapshots(c, keep);
	return c;
}

static struct cache_history *history_of(const char *dir, const char *corpus, size_t *n)
{
	struct cache_history *list = NULL;
	struct cache_reader *r;
	struct err err;

	if (cache_reader_open(&r, dir, &err) || cache_list_snapshots(r, corpus, &list, n, &err))
		fail_msg("%s", err.text);
	cache_reader_close(r);
	return list;
}

/* Snapshot `id` is there, with the tokens of t, whole. */
static int has_snapshot(struct cache *c, int64_t id, const struct text *t)
{
	struct cache_snapshot *s;
	struct err err;
	int same;

	if (cache_load_snapshot_of(c, t->corpus, id, &s, &err)) {
		assert_int_equal(err.code, ERR_NOT_FOUND);
		return 0;
	}
	same = s->id == id && s->n_tokens == t->n && !memcmp(s->ids, t->ids, (size_t)t->n * sizeof *t->ids) &&
	       s->n_documents == 1 && !n_damaged(c, t->ids, t->n);
	cache_free_snapshot(s);
	return same;
}

static void must_be_whole(struct cache *c)
{
	const struct cache_check_options everything = {.read_share = 1};
	struct cache_check *k;
	struct err err;
	int rc = cache_check_begin(&k, c, &everything, &err);

	while (!rc && (rc = cache_check_step(k, &err)) > 0)
		rc = 0;
	if (rc)
		fail_msg("%s", err.text);
	if (cache_check_report(k)->n_damaged)
		fail_msg("%s", cache_check_report(k)->findings[0].text);
	cache_check_free(k);
}

static void the_newest_former_snapshots_stay_and_the_oldest_go(void **state)
{
	struct text t[5];
	struct cache *c = open_keeping(*state, 2);
	struct cache_history *list;
	size_t n;

	for (int i = 0; i < 5; i++) {
		t[i] = text_of("a", 256, 128, i + 1);
		must_store(c, &t[i]);
	}

	/* Two spans are shared by all, and two are each snapshot's own. */
	assert_int_equal(stats_of(c).n_spans, 2 + 3 * 2);
	assert_int_equal(stats_of(c).n_corpora, 1);
	for (int i = 0; i < 5; i++)
		assert_int_equal(has_snapshot(c, i + 1, &t[i]), i >= 2);
	assert_true(is_stored(c, &t[4]));
	list = history_of(*state, "a", &n);
	assert_int_equal(n, 3);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(list[i].id, 5 - (int64_t)i);
		assert_int_equal(list[i].is_current, !i);
		assert_string_equal(list[i].source, "/src");
		assert_int_equal(list[i].own_tokens, 128);
		assert_int_equal(list[i].own_bytes, 128 * (80 + 16) + 2 * 2 * 8);
		assert_int_equal(list[i].missing_tokens, 0);
	}
	cache_free_history(list, n);
	must_be_whole(c);
	cache_close(c);

	/* Fewer from the next commit on. */
	c = open_keeping(*state, 0);
	must_store(c, &t[0]);
	assert_int_equal(stats_of(c).n_spans, 4);
	must_be_whole(c);
	cache_close(c);
}

static void a_reading_that_changed_no_token_pushes_nothing_out(void **state)
{
	const struct text old = text_of("a", 200, 0, 1), new = text_of("a", 200, 0, 2);
	struct cache *c = open_keeping(*state, 1);
	struct cache_history *list;
	size_t n;

	must_store(c, &old);
	must_store(c, &new);
	for (int night = 0; night < 5; night++)
		must_store(c, &new);

	assert_true(has_snapshot(c, 1, &old));
	list = history_of(*state, "a", &n);
	assert_int_equal(n, 2);
	assert_int_equal(list[0].id, 7);
	cache_free_history(list, n);
	/* Back to what it was: that is a change. */
	must_store(c, &old);
	assert_true(has_snapshot(c, 8, &old));
	assert_true(has_snapshot(c, 7, &new));
	assert_false(has_snapshot(c, 1, &old));
	must_be_whole(c);
	cache_close(c);
}

static void a_forgotten_snapshot_gives_back_what_it_alone_needed(void **state)
{
	const struct text t[3] = {text_of("a", 256, 128, 1), text_of("a", 256, 128, 2), text_of("a", 256, 128, 3)};
	const int64_t first[] = {1}, unknown[] = {2, 9}, current[] = {1, 3};
	struct cache *c = open_keeping(*state, 9);
	int64_t used, *gone;
	struct err err;
	size_t n;

	for (int i = 0; i < 3; i++)
		must_store(c, &t[i]);
	used = stats_of(c).used_bytes;

	assert_int_equal(cache_forget(c, "a", unknown, 2, 0, &gone, &n, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_string_equal(err.text, "corpus 'a' has no snapshot 9: there are 3 (the current one), 1");
	assert_int_equal(cache_forget(c, "a", current, 2, 0, &gone, &n, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_non_null(strstr(err.text, "`quire rm a`"));
	assert_int_equal(cache_forget(c, "b", first, 1, 0, &gone, &n, &err), -1);
	assert_string_equal(err.text, "no corpus 'b'; the nearest name is 'a'");
	for (int i = 0; i < 3; i++)
		assert_true(has_snapshot(c, i + 1, &t[i])); /* all or nothing */

	assert_int_equal(cache_forget(c, "a", first, 1, 0, &gone, &n, &err), 0);
	assert_int_equal(n, 1);
	free(gone);
	assert_false(has_snapshot(c, 1, &t[0]));
	assert_int_equal(stats_of(c).n_spans, 6); /* its run has the shared beginning, and stays */
	assert_true(stats_of(c).used_bytes <= used);
	assert_int_equal(cache_forget(c, "a", NULL, 0, 0, &gone, &n, &err), 0);
	assert_int_equal(n, 1);
	assert_int_equal(gone[0], 2);
	free(gone);
	assert_true(is_stored(c, &t[2]));
	must_be_whole(c);
	assert_int_equal(cache_drop_corpus(c, "a", &err), 0);
	assert_int_equal(stats_of(c).n_spans, 0);
	assert_int_equal(stats_of(c).used_bytes, 0);
	cache_close(c);
}

static void a_removed_corpus_takes_its_former_snapshots_along(void **state)
{
	struct cache *c = open_keeping(*state, 9);
	struct cache_reader *r;
	struct cache_history *list;
	struct err err;
	size_t n;

	for (int i = 0; i < 4; i++) {
		const struct text t = text_of("a", 256, 64, i);

		must_store(c, &t);
	}
	assert_int_equal(cache_drop_corpus(c, "a", &err), 0);

	assert_int_equal(stats_of(c).n_spans, 0);
	assert_int_equal(stats_of(c).used_bytes, 0);
	assert_int_equal(cache_reader_open(&r, *state, &err), 0);
	assert_int_equal(cache_list_snapshots(r, "a", &list, &n, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	cache_reader_close(r);
	must_be_whole(c);
	cache_close(c);
}

/* Under a limit the former snapshot of another corpus goes before that corpus, though it is used just now. */
static void what_only_a_former_snapshot_needs_makes_room_first(void **state)
{
	const struct text old = text_of("a", 256, 0, 1), new = text_of("a", 256, 0, 2), other = text_of("b", 256, 0, 3);
	struct cache *c = open_keeping(*state, 3);
	struct cache_history *list;
	struct cache_snapshot *s;
	struct err err;
	size_t n;

	must_store(c, &old);
	must_store(c, &new);
	cache_set_limit(c, stats_of(c).used_bytes);
	must_store(c, &other);

	assert_true(is_stored(c, &new));
	assert_true(is_stored(c, &other));
	assert_int_equal(cache_known_prefix(c, text_identity, old.ids, old.n), 0);
	list = history_of(*state, "a", &n);
	assert_int_equal(n, 2);
	assert_int_equal(list[1].missing_tokens, 256);
	assert_int_equal(list[1].own_bytes, 0);
	cache_free_history(list, n);
	/* Its ids stay, so that it can be computed again. */
	assert_int_equal(cache_load_snapshot_of(c, "a", 1, &s, &err), 0);
	assert_memory_equal(s->ids, old.ids, 256 * sizeof *old.ids);
	cache_free_snapshot(s);
	must_be_whole(c);
	cache_close(c);
}

static void a_former_snapshot_that_is_being_read_does_not_make_room(void **state)
{
	const struct text old = text_of("a", 256, 0, 1), new = text_of("a", 256, 0, 2), other = text_of("b", 256, 0, 3);
	struct cache *c = open_keeping(*state, 3);
	struct err err;

	must_store(c, &old);
	must_store(c, &new);
	cache_set_limit(c, stats_of(c).used_bytes);
	cache_pin(c, "a");
	cache_pin_former(c, 1);

	assert_int_equal(store_text(c, &other, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_true(has_snapshot(c, 1, &old));
	cache_pin(c, "a");
	must_store(c, &other);
	assert_true(is_stored(c, &new));
	cache_close(c);
}

static void a_lost_current_snapshot_leaves_the_former_ones_and_says_so(void **state)
{
	const struct text old = text_of("a", 256, 128, 1), new = text_of("a", 256, 128, 2);
	const struct cache_check_options everything = {.corpus = "a", .read_share = 1};
	struct cache_repair_report report;
	struct cache *c = open_keeping(*state, 3);
	struct cache_snapshot *s;
	struct cache_check *k;
	struct err err;
	int rc;

	must_store(c, &old);
	must_store(c, &new);
	cache_close(c);
	change_index(*state, "UPDATE snapshot SET n_tokens = 255 WHERE id = 2");
	c = open_keeping(*state, 3);

	rc = cache_check_begin(&k, c, &everything, &err);
	while (!rc && (rc = cache_check_step(k, &err)) > 0)
		rc = 0;
	assert_int_equal(rc, 0);
	assert_int_equal(cache_repair(c, k, &report, &err), 0);
	cache_check_free(k);

	assert_int_equal(report.n_corpora, 1);
	assert_string_equal(report.corpora[0].name, "a");
	assert_int_equal(report.lost_snapshots, 0);
	cache_repair_clear(&report);
	assert_int_equal(cache_load_snapshot(c, "a", &s, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_string_equal(err.text, "corpus 'a' has lost its current snapshot: ingest it again, or name a former one with "
				      "--snapshot: 1");
	assert_true(has_snapshot(c, 1, &old));
	/* What was whole of the lost one waits for the next ingest. */
	assert_int_equal(cache_known_prefix(c, text_identity, new.ids, new.n), 256);
	assert_int_equal(cache_check_begin(&k, c, &everything, &err), 0);
	cache_check_free(k);
	must_be_whole(c);
	must_store(c, &new);
	assert_true(is_stored(c, &new));
	must_be_whole(c);
	cache_close(c);
}

static void a_wrong_row_of_a_former_snapshot_is_refused_and_mended_alone(void **state)
{
	static const char *const changes[] = {
		"is_current = 1 WHERE id = 2", "tip = 1 WHERE id = 1", "source = x'41' WHERE id = 1", "id = 3 WHERE id = 1",
	};

	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		const struct text old = text_of("a", 256, 128, 1), new = text_of("b", 256, 128, 2);
		const struct cache_check_options everything = {.read_share = 1};
		char name[16], sql[100], *dir;
		struct cache_repair_report report;
		struct cache_check *k;
		struct cache *c;
		struct err err;
		int rc;

		snprintf(name, sizeof name, "store%zu", i);
		dir = temp_path(*state, name);
		c = open_keeping(dir, 3);
		must_store(c, &old);
		must_store(c, &new);
		cache_close(c);
		snprintf(sql, sizeof sql, "UPDATE snapshot SET used_s = used_s + 1, %s", changes[i]);
		change_index(dir, sql);
		c = open_keeping(dir, 3);
		rc = cache_check_begin(&k, c, &everything, &err);
		while (!rc && (rc = cache_check_step(k, &err)) > 0)
			rc = 0;
		assert_int_equal(rc, 0);
		assert_true(cache_check_report(k)->n_damaged > 0);
		assert_int_equal(cache_repair(c, k, &report, &err), 0);
		cache_repair_clear(&report);
		cache_check_free(k);
		must_be_whole(c);
		must_store(c, &old);
		must_store(c, &new);
		assert_true(is_stored(c, &old));
		assert_true(is_stored(c, &new));
		must_be_whole(c);
		cache_close(c);
		temp_dir_free(dir);
	}
}

/* A child commits a third version, of which one former stays, and forgets that one; it dies before any write. */
static void killed_before_any_write_of_a_commit_or_a_removal_every_snapshot_is_whole(void **state)
{
	const struct text t[3] = {text_of("a", 200, 64, 1), text_of("a", 300, 64, 2), text_of("a", 250, 64, 3)};
	int status = -1, n_kills = 0;

	for (int nth = 1; status != 0; nth++) {
		for (int torn = 0; torn < 2 && status != 0; torn++) {
			char name[32], *dir;
			int64_t *gone;
			struct cache *c;
			struct err err;
			size_t n;
			pid_t child;

			snprintf(name, sizeof name, "store%d%d", nth, torn);
			dir = temp_path(*state, name);
			c = open_keeping(dir, 1);
			must_store(c, &t[0]);
			must_store(c, &t[1]);
			cache_close(c);
			child = fork();
			if (!child) {
				disk_calls_reset();
				disk_calls_kill(nth, torn);
				if (cache_open(&c, dir, &err))
					_exit(1);
				cache_keep_snapshots(c, 1);
				if (store_text(c, &t[2], &err) || cache_forget(c, "a", NULL, 0, 0, &gone, &n, &err))
					_exit(1);
				free(gone);
				cache_close(c);
				_exit(0);
			}
			assert_int_equal(waitpid(child, &status, 0), child);
			assert_true(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
			n_kills += status != 0;
			c = open_keeping(dir, 1);
			/* 1 and 2; or 2 and 3; or 3. */
			if (is_stored(c, &t[1])) {
				assert_true(has_snapshot(c, 1, &t[0]));
				assert_true(has_snapshot(c, 2, &t[1]));
			} else {
				struct cache_history *list = history_of(dir, "a", &n);

				assert_true(is_stored(c, &t[2]));
				assert_false(has_snapshot(c, 1, &t[0]));
				assert_int_equal(has_snapshot(c, 2, &t[1]), n == 2);
				cache_free_history(list, n);
			}
			must_be_whole(c);
			must_store(c, &t[2]);
			assert_int_equal(cache_forget(c, "a", NULL, 0, 0, &gone, &n, &err), 0);
			free(gone);
			assert_int_equal(stats_of(c).n_spans, 4);
			must_be_whole(c);
			cache_close(c);
			temp_dir_free(dir);
		}
	}
	assert_true(n_kills > 30);
}

/* Format 3: a name was unique, and the snapshot of a name was its current one. */
static void a_store_of_format_3_keeps_its_snapshots_and_a_wrong_row_stays_wrong(void **state)
{
	const struct text a = text_of("a", 200, 64, 1), b = text_of("b", 200, 64, 2), next = text_of("a", 200, 64, 3);
	struct cache *c = store_open(*state);
	struct cache_snapshot *s;
	struct err err;

	must_store(c, &a);
	must_store(c, &b);
	must_store(c, &next);
	must_store(c, &a); /* the last number that was given is 4, and then it goes */
	assert_int_equal(cache_drop_corpus(c, "a", &err), 0);
	cache_close(c);
	change_index(*state, "CREATE TABLE old (id INTEGER PRIMARY KEY AUTOINCREMENT, corpus TEXT NOT NULL UNIQUE, source BLOB"
			     " NOT NULL, layout INTEGER NOT NULL REFERENCES layout(id), created_s INTEGER NOT NULL, n_tokens"
			     " INTEGER NOT NULL, tip INTEGER NOT NULL REFERENCES span(id), revision TEXT NOT NULL DEFAULT '',"
			     " used_s INTEGER NOT NULL DEFAULT 0, n_documents INTEGER NOT NULL, n_skipped INTEGER NOT NULL,"
			     " sum INTEGER NOT NULL) STRICT;"
			     "INSERT INTO old SELECT id, corpus, source, layout, created_s, n_tokens, tip, revision, used_s,"
			     " n_documents, n_skipped, sum FROM snapshot;"
			     "UPDATE sqlite_sequence SET seq = 4 WHERE name = 'old'; DROP TABLE snapshot;"
			     "ALTER TABLE old RENAME TO snapshot; CREATE INDEX snapshot_tip ON snapshot(tip); DROP TABLE job;"
			     "DROP TABLE routing;"
			     "UPDATE snapshot SET sum = 7; PRAGMA user_version = 3");

	c = open_keeping(*state, 3);
	assert_int_equal(cache_load_snapshot(c, "b", &s, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_non_null(strstr(err.text, "row 2 of table snapshot"));
	must_store(c, &a);
	assert_int_equal(cache_load_snapshot(c, "a", &s, &err), 0);
	assert_int_equal(s->id, 5);
	cache_free_snapshot(s);
	cache_close(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(the_newest_former_snapshots_stay_and_the_oldest_go, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_reading_that_changed_no_token_pushes_nothing_out, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_forgotten_snapshot_gives_back_what_it_alone_needed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_removed_corpus_takes_its_former_snapshots_along, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_only_a_former_snapshot_needs_makes_room_first, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_former_snapshot_that_is_being_read_does_not_make_room, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_lost_current_snapshot_leaves_the_former_ones_and_says_so, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_wrong_row_of_a_former_snapshot_is_refused_and_mended_alone, set_up, tear_down),
		cmocka_unit_test_setup_teardown(killed_before_any_write_of_a_commit_or_a_removal_every_snapshot_is_whole,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_store_of_format_3_keeps_its_snapshots_and_a_wrong_row_stays_wrong, set_up,
						tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
