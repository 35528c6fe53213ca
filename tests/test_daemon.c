/*
 * The whole daemon, its three threads on the tiny model, in a process of its own; this one is its client. What
 * tests/e2e shows from outside runs here under the sanitizers as well.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "config/config.h"
#include "config/mem.h"
#include "daemon/api.h"
#include "daemon/client.h"
#include "daemon/loop.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

struct daemon_process {
	char *dir, *socket, *source;
	struct config config;
	pid_t pid;
	struct client *client;
};

static void start(struct daemon_process *d)
{
	struct err err;

	fflush(NULL);
	d->pid = fork();
	if (!d->pid) {
		/* A crash is the daemon's own: it must not go on as a second copy of this test. */
		static const int crashes[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL};

		for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++)
			signal(crashes[i], SIG_DFL);
		log_set_level(LOG_LEVEL_ERROR);
		if (loop_run(&d->config, d->socket, &err)) {
			fprintf(stderr, "%s\n", err.text);
			_exit(1);
		}
		exit(0); /* for what the sanitizers say at an end */
	}
	assert_true(d->pid > 0);
}

/* A daemon that is in a long step when it is told to stop goes without that thread: by design, not a leak. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
	return "report_thread_leaks=0";
}

/* As a service manager does it. Everything that a sanitizer has found is in the status. */
static void stop(struct daemon_process *d)
{
	int status;

	assert_true(d->pid > 0);
	kill(d->pid, SIGTERM);
	assert_int_equal(waitpid(d->pid, &status, 0), d->pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static json_t *request(struct daemon_process *d, enum api_route route, const char *arg, const char *body)
{
	struct err err;
	json_t *reply = NULL;

	if (client_request(d->client, route, arg, body, &reply, &err))
		fail_msg("%s", err.text);
	return reply;
}

static void wait_until_ready(struct daemon_process *d)
{
	const struct timespec pause = {0, 20000000};

	for (int i = 0; i < 1500; i++) {
		json_t *reply = NULL;
		struct err err;
		int failed = client_request(d->client, API_READYZ, NULL, NULL, &reply, &err);

		json_decref(reply);
		if (!failed)
			return;
		nanosleep(&pause, NULL);
	}
	fail_msg("the daemon is not ready after half a minute");
}

static int setup(void **state)
{
	struct daemon_process *d = xcalloc(1, sizeof *d);
	char text[2000] = "";
	struct err err;

	d->dir = temp_dir_new();
	d->socket = temp_path(d->dir, "run/quire.sock");
	for (int i = 0; i < 24; i++)
		sprintf(text + strlen(text), "line %d of a queue\n", i);
	free(temp_text(d->dir, "source/a.txt", text));
	d->source = realpath(d->dir, NULL);
	d->source = xrealloc(d->source, strlen(d->source) + 8, 1);
	strcat(d->source, "/source");
	assert_int_equal(config_defaults(&d->config, &err), 0);
	free(d->config.store.path);
	d->config.store.path = temp_path(d->dir, "store");
	d->config.model.path = xstrdup("tests/golden/glm52");
	d->config.compute.threads = 2;
	assert_int_equal(client_open(&d->client, d->socket, &err), 0);
	start(d);
	wait_until_ready(d);
	*state = d;
	return 0;
}

static int teardown(void **state)
{
	struct daemon_process *d = *state;

	client_close(d->client);
	config_free(&d->config);
	temp_dir_free(d->dir);
	free(d->socket);
	free(d->source);
	free(d);
	return 0;
}

static int until_job_ends(void *ctx, const char *name, json_t *data, struct err *err)
{
	struct api_job *job = ctx;

	(void)name;
	api_job_clear(job);
	assert_int_equal(api_job_parse(job, data, err), 0);
	return job_has_ended(job->state);
}

static enum job_state ingest(struct daemon_process *d, const char *corpus)
{
	struct api_ingest in = {.source = d->source};
	struct api_job job = {0};
	struct err err;
	enum job_state state;
	char *body;
	json_t *reply;

	snprintf(in.corpus, sizeof in.corpus, "%s", corpus);
	body = api_ingest_format(&in);
	reply = request(d, API_INGEST, corpus, body);
	free(body);
	if (client_stream(d->client, API_JOB_EVENTS, json_string_value(json_object_get(reply, "id")), NULL,
			  until_job_ends, &job, NULL, &err))
		fail_msg("%s", err.text);
	json_decref(reply);
	state = job.state;
	api_job_clear(&job);
	return state;
}

struct answer {
	char text[4096];
	struct api_usage usage;
	bool done;
	int leave_after;         /* events; 0: stay to the end */
};

static int on_event(void *ctx, const char *name, json_t *data, struct err *err)
{
	struct answer *a = ctx;
	const char *text = json_string_value(json_object_get(data, "text"));

	(void)err;
	if (!strcmp(name, "token"))
		snprintf(a->text + strlen(a->text), sizeof a->text - strlen(a->text), "%s", text);
	if (!strcmp(name, "usage"))
		api_usage_parse(&a->usage, data);
	a->done = !strcmp(name, "done");
	return a->done || (a->leave_after && !--a->leave_after);
}

static int ask(struct daemon_process *d, const char *corpus, double max_tokens, struct answer *a, struct err *err)
{
	struct api_ask q = {.question = "what is a line?"};
	char *body;
	int failed;

	snprintf(q.corpus, sizeof q.corpus, "%s", corpus);
	q.given[API_MAX_TOKENS] = true;
	q.numbers[API_MAX_TOKENS] = max_tokens;
	body = api_ask_format(&q);
	failed = client_stream(d->client, API_ASK, NULL, body, on_event, a, NULL, err);
	free(body);
	return failed;
}

static void an_answer_survives_a_restart_and_costs_only_the_question(void **state)
{
	struct daemon_process *d = *state;
	struct answer before = {0}, after = {0};
	struct err err;

	assert_int_equal(ingest(d, "lines"), JOB_DONE);
	assert_int_equal(ask(d, "lines", 12, &before, &err), 0);
	assert_true(before.done);
	stop(d);
	start(d);
	wait_until_ready(d);
	assert_int_equal(ask(d, "lines", 12, &after, &err), 0);
	assert_string_equal(after.text, before.text);
	assert_true(after.usage.cached_tokens > 100);
	assert_int_equal(after.usage.loaded_tokens, after.usage.cached_tokens);
	assert_int_equal(after.usage.cached_tokens + after.usage.prefilled_tokens, after.usage.prompt_tokens);
	assert_true(after.usage.prefilled_tokens < 100);
	stop(d);
}

/* The limit holds one of two corpora: the one that was asked last makes room for the other, and is asked all the same. */
static void a_corpus_that_was_asked_makes_room_for_an_ingest(void **state)
{
	struct daemon_process *d = *state;
	struct answer before = {0}, after = {0};
	struct err err;
	json_t *reply;

	assert_int_equal(ingest(d, "lines"), JOB_DONE);
	reply = request(d, API_STATUS, NULL, NULL);
	stop(d);
	d->config.store.max_bytes = 3 * json_integer_value(json_object_get(json_object_get(reply, "store"), "used_bytes")) / 2;
	assert_true(d->config.store.max_bytes > 0);
	json_decref(reply);
	start(d);
	wait_until_ready(d);
	assert_int_equal(ask(d, "lines", 12, &before, &err), 0);
	free(temp_text(d->dir, "source/0.txt", "what stands before all the others has changed\n"));
	assert_int_equal(ingest(d, "others"), JOB_DONE);
	assert_int_equal(ask(d, "lines", 12, &after, &err), 0);
	assert_string_equal(after.text, before.text);
	assert_true(after.usage.recomputed_tokens > 0);
	stop(d);
}

static void clients_that_leave_early_leave_nothing_behind(void **state)
{
	struct daemon_process *d = *state;
	struct answer whole = {0}, again = {0};
	struct err err;
	json_t *reply;

	assert_int_equal(ingest(d, "lines"), JOB_DONE);
	assert_int_equal(ask(d, "lines", 12, &whole, &err), 0);
	for (int events = 1; events <= 6; events++) {
		struct answer part = {.leave_after = events};

		assert_int_equal(ask(d, "lines", 12, &part, &err), 0);
	}
	assert_int_equal(ask(d, "lines", 12, &again, &err), 0);
	assert_string_equal(again.text, whole.text);
	reply = request(d, API_STATUS, NULL, NULL);
	assert_int_equal(json_integer_value(json_object_get(json_object_get(reply, "queue"), "asks")), 0);
	json_decref(reply);
	stop(d);
}

static void refusals_come_with_their_code_and_their_words(void **state)
{
	struct daemon_process *d = *state;
	struct answer a = {0};
	struct err err = {0};

	assert_int_equal(ingest(d, "lines"), JOB_DONE);
	assert_int_equal(ask(d, "liens", 12, &a, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, "lines"));
	assert_int_equal(ask(d, "lines", 1048576, &a, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "1048576"));
	stop(d);
}

static void a_stop_in_the_middle_of_an_ingest_is_in_good_order(void **state)
{
	struct daemon_process *d = *state;
	struct api_ingest in = {.corpus = "lines", .source = d->source};
	char *body = api_ingest_format(&in);

	json_decref(request(d, API_INGEST, "lines", body));
	free(body);
	stop(d);
	start(d);
	wait_until_ready(d);
	/* The same request is the job that waits already. */
	assert_int_equal(ingest(d, "lines"), JOB_DONE);
	stop(d);
}

/* The id of a job that nobody waits for; free() it. */
static char *submit(struct daemon_process *d, const char *corpus)
{
	struct api_ingest in = {.source = d->source};
	char *body = api_ingest_format(&in), *id;
	json_t *reply = request(d, API_INGEST, corpus, body);

	id = xstrdup(json_string_value(json_object_get(reply, "id")));
	json_decref(reply);
	free(body);
	return id;
}

/* Three that come while another one is at work; what they read is the same, so that one waits for the other. */
static void jobs_that_wait_together_run_together_and_each_comes_to_its_own_end(void **state)
{
	static const char *const corpora[] = {"first", "b", "c", "d"};
	static const enum job_state ends[] = {JOB_DONE, JOB_DONE, JOB_CANCELLED, JOB_DONE};
	struct daemon_process *d = *state;
	struct answer whole = {0}, midst = {0};
	char *ids[4];
	struct err err;

	assert_int_equal(ingest(d, "lines"), JOB_DONE);
	assert_int_equal(ask(d, "lines", 12, &whole, &err), 0);
	for (int i = 0; i < 4; i++)
		ids[i] = submit(d, corpora[i]);
	json_decref(request(d, API_JOB_CANCEL, ids[2], ""));
	assert_int_equal(ask(d, "lines", 12, &midst, &err), 0);
	assert_string_equal(midst.text, whole.text);
	for (int i = 0; i < 4; i++) {
		struct api_job job = {0};
		struct answer a = {0};

		if (client_stream(d->client, API_JOB_EVENTS, ids[i], NULL, until_job_ends, &job, NULL, &err))
			fail_msg("%s", err.text);
		assert_int_equal(job.state, ends[i]);
		api_job_clear(&job);
		free(ids[i]);
		assert_int_equal(ask(d, corpora[i], 12, &a, &err), ends[i] == JOB_DONE ? 0 : -1);
		assert_string_equal(a.text, ends[i] == JOB_DONE ? whole.text : "");
	}
	stop(d);
}

static int count_threads(pid_t pid)
{
	char *path = xasprintf("/proc/%d/task", (int)pid);
	DIR *dir = opendir(path);
	int n = 0;

	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));)
		n += e->d_name[0] != '.';
	closedir(dir);
	free(path);
	return n;
}

