/*
 * Where experts do not all fit into memory: those that a corpus's tokens chose while it was ingested are read before its first
 * question asks for them. That corpus is the one used last, when the daemon starts and when an ingest has ended that nobody
 * has asked anything since; then the one that is asked. They come while the engine thread has nothing else to do, and between a
 * corpus's index keys while these are loaded (engine/recall.c); a question, an ingest, a check go first. Engine thread.
 */
#ifndef QUIRE_DAEMON_WARMING_H
#define QUIRE_DAEMON_WARMING_H

#include "config/queue.h"
#include "daemon/worker_inside.h"

/* The snapshot of a corpus is about to be asked; or, of this model's corpora, the one used last. Without counts that is said, and
 * nothing is read early. */
void warming_expect(struct worker *w, const char *corpus, int64_t snapshot);
void warming_expect_last(struct worker *w);

/* The next message, as queue_pop gives it: experts come meanwhile. */
enum queue_state warming_wait(struct worker *w, void **message);

#endif
