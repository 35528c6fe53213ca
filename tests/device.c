/*
 * A device beside the processor: the same bits, and how fast.
 *
 *     device exact [--small] [NAME]      products of experts against the scalar definition, bit for bit, over types, shapes, counts of
 *                                        tokens and kinds of values; a line for each combination that differs, status 1 if any does
 *     device boundary [NAME]             sums just below 2^-126, where rule (F) of ops.h asks for rounding before flushing
 *     device speed [NAME]                figures as JSON lines, in the shapes of GLM-5.2's experts
 *
 * NAME is cuda:0 unless it is given. tests/device.sh runs all of them on a machine that has a device.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/noise.h"
#include "engine/numeric.h"
#include "engine/ops.h"
#include "engine/pool.h"
#include "offload/accelerator.h"
#include "tests/support/measure.h"

enum { MAX_TOKENS = 17, N_EXPERTS = 2 };

/* The device, and the processor that it is compared with. */
static struct accelerator *a;
static struct pool *pool;
static struct device cpu;
static const struct ops *ops;

static void must(int rc, const struct err *err)
{
	if (rc)
		measure_fail(err);
}

static void check(void)
{
	struct err err = {0};

	must(accelerator_check(a, &err), &err);
}

static void *device_memory(size_t bytes)
{
	void *p = a->api->alloc(a->d, bytes);
	struct err err = {0};

	if (p)
		return p;
	check();
	err_set(&err, ERR_TOO_LARGE, "%s has no room for %zu bytes", a->name, bytes);
	measure_fail(&err);
}

static void finish(enum backend_queue q)
{
	a->api->wait(a->d, a->api->mark(a->d, q));
	check();
}

static void *put(const void *from, size_t bytes)
{
	void *p = device_memory(bytes);

	a->api->upload(a->d, BACKEND_UP, p, from, bytes);
	finish(BACKEND_UP);
	return p;
}

/* ---- matrices, here and there -------------------------------------------------------------------------------------- */

struct matrix {
	struct weight w;
	struct backend_weight there;
};

static size_t up_to(size_t n, size_t multiple)
{
	return (n + multiple - 1) / multiple * multiple;
}

static size_t n_scales(const struct weight *w)
{
	if (w->dtype == DTYPE_INT4)
		return (size_t)w->rows * (size_t)weight_groups(w);
	if (w->dtype == DTYPE_F8_E4M3)
		return up_to((size_t)(w->first_row + w->rows), WEIGHT_BLOCK) / WEIGHT_BLOCK * (up_to((size_t)w->cols, WEIGHT_BLOCK) / WEIGHT_BLOCK);
	return 0;
}

static size_t scale_bytes(const struct weight *w)
{
	return n_scales(w) * (w->dtype == DTYPE_INT4 ? sizeof(uint16_t) : sizeof(float));
}

static size_t data_bytes(const struct weight *w)
{
	return (size_t)w->rows * weight_row_bytes(w);
}

static void upload_matrix(struct matrix *m)
{
	const struct weight *w = &m->w;
	const void *scale = w->dtype == DTYPE_INT4 ? (const void *)w->group_scale : w->scale;

	m->there = (struct backend_weight){put(w->data, data_bytes(w)), n_scales(w) ? put(scale, scale_bytes(w)) : NULL,
					   (int32_t)w->dtype, w->rows, w->cols, w->first_row};
}

static void free_matrix(struct matrix *m)
{
	a->api->free(a->d, (void *)(uintptr_t)m->there.data);
	a->api->free(a->d, (void *)(uintptr_t)m->there.scale);
	free((void *)(uintptr_t)m->w.data);
	free((void *)(uintptr_t)m->w.scale);
	free((void *)(uintptr_t)m->w.group_scale);
}

/* ---- values ---------------------------------------------------------------------------------------------------------- */

/*
 * Kinds of values. Tiny ones are made so that what straddles 2^-126 can be seen in the end: in TINY_UP products of x and up do, while those
 * with gate are about one and down is large; in TINY_DOWN x is about 2^-60, so that swiglu gives about 2^-121, which down straddles.
 */
enum kind { ORDINARY, TINY_UP, TINY_DOWN, HOSTILE, N_KINDS };
static const char *const kind_names[N_KINDS] = {"ordinary", "tiny-up", "tiny-down", "hostile"};

enum part { GATE, UP, DOWN, INPUT, N_PARTS };

