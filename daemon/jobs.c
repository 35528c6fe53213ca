#include "daemon/jobs.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config/log.h"
#include "config/mem.h"

enum { FORMAT = 2 };

struct jobs {
	sqlite3 *db;
	char *path;
};

/* request holds the body that api_ingest_format wrote: a new option needs no new column. Progress is a column a
 * number, in the order of the struct. */
static const char schema[] =
	"create table job ("
	"  id integer primary key autoincrement,"
	"  corpus text not null,"
	"  request text not null,"
	"  state text not null,"
	"  attempts integer not null default 0,"
	"  created_s integer not null,"
	"  started_s integer not null default 0,"
	"  finished_s integer not null default 0,"
	"  error_code text, error text,"
	"  phase integer not null default 0,"
	"  files integer not null default 0, skipped integer not null default 0, read_bytes integer not null default 0,"
	"  tokens integer not null default 0, reused_tokens integer not null default 0,"
	"  done_tokens integer not null default 0,"
	"  report text"
	") strict;"
	"create index job_by_state on job (state, id);"
	"pragma user_version = 2;";

/* Format 1 had no reports. */
static const char upgrade_1[] = "alter table job add column report text; pragma user_version = 2;";

#define COLUMNS                                                                                              \
	"id, corpus, request, state, attempts, created_s, started_s, finished_s, error_code, error, phase, files, "  \
	"skipped, read_bytes, tokens, reused_tokens, done_tokens, report"

static int failed(struct jobs *j, struct err *err)
{
	return err_set(err, sqlite3_errcode(j->db) == SQLITE_CORRUPT ? ERR_DAMAGED : ERR_IO, "%s: %s", j->path,
		       sqlite3_errmsg(j->db));
}

static sqlite3_stmt *prepare(struct jobs *j, const char *sql, struct err *err)
{
	sqlite3_stmt *s;

	if (sqlite3_prepare_v2(j->db, sql, -1, &s, NULL) == SQLITE_OK)
		return s;
	failed(j, err);
	return NULL;
}

/* Run a statement that gives no rows, and finalize it. */
static int finish(struct jobs *j, sqlite3_stmt *s, struct err *err)
{
	int result = 0;

	if (sqlite3_step(s) != SQLITE_DONE)
		result = failed(j, err);
	sqlite3_finalize(s);
	return result;
}

