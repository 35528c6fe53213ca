/*
 * The engine: the same cases on io_uring, on the pool of threads and on the fake disk, which are to differ in speed
 * alone. What only a fake disk can do wrong is in test_io_faults.c.
 */
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "config/clock.h"
#include "config/mem.h"
#include "tests/support/fake_io.h"
#include "tests/support/temp_dir.h"

enum { PIECE = 16384, BYTES = 40 * PIECE + 1234, DEPTH = 8 };

enum kind { RING, PREAD, FAKE };

struct fixture {
	enum kind kind;
	char *dir;
	unsigned char *bytes;           /* [BYTES], what the file holds */
	struct io_file direct, cached;  /* the same file, opened either way */
	struct io *io;                  /* NULL: the system gives no ring */
	struct fake_io *fake;
};

static struct io *engine(struct fixture *x, int depth, size_t piece_bytes)
{
	struct io_options opt = {.purpose = "tests", .depth = depth, .piece_bytes = piece_bytes, .n_threads = DEPTH};
	struct io *io = NULL;
	struct err err;

	opt.choice = x->kind == RING ? IO_URING : IO_PREAD;
	if (x->kind == FAKE) {
		opt.backend = &fake_io_backend;
		opt.backend_state = x->fake;
	}
	if (io_new(&io, &opt, &err)) {
		if (x->kind != RING)
			fail_msg("%s", err.text);
		print_message("skipped: %s\n", err.text);
	}
	return io;
}

static int set_up(void **state)
{
	struct fixture *x = xcalloc(1, sizeof *x);
	struct err err;
	char *path;

	x->kind = *(enum kind *)*state;
	x->dir = temp_dir_new();
	x->bytes = xmalloc(BYTES, 1);
	for (int i = 0; i < BYTES; i++)
		x->bytes[i] = (unsigned char)((i * 2654435761u) >> 13);
	path = temp_file(x->dir, "file", x->bytes, BYTES);
	if (io_open(&x->direct, path, IO_OPEN_DIRECT, &err) || io_open(&x->cached, path, 0, &err))
		fail_msg("%s", err.text);
	free(path);
	x->fake = xcalloc(1, sizeof *x->fake);
	x->io = engine(x, DEPTH, PIECE);
	*state = x;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *x = *state;

	io_free(x->io);
	free(x->fake);
	io_close(&x->direct);
	io_close(&x->cached);
	free(x->bytes);
	temp_dir_free(x->dir);
	free(x);
	return 0;
}

static struct fixture *fixture_of(void **state)
{
	struct fixture *x = *state;

	if (!x->io)
		skip();
	return x;
}

static void *memory_of(size_t bytes)
{
	struct err err;
	void *p = io_buffer_new(bytes, "a test's buffer", &err);

	assert_non_null(p);
	memset(p, 0xee, bytes);
	return p;
}

static void submit(struct io *io, struct io_request *r)
{
	io_submit(io, &r, 1);
}

static void assert_ok(const struct io_request *r)
{
	struct err err;

	if (io_request_check(r, &err))
		fail_msg("%s", err.text);
}

static void assert_holds(const struct fixture *x, const struct io_request *r, size_t bytes)
{
	if (memcmp(r->buffer, x->bytes + r->offset, bytes))
		fail_msg("%zu bytes at %llu are others", bytes, (unsigned long long)r->offset);
}

