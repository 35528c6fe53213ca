#include "daemon/running.h"

#include <stdlib.h>

#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "daemon/worker.h"

enum { SAVE_PROGRESS_MS = 5000 };

struct running_job {
	struct running_job *next;
	struct api_job job;
	atomic_bool cancel;     /* the engine looks at it until MESSAGE_INGESTED */
};

struct running {
	struct jobs *jobs;
	struct queue *to_engine;
	void (*changed)(void *ctx, const struct api_job *job);
	void *ctx;
	struct running_job *first;
	int64_t saved_ms;
};

struct running *running_new(struct jobs *j, struct queue *to_engine, void (*changed)(void *ctx, const struct api_job *job),
			    void *ctx)
{
	struct running *r = xcalloc(1, sizeof *r);

	r->jobs = j;
	r->to_engine = to_engine;
	r->changed = changed;
	r->ctx = ctx;
	r->saved_ms = clock_now_ms();
	return r;
}

static void free_job(struct running_job *k)
{
	api_job_clear(&k->job);
	free(k);
}

void running_free(struct running *r)
{
	if (!r)
		return;
	while (r->first) {
		struct running_job *k = r->first;

		r->first = k->next;
		free_job(k);
	}
	free(r);
}

/* The database under our feet fails: say so; the job itself goes on, and is found again at the next start. */
static void complain(const struct err *err)
{
	log_error("%s", err->text);
}

static struct running_job *find(const struct running *r, int64_t id)
{
	struct running_job *k = r->first;

	while (k && k->job.id != id)
		k = k->next;
	return k;
}

int64_t running_n(const struct running *r)
{
	int64_t n = 0;

	for (const struct running_job *k = r->first; k; k = k->next)
		n++;
	return n;
}

/* Takes the job. */
static void start(struct running *r, const struct api_job *job)
{
	struct running_job *k = xcalloc(1, sizeof *k);
	struct message *m = message_new(MESSAGE_INGEST, job->id);

	k->job = *job;
	k->job.progress = (struct ingest_progress){0};
	k->next = r->first;
	r->first = k;
	m->cancel = &k->cancel;
	api_ingest_copy(&m->ingest.request, &job->request);
	r->changed(r->ctx, &k->job);
	if (queue_try_push(r->to_engine, m) != QUEUE_OK)
		abort(); /* it has room for WORKER_INGESTS, and so many are not running */
}

void running_start(struct running *r)
{
	struct api_job *jobs;
	struct err err;
	size_t n;

	if (jobs_begin(r->jobs, WORKER_INGESTS, &jobs, &n, &err)) {
		complain(&err);
		return;
	}
	for (size_t i = 0; i < n; i++)
		start(r, &jobs[i]);
	free(jobs);
}

static void save_all(struct running *r)
{
	size_t n = (size_t)running_n(r), i = 0;
	struct api_job *all = xcalloc(n, sizeof *all);
	struct err err;

	for (const struct running_job *k = r->first; k; k = k->next)
		all[i++] = k->job; /* borrowed */
	if (jobs_progress(r->jobs, all, n, &err))
		complain(&err);
	free(all);
}

void running_progress(struct running *r, const struct message *m)
{
	struct running_job *k = find(r, m->id);

	if (!k)
		return;
	k->job.progress = m->progress;
	r->changed(r->ctx, &k->job);
	if (clock_now_ms() - r->saved_ms < SAVE_PROGRESS_MS)
		return;
	r->saved_ms = clock_now_ms();
	save_all(r);
}

/* What a job is about to do, with the time that it will take as far as the last ones tell. */
void running_counted(struct running *r, const struct message *m)
{
	struct running_job *k = find(r, m->id);
	double tokens_per_s = 0;
	struct err err;

	if (!k)
		return;
	if (jobs_speed(r->jobs, &tokens_per_s, &err))
		complain(&err);
	free(k->job.report);
	k->job.report = api_report_estimate(m->report, tokens_per_s);
	if (jobs_report(r->jobs, m->id, k->job.report, &err))
		complain(&err);
	r->changed(r->ctx, &k->job);
}

static void log_end(const struct api_job *job, const struct err *why)
{
	if (why->code)
		log_warn("job j-%lld ended: %s", (long long)job->id, why->text);
	else
		log_info("job j-%lld is done corpus=%s tokens=%lld reused=%lld", (long long)job->id, job->request.corpus,
			 (long long)job->progress.n_tokens, (long long)job->progress.reused_tokens);
}

void running_ended(struct running *r, const struct message *m, bool stopping)
{
	struct running_job *k = find(r, m->id), **link = &r->first;
	struct api_job job;
	struct err err;

	if (!k)
		return;
	if (stopping && m->err.code == ERR_CANCELLED) {
		if (jobs_put_back(r->jobs, m->id, &err))
			complain(&err);
	} else {
		if (jobs_end(r->jobs, m->id, &k->job.progress, m->err.code ? &m->err : NULL, &err))
			complain(&err);
		log_end(&k->job, &m->err);
	}
	while (*link != k)
		link = &(*link)->next;
	*link = k->next;
	if (jobs_get(r->jobs, m->id, &job, &err)) {
		complain(&err);
	} else {
		job.progress = k->job.progress;
		r->changed(r->ctx, &job);
		api_job_clear(&job);
	}
	free_job(k);
}

void running_refresh(const struct running *r, struct api_job *job)
{
	const struct running_job *k = find(r, job->id);

	if (k)
		job->progress = k->job.progress;
}

bool running_cancel(struct running *r, int64_t id)
{
	struct running_job *k = find(r, id);

	if (k)
		atomic_store(&k->cancel, true);
	return k;
}

void running_cancel_all(struct running *r)
{
	for (struct running_job *k = r->first; k; k = k->next)
		atomic_store(&k->cancel, true);
}

void running_put_back(struct running *r)
{
	struct err err;

	for (const struct running_job *k = r->first; k; k = k->next)
		if (jobs_put_back(r->jobs, k->job.id, &err))
			complain(&err);
}
