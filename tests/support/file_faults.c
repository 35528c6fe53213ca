#include "tests/support/file_faults.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "config/mem.h"
#include "tests/support/disk_calls.h"

enum { FDS_MOST = 4096, PAGE = 4096 };

static struct file_faults *faults;
static bool is_ours[FDS_MOST], is_shared[FDS_MOST];
static off_t places[FDS_MOST][2];  /* of the last two calls */

static bool ours(int fd)
{
	return fd >= 0 && fd < FDS_MOST && is_ours[fd];
}

static void opened(int dir_fd, const char *path, int flags, int fd)
{
	const char *name = strrchr(path, '/');

	(void)dir_fd;
	(void)flags;
	if (fd >= FDS_MOST)
		return;
	is_ours[fd] = false;
	places[fd][0] = places[fd][1] = -1;
	for (int i = 0; faults->names[i]; i++)
		is_ours[fd] |= !strncmp(name ? name + 1 : path, faults->names[i], strlen(faults->names[i]));
	/* What is memory that happens to have a file: a file system that lies about its size gives SIGBUS to anybody. */
	is_shared[fd] = strstr(path, "-shm") != NULL;
}

/* Counts a call; the fault that it shall have. */
static enum file_fault next(int fd)
{
	int at = ++faults->n_calls;

	if (!faults->nth || at < faults->nth || (at > faults->nth && !faults->then_on))
		return FILE_NONE;
	if (is_shared[fd] && faults->fault != FILE_ERROR)
		return FILE_NONE;
	faults->n_spoiled++;
	return faults->fault;
}

static off_t other_place(int fd, off_t at, size_t n)
{
	for (int i = 0; i < 2; i++)
		if (places[fd][i] >= 0 && places[fd][i] != at)
			return places[fd][i];
	return at + (off_t)(n < PAGE ? PAGE : n);
}

/* Where a call that has this fault is made, and for how many bytes; false: it is not made, and gives *result. */
static bool goes_on(enum file_fault fault, int fd, size_t *n, off_t *at, ssize_t *result)
{
	off_t was = *at;

	if (fault == FILE_ERROR) {
		errno = faults->error;
		*result = -1;
		return false;
	}
	if (fault == FILE_ZERO || fault == FILE_STALE) {
		*result = fault == FILE_ZERO ? 0 : (ssize_t)*n;
		return false;
	}
	if (fault == FILE_SHORT)
		*n = *n > 1 ? *n / 2 : *n;
	if (fault == FILE_SWAP)
		*at = other_place(fd, *at, *n);
	places[fd][1] = places[fd][0];
	places[fd][0] = was;
	return true;
}

static bool on_read(int fd, void *bytes, size_t n, off_t at, ssize_t *result)
{
	enum file_fault fault;

	if (!ours(fd))
		return false;
	fault = next(fd);
	if (!goes_on(fault, fd, &n, &at, result))
		return true;
	*result = syscall(SYS_pread64, fd, bytes, n, at);
	if (fault == FILE_FLIP && *result > 0)
		((unsigned char *)bytes)[*result / 2] ^= 1;
	return true;
}

static bool on_write(int fd, const void *bytes, size_t n, off_t at, ssize_t *result)
{
	enum file_fault fault;
	unsigned char *copy;

	if (!ours(fd))
		return false;
	fault = next(fd);
	if (!goes_on(fault, fd, &n, &at, result))
		return true;
	copy = xmalloc(n + 1, 1);
	memcpy(copy, bytes, n);
	if (fault == FILE_FLIP)
		copy[n / 2] ^= 1;
	*result = syscall(SYS_pwrite64, fd, copy, n, at);
	free(copy);
	return true;
}

/* Of calls that move no bytes: only an error, or that nothing was done. */
static bool refused(enum file_fault fault, int *result)
{
	if (fault != FILE_ERROR && fault != FILE_STALE) {
		faults->n_spoiled -= fault != FILE_NONE;
		return false;
	}
	errno = faults->error;
	*result = fault == FILE_ERROR ? -1 : 0;
	return true;
}

static bool on_resize(int fd, off_t bytes, bool at_least, int *result)
{
	if (!ours(fd))
		return false;
	if (!refused(next(fd), result))
		*result = (int)(at_least ? syscall(SYS_fallocate, fd, 0, 0, bytes) : syscall(SYS_ftruncate, fd, bytes));
	return true;
}

/* Syncs are not made (disk_calls.h). */
static bool on_sync(int fd, int *result)
{
	if (!ours(fd))
		return false;
	if (!refused(next(fd), result))
		*result = 0;
	return true;
}

void file_faults_use(struct file_faults *f)
{
	static const struct disk_hook hook = {opened, on_read, on_write, on_resize, on_sync};

	disk_calls_hook(NULL);
	memset(is_ours, 0, sizeof is_ours);
	faults = f;
	if (f)
		disk_calls_hook(&hook);
}
