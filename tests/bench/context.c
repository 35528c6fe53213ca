/*
 * Long contexts: how fast tokens are decoded and prefilled at a depth, how their cost grows with it, and what memory it
 * takes.
 *
 *   context [--depth 1K,8K,64K,256K,1M] [--compute f32|bf16] [--threads N] [--prefill N] [--decode N]
 *
 * The model is synthetic (made once, below build/bench): GLM-5.2's 78 layers, schedule and indexer, 21 full layers of
 * 32 heads x 128 with the best 2048 kept, and all else as small as it can be. So the index scan, the one part of a
 * token's cost that grows with the context, is measured undiluted; nothing here is a speed of GLM-5.2. One session is
 * filled with random latents from depth to depth, and cut back after each measurement.
 *
 * decode: median over the tokens of one run. Prefill: median of up to 3 rounds, one where a round takes a minute. The
 * limit of both is the index scan alone at what this machine was measured to do in the same minute: the larger of its
 * operations (per key, layer and token 2 x heads x dim for the products and 2 x heads for their sum) over the peak of bf16
 * dot products where profile and processor have them, else of float32 FMAs, and the bytes of all index keys, once
 * a call, over the bandwidth of reading. At 1K nothing is scanned, and there is no limit to print.
 *
 * decode_exponent: what is depth-independent is not guessed by the fit but measured, at the deepest place where a
 * token still sees no more than the 2048 positions that are attended to anyway and nothing is scored. That cost is
 * taken from the cost at each depth from 8K on; the exponent is the slope of the least-squares line through log(rest)
 * over log(depth), each depth counting once. It should be at most 1.05 (1: linear). `steepest` is the
 * largest slope between neighbouring depths, which a good fit could hide. Both need two such depths.
 *
 * peak_memory: the process's high-water mark at each depth, beside latents, index keys, weights and scratch by formula.
 */
#include <getopt.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "config/file.h"
#include "config/mem.h"
#include "config/units.h"
#include "engine/engine.h"
#include "engine/synth.h"
#include "tests/support/measure.h"

enum {
	MAX_DEPTHS = 16,
	MAX_TOKENS = 4096,      /* prefilled or decoded at a depth */
	SPARE = 8192,           /* positions behind the deepest */
	PREFILL_ROUNDS = 3,
	PROBES = 5,
	PROBE_BYTES = 256 << 20,
	FIT_FROM = 8192,        /* depths from here on: at least four times what is attended to */
};

struct options {
	int64_t depths[MAX_DEPTHS]; /* ascending */
	int n_depths;
	int64_t n_prefill, n_decode, n_threads;
	enum compute_profile compute;
};

struct bench {
	const struct options *o;
	struct model *m;
	struct engine *e;
	struct session *s;
	struct pool *pool;      /* of the probes */
	void *buffer;
	float *logits;
	int32_t ids[MAX_TOKENS];
	double peak, bandwidth; /* operations, bytes a second, at the present depth */
};

static void fail(const char *sentence)
{
	fprintf(stderr, "context: %s\n", sentence);
	exit(1);
}

/* ---- options ---------------------------------------------------------------------------------------------------- */

/* "64K", "1M" (powers of 1024), "5000". */
static int64_t depth_of(const char *text)
{
	char *end;
	long long n = strtoll(text, &end, 10);

	if (*end == 'K' || *end == 'M')
		n <<= *end++ == 'K' ? 10 : 20;
	if (end == text || *end || n < 1 || n > (1 << 23))
		fail("--depth: a list such as 1K,8K,64K,256K,1M is expected");
	return n;
}

static const char *depth_name(int64_t n)
{
	static char text[24];

	if (n % (1 << 20) == 0)
		snprintf(text, sizeof text, "%lldM", (long long)(n >> 20));
	else
		snprintf(text, sizeof text, n % 1024 ? "%lld" : "%lldK", (long long)(n % 1024 ? n : n >> 10));
	return text;
}

