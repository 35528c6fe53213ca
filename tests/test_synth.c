/* Synthetic checkpoints: GLM-5.2's to the byte where it matters, tame, the same everywhere, and nothing left behind. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <cmocka.h>

#include "config/file.h"
#include "config/mem.h"
#include "daemon/model_verbs.h"
#include "engine/engine.h"
#include "engine/model_info.h"
#include "engine/numeric.h"
#include "engine/render.h"
#include "engine/synth.h"
#include "engine/tokenizer.h"
#include "tests/support/packing.h"
#include "tests/support/temp_dir.h"

/* Every dimension another number, none a multiple of a block or of another. */
static struct synth_options small(void)
{
	struct synth_options o = synth_glm52;

	o.n_dense_layers = 2;
	o.n_moe_layers = 6;
	o.hidden = 150;
	o.n_heads = 3;
	o.q_lora = 70;
	o.kv_lora = 50;
	o.nope_dim = 22;
	o.rope_dim = 10;
	o.v_dim = 26;
	o.dense_dim = 170;
	o.expert_dim = 44;
	o.n_experts = 9;
	o.experts_per_token = 4;
	o.index_n_heads = 5;
	o.index_dim = 34;
	o.index_topk = 7;
	o.vocab = 331;
	o.max_positions = 777;
	o.n_threads = 2;
	return o;
}

/* The same; int4 experts have inputs in whole groups. */
static struct synth_options small_in(int format)
{
	struct synth_options o = small();

	o.format = (enum synth_format)format;
	if (o.format == SYNTH_INT4) {
		o.hidden = 192;
		o.expert_dim = 64;
	}
	return o;
}

static struct model *written(const char *dir, const struct synth_options *o)
{
	struct err err = {0};
	struct model *m = NULL;

	if (synth_write(dir, o, NULL, &err) || model_open(&m, dir, NULL, &err))
		fail_msg("%s", err.text);
	return m;
}

/* Of 24 tokens, more than index_topk; every value has been checked to be finite on the way. */
static double largest_logit(const struct model *m)
{
	struct engine_options opt = {.n_threads = 2};
	struct session_options session = {.latents = LATENTS_BF16};
	struct engine *e = NULL;
	struct session *s = NULL;
	struct err err = {0};
	float *logits = xcalloc((size_t)m->config.vocab, sizeof *logits);
	int32_t ids[24];
	double most = 0;

	for (int i = 0; i < 24; i++)
		ids[i] = (i * 37 + 5) % m->config.vocab;
	if (engine_open(&e, &opt, &err) || session_new(&s, e, m, &session, &err) ||
	    session_append(s, ids, 24, logits, NULL, &err))
		fail_msg("%s", err.text);
	for (int32_t i = 0; i < m->config.vocab; i++)
		most = fmax(most, fabs((double)logits[i]));
	session_free(s);
	engine_close(e);
	free(logits);
	return most;
}

static void every_dimension_that_is_asked_for_is_in_the_model_that_opens(void **state)
{
	static const enum dtype experts[N_SYNTH_FORMATS] = {DTYPE_F8_E4M3, DTYPE_BF16, DTYPE_INT4};

	(void)state;
	for (int format = 0; format < N_SYNTH_FORMATS; format++) {
		struct synth_options o = small_in(format);
		char *dir = temp_dir_new();
		struct model *m;
		const struct model_config *c;
		FILE *out = fopen("/dev/null", "w");

		m = written(dir, &o);
		c = &m->config;
		assert_string_equal(c->architecture, "glm_moe_dsa");
		assert_int_equal(c->n_layers, 8);
		assert_int_equal(c->hidden, format == SYNTH_INT4 ? 192 : 150);
		assert_int_equal(c->n_heads, 3);
		assert_int_equal(c->q_lora, 70);
		assert_int_equal(c->kv_lora, 50);
		assert_int_equal(c->nope_dim, 22);
		assert_int_equal(c->rope_dim, 10);
		assert_int_equal(c->v_dim, 26);
		assert_int_equal(c->dense_dim, 170);
		assert_int_equal(c->expert_dim, format == SYNTH_INT4 ? 64 : 44);
		assert_int_equal(c->n_experts, 9);
		assert_int_equal(c->experts_per_token, 4);
		assert_int_equal(c->n_shared_experts, 1);
		assert_int_equal(c->index_n_heads, 5);
		assert_int_equal(c->index_dim, 34);
		assert_int_equal(c->index_topk, 7);
		assert_int_equal(c->vocab, 331);
		assert_int_equal(c->max_positions, 777);
		assert_true(c->layer_is_dense[1] && !c->layer_is_dense[2]);
		assert_int_equal(m->layers[3].experts[8].down.dtype, experts[format]);
		assert_int_equal(m->layers[3].mlp.down.dtype, format == SYNTH_BF16 ? DTYPE_BF16 : DTYPE_F8_E4M3);
		assert_int_equal(m->layers[3].router.dtype, DTYPE_BF16);
		assert_int_equal(m->bytes.other, 0); /* no tensor that nobody reads */
		assert_int_equal(model_info_print(out, dir, 1, NULL), 0);
		fclose(out);
		model_close(m);
		temp_dir_free(dir);
	}
}

