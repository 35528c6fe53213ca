/*
 * Which processors this process may use, and on which NUMA node each of them is: for the compute pool, which keeps a
 * thread on one node, and for `quire doctor`. Read from sysfs; no library.
 */
#ifndef QUIRE_ENGINE_NUMA_H
#define QUIRE_ENGINE_NUMA_H

#include <sched.h>
#include <stddef.h>

#include "config/err.h"

/* What Linux can have on any architecture. Sets of processors have NUMA_SET_BYTES bytes: use the CPU_*_S macros. */
enum { NUMA_MAX_CPUS = 8192, NUMA_MAX_NODES = 1024, NUMA_SET_BYTES = NUMA_MAX_CPUS / 8 };

struct numa_node {
	int id;              /* as in /sys/devices/system/node/node3 */
	int n_cpus;          /* allowed ones; at least 1 */
	cpu_set_t *cpus;     /* NUMA_SET_BYTES */
};

struct numa {
	int n_cpus;          /* that this process may use; at least 1 */
	int n_nodes;         /* nodes that have some of them, ids ascending; at least 1 */
	struct numa_node *nodes;
	struct err trouble;  /* code 0; else what sysfs says is not to be believed, or cannot be read, and why: all
	                        processors then count as one node */
};

/* sysfs: "/sys", or a faked tree. allowed (NUMA_SET_BYTES): NULL for what sched_getaffinity says of the calling
 * thread. A kernel without NUMA has one node, and that is no trouble. */
struct numa *numa_read(const char *sysfs, const cpu_set_t *allowed);
/* Takes NULL. */
void numa_free(struct numa *n);

/* The index in nodes[] of thread t of n_threads: contiguous blocks of threads, as many to a node as it has of the
 * processors; thread 0 on the first. */
int numa_node_of_thread(const struct numa *n, int thread, int n_threads);

#endif
