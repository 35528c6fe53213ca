#include "tests/support/temp_dir.h"

#include <errno.h>
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
