/*
 * One safetensors file: its header, read and checked to the last byte, and its tensors by range.
 *
 *   u64 N, little-endian | N bytes of JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]} | data
 *
 * What is accepted is a file whose tensors cover the data exactly: the first begins at 0, each begins where one
 * before it ended, the last ends at the end of the file, and each has as many bytes as its shape and dtype say.
 * So a file cut short anywhere, or longer than it says, is refused before any weight is read. Zero dimensions and
 * scalars are legal; a dtype that this reader has never heard of is carried along, and refused by whoever wants
 * the tensor.
 */
#ifndef QUIRE_ENGINE_SAFETENSORS_H
#define QUIRE_ENGINE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "offload/io.h"

enum { TENSOR_MAX_DIMS = 8, TENSOR_DTYPE_BYTES = 16 };

struct tensor {
	char *name;
	char dtype[TENSOR_DTYPE_BYTES]; /* as the file spells it: "BF16", "F8_E4M3" */
	int n_dims;
	int64_t shape[TENSOR_MAX_DIMS];
	uint64_t offset, bytes;         /* in the file, from its first byte */
	const struct io_file *file;
};

struct safetensors {
	struct io_file file;
	size_t n_tensors;
	struct tensor *tensors;         /* in the order of their bytes */
	uint64_t data_bytes;
};

/* Check a header of `bytes` bytes that describes data_bytes bytes of data; `path` opens every sentence, and tensors
 * get offsets as in a file of that length. s->file is not touched. On error s holds nothing. */
int safetensors_parse(struct safetensors *s, const char *path, const char *header, size_t bytes, uint64_t data_bytes,
		      struct err *err);

/* Open the file at path and parse its header. The tensors point into *s: it must not be moved. */
int safetensors_open(struct safetensors *s, const char *path, struct err *err);
void safetensors_close(struct safetensors *s);

/* "[6144, 2048]", for sentences. Returns out. */
enum { TENSOR_SHAPE_TEXT = TENSOR_MAX_DIMS * 22 + 3 };
char *tensor_shape_text(char out[TENSOR_SHAPE_TEXT], const struct tensor *t);

#endif
