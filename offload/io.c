/*
 * The engine: requests in, pieces to the backend, completions to requests.
 *
 *     io_submit --> waiting[class] --next_piece--> slots (in flight) --complete--> done --> io_poll
 *                       |                            |        ^
 *                       '---- io_cancel, failure     '--retry-'
 *
 * (1) A request is in the list of its class exactly while `waiting`: it has bytes that no piece covers yet. It is
 *     done when it waits no more and none of its pieces is in flight.
 * (2) Every start of a piece has an id of its own, slot number and a count. A completion whose id is not that of its
 *     slot is a stranger: buffers cannot be trusted from there on, so everything fails until the engine is made anew.
 * (3) The first failure of a request stops its further pieces; of several, the one at the lowest byte is told.
 */
#include "offload/io.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* Valgrind does not see what the kernel writes into memory by way of a ring. Outside valgrind these are no-ops. */
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#else
#define VALGRIND_MAKE_MEM_DEFINED(memory, bytes) ((void)0)
#endif

#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "offload/io_backend.h"

enum {
	DEPTH = 32,
	DEPTH_MOST = 1024,
	PIECE_BYTES = 4 << 20, /* 1 MiB costs a virtual disk a tenth of its rate (tests/bench/io.c) */
	PIECE_STEP = 4096,
	PIECE_MOST = 1 << 30,
	N_THREADS = 16,
	HUGE_PAGE = 2 << 20,
	BATCH = 64,            /* completions taken at a time */
	RETRIES_MOST = 1000,   /* of a piece that the system puts off, a millisecond each after the first few */
	RETRIES_AT_ONCE = 4,
};

/* Failures that errno has no name for. */
enum { FAILED_END = -1, FAILED_LONG = -2, FAILED_STRANGE = -3, FAILED_RANGE = -4, FAILED_NOTHING = -5 };

struct slot {
	uint64_t id;                 /* 0: free */
	struct io_request *r;
	uint64_t offset;             /* of the file */
	size_t bytes, need;          /* the first `need` must come */
	size_t done;                 /* where the operation in flight begins */
	size_t reached;              /* what came so far; above `done` when a direct read ended inside a block */
	int retries;
};

struct list {
	struct io_request *first, *last;
};

/* What io_use_file was told of a slot. A closed file's number may be another's by now: device and inode tell. */
struct used_file {
	int fd;                      /* -1: free */
	dev_t device;
	ino_t inode;
};

struct used_buffer {
	char *memory;                /* NULL: free */
	size_t bytes;
	void *whole;                 /* the buffer that it is a part of */
};

struct io {
	const struct io_backend *backend;
	void *state;
	pthread_t owner;
	int depth, drive_depth;      /* of all drives, of each; the same: they are not told apart */
	size_t piece_bytes;
	struct slot *slots;          /* [depth] */
	int *free_slots, n_free;     /* a stack */
	uint64_t n_started;
	struct list waiting[N_IO_CLASSES], done;
	int in_flight_most[N_IO_CLASSES];
	int64_t n_pending;
	bool strange;
	bool told_cached;
	char *purpose;
	struct io_stats stats;
	struct used_file files[IO_FILE_SLOTS];
	struct used_buffer buffers[IO_BUFFER_SLOTS];
	int n_file_slots, n_buffer_slots; /* those above were never used */
};

/* ---- lists ------------------------------------------------------------------------------------------------------ */

static void list_append(struct list *l, struct io_request *r)
{
	r->next = NULL;
	r->previous = l->last;
	if (l->last)
		l->last->next = r;
	else
		l->first = r;
	l->last = r;
}

static void list_remove(struct list *l, struct io_request *r)
{
	if (r->previous)
		r->previous->next = r->next;
	else
		l->first = r->next;
	if (r->next)
		r->next->previous = r->previous;
	else
		l->last = r->previous;
	r->previous = r->next = NULL;
}