/* Powers of two that values are multiplied with, of types whose values are their own, and of those with scales (theirs). F16 has no room
 * for the exponents of TINY_UP. */
static const int exponents[2][N_KINDS][N_PARTS] = {
	{[TINY_UP] = {60, -66, 40, -60}, [TINY_DOWN] = {0, 0, -6, -60}},
	{[TINY_UP] = {118, 0, 60, -124}, [TINY_DOWN] = {0, 0, -8, -60}},
};

static bool has_scales(enum dtype dtype)
{
	return dtype == DTYPE_F8_E4M3 || dtype == DTYPE_INT4;
}

static int exponent_of(enum dtype dtype, enum kind kind, enum part part)
{
	return exponents[has_scales(dtype)][dtype == DTYPE_F16 && kind == TINY_UP ? TINY_DOWN : kind][part];
}

/* Either sign, from 2^-6 to 2 times 2^exponent; hostile: in half of all places something else, zero among it. */
static float value_of(uint64_t word, enum kind kind, int exponent)
{
	static const float hostile[] = {0x1p-149f, 0x1.8p-130f, 0x1.fep-127f, 0x1p-126f, 0x1.000002p-126f, 0x1p-64f, 0x1.8p-63f,
					0.0f, 0x1p15f, 0x1.fffffep15f, 0x1p-133f, 1.0f};
	float sign = word & 1 ? -1.0f : 1.0f;

	if (kind == HOSTILE && (word >> 8) % 6 < 2)
		return sign * hostile[(word >> 16) % (sizeof hostile / sizeof hostile[0])];
	if (kind == HOSTILE && (word >> 8) % 6 == 2)
		return sign * 0.0f;
	return sign * ldexpf(1.0f + (float)(word >> 40) * 0x1p-24f, exponent - (int)((word >> 4) % 7));
}

struct filling {
	struct matrix *m;
	uint64_t key;
	enum kind kind;
	int exponent;
};

static void fill_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct filling *f = arg;
	const struct weight *w = &f->m->w;

	(void)thread;
	for (int64_t r = first; r < end; r++) {
		uint8_t *row = (uint8_t *)(uintptr_t)w->data + (size_t)r * weight_row_bytes(w);

		for (int32_t k = 0; k < w->cols; k++) {
			uint64_t word = noise_word(f->key, (uint64_t)(r * w->cols + k));
			float v = has_scales(w->dtype) ? 0 : value_of(word, f->kind, f->exponent);

			if (w->dtype == DTYPE_F32)
				((float *)(void *)row)[k] = v;
			else if (w->dtype == DTYPE_BF16)
				((uint16_t *)(void *)row)[k] = f32_to_bf16(v);
			else if (w->dtype == DTYPE_F16) /* from 2^-6 to 2, and all there are but infinities and NaN */
				((uint16_t *)(void *)row)[k] = (uint16_t)((word & 0x8000) | (f->kind == HOSTILE ? word >> 16 & 0x7bff :
							       0x2400 + (word >> 16) % 0x1c00));
			else if (w->dtype == DTYPE_F8_E4M3) /* all codes but NaN */
				row[k] = (uint8_t)((word & 0x80) | (word >> 8) % 0x7f);
			else
				row[k / 2] = (uint8_t)(k % 2 ? (row[k / 2] & 0x0f) | (word & 15) << 4 : word & 15);
		}
	}
}

static void make_matrix(struct matrix *m, enum dtype dtype, int32_t rows, int32_t cols, int32_t first_row, enum kind kind, enum part part,
			uint64_t key)
{
	struct weight w = {.dtype = dtype, .rows = rows, .cols = cols, .first_row = first_row};
	struct filling f = {m, key, kind, exponent_of(dtype, kind, part)};
	float *scale = NULL;
	uint16_t *group_scale = NULL;

	w.data = xcalloc(data_bytes(&w), 1);
	if (dtype == DTYPE_F8_E4M3)
		w.scale = scale = xmalloc(n_scales(&w), sizeof *scale);
	else if (dtype == DTYPE_INT4)
		w.group_scale = group_scale = xmalloc(n_scales(&w), sizeof *group_scale);
	for (size_t i = 0; i < n_scales(&w); i++) {
		float v = fabsf(value_of(noise_word(~key, i), kind, f.exponent));

		if (scale)
			scale[i] = v;
		else
			group_scale[i] = f32_to_bf16(v);
	}
	m->w = w;
	pool_run(pool, fill_rows, &f, rows, 8 * (int64_t)cols);
	upload_matrix(m);
}

