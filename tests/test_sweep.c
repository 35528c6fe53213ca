/*
 * One sweep: the bits of session_append for any budget, chunk and tile; each expert taken up once a chunk; the plan's
 * figures; and what happens between two steps. (Checkpoints, several sequences, sources and sinks that fail:
 * test_sweep_parts.c.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <string.h>

#include "config/mem.h"
#include "engine/internal.h"
#include "engine/sweep.h"
#include "engine/synth.h"
#include "tests/support/golden.h"
#include "tests/support/sanitized.h"
#include "tests/support/sweeping.h"

/* Tokens `prefix` .. of a case, in chunks and tiles, beside a session that was given all of them at once: of a session
 * that has the tokens before, or of one that has only a group of them at a time. */
static void sweep_beside(struct engine *e, const struct model *m, const struct session *all, const float *logits,
			 const float *after, const struct golden_case *c, enum latent_format latents, int64_t prefix,
			 int64_t chunk, int64_t tile, bool by_group)
{
	const struct session_options how = {.latents = latents, .by_group = by_group};
	int64_t n = c->n_ids - 1 - prefix;
	float *last = xmalloc((size_t)m->config.vocab, sizeof *last);
	struct sweep_store store = sweep_store_of(all, prefix);
	struct sweep_sink sink = sweep_store_sink(&store);
	struct sweep_source source = sweep_store_source(&store);
	struct sweep_options opt = {.scratch_bytes = sweeping_budget(e, m, latents, chunk), .tile_tokens = tile};
	struct session *s = sweeping_session_of(e, m, &how);
	const struct sweep_sequence q = {.session = s, .ids = c->ids + prefix, .n = n, .source = by_group ? &source : NULL,
					 .sink = &sink, .last_logits = last};
	struct sweep_plan plan;
	struct sweep_stats stats;
	struct sweep *w;

	if (by_group)
		session_skip(s, prefix);
	else
		sweeping_append(s, c->ids, prefix, NULL);
	w = sweeping_begin(&q, 1, &opt);
	sweeping_run(w);
	assert_int_equal(sweep_plan(&plan, &m->config, engine_compute(e), latents, n, opt.scratch_bytes, NULL), 0);
	sweep_count(w, &stats);
	assert_int_equal(plan.n_chunks, chunk ? (n + chunk - 1) / chunk : 1);
	assert_int_equal(stats.n_chunks, plan.n_chunks);
	assert_int_equal(stats.scratch_bytes, plan.scratch_bytes);
	assert_int_equal(stats.rows_bytes, by_group ? sweep_rows_bytes(&m->config, engine_compute(e), c->n_ids - 1) : 0);
	assert_int_equal(sweep_token_layers(w), n * m->config.n_layers);
	sweep_end(w);
	sweep_store_assert_has(&store, c->n_ids - 1);
	assert_int_equal(session_n_tokens(s), c->n_ids - 1);
	assert_memory_equal(last, logits, (size_t)m->config.vocab * sizeof *last);
	if (by_group) {
		assert_int_equal(session_bytes(s), 0);
	} else {
		sweeping_append(s, c->ids + c->n_ids - 1, 1, last); /* what attention will see of them is the same, too */
		assert_memory_equal(last, after, (size_t)m->config.vocab * sizeof *last);
	}
	session_free(s);
	free(last);
}