static int ascending(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static void parse_depths(struct options *o, char *list)
{
	o->n_depths = 0;
	for (char *word = strtok(list, ","); word; word = strtok(NULL, ",")) {
		if (o->n_depths == MAX_DEPTHS)
			fail("--depth: too many of them");
		o->depths[o->n_depths++] = depth_of(word);
	}
	if (!o->n_depths)
		fail("--depth: there is none");
	qsort(o->depths, (size_t)o->n_depths, sizeof o->depths[0], ascending);
}

static void parse_tokens(int64_t *out, const char *text, int64_t most)
{
	struct err err = {0};

	if (count_parse(out, text, 1, most, &err))
		measure_fail(&err);
}

static void parse(struct options *o, int argc, char **argv)
{
	static const struct option known[] = {{"depth", required_argument, NULL, 'd'},
					      {"compute", required_argument, NULL, 'c'},
					      {"threads", required_argument, NULL, 't'},
					      {"prefill", required_argument, NULL, 'p'},
					      {"decode", required_argument, NULL, 'n'},
					      {0}};
	int c, i;

	*o = (struct options){.depths = {1 << 10, 8 << 10, 64 << 10, 256 << 10, 1 << 20}, .n_depths = 5,
			      .n_prefill = 512, .n_decode = 16, .n_threads = pool_default_threads(),
			      .compute = COMPUTE_BF16};
	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 'd':
			parse_depths(o, optarg);
			break;
		case 'c':
			i = compute_profile_from_name(optarg);
			if (i < 0)
				fail("--compute: f32 and bf16 are known");
			o->compute = (enum compute_profile)i;
			break;
		case 't':
			parse_tokens(&o->n_threads, optarg, 1024);
			break;
		case 'p':
			parse_tokens(&o->n_prefill, optarg, MAX_TOKENS);
			break;
		case 'n':
			parse_tokens(&o->n_decode, optarg, MAX_TOKENS);
			break;
		default:
			exit(2); /* getopt has said why */
		}
	}
	if (optind != argc)
		fail("there are options only: --depth, --compute, --threads, --prefill, --decode");
}

/* ---- the model and its session ---------------------------------------------------------------------------------- */

static struct synth_options dimensions(int64_t deepest)
{
	struct synth_options o = synth_glm52;

	o.n_dense_layers = 3;
	o.n_moe_layers = 75;
	o.format = SYNTH_BF16;
	o.hidden = 64;
	o.n_heads = 2;
	o.q_lora = 32;
	o.kv_lora = 32;
	o.nope_dim = 16;
	o.rope_dim = 16;
	o.v_dim = 16;
	o.dense_dim = 64;
	o.expert_dim = 16;
	o.n_experts = 4;
	o.experts_per_token = 2;
	o.vocab = SYNTH_LEAST_VOCAB;
	o.max_positions = deepest > (1 << 20) ? deepest + SPARE : (1 << 20) + SPARE;
	return o;
}

/* The checkpoint of these dimensions: one that an earlier run made, or a new one. */
static struct model *open_model(const struct synth_options *o, int n_threads)
{
	char *config = synth_config_json(o);
	char *dir = xasprintf("build/bench/context-%016llx",
			      (unsigned long long)XXH3_64bits_withSeed(config, strlen(config), o->seed));
	char *made = xasprintf("%s/config.json", dir);
	struct model_options opt = {.n_threads = n_threads};
	struct model *m = NULL;
	struct err err = {0};

	if (access(made, F_OK) && (file_make_directories(dir, &err) || synth_write(dir, o, NULL, &err)))
		measure_fail(&err);
	if (model_open(&m, dir, &opt, &err))
		measure_fail(&err);
	free(made);
	free(dir);
	free(config);
	return m;
}

static void start(struct bench *b, const struct options *o)
{
	struct synth_options synth = dimensions(o->depths[o->n_depths - 1]);
	struct engine_options engine = {.n_threads = (int)o->n_threads, .compute = o->compute};
	struct session_options session = {.latents = LATENTS_BF16};
	struct err err = {0};

	b->o = o;
	b->m = open_model(&synth, (int)o->n_threads);
	if (engine_open(&b->e, &engine, &err) || session_new(&b->s, b->e, b->m, &session, &err) ||
	    pool_new(&b->pool, (int)o->n_threads, &err))
		measure_fail(&err);
	b->buffer = measure_buffer(b->pool, PROBE_BYTES);
	b->logits = xcalloc((size_t)b->m->config.vocab, sizeof *b->logits);
	for (int i = 0; i < MAX_TOKENS; i++)
		b->ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)b->m->config.vocab);
}

static void stop(struct bench *b)
{
	free(b->logits);
	measure_buffer_free(b->buffer, PROBE_BYTES);
	pool_free(b->pool);
	session_free(b->s);
	engine_close(b->e);
	model_close(b->m);
}

/* ---- limits ----------------------------------------------------------------------------------------------------- */

static double arithmetic(void *arg)
{
	struct bench *b = arg;
	double dot = b->o->compute == COMPUTE_BF16 ? probe_bf16_dot(b->pool) : 0;

	return dot > 0 ? dot : probe_fma(b->pool);
}

