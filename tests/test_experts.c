/*
 * Experts that are not all in memory: the same bits whatever is in which slot, however few there are and whatever is read
 * ahead; and a read that fails is tried again or named, never computed with.
 */
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
#include <time.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/experts.h"
#include "engine/internal.h"
#include "engine/sweep.h"
#include "engine/synth.h"
#include "tests/support/fake_io.h"
#include "tests/support/golden.h"
#include "tests/support/sanitized.h"
#include "tests/support/slow_io.h"
#include "tests/support/temp_dir.h"

static int quiet(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	return 0;
}

static struct engine *open_engine(enum compute_profile compute)
{
	struct engine_options opt = {.n_threads = 2, .compute = compute};
	struct engine *e;
	struct err err;

	if (engine_open(&e, &opt, &err))
		fail_msg("%s", err.text);
	return e;
}

static int try_open(struct model **m, const char *dir, const struct experts_options *experts, struct err *err)
{
	struct model_options opt = {.experts = experts};

	return model_open(m, dir, &opt, err);
}

static struct model *open_model(const char *checkpoint, const struct experts_options *experts)
{
	char *dir = golden_dir(checkpoint);
	struct model *m;
	struct err err;

	if (try_open(&m, dir, experts, &err))
		fail_msg("%s", err.text);
	free(dir);
	return m;
}

/* Bytes of the fewest slots that a model runs with, and so many more. */
static int64_t slots(const char *checkpoint, int more)
{
	struct experts_options opt = {.bytes = (int64_t)1 << 30};
	struct model *m = open_model(checkpoint, &opt);
	struct experts_stats stats;
	int64_t bytes;

	experts_stats(m->experts, &stats);
	bytes = (m->config.experts_per_token + 1 + more) * stats.slot_bytes;
	model_close(m);
	return bytes;
}

static void same_logits(const struct golden_run *a, const struct golden_run *b)
{
	assert_int_equal(a->n_positions, b->n_positions);
	assert_memory_equal(a->logits, b->logits, (size_t)a->n_positions * (size_t)a->vocab * sizeof(float));
}

/* From as few slots as a token needs to all, in whole, in pieces and token by token, with and without reading ahead. */
static void any_number_of_slots_gives_the_same_bits(void **state)
{
	static const int more[] = {0, 1, 7, 1000};
	static const int64_t chunks[] = {0, 1, 23};

	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		const char *name = golden_checkpoints[k];
		struct model *all = open_model(name, NULL);
		struct engine *e = open_engine(k % 2 ? COMPUTE_F32 : COMPUTE_BF16);
		struct golden_run want;
		struct golden_case *cases;
		int n;

		cases = golden_load(name, all->config.vocab, &n);
		golden_run(&want, e, all, LATENTS_BF16, &cases[n - 1], 0);
		for (size_t i = 0; i < sizeof more / sizeof more[0]; i++) {
			struct experts_options opt = {.bytes = slots(name, more[i]), .no_prediction = i % 2};
			struct model *m = open_model(name, &opt);
			struct experts_stats stats;

			assert_memory_equal(m->fingerprint, all->fingerprint, sizeof m->fingerprint);
			for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
				struct golden_run run;

				golden_run(&run, e, m, LATENTS_BF16, &cases[n - 1], chunks[c]);
				same_logits(&run, &want);
				golden_run_free(&run);
			}
			experts_stats(m->experts, &stats);
			assert_true(stats.taken > 0 && stats.reads > 0 && stats.resident <= stats.n_slots);
			assert_int_equal(stats.retried, 0);
			if (more[i] == 1000) /* each was read at most once */
				assert_true(stats.reads <= stats.n_experts);
			if (more[i] == 0)
				assert_true(stats.reads > stats.n_experts);
			model_close(m);
		}
		golden_run_free(&want);
		golden_free(cases, n);
		engine_close(e);
		model_close(all);
	}
}

