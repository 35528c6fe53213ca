#include "cache/sql.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { APPLICATION = 0x71756972 }; /* "quir", in the header of the file */

#define SNAPSHOT_TABLE(name) \
	"CREATE TABLE " name " (" \
	"  id INTEGER PRIMARY KEY AUTOINCREMENT, corpus TEXT NOT NULL, source BLOB NOT NULL," \
	"  layout INTEGER NOT NULL REFERENCES layout(id), created_s INTEGER NOT NULL," \
	"  n_tokens INTEGER NOT NULL, tip INTEGER NOT NULL REFERENCES span(id)," \
	"  revision TEXT NOT NULL DEFAULT '', used_s INTEGER NOT NULL DEFAULT 0," \
	"  n_documents INTEGER NOT NULL, n_skipped INTEGER NOT NULL," \
	"  is_current INTEGER NOT NULL CHECK (is_current IN (0, 1)), sum INTEGER NOT NULL) STRICT;"
#define SNAPSHOT_INDEXES \
	"CREATE INDEX snapshot_tip ON snapshot(tip);" \
	"CREATE INDEX snapshot_corpus ON snapshot(corpus);" \
	"CREATE UNIQUE INDEX snapshot_current ON snapshot(corpus) WHERE is_current;"

#define JOB_TABLE \
	"CREATE TABLE job (" \
	"  id INTEGER PRIMARY KEY, corpus TEXT NOT NULL UNIQUE, run INTEGER NOT NULL UNIQUE REFERENCES run(id)," \
	"  tip BLOB NOT NULL CHECK (length(tip) = 32), n_tokens INTEGER NOT NULL," \
	"  places BLOB NOT NULL, whole BLOB NOT NULL," /* [spans of the job], [parts] u8 */ \
	"  next_layer INTEGER NOT NULL, file INTEGER NOT NULL, state_bytes INTEGER NOT NULL, state_sum INTEGER NOT NULL," \
	"  sum INTEGER NOT NULL) STRICT;"

#define ROUTING_TABLE \
	"CREATE TABLE routing (" \
	"  run INTEGER PRIMARY KEY REFERENCES run(id) ON DELETE CASCADE, n_tokens INTEGER NOT NULL CHECK (n_tokens > 0)," \
	"  n_layers INTEGER NOT NULL, n_experts INTEGER NOT NULL, chosen BLOB NOT NULL," /* [n_layers, n_experts] u32 */ \
	"  sum INTEGER NOT NULL, CHECK (length(chosen) = 4 * n_layers * n_experts)) STRICT;"

