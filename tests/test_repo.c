#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <git2.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"
#include "ingest/repo.h"
#include "ingest/text.h"
#include "ingest/walk.h"
#include "tests/support/as_user.h"
#include "tests/support/make_repo.h"
#include "tests/support/temp_dir.h"

struct place {
	char *dir, *work, *home;
	struct made_repo made;
};

static int set_up(void **state)
{
	struct place *p = xcalloc(1, sizeof *p);

	alarm(60); /* what hangs must not hang the suite */
	p->dir = temp_dir_new();
	p->work = temp_path(p->dir, "work");
	p->home = temp_path(p->dir, "home");
	assert_int_equal(mkdir(p->home, 0700), 0);
	made_repo_init(&p->made, p->work, p->home);
	*state = p;
	return 0;
}

static int tear_down(void **state)
{
	struct place *p = *state;

	made_repo_end(&p->made);
	temp_dir_free(p->dir);
	free(p->work);
	free(p->home);
	free(p);
	alarm(0);
	return 0;
}

static void text_at(const struct place *p, const char *path, const char *text)
{
	free(temp_text(p->work, path, text));
}

static void commit_text(struct place *p, const char *path, const char *text)
{
	made_repo_text(&p->made, path, text);
}

static struct repo *open_at(const char *dir, const char *ref)
{
	struct repo *r;
	struct err err;

	if (repo_open(&r, dir, ref, &err))
		fail_msg("%s", err.text);
	return r;
}

static const char *count(struct repo *r, int64_t n_commits)
{
	const struct repo_limits limits = {n_commits, 20000};
	const char *note;
	struct err err;

	if (repo_count_changes(r, &limits, NULL, &note, &err))
		fail_msg("%s", err.text);
	return note;
}

/* What opening says; the code is in err. */
static const char *refusal(const char *dir, const char *ref, struct err *err)
{
	struct repo *r;

	if (!repo_open(&r, dir, ref, err)) {
		repo_close(r);
		return "opened";
	}
	return err->text;
}

static void assert_refused(const char *dir, const char *want)
{
	struct err err = {0};

	if (!strstr(refusal(dir, NULL, &err), want))
		fail_msg("not \"%s\" but \"%s\"", want, err.text);
}

static void changes_are_counted_by_path_and_merges_are_not(void **state)
{
	struct place *p = *state;
	git_oid side;
	git_index *index;
	char *sub = temp_path(p->work, "sub");
	struct repo *r;

	commit_text(p, "a.c", "1");
	commit_text(p, "sub/b.c", "1");
	commit_text(p, "a.c", "2");
	commit_text(p, "sub/deep/c.c", "1");
	side = p->made.head;
	commit_text(p, "a.c", "3");
	commit_text(p, "sub/b.c", "2");
	made_repo_must(git_repository_index(&index, p->made.git));
	made_repo_commit(&p->made, index, &side);

	r = open_at(p->work, NULL);
	assert_null(count(r, 1000));
	assert_int_equal(repo_n_changes(r, "a.c"), 3);
	assert_int_equal(repo_n_changes(r, "sub/b.c"), 2);
	assert_int_equal(repo_n_changes(r, "sub/deep/c.c"), 1);
	assert_int_equal(repo_n_changes(r, "none.c"), 0);
	assert_string_equal(repo_commit(r), git_oid_tostr_s(&p->made.head));
	repo_close(r);

	/* A directory in the work tree sees its own paths. */
	r = open_at(sub, NULL);
	assert_null(count(r, 1000));
	assert_int_equal(repo_n_changes(r, "b.c"), 2);
	assert_int_equal(repo_n_changes(r, "deep/c.c"), 1);
	assert_int_equal(repo_n_changes(r, "a.c"), 0);
	repo_close(r);
	free(sub);
}

/* libgit2 1.5 loses 16 bytes when a walk comes to a commit that is missing. */
static void library_leaks(bool yes)
{
#ifdef __SANITIZE_ADDRESS__
	if (yes)
		__lsan_disable();
	else
		__lsan_enable();
#else
	(void)yes;
#endif
}