static void a_sweep_has_the_bits_of_an_append_in_any_chunks_and_tiles(void **state)
{
	static const struct {
		int64_t prefix, chunk, tile;
	} ways[] = {{0, 0, 0}, {0, 64, 7}, {0, 5, 0}, {37, 0, 13}, {37, 50, 0}, {1, 1, 0}};

	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		struct model *m = sweeping_model(golden_checkpoints[k]);
		size_t vocab = (size_t)m->config.vocab;
		float *logits = xmalloc(vocab, sizeof *logits), *after = xmalloc(vocab, sizeof *after);
		int n;
		struct golden_case *cases = golden_load(golden_checkpoints[k], m->config.vocab, &n);
		const struct golden_case *c = &cases[n - 1]; /* the longest */

		for (int run_of = 0; run_of < 2 * N_LATENT_FORMATS; run_of += SANITIZED ? 3 : 1) {
			enum latent_format latents = (enum latent_format)(run_of / 2);
			struct engine *e = sweeping_engine(run_of % 2 ? COMPUTE_BF16 : COMPUTE_F32);
			struct session *all = sweeping_session(e, m, latents, true);

			sweeping_append(all, c->ids, c->n_ids - 1, logits);
			sweeping_append(all, c->ids + c->n_ids - 1, 1, after);
			for (size_t i = 0; i < 2 * sizeof ways / sizeof ways[0]; i++)
				/* Slow, and nothing of a format or a checkpoint: */
				if ((ways[i / 2].chunk != 1 && i % 2 == 0) ||
				    (latents == LATENTS_FP8 && (ways[i / 2].chunk != 1 || !k)))
					sweep_beside(e, m, all, logits, after, c, latents, ways[i / 2].prefix,
						     ways[i / 2].chunk, ways[i / 2].tile, i % 2);
			session_free(all);
			engine_close(e);
		}
		free(logits);
		free(after);
		golden_free(cases, n);
		model_close(m);
	}
}

/* An append is a sweep of one chunk, so that agreement alone would not find a mistake of both: tokens one at a time. */
static void a_sweep_has_the_bits_of_tokens_one_by_one(void **state)
{
	struct model *m = sweeping_model("glm52");
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	struct session *one = sweeping_session(e, m, LATENTS_FP8, true), *swept = sweeping_session(e, m, LATENTS_FP8, false);
	struct sweep_store store = sweep_store_of(one, 0);
	struct sweep_sink sink = sweep_store_sink(&store);
	float a[512], b[512];
	struct sweep_options opt = {0};
	int32_t ids[600]; /* more than a tile */
	struct sweep *w;

	(void)state;
	for (int i = 0; i < 600; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)m->config.vocab);
	for (int i = 0; i < 600; i++)
		sweeping_append(one, ids + i, 1, a);
	w = sweeping_begin(&(struct sweep_sequence){.session = swept, .ids = ids, .n = 600, .sink = &sink, .last_logits = b}, 1,
		      &opt);
	sweeping_run(w);
	sweep_end(w);
	assert_memory_equal(a, b, (size_t)m->config.vocab * sizeof *a);
	sweep_store_assert_has(&store, 600);
	session_free(one);
	session_free(swept);
	engine_close(e);
	model_close(m);
}

static void a_session_that_keeps_records_has_them_after_a_sweep(void **state)
{
	struct model *m = sweeping_model("glm52");
	struct engine *e = sweeping_engine(COMPUTE_F32);
	struct session *a = sweeping_session(e, m, LATENTS_FP8, true), *b = sweeping_session(e, m, LATENTS_FP8, true);
	const struct layout *l = session_layout(a);
	struct sweep_options opt = {.scratch_bytes = sweeping_budget(e, m, LATENTS_FP8, 64)};
	int32_t ids[90];
	struct sweep *w;

	(void)state;
	for (int i = 0; i < 90; i++)
		ids[i] = 5 * i % m->config.vocab;
	sweeping_append(a, ids, 90, NULL);
	w = sweeping_begin_one(b, ids, 90, NULL, &opt);
	sweeping_run(w);
	sweep_end(w);
	for (int32_t g = 0; g < l->n_groups; g++) {
		size_t bytes = 90 * layout_record_bytes(l, g);
		uint8_t *x = xmalloc(bytes, 1), *y = xmalloc(bytes, 1);

		session_export_records(a, g, 0, 90, x);
		session_export_records(b, g, 0, 90, y);
		assert_memory_equal(x, y, bytes);
		free(x);
		free(y);
	}
	session_free(a);
	session_free(b);
	engine_close(e);
	model_close(m);
}

/*
 * Reads of experts
 */

