/*
 * The MTP layer drafts what a float64 reference says (tests/golden/make_mtp.py), with the same bits however its rows come; and
 * who does not ask for it has the model as it was.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/experts.h"
#include "engine/internal.h"
#include "engine/mtp.h"
#include "tests/support/golden.h"

enum { N_DRAFTS = 3 }; /* as many as the files have */

static const struct subject {
	const char *name, *model;
} subjects[] = {
	{"glm52", "tests/golden/glm52"},             /* later drafts share a choice */
	{"deepseek_v3", "tests/golden/deepseek_v3"}, /* no indexer; an embedding and a head of its own */
	{"pocket", "tests/pocket/model/bf16"},       /* trained */
};
enum { N_SUBJECTS = sizeof subjects / sizeof subjects[0] };

/* A subject, what its files say, and the model's outputs. */
struct bench {
	struct model *m;
	struct engine *e;
	int32_t *ids, n_ids, *rows, n_rows, *drafts, n_drafts; /* drafts: [n_drafts][1 + N_DRAFTS], the row first */
	float *logits;                /* [n_rows, vocab] of first drafts */
	float *outputs;               /* [n_ids, hidden] */
};

static char *read_golden(const char *name, const char *suffix, size_t *bytes)
{
	char *path = xasprintf("tests/golden/%s/mtp.%s", name, suffix), *text;
	struct err err = {0};

	if (file_read(&text, bytes, path, 1 << 20, &err))
		fail_msg("%s", err.text);
	free(path);
	return text;
}

static int32_t *numbers(const char *name, const char *suffix, int32_t *n)
{
	size_t bytes;
	char *text = read_golden(name, suffix, &bytes), *save;
	int32_t *out = xcalloc(bytes + 1, sizeof *out);

	*n = 0;
	for (char *p = strtok_r(text, " \n", &save); p; p = strtok_r(NULL, " \n", &save))
		out[(*n)++] = atoi(p);
	free(text);
	return out;
}

static struct model *open_model(const char *dir, bool mtp)
{
	struct model_options opt = {.mtp = mtp};
	struct model *m;
	struct err err = {0};

	if (model_open(&m, dir, &opt, &err))
		fail_msg("%s", err.text);
	return m;
}

static struct engine *open_engine(enum compute_profile compute, int n_threads, const char *isa)
{
	struct engine_options opt = {.n_threads = n_threads, .compute = compute, .isa = isa};
	struct engine *e;

	assert_int_equal(engine_open(&e, &opt, NULL), 0);
	return e;
}

static int keep_row(void *ctx, int64_t position, const float *row, struct err *err)
{
	struct bench *b = ctx;

	(void)err;
	memcpy(b->outputs + position * b->m->config.hidden, row, (size_t)b->m->config.hidden * sizeof *row);
	return 0;
}

static struct bench begin(const struct subject *s, enum compute_profile compute)
{
	struct bench b = {.m = open_model(s->model, true), .e = open_engine(compute, 2, NULL)};
	struct session_options opt = {.latents = compute == COMPUTE_F32 ? LATENTS_F32 : LATENTS_BF16};
	struct session_tap tap = {.ctx = &b, .output = keep_row};
	struct session *session;
	size_t bytes;

	b.ids = numbers(s->name, "ids", &b.n_ids);
	b.rows = numbers(s->name, "rows", &b.n_rows);
	b.drafts = numbers(s->name, "drafts", &b.n_drafts);
	assert_true(b.n_drafts && b.n_drafts % (1 + N_DRAFTS) == 0);
	b.n_drafts /= 1 + N_DRAFTS;
	b.logits = (float *)(void *)read_golden(s->name, "logits", &bytes);
	assert_int_equal(bytes, (size_t)b.n_rows * (size_t)b.m->config.vocab * sizeof(float));
	b.outputs = xcalloc((size_t)b.n_ids * (size_t)b.m->config.hidden, sizeof *b.outputs);
	assert_int_equal(session_new(&session, b.e, b.m, &opt, NULL), 0);
	assert_int_equal(session_append(session, b.ids, (size_t)b.n_ids, NULL, &tap, NULL), 0);
	session_free(session);
	return b;
}

static void end(struct bench *b)
{
	free(b->ids);
	free(b->rows);
	free(b->drafts);
	free(b->logits);
	free(b->outputs);
	engine_close(b->e);
	model_close(b->m);
}

static struct drafter *open_drafter(struct engine *e, const struct model *m)
{
	struct drafter *d;
	struct err err = {0};

