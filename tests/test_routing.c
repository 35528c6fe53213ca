/* Which experts the tokens of a corpus chose: counted by its ingest as by hand, however that goes, kept with the store's runs, and
 * where it is lost or damaged nothing else is. (What becomes of the counts: test_warming.c, test_daemon.c.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "cache/check.h"
#include "cache/history.h"
#include "cache/routing.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/experts.h"
#include "engine/recall.h"
#include "engine/sweep.h"
#include "ingest/batch.h"
#include "offload/trace.h"
#include "tests/support/store_text.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_ingest.h"

struct counts {
	int64_t *chosen;        /* [n_layers, n_experts] */
	int64_t n_tokens;
	size_t n;
};

static int quiet(void **state)
{
	log_set_level(LOG_LEVEL_ERROR);
	return tiny_open(state);
}

static struct counts counts_new(void)
{
	size_t n = (size_t)tiny.model->config.n_layers * (size_t)tiny.model->config.n_experts;

	return (struct counts){xcalloc(n, sizeof(int64_t)), 0, n};
}

static int try_counts(struct counts *k, struct cache *c, const char *corpus, int64_t id, struct err *err)
{
	return cache_routing(c, corpus, id, tiny.model->config.n_layers, tiny.model->config.n_experts, k->chosen, &k->n_tokens, err);
}

static struct counts counts_of(struct cache *c, const char *corpus)
{
	struct counts k = counts_new();
	struct err err;

	if (try_counts(&k, c, corpus, 0, &err))
		fail_msg("%s", err.text);
	return k;
}

static int record(void *ctx, int32_t layer, int64_t position, const float *scores, const int32_t *chosen, struct err *err)
{
	(void)err;
	trace_put(ctx, position, layer, scores, chosen);
	return 0;
}

/* By hand: a trace of tokens, as `--record-trace` writes it, and each of its first n_chosen entries one more. */
static struct counts counted_by_hand(const int32_t *ids, int64_t first, int64_t n_tokens)
{
	const struct model_config *c = &tiny.model->config;
	const struct session_options opt = {.latents = LATENTS_BF16};
	struct trace *t = trace_new(c->n_layers, c->n_experts, c->experts_per_token, c->n_experts);
	const struct session_tap tap = {.ctx = t, .router = record};
	struct counts k = counts_new();
	struct session *s;
	struct err err;

	assert_int_equal(session_new(&s, tiny.engine, tiny.model, &opt, &err), 0);
	assert_int_equal(session_append(s, ids, (size_t)n_tokens, NULL, &tap, &err), 0);
	k.n_tokens = n_tokens - first;
	for (int64_t i = first; i < n_tokens; i++)
		for (int32_t l = 0; l < c->n_layers; l++)
			for (int32_t e = 0; e < c->experts_per_token && !c->layer_is_dense[l]; e++)
				k.chosen[l * c->n_experts + trace_step(t, i, l)[e].expert]++;
	session_free(s);
	trace_free(t);
	return k;
}

static void same_counts(struct counts got, struct counts want)
{
	assert_int_equal(got.n_tokens, want.n_tokens);
	assert_memory_equal(got.chosen, want.chosen, got.n * sizeof *got.chosen);
	free(got.chosen);
	free(want.chosen);
}

static struct counts by_hand(const struct cache_snapshot *s)
{
	return counted_by_hand(s->ids, 0, s->n_tokens);
}

static size_t scratch_for(int64_t n_tokens)
{
	struct sweep_plan plan;

	assert_int_equal(sweep_plan(&plan, &tiny.model->config, engine_compute(tiny.engine), LATENTS_BF16, n_tokens, 0, NULL), 0);
	return plan.scratch_bytes;
}

static struct ingest *begin(struct cache *c, const struct ingest_options *opt)
{
	struct ingest *in;
	struct err err;

	if (ingest_prepare(&in, opt, tiny.tokenizer, NULL, NULL, NULL, &err) ||
	    ingest_bind(in, tiny.engine, tiny.model, LATENTS_BF16, c, &err) || ingest_begin(in, &err))
		fail_msg("%s", err.text);
	return in;
}

/* Rows of the table; -1: there is no such table. */
static int n_rows(const char *dir)
{
	char *path = temp_path(dir, "index.sqlite");
	sqlite3_stmt *st;
	sqlite3 *db;
	int n = -1;

	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
	if (!sqlite3_prepare_v2(db, "SELECT count(*) FROM routing", -1, &st, NULL) && sqlite3_step(st) == SQLITE_ROW)
		n = sqlite3_column_int(st, 0);
	sqlite3_finalize(st);
	sqlite3_close(db);
	free(path);
	return n;
}

