#include "tests/support/daemon_kills.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cache/inside.h"
#include "config/clock.h"
#include "config/mem.h"
#include "tests/support/daemon_process.h"
#include "tests/support/disk_calls.h"
#include "tests/support/no_rings.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

const char *const kill_activity_names[N_KILL_ACTIVITIES] = {"ingest", "reindex", "eviction", "repair"};

/* "a" is worked on; "b" is beside it, and gives way where one must; "c" is what was asked last, which never does. */
enum { A, B, C, N_CORPORA };
static const char *const corpora[N_CORPORA] = {"a", "b", "c"};

enum { FILES_TEXT = 4096, STOP_MS = 120000, FAILED_MS = 10000 };

/* What the undisturbed daemon had. */
struct activity {
	char *dir, *before_dir;  /* its own, and in it the store before the work, and a source for each corpus */
	char *sources[N_CORPORA];
	char *config;
	int64_t max_bytes, job;  /* job: the number that the work's ingest gets */
	char *before[N_CORPORA], *after[N_CORPORA]; /* answers; NULL: there is no such corpus */
	char *files;             /* names, after its stop */
	int64_t used_bytes, n_spans, n_waiting;
	int64_t took_us;
};

struct kills {
	struct kills_options opt;
	char *store, *socket, *log;
	struct activity of[N_KILL_ACTIVITIES];
	struct daemon_process daemon;
	void (*spoil)(const char *store);
	int nth;                 /* of the call to kill the next daemon at; 0: none */
	bool torn;
};

/* What a client knows of a daemon that it saw. */
struct seen {
	bool repaired, accepted, done;
	int64_t job, done_tokens;
};

/* ---- files ------------------------------------------------------------------------------------------------------ */

static void write_lines(const char *dir, const char *name, const char *word, int n)
{
	size_t room = (size_t)n * 64 + 1, at = 0;
	char *text = xmalloc(room, 1);

	text[0] = '\0';
	for (int i = 0; i < n; i++)
		at += (size_t)snprintf(text + at, room - at, "int %s_%d = %d;\n", word, i, i * i);
	free(temp_text(dir, name, text));
	free(text);
}

static void remove_store(const char *dir)
{
	if (!access(dir, F_OK))
		temp_dir_free(xstrdup(dir));
}

static int copy_store(const char *from, const char *to, struct err *err)
{
	remove_store(to);
	return access(from, F_OK) ? 0 : temp_dir_copy(from, to, err); /* the work may begin without one */
}

