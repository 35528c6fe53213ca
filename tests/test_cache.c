#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/cache.h"
#include "tests/support/disk_calls.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"

static int set_up(void **state)
{
	disk_calls_reset();
	*state = temp_dir_new_in_memory(); /* thousands of stores: what a disk does is in test_segment.c */
	return 0;
}

static int set_up_in_memory(void **state)
{
	disk_calls_reset();
	*state = temp_dir_new_in_memory();
	return 0;
}

static int tear_down(void **state)
{
	disk_calls_reset();
	temp_dir_free(*state);
	return 0;
}

static void what_is_written_comes_back_after_a_restart(void **state)
{
	const struct text t = text_of("linux", 300, 0, 1); /* four whole spans and 44 tokens */
	struct cache *c = store_open(*state);
	struct cache_snapshot *s;
	struct err err;

	must_store(c, &t);
	cache_close(c);
	c = store_open(*state);

	assert_true(is_stored(c, &t));
	assert_int_equal(cache_known_prefix(c, text_identity, t.ids, 300), 300);
	assert_int_equal(cache_load_snapshot(c, "linux", &s, &err), 0);
	assert_string_equal(s->source, "/src");
	assert_memory_equal(s->identity, text_identity, 32);
	assert_int_equal(s->created_s, 12);
	assert_int_equal(s->n_documents, 1);
	assert_string_equal(s->documents[0].path, "a.c");
	assert_int_equal(s->documents[0].content_hash[0], 1);
	assert_int_equal(s->documents[0].n_tokens, 300);
	assert_int_equal(s->documents[0].n_lines, 2);
	assert_int_equal(s->documents[0].line_tokens[1], 7);
	assert_string_equal(s->skipped[0].path, "b\n\xff.bin");
	assert_string_equal(s->skipped[0].reason, "binary");
	cache_free_snapshot(s);
	cache_close(c);
}

static void equal_beginnings_are_stored_once_and_kept_for_whoever_needs_them(void **state)
{
	const struct text a = text_of("a", 256, 130, 1), b = text_of("b", 256, 130, 2);
	const struct text other = text_of("a", 64, 0, 3);
	struct cache *c = store_open(*state);

	must_store(c, &a);
	assert_int_equal(stats_of(c).n_spans, 4);
	must_store(c, &b);
	assert_int_equal(stats_of(c).n_spans, 6); /* tokens 0 to 127 are the same in both */

	must_store(c, &other);

	assert_int_equal(stats_of(c).n_spans, 5);
	assert_true(is_stored(c, &b));
	assert_true(is_stored(c, &other));
	cache_close(c);
}

static void the_same_tokens_of_another_model_are_not_found(void **state)
{
	const struct text t = text_of("a", 128, 0, 1);
	const uint8_t other[32] = "another model";
	struct cache *c = store_open(*state);

	must_store(c, &t);

	assert_int_equal(cache_known_prefix(c, text_identity, t.ids, t.n), 128);
	assert_int_equal(cache_known_prefix(c, other, t.ids, t.n), 0);
	assert_int_equal(cache_known_prefix(c, text_identity, t.ids, 100), 64); /* a span of 36 is another span */
	cache_close(c);
}

static void a_replaced_snapshot_gives_its_space_back(void **state)
{
	struct text t = text_of("a", 500, 0, 1);
	struct cache *c = store_open(*state);
	int64_t used, file;

	/* Two versions side by side is the most there is: the new one is written before the old one goes. */
	must_store(c, &t);
	used = stats_of(c).used_bytes;
	t = text_of("a", 500, 0, 2);
	must_store(c, &t);
	file = stats_of(c).file_bytes;
	for (int32_t seed = 3; seed < 40; seed++) {
		t = text_of("a", 500, 0, seed);
		must_store(c, &t);
	}

	assert_int_equal(stats_of(c).used_bytes, used);
	assert_int_equal(stats_of(c).file_bytes, file);
	cache_close(c);
	c = store_open(*state);
	assert_int_equal(stats_of(c).used_bytes, used); /* worked out from the rows, not remembered */
	assert_true(is_stored(c, &t));
	cache_close(c);
}

