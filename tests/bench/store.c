/*
 * The store at the sizes of GLM-5.2's records: what reading what a question selects costs beside the disk's own rate.
 *
 *   store [bf16|fp8] [TOKENS]      bf16 and 131072 unless said: 12.5 GB below build/bench, removed at the end
 *
 *   store.bytes_written_over_payload  bytes that the process gave the disk, SQLite's among them, over those of records and
 *                                  index keys. Limit: 1
 *   store.seq_read_over_raw        index keys from end to end, verified, over the same requests made of the disk and looked at
 *                                  by nobody. Limit: 1
 *   store.rand_read_over_raw       the same of 2,048 isolated records of a group of four layers
 *   store.group_over_layer_major   time of these selections when every layer has an extent of its own, sorted and coalesced
 *                                  too, over that when a token's four rows lie together
 *   store.cold_read_overhead       bytes read for isolated selections, one set for each group, over those selected. Limit: 1
 *   store.checksum_cpu_share       processor time of the sums alone, over that of such gathers
 *
 * Layers and bytes are those of the published config; the latents are seeded random bytes sent through the ordinary way
 * of writing, not computed, and the selections are random, none beside another: real ones cluster, which is cheaper.
 * The requests of the store are written down as they go to the system, and the same list is then given to io_uring with
 * as many in flight; each round takes both, in turns, and medians are printed.
 */
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "cache/run.h"
#include "cache/view.h"
#include "config/file.h"
#include "config/mem.h"
#include "offload/io.h"
#include "offload/io_backend.h"
#include "tests/support/measure.h"
#include "tests/support/temp_dir.h"

enum { TOKENS = 131072, SELECTED = 2048, N_LAYERS = 78, N_INDEX_LAYERS = 21, INDEX_KEY_BYTES = 256, QUAD = 4, ROUNDS = 5,
       DEPTH = 64, PUT_TOKENS = 1024, LOG_MOST = 1 << 16 };

/* ---- a disk whose requests are written down ---------------------------------------------------------------------- */

static struct recorder {
	void *ring;
	bool on;
	size_t n;
	struct request {
		int fd;
		uint64_t offset;
		uint32_t bytes;
	} log[LOG_MOST];
} recorder;

static void rec_free(void *state)
{
	(void)state;
	io_ring_backend.free(recorder.ring);
}

static void rec_start(void *state, const struct io_operation *o)
{
	(void)state;
	if (recorder.on && recorder.n < LOG_MOST)
		recorder.log[recorder.n++] = (struct request){o->fd, o->offset, o->bytes};
	io_ring_backend.start(recorder.ring, o);
}

static int rec_reap(void *state, struct io_completion *out, int n_most, int timeout_ms)
{
	(void)state;
	return io_ring_backend.reap(recorder.ring, out, n_most, timeout_ms);
}

static void rec_cancel(void *state, uint64_t id)
{
	(void)state;
	io_ring_backend.cancel(recorder.ring, id);
}

static int rec_fd(void *state)
{
	(void)state;
	return io_ring_backend.fd(recorder.ring);
}

static const struct io_backend rec_backend = {
	.name = "io_uring, written down", .free = rec_free, .start = rec_start, .reap = rec_reap, .cancel = rec_cancel,
	.fd = rec_fd
};

