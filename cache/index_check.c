#include "cache/index_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/sql.h"
#include "config/mem.h"

/* The key of a span from what its row, its parent's and its layout's say. */
#define MADE_KEY "span_key(layout.identity, parent.key, span.ids)"

/* Columns: the row's number, then the span, the run and the corpus that it touches, NULL where it names none. */
static const struct rule {
	const char *sentence; /* with the number */
	const char *sql;
} rules[] = {
	{"row %lld of table layout is not what was written",
	 "SELECT layout.id, NULL, run.id, NULL FROM layout LEFT JOIN run ON run.layout = layout.id WHERE NOT " LAYOUT_WHOLE},
	{"row %lld of table run is not what was written",
	 "SELECT run.id, NULL, run.id, NULL FROM run WHERE NOT " RUN_WHOLE},
	{"an extent of run %lld is not what was written",
	 "SELECT extent.run, NULL, extent.run, NULL FROM extent WHERE NOT " EXTENT_WHOLE},
	{"row %lld of table span is not what was written",
	 "SELECT span.id, span.id, NULL, NULL FROM span WHERE NOT " SPAN_WHOLE},
	{"row %lld of table snapshot is not what was written",
	 "SELECT snapshot.id, NULL, NULL, snapshot.corpus FROM snapshot WHERE NOT " SNAPSHOT_WHOLE},
	{"a document of snapshot %lld is not what was written",
	 "SELECT document.snapshot, NULL, NULL, corpus FROM document LEFT JOIN snapshot ON snapshot.id = document.snapshot"
	 " WHERE NOT " DOCUMENT_WHOLE},
	{"a skipped file of snapshot %lld is not what was written",
	 "SELECT skipped.snapshot, NULL, NULL, corpus FROM skipped LEFT JOIN snapshot ON snapshot.id = skipped.snapshot"
	 " WHERE NOT " SKIPPED_WHOLE},
	{"row %lld of table pending is not what was written",
	 "SELECT rowid, NULL, NULL, corpus FROM pending WHERE NOT " PENDING_WHOLE},
	{"row %lld of table job is not what was written",
	 "SELECT job.id, NULL, run, corpus FROM job WHERE NOT " JOB_WHOLE},
	{"what is counted of the routing of run %lld is not what was written",
	 "SELECT routing.run, NULL, routing.run, NULL FROM routing WHERE NOT " ROUTING_WHOLE},
	{"job %lld has no run, or one that has spans",
	 "SELECT job.id, NULL, job.run, corpus FROM job LEFT JOIN run ON run.id = job.run WHERE n_living IS NOT 0"},
	{"run %lld has neither spans nor a job",
	 "SELECT run.id, NULL, run.id, NULL FROM run WHERE n_living = 0"
	 " AND NOT EXISTS (SELECT 1 FROM job WHERE job.run = run.id)"},
	{"span %lld has lost its parent",
	 "SELECT span.id, span.id, NULL, NULL FROM span LEFT JOIN span parent ON parent.id = span.parent"
	 " WHERE span.parent IS NOT NULL AND parent.id IS NULL"},
	{"span %lld lies in a run that is not there",
	 "SELECT span.id, span.id, NULL, NULL FROM span LEFT JOIN run ON run.id = span.run"
	 " LEFT JOIN layout ON layout.id = run.layout WHERE layout.id IS NULL"},
	{"the key of span %lld is not that of its tokens",
	 "SELECT span.id, span.id, NULL, NULL FROM span JOIN run ON run.id = span.run JOIN layout ON layout.id = run.layout"
	 " LEFT JOIN span parent ON parent.id = span.parent WHERE span.key IS NOT " MADE_KEY},
	{"span %lld is not named as often as it says",
	 "SELECT span.id, span.id, NULL, NULL FROM span WHERE refs <>"
	 " (SELECT count(*) FROM span child WHERE child.parent = span.id) +"
	 " (SELECT count(*) FROM snapshot WHERE tip = span.id) + (SELECT count(*) FROM pending WHERE tip = span.id)"},
	{"run %lld has not as many spans as it says",
	 "SELECT run.id, NULL, run.id, NULL FROM run WHERE n_living <> (SELECT count(*) FROM span WHERE span.run = run.id)"},
	{"span %lld has no place of its own in its run",
	 "SELECT span.id, span.id, NULL, NULL FROM span JOIN run ON run.id = span.run WHERE NOT damaged AND"
	 " (place NOT BETWEEN 0 AND n_places - 1 OR EXISTS (SELECT 1 FROM span other WHERE other.run = span.run"
	 "  AND other.place = span.place AND NOT other.damaged AND other.id <> span.id))"},
	{"run %lld has lost an extent",
	 "SELECT run.id, NULL, run.id, NULL FROM run JOIN layout ON layout.id = run.layout"
	 " WHERE (SELECT count(*) FROM extent WHERE extent.run = run.id) <> n_groups + n_index_layers + 1"
	 " AND (EXISTS (SELECT 1 FROM span WHERE span.run = run.id AND NOT damaged)"
	 "  OR EXISTS (SELECT 1 FROM job WHERE job.run = run.id))"},
	{"an extent of run %lld lies on another extent",
	 "SELECT run, NULL, run, NULL FROM (SELECT run, offset, max(offset + bytes) OVER (PARTITION BY segment ORDER BY offset"
	 "  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS above FROM extent) WHERE offset < above"},
	{"snapshot %lld has not all of its documents",
	 "SELECT id, NULL, NULL, corpus FROM snapshot WHERE n_documents <>"
	 " (SELECT count(*) FROM document WHERE snapshot = snapshot.id)"},
	{"snapshot %lld has not all of its skipped files",
	 "SELECT id, NULL, NULL, corpus FROM snapshot WHERE n_skipped <>"
	 " (SELECT count(*) FROM skipped WHERE snapshot = snapshot.id)"},
	{"snapshot %lld is a former one and not older than the current one of its corpus",
	 "SELECT former.id, NULL, NULL, former.corpus FROM snapshot former JOIN snapshot later ON"
	 " later.corpus = former.corpus AND later.is_current WHERE NOT former.is_current AND former.id >= later.id"},
	{"snapshot %lld and its last span are of two models, or the span is not there",
	 "SELECT snapshot.id, NULL, NULL, corpus FROM snapshot LEFT JOIN span ON span.id = tip LEFT JOIN run ON run.id = run"
	 " WHERE run.layout IS NOT snapshot.layout"},
};