static int is_name(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

/* The names of a store's files, to be freed. */
static char *files_of(const char *dir)
{
	struct dirent **list = NULL;
	int n = scandir(dir, &list, is_name, alphasort);
	char *text = xcalloc(1, FILES_TEXT);
	size_t at = 0;

	for (int i = 0; i < n; i++) {
		if (at < FILES_TEXT)
			at += (size_t)snprintf(text + at, FILES_TEXT - at, " %s", list[i]->d_name);
		free(list[i]);
	}
	free(list);
	return text;
}

static int flip_file(const char *dir, const char *name, int64_t byte, struct err *err)
{
	char *path = temp_path(dir, name);
	int fd = open(path, O_RDWR | O_CLOEXEC), rc = 0;

	if (fd < 0)
		rc = err_errno(err, errno, "flip a bit of %s", path);
	else
		flip(fd, byte, 3);
	if (fd >= 0)
		close(fd);
	free(path);
	return rc;
}

static int write_config(struct kills *k, struct activity *a, struct err *err)
{
	char *model = realpath("tests/golden/glm52", NULL), *text, limit[64] = "";

	if (!model)
		return err_errno(err, errno, "find tests/golden/glm52");
	if (a->max_bytes)
		snprintf(limit, sizeof limit, ", max_bytes: %lldB", (long long)a->max_bytes);
	/* Little scratch memory: several chunks, each of which is written, to be killed between. */
	text = xasprintf("version: 1\nmodel: {path: %s}\nstore: {path: %s%s}\nserver: {socket: %s}\ncompute: {threads: 1}\n"
			 "context: {latent_cache: 1MiB}\ningest: {scratch: 128KiB}\n", model, k->store, limit, k->socket);
	free(a->config);
	a->config = temp_text(a->dir, "quire.yaml", text);
	free(text);
	free(model);
	return 0;
}

/* ---- the work of a daemon --------------------------------------------------------------------------------------- */

/* In the daemon's process: calls are those of the thread pool, and the counter begins. */
static void prepare(void *ctx)
{
	const struct kills *k = ctx;

	if (refuse_rings(EPERM)) {
		fprintf(stderr, "no system call filters here\n");
		_exit(125);
	}
	disk_calls_reset();
	if (k->nth)
		disk_calls_kill(k->nth, k->torn);
}

static int start(struct kills *k, const struct activity *a, struct err *err)
{
	k->daemon.config = a->config;
	return daemon_process_start(&k->daemon, err);
}

/* Repair first, where that is the work, then ingest "a" to its end. */
static int work(struct kills *k, enum kill_activity which, struct seen *seen, struct err *err)
{
	struct activity *a = &k->of[which];
	struct api_job job;
	json_t *report;
	int rc = 0;

	if (which == KILL_REPAIR) {
		if (daemon_process_check(&k->daemon, API_REPAIR, &report, err))
			return -1;
		json_decref(report);
		seen->repaired = true;
	}
	if (daemon_process_ingest(&k->daemon, corpora[A], a->sources[A], &seen->job, err))
		return -1;
	seen->accepted = true;
	if (daemon_process_job_end(&k->daemon, seen->job, &job, &seen->done_tokens, err))
		return -1;
	seen->done = job.state == JOB_DONE;
	if (!seen->done)
		rc = err_set(err, ERR_FAILED, "the job is %s: %.300s", job_state_name(job.state), job.error.text);
	api_job_clear(&job);
	return rc;
}

/* ---- afterwards ------------------------------------------------------------------------------------------------- */

static bool same(const char *a, const char *b)
{
	return a && b && !strcmp(a, b);
}

/* *answer NULL: there is no such corpus. */
static int ask(struct kills *k, int corpus, char **answer, struct err *err)
{
	*answer = NULL;
	if (!daemon_process_ask(&k->daemon, corpora[corpus], answer, err) || err->code == ERR_NOT_FOUND)
		return 0;
	return -1;
}

static int must_answer(struct kills *k, const struct activity *a, int corpus, bool may_be_old, struct err *err)
{
	char *answer;
	int rc = 0;

	if (ask(k, corpus, &answer, err))
		return -1;
	if (same(answer, a->after[corpus]) || (may_be_old && same(answer, a->before[corpus])))
		;
	else if (!answer && (may_be_old ? !a->before[corpus] || !a->after[corpus] : !a->after[corpus]))
		;
	else
		rc = err_set(err, ERR_FAILED, "corpus %s answers \"%.60s\", %s \"%.60s\" nor \"%.60s\"", corpora[corpus],
			     answer ? answer : "(there is none)", may_be_old ? "neither" : "and not",
			     may_be_old && a->before[corpus] ? a->before[corpus] : "", a->after[corpus] ? a->after[corpus] : "");
	free(answer);
	return rc;
}

/* *n_waiting: spans that wait to be computed again. */
static int must_be_clean(struct kills *k, int64_t *n_waiting, struct err *err)
{
	json_t *report, *finding;
	int rc = 0;

	if (daemon_process_check(&k->daemon, API_CHECK, &report, err))
		return -1;
	finding = json_array_get(json_object_get(report, "findings"), 0);
	if (json_integer_value(json_object_get(report, "damaged")))
		rc = err_set(err, ERR_DAMAGED, "check finds: %.300s", json_string_value(json_object_get(finding, "what")));
	*n_waiting = json_integer_value(json_object_get(report, "waiting_spans"));
	json_decref(report);
	return rc;
}

/* The job that the dead daemon had accepted, or may have: to its end. *job_ended: there was one. */
static int resume(struct kills *k, const struct activity *a, const struct seen *seen, bool *job_ended,
		  struct err *err)
{
	int64_t id = seen->accepted ? seen->job : a->job;
	struct api_job job;
	int rc = 0;

	*job_ended = false;
	if (daemon_process_job(&k->daemon, id, &job, err)) {
		if (err->code == ERR_NOT_FOUND && !seen->accepted)
			return 0;
		return err_wrap(err, "what was accepted");
	}
	api_job_clear(&job);
	if (daemon_process_job_end(&k->daemon, id, &job, NULL, err))
		return -1;
	if (job.state != JOB_DONE)
		rc = err_set(err, ERR_FAILED, "the job is %s after a restart: %.300s", job_state_name(job.state), job.error.text);
	else if (job.attempts > 2 || (seen->done && job.attempts != 1))
		rc = err_set(err, ERR_FAILED, "the job took %d attempts", job.attempts);
	else if (job.attempts == 2 && job.progress.reused_tokens < seen->done_tokens)
		rc = err_set(err, ERR_FAILED, "%lld tokens were in the store, and %lld were found there again",
			     (long long)seen->done_tokens, (long long)job.progress.reused_tokens);
	*job_ended = !rc;
	api_job_clear(&job);
	return rc;
}

static int64_t store_number(const json_t *status, const char *name)
{
	return json_integer_value(json_object_get(json_object_get(status, "store"), name));
}

static void add_bytes(void *ctx, int64_t run, int64_t bytes)
{
	(void)run;
	*(int64_t *)ctx += bytes;
}

/* Of a store that nobody has open: its files, and that what rows name is what is used. */
static int must_be_closed_well(struct kills *k, const struct activity *a, struct err *err)
{
	char *files = files_of(k->store);
	struct cache_stats stats;
	int64_t named = 0;
	struct cache *c;
	int rc = 0;

	if (a->files && strcmp(files, a->files))
		rc = err_set(err, ERR_FAILED, "the store's files are%.300s, and without a kill they are%.300s", files, a->files);
	free(files);
	if (rc || cache_open_with(&c, k->store, &store_io, err))
		return -1;
	cache_stats(c, &stats);
	if (index_each_run(c->index, add_bytes, &named, err))
		rc = -1;
	else if (named != stats.used_bytes)
		rc = err_set(err, ERR_FAILED, "%lld bytes are used, and rows name %lld", (long long)stats.used_bytes,
			     (long long)named);
	cache_close(c);
	return rc;
}

/* The end of all: as in the undisturbed daemon, whose numbers are taken when `first`. */
static int must_be_whole(struct kills *k, struct activity *a, bool first, struct err *err)
{
	int64_t used, spans, waiting, scratch;
	json_t *status;

	for (int i = 0; i < N_CORPORA; i++)
		if (first ? ask(k, i, &a->after[i], err) : must_answer(k, a, i, false, err))
			return -1;
	if (must_be_clean(k, &waiting, err) || daemon_process_status(&k->daemon, &status, err))
		return -1;
	used = store_number(status, "used_bytes");
	spans = store_number(status, "spans");
	scratch = store_number(status, "scratch_bytes");
	json_decref(status);
	if (scratch)
		return err_set(err, ERR_FAILED, "%lld bytes of scratch files are left", (long long)scratch);
	if (first) {
		a->used_bytes = used;
		a->n_spans = spans;
		a->n_waiting = waiting;
	}
	/* Space is taken run by run, and where an ingest is interrupted decides what its own runs are. */
	if (a->max_bytes && used > a->max_bytes)
		return err_set(err, ERR_FAILED, "the store has %lld bytes used and a limit of %lld", (long long)used,
			       (long long)a->max_bytes);
	if (spans != a->n_spans || (!a->max_bytes && (used != a->used_bytes || waiting != a->n_waiting)))
		return err_set(err, ERR_FAILED, "the store has %lld bytes used, %lld spans, %lld that wait, and without a kill "
			       "%lld, %lld and %lld", (long long)used, (long long)spans, (long long)waiting,
			       (long long)a->used_bytes, (long long)a->n_spans, (long long)a->n_waiting);
	return 0;
}

static int look(struct kills *k, enum kill_activity which, const struct seen *seen, struct err *err)
{
	struct activity *a = &k->of[which];
	struct seen again = {0};
	int64_t waiting;
	bool job_ended;

	/* At once, while what was interrupted goes on. */
	for (int i = 0; i < N_CORPORA; i++)
		if (must_answer(k, a, i, !seen->done, err))
			return err_wrap(err, "after a restart");
	if ((which != KILL_REPAIR || seen->repaired) && must_be_clean(k, &waiting, err))
		return err_wrap(err, "after a restart");
	if (resume(k, a, seen, &job_ended, err))
		return -1;
	/* What nobody had accepted is asked for again. A repair is not a job. */
	if ((!job_ended || (which == KILL_REPAIR && !seen->repaired)) && work(k, which, &again, err))
		return err_wrap(err, "the work again");
	return must_be_whole(k, a, false, err);
}

/* The dead daemon's successor, from its start to its stop. */
static int afterwards(struct kills *k, enum kill_activity which, const struct seen *seen, struct err *err)
{
	struct activity *a = &k->of[which];

	if (k->spoil)
		k->spoil(k->store);
	k->nth = 0;
	if (start(k, a, err) || daemon_process_ready(&k->daemon, err) || look(k, which, seen, err))
		return -1;
	return daemon_process_stop(&k->daemon, err) || must_be_closed_well(k, a, err) ? -1 : 0;
}

/* ---- kills ------------------------------------------------------------------------------------------------------ */

/* After `us`, by a process of its own, as this one is busy. By a handle: a number may be somebody else's by then. */
static pid_t kill_later(pid_t pid, int64_t us)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	const struct timespec t = {us / 1000000, us % 1000000 * 1000};
	pid_t killer = fd < 0 ? -1 : fork();

	if (!killer) {
		nanosleep(&t, NULL);
		syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
		_exit(0);
	}
	if (fd >= 0)
		close(fd);
	return killer;
}

