/*
 * The promise everything stands on: the same bits for any split of the tokens into calls, any number of threads, any
 * instruction set, and whether latents were computed or imported.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "config/mem.h"
#include "engine/ops.h"
#include "tests/support/golden.h"

static struct engine *open_engine_of(enum compute_profile compute, int n_threads, const char *isa)
{
	struct engine_options opt = {.n_threads = n_threads, .compute = compute, .isa = isa};
	struct engine *e = NULL;
	struct err err = {0};

	if (engine_open(&e, &opt, &err))
		fail_msg("%s", err.text);
	return e;
}

static struct engine *open_engine(int n_threads, const char *isa)
{
	return open_engine_of(COMPUTE_F32, n_threads, isa);
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

static void same_run(const struct golden_run *a, const struct golden_run *b, const struct golden_case *c)
{
	assert_memory_equal(a->logits, b->logits, (size_t)c->n_ids * (size_t)a->vocab * sizeof(float));
}

/* One case in one profile and latent format: all at once with one thread, and every other way. */
static void every_way_gives_the_same(const struct model *m, const struct golden_case *c, enum compute_profile compute,
				     enum latent_format latents)
{
	static const int64_t chunks[] = {1, 7, 64};
	const char *isas[8];
	int n_isas = cpu_isas(isas, 8);
	struct engine *one = open_engine_of(compute, 1, NULL);
	struct golden_run whole, part;

	golden_run(&whole, one, m, latents, c, 0);
	for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
		golden_run(&part, one, m, latents, c, chunks[i]);
		same_run(&whole, &part, c);
		golden_run_free(&part);
	}
	engine_close(one);
	for (int i = 0; i < n_isas; i++) {
		struct engine *e;

		if (!strcmp(isas[i], "scalar") && latents != LATENTS_BF16)
			continue; /* plain C is slow, and packing latents has nothing of a product */
		e = open_engine_of(compute, 2 + i, isas[i]);
		golden_run(&part, e, m, latents, c, i ? 0 : 50);
		same_run(&whole, &part, c);
		golden_run_free(&part);
		engine_close(e);
	}
	golden_run_free(&whole);
}

/* Chunks of 1 are decode: prefill and decode agree as a special case. */
static void logits_do_not_depend_on_chunks_threads_or_instructions(void **state)
{
	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		struct model *m = open_model(golden_checkpoints[k]);
		int n;
		struct golden_case *cases = golden_load(golden_checkpoints[k], m->config.vocab, &n);

		for (int compute = 0; compute < 2; compute++)
			for (int latents = 0; latents < N_LATENT_FORMATS; latents++)
				every_way_gives_the_same(m, &cases[n - 1], (enum compute_profile)compute,
							 (enum latent_format)latents);
		golden_free(cases, n);
		model_close(m);
	}
}

/* Copy the first n tokens of one session into another, in pieces, as a store would. */
static void carry_over(struct session *to, const struct session *from, int64_t n)
{
	const struct layout *l = session_layout(from);

	for (int64_t first = 0; first < n;) {
		int64_t part = n - first < 64 ? n - first : 64;

		for (int32_t g = 0; g < l->n_groups; g++) {
			uint8_t *records = xmalloc((size_t)part, layout_record_bytes(l, g));

			session_export_records(from, g, first, part, records);
			assert_int_equal(session_import_records(to, g, first, part, records, NULL), 0);
			free(records);
		}
		for (int32_t i = 0; i < l->n_index_layers; i++) {
			uint8_t *keys = xmalloc((size_t)part, l->index_key_bytes);

			session_export_index_keys(from, i, first, part, keys);
			assert_int_equal(session_import_index_keys(to, i, first, part, keys, NULL), 0);
			free(keys);
		}
		session_import_commit(to, part);
		first += part;
	}
}

static void a_warm_session_answers_with_the_bits_of_a_cold_one(void **state)
{
	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		struct model *m = open_model(golden_checkpoints[k]);
		/* The profiles in turn: each has both kinds of models. */
		struct engine *e = open_engine_of((enum compute_profile)(k / 2 % 2), 2, NULL);
		size_t bytes = (size_t)m->config.vocab * sizeof(float);
		float *cold = xmalloc(bytes, 1), *warm = xmalloc(bytes, 1);
		int n;
		struct golden_case *cases = golden_load(golden_checkpoints[k], m->config.vocab, &n);
		const struct golden_case *c = &cases[n - 1];
		size_t stored = (size_t)c->n_ids * 2 / 3, rest = (size_t)c->n_ids - stored;

		for (int latents = 0; latents < N_LATENT_FORMATS; latents++) {
			struct session *a = open_session(e, m, (enum latent_format)latents, true);
			struct session *b = open_session(e, m, (enum latent_format)latents, true);

			assert_int_equal(session_append(a, c->ids, stored, NULL, NULL, NULL), 0);
			carry_over(b, a, (int64_t)stored);
			assert_int_equal(session_n_tokens(b), (int64_t)stored);
			assert_int_equal(session_append(a, c->ids + stored, rest, cold, NULL, NULL), 0);
			assert_int_equal(session_append(b, c->ids + stored, rest, warm, NULL, NULL), 0);
			assert_memory_equal(cold, warm, bytes);
			session_free(a);
			session_free(b);
		}
		free(cold);
		free(warm);
		golden_free(cases, n);
		engine_close(e);
		model_close(m);
	}
}

