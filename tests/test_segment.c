#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cache/segment.h"
#include "cache/view.h"
#include "tests/support/as_user.h"
#include "tests/support/fake_io.h"
#include "tests/support/small_disk.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

static int set_up(void **state)
{
	*state = temp_dir_new();
	return 0;
}

static int tear_down(void **state)
{
	temp_dir_free(*state);
	return 0;
}

static struct fake_io fake;
static const struct io_options fake_options = {.backend = &fake_io_backend, .backend_state = &fake, .depth = 8};

static const struct {
	const char *name;
	enum fake_fault fault;
	int error;
	bool harmless; /* what comes back is right all the same */
} faults[] = {
	{"EIO", FAKE_ERROR, EIO, false}, {"ENOSPC", FAKE_ERROR, ENOSPC, false}, {"EINTR", FAKE_ERROR, EINTR, true},
	{"short", FAKE_SHORT, 0, true}, {"nothing", FAKE_ZERO, 0, false}, {"flipped", FAKE_FLIP, 0, false},
	{"too long", FAKE_LONG, 0, false}, {"twice", FAKE_TWICE, 0, false}, {"a stranger's", FAKE_STRANGER, 0, false},
	{"late", FAKE_LATE, 0, true},
};
enum { N_FAULTS = sizeof faults / sizeof *faults };

static void spoil(int fault, int nth)
{
	fake = (struct fake_io){.fault = faults[fault].fault, .error = faults[fault].error, .nth = nth, .backwards = nth % 2};
}

/* All that a view gives of t, by every way of reading; 1 when some of it was refused. Wrong bytes end the test. */
static int read_all(struct cache *c, const struct text *t, const char *what, int nth)
{
	uint8_t want[MOST_TOKENS * 40], out[MOST_TOKENS * 40];
	int32_t odd[MOST_TOKENS / 2];
	struct err err = {0};
	int64_t whole = 0, bad;
	struct cache_view *v;
	int refused;

	if (cache_view_open(&v, c, text_identity, t->ids, t->n, &whole, &err))
		return 1;
	refused = whole < t->n;
	for (int32_t i = 0; i < t->n / 2; i++)
		odd[i] = 2 * i + 1;
	for (int part = 0; part < N_GROUPS + N_INDEX_LAYERS; part++) {
		size_t bytes = part == 0 ? 24 : part == 1 ? 40 : KEY_BYTES;
		int rc = part < N_GROUPS ? cache_view_records(v, part, 0, whole, out, &bad, &err)
					 : cache_view_index_keys(v, part - N_GROUPS, 0, whole, out, &bad, &err);

		refused |= rc != 0;
		text_compute(want, t, part, 0, (int32_t)whole);
		if (!rc && memcmp(out, want, (size_t)whole * bytes))
			fail_msg("operation %d came %s, and part %d has wrong bytes", nth, what, part);
		if (part >= N_GROUPS)
			continue;
		rc = cache_view_gather(v, part, odd, whole / 2, out, &bad, &err);
		refused |= rc != 0;
		for (int64_t i = 0; !rc && i < whole / 2; i++)
			if (memcmp(out + (size_t)i * bytes, want + (size_t)odd[i] * bytes, bytes))
				fail_msg("operation %d came %s, and record %d has wrong bytes", nth, what, odd[i]);
	}
	cache_view_close(v);
	return refused;
}

static void every_fault_of_every_read_is_detected_and_never_gives_wrong_bytes(void **state)
{
	const struct text t = text_of("a", 300, 0, 1);
	struct cache *c;
	int n_reads;

	fake = (struct fake_io){0};
	c = store_open_with(*state, &fake_options);
	must_store(c, &t);
	cache_close(c);
	fake = (struct fake_io){0};
	c = store_open_with(*state, &fake_options);
	assert_int_equal(read_all(c, &t, "whole", 0), 0);
	n_reads = fake.n_begun;
	cache_close(c);
	assert_in_range(n_reads, 6, 1000);

	for (int fault = 0; fault < N_FAULTS; fault++)
		for (int nth = 1; nth <= n_reads; nth++) {
			int refused;

			spoil(fault, nth);
			c = store_open_with(*state, &fake_options);
			refused = read_all(c, &t, faults[fault].name, nth);
			/* A flip may be in what alignment adds; it is then nobody's. */
			if (faults[fault].fault != FAKE_FLIP && faults[fault].fault != FAKE_TWICE &&
			    faults[fault].fault != FAKE_STRANGER)
				assert_int_equal(refused, !faults[fault].harmless);
			cache_close(c);
		}
	fake = (struct fake_io){0};
	c = store_open_with(*state, &fake_options);
	assert_int_equal(read_all(c, &t, "whole", 0), 0); /* nothing was thrown away for it */
	cache_close(c);
}

