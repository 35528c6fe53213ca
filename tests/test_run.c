#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cache/check.h"
#include "cache/run.h"
#include "config/log.h"
#include "tests/support/disk_calls.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

enum { N_PARTS = N_GROUPS + N_INDEX_LAYERS };

static int set_up(void **state)
{
	log_set_level(LOG_LEVEL_ERROR);
	disk_calls_reset();
	*state = temp_dir_new();
	return 0;
}

static int tear_down(void **state)
{
	log_set_level(LOG_LEVEL_INFO);
	disk_calls_reset();
	temp_dir_free(*state);
	return 0;
}

/* Every rule holds and every stored byte is right. */
static void must_be_whole(struct cache *c)
{
	const struct cache_check_options opt = {.read_share = 1};
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
}

/* The tokens of a text from `first` on. */
static int run_begin(struct cache_run **r, struct cache *c, const struct text *t, int32_t first, struct err *err)
{
	struct span_key keys[MOST_TOKENS / CACHE_SPAN_TOKENS + 1];
	int32_t next_layer;

	keys_of(keys, t->ids, t->n);
	return cache_run_begin(r, c, t->corpus, &text_layout, text_identity,
			       first ? &keys[first / CACHE_SPAN_TOKENS - 1] : NULL, t->ids + first, t->n - first, &next_layer,
			       err);
}

static struct cache_run *must_begin(struct cache *c, const struct text *t, int32_t first)
{
	struct cache_run *r;
	struct err err;

	if (run_begin(&r, c, t, first, &err))
		fail_msg("%s", err.text);
	return r;
}

/* n tokens of one part, where `from` is the text's token with which the run begins. */
static int put(struct cache_run *r, const struct text *t, int32_t from, int part, int32_t first, int32_t n, struct err *err)
{
	uint8_t bytes[MOST_TOKENS * 40];

	text_compute(bytes, t, part, first, n);
	return part < N_GROUPS ? cache_run_records(r, part, first - from, n, bytes, err)
			       : cache_run_index_keys(r, part - N_GROUPS, first - from, n, bytes, err);
}

static int put_parts(struct cache_run *r, const struct text *t, int32_t from, int first_part, struct err *err)
{
	for (int p = first_part; p < N_PARTS; p++)
		if (put(r, t, from, p, from, t->n - from, err))
			return -1;
	return 0;
}

static void must_commit(struct cache *c, struct cache_run *r, const struct text *t)
{
	struct err err;

	if (cache_run_commit(r, &err) || commit_text(c, t, &err))
		fail_msg("%s", err.text);
	cache_run_free(r);
}

static void put_in_any_order_the_store_has_what_it_would_have_at_once(void **state)
{
	const struct text t = text_of("a", 500, 0, 1);
	char *at_once = temp_path(*state, "at once");
	struct cache *c = store_open(*state), *other = store_open(at_once);
	int32_t order[N_PARTS * 8];
	struct cache_run *r;
	struct err err;

	must_store(other, &t);
	srandom(5);
	for (int32_t i = 0; i < N_PARTS * 8; i++) {
		int32_t j = (int32_t)(random() % (i + 1));

		order[i] = order[j];
		order[j] = i;
	}
	r = must_begin(c, &t, 0);
	for (int i = 0; i < N_PARTS * 8; i++) {
		int32_t part = order[i] / 8, first = order[i] % 8 * 64;

		assert_int_equal(put(r, &t, 0, part, first, first == 448 ? 52 : 64, &err), 0);
	}
	must_commit(c, r, &t);

	assert_true(is_stored(c, &t));
	must_be_whole(c);
	assert_int_equal(stats_of(c).n_spans, stats_of(other).n_spans);
	cache_close(c);
	cache_close(other);
	c = store_open(*state);
	assert_true(is_stored(c, &t));
	cache_close(c);
	free(at_once);
}

static void nothing_is_found_before_the_commit_and_without_it_all_space_is_free_again(void **state)
{
	const struct text a = text_of("a", 128, 128, 1), t = text_of("a", 500, 128, 1);
	struct cache *c = store_open(*state);
	struct cache_run *r;
	int64_t used;
	struct err err;

	must_store(c, &a);
	used = stats_of(c).used_bytes;
	r = must_begin(c, &t, 0);
	/* 372 tokens, as the first two spans are there, of 24, 40, 8 and 8 bytes; 64 + 64 + 2 sums for each of six spans. */
	assert_int_equal(stats_of(c).used_bytes - used, (3 + 4 + 1 + 1 + 2) * 4096);
	assert_int_equal(put_parts(r, &t, 0, 0, &err), 0);
	assert_int_equal(cache_known_prefix(c, text_identity, t.ids, t.n), 128);
	cache_run_free(r);

	assert_int_equal(stats_of(c).used_bytes, used);
	assert_int_equal(stats_of(c).n_spans, 2);
	assert_true(is_stored(c, &a));
	must_be_whole(c);
	r = must_begin(c, &t, 128);
	assert_int_equal(put_parts(r, &t, 128, 0, &err), 0);
	must_commit(c, r, &t);
	assert_true(is_stored(c, &t));
	must_be_whole(c);
	cache_close(c);
}

