/* The compute pool: every item once, by whomever the formula says, however fast jobs follow one another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <dirent.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config/mem.h"
#include "engine/pool.h"
#include "tests/support/temp_dir.h"

struct marks {
	unsigned char *seen;
	int threads[64];
};

static void mark(void *arg, int64_t first, int64_t end, int thread)
{
	struct marks *m = arg;

	for (int64_t i = first; i < end; i++)
		m->seen[i]++;
	m->threads[thread] = 1;
}

static void every_item_runs_once(void **state)
{
	(void)state;
	for (int n_threads = 1; n_threads <= 5; n_threads++) {
		struct pool *p = NULL;

		assert_int_equal(pool_new(&p, n_threads, NULL), 0);
		assert_int_equal(pool_n_threads(p), n_threads);
		for (int64_t n = 0; n < 40; n++) {
			struct marks m = {xcalloc((size_t)n + 1, 1), {0}};

			pool_run(p, mark, &m, n, 1 << 20);
			for (int64_t i = 0; i < n; i++)
				assert_int_equal(m.seen[i], 1);
			assert_int_equal(m.seen[n], 0);
			free(m.seen);
		}
		pool_free(p);
	}
}

static void add(void *arg, int64_t first, int64_t end, int thread)
{
	int64_t *sums = arg;

	for (int64_t i = first; i < end; i++)
		sums[thread] += i;
}

static void results_are_visible_when_it_returns(void **state)
{
	struct pool *p = NULL;
	int64_t sums[3] = {0};

	(void)state;
	assert_int_equal(pool_new(&p, 3, NULL), 0);
	for (int64_t round = 1; round <= 20000; round++) {
		pool_run(p, add, sums, 10, 1 << 20);
		assert_int_equal(sums[0] + sums[1] + sums[2], 45 * round);
	}
	pool_free(p);
}

static void sleeping_workers_wake_up(void **state)
{
	struct pool *p = NULL;
	int64_t sums[3] = {0};

	(void)state;
	assert_int_equal(pool_new(&p, 3, NULL), 0);
	for (int round = 1; round <= 20; round++) {
		usleep(3000); /* long enough for everybody to have gone to sleep */
		pool_run(p, add, sums, 10, 1 << 20);
		assert_int_equal(sums[0] + sums[1] + sums[2], 45 * round);
	}
	pool_free(p);
}

static void an_idle_pool_uses_no_processor_time(void **state)
{
	struct pool *p = NULL;
	int64_t sums[2] = {0};
	struct timespec before, after;
	double used;

	(void)state;
	assert_int_equal(pool_new(&p, 2, NULL), 0);
	pool_run(p, add, sums, 10, 1 << 20);
	usleep(20000);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
	usleep(200000);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
	used = (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) * 1e-9;
	assert_true(used < 0.005);
	pool_free(p);
}

static void work_smaller_than_a_barrier_stays_with_the_caller(void **state)
{
	struct pool *p = NULL;
	int64_t sums[2] = {0};

	(void)state;
	assert_int_equal(pool_new(&p, 2, NULL), 0);
	pool_run(p, add, sums, 10, 3);
	assert_int_equal(sums[0], 45);
	assert_int_equal(sums[1], 0);
	pool_free(p);
}

static void ask_for_scratch(void *arg, int64_t first, int64_t end, int thread)
{
	unsigned char *mine = pool_scratch(arg, thread, (size_t)(end - first) << 20);

	memset(mine, thread, (size_t)(end - first) << 20);
	for (int64_t i = 0; i < (end - first) << 20; i += 4096)
		assert_int_equal(mine[i], thread);
}

static void every_thread_has_scratch_of_its_own_that_grows(void **state)
{
	struct pool *p = NULL;
	void *shared;

	(void)state;
	assert_int_equal(pool_new(&p, 3, NULL), 0);
	for (int64_t n = 3; n <= 12; n += 3)
		pool_run(p, ask_for_scratch, p, n, 1 << 20);
	shared = pool_scratch(p, 3, 100);
	assert_int_equal((uintptr_t)shared % 64, 0);
	assert_ptr_equal(pool_scratch(p, 3, 50), shared);
	pool_free(p);
}

