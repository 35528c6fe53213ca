#include "cache/sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* How many letters to change, add or remove to make b of a. */
static int distance(const char *a, const char *b)
{
	size_t n = strlen(b);
	int *row = xmalloc(n + 1, sizeof *row), d;

	for (size_t j = 0; j <= n; j++)
		row[j] = (int)j;
	for (size_t i = 1; a[i - 1]; i++) {
		int diagonal = row[0];

		row[0] = (int)i;
		for (size_t j = 1; j <= n; j++) {
			int above = row[j], best = diagonal + (a[i - 1] != b[j - 1]);

			best = best < above + 1 ? best : above + 1;
			row[j] = best < row[j - 1] + 1 ? best : row[j - 1] + 1;
			diagonal = above;
		}
	}
	d = row[n];
	free(row);
	return d;
}

int index_no_such_corpus(struct index *x, const char *corpus, struct err *err)
{
	char nearest[128] = "";
	int best = 0, rc = sql_ask(x, LIST, err, "");

	for (; rc > 0; rc = sql_next(x, LIST, err)) {
		const char *name = (const char *)sqlite3_column_text(x->statements[LIST], 0);
		int d = name ? distance(corpus, name) : 0;

		if (!name || strlen(name) >= sizeof nearest || (*nearest && d >= best))
			continue;
		best = d;
		strcpy(nearest, name);
	}
	if (rc < 0)
		return -1;
	if (*nearest)
		return err_set(err, ERR_NOT_FOUND, "no corpus '%s'; the nearest name is '%s'", corpus, nearest);
	return err_set(err, ERR_NOT_FOUND, "no corpus '%s': the store is empty; `quire ingest DIR --as %s` makes it",
		       corpus, corpus);
}

/* A snapshot as it is handed out: its memory goes with it. */
struct loaded {
	struct cache_snapshot snapshot; /* first, so that one pointer frees both */
	struct arena *arena;
};

void cache_free_snapshot(struct cache_snapshot *s)
{
	struct loaded *l = (struct loaded *)s;

	if (!l)
		return;
	arena_free(l->arena);
	free(l);
}

/* The ids of the chain that ends at tip, from its end; every key is made again from what the rows say, so that a
 * row that changed is found here. */
