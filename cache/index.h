/*
 * All the SQL of the store (sql.h has the statements). Private to cache/. Every row is checked against its sum when it
 * is read: ERR_DAMAGED names table and row.
 *
 *   layout    what an identity's records look like
 *   span      64 tokens: key, parent, ids, and where it lies: place `place` of run `run`
 *   run       spans written together; its extents hold their blocks group by group, their index keys layer by
 *             layer, and all their sums
 *   extent    segment, offset, bytes
 *   snapshot  a corpus as it was read once; its tokens are the chain of spans that ends at `tip`. One is current
 *   pending   the same for an ingest that is under way or was interrupted
 *   job       a run without spans yet: what of it is there, and the state from which the ingest goes on
 *   routing   how often the tokens of a run chose each expert, as they were computed
 *
 * A span is kept by what names it: a snapshot or a pending row whose tip it is, or a child. `refs` counts these, so
 * naming a chain is one row and dropping one walks from its tip only as far as nobody else shares it, leaves first.
 *
 * One writer; the functions that change something are called between index_begin and index_commit.
 */
#ifndef QUIRE_CACHE_INDEX_H
#define QUIRE_CACHE_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "cache/cache.h"
#include "cache/history.h"
#include "cache/key.h"
#include "cache/scratch.h"
#include "cache/segment.h"

enum { INDEX_FORMAT = 5 };

struct index;

/* Open dir/index.sqlite; with `writer`, create or upgrade it. */
int index_open(struct index **out, const char *dir, bool writer, struct err *err);
/* Takes NULL. */
void index_close(struct index *x);

int index_begin(struct index *x, struct err *err);
/* On failure nothing of the transaction holds, except that after an I/O error (*unsure) nobody can say. */
int index_commit(struct index *x, bool *unsure, struct err *err);
void index_rollback(struct index *x);
/* What is read from here to index_rollback is as of one moment, whatever others commit. */
int index_begin_reading(struct index *x, struct err *err);

int index_each_extent(struct index *x, void (*fn)(void *ctx, struct extent e), void *ctx, struct err *err);

/* The row of an identity, made when `make`; ERR_MISMATCH when it is known with another layout. 0 in *id: none. */
int index_layout(struct index *x, const uint8_t identity[32], const struct cache_layout *make, int64_t *id,
		 struct err *err);

/* 1: found, 0: no such span, or a damaged one when `whole`, of which *span tells; else it is left alone. */
int index_find_span(struct index *x, const struct span_key *key, bool whole, int64_t *span, struct err *err);

/* Where a span's share of an extent lies. */
struct block {
	struct extent extent, sums;
	int32_t place, n_places;     /* in the run */
	int32_t n_tokens;
	int32_t n_groups;
	int64_t token_bytes;         /* of a record, or of one index key */
};

/* 1: found, 0: no such span or extent. */
int index_find_block(struct index *x, const struct span_key *key, enum extent_kind kind, int32_t part,
		     struct block *out, struct err *err);

int index_add_run(struct index *x, int64_t layout, int32_t n_places, int64_t *run, struct err *err);
int index_add_extent(struct index *x, int64_t run, enum extent_kind kind, int32_t part, struct extent e,
		     struct err *err);
/* Add a span, or give a damaged one its new place. parent 0: the first. */
int index_put_span(struct index *x, const struct span_key *key, int64_t parent, int64_t run, int32_t place,
		   const int32_t *ids, int32_t n, int64_t *span, struct err *err);
int index_mark_damaged(struct index *x, const struct span_key *key, struct err *err);

/* Let the corpus's pending row name tip (0: no row); what it named before goes unless somebody else names it. */
int index_set_pending(struct index *x, const char *corpus, int64_t tip, struct err *err);
/* Make it the corpus's current snapshot. Of those before it the newest `keep` stay; one of the same tokens goes. */
int index_add_snapshot(struct index *x, const struct cache_snapshot *s, int64_t layout, int64_t tip, int64_t keep,
		       int64_t *id, struct err *err);

/* All snapshots of a corpus, the newest first, and the tokens that nobody else names; free() them. ERR_NOT_FOUND. */
int index_list_snapshots(struct index *x, const char *corpus, struct cache_history **out, size_t *n, struct err *err);
/* The newest snapshot of the corpus that is older than this one: ERR_NOT_FOUND when there is none. */
int index_snapshot_before(struct index *x, const char *corpus, int64_t id, int64_t *before, struct err *err);
/* A former snapshot and the spans that nobody else names go. ERR_NOT_FOUND names those there are. */
int index_forget(struct index *x, const char *corpus, int64_t id, struct err *err);
/* It has a snapshot, current or not: 1, or 0. */
int index_has_snapshot(struct index *x, const char *corpus, struct err *err);

