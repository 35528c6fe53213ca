#include "ingest/walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "config/mem.h"
#include "ingest/glob.h"
#include "ingest/skip.h"
#include "ingest/text.h"

/* An ignore file larger than this is not one. PIECE is what one system call is given of a deep path. */
enum { IGNORE_BYTES = 1 << 20, PIECE_BYTES = 4000 };

/* The ignore files that hold in a directory: its own, and those of the directories above it. */
struct ignore {
	const struct ignore *above;
	size_t base;            /* where in a path below this directory the part begins that its globs see */
	struct globs globs;
};

/* A directory still to be read. */
struct pending {
	char *path;             /* "" is the root */
	const struct ignore *ignore;
	const char *reason;     /* why the directory is skipped; it is read only for files that are included */
	bool included;
};

struct walk {
	struct arena *arena;
	struct walk_options opt;
	int root;
	bool plain_openat;      /* no openat2 here */
	struct skip_names names;
	struct globs exclude, include;
	struct pending *stack;
	size_t n_stack, stack_room;
	struct walk_file *files;
	size_t n_files, files_room;
	struct cache_skipped *skipped;
	size_t n_skipped, skipped_room;
	bool sorted;
};

/* One piece of a path, beneath dir, no link followed. */
static int open_piece(int dir, const char *path, int flags)
{
	struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY),
			       .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
	int fd;

	do
		fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
	while (fd < 0 && (errno == EAGAIN || errno == EINTR)); /* somebody renames just now */
	return fd;
}

/* The same without openat2: name after name. Names come from readdir, so none of them is "..". */
static int open_names(int dir, const char *path, int flags)
{
	int at = dir, fd = -1;

	for (const char *next = path; next; ) {
		const char *slash = strchr(next, '/');
		char name[NAME_MAX + 1];
		size_t n = slash ? (size_t)(slash - next) : strlen(next);

		if (n > NAME_MAX) {
			errno = ENAMETOOLONG;
			fd = -1;
		} else {
			memcpy(name, next, n);
			name[n] = '\0';
			fd = openat(at, name, (slash ? O_RDONLY | O_DIRECTORY : flags) | O_CLOEXEC | O_NOFOLLOW |
				    O_NONBLOCK | O_NOCTTY);
		}
		if (at != dir)
			close(at);
		if (fd < 0)
			return -1;
		at = fd;
		next = slash ? slash + 1 : NULL;
	}
	return fd;
}

/* Open any path beneath the root, however deep: the kernel takes at most PATH_MAX at once. */
static int open_beneath(const struct walk *w, const char *path, int flags)
{
	int at = w->root, fd;

	if (!*path)
		return openat(w->root, ".", flags | O_CLOEXEC);
	if (w->plain_openat)
		return open_names(w->root, path, flags);
	while (strlen(path) > PIECE_BYTES) {
		char piece[PIECE_BYTES + 1];
		const char *slash = memrchr(path, '/', PIECE_BYTES); /* names have at most 255 bytes */
		int next = -1;

		if (slash) {
			memcpy(piece, path, (size_t)(slash - path));
			piece[slash - path] = '\0';
			next = open_piece(at, piece, O_RDONLY | O_DIRECTORY);
			path = slash + 1;
		} else {
			errno = ENAMETOOLONG;
		}
		if (at != w->root)
			close(at);
		if (next < 0)
			return -1;
		at = next;
	}
	fd = open_piece(at, path, flags);
	if (at != w->root) {
		int number = errno;

		close(at);
		errno = number;
	}
	return fd;
}

int walk_open(const struct walk *w, const char *path)
{
	return open_beneath(w, path, O_RDONLY);
}

void walk_skip(struct walk *w, const char *path, const char *reason)
{
	if (w->n_skipped == w->skipped_room)
		w->skipped = xrealloc(w->skipped, w->skipped_room = w->skipped_room ? 2 * w->skipped_room : 64,
				      sizeof *w->skipped);
	w->skipped[w->n_skipped++] = (struct cache_skipped){path, arena_strndup(w->arena, reason, strlen(reason))};
	w->sorted = false;
}

static void skip_directory(struct walk *w, const char *path, const char *reason)
{
	size_t n = strlen(path);
	char *p = arena_alloc(w->arena, n + 2, 1);

	memcpy(p, path, n);
	strcpy(p + n, "/");
	walk_skip(w, p, reason);
}

static void skip_errno(struct walk *w, const char *path, int number)
{
	char *reason = xasprintf("unreadable: %s", strerror(number));

	walk_skip(w, path, reason);
	free(reason);
}

