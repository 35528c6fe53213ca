/*
 * Attention over latents in tiles (tile.h), in three steps: scores, softmax weights, weighted sums.
 *
 *   scores   a few tokens by two vectors of heads: queries are turned round once, so that heads lie abreast
 *   weights  all heads abreast, in place
 *   sums     a few heads by two vectors of the latent, accumulators kept over a block of tokens
 *
 * Rows lie anywhere, so a block of them is gathered at a time (the next rows are asked for meanwhile), widened to
 * float32, and used by all heads from the L2 cache: 48 rows of 576 are 110 KB. For the sums a block is laid out in
 * strips of two vectors, 3 KB each and a line apart (the same line of each strip would fall into a few sets of the L1
 * cache), so that a strip and the weights of the block are in the L1 cache for all heads. It is
 * gathered twice, since weights need the largest score of all; that is a twentieth of the time.
 *
 * With as many queries as threads, each takes whole queries. What is left over (in decode: all) is shared: scores and
 * weights by positions, sums by columns of the latent, so that no thread widens what another one does. Where all
 * positions of a long context are attended to, heads are taken in groups, so that their scores do not fill memory.
 */
#include "engine/simd/math.h"
#include "engine/simd/tile.h"

enum {
	BLOCK = 48,             /* rows: a multiple of every TILE */
	DEPTH = 192,            /* of a query in the L1 cache at a time: 12 KB with AVX2; even */
	AHEAD = 3,              /* rows that are asked for in advance */
	SCORE_ROOM = 1 << 23,   /* scores of one query at a time, unless one group of heads has more: 32 MB */
	LINE = 64,
};

struct attend_job {
	struct pool *pool;
	float *out;
	const float *q;
	const struct latent_rows *latents;
	const struct selection *selections;
	int32_t n_heads;
	float scale;
	enum compute_profile profile;
	int64_t whole;      /* queries that one thread each computes */
	int32_t dim, depth; /* depth: steps of a score: words of two with bf16 dot products, even in that profile */
};

/* Some heads of one query, and where its numbers are. */
struct view {
	const struct attend_job *j;
	const struct selection *s;
	const float *q;         /* of the first head */
	float *out;             /* likewise */
	int32_t n_heads, width; /* width: rounded up to ACROSS, rows of scores are that long */
	int n_shares;
	float *turned;          /* [width / ACROSS][depth][ACROSS] */
	float *score;           /* [s->n][width]; weights take their place */
	float *most;            /* [n_shares][width] of each share's positions */
};

static int64_t row_bytes(const struct attend_job *j)
{
	return j->profile == COMPUTE_BF16 ? 2 : 4;
}

static const void *row_at(const struct view *x, int32_t t)
{
	const struct latent_rows *l = x->j->latents;

	return (const char *)l->rows + (x->s->set ? x->s->set[t] : t) * l->stride * row_bytes(x->j);
}

/* Columns first .. end - 1 of the row some places later, up to `last`. */
static ALWAYS_INLINE void ask_ahead(const struct view *x, int32_t t, int32_t last, int32_t first, int32_t end)
{
	if (t + AHEAD < last) {
		const char *row = row_at(x, t + AHEAD);

		for (int64_t b = first * row_bytes(x->j); b < end * row_bytes(x->j); b += LINE)
			__builtin_prefetch(row + b);
	}
}

/* Values first .. first + n - 1 of a row to float32, zeros after them up to `room`. */
static ALWAYS_INLINE void widen_values(float *out, const struct attend_job *j, const void *row, int32_t first, int32_t n,
				       int32_t room)
{
	int32_t c = 0;

	if (j->profile == COMPUTE_BF16) {
		const uint16_t *in = (const uint16_t *)row + first;

		for (; c + VL <= n; c += VL)
			vf_store(out + c, vf_load_bf16(in + c));
		for (; c < n; c++)
			out[c] = bf16_to_f32(in[c]);
	} else {
		const float *in = (const float *)row + first;

		for (; c + VL <= n; c += VL)
			vf_store(out + c, vf_load(in + c));
		for (; c < n; c++)
			out[c] = in[c];
	}
	for (; c < room; c++)
		out[c] = 0;
}

