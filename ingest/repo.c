#include "ingest/repo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <git2.h>
#include <limits.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/file.h"

/* A tree object of this size has a million entries. Paths deeper than any system call takes are nobody's source. */
enum {
	MAX_CHECKED = 4 << 20, CHECK_DEPTH = 32, MAX_CONFIG_BYTES = 1 << 20, MAX_IGNORE_BYTES = 1 << 20,
	MAX_TREE_BYTES = 64 << 20, MAX_TREE_DEPTH = 256, MAX_PATH_BYTES = 4096,
};

struct change {
	char *path;
	int64_t n;
};

struct repo {
	struct arena *arena;
	char *root;             /* of the work tree, or a bare repository */
	char *git_dir, *common_dir;
	char *prefix;           /* of the directory in the work tree: "" or "sub/dir/" */
	bool bare;
	git_repository *repository;
	git_odb *odb;
	git_tree *tree;         /* of the commit, at the root */
	git_oid commit_id;
	char commit[GIT_OID_HEXSZ + 1];
	void *changes;          /* tsearch, of struct change by path */
	struct repo_ignore *ignores;
	size_t n_ignores;
};

static const char *git_says(void)
{
	const git_error *e = git_error_last();

	return e && e->message ? e->message : "no reason given";
}

/*
 * Finding the repository, and looking at it before libgit2 does
 */

/* What libgit2 opens, directly below a repository. Other things may lie there, sockets among them. */
static bool is_opened(const char *name)
{
	static const char *const opened[] = {"HEAD", "config", "config.worktree", "packed-refs", "commondir", "gitdir",
					     "index", "shallow", "objects", "refs", "info"};

	for (size_t i = 0; i < sizeof opened / sizeof *opened; i++)
		if (!strcmp(name, opened[i]))
			return true;
	return false;
}

struct check {
	const char *dir;
	int64_t n;
	struct err *err;
};

/* Whether all below a directory is files and directories. Takes the descriptor. */
static int check_below(struct check *c, int fd, int depth)
{
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	int rc = 0;

	if (!d) {
		rc = err_errno(c->err, errno, "look into %s", c->dir);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	while (!rc && (errno = 0, e = readdir(d))) {
		unsigned kind = e->d_type == DT_REG ? S_IFREG : e->d_type == DT_DIR ? S_IFDIR : 0;
		struct stat st;

		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || (!depth && !is_opened(e->d_name)))
			continue;
		if (!kind && !fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW))
			kind = st.st_mode & S_IFMT;
		if (kind != S_IFREG && kind != S_IFDIR)
			rc = err_set(c->err, ERR_FORMAT, "%s is not read: %s in it is neither a file nor a directory", c->dir,
				     e->d_name);
		else if (++c->n > MAX_CHECKED || depth > CHECK_DEPTH)
			rc = err_set(c->err, ERR_FORMAT, "%s is not read: it has more than %d files, or directories deeper "
				     "than %d: run git gc", c->dir, MAX_CHECKED, CHECK_DEPTH);
		else if (kind == S_IFDIR)
			rc = check_below(c, openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC),
					 depth + 1);
	}
	if (!rc && errno)
		rc = err_errno(c->err, errno, "look into %s", c->dir);
	closedir(d);
	return rc;
}

/* Text of a small file; "" when it is not there. `bytes` may be NULL. */
static char *small_file(const char *dir, const char *name, size_t *bytes)
{
	char *path = xasprintf("%s/%s", dir, name), *text;
	size_t n;

	if (file_read(&text, &n, path, MAX_CONFIG_BYTES, NULL)) {
		text = xstrdup("");
		n = 0;
	}
	free(path);
	if (bytes)
		*bytes = n;
	return text;
}

static int check_config(const char *dir, const char *name, struct err *err)
{
	size_t n;
	char *text = small_file(dir, name, &n), *end = text + n;
	int rc = 0;

	/* [include] and [includeIf ...], wherever they stand. */
	for (char *p = text; !rc && (p = memchr(p, '[', (size_t)(end - p))); p++)
		if (end - p > 7 && !strncasecmp(p + 1, "include", 7))
			rc = err_set(err, ERR_FORMAT, "%s/%s is not read: it includes other files", dir, name);
	free(text);
	return rc;
}

