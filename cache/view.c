#include "cache/view.h"

#include <assert.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cache/inside.h"
#include "cache/key.h"
#include "config/log.h"
#include "config/mem.h"
#include "offload/io.h"

/*   positions --> items (what is verified alone: a record, or a span's keys) --> sorted by place --> runs of items that
 *   one read serves --> segments_read_many --> verify, copy
 */

enum {
	/* A read costs a disk as much as some ten thousand bytes; but what lies between is not wanted, and a token's
	 * reads are counted. */
	GAP_MOST = 4096,
	ITEMS_MOST = 1 << 16,   /* at a time: of a million records, a few MB of numbers */
};

/* A run of the store (spans written together), as far as the view uses it. */
struct run {
	struct extent sums_extent;
	int32_t n_places;       /* of the run */
	int32_t first, n;       /* those that the view uses lie within these */
	int32_t n_groups, n_parts; /* parts: groups, then index layers */
	struct extent *extents; /* [n_parts] bytes = 0: its row is lost */
	int64_t *token_bytes;   /* [n_parts] */
	uint64_t *sums;         /* [n_groups][n][64], then [n_parts - n_groups][n] */
};

struct span {
	struct span_key key;
	int32_t run, place, n_tokens;
	enum err_code lost;     /* why it is a hole: ERR_NOT_FOUND, it is not in the store, or how its checksums' read failed */
};

struct cache_view {
	struct cache *cache;
	int64_t n_tokens;
	struct span *spans;     /* [n_spans] */
	int32_t n_spans;
	struct run *runs;       /* [n_runs] */
	int32_t n_runs;
	struct cache_view_stats stats;
};

/* What is verified alone, and where its bytes go. */
struct item {
	int64_t at, bytes;      /* in the extent of its part of its span's run */
	int32_t part;           /* group or index layer */
	int32_t span, token;    /* token in the span: a record's, or the first whose key is wanted */
	int32_t n_tokens;       /* whose keys are wanted */
	uint8_t *out;           /* of a record */
	int64_t skip;           /* bytes before the first key that is wanted */
};

/* ---- open ------------------------------------------------------------------------------------------------------- */

static int32_t part_number(const struct run *r, int32_t part)
{
	return part < r->n_groups ? part : part - r->n_groups;
}

static enum extent_kind part_kind(const struct run *r, int32_t part)
{
	return part < r->n_groups ? EXTENT_LATENTS : EXTENT_INDEX_KEYS;
}

/* Sums of a part that the view holds, and where they begin among all of the run's. */
static int64_t part_sums(const struct run *r, int32_t part)
{
	return (int64_t)r->n * (part < r->n_groups ? CACHE_SPAN_TOKENS : 1);
}

static int64_t sums_before(const struct run *r, int32_t part)
{
	return sums_place(part_kind(r, part), part_number(r, part), 0, r->n, r->n_groups);
}

/* The run that has these sums, made when the view has none: all runs of a store differ in them. */
static int find_run(struct cache_view *v, const struct span_key *key, const struct block *b, int32_t *run,
		    struct err *err)
{
	struct run *r;
	struct block part;
	int found = 1;

	for (*run = v->n_runs; (*run)--; )
		if (v->runs[*run].sums_extent.segment == b->sums.segment &&
		    v->runs[*run].sums_extent.offset == b->sums.offset)
			return 0;
	v->runs = xrealloc(v->runs, (size_t)v->n_runs + 1, sizeof *v->runs);
	*run = v->n_runs++;
	r = &v->runs[*run];
	*r = (struct run){.sums_extent = b->sums, .n_places = b->n_places, .first = b->place, .n_groups = b->n_groups};
	for (int32_t i = 0; i < r->n_groups || found; i++) {
		found = index_find_block(v->cache->index, key, part_kind(r, i), part_number(r, i), &part, err);
		if (found < 0)
			return -1;
		if (!found && i >= r->n_groups)
			break;
		r->extents = xrealloc(r->extents, (size_t)i + 1, sizeof *r->extents);
		r->token_bytes = xrealloc(r->token_bytes, (size_t)i + 1, sizeof *r->token_bytes);
		r->extents[i] = found ? part.extent : (struct extent){0};
		r->token_bytes[i] = found ? part.token_bytes : 0;
		r->n_parts = i + 1;
	}
	return 0;
}

