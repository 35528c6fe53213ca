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
#include <sys/stat.h>
#include <unistd.h>

#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/experts.h"
#include "engine/internal.h"
#include "engine/sweep.h"
#include "tests/support/fake_io.h"
#include "tests/support/golden.h"
#include "tests/support/in_slots.h"
#include "tests/support/sweeping.h"
#include "tests/support/temp_dir.h"

static int quiet(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	return 0;
}

/* From as few slots as a token needs to all, in whole, in pieces and token by token, with and without reading ahead. */
static void any_number_of_slots_gives_the_same_bits(void **state)
{
	static const int more[] = {0, 1, 7, 1000};
	static const int64_t chunks[] = {0, 1, 23};

	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		const char *name = golden_checkpoints[k];
		struct model *all = in_slots_model(name, NULL);
		struct engine *e = sweeping_engine(k % 2 ? COMPUTE_F32 : COMPUTE_BF16);
		struct golden_run want;
		struct golden_case *cases;
		int n;

		cases = golden_load(name, all->config.vocab, &n);
		golden_run(&want, e, all, LATENTS_BF16, &cases[n - 1], 0);
		for (size_t i = 0; i < sizeof more / sizeof more[0]; i++) {
			struct experts_options opt = {.bytes = in_slots_bytes(name, more[i]), .no_prediction = i % 2};
			struct model *m = in_slots_model(name, &opt);
			struct experts_stats stats;

			assert_memory_equal(m->fingerprint, all->fingerprint, sizeof m->fingerprint);
			for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
				struct golden_run run;

				golden_run(&run, e, m, LATENTS_BF16, &cases[n - 1], chunks[c]);
				in_slots_same_logits(&run, &want);
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
	opt.bytes = in_slots_bytes("glm52", 3);
	e = sweeping_engine(COMPUTE_BF16);
	all = in_slots_model("glm52", NULL);
	copy = temp_path(dir, "copy");
	shard = temp_path(copy, "model-00002-of-00003.safetensors");
	there = temp_path(other, "shard");
	if (temp_dir_copy("tests/golden/glm52", copy, &err) || file_read(&text, &bytes, shard, 1 << 20, &err))
		fail_msg("%s", err.text);
	free(temp_file(other, "shard", text, bytes));
	free(text);
	assert_int_equal(unlink(shard), 0);
	assert_int_equal(symlink(there, shard), 0);
	if (in_slots_open(&m, copy, &opt, &err))
		fail_msg("%s", err.text);
	cases = golden_load("glm52", all->config.vocab, &n);
	golden_run(&want, e, all, LATENTS_BF16, &cases[n - 1], 0);
	for (int64_t chunk = 0; chunk <= 1; chunk++) {
		golden_run(&run, e, m, LATENTS_BF16, &cases[n - 1], chunk);
		in_slots_same_logits(&run, &want);
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
	struct experts_options opt = {.bytes = in_slots_bytes("glm52", 0)};
	struct model *all = in_slots_model("glm52", NULL), *m = in_slots_model("glm52", &opt);
	struct engine *e = sweeping_engine(COMPUTE_BF16);
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
	struct model *m = in_slots_model("glm52", NULL);
	struct engine *e = sweeping_engine(COMPUTE_F32);
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

/* The nth operation is spoiled once: read again, or tried again by the reads themselves. From then on: named, and after it heals
 * all is as it was. */
static void a_read_that_fails_is_tried_again_or_named(void **state)
{
	static const struct {
		enum fake_fault fault;
		int error;
	} faults[] = {{FAKE_ERROR, EIO}, {FAKE_ERROR, EINTR}, {FAKE_SHORT, 0}, {FAKE_ZERO, 0}, {FAKE_LATE, 0}};
	struct model *all = in_slots_model("glm52-fp8", NULL);
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	size_t vocab = (size_t)all->config.vocab;
	float *want = xmalloc(vocab, sizeof *want), *got = xmalloc(vocab, sizeof *got);
	int64_t bytes = in_slots_bytes("glm52-fp8", 2);
	struct err err;

	(void)state;
	assert_int_equal(in_slots_run(all, e, want, &err), 0);
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
				m = in_slots_model("glm52-fp8", &opt);
				rc = in_slots_run(m, e, got, &err);
				lasting = then_on && fake.n_begun >= nth && (faults[f].fault == FAKE_ERROR || faults[f].fault == FAKE_ZERO);
				/* Reads that are short for ever come to an end that is none of the file's. */
				if (lasting != (rc != 0) && !(then_on && faults[f].fault == FAKE_SHORT))
					fail_msg("fault %zu at %d: %s", f, nth, rc ? err.text : "nobody said anything");
				if (rc)
					assert_true(strstr(err.text, "layer ") && strstr(err.text, "expert ") && strstr(err.text, ".safetensors"));
				fake.nth = 0;
				assert_int_equal(in_slots_run(m, e, got, &err), 0);
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
	struct model *all = in_slots_model("glm52-fp8", NULL);
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	size_t vocab = (size_t)all->config.vocab;
	float *want = xmalloc(vocab, sizeof *want), *got = xmalloc(vocab, sizeof *got);
	int64_t bytes = in_slots_bytes("glm52-fp8", 0);
	int n_found = 0;
	struct err err;

	(void)state;
	assert_int_equal(in_slots_run(all, e, want, &err), 0);
	for (int nth = 1; nth < 40; nth += 7)
		for (int then_on = 0; then_on < 2; then_on++) {
			struct fake_io fake = {0};
			struct experts_options opt = {.bytes = bytes, .backend = &fake_io_backend, .backend_state = &fake};
			struct model *m = in_slots_model("glm52-fp8", &opt);
			struct experts_stats stats;

			assert_int_equal(experts_verify(m->experts, NULL, NULL, &err), 0);
			fake.fault = FAKE_FLIP;
			fake.nth = fake.n_begun + nth;
			fake.then_on = then_on;
			if (in_slots_run(m, e, got, &err)) {
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
	struct experts_options opt = {.bytes = in_slots_bytes("glm52", 0)};
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	struct model *m;
	struct err err;
	int fd;

	(void)state;
	copy("tests/golden/glm52", dir);
	assert_int_equal(in_slots_open(&m, dir, &opt, &err), 0);
	assert_int_equal(in_slots_run(m, e, NULL, &err), 0);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_int_equal(pwrite(fd, "x", 1, 4000), 1);
	close(fd);
	assert_int_equal(in_slots_run(m, e, NULL, &err), -1);
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
	struct experts_options opt = {.bytes = in_slots_bytes("glm52", 0), .sums_path = sums};
	struct engine *e = sweeping_engine(COMPUTE_BF16);
	struct experts_stats stats;
	struct model *m;
	struct err err;
	char *text;
	size_t bytes;

	(void)state;
	m = in_slots_model("glm52", &opt);
	assert_int_equal(in_slots_run(m, e, NULL, &err), 0);
	experts_stats(m->experts, &stats);
	assert_true(stats.trusted_first > 0);
	model_close(m);

	m = in_slots_model("glm52", &opt);
	experts_stats(m->experts, &stats);
	assert_true(stats.trusted_first > 0);
	assert_int_equal(experts_verify(m->experts, NULL, NULL, &err), 0);
	experts_stats(m->experts, &stats);
	assert_int_equal(stats.trusted_first, 0);
	model_close(m);

	/* Of another model: noted anew. A flipped bit: likewise. */
	m = in_slots_model("glm5", &(struct experts_options){.bytes = in_slots_bytes("glm5", 0), .sums_path = sums});
	assert_int_equal(in_slots_run(m, e, NULL, &err), 0);
	model_close(m);
	m = in_slots_model("glm52", &opt);
	experts_stats(m->experts, &stats);
	assert_int_equal(stats.trusted_first, 0);
	assert_int_equal(experts_verify(m->experts, NULL, NULL, &err), 0);
	model_close(m);
	assert_int_equal(file_read(&text, &bytes, sums, 1 << 20, &err), 0);
	text[bytes / 2] ^= 4;
	free(temp_file(dir, "sums", text, bytes));
	free(text);
	m = in_slots_model("glm52", &opt);
	assert_int_equal(in_slots_run(m, e, NULL, &err), 0);
	model_close(m);
	engine_close(e);
	free(sums);
	temp_dir_free(dir);
}

static void too_little_room_says_how_much_is_needed(void **state)
{
	struct experts_options opt = {.bytes = in_slots_bytes("glm52", 0) - 1};
	char *dir = golden_dir("glm52");
	struct model *m;
	struct err err;

	(void)state;
	assert_int_equal(in_slots_open(&m, dir, &opt, &err), -1);
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
		cmocka_unit_test(too_little_room_says_how_much_is_needed),
	};

	return cmocka_run_group_tests(tests, quiet, NULL);
}