static void spans_of_an_interrupted_ingest_wait_for_it_and_go_when_it_changes_its_mind(void **state)
{
	const struct text old = text_of("a", 64, 0, 1), t = text_of("a", 256, 0, 2), changed = text_of("a", 256, 64, 2);
	struct cache *c = store_open(*state);
	struct text half = t;
	int64_t known;
	struct err err;

	must_store(c, &old);
	half.n = 128;
	half.corpus = ""; /* the commit refuses that name, so that nothing but the spans is left */
	assert_int_equal(store_text(c, &half, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	cache_close(c);

	c = store_open(*state);
	assert_int_equal(cache_known_prefix(c, text_identity, t.ids, t.n), 128);
	assert_int_equal(stats_of(c).n_spans, 3);
	assert_int_equal(cache_begin_ingest(c, "", text_identity, t.ids, t.n, &known, &err), 0);
	assert_int_equal(known, 128);
	assert_int_equal(cache_begin_ingest(c, "", text_identity, changed.ids, changed.n, &known, &err), 0);
	assert_int_equal(known, 0);
	assert_int_equal(stats_of(c).n_spans, 1);
	assert_true(is_stored(c, &old));
	cache_close(c);
}

static char *segment_path(const char *dir)
{
	return temp_path(dir, "segment-000001");
}

/* A store of one run: two groups, two index layers, sums; 4 KiB each. */
static void every_flipped_bit_of_what_was_stored_is_found(void **state)
{
	const struct text t = text_of("a", 70, 0, 1);
	const struct {
		off_t at, bytes;
	} parts[] = {{0, 70 * 24}, {4096, 70 * 40}, {2 * 4096, 70 * 8}, {3 * 4096, 70 * 8},
		     /* 64 sums and 6 of each group, then one for each span and index layer; the rest is unused */
		     {4 * 4096, 70 * 8}, {4 * 4096 + 1024, 70 * 8}, {4 * 4096 + 2048, 4 * 8}};
	struct cache *c = store_open(*state);
	char *path = segment_path(*state);
	int fd;

	must_store(c, &t);
	fd = open(path, O_RDWR);
	assert_int_equal(stats_of(c).used_bytes, 5 * 4096);
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
		for (off_t byte = parts[i].at; byte < parts[i].at + parts[i].bytes; byte++) {
			/* All bits of some bytes, and some bit of all bytes. */
			for (int bit = (int)(byte % 8); bit < 8; bit += byte % 16 ? 8 : 1) {
				flip(fd, byte, bit);
				if (n_damaged(c, t.ids, t.n) != 1)
					fail_msg("bit %d of byte %ld was flipped and not found", bit, (long)byte);
				flip(fd, byte, bit);
			}
		}
	}
	for (off_t byte = 5 * 4096 - 512; byte < 5 * 4096; byte++) {
		flip(fd, byte, 3);
		assert_int_equal(n_damaged(c, t.ids, t.n), 0); /* padding is nobody's */
	}
	close(fd);
	free(path);
	cache_close(c);
}

static void blocks_in_each_others_place_are_found_even_with_their_sums(void **state)
{
	const struct text t = text_of("a", 128, 0, 1);
	struct cache *c = store_open(*state);
	char *path = segment_path(*state);
	enum { BLOCK = 64 * 24, SUMS = 64 * 8 };
	uint8_t block[2][BLOCK], sums[2][SUMS];
	int fd;

	must_store(c, &t);
	fd = open(path, O_RDWR);
	for (int i = 0; i < 2; i++) { /* both spans of group 0; group 1 takes two pages, each index layer one */
		assert_int_equal(pread(fd, block[i], BLOCK, i * BLOCK), BLOCK);
		assert_int_equal(pread(fd, sums[i], SUMS, 5 * 4096 + i * SUMS), SUMS);
	}
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pwrite(fd, block[!i], BLOCK, i * BLOCK), BLOCK);
		assert_int_equal(pwrite(fd, sums[!i], SUMS, 5 * 4096 + i * SUMS), SUMS);
	}

	assert_int_equal(n_damaged(c, t.ids, t.n), 2);

	close(fd);
	free(path);
	cache_close(c);
}