static void end_daemon(struct kills *k)
{
	struct err ignored;
	bool killed;

	if (!k->daemon.pid)
		return;
	kill(k->daemon.pid, SIGKILL);
	(void)daemon_process_wait(&k->daemon, STOP_MS, &killed, &ignored);
}

/* One daemon, killed where k->nth says, or after so many us of its work, -1: not by time. */
static int one(struct kills *k, enum kill_activity which, int64_t us, bool *killed, struct err *err)
{
	struct activity *a = &k->of[which];
	struct err dead = {0};
	struct seen seen = {0};
	pid_t killer = 0;
	bool failed;

	if (truncate(k->log, 0) && errno != ENOENT)
		return err_errno(err, errno, "empty %s", k->log);
	if (copy_store(a->before_dir, k->store, err) || start(k, a, err))
		return -1;
	failed = daemon_process_ready(&k->daemon, &dead);
	if (!failed && us >= 0 && (killer = kill_later(k->daemon.pid, us)) < 0)
		return err_errno(err, errno, "start what kills the daemon");
	failed = failed || work(k, which, &seen, &dead);
	if (!failed)
		kill(k->daemon.pid, SIGTERM);
	if (daemon_process_wait(&k->daemon, failed ? FAILED_MS : STOP_MS, killed, err))
		err_wrap(err, "%s", failed ? dead.text : "told to stop");
	else if (failed && !*killed)
		*err = dead;
	else
		failed = false;
	if (killer) {
		kill(killer, SIGKILL);
		waitpid(killer, NULL, 0);
	}
	return failed || err->code ? -1 : afterwards(k, which, &seen, err);
}

