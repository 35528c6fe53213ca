/*
 * One sweep: the bits of session_append for any budget, chunk and tile; each expert taken up once a chunk; the plan's
 * figures; and what happens between two steps.
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

static struct engine *open_engine(enum compute_profile compute)
{
	struct engine_options opt = {.n_threads = 2, .compute = compute};
	struct engine *e = NULL;
	struct err err = {0};

	if (engine_open(&e, &opt, &err))
		fail_msg("%s", err.text);
	return e;
}

static struct model *open_model(const char *checkpoint)
{
	char *dir = golden_dir(checkpoint);
	struct model *m = NULL;
	struct err err = {0};

	if (model_open(&m, dir, NULL, &err))
		fail_msg("%s", err.text);
	free(dir);
	return m;
}

static struct session *open_session(struct engine *e, const struct model *m, enum latent_format latents, bool keep)
{
	struct session_options opt = {.latents = latents, .keep_records = keep};
	struct session *s = NULL;

	assert_int_equal(session_new(&s, e, m, &opt, NULL), 0);
	return s;
}

static void append(struct session *s, const int32_t *ids, int64_t n, float *logits)
{
	struct err err = {0};

	if (n && session_append(s, ids, (size_t)n, logits, NULL, &err))
		fail_msg("%s", err.text);
}

/* The budget that makes chunks of so many tokens; 0: none. */
static size_t budget_for(const struct engine *e, const struct model *m, enum latent_format latents, int64_t chunk)
{
	struct sweep_plan plan;

	if (!chunk)
		return 0;
	assert_int_equal(sweep_plan(&plan, &m->config, engine_compute(e), latents, chunk, 0, NULL), 0);
	return plan.scratch_bytes;
}

static struct sweep *begin(struct session *s, const int32_t *ids, int64_t n, const struct sweep_options *opt)
{
	struct sweep *w = NULL;
	struct err err = {0};

	if (sweep_begin(&w, s, ids, (size_t)n, opt, &err))
		fail_msg("%s", err.text);
	return w;
}

static void run(struct sweep *w)
{
	struct err err = {0};

	if (sweep_run(w, NULL, NULL, &err))
		fail_msg("%s", err.text);
}

/*
 * Bits
 */

/* Whoever takes a sweep's groups, and the session whose exports they must be. */
struct taker {
	const struct session *as;
	int64_t next[MODEL_MAX_LAYERS]; /* the position that each group must come with */
	int n_calls, n_index_layers;    /* in all calls */
};

static int take(void *ctx, const struct sweep_group *g, struct err *err)
{
	struct taker *t = ctx;
	const struct layout *l = session_layout(t->as);
	size_t bytes = (size_t)g->n * layout_record_bytes(l, g->group);
	uint8_t *expected = xmalloc(bytes, 1);

	(void)err;
	assert_true(g->n >= 1 && g->first == t->next[g->group]);
	t->next[g->group] += g->n;
	t->n_calls++;
	t->n_index_layers += g->n_index_layers;
	session_export_records(t->as, g->group, g->first, g->n, expected);
	assert_memory_equal(g->records, expected, bytes);
	free(expected);
	for (int32_t i = 0; i < g->n_index_layers; i++) {
		bytes = (size_t)g->n * l->index_key_bytes;
		expected = xmalloc(bytes, 1);
		session_export_index_keys(t->as, g->index_layers[i], g->first, g->n, expected);
		assert_memory_equal(g->index_keys[i], expected, bytes);
		free(expected);
	}
	return 0;
}

