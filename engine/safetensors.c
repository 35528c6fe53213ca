#include "engine/safetensors.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "config/mem.h"

enum { LENGTH_BYTES = 8, MAX_HEADER = 100000000 };

/* Every dtype of the format, with its size: shape times size must be the tensor's bytes, wanted or not. */
static const struct {
	const char *name;
	unsigned bits;
} dtypes[] = {
	{"BOOL", 8},      {"U8", 8},       {"I8", 8},           {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8},
	{"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4},      {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U16", 16},
	{"I16", 16},      {"F16", 16},     {"BF16", 16},        {"U32", 32},        {"I32", 32},    {"F32", 32},
	{"U64", 64},      {"I64", 64},     {"F64", 64},         {"C64", 64},
};

/* 0 for a dtype that is not in the table. */
static unsigned dtype_bits(const char *name)
{
	for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
		if (!strcmp(dtypes[i].name, name))
			return dtypes[i].bits;
	return 0;
}

char *tensor_shape_text(char out[TENSOR_SHAPE_TEXT], const struct tensor *t)
{
	size_t n = 1;

	strcpy(out, "[");
	for (int i = 0; i < t->n_dims; i++)
		n += (size_t)snprintf(out + n, TENSOR_SHAPE_TEXT - n, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
	snprintf(out + n, TENSOR_SHAPE_TEXT - n, "]");
	return out;
}

/* The parts of an entry are read by functions that say what is wrong; parse_tensor adds file and tensor. */

static int read_dtype(struct tensor *t, const json_t *entry, struct err *err)
{
	const json_t *dtype = json_object_get(entry, "dtype");

	if (!json_is_string(dtype))
		return err_set(err, ERR_FORMAT, "dtype is %s, a string is expected", json_kind(dtype));
	if (!json_string_length(dtype) || json_string_length(dtype) >= sizeof t->dtype)
		return err_set(err, ERR_FORMAT, "dtype \"%s\" is no name of a dtype", json_string_value(dtype));
	strcpy(t->dtype, json_string_value(dtype));
	return 0;
}

static int read_shape(struct tensor *t, const json_t *entry, struct err *err)
{
	const json_t *shape = json_object_get(entry, "shape");

	if (!json_is_array(shape))
		return err_set(err, ERR_FORMAT, "shape is %s, an array is expected", json_kind(shape));
	if (json_array_size(shape) > TENSOR_MAX_DIMS)
		return err_set(err, ERR_FORMAT, "shape has %zu dimensions, at most %d are read", json_array_size(shape),
			       TENSOR_MAX_DIMS);
	t->n_dims = (int)json_array_size(shape);
	for (int i = 0; i < t->n_dims; i++) {
		const json_t *dim = json_array_get(shape, (size_t)i);

		if (!json_is_integer(dim))
			return err_set(err, ERR_FORMAT, "dimension %d is %s, an integer is expected", i, json_kind(dim));
		t->shape[i] = json_integer_value(dim);
		if (t->shape[i] < 0)
			return err_set(err, ERR_FORMAT, "dimension %d is %lld", i, (long long)t->shape[i]);
	}
	return 0;
}

static int read_offsets(struct tensor *t, const json_t *entry, uint64_t data_bytes, struct err *err)
{
	const json_t *offsets = json_object_get(entry, "data_offsets");
	json_int_t at[2];

	if (!json_is_array(offsets) || json_array_size(offsets) != 2)
		return err_set(err, ERR_FORMAT, "data_offsets is not a pair of integers");
	for (int i = 0; i < 2; i++) {
		const json_t *offset = json_array_get(offsets, (size_t)i);

		if (!json_is_integer(offset))
			return err_set(err, ERR_FORMAT, "data_offsets is not a pair of integers");
		at[i] = json_integer_value(offset);
	}
	if (at[0] < 0 || at[1] < at[0])
		return err_set(err, ERR_FORMAT, "data_offsets run backwards, from %lld to %lld", (long long)at[0],
			       (long long)at[1]);
	if ((uint64_t)at[1] > data_bytes)
		return err_set(err, ERR_FORMAT, "its data end at byte %lld of the data, but the file holds only %llu "
			       "of them; it is truncated: fetch it again", (long long)at[1],
			       (unsigned long long)data_bytes);
	t->offset = (uint64_t)at[0];
	t->bytes = (uint64_t)(at[1] - at[0]);
	return 0;
}

/* Bytes that shape and dtype ask for; -1 when there is no such number. */
static int wanted_bytes(const struct tensor *t, unsigned bits, uint64_t *bytes)
{
	uint64_t n = bits;
	int empty = 0, overflow = 0;

	/* A zero empties the tensor, but does not excuse the other dimensions: some readers multiply them first. */
	for (int i = 0; i < t->n_dims; i++) {
		if (t->shape[i])
			overflow |= __builtin_mul_overflow(n, (uint64_t)t->shape[i], &n);
		else
			empty = 1;
	}
	*bytes = empty ? 0 : n / 8;
	return overflow || (!empty && n % 8) ? -1 : 0;
}

static int check_bytes(const struct tensor *t, struct err *err)
{
	char shape[TENSOR_SHAPE_TEXT];
	unsigned bits = dtype_bits(t->dtype);
	uint64_t bytes;

	if (!bits)
		return 0;
	if (wanted_bytes(t, bits, &bytes))
		return err_set(err, ERR_FORMAT, "shape %s of %s is no whole number of bytes below 2^61",
			       tensor_shape_text(shape, t), t->dtype);
	if (bytes != t->bytes)
		return err_set(err, ERR_FORMAT, "shape %s of %s needs %llu bytes, data_offsets give %llu",
			       tensor_shape_text(shape, t), t->dtype, (unsigned long long)bytes,
			       (unsigned long long)t->bytes);
	return 0;
}

static int only_known_members(const json_t *entry, struct err *err)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)entry, key, value)
		if (strcmp(key, "dtype") && strcmp(key, "shape") && strcmp(key, "data_offsets"))
			return err_set(err, ERR_FORMAT, "unknown member \"%s\"", key);
	return 0;
}