static int check_repository(const char *dir, struct err *err)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	struct check c = {dir, 0, err};
	struct stat st;
	char *alternates;
	int rc = 0;

	if (fd < 0 || fstat(fd, &st)) {
		rc = err_errno(err, errno, "open %s", dir);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	if (st.st_uid != geteuid()) {
		close(fd);
		return err_set(err, ERR_PERMISSION, "%s is not read: it belongs to user %ld, this process is user %ld", dir,
			       (long)st.st_uid, (long)geteuid());
	}
	if (check_below(&c, fd, 0) || check_config(dir, "config", err) || check_config(dir, "config.worktree", err))
		return -1;
	alternates = small_file(dir, "objects/info/alternates", NULL);
	if (*alternates)
		rc = err_set(err, ERR_FORMAT, "%s is not read: it borrows objects from elsewhere", dir);
	free(alternates);
	return rc;
}

static void trim(char *s)
{
	s[strcspn(s, "\r\n")] = '\0';
}

/* A path in a file of `dir`, as it is on disk; NULL: it leads nowhere. */
static char *resolve(const char *dir, const char *path)
{
	char *whole = *path == '/' ? xstrdup(path) : xasprintf("%s/%s", dir, path), *real = realpath(whole, NULL);

	free(whole);
	return real;
}

/* A work tree added by `git worktree`: .git is a file that names a directory of the repository, which names the file. */
static int follow_git_file(struct repo *r, const char *file, struct err *err)
{
	char *text = small_file(r->root, ".git", NULL), *back = NULL, *link = NULL, *common = NULL, *backlink;
	int rc = 0;

	trim(text);
	if (!strncmp(text, "gitdir: ", 8))
		r->git_dir = resolve(r->root, text + 8);
	if (r->git_dir) {
		back = small_file(r->git_dir, "gitdir", NULL);
		trim(back);
		link = *back ? resolve(r->git_dir, back) : NULL;
		common = small_file(r->git_dir, "commondir", NULL);
		trim(common);
		r->common_dir = *common ? resolve(r->git_dir, common) : NULL;
	}
	backlink = resolve(r->root, ".git");
	if (!link || !backlink || strcmp(link, backlink) || !r->common_dir)
		rc = err_set(err, ERR_FORMAT, "%s is not read: it leads to a repository that does not know this work tree",
			     file);
	free(text);
	free(back);
	free(link);
	free(common);
	free(backlink);
	return rc;
}

static bool is_kind(const char *dir, const char *name, mode_t kind)
{
	char *path = xasprintf("%s/%s", dir, name);
	struct stat st;
	bool is = !lstat(path, &st) && (st.st_mode & S_IFMT) == kind;

	free(path);
	return is;
}

/* 1: .git lies in r->root; 0: it does not; -1: it does and is not read. */
static int look_for_git(struct repo *r, struct err *err)
{
	char *path = xasprintf("%s%s.git", r->root, r->root[1] ? "/" : "");
	struct stat st;
	int rc = 0;

	if (!lstat(path, &st)) {
		rc = 1;
		if (S_ISDIR(st.st_mode)) {
			r->git_dir = xstrdup(path);
			r->common_dir = xstrdup(path);
		} else if (S_ISREG(st.st_mode)) {
			rc = follow_git_file(r, path, err) ? -1 : 1;
		} else {
			rc = err_set(err, ERR_FORMAT, "%s is not read: it is neither a file nor a directory", path);
		}
	}
	free(path);
	return rc;
}

