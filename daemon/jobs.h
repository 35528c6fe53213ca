/*
 * Jobs, in jobs.sqlite: what was accepted stays accepted. Every call that changes a job has it on disk when it
 * returns (WAL, synchronous=FULL), so that a 202 survives a power cut.
 *
 * States go queued -> running -> done | failed | cancelled. Several may run. A job that runs when the process dies is
 * queued again by the next jobs_open. One that was begun twice without an end runs the third time by itself, so that what
 * kills us is known from what only ran beside it; after that it is failed.
 * An ingest run twice does its work once: what it computed is in the store already.
 *
 * All of it belongs to the loop thread.
 */
#ifndef QUIRE_DAEMON_JOBS_H
#define QUIRE_DAEMON_JOBS_H

#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "daemon/api.h"

enum {
	JOBS_MAX_ATTEMPTS = 3,
	JOBS_KEPT = 1000,       /* ended ones that stay for `quire jobs`; older ones go */
};

struct jobs;

/* Open or create DIR/jobs.sqlite. DIR exists. A file of a newer format is refused. */
int jobs_open(struct jobs **out, const char *dir, struct err *err);
/* Takes NULL. */
void jobs_close(struct jobs *j);

/* Accept a job, unless max_queued wait already (ERR_BUSY). While one for the same corpus waits or runs: that one's id if
 * it is the same request, else ERR_BUSY naming it. */
int jobs_add(struct jobs *j, const struct api_ingest *request, int64_t max_queued, int64_t *id, struct err *err);

/*
 * The queued jobs that may begin now, oldest first, so many that at most max_running run, each counted as begun once more.
 * While an ingest runs only dry runs begin, otherwise as many ingests as wait; a job that follows the order of a corpus
 * (order_from) not beside an ingest of that; one that was begun twice already not beside any other. Nobody overtakes one
 * that waits to be alone. Free each with api_job_clear, and the array.
 */
int jobs_begin(struct jobs *j, size_t max_running, struct api_job **out, size_t *n, struct err *err);

/* Back to queued, the attempt not counted: the daemon stops in good order. */
int jobs_put_back(struct jobs *j, int64_t id, struct err *err);

/* The end of a job. error NULL: done; ERR_CANCELLED: cancelled; else failed. progress may be NULL. */
int jobs_end(struct jobs *j, int64_t id, const struct ingest_progress *progress, const struct err *error,
	     struct err *err);

/* Remember how far running jobs are, for whoever looks after a crash: id and progress of each, in one transaction. */
int jobs_progress(struct jobs *j, const struct api_job *jobs, size_t n, struct err *err);

/* Keep what a running job is about to do (JSON, as api_job.report). */
int jobs_report(struct jobs *j, int64_t id, const char *report, struct err *err);

/* How many tokens a second the last ingest computed that computed any, with those that began together with it, walk and all;
 * 0: none is known. */
int jobs_speed(struct jobs *j, double *tokens_per_s, struct err *err);

/* ERR_NOT_FOUND when there is no such job. api_job_clear it. */
int jobs_get(struct jobs *j, int64_t id, struct api_job *job, struct err *err);

/* The newest `most` jobs, newest first. Free each with api_job_clear, and the array. */
int jobs_list(struct jobs *j, size_t most, struct api_job **out, size_t *n, struct err *err);

int jobs_count(struct jobs *j, enum job_state state, int64_t *n, struct err *err);

#endif
