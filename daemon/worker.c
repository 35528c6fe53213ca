#include "daemon/worker.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/cache.h"
#include "cache/check.h"
#include "cache/history.h"
#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "daemon/cite.h"
#include "daemon/ingesting.h"
#include "daemon/message.h"
#include "daemon/upkeep.h"
#include "daemon/warming.h"
#include "daemon/worker_inside.h"
#include "engine/engine.h"
#include "engine/experts.h"
#include "engine/model.h"
#include "engine/recall.h"
#include "engine/render.h"
#include "engine/sample.h"
#include "engine/tokenizer.h"
#include "offload/accelerator.h"

/* A question is computed in pieces of this many tokens, so that a cancelled one stops soon. The bits do not depend
 * on it. */
enum { PREFILL_CHUNK = 128 };

bool worker_is_cancelled(const struct message *m)
{
	return atomic_load(m->cancel);
}

/* The loop drains its queue to the last message: this can only wait, not fail. */
void worker_tell(struct worker *w, struct message *m)
{
	if (queue_push(w->to_loop, m) != QUEUE_OK)
		message_free(m);
}

void worker_tell_experts(struct worker *w)
{
	struct message *m;

	if (!w->opened.model || !w->opened.model->experts)
		return;
	m = message_new(MESSAGE_EXPERTS, 0);
	experts_stats(w->opened.model->experts, &m->experts);
	worker_tell(w, m);
}

void worker_tell_numbers(struct worker *w)
{
	struct message *m = message_new(MESSAGE_STORE, 0);

	cache_stats(w->cache, &m->store);
	worker_tell(w, m);
	worker_tell_experts(w);
}

bool worker_is_broken(struct worker *w)
{
	struct accelerator *device = w->opened.engine ? engine_device(w->opened.engine) : NULL;
	struct message *m;
	struct err err;

	if (!device || w->broken || !accelerator_check(device, &err))
		return w->broken;
	w->broken = true;
	m = message_new(MESSAGE_BROKEN, 0);
	m->err = err;
	worker_tell(w, m);
	return true;
}

void worker_drop_held(struct worker *w)
{
	session_free(w->session);
	w->session = NULL;
	recall_close(w->recall);
	w->recall = NULL;
	lines_free(w->lines);
	w->lines = NULL;
	cache_free_snapshot(w->held);
	w->held = NULL;
	cache_pin(w->cache, NULL);
}

/* An ingest needs its room, and steps of one are made between two questions. */
static void let_go(void *ctx)
{
	struct worker *w = ctx;

	log_info("corpus %s was asked last and is held no longer: an ingest needs its room", w->held->corpus);
	worker_drop_held(w);
}

/* An ask. */

static void tell_phase(struct worker *w, const struct message *ask, enum ask_phase phase, int64_t tokens)
{
	struct message *m = message_new(MESSAGE_PHASE, ask->id);

	m->phase.phase = phase;
	m->phase.tokens = tokens;
	worker_tell(w, m);
}

/* The bytes in `text`, if there are any, and leave it empty. */
static void tell_text(struct worker *w, struct message *end, struct bytes *text)
{
	struct message *m;

	if (!text->n)
		return;
	bytes_append(&end->asked.answer, text->data, text->n);
	m = message_new(MESSAGE_TOKEN, end->id);
	m->token.text = text->data;
	m->token.bytes = text->n;
	*text = (struct bytes){0};
	worker_tell(w, m);
}

/* Make w->held this snapshot of the corpus, 0: the current one; its session may still be loaded. */
static int hold_corpus(struct worker *w, const char *corpus, int64_t id, struct err *err)
{
	struct cache_snapshot *snapshot;

	if (w->held && !strcmp(w->held->corpus, corpus) && (id ? w->held->id == id : w->held->is_current))
		return 0;
	if (cache_load_snapshot_of(w->cache, corpus, id, &snapshot, err))
		return -1;
	worker_drop_held(w);
	w->held = snapshot;
	cache_pin(w->cache, corpus);
	cache_pin_former(w->cache, snapshot->is_current ? 0 : snapshot->id);
	return 0;
}