static void every_request_comes_back_once_with_its_bytes(void **state)
{
	enum { N = 300, MOST = 3 * PIECE };
	struct fixture *x = fixture_of(state);
	struct io_request r[N], *list[N], *back;
	char *memory = memory_of((size_t)N * (MOST + 4096));
	struct io_stats stats;
	int n_back = 0, seen[N] = {0};
	int64_t bytes = 0, n = 0;

	srand(7);
	for (int i = 0; i < N; i++) {
		const struct io_file *f = i % 3 ? &x->direct : &x->cached;
		uint64_t offset = (uint64_t)rand() % (BYTES - MOST) / f->align * f->align;
		size_t length = f->align + (size_t)rand() % (MOST - f->align);

		r[i] = (struct io_request){
			.op = IO_READ, .class = (enum io_class)(rand() % N_IO_CLASSES), .file = f, .offset = offset,
			.bytes = length / f->align * f->align, .buffer = memory + (size_t)i * (MOST + 4096), .tag = &seen[i],
		};
		list[i] = &r[i];
		bytes += (int64_t)r[i].bytes;
	}
	io_submit(x->io, list, N);
	while ((back = io_wait(x->io, -1))) {
		assert_ok(back);
		assert_holds(x, back, back->bytes);
		assert_int_equal(++*(int *)back->tag, 1);
		n_back++;
	}
	assert_int_equal(n_back, N);
	assert_null(io_poll(x->io));
	io_stats(x->io, &stats);
	for (int c = 0; c < N_IO_CLASSES; c++) {
		bytes -= stats.of[c].bytes;
		n += stats.of[c].n_requests;
		assert_int_equal(stats.of[c].n_pending, 0);
		assert_int_equal(stats.of[c].n_failed + stats.of[c].n_cancelled + stats.of[c].n_retries, 0);
	}
	assert_int_equal(bytes, 0);
	assert_int_equal(n, N);
	assert_int_equal(stats.n_in_flight, 0);
	free(memory);
}

/* The enclosing read of any range begins and ends on blocks, at the file's odd end too. */
static void any_range_can_be_had_from_the_aligned_read_around_it(void **state)
{
	struct fixture *x = fixture_of(state);
	const int64_t a = x->direct.align;
	const int64_t offsets[] = {0, 1, 3, 255, a - 1, a, a + 1, 2 * a - 1, PIECE - 1, PIECE, PIECE + 1, BYTES - 2 * a - 1,
				   BYTES - a, BYTES - 1233, BYTES - 3, BYTES - 1};
	const int64_t lengths[] = {1, 2, 3, 77, a - 1, a, a + 1, 2 * a + 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5, BYTES};
	char *memory = memory_of(BYTES + 2 * 65536);
	int n = 0;

	for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++)
		for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
			size_t wanted = (size_t)(lengths[k] < BYTES - offsets[i] ? lengths[k] : BYTES - offsets[i]);
			struct io_aligned around = io_align((uint64_t)offsets[i], wanted, x->direct.align);
			struct io_request r = {
				.op = IO_READ, .class = IO_CLASS_KV, .file = &x->direct, .offset = around.offset,
				.bytes = around.bytes, .at_least = around.skip + wanted, .buffer = memory,
			};
			struct err err;

			memset(memory, 0xee, around.bytes);
			submit(x->io, &r);
			if (io_finish(x->io, &r, &err))
				fail_msg("%lld + %zu: %s", (long long)offsets[i], wanted, err.text);
			if (memcmp(memory + around.skip, x->bytes + offsets[i], wanted))
				fail_msg("%lld + %zu: other bytes", (long long)offsets[i], wanted);
			n++;
		}
	assert_int_equal(n, 16 * 13);
	free(memory);
}

/* A file system without a disk: opened for direct access it is read through the cache, to the same rules. */
static void a_file_in_memory_is_read_and_written_like_any_other(void **state)
{
	struct fixture *x = fixture_of(state);
	char *path = xasprintf("/dev/shm/quire-test-%ld", (long)getpid()), *memory = memory_of(BYTES + 4096);
	struct io_request r = {.class = IO_CLASS_WRITE, .bytes = 5 * PIECE, .buffer = memory};
	struct io_stats stats;
	struct io_file f;
	struct err err;

	if (io_open(&f, path, IO_OPEN_WRITE | IO_OPEN_CREATE | IO_OPEN_DIRECT, &err)) {
		print_message("skipped: no file system in memory: %s\n", err.text);
		free(path);
		free(memory);
		skip();
	}
	unlink(path);
	io_use_file(x->io, &f);
	memcpy(memory, x->bytes, 5 * PIECE);
	r.file = &f;
	for (r.op = IO_WRITE; ; r.op = IO_READ) {
		submit(x->io, &r);
		if (io_finish(x->io, &r, &err))
			fail_msg("%s", err.text);
		assert_holds(x, &r, 5 * PIECE);
		if (r.op == IO_READ)
			break;
		memset(memory, 0, 5 * PIECE);
	}
	io_stats(x->io, &stats);
	assert_int_equal(stats.n_files_cached, f.direct_fd < 0);
	assert_int_equal(stats.of[IO_CLASS_WRITE].n_retries, 0);
	io_forget_file(x->io, &f);
	io_close(&f);
	free(path);
	free(memory);
}

