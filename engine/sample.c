#include "engine/sample.h"

#include <math.h>
#include <stdlib.h>

#include "config/mem.h"
#include "engine/numeric.h"

struct candidate {
	float logit; /* divided by the temperature */
	float weight; /* its probability times an unknown constant */
	int32_t id;
};

struct sampler {
	struct sample_options opt;
	int32_t vocab;
	unsigned char *allowed; /* [vocab] */
	struct candidate *candidates; /* [vocab] */
	uint64_t n_draws;
};

struct sampler *sampler_new(const struct sample_options *opt, const struct tokenizer *t, int32_t vocab)
{
	struct sampler *s = xcalloc(1, sizeof *s);
	size_t bytes;

	s->opt = *opt;
	s->vocab = vocab;
	s->allowed = xcalloc((size_t)vocab, 1);
	s->candidates = xmalloc((size_t)vocab, sizeof *s->candidates);
	for (int32_t i = 0; i < vocab; i++)
		s->allowed[i] = !t || tokenizer_piece(t, i, &bytes);
	return s;
}

void sampler_free(struct sampler *s)
{
	if (!s)
		return;
	free(s->allowed);
	free(s->candidates);
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

static int is_before(const struct candidate *a, const struct candidate *b)
{
	return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* A heap with the first candidate on top; only as many are taken off as top_k and top_p keep. */
static void sift_down(struct candidate *heap, size_t n, size_t i)
{
	struct candidate x = heap[i];

	for (size_t child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && is_before(&heap[child + 1], &heap[child]))
			child++;
		if (!is_before(&heap[child], &x))
			break;
		heap[i] = heap[child];
	}
	heap[i] = x;
}

/* Take the first candidate off the heap and put it where the heap ended: they gather there in reverse order. */
static void take_first(struct candidate *c, size_t *heap_n)
{
	struct candidate first = c[0];

	c[0] = c[--*heap_n];
	sift_down(c, *heap_n, 0);
	c[*heap_n] = first;
}

static double weigh(struct candidate *c, size_t first, size_t end, float highest)
{
	double sum = 0;

	for (size_t i = first; i < end; i++) {
		c[i].weight = num_exp(c[i].logit - highest);
		sum += (double)c[i].weight;
	}
	return sum;
}

static int32_t draw_from(struct sampler *s, size_t n)
{
	struct candidate *c = s->candidates;
	size_t end = n, first = 0, heap_n = n;
	float highest;
	double sum, left;

	for (size_t i = n / 2 + 1; i-- > 0;)
		if (i < n)
			sift_down(c, n, i);
	highest = c[0].logit;
	if (s->opt.top_k > 0 && (size_t)s->opt.top_k < n) {
		while (n - heap_n < (size_t)s->opt.top_k)
			take_first(c, &heap_n);
		first = heap_n;
		heap_n = 0; /* all that is left is in order already */
	}
	sum = weigh(c, first, end, highest);
	if (s->opt.top_p < 1) {
		double enough = sum * (double)(s->opt.top_p > 0 ? s->opt.top_p : 0), kept = 0;
		size_t at = end;

		do {
			at--;
			if (heap_n)
				take_first(c, &heap_n);
			kept += (double)c[at].weight;
		} while (kept < enough && at > first);
		first = at;
		sum = kept;
	}
	if (s->opt.min_p > 0) {
		float least = s->opt.min_p < 1 ? s->opt.min_p : 1; /* the highest has weight 1 */

		sum = 0;
		for (size_t i = first; i < end; i++) {
			if (c[i].weight < least)
				c[i].weight = 0;
			sum += (double)c[i].weight;
		}
	}
	left = draw(s->opt.seed, s->n_draws++) * sum;
	for (size_t i = end; i-- > first;) {
		left -= (double)c[i].weight;
		if (left < 0)
			return c[i].id;
	}
	/* Rounding left a crumb: the last one that has any weight. */
	for (size_t i = first; i < end; i++)
		if (c[i].weight > 0)
			return c[i].id;
	return c[end - 1].id;
}

int sampler_next(struct sampler *s, const float *logits, int32_t *id, struct err *err)
{
	int32_t best = -1;
	size_t n = 0;

	for (int32_t i = 0; i < s->vocab; i++) {
		if (!isfinite(logits[i]))
			return err_set(err, ERR_FORMAT, "the logit of token %d is %s, not a number to choose by", i,
				       logits[i] != logits[i] ? "NaN" : logits[i] > 0 ? "infinite" : "minus infinite");
		if (!s->allowed[i])
			continue;
		if (best < 0 || logits[i] > logits[best])
			best = i;
		s->candidates[n++] = (struct candidate){.logit = logits[i], .id = i};
	}
	if (best < 0)
		return err_set(err, ERR_FORMAT, "none of %d ids has a token string", s->vocab);
	if (s->opt.temperature > 0) {
		/* Distances from the highest, so that no division can overflow to infinity. */
		for (size_t i = 0; i < n; i++)
			s->candidates[i].logit = (s->candidates[i].logit - logits[best]) / s->opt.temperature;
		best = draw_from(s, n);
	}
	*id = best;
	return 0;
}