/* Tokens `prefix` .. of a case, in chunks and tiles, beside a session that was given all of them at once. */
static void sweep_beside(struct engine *e, const struct model *m, const struct session *all, const float *logits,
			 const float *after, const struct golden_case *c, enum latent_format latents, int64_t prefix,
			 int64_t chunk, int64_t tile)
{
	int64_t n = c->n_ids - 1 - prefix;
	float *last = xmalloc((size_t)m->config.vocab, sizeof *last);
	struct taker taker = {.as = all};
	struct sweep_options opt = {.scratch_bytes = budget_for(e, m, latents, chunk), .tile_tokens = tile,
				    .last_logits = last, .group = take, .ctx = &taker};
	struct session *s = open_session(e, m, latents, false);
	const struct layout *l = session_layout(s);
	struct sweep_plan plan;
	struct sweep_stats stats;
	struct sweep *w;

	append(s, c->ids, prefix, NULL);
	for (int32_t g = 0; g < l->n_groups; g++)
		taker.next[g] = prefix;
	w = begin(s, c->ids + prefix, n, &opt);
	run(w);
	assert_int_equal(sweep_plan(&plan, &m->config, engine_compute(e), latents, n, opt.scratch_bytes, NULL), 0);
	sweep_count(w, &stats);
	assert_int_equal(plan.n_chunks, chunk ? (n + chunk - 1) / chunk : 1);
	assert_int_equal(stats.n_chunks, plan.n_chunks);
	assert_int_equal(stats.scratch_bytes, plan.scratch_bytes);
	assert_int_equal(sweep_token_layers(w), n * m->config.n_layers);
	assert_int_equal(taker.n_calls, l->n_groups * plan.n_chunks);
	assert_int_equal(taker.n_index_layers, l->n_index_layers * plan.n_chunks);
	sweep_end(w);
	for (int32_t g = 0; g < l->n_groups; g++)
		assert_int_equal(taker.next[g], c->n_ids - 1);
	assert_int_equal(session_n_tokens(s), c->n_ids - 1);
	assert_memory_equal(last, logits, (size_t)m->config.vocab * sizeof *last);
	append(s, c->ids + c->n_ids - 1, 1, last); /* what attention will see of them is the same, too */
	assert_memory_equal(last, after, (size_t)m->config.vocab * sizeof *last);
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
		struct model *m = open_model(golden_checkpoints[k]);
		size_t vocab = (size_t)m->config.vocab;
		float *logits = xmalloc(vocab, sizeof *logits), *after = xmalloc(vocab, sizeof *after);
		int n;
		struct golden_case *cases = golden_load(golden_checkpoints[k], m->config.vocab, &n);
		const struct golden_case *c = &cases[n - 1]; /* the longest */

		for (int run_of = 0; run_of < 2 * N_LATENT_FORMATS; run_of++) {
			enum latent_format latents = (enum latent_format)(run_of / 2);
			struct engine *e = open_engine(run_of % 2 ? COMPUTE_BF16 : COMPUTE_F32);
			struct session *all = open_session(e, m, latents, true);

			append(all, c->ids, c->n_ids - 1, logits);
			append(all, c->ids + c->n_ids - 1, 1, after);
			for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
				if (ways[i].chunk != 1 || latents == LATENTS_FP8) /* slow, and nothing of a format */
					sweep_beside(e, m, all, logits, after, c, latents, ways[i].prefix,
						     ways[i].chunk, ways[i].tile);
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
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_BF16);
	struct session *one = open_session(e, m, LATENTS_FP8, true), *swept = open_session(e, m, LATENTS_FP8, false);
	struct taker taker = {.as = one};
	float a[512], b[512];
	struct sweep_options opt = {.last_logits = b, .group = take, .ctx = &taker};
	int32_t ids[600]; /* more than a tile */
	struct sweep *w;

	(void)state;
	for (int i = 0; i < 600; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)m->config.vocab);
	for (int i = 0; i < 600; i++)
		append(one, ids + i, 1, a);
	w = begin(swept, ids, 600, &opt);
	run(w);
	sweep_end(w);
	assert_memory_equal(a, b, (size_t)m->config.vocab * sizeof *a);
	assert_int_equal(taker.n_calls, session_layout(one)->n_groups);
	session_free(one);
	session_free(swept);
	engine_close(e);
	model_close(m);
}

