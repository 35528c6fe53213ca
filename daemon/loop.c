/*
 * An ask, and a work of upkeep, is a `waiter` (waiter.h). Jobs run as running.h begins them; the others wait in jobs.sqlite.
 */
#include "daemon/loop.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "cache/cache.h"
#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "config/queue.h"
#include "daemon/api.h"
#include "daemon/http.h"
#include "daemon/jobs.h"
#include "daemon/listen.h"
#include "daemon/look.h"
#include "daemon/message.h"
#include "daemon/running.h"
#include "daemon/waiter.h"
#include "daemon/worker.h"

enum {
	TICK_MS = 500,
	STOP_MS = 1700,          /* the step in progress may end; then we go without it */
	LISTED_JOBS = 100,
	MESSAGES = 1024,         /* on their way to us */
};

struct loop {
	const struct config *config;
	struct listen *listen;
	struct http *http;
	struct jobs *jobs;
	struct worker *worker;
	struct queue *from_engine;
	struct cache_reader *reader;
	const struct tokenizer *tokenizer; /* the engine's, as long as it is not told to stop; NULL: no model */
	int epoll_fd, signal_fd, timer_fd, listen_fd;

	struct waiter *waiters;
	int64_t n_asks, last_ask_id;
	int n_upkeeps;           /* that the engine has */

	struct running *running; /* the jobs that do */

	struct api_status status;
	int64_t began_ms;
	bool stopping, engine_stopped;
	struct err broken;                /* what stands in the way of ever going on, and is the reason for stopping; else ERR_NONE */
	int64_t stop_ms;
};

/* The database under our feet fails: say so; the job itself goes on, and is found again at the next start. */
static void complain(const struct err *err)
{
	log_error("%s", err->text);
}

static void on_gone(void *ctx, struct exchange *x)
{
	(void)ctx;
	waiter_gone(exchange_user(x));
}

/* Jobs. */

/* A job as it stands now. */
static int get_job(struct loop *l, int64_t id, struct api_job *job, struct err *err)
{
	if (jobs_get(l->jobs, id, job, err))
		return -1;
	running_refresh(l->running, job);
	return 0;
}

static void tell_watchers(void *ctx, const struct api_job *job)
{
	struct loop *l = ctx;

	for (struct waiter *w = l->waiters, *next; w; w = next) {
		next = w->next;
		if (w->kind != WAITER_JOB || w->id != job->id || !w->x)
			continue;
		exchange_event(w->x, "job", api_dump(api_job_json(job)));
		if (job_has_ended(job->state))
			exchange_end(w->x);
	}
}

/* The jobs that may begin, if the engine has a model to do them with. */
static void start_jobs(struct loop *l)
{
	if (!l->stopping && l->status.model.state == MODEL_READY)
		running_start(l->running);
}

/* Requests. */

static const struct err *no_model(struct loop *l, struct err *err)
{
	const struct api_model_status *m = &l->status.model;

	if (m->state == MODEL_NONE)
		err_set(err, ERR_UNAVAILABLE,
			"there is no model: set model.path in the configuration to its directory, and restart the daemon");
	else if (m->state == MODEL_FAILED)
		err_set(err, ERR_UNAVAILABLE, "the model of model.path does not open: %s", m->error);
	else
		return NULL;
	return err;
}

static int open_reader(struct loop *l, struct err *err)
{
	return l->reader ? 0 : cache_reader_open(&l->reader, l->config->store.path, err);
}

static int find_corpus(struct loop *l, const char *name, struct cache_corpus **all, size_t *n, struct err *err)
{
	if (open_reader(l, err) || cache_list(l->reader, all, n, err))
		return -1;
	for (size_t i = 0; name && i < *n; i++)
		if (!strcmp((*all)[i].name, name))
			return (int)i;
	return (int)*n;
}

