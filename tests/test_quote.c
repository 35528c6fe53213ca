#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "config/mem.h"
#include "daemon/quote.h"

struct source {
	const char *path, *text;
};

static struct lines *lines_of(const struct source *sources, size_t n)
{
	struct lines *l = lines_new();

	for (size_t i = 0; i < n; i++)
		lines_add(l, sources[i].path, strlen(sources[i].path), sources[i].text, strlen(sources[i].text));
	lines_index(l);
	return l;
}

static const struct source house[] = {
	{"src/limit.c", "#include \"limit.h\"\n"                       /* 1 */
			"\n"
			"int retry_limit(void)\n"
			"{\n"
			"\treturn retries_left;\n"                    /* 5 */
			"}\n"
			"\n"
			"int retry_limit_set(int n)\n"
			"{\n"
			"\treturn retries_left = n;\n"               /* 10 */
			"}\n"},
	{"src/limit.h", "#pragma once\r\n"
			"int retry_limit(void);\r\n"
			"int retry_limit_set(int n);\r\n"},
	{"doc/notes.md", "# Retries\n"
			 "\n"
			 "The limit is read once, when the daemon starts.\n"
			 "See int retry_limit(void) for more.\n"
			 "\"caf\xc3\xa9 au lait\" is served there"},
	{"doc/my notes.md", "int x\nint x\nint x\nint x\nint x\nint x\nint x\nint x\nint x\nint xyz;\n"},
	{"tools/limit.h", "Pragmatic tools have no limit here.\n"},
	{"\"odd\\033.txt\"", "an escape in its name\n"},
	{"settings", "tgd = 53\nn = 4\n"},
};

/* One citation a line: status, what is quoted, where it stands, what the answer says. */
static char *told(const struct lines *l, const char *answer, size_t bytes, bool is_cut)
{
	struct quotes q;
	char *text = NULL;
	size_t n;
	FILE *f = open_memstream(&text, &n);

	quotes_find(&q, l, answer, bytes, is_cut);
	assert_int_equal(q.checked, bytes);
	for (size_t i = 0; i < q.n; i++) {
		const struct quote *c = &q.list[i];

		fprintf(f, "%s%s %s %zu-%zu", i ? "\n" : "", quote_kind_name(c->kind), quote_status_name(c->status), c->begin, c->end);
		if (c->n_places)
			fprintf(f, " %s:%d-%d", lines_path(l, c->places[0].document), c->places[0].first, c->places[0].last);
		if (c->n_places > 1)
			fprintf(f, " of %" PRId64, c->n_places);
		if (c->is_claimed)
			fprintf(f, " said %.*s:%d-%d", (int)(c->claim.end - c->claim.begin), answer + c->claim.begin,
				c->claim.first, c->claim.last);
		if (c->is_cut)
			fputs(" cut", f);
	}
	fclose(f);
	quotes_clear(&q);
	return text;
}

struct case_of {
	const char *answer, *told;
};

static void check_cases(const struct case_of *cases, size_t n, bool is_cut)
{
	struct lines *l = lines_of(house, sizeof house / sizeof *house);

	for (size_t i = 0; i < n; i++) {
		char *text = told(l, cases[i].answer, strlen(cases[i].answer), is_cut);

		if (strcmp(text, cases[i].told))
			print_message("of the answer:\n%s\n", cases[i].answer);
		assert_string_equal(text, cases[i].told);
		free(text);
	}
	lines_free(l);
}

#define CHECK(cases, is_cut) check_cases(cases, sizeof(cases) / sizeof *(cases), is_cut)

