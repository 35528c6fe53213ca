/*
 * What rows must be, and mending those that are not: the SQL beneath check.h. Private to cache/.
 */
#ifndef QUIRE_CACHE_INDEX_CHECK_H
#define QUIRE_CACHE_INDEX_CHECK_H

#include "cache/check.h"
#include "cache/index.h"

/* What a damaged row touches: those that are not 0 or NULL. */
struct index_target {
	int64_t span, run;
	const char *corpus;
};

enum { INDEX_CHECKS = 25 };

/* Rule `i` of INDEX_CHECKS: each row that breaks it goes to fn with a sentence, in which several calls for one row
 * agree. */
int index_check(struct index *x, int i, void (*fn)(void *ctx, const char *text, const struct index_target *t),
		void *ctx, struct err *err);

/* Every chain that has a name, from its tip to its beginning. fn has one call for each span, and one with span 0 at the
 * end, where n_tokens is that of the snapshot (0: of a pending chain). */
struct index_link {
	const char *corpus;
	int64_t span, run, n_tokens;
	int64_t former;        /* the snapshot whose chain it is, when that is a former one; 0: it is not */
	bool damaged;
};
int index_each_link(struct index *x, void (*fn)(void *ctx, const struct index_link *l), void *ctx, struct err *err);

/* Every extent, whether its row is whole or not. */
struct index_extent {
	struct extent extent;
	int64_t run;
};
int index_all_extents(struct index *x, void (*fn)(void *ctx, const struct index_extent *e), void *ctx, struct err *err);

/* Spans that are marked as damaged. */
int index_count_waiting(struct index *x, int64_t *out, struct err *err);

/* All spans that are not known to be damaged; of a corpus when it is not NULL. free() them. */
int index_list_spans(struct index *x, const char *corpus, int64_t **out, size_t *n, struct err *err);

/* A span by its row: 1 found, 0 not (any more). */
struct index_span {
	struct span_key key;
	int32_t n_tokens, n_groups, n_index_layers;
	uint32_t record_bytes[256]; /* [n_groups] */
	uint32_t index_key_bytes;
	bool damaged;
};
int index_get_span(struct index *x, int64_t id, struct index_span *out, struct err *err);

/* Inside a transaction; `bad` are spans whose bytes are wrong, `bad_jobs` jobs whose state or extents are. On failure
 * roll back; the report is to be cleared. */
int index_repair(struct index *x, const int64_t *bad, size_t n, const int64_t *bad_jobs, size_t n_jobs,
		 struct cache_repair_report *out, struct err *err);

#endif
