#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/view.h"
#include "tests/support/disk_calls.h"
#include "tests/support/fake_io.h"
#include "tests/support/run_text.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

static const int64_t record_bytes[N_GROUPS] = {24, 40};

static int set_up(void **state)
{
	disk_calls_reset();
	*state = temp_dir_new();
	return 0;
}

static int set_up_in_memory(void **state)
{
	disk_calls_reset();
	*state = temp_dir_new_in_memory();
	return 0;
}

static int tear_down(void **state)
{
	temp_dir_free(*state);
	return 0;
}

static struct cache_view *view_of(struct cache *c, const struct text *t, int64_t n)
{
	struct cache_view *v;
	struct err err;
	int64_t whole;

	assert_int_equal(cache_view_open(&v, c, text_identity, t->ids, n, &whole, &err), 0);
	assert_int_equal(whole, n);
	return v;
}

static struct cache_view_stats counted(const struct cache_view *v)
{
	struct cache_view_stats s;

	cache_view_stats(v, &s);
	return s;
}

/* The view hands out what the model computed, for tokens first .. first + n - 1 of every part. */
static void assert_gives(struct cache_view *v, const struct text *t, int32_t first, int32_t n)
{
	uint8_t want[MOST_TOKENS * 40], out[MOST_TOKENS * 40];
	struct err err;

	for (int g = 0; g < N_GROUPS; g++) {
		text_compute(want, t, g, first, n);
		assert_int_equal(cache_view_records(v, g, first, n, out, NULL, &err), 0);
		assert_memory_equal(out, want, (size_t)(n * record_bytes[g]));
	}
	for (int i = 0; i < N_INDEX_LAYERS; i++) {
		text_compute(want, t, N_GROUPS + i, first, n);
		assert_int_equal(cache_view_index_keys(v, i, first, n, out, NULL, &err), 0);
		assert_memory_equal(out, want, (size_t)(n * KEY_BYTES));
	}
}

static void a_view_gives_any_range_of_what_was_written(void **state)
{
	const struct text t = text_of("a", 300, 0, 1); /* four whole spans and 44 tokens, in three runs */
	const int32_t edges[] = {0, 1, 63, 64, 65, 127, 128, 200, 256, 299, 300};
	struct cache *c = store_open(*state);
	struct cache_view *v;

	must_store(c, &t);
	v = view_of(c, &t, 300);

	for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
		for (size_t k = i; k < sizeof edges / sizeof *edges; k++)
			assert_gives(v, &t, edges[i], edges[k] - edges[i]);

	cache_view_close(v);
	cache_close(c);
}

struct taken {
	const struct text *t;
	uint8_t times[N_INDEX_LAYERS][MOST_TOKENS]; /* that a token's key was given */
	int64_t refused;            /* this token's key is not taken; -1: all are */
};

static int take(void *ctx, int32_t index_layer, int64_t at, int64_t n, const uint8_t *keys, int64_t *bad, struct err *err)
{
	struct taken *taken = ctx;
	uint8_t want[MOST_TOKENS * KEY_BYTES];

	text_compute(want, taken->t, N_GROUPS + index_layer, (int32_t)at, (int32_t)n);
	assert_memory_equal(keys, want, (size_t)n * KEY_BYTES);
	for (int64_t i = at; i < at + n; i++)
		taken->times[index_layer][i]++;
	if (taken->refused < at || taken->refused >= at + n)
		return 0;
	*bad = taken->refused;
	return err_set(err, ERR_FORMAT, "no");
}

static void keys_are_taken_once_each_whoever_wrote_their_spans(void **state)
{
	const struct text t = text_of("a", 300, 0, 1);
	const int32_t edges[] = {0, 1, 63, 64, 65, 128, 200, 299, 300};
	struct cache *c = store_open(*state);
	struct cache_view *v;
	struct err err;

	must_store(c, &t);
	v = view_of(c, &t, 300);

	for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
		for (size_t k = i; k < sizeof edges / sizeof *edges; k++) {
			for (int32_t layers = 1; layers <= N_INDEX_LAYERS; layers++) {
				struct taken taken = {.t = &t, .refused = -1};
				int32_t first = N_INDEX_LAYERS - layers;
				int64_t bad;

				assert_int_equal(cache_view_take_index_keys(v, first, layers, edges[i], edges[k] - edges[i], take,
									    &taken, &bad, &err), 0);
				for (int32_t x = 0; x < N_INDEX_LAYERS; x++)
					for (int32_t p = 0; p < 300; p++)
						assert_int_equal(taken.times[x][p], x >= first && p >= edges[i] && p < edges[k]);
			}
		}

	cache_view_close(v);
	cache_close(c);
}