static void a_truncated_session_is_as_if_the_rest_had_never_been(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(2, NULL);
	struct session *s = open_session(e, m, LATENTS_BF16, false);
	int32_t ids[100];
	float first[512], again[512];

	(void)state;
	for (int i = 0; i < 100; i++)
		ids[i] = i * 7 % 300;
	assert_int_equal(session_append(s, ids, 40, NULL, NULL, NULL), 0);
	assert_int_equal(session_append(s, ids + 40, 60, first, NULL, NULL), 0);
	session_truncate(s, 40);
	assert_int_equal(session_append(s, ids + 50, 33, NULL, NULL, NULL), 0);
	session_truncate(s, 40);
	assert_int_equal(session_append(s, ids + 40, 60, again, NULL, NULL), 0);
	assert_memory_equal(first, again, (size_t)m->config.vocab * sizeof *first);
	session_free(s);
	engine_close(e);
	model_close(m);
}

static void ids_outside_the_vocabulary_are_refused_and_change_nothing(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(1, NULL);
	struct session *s = open_session(e, m, LATENTS_BF16, false);
	const int32_t high[] = {1, 2, 350}, low[] = {-1};
	struct err err = {0};

	(void)state;
	assert_int_equal(session_append(s, high, 3, NULL, NULL, &err), -1);
	assert_string_equal(err.text, "token id 350 at position 2 is not below the vocabulary of 350");
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(session_append(s, low, 1, NULL, NULL, &err), -1);
	assert_int_equal(session_n_tokens(s), 0);
	session_free(s);
	engine_close(e);
	model_close(m);
}