static int check_identity(struct worker *w, struct err *err)
{
	uint8_t identity[MODEL_ID_BYTES];
	char ours[17], theirs[17];

	engine_identity(w->opened.engine, w->opened.model, w->opened.latents, identity);
	if (!memcmp(identity, w->held->identity, sizeof identity))
		return 0;
	return err_set(err, ERR_MISMATCH, "corpus %s was made by another model or with other settings (identity %s, and "
		       "this daemon's is %s): make it again with `quire ingest %s --as %s`", w->held->corpus,
		       engine_identity_name(theirs, w->held->identity), engine_identity_name(ours, identity), w->held->source, w->held->corpus);
}

/* The corpus's tokens in w->session, and nothing behind them. *before: what the session had cost until then. */
static int load_session(struct worker *w, const struct message *ask, struct recall_stats *before, struct api_usage *usage,
			struct err *err)
{
	const struct session_options opt = {.latents = w->opened.latents, .max_tokens = w->opened.context_tokens};
	const struct recall_options recall = {w->opened.engine, w->opened.model, w->opened.latents, w->opened.latent_bytes};
	int64_t began = clock_now_ns();
	struct err ignored;

	if (!w->session) {
		/* What is evicted first, should the store come to its limit; the answer does not depend on it. */
		if (cache_touch(w->cache, w->held->corpus, (int64_t)time(NULL), &ignored))
			log_warn("cannot note that corpus %s is used: %s", w->held->corpus, ignored.text);
		tell_phase(w, ask, ASK_LOAD, w->held->n_tokens);
		warming_expect(w, w->held->corpus, w->held->id);
		if (session_new(&w->session, w->opened.engine, w->opened.model, &opt, err) ||
		    recall_open(&w->recall, w->session, &recall, w->cache, w->held, w->held->n_tokens, err)) {
			if (err->code == ERR_TOO_LARGE && w->config->context.latent_cache_bytes)
				err_wrap(err, "with context.latent_cache: %lld", (long long)w->config->context.latent_cache_bytes);
			worker_drop_held(w);
			return -1;
		}
		usage->loaded_tokens = w->held->n_tokens;
	} else {
		recall_count(w->recall, before);
	}
	usage->load_s = clock_seconds_since(began);
	return 0;
}

/* What an answer has cost of the store, now that it is there. Damage may have been found at any of its tokens. */
static void count_recall(struct worker *w, const struct recall_stats *before, struct api_usage *usage)
{
	struct recall_stats now;

	recall_count(w->recall, &now);
	usage->recomputed_tokens = now.recomputed_tokens - before->recomputed_tokens;
	usage->cached_tokens = w->held->n_tokens - usage->recomputed_tokens;
	if (usage->loaded_tokens)
		usage->loaded_tokens -= usage->recomputed_tokens;
	usage->read_bytes = now.read_bytes - before->read_bytes;
	usage->wanted_latents = now.gathers.wanted - before->gathers.wanted;
	usage->held_latents = now.gathers.hits - before->gathers.hits;
}

static int cancelled(const struct message *ask, struct err *err)
{
	return worker_is_cancelled(ask) ? err_set(err, ERR_CANCELLED, "cancelled") : 0;
}

static int prefill(struct worker *w, const struct message *ask, const struct ids *ids, struct err *err)
{
	tell_phase(w, ask, ASK_PREFILL, (int64_t)ids->n);
	for (size_t i = 0; i < ids->n; i += PREFILL_CHUNK) {
		size_t n = ids->n - i < PREFILL_CHUNK ? ids->n - i : PREFILL_CHUNK;

		if (cancelled(ask, err) ||
		    recall_append(w->recall, ids->id + i, n, i + n == ids->n ? w->logits : NULL, NULL, err))
			return -1;
	}
	return 0;
}

static double number(const struct api_ask *a, enum api_number n, double otherwise)
{
	return a->given[n] ? a->numbers[n] : otherwise;
}