/* A corpus keeps its source: another directory under the same name would replace what somebody relies on. */
static int check_source(struct loop *l, const struct api_ingest *request, struct err *err)
{
	char *source = api_ingest_source(request);
	struct cache_corpus *all;
	size_t n;
	int i = find_corpus(l, request->corpus, &all, &n, err), result = i < 0 ? -1 : 0;

	if (i >= 0 && (size_t)i < n && strcmp(all[i].source, source))
		result = err_set(err, ERR_MISMATCH, "corpus %s was read from %s, not from %s: give the new one another name "
				 "with --as", request->corpus, all[i].source, source);
	if (i >= 0)
		cache_free_corpora(all, n);
	free(source);
	return result;
}

static int check_directory(const char *path, struct err *err)
{
	struct stat st;

	if (stat(path, &st))
		return err_errno(err, errno, "%s", path);
	return S_ISDIR(st.st_mode) ? 0 : err_set(err, ERR_USAGE, "%s is not a directory", path);
}

static void post_ingest(struct loop *l, struct exchange *x, const char *corpus)
{
	struct api_ingest request = {0};
	struct api_job job;
	struct err err;
	size_t bytes;
	const char *body = exchange_body(x, &bytes);
	char *location, name[32];
	int64_t id;

	if (api_ingest_parse(&request, corpus, body, bytes, &err)) {
		exchange_error(x, 0, &err);
		return;
	}
	if (no_model(l, &err) || check_directory(request.source, &err) || check_source(l, &request, &err) ||
	    jobs_add(l->jobs, &request, l->config->server.max_queue, &id, &err)) {
		exchange_error(x, 0, &err);
		api_ingest_clear(&request);
		return;
	}
	log_info("job j-%lld is accepted corpus=%s source=%s", (long long)id, request.corpus, request.source);
	api_ingest_clear(&request);
	start_jobs(l);
	if (get_job(l, id, &job, &err)) {
		exchange_error(x, 0, &err);
		return;
	}
	snprintf(name, sizeof name, "j-%lld", (long long)id);
	location = api_path(API_JOB, name);
	exchange_reply(x, 202, api_dump(api_job_json(&job)), "Location", location);
	free(location);
	api_job_clear(&job);
}

static void get_corpora(struct loop *l, struct exchange *x)
{
	json_t *root, *list;
	struct cache_corpus *all;
	struct err err;
	size_t n;

	if (find_corpus(l, NULL, &all, &n, &err) < 0) {
		exchange_error(x, 0, &err);
		return;
	}
	root = json_object();
	json_object_set_new(root, "corpora", list = json_array());
	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, api_corpus_json(&all[i]));
	cache_free_corpora(all, n);
	exchange_reply(x, 200, api_dump(root), NULL, NULL);
}

/* What is read of the store for people, though the engine has much to do. */
static void look(struct loop *l, struct exchange *x, enum api_route route, const char *arg)
{
	struct look model = {.tokenizer = l->tokenizer, .identity = l->status.model.identity,
			     .latents = l->status.engine.latents};
	json_t *reply;
	struct err err;
	size_t bytes;
	const char *body = exchange_body(x, &bytes);

	if (!l->tokenizer && !no_model(l, &model.no_tokenizer))
		err_set(&model.no_tokenizer, ERR_UNAVAILABLE, "the model is being loaded");
	if (open_reader(l, &err) || look_reply(&reply, &model, l->reader, route, arg, body, bytes, &err))
		exchange_error(x, 0, &err);
	else
		exchange_reply(x, 200, api_dump(reply), NULL, NULL);
}

static void get_jobs(struct loop *l, struct exchange *x)
{
	json_t *root, *array;
	struct api_job *list;
	struct err err;
	size_t n;

	if (jobs_list(l->jobs, LISTED_JOBS, &list, &n, &err)) {
		exchange_error(x, 0, &err);
		return;
	}
	root = json_object();
	json_object_set_new(root, "jobs", array = json_array());
	for (size_t i = 0; i < n; i++) {
		running_refresh(l->running, &list[i]);
		json_array_append_new(array, api_job_json(&list[i]));
		api_job_clear(&list[i]);
	}
	free(list);
	exchange_reply(x, 200, api_dump(root), NULL, NULL);
}

