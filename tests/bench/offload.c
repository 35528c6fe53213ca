/*
 * Decoding with some of the experts in memory: how near to the machine's limit it runs, and what the choice of who stays costs.
 *
 *   offload [--format fp8|bf16|int4] [--layers N] [--expert-dim N] [--drive GB/S] [SHARE ...]
 *
 * Shares are of all experts that there is memory for; .05 .10 .25 .50 1 unless said.
 *
 *   offload.tokens_per_s    limit: 1 / the longer of what the disk and what memory takes for the bytes that were moved
 *   offload.pipe_eff        of that time, over the time it took: 1 is a disk, or memory, that is never waited with. The median
 *                           of blocks of tokens, each by what was measured right before and after it
 *                           of_both is the same of a limit in which disk and memory slow each other as they do when both are in use
 *                           (disk_beside_memory: of the disk's rate, what is left of it then), which is all that can be had of them
 *   offload.policy_eff      bytes of the experts that a cache which knows the future would read, over those read. Beside it what a
 *                           list of the recently used would reach ("lru"), and its product with pipe_eff ("lru_fraction")
 *   offload.fraction_of_limit   their product: of what is possible on this machine with this memory
 *   offload.ahead_over_none tokens/s with reading ahead over those without: the same tokens twice, a block with and one without in turn,
 *                           the second time the other way round, and each pair of neighbours beside its pair: the median of them. The
 *                           figures above are printed of both ("ahead"), those without first
 *   plan.error              what engine/plan.h says of this model, this memory and this machine, which is asked as `quire plan` asks
 *                           it (engine/rates.h), over the median of blocks with reading ahead: the distance to the nearer end of its
 *                           range, though the figure lies inside; the ends stand beside it, and the range's width over its middle
 *
 * The checkpoint is synthetic (made below build/bench, removed at the end): layers of 256 experts of GLM-5.2's size in fp8, 9.7 GB
 * each, or in --format. As many of them as free memory has room for at that share and the disk for all, at most --layers, or as many as
 * take 41 GB (4 in fp8, 8 in int4): it is larger than the memory at all shares but 1. Where not even two fit, experts are half as wide, or as
 * narrow as --expert-dim says; the lines say what was taken. A token's attention is small. Random weights route like nothing real, so the
 * choices of preset A (offload/trace.h) are put in the routers' place (tests/support/forced_routers.h). What is predicted comes true as
 * often as it did on GLM-5.2 (tier_recall), and is one of the next best otherwise. Of the next token's first layer nothing is predicted,
 * which with four layers is a quarter of them, and one of GLM-5.2's 75. Everything else is the engine that users have.
 *
 * Disk: reads of the experts' size on a bare io_uring, from other experts each time; memory: reading with all threads. Between all
 * blocks, since a disk that others use too is half as fast in one second as in the next. What a plan is told: medians of three times
 * before and three after each share. With --drive a drive that is always as fast as that, and carries zeros, is in the disk's place
 * (tests/support/slow_io.h): what the engine makes of its drive, without what the drive does.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/checkpoint.h"
#include "engine/experts.h"
#include "engine/internal.h"
#include "engine/plan.h"
#include "engine/rates.h"
#include "engine/synth.h"
#include "offload/io.h"
#include "offload/trace.h"
#include "tests/support/forced_routers.h"
#include "tests/support/measure.h"
#include "tests/support/raw_reads.h"
#include "tests/support/slow_io.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tier_sim.h"

enum { LAYERS_MOST = 16, LAYERS_LEAST = 2, DENSE = 1, EXPERTS = 256, CHOSEN = 8, CONTEXT = 64 };
enum { WARM = 80, TOKENS = 120, BLOCKS = 24 }; /* BLOCKS is even */
enum { RAW_BYTES = 300 << 20, PROBE_BYTES = 256 << 20, PROBE_STEP = 8 << 20, RAW_DEPTH = 8, PROBES = 3, SHARDS_MOST = 16 };

