/*
 * Index scores in tiles (tile.h) of a few heads by two vectors of keys, which already stand abreast in memory.
 *
 * Queries are rounded and laid out once per call, head tiles one after another, the numbers of a step together. Then
 * each thread takes chunks of keys and runs all queries of a batch over each: a chunk is widened once (not for float32
 * keys, nor where bf16 dot products read it as it is) and stays in its L2 cache, a query (16 KB at 32 heads of 128) and
 * 16 keys (8 KB) in its L1. So keys come from memory once per batch. Chunks are dealt out like cards, because the last
 * ones are visible to fewer queries.
 */
#include "engine/simd/tile.h"

enum {
	CHUNK = 256,      /* most keys of one: 128 KB widened at 128 dimensions */
	QUERY_BATCH = 64, /* 1 MB laid out */
	DEALS = 4,        /* chunks that each thread should get, where there are enough keys */
};

struct score_job {
	struct pool *pool;
	float *scores;
	const float *q, *w;
	const void *keys;
	const int64_t *n_visible;
	int64_t scores_stride;
	int32_t n_heads, dim, depth; /* depth: steps of a dot product */
	int32_t n;                   /* queries of the batch */
	enum compute_profile profile;
	float *laid_out;             /* [n][head tiles][depth][heads of the tile] */
	int64_t chunk, n_chunks;     /* keys, a multiple of ACROSS */
	int32_t group, n_groups;     /* queries that are run over a chunk in one go */
	int64_t n_shares;
};

static float *query_tiles(const struct score_job *j, int64_t i)
{
	return j->laid_out + i * j->n_heads * j->depth;
}

/* Item: a query. */
static void lay_out_queries(void *arg, int64_t first, int64_t end, int thread)
{
	const struct score_job *j = arg;
	bool words = j->profile == COMPUTE_BF16 && HAS_DOT;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		for (int32_t t = 0; t < n_tiles(j->n_heads); t++) {
			int32_t head = tile_first(t, j->n_heads), m = tile_first(t + 1, j->n_heads) - head;
			float *out = query_tiles(j, i) + (int64_t)head * j->depth;

			for (int32_t h = 0; h < m; h++) {
				const float *q = j->q + (i * j->n_heads + head + h) * j->dim;

				for (int32_t k = 0; k < j->depth; k++) {
					if (j->profile == COMPUTE_F32) {
						out[k * m + h] = q[k];
					} else if (!words) {
						out[k * m + h] = k < j->dim ? num_bf16(q[k]) : 0;
					} else {
						uint32_t odd = 2 * k + 1 < j->dim ? f32_to_bf16(q[2 * k + 1]) : 0;

						out[k * m + h] = f32_from_bits(odd << 16 | f32_to_bf16(q[2 * k]));
					}
				}
			}
		}
}

/* Keys of the stored block of 16, as the tile reads them: [depth][16]. */
static const float *stored_block(const struct score_job *j, int64_t block)
{
	int32_t words = j->profile == COMPUTE_BF16 ? (j->dim + 1) / 2 : j->dim;

	return (const float *)j->keys + block * words * KEYS_ABREAST;
}

/* Blocks of bf16 pairs to float32. */
static void widen_blocks(float *out, const struct score_job *j, int64_t block, int64_t end)
{
	int32_t pairs = j->depth / 2;

	for (; block < end; block++, out += j->depth * KEYS_ABREAST) {
		const float *in = stored_block(j, block);

		for (int32_t d = 0; d < pairs; d++)
			for (int32_t v = 0; v < KEYS_ABREAST; v += VL) {
				vi pair = vi_load(in + d * KEYS_ABREAST + v);

				vf_store(out + 2 * d * KEYS_ABREAST + v, vf_even(pair));
				vf_store(out + (2 * d + 1) * KEYS_ABREAST + v, vf_odd(pair));
			}
	}
}

static ALWAYS_INLINE void add_heads(const int m, vf *sum, const struct tile_in *in, const float *w, const enum order order)
{
	vf acc[TILE][2];

	tile_load(acc, m, NULL, 0);
	tile_sum(acc, m, in, order);
	UNROLL(8)
	for (int i = 0; i < m; i++) {
		sum[0] = vf_fma(vf_all(w[i]), vf_max(acc[i][0], vf_zero()), sum[0]);
		sum[1] = vf_fma(vf_all(w[i]), vf_max(acc[i][1], vf_zero()), sum[1]);
	}
}

/* Scores of one query and ACROSS keys; `other`: the keys of the second vector. */
static ALWAYS_INLINE void score_keys(float *out, const struct score_job *j, const float *q, const float *w, const float *keys,
				     const float *other, const enum order order)
{
	struct tile_in in = {.b = {keys, other}, .across = 1, .step = KEYS_ABREAST, .n = j->depth};
	vf sum[2] = {vf_zero(), vf_zero()};

	for (int32_t t = 0, head = 0, next; t < n_tiles(j->n_heads); t++, head = next) {
		next = tile_first(t + 1, j->n_heads);
		in.a = q + (int64_t)head * j->depth;
		in.along = next - head;
		TILE_OF(next - head, add_heads, sum, &in, w + head, order)
	}
	vf_store(out, sum[0]);
	vf_store(out + VL, sum[1]);
}