static void push(struct walk *w, struct pending p)
{
	if (w->n_stack == w->stack_room)
		w->stack = xrealloc(w->stack, w->stack_room = w->stack_room ? 2 * w->stack_room : 64, sizeof *w->stack);
	w->stack[w->n_stack++] = p;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in a directory, sorted. Returns NULL with errno when it cannot be read. */
static char **list(int fd, struct arena *names, size_t *n)
{
	DIR *d = fdopendir(fd);
	char **out = NULL;
	size_t room = 0;

	*n = 0;
	if (!d) {
		close(fd);
		return NULL;
	}
	for (;;) {
		struct dirent *e;

		errno = 0;
		e = readdir(d);
		if (!e)
			break;
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (*n == room)
			out = xrealloc(out, room = room ? 2 * room : 64, sizeof *out);
		out[(*n)++] = arena_strndup(names, e->d_name, strlen(e->d_name));
	}
	if (errno) {
		int number = errno;

		free(out);
		closedir(d);
		errno = number;
		return NULL;
	}
	closedir(d);
	if (*n)
		qsort(out, *n, sizeof *out, by_name);
	return out ? out : xcalloc(1, sizeof *out);
}

static char *join(const char *directory, const char *name)
{
	return *directory ? xasprintf("%s/%s", directory, name) : xstrdup(name);
}

/* Add the globs of an ignore file, if it is a regular file of a sensible size. */
static void read_ignore(struct walk *w, struct globs *globs, const char *directory, const char *name)
{
	char *path = join(directory, name), *text = NULL;
	int fd = walk_open(w, path);
	struct stat st;

	if (fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size <= IGNORE_BYTES) {
		size_t bytes = 0;
		ssize_t n;

		text = xmalloc((size_t)st.st_size + 1, 1);
		while (bytes < (size_t)st.st_size &&
		       (n = read(fd, text + bytes, (size_t)st.st_size - bytes)) > 0)
			bytes += (size_t)n;
		globs_parse(globs, w->arena, text, bytes);
	}
	if (fd >= 0)
		close(fd);
	free(text);
	free(path);
}

static const struct ignore *ignore_of(struct walk *w, const struct pending *p, char *const *names, size_t n)
{
	static const char *const files[] = {".gitignore", ".quireignore"};
	struct ignore own = {.above = p->ignore, .base = *p->path ? strlen(p->path) + 1 : 0}, *out;

	for (size_t i = 0; i < sizeof files / sizeof *files; i++)
		if (n && bsearch(&files[i], names, n, sizeof *names, by_name))
			read_ignore(w, &own.globs, p->path, files[i]);
	if (!own.globs.n)
		return p->ignore;
	out = arena_alloc(w->arena, 1, sizeof *out);
	*out = own;
	return out;
}

static bool is_ignored(const struct ignore *i, const char *path, bool is_directory)
{
	for (; i; i = i->above) {
		enum glob_verdict v = globs_match(&i->globs, path + i->base, is_directory);

		if (v != GLOB_SILENT)
			return v == GLOB_MATCHES;
	}
	return false;
}

/* Why a file or directory with this path is left out; NULL: it is not. */
static const char *reason_of(struct walk *w, const struct ignore *ignore, const char *path, bool is_directory)
{
	const char *reason;

	if (globs_match(&w->exclude, path, is_directory) == GLOB_MATCHES)
		return "excluded";
	reason = skip_by_name(&w->names, SKIP_VERSION_CONTROL, path, is_directory);
	if (!reason && is_ignored(ignore, path, is_directory))
		reason = "ignored";
	for (int kind = SKIP_SECRET; !reason && kind < N_SKIP_KINDS; kind++)
		reason = skip_by_name(&w->names, (enum skip_kind)kind, path, is_directory);
	return reason;
}

static void see_directory(struct walk *w, const struct pending *parent, const struct ignore *ignore, char *path,
			  bool included)
{
	const char *reason = parent->reason;

	if (!included && !reason) {
		reason = reason_of(w, ignore, path, true);
		if (reason)
			skip_directory(w, path, reason);
	}
	/* What is skipped is looked into only where a file of it might be wanted after all. */
	if (!included && reason && !w->include.n)
		free(path);
	else
		push(w, (struct pending){path, ignore, included ? NULL : reason, included});
}

static void see_file(struct walk *w, const struct pending *parent, const struct ignore *ignore, const char *path,
		     bool included, const struct stat *st)
{
	const char *reason = NULL;
	char *kept;

	if (!included && parent->reason)
		return; /* the directory's entry stands for it */
	if (!included)
		reason = reason_of(w, ignore, path, false);
	kept = arena_strndup(w->arena, path, strlen(path));
	if (!S_ISREG(st->st_mode)) {
		walk_skip(w, kept, S_ISLNK(st->st_mode) ? "symbolic link" : "not a regular file");
		return;
	}
	if (!reason && st->st_size > text_most_bytes(path, included, w->opt.max_file_bytes))
		reason = "too large";
	if (reason) {
		walk_skip(w, kept, reason);
		return;
	}
	if (w->n_files == w->files_room)
		w->files = xrealloc(w->files, w->files_room = w->files_room ? 2 * w->files_room : 64, sizeof *w->files);
	w->files[w->n_files++] = (struct walk_file){kept, st->st_size, included};
}

static void read_directory(struct walk *w, const struct pending *p)
{
	struct arena *names_arena = arena_new();
	int fd = open_beneath(w, p->path, O_RDONLY | O_DIRECTORY), dir = fd < 0 ? -1 : dup(fd);
	size_t n = 0;
	char **names = dir < 0 ? NULL : list(fd, names_arena, &n);
	const struct ignore *ignore;

	if (!names) {
		skip_errno(w, arena_strndup(w->arena, p->path, strlen(p->path)), errno);
		if (dir < 0 && fd >= 0)
			close(fd);
	} else {
		ignore = ignore_of(w, p, names, n);
		for (size_t i = 0; i < n; i++) {
			char *path = join(p->path, names[i]);
			struct stat st;
			bool is_directory, included;

			if (fstatat(dir, names[i], &st, AT_SYMLINK_NOFOLLOW)) {
				if (errno != ENOENT)
					skip_errno(w, arena_strndup(w->arena, path, strlen(path)), errno);
				free(path);
				continue;
			}
			is_directory = S_ISDIR(st.st_mode);
			included = p->included || globs_match(&w->include, path, is_directory) == GLOB_MATCHES;
			if (is_directory) {
				see_directory(w, p, ignore, path, included);
			} else {
				see_file(w, p, ignore, path, included, &st);
				free(path);
			}
		}
		free(names);
	}
	if (dir >= 0)
		close(dir);
	arena_free(names_arena);
}

static void parse_options(struct walk *w, struct globs *globs, const char *const *patterns)
{
	for (; patterns && *patterns; patterns++)
		globs_parse(globs, w->arena, *patterns, strlen(*patterns));
}

static int by_file_path(const void *a, const void *b)
{
	return strcmp(((const struct walk_file *)a)->path, ((const struct walk_file *)b)->path);
}

static int by_skipped_path(const void *a, const void *b)
{
	return strcmp(((const struct cache_skipped *)a)->path, ((const struct cache_skipped *)b)->path);
}

int walk_new(struct walk **out, const struct walk_options *opt, const atomic_bool *cancel, struct err *err)
{
	struct walk *w = xcalloc(1, sizeof *w);
	int probe;

	w->arena = arena_new();
	w->opt = *opt;
	w->root = open(opt->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (w->root < 0) {
		err_errno(err, errno, "open directory %s", opt->root);
		walk_free(w);
		return -1;
	}
	probe = open_piece(w->root, ".", O_RDONLY | O_DIRECTORY);
	w->plain_openat = opt->without_openat2 || (probe < 0 && (errno == ENOSYS || errno == EPERM));
	if (probe >= 0)
		close(probe);
	skip_names_init(&w->names, w->arena);
	parse_options(w, &w->exclude, opt->exclude);
	parse_options(w, &w->include, opt->include);
	push(w, (struct pending){.path = xstrdup("")});
	while (w->n_stack) {
		struct pending p = w->stack[--w->n_stack];

		if (cancel && atomic_load(cancel)) {
			free(p.path);
			walk_free(w);
			return err_set(err, ERR_CANCELLED, "cancelled while listing %s", opt->root);
		}
		read_directory(w, &p);
		free(p.path);
	}
	if (w->n_files)
		qsort(w->files, w->n_files, sizeof *w->files, by_file_path);
	*out = w;
	return 0;
}

void walk_free(struct walk *w)
{
	if (!w)
		return;
	while (w->n_stack)
		free(w->stack[--w->n_stack].path);
	if (w->root >= 0)
		close(w->root);
	free(w->stack);
	free(w->files);
	free(w->skipped);
	arena_free(w->arena);
	free(w);
}

const struct walk_file *walk_files(const struct walk *w, size_t *n)
{
	*n = w->n_files;
	return w->files;
}

const struct cache_skipped *walk_skipped(struct walk *w, size_t *n)
{
	if (!w->sorted && w->n_skipped)
		qsort(w->skipped, w->n_skipped, sizeof *w->skipped, by_skipped_path);
	w->sorted = true;
	*n = w->n_skipped;
	return w->skipped;
}
