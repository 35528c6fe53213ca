/*
 * A pool of threads that pread and pwrite, as a backend. Operations go to the threads and come back through queues,
 * and belong to whoever holds them.
 *
 * No more is in flight than two operations a thread: one at work, one that waits for it. So a request of a higher
 * class waits little, and there is nothing to cancel: what a thread has begun cannot be stopped.
 */
#include "offload/io_backend.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "config/mem.h"
#include "config/queue.h"

enum { A_THREAD = 2 };

struct job {
	struct io_operation operation;
	int32_t result;
};

struct pread_pool {
	struct queue *todo, *done;
	struct job *jobs;         /* [depth] */
	struct job **free;        /* a stack, the engine's thread's alone */
	int n_free, n_threads;
	pthread_t *threads;
};

static int32_t carry_out(const struct io_operation *o)
{
	ssize_t n = o->op == IO_READ ? pread(o->fd, o->memory, o->bytes, (off_t)o->offset)
		  : o->op == IO_WRITE ? pwrite(o->fd, o->memory, o->bytes, (off_t)o->offset)
		  : fdatasync(o->fd);

	return n < 0 ? -errno : (int32_t)n;
}

static void *worker_main(void *arg)
{
	struct pread_pool *p = arg;
	void *message;

	while (queue_pop(p->todo, &message) == QUEUE_OK) {
		struct job *job = message;

		job->result = carry_out(&job->operation);
		queue_push(p->done, job); /* has room for all */
	}
	return NULL;
}

static void pool_free(void *state)
{
	struct pread_pool *p = state;

	queue_close(p->todo);
	for (int i = 0; i < p->n_threads; i++)
		pthread_join(p->threads[i], NULL);
	queue_free(p->todo, NULL);
	queue_free(p->done, NULL);
	free(p->threads);
	free(p->free);
	free(p->jobs);
	free(p);
}

static void pool_start(void *state, const struct io_operation *o)
{
	struct pread_pool *p = state;
	struct job *job = p->free[--p->n_free];

	job->operation = *o;
	queue_push(p->todo, job); /* has room for all */
}

static int pool_reap(void *state, struct io_completion *out, int n_most, int timeout_ms)
{
	struct pread_pool *p = state;
	struct pollfd ready = {.fd = queue_fd(p->done), .events = POLLIN};
	void *message;
	int n = 0;

	while (n < n_most && queue_try_pop(p->done, &message) == QUEUE_OK) {
		struct job *job = message;

		out[n++] = (struct io_completion){job->operation.id, job->result};
		p->free[p->n_free++] = job;
	}
	if (n || !n_most || !timeout_ms || poll(&ready, 1, timeout_ms) <= 0)
		return n;
	return pool_reap(p, out, n_most, 0);
}

static void pool_cancel(void *state, uint64_t id)
{
	(void)state;
	(void)id;
}

static int pool_fd(void *state)
{
	return queue_fd(((struct pread_pool *)state)->done);
}

const struct io_backend io_pread_backend = {
	.name = "pread",
	.free = pool_free,
	.start = pool_start,
	.reap = pool_reap,
	.cancel = pool_cancel,
	.fd = pool_fd,
};

/* Signals are for the threads that expect them. */
static int start_threads(struct pread_pool *p, int n_threads, struct err *err)
{
	sigset_t all, before;
	int number = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (!number && p->n_threads < n_threads) {
		number = pthread_create(&p->threads[p->n_threads], NULL, worker_main, p);
		p->n_threads += !number;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return number ? err_errno(err, number, "start reading thread %d of %d", p->n_threads + 1, n_threads) : 0;
}

int io_pread_new(void **state, int *depth, int n_threads, struct err *err)
{
	struct pread_pool *p = xcalloc(1, sizeof *p);

	if (n_threads > *depth)
		n_threads = *depth;
	if (*depth > A_THREAD * n_threads)
		*depth = A_THREAD * n_threads;
	if (queue_new(&p->todo, (size_t)*depth, err) || queue_new(&p->done, (size_t)*depth, err)) {
		queue_free(p->todo, NULL);
		free(p);
		return -1;
	}
	p->jobs = xcalloc((size_t)*depth, sizeof *p->jobs);
	p->free = xcalloc((size_t)*depth, sizeof *p->free);
	p->threads = xcalloc((size_t)n_threads, sizeof *p->threads);
	for (int i = *depth; i--; )
		p->free[p->n_free++] = &p->jobs[i];
	if (start_threads(p, n_threads, err)) {
		pool_free(p);
		return -1;
	}
	*state = p;
	return 0;
}
