#include "tests/support/measure.h"

#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <time.h>
#if defined __x86_64__
#include <immintrin.h>
#endif

#include "config/mem.h"

enum { BIG = 1 << 30 }; /* item_work: enough for pool_run to use its threads */

/* Where results of probes go, so that they are needed. */
static atomic_ullong sink;

/* ---- clocks, rounds, lines ------------------------------------------------------------------------------------- */

static double seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double measure_now(void)
{
	return seconds(CLOCK_MONOTONIC);
}

double measure_thread_now(void)
{
	return seconds(CLOCK_THREAD_CPUTIME_ID);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double measure_median(double *x, int n)
{
	qsort(x, (size_t)n, sizeof *x, by_value);
	return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

void measure_rounds(struct measure_case *cases, int n_cases, int n_rounds)
{
	double *figures = xcalloc((size_t)n_cases * (size_t)n_rounds, sizeof *figures);

	for (int i = 0; i < n_cases; i++)
		cases[i].fn(cases[i].arg);
	for (int r = 0; r < n_rounds; r++)
		for (int i = 0; i < n_cases; i++)
			figures[i * n_rounds + r] = cases[i].fn(cases[i].arg);
	for (int i = 0; i < n_cases; i++)
		cases[i].median = measure_median(figures + i * n_rounds, n_rounds);
	free(figures);
}

/* What /proc/cpuinfo calls the first processor. Arm kernels say nothing there. */
static void processor_model(char *out, size_t bytes)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	char line[512];

	snprintf(out, bytes, "unnamed processor");
	while (f && fgets(line, sizeof line, f)) {
		const char *colon = strchr(line, ':');

		if (strncmp(line, "model name", 10) || !colon)
			continue;
		snprintf(out, bytes, "%s", colon + 1 + strspn(colon + 1, " \t"));
		out[strcspn(out, "\n")] = '\0';
		break;
	}
	if (f)
		fclose(f);
}

const char *measure_machine(void)
{
	static char text[512];
	char model[256];
	struct utsname u;

	processor_model(model, sizeof model);
	uname(&u);
	snprintf(text, sizeof text, "%s, %d processors, %s %s", model, pool_default_threads(), u.sysname, u.machine);
	for (char *p = text; *p; p++)
		if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ')
			*p = '_';
	return text;
}

static void print_number(FILE *out, const char *key, double x, bool there)
{
	if (there && isfinite(x))
		fprintf(out, ",\"%s\":%.6g", key, x);
	else
		fprintf(out, ",\"%s\":null", key);
}

void measure_print(FILE *out, const char *bench, double value, const char *unit, double limit, const char *extra, ...)
{
	va_list args;

	fprintf(out, "{\"bench\":\"%s\"", bench);
	print_number(out, "value", value, true);
	fprintf(out, ",\"unit\":\"%s\"", unit);
	print_number(out, "limit", limit, limit > 0);
	print_number(out, "fraction", value / limit, limit > 0);
	if (extra && *extra) {
		fputc(',', out);
		va_start(args, extra);
		vfprintf(out, extra, args);
		va_end(args);
	}
	fprintf(out, ",\"machine\":\"%s\"}\n", measure_machine());
	if (fflush(out)) {
		fprintf(stderr, "a figure cannot be written\n");
		exit(1);
	}
}

void measure_fail(const struct err *err)
{
	fprintf(stderr, "%s\n", err->text);
	exit(1);
}

/* ---- buffers --------------------------------------------------------------------------------------------------- */

struct fill {
	uint64_t *words;
};

/* Not zeros: pages of zeros may all be one page. */
static void fill_words(void *arg, int64_t first, int64_t end, int thread)
{
	struct fill *f = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		f->words[i] = (uint64_t)i * 0x9e3779b97f4a7c15u;
}

static size_t rounded(size_t bytes)
{
	const size_t huge = (size_t)2 << 20;

	return (bytes + huge - 1) / huge * huge;
}

void *measure_buffer(struct pool *p, size_t bytes)
{
	void *buffer = mmap(NULL, rounded(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct fill f = {buffer};

	if (buffer == MAP_FAILED) {
		fprintf(stderr, "no memory for a buffer of %zu bytes\n", bytes);
		exit(1);
	}
	/* Advice: a kernel without huge pages refuses, and the buffer is as good as it gets there. */
	(void)madvise(buffer, rounded(bytes), MADV_HUGEPAGE);
	pool_run(p, fill_words, &f, (int64_t)(rounded(bytes) / sizeof(uint64_t)), 1);
	return buffer;
}

void measure_buffer_free(void *buffer, size_t bytes)
{
	if (buffer)
		munmap(buffer, rounded(bytes));
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

typedef uint64_t line __attribute__((vector_size(64), aligned(8)));

/* The sum of n_bytes at p; inlined into one function for each instruction set. */
static inline __attribute__((always_inline)) uint64_t sum_of(const char *p, size_t n_bytes)
{
	line a = {0}, b = {0}, c = {0}, d = {0};
	uint64_t sum = 0;
	size_t i = 0;

	for (; i + 256 <= n_bytes; i += 256) {
		a += *(const line *)(p + i);
		b += *(const line *)(p + i + 64);
		c += *(const line *)(p + i + 128);
		d += *(const line *)(p + i + 192);
	}
	a += b + c + d;
	for (; i + 8 <= n_bytes; i += 8)
		sum += *(const uint64_t *)(p + i);
	for (int l = 0; l < 8; l++)
		sum += a[l];
	return sum;
}

static uint64_t sum_plain(const char *p, size_t n_bytes)
{
	return sum_of(p, n_bytes);
}

#if defined __x86_64__
/* Written out: compilers hold vectors of 64 bytes badly in registers of 32. */
__attribute__((target("avx2"))) static uint64_t sum_avx2(const char *p, size_t n_bytes)
{
	__m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
	uint64_t parts[4], sum = 0;
	size_t i = 0;

	for (; i + 128 <= n_bytes; i += 128) {
		a = _mm256_add_epi64(a, _mm256_loadu_si256((const __m256i *)(p + i)));
		b = _mm256_add_epi64(b, _mm256_loadu_si256((const __m256i *)(p + i + 32)));
		c = _mm256_add_epi64(c, _mm256_loadu_si256((const __m256i *)(p + i + 64)));
		d = _mm256_add_epi64(d, _mm256_loadu_si256((const __m256i *)(p + i + 96)));
	}
	_mm256_storeu_si256((__m256i *)parts, _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d)));
	for (; i + 8 <= n_bytes; i += 8)
		sum += *(const uint64_t *)(p + i);
	for (int l = 0; l < 4; l++)
		sum += parts[l];
	return sum;
}
#endif

typedef uint64_t sum_fn(const char *p, size_t n_bytes);

static sum_fn *best_sum(void)
{
#if defined __x86_64__
	if (__builtin_cpu_supports("avx2"))
		return sum_avx2;
#endif
	return sum_plain;
}

struct reading {
	const char *buffer;
	size_t row_bytes;
	const int32_t *rows; /* NULL: one after another */
	sum_fn *sum;
};

static void read_rows(void *arg, int64_t first, int64_t end, int thread)
{
	struct reading *r = arg;
	uint64_t sum = 0;

	(void)thread;
	if (r->rows)
		for (int64_t i = first; i < end; i++)
			sum += r->sum(r->buffer + (size_t)r->rows[i] * r->row_bytes, r->row_bytes);
	else
		sum = r->sum(r->buffer + (size_t)first * r->row_bytes, (size_t)(end - first) * r->row_bytes);
	atomic_fetch_add(&sink, sum);
}

enum { ABREAST = 8, RUN_BYTES = 16 << 10 };

/* Item: ABREAST runs of the buffer, read a kilobyte of each in turn: the shape in which a matrix is read by rows. */
static void read_abreast(void *arg, int64_t first, int64_t end, int thread)
{
	struct reading *r = arg;
	uint64_t sum = 0;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		for (size_t at = 0; at < RUN_BYTES; at += 1024)
			for (int k = 0; k < ABREAST; k++)
				sum += r->sum(r->buffer + ((size_t)i * ABREAST + (size_t)k) * RUN_BYTES + at, 1024);
	atomic_fetch_add(&sink, sum);
}

double probe_read_in_order(struct pool *p, const void *buffer, size_t bytes)
{
	struct reading r = {buffer, 64, NULL, best_sum()};
	double start = measure_now();

	pool_run(p, read_rows, &r, (int64_t)(bytes / 64), BIG);
	return (double)bytes / (measure_now() - start);
}

double probe_read(struct pool *p, const void *buffer, size_t bytes)
{
	struct reading r = {buffer, 64, NULL, best_sum()};
	int64_t n_items = (int64_t)(bytes / (ABREAST * RUN_BYTES));
	double start, in_order = probe_read_in_order(p, buffer, bytes), abreast = 0;

	if (n_items) {
		start = measure_now();
		pool_run(p, read_abreast, &r, n_items, BIG);
		abreast = (double)n_items * ABREAST * RUN_BYTES / (measure_now() - start);
	}
	return in_order > abreast ? in_order : abreast;
}

double probe_gather(struct pool *p, const void *buffer, size_t row_bytes, const int32_t *rows, int64_t n_rows)
{
	struct reading r = {buffer, row_bytes, rows, best_sum()};
	double start = measure_now();

	pool_run(p, read_rows, &r, n_rows, BIG);
	return (double)n_rows * (double)row_bytes / (measure_now() - start);
}

/* ---- arithmetic ------------------------------------------------------------------------------------------------ */

enum {
	CHAINS = 12,     /* independent ones: more than latency times the units that work at once, some 2 x 5 */
	STEPS = 1 << 23, /* of every chain: some ten milliseconds */
};

static float fma_plain(int64_t steps)
{
	float x[CHAINS], sum = 0;

	for (int c = 0; c < CHAINS; c++)
		x[c] = (float)c;
	for (int64_t i = 0; i < steps; i++)
		for (int c = 0; c < CHAINS; c++)
			x[c] = fmaf(x[c], 0.999f, 0.5f);
	for (int c = 0; c < CHAINS; c++)
		sum += x[c];
	return sum;
}

#if defined __x86_64__
__attribute__((target("avx2,fma"))) static float fma_avx2(int64_t steps)
{
	__m256 x[CHAINS], m = _mm256_set1_ps(0.999f), a = _mm256_set1_ps(0.5f), sum = _mm256_setzero_ps();

	for (int c = 0; c < CHAINS; c++)
		x[c] = _mm256_set1_ps((float)c);
	for (int64_t i = 0; i < steps; i++)
#pragma GCC unroll 12
		for (int c = 0; c < CHAINS; c++)
			x[c] = _mm256_fmadd_ps(x[c], m, a);
	for (int c = 0; c < CHAINS; c++)
		sum = _mm256_add_ps(sum, x[c]);
	return _mm256_cvtss_f32(sum);
}

__attribute__((target("avx512f"))) static float fma_avx512(int64_t steps)
{
	__m512 x[CHAINS], m = _mm512_set1_ps(0.999f), a = _mm512_set1_ps(0.5f), sum = _mm512_setzero_ps();

	for (int c = 0; c < CHAINS; c++)
		x[c] = _mm512_set1_ps((float)c);
	for (int64_t i = 0; i < steps; i++)
#pragma GCC unroll 12
		for (int c = 0; c < CHAINS; c++)
			x[c] = _mm512_fmadd_ps(x[c], m, a);
	for (int c = 0; c < CHAINS; c++)
		sum = _mm512_add_ps(sum, x[c]);
	return _mm512_cvtss_f32(sum);
}

__attribute__((target("avx512f,avx512bf16"))) static float dot_bf16(int64_t steps)
{
	__m512 x[CHAINS], sum = _mm512_setzero_ps();
	__m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
	__m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.125f), _mm512_set1_ps(-0.125f));

	for (int c = 0; c < CHAINS; c++)
		x[c] = _mm512_set1_ps((float)c);
	for (int64_t i = 0; i < steps; i++)
#pragma GCC unroll 12
		for (int c = 0; c < CHAINS; c++)
			x[c] = _mm512_dpbf16_ps(x[c], a, b);
	for (int c = 0; c < CHAINS; c++)
		sum = _mm512_add_ps(sum, x[c]);
	return _mm512_cvtss_f32(sum);
}
#endif

struct arithmetic {
	float (*fn)(int64_t steps);
	int64_t steps;
};

static void calculate(void *arg, int64_t first, int64_t end, int thread)
{
	struct arithmetic *a = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		atomic_fetch_add(&sink, (unsigned long long)fabsf(a->fn(a->steps)));
}

/* Operations a second when an instruction is `width` of them. */
static double rate(struct pool *p, float (*fn)(int64_t), int width)
{
	struct arithmetic a = {fn, STEPS};
	double start = measure_now();

	pool_run(p, calculate, &a, pool_n_threads(p), BIG);
	return (double)STEPS * CHAINS * width * pool_n_threads(p) / (measure_now() - start);
}

double probe_fma(struct pool *p)
{
#if defined __x86_64__
	if (__builtin_cpu_supports("avx512f"))
		return rate(p, fma_avx512, 32);
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return rate(p, fma_avx2, 16);
#endif
	return rate(p, fma_plain, 2);
}

double probe_bf16_dot(struct pool *p)
{
#if defined __x86_64__
	if (__builtin_cpu_supports("avx512bf16"))
		return rate(p, dot_bf16, 64);
#endif
	(void)p;
	return 0;
}
