#include "cache/scratch.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"
#include "config/xxh3.h"

struct scratch {
	char *dir, *path;
	int fd;
	bool writing;
	int64_t bytes, at;     /* of the state; those that have passed */
	XXH3_state_t *hash;    /* of the piece under way */
	uint64_t *sums;        /* one for each piece */
};

static char *path_of(const char *dir, struct scratch_name name)
{
	return xasprintf("%s/scratch-%06" PRId64 "-%" PRId32, dir, name.job, name.file);
}

static bool name_parse(const char *text, struct scratch_name *out)
{
	char again[64];

	if (sscanf(text, "scratch-%6" SCNd64 "-%1" SCNd32, &out->job, &out->file) != 2 || out->job < 1 || out->file < 0 || out->file > 1)
		return false;
	snprintf(again, sizeof again, "scratch-%06" PRId64 "-%" PRId32, out->job, out->file);
	return !strcmp(again, text);
}

static size_t sums_bytes(const struct scratch *s)
{
	return (size_t)((s->bytes + SCRATCH_PIECE - 1) / SCRATCH_PIECE) * sizeof *s->sums;
}

static struct scratch *scratch_new(const char *dir, struct scratch_name name, int64_t bytes, bool writing)
{
	struct scratch *s = xcalloc(1, sizeof *s);

	s->dir = xstrdup(dir);
	s->path = path_of(dir, name);
	s->bytes = bytes;
	s->writing = writing;
	s->sums = xmalloc(sums_bytes(s), 1);
	s->hash = XXH3_createState();
	if (!s->hash || XXH3_64bits_reset(s->hash))
		abort(); /* as xmalloc would */
	s->fd = open(s->path, (writing ? O_RDWR | O_CREAT : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW, 0600);
	return s;
}

/* The next n bytes have passed. -1: a piece that ends with them has not the sum that was written. */
static int pass(struct scratch *s, const uint8_t *data, int64_t n)
{
	while (n) {
		int64_t i = s->at / SCRATCH_PIECE, end = (i + 1) * SCRATCH_PIECE < s->bytes ? (i + 1) * SCRATCH_PIECE : s->bytes;
		int64_t m = end - s->at < n ? end - s->at : n;
		uint64_t sum;

		xxh3_update(s->hash, data, (size_t)m);
		data += m;
		n -= m;
		s->at += m;
		if (s->at < end)
			return 0;
		sum = XXH3_64bits_digest(s->hash);
		XXH3_64bits_reset(s->hash);
		if (s->writing)
			s->sums[i] = sum;
		else if (s->sums[i] != sum)
			return -1;
	}
	return 0;
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

int scratch_create(struct scratch **out, const char *dir, struct scratch_name name, int64_t bytes, struct err *err)
{
	struct scratch *s = scratch_new(dir, name, bytes, true);

	if (s->fd < 0)
		write_error(err, errno, "open", s->path);
	if (s->fd < 0 || set_size(s->fd, s->path, bytes + (int64_t)sums_bytes(s), err)) {
		scratch_close(s);
		return -1;
	}
	*out = s;
	return 0;
}

int scratch_append(struct scratch *s, const void *data, int64_t n, struct err *err)
{
	assert(s->writing && n >= 0 && n <= s->bytes - s->at);
	if (write_whole(s->fd, s->path, data, n, s->at, err))
		return -1;
	if (fdatasync(s->fd))
		return write_error(err, errno, "sync", s->path);
	/* It is read after a crash only: the page cache has better uses. */
	posix_fadvise(s->fd, s->at, n, POSIX_FADV_DONTNEED);
	return pass(s, data, n);
}

int scratch_finish(struct scratch *s, uint64_t *sum, struct err *err)
{
	assert(s->writing && s->at == s->bytes);
	if (write_whole(s->fd, s->path, s->sums, (int64_t)sums_bytes(s), s->bytes, err))
		return -1;
	if (fdatasync(s->fd))
		return write_error(err, errno, "sync", s->path);
	*sum = xxh3_sum(s->sums, sums_bytes(s), 0);
	return file_sync_directory(s->dir, err);
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
	struct scratch *s = scratch_new(dir, name, bytes, false);
	int64_t all = bytes + (int64_t)sums_bytes(s);
	struct stat st;
	int rc = 0;

	if (s->fd < 0 || fstat(s->fd, &st))
		rc = err_set(err, ERR_DAMAGED, "open %s: %s", s->path, strerror(errno));
	else if (st.st_size != all)
		rc = err_set(err, ERR_DAMAGED, "%s has %lld bytes, not %" PRId64, s->path, (long long)st.st_size, all);
	else if (read_whole(s->fd, s->path, s->sums, (int64_t)sums_bytes(s), bytes, err))
		rc = -1;
	else if (xxh3_sum(s->sums, sums_bytes(s), 0) != sum)
		rc = err_set(err, ERR_DAMAGED, "the checksums in %s are not those that were written", s->path);
	if (rc)
		scratch_close(s);
	else
		*out = s;
	return rc;
}

int scratch_read(struct scratch *s, void *out, int64_t n, struct err *err)
{
	assert(!s->writing && n >= 0 && n <= s->bytes - s->at);
	if (read_whole(s->fd, s->path, out, n, s->at, err))
		return -1;
	if (pass(s, out, n))
		return err_set(err, ERR_DAMAGED, "checksum of %s at byte %" PRId64 " is wrong", s->path,
			       (s->at - 1) / SCRATCH_PIECE * SCRATCH_PIECE);
	return 0;
}

int64_t scratch_at(const struct scratch *s)
{
	return s->at;
}

void scratch_close(struct scratch *s)
{
	if (!s)
		return;
	if (s->fd >= 0)
		close(s->fd);
	XXH3_freeState(s->hash);
	free(s->dir);
	free(s->path);
	free(s->sums);
	free(s);
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