static void with_room_for_all_tokens_an_expert_that_is_chosen_is_taken_up_exactly_once(void **state)
{
	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		struct model *m = sweeping_model(golden_checkpoints[k]);
		const struct model_config *c = &m->config;
		struct engine *e = sweeping_engine(COMPUTE_F32);
		struct session *s = sweeping_session(e, m, LATENTS_BF16, false);
		struct sweep_options opt = {.tile_tokens = 11};
		struct sweep_stats stats;
		int64_t chosen = 0;
		int32_t ids[100];
		struct sweep *w;

		for (int i = 0; i < 100; i++)
			ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)c->vocab);
		w = sweeping_begin_one(s, ids, 100, NULL, &opt);
		sweeping_run(w);
		sweep_count(w, &stats);
		for (int32_t i = 0; i < c->n_layers; i++) {
			int64_t tokens = 0;

			for (int32_t x = 0; x < c->n_experts; x++) {
				int64_t at = (int64_t)i * c->n_experts + x;

				assert_int_equal(stats.expert_reads[at], stats.expert_tokens[at] > 0);
				tokens += stats.expert_tokens[at];
				chosen += stats.expert_tokens[at] > 0;
			}
			assert_int_equal(tokens, c->layer_is_dense[i] ? 0 : 100 * c->experts_per_token);
		}
		assert_true(chosen > 0);
		assert_int_equal(stats.n_expert_reads, chosen);
		sweep_end(w);
		session_free(s);
		engine_close(e);
		model_close(m);
	}
}

/* 200 tokens in chunks of 64: what the sweep says it read is what four sweeps, a chunk each, read. */
static void with_less_room_an_expert_is_taken_up_once_a_chunk_as_planned(void **state)
{
	struct model *m = sweeping_model("glm52");
	const struct model_config *c = &m->config;
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	struct session *whole = sweeping_session(e, m, LATENTS_FP8, false), *parts = sweeping_session(e, m, LATENTS_FP8, false);
	struct sweep_options opt = {.scratch_bytes = sweeping_budget(e, m, LATENTS_FP8, 64)};
	size_t n_counts = (size_t)c->n_layers * (size_t)c->n_experts;
	int64_t *reads = xcalloc(n_counts, sizeof *reads), most = 0, sum = 0;
	struct sweep_plan plan;
	struct sweep_stats stats;
	int32_t ids[200];
	struct sweep *w;

	(void)state;
	for (int i = 0; i < 200; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)c->vocab);
	for (int64_t first = 0; first < 200; first += 64) {
		int64_t n = 200 - first < 64 ? 200 - first : 64;

		w = sweeping_begin_one(parts, ids + first, n, NULL, &(struct sweep_options){0});
		sweeping_run(w);
		sweep_count(w, &stats);
		for (size_t i = 0; i < n_counts; i++)
			reads[i] += stats.expert_reads[i];
		sweep_end(w);
	}
	w = sweeping_begin_one(whole, ids, 200, NULL, &opt);
	sweeping_run(w);
	sweep_count(w, &stats);
	assert_int_equal(sweep_plan(&plan, c, COMPUTE_BF16, LATENTS_FP8, 200, opt.scratch_bytes, NULL), 0);
	assert_int_equal(plan.reads_per_expert, 4);
	for (size_t i = 0; i < n_counts; i++) {
		assert_int_equal(stats.expert_reads[i], reads[i]);
		most = reads[i] > most ? reads[i] : most;
		sum += reads[i];
	}
	assert_int_equal(most, plan.reads_per_expert);
	assert_int_equal(stats.n_expert_reads, sum);
	sweep_end(w);
	session_free(whole);
	session_free(parts);
	free(reads);
	engine_close(e);
	model_close(m);
}

/* Who brings weights, and cannot at the call that is `left` away. */
struct bringer {
	int64_t calls[MODEL_MAX_LAYERS * 64];
	int32_t n_experts, layer, expert; /* of the last call */
	int left;
};

static int bring(void *ctx, int32_t layer, int32_t expert, struct err *err)
{
	struct bringer *b = ctx;

	assert_true(layer != b->layer || expert > b->expert);
	b->layer = layer;
	b->expert = expert;
	b->calls[layer * b->n_experts + expert]++;
	return b->left-- ? 0 : err_set(err, ERR_IO, "expert %d of layer %d: Input/output error", expert, layer);
}

