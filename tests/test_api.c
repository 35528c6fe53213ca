#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "daemon/api.h"

static int parse_ask(struct api_ask *ask, const char *body, struct err *err)
{
	*ask = (struct api_ask){0};
	return api_ask_parse(ask, body, strlen(body), err);
}

static int parse_ingest(struct api_ingest *in, const char *corpus, const char *body, struct err *err)
{
	*in = (struct api_ingest){0};
	return api_ingest_parse(in, corpus, body, strlen(body), err);
}

static void every_route_is_found_by_the_path_it_makes(void **state)
{
	(void)state;
	for (int i = 0; i < N_API_ROUTES; i++) {
		char arg[API_SNAPSHOT_BYTES], *path = api_path((enum api_route)i, "linux-6.9");
		const char *allow;
		struct err err;

		assert_int_equal(api_route_find(api_method((enum api_route)i), path, arg, &allow, &err), i);
		if (arg[0])
			assert_string_equal(arg, "linux-6.9");
		free(path);
	}
}

static void a_path_that_is_not_there_and_a_wrong_method_are_told_apart(void **state)
{
	static const char *const nowhere[] = {"/",
					      "",
					      "/api/v1",
					      "/api/v1/jobs/",
					      "/api/v1/jobs/1/",
					      "/api/v1/jobs/1/events/x",
					      "/api/v1/corpora//ingest",
					      "/api/v1/corpora/a/b/ingest",
					      "/api/v1/corpora/%00/ingest",
					      "/api/v1/corpora/%4/ingest",
					      "/API/v1/status"};
	char arg[API_SNAPSHOT_BYTES];
	const char *allow;
	struct err err;

	(void)state;
	for (size_t i = 0; i < sizeof nowhere / sizeof *nowhere; i++) {
		assert_int_equal(api_route_find("POST", nowhere[i], arg, &allow, &err), -1);
		assert_int_equal(err.code, ERR_NOT_FOUND);
		assert_null(allow);
	}
	assert_int_equal(api_route_find("DELETE", "/api/v1/status", arg, &allow, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_string_equal(allow, "GET");
}

static void a_name_in_a_path_is_decoded_once(void **state)
{
	char arg[API_SNAPSHOT_BYTES], *path = api_path(API_INGEST, "50%25/x");
	const char *allow;
	struct err err;

	(void)state;
	assert_string_equal(path, "/api/v1/corpora/50%2525%2Fx/ingest");
	assert_int_equal(api_route_find("POST", path, arg, &allow, &err), API_INGEST);
	assert_string_equal(arg, "50%25/x");
	free(path);
}

static void corpus_names_are_plain_words(void **state)
{
	static const char *const good[] = {"a", "linux-6.9", "A_b.c", "0"};
	static const char *const bad[] = {"", ".", "-x", ".hidden", "a b", "a/b", "a\n", "\xc3\xa9"};
	char longest[API_NAME_BYTES + 1];
	struct err err;

	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof *good; i++)
		assert_int_equal(api_check_corpus_name(good[i], &err), 0);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		assert_int_equal(api_check_corpus_name(bad[i], &err), -1);
		assert_int_equal(err.code, ERR_USAGE);
	}
	memset(longest, 'x', sizeof longest);
	longest[API_NAME_BYTES] = '\0';
	assert_int_equal(api_check_corpus_name(longest, &err), -1);
	longest[API_NAME_BYTES - 1] = '\0';
	assert_int_equal(api_check_corpus_name(longest, &err), 0);
}

