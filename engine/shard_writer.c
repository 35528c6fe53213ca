#include "engine/shard_writer.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/mem.h"
#include "offload/io.h"

enum { N_BUFFERS = 8, BUFFER = 4 << 20, LENGTH_BYTES = 8 };

struct shard_writer {
	struct io *io;
	struct io_file file;
	char *memory;                    /* [N_BUFFERS, BUFFER] */
	struct io_request requests[N_BUFFERS];
	int at;                          /* the buffer that is being filled */
	size_t filled;
	uint64_t written, bytes;         /* handed to the disk; of the whole file */
};

/* Length, JSON, spaces: a multiple of SHARD_ALIGN. To be freed. */
static char *header_of(const struct shard_tensor *tensors, size_t n, size_t *bytes)
{
	json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
	uint64_t at = 0, length;
	char *text, *header;
	size_t used;

	for (size_t i = 0; i < n; i++) {
		const struct shard_tensor *t = &tensors[i];
		json_t *shape = json_array();

		for (int d = 0; d < t->n_dims; d++)
			json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
		json_object_set_new(root, t->name, json_pack("{s:s, s:o, s:[I, I]}", "dtype", t->dtype, "shape", shape, "data_offsets",
							     (json_int_t)at, (json_int_t)(at + t->bytes)));
		at += t->bytes;
	}
	text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (!text)
		abort();
	used = strlen(text);
	*bytes = (LENGTH_BYTES + used + SHARD_ALIGN - 1) / SHARD_ALIGN * SHARD_ALIGN;
	length = *bytes - LENGTH_BYTES;
	header = xmalloc(*bytes, 1);
	memset(header, ' ', *bytes);
	for (int i = 0; i < LENGTH_BYTES; i++)
		header[i] = (char)(length >> 8 * i);
	memcpy(header + LENGTH_BYTES, text, used);
	free(text);
	return header;
}

static uint64_t data_bytes(const struct shard_tensor *tensors, size_t n)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < n; i++)
		bytes += tensors[i].bytes;
	return bytes;
}

uint64_t shard_file_bytes(const struct shard_tensor *tensors, size_t n)
{
	size_t header;

	free(header_of(tensors, n, &header));
	return header + data_bytes(tensors, n);
}

/* With the mode that the umask leaves, and its length, by which the file system says how it is accessed directly. */
static int create(const char *path, uint64_t bytes, struct err *err)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666), failed = 0;

	if (fd < 0)
		return err_errno(err, errno, "create %s", path);
	while (!failed && ftruncate(fd, (off_t)bytes))
		failed = errno == EINTR ? 0 : err_errno(err, errno, "extend %s to %" PRIu64 " bytes", path, bytes);
	close(fd);
	return failed;
}

int shard_writer_open(struct shard_writer **out, const char *path, const struct shard_tensor *tensors, size_t n,
		      struct err *err)
{
	const struct io_options opt = {.purpose = "a checkpoint"};
	struct shard_writer *w = xcalloc(1, sizeof *w);
	size_t header_bytes;
	char *header = header_of(tensors, n, &header_bytes);
	int failed;

	w->file = (struct io_file){.fd = -1, .direct_fd = -1};
	w->bytes = header_bytes + data_bytes(tensors, n);
	w->memory = io_buffer_new((size_t)N_BUFFERS * BUFFER, "writing a checkpoint", err);
	failed = !w->memory || io_new(&w->io, &opt, err) ||
		 create(path, w->bytes, err) || io_open(&w->file, path, IO_OPEN_WRITE | IO_OPEN_DIRECT, err) ||
		 io_preallocate(&w->file, 0, w->bytes, err) || shard_writer_put(w, header, header_bytes, err);
	free(header);
	if (failed)
		return shard_writer_close(w, -1, err);
	*out = w;
	return 0;
}

/* A buffer can be filled again. */
static int await(struct shard_writer *w, int i, struct err *err)
{
	struct io_request *r = &w->requests[i];

	if (r->status == IO_NEW)
		return 0;
	if (io_finish(w->io, r, err))
		return -1;
	r->status = IO_NEW;
	return 0;
}

/* The buffer that is filled goes to the disk, and the next is waited for. */
static int flush(struct shard_writer *w, struct err *err)
{
	struct io_request *r = &w->requests[w->at];
	/* Direct writes come in whole blocks; what is too much is cut off at the end. */
	size_t block = w->file.align > SHARD_ALIGN ? w->file.align : SHARD_ALIGN, whole = (w->filled + block - 1) / block * block;

	memset((char *)r->buffer + w->filled, 0, whole - w->filled);
	*r = (struct io_request){.op = IO_WRITE, .class = IO_CLASS_WRITE, .file = &w->file, .offset = w->written, .bytes = whole,
				 .buffer = r->buffer};
	io_submit(w->io, &r, 1);
	w->written += w->filled;
	w->filled = 0;
	w->at = (w->at + 1) % N_BUFFERS;
	return await(w, w->at, err);
}

int shard_writer_put(struct shard_writer *w, const void *data, size_t bytes, struct err *err)
{
	const char *from = data;

	assert(w->written + w->filled + bytes <= w->bytes);
	while (bytes) {
		size_t part = BUFFER - w->filled < bytes ? BUFFER - w->filled : bytes;

		w->requests[w->at].buffer = w->memory + (size_t)w->at * BUFFER;
		memcpy((char *)w->requests[w->at].buffer + w->filled, from, part);
		w->filled += part;
		from += part;
		bytes -= part;
		if (w->filled == BUFFER && flush(w, err))
			return -1;
	}
	return 0;
}

static int finish(struct shard_writer *w, struct err *err)
{
	assert(w->written + w->filled == w->bytes);
	if (w->filled && flush(w, err))
		return -1;
	for (int i = 0; i < N_BUFFERS; i++)
		if (await(w, i, err))
			return -1;
	while (ftruncate(w->file.fd, (off_t)w->bytes))
		if (errno != EINTR)
			return err_errno(err, errno, "cut %s to its length", w->file.path);
	return io_sync_file(&w->file, err);
}

int shard_writer_close(struct shard_writer *w, int failed, struct err *err)
{
	if (!w)
		return failed;
	if (!failed)
		failed = finish(w, err);
	io_free(w->io);
	io_close(&w->file);
	free(w->memory);
	free(w);
	return failed;
}
