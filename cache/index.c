#include "cache/sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"

int index_each_extent(struct index *x, void (*fn)(void *ctx, struct extent e), void *ctx, struct err *err)
{
	int rc = sql_ask(x, EACH_EXTENT, err, "");

	for (; rc > 0; rc = sql_next(x, EACH_EXTENT, err)) {
		/* A store with a wrong row opens, so that it can be repaired. What the row names is not lent to others. */
		if (!sql_integer(x, EACH_EXTENT, 6))
			log_warn("index %s: extent %" PRId64 " of kind %" PRId64 " of run %" PRId64 " is not what was written: "
				 "`quire check` says what it touches", x->path, sql_integer(x, EACH_EXTENT, 5),
				 sql_integer(x, EACH_EXTENT, 4), sql_integer(x, EACH_EXTENT, 3));
		fn(ctx, sql_extent(x, EACH_EXTENT, 0));
	}
	return rc;
}

/* The column is the key that was asked for, and not that of the row which a wrong entry of an index led to. */
static bool has_key(struct index *x, enum query q, int column, const struct span_key *key)
{
	return (size_t)sqlite3_column_bytes(x->statements[q], column) == sizeof key->bytes &&
	       !memcmp(sqlite3_column_blob(x->statements[q], column), key->bytes, sizeof key->bytes);
}

int index_layout(struct index *x, const uint8_t identity[32], const struct cache_layout *make, int64_t *id,
		 struct err *err)
{
	size_t bytes = make ? (size_t)make->n_groups * sizeof *make->record_bytes : 0;
	int rc = sql_ask(x, FIND_LAYOUT, err, "b", identity, (size_t)32);
	bool same;

	if (rc < 0)
		return -1;
	*id = rc ? sql_integer(x, FIND_LAYOUT, 0) : 0;
	if (rc && sql_whole(x, FIND_LAYOUT, 5, "layout", *id, err))
		return -1;
	if (!make) {
		sql_done(x, FIND_LAYOUT);
		return 0;
	}
	if (!rc) {
		if (sql_ask(x, ADD_LAYOUT, err, "bibii", identity, (size_t)32, (int64_t)make->n_groups, make->record_bytes,
			bytes, (int64_t)make->n_index_layers, (int64_t)make->index_key_bytes) < 0)
			return -1;
		*id = sqlite3_last_insert_rowid(x->db);
		return 0;
	}
	same = sql_integer(x, FIND_LAYOUT, 1) == make->n_groups && sql_integer(x, FIND_LAYOUT, 3) == make->n_index_layers &&
	       sql_integer(x, FIND_LAYOUT, 4) == make->index_key_bytes &&
	       (size_t)sqlite3_column_bytes(x->statements[FIND_LAYOUT], 2) == bytes &&
	       !memcmp(sqlite3_column_blob(x->statements[FIND_LAYOUT], 2), make->record_bytes, bytes);
	sql_done(x, FIND_LAYOUT);
	if (!same)
		return err_set(err, ERR_MISMATCH, "index %s knows latents of this identity with other sizes", x->path);
	return 0;
}

int index_find_span(struct index *x, const struct span_key *key, bool whole, int64_t *span, struct err *err)
{
	int rc = sql_ask(x, FIND_SPAN, err, "b", key->bytes, sizeof key->bytes);

	if (rc <= 0)
		return rc;
	*span = sql_integer(x, FIND_SPAN, 0);
	if (!has_key(x, FIND_SPAN, 3, key)) {
		sql_done(x, FIND_SPAN);
		return sql_wrong_row(x, "span", *span, err);
	}
	if (sql_whole(x, FIND_SPAN, 4, "span", *span, err))
		return -1;
	rc = !(whole && sql_integer(x, FIND_SPAN, 1));
	sql_done(x, FIND_SPAN);
	return rc;
}

int index_find_block(struct index *x, const struct span_key *key, enum extent_kind kind, int32_t part,
		     struct block *out, struct err *err)
{
	int rc = sql_ask(x, FIND_BLOCK, err, "bii", key->bytes, sizeof key->bytes, (int64_t)kind, (int64_t)part);
	const uint32_t *record_bytes;
	int64_t span, run;
	int n;