/* The second of three shards is a symbolic link to another file system, which counts as a drive of its own. */
static void shards_on_two_drives_give_the_same_bits(void **state)
{
	char *dir = temp_dir_new(), *other = temp_dir_new_in_memory(), *copy, *shard, *there, *text;
	struct experts_options opt = {0};
	struct model *all, *m;
	struct golden_run want, run;
	struct golden_case *cases;
	struct stat a, b;
	struct engine *e;
	struct err err;
	size_t bytes;
	int n;

	(void)state;
	assert_true(!stat(dir, &a) && !stat(other, &b));
	if (a.st_dev == b.st_dev) { /* no file system in memory, or nothing else */
		temp_dir_free(other);
		temp_dir_free(dir);
		skip();
	}
	opt.bytes = slots("glm52", 3);
	e = open_engine(COMPUTE_BF16);
	all = open_model("glm52", NULL);
	copy = temp_path(dir, "copy");
	shard = temp_path(copy, "model-00002-of-00003.safetensors");
	there = temp_path(other, "shard");
	if (temp_dir_copy("tests/golden/glm52", copy, &err) || file_read(&text, &bytes, shard, 1 << 20, &err))
		fail_msg("%s", err.text);
	free(temp_file(other, "shard", text, bytes));
	free(text);
	assert_int_equal(unlink(shard), 0);
	assert_int_equal(symlink(there, shard), 0);
	if (try_open(&m, copy, &opt, &err))
		fail_msg("%s", err.text);
	cases = golden_load("glm52", all->config.vocab, &n);
	golden_run(&want, e, all, LATENTS_BF16, &cases[n - 1], 0);
	for (int64_t chunk = 0; chunk <= 1; chunk++) {
		golden_run(&run, e, m, LATENTS_BF16, &cases[n - 1], chunk);
		same_logits(&run, &want);
		golden_run_free(&run);
	}
	golden_run_free(&want);
	golden_free(cases, n);
	model_close(m);
	model_close(all);
	engine_close(e);
	free(there);
	free(shard);
	free(copy);
	temp_dir_free(other);
	temp_dir_free(dir);
}

/* A question in the middle of a sweep takes its slots; both go on as if the other were not there. */
static void a_question_between_two_tiles_changes_neither(void **state)
{
	struct experts_options opt = {.bytes = slots("glm52", 0)};
	struct model *all = open_model("glm52", NULL), *m = open_model("glm52", &opt);
	struct engine *e = open_engine(COMPUTE_BF16);
	struct session_options session = {.latents = LATENTS_BF16};
	struct session *a, *b, *c;
	size_t vocab = (size_t)m->config.vocab;
	float *want = xmalloc(vocab, sizeof *want), *got = xmalloc(vocab, sizeof *got), *asked = xmalloc(vocab, sizeof *asked);
	float *answer = xmalloc(vocab, sizeof *answer);
	int32_t ids[90], question[5] = {3, 1, 4, 1, 5};
	const struct sweep_options with = {.tile_tokens = 5};
	struct sweep_sequence q = {.ids = ids, .n = 90, .last_logits = got};
	struct sweep *w;
	struct err err;
	int more, turn = 0;

	(void)state;
	for (int i = 0; i < 90; i++)
		ids[i] = (i * 37 + 11) % (int32_t)vocab;
	assert_int_equal(session_new(&a, e, all, &session, &err), 0);
	assert_int_equal(session_append(a, ids, 90, want, NULL, &err), 0);
	session_truncate(a, 0);
	assert_int_equal(session_append(a, question, 5, answer, NULL, &err), 0);
	assert_int_equal(session_new(&b, e, m, &session, &err), 0);
	assert_int_equal(session_new(&c, e, m, &session, &err), 0);
	q.session = b;
	assert_int_equal(sweep_begin(&w, &q, 1, &with, &err), 0);
	while ((more = sweep_step(w, &err)) > 0)
		if (turn++ % 7 == 0) {
			assert_int_equal(session_append(c, question, 5, asked, NULL, &err), 0);
			session_truncate(c, 0);
			assert_memory_equal(asked, answer, vocab * sizeof *asked);
		}
	assert_int_equal(more, 0);
	assert_memory_equal(got, want, vocab * sizeof *got);
	sweep_end(w);
	session_free(a);
	session_free(b);
	session_free(c);
	free(want);
	free(got);
	free(asked);
	free(answer);
	engine_close(e);
	model_close(m);
	model_close(all);
}

