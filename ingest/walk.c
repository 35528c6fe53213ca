#include "ingest/walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"
#include "ingest/beneath.h"
#include "ingest/glob.h"
#include "ingest/skip.h"
#include "ingest/text.h"

/* An ignore file larger than this is not one. A context has room for fewer documents than LISTED, since each takes a few
 * tokens; with the bytes of their paths it is what bounds our memory, whatever the tree. */
enum { IGNORE_BYTES = 1 << 20, PATH_BYTES = 1 << 18, LISTED = 4 << 20, LISTED_BYTES = 1 << 30 };

/* Ignore files of a tree may hold millions of patterns, each of them asked about each file. This many bytes
 * compared take about a minute; a million files and a thousand ordinary patterns, which differ in the first
 * byte or two, need an eighth. */
static const int64_t MATCH_STEPS = (int64_t)1 << 34;

/* The ignore files that hold in a directory: its own, and those of the directories above it. */
struct ignore {
	const struct ignore *above;
	const char *prefix;     /* what these globs see before a path; from above the root, else NULL */
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
	struct beneath *beneath; /* NULL: a commit is read */
	struct skip_names names;
	struct globs exclude, include;
	struct pending *stack;
	size_t n_stack, stack_room, stack_bytes; /* bytes: of the paths */
	struct walk_file *files;
	size_t n_files, files_room;
	struct cache_skipped *skipped;
	size_t n_skipped, skipped_room;
	bool sorted;
	const char *last_reason; /* of skipped: there are many files and few reasons */
	int64_t steps;          /* of matching what the tree's ignore files say */
	const atomic_bool *cancel;
};

int walk_open(struct walk *w, const char *path)
{
	return beneath_open(w->beneath, path, O_RDONLY);
}

void walk_skip(struct walk *w, const char *path, const char *reason)
{
	if (w->n_skipped == w->skipped_room)
		w->skipped = xrealloc(w->skipped, w->skipped_room = w->skipped_room ? 2 * w->skipped_room : 64,
				      sizeof *w->skipped);
	if (!w->last_reason || strcmp(w->last_reason, reason))
		w->last_reason = arena_strndup(w->arena, reason, strlen(reason));
	w->skipped[w->n_skipped++] = (struct cache_skipped){path, w->last_reason};
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
	w->stack_bytes += strlen(p.path);
	if (w->n_stack == w->stack_room)
		w->stack = xrealloc(w->stack, w->stack_room = w->stack_room ? 2 * w->stack_room : 64, sizeof *w->stack);
	w->stack[w->n_stack++] = p;
}

/* What a directory holds. */
struct entry {
	const char *name;
	mode_t kind;            /* S_IFREG, ...; 0: another repository */
	int64_t bytes;
	int number;             /* errno, if it could not be looked at */
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* The entries of a directory on disk, in any order. -1: errno. */
static int list_directory(struct walk *w, const char *path, struct arena *a, struct entry **out, size_t *n)
{
	int held = beneath_directory(w->beneath, path), number;
	/* One that has an offset of its own. */
	int fd = held < 0 ? -1 : openat(held, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct entry *list = NULL;
	size_t room = 0;
	struct dirent *e;

	*n = 0;
	if (!d) {
		number = errno;
		if (fd >= 0)
			close(fd);
		errno = number;
		return -1;
	}
	/* One more than there may be, so that it is seen to be too much. */
	while (*n <= LISTED && (errno = 0, e = readdir(d))) {
		struct entry entry = {0};
		struct stat st;

		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW)) {
			if (errno == ENOENT)
				continue;
			entry.number = errno;
		} else {
			entry.kind = st.st_mode & S_IFMT;
			entry.bytes = st.st_size;
		}
		entry.name = arena_strndup(a, e->d_name, strlen(e->d_name));
		if (*n == room)
			list = xrealloc(list, room = room ? 2 * room : 64, sizeof *list);
		list[(*n)++] = entry;
	}
	number = *n <= LISTED ? errno : 0;
	closedir(d);
	if (number) {
		free(list);
		errno = number;
		return -1;
	}
	*out = list;
	return 0;
}