	if (rc <= 0)
		return rc;
	span = sql_integer(x, FIND_BLOCK, 12);
	run = sql_integer(x, FIND_BLOCK, 13);
	if (!has_key(x, FIND_BLOCK, 15, key)) {
		sql_done(x, FIND_BLOCK);
		return sql_wrong_row(x, "span", span, err);
	}
	if (sql_whole(x, FIND_BLOCK, 16, "span", span, err) || sql_whole(x, FIND_BLOCK, 17, "run", run, err) ||
	    sql_whole(x, FIND_BLOCK, 18, "layout", sql_integer(x, FIND_BLOCK, 14), err) ||
	    sql_whole(x, FIND_BLOCK, 19, "extent", run, err) || sql_whole(x, FIND_BLOCK, 20, "extent", run, err))
		return -1;
	*out = (struct block){
		.extent = sql_extent(x, FIND_BLOCK, 0), .sums = sql_extent(x, FIND_BLOCK, 3),
		.place = (int32_t)sql_integer(x, FIND_BLOCK, 6), .n_places = (int32_t)sql_integer(x, FIND_BLOCK, 7),
		.n_tokens = (int32_t)sql_integer(x, FIND_BLOCK, 8), .n_groups = (int32_t)sql_integer(x, FIND_BLOCK, 9),
		.token_bytes = sql_integer(x, FIND_BLOCK, 11),
	};
	record_bytes = sqlite3_column_blob(x->statements[FIND_BLOCK], 10);
	n = sqlite3_column_bytes(x->statements[FIND_BLOCK], 10) / (int)sizeof *record_bytes;
	if (kind == EXTENT_LATENTS)
		out->token_bytes = part < n ? record_bytes[part] : 0;
	sql_done(x, FIND_BLOCK);
	return 1;
}

int index_add_run(struct index *x, int64_t layout, int32_t n_places, int64_t *run, struct err *err)
{
	if (sql_ask(x, ADD_RUN, err, "ii", layout, (int64_t)n_places) < 0)
		return -1;
	*run = sqlite3_last_insert_rowid(x->db);
	return 0;
}

int index_add_extent(struct index *x, int64_t run, enum extent_kind kind, int32_t part, struct extent e,
		     struct err *err)
{
	return sql_ask(x, ADD_EXTENT, err, "iiiiii", run, (int64_t)kind, (int64_t)part, (int64_t)e.segment, e.offset,
		   e.bytes);
}

static int refer(struct index *x, int64_t span, int64_t by, struct err *err)
{
	return sql_changed(x, sql_ask(x, REFER, err, "ii", by, span), "span", span, err);
}

/* A span more or less lies in the run; with the last one its extents go. */
static int run_count(struct index *x, int64_t run, int64_t by, struct err *err)
{
	int rc = sql_ask(x, RUN_LIVING, err, "ii", by, run);
	int64_t n_living;

	if (rc <= 0)
		return rc ? -1 : sql_wrong_row(x, "run", run, err);
	n_living = sql_integer(x, RUN_LIVING, 0);
	/* An update is finished only when it is stepped to its end. */
	if (sql_next(x, RUN_LIVING, err) < 0)
		return -1;
	return n_living ? 0 : index_drop_run(x, run, err);
}

int index_drop_run(struct index *x, int64_t run, struct err *err)
{
	int rc;

	for (rc = sql_ask(x, RUN_EXTENTS, err, "i", run); rc > 0; rc = sql_next(x, RUN_EXTENTS, err)) {
		/* A wrong row may name what is somebody else's. Its own space is found when the store is opened again. */
		if (!sql_integer(x, RUN_EXTENTS, 3))
			continue;
		if (x->n_freed == x->freed_room) {
			x->freed_room = x->freed_room ? 2 * x->freed_room : 64;
			x->freed = xrealloc(x->freed, x->freed_room, sizeof *x->freed);
		}
		x->freed[x->n_freed++] = sql_extent(x, RUN_EXTENTS, 0);
	}
	return rc < 0 ? -1 : sql_ask(x, DROP_RUN, err, "i", run);
}

/* One name less for the chain that ends at tip: leaves go until somebody else needs one. */
static int release(struct index *x, int64_t tip, struct err *err)
{
	while (tip) {
		int64_t refs, parent, run;
		int rc;

		if (refer(x, tip, -1, err))
			return -1;
		rc = sql_ask(x, REFS, err, "i", tip);
		if (rc <= 0)
			return rc;
		refs = sql_integer(x, REFS, 0);
		parent = sql_integer(x, REFS, 1);
		run = sql_integer(x, REFS, 2);
		sql_done(x, REFS);
		if (refs)
			return 0;
		if (sql_ask(x, DROP_SPAN, err, "i", tip) || run_count(x, run, -1, err))
			return -1;
		tip = parent;
	}
	return 0;
}

static int move_span(struct index *x, int64_t span, int64_t from, int64_t to, int32_t place, bool damaged,
		     struct err *err)
{
	int rc = sql_ask(x, MOVE_SPAN, err, "iiii", to, (int64_t)place, (int64_t)damaged, span);

