/* `quire ingest`, `reindex`, `jobs` and `cancel`: jobs are submitted, followed, listed and ended. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "config/clock.h"
#include "config/err.h"
#include "config/mem.h"
#include "config/units.h"
#include "daemon/api.h"
#include "daemon/cli_inside.h"
#include "daemon/client.h"
#include "daemon/print.h"
#include "daemon/show.h"

/* All values of an option, NULL-terminated, pointing into argv; NULL when there are none. */
static char **values_of(const struct cli *c, int option)
{
	char **all;
	int n = 0;

	if (!c->given[option])
		return NULL;
	all = xcalloc((size_t)c->n_values + 1, sizeof *all);
	for (int i = 0; i < c->n_values; i++)
		if (c->values[i].option == option)
			all[n++] = c->values[i].text;
	return all;
}

static void describe_progress(const struct api_job *job, char *line, size_t bytes, double *share)
{
	const struct ingest_progress *p = &job->progress;
	char a[PRINT_BYTES], b[PRINT_BYTES], s[PRINT_BYTES];

	*share = 0;
	if (job->state == JOB_QUEUED) {
		snprintf(line, bytes, "waiting");
	} else if (p->phase == INGEST_WALK) {
		snprintf(line, bytes, "walk      %s files  %s  (%s skipped)", print_count(a, p->n_files),
			 print_size(s, p->read_bytes), print_count(b, p->n_skipped));
	} else if (p->phase == INGEST_TOKENIZE) {
		snprintf(line, bytes, "tokenize  %s files  %s  %s tokens", print_count(a, p->n_files),
			 print_size(s, p->read_bytes), print_count(b, p->n_tokens));
	} else {
		int64_t done = p->done_tokens + p->swept_tokens;

		*share = p->n_tokens ? (double)done / (double)p->n_tokens : 0;
		snprintf(line, bytes, "%-9s %3.0f %%  %s of %s tokens", ingest_phase_name(p->phase), 100 * *share,
			 print_count(a, done), print_count(b, p->n_tokens));
		if (p->resumed_layer)
			snprintf(line + strlen(line), bytes - strlen(line), "  (resumed at layer %d of %d)", p->resumed_layer,
				 p->n_layers);
	}
}

struct follow {
	struct cli *c;
	struct api_job job;
	struct print_progress progress;
	/* When tokens were first seen being computed, and how many were done or in the store then; 0: not yet. */
	int64_t computing_ms, computing_tokens;
};

static int on_job_event(void *ctx, const char *name, json_t *data, struct err *err)
{
	struct follow *f = ctx;
	const struct ingest_progress *p = &f->job.progress;
	char line[160], pace[PRINT_PACE_BYTES] = "", whole[400];
	int64_t now_ms = clock_now_ms(), done;
	double share;

	if (strcmp(name, "job"))
		return 0;
	api_job_clear(&f->job);
	if (api_job_parse(&f->job, data, err))
		return -1;
	if (f->c->given[OPTION_JSON])
		print_json(stdout, "job", json_incref(data));
	if (job_has_ended(f->job.state))
		return 1;
	if (f->job.progress.phase == INGEST_DONE)
		return 0;
	describe_progress(&f->job, line, sizeof line, &share);
	done = p->done_tokens + p->swept_tokens;
	if (p->phase == INGEST_PREFILL && !f->computing_ms) {
		f->computing_ms = now_ms;
		f->computing_tokens = done;
	} else if (p->phase == INGEST_PREFILL) {
		print_pace(pace, done - f->computing_tokens, now_ms - f->computing_ms, p->n_tokens - done);
	}
	snprintf(whole, sizeof whole, "%s: %s%s", f->job.request.corpus, line, pace);
	print_progress_line(&f->progress, f->job.state == JOB_QUEUED ? "waiting" : ingest_phase_name(f->job.progress.phase),
			    share, whole, now_ms);
	return 0;
}

static int print_outcome(struct cli *c, const struct api_job *job)
{
	const struct ingest_progress *p = &job->progress;
	char tokens[PRINT_BYTES], files[PRINT_BYTES], skipped[PRINT_BYTES], reused[PRINT_BYTES];

	if (job->state != JOB_DONE) {
		c->err = job->error;
		if (!c->err.code)
			err_set(&c->err, job->state == JOB_CANCELLED ? ERR_CANCELLED : ERR_FAILED, "job j-%lld is %s",
				(long long)job->id, job_state_name(job->state));
		else
			err_wrap(&c->err, "job j-%lld", (long long)job->id);
		return -1;
	}
	if (!c->given[OPTION_JSON] && job->request.dry_run)
		show_report(job);
	else if (!c->given[OPTION_JSON])
		printf("%s: %s tokens of %s files (%s skipped), %s tokens reused, job j-%lld\n", job->request.corpus,
		       print_count(tokens, p->n_tokens), print_count(files, p->n_files),
		       print_count(skipped, p->n_skipped), print_count(reused, p->reused_tokens), (long long)job->id);
	return 0;
}

