/*
 * A few rows of x times a weight. Reading the weights is what takes the time: each thread reads a contiguous part of the
 * rows of w once, W rows at a time, and multiplies them with X rows of x, all accumulators in registers:
 *
 *     X     1   2   3   4      rows of x; more of them come in several turns, while the rows of w are in the cache
 *     W     4   2   1   1      rows of w (AVX2 with scales half of that: lanes and totals are both in registers)
 *
 * int4 takes 2 for one row of x: its rows are short, and more of them at a time were slower.
 */
#include "engine/simd/matmul.h"

#include <stdatomic.h>
#include <unistd.h>

enum { MOST_X = 4, MOST_W = 4 };

enum { LINE = 64 };

/*
 * DTYPE_F8_LIFTED has values times 2^-120, so x is made 2^100 times as large, and sums are 2^-20 of what they should be
 * (the rest would make large x infinite). All is exact where x is zero or of a magnitude from LEAST_X to LARGEST_X: sums
 * are multiples of 2^(-70 - 23 - 9), so that 2^-20 of one is no subnormal number, and none comes near infinity.
 */
#define LIFT       0x1p100f
#define NOT_LIFTED 0x1p20f
#define LEAST_X    0x1p-70f
#define LARGEST_X  0x1p25f

/*
 * What lies ahead is asked for: the same place of rows that come next (the prefetchers of processors start anew with every row). It
 * must be far enough ahead to come in time, which a pair of short rows is not; and where x passes once, it is asked for past the
 * second and third cache if the first has room for so much. GB/s of two threads over 512 MB, medians of 61 in turn, by columns: asked
 * for in the second cache / past it / and 12 KB ahead at least, on a processor with a first cache of 48 KB (Zen 5):
 *
 *     fp8     2048  56 / 63 / 68   6144  50 / 62 / 63
 *     int4    2048  31 / 32 / 47   6144  48 / 52 / 52
 */
struct prefetch {
	size_t bytes;
	bool past; /* the second and third cache */
};

/* Of a processor; the least that any has where it is not said. */
static size_t first_cache(void)
{
	enum { LEAST = 32 << 10 };
	static atomic_size_t bytes; /* asking may take long */
	size_t b = atomic_load_explicit(&bytes, memory_order_relaxed);

	if (b)
		return b;
#if defined _SC_LEVEL1_DCACHE_SIZE
	long said = sysconf(_SC_LEVEL1_DCACHE_SIZE);

	b = said > LEAST ? (size_t)said : LEAST;
#else
	b = LEAST;
#endif
	atomic_store_explicit(&bytes, b, memory_order_relaxed);
	return b;
}

/* Where W rows of w are multiplied at a time. */
static ALWAYS_INLINE struct prefetch prefetch_of(const struct product *p, int W)
{
	bool once = p->n <= MOST_X; /* else x, too, wants room, and w is read again from the second cache */
	size_t cache = first_cache(), least = cache / (once ? 4 : 8), bytes = (size_t)W * weight_row_bytes(p->w);

	bytes *= (least + bytes - 1) / bytes;
	return (struct prefetch){bytes, once && bytes <= cache / 2};
}

static ALWAYS_INLINE void ask_for(const char *at, bool past)
{
	if (past) /* a constant: the loop over blocks has no room for a branch */
		_mm_prefetch(at, _MM_HINT_NTA);
	else
		_mm_prefetch(at, _MM_HINT_T1);
}