_Static_assert(sizeof rules / sizeof *rules + 1 == INDEX_CHECKS, "SQLite's own check, and the rules");

static int prepare(struct index *x, sqlite3_stmt **st, const char *text, struct err *err)
{
	return sqlite3_prepare_v2(x->db, text, -1, st, NULL) ? sql_error(x, err) : 0;
}

/* The end of a statement that was stepped until rc. */
static int finish(struct index *x, sqlite3_stmt *st, int rc, struct err *err)
{
	if (rc != SQLITE_DONE && rc != SQLITE_ROW)
		sql_error(x, err);
	sqlite3_finalize(st);
	return rc == SQLITE_DONE || rc == SQLITE_ROW ? 0 : -1;
}

/* SQLite's own check: of the file's pages, and of its indexes against its tables. */
static int check_integrity(struct index *x, void (*fn)(void *ctx, const char *text, const struct index_target *t),
			   void *ctx, struct err *err)
{
	const struct index_target none = {0};
	sqlite3_stmt *st;
	int rc;

	if (prepare(x, &st, "PRAGMA integrity_check(20)", err))
		return -1;
	while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
		const char *text = (const char *)sqlite3_column_text(st, 0);
		char *sentence;

		if (!text || !strcmp(text, "ok"))
			continue;
		sentence = xasprintf("index.sqlite: %s", text);
		fn(ctx, sentence, &none);
		free(sentence);
	}
	return finish(x, st, rc, err);
}

