/*
 * The lightning indexer: how much every position matters to a query, and which ones it will attend to. The definition.
 */
#include "engine/cpu/cpu.h"

#include <stdlib.h>

#include "config/mem.h"

enum { CHUNK = 1024 }; /* keys in one item of work */

struct score_job {
	float *scores;
	const float *q, *w;
	const void *keys;
	const int64_t *n_visible;
	int64_t scores_stride, n;
	int32_t n_heads, dim;
	enum compute_profile profile;
};

/* Dimension d of key t; d = dim of an odd dim: zero. */
static float key_value(const struct score_job *j, int64_t t, int32_t d)
{
	int64_t block = t / KEYS_ABREAST, at = t % KEYS_ABREAST;

	if (j->profile == COMPUTE_F32)
		return ((const float *)j->keys)[(block * j->dim + d) * KEYS_ABREAST + at];
	return bf16_to_f32(((const uint16_t *)j->keys)[((block * ((j->dim + 1) / 2) + d / 2) * KEYS_ABREAST + at) * 2 + d % 2]);
}

/* q [n_heads, dim + 1], rounded if the profile rounds, the last value of a head zero. */
static float score(const struct score_job *j, const float *q, const float *w, int64_t t)
{
	bool pairs = j->profile == COMPUTE_BF16;
	float sum = 0;

	for (int32_t h = 0; h < j->n_heads; h++) {
		float dot = 0;

		for (int32_t d = 0; d < j->dim + (pairs && j->dim % 2); d++) {
			int32_t e = pairs ? d ^ 1 : d;

			dot = num_fma(q[h * (j->dim + 1) + e], key_value(j, t, e), dot, pairs);
		}
		sum = num_fma(w[h], dot > 0 ? dot : 0, sum, pairs);
	}
	return sum;
}

/* Item: CHUNK keys and one query. */
static void score_items(void *arg, int64_t first, int64_t end, int thread)
{
	const struct score_job *j = arg;
	float *q = xcalloc((size_t)j->n_heads * ((size_t)j->dim + 1), sizeof *q);

	(void)thread;
	for (int64_t item = first; item < end; item++) {
		int64_t i = item % j->n, t = item / j->n * CHUNK, stop = t + CHUNK;

		if (stop > j->n_visible[i])
			stop = j->n_visible[i];
		for (int32_t h = 0; h < j->n_heads; h++)
			for (int32_t d = 0; d < j->dim; d++) {
				float x = j->q[(i * j->n_heads + h) * j->dim + d];

				q[h * (j->dim + 1) + d] = j->profile == COMPUTE_BF16 ? num_bf16(x) : x;
			}
		for (; t < stop; t++)
			j->scores[i * j->scores_stride + t] = score(j, q, j->w + i * j->n_heads, t);
	}
	free(q);
}

void CPU(index_scores)(struct device *dev, float *scores, int64_t scores_stride, const float *q, const float *w,
		       const void *keys, const int64_t *n_visible, int32_t n_heads, int32_t dim, int64_t n,
		       enum compute_profile profile)
{
	struct score_job j = {scores, q, w, keys, n_visible, scores_stride, n, n_heads, dim, profile};
	int64_t most = 0;

	for (int64_t i = 0; i < n; i++)
		if (n_visible[i] > most)
			most = n_visible[i];
	pool_run(dev->queue, score_items, &j, (most + CHUNK - 1) / CHUNK * n,
		 (most < CHUNK ? most : CHUNK) * n_heads * dim);
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
