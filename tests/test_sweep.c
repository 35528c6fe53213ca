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

static struct session *open_session_of(struct engine *e, const struct model *m, const struct session_options *opt)
{
	struct session *s = NULL;

	assert_int_equal(session_new(&s, e, m, opt, NULL), 0);
	return s;
}

static struct session *open_session(struct engine *e, const struct model *m, enum latent_format latents, bool keep)
{
	return open_session_of(e, m, &(struct session_options){.latents = latents, .keep_records = keep});
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

static struct sweep *begin_all(const struct sweep_sequence *q, int32_t n, const struct sweep_options *opt)
{
	struct sweep *w = NULL;
	struct err err = {0};

	if (sweep_begin(&w, q, n, opt, &err))
		fail_msg("%s", err.text);
	return w;
}

static struct sweep *begin(struct session *s, const int32_t *ids, int64_t n, float *last_logits,
			   const struct sweep_options *opt)
{
	const struct sweep_sequence q = {.session = s, .ids = ids, .n = n, .last_logits = last_logits};

	return begin_all(&q, 1, opt);
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

/* A store in memory: what a sink of it was given, a source of it gives. It must come in order, and be what the exports of
 * a session are. */
struct store {
	const struct session *as;
	int64_t n_records[MODEL_MAX_LAYERS], n_keys[MODEL_MAX_LAYERS]; /* positions that each group and index layer has */
	int32_t bad_group;       /* < 0, or a group that it cannot give */
	int64_t given_tokens;
	/* The last checkpoint, and how many there were: */
	int32_t next_layer;
	float *residual;
	size_t residual_bytes;
	int n_checkpoints;
};

static void export_part(const struct session *s, int32_t group, int32_t index_layer, int64_t first, int64_t n, void *out)
{
	if (group >= 0)
		session_export_records(s, group, first, n, out);
	else
		session_export_index_keys(s, index_layer, first, n, out);
}

static void assert_part(const struct session *s, int32_t group, int32_t index_layer, int64_t first, int64_t n,
			const uint8_t *got)
{
	const struct layout *l = session_layout(s);
	size_t bytes = (size_t)n * (group >= 0 ? layout_record_bytes(l, group) : l->index_key_bytes);
	uint8_t *expected = xmalloc(bytes, 1);

	export_part(s, group, index_layer, first, n, expected);
	assert_memory_equal(got, expected, bytes);
	free(expected);
}

static int take_records(void *ctx, int32_t group, int64_t first, int64_t n, const uint8_t *records, struct err *err)
{
	struct store *t = ctx;

	(void)err;
	assert_true(n >= 1 && first == t->n_records[group]);
	assert_part(t->as, group, -1, first, n, records);
	t->n_records[group] += n;
	return 0;
}

static int take_index_keys(void *ctx, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys, struct err *err)
{
	struct store *t = ctx;

	(void)err;
	assert_true(n >= 1 && first == t->n_keys[index_layer]);
	assert_part(t->as, -1, index_layer, first, n, keys);
	t->n_keys[index_layer] += n;
	return 0;
}

static int take_checkpoint(void *ctx, int32_t next_layer, const float *residual, size_t bytes, struct err *err)
{
	struct store *t = ctx;

	(void)err;
	assert_true(next_layer > t->next_layer);
	t->next_layer = next_layer;
	t->n_checkpoints++;
	t->residual = xrealloc(t->residual, bytes, 1);
	t->residual_bytes = bytes;
	memcpy(t->residual, residual, bytes);
	return 0;
}

static int give_residual(void *ctx, float *out, size_t bytes, struct err *err)
{
	const struct store *t = ctx;

	(void)err;
	assert_int_equal(bytes, t->residual_bytes);
	memcpy(out, t->residual, bytes);
	return 0;
}

static int give_records(void *ctx, int32_t group, int64_t first, int64_t n, uint8_t *out, int64_t *bad, struct err *err)
{
	struct store *t = ctx;

	if (group == t->bad_group && first + n > 70) {
		*bad = 70;
		return err_set(err, ERR_DAMAGED, "checksum of group %d is wrong", group);
	}
	assert_true(n >= 1 && first >= 0 && first + n <= t->n_records[group]);
	export_part(t->as, group, -1, first, n, out);
	t->given_tokens += n;
	return 0;
}

static int give_index_keys(void *ctx, int32_t index_layer, int64_t first, int64_t n, uint8_t *out, int64_t *bad,
			   struct err *err)
{
	struct store *t = ctx;

	(void)bad;
	(void)err;
	assert_true(n >= 1 && first >= 0 && first + n <= t->n_keys[index_layer]);
	export_part(t->as, -1, index_layer, first, n, out);
	return 0;
}

/* A store that has the first n tokens of a session. */
static struct store store_of(const struct session *as, int64_t n)
{
	struct store t = {.as = as, .bad_group = -1};

	for (int32_t g = 0; g < session_layout(as)->n_groups; g++)
		t.n_records[g] = n;
	for (int32_t i = 0; i < session_layout(as)->n_index_layers; i++)
		t.n_keys[i] = n;
	return t;
}

static void assert_has(const struct store *t, int64_t n)
{
	for (int32_t g = 0; g < session_layout(t->as)->n_groups; g++)
		assert_int_equal(t->n_records[g], n);
	for (int32_t i = 0; i < session_layout(t->as)->n_index_layers; i++)
		assert_int_equal(t->n_keys[i], n);
}

static struct sweep_sink sink_of(struct store *t)
{
	return (struct sweep_sink){t, take_records, take_index_keys, NULL};
}

static struct sweep_source source_of(struct store *t)
{
	return (struct sweep_source){t, give_records, give_index_keys};
}

/* Tokens `prefix` .. of a case, in chunks and tiles, beside a session that was given all of them at once: of a session
 * that has the tokens before, or of one that has only a group of them at a time. */
static void sweep_beside(struct engine *e, const struct model *m, const struct session *all, const float *logits,
			 const float *after, const struct golden_case *c, enum latent_format latents, int64_t prefix,
			 int64_t chunk, int64_t tile, bool by_group)
{
	const struct session_options how = {.latents = latents, .by_group = by_group};
	int64_t n = c->n_ids - 1 - prefix;
	float *last = xmalloc((size_t)m->config.vocab, sizeof *last);
	struct store store = store_of(all, prefix);
	struct sweep_sink sink = sink_of(&store);
	struct sweep_source source = source_of(&store);
	struct sweep_options opt = {.scratch_bytes = budget_for(e, m, latents, chunk), .tile_tokens = tile};
	struct session *s = open_session_of(e, m, &how);
	const struct sweep_sequence q = {.session = s, .ids = c->ids + prefix, .n = n, .source = by_group ? &source : NULL,
					 .sink = &sink, .last_logits = last};
	struct sweep_plan plan;
	struct sweep_stats stats;
	struct sweep *w;

	if (by_group)
		session_skip(s, prefix);
	else
		append(s, c->ids, prefix, NULL);
	w = begin_all(&q, 1, &opt);
	run(w);
	assert_int_equal(sweep_plan(&plan, &m->config, engine_compute(e), latents, n, opt.scratch_bytes, NULL), 0);
	sweep_count(w, &stats);
	assert_int_equal(plan.n_chunks, chunk ? (n + chunk - 1) / chunk : 1);
	assert_int_equal(stats.n_chunks, plan.n_chunks);
	assert_int_equal(stats.scratch_bytes, plan.scratch_bytes);
	assert_int_equal(stats.rows_bytes, by_group ? sweep_rows_bytes(&m->config, engine_compute(e), c->n_ids - 1) : 0);
	assert_int_equal(sweep_token_layers(w), n * m->config.n_layers);
	sweep_end(w);
	assert_has(&store, c->n_ids - 1);
	assert_int_equal(session_n_tokens(s), c->n_ids - 1);
	assert_memory_equal(last, logits, (size_t)m->config.vocab * sizeof *last);
	if (by_group) {
		assert_int_equal(session_bytes(s), 0);
	} else {
		append(s, c->ids + c->n_ids - 1, 1, last); /* what attention will see of them is the same, too */
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
			for (size_t i = 0; i < 2 * sizeof ways / sizeof ways[0]; i++)
				/* Slow, and nothing of a format: */
				if ((ways[i / 2].chunk != 1 && i % 2 == 0) || latents == LATENTS_FP8)
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
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_BF16);
	struct session *one = open_session(e, m, LATENTS_FP8, true), *swept = open_session(e, m, LATENTS_FP8, false);
	struct store store = store_of(one, 0);
	struct sweep_sink sink = sink_of(&store);
	float a[512], b[512];
	struct sweep_options opt = {0};
	int32_t ids[600]; /* more than a tile */
	struct sweep *w;

	(void)state;
	for (int i = 0; i < 600; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)m->config.vocab);
	for (int i = 0; i < 600; i++)
		append(one, ids + i, 1, a);
	w = begin_all(&(struct sweep_sequence){.session = swept, .ids = ids, .n = 600, .sink = &sink, .last_logits = b}, 1,
		      &opt);
	run(w);
	sweep_end(w);
	assert_memory_equal(a, b, (size_t)m->config.vocab * sizeof *a);
	assert_has(&store, 600);
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
	w = begin(b, ids, 90, NULL, &opt);
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
 * Checkpoints
 */

static int64_t groups_from(const struct layout *l, int32_t layer)
{
	int64_t n = 0;

	for (int32_t g = 0; g < l->n_groups; g++)
		n += l->groups[g].layers[0] >= layer;
	return n;
}

/* Everywhere a checkpoint can be made, the sweep is left behind; another one goes on from there, with the bits of one that
 * was not interrupted. */
static void a_sweep_goes_on_behind_any_checkpoint_with_the_same_bits(void **state)
{
	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		struct model *m = open_model(golden_checkpoints[k]);
		struct engine *e = open_engine(COMPUTE_BF16);
		const struct session_options how = {.latents = LATENTS_FP8, .by_group = true};
		struct session *all = open_session(e, m, LATENTS_FP8, true);
		size_t vocab = (size_t)m->config.vocab;
		float *expected = xmalloc(vocab, sizeof *expected), *got = xmalloc(vocab, sizeof *got);
		struct sweep_options opt = {.always_checkpoint = true};
		int n_resumed = 0;
		int32_t ids[150];

		for (int i = 0; i < 150; i++)
			ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)m->config.vocab);
		append(all, ids, 150, expected);
		for (int stop = 1;; stop++) {
			struct store store = store_of(all, 40);
			struct sweep_sink sink = sink_of(&store);
			struct sweep_source source = source_of(&store);
			struct session *s = open_session_of(e, m, &how);
			struct sweep_sequence q = {.session = s, .ids = ids + 40, .n = 110, .source = &source, .sink = &sink};
			struct sweep_stats stats;
			struct sweep *w;
			int more = 1;

			sink.checkpoint = take_checkpoint;
			session_skip(s, 40);
			w = begin_all(&q, 1, &opt);
			while (more > 0 && store.n_checkpoints < stop)
				more = sweep_step(w, NULL);
			sweep_end(w);
			session_free(s);
			if (!more) {
				free(store.residual);
				assert_int_equal(store.n_checkpoints, stop - 1);
				break;
			}
			assert_int_equal(store.residual_bytes, 110 * (size_t)m->config.hidden * sizeof(float));
			s = open_session_of(e, m, &how); /* nothing of the first one is left but what left it */
			q.session = s;
			q.residual = give_residual;
			q.residual_ctx = &store;
			q.last_logits = got;
			session_skip(s, 40);
			opt.first_layer = store.next_layer;
			w = begin_all(&q, 1, &opt);
			assert_int_equal(sweep_token_layers(w), 0);
			run(w);
			sweep_count(w, &stats);
			assert_int_equal(stats.source_tokens, 40 * groups_from(session_layout(s), opt.first_layer));
			sweep_end(w);
			opt.first_layer = 0;
			assert_has(&store, 150);
			assert_memory_equal(got, expected, vocab * sizeof *got);
			session_free(s);
			free(store.residual);
			n_resumed++;
		}
		if (session_layout(all)->n_groups > 1)
			assert_true(n_resumed >= 1);
		session_free(all);
		free(expected);
		free(got);
		engine_close(e);
		model_close(m);
	}
}