/* `blocks` blocks of 32 inputs of W rows of w times X rows of x, onto the lanes. ahead: bytes; 0: nothing is asked for. */
static ALWAYS_INLINE void add_blocks(vf sum[MOST_W][MOST_X][HALVES], const char *const w[MOST_W], const char *x, size_t x_bytes,
				     int64_t blocks, enum dtype dtype, bool pairs, int W, int X, size_t ahead, bool past)
{
	int step = block_bytes(dtype), ready = ready_bytes(dtype, pairs);

	for (int64_t b = 0; b < blocks; b++)
		for (int j = 0; j < W; j++) {
			const char *in = w[j] + b * step;

			if (ahead && step >= LINE)
				for (int at = 0; at < step; at += LINE)
					ask_for(in + ahead + at, past);
			else if (ahead && (blocks % 2 || b % 2 == 0))
				ask_for(in + ahead, past);
#if HAS_DOT
			if (uses_words(dtype, pairs)) {
				vi words = decode_words(dtype, in);

				for (int i = 0; i < X; i++)
					sum[j][i][0] = vf_dot(sum[j][i][0], vi_load(x + (size_t)i * x_bytes + b * ready), words);
				continue;
			}
#endif
			vf v[2][HALVES];

			/* x comes from the cache for each row of w anew: kept in registers it would drive sums out of them. */
			if (scale_block(dtype))
				__asm__ volatile("" ::: "memory");
			decode_steps(v, dtype, pairs, in);
			for (int s = 0; s < 2; s++)
				for (int i = 0; i < X; i++)
					for (int h = 0; h < HALVES; h++) {
						const char *at = x + (size_t)i * x_bytes + b * ready;
						vf a = vf_load((const float *)at + s * LANES + h * VL);

						sum[j][i][h] = vf_fma(a, v[s][h], sum[j][i][h]);
					}
		}
}

/*
 * Scale blocks end: total = fma(scale, lane, total), and lanes start anew. Lifted ones first become what they should be. (A
 * subnormal scale is zero, by hand where the mode does not see to it.)
 */
static ALWAYS_INLINE void add_scaled_lanes(vf total[MOST_W][MOST_X][HALVES], vf sum[MOST_W][MOST_X][HALVES],
					   const struct weight *w, int32_t r, int32_t k, enum dtype dtype, bool pairs, int W, int X)
{
	for (int j = 0; j < W; j++) {
		bool lifted = dtype == DTYPE_F8_LIFTED;
		float s = weight_scale(w, r + j, k);
		vf scale = vf_all(lifted && pairs ? num_flushed(s) : s);

		for (int i = 0; i < X; i++)
			for (int h = 0; h < HALVES; h++) {
				vf lane = lifted ? vf_mul(sum[j][i][h], vf_all(NOT_LIFTED)) : sum[j][i][h];

				total[j][i][h] = vf_fma(scale, lane, total[j][i][h]);
				sum[j][i][h] = vf_zero();
			}
	}
}

/* y[i0 .. + X][r .. + W]. */
static ALWAYS_INLINE void dots(const struct product *p, int32_t r, int64_t i0, enum dtype dtype, bool pairs, int W, int X,
			       struct prefetch ahead)
{
	vf sum[MOST_W][MOST_X][HALVES], total[MOST_W][MOST_X][HALVES];
	size_t row_bytes = weight_row_bytes(p->w), x_bytes = (size_t)product_blocks(p) * (size_t)ready_bytes(dtype, pairs);
	const char *w[MOST_W], *x = p->packed + (size_t)i0 * x_bytes;
	/* Blocks to a scale: a constant, so that the loop over them is none. */
	const int64_t per_scale = scale_block(dtype) ? scale_block(dtype) / BLOCK : p->w->cols / BLOCK;
	int64_t whole = p->w->cols / BLOCK, b = 0;
	char tail[MOST_W][4 * BLOCK];
	int rest = p->w->cols % BLOCK;

