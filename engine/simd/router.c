/*
 * The router: scores of a token in vectors, in id order, padded with -infinity to whole blocks of BLOCK vectors. `most`
 * has the largest of each lane of a block; a choice looks at these, then into the first block that has the value, and
 * only that block is looked through anew. So the k best cost k times a sixteenth of the scores, whatever they are, and
 * a tie goes to the lower block, vector and lane: the lower id.
 */
#include "engine/simd/math.h"
#include "engine/simd/rows.h"

enum { BLOCK = 4 };

struct job {
	struct pool *pool;
	int32_t *experts;
	float *weights;
	const float *logits, *bias;
	int32_t n_experts, k, n_groups, topk_groups;
	bool normalize;
	float scale;
};

/* n values, padded to whole blocks. */
static int32_t padded(int32_t n)
{
	return (n + BLOCK * VL - 1) / (BLOCK * VL) * (BLOCK * VL);
}

static ALWAYS_INLINE vf most_of_block(const float *value)
{
	return vf_max(vf_max(vf_load(value), vf_load(value + VL)), vf_max(vf_load(value + 2 * VL), vf_load(value + 3 * VL)));
}

/* The first vector that has the value in some lane; the lane. There is one, and nothing above the value, and no NaN. */
static ALWAYS_INLINE int32_t first_with(const float *in, float value, int *lane)
{
	const unsigned all = (1u << VL) - 1;
	unsigned lower;
	int32_t i = 0;

	while ((lower = vm_bits(vm_less(vf_load(in + i * VL), vf_all(value)))) == all)
		i++;
	*lane = __builtin_ctz(~lower);
	return i;
}

/* The lowest that is not among the taken ones. */
static int32_t lowest_left(const int32_t *taken, int32_t n_taken, int32_t n)
{
	int32_t best = 0, seen;

	for (; best < n - 1; best++) {
		for (seen = 0; seen < n_taken && taken[seen] != best;)
			seen++;
		if (seen == n_taken)
			break;
	}
	return best;
}

/*
 * The k largest of value[0 .. n), largest first, a tie to the lower index; no NaN. Taken ones become -infinity. Those
 * that were -infinity come last, ascending: only when values are not finite, or groups leave fewer than k.
 *   value [padded(n)], most [padded(n) / BLOCK]: room to work in
 */
static void take_largest(int32_t *out, float *value, float *most, int32_t n, int32_t k)
{
	int32_t n_blocks = padded(n) / (BLOCK * VL);

	for (int32_t b = 0; b < n_blocks; b++)
		vf_store(most + b * VL, most_of_block(value + b * BLOCK * VL));
	for (int32_t i = 0; i < k; i++) {
		vf top = vf_load(most);
		float highest, *block;
		int32_t b, v;
		int lane;

		for (b = 1; b < n_blocks; b++)
			top = vf_max(top, vf_load(most + b * VL));
		highest = vf_highest(top);
		if (!(highest > -INFINITY)) {
			out[i] = lowest_left(out, i, n);
			continue;
		}
		b = first_with(most, highest, &lane);
		block = value + b * BLOCK * VL;
		v = first_with(block, highest, &lane);
		out[i] = b * BLOCK * VL + v * VL + lane;
		value[out[i]] = -INFINITY;
		vf_store(most + b * VL, most_of_block(block));
	}
}

/* NaN as -infinity: neither is ever chosen for its value. */
static ALWAYS_INLINE vf without_nan(vf x)
{
	return vf_max(x, vf_all(-INFINITY));
}

static void fill(float *value, int32_t first, int32_t end, float x)
{
	for (int32_t i = first; i < end; i++)
		value[i] = x;
}

/* The sum of the two highest; of one, that one. */
static float group_score(const float *choice, int32_t size)
{
	float first = -INFINITY, second = -INFINITY;

	for (int32_t e = 0; e < size; e++) {
		float x = choice[e], lower = x < first ? x : first;

		second = second > lower ? second : lower;
		first = first > x ? first : x;
	}
	return size > 1 ? first + second : first;
}

/* Experts outside the best groups can not be chosen. */
static void keep_groups(float *choice, float *score, float *most, int32_t *groups, const struct job *j)
{
	int32_t size = j->n_experts / j->n_groups;

	fill(score, j->n_groups, padded(j->n_groups), -INFINITY);
	for (int32_t g = 0; g < j->n_groups; g++)
		score[g] = group_score(choice + g * size, size);
	for (int32_t g = 0; g < padded(j->n_groups); g += VL)
		vf_store(score + g, without_nan(vf_load(score + g)));
	take_largest(groups, score, most, j->n_groups, j->topk_groups);
	for (int32_t g = 0; g < j->n_groups; g++) {
		int32_t kept = 0;

		while (kept < j->topk_groups && groups[kept] != g)
			kept++;
		if (kept == j->topk_groups)
			fill(choice, g * size, (g + 1) * size, -INFINITY);
	}
}

/* sigmoid and choice [padded(n)] of a token's logits; both are written to their ends, the choice's as -infinity. */
static void score_experts(float *sigmoid, float *choice, const float *logits, const float *bias, int32_t n)
{
	int32_t e = 0;

	for (; e + VL <= n; e += VL) {
		vf s = vf_sigmoid(vf_load(logits + e));

		vf_store(sigmoid + e, s);
		vf_store(choice + e, without_nan(vf_add(s, vf_load(bias + e))));
	}
	if (e < n) {
		vf s = vf_sigmoid(vf_load_some(logits + e, n - e));

		vf_store(sigmoid + e, s);
		vf_store(choice + e, without_nan(vf_add(s, vf_load_some(bias + e, n - e))));
	}
	fill(choice, n, padded(n), -INFINITY);
}

static void route(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	size_t n = (size_t)padded(j->n_experts), n_score = (size_t)padded(j->n_groups);
	float *sigmoid = pool_scratch(j->pool, thread, (2 * n + n_score + n / BLOCK + n_score) * sizeof *sigmoid);
	float *choice = sigmoid + n, *score = choice + n, *most = score + n_score;
	int32_t *groups = (int32_t *)(void *)(most + n / BLOCK);

	for (int64_t i = first; i < end; i++) {
		int32_t *experts = j->experts + i * j->k;
		float *weights = j->weights ? j->weights + i * j->k : NULL, sum = 0;

		score_experts(sigmoid, choice, j->logits + i * j->n_experts, j->bias, j->n_experts);
		if (j->n_groups > 1)
			keep_groups(choice, score, most, groups, j);
		take_largest(experts, choice, most, j->n_experts, j->k);
		if (!weights)
			continue;
		for (int32_t r = 0; r < j->k; r++) {
			weights[r] = sigmoid[experts[r]];
			sum += weights[r];
		}
		for (int32_t r = 0; r < j->k; r++)
			weights[r] = (j->normalize ? weights[r] / (sum + 1e-20f) : weights[r]) * j->scale;
	}
}

void CPU(router_topk)(struct device *dev, int32_t *experts, float *weights, const float *logits, const float *bias,
		      int64_t n, int32_t n_experts, int32_t k, int32_t n_groups, int32_t topk_groups, bool normalize,
		      float scale)
{
	struct job j = {dev->queue, experts,     weights,   logits, bias, n_experts, k, n_groups,
			topk_groups, normalize, scale};

	pool_run(dev->queue, route, &j, n, 20 * (int64_t)n_experts);
}
