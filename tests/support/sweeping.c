#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <string.h>

#include "config/mem.h"
#include "tests/support/golden.h"
#include "tests/support/sweeping.h"

struct engine *sweeping_engine(enum compute_profile compute)
{
	struct engine_options opt = {.n_threads = 2, .compute = compute};
	struct engine *e = NULL;
	struct err err = {0};

	if (engine_open(&e, &opt, &err))
		fail_msg("%s", err.text);
	return e;
}

struct model *sweeping_model(const char *checkpoint)
{
	char *dir = golden_dir(checkpoint);
	struct model *m = NULL;
	struct err err = {0};

	if (model_open(&m, dir, NULL, &err))
		fail_msg("%s", err.text);
	free(dir);
	return m;
}

struct session *sweeping_session_of(struct engine *e, const struct model *m, const struct session_options *opt)
{
	struct session *s = NULL;

	assert_int_equal(session_new(&s, e, m, opt, NULL), 0);
	return s;
}

struct session *sweeping_session(struct engine *e, const struct model *m, enum latent_format latents, bool keep)
{
	return sweeping_session_of(e, m, &(struct session_options){.latents = latents, .keep_records = keep});
}

void sweeping_append(struct session *s, const int32_t *ids, int64_t n, float *logits)
{
	struct err err = {0};

	if (n && session_append(s, ids, (size_t)n, logits, NULL, &err))
		fail_msg("%s", err.text);
}

size_t sweeping_budget(const struct engine *e, const struct model *m, enum latent_format latents, int64_t chunk)
{
	struct sweep_plan plan;

	if (!chunk)
		return 0;
	assert_int_equal(sweep_plan(&plan, &m->config, engine_compute(e), latents, chunk, 0, NULL), 0);
	return plan.scratch_bytes;
}

struct sweep *sweeping_begin(const struct sweep_sequence *q, int32_t n, const struct sweep_options *opt)
{
	struct sweep *w = NULL;
	struct err err = {0};

	if (sweep_begin(&w, q, n, opt, &err))
		fail_msg("%s", err.text);
	return w;
}

struct sweep *sweeping_begin_one(struct session *s, const int32_t *ids, int64_t n, float *last_logits,
			   const struct sweep_options *opt)
{
	const struct sweep_sequence q = {.session = s, .ids = ids, .n = n, .last_logits = last_logits};

	return sweeping_begin(&q, 1, opt);
}

void sweeping_run(struct sweep *w)
{
	struct err err = {0};

	if (sweep_run(w, NULL, NULL, &err))
		fail_msg("%s", err.text);
}

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
	struct sweep_store *t = ctx;

	(void)err;
	assert_true(n >= 1 && first == t->n_records[group]);
	assert_part(t->as, group, -1, first, n, records);
	t->n_records[group] += n;
	return 0;
}

static int take_index_keys(void *ctx, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys, struct err *err)
{
	struct sweep_store *t = ctx;

	(void)err;
	assert_true(n >= 1 && first == t->n_keys[index_layer]);
	assert_part(t->as, -1, index_layer, first, n, keys);
	t->n_keys[index_layer] += n;
	return 0;
}

int sweep_store_checkpoint(void *ctx, int32_t next_layer, size_t bytes, size_t at, const void *piece, size_t n,
			   struct err *err)
{
	struct sweep_store *t = ctx;

	(void)err;
	assert_true(n >= 1 && n <= bytes - at);
	t->piece_most = n > t->piece_most ? n : t->piece_most;
	if (++t->n_pieces == t->refused_piece)
		return 1;
	if (!at) {
		assert_true(next_layer > t->next_layer);
		t->next_layer = next_layer;
		t->residual = xrealloc(t->residual, bytes, 1);
		t->residual_bytes = bytes;
		t->residual_at = 0;
	}
	assert_true(next_layer == t->next_layer && bytes == t->residual_bytes && at == t->residual_at);
	memcpy(t->residual + at, piece, n);
	t->residual_at += n;
	t->n_checkpoints += t->residual_at == bytes;
	return 0;
}

int sweep_store_residual(void *ctx, size_t bytes, size_t at, void *piece, size_t n, struct err *err)
{
	struct sweep_store *t = ctx;

	(void)err;
	assert_int_equal(bytes, t->residual_bytes);
	assert_true(n >= 1 && n <= bytes - at);
	t->n_pieces++;
	t->piece_most = n > t->piece_most ? n : t->piece_most;
	memcpy(piece, t->residual + at, n);
	return 0;
}

static int give_records(void *ctx, int32_t group, int64_t first, int64_t n, uint8_t *out, int64_t *bad, struct err *err)
{
	struct sweep_store *t = ctx;

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
	struct sweep_store *t = ctx;

	(void)bad;
	(void)err;
	assert_true(n >= 1 && first >= 0 && first + n <= t->n_keys[index_layer]);
	export_part(t->as, -1, index_layer, first, n, out);
	return 0;
}

struct sweep_store sweep_store_of(const struct session *as, int64_t n)
{
	struct sweep_store t = {.as = as, .bad_group = -1};

	for (int32_t g = 0; g < session_layout(as)->n_groups; g++)
		t.n_records[g] = n;
	for (int32_t i = 0; i < session_layout(as)->n_index_layers; i++)
		t.n_keys[i] = n;
	return t;
}

void sweep_store_assert_has(const struct sweep_store *t, int64_t n)
{
	for (int32_t g = 0; g < session_layout(t->as)->n_groups; g++)
		assert_int_equal(t->n_records[g], n);
	for (int32_t i = 0; i < session_layout(t->as)->n_index_layers; i++)
		assert_int_equal(t->n_keys[i], n);
}

struct sweep_sink sweep_store_sink(struct sweep_store *t)
{
	return (struct sweep_sink){t, take_records, take_index_keys, NULL};
}

struct sweep_source sweep_store_source(struct sweep_store *t)
{
	return (struct sweep_source){t, give_records, give_index_keys};
}