static void who_does_not_take_a_key_says_which(void **state)
{
	const struct text t = text_of("a", 300, 0, 1);
	struct taken taken = {.t = &t, .refused = 201};
	struct cache *c = store_open(*state);
	struct cache_view *v;
	struct err err = {0};
	int64_t bad = -1;

	must_store(c, &t);
	v = view_of(c, &t, 300);

	assert_int_equal(cache_view_take_index_keys(v, 0, 2, 3, 290, take, &taken, &bad, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
	assert_int_equal(bad, 201);
	assert_gives(v, &t, 0, 300);

	cache_view_close(v);
	cache_close(c);
}

static void a_gather_gives_the_records_of_scattered_positions_in_their_order(void **state)
{
	const struct text t = text_of("a", 300, 0, 1);
	struct cache *c = store_open(*state);
	uint8_t want[40], out[MOST_TOKENS * 40];
	int32_t positions[MOST_TOKENS], n;
	struct cache_view *v;
	struct err err;

	must_store(c, &t);
	v = view_of(c, &t, 300);

	for (int32_t stride = 1; stride < 300; stride += 7)
		for (int g = 0; g < N_GROUPS; g++) {
			n = 0;
			for (int32_t p = stride / 2; p < 300; p += stride)
				positions[n++] = p;
			assert_int_equal(cache_view_gather(v, g, positions, n, out, NULL, &err), 0);
			for (int32_t i = 0; i < n; i++) {
				text_compute(want, &t, g, positions[i], 1);
				assert_memory_equal(out + i * record_bytes[g], want, (size_t)record_bytes[g]);
			}
		}
	assert_int_equal(cache_view_gather(v, 0, NULL, 0, out, NULL, &err), 0);

	cache_view_close(v);
	cache_close(c);
}

/* b begins like a, and has a place of its own only from token 128 on; of a run that a view uses in part, only those
 * checksums are read. */
static void a_view_covers_spans_of_others_and_parts_of_runs(void **state)
{
	const struct text a = text_of("a", 320, 130, 1), b = text_of("b", 256, 130, 2);
	struct cache *c = store_open(*state);
	struct cache_view *whole, *part;

	must_store(c, &a);
	must_store(c, &b);
	whole = view_of(c, &b, 256);
	part = view_of(c, &a, 64);

	assert_gives(whole, &b, 0, 256);
	assert_gives(part, &a, 0, 64);
	assert_int_equal(counted(part).sum_bytes, (N_GROUPS * 64 + N_INDEX_LAYERS) * 8);
	assert_int_equal(counted(whole).sum_bytes, 4 * (N_GROUPS * 64 + N_INDEX_LAYERS) * 8);

	cache_view_close(whole);
	cache_view_close(part);
	cache_close(c);
}

/* A span that was computed again lies behind its successors. */
static void places_need_not_be_in_the_order_of_positions(void **state)
{
	const struct text t = text_of("a", 200, 0, 1);
	const int32_t positions[] = {0, 63, 64, 127, 128, 199};
	struct cache *c = store_open(*state);
	uint8_t want[24], out[6 * 24];
	struct span_key keys[4];
	struct cache_view *v;
	struct err err;

	must_store(c, &t);
	keys_of(keys, t.ids, t.n);
	assert_int_equal(cache_quarantine(c, &keys[0], &err), 0);
	must_store(c, &t);
	v = view_of(c, &t, 200);

	assert_gives(v, &t, 0, 200);
	assert_int_equal(cache_view_gather(v, 0, positions, 6, out, NULL, &err), 0);
	for (int i = 0; i < 6; i++) {
		text_compute(want, &t, 0, positions[i], 1);
		assert_memory_equal(out + i * 24, want, 24);
	}
	assert_memory_equal(cache_view_key(v, 63), &keys[0], sizeof keys[0]);
	assert_memory_equal(cache_view_key(v, 199), &keys[3], sizeof keys[3]);

	cache_view_close(v);
	cache_close(c);
}

/* Nothing of a span that the view lacks is given, whatever else is asked for with it, and it says where. */
static void assert_hole(struct cache_view *v, int32_t first, int32_t n, enum err_code code)
{
	uint8_t out[MOST_TOKENS * 40];
	const int32_t positions[] = {first - 1, first, first + n - 1};
	int64_t bad = -1;
	struct err err;

	for (int g = 0; g < N_GROUPS; g++) {
		assert_int_equal(cache_view_records(v, g, first - 10, n + 10, out, &bad, &err), -1);
		assert_true(err.code == code && bad == first);
		assert_int_equal(cache_view_gather(v, g, positions, 3, out, &bad, &err), -1);
		assert_true(err.code == code && bad == first);
	}
	for (int i = 0; i < N_INDEX_LAYERS; i++) {
		assert_int_equal(cache_view_index_keys(v, i, first - 64, n + 64, out, &bad, &err), -1);
		assert_true(err.code == code && bad == first);
	}
}

static void a_view_has_a_hole_where_a_span_is_missing_or_known_to_be_damaged(void **state)
{
	const struct text t = text_of("a", 256, 0, 1);
	struct cache *c = store_open(*state);
	struct span_key keys[4];
	struct cache_view *v;
	int64_t whole;
	struct err err;

	assert_int_equal(cache_view_open(&v, c, text_identity, t.ids, 256, &whole, &err), 0);
	assert_int_equal(whole, 0);
	cache_view_close(v);
	must_store(c, &t);
	keys_of(keys, t.ids, t.n);
	assert_int_equal(cache_quarantine(c, &keys[2], &err), 0);

	assert_int_equal(cache_view_open(&v, c, text_identity, t.ids, 256, &whole, &err), 0);

	assert_int_equal(whole, 128);
	assert_gives(v, &t, 0, 128);
	assert_gives(v, &t, 192, 64);
	assert_hole(v, 128, 64, ERR_NOT_FOUND);
	assert_memory_equal(cache_view_key(v, 130), &keys[2], sizeof keys[2]);
	cache_view_close(v);
	cache_close(c);
}

static void a_view_has_a_hole_where_checksums_are_gone(void **state)
{
	const struct text t = text_of("a", 256, 0, 1);
	struct cache *c = store_open(*state);
	char *path = temp_path(*state, "segment-000001");
	struct cache_view *v;
	int64_t whole;
	struct err err;

	must_store(c, &t); /* two runs of 128 tokens: the first has 3 KiB and 5 KiB of records, in one page and two */
	cache_close(c);
	assert_int_equal(truncate(path, 6 * 4096 + 100), 0); /* all of the first run but half of the second's page */
	c = store_open(*state);

	assert_int_equal(cache_view_open(&v, c, text_identity, t.ids, 256, &whole, &err), 0);

	assert_int_equal(whole, 128);
	assert_gives(v, &t, 0, 128);
	assert_hole(v, 128, 64, ERR_DAMAGED);
	cache_view_close(v);
	assert_int_equal(truncate(path, 4096), 0);
	cache_close(c);
	c = store_open(*state);
	assert_int_equal(cache_view_open(&v, c, text_identity, t.ids, 256, &whole, &err), 0);
	assert_int_equal(whole, 0);
	cache_view_close(v);
	cache_close(c);
	free(path);
}

static struct fake_io fake;

/* Every span of these tokens is a hole. */
static void assert_lost(struct cache_view *v, int32_t first, int32_t end, enum err_code code)
{
	uint8_t out[40];
	int64_t bad = -1;
	struct err err;

	for (int32_t t = first; t < end; t += CACHE_SPAN_TOKENS) {
		assert_int_equal(cache_view_records(v, 1, t + 3, 1, out, &bad, &err), -1);
		assert_true(err.code == code && bad == t);
	}
}

/* Three runs, and one read for the checksums of each: whichever fails, the others are read. */
static void what_is_behind_checksums_that_a_drive_cannot_read_is_there(void **state)
{
	static const struct io_options options = {.backend = &fake_io_backend, .backend_state = &fake};
	const struct text t = text_of("a", 300, 0, 1);
	static const int32_t ends[] = {0, 128, 256, 300};
	struct cache *c = store_open(*state);
	bool hit[3] = {false};

	must_store(c, &t);
	cache_close(c);
	for (int nth = 1; nth <= 3; nth++) {
		struct cache_view *v;
		int64_t whole;
		struct err err;
		int run = 0;

		fake = (struct fake_io){.fault = FAKE_ERROR, .error = EIO, .nth = nth};
		c = store_open_with(*state, &options);
		assert_int_equal(cache_view_open(&v, c, text_identity, t.ids, 300, &whole, &err), 0);
		while (ends[run] != whole)
			assert_true(++run < 3);
		hit[run] = true;
		for (int i = 0; i < 3; i++)
			if (i != run)
				assert_gives(v, &t, ends[i], ends[i + 1] - ends[i]);
		assert_lost(v, ends[run], ends[run + 1], ERR_IO);
		if (run)
			assert_hole(v, ends[run], 44, ERR_IO);
		cache_view_close(v);
		cache_close(c);
	}
	assert_true(hit[0] && hit[1] && hit[2]);
}

/* A drive does not say for which of many bytes it failed. */
static void a_large_read_of_checksums_that_fails_is_tried_again_by_halves(void **state)
{
	static const struct io_options options = {.backend = &fake_io_backend, .backend_state = &fake};
	const struct text t = text_of("a", 500, 0, 1); /* 8 spans in one run: 1,040 sums, a page for each half */
	struct cache *c = store_open(*state);
	struct cache_view *v;
	int64_t whole;
	int32_t from;
	struct err err;

	assert_int_equal(run_text(c, &t, N_PARTS, &from, &err), 0);
	cache_close(c);
	fake = (struct fake_io){.fault = FAKE_ERROR, .error = EIO, .nth = 1};
	c = store_open_with(*state, &options);
	assert_int_equal(cache_view_open(&v, c, text_identity, t.ids, 500, &whole, &err), 0);
	assert_int_equal(fake.n_begun, 3);
	assert_int_equal(whole, 500);
	assert_gives(v, &t, 0, 500);
	cache_view_close(v);
	cache_close(c);
	/* And for good. */
	fake = (struct fake_io){.fault = FAKE_ERROR, .error = EIO, .nth = 1, .then_on = true};
	c = store_open_with(*state, &options);
	assert_int_equal(cache_view_open(&v, c, text_identity, t.ids, 500, &whole, &err), 0);
	assert_int_equal(fake.n_begun, 4); /* one half ended with the other one */
	assert_int_equal(whole, 0);
	assert_lost(v, 0, 500, ERR_IO);
	cache_view_close(v);
	cache_close(c);
}

/* Reads of a part, by record, by span, and by range; whether it was found to be damaged at `bad`. */
static int n_found(struct cache_view *v, int64_t want_bad)
{
	uint8_t out[MOST_TOKENS * 40];
	int32_t all[128];
	int n = 0;

	for (int32_t i = 0; i < 128; i++)
		all[i] = i;
	for (int part = 0; part < N_GROUPS + N_INDEX_LAYERS; part++) {
		struct err err = {0};
		int64_t bad;
		int rc = part < N_GROUPS ? cache_view_gather(v, part, all, 128, out, &bad, &err)
					 : cache_view_index_keys(v, part - N_GROUPS, 0, 128, out, &bad, &err);

		if (!rc)
			continue;
		assert_int_equal(err.code, ERR_DAMAGED);
		assert_non_null(strstr(err.text, "checksum of "));
		assert_int_equal(bad, want_bad);
		n++;
	}
	return n;
}

static void every_flipped_bit_is_found_and_says_which_span_it_is_in(void **state)
{
	const struct text t = text_of("a", 128, 0, 1);
	const struct {
		int64_t at, bytes, span_bytes;
	} parts[] = {{0, 128 * 24, 64 * 24}, {4096, 128 * 40, 64 * 40}, {3 * 4096, 128 * 8, 64 * 8},
		     {4 * 4096, 128 * 8, 64 * 8}};
	struct cache *c = store_open(*state);
	char *path = temp_path(*state, "segment-000001");
	struct cache_view *v;
	int fd;

	must_store(c, &t);
	v = view_of(c, &t, 128);
	fd = open(path, O_RDWR);
	assert_int_equal(n_found(v, 0), 0);
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
		for (int64_t byte = 0; byte < parts[i].bytes; byte += i ? 3 : 1) {
			flip(fd, parts[i].at + byte, (int)(byte % 8));
			assert_int_equal(n_found(v, byte / parts[i].span_bytes * 64), 1);
			flip(fd, parts[i].at + byte, (int)(byte % 8));
		}
	/* The view holds the checksums as they were: one that is flipped now is the next view's to find. */
	flip(fd, 5 * 4096 + 3, 1);
	assert_int_equal(n_found(v, 0), 0);
	cache_view_close(v);
	v = view_of(c, &t, 128);
	assert_int_equal(n_found(v, 0), 1);
	cache_view_close(v);
	close(fd);
	free(path);
	cache_close(c);
}

static void records_in_each_others_place_are_found(void **state)
{
	const struct text t = text_of("a", 128, 0, 1);
	const int32_t positions[] = {3, 70};
	struct cache *c = store_open(*state);
	char *path = temp_path(*state, "segment-000001");
	uint8_t record[2][24], out[2 * 24];
	struct cache_view *v;
	struct err err;
	int64_t bad;
	int fd;

	must_store(c, &t);
	v = view_of(c, &t, 128);
	fd = open(path, O_RDWR);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pread(fd, record[i], 24, positions[i] * 24), 24);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pwrite(fd, record[!i], 24, positions[i] * 24), 24);

	assert_int_equal(cache_view_gather(v, 0, positions, 2, out, &bad, &err), -1);

	assert_int_equal(err.code, ERR_DAMAGED);
	assert_int_equal(bad, 0);
	assert_int_equal(cache_view_gather(v, 0, positions + 1, 1, out, &bad, &err), -1);
	assert_int_equal(bad, 64);
	assert_non_null(strstr(err.text, "latents of group 0"));
	close(fd);
	free(path);
	cache_view_close(v);
	cache_close(c);
}

