/*
 * The ingests that the engine has, and the ingest thread behind them. Each is prepared on that thread, one after another;
 * what has to be computed is swept when all are prepared that began together (ingest/batch.h), and a corpus that needs
 * nothing computed is committed at once. A dry run ends as soon as it is counted, whatever the others do.
 *
 * Engine thread.
 */
#ifndef QUIRE_DAEMON_INGESTING_H
#define QUIRE_DAEMON_INGESTING_H

#include <stdbool.h>

#include "config/err.h"
#include "daemon/message.h"

struct worker;
struct ingesting;

/* Starts the ingest thread. Before the engine thread is there. */
int ingesting_start(struct ingesting **out, struct worker *w, struct err *err);

/* MESSAGE_INGEST and MESSAGE_PREPARED. */
void ingesting_take(struct ingesting *g, struct message *job);
void ingesting_prepared(struct ingesting *g, struct message *m);

/* Whether there is something to do before the next message comes; then a step of it. */
bool ingesting_can_step(const struct ingesting *g);
void ingesting_step(struct ingesting *g);

/* ERR_BUSY names a job that is at work on the corpus; NULL: on any. */
int ingesting_none(const struct ingesting *g, const char *corpus, struct err *err);

/* The worker's queue is closed: what there is ends with ERR_CANCELLED, and the ingest thread ends. */
void ingesting_stop(struct ingesting *g);
/* After ingesting_stop. Takes NULL. */
void ingesting_free(struct ingesting *g);

#endif