static int load_chain(struct index *x, struct loaded *l, int64_t tip, struct err *err)
{
	struct cache_snapshot *s = &l->snapshot;
	int64_t n_spans = (s->n_tokens + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS, at = s->n_tokens;
	struct span_key *keys, made;
	int32_t *ids;

	if (s->n_tokens <= 0 || s->n_tokens > INT32_MAX)
		return err_set(err, ERR_DAMAGED, "index %s: corpus '%s' has %" PRId64 " tokens", x->path, s->corpus,
			       s->n_tokens);
	keys = xmalloc((size_t)n_spans, sizeof *keys);
	s->ids = ids = arena_alloc(l->arena, (size_t)s->n_tokens, sizeof *ids);
	for (int64_t i = n_spans - 1; i >= 0; i--) {
		int32_t n = (int32_t)(at - i * CACHE_SPAN_TOKENS);
		int rc = sql_ask(x, CHAIN, err, "i", tip);

		if (rc > 0 && sql_whole(x, CHAIN, 4, "span", tip, err)) {
			free(keys);
			return err_wrap(err, "span %" PRId64 " of corpus '%s'", i, s->corpus);
		}
		if (rc > 0 && (sql_integer(x, CHAIN, 2) != n || sql_blob(x, CHAIN, 0, keys[i].bytes, sizeof keys[i].bytes, err) ||
			       sql_blob(x, CHAIN, 3, ids + i * CACHE_SPAN_TOKENS, (size_t)n * sizeof *ids, err)))
			rc = 0;
		if (rc <= 0) {
			free(keys);
			return rc ? -1 : err_set(err, ERR_DAMAGED, "index %s: span %" PRId64 " of corpus '%s' is not "
						 "there: `quire repair`, then ingest it again", x->path, i, s->corpus);
		}
		tip = sql_integer(x, CHAIN, 1);
		at -= n;
	}
	sql_done(x, CHAIN);
	for (int64_t i = 0; i < n_spans; i++) {
		int64_t first = i * CACHE_SPAN_TOKENS, left = s->n_tokens - first;

		span_key_make(&made, s->identity, i ? &keys[i - 1] : NULL, ids + first,
			      (int32_t)(left < CACHE_SPAN_TOKENS ? left : CACHE_SPAN_TOKENS));
		if (memcmp(&made, &keys[i], sizeof made)) {
			free(keys);
			return err_set(err, ERR_DAMAGED, "index %s: the row of span %" PRId64 " of corpus '%s' is not what "
				       "was written: `quire repair`, then ingest it again", x->path, i, s->corpus);
		}
	}
	free(keys);
	return 0;
}

/* The rows of a snapshot are numbered, and it knows how many there are: a row that is lost is found as well. */
static int check_place(struct index *x, enum query q, const char *table, int64_t snapshot, int64_t place,
		       int64_t whole, int32_t at, int32_t n, struct err *err)
{
	if (at < n && place == at && whole)
		return 0;
	sql_done(x, q);
	return err_set(err, ERR_DAMAGED, "index %s: row %" PRId32 " of table %s of snapshot %" PRId64 " is not what was "
		       "written: `quire check` says what it touches, `quire repair` mends it", x->path, at, table,
		       snapshot);
}

static int lost_rows(struct index *x, const char *table, int64_t snapshot, int32_t found, int32_t n, struct err *err)
{
	return err_set(err, ERR_DAMAGED, "index %s: table %s has %" PRId32 " of %" PRId32 " rows of snapshot %" PRId64
		       ": `quire check` says what it touches, `quire repair` mends it", x->path, table, found, n, snapshot);
}

static int load_documents(struct index *x, struct loaded *l, int32_t n, struct err *err)
{
	struct cache_snapshot *s = &l->snapshot;
	struct cache_document *documents;
	int rc;

	s->documents = documents = arena_alloc(l->arena, (size_t)n, sizeof *documents);
	for (rc = sql_ask(x, DOCUMENTS, err, "i", s->id); rc > 0; rc = sql_next(x, DOCUMENTS, err)) {
		struct cache_document *d = &documents[s->n_documents];
		size_t bytes = (size_t)sqlite3_column_bytes(x->statements[DOCUMENTS], 4);
		uint32_t *lines = arena_alloc(l->arena, bytes, 1);

		if (check_place(x, DOCUMENTS, "document", s->id, sql_integer(x, DOCUMENTS, 5),
				sql_integer(x, DOCUMENTS, 6), s->n_documents, n, err))
			return -1;
		d->path = sql_string(l->arena, x, DOCUMENTS, 0);
		d->first_token = sql_integer(x, DOCUMENTS, 2);
		d->n_tokens = sql_integer(x, DOCUMENTS, 3);
		d->n_lines = (int32_t)(bytes / sizeof *lines);
		d->line_tokens = lines;
		if (sql_blob(x, DOCUMENTS, 1, d->content_hash, sizeof d->content_hash, err) ||
		    sql_blob(x, DOCUMENTS, 4, lines, bytes / sizeof *lines * sizeof *lines, err)) {
			sql_done(x, DOCUMENTS);
			return -1;
		}
		s->n_documents++;
	}
	return rc < 0 ? -1 : s->n_documents < n ? lost_rows(x, "document", s->id, s->n_documents, n, err) : 0;
}

static int load_skipped(struct index *x, struct loaded *l, int32_t n, struct err *err)
{
	struct cache_snapshot *s = &l->snapshot;
	struct cache_skipped *skipped;
	int rc;

	s->skipped = skipped = arena_alloc(l->arena, (size_t)n, sizeof *skipped);
	for (rc = sql_ask(x, SKIPPED, err, "i", s->id); rc > 0; rc = sql_next(x, SKIPPED, err)) {
		if (check_place(x, SKIPPED, "skipped", s->id, sql_integer(x, SKIPPED, 2), sql_integer(x, SKIPPED, 3),
				s->n_skipped, n, err))
			return -1;
		skipped[s->n_skipped++] = (struct cache_skipped){sql_string(l->arena, x, SKIPPED, 0),
								 sql_string(l->arena, x, SKIPPED, 1)};
	}
	return rc < 0 ? -1 : s->n_skipped < n ? lost_rows(x, "skipped", s->id, s->n_skipped, n, err) : 0;
}

static int load_snapshot(struct index *x, const char *corpus, int64_t id, bool with_ids, struct cache_snapshot **out,
			 struct err *err)
{
	int rc = sql_ask(x, FIND_SNAPSHOT, err, "ti", corpus, id);
	struct cache_snapshot *s;
	struct loaded *l;
	int32_t n_documents, n_skipped;
	uint8_t *identity;
	int64_t tip;

	if (rc <= 0)
		return rc ? -1 : index_no_such_snapshot(x, corpus, id, err);
	if (sql_whole(x, FIND_SNAPSHOT, 11, "snapshot", sql_integer(x, FIND_SNAPSHOT, 0), err) ||
	    sql_whole(x, FIND_SNAPSHOT, 12, "layout", sql_integer(x, FIND_SNAPSHOT, 9), err))
		return -1;
	/* A wrong entry of an index can lead to another row, which is whole. */
	if (!sql_is_text(x, FIND_SNAPSHOT, 10, corpus) || (!id && !sql_integer(x, FIND_SNAPSHOT, 13))) {
		sql_done(x, FIND_SNAPSHOT);
		return sql_wrong_row(x, "snapshot", sql_integer(x, FIND_SNAPSHOT, 0), err);
	}
	l = xcalloc(1, sizeof *l);
	l->arena = arena_new();
	s = &l->snapshot;
	s->id = sql_integer(x, FIND_SNAPSHOT, 0);
	tip = sql_integer(x, FIND_SNAPSHOT, 1);
	s->corpus = arena_strndup(l->arena, corpus, strlen(corpus));
	s->source = sql_string(l->arena, x, FIND_SNAPSHOT, 2);
	s->identity = identity = arena_alloc(l->arena, 32, 1);
	rc = sql_blob(x, FIND_SNAPSHOT, 3, identity, 32, err);
	s->created_s = sql_integer(x, FIND_SNAPSHOT, 4);
	s->n_tokens = sql_integer(x, FIND_SNAPSHOT, 5);
	s->revision = sql_string(l->arena, x, FIND_SNAPSHOT, 6);
	s->is_current = sql_integer(x, FIND_SNAPSHOT, 13);
	n_documents = (int32_t)sql_integer(x, FIND_SNAPSHOT, 7);
	n_skipped = (int32_t)sql_integer(x, FIND_SNAPSHOT, 8);
	sql_done(x, FIND_SNAPSHOT);
	if (rc || (with_ids && load_chain(x, l, tip, err)) || load_documents(x, l, n_documents, err) ||
	    load_skipped(x, l, n_skipped, err)) {
		cache_free_snapshot(s);
		return -1;
	}
	*out = s;
	return 0;
}

int index_load_snapshot(struct index *x, const char *corpus, int64_t id, struct cache_snapshot **out, struct err *err)
{
	return load_snapshot(x, corpus, id, true, out, err);
}

int index_load_files(struct index *x, const char *corpus, int64_t id, struct cache_snapshot **out, struct err *err)
{
	return load_snapshot(x, corpus, id, false, out, err);
}

int64_t sql_tokens_bytes(struct index *x, enum query q, int column, int64_t n_tokens)
{
	const uint32_t *record_bytes = sqlite3_column_blob(x->statements[q], column + 2);
	int n_groups = sqlite3_column_bytes(x->statements[q], column + 2) / (int)sizeof *record_bytes;
	int64_t n_index_layers = sql_integer(x, q, column), token_bytes = n_index_layers * sql_integer(x, q, column + 1);
	int64_t n_spans = (n_tokens + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS;

	for (int i = 0; i < n_groups; i++)
		token_bytes += record_bytes[i] + (int64_t)sizeof(uint64_t);
	return n_tokens * token_bytes + n_spans * n_index_layers * (int64_t)sizeof(uint64_t);
}

int index_list(struct index *x, struct cache_corpus **out, size_t *n, struct err *err)
{
	struct cache_corpus *list = NULL;
	size_t room = 0;
	int rc;

	*n = 0;
	for (rc = sql_ask(x, LIST, err, ""); rc > 0; rc = sql_next(x, LIST, err)) {
		const char *name = (const char *)sqlite3_column_text(x->statements[LIST], 0);
		const char *source = sqlite3_column_blob(x->statements[LIST], 1), *revision;
		struct cache_corpus *c;

		if (sql_whole(x, LIST, 13, "snapshot", sql_integer(x, LIST, 3), err) ||
		    sql_whole(x, LIST, 14, "layout", sql_integer(x, LIST, 12), err)) {
			rc = -1;
			break;
		}
		if (*n == room)
			list = xrealloc(list, room = room ? 2 * room : 16, sizeof *list);
		c = &list[(*n)++];
		*c = (struct cache_corpus){
			.source = xstrndup(source ? source : "", (size_t)sqlite3_column_bytes(x->statements[LIST], 1)),
			.snapshot_id = sql_integer(x, LIST, 3), .created_s = sql_integer(x, LIST, 4),
			.n_tokens = sql_integer(x, LIST, 5), .n_documents = sql_integer(x, LIST, 6),
			.n_skipped = sql_integer(x, LIST, 7), .bytes = sql_tokens_bytes(x, LIST, 8, sql_integer(x, LIST, 5)),
			.n_snapshots = sql_integer(x, LIST, 15),
		};
		strncpy(c->name, name ? name : "", sizeof c->name - 1);
		revision = (const char *)sqlite3_column_text(x->statements[LIST], 11);
		strncpy(c->revision, revision ? revision : "", sizeof c->revision - 1);
		if (sql_blob(x, LIST, 2, c->identity, sizeof c->identity, err)) {
			sql_done(x, LIST);
			rc = -1;
			break;
		}
	}
	if (rc < 0) {
		cache_free_corpora(list, *n);
		return -1;
	}
	*out = list;
	return 0;
}

int index_count(struct index *x, int64_t *n_corpora, int64_t *n_spans, struct err *err)
{
	if (sql_ask(x, COUNT, err, "") < 0)
		return -1;
	*n_corpora = sql_integer(x, COUNT, 0);
	*n_spans = sql_integer(x, COUNT, 1);
	sql_done(x, COUNT);
	return 0;
}