static void stop_waiting(struct io *io, struct io_request *r)
{
	if (r->waiting)
		list_remove(&io->waiting[r->class], r);
	r->waiting = false;
}

/* ---- outcomes --------------------------------------------------------------------------------------------------- */

static void fail(struct io_request *r, int failure, uint64_t at)
{
	if (!r->failure || at < r->failed_at) {
		r->failure = failure;
		r->failed_at = at;
	}
}

static void finish(struct io *io, struct io_request *r)
{
	struct io_class_stats *s = &io->stats.of[r->class];

	assert(!r->waiting && !r->n_in_flight);
	r->status = r->cancelled ? IO_CANCELLED : r->failure ? IO_FAILED : IO_OK;
	s->n_failed += r->status == IO_FAILED;
	s->n_cancelled += r->status == IO_CANCELLED;
	s->bytes += r->status == IO_OK ? (int64_t)r->bytes : 0;
	s->n_pending--;
	io->n_pending--;
	list_append(&io->done, r);
}

static void finish_if_done(struct io *io, struct io_request *r)
{
	if (r->waiting || r->n_in_flight)
		return;
	finish(io, r);
	if (r->op == IO_READ && r->status == IO_OK)
		VALGRIND_MAKE_MEM_DEFINED(r->buffer, r->bytes);
}

int io_request_check(const struct io_request *r, struct err *err)
{
	static const char *const verbs[] = {"read", "write", "sync"};
	const char *verb = verbs[r->op], *path = r->file->path;
	unsigned long long at = r->failed_at, offset = r->offset;
	size_t need = r->at_least ? r->at_least : r->bytes;

	assert(r->status >= IO_OK);
	if (r->status == IO_OK)
		return 0;
	if (r->status == IO_CANCELLED)
		return err_set(err, ERR_CANCELLED, "%s %s at byte %llu: cancelled", verb, path, offset);
	switch (r->failure) {
	case FAILED_END:
		return err_set(err, ERR_IO, "read %s: the file ends at byte %llu, %llu bytes short of the range %llu + "
			       "%zu; it is truncated or was changed while it was read", path, at, offset + need - at,
			       offset, need);
	case FAILED_RANGE:
		return err_set(err, ERR_FORMAT, "%s %s: byte %llu + %zu is beyond any file", verb, path, offset, r->bytes);
	case FAILED_LONG:
		return err_set(err, ERR_IO, "%s %s at byte %llu: the system says that it moved more bytes than were asked "
			       "for; restart the program", verb, path, at);
	case FAILED_STRANGE:
		return err_set(err, ERR_IO, "%s %s at byte %llu: the system completed an operation that nobody had begun, "
			       "so that no result can be trusted; restart the program", verb, path, at);
	case FAILED_NOTHING:
		return err_set(err, ERR_IO, "write %s at byte %llu: the system takes no bytes there, and does not say why",
			       path, at);
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return err_set(err, ERR_IO, "%s %s at byte %llu: %s; free space there and try again", verb, path, at,
			       strerror(r->failure));
	default:
		return r->op == IO_SYNC ? err_errno(err, r->failure, "sync %s", path)
					: err_errno(err, r->failure, "%s %s at byte %llu", verb, path, at);
	}
}

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

static int file_slot(const struct io *io, int fd, const struct io_file *f)
{
	for (int i = 0; i < io->n_file_slots; i++)
		if (io->files[i].fd == fd && io->files[i].device == f->device && io->files[i].inode == f->inode)
			return i;
	return -1;
}

static int buffer_slot(const struct io *io, const char *memory, size_t bytes)
{
	for (int i = 0; i < io->n_buffer_slots; i++) {
		const struct used_buffer *b = &io->buffers[i];

		if (b->memory && memory >= b->memory && (size_t)(memory - b->memory) < b->bytes &&
		    bytes <= b->bytes - (size_t)(memory - b->memory))
			return i;
	}
	return -1;
}