static const char schema[] =
	"CREATE TABLE layout ("
	"  id INTEGER PRIMARY KEY, identity BLOB NOT NULL UNIQUE CHECK (length(identity) = 32),"
	"  n_groups INTEGER NOT NULL, record_bytes BLOB NOT NULL," /* [n_groups] u32 */
	"  n_index_layers INTEGER NOT NULL, index_key_bytes INTEGER NOT NULL,"
	"  sum INTEGER NOT NULL) STRICT;"
	"CREATE TABLE run ("
	"  id INTEGER PRIMARY KEY, layout INTEGER NOT NULL REFERENCES layout(id),"
	"  n_places INTEGER NOT NULL, n_living INTEGER NOT NULL DEFAULT 0 CHECK (n_living >= 0),"
	"  sum INTEGER NOT NULL) STRICT;"
	"CREATE TABLE extent ("
	"  run INTEGER NOT NULL REFERENCES run(id) ON DELETE CASCADE, kind INTEGER NOT NULL, part INTEGER NOT NULL,"
	"  segment INTEGER NOT NULL CHECK (segment > 0), offset INTEGER NOT NULL CHECK (offset % 4096 = 0),"
	"  bytes INTEGER NOT NULL CHECK (bytes > 0 AND bytes % 4096 = 0), sum INTEGER NOT NULL,"
	"  PRIMARY KEY (run, kind, part), UNIQUE (segment, offset)) STRICT, WITHOUT ROWID;"
	"CREATE TABLE span ("
	"  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE CHECK (length(key) = 32),"
	"  parent INTEGER REFERENCES span(id), run INTEGER NOT NULL REFERENCES run(id), place INTEGER NOT NULL,"
	"  n_tokens INTEGER NOT NULL CHECK (n_tokens BETWEEN 1 AND 64), ids BLOB NOT NULL," /* [n_tokens] i32 */
	"  refs INTEGER NOT NULL DEFAULT 0 CHECK (refs >= 0), damaged INTEGER NOT NULL DEFAULT 0,"
	"  sum INTEGER NOT NULL,"
	"  CHECK (length(ids) = 4 * n_tokens)) STRICT;"
	"CREATE INDEX span_parent ON span(parent);"
	"CREATE INDEX span_run ON span(run);"
	SNAPSHOT_TABLE("snapshot") SNAPSHOT_INDEXES
	"CREATE TABLE document ("
	"  snapshot INTEGER NOT NULL REFERENCES snapshot(id) ON DELETE CASCADE, place INTEGER NOT NULL,"
	"  path BLOB NOT NULL, content_hash BLOB NOT NULL CHECK (length(content_hash) = 32),"
	"  first_token INTEGER NOT NULL, n_tokens INTEGER NOT NULL, line_tokens BLOB NOT NULL," /* u32 each */
	"  sum INTEGER NOT NULL,"
	"  PRIMARY KEY (snapshot, place)) STRICT;"
	"CREATE TABLE skipped ("
	"  snapshot INTEGER NOT NULL REFERENCES snapshot(id) ON DELETE CASCADE, place INTEGER NOT NULL,"
	"  path BLOB NOT NULL, reason TEXT NOT NULL, sum INTEGER NOT NULL, PRIMARY KEY (snapshot, place)) STRICT;"
	"CREATE TABLE pending ("
	"  corpus TEXT PRIMARY KEY, tip INTEGER NOT NULL REFERENCES span(id), sum INTEGER NOT NULL) STRICT;"
	"CREATE INDEX pending_tip ON pending(tip);"
	JOB_TABLE ROUTING_TABLE;

#define ADD_SUM(table, row) \
	"ALTER TABLE " table " ADD COLUMN sum INTEGER NOT NULL DEFAULT 0; UPDATE " table " SET sum = " ROW_SUM(table, row) ";"

/* A corpus had one snapshot, as its name was unique. The table is made anew, a wrong row stays one, and the next id is
 * still none that a snapshot has had. */
#define FORMER_SNAPSHOTS \
	SNAPSHOT_TABLE("snapshot_4") \
	"INSERT INTO snapshot_4 SELECT " SNAPSHOT_ROW_3 ", 1, CASE WHEN sum = " ROW_SUM("snapshot", SNAPSHOT_ROW_3) \
	" THEN " ROW_SUM("snapshot", SNAPSHOT_ROW_3 ", 1") " ELSE sum END FROM snapshot;" \
	"DELETE FROM sqlite_sequence WHERE name = 'snapshot_4';" \
	"INSERT INTO sqlite_sequence SELECT 'snapshot_4', seq FROM sqlite_sequence WHERE name = 'snapshot';" \
	"DROP TABLE snapshot; ALTER TABLE snapshot_4 RENAME TO snapshot;" SNAPSHOT_INDEXES

