/*
 * A tree that nobody should have: a million files, links, FIFOs, sparse terabytes, names of odd bytes, and a directory
 * ten thousand deep. Listing and reading it must end, leave nothing out but what it has a reason for, and take memory
 * by the number of names alone. One JSON line a figure. FILES=n for another number.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/mem.h"
#include "ingest/text.h"
#include "ingest/walk.h"
#include "tests/support/temp_dir.h"

enum { PER_DIRECTORY = 1000, DEPTH = 10000, ODD_EVERY = 100, RSS_BYTES_A_FILE = 192, RSS_BYTES = 16 << 20 };

static void must(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "tree: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int open_new_directory(int at, const char *name)
{
	int fd;

	must(!mkdirat(at, name, 0700), name);
	fd = openat(at, name, O_RDONLY | O_DIRECTORY);
	must(fd >= 0, name);
	return fd;
}

/* Every hundredth is something else: returns how many are regular files of a size that is read. */
static int64_t fill(int dir, int n)
{
	int64_t n_plain = 0;

	for (int i = 0; i < n; i++) {
		char name[64];
		int fd;

		snprintf(name, sizeof name, i % 7 ? "f%d.c" : "odd \n\xff%d", i);
		if (i % ODD_EVERY == 1) {
			must(!mkfifoat(dir, name, 0600), name);
			continue;
		}
		if (i % ODD_EVERY == 2) {
			must(!symlinkat("..", dir, name), name);
			continue;
		}
		fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL, 0600);
		must(fd >= 0, name);
		if (i % ODD_EVERY == 3)
			must(!ftruncate(fd, (off_t)1 << 40), "a sparse file");
		else
			must(write(fd, "int a;\n", 7) == 7, name);
		n_plain += i % ODD_EVERY != 3;
		close(fd);
	}
	return n_plain;
}

static int64_t make_tree(const char *root, int64_t n_files)
{
	int at = open(root, O_RDONLY | O_DIRECTORY);
	int64_t n_plain = 0;

	for (int64_t made = 0, d = 0; made < n_files; made += PER_DIRECTORY, d++) {
		char name[32];
		int dir;

		snprintf(name, sizeof name, "d%lld", (long long)d);
		dir = open_new_directory(at, name);
		n_plain += fill(dir, (int)(n_files - made < PER_DIRECTORY ? n_files - made : PER_DIRECTORY));
		close(dir);
	}
	for (int i = 0; i < DEPTH; i++) {
		int next = open_new_directory(at, "deep");

		close(at);
		at = next;
	}
	n_plain += fill(at, 1);
	close(at);
	return n_plain;
}

/* The deep part, which nftw gives up on. */
static void remove_deep(const char *root)
{
	int at = open(root, O_RDONLY | O_DIRECTORY), next;

	while ((next = openat(at, "deep", O_RDONLY | O_DIRECTORY)) >= 0) {
		close(at);
		at = next;
	}
	unlinkat(at, "odd \n\xff" "0", 0);
	for (int i = 0; i < DEPTH; i++) {
		next = openat(at, "..", O_RDONLY | O_DIRECTORY);
		close(at);
		at = next;
		unlinkat(at, "deep", AT_REMOVEDIR);
	}
	close(at);
}

static int64_t rss_bytes(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (int64_t)u.ru_maxrss * 1024;
}

int main(void)
{
	const char *wanted = getenv("FILES");
	int64_t n_files = wanted ? strtoll(wanted, NULL, 10) : 1000000, n_read = 0, began, before;
	const struct text_options how = {.max_bytes = 1 << 20};
	char *root = temp_dir_new();
	const struct walk_options opt = {.root = root, .max_file_bytes = how.max_bytes};
	int64_t n_plain = make_tree(root, n_files), listed_ms, grown;
	const struct walk_file *files;
	struct walk *w;
	struct err err;
	size_t n, n_skipped;
	int failed = 0;

	before = rss_bytes();
	began = clock_now_ms();
	if (walk_new(&w, &opt, NULL, &err)) {
		fprintf(stderr, "tree: %s\n", err.text);
		return 1;
	}
	listed_ms = clock_now_ms() - began;
	grown = rss_bytes() - before;
	files = walk_files(w, &n);
	walk_skipped(w, &n_skipped);
	began = clock_now_ms();
	for (size_t i = 0; i < n; i++) {
		char *text, reason[SKIP_REASON_BYTES];
		size_t bytes;

		if (text_read(w, &files[i], &how, &text, &bytes, reason)) {
			n_read++;
			free(text);
		}
	}
	printf("{\"soak\":\"tree_list\",\"files\":%zu,\"skipped\":%zu,\"seconds\":%.2f,\"rss_bytes\":%lld}\n", n, n_skipped,
	       (double)listed_ms / 1000, (long long)grown);
	printf("{\"soak\":\"tree_read\",\"files\":%lld,\"seconds\":%.2f}\n", (long long)n_read,
	       (double)(clock_now_ms() - began) / 1000);
	if ((int64_t)n != n_plain || n_read != n_plain) {
		fprintf(stderr, "tree: %lld files listed, %lld read, %lld made\n", (long long)n, (long long)n_read,
			(long long)n_plain);
		failed = 1;
	}
	if (grown > RSS_BYTES + RSS_BYTES_A_FILE * n_files) {
		fprintf(stderr, "tree: listing took %lld bytes of memory\n", (long long)grown);
		failed = 1;
	}
	walk_free(w);
	remove_deep(root);
	temp_dir_free(root);
	return failed;
}