static void a_history_that_is_cut_says_so(void **state)
{
	const atomic_bool cancel = true;
	struct place *p = *state;
	struct repo_limits none = {1000, -1}, all = {1000, 20000};
	const char *note;
	struct repo *r;
	struct err err;
	char *object, hex[41];
	git_oid first;

	commit_text(p, "a.c", "1");
	first = p->made.head;
	commit_text(p, "a.c", "2");
	commit_text(p, "a.c", "3");
	r = open_at(p->work, NULL);
	assert_string_equal(count(r, 2), "only the newest commits of a long history were read");
	assert_int_equal(repo_n_changes(r, "a.c"), 2);
	assert_int_equal(repo_count_changes(r, &none, NULL, &note, &err), 0);
	assert_non_null(strstr(note, "for as long as it may take"));
	assert_int_equal(repo_count_changes(r, &all, &cancel, &note, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	repo_close(r);

	/* As in a shallow clone. */
	git_oid_tostr(hex, sizeof hex, &first);
	object = xasprintf("%s/.git/objects/%.2s/%s", p->work, hex, hex + 2);
	assert_int_equal(unlink(object), 0);
	r = open_at(p->work, NULL);
	library_leaks(true);
	assert_string_equal(count(r, 1000), "history ends where commits are missing");
	library_leaks(false);
	repo_close(r);
	free(object);
}

static struct walk *walk_of(const char *root, struct repo *r, bool from_commit)
{
	const struct walk_options opt = {.root = root, .max_file_bytes = 1000, .repo = r, .from_commit = from_commit};
	struct walk *w;
	struct err err;

	if (walk_new(&w, &opt, NULL, &err))
		fail_msg("%s", err.text);
	return w;
}

static void assert_files(const struct walk *w, const char *want)
{
	char got[4096] = "";
	size_t n;
	const struct walk_file *files = walk_files(w, &n);

	for (size_t i = 0; i < n; i++)
		snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", i ? " " : "", files[i].path);
	assert_string_equal(got, want);
}

static void the_files_of_a_ref_are_read_and_not_those_on_disk(void **state)
{
	struct place *p = *state;
	const struct text_options how = {.max_bytes = 1000};
	struct walk_file f = {.path = "sub/a.c"};
	char *text, *bare, reason[SKIP_REASON_BYTES], large[1100];
	git_reference *branch;
	git_commit *c;
	git_index *index;
	git_index_entry link = {.path = "link", .mode = GIT_FILEMODE_LINK}, module = {.path = "module", .mode = GIT_FILEMODE_COMMIT};
	size_t bytes;
	struct walk *w;
	struct repo *r;
	struct err err;

	commit_text(p, "sub/a.c", "old");
	made_repo_must(git_commit_lookup(&c, p->made.git, &p->made.head));
	made_repo_must(git_branch_create(&branch, p->made.git, "v1", c, 0));
	git_reference_free(branch);
	git_commit_free(c);
	memset(large, 'a', sizeof large);
	large[sizeof large - 1] = '\0';
	commit_text(p, "large.c", large);
	commit_text(p, ".quireignore", "*.tmp\n");
	commit_text(p, "x.tmp", "x");
	commit_text(p, ".gitignore", "sub/\n"); /* what is committed is not ignored */
	commit_text(p, "sub/a.c", "new");
	made_repo_must(git_repository_index(&index, p->made.git));
	made_repo_must(git_blob_create_from_buffer(&link.id, p->made.git, "sub", 3));
	git_oid_cpy(&module.id, &p->made.head);
	made_repo_must(git_index_add(index, &link));
	made_repo_must(git_index_add(index, &module));
	made_repo_commit(&p->made, index, NULL);
	text_at(p, "sub/a.c", "on disk");

	r = open_at(p->work, "v1");
	w = walk_of(p->work, r, true);
	assert_files(w, "sub/a.c");
	assert_int_equal(text_read(w, &f, &how, &text, &bytes, reason), 1);
	assert_int_equal(bytes, 3);
	assert_memory_equal(text, "old", 3);
	free(text);
	walk_free(w);
	repo_close(r);

	r = open_at(p->work, git_oid_tostr_s(&p->made.head));
	w = walk_of(p->work, r, true);
	assert_files(w, ".gitignore .quireignore sub/a.c");
	assert_int_equal(text_read(w, &f, &how, &text, &bytes, reason), 1);
	assert_memory_equal(text, "new", 3);
	free(text);
	f.path = "none.c";
	assert_int_equal(text_read(w, &f, &how, &text, &bytes, reason), 0);
	assert_string_equal(reason, "unreadable: the commit has no such file");
	for (size_t i = 0, n = 4; i < n; i++) {
		static const char *const want[] = {"large.c: too large", "link: symbolic link", "module: another repository",
						   "x.tmp: ignored"};
		const struct cache_skipped *s = walk_skipped(w, &n);
		char *got = xasprintf("%s: %s", s[i].path, s[i].reason);

		assert_int_equal(n, 4);
		assert_string_equal(got, want[i]);
		free(got);
	}
	walk_free(w);
	repo_close(r);

	/* A bare repository has no files but those. */
	bare = temp_path(p->work, ".git");
	r = open_at(bare, "HEAD");
	w = walk_of(bare, r, true);
	assert_files(w, ".gitignore .quireignore sub/a.c");
	walk_free(w);
	repo_close(r);
	free(bare);

	assert_string_equal(refusal(p->work, "v2", &err) + strlen(p->work),
			    " has no commit 'v2': give a branch, a tag or the beginning of a commit's id");
	assert_int_equal(err.code, ERR_NOT_FOUND);
	/* No language of its own. */
	assert_non_null(strstr(refusal(p->work, "v1~0", &err), "has no commit"));
	assert_non_null(strstr(refusal(p->work, ":/x", &err), "has no commit"));
}

/* What `git check-ignore` (2.39) says of these files. libgit2 1.5 says otherwise where a pattern is taken back in another
 * file than it stands in: one more reason to read them ourselves. */
static void what_git_ignores_from_above_is_ignored_and_the_nearest_wins(void **state)
{
	struct place *p = *state;
	char *sub = temp_path(p->work, "sub/dir");
	struct walk *w;
	struct repo *r;

	free(temp_text(p->home, ".gitconfig", "[core]\n\texcludesFile = ~/ignored\n"));
	free(temp_text(p->home, "ignored", "*.user\n*.both\n"));
	commit_text(p, ".gitignore", "*.root\n/sub/dir/bound\n!keep.user\n");
	text_at(p, ".git/info/exclude", "*.exclude\n!*.both\n");
	text_at(p, "sub/.gitignore", "*.sub\n");
	text_at(p, "sub/dir/.gitignore", "!a.sub\n");
	for (const char *const *name = (const char *const[]){"a.user", "keep.user", "a.both", "a.root", "bound", "a.exclude",
							     "a.sub", "b.sub", "c.c", NULL}; *name; name++) {
		char *path = xasprintf("sub/dir/%s", *name);

		text_at(p, path, "x");
		free(path);
	}

	r = open_at(sub, NULL);
	w = walk_of(sub, r, false);
	assert_files(w, ".gitignore a.both a.sub c.c keep.user");
	walk_free(w);
	repo_close(r);
	free(sub);
}

static void a_directory_that_is_ignored_is_read_when_it_is_asked_for(void **state)
{
	struct place *p = *state;
	char *sub = temp_path(p->work, "build/out");
	struct walk *w;
	struct repo *r;

	commit_text(p, ".gitignore", "build/\n*.c\n");
	text_at(p, "build/out/a.c", "x");
	text_at(p, "build/out/.gitignore", "b.*\n");
	text_at(p, "build/out/b.c", "x");
	r = open_at(sub, NULL);
	w = walk_of(sub, r, false);
	assert_files(w, ".gitignore a.c"); /* its own rules hold */
	walk_free(w);
	repo_close(r);
	free(sub);
}

static void a_repository_that_could_hang_or_lead_elsewhere_is_not_opened(void **state)
{
	static const char *const fifos[] = {".git/packed-refs", ".git/info/exclude2", ".git/objects/pack/x.idx",
					    ".git/refs/heads/x", ".git/commondir"};
	struct place *p = *state;
	char *path, *plain = temp_path(p->dir, "home");
	struct err err;

	commit_text(p, "a.c", "x");
	for (size_t i = 0; i < sizeof fifos / sizeof *fifos; i++) {
		path = temp_path(p->work, fifos[i]);
		assert_int_equal(mkfifo(path, 0600), 0);
		assert_refused(p->work, "is neither a file nor a directory");
		assert_int_equal(unlink(path), 0);
		free(path);
	}
	path = temp_path(p->work, ".git/refs/link");
	assert_int_equal(symlink("/etc", path), 0);
	assert_refused(p->work, "link in it is neither a file nor a directory");
	assert_int_equal(unlink(path), 0);
	free(path);

	text_at(p, ".git/config.worktree", "[Include]\n\tpath = /dev/zero\n");
	assert_refused(p->work, "config.worktree is not read: it includes other files");
	text_at(p, ".git/config.worktree", "[core] [includeIf \"onbranch:main\"] path = /dev/zero\n");
	assert_refused(p->work, "it includes other files");
	text_at(p, ".git/config.worktree", "[remote \"x\"]\n\turl = https://example.org/include.git\n");
	assert_string_equal(refusal(p->work, NULL, &err), "opened");
	text_at(p, ".git/config.worktree", "");
	text_at(p, ".git/objects/info/alternates", "/elsewhere\n");
	assert_refused(p->work, "borrows objects from elsewhere");
	text_at(p, ".git/objects/info/alternates", "");
	assert_string_equal(refusal(p->work, NULL, &err), "opened");

	assert_string_equal(refusal(plain, NULL, &err) + strlen(plain), " is not in a git repository");
	assert_int_equal(err.code, ERR_NOT_FOUND);
	path = xasprintf("gitdir: %s/.git\n", p->work);
	free(temp_text(plain, ".git", path));
	free(path);
	assert_refused(plain, "does not know this work tree");
	path = temp_path(plain, ".git");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_refused(plain, "is neither a file nor a directory");
	free(path);
	free(plain);
}

static void a_work_tree_that_its_repository_knows_is_read(void **state)
{
	struct place *p = *state;
	char *other = temp_path(p->dir, "other");
	git_worktree *tree;
	struct repo *r;

	commit_text(p, "a.c", "1");
	commit_text(p, "a.c", "2");
	made_repo_must(git_worktree_add(&tree, p->made.git, "other", other, NULL));
	git_worktree_free(tree);
	r = open_at(other, NULL);
	assert_null(count(r, 100));
	assert_int_equal(repo_n_changes(r, "a.c"), 2);
	repo_close(r);
	free(other);
}

static int open_as_user(void *dir)
{
	struct repo *r;
	struct err err;

	if (!repo_open(&r, dir, NULL, &err))
		return 1;
	return err.code == ERR_PERMISSION && strstr(err.text, "it belongs to user") ? 0 : 2;
}

static void somebody_elses_repository_is_not_opened(void **state)
{
	struct place *p = *state;

	commit_text(p, "a.c", "x");
	assert_int_equal(chmod(p->dir, 0755), 0);
	assert_int_equal(chmod(p->work, 0755), 0);
	if (geteuid())
		skip();
	assert_int_equal(as_user(open_as_user, p->work), 0);
}

static void hostile_objects_end_in_a_reason(void **state)
{
	struct place *p = *state;
	const struct text_options how = {.max_bytes = 1000};
	const struct walk_file f = {.path = "a.c"};
	char *text, *object, *path, reason[SKIP_REASON_BYTES], hex[41];
	git_oid id;
	size_t bytes;
	struct walk *w;
	struct repo *r;

	commit_text(p, "a.c", "some text");
	made_repo_must(git_blob_create_from_buffer(&id, p->made.git, "some text", 9));
	git_oid_tostr(hex, sizeof hex, &id);
	object = xasprintf(".git/objects/%.2s/%s", hex, hex + 2);
	path = temp_path(p->work, object);
	assert_int_equal(unlink(path), 0); /* it is read-only */
	free(path);
	text_at(p, object, "this is not what zlib writes");
	r = open_at(p->work, "HEAD");
	w = walk_of(p->work, r, true);
	assert_int_equal(text_read(w, &f, &how, &text, &bytes, reason), 0);
	assert_memory_equal(reason, "unreadable: ", 12);
	walk_free(w);
	repo_close(r);
	free(object);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(changes_are_counted_by_path_and_merges_are_not),
		CASE(a_history_that_is_cut_says_so),
		CASE(the_files_of_a_ref_are_read_and_not_those_on_disk),
		CASE(what_git_ignores_from_above_is_ignored_and_the_nearest_wins),
		CASE(a_directory_that_is_ignored_is_read_when_it_is_asked_for),
		CASE(a_repository_that_could_hang_or_lead_elsewhere_is_not_opened),
		CASE(a_work_tree_that_its_repository_knows_is_read),
		CASE(somebody_elses_repository_is_not_opened),
		CASE(hostile_objects_end_in_a_reason),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
