/*
 * The CPU kernels beside what this machine could do at best: for each a fraction of the roofline, which is the slower of
 * its bytes over the read bandwidth and its operations over the peak of the instruction that its profile may use (bf16 dot
 * products where the processor has them and the weights fit bf16, else float32 fused multiply-adds; "binds" says which).
 * Bandwidth and peaks are probed in the same rounds, medians of ROUNDS interleaved rounds, all threads. Weights and keys
 * are far larger than the caches; some outputs of every product are compared with the scalar definition.
 *
 *     kernels [gemv] [gemm] [scan] [mla] [pack] [sums]   those parts; without arguments all of them
 *     kernels --count CASE                   run one case once, small: what callgrind counts
 *
 * "instructions" is what one unit of the work takes (a multiplication by a weight, a key and head, ...), as callgrind
 * counts them on the avx2 kernels with one thread: a number that repeats, null without valgrind.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/mem.h"
#include "config/xxh3.h"
#include "engine/int4.h"
#include "engine/numeric.h"
#include "tests/support/measure.h"
#include "tests/support/op_cases.h"

enum { ROUNDS = 7, MB = 1 << 20 };

enum { HIDDEN = 6144, EXPERT = 2048, PROMPT = 512, HEADS = 64, LATENT = 512, ROPE = 64, INDEX_HEADS = 32, INDEX_DIM = 128,
       TOPK = 2048, LONG = 1 << 20, SHORT = 1 << 17, QUERIES = 64 };

static struct backend b;

static void fail(const char *what)
{
	struct err err = {0};

	err_set(&err, ERR_FAILED, "%s", what);
	measure_fail(&err);
}

/*
 * Words whose bytes are harmless in every format: as bf16, or the upper half of a float32, of magnitude 2^-7 to 2^1 and
 * both signs; as FP8 codes never NaN.
 */
static void fill_words(void *arg, int64_t first, int64_t end, int thread)
{
	uint16_t *words = arg;
	uint64_t x = (uint64_t)first * 0x9e3779b97f4a7c15u + 1;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		words[i] = (uint16_t)(0x3c00 | (x >> 40 & 0x8377));
	}
}

static void *random_words(size_t bytes)
{
	void *words = measure_buffer(b.pool, bytes);

	pool_run(b.pool, fill_words, words, (int64_t)(bytes / 2), 8);
	return words;
}

/* ---- products with weights --------------------------------------------------------------------------------------- */

struct product_case {
	const char *format, *count;
	enum compute_profile profile;
	struct weight w;
	int64_t n;
	const float *x;
	float *y;
};

static double run_product(void *arg)
{
	struct product_case *c = arg;
	double start = measure_now();

	b.ops->matmul(&b.dev, c->y, c->w.rows, c->x, c->w.cols, &c->w, c->n, c->profile);
	return measure_now() - start;
}

/* Some outputs, against the definition. */
static void check_product(const struct product_case *c)
{
	for (int64_t k = 0; k < 5; k++) {
		int32_t r = (int32_t)(k * 977 % c->w.rows);
		int64_t i = k * 101 % c->n;
		struct weight row = weight_rows(&c->w, r, 1);
		float want;

		cpu_ops("scalar")->matmul(&b.dev, &want, 1, c->x + i * c->w.cols, c->w.cols, &row, 1, c->profile);
		if (f32_bits(want) != f32_bits(c->y[i * c->w.rows + r]))
			fail("a product differs from its definition");
	}
}

static struct weight weight_of(enum dtype dtype, const void *data, size_t bytes, int32_t rows, int32_t cols)
{
	struct weight w = {.dtype = dtype, .rows = rows, .cols = cols, .data = data};
	size_t n; /* scales: as many as int4 has, which is more than FP8 has */

	if (!rows)
		w.rows = (int32_t)(bytes / weight_row_bytes(&w));
	n = (size_t)w.rows * (size_t)(cols / INT4_GROUP);
	if (dtype == DTYPE_F8_E4M3) {
		float *scale = xmalloc(n, sizeof *scale);

		for (size_t i = 0; i < n; i++)
			scale[i] = 0.5f + (float)(i % 7) / 8;
		w.scale = scale;
	} else if (dtype == DTYPE_INT4) {
		uint16_t *scale = xmalloc(n, sizeof *scale);

		for (size_t i = 0; i < n; i++)
			scale[i] = f32_to_bf16(0.5f + (float)(i % 7) / 8);
		w.group_scale = scale;
	}
	return w;
}