/* Watch a job to its end. Ctrl-C leaves it to the daemon. */
static int follow_job(struct cli *c, struct client *client, int64_t id)
{
	struct follow f = {.c = c};
	char name[32];
	int status;

	snprintf(name, sizeof name, "j-%lld", (long long)id);
	print_progress_begin(&f.progress, stderr);
	status = client_stream(client, API_JOB_EVENTS, name, NULL, on_job_event, &f, &cli_interrupted, &c->err);
	print_progress_end(&f.progress);
	if (status && c->err.code == ERR_CANCELLED && cli_interrupted) {
		fprintf(stderr, "detached: job %s goes on; `quire jobs %s` shows it, `quire cancel %s` ends it\n", name, name,
			name);
		status = err_exit_status(ERR_CANCELLED);
	} else if (!status && !job_has_ended(f.job.state)) {
		status = err_set(&c->err, ERR_UNREACHABLE, "the daemon stopped before job %s was done: it goes on when the "
				 "daemon is back, see `quire jobs %s`", name, name);
	} else if (!status) {
		status = print_outcome(c, &f.job);
	}
	api_job_clear(&f.job);
	return status;
}

/* The whole path of the directory, as the daemon will see it. */
static char *absolute_directory(const char *path, struct err *err)
{
	char *whole = realpath(path, NULL);
	struct stat st;

	if (!whole) {
		err_errno(err, errno, "%s", path);
		return NULL;
	}
	if (stat(whole, &st) || !S_ISDIR(st.st_mode)) {
		err_set(err, ERR_USAGE, "%s is not a directory", path);
		free(whole);
		return NULL;
	}
	return whole;
}

/* DIR, or DIR@REF where there is no directory of the whole name. */
static int read_source(struct cli *c, struct api_ingest *request)
{
	char *argument = c->arguments[0], *at = strrchr(argument, '@');
	const char *ref = cli_value(c, OPTION_REF);
	struct stat st;

	if (!ref && at && at[1] && at != argument && stat(argument, &st)) {
		*at = '\0';
		ref = at + 1;
	}
	request->source = absolute_directory(argument, &c->err);
	if (request->source && ref)
		request->ref = xstrdup(ref);
	return request->source ? 0 : -1;
}

static int submit_ingest(struct cli *c, struct client *client, const char *corpus, struct api_job *job)
{
	struct api_ingest request = {0};
	json_t *reply = NULL;
	char *body;
	int failed;

	snprintf(request.corpus, sizeof request.corpus, "%s", corpus);
	if (read_source(c, &request))
		return -1;
	request.exclude = values_of(c, OPTION_EXCLUDE);
	request.include = values_of(c, OPTION_INCLUDE);
	request.full = c->given[OPTION_FULL];
	request.dry_run = c->given[OPTION_DRY_RUN];
	if (c->given[OPTION_ORDER_FROM])
		snprintf(request.order_from, sizeof request.order_from, "%s", cli_value(c, OPTION_ORDER_FROM));
	body = api_ingest_format(&request);
	failed = client_request(client, API_INGEST, request.corpus, body, &reply, &c->err) ||
		 api_job_parse(job, reply, &c->err);
	if (!failed && c->given[OPTION_DETACH] && c->given[OPTION_JSON])
		print_json(stdout, "job", json_incref(reply));
	json_decref(reply);
	free(body);
	free(request.source);
	free(request.ref);
	free(request.exclude);
	free(request.include);
	return failed ? -1 : 0;
}

/* Submit, then follow it to its end or leave it to the daemon. */
static int ingest(struct cli *c, const char *corpus)
{
	struct client *client = NULL;
	struct api_job job = {0};
	struct api_snapshot follow;
	int status;

	if (api_check_corpus_name(corpus, &c->err) ||
	    (c->given[OPTION_ORDER_FROM] && api_snapshot_parse(&follow, cli_value(c, OPTION_ORDER_FROM), &c->err)) ||
	    cli_connect(c, &client))
		return -1;
	status = submit_ingest(c, client, corpus, &job);
	if (!status && c->given[OPTION_DETACH]) {
		if (!c->given[OPTION_JSON])
			printf("j-%lld\n", (long long)job.id);
	} else if (!status) {
		status = follow_job(c, client, job.id);
	}
	api_job_clear(&job);
	client_close(client);
	return status;
}

int cli_ingest(struct cli *c)
{
	if (!c->given[OPTION_AS])
		return err_set(&c->err, ERR_USAGE, "ingest: --as NAME is needed");
	return ingest(c, cli_value(c, OPTION_AS));
}

