#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "daemon/upkeep.h"

static int parse(struct upkeep *u, enum upkeep_kind kind, const char *body, struct err *err)
{
	return upkeep_parse(u, kind, body, strlen(body), err);
}

static void a_check_reads_back_as_it_was_written(void **state)
{
	const struct upkeep u = {.kind = UPKEEP_CHECK, .corpus = "linux", .read_percent = 12.5, .seed = 7};
	struct upkeep back;
	char *body = upkeep_format(&u);
	struct err err;

	(void)state;
	assert_int_equal(parse(&back, UPKEEP_CHECK, body, &err), 0);
	assert_string_equal(back.corpus, "linux");
	assert_true(back.read_percent == 12.5);
	assert_int_equal(back.seed, 7);
	free(body);
	assert_int_equal(parse(&back, UPKEEP_FORGET, "{\"snapshots\": [4, 7]}", &err), 0);
	assert_int_equal(back.n_snapshots, 2);
	assert_int_equal(back.snapshots[1], 7);
	body = upkeep_format(&back);
	assert_string_equal(body, "{\"snapshots\":[4,7]}");
	free(body);
	assert_int_equal(parse(&back, UPKEEP_FORGET, "{\"keep\": 0}", &err), 0);
	body = upkeep_format(&back);
	assert_string_equal(body, "{\"keep\":0}");
	free(body);
	assert_int_equal(parse(&back, UPKEEP_REPAIR, "", &err), 0);
	assert_string_equal(back.corpus, "");
	assert_int_equal(back.kind, UPKEEP_REPAIR);
}

static void a_bad_field_is_refused_by_its_name(void **state)
{
	static const struct {
		enum upkeep_kind kind;
		const char *body, *word;
	} bad[] = {
		{UPKEEP_CHECK, "[]", "object"},
		{UPKEEP_CHECK, "{\"corpus\": 3}", "corpus"},
		{UPKEEP_CHECK, "{\"corpus\": \"a/b\"}", "a/b"},
		{UPKEEP_CHECK, "{\"read_percent\": 101}", "read_percent"},
		{UPKEEP_CHECK, "{\"read_percent\": -1}", "read_percent"},
		{UPKEEP_CHECK, "{\"read_percent\": \"all\"}", "read_percent"},
		{UPKEEP_CHECK, "{\"seed\": 1e300}", "seed"},
		{UPKEEP_CHECK, "{\"corpora\": \"a\"}", "corpora"},
		{UPKEEP_REPAIR, "{\"read_percent\": 5}", "read_percent"},
		{UPKEEP_CHECK, "{", "the body"},
		{UPKEEP_FORGET, "", "the body"},
		{UPKEEP_FORGET, "{}", "either"},
		{UPKEEP_FORGET, "{\"snapshots\": [1], \"keep\": 2}", "either"},
		{UPKEEP_FORGET, "{\"snapshots\": []}", "snapshots"},
		{UPKEEP_FORGET, "{\"snapshots\": [0]}", "snapshots"},
		{UPKEEP_FORGET, "{\"keep\": -1}", "keep"},
		{UPKEEP_FORGET, "{\"corpus\": \"a\"}", "corpus"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct upkeep u;
		struct err err = {0};

		assert_int_equal(parse(&u, bad[i].kind, bad[i].body, &err), -1);
		assert_int_equal(err.code, ERR_USAGE);
		if (!strstr(err.text, bad[i].word))
			fail_msg("%s does not name %s", err.text, bad[i].word);
	}
}

static void a_report_has_the_findings_and_whom_they_touch(void **state)
{
	char *corpora[] = {"a", "b"};
	struct cache_finding finding = {"row 3 of table span is not what was written", corpora, 2};
	const struct cache_check_report r = {.n_spans = 9, .read_spans = 4, .n_damaged = 1, .findings = &finding,
					     .n_findings = 1};
	const struct cache_repair_report repaired = {.quarantined_spans = 1, .lost_spans = 2, .dropped_jobs = 3};
	json_t *json = upkeep_repair_json(&r, &repaired);
	json_t *found = json_array_get(json_object_get(json, "findings"), 0);

	(void)state;
	assert_int_equal(json_integer_value(json_object_get(json, "spans")), 9);
	assert_int_equal(json_integer_value(json_object_get(json, "damaged")), 1);
	assert_int_equal(json_integer_value(json_object_get(json, "lost_spans")), 2);
	assert_int_equal(json_integer_value(json_object_get(json, "dropped_jobs")), 3);
	assert_string_equal(json_string_value(json_object_get(found, "what")), finding.text);
	assert_int_equal(json_array_size(json_object_get(found, "corpora")), 2);
	assert_int_equal(json_array_size(json_object_get(json, "corpora")), 0);
	json_decref(json);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_check_reads_back_as_it_was_written),
		cmocka_unit_test(a_bad_field_is_refused_by_its_name),
		cmocka_unit_test(a_report_has_the_findings_and_whom_they_touch),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