static void a_snapshot_is_named_by_its_corpus_and_its_id(void **state)
{
	char longest[API_NAME_BYTES + 20], out[API_SNAPSHOT_BYTES], arg[API_SNAPSHOT_BYTES], *path;
	static const char *const bad[] = {"", "@3", "a@", "a@b", "a@0", "a@-1", "a@1.5", "a@1@2", "a b@1", "a@9999999999999999"};
	const char *allow;
	struct api_snapshot s;
	struct err err;

	(void)state;
	assert_int_equal(api_snapshot_parse(&s, "linux-6.9", &err), 0);
	assert_string_equal(s.corpus, "linux-6.9");
	assert_int_equal(s.id, 0);
	api_snapshot_format(out, &s);
	assert_string_equal(out, "linux-6.9");
	assert_int_equal(api_snapshot_parse(&s, "a@12", &err), 0);
	assert_string_equal(s.corpus, "a");
	assert_int_equal(s.id, 12);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		assert_int_equal(api_snapshot_parse(&s, bad[i], &err), -1);
		assert_int_equal(err.code, ERR_USAGE);
	}

	/* The longest name there can be goes through a path and back; one letter more is no name. */
	memset(longest, 'x', sizeof longest);
	strcpy(longest + API_NAME_BYTES - 1, "@999999999999999");
	assert_int_equal(api_snapshot_parse(&s, longest, &err), 0);
	assert_int_equal(s.id, 999999999999999);
	api_snapshot_format(out, &s);
	assert_string_equal(out, longest);
	path = api_path(API_FILES, longest);
	assert_int_equal(api_route_find("GET", path, arg, &allow, &err), API_FILES);
	assert_string_equal(arg, longest);
	free(path);
	memset(longest, 'x', sizeof longest);
	strcpy(longest + API_NAME_BYTES, "@1");
	assert_int_equal(api_snapshot_parse(&s, longest, &err), -1);
}

static void an_ask_reads_back_as_it_was_written(void **state)
{
	struct api_ask a = {.corpus = "linux", .question = "who calls \"schedule()\"?\n\xc3\xa9\t", .think = true,
			    .snapshot = 12}, b = {0};
	struct err err;
	char *body;

	(void)state;
	for (int i = 0; i < N_API_NUMBERS; i++) {
		a.given[i] = i != API_TOP_K;
		a.numbers[i] = a.given[i] ? api_numbers[i].most : 0;
	}
	body = api_ask_format(&a);
	assert_int_equal(parse_ask(&b, body, &err), 0);
	assert_string_equal(b.corpus, a.corpus);
	assert_string_equal(b.question, a.question);
	assert_true(b.think);
	assert_int_equal(b.snapshot, 12);
	assert_memory_equal(b.given, a.given, sizeof a.given);
	for (int i = 0; i < N_API_NUMBERS; i++)
		assert_true(b.numbers[i] == a.numbers[i]);
	api_ask_clear(&b);
	free(body);
}

/* Every refusal names the field that was wrong. */
static void a_bad_ask_is_refused_by_the_name_of_its_field(void **state)
{
	static const struct {
		const char *body, *word;
	} bad[] = {
		{"", "body"},
		{"{", "body"},
		{"[]", "object"},
		{"{} x", "body"},
		{"{}", "corpus"},
		{"{\"corpus\":\"x\"}", "question"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"snapshot\":0}", "snapshot"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"snapshot\":\"3\"}", "snapshot"},
		{"{\"corpus\":\"x\",\"question\":\"\"}", "question"},
		{"{\"corpus\":\"x\",\"question\":7}", "question"},
		{"{\"corpus\":\"a/b\",\"question\":\"y\"}", "a/b"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"questoin\":\"z\"}", "questoin"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"question\":\"z\"}", "question"},
		{"{\"corpus\":\"x\",\"question\":\"y\\u0000z\"}", "body"},
		{"{\"corpus\":\"x\",\"question\":\"\xff\"}", "body"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"think\":1}", "think"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"max_tokens\":0}", "max_tokens"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"max_tokens\":1.5}", "max_tokens"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"max_tokens\":1e9}", "max_tokens"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"max_tokens\":\"7\"}", "max_tokens"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"temperature\":-0.1}", "temperature"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"top_p\":1.01}", "top_p"},
		{"{\"corpus\":\"x\",\"question\":\"y\",\"seed\":-1}", "seed"},
	};
	struct api_ask ask;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct err err = {0};

		assert_int_equal(parse_ask(&ask, bad[i].body, &err), -1);
		assert_int_equal(err.code, ERR_USAGE);
		assert_non_null(strstr(err.text, bad[i].word));
		assert_null(ask.question);
	}
}

