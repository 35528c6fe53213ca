#include "engine/sample.h"

#include <math.h>
#include <stdlib.h>

#include "config/mem.h"
#include "engine/numeric.h"
#include "engine/ops.h"

/*
 * Ids are ranked by distance from the highest logit, divided by the temperature, then by id. A rank is one number: the
 * bits of the distance's magnitude, which are in its order, above those of the id; the first candidate has the lowest.
 *
 * Candidates stand in a heap, and what is summed or drawn from without top_k and top_p is taken in the heap's order: that
 * order is part of what a seed means, and so is that the first are taken off it to the place where it ended, where they
 * gather in reverse. Where many are wanted in order, all are sorted instead, which leaves them in the same places.
 */
struct sampler {
	struct sample_options opt;
	int32_t vocab;
	const struct ops *ops;
	struct range {
		int32_t first, end;
	} *allowed;              /* [n_allowed] of ids with a token string, ascending */
	size_t n_allowed;
	uint64_t *rank, *spare;  /* [vocab] */
	float *weight;           /* [vocab] of rank: its probability times an unknown constant */
	uint64_t n_draws;
};

/* Logits, and the highest that is allowed. */
struct scores {
	const float *logits;
	float highest;
};

static void allow(struct sampler *s, int32_t id)
{
	if (s->n_allowed && s->allowed[s->n_allowed - 1].end == id) {
		s->allowed[s->n_allowed - 1].end++;
		return;
	}
	s->allowed = xrealloc(s->allowed, s->n_allowed + 1, sizeof *s->allowed);
	s->allowed[s->n_allowed++] = (struct range){id, id + 1};
}

struct sampler *sampler_new(const struct sample_options *opt, const struct tokenizer *t, int32_t vocab)
{
	struct sampler *s = xcalloc(1, sizeof *s);
	size_t bytes;

	s->opt = *opt;
	s->vocab = vocab;
	s->ops = cpu_ops(NULL);
	for (int32_t i = 0; i < vocab; i++)
		if (!t || tokenizer_piece(t, i, &bytes))
			allow(s, i);
	if (opt->temperature > 0) {
		s->rank = xmalloc((size_t)vocab, sizeof *s->rank);
		s->spare = xmalloc((size_t)vocab, sizeof *s->spare);
		s->weight = xmalloc((size_t)vocab, sizeof *s->weight);
	}
	return s;
}

void sampler_free(struct sampler *s)
{
	if (!s)
		return;
	free(s->allowed);
	free(s->rank);
	free(s->spare);
	free(s->weight);
	free(s);
}

/* A number below 1 with 53 bits: the nth of a counter, stirred. Neighbouring seeds and counters share nothing. */
static double draw(uint64_t seed, uint64_t n)
{
	uint64_t x = seed * 0xd1342543de82ef95u + n + 0x2545f4914f6cdd1du; /* 0 would stay 0 */

	for (int round = 0; round < 3; round++) {
		x ^= x >> 32;
		x *= 0xe9846af9b1a615du;
	}
	x ^= x >> 29;
	return (double)(x >> 11) * 0x1p-53;
}

static int32_t id_of(uint64_t rank)
{
	return (int32_t)(rank & 0xffffffff);
}

/* Distances are 0 or below. */
static float distance(uint64_t rank)
{
	return -f32_from_bits((uint32_t)(rank >> 32));
}

/* The ranks of all candidates by id; how many. Distances from the highest, so that no division overflows upwards. */
static size_t rank_all(struct sampler *s, const struct scores *scores)
{
	uint64_t *restrict rank = s->rank;
	const float *restrict logits = scores->logits;
	float highest = scores->highest, temperature = s->opt.temperature;

	for (size_t r = 0; r < s->n_allowed; r++) {
		int32_t first = s->allowed[r].first, n = s->allowed[r].end - first;

		for (int32_t i = 0; i < n; i++) {
			uint32_t bits = f32_bits((logits[first + i] - highest) / temperature);

			rank[i] = (uint64_t)(bits & 0x7fffffff) << 32 | (uint32_t)(first + i);
		}
		rank += n;
	}
	return (size_t)(rank - s->rank);
}