/* Up from the directory to the first that has a .git, on its file system. */
static int find_repository(struct repo *r, const char *dir, bool bare_too, struct err *err)
{
	struct stat here, st;
	int rc;

	r->root = realpath(dir, NULL);
	if (!r->root || stat(r->root, &here))
		return err_errno(err, errno, "%s", dir);
	r->prefix = xstrdup("");
	if (bare_too && is_kind(r->root, "HEAD", S_IFREG) && is_kind(r->root, "objects", S_IFDIR) &&
	    is_kind(r->root, "refs", S_IFDIR)) {
		r->git_dir = xstrdup(r->root);
		r->common_dir = xstrdup(r->root);
		r->bare = true;
		return 0;
	}
	while (!(rc = look_for_git(r, err)) && r->root[1]) {
		char *slash = strrchr(r->root, '/'), *prefix = xasprintf("%s/%s", slash + 1, r->prefix);

		free(r->prefix);
		r->prefix = prefix;
		slash[slash == r->root] = '\0';
		if (stat(r->root, &st) || st.st_dev != here.st_dev)
			break;
	}
	return rc > 0 ? 0 : rc ? -1 : err_set(err, ERR_NOT_FOUND, "%s is not in a git repository", dir);
}

/*
 * Opening
 */

static int find_commit(struct repo *r, const char *ref, struct err *err)
{
	git_reference *reference = NULL;
	git_object *object = NULL;
	git_commit *commit = NULL;
	git_oid id;
	size_t n = ref ? strlen(ref) : 0;
	int rc = 0;

	/* Not git_revparse: its language can search the whole history. */
	if (!ref)
		rc = git_repository_head(&reference, r->repository);
	else if (git_reference_dwim(&reference, r->repository, ref) && n >= 4 && n <= GIT_OID_HEXSZ &&
		 strspn(ref, "0123456789abcdef") == n && !git_oid_fromstrn(&id, ref, n))
		rc = git_object_lookup_prefix(&object, r->repository, &id, n, GIT_OBJECT_ANY);
	if (reference)
		rc = git_reference_peel(&object, reference, GIT_OBJECT_COMMIT);
	if (rc || !object || git_object_peel((git_object **)&commit, object, GIT_OBJECT_COMMIT)) {
		err_set(err, ERR_NOT_FOUND, "%s has no commit '%s': give a branch, a tag or the beginning of a commit's id",
			r->root, ref ? ref : "HEAD");
		rc = -1;
	} else {
		git_oid_cpy(&r->commit_id, git_commit_id(commit));
		git_oid_tostr(r->commit, sizeof r->commit, &r->commit_id);
		if (git_commit_tree(&r->tree, commit))
			rc = err_set(err, ERR_FORMAT, "%s: the tree of commit %s: %s", r->root, r->commit, git_says());
	}
	git_commit_free(commit);
	git_object_free(object);
	git_reference_free(reference);
	return rc;
}

int repo_open(struct repo **out, const char *dir, const char *ref, struct err *err)
{
	struct repo *r = xcalloc(1, sizeof *r);
	unsigned flags = GIT_REPOSITORY_OPEN_NO_SEARCH;

	git_libgit2_init();
	r->arena = arena_new();
	if (find_repository(r, dir, ref != NULL, err) || check_repository(r->common_dir, err) ||
	    (strcmp(r->git_dir, r->common_dir) && check_repository(r->git_dir, err))) {
		repo_close(r);
		return -1;
	}
	if (r->bare)
		flags |= GIT_REPOSITORY_OPEN_BARE;
	if (git_repository_open_ext(&r->repository, r->root, flags, NULL) ||
	    git_repository_odb(&r->odb, r->repository)) {
		err_set(err, ERR_FORMAT, "the repository of %s does not open: %s", r->root, git_says());
		repo_close(r);
		return -1;
	}
	if (find_commit(r, ref, err)) {
		repo_close(r);
		return -1;
	}
	*out = r;
	return 0;
}

static void change_free(void *change)
{
	free(((struct change *)change)->path);
	free(change);
}

void repo_close(struct repo *r)
{
	if (!r)
		return;
	git_tree_free(r->tree);
	git_odb_free(r->odb);
	git_repository_free(r->repository);
	tdestroy(r->changes, change_free);
	arena_free(r->arena);
	free(r->ignores);
	free(r->root);
	free(r->git_dir);
	free(r->common_dir);
	free(r->prefix);
	free(r);
	git_libgit2_shutdown();
}

const char *repo_commit(const struct repo *r)
{
	return r->commit;
}