/* What each format lacks of the next one. */
static const char *const upgrades[INDEX_FORMAT] = {
	[1] = "ALTER TABLE snapshot ADD COLUMN revision TEXT NOT NULL DEFAULT ''; PRAGMA user_version = 2;",
	[2] = "ALTER TABLE snapshot ADD COLUMN used_s INTEGER NOT NULL DEFAULT 0;"
	      "ALTER TABLE snapshot ADD COLUMN n_documents INTEGER NOT NULL DEFAULT 0;"
	      "ALTER TABLE snapshot ADD COLUMN n_skipped INTEGER NOT NULL DEFAULT 0;"
	      "UPDATE snapshot SET used_s = created_s,"
	      "  n_documents = (SELECT count(*) FROM document WHERE snapshot = snapshot.id),"
	      "  n_skipped = (SELECT count(*) FROM skipped WHERE snapshot = snapshot.id);"
	      ADD_SUM("layout", LAYOUT_ROW) ADD_SUM("run", RUN_ROW) ADD_SUM("extent", EXTENT_ROW)
	      ADD_SUM("span", SPAN_ROW) ADD_SUM("snapshot", SNAPSHOT_ROW_3) ADD_SUM("document", DOCUMENT_ROW)
	      ADD_SUM("skipped", SKIPPED_ROW) ADD_SUM("pending", PENDING_ROW) "PRAGMA user_version = 3;",
	[3] = FORMER_SNAPSHOTS JOB_TABLE "PRAGMA user_version = 4;",
	[4] = ROUTING_TABLE "PRAGMA user_version = 5;",
};

/* A new row from a SELECT of its columns; its sum is behind them, as in the table of a new store. */
#define ADD(table, columns, row, values) \
	"INSERT INTO " table " (" columns ", sum) SELECT " row ", " ROW_SUM(table, row) " FROM (SELECT " values ") AS " table
#define NEXT_ID(table) "(SELECT coalesce(max(id), 0) + 1 FROM " table ") AS id"

