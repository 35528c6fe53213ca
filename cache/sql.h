/*
 * The database beneath index.h: schema, upgrades, statements, and how they are run. Private to cache/index*.c.
 *
 * Every row carries `sum`, XXH3-64 of its table's name and of its columns with their types: SQLite's own check takes
 * three flipped bits in four of a row for data. It is made by the statement that writes the row and looked at by each
 * that reads it. A statement that changes a row changes only a whole one, so that a wrong row is never made to look
 * right.
 */
#ifndef QUIRE_CACHE_SQL_H
#define QUIRE_CACHE_SQL_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/index.h"
#include "config/mem.h"

/* The columns that a row's sum is of; every statement says `span`, `run`, ... for the row it means. */
#define LAYOUT_ROW   "layout.id, layout.identity, layout.n_groups, layout.record_bytes, layout.n_index_layers," \
		     " layout.index_key_bytes"
#define RUN_ROW      "run.id, run.layout, run.n_places, run.n_living"
#define EXTENT_ROW   "extent.run, extent.kind, extent.part, extent.segment, extent.offset, extent.bytes"
#define SPAN_ROW     "span.id, span.key, span.parent, span.run, span.place, span.n_tokens, span.ids, span.refs," \
		     " span.damaged"
#define SNAPSHOT_ROW_3 "snapshot.id, snapshot.corpus, snapshot.source, snapshot.layout, snapshot.created_s," \
		     " snapshot.n_tokens, snapshot.tip, snapshot.revision, snapshot.used_s, snapshot.n_documents," \
		     " snapshot.n_skipped" /* of format 3 */
#define SNAPSHOT_ROW SNAPSHOT_ROW_3 ", snapshot.is_current"
#define DOCUMENT_ROW "document.snapshot, document.place, document.path, document.content_hash, document.first_token," \
		     " document.n_tokens, document.line_tokens"
#define SKIPPED_ROW  "skipped.snapshot, skipped.place, skipped.path, skipped.reason"
#define PENDING_ROW  "pending.corpus, pending.tip"
#define JOB_ROW      "job.id, job.corpus, job.run, job.tip, job.n_tokens, job.places, job.whole, job.next_layer," \
		     " job.file, job.state_bytes, job.state_sum"

#define ROUTING_ROW  "routing.run, routing.n_tokens, routing.n_layers, routing.n_experts, routing.chosen"

#define ROW_SUM(table, row) "row_sum('" table "', " row ")"
#define WHOLE(table, row)   "(" table ".sum = " ROW_SUM(table, row) ")"
#define LAYOUT_WHOLE   WHOLE("layout", LAYOUT_ROW)
#define RUN_WHOLE      WHOLE("run", RUN_ROW)
#define EXTENT_WHOLE   WHOLE("extent", EXTENT_ROW)
#define SPAN_WHOLE     WHOLE("span", SPAN_ROW)
#define SNAPSHOT_WHOLE WHOLE("snapshot", SNAPSHOT_ROW)
#define DOCUMENT_WHOLE WHOLE("document", DOCUMENT_ROW)
#define SKIPPED_WHOLE  WHOLE("skipped", SKIPPED_ROW)
#define PENDING_WHOLE  WHOLE("pending", PENDING_ROW)
#define JOB_WHOLE      WHOLE("job", JOB_ROW)
#define ROUTING_WHOLE  WHOLE("routing", ROUTING_ROW)

enum query {
	EACH_EXTENT,
	FIND_LAYOUT, ADD_LAYOUT,
	FIND_SPAN, FIND_BLOCK,
	ADD_RUN, ADD_EXTENT, ADD_SPAN, MOVE_SPAN, MARK_DAMAGED, RUN_LIVING,
	REFER, REFS, DROP_SPAN, DROP_RUN, RUN_EXTENTS,
	FIND_PENDING, DROP_PENDING, ADD_PENDING,
	FIND_SNAPSHOT, DROP_SNAPSHOT, ADD_SNAPSHOT, ADD_DOCUMENT, ADD_SKIPPED,
	CHAIN, DOCUMENTS, SKIPPED,
	LIST, COUNT,
	DEMOTE_SNAPSHOT, OLD_SNAPSHOT, ANY_SNAPSHOT, EACH_SNAPSHOT, LINK,
	TOUCH, EMPTY_RUN, RUN_SPANS, EACH_RUN, EACH_USE,
	FIND_JOB, HAS_JOB, NEXT_JOB, ADD_JOB, CHANGE_JOB, DROP_JOB, IDLE_RUNS, EACH_JOB,
	PUT_ROUTING, GET_ROUTING, CHAIN_RUNS, LAST_USED,
	N_QUERIES
};

struct index {
	char *path;
	sqlite3 *db;
	sqlite3_stmt *statements[N_QUERIES];
	struct extent *freed;
	size_t n_freed, freed_room;
	int64_t *ended;        /* [n_ended] jobs */
	size_t n_ended, ended_room;
};

/* What SQLite says, as a sentence that says what to do. -1. */
int sql_error(struct index *x, struct err *err);
/* ERR_DAMAGED: this row of this table is not what was written. -1. */
int sql_wrong_row(struct index *x, const char *table, int64_t row, struct err *err);

int sql_execute(struct index *x, const char *statements, struct err *err);

/* Start a query over: 1 at its first row, 0 when it has none. types: i int64_t, t text, b bytes and their size_t,
 * ? a row id or 0. A query left before its end is ended by `sql_done`, lest it hold up checkpoints. */
int sql_ask(struct index *x, enum query q, struct err *err, const char *types, ...);
/* The next row of a query: 1 and its columns, or 0 and the query is over. */
int sql_next(struct index *x, enum query q, struct err *err);
void sql_done(struct index *x, enum query q);

/* The end of a change to one row, where rc is what sql_ask returned: ERR_DAMAGED when there was no such whole row. */
int sql_changed(struct index *x, int rc, const char *table, int64_t row, struct err *err);
/* Of the row at hand: column `column` says that it is whole. Else ERR_DAMAGED, and the query is over. */
int sql_whole(struct index *x, enum query q, int column, const char *table, int64_t row, struct err *err);

int64_t sql_integer(struct index *x, enum query q, int column);
/* The column is this text, and not that of the row which a wrong entry of an index led to. */
bool sql_is_text(struct index *x, enum query q, int column, const char *text);
/* Copy a blob of exactly `bytes` bytes. */
int sql_blob(struct index *x, enum query q, int column, void *out, size_t bytes, struct err *err);
char *sql_string(struct arena *a, struct index *x, enum query q, int column);
/* A run's row goes, and its extents are noted as freed. */
int index_drop_run(struct index *x, int64_t run, struct err *err);
/* The job whose run it is goes, and the run: 1 when there was one. */
int index_drop_job_of(struct index *x, int64_t run, struct err *err);
/* ERR_NOT_FOUND with the nearest name. -1. */
int index_no_such_corpus(struct index *x, const char *corpus, struct err *err);
/* ERR_NOT_FOUND with those that there are; id 0: the current one. -1. */
int index_no_such_snapshot(struct index *x, const char *corpus, int64_t id, struct err *err);
/* A snapshot, and the spans that nobody else names. */
int index_drop_snapshot(struct index *x, int64_t id, int64_t tip, struct err *err);
/* What n_tokens take: records, index keys and their sums, by the columns n_index_layers, index_key_bytes and record_bytes
 * of a query. */
int64_t sql_tokens_bytes(struct index *x, enum query q, int column, int64_t n_tokens);
/* Segment, offset and bytes from three columns. */
struct extent sql_extent(struct index *x, enum query q, int column);

#endif
