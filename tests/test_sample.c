#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/numeric.h"
#include "engine/sample.h"

/* How often each of n ids is drawn in `draws` draws. */
static void count(int *counts, const float *logits, int32_t n, int draws, struct sample_options opt)
{
	struct sampler *s = sampler_new(&opt, NULL, n);
	struct err err;

	memset(counts, 0, (size_t)n * sizeof *counts);
	for (int i = 0; i < draws; i++) {
		int32_t id;

		assert_int_equal(sampler_next(s, logits, &id, &err), 0);
		counts[id]++;
	}
	sampler_free(s);
}

static void temperature_zero_takes_the_highest_and_the_lower_id_on_a_tie(void **state)
{
	const float logits[5] = {-1, 3, 2, 3, 0};
	int counts[5];

	(void)state;
	count(counts, logits, 5, 10, (struct sample_options){.top_p = 1});
	assert_int_equal(counts[1], 10);
}

/* ln 1, ln 2, ln 4: probabilities 1/7, 2/7, 4/7. Five standard deviations of 70,000 draws are below 700. */
static void draws_follow_the_probabilities(void **state)
{
	const float logits[3] = {0, 0.6931472f, 1.3862944f};
	int counts[3];

	(void)state;
	count(counts, logits, 3, 70000, (struct sample_options){.temperature = 1, .top_p = 1, .seed = 1});
	assert_in_range(counts[0], 9300, 10700);
	assert_in_range(counts[1], 19300, 20700);
	assert_in_range(counts[2], 39300, 40700);
	/* Half the temperature squares them: 1/21, 4/21, 16/21. */
	count(counts, logits, 3, 21000, (struct sample_options){.temperature = 0.5f, .top_p = 1, .seed = 2});
	assert_in_range(counts[0], 850, 1150);
	assert_in_range(counts[1], 3700, 4300);
}

static void top_k_keeps_the_highest_and_lower_ids_on_a_tie(void **state)
{
	const float logits[6] = {1, 2, 2, 2, 0, 1};
	int counts[6];

	(void)state;
	count(counts, logits, 6, 1000, (struct sample_options){.temperature = 1, .top_k = 2, .top_p = 1});
	assert_int_equal(counts[1] + counts[2], 1000);
	assert_in_range(counts[1], 400, 600);
	count(counts, logits, 6, 100, (struct sample_options){.temperature = 5, .top_k = 1, .top_p = 1});
	assert_int_equal(counts[1], 100);
	count(counts, logits, 6, 3000, (struct sample_options){.temperature = 100, .top_k = 6, .top_p = 1});
	for (int i = 0; i < 6; i++)
		assert_in_range(counts[i], 380, 620);
}

/* 4/7 reaches 0.5, 6/7 reaches 0.6 and 0.85, and only all of them 0.9. */
static void top_p_keeps_the_fewest_that_reach_it(void **state)
{
	const float logits[3] = {0, 0.6931472f, 1.3862944f};
	int counts[3];

	(void)state;
	count(counts, logits, 3, 500, (struct sample_options){.temperature = 1, .top_p = 0.5f});
	assert_int_equal(counts[2], 500);
	count(counts, logits, 3, 500, (struct sample_options){.temperature = 1, .top_p = 0.6f});
	assert_int_equal(counts[0], 0);
	assert_in_range(counts[1], 100, 240); /* 2/6 of 500 */
	count(counts, logits, 3, 500, (struct sample_options){.temperature = 1, .top_p = 0.85f});
	assert_int_equal(counts[0], 0);
	count(counts, logits, 3, 500, (struct sample_options){.temperature = 1, .top_p = 0.9f});
	assert_in_range(counts[0], 30, 120);
	count(counts, logits, 3, 50, (struct sample_options){.temperature = 1, .top_p = 0});
	assert_int_equal(counts[2], 50);
	/* top_k comes first: of 2/6 and 4/6 the greater reaches 0.65, which of 4/7 it would not. */
	count(counts, logits, 3, 500, (struct sample_options){.temperature = 1, .top_k = 2, .top_p = 0.65f});
	assert_int_equal(counts[2], 500);
}