	if (drafter_new(&d, e, m, engine_compute(e) == COMPUTE_F32 ? LATENTS_F32 : LATENTS_BF16, &err))
		fail_msg("%s", err.text);
	return d;
}

struct rows {
	float *logits;
	int64_t n;
	int32_t vocab;
};

static int keep_logits(void *ctx, int64_t position, const float *row, struct err *err)
{
	struct rows *r = ctx;

	(void)err;
	assert_int_equal(position, r->n++);
	memcpy(r->logits + position * r->vocab, row, (size_t)r->vocab * sizeof *row);
	return 0;
}

/* Logits [n_ids - 1, vocab] of the first drafts of all rows, appended `chunk` at a time. */
static float *first_drafts(const struct bench *b, struct engine *e, int64_t chunk)
{
	int64_t n = b->n_ids - 1;
	struct rows rows = {xcalloc((size_t)n * (size_t)b->m->config.vocab, sizeof(float)), 0, b->m->config.vocab};
	struct session_tap tap = {.ctx = &rows, .logits = keep_logits};
	struct drafter *d = open_drafter(e, b->m);

	for (int64_t i = 0; i < n; i += chunk)
		assert_int_equal(drafter_append(d, b->outputs + i * b->m->config.hidden, b->ids + i + 1,
						(size_t)(n - i < chunk ? n - i : chunk), &tap, NULL), 0);
	assert_int_equal(drafter_n_rows(d), n);
	drafter_free(d);
	return rows.logits;
}

/* max |a - b| / max |b| over the rows that are stored. */
static double error_of_first_drafts(const struct bench *b)
{
	int64_t vocab = b->m->config.vocab;
	float *got = first_drafts(b, b->e, b->n_ids), largest = 0, off = 0;

	for (int32_t i = 0; i < b->n_rows; i++)
		for (int64_t k = 0; k < vocab; k++) {
			float wanted = b->logits[i * vocab + k], x = got[b->rows[i] * vocab + k] - wanted;

			largest = wanted > largest ? wanted : -wanted > largest ? -wanted : largest;
			off = x > off ? x : -x > off ? -x : off;
		}
	free(got);
	return (double)(off / largest);
}

/* Drafts that differ from those of the files. */
static int n_wrong_drafts(const struct bench *b)
{
	struct drafter *d = open_drafter(b->e, b->m);
	int wrong = 0;

	for (int32_t i = 0; i < b->n_drafts; i++) {
		const int32_t *wanted = b->drafts + i * (1 + N_DRAFTS);
		int64_t from = drafter_n_rows(d);
		int32_t got[N_DRAFTS];

		assert_int_equal(drafter_append(d, b->outputs + from * b->m->config.hidden, b->ids + from + 1,
						(size_t)(wanted[0] + 1 - from), NULL, NULL), 0);
		assert_int_equal(drafter_draft(d, got, N_DRAFTS, NULL), 0);
		for (int k = 0; k < N_DRAFTS; k++)
			wrong += got[k] != wanted[1 + k];
	}
	drafter_free(d);
	return wrong;
}

/* Logits of 8 layers and one: float32 against float64, as the goldens of the model (golden/README.md). */
static void drafts_are_what_the_reference_says(void **state)
{
	(void)state;
	for (int i = 0; i < N_SUBJECTS; i++) {
		struct bench b = begin(&subjects[i], COMPUTE_F32);
		double error = error_of_first_drafts(&b);

		print_message("%s: error of first drafts %.1e of the largest logit; %d drafts\n", subjects[i].name, error,
			      b.n_drafts * N_DRAFTS);
		assert_true(error < 1e-4);
		assert_int_equal(n_wrong_drafts(&b), 0);
		end(&b);
	}
}

static void bits_do_not_depend_on_how_rows_come_threads_or_instructions(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++)
		for (int compute = 0; compute < 2; compute++) {
			struct bench b = begin(&subjects[i], (enum compute_profile)compute);
			size_t bytes = (size_t)(b.n_ids - 1) * (size_t)b.m->config.vocab * sizeof(float);
			float *whole = first_drafts(&b, b.e, b.n_ids);
			const char *isas[CPU_MAX_ISAS];
			int n_isas = cpu_isas(isas, CPU_MAX_ISAS);

			for (int k = 0; k < n_isas; k++) {
				static const int64_t chunks[] = {1, 7, 64};
				struct engine *e = open_engine((enum compute_profile)compute, 1 + 2 * k, isas[k]);
				float *part = first_drafts(&b, e, chunks[k % 3]);

				assert_memory_equal(part, whole, bytes);
				free(part);
				engine_close(e);
			}
			free(whole);
			end(&b);
		}
}

