/* Multi-head latent attention in its absorbed form: queries go to the latents, not latents to every head. */
#include "engine/cpu/cpu.h"

#include <assert.h>
#include <stdlib.h>

#include "config/mem.h"

enum {
	PARTS = 4,            /* lanes summed side by side: as many as hide the latency of a multiplication */
	DIMS = PARTS * LANES, /* latent values in them */
};

struct absorb_job {
	float *out;
	const float *q;
	const struct weight *kv_b;
	int64_t out_head, q_head;
	int32_t n_heads, nope_dim, v_dim;
};

/* out[0 .. n) = columns c .. c + n - 1 of the sum, for one head and one query. */
static void absorb_dims(float *out, const float *q, const struct weight *w, int32_t row, int32_t n_rows, int32_t c,
			int n)
{
	float wide[DIMS] = {0};
	lanes run[PARTS], total[PARTS];

	for (int p = 0; p < PARTS; p++)
		run[p] = total[p] = lanes_all(0);
	for (int32_t d = 0; d < n_rows; d++) {
		lanes x = lanes_all(q[d]);

		widen(wide, w->dtype, w->data, (int64_t)(row + d) * w->cols + c, n);
		for (int p = 0; p < PARTS; p++)
			run[p] = lanes_fma(x, lanes_load(wide + p * LANES), run[p]);
		if (w->scale && (d + 1 == n_rows || (w->first_row + row + d + 1) % WEIGHT_BLOCK == 0)) {
			lanes scale = lanes_all(weight_scale(w, row + d, c));

			for (int p = 0; p < PARTS; p++) {
				total[p] = lanes_fma(scale, run[p], total[p]);
				run[p] = lanes_all(0);
			}
		}
	}
	for (int p = 0; p < PARTS; p++)
		lanes_store(wide + p * LANES, w->scale ? total[p] : run[p]);
	memcpy(out, wide, (size_t)n * sizeof *out);
}

static void absorb_heads(void *arg, int64_t first, int64_t end, int thread)
{
	const struct absorb_job *j = arg;
	int32_t kv_lora = j->kv_b->cols;

	(void)thread;
	static_assert((int)WEIGHT_BLOCK % (int)DIMS == 0, "a run of latent values has one scale");
	for (int64_t i = first; i < end; i++)
		for (int32_t c = 0; c < kv_lora; c += DIMS)
			absorb_dims(j->out + i * j->out_head + c, j->q + i * j->q_head, j->kv_b,
				    (int32_t)(i % j->n_heads) * (j->nope_dim + j->v_dim), j->nope_dim, c,
				    kv_lora - c < DIMS ? kv_lora - c : DIMS);
}

void CPU(absorb_query)(struct device *dev, float *out, int64_t out_head, const float *q, int64_t q_head,
		       const struct weight *kv_b, int32_t n_heads, int32_t nope_dim, int32_t v_dim, int64_t n)
{
	struct absorb_job j = {out, q, kv_b, out_head, q_head, n_heads, nope_dim, v_dim};

	pool_run(dev->queue, absorb_heads, &j, n * n_heads, 2 * (int64_t)nope_dim * kv_b->cols);
}

enum {
	HEADS = LANES, /* that lie abreast in a score */
	TOKENS = 4,    /* scored side by side */
};

struct attend_job {
	float *out;
	const float *q;
	const struct latent_rows *latents;
	const struct selection *selections;
	int32_t n_heads;
	float scale;
};

static inline const float *latent_row(const struct attend_job *j, const struct selection *s, int32_t t)
{
	return j->latents->rows + (s->set ? s->set[t] : t) * j->latents->stride;
}

/* Scores of HEADS heads for `tokens` selected positions from t on: score[t][h]. q is [dim][HEADS]. */
static inline __attribute__((always_inline)) void score_tokens(float *score, const float *q, const struct attend_job *j,
							       const struct selection *s, int32_t t, int tokens)
{
	int32_t dim = j->latents->kv_lora + j->latents->rope_dim;
	const float *row[TOKENS];
	lanes sum[TOKENS];

	for (int i = 0; i < tokens; i++) {
		row[i] = latent_row(j, s, t + i);
		sum[i] = lanes_all(0);
	}
	for (int32_t d = 0; d < dim; d++) {
		lanes x = lanes_load(q + d * HEADS);

		for (int i = 0; i < tokens; i++)
			sum[i] = lanes_fma(x, lanes_all(row[i][d]), sum[i]);
	}
	for (int i = 0; i < tokens; i++) {
		float *out = score + (int64_t)(t + i) * HEADS;

		lanes_store(out, sum[i]);
		for (int h = 0; h < HEADS; h++)
			out[h] *= j->scale;
	}
}

