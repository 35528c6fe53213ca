#include "tests/support/crash_scenarios.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/check.h"
#include "cache/inside.h"
#include "config/mem.h"
#include "tests/support/fake_io.h"
#include "tests/support/store_text.h"

const char *const crash_scenario_names[N_CRASH_SCENARIOS] = {"first append", "shared prefix", "snapshot switch", "drop",
							     "eviction", "repair"};

enum { N_PARTS = N_GROUPS + N_INDEX_LAYERS, SPANS_MOST = MOST_TOKENS / CACHE_SPAN_TOKENS + 1 };

/* A corpus, and what is right for it. */
struct truth {
	struct text text;
	struct span_key keys[SPANS_MOST];
	uint8_t *parts[N_PARTS];
	bool before, after;    /* there before the work; after it */
};

/* One operation after another, by the thread that waits for them: no time is spent on other threads. */
static struct fake_io operations;
static const struct io_options one_by_one = {.backend = &fake_io_backend, .backend_state = &operations, .depth = 8};

struct run {
	enum crash_scenario which;
	struct truth truths[3];
	int n_truths;
	int64_t max_bytes, used_after;
	char *why;             /* [600] what is wrong; "" */
};

static size_t bytes_of(int part)
{
	return part < N_GROUPS ? text_layout.record_bytes[part] : KEY_BYTES;
}

static void add(struct run *r, struct text t, bool before, bool after)
{
	struct truth *x = &r->truths[r->n_truths++];

	*x = (struct truth){.text = t, .before = before, .after = after};
	keys_of(x->keys, t.ids, t.n);
	for (int p = 0; p < N_PARTS; p++) {
		x->parts[p] = xmalloc((size_t)t.n, bytes_of(p));
		text_compute(x->parts[p], &t, p, 0, t.n);
	}
}

static bool wrong(struct run *r, const char *what, const char *text)
{
	snprintf(r->why, 600, "%.100s: %.400s", what, text);
	return false;
}

/* Check all, and mend if asked. *n_damaged: findings. */
static int check(struct cache *c, bool mend, int64_t *n_damaged, char *text, size_t room, struct err *err)
{
	const struct cache_check_options all = {.read_share = 1};
	const struct cache_check_report *report;
	struct cache_repair_report mended;
	struct cache_check *k;
	int rc = cache_check_begin(&k, c, &all, err);

	if (rc)
		return rc;
	while ((rc = cache_check_step(k, err)) > 0)
		;
	report = cache_check_report(k);
	*n_damaged = report->n_damaged;
	snprintf(text, room, "%.250s", report->n_findings ? report->findings[0].text : "");
	if (!rc && mend && report->n_damaged && !(rc = cache_repair(c, k, &mended, err)))
		cache_repair_clear(&mended);
	cache_check_free(k);
	return rc;
}

static int work(struct run *r, struct cache *c, struct err *err)
{
	char text[300];
	int64_t n;
	int rc;

	cache_set_limit(c, r->max_bytes);
	switch (r->which) {
	case CRASH_DROP:
		rc = cache_drop_corpus(c, "b", err);
		return rc && err->code == ERR_NOT_FOUND ? 0 : rc; /* it is done already */
	case CRASH_REPAIR:
		return check(c, true, &n, text, sizeof text, err) || store_text(c, &r->truths[0].text, err) ? -1 : 0;
	default:
		return store_text(c, &r->truths[r->n_truths - 1].text, err);
	}
}

/* Every part of a span that the store says it has. */
static bool spans_are_right(struct run *r, struct cache *c, const struct truth *t, bool all)
{
	uint8_t got[CACHE_SPAN_TOKENS * 40];

	for (int32_t i = 0; i * CACHE_SPAN_TOKENS < t->text.n; i++) {
		int32_t n = t->text.n - i * CACHE_SPAN_TOKENS;

		n = n < CACHE_SPAN_TOKENS ? n : CACHE_SPAN_TOKENS;
		if (!cache_has_span(c, &t->keys[i])) {
			if (all)
				return wrong(r, "a span is missing of corpus", t->text.corpus);
			continue;
		}
		for (int p = 0; p < N_PARTS; p++) {
			size_t bytes = (size_t)n * bytes_of(p);
			struct err err;
			int rc = p < N_GROUPS ? cache_read_records(c, &t->keys[i], p, got, bytes, &err)
					      : cache_read_index_keys(c, &t->keys[i], p - N_GROUPS, got, bytes, &err);

			if (rc && (all || err.code != ERR_DAMAGED))
				return wrong(r, "a read", err.text);
			if (!rc && memcmp(got, t->parts[p] + (size_t)i * CACHE_SPAN_TOKENS * bytes_of(p), bytes))
				return wrong(r, "wrong bytes that verify, of corpus", t->text.corpus);
		}
	}
	return true;
}

