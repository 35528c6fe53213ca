#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"
#include "ingest/pdf.h"
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

/* One page with one line of text. */
static size_t make_pdf(char *out, size_t room, const char *text)
{
	char stream[256];

	snprintf(stream, sizeof stream, "BT /F1 12 Tf 72 720 Td (%s) Tj ET", text);
	return (size_t)snprintf(out, room,
		"%%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
		"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
		"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
		"/Resources<</Font<</F1 5 0 R>>>>>>endobj\n"
		"4 0 obj<</Length %zu>>stream\n%s\nendstream endobj\n"
		"5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\n"
		"trailer<</Root 1 0 R>>\n%%%%EOF\n", strlen(stream), stream);
}

static bool have_pdftotext(void)
{
	if (!access("/usr/bin/pdftotext", X_OK))
		return true;
	puts("skipped: pdftotext is not installed");
	return false;
}

static void a_pdf_becomes_its_text(void **state)
{
	char pdf[2048], *out, reason[SKIP_REASON_BYTES];
	size_t n = make_pdf(pdf, sizeof pdf, "What the leaves say"), bytes;

	(void)state;
	if (!have_pdftotext())
		skip();
	if (!pdf_to_text(pdf, n, 1000, NULL, NULL, &out, &bytes, reason))
		fail_msg("%s", reason);
	assert_non_null(strstr(out, "What the leaves say"));
	free(out);
	assert_int_equal(pdf_to_text(pdf, n, 5, NULL, NULL, &out, &bytes, reason), 0);
	assert_string_equal(reason, "too large");
	n = make_pdf(pdf, sizeof pdf, " ");
	assert_int_equal(pdf_to_text(pdf, n, 1000, NULL, NULL, &out, &bytes, reason), 0);
	assert_string_equal(reason, "not extracted: there is no text in it, only pictures perhaps");
	assert_int_equal(pdf_to_text("not a pdf", 9, 1000, NULL, NULL, &out, &bytes, reason), 0);
	assert_memory_equal(reason, "not extracted: pdftotext failed: Syntax ", 39);
}

/* A program that stands for pdftotext. */
static char *complainer(const char *dir, const char *text)
{
	char *whole = xasprintf("#!/bin/bash\n%s\n", text), *path = temp_text(dir, "program", whole);

	free(whole);
	assert_int_equal(chmod(path, 0755), 0);
	return path;
}

static void what_keeps_pdftotext_from_its_work_is_the_reason(void **state)
{
	char *program = complainer(*state, "echo $'odd \\e[31m words' >&2; exit 1"), *out, reason[SKIP_REASON_BYTES];
	size_t bytes;

	assert_int_equal(pdf_to_text("x", 1, 1000, program, NULL, &out, &bytes, reason), 0);
	assert_string_equal(reason, "not extracted: pdftotext failed: odd \\x1b[31m words");
	assert_int_equal(pdf_to_text("x", 1, 1000, "/nowhere/pdftotext", NULL, &out, &bytes, reason), 0);
	assert_string_equal(reason, "not extracted: pdftotext cannot be run: /nowhere/pdftotext: No such file or directory");
	free(program);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_pdf_becomes_its_text),
		cmocka_unit_test_setup_teardown(what_keeps_pdftotext_from_its_work_is_the_reason, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
