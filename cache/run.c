#include "cache/run.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cache/inside.h"
#include "cache/key.h"
#include "config/log.h"
#include "config/mem.h"

/*   begin: reserve --> put: write --> commit: sync --> rows, in one transaction --> found by readers
 *     ^                    ^  |
 *     |                    |  v
 *     +-- crash <-- checkpoint: state, piece by piece --> sync --> job row, which names the extents and the state
 *
 * The spans that the store lacks have places 0, 1, ... in their order. Each part has an extent, in which the tokens of
 * place p begin at p x 64; one more has all sums. So what is put lies in one piece of its extent, but for the pages at
 * both ends, which wait until their other bytes are there: every page is written once and whole.  */

enum {
	WRITE_BYTES = 1 << 20,
	STRETCH_SPANS = 256,    /* whose sums are worked out at a time */
};

/* A page that is not all there yet. */
struct page {
	int32_t extent, filled;
	int64_t number;         /* in the extent */
	uint8_t *bytes;         /* [EXTENT_ALIGN] */
};

struct cache_run {
	struct cache *cache;
	struct cache_run *next; /* of the runs that are open */
	char *corpus;
	uint8_t identity[32];
	struct cache_layout layout;
	uint32_t *record_bytes; /* [n_groups] the layout's */
	bool has_parent;
	struct span_key parent;
	int32_t *ids;           /* [n_tokens] */
	int64_t n_tokens;
	int32_t n_spans, n_places;
	int64_t place_tokens;   /* of all places */
	struct span_key *keys;  /* [n_spans] */
	int32_t *places;        /* [n_spans] -1: in the store already */
	int32_t n_parts;        /* groups, then index layers */
	struct extent *extents; /* [n_parts + 1] the last one for sums; bytes = 0: not reserved */
	bool *put;              /* [n_parts][n_spans] */
	int32_t *n_put;         /* [n_parts] */
	bool *taken_up;         /* [n_parts] whole at the checkpoint with which the run began */
	struct page *pages;     /* [n_pages] by extent and number */
	size_t n_pages, page_room;
	uint8_t *buffer;        /* [WRITE_BYTES] as segments_write wants it */
	uint64_t *sums;         /* [STRETCH_SPANS][64] */
	int64_t run, job;       /* rows that name the extents, and the last checkpoint; 0: none yet */
	int32_t next_layer;     /* of the checkpoint with which the run began */
	struct scratch_name state; /* of the last checkpoint */
	int64_t state_bytes;
	uint64_t state_sum;
	struct scratch *reading; /* that state, while it is read; NULL: it is not */
	struct scratch *saving;  /* that of the checkpoint under way; NULL: none is */
	struct scratch_name saving_name;
	const uint32_t *chosen; /* [n_layers, n_experts] the caller's; NULL: nothing is counted */
	int32_t n_layers, n_experts;
};

/* The checkpoint under way, if one is, will not be. */
static void give_up(struct cache_run *r)
{
	if (!r->saving)
		return;
	scratch_close(r->saving);
	r->saving = NULL;
	/* When nobody knows whether a row is on disk that names it, it stays. */
	if (!r->job && !r->cache->unsure.code)
		scratch_remove(r->cache->dir, r->saving_name.job);
}

/* Its rows are gone. */
static void lose_job(struct cache_run *r)
{
	r->job = r->run = 0;
	give_up(r);
}

static void take_extents(const struct cache_run *r)
{
	for (int32_t i = 0; i <= r->n_parts; i++)
		if (r->extents[i].bytes)
			segments_take(r->cache->segments, r->extents[i]);
}

int cache_runs_take(struct cache *c, struct err *err)
{
	for (struct cache_run *r = c->runs; r; r = r->next) {
		int there = r->job ? index_has_job(c->index, r->job, err) : 1;

		if (there < 0)
			return -1;
		if (!there)
			lose_job(r);
		take_extents(r);
	}
	return 0;
}

void cache_runs_end_job(struct cache *c, int64_t job)
{
	for (struct cache_run *r = c->runs; r; r = r->next)
		if (r->job == job) {
			lose_job(r);
			take_extents(r);
		}
}

bool cache_runs_write(const struct cache *c, const char *corpus)
{
	for (const struct cache_run *r = c->runs; r; r = r->next)
		if (!strcmp(r->corpus, corpus))
			return true;
	return false;
}

