/*
 * Multi-head latent attention, absorbed: the cache holds one latent per token for all heads; queries are carried into
 * the latent space (UK), attend there, and the mixture is carried out of it again (UV).
 */
#include "engine/gather.h"

enum { TILE = 64 }; /* tokens whose heads are in the latent space at a time: the widest rows of all */

/* Queries of the pass: [n, n_heads, nope_dim + rope_dim], not yet rotated. qr receives what the indexer reads. */
static float *queries(struct pass *p, const struct layer *l, float **qr)
{
	const struct model_config *c = p->c;
	enum compute_profile profile = p->s->engine->compute;
	int64_t width = (int64_t)c->n_heads * (c->nope_dim + c->rope_dim);
	float *q = arena_alloc(p->scratch, (size_t)(p->n * width), sizeof *q);

	*qr = NULL;
	if (!c->q_lora) {
		p->ops->matmul(p->dev, q, width, p->u, c->hidden, &l->q_b, p->n, profile);
		return q;
	}
	*qr = arena_alloc(p->scratch, (size_t)(p->n * c->q_lora), sizeof **qr);
	p->ops->matmul(p->dev, *qr, c->q_lora, p->u, c->hidden, &l->q_a, p->n, profile);
	p->ops->rmsnorm(p->dev, *qr, c->q_lora, *qr, c->q_lora, l->q_a_norm, p->n, c->q_lora, c->mla_norm_eps);
	p->ops->matmul(p->dev, q, width, *qr, c->q_lora, &l->q_b, p->n, profile);
	return q;
}

/* Latents of the pass's own tokens, into the session. */
static void latents(struct pass *p, int32_t layer)
{
	const struct model_config *c = p->c;
	const struct layer *l = &p->m->layers[layer];
	int64_t width = c->kv_lora + c->rope_dim;
	float *kv = arena_alloc(p->scratch, (size_t)(p->n * width), sizeof *kv);

	p->ops->matmul(p->dev, kv, width, p->u, c->hidden, &l->kv_a, p->n, p->s->engine->compute);
	p->ops->rmsnorm(p->dev, kv, width, kv, width, l->kv_a_norm, p->n, c->kv_lora, c->mla_norm_eps);
	keep_latents(p, layer, kv);
}

/* Tokens first .. first + n - 1 of the pass: h += o(attention). rows_of [n]: the rows that each attends to. */
static void attend_tile(struct pass *p, int32_t layer, float *q, const struct selection *rows_of, int64_t first, int64_t n,
			float *scratch)
{
	const struct model_config *c = p->c;
	const struct layer *l = &p->m->layers[layer];
	enum compute_profile profile = p->s->engine->compute;
	int64_t q_head = c->nope_dim + c->rope_dim, heads = c->n_heads, latent = c->kv_lora + c->rope_dim;
	struct latent_rows rows = {p->s->rows[layer], latent, c->kv_lora, c->rope_dim};
	float *absorbed = scratch, *mixed = absorbed + n * heads * latent;
	float *values = mixed + n * heads * c->kv_lora, *out = values + n * heads * c->v_dim;

	q += first * heads * q_head;
	p->ops->rope(p->dev, q + c->nope_dim, heads * q_head, c->n_heads, q_head, c->rope_dim,
		     p->cos + first * (c->rope_dim / 2), p->sin + first * (c->rope_dim / 2), n, c->rope_interleaved);
	p->ops->absorb_query(p->dev, absorbed, latent, q, q_head, &l->kv_b, c->n_heads, c->nope_dim, c->v_dim, n);
	for (int64_t i = 0; i < n * heads; i++)
		memcpy(absorbed + i * latent + c->kv_lora, q + i * q_head + c->nope_dim,
		       (size_t)c->rope_dim * sizeof *q);
	p->ops->attend(p->dev, mixed, absorbed, &rows, rows_of, c->n_heads, c->attention_scale, n, profile);
	p->ops->expand_values(p->dev, values, mixed, &l->kv_b, c->n_heads, c->nope_dim, c->v_dim, n, profile);
	p->ops->matmul(p->dev, out, c->hidden, values, heads * c->v_dim, &l->o, n, profile);
	p->ops->add_scaled(p->dev, p->h + first * c->hidden, out, NULL, NULL, n, c->hidden);
}

int attention_forward(struct pass *p, int32_t layer, struct err *err)
{
	const struct model_config *c = p->c;
	size_t width = (size_t)c->n_heads * (size_t)(2 * c->kv_lora + c->rope_dim + c->v_dim) + (size_t)c->hidden;
	int64_t tile = p->n < TILE ? p->n : TILE;
	float *qr, *q = queries(p, &p->m->layers[layer], &qr), *scratch;

	latents(p, layer);
	if (c->has_indexer && c->layer_is_full[layer] && !p->chosen && indexer_select(p, layer, qr, err))
		return -1;
	if (device_check(p->dev, err)) /* before anything attends to what is not finite */
		return -1;
	scratch = arena_alloc(p->scratch, (size_t)tile * width, sizeof *scratch);
	for (int64_t i = 0, n; i < p->n; i += n) {
		const struct selection *rows_of = p->selections + i;

		n = p->n - i;
		if (p->s->n_slots && gather_rows(p, layer, i, &n, &rows_of, err))
			return -1;
		for (int64_t k = 0; k < n; k += tile)
			attend_tile(p, layer, q, rows_of + k, i + k, n - k < tile ? n - k : tile, scratch);
	}
	return 0;
}
