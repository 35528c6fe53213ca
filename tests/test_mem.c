#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/mem.h"

static void zero_bytes_are_a_valid_pointer(void **state)
{
	struct err err;
	void *p;

	(void)state;
	free(p = xmalloc(0, 8));
	assert_non_null(p);
	free(p = xcalloc(8, 0));
	assert_non_null(p);
	free(p = xrealloc(NULL, 0, 0));
	assert_non_null(p);
	free(p = mem_try(0, 1, "nothing", &err));
	assert_non_null(p);
}

static void strings_are_copied(void **state)
{
	char *a = xstrdup("quire"), *b = xstrndup("quires", 5), *c = xasprintf("%s-%d", "layer", 40);

	(void)state;
	assert_string_equal(a, "quire");
	assert_string_equal(b, "quire");
	assert_string_equal(c, "layer-40");
	free(a);
	free(b);
	free(c);
}

static void a_budget_is_answered_not_died_of(void **state)
{
	struct err err = {0};
	unsigned char *p = mem_try(3, 5, "rows", &err);

	(void)state;
	assert_int_equal((uintptr_t)p % 64, 0);
	memset(p, 1, 15);
	free(p);
	assert_null(mem_try(SIZE_MAX / 2, 3, "logits of a million tokens", &err));
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_string_equal(err.text, "logits of a million tokens: 9223372036854775807 x 3 bytes is more than any machine has");
	assert_null(mem_try(SIZE_MAX - 10, 1, "latents", &err));
	assert_non_null(strstr(err.text, "latents: "));
}

static void pieces_of_an_arena_are_apart_and_aligned(void **state)
{
	struct arena *a = arena_new();
	char *pieces[100];

	(void)state;
	/* 100 pieces of 0 to 99 x 997 bytes are 4.9 MB: several blocks. */
	for (int i = 0; i < 100; i++) {
		pieces[i] = arena_alloc(a, (size_t)i, 997);
		assert_int_equal((uintptr_t)pieces[i] % 64, 0);
		memset(pieces[i], i, (size_t)i * 997);
	}
	for (int i = 0; i < 100; i++)
		for (int j = 0; j < i * 997; j++)
			assert_int_equal(pieces[i][j], i);
	assert_string_equal(arena_strndup(a, "quires", 5), "quire");
	arena_free(a);
	arena_free(NULL);
}

static void an_arena_counts_what_it_lent_since_the_reset(void **state)
{
	struct arena *a = arena_new();
	char *first;

	(void)state;
	assert_int_equal(arena_bytes(a), 0);
	first = arena_alloc(a, 1, 1);
	assert_int_equal(arena_bytes(a), 64);
	arena_alloc(a, 1, 65);
	assert_int_equal(arena_bytes(a), 64 + 128);
	arena_reset(a);
	assert_int_equal(arena_bytes(a), 0);
	assert_ptr_equal(arena_alloc(a, 1, 1), first);
	arena_free(a);
}

static void what_one_query_needed_is_one_block_for_the_next(void **state)
{
	struct arena *a = arena_new();
	char *first;

	(void)state;
	for (int i = 0; i < 3; i++)
		arena_alloc(a, 1, 1 << 20);
	arena_reset(a);
	first = arena_alloc(a, 1, 1 << 20);
	assert_ptr_equal(arena_alloc(a, 1, 1 << 20), first + (1 << 20));
	assert_ptr_equal(arena_alloc(a, 1, 1 << 20), first + (2 << 20));
	arena_reset(a);
	arena_reset(a);
	assert_ptr_equal(arena_alloc(a, 3, 1 << 20), first);
	arena_free(a);
}

static void small_pieces_share_a_block(void **state)
{
	struct arena *a = arena_new();
	char *p = arena_alloc(a, 1, 64), *q;

	(void)state;
	q = arena_alloc(a, 1, 64);
	assert_ptr_equal(q, p + 64);
	arena_free(a);
}

static void *too_much(int which)
{
	switch (which) {
	case 0:
		return xmalloc(SIZE_MAX / 2, 3);
	case 1:
		return xcalloc(SIZE_MAX / 2, 3);
	case 2:
		return xrealloc(NULL, SIZE_MAX / 2, 3);
	case 3:
		return arena_alloc(arena_new(), SIZE_MAX / 2, 3);
	default:
		return arena_alloc(arena_new(), SIZE_MAX - 1, 1);
	}
}

static void a_product_that_overflows_ends_the_process(void **state)
{
	(void)state;
	for (int which = 0; which < 5; which++) {
		pid_t child = fork();
		int status;

		assert_true(child >= 0);
		if (!child) {
			signal(SIGABRT, SIG_DFL);
			dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
			_exit(too_much(which) ? 0 : 1);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		/* A sanitizer's allocator may end the process in its own way; what matters is that nobody gets memory. */
		assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(zero_bytes_are_a_valid_pointer),
		cmocka_unit_test(strings_are_copied),
		cmocka_unit_test(a_budget_is_answered_not_died_of),
		cmocka_unit_test(pieces_of_an_arena_are_apart_and_aligned),
		cmocka_unit_test(an_arena_counts_what_it_lent_since_the_reset),
		cmocka_unit_test(what_one_query_needed_is_one_block_for_the_next),
		cmocka_unit_test(small_pieces_share_a_block),
		cmocka_unit_test(a_product_that_overflows_ends_the_process),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