/* Requests on a file opened without direct access need no alignment. */
static void odd_ranges_come_as_they_are_through_the_cache(void **state)
{
	struct fixture *x = fixture_of(state);
	unsigned char memory[64];
	struct err err;

	for (uint64_t offset = 4060; offset < 4100; offset++)
		for (size_t bytes = 1; bytes < 50; bytes += 7) {
			assert_int_equal(io_read_wait(x->io, &x->cached, memory, offset, bytes, &err), 0);
			assert_memory_equal(memory, x->bytes + offset, bytes);
		}
}

static void the_file_s_end_is_an_error_that_names_the_byte(void **state)
{
	struct fixture *x = fixture_of(state);
	char *memory = memory_of(8 * PIECE), *path = x->direct.path, text[400];
	uint64_t from = 38 * PIECE;
	struct err err = {0};

	/* Two whole pieces, one that the end cuts, and some behind it: whichever fails first, the end is where it is. */
	for (int cached = 0; cached < 2; cached++) {
		assert_int_equal(io_read_wait(x->io, cached ? &x->cached : &x->direct, memory, from, 8 * PIECE, &err), -1);
		snprintf(text, sizeof text, "read %s: the file ends at byte %d, %d bytes short of the range %d + %d; it is "
			 "truncated or was changed while it was read", path, BYTES, (int)from + 8 * PIECE - BYTES, (int)from,
			 8 * PIECE);
		assert_string_equal(err.text, text);
		assert_int_equal(err.code, ERR_IO);
	}
	/* Right at the end and far behind it. */
	assert_int_equal(io_read_wait(x->io, &x->cached, memory, BYTES, 1, &err), -1);
	assert_non_null(strstr(err.text, "the file ends at byte 656594, 1 bytes short"));
	assert_int_equal(io_read_wait(x->io, &x->direct, memory, 50 * PIECE, PIECE, &err), -1);
	assert_non_null(strstr(err.text, "the file ends"));
	/* No file goes so far. */
	assert_int_equal(io_read_wait(x->io, &x->cached, memory, INT64_MAX - 3, 3, &err), -1);
	assert_non_null(strstr(err.text, "the file ends"));
	assert_int_equal(io_read_wait(x->io, &x->cached, memory, INT64_MAX - 3, 4, &err), -1);
	assert_non_null(strstr(err.text, "beyond any file"));
	assert_int_equal(err.code, ERR_FORMAT);
	assert_int_equal(io_read_wait(x->io, &x->cached, memory, UINT64_MAX, 5, &err), -1);
	assert_non_null(strstr(err.text, "beyond any file"));
	/* Nothing at all is no error anywhere. */
	assert_int_equal(io_read_wait(x->io, &x->cached, memory, BYTES + 5, 0, &err), 0);
	free(memory);
}

static void what_is_at_least_needed_decides_at_the_end(void **state)
{
	struct fixture *x = fixture_of(state);
	char *memory = memory_of(6 * PIECE);
	struct io_request r = {
		.op = IO_READ, .class = IO_CLASS_EXPERT, .file = &x->direct, .offset = 38 * PIECE, .bytes = 6 * PIECE,
		.buffer = memory, .at_least = BYTES - 38 * PIECE,
	};
	struct err err = {0};

	submit(x->io, &r);
	assert_int_equal(io_finish(x->io, &r, &err), 0);
	assert_holds(x, &r, BYTES - 38 * PIECE);
	r.at_least++;
	submit(x->io, &r);
	assert_int_equal(io_finish(x->io, &r, &err), -1);
	assert_non_null(strstr(err.text, "1 bytes short"));
	free(memory);
}