/*
 * Trees. Every object's size is looked at before it is taken into memory.
 */

static int tree_of(struct repo *r, git_tree **out, const git_oid *id)
{
	size_t bytes;
	git_object_t type;

	if (git_odb_read_header(&bytes, &type, r->odb, id) || type != GIT_OBJECT_TREE || bytes > MAX_TREE_BYTES)
		return -1;
	return git_tree_lookup(out, r->repository, id);
}

/* The tree at the directory in a root tree: 1, or 0: there is none. `path` has a slash at its end, or is "". */
static int tree_at(struct repo *r, git_tree **out, const git_tree *root, const char *path)
{
	size_t n = strlen(path);
	git_tree_entry *entry = NULL;
	char *plain;
	int rc;

	if (!n)
		return !git_tree_dup(out, (git_tree *)root);
	if (n > MAX_PATH_BYTES)
		return 0;
	plain = xstrndup(path, n - 1);
	rc = !git_tree_entry_bypath(&entry, root, plain) && git_tree_entry_type(entry) == GIT_OBJECT_TREE &&
	     !tree_of(r, out, git_tree_entry_id(entry));
	git_tree_entry_free(entry);
	free(plain);
	return rc;
}

/*
 * History
 */

struct history {
	struct repo *r;
	const atomic_bool *cancel;
	int64_t deadline_ms;
	bool late, broken;
};

static int by_path(const void *a, const void *b)
{
	return strcmp(((const struct change *)a)->path, ((const struct change *)b)->path);
}

static void count_change(struct repo *r, const char *path)
{
	struct change key = {(char *)path, 0}, **found = tfind(&key, &r->changes, by_path), *c;

	if (!found) {
		c = xmalloc(1, sizeof *c);
		*c = (struct change){xstrdup(path), 0};
		found = tsearch(c, &r->changes, by_path);
		if (!found)
			abort(); /* as any small allocation */
	}
	(*found)->n++;
}

static bool is_over(struct history *h)
{
	h->late |= clock_now_ms() > h->deadline_ms;
	return h->late || h->broken || (h->cancel && atomic_load(h->cancel));
}

static void compare(struct history *h, const git_tree *was, const git_tree *is, const char *path, int depth);

static void see_changed(struct history *h, const git_tree_entry *was, const git_tree_entry *is, const char *path, int depth)
{
	git_tree *a = NULL, *b = NULL;
	char *whole = xasprintf("%s%s", path, git_tree_entry_name(is));

	if (git_tree_entry_type(is) == GIT_OBJECT_BLOB) {
		count_change(h->r, whole);
	} else if (git_tree_entry_type(is) == GIT_OBJECT_TREE && depth < MAX_TREE_DEPTH) {
		if (tree_of(h->r, &b, git_tree_entry_id(is)) ||
		    (was && git_tree_entry_type(was) == GIT_OBJECT_TREE && tree_of(h->r, &a, git_tree_entry_id(was)))) {
			h->broken = true;
		} else {
			char *below = xasprintf("%s/", whole);

			compare(h, a, b, below, depth + 1);
			free(below);
		}
		git_tree_free(a);
		git_tree_free(b);
	}
	free(whole);
}

/* Count what is new or different in `is`. Both are sorted in git's order. */
static void compare(struct history *h, const git_tree *was, const git_tree *is, const char *path, int depth)
{
	size_t n_was = was ? git_tree_entrycount(was) : 0, n_is = git_tree_entrycount(is), i = 0;

	if (was && git_oid_equal(git_tree_id(was), git_tree_id(is)))
		return;
	for (size_t j = 0; j < n_is && !is_over(h); j++) {
		const git_tree_entry *now = git_tree_entry_byindex(is, j), *before = NULL;
		int order = -1;

		while (i < n_was && (order = git_tree_entry_cmp(before = git_tree_entry_byindex(was, i), now)) < 0)
			i++;
		if (i < n_was && !order) {
			i++;
			if (git_oid_equal(git_tree_entry_id(before), git_tree_entry_id(now)))
				continue;
		} else {
			before = NULL;
		}
		see_changed(h, before, now, path, depth);
	}
}