/* The checkpoint says which ids end an answer, and so does the renderer. */
static bool is_stop(const struct worker *w, int32_t id)
{
	const struct model_config *c = &w->opened.model->config;
	size_t n;
	const int32_t *stops = renderer_stop_ids(w->opened.renderer, &n);

	for (size_t i = 0; i < n; i++)
		if (stops[i] == id)
			return true;
	for (int i = 0; i < c->n_eos; i++)
		if (c->eos[i] == id)
			return true;
	return false;
}

/* Sample and append until a stop id or max_tokens; text goes out as it becomes whole. */
static int generate(struct worker *w, const struct message *ask, int64_t max_tokens, struct message *end,
		    struct err *err)
{
	const struct api_ask *a = &ask->ask.request;
	struct sample_options opt = {
		.temperature = (float)number(a, API_TEMPERATURE, w->config->query.temperature),
		.top_p = (float)number(a, API_TOP_P, w->config->query.top_p),
		.top_k = (int32_t)number(a, API_TOP_K, (double)w->config->query.top_k),
		.min_p = (float)number(a, API_MIN_P, w->config->query.min_p),
		.seed = (uint64_t)number(a, API_SEED, (double)w->config->query.seed),
	};
	struct sampler *sampler = sampler_new(&opt, w->opened.tokenizer, w->opened.model->config.vocab);
	struct text_stream stream = {0};
	struct bytes text = {0};
	int64_t first_ns = 0;
	int failed = 0;

	end->asked.finish = "length";
	while (!failed) {
		int32_t id;
		const char *piece;
		size_t n;

		if ((failed = cancelled(ask, err)) || (failed = sampler_next(sampler, w->logits, &id, err)))
			break;
		if (!first_ns) {
			first_ns = clock_now_ns();
			end->asked.usage.ttft_s = clock_seconds_since(ask->ask.accepted_ns);
		}
		if (is_stop(w, id)) {
			end->asked.finish = "stop";
			break;
		}
		end->asked.usage.completion_tokens++;
		piece = tokenizer_piece(w->opened.tokenizer, id, &n);
		if (piece && !tokenizer_is_special(w->opened.tokenizer, id))
			text_stream_push(&stream, &text, piece, n);
		tell_text(w, end, &text);
		if (id == renderer_think_end(w->opened.renderer))
			end->asked.thought = end->asked.answer.n;
		if (end->asked.usage.completion_tokens >= max_tokens)
			break;
		failed = recall_append(w->recall, &id, 1, w->logits, NULL, err);
	}
	text_stream_end(&stream, &text);
	tell_text(w, end, &text);
	bytes_free(&text);
	sampler_free(sampler);
	end->asked.usage.decode_s = first_ns ? clock_seconds_since(first_ns) : 0;
	return failed;
}

/* What fits: all that was asked for, or a refusal; a default gives way to the room there is. */
static int check_room(struct worker *w, const struct api_ask *a, int64_t question_tokens, int64_t *max_tokens,
		      struct err *err)
{
	int64_t room = w->opened.context_tokens - w->held->n_tokens - question_tokens;

	*max_tokens = (int64_t)number(a, API_MAX_TOKENS, (double)w->config->query.max_tokens);
	if (!a->given[API_MAX_TOKENS] && room >= 1 && *max_tokens > room)
		*max_tokens = room;
	if (*max_tokens <= room)
		return 0;
	return err_set(err, ERR_TOO_LARGE, "the context holds %lld tokens: corpus %s has %lld, the question %lld, and the "
		       "answer may have %lld", (long long)w->opened.context_tokens, w->held->corpus, (long long)w->held->n_tokens,
		       (long long)question_tokens, (long long)*max_tokens);
}

