/* The compute pool: every item once, by whomever the formula says, however fast jobs follow one another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config/mem.h"
#include "engine/pool.h"

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
	assert_true(used < 0.02);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_item_runs_once),
		cmocka_unit_test(results_are_visible_when_it_returns),
		cmocka_unit_test(sleeping_workers_wake_up),
		cmocka_unit_test(work_smaller_than_a_barrier_stays_with_the_caller),
		cmocka_unit_test(an_idle_pool_uses_no_processor_time),
		cmocka_unit_test(every_thread_has_scratch_of_its_own_that_grows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
