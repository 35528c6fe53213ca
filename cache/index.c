#include "cache/index.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/mem.h"

enum { APPLICATION = 0x71756972 }; /* "quir", in the header of the file */

static const char schema[] =
	"CREATE TABLE layout ("
	"  id INTEGER PRIMARY KEY, identity BLOB NOT NULL UNIQUE CHECK (length(identity) = 32),"
	"  n_groups INTEGER NOT NULL, record_bytes BLOB NOT NULL," /* [n_groups] u32 */
	"  n_index_layers INTEGER NOT NULL, index_key_bytes INTEGER NOT NULL) STRICT;"
	"CREATE TABLE run ("
	"  id INTEGER PRIMARY KEY, layout INTEGER NOT NULL REFERENCES layout(id),"
	"  n_places INTEGER NOT NULL, n_living INTEGER NOT NULL DEFAULT 0 CHECK (n_living >= 0)) STRICT;"
	"CREATE TABLE extent ("
	"  run INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE, kind INTEGER NOT NULL, part INTEGER NOT NULL,"
	"  segment INTEGER NOT NULL CHECK (segment > 0), offset INTEGER NOT NULL CHECK (offset % 4096 = 0),"
	"  bytes INTEGER NOT NULL CHECK (bytes > 0 AND bytes % 4096 = 0),"
	"  PRIMARY KEY (run, kind, part), UNIQUE (segment, offset)) STRICT, WITHOUT ROWID;"
	"CREATE TABLE span ("
	"  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE CHECK (length(key) = 32),"
	"  parent INTEGER REFERENCES span(id), run INTEGER NOT NULL REFERENCES run(id), place INTEGER NOT NULL,"
	"  n_tokens INTEGER NOT NULL CHECK (n_tokens BETWEEN 1 AND 64), ids BLOB NOT NULL," /* [n_tokens] i32 */
	"  refs INTEGER NOT NULL DEFAULT 0 CHECK (refs >= 0), damaged INTEGER NOT NULL DEFAULT 0,"
	"  CHECK (length(ids) = 4 * n_tokens)) STRICT;"
	"CREATE INDEX span_parent ON span(parent);"
	"CREATE INDEX span_run ON span(run);"
	"CREATE TABLE snapshot ("
	"  id INTEGER PRIMARY KEY AUTOINCREMENT, corpus TEXT NOT NULL UNIQUE, source BLOB NOT NULL,"
	"  layout INTEGER NOT NULL REFERENCES layout(id), created_s INTEGER NOT NULL,"
	"  n_tokens INTEGER NOT NULL, tip INTEGER NOT NULL REFERENCES span(id),"
	"  revision TEXT NOT NULL DEFAULT '') STRICT;"
	"CREATE INDEX snapshot_tip ON snapshot(tip);"
	"CREATE TABLE document ("
	"  snapshot INTEGER NOT NULL REFERENCES snapshot(id) ON DELETE CASCADE, place INTEGER NOT NULL,"
	"  path BLOB NOT NULL, content_hash BLOB NOT NULL CHECK (length(content_hash) = 32),"
	"  first_token INTEGER NOT NULL, n_tokens INTEGER NOT NULL, line_tokens BLOB NOT NULL," /* u32 each */
	"  PRIMARY KEY (snapshot, place)) STRICT;"
	"CREATE TABLE skipped ("
	"  snapshot INTEGER NOT NULL REFERENCES snapshot(id) ON DELETE CASCADE, place INTEGER NOT NULL,"
	"  path BLOB NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (snapshot, place)) STRICT;"
	"CREATE TABLE pending (corpus TEXT PRIMARY KEY, tip INTEGER NOT NULL REFERENCES span(id)) STRICT;"
	"CREATE INDEX pending_tip ON pending(tip);";

/* What each format lacks of the next one. */
static const char *const upgrades[INDEX_FORMAT] = {
	[1] = "ALTER TABLE snapshot ADD COLUMN revision TEXT NOT NULL DEFAULT ''; PRAGMA user_version = 2;",
};

enum query {
	EACH_EXTENT,
	FIND_LAYOUT, ADD_LAYOUT,
	FIND_SPAN, FIND_BLOCK,
	ADD_RUN, ADD_EXTENT, ADD_SPAN, MOVE_SPAN, MARK_DAMAGED, RUN_LIVING,
	REFER, REFS, DROP_SPAN, DROP_RUN, RUN_EXTENTS,
	FIND_PENDING, DROP_PENDING, ADD_PENDING,
	FIND_SNAPSHOT, DROP_SNAPSHOT, ADD_SNAPSHOT, ADD_DOCUMENT, ADD_SKIPPED,
	CHAIN, COUNT_DOCUMENTS, DOCUMENTS, COUNT_SKIPPED, SKIPPED,
	LIST, COUNT,
	N_QUERIES
};