static void a_system_s_error_is_told_with_path_and_byte(void **state)
{
	struct fixture *x = fixture_of(state);
	struct io_file f = x->cached; /* opened for reading alone */
	char memory[16] = {0}, text[400];
	struct io_request r = {
		.op = IO_WRITE, .class = IO_CLASS_WRITE, .file = &f, .offset = 4711, .bytes = sizeof memory, .buffer = memory
	};
	struct err err;

	submit(x->io, &r);
	assert_int_equal(io_finish(x->io, &r, &err), -1);
	snprintf(text, sizeof text, "write %s at byte 4711: Bad file descriptor", f.path);
	assert_string_equal(err.text, text);
	/* The request can be used again. */
	r.op = IO_READ;
	submit(x->io, &r);
	assert_int_equal(io_finish(x->io, &r, &err), 0);
	assert_holds(x, &r, r.bytes);
}

static void what_was_written_and_synced_is_read_back(void **state)
{
	enum { N = 12 };
	struct fixture *x = fixture_of(state);
	char *path = temp_path(x->dir, "segment"), *memory = memory_of(BYTES), *back = memory_of(3 * PIECE);
	struct io_request r[N], *list[N], sync = {.op = IO_SYNC, .class = IO_CLASS_WRITE}, *one;
	struct io_file f;
	struct err err;

	memcpy(memory, x->bytes, BYTES);
	for (int direct = 0; direct < 2; direct++) {
		assert_int_equal(io_open(&f, path, IO_OPEN_WRITE | IO_OPEN_CREATE | (direct ? IO_OPEN_DIRECT : 0), &err), 0);
		assert_int_equal(io_preallocate(&f, 0, N * 3 * PIECE, &err), 0);
		for (int i = 0; i < N; i++) {
			r[i] = (struct io_request){
				.op = IO_WRITE, .class = IO_CLASS_WRITE, .file = &f, .offset = (uint64_t)i * 3 * PIECE,
				.bytes = 3 * PIECE, .buffer = memory + i * PIECE,
			};
			list[i] = &r[(i * 5) % N]; /* in some order; 5 and 12 share no divisor */
		}
		io_submit(x->io, list, N);
		for (int i = 0; i < N; i++)
			assert_ok(one = io_wait(x->io, -1));
		sync.file = &f;
		submit(x->io, &sync);
		assert_int_equal(io_finish(x->io, &sync, &err), 0);
		for (int i = 0; i < N; i++) {
			assert_int_equal(io_read_wait(x->io, &f, back, (uint64_t)i * 3 * PIECE, 3 * PIECE, &err), 0);
			assert_memory_equal(back, memory + i * PIECE, 3 * PIECE);
			/* And by the other way. */
			assert_int_equal(io_read_full(&f, back, (uint64_t)i * 3 * PIECE, 3 * PIECE, &err), 0);
			assert_memory_equal(back, memory + i * PIECE, 3 * PIECE);
		}
		io_close(&f);
		unlink(path);
	}
	free(path);
	free(memory);
	free(back);
}

