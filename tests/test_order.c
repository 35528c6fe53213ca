#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "ingest/order.h"

enum { MOST = 64 };

/* A document of a test: the hash is its version in every byte. */
struct doc {
	char path[16];
	int version;
	int64_t n_changes;
};

/* What a snapshot holds, in its order. */
struct listed {
	size_t n, n_kept, n_followed;
	char paths[MOST][16];
	struct cache_document documents[MOST];
};

static void hash_of(uint8_t hash[32], int version)
{
	memset(hash, version, 32);
}

/* Order the documents after `former` (NULL: the first time). */
static struct listed *list(const struct doc *docs, size_t n, const struct listed *former)
{
	struct order_document in[MOST];
	uint8_t hashes[MOST][32];
	size_t order[MOST];
	struct listed *l = xcalloc(1, sizeof *l);

	assert_true(n <= MOST);
	for (size_t i = 0; i < n; i++) {
		hash_of(hashes[i], docs[i].version);
		in[i] = (struct order_document){docs[i].path, hashes[i], docs[i].n_changes};
	}
	l->n = n;
	l->n_kept = order_documents(order, in, n, former ? former->documents : NULL, former ? former->n : 0,
				    &l->n_followed);
	for (size_t i = 0; i < n; i++) {
		const struct doc *d = &docs[order[i]];

		assert_true(order[i] < n);
		memcpy(l->paths[i], d->path, sizeof d->path);
		l->documents[i].path = l->paths[i];
		hash_of(l->documents[i].content_hash, d->version);
	}
	return l;
}

static void assert_order(const struct listed *l, const char *want)
{
	char got[MOST * 17] = "";

	for (size_t i = 0; i < l->n; i++)
		snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", i ? " " : "", l->paths[i]);
	assert_string_equal(got, want);
}

static void the_first_time_what_rarely_changes_stands_first_and_ties_go_by_path(void **state)
{
	const struct doc docs[] = {{"b", 1, 3}, {"d", 1, 0}, {"a", 1, 3}, {"c", 1, 40}};
	struct listed *l = list(docs, 4, NULL);

	(void)state;
	assert_order(l, "d a b c");
	assert_int_equal(l->n_kept, 0);
	free(l);
}

static void afterwards_the_changed_and_the_new_come_last_by_number_of_changes(void **state)
{
	const struct doc before[] = {{"a", 1, 0}, {"b", 1, 0}, {"c", 1, 0}, {"d", 1, 0}, {"e", 1, 0}};
	/* b changed for the ninth time, d is gone, f and g are new; what did not change keeps its place although its
	 * number of changes is another. */
	const struct doc after[] = {{"a", 1, 7}, {"b", 2, 9}, {"c", 1, 5}, {"e", 1, 0}, {"f", 1, 2}, {"g", 1, 1}};
	struct listed *first = list(before, 5, NULL), *second = list(after, 6, first);

	(void)state;
	assert_order(first, "a b c d e");
	assert_order(second, "a c e g f b");
	assert_int_equal(first->n_followed, 0);
	assert_int_equal(second->n_kept, 1);
	assert_int_equal(second->n_followed, 3);
	free(first);
	free(second);
}

static void a_rename_is_a_change_and_a_touch_is_nothing(void **state)
{
	const struct doc before[] = {{"a", 1, 0}, {"b", 2, 0}, {"c", 3, 0}};
	const struct doc renamed[] = {{"a2", 1, 0}, {"b", 2, 0}, {"c", 3, 0}};
	const struct doc touched[] = {{"a", 1, 9}, {"b", 2, 9}, {"c", 3, 9}};
	struct listed *first = list(before, 3, NULL), *second = list(renamed, 3, first), *third = list(touched, 3, first);

	(void)state;
	assert_order(second, "b c a2");
	assert_int_equal(second->n_kept, 0);
	assert_order(third, "a b c");
	assert_int_equal(third->n_kept, 3);
	free(first);
	free(second);
	free(third);
}

static void a_document_at_the_end_that_goes_leaves_all_before_it(void **state)
{
	const struct doc before[] = {{"a", 1, 0}, {"b", 1, 0}, {"c", 1, 0}};
	struct listed *first = list(before, 3, NULL), *second = list(before, 2, first), *none = list(before, 0, first);

	(void)state;
	assert_order(second, "a b");
	assert_int_equal(second->n_kept, 2);
	assert_int_equal(none->n, 0);
	free(first);
	free(second);
	free(none);
}

