#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#include "config/mem.h"
#include "engine/tokenizer.h"
#include "ingest/glob.h"
#include "ingest/text.h"
#include "ingest/walk.h"
#include "tests/support/temp_dir.h"

enum { MOST_BYTES = 1000 };

static struct walk *walk_with(const char *root, const char *const *exclude, const char *const *include, bool plain)
{
	const struct walk_options opt = {root, MOST_BYTES, exclude, include, plain};
	struct walk *w;
	struct err err;

	if (walk_new(&w, &opt, NULL, &err))
		fail_msg("%s", err.text);
	return w;
}

static struct walk *walk_of(const char *root)
{
	return walk_with(root, NULL, NULL, false);
}

static void text_at(const char *root, const char *path, const char *text)
{
	free(temp_text(root, path, text));
}

/* All files as "a b c". */
static void assert_files(const struct walk *w, const char *want)
{
	char got[4096] = "";
	size_t n;
	const struct walk_file *files = walk_files(w, &n);

	for (size_t i = 0; i < n; i++)
		snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", i ? " " : "", files[i].path);
	assert_string_equal(got, want);
}

static const char *reason_for(struct walk *w, const char *path)
{
	size_t n;
	const struct cache_skipped *s = walk_skipped(w, &n);

	for (size_t i = 0; i < n; i++)
		if (!strcmp(s[i].path, path))
			return s[i].reason;
	return "not skipped";
}

/* What reading a listed file says; "" when it was read. */
static const char *reading(struct walk *w, const char *path)
{
	static char reason[SKIP_REASON_BYTES];
	const struct walk_file f = {path, 0, false};
	const struct text_options opt = {.max_bytes = MOST_BYTES};
	char *text;
	size_t bytes;

	if (!text_read(w, &f, &opt, &text, &bytes, reason))
		return reason;
	free(text);
	return "";
}

static int set_up(void **state)
{
	*state = temp_dir_new();
	return 0;
}

static int tear_down(void **state)
{
	temp_dir_free(*state);
	return 0;
}

static void files_come_in_the_order_of_their_bytes(void **state)
{
	struct walk *w;

	text_at(*state, "b/z.c", "");
	text_at(*state, "b.c", "");
	text_at(*state, "a", "");
	text_at(*state, "b/a/x.c", "");
	text_at(*state, "B", "");

	w = walk_of(*state);

	assert_files(w, "B a b.c b/a/x.c b/z.c"); /* '.' stands before '/' */
	walk_free(w);
}

static void what_is_not_a_regular_file_is_named_and_never_waited_for(void **state)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	char *fifo = temp_path(*state, "fifo"), *link_out = temp_path(*state, "out"), *loop = temp_path(*state, "loop");
	char *dangling = temp_path(*state, "dangling");
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	struct walk *w;

	snprintf(a.sun_path, sizeof a.sun_path, "%s/socket", (char *)*state);
	assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	assert_int_equal(symlink("/etc/passwd", link_out), 0);
	assert_int_equal(symlink(".", loop), 0);
	assert_int_equal(symlink("nowhere", dangling), 0);
	text_at(*state, "a.c", "int a;\n");

	w = walk_of(*state);

	assert_files(w, "a.c");
	assert_string_equal(reason_for(w, "fifo"), "not a regular file");
	assert_string_equal(reason_for(w, "socket"), "not a regular file");
	assert_string_equal(reason_for(w, "out"), "symbolic link");
	assert_string_equal(reason_for(w, "loop"), "symbolic link");
	assert_string_equal(reason_for(w, "dangling"), "symbolic link");
	/* A file can become any of these after it was listed. */
	assert_string_equal(reading(w, "fifo"), "not a regular file");
	assert_string_equal(reading(w, "socket"), "not a regular file");
	assert_string_equal(reading(w, "out"), "outside the tree");
	assert_string_equal(reading(w, "loop/a.c"), "outside the tree");
	assert_string_equal(reading(w, "../a.c"), "outside the tree");
	assert_string_equal(reading(w, "gone"), "unreadable: No such file or directory");
	walk_free(w);
	close(s);
	free(fifo);
	free(link_out);
	free(loop);
	free(dangling);
}