/* ---- counting ------------------------------------------------------------------------------------------------------- */

static void an_ingest_counts_what_a_trace_of_its_tokens_says(void **state)
{
	const struct place *p = *state;

	place_lines(p, "a.c", "alpha", 70);
	/* In one sweep, and in parts of four spans. */
	for (int parts = 0; parts < 2; parts++) {
		struct cache *c = tiny_store(p->store);
		struct ingest_options opt = tiny_options(p, NULL);
		struct cache_snapshot *s;
		struct counts want;
		struct err err;

		opt.scratch_bytes = parts ? scratch_for(256) : 0;
		s = tiny_ingest(c, &opt);
		assert_true(s->n_tokens > 600);
		want = by_hand(s);
		same_counts(counts_of(c, "code"), want);
		cache_close(c);
		assert_int_equal(n_rows(p->store), parts ? (s->n_tokens + 255) / 256 : 1);

		c = tiny_store(p->store); /* after a restart */
		same_counts(counts_of(c, "code"), by_hand(s));
		assert_int_equal(cache_drop_corpus(c, "code", &err), 0);
		cache_close(c);
		assert_int_equal(n_rows(p->store), 0);
		cache_free_snapshot(s);
	}
}

/* Stopped as by kill -9 after every so many steps, with a checkpoint behind each group of layers. Without the counts that were kept
 * with it, those of the layers before are not known, and those of the others are. */
static void what_goes_on_at_a_checkpoint_goes_on_counting(void **state)
{
	const struct model_config *m = &tiny.model->config;
	const struct place *p = *state;
	int n_resumed = 0;

	place_lines(p, "a.c", "alpha", 12);
	for (int lost = 0; lost < 2; lost++)
		for (int stop = 3, more = 1; more > 0; stop += 4) {
			struct cache *c = tiny_store(p->store);
			struct ingest_options opt = tiny_options(p, NULL);
			struct ingest_progress progress = {0};
			struct ingest *in;
			struct cache_snapshot *s;
			struct counts got, want;
			struct err err;

			opt.always_checkpoint = true;
			opt.state_piece_bytes = 4096;
			in = begin(c, &opt);
			more = 1;
			for (int i = 0; i < stop && more > 0; i++)
				more = ingest_step(in, &progress, &err);
			ingest_free(in);
			cache_close(c);
			if (lost)
				change_index(p->store, "DELETE FROM routing");
			c = tiny_store(p->store);
			in = begin(c, &opt);
			for (int rc = 1; more > 0 && rc > 0; assert_true(rc >= 0))
				rc = ingest_step(in, &progress, &err);
			ingest_free(in);
			s = tiny_load(c);
			got = counts_of(c, "code");
			want = by_hand(s);
			if (lost && !more) { /* it had come to its end */
				assert_int_equal(got.n_tokens, 0);
				memset(want.chosen, 0, want.n * sizeof *want.chosen);
				want.n_tokens = 0;
			} else if (lost) {
				memset(want.chosen, 0, (size_t)progress.resumed_layer * (size_t)m->n_experts * sizeof *want.chosen);
			}
			n_resumed += progress.resumed_layer > 0;
			same_counts(got, want);
			cache_free_snapshot(s);
			assert_int_equal(cache_drop_corpus(c, "code", &err), 0);
			cache_close(c);
		}
	assert_true(n_resumed > 4);
}

static void corpora_that_share_a_sweep_are_counted_apart(void **state)
{
	static const char *const corpora[] = {"alpha", "beta"};
	const struct place *p = *state;
	struct cache *c = tiny_store(p->store);
	struct batch *b = batch_new();
	struct ingest *in[2], *end;
	struct batch_stats stats;
	struct err err = {0};

	for (int i = 0; i < 2; i++) {
		struct ingest_options opt = tiny_options(p, NULL);
		char file[32], *source = temp_path(p->source, corpora[i]);

		snprintf(file, sizeof file, "%s/a.c", corpora[i]);
		place_lines(p, file, corpora[i], 10 + 5 * i);
		opt.corpus = corpora[i];
		opt.source = source;
		in[i] = begin(c, &opt);
		batch_add(b, in[i]);
		free(source);
	}
	while (batch_n(b)) {
		end = batch_step(b, &err);
		assert_int_equal(err.code, 0);
		(void)end;
	}
	batch_count(b, &stats);
	assert_int_equal(stats.most_together, 2);
	for (int i = 0; i < 2; i++) {
		struct cache_snapshot *s = tiny_load_corpus(c, corpora[i]);

		same_counts(counts_of(c, corpora[i]), by_hand(s));
		ingest_free(in[i]);
		cache_free_snapshot(s);
	}
	batch_free(b);
	cache_close(c);
}

