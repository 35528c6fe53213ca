#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "config/queue.h"

static struct queue *queue_of(size_t capacity)
{
	struct queue *q;
	struct err err;

	assert_int_equal(queue_new(&q, capacity, &err), 0);
	return q;
}

static int is_readable(const struct queue *q)
{
	struct pollfd p = {.fd = queue_fd(q), .events = POLLIN};

	assert_true(poll(&p, 1, 0) >= 0);
	return p.revents == POLLIN;
}

static void messages_come_out_in_the_order_they_went_in(void **state)
{
	struct queue *q = queue_of(3);
	int m[7];
	void *got;

	(void)state;
	/* Seven through three places: the ring wraps twice. */
	queue_push(q, &m[0]);
	for (int i = 1; i < 7; i++) {
		assert_int_equal(queue_push(q, &m[i]), QUEUE_OK);
		assert_int_equal(queue_pop(q, &got), QUEUE_OK);
		assert_ptr_equal(got, &m[i - 1]);
	}
	assert_int_equal(queue_n_messages(q), 1);
	queue_free(q, NULL);
}

static void a_full_queue_and_an_empty_one_refuse_without_waiting(void **state)
{
	struct queue *q = queue_of(2);
	int a, b, c;
	void *got = &a;

	(void)state;
	assert_int_equal(queue_try_pop(q, &got), QUEUE_EMPTY);
	assert_null(got);
	assert_int_equal(queue_try_push(q, &a), QUEUE_OK);
	assert_int_equal(queue_try_push(q, &b), QUEUE_OK);
	assert_int_equal(queue_try_push(q, &c), QUEUE_FULL);
	assert_int_equal(queue_n_messages(q), 2);
	queue_free(q, NULL);
}

static void a_closed_queue_refuses_more_but_gives_what_it_has(void **state)
{
	struct queue *q = queue_of(2);
	int a, b;
	void *got;

	(void)state;
	queue_push(q, &a);
	queue_close(q);
	queue_close(q);
	assert_int_equal(queue_push(q, &b), QUEUE_CLOSED);
	assert_int_equal(queue_try_push(q, &b), QUEUE_CLOSED);
	assert_int_equal(queue_pop(q, &got), QUEUE_OK);
	assert_ptr_equal(got, &a);
	assert_int_equal(queue_pop(q, &got), QUEUE_CLOSED);
	assert_null(got);
	assert_int_equal(queue_try_pop(q, &got), QUEUE_CLOSED);
	queue_free(q, NULL);
}

static void the_descriptor_is_readable_while_there_is_something_to_do(void **state)
{
	struct queue *q = queue_of(2);
	int a, b;
	void *got;

	(void)state;
	assert_false(is_readable(q));
	queue_push(q, &a);
	queue_push(q, &b);
	assert_true(is_readable(q));
	queue_pop(q, &got);
	assert_true(is_readable(q));
	queue_pop(q, &got);
	assert_false(is_readable(q));
	queue_close(q);
	assert_true(is_readable(q));
	assert_int_equal(queue_try_pop(q, &got), QUEUE_CLOSED);
	assert_true(is_readable(q));
	queue_free(q, NULL);
}

static int n_freed;

static void count_and_free(void *message)
{
	n_freed++;
	free(message);
}

static void what_nobody_took_goes_with_the_queue(void **state)
{
	struct queue *q = queue_of(3);
	void *got;

	(void)state;
	/* First moves on, so that the two left lie across the ring's end. */
	queue_push(q, malloc(1));
	queue_push(q, malloc(1));
	queue_pop(q, &got);
	free(got);
	queue_pop(q, &got);
	free(got);
	queue_push(q, malloc(1));
	queue_push(q, malloc(1));
	queue_free(q, count_and_free);
	assert_int_equal(n_freed, 2);
	queue_free(NULL, NULL);
}

enum { N_PUSHERS = 3, N_POPPERS = 2, N_EACH = 20000 };

struct popper {
	struct queue *q;
	int64_t sum;
	int n;
};

