/*
 * A session whose latents stay at a source gives the bits of one that holds them all: whatever the budget, however the
 * tokens are split, and whatever of it the source cannot give.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "config/mem.h"
#include "tests/support/golden.h"
#include "tests/support/sanitized.h"

enum { SPAN = 64, KEYS_PART = 100 };

/* What a store would have: the first n tokens of some ids, as one session computed them. */
struct stored {
	const struct layout *layout;
	int64_t n;
	uint8_t **records;   /* [n_groups] */
	uint8_t **keys;      /* [n_index_layers] */
	/* What it was asked: */
	int64_t n_calls, n_records, n_keys;
	int32_t widest;      /* positions in one call */
	/* What it refuses: a token's records in a group, or its index keys; -1: nothing. */
	int64_t bad_token, bad_key_token;
	int32_t bad_group;
	enum err_code code;
	bool nameless;       /* it does not say which */
	int64_t n_lost, lost_first[64], lost_n[64];
};

static struct engine *open_engine(enum compute_profile compute, int n_threads)
{
	struct engine_options opt = {.n_threads = n_threads, .compute = compute};
	struct engine *e = NULL;
	struct err err = {0};

	if (engine_open(&e, &opt, &err))
		fail_msg("%s", err.text);
	return e;
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

static void store_new(struct stored *st, struct session *s, const int32_t *ids, int64_t n)
{
	const struct layout *l = session_layout(s);
	struct err err = {0};

	*st = (struct stored){.layout = l, .n = n, .bad_token = -1, .bad_key_token = -1, .code = ERR_DAMAGED};
	if (session_append(s, ids, (size_t)n, NULL, NULL, &err))
		fail_msg("%s", err.text);
	st->records = xcalloc((size_t)l->n_groups, sizeof *st->records);
	st->keys = xcalloc((size_t)l->n_index_layers + 1, sizeof *st->keys);
	for (int32_t g = 0; g < l->n_groups; g++) {
		st->records[g] = xmalloc((size_t)n, layout_record_bytes(l, g));
		session_export_records(s, g, 0, n, st->records[g]);
	}
	for (int32_t i = 0; i < l->n_index_layers; i++) {
		st->keys[i] = xmalloc((size_t)n, l->index_key_bytes);
		session_export_index_keys(s, i, 0, n, st->keys[i]);
	}
}

static void store_free(struct stored *st)
{
	for (int32_t g = 0; g < st->layout->n_groups; g++)
		free(st->records[g]);
	for (int32_t i = 0; i < st->layout->n_index_layers; i++)
		free(st->keys[i]);
	free(st->records);
	free(st->keys);
}

static int refuse(const struct stored *st, int64_t position, int64_t *bad, struct err *err)
{
	if (!st->nameless)
		*bad = position;
	return err_set(err, st->code, "the store has nothing good for %lld", (long long)position);
}

/* In parts, the last one first. */
static int give_keys(void *ctx, int32_t first_layer, int32_t n_layers, int64_t first, int64_t n, latent_taker *take,
		     void *taker, int64_t *bad, struct err *err)
{
	struct stored *st = ctx;
	size_t bytes = st->layout->index_key_bytes;

	assert_true(n >= 1 && first >= 0 && first + n <= st->n);
	if (st->bad_key_token >= first && st->bad_key_token < first + n)
		return refuse(st, st->bad_key_token, bad, err);
	for (int32_t layer = first_layer + n_layers; layer-- > first_layer; )
		for (int64_t end = n, at; end; end = at) {
			at = end > KEYS_PART ? end - KEYS_PART : 0;
			if (take(taker, layer, first + at, end - at, st->keys[layer] + (size_t)(first + at) * bytes, bad, err))
				return -1;
		}
	st->n_keys += n * n_layers;
	return 0;
}

static int give_records(void *ctx, int32_t group, const int32_t *positions, int64_t n, uint8_t *out, int64_t *bad,
			struct err *err)
{
	struct stored *st = ctx;
	size_t bytes = layout_record_bytes(st->layout, group);

