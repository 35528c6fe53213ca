/*
 * A job is published by advancing `turn`; each worker then runs its share and counts itself in `n_done`. Both are
 * single words, so a waiter spins on the word and, when that takes long, sleeps in a futex on the same word. The
 * flags `sleepers` and `caller_sleeps` spare the system call when nobody sleeps; they are set before the word is
 * looked at for the last time, and the word is changed before they are looked at, so no wake-up is lost.
 */
#include "engine/pool.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "config/log.h"
#include "config/mem.h"

enum {
	HUGE_PAGE = 2 << 20,
	SPINS = 4000,      /* some ten microseconds: shorter than a sleep and a wake-up */
	LEAST_WORK = 1 << 16, /* operations: some microseconds, what a barrier costs */
};

struct pool {
	int n_threads, n_started;
	_Alignas(64) atomic_uint turn;
	atomic_int sleepers;
	_Alignas(64) atomic_uint n_done;
	atomic_int caller_sleeps;
	pool_fn *fn;
	void *arg;
	int64_t n_items;
	bool stop;
	struct scratch {
		_Alignas(64) void *memory; /* a line each: threads write their own */
		size_t bytes;
	} *scratch;                        /* [n_threads + 1] */
	struct worker {
		struct pool *pool;
		int index;
		pthread_t thread;
	} workers[];
};

static void futex_wait(atomic_uint *word, unsigned value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int n)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static inline void relax(void)
{
#if defined __x86_64__
	__builtin_ia32_pause();
#endif
}

/* Wait until *word is no longer `value`. */
static void wait_change(atomic_uint *word, unsigned value, atomic_int *sleepers)
{
	for (int i = 0; i < SPINS; i++) {
		if (atomic_load_explicit(word, memory_order_acquire) != value)
			return;
		relax();
	}
	atomic_fetch_add(sleepers, 1);
	while (atomic_load(word) == value)
		futex_wait(word, value);
	atomic_fetch_sub(sleepers, 1);
}

static void run_share(struct pool *p, int thread)
{
	int64_t first = p->n_items * thread / p->n_threads, end = p->n_items * (thread + 1) / p->n_threads;

	if (first < end)
		p->fn(p->arg, first, end, thread);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct pool *p = w->pool;
	unsigned turn = 0;

	for (;;) {
		wait_change(&p->turn, turn, &p->sleepers);
		turn++;
		if (p->stop)
			return NULL;
		run_share(p, w->index);
		atomic_fetch_add(&p->n_done, 1);
		if (atomic_load(&p->caller_sleeps))
			futex_wake(&p->n_done, 1);
	}
}

static void start_turn(struct pool *p)
{
	atomic_store(&p->n_done, 0);
	atomic_fetch_add(&p->turn, 1);
	if (atomic_load(&p->sleepers))
		futex_wake(&p->turn, p->n_threads);
}

void pool_run(struct pool *p, pool_fn *fn, void *arg, int64_t n_items, int64_t item_work)
{
	unsigned workers = (unsigned)p->n_threads - 1, done;

	assert(n_items >= 0 && n_items <= INT64_MAX / p->n_threads);
	if (!n_items)
		return;
	p->fn = fn;
	p->arg = arg;
	p->n_items = n_items;
	if (!workers || n_items == 1 || item_work < (LEAST_WORK + n_items - 1) / n_items) {
		/* By the formula other threads had a share; but who computes an item changes nothing. */
		fn(arg, 0, n_items, 0);
		return;
	}
	start_turn(p);
	run_share(p, 0);
	while ((done = atomic_load_explicit(&p->n_done, memory_order_acquire)) != workers)
		wait_change(&p->n_done, done, &p->caller_sleeps);
}

int pool_default_threads(void)
{
	struct numa *numa = numa_read("/sys", NULL);
	int n = numa->n_cpus;

	numa_free(numa);
	return n;
}

/* An unbound thread is slower and no less right: a cpuset that changed under us must not keep the engine from opening. */
static void bind_worker(const struct worker *w, const struct numa *numa, int n_threads)
{
	const struct numa_node *node = &numa->nodes[numa_node_of_thread(numa, w->index, n_threads)];
	int e;

	if (numa->n_nodes == 1)
		return;
	e = pthread_setaffinity_np(w->thread, NUMA_SET_BYTES, node->cpus);
	if (e)
		log_warn("compute thread %d is not bound to NUMA node %d: %s", w->index, node->id, strerror(e));
}

int pool_new_on(struct pool **out, int n_threads, const struct numa *numa, struct err *err)
{
	struct pool *p;

	assert(n_threads >= 1);
	p = mem_try(1, sizeof *p + (size_t)n_threads * sizeof p->workers[0], "compute pool", err);
	if (!p)
		return -1;
	*p = (struct pool){.n_threads = n_threads};
	p->scratch = mem_try((size_t)n_threads + 1, sizeof *p->scratch, "compute pool", err);
	if (!p->scratch) {
		free(p);
		return -1;
	}
	memset(p->scratch, 0, ((size_t)n_threads + 1) * sizeof *p->scratch);
	for (int i = 1; i < n_threads; i++) {
		struct worker *w = &p->workers[i];
		int e;

		w->pool = p;
		w->index = i;
		e = pthread_create(&w->thread, NULL, worker_main, w);
		if (e) {
			pool_free(p);
			return err_errno(err, e, "start compute thread %d of %d", i, n_threads);
		}
		p->n_started++;
		bind_worker(w, numa, n_threads);
	}
	*out = p;
	return 0;
}

int pool_new(struct pool **out, int n_threads, struct err *err)
{
	struct numa *numa = numa_read("/sys", NULL);
	int failed;

	if (numa->trouble.code)
		log_warn("all processors count as one NUMA node: %s", numa->trouble.text);
	failed = pool_new_on(out, n_threads, numa, err);
	numa_free(numa);
	return failed;
}

void pool_free(struct pool *p)
{
	if (!p)
		return;
	p->stop = true;
	start_turn(p);
	for (int i = 1; i <= p->n_started; i++)
		pthread_join(p->workers[i].thread, NULL);
	for (int i = 0; i <= p->n_threads; i++)
		free(p->scratch[i].memory);
	free(p->scratch);
	free(p);
}

void *pool_scratch(struct pool *p, int slot, size_t bytes)
{
	struct scratch *s = &p->scratch[slot];

	assert(slot >= 0 && slot <= p->n_threads);
	if (bytes > s->bytes) {
		bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
		free(s->memory);
		s->memory = aligned_alloc(HUGE_PAGE, bytes);
		if (!s->memory) {
			fprintf(stderr, "quire: out of memory: %zu bytes for a compute thread\n", bytes);
			abort();
		}
		madvise(s->memory, bytes, MADV_HUGEPAGE); /* fewer misses of the TLB; only advice */
		s->bytes = bytes;
	}
	return s->memory;
}

int pool_n_threads(const struct pool *p)
{
	return p->n_threads;
}