static void a_checkpoint_is_not_made_for_less_than_a_seconds_work(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_F32);
	struct session *all = open_session(e, m, LATENTS_BF16, true), *s = open_session(e, m, LATENTS_BF16, false);
	struct store store;
	struct sweep_sink sink = sink_of(&store);
	int32_t ids[20] = {0};
	struct sweep *w;

	(void)state;
	append(all, ids, 20, NULL);
	store = store_of(all, 0);
	sink.checkpoint = take_checkpoint;
	w = begin_all(&(struct sweep_sequence){.session = s, .ids = ids, .n = 20, .sink = &sink}, 1,
		      &(struct sweep_options){0});
	run(w);
	sweep_end(w);
	assert_int_equal(store.n_checkpoints, 0);
	session_free(all);
	session_free(s);
	engine_close(e);
	model_close(m);
}

/*
 * Several sequences
 */

/* Three sequences of unequal lengths, two of them with tokens before, in one sweep, in chunks that cut them anywhere and in
 * tiles: each has the bits that it has alone, and an expert is taken up once a chunk for all of them. */
static void sequences_that_share_a_sweep_have_the_bits_that_each_has_alone(void **state)
{
	enum { N = 3 };
	static const int64_t prefix[N] = {0, 70, 33}, length[N] = {90, 41, 150};
	static const struct {
		int64_t chunk, tile;
		bool by_group;
	} ways[] = {{0, 0, false}, {0, 0, true}, {0, 7, true}, {64, 0, false}, {64, 11, true}, {5, 0, true}};

	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		struct model *m = open_model(golden_checkpoints[k]);
		struct engine *e = open_engine(COMPUTE_BF16);
		size_t vocab = (size_t)m->config.vocab;
		float *expected[N], *got[N];
		int32_t ids[N][256];
		struct session *all[N];

		for (int q = 0; q < N; q++) {
			expected[q] = xmalloc(vocab, sizeof **expected);
			got[q] = xmalloc(vocab, sizeof **got);
			for (int i = 0; i < 256; i++)
				ids[q][i] = (int32_t)((uint32_t)(i + 1000 * q) * 2654435761u % (uint32_t)m->config.vocab);
			all[q] = open_session(e, m, LATENTS_FP8, true);
			append(all[q], ids[q], prefix[q] + length[q], expected[q]);
		}
		for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
			const struct session_options how = {.latents = LATENTS_FP8, .by_group = ways[i].by_group};
			struct sweep_options opt = {.scratch_bytes = budget_for(e, m, LATENTS_FP8, ways[i].chunk),
						    .tile_tokens = ways[i].tile};
			struct sweep_sequence sequences[N];
			struct sweep_source sources[N];
			struct sweep_sink sinks[N];
			struct sweep_stats stats;
			struct store stores[N];
			struct sweep *w;
			int64_t tokens = 0;

			for (int q = 0; q < N; q++) {
				stores[q] = store_of(all[q], prefix[q]);
				sources[q] = source_of(&stores[q]);
				sinks[q] = sink_of(&stores[q]);
				sequences[q] = (struct sweep_sequence){
					.session = open_session_of(e, m, &how), .ids = ids[q] + prefix[q], .n = length[q],
					.source = &sources[q], .sink = &sinks[q], .last_logits = got[q],
				};
				if (ways[i].by_group)
					session_skip(sequences[q].session, prefix[q]);
				else
					append(sequences[q].session, ids[q], prefix[q], NULL);
			}
			w = begin_all(sequences, N, &opt);
			run(w);
			sweep_count(w, &stats);
			for (int32_t x = 0; x < m->config.n_layers * m->config.n_experts; x++) {
				assert_true(stats.expert_reads[x] <= stats.n_chunks);
				tokens += stats.expert_tokens[x];
			}
			for (int32_t x = 0; x < m->config.n_layers; x++)
				tokens -= m->config.layer_is_dense[x] ? 0 : (90 + 41 + 150) * m->config.experts_per_token;
			assert_int_equal(tokens, 0);
			sweep_end(w);
			for (int q = 0; q < N; q++) {
				assert_has(&stores[q], prefix[q] + length[q]);
				assert_memory_equal(got[q], expected[q], vocab * sizeof **got);
				assert_int_equal(session_n_tokens(sequences[q].session), prefix[q] + length[q]);
				session_free(sequences[q].session);
			}
		}
		for (int q = 0; q < N; q++) {
			session_free(all[q]);
			free(expected[q]);
			free(got[q]);
		}
		engine_close(e);
		model_close(m);
	}
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
		w = begin(s, ids, 100, NULL, &opt);
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

		w = begin(parts, ids + first, n, NULL, &(struct sweep_options){0});
		run(w);
		sweep_count(w, &stats);
		for (size_t i = 0; i < n_counts; i++)
			reads[i] += stats.expert_reads[i];
		sweep_end(w);
	}
	w = begin(whole, ids, 200, NULL, &opt);
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
	struct model *m = open_model("glm52");
	const struct model_config *c = &m->config;
	struct engine *e = open_engine(COMPUTE_F32);
	struct session *s = open_session(e, m, LATENTS_FP8, false);
	struct bringer b = {.n_experts = c->n_experts, .layer = -1, .left = 1 << 30};
	struct sweep_options opt = {.scratch_bytes = budget_for(e, m, LATENTS_FP8, 64), .tile_tokens = 5, .take_up = bring,
				    .take_up_ctx = &b};
	struct sweep_stats stats;
	struct err err = {0};
	int32_t ids[200];
	struct sweep *w;

	(void)state;
	assert_true(c->n_experts <= 64);
	for (int i = 0; i < 200; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)c->vocab);
	w = begin(s, ids, 200, NULL, &opt);
	run(w);
	sweep_count(w, &stats);
	assert_true(stats.n_expert_reads > 0);
	for (int32_t i = 0; i < c->n_layers * c->n_experts; i++)
		assert_int_equal(b.calls[i], stats.expert_reads[i]);
	sweep_end(w);
	session_truncate(s, 0);
	b.left = 3;
	b.layer = -1;
	w = begin(s, ids, 200, NULL, &opt);
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
		struct sweep *w = begin(s, ids, 150, NULL, &opt);
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
	struct sweep_options opt = {.tile_tokens = 16};
	int64_t done = 0;
	int32_t ids[150];
	struct sweep *w;
	int n_steps = 0;

	(void)state;
	for (int i = 0; i < 150; i++)
		ids[i] = 11 * i % m->config.vocab;
	append(alone, ids, 150, expected);
	w = begin(swept, ids, 150, got, &opt);
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

