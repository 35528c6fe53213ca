/*
 * A bounded queue of messages between threads. With engine/pool.c the only place that synchronises.
 *
 * A message is a pointer, never NULL, and its memory belongs to whoever holds the message: the sender until a push
 * succeeds, then the queue, then who popped it. Messages come out in the order in which they went in. Any number of
 * threads may push and pop; one pops in the usual case, so that it owns what it got.
 *
 * Closing says that nothing more will come: pushes are refused at once, pops drain what is there and then say closed.
 */
#ifndef QUIRE_CONFIG_QUEUE_H
#define QUIRE_CONFIG_QUEUE_H

#include <stddef.h>

#include "config/err.h"

struct queue;

enum queue_state {
	QUEUE_OK,     /* the message changed hands */
	QUEUE_FULL,   /* try_push only: the caller still has the message */
	QUEUE_EMPTY,  /* try_pop only */
	QUEUE_CLOSED, /* push: the caller still has the message; pop: nothing is left and nothing will come */
};

/* capacity >= 1 messages. Fails when the process has no file descriptor left for the eventfd. */
int queue_new(struct queue **out, size_t capacity, struct err *err);
/* Takes NULL. No other thread may be in it or come to it: close, join, free. Messages that are still there go to
 * free_message, which may be NULL when there are none or when somebody else owns them. */
void queue_free(struct queue *q, void (*free_message)(void *message));

/* Wait for room: QUEUE_OK or QUEUE_CLOSED. */
enum queue_state queue_push(struct queue *q, void *message);
/* Never wait: QUEUE_OK, QUEUE_FULL or QUEUE_CLOSED. */
enum queue_state queue_try_push(struct queue *q, void *message);

/* Wait for a message: QUEUE_OK, or QUEUE_CLOSED with *message NULL. */
enum queue_state queue_pop(struct queue *q, void **message);
/* Never wait: QUEUE_OK, QUEUE_EMPTY or QUEUE_CLOSED; *message is NULL unless QUEUE_OK. */
enum queue_state queue_try_pop(struct queue *q, void **message);

/* Wakes everybody who waits. Any thread, any number of times. */
void queue_close(struct queue *q);

/* Messages waiting now: a number for `quire status`, old as soon as it is read. */
size_t queue_n_messages(struct queue *q);

/* A file descriptor for epoll, readable while a message waits and for good once the queue is closed. Only poll it:
 * reading and closing it are the queue's. Call queue_try_pop when it wakes you, as somebody may have been faster. */
int queue_fd(const struct queue *q);

#endif