static void count_commit(struct history *h, const git_oid *id)
{
	git_commit *commit = NULL, *parent = NULL;
	git_tree *root = NULL, *former_root = NULL, *is = NULL, *was = NULL;
	struct repo *r = h->r;

	if (git_commit_lookup(&commit, r->repository, id) || git_commit_tree(&root, commit)) {
		h->broken = true;
	} else if (git_commit_parentcount(commit) <= 1) {
		if (git_commit_parentcount(commit) &&
		    (git_commit_parent(&parent, commit, 0) || git_commit_tree(&former_root, parent)))
			h->broken = true; /* a shallow clone ends here */
		if (former_root)
			(void)tree_at(r, &was, former_root, r->prefix); /* the directory may be new */
		if (!h->broken && tree_at(r, &is, root, r->prefix))
			compare(h, was, is, "", 0);
	}
	git_tree_free(is);
	git_tree_free(was);
	git_tree_free(root);
	git_tree_free(former_root);
	git_commit_free(parent);
	git_commit_free(commit);
}

int repo_count_changes(struct repo *r, const struct repo_limits *limits, const atomic_bool *cancel, const char **note,
		       struct err *err)
{
	struct history h = {.r = r, .cancel = cancel, .deadline_ms = clock_now_ms() + limits->ms};
	git_revwalk *walk = NULL;
	int64_t n = 0;
	git_oid id;
	int rc = 0;

	*note = NULL;
	if (git_revwalk_new(&walk, r->repository) || git_revwalk_push(walk, &r->commit_id))
		h.broken = true;
	/* Newest first: where it is cut, what is known is what happened last. */
	git_revwalk_sorting(walk, GIT_SORT_TIME);
	while (!is_over(&h) && n < limits->n_commits && !(rc = git_revwalk_next(&id, walk))) {
		count_commit(&h, &id);
		n++;
	}
	git_revwalk_free(walk);
	if (cancel && atomic_load(cancel))
		return err_set(err, ERR_CANCELLED, "cancelled while reading the history of %s", r->root);
	if (h.broken || (rc && rc != GIT_ITEROVER))
		*note = "history ends where commits are missing";
	else if (h.late)
		*note = "history was read for as long as it may take, newest commits first";
	else if (n == limits->n_commits && rc != GIT_ITEROVER)
		*note = "only the newest commits of a long history were read";
	return 0;
}

int64_t repo_n_changes(const struct repo *r, const char *path)
{
	struct change key = {(char *)path, 0}, **found = tfind(&key, (void *const *)&r->changes, by_path);

	return found ? (*found)->n : 0;
}

/*
 * Ignore rules from above
 */

static void add_ignore(struct repo *r, const char *file, const char *prefix)
{
	char *text;
	size_t bytes;

	if (file_read(&text, &bytes, file, MAX_IGNORE_BYTES, NULL))
		return;
	r->ignores = xrealloc(r->ignores, r->n_ignores + 1, sizeof *r->ignores);
	r->ignores[r->n_ignores++] = (struct repo_ignore){arena_strndup(r->arena, prefix, strlen(prefix)),
							  arena_strndup(r->arena, text, bytes), bytes};
	free(text);
}

/* core.excludesFile of the user's configuration, never the repository's. */
static void add_users_ignore(struct repo *r)
{
	const char *home = getenv("HOME"), *xdg = getenv("XDG_CONFIG_HOME");
	git_config *config = NULL, *snapshot = NULL;
	git_buf named = {0};
	char *path = NULL;

	if (!git_config_open_default(&config) && !git_config_snapshot(&snapshot, config) &&
	    !git_config_get_path(&named, snapshot, "core.excludesfile"))
		path = xstrdup(named.ptr);
	else if (xdg && *xdg)
		path = xasprintf("%s/git/ignore", xdg);
	else if (home && *home)
		path = xasprintf("%s/.config/git/ignore", home);
	if (path)
		add_ignore(r, path, r->prefix);
	free(path);
	git_buf_dispose(&named);
	git_config_free(snapshot);
	git_config_free(config);
}