	assert_true(n >= 1);
	st->n_calls++;
	st->widest = n > st->widest ? (int32_t)n : st->widest;
	for (int64_t i = 0; i < n; i++) {
		assert_true(positions[i] >= 0 && positions[i] < st->n && (!i || positions[i] > positions[i - 1]));
		if (positions[i] == st->bad_token && group == st->bad_group)
			return refuse(st, positions[i], bad, err);
		memcpy(out + (size_t)i * bytes, st->records[group] + (size_t)positions[i] * bytes, bytes);
	}
	st->n_records += n;
	return 0;
}

static void note_loss(void *ctx, int64_t first, int64_t n, const struct err *why)
{
	struct stored *st = ctx;

	assert_int_equal(why->code, st->code);
	assert_true(st->n_lost < 64);
	st->lost_first[st->n_lost] = first;
	st->lost_n[st->n_lost++] = n;
}

static struct latent_source source_of(struct stored *st)
{
	return (struct latent_source){st, give_keys, give_records, note_loss};
}

/* As a caller does it: what was lost is computed again, lowest first, until nothing is. */
static void mend(struct session *s, const int32_t *ids)
{
	int64_t first, n;
	struct err err;

	for (int i = 0; session_lost(s, &first, &n); i++) {
		assert_true(i < 1000);
		if (session_recompute(s, ids + first, first, n, &err))
			assert_true(session_lost(s, &first, &n));
	}
}

static void append(struct session *s, const int32_t *ids, int64_t first, int64_t n, float *logits)
{
	struct err err = {0};
	int64_t lost, n_lost;

	while (session_append(s, ids + first, (size_t)n, logits, NULL, &err)) {
		if (!session_lost(s, &lost, &n_lost))
			fail_msg("%s", err.text);
		assert_int_equal(session_n_tokens(s), first);
		mend(s, ids);
	}
}

/* Logits [n - stored, vocab] of the tokens after the stored ones, from a session that has those. */
static float *logits_after(struct session *s, const struct model *m, const int32_t *ids, int64_t stored, int64_t n, int64_t chunk)
{
	size_t vocab = (size_t)m->config.vocab;
	float *logits = xcalloc((size_t)(n - stored) * vocab, sizeof *logits);

	for (int64_t i = stored, part; i < n; i += part) {
		part = n - i < chunk ? n - i : chunk;
		append(s, ids, i, part, logits + (size_t)(i + part - 1 - stored) * vocab);
	}
	return logits;
}

/* The rows of two such runs that both have: the last of each chunk. */
static void same_rows(const float *whole, const float *part, int64_t n, int64_t chunk, size_t vocab)
{
	for (int64_t i = 0; i < n; i += chunk) {
		int64_t row = i + chunk < n ? i + chunk - 1 : n - 1;

		assert_memory_equal(whole + (size_t)row * vocab, part + (size_t)row * vocab, vocab * sizeof *whole);
	}
}

static size_t position_bytes(const struct model *m, const struct engine *e)
{
	size_t width = (size_t)(m->config.kv_lora + m->config.rope_dim);

	return (size_t)m->config.n_layers * width * (engine_compute(e) == COMPUTE_BF16 ? 2 : 4);
}

static struct session *attached(struct engine *e, const struct model *m, enum latent_format latents, struct stored *st,
				size_t budget)
{
	struct session *s = open_session(e, m, latents, false);
	struct latent_source source = source_of(st);
	struct err err = {0};

	if (session_attach(s, &source, st->n, budget, &err))
		fail_msg("%s", err.text);
	return s;
}

/* One checkpoint, profile and format: budgets by chunks. */
static void every_budget_gives_the_same(const struct model *m, const struct golden_case *c, enum compute_profile compute,
					enum latent_format latents)
{
	static const int64_t chunks[] = {1, 7, 64, 1000};
	int64_t stored = (int64_t)c->n_ids * 2 / 3, n = c->n_ids, topk = m->config.index_topk;
	const int64_t slots[] = {topk, topk + 3, 3 * topk, 0};
	struct engine *engines[2] = {open_engine(compute, 1), open_engine(compute, 3)};
	struct session *full = open_session(engines[0], m, latents, true);
	size_t vocab = (size_t)m->config.vocab;
	struct stored st;
	float *whole;

