/*
 * What the daemon's threads say to each other. A message is one malloc'ed struct; its memory, and all it points to,
 * belongs to whoever holds it. The one exception is `cancel`: it belongs to the loop, which keeps it until the
 * message that ends the ask, the job or the upkeep (MESSAGE_ASKED, MESSAGE_INGESTED, MESSAGE_UPKEPT) is back.
 *
 *         ASK, INGEST, UPKEEP            PREPARE
 *     loop ---------------> engine ------------------> ingest
 *       ^                   |    ^                      |  |
 *       |--- STORE, MODEL, -'    '------ PREPARED ------'  |
 *       |    PHASE, TOKEN, ASKED, COUNTED, PROGRESS,       |
 *       |    INGESTED, UPKEEP_PROGRESS, UPKEPT             |
 *       '------------------- PROGRESS ---------------------'
 *
 * To stop, the loop sets every cancel and closes the engine's queue; the engine ends what it has, closes the ingest
 * thread's queue, waits for it, and says STOPPED.
 */
#ifndef QUIRE_DAEMON_MESSAGE_H
#define QUIRE_DAEMON_MESSAGE_H

#include <stdatomic.h>
#include <stdint.h>

#include "cache/cache.h"
#include "config/err.h"
#include "daemon/api.h"
#include "daemon/upkeep.h"
#include "engine/experts.h"
#include "engine/tokenizer.h"
#include "ingest/ingest.h"

enum message_kind {
	MESSAGE_ASK,
	MESSAGE_INGEST,
	MESSAGE_PREPARE,
	MESSAGE_PREPARED,
	MESSAGE_EXPERTS,  /* the numbers of the tier of experts have changed */
	MESSAGE_STORE,    /* the store is open, or its numbers have changed; with err: it does not open */
	MESSAGE_MODEL,
	MESSAGE_PHASE,
	MESSAGE_TOKEN,
	MESSAGE_ASKED,    /* the end of an ask: err.code 0, or why not */
	MESSAGE_PROGRESS,
	MESSAGE_COUNTED,  /* what a job is about to do */
	MESSAGE_INGESTED, /* the end of a job: likewise */
	MESSAGE_UPKEEP,
	MESSAGE_UPKEEP_PROGRESS,
	MESSAGE_UPKEPT,   /* the end of an upkeep: a report, or why not */
	MESSAGE_BROKEN,   /* the device has failed, with err, and cannot be used again: told once */
	MESSAGE_STOPPED,  /* the last one */
};

enum ask_phase {
	ASK_QUEUED,
	ASK_LOAD,    /* latents come from the store */
	ASK_PREFILL, /* the question is computed */
};

struct message {
	enum message_kind kind;
	int64_t id;                    /* of the ask or the job */
	const atomic_bool *cancel;
	struct err err;
	union {
		struct {
			struct api_ask request;
			int64_t accepted_ns;   /* CLOCK_MONOTONIC */
		} ask;
		struct {
			struct api_ingest request;
			struct cache_snapshot *previous; /* PREPARE, PREPARED: the corpus as it is, or NULL */
			struct cache_snapshot *order_from; /* likewise: whose order it follows, if not its own */
			struct ingest *in;               /* PREPARED */
		} ingest;
		struct ingest_progress progress;
		char *report;                  /* COUNTED: as api_job.report; UPKEEP_PROGRESS, UPKEPT: JSON */
		struct upkeep upkeep;
		struct cache_stats store;
		struct experts_stats experts;
		struct {
			struct api_model_status model;
			struct api_engine_status engine;
			const struct tokenizer *tokenizer; /* MODEL_READY: does not change, and is there until the
							      engine's queue is closed */
		} model;
		struct {
			enum ask_phase phase;
			int64_t tokens;
		} phase;
		struct {
			char *text;            /* UTF-8 */
			size_t bytes;
		} token;
		struct {
			struct api_usage usage;
			const char *finish;    /* "stop" or "length"; static */
			struct bytes answer;   /* all of its text, */
			size_t thought;        /* and how much of that is reasoning */
			char *done;            /* JSON of the last event (cite.h); NULL with err */
		} asked;
	};
};

struct message *message_new(enum message_kind kind, int64_t id);
/* Takes a void * so that queue_free can call it. Takes NULL. */
void message_free(void *message);

#endif
