/*
 * What a sweep is put together from: sequences that share it, sources and sinks of which some fail, and checkpoints behind
 * which another one goes on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <limits.h>
#include <string.h>

#include "config/mem.h"
#include "engine/sweep.h"
#include "tests/support/golden.h"
#include "tests/support/sweeping.h"

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

/* To its end, or behind so many checkpoints: no step gives or takes more than a piece of residual rows. */
static bool run_until(struct sweep *w, const struct sweep_store *t, int n_checkpoints)
{
	int more = 1;

	while (more > 0 && t->n_checkpoints < n_checkpoints) {
		int n_pieces = t->n_pieces;

		more = sweep_step(w, NULL);
		assert_true(more >= 0 && t->n_pieces <= n_pieces + 1);
	}
	return more;
}

/* Everywhere a checkpoint can be made, the sweep is left behind; another one goes on from there, with the bits of one that
 * was not interrupted. */
static void a_sweep_goes_on_behind_any_checkpoint_with_the_same_bits(void **state)
{
	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		struct model *m = sweeping_model(golden_checkpoints[k]);
		struct engine *e = sweeping_engine(COMPUTE_BF16);
		const struct session_options how = {.latents = LATENTS_FP8, .by_group = true};
		struct session *all = sweeping_session(e, m, LATENTS_FP8, true);
		size_t vocab = (size_t)m->config.vocab;
		float *expected = xmalloc(vocab, sizeof *expected), *got = xmalloc(vocab, sizeof *got);
		struct sweep_options opt = {.always_checkpoint = true, .state_piece_bytes = 10007};
		int n_resumed = 0;
		int32_t ids[150];

		for (int i = 0; i < 150; i++)
			ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)m->config.vocab);
		sweeping_append(all, ids, 150, expected);
		for (int stop = 1;; stop++) {
			struct sweep_store store = sweep_store_of(all, 40);
			struct sweep_sink sink = sweep_store_sink(&store);
			struct sweep_source source = sweep_store_source(&store);
			struct session *s = sweeping_session_of(e, m, &how);
			struct sweep_sequence q = {.session = s, .ids = ids + 40, .n = 110, .source = &source, .sink = &sink};
			struct sweep_stats stats;
			struct sweep *w;
			bool more;

			sink.checkpoint = sweep_store_checkpoint;
			session_skip(s, 40);
			w = sweeping_begin(&q, 1, &opt);
			more = run_until(w, &store, stop);
			sweep_end(w);
			session_free(s);
			if (!more) {
				free(store.residual);
				assert_int_equal(store.n_checkpoints, stop - 1);
				break;
			}
			assert_int_equal(store.residual_bytes, 110 * (size_t)m->config.hidden * sizeof(float));
			assert_true(store.residual_bytes > opt.state_piece_bytes && store.piece_most == opt.state_piece_bytes);
			s = sweeping_session_of(e, m, &how); /* nothing of the first one is left but what left it */
			q.session = s;
			q.residual = sweep_store_residual;
			q.residual_ctx = &store;
			q.last_logits = got;
			session_skip(s, 40);
			opt.first_layer = store.next_layer;
			w = sweeping_begin(&q, 1, &opt);
			assert_int_equal(sweep_token_layers(w), 0);
			run_until(w, &store, INT_MAX);
			assert_int_equal(store.piece_most, opt.state_piece_bytes);
			sweep_count(w, &stats);
			assert_int_equal(stats.source_tokens, 40 * groups_from(session_layout(s), opt.first_layer));
			sweep_end(w);
			opt.first_layer = 0;
			sweep_store_assert_has(&store, 150);
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

/* Whichever piece it is that finds no taker: no other one of its checkpoint comes, the sweep goes on, and the next checkpoint
 * is offered from its beginning. */
static void a_checkpoint_that_is_given_up_at_any_piece_is_left_and_the_next_one_is_made(void **state)
{
	struct model *m = sweeping_model("glm52");
	struct engine *e = sweeping_engine(COMPUTE_F32);
	struct session *all = sweeping_session(e, m, LATENTS_BF16, true);
	size_t bytes = 20 * (size_t)m->config.hidden * sizeof(float);
	const struct sweep_options opt = {.always_checkpoint = true, .state_piece_bytes = bytes / 3 + 1};
	int n_checkpoints = 0, refused = 0;
	int32_t ids[20] = {0};

	(void)state;
	sweeping_append(all, ids, 20, NULL);
	for (; refused <= 3 * n_checkpoints; refused++) {
		struct session *s = sweeping_session(e, m, LATENTS_BF16, false);
		struct sweep_store store = sweep_store_of(all, 0);
		struct sweep_sink sink = sweep_store_sink(&store);
		struct sweep_stats stats;
		struct sweep *w;

		sink.checkpoint = sweep_store_checkpoint;
		store.refused_piece = refused;
		w = sweeping_begin(&(struct sweep_sequence){.session = s, .ids = ids, .n = 20, .sink = &sink}, 1, &opt);
		run_until(w, &store, INT_MAX);
		sweep_count(w, &stats);
		sweep_end(w);
		sweep_store_assert_has(&store, 20);
		if (!refused)
			n_checkpoints = store.n_checkpoints;
		assert_int_equal(stats.n_checkpoints, n_checkpoints);
		assert_int_equal(store.n_checkpoints, n_checkpoints - !!refused);
		assert_int_equal(store.n_pieces, 3 * n_checkpoints - (refused ? 2 - (refused - 1) % 3 : 0));
		free(store.residual);
		session_free(s);
	}
	assert_true(n_checkpoints > 1);
	session_free(all);
	engine_close(e);
	model_close(m);
}

static void a_checkpoint_is_not_made_for_less_than_a_seconds_work(void **state)
{
	struct model *m = sweeping_model("glm52");
	struct engine *e = sweeping_engine(COMPUTE_F32);
	struct session *all = sweeping_session(e, m, LATENTS_BF16, true), *s = sweeping_session(e, m, LATENTS_BF16, false);
	struct sweep_store store;
	struct sweep_sink sink = sweep_store_sink(&store);
	int32_t ids[20] = {0};
	struct sweep *w;

	(void)state;
	sweeping_append(all, ids, 20, NULL);
	store = sweep_store_of(all, 0);
	sink.checkpoint = sweep_store_checkpoint;
	w = sweeping_begin(&(struct sweep_sequence){.session = s, .ids = ids, .n = 20, .sink = &sink}, 1,
		      &(struct sweep_options){0});
	sweeping_run(w);
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
		struct model *m = sweeping_model(golden_checkpoints[k]);
		struct engine *e = sweeping_engine(COMPUTE_BF16);
		size_t vocab = (size_t)m->config.vocab;
		float *expected[N], *got[N];
		int32_t ids[N][256];
		struct session *all[N];

		for (int q = 0; q < N; q++) {
			expected[q] = xmalloc(vocab, sizeof **expected);
			got[q] = xmalloc(vocab, sizeof **got);
			for (int i = 0; i < 256; i++)
				ids[q][i] = (int32_t)((uint32_t)(i + 1000 * q) * 2654435761u % (uint32_t)m->config.vocab);
			all[q] = sweeping_session(e, m, LATENTS_FP8, true);
			sweeping_append(all[q], ids[q], prefix[q] + length[q], expected[q]);
		}
		for (size_t i = 0; i < sizeof ways / sizeof ways[0] - (k > 0); i++) { /* the last one is slow */
			const struct session_options how = {.latents = LATENTS_FP8, .by_group = ways[i].by_group};
			struct sweep_options opt = {.scratch_bytes = sweeping_budget(e, m, LATENTS_FP8, ways[i].chunk),
						    .tile_tokens = ways[i].tile};
			struct sweep_sequence sequences[N];
			struct sweep_source sources[N];
			struct sweep_sink sinks[N];
			struct sweep_stats stats;
			struct sweep_store stores[N];
			struct sweep *w;
			int64_t tokens = 0;

			for (int q = 0; q < N; q++) {
				stores[q] = sweep_store_of(all[q], prefix[q]);
				sources[q] = sweep_store_source(&stores[q]);
				sinks[q] = sweep_store_sink(&stores[q]);
				sequences[q] = (struct sweep_sequence){
					.session = sweeping_session_of(e, m, &how), .ids = ids[q] + prefix[q], .n = length[q],
					.source = &sources[q], .sink = &sinks[q], .last_logits = got[q],
				};
				if (ways[i].by_group)
					session_skip(sequences[q].session, prefix[q]);
				else
					sweeping_append(sequences[q].session, ids[q], prefix[q], NULL);
			}
			w = sweeping_begin(sequences, N, &opt);
			sweeping_run(w);
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
				sweep_store_assert_has(&stores[q], prefix[q] + length[q]);
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
 * Sources and sinks
 */

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
	struct model *m = sweeping_model("glm52");
	struct engine *e = sweeping_engine(COMPUTE_F32);
	struct session *s = sweeping_session(e, m, LATENTS_BF16, false);
	int left = session_layout(s)->n_groups + 1; /* the first group of the second chunk */
	const struct sweep_sink sink = {&left, refuse, accept, NULL};
	struct sweep_options opt = {.scratch_bytes = sweeping_budget(e, m, LATENTS_BF16, 64)};
	struct err err = {0};
	int32_t ids[100] = {0}, sequence;
	struct sweep *w;

	(void)state;
	w = sweeping_begin(&(struct sweep_sequence){.session = s, .ids = ids, .n = 100, .sink = &sink}, 1, &opt);
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
	struct model *m = sweeping_model("glm52");
	struct engine *e = sweeping_engine(COMPUTE_F32);
	struct session *all = sweeping_session(e, m, LATENTS_BF16, true);
	struct session *s = sweeping_session_of(e, m, &(struct session_options){.latents = LATENTS_BF16, .by_group = true});
	struct sweep_store store;
	struct sweep_source source = sweep_store_source(&store);
	struct err err = {0};
	int32_t ids[100] = {0}, sequence = -1;
	struct sweep *w;

	(void)state;
	sweeping_append(all, ids, 100, NULL);
	store = sweep_store_of(all, 80);
	store.bad_group = 1;
	session_skip(s, 80);
	w = sweeping_begin(&(struct sweep_sequence){.session = s, .ids = ids + 80, .n = 20, .source = &source}, 1,
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_sweep_goes_on_behind_any_checkpoint_with_the_same_bits),
		cmocka_unit_test(a_checkpoint_that_is_given_up_at_any_piece_is_left_and_the_next_one_is_made),
		cmocka_unit_test(a_checkpoint_is_not_made_for_less_than_a_seconds_work),
		cmocka_unit_test(sequences_that_share_a_sweep_have_the_bits_that_each_has_alone),
		cmocka_unit_test(what_a_sink_cannot_take_ends_the_sweep),
		cmocka_unit_test(what_a_source_cannot_give_ends_the_sweep_and_names_the_position),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
