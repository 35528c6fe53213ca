#include "tests/support/safetensors_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/safetensors.h"

static void die(const char *what)
{
	fprintf(stderr, "safetensors writer: %s\n", what);
	abort();
}

struct written_tensor *writer_add(struct safetensors_writer *w, const char *name, const char *dtype, int n_dims,
				  const int64_t *shape, const void *data, size_t bytes)
{
	struct written_tensor *t;

	if (w->n_tensors == w->room) {
		w->room = w->room ? 2 * w->room : 64;
		w->tensors = xrealloc(w->tensors, w->room, sizeof *w->tensors);
	}
	t = &w->tensors[w->n_tensors++];
	*t = (struct written_tensor){.name = xstrdup(name), .n_dims = n_dims, .bytes = bytes};
	snprintf(t->dtype, sizeof t->dtype, "%s", dtype);
	if (n_dims)
		memcpy(t->shape, shape, (size_t)n_dims * sizeof *shape);
	t->data = xcalloc(bytes, 1);
	if (data)
		memcpy(t->data, data, bytes);
	return t;
}

static size_t index_of(const struct safetensors_writer *w, const char *name)
{
	for (size_t i = 0; i < w->n_tensors; i++)
		if (!strcmp(w->tensors[i].name, name))
			return i;
	die(name);
	return 0;
}

struct written_tensor *writer_find(struct safetensors_writer *w, const char *name)
{
	return &w->tensors[index_of(w, name)];
}

static void free_tensor(struct written_tensor *t)
{
	free(t->name);
	free(t->data);
}

void writer_remove(struct safetensors_writer *w, const char *name)
{
	size_t i = index_of(w, name);

	free_tensor(&w->tensors[i]);
	memmove(&w->tensors[i], &w->tensors[i + 1], (w->n_tensors - i - 1) * sizeof *w->tensors);
	w->n_tensors--;
}

void writer_load(struct safetensors_writer *w, const char *path)
{
	struct safetensors s;
	struct err err;

	if (safetensors_open(&s, path, &err))
		die(err.text);
	for (size_t i = 0; i < s.n_tensors; i++) {
		const struct tensor *t = &s.tensors[i];
		struct written_tensor *to = writer_add(w, t->name, t->dtype, t->n_dims, t->shape, NULL,
						       (size_t)t->bytes);

		if (io_read_full(&s.file, to->data, t->offset, to->bytes, &err))
			die(err.text);
	}
	safetensors_close(&s);
}

unsigned char *safetensors_raw(const char *header, size_t data_bytes, size_t *n)
{
	size_t length = strlen(header);
	unsigned char *file = xcalloc(8 + length + data_bytes, 1);

	for (int i = 0; i < 8; i++)
		file[i] = (unsigned char)((uint64_t)length >> 8 * i);
	memcpy(file + 8, header, length);
	*n = 8 + length + data_bytes;
	return file;
}

unsigned char *writer_bytes(const struct safetensors_writer *w, size_t *n)
{
	char *header = NULL;
	size_t length = 0, data = 0, at;
	FILE *f = open_memstream(&header, &length);
	unsigned char *file;

	fputc('{', f);
	for (size_t i = 0; i < w->n_tensors; i++) {
		const struct written_tensor *t = &w->tensors[i];

		fprintf(f, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", t->name, t->dtype);
		for (int d = 0; d < t->n_dims; d++)
			fprintf(f, "%s%lld", d ? "," : "", (long long)t->shape[d]);
		fprintf(f, "],\"data_offsets\":[%zu,%zu]}", data, data + t->bytes);
		data += t->bytes;
	}
	fputc('}', f);
	if (fclose(f))
		die("out of memory");
	file = safetensors_raw(header, data, n);
	at = *n - data;
	for (size_t i = 0; i < w->n_tensors; i++) {
		memcpy(file + at, w->tensors[i].data, w->tensors[i].bytes);
		at += w->tensors[i].bytes;
	}
	free(header);
	return file;
}

void writer_save(const struct safetensors_writer *w, const char *path)
{
	size_t n;
	unsigned char *bytes = writer_bytes(w, &n);
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(bytes, 1, n, f) != n || fclose(f))
		die(path);
	free(bytes);
}

void writer_free(struct safetensors_writer *w)
{
	for (size_t i = 0; i < w->n_tensors; i++)
		free_tensor(&w->tensors[i]);
	free(w->tensors);
	*w = (struct safetensors_writer){0};
}