/* Rows t .. t + n - 1 as scores read them: [n][depth]. */
static void gather_rows(float *out, const struct view *x, int32_t t, int32_t n, int32_t last)
{
	const struct attend_job *j = x->j;

	for (int32_t i = 0; i < n; i++, out += j->depth) {
		ask_ahead(x, t + i, last, 0, j->dim);
		if (HAS_DOT && j->profile == COMPUTE_BF16) {
			out[j->depth - 1] = 0;
			memcpy(out, row_at(x, t + i), (size_t)j->dim * sizeof(uint16_t));
		} else {
			widen_values(out, j, row_at(x, t + i), 0, j->dim, j->depth);
		}
	}
}

/* Turn groups first .. end - 1 of ACROSS heads round, rounded if the profile rounds; missing heads are zero. */
static void turn_queries(const struct view *x, int32_t first, int32_t end)
{
	const struct attend_job *j = x->j;
	bool round = j->profile == COMPUTE_BF16, words = round && HAS_DOT;

	for (int32_t h = first * ACROSS; h < end * ACROSS; h++) {
		float *out = x->turned + (int64_t)(h / ACROSS) * j->depth * ACROSS + h % ACROSS;
		const float *q = x->q + (int64_t)h * j->dim;
		int32_t n = h < x->n_heads ? j->dim : 0;

		for (int32_t k = 0; k < j->depth; k++) {
			if (words) {
				uint32_t even = 2 * k < n ? f32_to_bf16(q[2 * k]) : 0;
				uint32_t odd = 2 * k + 1 < n ? f32_to_bf16(q[2 * k + 1]) : 0;

				out[(int64_t)k * ACROSS] = f32_from_bits(odd << 16 | even);
			} else {
				out[(int64_t)k * ACROSS] = k >= n ? 0 : round ? num_bf16(q[k]) : q[k];
			}
		}
	}
}

/* M tokens by one group of heads, and a part of the depth. */
static ALWAYS_INLINE void score_tile(const int m, float *score, int64_t width, const struct tile_in *in, bool begins,
				     const enum order order)
{
	vf acc[TILE][2];

	tile_load(acc, m, begins ? NULL : score, width);
	tile_sum(acc, m, in, order);
	tile_store(score, width, acc, m);
}

/* Scores of n rows, not scaled yet. */
static ALWAYS_INLINE void score_rows(const struct view *x, float *score, const float *rows, int32_t n, const enum order order)
{
	int32_t depth = x->j->depth;

	for (int32_t g = 0; g < x->width / ACROSS; g++)
		for (int32_t k = 0; k < depth; k += DEPTH) {
			const float *turned = x->turned + ((int64_t)g * depth + k) * ACROSS;
			struct tile_in in = {.b = {turned, turned + VL}, .across = depth, .along = 1, .step = ACROSS,
					     .n = depth - k < DEPTH ? depth - k : DEPTH};

			for (int32_t i = 0, t = 0, next; i < n_tiles(n); i++, t = next) {
				next = tile_first(i + 1, n);
				in.a = rows + (int64_t)t * depth + k;
				TILE_OF(next - t, score_tile, score + (int64_t)t * x->width + g * ACROSS, x->width, &in, k == 0,
					order)
			}
		}
}

/* Scale n rows of scores; the largest of each head to `most`. */
static void scale_scores(const struct view *x, float *score, float *most, int32_t n)
{
	vf scale = vf_all(x->j->scale);

	for (int32_t h = 0; h < x->width; h += VL) {
		vf m = vf_load(most + h);

		for (int32_t t = 0; t < n; t++) {
			vf s = vf_mul(vf_load(score + (int64_t)t * x->width + h), scale);

			vf_store(score + (int64_t)t * x->width + h, s);
			m = vf_max(s, m);
		}
		vf_store(most + h, m);
	}
}

