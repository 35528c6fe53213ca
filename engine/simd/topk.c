/*
 * The k best scores exactly, by radix: no comparison sort, no heap, so hostile scores cost what others do.
 *
 * A score becomes a 32-bit key of the same order. A histogram of the keys' top 11 bits says in which bin the k-th best
 * lies; another two, of that bin's next 11 and last 10 bits, find its key, unless a bin ends at the k-th exactly. Every
 * position above that key is chosen, and the lowest of those equal to it, as many as are left. One scan writes them in
 * ascending order; where each share of the positions begins to write is known from its own histograms.
 *
 * That is four passes over the row. Of a long one nearly all scores are far below the k-th best: a sample says below which
 * score, one pass lists the others, and the k best of the row are those of the list. Where the sample was wrong, and the list
 * has fewer than k scores or no room for all, the row is gone through as above; so what is chosen never depends on it.
 *
 * Many rows: a thread takes whole rows. A long row alone: its positions are shared among the threads.
 */
#include "engine/simd/vec.h"

enum {
	BINS = 2048,
	LEVELS = 3,
	COPIES = 4,         /* of a histogram: equal scores would wait for one counter otherwise */
	SPLIT_ROW = 1 << 15, /* scores: a row that is worth three barriers */
	SAMPLE = 32,         /* one vector of so many is in the sample; a list is for rows of as many times k scores */
	LISTED = 1 << 14,    /* most scores of a share's list */
};

/* Bits of the key below a level's digit, and of its digit. */
static const int shifts[LEVELS] = {21, 10, 0}, widths[LEVELS] = {11, 11, 10};

struct row {
	const float *score;
	int32_t *set;
	int32_t n, k;
	int n_shares;
	struct share {
		uint32_t count[BINS];
		int32_t above, equal; /* of its positions: above the key that is sought, and equal to it or not known yet */
		int32_t n_listed;     /* more than LISTED: not all of them are in the list */
		float listed[LISTED];
		int32_t at[LISTED];   /* where they stand in the row, ascending */
	} *shares;
	uint32_t floor;       /* keys from this one on are listed */
	int level;
	uint32_t prefix;      /* the digits found, as a number */
	int32_t left;         /* how many of those equal to it will be chosen */
	uint32_t key;         /* found; left = 0: chosen is what lies above it */
};

struct topk_job {
	struct pool *pool;
	int32_t *set, *n_set;
	const float *scores;
	const int64_t *n_visible;
	int64_t set_stride, scores_stride;
	int32_t k;
};

/* Keys in the order of the scores, as unsigned numbers. NaN as -infinity, -0 as +0. */
static ALWAYS_INLINE vi score_keys(const float *p)
{
	vi u = vi_bits(vf_add(vf_max(vf_load(p), vf_all(-INFINITY)), vf_zero()));
	vi negative = vi_sub(vi_all(0), vi_shift_right(u, 31));

	return vi_xor(u, vi_or(negative, vi_all((int32_t)0x80000000)));
}

static int32_t share_first(const struct row *r, int share)
{
	return share == r->n_shares ? r->n : (int32_t)((int64_t)r->n * share / r->n_shares) / VL * VL;
}

/* The scores from t on, VL of them: where the row ends, in `some`, filled up with the last one. */
static ALWAYS_INLINE const float *scores_at(const struct row *r, int32_t t, float *some)
{
	if (r->n - t >= VL)
		return r->score + t;
	for (int l = 0; l < VL; l++)
		some[l] = r->score[t + l < r->n ? t + l : r->n - 1];
	return some;
}

/* Digits of one vector of keys: one counter after another of the copies. */
static ALWAYS_INLINE void count_digits(uint32_t (*count)[BINS], vi digits, unsigned mask)
{
	uint32_t digit[VL];

	vi_store(digit, digits);
	if (mask == (1u << VL) - 1) {
		UNROLL(16)
		for (int l = 0; l < VL; l++)
			count[l % COPIES][digit[l]]++;
	} else {
		for (; mask; mask &= mask - 1) {
			int l = __builtin_ctz(mask);

			count[l % COPIES][digit[l]]++;
		}
	}
}