/* As one, and what is wrong names the kill. */
static int one_named(struct kills *k, enum kill_activity which, int64_t us, bool *killed, struct err *err)
{
	char what[100];
	int rc;

	if (us < 0)
		snprintf(what, sizeof what, "call %d%s", k->nth, k->torn ? ", torn" : "");
	else
		snprintf(what, sizeof what, "%lld us of %lld", (long long)us, (long long)k->of[which].took_us);
	*err = (struct err){0};
	rc = one(k, which, us, killed, err);
	end_daemon(k);
	return rc ? err_wrap(err, "%s, killed at %s", kill_activity_names[which], what) : 0;
}

int kills_at_call(struct kills *k, enum kill_activity activity, int nth, bool torn, bool *killed, struct err *err)
{
	assert(!k->opt.program && nth > 0);
	k->nth = nth;
	k->torn = torn;
	return one_named(k, activity, -1, killed, err);
}

int kills_at_moment(struct kills *k, enum kill_activity activity, double share, bool *killed, struct err *err)
{
	k->nth = 0;
	return one_named(k, activity, (int64_t)(share * (double)k->of[activity].took_us), killed, err);
}

/* ---- what they begin with --------------------------------------------------------------------------------------- */

static int write_sources(struct kills *k, struct activity *a, struct err *err)
{
	if (mkdir(a->dir, 0700) || mkdir(a->sources[A], 0700) || mkdir(a->sources[B], 0700) || mkdir(a->sources[C], 0700))
		return err_errno(err, errno, "make directories in %s", a->dir);
	write_lines(a->sources[A], "first.c", "alpha", k->opt.lines);
	write_lines(a->sources[A], "second.c", "beta", k->opt.lines);
	write_lines(a->sources[B], "other.c", "gamma", 2 * k->opt.lines);
	write_lines(a->sources[C], "last.c", "omega", k->opt.lines / 2);
	return 0;
}

