#include "cache/sql.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int index_has_snapshot(struct index *x, const char *corpus, struct err *err)
{
	int rc = sql_ask(x, ANY_SNAPSHOT, err, "t", corpus);

	sql_done(x, ANY_SNAPSHOT);
	return rc;
}

int index_no_such_snapshot(struct index *x, const char *corpus, int64_t id, struct err *err)
{
	char list[300] = "";
	size_t n = 0;
	int rc;

	for (rc = sql_ask(x, EACH_SNAPSHOT, err, "t", corpus); rc > 0; rc = sql_next(x, EACH_SNAPSHOT, err))
		if (n + 50 < sizeof list)
			n += (size_t)snprintf(list + n, sizeof list - n, "%s%" PRId64 "%s", n ? ", " : "",
					      sql_integer(x, EACH_SNAPSHOT, 0),
					      sql_integer(x, EACH_SNAPSHOT, 10) ? " (the current one)" : "");
	if (rc < 0)
		return -1;
	if (!n)
		return index_no_such_corpus(x, corpus, err);
	if (!id)
		return err_set(err, ERR_NOT_FOUND, "corpus '%s' has lost its current snapshot: ingest it again, or name a former "
			       "one with --snapshot: %s", corpus, list);
	return err_set(err, ERR_NOT_FOUND, "corpus '%s' has no snapshot %" PRId64 ": there are %s", corpus, id, list);
}

int index_snapshot_before(struct index *x, const char *corpus, int64_t id, int64_t *before, struct err *err)
{
	int rc;

	for (rc = sql_ask(x, EACH_SNAPSHOT, err, "t", corpus); rc > 0; rc = sql_next(x, EACH_SNAPSHOT, err)) {
		*before = sql_integer(x, EACH_SNAPSHOT, 0);
		if (*before >= id)
			continue;
		rc = sql_whole(x, EACH_SNAPSHOT, 14, "snapshot", *before, err);
		sql_done(x, EACH_SNAPSHOT);
		return rc;
	}
	return rc ? -1 : err_set(err, ERR_NOT_FOUND, "corpus '%s' has no snapshot before %" PRId64 ": there is nothing to "
				 "compare it with until it is ingested again and has changed", corpus, id);
}

int index_forget(struct index *x, const char *corpus, int64_t id, struct err *err)
{
	int rc = sql_ask(x, FIND_SNAPSHOT, err, "ti", corpus, id);
	int64_t tip;
	bool is_current;

	if (rc <= 0)
		return rc ? -1 : index_no_such_snapshot(x, corpus, id, err);
	if (sql_whole(x, FIND_SNAPSHOT, 11, "snapshot", id, err))
		return -1;
	tip = sql_integer(x, FIND_SNAPSHOT, 1);
	is_current = sql_integer(x, FIND_SNAPSHOT, 13);
	sql_done(x, FIND_SNAPSHOT);
	if (is_current)
		return err_set(err, ERR_USAGE, "snapshot %" PRId64 " is the current one of corpus '%s': `quire rm %s` removes the "
			       "corpus", id, corpus, corpus);
	return index_drop_snapshot(x, id, tip, err);
}

/* Walk the chain from its tip. Its end belongs to the snapshot alone as long as nobody else names what is passed. */
static int walk(struct index *x, int64_t tip, struct cache_history *h, struct err *err)
{
	int64_t n_tokens = 0;
	bool own = true;

	while (tip && n_tokens < h->n_tokens) {
		int rc = sql_ask(x, LINK, err, "i", tip);
		int64_t n;

		if (rc <= 0)
			return rc ? -1 : sql_wrong_row(x, "span", tip, err);
		if (sql_whole(x, LINK, 4, "span", tip, err))
			return -1;
		n = sql_integer(x, LINK, 1);
		n_tokens += n;
		own &= sql_integer(x, LINK, 2) == 1;
		if (sql_integer(x, LINK, 3))
			h->missing_tokens += n;
		else if (own)
			h->own_tokens += n;
		tip = sql_integer(x, LINK, 0);
		sql_done(x, LINK);
	}
	return 0;
}

static int read_snapshot(struct index *x, struct cache_history *h, struct err *err)
{
	int64_t tip = sql_integer(x, EACH_SNAPSHOT, 1);
	const char *source = sqlite3_column_blob(x->statements[EACH_SNAPSHOT], 2);
	const char *revision = (const char *)sqlite3_column_text(x->statements[EACH_SNAPSHOT], 6);

	*h = (struct cache_history){
		.id = sql_integer(x, EACH_SNAPSHOT, 0), .is_current = sql_integer(x, EACH_SNAPSHOT, 10),
		.source = xstrndup(source ? source : "", (size_t)sqlite3_column_bytes(x->statements[EACH_SNAPSHOT], 2)),
		.created_s = sql_integer(x, EACH_SNAPSHOT, 4), .n_tokens = sql_integer(x, EACH_SNAPSHOT, 5),
		.n_documents = sql_integer(x, EACH_SNAPSHOT, 7), .n_skipped = sql_integer(x, EACH_SNAPSHOT, 8),
	};
	snprintf(h->revision, sizeof h->revision, "%s", revision ? revision : "");
	if (sql_whole(x, EACH_SNAPSHOT, 14, "snapshot", h->id, err) ||
	    sql_whole(x, EACH_SNAPSHOT, 15, "layout", sql_integer(x, EACH_SNAPSHOT, 9), err))
		return -1;
	if (sql_blob(x, EACH_SNAPSHOT, 3, h->identity, sizeof h->identity, err) || walk(x, tip, h, err)) {
		sql_done(x, EACH_SNAPSHOT);
		return -1;
	}
	h->own_bytes = sql_tokens_bytes(x, EACH_SNAPSHOT, 11, h->own_tokens);
	h->bytes = sql_tokens_bytes(x, EACH_SNAPSHOT, 11, h->n_tokens);
	h->used_s = sql_integer(x, EACH_SNAPSHOT, 16);
	h->n_index_layers = (int32_t)sql_integer(x, EACH_SNAPSHOT, 11);
	h->index_key_bytes = (uint32_t)sql_integer(x, EACH_SNAPSHOT, 12);
	h->n_groups = sqlite3_column_bytes(x->statements[EACH_SNAPSHOT], 13) / (int)sizeof *h->record_bytes;
	h->record_bytes = xmalloc((size_t)h->n_groups, sizeof *h->record_bytes);
	if (!sql_blob(x, EACH_SNAPSHOT, 13, h->record_bytes, (size_t)h->n_groups * sizeof *h->record_bytes, err))
		return 0;
	sql_done(x, EACH_SNAPSHOT);
	return -1;
}

int index_list_snapshots(struct index *x, const char *corpus, struct cache_history **out, size_t *n, struct err *err)
{
	struct cache_history *list = NULL;
	int rc;

	*n = 0;
	for (rc = sql_ask(x, EACH_SNAPSHOT, err, "t", corpus); rc > 0; rc = sql_next(x, EACH_SNAPSHOT, err)) {
		list = xrealloc(list, *n + 1, sizeof *list);
		if (read_snapshot(x, &list[(*n)++], err)) {
			rc = -1;
			break;
		}
	}
	if (!rc && !*n)
		rc = index_no_such_corpus(x, corpus, err);
	if (rc < 0) {
		cache_free_history(list, *n);
		return -1;
	}
	*out = list;
	return 0;
}