static void score_heads(float *score, const float *q, const struct attend_job *j, const struct selection *s)
{
	int32_t t = 0;

	for (; t + TOKENS <= s->n; t += TOKENS)
		score_tokens(score, q, j, s, t, TOKENS);
	for (; t < s->n; t++)
		score_tokens(score, q, j, s, t, 1);
}

/* out[d] = (sum over t of weight[t] row_t[d]) x inverse, for one head. */
static void sum_latents(float *out, const float *weight, float inverse, const struct attend_job *j,
			const struct selection *s)
{
	int32_t kv_lora = j->latents->kv_lora, d = 0;

	for (; d + DIMS <= kv_lora; d += DIMS) {
		lanes sum[PARTS];

		for (int p = 0; p < PARTS; p++)
			sum[p] = lanes_all(0);
		for (int32_t t = 0; t < s->n; t++) {
			const float *row = latent_row(j, s, t) + d;
			lanes x = lanes_all(weight[(int64_t)t * HEADS]);

			for (int p = 0; p < PARTS; p++)
				sum[p] = lanes_fma(x, lanes_load(row + p * LANES), sum[p]);
		}
		for (int p = 0; p < PARTS; p++)
			lanes_store(out + d + p * LANES, sum[p]);
	}
	for (; d < kv_lora; d++) {
		out[d] = 0;
		for (int32_t t = 0; t < s->n; t++)
			out[d] = fmaf(weight[(int64_t)t * HEADS], latent_row(j, s, t)[d], out[d]);
	}
	for (d = 0; d < kv_lora; d++)
		out[d] *= inverse;
}

/* Item: one query and HEADS of its heads. */
static void attend_items(void *arg, int64_t first, int64_t end, int thread)
{
	const struct attend_job *j = arg;
	int32_t dim = j->latents->kv_lora + j->latents->rope_dim;
	int32_t blocks = (j->n_heads + HEADS - 1) / HEADS, longest = 0;
	float *q = xcalloc((size_t)dim * HEADS, sizeof *q), *score;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		if (j->selections[i / blocks].n > longest)
			longest = j->selections[i / blocks].n;
	score = xmalloc((size_t)longest * HEADS, sizeof *score);
	for (int64_t i = first; i < end; i++) {
		const struct selection *s = &j->selections[i / blocks];
		int32_t h0 = (int32_t)(i % blocks) * HEADS;
		int n = j->n_heads - h0 < HEADS ? j->n_heads - h0 : HEADS;

		for (int h = 0; h < n; h++)
			for (int32_t d = 0; d < dim; d++)
				q[d * HEADS + h] = j->q[(i / blocks * j->n_heads + h0 + h) * dim + d];
		score_heads(score, q, j, s);
		for (int h = 0; h < n; h++) {
			float max = -INFINITY, sum = 0;

			for (int32_t t = 0; t < s->n; t++)
				if (score[(int64_t)t * HEADS + h] > max)
					max = score[(int64_t)t * HEADS + h];
			for (int32_t t = 0; t < s->n; t++) {
				float *e = &score[(int64_t)t * HEADS + h];

				*e = num_exp(*e - max);
				sum += *e;
			}
			sum_latents(j->out + (i / blocks * j->n_heads + h0 + h) * j->latents->kv_lora, score + h,
				    1.0f / sum, j, s);
		}
	}
	free(q);
	free(score);
}

void CPU(attend)(struct device *dev, float *out, const float *q, const struct latent_rows *latents,
		 const struct selection *selections, int32_t n_heads, float scale, int64_t n,
		 enum compute_profile profile)
{
	struct attend_job j = {out, q, latents, selections, n_heads, scale};
	int64_t keys = 0;

	assert(profile == COMPUTE_F32);
	for (int64_t i = 0; i < n; i++)
		keys += selections[i].n;
	pool_run(dev->queue, attend_items, &j, n * ((n_heads + HEADS - 1) / HEADS),
		 keys / n * HEADS * (2 * latents->kv_lora + latents->rope_dim));
}