	return sql_changed(x, rc, "span", span, err) || run_count(x, to, 1, err) || run_count(x, from, -1, err) ? -1 : 0;
}

int index_put_span(struct index *x, const struct span_key *key, int64_t parent, int64_t run, int32_t place,
		   const int32_t *ids, int32_t n, int64_t *span, struct err *err)
{
	int rc = sql_ask(x, FIND_SPAN, err, "b", key->bytes, sizeof key->bytes);
	int64_t former_run;

	if (rc < 0)
		return -1;
	if (!rc) {
		if (sql_ask(x, ADD_SPAN, err, "b?iiib", key->bytes, sizeof key->bytes, parent, run, (int64_t)place,
			(int64_t)n, ids, (size_t)n * sizeof *ids) < 0)
			return -1;
		*span = sqlite3_last_insert_rowid(x->db);
		return (parent && refer(x, parent, 1, err)) || run_count(x, run, 1, err) ? -1 : 0;
	}
	*span = sql_integer(x, FIND_SPAN, 0);
	former_run = sql_integer(x, FIND_SPAN, 2);
	sql_done(x, FIND_SPAN);
	return move_span(x, *span, former_run, run, place, false, err);
}

int index_mark_damaged(struct index *x, const struct span_key *key, struct err *err)
{
	int64_t span;
	int rc = index_find_span(x, key, false, &span, err);

	return rc <= 0 ? rc : sql_changed(x, sql_ask(x, MARK_DAMAGED, err, "i", span), "span", span, err);
}

int index_set_pending(struct index *x, const char *corpus, int64_t tip, struct err *err)
{
	int rc = sql_ask(x, FIND_PENDING, err, "t", corpus);
	int64_t former = rc > 0 ? sql_integer(x, FIND_PENDING, 0) : 0;

	if (rc < 0 || (rc && sql_whole(x, FIND_PENDING, 3, "pending", sql_integer(x, FIND_PENDING, 1), err)))
		return -1;
	if (rc && !sql_is_text(x, FIND_PENDING, 2, corpus)) {
		int64_t row = sql_integer(x, FIND_PENDING, 1);

		sql_done(x, FIND_PENDING);
		return sql_wrong_row(x, "pending", row, err);
	}
	sql_done(x, FIND_PENDING);
	if (former == tip)
		return 0;
	if (former && sql_ask(x, DROP_PENDING, err, "t", corpus))
		return -1;
	if (tip && (sql_ask(x, ADD_PENDING, err, "ti", corpus, tip) || refer(x, tip, 1, err)))
		return -1;
	return release(x, former, err);
}

static int add_documents(struct index *x, const struct cache_snapshot *s, int64_t id, struct err *err)
{
	for (int32_t i = 0; i < s->n_documents; i++) {
		const struct cache_document *d = &s->documents[i];

		if (sql_ask(x, ADD_DOCUMENT, err, "iibbiib", id, (int64_t)i, d->path, strlen(d->path), d->content_hash,
			sizeof d->content_hash, d->first_token, d->n_tokens, d->line_tokens,
			(size_t)d->n_lines * sizeof *d->line_tokens) < 0)
			return -1;
	}
	for (int32_t i = 0; i < s->n_skipped; i++)
		if (sql_ask(x, ADD_SKIPPED, err, "iibt", id, (int64_t)i, s->skipped[i].path, strlen(s->skipped[i].path),
			s->skipped[i].reason) < 0)
			return -1;
	return 0;
}

int index_drop_snapshot(struct index *x, int64_t id, int64_t tip, struct err *err)
{
	return sql_ask(x, DROP_SNAPSHOT, err, "i", id) || release(x, tip, err) ? -1 : 0;
}

/* Of the former snapshots the newest `keep` stay. */
static int prune(struct index *x, const char *corpus, int64_t keep, struct err *err)
{
	int rc;

	while ((rc = sql_ask(x, OLD_SNAPSHOT, err, "ti", corpus, keep)) > 0) {
		int64_t id = sql_integer(x, OLD_SNAPSHOT, 0), tip = sql_integer(x, OLD_SNAPSHOT, 1);

		if (sql_whole(x, OLD_SNAPSHOT, 2, "snapshot", id, err))
			return -1;
		sql_done(x, OLD_SNAPSHOT);
		if (index_drop_snapshot(x, id, tip, err))
			return -1;
	}
	return rc;
}

