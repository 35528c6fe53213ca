/*
 * The store at the sizes of GLM-5.2's records: what reading what a question selects costs beside the disk's own rate.
 *
 *   store [bf16|fp8] [TOKENS]      bf16 and 131072 unless said: 12.5 GB below build/bench, removed at the end
 *
 *   store.bytes_written_over_payload  bytes that the process gave the disk, SQLite's among them, over those of records and
 *                                  index keys. Limit: 1
 *   store.seq_read_over_raw        index keys of all layers from end to end, verified, as a question loads them, over the same
 *                                  requests made of the disk and looked at by nobody. Limit: 1
 *   store.rand_read_over_raw       the same of 2,048 isolated records of a group of four layers
 *   store.group_over_layer_major   time of these selections when every layer has an extent of its own, sorted and coalesced
 *                                  too, over that when a token's four rows lie together
 *   store.cold_first_token_share   bytes read before the logits of a question's last token, by a session that has just been
 *                                  opened on the snapshot, over the snapshot's; for a question of 1 and of 32 tokens. At most
 *                                  .08 with bf16 latents, .12 with fp8, for one token. The logits must be, in every bit, those
 *                                  of a session that holds the whole snapshot in memory (11.8 GB of 131072 tokens), or
 *                                  this program fails. "opened_s" of "seconds": all index keys, read and placed
 *   store.cold_read_overhead       bytes read by it beside index keys and checksums, over those of the distinct records that
 *                                  were selected. Limit: 1
 *   store.checksum_cpu_share       processor time of the sums alone, over that of gathers of isolated selections
 *
 * Layers and bytes are those of the published config; the model that asks is a synthetic one with GLM-5.2's layers, schedule,
 * latents and index keys, and all else small. The stored latents are seeded random ones sent through the ordinary way of
 * writing, not computed, and selections are random, none beside another: real ones cluster, which is cheaper.
 * The requests of the store are written down as they go to the system, and the same list is then given to io_uring with
 * as many in flight; each round takes both, in turns, and medians are printed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/run.h"
#include "cache/view.h"
#include "config/file.h"
#include "config/mem.h"
#include "config/xxh3.h"
#include "engine/engine.h"
#include "engine/recall.h"
#include "engine/synth.h"
#include "offload/io.h"
#include "offload/io_backend.h"
#include "tests/support/measure.h"
#include "tests/support/raw_reads.h"
#include "tests/support/temp_dir.h"

enum { TOKENS = 131072, SELECTED = 2048, QUAD = 4, INDEX_KEY_BYTES = 256, ROUNDS = 15, DEPTH = 64, PUT_TOKENS = 1024,
       IMPORT_TOKENS = 8192, LOG_MOST = 1 << 16, GROUPS_MOST = 64, QUESTION_MOST = 32 };

/* ---- a disk whose requests are written down ---------------------------------------------------------------------- */