static void who_brings_weights_is_asked_once_each_time_an_expert_is_taken_up(void **state)
{
	struct model *m = sweeping_model("glm52");
	const struct model_config *c = &m->config;
	struct engine *e = sweeping_engine(COMPUTE_F32);
	struct session *s = sweeping_session(e, m, LATENTS_FP8, false);
	struct bringer b = {.n_experts = c->n_experts, .layer = -1, .left = 1 << 30};
	struct sweep_options opt = {.scratch_bytes = sweeping_budget(e, m, LATENTS_FP8, 64), .tile_tokens = 5, .take_up = bring,
				    .take_up_ctx = &b};
	struct sweep_stats stats;
	struct err err = {0};
	int32_t ids[200];
	struct sweep *w;

	(void)state;
	assert_true(c->n_experts <= 64);
	for (int i = 0; i < 200; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)c->vocab);
	w = sweeping_begin_one(s, ids, 200, NULL, &opt);
	sweeping_run(w);
	sweep_count(w, &stats);
	assert_true(stats.n_expert_reads > 0);
	for (int32_t i = 0; i < c->n_layers * c->n_experts; i++)
		assert_int_equal(b.calls[i], stats.expert_reads[i]);
	sweep_end(w);
	session_truncate(s, 0);
	b.left = 3;
	b.layer = -1;
	w = sweeping_begin_one(s, ids, 200, NULL, &opt);
	assert_int_equal(sweep_run(w, NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_IO);
	assert_non_null(strstr(err.text, ": Input/output error"));
	sweep_end(w);
	session_free(s);
	engine_close(e);
	model_close(m);
}

/*
 * The plan
 */

static struct model_config glm52(void)
{
	struct synth_options o = synth_glm52;
	struct model_config c;
	struct err err = {0};
	char *text;

	o.n_dense_layers = 3;
	o.n_moe_layers = 75;
	text = synth_config_json(&o);
	if (model_config_parse(&c, "config.json", text, strlen(text), NULL, &err))
		fail_msg("%s", err.text);
	free(text);
	return c;
}

static void a_token_of_glm52_takes_fifty_kilobytes(void **state)
{
	struct model_config c = glm52();
	struct sweep_plan plan;

	(void)state;
	assert_int_equal(sweep_plan(&plan, &c, COMPUTE_BF16, LATENTS_FP8, 1 << 20, 0, NULL), 0);
	assert_int_equal(plan.token.residual, 4 * 6144);
	assert_int_equal(plan.token.input, 2 * 6144);
	assert_int_equal(plan.token.choices, 4 * 2048 + 16);
	assert_int_equal(plan.token.latents, 4 * 656 + 2 * 128); /* a full layer and three that share its choice */
	assert_int_equal(plan.token.router, 8 * 16);
	assert_int_equal(plan.token.angles, 64 * 4);
	assert_int_equal(sweep_token_bytes(&plan.token), 48336);
	assert_int_equal(plan.n_chunks, 1);
	assert_true(plan.scratch_bytes > 50000000000 && plan.scratch_bytes < 51000000000);
	/* Besides: what four layers attend to, and one of them scores, of this and all earlier tokens. Not 78 layers. */
	assert_int_equal(sweep_rows_bytes(&c, COMPUTE_BF16, 1 << 20), (4 * 1152 + 256) * (size_t)(1 << 20));
	assert_int_equal(sweep_plan(&plan, &c, COMPUTE_F32, LATENTS_BF16, 1 << 20, 0, NULL), 0);
	assert_int_equal(plan.token.input, 4 * 6144);
	assert_int_equal(plan.token.latents, 4 * 1152 + 2 * 128);
}

static void a_plan_takes_the_largest_chunks_that_fit(void **state)
{
	struct model_config c = glm52();
	const size_t giga = 1000000000;

	(void)state;
	for (size_t budget = 100000; budget < 100 * giga; budget = budget * 3 / 2) {
		struct sweep_plan plan, more;
		int64_t step;

		assert_int_equal(sweep_plan(&plan, &c, COMPUTE_BF16, LATENTS_FP8, 1 << 20, budget, NULL), 0);
		assert_true(plan.scratch_bytes <= budget);
		assert_int_equal(plan.n_chunks, ((1 << 20) + plan.chunk_tokens - 1) / plan.chunk_tokens);
		assert_int_equal(plan.reads_per_expert, plan.n_chunks);
		if (plan.n_chunks == 1)
			continue;
		step = plan.chunk_tokens < 64 ? 1 : 64;
		assert_int_equal(plan.chunk_tokens % step, 0);
		assert_int_equal(sweep_plan(&more, &c, COMPUTE_BF16, LATENTS_FP8, plan.chunk_tokens + step, 0, NULL), 0);
		assert_true(more.scratch_bytes > budget);
	}
}