static int request_fd(const struct io_file *f)
{
	return f->direct_fd >= 0 ? f->direct_fd : f->fd;
}

static void start(struct io *io, int number)
{
	struct slot *s = &io->slots[number];
	const struct io_request *r = s->r;
	char *memory = r->op == IO_SYNC ? NULL : (char *)r->buffer + (s->offset - r->offset) + s->done;
	int fd = r->op == IO_SYNC ? r->file->fd : request_fd(r->file);

	/* Slot numbers need 10 bits, and the count would last a century of 4 KiB reads. */
	s->id = ++io->n_started << 16 | (uint64_t)number;
	io->backend->start(io->state, &(struct io_operation){
		.id = s->id,
		.op = r->op,
		.fd = fd,
		.file_slot = r->op == IO_SYNC ? -1 : file_slot(io, fd, r->file),
		.buffer_slot = r->op == IO_SYNC ? -1 : buffer_slot(io, memory, s->bytes - s->done),
		.offset = s->offset + s->done,
		.memory = memory,
		.bytes = (uint32_t)(s->bytes - s->done),
	});
}

/* A piece more of its class, on its drive. */
static bool is_allowed(const struct io *io, const struct io_request *r)
{
	int n = 0, of_class = 0;

	if (io->depth == io->drive_depth && io->in_flight_most[r->class] >= io->depth)
		return true;
	for (int i = 0; i < io->depth; i++) {
		const struct io_request *other = io->slots[i].r;

		if (!io->slots[i].id || (io->depth > io->drive_depth && other->file->device != r->file->device))
			continue;
		n++;
		of_class += other->class == r->class;
	}
	return n < io->drive_depth && of_class < io->in_flight_most[r->class];
}

/* The first of the highest class that waits and may go on. */
static struct io_request *next_request(const struct io *io)
{
	for (int class = 0; class < N_IO_CLASSES; class++)
		for (struct io_request *r = io->waiting[class].first; r; r = r->next) {
			if (is_allowed(io, r))
				return r;
			if (io->depth == io->drive_depth)
				break; /* nor may those behind it */
		}
	return NULL;
}

/* Start its next piece; false when there is none. */
static bool next_piece(struct io *io)
{
	struct io_request *r = io->n_free ? next_request(io) : NULL;
	size_t left, need;
	struct slot *s;
	int number;

	if (!r)
		return false;
	number = io->free_slots[--io->n_free];
	s = &io->slots[number];
	left = r->bytes - r->issued;
	need = r->at_least ? r->at_least : r->bytes;
	*s = (struct slot){.r = r, .offset = r->offset + r->issued, .bytes = left < io->piece_bytes ? left : io->piece_bytes};
	s->need = need <= r->issued ? 0 : need - r->issued < s->bytes ? need - r->issued : s->bytes;
	r->issued += s->bytes;
	r->n_in_flight++;
	if (r->issued == r->bytes)
		stop_waiting(io, r);
	start(io, number);
	return true;
}

static void pump(struct io *io)
{
	while (next_piece(io))
		;
}

/* The piece is over, well or not. */
static void end_piece(struct io *io, int number)
{
	struct io_request *r = io->slots[number].r;

	io->slots[number].id = 0;
	io->free_slots[io->n_free++] = number;
	r->n_in_flight--;
	if (r->failure || r->cancelled)
		stop_waiting(io, r);
	finish_if_done(io, r);
}

static void pause_a_moment(void)
{
	struct timespec t = {.tv_nsec = 1000000};

	nanosleep(&t, NULL); /* an early end does no harm */
}

