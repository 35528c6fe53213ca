/*
 * A disk that misbehaves on order: a backend for struct io (offload/io_backend.h) that reads and writes real files,
 * one operation after another, when completions are asked for, and spoils the one it was told to spoil.
 *
 *     struct fake_io fake = {.fault = FAKE_ERROR, .error = EIO, .nth = 3};
 *     struct io_options opt = {.backend = &fake_io_backend, .backend_state = &fake};
 *
 * The struct outlives the engine; after it, the counts can be read and the struct used again.
 */
#ifndef QUIRE_TESTS_SUPPORT_FAKE_IO_H
#define QUIRE_TESTS_SUPPORT_FAKE_IO_H

#include <stdbool.h>

#include "offload/io_backend.h"

enum fake_fault {
	FAKE_NONE,
	FAKE_ERROR,    /* -error, nothing moved: EIO, EINTR, EAGAIN, ENOSPC, ... */
	FAKE_SHORT,    /* half of the bytes moved, at least one; writes by whole 512 bytes */
	FAKE_ZERO,     /* nothing moved, and no error */
	FAKE_FLIP,     /* the lowest bit of the middle byte that was read is another */
	FAKE_LONG,     /* more bytes reported than were asked for */
	FAKE_TWICE,    /* completed twice */
	FAKE_STRANGER, /* followed by a completion of what was never begun */
	FAKE_LATE,     /* completes when nothing else is in flight */
	FAKE_STALE,    /* reported as done, and nothing was moved: memory and disk keep what they held */
	FAKE_SWAP,     /* the place of another operation on the same file is read, or written */
	FAKE_ROT,      /* the lowest bit of the middle byte that was written is another */
};

enum { FAKE_LOG = 4096, FAKE_IN_FLIGHT = 1024 };

struct fake_io {
	/* What to do: set before the engine is made, or between requests. */
	enum fake_fault fault;
	int error;
	int nth;               /* the operation to spoil, counted from 1 as they begin; 0: none */
	bool then_on;          /* and every later one */
	bool backwards;        /* completions come in the reverse order of their beginnings */
	int hold;              /* every operation stays in flight for so many more reaps */
	int n_buffers_most;    /* registered buffers above this number are refused */

	/* What happened. */
	int n_begun;
	struct io_operation begun[FAKE_LOG]; /* the first ones, in order */
	int n_spoiled;         /* operations that the fault could happen to, and did */
	int n_not_run;         /* operations begun since the last reap: a real disk would not know of them yet */
	int n_cancelled;       /* operations that a cancellation met in flight */
	int n_buffers;         /* registered now */

	/* Its own. */
	struct {
		struct io_operation o;
		int number, hold;
		bool cancelled;
	} in_flight[FAKE_IN_FLIGHT];
	int n_in_flight;
	struct io_completion extra;
	bool has_extra;
	struct {
		int fd;
		uint64_t offset;
	} places[2];           /* of the last two operations, to be taken for each other */
};

extern const struct io_backend fake_io_backend;

#endif