static void sift_down(uint64_t *heap, size_t n, size_t i)
{
	uint64_t x = heap[i];

	for (size_t child; (child = 2 * i + 1) < n; i = child) {
		child += child + 1 < n && heap[child + 1] < heap[child];
		if (heap[child] > x)
			break;
		heap[i] = heap[child];
	}
	heap[i] = x;
}

/* As sift_down, where each of `steps` levels below i is complete and nothing is deeper. It always goes all the way, since
 * to go down with a child that was in its place changes nothing, and so without a branch that could be guessed wrong. */
static void sift_down_all(uint64_t *heap, size_t i, int steps)
{
	uint64_t x = heap[i];

	for (; steps; steps--) {
		size_t child = 2 * i + 1;
		uint64_t c;

		child += heap[child + 1] < heap[child];
		c = heap[child];
		heap[i] = c < x ? c : x;
		x = c < x ? x : c;
		i = child;
	}
	heap[i] = x;
}

static void make_heap(uint64_t *heap, size_t n)
{
	int steps = 1;

	/* Below i there are `steps` levels, at least on the left. */
	for (size_t i = n / 2; i-- > 0;) {
		while (((i + 1) << (steps + 1)) - 1 < n)
			steps++;
		while (((i + 1) << steps) - 1 >= n)
			steps--;
		if (((i + 2) << steps) - 2 < n)
			sift_down_all(heap, i, steps);
		else
			sift_down(heap, n, i);
	}
}

/* Take the first candidate off the heap and put it where the heap ended. */
static void take_first(uint64_t *heap, size_t *heap_n)
{
	uint64_t first = heap[0];

	heap[0] = heap[--*heap_n];
	sift_down(heap, *heap_n, 0);
	heap[*heap_n] = first;
}

/* All candidates, the first one last. Ranks are in the order of ids, and sorted by distance, equal ones as they stood:
 * 31 bits in three parts, the least first. */
static void sort_all(struct sampler *s, const struct scores *scores)
{
	enum { PARTS = 3, BITS = 11, MASK = (1 << BITS) - 1 };
	static const int shifts[PARTS] = {32, 32 + BITS, 32 + 2 * BITS};
	uint32_t at[PARTS][MASK + 1] = {{0}};
	size_t n = rank_all(s, scores);

	for (size_t i = 0; i < n; i++)
		for (int p = 0; p < PARTS; p++)
			at[p][s->rank[i] >> shifts[p] & MASK]++;
	for (int p = 0; p < PARTS; p++) {
		uint64_t *swap = s->rank;

		for (uint32_t d = 0, sum = 0; d <= MASK; d++) {
			uint32_t count = at[p][d];

			at[p][d] = sum;
			sum += count;
		}
		for (size_t i = 0; i < n; i++) {
			size_t to = at[p][s->rank[i] >> shifts[p] & MASK]++;

			s->spare[p == PARTS - 1 ? n - 1 - to : to] = s->rank[i];
		}
		s->rank = s->spare;
		s->spare = swap;
	}
}

/* The weights of rank[first .. end), and their sum. */
static double weigh(struct sampler *s, size_t first, size_t end)
{
	double sum = 0;

	for (size_t i = first; i < end; i++)
		s->weight[i] = distance(s->rank[i]);
	s->ops->exp(s->weight + first, s->weight + first, (int64_t)(end - first));
	for (size_t i = first; i < end; i++)
		sum += (double)s->weight[i];
	return sum;
}

/* Beyond one candidate in so many, sorting all is cheaper than taking the first ones off a heap. */
enum { SORT_SHARE = 64 };

/* The most probable ones up to the first at which their sum reaches `enough`: rank[the result .. end). heap_n: how many
 * are in a heap yet, none: all are in order, and have weights. */
static size_t keep_enough(struct sampler *s, const struct scores *scores, size_t first, size_t end, size_t heap_n,
			  double enough, double *kept)
{
	size_t at = end;

	*kept = 0;
	while (heap_n) {
		if (end - at > end / SORT_SHARE) {
			sort_all(s, scores);
			weigh(s, first, end);
			return keep_enough(s, scores, first, end, 0, enough, kept);
		}
		take_first(s->rank, &heap_n);
		at = heap_n;
		s->weight[at] = num_exp(distance(s->rank[at]));
		*kept += (double)s->weight[at];
		if (!(*kept < enough))
			return at;
	}
	while (at > first) {
		*kept += (double)s->weight[--at];
		if (!(*kept < enough))
			break;
	}
	return at;
}

