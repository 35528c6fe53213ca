/* An ingest that is killed in the middle of a sweep, and goes on behind its last checkpoint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ingest/batch.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_ingest.h"

enum { MOST = 3 };

/* Ingest these sources together, with a checkpoint wherever one can be made, in a process that is killed before so many
 * steps; false if it is done before. resumed [n]: where their sweeps began, 0 too of one that had not begun. */
static bool killed_after(const struct ingest_options *options, int n, const char *store, int n_steps, int32_t *resumed)
{
	int fds[2], status;
	pid_t child;

	assert_int_equal(pipe(fds), 0);
	child = fork();
	assert_true(child >= 0);
	if (!child) {
		struct batch *b = batch_new();
		struct ingest *in[MOST];
		struct cache *c = NULL;
		struct err err = {0};
		bool failed = cache_open(&c, store, &err);

		for (int i = 0; !failed && i < n; i++) {
			failed = ingest_prepare(&in[i], &options[i], tiny.tokenizer, NULL, NULL, NULL, &err) ||
				 ingest_bind(in[i], tiny.engine, tiny.model, LATENTS_BF16, c, &err) || ingest_begin(in[i], &err);
			if (!failed)
				batch_add(b, in[i]);
		}
		for (int step = 0; !failed && batch_n(b); step++) {
			struct ingest_progress progress[MOST];

			if (step == n_steps)
				raise(SIGKILL);
			batch_step(b, &err);
			failed = err.code;
			for (int i = 0; i < n; i++) {
				ingest_progress(in[i], &progress[i]);
				resumed[i] = progress[i].resumed_layer;
			}
			/* Its state may turn out to be of no use when the sweep has begun: the last word counts. */
			if (write(fds[1], resumed, (size_t)n * sizeof *resumed) < 0)
				failed = true;
		}
		if (failed)
			fprintf(stderr, "%s\n", err.text);
		_exit(failed);
	}
	close(fds[1]);
	for (ssize_t size = (ssize_t)((size_t)n * sizeof *resumed), rc; (rc = read(fds[0], resumed, (size_t)size)); )
		assert_int_equal(rc, size);
	close(fds[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return true;
	assert_true(WIFEXITED(status) && !WEXITSTATUS(status));
	return false;
}

/* Killed after 20 steps, after 40 more, after 60 more: each time it goes on at a later layer, or where it was, and what is
 * stored in the end are the bytes of an ingest that nobody disturbed. */
static void an_ingest_that_is_killed_goes_on_at_the_layer_of_its_last_checkpoint(void **state)
{
	const struct place *p = *state;
	char *whole_dir = temp_path(p->dir, "whole");
	struct cache *whole = tiny_store(whole_dir), *c;
	struct ingest_options opt = tiny_options(p, NULL);
	struct cache_stats stats, after;
	int32_t resumed = 0, last = 0;
	struct cache_snapshot *s;
	int n_kills = 0, n_resumed = 0;

	place_lines(p, "a.c", "alpha", 40);
	s = tiny_ingest(whole, &opt);
	opt.always_checkpoint = true;
	opt.state_piece_bytes = 20000; /* several pieces, so that it is killed between two of them as well */
	while (killed_after(&opt, 1, p->store, 20 * (n_kills + 1), &resumed)) {
		assert_true(resumed >= last);
		n_resumed += resumed > last;
		last = resumed;
		n_kills++;
	}
	n_resumed += resumed > last;
	assert_true(n_kills >= 3 && n_resumed >= 2);
	c = tiny_store(p->store);
	tiny_assert_same_latents(whole, c, s);
	cache_stats(whole, &stats);
	cache_stats(c, &after);
	assert_int_equal(after.used_bytes, stats.used_bytes); /* nothing of the interrupted ones is left */
	cache_free_snapshot(s);
	cache_close(c);
	cache_close(whole);
	free(whole_dir);
}

/* Three that share a sweep have their checkpoints at the same layer, one after another, and go on there together; but those
 * that had none yet when they were killed come after the others. */
static void ingests_that_are_killed_together_go_on_together_at_the_layer_of_their_last_checkpoint(void **state)
{
	static const char *const corpora[MOST] = {"alpha", "beta", "code"};
	const struct place *p = *state;
	char *whole_dir = temp_path(p->dir, "whole"), *sources[MOST];
	struct cache *whole = tiny_store(whole_dir), *c;
	struct ingest_options opt[MOST];
	int32_t resumed[MOST], last = 0;
	struct cache_stats stats, after;
	int n_kills = 0, n_resumed = 0, n_together = 0;

	for (int i = 0; i < MOST; i++) {
		char name[32];

		sources[i] = temp_path(p->source, corpora[i]);
		snprintf(name, sizeof name, "%s/a.c", corpora[i]);
		place_lines(p, name, corpora[i], 10 + 3 * i);
		opt[i] = tiny_options(p, NULL);
		opt[i].corpus = corpora[i];
		opt[i].source = sources[i];
		cache_free_snapshot(tiny_ingest(whole, &opt[i]));
		opt[i].always_checkpoint = true;
		opt[i].state_piece_bytes = 20000;
	}
	while (killed_after(opt, MOST, p->store, 25 * (n_kills + 1), resumed)) {
		bool together = true;

		for (int i = 1; i < MOST; i++) {
			assert_true(resumed[i] <= resumed[0]);
			together = together && resumed[i] == resumed[0];
		}
		n_together += together && resumed[0] > last;
		assert_true(resumed[0] >= last);
		n_resumed += resumed[0] > last;
		last = resumed[0];
		n_kills++;
	}
	n_resumed += resumed[0] > last;
	assert_true(n_kills >= 3 && n_resumed >= 2 && n_together >= 1);
	c = tiny_store(p->store);
	for (int i = 0; i < MOST; i++) {
		struct cache_snapshot *s = tiny_load_corpus(c, corpora[i]);

		tiny_assert_same_latents(whole, c, s);
		cache_free_snapshot(s);
		free(sources[i]);
	}
	cache_stats(whole, &stats);
	cache_stats(c, &after);
	assert_int_equal(after.used_bytes, stats.used_bytes);
	cache_close(c);
	cache_close(whole);
	free(whole_dir);
}

/* A byte in the middle of every file of the store whose name begins so; returns how many there were. */
static int flip_files(const char *dir, const char *beginning)
{
	DIR *d = opendir(dir);
	struct dirent *entry;
	int n = 0;

	assert_non_null(d);
	while ((entry = readdir(d))) {
		char *path = temp_path(dir, entry->d_name);
		uint8_t byte;
		int fd;

		if (!strncmp(entry->d_name, beginning, strlen(beginning))) {
			fd = open(path, O_RDWR);
			assert_int_equal(pread(fd, &byte, 1, 1000), 1);
			byte ^= 1;
			assert_int_equal(pwrite(fd, &byte, 1, 1000), 1);
			close(fd);
			n++;
		}
		free(path);
	}
	closedir(d);
	return n;
}

static void a_checkpoint_that_is_damaged_is_not_believed(void **state)
{
	const struct place *p = *state;
	char *whole_dir = temp_path(p->dir, "whole");
	struct cache *whole = tiny_store(whole_dir), *c;
	struct ingest_options opt = tiny_options(p, NULL);
	struct cache_snapshot *s;
	int32_t resumed;

	place_lines(p, "a.c", "alpha", 40);
	s = tiny_ingest(whole, &opt);
	opt.always_checkpoint = true;
	opt.state_piece_bytes = 20000; /* several pieces, so that it is killed between two of them as well */
	assert_true(killed_after(&opt, 1, p->store, 60, &resumed));
	assert_int_equal(resumed, 0);
	assert_true(flip_files(p->store, "scratch-") > 0);
	assert_false(killed_after(&opt, 1, p->store, 1 << 30, &resumed));
	assert_int_equal(resumed, 0);
	c = tiny_store(p->store);
	tiny_assert_same_latents(whole, c, s);
	cache_free_snapshot(s);
	cache_close(c);
	cache_close(whole);
	free(whole_dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(an_ingest_that_is_killed_goes_on_at_the_layer_of_its_last_checkpoint, place_set_up,
						place_tear_down),
		cmocka_unit_test_setup_teardown(
			ingests_that_are_killed_together_go_on_together_at_the_layer_of_their_last_checkpoint, place_set_up,
			place_tear_down),
		cmocka_unit_test_setup_teardown(a_checkpoint_that_is_damaged_is_not_believed, place_set_up,
						place_tear_down),
	};

	return cmocka_run_group_tests(tests, tiny_open, tiny_close);
}
