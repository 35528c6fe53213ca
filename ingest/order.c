#include "ingest/order.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"

/* A document and where it stood, SIZE_MAX if it is not there or not the same. */
struct place {
	const struct order_document *document;
	size_t former;
};

static int by_path(const void *a, const void *b)
{
	return strcmp((*(const struct cache_document *const *)a)->path, (*(const struct cache_document *const *)b)->path);
}

static int find_path(const void *path, const void *document)
{
	return strcmp(path, (*(const struct cache_document *const *)document)->path);
}

static int by_place(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->former != y->former)
		return x->former < y->former ? -1 : 1;
	if (x->document->n_changes != y->document->n_changes)
		return x->document->n_changes < y->document->n_changes ? -1 : 1;
	return strcmp(x->document->path, y->document->path);
}

static void find_former(struct place *places, size_t n, const struct cache_document *former, size_t n_former)
{
	const struct cache_document **sorted = xmalloc(n_former, sizeof *sorted);

	for (size_t i = 0; i < n_former; i++)
		sorted[i] = &former[i];
	qsort(sorted, n_former, sizeof *sorted, by_path);
	for (size_t i = 0; i < n; i++) {
		const struct order_document *d = places[i].document;
		const struct cache_document **f = bsearch(d->path, sorted, n_former, sizeof *sorted, find_path);

		if (f && !memcmp((*f)->content_hash, d->content_hash, sizeof (*f)->content_hash))
			places[i].former = (size_t)(*f - former);
	}
	free(sorted);
}

size_t order_documents(size_t *order, const struct order_document *documents, size_t n,
		       const struct cache_document *former, size_t n_former, size_t *n_followed)
{
	struct place *places = xmalloc(n, sizeof *places);
	size_t n_kept = 0;

	for (size_t i = 0; i < n; i++)
		places[i] = (struct place){&documents[i], SIZE_MAX};
	if (n && n_former)
		find_former(places, n, former, n_former);
	if (n)
		qsort(places, n, sizeof *places, by_place);
	while (n_kept < n && places[n_kept].former == n_kept)
		n_kept++;
	for (size_t i = 0; n_followed && i <= n; i++) {
		*n_followed = i;
		if (i == n || places[i].former == SIZE_MAX)
			break;
	}
	for (size_t i = 0; i < n; i++)
		order[i] = (size_t)(places[i].document - documents);
	free(places);
	return n_kept;
}