/* Decide what a completion means. Returns true when the piece goes on with another operation. */
static bool goes_on(struct io *io, struct slot *s, int32_t result)
{
	struct io_request *r = s->r;
	/* A direct read can go on only at a block. */
	uint32_t align = r->file->direct_fd >= 0 ? r->file->align : 1;
	uint64_t at = s->offset + s->done;
	size_t reached;

	/* A piece above the failed one is of no use; one below it may have failed earlier in the file. */
	if (r->cancelled || (r->failure && r->failed_at <= at))
		return false;
	if ((result == -EINTR || result == -EAGAIN) && s->retries < RETRIES_MOST) {
		if (++s->retries > RETRIES_AT_ONCE)
			pause_a_moment();
		io->stats.of[r->class].n_retries++;
		return true;
	}
	if (result < 0) {
		fail(r, -result, at);
		return false;
	}
	if ((size_t)result > s->bytes - s->done) {
		fail(r, FAILED_LONG, at);
		return false;
	}
	reached = s->done + (size_t)result;
	if (reached == s->bytes || (s->need < s->bytes && reached >= s->need))
		return false;
	if (reached <= s->reached) { /* no further than the time before: here it ends */
		fail(r, r->op == IO_READ ? FAILED_END : FAILED_NOTHING, s->offset + s->reached);
		return false;
	}
	s->reached = reached;
	s->done = reached / align * align;
	io->stats.of[r->class].n_continued++;
	return true;
}

/* From now on nothing is begun, and what is in flight fails when it comes. */
static void refuse_everything(struct io *io)
{
	if (!io->strange)
		log_error("the system completed an operation that nobody had begun: no more reads of %s until a restart; "
			  "backend=%s", io->purpose, io->backend->name);
	io->strange = true;
	for (int i = 0; i < io->depth; i++)
		if (io->slots[i].id)
			fail(io->slots[i].r, FAILED_STRANGE, io->slots[i].offset);
	for (int class = 0; class < N_IO_CLASSES; class++)
		for (struct io_request *r; (r = io->waiting[class].first); ) {
			fail(r, FAILED_STRANGE, r->offset);
			stop_waiting(io, r);
			finish_if_done(io, r);
		}
}

static void complete(struct io *io, const struct io_completion *c)
{
	int number = (int)(c->id & 0xffff);

	if (!c->id || number >= io->depth || io->slots[number].id != c->id) {
		io->stats.n_strange++;
		refuse_everything(io);
		return;
	}
	if (c->result > 0)
		io->stats.of[io->slots[number].r->class].moved += c->result;
	if (goes_on(io, &io->slots[number], c->result))
		start(io, number);
	else
		end_piece(io, number);
}

/* Give the backend work, and take what it has done; wait for something up to timeout_ms. */
static void turn(struct io *io, int timeout_ms)
{
	struct io_completion done[BATCH];
	int n;

	pump(io);
	n = io->backend->reap(io->state, done, BATCH, timeout_ms);
	for (int i = 0; i < n; i++)
		complete(io, &done[i]);
	if (n > 0) {
		/* What was begun just now should run while the caller is busy. */
		pump(io);
		io->backend->reap(io->state, NULL, 0, 0);
	}
}

/* ---- the caller's side ------------------------------------------------------------------------------------------ */

static void assert_owner(const struct io *io)
{
	assert(pthread_equal(io->owner, pthread_self()));
	(void)io;
}

static int choose_backend(struct io *io, const struct io_options *opt, int n_threads, struct err *err)
{
	struct err refused = {0};

	if (opt->backend) {
		io->backend = opt->backend;
		io->state = opt->backend_state;
		return 0;
	}
	io->backend = &io_ring_backend;
	if (opt->choice == IO_URING)
		return io_ring_new(&io->state, &io->depth, err);
	if (opt->choice == IO_AUTO && !io_ring_new(&io->state, &io->depth, &refused))
		return 0;
	io->backend = &io_pread_backend;
	if (io_pread_new(&io->state, &io->depth, n_threads, err))
		return -1;
	if (opt->choice == IO_PREAD) {
		strcpy(io->stats.why, "pread was asked for");
	} else {
		err_escape(io->stats.why, sizeof io->stats.why, refused.text, strlen(refused.text));
		log_info("%s are read by a pool of threads: %s", io->purpose, io->stats.why);
	}
	return 0;
}