static int parse_tensor(struct tensor *t, const char *path, const char *name, const json_t *entry, uint64_t data_bytes,
			struct err *err)
{
	if (!json_is_object(entry))
		return err_set(err, ERR_FORMAT, "%s: tensor %s is %s, an object is expected", path, name,
			       json_kind(entry));
	if (only_known_members(entry, err) || read_dtype(t, entry, err) || read_shape(t, entry, err) ||
	    read_offsets(t, entry, data_bytes, err) || check_bytes(t, err))
		return err_wrap(err, "%s: tensor %s", path, name);
	t->name = xstrdup(name);
	return 0;
}

static int check_metadata(const char *path, const json_t *metadata, struct err *err)
{
	const char *key;
	json_t *value;

	if (!json_is_object(metadata))
		return err_set(err, ERR_FORMAT, "%s: __metadata__ is %s, an object is expected", path,
			       json_kind(metadata));
	json_object_foreach((json_t *)metadata, key, value)
		if (!json_is_string(value))
			return err_set(err, ERR_FORMAT, "%s: __metadata__.%s is %s, a string is expected", path, key,
				       json_kind(value));
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	const struct tensor *x = a, *y = b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	if (x->bytes != y->bytes)
		return x->bytes < y->bytes ? -1 : 1;
	return strcmp(x->name, y->name);
}

/* Tensors in the order of their bytes: each must begin where the one before it ended. */
static int check_cover(const struct safetensors *s, const char *path, struct err *err)
{
	uint64_t end = 0;

	for (size_t i = 0; i < s->n_tensors; i++) {
		const struct tensor *t = &s->tensors[i];

		if (t->offset < end)
			return err_set(err, ERR_FORMAT, "%s: tensors %s and %s overlap: one ends at byte %llu of the data, "
				       "the other begins at %llu", path, t[-1].name, t->name, (unsigned long long)end,
				       (unsigned long long)t->offset);
		if (t->offset > end)
			return err_set(err, ERR_FORMAT, "%s: bytes %llu to %llu of the data, before tensor %s, belong to "
				       "no tensor", path, (unsigned long long)end, (unsigned long long)t->offset,
				       t->name);
		end = t->offset + t->bytes;
	}
	if (end != s->data_bytes)
		return err_set(err, ERR_FORMAT, "%s: its tensors end at byte %llu of the data, but the file goes on to "
			       "byte %llu", path, (unsigned long long)end, (unsigned long long)s->data_bytes);
	return 0;
}