static enum extent_kind part_kind(const struct cache_run *r, int32_t i)
{
	return i < r->layout.n_groups ? EXTENT_LATENTS : i < r->n_parts ? EXTENT_INDEX_KEYS : EXTENT_SUMS;
}

/* Its number among those of its kind. */
static int32_t part_number(const struct cache_run *r, int32_t i)
{
	return i < r->layout.n_groups ? i : i < r->n_parts ? i - r->layout.n_groups : 0;
}

static int64_t token_bytes(const struct cache_run *r, int32_t part)
{
	return part < r->layout.n_groups ? r->record_bytes[part] : r->layout.index_key_bytes;
}

/* Bytes of an extent that mean something. */
static int64_t extent_used(const struct cache_run *r, int32_t i)
{
	if (i < r->n_parts)
		return r->place_tokens * token_bytes(r, i);
	return sums_place(EXTENT_INDEX_KEYS, r->layout.n_index_layers, 0, r->n_places, r->layout.n_groups) *
	       (int64_t)sizeof(uint64_t);
}

static int64_t extent_bytes(const struct cache_run *r, int32_t i)
{
	return (extent_used(r, i) + EXTENT_ALIGN - 1) / EXTENT_ALIGN * EXTENT_ALIGN;
}

/* Memory that segments_write takes. */
static uint8_t *aligned_new(size_t bytes, struct err *err)
{
	uint8_t *p = aligned_alloc(EXTENT_ALIGN, bytes);

	if (!p)
		err_set(err, ERR_TOO_LARGE, "no memory for %zu bytes of latents", bytes);
	return p;
}

static void free_pages(struct cache_run *r)
{
	for (size_t i = 0; i < r->n_pages; i++)
		free(r->pages[i].bytes);
	r->n_pages = 0;
}

