/*
 * DeepSeek's sparse attention, as GLM-5.2 has it: a full layer scores every visible position with a small index query
 * and keeps the best index_topk; the shared layers that follow reuse its choice.
 */
#include "engine/internal.h"

#include <math.h>

enum { SCORES = 1 << 24 }; /* scores held at a time: 64 MB */

static int tell(struct pass *p, int32_t layer, struct err *err)
{
	int32_t *all = NULL;

	for (int64_t i = 0; i < p->n; i++) {
		const struct selection *s = &p->selections[i];

		if (!s->set && !all) {
			all = arena_alloc(p->scratch, (size_t)(p->first + p->n), sizeof *all);
			for (int32_t t = 0; t < p->first + p->n; t++)
				all[t] = t;
		}
		if (p->tap->selected(p->tap->ctx, layer, p->first + i, s->set ? s->set : all, s->n, err))
			return -1;
	}
	return 0;
}

/* Scores and choices for the pass's tokens from `from` on; earlier ones see no more than index_topk positions. */
static void choose(struct pass *p, int32_t layer, const float *q, const float *w, int64_t from)
{
	const struct model_config *c = p->c;
	int64_t longest = p->first + p->n, tile = SCORES / longest;
	const void *keys = p->s->keys[session_index_layer(p->s, layer)];
	int32_t *n_set = arena_alloc(p->scratch, (size_t)p->n, sizeof *n_set);
	int64_t *n_visible = arena_alloc(p->scratch, (size_t)p->n, sizeof *n_visible);
	float *scores;

	tile = tile < 1 ? 1 : tile > p->n - from ? p->n - from : tile;
	scores = arena_alloc(p->scratch, (size_t)(tile * longest), sizeof *scores);
	for (int64_t i = from; i < p->n; i++)
		n_visible[i] = p->first + i + 1;
	for (int64_t i = from; i < p->n; i += tile) {
		int64_t n = p->n - i < tile ? p->n - i : tile;

		p->ops->index_scores(p->dev, scores, longest, q + i * c->index_n_heads * c->index_dim,
				     w + i * c->index_n_heads, keys, n_visible + i, c->index_n_heads, c->index_dim, n,
				     p->s->engine->compute);
		p->ops->topk_positions(p->dev, p->sets + i * c->index_topk, c->index_topk, n_set + i, scores, longest,
				       n_visible + i, c->index_topk, n);
	}
	for (int64_t i = from; i < p->n; i++)
		p->selections[i] = (struct selection){p->sets + i * c->index_topk, n_set[i]};
}

int indexer_select(struct pass *p, int32_t layer, const float *qr, struct err *err)
{
	const struct model_config *c = p->c;
	const struct layer *l = &p->m->layers[layer];
	enum compute_profile profile = p->s->engine->compute;
	int64_t width = (int64_t)c->index_n_heads * c->index_dim, n = p->n;
	float *k = arena_alloc(p->scratch, (size_t)(n * c->index_dim), sizeof *k), *q, *w;
	/* Tokens that see at most index_topk positions attend to all of them: no scores are needed, keys are. */
	int64_t from = c->index_topk - p->first;
	float scale = (float)(1 / sqrt((double)c->index_n_heads * (double)c->index_dim));

	p->ops->matmul(p->dev, k, c->index_dim, p->u, c->hidden, &l->index_k, n, profile);
	p->ops->layernorm(p->dev, k, c->index_dim, k, c->index_dim, l->index_k_norm, l->index_k_norm_bias, n,
			  c->index_dim, c->index_norm_eps);
	keep_index_keys(p, layer, k);

	for (int64_t i = 0; i < n; i++)
		p->selections[i] = (struct selection){NULL, (int32_t)(p->first + i + 1)};
	from = from < 0 ? 0 : from;
	if (from < n) {
		q = arena_alloc(p->scratch, (size_t)(n * width), sizeof *q);
		w = arena_alloc(p->scratch, (size_t)(n * c->index_n_heads), sizeof *w);
		p->ops->matmul(p->dev, q, width, qr, c->q_lora, &l->index_q, n, profile);
		p->ops->rope(p->dev, q, width, c->index_n_heads, c->index_dim, c->rope_dim, p->cos, p->sin, n,
			     c->index_rope_interleaved);
		p->ops->matmul(p->dev, w, c->index_n_heads, p->u, c->hidden, &l->index_weights, n, COMPUTE_F32);
		for (int64_t i = 0; i < n * c->index_n_heads; i++)
			w[i] *= scale; /* both of the reference's factors, heads^-1/2 and dim^-1/2, in one rounding */
		choose(p, layer, q, w, from);
	}
	return p->tap && p->tap->selected ? tell(p, layer, err) : 0;
}