/* Restart with these settings; returns the threads of the whole daemon, and what its status says of the engine. */
static int engine_with(struct daemon_process *d, int64_t threads, const char *isa, json_t **status)
{
	stop(d);
	d->config.compute.threads = threads;
	free(d->config.compute.isa);
	d->config.compute.isa = xstrdup(isa);
	start(d);
	wait_until_ready(d);
	*status = request(d, API_STATUS, NULL, NULL);
	return count_threads(d->pid);
}

static void the_engine_has_the_threads_and_the_instructions_of_the_configuration(void **state)
{
	struct daemon_process *d = *state;
	json_t *status, *engine;
	int with_one, with_four;

	with_one = engine_with(d, 1, "auto", &status);
	engine = json_object_get(status, "engine");
	assert_int_equal(json_integer_value(json_object_get(engine, "threads")), 1);
	json_decref(status);
	with_four = engine_with(d, 4, "scalar", &status);
	engine = json_object_get(status, "engine");
	assert_int_equal(json_integer_value(json_object_get(engine, "threads")), 4);
	assert_string_equal(json_string_value(json_object_get(engine, "isa")), "scalar");
	json_decref(status);
	assert_int_equal(with_four, with_one + 3);
	stop(d);
}

static int64_t of_experts(struct daemon_process *d, const char *key)
{
	json_t *status = request(d, API_STATUS, NULL, NULL);
	const json_t *n = json_object_get(json_object_get(status, "experts"), key);
	int64_t value = json_integer_value(n);

	assert_true(json_is_integer(n));
	json_decref(status);
	return value;
}

