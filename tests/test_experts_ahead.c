/*
 * Experts that come while one computes: what is read ahead, what is computed meanwhile and before it is looked at, and what is given
 * up again; on a disk whose time passes as a test says (tests/support/slow_io.h).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "config/log.h"
#include "config/mem.h"
#include "engine/experts.h"
#include "engine/internal.h"
#include "engine/synth.h"
#include "tests/support/golden.h"
#include "tests/support/in_slots.h"
#include "tests/support/slow_io.h"
#include "tests/support/sweeping.h"
#include "tests/support/temp_dir.h"

/* 10 MB/s, and every 20th read 30 ms more. */
static struct slow_io slow_disk(void)
{
	return (struct slow_io){.bytes_per_s = 1e7, .stall_s = .03, .stall_every = 20};
}

/* The same for 2 s, once or twice in a run. */
static struct slow_io stalling_disk(void)
{
	return (struct slow_io){.bytes_per_s = 1e7, .stall_s = 2, .stall_every = 100};
}

/* Products take time of the disk. An op has no state of its own. */
static struct {
	const struct ops *ops;
	struct slow_io *disk;
	double product_s;
} computing;

static void slow_matmul(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride, const struct weight *w,
			int64_t n, enum compute_profile profile)
{
	slow_io_pass(computing.disk, computing.product_s);
	computing.ops->matmul(dev, y, y_stride, x, x_stride, w, n, profile);
}

/* Token by token: the same bits, and the disk has no more to do with reading ahead than without. */
static void a_slow_disk_that_stalls_changes_no_bit_and_is_not_read_ahead_of_in_vain(void **state)
{
	struct model *all;
	struct engine *e;
	struct golden_run want, got;
	struct golden_case *cases, few;
	struct experts_stats stats;
	struct ops slow;
	double busy[3];
	int n;

	(void)state;
	all = in_slots_model("glm52", NULL);
	e = sweeping_engine(COMPUTE_BF16);
	cases = golden_load("glm52", all->config.vocab, &n);
	few = cases[0];
	few.n_ids = few.n_ids < 20 ? few.n_ids : 20;
	golden_run(&want, e, all, LATENTS_BF16, &few, 0);
	computing.ops = e->ops;
	computing.product_s = 3e-5; /* an expert takes twenty of them */
	slow = *e->ops;
	slow.matmul = slow_matmul;
	e->ops = &slow;
	for (int kind = 0; kind < 3; kind++) {
		bool predicts = kind > 0, stalls = kind == 2;
		struct slow_io disk = stalls ? stalling_disk() : slow_disk();
		struct experts_options opt = {.bytes = in_slots_bytes("glm52", 4), .no_prediction = !predicts, .backend = &slow_io_backend,
					      .backend_state = &disk};
		struct model *m = in_slots_model("glm52", &opt);

		computing.disk = &disk;
		golden_run(&got, e, m, LATENTS_BF16, &few, 1);
		in_slots_same_logits(&got, &want);
		golden_run_free(&got);
		experts_stats(m->experts, &stats);
		assert_true(stats.reads > 100 && stats.ahead - stats.useful < stats.reads / 20);
		assert_true(!predicts || stats.ahead > 0);
		model_close(m);
		busy[kind] = disk.busy_s;
		assert_true(!stalls || disk.n_begun >= 100);
	}
	if (busy[1] > 1.1 * busy[0])
		fail_msg("the disk is busy for %.3f s with reading ahead, %.3f s without", busy[1], busy[0]);
	golden_run_free(&want);
	golden_free(cases, n);
	engine_close(e);
	model_close(all);
}

/* A router speaks, and what it chose is wanted. */
static void speak(struct experts *x, int32_t layer, const int32_t *chosen, int32_t k)
{
	const float scores[64] = {0};

	experts_observe(x, layer, scores, chosen);
	experts_spoken(x, layer, chosen, k);
	experts_want(x, layer, chosen, k);
}

static void use(struct experts *x, int32_t layer, const int32_t *chosen, int32_t k)
{
	struct err err;

	for (int32_t i = 0; i < k; i++) {
		assert_int_equal(experts_take(x, layer, chosen[i], &err), 0);
		experts_done(x, layer, chosen[i], false);
	}
}

