/*
 * Counting before computing. Pure; private to ingest/.
 */
#ifndef QUIRE_INGEST_COUNT_H
#define QUIRE_INGEST_COUNT_H

#include "cache/cache.h"
#include "engine/layout.h"
#include "ingest/ingest.h"

/* What a run of spans takes on disk: extents begin and end on 4 KiB. */
int64_t count_run_bytes(const struct layout *l, int32_t n_tokens);

/* How often each kind of reason is given, the most frequent first; the first examples in the order of `skipped`, whose
 * paths they are. free() the array. */
struct ingest_skip_kind *count_skip_kinds(const struct cache_skipped *skipped, size_t n_skipped, size_t *n);

struct count_document {
	const char *path;
	int64_t n_tokens;
};

/* Sets ERR_TOO_LARGE: the numbers, the largest directories by tokens, and an --exclude that would fit, if there is one.
 * Documents come in the order of their paths. Returns -1. */
int count_too_large(const char *source, const struct count_document *documents, size_t n_documents, int64_t n_tokens,
		    int64_t limit, struct err *err);

#endif
