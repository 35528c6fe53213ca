/*
 * Scratch files: the state of an ingest that is under way, from which it goes on after a crash. Private to cache/.
 *
 * A job has two files, scratch-JOB-0 and -1, which are written in turn, so that the one that the job's row names stays
 * whole while the other is written. A file is the state in pieces of 4 MiB, then XXH3-64 of each piece; the row has
 * XXH3-64 of these sums.
 *
 * Both ways it is passed from its beginning to its end, in as many calls as the caller likes: a state may be large, and
 * others wait between two calls.
 */
#ifndef QUIRE_CACHE_SCRATCH_H
#define QUIRE_CACHE_SCRATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

struct scratch_name {
	int64_t job;           /* from 1 */
	int32_t file;          /* 0 or 1 */
};

enum { SCRATCH_PIECE = 4 << 20 };

struct scratch;

/* Writing: space for `bytes` of state is taken, so that a full disk is met before anything is written. What was in the
 * file is lost. */
int scratch_create(struct scratch **out, const char *dir, struct scratch_name name, int64_t bytes, struct err *err);
/* The next n bytes, which are on disk when this returns: what is left for scratch_finish to sync is small. */
int scratch_append(struct scratch *s, const void *data, int64_t n, struct err *err);
/* After all bytes: sums and the file's name are synced too. *sum is what scratch_open wants to see. */
int scratch_finish(struct scratch *s, uint64_t *sum, struct err *err);

/* Reading: ERR_DAMAGED when the file is not there, has not these bytes, or its sums have not this sum. */
int scratch_open(struct scratch **out, const char *dir, struct scratch_name name, int64_t bytes, uint64_t sum,
		 struct err *err);
/* The next n bytes. A piece is verified with its last byte: nothing counts before all of them have come without an error.
 * ERR_DAMAGED, whatever the reason, as there is a way without it. */
int scratch_read(struct scratch *s, void *out, int64_t n, struct err *err);

/* Bytes that have passed. */
int64_t scratch_at(const struct scratch *s);
/* Takes NULL. */
void scratch_close(struct scratch *s);

/* Remove a job's files, if they are there. What cannot be removed is warned of, and is tried again by scratch_clean. */
void scratch_remove(const char *dir, int64_t job);
/* Remove the files of jobs for which `is_there` is false. */
int scratch_clean(const char *dir, bool (*is_there)(void *ctx, int64_t job), void *ctx, struct err *err);
/* Bytes of all scratch files. */
int64_t scratch_bytes(const char *dir);

#endif