static const char *const queries[N_QUERIES] = {
	[EACH_EXTENT] = "SELECT segment, offset, bytes, run, kind, part, " EXTENT_WHOLE " FROM extent",
	[FIND_LAYOUT] = "SELECT id, n_groups, record_bytes, n_index_layers, index_key_bytes, " LAYOUT_WHOLE
			" FROM layout WHERE identity = ?",
	[ADD_LAYOUT] = ADD("layout", "id, identity, n_groups, record_bytes, n_index_layers, index_key_bytes", LAYOUT_ROW,
			   NEXT_ID("layout") ", ? AS identity, ? AS n_groups, ? AS record_bytes, ? AS n_index_layers,"
			   " ? AS index_key_bytes"),
	[FIND_SPAN] = "SELECT id, damaged, run, key, " SPAN_WHOLE " FROM span WHERE key = ?",
	[FIND_BLOCK] = "SELECT extent.segment, extent.offset, extent.bytes, s.segment, s.offset, s.bytes,"
		       "  span.place, run.n_places, span.n_tokens, layout.n_groups, layout.record_bytes,"
		       "  layout.index_key_bytes, span.id, run.id, layout.id, span.key, " SPAN_WHOLE ", " RUN_WHOLE ", " LAYOUT_WHOLE
		       ", " EXTENT_WHOLE ", s.sum = row_sum('extent', s.run, s.kind, s.part, s.segment, s.offset, s.bytes)"
		       " FROM span JOIN run ON run.id = span.run JOIN layout ON layout.id = run.layout"
		       " JOIN extent ON extent.run = run.id AND extent.kind = ?2 AND extent.part = ?3"
		       " JOIN extent s ON s.run = run.id AND s.kind = 2 AND s.part = 0 WHERE span.key = ?1",
	/* Nor the id of a run that was lost and whose extents are still there. */
	[ADD_RUN] = ADD("run", "id, layout, n_places, n_living", RUN_ROW,
			"(SELECT max(coalesce((SELECT max(id) FROM run), 0), coalesce((SELECT max(run) FROM extent), 0)) + 1) AS id,"
			" ? AS layout, ? AS n_places, 0 AS n_living"),
	[ADD_EXTENT] = ADD("extent", "run, kind, part, segment, offset, bytes", EXTENT_ROW,
			   "? AS run, ? AS kind, ? AS part, ? AS segment, ? AS offset, ? AS bytes"),
	[ADD_SPAN] = ADD("span", "id, key, parent, run, place, n_tokens, ids, refs, damaged", SPAN_ROW,
			 NEXT_ID("span") ", ? AS key, ? AS parent, ? AS run, ? AS place, ? AS n_tokens, ? AS ids,"
			 " 0 AS refs, 0 AS damaged"),
	[MOVE_SPAN] = "UPDATE span SET run = ?1, place = ?2, damaged = ?3,"
		      "  sum = row_sum('span', id, key, parent, ?1, ?2, n_tokens, ids, refs, ?3)"
		      " WHERE id = ?4 AND " SPAN_WHOLE,
	[MARK_DAMAGED] = "UPDATE span SET damaged = 1,"
			 "  sum = row_sum('span', id, key, parent, run, place, n_tokens, ids, refs, 1)"
			 " WHERE id = ? AND " SPAN_WHOLE,
	[RUN_LIVING] = "UPDATE run SET n_living = n_living + ?1, sum = row_sum('run', id, layout, n_places, n_living + ?1)"
		       " WHERE id = ?2 AND " RUN_WHOLE " RETURNING n_living",
	[REFER] = "UPDATE span SET refs = refs + ?1,"
		  "  sum = row_sum('span', id, key, parent, run, place, n_tokens, ids, refs + ?1, damaged)"
		  " WHERE id = ?2 AND " SPAN_WHOLE,
	[REFS] = "SELECT refs, parent, run FROM span WHERE id = ?",
	[DROP_SPAN] = "DELETE FROM span WHERE id = ?",
	[DROP_RUN] = "DELETE FROM run WHERE id = ?",
	[RUN_EXTENTS] = "SELECT segment, offset, bytes, " EXTENT_WHOLE ", kind, part FROM extent WHERE run = ?",
	[FIND_PENDING] = "SELECT tip, rowid, corpus, " PENDING_WHOLE " FROM pending WHERE corpus = ?",
	[DROP_PENDING] = "DELETE FROM pending WHERE corpus = ?",
	[ADD_PENDING] = ADD("pending", "corpus, tip", PENDING_ROW, "? AS corpus, ? AS tip"),
	[FIND_SNAPSHOT] = "SELECT snapshot.id, tip, source, identity, created_s, n_tokens, revision, n_documents, n_skipped,"
			  "  snapshot.layout, corpus, " SNAPSHOT_WHOLE ", " LAYOUT_WHOLE ", is_current"
			  " FROM snapshot LEFT JOIN layout ON layout.id = layout"
			  " WHERE corpus = ?1 AND CASE WHEN ?2 THEN snapshot.id = ?2 ELSE is_current END",
	[DROP_SNAPSHOT] = "DELETE FROM snapshot WHERE id = ?",
	/* AUTOINCREMENT's own number, as the id is needed for the sum: never that of a snapshot which is gone. */
	[ADD_SNAPSHOT] = ADD("snapshot", "id, corpus, source, layout, created_s, n_tokens, tip, revision, used_s, n_documents,"
			     " n_skipped, is_current", SNAPSHOT_ROW,
			     "coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'snapshot'), 0) + 1 AS id,"
			     " ? AS corpus, ? AS source, ? AS layout, ? AS created_s, ? AS n_tokens, ? AS tip,"
			     " ? AS revision, ? AS used_s, ? AS n_documents, ? AS n_skipped, 1 AS is_current"),
	[DEMOTE_SNAPSHOT] = "UPDATE snapshot SET is_current = 0, sum = row_sum('snapshot', id, corpus, source, layout, created_s,"
			    "  n_tokens, tip, revision, used_s, n_documents, n_skipped, 0) WHERE id = ? AND " SNAPSHOT_WHOLE,
	[OLD_SNAPSHOT] = "SELECT id, tip, " SNAPSHOT_WHOLE " FROM snapshot WHERE corpus = ? AND NOT is_current"
			 " ORDER BY id DESC LIMIT 1 OFFSET ?",
	[ANY_SNAPSHOT] = "SELECT id, tip, " SNAPSHOT_WHOLE " FROM snapshot WHERE corpus = ? LIMIT 1",
	[EACH_SNAPSHOT] = "SELECT snapshot.id, tip, source, identity, created_s, n_tokens, revision, n_documents, n_skipped,"
			  "  snapshot.layout, is_current, n_index_layers, index_key_bytes, record_bytes, " SNAPSHOT_WHOLE ", "
			  LAYOUT_WHOLE ", used_s FROM snapshot LEFT JOIN layout ON layout.id = layout WHERE corpus = ?"
			  " ORDER BY snapshot.id DESC",
	[LINK] = "SELECT parent, n_tokens, refs, damaged, " SPAN_WHOLE " FROM span WHERE id = ?",
	[ADD_DOCUMENT] = ADD("document", "snapshot, place, path, content_hash, first_token, n_tokens, line_tokens", DOCUMENT_ROW,
			     "? AS snapshot, ? AS place, ? AS path, ? AS content_hash, ? AS first_token, ? AS n_tokens,"
			     " ? AS line_tokens"),
	[ADD_SKIPPED] = ADD("skipped", "snapshot, place, path, reason", SKIPPED_ROW,
			    "? AS snapshot, ? AS place, ? AS path, ? AS reason"),
	[CHAIN] = "SELECT key, parent, n_tokens, ids, " SPAN_WHOLE " FROM span WHERE id = ?",
	[DOCUMENTS] = "SELECT path, content_hash, first_token, n_tokens, line_tokens, place, " DOCUMENT_WHOLE
		      " FROM document WHERE snapshot = ? ORDER BY place",
	[SKIPPED] = "SELECT path, reason, place, " SKIPPED_WHOLE " FROM skipped WHERE snapshot = ? ORDER BY place",
	[LIST] = "SELECT corpus, source, identity, snapshot.id, created_s, n_tokens, n_documents, n_skipped,"
		 "  n_index_layers, index_key_bytes, record_bytes, revision, snapshot.layout, " SNAPSHOT_WHOLE ", " LAYOUT_WHOLE
		 ", (SELECT count(*) FROM snapshot s WHERE s.corpus = snapshot.corpus)"
		 " FROM snapshot LEFT JOIN layout ON layout.id = layout WHERE is_current ORDER BY corpus",
	[TOUCH] = "UPDATE snapshot SET used_s = ?1, sum = row_sum('snapshot', id, corpus, source, layout, created_s, n_tokens,"
		  "  tip, revision, ?1, n_documents, n_skipped, is_current) WHERE corpus = ?2 AND is_current AND " SNAPSHOT_WHOLE,
	[EMPTY_RUN] = "SELECT layout, (SELECT id FROM run e WHERE e.layout = run.layout AND n_places = 0) FROM run WHERE id = ?",
	[RUN_SPANS] = "SELECT id FROM span WHERE run = ? LIMIT 1",
	[EACH_RUN] = "SELECT run, sum(bytes) FROM extent GROUP BY run",
	[EACH_USE] = "SELECT corpus, max(used_s) FROM snapshot GROUP BY corpus",
	[FIND_JOB] = "SELECT job.id, job.run, tip, n_tokens, places, whole, next_layer, file, state_bytes, state_sum, corpus,"
		     "  identity, n_places, " JOB_WHOLE " AND " RUN_WHOLE " AND " LAYOUT_WHOLE
		     " FROM job LEFT JOIN run ON run.id = job.run LEFT JOIN layout ON layout.id = run.layout WHERE corpus = ?",
	[HAS_JOB] = "SELECT 1 FROM job WHERE id = ?",
	[NEXT_JOB] = "SELECT " NEXT_ID("job"),
	[ADD_JOB] = ADD("job", "id, corpus, run, tip, n_tokens, places, whole, next_layer, file, state_bytes, state_sum", JOB_ROW,
			"? AS id, ? AS corpus, ? AS run, ? AS tip, ? AS n_tokens, ? AS places, ? AS whole, ? AS next_layer,"
			" ? AS file, ? AS state_bytes, ? AS state_sum"),
	[CHANGE_JOB] = "UPDATE job SET whole = ?1, next_layer = ?2, file = ?3, state_bytes = ?4, state_sum = ?5,"
		       "  sum = row_sum('job', id, corpus, run, tip, n_tokens, places, ?1, ?2, ?3, ?4, ?5)"
		       " WHERE id = ?6 AND " JOB_WHOLE,
	[DROP_JOB] = "DELETE FROM job WHERE corpus = ? OR run = ? RETURNING id",
	[IDLE_RUNS] = "SELECT id FROM run WHERE n_living = 0 AND " RUN_WHOLE
		      " AND NOT EXISTS (SELECT 1 FROM job WHERE job.run = run.id) LIMIT 1",
	[EACH_JOB] = "SELECT id, corpus, run, file, state_bytes, state_sum, " JOB_WHOLE " FROM job",
	[PUT_ROUTING] = "INSERT OR REPLACE INTO routing (run, n_tokens, n_layers, n_experts, chosen, sum) SELECT " ROUTING_ROW ", "
			ROW_SUM("routing", ROUTING_ROW) " FROM (SELECT ? AS run, ? AS n_tokens, ? AS n_layers, ? AS n_experts,"
			" ? AS chosen) AS routing",
	[GET_ROUTING] = "SELECT n_tokens, n_layers, n_experts, chosen, " ROUTING_WHOLE " FROM routing WHERE run = ?",
	/* A damaged parent could make a ring: UNION passes nothing twice. The sums come as the least, 0 where one is wrong. */
	[CHAIN_RUNS] = "WITH RECURSIVE chain(id, parent, run, n_tokens, whole) AS ("
		       " SELECT span.id, parent, run, n_tokens, " SPAN_WHOLE " FROM span WHERE id = ?"
		       " UNION SELECT span.id, span.parent, span.run, span.n_tokens, " SPAN_WHOLE
		       " FROM chain JOIN span ON span.id = chain.parent)"
		       " SELECT run, sum(n_tokens), min(whole), id FROM chain GROUP BY run ORDER BY run",
	[LAST_USED] = "SELECT corpus, snapshot.id FROM snapshot JOIN layout ON layout.id = layout WHERE identity = ? AND is_current"
		      " AND " SNAPSHOT_WHOLE " AND " LAYOUT_WHOLE " ORDER BY used_s DESC, snapshot.id DESC LIMIT 1",
	[COUNT] = "SELECT (SELECT count(DISTINCT corpus) FROM snapshot), (SELECT count(*) FROM span)",
};