const struct repo_ignore *repo_ignores(struct repo *r, size_t *n)
{
	char *path;

	if (!r->n_ignores && !r->bare) {
		const char *rest = r->prefix;

		add_users_ignore(r);
		path = xasprintf("%s/info/exclude", r->common_dir);
		add_ignore(r, path, r->prefix);
		free(path);
		/* Each directory above this one, from the root down; its patterns see what is below it. */
		while (*rest) {
			path = xasprintf("%s/%.*s.gitignore", r->root, (int)(rest - r->prefix), r->prefix);
			add_ignore(r, path, rest);
			free(path);
			rest = strchr(rest, '/') + 1;
		}
	}
	*n = r->n_ignores;
	return r->ignores;
}

/*
 * The files of the commit
 */

int repo_list(struct repo *r, const char *path, struct arena *a, struct repo_entry **out, size_t *n,
	      const char **reason)
{
	char *whole = xasprintf("%s%s%s", r->prefix, path, *path ? "/" : "");
	git_tree *tree = NULL;
	int found;

	*n = 0;
	*reason = strlen(whole) > MAX_PATH_BYTES ? "path too long" : "unreadable: no such tree, or a damaged one";
	found = tree_at(r, &tree, r->tree, whole);
	free(whole);
	if (!found)
		return -1;
	*out = arena_alloc(a, git_tree_entrycount(tree), sizeof **out);
	for (size_t i = 0; i < git_tree_entrycount(tree); i++) {
		const git_tree_entry *e = git_tree_entry_byindex(tree, i);
		const char *name = git_tree_entry_name(e);
		struct repo_entry *entry = &(*out)[*n];
		git_object_t type;
		size_t bytes = 0;

		if (!*name || strchr(name, '/'))
			continue; /* such a tree was made to harm */
		switch (git_tree_entry_filemode(e)) {
		case GIT_FILEMODE_TREE:
			entry->kind = S_IFDIR;
			break;
		case GIT_FILEMODE_BLOB:
		case GIT_FILEMODE_BLOB_EXECUTABLE:
			entry->kind = S_IFREG;
			break;
		case GIT_FILEMODE_LINK:
			entry->kind = S_IFLNK;
			break;
		default:
			entry->kind = 0;
		}
		/* One that is missing is found out when it is read. */
		if (entry->kind == S_IFREG && git_odb_read_header(&bytes, &type, r->odb, git_tree_entry_id(e)))
			bytes = 0;
		entry->name = arena_strndup(a, name, strlen(name));
		entry->bytes = (int64_t)bytes;
		++*n;
	}
	git_tree_free(tree);
	return 0;
}

int repo_read(struct repo *r, const char *path, int64_t most, char **text, size_t *bytes,
	      char reason[SKIP_REASON_BYTES])
{
	char *whole = xasprintf("%s%s", r->prefix, path);
	git_tree_entry *entry = NULL;
	git_blob *blob = NULL;
	git_object_t type;
	size_t size;
	int rc = 0;

	if (strlen(whole) > MAX_PATH_BYTES || git_tree_entry_bypath(&entry, r->tree, whole)) {
		snprintf(reason, SKIP_REASON_BYTES, "unreadable: the commit has no such file");
	} else if (git_odb_read_header(&size, &type, r->odb, git_tree_entry_id(entry)) || type != GIT_OBJECT_BLOB) {
		snprintf(reason, SKIP_REASON_BYTES, "unreadable: %s", git_says());
	} else if (size > (size_t)most) {
		snprintf(reason, SKIP_REASON_BYTES, "too large");
	} else if (git_blob_lookup(&blob, r->repository, git_tree_entry_id(entry))) {
		snprintf(reason, SKIP_REASON_BYTES, "unreadable: %s", git_says());
	} else {
		*bytes = (size_t)git_blob_rawsize(blob);
		*text = xmalloc(*bytes + 1, 1);
		memcpy(*text, git_blob_rawcontent(blob), *bytes);
		(*text)[*bytes] = '\0';
		rc = 1;
	}
	git_blob_free(blob);
	git_tree_entry_free(entry);
	free(whole);
	return rc;
}