int io_drives(const struct io_file *files, size_t n)
{
	int drives = 0;

	for (size_t i = 0; i < n; i++) {
		size_t k = 0;

		while (k < i && files[k].device != files[i].device)
			k++;
		drives += k == i;
	}
	return drives;
}

int io_new(struct io **out, const struct io_options *opt, struct err *err)
{
	struct io *io = xcalloc(1, sizeof *io);
	size_t piece = opt->piece_bytes ? opt->piece_bytes : PIECE_BYTES;

	assert(opt->depth >= 0 && opt->depth <= DEPTH_MOST && opt->n_drives >= 0 && piece <= PIECE_MOST && opt->n_threads >= 0);
	io->owner = pthread_self();
	io->drive_depth = opt->depth ? opt->depth : DEPTH;
	io->depth = io->drive_depth * (opt->n_drives > 1 ? opt->n_drives : 1);
	io->depth = io->depth < DEPTH_MOST ? io->depth : DEPTH_MOST;
	io->piece_bytes = (piece + PIECE_STEP - 1) / PIECE_STEP * PIECE_STEP;
	io->purpose = xstrdup(opt->purpose ? opt->purpose : "files");
	if (choose_backend(io, opt, opt->n_threads ? opt->n_threads : N_THREADS, err)) {
		err_wrap(err, "prepare to read %s", io->purpose);
		free(io->purpose);
		free(io);
		return -1;
	}
	io->drive_depth = io->drive_depth < io->depth ? io->drive_depth : io->depth; /* of which a backend may have less */
	io->slots = xcalloc((size_t)io->depth, sizeof *io->slots);
	io->free_slots = xcalloc((size_t)io->depth, sizeof *io->free_slots);
	for (int i = io->depth; i--; )
		io->free_slots[io->n_free++] = i;
	for (int class = 0; class < N_IO_CLASSES; class++)
		io->in_flight_most[class] = io->drive_depth;
	io->stats.backend = io->backend->name;
	*out = io;
	return 0;
}

void io_free(struct io *io)
{
	if (!io)
		return;
	assert_owner(io);
	for (int class = 0; class < N_IO_CLASSES; class++)
		while (io->waiting[class].first)
			io_cancel(io, io->waiting[class].first);
	for (int i = 0; i < io->depth; i++)
		if (io->slots[i].id)
			io_cancel(io, io->slots[i].r);
	while (io->n_free < io->depth)
		turn(io, -1);
	io->backend->free(io->state);
	free(io->slots);
	free(io->free_slots);
	free(io->purpose);
	free(io);
}

void *io_buffer_new(size_t bytes, const char *what, struct err *err)
{
	size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : 4096, total = (bytes + align - 1) / align * align;
	void *p = total >= bytes ? aligned_alloc(align, total ? total : align) : NULL;

	if (!p) {
		err_set(err, ERR_TOO_LARGE, "%s: no memory for %zu bytes", what, bytes);
		return NULL;
	}
	/* Advice: where there are no huge pages the buffer is as good as it gets. What an allocation before this one left here is in small
	 * pages, of which a disk takes 1 MiB at a time; without them the first touch brings huge ones. */
	if (align == HUGE_PAGE) {
		(void)madvise(p, total, MADV_HUGEPAGE);
		(void)madvise(p, total, MADV_DONTNEED);
	}
	return p;
}

