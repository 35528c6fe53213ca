#include "cache/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "cache/index_check.h"
#include "cache/inside.h"
#include "config/mem.h"

/*   the rules of index_check, one a step --> extents in their files --> saved ingests, a piece a step -->
 *   spans, one a step --> whom it touches --> done  */

struct target {
	int64_t number;        /* of a span or a run */
	size_t finding;
};

struct targets {
	struct target *list;
	size_t n, room;
};

/* An interrupted ingest. */
struct saved {
	char *corpus;
	struct scratch_name name;
	int64_t run, bytes;
	uint64_t sum;
	bool bad;
};

struct cache_check {
	struct cache *cache;
	char *corpus;
	double read_share;
	uint64_t seed;
	int next_rule;
	bool extents_done, jobs_listed, listed, done;
	struct saved *jobs;    /* [n_jobs] */
	size_t n_jobs, next_job;
	struct scratch *state; /* of the job at hand; NULL: it is not open yet */
	int64_t *spans;        /* [n_spans] to be read */
	size_t n_spans, at;
	int64_t *bad;          /* [n_bad] spans whose bytes are wrong, as far as they were read */
	size_t n_bad, bad_room;
	struct targets by_span, by_run;
	struct cache_check_report report;
};

int cache_check_begin(struct cache_check **out, struct cache *c, const struct cache_check_options *opt,
		      struct err *err)
{
	struct cache_snapshot *s;
	struct cache_check *k;

	/* A corpus that is there and does not load is what a check is for. */
	if (opt->corpus && !cache_load_snapshot(c, opt->corpus, &s, err))
		cache_free_snapshot(s);
	else if (opt->corpus && err->code == ERR_NOT_FOUND && index_has_snapshot(c->index, opt->corpus, err) <= 0)
		return -1;
	k = xcalloc(1, sizeof *k);
	k->cache = c;
	k->corpus = opt->corpus ? xstrdup(opt->corpus) : NULL;
	k->read_share = opt->read_share;
	k->seed = opt->seed;
	*out = k;
	return 0;
}

static void add_target(struct targets *t, int64_t number, size_t finding)
{
	if (t->n == t->room) {
		t->room = t->room ? 2 * t->room : 64;
		t->list = xrealloc(t->list, t->room, sizeof *t->list);
	}
	t->list[t->n++] = (struct target){number, finding};
}

static int compare_targets(const void *a, const void *b)
{
	const struct target *x = a, *y = b;

	return x->number != y->number ? (x->number > y->number) - (x->number < y->number)
				      : (x->finding > y->finding) - (x->finding < y->finding);
}

static void sort_targets(struct targets *t)
{
	if (t->n)
		qsort(t->list, t->n, sizeof *t->list, compare_targets);
}

static void add_corpus(struct cache_check *k, size_t finding, const char *corpus)
{
	struct cache_finding *f = &k->report.findings[finding];

	for (size_t i = 0; i < f->n_corpora; i++)
		if (!strcmp(f->corpora[i], corpus))
			return;
	f->corpora = xrealloc(f->corpora, f->n_corpora + 1, sizeof *f->corpora);
	f->corpora[f->n_corpora++] = xstrdup(corpus);
}

/* A new finding, unless it is the last one's sentence: then what it touches as well. */
static void find(void *ctx, const char *text, const struct index_target *t)
{
	struct cache_check *k = ctx;
	struct cache_check_report *r = &k->report;

	if (!r->n_findings || strcmp(r->findings[r->n_findings - 1].text, text)) {
		r->n_damaged++;
		if (r->n_findings == FINDINGS_MOST)
			return;
		r->findings = xrealloc(r->findings, r->n_findings + 1, sizeof *r->findings);
		r->findings[r->n_findings++] = (struct cache_finding){.text = xstrdup(text)};
	}
	if (t->span)
		add_target(&k->by_span, t->span, r->n_findings - 1);
	if (t->run)
		add_target(&k->by_run, t->run, r->n_findings - 1);
	if (t->corpus)
		add_corpus(k, r->n_findings - 1, t->corpus);
}

static void check_extent(void *ctx, const struct index_extent *e)
{
	struct cache_check *k = ctx;
	int64_t bytes = segments_file_bytes(k->cache->segments, e->extent.segment);
	const struct index_target t = {.run = e->run};
	char text[200], name[SEGMENT_NAME_BYTES];

	if (e->extent.offset >= 0 && e->extent.bytes > 0 && e->extent.bytes <= bytes &&
	    e->extent.offset <= bytes - e->extent.bytes)
		return;
	snprintf(text, sizeof text, "an extent of run %" PRId64 " has %" PRId64 " bytes at byte %" PRId64 " of %s, which has %"
		 PRId64, e->run, e->extent.bytes, e->extent.offset, segment_name(e->extent.segment, name), bytes);
	find(k, text, &t);
}

