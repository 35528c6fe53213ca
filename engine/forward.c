/*
 * The model, one layer after another, in the order of the paper: read this first.
 *
 *   h = embedding of the tokens
 *   for each layer:   h = h + attention(norm(h));   h = h + mlp(norm(h))
 *   logits = head(norm(h))
 *
 * Every op computes a row the same way however many rows there are (ops.h), and attention sees latents as stored, so
 * it does not matter in how many calls tokens arrive.
 */
#include "engine/internal.h"
#include "engine/numeric.h"

enum { HEAD_ROWS = 64 }; /* logits are the widest rows there are: this many at a time */

static int head(struct pass *p, float *last_logits, struct err *err)
{
	const struct model_config *c = p->c;
	bool all = p->tap && p->tap->logits;
	int64_t first = all ? 0 : p->n - 1;
	float *logits;

	if (!all && !last_logits)
		return 0;
	p->ops->rmsnorm(p->dev, p->u + first * c->hidden, c->hidden, p->h + first * c->hidden, c->hidden,
			p->m->final_norm, p->n - first, c->hidden, c->norm_eps);
	logits = arena_alloc(p->scratch, (size_t)c->vocab * (all && p->n > 1 ? HEAD_ROWS : 1), sizeof *logits);
	for (int64_t i = first; i < p->n; i += HEAD_ROWS) {
		int64_t n = p->n - i < HEAD_ROWS ? p->n - i : HEAD_ROWS;

		p->ops->matmul(p->dev, logits, c->vocab, p->u + i * c->hidden, c->hidden, &p->m->head, n,
			       p->s->engine->compute);
		for (int64_t k = 0; k < n; k++) {
			const float *row = logits + k * c->vocab;

			if (!num_all_finite(row, c->vocab))
				return err_set(err, ERR_FORMAT,
					       "position %lld: the logits are not finite; the weights are damaged, or "
					       "not those of this architecture",
					       (long long)(p->first + i + k));
			if (all && p->tap->logits(p->tap->ctx, p->first + i + k, row, err))
				return -1;
			if (last_logits && i + k == p->n - 1)
				memcpy(last_logits, row, (size_t)c->vocab * sizeof *row);
		}
	}
	return 0;
}

int forward(struct session *s, const int32_t *ids, int64_t n, float *last_logits, const struct session_tap *tap,
	    struct err *err)
{
	const struct model_config *c = &s->model->config;
	size_t rows = (size_t)n;
	struct pass p = {
		.s = s,
		.m = s->model,
		.c = c,
		.ops = s->engine->ops,
		.dev = &s->engine->device,
		.scratch = s->scratch,
		.tap = tap,
		.first = s->n_tokens,
		.n = n,
	};

	arena_reset(s->arena);
	p.h = arena_alloc(s->arena, rows * (size_t)c->hidden, sizeof *p.h);
	p.u = arena_alloc(s->arena, rows * (size_t)c->hidden, sizeof *p.u);
	p.cos = arena_alloc(s->arena, rows * (size_t)(c->rope_dim / 2), sizeof *p.cos);
	p.sin = arena_alloc(s->arena, rows * (size_t)(c->rope_dim / 2), sizeof *p.sin);
	p.selections = arena_alloc(s->arena, rows, sizeof *p.selections);
	p.sets = c->has_indexer ? arena_alloc(s->arena, rows * (size_t)c->index_topk, sizeof *p.sets) : NULL;
	for (int64_t i = 0; i < n; i++)
		p.selections[i] = (struct selection){NULL, (int32_t)(p.first + i + 1)};
	rope_cos_sin(s->inv_freq, c->rope_dim, p.first, n, p.cos, p.sin);

	p.ops->embed(p.dev, p.h, &p.m->embedding, ids, n);
	for (int32_t i = 0; i < c->n_layers; i++) {
		const struct layer *l = &p.m->layers[i];

		p.ops->rmsnorm(p.dev, p.u, c->hidden, p.h, c->hidden, l->input_norm, n, c->hidden, c->norm_eps);
		arena_reset(p.scratch);
		if (attention_forward(&p, i, err))
			return -1;
		p.ops->rmsnorm(p.dev, p.u, c->hidden, p.h, c->hidden, l->post_attention_norm, n, c->hidden,
			       c->norm_eps);
		arena_reset(p.scratch);
		mlp_forward(&p, i);
		if (device_check(p.dev, err))
			return -1;
	}
	arena_reset(p.scratch);
	return head(&p, last_logits, err);
}