static const struct {
	enum dtype dtype;    /* of experts */
	enum plan_weights plan;
	double weight_bytes; /* scales aside where they are few */
	int layers;          /* in 41 GB */
} formats[N_SYNTH_FORMATS] = {
	[SYNTH_FP8] = {DTYPE_F8_E4M3, PLAN_FP8, 1, 4},
	[SYNTH_BF16] = {DTYPE_BF16, PLAN_BF16, 2, 2},
	[SYNTH_INT4] = {DTYPE_INT4, PLAN_INT4, .5 + 2. / INT4_GROUP, 8},
};

static const double SLOTS_OVER = 1.01; /* of a share's bytes, since a slot is a little larger than its expert */

struct bench {
	struct synth_options synth;  /* of the checkpoint that is there; n_moe_layers 0: none */
	int layers_most, expert_dim, format; /* asked for */
	double room;                 /* in memory, for experts */
	struct trace *trace;
	struct engine *e;
	struct pool *pool;
	void *probe;
	char *base, *dir;            /* of all that is written; of the checkpoint */
	double drive;                /* bytes per second; 0: the disk */
	struct io_file shards[SHARDS_MOST];
	int n_shards;
	double told_disk[2 * PROBES], told_read[2 * PROBES], told_flops[2 * PROBES]; /* what a plan is told */
	int n_probes;
	size_t beside_bytes;         /* of memory, read beside the disk */
	double raw_s;                /* the last raw_rate took */
	uint64_t seed;
};

/* ---- the checkpoint ---------------------------------------------------------------------------------------------- */

static double free_memory(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	double kb = 0;

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "MemAvailable: %lf", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb * 1024;
}

static double expert_bytes(const struct synth_options *o)
{
	return 3.0 * o->hidden * o->expert_dim * formats[o->format].weight_bytes;
}

static double experts_bytes(const struct synth_options *o)
{
	return o->n_moe_layers * EXPERTS * expert_bytes(o);
}

static double free_disk(const char *dir)
{
	struct statvfs f;

	if (statvfs(dir, &f)) {
		perror(dir);
		exit(1);
	}
	return (double)f.f_bavail * (double)f.f_frsize;
}

/* The largest that fits. */
static struct synth_options choose_size(const struct bench *b, double share)
{
	const double disk = free_disk(b->base) + experts_bytes(&b->synth) - 2e9;
	struct synth_options o = synth_glm52;

	o.format = (enum synth_format)b->format;
	o.expert_dim = b->expert_dim ? b->expert_dim : o.expert_dim;
	o.n_dense_layers = DENSE;
	o.n_moe_layers = b->layers_most ? b->layers_most : formats[o.format].layers;
	o.n_heads = 4;
	o.q_lora = 256;
	o.dense_dim = 1024;
	o.index_n_heads = 4;
	o.vocab = SYNTH_LEAST_VOCAB;
	o.max_positions = 1 << 16;
	while (experts_bytes(&o) * share * SLOTS_OVER > b->room || experts_bytes(&o) > disk) {
		if (o.n_moe_layers > LAYERS_LEAST)
			o.n_moe_layers--;
		else if (o.expert_dim > 256)
			o.expert_dim /= 2;
		else
			break; /* who writes it says what is missing */
	}
	return o;
}

static void close_checkpoint(struct bench *b)
{
	for (int i = 0; i < b->n_shards; i++)
		io_close(&b->shards[i]);
	b->n_shards = 0;
	trace_free(b->trace);
	b->trace = NULL;
	temp_dir_free(b->dir);
	b->dir = NULL;
	b->synth.n_moe_layers = 0;
}

static void open_shards(struct bench *b)
{
	struct checkpoint *files;
	struct err err;

	if (checkpoint_open(&files, b->dir, &err))
		measure_fail(&err);
	for (; b->n_shards < SHARDS_MOST && (size_t)b->n_shards < files->n_shards; b->n_shards++)
		if (io_open(&b->shards[b->n_shards], files->shards[b->n_shards].file.path, IO_OPEN_DIRECT, &err))
			measure_fail(&err);
	checkpoint_close(files);
	if (b->shards[0].direct_fd < 0) {
		fprintf(stderr, "offload: build/bench is not on a disk with direct access\n");
		exit(1);
	}
}

