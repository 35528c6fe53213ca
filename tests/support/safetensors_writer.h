/*
 * Safetensors files for tests: tensors are added, changed or removed by name, then written in the order they were
 * added. What a test wants to break in the file itself it breaks in the bytes.
 */
#ifndef QUIRE_TESTS_SAFETENSORS_WRITER_H
#define QUIRE_TESTS_SAFETENSORS_WRITER_H

#include <stddef.h>
#include <stdint.h>

struct written_tensor {
	char *name;
	char dtype[16];
	int n_dims;
	int64_t shape[8];
	unsigned char *data;
	size_t bytes;
};

struct safetensors_writer {
	struct written_tensor *tensors;
	size_t n_tensors, room;
};

/* All functions end the test program on an error: nothing it would show would mean anything. */

/* data NULL: zeros. Returns the tensor; it stays where it is until the next one is added or removed. */
struct written_tensor *writer_add(struct safetensors_writer *w, const char *name, const char *dtype, int n_dims,
				  const int64_t *shape, const void *data, size_t bytes);
/* The tensor must be there. */
struct written_tensor *writer_find(struct safetensors_writer *w, const char *name);
void writer_remove(struct safetensors_writer *w, const char *name);
/* Add every tensor of a file. */
void writer_load(struct safetensors_writer *w, const char *path);
/* The file's bytes, to be freed. */
unsigned char *writer_bytes(const struct safetensors_writer *w, size_t *n);
void writer_save(const struct safetensors_writer *w, const char *path);
void writer_free(struct safetensors_writer *w);

/* A file of the given header and data bytes of zeros. To be freed. */
unsigned char *safetensors_raw(const char *header, size_t data_bytes, size_t *n);

#endif