static void a_short_or_missing_segment_is_damage_to_what_it_held_and_no_more(void **state)
{
	const struct text t = text_of("a", 128, 0, 1), u = text_of("b", 64, 0, 2);
	struct cache *c = store_open(*state);
	char *path = segment_path(*state);
	uint8_t out[64 * 40];
	struct span_key keys[2];
	struct err err;

	must_store(c, &t);
	cache_close(c);
	assert_int_equal(truncate(path, 4096 + 100), 0);
	c = store_open(*state);
	keys_of(keys, t.ids, t.n);

	assert_int_equal(n_damaged(c, t.ids, t.n), 8); /* without sums nothing is believed */
	assert_int_equal(cache_read_records(c, &keys[1], 1, out, sizeof out, &err), -1);
	assert_non_null(strstr(err.text, "segment-000001 ends before byte "));
	must_store(c, &u);
	assert_true(is_stored(c, &u));
	cache_close(c);

	assert_int_equal(unlink(path), 0);
	c = store_open(*state);
	assert_int_equal(n_damaged(c, t.ids, t.n), 8);
	must_store(c, &u); /* b is damaged as well, but not known to be: nothing is written */
	cache_close(c);
	free(path);
}

static void a_damaged_span_is_replaced_when_it_is_computed_again(void **state)
{
	const struct text t = text_of("a", 200, 0, 1);
	struct cache *c = store_open(*state);
	char *path = segment_path(*state);
	int64_t used;
	struct span_key keys[4];
	struct err err;
	int fd;

	must_store(c, &t);
	used = stats_of(c).used_bytes;
	fd = open(path, O_RDWR);
	flip(fd, 64 * 24 + 5, 0); /* span 1, group 0 */
	keys_of(keys, t.ids, t.n);
	assert_int_equal(n_damaged(c, t.ids, t.n), 1);
	assert_int_equal(stats_of(c).damaged, 1);

	assert_int_equal(cache_quarantine(c, &keys[1], &err), 0);
	assert_false(cache_has_span(c, &keys[1]));
	assert_true(cache_has_span(c, &keys[2]));
	assert_int_equal(cache_known_prefix(c, text_identity, t.ids, t.n), 64);
	must_store(c, &t);

	assert_true(is_stored(c, &t));
	assert_int_equal(stats_of(c).n_spans, 4);
	assert_true(stats_of(c).used_bytes > used); /* its run keeps the old place while its neighbours live there */
	close(fd);
	free(path);
	cache_close(c);
}

static void a_second_opener_is_told_who_has_the_store(void **state)
{
	struct cache *c = store_open(*state), *second;
	char want[64];
	struct err err;

	assert_int_equal(cache_open(&second, *state, &err), -1);

	assert_int_equal(err.code, ERR_BUSY);
	snprintf(want, sizeof want, "in use by process %ld", (long)getpid());
	assert_non_null(strstr(err.text, want));
	cache_close(c);
	cache_close(store_open(*state));
}

/* As two daemons would: the lock is the kernel's, so that it goes with a killed holder. */
static void another_process_has_the_store_until_it_dies(void **state)
{
	int ready[2];
	struct cache *c;
	char want[64], byte;
	struct err err;
	pid_t child;

	assert_int_equal(pipe(ready), 0);
	child = fork();
	if (!child) {
		if (cache_open(&c, *state, &err) || write(ready[1], "x", 1) != 1)
			_exit(1);
		pause();
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);

	assert_int_equal(cache_open(&c, *state, &err), -1);

	assert_int_equal(err.code, ERR_BUSY);
	snprintf(want, sizeof want, "in use by process %ld", (long)child);
	assert_non_null(strstr(err.text, want));
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, NULL, 0), child);
	cache_close(store_open(*state));
	close(ready[0]);
	close(ready[1]);
}

