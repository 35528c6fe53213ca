/* One read or write of an ingest or of a question goes wrong; tests/soak/faults.c takes each of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "config/mem.h"
#include "tests/support/sanitized.h"
#include "tests/support/store_faults.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_ingest.h"

/* One call in STEP. */
enum { STEP = SANITIZED ? 240 : 20 };

struct fixture {
	char *dir;
	struct store_faults *faults;
};

static int set_up(void **state)
{
	struct fixture *x = xcalloc(1, sizeof *x);
	struct err err;

	log_set_level(LOG_LEVEL_ERROR);
	x->dir = temp_dir_new_in_memory();
	*state = x;
	if (!store_faults_open(&x->faults, x->dir, &err))
		return 0;
	fprintf(stderr, "%s\n", err.text);
	return -1;
}

static int tear_down(void **state)
{
	struct fixture *x = *state;

	store_faults_close(x->faults);
	temp_dir_free(x->dir);
	free(x);
	return 0;
}

/* What the operating system can put right by being asked again, and what has another order and no more. */
static bool is_nothing(const char *name)
{
	return strstr(name, "EINTR") || strstr(name, "short") || strstr(name, "late");
}

static void whatever_read_or_write_goes_wrong_it_is_detected_and_no_logit_is_wrong(void **state)
{
	struct fixture *x = *state;
	int n[N_FAULT_OUTCOMES] = {0};
	struct err err;

	for (int kind = 0; kind < store_faults_n_kinds(); kind++) {
		int n_seen = 0;

		for (int work = 0; work < N_FAULT_WORKS; work++)
			for (int then_on = 0; then_on < 1 + store_faults_kind_lasts(kind); then_on++) {
				enum fault_outcome outcome = N_FAULT_OUTCOMES;

				for (int nth = 1 + (7 * kind + 3 * then_on) % STEP; outcome != FAULT_NOT_MET; nth += STEP) {
					if (store_faults_try(x->faults, (enum fault_work)work, kind, nth, then_on, &outcome, &err))
						fail_msg("%s", err.text);
					n[outcome]++;
					n_seen += outcome == FAULT_MENDED || outcome == FAULT_REFUSED;
				}
			}
		/* A fault of which nobody ever takes notice is none. (Under sanitizers they are too few to tell.) */
		if (!n_seen && STEP <= 20 && !is_nothing(store_faults_kind_name(kind)))
			fail_msg("%s: it was never noticed", store_faults_kind_name(kind));
	}
	for (int i = FAULT_HARMLESS; i < N_FAULT_OUTCOMES; i++)
		if (n[i] * STEP < 1000)
			fail_msg("%s: %d", fault_outcome_names[i], n[i]);
}

static void a_write_that_fails_is_told_with_the_place_and_the_reason(void **state)
{
	struct fixture *x = *state;
	enum fault_outcome outcome;
	struct err err;

	assert_string_equal(store_faults_kind_name(0), "EIO");
	if (store_faults_try(x->faults, FAULT_INGEST, 0, 3, false, &outcome, &err))
		fail_msg("%s", err.text);
	assert_int_equal(outcome, FAULT_REFUSED);
	assert_non_null(strstr(store_faults_text(x->faults), "/segment-000001 at byte "));
	assert_non_null(strstr(store_faults_text(x->faults), "Input/output error"));
}

/* A comparison that cannot fail would be worth nothing. */
static void other_logits_than_those_that_are_right_are_seen(void **state)
{
	struct fixture *x = *state;
	enum fault_outcome outcome;
	char *source = temp_path(x->dir, "source");
	struct err err;

	free(temp_text(source, "a.c", "int other;\n"));
	assert_int_equal(store_faults_try(x->faults, FAULT_INGEST, 0, 3, false, &outcome, &err), -1);
	assert_non_null(strstr(err.text, "the logits are wrong"));
	free(source);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(whatever_read_or_write_goes_wrong_it_is_detected_and_no_logit_is_wrong, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_write_that_fails_is_told_with_the_place_and_the_reason, set_up, tear_down),
		cmocka_unit_test_setup_teardown(other_logits_than_those_that_are_right_are_seen, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, tiny_open, tiny_close);
}
