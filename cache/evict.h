/*
 * Which runs go when the store may not grow. Pure: no I/O, times are arguments. Private to cache/.
 *
 * Space comes back by the run, so runs are what is chosen: of corpora by when they were last used, longest ago first,
 * those before all others which only former snapshots need, and of one corpus from its end, so that a beginning outlives what depends on it. A run that more than one corpus
 * needs, or that belongs to a pinned one, stays.
 */
#ifndef QUIRE_CACHE_EVICT_H
#define QUIRE_CACHE_EVICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct evict_run {
	int64_t run;
	int64_t bytes;         /* that come back with it */
	int32_t corpus;        /* whose it is, from 0; -1: of several */
	int64_t last_used_s;   /* of the corpus */
	int64_t end;           /* spans from the beginning of the corpus to the last of this run; INT64_MAX: it has none yet */
	bool pinned;
	bool former;           /* no current snapshot and no ingest needs it */
};

/* Order `runs` so that the first *n are those to evict: the fewest in that order that give back need_bytes, or all
 * that may go when these are not enough. Returns the bytes that they give back. */
int64_t evict_choose(struct evict_run *runs, size_t n_runs, int64_t need_bytes, size_t *n);

#endif
