/*
 * One sweep against chunks: how many bytes of experts' weights are taken up for each prompt token, by how many tokens the
 * scratch memory holds; and from how many tokens on a sweep computes rather than waits for weights.
 *
 *   sweep [TOKENS]                 8192 tokens unless said, in chunks of 256, 1024, 4096, ... and of all; for the knee, as
 *                                  many as it needs
 *
 *   sweep.reads_per_expert         times that an expert was taken up, the mean over the experts that some token chose.
 *                                  Limit: 1, of one sweep. "planned": sweep_plan's figure, which none exceeds
 *   sweep.bytes_per_token          bytes of the weights of the experts taken up, over the tokens. Limit: each
 *                                  expert that is chosen once. "scratch_bytes": the most held, equal to the plan's
 *
 *   sweep.knee_over_predicted      the chunk from which on the time of a token falls no more, over the one that is
 *                                  predicted: the time to read all experts once, over that to compute a token. Limit: 1
 *   sweep.token_s                  one line for each chunk: seconds a token, over those of a token when nothing is read
 *
 * For the knee every expert is read from the checkpoint's files, past the page cache, each time it is taken up, a layer's
 * worth ahead, and a chunk waits for it; it is then computed from the copy that the model has in memory, as this build
 * has no other way. So what is measured is whether reading and computing go on at once, each at the rate that it has
 * alone: both of these are measured in the same rounds. The knee is that of the two lines, time falling with the
 * chunk and time constant, that are nearest to the medians, by least squares of logarithms.
 *
 * The models are synthetic (made once, below build/bench): three layers of 64 experts, 8 of them a token, and all else
 * small; for the knee two, of larger experts. Nothing here is a figure of GLM-5.2: with 256 experts a layer a chunk of
 * the same size leaves fewer tokens to each.
 */
#include <dirent.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/safetensors.h"
#include "engine/sweep.h"
#include "engine/synth.h"
#include "offload/io.h"
#include "tests/support/measure.h"

enum { TOKENS = 8192, LEAST_CHUNK = 256, MOST_TOKENS = 1 << 20 };

static struct synth_options dimensions(void)
{
	struct synth_options o = synth_glm52;

	o.n_dense_layers = 1;
	o.n_moe_layers = 3;
	o.format = SYNTH_BF16;
	o.hidden = 128;
	o.n_heads = 4;
	o.q_lora = 64;
	o.kv_lora = 64;
	o.nope_dim = 32;
	o.rope_dim = 16;
	o.v_dim = 32;
	o.dense_dim = 256;
	o.expert_dim = 64;
	o.n_experts = 64;
	o.experts_per_token = 8;
	o.index_n_heads = 4;
	o.index_dim = 32;
	o.index_topk = 128;
	o.vocab = SYNTH_LEAST_VOCAB;
	o.max_positions = MOST_TOKENS;
	return o;
}

/* The checkpoint: one that an earlier run made, or a new one. free(*path). */
static struct model *open_model(struct synth_options o, char **path)
{
	char *config = synth_config_json(&o);
	char *dir = *path = xasprintf("build/bench/sweep-%016llx",
				      (unsigned long long)XXH3_64bits_withSeed(config, strlen(config), o.seed));
	char *made = xasprintf("%s/config.json", dir);
	struct model *m = NULL;
	struct err err = {0};

	if (access(made, F_OK) && (file_make_directories(dir, &err) || synth_write(dir, &o, NULL, &err)))
		measure_fail(&err);
	if (model_open(&m, dir, NULL, &err))
		measure_fail(&err);
	free(made);
	free(config);
	return m;
}

/* Experts that some token chose, and the bytes of their weights. */
static int64_t chosen(const struct model *m, const struct sweep_stats *s, uint64_t *bytes)
{
	const struct model_config *c = &m->config;
	int64_t n = 0;

	*bytes = 0;
	for (int32_t i = 0; i < c->n_layers; i++) {
		for (int32_t e = 0; !c->layer_is_dense[i] && e < c->n_experts; e++) {
			const struct expert *x = &m->layers[i].experts[e];

			if (!s->expert_tokens[(int64_t)i * c->n_experts + e])
				continue;
			*bytes += weight_bytes(&x->gate) + weight_bytes(&x->up) + weight_bytes(&x->down);
			n++;
		}
	}
	return n;
}