/* Seconds that the disk takes for what was written down, nobody looking at the bytes. */
static double replay(void)
{
	static struct io_uring ring;
	static uint8_t *buffers;
	size_t next = 0, done = 0;
	int free_slots[DEPTH], n_free = DEPTH;
	double began;
	struct err err;

	if (!buffers && (!(buffers = io_buffer_new((size_t)DEPTH << 21, "buffers", &err)) ||
			 io_uring_queue_init(DEPTH, &ring, 0)))
		measure_fail(&err);
	for (int i = 0; i < DEPTH; i++)
		free_slots[i] = i;
	began = measure_now();
	while (done < recorder.n) {
		struct io_uring_cqe *cqe;
		unsigned head, n = 0;

		while (n_free && next < recorder.n) {
			const struct request *r = &recorder.log[next++];
			struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
			int slot = free_slots[--n_free];

			io_uring_prep_read(sqe, r->fd, buffers + ((size_t)slot << 21), r->bytes, r->offset);
			io_uring_sqe_set_data64(sqe, (uint64_t)slot | (uint64_t)r->bytes << 8);
		}
		io_uring_submit_and_wait(&ring, 1);
		io_uring_for_each_cqe(&ring, head, cqe) {
			if (cqe->res != (int32_t)(cqe->user_data >> 8)) {
				err_set(&err, ERR_IO, "a raw read gave %d of %d bytes", cqe->res, (int)(cqe->user_data >> 8));
				measure_fail(&err);
			}
			free_slots[n_free++] = (int)(cqe->user_data & 255);
			n++;
		}
		io_uring_cq_advance(&ring, n);
		done += n;
	}
	return measure_now() - began;
}

/* ---- the store --------------------------------------------------------------------------------------------------- */

static uint64_t seed = 5;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Bytes that the process has given to the disk. */
static double written(void)
{
	FILE *f = fopen("/proc/self/io", "r");
	char line[100];
	double bytes = -1;

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "write_bytes: %lf", &bytes) == 1)
			break;
	if (f)
		fclose(f);
	return bytes;
}

/* Groups of GLM-5.2: layers 0 and 1, then nineteen of four; or each of four layers alone. */
struct shape {
	uint8_t identity[32];
	struct cache_layout layout;
	uint32_t record_bytes[20];
};

static void store_tokens(struct cache *c, const char *corpus, const struct shape *s, const int32_t *ids, int64_t n)
{
	struct cache_run *r = NULL;
	uint8_t *bytes;
	int32_t next_layer;
	struct err err;

	bytes = xmalloc(PUT_TOKENS, 16384);
	if (cache_run_begin(&r, c, corpus, &s->layout, s->identity, NULL, ids, n, &next_layer, &err))
		measure_fail(&err);
	for (int32_t p = 0; p < s->layout.n_groups + s->layout.n_index_layers; p++) {
		int32_t layer = p - s->layout.n_groups;
		size_t each = layer < 0 ? s->record_bytes[p] : s->layout.index_key_bytes;

		for (int64_t i = 0; i < n; i += PUT_TOKENS) {
			int64_t m = n - i < PUT_TOKENS ? n - i : PUT_TOKENS;

			for (size_t k = 0; k < (size_t)m * each / 8; k++)
				((uint64_t *)(void *)bytes)[k] = next_random();
			if (layer < 0 ? cache_run_records(r, p, i, m, bytes, &err)
				      : cache_run_index_keys(r, layer, i, m, bytes, &err))
				measure_fail(&err);
		}
	}
	if (cache_run_commit(r, &err))
		measure_fail(&err);
	cache_run_free(r);
	free(bytes);
}

static struct cache_view *open_view(struct cache *c, const struct shape *s, const int32_t *ids, int64_t n)
{
	struct cache_view *v;
	int64_t whole;
	struct err err = {0};

	if (cache_view_open(&v, c, s->identity, ids, n, &whole, &err) ||
	    (whole < n && err_set(&err, ERR_FAILED, "only %lld tokens are whole", (long long)whole)))
		measure_fail(&err);
	return v;
}

/* One in each stretch of n / SELECTED, none beside another. */
static void select_isolated(int32_t *positions, int64_t n)
{
	int64_t stretch = n / SELECTED;

	for (int i = 0; i < SELECTED; i++)
		positions[i] = (int32_t)(i * stretch + (int64_t)(next_random() % (uint64_t)(stretch - 8)));
}

static double gather(struct cache_view *v, int32_t first_group, int32_t n_groups, const int32_t *positions, uint8_t *out)
{
	double began = measure_now();
	struct err err;

	for (int32_t g = first_group; g < first_group + n_groups; g++)
		if (cache_view_gather(v, g, positions, SELECTED, out, NULL, &err))
			measure_fail(&err);
	return measure_now() - began;
}