/* Drafts leave nothing behind: of two drafters of the same rows one has drafted after each. */
static void a_drafter_that_has_drafted_goes_on_as_if_it_had_not(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) {
		struct bench b = begin(&subjects[i], COMPUTE_BF16);
		struct drafter *quiet = open_drafter(b.e, b.m), *busy = open_drafter(b.e, b.m);
		int32_t one[N_DRAFTS], other[N_DRAFTS], hidden = b.m->config.hidden;

		for (int32_t k = 0; k < 60; k++) {
			assert_int_equal(drafter_append(busy, b.outputs + k * hidden, b.ids + k + 1, 1, NULL, NULL), 0);
			assert_int_equal(drafter_draft(busy, other, N_DRAFTS, NULL), 0);
			assert_int_equal(drafter_n_rows(busy), k + 1);
		}
		assert_int_equal(drafter_append(quiet, b.outputs, b.ids + 1, 60, NULL, NULL), 0);
		assert_int_equal(drafter_draft(quiet, one, N_DRAFTS, NULL), 0);
		assert_memory_equal(one, other, sizeof one);
		/* What is forgotten and appended again is as it was. */
		drafter_truncate(busy, 20);
		assert_int_equal(drafter_append(busy, b.outputs + 20 * hidden, b.ids + 21, 40, NULL, NULL), 0);
		assert_int_equal(drafter_draft(busy, other, N_DRAFTS, NULL), 0);
		assert_memory_equal(one, other, sizeof one);
		drafter_free(quiet);
		drafter_free(busy);
		end(&b);
	}
}

/* ---- mistakes that engines have made, from outside ----------------------------------------------------------------- */

static void swap_norms(struct bench *b)
{
	const float *norm = b->m->mtp->enorm;

	b->m->mtp->enorm = b->m->mtp->hnorm;
	b->m->mtp->hnorm = norm;
}

static void take_outputs_before_their_norm(struct bench *b)
{
	for (int64_t i = 0; i < (int64_t)b->n_ids * b->m->config.hidden; i++)
		b->outputs[i] /= b->m->final_norm[i % b->m->config.hidden];
}

static void use_the_models_last_norm(struct bench *b)
{
	b->m->mtp->norm = b->m->final_norm;
}

static void use_the_models_head(struct bench *b)
{
	b->m->mtp->head = b->m->head;
}

static void use_the_models_embedding(struct bench *b)
{
	b->m->mtp->embedding = b->m->embedding;
}

static void mistakes_are_noticed(void **state)
{
	static const struct {
		const char *name;
		int subject;
		void (*make)(struct bench *b);
	} mistakes[] = {
		{"enorm and hnorm swapped", 0, swap_norms},
		{"outputs before their norm", 0, take_outputs_before_their_norm},
		{"the model's norm before the head", 0, use_the_models_last_norm},
		{"the model's head", 1, use_the_models_head},
		{"the model's embedding", 1, use_the_models_embedding},
	};

	(void)state;
	for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
		struct bench b = begin(&subjects[mistakes[i].subject], COMPUTE_F32);
		double error;

		mistakes[i].make(&b);
		error = error_of_first_drafts(&b);
		print_message("%-40s error %.2g\n", mistakes[i].name, error);
		assert_true(error > 1e-2);
		end(&b);
	}
}

static void later_drafts_that_choose_for_themselves_are_noticed(void **state)
{
	struct bench b = begin(&subjects[0], COMPUTE_F32);

	(void)state;
	assert_true(b.m->config.mtp_shares_choice);
	b.m->config.mtp_shares_choice = false;
	assert_true(n_wrong_drafts(&b) > 0);
	end(&b);
}

static void position_0_has_no_embedding(void **state)
{
	struct bench b = begin(&subjects[0], COMPUTE_F32);
	struct drafter *d = open_drafter(b.e, b.m);
	int32_t id = 5, other = 7, drafts[2][N_DRAFTS];

	(void)state;
	assert_int_equal(drafter_append(d, b.outputs, &id, 1, NULL, NULL), 0);
	assert_int_equal(drafter_draft(d, drafts[0], N_DRAFTS, NULL), 0);
	drafter_truncate(d, 0);
	assert_int_equal(drafter_append(d, b.outputs, &other, 1, NULL, NULL), 0);
	assert_int_equal(drafter_draft(d, drafts[1], N_DRAFTS, NULL), 0);
	assert_memory_equal(drafts[0], drafts[1], sizeof drafts[0]);
	drafter_free(d);
	end(&b);
}

