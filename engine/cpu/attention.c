/*
 * Multi-head latent attention in its absorbed form: queries go to the latents, not latents to every head. The
 * definition.
 */
#include "engine/cpu/cpu.h"

#include <stdlib.h>

#include "config/mem.h"

struct absorb_job {
	float *out;
	const float *q;
	const struct weight *kv_b;
	int64_t out_head, q_head;
	int32_t n_heads, nope_dim, v_dim;
};

/* Item: one head of one query. */
static void absorb_heads(void *arg, int64_t first, int64_t end, int thread)
{
	const struct absorb_job *j = arg;
	const struct weight *w = j->kv_b;
	int32_t kv_lora = w->cols;
	float *row = xmalloc(2 * (size_t)kv_lora, sizeof *row), *run = row + kv_lora;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		int32_t uk = (int32_t)(i % j->n_heads) * (j->nope_dim + j->v_dim);
		const float *q = j->q + i * j->q_head;
		float *out = j->out + i * j->out_head;

		memset(run, 0, (size_t)kv_lora * sizeof *run);
		memset(out, 0, (size_t)kv_lora * sizeof *out);
		for (int32_t d = 0; d < j->nope_dim; d++) {
			bool ends = w->scale && (d + 1 == j->nope_dim || (w->first_row + uk + d + 1) % WEIGHT_BLOCK == 0);

			weight_widen(row, w, uk + d, 0, kv_lora);
			for (int32_t c = 0; c < kv_lora; c++)
				run[c] = fmaf(q[d], row[c], run[c]);
			for (int32_t c = 0; ends && c < kv_lora; c++) {
				out[c] = fmaf(weight_scale(w, uk + d, c), run[c], out[c]);
				run[c] = 0;
			}
		}
		if (!w->scale)
			memcpy(out, run, (size_t)kv_lora * sizeof *out);
	}
	free(row);
}

void CPU(absorb_query)(struct device *dev, float *out, int64_t out_head, const float *q, int64_t q_head,
		       const struct weight *kv_b, int32_t n_heads, int32_t nope_dim, int32_t v_dim, int64_t n)
{
	struct absorb_job j = {out, q, kv_b, out_head, q_head, n_heads, nope_dim, v_dim};

	pool_run(dev->queue, absorb_heads, &j, n * n_heads, 2 * (int64_t)nope_dim * kv_b->cols);
}

struct attend_job {
	float *out;
	const float *q;
	const struct latent_rows *latents;
	const struct selection *selections;
	int32_t n_heads;
	float scale;
	enum compute_profile profile;
};

/* Latent row of selection s's t-th position, widened: [dim], an even number of values. */
static void widen_row(float *out, const struct attend_job *j, const struct selection *s, int32_t t)
{
	int64_t at = (s->set ? s->set[t] : t) * j->latents->stride;
	int32_t dim = j->latents->kv_lora + j->latents->rope_dim;

	out[dim] = 0;
	if (j->profile == COMPUTE_BF16)
		for (int32_t d = 0; d < dim; d++)
			out[d] = bf16_to_f32(((const uint16_t *)j->latents->rows)[at + d]);
	else
		memcpy(out, (const float *)j->latents->rows + at, (size_t)dim * sizeof *out);
}

/* One head of one query; score [selected], row and query [dim + 1]. */
static void attend_head(float *out, const struct attend_job *j, const struct selection *s, const float *query, float *score,
			float *row)
{
	bool pairs = j->profile == COMPUTE_BF16;
	int32_t dim = j->latents->kv_lora + j->latents->rope_dim, kv_lora = j->latents->kv_lora;
	float most = -INFINITY, sum = 0;

	for (int32_t t = 0; t < s->n; t++) {
		widen_row(row, j, s, t);
		score[t] = 0;
		for (int32_t d = 0; d < dim + (pairs && dim % 2); d++) {
			int32_t e = pairs ? d ^ 1 : d;

			score[t] = num_fma(query[e], row[e], score[t], pairs);
		}
		score[t] = num_mul(score[t], j->scale, pairs);
		most = score[t] > most ? score[t] : most;
	}
	memset(out, 0, (size_t)kv_lora * sizeof *out);
	for (int32_t t = 0; t < s->n; t++) {
		float e = num_exp(num_add(score[t], -most, pairs));

		widen_row(row, j, s, t);
		sum = num_add(sum, e, pairs);
		for (int32_t c = 0; c < kv_lora; c++)
			out[c] = num_fma(e, row[c], out[c], pairs);
	}
	for (int32_t c = 0; c < kv_lora; c++)
		out[c] = num_mul(out[c], 1.0f / sum, pairs);
}

/* Item: one head of one query. */
static void attend_heads(void *arg, int64_t first, int64_t end, int thread)
{
	const struct attend_job *j = arg;
	int32_t dim = j->latents->kv_lora + j->latents->rope_dim, longest = 0;
	float *row, *query, *score;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		if (j->selections[i / j->n_heads].n > longest)
			longest = j->selections[i / j->n_heads].n;
	row = xcalloc(2 * ((size_t)dim + 1) + (size_t)longest, sizeof *row);
	query = row + dim + 1;
	score = query + dim + 1;
	for (int64_t i = first; i < end; i++) {
		for (int32_t d = 0; d < dim; d++)
			query[d] = j->profile == COMPUTE_BF16 ? num_bf16(j->q[i * dim + d]) : j->q[i * dim + d];
		attend_head(j->out + i * j->latents->kv_lora, j, &j->selections[i / j->n_heads], query, score, row);
	}
	free(row);
}

void CPU(attend)(struct device *dev, float *out, const float *q, const struct latent_rows *latents,
		 const struct selection *selections, int32_t n_heads, float scale, int64_t n,
		 enum compute_profile profile)
{
	struct attend_job j = {out, q, latents, selections, n_heads, scale, profile};
	int64_t keys = 0;

	for (int64_t i = 0; i < n; i++)
		keys += selections[i].n;
	pool_run(dev->queue, attend_heads, &j, n * n_heads, keys / n * (2 * latents->kv_lora + latents->rope_dim));
}