static int answer(struct worker *w, const struct message *ask, struct message *end, struct err *err)
{
	const struct api_ask *a = &ask->ask.request;
	struct api_usage *usage = &end->asked.usage;
	struct recall_stats before = {0};
	struct ids ids = {0};
	int64_t max_tokens;
	int failed;

	if (w->no_model.code) {
		*err = w->no_model;
		return -1;
	}
	if (!w->opened.renderer) {
		*err = w->opened.no_renderer;
		return -1;
	}
	if (cancelled(ask, err) || hold_corpus(w, a->corpus, a->snapshot, err) || check_identity(w, err))
		return -1;
	failed = render_question(w->opened.renderer, &ids, a->question, strlen(a->question), a->think, err) ||
		 check_room(w, a, (int64_t)ids.n, &max_tokens, err) || load_session(w, ask, &before, usage, err) ||
		 prefill(w, ask, &ids, err) || generate(w, ask, max_tokens, end, err);
	if (w->recall)
		count_recall(w, &before, usage);
	usage->prefilled_tokens = (int64_t)ids.n + usage->recomputed_tokens;
	usage->prompt_tokens = usage->cached_tokens + usage->prefilled_tokens;
	if (w->session)
		session_truncate(w->session, w->held->n_tokens);
	if (!failed)
		end->asked.done = cite_answer(end->asked.finish, &end->asked.answer, end->asked.thought, &w->lines,
					      w->opened.tokenizer, w->held);
	ids_free(&ids);
	return failed ? -1 : 0;
}

static void take_ask(struct worker *w, struct message *ask)
{
	struct message *end = message_new(MESSAGE_ASKED, ask->id);

	if (answer(w, ask, end, &end->err) && !end->err.code)
		err_set(&end->err, ERR_FAILED, "the answer failed, and nobody said why");
	if (end->err.code && end->err.code != ERR_CANCELLED)
		err_wrap(&end->err, "cannot answer");
	message_free(ask);
	worker_tell_numbers(w);
	worker_tell(w, end);
}

/* Upkeep of the store. */

static void end_upkeep(struct worker *w, struct message *u, json_t *report, const struct err *err)
{
	struct message *m = message_new(MESSAGE_UPKEPT, u->id);

	if (report)
		m->report = api_dump(report);
	else
		m->err = *err;
	if (u == w->upkeep) {
		cache_check_free(w->check);
		w->check = NULL;
		w->upkeep = NULL;
	}
	message_free(u);
	worker_tell_numbers(w);
	worker_tell(w, m);
}

static void remove_corpus(struct worker *w, struct message *u)
{
	const char *corpus = u->upkeep.corpus;
	struct cache_stats before, after;
	struct err err = {0};
	json_t *report = NULL;

	cache_stats(w->cache, &before);
	if (!ingesting_none(w->ingesting, corpus, &err) && !cache_drop_corpus(w->cache, corpus, &err)) {
		if (w->held && !strcmp(w->held->corpus, corpus))
			worker_drop_held(w);
		cache_stats(w->cache, &after);
		log_info("corpus %s is removed bytes=%lld", corpus, (long long)(before.used_bytes - after.used_bytes));
		report = json_pack("{s:s, s:I}", "removed", corpus, "freed_bytes",
				   (json_int_t)(before.used_bytes - after.used_bytes));
	}
	end_upkeep(w, u, report, &err);
}

static void forget_snapshots(struct worker *w, struct message *u)
{
	const struct upkeep *k = &u->upkeep;
	struct cache_stats before, after;
	struct err err = {0};
	json_t *report = NULL, *ids;
	int64_t *gone;
	size_t n;

	cache_stats(w->cache, &before);
	if (!cache_forget(w->cache, k->corpus, k->snapshots, k->n_snapshots, k->keep, &gone, &n, &err)) {
		ids = json_array();
		for (size_t i = 0; i < n; i++) {
			json_array_append_new(ids, json_integer(gone[i]));
			if (w->held && w->held->id == gone[i])
				worker_drop_held(w);
		}
		free(gone);
		cache_stats(w->cache, &after);
		log_info("former snapshots of corpus %s are forgotten n=%zu bytes=%lld", k->corpus, n,
			 (long long)(before.used_bytes - after.used_bytes));
		report = json_pack("{s:s, s:o, s:I}", "corpus", k->corpus, "forgotten", ids, "freed_bytes",
				   (json_int_t)(before.used_bytes - after.used_bytes));
	}
	end_upkeep(w, u, report, &err);
}

