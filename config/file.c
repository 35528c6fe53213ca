#include "config/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"

static const char *kind_of(mode_t mode)
{
	return S_ISDIR(mode) ? "a directory" : S_ISFIFO(mode) ? "a FIFO" : S_ISSOCK(mode) ? "a socket" : "a device";
}

static int read_open_file(int fd, char **text, size_t *bytes, const char *path, size_t max_bytes, struct err *err)
{
	struct stat st;
	size_t size, n = 0;
	char *p;

	if (fstat(fd, &st))
		return err_errno(err, errno, "stat %s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_FORMAT, "%s is %s, not a file", path, kind_of(st.st_mode));
	if (st.st_size < 0 || (uintmax_t)st.st_size > max_bytes)
		return err_set(err, ERR_TOO_LARGE, "%s has %jd bytes, at most %zu are expected", path,
			       (intmax_t)st.st_size, max_bytes);
	size = (size_t)st.st_size;
	p = mem_try(size + 1, 1, path, err);
	if (!p)
		return -1;
	/* One byte more than fstat promised is asked for: a file that grows is noticed at its end. */
	while (n <= size) {
		ssize_t got = read(fd, p + n, size + 1 - n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			err_errno(err, errno, "read %s at byte %zu", path, n);
			free(p);
			return -1;
		}
		if (!got)
			break;
		n += (size_t)got;
	}
	if (n != size) {
		free(p);
		return err_set(err, ERR_IO, "%s changed while it was read: %zu bytes at first, then %s%zu", path, size,
			       n > size ? "at least " : "", n);
	}
	p[n] = '\0';
	*text = p;
	*bytes = n;
	return 0;
}

int file_read(char **text, size_t *bytes, const char *path, size_t max_bytes, struct err *err)
{
	/* O_NONBLOCK: opening a FIFO must not wait for its writer; a regular file does not care. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	int failed;

	if (fd < 0)
		return err_errno(err, errno, "open %s", path);
	failed = read_open_file(fd, text, bytes, path, max_bytes, err);
	close(fd);
	return failed;
}

static int read_to_end(int fd, char *text, const char *path, size_t max_bytes, struct err *err)
{
	size_t n = 0;

	for (;;) {
		ssize_t got = read(fd, text + n, max_bytes + 1 - n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return err_errno(err, errno, "read %s at byte %zu", path, n);
		n += (size_t)got;
		if (n > max_bytes)
			return err_set(err, ERR_TOO_LARGE, "%s has more than %zu bytes", path, max_bytes);
		if (!got) {
			text[n] = '\0';
			return 0;
		}
	}
}

int file_read_kernel(char **text, const char *path, size_t max_bytes, struct err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), failed;

	if (fd < 0)
		return err_errno(err, errno, "open %s", path);
	*text = xmalloc(max_bytes + 1, 1);
	failed = read_to_end(fd, *text, path, max_bytes, err);
	close(fd);
	if (failed) {
		free(*text);
		*text = NULL;
	}
	return failed;
}

static int write_all(int fd, const char *bytes, size_t n)
{
	while (n) {
		ssize_t put = write(fd, bytes, n);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -1;
		bytes += put;
		n -= (size_t)put;
	}
	return 0;
}

int file_replace(const char *path, const void *bytes, size_t n, struct err *err)
{
	char *beside = xasprintf("%s.new", path);
	int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666), failed = 0;

	if (fd < 0 || write_all(fd, bytes, n) || fsync(fd) || rename(beside, path)) {
		failed = err_errno(err, errno, "write %s", beside);
		if (fd >= 0)
			unlink(beside);
	}
	if (fd >= 0)
		close(fd);
	free(beside);
	return failed;
}

int file_make_directories(const char *path, struct err *err)
{
	char *dir = xstrdup(path), *p = dir;
	int result = 0;

	do {
		p = strchr(p + 1, '/');
		if (p)
			*p = '\0';
		if (mkdir(dir, 0700) && errno != EEXIST)
			result = err_errno(err, errno, "make directory %s", dir);
		if (p)
			*p = '/';
	} while (p && !result);
	free(dir);
	return result;
}

int file_sync_directory(const char *path, struct err *err)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc = fd < 0 || fsync(fd) ? err_errno(err, errno, "sync directory %s", path) : 0;

	if (fd >= 0)
		close(fd);
	return rc;
}