int index_check(struct index *x, int i, void (*fn)(void *ctx, const char *text, const struct index_target *t),
		void *ctx, struct err *err)
{
	const struct rule *r;
	sqlite3_stmt *st;
	int rc;

	if (!i)
		return check_integrity(x, fn, ctx, err);
	r = &rules[i - 1];
	if (prepare(x, &st, r->sql, err))
		return -1;
	while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
		const struct index_target t = {sqlite3_column_int64(st, 1), sqlite3_column_int64(st, 2),
					       (const char *)sqlite3_column_text(st, 3)};
		long long row = sqlite3_column_int64(st, 0);
		char text[160];

		snprintf(text, sizeof text, r->sentence, row);
		fn(ctx, text, &t);
	}
	return finish(x, st, rc, err);
}

int index_each_link(struct index *x, void (*fn)(void *ctx, const struct index_link *l), void *ctx, struct err *err)
{
	sqlite3_stmt *names, *link = NULL;
	int64_t n_corpora, n_spans;
	int rc = -1, inner = SQLITE_DONE;

	if (index_count(x, &n_corpora, &n_spans, err) ||
	    prepare(x, &names, "SELECT corpus, tip, n_tokens, iif(is_current, 0, id) FROM snapshot"
		    " UNION ALL SELECT corpus, tip, 0, 0 FROM pending", err))
		return -1;
	if (prepare(x, &link, "SELECT parent, run, damaged, n_tokens FROM span WHERE id = ?", err)) {
		sqlite3_finalize(names);
		return -1;
	}
	while (inner == SQLITE_DONE && (rc = sqlite3_step(names)) == SQLITE_ROW) {
		struct index_link l = {.corpus = (const char *)sqlite3_column_text(names, 0),
				       .former = sqlite3_column_int64(names, 3)};
		int64_t tip = sqlite3_column_int64(names, 1), n_tokens = 0, n = 0;

		/* A damaged parent could make a ring: no chain is longer than all spans. */
		for (inner = SQLITE_DONE; tip && n <= n_spans; n++) {
			sqlite3_reset(link);
			sqlite3_bind_int64(link, 1, tip);
			inner = sqlite3_step(link);
			if (inner != SQLITE_ROW)
				break;
			l.span = tip;
			l.run = sqlite3_column_int64(link, 1);
			l.damaged = sqlite3_column_int64(link, 2);
			n_tokens += sqlite3_column_int64(link, 3);
			fn(ctx, &l);
			tip = sqlite3_column_int64(link, 0);
			inner = SQLITE_DONE;
		}
		if (inner != SQLITE_DONE)
			break;
		l.span = l.run = 0;
		/* More or fewer tokens than the snapshot has: -1 says so. */
		l.n_tokens = sqlite3_column_int64(names, 2);
		if (l.n_tokens && l.n_tokens != n_tokens)
			l.n_tokens = -1;
		fn(ctx, &l);
	}
	sqlite3_reset(link);
	sqlite3_finalize(link);
	return inner != SQLITE_DONE ? (finish(x, names, inner, err), -1) : finish(x, names, rc, err);
}

int index_list_spans(struct index *x, const char *corpus, int64_t **out, size_t *n, struct err *err)
{
	static const char all[] = "SELECT id FROM span WHERE NOT damaged ORDER BY id";
	static const char of[] = "WITH RECURSIVE chain(id, parent, damaged) AS ("
				 " SELECT span.id, span.parent, span.damaged FROM span JOIN snapshot ON tip = span.id"
				 "  WHERE corpus = ?"
				 " UNION SELECT span.id, span.parent, span.damaged FROM chain JOIN span ON span.id = chain.parent)"
				 " SELECT id FROM chain WHERE NOT damaged";
	sqlite3_stmt *st;
	size_t room = 0;
	int rc;

	*out = NULL;
	*n = 0;
	if (prepare(x, &st, corpus ? of : all, err))
		return -1;
	if (corpus)
		sqlite3_bind_text(st, 1, corpus, -1, SQLITE_TRANSIENT);
	while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
		if (*n == room)
			*out = xrealloc(*out, room = room ? 2 * room : 1024, sizeof **out);
		(*out)[(*n)++] = sqlite3_column_int64(st, 0);
	}
	return finish(x, st, rc, err);
}