static void *push_numbers(void *arg)
{
	struct queue *q = arg;

	for (intptr_t i = 1; i <= N_EACH; i++) {
		intptr_t *message = malloc(sizeof *message);

		*message = i;
		if (i % 16 || queue_try_push(q, message) != QUEUE_OK)
			assert_int_equal(queue_push(q, message), QUEUE_OK);
	}
	return NULL;
}

static void *pop_numbers(void *arg)
{
	struct popper *p = arg;
	void *message;

	while (queue_pop(p->q, &message) == QUEUE_OK) {
		p->sum += *(intptr_t *)message;
		p->n++;
		free(message);
	}
	return NULL;
}

static void every_message_of_many_threads_arrives_once(void **state)
{
	pthread_t pushers[N_PUSHERS], poppers[N_POPPERS];
	struct popper p[N_POPPERS] = {{0}};
	struct queue *q = queue_of(4);
	int64_t sum = 0, n = 0;

	(void)state;
	for (int i = 0; i < N_POPPERS; i++) {
		p[i].q = q;
		pthread_create(&poppers[i], NULL, pop_numbers, &p[i]);
	}
	for (int i = 0; i < N_PUSHERS; i++)
		pthread_create(&pushers[i], NULL, push_numbers, q);
	for (int i = 0; i < N_PUSHERS; i++)
		pthread_join(pushers[i], NULL);
	queue_close(q);
	for (int i = 0; i < N_POPPERS; i++) {
		pthread_join(poppers[i], NULL);
		sum += p[i].sum;
		n += p[i].n;
	}
	assert_int_equal(n, N_PUSHERS * N_EACH);
	assert_int_equal(sum, (int64_t)N_PUSHERS * N_EACH * (N_EACH + 1) / 2);
	queue_free(q, NULL);
}

static void *push_one_more(void *arg)
{
	static int message;

	return (void *)(intptr_t)queue_push(arg, &message);
}

static void *pop_one(void *arg)
{
	void *message;

	return (void *)(intptr_t)queue_pop(arg, &message);
}

static void closing_wakes_everybody_who_waits(void **state)
{
	struct queue *full = queue_of(1), *empty = queue_of(1);
	pthread_t threads[4];
	int a;

	(void)state;
	queue_push(full, &a);
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, i < 2 ? push_one_more : pop_one, i < 2 ? full : empty);
	usleep(20000); /* most likely they sleep by now; the outcome is the same if they do not */
	queue_close(full);
	queue_close(empty);
	for (int i = 0; i < 4; i++) {
		void *result;

		pthread_join(threads[i], &result);
		assert_int_equal((intptr_t)result, QUEUE_CLOSED);
	}
	queue_free(full, NULL);
	queue_free(empty, NULL);
}

/* The shape of the daemon: the loop thread sleeps in poll, the engine thread answers through a queue. */
static void a_poller_sees_every_message_of_a_pusher(void **state)
{
	struct queue *q = queue_of(4);
	pthread_t pusher;
	int n = 0;

	(void)state;
	pthread_create(&pusher, NULL, push_numbers, q);
	while (n < N_EACH) {
		struct pollfd p = {.fd = queue_fd(q), .events = POLLIN};
		void *message;

		assert_int_equal(poll(&p, 1, 10000), 1);
		while (queue_try_pop(q, &message) == QUEUE_OK) {
			assert_int_equal(*(intptr_t *)message, ++n);
			free(message);
		}
	}
	pthread_join(pusher, NULL);
	queue_free(q, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_come_out_in_the_order_they_went_in),
		cmocka_unit_test(a_full_queue_and_an_empty_one_refuse_without_waiting),
		cmocka_unit_test(a_closed_queue_refuses_more_but_gives_what_it_has),
		cmocka_unit_test(the_descriptor_is_readable_while_there_is_something_to_do),
		cmocka_unit_test(what_nobody_took_goes_with_the_queue),
		cmocka_unit_test(every_message_of_many_threads_arrives_once),
		cmocka_unit_test(closing_wakes_everybody_who_waits),
		cmocka_unit_test(a_poller_sees_every_message_of_a_pusher),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
