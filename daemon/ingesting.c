#include "daemon/ingesting.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "cache/history.h"
#include "cache/run.h"
#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "daemon/warming.h"
#include "daemon/worker_inside.h"
#include "ingest/batch.h"

/* One that was taken and has not ended. */
struct job {
	struct job *next;
	struct message *m;      /* MESSAGE_INGEST */
	struct ingest *in;      /* in the batch; NULL: it is being prepared */
	int64_t takes_bytes;    /* of the store, that nobody has reserved for it yet, when it began */
};

struct ingesting {
	struct worker *w;
	struct queue *to_ingest;
	pthread_t thread;
	struct job *jobs;       /* in the order in which they came */
	struct batch *batch;
	int64_t told_ms;
};

/* The ingest thread. */

struct report {
	struct worker *w;
	int64_t id, told_ms;
};

static void report_progress(void *ctx, const struct ingest_progress *p)
{
	struct report *r = ctx;
	int64_t now = clock_now_ms();
	struct message *m;

	if (now - r->told_ms < WORKER_PROGRESS_MS)
		return;
	r->told_ms = now;
	m = message_new(MESSAGE_PROGRESS, r->id);
	m->progress = *p;
	worker_tell(r->w, m);
}

static char **join_globs(char *const *a, char *const *b)
{
	size_t n = 0, n_a = 0, n_b = 0;
	char **all;

	while (a && a[n_a])
		n_a++;
	while (b && b[n_b])
		n_b++;
	all = xcalloc(n_a + n_b + 1, sizeof *all);
	for (size_t i = 0; i < n_a; i++)
		all[n++] = a[i];
	for (size_t i = 0; i < n_b; i++)
		all[n++] = b[i];
	return all;
}

static void prepare(struct worker *w, struct message *m)
{
	char **exclude = join_globs(w->config->ingest.exclude, m->ingest.request.exclude);
	char **include = join_globs(w->config->ingest.include, m->ingest.request.include);
	struct ingest_options opt = {
		.corpus = m->ingest.request.corpus,
		.source = m->ingest.request.source,
		.ref = m->ingest.request.ref,
		.max_file_bytes = w->config->ingest.max_file_bytes,
		.max_tokens = w->opened.context_tokens,
		.scratch_bytes = (size_t)w->config->ingest.scratch_bytes,
		.exclude = (const char *const *)exclude,
		.include = (const char *const *)include,
		.previous = m->ingest.previous,
		.full = m->ingest.request.full,
		.order_from = m->ingest.order_from,
	};
	struct report r = {.w = w, .id = m->id};

	if (ingest_prepare(&m->ingest.in, &opt, w->opened.tokenizer, m->cancel, report_progress, &r, &m->err))
		m->ingest.in = NULL;
	free(exclude);
	free(include);
}

static void *run_ingest_thread(void *ctx)
{
	struct ingesting *g = ctx;
	void *m;

	while (queue_pop(g->to_ingest, &m) == QUEUE_OK) {
		prepare(g->w, m);
		((struct message *)m)->kind = MESSAGE_PREPARED;
		/* Refused when the daemon stops. */
		if (queue_push(g->w->in, m) != QUEUE_OK)
			message_free(m);
	}
	return NULL;
}

/* The engine thread. */

static struct job *find_job(const struct ingesting *g, int64_t id)
{
	struct job *j = g->jobs;

	while (j && j->m->id != id)
		j = j->next;
	return j;
}

static struct job *job_of(const struct ingesting *g, const struct ingest *in)
{
	struct job *j = g->jobs;

	while (j->in != in)
		j = j->next;
	return j;
}

static void tell_progress(struct ingesting *g, const struct job *j)
{
	struct message *m = message_new(MESSAGE_PROGRESS, j->m->id);

	ingest_progress(j->in, &m->progress);
	worker_tell(g->w, m);
}

/* err->code 0: it is done. */
static void end_job(struct ingesting *g, struct job *j, const struct err *err)
{
	struct message *m = message_new(MESSAGE_INGESTED, j->m->id);
	struct job **link = &g->jobs;

	if (j->in)
		tell_progress(g, j);
	m->err = *err;
	if (err->code && worker_is_broken(g->w)) /* the loop knows, and stops: the job goes on where it was, in another daemon */
		m->err.code = ERR_CANCELLED;
	if (!err->code && j->in && g->w->held && !strcmp(g->w->held->corpus, j->m->ingest.request.corpus))
		worker_drop_held(g->w);
	if (!err->code && j->in && !g->w->held)
		warming_expect_last(g->w);
	while (*link != j)
		link = &(*link)->next;
	*link = j->next;
	if (j->in)
		batch_remove(g->batch, j->in);
	ingest_free(j->in);
	message_free(j->m);
	free(j);
	worker_tell_numbers(g->w);
	worker_tell(g->w, m);
}

