#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "tests/support/temp_dir.h"

/* /proc/self/stat says that it has 0 bytes, /sys/kernel/mm/... that it has 4096. */
static void a_file_of_the_kernel_is_read_to_its_end(void **state)
{
	struct err err;
	char *text = NULL;
	size_t bytes;

	(void)state;
	assert_int_equal(file_read_kernel(&text, "/proc/self/stat", 4096, &err), 0);
	assert_true(strlen(text) > 20);
	assert_int_equal(text[strlen(text) - 1], '\n');
	free(text);
	/* The reader of other files finds nothing there, which is why there are two. */
	assert_int_equal(file_read(&text, &bytes, "/proc/self/stat", 4096, &err), -1);
}

static void what_is_longer_than_expected_is_refused_and_not_cut(void **state)
{
	char *dir = temp_dir_new(), *path = temp_text(dir, "list", "0-3,10"), *text = NULL;
	struct err err;

	(void)state;
	assert_int_equal(file_read_kernel(&text, path, 6, &err), 0);
	assert_string_equal(text, "0-3,10");
	free(text);
	text = NULL;
	assert_int_equal(file_read_kernel(&text, path, 5, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "list has more than 5 bytes"));
	assert_null(text);
	assert_int_equal(file_read_kernel(&text, dir, 5, &err), -1);
	assert_int_equal(err.code, ERR_IO);
	free(path);
	path = temp_path(dir, "absent");
	assert_int_equal(file_read_kernel(&text, path, 5, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	free(path);
	temp_dir_free(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_of_the_kernel_is_read_to_its_end),
		cmocka_unit_test(what_is_longer_than_expected_is_refused_and_not_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
