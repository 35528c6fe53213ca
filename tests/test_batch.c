/* Ingests that share their sweeps. (Those that are killed: test_ingest_kill.c; those of a daemon: test_daemon.c.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/history.h"
#include "config/log.h"
#include "engine/experts.h"
#include "engine/sweep.h"
#include "ingest/batch.h"
#include "tests/support/disk_calls.h"
#include "tests/support/fake_io.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_ingest.h"

enum { MOST = 3 };
static const char *const corpora[MOST] = {"alpha", "beta", "code"};

/* Three sources, and the store in which each was ingested by itself. */
struct three {
	struct place *p;
	char *sources[MOST], *alone_dir;
	struct cache *alone;
	struct cache_snapshot *s[MOST];
	struct ingest_options opt[MOST];
};

static void write_source(const struct three *x, int i, const char *name, const char *word, int n_lines)
{
	char path[64];

	snprintf(path, sizeof path, "%s/%s", corpora[i], name);
	place_lines(x->p, path, word, n_lines);
}

/* What it takes alone is what is compared with. */
static void ingest_alone(struct three *x, int i)
{
	cache_free_snapshot(x->s[i]);
	x->s[i] = tiny_ingest(x->alone, &x->opt[i]);
}

static int set_up(void **state)
{
	struct three *x = calloc(1, sizeof *x);
	void *place;

	log_set_level(LOG_LEVEL_ERROR);
	if (place_set_up_in_memory(&place))
		return -1;
	x->p = place;
	x->alone_dir = temp_path(x->p->dir, "alone");
	x->alone = tiny_store(x->alone_dir);
	for (int i = 0; i < MOST; i++) {
		x->sources[i] = temp_path(x->p->source, corpora[i]);
		write_source(x, i, "a.c", corpora[i], 10 + 2 * i);
		x->opt[i] = tiny_options(x->p, NULL);
		x->opt[i].corpus = corpora[i];
		x->opt[i].source = x->sources[i];
		ingest_alone(x, i);
	}
	*state = x;
	return 0;
}

static int tear_down(void **state)
{
	struct three *x = *state;
	void *place = x->p;

	disk_calls_reset();
	for (int i = 0; i < MOST; i++) {
		cache_free_snapshot(x->s[i]);
		free(x->sources[i]);
	}
	cache_close(x->alone);
	free(x->alone_dir);
	free(x);
	return place_tear_down(&place);
}

/* A batch at work. */
struct work {
	struct batch *b;
	struct ingest *in[MOST];
	struct err err[MOST];     /* of those that have ended */
	bool ended[MOST];
};

static struct ingest *begun_with(const struct model *m, struct cache *c, const struct ingest_options *opt)
{
	struct ingest *in;
	struct err err;

	if (ingest_prepare(&in, opt, tiny.tokenizer, NULL, NULL, NULL, &err) ||
	    ingest_bind(in, tiny.engine, m, LATENTS_BF16, c, &err) || ingest_begin(in, &err))
		fail_msg("%s", err.text);
	return in;
}

static struct ingest *begun(struct cache *c, const struct ingest_options *opt)
{
	return begun_with(tiny.model, c, opt);
}

static struct work work_begin_with(const struct model *m, struct cache *c, const struct ingest_options *opt)
{
	struct work w = {.b = batch_new()};

	for (int i = 0; i < MOST; i++)
		batch_add(w.b, w.in[i] = begun_with(m, c, &opt[i]));
	return w;
}

static struct work work_begin(struct cache *c, const struct ingest_options *opt)
{
	return work_begin_with(tiny.model, c, opt);
}

static void work_step(struct work *w)
{
	struct err err = {0};
	const struct ingest *ended = batch_step(w->b, &err);

	assert_true(ended || !err.code);
	for (int i = 0; i < MOST; i++)
		if (ended && w->in[i] == ended) {
			assert_false(w->ended[i]);
			w->ended[i] = true;
			w->err[i] = err;
		}
}