static void a_fifo_named_like_an_ignore_file_is_not_waited_for(void **state)
{
	char *fifo = temp_path(*state, ".gitignore");
	struct walk *w;

	assert_int_equal(mkfifo(fifo, 0600), 0);
	text_at(*state, "a.c", "");

	w = walk_of(*state);

	assert_files(w, "a.c");
	walk_free(w);
	free(fifo);
}

static void names_are_bytes(void **state)
{
	struct walk *w;

	text_at(*state, "new\nline.c", "x");
	text_at(*state, "bad\xff\xfe.c", "x");
	text_at(*state, "\xc3\xa4/\xe2\x80\xae.c", "x");

	w = walk_of(*state);

	assert_files(w, "bad\xff\xfe.c new\nline.c \xc3\xa4/\xe2\x80\xae.c");
	assert_string_equal(reading(w, "new\nline.c"), "");
	assert_string_equal(reading(w, "bad\xff\xfe.c"), "");
	walk_free(w);
}

static void binary_and_large_files_are_left_out(void **state)
{
	static const char latin[] = "na\xefve caf\xe9, but mostly plain text, as an old comment may be", noise[] = "\xff\x80\x81\xfe";
	char large[MOST_BYTES + 1];
	char *sparse = temp_text(*state, "sparse", "");
	struct walk *w;

	memset(large, 'a', sizeof large);
	free(temp_file(*state, "large.c", large, sizeof large));
	free(temp_file(*state, "fits.c", large, sizeof large - 1));
	free(temp_file(*state, "nul.c", "a\0b", 3));
	text_at(*state, "noise", noise);
	text_at(*state, "latin", latin);
	text_at(*state, "empty", "");
	assert_int_equal(truncate(sparse, (off_t)1 << 40), 0);

	w = walk_of(*state);

	assert_string_equal(reason_for(w, "large.c"), "too large");
	assert_string_equal(reason_for(w, "sparse"), "too large");
	assert_string_equal(reading(w, "large.c"), "too large");
	assert_string_equal(reading(w, "fits.c"), "");
	assert_string_equal(reading(w, "nul.c"), "binary");
	assert_string_equal(reading(w, "noise"), "binary");
	assert_string_equal(reading(w, "latin"), "");
	assert_string_equal(reading(w, "empty"), "");
	walk_free(w);
	free(sparse);
}

static void secrets_vendored_and_version_control_are_left_out_by_name(void **state)
{
	struct walk *w;

	text_at(*state, ".env", "PASSWORD=x");
	text_at(*state, ".env.production", "PASSWORD=x");
	text_at(*state, ".env.example", "PASSWORD=");
	text_at(*state, "deploy/server.pem", "x");
	text_at(*state, "home/.ssh/config", "x");
	text_at(*state, "home/id_rsa", "x");
	text_at(*state, ".git/HEAD", "x");
	text_at(*state, "sub/.git", "gitdir: elsewhere");
	text_at(*state, "node_modules/left-pad/index.js", "x");
	text_at(*state, "web/jquery.min.js", "x");
	text_at(*state, "Cargo.lock", "x");
	text_at(*state, "main.c", "x");

	w = walk_of(*state);

	assert_files(w, ".env.example main.c");
	assert_string_equal(reason_for(w, ".env"), "may hold secrets");
	assert_string_equal(reason_for(w, ".env.production"), "may hold secrets");
	assert_string_equal(reason_for(w, "deploy/server.pem"), "may hold secrets");
	assert_string_equal(reason_for(w, "home/.ssh/"), "may hold secrets");
	assert_string_equal(reason_for(w, "home/id_rsa"), "may hold secrets");
	assert_string_equal(reason_for(w, ".git/"), "version control");
	assert_string_equal(reason_for(w, "sub/.git"), "version control");
	assert_string_equal(reason_for(w, "node_modules/"), "vendored");
	assert_string_equal(reason_for(w, "web/jquery.min.js"), "generated");
	assert_string_equal(reason_for(w, "Cargo.lock"), "generated");
	walk_free(w);
}

