#include "tests/support/disk_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int n_calls; /* of all threads */
static struct {
	int kill_at, torn, fail_at, number, then_on, sync_number;
} calls;
static const struct disk_hook *the_hook;

int disk_calls(void)
{
	return n_calls;
}

void disk_calls_reset(void)
{
	__typeof__(calls) none = {0};

	calls = none;
	n_calls = 0;
}

void disk_calls_kill(int nth, int torn)
{
	calls.kill_at = n_calls + nth;
	calls.torn = torn;
}

void disk_calls_fail(int nth, int number, int then_on)
{
	calls.fail_at = n_calls + nth;
	calls.number = number;
	calls.then_on = then_on;
}

void disk_calls_fail_sync(int number)
{
	calls.sync_number = number;
}

void disk_calls_hook(const struct disk_hook *hook)
{
	the_hook = hook;
}

/* Counts a call; the error that it shall have, or 0. */
static int count(int fd, const void *bytes, size_t n, off_t offset)
{
	int at = ++n_calls;

	if (at == calls.kill_at) {
		if (calls.torn && n)
			syscall(SYS_pwrite64, fd, bytes, n / 2, offset);
		raise(SIGKILL);
	}
	return calls.fail_at && (at == calls.fail_at || (calls.then_on && at > calls.fail_at)) ? calls.number : 0;
}

static long result(int number, long rc)
{
	if (!number)
		return rc;
	errno = number;
	return -1;
}

/* These stand before libc's, for this program and for the libraries it loads. */
static int opened(int dir_fd, const char *path, int flags, int mode)
{
	int fd = (int)syscall(SYS_openat, dir_fd, path, flags, mode);

	if (fd >= 0 && the_hook)
		the_hook->opened(dir_fd, path, flags, fd);
	return fd;
}

static int mode_of(int flags, va_list args)
{
	return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(args, int) : 0;
}

int openat(int dir_fd, const char *path, int flags, ...)
{
	va_list args;
	int mode;

	va_start(args, flags);
	mode = mode_of(flags, args);
	va_end(args);
	return opened(dir_fd, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	va_list args;
	int mode;

	va_start(args, flags);
	mode = mode_of(flags, args);
	va_end(args);
	return opened(AT_FDCWD, path, flags, mode);
}

int openat64(int dir_fd, const char *path, int flags, ...)
{
	va_list args;
	int mode;

	va_start(args, flags);
	mode = mode_of(flags, args);
	va_end(args);
	return opened(dir_fd, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	va_list args;
	int mode;

	va_start(args, flags);
	mode = mode_of(flags, args);
	va_end(args);
	return opened(AT_FDCWD, path, flags, mode);
}

ssize_t pread(int fd, void *bytes, size_t n, off_t offset)
{
	ssize_t rc;

	if (the_hook && the_hook->read(fd, bytes, n, offset, &rc))
		return rc;
	return syscall(SYS_pread64, fd, bytes, n, offset);
}

ssize_t pread64(int fd, void *bytes, size_t n, off64_t offset)
{
	return pread(fd, bytes, n, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset)
{
	int number = count(fd, bytes, n, offset);
	ssize_t rc;

	if (!number && the_hook && the_hook->write(fd, bytes, n, offset, &rc))
		return rc;
	return result(number, number ? 0 : syscall(SYS_pwrite64, fd, bytes, n, offset));
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t offset)
{
	return pwrite(fd, bytes, n, offset);
}

int fallocate(int fd, int mode, off_t offset, off_t n)
{
	int number = count(fd, NULL, 0, 0), rc;

	if (!number && !mode && the_hook && the_hook->resize(fd, offset + n, true, &rc))
		return rc;
	return (int)result(number, number ? 0 : syscall(SYS_fallocate, fd, mode, offset, n));
}

int ftruncate(int fd, off_t n)
{
	int number = count(fd, NULL, 0, 0), rc;

	if (!number && the_hook && the_hook->resize(fd, n, false, &rc))
		return rc;
	return (int)result(number, number ? 0 : syscall(SYS_ftruncate, fd, n));
}

int ftruncate64(int fd, off64_t n)
{
	return ftruncate(fd, n);
}

/* Nothing is synced: what a killed process wrote is in the page cache, and a test cannot cut the power. */
int fsync(int fd)
{
	int number = count(fd, NULL, 0, 0), rc;

	number = number ? number : calls.sync_number;
	if (!number && the_hook && the_hook->sync(fd, &rc))
		return rc;
	return (int)result(number, 0);
}

int fdatasync(int fd)
{
	return fsync(fd);
}

int rename(const char *from, const char *to)
{
	int number = count(-1, NULL, 0, 0);

	return (int)result(number, number ? 0 : syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

int unlinkat(int dir_fd, const char *path, int flags)
{
	int number = count(-1, NULL, 0, 0);

	return (int)result(number, number ? 0 : syscall(SYS_unlinkat, dir_fd, path, flags));
}

int unlink(const char *path)
{
	return unlinkat(AT_FDCWD, path, 0);
}