/* The source of a corpus, to be freed; NULL: c->err, which names the nearest. */
static char *source_of(struct cli *c, const char *name)
{
	json_t *reply = cli_fetch(c, API_CORPORA, NULL, NULL), *corpus;
	const char *names[64], *nearest;
	char *source = NULL;
	size_t i, n = 0;

	if (!reply)
		return NULL;
	json_array_foreach(json_object_get(reply, "corpora"), i, corpus) {
		const char *other = json_string_value(json_object_get(corpus, "name"));
		const char *from = json_string_value(json_object_get(corpus, "source"));

		if (other && from && !strcmp(other, name))
			source = xstrdup(from);
		if (other && n < sizeof names / sizeof names[0])
			names[n++] = other;
	}
	nearest = source ? NULL : nearest_name(name, names, n);
	if (!source)
		err_set(&c->err, ERR_NOT_FOUND, "there is no corpus \"%s\"%s%s%s", name, nearest ? "; is \"" : "",
			nearest ? nearest : "", nearest ? "\" meant?" : "");
	json_decref(reply);
	return source;
}

int cli_reindex(struct cli *c)
{
	char *corpus = c->arguments[0], *source = source_of(c, corpus);
	int status;

	if (!source)
		return -1;
	c->arguments[0] = source;
	status = ingest(c, corpus);
	c->arguments[0] = corpus;
	free(source);
	return status;
}

static void print_job_row(const struct api_job *job)
{
	char id[32], when[PRINT_BYTES], line[160];
	double share;

	snprintf(id, sizeof id, "j-%lld", (long long)job->id);
	printf("%-7s %-9s %-16s  %-20s ", id, job_state_name(job->state), print_time(when, job->created_s),
	       job->request.corpus);
	if (job->error.code) {
		print_line(stdout, job->error.text);
	} else {
		describe_progress(job, line, sizeof line, &share);
		fputs(line, stdout);
	}
	putchar('\n');
}

static void print_job(const struct api_job *job)
{
	char when[PRINT_BYTES], line[160], *source = api_ingest_source(&job->request);
	double share;

	printf("job       j-%lld\nstate     %s\ncorpus    %s\nsource    ", (long long)job->id, job_state_name(job->state),
	       job->request.corpus);
	print_line(stdout, source);
	free(source);
	printf("\naccepted  %s\n", print_time(when, job->created_s));
	printf("begun     %s (attempt %d)\n", print_time(when, job->started_s), job->attempts);
	printf("ended     %s\n", print_time(when, job->finished_s));
	describe_progress(job, line, sizeof line, &share);
	printf("progress  %s\n", line);
	if (job->error.code) {
		fputs("error     ", stdout);
		print_line(stdout, job->error.text);
		putchar('\n');
	}
	if (job->request.dry_run && job->report)
		show_report(job);
}

static int show_job(struct cli *c, const json_t *json, bool whole)
{
	struct api_job job;

	if (c->given[OPTION_JSON]) {
		print_json(stdout, "job", json_copy((json_t *)json));
		return 0;
	}
	if (api_job_parse(&job, json, &c->err))
		return -1;
	if (whole)
		print_job(&job);
	else
		print_job_row(&job);
	api_job_clear(&job);
	return 0;
}

int cli_jobs(struct cli *c)
{
	json_t *reply, *job, *list;
	size_t i;
	int64_t id;
	int status = 0;

	if (c->n_arguments) {
		if (api_job_id_parse(&id, c->arguments[0], &c->err) || !(reply = cli_fetch(c, API_JOB, c->arguments[0], NULL)))
			return -1;
		status = show_job(c, reply, true);
		json_decref(reply);
		return status;
	}
	if (!(reply = cli_fetch(c, API_JOBS, NULL, NULL)))
		return -1;
	list = json_object_get(reply, "jobs");
	if (!json_array_size(list) && !c->given[OPTION_JSON])
		fputs("no jobs yet: quire ingest DIR --as NAME\n", stderr);
	json_array_foreach(list, i, job)
		if (!status)
			status = show_job(c, job, false);
	json_decref(reply);
	return status;
}

int cli_cancel(struct cli *c)
{
	json_t *reply;
	struct api_job job;
	int64_t id;

	if (api_job_id_parse(&id, c->arguments[0], &c->err) || !(reply = cli_fetch(c, API_JOB_CANCEL, c->arguments[0], NULL)))
		return -1;
	if (c->given[OPTION_JSON]) {
		print_json(stdout, "job", json_incref(reply));
	} else if (!api_job_parse(&job, reply, &c->err)) {
		printf("j-%lld %s\n", (long long)job.id,
		       job.state == JOB_RUNNING ? "ends after its present step" : job_state_name(job.state));
		api_job_clear(&job);
	}
	json_decref(reply);
	return 0;
}