static void work_run(struct work *w)
{
	for (int n = 0; batch_n(w->b); n++) {
		assert_true(n < 100000);
		work_step(w);
	}
}

/* Until the sweep has been through some layers. */
static void work_to_the_middle(struct work *w)
{
	struct ingest_progress p = {0};

	while (p.swept_tokens < p.n_tokens / 2 || !p.n_tokens) {
		work_step(w);
		ingest_progress(w->in[0], &p);
		assert_true(batch_n(w->b) == MOST);
	}
}

static struct batch_stats work_end(struct work *w)
{
	struct batch_stats stats;

	batch_count(w->b, &stats);
	batch_free(w->b);
	for (int i = 0; i < MOST; i++)
		ingest_free(w->in[i]);
	return stats;
}

static void assert_done(const struct three *x, const struct work *w, struct cache *c, int i)
{
	struct cache_snapshot *s;

	if (!w->ended[i] || w->err[i].code)
		fail_msg("%s: %s", corpora[i], w->ended[i] ? w->err[i].text : "it has not ended");
	s = tiny_load_corpus(c, corpora[i]);
	assert_int_equal(s->n_tokens, x->s[i]->n_tokens);
	assert_memory_equal(s->ids, x->s[i]->ids, (size_t)s->n_tokens * sizeof *s->ids);
	tiny_assert_same_latents(x->alone, c, x->s[i]);
	cache_free_snapshot(s);
}

static size_t scratch_for(int64_t n_tokens)
{
	struct sweep_plan plan;

	assert_int_equal(sweep_plan(&plan, &tiny.model->config, engine_compute(tiny.engine), LATENTS_BF16, n_tokens, 0, NULL), 0);
	return plan.scratch_bytes;
}

/* Of one of them in a batch of its own, in a store of its own. */
static int64_t expert_reads_alone(const struct three *x, int i)
{
	char *dir = temp_path(x->p->dir, corpora[i]);
	struct cache *c = tiny_store(dir);
	struct batch *b = batch_new();
	struct ingest *in = begun(c, &x->opt[i]);
	struct batch_stats stats;
	struct err err = {0};

	batch_add(b, in);
	while (batch_n(b))
		batch_step(b, &err);
	assert_int_equal(err.code, 0);
	batch_count(b, &stats);
	batch_free(b);
	ingest_free(in);
	cache_close(c);
	free(dir);
	return stats.n_expert_reads;
}

static void three_ingests_share_one_sweep_and_store_what_each_stores_alone(void **state)
{
	const struct three *x = *state;
	const struct model_config *m = &tiny.model->config;
	struct cache *c = tiny_store(x->p->store);
	struct work w = work_begin(c, x->opt);
	int64_t n_experts = 0, most = 0, sum = 0;
	struct cache_stats stats, alone;
	struct batch_stats shared;

	work_run(&w);
	for (int i = 0; i < MOST; i++)
		assert_done(x, &w, c, i);
	shared = work_end(&w);
	assert_int_equal(shared.n_sweeps, 1);
	assert_int_equal(shared.most_together, MOST);

	/* Each expert that one of them chose was read once. */
	for (int32_t layer = 0; layer < m->n_layers; layer++)
		n_experts += m->layer_is_dense[layer] ? 0 : m->n_experts;
	for (int i = 0; i < MOST; i++) {
		int64_t reads = expert_reads_alone(x, i);

		most = reads > most ? reads : most;
		sum += reads;
	}
	assert_true(shared.n_expert_reads >= most && shared.n_expert_reads <= n_experts);
	assert_true(sum > 2 * shared.n_expert_reads);

	cache_stats(c, &stats);
	cache_stats(x->alone, &alone);
	assert_int_equal(stats.used_bytes, alone.used_bytes);
	assert_int_equal(stats.n_spans, alone.n_spans);
	cache_close(c);
}