static double read_probe(void *arg)
{
	struct weight *w = arg;

	return probe_read(b.pool, w->data, (size_t)w->rows * weight_row_bytes(w));
}

static double fma_probe(void *arg)
{
	(void)arg;
	return probe_fma(b.pool);
}

static double dot_probe(void *arg)
{
	(void)arg;
	return strcmp(b.ops->isa, "avx512bf16") ? 0 : probe_bf16_dot(b.pool);
}

/* ---- instruction counts ------------------------------------------------------------------------------------------ */

static char self[4096];

/* Instructions of a case by callgrind, divided by its units; negative: not to be had. */
static double count_instructions(const char *count)
{
	char *command = xasprintf("valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect=counted "
				  "'%s' --count %s 2>&1", self, count);
	double instructions = -1, units = -1;
	char line[512];
	FILE *f;

	if (count && !access("/usr/bin/valgrind", X_OK) && (f = popen(command, "r"))) {
		while (fgets(line, sizeof line, f)) {
			const char *collected = strstr(line, "Collected :");

			if (collected)
				instructions = strtod(collected + 11, NULL);
			if (!strncmp(line, "units ", 6))
				units = strtod(line + 6, NULL);
		}
		pclose(f);
	}
	free(command);
	return units > 0 ? instructions / units : -1;
}

/* A number, or null where it is negative. */
static const char *json_number(char out[32], double x)
{
	if (x < 0)
		strcpy(out, "null");
	else
		snprintf(out, 32, "%.3f", x);
	return out;
}

static void bench_products(const char *bench, struct product_case *c, int n_cases)
{
	enum { READ, FMA, DOT, FIRST };
	struct measure_case cases[FIRST + 4] = {
		[READ] = {read_probe, &c[0].w, 0}, [FMA] = {fma_probe, NULL, 0}, [DOT] = {dot_probe, NULL, 0}};

	for (int i = 0; i < n_cases; i++)
		cases[FIRST + i] = (struct measure_case){run_product, &c[i], 0};
	measure_rounds(cases, FIRST + n_cases, ROUNDS);
	for (int i = 0; i < n_cases; i++) {
		bool dot = cases[DOT].median > 0 && c[i].profile == COMPUTE_BF16 && c[i].w.dtype != DTYPE_F32;
		double ops = 2.0 * (double)c[i].n * c[i].w.rows * c[i].w.cols, bytes = (double)weight_bytes(&c[i].w);
		double peak = cases[dot ? DOT : FMA].median, seconds = cases[FIRST + i].median;
		double by_memory = bytes / cases[READ].median, by_compute = ops / peak;
		char instructions[32];

		check_product(&c[i]);
		measure_print(stdout, bench, (by_memory > by_compute ? by_memory : by_compute) / seconds, "of roofline", 1,
			      "\"format\":\"%s\",\"compute\":\"%s\",\"rows\":%lld,\"binds\":\"%s\",\"gb_per_s\":%.1f,"
			      "\"read_gb_per_s\":%.1f,\"gflop_per_s\":%.1f,\"peak_gflop_per_s\":%.1f,\"isa\":\"%s\","
			      "\"threads\":%d,\"instructions_per_product\":%s", c[i].format, compute_profile_name(c[i].profile),
			      (long long)c[i].n, by_memory > by_compute ? "memory" : dot ? "bf16 dot" : "float32 fma",
			      bytes / seconds / 1e9, cases[READ].median / 1e9, ops / seconds / 1e9, peak / 1e9, b.ops->isa,
			      pool_n_threads(b.pool), json_number(instructions, count_instructions(c[i].count)));
	}
}

static void bench_gemv(void)
{
	size_t bytes = (size_t)320 * MB;
	void *data = random_words(bytes);
	struct random r = {1};
	float *x = random_floats(&r, HIDDEN);
	struct product_case c[] = {
		{"bf16", "gemv-bf16", COMPUTE_BF16, weight_of(DTYPE_BF16, data, bytes, 0, HIDDEN), 1, x, NULL},
		{"f32", "gemv-f32", COMPUTE_BF16, weight_of(DTYPE_F32, data, bytes, 0, HIDDEN), 1, x, NULL},
		{"fp8", "gemv-fp8", COMPUTE_BF16, weight_of(DTYPE_F8_E4M3, data, bytes, 0, HIDDEN), 1, x, NULL},
		{"int4", "gemv-int4", COMPUTE_BF16, weight_of(DTYPE_INT4, data, bytes, 0, HIDDEN), 1, x, NULL},
	};

	for (int i = 0; i < 4; i++)
		c[i].y = xmalloc((size_t)c[i].w.rows, sizeof *x);
	bench_products("kernels.gemv_fraction", c, 4);
	for (int i = 0; i < 4; i++) {
		free(c[i].y);
		free((void *)(uintptr_t)c[i].w.scale);
		free((void *)(uintptr_t)c[i].w.group_scale);
	}
	free(x);
	measure_buffer_free(data, bytes);
}

