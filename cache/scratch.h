/*
 * Scratch files: the state of an ingest that is under way, from which it goes on after a crash. Private to cache/.
 *
 * A job has two files, scratch-JOB-0 and -1, which are written in turn, so that the one that the job's row names stays
 * whole while the other is written. A file is the state in pieces of 4 MiB, then XXH3-64 of each piece; the row has
 * XXH3-64 of these sums.
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

/* Write `bytes` of state and sync them, the file's name too. *sum is what scratch_open wants to see. */
int scratch_write(const char *dir, struct scratch_name name, const void *state, int64_t bytes, uint64_t *sum,
		  struct err *err);

/* Reading: ERR_DAMAGED when the file is not there, has not these bytes, or its sums have not this sum. */
struct scratch;
int scratch_open(struct scratch **out, const char *dir, struct scratch_name name, int64_t bytes, uint64_t sum,
		 struct err *err);
/* Takes NULL. */
void scratch_close(struct scratch *s);
/* Bytes of piece i; 0: there is none. Ascending from 0. */
int64_t scratch_piece_bytes(const struct scratch *s, int64_t i);
/* Read and verify it: ERR_DAMAGED, whatever the reason, as there is a way without it. */
int scratch_read(struct scratch *s, int64_t i, void *out, struct err *err);

/* Remove a job's files, if they are there. What cannot be removed is warned of, and is tried again by scratch_clean. */
void scratch_remove(const char *dir, int64_t job);
/* Remove the files of jobs for which `is_there` is false. */
int scratch_clean(const char *dir, bool (*is_there)(void *ctx, int64_t job), void *ctx, struct err *err);
/* Bytes of all scratch files. */
int64_t scratch_bytes(const char *dir);

#endif
