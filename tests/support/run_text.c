#include "tests/support/run_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>
#include <xxhash.h>

#include "cache/check.h"

/* A layer of the model ends with each of these. */
static const int part_of[N_PARTS] = {0, N_GROUPS, 1, N_GROUPS + 1};

void must_be_whole(struct cache *c)
{
	const struct cache_check_options opt = {.read_share = 1};
	struct cache_check *k;
	struct err err;
	int rc = cache_check_begin(&k, c, &opt, &err);

	while (!rc && (rc = cache_check_step(k, &err)) > 0)
		rc = 0;
	if (rc)
		fail_msg("%s", err.text);
	if (cache_check_report(k)->n_damaged)
		fail_msg("%s", cache_check_report(k)->findings[0].text);
	cache_check_free(k);
}

int run_begin(struct cache_run **r, struct cache *c, const struct text *t, int32_t first, int32_t *next_layer,
	      struct err *err)
{
	struct span_key keys[MOST_TOKENS / CACHE_SPAN_TOKENS + 1];

	keys_of(keys, t->ids, t->n);
	return cache_run_begin(r, c, t->corpus, &text_layout, text_identity,
			       first ? &keys[first / CACHE_SPAN_TOKENS - 1] : NULL, t->ids + first, t->n - first, next_layer, err);
}

int run_put(struct cache_run *r, const struct text *t, int32_t from, int part, int32_t first, int32_t n, struct err *err)
{
	uint8_t bytes[MOST_TOKENS * 40];

	text_compute(bytes, t, part, first, n);
	return part < N_GROUPS ? cache_run_records(r, part, first - from, n, bytes, err)
			       : cache_run_index_keys(r, part - N_GROUPS, first - from, n, bytes, err);
}

void run_state_of(uint8_t out[STATE_BYTES], const struct text *t, int32_t next_layer)
{
	uint64_t seed = XXH3_64bits_withSeed(t->ids, (size_t)t->n * sizeof *t->ids, (uint64_t)next_layer);

	for (int i = 0; i < STATE_BYTES; i++)
		out[i] = (uint8_t)XXH3_64bits_withSeed(&i, sizeof i, seed);
}

int run_save(struct cache_run *r, int32_t next_layer, const uint8_t *state, size_t bytes, size_t piece, struct err *err)
{
	for (size_t at = 0, n; at < bytes; at += n) {
		n = bytes - at < piece ? bytes - at : piece;
		if (cache_run_checkpoint(r, next_layer, bytes, at, state + at, n, err))
			return -1;
	}
	return 0;
}

int run_saved(struct cache_run *r, uint8_t *state, size_t bytes, size_t piece, struct err *err)
{
	for (size_t at = 0, n; at < bytes; at += n) {
		n = bytes - at < piece ? bytes - at : piece;
		if (cache_run_state(r, bytes, at, state + at, n, err))
			return -1;
	}
	return 0;
}

/* Where to begin: what was saved must be what was to be saved. */
static int take_up(struct cache_run *r, const struct text *t, int32_t *next_layer, struct err *err)
{
	uint8_t got[STATE_BYTES], want[STATE_BYTES];

	if (!*next_layer)
		return 0;
	if (run_saved(r, got, sizeof got, STATE_PIECE, err)) {
		*next_layer = 0;
		return err->code == ERR_DAMAGED ? cache_run_restart(r, err) : -1;
	}
	run_state_of(want, t, *next_layer);
	assert_memory_equal(got, want, sizeof want);
	return 0;
}

int run_text(struct cache *c, const struct text *t, int until, int32_t *from, struct err *err)
{
	struct cache_run *r = NULL;
	uint8_t state[STATE_BYTES];
	int64_t known;
	int rc = 0;

	*from = 0;
	if (cache_begin_ingest(c, t->corpus, text_identity, t->ids, t->n, &known, err))
		return -1;
	if (known < t->n) {
		rc = run_begin(&r, c, t, (int32_t)known, from, err) || take_up(r, t, from, err) ? -1 : 0;
		for (int32_t i = *from; !rc && i < until; i++) {
			rc = run_put(r, t, (int32_t)known, part_of[i], (int32_t)known, t->n - (int32_t)known, err);
			run_state_of(state, t, i + 1);
			if (!rc && i + 1 < N_PARTS)
				(void)run_save(r, i + 1, state, sizeof state, STATE_PIECE, err);
		}
		if (!rc && until == N_PARTS)
			rc = cache_run_commit(r, err);
		cache_run_free(r);
	}
	return rc || until < N_PARTS ? rc : commit_text(c, t, err);
}