static void bench_gemm(void)
{
	size_t bytes = (size_t)HIDDEN * EXPERT * 4;
	void *data = random_words(bytes);
	struct random r = {1};
	float *x = random_floats(&r, (size_t)PROMPT * HIDDEN);
	struct product_case c[] = {
		{"bf16", "gemm-bf16", COMPUTE_BF16, weight_of(DTYPE_BF16, data, bytes, EXPERT, HIDDEN), PROMPT, x, NULL},
		{"fp8", "gemm-fp8", COMPUTE_BF16, weight_of(DTYPE_F8_E4M3, data, bytes, EXPERT, HIDDEN), PROMPT, x, NULL},
		{"bf16", "gemm-bf16-f32", COMPUTE_F32, weight_of(DTYPE_BF16, data, bytes, EXPERT, HIDDEN), PROMPT, x, NULL},
	};

	for (int i = 0; i < 3; i++)
		c[i].y = xmalloc((size_t)PROMPT * EXPERT, sizeof *x);
	bench_products("kernels.gemm_fraction", c, 3);
	for (int i = 0; i < 3; i++)
		free(c[i].y);
	free((void *)(uintptr_t)c[1].w.scale);
	free(x);
	measure_buffer_free(data, bytes);
}

/* ---- the index scan, and the choice ------------------------------------------------------------------------------ */

struct scan_case {
	const void *keys;
	const float *q, *w;
	float *scores;
	int64_t n_keys, n;
	int32_t *set;
};

static double run_scan(void *arg)
{
	struct scan_case *c = arg;
	int64_t visible[QUERIES];
	double start;

	for (int i = 0; i < QUERIES; i++)
		visible[i] = c->n_keys;
	start = measure_now();
	b.ops->index_scores(&b.dev, c->scores, c->n_keys, c->q, c->w, c->keys, visible, INDEX_HEADS, INDEX_DIM, c->n,
			    COMPUTE_BF16);
	return measure_now() - start;
}

static double run_topk(void *arg)
{
	struct scan_case *c = arg;
	double start = measure_now();
	int32_t n_set;

	b.ops->topk_positions(&b.dev, c->set, TOPK, &n_set, c->scores, c->n_keys, &c->n_keys, TOPK, 1);
	if (n_set != TOPK)
		fail("the choice is of another size");
	return measure_now() - start;
}

static void check_scan(const struct scan_case *c)
{
	float want[16];

	for (int64_t t = 0; t < c->n_keys; t += c->n_keys / 5 / 16 * 16) {
		int64_t visible = 16;

		cpu_ops("scalar")->index_scores(&b.dev, want, 16, c->q, c->w, (const uint16_t *)c->keys + t * INDEX_DIM, &visible,
						INDEX_HEADS, INDEX_DIM, 1, COMPUTE_BF16);
		if (memcmp(want, c->scores + t, (c->n_keys - t < 16 ? (size_t)(c->n_keys - t) : 16) * sizeof *want))
			fail("an index score differs from its definition");
	}
}