static void a_whole_line_is_found_whatever_blanks_surround_it(void **state)
{
	static const struct case_of cases[] = {
		{"return retries_left;", "lines verified 0-20 src/limit.c:5-5"},
		{"It is so:\n\n    return retries_left;  \n\nThat is all.\n", "lines verified 15-35 src/limit.c:5-5"},
		{"int retry_limit(void);\n", "lines verified 0-22 src/limit.h:2-2"},
		{"int retry_limit(void);\r\nthat is it\r\n", "lines verified 0-22 src/limit.h:2-2"},
		{"\"caf\xc3\xa9 au lait\" is served there", "lines verified 0-31 doc/notes.md:5-5"},
		/* Short, but all that is said. */
		{"\n tgd = 53\n", "lines verified 2-10 settings:1-1"},
	};

	(void)state;
	CHECK(cases, false);
}

static void lines_in_a_row_are_one_quotation_and_the_longest_run_wins(void **state)
{
	static const struct case_of cases[] = {
		/* Line 4 is like line 9, and what follows tells them apart. */
		{"{\nreturn retries_left = n;\n}", "lines verified 0-28 src/limit.c:9-11"},
		{"int retry_limit(void);\nint retry_limit_set(int n);\n", "lines verified 0-50 src/limit.h:2-3"},
		/* A row does not go on in the next document. */
		{"int retry_limit_set(int n);\n# Retries\n\nThe limit is read once, when the daemon starts.\n",
		 "lines verified 0-27 src/limit.h:3-3\n"
		 "lines verified 28-86 doc/notes.md:1-3"},
		{"int retry_limit_set(int n);\n\n# Retries\n\nThe limit is read once, when the daemon starts.\n",
		 "lines verified 0-27 src/limit.h:3-3\n"
		 "lines verified 29-87 doc/notes.md:1-3"},
		/* The other way round there are two. */
		{"int retry_limit_set(int n);\nint retry_limit(void);\n", "lines verified 0-27 src/limit.h:3-3\n"
									  "lines verified 28-50 src/limit.h:2-2"},
	};

	(void)state;
	CHECK(cases, false);
}

static void what_says_nothing_is_no_quotation(void **state)
{
	static const struct case_of cases[] = {
		{"", ""},
		{"\n\n  \n", ""},
		{"}\n{\n}\n", ""},
		{"not found", ""},
		{"The limit is read when the daemon starts, once.", ""},
		/* Nearly the line, but not it. */
		{"int retry_limit(int);\n", ""},
		{"return retries_left", ""},
		/* Four letters, in nine lines and more; and three letters. */
		{"It is an `int x` there.", ""},
		{"It is an `n` or `int`.", ""},
		{"It is an ``", ""},
		/* The same as lines, also where they are all that is said; and a short line that is not. */
		{"int x", ""},
		{"n = 4", ""},
		{"It is this:\ntgd = 53", ""},
		{"`an open end, and \"another one", ""},
		/* A path without a line, a time, an address. */
		{"See `src/limit.c` or src/limit.h at 12:30 on https://example.c:80, x:1 or a.b:7.", ""},
	};

	(void)state;
	CHECK(cases, false);
}

static void a_span_stands_where_a_line_contains_it(void **state)
{
	static const struct case_of cases[] = {
		{"It is `retry_limit_set(int n)`, I think.", "span verified 7-29 src/limit.c:8-8 of 2"},
		{"It says \"when the daemon starts\".", "span verified 9-31 doc/notes.md:3-3"},
		{"It says \xe2\x80\x9cread once\xe2\x80\x9d.", "span verified 11-20 doc/notes.md:3-3"},
		{"It is ``retries_left``.", "span verified 8-20 src/limit.c:5-5 of 2"},
		{"It is ` retries_left `.", "span verified 8-20 src/limit.c:5-5 of 2"},
		{"It is `caf\xc3\xa9`.", "span verified 7-12 doc/notes.md:5-5"},
		/* Short and rare. */
		{"It is `xyz;`, or `int xyz`.", "span verified 18-25 doc/my notes.md:10-10"},
		/* In the middle of a word stands nothing. */
		{"It is `etry_limit_set`.", "span unverified 7-21"},
		{"It is `retry_limi`.", "span unverified 7-17"},
		{"It is `retry_limit_get`.", "span unverified 7-22"},
		/* Said twice, told once. */
		{"`retry_limit_get`, yes: `retry_limit_get`!", "span unverified 1-16"},
	};

	(void)state;
	CHECK(cases, false);
}