/* The same of the commit. -1: *reason. */
static int list_tree(const struct walk *w, const char *path, struct arena *a, struct entry **out, size_t *n,
		     const char **reason)
{
	struct repo_entry *entries;

	if (repo_list(w->opt.repo, path, a, &entries, n, reason))
		return -1;
	*out = xmalloc(*n, sizeof **out);
	for (size_t i = 0; i < *n; i++)
		(*out)[i] = (struct entry){entries[i].name, entries[i].kind, entries[i].bytes, 0};
	return 0;
}

static char *join(const char *directory, const char *name)
{
	return *directory ? xasprintf("%s/%s", directory, name) : xstrdup(name);
}

/* Add the globs of an ignore file, if it is a regular file of a sensible size. */
static void read_ignore(struct walk *w, struct globs *globs, const char *directory, const char *name)
{
	char *path = join(directory, name), *text = NULL, reason[SKIP_REASON_BYTES];
	int fd = w->opt.from_commit ? -1 : walk_open(w, path);
	size_t bytes = 0;
	struct stat st;

	if (w->opt.from_commit) {
		if (repo_read(w->opt.repo, path, IGNORE_BYTES, &text, &bytes, reason))
			globs_parse(globs, w->arena, text, bytes);
	} else if (fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size <= IGNORE_BYTES) {
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

static const struct ignore *ignore_of(struct walk *w, const struct pending *p, const struct entry *entries, size_t n)
{
	static const char *const files[] = {".gitignore", ".quireignore"};
	struct ignore own = {.above = p->ignore, .base = *p->path ? strlen(p->path) + 1 : 0, .globs.steps = &w->steps}, *out;

	for (size_t i = w->opt.from_commit; i < sizeof files / sizeof *files; i++) {
		const struct entry key = {files[i], 0, 0, 0};

		if (n && bsearch(&key, entries, n, sizeof *entries, by_name))
			read_ignore(w, &own.globs, p->path, files[i]);
	}
	if (!own.globs.n)
		return p->ignore;
	out = arena_alloc(w->arena, 1, sizeof *out);
	*out = own;
	return out;
}

/* Whether patterns from above leave out the root, or a directory that leads to it. */
static bool leave_out_root(const struct ignore *own)
{
	char *path = xstrdup(own->prefix);
	bool out = false;

	for (char *slash = path; !out && (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		out = globs_match(&own->globs, path, true) == GLOB_MATCHES;
		*slash = '/';
	}
	free(path);
	return out;
}

/* What holds from above the root. Nothing does if it leaves out the root itself, which the caller has named. */
static const struct ignore *ignore_from_above(struct walk *w)
{
	const struct ignore *above = NULL;
	size_t n = 0;
	const struct repo_ignore *list = w->opt.repo && !w->opt.from_commit ? repo_ignores(w->opt.repo, &n) : NULL;

	for (size_t i = 0; i < n; i++) {
		struct ignore *own = arena_alloc(w->arena, 1, sizeof *own);

		*own = (struct ignore){.above = above, .prefix = list[i].prefix, .globs.steps = &w->steps};
		globs_parse(&own->globs, w->arena, list[i].text, list[i].bytes);
		if (leave_out_root(own))
			return NULL;
		above = own;
	}
	return above;
}

static bool is_ignored(const struct ignore *i, const char *path, bool is_directory)
{
	for (; i; i = i->above) {
		char *whole = i->prefix ? xasprintf("%s%s", i->prefix, path) : NULL;
		enum glob_verdict v = globs_match(&i->globs, whole ? whole : path + i->base, is_directory);

		free(whole);
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
		     bool included, const struct entry *e)
{
	const char *reason = NULL;
	char *kept;

	if (!included && parent->reason)
		return; /* the directory's entry stands for it */
	if (!included)
		reason = reason_of(w, ignore, path, false);
	kept = arena_strndup(w->arena, path, strlen(path));
	if (e->kind != S_IFREG) {
		walk_skip(w, kept, e->kind == S_IFLNK ? "symbolic link" : e->kind ? "not a regular file" : "another repository");
		return;
	}
	if (!reason && e->bytes > text_most_bytes(path, included, w->opt.max_file_bytes))
		reason = "too large";
	if (reason) {
		walk_skip(w, kept, reason);
		return;
	}
	if (w->n_files == w->files_room)
		w->files = xrealloc(w->files, w->files_room = w->files_room ? 2 * w->files_room : 64, sizeof *w->files);
	w->files[w->n_files++] = (struct walk_file){
		kept, e->bytes, included, w->opt.repo ? repo_n_changes(w->opt.repo, kept) : 0,
	};
}

static void see_entry(struct walk *w, const struct pending *p, const struct ignore *ignore, const struct entry *e)
{
	char *path = join(p->path, e->name);
	bool too_long = strlen(path) > PATH_BYTES;
	bool is_directory = e->kind == S_IFDIR;
	bool included = p->included || globs_match(&w->include, path, is_directory) == GLOB_MATCHES;

	if (too_long) {
		walk_skip(w, arena_strndup(w->arena, path, strlen(path)), "path too long");
	} else if (e->number) {
		skip_errno(w, arena_strndup(w->arena, path, strlen(path)), e->number);
	} else if (is_directory) {
		see_directory(w, p, ignore, path, included);
		return;
	} else {
		see_file(w, p, ignore, path, included, e);
	}
	free(path);
}

static bool is_cancelled(const struct walk *w)
{
	return w->cancel && atomic_load(w->cancel);
}

static bool is_too_much(const struct walk *w)
{
	return w->n_files + w->n_skipped + w->n_stack > LISTED || arena_bytes(w->arena) + w->stack_bytes > LISTED_BYTES;
}

static void read_directory(struct walk *w, const struct pending *p)
{
	struct arena *a = arena_new();
	struct entry *entries = NULL;
	const struct ignore *ignore;
	const char *reason = NULL;
	size_t n = 0;
	int rc = w->opt.from_commit ? list_tree(w, p->path, a, &entries, &n, &reason)
				    : list_directory(w, p->path, a, &entries, &n);

	if (rc) {
		const char *path = arena_strndup(w->arena, p->path, strlen(p->path));

		if (reason)
			walk_skip(w, path, reason);
		else
			skip_errno(w, path, errno);
	} else {
		if (n)
			qsort(entries, n, sizeof *entries, by_name);
		ignore = ignore_of(w, p, entries, n);
		for (size_t i = 0; i < n && !is_too_much(w) && w->steps <= w->opt.match_steps && !is_cancelled(w); i++)
			see_entry(w, p, ignore, &entries[i]);
	}
	free(entries);
	arena_free(a);
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

struct repo *walk_commit(const struct walk *w)
{
	return w->opt.from_commit ? w->opt.repo : NULL;
}

/* Whether the listing came to its end, or why not. */
static int check_end(const struct walk *w, struct err *err)
{
	if (is_cancelled(w))
		return err_set(err, ERR_CANCELLED, "cancelled while listing %s", w->opt.root);
	if (is_too_much(w))
		return err_set(err, ERR_TOO_LARGE, "%s has more than %d files, or paths and ignore patterns of more than %d bytes "
			       "together: leave out directories with --exclude", w->opt.root, LISTED, LISTED_BYTES);
	if (w->steps > w->opt.match_steps)
		return err_set(err, ERR_TOO_LARGE, "the .gitignore and .quireignore files of %s have more patterns than can be "
			       "compared with its files in a minute: leave out directories with --exclude, or shorten them",
			       w->opt.root);
	return 0;
}

int walk_new(struct walk **out, const struct walk_options *opt, const atomic_bool *cancel, struct err *err)
{
	struct walk *w = xcalloc(1, sizeof *w);

	w->arena = arena_new();
	w->opt = *opt;
	if (!w->opt.match_steps)
		w->opt.match_steps = MATCH_STEPS;
	w->cancel = cancel;
	if (!opt->from_commit && beneath_new(&w->beneath, opt->root, opt->without_openat2, err)) {
		walk_free(w);
		return -1;
	}
	skip_names_init(&w->names, w->arena);
	parse_options(w, &w->exclude, opt->exclude);
	parse_options(w, &w->include, opt->include);
	push(w, (struct pending){.path = xstrdup(""), .ignore = ignore_from_above(w)});
	while (w->n_stack && !is_cancelled(w) && !is_too_much(w) && w->steps <= w->opt.match_steps) {
		struct pending p = w->stack[--w->n_stack];

		w->stack_bytes -= strlen(p.path);
		read_directory(w, &p);
		free(p.path);
	}
	if (check_end(w, err)) {
		walk_free(w);
		return -1;
	}
	w->cancel = NULL; /* it is lent for this call */
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
	beneath_free(w->beneath);
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