/* ---- exact ----------------------------------------------------------------------------------------------------------- */

struct expert_pair {
	struct matrix gate, up, down;
};

/* Of one call: the rows of x that tokens have, and what was computed there. */
struct comparison {
	int32_t n[N_EXPERTS], first[N_EXPERTS], total;
	float *x, *want, *got;
	int64_t n_values, n_differ, first_differs;
	double largest;
};

static void *as_input(const float *x, size_t n, enum compute_profile profile, size_t *bytes)
{
	uint16_t *rounded = xmalloc(n, sizeof *x);

	*bytes = n * (profile == COMPUTE_BF16 ? sizeof *rounded : sizeof *x);
	if (profile != COMPUTE_BF16)
		memcpy(rounded, x, *bytes);
	for (size_t i = 0; i < n && profile == COMPUTE_BF16; i++)
		rounded[i] = f32_to_bf16(x[i]);
	return rounded;
}

/* Everything of a call is there until it is done. */
static void on_device(float *out, const struct expert_pair *e, const struct comparison *c, const int32_t *rows, enum compute_profile profile)
{
	size_t hidden = (size_t)e->down.w.rows, dim = (size_t)e->gate.w.rows, total = (size_t)c->total, bytes;
	void *input = as_input(c->x, total * hidden, profile, &bytes);
	void *x = put(input, bytes), *gate = device_memory(total * dim * sizeof *out);
	void *to = device_memory(total * hidden * sizeof *out), *rows_there = rows ? put(rows, total * sizeof *rows) : NULL;
	struct backend_expert experts[N_EXPERTS];

	for (int i = 0; i < N_EXPERTS; i++)
		experts[i] = (struct backend_expert){e[i].gate.there, e[i].up.there, e[i].down.there, c->first[i], c->n[i]};
	a->api->experts(a->d, to, gate, x, rows_there, experts, c->n[1] ? N_EXPERTS : 1, profile);
	a->api->after(a->d, BACKEND_DOWN, a->api->mark(a->d, BACKEND_COMPUTE));
	a->api->download(a->d, BACKEND_DOWN, out, to, total * hidden * sizeof *out);
	finish(BACKEND_DOWN);
	a->api->free(a->d, x);
	a->api->free(a->d, gate);
	a->api->free(a->d, to);
	a->api->free(a->d, rows_there);
	free(input);
}

/* As engine/moe.c has it. */
static void on_processor(float *out, const struct expert_pair *e, const float *x, int64_t n, enum compute_profile profile)
{
	int32_t hidden = e->down.w.rows, dim = e->gate.w.rows;
	float *gate = xmalloc((size_t)n * (size_t)dim, sizeof *gate), *up = xmalloc((size_t)n * (size_t)dim, sizeof *up);

	ops->matmul(&cpu, gate, dim, x, hidden, &e->gate.w, n, profile);
	ops->matmul(&cpu, up, dim, x, hidden, &e->up.w, n, profile);
	ops->swiglu(&cpu, gate, up, n, dim);
	ops->matmul(&cpu, out, hidden, gate, dim, &e->down.w, n, profile);
	free(gate);
	free(up);
}

static void compare(struct comparison *c)
{
	c->n_differ = 0;
	c->largest = 0;
	for (int64_t i = 0; i < c->n_values; i++) {
		float want = c->want[i], got = c->got[i];
		double apart;

		if (f32_bits(want) == f32_bits(got) || (isnan(want) && isnan(got)))
			continue;
		apart = fabs((double)got - want) / fmax(fabs((double)want), 0x1p-149);
		if (!c->n_differ++)
			c->first_differs = i;
		if (!(apart <= c->largest)) /* NaN, too */
			c->largest = apart;
	}
}

/* Combinations, and of each kind of values, what came out by the definition: all zeros would show nothing. */
struct tally {
	int n, n_differ;
	int64_t n_values[N_KINDS], n_zero[N_KINDS], n_not_finite[N_KINDS];
};