static void the_schedule_is_glm52s_or_has_an_indexer_on_every_layer(void **state)
{
	struct synth_options o = small();

	(void)state;
	o.n_moe_layers = 10;
	for (int schedule = 0; schedule < N_SYNTH_SCHEDULES; schedule++) {
		char *dir = temp_dir_new();
		struct model *m;

		o.schedule = (enum synth_schedule)schedule;
		m = written(dir, &o);
		for (int i = 0; i < 12; i++)
			assert_int_equal(m->config.layer_is_full[i],
					 schedule == SYNTH_FULL || i < 3 || i == 6 || i == 10);
		model_close(m);
		temp_dir_free(dir);
	}
}

/* Sizes from the published checkpoint's own count: 743,377,019,904 parameters in 58,794 tensors without the MTP layer, of
 * which the 75 x 256 router biases are F32; one expert of the FP8 build is 37,757,952 bytes. */
static void the_defaults_are_glm52_to_the_byte(void **state)
{
	struct synth_options o = synth_glm52;
	struct synth_report all, fewer;

	(void)state;
	o.n_dense_layers = 3;
	o.n_moe_layers = 75;
	o.format = SYNTH_BF16;
	assert_int_equal(synth_measure(&all, &o, NULL), 0);
	assert_int_equal(all.bytes, 2 * 743377019904 + 2 * 75 * 256);
	assert_int_equal(all.n_tensors, 58794);

	o.format = SYNTH_FP8;
	o.n_moe_layers = 1;
	assert_int_equal(synth_measure(&all, &o, NULL), 0);
	o.n_experts = 255;
	assert_int_equal(synth_measure(&fewer, &o, NULL), 0);
	assert_int_equal(all.bytes - fewer.bytes, 37757952 + 2 * 6144 + 4);

	/* 37,748,736 weights of 4.25 bits. */
	o.format = SYNTH_INT4;
	assert_int_equal(synth_measure(&fewer, &o, NULL), 0);
	o.n_experts = 256;
	assert_int_equal(synth_measure(&all, &o, NULL), 0);
	assert_int_equal(all.bytes - fewer.bytes, 20054016 + 2 * 6144 + 4);
}

static void hidden_states_stay_tame_through_78_layers(void **state)
{
	(void)state;
	for (int format = 0; format < N_SYNTH_FORMATS; format++) {
		struct synth_options o = small_in(format);
		char *dir = temp_dir_new();
		struct model *m;
		double most;

		o.n_dense_layers = 3;
		o.n_moe_layers = 75;
		m = written(dir, &o);
		most = largest_logit(m);
		/* The head's rows have deviation 1 / sqrt(inputs) and its input about 1: logits do, too. */
		assert_true(most > 1 && most < 20);
		model_close(m);
		temp_dir_free(dir);
	}
}

