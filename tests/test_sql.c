#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache.h"
#include "config/log.h"
#include "config/mem.h"
#include "tests/support/disk_calls.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

static int set_up(void **state)
{
	disk_calls_reset();
	*state = temp_dir_new_in_memory(); /* thousands of stores: what a disk does is in test_segment.c */
	return 0;
}

static int tear_down(void **state)
{
	disk_calls_reset();
	temp_dir_free(*state);
	return 0;
}

/* Everything of corpus "a" that can be read, and what the next ingest of it looks at first. 0: all of it is what was
 * stored; -1: something was refused, and err says what. Anything that is wrong and was not refused fails. */
static int read_all(const char *dir, const struct text *t, struct err *err)
{
	struct cache_snapshot *s = NULL;
	struct cache_corpus *list = NULL;
	struct cache_reader *r = NULL;
	struct cache *c = NULL;
	struct span_key keys[MOST_TOKENS / CACHE_SPAN_TOKENS + 1];
	uint8_t out[CACHE_SPAN_TOKENS * 40];
	int64_t known;
	size_t n;
	int rc = -1;

	if (cache_open(&c, dir, err) || cache_load_snapshot(c, t->corpus, &s, err))
		goto out;
	assert_int_equal(s->n_tokens, t->n);
	assert_memory_equal(s->ids, t->ids, (size_t)t->n * sizeof *t->ids);
	assert_memory_equal(s->identity, text_identity, 32);
	assert_string_equal(s->source, "/src");
	assert_int_equal(s->created_s, 12);
	assert_int_equal(s->n_documents, 1);
	assert_string_equal(s->documents[0].path, "a.c");
	assert_int_equal(s->documents[0].content_hash[0], 1);
	assert_int_equal(s->documents[0].first_token, 0);
	assert_int_equal(s->documents[0].n_tokens, t->n);
	assert_int_equal(s->documents[0].n_lines, 2);
	assert_int_equal(s->documents[0].line_tokens[1], 7);
	assert_int_equal(s->n_skipped, 1);
	assert_string_equal(s->skipped[0].reason, "binary");
	keys_of(keys, t->ids, t->n);
	for (int32_t i = 0; i * CACHE_SPAN_TOKENS < t->n; i++) {
		int32_t left = t->n - i * CACHE_SPAN_TOKENS, m = left < CACHE_SPAN_TOKENS ? left : CACHE_SPAN_TOKENS;

		for (int32_t p = 0; p < N_GROUPS; p++)
			if (cache_read_records(c, &keys[i], p, out, (size_t)m * (p ? 40 : 24), err))
				goto out;
		for (int32_t p = 0; p < N_INDEX_LAYERS; p++)
			if (cache_read_index_keys(c, &keys[i], p, out, (size_t)m * KEY_BYTES, err))
				goto out;
	}
	assert_int_equal(n_damaged(c, t->ids, t->n), 0);
	if (cache_reader_open(&r, dir, err) || cache_list(r, &list, &n, err))
		goto out;
	assert_int_equal(n, 1);
	assert_string_equal(list[0].name, t->corpus);
	assert_int_equal(list[0].n_tokens, t->n);
	cache_free_corpora(list, n);
	rc = cache_begin_ingest(c, t->corpus, text_identity, t->ids, t->n, &known, err);
	if (!rc)
		assert_int_equal(known, t->n);
out:
	cache_free_snapshot(s);
	cache_reader_close(r);
	cache_close(c);
	return rc;
}

struct change {
	const char *table, *set;
};

