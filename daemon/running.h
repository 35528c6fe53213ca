/*
 * The jobs that run, as the loop knows them: begun when the engine has room for them, newer here than in jobs.sqlite, whose
 * calls (jobs.h) stay its own. Loop thread.
 */
#ifndef QUIRE_DAEMON_RUNNING_H
#define QUIRE_DAEMON_RUNNING_H

#include "config/err.h"
#include "config/queue.h"
#include "daemon/jobs.h"
#include "daemon/message.h"

struct running;

/* to_engine has room for WORKER_INGESTS ingests. changed: a job has begun, got on or ended; it is lent. */
struct running *running_new(struct jobs *j, struct queue *to_engine, void (*changed)(void *ctx, const struct api_job *job),
			    void *ctx);
/* Takes NULL. */
void running_free(struct running *r);

/* Hand the engine the jobs that may begin now. */
void running_start(struct running *r);

/* MESSAGE_PROGRESS, MESSAGE_COUNTED, MESSAGE_INGESTED. stopping: a cancelled one is put back. */
void running_progress(struct running *r, const struct message *m);
void running_counted(struct running *r, const struct message *m);
void running_ended(struct running *r, const struct message *m, bool stopping);

int64_t running_n(const struct running *r);
/* A job that was read from jobs.sqlite: as it stands now. */
void running_refresh(const struct running *r, struct api_job *job);
/* True: it runs, and will end. */
bool running_cancel(struct running *r, int64_t id);
void running_cancel_all(struct running *r);
/* The daemon goes without their end. */
void running_put_back(struct running *r);

#endif
