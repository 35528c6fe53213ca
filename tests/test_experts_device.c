/*
 * Experts in the memory of a device: the same bits wherever each is computed and however late the device's queues run, both memories
 * hold different experts, and what fails there is named. The device is tests/sim's: the kernels of GPUs on the processor.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "config/mem.h"
#include "engine/experts.h"
#include "engine/experts_device.h"
#include "engine/internal.h"
#include "engine/sweep.h"
#include "offload/cost.h"
#include "tests/support/in_slots.h"

static int quiet(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	return 0;
}

/* What a test said to the simulated device. */
static int plain(void **state)
{
	(void)state;
	unsetenv("QUIRE_SIM_SEED");
	unsetenv("QUIRE_SIM_FAIL");
	return 0;
}

static struct engine *open_engine(enum compute_profile compute, const char *device)
{
	struct engine_options opt = {.n_threads = 2, .compute = compute, .device = device};
	struct engine *e;
	struct err err;

	if (engine_open(&e, &opt, &err))
		fail_msg("%s", err.text);
	return e;
}

static int try_open(struct model **m, const char *checkpoint, const struct experts_options *experts, struct err *err)
{
	char *dir = golden_dir(checkpoint);
	int rc = in_slots_open(m, dir, experts, err);

	free(dir);
	return rc;
}

/* Slots in host memory and on the device, both beyond the fewest there can be. A device's slot is no larger than one of host memory. */
static struct experts_options room(const char *checkpoint, struct engine *e, int host_more, int n_device, const struct cost *cost)
{
	struct experts_options all = {.bytes = (int64_t)1 << 30};
	struct model *m = in_slots_model(checkpoint, &all);
	struct experts_options opt = {.device = engine_device(e), .cost = cost};
	struct experts_stats stats;

	experts_stats(m->experts, &stats);
	opt.bytes = (m->config.experts_per_token + 1 + host_more) * stats.slot_bytes;
	opt.device_bytes = n_device * stats.slot_bytes;
	model_close(m);
	return opt;
}

static struct experts_stats stats_of(const struct model *m)
{
	struct experts_stats stats;

	experts_stats(m->experts, &stats);
	return stats;
}

/* Of any expert: all are alike. */
static int64_t expert_bytes(const struct model *m)
{
	const struct expert_place *place = experts_place(m->experts, m->config.n_layers - 1, 0);
	int64_t bytes = 0;

	for (int i = 0; i < place->n_parts; i++)
		bytes += (int64_t)place->parts[i].bytes;
	assert_true(bytes > 0);
	return bytes;
}

/* Everything is moved, or nothing, or now one and now the other. */
static struct cost all_moves(void)
{
	struct cost c = {.upload_s = 1e-9};

	for (int i = 0; i < COST_POINTS; i++) {
		c.host_s[i] = 1 + i;
		c.device_s[i] = 1e-9 * (1 + i);
	}
	return c;
}

static struct cost nothing_moves(void)
{
	struct cost c = {.upload_s = 10};

	for (int i = 0; i < COST_POINTS; i++)
		c.host_s[i] = c.device_s[i] = 1e-6 * (1 + i);
	return c;
}

static struct cost some_move(void)
{
	struct cost c = {.upload_s = 2e-6};

	for (int i = 0; i < COST_POINTS; i++) {
		c.host_s[i] = 1e-6 * (double)(1 << i);
		c.device_s[i] = 1e-7 * (double)(1 << i);
	}
	return c;
}

static void seed_queues(int seed)
{
	char text[16];

	snprintf(text, sizeof text, "%d", seed);
	setenv("QUIRE_SIM_SEED", text, 1);
}

