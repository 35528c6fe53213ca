/*
 * Everything that a disk can do wrong, at every operation there is: an answer is either the bytes of the file or an
 * error that says where, and every request comes back once. And the systems that refuse what the engine would like.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

#include "config/mem.h"
#include "tests/support/as_user.h"
#include "tests/support/fake_io.h"
#include "tests/support/no_rings.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

/* Four requests of three pieces: twelve operations. */
enum { PIECE = 4096, N_REQUESTS = 4, N_PIECES = 3, REQUEST = N_PIECES * PIECE, N_OPERATIONS = N_REQUESTS * N_PIECES,
       BYTES = N_REQUESTS * REQUEST + 1000 };

struct fixture {
	char *dir;
	unsigned char *bytes;            /* [BYTES], what the file holds */
	struct io_file direct, cached, out;
	struct io *io;
	struct fake_io *fake;
	struct io_request r[N_REQUESTS];
	unsigned char *memory;           /* [N_REQUESTS * REQUEST] */
	int n_back;
};

static void new_engine_on(struct fixture *x, int depth, int n_drives)
{
	struct io_options opt = {
		.purpose = "tests", .depth = depth, .n_drives = n_drives, .piece_bytes = PIECE, .backend = &fake_io_backend,
		.backend_state = x->fake
	};
	struct err err;

	io_free(x->io);
	memset(x->fake, 0, sizeof *x->fake);
	if (io_new(&x->io, &opt, &err))
		fail_msg("%s", err.text);
}

static void new_engine(struct fixture *x, int depth)
{
	new_engine_on(x, depth, 1);
}

static int set_up(void **state)
{
	struct fixture *x = xcalloc(1, sizeof *x);
	struct err err;
	char *path, *out;

	x->dir = temp_dir_new();
	x->bytes = xmalloc(BYTES, 1);
	for (int i = 0; i < BYTES; i++)
		x->bytes[i] = (unsigned char)((i * 2654435761u) >> 13);
	path = temp_file(x->dir, "file", x->bytes, BYTES);
	out = temp_path(x->dir, "out");
	x->memory = io_buffer_new((size_t)N_REQUESTS * REQUEST, "a test's buffer", &err);
	if (!x->memory || io_open(&x->direct, path, IO_OPEN_DIRECT, &err) || io_open(&x->cached, path, 0, &err) ||
	    io_open(&x->out, out, IO_OPEN_WRITE | IO_OPEN_CREATE | IO_OPEN_DIRECT, &err))
		fail_msg("%s", err.text);
	free(path);
	free(out);
	x->fake = xcalloc(1, sizeof *x->fake);
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
	io_close(&x->out);
	free(x->memory);
	free(x->bytes);
	temp_dir_free(x->dir);
	free(x);
	return 0;
}

/* Submit all requests at once and take them back: each once. */
static void run(struct fixture *x, enum io_op op, const struct io_file *f)
{
	struct io_request *list[N_REQUESTS], *back;
	int seen[N_REQUESTS] = {0};

	for (int i = 0; i < N_REQUESTS; i++) {
		x->r[i] = (struct io_request){
			.op = op, .class = op == IO_WRITE ? IO_CLASS_WRITE : IO_CLASS_KV, .file = f,
			.offset = (uint64_t)i * REQUEST, .bytes = REQUEST, .buffer = x->memory + i * REQUEST, .tag = &seen[i],
		};
		list[i] = &x->r[i];
	}
	if (op == IO_WRITE)
		memcpy(x->memory, x->bytes, (size_t)N_REQUESTS * REQUEST);
	else
		memset(x->memory, 0xee, (size_t)N_REQUESTS * REQUEST);
	io_submit(x->io, list, N_REQUESTS);
	for (x->n_back = 0; (back = io_wait(x->io, -1)); x->n_back++) {
		assert_int_equal(++*(int *)back->tag, 1);
		/* While the caller is busy, the disk is too. */
		assert_int_equal(x->fake->n_not_run, 0);
	}
	assert_int_equal(x->n_back, N_REQUESTS);
}