static void a_fenced_block_is_quoted_whole(void **state)
{
	static const struct case_of cases[] = {
		{"So:\n```c\nint retry_limit(void)\n{\n\treturn retries_left;\n}\n```\n", "lines verified 9-56 src/limit.c:3-6"},
		{"~~~\nint retry_limit_get(void)\n{\n}\n~~~\n", "lines unverified 4-33"},
		/* What is right and what is not, in their order. */
		{"```\nint wrong_before(void);\n\nint retry_limit(void);\nint wrong_after(void);\n```\n",
		 "lines unverified 4-27\n"
		 "lines verified 29-51 src/limit.h:2-2\n"
		 "lines unverified 52-74"},
		/* Without an end it goes on to the end, and a shorter or another mark is none. */
		{"````\nint wrong(int);\n```\n~~~~\nint wrong(int);", "lines unverified 5-45"},
		{"```\n}\n```\nint wrong(int);\n", ""},
		/* Marks on one line are a span. */
		{"```retry_limit_get```", "span unverified 3-18"},
	};

	(void)state;
	CHECK(cases, false);
}

static void a_place_alone_is_there_or_is_not(void **state)
{
	static const struct case_of cases[] = {
		{"See src/limit.c:11.", "place verified 4-18 src/limit.c:11-11 said src/limit.c:11-11"},
		{"See src/limit.c:12.", "place unverified 4-18 said src/limit.c:12-12"},
		{"See src/limit.c:0.", "place unverified 4-17 said src/limit.c:0-0"},
		{"See (src/limit.c:3-6) there.", "place verified 5-20 src/limit.c:3-6 said src/limit.c:3-6"},
		{"See src/limit.c:6-3.", "place unverified 4-19 said src/limit.c:6-3"},
		{"See src/limit.c#L3-L6, src/limit.c#L7.", "place verified 4-21 src/limit.c:3-6 said src/limit.c:3-6\n"
							   "place verified 23-37 src/limit.c:7-7 said src/limit.c:7-7"},
		{"See src/limit.c:3:14: error", "place verified 4-20 src/limit.c:3-3 said src/limit.c:3-3"},
		/* By the end of its path, if only one has it. */
		{"See ./src/limit.c:1, notes.md:2", "place verified 6-19 src/limit.c:1-1 said src/limit.c:1-1\n"
						    "place verified 21-31 doc/notes.md:2-2 said notes.md:2-2"},
		{"See limit.h:1.", "place unverified 4-13 said limit.h:1-1"},
		{"See imit.c:1.", "place unverified 4-12 said imit.c:1-1"},
		{"See other/limit.c:1.", "place unverified 4-19 said other/limit.c:1-1"},
		/* With a blank in it; with odd bytes, as the model reads it; between marks. */
		{"See doc/my notes.md:10.", "place verified 4-22 doc/my notes.md:10-10 said doc/my notes.md:10-10"},
		{"See \"odd\\033.txt\":1.", "place verified 4-19 \"odd\\033.txt\":1-1 said \"odd\\033.txt\":1-1"},
		{"See `src/limit.c`:4.", "place verified 5-19 src/limit.c:4-4 said src/limit.c:4-4"},
		{"See `src/limit.c:4`.", "place verified 5-18 src/limit.c:4-4 said src/limit.c:4-4"},
		/* No such ending, no place. */
		{"See limit.rs:4.", ""},
		{"See src/limit.c:1234567890.", ""},
		{"See src/limit.c:5x.", ""},
	};

	(void)state;
	CHECK(cases, false);
}