static void every_fault_of_every_write_leaves_what_can_be_written_again(void **state)
{
	const struct text t = text_of("a", 300, 0, 1);
	int n_writes = 0;

	for (int fault = 0; fault < N_FAULTS; fault++)
		for (int nth = 1; nth <= n_writes || !n_writes; nth++) {
			struct err err = {0};
			char name[32], *dir;
			struct cache *c;
			int32_t known;
			int rc;

			snprintf(name, sizeof name, "store-%d-%d", fault, n_writes ? nth : 0);
			dir = temp_path(*state, name);
			spoil(fault, n_writes ? nth : 0);
			c = store_open_with(dir, &fake_options);
			rc = store_text(c, &t, &err);
			if (!n_writes) {
				n_writes = fake.n_begun;
				assert_in_range(n_writes, 5, 1000);
				assert_int_equal(rc, 0);
				nth = 0;
			} else if (faults[fault].fault == FAKE_ERROR && !faults[fault].harmless) {
				assert_int_equal(rc, -1);
				assert_non_null(strstr(err.text, strerror(faults[fault].error)));
				assert_non_null(strstr(err.text, "segment-000001 at byte "));
			} else if (faults[fault].harmless) {
				assert_int_equal(rc, 0);
			}
			cache_close(c);

			/* What the index says is there is there, and the rest can be written. */
			fake = (struct fake_io){0};
			c = store_open_with(dir, &fake_options);
			known = (int32_t)cache_known_prefix(c, text_identity, t.ids, t.n);
			assert_int_equal(known == t.n, rc == 0);
			assert_int_equal(n_damaged(c, t.ids, known), 0);
			must_store(c, &t);
			assert_int_equal(read_all(c, &t, faults[fault].name, nth), 0);
			cache_close(c);
			free(dir);
		}
}

/* A disk that answers in another order than it was asked, with many reads in flight. */
static void reads_that_come_back_in_any_order_are_each_their_own(void **state)
{
	const struct text t = text_of("a", 512, 0, 1);
	struct cache *c;

	fake = (struct fake_io){.backwards = true, .hold = 2};
	c = store_open_with(*state, &fake_options);
	must_store(c, &t);
	assert_int_equal(read_all(c, &t, "backwards", 0), 0);
	cache_close(c);
}

enum { EXTENT = 3 << 20 };

/* Large and small reads of one extent, against what was written; 0 when all is right. */
static int write_and_read(const char *dir, const struct io_options *io)
{
	static const int64_t ranges[][2] = {
		{0, 1}, {511, 2}, {512, 512}, {4095, 4098}, {1 << 20, 1 << 20}, {12345, 2 << 20}, {EXTENT - 1, 1},
		{0, EXTENT}
	};
	uint8_t *data = aligned_alloc(EXTENT_ALIGN, EXTENT), *out = malloc(EXTENT);
	struct segments *s = NULL;
	struct extent x;
	struct err err = {0};
	int rc = 0;

	for (int i = 0; i < EXTENT; i++)
		data[i] = (uint8_t)((i * 2654435761u) >> 24);
	rc = segments_open(&s, dir, io, &err) || segments_reserve(s, EXTENT, &x, &err) ||
	     segments_write(s, x, 0, data, EXTENT, &err) || segments_sync(s, &err) ? 1 : 0;
	for (size_t i = 0; !rc && i < sizeof ranges / sizeof *ranges; i++) {
		memset(out, 0x55, EXTENT);
		rc = segments_read(s, x, ranges[i][0], out, ranges[i][1], &err) ? 2 : 0;
		rc = !rc && memcmp(out, data + ranges[i][0], (size_t)ranges[i][1]) ? 3 : rc;
		rc = !rc && ranges[i][1] < EXTENT && out[ranges[i][1]] != 0x55 ? 4 : rc;
	}
	if (rc)
		fprintf(stderr, "%s\n", err.text);
	segments_close(s);
	free(data);
	free(out);
	return rc;
}

static void bytes_come_back_by_io_uring_and_by_a_pool_of_threads(void **state)
{
	const struct io_options uring = {.choice = IO_AUTO}, pool = {.choice = IO_PREAD};
	const struct io_options narrow = {.choice = IO_PREAD, .n_threads = 1};

	assert_int_equal(write_and_read(*state, &uring), 0);
	assert_int_equal(write_and_read(*state, &pool), 0);
	assert_int_equal(write_and_read(*state, &narrow), 0);
	assert_int_equal(write_and_read(*state, NULL), 0);
}

/* 8 MiB of lockable memory is what Debian gives an ordinary user. */
static int with_little_locked_memory(void *dir)
{
	const struct rlimit locked = {8 << 20, 8 << 20};

	return setrlimit(RLIMIT_MEMLOCK, &locked) ? 10 : write_and_read(dir, NULL);
}

static void an_ordinary_user_with_little_lockable_memory_reads_and_writes(void **state)
{
	give_to_user(*state);
	assert_int_equal(as_user(with_little_locked_memory, *state), 0);
}

