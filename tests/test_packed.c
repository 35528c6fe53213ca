/*
 * A model with packed experts: the same bits from whatever tier, those that the packed values promise, and no damaged byte or
 * strange tensor that goes unseen.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/checkpoint.h"
#include "engine/engine.h"
#include "engine/sweep.h"
#include "tests/support/packing.h"
#include "tests/support/temp_dir.h"

enum { N_IDS = 40 };

static int quiet(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	return 0;
}

struct rows {
	float *logits;
	size_t vocab;
};

static int keep_row(void *ctx, int64_t position, const float *row, struct err *err)
{
	struct rows *out = ctx;

	(void)err;
	memcpy(out->logits + (size_t)position * out->vocab, row, out->vocab * sizeof *row);
	return 0;
}

/* The logits of N_IDS positions, in chunks (0: at once). To be freed. */
static float *logits_of(const struct model *m, enum compute_profile compute, enum latent_format latents, int64_t chunk)
{
	struct engine_options opt = {.n_threads = 2, .compute = compute};
	struct session_options session = {.latents = latents};
	struct rows rows = {xmalloc(N_IDS * (size_t)m->config.vocab, sizeof(float)), (size_t)m->config.vocab};
	const struct session_tap tap = {.ctx = &rows, .logits = keep_row};
	struct engine *e = NULL;
	struct session *s = NULL;
	struct err err = {0};
	int32_t ids[N_IDS];

	for (int i = 0; i < N_IDS; i++)
		ids[i] = (i * 37 + 5) % m->config.vocab;
	if (engine_open(&e, &opt, &err) || session_new(&s, e, m, &session, &err))
		fail_msg("%s", err.text);
	for (int64_t i = 0, n; i < N_IDS; i += n) {
		n = chunk && chunk < N_IDS - i ? chunk : N_IDS - i;
		if (session_append(s, ids + i, (size_t)n, NULL, &tap, &err))
			fail_msg("%s", err.text);
	}
	session_free(s);
	engine_close(e);
	return rows.logits;
}

static int64_t slot_bytes(const char *dir)
{
	struct experts_options opt = {.bytes = (int64_t)1 << 30};
	struct model *m = packing_open(dir, "b", &opt);
	struct experts_stats stats;

	experts_stats(m->experts, &stats);
	assert_true(stats.sums_shipped);
	assert_int_equal(stats.trusted_first, 0);
	model_close(m);
	return stats.slot_bytes;
}

static void every_mix_of_tiers_gives_the_same_bits_in_both_profiles(void **state)
{
	static const int slots[] = {4, 5, 11, 1000};
	static const int64_t chunks[] = {0, 1, 7};
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o);
	int64_t bytes;

	(void)state;
	packing_pack(dir, "a", "b", NULL);
	bytes = slot_bytes(dir);
	for (int compute = 0; compute < 2; compute++) {
		struct model *all = packing_open(dir, "b", NULL);
		float *want = logits_of(all, (enum compute_profile)compute, LATENTS_BF16, 1);
		size_t vocab = (size_t)all->config.vocab;

		for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
			struct experts_options opt = {.bytes = slots[i] * bytes, .no_prediction = i % 2};
			struct model *m = packing_open(dir, "b", &opt);
			struct experts_stats stats;

			assert_memory_equal(m->fingerprint, all->fingerprint, sizeof m->fingerprint);
			for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
				float *got = logits_of(m, (enum compute_profile)compute, LATENTS_BF16, chunks[c]);

				assert_memory_equal(got, want, N_IDS * vocab * sizeof *got);
				free(got);
			}
			experts_stats(m->experts, &stats);
			assert_true(stats.reads > 0 && stats.retried == 0);
			model_close(m);
		}
		free(want);
		model_close(all);
	}
	temp_dir_free(dir);
}