static int64_t sum_of(struct counts k, int32_t layer)
{
	int64_t sum = 0;

	for (int32_t e = 0; e < tiny.model->config.n_experts; e++)
		sum += k.chosen[layer * tiny.model->config.n_experts + e];
	return sum;
}

/* Only what is new is computed, and counted. What is shared with a snapshot before it has its share of that one's counts; so does
 * another corpus that begins alike, and it keeps them when the first one goes. */
static void what_is_computed_once_is_counted_once_and_shared(void **state)
{
	const struct model_config *m = &tiny.model->config;
	const struct place *p = *state;
	struct cache *c = tiny_store(p->store);
	struct ingest_options opt = tiny_options(p, NULL), other = tiny_options(p, NULL);
	struct cache_snapshot *first, *second;
	struct counts was, now, as_was;
	int64_t shared;
	struct err err;

	cache_keep_snapshots(c, 3);
	place_lines(p, "a.c", "alpha", 20);
	first = tiny_ingest(c, &opt);
	was = counts_of(c, "code");
	place_lines(p, "b.c", "beta", 20);
	opt.previous = first;
	second = tiny_ingest(c, &opt);
	shared = first->n_tokens / CACHE_SPAN_TOKENS * CACHE_SPAN_TOKENS;
	assert_true(shared < first->n_tokens && second->n_tokens > first->n_tokens);

	now = counts_of(c, "code");
	assert_int_equal(now.n_tokens, second->n_tokens);
	for (int32_t l = 0; l < m->n_layers; l++) {
		int64_t want = m->layer_is_dense[l] ? 0 : second->n_tokens * m->experts_per_token;

		assert_in_range(sum_of(now, l) + m->n_experts, want, want + 2 * m->n_experts); /* each rounded */
	}
	/* The former snapshot's run is all its own; the newer one's counts are its new tokens', and a share of the others. */
	as_was = counts_new();
	assert_int_equal(try_counts(&as_was, c, "code", first->id, &err), 0);
	same_counts(as_was, was);
	as_was = counted_by_hand(second->ids, shared, second->n_tokens);
	was = counts_new();
	assert_int_equal(try_counts(&was, c, "code", first->id, &err), 0);
	for (size_t i = 0; i < now.n; i++) {
		double share = (double)(was.chosen[i] * shared) / (double)first->n_tokens;

		assert_true((double)(now.chosen[i] - as_was.chosen[i]) >= share - .6);
		assert_true((double)(now.chosen[i] - as_was.chosen[i]) <= share + .6);
	}
	free(as_was.chosen);
	free(was.chosen);

	other.corpus = "other";
	cache_free_snapshot(tiny_ingest(c, &other));
	assert_int_equal(cache_drop_corpus(c, "code", &err), 0);
	same_counts(counts_of(c, "other"), now);
	assert_int_equal(cache_drop_corpus(c, "other", &err), 0);
	cache_free_snapshot(first);
	cache_free_snapshot(second);
	cache_close(c);
	assert_int_equal(n_rows(p->store), 0);
}

static void a_forgotten_snapshot_takes_along_what_it_alone_had(void **state)
{
	const struct place *p = *state;
	struct cache *c = tiny_store(p->store);
	struct ingest_options opt = tiny_options(p, NULL);
	struct cache_snapshot *first;
	int64_t *gone;
	size_t n;
	struct err err;

	cache_keep_snapshots(c, 3);
	place_lines(p, "a.c", "alpha", 20);
	first = tiny_ingest(c, &opt);
	place_lines(p, "a.c", "beta", 20);
	opt.previous = first;
	opt.full = true;
	cache_free_snapshot(tiny_ingest(c, &opt));
	assert_int_equal(n_rows(p->store), 2);
	assert_int_equal(cache_forget(c, "code", &first->id, 1, -1, &gone, &n, &err), 0);
	free(gone);
	assert_int_equal(n_rows(p->store), 1);
	cache_free_snapshot(first);
	cache_close(c);
}

/* ---- what it is for ------------------------------------------------------------------------------------------------- */

