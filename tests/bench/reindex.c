/*
 * What a re-index computes anew when the documents are ordered as ingest/order.h orders them: a real history, commit by
 * commit, no engine needed.
 *
 *   reindex [FILE]                 tests/bench/history/liburing.txt unless said; README.md there has the format
 *
 *   reindex.recomputed_share       tokens that no span of the former snapshot holds, over all: the mean over the
 *                                  re-indexes, the first (cold) one left out. Limit: what changed, in new and changed
 *                                  documents alone, from their first difference on; no order of whole documents needs less.
 *                                  "order": "path", by path each time; "chosen", by order_documents after the former
 *                                  snapshot; "bound", the limit itself. "of_path": the share over that of "path".
 *                                  "every": a re-index at every commit, or at every tenth
 *
 * A token stands for four bytes of rendered text, as bytes are what the history has. A span of 64 is kept when it and all
 * before it are as they were, to the byte.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/cache.h"
#include "config/file.h"
#include "config/mem.h"
#include "ingest/document.h"
#include "ingest/order.h"
#include "tests/support/measure.h"

enum { BYTES_PER_TOKEN = 4, OPENING_TOKENS = 3 /* [gMASK]<sop><|user|> */, MOST_BYTES = 16 << 20 };

enum order { BY_PATH, CHOSEN, N_ORDERS };

/* A document as of the commit that was replayed last. */
struct file {
	char *path;             /* of the history's text */
	bool alive;
	uint8_t content_hash[32];
	int64_t bytes, n_changes;
	int64_t common_bytes;   /* its beginning is what it was in the last snapshot for at least so many */
};

/* A document's place in a snapshot. */
struct place {
	size_t file;
	uint8_t content_hash[32];
	int64_t n_tokens;
};

struct snapshot {
	size_t n;
	struct place *places;
	int64_t n_tokens;
};

struct history {
	const char *name;
	char *text, *at;        /* at: the line to be read next */
	int64_t n_line;
	struct file *files;     /* in the order in which they were first seen */
	size_t n_files, room;
};

/* Sums over the re-indexes so far. */
struct shares {
	double recomputed[N_ORDERS], bound;
	int64_t n;
};

static void bad_line(const struct history *h, const char *line, const char *why) __attribute__((noreturn));
static void bad_line(const struct history *h, const char *line, const char *why)
{
	struct err err;

	err_set(&err, ERR_FORMAT, "%s line %lld: %s: '%.80s'; make it again with make_history.py", h->name,
		(long long)h->n_line, why, line);
	measure_fail(&err);
}

/* Valid until the next call. */
static struct file *find_file(struct history *h, char *path)
{
	for (size_t i = 0; i < h->n_files; i++)
		if (!strcmp(h->files[i].path, path))
			return &h->files[i];
	if (h->n_files == h->room)
		h->files = xrealloc(h->files, h->room = h->room ? 2 * h->room : 256, sizeof *h->files);
	h->files[h->n_files] = (struct file){.path = path};
	return &h->files[h->n_files++];
}

static char *next_line(struct history *h)
{
	char *line = h->at, *end = strchr(line, '\n');

	if (!*line)
		return NULL;
	if (!end)
		bad_line(h, line, "the file ends within a line");
	*end = '\0';
	h->at = end + 1;
	h->n_line++;
	return line;
}

/* "+ BYTES COMMON CHANGES CONTENT PATH": the document is new or changed. */
static void change(struct history *h, char *line)
{
	long long bytes, common, n_changes;
	char content[17];
	struct file *f;
	int n = 0;

	if (sscanf(line, "+ %lld %lld %lld %16[0-9a-f] %n", &bytes, &common, &n_changes, content, &n) != 4 || !n || !line[n])
		bad_line(h, line, "this is no change");
	f = find_file(h, line + n);
	if (common > bytes || common > f->bytes || (common && !f->alive))
		bad_line(h, line, "more of its beginning is as before than there was");
	f->common_bytes = f->alive && f->common_bytes < common ? f->common_bytes : f->alive ? common : 0;
	f->alive = true;
	f->bytes = bytes;
	f->n_changes = n_changes;
	memset(f->content_hash, 0, sizeof f->content_hash);
	memcpy(f->content_hash, content, 16);
}

static void remove_file(struct history *h, char *line)
{
	struct file *f = find_file(h, line + 2);

	if (!f->alive)
		bad_line(h, line, "what goes was not there");
	f->alive = false;
	f->bytes = f->common_bytes = 0;
}

/* Replay one commit. false: there is no more. */
static bool replay(struct history *h)
{
	char *line = next_line(h);

	if (!line)
		return false;
	if (strncmp(line, "commit ", 7))
		bad_line(h, line, "a commit should begin here");
	while (*h->at == '+' || *h->at == '-') {
		line = next_line(h);
		if (*line == '+')
			change(h, line);
		else
			remove_file(h, line);
	}
	return true;
}

static int64_t header_bytes(const struct file *f)
{
	struct bytes b = {0};
	int64_t n = (int64_t)document_render(&b, f->path, "", 0);

	bytes_free(&b);
	return n;
}

static int64_t tokens_of(int64_t bytes)
{
	return (bytes + BYTES_PER_TOKEN - 1) / BYTES_PER_TOKEN;
}

/* The living files in the order that is asked for, `former` being the snapshot before in that order. */
static struct snapshot take_snapshot(const struct history *h, enum order order, const struct snapshot *former)
{
	struct order_document *documents = xcalloc(h->n_files, sizeof *documents);
	size_t *files = xmalloc(h->n_files, sizeof *files), *sorted = xmalloc(h->n_files, sizeof *sorted);
	size_t n_follow = order == CHOSEN ? former->n : 0;
	struct cache_document *follow = xcalloc(n_follow, sizeof *follow);
	struct snapshot s = {.n_tokens = OPENING_TOKENS};

