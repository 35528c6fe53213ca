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

/* Nothing is damaged but what is marked so, and every corpus still knows its tokens. */
static void must_be_in_order(struct cache *c, const struct text *t, int n)
{
	const struct cache_check_options opt = {.read_share = 1};
	struct cache_snapshot *s;
	struct cache_check *k;
	struct err err;
	int rc = cache_check_begin(&k, c, &opt, &err);

	while (!rc && (rc = cache_check_step(k, &err)) > 0)
		rc = 0;
	if (rc)
		fail_msg("%s", err.text);
	if (cache_check_report(k)->n_damaged)
		fail_msg("%s", cache_check_report(k)->findings[0].text);
	cache_check_free(k);
	for (int i = 0; i < n; i++) {
		if (cache_load_snapshot(c, t[i].corpus, &s, &err))
			fail_msg("%s", err.text);
		assert_int_equal(s->n_tokens, t[i].n);
		assert_memory_equal(s->ids, t[i].ids, (size_t)t[i].n * sizeof *t[i].ids);
		cache_free_snapshot(s);
	}
}

static int64_t known(struct cache *c, const struct text *t)
{
	int64_t n = cache_known_prefix(c, text_identity, t->ids, t->n);

	assert_int_equal(n_damaged(c, t->ids, (int32_t)n), 0);
	return n;
}

static void touch(struct cache *c, const char *corpus, int64_t now_s)
{
	struct err err;

	assert_int_equal(cache_touch(c, corpus, now_s, &err), 0);
}

/* Three corpora of 500 tokens, used in the order a, b, c; runs have 128 tokens. */
static struct cache *three_corpora(const char *dir, struct text t[3])
{
	struct cache *c = store_open(dir);

	t[0] = text_of("a", 500, 0, 1);
	t[1] = text_of("b", 500, 0, 2);
	t[2] = text_of("c", 500, 0, 3);
	for (int i = 0; i < 3; i++) {
		must_store(c, &t[i]);
		touch(c, t[i].corpus, 100 + i);
	}
	return c;
}

static void at_its_limit_the_store_takes_the_end_of_what_was_used_longest_ago(void **state)
{
	const struct text more = text_of("d", 100, 0, 4);
	struct text t[3];
	struct cache *c = three_corpora(*state, t);
	int64_t used = stats_of(c).used_bytes, left;

	touch(c, "a", 200);
	cache_set_limit(c, used);
	must_store(c, &more);

	assert_true(stats_of(c).used_bytes <= used);
	assert_true(is_stored(c, &more));
	assert_true(is_stored(c, &t[0]));
	assert_true(is_stored(c, &t[2]));
	left = known(c, &t[1]);
	assert_int_equal(left, 384); /* its last run, of 116 tokens, has gone, and no more */
	must_be_in_order(c, t, 3);

	/* What was evicted comes back when it is computed again, and then others give way. */
	touch(c, "d", 300);
	touch(c, "c", 50);
	must_store(c, &t[1]);
	assert_true(is_stored(c, &t[1]));
	assert_true(known(c, &t[2]) < 500);
	assert_true(stats_of(c).used_bytes <= used);
	must_be_in_order(c, t, 3);
	cache_close(c);
	c = store_open(*state);
	must_be_in_order(c, t, 3);
	cache_close(c);
}

