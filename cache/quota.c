#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cache/evict.h"
#include "cache/index_check.h"
#include "cache/inside.h"
#include "config/log.h"
#include "config/mem.h"

/* What the index says, as evict_choose wants it. */
struct table {
	struct evict_run *runs;    /* [n_runs] ascending by run until they are chosen from */
	size_t n_runs, room;
	char **corpora;            /* [n_corpora] names */
	int64_t *used_s;           /* [n_corpora] */
	size_t n_corpora;
	const struct cache *cache;
	const char *writing;
	const char *reading;       /* that stays; NULL: none */
	int64_t reading_former;
	int64_t *chain;            /* [n_chain] runs of the chain at hand, from its tip */
	size_t n_chain, chain_room;
};

void cache_set_limit(struct cache *c, int64_t max_bytes)
{
	c->max_bytes = max_bytes;
	segments_set_limit(c->segments, max_bytes);
}

void cache_pin(struct cache *c, const char *corpus)
{
	free(c->pinned);
	c->pinned = corpus ? xstrdup(corpus) : NULL;
	c->pinned_former = 0;
}

void cache_on_shortage(struct cache *c, void (*let_go)(void *ctx), void *ctx)
{
	c->let_go = let_go;
	c->let_go_ctx = ctx;
}

static void add_run(void *ctx, int64_t run, int64_t bytes)
{
	struct table *t = ctx;

	if (t->n_runs == t->room)
		t->runs = xrealloc(t->runs, t->room = t->room ? 2 * t->room : 64, sizeof *t->runs);
	t->runs[t->n_runs++] = (struct evict_run){.run = run, .bytes = bytes, .corpus = -2, .former = true};
}

static size_t corpus_of(struct table *t, const char *name)
{
	for (size_t i = 0; i < t->n_corpora; i++)
		if (!strcmp(t->corpora[i], name))
			return i;
	t->corpora = xrealloc(t->corpora, t->n_corpora + 1, sizeof *t->corpora);
	t->used_s = xrealloc(t->used_s, t->n_corpora + 1, sizeof *t->used_s);
	t->corpora[t->n_corpora] = xstrdup(name);
	t->used_s[t->n_corpora] = 0; /* of an ingest that was interrupted before its first snapshot */
	return t->n_corpora++;
}

static void add_use(void *ctx, const char *corpus, int64_t used_s)
{
	struct table *t = ctx;
	size_t i;

	if (!corpus)
		return;
	i = corpus_of(t, corpus); /* which may move used_s */
	/* The row of the one that is held is as old as the first of its questions. */
	t->used_s[i] = t->cache->pinned && !strcmp(corpus, t->cache->pinned) ? INT64_MAX : used_s;
}

static struct evict_run *run_of(struct table *t, int64_t run)
{
	size_t low = 0, high = t->n_runs;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (t->runs[mid].run < run)
			low = mid + 1;
		else
			high = mid;
	}
	return low < t->n_runs && t->runs[low].run == run ? &t->runs[low] : NULL;
}

/* It is being read or written. */
static bool is_pinned(const struct table *t, const char *corpus)
{
	return !strcmp(corpus, t->writing) || (t->reading && !strcmp(corpus, t->reading)) ||
	       cache_runs_write(t->cache, corpus);
}

