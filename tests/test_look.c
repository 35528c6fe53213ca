#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cache/history.h"
#include "config/log.h"
#include "daemon/look.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

struct fixture {
	char *dir;
	struct cache *cache;
	struct cache_reader *reader;
	struct text old, new;
};

/* Corpus a with snapshots 1 and 2, of which the first 128 tokens are the same. */
static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct err err;

	log_set_level(LOG_LEVEL_ERROR);
	f->dir = temp_dir_new_in_memory();
	f->cache = store_open(f->dir);
	cache_keep_snapshots(f->cache, 3);
	f->old = text_of("a", 256, 128, 1);
	f->new = text_of("a", 200, 128, 2);
	must_store(f->cache, &f->old);
	must_store(f->cache, &f->new);
	assert_int_equal(cache_reader_open(&f->reader, f->dir, &err), 0);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	cache_reader_close(f->reader);
	cache_close(f->cache);
	temp_dir_free(f->dir);
	free(f);
	log_set_level(LOG_LEVEL_INFO);
	return 0;
}

static int look(struct fixture *f, json_t **reply, enum api_route route, const char *name, const char *body, struct err *err)
{
	return look_reply(reply, f->reader, route, name, body, strlen(body), err);
}

static int64_t get_integer(const json_t *o, const char *key)
{
	assert_true(json_is_integer(json_object_get(o, key)));
	return json_integer_value(json_object_get(o, key));
}

static void a_diff_says_what_both_share_and_which_files_are_others(void **state)
{
	json_t *reply, *from, *to;
	struct err err;
	char *body = look_diff_format(NULL, "a");

	assert_string_equal(body, "{\"to\":\"a\"}");
	assert_int_equal(look(*state, &reply, API_DIFF, "", body, &err), 0);
	from = json_object_get(reply, "from");
	to = json_object_get(reply, "to");

	assert_int_equal(get_integer(from, "id"), 1);
	assert_int_equal(get_integer(to, "id"), 2);
	assert_int_equal(get_integer(from, "spans"), 4);
	assert_true(json_is_true(json_object_get(to, "current")));
	assert_int_equal(get_integer(reply, "shared_tokens"), 128);
	assert_int_equal(get_integer(reply, "shared_spans"), 2);
	assert_int_equal(get_integer(reply, "same"), 1);
	assert_int_equal(json_array_size(json_object_get(reply, "files")), 0);
	assert_string_equal(json_string_value(json_object_get(json_object_get(reply, "parting"), "path")), "a.c");
	assert_int_equal(get_integer(json_object_get(reply, "parting"), "line"), 2);
	json_decref(reply);
	free(body);

	body = look_diff_format("a@2", "a@1");
	assert_string_equal(body, "{\"from\":\"a@2\",\"to\":\"a@1\"}");
	assert_int_equal(look(*state, &reply, API_DIFF, "", body, &err), 0);
	assert_int_equal(get_integer(json_object_get(reply, "to"), "id"), 1);
	json_decref(reply);
	free(body);
}

/* Every refusal names what was wrong. */
static void a_bad_diff_is_refused_by_what_is_wrong_with_it(void **state)
{
	static const struct {
		const char *body;
		enum err_code code;
		const char *word;
	} bad[] = {
		{"", ERR_USAGE, "body"},
		{"[]", ERR_USAGE, "object"},
		{"{}", ERR_USAGE, "to: the name"},
		{"{\"from\":\"a\"}", ERR_USAGE, "to: the name"},
		{"{\"to\":1}", ERR_USAGE, "to: the name"},
		{"{\"to\":\"\"}", ERR_USAGE, "to: "},
		{"{\"to\":\"a@\"}", ERR_USAGE, "to: a@: \"\" is not the id"},
		{"{\"to\":\"a@0\"}", ERR_USAGE, "\"0\" is not the id"},
		{"{\"to\":\"a@1@2\"}", ERR_USAGE, "\"1@2\" is not the id"},
		{"{\"to\":\"a@-1\"}", ERR_USAGE, "\"-1\" is not the id"},
		{"{\"to\":\"@1\"}", ERR_USAGE, "cannot name a corpus"},
		{"{\"to\":\"a\",\"form\":\"a@1\"}", ERR_USAGE, "form"},
		{"{\"to\":\"a\",\"to\":\"a\"}", ERR_USAGE, "to"},
		{"{\"to\":\"a\",\"from\":\"a@2\"}", ERR_USAGE, "compared with itself"},
		{"{\"to\":\"a@1\"}", ERR_NOT_FOUND, "no snapshot before 1"},
		{"{\"to\":\"a@3\"}", ERR_NOT_FOUND, "there are 2 (the current one), 1"},
		{"{\"to\":\"b\"}", ERR_NOT_FOUND, "nearest name is 'a'"},
	};
	json_t *reply;

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct err err = {0};

		assert_int_equal(look(*state, &reply, API_DIFF, "", bad[i].body, &err), -1);
		assert_int_equal(err.code, bad[i].code);
		if (!strstr(err.text, bad[i].word))
			fail_msg("%s", err.text);
	}
}

static void the_files_of_a_former_snapshot_have_its_own_name(void **state)
{
	struct fixture *f = *state;
	json_t *reply;
	struct err err;

	assert_int_equal(look(f, &reply, API_FILES, "a@1", "", &err), 0);
	assert_int_equal(get_integer(json_array_get(json_object_get(reply, "documents"), 0), "tokens"), 256);
	assert_string_equal(json_string_value(json_object_get(json_array_get(json_object_get(reply, "skipped"), 0), "path")),
			    "\"b\\n\\377.bin\"");
	json_decref(reply);
	assert_int_equal(look(f, &reply, API_FILES, "a", "", &err), 0);
	assert_int_equal(get_integer(json_array_get(json_object_get(reply, "documents"), 0), "tokens"), 200);
	json_decref(reply);
	assert_int_equal(look(f, &reply, API_FILES, "a@7", "", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(look(f, &reply, API_SNAPSHOTS, "a", "", &err), 0);
	assert_int_equal(json_array_size(json_object_get(reply, "snapshots")), 2);
	json_decref(reply);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_diff_says_what_both_share_and_which_files_are_others, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_bad_diff_is_refused_by_what_is_wrong_with_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_files_of_a_former_snapshot_have_its_own_name, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