/* Its routers' choices too. */
static void need_checkpoint(struct bench *b, double share)
{
	const struct synth_options o = choose_size(b, share);
	struct err err;

	if (o.n_moe_layers == b->synth.n_moe_layers && o.expert_dim == b->synth.expert_dim)
		return;
	close_checkpoint(b);
	b->dir = temp_path(b->base, "checkpoint");
	if (synth_write(b->dir, &o, NULL, &err))
		measure_fail(&err);
	b->synth = o;
	open_shards(b);
	b->trace = trace_make(&trace_presets[0], o.n_moe_layers, EXPERTS, CHOSEN, WARM + TOKENS, 1);
}

/* ---- what the machine can do ------------------------------------------------------------------------------------- */

/* Bytes per second: of each alone, and of each while the other has all it can do. */
struct rates {
	double disk, memory, disk_beside, memory_beside;
};

static double raw_rate(struct bench *b, uint32_t expert_bytes, void (*meanwhile)(void *b))
{
	uint32_t pieces = (expert_bytes + RAW_READ_MOST - 1) / RAW_READ_MOST, n_experts = RAW_BYTES / RAW_READ_MOST / pieces + 1;
	size_t n = 0;
	struct raw_read *reads = xcalloc((size_t)n_experts * pieces, sizeof *reads);

	for (uint32_t i = 0; i < n_experts; i++) {
		const struct io_file *f;
		uint64_t at;

		b->seed = b->seed * 6364136223846793005u + 1442695040888963407u;
		f = &b->shards[(b->seed >> 33) % (uint64_t)b->n_shards];
		if (f->bytes < 2 * (uint64_t)expert_bytes)
			f = &b->shards[0];
		at = (b->seed >> 13) % (f->bytes - pieces * RAW_READ_MOST) / 4096 * 4096;
		for (uint32_t k = 0; k < pieces; k++)
			reads[n++] = (struct raw_read){f->direct_fd, at + (uint64_t)k * RAW_READ_MOST, RAW_READ_MOST};
	}
	b->raw_s = raw_reads_beside(reads, n, RAW_DEPTH, meanwhile, b);
	free(reads);
	return (double)n * RAW_READ_MOST / b->raw_s;
}

static void probe_for_plan(struct bench *b)
{
	struct err err;

	for (int i = 0; i < PROBES; i++, b->n_probes++) {
		if (rates_disk(b->dir, &b->told_disk[b->n_probes], &err) ||
		    rates_read(b->e, formats[b->format].dtype, &b->told_read[b->n_probes], &err) ||
		    rates_compute(b->e, &b->told_flops[b->n_probes], &err))
			measure_fail(&err);
		if (b->drive > 0)
			b->told_disk[b->n_probes] = b->drive;
	}
}

/* A quarter of a millisecond of it, and of PROBE_BYTES another part each time. */
static void read_memory(void *arg)
{
	struct bench *b = arg;

	probe_read_in_order(b->pool, (const char *)b->probe + b->beside_bytes % PROBE_BYTES, PROBE_STEP);
	b->beside_bytes += PROBE_STEP;
}

static struct rates probe(struct bench *b, double expert_bytes)
{
	struct rates r = {.memory = probe_read(b->pool, b->probe, PROBE_BYTES), .disk = b->drive};
	double in_order;

	if (b->drive > 0) { /* which does not know of memory */
		r.disk_beside = r.disk;
		r.memory_beside = r.memory;
		return r;
	}
	r.disk = raw_rate(b, (uint32_t)expert_bytes, NULL);
	in_order = probe_read_in_order(b->pool, b->probe, PROBE_BYTES);
	b->beside_bytes = 0;
	r.disk_beside = raw_rate(b, (uint32_t)expert_bytes, read_memory);
	r.memory_beside = r.memory * (double)b->beside_bytes / b->raw_s / in_order;
	return r;
}

/* ---- a run ------------------------------------------------------------------------------------------------------- */

/* With reading ahead and without. At share 1 there is nothing to read, and one. */
enum { AHEAD, NONE, N_SIDES };

struct block {
	double seconds, disk_s, memory_s; /* that it took; that its bytes take by what was measured around it */
	double disk_beside, memory_beside; /* of a rate alone, what there was of it while the other was in use */
};

struct side {
	struct experts_stats stats;   /* of what was timed */
	struct block blocks[BLOCKS], all;
};