static void json_that_is_nested_too_deep_is_refused(void **state)
{
	char *body = xmalloc(200001, 1);
	struct api_ask ask;
	struct err err;

	(void)state;
	memset(body, '[', 200000);
	body[200000] = '\0';
	assert_int_equal(parse_ask(&ask, body, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	free(body);
}

static void an_ingest_reads_back_and_compares_equal(void **state)
{
	char *exclude[] = {"*.o", "build/**", NULL};
	struct api_ingest a = {.corpus = "linux", .source = "/src/linux", .exclude = exclude, .ref = "v1", .full = true,
			      .dry_run = true, .order_from = "old@3"}, b, copy;
	struct err err;
	char *body = api_ingest_format(&a), *source;

	(void)state;
	assert_int_equal(parse_ingest(&b, "linux", body, &err), 0);
	assert_true(api_ingest_equal(&a, &b));
	assert_string_equal(b.exclude[1], "build/**");
	assert_null(b.include);
	source = api_ingest_source(&b);
	assert_string_equal(source, "/src/linux@v1");
	free(source);
	api_ingest_copy(&copy, &b);
	assert_true(api_ingest_equal(&copy, &b));
	free(copy.exclude[1]);
	copy.exclude[1] = NULL;
	assert_false(api_ingest_equal(&copy, &b));
	api_ingest_clear(&copy);
	api_ingest_clear(&b);
	free(body);
}

static void a_bad_ingest_is_refused_by_the_name_of_its_field(void **state)
{
	static const struct {
		const char *corpus, *body, *word;
	} bad[] = {
		{"x y", "{\"source\":\"/a\"}", "x y"},
		{"x", "{}", "source"},
		{"x", "{\"source\":\"a\"}", "absolute"},
		{"x", "{\"source\":\"/a\",\"exclude\":\"*.o\"}", "exclude"},
		{"x", "{\"source\":\"/a\",\"include\":[1]}", "include"},
		{"x", "{\"source\":\"/a\",\"exclude\":[\"*.o\",\"\"]}", "exclude"},
		{"x", "{\"source\":\"/a\",\"dry_run\":\"yes\"}", "dry_run: true or false"},
		{"x", "{\"source\":\"/a\",\"full\":1}", "full: true or false"},
		{"x", "{\"source\":\"/a\",\"order_from\":\"a/b\"}", "cannot name a corpus"},
		{"x", "{\"source\":\"/a\",\"order_from\":\"a@b\"}", "a@b"},
		{"x", "{\"source\":\"/a\",\"order_from\":\"a@0\"}", "a@0"},
		{"x", "{\"source\":\"/a\",\"order_from\":3}", "order_from"},
		{"x", "{\"source\":\"/a\",\"as\":\"y\"}", "as"},
	};
	struct api_ingest in;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct err err = {0};

		assert_int_equal(parse_ingest(&in, bad[i].corpus, bad[i].body, &err), -1);
		assert_int_equal(err.code, ERR_USAGE);
		assert_non_null(strstr(err.text, bad[i].word));
		assert_null(in.source);
	}
}

static void a_report_says_what_is_left_out_by_kind_with_examples(void **state)
{
	const struct ingest_counts counts = {.n_documents = 5, .n_kept_documents = 3, .n_skipped = 4, .read_bytes = 99,
					     .n_tokens = 40, .kept_tokens = 30, .new_tokens = 10, .new_bytes = 8192};
	const struct ingest_counts following = {.n_documents = 5, .order_from = "old@3", .n_followed_documents = 2};
	const struct ingest_skip_kind kinds[] = {{"binary", 3, {"a.png", "b\n.png", NULL}}, {"ignored", 1, {"build/"}}};
	char *text = api_report_format(&counts, kinds, 2);

	(void)state;
	assert_string_equal(text, "{\"documents\":5,\"kept_documents\":3,\"skipped\":4,\"read_bytes\":99,\"tokens\":40,"
			    "\"kept_tokens\":30,\"new_tokens\":10,\"new_bytes\":8192,\"skips\":["
			    "{\"reason\":\"binary\",\"files\":3,\"examples\":[\"a.png\",\"\\\"b\\\\n.png\\\"\"]},"
			    "{\"reason\":\"ignored\",\"files\":1,\"examples\":[\"build/\"]}]}");
	free(text);
	text = api_report_format(&following, NULL, 0);
	assert_non_null(strstr(text, "\"order_from\":\"old@3\",\"followed_documents\":2,\"skips\":[]}"));
	free(text);
}

static void a_job_reads_back_as_it_was_written(void **state)
{
	struct api_job a = {.id = 41, .state = JOB_FAILED, .attempts = 2, .created_s = 5, .started_s = 6, .finished_s = 7}, b;
	json_t *json;
	struct err err;

	(void)state;
	strcpy(a.request.corpus, "linux");
	a.request.source = "/src/linux";
	a.request.dry_run = true;
	a.report = "{\"tokens\":9,\"skips\":[]}";
	a.progress = (struct ingest_progress){INGEST_PREFILL, 1, 2, 3, 4, 5, 6};
	err_set(&a.error, ERR_TOO_LARGE, "corpus linux has 9 tokens");
	json = api_job_json(&a);
	assert_int_equal(api_job_parse(&b, json, &err), 0);
	assert_int_equal(b.id, 41);
	assert_int_equal(b.state, JOB_FAILED);
	assert_int_equal(b.attempts, 2);
	assert_int_equal(b.finished_s, 7);
	assert_memory_equal(&b.progress, &a.progress, sizeof a.progress);
	assert_int_equal(b.error.code, ERR_TOO_LARGE);
	assert_string_equal(b.error.text, a.error.text);
	assert_string_equal(b.request.source, "/src/linux");
	assert_true(b.request.dry_run);
	assert_string_equal(b.report, a.report);
	api_job_clear(&b);
	json_decref(json);
}

static void jobs_are_called_by_number_with_or_without_their_letter(void **state)
{
	static const char *const bad[] = {"", "j-", "j-x", "-1", "1 ", "j-1234567890123456789"};
	int64_t id;
	struct err err;

	(void)state;
	assert_int_equal(api_job_id_parse(&id, "j-41", &err), 0);
	assert_int_equal(id, 41);
	assert_int_equal(api_job_id_parse(&id, "7", &err), 0);
	assert_int_equal(id, 7);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		assert_int_equal(api_job_id_parse(&id, bad[i], &err), -1);
}

static void an_error_keeps_its_code_and_sentence_over_the_wire(void **state)
{
	(void)state;
	for (int code = ERR_FAILED; code < N_ERR_CODES; code++) {
		struct err a, b;
		char *body;

		err_set(&a, (enum err_code)code, "read /m/experts.bin at byte 7: \"x\"");
		body = api_error_format(&a);
		api_error_parse(&b, err_http_status(a.code), body, strlen(body));
		assert_int_equal(b.code, code);
		assert_string_equal(b.text, a.text);
		free(body);
	}
}

static void a_reply_that_is_no_error_of_ours_is_quoted(void **state)
{
	struct err err;

	(void)state;
	api_error_parse(&err, 502, "<html>\x1b[2J", 10);
	assert_int_equal(err.code, ERR_FAILED);
	assert_non_null(strstr(err.text, "502"));
	assert_non_null(strstr(err.text, "<html>\\x1b[2J"));
}

static void bytes_that_are_not_utf8_become_replacement_characters(void **state)
{
	json_t *text = api_text("a\xff\xc3\xa9\xe2\x82", 6);

	(void)state;
	assert_string_equal(json_string_value(text), "a\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd");
	json_decref(text);
}

static void usage_reads_back_as_it_was_written(void **state)
{
	struct api_usage a = {10, 9, 8, 7, 6, 5, 4, 3, 2, .25, .5, 2.5}, b;
	json_t *json = api_usage_json(&a);

	(void)state;
	api_usage_parse(&b, json);
	assert_memory_equal(&a, &b, sizeof a);
	json_decref(json);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_route_is_found_by_the_path_it_makes),
		cmocka_unit_test(a_path_that_is_not_there_and_a_wrong_method_are_told_apart),
		cmocka_unit_test(a_name_in_a_path_is_decoded_once),
		cmocka_unit_test(corpus_names_are_plain_words),
		cmocka_unit_test(a_snapshot_is_named_by_its_corpus_and_its_id),
		cmocka_unit_test(an_ask_reads_back_as_it_was_written),
		cmocka_unit_test(a_bad_ask_is_refused_by_the_name_of_its_field),
		cmocka_unit_test(json_that_is_nested_too_deep_is_refused),
		cmocka_unit_test(an_ingest_reads_back_and_compares_equal),
		cmocka_unit_test(a_bad_ingest_is_refused_by_the_name_of_its_field),
		cmocka_unit_test(a_report_says_what_is_left_out_by_kind_with_examples),
		cmocka_unit_test(a_job_reads_back_as_it_was_written),
		cmocka_unit_test(jobs_are_called_by_number_with_or_without_their_letter),
		cmocka_unit_test(an_error_keeps_its_code_and_sentence_over_the_wire),
		cmocka_unit_test(a_reply_that_is_no_error_of_ours_is_quoted),
		cmocka_unit_test(bytes_that_are_not_utf8_become_replacement_characters),
		cmocka_unit_test(usage_reads_back_as_it_was_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
