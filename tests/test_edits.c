#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/edits.h"
#include "tests/support/temp_dir.h"

/* tests/soak/edits.c runs thousands of these. QUIRE_TEST_SEED=n: that sequence alone. */
enum { SEQUENCES = 6, STEPS = 5, FIRST_SEED = 20261125 };

static struct edits_model tiny;

static int open_tiny(void **state)
{
	struct err err;

	(void)state;
	if (!edits_model_open(&tiny, &err))
		return 0;
	fprintf(stderr, "%s\n", err.text);
	return -1;
}

static int close_tiny(void **state)
{
	(void)state;
	edits_model_close(&tiny);
	return 0;
}

static void after_random_edits_a_reindex_equals_a_cold_ingest_in_keys_records_and_logits(void **state)
{
	const char *wanted = getenv("QUIRE_TEST_SEED");
	struct edits_counts counts = {0};
	struct err err;

	(void)state;
	for (int i = 0; i < (wanted ? 1 : SEQUENCES); i++) {
		uint64_t seed = wanted ? strtoull(wanted, NULL, 10) : (uint64_t)FIRST_SEED + (uint64_t)i;

		if (edits_run(&tiny, seed, STEPS, &counts, &err))
			fail_msg("%s", err.text);
	}
	if (wanted)
		return;
	/* Sequences in which nothing of this happened would show nothing. */
	for (int i = 0; i < N_EDIT_KINDS; i++)
		if (!counts.n_edits[i])
			fail_msg("no %s among the edits", edit_names[i]);
	assert_int_equal(counts.n_reindexes, SEQUENCES * STEPS);
	assert_true(counts.n_compared >= SEQUENCES);
	assert_true(counts.n_cut > 0);
	assert_true(counts.n_others > 0);
	assert_true(counts.kept_tokens > 0 && counts.kept_tokens < counts.n_tokens);
}

/* A comparison that cannot fail would be worth nothing. */
static void a_file_that_changes_behind_the_snapshot_is_seen_by_the_comparison(void **state)
{
	struct edits *e = edits_new(&tiny, FIRST_SEED);
	struct err err;

	(void)state;
	assert_int_equal(edits_step(e, &err), 0);
	assert_int_equal(edits_compare(e, &err), 0);
	free(temp_text(edits_source(e), "behind.c", "int a;\n"));
	assert_int_equal(edits_compare(e, &err), -1);
	assert_non_null(strstr(err.text, "documents, and "));
	assert_int_equal(edits_step(e, &err), -1);
	assert_non_null(strstr(err.text, "the directory "));
	assert_int_equal(edits_counts(e)->n_compared, 1);
	edits_free(e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(after_random_edits_a_reindex_equals_a_cold_ingest_in_keys_records_and_logits),
		cmocka_unit_test(a_file_that_changes_behind_the_snapshot_is_seen_by_the_comparison),
	};

	return cmocka_run_group_tests(tests, open_tiny, close_tiny);
}