struct run {
	double share;
	struct side sides[N_SIDES];
	int n_sides;
	double common_bytes;    /* of a token, without routed experts */
	double expert_bytes;
	int64_t n_slots, slot_bytes;
	struct plan_machine told;     /* but for its memory */
};

/* A model, its experts' slots and what has come into them. */
struct subject {
	struct model *m;
	struct session *s;
	struct slow_io drive;
};

static void load_all(struct model *m)
{
	struct err err;

	for (int32_t l = 0; l < m->config.n_layers; l++)
		for (int32_t e = 0; e < EXPERTS && !m->config.layer_is_dense[l]; e++) {
			if (experts_take(m->experts, l, e, &err))
				measure_fail(&err);
			experts_done(m->experts, l, e, false);
		}
}

static void decode(struct subject *d, const struct trace *choices, float *logits, int64_t first, int64_t n)
{
	struct err err;

	for (int64_t t = first; t < first + n; t++) {
		const int32_t id = (int32_t)(t % 256);

		forced_routers_token(d->m, choices, t, tier_recall, 1);
		if (session_append(d->s, &id, 1, logits, NULL, &err))
			measure_fail(&err);
		forced_routers_done();
	}
}

/* And what was counted between two looks. */
static void add(struct experts_stats *sum, const struct experts_stats *from, const struct experts_stats *to)
{
	sum->taken += to->taken - from->taken;
	sum->hits += to->hits - from->hits;
	sum->late += to->late - from->late;
	sum->ahead += to->ahead - from->ahead;
	sum->useful += to->useful - from->useful;
	sum->spare += to->spare - from->spare;
	sum->behind += to->behind - from->behind;
	sum->reads += to->reads - from->reads;
	sum->read_bytes += to->read_bytes - from->read_bytes;
	sum->waited_s += to->waited_s - from->waited_s;
}

static void open_subject(struct bench *b, struct subject *d, double share)
{
	struct experts_options experts = {.bytes = (int64_t)(share * experts_bytes(&b->synth) * SLOTS_OVER)};
	struct model_options opt = {.n_threads = 2, .experts = &experts};
	struct session_options session = {.latents = LATENTS_BF16};
	struct err err;

	*d = (struct subject){0};
	if (b->drive > 0) {
		d->drive.bytes_per_s = b->drive;
		d->drive.carries_nothing = d->drive.in_real_time = true;
		experts.backend = &slow_io_backend;
		experts.backend_state = &d->drive;
	}
	if (model_open(&d->m, b->dir, &opt, &err) || session_new(&d->s, b->e, d->m, &session, &err) ||
	    session_fill(d->s, CONTEXT, 1, &err))
		measure_fail(&err);
}

/* What its bytes take, by the means of what was measured before and after it. */
static void set_limits(const struct run *r, struct block *k, double disk_bytes, double experts, struct rates before, struct rates after)
{
	k->disk_beside = (before.disk_beside + after.disk_beside) / (before.disk + after.disk);
	k->memory_beside = (before.memory_beside + after.memory_beside) / (before.memory + after.memory);
	k->disk_s = 2 * disk_bytes / (before.disk + after.disk);
	k->memory_s = 2 * (TOKENS / BLOCKS * r->common_bytes + experts * r->expert_bytes) / (before.memory + after.memory);
}

static void run_block(struct bench *b, struct run *r, struct subject *d, int side, int k, float *logits, struct rates *before)
{
	struct side *to = &r->sides[side];
	struct block *block = &to->blocks[k];
	struct experts_stats was, is;
	struct rates after;
	double began;

	experts_predict(d->m->experts, side == AHEAD);
	experts_stats(d->m->experts, &was);
	began = measure_now();
	decode(d, b->trace, logits, WARM + k * (TOKENS / BLOCKS), TOKENS / BLOCKS);
	block->seconds = measure_now() - began;
	experts_stats(d->m->experts, &is);
	after = probe(b, r->expert_bytes);
	set_limits(r, block, (double)(is.read_bytes - was.read_bytes), (double)(is.taken - was.taken), *before, after);
	add(&to->stats, &was, &is);
	to->all.seconds += block->seconds;
	to->all.disk_s += block->disk_s;
	to->all.memory_s += block->memory_s;
	*before = after;
}

