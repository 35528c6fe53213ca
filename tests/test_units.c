#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "config/units.h"

static int64_t bytes_of(const char *text)
{
	struct err err;
	int64_t bytes = -1;

	if (bytes_parse(&bytes, text, &err))
		fail_msg("%s", err.text);
	return bytes;
}

static int64_t duration_of(const char *text)
{
	struct err err;
	int64_t ms = -1;

	if (duration_parse(&ms, text, &err))
		fail_msg("%s", err.text);
	return ms;
}

static void bytes_are_read_in_both_families_of_units(void **state)
{
	(void)state;
	assert_int_equal(bytes_of("0B"), 0);
	assert_int_equal(bytes_of("4096B"), 4096);
	assert_int_equal(bytes_of("64GiB"), 68719476736);
	assert_int_equal(bytes_of("5GB"), 5000000000);
	assert_int_equal(bytes_of("1KiB"), 1024);
	assert_int_equal(bytes_of("1KB"), 1000);
	assert_int_equal(bytes_of("8191PiB"), 8191LL << 50);
	assert_int_equal(bytes_of("9223372036854775807B"), INT64_MAX);
}

static void durations_are_read_in_milliseconds(void **state)
{
	(void)state;
	assert_int_equal(duration_of("250ms"), 250);
	assert_int_equal(duration_of("5s"), 5000);
	assert_int_equal(duration_of("30m"), 1800000);
	assert_int_equal(duration_of("12h"), 43200000);
	assert_int_equal(duration_of("7d"), 604800000);
}

