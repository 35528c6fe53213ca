#include "engine/rates.h"

#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "config/pages.h"
#include "engine/checkpoint.h"
#include "engine/expert_reading.h"
#include "engine/internal.h"
#include "engine/noise.h"
#include "engine/noise_weight.h"
#include "offload/io.h"

enum {
	COLS = 6144,
	READ_BYTES = 256 << 20, /* beyond caches */
	ROWS = 2048, PROMPT = 512,
	TRIES = 5,
	DISK_READ = 32 << 20, N_UNDER_WAY = 2, N_READS = 16, /* of a disk, each as large as an expert */
};

/* A product of n rows with a weight of about so many bytes: exactly *bytes, scales included; the shortest time of some. */
static int time_product(struct engine *e, enum dtype dtype, size_t about, int64_t n, double *seconds, double *bytes, struct err *err)
{
	struct weight w = {.dtype = dtype, .rows = 1, .cols = COLS};
	float *x = xcalloc((size_t)n * COLS, sizeof *x), *y;
	void *memory = NULL;
	int rc;

	w.rows = (int32_t)(about / weight_row_bytes(&w));
	y = xmalloc((size_t)n * (size_t)w.rows, sizeof *y);
	rc = pages_resize(&memory, 0, noise_weight_bytes(&w), "a measurement", err);
	if (!rc) {
		noise_weight_fill(&w, memory, 1);
		for (size_t i = 0; i < (size_t)n * COLS; i++)
			x[i] = (float)(i % 31) - 15;
		*seconds = 0;
		for (int i = 0; i <= TRIES; i++) {
			int64_t from = clock_now_ns();
			double s;

			e->ops->matmul(&e->device, y, w.rows, x, COLS, &w, n, e->compute);
			s = clock_seconds_since(from);
			if (i && (i == 1 || s < *seconds))
				*seconds = s;
		}
		pages_free(memory, noise_weight_bytes(&w));
	}
	*bytes = (double)weight_full_bytes(&w);
	free(x);
	free(y);
	return rc;
}

int rates_read(struct engine *e, enum dtype dtype, double *bytes_per_s, struct err *err)
{
	double seconds, bytes;

	if (time_product(e, dtype, READ_BYTES, 1, &seconds, &bytes, err))
		return -1;
	*bytes_per_s = bytes / seconds;
	return 0;
}

int rates_compute(struct engine *e, double *flops, struct err *err)
{
	double seconds, bytes;

	if (time_product(e, DTYPE_BF16, (size_t)ROWS * COLS * sizeof(uint16_t), PROMPT, &seconds, &bytes, err))
		return -1;
	*flops = bytes * PROMPT / seconds; /* a bf16 is two bytes, and a multiply-add two operations */
	return 0;
}

/* N_READS reads at seeded places, N_UNDER_WAY at a time. */
static int time_reads(struct io *io, const struct io_file *f, char *memory, double *bytes_per_s, struct err *err)
{
	struct io_request all[N_UNDER_WAY] = {0}, *r;
	uint64_t places = f->bytes / DISK_READ;
	int64_t from = clock_now_ns();
	int rc = 0;

	for (int i = 0, done = 0; done < N_READS && !rc; ) {
		if (i < N_UNDER_WAY) {
			r = &all[i];
			r->buffer = memory + (size_t)i * DISK_READ;
		} else {
			r = io_wait(io, -1);
			rc = io_request_check(r, err);
			done++;
		}
		if (i < N_READS && !rc) {
			*r = (struct io_request){.op = IO_READ, .class = IO_CLASS_EXPERT, .file = f, .buffer = r->buffer, .bytes = DISK_READ,
						 .offset = noise_word(clock_now_ns() & 0xffff, (uint64_t)i) % places * DISK_READ};
			io_submit(io, &r, 1);
		}
		i++;
	}
	*bytes_per_s = (double)N_READS * DISK_READ / clock_seconds_since(from);
	return rc;
}

static int time_file(const char *path, double *bytes_per_s, struct err *err)
{
	const struct io_options opt = {.purpose = "a measurement", .piece_bytes = EXPERT_PIECE,
				       .depth = EXPERTS_IN_FLIGHT / EXPERT_PIECE};
	struct io *io = NULL;
	struct io_file f = {.fd = -1, .direct_fd = -1};
	char *memory = NULL;
	int rc = -1;

	if (!io_open(&f, path, IO_OPEN_DIRECT, err) && !io_new(&io, &opt, err) &&
	    (memory = io_buffer_new((size_t)N_UNDER_WAY * DISK_READ, "a measurement", err))) {
		memset(memory, 1, (size_t)N_UNDER_WAY * DISK_READ); /* its pages are there before anything is timed */
		rc = time_reads(io, &f, memory, bytes_per_s, err);
	}
	io_free(io);
	io_close(&f);
	free(memory);
	return rc;
}

/* Seconds that a drive takes for all that it has of these files, and how much that is; files before `first` are of others. */
static int time_drive(const struct checkpoint *files, size_t first, double *bytes, double *seconds, struct err *err)
{
	const struct io_file *largest = &files->shards[first].file;
	dev_t drive = largest->device;
	double rate;

	*bytes = 0;
	for (size_t i = first; i < files->n_shards; i++) {
		const struct io_file *f = &files->shards[i].file;

		if (f->device != drive)
			continue;
		*bytes += (double)f->bytes;
		largest = f->bytes > largest->bytes ? f : largest;
	}
	if (largest->bytes < (uint64_t)N_UNDER_WAY * DISK_READ)
		return err_set(err, ERR_NOT_FOUND, "%s has no file large enough to measure a disk with; the largest is %s", files->dir,
			       largest->path);
	if (time_file(largest->path, &rate, err))
		return -1;
	*seconds = *bytes / rate;
	return 0;
}

int rates_disk(const char *dir, double *bytes_per_s, struct err *err)
{
	double all = 0, longest = 0, bytes = 0, seconds = 0;
	struct checkpoint *files;
	int rc = 0;

	if (checkpoint_open(&files, dir, err))
		return -1;
	for (size_t i = 0; i < files->n_shards && !rc; i++) {
		size_t k = 0;

		while (k < i && files->shards[k].file.device != files->shards[i].file.device)
			k++;
		if (k < i)
			continue;
		rc = time_drive(files, i, &bytes, &seconds, err);
		all += bytes;
		longest = seconds > longest ? seconds : longest;
	}
	if (!rc && longest > 0)
		*bytes_per_s = all / longest;
	else if (!rc)
		rc = err_set(err, ERR_NOT_FOUND, "%s has no weights to measure a disk with", dir);
	checkpoint_close(files);
	return rc;
}