static void get_job_events(struct loop *l, struct exchange *x, const struct api_job *job)
{
	waiter_new(&l->waiters, x, WAITER_JOB, job->id);
	exchange_event(x, "job", api_dump(api_job_json(job)));
	if (job_has_ended(job->state))
		exchange_end(x);
}

static int cancel_job(struct loop *l, struct api_job *job, struct err *err)
{
	struct err reason;

	if (job_has_ended(job->state))
		return err_set(err, ERR_USAGE, "job j-%lld is %s already", (long long)job->id, job_state_name(job->state));
	if (running_cancel(l->running, job->id))
		return 0;
	err_set(&reason, ERR_CANCELLED, "cancelled");
	if (jobs_end(l->jobs, job->id, NULL, &reason, err))
		return -1;
	job->state = JOB_CANCELLED;
	job->finished_s = time(NULL);
	job->error = reason;
	tell_watchers(l, job);
	start_jobs(l); /* it may have been what they waited for */
	return 0;
}

/* The three routes that name a job. */
static void job_request(struct loop *l, struct exchange *x, enum api_route route, const char *name)
{
	struct api_job job = {0};
	struct err err;
	int64_t id;

	if (api_job_id_parse(&id, name, &err) || get_job(l, id, &job, &err)) {
		exchange_error(x, 0, &err);
		return;
	}
	if (route == API_JOB_EVENTS)
		get_job_events(l, x, &job);
	else if (route == API_JOB_CANCEL && cancel_job(l, &job, &err))
		exchange_error(x, 0, &err);
	else
		exchange_reply(x, 200, api_dump(api_job_json(&job)), NULL, NULL);
	api_job_clear(&job);
}

static void post_ask(struct loop *l, struct exchange *x)
{
	struct message *m = message_new(MESSAGE_ASK, ++l->last_ask_id);
	struct waiter *w;
	struct timespec now;
	struct err err;
	size_t bytes;
	const char *body = exchange_body(x, &bytes);
	int status = 0;

	if (api_ask_parse(&m->ask.request, body, bytes, &err) || no_model(l, &err))
		status = err_http_status(err.code);
	else if (l->n_asks >= l->config->server.max_queue)
		status = 429;
	if (status == 429)
		err_set(&err, ERR_BUSY, "%lld questions wait already: try again in a moment", (long long)l->n_asks);
	if (status) {
		exchange_error(x, status, &err);
		l->status.total.refused++;
		message_free(m);
		return;
	}
	w = waiter_new(&l->waiters, x, WAITER_ASK, m->id);
	w->engine_has_it = true;
	m->cancel = &w->cancel;
	clock_gettime(CLOCK_MONOTONIC, &now);
	m->ask.accepted_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
	l->n_asks++;
	if (queue_try_push(worker_queue(l->worker), m) != QUEUE_OK)
		abort(); /* it has room for max_queue asks */
}

/* Check, repair, remove, forget. The first two name no corpus in their path, take their time, and answer with events. */
static void post_upkeep(struct loop *l, struct exchange *x, enum upkeep_kind kind, const char *corpus)
{
	struct message *m = message_new(MESSAGE_UPKEEP, ++l->last_ask_id);
	struct waiter *w;
	struct err err;
	size_t bytes;
	const char *body = exchange_body(x, &bytes);
	int failed;

	failed = upkeep_parse(&m->upkeep, kind, body, kind == UPKEEP_REMOVE ? 0 : bytes, &err) ||
		 (corpus && api_check_corpus_name(corpus, &err));
	if (!failed && l->n_upkeeps == WORKER_UPKEEPS)
		failed = err_set(&err, ERR_BUSY, "%d works of upkeep wait already: try again in a moment", l->n_upkeeps);
	if (failed) {
		exchange_error(x, 0, &err);
		message_free(m);
		return;
	}
	if (corpus)
		snprintf(m->upkeep.corpus, sizeof m->upkeep.corpus, "%s", corpus);
	w = waiter_new(&l->waiters, x, WAITER_UPKEEP, m->id);
	w->engine_has_it = true;
	m->cancel = &w->cancel;
	l->n_upkeeps++;
	if (!corpus)
		exchange_event(x, "progress", xstrdup("{\"read_spans\":0}"));
	if (queue_try_push(worker_queue(l->worker), m) != QUEUE_OK)
		abort(); /* it has room for WORKER_UPKEEPS */
}