/* Somebody who takes what a group stores, so that it is held until then. */
static int drop(void *ctx, int32_t part, int64_t first, int64_t n, const uint8_t *tokens, struct err *err)
{
	(void)ctx;
	(void)part;
	(void)first;
	(void)n;
	(void)tokens;
	(void)err;
	return 0;
}

static void sweep_in_chunks(struct engine *e, const struct model *m, const int32_t *ids, int64_t n, int64_t chunk)
{
	const struct session_options session = {.latents = LATENTS_BF16};
	const struct sweep_sink sink = {NULL, drop, drop, NULL};
	struct sweep_sequence q = {.ids = ids, .n = n, .sink = &sink};
	struct sweep_options opt = {0};
	struct session *s = NULL;
	struct sweep *w = NULL;
	struct sweep_plan plan;
	struct sweep_stats stats;
	struct err err = {0};
	uint64_t once_bytes;
	int64_t experts;

	/* The memory that is needed for a chunk of this size. */
	if (sweep_plan(&plan, &m->config, engine_compute(e), session.latents, chunk, 0, &err))
		measure_fail(&err);
	opt.scratch_bytes = plan.scratch_bytes;
	if (sweep_plan(&plan, &m->config, engine_compute(e), session.latents, n, opt.scratch_bytes, &err) ||
	    session_new(&s, e, m, &session, &err))
		measure_fail(&err);
	q.session = s;
	if (sweep_begin(&w, &q, 1, &opt, &err) || sweep_run(w, NULL, NULL, &err))
		measure_fail(&err);
	sweep_count(w, &stats);
	if (stats.scratch_bytes != plan.scratch_bytes || stats.n_chunks != plan.n_chunks) {
		err_set(&err, ERR_FAILED, "planned were %lld chunks of %zu bytes, measured %lld of %zu", (long long)plan.n_chunks,
			plan.scratch_bytes, (long long)stats.n_chunks, stats.scratch_bytes);
		measure_fail(&err);
	}
	experts = chosen(m, &stats, &once_bytes);
	measure_print(stdout, "sweep.reads_per_expert", (double)stats.n_expert_reads / (double)experts, "reads", 1,
		      "\"chunk\":%lld,\"tokens\":%lld,\"planned\":%lld,\"experts\":%lld", (long long)chunk, (long long)n,
		      (long long)plan.reads_per_expert, (long long)experts);
	measure_print(stdout, "sweep.bytes_per_token", (double)stats.expert_read_bytes / (double)n, "bytes/token",
		      (double)once_bytes / (double)n, "\"chunk\":%lld,\"tokens\":%lld,\"scratch_bytes\":%zu",
		      (long long)chunk, (long long)n, stats.scratch_bytes);
	sweep_end(w);
	session_free(s);
}

/*
 * The knee
 */

enum { ROUNDS = 3, PARTS = 3, DEPTH = 256, N_CHUNKS = 7, SHARDS_MOST = 16 };

/* The experts of a checkpoint on disk, and reads of them in the order in which a sweep takes them up, over and over: the
 * layers' experts by id, a chunk's worth a time round. Number i is read into place i mod n_experts, which is free again
 * when the sweep has taken up number i + 1. */
struct tier {
	struct io *io;
	struct io_file files[SHARDS_MOST];
	struct safetensors shards[SHARDS_MOST];
	int n_shards;
	int32_t n_experts, n_dense;
	int64_t n;                     /* experts of all layers */
	struct part {
		const struct io_file *file;
		struct io_aligned range;
	} (*parts)[PARTS];             /* [n] */
	uint64_t bytes;                /* of all of them */
	size_t place_bytes;
	uint8_t *buffer;               /* [n_experts, PARTS, place_bytes] */
	struct io_request (*requests)[PARTS]; /* [n_experts] */
	int64_t submitted, taken;      /* so many numbers */
};