static void a_quotation_is_where_the_answer_says_or_it_has_moved(void **state)
{
	static const struct case_of cases[] = {
		{"`return retries_left;` (src/limit.c:5)", "span verified 1-21 src/limit.c:5-5 said src/limit.c:5-5"},
		{"`return retries_left;` (src/limit.c:6)", "span moved 1-21 src/limit.c:5-5 said src/limit.c:6-6"},
		{"`return retries_left;` (src/limit.c:4-6)", "span verified 1-21 src/limit.c:5-5 said src/limit.c:4-6"},
		{"`return retries_right;` (src/limit.c:5)", "span unverified 1-22 said src/limit.c:5-5"},
		/* Of two places, the one that is said; else the nearer one in the file that is said. */
		{"src/limit.h:3 has `retry_limit_set(int n)`", "span verified 19-41 src/limit.h:3-3 of 2 said src/limit.h:3-3"},
		{"src/limit.h:1 has `retry_limit_set(int n)`", "span moved 19-41 src/limit.h:3-3 of 2 said src/limit.h:1-1"},
		/* In a file that is not there, or on a line that is not. */
		{"src/other.c:5: `return retries_left;`", "span moved 16-36 src/limit.c:5-5 said src/other.c:5-5"},
		{"src/limit.c:99: `return retries_left;`", "span moved 17-37 src/limit.c:5-5 said src/limit.c:99-99"},
		/* A common word is evidence where it is said to be. */
		{"`int x` is at my notes.md:7", "span verified 1-6 doc/my notes.md:7-7 of 9 said my notes.md:7-7"},
		{"`int x` is at doc/my notes.md:7", "span verified 1-6 doc/my notes.md:7-7 of 9 said doc/my notes.md:7-7"},
		/* Above, below, and in the mark of a block. */
		{"In src/limit.c:3-6:\n\n```\nreturn retries_left;\n```", "lines verified 25-45 src/limit.c:5-5 said src/limit.c:3-6"},
		{"```c src/limit.c:3-4\nreturn retries_left;\n```", "lines moved 21-41 src/limit.c:5-5 said src/limit.c:3-4"},
		{"return retries_left;\n\n(src/limit.c:5)", "lines verified 0-20 src/limit.c:5-5 said src/limit.c:5-5"},
		{"```\nint wrong(int);\n```\nsrc/limit.c:5", "lines unverified 4-19 said src/limit.c:5-5"},
		/* Another line's place is not this span's. */
		{"src/limit.c:6\n`return retries_left;`", "place verified 0-13 src/limit.c:6-6 said src/limit.c:6-6\n"
							  "span verified 15-35 src/limit.c:5-5"},
		/* As search programs print it. */
		{"src/limit.c:5:\treturn retries_left;", "lines verified 15-35 src/limit.c:5-5 said src/limit.c:5-5"},
		{"src/limit.c:9:\treturn retries_left;", "lines moved 15-35 src/limit.c:5-5 said src/limit.c:9-9"},
		/* Each to its own, in whatever order. */
		{"`return retries_left;` is src/limit.c:5, `# Retries` notes.md:1.",
		 "span verified 1-21 src/limit.c:5-5 said src/limit.c:5-5\n"
		 "span verified 42-51 doc/notes.md:1-1 said notes.md:1-1"},
		{"At src/limit.c:5, `return retries_left;`; at notes.md:1, `# Retries`.",
		 "span verified 19-39 src/limit.c:5-5 said src/limit.c:5-5\n"
		 "span verified 58-67 doc/notes.md:1-1 said notes.md:1-1"},
	};

	(void)state;
	CHECK(cases, false);
}

static void a_cut_answer_is_quoted_as_far_as_it_goes(void **state)
{
	static const struct case_of cut[] = {
		{"The limit is read on", "lines verified 0-20 doc/notes.md:3-3 cut"},
		{"# Retries\n\nThe lim", "lines verified 0-18 doc/notes.md:1-3 cut"},
		{"return retries_left;\n", "lines verified 0-20 src/limit.c:5-5"},
		/* The beginning is what it must be, and 16 bytes of it. */
		{"limit is read once, w", ""},
		{"The limit is re", ""},
		{"```\nint wrong_before(v", ""},
		{"```\nint wrong_before(void);\nint wro", "lines unverified 4-27"},
	}, whole[] = {
		{"The limit is read on", ""},
		{"# Retries\n\nThe lim", ""}, /* seven letters */
	};

	(void)state;
	CHECK(cut, true);
	CHECK(whole, false);
}