int index_get_span(struct index *x, int64_t id, struct index_span *out, struct err *err)
{
	sqlite3_stmt *st;
	int rc, found = 0;

	if (prepare(x, &st, "SELECT key, n_tokens, n_groups, n_index_layers, record_bytes, index_key_bytes, damaged FROM span"
		    " JOIN run ON run.id = run JOIN layout ON layout.id = layout WHERE span.id = ?", err))
		return -1;
	sqlite3_bind_int64(st, 1, id);
	rc = sqlite3_step(st);
	/* What is wrong in a row is a finding of the rules; here it only must not lead astray. */
	if (rc == SQLITE_ROW && sqlite3_column_bytes(st, 0) == CACHE_KEY_BYTES &&
	    sqlite3_column_bytes(st, 4) <= (int)sizeof out->record_bytes &&
	    sqlite3_column_int64(st, 2) * (int64_t)sizeof *out->record_bytes == sqlite3_column_bytes(st, 4)) {
		*out = (struct index_span){
			.n_tokens = sqlite3_column_int(st, 1), .n_groups = sqlite3_column_int(st, 2),
			.n_index_layers = sqlite3_column_int(st, 3), .index_key_bytes = (uint32_t)sqlite3_column_int64(st, 5),
			.damaged = sqlite3_column_int(st, 6),
		};
		memcpy(out->key.bytes, sqlite3_column_blob(st, 0), CACHE_KEY_BYTES);
		if (out->n_groups)
			memcpy(out->record_bytes, sqlite3_column_blob(st, 4), (size_t)sqlite3_column_bytes(st, 4));
		found = out->n_tokens >= 1 && out->n_tokens <= CACHE_SPAN_TOKENS;
	}
	return finish(x, st, rc, err) ? -1 : found;
}

/*
 * Repair. What a row says is believed when its sum is right, or, of a span, when its key is that of its tokens: then
 * its ids are what was written, whatever else of the row is not.
 */
#define SNAPSHOT_CHAIN \
	"WITH RECURSIVE named(corpus, tip, whole) AS" \
	" (SELECT corpus, tip, " SNAPSHOT_WHOLE " FROM snapshot WHERE is_current OR NOT " SNAPSHOT_WHOLE \
	" UNION ALL SELECT corpus, tip, " PENDING_WHOLE " FROM pending)," \
	" wrong(n, corpus, tip) AS (SELECT row_number() OVER (), corpus, tip FROM named WHERE NOT whole)," \
	" loose(n, id) AS (SELECT row_number() OVER (), id FROM span WHERE id NOT IN (SELECT tip FROM named WHERE whole)" \
	"  AND id NOT IN (SELECT tip FROM snapshot WHERE " SNAPSHOT_WHOLE ")" \
	"  AND NOT EXISTS (SELECT 1 FROM span child WHERE child.parent = span.id))," \
	" link(corpus, depth, span) AS (SELECT corpus, 0, tip FROM named WHERE whole" \
	" UNION ALL SELECT corpus, 0, coalesce(loose.id, tip) FROM wrong LEFT JOIN loose ON loose.n = wrong.n" \
	" UNION ALL SELECT corpus, depth + 1, parent FROM link JOIN span ON span.id = link.span" \
	"  WHERE parent IS NOT NULL AND depth <= (SELECT count(*) FROM span))"

