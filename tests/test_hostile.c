#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ingest/ingest.h"
#include "tests/support/hostile_tree.h"

/* The whole first half of an ingest over a tree that nobody should have; tests/soak/tree.c has fifty times as many files.
 * Whatever waits for something that does not come is ended by the alarm. */
enum { FILES = 20000, DEPTH = 2000, ALARM_S = 300, MOST_FILE_BYTES = 1 << 20 };

/* What it may hold at most at any time: for each file its path, its places in the lists, its lines and its few tokens. */
enum { BYTES_A_FILE = 1024, BYTES_BESIDES = 8 << 20 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* memory is theirs then */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

static struct {
	struct tokenizer *tokenizer;
	struct hostile_tree tree;
} shared;

static int make_tree(void **state)
{
	struct err err;

	(void)state;
	if (tokenizer_open(&shared.tokenizer, "tests/golden/glm52/tokenizer.json", &err)) {
		fprintf(stderr, "%s\n", err.text);
		return -1;
	}
	alarm(ALARM_S);
	hostile_tree_make(&shared.tree, FILES, DEPTH);
	return 0;
}

static int remove_tree(void **state)
{
	(void)state;
	hostile_tree_remove(&shared.tree);
	tokenizer_close(shared.tokenizer);
	return 0;
}

static void keep_progress(void *ctx, const struct ingest_progress *p)
{
	*(struct ingest_progress *)ctx = *p;
}

static int prepare(struct ingest **in, int64_t max_tokens, struct ingest_progress *progress, struct err *err)
{
	const struct ingest_options opt = {.corpus = "hostile", .source = shared.tree.root,
					   .max_file_bytes = MOST_FILE_BYTES, .max_tokens = max_tokens};

	return ingest_prepare(in, &opt, shared.tokenizer, NULL, keep_progress, progress, err);
}

static void assert_bounded(int64_t begin)
{
	int64_t grown = hostile_tree_memory_grown(begin);

#ifdef SANITIZED
	(void)grown;
#else
	if (grown > BYTES_BESIDES + (int64_t)BYTES_A_FILE * FILES)
		fail_msg("%lld bytes of memory for %d files", (long long)grown, FILES);
#endif
}

static void every_file_is_read_or_left_out_for_its_reason_in_bounded_memory(void **state)
{
	const struct hostile_tree *t = &shared.tree;
	int64_t n_links = 0, n_special = 0, n_large = 0, n_unstable = 0, begin;
	const struct cache_skipped *skipped;
	struct ingest_progress progress = {0};
	struct ingest *in;
	struct err err;
	int32_t n;

	(void)state;
	hostile_tree_write(&shared.tree);
	begin = hostile_tree_memory_begin();

	if (prepare(&in, INT32_MAX, &progress, &err))
		fail_msg("%s", err.text);

	assert_bounded(begin);
	hostile_tree_write_end(&shared.tree);
	skipped = ingest_skipped(in, &n);
	for (int32_t i = 0; i < n; i++) {
		const char *reason = skipped[i].reason;

		assert_true(!i || strcmp(skipped[i - 1].path, skipped[i].path) < 0);
		n_links += !strcmp(reason, "symbolic link");
		n_special += !strcmp(reason, "not a regular file");
		n_large += !strcmp(reason, "too large");
		n_unstable += !strcmp(reason, "unstable: it changes while it is read") && !strcmp(skipped[i].path, "busy");
	}
	assert_int_equal(n_links, t->n_links);
	assert_int_equal(n_special, t->n_special);
	assert_int_equal(n_large, t->n_large);
	assert_int_equal(n, n_links + n_special + n_large + n_unstable);
	assert_int_equal(progress.n_files, t->n_plain - n_unstable);
	ingest_free(in);
}

static void one_that_cannot_fit_is_refused_in_bounded_memory(void **state)
{
	int64_t begin = hostile_tree_memory_begin();
	struct ingest_progress progress = {0};
	struct ingest *in;
	struct err err;

	(void)state;

	assert_int_equal(prepare(&in, 10000, &progress, &err), -1);

	assert_bounded(begin);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "the context 10000; largest: "));
	assert_int_equal(progress.n_files, shared.tree.n_plain); /* all were counted, and nothing changes any more */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_file_is_read_or_left_out_for_its_reason_in_bounded_memory),
		cmocka_unit_test(one_that_cannot_fit_is_refused_in_bounded_memory),
	};

	return cmocka_run_group_tests(tests, make_tree, remove_tree);
}
