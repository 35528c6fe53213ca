#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/check.h"
#include "config/log.h"
#include "tests/support/disk_calls.h"
#include "tests/support/run_text.h"
#include "tests/support/temp_dir.h"

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

static struct cache_run *must_begin(struct cache *c, const struct text *t, int32_t first)
{
	struct cache_run *r;
	int32_t next_layer;
	struct err err;

	if (run_begin(&r, c, t, first, &next_layer, &err))
		fail_msg("%s", err.text);
	assert_int_equal(next_layer, 0);
	return r;
}

static int put_parts(struct cache_run *r, const struct text *t, int32_t from, int first_part, struct err *err)
{
	for (int p = first_part; p < N_PARTS; p++)
		if (run_put(r, t, from, p, from, t->n - from, err))
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

		assert_int_equal(run_put(r, &t, 0, part, first, first == 448 ? 52 : 64, &err), 0);
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
		assert_int_equal(run_put(runs[0], &a, 0, p, 0, a.n, &err), 0);
		assert_int_equal(run_put(runs[1], &b, 0, p, 0, b.n, &err), 0);
		assert_int_equal(run_put(runs[2], &same, 0, p, 0, same.n, &err), 0);
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
	int32_t next_layer;
	int64_t used;
	struct err err;

	must_store(c, &a);
	cache_pin(c, "a");
	used = stats_of(c).used_bytes;
	cache_set_limit(c, used + 12 * 4096);

	assert_int_equal(run_begin(&r, c, &b, 0, &next_layer, &err), -1);

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

	assert_int_equal(run_put(r, &a, 0, 0, 0, a.n, &err), 0);
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

static void must_run(struct cache *c, const struct text *t, int until, int32_t want_from)
{
	int32_t from;
	struct err err;

	if (run_text(c, t, until, &from, &err))
		fail_msg("%s", err.text);
	assert_int_equal(from, want_from);
}

/* As after kill -9, but for what was not synced. */
static struct cache *open_again(struct cache *c, const char *dir)
{
	cache_close(c);
	return store_open(dir);
}

static void an_interrupted_run_is_taken_up_where_it_was_saved_last(void **state)
{
	/* Sums of eight spans: 4096 bytes for each group; of the last case, parts meet inside pages. */
	const struct text texts[] = {text_of("a", 512, 0, 1), text_of("a", 500, 128, 1), text_of("a", 70, 0, 1)};

	for (size_t i = 0; i < 3; i++) {
		for (int until = 1; until < N_PARTS; until++) {
			char *clean = temp_path(*state, "clean"), *cut = temp_path(*state, "cut");
			struct cache *c = store_open(clean);
			int64_t used, reserved;

			must_run(c, &texts[i], N_PARTS, 0);
			used = stats_of(c).used_bytes;
			cache_close(c);
			c = store_open(cut);
			must_run(c, &texts[i], until, 0);
			reserved = stats_of(c).used_bytes;
			assert_int_equal(reserved, used);
			assert_int_equal(stats_of(c).scratch_bytes, (until > 1 ? 2 : 1) * (STATE_BYTES + 8));
			assert_int_equal(stats_of(c).n_spans, 0);
			must_be_whole(c);
			c = open_again(c, cut);
			assert_int_equal(stats_of(c).used_bytes, reserved);
			must_be_whole(c);

			must_run(c, &texts[i], N_PARTS, until);

			assert_true(is_stored(c, &texts[i]));
			assert_int_equal(stats_of(c).used_bytes, used);
			assert_int_equal(stats_of(c).scratch_bytes, 0);
			must_be_whole(c);
			cache_close(c);
			temp_dir_free(clean);
			temp_dir_free(cut);
		}
	}
}

static void it_is_taken_up_as_often_as_it_is_interrupted(void **state)
{
	const struct text t = text_of("a", 500, 0, 1);
	struct cache *c = store_open(*state);

	for (int until = 1; until < N_PARTS; until++) {
		must_run(c, &t, until, until - 1);
		if (until % 2)
			c = open_again(c, *state);
	}
	must_run(c, &t, N_PARTS, N_PARTS - 1);
	assert_true(is_stored(c, &t));
	must_be_whole(c);
	cache_close(c);
}

/* A state of more than one piece, half of a part, and a part that is put again although it is there. */
static void only_whole_parts_are_kept_and_a_large_state_comes_back_to_the_byte(void **state)
{
	enum { LARGE = (9 << 20) + 77 };
	const struct text t = text_of("a", 500, 0, 1);
	struct cache *c = store_open(*state);
	uint8_t *saved = malloc(LARGE), *got = malloc(LARGE);
	struct cache_run *r = must_begin(c, &t, 0);
	int32_t next_layer;
	struct err err;

	for (size_t i = 0; i < LARGE; i++)
		saved[i] = (uint8_t)(i * 7 + i / 1000);
	assert_int_equal(run_put(r, &t, 0, 1, 0, t.n, &err), 0);
	assert_int_equal(run_put(r, &t, 0, 0, 192, 128, &err), 0);
	assert_int_equal(run_save(r, 3, saved, LARGE, 1 << 20, &err), 0);
	assert_int_equal(run_put(r, &t, 0, 0, 0, 192, &err), 0);
	assert_int_equal(run_put(r, &t, 0, 0, 320, 180, &err), 0); /* after it: as good as never */
	cache_run_free(r);
	c = open_again(c, *state);

	assert_int_equal(run_begin(&r, c, &t, 0, &next_layer, &err), 0);
	assert_int_equal(next_layer, 3);
	assert_int_equal(run_saved(r, got, LARGE - 1, LARGE, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_int_equal(run_saved(r, got, LARGE, 777777, &err), 0);
	assert_memory_equal(got, saved, LARGE);
	assert_int_equal(put_parts(r, &t, 0, 0, &err), 0);
	must_commit(c, r, &t);

	assert_true(is_stored(c, &t));
	must_be_whole(c);
	cache_close(c);
	free(saved);
	free(got);
}

static void what_was_interrupted_goes_when_the_corpus_begins_otherwise_or_is_removed_or_forgotten(void **state)
{
	const struct text t = text_of("a", 500, 0, 1), other = text_of("a", 400, 64, 2), longer = text_of("a", 512, 0, 1);
	struct cache *c = store_open(*state);
	int64_t used, reserved;
	struct err err;

	assert_int_equal(cache_run_reserved(c, "a", &reserved, &err), 0);
	assert_int_equal(reserved, 0);
	must_run(c, &t, 2, 0);
	used = stats_of(c).used_bytes;
	assert_int_equal(cache_run_reserved(c, "a", &reserved, &err), 0);
	assert_int_equal(reserved, used);
	must_run(c, &longer, 1, 0); /* which begins alike, and is another run */
	must_run(c, &t, 2, 0);
	assert_int_equal(stats_of(c).used_bytes, used);

	assert_int_equal(cache_run_forget(c, "b", &err), 0);
	assert_int_equal(stats_of(c).used_bytes, used);
	assert_int_equal(cache_run_forget(c, "a", &err), 0);
	assert_int_equal(stats_of(c).used_bytes, 0);
	assert_int_equal(stats_of(c).scratch_bytes, 0);

	must_run(c, &t, 2, 0);
	assert_int_equal(cache_drop_corpus(c, "a", &err), 0); /* of which there is nothing else */
	assert_int_equal(stats_of(c).used_bytes, 0);
	assert_int_equal(stats_of(c).scratch_bytes, 0);
	assert_int_equal(cache_drop_corpus(c, "a", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);

	must_run(c, &t, 2, 0);
	must_store(c, &other); /* without checkpoints */
	assert_int_equal(stats_of(c).scratch_bytes, 0);
	assert_true(is_stored(c, &other));
	must_be_whole(c);
	used = stats_of(c).used_bytes;
	c = open_again(c, *state);
	assert_int_equal(stats_of(c).used_bytes, used);
	cache_close(c);
}

static void what_was_interrupted_goes_when_somebody_else_has_stored_it_all(void **state)
{
	const struct text a = text_of("a", 500, 0, 1), b = text_of("b", 500, 0, 1);
	struct cache *c = store_open(*state);
	int64_t reserved;

	must_run(c, &a, 2, 0);
	reserved = stats_of(c).used_bytes;
	must_store(c, &b);
	assert_true(stats_of(c).used_bytes > reserved);

	must_run(c, &a, N_PARTS, 0); /* of which nothing is missing, so that there is a snapshot and no run */

	assert_true(is_stored(c, &a));
	assert_true(is_stored(c, &b));
	assert_int_equal(stats_of(c).n_spans, 8);
	assert_int_equal(stats_of(c).scratch_bytes, 0);
	assert_true(stats_of(c).used_bytes < 2 * reserved);
	must_be_whole(c);
	cache_close(c);
}

/* The saved run of a corpus is dropped, and the run itself goes on. */
static void a_run_outlives_its_checkpoints(void **state)
{
	const struct text t = text_of("a", 500, 0, 1), b = text_of("b", 300, 0, 2);
	struct cache *c = store_open(*state);
	struct cache_run *r = must_begin(c, &t, 0);
	uint8_t bytes[STATE_BYTES] = {1};
	int64_t used = stats_of(c).used_bytes;
	struct err err;

	assert_int_equal(run_put(r, &t, 0, 0, 0, t.n, &err), 0);
	assert_int_equal(run_save(r, 1, bytes, sizeof bytes, sizeof bytes, &err), 0);
	assert_int_equal(cache_drop_corpus(c, "a", &err), 0);
	assert_int_equal(stats_of(c).scratch_bytes, 0);
	assert_int_equal(stats_of(c).used_bytes, used);
	must_store(c, &b); /* nowhere in its space */
	assert_int_equal(run_put(r, &t, 0, 1, 0, t.n, &err), 0);
	assert_int_equal(run_save(r, 2, bytes, sizeof bytes, sizeof bytes, &err), 0);
	must_be_whole(c);
	assert_int_equal(cache_run_restart(r, &err), 0);
	assert_int_equal(put_parts(r, &t, 0, 0, &err), 0);
	must_commit(c, r, &t);

	assert_true(is_stored(c, &t));
	assert_true(is_stored(c, &b));
	must_be_whole(c);
	cache_close(c);
}

/* What a run that has been left goes on with. */
static void must_go_on_at(struct cache *c, const struct text *t, int32_t next_layer)
{
	uint8_t got[STATE_BYTES], want[STATE_BYTES];
	struct cache_run *r;
	int32_t at;
	struct err err;

	if (run_begin(&r, c, t, 0, &at, &err))
		fail_msg("%s", err.text);
	assert_int_equal(at, next_layer);
	if (run_saved(r, got, sizeof got, STATE_PIECE, &err))
		fail_msg("%s", err.text);
	run_state_of(want, t, next_layer);
	assert_memory_equal(got, want, sizeof got);
	cache_run_free(r);
}

/* Layer 1 is saved. Then each call that saves layer 2, piece by piece, fails once; or it is left after each piece. What
 * was saved stays; the run itself saves layer 2 at the next try. */
static void a_checkpoint_that_ends_at_any_piece_leaves_the_one_before_it(void **state)
{
	const struct text t = text_of("a", 500, 0, 1);
	uint8_t bytes[STATE_BYTES];
	int n_failed = 0;
	struct err err;

	for (int nth = 1, failed = 1; failed; nth++) {
		struct cache *c = store_open(*state);
		struct cache_run *r = must_begin(c, &t, 0);

		run_state_of(bytes, &t, 1);
		assert_int_equal(run_put(r, &t, 0, 0, 0, t.n, &err), 0);
		assert_int_equal(run_save(r, 1, bytes, sizeof bytes, STATE_PIECE, &err), 0);
		run_state_of(bytes, &t, 2);
		disk_calls_reset();
		disk_calls_fail(nth, EIO, 0);
		failed = run_save(r, 2, bytes, sizeof bytes, STATE_PIECE, &err);
		disk_calls_reset();
		/* Until the data is synced; a store that is not sure of what it wrote is test_run_faults.c's. */
		if (failed && !strstr(err.text, "segment-") && !strstr(err.text, "index.sqlite")) {
			assert_non_null(strstr(err.text, "before layer 2"));
			n_failed++;
			if (nth % 2) {
				assert_int_equal(run_save(r, 2, bytes, sizeof bytes, STATE_PIECE, &err), 0);
				cache_run_free(r);
				must_go_on_at(c, &t, 2);
			} else {
				cache_run_free(r);
				must_go_on_at(c, &t, 1);
			}
		} else {
			cache_run_free(r);
			failed = 0;
		}
		cache_close(c); /* which may be one that writes no more */
		c = store_open(*state);
		assert_int_equal(cache_run_forget(c, "a", &err), 0);
		assert_int_equal(stats_of(c).used_bytes + stats_of(c).scratch_bytes, 0);
		cache_close(c);
	}
	assert_true(n_failed >= 2 * 3 + 1); /* each piece's write and sync, and more */
	for (size_t at = 0; at < STATE_BYTES; at += STATE_PIECE) {
		struct cache *c = store_open(*state);
		struct cache_run *r = must_begin(c, &t, 0);

		run_state_of(bytes, &t, 1);
		assert_int_equal(run_save(r, 1, bytes, sizeof bytes, STATE_PIECE, &err), 0);
		for (size_t k = 0; k < at; k += STATE_PIECE)
			assert_int_equal(cache_run_checkpoint(r, 2, sizeof bytes, k, bytes, STATE_PIECE, &err), 0);
		cache_run_free(r);
		must_go_on_at(c, &t, 1);
		assert_int_equal(cache_run_forget(c, "a", &err), 0);
		assert_int_equal(stats_of(c).scratch_bytes, 0);
		cache_close(c);
	}
}

/* The first checkpoints of two runs go on side by side, and what one of them goes on from is dropped in the middle. */
static void checkpoints_under_way_do_not_meet(void **state)
{
	const struct text a = text_of("a", 500, 0, 1), b = text_of("b", 400, 0, 2);
	struct cache *c = store_open(*state);
	struct cache_run *r[2] = {must_begin(c, &a, 0), must_begin(c, &b, 0)};
	uint8_t bytes[2][STATE_BYTES];
	struct err err;

	run_state_of(bytes[0], &a, 1);
	run_state_of(bytes[1], &b, 1);
	for (size_t at = 0; at < STATE_BYTES; at += STATE_PIECE)
		for (int i = 0; i < 2; i++)
			assert_int_equal(cache_run_checkpoint(r[i], 1, STATE_BYTES, at, bytes[i] + at,
							      STATE_BYTES - at < STATE_PIECE ? STATE_BYTES - at : STATE_PIECE, &err), 0);
	must_be_whole(c);
	assert_int_equal(cache_run_checkpoint(r[0], 2, STATE_BYTES, 0, bytes[0], STATE_PIECE, &err), 0);
	assert_int_equal(cache_run_forget(c, "a", &err), 0);
	assert_int_equal(cache_run_checkpoint(r[0], 2, STATE_BYTES, STATE_PIECE, bytes[0], STATE_PIECE, &err), -1);
	assert_non_null(strstr(err.text, "was dropped"));
	cache_run_free(r[0]);
	cache_run_free(r[1]);
	assert_int_equal(stats_of(c).scratch_bytes, STATE_BYTES + 8); /* b's alone */
	must_go_on_at(c, &b, 1);
	cache_close(c);
}

static void two_interrupted_corpora_are_each_taken_up(void **state)
{
	const struct text a = text_of("a", 500, 256, 1), b = text_of("b", 400, 256, 2);
	struct cache *c = store_open(*state);
	struct cache_run *r[2];
	uint8_t bytes[STATE_BYTES];
	int64_t used;
	struct err err;

	r[0] = must_begin(c, &a, 0);
	r[1] = must_begin(c, &b, 0);
	for (int i = 0; i < 2; i++) {
		const struct text *t = i ? &b : &a;

		assert_int_equal(run_put(r[i], t, 0, 0, 0, t->n, &err), 0);
		run_state_of(bytes, t, 1);
		assert_int_equal(run_save(r[i], 1, bytes, sizeof bytes, sizeof bytes, &err), 0);
	}
	cache_run_free(r[0]);
	cache_run_free(r[1]);
	must_be_whole(c);
	c = open_again(c, *state);

	must_run(c, &b, N_PARTS, 1);
	must_be_whole(c);
	/* Four of its spans are b's now: a knows them, so what it has to compute is another run. */
	must_run(c, &a, N_PARTS, 0);

	assert_true(is_stored(c, &a));
	assert_true(is_stored(c, &b));
	assert_int_equal(stats_of(c).scratch_bytes, 0);
	must_be_whole(c);
	used = stats_of(c).used_bytes;
	c = open_again(c, *state);
	assert_int_equal(stats_of(c).used_bytes, used);
	cache_close(c);
}

/* An interrupted ingest is of use to its corpus only, and goes when that was used longest ago. */
static void room_is_made_of_interrupted_runs_before_the_spans_that_they_continue(void **state)
{
	const struct text half = text_of("a", 128, 128, 1), a = text_of("a", 500, 128, 1), b = text_of("b", 300, 0, 2);
	struct cache *c = store_open(*state);
	int64_t before, used;
	int32_t from;
	struct err err;

	must_store(c, &half);
	assert_int_equal(cache_touch(c, "a", 100, &err), 0);
	before = stats_of(c).used_bytes;
	must_run(c, &a, 2, 0);
	used = stats_of(c).used_bytes;
	cache_set_limit(c, used + 8 * 4096);
	cache_pin(c, "a");
	assert_int_equal(run_text(c, &b, N_PARTS, &from, &err), -1); /* b's 300 tokens take nine pages */
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(stats_of(c).used_bytes, used);
	cache_pin(c, NULL);

	must_run(c, &b, N_PARTS, 0);

	assert_true(stats_of(c).used_bytes < used + 8 * 4096);
	assert_true(stats_of(c).used_bytes > before);
	assert_int_equal(stats_of(c).scratch_bytes, 0);
	assert_true(is_stored(c, &half));
	assert_true(is_stored(c, &b));
	must_be_whole(c);
	cache_set_limit(c, 0);
	must_run(c, &a, N_PARTS, 0);
	assert_true(is_stored(c, &a));
	cache_close(c);
}

static void files_that_no_row_names_go_when_the_store_is_opened(void **state)
{
	static const char *const names[] = {"scratch-000007-0", "scratch-000007-1", "scratch-000001-1", "scratch-7-0", "scratch-notes"};
	const struct text t = text_of("a", 500, 0, 1);
	struct cache *c = store_open(*state);

	must_run(c, &t, 1, 0);
	cache_close(c);
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		free(temp_file(*state, names[i], "x", 1));

	c = store_open(*state);

	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		char *path = temp_path(*state, names[i]);

		/* The second file of a job is its own, and what is not named as ours is not ours. */
		assert_int_equal(access(path, F_OK), i < 2 ? -1 : 0);
		free(path);
	}
	must_run(c, &t, N_PARTS, 1);
	assert_true(is_stored(c, &t));
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
		cmocka_unit_test_setup_teardown(an_interrupted_run_is_taken_up_where_it_was_saved_last, set_up, tear_down),
		cmocka_unit_test_setup_teardown(it_is_taken_up_as_often_as_it_is_interrupted, set_up, tear_down),
		cmocka_unit_test_setup_teardown(only_whole_parts_are_kept_and_a_large_state_comes_back_to_the_byte, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(what_was_interrupted_goes_when_the_corpus_begins_otherwise_or_is_removed_or_forgotten, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(what_was_interrupted_goes_when_somebody_else_has_stored_it_all, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_run_outlives_its_checkpoints, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_checkpoint_that_ends_at_any_piece_leaves_the_one_before_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(checkpoints_under_way_do_not_meet, set_up, tear_down),
		cmocka_unit_test_setup_teardown(two_interrupted_corpora_are_each_taken_up, set_up, tear_down),
		cmocka_unit_test_setup_teardown(room_is_made_of_interrupted_runs_before_the_spans_that_they_continue, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(files_that_no_row_names_go_when_the_store_is_opened, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