static void fill_status(struct loop *l)
{
	struct api_status *s = &l->status;
	struct err err;

	s->uptime_s = (clock_now_ms() - l->began_ms) / 1000;
	s->queue.asks = l->n_asks;
	s->queue.max_asks = l->config->server.max_queue;
	s->queue.jobs_running = running_n(l->running);
	s->queue.connections = (int64_t)http_n_connections(l->http);
	if (jobs_count(l->jobs, JOB_QUEUED, &s->queue.jobs_queued, &err))
		complain(&err);
}

static void get_readyz(struct loop *l, struct exchange *x)
{
	struct err err;

	if (l->status.model.state == MODEL_LOADING)
		err_set(&err, ERR_UNAVAILABLE, "the model is being loaded");
	else if (!no_model(l, &err)) {
		exchange_reply(x, 200, xstrdup("{\"ready\":true}"), NULL, NULL);
		return;
	}
	exchange_error(x, 0, &err);
}

static void on_request(void *ctx, struct exchange *x)
{
	struct loop *l = ctx;
	char arg[API_SNAPSHOT_BYTES];
	const char *allow;
	struct err err;
	int route = api_route_find(exchange_method(x), exchange_path(x), arg, &allow, &err);

	if (route >= 0 && l->stopping) {
		err_set(&err, ERR_UNAVAILABLE, "the daemon stops");
		exchange_error(x, 0, &err);
		return;
	}
	switch (route) {
	case API_INGEST:
		post_ingest(l, x, arg);
		break;
	case API_CORPORA:
		get_corpora(l, x);
		break;
	case API_FILES:
	case API_SNAPSHOTS:
	case API_SNAPSHOT:
	case API_TEXT:
	case API_DIFF:
		look(l, x, (enum api_route)route, arg);
		break;
	case API_JOBS:
		get_jobs(l, x);
		break;
	case API_JOB:
	case API_JOB_EVENTS:
	case API_JOB_CANCEL:
		job_request(l, x, (enum api_route)route, arg);
		break;
	case API_ASK:
		post_ask(l, x);
		break;
	case API_CHECK:
		post_upkeep(l, x, UPKEEP_CHECK, NULL);
		break;
	case API_REPAIR:
		post_upkeep(l, x, UPKEEP_REPAIR, NULL);
		break;
	case API_REMOVE:
		post_upkeep(l, x, UPKEEP_REMOVE, arg);
		break;
	case API_FORGET:
		post_upkeep(l, x, UPKEEP_FORGET, arg);
		break;
	case API_STATUS:
		fill_status(l);
		exchange_reply(x, 200, api_dump(api_status_json(&l->status)), NULL, NULL);
		break;
	case API_HEALTHZ:
		exchange_reply(x, 200, xstrdup("{\"ok\":true}"), NULL, NULL);
		break;
	case API_READYZ:
		get_readyz(l, x);
		break;
	default:
		if (allow)
			exchange_reply(x, 405, api_error_format(&err), "Allow", allow);
		else
			exchange_error(x, 0, &err);
	}
}

/* What the engine says. */

static void ask_event(struct loop *l, int64_t id, const char *name, json_t *data)
{
	struct waiter *w = waiter_find(l->waiters, WAITER_ASK, id);

	if (w && w->x)
		exchange_event(w->x, name, api_dump(data));
	else
		json_decref(data);
}

