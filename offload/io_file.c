#include "offload/io.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "config/mem.h"
#include "offload/io_backend.h"

enum {
	MAX_READ = 1 << 30,     /* Linux transfers at most 2 GiB - 4 KiB a call */
	ALIGN_LEAST = 512,
	ALIGN_USUAL = 4096,     /* where nobody says: a multiple of every common one */
	ALIGN_MOST = 1 << 16,   /* what asks for more is read through the cache */
};

static const char *kind_of(mode_t mode)
{
	return S_ISDIR(mode) ? "directory" : S_ISFIFO(mode) ? "FIFO" : S_ISSOCK(mode) ? "socket" : "device";
}

uint32_t io_probe_alignment(int direct_fd, uint64_t file_bytes)
{
	char *memory;
	uint32_t found = 0;

	/* Reads at the file's end are not checked by every file system: there must be something to read. */
	if (file_bytes < (uint64_t)2 * ALIGN_USUAL)
		return ALIGN_USUAL;
	memory = aligned_alloc(4 * ALIGN_USUAL, 4 * ALIGN_USUAL);
	for (uint32_t align = ALIGN_LEAST; memory && !found && align <= ALIGN_USUAL; align *= 2)
		/* Memory and offset are aligned to this and to no more. */
		if (pread(direct_fd, memory + align, align, align) >= 0 || errno != EINVAL)
			found = align;
	free(memory);
	return found;
}

/* What statx says about direct access: *align 0 when there is none. Returns whether it said something. */
static bool ask_alignment(int fd, uint32_t *align)
{
#ifdef STATX_DIOALIGN
	struct statx sx;

	if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) && sx.stx_mask & STATX_DIOALIGN) {
		*align = sx.stx_dio_offset_align;
		if (*align && sx.stx_dio_mem_align > *align)
			*align = sx.stx_dio_mem_align;
		return true;
	}
#else
	(void)fd;
	(void)align;
#endif
	return false;
}

/* f->direct_fd is open with O_DIRECT: find f->align, or why it is of no use. Some file systems take the flag and read
 * through their cache all the same. */
static const char *find_alignment(struct io_file *f)
{
	uint32_t align = 0;
	struct statfs fs;

	if (!fstatfs(f->direct_fd, &fs) && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC))
		return "its file system is memory";
	if (!ask_alignment(f->direct_fd, &align))
		align = io_probe_alignment(f->direct_fd, f->bytes);
	if (!align)
		return "its file system has no direct access for it";
	if (align < ALIGN_LEAST)
		align = ALIGN_LEAST;
	if (align & (align - 1) || align > ALIGN_MOST)
		return "its file system has a block size for direct access that quire does not know";
	f->align = align;
	return NULL;
}

/* Off again: io_uring takes it at its word where the file system cannot wait on the side (NFS, FUSE), and gives EAGAIN for
 * ever. */
static int clear_nonblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 ? -1 : fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

/* A second descriptor, as O_DIRECT belongs to one, and headers are better read through the cache. */
static int open_direct(struct io_file *f, int dir_fd, const char *name, int how, struct err *err)
{
	struct stat st;

	f->align = ALIGN_USUAL;
	f->direct_fd = openat(dir_fd, name, (how & ~(O_CREAT | O_EXCL)) | O_DIRECT);
	if (f->direct_fd < 0 && errno == EINVAL) {
		f->why_not_direct = "its file system has no direct access";
		return 0;
	}
	if (f->direct_fd < 0 || fstat(f->direct_fd, &st) || clear_nonblock(f->direct_fd))
		return err_errno(err, errno, "open %s for direct access", f->path);
	if (st.st_dev != f->device || st.st_ino != f->inode)
		return err_set(err, ERR_IO, "%s was replaced by another file while it was opened; try again when nothing "
			       "writes there", f->path);
	f->why_not_direct = find_alignment(f);
	if (f->why_not_direct) {
		close(f->direct_fd);
		f->direct_fd = -1;
	}
	return 0;
}