/* `tokens` of the first expert and one fewer of the second. Odd ones take rows of x in another order than they lie in. */
static void try_call(struct tally *t, const struct expert_pair *e, enum kind kind, int32_t tokens, enum compute_profile profile)
{
	int32_t hidden = e->down.w.rows, rows[2 * MAX_TOKENS];
	struct comparison c = {.n = {tokens, tokens - 1}, .first = {0, tokens}, .total = 2 * tokens - 1};
	bool by_rows = tokens % 2;
	size_t n = (size_t)c.total * (size_t)hidden;
	float *sorted;

	c.n_values = (int64_t)n;
	c.x = xmalloc(n, sizeof *c.x);
	c.want = xmalloc(n, sizeof *c.want);
	c.got = xcalloc(n, sizeof *c.got);
	sorted = xmalloc(n, sizeof *sorted);
	for (size_t i = 0; i < n; i++)
		c.x[i] = value_of(noise_word(1000 + (uint64_t)tokens, i), kind, exponent_of(e->gate.w.dtype, kind, INPUT));
	if (kind == HOSTILE)
		c.x[hidden / 2] = 0x1.fffffep127f; /* and one token that overflows */
	for (int32_t i = 0; i < c.total; i++) {
		rows[i] = by_rows ? (i * 7 + 3) % c.total : i;
		memcpy(sorted + (size_t)i * (size_t)hidden, c.x + (size_t)rows[i] * (size_t)hidden, (size_t)hidden * sizeof *sorted);
	}
	on_device(c.got, e, &c, by_rows ? rows : NULL, profile);
	for (int i = 0; i < N_EXPERTS; i++)
		if (c.n[i])
			on_processor(c.want + (size_t)c.first[i] * (size_t)hidden, &e[i], sorted + (size_t)c.first[i] * (size_t)hidden,
				     c.n[i], profile);
	compare(&c);
	if (c.n_differ)
		printf("differs: %s, compute %s, %s values, hidden %d, dim %d, first row %d, %d tokens: %lld of %lld values, by up to %.3g of "
		       "them, the first is %lld: %a and not %a\n", dtype_name(e->gate.w.dtype), compute_profile_name(profile), kind_names[kind],
		       hidden, e->gate.w.rows, e->gate.w.first_row, tokens, (long long)c.n_differ, (long long)c.n_values, c.largest,
		       (long long)c.first_differs, (double)c.got[c.first_differs], (double)c.want[c.first_differs]);
	for (size_t i = 0; i < n; i++) {
		t->n_zero[kind] += c.want[i] == 0;
		t->n_not_finite[kind] += !isfinite(c.want[i]);
	}
	t->n_values[kind] += c.n_values;
	t->n++;
	t->n_differ += c.n_differ > 0;
	free(c.x);
	free(c.want);
	free(c.got);
	free(sorted);
}

static void try_experts(struct tally *t, enum dtype dtype, int32_t hidden, int32_t dim, int32_t first_row, enum kind kind,
			const int32_t *tokens, int n_tokens)
{
	struct expert_pair e[N_EXPERTS];

	for (int i = 0; i < N_EXPERTS; i++) {
		uint64_t key = (uint64_t)(100 * i + 10 * (int)kind) + 1;

		make_matrix(&e[i].gate, dtype, dim, hidden, first_row, kind, GATE, key);
		make_matrix(&e[i].up, dtype, dim, hidden, first_row, kind, UP, key + 1);
		make_matrix(&e[i].down, dtype, hidden, dim, first_row, kind, DOWN, key + 2);
	}
	for (int profile = COMPUTE_F32; profile <= COMPUTE_BF16; profile++)
		for (int i = 0; i < n_tokens; i++)
			try_call(t, e, kind, tokens[i], (enum compute_profile)profile);
	for (int i = 0; i < N_EXPERTS; i++) {
		free_matrix(&e[i].gate);
		free_matrix(&e[i].up);
		free_matrix(&e[i].down);
	}
}

static bool run_boundary(void);