/* 1: the span is there. */
static int find_span(struct cache_view *v, struct span *s, struct err *err)
{
	struct index *x = v->cache->index;
	const struct span_key *key = &s->key;
	struct block b;
	struct run *r;
	int64_t id;
	int32_t end;
	int found = index_find_span(x, key, true, &id, err);

	if (found > 0)
		found = index_find_block(x, key, EXTENT_LATENTS, 0, &b, err);
	if (found <= 0)
		return found;
	if (b.n_tokens != s->n_tokens || b.n_groups < 1 || b.place < 0 || b.place >= b.n_places)
		return err_set(err, ERR_DAMAGED, "index of %s says %d tokens, place %d of %d, for a span of %d",
			       v->cache->dir, b.n_tokens, b.place, b.n_places, s->n_tokens);
	s->place = b.place;
	if (find_run(v, key, &b, &s->run, err))
		return -1;
	r = &v->runs[s->run];
	end = r->first + r->n > s->place + 1 ? r->first + r->n : s->place + 1;
	r->first = r->first < s->place ? r->first : s->place;
	r->n = end - r->first;
	return 1;
}

static int find_spans(struct cache_view *v, const uint8_t identity[32], const int32_t *ids, int64_t n_tokens,
		      struct err *err)
{
	v->spans = xmalloc((size_t)(n_tokens / CACHE_SPAN_TOKENS + 1), sizeof *v->spans);
	while (v->n_tokens < n_tokens) {
		struct span *s = &v->spans[v->n_spans];
		int found;

		*s = (struct span){.n_tokens = span_tokens(n_tokens, v->n_tokens)};
		span_key_make(&s->key, identity, v->n_spans ? &s[-1].key : NULL, ids + v->n_tokens, s->n_tokens);
		found = find_span(v, s, err);
		if (found < 0)
			return -1;
		s->lost = found ? 0 : ERR_NOT_FOUND;
		v->n_spans++;
		v->n_tokens += s->n_tokens;
	}
	return 0;
}

/* Reads that only have to be put somewhere. */
struct copies {
	struct segment_read *reads;
	uint8_t **to;
	int32_t *runs;          /* whose sums they are */
	bool *done;
	size_t n, room;
};

static int copy(void *ctx, size_t i, const uint8_t *bytes, struct err *err)
{
	const struct copies *c = ctx;

	(void)err;
	memcpy(c->to[i], bytes, (size_t)c->reads[i].bytes);
	c->done[i] = true;
	return 0;
}

static void add_copy(struct copies *c, int32_t run, struct extent x, int64_t at, int64_t bytes, void *to)
{
	while (bytes) {
		int64_t n = bytes < SEGMENT_READ_GOOD ? bytes : SEGMENT_READ_GOOD;

		if (c->n == c->room) {
			c->room = c->room ? 2 * c->room : 64;
			c->reads = xrealloc(c->reads, c->room, sizeof *c->reads);
			c->to = xrealloc(c->to, c->room, sizeof *c->to);
			c->runs = xrealloc(c->runs, c->room, sizeof *c->runs);
			c->done = xrealloc(c->done, c->room, sizeof *c->done);
		}
		c->reads[c->n] = (struct segment_read){.x = x, .at = at, .bytes = n};
		c->to[c->n] = to;
		c->done[c->n] = false;
		c->runs[c->n++] = run;
		at += n;
		to = (uint8_t *)to + n;
		bytes -= n;
	}
}