static void a_budget_without_room_for_a_token_is_refused_with_both_numbers(void **state)
{
	struct model_config c = glm52();
	struct sweep_plan plan;
	struct err err = {0};

	(void)state;
	assert_int_equal(sweep_plan(&plan, &c, COMPUTE_BF16, LATENTS_FP8, 1000, 20000, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "the budget is 20000"));
}

/*
 * Between steps
 */

struct stopper {
	int left;
};

static int stop_after(void *ctx, struct err *err)
{
	struct stopper *s = ctx;

	return s->left-- ? 0 : err_set(err, ERR_CANCELLED, "enough");
}

/* Wherever a sweep is stopped, the session has whole chunks and goes on with the same bits. */
static void a_sweep_that_is_stopped_leaves_whole_chunks(void **state)
{
	struct model *m = sweeping_model("glm52");
	struct engine *e = sweeping_engine(COMPUTE_F32);
	struct session *all = sweeping_session(e, m, LATENTS_BF16, false);
	struct sweep_options opt = {.scratch_bytes = sweeping_budget(e, m, LATENTS_BF16, 64)};
	float expected[512], got[512];
	int32_t ids[150];
	int n_seen[3] = {0}, rc = -1;

	(void)state;
	for (int i = 0; i < 150; i++)
		ids[i] = 7 * i % m->config.vocab;
	sweeping_append(all, ids, 150, expected);
	for (int stop = 0; rc; stop += 5) {
		struct session *s = sweeping_session(e, m, LATENTS_BF16, false);
		struct sweep *w = sweeping_begin_one(s, ids, 150, NULL, &opt);
		struct stopper stopper = {stop};
		struct err err = {0};
		int64_t n;

		rc = sweep_run(w, stop_after, &stopper, &err);
		sweep_end(w);
		n = session_n_tokens(s);
		if (rc) {
			assert_int_equal(err.code, ERR_CANCELLED);
			assert_string_equal(err.text, "enough");
			assert_true(n == 0 || n == 64 || n == 128);
			n_seen[n / 64]++;
			sweeping_append(s, ids + n, 150 - n, got);
			assert_memory_equal(got, expected, (size_t)m->config.vocab * sizeof *got);
		} else {
			assert_int_equal(n, 150);
		}
		session_free(s);
	}
	assert_true(n_seen[0] > 1 && n_seen[1] > 1 && n_seen[2] > 1);
	session_free(all);
	engine_close(e);
	model_close(m);
}

static void a_question_between_two_steps_changes_nothing(void **state)
{
	struct model *m = sweeping_model("glm52");
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	struct session *swept = sweeping_session(e, m, LATENTS_FP8, false), *other = sweeping_session(e, m, LATENTS_FP8, false);
	struct session *alone = sweeping_session(e, m, LATENTS_FP8, false);
	float expected[512], got[512], question[512], first_question[512];
	struct sweep_options opt = {.tile_tokens = 16};
	int64_t done = 0;
	int32_t ids[150];
	struct sweep *w;
	int n_steps = 0;

	(void)state;
	for (int i = 0; i < 150; i++)
		ids[i] = 11 * i % m->config.vocab;
	sweeping_append(alone, ids, 150, expected);
	w = sweeping_begin_one(swept, ids, 150, got, &opt);
	while (sweep_step(w, NULL) > 0) {
		session_truncate(other, 0);
		sweeping_append(other, ids + 3, 20, n_steps++ ? question : first_question);
		if (n_steps > 1)
			assert_memory_equal(question, first_question, (size_t)m->config.vocab * sizeof *question);
		assert_true(sweep_token_layers(w) >= done);
		done = sweep_token_layers(w);
	}
	assert_int_equal(sweep_token_layers(w), 150 * m->config.n_layers);
	sweep_end(w);
	assert_true(n_steps > 10 * m->config.n_layers); /* 150 tokens are ten tiles of attention in each layer */
	assert_memory_equal(got, expected, (size_t)m->config.vocab * sizeof *got);
	session_free(swept);
	session_free(other);
	session_free(alone);
	engine_close(e);
	model_close(m);
}