static void what_does_not_fit_beside_the_others_comes_in_the_next_sweep(void **state)
{
	struct three *x = *state;
	struct cache *c = tiny_store(x->p->store);
	struct batch_stats stats;
	struct work w;

	/* Scratch memory for the first and the last, not for the second beside the first. */
	assert_true(x->s[0]->n_tokens + 400 > x->s[2]->n_tokens);
	write_source(x, 1, "b.c", "more", 50);
	ingest_alone(x, 1);
	for (int i = 0; i < MOST; i++)
		x->opt[i].scratch_bytes = scratch_for(x->s[0]->n_tokens + x->s[2]->n_tokens + 10);
	w = work_begin(c, x->opt);
	while (!w.ended[0] || !w.ended[2]) {
		assert_false(w.ended[1]);
		work_step(&w);
	}
	work_run(&w);
	for (int i = 0; i < MOST; i++)
		assert_done(x, &w, c, i);
	stats = work_end(&w);
	assert_true(stats.n_sweeps >= 3); /* those two, and the second in at least two parts */
	assert_int_equal(stats.most_together, 2);
	cache_close(c);
}

/* As many latents may be in memory as one corpus may have. */
static void together_they_have_no_more_tokens_than_the_context(void **state)
{
	struct three *x = *state;
	struct cache *c = tiny_store(x->p->store);
	struct batch_stats stats;
	struct work w;

	for (int i = 0; i < MOST; i++)
		x->opt[i].max_tokens = x->s[0]->n_tokens + x->s[1]->n_tokens;
	w = work_begin(c, x->opt);
	work_run(&w);
	for (int i = 0; i < MOST; i++)
		assert_done(x, &w, c, i);
	stats = work_end(&w);
	assert_int_equal(stats.n_sweeps, 2);
	assert_int_equal(stats.most_together, 2);
	cache_close(c);
}

/* Two branches of one repository: what they have in common is computed once. */
static void a_beginning_that_two_have_in_common_is_computed_by_the_first(void **state)
{
	struct three *x = *state;
	struct cache *c = tiny_store(x->p->store);
	struct cache_stats stats, alone;
	struct ingest_progress progress;
	struct batch_stats sweeps;
	struct work w;

	write_source(x, 1, "a.c", corpora[0], 10); /* as the first one's */
	write_source(x, 1, "b.c", "behind", 10);
	ingest_alone(x, 1);
	w = work_begin(c, x->opt);
	work_run(&w);
	ingest_progress(w.in[1], &progress);
	assert_int_equal(progress.reused_tokens, x->s[0]->n_tokens / 64 * 64);
	for (int i = 0; i < MOST; i++)
		assert_done(x, &w, c, i);
	sweeps = work_end(&w);
	assert_int_equal(sweeps.n_sweeps, 2);
	assert_int_equal(sweeps.most_together, 2);
	cache_stats(c, &stats);
	cache_stats(x->alone, &alone);
	assert_int_equal(stats.n_spans, alone.n_spans);
	cache_close(c);
}

static void one_that_is_taken_out_ends_no_other_and_they_go_on_at_their_last_checkpoint(void **state)
{
	struct three *x = *state;

	for (int which = 0; which < MOST; which++) {
		char name[16], *dir;
		struct ingest_progress progress;
		struct batch_stats stats;
		struct cache *c;
		struct work w;

		snprintf(name, sizeof name, "store%d", which);
		dir = temp_path(x->p->dir, name);
		c = tiny_store(dir);
		for (int i = 0; i < MOST; i++)
			x->opt[i].always_checkpoint = true;
		w = work_begin(c, x->opt);
		work_to_the_middle(&w);
		batch_remove(w.b, w.in[which]);
		ingest_free(w.in[which]);
		w.in[which] = NULL;
		work_run(&w);
		for (int i = 0; i < MOST; i++)
			if (i != which) {
				assert_done(x, &w, c, i);
				ingest_progress(w.in[i], &progress);
				assert_true(progress.resumed_layer > 0);
			}
		stats = work_end(&w);
		assert_int_equal(stats.n_sweeps, 2);

		/* Later by itself: it goes on where it was. */
		w = (struct work){.b = batch_new()};
		batch_add(w.b, w.in[which] = begun(c, &x->opt[which]));
		work_run(&w);
		ingest_progress(w.in[which], &progress);
		assert_true(progress.resumed_layer > 0);
		assert_done(x, &w, c, which);
		work_end(&w);
		cache_close(c);
		free(dir);
	}
}