static void plan_sums(struct cache_view *v, struct copies *c)
{
	for (int32_t i = 0; i < v->n_runs; i++) {
		struct run *r = &v->runs[i];
		int64_t all = sums_before(r, r->n_parts);

		free(r->sums);
		r->sums = xmalloc((size_t)all, sizeof *r->sums);
		if (r->n == r->n_places) {
			add_copy(c, i, r->sums_extent, 0, all * (int64_t)sizeof *r->sums, r->sums);
			continue;
		}
		for (int32_t p = 0; p < r->n_parts; p++)
			add_copy(c, i, r->sums_extent, sums_place(part_kind(r, p), part_number(r, p), r->first, r->n_places,
								  r->n_groups) * (int64_t)sizeof *r->sums,
				 part_sums(r, p) * (int64_t)sizeof *r->sums, r->sums + sums_before(r, p));
	}
}

/* Reads, counted. */
static int read_many(struct cache_view *v, const struct segment_read *reads, size_t n,
		     int (*fn)(void *ctx, size_t i, const uint8_t *bytes, struct err *err), void *ctx, size_t *failed,
		     struct err *err)
{
	struct segments *s = v->cache->segments;
	int64_t n_reads, bytes, n_before, bytes_before;
	int rc;

	segments_counts(s, &n_before, &bytes_before);
	rc = segments_read_many(s, reads, n, fn, ctx, failed, err);
	segments_counts(s, &n_reads, &bytes);
	v->stats.n_reads += n_reads - n_before;
	v->stats.read_bytes += bytes - bytes_before;
	v->cache->reads += n_reads - n_before;
	v->cache->read_bytes += bytes - bytes_before;
	return rc;
}

/* Sums of a run that cannot be read, by their bytes in its extent: the spans that they are of are holes. */
static void lose_sums(struct cache_view *v, int32_t run, int64_t at, int64_t bytes, enum err_code why)
{
	const struct run *r = &v->runs[run];
	int64_t of_keys = sums_place(EXTENT_INDEX_KEYS, 0, 0, r->n_places, r->n_groups);
	bool *gone = xcalloc((size_t)r->n_places, sizeof *gone);

	for (int64_t i = at / (int64_t)sizeof *r->sums; i < (at + bytes) / (int64_t)sizeof *r->sums; i++)
		gone[(i < of_keys ? i / CACHE_SPAN_TOKENS : i - of_keys) % r->n_places] = true;
	for (int32_t i = 0; i < v->n_spans; i++)
		if (!v->spans[i].lost && v->spans[i].run == run && gone[v->spans[i].place])
			v->spans[i].lost = why;
	free(gone);
}

/* A read has failed, and none is in flight: without those that are done, and without it, or with its halves instead. */
static void drop_copies(struct copies *c, size_t failed, bool halves)
{
	struct segment_read read = c->reads[failed];
	int64_t half = read.bytes / 2 / EXTENT_ALIGN * EXTENT_ALIGN;
	int32_t run = c->runs[failed];
	uint8_t *to = c->to[failed];
	size_t n = 0;

	for (size_t i = 0; i < c->n; i++) {
		if (c->done[i] || i == failed)
			continue;
		c->reads[n] = c->reads[i];
		c->to[n] = c->to[i];
		c->done[n] = false;
		c->runs[n++] = c->runs[i];
	}
	c->n = n;
	if (!halves)
		return;
	add_copy(c, run, read.x, read.at, half, to);
	add_copy(c, run, read.x, read.at + half, read.bytes - half, to + half);
}

/* A file that is not there, or too short, has lost what was to be read of it. A drive that fails a read does not say for
 * which byte: that is found by halves, down to a page or two. */
static void load_sums(struct cache_view *v)
{
	struct copies c = {0};
	size_t failed, n_lost = 0;
	struct err err;

	plan_sums(v, &c);
	for (size_t i = 0; i < c.n; i++)
		v->stats.sum_bytes += c.reads[i].bytes;
	while (c.n && read_many(v, c.reads, c.n, copy, &c, &failed, &err)) {
		const struct segment_read *r = &c.reads[failed];
		bool halves = err.code == ERR_IO && r->bytes >= 2 * EXTENT_ALIGN;

		if (!halves) {
			if (!n_lost++)
				log_warn("checksums of stored latents cannot be read, so these are computed again: %s", err.text);
			v->cache->damaged++;
			lose_sums(v, c.runs[failed], r->at, r->bytes, err.code);
		}
		drop_copies(&c, failed, halves);
	}
	if (n_lost > 1)
		log_warn("%zu more reads of checksums failed", n_lost - 1);
	free(c.reads);
	free(c.to);
	free(c.runs);
	free(c.done);
}