static void tiles_become_smaller_where_they_are_slow_and_larger_where_they_are_fast(void **state)
{
	const int64_t ms = 1000000;
	struct pace p = {256, 256};

	(void)state;
	pace_learn(&p, 256, 499 * ms);
	assert_int_equal(p.rows, 256);
	pace_learn(&p, 256, 501 * ms);
	assert_int_equal(p.rows, 128);
	pace_learn(&p, 20, 10 * ms); /* the last tile of a part says nothing about whole ones */
	assert_int_equal(p.rows, 128);
	for (int i = 0; i < 10; i++)
		pace_learn(&p, p.rows, 4000 * ms);
	assert_int_equal(p.rows, 16);
	pace_learn(&p, 16, 200 * ms);
	assert_int_equal(p.rows, 16);
	for (int i = 0; i < 10; i++)
		pace_learn(&p, p.rows, 99 * ms);
	assert_int_equal(p.rows, 256);
	p = (struct pace){7, 7}; /* fewer than 16 were asked for */
	pace_learn(&p, 7, 4000 * ms);
	assert_int_equal(p.rows, 7);
}

static void what_an_append_refuses_a_sweep_refuses(void **state)
{
	struct model *m = sweeping_model("glm5");
	struct engine *e = sweeping_engine(COMPUTE_F32);
	struct session_options small = {.latents = LATENTS_BF16, .max_tokens = 100};
	struct session *s = NULL;
	struct sweep_options opt = {0}, poor = {.scratch_bytes = 10}, later = {.first_layer = 1};
	struct sweep_sequence q;
	float *row = (float *)(uintptr_t)m->layers[1].kv_a.data;
	int32_t ids[101] = {0}, wrong[2] = {1, m->config.vocab};
	struct sweep *w = NULL;
	struct err err = {0};

	(void)state;
	assert_int_equal(session_new(&s, e, m, &small, NULL), 0);
	q = (struct sweep_sequence){.session = s, .ids = wrong, .n = 2};
	assert_int_equal(sweep_begin(&w, &q, 1, &opt, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	q = (struct sweep_sequence){.session = s, .ids = ids, .n = 101};
	assert_int_equal(sweep_begin(&w, &q, 1, &opt, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	q.n = 2;
	assert_int_equal(sweep_begin(&w, &q, 1, &poor, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(sweep_begin(&w, &q, 1, &later, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_non_null(strstr(err.text, "at layer 1, in the middle of group 0"));
	assert_null(w);
	for (int32_t i = 0; i < m->config.hidden; i++)
		row[m->config.hidden * (m->config.kv_lora + 1) + i] = 3e38f; /* a rope value: not normed away */
	w = sweeping_begin_one(s, ids, 3, NULL, &opt);
	assert_int_equal(sweep_run(w, NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
	assert_non_null(strstr(err.text, "layer 1, position "));
	sweep_end(w);
	sweep_end(NULL);
	assert_int_equal(session_n_tokens(s), 0);
	session_free(s);
	engine_close(e);
	model_close(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_sweep_has_the_bits_of_an_append_in_any_chunks_and_tiles),
		cmocka_unit_test(a_sweep_has_the_bits_of_tokens_one_by_one),
		cmocka_unit_test(a_session_that_keeps_records_has_them_after_a_sweep),
		cmocka_unit_test(with_room_for_all_tokens_an_expert_that_is_chosen_is_taken_up_exactly_once),
		cmocka_unit_test(with_less_room_an_expert_is_taken_up_once_a_chunk_as_planned),
		cmocka_unit_test(who_brings_weights_is_asked_once_each_time_an_expert_is_taken_up),
		cmocka_unit_test(a_token_of_glm52_takes_fifty_kilobytes),
		cmocka_unit_test(a_plan_takes_the_largest_chunks_that_fit),
		cmocka_unit_test(a_budget_without_room_for_a_token_is_refused_with_both_numbers),
		cmocka_unit_test(a_sweep_that_is_stopped_leaves_whole_chunks),
		cmocka_unit_test(a_question_between_two_steps_changes_nothing),
		cmocka_unit_test(tiles_become_smaller_where_they_are_slow_and_larger_where_they_are_fast),
		cmocka_unit_test(what_an_append_refuses_a_sweep_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
