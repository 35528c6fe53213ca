#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/diff.h"
#include "cache/history.h"
#include "config/log.h"
#include "config/mem.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

enum { MOST_DOCUMENTS = 64, DOCUMENT_TOKENS = 10 };

/* A snapshot as "a1 b2 c1": the documents a, b, c in this order, with texts 1, 2, 1. Each has ten tokens which its path
 * and text give, and two lines, in tokens 2 and 6 of it; three tokens stand before all. */
struct sketch {
	struct cache_snapshot s;
	struct cache_document documents[MOST_DOCUMENTS];
	char paths[MOST_DOCUMENTS][2];
	int32_t ids[3 + MOST_DOCUMENTS * DOCUMENT_TOKENS];
};

static const uint8_t identity[32] = {7}, another_identity[32] = {8};

static void sketch(struct sketch *k, const char *text)
{
	static const uint32_t lines[] = {2, 6};
	int32_t n = 0;

	memset(k, 0, sizeof *k);
	for (int i = 0; i < 3; i++)
		k->ids[i] = i;
	for (const char *p = text; *p; p += p[2] ? 3 : 2, n++) {
		struct cache_document *d = &k->documents[n];

		k->paths[n][0] = p[0];
		*d = (struct cache_document){.path = k->paths[n], .content_hash = {(uint8_t)p[1]}, .n_lines = 2,
					     .first_token = 3 + n * DOCUMENT_TOKENS, .n_tokens = DOCUMENT_TOKENS,
					     .line_tokens = lines};
		for (int i = 0; i < DOCUMENT_TOKENS; i++) /* texts of one path begin alike, and differ in the second line */
			k->ids[d->first_token + i] = i < 6 ? p[0] : p[0] * 256 + p[1];
	}
	k->s = (struct cache_snapshot){.id = 1, .corpus = "a", .identity = identity, .n_tokens = 3 + n * DOCUMENT_TOKENS,
				       .ids = k->ids, .n_documents = n, .documents = k->documents};
}

/* What a diff says, as "-b +d *c >a". */
static void tell(char *out, const struct cache_diff *d)
{
	*out = '\0';
	for (size_t i = 0; i < d->n_files; i++)
		out += sprintf(out, "%s%c%s", i ? " " : "", "-+*>"[d->files[i].change], d->files[i].path);
}