static struct recorder {
	void *ring;
	bool on;
	size_t n;
	struct raw_read log[LOG_MOST];
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
		recorder.log[recorder.n++] = (struct raw_read){o->fd, o->offset, o->bytes};
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
	return raw_reads(recorder.log, recorder.n, DEPTH);
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

/* Groups of the model's layers; or each of four layers alone. */
struct shape {
	uint8_t identity[32];
	struct cache_layout layout;
	uint32_t record_bytes[GROUPS_MOST];
	enum latent_format latents;
	size_t row_bytes;
};

/* Latents that a session takes: of both signs, from .5 to 2 in bf16; fp8 codes below 1 with scales of a half. */
static void random_rows(uint8_t *out, size_t bytes, const struct shape *s)
{
	const uint64_t bf16_kept = 0x80ff80ff80ff80ff, bf16_set = 0x3f003f003f003f00;

	for (size_t at = 0; at < bytes; at += 8) {
		size_t in_row = at % s->row_bytes;
		uint64_t x;

		if (s->latents == LATENTS_FP8 && in_row < 512)
			x = next_random() & 0xb7b7b7b7b7b7b7b7;
		else if (s->latents == LATENTS_FP8 && in_row < 528)
			x = 0x3f0000003f000000;
		else
			x = (next_random() & bf16_kept) | bf16_set;
		memcpy(out + at, &x, sizeof x);
	}
}

static void store_tokens(struct cache *c, const char *corpus, const struct shape *s, const int32_t *ids, int64_t n)
{
	struct shape keys = {.latents = LATENTS_BF16, .row_bytes = INDEX_KEY_BYTES};
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

			random_rows(bytes, (size_t)m * each, layer < 0 ? s : &keys);
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

static int count_keys(void *ctx, int32_t index_layer, int64_t at, int64_t n, const uint8_t *keys, int64_t *bad, struct err *err)
{
	(void)index_layer;
	(void)at;
	(void)keys;
	(void)bad;
	(void)err;
	*(int64_t *)ctx += n;
	return 0;
}

static double read_keys(struct cache_view *v, int32_t n_layers, int64_t n)
{
	double began = measure_now();
	int64_t taken = 0;
	struct err err;

	if (cache_view_take_index_keys(v, 0, n_layers, 0, n, count_keys, &taken, NULL, &err) ||
	    (taken != n * n_layers && err_set(&err, ERR_FAILED, "%lld of %lld keys came", (long long)taken, (long long)(n * n_layers))))
		measure_fail(&err);
	return measure_now() - began;
}

/* The same requests, by the store and of the disk, whose turn comes first in every other round. */
static void compare_reads(const char *name, struct cache_view *v, int64_t n, int32_t key_layers, const char *latents,
			  uint8_t *out)
{
	double rates[ROUNDS], mb[ROUNDS];
	int32_t positions[SELECTED];

	for (int i = 0; i < ROUNDS; i++) {
		double ours, raw = 0, bytes = 0;

		/* A first pass writes the requests down. */
		select_isolated(positions, n);
		recorder.n = 0;
		recorder.on = true;
		ours = key_layers ? read_keys(v, key_layers, n) : gather(v, 1 + i, 1, positions, out);
		recorder.on = false;
		if (i % 2)
			raw = replay();
		ours = key_layers ? read_keys(v, key_layers, n) : gather(v, 1 + i, 1, positions, out);
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

static void checksums(struct cache_view *v, const struct shape *s, int64_t n, const char *latents, uint8_t *out)
{
	double cpu = measure_thread_now(), sums;
	int32_t positions[SELECTED];
	uint64_t all = 0;

	for (int32_t g = 0; g < s->layout.n_groups; g++) {
		select_isolated(positions, n);
		gather(v, g, 1, positions, out);
	}
	cpu = measure_thread_now() - cpu;
	sums = measure_thread_now();
	for (int32_t g = 0; g < s->layout.n_groups; g++)
		for (int i = 0; i < SELECTED; i++) /* the seed of a sum is one itself, of 44 bytes */
			all ^= xxh3_sum(out + (size_t)i * s->record_bytes[g], s->record_bytes[g],
					xxh3_sum(&positions[i % (SELECTED - 11)], 44, 0));
	sums = measure_thread_now() - sums;
	measure_print(stdout, "store.checksum_cpu_share", sums / cpu, "share", 0,
		      "\"latents\":\"%s\",\"sums_ms\":%.1f,\"gathers_ms\":%.1f,\"sum\":\"%016llx\"", latents, sums * 1e3, cpu * 1e3,
		      (unsigned long long)all);
}

/* ---- a cold question --------------------------------------------------------------------------------------------- */

struct asker {
	struct engine *e;
	struct model *m;
	enum latent_format latents;
};

/* GLM-5.2's layers, schedule, latents and index keys; all else as small as it can be. */
static struct model *open_model(const char *dir, int64_t n)
{
	struct synth_options o = synth_glm52;
	char *to = xasprintf("%s/model", dir);
	struct model *m = NULL;
	struct err err = {0};

	o.n_dense_layers = 3;
	o.n_moe_layers = 75;
	o.format = SYNTH_BF16;
	o.hidden = 128;
	o.n_heads = 2;
	o.q_lora = 64;
	o.nope_dim = 16;
	o.v_dim = 16;
	o.dense_dim = 64;
	o.expert_dim = 16;
	o.n_experts = 8;
	o.experts_per_token = 2;
	o.index_n_heads = 2;
	o.vocab = SYNTH_LEAST_VOCAB;
	o.max_positions = n + QUESTION_MOST;
	if (synth_write(to, &o, NULL, &err) || model_open(&m, to, NULL, &err))
		measure_fail(&err);
	free(to);
	return m;
}

static struct session *open_session(const struct asker *a)
{
	struct session_options opt = {.latents = a->latents};
	struct session *s;
	struct err err;

	if (session_new(&s, a->e, a->m, &opt, &err))
		measure_fail(&err);
	return s;
}

/* The whole snapshot in a session's memory. */
static struct session *load_all(const struct asker *a, struct cache_view *v, const struct shape *shape, int64_t n)
{
	struct session *s = open_session(a);
	uint8_t *buffer = xmalloc(IMPORT_TOKENS, 16384);
	struct err err;

	for (int64_t at = 0, m; at < n; at += m) {
		m = n - at < IMPORT_TOKENS ? n - at : IMPORT_TOKENS;
		for (int32_t g = 0; g < shape->layout.n_groups; g++)
			if (cache_view_records(v, g, at, m, buffer, NULL, &err) ||
			    session_import_records(s, g, at, m, buffer, &err))
				measure_fail(&err);
		for (int32_t i = 0; i < shape->layout.n_index_layers; i++)
			if (cache_view_index_keys(v, i, at, m, buffer, NULL, &err) ||
			    session_import_index_keys(s, i, at, m, buffer, &err))
				measure_fail(&err);
		session_import_commit(s, m);
	}
	free(buffer);
	return s;
}

/* Logits of a question's last token, on top of a session that has its context. */
static float *answer(const struct asker *a, struct session *s, struct recall *r, const int32_t *question, int n)
{
	float *logits = xcalloc((size_t)a->m->config.vocab, sizeof *logits);
	struct err err;

	if (r ? recall_append(r, question, (size_t)n, logits, NULL, &err)
	      : session_append(s, question, (size_t)n, logits, NULL, &err))
		measure_fail(&err);
	return logits;
}

static void ask_cold(const struct asker *a, struct cache *c, const struct cache_snapshot *snapshot, const struct shape *shape,
		     const float *want, const int32_t *question, int n_question, const char *latents)
{
	const struct recall_options opt = {.engine = a->e, .model = a->m, .latents = a->latents};
	double n = (double)snapshot->n_tokens, began = measure_now(), opened, seconds, keys, sums, all;
	size_t bytes = (size_t)a->m->config.vocab * sizeof *want;
	struct session *s = open_session(a);
	struct recall_stats stats;
	struct recall *r = NULL;
	float *logits;
	struct err err;

	if (recall_open(&r, s, &opt, c, snapshot, snapshot->n_tokens, &err))
		measure_fail(&err);
	opened = measure_now() - began;
	logits = answer(a, s, r, question, n_question);
	seconds = measure_now() - began;
	recall_count(r, &stats);
	if (memcmp(logits, want, bytes)) {
		err_set(&err, ERR_FAILED, "%d tokens on %.0f of the store and on the same in memory: the logits differ", n_question,
			n);
		measure_fail(&err);
	}
	keys = n * shape->layout.n_index_layers * INDEX_KEY_BYTES;
	sums = 8 * n * (shape->layout.n_groups + shape->layout.n_index_layers / (double)CACHE_SPAN_TOKENS);
	all = keys;
	for (int32_t g = 0; g < shape->layout.n_groups; g++)
		all += n * shape->record_bytes[g];
	measure_print(stdout, "store.cold_first_token_share", (double)stats.read_bytes / all, "share", 0,
		      "\"latents\":\"%s\",\"question\":%d,\"opened_s\":%.3f,\"seconds\":%.3f,\"read_bytes\":%lld,\"records\":%lld,"
		      "\"logits_equal\":true", latents, n_question, opened, seconds, (long long)stats.read_bytes,
		      (long long)stats.gathers.fetched);
	measure_print(stdout, "store.cold_read_overhead", ((double)stats.read_bytes - keys - sums) /
		      (double)stats.gathers.fetched_bytes, "ratio", 1, "\"latents\":\"%s\",\"question\":%d", latents, n_question);
	free(logits);
	recall_close(r);
	session_free(s);
}

static void cold_questions(const struct asker *a, struct cache *c, struct cache_view *v, const struct shape *shape,
			   const int32_t *ids, int64_t n, const char *latents)
{
	const int lengths[] = {1, QUESTION_MOST};
	struct cache_snapshot made = {.corpus = "grouped", .source = "random latents", .identity = shape->identity,
				      .n_tokens = n, .ids = ids};
	int32_t question[QUESTION_MOST];
	struct cache_snapshot *snapshot;
	struct session *whole;
	float *want[2];
	int64_t id;
	struct err err;

	for (int i = 0; i < QUESTION_MOST; i++)
		question[i] = (int32_t)(next_random() % (uint64_t)a->m->config.vocab);
	if (cache_commit_snapshot(c, &made, &id, &err) || cache_load_snapshot(c, made.corpus, &snapshot, &err))
		measure_fail(&err);
	whole = load_all(a, v, shape, n);
	for (int i = 0; i < 2; i++) {
		want[i] = answer(a, whole, NULL, question, lengths[i]);
		session_truncate(whole, n);
	}
	session_free(whole);
	for (int i = 0; i < 2; i++) {
		ask_cold(a, c, snapshot, shape, want[i], question, lengths[i], latents);
		free(want[i]);
	}
	cache_free_snapshot(snapshot);
}

/* Its groups as the store has them. */
static void shape_of(struct shape *s, const struct asker *a)
{
	struct layout *l = layout_new(&a->m->config, a->latents);

	*s = (struct shape){.latents = a->latents, .row_bytes = l->row_bytes,
			    .layout = {l->n_groups, NULL, l->n_index_layers, (uint32_t)l->index_key_bytes}};
	for (int32_t g = 0; g < l->n_groups; g++)
		s->record_bytes[g] = (uint32_t)layout_record_bytes(l, g);
	engine_identity(a->e, a->m, a->latents, s->identity);
	layout_free(l);
}

int main(int argc, char **argv)
{
	const char *latents = argc > 1 ? argv[1] : "bf16";
	int64_t n = argc > 2 ? strtoll(argv[2], NULL, 10) : TOKENS;
	struct asker asker = {.latents = (enum latent_format)latent_format_from_name(latents)};
	struct shape glm, layered = {.identity = "layered", .layout = {QUAD, NULL, 0, 0}};
	struct engine_options engine = {.compute = COMPUTE_BF16};
	struct io_options opt = {.backend = &rec_backend, .depth = DEPTH};
	struct cache_view *by_group, *by_layer;
	double payload, before;
	struct cache *c = NULL;
	int depth = DEPTH;
	uint8_t *out;
	int32_t *ids;
	char *dir;
	struct err err = {0};

	if ((strcmp(latents, "bf16") && strcmp(latents, "fp8")) || n < 16 * SELECTED || n > 1 << 20 || n % CACHE_SPAN_TOKENS)
		return fprintf(stderr, "usage: store [bf16|fp8] [TOKENS from %d to %d, in 64s]\n", 16 * SELECTED, 1 << 20), 2;
	if (file_make_directories("build/bench", &err) || setenv("TMPDIR", realpath("build/bench", NULL), 1))
		measure_fail(&err);
	dir = temp_dir_new();
	asker.m = open_model(dir, n);
	if (engine_open(&asker.e, &engine, &err))
		measure_fail(&err);
	shape_of(&glm, &asker);
	glm.layout.record_bytes = glm.record_bytes;
	layered.latents = glm.latents;
	layered.row_bytes = glm.row_bytes;
	layered.layout.record_bytes = layered.record_bytes;
	for (int g = 0; g < QUAD; g++)
		layered.record_bytes[g] = (uint32_t)glm.row_bytes;
	ids = xmalloc((size_t)n, sizeof *ids);
	for (int64_t i = 0; i < n; i++)
		ids[i] = (int32_t)(next_random() % (uint64_t)asker.m->config.vocab);
	out = xcalloc(SELECTED, 16384);
	memset(out, 1, (size_t)SELECTED * 16384); /* its pages are there before anything is timed */
	if (io_ring_new(&recorder.ring, &depth, &err) || cache_open_with(&c, dir, &opt, &err)) {
		temp_dir_free(dir);
		measure_fail(&err);
	}

	before = written();
	store_tokens(c, "grouped", &glm, ids, n);
	payload = (double)n * (double)((size_t)asker.m->config.n_layers * glm.row_bytes +
				       (size_t)glm.layout.n_index_layers * INDEX_KEY_BYTES);
	measure_print(stdout, "store.bytes_written_over_payload", (written() - before) / payload, "ratio", 1,
		      "\"latents\":\"%s\",\"tokens\":%lld,\"payload_bytes\":%.0f", latents, (long long)n, payload);
	store_tokens(c, "layered", &layered, ids, n);
	by_group = open_view(c, &glm, ids, n);
	by_layer = open_view(c, &layered, ids, n);
	compare_reads("store.seq_read_over_raw", by_group, n, glm.layout.n_index_layers, latents, out);
	compare_reads("store.rand_read_over_raw", by_group, n, 0, latents, out);
	layouts(by_group, by_layer, n, latents, out);
	checksums(by_group, &glm, n, latents, out);
	cold_questions(&asker, c, by_group, &glm, ids, n, latents);

	cache_view_close(by_group);
	cache_view_close(by_layer);
	cache_close(c);
	engine_close(asker.e);
	model_close(asker.m);
	temp_dir_free(dir);
	free(ids);
	free(out);
	return 0;
}