static int32_t first_with_experts(const struct model_config *c)
{
	int32_t layer = 0;

	while (c->layer_is_dense[layer])
		layer++;
	return layer;
}

/* One layer's experts are used, the next one's guessed, and 20 ms later, or every fourth time at once, its router chooses those, or
 * others. */
static void guess_and_choose(struct experts *x, struct slow_io *disk, const struct model_config *c, int32_t layer, int32_t first, bool right)
{
	int32_t used[16], guess[16], chosen[16], k = c->experts_per_token;

	assert_true(k <= 16 && c->n_experts <= 64);
	for (int32_t i = 0; i < k; i++) {
		used[i] = guess[i] = (first + i) % c->n_experts;
		chosen[i] = right ? guess[i] : (first + k + i) % c->n_experts;
	}
	speak(x, layer, used, k);
	assert_true(experts_ask(x, layer + 1, AHEAD_NEXT, true));
	experts_ahead(x, layer + 1, AHEAD_NEXT, guess, k);
	use(x, layer, used, k);
	if (first % 4 != 3)
		slow_io_pass(disk, .02);
	speak(x, layer + 1, chosen, k);
	use(x, layer + 1, chosen, k);
}

/* Here is time to read ahead: guesses that come true are useful or late, those that do not are given up, and no slot is lost. */
static void what_is_given_up_on_a_slow_disk_leaves_its_slot(void **state)
{
	struct slow_io disk = slow_disk();
	struct experts_options opt = {.bytes = in_slots_bytes("glm52", 6), .backend = &slow_io_backend, .backend_state = &disk};
	struct experts_stats right = {0}, stats;
	const struct model_config *c;
	int32_t layer, taken = 0;
	struct model *m;
	struct err err;

	(void)state;
	m = in_slots_model("glm52", &opt);
	c = &m->config;
	layer = first_with_experts(c);
	/* What begins is up to what was learned: sooner or later some of it comes true, some comes late, and some is given up. */
	for (int i = 0; i < 400 && !(right.useful && right.late); i++) {
		guess_and_choose(m->experts, &disk, c, layer, i, true);
		experts_stats(m->experts, &right);
	}
	assert_true(right.ahead && right.useful && right.late);
	for (int i = 0; i < 400 && !disk.n_cancelled; i++)
		guess_and_choose(m->experts, &disk, c, layer, i, i % 10 != 9);
	assert_true(disk.n_cancelled);
	experts_stats(m->experts, &stats);
	for (int32_t l = c->n_layers - 1; l > layer + 1 && taken < stats.n_slots; l--) /* others */
		for (int32_t i = 0; i < c->n_experts && taken < stats.n_slots; i++, taken++)
			if (experts_take(m->experts, l, i, &err))
				fail_msg("%s", err.text);
	experts_stats(m->experts, &stats);
	assert_int_equal(stats.resident, stats.n_slots);
	model_close(m);
}

/* What the first guess named and the second one does not is given up, what the second one names is read in its place. */
static void a_nearer_look_takes_the_place_of_what_was_guessed_before(void **state)
{
	struct slow_io disk = slow_disk();
	struct experts_options opt = {.bytes = in_slots_bytes("glm52", 2), .backend = &slow_io_backend, .backend_state = &disk};
	int32_t layer, first[16], second[16], k;
	bool given_up = false, in_its_place = false;
	const struct model_config *c;
	struct model *m;

	(void)state;
	m = in_slots_model("glm52", &opt);
	c = &m->config;
	k = c->experts_per_token;
	layer = first_with_experts(c);
	for (int i = 0; i < 400 && !(given_up && in_its_place); i++) {
		bool corrects = i % 2; /* else the first one is right, so that guesses are believed */
		const int32_t *chosen = corrects ? second : first;
		struct experts_stats before, after;
		int64_t n_cancelled;

		for (int32_t n = 0; n < k; n++) {
			first[n] = (i + n) % c->n_experts;
			second[n] = (i + k + n) % c->n_experts;
		}
		speak(m->experts, layer, first, k);
		assert_true(experts_ask(m->experts, layer + 1, AHEAD_NEXT, true));
		experts_ahead(m->experts, layer + 1, AHEAD_NEXT, first, k);
		assert_false(experts_ask(m->experts, layer + 1, AHEAD_NEXT, true));
		use(m->experts, layer, first, k);
		experts_stats(m->experts, &before);
		n_cancelled = disk.n_cancelled;
		if (corrects)
			experts_ahead(m->experts, layer + 1, AHEAD_WHOLE, second, k);
		slow_io_pass(&disk, .01);
		experts_go_on(m->experts);
		given_up |= disk.n_cancelled > n_cancelled; /* before the router speaks */
		speak(m->experts, layer + 1, chosen, k);
		experts_stats(m->experts, &after);
		in_its_place |= corrects && after.useful > before.useful;
		use(m->experts, layer + 1, chosen, k);
	}
	assert_true(given_up && in_its_place);
	model_close(m);
}