/* Step 1 for positions first .. end - 1; rows: scratch of BLOCK x depth. */
static NEVER_INLINE void score_positions(const struct view *x, int share, int32_t first, int32_t end, float *rows)
{
	float *most = x->most + (int64_t)share * x->width;

	for (int32_t h = 0; h < x->width; h++)
		most[h] = -INFINITY;
	for (int32_t t = first; t < end; t += BLOCK) {
		int32_t n = end - t < BLOCK ? end - t : BLOCK;
		float *score = x->score + (int64_t)t * x->width;

		gather_rows(rows, x, t, n, end);
		if (x->j->profile == COMPUTE_F32)
			score_rows(x, score, rows, n, IN_ORDER);
		else
			score_rows(x, score, rows, n, BF16_ORDER);
		scale_scores(x, score, most, n);
	}
}

/* Step 2 for positions first .. end - 1. */
static NEVER_INLINE void weigh_positions(const struct view *x, int32_t first, int32_t end)
{
	for (int32_t h = 0; h < x->width; h += VL) {
		vf most = vf_all(-INFINITY);

		for (int s = 0; s < x->n_shares; s++)
			most = vf_max(vf_load(x->most + (int64_t)s * x->width + h), most);
		for (int32_t t = first; t < end; t++) {
			float *e = x->score + (int64_t)t * x->width + h;

			vf_store(e, vf_exp(vf_sub(vf_load(e), most)));
		}
	}
}

/* Rows t .. t + n - 1 as sums read them: columns from `first` on in strips [n_strips][BLOCK + 1][ACROSS]. */
static void gather_strips(float *out, const struct view *x, int32_t t, int32_t n, int32_t first, int32_t n_strips)
{
	int32_t kv_lora = x->j->latents->kv_lora, end = first + n_strips * ACROSS;

	end = end < kv_lora ? end : kv_lora;
	for (int32_t i = 0; i < n; i++) {
		const void *row = row_at(x, t + i);

		ask_ahead(x, t + i, x->s->n, first, end);
		for (int32_t s = 0; s < n_strips; s++) {
			int32_t c = first + s * ACROSS;

			widen_values(out + (int64_t)(s * (BLOCK + 1) + i) * ACROSS, x->j, row, c, end - c < ACROSS ? end - c : ACROSS, ACROSS);
		}
	}
}

/* M heads by one strip, over a block of tokens. */
static ALWAYS_INLINE void sum_tile(const int m, float *sum, const struct tile_in *in, bool begins)
{
	vf acc[TILE][2];

	tile_load(acc, m, begins ? NULL : sum, ACROSS);
	tile_sum(acc, m, in, IN_ORDER);
	tile_store(sum, ACROSS, acc, m);
}

/* 1 / the sum of each head's weights. */
static void invert_sums(float *inverse, const struct view *x)
{
	for (int32_t h = 0; h < x->width; h += ACROSS) {
		vf sum[2] = {vf_zero(), vf_zero()};

		for (int32_t t = 0; t < x->s->n; t++)
			for (int v = 0; v < 2; v++)
				sum[v] = vf_add(sum[v], vf_load(x->score + (int64_t)t * x->width + h + v * VL));
		for (int v = 0; v < 2; v++)
			vf_store(inverse + h + v * VL, vf_div(vf_all(1), sum[v]));
	}
}

/* Floats of scratch that step 3 takes. */
static size_t sum_room(int32_t n_strips, int32_t width)
{
	return (size_t)n_strips * ACROSS * (size_t)(BLOCK + 1 + width) + (size_t)width;
}

