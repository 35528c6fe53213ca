#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "config/err.h"

static const char *escaped(const char *text, size_t n)
{
	static char out[256];

	return err_escape(out, sizeof out, text, n);
}

static void each_layer_adds_what_it_alone_knows(void **state)
{
	struct err err;

	(void)state;
	assert_int_equal(err_errno(&err, EIO, "read %s at byte %d", "/models/experts.bin", 4096), -1);
	assert_int_equal(err_wrap(&err, "expert %d of layer %d", 17, 40), -1);
	assert_int_equal(err_wrap(&err, "cannot answer"), -1);
	assert_string_equal(err.text, "cannot answer: expert 17 of layer 40: read /models/experts.bin at byte 4096: "
				      "Input/output error");
	assert_int_equal(err.code, ERR_IO);
	assert_int_equal(err_set(&err, ERR_FORMAT, "another"), -1);
	assert_string_equal(err.text, "another");
	assert_int_equal(err.code, ERR_FORMAT);
}

static void an_error_number_picks_the_code(void **state)
{
	struct err err;

	(void)state;
	err_errno(&err, EACCES, "open x");
	assert_int_equal(err.code, ERR_PERMISSION);
	err_errno(&err, EPERM, "open x");
	assert_int_equal(err.code, ERR_PERMISSION);
	err_errno(&err, ENOENT, "open x");
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_string_equal(err.text, "open x: No such file or directory");
	err_errno(&err, ENOSPC, "write x");
	assert_int_equal(err.code, ERR_IO);
}

static void nobody_has_to_listen(void **state)
{
	(void)state;
	assert_int_equal(err_set(NULL, ERR_IO, "x"), -1);
	assert_int_equal(err_wrap(NULL, "x"), -1);
	assert_int_equal(err_errno(NULL, EIO, "x"), -1);
}

static void an_error_may_be_made_of_itself(void **state)
{
	struct err err;

	(void)state;
	err_set(&err, ERR_IO, "inner");
	err_set(&err, ERR_FORMAT, "outer of %s", err.text);
	assert_string_equal(err.text, "outer of inner");
	err_wrap(&err, "again %s", err.text);
	assert_string_equal(err.text, "again outer of inner: outer of inner");
}

static void a_file_name_cannot_drive_a_terminal(void **state)
{
	struct err err;

	(void)state;
	err_set(&err, ERR_NOT_FOUND, "no \"%s\"", "a\x1b[2Jb\nc\td\x7f\xc2\x9b\xe2\x80\xae");
	assert_string_equal(err.text, "no \"a\\x1b[2Jb\\nc\\td\\x7f\\x9b\\u202e\"");
	err_wrap(&err, "in \r");
	assert_string_equal(err.text, "in \\r: no \"a\\x1b[2Jb\\nc\\td\\x7f\\x9b\\u202e\"");
}

static void text_stays_as_it_is_and_other_bytes_are_named(void **state)
{
	(void)state;
	assert_string_equal(escaped("Gr\xc3\xbc\xc3\x9f \xe4\xb8\xad \xf0\x9f\x98\x80 \\n", 18), "Gr\xc3\xbc\xc3\x9f "
			    "\xe4\xb8\xad \xf0\x9f\x98\x80 \\n");
	assert_string_equal(escaped("a\0b", 3), "a\\x00b");
	assert_string_equal(escaped("\xff\xc3", 2), "\\xff\\xc3");              /* no lead byte; one without its rest */
	assert_string_equal(escaped("\xc0\xaf", 2), "\\xc0\\xaf");              /* overlong / */
	assert_string_equal(escaped("\xe0\x80\xaf", 3), "\\xe0\\x80\\xaf");     /* the same, longer */
	assert_string_equal(escaped("\xed\xa0\x80", 3), "\\xed\\xa0\\x80");     /* a surrogate */
	assert_string_equal(escaped("\xf4\x90\x80\x80", 4), "\\xf4\\x90\\x80\\x80"); /* beyond Unicode */
	assert_string_equal(escaped("\xe2\x81\xa6\xe2\x80\x8e\xe2\x80\xa8", 9), "\\u2066\\u200e\\u2028");
	assert_string_equal(escaped("\xef\xbf\xbd\xef\xbf\xbe\xef\xbf\xbf\xef\xbb\xbf", 12), "\xef\xbf\xbd\\ufffe\\uffff\\ufeff"); /* no YAML */
	assert_string_equal(escaped("", 0), "");
}