/* ---- computing while they come ------------------------------------------------------------------------------------ */

/* Experts of several pieces, in two reads: gate and up lie in the first one. Four in a layer, two of them chosen. */
static char *make_large_experts(int n_moe_layers)
{
	char *dir = temp_dir_new();
	struct synth_options o = synth_glm52;
	struct err err;

	o.n_dense_layers = 1;
	o.n_moe_layers = n_moe_layers;
	o.format = SYNTH_BF16;
	o.hidden = 1024;
	o.expert_dim = 896;
	o.n_experts = 4;
	o.experts_per_token = 2;
	o.n_heads = o.index_n_heads = 2;
	o.q_lora = o.dense_dim = 128;
	o.vocab = SYNTH_LEAST_VOCAB;
	o.max_positions = 4096;
	if (synth_write(dir, &o, NULL, &err))
		fail_msg("%s", err.text);
	return dir;
}

static int64_t n_reads(const struct experts *x)
{
	struct experts_stats stats;

	experts_stats(x, &stats);
	return stats.reads;
}

/* Two of four, any. */
static void any_two(int32_t *out, uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	out[0] = (int32_t)(*seed >> 16) % 4;
	out[1] = (out[0] + 1 + (int32_t)(*seed >> 24) % 3) % 4;
}

/* A router chooses one that is not there, and one that is and is worth less than all others: the first does not take its slot. */
static void who_is_there_stays_beside_who_has_to_come(void **state)
{
	struct slow_io disk = {.bytes_per_s = 3e8};
	struct experts_options opt = {.n_slots = 3, .no_prediction = true, .backend = &slow_io_backend, .backend_state = &disk};
	const struct expert *experts;
	struct model *m;
	struct err err;
	char *dir;

	(void)state;
	dir = make_large_experts(1);
	if (in_slots_open(&m, dir, &opt, &err))
		fail_msg("%s", err.text);
	experts = m->layers[1].experts;
	for (int32_t i = 0; i < 3; i++) /* of four */
		use(m->experts, 1, &i, 1);
	for (int32_t i = 0; i < 40; i++) {
		int32_t chosen[2] = {0, i % 4};
		int64_t reads = n_reads(m->experts);

		while (experts[chosen[0]].gate.data)
			chosen[0]++;
		if (chosen[1] == chosen[0])
			chosen[1] = (chosen[1] + 1) % 4;
		speak(m->experts, 1, chosen, 2);
		assert_non_null(experts[chosen[1]].gate.data);
		use(m->experts, 1, chosen, 2);
		assert_int_equal(n_reads(m->experts), reads + 1);
	}
	model_close(m);
	temp_dir_free(dir);
}

/* What is being read for a layer further on waits while somebody waits for the drive, and goes on after it. In three slots nothing stays
 * until it is chosen again. */