static void what_a_text_says_leaves_it_out_unless_the_caller_wants_it(void **state)
{
	struct walk_file wanted = {"gen.c", 0, true};
	char *text, reason[SKIP_REASON_BYTES];
	struct walk *w;
	size_t bytes;

	text_at(*state, "gen.c", "// Code generated by a tool. DO NOT EDIT.\n");
	text_at(*state, "key.txt", "-----BEGIN PRIVATE KEY-----\nMIIEowIBAAKCAQEAq83vEjRWeJqrze8SNFZ4mqvN7xI0VniaABCD\n");

	w = walk_of(*state);

	assert_string_equal(reading(w, "gen.c"), "generated: its head says so");
	assert_string_equal(reading(w, "key.txt"), "may hold secrets: a private key in line 1");
	assert_int_equal(text_read(w, &wanted, &(struct text_options){.max_bytes = MOST_BYTES}, &text, &bytes, reason), 1);
	free(text);
	walk_free(w);
}

static void pages_and_other_encodings_are_read_as_text(void **state)
{
	static const struct {
		const char *path, *text;
	} want[] = {
		{"page.HTM", "a caf\xc3\xa9\n"}, {"page.txt", "<p>a</p>"}, {"utf16.c", "hi\n"}, {"latin.c", "a caf\xc3\xa9"},
	};
	const struct text_options opt = {.max_bytes = MOST_BYTES};
	char reason[SKIP_REASON_BYTES];
	struct walk *w;

	text_at(*state, "page.HTM", "<p>a\n caf&eacute;<script>1</script>");
	text_at(*state, "page.txt", "<p>a</p>");
	free(temp_file(*state, "utf16.c", "\xff\xfeh\0i\0\n\0", 8));
	text_at(*state, "latin.c", "a caf\xe9");
	text_at(*state, "broken.pdf", "%PDF-1.4 and no more");
	w = walk_of(*state);

	for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
		const struct walk_file f = {want[i].path, 0, false};
		char *text;
		size_t bytes;

		assert_int_equal(text_read(w, &f, &opt, &text, &bytes, reason), 1);
		assert_int_equal(bytes, strlen(want[i].text));
		assert_memory_equal(text, want[i].text, bytes);
		free(text);
	}
	/* With pdftotext or without. */
	assert_memory_equal(reading(w, "broken.pdf"), "not extracted: pdftotext ", 25);
	walk_free(w);
}

static void a_wanted_file_is_binary_to_nobody_and_never_endless(void **state)
{
	const struct walk_file wanted = {"wanted.bin", 0, true};
	const struct text_options opt = {.max_bytes = MOST_BYTES};
	static const char *const include[] = {"*", NULL};
	char *sparse = temp_text(*state, "sparse", ""), *text, reason[SKIP_REASON_BYTES];
	struct walk *w;
	size_t bytes;

	free(temp_file(*state, "wanted.bin", "a\0b", 3));
	assert_int_equal(truncate(sparse, (off_t)1 << 40), 0);

	w = walk_with(*state, NULL, include, false);

	assert_files(w, "wanted.bin");
	assert_string_equal(reason_for(w, "sparse"), "too large");
	assert_int_equal(text_read(w, &wanted, &opt, &text, &bytes, reason), 1);
	assert_int_equal(bytes, 3);
	assert_memory_equal(text, "a\0b", 3);
	free(text);
	walk_free(w);
	free(sparse);
}

