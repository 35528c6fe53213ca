/*
 * The daemon in a process of its own, with this one as its client: for tests that end it in the middle of things.
 * Nothing here ends a test; what does not go well is an err. A process that starts one has a single thread.
 */
#ifndef QUIRE_TESTS_SUPPORT_DAEMON_PROCESS_H
#define QUIRE_TESTS_SUPPORT_DAEMON_PROCESS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config/err.h"
#include "daemon/api.h"

struct daemon_process {
	const char *config;          /* its file */
	const char *socket;          /* that the file names */
	const char *log;             /* what it says is appended here */
	const char *program;         /* quired; NULL: the daemon that is linked into this program, */
	void (*prepare)(void *ctx);  /* after this, in its process; may be NULL */
	void *ctx;
	pid_t pid;                   /* 0: there is none; otherwise stop it or wait for it */
	struct client *client;
};

int daemon_process_start(struct daemon_process *d, struct err *err);
/* Until it has its model. When it has died: ERR_UNREACHABLE. */
int daemon_process_ready(struct daemon_process *d, struct err *err);
/* As a service manager does it: it must end with status 0. */
int daemon_process_stop(struct daemon_process *d, struct err *err);
/* Its end, for which nothing is done here. *killed: by SIGKILL; otherwise it has ended with status 0. An error: it ended
 * in another way, or not within this time, and has been ended. */
int daemon_process_wait(struct daemon_process *d, int patience_ms, bool *killed, struct err *err);

/* A few tokens at temperature 0; free() it. */
int daemon_process_ask(struct daemon_process *d, const char *corpus, char **answer, struct err *err);
/* *job: what was accepted. */
int daemon_process_ingest(struct daemon_process *d, const char *corpus, const char *source, int64_t *job,
			  struct err *err);
/* api_job_clear it. */
int daemon_process_job(struct daemon_process *d, int64_t id, struct api_job *job, struct err *err);
/* Until the job has ended, whichever way. *most grows to the tokens that it was seen to have in the store; or NULL. */
int daemon_process_job_end(struct daemon_process *d, int64_t id, struct api_job *job, int64_t *most, struct err *err);
/* API_CHECK with every byte read, or API_REPAIR; json_decref the report. */
int daemon_process_check(struct daemon_process *d, enum api_route route, json_t **report, struct err *err);
int daemon_process_status(struct daemon_process *d, json_t **status, struct err *err);

#endif