/* The root mean square of a matrix, which must not have a mean. */
static double deviation(const struct weight *w)
{
	double sum = 0, squares = 0, n = (double)w->rows * w->cols;
	int64_t across = (w->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;

	for (int64_t r = 0; r < w->rows; r++) {
		for (int64_t k = 0; k < w->cols; k++) {
			int64_t i = r * w->cols + k;
			double x;

			if (w->dtype == DTYPE_INT4)
				x = packing_value(w, (int32_t)r, (int32_t)k);
			else if (w->dtype == DTYPE_BF16)
				x = (double)bf16_to_f32(((const uint16_t *)w->data)[i]);
			else
				x = (double)e4m3_to_f32(((const uint8_t *)w->data)[i]) *
				    (double)w->scale[r / WEIGHT_BLOCK * across + k / WEIGHT_BLOCK];
			sum += x;
			squares += x * x;
		}
	}
	assert_true(fabs(sum / n) < 0.05 * sqrt(squares / n));
	return sqrt(squares / n);
}

static void matrices_have_the_deviation_that_keeps_them_tame(void **state)
{
	(void)state;
	for (int format = 0; format < N_SYNTH_FORMATS; format++) {
		struct synth_options o = small_in(format);
		char *dir = temp_dir_new();
		struct model *m;
		double expected = 1 / sqrt(512), up, head, routed;

		o.n_moe_layers = 1;
		o.hidden = 512;
		o.dense_dim = 1000;
		o.expert_dim = 256;
		m = written(dir, &o);
		up = deviation(&m->layers[0].mlp.up) / expected;
		head = deviation(&m->head) / expected;
		routed = deviation(&m->layers[2].experts[5].gate) / expected;
		/* Block scales are drawn within a quarter of their middle: 32 of them. */
		assert_true(up > 0.9 && up < 1.15);
		assert_true(routed > (format == SYNTH_FP8 ? 0.85 : 0.98) && routed < (format == SYNTH_FP8 ? 1.2 : 1.02));
		assert_true(head > 0.98 && head < 1.02);
		model_close(m);
		temp_dir_free(dir);
	}
}

/* A model's fingerprint is a hash of every byte of tensors as small as these. */
static void assert_same_model(const struct synth_options *a, const struct synth_options *b, bool same)
{
	char *dirs[2] = {temp_dir_new(), temp_dir_new()};
	struct model *ma = written(dirs[0], a), *mb = written(dirs[1], b);

	assert_int_equal(!memcmp(ma->fingerprint, mb->fingerprint, MODEL_ID_BYTES), same);
	model_close(ma);
	model_close(mb);
	temp_dir_free(dirs[0]);
	temp_dir_free(dirs[1]);
}

static void a_seed_decides_every_weight_and_threads_and_shards_none(void **state)
{
	struct synth_options a = small(), b = small();

	(void)state;
	a.n_threads = 1;
	b.n_threads = 3;
	assert_same_model(&a, &b, true);
	b.shard_bytes = 100000;
	assert_same_model(&a, &b, true);
	b.seed = 2;
	assert_same_model(&a, &b, false);
}

/* What the first version wrote on x86-64. It must never change unseen, here or on another machine. */
static void the_bytes_are_the_same_on_every_machine(void **state)
{
	static const uint64_t expected[N_SYNTH_FORMATS] = {0x8f75a882a0e50040, 0x185ed6af0b84ed8a, 0x8cafb0905c0d4ee0};

	(void)state;
	for (int format = 0; format < N_SYNTH_FORMATS; format++) {
		struct synth_options o = small_in(format);
		char *dir = temp_dir_new(), *path = temp_path(dir, "model-00001-of-00001.safetensors"), *text;
		size_t bytes;

		assert_int_equal(synth_write(dir, &o, NULL, NULL), 0);
		assert_int_equal(file_read(&text, &bytes, path, 16 << 20, NULL), 0);
		assert_int_equal(XXH3_64bits(text, bytes), expected[format]);
		free(text);
		free(path);
		temp_dir_free(dir);
	}
}

static void files_of_a_shard_are_no_larger_than_asked_for(void **state)
{
	struct synth_options o = small();
	struct synth_report report;
	char *dir = temp_dir_new(), name[64];
	struct model *m = NULL;

	(void)state;
	o.shard_bytes = 300000;
	assert_int_equal(synth_write(dir, &o, &report, NULL), 0);
	assert_true(report.n_shards > 3);
	for (int i = 1; i <= report.n_shards; i++) {
		char *path, *text;
		size_t bytes;

		snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i, report.n_shards);
		path = temp_path(dir, name);
		assert_int_equal(file_read(&text, &bytes, path, 300000 + 100000, NULL), 0);
		free(text);
		free(path);
	}
	assert_int_equal(model_open(&m, dir, NULL, NULL), 0);
	model_close(m);
	temp_dir_free(dir);
}