static void take_upkeep(struct worker *w, struct message *u)
{
	bool repair = u->upkeep.kind == UPKEEP_REPAIR;
	const struct cache_check_options opt = {
		.corpus = *u->upkeep.corpus ? u->upkeep.corpus : NULL,
		.read_share = repair ? 1 : u->upkeep.read_percent / 100,
		.seed = (uint64_t)u->upkeep.seed,
	};
	struct err err = {0};

	if (u->upkeep.kind == UPKEEP_REMOVE) {
		remove_corpus(w, u);
	} else if (u->upkeep.kind == UPKEEP_FORGET) {
		forget_snapshots(w, u);
	} else if (w->upkeep) {
		err_set(&err, ERR_BUSY, "the store is being checked already: try again when that is over");
		end_upkeep(w, u, NULL, &err);
	} else if ((repair && ingesting_none(w->ingesting, NULL, &err)) || cache_check_begin(&w->check, w->cache, &opt, &err)) {
		end_upkeep(w, u, NULL, &err);
	} else {
		w->upkeep = u;
		w->upkeep_told_ms = 0;
	}
}

/* What a check has found is mended at once, and an ingest that has begun meanwhile goes before. */
static void end_check(struct worker *w)
{
	const struct cache_check_report *r = cache_check_report(w->check);
	struct cache_repair_report repaired;
	struct err err = {0};
	json_t *report = NULL;

	if (r->n_damaged)
		log_warn("a check of the store has found damage findings=%lld first=\"%s\"", (long long)r->n_damaged,
			 r->n_findings ? r->findings[0].text : "");
	if (w->upkeep->upkeep.kind == UPKEEP_CHECK) {
		report = upkeep_check_json(r);
	} else if (!ingesting_none(w->ingesting, NULL, &err) && !cache_repair(w->cache, w->check, &repaired, &err)) {
		report = upkeep_repair_json(r, &repaired);
		log_info("the store is repaired quarantined=%lld lost=%lld corpora=%zu", (long long)repaired.quarantined_spans,
			 (long long)repaired.lost_spans, repaired.n_corpora);
		cache_repair_clear(&repaired);
		worker_drop_held(w); /* what it holds may be gone from the store */
	}
	end_upkeep(w, w->upkeep, report, &err);
}

static void step_upkeep(struct worker *w)
{
	struct err err = {0};
	struct message *m;
	int more = 1;

	if (worker_is_cancelled(w->upkeep))
		more = err_set(&err, ERR_CANCELLED, "cancelled");
	else
		more = cache_check_step(w->check, &err);
	if (more < 0) {
		end_upkeep(w, w->upkeep, NULL, &err);
	} else if (!more) {
		end_check(w);
	} else if (clock_now_ms() - w->upkeep_told_ms >= WORKER_PROGRESS_MS) {
		const struct cache_check_report *r = cache_check_report(w->check);

		w->upkeep_told_ms = clock_now_ms();
		m = message_new(MESSAGE_UPKEEP_PROGRESS, w->upkeep->id);
		m->report = api_dump(json_pack("{s:I, s:I}", "read_spans", (json_int_t)r->read_spans, "to_read",
					       (json_int_t)r->to_read));
		worker_tell(w, m);
	}
}

/* The engine thread. */

