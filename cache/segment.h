/*
 * Segment files: where the bytes of the store lie. Private to cache/.
 *
 * A segment is preallocated in steps and holds extents that begin and end on 4 KiB, are written once, synced, and
 * never edited. What is free is not recorded anywhere: it is what no row of the index names, worked out at open, so
 * a crash can leave space to reuse but never space lost.
 *
 * Bytes go past the page cache (O_DIRECT) where the file system has such a way, so that what a snapshot needs does not
 * push out what others keep there; where it has none, through it, which the log says once. Requests go through an
 * engine of the store's own (offload/io.h), made with the first of them, and so belong to the thread that made it.
 */
#ifndef QUIRE_CACHE_SEGMENT_H
#define QUIRE_CACHE_SEGMENT_H

#include <stdint.h>

#include "config/err.h"

enum { EXTENT_ALIGN = 4096 };

struct extent {
	int32_t segment;       /* from 1 */
	int64_t offset, bytes; /* multiples of EXTENT_ALIGN */
};

struct segments;

struct io_options;

/* Open every segment file of dir; all of their space counts as free until segments_take says otherwise. io: how to read
 * and write, NULL: as the machine allows; it must outlive the segments. */
int segments_open(struct segments **out, const char *dir, const struct io_options *io, struct err *err);
/* Takes NULL. */
void segments_close(struct segments *s);

/* Say that an extent is in use. One that its file cannot hold takes no space: reading it fails. */
void segments_take(struct segments *s, struct extent x);
/* Choose free space for `bytes` (rounded up), growing a file or starting one. The caller has it until it gives it
 * back with segments_release. */
int segments_reserve(struct segments *s, int64_t bytes, struct extent *out, struct err *err);
/* Only after the transaction that dropped the extent's row has been committed. */
void segments_release(struct segments *s, struct extent x);

/* Write `bytes` at byte `at` of the extent; at, bytes and the address are multiples of EXTENT_ALIGN. Many bytes are in
 * flight in several pieces. */
int segments_write(struct segments *s, struct extent x, int64_t at, const void *data, int64_t bytes, struct err *err);
/* Make durable what was written and the files it was written to. After a failure nothing can be known about
 * what reached the disk: the caller must not write to this handle any more. */
int segments_sync(struct segments *s, struct err *err);

/* Read `bytes` at byte `at` of the extent. A file that is missing or ends early is ERR_DAMAGED. */
int segments_read(struct segments *s, struct extent x, int64_t at, void *out, int64_t bytes, struct err *err);

/* One of many reads. */
struct segment_read {
	struct extent x;
	int64_t at, bytes;     /* of the extent; bytes <= SEGMENT_READ_MOST */
};
/* A read of SEGMENT_READ_GOOD bytes is as fast as a larger one, and is looked at while the next ones come. */
enum { SEGMENT_READ_MOST = 4 << 20, SEGMENT_READ_GOOD = 256 << 10 };

/*
 * n reads, as many in flight as there may be. fn is called once for each that came whole, in any order, while others
 * are in flight; bytes are lent for the call. Not 0, with err set, ends it. After a failure of fn or of a read *failed
 * is its number, and nothing of this call is in flight.
 */
int segments_read_many(struct segments *s, const struct segment_read *reads, size_t n,
		       int (*fn)(void *ctx, size_t i, const uint8_t *bytes, struct err *err), void *ctx, size_t *failed,
		       struct err *err);

/* Reads that went to the files, and their bytes: with what alignment adds. */
void segments_counts(const struct segments *s, int64_t *n_reads, int64_t *bytes);

/* The file's name, for messages. Returns out. */
enum { SEGMENT_NAME_BYTES = 32 };
char *segment_name(int32_t segment, char out[SEGMENT_NAME_BYTES]);

/* The bytes of a segment file; 0: it is not there. */
int64_t segments_file_bytes(const struct segments *s, int32_t segment);

/* Files grow to no more than this in all, where what is asked for allows; 0: no limit. */
void segments_set_limit(struct segments *s, int64_t max_bytes);

void segments_sizes(const struct segments *s, int64_t *used_bytes, int64_t *file_bytes);

#endif