static const char repair_find[] =
	/* The named chains as they are, to find what is left of them at the end. A name that is not whole stands for a
	 * chain that nobody else names: what matters is that whole spans are named, not by whom. */
	"CREATE TEMP TABLE chain AS " SNAPSHOT_CHAIN " SELECT corpus, depth, span FROM link;"
	/* Spans that must be computed again, with the layout that their key proves; none: their ids are lost. */
	"CREATE TEMP TABLE mend (span INTEGER PRIMARY KEY, layout INTEGER);"
	"DELETE FROM layout WHERE NOT " LAYOUT_WHOLE ";"
	"INSERT INTO mend SELECT span.id, (SELECT layout.id FROM layout WHERE span.key = " MADE_KEY ")"
	" FROM span LEFT JOIN span parent ON parent.id = span.parent LEFT JOIN run ON run.id = span.run"
	" LEFT JOIN layout own ON own.id = run.layout"
	" WHERE NOT " SPAN_WHOLE " OR run.id IS NULL OR own.id IS NULL OR NOT " RUN_WHOLE
	"  OR span.key IS NOT span_key(own.identity, parent.key, span.ids)"
	"  OR (span.parent IS NOT NULL AND parent.id IS NULL) OR span.id IN (SELECT span FROM bad)"
	"  OR (NOT span.damaged AND (span.place NOT BETWEEN 0 AND run.n_places - 1"
	"   OR (SELECT count(*) FROM extent WHERE extent.run = run.id AND " EXTENT_WHOLE ")"
	"    <> own.n_groups + own.n_index_layers + 1));";

static const char repair_drop[] =
	"DELETE FROM extent WHERE NOT " EXTENT_WHOLE ";"
	"DELETE FROM pending WHERE NOT " PENDING_WHOLE ";"
	/* Lost spans, and what hangs on them. */
	"DELETE FROM span WHERE id IN (SELECT span FROM mend WHERE layout IS NULL);"
	"WITH RECURSIVE kept(id) AS (SELECT id FROM span WHERE parent IS NULL"
	" UNION SELECT span.id FROM kept JOIN span ON span.parent = kept.id)"
	" DELETE FROM span WHERE id NOT IN (SELECT id FROM kept);"
	/* Corpora that cannot be put together. */
	"CREATE TEMP TABLE gone AS SELECT id, corpus, source, is_current OR NOT " SNAPSHOT_WHOLE " AS was_current"
	" FROM snapshot WHERE NOT " SNAPSHOT_WHOLE
	" OR tip NOT IN (SELECT id FROM span) OR layout NOT IN (SELECT id FROM layout)"
	" OR n_documents <> (SELECT count(*) FROM document WHERE snapshot = snapshot.id)"
	" OR n_skipped <> (SELECT count(*) FROM skipped WHERE snapshot = snapshot.id)"
	" OR EXISTS (SELECT 1 FROM document WHERE snapshot = snapshot.id AND NOT " DOCUMENT_WHOLE ")"
	" OR EXISTS (SELECT 1 FROM skipped WHERE snapshot = snapshot.id AND NOT " SKIPPED_WHOLE ")"
	" OR n_tokens IS NOT (WITH RECURSIVE up(id) AS (SELECT snapshot.tip"
	"  UNION SELECT parent FROM up JOIN span ON span.id = up.id)"
	"  SELECT sum(length(ids) / 4) FROM span WHERE id IN (SELECT id FROM up));"
	"DELETE FROM snapshot WHERE id IN (SELECT id FROM gone);"
	"DELETE FROM document WHERE snapshot NOT IN (SELECT id FROM snapshot);"
	"DELETE FROM skipped WHERE snapshot NOT IN (SELECT id FROM snapshot);"
	/* What is left of a chain waits for its corpus's next ingest, unless a pending chain does already. */
	"DELETE FROM pending WHERE tip NOT IN (SELECT id FROM span);"
	"INSERT INTO pending (corpus, tip, sum) SELECT corpus, span, 0 FROM"
	" (SELECT corpus, span, min(depth) FROM chain WHERE span IN (SELECT id FROM span)"
	"  AND corpus NOT IN (SELECT corpus FROM snapshot WHERE is_current) AND corpus NOT IN (SELECT corpus FROM pending) GROUP BY corpus);"
	"UPDATE pending SET sum = " ROW_SUM("pending", PENDING_ROW) " WHERE sum = 0;"
	"WITH RECURSIVE named(id) AS (SELECT tip FROM snapshot UNION SELECT tip FROM pending"
	" UNION SELECT parent FROM named JOIN span ON span.id = named.id WHERE parent IS NOT NULL)"
	" DELETE FROM span WHERE id NOT IN (SELECT id FROM named);";