int cache_view_open(struct cache_view **out, struct cache *c, const uint8_t identity[32], const int32_t *ids,
		    int64_t n_tokens, int64_t *n_whole, struct err *err)
{
	struct cache_view *v = xcalloc(1, sizeof *v);

	v->cache = c;
	if (find_spans(v, identity, ids, n_tokens, err)) {
		cache_view_close(v);
		return err_wrap(err, "look for %" PRId64 " stored tokens", n_tokens);
	}
	load_sums(v);
	*n_whole = 0;
	for (int32_t i = 0; i < v->n_spans && !v->spans[i].lost; i++)
		*n_whole += v->spans[i].n_tokens;
	*out = v;
	return 0;
}

void cache_view_close(struct cache_view *v)
{
	if (!v)
		return;
	for (int32_t i = 0; i < v->n_runs; i++) {
		free(v->runs[i].extents);
		free(v->runs[i].token_bytes);
		free(v->runs[i].sums);
	}
	free(v->runs);
	free(v->spans);
	free(v);
}

/* ---- read ------------------------------------------------------------------------------------------------------- */

/* One call's items on their way. */
struct fetch {
	struct cache_view *v;
	enum extent_kind kind;
	struct item *items;     /* [n], sorted by where they lie */
	struct segment_read *reads;
	struct io_run *of;      /* the items of each read */
	int32_t stretch;        /* so many spans come before the next ones do; 0: items come as they lie */
	int32_t bad_span;       /* -1: none */
	/* Of keys: who takes them, and the token whose fault it was that he did not. */
	cache_view_taker *take;
	void *ctx;
	int64_t bad_token;
};

static int32_t part_of(const struct run *r, const struct fetch *f, int32_t part)
{
	return f->kind == EXTENT_LATENTS ? part : r->n_groups + part;
}

static const struct extent *extent_of(const struct fetch *f, const struct item *i)
{
	const struct run *r = &f->v->runs[f->v->spans[i->span].run];

	return &r->extents[part_of(r, f, i->part)];
}

/* By stretch, then by where an item lies on disk: segment, then byte. */
static int compare_items(const struct fetch *f, const struct item *a, const struct item *b)
{
	const struct extent *p = extent_of(f, a), *q = extent_of(f, b);
	int64_t x = p->offset + a->at, y = q->offset + b->at;

	if (f->stretch && a->span / f->stretch != b->span / f->stretch)
		return a->span > b->span ? 1 : -1;
	if (p->segment != q->segment)
		return (p->segment > q->segment) - (p->segment < q->segment);
	return (x > y) - (x < y);
}

static int compare_for_sort(const void *a, const void *b, void *ctx)
{
	return compare_items(ctx, a, b);
}

/* Mostly they lie as they come. */
static void sort_items(struct fetch *f, size_t n)
{
	for (size_t i = 1; i < n; i++)
		if (compare_items(f, &f->items[i - 1], &f->items[i]) > 0) {
			qsort_r(f->items, n, sizeof *f->items, compare_for_sort, f);
			return;
		}
}

static int wrong_item(struct fetch *f, const struct item *item, struct err *err)
{
	const struct extent *x = extent_of(f, item);
	char name[SEGMENT_NAME_BYTES];

	f->bad_span = item->span;
	return err_set(err, ERR_DAMAGED, "checksum of %s/%s at byte %" PRId64 " is wrong", f->v->cache->dir,
		       segment_name(x->segment, name), x->offset + item->at);
}