/* Queries first .. end - 1 and the keys from t on that begin at `blocks`. */
static ALWAYS_INLINE void score_chunk(const struct score_job *j, int64_t first, int64_t end, int64_t t, const float *blocks,
				      const enum order order)
{
	int64_t block_size = (int64_t)j->depth * KEYS_ABREAST;

	for (int64_t i = first; i < end; i++) {
		int64_t visible = j->n_visible[i] - t < j->chunk ? j->n_visible[i] - t : j->chunk;

		for (int64_t k = 0; k < visible; k += ACROSS) {
			const float *keys = blocks + k / KEYS_ABREAST * block_size, *other = keys + VL;
			float *out = j->scores + i * j->scores_stride + t + k, some[ACROSS];

			/* Two stored blocks, or one again where the other has no key that is visible. */
			if (HALVES == 1)
				other = k + VL < visible ? keys + block_size : keys;
			if (visible - k >= ACROSS) {
				score_keys(out, j, query_tiles(j, i), j->w + i * j->n_heads, keys, other, order);
			} else {
				score_keys(some, j, query_tiles(j, i), j->w + i * j->n_heads, keys, other, order);
				memcpy(out, some, (size_t)(visible - k) * sizeof *out);
			}
		}
	}
}

static NEVER_INLINE void score_share(const struct score_job *j, int64_t share, int thread)
{
	for (int64_t item = share; item < j->n_chunks * j->n_groups; item += j->n_shares) {
		int64_t t = item / j->n_groups * j->chunk, first = item % j->n_groups * j->group, most = 0;
		int64_t end = first + j->group < j->n ? first + j->group : j->n;

		for (int64_t i = first; i < end; i++)
			if (j->n_visible[i] > most)
				most = j->n_visible[i];
		most = most < t + j->chunk ? most : t + j->chunk;
		if (most <= t)
			continue;
		if (j->profile == COMPUTE_F32) {
			score_chunk(j, first, end, t, stored_block(j, t / KEYS_ABREAST), IN_ORDER);
		} else if (HAS_DOT) {
			score_chunk(j, first, end, t, stored_block(j, t / KEYS_ABREAST), BF16_ORDER);
		} else {
			float *blocks = pool_scratch(j->pool, thread, (size_t)(j->chunk * j->depth) * sizeof *blocks);

			widen_blocks(blocks, j, t / KEYS_ABREAST, (most + KEYS_ABREAST - 1) / KEYS_ABREAST);
			score_chunk(j, first, end, t, blocks, BF16_ORDER);
		}
	}
}

/* Item: a thread's share of the chunks. */
static void score_shares(void *arg, int64_t first, int64_t end, int thread)
{
	const struct score_job *j = arg;
	unsigned mode = flush_begin(j->profile);

	for (int64_t share = first; share < end; share++)
		score_share(j, share, thread);
	flush_end(mode);
}

static void score_batch(struct score_job *j)
{
	int64_t most = 0, work = 0, deals = (int64_t)DEALS * j->n_shares;

	for (int64_t i = 0; i < j->n; i++) {
		most = j->n_visible[i] > most ? j->n_visible[i] : most;
		work += j->n_visible[i];
	}
	j->chunk = (most / deals + ACROSS - 1) / ACROSS * ACROSS;
	j->chunk = j->chunk < ACROSS ? ACROSS : j->chunk > CHUNK ? CHUNK : j->chunk;
	j->n_chunks = (most + j->chunk - 1) / j->chunk;
	j->n_groups = j->n_chunks && j->n_chunks < deals ? (int32_t)((deals + j->n_chunks - 1) / j->n_chunks) : 1;
	j->group = (j->n + j->n_groups - 1) / j->n_groups;
	j->n_groups = (j->n + j->group - 1) / j->group;
	pool_run(j->pool, lay_out_queries, j, j->n, 4 * (int64_t)j->n_heads * j->dim);
	pool_run(j->pool, score_shares, j, j->n_shares, work / j->n_shares * j->n_heads * j->dim);
}

void CPU(index_scores)(struct device *dev, float *scores, int64_t scores_stride, const float *q, const float *w,
		       const void *keys, const int64_t *n_visible, int32_t n_heads, int32_t dim, int64_t n,
		       enum compute_profile profile)
{
	struct score_job j = {.pool = dev->queue, .scores_stride = scores_stride, .keys = keys, .n_heads = n_heads, .dim = dim,
			      .profile = profile};
	int64_t n_batches = (n + QUERY_BATCH - 1) / QUERY_BATCH, i = 0;
	size_t room;

	j.n_shares = pool_n_threads(j.pool);
	j.depth = profile == COMPUTE_F32 ? dim : HAS_DOT ? (dim + 1) / 2 : (dim + 1) / 2 * 2;
	room = (size_t)(n < QUERY_BATCH ? n : QUERY_BATCH) * (size_t)n_heads * (size_t)j.depth * sizeof *j.laid_out;
	j.laid_out = pool_scratch(j.pool, pool_n_threads(j.pool), room);
	/* Of equal size: one query alone would wait for its keys from memory. */
	for (int64_t batch = 0; batch < n_batches; batch++, i += j.n) {
		j.n = (int32_t)(n * (batch + 1) / n_batches - i);
		j.scores = scores + i * scores_stride;
		j.q = q + i * n_heads * dim;
		j.w = w + i * n_heads;
		j.n_visible = n_visible + i;
		score_batch(&j);
	}
}