static void two_corpora_are_written_at_once_and_share_what_whoever_is_first_has_stored(void **state)
{
	const struct text a = text_of("a", 500, 256, 1), b = text_of("b", 400, 256, 2), same = text_of("c", 400, 256, 2);
	struct cache *c = store_open(*state);
	struct cache_run *runs[3];
	int64_t used;
	struct err err;

	runs[0] = must_begin(c, &a, 0);
	runs[1] = must_begin(c, &b, 0);
	runs[2] = must_begin(c, &same, 0);
	for (int p = 0; p < N_PARTS; p++) {
		assert_int_equal(put(runs[0], &a, 0, p, 0, a.n, &err), 0);
		assert_int_equal(put(runs[1], &b, 0, p, 0, b.n, &err), 0);
		assert_int_equal(put(runs[2], &same, 0, p, 0, same.n, &err), 0);
	}
	must_commit(c, runs[1], &b);
	must_commit(c, runs[0], &a);
	used = stats_of(c).used_bytes;
	must_commit(c, runs[2], &same); /* of which nothing is new */

	assert_int_equal(stats_of(c).n_spans, 8 + 3);
	assert_true(stats_of(c).used_bytes < used);
	assert_true(is_stored(c, &a));
	assert_true(is_stored(c, &b));
	assert_true(is_stored(c, &same));
	must_be_whole(c);
	used = stats_of(c).used_bytes;
	cache_close(c);
	c = store_open(*state);
	assert_int_equal(stats_of(c).used_bytes, used);
	cache_close(c);
}

static void what_the_limit_does_not_allow_is_refused_before_anything_is_computed(void **state)
{
	const struct text a = text_of("a", 200, 0, 1), b = text_of("b", 500, 0, 2), small = text_of("c", 64, 0, 3);
	struct cache *c = store_open(*state);
	struct cache_run *r;
	int64_t used;
	struct err err;

	must_store(c, &a);
	cache_pin(c, "a");
	used = stats_of(c).used_bytes;
	cache_set_limit(c, used + 12 * 4096);

	assert_int_equal(run_begin(&r, c, &b, 0, &err), -1);

	assert_int_equal(err.code, ERR_TOO_LARGE);
	/* 500 tokens of 24 and 40 bytes in 3 and 5 pages, two of keys, and three of sums: one more than there is. */
	assert_non_null(strstr(err.text, "there is no room for 53248 more"));
	assert_int_equal(stats_of(c).used_bytes, used);
	cache_set_limit(c, used + 13 * 4096);
	r = must_begin(c, &b, 0);
	/* Its space is its own, and the spans of a corpus that is written stay as those of one that is read. */
	assert_int_equal(cache_write_spans(c, small.corpus, &text_layout, text_identity, NULL, small.ids, small.n, NULL, NULL,
					   &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(put_parts(r, &b, 0, 0, &err), 0);
	must_commit(c, r, &b);
	assert_true(is_stored(c, &a));
	assert_true(is_stored(c, &b));
	must_be_whole(c);
	cache_close(c);
}

/* The beginning of a corpus that is written is pending, and nobody's room is made of it. */
static void the_beginning_of_a_corpus_that_is_written_is_not_evicted(void **state)
{
	const struct text half = text_of("a", 128, 128, 1), a = text_of("a", 500, 128, 1), b = text_of("b", 400, 0, 2);
	struct cache *c = store_open(*state);
	struct cache_run *r;
	struct err err;

	must_store(c, &half);
	r = must_begin(c, &a, 128);
	cache_set_limit(c, stats_of(c).used_bytes + 4096);

	assert_int_equal(store_text(c, &b, &err), -1);

	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(put_parts(r, &a, 128, 0, &err), 0);
	must_commit(c, r, &a);
	assert_true(is_stored(c, &a));
	cache_set_limit(c, stats_of(c).used_bytes + 12 * 4096);
	must_store(c, &b); /* now it is */
	assert_true(cache_known_prefix(c, text_identity, a.ids, a.n) < a.n);
	assert_true(is_stored(c, &b));
	must_be_whole(c);
	cache_close(c);
}

/* Space is worked out anew by a repair, and whoever has reserved some keeps it. */
static void a_repair_leaves_what_is_being_written_alone(void **state)
{
	const struct cache_check_options opt = {0};
	const struct text a = text_of("a", 500, 0, 1), b = text_of("b", 400, 0, 2);
	struct cache *c = store_open(*state);
	struct cache_repair_report report;
	struct cache_check *k;
	struct cache_run *r = must_begin(c, &a, 0);
	int64_t used = stats_of(c).used_bytes;
	struct err err;

	assert_int_equal(put(r, &a, 0, 0, 0, a.n, &err), 0);
	assert_int_equal(cache_check_begin(&k, c, &opt, &err), 0);
	while (cache_check_step(k, &err) > 0)
		;
	assert_int_equal(cache_repair(c, k, &report, &err), 0);
	cache_repair_clear(&report);
	cache_check_free(k);

	assert_int_equal(stats_of(c).used_bytes, used);
	must_store(c, &b);
	assert_int_equal(put_parts(r, &a, 0, 1, &err), 0);
	must_commit(c, r, &a);
	assert_true(is_stored(c, &a));
	assert_true(is_stored(c, &b));
	must_be_whole(c);
	cache_close(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(put_in_any_order_the_store_has_what_it_would_have_at_once, set_up, tear_down),
		cmocka_unit_test_setup_teardown(nothing_is_found_before_the_commit_and_without_it_all_space_is_free_again, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(two_corpora_are_written_at_once_and_share_what_whoever_is_first_has_stored, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(what_the_limit_does_not_allow_is_refused_before_anything_is_computed, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(the_beginning_of_a_corpus_that_is_written_is_not_evicted, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_repair_leaves_what_is_being_written_alone, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