static int refuse(void *ctx, int32_t group, int64_t first, int64_t n, const uint8_t *records, struct err *err)
{
	int *left = ctx;

	(void)n;
	(void)records;
	return --*left ? 0 : err_set(err, ERR_IO, "group %d of position %lld: no space", group, (long long)first);
}

static int accept(void *ctx, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys, struct err *err)
{
	(void)ctx;
	(void)index_layer;
	(void)first;
	(void)n;
	(void)keys;
	(void)err;
	return 0;
}

static void what_a_sink_cannot_take_ends_the_sweep(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_F32);
	struct session *s = open_session(e, m, LATENTS_BF16, false);
	int left = session_layout(s)->n_groups + 1; /* the first group of the second chunk */
	const struct sweep_sink sink = {&left, refuse, accept, NULL};
	struct sweep_options opt = {.scratch_bytes = budget_for(e, m, LATENTS_BF16, 64)};
	struct err err = {0};
	int32_t ids[100] = {0}, sequence;
	struct sweep *w;

	(void)state;
	w = begin_all(&(struct sweep_sequence){.session = s, .ids = ids, .n = 100, .sink = &sink}, 1, &opt);
	assert_int_equal(sweep_run(w, NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_IO);
	assert_non_null(strstr(err.text, "of position 64: no space"));
	assert_int_equal(sweep_bad_position(w, &sequence), -1);
	sweep_end(w);
	assert_int_equal(session_n_tokens(s), 64);
	session_free(s);
	engine_close(e);
	model_close(m);
}