static void add_link(void *ctx, const struct index_link *l)
{
	struct table *t = ctx;
	size_t corpus;
	bool pinned;

	if (!l->corpus)
		return;
	if (l->span) {
		if (t->n_chain == t->chain_room)
			t->chain = xrealloc(t->chain, t->chain_room = t->chain_room ? 2 * t->chain_room : 256, sizeof *t->chain);
		t->chain[t->n_chain++] = l->run;
		return;
	}
	corpus = corpus_of(t, l->corpus);
	/* What the corpus that is read or written needs now; its former snapshots may make room for the next one. */
	pinned = l->former ? l->former == t->reading_former : is_pinned(t, l->corpus);
	for (size_t i = 0; i < t->n_chain; i++) {
		struct evict_run *r = run_of(t, t->chain[i]);
		int64_t end = (int64_t)(t->n_chain - i);

		if (!r)
			continue; /* of spans without bytes */
		if (r->corpus == -2)
			r->corpus = (int32_t)corpus;
		else if (r->corpus != (int32_t)corpus)
			r->corpus = -1;
		r->end = end > r->end ? end : r->end;
		r->last_used_s = t->used_s[corpus];
		r->pinned |= pinned;
		r->former &= l->former != 0;
	}
	t->n_chain = 0;
}

/* An interrupted ingest goes on after all spans of its corpus, and is nothing without them. */
static void add_job(void *ctx, const char *corpus, const struct index_job *j)
{
	struct table *t = ctx;
	struct evict_run *r = run_of(t, j->run);
	size_t i;

	if (!r || !corpus)
		return;
	i = corpus_of(t, corpus);
	r->corpus = (int32_t)i;
	r->last_used_s = t->used_s[i];
	r->end = INT64_MAX;
	r->former = false;
	r->pinned = is_pinned(t, corpus);
}

static int evict(struct cache *c, const struct evict_run *runs, size_t n, struct err *err)
{
	int rc = 0;

	if (index_begin(c->index, err))
		return -1;
	for (size_t i = 0; !rc && i < n; i++)
		rc = index_strip_run(c->index, runs[i].run, err);
	return cache_finish(c, rc, err);
}

static void clear(struct table *t)
{
	for (size_t i = 0; i < t->n_corpora; i++)
		free(t->corpora[i]);
	free(t->corpora);
	free(t->used_s);
	free(t->runs);
	free(t->chain);
	*t = (struct table){0};
}

/* The first *n runs of the table are to go for so many bytes, and give *back; what is read is among them if it may. */
static int choose(struct table *t, const struct cache *c, const char *writing, bool reading_stays, int64_t bytes,
		  size_t *n, int64_t *back, struct err *err)
{
	clear(t);
	*t = (struct table){.cache = c, .writing = writing, .reading = reading_stays ? c->pinned : NULL,
			    .reading_former = reading_stays ? c->pinned_former : 0};
	if (index_each_run(c->index, add_run, t, err) || index_each_use(c->index, add_use, t, err) ||
	    index_each_link(c->index, add_link, t, err) || index_each_job(c->index, add_job, t, err))
		return -1;
	*back = evict_choose(t->runs, t->n_runs, bytes, n);
	return 0;
}

int cache_make_room(struct cache *c, const char *corpus, int64_t need_bytes, struct err *err)
{
	struct table t = {0};
	int64_t used, all, more, back;
	size_t n;
	int rc;

	segments_sizes(c->segments, &used, &all);
	more = used + need_bytes - c->max_bytes;
	if (!c->max_bytes || more <= 0)
		return 0;
	rc = choose(&t, c, corpus, true, more, &n, &back, err);
	if (!rc && back < more && c->pinned && c->let_go) {
		rc = choose(&t, c, corpus, false, more, &n, &back, err);
		if (!rc && back >= more) {
			c->let_go(c->let_go_ctx);
			assert(!c->pinned);
		}
	}
	if (!rc && back < more)
		rc = err_set(err, ERR_TOO_LARGE, "the store may take %" PRId64 " bytes (store.max_bytes) and holds %" PRId64
			     ", of which %" PRId64 " could go: there is no room for %" PRId64 " more; raise the limit or "
			     "`quire rm` a corpus", c->max_bytes, used, back, need_bytes);
	else if (!rc && !(rc = evict(c, t.runs, n, err)))
		log_info("evicted bytes=%" PRId64 " of %zu runs: corpora that were used longest ago make room for '%s'", back, n,
			 corpus);
	clear(&t);
	return rc;
}
