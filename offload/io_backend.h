/*
 * What carries out the operations of an engine: io_uring, a pool of threads, or a test's fake. Private to
 * offload/io*.c and to tests.
 *
 * A backend is simple on purpose. It neither retries nor checks: what the system said about an operation is what the
 * completion says, as bytes or as -errno, and io.c alone decides what that means. So all backends mean the same.
 * All functions are called by the engine's thread.
 */
#ifndef QUIRE_OFFLOAD_IO_BACKEND_H
#define QUIRE_OFFLOAD_IO_BACKEND_H

#include "offload/io.h"

/* One piece. `id` is never 0 and never used twice, so that a late completion is not taken for another's. */
struct io_operation {
	uint64_t id;
	enum io_op op;
	int fd;
	int file_slot;    /* where register_file put the file; -1: nowhere */
	int buffer_slot;  /* likewise, for a buffer that holds the memory below */
	uint64_t offset;
	void *memory;
	uint32_t bytes;
};

struct io_completion {
	uint64_t id;
	int32_t result;   /* bytes, or -errno */
};

/* Registered files and buffers are numbered by the engine, below these. A larger buffer is registered in parts, as the
 * kernel takes no more at a time. */
enum { IO_FILE_SLOTS = 512, IO_BUFFER_SLOTS = 256, IO_BUFFER_MOST = 1 << 30 };

struct io_backend {
	const char *name;
	/* Nothing is in flight. */
	void (*free)(void *state);
	/* Take one operation, never more in flight than the depth; it may run only with the next reap. */
	void (*start)(void *state, const struct io_operation *o);
	/* Run what was started and give up to n_most completions; wait for the first up to timeout_ms, below 0 for as
	 * long as it takes. Returns how many; 0 after the time, or when a signal came. n_most 0: run only. */
	int (*reap)(void *state, struct io_completion *out, int n_most, int timeout_ms);
	/* Advice: it still completes exactly once, with -ECANCELED or as if nothing had been said. */
	void (*cancel)(void *state, uint64_t id);
	/* Readable when reap may have something; -1 when the process has no descriptor left for it. */
	int (*fd)(void *state);
	/* NULL: clock_now_ns. The time that its operations take, in nanoseconds, of a test that has one of its own. */
	int64_t (*now)(void *state);
	/* NULL: knows no such thing. Returns 0 or errno; fd -1 and memory NULL empty the slot. */
	int (*register_file)(void *state, int slot, int fd);
	int (*register_buffer)(void *state, int slot, void *memory, size_t bytes);
};

extern const struct io_backend io_ring_backend, io_pread_backend;

/* depth: as options, filled in; the backend may lower it. On failure the sentence says what was refused and why. */
int io_ring_new(void **state, int *depth, struct err *err);
int io_pread_new(void **state, int *depth, int n_threads, struct err *err);

/* The alignment that direct reads of an open file need, found by trying; 0: none works. For kernels whose statx does
 * not tell. */
uint32_t io_probe_alignment(int direct_fd, uint64_t file_bytes);

#endif