static int begin_job(struct ingesting *g, const struct message *job, struct err *err)
{
	struct worker *w = g->w;
	const struct api_ingest *request = &job->ingest.request;
	struct cache_snapshot *previous = NULL, *order_from = NULL;
	struct api_snapshot follow;
	struct message *m;
	char *source;

	if (w->no_model.code) {
		*err = w->no_model;
		return -1;
	}
	if (cache_load_snapshot(w->cache, request->corpus, &previous, err) && err->code != ERR_NOT_FOUND)
		return -1;
	source = api_ingest_source(request);
	if (previous && strcmp(previous->source, source)) {
		err_set(err, ERR_MISMATCH, "corpus %s was read from %s, not from %s: give the new one another name with "
			"--as", request->corpus, previous->source, source);
		free(source);
		cache_free_snapshot(previous);
		return -1;
	}
	free(source);
	if (*request->order_from &&
	    (api_snapshot_parse(&follow, request->order_from, err) ||
	     cache_load_snapshot_of(w->cache, follow.corpus, follow.id, &order_from, err))) {
		cache_free_snapshot(previous);
		return err_wrap(err, "the order to follow");
	}
	m = message_new(MESSAGE_PREPARE, job->id);
	m->cancel = job->cancel;
	m->ingest.previous = previous;
	m->ingest.order_from = order_from;
	api_ingest_copy(&m->ingest.request, request);
	if (queue_push(g->to_ingest, m) != QUEUE_OK) {
		message_free(m);
		return err_set(err, ERR_CANCELLED, "the daemon stops");
	}
	return 0;
}

void ingesting_take(struct ingesting *g, struct message *m)
{
	struct job *j = xcalloc(1, sizeof *j), **end = &g->jobs;
	struct err err = {0};

	while (*end)
		end = &(*end)->next;
	*end = j;
	j->m = m;
	log_info("job j-%lld begins corpus=%s", (long long)m->id, m->ingest.request.corpus);
	if (begin_job(g, m, &err))
		end_job(g, j, &err);
}

static void tell_counts(struct worker *w, const struct job *j, const struct ingest *in, const struct ingest_counts *counts)
{
	struct message *m = message_new(MESSAGE_COUNTED, j->m->id);
	size_t n;
	struct ingest_skip_kind *kinds = ingest_skip_kinds(in, &n);

	m->report = api_report_format(counts, kinds, n);
	free(kinds);
	worker_tell(w, m);
}

/* What those that are computed with this one will take. A dry run is on its own. */
static int64_t taken_by_others(const struct ingesting *g, const struct job *j)
{
	int64_t bytes = 0;

	for (const struct job *other = g->jobs; other && !j->m->ingest.request.dry_run; other = other->next)
		bytes += other == j ? 0 : other->takes_bytes;
	return bytes;
}

/* Whether the store has room for what will be computed. What is free inside its files counts too. */
static int check_disk(struct ingesting *g, struct job *j, const struct ingest_counts *counts, struct err *err)
{
	const char *corpus = j->m->ingest.request.corpus;
	struct worker *w = g->w;
	int64_t others = taken_by_others(g, j);
	struct cache_stats stats;
	struct statvfs fs;
	int64_t room, reserved;
	struct err why;

	cache_stats(w->cache, &stats);
	if (w->config->store.max_bytes && counts->new_bytes > w->config->store.max_bytes)
		return err_set(err, ERR_TOO_LARGE, "%lld new tokens take %lld bytes of the store, which may have %lld "
			       "(store.max_bytes): raise it, or leave out something with --exclude",
			       (long long)counts->new_tokens, (long long)counts->new_bytes,
			       (long long)w->config->store.max_bytes);
	if (statvfs(w->config->store.path, &fs))
		return err_errno(err, errno, "look at %s", w->config->store.path);
	/* An interrupted ingest of the corpus has its space already. A wrong row of one is no reason to refuse this one. */
	if (cache_run_reserved(w->cache, corpus, &reserved, &why))
		log_warn("corpus %s: %s", corpus, why.text);
	room = stats.file_bytes - stats.used_bytes + reserved + (int64_t)(fs.f_bavail * fs.f_frsize) - others;
	if (counts->new_bytes > room)
		return err_set(err, ERR_TOO_LARGE, "%lld new tokens take %lld bytes of the store, and %s has room for %lld beside "
			       "%lld that other ingests take: free some, or leave out something with --exclude",
			       (long long)counts->new_tokens, (long long)counts->new_bytes, w->config->store.path,
			       (long long)(room < 0 ? 0 : room), (long long)others);
	j->takes_bytes = counts->new_bytes > reserved ? counts->new_bytes - reserved : 0;
	return 0;
}