static void bench_scan(void)
{
	enum { FMA, DOT, ONE, CHOICE, MANY, N_CASES };
	size_t bytes = (size_t)LONG * INDEX_DIM * 2;
	void *keys = random_words(bytes);
	struct random r = {1};
	float *q = random_floats(&r, QUERIES * INDEX_HEADS * INDEX_DIM), *w = random_floats(&r, QUERIES * INDEX_HEADS);
	struct scan_case one = {keys, q, w, xmalloc(LONG, 4), LONG, 1, xmalloc(TOPK, 4)};
	struct scan_case many = {keys, q, w, xmalloc((size_t)QUERIES * SHORT, 4), SHORT, QUERIES, NULL};
	struct measure_case cases[N_CASES] = {
		[FMA] = {fma_probe, NULL, 0}, [DOT] = {dot_probe, NULL, 0}, [ONE] = {run_scan, &one, 0},
		[CHOICE] = {run_topk, &one, 0}, [MANY] = {run_scan, &many, 0}};
	double peak;
	char instructions[32];

	measure_rounds(cases, N_CASES, ROUNDS);
	check_scan(&one);
	check_scan(&many);
	peak = cases[DOT].median > 0 ? cases[DOT].median : cases[FMA].median;
	for (int i = ONE; i <= MANY; i += MANY - ONE) {
		const struct scan_case *c = cases[i].arg;
		double ops = 2.0 * INDEX_HEADS * INDEX_DIM * (double)c->n_keys * (double)c->n;

		measure_print(stdout, "kernels.scan_fraction", ops / peak / cases[i].median, "of roofline", 1,
			      "\"queries\":%lld,\"keys\":%lld,\"binds\":\"%s\",\"gflop_per_s\":%.1f,\"peak_gflop_per_s\":%.1f,"
			      "\"isa\":\"%s\",\"threads\":%d,\"instructions_per_key_and_head\":%s", (long long)c->n,
			      (long long)c->n_keys, cases[DOT].median > 0 ? "bf16 dot" : "float32 fma",
			      ops / cases[i].median / 1e9, peak / 1e9, b.ops->isa, pool_n_threads(b.pool),
			      json_number(instructions, count_instructions("scan")));
	}
	measure_print(stdout, "kernels.topk_over_scan", cases[CHOICE].median / cases[ONE].median, "of the scan's time", 0.1,
		      "\"k\":%d,\"scores\":%d,\"topk_ms\":%.3f,\"scan_ms\":%.2f,\"instructions_per_score\":%s", TOPK, LONG,
		      cases[CHOICE].median * 1e3, cases[ONE].median * 1e3,
		      json_number(instructions, count_instructions("topk")));
	free(q);
	free(w);
	free(one.scores);
	free(one.set);
	free(many.scores);
	measure_buffer_free(keys, bytes);
}

/* ---- attention over chosen latents ------------------------------------------------------------------------------- */

struct mla_case {
	struct latent_rows latents;
	const float *q;
	float *out;
	int32_t set[TOPK];
	struct random r;
	int64_t n_rows;
};

static void choose_rows(struct mla_case *c)
{
	int64_t step = c->n_rows / TOPK;

	for (int64_t t = 0; t < TOPK; t++)
		c->set[t] = (int32_t)(t * step + random_below(&c->r, (int32_t)step));
}

static double run_mla(void *arg)
{
	struct mla_case *c = arg;
	struct selection s = {c->set, TOPK};
	double start, total = 0;

	for (int i = 0; i < 5; i++) {
		choose_rows(c); /* others than last time: they come from memory */
		start = measure_now();
		b.ops->attend(&b.dev, c->out, c->q, &c->latents, &s, HEADS, 0.06f, 1, COMPUTE_BF16);
		total += measure_now() - start;
	}
	return total / 5;
}

static double gather_probe(void *arg)
{
	struct mla_case *c = arg;

	choose_rows(c);
	return probe_gather(b.pool, c->latents.rows, (size_t)c->latents.stride * 2, c->set, TOPK);
}

static void bench_mla(void)
{
	enum { FMA, DOT, GATHER, MLA, N_CASES, WIDTH = LATENT + ROPE };
	size_t bytes = (size_t)320 * MB / (WIDTH * 2) * (WIDTH * 2);
	void *rows = random_words(bytes);
	struct random r = {1};
	struct mla_case c = {{rows, WIDTH, LATENT, ROPE}, random_floats(&r, HEADS * WIDTH), xmalloc(HEADS * LATENT, 4), {0}, {2},
			     (int64_t)(bytes / (WIDTH * 2))};
	struct measure_case cases[N_CASES] = {
		[FMA] = {fma_probe, NULL, 0}, [DOT] = {dot_probe, NULL, 0}, [GATHER] = {gather_probe, &c, 0}, [MLA] = {run_mla, &c, 0}};
	double score_ops = 2.0 * HEADS * WIDTH * TOPK, sum_ops = 2.0 * HEADS * LATENT * TOPK, limit, gather;
	float *want = xmalloc(HEADS * LATENT, sizeof *want);
	struct selection s = {c.set, TOPK};
	char instructions[32];

	measure_rounds(cases, N_CASES, ROUNDS);
	cpu_ops("scalar")->attend(&b.dev, want, c.q, &c.latents, &s, HEADS, 0.06f, 1, COMPUTE_BF16);
	b.ops->attend(&b.dev, c.out, c.q, &c.latents, &s, HEADS, 0.06f, 1, COMPUTE_BF16);
	if (memcmp(want, c.out, HEADS * LATENT * sizeof *want))
		fail("attention differs from its definition");
	limit = score_ops / (cases[DOT].median > 0 ? cases[DOT].median : cases[FMA].median) + sum_ops / cases[FMA].median;
	gather = (double)TOPK * WIDTH * 2 / cases[GATHER].median;
	measure_print(stdout, "kernels.mla_fraction", limit / cases[MLA].median, "of roofline", 1,
		      "\"heads\":%d,\"rows\":%d,\"binds\":\"%s\",\"ms\":%.3f,\"limit_ms\":%.3f,\"gather_limit_ms\":%.3f,"
		      "\"isa\":\"%s\",\"threads\":%d,\"instructions_per_row_and_head\":%s", HEADS, TOPK,
		      cases[DOT].median > 0 ? "bf16 dot and float32 fma" : "float32 fma", cases[MLA].median * 1e3, limit * 1e3,
		      gather * 1e3, b.ops->isa, pool_n_threads(b.pool), json_number(instructions, count_instructions("mla")));
	free(want);
	free((void *)(uintptr_t)c.q);
	free(c.out);
	measure_buffer_free(rows, bytes);
}