/* Threads of this process. */
static int count_threads(void)
{
	DIR *d = opendir("/proc/self/task");
	int n = 0;

	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

/* A thread that was joined may be seen in /proc for a moment more. */
static void wait_for_threads(int n)
{
	for (int tries = 0; tries < 1000 && count_threads() != n; tries++)
		usleep(1000);
	assert_int_equal(count_threads(), n);
}

static void as_many_threads_run_as_were_asked_for(void **state)
{
	struct pool *p = NULL;
	cpu_set_t *mine = CPU_ALLOC(NUMA_MAX_CPUS);
	int before = count_threads();

	(void)state;
	assert_int_equal(pool_new(&p, 4, NULL), 0);
	wait_for_threads(before + 3); /* the caller is the fourth */
	pool_free(p);
	wait_for_threads(before);

	assert_int_equal(sched_getaffinity(0, NUMA_SET_BYTES, mine), 0);
	assert_int_equal(pool_default_threads(), CPU_COUNT_S(NUMA_SET_BYTES, mine));
	CPU_FREE(mine);
}

enum { BOUND_THREADS = 8 };

struct places {
	atomic_int arrived;
	cpu_set_t *of[BOUND_THREADS];
};

static void look_where_i_may_run(void *arg, int64_t first, int64_t end, int thread)
{
	struct places *p = arg;

	p->of[thread] = CPU_ALLOC(NUMA_MAX_CPUS);
	if (end - first == 1 && !sched_getaffinity(0, NUMA_SET_BYTES, p->of[thread]))
		atomic_fetch_add(&p->arrived, 1); /* assertions are for the test's own thread */
}

static void look(struct places *places, const struct numa *numa)
{
	struct pool *p = NULL;

	memset(places, 0, sizeof *places);
	assert_int_equal(pool_new_on(&p, BOUND_THREADS, numa, NULL), 0);
	pool_run(p, look_where_i_may_run, places, BOUND_THREADS, 1 << 20);
	assert_int_equal(places->arrived, BOUND_THREADS);
	pool_free(p);
}

static void forget(struct places *places)
{
	for (int t = 0; t < BOUND_THREADS; t++)
		CPU_FREE(places->of[t]);
}

/* The first allowed processor is said to be node 0, all others node 1. */
static struct numa *two_nodes(const struct numa *real)
{
	char *sysfs = temp_dir_new(), *others = xstrdup("");
	struct numa *n;
	int first = -1;

	for (int node = 0; node < real->n_nodes; node++)
		for (int i = 0; i < NUMA_MAX_CPUS; i++) {
			char *longer;

			if (!CPU_ISSET_S((size_t)i, NUMA_SET_BYTES, real->nodes[node].cpus))
				continue;
			if (first < 0) {
				first = i;
				continue;
			}
			longer = xasprintf("%s%s%d", others, *others ? "," : "", i);
			free(others);
			others = longer;
		}
	free(temp_text(sysfs, "devices/system/node/online", "0-1\n"));
	free(temp_text(sysfs, "devices/system/node/node1/cpulist", others));
	free(others);
	others = xasprintf("%d\n", first);
	free(temp_text(sysfs, "devices/system/node/node0/cpulist", others));
	free(others);
	n = numa_read(sysfs, NULL);
	temp_dir_free(sysfs);
	return n;
}

static void threads_stay_on_their_node_and_the_caller_is_left_alone(void **state)
{
	struct numa *real = numa_read("/sys", NULL), *numa;
	cpu_set_t *before = CPU_ALLOC(NUMA_MAX_CPUS);
	struct places places;

	(void)state;
	if (real->n_cpus < 2) {
		printf("skipped: one processor cannot be two nodes\n");
		numa_free(real);
		CPU_FREE(before);
		skip();
	}
	numa = two_nodes(real);
	assert_int_equal(numa->trouble.code, ERR_NONE);
	assert_int_equal(numa->n_nodes, 2);
	assert_int_equal(sched_getaffinity(0, NUMA_SET_BYTES, before), 0);
	look(&places, numa);
	assert_true(CPU_EQUAL_S(NUMA_SET_BYTES, places.of[0], before));
	for (int t = 1; t < BOUND_THREADS; t++) {
		const struct numa_node *node = &numa->nodes[numa_node_of_thread(numa, t, BOUND_THREADS)];

		assert_true(CPU_EQUAL_S(NUMA_SET_BYTES, places.of[t], node->cpus));
	}
	assert_int_equal(numa_node_of_thread(numa, BOUND_THREADS - 1, BOUND_THREADS), 1);
	forget(&places);
	assert_int_equal(sched_getaffinity(0, NUMA_SET_BYTES, places.of[0] = CPU_ALLOC(NUMA_MAX_CPUS)), 0);
	assert_true(CPU_EQUAL_S(NUMA_SET_BYTES, places.of[0], before));
	CPU_FREE(places.of[0]);
	CPU_FREE(before);
	numa_free(numa);
	numa_free(real);
}

static void one_node_binds_nobody(void **state)
{
	char *sysfs = temp_dir_new();
	struct numa *numa = numa_read(sysfs, NULL);
	cpu_set_t *before = CPU_ALLOC(NUMA_MAX_CPUS);
	struct places places;

	(void)state;
	assert_int_equal(sched_getaffinity(0, NUMA_SET_BYTES, before), 0);
	look(&places, numa);
	for (int t = 0; t < BOUND_THREADS; t++)
		assert_true(CPU_EQUAL_S(NUMA_SET_BYTES, places.of[t], before));
	forget(&places);
	CPU_FREE(before);
	numa_free(numa);
	temp_dir_free(sysfs);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_item_runs_once),
		cmocka_unit_test(results_are_visible_when_it_returns),
		cmocka_unit_test(sleeping_workers_wake_up),
		cmocka_unit_test(work_smaller_than_a_barrier_stays_with_the_caller),
		cmocka_unit_test(an_idle_pool_uses_no_processor_time),
		cmocka_unit_test(every_thread_has_scratch_of_its_own_that_grows),
		cmocka_unit_test(as_many_threads_run_as_were_asked_for),
		cmocka_unit_test(threads_stay_on_their_node_and_the_caller_is_left_alone),
		cmocka_unit_test(one_node_binds_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