/* The corpora are those before or after. */
static bool corpora_are_right(struct run *r, struct cache *c, bool must_be_new)
{
	for (int i = 0; i < r->n_truths; i++) {
		const struct truth *t = &r->truths[i];
		bool first_of_name = !i || strcmp(t->text.corpus, r->truths[i - 1].text.corpus), found = false;
		bool may_miss = false, holes = (r->which == CRASH_EVICTION && !i) || (r->which == CRASH_REPAIR && !must_be_new);
		struct cache_snapshot *s;
		struct err err;

		if (!first_of_name)
			continue;
		if (cache_load_snapshot(c, t->text.corpus, &s, &err)) {
			if (err.code != ERR_NOT_FOUND)
				return wrong(r, "load a corpus", err.text);
			s = NULL;
		}
		for (int k = i; k < r->n_truths && !strcmp(r->truths[k].text.corpus, t->text.corpus); k++) {
			const struct truth *x = &r->truths[k];

			may_miss |= must_be_new ? !x->after : !x->before || !x->after;
			if (!s || s->n_tokens != x->text.n || memcmp(s->ids, x->text.ids, (size_t)x->text.n * sizeof *s->ids) ||
			    (must_be_new && !x->after))
				continue;
			found = true;
			if (!spans_are_right(r, c, x, !holes)) {
				cache_free_snapshot(s);
				return false;
			}
		}
		cache_free_snapshot(s);
		if (!found && (s || !may_miss || r->which == CRASH_SWITCH))
			return wrong(r, s ? "neither the old nor the new, corpus" : "lost, corpus", t->text.corpus);
	}
	/* What is pending too. */
	for (int i = 0; i < r->n_truths; i++)
		if (!spans_are_right(r, c, &r->truths[i], false))
			return false;
	return true;
}

static void add_bytes(void *ctx, int64_t run, int64_t bytes)
{
	(void)run;
	*(int64_t *)ctx += bytes;
}

static bool space_is_right(struct run *r, struct cache *c)
{
	int64_t named = 0, used = stats_of(c).used_bytes;
	struct err err;
	char text[100];

	if (index_each_run(c->index, add_bytes, &named, &err))
		return wrong(r, "bytes of runs", err.text);
	snprintf(text, sizeof text, "%" PRId64 " bytes used, rows name %" PRId64, used, named);
	return used == named ? true : wrong(r, "space", text);
}

static bool check_is_clean(struct run *r, struct cache *c)
{
	char text[300];
	struct err err;
	int64_t n;

	if (check(c, false, &n, text, sizeof text, &err))
		return wrong(r, "check", err.text);
	return n ? wrong(r, "check finds", text) : true;
}

static bool state_is_right(struct run *r, const char *dir, bool must_be_new)
{
	struct cache *c;
	struct err err;
	bool ok;

	if (cache_open_with(&c, dir, &one_by_one, &err))
		return wrong(r, "open", err.text);
	ok = (r->which == CRASH_REPAIR && !must_be_new ? true : check_is_clean(r, c)) && corpora_are_right(r, c, must_be_new) &&
	     space_is_right(r, c);
	if (ok && work(r, c, &err))
		ok = wrong(r, "the same work again", err.text);
	ok = ok && check_is_clean(r, c) && corpora_are_right(r, c, true) && space_is_right(r, c);
	if (ok && stats_of(c).used_bytes != r->used_after && r->which != CRASH_EVICTION)
		ok = wrong(r, "space", "the same work again leaves more or less than it does without a failure");
	cache_close(c);
	return ok;
}

static void prepare(struct run *r, const char *dir, struct sim_disk *d)
{
	struct cache *c = store_open_with(dir, &one_by_one);

	for (int i = 0; i < r->n_truths; i++)
		if (r->truths[i].before)
			must_store(c, &r->truths[i].text);
	if (r->which == CRASH_EVICTION)
		r->max_bytes = stats_of(c).used_bytes;
	cache_close(c);
	if (r->which == CRASH_REPAIR)
		sim_disk_flip(d, "segment-000001", 100, 3);
}

void crash_run(const char *dir, enum crash_scenario which, enum sim_swallow swallow, const struct sim_options *opt,
	       struct crash_result *out)
{
	struct sim_disk *d = sim_disk_new(dir);
	struct sim_options with = *opt;
	struct run r = {.which = which, .why = xcalloc(1, 600)};
	struct sim_states *s;
	struct cache *c;
	struct err err = {0};

	*out = (struct crash_result){0};
	add(&r, text_of("a", 200, 64, 1), which != CRASH_FIRST_APPEND, which != CRASH_SWITCH);
	if (which == CRASH_SWITCH)
		add(&r, text_of("a", 230, 64, 2), false, true);
	else if (which != CRASH_FIRST_APPEND && which != CRASH_REPAIR)
		add(&r, text_of("b", 180, which == CRASH_EVICTION ? 0 : 64, 3), which == CRASH_DROP, which != CRASH_DROP);
	prepare(&r, dir, d);
	sim_disk_record(d, swallow);
	c = store_open_with(dir, &one_by_one);
	if (work(&r, c, &err)) {
		out->n_wrong = 1;
		snprintf(out->first, sizeof out->first, "without a failure: %.500s", err.text);
	}
	with.done_at = sim_disk_calls(d);
	r.used_after = stats_of(c).used_bytes;
	cache_close(c);
	sim_disk_stop(d);
	s = sim_states_new(d, &with);
	while (!out->n_wrong || swallow == SIM_SYNCS_ALL ? sim_states_next(s) : false) {
		out->n_states++;
		if (!state_is_right(&r, dir, sim_states_at(s) >= with.done_at) && !out->n_wrong++)
			snprintf(out->first, sizeof out->first, "%s, %.120s: %.400s", crash_scenario_names[which],
				 sim_states_text(s), r.why);
	}
	sim_states_free(s);
	sim_disk_free(d);
	for (int i = 0; i < r.n_truths; i++)
		for (int p = 0; p < N_PARTS; p++)
			free(r.truths[i].parts[p]);
	free(r.why);
}