static void min_p_is_relative_to_the_highest(void **state)
{
	const float logits[3] = {0, 0.6931472f, 1.3862944f};
	int counts[3];

	(void)state;
	count(counts, logits, 3, 500, (struct sample_options){.temperature = 1, .top_p = 1, .min_p = 0.4f});
	assert_int_equal(counts[0], 0); /* 1/4 */
	assert_in_range(counts[1], 100, 240); /* 1/2 */
	count(counts, logits, 3, 50, (struct sample_options){.temperature = 1, .top_p = 1, .min_p = 2});
	assert_int_equal(counts[2], 50);
}

static void the_same_seed_gives_the_same_ids_and_another_one_others(void **state)
{
	float logits[100];
	int32_t ids[3][64];
	int same = 0;

	(void)state;
	for (int i = 0; i < 100; i++)
		logits[i] = (float)(i % 7);
	for (int run = 0; run < 3; run++) {
		struct sample_options opt = {.temperature = 1, .top_p = 0.95f, .top_k = 80, .seed = run == 2 ? 8 : 7};
		struct sampler *s = sampler_new(&opt, NULL, 100);
		struct err err;

		for (int i = 0; i < 64; i++)
			assert_int_equal(sampler_next(s, logits, &ids[run][i], &err), 0);
		sampler_free(s);
	}
	assert_memory_equal(ids[0], ids[1], sizeof ids[0]);
	for (int i = 0; i < 64; i++)
		same += ids[0][i] == ids[2][i];
	assert_true(same < 16);
	/* These ids are a promise: an answer with a seed can be repeated years later. */
	assert_int_equal(ids[0][0], 27);
	assert_int_equal(ids[0][1], 25);
	assert_int_equal(ids[0][2], 20);
	assert_int_equal(ids[0][63], 41);
}

static void an_id_without_a_token_string_is_never_chosen(void **state)
{
	struct tokenizer *t;
	struct err err;
	float *logits;
	int32_t vocab, id;
	struct sample_options greedy = {0}, random = {.temperature = 100, .top_p = 1};
	struct sampler *s[2];

	(void)state;
	assert_int_equal(tokenizer_open(&t, "tests/golden/tokenizer/glm.json", &err), 0);
	vocab = tokenizer_n_ids(t) + 60; /* a model pads its vocabulary */
	logits = calloc((size_t)vocab, sizeof *logits);
	for (int32_t i = tokenizer_n_ids(t); i < vocab; i++)
		logits[i] = 1000;
	logits[17] = 1;
	s[0] = sampler_new(&greedy, t, vocab);
	s[1] = sampler_new(&random, t, vocab);
	assert_int_equal(sampler_next(s[0], logits, &id, &err), 0);
	assert_int_equal(id, 17);
	for (int i = 0; i < 200; i++) {
		assert_int_equal(sampler_next(s[1], logits, &id, &err), 0);
		assert_true(id < tokenizer_n_ids(t));
	}
	sampler_free(s[0]);
	sampler_free(s[1]);
	free(logits);
	tokenizer_close(t);
}

static void a_logit_that_is_not_finite_is_an_error_that_names_it(void **state)
{
	float logits[4] = {0, 1, NAN, INFINITY};
	struct sample_options opt = {.temperature = 1, .top_p = 1};
	struct sampler *s = sampler_new(&opt, NULL, 4);
	struct err err;
	int32_t id;

	(void)state;
	assert_int_equal(sampler_next(s, logits, &id, &err), -1);
	assert_string_equal(err.text, "the logit of token 2 is NaN, not a number to choose by");
	logits[2] = 0;
	assert_int_equal(sampler_next(s, logits, &id, &err), -1);
	assert_string_equal(err.text, "the logit of token 3 is infinite, not a number to choose by");
	logits[3] = 3.4e38f;
	logits[0] = -3.4e38f; /* their distance overflows */
	opt.temperature = 1e-30f;
	sampler_free(s);
	s = sampler_new(&opt, NULL, 4);
	assert_int_equal(sampler_next(s, logits, &id, &err), 0);
	assert_int_equal(id, 3);
	sampler_free(s);
}