/* Records of half a page: what lies two pages apart is worth a read of its own. */
static void neighbours_become_one_read_and_what_is_apart_stays_apart(void **state)
{
	enum { RECORD = 2048, N = 128 };
	static const uint32_t bytes[1] = {RECORD};
	static const struct cache_layout layout = {.n_groups = 1, .record_bytes = bytes};
	static uint8_t records[N * RECORD], out[N * RECORD];
	const int32_t near[] = {4, 5, 6, 8}, apart[] = {4, 8, 12};
	const struct text t = text_of("a", N, 0, 1);
	struct cache *c = store_open(*state);
	struct cache_view_stats before, after;
	struct cache_view *v;
	struct err err;

	for (size_t i = 0; i < sizeof records; i++)
		records[i] = (uint8_t)(i * 31 >> 3);
	assert_int_equal(cache_write_spans(c, "a", &layout, text_identity, NULL, t.ids, N, (const uint8_t *[]){records},
					   NULL, &err), 0);
	v = view_of(c, &t, N);

	before = counted(v);
	assert_int_equal(cache_view_gather(v, 0, near, 4, out, NULL, &err), 0);
	after = counted(v);
	assert_int_equal(after.n_reads - before.n_reads, 1);
	assert_int_equal(after.record_bytes - before.record_bytes, 4 * RECORD);
	assert_in_range(after.read_bytes - before.read_bytes, 5 * RECORD, 5 * RECORD + 2 * 4096);
	assert_memory_equal(out + 3 * RECORD, records + 8 * RECORD, RECORD);

	before = after;
	assert_int_equal(cache_view_gather(v, 0, apart, 3, out, NULL, &err), 0);
	after = counted(v);
	assert_int_equal(after.n_reads - before.n_reads, 3);
	assert_in_range(after.read_bytes - before.read_bytes, 3 * RECORD, 3 * (RECORD + 4096));
	assert_memory_equal(out + 2 * RECORD, records + 12 * RECORD, RECORD);

	cache_view_close(v);
	cache_close(c);
}