/* From one slot to all of them on the device, few or all in host memory, moved or not, at once or token by token. */
static void any_mix_of_device_and_host_slots_gives_the_same_bits(void **state)
{
	static const struct {
		int host_more, n_device;
	} mixes[] = {{0, 1}, {0, 9}, {5, 3}, {0, 1000}, {1000, 6}};
	const struct cost costs[] = {nothing_moves(), some_move(), all_moves()};
	int64_t n_hits = 0, n_moved = 0, n_alone = 0, n_lowered = 0;

	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		enum compute_profile compute = k % 2 ? COMPUTE_F32 : COMPUTE_BF16;
		const char *name = golden_checkpoints[k];
		struct model *all = in_slots_model(name, NULL);
		struct engine *e = open_engine(compute, NULL);
		struct golden_run want;
		struct golden_case *cases;
		int n;

		cases = golden_load(name, all->config.vocab, &n);
		golden_run(&want, e, all, LATENTS_BF16, &cases[n - 1], 0);
		engine_close(e);
		for (size_t i = 0; i < sizeof mixes / sizeof mixes[0]; i++) {
			const struct cost *cost = &costs[(i + (size_t)k) % 3];
			int64_t chunk = (i + (size_t)k / 3) % 3 ? i % 2 ? 1 : 5 : 0;
			struct experts_options opt;
			struct experts_stats stats;
			struct golden_run run;
			struct model *m;

			seed_queues(1 + (int)i + 10 * k);
			e = open_engine(compute, "sim:0");
			opt = room(name, e, mixes[i].host_more, mixes[i].n_device, cost);
			m = in_slots_model(name, &opt);
			golden_run(&run, e, m, LATENTS_BF16, &cases[n - 1], chunk);
			in_slots_same_logits(&run, &want);
			stats = stats_of(m);
			assert_true(stats.device_alone <= stats.device_resident && stats.device_resident <= stats.device_slots);
			assert_true(stats.device_alone + stats.resident <= stats.n_experts);
			assert_int_equal(stats.device_up_bytes, (stats.moved + stats.raised) * expert_bytes(m));
			assert_int_equal(stats.device_down_bytes, stats.lowered * expert_bytes(m));
			n_hits += stats.device_hits;
			n_moved += stats.moved;
			n_alone += stats.device_alone;
			n_lowered += stats.lowered;
			golden_run_free(&run);
			model_close(m);
			engine_close(e);
		}
		golden_run_free(&want);
		golden_free(cases, n);
		model_close(all);
	}
	assert_true(n_hits > 100 && n_moved > 100 && n_alone > 10 && n_lowered > 0);
}

/* Token by token, with a device that has room for all of them, few slots of host memory are enough: each is read once. */
static void both_memories_count(void **state)
{
	const struct cost cost = nothing_moves();
	struct engine *e = open_engine(COMPUTE_BF16, "sim:0");
	struct experts_options opt = room("glm52", e, 0, 1000, &cost);
	struct model *m;
	struct golden_case *cases;
	struct experts_stats stats;
	struct golden_run run;
	int n;

	(void)state;
	opt.no_prediction = true;
	m = in_slots_model("glm52", &opt);
	cases = golden_load("glm52", m->config.vocab, &n);
	for (int i = 0; i < 2; i++) {
		golden_run(&run, e, m, LATENTS_BF16, &cases[n - 1], 1);
		golden_run_free(&run);
	}
	stats = stats_of(m);
	assert_true(stats.resident < stats.n_experts / 2);
	/* Uploads end when they end: an expert may be pushed out before its turn comes. */
	assert_true(stats.reads < 2 * stats.n_experts);
	assert_true(stats.device_alone > stats.n_experts / 2);
	assert_true(stats.device_hits > 3 * stats.taken);
	golden_free(cases, n);
	model_close(m);
	engine_close(e);
}

/* A sweep goes on between a question's tokens and the other way round, each with tiles on the device. */
static void a_question_between_two_tiles_changes_neither(void **state)
{
	const struct cost costs[] = {some_move(), all_moves()};
	struct model *all = in_slots_model("glm52", NULL);
	size_t vocab = (size_t)all->config.vocab;
	struct session_options session = {.latents = LATENTS_BF16};
	float *want[2] = {xmalloc(vocab, sizeof **want), xmalloc(vocab, sizeof **want)};
	float *answer = xmalloc(vocab, sizeof *answer), *got = xmalloc(vocab, sizeof *got), *asked = xmalloc(vocab, sizeof *asked);
	static const size_t n_swept[2] = {90, 6};
	int32_t ids[90], question[5] = {3, 1, 4, 1, 5};
	struct engine *e = open_engine(COMPUTE_BF16, NULL);
	struct session *a;
	struct err err;

	(void)state;
	for (int i = 0; i < 90; i++)
		ids[i] = (i * 37 + 11) % (int32_t)vocab;
	assert_int_equal(session_new(&a, e, all, &session, &err), 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(session_append(a, ids, n_swept[i], want[i], NULL, &err), 0);
		session_truncate(a, 0);
	}
	assert_int_equal(session_append(a, question, 5, answer, NULL, &err), 0);
	session_free(a);
	engine_close(e);
	for (size_t i = 0; i < 4; i++) {
		const struct sweep_options with = {.tile_tokens = 5};
		struct sweep_sequence q = {.ids = ids, .n = (int64_t)n_swept[i / 2], .last_logits = got};
		struct experts_options opt;
		struct session *b, *c;
		struct model *m;
		struct sweep *w;
		int more, turn = 0;

		seed_queues(7 + (int)i);
		e = open_engine(COMPUTE_BF16, "sim:0");
		opt = room("glm52", e, 2, 8, &costs[i % 2]);
		m = in_slots_model("glm52", &opt);
		assert_int_equal(session_new(&b, e, m, &session, &err), 0);
		assert_int_equal(session_new(&c, e, m, &session, &err), 0);
		q.session = b;
		assert_int_equal(sweep_begin(&w, &q, 1, &with, &err), 0);
		while ((more = sweep_step(w, &err)) > 0)
			if (turn++ % 3 == 0) {
				assert_int_equal(session_append(c, question, 5, asked, NULL, &err), 0);
				session_truncate(c, 0);
				assert_memory_equal(asked, answer, vocab * sizeof *asked);
			}
		assert_int_equal(more, 0);
		assert_memory_equal(got, want[i / 2], vocab * sizeof *got);
		sweep_end(w);
		session_free(b);
		session_free(c);
		model_close(m);
		engine_close(e);
	}
	free(want[0]);
	free(want[1]);
	free(answer);
	free(got);
	free(asked);
	model_close(all);
}

