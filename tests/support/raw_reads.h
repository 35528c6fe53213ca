/*
 * What a disk gives to a program that looks at nothing: a list of reads on a bare io_uring, the limit that readers are
 * measured against. Ends the program when a read fails, as the probes of measure.h do.
 */
#ifndef QUIRE_TESTS_SUPPORT_RAW_READS_H
#define QUIRE_TESTS_SUPPORT_RAW_READS_H

#include <stddef.h>
#include <stdint.h>

struct raw_read {
	int fd;
	uint64_t offset;
	uint32_t bytes; /* RAW_READ_MOST at most */
};

enum { RAW_READ_MOST = 4 << 20, RAW_DEPTH_MOST = 64 };

/* Seconds for n reads with `depth` under way at a time, into buffers that are there before the clock starts. One thread. */
double raw_reads(const struct raw_read *reads, size_t n, int depth);
/* The same by a thread that does something else, a little of it at a time, while there is nothing to take back. */
double raw_reads_beside(const struct raw_read *reads, size_t n, int depth, void (*meanwhile)(void *ctx), void *ctx);

#endif