struct seen {
	const struct model_config *c;
	int32_t layer;
	int64_t position, n;
};

static int see(void *ctx, int32_t layer, int64_t position, const float *scores, const int32_t *chosen, struct err *err)
{
	struct seen *s = ctx;
	int32_t k = s->c->experts_per_token;

	(void)err;
	assert_false(s->c->layer_is_dense[layer]);
	assert_true(layer == s->layer ? position == s->position + 1 : layer > s->layer);
	s->layer = layer;
	s->position = position;
	s->n++;
	/* Nobody who was not chosen scores more. */
	for (int32_t e = 0; e < s->c->n_experts; e++) {
		bool is_chosen = false;

		for (int32_t i = 0; i < k; i++)
			is_chosen |= chosen[i] == e;
		for (int32_t i = 0; i < k && !is_chosen; i++)
			assert_true(scores[e] <= scores[chosen[i]]);
	}
	return 0;
}

static void a_tap_sees_what_each_router_chose_and_by_what(void **state)
{
	struct model *m = open_model("glm52", NULL);
	struct engine *e = open_engine(COMPUTE_F32);
	struct session_options session = {.latents = LATENTS_BF16};
	struct seen seen = {.c = &m->config, .layer = -1};
	const struct session_tap tap = {.ctx = &seen, .router = see};
	int32_t ids[40], sparse = 0;
	struct session *s;
	struct err err;

	(void)state;
	for (int i = 0; i < 40; i++)
		ids[i] = (i * 37 + 11) % m->config.vocab;
	for (int32_t i = 0; i < m->config.n_layers; i++)
		sparse += !m->config.layer_is_dense[i];
	assert_int_equal(session_new(&s, e, m, &session, &err), 0);
	assert_int_equal(session_append(s, ids, 40, NULL, &tap, &err), 0);
	assert_int_equal(seen.n, 40 * sparse);
	session_free(s);
	engine_close(e);
	model_close(m);
}

/* A run of the last case at once; -1 and what went wrong. */
static int run(struct model *m, struct engine *e, float *logits, struct err *err)
{
	struct session_options session = {.latents = LATENTS_BF16};
	int32_t ids[40];
	struct session *s;
	int rc;

	for (int i = 0; i < 40; i++)
		ids[i] = (i * 37 + 11) % m->config.vocab;
	assert_int_equal(session_new(&s, e, m, &session, err), 0);
	rc = session_append(s, ids, 40, logits, NULL, err);
	session_free(s);
	return rc;
}

/* The nth operation is spoiled once: read again, or tried again by the reads themselves. From then on: named, and after it heals
 * all is as it was. */
static void a_read_that_fails_is_tried_again_or_named(void **state)
{
	static const struct {
		enum fake_fault fault;
		int error;
	} faults[] = {{FAKE_ERROR, EIO}, {FAKE_ERROR, EINTR}, {FAKE_SHORT, 0}, {FAKE_ZERO, 0}, {FAKE_LATE, 0}};
	struct model *all = open_model("glm52-fp8", NULL);
	struct engine *e = open_engine(COMPUTE_BF16);
	size_t vocab = (size_t)all->config.vocab;
	float *want = xmalloc(vocab, sizeof *want), *got = xmalloc(vocab, sizeof *got);
	int64_t bytes = slots("glm52-fp8", 2);
	struct err err;

	(void)state;
	assert_int_equal(run(all, e, want, &err), 0);
	for (size_t f = 0; f < sizeof faults / sizeof faults[0]; f++)
		for (int nth = 1; nth < 60; nth += 2 + nth)
			for (int then_on = 0; then_on < 2; then_on++) {
				struct fake_io fake = {.fault = faults[f].fault, .error = faults[f].error, .nth = nth, .then_on = then_on};
				struct experts_options opt = {.bytes = bytes, .backend = &fake_io_backend, .backend_state = &fake};
				struct model *m;
				bool lasting;
				int rc;

				if (then_on && nth > 1 && faults[f].error == EINTR)
					continue; /* which is tried again for a second each time */
				m = open_model("glm52-fp8", &opt);
				rc = run(m, e, got, &err);
				lasting = then_on && fake.n_begun >= nth && (faults[f].fault == FAKE_ERROR || faults[f].fault == FAKE_ZERO);
				/* Reads that are short for ever come to an end that is none of the file's. */
				if (lasting != (rc != 0) && !(then_on && faults[f].fault == FAKE_SHORT))
					fail_msg("fault %zu at %d: %s", f, nth, rc ? err.text : "nobody said anything");
				if (rc)
					assert_true(strstr(err.text, "layer ") && strstr(err.text, "expert ") && strstr(err.text, ".safetensors"));
				fake.nth = 0;
				assert_int_equal(run(m, e, got, &err), 0);
				assert_memory_equal(got, want, vocab * sizeof *got);
				model_close(m);
			}
	free(want);
	free(got);
	engine_close(e);
	model_close(all);
}

