/*
 * Random reads of 1 to 4 MiB, as experts are read, by the engine and by the plainest loops that could do the same: a
 * bare io_uring and bare threads that pread, both O_DIRECT, at several depths. Their best is the limit. All in turn in
 * the same rounds, since a disk has moods; medians of ROUNDS rounds.
 *
 *   io.uring_over_raw, io.pread_over_raw   bytes a second of the engine, over the best raw rate of the same run
 *   io.cpu_per_gbps                        percent of one core, kernel's work included, for each GB/s, on io_uring
 *   io.raw                                 one line for each raw loop, to see what the best stands on
 *
 * The file is QUIRE_BENCH_IO_BYTES long, 4 GiB unless set (a multiple of 64 MiB; 268435456 for a quick check), below
 * $TMPDIR or /tmp: both must be on the disk that is asked about.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/mem.h"
#include "offload/io.h"
#include "tests/support/measure.h"
#include "tests/support/raw_reads.h"
#include "tests/support/temp_dir.h"

#define FILE_BYTES ((uint64_t)4 << 30)

enum { ROUNDS = 7, MB = 1 << 20, LARGEST = 4 * MB, N_READS = 320, DEPTH_MOST = 32, STEP = 64 * MB };

enum way { RAW_RING, RAW_THREADS, RING, THREADS };

struct work {
	enum way way;
	int depth;               /* reads at a time, or threads */
	struct io *io;
	double bytes, cpu_s;     /* of all rounds */
};

static struct io_file file;
static void *memory[DEPTH_MOST];
static uint64_t seed;

static void fail(const char *what, int number)
{
	struct err err = {0};

	err_errno(&err, number, "%s", what);
	measure_fail(&err);
}

static uint64_t any(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed >> 11;
}

/* Other reads every time: nobody finds them in a cache of the disk. Of 4 KiB steps, with all lengths alike. */
static double choose(struct raw_read *reads)
{
	double bytes = 0;

	for (int i = 0; i < N_READS; i++) {
		reads[i].fd = file.direct_fd;
		reads[i].bytes = (uint32_t)(MB + any() % (LARGEST - MB + 1) / 4096 * 4096);
		reads[i].offset = any() % (file.bytes - reads[i].bytes) / 4096 * 4096;
		bytes += reads[i].bytes;
	}
	return bytes;
}

struct raw_thread {
	pthread_t thread;
	const struct raw_read *reads;
	void *memory;
	atomic_int *next;
};

static void *raw_thread(void *arg)
{
	struct raw_thread *t = arg;
	int i;

	while ((i = atomic_fetch_add(t->next, 1)) < N_READS)
		if (pread(file.direct_fd, t->memory, t->reads[i].bytes, (off_t)t->reads[i].offset) != t->reads[i].bytes)
			fail("raw read", errno);
	return NULL;
}

static void raw_threads(const struct raw_read *reads, int n)
{
	struct raw_thread t[DEPTH_MOST];
	atomic_int next = 0;

	for (int i = 0; i < n; i++) {
		t[i] = (struct raw_thread){.reads = reads, .memory = memory[i], .next = &next};
		if ((errno = pthread_create(&t[i].thread, NULL, raw_thread, &t[i])))
			fail("thread", errno);
	}
	for (int i = 0; i < n; i++)
		pthread_join(t[i].thread, NULL);
}

static struct io *new_engine(const struct work *w)
{
	struct io_options opt = {
		.purpose = "a benchmark's file", .choice = w->way == RING ? IO_URING : IO_PREAD
	};
	struct err err = {0};
	struct io *io;

	if (w->way == THREADS)
		opt.n_threads = w->depth;
	else
		opt.depth = w->depth;
	if (io_new(&io, &opt, &err))
		measure_fail(&err);
	io_use_file(io, &file);
	for (int i = 0; i < DEPTH_MOST; i++)
		io_use_buffer(io, memory[i], LARGEST);
	return io;
}

/* As the experts' tier does it: some requests at hand, one more whenever one comes back. */
static void engine(struct io *io, const struct raw_read *reads)
{
	struct io_request requests[DEPTH_MOST], *list[DEPTH_MOST], *back;
	struct err err = {0};
	int n = 0;

	for (; n < DEPTH_MOST; n++) {
		requests[n] = (struct io_request){
			.op = IO_READ, .class = IO_CLASS_EXPERT, .file = &file, .offset = reads[n].offset,
			.bytes = reads[n].bytes, .buffer = memory[n],
		};
		list[n] = &requests[n];
	}
	io_submit(io, list, DEPTH_MOST);
	while ((back = io_wait(io, -1))) {
		if (io_request_check(back, &err))
			measure_fail(&err);
		if (n == N_READS)
			continue;
		back->offset = reads[n].offset;
		back->bytes = reads[n++].bytes;
		io_submit(io, &back, 1);
	}
}