static int open_file(struct io_file *f, int dir_fd, const char *name, char *path, int flags, struct err *err)
{
	/* O_NONBLOCK: opening a FIFO for reading would wait for a writer; on a regular file it has no effect. */
	int how = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (flags & IO_OPEN_WRITE ? O_RDWR : O_RDONLY) |
		  (flags & IO_OPEN_CREATE ? O_CREAT | O_EXCL : 0) | (flags & IO_OPEN_NOFOLLOW ? O_NOFOLLOW : 0);
	struct stat st;

	assert(!(flags & IO_OPEN_CREATE) || flags & IO_OPEN_WRITE);
	*f = (struct io_file){.fd = openat(dir_fd, name, how, 0600), .direct_fd = -1, .align = 1, .path = path};
	if (f->fd < 0 && errno == ENXIO)
		err_set(err, ERR_FORMAT, "%s is a socket or device, not a regular file", path);
	else if (f->fd < 0 && errno == ELOOP && flags & IO_OPEN_NOFOLLOW)
		err_set(err, ERR_FORMAT, "%s is a symbolic link, not a regular file", path);
	else if (f->fd < 0)
		err_errno(err, errno, "open %s", path);
	else if (fstat(f->fd, &st))
		err_errno(err, errno, "stat %s", path);
	else if (!S_ISREG(st.st_mode))
		err_set(err, ERR_FORMAT, "%s is a %s, not a regular file", path, kind_of(st.st_mode));
	else if (clear_nonblock(f->fd))
		err_errno(err, errno, "open %s", path);
	else {
		f->bytes = (uint64_t)st.st_size;
		f->device = st.st_dev;
		f->inode = st.st_ino;
		f->modified = st.st_mtim;
		f->changed = st.st_ctim;
		if (!(flags & IO_OPEN_DIRECT) || !open_direct(f, dir_fd, name, how, err))
			return 0;
	}
	io_close(f); /* the path goes with it */
	return -1;
}

int io_open_regular(struct io_file *f, const char *path, struct err *err)
{
	return io_open(f, path, 0, err);
}

int io_open(struct io_file *f, const char *path, int flags, struct err *err)
{
	return open_file(f, AT_FDCWD, path, xstrdup(path), flags, err);
}

int io_open_at(struct io_file *f, int dir_fd, const char *dir, const char *name, int flags, struct err *err)
{
	return open_file(f, dir_fd, name, xasprintf("%s/%s", dir, name), flags, err);
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

int io_preallocate(const struct io_file *f, uint64_t offset, uint64_t bytes, struct err *err)
{
	struct stat st;
	int number;

	if (offset > INT64_MAX || bytes > INT64_MAX - offset)
		return err_set(err, ERR_FORMAT, "extend %s: byte %llu + %llu is beyond any file", f->path,
			       (unsigned long long)offset, (unsigned long long)bytes);
	do
		number = fallocate(f->fd, 0, (off_t)offset, (off_t)bytes) ? errno : 0;
	while (number == EINTR);
	if (number == EOPNOTSUPP || number == ENOSYS) { /* then a full disk shows at the write */
		number = fstat(f->fd, &st) ? errno : 0;
		if (!number && (uint64_t)st.st_size < offset + bytes)
			number = ftruncate(f->fd, (off_t)(offset + bytes)) ? errno : 0;
	}
	if (number == ENOSPC || number == EDQUOT || number == EFBIG)
		return err_set(err, ERR_IO, "extend %s by %llu bytes at byte %llu: %s; free space there and try again",
			       f->path, (unsigned long long)bytes, (unsigned long long)offset, strerror(number));
	return number ? err_errno(err, number, "extend %s by %llu bytes at byte %llu", f->path, (unsigned long long)bytes,
				  (unsigned long long)offset) : 0;
}

int io_sync_file(const struct io_file *f, struct err *err)
{
	int failed;

	do
		failed = fdatasync(f->fd);
	while (failed && errno == EINTR);
	return failed ? err_errno(err, errno, "sync %s", f->path) : 0;
}

void io_close(struct io_file *f)
{
	if (f->fd >= 0) {
		close(f->fd);
		if (f->direct_fd >= 0)
			close(f->direct_fd);
	}
	free(f->path);
	f->fd = f->direct_fd = -1;
	f->path = NULL;
}