/* Step 3 for n_strips strips of columns from `first` on. */
static NEVER_INLINE void sum_columns(const struct view *x, int32_t first, int32_t n_strips, float *scratch)
{
	float *strips = scratch, *sum = strips + (int64_t)n_strips * (BLOCK + 1) * ACROSS;
	float *inverse = sum + (int64_t)n_strips * x->width * ACROSS;
	int32_t kv_lora = x->j->latents->kv_lora;

	if (!x->s->n) /* 0 x (1 / 0) */
		memset(sum, 0, (size_t)n_strips * (size_t)x->width * ACROSS * sizeof *sum);
	for (int32_t t = 0; t < x->s->n; t += BLOCK) {
		int32_t n = x->s->n - t < BLOCK ? x->s->n - t : BLOCK;

		gather_strips(strips, x, t, n, first, n_strips);
		for (int32_t s = 0; s < n_strips; s++) {
			const float *strip = strips + (int64_t)s * (BLOCK + 1) * ACROSS;
			struct tile_in in = {.b = {strip, strip + VL}, .across = 1, .along = x->width, .step = ACROSS, .n = n};

			for (int32_t i = 0, h = 0, next; i < n_tiles(x->n_heads); i++, h = next) {
				next = tile_first(i + 1, x->n_heads);
				in.a = x->score + (int64_t)t * x->width + h;
				TILE_OF(next - h, sum_tile, sum + ((int64_t)s * x->width + h) * ACROSS, &in, t == 0)
			}
		}
	}
	invert_sums(inverse, x);
	for (int32_t s = 0; s < n_strips; s++)
		for (int32_t h = 0; h < x->n_heads; h++) {
			float *from = sum + ((int64_t)s * x->width + h) * ACROSS, *out = x->out + (int64_t)h * kv_lora;
			int32_t c = first + s * ACROSS, n = kv_lora - c < ACROSS ? kv_lora - c : ACROSS;

			for (int32_t v = 0; v < ACROSS; v += VL)
				vf_store(from + v, vf_mul(vf_load(from + v), vf_all(inverse[h])));
			memcpy(out + c, from, (size_t)n * sizeof *out);
		}
}

static int32_t n_strips_of(const struct attend_job *j)
{
	return (j->latents->kv_lora + ACROSS - 1) / ACROSS;
}

/* How many heads to take at a time. */
static int32_t heads_at_once(const struct attend_job *j, const struct selection *s)
{
	int64_t groups = SCORE_ROOM / ACROSS / (s->n ? s->n : 1);

	return groups < 1 ? ACROSS : groups * ACROSS < j->n_heads ? (int32_t)groups * ACROSS : j->n_heads;
}

/* A view of heads head .. head + n - 1 of query i, its numbers in `room`; how many floats it takes. */
static size_t view_of(struct view *x, const struct attend_job *j, int64_t i, int32_t head, int32_t n, int n_shares, float *room)
{
	int32_t width = (n + ACROSS - 1) / ACROSS * ACROSS;
	size_t turned = (size_t)width * (size_t)j->depth, most = (size_t)n_shares * (size_t)width;

	*x = (struct view){.j = j, .s = &j->selections[i], .n_heads = n, .width = width, .n_shares = n_shares};
	if (room) {
		x->q = j->q + (i * j->n_heads + head) * j->dim;
		x->out = j->out + (i * j->n_heads + head) * j->latents->kv_lora;
		x->turned = room;
		x->most = room + turned;
		x->score = x->most + most;
	}
	return turned + most + (size_t)x->s->n * (size_t)width;
}

/* A query by one thread. */
static void attend_alone(const struct attend_job *j, int64_t i, int thread)
{
	int32_t heads = heads_at_once(j, &j->selections[i]), n;

	for (int32_t head = 0; head < j->n_heads; head += n) {
		struct view x;
		size_t numbers, rows = (size_t)BLOCK * (size_t)j->depth, sums;
		float *room;
		unsigned mode;

		n = j->n_heads - head < heads ? j->n_heads - head : heads;
		numbers = view_of(&x, j, i, head, n, 1, NULL);
		sums = sum_room(n_strips_of(j), x.width);
		rows = rows > sums ? rows : sums;
		room = pool_scratch(j->pool, thread, (rows + numbers) * sizeof *room);
		view_of(&x, j, i, head, n, 1, room + rows);
		turn_queries(&x, 0, x.width / ACROSS);
		mode = flush_begin(j->profile);
		score_positions(&x, 0, 0, x.s->n, room);
		weigh_positions(&x, 0, x.s->n);
		sum_columns(&x, 0, n_strips_of(j), room);
		flush_end(mode);
	}
}