static int count_keys(void *ctx, int64_t at, int64_t n, const uint8_t *keys, int64_t *bad, struct err *err)
{
	(void)at;
	(void)keys;
	(void)bad;
	(void)err;
	*(int64_t *)ctx += n;
	return 0;
}

static double read_keys(struct cache_view *v, int32_t layer, int64_t n)
{
	double began = measure_now();
	int64_t taken = 0;
	struct err err;

	if (cache_view_take_index_keys(v, layer, 0, n, count_keys, &taken, NULL, &err) ||
	    (taken != n && err_set(&err, ERR_FAILED, "%lld of %lld keys came", (long long)taken, (long long)n)))
		measure_fail(&err);
	return measure_now() - began;
}

/* The same requests, by the store and of the disk, whose turn comes first in every other round. */
static void compare_reads(const char *name, struct cache_view *v, int64_t n, bool keys, const char *latents, uint8_t *out)
{
	double rates[ROUNDS], mb[ROUNDS];
	int32_t positions[SELECTED];

	for (int i = 0; i < ROUNDS; i++) {
		double ours, raw = 0, bytes = 0;

		/* A first pass writes the requests down. */
		select_isolated(positions, n);
		recorder.n = 0;
		recorder.on = true;
		ours = keys ? read_keys(v, i, n) : gather(v, 1 + i, 1, positions, out);
		recorder.on = false;
		if (!i)
			(void)replay(); /* its buffers are there before anything is timed */
		if (i % 2)
			raw = replay();
		ours = keys ? read_keys(v, i, n) : gather(v, 1 + i, 1, positions, out);
		if (i % 2 == 0)
			raw = replay();
		for (size_t k = 0; k < recorder.n; k++)
			bytes += recorder.log[k].bytes;
		rates[i] = raw / ours;
		mb[i] = bytes / ours / 1e6;
	}
	measure_print(stdout, name, measure_median(rates, ROUNDS), "ratio", 1,
		      "\"latents\":\"%s\",\"requests\":%zu,\"MB_per_s\":%.0f", latents, recorder.n, measure_median(mb, ROUNDS));
}

static void layouts(struct cache_view *grouped, struct cache_view *layered, int64_t n, const char *latents, uint8_t *out)
{
	double ratios[ROUNDS], ms[ROUNDS];
	int32_t positions[SELECTED];

	for (int i = 0; i < ROUNDS; i++) {
		double by_group, by_layer;

		select_isolated(positions, n);
		by_group = i % 2 ? gather(grouped, 1 + i, 1, positions, out) : 0;
		by_layer = gather(layered, 0, QUAD, positions, out);
		by_group = i % 2 ? by_group : gather(grouped, 1 + i, 1, positions, out);
		ratios[i] = by_layer / by_group;
		ms[i] = by_group * 1e3;
	}
	measure_print(stdout, "store.group_over_layer_major", measure_median(ratios, ROUNDS), "ratio", 0,
		      "\"latents\":\"%s\",\"selected\":%d,\"group_ms\":%.1f", latents, SELECTED, measure_median(ms, ROUNDS));
}

static void overhead(struct cache *c, const struct shape *s, const int32_t *ids, int64_t n, const char *latents,
		     uint8_t *out)
{
	struct cache_view *v = open_view(c, s, ids, n);
	struct cache_view_stats before, after;
	double cpu = measure_thread_now(), sums;
	int32_t positions[SELECTED];
	uint64_t all = 0;

	cache_view_stats(v, &before);
	for (int32_t g = 0; g < s->layout.n_groups; g++) {
		select_isolated(positions, n);
		gather(v, g, 1, positions, out);
	}
	cpu = measure_thread_now() - cpu;
	cache_view_stats(v, &after);
	sums = measure_thread_now();
	for (int32_t g = 0; g < s->layout.n_groups; g++)
		for (int i = 0; i < SELECTED; i++) /* the seed of a sum is one itself, of 44 bytes */
			all ^= XXH3_64bits_withSeed(out + (size_t)i * s->record_bytes[g], s->record_bytes[g],
						    XXH3_64bits(&positions[i % (SELECTED - 11)], 44));
	sums = measure_thread_now() - sums;
	measure_print(stdout, "store.cold_read_overhead", (double)(after.read_bytes - before.read_bytes) /
		      (double)(after.record_bytes - before.record_bytes), "ratio", 1,
		      "\"latents\":\"%s\",\"selected\":%d,\"reads\":%lld", latents, SELECTED,
		      (long long)(after.n_reads - before.n_reads));
	measure_print(stdout, "store.checksum_cpu_share", sums / cpu, "share", 0, "\"latents\":\"%s\",\"sum\":\"%016llx\"",
		      latents, (unsigned long long)all);
	cache_view_close(v);
}