/* Where the page is among those that wait, or would be. */
static size_t page_find(const struct cache_run *r, int32_t extent, int64_t number)
{
	size_t low = 0, high = r->n_pages;

	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct page *p = &r->pages[mid];

		if (p->extent < extent || (p->extent == extent && p->number < number))
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Bytes inside one page, which is written when it has all of its bytes. */
static int put_fragment(struct cache_run *r, int32_t extent, int64_t at, const uint8_t *data, int64_t n, struct err *err)
{
	int64_t number = at / EXTENT_ALIGN, left = extent_used(r, extent) - number * EXTENT_ALIGN;
	size_t i = page_find(r, extent, number);
	struct page *p;

	if (i == r->n_pages || r->pages[i].extent != extent || r->pages[i].number != number) {
		uint8_t *bytes = aligned_new(EXTENT_ALIGN, err);

		if (!bytes)
			return -1;
		memset(bytes, 0, EXTENT_ALIGN);
		if (r->n_pages == r->page_room)
			r->pages = xrealloc(r->pages, r->page_room = r->page_room ? 2 * r->page_room : 64, sizeof *r->pages);
		memmove(&r->pages[i + 1], &r->pages[i], (r->n_pages - i) * sizeof *r->pages);
		r->pages[i] = (struct page){.extent = extent, .number = number, .bytes = bytes};
		r->n_pages++;
	}
	p = &r->pages[i];
	memcpy(p->bytes + at % EXTENT_ALIGN, data, (size_t)n);
	p->filled += (int32_t)n;
	if (p->filled < (left < EXTENT_ALIGN ? left : EXTENT_ALIGN))
		return 0;
	if (segments_write(r->cache->segments, r->extents[extent], number * EXTENT_ALIGN, p->bytes, EXTENT_ALIGN, err))
		return -1;
	free(p->bytes);
	r->n_pages--;
	memmove(p, p + 1, (r->n_pages - i) * sizeof *p);
	return 0;
}

static int put_bytes(struct cache_run *r, int32_t extent, int64_t at, const void *data, int64_t n, struct err *err)
{
	const uint8_t *from = data;

	while (n) {
		int64_t in_page = at % EXTENT_ALIGN, m = n < WRITE_BYTES ? n / EXTENT_ALIGN * EXTENT_ALIGN : WRITE_BYTES;

		if (in_page || !m) {
			m = n < EXTENT_ALIGN - in_page ? n : EXTENT_ALIGN - in_page;
			if (put_fragment(r, extent, at, from, m, err))
				return -1;
		} else {
			memcpy(r->buffer, from, (size_t)m);
			if (segments_write(r->cache->segments, r->extents[extent], at, r->buffer, m, err))
				return -1;
		}
		at += m;
		from += m;
		n -= m;
	}
	return 0;
}

/* Name the spans, and give a place to each that is missing. What is there becomes pending for the corpus with the
 * others, lest it go while these are computed. */
static int find_places(struct cache_run *r, struct err *err)
{
	struct index *x = r->cache->index;
	int64_t known = 0;

	if (r->has_parent) {
		int found = index_find_span(x, &r->parent, false, &known, err);

		if (found <= 0)
			return found ? -1 : err_set(err, ERR_FAILED, "the span before these is not in the store");
		known = 0;
	}
	for (int32_t i = 0; i < r->n_spans; i++) {
		int64_t first = (int64_t)i * CACHE_SPAN_TOKENS, span = 0;
		int32_t n = span_tokens(r->n_tokens, first);
		int found;

		span_key_make(&r->keys[i], r->identity, i ? &r->keys[i - 1] : r->has_parent ? &r->parent : NULL,
			      r->ids + first, n);
		found = index_find_span(x, &r->keys[i], true, &span, err);
		if (found < 0)
			return -1;
		r->places[i] = found ? -1 : r->n_places++;
		r->place_tokens += found ? 0 : n;
		known = span ? span : known;
	}
	if (!known || !r->n_places)
		return 0;
	if (index_begin(x, err))
		return -1;
	return cache_finish(r->cache, index_set_pending(x, r->corpus, known, err), err);
}

static int reserve(struct cache_run *r, struct err *err)
{
	int64_t bytes = 0;

	for (int32_t i = 0; i <= r->n_parts; i++)
		bytes += extent_bytes(r, i);
	if (cache_make_room(r->cache, r->corpus, bytes, err))
		return -1;
	for (int32_t i = 0; i <= r->n_parts; i++)
		if (segments_reserve(r->cache->segments, extent_used(r, i), &r->extents[i], err))
			return -1;
	return 0;
}

/* Nothing has been put. */
static void clear_parts(struct cache_run *r)
{
	free_pages(r);
	memset(r->put, 0, (size_t)r->n_parts * (size_t)r->n_spans * sizeof *r->put);
	memset(r->n_put, 0, (size_t)r->n_parts * sizeof *r->n_put);
	memset(r->taken_up, 0, (size_t)r->n_parts * sizeof *r->taken_up);
}

/* Rows of an interrupted run, as far as they are found. */
struct found {
	const struct cache_run *run;
	struct extent *extents; /* [n_parts + 1] */
	int32_t n;
	bool wrong;
};

static void find_extent(void *ctx, enum extent_kind kind, int32_t part, struct extent e)
{
	struct found *f = ctx;
	int32_t i = kind == EXTENT_LATENTS ? part : kind == EXTENT_INDEX_KEYS ? f->run->layout.n_groups + part
									       : f->run->n_parts;

	if (i < 0 || i > f->run->n_parts || part_kind(f->run, i) != kind || part_number(f->run, i) != part) {
		f->wrong = true;
		return;
	}
	f->extents[i] = e;
	f->n++;
}

/* It is a run of these tokens of this model, and what it has no place for is still in the store. */
static bool is_same(const struct cache_run *r, const struct index_job *j)
{
	int32_t n_places = 0;

	if (j->n_tokens != r->n_tokens || j->n_spans != (size_t)r->n_spans || j->n_parts != (size_t)r->n_parts ||
	    memcmp(j->identity, r->identity, sizeof j->identity) ||
	    memcmp(j->tip.bytes, r->keys[r->n_spans - 1].bytes, sizeof j->tip.bytes) || j->next_layer < 1)
		return false;
	for (int32_t i = 0; i < r->n_spans; i++) {
		if (!j->places[i] && r->places[i] >= 0)
			return false;
		n_places += j->places[i];
	}
	return n_places == j->n_places;
}

/* Pages of sums where a part that is whole meets others wait for those again. */
static int read_border(struct cache_run *r, int32_t part, struct err *err)
{
	enum extent_kind kind = part_kind(r, part);
	int32_t number = part_number(r, part), n_groups = r->layout.n_groups;
	int64_t from = sums_place(kind, number, 0, r->n_places, n_groups) * (int64_t)sizeof *r->sums;
	int64_t to = sums_place(kind, number + 1, 0, r->n_places, n_groups) * (int64_t)sizeof *r->sums;
	uint8_t page[EXTENT_ALIGN];

	while (from < to) {
		int64_t end = (from / EXTENT_ALIGN + 1) * EXTENT_ALIGN, n = (end < to ? end : to) - from;

		if (n == EXTENT_ALIGN) { /* the whole pages between the borders are as they shall be */
			from += (to - from) / EXTENT_ALIGN * EXTENT_ALIGN;
			continue;
		}
		if (segments_read(r->cache->segments, r->extents[r->n_parts], from, page, n, err) ||
		    put_fragment(r, r->n_parts, from, page, n, err))
			return -1;
		from += n;
	}
	return 0;
}

/* Take places, extents and what is whole from an interrupted run. 1: done, 0: it is of no use. */
static int take_up(struct cache_run *r, const struct index_job *j, const struct found *f, struct err *err)
{
	if (f->wrong || f->n != r->n_parts + 1 || !is_same(r, j))
		return 0;
	r->n_places = 0;
	r->place_tokens = 0;
	for (int32_t i = 0; i < r->n_spans; i++) {
		r->places[i] = j->places[i] ? r->n_places++ : -1;
		r->place_tokens += j->places[i] ? span_tokens(r->n_tokens, (int64_t)i * CACHE_SPAN_TOKENS) : 0;
	}
	for (int32_t i = 0; i <= r->n_parts; i++)
		if (f->extents[i].bytes != extent_bytes(r, i) || f->extents[i].offset + f->extents[i].bytes >
		    segments_file_bytes(r->cache->segments, f->extents[i].segment))
			return 0;
	memcpy(r->extents, f->extents, ((size_t)r->n_parts + 1) * sizeof *r->extents);
	for (int32_t p = 0; p < r->n_parts; p++) {
		if (j->whole[p] && read_border(r, p, err)) {
			memset(r->extents, 0, ((size_t)r->n_parts + 1) * sizeof *r->extents);
			clear_parts(r);
			return -1;
		}
		r->taken_up[p] = j->whole[p];
		r->n_put[p] = j->whole[p] ? r->n_spans : 0;
	}
	r->job = j->id;
	r->run = j->run;
	r->next_layer = j->next_layer;
	r->state = j->state;
	r->state_bytes = j->state_bytes;
	r->state_sum = j->state_sum;
	return 1;
}

int cache_run_forget(struct cache *c, const char *corpus, struct err *err)
{
	if (cache_check_sure(c, err) || index_begin(c->index, err))
		return -1;
	return cache_finish(c, index_drop_job(c->index, corpus, err), err);
}

static void add_bytes(void *ctx, enum extent_kind kind, int32_t part, struct extent e)
{
	(void)kind, (void)part;
	*(int64_t *)ctx += e.bytes;
}

int cache_run_reserved(struct cache *c, const char *corpus, int64_t *bytes, struct err *err)
{
	struct index_job j;
	int found;

	*bytes = 0;
	found = index_find_job(c->index, corpus, &j, add_bytes, bytes, err);
	if (found > 0) {
		free(j.places);
		free(j.whole);
	}
	if (found < 0)
		*bytes = 0;
	return found < 0 ? -1 : 0;
}

/* Go on with the corpus's interrupted run, if it has one of these tokens; one of others goes. */
static int resume(struct cache_run *r, struct err *err)
{
	struct found f = {.run = r, .extents = xcalloc((size_t)r->n_parts + 1, sizeof *f.extents)};
	struct index_job j;
	struct err why;
	int found = index_find_job(r->cache->index, r->corpus, &j, find_extent, &f, &why), same = 0;

	if (found > 0) {
		same = r->n_places ? take_up(r, &j, &f, &why) : 0;
		free(j.places);
		free(j.whole);
	}
	free(f.extents);
	if (found < 0 && why.code != ERR_DAMAGED) {
		if (err)
			*err = why;
		return -1;
	}
	if (found < 0 || same < 0)
		log_warn("the interrupted ingest of corpus '%s' begins anew: %s", r->corpus, why.text);
	return !found || same > 0 ? 0 : cache_run_forget(r->cache, r->corpus, err);
}

static struct cache_run *run_new(struct cache *c, const char *corpus, const struct cache_layout *layout,
				 const uint8_t identity[32], const struct span_key *parent, const int32_t *ids,
				 int64_t n_tokens)
{
	struct cache_run *r = xcalloc(1, sizeof *r);
	size_t n_groups = (size_t)layout->n_groups;

	r->cache = c;
	r->corpus = xstrdup(corpus);
	memcpy(r->identity, identity, sizeof r->identity);
	r->layout = *layout;
	r->layout.record_bytes = r->record_bytes = xmalloc(n_groups, sizeof *r->record_bytes);
	memcpy(r->record_bytes, layout->record_bytes, n_groups * sizeof *r->record_bytes);
	r->has_parent = parent;
	if (parent)
		r->parent = *parent;
	r->n_tokens = n_tokens;
	r->ids = xmalloc((size_t)n_tokens, sizeof *r->ids);
	memcpy(r->ids, ids, (size_t)n_tokens * sizeof *r->ids);
	r->n_spans = (int32_t)((n_tokens + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS);
	r->keys = xmalloc((size_t)r->n_spans, sizeof *r->keys);
	r->places = xmalloc((size_t)r->n_spans, sizeof *r->places);
	r->n_parts = layout->n_groups + layout->n_index_layers;
	r->extents = xcalloc((size_t)r->n_parts + 1, sizeof *r->extents);
	r->put = xcalloc((size_t)r->n_parts * (size_t)r->n_spans, sizeof *r->put);
	r->n_put = xcalloc((size_t)r->n_parts, sizeof *r->n_put);
	r->taken_up = xcalloc((size_t)r->n_parts, sizeof *r->taken_up);
	r->sums = xmalloc((size_t)STRETCH_SPANS * CACHE_SPAN_TOKENS, sizeof *r->sums);
	r->next = c->runs;
	c->runs = r;
	return r;
}

int cache_run_begin(struct cache_run **out, struct cache *c, const char *corpus, const struct cache_layout *layout,
		    const uint8_t identity[32], const struct span_key *parent, const int32_t *ids, int64_t n_tokens,
		    int32_t *next_layer, struct err *err)
{
	struct cache_run *r;

	assert(n_tokens > 0 && n_tokens <= INT32_MAX && layout->n_groups > 0 && !cache_runs_write(c, corpus));
	*next_layer = 0;
	if (cache_check_sure(c, err))
		return -1;
	r = run_new(c, corpus, layout, identity, parent, ids, n_tokens);
	if (!(r->buffer = aligned_new(WRITE_BYTES, err)) || find_places(r, err) || resume(r, err) ||
	    (r->n_places && !r->extents[0].bytes && reserve(r, err))) {
		cache_run_free(r);
		return err_wrap(err, "store %" PRId64 " tokens of corpus '%s'", n_tokens, corpus);
	}
	*next_layer = r->next_layer;
	*out = r;
	return 0;
}

void cache_run_free(struct cache_run *r)
{
	if (!r)
		return;
	give_up(r);
	scratch_close(r->reading);
	/* When nobody knows whether rows are on disk that name the space, it must not become somebody else's. */
	for (int32_t i = 0; !r->run && !r->cache->unsure.code && i <= r->n_parts; i++)
		if (r->extents[i].bytes)
			segments_release(r->cache->segments, r->extents[i]);
	for (struct cache_run **p = &r->cache->runs; *p; p = &(*p)->next)
		if (*p == r) {
			*p = r->next;
			break;
		}
	free_pages(r);
	free(r->pages);
	free(r->corpus);
	free(r->record_bytes);
	free(r->ids);
	free(r->keys);
	free(r->places);
	free(r->extents);
	free(r->put);
	free(r->n_put);
	free(r->taken_up);
	free(r->buffer);
	free(r->sums);
	free(r);
}

/* The tokens of n_spans neighbours, from span i on, that have places: their bytes, and their sums. */
static int put_stretch(struct cache_run *r, int32_t part, int32_t i, int32_t n_spans, const uint8_t *tokens,
		       struct err *err)
{
	enum extent_kind kind = part_kind(r, part);
	int32_t number = part_number(r, part), per_span = kind == EXTENT_LATENTS ? CACHE_SPAN_TOKENS : 1;
	int64_t bytes = token_bytes(r, part), n_bytes = 0;

	for (int32_t k = 0; k < n_spans; k++) {
		int32_t n = span_tokens(r->n_tokens, (int64_t)(i + k) * CACHE_SPAN_TOKENS);
		const uint8_t *from = tokens + n_bytes;
		uint64_t *sums = r->sums + (int64_t)k * per_span;

		if (kind == EXTENT_INDEX_KEYS)
			*sums = record_sum(&r->keys[i + k], kind, (uint32_t)number, 0, from, (size_t)(n * bytes));
		for (int32_t t = 0; kind == EXTENT_LATENTS && t < CACHE_SPAN_TOKENS; t++) /* tokens that are not there: 0 */
			sums[t] = t < n ? record_sum(&r->keys[i + k], kind, (uint32_t)number, (uint32_t)t, from + t * bytes,
						     (size_t)bytes) : 0;
		n_bytes += n * bytes;
	}
	return put_bytes(r, part, (int64_t)r->places[i] * CACHE_SPAN_TOKENS * bytes, tokens, n_bytes, err) ||
	       put_bytes(r, r->n_parts, sums_place(kind, number, r->places[i], r->n_places, r->layout.n_groups) *
			 (int64_t)sizeof *r->sums, r->sums, (int64_t)n_spans * per_span * (int64_t)sizeof *r->sums, err)
	       ? -1 : 0;
}

static int put(struct cache_run *r, int32_t part, int64_t first, int64_t n, const uint8_t *tokens, struct err *err)
{
	int32_t i = (int32_t)(first / CACHE_SPAN_TOKENS);
	int32_t end = (int32_t)((first + n + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS);
	bool *there = r->put + (size_t)part * (size_t)r->n_spans;

	assert(first >= 0 && n > 0 && n <= r->n_tokens - first && !(first % CACHE_SPAN_TOKENS));
	assert(!(n % CACHE_SPAN_TOKENS) || first + n == r->n_tokens);
	for (int32_t k; !r->taken_up[part] && i < end; i = k) {
		const uint8_t *from = tokens + ((int64_t)i * CACHE_SPAN_TOKENS - first) * token_bytes(r, part);

		for (k = i; k < end && k < i + STRETCH_SPANS && (r->places[k] < 0) == (r->places[i] < 0); k++) {
			assert(!there[k]);
			there[k] = true;
			r->n_put[part]++;
		}
		if (r->places[i] >= 0 && put_stretch(r, part, i, k - i, from, err))
			return err_wrap(err, "store tokens of corpus '%s'", r->corpus);
	}
	return 0;
}

int cache_run_records(struct cache_run *r, int32_t group, int64_t first, int64_t n, const uint8_t *records,
		      struct err *err)
{
	assert(group >= 0 && group < r->layout.n_groups);
	return put(r, group, first, n, records, err);
}

int cache_run_index_keys(struct cache_run *r, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
			 struct err *err)
{
	assert(index_layer >= 0 && index_layer < r->layout.n_index_layers);
	return put(r, r->layout.n_groups + index_layer, first, n, keys, err);
}

void cache_run_count(struct cache_run *r, const uint32_t *chosen, int32_t n_layers, int32_t n_experts)
{
	r->chosen = chosen;
	r->n_layers = n_layers;
	r->n_experts = n_experts;
}

int cache_run_counted(struct cache_run *r, uint32_t *chosen, int32_t n_layers, int32_t n_experts, struct err *err)
{
	int64_t n_tokens;

	return r->run ? index_get_routing(r->cache->index, r->run, n_layers, n_experts, chosen, &n_tokens, err) : 0;
}

static int put_counts(struct cache_run *r, int64_t run, struct err *err)
{
	if (!r->chosen || !run)
		return 0;
	return index_put_routing(r->cache->index, run, r->n_tokens, r->n_layers, r->n_experts, r->chosen, err);
}

/* 1: some span has no better place yet. Another corpus may have stored the same beginning meanwhile. */
static int is_needed(struct cache_run *r, struct err *err)
{
	for (int32_t i = 0; i < r->n_spans; i++) {
		int64_t span;
		int found = r->places[i] < 0 ? 1 : index_find_span(r->cache->index, &r->keys[i], true, &span, err);

		if (found <= 0)
			return found ? -1 : 1;
	}
	return 0;
}

static int add_extents(struct cache_run *r, int64_t *run, struct err *err)
{
	struct index *x = r->cache->index;
	int64_t layout;

	if (index_layout(x, r->identity, &r->layout, &layout, err) || index_add_run(x, layout, r->n_places, run, err))
		return -1;
	for (int32_t i = 0; i <= r->n_parts; i++)
		if (index_add_extent(x, *run, part_kind(r, i), part_number(r, i), r->extents[i], err))
			return -1;
	return 0;
}

/* The pages of sums that still wait: what of them belongs to whole parts is to be there. */
static int write_pages(struct cache_run *r, struct err *err)
{
	for (size_t i = 0; i < r->n_pages; i++)
		if (r->pages[i].extent == r->n_parts &&
		    segments_write(r->cache->segments, r->extents[r->n_parts], r->pages[i].number * EXTENT_ALIGN,
				   r->pages[i].bytes, EXTENT_ALIGN, err))
			return -1;
	return 0;
}

static int write_job(struct cache_run *r, struct index_job *j, struct err *err)
{
	int rc = 0;

	if (r->job)
		return index_change_job(r->cache->index, j, err) || put_counts(r, r->run, err) ? -1 : 0;
	j->places = xmalloc((size_t)r->n_spans, 1);
	j->n_spans = (size_t)r->n_spans;
	for (int32_t i = 0; i < r->n_spans; i++)
		j->places[i] = r->places[i] >= 0;
	rc = add_extents(r, &j->run, err) || index_add_job(r->cache->index, r->corpus, j, err) || put_counts(r, j->run, err)
	     ? -1 : 0;
	free(j->places);
	return rc;
}

/* A number for a job that is new: other runs may be about to write such a row. */
static int next_job(const struct cache_run *r, int64_t *id, struct err *err)
{
	if (index_next_job(r->cache->index, id, err))
		return -1;
	for (const struct cache_run *o = r->cache->runs; o; o = o->next)
		if (o->saving && o->saving_name.job >= *id)
			*id = o->saving_name.job + 1;
	return 0;
}

static int begin_saving(struct cache_run *r, size_t bytes, struct err *err)
{
	struct scratch_name name = {r->job, r->job ? !r->state.file : 0};

	give_up(r);
	if (cache_check_sure(r->cache, err) || (!r->job && next_job(r, &name.job, err)))
		return -1;
	r->saving_name = name;
	if (!scratch_create(&r->saving, r->cache->dir, name, (int64_t)bytes, err))
		return 0;
	if (!r->job)
		scratch_remove(r->cache->dir, name.job);
	return -1;
}

/* All of the state is there: make durable what it belongs to, and say so. */
static int finish_saving(struct cache_run *r, int32_t next_layer, size_t bytes, struct err *err)
{
	struct cache *c = r->cache;
	struct index_job j = {
		.id = r->saving_name.job, .run = r->run, .tip = r->keys[r->n_spans - 1], .n_tokens = r->n_tokens,
		.n_parts = (size_t)r->n_parts, .next_layer = next_layer, .state = r->saving_name,
		.state_bytes = (int64_t)bytes,
	};
	int rc;

	if (cache_check_sure(c, err) || scratch_finish(r->saving, &j.state_sum, err) || write_pages(r, err))
		return -1;
	if (segments_sync(c->segments, err)) {
		c->unsure = *err;
		return -1;
	}
	j.whole = xmalloc(j.n_parts, 1);
	for (int32_t p = 0; p < r->n_parts; p++)
		j.whole[p] = r->n_put[p] == r->n_spans;
	rc = index_begin(c->index, err) || cache_finish(c, write_job(r, &j, err), err) ? -1 : 0;
	free(j.whole);
	if (rc)
		return -1;
	scratch_close(r->saving);
	r->saving = NULL;
	r->job = j.id;
	r->run = j.run;
	r->state = j.state;
	r->state_bytes = j.state_bytes;
	r->state_sum = j.state_sum;
	return 0;
}

static int save_piece(struct cache_run *r, int32_t next_layer, size_t bytes, size_t at, const void *piece, size_t n,
		      struct err *err)
{
	if (!at && begin_saving(r, bytes, err))
		return -1;
	if (!r->saving)
		return err_set(err, ERR_FAILED, "what it goes on from went when the corpus's interrupted ingest was dropped");
	assert(scratch_at(r->saving) == (int64_t)at);
	return scratch_append(r->saving, piece, (int64_t)n, err) ||
	       (at + n == bytes && finish_saving(r, next_layer, bytes, err)) ? -1 : 0;
}

int cache_run_checkpoint(struct cache_run *r, int32_t next_layer, size_t bytes, size_t at, const void *piece, size_t n,
			 struct err *err)
{
	assert(next_layer > 0 && at <= bytes && n <= bytes - at);
	if (!r->n_places)
		return 0; /* there is nothing to lose */
	if (!save_piece(r, next_layer, bytes, at, piece, n, err))
		return 0;
	give_up(r);
	return err_wrap(err, "save the ingest of corpus '%s' before layer %d", r->corpus, next_layer);
}

static int read_state(struct cache_run *r, size_t bytes, size_t at, void *piece, size_t n, struct err *err)
{
	if ((int64_t)bytes != r->state_bytes)
		return err_set(err, ERR_DAMAGED, "it has %" PRId64 " bytes, not %zu", r->state_bytes, bytes);
	if (!at) {
		scratch_close(r->reading);
		r->reading = NULL;
		if (scratch_open(&r->reading, r->cache->dir, r->state, r->state_bytes, r->state_sum, err))
			return -1;
	}
	assert(r->reading && scratch_at(r->reading) == (int64_t)at);
	return scratch_read(r->reading, piece, (int64_t)n, err);
}

int cache_run_state(struct cache_run *r, size_t bytes, size_t at, void *piece, size_t n, struct err *err)
{
	int rc;

	assert(r->next_layer && at <= bytes && n <= bytes - at);
	rc = read_state(r, bytes, at, piece, n, err);
	if (rc || at + n == bytes) {
		scratch_close(r->reading);
		r->reading = NULL;
	}
	return rc ? err_wrap(err, "the saved ingest of corpus '%s'", r->corpus) : 0;
}

int cache_run_restart(struct cache_run *r, struct err *err)
{
	if (r->job && cache_run_forget(r->cache, r->corpus, err))
		return -1;
	clear_parts(r);
	r->next_layer = 0;
	return 0;
}

static int write_rows(struct cache_run *r, int64_t *run, struct err *err)
{
	struct index *x = r->cache->index;
	int64_t span = 0;
	int found = r->has_parent ? index_find_span(x, &r->parent, false, &span, err) : 1;

	if (found <= 0)
		return found ? -1 : err_set(err, ERR_FAILED, "the span before these is not in the store any more");
	found = is_needed(r, err);
	*run = found > 0 ? r->run : 0;
	if (found < 0 || (found && !*run && add_extents(r, run, err)) || put_counts(r, *run, err))
		return -1;
	for (int32_t i = 0; i < r->n_spans; i++) {
		int64_t first = (int64_t)i * CACHE_SPAN_TOKENS, there;

		found = index_find_span(x, &r->keys[i], r->places[i] >= 0, &there, err);
		if (found < 0)
			return -1;
		if (found)
			span = there;
		else if (r->places[i] < 0)
			return err_set(err, ERR_FAILED, "span %d of %d was in the store and went while the others were computed: "
				       "ingest again, what is stored stays", i, r->n_spans);
		else if (index_put_span(x, &r->keys[i], span, *run, r->places[i], r->ids + first,
					span_tokens(r->n_tokens, first), &span, err))
			return -1;
	}
	return index_set_pending(x, r->corpus, span, err) || index_drop_job(x, r->corpus, err) ? -1 : 0;
}

static int commit(struct cache_run *r, struct err *err)
{
	struct cache *c = r->cache;
	int64_t run;

	if (cache_check_sure(c, err))
		return -1;
	if (r->n_places && segments_sync(c->segments, err)) {
		c->unsure = *err;
		return -1;
	}
	if (index_begin(c->index, err) || cache_finish(c, write_rows(r, &run, err), err))
		return -1;
	r->run = run;
	return 0;
}

int cache_run_commit(struct cache_run *r, struct err *err)
{
	for (int32_t p = 0; p < r->n_parts; p++)
		assert(r->n_put[p] == r->n_spans || !r->n_places);
	assert(!r->n_pages);
	return commit(r, err) ? err_wrap(err, "store %" PRId64 " tokens of corpus '%s'", r->n_tokens, r->corpus) : 0;
}

static int put_all(struct cache_run *r, const uint8_t *const *records, const uint8_t *const *index_keys, struct err *err)
{
	for (int32_t g = 0; g < r->layout.n_groups; g++)
		if (put(r, g, 0, r->n_tokens, records[g], err))
			return -1;
	for (int32_t i = 0; i < r->layout.n_index_layers; i++)
		if (put(r, r->layout.n_groups + i, 0, r->n_tokens, index_keys[i], err))
			return -1;
	return 0;
}

int cache_write_spans(struct cache *c, const char *corpus, const struct cache_layout *layout,
		      const uint8_t identity[32], const struct span_key *parent, const int32_t *ids, int32_t n_tokens,
		      const uint8_t *const *records, const uint8_t *const *index_keys, struct err *err)
{
	struct cache_run *r = NULL;
	int32_t next_layer;
	int rc = cache_run_begin(&r, c, corpus, layout, identity, parent, ids, n_tokens, &next_layer, err) ||
		 put_all(r, records, index_keys, err) || cache_run_commit(r, err) ? -1 : 0;

	cache_run_free(r);
	return rc;
}