static int verify_item(struct fetch *f, const struct item *item, const uint8_t *bytes, struct err *err)
{
	const struct span *s = &f->v->spans[item->span];
	const struct run *r = &f->v->runs[s->run];
	const uint64_t *sums = r->sums + sums_before(r, part_of(r, f, item->part));
	int64_t place = s->place - r->first;
	bool record = f->kind == EXTENT_LATENTS;
	uint64_t sum = record ? sums[place * CACHE_SPAN_TOKENS + item->token] : sums[place];

	if (record_sum(&s->key, f->kind, (uint32_t)item->part, record ? (uint32_t)item->token : 0, bytes,
		       (size_t)item->bytes) != sum)
		return wrong_item(f, item, err);
	return 0;
}

static bool follows(const struct item *a, const struct item *b)
{
	return b->span == a->span + 1 && b->at == a->at + a->bytes;
}

/* Items [k] .. [end - 1], verified, of the bytes from `at` on. */
static int lend_keys(struct fetch *f, size_t k, size_t end, const uint8_t *bytes, int64_t at, struct err *err)
{
	for (size_t from = k; from < end; from = k) {
		const struct item *i = &f->items[from];
		int64_t n = 0;

		do /* only the first one of a call has anything to skip, and only the last one ends early */
			n += f->items[k].n_tokens;
		while (++k < end && follows(&f->items[k - 1], &f->items[k]));
		if (f->take(f->ctx, i->part, (int64_t)i->span * CACHE_SPAN_TOKENS + i->token, n,
			    bytes + (i->at + i->skip - at), &f->bad_token, err))
			return -1;
	}
	return 0;
}

static int take_read(void *ctx, size_t i, const uint8_t *bytes, struct err *err)
{
	struct fetch *f = ctx;
	size_t first = f->of[i].first, end = first + f->of[i].n;

	for (size_t k = first; k < end; k++)
		if (verify_item(f, &f->items[k], bytes + (f->items[k].at - f->reads[i].at), err))
			return -1;
	if (f->take)
		return lend_keys(f, first, end, bytes, f->reads[i].at, err);
	for (size_t k = first; k < end; k++)
		memcpy(f->items[k].out, bytes + (f->items[k].at - f->reads[i].at), (size_t)f->items[k].bytes);
	return 0;
}

/* Items into reads: neighbours in one extent, and what is nearly so. Returns the number of reads. */
static size_t plan_reads(struct fetch *f, size_t n, int64_t gap_most)
{
	struct io_range *in = xmalloc(n, sizeof *in);
	size_t n_reads = 0;

	for (size_t i = 0; i < n; i++)
		in[i] = (struct io_range){(uint64_t)f->items[i].at, (uint64_t)f->items[i].bytes};
	for (size_t from = 0, to; from < n; from = to) {
		const struct extent *x = extent_of(f, &f->items[from]);
		size_t end;

		for (to = from; to < n && extent_of(f, &f->items[to]) == x; to++)
			;
		end = n_reads + io_coalesce(f->of + n_reads, in + from, to - from, (uint64_t)gap_most, SEGMENT_READ_GOOD);
		for (; n_reads < end; n_reads++) {
			f->of[n_reads].first += from;
			f->reads[n_reads] = (struct segment_read){
				.x = *x, .at = (int64_t)f->of[n_reads].offset, .bytes = (int64_t)f->of[n_reads].bytes
			};
		}
	}
	free(in);
	return n_reads;
}

static int fetch_items(struct fetch *f, size_t n, int64_t gap_most, int64_t *bad, struct err *err)
{
	char name[KEY_NAME_BYTES];
	size_t n_reads, failed;
	int32_t part;
	int rc;

	f->bad_span = -1;
	f->bad_token = -1;
	sort_items(f, n);
	f->of = xmalloc(n, sizeof *f->of);
	f->reads = xmalloc(n, sizeof *f->reads);
	n_reads = plan_reads(f, n, gap_most);
	rc = read_many(f->v, f->reads, n_reads, take_read, f, &failed, err);
	if (rc && f->bad_token >= 0)
		f->bad_span = (int32_t)(f->bad_token / CACHE_SPAN_TOKENS);
	else if (rc && f->bad_span < 0)
		f->bad_span = f->items[f->of[failed].first].span;
	part = rc ? f->items[f->of[failed].first].part : -1;
	free(f->of);
	free(f->reads);
	if (!rc)
		return 0;
	f->v->cache->damaged += err->code == ERR_DAMAGED;
	if (bad && (err->code == ERR_DAMAGED || f->bad_token >= 0))
		*bad = f->bad_token >= 0 ? f->bad_token : (int64_t)f->bad_span * CACHE_SPAN_TOKENS;
	return err_wrap(err, "span %s, %s %d", span_key_name(&f->v->spans[f->bad_span].key, name),
			f->kind == EXTENT_LATENTS ? "latents of group" : "index keys of full layer", part);
}

