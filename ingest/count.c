#include "ingest/count.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/tokenizer.h"
#include "ingest/skip.h"

enum { N_LARGEST = 5, EXTENT_BYTES = 4096, SUM_BYTES = 8 };

static int64_t extent(int64_t bytes)
{
	return (bytes + EXTENT_BYTES - 1) / EXTENT_BYTES * EXTENT_BYTES;
}

int64_t count_run_bytes(const struct layout *l, int32_t n_tokens)
{
	int64_t n = n_tokens, n_spans = (n + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS, bytes = 0;

	for (int32_t g = 0; g < l->n_groups; g++)
		bytes += extent(n * (int64_t)layout_record_bytes(l, g));
	bytes += l->n_index_layers * extent(n * (int64_t)l->index_key_bytes);
	return bytes + extent(n_spans * ((int64_t)l->n_groups * CACHE_SPAN_TOKENS + l->n_index_layers) * SUM_BYTES);
}

/*
 * What was skipped, by kind
 */

static int by_count(const void *a, const void *b)
{
	const struct ingest_skip_kind *x = a, *y = b;

	return x->n != y->n ? (x->n > y->n ? -1 : 1) : strcmp(x->kind, y->kind);
}

struct ingest_skip_kind *count_skip_kinds(const struct cache_skipped *skipped, size_t n_skipped, size_t *n)
{
	struct ingest_skip_kind *kinds = NULL;

	*n = 0;
	for (size_t i = 0; i < n_skipped; i++) {
		size_t bytes = skip_kind_bytes(skipped[i].reason), k = 0;

		if (bytes >= sizeof kinds->kind)
			bytes = sizeof kinds->kind - 1;
		while (k < *n && (strncmp(kinds[k].kind, skipped[i].reason, bytes) || kinds[k].kind[bytes]))
			k++;
		if (k == *n) {
			kinds = xrealloc(kinds, *n + 1, sizeof *kinds);
			kinds[(*n)++] = (struct ingest_skip_kind){.n = 0};
			snprintf(kinds[k].kind, sizeof kinds[k].kind, "%.*s", (int)bytes, skipped[i].reason);
		}
		if (kinds[k].n < INGEST_EXAMPLES)
			kinds[k].examples[kinds[k].n] = skipped[i].path;
		kinds[k].n++;
	}
	if (*n)
		qsort(kinds, *n, sizeof *kinds, by_count);
	return kinds;
}

/*
 * Too large: what takes the room, and what to leave out
 */

/* A directory (path ends in a slash) with all that is below it, or a file at the root. */
struct share {
	const char *path;
	size_t path_bytes;
	int64_t n_tokens;
	bool at_root;
	size_t above;                   /* the share of the directory that this one is in, plus 1; 0: the root */
};

static int by_tokens(const void *a, const void *b)
{
	const struct share *x = a, *y = b;

	return x->n_tokens != y->n_tokens ? (x->n_tokens > y->n_tokens ? -1 : 1) : strcmp(x->path, y->path);
}

static bool is_below(const char *path, const struct share *s)
{
	return !strncmp(path, s->path, s->path_bytes);
}

/* The largest first. Documents come in the order of their paths, so that a directory's are together. */
static struct share *shares_of(const struct count_document *documents, size_t n_documents, size_t *n)
{
	struct share *list = NULL;
	size_t room = 0, top = 0; /* the directory we are in, plus 1 */

	*n = 0;
	for (size_t i = 0; i < n_documents; i++) {
		const struct count_document *d = &documents[i];
		const char *slash;

		while (top && !is_below(d->path, &list[top - 1]))
			top = list[top - 1].above;
		slash = strchr(d->path + (top ? list[top - 1].path_bytes : 0), '/');
		for (; slash || (!top && !strchr(d->path, '/')); slash = strchr(slash + 1, '/')) {
			struct share s = {d->path, slash ? (size_t)(slash - d->path) + 1 : strlen(d->path),
					  slash ? 0 : d->n_tokens, !top, top};

			if (*n == room)
				list = xrealloc(list, room = room ? 2 * room : 64, sizeof *list);
			list[(*n)++] = s;
			if (!slash)
				break;
			top = *n;
		}
		for (size_t up = top; up; up = list[up - 1].above)
			list[up - 1].n_tokens += d->n_tokens;
	}
	if (*n)
		qsort(list, *n, sizeof *list, by_tokens);
	return list;
}

/* --exclude '/PATH', which the shell and the glob both read as the path itself. */
static void append_exclude(struct bytes *out, const struct share *s)
{
	bytes_append(out, " --exclude '/", 13);
	for (size_t i = 0; i < s->path_bytes; i++) {
		if (s->path[i] == '\'')
			bytes_append(out, "'\\'", 3);
		else if (strchr("*?[\\", s->path[i]))
			bytes_append(out, "\\", 1);
		bytes_append(out, s->path + i, 1);
	}
	bytes_append(out, "'", 1);
}

int count_too_large(const char *source, const struct count_document *documents, size_t n_documents, int64_t n_tokens,
		    int64_t limit, struct err *err)
{
	int64_t left = n_tokens, opening = n_tokens; /* opening: tokens that belong to no document */
	struct bytes largest = {0}, exclude = {0};
	const struct share *enough = NULL;
	size_t n, shown = 0;
	struct share *shares = shares_of(documents, n_documents, &n);

	for (size_t i = 0; i < n_documents; i++)
		opening -= documents[i].n_tokens;
	for (size_t i = 0; i < n; i++) {
		/* The smallest that makes room by itself, as long as some document remains. */
		if (n_tokens - shares[i].n_tokens <= limit && shares[i].n_tokens < n_tokens - opening)
			enough = &shares[i];
		if (shares[i].at_root && shown++ < N_LARGEST) {
			char *entry = xasprintf("%s%.*s %" PRId64, largest.n ? ", " : "", (int)shares[i].path_bytes,
						shares[i].path, shares[i].n_tokens);

			bytes_append(&largest, entry, strlen(entry));
			free(entry);
		}
	}
	if (enough) {
		append_exclude(&exclude, enough);
		left -= enough->n_tokens;
	}
	for (size_t i = 0; i < n && left > limit; i++) {
		if (!shares[i].at_root || shares[i].n_tokens == left - opening)
			continue;
		append_exclude(&exclude, &shares[i]);
		left -= shares[i].n_tokens;
	}
	free(shares);
	bytes_append(&largest, "", 1);
	bytes_append(&exclude, "", 1);
	if (left <= limit)
		err_set(err, ERR_TOO_LARGE, "%s has %" PRId64 " tokens, the context %" PRId64 "; largest: %s; with%s it has "
			"%" PRId64, source, n_tokens, limit, largest.data, exclude.data, left);
	else
		err_set(err, ERR_TOO_LARGE, "%s has %" PRId64 " tokens, the context %" PRId64 "; largest: %s; ingest a part "
			"of it", source, n_tokens, limit, largest.data);
	bytes_free(&largest);
	bytes_free(&exclude);
	return -1;
}