/* An ingest's way through the layers, expert by expert. */
static void a_sweep_over_slots_gives_the_bits_of_a_model_that_is_loaded_whole(void **state)
{
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o);
	struct engine_options engine = {.n_threads = 2, .compute = COMPUTE_BF16};
	struct session_options session = {.latents = LATENTS_FP8};
	const struct sweep_options with = {.tile_tokens = 5};
	struct experts_options few;
	struct experts_stats stats;
	float want[331], got[331];
	struct model *all, *m;
	struct engine *e = NULL;
	struct session *a, *b;
	int32_t ids[90];
	struct sweep_sequence q = {.ids = ids, .n = 90, .last_logits = got};
	struct sweep *w;
	struct err err;
	int more;

	(void)state;
	packing_pack(dir, "a", "b", NULL);
	few = (struct experts_options){.bytes = 4 * slot_bytes(dir)};
	all = packing_open(dir, "b", NULL);
	m = packing_open(dir, "b", &few);
	for (int i = 0; i < 90; i++)
		ids[i] = (i * 37 + 11) % 331;
	assert_int_equal(engine_open(&e, &engine, &err), 0);
	assert_int_equal(session_new(&a, e, all, &session, &err), 0);
	assert_int_equal(session_new(&b, e, m, &session, &err), 0);
	assert_int_equal(session_append(a, ids, 90, want, NULL, &err), 0);
	q.session = b;
	assert_int_equal(sweep_begin(&w, &q, 1, &with, &err), 0);
	while ((more = sweep_step(w, &err)) > 0)
		;
	assert_int_equal(more, 0);
	assert_memory_equal(got, want, sizeof got);
	experts_stats(m->experts, &stats);
	assert_true(stats.reads > 0);
	sweep_end(w);
	session_free(a);
	session_free(b);
	engine_close(e);
	model_close(m);
	model_close(all);
	temp_dir_free(dir);
}

/*
 * Where a row is one group and its scale a power of two, the contract (ops.h) makes both the same sums: lanes run over the codes
 * as over the values, and the scale moves exponents alone. So a packed model is, to the bit, the bf16 one of its own values.
 */
static void a_packed_model_of_one_group_a_row_is_to_the_bit_the_one_of_its_own_values(void **state)
{
	struct synth_options o = packing_options(SYNTH_BF16);
	struct pack_report report;
	char *dir;

	(void)state;
	o.hidden = o.expert_dim = 64;
	dir = packing_prepare(&o);
	packing_copy(dir, "exact");
	packing_rewrite(dir, "BF16", packing_exact, NULL, "exact");
	report = packing_pack(dir, "exact", "b", NULL);
	assert_true(report.error == 0);
	for (int i = 0; i < 2; i++) {
		enum compute_profile compute = i ? COMPUTE_F32 : COMPUTE_BF16;
		struct experts_options few = {.bytes = 4 * slot_bytes(dir)};
		struct model *values = packing_open(dir, "exact", NULL), *packed = packing_open(dir, "b", NULL);
		struct model *tiered = packing_open(dir, "b", &few);
		size_t bytes = N_IDS * (size_t)values->config.vocab * sizeof(float);
		float *want = logits_of(values, compute, LATENTS_BF16, 1), *got = logits_of(packed, compute, LATENTS_BF16, 1);
		float *from_slots = logits_of(tiered, compute, LATENTS_BF16, 1);

		assert_int_equal(values->layers[2].experts[5].up.dtype, DTYPE_BF16);
		assert_int_equal(packed->layers[2].experts[5].up.dtype, DTYPE_INT4);
		assert_memory_equal(got, want, bytes);
		assert_memory_equal(from_slots, want, bytes);
		free(want);
		free(got);
		free(from_slots);
		model_close(values);
		model_close(packed);
		model_close(tiered);
	}
	temp_dir_free(dir);
}

/* The packed values themselves; exact in float32. */
static void fill_unpacked(void *ctx, const struct written_tensor *t, void *data, int64_t rows, int64_t cols)
{
	const struct model *packed = ctx;
	int layer, expert;
	char part[8];
	const struct weight *w;
	float *out = data;

	assert_int_equal(sscanf(t->name, "model.layers.%d.mlp.experts.%d.%7[a-z]", &layer, &expert, part), 3);
	w = !strcmp(part, "gate") ? &packed->layers[layer].experts[expert].gate
	    : !strcmp(part, "up") ? &packed->layers[layer].experts[expert].up
				  : &packed->layers[layer].experts[expert].down;
	for (int32_t r = 0; r < rows; r++)
		for (int32_t k = 0; k < cols; k++)
			out[r * cols + k] = (float)packing_value(w, r, k);
}

/* With several groups a row sums are taken in another order: no more than that may lie between the two. */
static void a_packed_model_is_near_the_one_of_its_own_values(void **state)
{
	struct synth_options o = packing_options(SYNTH_BF16);
	char *dir = packing_prepare(&o);
	struct model *packed, *values, *source;
	float *x, *y, *z;
	double off = 0, most = 0, lost = 0;

	(void)state;
	packing_pack(dir, "a", "b", NULL);
	packed = packing_open(dir, "b", NULL);
	packing_copy(dir, "values");
	packing_rewrite(dir, "F32", fill_unpacked, packed, "values");
	values = packing_open(dir, "values", NULL);
	source = packing_open(dir, "a", NULL);
	x = logits_of(packed, COMPUTE_F32, LATENTS_F32, 1);
	y = logits_of(values, COMPUTE_F32, LATENTS_F32, 1);
	z = logits_of(source, COMPUTE_F32, LATENTS_F32, 1);
	for (int i = 0; i < N_IDS * 331; i++) {
		off = fmax(off, fabs((double)x[i] - (double)y[i]));
		lost = fmax(lost, fabs((double)x[i] - (double)z[i]));
		most = fmax(most, fabs((double)y[i]));
	}
	assert_true(off < 1e-5 * most);
	assert_true(lost > 1e-3 * most); /* what packing loses is more: the comparison sees it */
	free(x);
	free(y);
	free(z);
	model_close(packed);
	model_close(values);
	model_close(source);
	temp_dir_free(dir);
}