static void what_a_source_cannot_give_ends_the_sweep_and_names_the_position(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(COMPUTE_F32);
	struct session *all = open_session(e, m, LATENTS_BF16, true);
	struct session *s = open_session_of(e, m, &(struct session_options){.latents = LATENTS_BF16, .by_group = true});
	struct store store;
	struct sweep_source source = source_of(&store);
	struct err err = {0};
	int32_t ids[100] = {0}, sequence = -1;
	struct sweep *w;

	(void)state;
	append(all, ids, 100, NULL);
	store = store_of(all, 80);
	store.bad_group = 1;
	session_skip(s, 80);
	w = begin_all(&(struct sweep_sequence){.session = s, .ids = ids + 80, .n = 20, .source = &source}, 1,
		      &(struct sweep_options){0});
	assert_int_equal(sweep_run(w, NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_DAMAGED);
	assert_string_equal(err.text, "checksum of group 1 is wrong");
	assert_int_equal(sweep_bad_position(w, &sequence), 70);
	assert_int_equal(sequence, 0);
	sweep_end(w);
	assert_int_equal(session_n_tokens(s), 80);
	assert_int_equal(session_bytes(s), 0);
	session_free(s);
	session_free(all);
	engine_close(e);
	model_close(m);
}

static void what_an_append_refuses_a_sweep_refuses(void **state)
{
	struct model *m = open_model("glm5");
	struct engine *e = open_engine(COMPUTE_F32);
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
	w = begin(s, ids, 3, NULL, &opt);
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
		cmocka_unit_test(a_sweep_goes_on_behind_any_checkpoint_with_the_same_bits),
		cmocka_unit_test(a_checkpoint_is_not_made_for_less_than_a_seconds_work),
		cmocka_unit_test(sequences_that_share_a_sweep_have_the_bits_that_each_has_alone),
		cmocka_unit_test(with_room_for_all_tokens_an_expert_that_is_chosen_is_taken_up_exactly_once),
		cmocka_unit_test(with_less_room_an_expert_is_taken_up_once_a_chunk_as_planned),
		cmocka_unit_test(who_brings_weights_is_asked_once_each_time_an_expert_is_taken_up),
		cmocka_unit_test(a_token_of_glm52_takes_fifty_kilobytes),
		cmocka_unit_test(a_plan_takes_the_largest_chunks_that_fit),
		cmocka_unit_test(a_budget_without_room_for_a_token_is_refused_with_both_numbers),
		cmocka_unit_test(a_sweep_that_is_stopped_leaves_whole_chunks),
		cmocka_unit_test(a_question_between_two_steps_changes_nothing),
		cmocka_unit_test(tiles_become_smaller_where_they_are_slow_and_larger_where_they_are_fast),
		cmocka_unit_test(what_a_sink_cannot_take_ends_the_sweep),
		cmocka_unit_test(what_a_source_cannot_give_ends_the_sweep_and_names_the_position),
		cmocka_unit_test(what_an_append_refuses_a_sweep_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
