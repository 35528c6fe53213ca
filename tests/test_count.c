#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "engine/layout.h"
#include "ingest/count.h"

static void assert_refusal(const struct count_document *documents, size_t n, int64_t limit, const char *want)
{
	int64_t n_tokens = 3; /* of the opening */
	struct err err;

	for (size_t i = 0; i < n; i++)
		n_tokens += documents[i].n_tokens;
	assert_int_equal(count_too_large("/src", documents, n, n_tokens, limit, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_string_equal(err.text, want);
}

static void the_largest_are_named_and_the_smallest_exclude_that_makes_room(void **state)
{
	const struct count_document documents[] = {
		{"big/a.c", 500}, {"big/deep/b.c", 250}, {"main.c", 20}, {"mid/c.c", 300}, {"small/d.c", 10},
	};

	(void)state;
	/* 1083 - 750 fits into 900, and so do 1083 - 300 and 1083 - 250: the smallest goes. */
	assert_refusal(documents, 5, 900, "/src has 1083 tokens, the context 900; largest: big/ 750, mid/ 300, main.c 20, "
		       "small/ 10; with --exclude '/big/deep/' it has 833");
	assert_refusal(documents, 5, 400, "/src has 1083 tokens, the context 400; largest: big/ 750, mid/ 300, main.c 20, "
		       "small/ 10; with --exclude '/big/' it has 333");
	/* No single one is enough. */
	assert_refusal(documents, 5, 100, "/src has 1083 tokens, the context 100; largest: big/ 750, mid/ 300, main.c 20, "
		       "small/ 10; with --exclude '/big/' --exclude '/mid/' it has 33");
}

static void one_file_too_large_is_said_to_be_just_that(void **state)
{
	const struct count_document one[] = {{"a.c", 500}};

	(void)state;
	assert_refusal(one, 1, 100, "/src has 503 tokens, the context 100; largest: a.c 500; ingest a part of it");
}

static void an_exclude_can_be_pasted_into_a_shell(void **state)
{
	const struct count_document documents[] = {{"it's [1]*/a.c", 500}, {"b.c", 10}};

	(void)state;
	assert_refusal(documents, 2, 100, "/src has 513 tokens, the context 100; largest: it's [1]*/ 500, b.c 10; with "
		       "--exclude '/it'\\''s \\[1]\\*/' it has 13");
}

static void skips_are_counted_by_kind(void **state)
{
	const struct cache_skipped skipped[] = {
		{"a", "unreadable: Permission denied"}, {"b", "binary"}, {"c", "binary"}, {"d", "binary"}, {"e", "binary"},
		{"f", "unreadable: Input/output error"}, {"g", "a reason whose kind is longer than any kind that there is"},
	};
	size_t n;
	struct ingest_skip_kind *kinds = count_skip_kinds(skipped, 7, &n);

	(void)state;
	assert_int_equal(n, 3);
	assert_string_equal(kinds[0].kind, "binary");
	assert_int_equal(kinds[0].n, 4);
	assert_string_equal(kinds[0].examples[2], "d");
	assert_string_equal(kinds[1].kind, "unreadable");
	assert_int_equal(kinds[1].n, 2);
	assert_string_equal(kinds[1].examples[1], "f");
	assert_null(kinds[1].examples[2]);
	assert_int_equal(kinds[2].n, 1);
	free(kinds);
	kinds = count_skip_kinds(skipped, 0, &n);
	assert_int_equal(n, 0);
	free(kinds);
}

static void a_run_takes_whole_pages_for_each_of_its_extents(void **state)
{
	struct layout_group groups[2] = {{.n_layers = 1}, {.n_layers = 4}};
	const struct layout l = {.n_groups = 2, .groups = groups, .n_index_layers = 1, .row_bytes = 100,
				 .index_key_bytes = 32};

	(void)state;
	/* 65 tokens are two spans. 6500 and 26000 bytes of records, 2080 of index keys, 2 x (128 + 1) sums of 8. */
	assert_int_equal(count_run_bytes(&l, 65), 8192 + 28672 + 4096 + 4096);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_largest_are_named_and_the_smallest_exclude_that_makes_room),
		cmocka_unit_test(one_file_too_large_is_said_to_be_just_that),
		cmocka_unit_test(an_exclude_can_be_pasted_into_a_shell),
		cmocka_unit_test(skips_are_counted_by_kind),
		cmocka_unit_test(a_run_takes_whole_pages_for_each_of_its_extents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