/* Spans without bytes lie in a run without places, of which each layout may have one. */
static const char repair_mend[] =
	"DELETE FROM mend WHERE span NOT IN (SELECT id FROM span);"
	"DELETE FROM run WHERE NOT " RUN_WHOLE " OR layout NOT IN (SELECT id FROM layout);"
	"DELETE FROM job WHERE NOT " JOB_WHOLE " OR id IN (SELECT job FROM bad_job) OR run NOT IN (SELECT id FROM run)"
	" OR (SELECT count(*) FROM extent WHERE extent.run = job.run) <>"
	"  (SELECT n_groups + n_index_layers + 1 FROM run JOIN layout ON layout.id = run.layout WHERE run.id = job.run);"
	"INSERT INTO run (id, layout, n_places, n_living, sum)"
	" SELECT (SELECT coalesce(max(id), 0) FROM run) + row_number() OVER (), layout, 0, 0, 0 FROM"
	"  (SELECT DISTINCT layout FROM mend WHERE layout NOT IN (SELECT layout FROM run WHERE n_places = 0));"
	"UPDATE span SET damaged = 1, place = 0, n_tokens = length(ids) / 4, run ="
	" (SELECT run.id FROM mend JOIN run ON run.layout = mend.layout AND n_places = 0 WHERE mend.span = span.id LIMIT 1)"
	" WHERE id IN (SELECT span FROM mend);"
	"UPDATE run SET n_living = (SELECT count(*) FROM span WHERE span.run = run.id);"
	"DELETE FROM job WHERE run IN (SELECT id FROM run WHERE n_living > 0);"
	"DELETE FROM run WHERE n_living = 0 AND id NOT IN (SELECT run FROM job);"
	"DELETE FROM extent WHERE run NOT IN (SELECT id FROM run);"
	"DELETE FROM routing WHERE NOT " ROUTING_WHOLE " OR run NOT IN (SELECT id FROM run);"
	"UPDATE span SET refs = (SELECT count(*) FROM span child WHERE child.parent = span.id) +"
	" (SELECT count(*) FROM snapshot WHERE tip = span.id) + (SELECT count(*) FROM pending WHERE tip = span.id);"
	"UPDATE run SET sum = " ROW_SUM("run", RUN_ROW) ";"
	"UPDATE span SET sum = " ROW_SUM("span", SPAN_ROW) ";";

static int count(struct index *x, const char *text, int64_t *out, struct err *err)
{
	sqlite3_stmt *st;
	int rc;

	if (prepare(x, &st, text, err))
		return -1;
	rc = sqlite3_step(st);
	*out = sqlite3_column_int64(st, 0);
	return finish(x, st, rc, err);
}

static int insert_bad(struct index *x, const char *statement, const int64_t *bad, size_t n, struct err *err)
{
	sqlite3_stmt *st;
	int rc = SQLITE_DONE;

	if (prepare(x, &st, statement, err))
		return -1;
	for (size_t i = 0; i < n && rc == SQLITE_DONE; i++) {
		sqlite3_bind_int64(st, 1, bad[i]);
		rc = sqlite3_step(st);
		sqlite3_reset(st);
	}
	return finish(x, st, rc, err);
}

static int list_gone(struct index *x, struct cache_repair_report *out, struct err *err)
{
	sqlite3_stmt *st;
	int rc;

	if (prepare(x, &st, "SELECT corpus, source FROM gone WHERE was_current AND corpus NOT IN"
		    " (SELECT corpus FROM snapshot WHERE is_current) GROUP BY corpus", err))
		return -1;
	while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
		const char *name = (const char *)sqlite3_column_text(st, 0), *source = sqlite3_column_blob(st, 1);

		out->corpora = xrealloc(out->corpora, out->n_corpora + 1, sizeof *out->corpora);
		out->corpora[out->n_corpora].name = xstrdup(name ? name : "");
		out->corpora[out->n_corpora++].source =
			xstrndup(source ? source : "", (size_t)sqlite3_column_bytes(st, 1));
	}
	return finish(x, st, rc, err);
}