static int run_exact(bool small)
{
	static const int32_t all_tokens[] = {1, 2, 3, 4, 5, 8, 9, 17}, few_tokens[] = {1, 2, 9};
	static const int32_t all_cols[] = {32, 40, 96, 128, 200, 448, 1280, 6144}, few_cols[] = {32, 40, 200, 1280};
	static const int32_t all_rows[] = {1, 5, 33, 256, 2048}, few_rows[] = {5, 33, 128};
	const int32_t *cols = small ? few_cols : all_cols, *rows = small ? few_rows : all_rows;
	int n_cols = small ? 4 : 8, n_rows = small ? 3 : 5;
	struct tally t = {0};

	for (int dtype = 0; dtype < N_DTYPES; dtype++)
		for (int c = 0; c < n_cols; c++)
			for (int r = 0; r < n_rows; r++)
				for (int kind = 0; kind < N_KINDS; kind++)
					/* From row 64 of a stored matrix on, scales of FP8 change within a view. */
					for (int32_t first_row = 0; first_row <= (dtype == DTYPE_F8_E4M3 ? 64 : 0); first_row += 64) {
						bool few = small || cols[c] > 1000;
						bool scaled = dtype == DTYPE_F8_E4M3 || dtype == DTYPE_INT4;

						/* Of what goes by scales, which wants whole scale blocks, one shape is enough. */
						if (small && (cols[c] > 1000) != (rows[r] >= WEIGHT_BLOCK && scaled))
							continue;
						try_experts(&t, (enum dtype)dtype, cols[c], rows[r], first_row, (enum kind)kind,
							    few ? few_tokens : all_tokens, !few ? 8 : small && cols[c] > 1000 ? 2 : 3);
					}
	for (int kind = 0; kind < N_KINDS; kind++)
		printf("%s values: %lld compared, %.1f %% of them zero, %.1f %% not finite\n", kind_names[kind], (long long)t.n_values[kind],
		       100.0 * (double)t.n_zero[kind] / (double)t.n_values[kind],
		       100.0 * (double)t.n_not_finite[kind] / (double)t.n_values[kind]);
	run_boundary();
	printf("%d combinations, %d differ\n", t.n, t.n_differ);
	return t.n_differ > 0;
}

/* ---- where rule (F) asks for rounding first ---------------------------------------------------------------------------- */

/*
 * Each row of `up` makes 2^-126 (1 - s) of one lane: element 1 gives 2^-126, then element 0 takes s 2^-126 away within one fused
 * multiply-add. To 24 bits that is 2^-126 up to s = 2^-25 (a tie), which stays, and less beyond, which is flushed, although it would round to
 * 2^-126 as a subnormal number up to s = 2^-24 - 2^-150. Gate is 4 and down 2^100, so that out is 0 where it was flushed.
 */
static bool run_boundary(void)
{
	enum { N = 32 };
	static const float less[] = {0x1p-28f, 0x1p-26f, 0x1.8p-26f, 0x1.fcp-26f, 0x1p-25f, 0x1.02p-25f, 0x1.4p-25f, 0x1.8p-25f,
				     0x1.fcp-25f, 0x1p-24f, 0x1.02p-24f, 0x1p-23f};
	enum { N_LESS = sizeof less / sizeof less[0] };
	struct comparison c = {.n = {1, 0}, .first = {0, 1}, .total = 1, .n_values = N};
	struct expert_pair e[N_EXPERTS] = {0};
	uint16_t *gate = xcalloc(N * N, sizeof *gate), *up = xcalloc(N * N, sizeof *up), *down = xcalloc(N * N, sizeof *down);
	float x[N] = {[0] = 0x1p-70f, [1] = 0x1p-63f, [2] = 1}, want[N], got[N];
	int kept_there = 0, kept_here = 0;

	for (int r = 0; r < N; r++) {
		float sign = r < N / 2 ? 1 : -1, s = less[r % (N / 2) % N_LESS];

		gate[r * N + 2] = f32_to_bf16(4);
		up[r * N + 1] = f32_to_bf16(sign * 0x1p-63f);
		up[r * N + 0] = f32_to_bf16(-sign * s * 0x1p-56f);
		down[r * N + r] = f32_to_bf16(0x1p100f);
	}
	e[0].gate.w = (struct weight){.dtype = DTYPE_BF16, .rows = N, .cols = N, .data = gate};
	e[0].up.w = (struct weight){.dtype = DTYPE_BF16, .rows = N, .cols = N, .data = up};
	e[0].down.w = (struct weight){.dtype = DTYPE_BF16, .rows = N, .cols = N, .data = down};
	upload_matrix(&e[0].gate);
	upload_matrix(&e[0].up);
	upload_matrix(&e[0].down);
	c.x = x;
	c.want = want;
	c.got = got;
	on_device(got, e, &c, NULL, COMPUTE_BF16);
	on_processor(want, &e[0], x, 1, COMPUTE_BF16);
	compare(&c);
	for (int r = 0; r < N; r++) {
		kept_there += got[r] != 0;
		kept_here += want[r] != 0;
		if (f32_bits(got[r]) != f32_bits(want[r]))
			printf("boundary: 2^-126 (1 - %a), sign %c: %s on the device, %s by the definition\n",
			       (double)less[r % (N / 2) % N_LESS], r < N / 2 ? '+' : '-', got[r] != 0 ? "stays" : "is flushed",
			       want[r] != 0 ? "stays" : "is flushed");
	}
	printf("boundary: of %d sums just below 2^-126 %d stay on the device, %d by the definition, %lld differ\n", N, kept_there, kept_here,
	       (long long)c.n_differ);
	free_matrix(&e[0].gate);
	free_matrix(&e[0].up);
	free_matrix(&e[0].down);
	return !c.n_differ;
}