/* All tokens, a block with reading ahead and one without in turn; in the second pass with whom the first one had without. */
static void run_pass(struct bench *b, struct run *r, int pass, float *logits)
{
	struct experts_stats stats;
	struct rates before;
	struct subject d;

	open_subject(b, &d, r->share);
	if (r->share == 1)
		load_all(d.m);
	experts_stats(d.m->experts, &stats);
	r->n_slots = stats.n_slots;
	r->slot_bytes = stats.slot_bytes;
	/* A row of the embedding is read, not all. */
	r->common_bytes = (double)d.m->loaded_bytes - 2.0 * d.m->config.vocab * d.m->config.hidden;
	decode(&d, b->trace, logits, 0, WARM);
	before = probe(b, r->expert_bytes);
	for (int k = 0; k < BLOCKS; k++)
		run_block(b, r, &d, (k + pass) % r->n_sides, k, logits, &before);
	session_free(d.s);
	model_close(d.m);
}

static void run(struct bench *b, struct run *r)
{
	float *logits = xcalloc((size_t)b->synth.vocab, sizeof *logits);

	b->n_probes = 0;
	probe_for_plan(b);
	r->n_sides = r->share < 1 ? N_SIDES : 1;
	r->expert_bytes = expert_bytes(&b->synth);
	for (int pass = 0; pass < r->n_sides; pass++)
		run_pass(b, r, pass, logits);
	probe_for_plan(b);
	r->told = (struct plan_machine){
		.disk_bytes = INT64_MAX,
		.disk_read = measure_median(b->told_disk, b->n_probes),
		.host_read = measure_median(b->told_read, b->n_probes),
		.host_flops = measure_median(b->told_flops, b->n_probes),
	};
	free(logits);
}

static int64_t transfers(const struct bench *b, enum tier_rule rule, int64_t n_slots)
{
	struct tier_options opt = {.rule = rule, .share = (double)n_slots / (b->synth.n_moe_layers * EXPERTS), .warm_tokens = WARM, .seed = 1};
	struct tier_result r;

	tier_run(&r, b->trace, &opt);
	return r.transfers;
}

#define CELL "\"share\":%.2f,\"binds\":\"%s\""

static double limit_s(const struct block *k)
{
	return fmax(k->disk_s, k->memory_s);
}

/* Of a machine where each slows the other: both together until one of them is done, then the rest of the other. */
static double limit_of_both_s(const struct block *k)
{
	double disk = k->disk_s / k->disk_beside, memory = k->memory_s / k->memory_beside;

	return disk > memory ? memory + k->disk_s - memory * k->disk_beside : disk + k->memory_s - disk * k->memory_beside;
}