/* ---- one case for callgrind -------------------------------------------------------------------------------------- */

/* What callgrind collects: the case alone, not its preparation. */
__attribute__((noinline)) double counted(double (*fn)(void *), void *arg);
__attribute__((noinline)) double counted(double (*fn)(void *), void *arg)
{
	return fn(arg);
}

/* ---- packing to int4, and sums: one thread ------------------------------------------------------------------------ */

struct pack_case {
	const struct ops *ops;
	const struct weight *w;
	uint8_t codes[HIDDEN / 2];
	uint16_t scales[HIDDEN / INT4_GROUP];
};

/* Nanoseconds a weight. */
static double run_pack(void *arg)
{
	struct pack_case *c = arg;
	double start = measure_now();
	struct int4_error error;

	for (int32_t r = 0; r < c->w->rows; r++)
		if (c->ops->int4_pack_row(c->codes, c->scales, &error, c->w, r) >= 0)
			fail("a weight is not finite");
	return (measure_now() - start) * 1e9 / ((double)c->w->rows * c->w->cols);
}

static void bench_pack(void)
{
	size_t bytes = (size_t)EXPERT * HIDDEN;
	void *data = random_words(bytes);
	struct weight w = weight_of(DTYPE_F8_E4M3, data, bytes, EXPERT, HIDDEN);
	struct pack_case *each = xcalloc(CPU_MAX_ISAS, sizeof *each);
	struct measure_case cases[CPU_MAX_ISAS];
	const char *isas[CPU_MAX_ISAS];
	int n = cpu_isas(isas, CPU_MAX_ISAS);

	for (int i = 0; i < n; i++) {
		each[i] = (struct pack_case){.ops = cpu_ops(isas[i]), .w = &w};
		cases[i] = (struct measure_case){run_pack, &each[i], 0};
	}
	measure_rounds(cases, n, ROUNDS);
	for (int i = 0; i < n; i++)
		measure_print(stdout, "kernels.pack_ns", cases[i].median, "ns a weight", 0,
			      "\"format\":\"fp8\",\"isa\":\"%s\",\"threads\":1", isas[i]);
	free(each);
	free((void *)(uintptr_t)w.scale);
	measure_buffer_free(data, bytes);
}

enum { RECORD = 4608, RECORDS = 64 }; /* of a group of layers; what a cache holds */

typedef uint64_t sum_fn(const void *data, size_t bytes, uint64_t seed);

static uint64_t plain_sum(const void *data, size_t bytes, uint64_t seed)
{
	return XXH3_64bits_withSeed(data, bytes, seed);
}

/* Bytes per second, of sums in turn. */
static double sum_rate(const char *data, sum_fn *sum)
{
	double start = measure_now();
	uint64_t all = 0;

	for (int round = 0; round < 100; round++)
		for (int i = 0; i < RECORDS; i++)
			all ^= sum(data + i * RECORD, RECORD, (uint64_t)i);
	start = measure_now() - start;
	if (all) /* each came an even number of times */
		fail("sums of the same bytes differ");
	return 100.0 * RECORDS * RECORD / start;
}

static double run_plain(void *arg)
{
	return sum_rate(arg, plain_sum);
}

