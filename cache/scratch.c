#include "cache/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"

#define PIECE_BYTES ((int64_t)4 << 20)

struct scratch {
	char *path;
	int fd;
	int64_t bytes;         /* of the state */
	uint64_t *sums;        /* one for each piece */
};

static char *path_of(const char *dir, struct scratch_name name)
{
	return xasprintf("%s/scratch-%06" PRId64 "-%" PRId32, dir, name.job, name.file);
}

static bool name_parse(const char *text, struct scratch_name *out)
{
	char again[64];

	if (sscanf(text, "scratch-%6" SCNd64 "-%1" SCNd32, &out->job, &out->file) != 2 || out->job < 1)
		return false;
	snprintf(again, sizeof again, "scratch-%06" PRId64 "-%" PRId32, out->job, out->file);
	return !strcmp(again, text);
}

static int64_t n_pieces(int64_t bytes)
{
	return (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
}

static int64_t piece_bytes(int64_t bytes, int64_t i)
{
	int64_t left = bytes - i * PIECE_BYTES;

	return left < 0 ? 0 : left < PIECE_BYTES ? left : PIECE_BYTES;
}

static int write_error(struct err *err, int number, const char *what, const char *path)
{
	if (number == ENOSPC || number == EDQUOT || number == EFBIG)
		return err_set(err, ERR_IO, "%s %s: %s; an ingest needs this space to go on after a crash", what, path,
			       strerror(number));
	return err_errno(err, number, "%s %s", what, path);
}

static int write_whole(int fd, const char *path, const void *data, int64_t n, int64_t at, struct err *err)
{
	for (int64_t done = 0; done < n; ) {
		ssize_t m = pwrite(fd, (const char *)data + done, (size_t)(n - done), at + done);

		if (m < 0 && errno == EINTR)
			continue;
		if (m <= 0)
			return write_error(err, m ? errno : EIO, "write", path);
		done += m;
	}
	return 0;
}

/* Take the space first, so that a full disk is met before anything is written. */
static int set_size(int fd, const char *path, int64_t bytes, struct err *err)
{
	struct stat st;

	if (bytes && fallocate(fd, 0, 0, bytes) && errno != EOPNOTSUPP && errno != ENOSYS)
		return write_error(err, errno, "extend", path);
	if (fstat(fd, &st))
		return err_errno(err, errno, "look at %s", path);
	return st.st_size != bytes && ftruncate(fd, bytes) ? write_error(err, errno, "cut", path) : 0;
}

static int write_state(int fd, const char *path, const char *state, int64_t bytes, uint64_t *sum, struct err *err)
{
	int64_t n = n_pieces(bytes), sums_bytes = n * (int64_t)sizeof *sum;
	uint64_t *sums = xmalloc((size_t)n, sizeof *sums);
	int rc = set_size(fd, path, bytes + sums_bytes, err);

	for (int64_t i = 0; !rc && i < n; i++) {
		int64_t at = i * PIECE_BYTES, m = piece_bytes(bytes, i);

		sums[i] = XXH3_64bits(state + at, (size_t)m);
		rc = write_whole(fd, path, state + at, m, at, err);
	}
	if (!rc)
		rc = write_whole(fd, path, sums, sums_bytes, bytes, err);
	if (!rc && fdatasync(fd))
		rc = write_error(err, errno, "sync", path);
	*sum = XXH3_64bits(sums, (size_t)sums_bytes);
	free(sums);
	/* It is read after a crash only: the page cache has better uses. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	return rc;
}

int scratch_write(const char *dir, struct scratch_name name, const void *state, int64_t bytes, uint64_t *sum,
		  struct err *err)
{
	char *path = path_of(dir, name);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), rc;

	if (fd < 0) {
		rc = write_error(err, errno, "open", path);
	} else {
		rc = write_state(fd, path, state, bytes, sum, err) || file_sync_directory(dir, err) ? -1 : 0;
		close(fd);
	}
	free(path);
	return rc;
}

static int read_whole(int fd, const char *path, void *out, int64_t n, int64_t at, struct err *err)
{
	for (int64_t done = 0; done < n; ) {
		ssize_t m = pread(fd, (char *)out + done, (size_t)(n - done), at + done);

		if (m < 0 && errno == EINTR)
			continue;
		if (m <= 0)
			return err_set(err, ERR_DAMAGED, "read %s at byte %" PRId64 ": %s", path, at + done,
				       m ? strerror(errno) : "it ends there");
		done += m;
	}
	return 0;
}

int scratch_open(struct scratch **out, const char *dir, struct scratch_name name, int64_t bytes, uint64_t sum,
		 struct err *err)
{
	struct scratch *s = xcalloc(1, sizeof *s);
	int64_t n = n_pieces(bytes), sums_bytes = n * (int64_t)sizeof *s->sums;
	struct stat st;
	int rc = 0;

	s->path = path_of(dir, name);
	s->bytes = bytes;
	s->sums = xmalloc((size_t)n, sizeof *s->sums);
	s->fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (s->fd < 0 || fstat(s->fd, &st))
		rc = err_set(err, ERR_DAMAGED, "open %s: %s", s->path, strerror(errno));
	else if (st.st_size != bytes + sums_bytes)
		rc = err_set(err, ERR_DAMAGED, "%s has %lld bytes, not %" PRId64, s->path, (long long)st.st_size,
			     bytes + sums_bytes);
	else if (read_whole(s->fd, s->path, s->sums, sums_bytes, bytes, err))
		rc = -1;
	else if (XXH3_64bits(s->sums, (size_t)sums_bytes) != sum)
		rc = err_set(err, ERR_DAMAGED, "the checksums in %s are not those that were written", s->path);
	if (rc)
		scratch_close(s);
	else
		*out = s;
	return rc;
}

void scratch_close(struct scratch *s)
{
	if (!s)
		return;
	if (s->fd >= 0)
		close(s->fd);
	free(s->path);
	free(s->sums);
	free(s);
}

int64_t scratch_piece_bytes(const struct scratch *s, int64_t i)
{
	return piece_bytes(s->bytes, i);
}

int scratch_read(struct scratch *s, int64_t i, void *out, struct err *err)
{
	int64_t at = i * PIECE_BYTES, n = piece_bytes(s->bytes, i);

	if (read_whole(s->fd, s->path, out, n, at, err))
		return -1;
	if (XXH3_64bits(out, (size_t)n) != s->sums[i])
		return err_set(err, ERR_DAMAGED, "checksum of %s at byte %" PRId64 " is wrong", s->path, at);
	return 0;
}

void scratch_remove(const char *dir, int64_t job)
{
	for (int32_t file = 0; file < 2; file++) {
		char *path = path_of(dir, (struct scratch_name){job, file});

		if (unlink(path) && errno != ENOENT)
			log_warn("cannot remove %s: %s", path, strerror(errno));
		free(path);
	}
}

int scratch_clean(const char *dir, bool (*is_there)(void *ctx, int64_t job), void *ctx, struct err *err)
{
	DIR *d = opendir(dir);
	struct scratch_name name;

	if (!d)
		return err_errno(err, errno, "open %s", dir);
	for (struct dirent *e; (e = readdir(d)); )
		if (name_parse(e->d_name, &name) && !is_there(ctx, name.job) && unlinkat(dirfd(d), e->d_name, 0))
			log_warn("cannot remove %s/%s: %s", dir, e->d_name, strerror(errno));
	closedir(d);
	return 0;
}

int64_t scratch_bytes(const char *dir)
{
	DIR *d = opendir(dir);
	struct scratch_name name;
	int64_t bytes = 0;
	struct stat st;

	if (!d)
		return 0;
	for (struct dirent *e; (e = readdir(d)); )
		if (name_parse(e->d_name, &name) && !fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW))
			bytes += st.st_size;
	closedir(d);
	return bytes;
}
