/*
 * Queries carried to the latent space: for each head a product with the transposed key half of kv_b.
 *
 * A few queries: memory decides. A head's rows are read in order, ROWS at a time, and added to sums that stay in the L1
 * cache. Many: a head's rows are widened once, laid out in strips of two vectors of columns (tile.h's b), half a head of
 * GLM's at a time (200 KB, in the L2 cache); tiles of queries by a strip run over them.
 */
#include "engine/simd/tile.h"

enum {
	FEW = 4,        /* queries from which tiles are worth it */
	ROWS = 4,       /* that are added to a sum while it is in a register */
	COLUMNS = 256,  /* widened at a time */
	AHEAD = 8192,   /* bytes of a few queries' rows that are asked for in advance */
	ROWS_AHEAD = 8, /* rows, of many queries' */
	QUERIES = 192,  /* whose numbers stay in the L2 cache beside them */
};

struct absorb_job {
	struct pool *pool;
	float *out;
	const float *q;
	const struct weight *kv_b;
	int64_t out_head, q_head, n, n_blocks; /* n_blocks: of QUERIES */
	int32_t n_heads, nope_dim, v_dim;
};

/* Rows of a head's key half that share a scale, from d on: the first one that does not. Without scales: all. */
static int32_t run_end(const struct absorb_job *j, int32_t uk, int32_t d)
{
	const struct weight *w = j->kv_b;
	int32_t end;

	if (!w->scale)
		return j->nope_dim;
	end = d + WEIGHT_BLOCK - (w->first_row + uk + d) % WEIGHT_BLOCK;
	return end < j->nope_dim ? end : j->nope_dim;
}

/* VL values from column c of a row, widened; codes of FP8 (NaN is none, models with it are refused) as in e4m3_to_f32. */
static ALWAYS_INLINE vf load_values(const void *row, int32_t c, const enum dtype dtype)
{
	if (dtype == DTYPE_F32)
		return vf_load((const float *)row + c);
	if (dtype == DTYPE_BF16)
		return vf_load_bf16((const uint16_t *)row + c);
	if (dtype == DTYPE_F16)
		return vf_load_f16((const uint16_t *)row + c);
	/* The sign is extended over the upper bits; those that are the exponent's are cleared. */
	return vf_mul(vf_of_bits(vi_and(vi_shift_left(vi_load_i8((const int8_t *)row + c), 20), vi_all((int32_t)0x87f00000))),
		      vf_all(0x1p120f));
}

static ALWAYS_INLINE size_t value_bytes(const enum dtype dtype)
{
	return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_F8_E4M3 ? 1 : 2;
}

/* run[c] = fma(q[d], row d of the ROWS rows [c], run[c]), d ascending, over whole vectors of columns. */
static ALWAYS_INLINE void add_rows_of(float *run, const float *q, const char *rows, size_t row_bytes, int32_t cols,
				      const enum dtype dtype)
{
	for (int32_t c = 0; c + VL <= cols; c += VL) {
		vf sum = vf_load(run + c);

		/* The rows are one stretch of memory, but read as ROWS short ones, which the processor does not foresee. */
		__builtin_prefetch(rows + AHEAD + (size_t)c * value_bytes(dtype) * ROWS);
		UNROLL(4)
		for (int d = 0; d < ROWS; d++)
			sum = vf_fma(vf_all(q[d]), load_values(rows + (size_t)d * row_bytes, c, dtype), sum);
		vf_store(run + c, sum);
	}
}

/* Rows first .. first + n - 1 added to a run. */
static void add_rows(float *run, const float *q, const struct weight *w, int32_t first, int32_t n, float *one)
{
	size_t row_bytes = weight_row_bytes(w);
	int32_t done = 0, d = 0;

	for (; d + ROWS <= n && w->dtype != DTYPE_INT4; d += ROWS) {
		const char *rows = (const char *)w->data + (size_t)(first + d) * row_bytes;

		switch (w->dtype) {
		case DTYPE_F32:
			add_rows_of(run, q + d, rows, row_bytes, w->cols, DTYPE_F32);
			break;
		case DTYPE_BF16:
			add_rows_of(run, q + d, rows, row_bytes, w->cols, DTYPE_BF16);
			break;
		case DTYPE_F16:
			add_rows_of(run, q + d, rows, row_bytes, w->cols, DTYPE_F16);
			break;
		default:
			add_rows_of(run, q + d, rows, row_bytes, w->cols, DTYPE_F8_E4M3);
		}
	}
	/* Columns after the last whole vector, then rows after the last whole ROWS. */
	done = d ? w->cols / VL * VL : 0;
	for (int32_t i = 0; i < n; i++) {
		int32_t c = i < d ? done : 0;

		if (c == w->cols)
			continue;
		weight_widen(one, w, first + i, c, w->cols - c);
		for (int32_t k = c; k < w->cols; k++)
			run[k] = fmaf(q[i], one[k - c], run[k]);
	}
}

