#include "tests/support/daemon_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "config/mem.h"
#include "daemon/cli.h"
#include "daemon/client.h"
#include "daemon/upkeep.h"
#include "engine/tokenizer.h"

enum { ANSWER_TOKENS = 8, POLL_US = 1000, PATIENCE_MS = 120000 };

static void pause_us(int us)
{
	const struct timespec t = {us / 1000000, us % 1000000 * 1000};

	nanosleep(&t, NULL);
}

static void become_the_daemon(struct daemon_process *d)
{
	static const int crashes[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL};
	char *words[] = {"quired", "--config", (char *)d->config, NULL};
	int fd = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);

	/* A crash is the daemon's own: it must not go on as a second copy of the test. */
	for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++)
		signal(crashes[i], SIG_DFL);
	if (fd < 0 || dup2(fd, STDERR_FILENO) < 0)
		_exit(126);
	close(fd);
	if (d->program) {
		execv(d->program, words);
		_exit(127);
	}
	if (d->prepare)
		d->prepare(d->ctx);
	exit(cli_serve(3, words)); /* not _exit: for what the sanitizers say at an end */
}

int daemon_process_start(struct daemon_process *d, struct err *err)
{
	fflush(NULL);
	d->pid = fork();
	if (!d->pid)
		become_the_daemon(d);
	if (d->pid < 0) {
		d->pid = 0;
		return err_errno(err, errno, "start the daemon");
	}
	client_close(d->client);
	d->client = NULL;
	return client_open(&d->client, d->socket, err);
}