/* Many large requests, most of which wait: some are cancelled before they begin, some while they are under way. */
static void a_cancelled_request_comes_back_once_and_is_left_alone_after(void **state)
{
	enum { N = 60, LARGE = 4 * PIECE };
	struct fixture *x = fixture_of(state);
	struct io_request r[N], *list[N], *back;
	char *memory = memory_of((size_t)N * LARGE);
	int n_back = 0, n_cancelled = 0, n_untouched = 0;
	struct io_stats stats;

	x->fake->hold = 1; /* so that the fake disk has something under way */
	for (int i = 0; i < N; i++) {
		r[i] = (struct io_request){
			.op = IO_READ, .class = IO_CLASS_EXPERT, .file = &x->direct, .offset = (uint64_t)(i % 30) * PIECE,
			.bytes = LARGE, .buffer = memory + (size_t)i * LARGE,
		};
		list[i] = &r[i];
	}
	io_submit(x->io, list, N);
	for (int i = 0; i < N; i += 2) {
		io_cancel(x->io, &r[i]);
		io_cancel(x->io, &r[i]); /* once more changes nothing */
	}
	while ((back = io_wait(x->io, -1))) {
		int i = (int)(back - r);

		n_back++;
		if (back->status == IO_CANCELLED) {
			struct err err;

			assert_int_equal(i % 2, 0);
			assert_int_equal(io_request_check(back, &err), -1);
			assert_int_equal(err.code, ERR_CANCELLED);
			n_cancelled++;
			n_untouched += back->issued == 0;
			memset(back->buffer, 0x55, LARGE); /* ours again */
			back->tag = back;
		} else {
			assert_ok(back);
			assert_holds(x, back, LARGE);
		}
	}
	assert_int_equal(n_back, N);
	assert_true(n_cancelled >= N / 2 - DEPTH);
	assert_true(n_untouched >= N / 2 - DEPTH);
	for (int i = 0; i < N; i++)
		for (int k = 0; r[i].tag && k < LARGE; k++)
			assert_int_equal(((unsigned char *)r[i].buffer)[k], 0x55);
	io_cancel(x->io, &r[1]); /* done already */
	assert_int_equal(r[1].status, IO_OK);
	io_stats(x->io, &stats);
	assert_int_equal(stats.of[IO_CLASS_EXPERT].n_cancelled, n_cancelled);
	assert_int_equal(stats.of[IO_CLASS_EXPERT].n_pending, 0);
	free(memory);
}

static void an_engine_may_go_while_requests_are_pending(void **state)
{
	enum { N = 40 };
	struct fixture *x = fixture_of(state);
	struct io_request r[N], *list[N];
	char *memory = memory_of((size_t)N * PIECE);

	for (int i = 0; i < N; i++) {
		r[i] = (struct io_request){
			.op = IO_READ, .class = IO_CLASS_PREFETCH, .file = &x->direct, .offset = (uint64_t)i * PIECE,
			.bytes = PIECE, .buffer = memory + (size_t)i * PIECE,
		};
		list[i] = &r[i];
	}
	io_submit(x->io, list, N);
	io_free(x->io);
	x->io = NULL;
	for (int i = 0; i < N; i++)
		assert_int_not_equal(r[i].status, IO_PENDING);
	free(memory); /* nobody writes there any more, or a sanitizer says so */
}

static void one_request_can_be_waited_for_among_many(void **state)
{
	enum { N = 30 };
	struct fixture *x = fixture_of(state);
	struct io_request r[N], *list[N], *back;
	char *memory = memory_of((size_t)N * PIECE);
	int n_back = 0;
	struct err err;

	for (int i = 0; i < N; i++) {
		r[i] = (struct io_request){
			.op = IO_READ, .class = IO_CLASS_EXPERT, .file = &x->cached, .offset = (uint64_t)i * 997,
			.bytes = PIECE, .buffer = memory + (size_t)i * PIECE,
		};
		list[i] = &r[i];
	}
	io_submit(x->io, list, N);
	assert_int_equal(io_finish(x->io, &r[17], &err), 0);
	assert_holds(x, &r[17], PIECE);
	while ((back = io_wait(x->io, 10000))) {
		assert_ptr_not_equal(back, &r[17]);
		n_back++;
	}
	assert_int_equal(n_back, N - 1);
	free(memory);
}

