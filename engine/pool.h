/*
 * The compute threads of the engine: static shares, one barrier. With queue.c the only place that synchronises.
 *
 * Work is split by item number alone, so who computes what never depends on timing; and every item writes outputs of
 * its own, so the split cannot change a bit. Between jobs threads spin for some microseconds, then sleep.
 */
#ifndef QUIRE_ENGINE_POOL_H
#define QUIRE_ENGINE_POOL_H

#include <stdint.h>

#include "config/err.h"
#include "engine/numa.h"

struct pool;

/* Threads to use by default: the processors that this process may run on. */
int pool_default_threads(void);

/*
 * n_threads >= 1, the caller of pool_run being thread 0. Where the allowed processors are on several NUMA nodes, each
 * thread that is started here is bound to the processors of the node that numa_node_of_thread gives it, so that it
 * meets the same memory in every job; on one node nothing is bound. The caller's own thread is left as it is:
 * whatever it starts later (the readers of a model, another pool) would inherit the binding, and the processor that
 * the bound threads leave free for it is one of thread 0's node anyway.
 */
int pool_new(struct pool **out, int n_threads, struct err *err);
/* The same with a description of the machine, which is used during the call only. */
int pool_new_on(struct pool **out, int n_threads, const struct numa *numa, struct err *err);
/* Takes NULL. */
void pool_free(struct pool *p);
int pool_n_threads(const struct pool *p);

/* Call fn(arg, first, end, thread) so that every item of [0, n_items) is covered once: thread t of T gets
 * [t n / T, (t + 1) n / T). Returns when all are done. Not from inside fn.
 * item_work: about how many operations an item takes; what is less than a barrier costs runs on the caller alone. */
typedef void pool_fn(void *arg, int64_t first, int64_t end, int thread);
void pool_run(struct pool *p, pool_fn *fn, void *arg, int64_t n_items, int64_t item_work);

/*
 * At least `bytes` of working memory, aligned to 64, not cleared, valid until the next call for the same slot: slots
 * 0 .. n_threads - 1 are the threads' own, to be asked for from inside fn; slot n_threads is the caller's, who may hand
 * it to all threads of a job. It grows and is kept, so that jobs which need the same again ask the system for nothing;
 * what it holds is bounded by the largest tile of the kernels. Aborts when there is no memory, as xmalloc does.
 */
void *pool_scratch(struct pool *p, int slot, size_t bytes);

#endif
