/* Nodes and their processors, read from trees that are not this machine's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "config/mem.h"
#include "engine/numa.h"
#include "tests/support/temp_dir.h"

/* One file of the tree. */
static void put(const char *sysfs, const char *name, const char *text)
{
	char *path = xasprintf("devices/system/node/%s", name);

	free(temp_text(sysfs, path, text));
	free(path);
}

static cpu_set_t *set_of(int first, int last)
{
	cpu_set_t *set = CPU_ALLOC(NUMA_MAX_CPUS);

	CPU_ZERO_S(NUMA_SET_BYTES, set);
	for (int i = first; i <= last; i++)
		CPU_SET_S((size_t)i, NUMA_SET_BYTES, set);
	return set;
}

/* What is read when processors first .. last are allowed. */
static struct numa *read_allowing(const char *sysfs, int first, int last)
{
	cpu_set_t *allowed = set_of(first, last);
	struct numa *n = numa_read(sysfs, allowed);

	CPU_FREE(allowed);
	return n;
}

static bool has(const struct numa_node *node, int cpu)
{
	return CPU_ISSET_S((size_t)cpu, NUMA_SET_BYTES, node->cpus);
}

static void processors_are_grouped_by_their_node(void **state)
{
	char *sysfs = temp_dir_new();
	struct numa *n;

	(void)state;
	put(sysfs, "online", "0-1\n");
	put(sysfs, "node0/cpulist", "0-3\n");
	put(sysfs, "node1/cpulist", "4-7\n");
	n = read_allowing(sysfs, 0, 7);
	assert_int_equal(n->trouble.code, ERR_NONE);
	assert_int_equal(n->n_cpus, 8);
	assert_int_equal(n->n_nodes, 2);
	assert_int_equal(n->nodes[0].id, 0);
	assert_int_equal(n->nodes[0].n_cpus, 4);
	assert_int_equal(n->nodes[1].id, 1);
	assert_int_equal(n->nodes[1].n_cpus, 4);
	assert_true(has(&n->nodes[0], 3) && !has(&n->nodes[0], 4));
	assert_true(has(&n->nodes[1], 4) && !has(&n->nodes[1], 3));
	numa_free(n);
	temp_dir_free(sysfs);
}

/* As with hyperthreads numbered behind all cores, and nodes that are not numbered one after the other. */
static void lists_and_node_numbers_may_have_holes(void **state)
{
	char *sysfs = temp_dir_new();
	struct numa *n;

	(void)state;
	put(sysfs, "online", "0,8\n");
	put(sysfs, "node0/cpulist", "0-1,8,10-11\n");
	put(sysfs, "node8/cpulist", "2-7,9,8190\n");
	n = read_allowing(sysfs, 0, 11);
	assert_int_equal(n->trouble.code, ERR_NONE);
	assert_int_equal(n->n_nodes, 2);
	assert_int_equal(n->nodes[0].n_cpus, 5);
	assert_int_equal(n->nodes[1].id, 8);
	assert_int_equal(n->nodes[1].n_cpus, 7);
	assert_true(has(&n->nodes[0], 10) && !has(&n->nodes[0], 9));
	assert_false(has(&n->nodes[1], 8190));
	numa_free(n);
	temp_dir_free(sysfs);
}

static void a_node_of_memory_alone_gets_no_threads(void **state)
{
	char *sysfs = temp_dir_new();
	struct numa *n;

	(void)state;
	put(sysfs, "online", "0-2\n");
	put(sysfs, "node0/cpulist", "0-1\n");
	put(sysfs, "node1/cpulist", "\n");
	put(sysfs, "node2/cpulist", "2-3\n");
	n = read_allowing(sysfs, 0, 3);
	assert_int_equal(n->trouble.code, ERR_NONE);
	assert_int_equal(n->n_nodes, 2);
	assert_int_equal(n->nodes[1].id, 2);
	for (int t = 0; t < 4; t++)
		assert_int_equal(numa_node_of_thread(n, t, 4), t / 2);
	numa_free(n);
	temp_dir_free(sysfs);
}

static void processors_that_are_not_allowed_do_not_count(void **state)
{
	char *sysfs = temp_dir_new();
	struct numa *n;

	(void)state;
	put(sysfs, "online", "0-1\n");
	put(sysfs, "node0/cpulist", "0-3\n");
	put(sysfs, "node1/cpulist", "4-7\n");
	n = read_allowing(sysfs, 4, 6);
	assert_int_equal(n->trouble.code, ERR_NONE);
	assert_int_equal(n->n_cpus, 3);
	assert_int_equal(n->n_nodes, 1);
	assert_int_equal(n->nodes[0].id, 1);
	assert_int_equal(n->nodes[0].n_cpus, 3);
	assert_false(has(&n->nodes[0], 7));
	numa_free(n);
	n = read_allowing(sysfs, 3, 6);
	assert_int_equal(n->n_nodes, 2);
	assert_int_equal(n->nodes[0].n_cpus, 1);
	numa_free(n);
	temp_dir_free(sysfs);
}