static void what_is_waited_for_has_the_drive_alone(void **state)
{
	struct slow_io disk = {.bytes_per_s = 3e8};
	struct experts_options opt = {.n_slots = 3, .backend = &slow_io_backend, .backend_state = &disk};
	int n_interrupted = 0, n_pieces;
	uint32_t seed = 1;
	struct experts_stats stats;
	struct model *m;
	struct err err;
	char *dir;

	(void)state;
	dir = make_large_experts(3);
	if (in_slots_open(&m, dir, &opt, &err) || experts_take(m->experts, 1, 0, &err))
		fail_msg("%s", err.text);
	experts_done(m->experts, 1, 0, false);
	n_pieces = disk.n_begun;
	assert_true(n_pieces > 1);
	for (int i = 0; i < 200 && n_interrupted < 6; i++) {
		int32_t chosen[2], later[2];
		int64_t reads;
		int begun;

		any_two(chosen, &seed);
		any_two(later, &seed);
		speak(m->experts, 1, chosen, 2);
		use(m->experts, 1, chosen, 2);
		begun = disk.n_begun;
		if (experts_ask(m->experts, 3, AHEAD_SECOND, false))
			experts_ahead(m->experts, 3, AHEAD_SECOND, later, 2);
		slow_io_pass(&disk, .005);
		experts_go_on(m->experts);
		begun = disk.n_begun - begun;
		experts_stats(m->experts, &stats);
		reads = stats.reads;
		if (begun > 0 && begun < n_pieces) {
			begun = disk.n_begun;
			speak(m->experts, 2, chosen, 2);
			experts_stats(m->experts, &stats);
			assert_int_equal(experts_take(m->experts, 2, chosen[0], &err), 0);
			if (stats.reads == reads + 2 && disk.n > 0) { /* the other one is still awaited */
				n_interrupted++;
				assert_true(disk.n_begun - begun <= 2 * n_pieces);
			}
			experts_done(m->experts, 2, chosen[0], false);
		}
		speak(m->experts, 2, chosen, 2);
		use(m->experts, 2, chosen, 2);
		speak(m->experts, 3, later, 2);
		use(m->experts, 3, later, 2);
	}
	assert_int_equal(n_interrupted, 6);
	experts_stats(m->experts, &stats);
	assert_true(stats.useful + stats.late > 0);
	model_close(m);
	temp_dir_free(dir);
}

/* A token's routers in three layers choose the first two, and nearly the third. So long the drive has nothing to do before each. */
static void choose_first_two(struct experts *x, struct slow_io *disk, double seconds)
{
	static const float scores[] = {1, .9f, .8f, -3};
	static const int32_t chosen[] = {0, 1};

	for (int32_t layer = 1; layer <= 3; layer++) {
		experts_ask(x, layer, AHEAD_NEXT, false);
		slow_io_pass(disk, seconds);
		experts_observe(x, layer, scores, chosen);
		experts_spoken(x, layer, chosen, 2);
		experts_want(x, layer, chosen, 2);
		use(x, layer, chosen, 2);
	}
}

/* Nothing is computed for 50 ms. */
static void go_on(struct experts *x, struct slow_io *disk)
{
	for (int i = 0; i < 10; i++) {
		slow_io_pass(disk, .005);
		experts_go_on(x);
	}
}

static int64_t n_spare(const struct experts *x)
{
	struct experts_stats stats;

	experts_stats(x, &stats);
	return stats.spare;
}

/* No router is left to ask, and no expert is read that was chosen: the one that was nearly chosen is. It lets those pass that are
 * waited for, goes on when they have come, and is there when it is chosen. */