/* One value of one row, as a flipped bit would change it where the page stays in order. */
static void a_changed_column_of_any_row_is_found_and_its_table_named(void **state)
{
	static const struct change changes[] = {
		{"layout", "identity = randomblob(32)"}, {"layout", "n_groups = 1"},
		{"layout", "record_bytes = x'1900000028000000'"}, {"layout", "n_index_layers = 3"},
		{"layout", "index_key_bytes = 9"},
		{"run", "layout = 2"}, {"run", "n_places = n_places + 1"}, {"run", "n_living = n_living + 1"},
		{"extent", "segment = 2"}, {"extent", "offset = offset + 1048576"}, {"extent", "bytes = bytes + 4096"},
		{"extent", "part = part + 8 WHERE kind = 0"},
		{"span", "parent = NULL WHERE id = 2"}, {"span", "run = 2 WHERE id = 1"}, {"span", "place = place + 2"},
		{"span", "n_tokens = 63, ids = substr(ids, 1, 252) WHERE id = 1"},
		{"span", "ids = zeroblob(256) WHERE id = 1"}, {"span", "refs = refs + 1 WHERE id = 1"},
		{"span", "damaged = 1 WHERE id = 1"}, {"span", "sum = sum + 1 WHERE id = 3"},
		{"snapshot", "source = x'41'"}, {"snapshot", "layout = 2"}, {"snapshot", "created_s = 13"},
		{"snapshot", "n_tokens = n_tokens - 1"}, {"snapshot", "tip = 2"}, {"snapshot", "revision = 'f'"},
		{"snapshot", "used_s = 3"}, {"snapshot", "n_documents = 0"}, {"snapshot", "n_skipped = 0"},
		{"snapshot", "corpus = 'a', is_current = 1, sum = sum + 1"},
		{"document", "path = x'62'"}, {"document", "content_hash = zeroblob(32)"}, {"document", "first_token = 1"},
		{"document", "n_tokens = 5"}, {"document", "line_tokens = x'0000000001000000'"}, {"document", "place = 1"},
		{"skipped", "path = x'62'"}, {"skipped", "reason = 'binarz'"}, {"skipped", "place = 1"},
		{"pending", "tip = 2"},
	};
	const struct text t = text_of("a", 300, 0, 1);

	log_set_level(LOG_LEVEL_ERROR);
	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		bool pending = !strcmp(changes[i].table, "pending"), refused = false;
		char name[32], *dir, *statement, table[40];
		struct cache *c;
		struct err err;
		int64_t known;

		snprintf(name, sizeof name, "store%zu", i);
		dir = temp_path(*state, name);
		c = store_open(dir);
		must_store(c, &t);
		if (pending)
			assert_int_equal(cache_begin_ingest(c, "a", text_identity, t.ids, t.n, &known, &err), 0);
		cache_close(c);
		assert_int_equal(read_all(dir, &t, &err), 0);
		statement = xasprintf("UPDATE %s SET %s", changes[i].table, changes[i].set);
		change_index(dir, statement);

		refused = read_all(dir, &t, &err);

		snprintf(table, sizeof table, "table %s", changes[i].table);
		if (!refused)
			fail_msg("nobody saw: %s", statement);
		/* Bytes that a lookup by a wrong name does not find are computed again; whatever is found is refused. */
		if (err.code != ERR_DAMAGED && err.code != ERR_NOT_FOUND)
			fail_msg("%s: %s", statement, err.text);
		if (err.code == ERR_DAMAGED && !strstr(err.text, table))
			fail_msg("%s does not name its table: %s", statement, err.text);
		free(statement);
		temp_dir_free(dir);
	}
	log_set_level(LOG_LEVEL_INFO);
}

static void a_lost_row_of_a_snapshot_is_found(void **state)
{
	const struct text t = text_of("a", 100, 0, 1);
	struct cache *c = store_open(*state);
	struct err err;

	must_store(c, &t);
	cache_close(c);
	change_index(*state, "DELETE FROM document");

	assert_int_equal(read_all(*state, &t, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_non_null(strstr(err.text, "table document has 0 of 1 rows of snapshot 1"));
}

static uint8_t *read_file(const char *path, size_t *bytes)
{
	struct stat st;
	uint8_t *data;
	int fd = open(path, O_RDONLY);

	assert_int_equal(fstat(fd, &st), 0);
	*bytes = (size_t)st.st_size;
	data = xmalloc(*bytes, 1);
	assert_int_equal(read(fd, data, *bytes), st.st_size);
	close(fd);
	return data;
}

/* Where a page is torn or a bit flips, the store gives what was stored or refuses; which bytes are tried is a matter
 * of time, QUIRE_TEST_FLIPS of them, and all when there are fewer. */
static void a_flipped_bit_anywhere_in_the_index_is_harmless_or_refused(void **state)
{
	const struct text t = text_of("a", 300, 0, 1);
	size_t most = getenv("QUIRE_TEST_FLIPS") ? strtoul(getenv("QUIRE_TEST_FLIPS"), NULL, 10) : 3000, bytes, step;
	char *path = temp_path(*state, "index.sqlite"), *wal = temp_path(*state, "index.sqlite-wal");
	char *shm = temp_path(*state, "index.sqlite-shm");
	struct cache *c = store_open(*state);
	uint8_t *data;
	int refused = 0;
	struct err err;

	log_set_level(LOG_LEVEL_ERROR);
	must_store(c, &t);
	cache_close(c);
	data = read_file(path, &bytes);
	step = bytes / most + 1;
	for (size_t at = 0; at < bytes; at += step) {
		int fd = open(path, O_RDWR | O_TRUNC), bit = (int)((at / step) % 8);

		unlink(wal);
		unlink(shm);
		data[at] ^= (uint8_t)(1 << bit);
		assert_int_equal(write(fd, data, bytes), bytes);
		data[at] ^= (uint8_t)(1 << bit);
		close(fd);
		refused += read_all(*state, &t, &err) != 0;
	}
	log_set_level(LOG_LEVEL_INFO);
	assert_true(refused > (int)(bytes / step) / 100); /* most of the file is room for more */
	free(data);
	free(path);
	free(wal);
	free(shm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_changed_column_of_any_row_is_found_and_its_table_named, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_lost_row_of_a_snapshot_is_found, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_flipped_bit_anywhere_in_the_index_is_harmless_or_refused, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
