#include <stdlib.h>
#include <string.h>

#include "cache/sql.h"

static uint8_t *bytes_of(struct index *x, int column, size_t *n)
{
	uint8_t *p;

	*n = (size_t)sqlite3_column_bytes(x->statements[FIND_JOB], column);
	p = xmalloc(*n, 1);
	if (*n)
		memcpy(p, sqlite3_column_blob(x->statements[FIND_JOB], column), *n);
	return p;
}

static int each_extent(struct index *x, int64_t run,
		       void (*fn)(void *ctx, enum extent_kind kind, int32_t part, struct extent e), void *ctx,
		       struct err *err)
{
	int rc = sql_ask(x, RUN_EXTENTS, err, "i", run);

	for (; rc > 0; rc = sql_next(x, RUN_EXTENTS, err)) {
		if (sql_whole(x, RUN_EXTENTS, 3, "extent", run, err))
			return -1;
		fn(ctx, (enum extent_kind)sql_integer(x, RUN_EXTENTS, 4), (int32_t)sql_integer(x, RUN_EXTENTS, 5),
		   sql_extent(x, RUN_EXTENTS, 0));
	}
	return rc;
}

int index_find_job(struct index *x, const char *corpus, struct index_job *out,
		   void (*fn)(void *ctx, enum extent_kind kind, int32_t part, struct extent e), void *ctx, struct err *err)
{
	int rc = sql_ask(x, FIND_JOB, err, "t", corpus);

	*out = (struct index_job){0};
	if (rc <= 0)
		return rc;
	out->id = sql_integer(x, FIND_JOB, 0);
	if (sql_whole(x, FIND_JOB, 13, "job", out->id, err))
		return -1;
	if (!sql_is_text(x, FIND_JOB, 10, corpus)) {
		sql_done(x, FIND_JOB);
		return sql_wrong_row(x, "job", out->id, err);
	}
	out->run = sql_integer(x, FIND_JOB, 1);
	out->n_tokens = sql_integer(x, FIND_JOB, 3);
	out->next_layer = (int32_t)sql_integer(x, FIND_JOB, 6);
	out->state = (struct scratch_name){out->id, (int32_t)sql_integer(x, FIND_JOB, 7)};
	out->state_bytes = sql_integer(x, FIND_JOB, 8);
	out->state_sum = (uint64_t)sql_integer(x, FIND_JOB, 9);
	out->n_places = (int32_t)sql_integer(x, FIND_JOB, 12);
	rc = sql_blob(x, FIND_JOB, 2, out->tip.bytes, sizeof out->tip.bytes, err) ||
	     sql_blob(x, FIND_JOB, 11, out->identity, sizeof out->identity, err) ? -1 : 0;
	if (!rc) {
		out->places = bytes_of(x, 4, &out->n_spans);
		out->whole = bytes_of(x, 5, &out->n_parts);
	}
	sql_done(x, FIND_JOB);
	if (rc || each_extent(x, out->run, fn, ctx, err)) {
		free(out->places);
		free(out->whole);
		return -1;
	}
	return 1;
}

int index_has_job(struct index *x, int64_t id, struct err *err)
{
	int rc = sql_ask(x, HAS_JOB, err, "i", id);

	sql_done(x, HAS_JOB);
	return rc;
}

int index_next_job(struct index *x, int64_t *id, struct err *err)
{
	int rc = sql_ask(x, NEXT_JOB, err, "");

	if (rc <= 0)
		return -1;
	*id = sql_integer(x, NEXT_JOB, 0);
	sql_done(x, NEXT_JOB);
	return 0;
}

int index_add_job(struct index *x, const char *corpus, const struct index_job *j, struct err *err)
{
	return sql_ask(x, ADD_JOB, err, "itibibbiiii", j->id, corpus, j->run, j->tip.bytes, sizeof j->tip.bytes, j->n_tokens,
		       j->places, j->n_spans, j->whole, j->n_parts, (int64_t)j->next_layer, (int64_t)j->state.file,
		       j->state_bytes, (int64_t)j->state_sum) < 0 ? -1 : 0;
}

int index_change_job(struct index *x, const struct index_job *j, struct err *err)
{
	int rc = sql_ask(x, CHANGE_JOB, err, "biiiii", j->whole, j->n_parts, (int64_t)j->next_layer, (int64_t)j->state.file,
			 j->state_bytes, (int64_t)j->state_sum, j->id);

	return sql_changed(x, rc, "job", j->id, err);
}

/* The job of a corpus, or that of a run, and runs that nobody names then: a wrong row does not say which was its own.
 * How many jobs went, or -1. */
static int drop_jobs(struct index *x, const char *corpus, int64_t run, struct err *err)
{
	int rc, n = 0;

	for (rc = sql_ask(x, DROP_JOB, err, "ti", corpus, run); rc > 0; rc = sql_next(x, DROP_JOB, err), n++) {
		if (x->n_ended == x->ended_room)
			x->ended = xrealloc(x->ended, x->ended_room = x->ended_room ? 2 * x->ended_room : 16, sizeof *x->ended);
		x->ended[x->n_ended++] = sql_integer(x, DROP_JOB, 0);
	}
	if (rc < 0 || !n)
		return rc;
	while ((rc = sql_ask(x, IDLE_RUNS, err, "")) > 0) {
		int64_t idle = sql_integer(x, IDLE_RUNS, 0);

		sql_done(x, IDLE_RUNS);
		if (index_drop_run(x, idle, err))
			return -1;
	}
	return rc < 0 ? -1 : n;
}

int index_drop_job(struct index *x, const char *corpus, struct err *err)
{
	return drop_jobs(x, corpus, 0, err) < 0 ? -1 : 0;
}

int index_drop_job_of(struct index *x, int64_t run, struct err *err)
{
	return drop_jobs(x, NULL, run, err);
}

int index_each_job(struct index *x, void (*fn)(void *ctx, const char *corpus, const struct index_job *j), void *ctx,
		   struct err *err)
{
	int rc = sql_ask(x, EACH_JOB, err, "");

	for (; rc > 0; rc = sql_next(x, EACH_JOB, err)) {
		const char *corpus = (const char *)sqlite3_column_text(x->statements[EACH_JOB], 1);
		const struct index_job j = {
			.id = sql_integer(x, EACH_JOB, 0), .run = sql_integer(x, EACH_JOB, 2),
			.state = {sql_integer(x, EACH_JOB, 0), (int32_t)sql_integer(x, EACH_JOB, 3)},
			.state_bytes = sql_integer(x, EACH_JOB, 4), .state_sum = (uint64_t)sql_integer(x, EACH_JOB, 5),
		};

		if (sql_integer(x, EACH_JOB, 6))
			fn(ctx, corpus, &j);
	}
	return rc;
}

const int64_t *index_ended(const struct index *x, size_t *n)
{
	*n = x->n_ended;
	return x->ended;
}