/* Counted before anything is computed; a dry run ends there. */
static int count_job(struct ingesting *g, struct job *j, struct ingest *in, struct err *err)
{
	struct worker *w = g->w;
	struct ingest_counts counts;
	struct message *m;

	if (ingest_bind(in, w->opened.engine, w->opened.model, w->opened.latents, w->cache, err))
		return -1;
	ingest_count(in, &counts);
	m = message_new(MESSAGE_PROGRESS, j->m->id);
	m->progress = (struct ingest_progress){
		.phase = INGEST_TOKENIZE, .n_files = counts.n_documents, .n_skipped = counts.n_skipped,
		.read_bytes = counts.read_bytes, .n_tokens = counts.n_tokens, .reused_tokens = counts.kept_tokens,
	};
	worker_tell(w, m);
	tell_counts(w, j, in, &counts);
	return check_disk(g, j, &counts, err);
}

/* What needs nothing computed is committed; the others wait for each other. 1: it is in the batch, 0: it is done. */
static int begin_ingest(struct ingesting *g, struct job *j, struct err *err)
{
	int rc = ingest_begin(j->in, err) ? -1 : ingest_commit(j->in, err);

	if (rc > 0)
		batch_add(g->batch, j->in);
	return rc;
}

void ingesting_prepared(struct ingesting *g, struct message *m)
{
	struct job *j = find_job(g, m->id);
	struct err err = m->err;

	if (!err.code && !count_job(g, j, m->ingest.in, &err) && !j->m->ingest.request.dry_run) {
		j->in = m->ingest.in;
		m->ingest.in = NULL;
		if (begin_ingest(g, j, &err) <= 0)
			end_job(g, j, &err);
	} else {
		end_job(g, j, &err);
	}
	message_free(m);
}

/* The first in the batch that somebody has cancelled. */
static struct job *find_cancelled(const struct ingesting *g)
{
	struct job *j = g->jobs;

	while (j && !(j->in && worker_is_cancelled(j->m)))
		j = j->next;
	return j;
}

bool ingesting_can_step(const struct ingesting *g)
{
	if (find_cancelled(g))
		return true;
	for (const struct job *j = g->jobs; j; j = j->next)
		if (!j->in && !j->m->ingest.request.dry_run)
			return false;
	return batch_n(g->batch);
}

void ingesting_step(struct ingesting *g)
{
	struct job *cancelled = find_cancelled(g);
	struct err err = {0};
	struct ingest *ended;

	if (cancelled) {
		err_set(&err, ERR_CANCELLED, "cancelled");
		end_job(g, cancelled, &err);
		return;
	}
	ended = batch_step(g->batch, &err);
	if (ended)
		end_job(g, job_of(g, ended), &err);
	if (clock_now_ms() - g->told_ms < WORKER_PROGRESS_MS)
		return;
	g->told_ms = clock_now_ms();
	for (const struct job *j = g->jobs; j; j = j->next)
		if (j->in)
			tell_progress(g, j);
}

int ingesting_none(const struct ingesting *g, const char *corpus, struct err *err)
{
	for (const struct job *j = g->jobs; j; j = j->next)
		if (!corpus || !strcmp(corpus, j->m->ingest.request.corpus))
			return err_set(err, ERR_BUSY, "corpus %s is being ingested: wait for job j-%lld, or `quire cancel j-%lld`",
				       j->m->ingest.request.corpus, (long long)j->m->id, (long long)j->m->id);
	return 0;
}

int ingesting_start(struct ingesting **out, struct worker *w, struct err *err)
{
	struct ingesting *g = xcalloc(1, sizeof *g);
	int number;

	g->w = w;
	if (queue_new(&g->to_ingest, WORKER_INGESTS, err)) {
		free(g);
		return -1;
	}
	if ((number = pthread_create(&g->thread, NULL, run_ingest_thread, g))) {
		queue_free(g->to_ingest, NULL);
		free(g);
		return err_errno(err, number, "start the ingest thread");
	}
	g->batch = batch_new();
	*out = g;
	return 0;
}

void ingesting_stop(struct ingesting *g)
{
	struct err err;

	queue_close(g->to_ingest);
	pthread_join(g->thread, NULL);
	err_set(&err, ERR_CANCELLED, "the daemon stops");
	while (g->jobs)
		end_job(g, g->jobs, &err);
	batch_free(g->batch);
	g->batch = NULL;
}

void ingesting_free(struct ingesting *g)
{
	if (!g)
		return;
	queue_free(g->to_ingest, message_free);
	free(g);
}