static void every_document_that_is_not_as_it_was_is_named_with_what_happened(void **state)
{
	static const struct {
		const char *from, *to, *says;
	} cases[] = {
		{"a1 b1 c1", "a1 b1 c1", ""},
		{"a1 b1 c1", "a1 c1", "-b"},
		{"a1 c1", "a1 b1 c1", "+b"},
		{"a1 b1 c1", "a1 c1 b2", "*b"},
		{"a1 b1", "c1 d1", "-a -b +c +d"},
		{"", "a1", "+a"},
		{"a1", "", "-a"},
		{"", "", ""},
		/* Of those with the same text as few as can be have moved. */
		{"a1 b1 c1 d1", "d1 a1 b1 c1", ">d"},
		{"a1 b1 c1 d1", "b1 c1 d1 a1", ">a"},
		{"a1 b1 c1 d1 e1", "e1 b1 c1 d1 a1", ">e >a"},
		{"a1 b1 c1 d1 e1", "b2 e1 a1 x1 d1", "-c *b >e +x"},
		/* Not because of what came and went around them. */
		{"a1 b1 c1 d1", "x1 y1 b1 z1 d1", "-a -c +x +y +z"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct sketch from, to;
		struct cache_diff d;
		char says[200];

		sketch(&from, cases[i].from);
		sketch(&to, cases[i].to);
		cache_diff_make(&d, &from.s, &to.s);
		tell(says, &d);
		assert_string_equal(says, cases[i].says);
		assert_int_equal(d.n[CACHE_ADDED] + d.n[CACHE_CHANGED] + d.n[CACHE_MOVED] + d.n_same, to.s.n_documents);
		assert_int_equal(d.n[CACHE_REMOVED] + d.n[CACHE_CHANGED] + d.n[CACHE_MOVED] + d.n_same, from.s.n_documents);
		cache_diff_clear(&d);
	}
}

/* Against all selections of up to ten documents: no smaller number of moves would do. */
static void no_fewer_documents_could_be_said_to_have_moved(void **state)
{
	uint32_t seed = 5;

	(void)state;
	for (int round = 0; round < 200; round++) {
		char from_text[40] = "", to_text[40] = "";
		int order[10], n = 2 + round % 9, most = 0;
		struct sketch from, to;
		struct cache_diff d;

		for (int i = 0; i < n; i++) {
			int at = (int)((seed = seed * 1664525 + 1013904223) >> 16) % (i + 1);

			order[i] = order[at];
			order[at] = i;
		}
		for (int i = 0; i < n; i++) {
			sprintf(from_text + 3 * i, "%c1%s", 'a' + i, i + 1 < n ? " " : "");
			sprintf(to_text + 3 * i, "%c1%s", 'a' + order[i], i + 1 < n ? " " : "");
		}
		for (unsigned chosen = 0; chosen < 1u << n; chosen++) {
			int last = -1, count = 0, ascends = 1;

			for (int i = 0; i < n; i++) {
				if (!(chosen >> i & 1))
					continue;
				ascends &= order[i] > last;
				last = order[i];
				count++;
			}
			most = ascends && count > most ? count : most;
		}
		sketch(&from, from_text);
		sketch(&to, to_text);
		cache_diff_make(&d, &from.s, &to.s);
		assert_int_equal(d.n_same, most);
		assert_int_equal(d.n[CACHE_MOVED], n - most);
		cache_diff_clear(&d);
	}
}

static void a_change_has_places_and_tokens_on_both_sides(void **state)
{
	struct sketch from, to;
	struct cache_diff d;

	(void)state;
	sketch(&from, "a1 b1 c1");
	sketch(&to, "a1 c1 b2 d1");
	to.documents[2].n_tokens = 12;
	from.documents[0].path = "z";

	cache_diff_make(&d, &from.s, &to.s);

	assert_int_equal(d.n_files, 4); /* z went, a came, b changed, d came; c stands where nothing before it stays */
	assert_string_equal(d.files[0].path, "z");
	assert_int_equal(d.files[0].from_place, 0);
	assert_int_equal(d.files[0].to_place, -1);
	assert_int_equal(d.files[0].to_tokens, 0);
	assert_string_equal(d.files[2].path, "b");
	assert_int_equal(d.files[2].change, CACHE_CHANGED);
	assert_int_equal(d.files[2].from_place, 1);
	assert_int_equal(d.files[2].to_place, 2);
	assert_int_equal(d.files[2].from_tokens, 10);
	assert_int_equal(d.files[2].to_tokens, 12);
	assert_int_equal(d.n_same, 1);
	cache_diff_clear(&d);
}

static void tokens_are_shared_up_to_the_first_that_differs_and_spans_as_wholes(void **state)
{
	const char *ten = "a1 b1 c1 d1 e1 f1 g1 h1 i1 j1";
	struct sketch from, to;
	struct cache_diff d;

	(void)state;
	sketch(&from, ten); /* 103 tokens: a span of 64, and one of 39 */
	sketch(&to, ten);
	cache_diff_make(&d, &from.s, &to.s);
	assert_int_equal(d.shared_tokens, 103);
	assert_int_equal(d.shared_spans, 2);
	assert_int_equal(d.parting_place, -1);
	cache_diff_clear(&d);

	/* In the seventh document, whose first line has six tokens in common. */
	sketch(&to, "a1 b1 c1 d1 e1 f1 g2 h1 i1 j1");
	cache_diff_make(&d, &from.s, &to.s);
	assert_int_equal(d.shared_tokens, 3 + 60 + 6);
	assert_int_equal(d.shared_spans, 1);
	assert_int_equal(d.parting_place, 6);
	assert_int_equal(d.parting_line, 2);
	cache_diff_clear(&d);

	/* One is the beginning of the other: its end is no span of the longer one. */
	sketch(&to, "a1 b1 c1 d1 e1 f1 g1");
	cache_diff_make(&d, &from.s, &to.s);
	assert_int_equal(d.shared_tokens, 73);
	assert_int_equal(d.shared_spans, 1);
	assert_int_equal(d.parting_place, -1);
	cache_diff_clear(&d);
	cache_diff_make(&d, &to.s, &from.s);
	assert_int_equal(d.shared_tokens, 73);
	assert_int_equal(d.parting_place, 7);
	assert_int_equal(d.parting_line, 0); /* its header */
	cache_diff_clear(&d);
}

static void snapshots_of_two_identities_share_nothing_whatever_their_tokens(void **state)
{
	struct sketch from, to;
	struct cache_diff d;

	(void)state;
	sketch(&from, "a1 b1");
	sketch(&to, "a1 b1");
	to.s.identity = another_identity;

	cache_diff_make(&d, &from.s, &to.s);

	assert_false(d.same_identity);
	assert_int_equal(d.shared_tokens, 0);
	assert_int_equal(d.shared_spans, 0);
	assert_int_equal(d.parting_place, -1);
	assert_int_equal(d.n_same, 2);
	cache_diff_clear(&d);
}

static void a_pair_is_the_one_before_and_the_current_one_unless_two_are_named(void **state)
{
	char *dir = temp_dir_new_in_memory();
	struct text t[3];
	struct cache *c = store_open(dir);
	struct cache_snapshot *from, *to;
	struct cache_reader *r;
	struct err err;

	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	cache_keep_snapshots(c, 5);
	for (int i = 0; i < 3; i++) {
		t[i] = text_of("a", 256, 100, i + 1);
		must_store(c, &t[i]);
	}
	t[0] = text_of("b", 128, 100, 9);
	must_store(c, &t[0]);
	assert_int_equal(cache_reader_open(&r, dir, &err), 0);

	assert_int_equal(cache_read_pair(r, NULL, 0, "a", 0, &from, &to, &err), 0);
	assert_int_equal(from->id, 2);
	assert_int_equal(to->id, 3);
	assert_memory_equal(from->ids, t[1].ids, 256 * sizeof *from->ids);
	assert_memory_equal(to->ids, t[2].ids, 256 * sizeof *to->ids);
	cache_free_snapshot(from);
	cache_free_snapshot(to);
	assert_int_equal(cache_read_pair(r, NULL, 0, "a", 2, &from, &to, &err), 0);
	assert_int_equal(from->id, 1);
	cache_free_snapshot(from);
	cache_free_snapshot(to);
	assert_int_equal(cache_read_pair(r, "a", 1, "b", 0, &from, &to, &err), 0);
	assert_int_equal(from->id, 1);
	assert_int_equal(to->id, 4);
	cache_free_snapshot(from);
	cache_free_snapshot(to);

	assert_int_equal(cache_read_pair(r, NULL, 0, "a", 1, &from, &to, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, "corpus 'a' has no snapshot before 1"));
	assert_int_equal(cache_read_pair(r, "a", 7, "a", 0, &from, &to, &err), -1);
	assert_string_equal(err.text, "corpus 'a' has no snapshot 7: there are 3 (the current one), 2, 1");
	assert_int_equal(cache_read_pair(r, "a", 1, "bb", 0, &from, &to, &err), -1);
	assert_string_equal(err.text, "no corpus 'bb'; the nearest name is 'b'");
	assert_null(from);
	assert_null(to);

	/* A failed reading ends the moment that it was of: what is committed later is seen. */
	must_store(c, &t[1]);
	assert_int_equal(cache_read_pair(r, NULL, 0, "a", 0, &from, &to, &err), 0);
	assert_int_equal(to->id, 5);
	cache_free_snapshot(from);
	cache_free_snapshot(to);
	cache_reader_close(r);
	cache_close(c);
	temp_dir_free(dir);
}

static void a_row_that_changed_behind_the_stores_back_is_not_compared(void **state)
{
	static const char *const changes[] = {"UPDATE span SET ids = zeroblob(256) WHERE id = 2",
					      "UPDATE snapshot SET source = x'41' WHERE id = 1",
					      "UPDATE document SET path = x'41' WHERE snapshot = 2"};

	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		char *dir = temp_dir_new_in_memory();
		const struct text old = text_of("a", 256, 0, 1), new = text_of("a", 256, 0, 2);
		struct cache *c = store_open(dir);
		struct cache_snapshot *from, *to;
		struct cache_reader *r;
		struct err err;

		cache_keep_snapshots(c, 5);
		must_store(c, &old);
		must_store(c, &new);
		cache_close(c);
		change_index(dir, changes[i]);
		assert_int_equal(cache_reader_open(&r, dir, &err), 0);
		assert_int_equal(cache_read_pair(r, NULL, 0, "a", 0, &from, &to, &err), -1);
		assert_int_equal(err.code, ERR_DAMAGED);
		cache_reader_close(r);
		temp_dir_free(dir);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_document_that_is_not_as_it_was_is_named_with_what_happened),
		cmocka_unit_test(no_fewer_documents_could_be_said_to_have_moved),
		cmocka_unit_test(a_change_has_places_and_tokens_on_both_sides),
		cmocka_unit_test(tokens_are_shared_up_to_the_first_that_differs_and_spans_as_wholes),
		cmocka_unit_test(snapshots_of_two_identities_share_nothing_whatever_their_tokens),
		cmocka_unit_test(a_pair_is_the_one_before_and_the_current_one_unless_two_are_named),
		cmocka_unit_test(a_row_that_changed_behind_the_stores_back_is_not_compared),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