static void what_has_come_of_a_read_is_told_while_the_rest_comes(void **state)
{
	enum { PIECES = 30 };
	struct fixture *x = fixture_of(state);
	struct io_request r = {.op = IO_READ, .class = IO_CLASS_EXPERT, .file = &x->cached, .offset = 997,
			       .bytes = PIECES * PIECE, .buffer = memory_of(PIECES * PIECE)};
	size_t arrived = 0, before;
	int n_steps = 0;

	x->fake->hold = 1;
	submit(x->io, &r);
	while (!io_poll(x->io)) {
		before = arrived;
		arrived = io_arrived(x->io, &r);
		assert_true(arrived >= before && arrived <= r.bytes && (arrived % PIECE == 0 || arrived == r.bytes));
		assert_holds(x, &r, arrived);
		n_steps += arrived > before;
		io_wait_piece(x->io);
	}
	assert_ok(&r);
	assert_int_equal(io_arrived(x->io, &r), r.bytes);
	if (x->kind == FAKE)
		assert_true(n_steps > 1);
	free(r.buffer);
}

/* A piece that comes before those in front of it is no more of the beginning. */
static void what_has_come_is_counted_from_the_front(void **state)
{
	struct fixture *x = fixture_of(state);
	struct io_request r = {.op = IO_READ, .class = IO_CLASS_EXPERT, .file = &x->cached, .bytes = DEPTH * PIECE,
			       .buffer = memory_of(DEPTH * PIECE)};

	x->fake->fault = FAKE_ERROR;
	x->fake->error = EINTR; /* so it begins once more */
	x->fake->nth = 3;
	x->fake->hold = 1;
	submit(x->io, &r);
	assert_int_equal(io_arrived(x->io, &r), 0);
	io_wait_piece(x->io);
	assert_int_equal(r.n_in_flight, 1);
	assert_int_equal(io_arrived(x->io, &r), 2 * PIECE);
	io_cancel(x->io, &r);
	assert_int_equal(io_arrived(x->io, &r), 0);
	assert_ptr_equal(io_wait(x->io, -1), &r);
	assert_int_equal(io_arrived(x->io, &r), 0);
	free(r.buffer);
}

static void a_waiter_in_poll_sees_every_completion(void **state)
{
	enum { N = 100 };
	struct fixture *x = fixture_of(state);
	struct io_request r[N], *list[N], *back;
	char *memory = memory_of((size_t)N * 2 * PIECE);
	int n_back = 0;
	struct err err;

	if (x->kind == FAKE) { /* it has no descriptor, and says so */
		assert_int_equal(io_fd(x->io, &err), -1);
		free(memory);
		return;
	}
	for (int i = 0; i < N; i++) {
		r[i] = (struct io_request){
			.op = IO_READ, .class = IO_CLASS_KV, .file = &x->direct, .offset = (uint64_t)(i % 30) * PIECE,
			.bytes = 2 * PIECE, .buffer = memory + (size_t)i * 2 * PIECE,
		};
		list[i] = &r[i];
	}
	io_submit(x->io, list, N);
	for (;;) {
		struct pollfd p = {.fd = io_fd(x->io, &err), .events = POLLIN};
		int64_t start = clock_now_ms();

		while ((back = io_poll(x->io))) {
			assert_ok(back);
			n_back++;
		}
		if (n_back == N)
			break;
		assert_int_equal(poll(&p, 1, 60000), 1);
		/* poll looks once more when its time is over: that would not be woken, but found out late. */
		assert_true(clock_now_ms() - start < 50000);
	}
	free(memory);
}

/* Far more completions at once than the engine takes at a time, and none of them the last of its request. */
static void a_waiter_in_poll_is_woken_for_what_was_left(void **state)
{
	struct fixture *x = fixture_of(state);
	char *memory = memory_of(BYTES + 4096);
	struct io_request r = {
		.op = IO_READ, .class = IO_CLASS_KV, .file = &x->direct, .bytes = BYTES / 4096 * 4096, .buffer = memory
	};
	struct err err;

	if (x->kind != FAKE) {
		io_free(x->io);
		x->io = engine(x, 256, 4096);
		assert_true(io_fd(x->io, &err) >= 0);
		submit(x->io, &r);
		usleep(200000); /* most likely all has come by now; the outcome is the same if not */
		while (!io_poll(x->io)) {
			struct pollfd p = {.fd = io_fd(x->io, &err), .events = POLLIN};
			int64_t start = clock_now_ms();

			assert_int_equal(poll(&p, 1, 60000), 1);
			assert_true(clock_now_ms() - start < 50000);
		}
		assert_ok(&r);
		assert_holds(x, &r, r.bytes);
	}
	free(memory);
}