/* One was interrupted by itself, at another layer than the others. */
static void one_that_goes_on_at_another_layer_is_swept_apart(void **state)
{
	struct three *x = *state;
	struct cache *c = tiny_store(x->p->store);
	struct ingest_progress progress = {0};
	struct batch_stats stats;
	struct work w = {.b = batch_new()};

	x->opt[1].always_checkpoint = true;
	batch_add(w.b, w.in[1] = begun(c, &x->opt[1]));
	while (!progress.n_tokens || progress.swept_tokens < progress.n_tokens / 2) {
		work_step(&w);
		ingest_progress(w.in[1], &progress);
	}
	work_end(&w);
	w = work_begin(c, x->opt);
	work_run(&w);
	for (int i = 0; i < MOST; i++) {
		assert_done(x, &w, c, i);
		ingest_progress(w.in[i], &progress);
		assert_int_equal(progress.resumed_layer > 0, i == 1);
	}
	stats = work_end(&w);
	assert_int_equal(stats.n_sweeps, 2);
	assert_int_equal(stats.most_together, 2);
	cache_close(c);
}

static void flip(const char *store, off_t at)
{
	char *path = temp_path(store, "segment-000001");
	int fd = open(path, O_RDWR);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 4;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
	free(path);
}

/* All three are there and get something new; what the first one stands on is damaged meanwhile. */
static void damage_to_what_one_stands_on_is_computed_again_and_ends_nobody(void **state)
{
	struct three *x = *state;
	struct cache *c = tiny_store(x->p->store);
	struct cache_snapshot *before[MOST];
	struct ingest_progress progress;
	struct work w = work_begin(c, x->opt);

	work_run(&w);
	work_end(&w);
	for (int i = 0; i < MOST; i++) {
		x->opt[i].previous = before[i] = tiny_load_corpus(c, corpora[i]);
		write_source(x, i, "b.c", "later", 5 + i);
		ingest_alone(x, i);
	}
	flip(x->p->store, 70); /* a record of the first one's first span */
	w = work_begin(c, x->opt);
	work_run(&w);
	for (int i = 0; i < MOST; i++) {
		assert_done(x, &w, c, i);
		ingest_progress(w.in[i], &progress);
		assert_int_equal(progress.reused_tokens, before[i]->n_tokens / 64 * 64 - (i ? 0 : 64));
		cache_free_snapshot(before[i]);
	}
	work_end(&w);
	cache_close(c);
}

static void one_that_the_store_has_no_room_for_ends_alone(void **state)
{
	struct three *x = *state;
	struct cache *c = tiny_store(x->p->store);
	struct ingest_counts counts;
	int64_t bytes = 0;
	struct work w;

	write_source(x, 1, "b.c", "more", 100);
	w = work_begin(c, x->opt);
	for (int i = 0; i < MOST; i += 2) {
		ingest_count(w.in[i], &counts);
		bytes += counts.new_bytes;
	}
	cache_set_limit(c, bytes);
	work_run(&w);
	assert_done(x, &w, c, 0);
	assert_done(x, &w, c, 2);
	assert_int_equal(w.err[1].code, ERR_TOO_LARGE);
	assert_non_null(strstr(w.err[1].text, "ingest corpus 'beta': store "));
	work_end(&w);
	cache_close(c);
}

/* The nth call that changes the disk fails, once: one of them ends, with that error, or only a checkpoint is lost, or the
 * store takes no more writes and all of them say so. What has not ended so has what it has alone. */