static void places_are_counted_and_the_first_are_named(void **state)
{
	char text[4096] = "";
	struct source s = {"a.txt", text};
	struct lines *l;
	struct quotes q;

	(void)state;
	for (int i = 0; i < 100; i++)
		strcat(text, i % 3 ? "nothing much\n" : "this line again\n");
	l = lines_of(&s, 1);
	quotes_find(&q, l, "this line again", 15, false);
	assert_int_equal(q.n, 1);
	assert_int_equal(q.list[0].n_places, 34);
	for (int i = 0; i < QUOTE_PLACES; i++)
		assert_int_equal(q.list[0].places[i].first, 3 * i + 1);
	quotes_clear(&q);
	/* The one that is said comes first, and takes the last one's place. */
	quotes_find(&q, l, "this line again\na.txt:97-99", 27, false);
	assert_int_equal(q.n, 1);
	assert_int_equal(q.list[0].places[0].first, 97);
	for (int i = 1; i < QUOTE_PLACES; i++)
		assert_int_equal(q.list[0].places[i].first, 3 * (i - 1) + 1);
	quotes_clear(&q);
	lines_free(l);
}

static void any_bytes_are_a_corpus_and_an_answer(void **state)
{
	static const char latin[] = "caf\xe9 au lait, s'il vous pla\xeet\nnul \0 byte in a line\n\xff\xfe\n";
	struct lines *l = lines_new();
	char *text;

	(void)state;
	lines_add(l, "empty", 5, NULL, 0);
	lines_add(l, "latin", 5, latin, sizeof latin - 1);
	lines_add(l, "blank", 5, "\n", 1);
	lines_index(l);
	assert_int_equal(lines_in_document(l, 0), 0);
	assert_int_equal(lines_in_document(l, 1), 3);
	assert_int_equal(lines_in_document(l, 2), 1);
	text = told(l, latin, sizeof latin - 1, false);
	assert_string_equal(text, "lines verified 0-53 latin:1-3");
	free(text);
	text = told(l, "`l byte`: `nul \0 byte`\xff", 23, false);
	assert_string_equal(text, "span unverified 1-7\nspan verified 11-21 latin:2-2");
	free(text);
	lines_free(l);

	l = lines_of(NULL, 0);
	text = told(l, "`some text` at a.c:1\nand this", 29, true);
	assert_string_equal(text, "span unverified 1-10");
	free(text);
	lines_free(l);
}

/* A long line of one byte each way, and lines that are all alike: the costliest there are. */
static char *repeated(const char *what, size_t bytes)
{
	size_t n = strlen(what);
	char *text = xmalloc(bytes + 1, 1);

	for (size_t i = 0; i < bytes; i++)
		text[i] = what[i % n];
	text[bytes] = '\0';
	return text;
}

static void the_worst_answer_about_the_worst_corpus_ends_soon(void **state)
{
	static const char *const corpora[] = {"a", "aaaaaaaaa\n", "-a", "\n", "`", "a.c:1"};
	static const char *const answers[] = {"a",	       "aaaaaaaaa\n", "`-a-a-a-a-a-a-a-a-a-a-a-a-a` `",	"a.c:1",
					      "` `` ``` ```` ", "\"",		"`a.c:1\":1 ", "\xe2\x80\x9c", "\n", "aaaaaaaaa\n\n```\n",
					      "`aaaaaaaaaaaa` `aaaaaaa aaaaa`"};
	int64_t worst = 0;

	(void)state;
	for (size_t c = 0; c < sizeof corpora / sizeof *corpora; c++) {
		struct source s = {"a.c", repeated(corpora[c], 1 << 22)};
		struct lines *l = lines_of(&s, 1);

		for (size_t a = 0; a < sizeof answers / sizeof *answers; a++) {
			char *answer = repeated(answers[a], 100000);
			struct quotes q;
			int64_t began = clock_now_ms(), took;

			quotes_find(&q, l, answer, 100000, true);
			took = clock_now_ms() - began;
			if (took > worst)
				worst = took;
			assert_true(q.checked <= 100000);
			assert_true(q.n <= QUOTE_MOST);
			quotes_clear(&q);
			free(answer);
		}
		lines_free(l);
		free((char *)s.text);
	}
	print_message("the costliest answer took %lld ms\n", (long long)worst);
	assert_true(worst < 60000); /* of sanitizers too */
}

