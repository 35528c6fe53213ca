#include "cache/history.h"

#include <stdlib.h>
#include <string.h>

#include "cache/inside.h"
#include "config/mem.h"

void cache_keep_snapshots(struct cache *c, int64_t n)
{
	c->keep_snapshots = n;
}

void cache_pin_former(struct cache *c, int64_t id)
{
	c->pinned_former = id;
}

int cache_list_snapshots(struct cache_reader *r, const char *corpus, struct cache_history **out, size_t *n,
			 struct err *err)
{
	return index_list_snapshots(r->index, corpus, out, n, err);
}

void cache_free_history(struct cache_history *list, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		free(list[i].source);
		free(list[i].record_bytes);
	}
	free(list);
}

int cache_load_snapshot_of(struct cache *c, const char *corpus, int64_t id, struct cache_snapshot **out, struct err *err)
{
	return index_load_snapshot(c->index, corpus, id, out, err);
}

/* The former snapshots beyond the newest `keep`. */
static int list_old(struct cache *c, const char *corpus, int64_t keep, int64_t **out, size_t *n, struct err *err)
{
	struct cache_history *list;
	size_t n_all;

	*out = NULL;
	*n = 0;
	if (index_list_snapshots(c->index, corpus, &list, &n_all, err))
		return -1;
	*out = xmalloc(n_all, sizeof **out);
	for (size_t i = 0; i < n_all; i++)
		if (!list[i].is_current && keep-- <= 0)
			(*out)[(*n)++] = list[i].id;
	cache_free_history(list, n_all);
	return 0;
}

int cache_forget(struct cache *c, const char *corpus, const int64_t *ids, size_t n_ids, int64_t keep,
		 int64_t **forgotten, size_t *n_forgotten, struct err *err)
{
	int rc = 0;

	if (cache_check_sure(c, err))
		return -1;
	if (n_ids) {
		*forgotten = xmalloc(n_ids, sizeof **forgotten);
		memcpy(*forgotten, ids, n_ids * sizeof *ids);
		*n_forgotten = n_ids;
	} else if (list_old(c, corpus, keep, forgotten, n_forgotten, err)) {
		return -1;
	}
	if (index_begin(c->index, err)) {
		free(*forgotten);
		return -1;
	}
	for (size_t i = 0; !rc && i < *n_forgotten; i++)
		rc = index_forget(c->index, corpus, (*forgotten)[i], err);
	if (cache_finish(c, rc, err)) {
		free(*forgotten);
		return -1;
	}
	return 0;
}
