#include "offload/io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"

enum { MAX_READ = 1 << 30 }; /* Linux transfers at most 2 GiB - 4 KiB a call */

static const char *kind_of(mode_t mode)
{
	return S_ISDIR(mode) ? "directory" : S_ISFIFO(mode) ? "FIFO" : S_ISSOCK(mode) ? "socket" : "device";
}

int io_open_regular(struct io_file *f, const char *path, struct err *err)
{
	struct stat st;
	/* O_NONBLOCK: opening a FIFO for reading would wait for a writer; on a regular file it has no effect. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	f->fd = -1;
	f->path = NULL;
	if (fd < 0)
		return errno == ENXIO ? err_set(err, ERR_FORMAT, "%s is a socket or device, not a regular file", path)
				      : err_errno(err, errno, "open %s", path);
	if (fstat(fd, &st)) {
		err_errno(err, errno, "stat %s", path);
		close(fd);
		return -1;
	}
	if (!S_ISREG(st.st_mode)) {
		close(fd);
		return err_set(err, ERR_FORMAT, "%s is a %s, not a regular file", path, kind_of(st.st_mode));
	}
	*f = (struct io_file){.fd = fd,
			      .path = xstrdup(path),
			      .bytes = (uint64_t)st.st_size,
			      .device = st.st_dev,
			      .inode = st.st_ino,
			      .modified = st.st_mtim,
			      .changed = st.st_ctim};
	return 0;
}

int io_read_full(const struct io_file *f, void *out, uint64_t offset, size_t bytes, struct err *err)
{
	size_t done = 0;

	if (offset > INT64_MAX || bytes > INT64_MAX - offset)
		return err_set(err, ERR_FORMAT, "read %s: byte %llu + %zu is beyond any file", f->path,
			       (unsigned long long)offset, bytes);
	while (done < bytes) {
		size_t want = bytes - done < MAX_READ ? bytes - done : MAX_READ;
		ssize_t n = pread(f->fd, (char *)out + done, want, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno, "read %s at byte %llu", f->path,
					 (unsigned long long)(offset + done));
		if (n == 0)
			return err_set(err, ERR_IO, "read %s: the file ends at byte %llu, %zu bytes short of the range "
				       "%llu + %zu; it is truncated or was changed while it was read", f->path,
				       (unsigned long long)(offset + done), bytes - done, (unsigned long long)offset,
				       bytes);
		done += (size_t)n;
	}
	return 0;
}

static int same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

int io_check_unchanged(const struct io_file *f, struct err *err)
{
	struct stat st;

	if (fstat(f->fd, &st))
		return err_errno(err, errno, "stat %s", f->path);
	if ((uint64_t)st.st_size != f->bytes)
		return err_set(err, ERR_IO, "%s changed while it was read: it had %llu bytes and has %lld now; try again "
			       "when nothing writes there", f->path, (unsigned long long)f->bytes,
			       (long long)st.st_size);
	if (st.st_dev != f->device || st.st_ino != f->inode || !same_time(st.st_mtim, f->modified) ||
	    !same_time(st.st_ctim, f->changed))
		return err_set(err, ERR_IO, "%s changed while it was read: its modification or change time is another; "
			       "try again when nothing writes there", f->path);
	return 0;
}

void io_close(struct io_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	free(f->path);
	f->fd = -1;
	f->path = NULL;
}