static void note(void *ctx, const char *text, const struct index_target *t)
{
	char **first = ctx;

	(void)t;
	if (!*first)
		*first = xstrdup(text);
}

/* Indexes can be made anew from their tables; a table that is broken cannot. */
static int mend_pages(struct index *x, struct err *err)
{
	char *first = NULL;
	int rc = check_integrity(x, note, &first, err);

	if (!rc && first && strstr(first, "index ")) {
		free(first);
		first = NULL;
		rc = sql_execute(x, "REINDEX", err) || check_integrity(x, note, &first, err) ? -1 : 0;
	}
	if (!rc && first)
		rc = err_set(err, ERR_DAMAGED, "index %s is damaged beyond its rows (%s): move the store away and ingest again",
			     x->path, first);
	free(first);
	return rc;
}

int index_all_extents(struct index *x, void (*fn)(void *ctx, const struct index_extent *e), void *ctx, struct err *err)
{
	sqlite3_stmt *st;
	int rc;

	if (prepare(x, &st, "SELECT segment, offset, bytes, run FROM extent", err))
		return -1;
	while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
		const struct index_extent e = {
			.extent = {sqlite3_column_int(st, 0), sqlite3_column_int64(st, 1), sqlite3_column_int64(st, 2)},
			.run = sqlite3_column_int64(st, 3),
		};

		fn(ctx, &e);
	}
	return finish(x, st, rc, err);
}

int index_count_waiting(struct index *x, int64_t *out, struct err *err)
{
	return count(x, "SELECT count(*) FROM span WHERE damaged", out, err);
}

int index_repair(struct index *x, const int64_t *bad, size_t n, const int64_t *bad_jobs, size_t n_jobs,
		 struct cache_repair_report *out, struct err *err)
{
	int64_t before, after, jobs, jobs_after, broken;

	*out = (struct cache_repair_report){0};
	if (sql_execute(x, "PRAGMA defer_foreign_keys = ON; DROP TABLE IF EXISTS temp.bad; DROP TABLE IF EXISTS temp.bad_job;"
			   "DROP TABLE IF EXISTS temp.mend; DROP TABLE IF EXISTS temp.chain; DROP TABLE IF EXISTS temp.gone;"
			   "CREATE TEMP TABLE bad (span INTEGER PRIMARY KEY);"
			   "CREATE TEMP TABLE bad_job (job INTEGER PRIMARY KEY);", err) ||
	    mend_pages(x, err) || insert_bad(x, "INSERT OR IGNORE INTO bad VALUES (?)", bad, n, err) ||
	    insert_bad(x, "INSERT OR IGNORE INTO bad_job VALUES (?)", bad_jobs, n_jobs, err) ||
	    sql_execute(x, repair_find, err) || count(x, "SELECT count(*) FROM job", &jobs, err) ||
	    count(x, "SELECT count(*) FROM span", &before, err) || sql_execute(x, repair_drop, err) ||
	    count(x, "SELECT count(*) FROM span", &after, err) || list_gone(x, out, err) ||
	    sql_execute(x, repair_mend, err) || count(x, "SELECT count(*) FROM mend", &out->quarantined_spans, err) ||
	    count(x, "SELECT count(*) FROM gone WHERE NOT was_current", &out->lost_snapshots, err) ||
	    count(x, "SELECT count(*) FROM pragma_foreign_key_check", &broken, err) ||
	    count(x, "SELECT count(*) FROM job", &jobs_after, err) ||
	    sql_execute(x, "DROP TABLE temp.bad; DROP TABLE temp.bad_job; DROP TABLE temp.mend; DROP TABLE temp.chain; DROP TABLE temp.gone;", err))
		return -1;
	out->lost_spans = before - after;
	out->dropped_jobs = jobs - jobs_after;
	if (broken)
		return err_set(err, ERR_DAMAGED, "index %s: %" PRId64 " rows still name others that are not there: move the "
			       "store away and ingest again", x->path, broken);
	return 0;
}
