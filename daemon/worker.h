/*
 * The engine thread, and the ingest thread behind it. The engine thread opens the store, then engine and model, and
 * says so; then it takes asks and ingests in the order they come. Ingests go step by step, all of them together, and asks
 * are answered between two steps. The session of the corpus that was asked last stays loaded, cut back to the corpus after each
 * answer.
 *
 * Without a model (none configured, or it does not open) asks and ingests end with ERR_UNAVAILABLE.
 */
#ifndef QUIRE_DAEMON_WORKER_H
#define QUIRE_DAEMON_WORKER_H

#include "config/config.h"
#include "config/err.h"
#include "config/queue.h"

struct worker;

/* Messages for the loop go to to_loop, which the loop must keep draining until MESSAGE_STOPPED. config must outlive
 * the worker. */
int worker_start(struct worker **out, const struct config *config, struct queue *to_loop, struct err *err);

enum { WORKER_UPKEEPS = 4, WORKER_INGESTS = 64 };

/* Where the loop puts its messages; close it to stop. It has room for server.max_queue asks, WORKER_INGESTS ingests and
 * WORKER_UPKEEPS works of upkeep. */
struct queue *worker_queue(struct worker *w);

/* After MESSAGE_STOPPED. Takes NULL. */
void worker_join(struct worker *w);

#endif