int sql_error(struct index *x, struct err *err)
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

int sql_wrong_row(struct index *x, const char *table, int64_t row, struct err *err)
{
	return err_set(err, ERR_DAMAGED, "index %s: row %" PRId64 " of table %s is not what was written: `quire check` says "
		       "what it touches, `quire repair` mends it", x->path, row, table);
}

int sql_execute(struct index *x, const char *statements, struct err *err)
{
	return sqlite3_exec(x->db, statements, NULL, NULL, NULL) ? sql_error(x, err) : 0;
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

int sql_next(struct index *x, enum query q, struct err *err)
{
	int rc = sqlite3_step(x->statements[q]);

	if (rc == SQLITE_ROW)
		return 1;
	if (rc != SQLITE_DONE) {
		sql_error(x, err);
		sqlite3_reset(x->statements[q]);
		return -1;
	}
	sqlite3_reset(x->statements[q]);
	return 0;
}

int sql_ask(struct index *x, enum query q, struct err *err, const char *types, ...)
{
	va_list args;
	int rc;

	if (!x->statements[q] &&
	    sqlite3_prepare_v3(x->db, queries[q], -1, SQLITE_PREPARE_PERSISTENT, &x->statements[q], NULL))
		return sql_error(x, err);
	sqlite3_reset(x->statements[q]);
	va_start(args, types);
	rc = bind(x->statements[q], types, args);
	va_end(args);
	return rc ? sql_error(x, err) : sql_next(x, q, err);
}

void sql_done(struct index *x, enum query q)
{
	sqlite3_reset(x->statements[q]);
}

int sql_changed(struct index *x, int rc, const char *table, int64_t row, struct err *err)
{
	if (rc < 0)
		return -1;
	return sqlite3_changes(x->db) == 1 ? 0 : sql_wrong_row(x, table, row, err);
}

int sql_whole(struct index *x, enum query q, int column, const char *table, int64_t row, struct err *err)
{
	if (sql_integer(x, q, column))
		return 0;
	sql_done(x, q);
	return sql_wrong_row(x, table, row, err);
}

int64_t sql_integer(struct index *x, enum query q, int column)
{
	return sqlite3_column_int64(x->statements[q], column);
}

bool sql_is_text(struct index *x, enum query q, int column, const char *text)
{
	const char *found = (const char *)sqlite3_column_text(x->statements[q], column);

	return found && !strcmp(found, text);
}

int sql_blob(struct index *x, enum query q, int column, void *out, size_t bytes, struct err *err)
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

char *sql_string(struct arena *a, struct index *x, enum query q, int column)
{
	const char *p = sqlite3_column_blob(x->statements[q], column);

	return arena_strndup(a, p ? p : "", (size_t)sqlite3_column_bytes(x->statements[q], column));
}

/* row_sum(table, columns...): see sql.h. A column is its type, its length and its bytes, so that none can pass into its
 * neighbour. */
static void row_sum(sqlite3_context *context, int n, sqlite3_value **values)
{
	XXH3_state_t *state = XXH3_createState();

	if (!state) {
		sqlite3_result_error_nomem(context);
		return;
	}
	XXH3_64bits_reset(state);
	for (int i = 0; i < n; i++) {
		int64_t integer = 0;
		struct {
			int32_t type, bytes;
		} head = {sqlite3_value_type(values[i]), 0};
		const void *p = &integer;

		if (head.type == SQLITE_INTEGER) {
			integer = sqlite3_value_int64(values[i]);
			head.bytes = (int32_t)sizeof integer;
		} else if (head.type != SQLITE_NULL) { /* text is UTF-8 here, the encoding of the database */
			p = sqlite3_value_blob(values[i]);
			head.bytes = sqlite3_value_bytes(values[i]);
		}
		XXH3_64bits_update(state, &head, sizeof head);
		if (head.bytes)
			XXH3_64bits_update(state, p, (size_t)head.bytes);
	}
	sqlite3_result_int64(context, (int64_t)XXH3_64bits_digest(state));
	XXH3_freeState(state);
}

/* span_key(identity, parent's key or NULL, ids): the key, NULL where these cannot be a span's. */
static void make_key(sqlite3_context *context, int n, sqlite3_value **values)
{
	int bytes[3] = {sqlite3_value_bytes(values[0]), sqlite3_value_bytes(values[1]), sqlite3_value_bytes(values[2])};
	bool first = sqlite3_value_type(values[1]) == SQLITE_NULL;
	struct span_key parent, key;
	int32_t ids[CACHE_SPAN_TOKENS];

	(void)n;
	if (bytes[0] != 32 || (!first && bytes[1] != CACHE_KEY_BYTES) || !bytes[2] || bytes[2] % (int)sizeof *ids ||
	    bytes[2] > (int)sizeof ids) {
		sqlite3_result_null(context);
		return;
	}
	if (!first)
		memcpy(parent.bytes, sqlite3_value_blob(values[1]), sizeof parent.bytes);
	memcpy(ids, sqlite3_value_blob(values[2]), (size_t)bytes[2]);
	span_key_make(&key, sqlite3_value_blob(values[0]), first ? NULL : &parent, ids, bytes[2] / (int32_t)sizeof *ids);
	sqlite3_result_blob(context, key.bytes, sizeof key.bytes, SQLITE_TRANSIENT);
}

static int pragma(struct index *x, const char *statement, int64_t *out, struct err *err)
{
	sqlite3_stmt *st = NULL;

	if (sqlite3_prepare_v2(x->db, statement, -1, &st, NULL) || sqlite3_step(st) != SQLITE_ROW) {
		sql_error(x, err);
		sqlite3_finalize(st);
		return -1;
	}
	*out = sqlite3_column_int64(st, 0);
	sqlite3_finalize(st);
	return 0;
}

/* Make the tables of a new store, bring those of an older format up to date; refuse one that is not ours, or of a format
 * we do not know. */
static int index_settle(struct index *x, bool writer, struct err *err)
{
	int64_t application, format, n_tables;

	if (pragma(x, "PRAGMA application_id", &application, err) || pragma(x, "PRAGMA user_version", &format, err) ||
	    pragma(x, "SELECT count(*) FROM sqlite_schema", &n_tables, err))
		return -1;
	if (writer && !application && !format && !n_tables)
		return sql_execute(x, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN IMMEDIATE;", err) ||
		       sql_execute(x, schema, err) ||
		       sql_execute(x, "PRAGMA application_id = 0x71756972; PRAGMA user_version = 5; COMMIT;", err) ? -1 : 0;
	if (application != APPLICATION)
		return err_set(err, ERR_FORMAT, "%s is not the index of a quire store", x->path);
	if (format > INDEX_FORMAT)
		return err_set(err, ERR_MISMATCH, "%s has format %" PRId64 ", this quire knows formats up to %d: use the "
			       "quire that made it, or another store", x->path, format, INDEX_FORMAT);
	if (format < 1 || (format < INDEX_FORMAT && !writer))
		return err_set(err, ERR_MISMATCH, "%s has format %" PRId64 ", this quire reads format %d: start quired, which "
			       "brings it up to date", x->path, format, INDEX_FORMAT);
	/* A table that is made anew must not take along what names it; the pragma does nothing inside a transaction. */
	if (format < INDEX_FORMAT && sql_execute(x, "PRAGMA foreign_keys = OFF", err))
		return -1;
	for (; format < INDEX_FORMAT; format++)
		if (sql_execute(x, "BEGIN IMMEDIATE", err) || sql_execute(x, upgrades[format], err) || sql_execute(x, "COMMIT", err))
			return -1;
	return sql_execute(x, "PRAGMA foreign_keys = ON; PRAGMA journal_mode = WAL;", err);
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
		sql_error(x, err);
		index_close(x);
		return -1;
	}
	sqlite3_extended_result_codes(x->db, 1);
	sqlite3_busy_timeout(x->db, 5000);
	if (sqlite3_create_function_v2(x->db, "row_sum", -1, SQLITE_UTF8 | SQLITE_DETERMINISTIC | SQLITE_DIRECTONLY, NULL,
				       row_sum, NULL, NULL, NULL) ||
	    sqlite3_create_function_v2(x->db, "span_key", 3, SQLITE_UTF8 | SQLITE_DETERMINISTIC | SQLITE_DIRECTONLY, NULL,
				       make_key, NULL, NULL, NULL)) {
		sql_error(x, err);
		index_close(x);
		return -1;
	}
	if (sql_execute(x, "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY;"
		       "PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;", err) ||
	    index_settle(x, writer, err) || (!writer && sql_execute(x, "PRAGMA query_only = ON;", err))) {
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
	free(x->ended);
	free(x->path);
	free(x);
}

int index_begin(struct index *x, struct err *err)
{
	x->n_freed = x->n_ended = 0;
	return sql_execute(x, "BEGIN IMMEDIATE", err);
}

int index_begin_reading(struct index *x, struct err *err)
{
	return sql_execute(x, "BEGIN", err);
}

int index_commit(struct index *x, bool *unsure, struct err *err)
{
	*unsure = false;
	if (!sql_execute(x, "COMMIT", err))
		return 0;
	*unsure = (sqlite3_errcode(x->db) & 0xff) == SQLITE_IOERR;
	index_rollback(x);
	return -1;
}

void index_rollback(struct index *x)
{
	x->n_freed = x->n_ended = 0;
	if (!sqlite3_get_autocommit(x->db))
		sqlite3_exec(x->db, "ROLLBACK", NULL, NULL, NULL);
}

struct extent sql_extent(struct index *x, enum query q, int column)
{
	return (struct extent){(int32_t)sql_integer(x, q, column), sql_integer(x, q, column + 1),
			       sql_integer(x, q, column + 2)};
}