/* The plain way: sort everything. Whatever the heap does, the kept set must be that one. */
static const float *sorted_by;

static int by_logit(const void *x, const void *y)
{
	int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;

	return sorted_by[a] > sorted_by[b] ? -1 : sorted_by[a] < sorted_by[b] ? 1 : a - b;
}

static void no_draw_leaves_what_top_k_and_top_p_keep(void **state)
{
	static float logits[5000];
	static int32_t order[5000];
	uint32_t x = 1;

	(void)state;
	for (int i = 0; i < 5000; i++) {
		x = x * 1664525 + 1013904223;
		logits[i] = (float)(x >> 16 & 0xfff) / 256; /* many ties */
		order[i] = i;
	}
	sorted_by = logits;
	qsort(order, 5000, sizeof *order, by_logit);
	for (int k = 0; k <= 300; k += 100) {
		struct sample_options opt = {.temperature = 2, .top_k = k, .top_p = 0.3f, .seed = 5};
		struct sampler *s = sampler_new(&opt, NULL, 5000);
		double sum = 0, kept = 0;
		int n = k ? k : 5000, last = 0;
		struct err err;

		for (int i = 0; i < n; i++)
			sum += exp((logits[order[i]] - logits[order[0]]) / 2);
		while (kept < 0.3001 * sum)
			kept += exp((logits[order[last++]] - logits[order[0]]) / 2);
		for (int i = 0; i < 500; i++) {
			int32_t id;
			int rank = 0;

			assert_int_equal(sampler_next(s, logits, &id, &err), 0);
			while (order[rank] != id)
				rank++;
			assert_true(rank < last);
		}
		sampler_free(s);
	}
}

/*
 * The plain way, in full: what a seed means. Candidates in a textbook heap by (logit, id), each taken off the top to the
 * place where the heap ended; sums in the order of that array, draws from its end.
 */
struct plain {
	float logit, weight;
	int32_t id;
};

static void plain_sift(struct plain *c, int n, int i)
{
	for (int child; (child = 2 * i + 1) < n; i = child) {
		struct plain swap = c[i];

		if (child + 1 < n && (c[child + 1].logit > c[child].logit ||
				      (c[child + 1].logit == c[child].logit && c[child + 1].id < c[child].id)))
			child++;
		if (swap.logit > c[child].logit || (swap.logit == c[child].logit && swap.id < c[child].id))
			return;
		c[i] = c[child];
		c[child] = swap;
	}
}

static void plain_take(struct plain *c, int *heap_n)
{
	struct plain first = c[0];

	c[0] = c[--*heap_n];
	plain_sift(c, *heap_n, 0);
	c[*heap_n] = first;
}

/* The counter-based generator of draws, restated. */
static double plain_draw(uint64_t seed, uint64_t nth)
{
	uint64_t x = seed * 0xd1342543de82ef95u + nth + 0x2545f4914f6cdd1du;

	for (int round = 0; round < 3; round++)
		x = (x ^ x >> 32) * 0xe9846af9b1a615du;
	return (double)((x ^ x >> 29) >> 11) * 0x1p-53;
}

static int32_t plain_next(const float *logits, int n, const struct sample_options *opt, uint64_t nth)
{
	static struct plain c[6000];
	int first = 0, heap_n = n, best = 0;
	double sum = 0, left;

	for (int i = 0; i < n; i++)
		best = logits[i] > logits[best] ? i : best;
	if (!(opt->temperature > 0))
		return best;
	for (int i = 0; i < n; i++)
		c[i] = (struct plain){(logits[i] - logits[best]) / opt->temperature, 0, i};
	for (int i = n; i-- > 0;)
		plain_sift(c, n, i);
	if (opt->top_k > 0 && opt->top_k < n) {
		while (n - heap_n < opt->top_k)
			plain_take(c, &heap_n);
		first = heap_n;
		heap_n = 0;
	}
	for (int i = first; i < n; i++)
		sum += (double)(c[i].weight = num_exp(c[i].logit));
	if (opt->top_p < 1) {
		double enough = sum * (double)(opt->top_p > 0 ? opt->top_p : 0);
		int at = n;

		sum = 0;
		do {
			at--;
			if (heap_n)
				plain_take(c, &heap_n);
			sum += (double)c[at].weight;
		} while (sum < enough && at > first);
		first = at;
	}
	for (int i = first; opt->min_p > 0 && i < n; i++)
		if (c[i].weight < (opt->min_p < 1 ? opt->min_p : 1))
			c[i].weight = 0;
	if (opt->min_p > 0) {
		sum = 0;
		for (int i = first; i < n; i++)
			sum += (double)c[i].weight;
	}
	left = plain_draw(opt->seed, nth) * sum;
	for (int i = n; i-- > first;)
		if ((left -= (double)c[i].weight) < 0)
			return c[i].id;
	while (!(c[first].weight > 0))
		first++;
	return c[first].id;
}