static void find_part(struct tier *t, int64_t i, int part, const char *name)
{
	for (int f = 0; f < t->n_shards; f++) {
		for (size_t k = 0; k < t->shards[f].n_tensors; k++) {
			const struct tensor *x = &t->shards[f].tensors[k];

			if (strcmp(x->name, name))
				continue;
			t->parts[i][part] = (struct part){&t->files[f], io_align(x->offset, x->bytes, t->files[f].align)};
			t->bytes += x->bytes;
			if (t->parts[i][part].range.bytes > t->place_bytes)
				t->place_bytes = t->parts[i][part].range.bytes;
			return;
		}
	}
	fprintf(stderr, "sweep: the checkpoint has no %s\n", name);
	exit(1);
}

static void open_shards(struct tier *t, const char *dir)
{
	struct dirent **names;
	struct err err = {0};
	int n = scandir(dir, &names, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		size_t length = strlen(names[i]->d_name);
		char *path = xasprintf("%s/%s", dir, names[i]->d_name);

		if (length > 12 && !strcmp(names[i]->d_name + length - 12, ".safetensors") && t->n_shards < SHARDS_MOST) {
			if (safetensors_open(&t->shards[t->n_shards], path, &err) ||
			    io_open(&t->files[t->n_shards], path, IO_OPEN_DIRECT, &err))
				measure_fail(&err);
			t->n_shards++;
		}
		free(path);
		free(names[i]);
	}
	free(names);
}

static void tier_open(struct tier *t, const char *dir, const struct model_config *c)
{
	static const char *const kinds[PARTS] = {"gate", "up", "down"};
	const struct io_options opt = {.purpose = "experts", .depth = DEPTH};
	struct err err = {0};

	*t = (struct tier){.n_experts = c->n_experts};
	while (t->n_dense < c->n_layers && c->layer_is_dense[t->n_dense])
		t->n_dense++;
	t->n = (int64_t)(c->n_layers - t->n_dense) * c->n_experts;
	t->parts = xcalloc((size_t)t->n, sizeof *t->parts);
	t->requests = xcalloc((size_t)t->n_experts, sizeof *t->requests);
	open_shards(t, dir);
	for (int64_t i = 0; i < t->n * PARTS; i++) {
		int64_t expert = i / PARTS;
		char name[128];

		snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s_proj.weight",
			 t->n_dense + (int32_t)(expert / t->n_experts), (int32_t)(expert % t->n_experts), kinds[i % PARTS]);
		find_part(t, expert, (int)(i % PARTS), name);
	}
	t->buffer = io_buffer_new((size_t)t->n_experts * PARTS * t->place_bytes, "experts", &err);
	if (!t->buffer || io_new(&t->io, &opt, &err))
		measure_fail(&err);
}

static void tier_close(struct tier *t)
{
	io_free(t->io);
	for (int i = 0; i < t->n_shards; i++) {
		safetensors_close(&t->shards[i]);
		io_close(&t->files[i]);
	}
	free(t->parts);
	free(t->requests);
	free(t->buffer);
}

/* Read ahead as far as there is room. */
static void read_ahead(struct tier *t)
{
	for (; t->submitted < t->taken + t->n_experts; t->submitted++) {
		int64_t place = t->submitted % t->n_experts;

		for (int k = 0; k < PARTS; k++) {
			const struct part *p = &t->parts[t->submitted % t->n][k];
			struct io_request *r = &t->requests[place][k];

			*r = (struct io_request){
				.op = IO_READ, .class = IO_CLASS_EXPERT, .file = p->file, .offset = p->range.offset,
				.bytes = p->range.bytes, .buffer = t->buffer + (size_t)(place * PARTS + k) * t->place_bytes,
			};
			io_submit(t->io, &r, 1);
		}
	}
}