	for (size_t i = 0; i < n_follow; i++) {
		follow[i].path = h->files[former->places[i].file].path;
		memcpy(follow[i].content_hash, former->places[i].content_hash, sizeof follow[i].content_hash);
	}
	for (size_t i = 0; i < h->n_files; i++) {
		const struct file *f = &h->files[i];

		if (!f->alive)
			continue;
		documents[s.n] = (struct order_document){f->path, f->content_hash, order == CHOSEN ? f->n_changes : 0};
		files[s.n++] = i;
	}
	order_documents(sorted, documents, s.n, follow, n_follow, NULL);
	s.places = xcalloc(s.n, sizeof *s.places);
	for (size_t i = 0; i < s.n; i++) {
		const struct file *f = &h->files[files[sorted[i]]];
		struct place *p = &s.places[i];

		p->file = files[sorted[i]];
		memcpy(p->content_hash, f->content_hash, sizeof p->content_hash);
		p->n_tokens = tokens_of(header_bytes(f) + f->bytes);
		s.n_tokens += p->n_tokens;
	}
	free(documents);
	free(files);
	free(sorted);
	free(follow);
	return s;
}

static bool is_same(const struct place *a, const struct place *b)
{
	return a->file == b->file && !memcmp(a->content_hash, b->content_hash, sizeof a->content_hash);
}

/* Tokens at the beginning that two different documents in one place have in common. */
static int64_t common_tokens(const struct history *h, const struct place *a, const struct place *b)
{
	const struct file *f = &h->files[a->file], *g = &h->files[b->file];
	int64_t n = 0;

	if (f == g)
		return (header_bytes(f) + f->common_bytes) / BYTES_PER_TOKEN;
	while (f->path[n] && f->path[n] == g->path[n])
		n++;
	return (n + 4) / BYTES_PER_TOKEN; /* "=== " stands before the path */
}

static int64_t kept_tokens(const struct history *h, const struct snapshot *former, const struct snapshot *now)
{
	int64_t n = OPENING_TOKENS;
	size_t i = 0;

	for (; i < now->n && i < former->n && is_same(&former->places[i], &now->places[i]); i++)
		n += now->places[i].n_tokens;
	if (i == now->n && i == former->n)
		return n; /* the last span too, whole or not */
	if (i < now->n && i < former->n)
		n += common_tokens(h, &former->places[i], &now->places[i]);
	return n / CACHE_SPAN_TOKENS * CACHE_SPAN_TOKENS;
}

/* What changed, and no more. */
static int64_t bound_tokens(const struct history *h, const struct snapshot *former, const struct snapshot *now)
{
	int64_t n = 0;

	for (size_t i = 0; i < now->n; i++) {
		const struct place *p = &now->places[i], *before = NULL;

		for (size_t j = 0; j < former->n && !before; j++)
			if (former->places[j].file == p->file)
				before = &former->places[j];
		if (!before)
			n += p->n_tokens;
		else if (!is_same(before, p))
			n += p->n_tokens - common_tokens(h, before, p);
	}
	return n;
}

static struct shares reindex(struct history *h, int64_t every)
{
	struct snapshot former[N_ORDERS] = {0};
	struct shares sum = {0};

	for (int64_t i = 0; replay(h); i++) {
		if (i % every)
			continue;
		for (int o = 0; o < N_ORDERS; o++) {
			struct snapshot now = take_snapshot(h, (enum order)o, &former[o]);

			if (i)
				sum.recomputed[o] += 1 - (double)kept_tokens(h, &former[o], &now) / (double)now.n_tokens;
			if (i && o == BY_PATH)
				sum.bound += (double)bound_tokens(h, &former[o], &now) / (double)now.n_tokens;
			free(former[o].places);
			former[o] = now;
		}
		sum.n += i > 0;
		for (size_t f = 0; f < h->n_files; f++)
			h->files[f].common_bytes = h->files[f].bytes;
	}
	for (int o = 0; o < N_ORDERS; o++)
		free(former[o].places);
	return sum;
}

static void print_shares(const char *path, int64_t every)
{
	static const char *const names[] = {[BY_PATH] = "path", [CHOSEN] = "chosen", [N_ORDERS] = "bound"};
	const char *slash = strrchr(path, '/');
	struct history h = {.name = path};
	struct shares sum;
	struct err err;
	size_t bytes;

	if (file_read(&h.text, &bytes, path, MOST_BYTES, &err))
		measure_fail(&err);
	h.at = h.text;
	sum = reindex(&h, every);
	if (sum.n < 1) {
		err_set(&err, ERR_FORMAT, "%s has too few commits for a re-index at every %lld", path, (long long)every);
		measure_fail(&err);
	}
	for (int o = 0; o <= N_ORDERS; o++) {
		double total = o < N_ORDERS ? sum.recomputed[o] : sum.bound;

		measure_print(stdout, "reindex.recomputed_share", total / (double)sum.n, "of all tokens",
			      sum.bound / (double)sum.n,
			      "\"order\":\"%s\",\"of_path\":%.4f,\"every\":%lld,\"reindexes\":%lld,\"history\":\"%s\"", names[o],
			      total / sum.recomputed[BY_PATH], (long long)every, (long long)sum.n, slash ? slash + 1 : path);
	}
	free(h.files);
	free(h.text);
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "tests/bench/history/liburing.txt";

	if (argc > 2) {
		fprintf(stderr, "usage: reindex [FILE]\n");
		return 2;
	}
	print_shares(path, 1);
	print_shares(path, 10);
	return 0;
}