static json_t *phase_json(enum ask_phase phase, int64_t tokens)
{
	static const char *const names[] = {"queued", "load", "prefill"};
	json_t *o = json_object();

	json_object_set_new(o, "phase", json_string(names[phase]));
	if (phase != ASK_QUEUED)
		json_object_set_new(o, "tokens", json_integer(tokens));
	return o;
}

static void on_asked(struct loop *l, const struct message *m)
{
	struct waiter *w = waiter_find(l->waiters, WAITER_ASK, m->id);
	const struct api_usage *u = &m->asked.usage;
	struct err stop;

	l->n_asks--;
	w->engine_has_it = false;
	if (!m->err.code) {
		l->status.total.answered++;
		l->status.total.prompt_tokens += u->prompt_tokens;
		l->status.total.cached_tokens += u->cached_tokens;
		l->status.total.prefilled_tokens += u->prefilled_tokens;
		l->status.total.completion_tokens += u->completion_tokens;
		l->status.total.read_bytes += u->read_bytes;
		l->status.total.wanted_latents += u->wanted_latents;
		l->status.total.held_latents += u->held_latents;
	} else if (m->err.code == ERR_CANCELLED) {
		l->status.total.cancelled++;
	} else {
		l->status.total.refused++;
	}
	log_info("an ask ended code=%s prompt=%lld cached=%lld completion=%lld ttft_s=%.3f decode_s=%.3f",
		 err_code_name(m->err.code), (long long)u->prompt_tokens, (long long)u->cached_tokens,
		 (long long)u->completion_tokens, u->ttft_s, u->decode_s);
	if (w->x && m->err.code) {
		err_set(&stop, ERR_UNAVAILABLE, "the daemon stops");
		exchange_error(w->x, 0, l->stopping && m->err.code == ERR_CANCELLED ? &stop : &m->err);
	} else if (w->x) {
		exchange_event(w->x, "usage", api_dump(api_usage_json(u)));
		exchange_event(w->x, "done", xstrdup(m->asked.done));
		exchange_end(w->x);
	}
	waiter_free_if_over(w);
}

static void on_model(struct loop *l, const struct message *m)
{
	const char *path = l->status.model.path;
	char bytes[32];

	l->status.model = m->model.model;
	l->status.model.path = path;
	l->status.engine = m->model.engine;
	l->tokenizer = m->model.tokenizer;
	if (m->model.model.state == MODEL_READY) {
		snprintf(bytes, sizeof bytes, "%lld", (long long)m->model.model.loaded_bytes);
		log_info("the model is loaded architecture=%s context=%lld bytes=%s seconds=%.1f isa=%s threads=%d",
			 m->model.model.architecture, (long long)m->model.model.context_tokens, bytes,
			 m->model.model.load_s, m->model.engine.isa, m->model.engine.n_threads);
		if (m->model.model.no_renderer[0])
			log_warn("questions will be refused: %s", m->model.model.no_renderer);
	} else if (m->model.model.state == MODEL_FAILED) {
		log_error("the model does not open: %s", m->model.model.error);
	} else {
		log_warn("there is no model: set model.path in the configuration to answer questions and ingest");
	}
	start_jobs(l);
}

/* The engine finishes its step, everybody is told, and we go; after STOP_MS we go without it, which loses no more
 * than kill -9 would. */
static void stop(struct loop *l)
{
	if (l->stopping)
		return;
	log_info("the daemon stops");
	l->stopping = true;
	l->stop_ms = clock_now_ms() + STOP_MS;
	for (struct waiter *w = l->waiters; w; w = w->next)
		atomic_store(&w->cancel, true);
	running_cancel_all(l->running);
	queue_close(worker_queue(l->worker));
}