static void what_does_not_fit_is_cut_between_characters(void **state)
{
	char out[8];

	(void)state;
	assert_string_equal(err_escape(out, 6, "abcd\xc3\xbc", 6), "abcd");
	assert_string_equal(err_escape(out, 7, "abcd\xc3\xbc", 6), "abcd\xc3\xbc");
	assert_string_equal(err_escape(out, 7, "abc\x1b", 4), "abc");
	assert_string_equal(err_escape(out, 8, "abc\x1b", 4), "abc\\x1b");
	assert_string_equal(err_escape(out, 1, "abc", 3), "");
	out[0] = 'x';
	err_escape(out, 0, "abc", 3);
	assert_int_equal(out[0], 'x');
}

/* A character of two bytes ends everywhere in turn, first as one that fits and then as one that does not. */
static void a_sentence_that_is_too_long_ends_in_a_whole_character(void **state)
{
	char text[1100];
	struct err err;

	(void)state;
	for (size_t n = 1015; n < 1030; n++) {
		memset(text, 'a', n);
		for (int i = 0; i < 12; i++)
			memcpy(text + n + 4 * i, "\xf0\x9f\x98\x80", 4);
		text[n + 48] = '\0';
		err_set(&err, ERR_FAILED, "%s", text);
		assert_true(strlen(err.text) > 1016);
		assert_null(strchr(err.text, '\\'));
		assert_memory_equal(err.text, text, strlen(err.text));
	}
}

static void the_cause_is_kept_and_the_context_cut(void **state)
{
	char context[1100], cause[1100];
	struct err err;

	(void)state;
	memset(context, 'c', sizeof context);
	context[1099] = '\0';
	err_set(&err, ERR_IO, "the disk is full");
	err_wrap(&err, "%s", context);
	assert_int_equal(strlen(err.text), sizeof err.text - 1);
	assert_string_equal(err.text + strlen(err.text) - 18, ": the disk is full");
	err_errno(&err, ENOSPC, "%s", context);
	assert_string_equal(err.text + strlen(err.text) - 25, ": No space left on device");

	for (size_t n = 1015; n < 1024; n++) {
		memset(cause, 'd', n);
		cause[n] = '\0';
		err_set(&err, ERR_IO, "%s", cause);
		err_wrap(&err, "ctx");
		assert_true(strlen(err.text) >= n && strlen(err.text) < sizeof err.text);
		assert_string_equal(err.text + strlen(err.text) - n, cause);
	}
}

static void every_code_has_a_name_that_leads_back(void **state)
{
	(void)state;
	for (int i = 0; i < N_ERR_CODES; i++) {
		assert_non_null(err_code_name((enum err_code)i));
		assert_int_equal(err_code_from_name(err_code_name((enum err_code)i)), i);
		assert_in_range(err_http_status((enum err_code)i), 200, 599);
	}
	assert_int_equal(err_code_from_name("no such"), ERR_FAILED);
}

/* Scripts stand on these. */
static void exit_statuses_are_stable(void **state)
{
	static const struct {
		enum err_code code;
		int status;
	} stable[] = {{ERR_NONE, 0}, {ERR_FAILED, 1}, {ERR_USAGE, 2}, {ERR_PARTIAL, 3}, {ERR_NOT_FOUND, 4},
		      {ERR_UNREACHABLE, 5}, {ERR_BUSY, 6}, {ERR_TOO_LARGE, 7}, {ERR_DAMAGED, 8}, {ERR_MISMATCH, 9},
		      {ERR_PERMISSION, 10}, {ERR_DEADLINE, 124}, {ERR_CANCELLED, 130}, {ERR_UNAVAILABLE, 1}, {ERR_IO, 1},
		      {ERR_FORMAT, 1}};

	(void)state;
	assert_int_equal(sizeof stable / sizeof *stable, N_ERR_CODES);
	for (size_t i = 0; i < N_ERR_CODES; i++)
		assert_int_equal(err_exit_status(stable[i].code), stable[i].status);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_layer_adds_what_it_alone_knows),
		cmocka_unit_test(an_error_number_picks_the_code),
		cmocka_unit_test(nobody_has_to_listen),
		cmocka_unit_test(an_error_may_be_made_of_itself),
		cmocka_unit_test(a_file_name_cannot_drive_a_terminal),
		cmocka_unit_test(text_stays_as_it_is_and_other_bytes_are_named),
		cmocka_unit_test(what_does_not_fit_is_cut_between_characters),
		cmocka_unit_test(a_sentence_that_is_too_long_ends_in_a_whole_character),
		cmocka_unit_test(the_cause_is_kept_and_the_context_cut),
		cmocka_unit_test(every_code_has_a_name_that_leads_back),
		cmocka_unit_test(exit_statuses_are_stable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
