/* Arrays of pages: contents stay, growth copies nothing, and what nobody wrote to takes no memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "config/pages.h"

static void contents_stay_and_what_is_new_is_zero(void **state)
{
	static const size_t sizes[] = {100, 5000, 4096, 20, 9000, 40 << 20, 3, 33 << 20, 64 << 20, 1 << 20};
	void *array = NULL;
	size_t have = 0;

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		size_t n = sizes[i], common = n < have ? n : have;
		unsigned char *p;

		assert_int_equal(pages_resize(&array, have, n, "test", NULL), 0);
		p = array;
		for (size_t k = 0; k < n; k++)
			if (p[k] != (k < common ? (unsigned char)(k % 251 + 1) : 0))
				fail_msg("byte %zu of %zu, %zu before, is %d", k, n, have, p[k]);
		for (size_t k = 0; k < n; k++)
			p[k] = (unsigned char)(k % 251 + 1);
		have = n;
	}
	pages_free(array, have);
	pages_free(NULL, 0);
}

static void an_array_of_no_bytes_is_none(void **state)
{
	void *array = NULL;

	(void)state;
	assert_int_equal(pages_resize(&array, 0, 10000, "test", NULL), 0);
	assert_int_equal(pages_resize(&array, 10000, 0, "test", NULL), 0);
	assert_int_equal(pages_resize(&array, 0, 10, "test", NULL), 0);
	memset(array, 1, 10);
	pages_free(array, 10);
}

static void what_no_address_space_holds_is_refused_and_the_array_is_as_before(void **state)
{
	void *array = NULL, *before;
	struct err err = {0};

	(void)state;
	assert_int_equal(pages_resize(&array, 0, 5000, "test", NULL), 0);
	memset(array, 7, 5000);
	before = array;
	assert_int_equal(pages_resize(&array, 5000, (size_t)1 << 60, "latents", &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_string_equal(err.text, "no memory for latents: 1152921504606846976 bytes");
	assert_int_equal(pages_resize(&array, 5000, SIZE_MAX, "latents", &err), -1);
	assert_ptr_equal(array, before);
	assert_int_equal(((char *)array)[4999], 7);
	pages_free(array, 5000);
}

#if !defined __SANITIZE_ADDRESS__
static long resident_pages(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	long size, resident;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%ld %ld", &size, &resident), 2);
	fclose(f);
	return resident;
}

static void room_that_was_never_written_to_takes_no_memory(void **state)
{
	const size_t small = (size_t)1 << 20, large = (size_t)3 << 30;
	void *array = NULL;
	long before = resident_pages(), grown;

	(void)state;
	assert_int_equal(pages_resize(&array, 0, small, "test", NULL), 0);
	memset(array, 1, small);
	assert_int_equal(pages_resize(&array, small, large, "test", NULL), 0);
	grown = resident_pages() - before;
	assert_true(grown < (8 << 20) / sysconf(_SC_PAGESIZE));
	assert_int_equal(((char *)array)[small - 1], 1);
	pages_free(array, large);
}

/* A copy would have to be resident beside the original for a moment: the high-water mark would show it. */
static void growing_copies_nothing(void **state)
{
	const size_t bytes = (size_t)96 << 20;
	void *array = NULL, *neighbour = NULL;
	char line[256];
	long high = 0, before;
	FILE *f;

	(void)state;
	assert_int_equal(pages_resize(&array, 0, bytes, "test", NULL), 0);
	assert_int_equal(pages_resize(&neighbour, 0, bytes, "test", NULL), 0); /* so that it must move */
	memset(array, 1, bytes);
	before = resident_pages() * (sysconf(_SC_PAGESIZE) >> 10);
	assert_int_equal(pages_resize(&array, bytes, 4 * bytes, "test", NULL), 0);
	f = fopen("/proc/self/status", "r");
	assert_non_null(f);
	while (fgets(line, sizeof line, f))
		sscanf(line, "VmHWM: %ld kB", &high);
	fclose(f);
	assert_true(high > 0);
	assert_true(high < before + (48 << 10));
	assert_int_equal(((char *)array)[bytes - 1], 1);
	pages_free(array, 4 * bytes);
	pages_free(neighbour, bytes);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
#if !defined __SANITIZE_ADDRESS__
		cmocka_unit_test(growing_copies_nothing), /* first: the high-water mark is the process's */
		cmocka_unit_test(room_that_was_never_written_to_takes_no_memory),
#endif
		cmocka_unit_test(contents_stay_and_what_is_new_is_zero),
		cmocka_unit_test(an_array_of_no_bytes_is_none),
		cmocka_unit_test(what_no_address_space_holds_is_refused_and_the_array_is_as_before),
	};

	return cmocka_run_group_tests_name("pages", tests, NULL, NULL);
}
