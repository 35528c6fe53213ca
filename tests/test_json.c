#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/file.h"
#include "config/json.h"

/* The sentence that `text` is refused with; "" when it is accepted. */
static const char *refusal_of(const char *text, size_t bytes)
{
	static struct err err;
	json_t *root = NULL;

	err.text[0] = '\0';
	if (!json_parse(&root, "x.json", text, bytes, &err))
		json_decref(root);
	return err.text;
}

static void assert_refused(const char *text, const char *sentence)
{
	const char *got = refusal_of(text, strlen(text));

	if (!strstr(got, sentence))
		fail_msg("%s: refused with \"%s\", not with \"%s\"", text, got, sentence);
}

static void every_refusal_names_line_and_column(void **state)
{
	(void)state;
	assert_refused("{\"a\": 1,\n \"a\": 2}", "x.json:2:4: duplicate object key near '\"a\"'");
	assert_refused("{\"a\": 1,}", "x.json:1:9: ");
	assert_refused("[1] [2]", "x.json:1:5: end of file expected");
	assert_refused("[1e999]", "real number overflow");
	assert_refused("[99999999999999999999]", "too big integer");
	assert_refused("[\"\\u0000\"]", "\\u0000 is not allowed");
	assert_refused("[\"\\ud800\"]", "invalid Unicode '\\uD800'");
	assert_refused("[\"\xff\"]", "unable to decode byte 0xff");
	assert_refused("\xef\xbb\xbf[]", "x.json:1:1: begins with a byte order mark");
	assert_refused("7", "x.json:1:1: '[' or '{' expected");
	assert_refused("[nan]", "invalid token");
	assert_refused("[01]", "invalid token");
	assert_refused("", "x.json: empty, JSON is expected");
	assert_refused(" \n ", "x.json:2:1: '[' or '{' expected");
}

static void white_space_around_the_value_is_legal(void **state)
{
	(void)state;
	assert_string_equal(refusal_of("\r\n\t [1, {\"a\": null}] \n", 22), "");
}

static void nul_is_refused_raw_as_well(void **state)
{
	(void)state;
	assert_string_not_equal(refusal_of("[\"a\0b\"]", 7), "");
	assert_string_not_equal(refusal_of("[1]\0", 4), "");
}

static void depth_ends_at_thirty_two(void **state)
{
	char text[80];

	(void)state;
	memset(text, '[', 32);
	memset(text + 32, ']', 32);
	assert_string_equal(refusal_of(text, 64), "");
	memset(text, '[', 33);
	memset(text + 33, ']', 33);
	assert_string_equal(refusal_of(text, 66), "x.json:1:33: nested deeper than 32");
	/* Brackets inside a string are not depth, behind an escaped quote either. */
	assert_string_equal(refusal_of("[\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"]", 43), "");
}

static void a_million_brackets_need_no_stack(void **state)
{
	size_t n = 1000000;
	char *text = malloc(n);

	(void)state;
	memset(text, '[', n);
	assert_string_equal(refusal_of(text, n), "x.json:1:33: nested deeper than 32");
	free(text);
}

static void members_say_what_they_are_and_what_is_expected(void **state)
{
	struct err err;
	const char *text = "{\"n\": 1e3, \"big\": 4096, \"s\": null}", *s;
	json_t *root;
	int64_t n;
	int b;

	(void)state;
	assert_int_equal(json_parse(&root, "x.json", text, strlen(text), &err), 0);
	assert_int_equal(json_get_integer(&n, root, "n", 0, 9, "x.json", "model", &err), -1);
	assert_string_equal(err.text, "x.json: model.n is a number, an integer is expected");
	assert_int_equal(json_get_integer(&n, root, "big", 0, 4095, "x.json", "", &err), -1);
	assert_string_equal(err.text, "x.json: big is 4096, it must lie between 0 and 4095");
	assert_int_equal(json_get_integer(&n, root, "big", 0, 4096, "x.json", "", &err), 0);
	assert_int_equal(n, 4096);
	assert_int_equal(json_get_string(&s, root, "s", "x.json", "", &err), -1);
	assert_string_equal(err.text, "x.json: s is null, a string is expected");
	assert_int_equal(json_get_boolean(&b, root, "b", "x.json", "a.b", &err), -1);
	assert_string_equal(err.text, "x.json: a.b.b is absent, true or false is expected");
	json_decref(root);
}

/* A FIFO without a writer would block its reader for good. */
static void only_regular_files_within_the_limit_are_read(void **state)
{
	char dir[] = "/tmp/quire-json-XXXXXX", path[64];
	struct err err;
	char *text;
	size_t bytes;
	json_t *root;
	FILE *f;

	(void)state;
	assert_non_null(mkdtemp(dir));
	assert_int_equal(file_read(&text, &bytes, dir, 100, &err), -1);
	assert_non_null(strstr(err.text, "is a directory, not a file"));
	snprintf(path, sizeof path, "%s/x", dir);
	assert_int_equal(file_read(&text, &bytes, path, 100, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(file_read(&text, &bytes, path, 100, &err), -1);
	assert_non_null(strstr(err.text, "is a FIFO, not a file"));
	unlink(path);
	f = fopen(path, "w");
	fputs("{\"a\": [7]}", f);
	fclose(f);
	assert_int_equal(json_read(&root, path, 9, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(json_read(&root, path, 10, &err), 0);
	assert_int_equal(json_integer_value(json_array_get(json_object_get(root, "a"), 0)), 7);
	json_decref(root);
	unlink(path);
	rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_refusal_names_line_and_column),
		cmocka_unit_test(white_space_around_the_value_is_legal),
		cmocka_unit_test(nul_is_refused_raw_as_well),
		cmocka_unit_test(depth_ends_at_thirty_two),
		cmocka_unit_test(a_million_brackets_need_no_stack),
		cmocka_unit_test(members_say_what_they_are_and_what_is_expected),
		cmocka_unit_test(only_regular_files_within_the_limit_are_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
