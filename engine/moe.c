/*
 * The MLP of a layer: one dense SwiGLU, or a router, the experts it chose, and the shared expert.
 *
 * Tokens are gathered by expert, so an expert's weights are read once for all tokens of a chunk that chose it. Experts
 * run in ascending id and add to the residual in that order, the shared expert last, whatever the order they might be
 * ready in: the sum a token sees does not depend on who else is in the chunk.
 */
#include "engine/internal.h"
#include "engine/numeric.h"

void router_forward(struct pass *p, int32_t layer, int32_t *experts, float *weights)
{
	const struct model_config *c = p->c;
	const struct layer *l = &p->m->layers[layer];
	float *logits = arena_alloc(p->scratch, (size_t)p->n * (size_t)c->n_experts, sizeof *logits);

	p->ops->matmul(p->dev, logits, c->n_experts, p->u, c->hidden, &l->router, p->n, COMPUTE_F32);
	p->ops->router_topk(p->dev, experts, weights, logits, l->router_bias, p->n, c->n_experts,
			    c->experts_per_token, c->n_groups, c->topk_groups, c->normalize_topk, c->routed_scale);
}

void experts_assign(struct chunk *k)
{
	int32_t n_experts = k->s->model->config.n_experts, per_token = k->s->model->config.experts_per_token;
	int64_t n_choices = k->n * per_token;
	int32_t *next = k->start + 1; /* of expert e at next[e]: when all are placed it stands where e + 1 begins */

	memset(k->start, 0, ((size_t)n_experts + 2) * sizeof *k->start);
	for (int64_t i = 0; i < n_choices; i++)
		k->start[k->experts[i] + 2]++;
	for (int32_t e = 0; e < n_experts; e++)
		k->start[e + 2] += k->start[e + 1];
	for (int64_t i = 0; i < n_choices; i++) {
		int32_t at = next[k->experts[i]]++;

		k->tokens[at] = (int32_t)(i / per_token);
		k->token_weights[at] = k->weights[i];
	}
}

struct input_job {
	const struct pass *p;
	void *to;
	const void *from;
	const int32_t *rows;
};

static void round_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct input_job *j = arg;
	int64_t hidden = j->p->c->hidden;

	(void)thread;
	/* What is not finite stays so, and is found in the next layer's latents or in the logits. */
	j->p->ops->to_bf16((uint16_t *)j->to + first * hidden, (const float *)j->from + first * hidden,
			   (end - first) * hidden);
}

void mlp_input_keep(struct pass *p, void *to)
{
	struct input_job j = {p, to, p->u, NULL};

	if (p->s->engine->compute == COMPUTE_BF16)
		pool_run(p->dev->queue, round_rows, &j, p->n, p->c->hidden);
	else
		memcpy(to, p->u, (size_t)p->n * (size_t)p->c->hidden * sizeof *p->u);
}

static void widen_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct input_job *j = arg;
	int64_t hidden = j->p->c->hidden;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		const uint16_t *from = (const uint16_t *)j->from + (j->rows ? j->rows[i] : i) * hidden;
		float *to = (float *)j->to + i * hidden;

		for (int64_t d = 0; d < hidden; d++)
			to[d] = bf16_to_f32(from[d]);
	}
}

/* Rows of a chunk's u as ops read them. What was rounded to bf16 is rounded again by the products, to itself. */
static const float *input(struct pass *p, const void *u, const int32_t *rows, int64_t n)
{
	struct input_job j = {p, NULL, u, rows};
	float *x;

	if (p->s->engine->compute != COMPUTE_BF16 && !rows)
		return u;
	j.to = x = arena_alloc(p->scratch, (size_t)n * (size_t)p->c->hidden, sizeof *x);
	if (p->s->engine->compute == COMPUTE_BF16)
		pool_run(p->dev->queue, widen_rows, &j, n, p->c->hidden);
	else
		p->ops->gather(p->dev, x, u, rows, n, p->c->hidden);
	return x;
}

void mlp_forward(struct pass *p, const struct expert *e, float *h, const void *u, const int32_t *rows,
		 const float *weights, int64_t n)
{
	enum compute_profile profile = p->s->engine->compute;
	int32_t hidden = p->c->hidden, dim = e->gate.rows;
	const float *x = input(p, u, rows, n);
	float *gate = arena_alloc(p->scratch, (size_t)n * (size_t)dim, sizeof *gate);
	float *up = arena_alloc(p->scratch, (size_t)n * (size_t)dim, sizeof *up);
	float *out = arena_alloc(p->scratch, (size_t)n * (size_t)hidden, sizeof *out);

	p->ops->matmul(p->dev, gate, dim, x, hidden, &e->gate, n, profile);
	p->ops->matmul(p->dev, up, dim, x, hidden, &e->up, n, profile);
	p->ops->swiglu(p->dev, gate, up, n, dim);
	p->ops->matmul(p->dev, out, hidden, gate, dim, &e->down, n, profile);
	p->ops->add_scaled(p->dev, h, out, rows, weights, n, hidden);
}
