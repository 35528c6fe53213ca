/*
 * Bytes between files and memory that the caller owns. Nothing here maps a file: a file that shrinks while it is
 * read is an error, not a signal.
 *
 * Three parts. A file (struct io_file) is opened, read whole or in ranges by whoever needs a few bytes now, and may
 * be shared by threads. Ranges are pure arithmetic: few large reads instead of many small ones, and the aligned read
 * around a range that is not. The engine (struct io) keeps many requests in flight: the caller hands requests over,
 * does something else, and takes them back when they are done; over io_uring where the system allows it and over a
 * pool of threads that pread where it does not, with the same results either way.
 */
#ifndef QUIRE_OFFLOAD_IO_H
#define QUIRE_OFFLOAD_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "config/err.h"

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* A regular file as it was when it was opened. Any thread; several may read one at once. */
struct io_file {
	int fd;                    /* through the page cache */
	int direct_fd;             /* past it (O_DIRECT); -1: not opened so, or the file system has no such way */
	const char *why_not_direct; /* NULL, or why IO_OPEN_DIRECT did not get it */
	uint32_t align;            /* what requests must be a multiple of (below); 1 unless IO_OPEN_DIRECT */
	char *path;
	uint64_t bytes;
	dev_t device;
	ino_t inode;
	struct timespec modified, changed;
};

enum {
	IO_OPEN_WRITE = 1,    /* else for reading alone */
	IO_OPEN_CREATE = 2,   /* make it, mode 0600; one that is there already is an error */
	IO_OPEN_NOFOLLOW = 4, /* the last part of the path may not be a symbolic link */
	/*
	 * Requests go past the page cache where the file system can. Offset, length and memory of each must then be
	 * multiples of `align`: the device's logical block, at least 512. Where it cannot (tmpfs), requests go
	 * through the cache, why_not_direct says so, and `align` is 4096, so that a caller's mistake shows there too.
	 */
	IO_OPEN_DIRECT = 8,
};

/* Open a regular file for reading. Symbolic links are followed. What is no regular file (directory, FIFO, socket,
 * device) is refused by what it is, and never waited for. */
int io_open_regular(struct io_file *f, const char *path, struct err *err);
/* The same with IO_OPEN_ flags. */
int io_open(struct io_file *f, const char *path, int flags, struct err *err);
/* The same for `name` in an open directory, which messages call `dir`. */
int io_open_at(struct io_file *f, int dir_fd, const char *dir, const char *name, int flags, struct err *err);

/* Exactly `bytes` bytes at `offset`, through the page cache; interrupted and short reads go on. A range that ends
 * behind the file's end is an error that says how many bytes were there. */
int io_read_full(const struct io_file *f, void *out, uint64_t offset, size_t bytes, struct err *err);

/* Error when the file is not the one that was opened any more: other size, modification or change time. */
int io_check_unchanged(const struct io_file *f, struct err *err);

/* Take disk space for a range, growing the file to its end, so that a full disk is met here and not in the middle of
 * a write. A file system that cannot take space ahead only grows the file. Above RLIMIT_FSIZE the kernel sends SIGXFSZ,
 * here and for a write: a program that writes ignores it, and gets the error. */
int io_preallocate(const struct io_file *f, uint64_t offset, uint64_t bytes, struct err *err);

/* Make durable what was written (fdatasync), waiting for it. After a failure nothing can be known about what reached
 * the disk: the caller must not trust what it wrote, and must not try again. */
int io_sync_file(const struct io_file *f, struct err *err);

/* Takes a file that was never opened too, if it was zeroed with fd -1. */
void io_close(struct io_file *f);

/* ---- ranges: pure ----------------------------------------------------------------------------------------------- */

struct io_range {
	uint64_t offset, bytes; /* bytes >= 1, offset + bytes <= INT64_MAX */
};

/* The smallest range that begins and ends on `align` (a power of two) around [offset, offset + bytes). The wanted
 * bytes begin at `skip` of what is read. bytes <= wanted + 2 (align - 1), rounded up. */
struct io_aligned {
	uint64_t offset, bytes;
	uint32_t skip;
};
struct io_aligned io_align(uint64_t offset, uint64_t bytes, uint32_t align);

