/*
 * The calls by which a process reads and changes a disk. Those that change it are counted: pwrite, fallocate,
 * ftruncate, fsync, fdatasync, rename, unlink and unlinkat, of our code and of SQLite alike. A test program that is
 * linked with this chooses one of them, which then kills the process or fails. The syncs are counted and not made,
 * which is most of a test's time.
 */
#ifndef QUIRE_TESTS_SUPPORT_DISK_CALLS_H
#define QUIRE_TESTS_SUPPORT_DISK_CALLS_H

#include <stdbool.h>
#include <sys/types.h>

/* Calls since the last disk_calls_reset, which also forgets what was chosen. */
int disk_calls(void);
void disk_calls_reset(void);

/* The nth call from now (from 1) ends the process before it is made, as kill -9 would. A write is made by half
 * first, if `torn`. */
void disk_calls_kill(int nth, int torn);
/* The nth call from now fails with errno `number`; `then_on`: every later one too. */
void disk_calls_fail(int nth, int number, int then_on);
/* Every fsync and fdatasync from now on fails with errno `number`. */
void disk_calls_fail_sync(int number);

/* Whoever takes the calls' place. Each function returns whether it has dealt with the call, and then sets *result as the
 * call would, or -1 and errno; what it does not deal with is made as if nobody stood there. Any thread. */
struct disk_hook {
	/* After a call to open or openat that went well. */
	void (*opened)(int dir_fd, const char *path, int flags, int fd);
	bool (*read)(int fd, void *bytes, size_t n, off_t offset, ssize_t *result);
	bool (*write)(int fd, const void *bytes, size_t n, off_t offset, ssize_t *result);
	/* To at least `bytes` (fallocate), or to exactly as many (ftruncate). */
	bool (*resize)(int fd, off_t bytes, bool at_least, int *result);
	bool (*sync)(int fd, int *result);
};

/* NULL: nobody. disk_calls_reset leaves it. */
void disk_calls_hook(const struct disk_hook *hook);

#endif