static void a_session_that_keeps_records_has_them_after_a_sweep(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_F32);
	struct session *a = open_session(e, m, LATENTS_FP8, true), *b = open_session(e, m, LATENTS_FP8, true);
	const struct layout *l = session_layout(a);
	struct sweep_options opt = {.scratch_bytes = budget_for(e, m, LATENTS_FP8, 64)};
	int32_t ids[90];
	struct sweep *w;

	(void)state;
	for (int i = 0; i < 90; i++)
		ids[i] = 5 * i % m->config.vocab;
	append(a, ids, 90, NULL);
	w = begin(b, ids, 90, &opt);
	run(w);
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
		struct model *m = open_model(golden_checkpoints[k]);
		const struct model_config *c = &m->config;
		struct engine *e = open_engine(COMPUTE_F32);
		struct session *s = open_session(e, m, LATENTS_BF16, false);
		struct sweep_options opt = {.tile_tokens = 11};
		struct sweep_stats stats;
		int64_t chosen = 0;
		int32_t ids[100];
		struct sweep *w;

		for (int i = 0; i < 100; i++)
			ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)c->vocab);
		w = begin(s, ids, 100, &opt);
		run(w);
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
	struct model *m = open_model("glm52");
	const struct model_config *c = &m->config;
	struct engine *e = open_engine(COMPUTE_BF16);
	struct session *whole = open_session(e, m, LATENTS_FP8, false), *parts = open_session(e, m, LATENTS_FP8, false);
	struct sweep_options opt = {.scratch_bytes = budget_for(e, m, LATENTS_FP8, 64)};
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

		w = begin(parts, ids + first, n, &(struct sweep_options){0});
		run(w);
		sweep_count(w, &stats);
		for (size_t i = 0; i < n_counts; i++)
			reads[i] += stats.expert_reads[i];
		sweep_end(w);
	}
	w = begin(whole, ids, 200, &opt);
	run(w);
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
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_F32);
	struct session *all = open_session(e, m, LATENTS_BF16, false);
	struct sweep_options opt = {.scratch_bytes = budget_for(e, m, LATENTS_BF16, 64)};
	float expected[512], got[512];
	int32_t ids[150];
	int n_seen[3] = {0}, rc = -1;

	(void)state;
	for (int i = 0; i < 150; i++)
		ids[i] = 7 * i % m->config.vocab;
	append(all, ids, 150, expected);
	for (int stop = 0; rc; stop += 5) {
		struct session *s = open_session(e, m, LATENTS_BF16, false);
		struct sweep *w = begin(s, ids, 150, &opt);
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
			append(s, ids + n, 150 - n, got);
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
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_BF16);
	struct session *swept = open_session(e, m, LATENTS_FP8, false), *other = open_session(e, m, LATENTS_FP8, false);
	struct session *alone = open_session(e, m, LATENTS_FP8, false);
	float expected[512], got[512], question[512], first_question[512];
	struct sweep_options opt = {.tile_tokens = 16, .last_logits = got};
	int64_t done = 0;
	int32_t ids[150];
	struct sweep *w;
	int n_steps = 0;

	(void)state;
	for (int i = 0; i < 150; i++)
		ids[i] = 11 * i % m->config.vocab;
	append(alone, ids, 150, expected);
	w = begin(swept, ids, 150, &opt);
	while (sweep_step(w, NULL) > 0) {
		session_truncate(other, 0);
		append(other, ids + 3, 20, n_steps++ ? question : first_question);
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

static int refuse(void *ctx, const struct sweep_group *g, struct err *err)
{
	int *left = ctx;

	return --*left ? 0 : err_set(err, ERR_IO, "group %d of position %lld: no space", g->group, (long long)g->first);
}

static void what_the_taker_of_a_group_cannot_do_ends_the_sweep(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_F32);
	struct session *s = open_session(e, m, LATENTS_BF16, false);
	int left = session_layout(s)->n_groups + 1; /* the first group of the second chunk */
	struct sweep_options opt = {.scratch_bytes = budget_for(e, m, LATENTS_BF16, 64), .group = refuse, .ctx = &left};
	struct err err = {0};
	int32_t ids[100] = {0};
	struct sweep *w;

	(void)state;
	w = begin(s, ids, 100, &opt);
	assert_int_equal(sweep_run(w, NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_IO);
	assert_non_null(strstr(err.text, "of position 64: no space"));
	sweep_end(w);
	assert_int_equal(session_n_tokens(s), 64);
	session_free(s);
	engine_close(e);
	model_close(m);
}

static void what_an_append_refuses_a_sweep_refuses(void **state)
{
	struct model *m = open_model("glm5");
	struct engine *e = open_engine(COMPUTE_F32);
	struct session_options small = {.latents = LATENTS_BF16, .max_tokens = 100};
	struct session *s = NULL;
	struct sweep_options opt = {0}, poor = {.scratch_bytes = 10};
	float *row = (float *)(uintptr_t)m->layers[1].kv_a.data;
	int32_t ids[101] = {0}, wrong[2] = {1, m->config.vocab};
	struct sweep *w = NULL;
	struct err err = {0};

	(void)state;
	assert_int_equal(session_new(&s, e, m, &small, NULL), 0);
	assert_int_equal(sweep_begin(&w, s, wrong, 2, &opt, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(sweep_begin(&w, s, ids, 101, &opt, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(sweep_begin(&w, s, ids, 2, &poor, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_null(w);
	for (int32_t i = 0; i < m->config.hidden; i++)
		row[m->config.hidden * (m->config.kv_lora + 1) + i] = 3e38f; /* a rope value: not normed away */
	w = begin(s, ids, 3, &opt);
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
		cmocka_unit_test(a_token_of_glm52_takes_fifty_kilobytes),
		cmocka_unit_test(a_plan_takes_the_largest_chunks_that_fit),
		cmocka_unit_test(a_budget_without_room_for_a_token_is_refused_with_both_numbers),
		cmocka_unit_test(a_sweep_that_is_stopped_leaves_whole_chunks),
		cmocka_unit_test(a_question_between_two_steps_changes_nothing),
		cmocka_unit_test(tiles_become_smaller_where_they_are_slow_and_larger_where_they_are_fast),
		cmocka_unit_test(what_the_taker_of_a_group_cannot_do_ends_the_sweep),
		cmocka_unit_test(what_an_append_refuses_a_sweep_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