/* ---- speed ----------------------------------------------------------------------------------------------------------- */

enum { HIDDEN = 6144, DIM = 2048, ROUNDS = 5, MOST_TOKENS = 512, PIECE = 3 * HIDDEN * DIM + 3 * 4 * 48 * 16, N_PIECES = 8, N_LATENCIES = 200 };
#define SLOTS_BYTES 2500000000u /* of distinct experts: many times what second caches hold */

/* Where the next matrix lies in a slot. */
static struct backend_weight lay(char **at, enum dtype dtype, int32_t rows, int32_t cols)
{
	struct weight w = {.dtype = dtype, .rows = rows, .cols = cols};
	struct backend_weight there = {*at, NULL, (int32_t)dtype, rows, cols, 0};

	*at += up_to(data_bytes(&w), BACKEND_ALIGN);
	if (n_scales(&w))
		there.scale = *at;
	*at += up_to(scale_bytes(&w), BACKEND_ALIGN);
	return there;
}

static struct backend_expert lay_expert(char *slot, enum dtype dtype, size_t *bytes)
{
	struct backend_expert e = {.n = 1};
	char *at = slot;

	e.gate = lay(&at, dtype, DIM, HIDDEN);
	e.up = lay(&at, dtype, DIM, HIDDEN);
	e.down = lay(&at, dtype, HIDDEN, DIM);
	*bytes = (size_t)(at - slot);
	return e;
}

/* Magnitudes from 1 to 2 in bf16, which is also what scales are; below 2 in E4M3; any code in int4. */
static void fill_slot(char *host, const char *base, const struct backend_expert *e, size_t bytes, enum dtype dtype, uint64_t key)
{
	const struct backend_weight *all[] = {&e->gate, &e->up, &e->down};
	uint64_t keep = dtype == DTYPE_BF16 ? 0x807f807f807f807f : dtype == DTYPE_F8_E4M3 ? 0xbfbfbfbfbfbfbfbf : UINT64_MAX;
	uint64_t set = dtype == DTYPE_BF16 ? 0x3f803f803f803f80 : 0;

	for (size_t i = 0; i < bytes / sizeof set; i++)
		((uint64_t *)(void *)host)[i] = (noise_word(key, i) & keep) | set;
	for (int i = 0; i < 3; i++) {
		struct weight w = {.dtype = dtype, .rows = all[i]->rows, .cols = all[i]->cols};
		char *scale = all[i]->scale ? host + ((const char *)all[i]->scale - base) : NULL;

		for (size_t k = 0; k < n_scales(&w); k++)
			if (dtype == DTYPE_INT4)
				((uint16_t *)(void *)scale)[k] = 0x3c80; /* 2^-6 */
			else
				((float *)(void *)scale)[k] = 0x1p-6f;
	}
}

/* Experts in slots of device memory, and what calls of them work with. */
struct slots {
	enum dtype dtype;
	int n;
	size_t bytes;           /* of one */
	char *memory;
	void *x;
	float *gate, *out;
};

static void open_slots(struct slots *s, enum dtype dtype)
{
	struct backend_expert e = lay_expert(NULL, dtype, &s->bytes);
	char *host = xmalloc(s->bytes, 1);
	uint16_t *x = xmalloc((size_t)MOST_TOKENS * HIDDEN, sizeof *x);

	s->dtype = dtype;
	s->n = (int)(SLOTS_BYTES / s->bytes) / 8 * 8;
	s->memory = device_memory((size_t)s->n * s->bytes);
	fill_slot(host, NULL, &e, s->bytes, dtype, 1);
	for (int i = 0; i < s->n; i++)
		a->api->upload(a->d, BACKEND_UP, s->memory + (size_t)i * s->bytes, host, s->bytes);
	finish(BACKEND_UP);
	for (size_t i = 0; i < (size_t)MOST_TOKENS * HIDDEN; i++)
		x[i] = f32_to_bf16((float)(i % 31) / 16 - 1);
	s->x = put(x, (size_t)MOST_TOKENS * HIDDEN * sizeof *x);
	s->gate = device_memory((size_t)MOST_TOKENS * DIM * sizeof(float));
	s->out = device_memory((size_t)MOST_TOKENS * HIDDEN * sizeof(float));
	free(host);
	free(x);
}