/* A small generator, so that a failure comes back. */
static uint32_t random_below(uint64_t *seed, uint32_t n)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*seed >> 33) % n;
}

static void shuffle(struct doc *docs, size_t n, uint64_t *seed)
{
	for (size_t i = n; i > 1; i--) {
		size_t j = random_below(seed, (uint32_t)i);
		struct doc d = docs[i - 1];

		docs[i - 1] = docs[j];
		docs[j] = d;
	}
}

static const struct doc *find(const struct doc *docs, size_t n, const char *path)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(docs[i].path, path))
			return &docs[i];
	return NULL;
}

static bool is_same(const struct cache_document *d, const struct doc *now)
{
	uint8_t hash[32];

	if (!now)
		return false;
	hash_of(hash, now->version);
	return !memcmp(hash, d->content_hash, sizeof hash);
}

/* The rule, said over again in the plainest way: walk the former list, then sort what is left by selection. */
static void assert_is_what_the_rule_says(const struct listed *now, const struct listed *former, const struct doc *docs,
					 size_t n)
{
	bool used[MOST] = {false};
	size_t at = 0, kept = 0;

	for (size_t i = 0; i < former->n; i++) {
		const struct doc *d = find(docs, n, former->paths[i]);

		if (!is_same(&former->documents[i], d))
			continue;
		assert_string_equal(now->paths[at++], d->path);
		used[d - docs] = true;
		kept += kept == i; /* nothing before it is missing */
	}
	assert_int_equal(now->n_kept, kept);
	assert_int_equal(now->n_followed, at);
	for (; at < n; at++) {
		const struct doc *least = NULL;

		for (size_t i = 0; i < n; i++)
			if (!used[i] && (!least || docs[i].n_changes < least->n_changes ||
					 (docs[i].n_changes == least->n_changes && strcmp(docs[i].path, least->path) < 0)))
				least = &docs[i];
		assert_non_null(least);
		assert_string_equal(now->paths[at], least->path);
		used[least - docs] = true;
	}
}

static void random_edits_follow_the_rule_whatever_order_the_documents_come_in(void **state)
{
	enum { ROUNDS = 3000 };
	struct doc docs[MOST] = {0};
	struct listed *former;
	uint64_t seed = 20261125;
	size_t n = 0;
	int name = 0;

	(void)state;
	former = list(docs, 0, NULL);
	for (int round = 0; round < ROUNDS; round++) {
		int n_edits = (int)random_below(&seed, 4);
		struct listed *now, *again;

		for (int e = 0; e < n_edits; e++) {
			uint32_t what = random_below(&seed, 10);
			struct doc *d = n ? &docs[random_below(&seed, (uint32_t)n)] : NULL;

			if ((what < 3 && n < MOST) || !d) {
				docs[n] = (struct doc){"", (int)random_below(&seed, 200), random_below(&seed, 5)};
				snprintf(docs[n++].path, sizeof docs->path, "%c%d", 'a' + (int)random_below(&seed, 26), name++);
			} else if (what < 5) {
				*d = docs[--n];                                /* deleted */
			} else if (what < 8) {
				d->version = (d->version + 1) % 200;           /* changed */
				d->n_changes++;
			} else if (what < 9) {
				snprintf(d->path, sizeof d->path, "r%d", name++); /* renamed */
			} else {
				d->n_changes++;                                /* changed back, or history rewritten */
			}
		}
		shuffle(docs, n, &seed);
		now = list(docs, n, former);
		assert_is_what_the_rule_says(now, former, docs, n);
		shuffle(docs, n, &seed);
		again = list(docs, n, former);
		assert_int_equal(again->n_kept, now->n_kept);
		for (size_t i = 0; i < n; i++)
			assert_string_equal(again->paths[i], now->paths[i]);
		free(again);
		again = list(docs, n, now); /* nothing changed: nothing moves */
		assert_int_equal(again->n_kept, n);
		free(again);
		free(former);
		former = now;
	}
	free(former);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_time_what_rarely_changes_stands_first_and_ties_go_by_path),
		cmocka_unit_test(afterwards_the_changed_and_the_new_come_last_by_number_of_changes),
		cmocka_unit_test(a_rename_is_a_change_and_a_touch_is_nothing),
		cmocka_unit_test(a_document_at_the_end_that_goes_leaves_all_before_it),
		cmocka_unit_test(random_edits_follow_the_rule_whatever_order_the_documents_come_in),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