static void a_part_that_the_layout_lacks_is_damage_and_not_read(void **state)
{
	const struct text t = text_of("a", 64, 0, 1);
	struct cache *c = store_open(*state);
	uint8_t out[64 * 40];
	struct cache_view *v;
	struct err err;
	int64_t bad;

	must_store(c, &t);
	v = view_of(c, &t, 64);

	assert_int_equal(cache_view_records(v, N_GROUPS, 0, 64, out, &bad, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_int_equal(cache_view_index_keys(v, N_INDEX_LAYERS, 0, 64, out, &bad, &err), -1);
	assert_non_null(strstr(err.text, "has no place for index keys of full layer 2"));

	cache_view_close(v);
	cache_close(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		CASE(a_view_gives_any_range_of_what_was_written),
		CASE(keys_are_taken_once_each_whoever_wrote_their_spans),
		CASE(who_does_not_take_a_key_says_which),
		CASE(a_gather_gives_the_records_of_scattered_positions_in_their_order),
		CASE(a_view_covers_spans_of_others_and_parts_of_runs),
		CASE(places_need_not_be_in_the_order_of_positions),
		CASE(a_view_has_a_hole_where_a_span_is_missing_or_known_to_be_damaged),
		CASE(a_view_has_a_hole_where_checksums_are_gone),
		CASE(what_is_behind_checksums_that_a_drive_cannot_read_is_there),
		CASE(a_large_read_of_checksums_that_fails_is_tried_again_by_halves),
		cmocka_unit_test_setup_teardown(every_flipped_bit_is_found_and_says_which_span_it_is_in, set_up_in_memory,
						tear_down),
		CASE(records_in_each_others_place_are_found),
		CASE(neighbours_become_one_read_and_what_is_apart_stays_apart),
		CASE(a_part_that_the_layout_lacks_is_damage_and_not_read),
#undef CASE
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