static void close_slots(struct slots *s)
{
	a->api->free(a->d, s->memory);
	a->api->free(a->d, s->x);
	a->api->free(a->d, s->gate);
	a->api->free(a->d, s->out);
}

/* Seconds of a call with so many experts of so many tokens each, over all slots in turn, as many times; the median of rounds. */
static double time_calls(struct slots *s, int n_experts, int32_t tokens, int n_calls)
{
	double seconds[ROUNDS];

	for (int round = -1; round < ROUNDS; round++) {
		double start;
		int slot = 0;

		finish(BACKEND_COMPUTE);
		start = measure_now();
		for (int i = 0; i < n_calls; i++) {
			struct backend_expert e[BACKEND_EXPERTS];
			size_t bytes;

			for (int k = 0; k < n_experts; k++, slot = (slot + 1) % s->n) {
				e[k] = lay_expert(s->memory + (size_t)slot * s->bytes, s->dtype, &bytes);
				e[k].first = k * tokens;
				e[k].n = tokens;
			}
			a->api->experts(a->d, s->out, s->gate, s->x, NULL, e, n_experts, COMPUTE_BF16);
		}
		finish(BACKEND_COMPUTE);
		if (round >= 0)
			seconds[round] = (measure_now() - start) / n_calls;
	}
	return measure_median(seconds, ROUNDS);
}

static void speed_of_experts(enum dtype dtype)
{
	struct slots s;

	open_slots(&s, dtype);
	for (int n = 1; n <= BACKEND_EXPERTS; n *= 2) {
		double seconds = time_calls(&s, n, 1, 2 * s.n / n);

		measure_print(stdout, "device.experts_read", (double)n * (double)s.bytes / seconds, "bytes/s", a->info.read_bytes_per_s,
			      "\"device\":\"%s\",\"format\":\"%s\",\"experts\":%d,\"us_per_call\":%.1f", a->info.name, dtype_name(dtype), n,
			      seconds * 1e6);
	}
	for (int32_t n = 8; n <= MOST_TOKENS && dtype == DTYPE_F8_E4M3; n *= 4) {
		double seconds = time_calls(&s, 1, n, n < 128 ? 32 : 8);

		measure_print(stdout, "device.experts_compute", 6.0 * HIDDEN * DIM * n / seconds / 1e12, "TFLOP/s", 0,
			      "\"device\":\"%s\",\"format\":\"%s\",\"tokens\":%d,\"us_per_call\":%.1f", a->info.name, dtype_name(dtype), n,
			      seconds * 1e6);
	}
	close_slots(&s);
}

struct transfer {
	char *up, *down;        /* host memory, N_PIECES of PIECE each; NULL: not that way */
	char *there;            /* device memory, for both ways */
	const char *way;
};

static void speed_of_transfer(const struct transfer *t, bool pinned)
{
	double rates[ROUNDS];
	int ways = (t->up != NULL) + (t->down != NULL);

	for (int round = -1; round < ROUNDS; round++) {
		double start = measure_now();

		for (size_t i = 0; i < N_PIECES; i++) {
			if (t->up)
				a->api->upload(a->d, BACKEND_UP, t->there + i * PIECE, t->up + i * PIECE, PIECE);
			if (t->down)
				a->api->download(a->d, BACKEND_DOWN, t->down + i * PIECE, t->there + (N_PIECES + i) * PIECE, PIECE);
		}
		finish(BACKEND_UP);
		finish(BACKEND_DOWN);
		if (round >= 0)
			rates[round] = (double)ways * N_PIECES * PIECE / (measure_now() - start);
	}
	measure_print(stdout, "device.transfer", measure_median(rates, ROUNDS), "bytes/s", 0,
		      "\"device\":\"%s\",\"way\":\"%s\",\"pinned\":%s,\"piece_bytes\":%d", a->info.name, t->way, pinned ? "true" : "false", PIECE);
}

