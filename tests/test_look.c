#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cache/history.h"
#include "config/json.h"
#include "config/log.h"
#include "daemon/look.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_ingest.h"

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
	const struct look no_model = {.no_tokenizer = {ERR_UNAVAILABLE, "there is no model"}, .identity = "", .latents = ""};

	return look_reply(reply, &no_model, f->reader, route, name, body, strlen(body), err);
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

static void a_text_without_a_tokenizer_is_refused_with_the_reason(void **state)
{
	json_t *reply;
	struct err err;
	char *body = look_text_format("a.c");

	assert_string_equal(body, "{\"place\":\"a.c\"}");
	assert_int_equal(look(*state, &reply, API_TEXT, "a", body, &err), -1);
	assert_int_equal(err.code, ERR_UNAVAILABLE);
	assert_non_null(strstr(err.text, "there is no model"));
	free(body);
}

static void a_snapshot_says_how_its_tokens_lie_in_the_store(void **state)
{
	json_t *reply, *records;
	struct err err;

	assert_int_equal(look(*state, &reply, API_SNAPSHOT, "a@1", "", &err), 0);

	assert_int_equal(get_integer(reply, "id"), 1);
	assert_true(json_is_false(json_object_get(reply, "current")));
	assert_int_equal(get_integer(reply, "tokens"), 256);
	assert_int_equal(get_integer(reply, "spans"), 4);
	assert_int_equal(get_integer(reply, "created_s"), 12);
	assert_int_equal(get_integer(reply, "own_tokens"), 128);
	/* 24 and 40 bytes, and 2 x 8 of index keys; a sum for each record and for each span and index layer. */
	assert_int_equal(get_integer(reply, "bytes"), 256 * (24 + 40 + 16 + 2 * 8) + 4 * 2 * 8);
	records = json_object_get(reply, "record_bytes");
	assert_int_equal(json_array_size(records), 2);
	assert_int_equal(json_integer_value(json_array_get(records, 1)), 40);
	assert_int_equal(get_integer(reply, "index_layers"), 2);
	assert_int_equal(get_integer(reply, "index_key_bytes"), KEY_BYTES);
	assert_int_equal(json_string_length(json_object_get(reply, "identity")), 64);
	assert_string_equal(json_string_value(json_object_get(reply, "last")), "a.c");
	assert_null(json_object_get(reply, "same_model")); /* there is none to compare with */
	assert_null(json_object_get(reply, "latents"));
	json_decref(reply);
	assert_int_equal(look(*state, &reply, API_SNAPSHOT, "a@9", "", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
}

/* What a tiny model has read: files whose ends, line feeds and letters are not the usual ones. */
static const struct {
	const char *path, *text;
	int n_lines;
} files[] = {
	{"plain.txt", "one\ntwo\nthree\n", 3},
	{"cut.txt", "one\n\nthree", 3},
	{"feeds.txt", "\n\n\n", 3},
	{"dos.txt", "one\r\ntwo\r\n", 2},
	{"one", "x", 1},
	{"letters.txt", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\n\t=== plain.txt ===\n<|user|>\n", 3},
	{"sub/deep.c", "int a;\n", 1},
	{"a:2", "its name looks like a line\nof another\n", 2},
	{"a", "first\nsecond\n", 2},
	{"odd\nname", "x\n", 1},
};

enum { N_FILES = sizeof files / sizeof *files };

static struct cache_reader *read_files(struct place *p, struct cache **c)
{
	struct ingest_options opt = tiny_options(p, NULL);
	struct cache_reader *r;
	struct err err;

	for (size_t i = 0; i < N_FILES; i++)
		place_text(p, files[i].path, files[i].text);
	place_text(p, ".env", "PASSWORD=x\n");
	place_text(p, "vendor/v.c", "int v;\n");
	*c = tiny_store(p->store);
	cache_free_snapshot(tiny_ingest(*c, &opt));
	assert_int_equal(cache_reader_open(&r, p->store, &err), 0);
	return r;
}

static int show(struct cache_reader *r, json_t **reply, const struct tokenizer *t, const char *place, struct err *err)
{
	const struct look look = {.tokenizer = t, .identity = "0123456789abcdef", .latents = "bf16"};
	char *body = look_text_format(place);
	int rc = look_reply(reply, &look, r, API_TEXT, "code", body, strlen(body), err);

	free(body);
	return rc;
}

static void a_file_reads_back_from_its_tokens_as_it_was_on_disk(void **state)
{
	struct cache *c;
	struct cache_reader *r = read_files(*state, &c);
	struct err err;
	json_t *reply;

	for (size_t i = 0; i < N_FILES; i++) {
		if (show(r, &reply, tiny.tokenizer, files[i].path, &err))
			fail_msg("%s", err.text);
		assert_string_equal(json_string_value(json_object_get(reply, "text")), files[i].text);
		assert_int_equal(get_integer(reply, "lines"), files[i].n_lines);
		assert_int_equal(get_integer(reply, "first_line"), 1);
		assert_int_equal(get_integer(reply, "last_line"), files[i].n_lines);
		json_decref(reply);
	}
	/* The name as it is shown does as well as the one on disk. */
	assert_int_equal(show(r, &reply, tiny.tokenizer, "\"odd\\nname\"", &err), 0);
	assert_string_equal(json_string_value(json_object_get(reply, "path")), "\"odd\\nname\"");
	json_decref(reply);
	cache_reader_close(r);
	cache_close(c);
}

static void lines_are_counted_from_1_and_a_file_of_the_whole_name_comes_first(void **state)
{
	static const struct {
		const char *place, *text;
	} good[] = {
		{"plain.txt:1", "one\n"},
		{"plain.txt:2-3", "two\nthree\n"},
		{"plain.txt:1-3", "one\ntwo\nthree\n"},
		{"cut.txt:2", "\n"},
		{"cut.txt:3", "three"},
		{"dos.txt:2", "two\r\n"},
		{"feeds.txt:2-3", "\n\n"},
		{"a:2", "its name looks like a line\nof another\n"},
		{"a:2:2", "of another\n"},
		{"a:1", "first\n"},
		{"a:2-2", "second\n"},
	};
	static const struct {
		const char *place;
		enum err_code code;
		const char *word;
	} bad[] = {
		{"plain.txt:0", ERR_NOT_FOUND, "plain.txt:0: there is no line 0, the file has 3"},
		{"plain.txt:4", ERR_NOT_FOUND, "there is no line 4, the file has 3"},
		{"plain.txt:2-4", ERR_NOT_FOUND, "there is no line 4"},
		{"plain.txt:3-2", ERR_USAGE, "the last line is before the first"},
		{"plain.txt:x", ERR_NOT_FOUND, "has no file \"plain.txt:x\""},
		{"plain.txt:2-", ERR_NOT_FOUND, "has no file \"plain.txt:2-\""},
		{"plain.txt:99999999999", ERR_NOT_FOUND, "has no file"},
		{":3", ERR_NOT_FOUND, "has no file"},
		{"plain.txr", ERR_NOT_FOUND, "is \"plain.txt\" meant?"},
		{"deep.c:1", ERR_NOT_FOUND, "is \"sub/deep.c\" meant?"},
		{"nothing/like/it", ERR_NOT_FOUND, "`quire files code@1` lists those it has"},
		{".env", ERR_NOT_FOUND, "it was left out (.env: may hold secrets)"},
		{"vendor/v.c", ERR_NOT_FOUND, "it was left out (vendor/: vendored)"},
	};
	struct cache *c;
	struct cache_reader *r = read_files(*state, &c);
	json_t *reply;

	for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
		struct err err;

		if (show(r, &reply, tiny.tokenizer, good[i].place, &err))
			fail_msg("%s", err.text);
		assert_string_equal(json_string_value(json_object_get(reply, "text")), good[i].text);
		json_decref(reply);
	}
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct err err = {0};

		assert_int_equal(show(r, &reply, tiny.tokenizer, bad[i].place, &err), -1);
		assert_int_equal(err.code, bad[i].code);
		if (!strstr(err.text, bad[i].word))
			fail_msg("%s", err.text);
	}
	cache_reader_close(r);
	cache_close(c);
}

/* Two tokens change places in the vocabulary: the text would be another one, and is not shown. */
static void a_text_that_another_tokenizer_would_make_is_refused(void **state)
{
	const char *path = "tests/golden/glm52/tokenizer.json";
	struct tokenizer *other;
	struct cache *c;
	struct cache_reader *r = read_files(*state, &c);
	json_t *reply, *root, *vocab, *first, *second;
	struct err err;
	char *text;

	assert_int_equal(json_read(&root, path, 1 << 26, &err), 0);
	vocab = json_object_get(json_object_get(root, "model"), "vocab");
	first = json_incref(json_object_get(vocab, "n"));
	second = json_incref(json_object_get(vocab, "x"));
	assert_true(first && second);
	json_object_set_new(vocab, "n", second);
	json_object_set_new(vocab, "x", first);
	text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (tokenizer_parse(&other, "other", text, strlen(text), &err))
		fail_msg("%s", err.text);
	free(text);

	assert_int_equal(show(r, &reply, other, "one", &err), -1);

	assert_int_equal(err.code, ERR_MISMATCH);
	assert_non_null(strstr(err.text, "this daemon's is 0123456789abcdef"));
	assert_non_null(strstr(err.text, "tokenizer"));
	tokenizer_close(other);
	cache_reader_close(r);
	cache_close(c);
}

static void a_bad_text_is_refused_by_what_is_wrong_with_it(void **state)
{
	static const struct {
		const char *body, *word;
	} bad[] = {
		{"", "body"}, {"[]", "object"}, {"{}", "place: "}, {"{\"place\":\"\"}", "place: "}, {"{\"place\":7}", "place: "},
		{"{\"place\":\"a.c\",\"line\":1}", "line"}, {"{\"place\":\"a.c\",\"place\":\"a.c\"}", "place"},
	};
	json_t *reply;

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct err err = {0};

		assert_int_equal(look(*state, &reply, API_TEXT, "a", bad[i].body, &err), -1);
		assert_int_equal(err.code, ERR_USAGE);
		assert_non_null(strstr(err.text, bad[i].word));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_diff_says_what_both_share_and_which_files_are_others, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_bad_diff_is_refused_by_what_is_wrong_with_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_files_of_a_former_snapshot_have_its_own_name, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_snapshot_says_how_its_tokens_lie_in_the_store, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_text_without_a_tokenizer_is_refused_with_the_reason, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_bad_text_is_refused_by_what_is_wrong_with_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_file_reads_back_from_its_tokens_as_it_was_on_disk, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(lines_are_counted_from_1_and_a_file_of_the_whole_name_comes_first, place_set_up,
						place_tear_down),
		cmocka_unit_test_setup_teardown(a_text_that_another_tokenizer_would_make_is_refused, place_set_up, place_tear_down),
	};

	return cmocka_run_group_tests(tests, tiny_open, tiny_close);
}
