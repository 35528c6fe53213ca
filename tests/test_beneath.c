#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"
#include "ingest/beneath.h"
#include "tests/support/temp_dir.h"

static int set_up(void **state)
{
	*state = temp_dir_new();
	return 0;
}

static int tear_down(void **state)
{
	temp_dir_free(*state);
	return 0;
}

static struct beneath *open_root(const char *root, bool plain)
{
	struct beneath *b;
	struct err err;

	if (beneath_new(&b, root, plain, &err))
		fail_msg("%s", err.text);
	return b;
}

static void assert_reads(struct beneath *b, const char *path, const char *want)
{
	char got[64] = "";
	int fd = beneath_open(b, path, O_RDONLY);

	if (fd < 0)
		fail_msg("%s: %s", path, strerror(errno));
	assert_true(read(fd, got, sizeof got - 1) >= 0);
	close(fd);
	assert_string_equal(got, want);
}

static void assert_refuses(struct beneath *b, const char *path, int number, int or_number)
{
	int fd = beneath_open(b, path, O_RDONLY);

	assert_int_equal(fd, -1);
	if (errno != number && errno != or_number)
		fail_msg("%s: %s", path, strerror(errno));
}

static void what_lies_beneath_opens_and_what_leads_out_does_not(void **state)
{
	char *link = temp_path(*state, "link"), *out = temp_path(*state, "a/out");

	free(temp_text(*state, "a/b/c.c", "deep"));
	free(temp_text(*state, "d.c", "flat"));
	assert_int_equal(symlink("a", link), 0);
	assert_int_equal(symlink("/etc", out), 0);
	for (int plain = 0; plain < 2; plain++) {
		struct beneath *b = open_root(*state, plain);

		assert_reads(b, "a/b/c.c", "deep");
		assert_reads(b, "d.c", "flat");
		assert_refuses(b, "link/b/c.c", ELOOP, ENOTDIR);
		assert_refuses(b, "link", ELOOP, ELOOP);
		assert_refuses(b, "a/out/passwd", ELOOP, ENOTDIR);
		assert_refuses(b, "../d.c", EXDEV, EXDEV);
		assert_refuses(b, "a/../d.c", EXDEV, ENOENT); /* "a" is held, and beneath it there is no such thing */
		assert_refuses(b, "a/none.c", ENOENT, ENOENT);
		assert_refuses(b, "d.c/x", ENOTDIR, ENOTDIR);
		assert_reads(b, "a/b/c.c", "deep");
		beneath_free(b);
	}
	free(link);
	free(out);
}

static void names_that_begin_alike_are_told_apart(void **state)
{
	struct beneath *b = open_root(*state, false);

	free(temp_text(*state, "ab/x.c", "ab"));
	free(temp_text(*state, "abc/x.c", "abc"));
	free(temp_text(*state, "a/x.c", "a"));
	assert_reads(b, "ab/x.c", "ab");
	assert_reads(b, "abc/x.c", "abc");
	assert_reads(b, "a/x.c", "a");
	assert_reads(b, "ab/x.c", "ab");
	beneath_free(b);
}

static void a_directory_that_was_replaced_is_found_anew(void **state)
{
	char *dir = temp_path(*state, "dir"), *old = temp_path(*state, "old");
	struct beneath *b = open_root(*state, false);

	free(temp_text(*state, "dir/a.c", "old"));
	assert_reads(b, "dir/a.c", "old");
	assert_int_equal(rename(dir, old), 0);
	free(temp_text(*state, "dir/b.c", "new"));
	assert_reads(b, "dir/b.c", "new");
	beneath_free(b);
	free(dir);
	free(old);
}

/* A comb: at each level "a/", and the next level. Its paths, from the deepest up, as a walk comes to them. */
static void a_deep_tree_with_branches_does_not_take_its_square(void **state)
{
	enum { DEPTH = 3000 };
	int at = open(*state, O_RDONLY | O_DIRECTORY);
	char *path = xcalloc(DEPTH * 5 + 8, 1);

	for (int i = 0; i < DEPTH; i++) {
		int next;

		assert_int_equal(mkdirat(at, "deep", 0700), 0);
		assert_int_equal(mkdirat(at, "a", 0700), 0);
		next = openat(at, "deep", O_RDONLY | O_DIRECTORY);
		close(at);
		at = next;
		memcpy(path + 5 * i, "deep/", 5);
	}
	for (int plain = 0; plain < 2; plain++) {
		struct beneath *b = open_root(*state, plain);

		for (int i = DEPTH - 1; i >= 0; i--) {
			strcpy(path + 5 * i, "a");
			assert_true(beneath_directory(b, path) >= 0);
		}
		/* Down from the root each time would be DEPTH * DEPTH / 2 names, 4.5 million; and 70,000 if that were done
		 * only when all that is held had come to an end. */
		if (beneath_n_opens(b) > 6 * DEPTH)
			fail_msg("%lld opens", (long long)beneath_n_opens(b));
		beneath_free(b);
		for (int i = 0; i < DEPTH; i++)
			memcpy(path + 5 * i, "deep/", 5);
	}
	for (int i = 0; i < DEPTH; i++) {
		int next = openat(at, "..", O_RDONLY | O_DIRECTORY);

		close(at);
		at = next;
		unlinkat(at, "deep", AT_REMOVEDIR);
		unlinkat(at, "a", AT_REMOVEDIR);
	}
	close(at);
	free(path);
}

static void a_root_that_is_not_there_is_an_error(void **state)
{
	struct beneath *b;
	struct err err;

	(void)state;
	assert_int_equal(beneath_new(&b, "/nowhere/at/all", false, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_string_equal(err.text, "open directory /nowhere/at/all: No such file or directory");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_lies_beneath_opens_and_what_leads_out_does_not, set_up, tear_down),
		cmocka_unit_test_setup_teardown(names_that_begin_alike_are_told_apart, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_directory_that_was_replaced_is_found_anew, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_deep_tree_with_branches_does_not_take_its_square, set_up, tear_down),
		cmocka_unit_test(a_root_that_is_not_there_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