static void the_tokenizer_gives_back_every_byte_and_has_the_published_ids(void **state)
{
	struct synth_options o = synth_glm52;
	struct tokenizer *t = NULL;
	struct ids ids = {0};
	struct bytes back = {0};
	struct err err = {0};
	char *text = synth_tokenizer_json(&o), every[256];

	(void)state;
	for (int i = 0; i < 256; i++)
		every[i] = (char)i;
	if (tokenizer_parse(&t, "tokenizer.json", text, strlen(text), &err) ||
	    tokenizer_encode(t, &ids, every, sizeof every, 0, &err))
		fail_msg("%s", err.text);
	tokenizer_decode(t, &back, ids.id, ids.n, 0);
	assert_int_equal(back.n, 256);
	assert_memory_equal(back.data, every, 256);
	assert_int_equal(tokenizer_added_id(t, "<|endoftext|>"), 154820);
	assert_int_equal(tokenizer_added_id(t, "[gMASK]"), 154822);
	assert_int_equal(tokenizer_added_id(t, "<|observation|>"), 154829);
	assert_int_equal(tokenizer_added_id(t, "</think>"), 154842);
	ids.n = 0;
	assert_int_equal(tokenizer_encode(t, &ids, "returning", 9, 0, &err), 0);
	assert_int_equal(ids.n, 2); /* return + ing: there are merges to do */
	ids_free(&ids);
	bytes_free(&back);
	tokenizer_close(t);
	free(text);
}

static void it_can_be_asked_as_glm52_is(void **state)
{
	struct synth_options o = small();
	char *dir = temp_dir_new(), *path = temp_path(dir, "tokenizer.json");
	struct model *m = written(dir, &o);
	struct tokenizer *t = NULL;
	struct renderer *r = NULL;
	struct err err = {0};
	size_t n;

	(void)state;
	if (tokenizer_open(&t, path, &err) || renderer_open(&r, dir, m->config.architecture, NULL, t, &err))
		fail_msg("%s", err.text);
	assert_string_equal(renderer_name(r), "glm-5.2");
	assert_ptr_not_equal(renderer_stop_ids(r, &n), NULL);
	assert_int_equal(n, m->config.n_eos);
	assert_memory_equal(renderer_stop_ids(r, &n), m->config.eos, n * sizeof m->config.eos[0]);
	renderer_close(r);
	tokenizer_close(t);
	model_close(m);
	free(path);
	temp_dir_free(dir);
}

/* ---- what is refused, and what is left behind ------------------------------------------------------------------- */

static void assert_refused(const char *dir, const struct synth_options *o, enum err_code code, const char *words)
{
	struct err err = {0};

	assert_int_equal(synth_write(dir, o, NULL, &err), -1);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, words))
		fail_msg("no '%s' in: %s", words, err.text);
}

static void a_directory_that_holds_anything_is_refused_and_left_alone(void **state)
{
	struct synth_options o = small();
	char *dir = temp_dir_new(), *mine = temp_text(dir, "mine", "precious"), *text;
	size_t bytes;

	(void)state;
	assert_refused(dir, &o, ERR_FAILED, "is not empty: it holds 'mine'");
	assert_int_equal(file_read(&text, &bytes, mine, 100, NULL), 0);
	assert_string_equal(text, "precious");
	assert_refused(mine, &o, ERR_IO, "Not a directory");
	free(text);
	free(mine);
	temp_dir_free(dir);
}

static void a_checkpoint_larger_than_the_disk_is_refused_with_both_numbers(void **state)
{
	struct synth_options o = synth_glm52;
	char *dir = temp_dir_new(), *out = temp_path(dir, "out");

	(void)state;
	o.n_moe_layers = 1;
	o.hidden = o.expert_dim = 1 << 18; /* 206 GB an expert */
	assert_refused(out, &o, ERR_TOO_LARGE, "bytes), but ");
	assert_int_equal(access(out, F_OK), -1);
	temp_dir_free(dir);
	free(out);
}

static void dimensions_that_make_no_model_are_refused_by_name_before_anything_is_made(void **state)
{
	char *dir = temp_dir_new(), *out = temp_path(dir, "out");
	struct synth_options o = small();

	(void)state;
	o.experts_per_token = 10;
	assert_refused(out, &o, ERR_USAGE, "num_experts_per_tok is 10, more than 9");
	o = small();
	o.rope_dim = 7;
	assert_refused(out, &o, ERR_USAGE, "qk_rope_head_dim is 7");
	o = small();
	o.vocab = 300;
	assert_refused(out, &o, ERR_USAGE, "a vocabulary of 300");
	o = small();
	o.format = SYNTH_INT4;
	assert_refused(out, &o, ERR_USAGE, "hidden size 150, expert dimension 44: int4 has a scale for each 64");
	o = small();
	o.n_moe_layers = 600;
	assert_refused(out, &o, ERR_USAGE, "2 dense and 600 MoE layers");
	assert_int_equal(access(out, F_OK), -1);
	temp_dir_free(dir);
	free(out);
}