/* One read that serves inputs first to first + n - 1. */
struct io_run {
	uint64_t offset, bytes;
	size_t first, n;
};

/*
 * Few reads for many: neighbours become one run while no more than gap_most bytes that nobody wants lie between
 * them and the run stays within bytes_most. in[n] is sorted by offset; ranges may touch, overlap and repeat. An input
 * above bytes_most is a run alone: nothing is cut. out has room for n. Returns the number of runs.
 */
size_t io_coalesce(struct io_run *out, const struct io_range *in, size_t n, uint64_t gap_most, uint64_t bytes_most);

/* ---- the engine ------------------------------------------------------------------------------------------------- */

enum io_op {
	IO_READ,
	IO_WRITE,
	IO_SYNC, /* fdatasync: covers the writes that had come back before it was submitted; offset, bytes unused */
};

/* Who goes first when there is more to do than may be in flight: strictly in this order. Latents stop a token, a write
 * holds memory that the sweep needs, an expert stops a layer, and a prefetch stops nobody: one for soon, one for later, and
 * what no more is known of than that it may be wanted. */
enum io_class {
	IO_CLASS_KV,
	IO_CLASS_WRITE,
	IO_CLASS_EXPERT,
	IO_CLASS_PREFETCH,
	IO_CLASS_LATER,
	IO_CLASS_SPARE,
	N_IO_CLASSES
};

enum io_status {
	IO_NEW,       /* not submitted yet */
	IO_PENDING,   /* the engine's: nobody else touches the request, its buffer or its file */
	IO_OK,
	IO_FAILED,    /* io_request_check says why */
	IO_CANCELLED, /* what the buffer holds is unknown */
};

/*
 * One request. Its memory is the caller's and so is the buffer's; both stay where they are while it is pending. It
 * may be used again once it came back. A large one is carried out in pieces, several at a time.
 */
struct io_request {
	enum io_op op;
	enum io_class class;
	const struct io_file *file;
	uint64_t offset;
	size_t bytes;
	size_t at_least;       /* the first bytes, without which a read has failed; behind them the file may end. 0: all */
	void *buffer;          /* written by a read, read by a write */
	void *tag;             /* the caller's own */
	enum io_status status;

	/* The engine's own. */
	struct io_request *previous, *next;
	size_t issued;         /* bytes handed to the backend */
	int n_in_flight;       /* pieces; may be read while it is pending */
	bool waiting;          /* in the list of its class */
	bool cancelled;
	int failure;           /* errno; below 0 what errno has no name for */
	uint64_t failed_at;    /* byte of the file */
};

enum io_choice {
	IO_AUTO,  /* io_uring, or pread where it is refused, with a line in the log that says why */
	IO_URING, /* or an error */
	IO_PREAD,
};

struct io_backend; /* offload/io_backend.h: tests bring their own */

/* Zeros mean what stands behind. */
struct io_options {
	const char *purpose;    /* "files": for the log, what this engine reads */
	enum io_choice choice;
	int depth;              /* 32 pieces in flight at most, to 1024, on each drive; a pool of threads takes 2 of them a thread */
	int n_drives;           /* 1; more: drives are told apart (io_drives), and one that is slow or full keeps no other waiting */
	size_t piece_bytes;     /* 4 MiB, the largest piece; rounded up to 4096 */
	int n_threads;          /* 16, of the pool */
	const struct io_backend *backend; /* NULL; else this one, with backend_state, whatever `choice` says */
	void *backend_state;
};

struct io_class_stats {
	int64_t n_requests, n_pending;   /* submitted; of these not done yet */
	int64_t n_failed, n_cancelled;
	int64_t bytes;                   /* asked for by the requests that went well */
	int64_t moved;                   /* bytes that pieces brought, whatever became of their requests */
	int64_t n_retries;               /* pieces that were interrupted or put off, and tried again */
	int64_t n_continued;             /* pieces that came back short, whose rest was asked for */
};