static double reading(void *arg)
{
	struct bench *b = arg;

	return probe_read(b->pool, b->buffer, PROBE_BYTES);
}

static void probe(struct bench *b)
{
	struct measure_case cases[] = {{arithmetic, b, 0}, {reading, b, 0}};

	measure_rounds(cases, 2, PROBES);
	b->peak = cases[0].median;
	b->bandwidth = cases[1].median;
}

static int32_t n_full_layers(const struct bench *b)
{
	return session_layout(b->s)->n_index_layers;
}

static size_t value_bytes(const struct bench *b)
{
	return b->o->compute == COMPUTE_BF16 ? 2 : 4;
}

/* Seconds that scanning takes at least when n tokens are appended at `depth`; 0: nothing is scanned. */
static double scan_seconds(const struct bench *b, int64_t depth, int64_t n)
{
	const struct model_config *c = &b->m->config;
	double keys = 0, seen = 0, operations, bytes;

	for (int64_t t = depth + 1; t <= depth + n; t++) {
		if (t <= c->index_topk)
			continue;
		keys += (double)t;
		seen = (double)t;
	}
	operations = keys * n_full_layers(b) * 2 * c->index_n_heads * (c->index_dim + 1);
	bytes = seen * n_full_layers(b) * c->index_dim * (double)value_bytes(b);
	return fmax(operations / b->peak, bytes / b->bandwidth);
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static void append(struct bench *b, int64_t n)
{
	struct err err = {0};

	if (session_append(b->s, b->ids, (size_t)n, b->logits, NULL, &err))
		measure_fail(&err);
}

/* Seconds a token: the median, from the session's length and back to it. A first one warms up. */
static double decode(struct bench *b)
{
	double *seconds = xcalloc((size_t)b->o->n_decode, sizeof *seconds), median;
	int64_t depth = session_n_tokens(b->s);

	append(b, 1);
	for (int64_t i = 0; i < b->o->n_decode; i++) {
		double from = measure_now();

		append(b, 1);
		seconds[i] = measure_now() - from;
	}
	session_truncate(b->s, depth);
	median = measure_median(seconds, (int)b->o->n_decode);
	free(seconds);
	return median;
}

/* Seconds for n_prefill tokens in one call; *rounds of them were run. */
static double prefill(struct bench *b, int *rounds)
{
	double seconds[PREFILL_ROUNDS];
	int64_t depth = session_n_tokens(b->s);

	for (*rounds = 0; *rounds < PREFILL_ROUNDS && !(*rounds && (seconds[0] > 60 || depth >= 1 << 20)); ++*rounds) {
		double from = measure_now();

		append(b, b->o->n_prefill);
		seconds[*rounds] = measure_now() - from;
		session_truncate(b->s, depth);
	}
	return measure_median(seconds, *rounds);
}

static double high_water_bytes(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[256];
	double kb = 0;

	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, "VmHWM:", 6))
			kb = strtod(line + 6, NULL);
	if (f)
		fclose(f);
	return kb * 1024;
}

static void print_memory(const struct bench *b, int64_t depth)
{
	const struct model_config *c = &b->m->config;
	double value = (double)value_bytes(b), tokens = (double)(depth + b->o->n_prefill);
	double latents = tokens * c->n_layers * (c->kv_lora + c->rope_dim) * value;
	double keys = tokens * n_full_layers(b) * c->index_dim * value;
	/* Scores of 2^24 positions at most, index queries and sets of the prefilled tokens; the probes' buffer. */
	double scratch = 4 * fmin(tokens * (double)b->o->n_prefill, 1 << 24) +
			 4.0 * (double)b->o->n_prefill * (c->index_n_heads * c->index_dim + c->index_topk);
	double formula = latents + keys + (double)b->m->loaded_bytes + scratch + PROBE_BYTES;

	measure_print(stdout, "context.peak_memory", high_water_bytes(), "bytes", formula,
		      "\"context\":\"%s\",\"latent_bytes\":%.0f,\"index_key_bytes\":%.0f,\"weight_bytes\":%.0f,"
		      "\"scratch_bytes\":%.0f,\"probe_bytes\":%d", depth_name(depth), latents, keys,
		      (double)b->m->loaded_bytes, scratch, PROBE_BYTES);
}

static double fill_to(struct bench *b, int64_t depth)
{
	struct err err = {0};
	double from = measure_now();

	if (session_fill(b->s, depth - session_n_tokens(b->s), 1, &err))
		measure_fail(&err);
	return measure_now() - from;
}

