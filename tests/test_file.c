#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/file.h"
#include "config/mem.h"
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

static void a_file_is_replaced_whole_or_stays(void **state)
{
	char *dir = temp_dir_new(), *path = temp_text(dir, "kept", "what was there before, and longer"), *text;
	char *beside = temp_path(dir, "kept.new"), *nowhere = temp_path(dir, "no/such");
	struct err err;
	size_t bytes;

	(void)state;
	assert_int_equal(file_replace(path, "new", 3, &err), 0);
	assert_int_equal(file_read(&text, &bytes, path, 100, &err), 0);
	assert_int_equal(bytes, 3);
	assert_string_equal(text, "new");
	free(text);
	assert_int_equal(access(beside, F_OK), -1);
	assert_int_equal(file_replace(nowhere, "x", 1, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, "no/such.new"));
	/* A directory is not replaced by a file, and what was written for that is gone. */
	assert_int_equal(file_replace(dir, "x", 1, &err), -1);
	text = xasprintf("%s.new", dir);
	assert_int_equal(access(text, F_OK), -1);
	free(text);
	/* A link that somebody put there is not followed. */
	assert_int_equal(symlink(path, beside), 0);
	assert_int_equal(file_replace(path, "newer", 5, &err), -1);
	assert_int_equal(file_read(&text, &bytes, path, 100, &err), 0);
	assert_string_equal(text, "new");
	free(text);
	free(nowhere);
	free(beside);
	free(path);
	temp_dir_free(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_of_the_kernel_is_read_to_its_end),
		cmocka_unit_test(what_is_longer_than_expected_is_refused_and_not_cut),
		cmocka_unit_test(a_file_is_replaced_whole_or_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