static void print_side(const struct bench *b, const struct run *r, const struct side *d)
{
	int64_t fewest = transfers(b, TIER_BELADY, r->n_slots), recent = transfers(b, TIER_LRU, r->n_slots);
	double pipes[BLOCKS], both[BLOCKS], beside[BLOCKS], pipe, policy = 1, lru = 1, disk_bytes = (double)d->stats.read_bytes;
	double memory_bytes = TOKENS * r->common_bytes + (double)d->stats.taken * r->expert_bytes;
	const char *disk = b->drive > 0 ? "steady drive" : "disk", *binds = d->all.disk_s > d->all.memory_s ? disk : "host memory";
	const char *ahead = d == &r->sides[AHEAD] ? "on" : "off";

	for (int k = 0; k < BLOCKS; k++) {
		pipes[k] = limit_s(&d->blocks[k]) / d->blocks[k].seconds;
		both[k] = limit_of_both_s(&d->blocks[k]) / d->blocks[k].seconds;
		beside[k] = d->blocks[k].disk_beside;
	}
	pipe = measure_median(pipes, BLOCKS);
	if (r->share < 1) {
		policy = (double)(fewest * r->slot_bytes) / disk_bytes;
		lru = (double)fewest / (double)recent;
	}
	measure_print(stdout, "offload.tokens_per_s", TOKENS / d->all.seconds, "tokens/s", TOKENS / limit_s(&d->all),
		      CELL ",\"ahead\":\"%s\",\"format\":\"%s\",\"layers\":%d,\"slots\":%lld,\"expert_bytes\":%.0f,\"disk_gb_per_s\":%.3f,"
		      "\"memory_gb_per_s\":%.2f,\"hits\":%.3f,\"late\":%.3f,\"read_ahead\":%lld,\"useful\":%lld,\"spare\":%lld,\"behind\":%lld,"
		      "\"waited\":%.3f", r->share, binds, ahead, dtype_name(formats[b->format].dtype), b->synth.n_moe_layers,
		      (long long)r->n_slots, r->expert_bytes, disk_bytes ? disk_bytes / d->all.disk_s / 1e9 : 0,
		      memory_bytes / d->all.memory_s / 1e9, (double)d->stats.hits / (double)d->stats.taken,
		      (double)d->stats.late / (double)d->stats.taken, (long long)d->stats.ahead, (long long)d->stats.useful,
		      (long long)d->stats.spare, (long long)d->stats.behind, d->stats.waited_s / d->all.seconds);
	measure_print(stdout, "offload.pipe_eff", pipe, "ratio", 1, CELL ",\"ahead\":\"%s\",\"of_totals\":%.3f,\"least\":%.3f,"
		      "\"most\":%.3f,\"disk_s\":%.3f,\"memory_s\":%.3f,\"seconds\":%.3f,\"of_both\":%.3f,\"disk_beside_memory\":%.3f",
		      r->share, binds, ahead, limit_s(&d->all) / d->all.seconds, pipes[0], pipes[BLOCKS - 1], d->all.disk_s, d->all.memory_s,
		      d->all.seconds, measure_median(both, BLOCKS), measure_median(beside, BLOCKS));
	measure_print(stdout, "offload.policy_eff", policy, "ratio", 1, CELL ",\"ahead\":\"%s\",\"reads\":%lld,\"read_gb\":%.2f,"
		      "\"belady\":%lld,\"lru_reads\":%lld,\"lru\":%.3f", r->share, binds, ahead, (long long)d->stats.reads,
		      disk_bytes / 1e9, (long long)(r->share < 1 ? fewest : 0), (long long)(r->share < 1 ? recent : 0), lru);
	measure_print(stdout, "offload.fraction_of_limit", pipe * policy, "ratio", 1, CELL ",\"ahead\":\"%s\",\"lru_fraction\":%.3f",
		      r->share, binds, ahead, pipe * lru);
}

static void print(const struct bench *b, const struct run *r)
{
	const struct side *ahead = &r->sides[AHEAD], *none = &r->sides[NONE];
	double ratio[BLOCKS / 2], median;

	for (int i = r->n_sides; i--; )
		print_side(b, r, &r->sides[i]);
	if (r->n_sides < N_SIDES)
		return;
	/* Neighbours of one pass, and the same tokens in the other: neither they nor what the machine does meanwhile count. */
	for (int k = 0; k < BLOCKS; k += 2)
		ratio[k / 2] = sqrt(none->blocks[k].seconds / ahead->blocks[k].seconds * none->blocks[k + 1].seconds / ahead->blocks[k + 1].seconds);
	median = measure_median(ratio, BLOCKS / 2);
	measure_print(stdout, "offload.ahead_over_none", median, "ratio", 0,
		      "\"share\":%.2f,\"on\":%.3f,\"off\":%.3f,\"of_totals\":%.3f,\"blocks\":%d,\"least\":%.3f,\"most\":%.3f", r->share,
		      TOKENS / ahead->all.seconds, TOKENS / none->all.seconds, none->all.seconds / ahead->all.seconds, BLOCKS, ratio[0],
		      ratio[BLOCKS / 2 - 1]);
}