static const char *const sql[N_QUERIES] = {
	[EACH_EXTENT] = "SELECT segment, offset, bytes FROM extent",
	[FIND_LAYOUT] = "SELECT id, n_groups, record_bytes, n_index_layers, index_key_bytes FROM layout"
			" WHERE identity = ?",
	[ADD_LAYOUT] = "INSERT INTO layout (identity, n_groups, record_bytes, n_index_layers, index_key_bytes)"
		       " VALUES (?, ?, ?, ?, ?)",
	[FIND_SPAN] = "SELECT id, damaged, run FROM span WHERE key = ?",
	[FIND_BLOCK] = "SELECT e.segment, e.offset, e.bytes, s.segment, s.offset, s.bytes,"
		       "  span.place, run.n_places, span.n_tokens, layout.n_groups, layout.record_bytes,"
		       "  layout.index_key_bytes"
		       " FROM span JOIN run ON run.id = span.run JOIN layout ON layout.id = run.layout"
		       " JOIN extent e ON e.run = run.id AND e.kind = ?2 AND e.part = ?3"
		       " JOIN extent s ON s.run = run.id AND s.kind = 2 AND s.part = 0 WHERE span.key = ?1",
	[ADD_RUN] = "INSERT INTO run (layout, n_places) VALUES (?, ?)",
	[ADD_EXTENT] = "INSERT INTO extent (run, kind, part, segment, offset, bytes) VALUES (?, ?, ?, ?, ?, ?)",
	[ADD_SPAN] = "INSERT INTO span (key, parent, run, place, n_tokens, ids) VALUES (?, ?, ?, ?, ?, ?)",
	[MOVE_SPAN] = "UPDATE span SET run = ?, place = ?, damaged = 0 WHERE id = ?",
	[MARK_DAMAGED] = "UPDATE span SET damaged = 1 WHERE key = ?",
	[RUN_LIVING] = "UPDATE run SET n_living = n_living + ? WHERE id = ? RETURNING n_living",
	[REFER] = "UPDATE span SET refs = refs + ? WHERE id = ?",
	[REFS] = "SELECT refs, parent, run FROM span WHERE id = ?",
	[DROP_SPAN] = "DELETE FROM span WHERE id = ?",
	[DROP_RUN] = "DELETE FROM run WHERE id = ?",
	[RUN_EXTENTS] = "SELECT segment, offset, bytes FROM extent WHERE run = ?",
	[FIND_PENDING] = "SELECT tip FROM pending WHERE corpus = ?",
	[DROP_PENDING] = "DELETE FROM pending WHERE corpus = ?",
	[ADD_PENDING] = "INSERT INTO pending (corpus, tip) VALUES (?, ?)",
	[FIND_SNAPSHOT] = "SELECT snapshot.id, tip, source, identity, created_s, n_tokens, revision"
			  " FROM snapshot JOIN layout ON layout.id = layout WHERE corpus = ?",
	[DROP_SNAPSHOT] = "DELETE FROM snapshot WHERE id = ?",
	[ADD_SNAPSHOT] = "INSERT INTO snapshot (corpus, source, layout, created_s, n_tokens, tip, revision)"
			 " VALUES (?, ?, ?, ?, ?, ?, ?)",
	[ADD_DOCUMENT] = "INSERT INTO document VALUES (?, ?, ?, ?, ?, ?, ?)",
	[ADD_SKIPPED] = "INSERT INTO skipped VALUES (?, ?, ?, ?)",
	[CHAIN] = "SELECT key, parent, n_tokens, ids FROM span WHERE id = ?",
	[COUNT_DOCUMENTS] = "SELECT count(*) FROM document WHERE snapshot = ?",
	[DOCUMENTS] = "SELECT path, content_hash, first_token, n_tokens, line_tokens FROM document WHERE snapshot = ?"
		      " ORDER BY place",
	[COUNT_SKIPPED] = "SELECT count(*) FROM skipped WHERE snapshot = ?",
	[SKIPPED] = "SELECT path, reason FROM skipped WHERE snapshot = ? ORDER BY place",
	[LIST] = "SELECT corpus, source, identity, snapshot.id, created_s, n_tokens,"
		 "  (SELECT count(*) FROM document WHERE snapshot = snapshot.id),"
		 "  (SELECT count(*) FROM skipped WHERE snapshot = snapshot.id),"
		 "  n_index_layers, index_key_bytes, record_bytes, revision"
		 " FROM snapshot JOIN layout ON layout.id = layout ORDER BY corpus",
	[COUNT] = "SELECT (SELECT count(*) FROM snapshot), (SELECT count(*) FROM span)",
};