static void wait_for_warmed(struct daemon_process *d, int64_t n)
{
	const struct timespec pause = {0, 20000000};

	for (int i = 0; i < 1500 && of_experts(d, "warmed") < n; i++)
		nanosleep(&pause, NULL);
	assert_true(of_experts(d, "warmed") >= n);
}

/* A restart, then the first question, and what became of the experts that were there before it: `warmed` of them, all that there is
 * room for, or none. Returns how many of those that it wanted it found. */
static int64_t first_question(struct daemon_process *d, const char *corpus, bool warmed, struct answer *a)
{
	struct err err;

	start(d);
	wait_until_ready(d);
	if (warmed)
		wait_for_warmed(d, of_experts(d, "slots"));
	assert_int_equal(of_experts(d, "warmed"), warmed ? of_experts(d, "slots") : 0);
	assert_int_equal(of_experts(d, "taken"), 0);
	if (ask(d, corpus, 12, a, &err))
		fail_msg("%s", err.text);
	return of_experts(d, "hits");
}

static void the_experts_that_a_corpus_chose_are_there_before_its_first_question(void **state)
{
	struct daemon_process *d = *state;
	struct answer all = {0}, with = {0}, without = {0}, damaged = {0};
	int64_t hits, cold;
	struct err err;

	assert_int_equal(ingest(d, "lines"), JOB_DONE);
	assert_int_equal(ask(d, "lines", 12, &all, &err), 0);
	stop(d);
	d->config.tiers.host_expert_bytes = 1 << 19;

	hits = first_question(d, "lines", true, &with);
	assert_true(of_experts(d, "warmed_used") > 0);
	assert_string_equal(with.text, all.text);
	stop(d);
	change_index(d->config.store.path, "UPDATE routing SET n_tokens = 1"); /* a wrong row is as good as none */
	first_question(d, "lines", false, &damaged);
	assert_string_equal(damaged.text, all.text);
	stop(d);
	change_index(d->config.store.path, "DELETE FROM routing");
	cold = first_question(d, "lines", false, &without);
	assert_string_equal(without.text, all.text);
	stop(d);

	/* What an ingest has just counted, too. */
	free(temp_text(d->dir, "source/0.txt", "what stands before all the others has changed\n"));
	start(d);
	wait_until_ready(d);
	assert_int_equal(ingest(d, "others"), JOB_DONE);
	wait_for_warmed(d, 1);
	stop(d);
	print_message("wanted experts that the first question found: %lld, without warming %lld\n", (long long)hits, (long long)cold);
	assert_true(hits > cold);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(an_answer_survives_a_restart_and_costs_only_the_question),
		CASE(a_corpus_that_was_asked_makes_room_for_an_ingest),
		CASE(clients_that_leave_early_leave_nothing_behind),
		CASE(refusals_come_with_their_code_and_their_words),
		CASE(a_stop_in_the_middle_of_an_ingest_is_in_good_order),
		CASE(jobs_that_wait_together_run_together_and_each_comes_to_its_own_end),
		CASE(the_experts_that_a_corpus_chose_are_there_before_its_first_question),
		CASE(the_engine_has_the_threads_and_the_instructions_of_the_configuration),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