/* The memory that leaves room for the slots, as a plan would count it. */
static void print_plan_error(const struct bench *b, const struct run *r)
{
	const struct plan_options opt = {.context = CONTEXT + WARM + TOKENS / 2, .weights = formats[b->format].plan, .latents = LATENTS_BF16,
					 .latent_cache_bytes = INT64_MAX};
	struct plan_machine k = r->told;
	struct plan_model m;
	struct plan p;
	double seconds[BLOCKS], measured, low, high;
	struct err err;

	for (int i = 0; i < BLOCKS; i++)
		seconds[i] = r->sides[AHEAD].blocks[i].seconds;
	measured = TOKENS / BLOCKS / measure_median(seconds, BLOCKS);
	if (plan_model_load(&m, b->dir, &err))
		measure_fail(&err);
	k.host_bytes = INT64_MAX / 2;
	plan_make(&p, &m, &k, &opt);
	k.host_bytes = (int64_t)(p.tier_bytes[PLAN_HOST] - p.routed_bytes + (uint64_t)r->n_slots * p.expert_bytes) + (1 << 16);
	plan_make(&p, &m, &k, &opt);
	if (fabs(p.expert_share[PLAN_HOST] - (double)r->n_slots / (b->synth.n_moe_layers * EXPERTS)) > .01) {
		fprintf(stderr, "offload: the plan has %.3f of the experts in memory\n", p.expert_share[PLAN_HOST]);
		exit(1);
	}
	low = fabs(p.low / measured - 1);
	high = fabs(p.high / measured - 1);
	measure_print(stdout, "plan.error", fmin(low, high), "ratio", 0, CELL ",\"low\":%.3f,\"high\":%.3f,\"measured\":%.3f,"
		      "\"inside\":%s,\"width\":%.3f,\"disk_gb_per_s\":%.3f,\"read_gb_per_s\":%.2f,\"gflop_per_s\":%.1f", r->share,
		      p.binds, p.low, p.high, measured,
		      measured >= p.low && measured <= p.high ? "true" : "false", 2 * (p.high - p.low) / (p.high + p.low),
		      k.disk_read / 1e9, k.host_read / 1e9, k.host_flops / 1e9);
}

int main(int argc, char **argv)
{
	static const double usual[] = {.05, .10, .25, .50, 1};
	struct engine_options engine = {.compute = COMPUTE_BF16};
	struct bench b = {.seed = 3, .format = SYNTH_FP8};
	struct ops forced;
	char *base;
	int first = 1;
	struct err err;

	for (; argc > first + 1 && !strncmp(argv[first], "--", 2); first += 2) {
		double rate = atof(argv[first + 1]);
		int n = (int)rate;

		if (!strcmp(argv[first], "--expert-dim") && n >= 256 && n % 256 == 0)
			b.expert_dim = n;
		else if (!strcmp(argv[first], "--layers") && n >= LAYERS_LEAST && n <= LAYERS_MOST)
			b.layers_most = n;
		else if (!strcmp(argv[first], "--drive") && rate > 0)
			b.drive = rate * 1e9;
		else if (!strcmp(argv[first], "--format") && synth_format_from_name(argv[first + 1]) >= 0)
			b.format = synth_format_from_name(argv[first + 1]);
		else
			return fprintf(stderr, "offload: %s %s: --format is fp8, bf16 or int4, --expert-dim a multiple of 256, --layers %d to %d, "
				       "--drive above 0\n",
				       argv[first], argv[first + 1], LAYERS_LEAST, LAYERS_MOST), 2;
	}
	b.room = free_memory() - 3e9;
	if (file_make_directories("build/bench", &err))
		measure_fail(&err);
	base = realpath("build/bench", NULL);
	if (!base || setenv("TMPDIR", base, 1))
		return perror("build/bench"), 1;
	b.base = temp_dir_new();
	temp_dir_guard(b.base);
	if (engine_open(&b.e, &engine, &err) || pool_new(&b.pool, engine_n_threads(b.e), &err))
		measure_fail(&err);
	forced = forced_routers(b.e->ops);
	b.e->ops = &forced;
	b.probe = measure_buffer(b.pool, PROBE_BYTES);
	for (int i = 0; i < (argc > first ? argc - first : 5); i++) {
		struct run r = {.share = argc > first ? strtod(argv[first + i], NULL) : usual[i]};

		if (!(r.share > 0 && r.share <= 1))
			return fprintf(stderr, "offload: \"%s\" is no share; from .04 to 1 are\n", argv[first + i]), 2;
		need_checkpoint(&b, r.share);
		run(&b, &r);
		print(&b, &r);
		print_plan_error(&b, &r);
	}
	close_checkpoint(&b);
	measure_buffer_free(b.probe, PROBE_BYTES);
	pool_free(b.pool);
	engine_close(b.e);
	temp_dir_free(b.base);
	free(base);
	return 0;
}