static void a_corpus_that_is_read_or_shared_or_written_stays(void **state)
{
	struct text a = text_of("a", 256, 256, 1), b = text_of("b", 256, 256, 1), again;
	struct text p = text_of("p", 256, 0, 5), d = text_of("d", 100, 0, 6);
	struct cache *c = store_open(*state);
	int64_t used;
	struct err err;

	must_store(c, &a);
	must_store(c, &b); /* all of it is a's as well */
	must_store(c, &p);
	cache_pin(c, "p");
	used = stats_of(c).used_bytes;
	cache_set_limit(c, used);

	assert_int_equal(store_text(c, &d, &err), -1);

	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "(store.max_bytes)"));
	assert_non_null(strstr(err.text, "of which 0 could go"));
	assert_true(is_stored(c, &a));
	assert_true(is_stored(c, &b));
	assert_true(is_stored(c, &p));
	assert_int_equal(stats_of(c).used_bytes, used);
	/* p's own next version cannot take p's place before it is whole. */
	again = text_of("p", 256, 0, 7);
	assert_int_equal(store_text(c, &again, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_true(is_stored(c, &p));
	cache_pin(c, NULL);
	must_store(c, &d); /* p is nobody's now */
	assert_true(known(c, &p) < 256);
	cache_close(c);
}

struct reader {
	struct cache *c;
	int n_asked;
};

static void let_go(void *ctx)
{
	struct reader *r = ctx;

	r->n_asked++;
	cache_pin(r->c, NULL);
}

/* The one who reads is asked when his corpus is needed and enough: not before, and not in vain. */
static void a_corpus_that_is_read_goes_last_and_only_if_that_helps(void **state)
{
	const struct text d = text_of("d", 100, 0, 4), e = text_of("e", 500, 0, 5);
	struct text t[3], again;
	struct cache *c = three_corpora(*state, t);
	struct reader r = {c, 0};
	int64_t used = stats_of(c).used_bytes;
	struct err err;

	cache_on_shortage(c, let_go, &r);
	cache_pin(c, "a"); /* which the rows say was used longest ago */
	cache_set_limit(c, used);
	must_store(c, &d);
	assert_int_equal(r.n_asked, 0);
	assert_true(known(c, &t[1]) < 500);
	assert_true(is_stored(c, &t[0]));

	cache_set_limit(c, used / 20);
	assert_int_equal(store_text(c, &e, &err), -1); /* not even with all that there is */
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(r.n_asked, 0);
	assert_true(is_stored(c, &t[0]));

	/* Its own next version has no place but its own, which it does not get. */
	cache_set_limit(c, used / 3);
	again = text_of("a", 500, 0, 6);
	assert_int_equal(store_text(c, &again, &err), -1);
	assert_int_equal(r.n_asked, 0);

	must_store(c, &e);
	assert_int_equal(r.n_asked, 1);
	assert_true(is_stored(c, &e));
	assert_true(known(c, &t[0]) < 500);
	must_be_in_order(c, t, 3);
	cache_close(c);
}

static void what_is_refused_takes_nothing_with_it(void **state)
{
	struct text t[3], big = text_of("d", 512, 0, 9);
	struct cache *c = three_corpora(*state, t);
	struct err err;

	cache_set_limit(c, 4096);

	assert_int_equal(store_text(c, &big, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	for (int i = 0; i < 3; i++)
		assert_true(is_stored(c, &t[i]));
	cache_close(c);
}

static void files_do_not_grow_beyond_the_limit(void **state)
{
	const int64_t limit = 1300 * 1024;
	struct cache *c = store_open(*state);

	cache_set_limit(c, limit);
	for (int32_t seed = 1; seed < 40; seed++) {
		char name[16];
		struct text t;

		snprintf(name, sizeof name, "t%d", (int)seed);
		t = text_of(name, 500, 0, seed);
		must_store(c, &t);
		touch(c, name, seed);
		assert_true(is_stored(c, &t));
		assert_true(stats_of(c).used_bytes <= limit);
		assert_true(stats_of(c).file_bytes <= limit);
	}
	must_be_in_order(c, NULL, 0);
	cache_close(c);
}

static void a_dropped_corpus_gives_back_what_no_other_needs(void **state)
{
	const struct text a = text_of("a", 256, 128, 1), b = text_of("b", 256, 128, 2);
	struct cache *c = store_open(*state);
	struct cache_snapshot *s;
	int64_t used;
	struct err err;

	must_store(c, &a);
	used = stats_of(c).used_bytes;
	must_store(c, &b);

	assert_int_equal(cache_drop_corpus(c, "b", &err), 0);

	assert_int_equal(stats_of(c).used_bytes, used);
	assert_int_equal(stats_of(c).n_spans, 4);
	assert_true(is_stored(c, &a));
	assert_int_equal(cache_load_snapshot(c, "b", &s, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(cache_drop_corpus(c, "b", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, "the nearest name is 'a'"));
	must_be_in_order(c, &a, 1);
	assert_int_equal(cache_drop_corpus(c, "a", &err), 0);
	assert_int_equal(stats_of(c).used_bytes, 0);
	assert_int_equal(stats_of(c).n_spans, 0);
	cache_close(c);
}

/* A corpus is dropped, or room is made for another, by a child that dies before its nth write. */
static void killed_before_any_write_all_that_is_there_is_whole(void **state)
{
	for (int drop = 0; drop < 2; drop++) {
		int status = -1, n_kills = 0;

		for (int nth = 1; status != 0; nth++) {
			const struct text more = text_of("d", 200, 0, 4);
			struct cache_snapshot *s;
			struct text t[3];
			struct cache *c;
			char name[32], *dir;
			int64_t used;
			struct err err;
			pid_t child;

			snprintf(name, sizeof name, "store%d-%d", drop, nth);
			dir = temp_path(*state, name);
			c = three_corpora(dir, t);
			used = stats_of(c).used_bytes;
			cache_close(c);
			child = fork();
			if (!child) {
				disk_calls_reset();
				disk_calls_kill(nth, nth % 2);
				c = store_open(dir);
				cache_set_limit(c, used);
				if (drop ? cache_drop_corpus(c, "a", &err) : store_text(c, &more, &err))
					_exit(1);
				cache_close(c);
				_exit(0);
			}
			assert_int_equal(waitpid(child, &status, 0), child);
			assert_true(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
			n_kills += status != 0;
			c = store_open(dir);
			must_be_in_order(c, t + 1, 2);
			assert_true(is_stored(c, &t[1]));
			assert_true(is_stored(c, &t[2]));
			if (!cache_load_snapshot(c, "a", &s, &err)) {
				assert_true(!drop || is_stored(c, &t[0]));
				assert_true(drop || known(c, &t[0]) >= 128);
				cache_free_snapshot(s);
			} else {
				assert_true(drop);
				assert_int_equal(err.code, ERR_NOT_FOUND);
			}
			cache_set_limit(c, used);
			must_store(c, &more);
			assert_true(is_stored(c, &more));
			cache_close(c);
			temp_dir_free(dir);
		}
		assert_true(n_kills > (drop ? 3 : 12));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(at_its_limit_the_store_takes_the_end_of_what_was_used_longest_ago, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_corpus_that_is_read_or_shared_or_written_stays, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_corpus_that_is_read_goes_last_and_only_if_that_helps, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_is_refused_takes_nothing_with_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(files_do_not_grow_beyond_the_limit, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_dropped_corpus_gives_back_what_no_other_needs, set_up, tear_down),
		cmocka_unit_test_setup_teardown(killed_before_any_write_all_that_is_there_is_whole, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