static double run_wide(void *arg)
{
	return sum_rate(arg, xxh3_sum);
}

/* The plain one comes second in each round: it is slow where the wide one leaves registers as it should not (config/xxh3.h). */
static void bench_sums(void)
{
	enum { WIDE, PLAIN, N_CASES };
	void *data = random_words(RECORDS * RECORD);
	struct measure_case cases[N_CASES] = {[WIDE] = {run_wide, data, 0}, [PLAIN] = {run_plain, data, 0}};

	measure_rounds(cases, N_CASES, ROUNDS);
	measure_print(stdout, "kernels.sum_rate", cases[WIDE].median / 1e9, "GB/s", 0,
		      "\"bytes\":%d,\"plain_gb_per_s\":%.1f,\"threads\":1", RECORD, cases[PLAIN].median / 1e9);
	measure_buffer_free(data, RECORDS * RECORD);
}

static int count_product(const char *name)
{
	static const struct {
		const char *name;
		enum dtype dtype;
		int64_t n;
		enum compute_profile profile;
	} known[] = {
		{"gemv-bf16", DTYPE_BF16, 1, COMPUTE_BF16}, {"gemv-f32", DTYPE_F32, 1, COMPUTE_BF16},
		{"gemv-fp8", DTYPE_F8_E4M3, 1, COMPUTE_BF16}, {"gemv-int4", DTYPE_INT4, 1, COMPUTE_BF16},
		{"gemm-bf16", DTYPE_BF16, 96, COMPUTE_BF16}, {"gemm-fp8", DTYPE_F8_E4M3, 96, COMPUTE_BF16},
		{"gemm-bf16-f32", DTYPE_BF16, 96, COMPUTE_F32},
	};
	struct random r = {1};

	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
		if (!strcmp(known[i].name, name)) {
			size_t bytes = (size_t)96 * HIDDEN * 4;
			struct product_case c = {name, NULL, known[i].profile,
						 weight_of(known[i].dtype, random_words(bytes), bytes, 96, HIDDEN), known[i].n,
						 random_floats(&r, (size_t)known[i].n * HIDDEN), xmalloc(96 * 96, 4)};

			counted(run_product, &c);
			printf("units %.0f\n", (double)c.n * 96 * HIDDEN);
			return 0;
		}
	return -1;
}

static int count_case(const char *name)
{
	enum { WIDTH = LATENT + ROPE, KEYS = 8192 };
	struct random r = {1};
	float *q = random_floats(&r, HEADS * WIDTH), *w = random_floats(&r, INDEX_HEADS);

	if (!cpu_ops("avx2"))
		return 1;
	backend_open(&b, cpu_ops("avx2"), 1);
	if (!strcmp(name, "scan") || !strcmp(name, "topk")) {
		struct scan_case c = {random_words((size_t)KEYS * INDEX_DIM * 2), q, w, xmalloc(KEYS, 4), KEYS, 1, xmalloc(TOPK, 4)};

		if (!strcmp(name, "topk"))
			run_scan(&c);
		counted(strcmp(name, "topk") ? run_scan : run_topk, &c);
		printf("units %.0f\n", strcmp(name, "topk") ? (double)KEYS * INDEX_HEADS : (double)KEYS);
		return 0;
	}
	if (!strcmp(name, "mla")) {
		struct mla_case c = {{random_words((size_t)KEYS * WIDTH * 2), WIDTH, LATENT, ROPE}, q, xmalloc(HEADS * LATENT, 4),
				     {0}, {2}, KEYS};

		counted(run_mla, &c);
		printf("units %.0f\n", 5.0 * TOPK * HEADS);
		return 0;
	}
	return count_product(name) ? 1 : 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} parts[] = {{"gemv", bench_gemv}, {"gemm", bench_gemm}, {"scan", bench_scan}, {"mla", bench_mla},
		     {"pack", bench_pack}, {"sums", bench_sums}};

	if (argc == 3 && !strcmp(argv[1], "--count"))
		return count_case(argv[2]);
	if (readlink("/proc/self/exe", self, sizeof self - 1) < 0)
		fail("/proc/self/exe cannot be read");
	backend_open(&b, cpu_ops(NULL), pool_default_threads());
	for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
		bool wanted = argc < 2;

		for (int k = 1; k < argc; k++)
			wanted |= !strcmp(argv[k], parts[i].name);
		if (wanted)
			parts[i].run();
	}
	backend_close(&b);
	return 0;
}
