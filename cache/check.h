/*
 * Is the store whole, and making it so. A check looks at everything that the store says of itself: SQLite's own
 * structures, the sum of every row, that rows agree with each other (parents, keys made again from ids, counts), that
 * extents lie inside their segments and apart, that the state of interrupted ingests is there; and, as far as asked, at
 * every byte that was stored. It changes nothing.
 *
 * A check goes in steps, so that questions are answered between them; what changes meanwhile is seen as it is when its
 * turn comes. Engine thread.
 */
#ifndef QUIRE_CACHE_CHECK_H
#define QUIRE_CACHE_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include "cache/cache.h"

struct cache_check_options {
	const char *corpus;    /* read only its spans, and leave out what touches only others; NULL: everything */
	double read_share;     /* of the spans: their records and index keys are read and compared; 0: none, 1: all */
	uint64_t seed;         /* which ones, when not all */
};

struct cache_finding {
	char *text;            /* a sentence: what is damaged and where */
	char **corpora;        /* [n_corpora] that it touches, by name */
	size_t n_corpora;
};

enum { FINDINGS_MOST = 1000 };

struct cache_check_report {
	int64_t n_spans;       /* in the store */
	int64_t waiting_spans; /* that are known to be damaged, or were evicted: computed again when they are needed */
	int64_t read_spans, read_bytes;
	int64_t to_read;       /* spans still to be read */
	int64_t n_damaged;     /* findings, those beyond FINDINGS_MOST too */
	struct cache_finding *findings; /* [n_findings] */
	size_t n_findings;
};

struct cache_check;

/* ERR_NOT_FOUND names the nearest corpus. opt is copied. */
int cache_check_begin(struct cache_check **out, struct cache *c, const struct cache_check_options *opt,
		      struct err *err);
/* 1: there is more to do, 0: done. An error is one of reading the index; damage is a finding. */
int cache_check_step(struct cache_check *k, struct err *err);
/* What has been found so far; whole when cache_check_step has said 0. Valid until the next step. */
const struct cache_check_report *cache_check_report(const struct cache_check *k);
/* Takes NULL. */
void cache_check_free(struct cache_check *k);

struct cache_repair_report {
	int64_t quarantined_spans; /* to be computed again when they are needed; their ids are known */
	int64_t lost_snapshots;    /* former ones, which went with spans or rows */
	int64_t lost_spans;        /* whose ids are not known, and those that depend on them */
	int64_t dropped_jobs;      /* interrupted ingests that begin anew */
	struct {
		char *name, *source;
	} *corpora;                /* [n_corpora] that went with them: to be ingested again */
	size_t n_corpora;
};

/*
 * Mend what a check that has come to its end has found, in one transaction: spans whose bytes or rows are damaged are
 * quarantined, rows that make no sense go, corpora that cannot be put together any more go and what is whole of them
 * waits for their next ingest; counts are counted again. Nothing that is whole is touched. ERR_DAMAGED when the
 * database itself is past mending. Free the report with cache_repair_clear.
 */
int cache_repair(struct cache *c, const struct cache_check *k, struct cache_repair_report *out, struct err *err);
void cache_repair_clear(struct cache_repair_report *r);

#endif