void io_submit(struct io *io, struct io_request *const *requests, size_t n)
{
	assert_owner(io);
	for (size_t i = 0; i < n; i++) {
		struct io_request *r = requests[i];
		struct io_class_stats *s = &io->stats.of[r->class];

		assert(r->status != IO_PENDING && r->at_least <= r->bytes && (r->op == IO_READ || !r->at_least));
		if (r->op == IO_SYNC)
			r->offset = r->bytes = 0;
		else
			assert(r->offset % r->file->align == 0 && r->bytes % r->file->align == 0 &&
			       (uintptr_t)r->buffer % r->file->align == 0);
		r->status = IO_PENDING;
		r->issued = 0;
		r->n_in_flight = 0;
		r->cancelled = false;
		r->failure = 0;
		r->failed_at = 0;
		s->n_requests++;
		s->n_pending++;
		io->n_pending++;
		if (io->strange)
			fail(r, FAILED_STRANGE, r->offset);
		else if (r->offset > INT64_MAX || r->bytes > INT64_MAX - r->offset)
			fail(r, FAILED_RANGE, r->offset); /* such numbers come out of damaged files */
		r->waiting = !r->failure && (r->bytes || r->op == IO_SYNC);
		if (r->waiting)
			list_append(&io->waiting[r->class], r);
		finish_if_done(io, r);
	}
	turn(io, 0);
}

struct io_request *io_poll(struct io *io)
{
	return io_wait(io, 0);
}

struct io_request *io_wait(struct io *io, int timeout_ms)
{
	int64_t deadline = io_now(io) / 1000000 + timeout_ms;
	struct io_request *r;

	assert_owner(io);
	while (!(r = io->done.first) && io->n_pending) {
		turn(io, timeout_ms);
		if (!timeout_ms)
			break;
		if (timeout_ms > 0) {
			int64_t left = deadline - io_now(io) / 1000000;

			timeout_ms = left > 0 ? (int)left : 0;
		}
	}
	if ((r = io->done.first))
		list_remove(&io->done, r);
	return r;
}

void io_wait_piece(struct io *io)
{
	assert_owner(io);
	assert(io->n_pending);
	if (!io->done.first)
		turn(io, -1);
}

size_t io_arrived(const struct io *io, const struct io_request *r)
{
	size_t n = r->issued;

	assert_owner(io);
	if (r->status == IO_OK)
		return r->bytes;
	if (r->status != IO_PENDING || r->op != IO_READ || r->failure || r->cancelled)
		return 0;
	for (int i = 0; r->n_in_flight && i < io->depth; i++)
		if (io->slots[i].id && io->slots[i].r == r && io->slots[i].offset - r->offset < n)
			n = (size_t)(io->slots[i].offset - r->offset);
	return n;
}

int io_fd(struct io *io, struct err *err)
{
	int fd = io->backend->fd(io->state);

	assert_owner(io);
	return fd >= 0 ? fd : err_set(err, ERR_IO, "reads of %s cannot wake this thread: the process has no file descriptor "
				      "left", io->purpose);
}

int64_t io_now(const struct io *io)
{
	return io->backend->now ? io->backend->now(io->state) : clock_now_ns();
}

int io_finish(struct io *io, struct io_request *r, struct err *err)
{
	assert_owner(io);
	while (r->status == IO_PENDING)
		turn(io, -1);
	list_remove(&io->done, r);
	return io_request_check(r, err);
}

int io_read_wait(struct io *io, const struct io_file *f, void *buffer, uint64_t offset, size_t bytes, struct err *err)
{
	struct io_request r = {
		.op = IO_READ, .class = IO_CLASS_EXPERT, .file = f, .offset = offset, .bytes = bytes, .buffer = buffer
	};

	io_submit(io, (struct io_request *[]){&r}, 1);
	return io_finish(io, &r, err);
}

void io_cancel(struct io *io, struct io_request *r)
{
	assert_owner(io);
	if (r->status != IO_PENDING || r->cancelled)
		return;
	r->cancelled = true;
	stop_waiting(io, r);
	for (int i = 0; r->n_in_flight && i < io->depth; i++)
		if (io->slots[i].id && io->slots[i].r == r)
			io->backend->cancel(io->state, io->slots[i].id);
	finish_if_done(io, r);
}