static void assert_bytes_refused(const char *text, const char *sentence)
{
	struct err err;
	int64_t bytes = 77;

	assert_int_equal(bytes_parse(&bytes, text, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(bytes, 77);
	if (strncmp(err.text, sentence, strlen(sentence)))
		fail_msg("%s: refused with \"%s\", not with \"%s\"", text, err.text, sentence);
}

static void a_size_that_could_be_misread_is_refused(void **state)
{
	(void)state;
	assert_bytes_refused("64", "\"64\" has no unit; write one after it, such as 64GiB (known: B, KiB, ");
	assert_bytes_refused("0", "\"0\" has no unit");
	assert_bytes_refused("64G", "\"64G\" has the unknown unit \"G\"");
	assert_bytes_refused("64gb", "\"64gb\" has the unknown unit \"gb\"");
	assert_bytes_refused("64 GiB", "\"64 GiB\" has the unknown unit \" GiB\"");
	assert_bytes_refused("1.5GiB", "\"1.5GiB\" has the unknown unit \".5GiB\"");
	assert_bytes_refused("1_000B", "\"1_000B\" has the unknown unit");
	assert_bytes_refused("", "\"\" is not a whole number with a unit");
	assert_bytes_refused("GiB", "\"GiB\" is not a whole number with a unit");
	assert_bytes_refused("-1GiB", "\"-1GiB\" is not a whole number with a unit");
	assert_bytes_refused("+1GiB", "\"+1GiB\" is not");
	assert_bytes_refused(" 1GiB", "\" 1GiB\" is not");
	assert_bytes_refused("010B", "\"010B\" is not");
	assert_bytes_refused("8192PiB", "\"8192PiB\" is too large");
	assert_bytes_refused("9223372036854775808B", "\"9223372036854775808B\" is too large");
	assert_bytes_refused("99999999999999999999999999GiB", "\"99999999999999999999999999GiB\" is too large");
}

static void counts_stay_in_their_range(void **state)
{
	static const char *const refused[] = {"", "x", "-1", "1.0", "1e3", "007", "1 ", "0x10", "1B"};
	struct err err;
	int64_t n = 0;

	(void)state;
	assert_int_equal(count_parse(&n, "1024", 1, 1024, &err), 0);
	assert_int_equal(n, 1024);
	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
		assert_int_equal(count_parse(&n, refused[i], 0, INT64_MAX, &err), -1);
	assert_int_equal(count_parse(&n, "1025", 1, 1024, &err), -1);
	assert_string_equal(err.text, "1025 is not between 1 and 1024");
	assert_int_equal(count_parse(&n, "0", 1, 1024, &err), -1);
	assert_int_equal(count_parse(&n, "18446744073709551617", 0, INT64_MAX, &err), -1);
	assert_string_equal(err.text, "18446744073709551617 is not between 0 and 9223372036854775807");
	assert_int_equal(n, 1024);
}

static void fractions_are_decimal_and_finite(void **state)
{
	static const char *const refused[] = {"", ".", ".5", "5.", "1e", "1e+", "-1", "+1", "inf", "nan", "0x1p3", "1,5",
					      " 1", "1 ", "1e999"};
	struct err err;
	double x = 0;

	(void)state;
	assert_int_equal(fraction_parse(&x, "0.7", 0, 1, &err), 0);
	assert_true(x == 0.7);
	assert_int_equal(fraction_parse(&x, "1e-6", 0, 1, &err), 0);
	assert_true(x == 1e-6);
	assert_int_equal(fraction_parse(&x, "2.5E+1", 0, 100, &err), 0);
	assert_true(x == 25);
	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
		if (!fraction_parse(&x, refused[i], 0, 1e300, &err))
			fail_msg("\"%s\" was accepted", refused[i]);
	assert_int_equal(fraction_parse(&x, "1.1", 0, 1, &err), -1);
	assert_string_equal(err.text, "1.1 is not between 0 and 1");
}

static void what_is_printed_is_exact_and_short(void **state)
{
	char out[UNITS_TEXT_BYTES];

	(void)state;
	assert_string_equal(bytes_print(out, 0), "0B");
	assert_string_equal(bytes_print(out, 1 << 20), "1MiB");
	assert_string_equal(bytes_print(out, 68719476736), "64GiB");
	assert_string_equal(bytes_print(out, 5000000000), "5GB");
	assert_string_equal(bytes_print(out, 1025), "1025B");
	assert_string_equal(bytes_print(out, INT64_MAX), "9223372036854775807B");
	assert_string_equal(duration_print(out, 1800000), "30m");
	assert_string_equal(duration_print(out, 90000), "90s");
	assert_string_equal(duration_print(out, 0), "0ms");
	assert_string_equal(fraction_print(out, 0.1), "0.1");
	assert_string_equal(fraction_print(out, 1e-6), "1e-06");
	assert_string_equal(fraction_print(out, 100), "100");
	assert_string_equal(fraction_print(out, -0x1p53), "-9007199254740992");
	assert_string_equal(fraction_print(out, 1e16), "1e+16");
	assert_string_equal(fraction_print(out, -1e308), "-1e+308");
	assert_string_equal(fraction_print(out, 1.0 / 3), "0.3333333333333333");
}

static void what_is_printed_reads_back_as_the_same(void **state)
{
	uint64_t x = 88172645463325252;

	(void)state;
	for (int i = 0; i < 10000; i++) {
		char out[UNITS_TEXT_BYTES];
		int64_t value;

		x ^= x << 13; /* xorshift */
		x ^= x >> 7;
		x ^= x << 17;
		value = (int64_t)(x >> (x % 50 + 2)) / 1000 * (i % 2 ? 1000 : 1024);
		assert_int_equal(bytes_of(bytes_print(out, value)), value);
		assert_int_equal(duration_of(duration_print(out, value)), value);
	}
}

static void the_nearest_name_is_the_one_that_was_meant(void **state)
{
	static const char *const names[] = {"path", "template", "compute", "latents", "threads", "max_tokens"};
	enum { N = sizeof names / sizeof names[0] };
	char longest[200];

	(void)state;
	assert_string_equal(nearest_name("pth", names, N), "path");         /* lost */
	assert_string_equal(nearest_name("tempplate", names, N), "template"); /* inserted */
	assert_string_equal(nearest_name("latemts", names, N), "latents");  /* changed */
	assert_string_equal(nearest_name("thraeds", names, N), "threads");  /* swapped, once: a plain edit needs two */
	assert_string_equal(nearest_name("max-token", names, N), "max_tokens");
	assert_string_equal(nearest_name("path", names, N), "path");
	assert_null(nearest_name("colour", names, N));
	assert_null(nearest_name("", names, N));
	assert_null(nearest_name("path", names, 0));
	memset(longest, 'p', sizeof longest);
	longest[sizeof longest - 1] = '\0';
	assert_null(nearest_name(longest, names, N));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_are_read_in_both_families_of_units),
		cmocka_unit_test(durations_are_read_in_milliseconds),
		cmocka_unit_test(a_size_that_could_be_misread_is_refused),
		cmocka_unit_test(counts_stay_in_their_range),
		cmocka_unit_test(fractions_are_decimal_and_finite),
		cmocka_unit_test(what_is_printed_is_exact_and_short),
		cmocka_unit_test(what_is_printed_reads_back_as_the_same),
		cmocka_unit_test(the_nearest_name_is_the_one_that_was_meant),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