static int32_t draw_from(struct sampler *s, const struct scores *scores)
{
	size_t end = rank_all(s, scores), first = 0, heap_n = end, top_k = (size_t)s->opt.top_k;
	double sum, left;

	if (s->opt.top_k > 0 && top_k < end) {
		first = end - top_k;
		if (top_k > end / SORT_SHARE)
			sort_all(s, scores);
		else
			for (make_heap(s->rank, end); heap_n > first;)
				take_first(s->rank, &heap_n);
		heap_n = 0; /* what counts from here on is in order */
	} else {
		make_heap(s->rank, end);
	}
	sum = weigh(s, first, end);
	if (s->opt.top_p < 1)
		first = keep_enough(s, scores, first, end, heap_n, sum * (double)(s->opt.top_p > 0 ? s->opt.top_p : 0), &sum);
	if (s->opt.min_p > 0) {
		float least = s->opt.min_p < 1 ? s->opt.min_p : 1; /* the highest has weight 1 */

		for (size_t i = first; i < end; i++)
			s->weight[i] = s->weight[i] < least ? 0 : s->weight[i];
		sum = 0;
		for (size_t i = first; i < end; i++)
			sum += (double)s->weight[i];
	}
	left = draw(s->opt.seed, s->n_draws++) * sum;
	for (size_t i = end; i-- > first;) {
		left -= (double)s->weight[i];
		if (left < 0)
			return id_of(s->rank[i]);
	}
	/* Rounding left a crumb: the last one that has any weight. */
	for (size_t i = first; i < end; i++)
		if (s->weight[i] > 0)
			return id_of(s->rank[i]);
	return id_of(s->rank[end - 1]);
}

/* The highest of n >= 1 values; no NaN. Lanes, so that compilers make vectors of it. */
static float highest_of(const float *x, int32_t n)
{
	enum { WIDTH = 16 };
	float lane[WIDTH], highest = x[0];
	int32_t i = 0;

	for (int l = 0; l < WIDTH; l++)
		lane[l] = x[0];
	for (; i + WIDTH <= n; i += WIDTH)
		for (int l = 0; l < WIDTH; l++)
			lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
	for (int l = 0; l < WIDTH; l++)
		highest = lane[l] > highest ? lane[l] : highest;
	for (; i < n; i++)
		highest = x[i] > highest ? x[i] : highest;
	return highest;
}

/* The allowed id of the highest logit, the lowest one on a tie; -1: none is allowed. Only the part that has it is looked
 * through one by one. */
static int32_t likeliest(const struct sampler *s, const float *logits)
{
	enum { PART = 1024 };
	int32_t best = -1;
	float highest = 0;

	for (size_t r = 0; r < s->n_allowed; r++)
		for (int32_t i = s->allowed[r].first; i < s->allowed[r].end; i += PART) {
			int32_t left = s->allowed[r].end - i;
			float x = highest_of(logits + i, left < PART ? left : PART);

			if (best < 0 || x > highest) {
				highest = x;
				best = i;
			}
		}
	while (best >= 0 && logits[best] != highest)
		best++;
	return best;
}

int sampler_next(struct sampler *s, const float *logits, int32_t *id, struct err *err)
{
	int32_t best;

	if (!num_all_finite(logits, s->vocab)) {
		int32_t i = 0;

		while (isfinite(logits[i]))
			i++;
		return err_set(err, ERR_FORMAT, "the logit of token %d is %s, not a number to choose by", i,
			       logits[i] != logits[i] ? "NaN" : logits[i] > 0 ? "infinite" : "minus infinite");
	}
	best = likeliest(s, logits);
	if (best < 0)
		return err_set(err, ERR_FORMAT, "none of %d ids has a token string", s->vocab);
	*id = s->opt.temperature > 0 ? draw_from(s, &(struct scores){logits, logits[best]}) : best;
	return 0;
}