static int hole_error(const struct span *s, struct err *err)
{
	char name[KEY_NAME_BYTES];

	span_key_name(&s->key, name);
	return s->lost == ERR_NOT_FOUND ? err_set(err, s->lost, "span %s is not in the store", name)
					: err_set(err, s->lost, "the checksums of span %s cannot be read", name);
}

/* The part's extent and bytes of a token, as its run has them. */
static int check_part(struct fetch *f, int32_t part, int32_t span, int64_t *token_bytes, int64_t *bad, struct err *err)
{
	const struct span *s = &f->v->spans[span];
	const struct run *r;
	int32_t i;

	if (s->lost) {
		if (bad)
			*bad = (int64_t)span * CACHE_SPAN_TOKENS;
		return hole_error(s, err);
	}
	r = &f->v->runs[s->run];
	i = part_of(r, f, part);
	if (i >= 0 && i < (f->kind == EXTENT_LATENTS ? r->n_groups : r->n_parts) && r->extents[i].bytes) {
		*token_bytes = r->token_bytes[i];
		return 0;
	}
	if (bad)
		*bad = (int64_t)span * CACHE_SPAN_TOKENS;
	return err_set(err, ERR_DAMAGED, "index of %s has no place for %s %d of token %" PRId64, f->v->cache->dir,
		       f->kind == EXTENT_LATENTS ? "latents of group" : "index keys of full layer", part,
		       (int64_t)span * CACHE_SPAN_TOKENS);
}

/* Records of positions, or of n from `first` on when positions is NULL. */
static int fetch_records(struct cache_view *v, int32_t group, const int32_t *positions, int64_t first, int64_t n,
			 uint8_t *out, int64_t *bad, struct err *err)
{
	struct fetch f = {.v = v, .kind = EXTENT_LATENTS};
	size_t room = n < ITEMS_MOST ? (size_t)n : ITEMS_MOST, m;
	int rc = 0;

	if (bad)
		*bad = -1;
	f.items = xmalloc(room ? room : 1, sizeof *f.items);
	for (int64_t i = 0; !rc && i < n; i += (int64_t)m) {
		for (m = 0; !rc && m < room && i + (int64_t)m < n; m++) {
			int64_t p = positions ? positions[i + (int64_t)m] : first + i + (int64_t)m, bytes = 0;
			int32_t span = (int32_t)(p / CACHE_SPAN_TOKENS), token = (int32_t)(p % CACHE_SPAN_TOKENS);

			assert(p >= 0 && p < v->n_tokens);
			rc = check_part(&f, group, span, &bytes, bad, err);
			if (rc)
				break;
			f.items[m] = (struct item){
				.at = ((int64_t)v->spans[span].place * CACHE_SPAN_TOKENS + token) * bytes, .bytes = bytes,
				.part = group, .span = span, .token = token, .out = out
			};
			out += bytes;
			v->stats.record_bytes += bytes;
		}
		if (!rc)
			rc = fetch_items(&f, m, positions ? GAP_MOST : 0, bad, err);
	}
	free(f.items);
	return rc ? -1 : 0;
}

int cache_view_records(struct cache_view *v, int32_t group, int64_t first, int64_t n, uint8_t *out, int64_t *bad,
		       struct err *err)
{
	return fetch_records(v, group, NULL, first, n, out, bad, err);
}

int cache_view_gather(struct cache_view *v, int32_t group, const int32_t *positions, int64_t n, uint8_t *out,
		      int64_t *bad, struct err *err)
{
	return fetch_records(v, group, positions, 0, n, out, bad, err);
}