/* ---- damage ------------------------------------------------------------------------------------------------------ */

/* Flip a bit of byte `at` of a tensor of "b". */
static void flip(const char *dir, const char *tensor, uint64_t at)
{
	char *b = temp_path(dir, "b");
	struct checkpoint *files;
	const struct tensor *t;
	unsigned char byte;
	int fd;

	assert_int_equal(checkpoint_open(&files, b, NULL), 0);
	t = checkpoint_find(files, tensor);
	assert_non_null(t);
	fd = open(t->file->path, O_RDWR | O_CLOEXEC);
	assert_int_equal(pread(fd, &byte, 1, (off_t)(t->offset + at)), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)(t->offset + at)), 1);
	assert_int_equal(fsync(fd), 0);
	close(fd);
	checkpoint_close(files);
	free(b);
}

static void a_flipped_bit_is_refused_with_its_layer_and_expert(void **state)
{
	static const struct {
		const char *part;
		uint64_t at;
	} places[] = {{"gate_proj.weight_packed", 0}, {"up_proj.weight_packed", 128 * 96 - 1}, {"down_proj.weight_packed", 777},
		      {"gate_proj.weight_scale", 0}, {"down_proj.weight_scale", 192 * 2 * 2 - 2}};
	struct synth_options o = packing_options(SYNTH_FP8);
	struct experts_options few;
	char *dir = packing_prepare(&o);

	(void)state;
	packing_pack(dir, "a", "b", NULL);
	few = (struct experts_options){.bytes = 4 * slot_bytes(dir)};
	for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
		char *tensor = xasprintf("model.layers.2.mlp.experts.6.%s", places[i].part);
		struct model *m;
		struct err err;

		flip(dir, tensor, places[i].at);
		assert_int_equal(packing_try_open(&m, dir, "b", NULL, &err), -1);
		packing_says(&err, ERR_DAMAGED, "layer 2, expert 6: the bytes read are not those that were packed");
		m = packing_open(dir, "b", &few);
		assert_int_equal(experts_take(m->experts, 2, 5, &err), 0);
		experts_done(m->experts, 2, 5, false);
		assert_int_equal(experts_take(m->experts, 2, 6, &err), -1);
		packing_says(&err, ERR_DAMAGED, "layer 2, expert 6");
		packing_says(&err, ERR_DAMAGED, "not those that were packed");
		assert_int_equal(experts_verify(m->experts, NULL, NULL, &err), -1);
		packing_says(&err, ERR_DAMAGED, "layer 2, expert 6");
		model_close(m);
		flip(dir, tensor, places[i].at);
		free(tensor);
	}
	model_close(packing_open(dir, "b", NULL));
	temp_dir_free(dir);
}

static void a_file_cut_short_is_refused_with_the_tensor_of_its_expert(void **state)
{
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *path;
	struct model *m;
	struct stat st;
	struct err err;

	(void)state;
	packing_pack(dir, "a", "b", NULL);
	path = temp_path(dir, "b/model-00003-of-00005.safetensors"); /* of layer 2: copies, layer 1, layer 2, ... */
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(truncate(path, st.st_size - 1), 0);
	assert_int_equal(packing_try_open(&m, dir, "b", NULL, &err), -1);
	packing_says(&err, ERR_FORMAT, "model.layers.2.mlp.experts.8.down_proj.weight_scale");
	packing_says(&err, ERR_FORMAT, "truncated");
	free(path);
	temp_dir_free(dir);
}