struct index {
	char *path;
	sqlite3 *db;
	sqlite3_stmt *statements[N_QUERIES];
	struct extent *freed;
	size_t n_freed, freed_room;
};

/* What SQLite says, as a sentence that says what to do. */
static int index_error(struct index *x, struct err *err)
{
	int rc = sqlite3_errcode(x->db), number = sqlite3_system_errno(x->db);
	const char *text = sqlite3_errmsg(x->db);
	bool io = (rc & 0xff) == SQLITE_IOERR;

	switch (io && (number == ENOSPC || number == EDQUOT || number == EFBIG) ? SQLITE_FULL : rc & 0xff) {
	case SQLITE_FULL:
		return err_set(err, ERR_IO, "index %s: %s; free space there and start again: what is stored stays",
			       x->path, text);
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return err_set(err, ERR_DAMAGED, "index %s: %s; move the store away and ingest again", x->path, text);
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return err_set(err, ERR_BUSY, "index %s: %s; somebody else writes to it", x->path, text);
	case SQLITE_IOERR:
	case SQLITE_CANTOPEN:
		return err_set(err, ERR_IO, "index %s: %s%s%s", x->path, text, number ? ": " : "",
			       number ? strerror(number) : "");
	case SQLITE_CONSTRAINT:
		return err_set(err, ERR_DAMAGED, "index %s contradicts itself: %s; move the store away and ingest "
			       "again", x->path, text);
	default:
		return err_set(err, ERR_FAILED, "index %s: %s", x->path, text);
	}
}

static int execute(struct index *x, const char *statements, struct err *err)
{
	return sqlite3_exec(x->db, statements, NULL, NULL, NULL) ? index_error(x, err) : 0;
}

static int bind(sqlite3_stmt *st, const char *types, va_list args)
{
	int rc = SQLITE_OK;

	for (int i = 1; *types && !rc; i++, types++) {
		const void *p;
		size_t n;

		switch (*types) {
		case 'i':
			rc = sqlite3_bind_int64(st, i, va_arg(args, int64_t));
			break;
		case 't':
			rc = sqlite3_bind_text(st, i, va_arg(args, const char *), -1, SQLITE_TRANSIENT);
			break;
		case 'b':
			p = va_arg(args, const void *);
			n = va_arg(args, size_t);
			rc = n ? sqlite3_bind_blob64(st, i, p, n, SQLITE_TRANSIENT) : sqlite3_bind_zeroblob(st, i, 0);
			break;
		case '?': /* a row id, where 0 stands for none */
			n = (size_t)va_arg(args, int64_t);
			rc = n ? sqlite3_bind_int64(st, i, (int64_t)n) : sqlite3_bind_null(st, i);
			break;
		default:
			assert(!"a type of bind()");
		}
	}
	return rc;
}

/* The next row of a query: 1 and its columns, or 0 and the query is over. */
static int next(struct index *x, enum query q, struct err *err)
{
	int rc = sqlite3_step(x->statements[q]);

	if (rc == SQLITE_ROW)
		return 1;
	if (rc != SQLITE_DONE) {
		index_error(x, err);
		sqlite3_reset(x->statements[q]);
		return -1;
	}
	sqlite3_reset(x->statements[q]);
	return 0;
}

/* Start a query over: 1 at its first row, 0 when it has none. types: i int64_t, t text, b bytes and their size_t,
 * ? a row id or 0. A query left before its end is ended by `done`, lest it hold up checkpoints. */
static int ask(struct index *x, enum query q, struct err *err, const char *types, ...)
{
	va_list args;
	int rc;

	if (!x->statements[q] &&
	    sqlite3_prepare_v3(x->db, sql[q], -1, SQLITE_PREPARE_PERSISTENT, &x->statements[q], NULL))
		return index_error(x, err);
	sqlite3_reset(x->statements[q]);
	va_start(args, types);
	rc = bind(x->statements[q], types, args);
	va_end(args);
	return rc ? index_error(x, err) : next(x, q, err);
}

static void done(struct index *x, enum query q)
{
	sqlite3_reset(x->statements[q]);
}

static int64_t integer(struct index *x, enum query q, int column)
{
	return sqlite3_column_int64(x->statements[q], column);
}