static int ingest_all(struct kills *k, struct activity *a, int corpus, struct err *err)
{
	struct api_job job;
	int rc = 0;

	if (daemon_process_ingest(&k->daemon, corpora[corpus], a->sources[corpus], &a->job, err) ||
	    daemon_process_job_end(&k->daemon, a->job, &job, NULL, err))
		return -1;
	if (job.state != JOB_DONE)
		rc = err_set(err, ERR_FAILED, "the job is %s: %.300s", job_state_name(job.state), job.error.text);
	api_job_clear(&job);
	return rc;
}

/* The store before the work, by a daemon of its own. */
static int make_before(struct kills *k, enum kill_activity which, struct err *err)
{
	struct activity *a = &k->of[which];
	json_t *status;

	if (which == KILL_INGEST)
		return 0;
	if (start(k, a, err) || daemon_process_ready(&k->daemon, err))
		return -1;
	/* "a" first, so that its latents are at the beginning of the first segment; who is evicted is there alone. */
	if ((which != KILL_EVICTION && ingest_all(k, a, A, err)) || ingest_all(k, a, B, err) || ingest_all(k, a, C, err))
		return -1;
	for (int i = 0; i < N_CORPORA; i++) {
		if (which == KILL_EVICTION && i == C)
			sleep(2); /* when a corpus was used is known to the second */
		if (ask(k, i, &a->before[i], err))
			return -1;
	}
	if (daemon_process_status(&k->daemon, &status, err))
		return -1;
	if (which == KILL_EVICTION) /* room for half of what comes */
		a->max_bytes = store_number(status, "used_bytes") + k->of[KILL_INGEST].used_bytes / 2;
	json_decref(status);
	if (daemon_process_stop(&k->daemon, err))
		return -1;
	if (rename(k->store, a->before_dir))
		return err_errno(err, errno, "rename %s to %s", k->store, a->before_dir);
	return which == KILL_REPAIR ? flip_file(a->before_dir, "segment-000001", 100, err) : 0;
}