static void ignore_files_hold_from_their_directory_down_and_the_nearest_wins(void **state)
{
	struct walk *w;

	text_at(*state, ".gitignore", "*.o\n/build/\nlogs/*.log\n!keep.o\n# a comment\n\\#odd\ntrailing \n");
	text_at(*state, "a.o", "");
	text_at(*state, "keep.o", "");
	text_at(*state, "build/x.c", "");
	text_at(*state, "sub/build/x.c", "");
	text_at(*state, "logs/a.log", "");
	text_at(*state, "sub/logs/a.log", "");
	text_at(*state, "sub/.quireignore", "*.c\n!a.o\n");
	text_at(*state, "sub/x.c", "");
	text_at(*state, "sub/a.o", "");
	text_at(*state, "sub/b.o", "");
	text_at(*state, "#odd", "");
	text_at(*state, "trailing", "");

	w = walk_of(*state);

	assert_files(w, ".gitignore keep.o sub/.quireignore sub/a.o sub/logs/a.log");
	assert_string_equal(reason_for(w, "build/"), "ignored");
	assert_string_equal(reason_for(w, "sub/build/x.c"), "ignored");
	assert_string_equal(reason_for(w, "logs/a.log"), "ignored");
	walk_free(w);
}

/* A hundred thousand patterns, asked about each of twenty files. One long class is as much work as many patterns. */
static void ignore_files_that_would_take_forever_are_refused(void **state)
{
	struct walk_options opt = {.root = *state, .max_file_bytes = MOST_BYTES, .match_steps = 1000000};
	struct bytes patterns = {0}, class = {0};
	struct walk *w;
	struct err err;

	for (int i = 0; i < 20; i++) {
		char name[16];

		snprintf(name, sizeof name, "f%d.c", i);
		text_at(*state, name, "x");
	}
	for (int i = 0; i < 100000; i++)
		bytes_append(&patterns, "x.c\n", 4);
	bytes_append(&class, "[", 1);
	for (int i = 0; i < 100000; i++)
		bytes_append(&class, "abcd", 4);
	bytes_append(&class, "]\n", 2);

	free(temp_file(*state, ".gitignore", patterns.data, patterns.n));
	assert_int_equal(walk_new(&w, &opt, NULL, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, " have more patterns than can be compared with its files in a minute"));
	opt.match_steps = 0;
	assert_int_equal(walk_new(&w, &opt, NULL, &err), 0);
	assert_string_equal(reason_for(w, "f1.c"), "not skipped");
	walk_free(w);

	free(temp_file(*state, ".gitignore", class.data, class.n));
	opt.match_steps = 1000000;
	assert_int_equal(walk_new(&w, &opt, NULL, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	bytes_free(&patterns);
	bytes_free(&class);
}

static void the_caller_can_exclude_anything_and_include_what_is_skipped(void **state)
{
	static const char *const exclude[] = {"docs/", "*.md", NULL}, *const include[] = {"/.env", "vendor.bin", NULL};
	struct walk *w;

	text_at(*state, ".env", "x");
	text_at(*state, "docs/a.c", "x");
	text_at(*state, "README.md", "x");
	text_at(*state, "node_modules/vendor.bin", "x");
	text_at(*state, "node_modules/other.c", "x");
	text_at(*state, "main.c", "x");

	w = walk_with(*state, exclude, include, false);

	assert_files(w, ".env main.c node_modules/vendor.bin");
	assert_string_equal(reason_for(w, "docs/"), "excluded");
	assert_string_equal(reason_for(w, "README.md"), "excluded");
	assert_string_equal(reason_for(w, "node_modules/"), "vendored");
	walk_free(w);
}

static void what_an_ordinary_user_cannot_read_is_skipped_with_the_reason(void **state)
{
	char *secret, *closed = temp_path(*state, "closed");
	int status;
	pid_t child;

	text_at(*state, "a.c", "x");
	text_at(*state, "closed/b.c", "x");
	secret = temp_text(*state, "secret.c", "x");
	assert_int_equal(chmod(*state, 0755), 0);
	assert_int_equal(chmod(secret, 0), 0);
	assert_int_equal(chmod(closed, 0), 0);
	child = fork();
	if (!child) { /* root reads everything */
		struct walk *w;

		if (!geteuid() && (setgid(65534) || setuid(65534)))
			_exit(77);
		w = walk_of(*state);
		_exit(strcmp(reason_for(w, "closed"), "unreadable: Permission denied") ? 1
		      : strcmp(reading(w, "secret.c"), "unreadable: Permission denied") ? 2
		      : strcmp(reading(w, "a.c"), "") ? 3 : 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(chmod(closed, 0700), 0);
	assert_int_equal(WEXITSTATUS(status), 0);
	free(secret);
	free(closed);
}

/* Directories in each other, so deep that no path to the last fits in one system call. */
static void make_deep(const char *root, int depth)
{
	int at = open(root, O_RDONLY | O_DIRECTORY), fd;

	for (int i = 0; i < depth; i++) {
		int next;

		assert_int_equal(mkdirat(at, "deep", 0700), 0);
		next = openat(at, "deep", O_RDONLY | O_DIRECTORY);
		assert_true(next >= 0);
		close(at);
		at = next;
	}
	fd = openat(at, "a.c", O_WRONLY | O_CREAT, 0600);
	assert_int_equal(write(fd, "x", 1), 1);
	close(fd);
	close(at);
}

/* nftw gives up on such a depth, so the test cleans up from below. */
static void remove_deep(const char *root, int depth)
{
	int at = open(root, O_RDONLY | O_DIRECTORY);

	for (int i = 0; i < depth; i++) {
		int next = openat(at, "deep", O_RDONLY | O_DIRECTORY);

		close(at);
		at = next;
	}
	unlinkat(at, "a.c", 0);
	for (int i = 0; i < depth; i++) {
		int next = openat(at, "..", O_RDONLY | O_DIRECTORY);

		close(at);
		at = next;
		unlinkat(at, "deep", AT_REMOVEDIR);
	}
	close(at);
}

static void a_tree_deeper_than_any_path_is_walked_to_its_end_with_openat2_and_without(void **state)
{
	enum { DEPTH = 10000 };

	make_deep(*state, DEPTH);
	for (int plain = 0; plain < 2; plain++) {
		struct walk *w = walk_with(*state, NULL, NULL, plain);
		size_t n;
		const struct walk_file *files = walk_files(w, &n);

		assert_int_equal(n, 1);
		assert_int_equal(strlen(files[0].path), DEPTH * 5 + 3);
		assert_string_equal(reading(w, files[0].path), "");
		walk_free(w);
	}
	remove_deep(*state, DEPTH);
}

static void a_path_that_is_too_long_is_said_to_be(void **state)
{
	enum { DEPTH = 1100 };
	char name[251];
	int at = open(*state, O_RDONLY | O_DIRECTORY);
	const struct cache_skipped *skipped;
	struct walk *w;
	size_t n;

	memset(name, 'd', sizeof name - 1);
	name[sizeof name - 1] = '\0';
	for (int i = 0; i < DEPTH; i++) {
		int next;

		assert_int_equal(mkdirat(at, name, 0700), 0);
		next = openat(at, name, O_RDONLY | O_DIRECTORY);
		close(at);
		at = next;
	}

	w = walk_of(*state);

	skipped = walk_skipped(w, &n);
	assert_int_equal(n, 1);
	assert_string_equal(skipped[0].reason, "path too long");
	assert_true(strlen(skipped[0].path) > 1 << 18);
	walk_free(w);
	for (int i = 0; i < DEPTH; i++) {
		int next = openat(at, "..", O_RDONLY | O_DIRECTORY);

		close(at);
		at = next;
		unlinkat(at, name, AT_REMOVEDIR);
	}
	close(at);
}

static void twenty_thousand_files_are_listed_and_read(void **state)
{
	enum { DIRECTORIES = 100, FILES = 200 };
	int root = open(*state, O_RDONLY | O_DIRECTORY);
	const struct walk_file *files;
	struct walk *w;
	size_t n;

	for (int d = 0; d < DIRECTORIES; d++) {
		char name[16];
		int dir;

		snprintf(name, sizeof name, "d%03d", d);
		assert_int_equal(mkdirat(root, name, 0700), 0);
		dir = openat(root, name, O_RDONLY | O_DIRECTORY);
		for (int f = 0; f < FILES; f++) {
			int fd;

			snprintf(name, sizeof name, "f%03d.c", f);
			fd = openat(dir, name, O_WRONLY | O_CREAT, 0600);
			assert_int_equal(write(fd, "int a;\n", 7), 7);
			close(fd);
		}
		close(dir);
	}
	close(root);

	w = walk_of(*state);

	files = walk_files(w, &n);
	assert_int_equal(n, DIRECTORIES * FILES);
	for (size_t i = 0; i < n; i++) {
		assert_true(!i || strcmp(files[i - 1].path, files[i].path) < 0);
		assert_string_equal(reading(w, files[i].path), "");
	}
	walk_free(w);
}

static void a_device_is_not_opened(void **state)
{
	char *device = temp_path(*state, "zero");
	struct walk *w;

	if (mknod(device, S_IFCHR | 0600, makedev(1, 5))) {
		puts("skipped: only root makes devices");
		free(device);
		skip();
	}
	w = walk_of(*state);
	assert_string_equal(reason_for(w, "zero"), "not a regular file");
	assert_string_equal(reading(w, "zero"), "not a regular file");
	walk_free(w);
	free(device);
}

/* The directory that was read last is held open; what takes its place is seen all the same. */
static void a_directory_that_is_replaced_between_two_files_is_read_anew(void **state)
{
	char *dir = temp_path(*state, "dir"), *old = temp_path(*state, "old");
	struct walk *w;

	text_at(*state, "dir/a.c", "x");
	w = walk_of(*state);
	assert_string_equal(reading(w, "dir/a.c"), "");
	assert_int_equal(rename(dir, old), 0);
	text_at(*state, "dir/b.c", "x");
	assert_string_equal(reading(w, "dir/b.c"), "");
	assert_string_equal(reading(w, "dir/a.c"), "unreadable: No such file or directory");
	walk_free(w);
	free(dir);
	free(old);
}

static void without_openat2_the_same_files_are_found_and_links_are_refused(void **state)
{
	char *link_out = temp_path(*state, "dir");
	struct walk *w;

	text_at(*state, "a/b/c.c", "x");
	text_at(*state, "d.c", "x");
	assert_int_equal(symlink("a", link_out), 0);

	w = walk_with(*state, NULL, NULL, true);

	assert_files(w, "a/b/c.c d.c");
	assert_string_equal(reading(w, "a/b/c.c"), "");
	assert_string_equal(reading(w, "dir/b/c.c"), "outside the tree");
	walk_free(w);
	free(link_out);
}

struct writer {
	const char *path;
	atomic_bool stop;
};

static void *keep_writing(void *ctx)
{
	struct writer *wr = ctx;
	int fd = open(wr->path, O_WRONLY);

	for (int i = 0; !atomic_load(&wr->stop); i++) {
		char block[900];

		memset(block, 'a' + i % 2, sizeof block);
		if (pwrite(fd, block, sizeof block, 0) < 0)
			break;
	}
	close(fd);
	return NULL;
}

/* Either it is one version or it is left out; never the beginning of one and the end of another. */
static void a_file_that_changes_while_it_is_read_is_one_version_or_none(void **state)
{
	char first[900];
	struct writer wr = {NULL, false};
	struct walk *w;
	pthread_t thread;

	memset(first, 'a', sizeof first);
	wr.path = temp_file(*state, "busy", first, sizeof first);
	w = walk_of(*state);
	assert_int_equal(pthread_create(&thread, NULL, keep_writing, &wr), 0);
	for (int i = 0; i < 200; i++) {
		const struct walk_file f = {"busy", 900, false};
		const struct text_options opt = {.max_bytes = MOST_BYTES};
		char *text, reason[SKIP_REASON_BYTES];
		size_t bytes;

		if (!text_read(w, &f, &opt, &text, &bytes, reason)) {
			assert_string_equal(reason, "unstable: it changes while it is read");
			continue;
		}
		assert_int_equal(bytes, sizeof first);
		for (size_t j = 1; j < bytes; j++)
			assert_int_equal(text[j], text[0]);
		free(text);
	}
	atomic_store(&wr.stop, true);
	pthread_join(thread, NULL);
	walk_free(w);
	free((char *)wr.path);
}

static void a_root_that_is_not_there_is_an_error_and_a_cancelled_walk_too(void **state)
{
	const struct walk_options opt = {.root = "/nowhere/at/all"}, here = {.root = *state};
	const atomic_bool cancel = true;
	struct walk *w;
	struct err err;

	assert_int_equal(walk_new(&w, &opt, NULL, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_string_equal(err.text, "open directory /nowhere/at/all: No such file or directory");
	assert_int_equal(walk_new(&w, &here, &cancel, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
}

static void globs_match_as_gits_do(void **state)
{
	static const struct {
		const char *pattern, *path;
		bool matches;
	} cases[] = {
		{"*.c", "a.c", true}, {"*.c", "a/b.c", false}, {"a/*", "a/b", true}, {"a/*", "a/b/c", false},
		{"**/c", "c", true}, {"**/c", "a/b/c", true}, {"**/c", "a/bc", false}, {"a/**", "a/b/c", true},
		{"a/**", "a", false}, {"a/**/c", "a/c", true}, {"a/**/c", "a/x/y/c", true}, {"a/**/c", "a/xc", false},
		{"**/a*b/c", "x/aab/axb/c", true}, {"?.c", "/.c", false}, {"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false},
		{"[^a]x", "bx", true}, {"[]]", "]", true}, {"[a", "a", false}, {"[[:digit:]]", "7", true},
		{"[[:digit:]]", "x", false}, {"\\*", "*", true}, {"\\*", "a", false}, {"a**b", "axxb", true},
		{"a**b", "ax/b", false}, {"[a-z/]x", "/x", false}, {"", "", true}, {"*", "", true},
	};
	char path[512];

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (glob_match(cases[i].pattern, cases[i].path) != cases[i].matches)
			fail_msg("%s on %s", cases[i].pattern, cases[i].path);
	/* Exponential for a matcher that tries every star again. */
	memset(path, 'a', sizeof path - 1);
	path[sizeof path - 1] = '\0';
	assert_false(glob_match("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", path));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(files_come_in_the_order_of_their_bytes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_is_not_a_regular_file_is_named_and_never_waited_for, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_fifo_named_like_an_ignore_file_is_not_waited_for, set_up, tear_down),
		cmocka_unit_test_setup_teardown(names_are_bytes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(binary_and_large_files_are_left_out, set_up, tear_down),
		cmocka_unit_test_setup_teardown(secrets_vendored_and_version_control_are_left_out_by_name, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(what_a_text_says_leaves_it_out_unless_the_caller_wants_it, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(pages_and_other_encodings_are_read_as_text, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_wanted_file_is_binary_to_nobody_and_never_endless, set_up, tear_down),
		cmocka_unit_test_setup_teardown(ignore_files_hold_from_their_directory_down_and_the_nearest_wins, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(ignore_files_that_would_take_forever_are_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_caller_can_exclude_anything_and_include_what_is_skipped, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(what_an_ordinary_user_cannot_read_is_skipped_with_the_reason, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(
			a_tree_deeper_than_any_path_is_walked_to_its_end_with_openat2_and_without, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_path_that_is_too_long_is_said_to_be, set_up, tear_down),
		cmocka_unit_test_setup_teardown(twenty_thousand_files_are_listed_and_read, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_device_is_not_opened, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_directory_that_is_replaced_between_two_files_is_read_anew, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(without_openat2_the_same_files_are_found_and_links_are_refused, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_file_that_changes_while_it_is_read_is_one_version_or_none, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_root_that_is_not_there_is_an_error_and_a_cancelled_walk_too, set_up,
						tear_down),
		cmocka_unit_test(globs_match_as_gits_do),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
