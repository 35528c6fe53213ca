#include "tests/support/hostile_tree.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "config/file.h"
#include "config/mem.h"
#include "tests/support/temp_dir.h"

enum { PER_DIRECTORY = 1000, ODD_EVERY = 100, BUSY_BYTES = 900, STATUS_BYTES = 1 << 16 };

struct hostile_writer {
	pthread_t thread;
	int fd;
	atomic_bool stop;
};

static void must(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "hostile tree: %s: %s\n", what, strerror(errno));
	abort();
}

static int open_new_directory(int at, const char *name)
{
	int fd;

	must(!mkdirat(at, name, 0700), name);
	fd = openat(at, name, O_RDONLY | O_DIRECTORY);
	must(fd >= 0, name);
	return fd;
}

static void make_text(int dir, const char *name)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL, 0600);

	must(fd >= 0, name);
	must(write(fd, "int a;\n", 7) == 7, name);
	close(fd);
}

static void make_sparse(int dir, const char *name)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL, 0600);

	must(fd >= 0, name);
	must(!ftruncate(fd, (off_t)1 << 40), "a sparse file of a terabyte");
	close(fd);
}

static void make_special(int dir, const char *name, mode_t kind)
{
	int rc = mknodat(dir, name, kind | 0600, kind == S_IFCHR ? makedev(1, 5) /* zero */ : 0);

	if (rc && kind == S_IFCHR && errno == EPERM) /* only root makes devices */
		rc = mknodat(dir, name, S_IFIFO | 0600, 0);
	must(!rc, name);
}

static void make_link(int dir, const char *name, int i)
{
	const char *const targets[] = {"..", name, "nowhere", "/dev/zero"};

	must(!symlinkat(targets[i / ODD_EVERY % 4], dir, name), name);
}

/* One file of the directory, the i-th. */
static void make_entry(struct hostile_tree *t, int dir, int i)
{
	static const char *const endings[] = {".c", ".html", ".pdf"};
	static const mode_t kinds[] = {S_IFIFO, S_IFSOCK, S_IFCHR};
	int odd = i % ODD_EVERY;
	char name[64];

	snprintf(name, sizeof name, i % 7 ? "f%d.c" : "odd \n\xff%d", i);
	if (odd >= 1 && odd <= 3) {
		make_special(dir, name, kinds[odd - 1]);
		t->n_special++;
	} else if (odd == 4) {
		make_link(dir, name, i);
		t->n_links++;
	} else if (odd == 5) {
		snprintf(name, sizeof name, "sparse%d%s", i, endings[i / ODD_EVERY % 3]);
		make_sparse(dir, name);
		t->n_large++;
	} else {
		make_text(dir, name);
		t->n_plain++;
	}
}

void hostile_tree_make(struct hostile_tree *t, int64_t n_files, int depth)
{
	char busy[BUSY_BYTES];
	int at;

	*t = (struct hostile_tree){.root = temp_dir_new(), .depth = depth};
	at = open(t->root, O_RDONLY | O_DIRECTORY);
	must(at >= 0, t->root);
	for (int64_t made = 0, d = 0; made < n_files; made += PER_DIRECTORY, d++) {
		int n = (int)(n_files - made < PER_DIRECTORY ? n_files - made : PER_DIRECTORY), dir;
		char name[32];

		snprintf(name, sizeof name, "d%lld", (long long)d);
		dir = open_new_directory(at, name);
		for (int i = 0; i < n; i++)
			make_entry(t, dir, i);
		close(dir);
	}
	memset(busy, 'a', sizeof busy);
	free(temp_file(t->root, "busy", busy, sizeof busy));
	for (int i = 0; i < depth; i++) {
		int next = open_new_directory(at, "deep");

		close(at);
		at = next;
	}
	make_text(at, "odd \n\xff");
	close(at);
	t->n_plain += 2;
}

/* The deep part from below: nftw gives up on it. */
void hostile_tree_remove(struct hostile_tree *t)
{
	int at = open(t->root, O_RDONLY | O_DIRECTORY), next;

	hostile_tree_write_end(t);
	while ((next = openat(at, "deep", O_RDONLY | O_DIRECTORY)) >= 0) {
		close(at);
		at = next;
	}
	unlinkat(at, "odd \n\xff", 0);
	for (int i = 0; i < t->depth; i++) {
		next = openat(at, "..", O_RDONLY | O_DIRECTORY);
		must(next >= 0, "the way up");
		close(at);
		at = next;
		unlinkat(at, "deep", AT_REMOVEDIR);
	}
	close(at);
	temp_dir_free(t->root);
	t->root = NULL;
}

static void *keep_writing(void *ctx)
{
	struct hostile_writer *w = ctx;

	for (int i = 0; !atomic_load(&w->stop); i++) {
		char text[BUSY_BYTES];

		memset(text, 'a' + i % 2, sizeof text);
		must(pwrite(w->fd, text, sizeof text, 0) == (ssize_t)sizeof text, "busy");
		usleep(50); /* so that there is a processor for others */
	}
	return NULL;
}

void hostile_tree_write(struct hostile_tree *t)
{
	char *path = temp_path(t->root, "busy");

	t->writer = xcalloc(1, sizeof *t->writer);
	t->writer->fd = open(path, O_WRONLY);
	must(t->writer->fd >= 0, path);
	must(!pthread_create(&t->writer->thread, NULL, keep_writing, t->writer), "a thread");
	free(path);
}

void hostile_tree_write_end(struct hostile_tree *t)
{
	if (!t->writer)
		return;
	atomic_store(&t->writer->stop, true);
	pthread_join(t->writer->thread, NULL);
	close(t->writer->fd);
	free(t->writer);
	t->writer = NULL;
}

/* A line of /proc/self/status, in kB there. */
static int64_t status_bytes(const char *key)
{
	char *text, *at;
	struct err err;
	int64_t kb = 0;

	if (file_read_kernel(&text, "/proc/self/status", STATUS_BYTES, &err)) {
		fprintf(stderr, "hostile tree: %s\n", err.text);
		abort();
	}
	at = strstr(text, key);
	must(at && sscanf(at + strlen(key), ": %" SCNd64 " kB", &kb) == 1, key);
	free(text);
	return kb * 1024;
}

int64_t hostile_tree_memory_begin(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY);

	malloc_trim(0); /* what was freed is not ours any more */
	if (fd >= 0) {
		if (write(fd, "5", 1) != 1)
			fprintf(stderr, "hostile tree: the peak of memory cannot be forgotten: %s\n", strerror(errno));
		close(fd);
	}
	return status_bytes("VmRSS");
}

int64_t hostile_tree_memory_grown(int64_t begin)
{
	return status_bytes("VmHWM") - begin;
}