int index_add_snapshot(struct index *x, const struct cache_snapshot *s, int64_t layout, int64_t tip, int64_t keep,
		       int64_t *id, struct err *err)
{
	int rc = sql_ask(x, FIND_SNAPSHOT, err, "ti", s->corpus, (int64_t)0);
	int64_t former = rc > 0 ? sql_integer(x, FIND_SNAPSHOT, 0) : 0;
	int64_t former_tip = rc > 0 ? sql_integer(x, FIND_SNAPSHOT, 1) : 0;

	if (rc < 0 || (rc && sql_whole(x, FIND_SNAPSHOT, 11, "snapshot", former, err)))
		return -1;
	sql_done(x, FIND_SNAPSHOT);
	/* The new name first: what both snapshots share never goes. A reading that changed no token takes the place of the
	 * one before, lest nights without a change push out what there was. */
	if (refer(x, tip, 1, err) ||
	    (former && former_tip == tip && index_drop_snapshot(x, former, former_tip, err)) ||
	    (former && former_tip != tip &&
	     sql_changed(x, sql_ask(x, DEMOTE_SNAPSHOT, err, "i", former), "snapshot", former, err)) ||
	    sql_ask(x, ADD_SNAPSHOT, err, "tbiiiitiii", s->corpus, s->source, strlen(s->source), layout, s->created_s,
		    s->n_tokens, tip, s->revision ? s->revision : "", s->created_s, (int64_t)s->n_documents,
		    (int64_t)s->n_skipped) < 0)
		return -1;
	*id = sqlite3_last_insert_rowid(x->db);
	return add_documents(x, s, *id, err) || prune(x, s->corpus, keep, err) ||
	       index_set_pending(x, s->corpus, 0, err) || index_drop_job(x, s->corpus, err) ? -1 : 0;
}

int index_drop_corpus(struct index *x, const char *corpus, struct err *err)
{
	size_t n_ended = x->n_ended;
	bool any = false;
	int rc, pending;

	for (; (rc = sql_ask(x, ANY_SNAPSHOT, err, "t", corpus)) > 0; any = true) {
		int64_t id = sql_integer(x, ANY_SNAPSHOT, 0), tip = sql_integer(x, ANY_SNAPSHOT, 1);

		if (sql_whole(x, ANY_SNAPSHOT, 2, "snapshot", id, err))
			return -1;
		sql_done(x, ANY_SNAPSHOT);
		if (index_drop_snapshot(x, id, tip, err))
			return -1;
	}
	if (rc < 0)
		return -1;
	pending = sql_ask(x, FIND_PENDING, err, "t", corpus);
	if (pending < 0)
		return -1;
	sql_done(x, FIND_PENDING);
	if (index_drop_job(x, corpus, err))
		return -1;
	if (!any && !pending && x->n_ended == n_ended)
		return index_no_such_corpus(x, corpus, err);
	return index_set_pending(x, corpus, 0, err);
}

int index_touch(struct index *x, const char *corpus, int64_t now_s, struct err *err)
{
	return sql_ask(x, TOUCH, err, "it", now_s, corpus);
}

int index_strip_run(struct index *x, int64_t run, struct err *err)
{
	int rc = index_drop_job_of(x, run, err);
	int64_t layout, empty;

	if (rc)
		return rc < 0 ? -1 : 0;
	rc = sql_ask(x, EMPTY_RUN, err, "i", run);
	if (rc <= 0)
		return rc;
	layout = sql_integer(x, EMPTY_RUN, 0);
	empty = sql_integer(x, EMPTY_RUN, 1);
	sql_done(x, EMPTY_RUN);
	if (!empty && index_add_run(x, layout, 0, &empty, err))
		return -1;
	while ((rc = sql_ask(x, RUN_SPANS, err, "i", run)) > 0) {
		int64_t span = sql_integer(x, RUN_SPANS, 0);

		sql_done(x, RUN_SPANS);
		if (move_span(x, span, run, empty, 0, true, err))
			return -1;
	}
	return rc;
}

int index_each_run(struct index *x, void (*fn)(void *ctx, int64_t run, int64_t bytes), void *ctx, struct err *err)
{
	int rc = sql_ask(x, EACH_RUN, err, "");

	for (; rc > 0; rc = sql_next(x, EACH_RUN, err))
		fn(ctx, sql_integer(x, EACH_RUN, 0), sql_integer(x, EACH_RUN, 1));
	return rc;
}

int index_each_use(struct index *x, void (*fn)(void *ctx, const char *corpus, int64_t used_s), void *ctx,
		   struct err *err)
{
	int rc = sql_ask(x, EACH_USE, err, "");

	for (; rc > 0; rc = sql_next(x, EACH_USE, err))
		fn(ctx, (const char *)sqlite3_column_text(x->statements[EACH_USE], 0), sql_integer(x, EACH_USE, 1));
	return rc;
}

const struct extent *index_freed(const struct index *x, size_t *n)
{
	*n = x->n_freed;
	return x->freed;
}