/* Item: a thread's share of the whole queries, dealt out like cards, since later ones may see more. */
static void attend_whole(void *arg, int64_t first, int64_t end, int thread)
{
	const struct attend_job *j = arg;

	for (; first < end; first++)
		for (int64_t i = first; i < j->whole; i += pool_n_threads(j->pool))
			attend_alone(j, i, thread);
}

/* Items of these: groups of heads; shares of the positions; the same; strips. */
static void turn_groups(void *arg, int64_t first, int64_t end, int thread)
{
	(void)thread;
	turn_queries(arg, (int32_t)first, (int32_t)end);
}

static int32_t share_first(const struct view *x, int64_t share)
{
	return (int32_t)(x->s->n * share / x->n_shares);
}

static void score_shares(void *arg, int64_t first, int64_t end, int thread)
{
	const struct view *x = arg;
	float *rows = pool_scratch(x->j->pool, thread, (size_t)BLOCK * (size_t)x->j->depth * sizeof *rows);
	unsigned mode = flush_begin(x->j->profile);

	for (; first < end; first++)
		score_positions(x, (int)first, share_first(x, first), share_first(x, first + 1), rows);
	flush_end(mode);
}

static void weigh_shares(void *arg, int64_t first, int64_t end, int thread)
{
	const struct view *x = arg;
	unsigned mode = flush_begin(x->j->profile);

	(void)thread;
	weigh_positions(x, share_first(x, first), share_first(x, end));
	flush_end(mode);
}

static void sum_strips(void *arg, int64_t first, int64_t end, int thread)
{
	const struct view *x = arg;
	int32_t n = (int32_t)(end - first);
	float *scratch = pool_scratch(x->j->pool, thread, sum_room(n, x->width) * sizeof *scratch);
	unsigned mode = flush_begin(x->j->profile);

	sum_columns(x, (int32_t)first * ACROSS, n, scratch);
	flush_end(mode);
}

/* A query by all threads. */
static void attend_shared(const struct attend_job *j, int64_t i)
{
	int32_t heads = heads_at_once(j, &j->selections[i]), n;
	int n_threads = pool_n_threads(j->pool);

	for (int32_t head = 0; head < j->n_heads; head += n) {
		struct view x;
		float *room;
		int64_t work;

		n = j->n_heads - head < heads ? j->n_heads - head : heads;
		room = pool_scratch(j->pool, n_threads, view_of(&x, j, i, head, n, n_threads, NULL) * sizeof *room);
		view_of(&x, j, i, head, n, n_threads, room);
		work = (int64_t)x.s->n * x.width;
		pool_run(j->pool, turn_groups, &x, x.width / ACROSS, 2 * (int64_t)ACROSS * j->dim);
		pool_run(j->pool, score_shares, &x, n_threads, work * j->dim / n_threads);
		pool_run(j->pool, weigh_shares, &x, n_threads, 8 * work / n_threads);
		pool_run(j->pool, sum_strips, &x, n_strips_of(j), work * ACROSS);
	}
}

void CPU(attend)(struct device *dev, float *out, const float *q, const struct latent_rows *latents,
		 const struct selection *selections, int32_t n_heads, float scale, int64_t n,
		 enum compute_profile profile)
{
	struct attend_job j = {.pool = dev->queue, .out = out, .q = q, .latents = latents, .selections = selections,
			       .n_heads = n_heads, .scale = scale, .profile = profile};
	int64_t keys = 0;

	j.whole = n / pool_n_threads(j.pool) * pool_n_threads(j.pool);
	j.dim = latents->kv_lora + latents->rope_dim;
	j.depth = profile == COMPUTE_F32 ? j.dim : HAS_DOT ? (j.dim + 1) / 2 : (j.dim + 1) / 2 * 2;
	for (int64_t i = 0; i < j.whole; i++)
		keys += selections[i].n;
	if (j.whole)
		pool_run(j.pool, attend_whole, &j, pool_n_threads(j.pool),
			 keys / pool_n_threads(j.pool) * n_heads * (j.dim + latents->kv_lora));
	for (int64_t i = j.whole; i < n; i++)
		attend_shared(&j, i);
}