static double process_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double once(void *arg)
{
	struct work *w = arg;
	struct raw_read reads[N_READS];
	double bytes = choose(reads), start = measure_now(), cpu = process_seconds(), took;

	if (w->way == RAW_RING)
		(void)raw_reads(reads, N_READS, w->depth);
	else if (w->way == RAW_THREADS)
		raw_threads(reads, w->depth);
	else
		engine(w->io, reads);
	took = measure_now() - start;
	w->cpu_s += process_seconds() - cpu;
	w->bytes += bytes;
	return bytes / took;
}

/* Bytes that no file system and no disk can make fewer. */
static void write_file(uint64_t bytes)
{
	struct err err;

	if (io_preallocate(&file, 0, bytes, &err))
		measure_fail(&err);
	for (uint64_t at = 0; at < bytes; at += LARGEST) {
		for (uint64_t *word = memory[0]; word < (uint64_t *)memory[0] + LARGEST / sizeof *word; word++)
			*word = any() << 32 ^ any();
		if (pwrite(file.direct_fd, memory[0], LARGEST, (off_t)at) != LARGEST)
			fail("write the file", errno);
	}
	if (io_sync_file(&file, &err))
		measure_fail(&err);
	file.bytes = bytes;
}

static uint64_t file_bytes(void)
{
	const char *text = getenv("QUIRE_BENCH_IO_BYTES");
	char *end;
	uint64_t bytes;

	if (!text)
		return FILE_BYTES;
	bytes = strtoull(text, &end, 10);
	if (*end || !bytes || bytes % STEP) {
		fprintf(stderr, "QUIRE_BENCH_IO_BYTES is \"%s\"; it must be a number of bytes, a multiple of %d\n", text, STEP);
		exit(1);
	}
	return bytes;
}

static void print_raw(const struct measure_case *c)
{
	const struct work *w = c->arg;

	measure_print(stdout, "io.raw", c->median * 1e-9, "GB/s", 0,
		      "\"way\":\"%s\",\"depth\":%d,\"cpu_per_gbps\":%.3g", w->way == RAW_RING ? "io_uring" : "pread", w->depth,
		      w->cpu_s / w->bytes * 1e11);
}

static void print_engine(const struct measure_case *c, double limit, uint64_t bytes)
{
	const struct work *w = c->arg;
	double cpu = w->cpu_s / w->bytes * 1e11;
	bool ring = w->way == RING;

	measure_print(stdout, ring ? "io.uring_over_raw" : "io.pread_over_raw", c->median / limit, "ratio", 1,
		      "\"gb_per_s\":%.3g,\"raw_gb_per_s\":%.3g,\"depth\":%d,"
		      "\"cpu_per_gbps\":%.3g,\"file_bytes\":%llu", c->median * 1e-9, limit * 1e-9, w->depth, cpu,
		      (unsigned long long)bytes);
	if (ring)
		measure_print(stdout, "io.cpu_per_gbps", cpu, "percent of a core per GB/s", 0,
			      "\"depth\":%d", w->depth);
}

int main(void)
{
	static struct work works[] = {
		{RAW_RING, 8}, {RING, 16}, {RAW_THREADS, 8}, {RAW_RING, 16}, {THREADS, 8}, {RAW_RING, 32}, {RING, 32},
		{RAW_THREADS, 16}, {THREADS, 16},
	};
	enum { N = sizeof works / sizeof *works };
	struct measure_case cases[N];
	char *dir = temp_dir_new(), *path = temp_path(dir, "file");
	uint64_t bytes = file_bytes();
	double limit = 0;
	struct err err;

	seed = 0x9e3779b97f4a7c15u ^ (uint64_t)getpid();
	for (int i = 0; i < DEPTH_MOST; i++) {
		memory[i] = io_buffer_new(LARGEST, "a benchmark's buffers", &err);
		if (!memory[i])
			measure_fail(&err);
		memset(memory[i], 1, LARGEST);
	}
	if (io_open(&file, path, IO_OPEN_WRITE | IO_OPEN_CREATE | IO_OPEN_DIRECT, &err))
		measure_fail(&err);
	unlink(path); /* it goes with this process, however that ends */
	temp_dir_free(dir);
	if (file.direct_fd < 0) {
		fprintf(stderr, "%s has no direct access: %s; set TMPDIR to a directory on a disk\n", path, file.why_not_direct);
		return 1;
	}
	write_file(bytes);
	for (int i = 0; i < N; i++)
		cases[i] = (struct measure_case){once, &works[i], 0};
	for (int i = 0; i < N; i++)
		if (works[i].way > RAW_THREADS)
			works[i].io = new_engine(&works[i]);
	measure_rounds(cases, N, ROUNDS);
	for (int i = 0; i < N; i++)
		if (works[i].way <= RAW_THREADS) {
			print_raw(&cases[i]);
			limit = cases[i].median > limit ? cases[i].median : limit;
		}
	for (int i = 0; i < N; i++)
		if (works[i].way > RAW_THREADS)
			print_engine(&cases[i], limit, bytes);
	for (int i = 0; i < N; i++)
		io_free(works[i].io);
	for (int i = 0; i < DEPTH_MOST; i++)
		free(memory[i]);
	io_close(&file);
	free(path);
	return 0;
}