static void a_store_of_a_newer_format_is_refused(void **state)
{
	struct cache *c;
	struct err err;

	cache_close(store_open(*state));
	change_index(*state, "PRAGMA user_version = 6");

	assert_int_equal(cache_open(&c, *state, &err), -1);
	assert_int_equal(err.code, ERR_MISMATCH);
	assert_non_null(strstr(err.text, "has format 6, this quire knows formats up to 5"));
}

static void a_store_of_format_1_is_brought_up_to_date_and_keeps_what_it_holds(void **state)
{
	static const char *const tables[] = {"layout", "run", "extent", "span", "snapshot", "document", "skipped", "pending"};
	const struct text t = text_of("code", 100, 0, 1);
	struct cache *c = store_open(*state);
	struct cache_snapshot *s;
	struct cache_reader *r;
	struct err err;

	must_store(c, &t);
	cache_close(c);
	change_index(*state, "ALTER TABLE snapshot DROP COLUMN revision; ALTER TABLE snapshot DROP COLUMN used_s;"
			     "ALTER TABLE snapshot DROP COLUMN n_documents; ALTER TABLE snapshot DROP COLUMN n_skipped;"
			     "DROP TABLE job; DROP TABLE routing; DROP INDEX snapshot_current; ALTER TABLE snapshot DROP COLUMN is_current;"
			     "PRAGMA user_version = 1");
	for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
		char drop[80];

		snprintf(drop, sizeof drop, "ALTER TABLE %s DROP COLUMN sum", tables[i]);
		change_index(*state, drop);
	}

	/* Only who may write can change it. */
	assert_int_equal(cache_reader_open(&r, *state, &err), -1);
	assert_int_equal(err.code, ERR_MISMATCH);
	assert_non_null(strstr(err.text, "has format 1, this quire reads format 5: start quired"));
	c = store_open(*state);

	assert_true(is_stored(c, &t));
	assert_int_equal(cache_load_snapshot(c, "code", &s, &err), 0);
	assert_string_equal(s->revision, "");
	cache_free_snapshot(s);
	must_store(c, &t);
	assert_int_equal(cache_reader_open(&r, *state, &err), 0);
	assert_int_equal(cache_files(r, "code", 0, &s, &err), 0);
	assert_int_equal(s->n_documents, 1);
	assert_null(s->ids);
	cache_free_snapshot(s);
	assert_int_equal(cache_files(r, "cod", 0, &s, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	cache_reader_close(r);
	cache_close(c);
}

static void an_index_that_is_not_ours_is_refused(void **state)
{
	char noise[8192];
	struct cache *c;
	struct err err;

	memset(noise, 7, sizeof noise);
	free(temp_file(*state, "index.sqlite", noise, sizeof noise));

	assert_int_equal(cache_open(&c, *state, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_non_null(strstr(err.text, "index.sqlite"));
}

static void a_changed_row_is_found_by_the_key_of_its_span(void **state)
{
	const struct text t = text_of("a", 200, 0, 1);
	struct cache *c = store_open(*state);
	struct cache_snapshot *s;
	struct err err;

	must_store(c, &t);
	cache_close(c);
	change_index(*state, "UPDATE span SET ids = zeroblob(256) WHERE place = 1 AND n_tokens = 64 AND id = 2");

	c = store_open(*state);
	assert_int_equal(cache_load_snapshot(c, "a", &s, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_non_null(strstr(err.text, "span 1 of corpus 'a'"));
	cache_close(c);
}

static void nobody_else_can_look_into_a_store(void **state)
{
	const struct text t = text_of("a", 64, 0, 1);
	static const char *const files[] = {"index.sqlite", "index.sqlite-wal", "segment-000001", "lock"};
	char *dir = temp_path(*state, "store");
	struct cache *c = store_open(dir);
	struct stat st;
	struct err err;

	must_store(c, &t);
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		char *path = temp_path(dir, files[i]);

		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(st.st_mode & 07777, 0600);
		free(path);
	}
	assert_int_equal(stat(dir, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	cache_close(c);

	assert_int_equal(chmod(dir, 0705), 0);
	assert_int_equal(cache_open(&c, dir, &err), -1);
	assert_int_equal(err.code, ERR_PERMISSION);
	assert_non_null(strstr(err.text, "chmod 700"));
	free(dir);
}

static void an_unknown_corpus_is_answered_with_the_nearest_name(void **state)
{
	const struct text a = text_of("linux", 64, 0, 1), b = text_of("sqlite", 64, 0, 1);
	struct cache *c = store_open(*state);
	struct cache_snapshot *s;
	struct err err;

	assert_int_equal(cache_load_snapshot(c, "lunix", &s, &err), -1);
	assert_non_null(strstr(err.text, "the store is empty"));
	must_store(c, &a);
	must_store(c, &b);

	assert_int_equal(cache_load_snapshot(c, "lunix", &s, &err), -1);

	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_string_equal(err.text, "no corpus 'lunix'; the nearest name is 'linux'");
	cache_close(c);
}

static void a_reader_lists_the_corpora_while_the_writer_works(void **state)
{
	const struct text a = text_of("b", 100, 0, 1), b = text_of("a", 64, 0, 2);
	struct cache *c = store_open(*state);
	struct cache_reader *r;
	struct cache_corpus *list;
	size_t n;
	struct err err;

	assert_int_equal(cache_reader_open(&r, *state, &err), 0);
	must_store(c, &a);
	assert_int_equal(cache_list(r, &list, &n, &err), 0);
	assert_int_equal(n, 1);
	cache_free_corpora(list, n);
	must_store(c, &b);

	assert_int_equal(cache_list(r, &list, &n, &err), 0);

	assert_int_equal(n, 2);
	assert_string_equal(list[0].name, "a");
	assert_string_equal(list[1].name, "b");
	assert_string_equal(list[1].source, "/src");
	assert_int_equal(list[1].n_tokens, 100);
	assert_int_equal(list[1].n_documents, 1);
	/* Records and keys of 24 + 40 + 2 x 8 bytes, two sums; two sums for each of two spans. */
	assert_int_equal(list[1].bytes, 100 * (80 + 16) + 2 * 2 * 8);
	cache_free_corpora(list, n);
	cache_reader_close(r);
	cache_close(c);
}

/* Replace corpus "a" in a child that dies at some point; afterwards it must be whole, the old one or the new one, and
 * the same ingest must come to its end and leave nothing behind. */
struct replacement {
	struct text old, new;
	int64_t used_bytes; /* of a store that holds only the new one */
};

static struct replacement replacement_of(const char *dir)
{
	struct replacement r = {text_of("a", 200, 64, 1), text_of("a", 500, 64, 2)};
	char *clean = temp_path(dir, "clean");
	struct cache *c = store_open(clean);

	must_store(c, &r.old);
	must_store(c, &r.new);
	r.used_bytes = stats_of(c).used_bytes;
	cache_close(c);
	free(clean);
	return r;
}

static void child_replaces(const char *dir, const struct text *new)
{
	struct cache *c;
	struct err err;

	if (cache_open_with(&c, dir, &store_io, &err) || store_text(c, new, &err))
		_exit(1);
	cache_close(c);
	_exit(0);
}

static void check_after_crash(const char *dir, const struct replacement *r)
{
	struct cache *c = store_open(dir);
	int32_t known = (int32_t)cache_known_prefix(c, text_identity, r->new.ids, r->new.n);

	if (!is_stored(c, &r->old))
		assert_true(is_stored(c, &r->new));
	assert_int_equal(n_damaged(c, r->new.ids, known), 0);
	must_store(c, &r->new);
	assert_true(is_stored(c, &r->new));
	assert_int_equal(stats_of(c).used_bytes, r->used_bytes);
	cache_close(c);
}

static void killed_before_any_write_the_corpus_is_whole_old_or_new(void **state)
{
	const struct replacement r = replacement_of(*state);
	int status = -1, n_kills = 0;

	for (int nth = 1; status != 0; nth++) {
		for (int torn = 0; torn < 2 && status != 0; torn++) {
			char name[32], *dir;
			struct cache *c;
			pid_t child;

			snprintf(name, sizeof name, "store%d%d", nth, torn);
			dir = temp_path(*state, name);
			c = store_open(dir);
			must_store(c, &r.old);
			cache_close(c);
			child = fork();
			if (!child) {
				disk_calls_reset();
				disk_calls_kill(nth, torn);
				child_replaces(dir, &r.new);
			}
			assert_int_equal(waitpid(child, &status, 0), child);
			assert_true(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
			n_kills += status != 0;
			check_after_crash(dir, &r);
			free(dir);
		}
	}
	assert_true(n_kills > 40); /* five extents in each of four steps, their syncs, and what SQLite writes */
}

/* A first start in a fresh home: ~/.local/share may not be there either. */
static void a_store_is_made_with_the_directories_above_it(void **state)
{
	char *dir = temp_path(*state, "fresh/local/share/store"), *above = temp_path(*state, "fresh");
	struct cache *c = store_open(dir);
	struct stat st;

	cache_close(c);
	assert_int_equal(stat(above, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	free(dir);
	free(above);
}

static void killed_at_any_moment_the_corpus_is_whole_old_or_new(void **state)
{
	const struct replacement r = replacement_of(*state);
	int n = getenv("QUIRE_TEST_KILLS") ? atoi(getenv("QUIRE_TEST_KILLS")) : 15;

	srandom(7);
	for (int i = 0; i < n; i++) {
		char name[32], *dir;
		struct cache *c;
		pid_t child;

		snprintf(name, sizeof name, "store%d", i);
		dir = temp_path(*state, name);
		c = store_open(dir);
		must_store(c, &r.old);
		cache_close(c);
		child = fork();
		if (!child)
			child_replaces(dir, &r.new);
		usleep((useconds_t)(random() % 30000));
		kill(child, SIGKILL);
		assert_int_equal(waitpid(child, NULL, 0), child);
		check_after_crash(dir, &r);
		temp_dir_free(dir); /* thousands of stores do not fit */
	}
}

/* Every write fails once, or from some point on. */
static void a_failed_write_is_an_error_that_names_the_file_and_leaves_the_old_corpus(void **state)
{
	static const int numbers[] = {EIO, ENOSPC};
	const struct replacement r = replacement_of(*state);
	int n_failures = 0;

	for (int variant = 0; variant < 4; variant++) {
		for (int nth = 1, failed = 1; failed; nth++) {
			char name[32], *dir;
			struct cache *c;
			struct err err;

			snprintf(name, sizeof name, "store%d-%d", variant, nth);
			dir = temp_path(*state, name);
			c = store_open(dir);
			must_store(c, &r.old);
			disk_calls_reset();
			disk_calls_fail(nth, numbers[variant / 2], variant % 2);
			failed = 0;
			if (store_text(c, &r.new, &err)) {
				failed = 1;
				n_failures++;
				assert_int_equal(err.code, ERR_IO);
				assert_true(strstr(err.text, "segment-000001") || strstr(err.text, "index.sqlite") ||
					    strstr(err.text, "sync directory"));
				if (!is_stored(c, &r.old)) /* reads go on */
					assert_true(is_stored(c, &r.new));
			} else if (disk_calls() >= nth) {
				failed = 1; /* SQLite or fallocate found another way */
			}
			disk_calls_reset();
			cache_close(c);
			check_after_crash(dir, &r);
			temp_dir_free(dir);
		}
	}
	assert_true(n_failures > 80);
}

static void after_a_failed_sync_the_store_takes_no_more_writes_and_says_why(void **state)
{
	const struct text a = text_of("a", 64, 0, 1), b = text_of("b", 64, 0, 2);
	struct cache *c = store_open(*state);
	struct err err;

	must_store(c, &a);
	disk_calls_fail_sync(EIO);
	assert_int_equal(store_text(c, &b, &err), -1);
	disk_calls_reset();

	assert_int_equal(store_text(c, &b, &err), -1);
	assert_int_equal(err.code, ERR_IO);
	assert_non_null(strstr(err.text, "takes no more writes until quire is restarted"));
	assert_non_null(strstr(err.text, "Input/output error"));
	assert_true(is_stored(c, &a));
	cache_close(c);
	c = store_open(*state);
	must_store(c, &b);
	cache_close(c);
}

static void a_full_disk_is_a_sentence_with_what_to_do(void **state)
{
	const struct text a = text_of("a", 64, 0, 1);
	struct cache *c = store_open(*state);
	struct rlimit was, small = {1 << 20, RLIM_INFINITY};
	struct text big = text_of("b", 500, 0, 2);
	struct err err = {0};
	char name[16];
	int rc = 0;

	must_store(c, &a);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	small.rlim_max = was.rlim_max;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	for (int32_t seed = 2; !rc && seed < 60; seed++) {
		snprintf(name, sizeof name, "b%d", (int)seed);
		big = text_of(name, 500, 0, seed);
		cache_close(c); /* which empties the log of the index, so that the segment is the first to be full */
		c = store_open(*state);
		rc = store_text(c, &big, &err);
	}
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);

	assert_int_equal(rc, -1);
	assert_int_equal(err.code, ERR_IO);
	assert_non_null(strstr(err.text, "/segment-000001 at byte 1048576: File too large; free space there"));
	assert_true(is_stored(c, &a));
	must_store(c, &big); /* there is space again */
	assert_true(is_stored(c, &big));
	cache_close(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_is_written_comes_back_after_a_restart, set_up, tear_down),
		cmocka_unit_test_setup_teardown(equal_beginnings_are_stored_once_and_kept_for_whoever_needs_them,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_same_tokens_of_another_model_are_not_found, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_replaced_snapshot_gives_its_space_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			spans_of_an_interrupted_ingest_wait_for_it_and_go_when_it_changes_its_mind, set_up, tear_down),
		cmocka_unit_test_setup_teardown(every_flipped_bit_of_what_was_stored_is_found, set_up_in_memory,
						tear_down),
		cmocka_unit_test_setup_teardown(blocks_in_each_others_place_are_found_even_with_their_sums, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_short_or_missing_segment_is_damage_to_what_it_held_and_no_more,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_damaged_span_is_replaced_when_it_is_computed_again, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_second_opener_is_told_who_has_the_store, set_up, tear_down),
		cmocka_unit_test_setup_teardown(another_process_has_the_store_until_it_dies, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_store_of_a_newer_format_is_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_store_of_format_1_is_brought_up_to_date_and_keeps_what_it_holds, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(an_index_that_is_not_ours_is_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_changed_row_is_found_by_the_key_of_its_span, set_up, tear_down),
		cmocka_unit_test_setup_teardown(nobody_else_can_look_into_a_store, set_up, tear_down),
		cmocka_unit_test_setup_teardown(an_unknown_corpus_is_answered_with_the_nearest_name, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_reader_lists_the_corpora_while_the_writer_works, set_up, tear_down),
		cmocka_unit_test_setup_teardown(killed_before_any_write_the_corpus_is_whole_old_or_new, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_store_is_made_with_the_directories_above_it, set_up, tear_down),
		cmocka_unit_test_setup_teardown(killed_at_any_moment_the_corpus_is_whole_old_or_new, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			a_failed_write_is_an_error_that_names_the_file_and_leaves_the_old_corpus, set_up, tear_down),
		cmocka_unit_test_setup_teardown(after_a_failed_sync_the_store_takes_no_more_writes_and_says_why, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_full_disk_is_a_sentence_with_what_to_do, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