/* Once known, a flipped bit is found: once, and it is read again; always, and it is named. Of a first read nobody can know. */
static void a_flipped_bit_is_found_in_what_was_read_before(void **state)
{
	struct model *all = open_model("glm52-fp8", NULL);
	struct engine *e = open_engine(COMPUTE_BF16);
	size_t vocab = (size_t)all->config.vocab;
	float *want = xmalloc(vocab, sizeof *want), *got = xmalloc(vocab, sizeof *got);
	int64_t bytes = slots("glm52-fp8", 0);
	int n_found = 0;
	struct err err;

	(void)state;
	assert_int_equal(run(all, e, want, &err), 0);
	for (int nth = 1; nth < 40; nth += 7)
		for (int then_on = 0; then_on < 2; then_on++) {
			struct fake_io fake = {0};
			struct experts_options opt = {.bytes = bytes, .backend = &fake_io_backend, .backend_state = &fake};
			struct model *m = open_model("glm52-fp8", &opt);
			struct experts_stats stats;

			assert_int_equal(experts_verify(m->experts, NULL, NULL, &err), 0);
			fake.fault = FAKE_FLIP;
			fake.nth = fake.n_begun + nth;
			fake.then_on = then_on;
			if (run(m, e, got, &err)) {
				assert_true(then_on);
				assert_int_equal(err.code, ERR_DAMAGED);
				assert_non_null(strstr(err.text, "expert "));
			} else {
				assert_memory_equal(got, want, vocab * sizeof *got);
			}
			experts_stats(m->experts, &stats);
			n_found += stats.retried > 0;
			model_close(m);
		}
	assert_true(n_found > 3); /* other flips met bytes that nobody asked for */
	free(want);
	free(got);
	engine_close(e);
	model_close(all);
}

static void copy(const char *from, const char *to)
{
	static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors.index.json",
					    "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
					    "model-00003-of-00003.safetensors"};

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		char *source = xasprintf("%s/%s", from, names[i]), *text;
		size_t bytes;
		struct err err;

		assert_int_equal(file_read(&text, &bytes, source, 64 << 20, &err), 0);
		free(temp_file(to, names[i], text, bytes));
		free(text);
		free(source);
	}
}

static void a_file_that_changes_under_the_model_is_refused(void **state)
{
	char *dir = temp_dir_new(), *path = temp_path(dir, "model-00002-of-00003.safetensors");
	struct experts_options opt = {.bytes = slots("glm52", 0)};
	struct engine *e = open_engine(COMPUTE_BF16);
	struct model *m;
	struct err err;
	int fd;

	(void)state;
	copy("tests/golden/glm52", dir);
	assert_int_equal(try_open(&m, dir, &opt, &err), 0);
	assert_int_equal(run(m, e, NULL, &err), 0);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_int_equal(pwrite(fd, "x", 1, 4000), 1);
	close(fd);
	assert_int_equal(run(m, e, NULL, &err), -1);
	assert_non_null(strstr(err.text, "model-00002-of-00003.safetensors"));
	assert_non_null(strstr(err.text, "changed"));
	model_close(m);
	engine_close(e);
	free(path);
	temp_dir_free(dir);
}