static int run(struct engine *e, const struct model *m, const struct golden_case *c, float *logits, struct err *err)
{
	struct session_options opt = {.latents = LATENTS_BF16};
	struct session *s;
	int rc = session_new(&s, e, m, &opt, err);

	for (int32_t i = 0; !rc && i < c->n_ids; i++)
		rc = session_append(s, c->ids + i, 1, logits, NULL, err);
	session_free(s);
	return rc;
}

/* The n-th of each kind of call fails: a sentence that names the device, or the same bits where it was never made. */
static void what_fails_on_the_device_is_an_error_that_names_it(void **state)
{
	static const char *const kinds[] = {"upload", "experts", "download"};
	const struct cost cost = some_move();
	struct model *all = in_slots_model("glm52", NULL);
	size_t vocab = (size_t)all->config.vocab;
	float *want = xmalloc(vocab, sizeof *want), *got = xmalloc(vocab, sizeof *got);
	struct engine *e = open_engine(COMPUTE_BF16, NULL);
	struct golden_case *cases;
	int n, n_failed = 0;
	struct err err;

	(void)state;
	cases = golden_load("glm52", all->config.vocab, &n);
	assert_int_equal(run(e, all, &cases[n - 1], want, &err), 0);
	engine_close(e);
	for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++)
		for (int nth = 1; nth < 200; nth = nth * 3 + 1) {
			struct experts_options opt;
			struct model *m;
			char fail[32];

			e = open_engine(COMPUTE_BF16, NULL);
			opt = room("glm52", e, 1, 6, &cost);
			engine_close(e);
			snprintf(fail, sizeof fail, "%s:%d", kinds[k], nth);
			setenv("QUIRE_SIM_FAIL", fail, 1);
			e = open_engine(COMPUTE_BF16, "sim:0");
			opt.device = engine_device(e);
			m = in_slots_model("glm52", &opt);
			if (run(e, m, &cases[n - 1], got, &err)) {
				n_failed++;
				assert_non_null(strstr(err.text, "sim:0"));
				assert_int_equal(run(e, m, &cases[n - 1], got, &err), -1); /* it stays so */
				assert_non_null(strstr(err.text, "sim:0"));
			} else {
				assert_memory_equal(got, want, vocab * sizeof *got);
			}
			model_close(m);
			engine_close(e);
			unsetenv("QUIRE_SIM_FAIL");
		}
	assert_true(n_failed > 5);
	golden_free(cases, n);
	free(want);
	free(got);
	model_close(all);
}

static void a_device_without_room_is_refused_with_the_numbers(void **state)
{
	static const char *const fails[] = {"alloc:1", "alloc:2"};
	const struct cost cost = nothing_moves();
	struct err err = {0};
	struct model *m;

	(void)state;
	for (size_t i = 0; i < sizeof fails / sizeof fails[0]; i++) {
		struct experts_options opt;
		struct engine *e;

		setenv("QUIRE_SIM_FAIL", fails[i], 1);
		e = open_engine(COMPUTE_BF16, "sim:0");
		opt = room("glm52", e, 1, 6, &cost);
		assert_int_equal(try_open(&m, "glm52", &opt, &err), -1);
		assert_int_equal(err.code, ERR_TOO_LARGE);
		assert_non_null(strstr(err.text, "sim:0"));
		assert_non_null(strstr(err.text, "tiers.device_experts"));
		engine_close(e);
	}
	unsetenv("QUIRE_SIM_FAIL");
}

