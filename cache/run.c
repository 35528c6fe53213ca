#include "cache/run.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cache/inside.h"
#include "cache/key.h"
#include "config/mem.h"

/*   begin: reserve --> put: write --> commit: sync --> rows, in one transaction --> found by readers
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
	struct page *pages;     /* [n_pages] by extent and number */
	size_t n_pages, page_room;
	uint8_t *buffer;        /* [WRITE_BYTES] as segments_write wants it */
	uint64_t *sums;         /* [STRETCH_SPANS][64] */
	bool keeps;             /* rows name the extents */
};

void cache_runs_take(struct cache *c)
{
	for (const struct cache_run *r = c->runs; r; r = r->next)
		for (int32_t i = 0; i <= r->n_parts; i++)
			if (r->extents[i].bytes)
				segments_take(c->segments, r->extents[i]);
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
	r->sums = xmalloc((size_t)STRETCH_SPANS * CACHE_SPAN_TOKENS, sizeof *r->sums);
	r->next = c->runs;
	c->runs = r;
	return r;
}

/* Memory that segments_write takes. */
static uint8_t *aligned_new(size_t bytes, struct err *err)
{
	uint8_t *p = aligned_alloc(EXTENT_ALIGN, bytes);

	if (!p)
		err_set(err, ERR_TOO_LARGE, "no memory for %zu bytes of latents", bytes);
	return p;
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
	if (!(r->buffer = aligned_new(WRITE_BYTES, err)) || find_places(r, err) || (r->n_places && reserve(r, err))) {
		cache_run_free(r);
		return err_wrap(err, "store %" PRId64 " tokens of corpus '%s'", n_tokens, corpus);
	}
	*out = r;
	return 0;
}

void cache_run_free(struct cache_run *r)
{
	if (!r)
		return;
	/* When nobody knows whether rows are on disk that name the space, it must not become somebody else's. */
	for (int32_t i = 0; !r->keeps && !r->cache->unsure.code && i <= r->n_parts; i++)
		if (r->extents[i].bytes)
			segments_release(r->cache->segments, r->extents[i]);
	for (struct cache_run **p = &r->cache->runs; *p; p = &(*p)->next)
		if (*p == r) {
			*p = r->next;
			break;
		}
	for (size_t i = 0; i < r->n_pages; i++)
		free(r->pages[i].bytes);
	free(r->pages);
	free(r->corpus);
	free(r->record_bytes);
	free(r->ids);
	free(r->keys);
	free(r->places);
	free(r->extents);
	free(r->put);
	free(r->n_put);
	free(r->buffer);
	free(r->sums);
	free(r);
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
	for (int32_t k; i < end; i = k) {
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

static int write_rows(struct cache_run *r, bool *needed, struct err *err)
{
	struct index *x = r->cache->index;
	int64_t run = 0, span = 0;
	int found = r->has_parent ? index_find_span(x, &r->parent, false, &span, err) : 1;

	if (found <= 0)
		return found ? -1 : err_set(err, ERR_FAILED, "the span before these is not in the store any more");
	found = is_needed(r, err);
	*needed = found > 0;
	if (found < 0 || (found && add_extents(r, &run, err)))
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
		else if (index_put_span(x, &r->keys[i], span, run, r->places[i], r->ids + first,
					span_tokens(r->n_tokens, first), &span, err))
			return -1;
	}
	return index_set_pending(x, r->corpus, span, err);
}

static int commit(struct cache_run *r, struct err *err)
{
	struct cache *c = r->cache;
	bool needed = false;

	if (cache_check_sure(c, err))
		return -1;
	if (r->n_places && segments_sync(c->segments, err)) {
		c->unsure = *err;
		return -1;
	}
	if (index_begin(c->index, err) || cache_finish(c, write_rows(r, &needed, err), err))
		return -1;
	r->keeps = needed;
	return 0;
}

int cache_run_commit(struct cache_run *r, struct err *err)
{
	assert(!r->keeps);
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
