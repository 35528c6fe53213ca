/*
 * Files read whole or in ranges, into memory the caller owns. Nothing here maps a file: a file that shrinks while
 * it is read is an error, not a signal.
 *
 * Any thread; one struct io_file may be read by several threads at once.
 */
#ifndef QUIRE_OFFLOAD_IO_H
#define QUIRE_OFFLOAD_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "config/err.h"

/* A regular file as it was when it was opened. */
struct io_file {
	int fd;
	char *path;
	uint64_t bytes;
	dev_t device;
	ino_t inode;
	struct timespec modified, changed;
};

/* Open a regular file for reading. Symbolic links are followed. What is no regular file (directory, FIFO, socket,
 * device) is refused by what it is, and never waited for. */
int io_open_regular(struct io_file *f, const char *path, struct err *err);

/* Exactly `bytes` bytes at `offset`; interrupted and short reads go on. A range that ends behind the file's end
 * is an error that says how many bytes were there. */
int io_read_full(const struct io_file *f, void *out, uint64_t offset, size_t bytes, struct err *err);

/* Error when the file is not the one that was opened any more: other size, modification or change time. */
int io_check_unchanged(const struct io_file *f, struct err *err);

/* Takes a file that was never opened too, if it was zeroed with fd -1. */
void io_close(struct io_file *f);

#endif