int main(int argc, char **argv)
{
	const char *latents = argc > 1 ? argv[1] : "bf16";
	int64_t n = argc > 2 ? strtoll(argv[2], NULL, 10) : TOKENS;
	uint32_t row = strcmp(latents, "fp8") ? 1152 : 656;
	struct shape glm = {.identity = "grouped", .layout = {20, NULL, N_INDEX_LAYERS, INDEX_KEY_BYTES}};
	struct shape layered = {.identity = "layered", .layout = {QUAD, NULL, 0, 0}};
	struct io_options opt = {.backend = &rec_backend, .depth = DEPTH};
	struct cache_view *by_group, *by_layer;
	double payload, before;
	struct cache *c = NULL;
	int depth = DEPTH;
	uint8_t *out;
	int32_t *ids;
	char *dir;
	struct err err = {0};

	if ((strcmp(latents, "bf16") && strcmp(latents, "fp8")) || n < 16 * SELECTED || n > 1 << 20)
		return fprintf(stderr, "usage: store [bf16|fp8] [TOKENS from %d to %d]\n", 16 * SELECTED, 1 << 20), 2;
	glm.layout.record_bytes = glm.record_bytes;
	layered.layout.record_bytes = layered.record_bytes;
	for (int g = 0; g < 20; g++)
		glm.record_bytes[g] = (g ? QUAD : N_LAYERS - 19 * QUAD) * row;
	for (int g = 0; g < QUAD; g++)
		layered.record_bytes[g] = row;
	ids = xmalloc((size_t)n, sizeof *ids);
	for (int64_t i = 0; i < n; i++)
		ids[i] = (int32_t)(next_random() % 150000);
	out = xcalloc((size_t)n > 16 * SELECTED * 4 ? (size_t)n : 16 * SELECTED * 4, INDEX_KEY_BYTES);
	memset(out, 1, (size_t)n * INDEX_KEY_BYTES); /* its pages are there before anything is timed */
	if (file_make_directories("build/bench", &err) || setenv("TMPDIR", realpath("build/bench", NULL), 1))
		measure_fail(&err);
	dir = temp_dir_new();
	if (io_ring_new(&recorder.ring, &depth, &err) || cache_open_with(&c, dir, &opt, &err)) {
		temp_dir_free(dir);
		measure_fail(&err);
	}

	before = written();
	store_tokens(c, "grouped", &glm, ids, n);
	payload = (double)n * (N_LAYERS * row + N_INDEX_LAYERS * INDEX_KEY_BYTES);
	measure_print(stdout, "store.bytes_written_over_payload", (written() - before) / payload, "ratio", 1,
		      "\"latents\":\"%s\",\"tokens\":%lld,\"payload_bytes\":%.0f", latents, (long long)n, payload);
	store_tokens(c, "layered", &layered, ids, n);
	by_group = open_view(c, &glm, ids, n);
	by_layer = open_view(c, &layered, ids, n);
	compare_reads("store.seq_read_over_raw", by_group, n, true, latents, out);
	compare_reads("store.rand_read_over_raw", by_group, n, false, latents, out);
	layouts(by_group, by_layer, n, latents, out);
	overhead(c, &glm, ids, n, latents, out);

	cache_view_close(by_group);
	cache_view_close(by_layer);
	cache_close(c);
	temp_dir_free(dir);
	free(ids);
	free(out);
	return 0;
}