struct io_stats {
	const char *backend;             /* "io_uring", "pread" */
	char why[256];                   /* "", or why it is not io_uring */
	struct io_class_stats of[N_IO_CLASSES];
	int n_in_flight, depth;          /* pieces now, and at most, of all drives */
	int n_files, n_files_cached;     /* named by io_use_file; of these without direct access */
	int n_files_registered;
	int64_t registered_bytes;
	int64_t n_strange;               /* completions that nobody waited for: the engine refuses all since the first */
};

/* On how many drives n files lie: file systems, as stat tells them apart. */
int io_drives(const struct io_file *files, size_t n);

/*
 * An engine belongs to the thread that made it: no other may call it. Make one for each purpose, so that none waits
 * behind another's reads.
 */
struct io;

int io_new(struct io **out, const struct io_options *opt, struct err *err);
/* Cancels what is pending and waits until nothing is in flight; those requests are never handed back. Takes NULL. */
void io_free(struct io *io);

/* Memory for requests: aligned for every file, in huge pages where it is large; free() it. NULL, with err set
 * (ERR_TOO_LARGE, naming `what`), when there is none. */
void *io_buffer_new(size_t bytes, const char *what, struct err *err);

/*
 * Tell the engine what will be used often, so that the kernel need not look at it each time. Where that is refused
 * (RLIMIT_MEMLOCK is 8 MiB for an ordinary user; a pool of threads knows no such thing) all works without, and the
 * statistics say so. Forget a file before it is closed and a buffer before it is freed, with nothing of theirs
 * pending. A file that has no direct access is logged, once for an engine.
 */
void io_use_file(struct io *io, const struct io_file *f);
void io_forget_file(struct io *io, const struct io_file *f);
void io_use_buffer(struct io *io, void *buffer, size_t bytes);
void io_forget_buffer(struct io *io, void *buffer);

/* Hand over n requests; never waits. On a file with `align` > 1 offset, bytes and buffer must be multiples of it. */
void io_submit(struct io *io, struct io_request *const *requests, size_t n);

/* A request that is done, in whatever state; NULL when none is. Every submitted request comes back exactly once, from
 * these or from io_finish. */
struct io_request *io_poll(struct io *io);
/* The same, waiting for it up to timeout_ms (below 0: as long as it takes). NULL too when nothing is pending. */
struct io_request *io_wait(struct io *io, int timeout_ms);
/* Wait until a piece of anything has come back: io_poll may have something then, or io_arrived more. Something must be pending. */
void io_wait_piece(struct io *io);
/* Of a read, so many of its first bytes are in the buffer and stay as they are, also while it is pending. */
size_t io_arrived(const struct io *io, const struct io_request *r);
/* A descriptor that is readable when io_poll may have something, for a thread that sleeps in poll or epoll (not
 * EPOLLET) with other things: call io_poll until it gives NULL before sleeping. The engine's; only poll it. -1: the
 * process has none left. */
int io_fd(struct io *io, struct err *err);

/* The time by which its operations come and go: clock_now_ns, but in tests. For who measures how long they take. */
int64_t io_now(const struct io *io);

/* Wait for this request, others being done meanwhile and kept for io_poll. Returns as io_request_check. */
int io_finish(struct io *io, struct io_request *r, struct err *err);
/* Read one range and wait for it: class IO_CLASS_EXPERT. */
int io_read_wait(struct io *io, const struct io_file *f, void *buffer, uint64_t offset, size_t bytes, struct err *err);

/* Ask for a pending request not to be carried out. It comes back like any other, as IO_CANCELLED, at once if none of
 * it is in flight; a read that the disk has begun must end first. One that is done already stays as it is. */
void io_cancel(struct io *io, struct io_request *r);
/* No more than n pieces of a class in flight from now on (on each drive, where these are told apart), so that little has to end first when
 * such requests are cancelled; as many as there are, unless said. 0: whoever waits for one of them waits until that is taken back. */
void io_allow(struct io *io, enum io_class class, int n);
/* Let a pending request go before its former peers, such as a prefetch that is waited for now. A lower class than it
 * has changes nothing. */
void io_raise(struct io *io, struct io_request *r, enum io_class class);

/* 0 when a request that came back went well; else -1 and the sentence: "read PATH at byte N: Input/output error". */
int io_request_check(const struct io_request *r, struct err *err);

void io_stats(const struct io *io, struct io_stats *out);

#endif