static void an_idle_drive_reads_what_is_going_to_be_chosen(void **state)
{
	static const int32_t nearly = 2, others[] = {1, 3}, last[] = {2, 1};
	struct slow_io disk = {.bytes_per_s = 3e8};
	struct experts_options opt = {.n_slots = 8, .backend = &slow_io_backend, .backend_state = &disk};
	struct experts_stats before, after;
	const struct expert *first;
	struct model *m;
	struct err err;
	char *dir;

	(void)state;
	dir = make_large_experts(3);
	if (in_slots_open(&m, dir, &opt, &err))
		fail_msg("%s", err.text);
	first = m->layers[1].experts;
	for (int i = 0; i < 6; i++)
		choose_first_two(m->experts, &disk, .005);
	assert_int_equal(n_spare(m->experts), 0); /* routers were about to be asked */
	assert_null(first[nearly].gate.data);
	experts_ask_none(m->experts);
	assert_int_equal(n_spare(m->experts), 1);
	assert_non_null(first[nearly].gate.data); /* on its way: its layer is the next to be asked */
	experts_stats(m->experts, &before);
	speak(m->experts, 1, others, 2);
	experts_stats(m->experts, &after);
	assert_int_equal(after.behind, before.behind + 1);
	use(m->experts, 1, others, 2);
	experts_ask(m->experts, 2, AHEAD_NEXT, false);
	for (int i = 0; i < 100 && after.resident < 8; i++) {
		go_on(m->experts, &disk);
		experts_stats(m->experts, &after);
	}
	assert_int_equal(after.resident, 8);
	assert_int_equal(disk.n_cancelled, 0);
	experts_stats(m->experts, &before);
	speak(m->experts, 1, last, 2);
	use(m->experts, 1, last, 2);
	experts_stats(m->experts, &after);
	assert_true(after.hits == before.hits + 2 && after.reads == before.reads);
	model_close(m);
	temp_dir_free(dir);
}

/* Nor where it is in the way: without prediction, in as few slots as two layers may want, while a sweep knows what comes next, and again
 * at once when it has failed. */
static void what_nobody_may_want_is_not_read_where_it_would_be_in_the_way(void **state)
{
	enum { NOT_PREDICTED, FEW_SLOTS, SWEPT, REPLACED, N_CASES };
	char *dir;

	(void)state;
	dir = make_large_experts(3);
	for (int which = 0; which < N_CASES; which++) {
		struct slow_io disk = {.bytes_per_s = 3e8};
		struct experts_options opt = {.n_slots = which == FEW_SLOTS ? 3 : 10, .no_prediction = which == NOT_PREDICTED,
					      .backend = &slow_io_backend, .backend_state = &disk};
		struct model *m;
		struct err err;
		int64_t n;

		if (in_slots_open(&m, dir, &opt, &err))
			fail_msg("%s", err.text);
		for (int i = 0; i < 6; i++)
			choose_first_two(m->experts, &disk, which >= SWEPT ? .08 : .005);
		if (which == SWEPT) {
			experts_ask_none(m->experts);
			assert_int_equal(n_spare(m->experts), 1);
			if (experts_take(m->experts, 1, 2, &err)) /* that one */
				fail_msg("%s", err.text);
			experts_done(m->experts, 1, 2, true);
			n = n_spare(m->experts);
			go_on(m->experts, &disk);
			assert_int_equal(n_spare(m->experts), n);
		} else if (which == REPLACED) {
			assert_int_equal(utimensat(AT_FDCWD, m->files->shards[0].file.path, NULL, 0), 0);
			experts_ask_none(m->experts);
			go_on(m->experts, &disk);
			assert_int_equal(n_spare(m->experts), 1);
			assert_null(m->layers[1].experts[2].gate.data);
		} else {
			experts_ask_none(m->experts);
			experts_go_on(m->experts);
			assert_int_equal(n_spare(m->experts), 0);
		}
		model_close(m);
	}
	temp_dir_free(dir);
}

enum { LARGE_TOKENS = 4 };

/* Token by token, so that nothing is chosen by more than one: all logits. */
static int decode_large(struct engine *e, struct model *m, float *logits, struct err *err)
{
	struct session_options session = {.latents = LATENTS_BF16};
	struct session *s;
	int rc = 0;

	assert_int_equal(session_new(&s, e, m, &session, err), 0);
	for (int32_t i = 0; i < LARGE_TOKENS && !rc; i++)
		rc = session_append(s, &i, 1, logits + i * m->config.vocab, NULL, err);
	session_free(s);
	return rc;
}

/* What is multiplied: the shared expert of a layer before an expert that its router chose? And is the disk asked what is done, if it
 * has something to do, before the next matrix? */
static struct {
	const struct model *m;
	const struct slow_io *disk;
	int32_t shared_of; /* layer */
	int n_before, n_asked, n_neglected, n_busy;
	bool busy;
} heard;

