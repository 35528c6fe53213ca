#include "engine/rates.h"

#include <stdlib.h>

#include "config/clock.h"
#include "config/pages.h"
#include "engine/checkpoint.h"
#include "engine/internal.h"
#include "engine/noise.h"
#include "offload/io.h"

enum {
	COLS = 6144,
	READ_BYTES = 256 << 20, /* beyond caches */
	ROWS = 2048, PROMPT = 512,
	TRIES = 5,
	PIECE = 4 << 20, DEPTH = 16, N_READS = 128,
};

/* A product of n rows with a weight of `rows` rows; the shortest time of some. */
static int time_product(struct engine *e, int32_t rows, int64_t n, double *seconds, struct err *err)
{
	size_t bytes = (size_t)rows * COLS * sizeof(uint16_t);
	float *x = xcalloc((size_t)n * COLS, sizeof *x), *y = xmalloc((size_t)n * (size_t)rows, sizeof *y);
	void *data = NULL;
	struct weight w = {.dtype = DTYPE_BF16, .rows = rows, .cols = COLS};
	int rc = pages_resize(&data, 0, bytes, "a measurement", err);

	if (!rc) {
		/* bf16 values from 1 to 2 of either sign. */
		for (size_t i = 0; i < bytes / sizeof(uint64_t); i++)
			((uint64_t *)data)[i] = (noise_word(1, i) & 0x807f807f807f807f) | 0x3f803f803f803f80;
		for (size_t i = 0; i < (size_t)n * COLS; i++)
			x[i] = (float)(i % 31) - 15;
		w.data = data;
		*seconds = 0;
		for (int i = 0; i <= TRIES; i++) {
			int64_t from = clock_now_ns();
			double s;

			e->ops->matmul(&e->device, y, rows, x, COLS, &w, n, e->compute);
			s = clock_seconds_since(from);
			if (i && (i == 1 || s < *seconds))
				*seconds = s;
		}
		pages_free(data, bytes);
	}
	free(x);
	free(y);
	return rc;
}

int rates_read(struct engine *e, double *bytes_per_s, struct err *err)
{
	int32_t rows = READ_BYTES / (COLS * (int32_t)sizeof(uint16_t));
	double seconds;

	if (time_product(e, rows, 1, &seconds, err))
		return -1;
	*bytes_per_s = (double)rows * COLS * sizeof(uint16_t) / seconds;
	return 0;
}

int rates_compute(struct engine *e, double *flops, struct err *err)
{
	double seconds;

	if (time_product(e, ROWS, PROMPT, &seconds, err))
		return -1;
	*flops = 2.0 * ROWS * PROMPT * COLS / seconds;
	return 0;
}

/* N_READS reads of PIECE bytes at seeded places, DEPTH at a time. */
static int time_reads(struct io *io, const struct io_file *f, char *memory, double *bytes_per_s, struct err *err)
{
	struct io_request all[DEPTH] = {0}, *r;
	uint64_t places = f->bytes / PIECE;
	int64_t from = clock_now_ns();
	int rc = 0;

	for (int i = 0, done = 0; done < N_READS && !rc; ) {
		if (i < DEPTH) {
			r = &all[i];
			r->buffer = memory + (size_t)i * PIECE;
		} else {
			r = io_wait(io, -1);
			rc = io_request_check(r, err);
			done++;
		}
		if (i < N_READS && !rc) {
			*r = (struct io_request){.op = IO_READ, .class = IO_CLASS_EXPERT, .file = f, .buffer = r->buffer,
						 .bytes = PIECE, .offset = noise_word(clock_now_ns() & 0xffff, (uint64_t)i) % places * PIECE};
			io_submit(io, &r, 1);
		}
		i++;
	}
	*bytes_per_s = (double)N_READS * PIECE / clock_seconds_since(from);
	return rc;
}

int rates_disk(const char *dir, double *bytes_per_s, struct err *err)
{
	const struct io_options opt = {.purpose = "a measurement", .depth = DEPTH};
	const struct safetensors *largest = NULL;
	struct checkpoint *files;
	struct io *io = NULL;
	struct io_file f = {.fd = -1, .direct_fd = -1};
	char *memory = NULL;
	int rc = -1;

	if (checkpoint_open(&files, dir, err))
		return -1;
	for (size_t i = 0; i < files->n_shards; i++)
		if (!largest || files->shards[i].file.bytes > largest->file.bytes)
			largest = &files->shards[i];
	if (!largest || largest->file.bytes < (uint64_t)DEPTH * PIECE)
		err_set(err, ERR_NOT_FOUND, "%s has no file large enough to measure a disk with", dir);
	else if (!io_open(&f, largest->file.path, IO_OPEN_DIRECT, err) && !io_new(&io, &opt, err) &&
		 (memory = io_buffer_new((size_t)DEPTH * PIECE, "a measurement", err)))
		rc = time_reads(io, &f, memory, bytes_per_s, err);
	io_free(io);
	io_close(&f);
	free(memory);
	checkpoint_close(files);
	return rc;
}