static void count_share(const struct row *r, int share)
{
	uint32_t count[COPIES][BINS] = {{0}};
	struct share *s = &r->shares[share];
	int32_t end = share_first(r, share + 1);
	int level = r->level;
	float some[VL];

	for (int32_t t = share_first(r, share); t < end; t += VL) {
		vi keys = score_keys(scores_at(r, t, some));
		unsigned mask = end - t < VL ? (1u << (end - t)) - 1 : (1u << VL) - 1;

		if (level == 0) {
			count_digits(count, vi_shift_right(keys, 21), mask);
		} else if (level == 1) {
			mask &= vm_bits(vm_equal(vi_shift_right(keys, 21), vi_all((int32_t)r->prefix)));
			count_digits(count, vi_and(vi_shift_right(keys, 10), vi_all(BINS - 1)), mask);
		} else {
			mask &= vm_bits(vm_equal(vi_shift_right(keys, 10), vi_all((int32_t)r->prefix)));
			count_digits(count, vi_and(keys, vi_all((1 << 10) - 1)), mask);
		}
	}
	for (int b = 0; b < BINS; b++)
		s->count[b] = count[0][b] + count[1][b] + count[2][b] + count[3][b];
}

/* From the shares' histograms to the next digit. Returns whether the key is known. */
static bool find_digit(struct row *r)
{
	int bin = 1 << widths[r->level];
	int64_t in_bin = 0;

	for (;;) {
		bin--;
		in_bin = 0;
		for (int s = 0; s < r->n_shares; s++)
			in_bin += r->shares[s].count[bin];
		if (in_bin >= r->left)
			break;
		r->left -= (int32_t)in_bin;
		for (int s = 0; s < r->n_shares; s++)
			r->shares[s].above += (int32_t)r->shares[s].count[bin];
	}
	r->prefix = r->prefix << widths[r->level] | (uint32_t)bin;
	r->key = r->prefix << shifts[r->level];
	for (int s = 0; s < r->n_shares; s++)
		r->shares[s].equal = (int32_t)r->shares[s].count[bin];
	if (in_bin == r->left) { /* the whole bin; below it there is something, since k < n */
		for (int s = 0; s < r->n_shares; s++) {
			r->shares[s].above += r->shares[s].equal;
			r->shares[s].equal = 0;
		}
		r->left = 0;
		r->key--;
		return true;
	}
	return ++r->level == LEVELS;
}

/* Write the share's choice, ascending. */
static void write_share(const struct row *r, int share)
{
	int32_t *out = r->set, left = r->left, end = share_first(r, share + 1);
	vi flip = vi_all((int32_t)0x80000000), key = vi_xor(vi_all((int32_t)r->key), flip);
	float some[VL];

	for (int s = 0; s < share; s++) {
		int32_t equal = r->shares[s].equal < left ? r->shares[s].equal : left;

		out += r->shares[s].above + equal;
		left -= equal;
	}
	for (int32_t t = share_first(r, share); t < end; t += VL) {
		vi keys = vi_xor(score_keys(scores_at(r, t, some)), flip);
		unsigned valid = end - t < VL ? (1u << (end - t)) - 1 : (1u << VL) - 1;
		unsigned chosen = vm_bits(vm_greater(keys, key)) & valid;

		if (left) {
			unsigned equal = vm_bits(vm_equal(keys, key)) & valid;

			for (; equal && left; equal &= equal - 1, left--)
				chosen |= equal & -equal;
		}
		for (; chosen; chosen &= chosen - 1)
			*out++ = t + __builtin_ctz(chosen);
	}
}

/* A key with 2 k or more of the row's keys above it, if the sample is like the row; 0 where there is none. */
static uint32_t sample_floor(const struct row *r)
{
	int64_t wanted = 2 * (r->k / SAMPLE) + VL;
	uint32_t prefix = 0;

	for (int level = 0; level < 2; level++) {
		uint32_t count[COPIES][BINS] = {{0}};
		int64_t in_bin = 0;
		int bin = BINS;

		for (int32_t t = 0; t + VL <= r->n; t += SAMPLE * VL) {
			vi keys = score_keys(r->score + t);

			if (level == 0)
				count_digits(count, vi_shift_right(keys, 21), (1u << VL) - 1);
			else
				count_digits(count, vi_and(vi_shift_right(keys, 10), vi_all(BINS - 1)),
					     vm_bits(vm_equal(vi_shift_right(keys, 21), vi_all((int32_t)prefix))));
		}
		do {
			wanted -= in_bin;
			if (--bin < 0)
				return 0;
			in_bin = 0;
			for (int c = 0; c < COPIES; c++)
				in_bin += count[c][bin];
		} while (in_bin < wanted);
		prefix = prefix << widths[level] | (uint32_t)bin;
	}
	return prefix << shifts[1];
}