static void on_message(struct loop *l, struct message *m)
{
	json_t *text;

	switch (m->kind) {
	case MESSAGE_STORE:
		l->status.store.stats = m->store;
		break;
	case MESSAGE_EXPERTS:
		l->status.experts = m->experts;
		break;
	case MESSAGE_MODEL:
		on_model(l, m);
		break;
	case MESSAGE_PHASE:
		ask_event(l, m->id, "phase", phase_json(m->phase.phase, m->phase.tokens));
		break;
	case MESSAGE_TOKEN:
		text = json_object();
		json_object_set_new(text, "text", api_text(m->token.text, m->token.bytes));
		ask_event(l, m->id, "token", text);
		break;
	case MESSAGE_ASKED:
		on_asked(l, m);
		break;
	case MESSAGE_PROGRESS:
		running_progress(l->running, m);
		break;
	case MESSAGE_COUNTED:
		running_counted(l->running, m);
		break;
	case MESSAGE_INGESTED:
		running_ended(l->running, m, l->stopping);
		start_jobs(l);
		break;
	case MESSAGE_UPKEEP_PROGRESS:
		waiter_tell(waiter_find(l->waiters, WAITER_UPKEEP, m->id), m);
		break;
	case MESSAGE_UPKEPT:
		l->n_upkeeps--;
		waiter_end(waiter_find(l->waiters, WAITER_UPKEEP, m->id), m, l->stopping);
		break;
	case MESSAGE_BROKEN:
		log_error("the daemon ends, so that another can be started: %s", m->err.text);
		l->broken = m->err;
		stop(l);
		break;
	case MESSAGE_STOPPED:
		l->engine_stopped = true;
		break;
	default:
		abort(); /* not a message for the loop */
	}
	message_free(m);
}

static void drain(struct loop *l)
{
	void *m;

	while (queue_try_pop(l->from_engine, &m) == QUEUE_OK)
		on_message(l, m);
}

/* Time and signals. */

static void tick(struct loop *l)
{
	int64_t now = clock_now_ms();

	/* A question that waits longer than a client should be left in the dark becomes a stream now, and its refusal, if
	 * it comes to that, an event. */
	for (struct waiter *w = l->waiters, *next; w; w = next) {
		next = w->next;
		if (w->kind == WAITER_ASK && w->x && w->engine_has_it && !exchange_is_stream(w->x) &&
		    now - w->since_ms >= HTTP_KEEPALIVE_MS)
			exchange_event(w->x, "phase", api_dump(phase_json(ASK_QUEUED, 0)));
	}
	http_tick(l->http, now);
}

static void on_signal(struct loop *l)
{
	struct signalfd_siginfo info;

	while (read(l->signal_fd, &info, sizeof info) == sizeof info)
		stop(l);
}

static void on_timer(struct loop *l)
{
	uint64_t n;

	if (read(l->timer_fd, &n, sizeof n) == sizeof n)
		tick(l);
}

static int watch(struct loop *l, int fd, struct err *err)
{
	struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};

	return epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &e) ? err_errno(err, errno, "watch a file descriptor") : 0;
}

static int64_t min_wait(int64_t a, int64_t b)
{
	return a < 0 ? b : b < 0 ? a : a < b ? a : b;
}

static void run(struct loop *l)
{
	struct epoll_event events[16];

	while (!l->engine_stopped && !(l->stopping && clock_now_ms() >= l->stop_ms)) {
		int64_t wait = http_timeout_ms(l->http);
		int n;

		if (l->stopping)
			wait = min_wait(wait, l->stop_ms - clock_now_ms() > 0 ? l->stop_ms - clock_now_ms() : 0);
		n = epoll_wait(l->epoll_fd, events, 16, (int)min_wait(wait, 60000));
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == l->signal_fd)
				on_signal(l);
			else if (events[i].data.fd == l->timer_fd)
				on_timer(l);
			else if (events[i].data.fd == l->listen_fd)
				http_accept(l->http);
		}
		drain(l);
		http_run(l->http);
	}
}

/* Start and end. */

static int open_descriptors(struct loop *l, struct err *err)
{
	struct itimerspec every = {.it_interval.tv_nsec = TICK_MS * 1000000L, .it_value.tv_nsec = TICK_MS * 1000000L};
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL); /* before any thread is made, so that all of them have it */
	signal(SIGPIPE, SIG_IGN);
	l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	l->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (l->epoll_fd < 0 || l->signal_fd < 0 || l->timer_fd < 0 || timerfd_settime(l->timer_fd, 0, &every, NULL))
		return err_errno(err, errno, "open the loop's file descriptors");
	return watch(l, l->signal_fd, err) || watch(l, l->timer_fd, err) ? -1 : 0;
}