/* The device has the room and was not given it: more is what helps, not less. */
static void less_than_one_expert_on_the_device_is_refused_with_what_one_takes(void **state)
{
	const struct cost cost = nothing_moves();
	struct engine *e = open_engine(COMPUTE_BF16, "sim:0");
	struct experts_options opt = room("glm52", e, 1, 6, &cost);
	struct err err = {0};
	struct model *m;

	(void)state;
	opt.device_bytes = 100;
	assert_int_equal(try_open(&m, "glm52", &opt, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "sim:0: 100 bytes for experts are no room for one, which takes "));
	assert_non_null(strstr(err.text, "give it more (tiers.device_experts"));
	engine_close(e);
}

/* Memory that cannot be pinned is slower, and nothing else. */
static void memory_that_cannot_be_pinned_does_as_well(void **state)
{
	const struct cost cost = some_move();
	struct model *all = in_slots_model("glm52-fp8", NULL);
	struct engine *e = open_engine(COMPUTE_BF16, NULL);
	struct golden_run want, got;
	struct golden_case *cases;
	int n;

	(void)state;
	cases = golden_load("glm52-fp8", all->config.vocab, &n);
	golden_run(&want, e, all, LATENTS_BF16, &cases[n - 1], 1);
	engine_close(e);
	for (int i = 1; i <= 2; i++) {
		struct experts_options opt;
		struct model *m;

		setenv("QUIRE_SIM_FAIL", i == 1 ? "pin:1" : "pin:2", 1);
		e = open_engine(COMPUTE_BF16, "sim:0");
		opt = room("glm52-fp8", e, 1, 6, &cost);
		m = in_slots_model("glm52-fp8", &opt);
		golden_run(&got, e, m, LATENTS_BF16, &cases[n - 1], 1);
		in_slots_same_logits(&got, &want);
		golden_run_free(&got);
		model_close(m);
		engine_close(e);
	}
	unsetenv("QUIRE_SIM_FAIL");
	golden_run_free(&want);
	golden_free(cases, n);
	model_close(all);
}

/* What a corpus chose often is on the device before anybody asks, as far as it has room. */
static void what_is_warmed_goes_to_the_device(void **state)
{
	const struct cost cost = nothing_moves();
	struct engine *e = open_engine(COMPUTE_BF16, "sim:0");
	struct experts_options opt = room("glm52", e, 4, 9, &cost);
	struct model *m = in_slots_model("glm52", &opt);
	const struct model_config *c = &m->config;
	int64_t *chosen = xcalloc((size_t)c->n_layers * (size_t)c->n_experts, sizeof *chosen);
	struct experts_stats stats;

	(void)state;
	for (int32_t l = 0; l < c->n_layers; l++)
		for (int32_t i = 0; i < c->n_experts && !c->layer_is_dense[l]; i++)
			chosen[l * c->n_experts + i] = 1 + i;
	experts_expect(m->experts, chosen);
	for (int i = 0; i < 100000 && experts_warm(m->experts); i++)
		;
	assert_false(experts_warm(m->experts));
	stats = stats_of(m);
	assert_int_equal(stats.device_resident, stats.device_slots);
	assert_true(stats.resident + stats.device_alone > stats.n_slots);
	assert_int_equal(stats.taken, 0);
	free(chosen);
	model_close(m);
	engine_close(e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(any_mix_of_device_and_host_slots_gives_the_same_bits, plain, plain),
		cmocka_unit_test_setup_teardown(both_memories_count, plain, plain),
		cmocka_unit_test_setup_teardown(a_question_between_two_tiles_changes_neither, plain, plain),
		cmocka_unit_test_setup_teardown(what_fails_on_the_device_is_an_error_that_names_it, plain, plain),
		cmocka_unit_test_setup_teardown(a_device_without_room_is_refused_with_the_numbers, plain, plain),
		cmocka_unit_test_setup_teardown(less_than_one_expert_on_the_device_is_refused_with_what_one_takes, plain, plain),
		cmocka_unit_test_setup_teardown(memory_that_cannot_be_pinned_does_as_well, plain, plain),
		cmocka_unit_test_setup_teardown(what_is_warmed_goes_to_the_device, plain, plain),
	};

	return cmocka_run_group_tests(tests, quiet, NULL);
}