void io_allow(struct io *io, enum io_class class, int n)
{
	assert(n >= 0);
	assert_owner(io);
	io->in_flight_most[class] = n;
}

void io_raise(struct io *io, struct io_request *r, enum io_class class)
{
	bool waiting = r->waiting;

	assert_owner(io);
	if (r->status != IO_PENDING || class >= r->class)
		return;
	stop_waiting(io, r);
	io->stats.of[r->class].n_pending--;
	io->stats.of[r->class].n_requests--;
	r->class = class;
	io->stats.of[class].n_pending++;
	io->stats.of[class].n_requests++;
	r->waiting = waiting;
	if (waiting)
		list_append(&io->waiting[class], r);
}

void io_stats(const struct io *io, struct io_stats *out)
{
	*out = io->stats;
	out->depth = io->depth;
	out->n_in_flight = io->depth - io->n_free;
}

/* ---- what is used often ----------------------------------------------------------------------------------------- */

void io_use_file(struct io *io, const struct io_file *f)
{
	int fd = request_fd(f), slot = 0;

	assert_owner(io);
	io->stats.n_files++;
	if (f->why_not_direct) {
		io->stats.n_files_cached++;
		if (!io->told_cached)
			log_info("%s is read through the page cache: %s", f->path, f->why_not_direct);
		io->told_cached = true;
	}
	/* A slot of the same number belongs to a file that was closed unforgotten. */
	while (slot < io->n_file_slots && io->files[slot].fd >= 0 && io->files[slot].fd != fd)
		slot++;
	if (!io->backend->register_file || slot == IO_FILE_SLOTS || io->backend->register_file(io->state, slot, fd))
		return;
	if (slot == io->n_file_slots) {
		io->n_file_slots++;
		io->files[slot].fd = -1;
	}
	io->stats.n_files_registered += io->files[slot].fd < 0;
	io->files[slot] = (struct used_file){fd, f->device, f->inode};
}

void io_forget_file(struct io *io, const struct io_file *f)
{
	int slot = file_slot(io, request_fd(f), f);

	assert_owner(io);
	io->stats.n_files--;
	io->stats.n_files_cached -= f->why_not_direct != NULL;
	if (slot < 0)
		return;
	io->files[slot].fd = -1;
	io->stats.n_files_registered--;
	/* The kernel keeps the file open while the slot names it. */
	(void)io->backend->register_file(io->state, slot, -1);
}

/* One part of a buffer; false when the kernel does not want it. */
static bool use_part(struct io *io, char *memory, size_t bytes, void *whole)
{
	int slot = 0;

	while (slot < io->n_buffer_slots && io->buffers[slot].memory)
		slot++;
	if (!io->backend->register_buffer || slot == IO_BUFFER_SLOTS ||
	    io->backend->register_buffer(io->state, slot, memory, bytes))
		return false;
	io->n_buffer_slots += slot == io->n_buffer_slots;
	io->buffers[slot] = (struct used_buffer){memory, bytes, whole};
	io->stats.registered_bytes += (int64_t)bytes;
	return true;
}

void io_use_buffer(struct io *io, void *buffer, size_t bytes)
{
	assert_owner(io);
	for (size_t at = 0; at < bytes; at += IO_BUFFER_MOST)
		if (!use_part(io, (char *)buffer + at, bytes - at < IO_BUFFER_MOST ? bytes - at : IO_BUFFER_MOST, buffer))
			return; /* what is left is read without */
}

void io_forget_buffer(struct io *io, void *buffer)
{
	assert_owner(io);
	for (int i = 0; i < io->n_buffer_slots; i++) {
		if (!io->buffers[i].memory || io->buffers[i].whole != buffer)
			continue;
		io->stats.registered_bytes -= (int64_t)io->buffers[i].bytes;
		io->buffers[i].memory = NULL;
		(void)io->backend->register_buffer(io->state, i, NULL, 0);
	}
}