/* Number i, and all before it, are there. */
static void await(struct tier *t, int64_t i)
{
	struct err err = {0};

	for (; t->taken <= i; t->taken++) {
		for (int k = 0; k < PARTS; k++) {
			struct io_request *r = &t->requests[t->taken % t->n_experts][k];

			while (r->status == IO_PENDING)
				io_wait(t->io, -1);
			if (io_request_check(r, &err))
				measure_fail(&err);
		}
		read_ahead(t);
	}
}

static int take_up(void *ctx, int32_t layer, int32_t expert, struct err *err)
{
	struct tier *t = ctx;
	int64_t i = (int64_t)(layer - t->n_dense) * t->n_experts + expert;

	(void)err;
	/* The expert before this one has been computed: its place is free from now on. */
	await(t, t->taken - t->taken % t->n + i + (i < t->taken % t->n ? t->n : 0));
	return 0;
}

static int keep_reading(void *ctx, struct err *err)
{
	struct tier *t = ctx;

	(void)err;
	while (io_poll(t->io))
		;
	return 0;
}

/* Begin anew, with the first layer's experts there: as if a chunk had gone before. */
static void tier_rewind(struct tier *t)
{
	while (io_wait(t->io, -1))
		;
	t->submitted = t->taken = 0;
	read_ahead(t);
	while (io_wait(t->io, -1))
		;
}

struct knee {
	struct engine *engine;
	const struct model *model;
	struct tier *tier;              /* NULL: nothing is read */
	int64_t chunk, n;               /* n: tokens, in whole chunks */
};

/* Seconds a token. */
static double sweep_seconds(const struct knee *k)
{
	const struct session_options session = {.latents = LATENTS_BF16};
	struct sweep_options opt = {0};
	int32_t *ids = xmalloc((size_t)k->n, sizeof *ids);
	struct sweep_sequence q = {.ids = ids, .n = k->n};
	struct sweep_plan plan;
	struct sweep *w = NULL;
	struct err err = {0};
	double began, s;

	for (int64_t i = 0; i < k->n; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)k->model->config.vocab);
	if (sweep_plan(&plan, &k->model->config, engine_compute(k->engine), session.latents, k->chunk, 0, &err))
		measure_fail(&err);
	opt.scratch_bytes = plan.scratch_bytes;
	if (k->tier) {
		tier_rewind(k->tier);
		opt.take_up = take_up;
		opt.take_up_ctx = k->tier;
	}
	if (session_new(&q.session, k->engine, k->model, &session, &err) || sweep_begin(&w, &q, 1, &opt, &err))
		measure_fail(&err);
	began = measure_now();
	if (sweep_run(w, k->tier ? keep_reading : NULL, k->tier, &err))
		measure_fail(&err);
	s = measure_now() - began;
	sweep_end(w);
	session_free(q.session);
	free(ids);
	return s / (double)k->n;
}

/* Seconds to read all experts once, and nothing else. */
static double read_seconds(struct tier *t)
{
	double began;

	tier_rewind(t);
	began = measure_now();
	await(t, t->n - 1);
	return measure_now() - began;
}

/* Where s = a / chunk, which falls, meets s = b: over all pairs of them, the one nearest to the points. */
static double fit_knee(const double *chunk, const double *s, int n)
{
	double best = INFINITY, knee = 0;

	for (double at = chunk[0]; at <= chunk[n - 1]; at *= 1.002) {
		double mean = 0, sum = 0;

		for (int i = 0; i < n; i++)
			mean += (log(s[i]) - log(fmax(at / chunk[i], 1))) / n;
		for (int i = 0; i < n; i++) {
			double miss = log(s[i]) - log(fmax(at / chunk[i], 1)) - mean;

			sum += miss * miss;
		}
		if (sum < best) {
			best = sum;
			knee = at;
		}
	}
	return knee;
}

static struct synth_options knee_dimensions(void)
{
	struct synth_options o = dimensions();