static void add_job(void *ctx, const char *corpus, const struct index_job *j)
{
	struct cache_check *k = ctx;

	k->jobs = xrealloc(k->jobs, k->n_jobs + 1, sizeof *k->jobs);
	k->jobs[k->n_jobs++] = (struct saved){
		.corpus = xstrdup(corpus ? corpus : ""), .name = j->state, .run = j->run, .bytes = j->state_bytes,
		.sum = j->state_sum,
	};
}

static void skip_extent(void *ctx, enum extent_kind kind, int32_t part, struct extent e)
{
	(void)ctx, (void)kind, (void)part, (void)e;
}

/* It has not ended or been saved anew since it was listed. */
static bool is_current(struct cache_check *k, const struct saved *s)
{
	struct index_job j;
	struct err err;
	int rc = index_find_job(k->cache->index, s->corpus, &j, skip_extent, NULL, &err);

	if (rc <= 0)
		return rc < 0; /* a wrong row has been found by its rule */
	free(j.places);
	free(j.whole);
	return j.id == s->name.job && j.state.file == s->name.file && j.state_sum == s->sum;
}

/* One piece of the state of a saved ingest, or only whether it is there. */
static void read_state(struct cache_check *k)
{
	struct saved *s = &k->jobs[k->next_job];
	struct err why;
	bool more = false;
	int rc = 0;

	if (!k->state) {
		rc = scratch_open(&k->state, k->cache->dir, s->name, s->bytes, s->sum, &why);
		more = !rc && k->read_share > 0;
	} else if (scratch_at(k->state) < s->bytes) {
		int64_t left = s->bytes - scratch_at(k->state), n = left < SCRATCH_PIECE ? left : SCRATCH_PIECE;
		uint8_t *out = xmalloc((size_t)n, 1);

		rc = scratch_read(k->state, out, n, &why);
		k->report.read_bytes += rc ? 0 : n;
		more = !rc;
		free(out);
	}
	if (rc && is_current(k, s)) {
		const struct index_target t = {.corpus = s->corpus};
		char *text = xasprintf("the saved ingest of corpus '%s': %s", s->corpus, why.text);

		s->bad = true;
		find(k, text, &t);
		free(text);
	}
	if (more)
		return;
	scratch_close(k->state);
	k->state = NULL;
	k->next_job++;
}

static bool is_sampled(const struct cache_check *k, int64_t span)
{
	/* The upper 53 bits are a fraction that a double holds exactly. */
	return (double)(XXH3_64bits_withSeed(&span, sizeof span, k->seed) >> 11) < k->read_share * 9007199254740992.0;
}

static int list_spans(struct cache_check *k, struct err *err)
{
	size_t n = 0;

	k->listed = true;
	if (k->read_share <= 0)
		return 0;
	if (index_list_spans(k->cache->index, k->corpus, &k->spans, &k->n_spans, err))
		return -1;
	for (size_t i = 0; i < k->n_spans; i++)
		if (is_sampled(k, k->spans[i]))
			k->spans[n++] = k->spans[i];
	k->n_spans = n;
	k->report.to_read = (int64_t)n;
	return 0;
}

/* All bytes of a span. A read that the system failed is a finding, but no proof that the bytes are wrong. */
static int read_span(struct cache_check *k, int64_t id, struct err *err)
{
	const struct index_target t = {.span = id};
	struct index_span s;
	uint8_t *out = NULL;
	bool wrong = false;
	int found = index_get_span(k->cache->index, id, &s, err);

	if (found < 0)
		return -1;
	/* Gone since, or wrong in its row, which the rules have seen. */
	for (int32_t i = 0; found && !s.damaged && i < s.n_groups + s.n_index_layers; i++) {
		int32_t layer = i - s.n_groups;
		size_t bytes = (size_t)s.n_tokens * (layer < 0 ? s.record_bytes[i] : s.index_key_bytes);
		struct err why;
		int rc;

		out = xrealloc(out, bytes, 1);
		rc = layer < 0 ? cache_read_records(k->cache, &s.key, i, out, bytes, &why)
			       : cache_read_index_keys(k->cache, &s.key, layer, out, bytes, &why);
		k->report.read_bytes += rc ? 0 : (int64_t)bytes;
		if (rc)
			find(k, why.text, &t);
		wrong |= rc && why.code != ERR_IO;
	}
	free(out);
	k->report.read_spans++;
	k->report.to_read--;
	if (wrong) {
		if (k->n_bad == k->bad_room)
			k->bad = xrealloc(k->bad, k->bad_room = k->bad_room ? 2 * k->bad_room : 64, sizeof *k->bad);
		k->bad[k->n_bad++] = id;
	}
	return 0;
}