/* out = fma(scale of row r, run, out). */
static void add_scaled_run(float *out, const float *run, const struct weight *w, int32_t r)
{
	for (int32_t block = 0; block < w->cols; block += WEIGHT_BLOCK) {
		int32_t end = w->cols - block < WEIGHT_BLOCK ? w->cols : block + WEIGHT_BLOCK, c = block;
		float scale = weight_scale(w, r, block);

		for (; c + VL <= end; c += VL)
			vf_store(out + c, vf_fma(vf_all(scale), vf_load(run + c), vf_load(out + c)));
		for (; c < end; c++)
			out[c] = fmaf(scale, run[c], out[c]);
	}
}

/* One query of a head; run, one: scratch of a row each. */
static void absorb_one(const struct absorb_job *j, int32_t h, int64_t i, float *run, float *one)
{
	const struct weight *w = j->kv_b;
	int32_t uk = h * (j->nope_dim + j->v_dim);
	const float *q = j->q + (i * j->n_heads + h) * j->q_head;
	float *out = j->out + (i * j->n_heads + h) * j->out_head;

	memset(out, 0, (size_t)w->cols * sizeof *out);
	if (!w->scale) {
		add_rows(out, q, w, uk, j->nope_dim, one);
		return;
	}
	for (int32_t d = 0, stop; d < j->nope_dim; d = stop) {
		stop = run_end(j, uk, d);
		memset(run, 0, (size_t)w->cols * sizeof *run);
		add_rows(run, q + d, w, uk + d, stop - d, one);
		add_scaled_run(out, run, w, uk + d);
	}
}

/* Item: a head; its few queries one after another, the first one brings the rows to the L2 cache. */
static void absorb_few(void *arg, int64_t first, int64_t end, int thread)
{
	const struct absorb_job *j = arg;
	const struct weight *w = j->kv_b;
	float *run = pool_scratch(j->pool, thread, 2 * (size_t)w->cols * sizeof *run), *one = run + w->cols;

	for (int64_t item = first * j->n; item < end * j->n; item++)
		absorb_one(j, (int32_t)(item / j->n), item % j->n, run, one);
}

/* Columns c .. of a head's key half to strips: [n_strips][nope_dim + 1][ACROSS], zeros where there are no more columns.
 * The row that is left free keeps equal rows of all strips from falling into one set of the L1 cache. */
static ALWAYS_INLINE void widen_strips_of(float *out, const struct absorb_job *j, int32_t uk, int32_t c, int32_t n_strips,
					  const enum dtype dtype)
{
	const struct weight *w = j->kv_b;
	size_t row_bytes = weight_row_bytes(w);

	for (int32_t d = 0; d < j->nope_dim; d++) {
		const char *row = (const char *)w->data + (size_t)(uk + d) * row_bytes;

		for (int32_t s = 0; s < n_strips; s++) {
			float *to = out + (int64_t)(s * (j->nope_dim + 1) + d) * ACROSS;
			int32_t from = c + s * ACROSS, n = w->cols - from;

			__builtin_prefetch(row + ROWS_AHEAD * row_bytes + (size_t)from * value_bytes(dtype));
			if (n >= ACROSS && dtype != DTYPE_INT4) {
				vf_store(to, load_values(row, from, dtype));
				vf_store(to + VL, load_values(row, from + VL, dtype));
				continue;
			}
			n = n < ACROSS ? n : ACROSS;
			weight_widen(to, w, uk + d, from, n);
			memset(to + n, 0, (size_t)(ACROSS - n) * sizeof *to);
		}
	}
}

static void widen_strips(float *out, const struct absorb_job *j, int32_t uk, int32_t c, int32_t n_strips)
{
	switch (j->kv_b->dtype) {
	case DTYPE_F32:
		widen_strips_of(out, j, uk, c, n_strips, DTYPE_F32);
		break;
	case DTYPE_BF16:
		widen_strips_of(out, j, uk, c, n_strips, DTYPE_BF16);
		break;
	case DTYPE_F16:
		widen_strips_of(out, j, uk, c, n_strips, DTYPE_F16);
		break;
	case DTYPE_INT4:
		widen_strips_of(out, j, uk, c, n_strips, DTYPE_INT4);
		break;
	default:
		widen_strips_of(out, j, uk, c, n_strips, DTYPE_F8_E4M3);
	}
}