static void sums_are_kept_and_told_apart(void **state)
{
	char *dir = temp_dir_new(), *sums = temp_path(dir, "sums");
	struct experts_options opt = {.bytes = slots("glm52", 0), .sums_path = sums};
	struct engine *e = open_engine(COMPUTE_BF16);
	struct experts_stats stats;
	struct model *m;
	struct err err;
	char *text;
	size_t bytes;

	(void)state;
	m = open_model("glm52", &opt);
	assert_int_equal(run(m, e, NULL, &err), 0);
	experts_stats(m->experts, &stats);
	assert_true(stats.trusted_first > 0);
	model_close(m);

	m = open_model("glm52", &opt);
	experts_stats(m->experts, &stats);
	assert_true(stats.trusted_first > 0);
	assert_int_equal(experts_verify(m->experts, NULL, NULL, &err), 0);
	experts_stats(m->experts, &stats);
	assert_int_equal(stats.trusted_first, 0);
	model_close(m);

	/* Of another model: noted anew. A flipped bit: likewise. */
	m = open_model("glm5", &(struct experts_options){.bytes = slots("glm5", 0), .sums_path = sums});
	assert_int_equal(run(m, e, NULL, &err), 0);
	model_close(m);
	m = open_model("glm52", &opt);
	experts_stats(m->experts, &stats);
	assert_int_equal(stats.trusted_first, 0);
	assert_int_equal(experts_verify(m->experts, NULL, NULL, &err), 0);
	model_close(m);
	assert_int_equal(file_read(&text, &bytes, sums, 1 << 20, &err), 0);
	text[bytes / 2] ^= 4;
	free(temp_file(dir, "sums", text, bytes));
	free(text);
	m = open_model("glm52", &opt);
	assert_int_equal(run(m, e, NULL, &err), 0);
	model_close(m);
	engine_close(e);
	free(sums);
	temp_dir_free(dir);
}

/* Time is real there: what is right about it on a processor is not on one that is ten times as slow. */
static void skip_when_sanitized(void)
{
	if (SANITIZED) {
		print_message("skipped: its times are not those of a sanitizer\n");
		skip();
	}
}

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

