#include "cache/evict.h"

#include <stdlib.h>

static bool may_go(const struct evict_run *r)
{
	return !r->pinned && r->corpus >= 0;
}

static int compare(const void *a, const void *b)
{
	const struct evict_run *x = a, *y = b;

	if (may_go(x) != may_go(y))
		return may_go(x) ? -1 : 1;
	if (x->former != y->former)
		return x->former ? -1 : 1;
	if (x->last_used_s != y->last_used_s)
		return x->last_used_s < y->last_used_s ? -1 : 1;
	if (x->corpus != y->corpus)
		return x->corpus < y->corpus ? -1 : 1;
	if (x->end != y->end)
		return x->end > y->end ? -1 : 1;
	return (x->run > y->run) - (x->run < y->run);
}

int64_t evict_choose(struct evict_run *runs, size_t n_runs, int64_t need_bytes, size_t *n)
{
	int64_t bytes = 0;

	if (n_runs)
		qsort(runs, n_runs, sizeof *runs, compare);
	for (*n = 0; *n < n_runs && bytes < need_bytes && may_go(&runs[*n]); ++*n)
		bytes += runs[*n].bytes;
	return bytes;
}