/* The first finding that touches `number`, or where it would be. */
static size_t first_target(const struct targets *t, int64_t number)
{
	const struct target first = {number, 0};
	size_t low = 0, high = t->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (compare_targets(&t->list[mid], &first) < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void touch(struct cache_check *k, const struct targets *t, int64_t number, const char *corpus)
{
	for (size_t i = first_target(t, number); i < t->n && t->list[i].number == number; i++)
		add_corpus(k, t->list[i].finding, corpus);
}

static void take_link(void *ctx, const struct index_link *l)
{
	struct cache_check *k = ctx;
	char *text;

	if (!l->corpus)
		return;
	if (l->span) {
		touch(k, &k->by_span, l->span, l->corpus);
		touch(k, &k->by_run, l->run, l->corpus);
	} else if (l->n_tokens < 0) {
		const struct index_target t = {.corpus = l->corpus};

		text = xasprintf("the spans of corpus '%s' do not have as many tokens as its %ssnapshot", l->corpus,
				 l->former ? "former " : "");
		find(k, text, &t);
		free(text);
	}
}

static void free_finding(struct cache_finding *f)
{
	for (size_t i = 0; i < f->n_corpora; i++)
		free(f->corpora[i]);
	free(f->corpora);
	free(f->text);
}

/* Of a check of one corpus only what touches it, or nobody that is known. */
static void keep_corpus(struct cache_check *k)
{
	struct cache_check_report *r = &k->report;
	size_t n = 0;

	for (size_t i = 0; i < r->n_findings; i++) {
		struct cache_finding *f = &r->findings[i];
		bool keep = !f->n_corpora;

		for (size_t j = 0; j < f->n_corpora; j++)
			keep |= !strcmp(f->corpora[j], k->corpus);
		if (keep) {
			r->findings[n++] = *f;
		} else {
			free_finding(f);
			r->n_damaged--;
		}
	}
	r->n_findings = n;
}

static int end_check(struct cache_check *k, struct err *err)
{
	int64_t n_corpora;

	sort_targets(&k->by_span);
	sort_targets(&k->by_run);
	if (index_each_link(k->cache->index, take_link, k, err) ||
	    index_count(k->cache->index, &n_corpora, &k->report.n_spans, err) ||
	    index_count_waiting(k->cache->index, &k->report.waiting_spans, err))
		return -1;
	for (size_t i = 0; i < k->n_jobs; i++) {
		size_t at = first_target(&k->by_run, k->jobs[i].run);

		k->jobs[i].bad |= at < k->by_run.n && k->by_run.list[at].number == k->jobs[i].run;
		touch(k, &k->by_run, k->jobs[i].run, k->jobs[i].corpus);
	}
	if (k->corpus)
		keep_corpus(k);
	k->done = true;
	return 0;
}

int cache_check_step(struct cache_check *k, struct err *err)
{
	int rc;

	if (k->done)
		return 0;
	if (k->next_rule < INDEX_CHECKS) {
		rc = index_check(k->cache->index, k->next_rule++, find, k, err);
	} else if (!k->extents_done) {
		k->extents_done = true;
		rc = index_all_extents(k->cache->index, check_extent, k, err);
	} else if (!k->jobs_listed) {
		k->jobs_listed = true;
		rc = index_each_job(k->cache->index, add_job, k, err);
	} else if (k->next_job < k->n_jobs) {
		read_state(k);
		rc = 0;
	} else if (!k->listed) {
		rc = list_spans(k, err);
	} else if (k->at < k->n_spans) {
		rc = read_span(k, k->spans[k->at++], err);
	} else {
		rc = end_check(k, err);
	}
	return rc ? -1 : !k->done;
}

const struct cache_check_report *cache_check_report(const struct cache_check *k)
{
	return &k->report;
}

void cache_check_free(struct cache_check *k)
{
	if (!k)
		return;
	for (size_t i = 0; i < k->report.n_findings; i++)
		free_finding(&k->report.findings[i]);
	free(k->report.findings);
	for (size_t i = 0; i < k->n_jobs; i++)
		free(k->jobs[i].corpus);
	free(k->jobs);
	scratch_close(k->state);
	free(k->by_span.list);
	free(k->by_run.list);
	free(k->spans);
	free(k->bad);
	free(k->corpus);
	free(k);
}

int cache_repair(struct cache *c, const struct cache_check *k, struct cache_repair_report *out, struct err *err)
{
	int64_t *bad_jobs;
	size_t n_jobs = 0;
	int rc;

	*out = (struct cache_repair_report){0};
	if (cache_check_sure(c, err) || index_begin(c->index, err))
		return -1;
	bad_jobs = xmalloc(k->n_jobs, sizeof *bad_jobs);
	for (size_t i = 0; i < k->n_jobs; i++)
		if (k->jobs[i].bad)
			bad_jobs[n_jobs++] = k->jobs[i].name.job;
	rc = index_repair(c->index, k->bad, k->n_bad, bad_jobs, n_jobs, out, err);
	free(bad_jobs);
	if (cache_finish(c, rc, err)) {
		cache_repair_clear(out);
		return err_wrap(err, "repair store %s", c->dir);
	}
	/* Rows went by sets, and their space was not noted one by one. */
	if (cache_find_space(c, err)) {
		cache_repair_clear(out);
		c->unsure = *err;
		return err_wrap(err, "repair store %s", c->dir);
	}
	return 0;
}

void cache_repair_clear(struct cache_repair_report *r)
{
	for (size_t i = 0; i < r->n_corpora; i++) {
		free(r->corpora[i].name);
		free(r->corpora[i].source);
	}
	free(r->corpora);
	*r = (struct cache_repair_report){0};
}