/* Token by token: the same bits, and the disk has no more to do with reading ahead than without. */
static void a_slow_disk_that_stalls_changes_no_bit_and_is_not_read_ahead_of_in_vain(void **state)
{
	struct model *all;
	struct engine *e;
	struct golden_run want, got;
	struct golden_case *cases, few;
	struct experts_stats stats;
	double busy[3];
	int n;

	(void)state;
	skip_when_sanitized();
	all = open_model("glm52", NULL);
	e = open_engine(COMPUTE_BF16);
	cases = golden_load("glm52", all->config.vocab, &n);
	few = cases[0];
	few.n_ids = few.n_ids < 20 ? few.n_ids : 20;
	golden_run(&want, e, all, LATENTS_BF16, &few, 0);
	for (int kind = 0; kind < 3; kind++) {
		bool predicts = kind > 0, stalls = kind == 2;
		struct slow_io disk = stalls ? stalling_disk() : slow_disk();
		struct experts_options opt = {.bytes = slots("glm52", 4), .no_prediction = !predicts, .backend = &slow_io_backend,
					      .backend_state = &disk};
		struct model *m = open_model("glm52", &opt);

		golden_run(&got, e, m, LATENTS_BF16, &few, 1);
		same_logits(&got, &want);
		golden_run_free(&got);
		/* A tiny layer computes in less time than a read takes, so that none begins; a slower processor has time for
		 * some, which then are wanted. */
		experts_stats(m->experts, &stats);
		assert_true(stats.reads > 100 && stats.ahead - stats.useful < stats.reads / 20);
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
static void guess_and_choose(struct experts *x, const struct model_config *c, int32_t layer, int32_t first, bool right)
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
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	speak(x, layer + 1, chosen, k);
	use(x, layer + 1, chosen, k);
}

/* Here is time to read ahead: guesses that come true are useful or late, those that do not are given up, and no slot is lost. */
static void what_is_given_up_on_a_slow_disk_leaves_its_slot(void **state)
{
	struct slow_io disk = slow_disk();
	struct experts_options opt = {.bytes = slots("glm52", 6), .backend = &slow_io_backend, .backend_state = &disk};
	struct experts_stats right = {0}, stats;
	const struct model_config *c;
	int32_t layer, taken = 0;
	struct model *m;
	struct err err;

	(void)state;
	skip_when_sanitized();
	m = open_model("glm52", &opt);
	c = &m->config;
	layer = first_with_experts(c);
	/* Time is real: what begins, and what is still under way when the router speaks, is up to the machine. Sooner or later
	 * some of it comes true, some comes late, and some is given up. */
	for (int i = 0; i < 400 && !(right.useful && right.late); i++) {
		guess_and_choose(m->experts, c, layer, i, true);
		experts_stats(m->experts, &right);
	}
	assert_true(right.ahead && right.useful && right.late);
	for (int i = 0; i < 400 && !disk.n_cancelled; i++)
		guess_and_choose(m->experts, c, layer, i, i % 10 != 9);
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
	struct experts_options opt = {.bytes = slots("glm52", 2), .backend = &slow_io_backend, .backend_state = &disk};
	int32_t layer, first[16], second[16], k;
	bool given_up = false, in_its_place = false;
	const struct model_config *c;
	struct model *m;

	(void)state;
	skip_when_sanitized();
	m = open_model("glm52", &opt);
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
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
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

/* What is being read for a layer further on waits while somebody waits for the drive, and goes on after it. */
static void what_is_waited_for_has_the_drive_alone(void **state)
{
	struct slow_io disk = {.bytes_per_s = 3e8};
	struct experts_options opt = {.n_slots = 7, .backend = &slow_io_backend, .backend_state = &disk};
	int n_interrupted = 0, n_alone = 0, n_pieces;
	struct experts_stats stats;
	struct model *m;
	struct err err;
	char *dir;

	(void)state;
	skip_when_sanitized();
	dir = make_large_experts(3);
	if (try_open(&m, dir, &opt, &err) || experts_take(m->experts, 1, 0, &err))
		fail_msg("%s", err.text);
	experts_done(m->experts, 1, 0, false);
	n_pieces = disk.n_begun;
	assert_true(n_pieces > 1);
	/* Where the interruption falls is up to the machine: now and then a piece ends just then, and the next one begins in time. */
	for (int i = 0; i < 200 && n_interrupted < 6; i++) {
		const int32_t chosen[] = {i % 2 * 2, i % 2 * 2 + 1};
		int64_t reads;
		int begun;

		speak(m->experts, 1, chosen, 2);
		use(m->experts, 1, chosen, 2);
		begun = disk.n_begun;
		if (experts_ask(m->experts, 3, AHEAD_SECOND, false))
			experts_ahead(m->experts, 3, AHEAD_SECOND, chosen, 2);
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
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
				n_alone += disk.n_begun - begun <= 2 * n_pieces;
			}
			experts_done(m->experts, 2, chosen[0], false);
		}
		speak(m->experts, 2, chosen, 2);
		use(m->experts, 2, chosen, 2);
		speak(m->experts, 3, chosen, 2);
		use(m->experts, 3, chosen, 2);
	}
	assert_int_equal(n_interrupted, 6);
	assert_true(n_alone >= 4);
	experts_stats(m->experts, &stats);
	assert_true(stats.useful + stats.late > 0);
	model_close(m);
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
	const struct ops *ops;
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
	heard.ops->matmul(dev, y, y_stride, x, x_stride, w, n, profile);
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
	struct engine *e = open_engine(COMPUTE_BF16);
	struct ops hears = *e->ops;
	struct model *all;
	float *want, *got;
	int64_t n_halves = 0;
	size_t bytes;
	struct err err;

	(void)state;
	if (try_open(&all, dir, NULL, &err))
		fail_msg("%s", err.text);
	bytes = (size_t)all->config.vocab * LARGE_TOKENS * sizeof *want;
	want = xmalloc(1, bytes);
	got = xmalloc(1, bytes);
	assert_int_equal(decode_large(e, all, want, &err), 0);
	heard.ops = e->ops;
	hears.matmul = hear_matmul;
	e->ops = &hears;
	for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
		struct slow_io disk = {.bytes_per_s = 3e8};
		struct experts_options opt = {.n_slots = 3, .no_prediction = true, .backend = &slow_io_backend, .backend_state = &disk};
		struct experts_stats stats;
		struct model *m;
		int rc;

		if (try_open(&m, dir, &opt, &err) || experts_verify(m->experts, NULL, NULL, &err))
			fail_msg("%s", err.text);
		disk.spoil_nth = faults[i].spoil_nth ? disk.n_begun + faults[i].spoil_nth : 0;
		disk.then_on = faults[i].then_on;
		heard.m = m;
		heard.disk = &disk;
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
	/* Times are real, and a machine may be busy: in one of all these runs it has time, unless sanitizers make it slow. */
	assert_true(SANITIZED || (n_halves > 0 && heard.n_before > 0 && heard.n_busy > 0));
	assert_int_equal(heard.n_neglected, 0);
	e->ops = heard.ops;
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
	struct engine *e = open_engine(COMPUTE_BF16);
	struct model *all;
	float *want, *got;
	size_t bytes;
	struct err err;

	(void)state;
	if (try_open(&all, dir, NULL, &err))
		fail_msg("%s", err.text);
	bytes = (size_t)all->config.vocab * sizeof *want;
	want = xmalloc(1, bytes);
	got = xmalloc(1, bytes);
	assert_int_equal(run(all, e, want, &err), 0);
	for (int nth = 1; nth <= 7; nth++)
		for (int then_on = 0; then_on < 2; then_on++) {
			struct slow_io disk = {.bytes_per_s = 3e9};
			struct experts_options opt = {.n_slots = 3, .backend = &slow_io_backend, .backend_state = &disk};
			struct experts_stats stats;
			struct model *m;

			if (try_open(&m, dir, &opt, &err) || experts_verify(m->experts, NULL, NULL, &err))
				fail_msg("%s", err.text);
			disk.spoil_nth = disk.n_begun + nth;
			disk.then_on = then_on;
			assert_int_equal(run(m, e, got, &err), then_on ? -1 : 0);
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
	if (try_open(&m, dir, &opt, &err))
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

static void too_little_room_says_how_much_is_needed(void **state)
{
	struct experts_options opt = {.bytes = slots("glm52", 0) - 1};
	char *dir = golden_dir("glm52");
	struct model *m;
	struct err err;

	(void)state;
	assert_int_equal(try_open(&m, dir, &opt, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "at least"));
	free(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_number_of_slots_gives_the_same_bits),
		cmocka_unit_test(shards_on_two_drives_give_the_same_bits),
		cmocka_unit_test(a_question_between_two_tiles_changes_neither),
		cmocka_unit_test(a_tap_sees_what_each_router_chose_and_by_what),
		cmocka_unit_test(a_read_that_fails_is_tried_again_or_named),
		cmocka_unit_test(a_flipped_bit_is_found_in_what_was_read_before),
		cmocka_unit_test(a_file_that_changes_under_the_model_is_refused),
		cmocka_unit_test(sums_are_kept_and_told_apart),
		cmocka_unit_test(a_slow_disk_that_stalls_changes_no_bit_and_is_not_read_ahead_of_in_vain),
		cmocka_unit_test(what_is_given_up_on_a_slow_disk_leaves_its_slot),
		cmocka_unit_test(what_is_waited_for_has_the_drive_alone),
		cmocka_unit_test(a_nearer_look_takes_the_place_of_what_was_guessed_before),
		cmocka_unit_test(what_has_come_is_computed_while_the_rest_is_read_and_counts_when_it_is_right),
		cmocka_unit_test(a_sweep_adds_what_has_turned_out_to_be_right),
		cmocka_unit_test(what_was_read_before_may_be_looked_at_later),
		cmocka_unit_test(too_little_room_says_how_much_is_needed),
	};

	return cmocka_run_group_tests(tests, quiet, NULL);
}