static void speed_of_transfers(void)
{
	size_t bytes = (size_t)N_PIECES * PIECE;
	char *up = measure_buffer(pool, bytes), *down = measure_buffer(pool, bytes), *there = device_memory(2 * bytes);
	const struct transfer ways[] = {{up, NULL, there, "up"}, {NULL, down, there, "down"}, {up, down, there, "both"}};
	char why[BACKEND_TEXT];

	for (int i = 0; i < 3; i++)
		speed_of_transfer(&ways[i], false);
	if (a->api->pin(a->d, up, bytes, why) || a->api->pin(a->d, down, bytes, why)) {
		fprintf(stderr, "no pinned memory: %s\n", why);
	} else {
		for (int i = 0; i < 3; i++)
			speed_of_transfer(&ways[i], true);
		a->api->unpin(a->d, up);
		a->api->unpin(a->d, down);
	}
	check();
	a->api->free(a->d, there);
	measure_buffer_free(up, bytes);
	measure_buffer_free(down, bytes);
}

/* What a layer's experts cost besides their work: a call of next to nothing, its result of a token on the way back, and the wait. */
static void speed_of_waits(void)
{
	enum { TINY = 32, RESULT = HIDDEN * 4 };
	static uint16_t zeros[TINY * TINY];
	struct weight w = {.dtype = DTYPE_BF16, .rows = TINY, .cols = TINY, .data = zeros};
	struct matrix m = {.w = w};
	void *x = put(zeros, sizeof zeros), *gate = device_memory(TINY * 4), *out = device_memory(RESULT);
	char *result = measure_buffer(pool, RESULT), why[BACKEND_TEXT];
	bool pinned = !a->api->pin(a->d, result, RESULT, why);
	double us[N_LATENCIES];
	struct backend_expert e;

	upload_matrix(&m);
	e = (struct backend_expert){m.there, m.there, m.there, 0, 1};
	for (int i = -20; i < N_LATENCIES; i++) {
		double start = measure_now();

		a->api->experts(a->d, out, gate, x, NULL, &e, 1, COMPUTE_BF16);
		a->api->after(a->d, BACKEND_DOWN, a->api->mark(a->d, BACKEND_COMPUTE));
		a->api->download(a->d, BACKEND_DOWN, result, out, RESULT);
		a->api->wait(a->d, a->api->mark(a->d, BACKEND_DOWN));
		if (i >= 0)
			us[i] = (measure_now() - start) * 1e6;
	}
	check();
	measure_print(stdout, "device.round_trip", measure_median(us, N_LATENCIES), "us", 0, "\"device\":\"%s\",\"result_bytes\":%d,\"pinned\":%s",
		      a->info.name, RESULT, pinned ? "true" : "false");
	if (pinned)
		a->api->unpin(a->d, result);
	a->api->free(a->d, (void *)(uintptr_t)m.there.data);
	a->api->free(a->d, x);
	a->api->free(a->d, gate);
	a->api->free(a->d, out);
	measure_buffer_free(result, RESULT);
}

static int run_speed(void)
{
	measure_print(stdout, "device.memory_read", a->info.read_bytes_per_s, "bytes/s", 0,
		      "\"device\":\"%s\",\"bytes\":%.0f,\"free_bytes\":%.0f,\"source\":\"what the device says of itself\"", a->info.name,
		      (double)a->info.bytes, (double)a->info.free_bytes);
	speed_of_waits();
	speed_of_transfers();
	speed_of_experts(DTYPE_F8_E4M3);
	speed_of_experts(DTYPE_INT4);
	speed_of_experts(DTYPE_BF16);
	return 0;
}

/* ---------------------------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
	const char *part = argc > 1 ? argv[1] : "", *name = "cuda:0";
	struct err err = {0};
	bool small = false;
	int status;

	for (int i = 2; i < argc; i++)
		if (!strcmp(argv[i], "--small"))
			small = true;
		else
			name = argv[i];
	if (strcmp(part, "exact") && strcmp(part, "boundary") && strcmp(part, "speed")) {
		fprintf(stderr, "usage: device exact [--small] [NAME] | device boundary [NAME] | device speed [NAME]\n");
		return 2;
	}
	must(accelerator_open(&a, name, &err), &err);
	must(pool_new(&pool, pool_default_threads(), &err), &err);
	device_init(&cpu, "cpu", pool);
	ops = cpu_ops("scalar");
	status = !strcmp(part, "exact") ? run_exact(small) : !strcmp(part, "boundary") ? !run_boundary() : run_speed();
	check();
	pool_free(pool);
	accelerator_close(a);
	return status;
}