static int run(struct jobs *j, const char *sql, struct err *err)
{
	return sqlite3_exec(j->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : failed(j, err);
}

/* The value of a one-number query. */
static int query_number(struct jobs *j, const char *sql, int64_t *value, struct err *err)
{
	sqlite3_stmt *s = prepare(j, sql, err);
	int result = 0;

	if (!s)
		return -1;
	if (sqlite3_step(s) == SQLITE_ROW)
		*value = sqlite3_column_int64(s, 0);
	else
		result = failed(j, err);
	sqlite3_finalize(s);
	return result;
}

/* What was running when the last process died. */
static int recover(struct jobs *j, struct err *err)
{
	char *sql = sqlite3_mprintf(
		"update job set state = 'failed', finished_s = unixepoch(), error_code = 'failed',"
		"  error = 'the daemon ended ' || attempts || ' times while it ran this job; its log says why'"
		"  where state = 'running' and attempts >= %d;"
		"update job set state = 'queued' where state = 'running'",
		JOBS_MAX_ATTEMPTS);
	int64_t n = 0;
	int result = query_number(j, "select count(*) from job where state = 'running'", &n, err) || run(j, sql, err);

	sqlite3_free(sql);
	if (!result && n)
		log_info("%lld jobs were running when the daemon last ended: they go on", (long long)n);
	return result ? -1 : 0;
}

int jobs_open(struct jobs **out, const char *dir, struct err *err)
{
	struct jobs *j = xcalloc(1, sizeof *j);
	int64_t version = 0;

	j->path = xasprintf("%s/jobs.sqlite", dir);
	if (sqlite3_open_v2(j->path, &j->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) != SQLITE_OK ||
	    sqlite3_busy_timeout(j->db, 2000) != SQLITE_OK) {
		failed(j, err);
		goto fail;
	}
	if (run(j, "pragma journal_mode = wal; pragma synchronous = full; pragma foreign_keys = on", err) ||
	    query_number(j, "pragma user_version", &version, err))
		goto fail;
	if (version > FORMAT) {
		err_set(err, ERR_FORMAT, "%s has format %lld, made by a newer quire; this one knows %d", j->path,
			(long long)version, FORMAT);
		goto fail;
	}
	if (version < FORMAT && (run(j, "begin immediate", err) || run(j, version ? upgrade_1 : schema, err) ||
				 run(j, "commit", err)))
		goto fail;
	if (recover(j, err))
		goto fail;
	*out = j;
	return 0;
fail:
	jobs_close(j);
	return err_wrap(err, "open the jobs");
}

void jobs_close(struct jobs *j)
{
	if (!j)
		return;
	sqlite3_close(j->db);
	free(j->path);
	free(j);
}

/* The row s stands on. Its request was checked when it was accepted; one that does not parse was changed by hand. */
static int read_job(struct jobs *j, sqlite3_stmt *s, struct api_job *job, struct err *err)
{
	const char *corpus = (const char *)sqlite3_column_text(s, 1);
	const char *request = (const char *)sqlite3_column_text(s, 2);
	const char *state = (const char *)sqlite3_column_text(s, 3);
	const char *code = (const char *)sqlite3_column_text(s, 8);
	struct ingest_progress *p = &job->progress;
	int phase = sqlite3_column_int(s, 10);

	*job = (struct api_job){.id = sqlite3_column_int64(s, 0)};
	if (!corpus || !request || !state || job_state_from_name(state) < 0 || phase < 0 || phase > INGEST_DONE ||
	    api_ingest_parse(&job->request, corpus, request, strlen(request), err))
		return err_set(err, ERR_DAMAGED, "%s: job j-%lld is not what was written", j->path, (long long)job->id);
	job->state = (enum job_state)job_state_from_name(state);
	job->attempts = sqlite3_column_int(s, 4);
	job->created_s = sqlite3_column_int64(s, 5);
	job->started_s = sqlite3_column_int64(s, 6);
	job->finished_s = sqlite3_column_int64(s, 7);
	if (code)
		err_set(&job->error, err_code_from_name(code), "%s", (const char *)sqlite3_column_text(s, 9));
	p->phase = (enum ingest_phase)phase;
	p->n_files = sqlite3_column_int64(s, 11);
	p->n_skipped = sqlite3_column_int64(s, 12);
	p->read_bytes = sqlite3_column_int64(s, 13);
	p->n_tokens = sqlite3_column_int64(s, 14);
	p->reused_tokens = sqlite3_column_int64(s, 15);
	p->done_tokens = sqlite3_column_int64(s, 16);
	if (sqlite3_column_text(s, 17))
		job->report = xstrdup((const char *)sqlite3_column_text(s, 17));
	return 0;
}

/* The one row of a query, if it has one: 1, 0 or -1. Goes on to the end, since that is where an update commits. */
static int only_job(struct jobs *j, sqlite3_stmt *s, struct api_job *job, struct err *err)
{
	int step = sqlite3_step(s), result = 0;

	if (step == SQLITE_ROW) {
		result = read_job(j, s, job, err) ? -1 : 1;
		step = sqlite3_step(s);
	}
	if (step != SQLITE_DONE) {
		if (result == 1)
			api_job_clear(job);
		result = failed(j, err);
	}
	sqlite3_finalize(s);
	return result;
}

/* The job that waits or runs for a corpus. */
static int unfinished_job(struct jobs *j, const char *corpus, struct api_job *job, struct err *err)
{
	sqlite3_stmt *s = prepare(j, "select " COLUMNS " from job where state in ('queued', 'running') and corpus = ?",
				  err);

	if (!s)
		return -1;
	sqlite3_bind_text(s, 1, corpus, -1, SQLITE_STATIC);
	return only_job(j, s, job, err);
}

int jobs_add(struct jobs *j, const struct api_ingest *request, int64_t max_queued, int64_t *id, struct err *err)
{
	struct api_job other;
	sqlite3_stmt *s;
	int64_t n_queued;
	char *body;
	int found = unfinished_job(j, request->corpus, &other, err), result;

	if (found < 0)
		return -1;
	if (found) {
		bool same = api_ingest_equal(&other.request, request);

		*id = other.id;
		result = same ? 0
			      : err_set(err, ERR_BUSY, "job j-%lld is at work on corpus %s from %s: wait for it, or "
				"`quire cancel j-%lld`", (long long)other.id, other.request.corpus, other.request.source,
				(long long)other.id);
		api_job_clear(&other);
		return result;
	}
	if (jobs_count(j, JOB_QUEUED, &n_queued, err))
		return -1;
	if (n_queued >= max_queued)
		return err_set(err, ERR_BUSY, "%lld jobs wait already: try again when some are done",
			       (long long)n_queued);
	s = prepare(j, "insert into job (corpus, request, state, created_s) values (?, ?, 'queued', ?)", err);
	if (!s)
		return -1;
	body = api_ingest_format(request);
	sqlite3_bind_text(s, 1, request->corpus, -1, SQLITE_STATIC);
	sqlite3_bind_text(s, 2, body, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 3, time(NULL));
	result = finish(j, s, err);
	free(body);
	*id = sqlite3_last_insert_rowid(j->db);
	return result;
}

/* Jobs that run, or shall. */
struct chosen {
	struct api_job *jobs;   /* [n] */
	size_t n, n_before;     /* n_before of them run already */
};

static bool is_alone(const struct api_job *job)
{
	return job->attempts + (job->state == JOB_QUEUED) >= JOBS_MAX_ATTEMPTS;
}

/* Its order is one that an ingest of that corpus may change. */
static bool follows(const struct api_job *job, const struct api_job *other)
{
	struct api_snapshot s;

	return *job->request.order_from && !other->request.dry_run &&
	       !api_snapshot_parse(&s, job->request.order_from, NULL) && !strcmp(s.corpus, other->request.corpus);
}

/* *wait: nor may any job behind it. */
static bool may_begin(const struct chosen *r, const struct api_job *job, bool *wait)
{
	*wait = r->n && (is_alone(job) || is_alone(&r->jobs[0]));
	if (*wait)
		return false;
	for (size_t i = 0; i < r->n; i++)
		if (follows(job, &r->jobs[i]) ||
		    (i < r->n_before && !job->request.dry_run && !r->jobs[i].request.dry_run))
			return false;
	return true;
}

/* Those in a state, oldest first; of those that wait the ones that may begin. */
static int choose(struct jobs *j, enum job_state state, size_t most, struct chosen *r, struct err *err)
{
	sqlite3_stmt *s = prepare(j, "select " COLUMNS " from job where state = ? order by id", err);
	bool wait = false;
	int step = SQLITE_DONE, result = 0;

	if (!s)
		return -1;
	sqlite3_bind_text(s, 1, job_state_name(state), -1, SQLITE_STATIC);
	while (!result && !wait && r->n < most && (step = sqlite3_step(s)) == SQLITE_ROW) {
		struct api_job job;

		if (read_job(j, s, &job, err)) {
			result = -1;
		} else if (state == JOB_RUNNING || may_begin(r, &job, &wait)) {
			r->jobs = xrealloc(r->jobs, r->n + 1, sizeof *r->jobs);
			r->jobs[r->n++] = job;
		} else {
			api_job_clear(&job);
		}
	}
	if (step != SQLITE_ROW && step != SQLITE_DONE)
		result = failed(j, err);
	sqlite3_finalize(s);
	return result;
}

static int begin_one(struct jobs *j, struct api_job *job, int64_t now_s, struct err *err)
{
	sqlite3_stmt *s = prepare(j, "update job set state = 'running', attempts = attempts + 1, started_s = ?2 where id = ?1",
				  err);

	if (!s)
		return -1;
	sqlite3_bind_int64(s, 1, job->id);
	sqlite3_bind_int64(s, 2, now_s);
	job->state = JOB_RUNNING;
	job->attempts++;
	job->started_s = now_s;
	return finish(j, s, err);
}

/* End what `begin immediate` began. */
static int end_transaction(struct jobs *j, int rc, struct err *err)
{
	if (!rc)
		rc = run(j, "commit", err);
	if (rc && !sqlite3_get_autocommit(j->db))
		run(j, "rollback", NULL);
	return rc;
}

int jobs_begin(struct jobs *j, size_t max_running, struct api_job **out, size_t *n, struct err *err)
{
	struct chosen r = {0};
	int64_t now_s = time(NULL);
	int rc = choose(j, JOB_RUNNING, max_running, &r, err);

	*n = 0;
	r.n_before = r.n;
	if (!rc)
		rc = choose(j, JOB_QUEUED, max_running, &r, err);
	if (!rc && r.n > r.n_before) {
		rc = run(j, "begin immediate", err);
		for (size_t i = r.n_before; !rc && i < r.n; i++)
			rc = begin_one(j, &r.jobs[i], now_s, err);
		rc = end_transaction(j, rc, err);
	}
	for (size_t i = 0; i < (rc ? r.n : r.n_before); i++)
		api_job_clear(&r.jobs[i]);
	if (rc) {
		free(r.jobs);
		return -1;
	}
	*n = r.n - r.n_before;
	if (*n)
		memmove(r.jobs, r.jobs + r.n_before, *n * sizeof *r.jobs);
	*out = r.jobs;
	return 0;
}

int jobs_put_back(struct jobs *j, int64_t id, struct err *err)
{
	sqlite3_stmt *s = prepare(j,
				  "update job set state = 'queued', attempts = attempts - 1"
				  " where id = ? and state = 'running'",
				  err);

	if (!s)
		return -1;
	sqlite3_bind_int64(s, 1, id);
	return finish(j, s, err);
}

static void bind_progress(sqlite3_stmt *s, int first, const struct ingest_progress *p)
{
	const int64_t values[] = {(int64_t)p->phase, p->n_files,       p->n_skipped,  p->read_bytes,
				  p->n_tokens,       p->reused_tokens, p->done_tokens};

	for (int i = 0; i < 7; i++)
		sqlite3_bind_int64(s, first + i, values[i]);
}

static int save_progress(struct jobs *j, int64_t id, const struct ingest_progress *progress, struct err *err)
{
	sqlite3_stmt *s = prepare(j,
				  "update job set phase = ?2, files = ?3, skipped = ?4, read_bytes = ?5, tokens = ?6,"
				  " reused_tokens = ?7, done_tokens = ?8 where id = ?1",
				  err);

	if (!s)
		return -1;
	sqlite3_bind_int64(s, 1, id);
	bind_progress(s, 2, progress);
	return finish(j, s, err);
}

int jobs_progress(struct jobs *j, const struct api_job *jobs, size_t n, struct err *err)
{
	int rc = run(j, "begin immediate", err);

	for (size_t i = 0; !rc && i < n; i++)
		rc = save_progress(j, jobs[i].id, &jobs[i].progress, err);
	return end_transaction(j, rc, err);
}

int jobs_report(struct jobs *j, int64_t id, const char *report, struct err *err)
{
	sqlite3_stmt *s = prepare(j, "update job set report = ?2 where id = ?1", err);

	if (!s)
		return -1;
	sqlite3_bind_int64(s, 1, id);
	sqlite3_bind_text(s, 2, report, -1, SQLITE_STATIC);
	return finish(j, s, err);
}

int jobs_speed(struct jobs *j, double *tokens_per_s, struct err *err)
{
	/* A second is as fine as the times are. */
	sqlite3_stmt *s = prepare(j, "select sum(tokens - reused_tokens) * 1.0 / max(1, max(finished_s) - started_s) from job"
				     " where state = 'done' and done_tokens > reused_tokens"
				     " group by started_s order by max(id) desc limit 1", err);
	int step, result = 0;

	if (!s)
		return -1;
	*tokens_per_s = 0;
	step = sqlite3_step(s);
	if (step == SQLITE_ROW)
		*tokens_per_s = sqlite3_column_double(s, 0);
	else if (step != SQLITE_DONE)
		result = failed(j, err);
	sqlite3_finalize(s);
	return result;
}

int jobs_end(struct jobs *j, int64_t id, const struct ingest_progress *progress, const struct err *error,
	     struct err *err)
{
	enum job_state state = !error ? JOB_DONE : error->code == ERR_CANCELLED ? JOB_CANCELLED : JOB_FAILED;
	sqlite3_stmt *s;
	char *prune;
	int result;

	if (progress && save_progress(j, id, progress, err))
		return -1;
	s = prepare(j, "update job set state = ?2, finished_s = unixepoch(), error_code = ?3, error = ?4 where id = ?1",
		    err);
	if (!s)
		return -1;
	sqlite3_bind_int64(s, 1, id);
	sqlite3_bind_text(s, 2, job_state_name(state), -1, SQLITE_STATIC);
	if (error) {
		sqlite3_bind_text(s, 3, err_code_name(error->code), -1, SQLITE_STATIC);
		sqlite3_bind_text(s, 4, error->text, -1, SQLITE_STATIC);
	}
	if (finish(j, s, err))
		return -1;
	prune = sqlite3_mprintf("delete from job where state in ('done', 'failed', 'cancelled') and id <= %lld - %d",
				(long long)id, JOBS_KEPT);
	result = run(j, prune, err);
	sqlite3_free(prune);
	return result;
}

int jobs_get(struct jobs *j, int64_t id, struct api_job *job, struct err *err)
{
	sqlite3_stmt *s = prepare(j, "select " COLUMNS " from job where id = ?", err);
	int found;

	if (!s)
		return -1;
	sqlite3_bind_int64(s, 1, id);
	found = only_job(j, s, job, err);
	return found == 1 ? 0 : found ? -1 : err_set(err, ERR_NOT_FOUND, "there is no job j-%lld", (long long)id);
}

int jobs_list(struct jobs *j, size_t most, struct api_job **out, size_t *n, struct err *err)
{
	sqlite3_stmt *s = prepare(j, "select " COLUMNS " from job order by id desc limit ?", err);
	struct api_job *list = NULL;
	size_t count = 0;
	int step;

	if (!s)
		return -1;
	sqlite3_bind_int64(s, 1, (sqlite3_int64)most);
	while ((step = sqlite3_step(s)) == SQLITE_ROW) {
		list = xrealloc(list, count + 1, sizeof *list);
		if (read_job(j, s, &list[count], err))
			break;
		count++;
	}
	if (step == SQLITE_DONE) {
		sqlite3_finalize(s);
		*out = list;
		*n = count;
		return 0;
	}
	if (step != SQLITE_ROW)
		failed(j, err);
	sqlite3_finalize(s);
	while (count)
		api_job_clear(&list[--count]);
	free(list);
	return -1;
}

int jobs_count(struct jobs *j, enum job_state state, int64_t *n, struct err *err)
{
	sqlite3_stmt *s = prepare(j, "select count(*) from job where state = ?", err);
	int result = 0;

	if (!s)
		return -1;
	sqlite3_bind_text(s, 1, job_state_name(state), -1, SQLITE_STATIC);
	if (sqlite3_step(s) == SQLITE_ROW)
		*n = sqlite3_column_int64(s, 0);
	else
		result = failed(j, err);
	sqlite3_finalize(s);
	return result;
}