static void free_tensors(struct safetensors *s)
{
	for (size_t i = 0; i < s->n_tensors; i++)
		free(s->tensors[i].name);
	free(s->tensors);
	s->tensors = NULL;
	s->n_tensors = 0;
}

static int parse_entries(struct safetensors *s, const char *path, const json_t *header, size_t header_bytes,
			 struct err *err)
{
	const char *name;
	json_t *entry;

	if (!json_is_object(header))
		return err_set(err, ERR_FORMAT, "%s: its header is %s, an object is expected", path, json_kind(header));
	s->tensors = xcalloc(json_object_size(header), sizeof *s->tensors);
	json_object_foreach((json_t *)header, name, entry) {
		if (!strcmp(name, "__metadata__")) {
			if (check_metadata(path, entry, err))
				return -1;
			continue;
		}
		if (parse_tensor(&s->tensors[s->n_tensors], path, name, entry, s->data_bytes, err))
			return -1;
		s->n_tensors++;
	}
	qsort(s->tensors, s->n_tensors, sizeof *s->tensors, by_offset);
	if (check_cover(s, path, err))
		return -1;
	for (size_t i = 0; i < s->n_tensors; i++) {
		s->tensors[i].offset += LENGTH_BYTES + header_bytes;
		s->tensors[i].file = &s->file;
	}
	return 0;
}

int safetensors_parse(struct safetensors *s, const char *path, const char *header, size_t bytes, uint64_t data_bytes,
		      struct err *err)
{
	json_t *json;
	int failed;

	s->n_tensors = 0;
	s->tensors = NULL;
	s->data_bytes = data_bytes;
	if (json_parse(&json, path, header, bytes, err))
		return err_wrap(err, "safetensors header");
	failed = parse_entries(s, path, json, bytes, err);
	json_decref(json);
	if (failed)
		free_tensors(s);
	return failed;
}

/* Length of the header, checked against the file before anything of that size is asked for. */
static int read_length(const struct io_file *f, uint64_t *length, struct err *err)
{
	unsigned char raw[LENGTH_BYTES];
	uint64_t n = 0;

	if (!f->bytes)
		return err_set(err, ERR_FORMAT, "%s is empty (0 bytes); fetch it again", f->path);
	if (f->bytes < LENGTH_BYTES)
		return err_set(err, ERR_FORMAT, "%s has %llu bytes, a safetensors file has at least %d; fetch it again",
			       f->path, (unsigned long long)f->bytes, LENGTH_BYTES);
	if (io_read_full(f, raw, 0, sizeof raw, err))
		return -1;
	for (int i = LENGTH_BYTES - 1; i >= 0; i--)
		n = n << 8 | raw[i];
	if (!n)
		return err_set(err, ERR_FORMAT, "%s: its header has 0 bytes", f->path);
	if (n > MAX_HEADER)
		return err_set(err, ERR_FORMAT, "%s: its header claims %llu bytes, at most %d are read; this is no "
			       "safetensors file", f->path, (unsigned long long)n, MAX_HEADER);
	if (n > f->bytes - LENGTH_BYTES)
		return err_set(err, ERR_FORMAT, "%s: its header claims %llu bytes, but only %llu follow; the file is "
			       "truncated: fetch it again", f->path, (unsigned long long)n,
			       (unsigned long long)(f->bytes - LENGTH_BYTES));
	*length = n;
	return 0;
}

static int read_header(struct safetensors *s, struct err *err)
{
	uint64_t n = 0;
	char *header;
	int failed;

	if (read_length(&s->file, &n, err))
		return -1;
	header = xmalloc((size_t)n, 1);
	failed = io_read_full(&s->file, header, LENGTH_BYTES, (size_t)n, err) ||
		 safetensors_parse(s, s->file.path, header, (size_t)n, s->file.bytes - LENGTH_BYTES - n, err);
	free(header);
	return failed ? -1 : 0;
}

int safetensors_open(struct safetensors *s, const char *path, struct err *err)
{
	*s = (struct safetensors){.file.fd = -1};
	if (io_open_regular(&s->file, path, err))
		return -1;
	if (read_header(s, err)) {
		safetensors_close(s);
		return -1;
	}
	return 0;
}

void safetensors_close(struct safetensors *s)
{
	free_tensors(s);
	io_close(&s->file);
}