/* Requests that say they went well did; returns how many. */
static int n_well(struct fixture *x, enum io_op op)
{
	unsigned char *back = xmalloc(REQUEST, 1);
	int n = 0;

	for (int i = 0; i < N_REQUESTS; i++) {
		const unsigned char *got = x->r[i].buffer;
		struct err err;

		if (x->r[i].status != IO_OK)
			continue;
		n++;
		if (op == IO_WRITE) {
			if (io_read_full(&x->out, back, x->r[i].offset, REQUEST, &err))
				fail_msg("%s", err.text);
			got = back;
		}
		if (memcmp(got, x->bytes + x->r[i].offset, REQUEST))
			fail_msg("request %d went well, with other bytes", i);
	}
	free(back);
	return n;
}

static const struct io_request *the_failed_one(const struct fixture *x)
{
	const struct io_request *failed = NULL;

	for (int i = 0; i < N_REQUESTS; i++)
		if (x->r[i].status == IO_FAILED) {
			assert_null(failed);
			failed = &x->r[i];
		}
	assert_non_null(failed);
	return failed;
}

static void assert_says(const struct io_request *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void assert_says(const struct io_request *r, const char *format, ...)
{
	struct err err = {0};
	char what[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof what, format, args);
	va_end(args);
	assert_int_equal(io_request_check(r, &err), -1);
	if (!strstr(err.text, what))
		fail_msg("\"%s\" does not say \"%s\"", err.text, what);
}

static struct io_class_stats stats_of(const struct fixture *x, enum io_class class)
{
	struct io_stats s;

	io_stats(x->io, &s);
	return s.of[class];
}

static const int depths[] = {1, 3, 32};
#define EACH_DEPTH(d) (size_t d = 0; d < sizeof depths / sizeof *depths; d++)

/* Error EIO at the nth operation, for each n, backwards or not. */
static void a_failed_operation_fails_its_request_alone_and_says_where(void **state)
{
	struct fixture *x = *state;

	for EACH_DEPTH(d)
		for (int n = 1; n <= N_OPERATIONS + 1; n++)
			for (int op = IO_READ; op <= IO_WRITE; op++)
				for (int backwards = 0; backwards < 2; backwards++) {
					const struct io_file *f = op == IO_WRITE ? &x->out : &x->direct;

					new_engine(x, depths[d]);
					x->fake->fault = FAKE_ERROR;
					x->fake->error = EIO;
					x->fake->nth = n;
					x->fake->backwards = backwards;
					run(x, (enum io_op)op, f);
					if (x->fake->n_begun < n) { /* nothing was spoiled */
						assert_int_equal(n_well(x, (enum io_op)op), N_REQUESTS);
						continue;
					}
					assert_int_equal(n_well(x, (enum io_op)op), N_REQUESTS - 1);
					assert_says(the_failed_one(x), "%s %s at byte %llu: Input/output error",
						    op == IO_WRITE ? "write" : "read", f->path,
						    (unsigned long long)x->fake->begun[n - 1].offset);
					/* One at a time: what follows it in its request is not even begun. */
					if (depths[d] == 1)
						assert_int_equal(x->fake->n_begun, N_OPERATIONS - (N_PIECES - 1 - (n - 1) % N_PIECES));
				}
}

/* Of two failures in one request the one at the lower byte is told, whichever came first. */
static void the_first_byte_that_failed_is_told(void **state)
{
	struct fixture *x = *state;

	for (int backwards = 0; backwards < 2; backwards++) {
		new_engine(x, 32);
		x->fake->fault = FAKE_ERROR;
		x->fake->error = EIO;
		x->fake->nth = 2; /* the second piece of the first request, and all that follow */
		x->fake->then_on = true;
		x->fake->backwards = backwards;
		run(x, IO_READ, &x->direct);
		for (int i = 0; i < N_REQUESTS; i++)
			assert_says(&x->r[i], "at byte %d: Input/output error", i ? i * REQUEST : PIECE);
		assert_int_equal(stats_of(x, IO_CLASS_KV).n_failed, N_REQUESTS);
	}
}

static void an_interrupted_operation_is_tried_again(void **state)
{
	static const int numbers[] = {EINTR, EAGAIN};
	struct fixture *x = *state;

	for EACH_DEPTH(d)
		for (int n = 1; n <= N_OPERATIONS; n++)
			for (int op = IO_READ; op <= IO_WRITE; op++)
				for (int i = 0; i < 2; i++) {
					new_engine(x, depths[d]);
					x->fake->fault = FAKE_ERROR;
					x->fake->error = numbers[i];
					x->fake->nth = n;
					run(x, (enum io_op)op, op == IO_WRITE ? &x->out : &x->direct);
					assert_int_equal(n_well(x, (enum io_op)op), N_REQUESTS);
					assert_int_equal(stats_of(x, x->r[0].class).n_retries, 1);
					assert_int_equal(x->fake->n_begun, N_OPERATIONS + 1);
				}
}

/* It is not tried for ever: after a second it is an error. */
static void an_operation_that_is_always_put_off_is_an_error(void **state)
{
	struct fixture *x = *state;
	struct io_request r = {.op = IO_READ, .file = &x->cached, .offset = 7, .bytes = 100, .buffer = x->memory};
	struct err err;

	new_engine(x, 4);
	x->fake->fault = FAKE_ERROR;
	x->fake->error = EAGAIN;
	x->fake->nth = 1;
	x->fake->then_on = true;
	io_submit(x->io, (struct io_request *[]){&r}, 1);
	assert_int_equal(io_finish(x->io, &r, &err), -1);
	assert_says(&r, "at byte 7: Resource temporarily unavailable");
}

static void a_short_operation_goes_on_where_it_ended(void **state)
{
	struct fixture *x = *state;
	struct err err;

	for EACH_DEPTH(d)
		for (int n = 1; n <= N_OPERATIONS; n++)
			for (int op = IO_READ; op <= IO_WRITE; op++)
				for (int backwards = 0; backwards < 2; backwards++) {
					new_engine(x, depths[d]);
					x->fake->fault = FAKE_SHORT;
					x->fake->nth = n;
					x->fake->backwards = backwards;
					run(x, (enum io_op)op, op == IO_WRITE ? &x->out : &x->direct);
					assert_int_equal(n_well(x, (enum io_op)op), N_REQUESTS);
					assert_int_equal(stats_of(x, x->r[0].class).n_continued, 1);
				}
	/* Inside a block, from where a direct read cannot go on: the block is read again. */
	new_engine(x, 3);
	x->fake->fault = FAKE_SHORT;
	x->fake->nth = 1;
	assert_int_equal(io_read_wait(x->io, &x->direct, x->memory, 0, x->direct.align, &err), 0);
	assert_memory_equal(x->memory, x->bytes, x->direct.align);
	assert_int_equal(x->fake->begun[1].offset, x->direct.direct_fd < 0 ? x->direct.align / 2 : 0);
	/* Every one of them, down to single bytes. */
	new_engine(x, 3);
	x->fake->fault = FAKE_SHORT;
	x->fake->nth = 1;
	x->fake->then_on = true;
	run(x, IO_READ, &x->cached);
	assert_int_equal(n_well(x, IO_READ), N_REQUESTS);
	assert_true(stats_of(x, IO_CLASS_KV).n_continued >= N_OPERATIONS * 12); /* 4096 is halved twelve times */
}

static void an_operation_that_moves_nothing_is_the_end_of_the_file_or_an_error(void **state)
{
	struct fixture *x = *state;

	for (int n = 1; n <= N_OPERATIONS; n++)
		for (int op = IO_READ; op <= IO_WRITE; op++) {
			unsigned long long at;

			new_engine(x, 3);
			x->fake->fault = FAKE_ZERO;
			x->fake->nth = n;
			run(x, (enum io_op)op, op == IO_WRITE ? &x->out : &x->cached);
			assert_int_equal(n_well(x, (enum io_op)op), N_REQUESTS - 1);
			at = x->fake->begun[n - 1].offset;
			if (op == IO_READ)
				assert_says(the_failed_one(x), "the file ends at byte %llu, ", at);
			else
				assert_says(the_failed_one(x), "at byte %llu: the system takes no bytes there", at);
		}
}

/* A bit that the disk turned is nothing the engine can know: this is for the checksums of its callers, and shows that
 * the fake disk turns one, and one alone. */
static void a_flipped_bit_arrives(void **state)
{
	struct fixture *x = *state;

	for (int n = 1; n <= N_OPERATIONS; n++) {
		int n_other = 0;

		new_engine(x, 32);
		x->fake->fault = FAKE_FLIP;
		x->fake->nth = n;
		run(x, IO_READ, &x->direct);
		for (int i = 0; i < N_REQUESTS * REQUEST; i++)
			n_other += __builtin_popcount(x->memory[i] ^ x->bytes[i]);
		assert_int_equal(n_other, 1);
		assert_int_equal(stats_of(x, IO_CLASS_KV).n_failed, 0);
	}
}

static void more_bytes_than_asked_for_are_not_believed(void **state)
{
	struct fixture *x = *state;

	for (int n = 1; n <= N_OPERATIONS; n++) {
		new_engine(x, 3);
		x->fake->fault = FAKE_LONG;
		x->fake->nth = n;
		run(x, IO_READ, &x->direct);
		assert_int_equal(n_well(x, IO_READ), N_REQUESTS - 1);
		assert_says(the_failed_one(x), "moved more bytes than were asked for");
	}
}

/* A completion that nobody waits for means that none can be believed: everything fails, nothing hangs. */
static void a_completion_out_of_nowhere_stops_the_engine(void **state)
{
	struct fixture *x = *state;

	/* Not at the last one: what comes after it stays unseen until somebody asks again. */
	for EACH_DEPTH(d)
		for (int n = 1; n < N_OPERATIONS; n++)
			for (int fault = FAKE_TWICE; fault <= FAKE_STRANGER; fault++) {
				struct io_stats s;
				struct err err;
				char byte;

				new_engine(x, depths[d]);
				x->fake->fault = (enum fake_fault)fault;
				x->fake->nth = n;
				run(x, IO_READ, &x->direct);
				assert_true(n_well(x, IO_READ) < N_REQUESTS);
				assert_int_equal(io_read_wait(x->io, &x->cached, &byte, 0, 1, &err), -1);
				assert_non_null(strstr(err.text, "completed an operation that nobody had begun"));
				io_stats(x->io, &s);
				assert_int_equal(s.n_strange, 1);
			}
}

static void late_and_backward_completions_change_nothing(void **state)
{
	struct fixture *x = *state;

	for EACH_DEPTH(d)
		for (int n = 1; n <= N_OPERATIONS; n++)
			for (int op = IO_READ; op <= IO_WRITE; op++) {
				new_engine(x, depths[d]);
				x->fake->fault = FAKE_LATE;
				x->fake->nth = n;
				x->fake->backwards = n % 2;
				x->fake->hold = n % 3;
				run(x, (enum io_op)op, op == IO_WRITE ? &x->out : &x->direct);
				assert_int_equal(n_well(x, (enum io_op)op), N_REQUESTS);
				assert_int_equal(x->fake->n_begun, N_OPERATIONS);
			}
}

static void a_failed_sync_is_told_once_and_not_tried_again(void **state)
{
	struct fixture *x = *state;
	struct io_request sync = {.op = IO_SYNC, .class = IO_CLASS_WRITE, .file = &x->out};
	struct err err;

	new_engine(x, 4);
	x->fake->fault = FAKE_ERROR;
	x->fake->error = EIO;
	x->fake->nth = 1;
	io_submit(x->io, (struct io_request *[]){&sync}, 1);
	assert_int_equal(io_finish(x->io, &sync, &err), -1);
	assert_says(&sync, "sync %s: Input/output error", x->out.path);
	assert_int_equal(x->fake->n_begun, 1);
}

static void a_full_disk_says_what_to_do(void **state)
{
	struct fixture *x = *state;

	new_engine(x, 3);
	x->fake->fault = FAKE_ERROR;
	x->fake->error = ENOSPC;
	x->fake->nth = 5;
	run(x, IO_WRITE, &x->out);
	assert_says(the_failed_one(x), "at byte %d: No space left on device; free space there and try again", 4 * PIECE);
}

/* With one operation in flight the order of beginnings is the order of ranks, whatever was asked for first. */
static void the_higher_class_goes_first(void **state)
{
	static const enum io_class classes[N_REQUESTS] = {IO_CLASS_PREFETCH, IO_CLASS_EXPERT, IO_CLASS_WRITE, IO_CLASS_KV};
	struct fixture *x = *state;
	struct io_request *list[N_REQUESTS];

	for (int raised = 0; raised < 2; raised++) {
		/* The prefetch begins, as nothing else is there; then the others come. Raised to their height, it goes on
		 * before those who came later. */
		static const int order[2][N_OPERATIONS] = {
			{0, 3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0}, {0, 0, 0, 3, 3, 3, 2, 2, 2, 1, 1, 1}
		};

		new_engine(x, 1);
		for (int i = 0; i < N_REQUESTS; i++) {
			x->r[i] = (struct io_request){
				.op = IO_READ, .class = classes[i], .file = &x->direct, .offset = (uint64_t)i * REQUEST,
				.bytes = REQUEST, .buffer = x->memory + i * REQUEST,
			};
			list[i] = &x->r[i];
		}
		x->fake->hold = 1;
		io_submit(x->io, list, 1);
		if (raised) {
			io_raise(x->io, list[0], IO_CLASS_KV);
			io_raise(x->io, list[0], IO_CLASS_EXPERT); /* down again: no */
		}
		io_submit(x->io, list + 1, N_REQUESTS - 1);
		while (io_wait(x->io, -1))
			;
		assert_int_equal(x->fake->n_begun, N_OPERATIONS);
		for (int i = 0; i < N_OPERATIONS; i++)
			assert_int_equal(x->fake->begun[i].offset / REQUEST, order[raised][i]);
		assert_int_equal(stats_of(x, IO_CLASS_KV).n_pending, 0);
		assert_int_equal(stats_of(x, IO_CLASS_KV).n_requests, raised ? 2 : 1);
	}
}

/* A request that may have no piece in flight waits; one that may have one has one, though there is room for four; raised, it has them
 * all. */
static void no_more_of_a_class_is_in_flight_than_allowed(void **state)
{
	struct fixture *x = *state;
	struct io_request r = {.op = IO_READ, .class = IO_CLASS_PREFETCH, .file = &x->direct, .bytes = REQUEST, .buffer = x->memory};

	new_engine(x, 4);
	x->fake->hold = 1;
	io_allow(x->io, IO_CLASS_PREFETCH, 0);
	io_submit(x->io, (struct io_request *[]){&r}, 1);
	assert_null(io_poll(x->io));
	assert_int_equal(x->fake->n_begun, 0);
	io_allow(x->io, IO_CLASS_PREFETCH, 1);
	assert_null(io_poll(x->io));
	assert_int_equal(x->fake->n_begun, 1);
	io_raise(x->io, &r, IO_CLASS_EXPERT);
	assert_null(io_poll(x->io));
	assert_int_equal(x->fake->n_begun, N_PIECES);
	assert_ptr_equal(io_wait(x->io, -1), &r);
	assert_int_equal(r.status, IO_OK);
}

/* Two drives, by what their files say: each has its own pieces in flight, whatever waits for the other, and of a class no more than
 * allowed on each. */
static void a_drive_keeps_no_other_waiting(void **state)
{
	struct fixture *x = *state;
	struct io_file other = x->direct;
	struct io_request r[4], *list[4];
	struct io_stats stats;

	other.device++;
	assert_int_equal(io_drives((struct io_file[]){x->direct, other, x->direct, x->direct, other}, 5), 2);
	for (int n_drives = 1; n_drives <= 2; n_drives++) {
		new_engine_on(x, 2, n_drives);
		x->fake->hold = 3;
		io_allow(x->io, IO_CLASS_LATER, 1);
		for (int i = 0; i < 4; i++) {
			r[i] = (struct io_request){.op = IO_READ, .class = i < 3 ? IO_CLASS_EXPERT : IO_CLASS_LATER, .bytes = REQUEST,
						   .file = i < 2 ? &x->direct : &other, .buffer = x->memory + i * REQUEST};
			list[i] = &r[i];
		}
		r[2].bytes = PIECE;
		io_submit(x->io, list, 4);
		/* The first of what waits has both of its drive; on the other are the only piece of the third and one of the last. */
		assert_int_equal(x->fake->n_begun, 2 * n_drives);
		assert_int_equal(r[0].n_in_flight, 2);
		assert_int_equal(r[1].n_in_flight, 0);
		assert_int_equal(r[2].n_in_flight, n_drives - 1);
		assert_int_equal(r[3].n_in_flight, n_drives - 1);
		io_stats(x->io, &stats);
		assert_int_equal(stats.depth, 2 * n_drives);
		for (int back = 0; back < 4; ) {
			io_wait_piece(x->io);
			while (io_poll(x->io))
				back++;
			assert_true(r[0].n_in_flight + r[1].n_in_flight <= 2);
			assert_true(r[3].n_in_flight <= 1);
		}
		for (int i = 0; i < 4; i++)
			assert_int_equal(r[i].status, IO_OK);
	}
}

static void a_cancellation_reaches_what_is_under_way(void **state)
{
	struct fixture *x = *state;
	struct io_request r = {.op = IO_READ, .file = &x->direct, .bytes = REQUEST, .buffer = x->memory};

	new_engine(x, 2);
	x->fake->hold = 100;
	io_submit(x->io, (struct io_request *[]){&r}, 1);
	io_cancel(x->io, &r);
	assert_int_equal(r.status, IO_PENDING); /* the disk has it yet */
	assert_int_equal(x->fake->n_cancelled, 2);
	assert_ptr_equal(io_wait(x->io, -1), &r);
	assert_int_equal(r.status, IO_CANCELLED);
	assert_int_equal(x->fake->n_begun, 2); /* the third piece never began */
}

/* The kernel takes a gigabyte at a time; and what it does not take is read without. */
static void a_large_buffer_is_registered_in_parts(void **state)
{
	const size_t most = IO_BUFFER_MOST, bytes = 2 * most + 4096;
	char *large = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	/* In the first part, across its end, in the second, in the third. */
	const size_t places[] = {4096, most - 512, most, 2 * most};
	const int slots[2][4] = {{0, -1, 1, 2}, {0, -1, 1, -1}};
	struct fixture *x = *state;
	struct io_stats s;
	struct err err;

	assert_ptr_not_equal(large, MAP_FAILED);
	for (int refused = 0; refused < 2; refused++) {
		new_engine(x, 4);
		x->fake->n_buffers_most = 3 - refused;
		io_use_buffer(x->io, large, bytes);
		assert_int_equal(x->fake->n_buffers, 3 - refused);
		io_stats(x->io, &s);
		assert_true(s.registered_bytes == (int64_t)(refused ? 2 * most : bytes));
		for (int i = 0; i < 4; i++) {
			assert_int_equal(io_read_wait(x->io, &x->cached, large + places[i], 5, 1024, &err), 0);
			assert_memory_equal(large + places[i], x->bytes + 5, 1024);
			assert_int_equal(x->fake->begun[i].buffer_slot, slots[refused][i]);
		}
		io_forget_buffer(x->io, large);
		assert_int_equal(x->fake->n_buffers, 0);
		io_stats(x->io, &s);
		assert_int_equal(s.registered_bytes, 0);
		assert_int_equal(io_read_wait(x->io, &x->cached, large, 5, 1024, &err), 0);
		assert_int_equal(x->fake->begun[4].buffer_slot, -1);
	}
	munmap(large, bytes);
}

/* ---- systems that refuse: each in a child, which answers with a number ------------------------------------------ */

static int number_to_refuse;

static int read_without_a_ring(void *path)
{
	struct io_options opt = {.purpose = "experts"};
	struct io_file f;
	struct io_stats s;
	struct err err = {0};
	struct io *io;
	char byte;

	if (refuse_rings(number_to_refuse))
		return 77;
	if (io_new(&io, &opt, &err) || io_open(&f, path, 0, &err))
		return 1;
	io_stats(io, &s);
	if (strcmp(s.backend, "pread") || !strstr(s.why, "io_uring is"))
		return 2;
	if (io_read_wait(io, &f, &byte, 0, 1, &err))
		return 3;
	io_free(io);
	io_close(&f);
	opt.choice = IO_URING;
	if (!io_new(&io, &opt, &err))
		return 4;
	if (strncmp(err.text, "prepare to read experts: io_uring is ", 37))
		return 5;
	return 0;
}

static void where_the_ring_is_refused_threads_read_and_the_statistics_say_why(void **state)
{
	static const int numbers[] = {EPERM, ENOSYS, ENOMEM};
	struct fixture *x = *state;

	for (int i = 0; i < 3; i++) {
		int rc;

		number_to_refuse = numbers[i];
		give_to_user(x->dir);
		give_to_user(x->cached.path);
		rc = as_user(read_without_a_ring, x->cached.path);
		if (rc == 77) {
			print_message("skipped: no system call filters here\n");
			skip();
		}
		assert_int_equal(rc, 0);
	}
}

static int register_above_the_limit(void *path)
{
	enum { LIMIT = 8 << 20, LARGE = 64 << 20, SMALL = 1 << 20 };
	struct rlimit limit = {LIMIT, LIMIT};
	struct io_options opt = {.choice = IO_URING};
	struct err err = {0};
	char *large, *small;
	struct io_stats s;
	struct io_file f;
	struct io *io;

	if (setrlimit(RLIMIT_MEMLOCK, &limit))
		return 1;
	if (io_new(&io, &opt, &err))
		return 77;
	large = io_buffer_new(LARGE, "large", &err);
	small = io_buffer_new(SMALL, "small", &err);
	if (!large || !small || io_open(&f, path, IO_OPEN_DIRECT, &err))
		return 2;
	memset(large, 1, LARGE);
	memset(small, 1, SMALL);
	io_use_buffer(io, large, LARGE);
	io_stats(io, &s);
	if (s.registered_bytes)
		return 3; /* then this is no ordinary user, and the case shows nothing */
	io_use_buffer(io, small, SMALL);
	io_stats(io, &s);
	if (s.registered_bytes != SMALL)
		return 4;
	if (io_read_wait(io, &f, large, 0, REQUEST, &err) || io_read_wait(io, &f, small, 0, REQUEST, &err) ||
	    memcmp(large, small, REQUEST))
		return 5;
	io_free(io);
	return 0;
}

static void an_ordinary_user_s_memory_limit_is_no_error(void **state)
{
	struct fixture *x = *state;
	int rc;

	give_to_user(x->dir);
	give_to_user(x->cached.path);
	rc = as_user(register_above_the_limit, x->cached.path);
	if (rc == 77) {
		print_message("skipped: no io_uring here\n");
		skip();
	}
	assert_int_equal(rc, 0);
}

/* Writes beyond what the process may write, and to a disk that is full: on the ring and by threads. */
static int write_too_much(void *dir)
{
	struct rlimit limit = {1 << 20, 1 << 20};
	struct err err = {0};
	int small = small_disk_mount(dir, 1 << 20) == 0;
	void *memory = io_buffer_new(4 << 20, "what is written", &err);

	signal(SIGXFSZ, SIG_IGN);
	if (!memory || (!small && setrlimit(RLIMIT_FSIZE, &limit)))
		return 1;
	memset(memory, 1, 4 << 20);
	for (enum io_choice choice = IO_URING; choice <= IO_PREAD; choice++) {
		struct io_options opt = {.choice = choice};
		struct io_file f;
		struct io *io;
		struct io_request r = {
			.op = IO_WRITE, .class = IO_CLASS_WRITE, .file = &f, .bytes = 4 << 20, .buffer = memory
		};

		if (choice == IO_URING && io_new(&io, &opt, &err))
			continue;
		if (choice == IO_PREAD && io_new(&io, &opt, &err))
			return 2;
		if (chdir(dir) || io_open(&f, choice == IO_URING ? "a" : "b", IO_OPEN_WRITE | IO_OPEN_CREATE | IO_OPEN_DIRECT,
					  &err))
			return 3;
		io_submit(io, (struct io_request *[]){&r}, 1);
		if (!io_finish(io, &r, &err))
			return 4;
		if (!strstr(err.text, small ? ": No space left on device; free space there and try again"
					    : ": File too large; free space there and try again"))
			return 5;
		io_free(io);
		io_close(&f);
		unlink(choice == IO_URING ? "a" : "b");
	}
	return small ? 0 : 76;
}

static void a_disk_that_is_full_in_the_middle_of_a_write_is_an_error(void **state)
{
	struct fixture *x = *state;
	int rc;

	give_to_user(x->dir);
	rc = as_user(write_too_much, x->dir);
	if (rc == 76)
		print_message("skipped: a user may not mount a small file system here; a limit of the file size served\n");
	else
		assert_int_equal(rc, 0);
}

int main(void)
{
#define CASE(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(a_failed_operation_fails_its_request_alone_and_says_where),
		CASE(the_first_byte_that_failed_is_told),
		CASE(an_interrupted_operation_is_tried_again),
		CASE(an_operation_that_is_always_put_off_is_an_error),
		CASE(a_short_operation_goes_on_where_it_ended),
		CASE(an_operation_that_moves_nothing_is_the_end_of_the_file_or_an_error),
		CASE(a_flipped_bit_arrives),
		CASE(more_bytes_than_asked_for_are_not_believed),
		CASE(a_completion_out_of_nowhere_stops_the_engine),
		CASE(late_and_backward_completions_change_nothing),
		CASE(a_failed_sync_is_told_once_and_not_tried_again),
		CASE(a_full_disk_says_what_to_do),
		CASE(the_higher_class_goes_first),
		CASE(no_more_of_a_class_is_in_flight_than_allowed),
		CASE(a_drive_keeps_no_other_waiting),
		CASE(a_cancellation_reaches_what_is_under_way),
		CASE(a_large_buffer_is_registered_in_parts),
		CASE(where_the_ring_is_refused_threads_read_and_the_statistics_say_why),
		CASE(an_ordinary_user_s_memory_limit_is_no_error),
		CASE(a_disk_that_is_full_in_the_middle_of_a_write_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