/* A limit on the size of files stands in for a disk that fills up: the second shard cannot be written. */
static void what_was_written_before_an_error_is_removed(void **state)
{
	char *dir = temp_dir_new(), *out = temp_path(dir, "out");
	struct synth_options o = small();
	int status;
	pid_t child;

	(void)state;
	o.vocab = 1000; /* of 300 KB: the head, in the last shard, is the largest file */
	o.shard_bytes = 1;
	child = fork();
	if (!child) {
		struct rlimit limit = {200000, 200000};
		struct err err = {0};

		signal(SIGXFSZ, SIG_IGN);
		setrlimit(RLIMIT_FSIZE, &limit);
		_exit(synth_write(out, &o, NULL, &err) == -1 && strstr(err.text, "File too large") ? 7 : 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 7);
	assert_int_equal(access(out, F_OK), -1);
	temp_dir_free(dir);
	free(out);
}

static int verb(const char *const *words)
{
	char *argv[32];
	int argc = 0, status;

	while (words[argc]) {
		argv[argc] = xstrdup(words[argc]);
		argc++;
	}
	argv[argc] = NULL;
	status = model_verb(argc, argv);
	for (int i = 0; i < argc; i++)
		free(argv[i]);
	return status;
}

static void the_command_line_writes_a_model_that_opens(void **state)
{
	char *dir = temp_dir_new(), *out = temp_path(dir, "out");
	const char *const good[] = {"synth", out, "--moe-layers", "1", "--dense-layers=1", "--format", "bf16", "--hidden",
				    "64", "--heads", "2", "--q-lora", "32", "--kv-lora", "32", "--experts", "4",
				    "--experts-per-token", "2", "--expert-dim", "16", "--dense-dim", "32", "--vocab", "320",
				    "--seed", "9", NULL};
	const char *const bad[] = {"synth", out, "--moe-layers", "1", "--format", "int3", NULL};
	const char *const none[] = {"synth", out, NULL};
	struct model *m = NULL;

	(void)state;
	assert_int_equal(verb(bad), err_exit_status(ERR_USAGE));
	assert_int_equal(verb(none), err_exit_status(ERR_USAGE));
	assert_int_equal(access(out, F_OK), -1);
	assert_int_equal(verb(good), 0);
	assert_int_equal(model_open(&m, out, NULL, NULL), 0);
	assert_int_equal(m->config.hidden, 64);
	assert_int_equal(m->config.index_n_heads, 32); /* not named: GLM-5.2's */
	assert_int_equal(verb(good), err_exit_status(ERR_FAILED));
	model_close(m);
	temp_dir_free(dir);
	free(out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_dimension_that_is_asked_for_is_in_the_model_that_opens),
		cmocka_unit_test(the_schedule_is_glm52s_or_has_an_indexer_on_every_layer),
		cmocka_unit_test(the_defaults_are_glm52_to_the_byte),
		cmocka_unit_test(hidden_states_stay_tame_through_78_layers),
		cmocka_unit_test(matrices_have_the_deviation_that_keeps_them_tame),
		cmocka_unit_test(a_seed_decides_every_weight_and_threads_and_shards_none),
		cmocka_unit_test(the_bytes_are_the_same_on_every_machine),
		cmocka_unit_test(files_of_a_shard_are_no_larger_than_asked_for),
		cmocka_unit_test(the_tokenizer_gives_back_every_byte_and_has_the_published_ids),
		cmocka_unit_test(it_can_be_asked_as_glm52_is),
		cmocka_unit_test(a_directory_that_holds_anything_is_refused_and_left_alone),
		cmocka_unit_test(a_checkpoint_larger_than_the_disk_is_refused_with_both_numbers),
		cmocka_unit_test(dimensions_that_make_no_model_are_refused_by_name_before_anything_is_made),
		cmocka_unit_test(what_was_written_before_an_error_is_removed),
		cmocka_unit_test(the_command_line_writes_a_model_that_opens),
	};

	return cmocka_run_group_tests_name("synth", tests, NULL, NULL);
}