/* Leaves it to be waited for. */
static bool is_dead(const struct daemon_process *d)
{
	siginfo_t info = {0};

	return waitid(P_PID, (id_t)d->pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == d->pid;
}

int daemon_process_ready(struct daemon_process *d, struct err *err)
{
	for (int waited_us = 0; waited_us / 1000 < PATIENCE_MS; waited_us += POLL_US) {
		json_t *reply = NULL;
		int failed = client_request(d->client, API_READYZ, NULL, NULL, &reply, err);

		json_decref(reply);
		if (!failed)
			return 0;
		if (is_dead(d))
			return err_set(err, ERR_UNREACHABLE, "the daemon has ended at its start");
		pause_us(POLL_US);
	}
	return err_wrap(err, "the daemon is not ready after %d s", PATIENCE_MS / 1000);
}

int daemon_process_wait(struct daemon_process *d, int patience_ms, bool *killed, struct err *err)
{
	int waited_us = 0, status;
	bool hangs;

	for (; !is_dead(d) && waited_us / 1000 < patience_ms; waited_us += POLL_US)
		pause_us(POLL_US);
	hangs = !is_dead(d);
	if (hangs)
		kill(d->pid, SIGKILL);
	while (waitpid(d->pid, &status, 0) < 0 && errno == EINTR)
		;
	d->pid = 0;
	client_close(d->client);
	d->client = NULL;
	*killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
	if (hangs)
		return err_set(err, ERR_FAILED, "the daemon has not ended after %d ms", patience_ms);
	if (!*killed && (!WIFEXITED(status) || WEXITSTATUS(status)))
		return err_set(err, ERR_FAILED, "the daemon has ended with %s %d", WIFEXITED(status) ? "status" : "signal",
			       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	return 0;
}

int daemon_process_stop(struct daemon_process *d, struct err *err)
{
	bool killed;

	kill(d->pid, SIGTERM);
	if (daemon_process_wait(d, PATIENCE_MS, &killed, err))
		return -1;
	return killed ? err_set(err, ERR_FAILED, "somebody has killed the daemon that was to stop") : 0;
}

struct events {
	struct bytes text;
	json_t *report;
	bool done;
};

static int on_event(void *ctx, const char *name, json_t *data, struct err *err)
{
	struct events *e = ctx;
	char *body;

	if (!strcmp(name, "error")) {
		body = json_dumps(data, JSON_COMPACT);
		api_error_parse(err, 200, body, strlen(body));
		free(body);
		return -1;
	}
	if (!strcmp(name, "token")) {
		const char *text = json_string_value(json_object_get(data, "text"));

		bytes_append(&e->text, text, strlen(text));
	}
	if (!strcmp(name, "report"))
		e->report = json_incref(data);
	e->done = !strcmp(name, "done") || !strcmp(name, "report");
	return e->done;
}

/* Clears e unless all has gone well. */
static int stream(struct daemon_process *d, enum api_route route, char *body, struct events *e, struct err *err)
{
	int rc = client_stream(d->client, route, NULL, body, on_event, e, NULL, err);

	free(body);
	if (!rc && !e->done)
		rc = err_set(err, ERR_UNREACHABLE, "the daemon went away in the middle of its events");
	if (rc) {
		bytes_free(&e->text);
		json_decref(e->report);
	}
	return rc;
}

int daemon_process_ask(struct daemon_process *d, const char *corpus, char **answer, struct err *err)
{
	struct api_ask q = {.question = "what is a line?"};
	struct events e = {0};

	snprintf(q.corpus, sizeof q.corpus, "%s", corpus);
	q.given[API_MAX_TOKENS] = true;
	q.numbers[API_MAX_TOKENS] = ANSWER_TOKENS;
	if (stream(d, API_ASK, api_ask_format(&q), &e, err))
		return err_wrap(err, "ask %s", corpus);
	bytes_append(&e.text, "", 1);
	*answer = e.text.data;
	return 0;
}

int daemon_process_ingest(struct daemon_process *d, const char *corpus, const char *source, int64_t *job,
			  struct err *err)
{
	struct api_ingest in = {.source = (char *)source};
	char *body = api_ingest_format(&in);
	json_t *reply = NULL;
	const char *id;
	int rc = client_request(d->client, API_INGEST, corpus, body, &reply, err);

	free(body);
	if (rc)
		return err_wrap(err, "ingest %s", corpus);
	id = json_string_value(json_object_get(reply, "id"));
	rc = id ? api_job_id_parse(job, id, err) : err_set(err, ERR_FAILED, "ingest %s: the reply has no job", corpus);
	json_decref(reply);
	return rc;
}

int daemon_process_job(struct daemon_process *d, int64_t id, struct api_job *job, struct err *err)
{
	json_t *reply = NULL;
	char name[32];
	int rc;

	snprintf(name, sizeof name, "j-%lld", (long long)id);
	rc = client_request(d->client, API_JOB, name, NULL, &reply, err) || api_job_parse(job, reply, err) ? -1 : 0;
	json_decref(reply);
	return rc ? err_wrap(err, "job %s", name) : 0;
}

int daemon_process_job_end(struct daemon_process *d, int64_t id, struct api_job *job, int64_t *most, struct err *err)
{
	for (int waited_us = 0; waited_us / 1000 < PATIENCE_MS; waited_us += POLL_US) {
		if (daemon_process_job(d, id, job, err))
			return -1;
		if (most && job->progress.done_tokens > *most)
			*most = job->progress.done_tokens;
		if (job_has_ended(job->state))
			return 0;
		api_job_clear(job);
		pause_us(POLL_US);
	}
	return err_set(err, ERR_FAILED, "job j-%lld has not ended after %d s", (long long)id, PATIENCE_MS / 1000);
}

int daemon_process_check(struct daemon_process *d, enum api_route route, json_t **report, struct err *err)
{
	const struct upkeep u = {.kind = route == API_REPAIR ? UPKEEP_REPAIR : UPKEEP_CHECK, .read_percent = 100};
	struct events e = {0};

	if (stream(d, route, route == API_REPAIR ? xstrdup("{}") : upkeep_format(&u), &e, err))
		return err_wrap(err, "%s", route == API_REPAIR ? "repair" : "check");
	*report = e.report;
	return 0;
}

int daemon_process_status(struct daemon_process *d, json_t **status, struct err *err)
{
	return client_request(d->client, API_STATUS, NULL, NULL, status, err);
}