static void waiting_ends_when_nothing_is_pending_or_the_time_is_over(void **state)
{
	struct fixture *x = fixture_of(state);
	char *memory = memory_of(PIECE);
	struct io_request r = {
		.op = IO_READ, .class = IO_CLASS_KV, .file = &x->direct, .bytes = PIECE, .buffer = memory
	};

	assert_null(io_wait(x->io, -1));
	assert_null(io_wait(x->io, 100000));
	if (x->kind == FAKE) {
		x->fake->hold = 5;
		submit(x->io, &r);
		assert_null(io_poll(x->io));
		assert_null(io_wait(x->io, 0));
		assert_int_equal(r.status, IO_PENDING);
	} else {
		submit(x->io, &r);
	}
	assert_ptr_equal(io_wait(x->io, -1), &r);
	assert_null(io_wait(x->io, -1));
	free(memory);
}

/* A descriptor's number comes back for another file; what the kernel was told of the first must not serve the
 * second. */
static void a_registered_file_is_never_taken_for_another(void **state)
{
	struct fixture *x = fixture_of(state);
	char *path = temp_path(x->dir, "other"), *memory = memory_of(PIECE);
	struct io_file a, b;
	struct io_stats stats;
	struct err err;
	int number;

	free(temp_file(x->dir, "other", x->bytes + 5 * PIECE, PIECE));
	assert_int_equal(io_open(&a, x->direct.path, 0, &err), 0);
	io_use_file(x->io, &a);
	io_use_file(x->io, &x->direct);
	io_stats(x->io, &stats);
	assert_int_equal(stats.n_files, 2);
	assert_int_equal(stats.n_files_cached, x->direct.direct_fd < 0);
	assert_true(stats.n_files_registered == (x->kind == RING ? 2 : 0));
	assert_int_equal(io_read_wait(x->io, &a, memory, 0, PIECE, &err), 0);
	assert_memory_equal(memory, x->bytes, PIECE);
	number = a.fd;
	io_close(&a); /* unforgotten, against the rules */
	assert_int_equal(io_open(&b, path, 0, &err), 0);
	assert_int_equal(b.fd, number);
	assert_int_equal(io_read_wait(x->io, &b, memory, 0, PIECE, &err), 0);
	assert_memory_equal(memory, x->bytes + 5 * PIECE, PIECE);
	io_use_file(x->io, &b);
	assert_int_equal(io_read_wait(x->io, &b, memory, 0, PIECE, &err), 0);
	assert_memory_equal(memory, x->bytes + 5 * PIECE, PIECE);
	io_forget_file(x->io, &b);
	io_forget_file(x->io, &x->direct);
	assert_int_equal(io_read_wait(x->io, &b, memory, 0, PIECE, &err), 0);
	assert_int_equal(io_read_wait(x->io, &x->direct, memory, PIECE, PIECE, &err), 0);
	assert_memory_equal(memory, x->bytes + PIECE, PIECE);
	io_stats(x->io, &stats);
	assert_int_equal(stats.n_files_registered, 0);
	io_close(&b);
	free(path);
	free(memory);
}

