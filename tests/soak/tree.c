/*
 * A tree that nobody should have (tests/support/hostile_tree.h): a million files, links, FIFOs, sockets,
 * devices, sparse terabytes, names of odd bytes, a directory ten thousand deep, a file that changes all the
 * time. Listing it, reading it, and the first half of an ingest, which refuses it as too large for the context,
 * must end, leave nothing out but for its reason, and take memory by the number of files alone. One JSON line
 * each. FILES=n for another number.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "ingest/ingest.h"
#include "ingest/text.h"
#include "ingest/walk.h"
#include "tests/support/hostile_tree.h"

enum { DEPTH = 10000, CONTEXT = 1 << 20, MOST_FILE_BYTES = 1 << 20 };

/* The most memory that each may take: besides, and for a file. */
enum {
	LIST_BYTES = 16 << 20, LIST_BYTES_A_FILE = 192, READ_BYTES = 4 << 20,
	INGEST_BYTES = 32 << 20, INGEST_BYTES_A_FILE = 320,
};

static int failed;

static void fail(const char *what, int64_t got, int64_t want)
{
	fprintf(stderr, "tree: %s: %" PRId64 ", not %" PRId64 "\n", what, got, want);
	failed = 1;
}

static void check_memory(const char *what, int64_t grown, int64_t most)
{
	if (grown <= most)
		return;
	fprintf(stderr, "tree: %s took %" PRId64 " bytes of memory, more than %" PRId64 "\n", what, grown, most);
	failed = 1;
}

static struct walk *list(const struct hostile_tree *t, int64_t n_files)
{
	const struct walk_options opt = {.root = t->root, .max_file_bytes = MOST_FILE_BYTES};
	int64_t begin = hostile_tree_memory_begin(), began = clock_now_ms(), grown, ms;
	int64_t n_links = 0, n_special = 0, n_large = 0;
	const struct cache_skipped *skipped;
	size_t n, n_skipped;
	struct walk *w;
	struct err err;

	if (walk_new(&w, &opt, NULL, &err)) {
		fprintf(stderr, "tree: %s\n", err.text);
		exit(1);
	}
	ms = clock_now_ms() - began;
	grown = hostile_tree_memory_grown(begin);
	walk_files(w, &n);
	skipped = walk_skipped(w, &n_skipped);
	for (size_t i = 0; i < n_skipped; i++) {
		n_links += !strcmp(skipped[i].reason, "symbolic link");
		n_special += !strcmp(skipped[i].reason, "not a regular file");
		n_large += !strcmp(skipped[i].reason, "too large");
	}
	printf("{\"soak\":\"tree_list\",\"files\":%zu,\"skipped\":%zu,\"seconds\":%.2f,\"peak_bytes\":%" PRId64 "}\n", n,
	       n_skipped, (double)ms / 1000, grown);
	if ((int64_t)n != t->n_plain)
		fail("files listed", (int64_t)n, t->n_plain);
	if (n_links != t->n_links)
		fail("symbolic links", n_links, t->n_links);
	if (n_special != t->n_special)
		fail("not regular", n_special, t->n_special);
	if (n_large != t->n_large)
		fail("too large", n_large, t->n_large);
	if ((int64_t)n_skipped != n_links + n_special + n_large)
		fail("skipped", (int64_t)n_skipped, n_links + n_special + n_large);
	check_memory("listing", grown, LIST_BYTES + LIST_BYTES_A_FILE * n_files);
	return w;
}

/* Every file, one after another; "busy" is one version or none. */
static void read_all(struct hostile_tree *t, struct walk *w)
{
	const struct text_options how = {.max_bytes = MOST_FILE_BYTES};
	int64_t begin = hostile_tree_memory_begin(), began = clock_now_ms(), grown, n_read = 0, n_unstable = 0, n_mixed = 0;
	size_t n;
	const struct walk_file *files = walk_files(w, &n);

	hostile_tree_write(t);
	for (size_t i = 0; i < n; i++) {
		bool is_busy = !strcmp(files[i].path, "busy");
		char *text, reason[SKIP_REASON_BYTES];
		size_t bytes;

		if (!text_read(w, &files[i], &how, &text, &bytes, reason)) {
			n_unstable += is_busy && !strcmp(reason, "unstable: it changes while it is read");
			continue;
		}
		for (size_t j = 1; is_busy && j < bytes; j++)
			n_mixed += text[j] != text[0];
		n_read++;
		free(text);
	}
	hostile_tree_write_end(t);
	grown = hostile_tree_memory_grown(begin);
	printf("{\"soak\":\"tree_read\",\"files\":%" PRId64 ",\"unstable\":%" PRId64 ",\"seconds\":%.2f,\"peak_bytes\":%"
	       PRId64 "}\n", n_read, n_unstable, (double)(clock_now_ms() - began) / 1000, grown);
	if (n_read + n_unstable != t->n_plain)
		fail("files read", n_read, t->n_plain);
	if (n_mixed)
		fail("bytes of another version", n_mixed, 0);
	check_memory("reading", grown, READ_BYTES);
}

static void keep_progress(void *ctx, const struct ingest_progress *p)
{
	*(struct ingest_progress *)ctx = *p;
}

static void ingest(const struct hostile_tree *t, int64_t n_files)
{
	const struct ingest_options opt = {.corpus = "tree", .source = t->root, .max_file_bytes = MOST_FILE_BYTES,
					   .max_tokens = CONTEXT};
	int64_t begin, began = clock_now_ms(), grown;
	struct ingest_progress progress = {0};
	struct tokenizer *tokenizer;
	struct ingest *in;
	struct err err;
	int rc;

	if (tokenizer_open(&tokenizer, "tests/golden/glm52/tokenizer.json", &err)) {
		fprintf(stderr, "tree: %s\n", err.text);
		exit(1);
	}
	begin = hostile_tree_memory_begin();
	rc = ingest_prepare(&in, &opt, tokenizer, NULL, keep_progress, &progress, &err);
	grown = hostile_tree_memory_grown(begin);
	printf("{\"soak\":\"tree_ingest\",\"files\":%" PRId64 ",\"tokens\":%" PRId64 ",\"refused\":%s,\"seconds\":%.2f,"
	       "\"peak_bytes\":%" PRId64 "}\n", progress.n_files, progress.n_tokens, rc ? "true" : "false",
	       (double)(clock_now_ms() - began) / 1000, grown);
	if (progress.n_files != t->n_plain)
		fail("files of the ingest", progress.n_files, t->n_plain);
	if (rc && (err.code != ERR_TOO_LARGE || progress.n_tokens <= CONTEXT)) {
		fprintf(stderr, "tree: %s\n", err.text);
		failed = 1;
	}
	if (!rc && progress.n_tokens > CONTEXT)
		fail("tokens that were accepted", progress.n_tokens, CONTEXT);
	if (!rc)
		ingest_free(in);
	check_memory("the ingest", grown, INGEST_BYTES + INGEST_BYTES_A_FILE * n_files);
	tokenizer_close(tokenizer);
}

int main(void)
{
	const char *wanted = getenv("FILES");
	int64_t n_files = wanted ? strtoll(wanted, NULL, 10) : 1000000;
	struct hostile_tree tree;
	struct walk *w;

	setvbuf(stdout, NULL, _IOLBF, 0);
	hostile_tree_make(&tree, n_files, DEPTH);
	w = list(&tree, n_files);
	read_all(&tree, w);
	walk_free(w);
	ingest(&tree, n_files);
	hostile_tree_remove(&tree);
	return failed;
}