/* Copy a blob of exactly `bytes` bytes. */
static int blob(struct index *x, enum query q, int column, void *out, size_t bytes, struct err *err)
{
	const void *p = sqlite3_column_blob(x->statements[q], column);
	size_t n = (size_t)sqlite3_column_bytes(x->statements[q], column);

	if (n != bytes)
		return err_set(err, ERR_DAMAGED, "index %s: column %s has %zu bytes, not %zu", x->path,
			       sqlite3_column_name(x->statements[q], column), n, bytes);
	if (n)
		memcpy(out, p, n);
	return 0;
}

static char *string(struct arena *a, struct index *x, enum query q, int column)
{
	const char *p = sqlite3_column_blob(x->statements[q], column);

	return arena_strndup(a, p ? p : "", (size_t)sqlite3_column_bytes(x->statements[q], column));
}

static int pragma(struct index *x, const char *statement, int64_t *out, struct err *err)
{
	sqlite3_stmt *st = NULL;

	if (sqlite3_prepare_v2(x->db, statement, -1, &st, NULL) || sqlite3_step(st) != SQLITE_ROW) {
		index_error(x, err);
		sqlite3_finalize(st);
		return -1;
	}
	*out = sqlite3_column_int64(st, 0);
	sqlite3_finalize(st);
	return 0;
}