/* Decode's seconds a token. */
static double at_depth(struct bench *b, int64_t depth)
{
	double fill_s = fill_to(b, depth), decode_s, prefill_s, least;
	const char *compute = compute_profile_name(b->o->compute), *isa = engine_isa(b->e);
	int threads = engine_n_threads(b->e), rounds;

	probe(b);
	decode_s = decode(b);
	least = scan_seconds(b, depth + 1, 1);
	measure_print(stdout, "context.decode_tokens_per_s", 1 / decode_s, "tokens/s", least > 0 ? 1 / least : 0,
		      "\"context\":\"%s\",\"tokens\":%lld,\"compute\":\"%s\",\"isa\":\"%s\",\"threads\":%d,"
		      "\"peak_gflops\":%.1f,\"read_gb_per_s\":%.2f,\"fill_s\":%.1f", depth_name(depth),
		      (long long)b->o->n_decode, compute, isa, threads, b->peak / 1e9, b->bandwidth / 1e9, fill_s);
	probe(b); /* again: the machine may have changed since */
	prefill_s = prefill(b, &rounds);
	least = scan_seconds(b, depth, b->o->n_prefill);
	measure_print(stdout, "context.prefill_tokens_per_s", (double)b->o->n_prefill / prefill_s, "tokens/s",
		      least > 0 ? (double)b->o->n_prefill / least : 0,
		      "\"context\":\"%s\",\"tokens\":%lld,\"rounds\":%d,\"compute\":\"%s\",\"isa\":\"%s\",\"threads\":%d",
		      depth_name(depth), (long long)b->o->n_prefill, rounds, compute, isa, threads);
	print_memory(b, depth);
	return decode_s;
}

/* ---- how the cost grows ----------------------------------------------------------------------------------------- */

struct point {
	double x, y; /* log depth, log of the seconds that depend on it */
};

static double slope(const struct point *p, int n)
{
	double x = 0, y = 0, xx = 0, xy = 0;

	for (int i = 0; i < n; i++) {
		x += p[i].x / n;
		y += p[i].y / n;
	}
	for (int i = 0; i < n; i++) {
		xx += (p[i].x - x) * (p[i].x - x);
		xy += (p[i].x - x) * (p[i].y - y);
	}
	return xy / xx;
}

static void print_exponent(const struct options *o, const double *seconds, double fixed_s)
{
	struct point points[MAX_DEPTHS];
	double steepest = -INFINITY;
	char list[256] = "";
	int n = 0;

	for (int i = 0; i < o->n_depths; i++) {
		if (o->depths[i] < FIT_FROM)
			continue;
		if (!(seconds[i] > fixed_s))
			fail("a deep token was no dearer than a shallow one: too noisy to say how the cost grows");
		points[n].x = log((double)o->depths[i]);
		points[n].y = log(seconds[i] - fixed_s);
		if (n && points[n].x > points[n - 1].x)
			steepest = fmax(steepest, slope(points + n - 1, 2));
		snprintf(list + strlen(list), sizeof list - strlen(list), "%s%.6g", n ? "," : "", seconds[i] - fixed_s);
		n++;
	}
	if (n < 2 || points[0].x >= points[n - 1].x) {
		fprintf(stderr, "context: no exponent from fewer than two depths of at least %d\n", FIT_FROM);
		return;
	}
	measure_print(stdout, "context.decode_exponent", slope(points, n), "exponent", 1.05,
		      "\"steepest\":%.4f,\"fixed_s\":%.6g,\"depth_s\":[%s],\"compute\":\"%s\"", steepest, fixed_s, list,
		      compute_profile_name(o->compute));
}

int main(int argc, char **argv)
{
	static struct bench b;
	double seconds[MAX_DEPTHS], fixed_s = 0;
	struct options o;
	int64_t fixed;

	parse(&o, argc, argv);
	start(&b, &o);
	fixed = b.m->config.index_topk - o.n_decode - 1; /* room for the tokens decoded there, and one to warm up */
	if (fixed < 1)
		fail("--decode: more tokens than the indexer keeps positions");
	for (int i = 0; i < o.n_depths; i++) {
		if (!fixed_s && o.depths[i] > fixed) {
			session_truncate(b.s, fixed < session_n_tokens(b.s) ? fixed : session_n_tokens(b.s));
			fill_to(&b, fixed);
			fixed_s = decode(&b);
		}
		seconds[i] = at_depth(&b, o.depths[i]);
	}
	print_exponent(&o, seconds, fixed_s);
	stop(&b);
	return 0;
}