static void list_share(const struct row *r, int share)
{
	struct share *s = &r->shares[share];
	int32_t end = share_first(r, share + 1), n = 0;
	vi flip = vi_all((int32_t)0x80000000), below = vi_xor(vi_all((int32_t)(r->floor - 1)), flip);
	float some[VL];

	for (int32_t t = share_first(r, share); t < end && n <= LISTED; t += VL) {
		vi keys = vi_xor(score_keys(scores_at(r, t, some)), flip);
		unsigned chosen = vm_bits(vm_greater(keys, below)) & (end - t < VL ? (1u << (end - t)) - 1 : (1u << VL) - 1);

		for (; chosen; chosen &= chosen - 1, n++)
			if (n < LISTED) {
				s->at[n] = t + __builtin_ctz(chosen);
				s->listed[n] = r->score[s->at[n]];
			}
	}
	s->n_listed = n;
}

/* Items: shares of a row. */
static void count_shares(void *arg, int64_t first, int64_t end, int thread)
{
	(void)thread;
	for (; first < end; first++)
		count_share(arg, (int)first);
}

static void write_shares(void *arg, int64_t first, int64_t end, int thread)
{
	(void)thread;
	for (; first < end; first++)
		write_share(arg, (int)first);
}

static void list_shares(void *arg, int64_t first, int64_t end, int thread)
{
	(void)thread;
	for (; first < end; first++)
		list_share(arg, (int)first);
}

/* pool NULL: by this thread alone. */
static void run_shares(struct row *r, pool_fn *run, struct pool *pool)
{
	if (pool)
		pool_run(pool, run, r, r->n_shares, r->n / r->n_shares);
	else
		run(r, 0, r->n_shares, 0);
}

static void choose_by_radix(struct row *r, struct pool *pool)
{
	for (int s = 0; s < r->n_shares; s++)
		r->shares[s].above = 0;
	r->left = r->k;
	do {
		run_shares(r, count_shares, pool);
	} while (!find_digit(r));
	run_shares(r, write_shares, pool);
}

/* Whether the lists had what was to be chosen: else nothing is. */
static bool choose_from_lists(struct row *r, struct pool *pool)
{
	struct share *all = r->shares;
	struct row listed = {.score = all->listed, .set = r->set, .k = r->k, .n_shares = 1, .shares = all};

	if (r->n / SAMPLE < r->k)
		return false;
	r->floor = sample_floor(r);
	if (!r->floor)
		return false;
	run_shares(r, list_shares, pool);
	for (int s = 0; s < r->n_shares; s++) {
		const struct share *of = &r->shares[s];

		if (of->n_listed > LISTED - listed.n)
			return false;
		if (s) {
			memcpy(all->listed + listed.n, of->listed, (size_t)of->n_listed * sizeof *of->listed);
			memcpy(all->at + listed.n, of->at, (size_t)of->n_listed * sizeof *of->at);
		}
		listed.n += of->n_listed;
	}
	if (listed.n <= r->k)
		return false;
	choose_by_radix(&listed, NULL);
	for (int32_t i = 0; i < r->k; i++)
		r->set[i] = all->at[r->set[i]];
	return true;
}

/* Row i; pool NULL: by this thread alone. `shares` has room for n_shares. */
static void choose(const struct topk_job *j, int64_t i, struct pool *pool, struct share *shares, int n_shares)
{
	struct row r = {.score = j->scores + i * j->scores_stride, .set = j->set + i * j->set_stride,
			.n = (int32_t)j->n_visible[i], .n_shares = n_shares, .shares = shares};

	r.k = r.n < j->k ? r.n : j->k;
	j->n_set[i] = r.k;
	if (r.k == r.n) {
		for (int32_t t = 0; t < r.k; t++)
			r.set[t] = t;
		return;
	}
	if (r.k && !choose_from_lists(&r, pool))
		choose_by_radix(&r, pool);
}

/* Item: a row. */
static void choose_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct topk_job *j = arg;
	struct share *share = pool_scratch(j->pool, thread, sizeof *share);

	for (; first < end; first++)
		choose(j, first, NULL, share, 1);
}

void CPU(topk_positions)(struct device *dev, int32_t *set, int64_t set_stride, int32_t *n_set, const float *scores,
			 int64_t scores_stride, const int64_t *n_visible, int32_t k, int64_t n)
{
	struct topk_job j = {dev->queue, set, n_set, scores, n_visible, set_stride, scores_stride, k};
	int n_threads = pool_n_threads(j.pool);
	int64_t whole = n / n_threads * n_threads, longest = 0;

	for (int64_t i = whole; i < n; i++)
		longest = n_visible[i] > longest ? n_visible[i] : longest;
	if (longest < SPLIT_ROW)
		whole = n;
	if (whole)
		pool_run(j.pool, choose_rows, &j, whole, n_visible[n - 1] > k ? n_visible[n - 1] : k);
	for (int64_t i = whole; i < n; i++)
		choose(&j, i, j.pool, pool_scratch(j.pool, n_threads, (size_t)n_threads * sizeof(struct share)), n_threads);
}