static void hear_matmul(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride, const struct weight *w,
			int64_t n, enum compute_profile profile)
{
	const struct model_config *c = &heard.m->config;

	for (int32_t l = 0; l < c->n_layers; l++) {
		if (w->data == heard.m->layers[l].mlp.gate.data)
			heard.shared_of = l;
		for (int32_t e = 0; e < c->n_experts && !c->layer_is_dense[l]; e++) {
			const struct expert *routed = &heard.m->layers[l].experts[e];

			heard.n_before += w->data == routed->down.data && heard.shared_of == l;
			heard.n_neglected += heard.busy && heard.n_asked == heard.disk->n_asked &&
					     (w->data == routed->up.data || w->data == routed->down.data);
		}
	}
	heard.busy = heard.disk->n > 0;
	heard.n_busy += heard.busy;
	heard.n_asked = heard.disk->n_asked;
	slow_matmul(dev, y, y_stride, x, x_stride, w, n, profile);
}

/* While experts are read the shared one is computed, and gate and up of those whose down has not come: the sums are the same. A bit
 * that is wrong in what was multiplied already, or comes wrong after it, is found: once, and it is computed anew; always, and
 * there is no answer. */
static void what_has_come_is_computed_while_the_rest_is_read_and_counts_when_it_is_right(void **state)
{
	static const struct {
		int spoil_nth;  /* of the pieces from then on; odd: gate and up, even: down */
		bool then_on;
	} faults[] = {{0}, {1}, {2}, {5}, {6}, {1, true}, {2, true}, {6, true}};
	char *dir = make_large_experts(2);
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	struct ops hears = *e->ops;
	struct model *all;
	float *want, *got;
	int64_t n_halves = 0;
	size_t bytes;
	struct err err;

	(void)state;
	if (in_slots_open(&all, dir, NULL, &err))
		fail_msg("%s", err.text);
	bytes = (size_t)all->config.vocab * LARGE_TOKENS * sizeof *want;
	want = xmalloc(1, bytes);
	got = xmalloc(1, bytes);
	assert_int_equal(decode_large(e, all, want, &err), 0);
	computing.ops = e->ops;
	computing.product_s = .001;
	hears.matmul = hear_matmul;
	e->ops = &hears;
	for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
		struct slow_io disk = {.bytes_per_s = 3e8};
		struct experts_options opt = {.n_slots = 3, .no_prediction = true, .backend = &slow_io_backend, .backend_state = &disk};
		struct experts_stats stats;
		struct model *m;
		int rc;

		if (in_slots_open(&m, dir, &opt, &err) || experts_verify(m->experts, NULL, NULL, &err))
			fail_msg("%s", err.text);
		disk.spoil_nth = faults[i].spoil_nth ? disk.n_begun + faults[i].spoil_nth : 0;
		disk.then_on = faults[i].then_on;
		heard.m = m;
		heard.disk = computing.disk = &disk;
		heard.busy = false;
		heard.shared_of = -1;
		rc = decode_large(e, m, got, &err);
		experts_stats(m->experts, &stats);
		assert_int_equal(rc, faults[i].then_on ? -1 : 0);
		if (rc) {
			assert_int_equal(err.code, ERR_DAMAGED);
			assert_non_null(strstr(err.text, "expert "));
		} else {
			assert_memory_equal(got, want, bytes);
			assert_int_equal(stats.retried, faults[i].spoil_nth > 0);
		}
		n_halves += stats.halves;
		model_close(m);
	}
	assert_true(n_halves > 0 && heard.n_before > 0 && heard.n_busy > 0);
	assert_int_equal(heard.n_neglected, 0);
	e->ops = computing.ops;
	free(want);
	free(got);
	model_close(all);
	engine_close(e);
	temp_dir_free(dir);
}

