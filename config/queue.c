#include "config/queue.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "config/mem.h"

/*
 * (1) Everything below the lock is touched only while holding it.
 * (2) The eventfd's count is 1 while the queue is `ready` (a message waits, or it is closed) and 0 otherwise. It is
 *     written and read under the lock, so neither can block and the fd is never behind the ring by more than a lock.
 */
struct queue {
	pthread_mutex_t lock;
	pthread_cond_t not_empty, not_full;
	void **ring;
	size_t capacity, first, n;
	bool closed, ready;
	int fd;
};

int queue_new(struct queue **out, size_t capacity, struct err *err)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct queue *q;

	assert(capacity >= 1);
	if (fd < 0)
		return err_errno(err, errno, "make a queue of %zu messages", capacity);
	q = xcalloc(1, sizeof *q);
	q->ring = xcalloc(capacity, sizeof *q->ring);
	q->capacity = capacity;
	q->fd = fd;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->not_empty, NULL);
	pthread_cond_init(&q->not_full, NULL);
	*out = q;
	return 0;
}

void queue_free(struct queue *q, void (*free_message)(void *message))
{
	if (!q)
		return;
	for (size_t i = 0; free_message && i < q->n; i++)
		free_message(q->ring[(q->first + i) % q->capacity]);
	pthread_cond_destroy(&q->not_full);
	pthread_cond_destroy(&q->not_empty);
	pthread_mutex_destroy(&q->lock);
	close(q->fd);
	free(q->ring);
	free(q);
}

static void update_fd(struct queue *q)
{
	bool ready = q->n > 0 || q->closed;
	uint64_t count = 1;
	ssize_t done;

	if (ready == q->ready)
		return;
	done = ready ? write(q->fd, &count, sizeof count) : read(q->fd, &count, sizeof count);
	assert(done == (ssize_t)sizeof count && count == 1);
	(void)done;
	q->ready = ready;
}

static enum queue_state push(struct queue *q, void *message, bool wait)
{
	enum queue_state state = QUEUE_OK;

	assert(message);
	pthread_mutex_lock(&q->lock);
	while (wait && q->n == q->capacity && !q->closed)
		pthread_cond_wait(&q->not_full, &q->lock);
	if (q->closed) {
		state = QUEUE_CLOSED;
	} else if (q->n == q->capacity) {
		state = QUEUE_FULL;
	} else {
		q->ring[(q->first + q->n++) % q->capacity] = message;
		update_fd(q);
		pthread_cond_signal(&q->not_empty);
	}
	pthread_mutex_unlock(&q->lock);
	return state;
}

static enum queue_state pop(struct queue *q, void **message, bool wait)
{
	enum queue_state state = QUEUE_OK;

	*message = NULL;
	pthread_mutex_lock(&q->lock);
	while (wait && !q->n && !q->closed)
		pthread_cond_wait(&q->not_empty, &q->lock);
	if (q->n) {
		*message = q->ring[q->first];
		q->first = (q->first + 1) % q->capacity;
		q->n--;
		update_fd(q);
		pthread_cond_signal(&q->not_full);
	} else {
		state = q->closed ? QUEUE_CLOSED : QUEUE_EMPTY;
	}
	pthread_mutex_unlock(&q->lock);
	return state;
}

enum queue_state queue_push(struct queue *q, void *message)
{
	return push(q, message, true);
}

enum queue_state queue_try_push(struct queue *q, void *message)
{
	return push(q, message, false);
}

enum queue_state queue_pop(struct queue *q, void **message)
{
	return pop(q, message, true);
}

enum queue_state queue_try_pop(struct queue *q, void **message)
{
	return pop(q, message, false);
}

void queue_close(struct queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->closed = true;
	update_fd(q);
	pthread_cond_broadcast(&q->not_empty);
	pthread_cond_broadcast(&q->not_full);
	pthread_mutex_unlock(&q->lock);
}

size_t queue_n_messages(struct queue *q)
{
	size_t n;

	pthread_mutex_lock(&q->lock);
	n = q->n;
	pthread_mutex_unlock(&q->lock);
	return n;
}

int queue_fd(const struct queue *q)
{
	return q->fd;
}