/* Experts begin to come while a corpus's index keys are loaded, and the answer has the bits that it has with all of them there. */
static void a_corpus_that_is_loaded_brings_its_experts_along(void **state)
{
	static const int32_t question[] = {5, 6, 7};
	const struct place *p = *state;
	const struct session_options opt = {.latents = LATENTS_BF16};
	struct experts_options room = {.bytes = 1 << 19, .no_prediction = true};
	const struct model_options with_slots = {.experts = &room};
	const struct ingest_options ingest = tiny_options(p, NULL);
	size_t vocab = (size_t)tiny.model->config.vocab;
	float *want = xmalloc(vocab, sizeof *want), *got = xmalloc(vocab, sizeof *got);
	struct cache *c = tiny_store(p->store);
	struct cache_snapshot *s;

	place_lines(p, "a.c", "alpha", 20);
	s = tiny_ingest(c, &ingest);
	for (int way = 0; way < 3; way++) { /* all there; slots without counts; with them */
		struct experts_stats stats = {0};
		struct counts k = counts_of(c, "code");
		struct recall_options how = {tiny.engine, tiny.model, LATENTS_BF16, 0};
		struct session *session;
		struct recall *r;
		struct model *m;
		struct err err;

		if (way && model_open(&m, "tests/golden/glm52", &with_slots, &err))
			fail_msg("%s", err.text);
		how.model = way ? m : tiny.model;
		if (way == 2)
			experts_expect(m->experts, k.chosen);
		if (session_new(&session, tiny.engine, how.model, &opt, &err) ||
		    recall_open(&r, session, &how, c, s, s->n_tokens, &err))
			fail_msg("%s", err.text);
		if (way)
			experts_stats(m->experts, &stats);
		assert_true(way == 2 ? stats.reads > 0 : !stats.reads);
		assert_int_equal(recall_append(r, question, 3, got, NULL, &err), 0);
		memcpy(way ? got : want, got, vocab * sizeof *got);
		assert_memory_equal(got, want, vocab * sizeof *got);
		session_free(session);
		recall_close(r);
		if (way)
			model_close(m);
		free(k.chosen);
	}
	cache_free_snapshot(s);
	cache_close(c);
	free(want);
	free(got);
}

/* ---- what is not there, or not right ---------------------------------------------------------------------------- */

static void a_store_that_was_made_without_counts_works_and_has_none(void **state)
{
	const struct place *p = *state;
	struct cache *c = tiny_store(p->store);
	struct ingest_options opt = tiny_options(p, NULL);
	struct cache_snapshot *s, *again;
	struct counts k;

	place_lines(p, "a.c", "alpha", 20);
	s = tiny_ingest(c, &opt);
	cache_close(c);
	change_index(p->store, "DROP TABLE routing; PRAGMA user_version = 4");

	c = tiny_store(p->store);
	k = counts_of(c, "code");
	assert_int_equal(k.n_tokens, 0);
	for (size_t i = 0; i < k.n; i++)
		assert_int_equal(k.chosen[i], 0);
	free(k.chosen);
	again = tiny_load(c);
	tiny_assert_same_latents(c, c, again);
	cache_free_snapshot(again);
	place_lines(p, "b.c", "beta", 20); /* and what is new is counted */
	opt.previous = s;
	again = tiny_ingest(c, &opt);
	same_counts(counts_of(c, "code"), counted_by_hand(again->ids, s->n_tokens / CACHE_SPAN_TOKENS * CACHE_SPAN_TOKENS,
							  again->n_tokens));
	cache_free_snapshot(again);
	cache_free_snapshot(s);
	cache_close(c);
}

static void what_is_evicted_takes_its_counts_along(void **state)
{
	const struct place *p = *state;
	struct cache *c = tiny_store(p->store);
	struct ingest_options opt = tiny_options(p, NULL);
	struct cache_stats stats;
	struct counts k;

	place_lines(p, "a.c", "alpha", 20);
	cache_free_snapshot(tiny_ingest(c, &opt));
	cache_stats(c, &stats);
	cache_set_limit(c, stats.used_bytes * 3 / 2);
	place_lines(p, "a.c", "beta", 20);
	opt.corpus = "other";
	cache_free_snapshot(tiny_ingest(c, &opt));
	k = counts_of(c, "code");
	assert_int_equal(k.n_tokens, 0);
	free(k.chosen);
	k = counts_of(c, "other");
	assert_true(k.n_tokens > 0);
	free(k.chosen);
	cache_close(c);
}

