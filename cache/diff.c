#include "cache/diff.h"

#include <stdlib.h>
#include <string.h>

#include "cache/inside.h"
#include "config/mem.h"

int cache_read_snapshot(struct cache_reader *r, const char *corpus, int64_t id, struct cache_snapshot **out,
			struct err *err)
{
	int rc = index_begin_reading(r->index, err) || index_load_snapshot(r->index, corpus, id, out, err) ? -1 : 0;

	index_rollback(r->index);
	return rc;
}

int cache_read_pair(struct cache_reader *r, const char *from, int64_t from_id, const char *to, int64_t to_id,
		    struct cache_snapshot **from_out, struct cache_snapshot **to_out, struct err *err)
{
	int rc;

	*from_out = *to_out = NULL;
	rc = index_begin_reading(r->index, err) || index_load_snapshot(r->index, to, to_id, to_out, err) ? -1 : 0;
	if (!rc && !from)
		rc = index_snapshot_before(r->index, to, (*to_out)->id, &from_id, err);
	if (!rc)
		rc = index_load_snapshot(r->index, from ? from : to, from_id, from_out, err);
	index_rollback(r->index);
	if (rc) {
		cache_free_snapshot(*to_out);
		*from_out = *to_out = NULL;
	}
	return rc;
}

static int by_path(const void *a, const void *b)
{
	return strcmp((*(const struct cache_document *const *)a)->path, (*(const struct cache_document *const *)b)->path);
}

static int find_path(const void *path, const void *document)
{
	return strcmp(path, (*(const struct cache_document *const *)document)->path);
}

/* counterpart[n_to]: where a document of `to` stands in `from`, -1 where it does not. */
static void find_counterparts(int32_t *counterpart, const struct cache_snapshot *from, const struct cache_snapshot *to)
{
	const struct cache_document **sorted = xmalloc((size_t)from->n_documents, sizeof *sorted);

	for (int32_t i = 0; i < from->n_documents; i++)
		sorted[i] = &from->documents[i];
	if (from->n_documents)
		qsort(sorted, (size_t)from->n_documents, sizeof *sorted, by_path);
	for (int32_t i = 0; i < to->n_documents; i++) {
		const struct cache_document **f = from->n_documents
			? bsearch(to->documents[i].path, sorted, (size_t)from->n_documents, sizeof *sorted, find_path) : NULL;

		counterpart[i] = f ? (int32_t)(*f - from->documents) : -1;
	}
	free(sorted);
}

static bool has_same_text(const struct cache_document *a, const struct cache_document *b)
{
	return !memcmp(a->content_hash, b->content_hash, sizeof a->content_hash);
}

/*
 * stays[n]: a longest selection whose former places ascend; place[i] < 0 is not eligible. ends[k] is the position with the
 * lowest place at which a selection of k + 1 ends, and before[i] the position before i in its own.
 */
static void find_staying(bool *stays, const int32_t *place, int32_t n)
{
	int32_t *ends = xmalloc((size_t)n, sizeof *ends), *before = xmalloc((size_t)n, sizeof *before);
	int32_t longest = 0;

	for (int32_t i = 0; i < n; i++) {
		int32_t low = 0, high = longest;

		stays[i] = false;
		if (place[i] < 0)
			continue;
		while (low < high) {
			int32_t middle = low + (high - low) / 2;

			if (place[ends[middle]] < place[i])
				low = middle + 1;
			else
				high = middle;
		}
		before[i] = low ? ends[low - 1] : -1;
		ends[low] = i;
		longest += low == longest;
	}
	for (int32_t i = longest ? ends[longest - 1] : -1; i >= 0; i = before[i])
		stays[i] = true;
	free(ends);
	free(before);
}

static void add(struct cache_diff *d, enum cache_change change, const struct cache_snapshot *from, int32_t from_place,
		const struct cache_snapshot *to, int32_t to_place)
{
	const struct cache_document *f = from_place >= 0 ? &from->documents[from_place] : NULL;
	const struct cache_document *t = to_place >= 0 ? &to->documents[to_place] : NULL;

	d->n[change]++;
	d->files[d->n_files++] = (struct cache_diff_file){
		change, t ? t->path : f->path, from_place, to_place, f ? f->n_tokens : 0, t ? t->n_tokens : 0,
	};
}

static void compare_documents(struct cache_diff *d, const struct cache_snapshot *from, const struct cache_snapshot *to)
{
	int32_t *counterpart = xmalloc((size_t)to->n_documents, sizeof *counterpart);
	int32_t *place = xmalloc((size_t)to->n_documents, sizeof *place);
	bool *stays = xmalloc((size_t)to->n_documents, sizeof *stays);
	bool *remains = xcalloc((size_t)from->n_documents, sizeof *remains);

	find_counterparts(counterpart, from, to);
	for (int32_t i = 0; i < to->n_documents; i++) {
		int32_t f = counterpart[i];

		place[i] = f >= 0 && has_same_text(&from->documents[f], &to->documents[i]) ? f : -1;
		if (f >= 0)
			remains[f] = true;
	}
	find_staying(stays, place, to->n_documents);
	for (int32_t i = 0; i < from->n_documents; i++)
		if (!remains[i])
			add(d, CACHE_REMOVED, from, i, to, -1);
	for (int32_t i = 0; i < to->n_documents; i++) {
		if (stays[i])
			d->n_same++;
		else
			add(d, counterpart[i] < 0 ? CACHE_ADDED : place[i] < 0 ? CACHE_CHANGED : CACHE_MOVED, from,
			    counterpart[i], to, i);
	}
	free(counterpart);
	free(place);
	free(stays);
	free(remains);
}

static void compare_tokens(struct cache_diff *d, const struct cache_snapshot *from, const struct cache_snapshot *to)
{
	int64_t least = from->n_tokens < to->n_tokens ? from->n_tokens : to->n_tokens, n = 0;

	if (!d->same_identity)
		return;
	while (n < least && from->ids[n] == to->ids[n])
		n++;
	d->shared_tokens = n;
	d->shared_spans = n / CACHE_SPAN_TOKENS;
	/* The end of both, which is a span of fewer tokens. */
	if (n == from->n_tokens && n == to->n_tokens)
		d->shared_spans = (n + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS;
}

static void find_parting(struct cache_diff *d, const struct cache_snapshot *to)
{
	d->parting_place = -1;
	if (!d->same_identity || d->shared_tokens == to->n_tokens)
		return;
	for (int32_t i = 0; i < to->n_documents; i++) {
		const struct cache_document *doc = &to->documents[i];
		int64_t within = d->shared_tokens - doc->first_token;

		if (within < 0 || within >= doc->n_tokens)
			continue;
		d->parting_place = i;
		while (d->parting_line < doc->n_lines && doc->line_tokens[d->parting_line] <= within)
			d->parting_line++;
	}
}

void cache_diff_make(struct cache_diff *out, const struct cache_snapshot *from, const struct cache_snapshot *to)
{
	*out = (struct cache_diff){
		.files = xmalloc((size_t)from->n_documents + (size_t)to->n_documents, sizeof *out->files),
		.same_identity = !memcmp(from->identity, to->identity, 32),
	};
	compare_documents(out, from, to);
	compare_tokens(out, from, to);
	find_parting(out, to);
}

void cache_diff_clear(struct cache_diff *d)
{
	free(d->files);
	*d = (struct cache_diff){0};
}
