/* The lightning indexer: how much every position matters to a query, and which ones it will attend to. */
#include "engine/cpu/cpu.h"

#include <assert.h>
#include <stdlib.h>

enum {
	CHUNK = 64, /* blocks of 16 keys in one item of work */
	HEADS = 4,  /* that share the loading of a key */
};

struct score_job {
	float *scores;
	const float *q, *w, *keys;
	const int64_t *n_visible;
	int64_t scores_stride, n;
	int32_t n_heads, dim;
};

/* sum + the part of `heads` heads of one query, for 16 keys. */
static inline __attribute__((always_inline)) lanes score_heads(lanes sum, const float *q, const float *w,
							       const float *keys, int32_t dim, int heads)
{
	lanes dot[HEADS];

	for (int h = 0; h < heads; h++)
		dot[h] = lanes_all(0);
	for (int32_t d = 0; d < dim; d++) {
		lanes key = lanes_load(keys + d * KEYS_ABREAST);

		for (int h = 0; h < heads; h++)
			dot[h] = lanes_fma(lanes_all(q[h * dim + d]), key, dot[h]);
	}
	for (int h = 0; h < heads; h++)
		sum = lanes_fma(lanes_all(w[h]), lanes_positive(dot[h]), sum);
	return sum;
}

/* 16 keys against one query. */
static void score_block(float *out, const float *q, const float *w, const float *keys, int32_t n_heads, int32_t dim)
{
	lanes sum = lanes_all(0);
	int32_t h = 0;

	static_assert((int)KEYS_ABREAST == (int)LANES, "keys stand as wide as lanes");
	for (; h + HEADS <= n_heads; h += HEADS)
		sum = score_heads(sum, q + h * dim, w + h, keys, dim, HEADS);
	for (; h < n_heads; h++)
		sum = score_heads(sum, q + h * dim, w + h, keys, dim, 1);
	lanes_store(out, sum);
}

/* Item: CHUNK blocks of keys and one query; all queries of a chunk follow one another, so its keys stay in cache. */
static void score_items(void *arg, int64_t first, int64_t end, int thread)
{
	const struct score_job *j = arg;

	(void)thread;
	for (int64_t item = first; item < end; item++) {
		int64_t i = item % j->n, t = item / j->n * CHUNK * KEYS_ABREAST;
		int64_t stop = t + CHUNK * KEYS_ABREAST;
		float *out = j->scores + i * j->scores_stride;

		if (stop > j->n_visible[i])
			stop = j->n_visible[i];
		for (; t < stop; t += KEYS_ABREAST) {
			float sum[KEYS_ABREAST];

			score_block(sum, j->q + i * j->n_heads * j->dim, j->w + i * j->n_heads,
				    j->keys + t * j->dim, j->n_heads, j->dim);
			memcpy(out + t, sum, sizeof *sum * (size_t)(stop - t < KEYS_ABREAST ? stop - t : KEYS_ABREAST));
		}
	}
}

void CPU(index_scores)(struct device *dev, float *scores, int64_t scores_stride, const float *q, const float *w,
		       const float *keys, const int64_t *n_visible, int32_t n_heads, int32_t dim, int64_t n,
		       enum compute_profile profile)
{
	struct score_job j = {scores, q, w, keys, n_visible, scores_stride, n, n_heads, dim};
	int64_t most = 0;

	assert(profile == COMPUTE_F32);
	for (int64_t i = 0; i < n; i++)
		if (n_visible[i] > most)
			most = n_visible[i];
	pool_run(dev->queue, score_items, &j, (most + CHUNK * KEYS_ABREAST - 1) / (CHUNK * KEYS_ABREAST) * n,
		 (int64_t)(most < CHUNK * KEYS_ABREAST ? most : CHUNK * KEYS_ABREAST) * n_heads * dim);
}

struct topk_job {
	int32_t *set, *n_set;
	const float *scores;
	const int64_t *n_visible;
	int64_t set_stride, scores_stride;
	int32_t k;
};

/* Is position a a worse choice than b? Lower score, or the same and later. */
static inline int worse(const float *score, int32_t a, int32_t b)
{
	float x = score[a], y = score[b];

	x = x == x ? x : -INFINITY;
	y = y == y ? y : -INFINITY;
	return x < y || (x == y && a > b);
}

/* Let position p sink from the root of a heap whose root is the worst choice. */
static void sink(int32_t *heap, int32_t n, int32_t p, const float *score)
{
	int32_t i = 0;

	for (;;) {
		int32_t child = 2 * i + 1;

		if (child >= n)
			break;
		if (child + 1 < n && worse(score, heap[child + 1], heap[child]))
			child++;
		if (!worse(score, heap[child], p))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = p;
}

static void rise(int32_t *heap, int32_t i, const float *score)
{
	int32_t p = heap[i];

	for (; i && worse(score, p, heap[(i - 1) / 2]); i = (i - 1) / 2)
		heap[i] = heap[(i - 1) / 2];
	heap[i] = p;
}

static int ascending(const void *a, const void *b)
{
	int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

	return (x > y) - (x < y);
}

static void topk_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct topk_job *j = arg;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const float *score = j->scores + i * j->scores_stride;
		int32_t *heap = j->set + i * j->set_stride, n = (int32_t)j->n_visible[i], p = 0;
		int32_t k = n < j->k ? n : j->k;

		for (; p < k; p++) {
			heap[p] = p;
			if (k < n)
				rise(heap, p, score);
		}
		for (; p < n; p++)
			if (worse(score, heap[0], p))
				sink(heap, k, p, score);
		if (k < n)
			qsort(heap, (size_t)k, sizeof *heap, ascending);
		j->n_set[i] = k;
	}
}

void CPU(topk_positions)(struct device *dev, int32_t *set, int64_t set_stride, int32_t *n_set, const float *scores,
			 int64_t scores_stride, const int64_t *n_visible, int32_t k, int64_t n)
{
	struct topk_job j = {set, n_set, scores, n_visible, set_stride, scores_stride, k};

	pool_run(dev->queue, topk_rows, &j, n, n_visible[n - 1] > k ? 8 * n_visible[n - 1] : k);
}
