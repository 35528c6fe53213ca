/* The inside of the engine thread, for the files that make it up. Private to daemon/. */
#ifndef QUIRE_DAEMON_WORKER_INSIDE_H
#define QUIRE_DAEMON_WORKER_INSIDE_H

#include <pthread.h>
#include <stdbool.h>

#include "cache/cache.h"
#include "daemon/ingesting.h"
#include "daemon/message.h"
#include "daemon/opened.h"
#include "daemon/worker.h"

enum { WORKER_PROGRESS_MS = 200 };

struct worker {
	const struct config *config;
	struct queue *in, *to_loop;
	pthread_t engine_thread;

	/* The engine thread's, from here on; the tokenizer does not change, so the ingest thread reads it too. */
	struct cache *cache;
	struct opened opened;
	struct err no_model;          /* code 0: there is one */
	bool broken;                  /* the device has failed, and the loop was told */
	float *logits;
	struct ingesting *ingesting;

	/* The corpus that was asked last. */
	struct cache_snapshot *held;
	struct session *session;
	struct recall *recall;        /* what is behind the session */
	struct lines *lines;          /* its text; NULL until an answer is checked against it */
	int64_t expected;             /* the snapshot whose experts are read before they are asked for; 0: none */

	/* The check in progress, of a check or a repair, if upkeep is not NULL. */
	struct message *upkeep;
	struct cache_check *check;
	int64_t upkeep_told_ms;
};

bool worker_is_cancelled(const struct message *m);

/* To the loop. Any thread. */
void worker_tell(struct worker *w, struct message *m);
void worker_tell_numbers(struct worker *w);
void worker_tell_experts(struct worker *w);
/* The device has failed. What it has said once it says for ever, so the loop is told, once, and stops. */
bool worker_is_broken(struct worker *w);

void worker_drop_held(struct worker *w);

#endif