/* Of many tokens at once: what an expert gave is added when it is right, computed anew when it was not, and no answer when it never is. */
static void a_sweep_adds_what_has_turned_out_to_be_right(void **state)
{
	char *dir = make_large_experts(2);
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	struct model *all;
	float *want, *got;
	size_t bytes;
	struct err err;

	(void)state;
	if (in_slots_open(&all, dir, NULL, &err))
		fail_msg("%s", err.text);
	bytes = (size_t)all->config.vocab * sizeof *want;
	want = xmalloc(1, bytes);
	got = xmalloc(1, bytes);
	assert_int_equal(in_slots_run(all, e, want, &err), 0);
	for (int nth = 1; nth <= 7; nth++)
		for (int then_on = 0; then_on < 2; then_on++) {
			struct slow_io disk = {.bytes_per_s = 3e9};
			struct experts_options opt = {.n_slots = 3, .backend = &slow_io_backend, .backend_state = &disk};
			struct experts_stats stats;
			struct model *m;

			if (in_slots_open(&m, dir, &opt, &err) || experts_verify(m->experts, NULL, NULL, &err))
				fail_msg("%s", err.text);
			disk.spoil_nth = disk.n_begun + nth;
			disk.then_on = then_on;
			assert_int_equal(in_slots_run(m, e, got, &err), then_on ? -1 : 0);
			experts_stats(m->experts, &stats);
			assert_int_equal(stats.retried, 1);
			if (then_on) {
				assert_int_equal(err.code, ERR_DAMAGED);
				assert_non_null(strstr(err.text, "layer 1, expert "));
			} else {
				assert_memory_equal(got, want, bytes);
			}
			model_close(m);
		}
	free(want);
	free(got);
	model_close(all);
	engine_close(e);
	temp_dir_free(dir);
}

/* Whose checksum is known may be computed with before it is compared; not what is read for the first time, and not by who asks for
 * what is right. */
static void what_was_read_before_may_be_looked_at_later(void **state)
{
	char *dir = make_large_experts(1);
	struct experts_options opt = {.n_slots = 1};
	const struct expert *e;
	struct model *m;
	bool again = true;
	struct err err;

	(void)state;
	if (in_slots_open(&m, dir, &opt, &err))
		fail_msg("%s", err.text);
	e = m->layers[1].experts;
	for (int32_t i = 0; i < 8; i++) {
		bool known = i >= 4;

		assert_int_equal(experts_take_unproved(m->experts, 1, i % 4, &err), 0);
		assert_true(known == (e[i % 4].gate.sums && e[i % 4].up.sums && e[i % 4].down.sums));
		if (i % 2)
			assert_int_equal(experts_take(m->experts, 1, i % 4, &err), 0);
		else
			assert_int_equal(experts_prove(m->experts, 1, i % 4, &again, &err), 0);
		assert_false(again);
		assert_true(!e[i % 4].gate.sums && !e[i % 4].up.sums && !e[i % 4].down.sums);
		experts_done(m->experts, 1, i % 4, false);
	}
	/* Nobody computes with it, and its slot is taken. */
	assert_int_equal(experts_take_unproved(m->experts, 1, 0, &err), 0);
	assert_non_null(e[0].gate.sums);
	experts_done(m->experts, 1, 0, false);
	assert_int_equal(experts_take(m->experts, 1, 1, &err), 0);
	experts_done(m->experts, 1, 1, false);
	assert_true(!e[0].gate.sums && !e[0].gate.data);
	assert_int_equal(experts_take_unproved(m->experts, 1, 0, &err), 0); /* and is not looked at until the end */
	model_close(m);
	temp_dir_free(dir);
}

static int quiet(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_slow_disk_that_stalls_changes_no_bit_and_is_not_read_ahead_of_in_vain),
		cmocka_unit_test(what_is_given_up_on_a_slow_disk_leaves_its_slot),
		cmocka_unit_test(a_nearer_look_takes_the_place_of_what_was_guessed_before),
		cmocka_unit_test(who_is_there_stays_beside_who_has_to_come),
		cmocka_unit_test(what_is_waited_for_has_the_drive_alone),
		cmocka_unit_test(an_idle_drive_reads_what_is_going_to_be_chosen),
		cmocka_unit_test(what_nobody_may_want_is_not_read_where_it_would_be_in_the_way),
		cmocka_unit_test(what_has_come_is_computed_while_the_rest_is_read_and_counts_when_it_is_right),
		cmocka_unit_test(a_sweep_adds_what_has_turned_out_to_be_right),
		cmocka_unit_test(what_was_read_before_may_be_looked_at_later),
	};

	return cmocka_run_group_tests(tests, quiet, NULL);
}