static void a_wrong_row_is_refused_by_name_found_and_mended(void **state)
{
	static const char *const changes[] = {
		"UPDATE routing SET n_tokens = n_tokens + 1", "UPDATE routing SET chosen = zeroblob(length(chosen))",
		"UPDATE routing SET n_layers = n_experts, n_experts = n_layers", "UPDATE routing SET sum = sum + 1",
	};
	const struct place *p = *state;
	struct ingest_options opt = tiny_options(p, NULL);
	struct cache_snapshot *s, *again;
	struct err err;

	place_lines(p, "a.c", "alpha", 20);
	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		struct cache *c = tiny_store(p->store);
		struct cache_check_options all = {0};
		struct cache_repair_report report;
		struct cache_check *k;
		struct counts got = counts_new();
		int rc;

		s = tiny_ingest(c, &opt);
		cache_close(c);
		change_index(p->store, changes[i]);
		c = tiny_store(p->store);

		assert_int_equal(try_counts(&got, c, "code", 0, &err), -1);
		assert_int_equal(err.code, ERR_DAMAGED);
		assert_non_null(strstr(err.text, "table routing"));
		again = tiny_load(c); /* all else is as it was */
		assert_int_equal(again->n_tokens, s->n_tokens);
		cache_free_snapshot(again);
		assert_int_equal(cache_check_begin(&k, c, &all, &err), 0);
		while ((rc = cache_check_step(k, &err)) > 0)
			;
		assert_int_equal(rc, 0);
		assert_int_equal(cache_check_report(k)->n_damaged, 1);
		assert_string_equal(cache_check_report(k)->findings[0].corpora[0], "code");
		assert_int_equal(cache_repair(c, k, &report, &err), 0);
		assert_int_equal(report.quarantined_spans + report.lost_spans, 0);
		cache_repair_clear(&report);
		cache_check_free(k);
		assert_int_equal(try_counts(&got, c, "code", 0, &err), 0);
		assert_int_equal(got.n_tokens, 0);
		free(got.chosen);
		assert_int_equal(cache_drop_corpus(c, "code", &err), 0);
		cache_free_snapshot(s);
		cache_close(c);
	}
}

static void counts_of_another_shape_are_refused_with_both(void **state)
{
	const struct model_config *m = &tiny.model->config;
	const struct place *p = *state;
	struct cache *c = tiny_store(p->store);
	struct ingest_options opt = tiny_options(p, NULL);
	int64_t *chosen = xcalloc((size_t)m->n_layers * (size_t)m->n_experts, sizeof *chosen), n_tokens, id;
	char corpus[128], want[160];
	uint8_t identity[MODEL_ID_BYTES];
	struct err err;

	place_lines(p, "a.c", "alpha", 20);
	cache_free_snapshot(tiny_ingest(c, &opt));
	assert_int_equal(cache_routing(c, "code", 0, m->n_layers - 1, m->n_experts, chosen, &n_tokens, &err), -1);
	assert_int_equal(err.code, ERR_MISMATCH);
	snprintf(want, sizeof want, "the routing of corpus 'code': it was counted for %d layers of %d experts, and the model has %d of %d",
		 m->n_layers, m->n_experts, m->n_layers - 1, m->n_experts);
	assert_non_null(strstr(err.text, want));
	assert_int_equal(cache_routing(c, "cod", 0, m->n_layers, m->n_experts, chosen, &n_tokens, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);

	engine_identity(tiny.engine, tiny.model, LATENTS_BF16, identity);
	assert_int_equal(cache_last_used(c, identity, corpus, &id, &err), 1);
	assert_string_equal(corpus, "code");
	opt.corpus = "later";
	cache_free_snapshot(tiny_ingest(c, &opt));
	assert_int_equal(cache_touch(c, "code", INT32_MAX, &err), 0);
	assert_int_equal(cache_last_used(c, identity, corpus, &id, &err), 1);
	assert_string_equal(corpus, "code");
	identity[0] ^= 1; /* another model's corpora are not meant */
	assert_int_equal(cache_last_used(c, identity, corpus, &id, &err), 0);
	free(chosen);
	cache_close(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(an_ingest_counts_what_a_trace_of_its_tokens_says, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(what_goes_on_at_a_checkpoint_goes_on_counting, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(corpora_that_share_a_sweep_are_counted_apart, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(what_is_computed_once_is_counted_once_and_shared, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(a_forgotten_snapshot_takes_along_what_it_alone_had, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(a_corpus_that_is_loaded_brings_its_experts_along, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(what_is_evicted_takes_its_counts_along, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(a_store_that_was_made_without_counts_works_and_has_none, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(a_wrong_row_is_refused_by_name_found_and_mended, place_set_up, place_tear_down),
		cmocka_unit_test_setup_teardown(counts_of_another_shape_are_refused_with_both, place_set_up, place_tear_down),
	};

	return cmocka_run_group_tests(tests, quiet, tiny_close);
}