	store_new(&st, full, c->ids, stored);
	whole = logits_after(full, m, c->ids, stored, n, 1);
	for (int b = m->config.has_indexer ? 0 : 3; b < 4; b++)
		for (int k = 0; k < 4; k++) {
			struct engine *e = engines[(b + k) % 2];
			struct session *s = attached(e, m, latents, &st, (size_t)slots[b] * position_bytes(m, e));
			float *part = logits_after(s, m, c->ids, stored, n, chunks[k]);
			struct session_gathers count;

			same_rows(whole, part, n - stored, chunks[k], vocab);
			session_count_gathers(s, &count);
			assert_int_equal(count.n_slots, !m->config.has_indexer ? 0 : !slots[b] || slots[b] > stored ? stored : slots[b]);
			free(part);
			session_free(s);
		}
	free(whole);
	store_free(&st);
	session_free(full);
	engine_close(engines[0]);
	engine_close(engines[1]);
}

static void a_budget_for_latents_does_not_change_a_bit(void **state)
{
	(void)state;
	for (int k = 0; golden_checkpoints[k]; k++) {
		struct model *m = open_model(golden_checkpoints[k]);
		int n;
		struct golden_case *cases = golden_load(golden_checkpoints[k], m->config.vocab, &n);

		for (int compute = 0; compute < 2; compute++)
			for (int latents = 0; latents < LATENTS_F32; latents++) /* those that are stored */
				if (!SANITIZED || compute == latents)
					every_budget_gives_the_same(m, &cases[n - 1], (enum compute_profile)compute,
								    (enum latent_format)latents);
		golden_free(cases, n);
		model_close(m);
	}
}

/* glm52: 11 layers, five of them full, 16 positions each. 300 tokens of the store, and 40 after them. */
struct bench {
	struct model *m;
	struct engine *e;
	struct session *full;
	struct stored st;
	int32_t ids[340];
	float *whole;
};

enum { STORED = 300, ALL = 340 };

static int setup(void **state)
{
	struct bench *b = xcalloc(1, sizeof *b);

	b->m = open_model("glm52");
	b->e = open_engine(COMPUTE_BF16, 2);
	b->full = open_session(b->e, b->m, LATENTS_FP8, true);
	for (int i = 0; i < ALL; i++)
		b->ids[i] = (i * i * 7 + i * 13) % 300;
	store_new(&b->st, b->full, b->ids, STORED);
	b->whole = logits_after(b->full, b->m, b->ids, STORED, ALL, 1);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	store_free(&b->st);
	session_free(b->full);
	engine_close(b->e);
	model_close(b->m);
	free(b->whole);
	free(b);
	return 0;
}

static struct session *attach(struct bench *b, int64_t slots)
{
	return attached(b->e, b->m, LATENTS_FP8, &b->st, (size_t)slots * position_bytes(b->m, b->e));
}

static void finish(struct bench *b, struct session *s, int64_t chunk)
{
	float *part = logits_after(s, b->m, b->ids, STORED, ALL, chunk);

	same_rows(b->whole, part, ALL - STORED, chunk, (size_t)b->m->config.vocab);
	free(part);
	session_free(s);
}

static void attaching_reads_index_keys_and_no_record(void **state)
{
	struct bench *b = *state;
	struct session *s = attach(b, 0);

	assert_int_equal(session_n_tokens(s), STORED);
	assert_int_equal(b->st.n_records, 0);
	assert_int_equal(b->st.n_keys, (int64_t)STORED * session_layout(s)->n_index_layers);
	finish(b, s, 1);
}

/* A question's tokens ask for their union, once for the layers of a group; with room for all, nothing comes twice. */
static void a_record_comes_once_for_all_tokens_of_a_question_and_all_layers_of_its_group(void **state)
{
	struct bench *b = *state;
	struct session *s = attach(b, 0);
	const struct layout *l = session_layout(s);
	struct session_gathers count;
	int64_t calls;

	append(s, b->ids, STORED, 40, NULL);
	calls = b->st.n_calls;
	session_count_gathers(s, &count);
	/* One call for each full layer at most: in a pair of full layers the second may find all there. */
	assert_true(calls >= l->n_groups && calls <= l->n_index_layers);
	assert_true(b->st.widest > 16);
	assert_int_equal(count.fetched, b->st.n_records);
	assert_int_equal(count.fetched, count.wanted - count.hits);
	assert_int_equal(count.evicted, 0);
	assert_true(count.fetched <= (int64_t)STORED * l->n_groups);
	/* The same question again finds everything. */
	session_truncate(s, STORED);
	append(s, b->ids, STORED, 40, NULL);
	assert_int_equal(b->st.n_calls, calls);
	session_truncate(s, STORED);
	finish(b, s, 1);
}

static void what_was_used_longest_ago_gives_way(void **state)
{
	struct bench *b = *state;
	struct session *few = attach(b, 20), *more = attach(b, 60);
	struct session_gathers a, c;

	append(few, b->ids, STORED, 40, NULL);
	append(more, b->ids, STORED, 40, NULL);
	session_count_gathers(few, &a);
	session_count_gathers(more, &c);
	assert_true(a.evicted > 0 && c.evicted > 0);
	assert_true(a.fetched > c.fetched);
	assert_int_equal(a.n_slots, 20);
	assert_int_equal(a.slot_bytes, 20 * position_bytes(b->m, b->e));
	/* What came, and is not there, has given way. */
	assert_true(a.fetched - a.evicted <= 20 * session_layout(few)->n_groups);
	assert_int_equal(a.fetched_bytes % (int64_t)session_layout(few)->row_bytes, 0);
	session_truncate(few, STORED);
	session_truncate(more, STORED);
	finish(b, few, 40);
	finish(b, more, 40);
}

static void a_budget_below_one_tokens_choice_is_refused_with_what_it_takes(void **state)
{
	struct bench *b = *state;
	struct session *s = open_session(b->e, b->m, LATENTS_FP8, false);
	struct latent_source source = source_of(&b->st);
	size_t least = 16 * position_bytes(b->m, b->e);
	struct err err = {0};
	char takes[64];

	assert_int_equal(session_attach(s, &source, STORED, least - 1, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	snprintf(takes, sizeof takes, "16 latents of others, which take %zu bytes", least);
	assert_non_null(strstr(err.text, takes));
	assert_int_equal(session_n_tokens(s), 0);
	/* The session is usable: attached with enough, it answers. */
	assert_int_equal(session_attach(s, &source, STORED, least, &err), 0);
	finish(b, s, 7);
}

/* Tokens 70 and 250 are in spans 1 and 3; a few of the 40 tokens attend to them. */
static void a_record_that_the_source_cannot_give_is_computed_again_and_the_bits_are_those_it_had(void **state)
{
	struct bench *b = *state;
	int n_hit = 0;

	for (int64_t token = 5; token < STORED; token += 37)
		for (int32_t group = 0; group < b->st.layout->n_groups; group++)
			for (int64_t chunk = 1; chunk <= 40; chunk += 39) {
				struct session *s;
				struct session_gathers count;
				float *part;

				b->st.bad_token = token;
				b->st.bad_group = group;
				b->st.n_lost = 0;
				s = attach(b, chunk == 1 ? 50 : 0);
				part = logits_after(s, b->m, b->ids, STORED, ALL, chunk);
				same_rows(b->whole, part, ALL - STORED, chunk, (size_t)b->m->config.vocab);
				session_count_gathers(s, &count);
				if (b->st.n_lost) {
					int64_t first = token / SPAN * SPAN, n = STORED - first < SPAN ? STORED - first : SPAN;

					n_hit++;
					assert_int_equal(b->st.n_lost, 1);
					assert_int_equal(b->st.lost_first[0], first);
					assert_int_equal(b->st.lost_n[0], n);
					assert_int_equal(count.recomputed_tokens, n);
				} else {
					assert_int_equal(count.recomputed_tokens, 0);
				}
				free(part);
				session_free(s);
			}
	assert_true(n_hit > 20);
}

/* The worst: nothing of a group can be had, and every span is computed again as it is met. */
static int give_no_records(void *ctx, int32_t group, const int32_t *positions, int64_t n, uint8_t *out, int64_t *bad,
			   struct err *err)
{
	struct stored *st = ctx;

	if (group != st->bad_group)
		return give_records(ctx, group, positions, n, out, bad, err);
	return refuse(st, positions[n - 1], bad, err);
}

static void a_group_of_which_nothing_is_left_is_computed_again_as_it_is_met(void **state)
{
	struct bench *b = *state;

	for (int32_t group = 0; group < b->st.layout->n_groups; group++) {
		struct session *s = open_session(b->e, b->m, LATENTS_FP8, false);
		struct latent_source source = source_of(&b->st);

		b->st.bad_group = group;
		b->st.n_lost = 0;
		source.records = give_no_records;
		assert_int_equal(session_attach(s, &source, STORED, 20 * position_bytes(b->m, b->e), NULL), 0);
		finish(b, s, 8);
		assert_true(b->st.n_lost >= 1 && b->st.n_lost <= 5);
	}
}

static void index_keys_that_the_source_cannot_give_are_computed_again_before_anything_is_asked(void **state)
{
	struct bench *b = *state;
	static const int64_t tokens[] = {0, 63, 64, 200, 299};

	for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
		struct session *s;
		struct err err = {0};
		int64_t first, n;

		b->st.bad_key_token = tokens[i];
		b->st.n_lost = 0;
		s = attach(b, 30);
		assert_true(session_lost(s, &first, &n));
		assert_int_equal(first, tokens[i] / SPAN * SPAN);
		assert_int_equal(b->st.n_lost, 1);
		/* Nobody may attend to what is not there. */
		assert_int_equal(session_append(s, b->ids, 1, NULL, NULL, &err), -1);
		assert_int_equal(err.code, ERR_DAMAGED);
		assert_int_equal(session_n_tokens(s), STORED);
		mend(s, b->ids);
		assert_false(session_lost(s, &first, &n));
		finish(b, s, 40);
	}
}

/* While tokens of span 3 are computed again, a record of a span before it turns out to be damaged. */
static void damage_that_is_met_while_damage_is_mended_is_mended_first(void **state)
{
	struct bench *b = *state;
	int n_twice = 0;

	b->st.bad_key_token = 250;
	for (int32_t group = 0; group < b->st.layout->n_groups; group++)
		for (int64_t token = 0; token < 192; token += SANITIZED ? 25 : 5) {
			struct session *s;

			b->st.bad_token = token;
			b->st.bad_group = group;
			b->st.n_lost = 0;
			s = attach(b, 60);
			mend(s, b->ids);
			n_twice += b->st.n_lost == 2;
			if (token % 15)
				session_free(s);
			else
				finish(b, s, 40);
		}
	assert_true(n_twice > (SANITIZED ? 2 : 10));
}

/* A drive that fails a read: computed again as well, and whoever is told hears what it was. */
static void a_read_that_fails_is_like_damage_and_says_so(void **state)
{
	struct bench *b = *state;
	struct session *s;

	b->st.code = ERR_IO;
	b->st.bad_token = -1;
	b->st.bad_key_token = 100;
	s = attach(b, 30);
	assert_int_equal(b->st.n_lost, 1);
	mend(s, b->ids);
	finish(b, s, 40);
}

static void a_source_that_does_not_say_where_it_fails_fails_what_was_asked(void **state)
{
	struct bench *b = *state;
	struct session *s = open_session(b->e, b->m, LATENTS_FP8, false);
	struct latent_source source = source_of(&b->st);
	struct err err = {0};
	int64_t first, n;

	b->st.nameless = true;
	b->st.code = ERR_CANCELLED;
	b->st.bad_key_token = 100;
	assert_int_equal(session_attach(s, &source, STORED, 0, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	assert_int_equal(session_n_tokens(s), 0);
	b->st.bad_key_token = -1;
	assert_int_equal(session_attach(s, &source, STORED, 0, &err), 0);
	source.records = NULL; /* it was copied */
	b->st.bad_group = 0;
	for (int i = 0; i < STORED; i++) {
		b->st.bad_token = i;
		if (session_append(s, b->ids + STORED, 40, NULL, NULL, &err))
			break;
		session_truncate(s, STORED);
	}
	assert_int_equal(err.code, ERR_CANCELLED);
	assert_false(session_lost(s, &first, &n));
	assert_int_equal(session_n_tokens(s), STORED);
	b->st.bad_token = -1;
	finish(b, s, 40);
}

/* A record that is not finite has a checksum that is right: it was written so. It never reaches attention. */
static void a_record_that_is_not_finite_is_lost(void **state)
{
	struct bench *b = *state;
	struct session *s;
	uint8_t *row;
	size_t bytes = layout_record_bytes(b->st.layout, 0);

	for (int i = 0; i < STORED; i++)
		b->st.records[0][(size_t)i * bytes] = 0x7f; /* the e4m3 NaN */
	s = attach(b, 30);
	finish(b, s, 40);
	assert_true(b->st.n_lost >= 1);
	row = b->st.keys[0] + 100 * b->st.layout->index_key_bytes;
	row[0] = 0xc0;
	row[1] = 0x7f;
	b->st.n_lost = 0;
	s = attach(b, 30);
	assert_int_equal(b->st.n_lost, 1);
	mend(s, b->ids);
	finish(b, s, 40);
}

/* Tokens of one's own take the place of attached ones: of a longer corpus, only the beginning is kept. */
static void a_truncated_session_attaches_to_what_is_left(void **state)
{
	struct bench *b = *state;

	for (int64_t keep = 0; keep < STORED; keep += 50) {
		struct session *s = attach(b, 40);

		append(s, b->ids, STORED, 10, NULL);
		session_truncate(s, keep);
		append(s, b->ids, keep, STORED - keep, NULL);
		finish(b, s, 8);
	}
}

static void a_session_is_attached_anew(void **state)
{
	struct bench *b = *state;
	struct session *s = attach(b, 20);
	struct latent_source source = source_of(&b->st);

	append(s, b->ids, STORED, 10, NULL);
	session_truncate(s, 0);
	assert_int_equal(session_attach(s, &source, STORED, 0, NULL), 0);
	finish(b, s, 8);
}

/* A model that attends to everything gets everything, and mends what it cannot get. */
static void a_model_without_an_indexer_reads_all_latents_when_it_attaches(void **state)
{
	struct model *m = open_model("kimi_k2");
	struct engine *e = open_engine(COMPUTE_F32, 2);
	struct session *full = open_session(e, m, LATENTS_BF16, true), *s;
	int32_t ids[200];
	struct stored st;
	float *whole, *part;

	(void)state;
	for (int i = 0; i < 200; i++)
		ids[i] = i * 31 % 200;
	store_new(&st, full, ids, 170);
	whole = logits_after(full, m, ids, 170, 200, 1);
	for (int round = 0; round < 2; round++) {
		st.bad_token = round ? 130 : -1;
		s = attached(e, m, LATENTS_BF16, &st, 1);
		assert_int_equal(st.n_lost, round);
		mend(s, ids);
		part = logits_after(s, m, ids, 170, 200, 7);
		same_rows(whole, part, 30, 7, (size_t)m->config.vocab);
		free(part);
		session_free(s);
	}
	free(whole);
	store_free(&st);
	session_free(full);
	engine_close(e);
	model_close(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_budget_for_latents_does_not_change_a_bit),
		cmocka_unit_test_setup_teardown(attaching_reads_index_keys_and_no_record, setup, teardown),
		cmocka_unit_test_setup_teardown(
			a_record_comes_once_for_all_tokens_of_a_question_and_all_layers_of_its_group, setup, teardown),
		cmocka_unit_test_setup_teardown(what_was_used_longest_ago_gives_way, setup, teardown),
		cmocka_unit_test_setup_teardown(a_budget_below_one_tokens_choice_is_refused_with_what_it_takes, setup, teardown),
		cmocka_unit_test_setup_teardown(
			a_record_that_the_source_cannot_give_is_computed_again_and_the_bits_are_those_it_had, setup, teardown),
		cmocka_unit_test_setup_teardown(a_group_of_which_nothing_is_left_is_computed_again_as_it_is_met, setup, teardown),
		cmocka_unit_test_setup_teardown(
			index_keys_that_the_source_cannot_give_are_computed_again_before_anything_is_asked, setup, teardown),
		cmocka_unit_test_setup_teardown(damage_that_is_met_while_damage_is_mended_is_mended_first, setup, teardown),
		cmocka_unit_test_setup_teardown(a_read_that_fails_is_like_damage_and_says_so, setup, teardown),
		cmocka_unit_test_setup_teardown(a_source_that_does_not_say_where_it_fails_fails_what_was_asked, setup, teardown),
		cmocka_unit_test_setup_teardown(a_record_that_is_not_finite_is_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(a_truncated_session_attaches_to_what_is_left, setup, teardown),
		cmocka_unit_test_setup_teardown(a_session_is_attached_anew, setup, teardown),
		cmocka_unit_test(a_model_without_an_indexer_reads_all_latents_when_it_attaches),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