/* M queries by one strip: in.n rows of each run, then times its scale; out [M][ACROSS] */
static ALWAYS_INLINE void absorb_tile(const int m, float *out, const struct absorb_job *j, struct tile_in in, int32_t uk,
				      int32_t c)
{
	vf total[TILE][2], acc[TILE][2];

	for (int32_t d = 0, stop; d < j->nope_dim; d = stop) {
		stop = run_end(j, uk, d);
		in.n = stop - d;
		tile_load(acc, m, NULL, 0);
		tile_sum(acc, m, &in, IN_ORDER);
		in.a += (stop - d) * in.along;
		in.b[0] += (stop - d) * ACROSS;
		in.b[1] += (stop - d) * ACROSS;
		if (j->kv_b->scale) {
			vf scale = vf_all(weight_scale(j->kv_b, uk + d, c));

			tile_load(total, m, d ? out : NULL, ACROSS);
			UNROLL(8)
			for (int i = 0; i < m; i++)
				for (int v = 0; v < 2; v++)
					acc[i][v] = vf_fma(scale, acc[i][v], total[i][v]);
		}
		tile_store(out, ACROSS, acc, m);
	}
}

/* n queries of head h from `first` on, tile after tile, the numbers of a row of kv_b together. */
static void lay_out_queries(float *out, const struct absorb_job *j, int32_t h, int64_t first, int32_t n)
{
	for (int32_t t = 0, i = 0, next; t < n_tiles(n); t++, i = next) {
		next = tile_first(t + 1, n);
		for (int32_t k = i; k < next; k++) {
			const float *q = j->q + ((first + k) * j->n_heads + h) * j->q_head;
			float *to = out + (int64_t)i * j->nope_dim + (k - i);

			for (int32_t d = 0; d < j->nope_dim; d++)
				to[(int64_t)d * (next - i)] = q[d];
		}
	}
}

/* Queries first .. end - 1 of head h; scratch: the queries, then the strips. */
static void absorb_head(const struct absorb_job *j, int32_t h, int64_t first, int64_t end, float *scratch)
{
	float *queries = scratch, *strips = scratch + (int64_t)QUERIES * j->nope_dim;
	int32_t uk = h * (j->nope_dim + j->v_dim), cols = j->kv_b->cols, n = (int32_t)(end - first);

	lay_out_queries(queries, j, h, first, n);
	for (int32_t block = 0; block < cols; block += COLUMNS) {
		int32_t width = cols - block < COLUMNS ? cols - block : COLUMNS, n_strips = (width + ACROSS - 1) / ACROSS;

		widen_strips(strips, j, uk, block, n_strips);
		for (int32_t s = 0; s < n_strips; s++) {
			const float *strip = strips + (int64_t)s * (j->nope_dim + 1) * ACROSS;
			int32_t c = block + s * ACROSS, room = cols - c < ACROSS ? cols - c : ACROSS;
			struct tile_in in = {.b = {strip, strip + VL}, .across = 1, .step = ACROSS};

			for (int32_t t = 0, i = 0, next; t < n_tiles(n); t++, i = next) {
				float tile[TILE * ACROSS];

				next = tile_first(t + 1, n);
				in.a = queries + (int64_t)i * j->nope_dim;
				in.along = next - i;
				TILE_OF(next - i, absorb_tile, tile, j, in, uk, c)
				for (int32_t k = i; k < next; k++)
					memcpy(j->out + ((first + k) * j->n_heads + h) * j->out_head + c, tile + (k - i) * ACROSS,
					       (size_t)room * sizeof *tile);
			}
		}
	}
}

/* Item: a head and a block of queries. */
static void absorb_many(void *arg, int64_t first, int64_t end, int thread)
{
	const struct absorb_job *j = arg;
	size_t room = (size_t)QUERIES * (size_t)j->nope_dim + ((size_t)j->nope_dim + 1) * COLUMNS;
	float *scratch = pool_scratch(j->pool, thread, room * sizeof *scratch);

	for (; first < end; first++) {
		int64_t block = first % j->n_blocks;

		absorb_head(j, (int32_t)(first / j->n_blocks), j->n * block / j->n_blocks, j->n * (block + 1) / j->n_blocks, scratch);
	}
}

void CPU(absorb_query)(struct device *dev, float *out, int64_t out_head, const float *q, int64_t q_head,
		       const struct weight *kv_b, int32_t n_heads, int32_t nope_dim, int32_t v_dim, int64_t n)
{
	struct absorb_job j = {.pool = dev->queue, .out = out, .q = q, .kv_b = kv_b, .out_head = out_head, .q_head = q_head,
			       .n = n, .n_heads = n_heads, .nope_dim = nope_dim, .v_dim = v_dim};
	int64_t work = 2 * (int64_t)nope_dim * kv_b->cols;

	j.n_blocks = (n + QUERIES - 1) / QUERIES;
	if (n < FEW)
		pool_run(j.pool, absorb_few, &j, n_heads, work * n);
	else
		pool_run(j.pool, absorb_many, &j, n_heads * j.n_blocks, work * (n / j.n_blocks));
}