static void a_write_that_fails_ends_one_of_them_and_a_store_that_fails_ends_all(void **state)
{
	struct three *x = *state;
	int n_one = 0, n_all = 0, n_none = 0;

	for (int nth = 3;; nth += SANITIZED ? 19 : 7) {
		char name[16], *dir;
		int n_failed = 0, n_calls;
		struct cache *c;
		struct work w;

		snprintf(name, sizeof name, "store%d", nth);
		dir = temp_path(x->p->dir, name);
		c = tiny_store(dir);
		for (int i = 0; i < MOST; i++)
			x->opt[i].always_checkpoint = true;
		w = work_begin(c, x->opt);
		disk_calls_reset();
		disk_calls_fail(nth, EIO, false);
		work_run(&w);
		n_calls = disk_calls();
		disk_calls_reset();
		for (int i = 0; i < MOST; i++) {
			n_failed += w.err[i].code != 0;
			if (w.err[i].code)
				assert_non_null(strstr(w.err[i].text, corpora[i]));
			else
				assert_done(x, &w, c, i);
		}
		n_one += n_failed == 1;
		n_all += n_failed > 1;
		n_none += !n_failed;
		work_end(&w);
		cache_close(c);
		free(dir);
		if (n_calls < nth)
			break;
	}
	assert_true(n_one >= (SANITIZED ? 1 : 3) && n_all >= 1 && n_none >= 1);
}

/* Experts cannot be read for a while. Nobody knows whose token chose them. */
static void after_an_error_that_is_nobodys_they_are_computed_one_by_one(void **state)
{
	const struct three *x = *state;
	struct fake_io fake = {.fault = FAKE_ERROR, .error = EIO, .nth = 9, .then_on = true};
	const struct experts_options experts = {.bytes = 1 << 22, .backend = &fake_io_backend, .backend_state = &fake};
	const struct model_options opt = {.experts = &experts};
	struct cache *c = tiny_store(x->p->store);
	struct batch_stats stats;
	struct model *m;
	struct work w;
	struct err err;

	if (model_open(&m, "tests/golden/glm52", &opt, &err))
		fail_msg("%s", err.text);
	w = work_begin_with(m, c, x->opt);
	do {
		work_step(&w);
		batch_count(w.b, &stats);
	} while (stats.n_sweeps < 2);
	fake.nth = 0;
	work_run(&w);
	for (int i = 0; i < MOST; i++)
		assert_done(x, &w, c, i);
	stats = work_end(&w);
	assert_int_equal(stats.n_sweeps, 1 + MOST);

	/* And one that cannot be read at all ends each of them. */
	fake = (struct fake_io){.fault = FAKE_ERROR, .error = EIO, .nth = 9, .then_on = true};
	cache_close(c);
	model_close(m);
	if (model_open(&m, "tests/golden/glm52", &opt, &err))
		fail_msg("%s", err.text);
	free(x->p->store);
	x->p->store = temp_path(x->p->dir, "other");
	c = tiny_store(x->p->store);
	w = work_begin_with(m, c, x->opt);
	work_run(&w);
	for (int i = 0; i < MOST; i++) {
		assert_int_equal(w.err[i].code, ERR_IO);
		assert_non_null(strstr(w.err[i].text, "expert "));
	}
	work_end(&w);
	cache_close(c);
	model_close(m);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(three_ingests_share_one_sweep_and_store_what_each_stores_alone),
		CASE(what_does_not_fit_beside_the_others_comes_in_the_next_sweep),
		CASE(together_they_have_no_more_tokens_than_the_context),
		CASE(a_beginning_that_two_have_in_common_is_computed_by_the_first),
		CASE(one_that_is_taken_out_ends_no_other_and_they_go_on_at_their_last_checkpoint),
		CASE(one_that_goes_on_at_another_layer_is_swept_apart),
		CASE(damage_to_what_one_stands_on_is_computed_again_and_ends_nobody),
		CASE(one_that_the_store_has_no_room_for_ends_alone),
		CASE(after_an_error_that_is_nobodys_they_are_computed_one_by_one),
		CASE(a_write_that_fails_ends_one_of_them_and_a_store_that_fails_ends_all),
	};

	return cmocka_run_group_tests(tests, tiny_open, tiny_close);
}
