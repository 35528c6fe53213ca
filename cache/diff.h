/*
 * What is different between two snapshots: which documents came, went, changed or stand elsewhere, and how much of what
 * is computed both have. A span's key names every token before it, so what two snapshots share is their beginning and
 * nothing else.
 */
#ifndef QUIRE_CACHE_DIFF_H
#define QUIRE_CACHE_DIFF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/cache.h"

/* A snapshot of a corpus with its tokens, as cache_load_snapshot_of, for any thread; cache_free_snapshot. */
int cache_read_snapshot(struct cache_reader *r, const char *corpus, int64_t id, struct cache_snapshot **out,
			struct err *err);

/* Two of them as they are at one moment. id 0: the current one; `from` NULL: the one before `to`, of the same corpus.
 * ERR_NOT_FOUND: there is none before it, or as cache_files. */
int cache_read_pair(struct cache_reader *r, const char *from, int64_t from_id, const char *to, int64_t to_id,
		    struct cache_snapshot **from_out, struct cache_snapshot **to_out, struct err *err);

enum cache_change {
	CACHE_REMOVED,
	CACHE_ADDED,
	CACHE_CHANGED,  /* another text at the same path; that it stands elsewhere for that is no news */
	CACHE_MOVED,    /* the same text, on another side of one that did not move */
	N_CACHE_CHANGES
};

struct cache_diff_file {
	enum cache_change change;
	const char *path;                 /* of one of the snapshots, valid as long as they are */
	int32_t from_place, to_place;     /* among the documents, from 0; -1 where it is not */
	int64_t from_tokens, to_tokens;   /* 0 where it is not */
};

struct cache_diff {
	struct cache_diff_file *files;    /* [n_files] the removed ones in the older order, the others in the newer one */
	size_t n_files;
	int64_t n[N_CACHE_CHANGES];       /* how many of each */
	int64_t n_same;
	bool same_identity;               /* else their latents have nothing to do with each other, and no tokens are shared */
	int64_t shared_tokens;            /* equal from the first one on */
	int64_t shared_spans;             /* whose latents are one thing in the store: whole spans, or the same end */
	/* Where the newer one goes on alone: a place among its documents and a line of that, from 1 (0: in its header); -1
	 * when it has nothing of its own, or its difference is before its documents. */
	int32_t parting_place;
	int32_t parting_line;
};

/* Pure. Of the documents with the same text as few as possible count as moved. For cache_diff_clear. */
void cache_diff_make(struct cache_diff *out, const struct cache_snapshot *from, const struct cache_snapshot *to);
void cache_diff_clear(struct cache_diff *d);

#endif