static void checksums_that_are_damaged_are_refused_and_without_them_first_reads_are_trusted(void **state)
{
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *path = temp_path(dir, "b/expert-sums"), *text;
	struct experts_options few;
	struct experts_stats stats;
	struct model *m;
	struct err err;
	uint64_t sum;
	size_t bytes;

	(void)state;
	packing_pack(dir, "a", "b", NULL);
	few = (struct experts_options){.bytes = 4 * slot_bytes(dir)};
	assert_int_equal(file_read(&text, &bytes, path, 1 << 20, NULL), 0);
	text[100] ^= 2;
	free(temp_file(dir, "b/expert-sums", text, bytes));
	assert_int_equal(packing_try_open(&m, dir, "b", NULL, &err), -1);
	packing_says(&err, ERR_DAMAGED, "expert-sums is damaged");
	assert_int_equal(packing_try_open(&m, dir, "b", &few, &err), -1);
	packing_says(&err, ERR_DAMAGED, "expert-sums is damaged");
	free(temp_file(dir, "b/expert-sums", text, bytes - 8));
	assert_int_equal(packing_try_open(&m, dir, "b", NULL, &err), -1);
	text[100] ^= 2;
	text[11] = '1'; /* sums of whole experts, once */
	sum = XXH3_64bits(text, bytes - 8);
	memcpy(text + bytes - 8, &sum, 8);
	free(temp_file(dir, "b/expert-sums", text, bytes));
	assert_int_equal(packing_try_open(&m, dir, "b", &few, &err), -1);
	packing_says(&err, ERR_MISMATCH, "expert-sums is of another version of quire");
	packing_says(&err, ERR_MISMATCH, "pack the model again");
	assert_int_equal(unlink(path), 0);
	m = packing_open(dir, "b", &few);
	assert_int_equal(experts_take(m->experts, 1, 0, &err), 0);
	experts_done(m->experts, 1, 0, false);
	experts_stats(m->experts, &stats);
	assert_false(stats.sums_shipped);
	assert_int_equal(stats.trusted_first, 1);
	model_close(m);
	free(text);
	free(path);
	temp_dir_free(dir);
}

/* ---- what the loader refuses of packed tensors -------------------------------------------------------------------- */

static void packed_tensors_of_another_shape_or_type_are_refused_by_name(void **state)
{
	static const char name[] = "model.layers.2.mlp.experts.6.up_proj.weight_packed";
	static const char scale[] = "model.layers.2.mlp.experts.6.up_proj.weight_scale";
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o);
	struct model *m;
	struct err err;

	(void)state;
	packing_pack(dir, "a", "b", NULL);
	for (int i = 0; i < 7; i++) {
		struct safetensors_writer w = {0};
		struct written_tensor *t;
		const int64_t shape[2] = {128, 192};
		char *single;

		for (int k = 1; k <= 5; k++) {
			char *path = xasprintf("%s/b/model-0000%d-of-00005.safetensors", dir, k);

			writer_load(&w, path);
			free(path);
		}
		if (i == 1)
			writer_remove(&w, scale);
		if (i == 2)
			writer_add(&w, "model.layers.2.mlp.experts.6.up_proj.weight", "BF16", 2, shape, NULL, 128 * 192 * 2);
		t = writer_find(&w, i == 4 ? scale : name);
		if (i == 3)
			strcpy(t->dtype, "U32");
		if (i == 4)
			strcpy(t->dtype, "F16");
		if (i == 5) {
			t->shape[0] = 64;
			t->shape[1] = 48;
		}
		if (i == 6)
			strcpy(writer_find(&w, "model.layers.2.mlp.shared_experts.up_proj.weight")->dtype, "INT4_G64");
		packing_copy(dir, "single");
		single = temp_path(dir, "single/model.safetensors");
		writer_save(&w, single);
		free(single);
		writer_free(&w);
		if (!i) {
			model_close(packing_open(dir, "single", NULL));
			continue;
		}
		assert_int_equal(packing_try_open(&m, dir, "single", NULL, &err), -1);
		packing_says(&err, ERR_FORMAT, i == 1   ? scale
					      : i == 2 ? "there are both"
					      : i == 3 ? "has dtype U32; int4 is read as I32"
					      : i == 4 ? "has dtype F16; int4 is read as I32"
					      : i == 5 ? "[64, 48], but config.json makes it [128, 24]"
						       : "INT4_G64");
	}
	temp_dir_free(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_mix_of_tiers_gives_the_same_bits_in_both_profiles),
		cmocka_unit_test(a_sweep_over_slots_gives_the_bits_of_a_model_that_is_loaded_whole),
		cmocka_unit_test(a_packed_model_of_one_group_a_row_is_to_the_bit_the_one_of_its_own_values),
		cmocka_unit_test(a_packed_model_is_near_the_one_of_its_own_values),
		cmocka_unit_test(a_flipped_bit_is_refused_with_its_layer_and_expert),
		cmocka_unit_test(a_file_cut_short_is_refused_with_the_tensor_of_its_expert),
		cmocka_unit_test(checksums_that_are_damaged_are_refused_and_without_them_first_reads_are_trusted),
		cmocka_unit_test(packed_tensors_of_another_shape_or_type_are_refused_by_name),
	};

	return cmocka_run_group_tests_name("packed", tests, quiet, NULL);
}