/* ---- who asks ------------------------------------------------------------------------------------------------------ */

static void the_model_is_the_same_with_and_without_it(void **state)
{
	(void)state;
	for (int i = 0; i < N_SUBJECTS; i++) {
		struct model *with = open_model(subjects[i].model, true), *without = open_model(subjects[i].model, false);

		assert_null(without->mtp);
		assert_non_null(with->mtp);
		assert_memory_equal(with->fingerprint, without->fingerprint, MODEL_ID_BYTES);
		assert_memory_equal(&with->bytes, &without->bytes, sizeof with->bytes);
		/* Vectors are widened and all is aligned: no less than on disk, and not much more. */
		assert_true(with->loaded_bytes >= without->loaded_bytes + with->bytes.mtp);
		assert_true(with->loaded_bytes < without->loaded_bytes + with->bytes.mtp * 3 / 2);
		model_close(with);
		model_close(without);
	}
}

/* A tier keeps the model's experts in their files; those of the layer are in memory. */
static void drafts_are_the_same_with_a_tier_of_experts(void **state)
{
	struct bench b = begin(&subjects[0], COMPUTE_BF16);
	struct experts_options experts = {.bytes = (int64_t)1 << 30};
	struct model_options opt = {.mtp = true, .experts = &experts};
	size_t bytes = (size_t)(b.n_ids - 1) * (size_t)b.m->config.vocab * sizeof(float);
	float *all = first_drafts(&b, b.e, b.n_ids), *tiered;
	struct err err = {0};

	(void)state;
	model_close(b.m);
	if (model_open(&b.m, subjects[0].model, &opt, &err))
		fail_msg("%s", err.text);
	assert_non_null(b.m->experts);
	tiered = first_drafts(&b, b.e, b.n_ids);
	assert_memory_equal(all, tiered, bytes);
	free(all);
	free(tiered);
	end(&b);
}

static void a_model_without_the_layer_says_so(void **state)
{
	struct model_options opt = {.mtp = true};
	struct session_options session = {.latents = LATENTS_BF16};
	struct engine *e = open_engine(COMPUTE_BF16, 1, NULL);
	struct drafter *d;
	struct model *m;
	struct err err = {0};

	(void)state;
	assert_int_equal(model_open(&m, "tests/golden/glm5", &opt, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_string_equal(err.text, "tests/golden/glm5: config.json has num_nextn_predict_layers 0; what drafts is a model with "
				      "one MTP layer");
	m = open_model("tests/golden/glm5", false);
	assert_int_equal(drafter_new(&d, e, m, session.latents, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_string_equal(err.text, "tests/golden/glm5: nothing drafts: the model has no MTP layer");
	model_close(m);
	m = open_model("tests/golden/glm52", false);
	assert_int_equal(drafter_new(&d, e, m, session.latents, &err), -1);
	assert_string_equal(err.text, "tests/golden/glm52: nothing drafts: its MTP layer was not loaded");
	model_close(m);
	engine_close(e);
}

static void an_id_out_of_range_is_refused_and_leaves_the_rows(void **state)
{
	struct bench b = begin(&subjects[0], COMPUTE_BF16);
	struct drafter *d = open_drafter(b.e, b.m);
	int32_t bad = b.m->config.vocab;
	struct err err = {0};

	(void)state;
	assert_int_equal(drafter_append(d, b.outputs, b.ids + 1, 3, NULL, NULL), 0);
	assert_int_equal(drafter_append(d, b.outputs, &bad, 1, NULL, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_string_equal(err.text, "MTP layer: token id 350 at position 3 is not below the vocabulary of 350");
	assert_int_equal(drafter_n_rows(d), 3);
	drafter_free(d);
	end(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(drafts_are_what_the_reference_says),
		cmocka_unit_test(bits_do_not_depend_on_how_rows_come_threads_or_instructions),
		cmocka_unit_test(a_drafter_that_has_drafted_goes_on_as_if_it_had_not),
		cmocka_unit_test(mistakes_are_noticed),
		cmocka_unit_test(later_drafts_that_choose_for_themselves_are_noticed),
		cmocka_unit_test(position_0_has_no_embedding),
		cmocka_unit_test(the_model_is_the_same_with_and_without_it),
		cmocka_unit_test(drafts_are_the_same_with_a_tier_of_experts),
		cmocka_unit_test(a_model_without_the_layer_says_so),
		cmocka_unit_test(an_id_out_of_range_is_refused_and_leaves_the_rows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