	for (int j = 0; j < W; j++) {
		w[j] = (const char *)p->w->data + (size_t)(r + j) * row_bytes;
		for (int i = 0; i < X; i++)
			for (int h = 0; h < HALVES; h++)
				sum[j][i][h] = total[j][i][h] = vf_zero();
	}
	for (; b + per_scale <= whole && b < whole; b += per_scale) {
		if (ahead.past)
			add_blocks(sum, w, x, x_bytes, per_scale, dtype, pairs, W, X, ahead.bytes, true);
		else
			add_blocks(sum, w, x, x_bytes, per_scale, dtype, pairs, W, X, ahead.bytes, false);
		if (scale_block(dtype))
			add_scaled_lanes(total, sum, p->w, r, (int32_t)b * BLOCK, dtype, pairs, W, X);
		for (int j = 0; j < W; j++)
			w[j] += per_scale * block_bytes(dtype);
		x += per_scale * ready_bytes(dtype, pairs);
	}
	if (b < whole)
		add_blocks(sum, w, x, x_bytes, whole - b, dtype, pairs, W, X, 0, false);
	if (rest) {
		for (int j = 0; j < W; j++)
			w[j] = padded_block(tail[j], w[j] + (whole - b) * block_bytes(dtype), rest, dtype);
		add_blocks(sum, w, x + (whole - b) * ready_bytes(dtype, pairs), x_bytes, 1, dtype, pairs, W, X, 0, false);
	}
	if (scale_block(dtype) && b * BLOCK < p->w->cols)
		add_scaled_lanes(total, sum, p->w, r, (int32_t)b * BLOCK, dtype, pairs, W, X);
	for (int j = 0; j < W; j++)
		for (int i = 0; i < X; i++)
			p->y[(i0 + i) * p->y_stride + r + j] = lanes_total(scale_block(dtype) ? total[j][i] : sum[j][i]);
}

/* Rows first .. end - 1 of w with X rows of x, W at a time. */
#define ROWS(name, dtype, pairs, X, W) \
	static NEVER_INLINE void name(const struct product *p, int32_t first, int32_t end, int64_t i0) \
	{ \
		const struct prefetch ahead = prefetch_of(p, W); \
		int32_t r = first; \
\
		for (; r + (W) <= end; r += (W)) \
			dots(p, r, i0, dtype, pairs, W, X, ahead); \
		for (; (W) > 1 && r < end; r++) \
			dots(p, r, i0, dtype, pairs, 1, X, ahead); \
	}

typedef void rows_fn(const struct product *p, int32_t first, int32_t end, int64_t i0);