/* Spans of a layer that have tokens first .. end - 1, of the first and the last one perhaps not all. */
static int add_keys(struct fetch *f, size_t *m, int32_t layer, int64_t first, int64_t end, int64_t *bad, struct err *err)
{
	struct cache_view *v = f->v;
	int64_t n, bytes = 0;

	for (int64_t at = first; at < end; at += n) {
		int32_t span = (int32_t)(at / CACHE_SPAN_TOKENS), token = (int32_t)(at % CACHE_SPAN_TOKENS);

		n = v->spans[span].n_tokens - token;
		n = n < end - at ? n : end - at;
		if (check_part(f, layer, span, &bytes, bad, err))
			return -1;
		f->items[(*m)++] = (struct item){
			.at = (int64_t)v->spans[span].place * CACHE_SPAN_TOKENS * bytes, .bytes = v->spans[span].n_tokens * bytes,
			.part = layer, .span = span, .token = token, .n_tokens = (int32_t)n, .skip = token * bytes
		};
		v->stats.key_bytes += n * bytes;
	}
	return 0;
}

int cache_view_take_index_keys(struct cache_view *v, int32_t first_layer, int32_t n_layers, int64_t first, int64_t n,
			       cache_view_taker *take, void *ctx, int64_t *bad, struct err *err)
{
	struct fetch f = {.v = v, .kind = EXTENT_INDEX_KEYS, .take = take, .ctx = ctx,
			  .stretch = CACHE_VIEW_STRETCH / CACHE_SPAN_TOKENS};
	size_t of_stretch = (size_t)f.stretch * (size_t)n_layers, all = (size_t)n / CACHE_VIEW_STRETCH + 2;
	size_t most = ITEMS_MOST / of_stretch ? ITEMS_MOST / of_stretch : 1, room = of_stretch * (all < most ? all : most), m;
	int64_t end = first + n, to;
	int rc = 0;

	assert(first >= 0 && n >= 0 && n <= v->n_tokens - first && n_layers >= 1);
	if (bad)
		*bad = -1;
	f.items = xmalloc(room, sizeof *f.items);
	while (!rc && first < end) {
		for (m = 0; !rc && m + of_stretch <= room && first < end; first = to) {
			to = (first / CACHE_VIEW_STRETCH + 1) * CACHE_VIEW_STRETCH;
			to = to < end ? to : end;
			for (int32_t i = 0; !rc && i < n_layers; i++)
				rc = add_keys(&f, &m, first_layer + i, first, to, bad, err);
		}
		if (!rc)
			rc = fetch_items(&f, m, 0, bad, err);
	}
	free(f.items);
	return rc ? -1 : 0;
}

struct keys_out {
	const struct cache_view *v;
	int64_t first;
	uint8_t *out;
};

static int copy_keys(void *ctx, int32_t index_layer, int64_t at, int64_t n, const uint8_t *keys, int64_t *bad,
		     struct err *err)
{
	const struct keys_out *o = ctx;
	const struct run *r = &o->v->runs[o->v->spans[at / CACHE_SPAN_TOKENS].run];
	size_t bytes = (size_t)r->token_bytes[r->n_groups + index_layer];

	(void)bad;
	(void)err;
	memcpy(o->out + (size_t)(at - o->first) * bytes, keys, (size_t)n * bytes);
	return 0;
}

int cache_view_index_keys(struct cache_view *v, int32_t index_layer, int64_t first, int64_t n, uint8_t *out,
			  int64_t *bad, struct err *err)
{
	struct keys_out o = {v, first, out};

	return cache_view_take_index_keys(v, index_layer, 1, first, n, copy_keys, &o, bad, err);
}

const struct span_key *cache_view_key(const struct cache_view *v, int64_t position)
{
	assert(position >= 0 && position < v->n_tokens);
	return &v->spans[position / CACHE_SPAN_TOKENS].key;
}

void cache_view_stats(const struct cache_view *v, struct cache_view_stats *out)
{
	*out = v->stats;
}