enum { NOBODY_MAY_MOUNT = 77 };

static int on_a_disk_in_memory(void *dir)
{
	struct segments *s;
	struct extent x;
	struct err err;
	int rc;

	if (small_disk_mount(dir, 8 << 20))
		return NOBODY_MAY_MOUNT;
	rc = write_and_read(dir, NULL);
	if (rc)
		return rc;
	/* More than the disk has. */
	if (segments_open(&s, dir, NULL, &err))
		return 20;
	rc = segments_reserve(s, 4 * EXTENT, &x, &err) == 0 ? 21 : err.code != ERR_IO ? 22
	     : !strstr(err.text, "free space there") ? 23 : 0;
	segments_close(s);
	return rc;
}

static void a_file_system_in_memory_works_and_a_full_one_says_so(void **state)
{
	int rc;

	give_to_user(*state);
	rc = as_user(on_a_disk_in_memory, *state);
	if (rc == NOBODY_MAY_MOUNT) {
		print_message("skipped: this machine lets nobody mount a tmpfs\n");
		skip();
	}
	assert_int_equal(rc, 0);
}

struct seen {
	int n, stop_at;
};

static int see(void *ctx, size_t i, const uint8_t *bytes, struct err *err)
{
	struct seen *s = ctx;

	(void)bytes;
	return ++s->n == s->stop_at ? err_set(err, ERR_FAILED, "read %zu was not liked", i) : 0;
}

static void a_callers_no_ends_a_list_of_reads_and_the_next_list_works(void **state)
{
	struct segment_read reads[200];
	struct seen seen = {.stop_at = 10};
	struct segments *s;
	struct extent x;
	size_t failed;
	struct err err;

	assert_int_equal(segments_open(&s, *state, NULL, &err), 0);
	assert_int_equal(segments_reserve(s, EXTENT, &x, &err), 0);
	for (int i = 0; i < 200; i++)
		reads[i] = (struct segment_read){x, i * 8192, 100 + i};

	assert_int_equal(segments_read_many(s, reads, 200, see, &seen, &failed, &err), -1);
	assert_int_equal(err.code, ERR_FAILED);
	assert_int_equal(seen.n, 10);
	seen = (struct seen){0};
	assert_int_equal(segments_read_many(s, reads, 200, see, &seen, &failed, &err), 0);
	assert_int_equal(seen.n, 200);

	reads[150].at = EXTENT; /* as a damaged row would have it */
	seen = (struct seen){0};
	assert_int_equal(segments_read_many(s, reads, 200, see, &seen, &failed, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_int_equal(failed, 150);
	segments_close(s);
}

/* Of a disk that gives back at once all that is under way. */
struct begun {
	int n_looked_at, least; /* least: reads that had begun and were not looked at, the one in hand among them */
};

static int count_begun(void *ctx, size_t i, const uint8_t *bytes, struct err *err)
{
	struct begun *b = ctx;
	int n = fake.n_begun - b->n_looked_at++;

	(void)bytes;
	(void)err;
	if (i < 128 && n < b->least)
		b->least = n;
	return 0;
}

static void when_all_large_reads_come_back_at_once_the_next_ones_begin_before_the_first_is_looked_at(void **state)
{
	const struct io_options opt = {.backend = &fake_io_backend, .backend_state = &fake, .depth = 64};
	struct begun begun = {.least = 256};
	struct segment_read reads[256];
	struct segments *s;
	struct extent x;
	size_t failed;
	struct err err;

	fake = (struct fake_io){0};
	assert_int_equal(segments_open(&s, *state, &opt, &err), 0);
	assert_int_equal(segments_reserve(s, EXTENT, &x, &err), 0);
	for (int i = 0; i < 256; i++)
		reads[i] = (struct segment_read){x, i % 8 * SEGMENT_READ_GOOD, SEGMENT_READ_GOOD};
	assert_int_equal(segments_read_many(s, reads, 256, count_begun, &begun, &failed, &err), 0);
	assert_int_equal(begun.n_looked_at, 256);
	assert_int_equal(begun.least, 128);
	segments_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		CASE(every_fault_of_every_read_is_detected_and_never_gives_wrong_bytes),
		CASE(every_fault_of_every_write_leaves_what_can_be_written_again),
		CASE(reads_that_come_back_in_any_order_are_each_their_own),
		CASE(bytes_come_back_by_io_uring_and_by_a_pool_of_threads),
		CASE(an_ordinary_user_with_little_lockable_memory_reads_and_writes),
		CASE(a_file_system_in_memory_works_and_a_full_one_says_so),
		CASE(a_callers_no_ends_a_list_of_reads_and_the_next_list_works),
		CASE(when_all_large_reads_come_back_at_once_the_next_ones_begin_before_the_first_is_looked_at),
#undef CASE
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
