/*
 * The inside of an open store, for the files that make up cache.h and check.h. Private to cache/.
 */
#ifndef QUIRE_CACHE_INSIDE_H
#define QUIRE_CACHE_INSIDE_H

#include "cache/cache.h"
#include "cache/index.h"
#include "cache/segment.h"

struct cache {
	char *dir;
	int lock_fd;
	struct index *index;
	struct segments *segments;
	const struct io_options *io; /* NULL: as the machine allows */
	struct err unsure;     /* code is set: why this handle writes no more */
	int64_t max_bytes;     /* 0: no limit */
	char *pinned;          /* NULL: no corpus */
	int64_t pinned_former; /* a former snapshot; 0: none */
	void (*let_go)(void *ctx); /* of what is pinned; NULL: it stays */
	void *let_go_ctx;
	int64_t keep_snapshots; /* former ones of a corpus */
	struct cache_run *runs; /* that are open */
	int64_t reads, read_bytes, damaged;
};

struct cache_reader {
	struct index *index;
};

/* Refused after a write that failed halfway. */
int cache_check_sure(const struct cache *c, struct err *err);
/* End a change: commit what `rc` calls good, give back the space that it dropped, undo the rest. */
int cache_finish(struct cache *c, int rc, struct err *err);
/* Work out anew from the rows what is free. */
int cache_find_space(struct cache *c, struct err *err);

/* The extents of runs that are open are in use, whether rows name them or not. */
int cache_runs_take(struct cache *c, struct err *err);
/* The rows of this job are gone; a run that is open keeps its extents. */
void cache_runs_end_job(struct cache *c, int64_t job);
/* Such a run is the corpus's. */
bool cache_runs_write(const struct cache *c, const char *corpus);

/* Before need_bytes are reserved for a corpus: see cache_set_limit. */
int cache_make_room(struct cache *c, const char *corpus, int64_t need_bytes, struct err *err);

#endif