/* Make the tables of a new store, bring those of an older format up to date; refuse one that is not ours, or of a format we do not know. */
static int index_settle(struct index *x, bool writer, struct err *err)
{
	int64_t application, format, n_tables;

	if (pragma(x, "PRAGMA application_id", &application, err) || pragma(x, "PRAGMA user_version", &format, err) ||
	    pragma(x, "SELECT count(*) FROM sqlite_schema", &n_tables, err))
		return -1;
	if (writer && !application && !format && !n_tables)
		return execute(x, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN IMMEDIATE;", err) ||
		       execute(x, schema, err) ||
		       execute(x, "PRAGMA application_id = 0x71756972; PRAGMA user_version = 2; COMMIT;", err) ? -1 : 0;
	if (application != APPLICATION)
		return err_set(err, ERR_FORMAT, "%s is not the index of a quire store", x->path);
	if (format > INDEX_FORMAT)
		return err_set(err, ERR_MISMATCH, "%s has format %" PRId64 ", this quire knows formats up to %d: use the "
			       "quire that made it, or another store", x->path, format, INDEX_FORMAT);
	if (format < 1 || (format < INDEX_FORMAT && !writer))
		return err_set(err, ERR_MISMATCH, "%s has format %" PRId64 ", this quire reads format %d: start quired, which "
			       "brings it up to date", x->path, format, INDEX_FORMAT);
	for (; format < INDEX_FORMAT; format++)
		if (execute(x, "BEGIN IMMEDIATE", err) || execute(x, upgrades[format], err) || execute(x, "COMMIT", err))
			return -1;
	return execute(x, "PRAGMA journal_mode = WAL;", err);
}

int index_open(struct index **out, const char *dir, bool writer, struct err *err)
{
	struct index *x = xcalloc(1, sizeof *x);
	int fd;

	x->path = xasprintf("%s/index.sqlite", dir);
	/* SQLite gives its log files the mode of the database, so that one decides for all. */
	fd = open(x->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (writer ? O_CREAT : 0), 0600);
	if (fd < 0) {
		err_errno(err, errno, "open %s", x->path);
		index_close(x);
		return -1;
	}
	close(fd);
	if (sqlite3_open_v2(x->path, &x->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW, NULL)) {
		index_error(x, err);
		index_close(x);
		return -1;
	}
	sqlite3_extended_result_codes(x->db, 1);
	sqlite3_busy_timeout(x->db, 5000);
	if (execute(x, "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY;"
		       "PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;", err) ||
	    index_settle(x, writer, err) || (!writer && execute(x, "PRAGMA query_only = ON;", err))) {
		index_close(x);
		return -1;
	}
	*out = x;
	return 0;
}

void index_close(struct index *x)
{
	if (!x)
		return;
	for (int i = 0; i < N_QUERIES; i++)
		sqlite3_finalize(x->statements[i]);
	sqlite3_close(x->db);
	free(x->freed);
	free(x->path);
	free(x);
}

int index_begin(struct index *x, struct err *err)
{
	x->n_freed = 0;
	return execute(x, "BEGIN IMMEDIATE", err);
}

int index_commit(struct index *x, bool *unsure, struct err *err)
{
	*unsure = false;
	if (!execute(x, "COMMIT", err))
		return 0;
	*unsure = (sqlite3_errcode(x->db) & 0xff) == SQLITE_IOERR;
	index_rollback(x);
	return -1;
}

void index_rollback(struct index *x)
{
	x->n_freed = 0;
	if (!sqlite3_get_autocommit(x->db))
		sqlite3_exec(x->db, "ROLLBACK", NULL, NULL, NULL);
}

static struct extent extent_column(struct index *x, enum query q, int column)
{
	return (struct extent){(int32_t)integer(x, q, column), integer(x, q, column + 1), integer(x, q, column + 2)};
}

int index_each_extent(struct index *x, void (*fn)(void *ctx, struct extent e), void *ctx, struct err *err)
{
	int rc = ask(x, EACH_EXTENT, err, "");

	for (; rc > 0; rc = next(x, EACH_EXTENT, err))
		fn(ctx, extent_column(x, EACH_EXTENT, 0));
	return rc;
}

int index_layout(struct index *x, const uint8_t identity[32], const struct cache_layout *make, int64_t *id,
		 struct err *err)
{
	size_t bytes = make ? (size_t)make->n_groups * sizeof *make->record_bytes : 0;
	int rc = ask(x, FIND_LAYOUT, err, "b", identity, (size_t)32);
	bool same;

	if (rc < 0)
		return -1;
	*id = rc ? integer(x, FIND_LAYOUT, 0) : 0;
	if (!make) {
		done(x, FIND_LAYOUT);
		return 0;
	}
	if (!rc) {
		if (ask(x, ADD_LAYOUT, err, "bibii", identity, (size_t)32, (int64_t)make->n_groups, make->record_bytes,
			bytes, (int64_t)make->n_index_layers, (int64_t)make->index_key_bytes) < 0)
			return -1;
		*id = sqlite3_last_insert_rowid(x->db);
		return 0;
	}
	same = integer(x, FIND_LAYOUT, 1) == make->n_groups && integer(x, FIND_LAYOUT, 3) == make->n_index_layers &&
	       integer(x, FIND_LAYOUT, 4) == make->index_key_bytes &&
	       (size_t)sqlite3_column_bytes(x->statements[FIND_LAYOUT], 2) == bytes &&
	       !memcmp(sqlite3_column_blob(x->statements[FIND_LAYOUT], 2), make->record_bytes, bytes);
	done(x, FIND_LAYOUT);
	if (!same)
		return err_set(err, ERR_MISMATCH, "index %s knows latents of this identity with other sizes", x->path);
	return 0;
}

int index_find_span(struct index *x, const struct span_key *key, bool whole, int64_t *span, struct err *err)
{
	int rc = ask(x, FIND_SPAN, err, "b", key->bytes, sizeof key->bytes);

	if (rc <= 0)
		return rc;
	*span = integer(x, FIND_SPAN, 0);
	rc = !(whole && integer(x, FIND_SPAN, 1));
	done(x, FIND_SPAN);
	return rc;
}

int index_find_block(struct index *x, const struct span_key *key, enum extent_kind kind, int32_t part,
		     struct block *out, struct err *err)
{
	int rc = ask(x, FIND_BLOCK, err, "bii", key->bytes, sizeof key->bytes, (int64_t)kind, (int64_t)part);
	const uint32_t *record_bytes;
	int n;

	if (rc <= 0)
		return rc;
	*out = (struct block){
		.extent = extent_column(x, FIND_BLOCK, 0), .sums = extent_column(x, FIND_BLOCK, 3),
		.place = (int32_t)integer(x, FIND_BLOCK, 6), .n_places = (int32_t)integer(x, FIND_BLOCK, 7),
		.n_tokens = (int32_t)integer(x, FIND_BLOCK, 8), .n_groups = (int32_t)integer(x, FIND_BLOCK, 9),
		.token_bytes = integer(x, FIND_BLOCK, 11),
	};
	record_bytes = sqlite3_column_blob(x->statements[FIND_BLOCK], 10);
	n = sqlite3_column_bytes(x->statements[FIND_BLOCK], 10) / (int)sizeof *record_bytes;
	if (kind == EXTENT_LATENTS)
		out->token_bytes = part < n ? record_bytes[part] : 0;
	done(x, FIND_BLOCK);
	return 1;
}

int index_add_run(struct index *x, int64_t layout, int32_t n_places, int64_t *run, struct err *err)
{
	if (ask(x, ADD_RUN, err, "ii", layout, (int64_t)n_places) < 0)
		return -1;
	*run = sqlite3_last_insert_rowid(x->db);
	return 0;
}

int index_add_extent(struct index *x, int64_t run, enum extent_kind kind, int32_t part, struct extent e,
		     struct err *err)
{
	return ask(x, ADD_EXTENT, err, "iiiiii", run, (int64_t)kind, (int64_t)part, (int64_t)e.segment, e.offset,
		   e.bytes);
}

static int refer(struct index *x, int64_t span, int64_t by, struct err *err)
{
	return ask(x, REFER, err, "ii", by, span);
}

/* A span more or less lies in the run; with the last one its extents go. */
static int run_count(struct index *x, int64_t run, int64_t by, struct err *err)
{
	int rc = ask(x, RUN_LIVING, err, "ii", by, run);
	int64_t n_living;

	if (rc <= 0)
		return rc;
	n_living = integer(x, RUN_LIVING, 0);
	/* An update is finished only when it is stepped to its end. */
	if (next(x, RUN_LIVING, err) < 0)
		return -1;
	if (n_living)
		return 0;
	for (rc = ask(x, RUN_EXTENTS, err, "i", run); rc > 0; rc = next(x, RUN_EXTENTS, err)) {
		if (x->n_freed == x->freed_room) {
			x->freed_room = x->freed_room ? 2 * x->freed_room : 64;
			x->freed = xrealloc(x->freed, x->freed_room, sizeof *x->freed);
		}
		x->freed[x->n_freed++] = extent_column(x, RUN_EXTENTS, 0);
	}
	return rc < 0 ? -1 : ask(x, DROP_RUN, err, "i", run);
}

/* One name less for the chain that ends at tip: leaves go until somebody else needs one. */
static int release(struct index *x, int64_t tip, struct err *err)
{
	while (tip) {
		int64_t refs, parent, run;
		int rc;

		if (refer(x, tip, -1, err))
			return -1;
		rc = ask(x, REFS, err, "i", tip);
		if (rc <= 0)
			return rc;
		refs = integer(x, REFS, 0);
		parent = integer(x, REFS, 1);
		run = integer(x, REFS, 2);
		done(x, REFS);
		if (refs)
			return 0;
		if (ask(x, DROP_SPAN, err, "i", tip) || run_count(x, run, -1, err))
			return -1;
		tip = parent;
	}
	return 0;
}

int index_put_span(struct index *x, const struct span_key *key, int64_t parent, int64_t run, int32_t place,
		   const int32_t *ids, int32_t n, int64_t *span, struct err *err)
{
	int rc = ask(x, FIND_SPAN, err, "b", key->bytes, sizeof key->bytes);
	int64_t former_run;

	if (rc < 0)
		return -1;
	if (!rc) {
		if (ask(x, ADD_SPAN, err, "b?iiib", key->bytes, sizeof key->bytes, parent, run, (int64_t)place,
			(int64_t)n, ids, (size_t)n * sizeof *ids) < 0)
			return -1;
		*span = sqlite3_last_insert_rowid(x->db);
		return (parent && refer(x, parent, 1, err)) || run_count(x, run, 1, err) ? -1 : 0;
	}
	*span = integer(x, FIND_SPAN, 0);
	former_run = integer(x, FIND_SPAN, 2);
	done(x, FIND_SPAN);
	return ask(x, MOVE_SPAN, err, "iii", run, (int64_t)place, *span) || run_count(x, run, 1, err) ||
	       run_count(x, former_run, -1, err) ? -1 : 0;
}

int index_mark_damaged(struct index *x, const struct span_key *key, struct err *err)
{
	return ask(x, MARK_DAMAGED, err, "b", key->bytes, sizeof key->bytes);
}

int index_set_pending(struct index *x, const char *corpus, int64_t tip, struct err *err)
{
	int rc = ask(x, FIND_PENDING, err, "t", corpus);
	int64_t former = rc > 0 ? integer(x, FIND_PENDING, 0) : 0;

	if (rc < 0)
		return -1;
	done(x, FIND_PENDING);
	if (former == tip)
		return 0;
	if (former && ask(x, DROP_PENDING, err, "t", corpus))
		return -1;
	if (tip && (ask(x, ADD_PENDING, err, "ti", corpus, tip) || refer(x, tip, 1, err)))
		return -1;
	return release(x, former, err);
}

static int add_documents(struct index *x, const struct cache_snapshot *s, int64_t id, struct err *err)
{
	for (int32_t i = 0; i < s->n_documents; i++) {
		const struct cache_document *d = &s->documents[i];

		if (ask(x, ADD_DOCUMENT, err, "iibbiib", id, (int64_t)i, d->path, strlen(d->path), d->content_hash,
			sizeof d->content_hash, d->first_token, d->n_tokens, d->line_tokens,
			(size_t)d->n_lines * sizeof *d->line_tokens) < 0)
			return -1;
	}
	for (int32_t i = 0; i < s->n_skipped; i++)
		if (ask(x, ADD_SKIPPED, err, "iibt", id, (int64_t)i, s->skipped[i].path, strlen(s->skipped[i].path),
			s->skipped[i].reason) < 0)
			return -1;
	return 0;
}

int index_add_snapshot(struct index *x, const struct cache_snapshot *s, int64_t layout, int64_t tip, int64_t *id,
		       struct err *err)
{
	int rc = ask(x, FIND_SNAPSHOT, err, "t", s->corpus);
	int64_t former = rc > 0 ? integer(x, FIND_SNAPSHOT, 0) : 0;
	int64_t former_tip = rc > 0 ? integer(x, FIND_SNAPSHOT, 1) : 0;

	if (rc < 0)
		return -1;
	done(x, FIND_SNAPSHOT);
	/* The new name first: what both snapshots share never goes. */
	if (refer(x, tip, 1, err) || (former && ask(x, DROP_SNAPSHOT, err, "i", former)) ||
	    ask(x, ADD_SNAPSHOT, err, "tbiiiit", s->corpus, s->source, strlen(s->source), layout, s->created_s,
		s->n_tokens, tip, s->revision ? s->revision : "") < 0)
		return -1;
	*id = sqlite3_last_insert_rowid(x->db);
	return add_documents(x, s, *id, err) || release(x, former_tip, err) ||
	       index_set_pending(x, s->corpus, 0, err) ? -1 : 0;
}

const struct extent *index_freed(const struct index *x, size_t *n)
{
	*n = x->n_freed;
	return x->freed;
}

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

static int no_such_corpus(struct index *x, const char *corpus, struct err *err)
{
	char nearest[128] = "";
	int best = 0, rc = ask(x, LIST, err, "");

	for (; rc > 0; rc = next(x, LIST, err)) {
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
		int rc = ask(x, CHAIN, err, "i", tip);

		if (rc > 0 && (integer(x, CHAIN, 2) != n || blob(x, CHAIN, 0, keys[i].bytes, sizeof keys[i].bytes, err) ||
			       blob(x, CHAIN, 3, ids + i * CACHE_SPAN_TOKENS, (size_t)n * sizeof *ids, err)))
			rc = 0;
		if (rc <= 0) {
			free(keys);
			return rc ? -1 : err_set(err, ERR_DAMAGED, "index %s: span %" PRId64 " of corpus '%s' is not "
						 "there; ingest it again", x->path, i, s->corpus);
		}
		tip = integer(x, CHAIN, 1);
		at -= n;
	}
	done(x, CHAIN);
	for (int64_t i = 0; i < n_spans; i++) {
		int64_t first = i * CACHE_SPAN_TOKENS, left = s->n_tokens - first;

		span_key_make(&made, s->identity, i ? &keys[i - 1] : NULL, ids + first,
			      (int32_t)(left < CACHE_SPAN_TOKENS ? left : CACHE_SPAN_TOKENS));
		if (memcmp(&made, &keys[i], sizeof made)) {
			free(keys);
			return err_set(err, ERR_DAMAGED, "index %s: the row of span %" PRId64 " of corpus '%s' is not what "
				       "was written; ingest it again", x->path, i, s->corpus);
		}
	}
	free(keys);
	return 0;
}

static int count(struct index *x, enum query q, int64_t snapshot, int32_t *n, struct err *err)
{
	if (ask(x, q, err, "i", snapshot) < 0)
		return -1;
	*n = (int32_t)integer(x, q, 0);
	done(x, q);
	return 0;
}

static int load_documents(struct index *x, struct loaded *l, struct err *err)
{
	struct cache_snapshot *s = &l->snapshot;
	struct cache_document *documents;
	struct cache_skipped *skipped;
	int32_t n;
	int rc;

	if (count(x, COUNT_DOCUMENTS, s->id, &n, err))
		return -1;
	s->documents = documents = arena_alloc(l->arena, (size_t)n, sizeof *documents);
	for (rc = ask(x, DOCUMENTS, err, "i", s->id); rc > 0 && s->n_documents < n; rc = next(x, DOCUMENTS, err)) {
		struct cache_document *d = &documents[s->n_documents++];
		size_t bytes = (size_t)sqlite3_column_bytes(x->statements[DOCUMENTS], 4);
		uint32_t *lines = arena_alloc(l->arena, bytes, 1);

		d->path = string(l->arena, x, DOCUMENTS, 0);
		d->first_token = integer(x, DOCUMENTS, 2);
		d->n_tokens = integer(x, DOCUMENTS, 3);
		d->n_lines = (int32_t)(bytes / sizeof *lines);
		d->line_tokens = lines;
		if (blob(x, DOCUMENTS, 1, d->content_hash, sizeof d->content_hash, err) ||
		    blob(x, DOCUMENTS, 4, lines, bytes / sizeof *lines * sizeof *lines, err)) {
			done(x, DOCUMENTS);
			return -1;
		}
	}
	if (rc < 0 || count(x, COUNT_SKIPPED, s->id, &n, err))
		return -1;
	s->skipped = skipped = arena_alloc(l->arena, (size_t)n, sizeof *skipped);
	for (rc = ask(x, SKIPPED, err, "i", s->id); rc > 0 && s->n_skipped < n; rc = next(x, SKIPPED, err))
		skipped[s->n_skipped++] = (struct cache_skipped){string(l->arena, x, SKIPPED, 0),
								 string(l->arena, x, SKIPPED, 1)};
	return rc;
}

static int load_snapshot(struct index *x, const char *corpus, bool with_ids, struct cache_snapshot **out,
			 struct err *err)
{
	int rc = ask(x, FIND_SNAPSHOT, err, "t", corpus);
	struct cache_snapshot *s;
	struct loaded *l;
	uint8_t *identity;
	int64_t tip;

	if (rc <= 0)
		return rc ? -1 : no_such_corpus(x, corpus, err);
	l = xcalloc(1, sizeof *l);
	l->arena = arena_new();
	s = &l->snapshot;
	s->id = integer(x, FIND_SNAPSHOT, 0);
	tip = integer(x, FIND_SNAPSHOT, 1);
	s->corpus = arena_strndup(l->arena, corpus, strlen(corpus));
	s->source = string(l->arena, x, FIND_SNAPSHOT, 2);
	s->identity = identity = arena_alloc(l->arena, 32, 1);
	rc = blob(x, FIND_SNAPSHOT, 3, identity, 32, err);
	s->created_s = integer(x, FIND_SNAPSHOT, 4);
	s->n_tokens = integer(x, FIND_SNAPSHOT, 5);
	s->revision = string(l->arena, x, FIND_SNAPSHOT, 6);
	done(x, FIND_SNAPSHOT);
	if (rc || (with_ids && load_chain(x, l, tip, err)) || load_documents(x, l, err)) {
		cache_free_snapshot(s);
		return -1;
	}
	*out = s;
	return 0;
}

int index_load_snapshot(struct index *x, const char *corpus, struct cache_snapshot **out, struct err *err)
{
	return load_snapshot(x, corpus, true, out, err);
}

int index_load_files(struct index *x, const char *corpus, struct cache_snapshot **out, struct err *err)
{
	return load_snapshot(x, corpus, false, out, err);
}

/* What a corpus's tokens take: records, index keys, and their sums. */
static int64_t corpus_bytes(struct index *x, int64_t n_tokens)
{
	const uint32_t *record_bytes = sqlite3_column_blob(x->statements[LIST], 10);
	int n_groups = sqlite3_column_bytes(x->statements[LIST], 10) / (int)sizeof *record_bytes;
	int64_t n_index_layers = integer(x, LIST, 8), token_bytes = n_index_layers * integer(x, LIST, 9);
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
	for (rc = ask(x, LIST, err, ""); rc > 0; rc = next(x, LIST, err)) {
		const char *name = (const char *)sqlite3_column_text(x->statements[LIST], 0);
		const char *source = sqlite3_column_blob(x->statements[LIST], 1), *revision;
		struct cache_corpus *c;

		if (*n == room)
			list = xrealloc(list, room = room ? 2 * room : 16, sizeof *list);
		c = &list[(*n)++];
		*c = (struct cache_corpus){
			.source = xstrndup(source ? source : "", (size_t)sqlite3_column_bytes(x->statements[LIST], 1)),
			.snapshot_id = integer(x, LIST, 3), .created_s = integer(x, LIST, 4),
			.n_tokens = integer(x, LIST, 5), .n_documents = integer(x, LIST, 6),
			.n_skipped = integer(x, LIST, 7), .bytes = corpus_bytes(x, integer(x, LIST, 5)),
		};
		strncpy(c->name, name ? name : "", sizeof c->name - 1);
		revision = (const char *)sqlite3_column_text(x->statements[LIST], 11);
		strncpy(c->revision, revision ? revision : "", sizeof c->revision - 1);
		if (blob(x, LIST, 2, c->identity, sizeof c->identity, err)) {
			done(x, LIST);
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
	if (ask(x, COUNT, err, "") < 0)
		return -1;
	*n_corpora = integer(x, COUNT, 0);
	*n_spans = integer(x, COUNT, 1);
	done(x, COUNT);
	return 0;
}