/* Tells how it went; without a model the thread goes on. */
static void begin(struct worker *w)
{
	struct message *m = message_new(MESSAGE_MODEL, 0);
	struct err err = {0};

	if (!w->config->model.path) {
		err_set(&w->no_model, ERR_UNAVAILABLE,
			"there is no model: set model.path in the configuration to its directory, and restart");
		m->model.model.state = MODEL_NONE;
	} else if (opened_make(&w->opened, w->config, &m->model.model, &m->model.engine, &err)) {
		err_set(&w->no_model, ERR_UNAVAILABLE, "the model of model.path does not open: %s", err.text);
		snprintf(m->model.model.error, sizeof m->model.model.error, "%s", err.text);
		m->model.model.state = MODEL_FAILED;
	} else {
		w->logits = xcalloc((size_t)w->opened.model->config.vocab, sizeof *w->logits);
		m->model.model.state = MODEL_READY;
		m->model.tokenizer = w->opened.tokenizer;
	}
	worker_tell_experts(w); /* before anybody hears that the model is ready */
	worker_tell(w, m);
	warming_expect_last(w);
}

static void take(struct worker *w, struct message *m)
{
	switch (m->kind) {
	case MESSAGE_ASK:
		take_ask(w, m);
		break;
	case MESSAGE_INGEST:
		ingesting_take(w->ingesting, m);
		break;
	case MESSAGE_PREPARED:
		ingesting_prepared(w->ingesting, m);
		break;
	case MESSAGE_UPKEEP:
		take_upkeep(w, m);
		break;
	default:
		assert(!"a message that is not for the engine");
	}
}

static void work(struct worker *w)
{
	for (;;) {
		void *m;
		bool busy = w->upkeep || ingesting_can_step(w->ingesting);
		enum queue_state state = busy ? queue_try_pop(w->in, &m) : warming_wait(w, &m);

		if (state == QUEUE_CLOSED)
			break;
		if (state == QUEUE_OK) {
			take(w, m);
			(void)worker_is_broken(w);
			continue;
		}
		if (w->upkeep)
			step_upkeep(w);
		if (ingesting_can_step(w->ingesting))
			ingesting_step(w->ingesting);
		(void)worker_is_broken(w);
	}
}

static void *run_engine_thread(void *ctx)
{
	struct worker *w = ctx;
	struct message *m = message_new(MESSAGE_STORE, 0);
	struct err err;

	if (cache_open(&w->cache, w->config->store.path, &m->err)) {
		worker_tell(w, m);
	} else {
		cache_set_limit(w->cache, w->config->store.max_bytes);
		cache_on_shortage(w->cache, let_go, w);
		cache_keep_snapshots(w->cache, w->config->store.keep_snapshots);
		cache_stats(w->cache, &m->store);
		worker_tell(w, m);
		begin(w);
		work(w);
	}
	ingesting_stop(w->ingesting);
	if (w->upkeep) {
		err_set(&err, ERR_CANCELLED, "the daemon stops");
		end_upkeep(w, w->upkeep, NULL, &err);
	}
	if (w->cache)
		worker_drop_held(w);
	free(w->logits);
	opened_close(&w->opened);
	cache_close(w->cache);
	worker_tell(w, message_new(MESSAGE_STOPPED, 0));
	return NULL;
}

int worker_start(struct worker **out, const struct config *config, struct queue *to_loop, struct err *err)
{
	struct worker *w = xcalloc(1, sizeof *w);
	int number;

	w->config = config;
	w->to_loop = to_loop;
	/* Beside the asks, the ingests, and the same ingests prepared. */
	if (queue_new(&w->in, (size_t)config->server.max_queue + 2 * WORKER_INGESTS + WORKER_UPKEEPS, err) ||
	    ingesting_start(&w->ingesting, w, err))
		goto fail;
	if ((number = pthread_create(&w->engine_thread, NULL, run_engine_thread, w))) {
		err_errno(err, number, "start the engine thread");
		ingesting_stop(w->ingesting);
		goto fail;
	}
	*out = w;
	return 0;
fail:
	ingesting_free(w->ingesting);
	queue_free(w->in, NULL);
	free(w);
	return -1;
}

struct queue *worker_queue(struct worker *w)
{
	return w->in;
}

void worker_join(struct worker *w)
{
	if (!w)
		return;
	pthread_join(w->engine_thread, NULL);
	queue_free(w->in, message_free);
	ingesting_free(w->ingesting);
	free(w);
}