/* Changes without which the comparisons would show nothing. */
static int must_differ(const struct activity *a, enum kill_activity which, struct err *err)
{
	if (!a->after[A] || (which == KILL_REINDEX && same(a->before[A], a->after[A])))
		return err_set(err, ERR_FAILED, "the work changes no answer");
	if (which == KILL_EVICTION && !a->n_waiting)
		return err_set(err, ERR_FAILED, "nothing was evicted");
	if (which == KILL_REPAIR && !same(a->before[A], a->after[A]))
		return err_set(err, ERR_FAILED, "the answer over damage is another one");
	return 0;
}

static int make_activity(struct kills *k, enum kill_activity which, struct err *err)
{
	struct activity *a = &k->of[which];
	struct seen seen = {0};
	int64_t began_ns;
	int rc;

	a->dir = temp_path(k->opt.dir, kill_activity_names[which]);
	a->before_dir = temp_path(a->dir, "before");
	for (int i = 0; i < N_CORPORA; i++)
		a->sources[i] = temp_path(a->dir, corpora[i]);
	if (write_sources(k, a, err) || write_config(k, a, err) || make_before(k, which, err) || write_config(k, a, err))
		return -1;
	a->job++;
	if (which == KILL_REINDEX) {
		write_lines(a->sources[A], "second.c", "delta", k->opt.lines);
		write_lines(a->sources[A], "third.c", "epsilon", k->opt.lines / 2);
	}
	if (copy_store(a->before_dir, k->store, err) || start(k, a, err) || daemon_process_ready(&k->daemon, err))
		return -1;
	began_ns = clock_now_ns();
	if (work(k, which, &seen, err) || daemon_process_stop(&k->daemon, err))
		return -1;
	a->took_us = (clock_now_ns() - began_ns) / 1000;
	if (start(k, a, err) || daemon_process_ready(&k->daemon, err) || must_be_whole(k, a, true, err) ||
	    daemon_process_stop(&k->daemon, err))
		return -1;
	a->files = files_of(k->store);
	rc = must_be_closed_well(k, a, err) || must_differ(a, which, err) ? -1 : 0;
	remove_store(k->store);
	return rc;
}

int kills_open(struct kills **out, const struct kills_options *opt, struct err *err)
{
	struct kills *k = xcalloc(1, sizeof *k);

	k->opt = *opt;
	k->store = temp_path(opt->dir, "store");
	k->socket = temp_path(opt->dir, "run/quire.sock");
	k->log = temp_path(opt->dir, "log");
	k->daemon = (struct daemon_process){.socket = k->socket, .log = k->log, .program = opt->program, .prepare = prepare,
					    .ctx = k};
	for (int i = 0; i < N_KILL_ACTIVITIES; i++)
		if (make_activity(k, (enum kill_activity)i, err)) {
			err_wrap(err, "%s, undisturbed", kill_activity_names[i]);
			kills_close(k);
			return -1;
		}
	*out = k;
	return 0;
}

void kills_spoil(struct kills *k, void (*spoil)(const char *store))
{
	k->spoil = spoil;
}

const char *kills_log(const struct kills *k)
{
	return k->log;
}

void kills_close(struct kills *k)
{
	if (!k)
		return;
	end_daemon(k);
	for (int i = 0; i < N_KILL_ACTIVITIES; i++) {
		struct activity *a = &k->of[i];

		for (int c = 0; c < N_CORPORA; c++) {
			free(a->sources[c]);
			free(a->before[c]);
			free(a->after[c]);
		}
		free(a->dir);
		free(a->before_dir);
		free(a->config);
		free(a->files);
	}
	free(k->store);
	free(k->socket);
	free(k->log);
	free(k);
}