/* Drop the corpus's snapshots, pending row and job, and the spans that nobody else names. ERR_NOT_FOUND. */
int index_drop_corpus(struct index *x, const char *corpus, struct err *err);
int index_touch(struct index *x, const char *corpus, int64_t now_s, struct err *err);
/* All spans of a run give up their bytes: they are damaged from now on, and the run's extents go. A job's run goes
 * with its job. */
int index_strip_run(struct index *x, int64_t run, struct err *err);

/* Bytes of each run's extents, and when each corpus was last used. */
int index_each_run(struct index *x, void (*fn)(void *ctx, int64_t run, int64_t bytes), void *ctx, struct err *err);
int index_each_use(struct index *x, void (*fn)(void *ctx, const char *corpus, int64_t used_s), void *ctx,
		   struct err *err);

/* Extents that the transaction dropped: space only after it is committed. Valid until the next index_begin. */
const struct extent *index_freed(const struct index *x, size_t *n);
/* Jobs that it dropped, likewise. */
const int64_t *index_ended(const struct index *x, size_t *n);

struct index_job {
	int64_t id, run;
	uint8_t identity[32];
	struct span_key tip;         /* of its last span: it names the identity and all tokens up to the job's end */
	int64_t n_tokens;            /* that the job's run has */
	int32_t n_places;
	uint8_t *places;             /* [n_spans] 1: it has a place in the run */
	size_t n_spans;
	uint8_t *whole;              /* [n_parts] 1: all of it is there */
	size_t n_parts;
	int32_t next_layer;
	struct scratch_name state;
	int64_t state_bytes;
	uint64_t state_sum;
};

/* 1: found, and the run's extents go to fn; 0: none. ERR_DAMAGED: there is one whose rows are wrong. free() the arrays. */
int index_find_job(struct index *x, const char *corpus, struct index_job *out,
		   void (*fn)(void *ctx, enum extent_kind kind, int32_t part, struct extent e), void *ctx, struct err *err);
int index_has_job(struct index *x, int64_t id, struct err *err);
/* The id that index_add_job shall give. */
int index_next_job(struct index *x, int64_t *id, struct err *err);
/* All but identity and n_places, which are the run's. */
int index_add_job(struct index *x, const char *corpus, const struct index_job *j, struct err *err);
/* What is whole, the next layer, and the state. */
int index_change_job(struct index *x, const struct index_job *j, struct err *err);
/* The corpus's job goes, if it has one, and its run unless it has got spans. */
int index_drop_job(struct index *x, const char *corpus, struct err *err);
/* Jobs whose rows are whole, without what is in arrays. */
int index_each_job(struct index *x, void (*fn)(void *ctx, const char *corpus, const struct index_job *j), void *ctx,
		   struct err *err);

/* How often a run's tokens, n_tokens of them, chose each expert: chosen [n_layers, n_experts]; in place of what it had. */
int index_put_routing(struct index *x, int64_t run, int64_t n_tokens, int32_t n_layers, int32_t n_experts,
		      const uint32_t *chosen, struct err *err);
/* 1: it is there, 0: nothing was counted. ERR_MISMATCH: counted for others than n_layers and n_experts. */
int index_get_routing(struct index *x, int64_t run, int32_t n_layers, int32_t n_experts, uint32_t *chosen, int64_t *n_tokens,
		      struct err *err);
/* What cache/routing.h says, added to chosen and *n_tokens. */
int index_add_routing(struct index *x, const char *corpus, int64_t id, int32_t n_layers, int32_t n_experts, int64_t *chosen,
		      int64_t *n_tokens, struct err *err);
/* 1, its name and current snapshot; 0: none. Rows that are wrong are passed over. */
int index_last_used(struct index *x, const uint8_t identity[32], char corpus[128], int64_t *id, struct err *err);

/* id 0: the current one. */
int index_load_snapshot(struct index *x, const char *corpus, int64_t id, struct cache_snapshot **out, struct err *err);
/* The same without ids. */
int index_load_files(struct index *x, const char *corpus, int64_t id, struct cache_snapshot **out, struct err *err);
int index_list(struct index *x, struct cache_corpus **out, size_t *n, struct err *err);
int index_count(struct index *x, int64_t *n_corpora, int64_t *n_spans, struct err *err);

#endif