/* The store's lock says whether it is ours, and jobs.sqlite lies in it: so its opening is waited for. */
static int wait_for_store(struct loop *l, struct err *err)
{
	void *message;
	struct message *m;
	int result = 0;

	if (queue_pop(l->from_engine, &message) != QUEUE_OK)
		return err_set(err, ERR_FAILED, "the engine thread ended");
	m = message;
	l->status.store.stats = m->store;
	if (m->err.code) {
		*err = m->err;
		result = -1;
	}
	message_free(m);
	return result;
}

static int begin(struct loop *l, struct err *err)
{
	struct http_options opt = {.body_bytes = API_BODY_BYTES, .ctx = l, .request = on_request, .gone = on_gone};

	if (queue_new(&l->from_engine, MESSAGES, err) ||
	    worker_start(&l->worker, l->config, l->from_engine, err) || wait_for_store(l, err) ||
	    jobs_open(&l->jobs, l->config->store.path, err) || listen_begin(l->listen, &l->listen_fd, err))
		return -1;
	l->running = running_new(l->jobs, worker_queue(l->worker), tell_watchers, l);
	opt.listen_fd = l->listen_fd;
	if (http_open(&l->http, &opt, err)) {
		close(l->listen_fd);
		return -1;
	}
	return watch(l, l->listen_fd, err) || watch(l, http_epoll_fd(l->http), err) ||
			       watch(l, queue_fd(l->from_engine), err)
		       ? -1
		       : 0;
}

/* Until the engine thread has said its last word; only then may it be joined. */
static void wait_for_engine(struct loop *l)
{
	void *m;

	if (!l->worker)
		return;
	queue_close(worker_queue(l->worker));
	while (!l->engine_stopped && queue_pop(l->from_engine, &m) == QUEUE_OK)
		on_message(l, m);
	worker_join(l->worker);
}

static void close_waiters(struct loop *l)
{
	while (l->waiters) {
		struct waiter *w = l->waiters;

		w->x = NULL;
		w->engine_has_it = false;
		waiter_free_if_over(w);
	}
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

int loop_run(const struct config *config, const char *socket_path, struct err *err)
{
	struct loop l = {.config = config, .epoll_fd = -1, .signal_fd = -1, .timer_fd = -1, .listen_fd = -1};
	int result = 0;

	umask(077);
	l.began_ms = clock_now_ms();
	l.status.pid = getpid();
	l.status.socket = socket_path;
	l.status.store.dir = config->store.path;
	l.status.model.path = config->model.path;
	l.status.model.state = config->model.path ? MODEL_LOADING : MODEL_NONE;
	if (listen_open(&l.listen, socket_path, err) || open_descriptors(&l, err) || begin(&l, err)) {
		result = -1;
	} else {
		log_info("ready version=%s socket=%s store=%s", QUIRE_VERSION, socket_path, config->store.path);
		run(&l);
	}
	l.stopping = true;
	http_close(l.http);
	if (!result && !l.engine_stopped) {
		running_put_back(l.running);
		log_info("stopped in the middle of a step: it is done again at the next start");
		jobs_close(l.jobs);
		listen_close(l.listen);
		_exit(err_exit_status(l.broken.code));
	}
	wait_for_engine(&l);
	queue_free(l.from_engine, message_free);
	close_waiters(&l);
	running_free(l.running);
	cache_reader_close(l.reader);
	jobs_close(l.jobs);
	listen_close(l.listen);
	close_fd(l.epoll_fd);
	close_fd(l.signal_fd);
	close_fd(l.timer_fd);
	if (!result && l.broken.code != ERR_NONE) {
		*err = l.broken;
		result = -1;
	}
	return result;
}