#define PER_TYPE(name, dtype, pairs) \
	ROWS(name##1, dtype, pairs, 1, dtype == DTYPE_INT4 || (scale_block(dtype) && ROOM == 1) ? 2 : 4) \
	ROWS(name##2, dtype, pairs, 2, scale_block(dtype) ? ROOM : 2 * ROOM) \
	ROWS(name##3, dtype, pairs, 3, 1) \
	ROWS(name##4, dtype, pairs, 4, 1)

enum { ROOM = VL == 16 ? 2 : 1 }; /* twice the registers, and one holds all lanes */

PER_TYPE(f32_in_order, DTYPE_F32, false)
PER_TYPE(bf16_in_order, DTYPE_BF16, false)
PER_TYPE(f16_in_order, DTYPE_F16, false)
PER_TYPE(fp8_in_order, DTYPE_F8_E4M3, false)
PER_TYPE(int4_in_order, DTYPE_INT4, false)
PER_TYPE(lifted_in_order, DTYPE_F8_LIFTED, false)
PER_TYPE(f32_in_pairs, DTYPE_F32, true)
PER_TYPE(bf16_in_pairs, DTYPE_BF16, true)
PER_TYPE(f16_in_pairs, DTYPE_F16, true)
PER_TYPE(fp8_in_pairs, DTYPE_F8_E4M3, true)
PER_TYPE(int4_in_pairs, DTYPE_INT4, true)
PER_TYPE(lifted_in_pairs, DTYPE_F8_LIFTED, true)

#define BY_X(name) {name##1, name##2, name##3, name##4}

static rows_fn *const rows_of[2][N_DTYPES + 1][MOST_X] = {
	{[DTYPE_F32] = BY_X(f32_in_order), [DTYPE_BF16] = BY_X(bf16_in_order), [DTYPE_F16] = BY_X(f16_in_order),
	 [DTYPE_F8_E4M3] = BY_X(fp8_in_order), [DTYPE_INT4] = BY_X(int4_in_order),
	 [DTYPE_F8_LIFTED] = BY_X(lifted_in_order)},
	{[DTYPE_F32] = BY_X(f32_in_pairs), [DTYPE_BF16] = BY_X(bf16_in_pairs), [DTYPE_F16] = BY_X(f16_in_pairs),
	 [DTYPE_F8_E4M3] = BY_X(fp8_in_pairs), [DTYPE_INT4] = BY_X(int4_in_pairs),
	 [DTYPE_F8_LIFTED] = BY_X(lifted_in_pairs)},
};

/* Rows of w that stay in the cache while all of x passes. */
enum { TURN = 8 };

static void run(void *arg, int64_t first, int64_t end, int thread)
{
	const struct product *p = arg;
	unsigned mode = p->lifted ? flush_results_begin(p->profile) : flush_begin(p->profile);
	rows_fn *const *by_x = rows_of[p->profile == COMPUTE_BF16][p->lifted ? DTYPE_F8_LIFTED : p->w->dtype];

	(void)thread;
	if (p->n <= MOST_X)
		by_x[p->n - 1](p, (int32_t)first, (int32_t)end, 0);
	else
		for (int64_t r = first; r < end; r += TURN)
			for (int64_t i = 0; i < p->n; i += MOST_X)
				by_x[(p->n - i < MOST_X ? p->n - i : MOST_X) - 1](
					p, (int32_t)r, (int32_t)(end - r < TURN ? end : r + TURN), i);
	flush_end(mode);
}

/* Item: what has one checksum. It is summed, which brings it into the second cache, then the rows that begin in it are multiplied:
 * memory is read once for both. */
static void sum_and_run(void *arg, int64_t first, int64_t end, int thread)
{
	const struct product *p = arg;
	int64_t row = (int64_t)weight_row_bytes(p->w);

	for (int64_t i = first; i < end; i++) {
		int64_t from = (i * WEIGHT_SUM_BYTES + row - 1) / row, to = ((i + 1) * WEIGHT_SUM_BYTES + row - 1) / row;

		weight_sum_item(p->w, i);
		run(arg, from, to < p->w->rows ? to : p->w->rows, thread);
	}
}

/* x, made ready, LIFT times as large; false where one of it does not allow that, and x is as it was. */
static bool lift(float *x, size_t n)
{
	bool fits = true;

	for (size_t k = 0; k < n; k++)
		fits &= x[k] == 0 || (fabsf(x[k]) >= LEAST_X && fabsf(x[k]) <= LARGEST_X);
	for (size_t k = 0; fits && k < n; k++)
		x[k] *= LIFT;
	return fits;
}

size_t CPU(gemv_ready_bytes)(const struct product *p)
{
	return (size_t)(p->n * product_blocks(p)) * (size_t)ready_bytes(p->w->dtype, p->profile == COMPUTE_BF16);
}

static void make_ready(struct product *p)
{
	bool pairs = p->profile == COMPUTE_BF16;
	size_t bytes = CPU(gemv_ready_bytes)(p), x_bytes = bytes / (size_t)p->n;

	for (int64_t i = 0; i < p->n; i++)
		CPU(ready_row)(p->packed + (size_t)i * x_bytes, LANES * 4, VL * 4, p->x + i * p->x_stride, p->w->cols,
			       p->w->dtype, pairs);
	if (p->w->dtype == DTYPE_F8_E4M3 && !uses_words(p->w->dtype, pairs))
		p->lifted = lift((float *)p->packed, bytes / sizeof(float));
}

void CPU(gemv)(struct product *p)
{
	p->packed = pool_scratch(p->pool, pool_n_threads(p->pool), CPU(gemv_ready_bytes)(p));
	make_ready(p);
	if (p->w->sums) {
		int64_t n = weight_sum_items(p->w);

		pool_run(p->pool, sum_and_run, p, n, p->n * p->w->cols * p->w->rows / n);
	} else {
		pool_run(p->pool, run, p, p->w->rows, p->n * p->w->cols);
	}
}

void CPU(gemv_here)(struct product *p)
{
	make_ready(p);
	run(p, 0, p->w->rows, 0);
}
