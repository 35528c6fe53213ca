#include "engine/numa.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "config/file.h"
#include "config/mem.h"

enum { MAX_LIST_BYTES = 1 << 16 }; /* "1,3,5,...": every other one of 8192 takes half of it */

static cpu_set_t *new_set(void)
{
	cpu_set_t *set = CPU_ALLOC(NUMA_MAX_CPUS);

	if (!set)
		abort(); /* as xmalloc does */
	CPU_ZERO_S(NUMA_SET_BYTES, set);
	return set;
}

/* A number below `limit` at *text, which is moved behind it; -1: there is none. */
static int read_number(const char **text, int limit)
{
	const char *p = *text;
	int n = 0;

	if (*p < '0' || *p > '9')
		return -1;
	for (; *p >= '0' && *p <= '9'; p++) {
		n = 10 * n + (*p - '0');
		if (n >= limit)
			return -1;
	}
	*text = p;
	return n;
}

/* "0-3,8,10-11" and a line feed; nothing but the line feed is the empty list, as of a node that is only memory. */
static bool parse_list(cpu_set_t *set, const char *text, int limit)
{
	if (*text && *text != '\n')
		do {
			int first = read_number(&text, limit), last = first;

			if (first >= 0 && *text == '-') {
				text++;
				last = read_number(&text, limit);
			}
			if (first < 0 || last < first)
				return false;
			for (int i = first; i <= last; i++)
				CPU_SET_S((size_t)i, NUMA_SET_BYTES, set);
		} while (*text == ',' && text++);
	return !*text || (*text == '\n' && !text[1]);
}

static int read_list(cpu_set_t *set, const char *path, int limit, struct err *err)
{
	char *text;
	bool good;

	if (file_read_kernel(&text, path, MAX_LIST_BYTES, err))
		return -1;
	good = parse_list(set, text, limit);
	if (!good)
		err_set(err, ERR_FORMAT, "%s holds \"%.60s\", not a list of numbers below %d such as 0-3,8", path, text, limit);
	free(text);
	return good ? 0 : -1;
}

static void add_node(struct numa *n, int id, cpu_set_t *cpus)
{
	n->nodes = xrealloc(n->nodes, (size_t)n->n_nodes + 1, sizeof *n->nodes);
	n->nodes[n->n_nodes++] = (struct numa_node){id, CPU_COUNT_S(NUMA_SET_BYTES, cpus), cpus};
}

/* One node's processors among the allowed ones. Each must belong to one node only: it is taken out of `left`. */
static int read_node(struct numa *n, const char *dir, int id, const cpu_set_t *allowed, cpu_set_t *left, struct err *err)
{
	char *path = xasprintf("%s/node%d/cpulist", dir, id);
	cpu_set_t *cpus = new_set(), *both = new_set();
	int failed = read_list(cpus, path, NUMA_MAX_CPUS, err);

	CPU_AND_S(NUMA_SET_BYTES, cpus, cpus, allowed);
	CPU_AND_S(NUMA_SET_BYTES, both, cpus, left);
	if (!failed && !CPU_EQUAL_S(NUMA_SET_BYTES, both, cpus))
		failed = err_set(err, ERR_FORMAT, "%s names a processor that another node has too", path);
	CPU_XOR_S(NUMA_SET_BYTES, left, left, both);
	CPU_FREE(both);
	free(path);
	if (!failed && CPU_COUNT_S(NUMA_SET_BYTES, cpus))
		add_node(n, id, cpus);
	else
		CPU_FREE(cpus);
	return failed;
}

static int read_nodes(struct numa *n, const char *dir, const cpu_set_t *allowed, struct err *err)
{
	char *path = xasprintf("%s/online", dir);
	cpu_set_t *ids = new_set(), *left = new_set();
	int failed = read_list(ids, path, NUMA_MAX_NODES, err), n_left;

	CPU_OR_S(NUMA_SET_BYTES, left, left, allowed);
	for (int id = 0; !failed && id < NUMA_MAX_NODES; id++)
		if (CPU_ISSET_S((size_t)id, NUMA_SET_BYTES, ids))
			failed = read_node(n, dir, id, allowed, left, err);
	n_left = CPU_COUNT_S(NUMA_SET_BYTES, left);
	if (!failed && n_left)
		failed = err_set(err, ERR_FORMAT, "%d of the %d processors that this process may use are on no node of %s",
				 n_left, n->n_cpus, dir);
	CPU_FREE(ids);
	CPU_FREE(left);
	free(path);
	return failed;
}

static void drop_nodes(struct numa *n)
{
	for (int i = 0; i < n->n_nodes; i++)
		CPU_FREE(n->nodes[i].cpus);
	free(n->nodes);
	n->nodes = NULL;
	n->n_nodes = 0;
}

struct numa *numa_read(const char *sysfs, const cpu_set_t *allowed)
{
	struct numa *n = xcalloc(1, sizeof *n);
	char *dir = xasprintf("%s/devices/system/node", sysfs);
	cpu_set_t *all = new_set();

	if (allowed) {
		CPU_OR_S(NUMA_SET_BYTES, all, all, allowed);
	} else if (sched_getaffinity(0, NUMA_SET_BYTES, all)) {
		err_errno(&n->trouble, errno, "ask which processors this process may use");
		for (long i = 0; i < sysconf(_SC_NPROCESSORS_ONLN); i++)
			CPU_SET_S((size_t)i, NUMA_SET_BYTES, all);
	}
	n->n_cpus = CPU_COUNT_S(NUMA_SET_BYTES, all);
	assert(n->n_cpus >= 1);
	if (n->trouble.code || read_nodes(n, dir, all, &n->trouble)) {
		/* Without NUMA in the kernel there is no such directory. */
		if (n->trouble.code == ERR_NOT_FOUND && access(dir, F_OK))
			n->trouble = (struct err){0};
		drop_nodes(n);
		add_node(n, 0, all);
	} else {
		CPU_FREE(all);
	}
	free(dir);
	return n;
}

void numa_free(struct numa *n)
{
	if (!n)
		return;
	drop_nodes(n);
	free(n);
}

int numa_node_of_thread(const struct numa *n, int thread, int n_threads)
{
	/* Processors 0 .. n_cpus - 1 in the order of the nodes: the thread's share of them begins at this one. */
	int64_t cpu = (int64_t)thread * n->n_cpus / n_threads;
	int node = 0;

	assert(thread >= 0 && thread < n_threads);
	while (cpu >= n->nodes[node].n_cpus)
		cpu -= n->nodes[node++].n_cpus;
	return node;
}