static void a_session_does_not_grow_beyond_its_context(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(1, NULL);
	struct session_options opt = {.latents = LATENTS_BF16, .max_tokens = 20};
	struct session *s = NULL;
	int32_t ids[21] = {0};
	struct err err = {0};

	(void)state;
	assert_int_equal(session_new(&s, e, m, &opt, &err), 0);
	assert_int_equal(session_append(s, ids, 21, NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_string_equal(err.text, "21 tokens are more than the context of 20");
	assert_int_equal(session_append(s, ids, 20, NULL, NULL, &err), 0);
	assert_int_equal(session_append(s, ids, 1, NULL, NULL, &err), -1);
	assert_int_equal(session_n_tokens(s), 20);
	session_free(s);
	engine_close(e);
	model_close(m);
}

static void weights_that_overflow_are_an_error_naming_layer_and_position(void **state)
{
	struct model *m = open_model("glm5"); /* F32: the only one whose weights can be this large */
	struct engine *e = open_engine(2, NULL);
	struct session *s = open_session(e, m, LATENTS_BF16, false);
	float *row = (float *)(uintptr_t)m->layers[1].kv_a.data, logits[512];
	const int32_t ids[3] = {1, 2, 3};
	struct err err = {0};

	(void)state;
	row[0] = 3e38f;
	row[1] = -3e38f;
	row[2] = 3e38f;
	for (int32_t i = 0; i < m->config.hidden; i++)
		row[m->config.hidden * (m->config.kv_lora + 1) + i] = 3e38f; /* a rope value: not normed away */
	assert_int_equal(session_append(s, ids, 3, logits, NULL, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
	assert_non_null(strstr(err.text, "layer 1, position "));
	assert_non_null(strstr(err.text, "is not finite"));
	assert_int_equal(session_n_tokens(s), 0);
	session_free(s);
	engine_close(e);
	model_close(m);
}

static void a_filled_session_decodes_and_repeats(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(2, NULL);
	float a[512], b[512];
	const int32_t id = 5;

	(void)state;
	for (int round = 0; round < 2; round++) {
		struct session *s = open_session(e, m, LATENTS_FP8, false);

		assert_int_equal(session_fill(s, 1000, 3, NULL), 0);
		assert_int_equal(session_n_tokens(s), 1000);
		assert_int_equal(session_append(s, &id, 1, round ? b : a, NULL, NULL), 0);
		session_free(s);
	}
	assert_memory_equal(a, b, (size_t)m->config.vocab * sizeof *a);
	engine_close(e);
	model_close(m);
}

/* Everything a session keeps of its tokens, as stored: records of every group, then index keys. To be freed. */
static uint8_t *stored(const struct session *s, size_t *bytes)
{
	const struct layout *l = session_layout(s);
	int64_t n = session_n_tokens(s);
	uint8_t *all, *at;

	*bytes = (size_t)n * ((size_t)l->n_layers * l->row_bytes + (size_t)l->n_index_layers * l->index_key_bytes);
	at = all = xmalloc(*bytes, 1);
	for (int32_t g = 0; g < l->n_groups; g++) {
		session_export_records(s, g, 0, n, at);
		at += (size_t)n * layout_record_bytes(l, g);
	}
	for (int32_t i = 0; i < l->n_index_layers; i++) {
		session_export_index_keys(s, i, 0, n, at);
		at += (size_t)n * l->index_key_bytes;
	}
	return all;
}

static void what_fills_a_session_depends_on_seed_and_position_and_not_on_calls_or_threads(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *one = open_engine(1, NULL), *three = open_engine(3, NULL);

	(void)state;
	for (int format = 0; format < N_LATENT_FORMATS; format++) {
		struct session *a = open_session(one, m, (enum latent_format)format, true);
		struct session *b = open_session(three, m, (enum latent_format)format, true);
		struct session *other = open_session(three, m, (enum latent_format)format, true);
		uint8_t *bytes[3];
		size_t n;

		assert_int_equal(session_fill(a, 5000, 3, NULL), 0);
		assert_int_equal(session_fill(b, 17, 3, NULL), 0);
		assert_int_equal(session_fill(b, 4000, 3, NULL), 0);
		assert_int_equal(session_fill(b, 983, 3, NULL), 0);
		assert_int_equal(session_fill(other, 5000, 4, NULL), 0);
		bytes[0] = stored(a, &n);
		bytes[1] = stored(b, &n);
		bytes[2] = stored(other, &n);
		assert_memory_equal(bytes[0], bytes[1], n);
		assert_memory_not_equal(bytes[0], bytes[2], n);
		for (int i = 0; i < 3; i++)
			free(bytes[i]);
		session_free(a);
		session_free(b);
		session_free(other);
	}
	engine_close(one);
	engine_close(three);
	model_close(m);
}

/* So that a session filled for a measurement computes as one from a store does. */
static void what_filled_a_session_is_what_a_store_would_give_back(void **state)
{
	struct model *m = open_model("glm52");

	(void)state;
	for (int run = 0; run < 2 * N_LATENT_FORMATS; run++) {
		struct engine_options opt = {.n_threads = 2, .compute = run % 2 ? COMPUTE_BF16 : COMPUTE_F32};
		enum latent_format format = (enum latent_format)(run / 2);
		const int32_t id = 5;
		float a[512], b[512];
		struct engine *e = NULL;
		struct session *filled, *imported;
		const struct layout *l;
		uint8_t *all, *at;
		size_t bytes;

		assert_int_equal(engine_open(&e, &opt, NULL), 0);
		filled = open_session(e, m, format, true);
		imported = open_session(e, m, format, false);
		l = session_layout(filled);
		assert_int_equal(session_fill(filled, 300, 7, NULL), 0);
		at = all = stored(filled, &bytes);
		for (int32_t g = 0; g < l->n_groups; g++) {
			assert_int_equal(session_import_records(imported, g, 0, 300, at, NULL), 0);
			at += 300 * layout_record_bytes(l, g);
		}
		for (int32_t i = 0; i < l->n_index_layers; i++) {
			assert_int_equal(session_import_index_keys(imported, i, 0, 300, at, NULL), 0);
			at += 300 * l->index_key_bytes;
		}
		session_import_commit(imported, 300);
		assert_int_equal(session_append(filled, &id, 1, a, NULL, NULL), 0);
		assert_int_equal(session_append(imported, &id, 1, b, NULL, NULL), 0);
		assert_memory_equal(a, b, (size_t)m->config.vocab * sizeof *a);
		free(all);
		session_free(filled);
		session_free(imported);
		engine_close(e);
	}
	model_close(m);
}

static void a_fill_beyond_the_context_leaves_the_session_as_it_was(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(1, NULL);
	struct session_options opt = {.latents = LATENTS_BF16, .max_tokens = 100};
	struct session *s = NULL;
	struct err err = {0};

	(void)state;
	assert_int_equal(session_new(&s, e, m, &opt, NULL), 0);
	assert_int_equal(session_fill(s, 60, 1, &err), 0);
	assert_int_equal(session_fill(s, 41, 1, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(session_n_tokens(s), 60);
	assert_int_equal(session_fill(s, 40, 1, &err), 0);
	session_free(s);
	engine_close(e);
	model_close(m);
}

#if !defined __SANITIZE_ADDRESS__ /* whose shadow is more address space than any limit */
static rlim_t address_space_in_use(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	long pages;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%ld", &pages), 1);
	fclose(f);
	return (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
}

/* 200,000 positions are 59 MB an array: some arrays grow, one does not. */
static void a_session_that_cannot_grow_is_as_it_was(void **state)
{
	struct model *m = open_model("glm52");
	struct engine *e = open_engine(1, NULL);
	struct session *s = open_session(e, m, LATENTS_BF16, true);
	struct rlimit before, tight;
	rlim_t in_use;
	struct err err = {0};
	float a[512], b[512];
	const int32_t id = 5;

	(void)state;
	assert_int_equal(session_fill(s, 1000, 1, NULL), 0);
	assert_int_equal(session_append(s, &id, 1, a, NULL, NULL), 0);
	session_truncate(s, 1000);
	assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
	tight = before;
	in_use = address_space_in_use();
	tight.rlim_cur = in_use + (150 << 20);
	assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
	assert_int_equal(session_fill(s, 200000, 1, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "no memory for latents of the session"));
	assert_true(address_space_in_use() < in_use + (16 << 20)); /* those that had grown gave it back */
	assert_int_equal(session_n_tokens(s), 1000);
	assert_int_equal(session_append(s, &id, 1, b, NULL, NULL), 0);
	assert_memory_equal(a, b, (size_t)m->config.vocab * sizeof *a);
	session_truncate(s, 1000);
	assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
	assert_int_equal(session_fill(s, 2000, 1, &err), 0); /* and now it can */
	session_free(s);
	engine_close(e);
	model_close(m);
}
#endif

static void an_identity_changes_with_everything_a_latent_depends_on(void **state)
{
	struct model *a = open_model("glm52"), *b = open_model("glm52-fused");
	struct engine *e = open_engine(1, "scalar"), *fast = open_engine(2, NULL);
	uint8_t id[3][MODEL_ID_BYTES], same[MODEL_ID_BYTES];

	(void)state;
	engine_identity(e, a, LATENTS_BF16, id[0]);
	engine_identity(e, a, LATENTS_FP8, id[1]);
	engine_identity(e, b, LATENTS_BF16, id[2]);
	engine_identity(fast, a, LATENTS_BF16, same); /* threads and instruction set change no bit, so no identity */
	assert_memory_not_equal(id[0], id[1], MODEL_ID_BYTES);
	assert_memory_not_equal(id[0], id[2], MODEL_ID_BYTES);
	assert_memory_equal(id[0], same, MODEL_ID_BYTES);
	engine_close(e);
	engine_close(fast);
	model_close(a);
	model_close(b);
}

static void what_the_engine_cannot_do_it_refuses(void **state)
{
	struct engine_options isa = {.n_threads = 1, .isa = "sse9"};
	struct engine *e = NULL;
	struct err err = {0};

	(void)state;
	assert_int_equal(engine_open(&e, &isa, &err), -1);
	assert_non_null(strstr(err.text, "'sse9'"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(logits_do_not_depend_on_chunks_threads_or_instructions),
		cmocka_unit_test(a_warm_session_answers_with_the_bits_of_a_cold_one),
		cmocka_unit_test(a_truncated_session_is_as_if_the_rest_had_never_been),
		cmocka_unit_test(ids_outside_the_vocabulary_are_refused_and_change_nothing),
		cmocka_unit_test(a_session_does_not_grow_beyond_its_context),
		cmocka_unit_test(weights_that_overflow_are_an_error_naming_layer_and_position),
		cmocka_unit_test(a_filled_session_decodes_and_repeats),
		cmocka_unit_test(what_fills_a_session_depends_on_seed_and_position_and_not_on_calls_or_threads),
		cmocka_unit_test(what_filled_a_session_is_what_a_store_would_give_back),
		cmocka_unit_test(a_fill_beyond_the_context_leaves_the_session_as_it_was),
#if !defined __SANITIZE_ADDRESS__
		cmocka_unit_test(a_session_that_cannot_grow_is_as_it_was),
#endif
		cmocka_unit_test(an_identity_changes_with_everything_a_latent_depends_on),
		cmocka_unit_test(what_the_engine_cannot_do_it_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