static void a_kernel_without_numa_has_one_node(void **state)
{
	char *sysfs = temp_dir_new();
	struct numa *n = read_allowing(sysfs, 2, 4);

	(void)state;
	assert_int_equal(n->trouble.code, ERR_NONE);
	assert_int_equal(n->n_nodes, 1);
	assert_int_equal(n->n_cpus, 3);
	assert_int_equal(n->nodes[0].n_cpus, 3);
	assert_true(has(&n->nodes[0], 4));
	numa_free(n);
	temp_dir_free(sysfs);
}

/* Nothing is bound by what cannot be right: one node, all processors, and the sentence for the log. */
static void what_cannot_be_right_is_one_node_and_said(void **state)
{
	static const struct {
		const char *online, *node0, *node1, *word;
	} bad[] = {
		{"", "0-1\n", "2-3\n", "4 of the 4 processors"},
		{"nodes\n", "0-1\n", "2-3\n", "holds \"nodes"},
		{"0-1\n", "0-x\n", "2-3\n", "node0/cpulist holds \"0-x"},
		{"0-1\n", "0-1,\n", "2-3\n", "node0/cpulist holds \"0-1,"},
		{"0-1\n", "0-1,", "2-3\n", "node0/cpulist holds \"0-1,"},
		{"0-1\n", "0--1\n", "2-3\n", "node0/cpulist"},
		{"0-1\n", "1-0\n", "2-3\n", "node0/cpulist"},
		{"0-1\n", ",\n", "2-3\n", "node0/cpulist"},
		{"0-1\n", "0-1\n2-3\n", "2-3\n", "node0/cpulist"},
		{"0-1\n", "0-8192\n", "2-3\n", "below 8192"},
		{"0-1\n", "99999999999999999999\n", "2-3\n", "below 8192"},
		{"0-1024\n", "0-1\n", "2-3\n", "below 1024"},
		{"0-1\n", "\x1b[2J\n", "2-3\n", "holds \"\\x1b[2J"},
		{"0-1\n", "0-2\n", "2-3\n", "node1/cpulist names a processor that another node has too"},
		{"0-1\n", "0-1\n", "2\n", "1 of the 4 processors that this process may use are on no node"},
		{"0-1\n", "0-1\n", NULL, "node1/cpulist"},
		{NULL, "0-1\n", "2-3\n", "online"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		char *sysfs = temp_dir_new();
		struct numa *n;

		if (bad[i].online)
			put(sysfs, "online", bad[i].online);
		put(sysfs, "node0/cpulist", bad[i].node0);
		if (bad[i].node1)
			put(sysfs, "node1/cpulist", bad[i].node1);
		n = read_allowing(sysfs, 0, 3);
		if (!n->trouble.code || !strstr(n->trouble.text, bad[i].word))
			fail_msg("%zu: \"%s\" does not say \"%s\"", i, n->trouble.text, bad[i].word);
		assert_int_equal(n->n_nodes, 1);
		assert_int_equal(n->nodes[0].n_cpus, 4);
		numa_free(n);
		temp_dir_free(sysfs);
	}
}

/* 2 + 6 processors. By hand: thread t of T begins at processor floor(8 t / T), and 0 and 1 are on the first node. */
static void threads_go_to_nodes_in_blocks_in_proportion(void **state)
{
	static const int of_four[4] = {0, 1, 1, 1}, of_eight[8] = {0, 0, 1, 1, 1, 1, 1, 1};
	char *sysfs = temp_dir_new();
	struct numa *n;

	(void)state;
	put(sysfs, "online", "0-1\n");
	put(sysfs, "node0/cpulist", "0-1\n");
	put(sysfs, "node1/cpulist", "2-7\n");
	n = read_allowing(sysfs, 0, 7);
	assert_int_equal(numa_node_of_thread(n, 0, 1), 0);
	for (int t = 0; t < 4; t++)
		assert_int_equal(numa_node_of_thread(n, t, 4), of_four[t]);
	for (int t = 0; t < 8; t++)
		assert_int_equal(numa_node_of_thread(n, t, 8), of_eight[t]);
	/* More threads than processors: still a quarter of them on the first. */
	for (int t = 0; t < 1024; t++)
		assert_int_equal(numa_node_of_thread(n, t, 1024), t >= 256);
	numa_free(n);
	temp_dir_free(sysfs);
}

static void this_machine_is_understood(void **state)
{
	struct numa *n = numa_read("/sys", NULL);
	int n_cpus = 0;

	(void)state;
	if (n->trouble.code)
		fail_msg("%s", n->trouble.text);
	for (int i = 0; i < n->n_nodes; i++) {
		assert_true(n->nodes[i].n_cpus >= 1);
		n_cpus += n->nodes[i].n_cpus;
	}
	assert_int_equal(n_cpus, n->n_cpus);
	numa_free(n);
	numa_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(processors_are_grouped_by_their_node),
		cmocka_unit_test(lists_and_node_numbers_may_have_holes),
		cmocka_unit_test(a_node_of_memory_alone_gets_no_threads),
		cmocka_unit_test(processors_that_are_not_allowed_do_not_count),
		cmocka_unit_test(a_kernel_without_numa_has_one_node),
		cmocka_unit_test(what_cannot_be_right_is_one_node_and_said),
		cmocka_unit_test(threads_go_to_nodes_in_blocks_in_proportion),
		cmocka_unit_test(this_machine_is_understood),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
