/*
 * One safetensors file written from its first byte to its last, past the page cache where the file system can: what is put
 * is gathered in large aligned buffers, and while one of them is on its way to the disk the next is filled.
 *
 * The header is filled up with spaces to a multiple of SHARD_ALIGN, so that tensors of whole pages begin on pages and are
 * read without what lies beside them.
 */
#ifndef QUIRE_ENGINE_SHARD_WRITER_H
#define QUIRE_ENGINE_SHARD_WRITER_H

#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

enum { SHARD_ALIGN = 4096 };

struct shard_tensor {
	const char *name;    /* the caller's, until shard_writer_open returns */
	const char *dtype;   /* as safetensors spells it: "I32" */
	int n_dims;
	const int64_t *shape;
	uint64_t bytes;
};

struct shard_writer;

/* A new file for these tensors, in this order. The disk space is taken first. On error the file may be there, incomplete. */
int shard_writer_open(struct shard_writer **out, const char *path, const struct shard_tensor *tensors, size_t n,
		      struct err *err);
/* The next bytes of data, whose tensor they belong to being a matter of their place alone. */
int shard_writer_put(struct shard_writer *w, const void *data, size_t bytes, struct err *err);
/* All must have been put: cut to its length, synced, closed. With failed != 0 (something before went wrong) the file is
 * closed as it is, and that is returned. Takes NULL. */
int shard_writer_close(struct shard_writer *w, int failed, struct err *err);

/* Bytes of the file of such tensors. */
uint64_t shard_file_bytes(const struct shard_tensor *tensors, size_t n);

#endif