/* Spread, in steps that tie, all equal, signed zeros, and so far apart that weights are 0 or distances infinite. */
static void some_logits(float *x, int n, int kind, uint32_t *state)
{
	for (int i = 0; i < n; i++) {
		*state = *state * 1664525 + 1013904223;
		x[i] = (float)(int32_t)*state * 0x1p-28f;
		if (kind == 1)
			x[i] = floorf(x[i] * 2);
		else if (kind == 2)
			x[i] = 3;
		else if (kind == 3)
			x[i] = *state >> 30 ? -0.0f : 0.0f;
		else if (kind == 4)
			x[i] *= *state >> 20 & 3 ? 20.0f : 0x1p124f;
		else if (kind == 5)
			x[i] = x[i] < 7.9f ? x[i] : x[i] * 4;
	}
}

static void ids_are_those_of_the_plain_way_for_all_options(void **state)
{
	static const int sizes[] = {1, 2, 3, 7, 16, 17, 100, 1023, 1024, 5801};
	static const float temperatures[] = {0, 0.01f, 0.6f, 1, 2, 100}, top_ps[] = {0, 0.1f, 0.95f, 0.999f, 1}, min_ps[] = {0, 0.05f, 1};
	static const int32_t top_ks[] = {0, 1, 40, 3000};
	static float logits[5801];
	uint32_t random = 3;
	int n_cases = 0;

	(void)state;
	for (size_t z = 0; z < sizeof sizes / sizeof sizes[0]; z++)
		for (int o = 0; o < 6 * 5 * 3 * 4; o++) {
			struct sample_options opt = {.temperature = temperatures[o % 6], .top_p = top_ps[o / 6 % 5],
						     .min_p = min_ps[o / 30 % 3], .top_k = top_ks[o / 90], .seed = (uint64_t)o};
			struct sampler *s = sampler_new(&opt, NULL, sizes[z]);

			for (int nth = 0; nth < 6; nth++) {
				int32_t id;
				struct err err;

				some_logits(logits, sizes[z], nth, &random);
				assert_int_equal(sampler_next(s, logits, &id, &err), 0);
				assert_int_equal(id, plain_next(logits, sizes[z], &opt, (uint64_t)nth));
				n_cases++;
			}
			sampler_free(s);
		}
	assert_int_equal(n_cases, 10 * 360 * 6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(temperature_zero_takes_the_highest_and_the_lower_id_on_a_tie),
		cmocka_unit_test(draws_follow_the_probabilities),
		cmocka_unit_test(top_k_keeps_the_highest_and_lower_ids_on_a_tie),
		cmocka_unit_test(top_p_keeps_the_fewest_that_reach_it),
		cmocka_unit_test(min_p_is_relative_to_the_highest),
		cmocka_unit_test(the_same_seed_gives_the_same_ids_and_another_one_others),
		cmocka_unit_test(an_id_without_a_token_string_is_never_chosen),
		cmocka_unit_test(a_logit_that_is_not_finite_is_an_error_that_names_it),
		cmocka_unit_test(no_draw_leaves_what_top_k_and_top_p_keep),
		cmocka_unit_test(ids_are_those_of_the_plain_way_for_all_options),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