static void what_is_too_much_is_not_checked_and_that_is_said(void **state)
{
	struct lines *l = lines_of(house, sizeof house / sizeof *house);
	char *answer = xmalloc(400 * 32, 1), *p = answer;
	struct quotes q;

	(void)state;
	for (int i = 0; i < 400; i++)
		p += sprintf(p, "`no_such_name_%d`\n", i);
	quotes_find(&q, l, answer, (size_t)(p - answer), false);
	assert_int_equal(q.n, QUOTE_MOST);
	assert_ptr_equal(strstr(answer, "`no_such_name_256`"), answer + q.checked);
	assert_int_equal(q.list[255].status, QUOTE_UNVERIFIED);
	quotes_clear(&q);
	free(answer);

	/* The line that goes beyond the bytes that are read may be anything. */
	answer = repeated("blah ", QUOTE_ANSWER_BYTES + 100);
	quotes_find(&q, l, answer, QUOTE_ANSWER_BYTES + 100, false);
	assert_int_equal(q.checked, QUOTE_ANSWER_BYTES);
	assert_int_equal(q.n, 0);
	quotes_clear(&q);
	free(answer);
	lines_free(l);
}

static void documents_are_found_by_their_end_where_it_is_one_only(void **state)
{
	struct lines *l = lines_of(house, sizeof house / sizeof *house);

	(void)state;
	assert_int_equal(lines_find_document(l, "src/limit.h", 11), 1);
	assert_int_equal(lines_find_document(l, "limit.h", 7), -1);
	assert_int_equal(lines_find_document(l, "limit.c", 7), 0);
	assert_int_equal(lines_find_document(l, "imit.c", 6), -1);
	assert_int_equal(lines_find_document(l, "", 0), -1);
	assert_true(lines_knows_ending(l, "x.c", 3));
	assert_false(lines_knows_ending(l, "x.cc", 4));
	assert_false(lines_knows_ending(l, ".c", 2));
	assert_false(lines_knows_ending(l, "a/.c", 4));
	assert_false(lines_knows_ending(l, "x.", 2));
	lines_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_whole_line_is_found_whatever_blanks_surround_it),
		cmocka_unit_test(lines_in_a_row_are_one_quotation_and_the_longest_run_wins),
		cmocka_unit_test(what_says_nothing_is_no_quotation),
		cmocka_unit_test(a_span_stands_where_a_line_contains_it),
		cmocka_unit_test(a_fenced_block_is_quoted_whole),
		cmocka_unit_test(a_place_alone_is_there_or_is_not),
		cmocka_unit_test(a_quotation_is_where_the_answer_says_or_it_has_moved),
		cmocka_unit_test(a_cut_answer_is_quoted_as_far_as_it_goes),
		cmocka_unit_test(places_are_counted_and_the_first_are_named),
		cmocka_unit_test(any_bytes_are_a_corpus_and_an_answer),
		cmocka_unit_test(the_worst_answer_about_the_worst_corpus_ends_soon),
		cmocka_unit_test(what_is_too_much_is_not_checked_and_that_is_said),
		cmocka_unit_test(documents_are_found_by_their_end_where_it_is_one_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
