#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "ingest/encoding.h"

static void assert_becomes_of(const void *bytes, size_t n, bool is_html, const char *want)
{
	char *text = xmalloc(n, 1);

	memcpy(text, bytes, n);
	if (!encoding_to_utf8(&text, &n, is_html)) {
		if (want)
			fail_msg("binary, not %s", want);
	} else {
		assert_non_null(want);
		assert_int_equal(n, strlen(want));
		assert_memory_equal(text, want, n);
	}
	free(text);
}

/* Literals with their length, which may have NULs; want NULL: binary. */
#define assert_becomes(bytes, want) assert_becomes_of(bytes, sizeof (bytes) - 1, false, want)
#define assert_page_becomes(bytes, want) assert_becomes_of(bytes, sizeof (bytes) - 1, true, want)

static void utf8_stays_as_it_is_but_for_its_mark(void **state)
{
	(void)state;
	assert_becomes("", "");
	assert_becomes("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x93\x9a\n", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x93\x9a\n");
	assert_becomes("\xef\xbb\xbfint a;", "int a;");
	assert_becomes("\xef\xbb\xbf", "");
	assert_becomes("\x1b[1mbold\x1b[0m\a", "\x1b[1mbold\x1b[0m\a");
	assert_becomes("a\0b", NULL);
}

static void utf16_is_read_by_its_mark(void **state)
{
	(void)state;
	assert_becomes("\xff\xfe" "h\0i\0\n\0", "hi\n");
	assert_becomes("\xfe\xff" "\0h\0i\x20\xac", "hi\xe2\x82\xac");
	assert_becomes("\xff\xfe" "\x3d\xd8\xda\xdc", "\xf0\x9f\x93\x9a"); /* U+1F4DA by two surrogates */
	assert_becomes("\xff\xfe", "");
	assert_becomes("\xff\xfe" "h\0i", NULL);        /* half a letter */
	assert_becomes("\xff\xfe" "\x3d\xd8", NULL);    /* half a pair */
	assert_becomes("\xff\xfe" "\x3d\xd8h\0", NULL);
	assert_becomes("\xff\xfe\0\0h\0\0\0", NULL);    /* UTF-32 has the same beginning */
	assert_becomes("h\0i\0", NULL);                 /* nothing says what it is */
}

static void windows_1252_is_what_looks_like_text_of_western_europe(void **state)
{
	(void)state;
	assert_becomes("na\xefve caf\xe9\n", "na\xc3\xafve caf\xc3\xa9\n");
	assert_becomes("it\x92s 5 \x80 \x96 no more", "it\xe2\x80\x99s 5 \xe2\x82\xac \xe2\x80\x93 no more");
	assert_becomes("a byte \x81 that is no character at all", NULL);
	assert_becomes("control \x01 characters are not for t\xe9xt", NULL);
	assert_becomes("\xcf\xf0\xe8\xe2\xe5\xf2, \xec\xe8\xf0", NULL); /* Cyrillic, in some encoding or other */
	assert_becomes("\xff\x80\x81\xfe", NULL);
}

static void damaged_utf8_is_mended_and_not_read_as_something_else(void **state)
{
	(void)state;
	assert_becomes("\xc3\xa9 \xc3\xa8 \xc3\xaa and one \xe9 that is damaged",
		       "\xc3\xa9 \xc3\xa8 \xc3\xaa and one \xef\xbf\xbd that is damaged");
	assert_becomes("\xc3\xa9\xc3\xa8 cut in \xe2\x82", NULL); /* as many strays as characters */
	assert_becomes("\xc3\xa9 \xc3\xa8 \xc3\xaa \xc3\xab cut short at the end of a line \xe2\x82",
		       "\xc3\xa9 \xc3\xa8 \xc3\xaa \xc3\xab cut short at the end of a line \xef\xbf\xbd\xef\xbf\xbd");
}

static void a_page_says_what_it_is(void **state)
{
	(void)state;
	assert_page_becomes("<meta charset=\"windows-1251\">\xcf\xf0\xe8",
			    "<meta charset=\"windows-1251\">\xd0\x9f\xd1\x80\xd0\xb8");
	assert_page_becomes("<meta content='text/html; charset=Shift_JIS'>\x93\xfa\x96\x7b",
			    "<meta content='text/html; charset=Shift_JIS'>\xe6\x97\xa5\xe6\x9c\xac");
	/* It is UTF-8 whatever it says, and a name that nobody knows is none. */
	assert_page_becomes("<meta charset=iso-8859-1>\xc3\xa9", "<meta charset=iso-8859-1>\xc3\xa9");
	assert_page_becomes("<meta charset=ISO-2022-CN-EXT>caf\xe9", "<meta charset=ISO-2022-CN-EXT>caf\xc3\xa9");
	/* Only a page is asked. */
	assert_becomes("# charset=windows-1251 \xcf\xf0\xe8\xe2\xe5\xf2\xec\xe8\xf0\xec\xe8\xf0\xec\xe8\xf0", NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(utf8_stays_as_it_is_but_for_its_mark),
		cmocka_unit_test(utf16_is_read_by_its_mark),
		cmocka_unit_test(windows_1252_is_what_looks_like_text_of_western_europe),
		cmocka_unit_test(damaged_utf8_is_mended_and_not_read_as_something_else),
		cmocka_unit_test(a_page_says_what_it_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