static void a_registered_buffer_gets_the_same_bytes(void **state)
{
	struct fixture *x = fixture_of(state);
	char *memory = memory_of(8 * PIECE);
	struct io_request r = {
		.op = IO_READ, .class = IO_CLASS_KV, .file = &x->direct, .bytes = 3 * PIECE, .buffer = memory + 2 * PIECE
	};
	struct io_stats stats;
	struct err err;

	io_use_buffer(x->io, memory, 4 * PIECE);
	io_stats(x->io, &stats);
	assert_true(x->kind == RING ? stats.registered_bytes == 4 * PIECE || stats.registered_bytes == 0
				    : stats.registered_bytes == 0);
	/* Two pieces lie in what is registered, the third behind it. */
	submit(x->io, &r);
	assert_int_equal(io_finish(x->io, &r, &err), 0);
	assert_holds(x, &r, r.bytes);
	assert_int_equal((unsigned char)memory[2 * PIECE - 1], 0xee);
	assert_int_equal((unsigned char)memory[5 * PIECE], 0xee);
	io_forget_buffer(x->io, memory);
	io_stats(x->io, &stats);
	assert_int_equal(stats.registered_bytes, 0);
	r.offset = PIECE;
	submit(x->io, &r);
	assert_int_equal(io_finish(x->io, &r, &err), 0);
	assert_holds(x, &r, r.bytes);
	free(memory);
}

/* In small pages it would be, which the allocation before it touched one by one. */
static void a_large_buffer_has_no_pages_of_an_allocation_before_it(void **state)
{
	enum { BUFFER = 4 << 20, PAGES = BUFFER / 4096 };
	unsigned char there[PAGES];
	char *before, *behind, *buffer;
	struct err err;
	int n_there = 0;

	(void)state;
	mallopt(M_MMAP_THRESHOLD, 4 * BUFFER);
	before = xmalloc(3 * BUFFER, 1);
	behind = xmalloc(64, 1); /* so that the heap does not end there, and give it back */
	memset(before, 1, 3 * BUFFER);
	free(before);
	buffer = io_buffer_new(BUFFER, "a test's buffer", &err);
	mallopt(M_MMAP_THRESHOLD, 128 << 10);
	assert_non_null(buffer);
	assert_int_equal(mincore(buffer, BUFFER, there), 0);
	for (int i = 0; i < PAGES; i++)
		n_there += there[i] & 1;
	assert_int_equal(n_there, 0);
	free(buffer);
	free(behind);
}

static enum kind kinds[] = {RING, PREAD, FAKE};

#define ON_EACH(fn)                                                                                          \
	{"io_uring: " #fn, fn, set_up, tear_down, &kinds[RING]},                                             \
	{"pread: " #fn, fn, set_up, tear_down, &kinds[PREAD]},                                               \
	{"fake: " #fn, fn, set_up, tear_down, &kinds[FAKE]}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_EACH(every_request_comes_back_once_with_its_bytes),
		ON_EACH(any_range_can_be_had_from_the_aligned_read_around_it),
		ON_EACH(a_file_in_memory_is_read_and_written_like_any_other),
		ON_EACH(odd_ranges_come_as_they_are_through_the_cache),
		ON_EACH(the_file_s_end_is_an_error_that_names_the_byte),
		ON_EACH(what_is_at_least_needed_decides_at_the_end),
		ON_EACH(a_system_s_error_is_told_with_path_and_byte),
		ON_EACH(what_was_written_and_synced_is_read_back),
		ON_EACH(a_cancelled_request_comes_back_once_and_is_left_alone_after),
		ON_EACH(an_engine_may_go_while_requests_are_pending),
		ON_EACH(one_request_can_be_waited_for_among_many),
		ON_EACH(what_has_come_of_a_read_is_told_while_the_rest_comes),
		{"fake: what_has_come_is_counted_from_the_front", what_has_come_is_counted_from_the_front, set_up, tear_down,
		 &kinds[FAKE]},
		ON_EACH(a_waiter_in_poll_sees_every_completion),
		ON_EACH(a_waiter_in_poll_is_woken_for_what_was_left),
		ON_EACH(waiting_ends_when_nothing_is_pending_or_the_time_is_over),
		ON_EACH(a_registered_file_is_never_taken_for_another),
		ON_EACH(a_registered_buffer_gets_the_same_bytes),
		cmocka_unit_test(a_large_buffer_has_no_pages_of_an_allocation_before_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