	o.n_moe_layers = 2;
	o.hidden = 1024;
	o.expert_dim = 512;
	o.experts_per_token = 2;
	return o;
}

static void find_knee(struct engine *e)
{
	static const double share[N_CHUNKS] = {1 / 3., .5, .7, 1, 1.4, 2, 3};
	static const int n_chunks[N_CHUNKS] = {9, 6, 4, 3, 2, 2, 1};
	double computes[ROUNDS], reads[ROUNDS], s[N_CHUNKS][ROUNDS], medians[N_CHUNKS], chunks[N_CHUNKS];
	struct knee k = {.engine = e};
	double predicted, measured, compute_s, read_s;
	struct tier tier;
	struct model *m;
	char *dir;

	k.model = m = open_model(knee_dimensions(), &dir);
	tier_open(&tier, dir, &m->config);
	/* Once to know about where to look. */
	k.chunk = k.n = 1024;
	sweep_seconds(&k);
	compute_s = sweep_seconds(&k);
	predicted = read_seconds(&tier) / compute_s;
	for (int i = 0; i < N_CHUNKS; i++)
		chunks[i] = fmax(64, round(share[i] * predicted / 64) * 64);
	for (int round_of = 0; round_of < ROUNDS; round_of++) {
		k.tier = NULL;
		k.chunk = k.n = (int64_t)chunks[N_CHUNKS - 1];
		computes[round_of] = sweep_seconds(&k);
		reads[round_of] = read_seconds(&tier);
		k.tier = &tier;
		for (int i = 0; i < N_CHUNKS; i++) {
			k.chunk = (int64_t)chunks[i];
			k.n = k.chunk * n_chunks[i];
			s[i][round_of] = sweep_seconds(&k);
		}
	}
	compute_s = measure_median(computes, ROUNDS);
	read_s = measure_median(reads, ROUNDS);
	predicted = read_s / compute_s;
	for (int i = 0; i < N_CHUNKS; i++) {
		medians[i] = measure_median(s[i], ROUNDS);
		measure_print(stdout, "sweep.token_s", medians[i], "s", compute_s * fmax(predicted / chunks[i], 1),
			      "\"chunk\":%.0f,\"compute_s\":%.3g", chunks[i], compute_s);
	}
	measured = fit_knee(chunks, medians, N_CHUNKS);
	measure_print(stdout, "sweep.knee_over_predicted", measured / predicted, "", 1,
		      "\"measured_tokens\":%.0f,\"predicted_tokens\":%.0f,\"expert_bytes\":%llu,\"read_bytes_per_s\":%.3g,"
		      "\"compute_tokens_per_s\":%.3g", measured, predicted, (unsigned long long)tier.bytes,
		      (double)tier.bytes / read_s, 1 / compute_s);
	tier_close(&tier);
	model_close(m);
	free(dir);
}

int main(int argc, char **argv)
{
	const struct engine_options opt = {.compute = COMPUTE_BF16};
	long long n = argc > 1 ? atoll(argv[1]) : TOKENS;
	struct engine *e = NULL;
	struct err err = {0};
	struct model *m;
	int32_t *ids;
	char *dir;

	if (argc > 2 || n < 1 || n > MOST_TOKENS) {
		fprintf(stderr, "usage: sweep [TOKENS], at most %d\n", MOST_TOKENS);
		return 2;
	}
	m = open_model(dimensions(), &dir);
	if (engine_open(&e, &opt, &err))
		measure_fail(&err);
	ids = xmalloc((size_t)n, sizeof *ids);
	for (long long i = 0; i < n; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)m->config.vocab);
	for (int64_t chunk = LEAST_CHUNK; chunk < n; chunk *= 4)
		sweep_in_chunks(e, m, ids, n, chunk);
	sweep_in_chunks(e, m, ids, n, n);
	free(ids);
	model_close(m);
	free(dir);
	find_knee(e);
	engine_close(e);
	return 0;
}
