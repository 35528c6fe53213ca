/*
 * The MLP of a layer: one dense SwiGLU, or a router, the experts it chose, and the shared expert.
 *
 * Tokens are gathered by expert, so an expert's weights are read once for all tokens of a chunk that chose it. Experts
 * run in ascending id and add to the residual in that order, the shared expert last, whatever the order they might be
 * ready in: the sum a token sees does not depend on who else is in the chunk.
 */
#include "engine/internal.h"

#include <math.h>
#include <stdlib.h>

#include "engine/experts.h"
#include "engine/experts_device.h"
#include "engine/numeric.h"

static int by_id(const void *a, const void *b)
{
	int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

	return x < y ? -1 : x > y;
}

/* What a router thinks of each expert, for the tier: what it chooses by. */
static void scores(const struct layer *l, float *out, const float *logits, int32_t n)
{
	for (int32_t e = 0; e < n; e++)
		out[e] = 1 / (1 + expf(-logits[e])) + l->router_bias[e];
}

/* A layer's router on the residual of a token as it is now: most of what it will choose. Best guess first. */
static void guess(struct pass *p, const float *h, int32_t layer, enum ahead_kind kind)
{
	const struct model_config *c = p->c;
	const struct layer *l = &p->m->layers[layer];
	float *u = arena_alloc(p->scratch, (size_t)c->hidden, sizeof *u);
	float *logits = arena_alloc(p->scratch, (size_t)c->n_experts, sizeof *logits);
	int32_t *ids = arena_alloc(p->scratch, (size_t)c->experts_per_token, sizeof *ids);

	p->ops->rmsnorm(p->dev, u, c->hidden, h, c->hidden, l->post_attention_norm, 1, c->hidden, c->norm_eps);
	p->ops->matmul(p->dev, logits, c->n_experts, u, c->hidden, &l->router, 1, COMPUTE_F32);
	p->ops->router_topk(p->dev, ids, NULL, logits, l->router_bias, 1, c->n_experts, c->experts_per_token, c->n_groups,
			    c->topk_groups, c->normalize_topk, c->routed_scale);
	experts_ahead(p->m->experts, layer, kind, ids, c->experts_per_token);
}

void look_ahead(struct pass *p, int32_t layer, bool whole, bool waits,
		const float *(*residual)(void *ctx), void *ctx)
{
	const struct model_config *c = p->c;
	const float *h = NULL;
	bool any = false;

	for (int kind = AHEAD_NEXT; layer < c->n_layers && kind < N_AHEAD_KINDS; layer++) {
		enum ahead_kind k = kind == AHEAD_NEXT && whole ? AHEAD_WHOLE : (enum ahead_kind)kind;

		whole = false;
		if (c->layer_is_dense[layer])
			continue;
		any = true;
		if (experts_ask(p->m->experts, layer, k, waits)) {
			h = h ? h : residual(ctx);
			guess(p, h, layer, k);
		}
		kind++;
	}
	if (!any)
		experts_ask_none(p->m->experts);
}

/* A few tokens' choice, to the tier of experts: read what is not there, and learn. None of it changes a number. */
static void tell_experts(struct pass *p, int32_t layer, const int32_t *experts, const float *logits)
{
	const struct model_config *c = p->c;
	int64_t n = p->n * c->experts_per_token;
	int32_t *ids = arena_alloc(p->scratch, (size_t)n, sizeof *ids);
	float *score = arena_alloc(p->scratch, (size_t)c->n_experts, sizeof *score);

	for (int64_t i = 0; i < p->n; i++) {
		scores(&p->m->layers[layer], score, logits + i * c->n_experts, c->n_experts);
		experts_observe(p->m->experts, layer, score, experts + i * c->experts_per_token);
	}
	memcpy(ids, experts, (size_t)n * sizeof *ids);
	qsort(ids, (size_t)n, sizeof *ids, by_id);
	experts_spoken(p->m->experts, layer, ids, (int32_t)n);
	n = experts_split(p->m->experts, layer, ids, (int32_t)n);
	experts_want(p->m->experts, layer, ids, (int32_t)n);
}

static int show_choices(struct pass *p, int32_t layer, const int32_t *experts, const float *logits, struct err *err)
{
	const struct model_config *c = p->c;
	float *score = arena_alloc(p->scratch, (size_t)c->n_experts, sizeof *score);

	for (int64_t i = 0; i < p->n; i++) {
		scores(&p->m->layers[layer], score, logits + i * c->n_experts, c->n_experts);
		if (p->tap->router(p->tap->ctx, layer, p->first + i, score, experts + i * c->experts_per_token, err))
			return -1;
	}
	return 0;
}

int router_forward(struct pass *p, int32_t layer, int32_t *experts, float *weights, struct err *err)
{
	const struct model_config *c = p->c;
	const struct layer *l = &p->m->layers[layer];
	float *logits = arena_alloc(p->scratch, (size_t)p->n * (size_t)c->n_experts, sizeof *logits);

	p->ops->matmul(p->dev, logits, c->n_experts, p->u, c->hidden, &l->router, p->n, COMPUTE_F32);
	p->ops->router_topk(p->dev, experts, weights, logits, l->router_bias, p->n, c->n_experts,
			    c->experts_per_token, c->n_groups, c->topk_groups, c->normalize_topk, c->routed_scale);
	if (p->m->experts && p->n <= CHUNK_FEW)
		tell_experts(p, layer, experts, logits);
	return p->tap && p->tap->router ? show_choices(p, layer, experts, logits, err) : 0;
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

/* Experts are read while others are computed: the disk shall not wait until a product is done. */
static void let_reads_go_on(const struct pass *p)
{
	if (p->m->experts)
		experts_go_on(p->m->experts);
}

void mlp_half(struct pass *p, const struct expert *e, float *gate, const void *u, const int32_t *rows, int64_t n)
{
	enum compute_profile profile = p->s->engine->compute;
	int32_t hidden = p->c->hidden, dim = e->gate.rows;
	const float *x = input(p, u, rows, n);
	float *up = arena_alloc(p->scratch, (size_t)n * (size_t)dim, sizeof *up);

	p->ops->matmul(p->dev, gate, dim, x, hidden, &e->gate, n, profile);
	let_reads_go_on(p);
	p->ops->matmul(p->dev, up, dim, x, hidden, &e->up, n, profile);
	let_reads_go_on(p);
	p->ops->swiglu(p->dev, gate, up, n, dim);
}

void mlp_down(struct pass *p, const struct expert *e, float *out, const float *gate, int64_t n)
{
	p->ops->matmul(p->dev, out, p->c->hidden, gate, e->gate.rows, &e->down, n, p->s->engine->compute);
	let_reads_go_on(p);
}

float *mlp_whole(struct pass *p, const struct expert *e, const void *u, const int32_t *rows, int64_t n)
{
	float *out = arena_alloc(p->scratch, (size_t)n * (size_t)p->c->hidden, sizeof *out);
	float *gate = arena_alloc(p->scratch, (size_t)n * (size_t)e->gate.rows, sizeof *gate);

	mlp_half(p, e, gate, u, rows, n);
	mlp_down(p, e, out, gate, n);
	return out;
}

void mlp_forward(struct pass *p, const struct expert *e, float *h, const void *u, const int32_t *rows,
		 const float *weights, int64_t n)
{
	p->ops->add_scaled(p->dev, h, mlp_whole(p, e, u, rows, n), rows, weights, n, p->c->hidden);
}
