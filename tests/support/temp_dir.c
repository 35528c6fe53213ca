#include "tests/support/temp_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"

static void give_up(const char *what, const char *path)
{
	fprintf(stderr, "test set-up: %s %s: %s\n", what, path, strerror(errno));
	abort();
}

static char *dir_below(const char *parent)
{
	char *dir = xasprintf("%s/quire-test-XXXXXX", parent);

	if (!mkdtemp(dir))
		give_up("make directory", dir);
	return dir;
}

char *temp_dir_new(void)
{
	const char *parent = getenv("TMPDIR");

	return dir_below(parent && parent[0] == '/' ? parent : "/tmp");
}

char *temp_dir_new_in_memory(void)
{
	return access("/dev/shm", W_OK | X_OK) ? temp_dir_new() : dir_below("/dev/shm");
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void temp_dir_free(char *dir)
{
	if (!dir)
		return;
	if (nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS))
		give_up("remove directory", dir);
	free(dir);
}

void temp_dir_guard(const char *dir)
{
	int ends[2], null;
	char byte;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) || (null = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0 || (pid = fork()) < 0)
		give_up("guard directory", dir);
	close(ends[pid ? 0 : 1]);
	if (pid) { /* the end that is left open closes with this process */
		close(null);
		return;
	}
	setsid(); /* what ends those of the parent's group shall not end this one */
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	while (read(ends[0], &byte, 1) < 0 && errno == EINTR)
		;
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	_exit(0);
}

char *temp_path(const char *dir, const char *name)
{
	return xasprintf("%s/%s", dir, name);
}

char *temp_file(const char *dir, const char *name, const void *bytes, size_t n)
{
	char *path = temp_path(dir, name);
	FILE *f;

	for (char *slash = strchr(path + strlen(dir) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(path, 0700) && errno != EEXIST)
			give_up("make directory", path);
		*slash = '/';
	}
	f = fopen(path, "wb");
	if (!f || fwrite(bytes, 1, n, f) != n || fclose(f))
		give_up("write", path);
	return path;
}

char *temp_text(const char *dir, const char *name, const char *text)
{
	return temp_file(dir, name, text, strlen(text));
}

static int copy_file(const char *from, const char *to, struct err *err)
{
	int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char *bytes = xmalloc(1 << 16, 1);
	ssize_t n = -1;

	while (in >= 0 && out >= 0 && (n = read(in, bytes, 1 << 16)) > 0)
		if (write(out, bytes, (size_t)n) != n) {
			n = -1;
			break;
		}
	free(bytes);
	if (n)
		err_errno(err, errno, "copy %s to %s", from, to);
	if (in >= 0)
		close(in);
	if (out >= 0)
		close(out);
	return n ? -1 : 0;
}

int temp_dir_copy(const char *from, const char *to, struct err *err)
{
	DIR *d = opendir(from);
	int rc = 0;

	if (!d || mkdir(to, 0700))
		rc = err_errno(err, errno, "copy %s to %s", from, to);
	for (struct dirent *e; !rc && (e = readdir(d));) {
		char *a = temp_path(from, e->d_name), *b = temp_path(to, e->d_name);

		if (e->d_name[0] != '.')
			rc = copy_file(a, b, err);
		free(a);
		free(b);
	}
	if (d)
		closedir(d);
	return rc;
}
