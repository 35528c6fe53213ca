/*
 * The MLP of a layer: one dense SwiGLU, or a router, the experts it chose, and the shared expert.
 *
 * Tokens are gathered by expert, so an expert's weights are read once however many tokens chose it. Experts run in
 * ascending id and add to the residual in that order, the shared expert last, whatever the order they might be ready
 * in: the sum a token sees does not depend on who else is in the call.
 */
#include "engine/internal.h"

/* Rows of gate and up held at a time. */
enum { TILE = 256 };

/* out [n, hidden] = down(silu(gate x) up x). */
static void swiglu_mlp(struct pass *p, const struct expert *e, float *out, const float *x, int64_t n, float *scratch)
{
	enum compute_profile profile = p->s->engine->compute;
	int64_t hidden = p->c->hidden, dim = e->gate.rows;

	for (int64_t i = 0; i < n; i += TILE) {
		int64_t rows = n - i < TILE ? n - i : TILE;
		float *gate = scratch, *up = scratch + rows * dim;

		p->ops->matmul(p->dev, gate, dim, x + i * hidden, hidden, &e->gate, rows, profile);
		p->ops->matmul(p->dev, up, dim, x + i * hidden, hidden, &e->up, rows, profile);
		p->ops->swiglu(p->dev, gate, up, rows, (int32_t)dim);
		p->ops->matmul(p->dev, out + i * hidden, hidden, gate, dim, &e->down, rows, profile);
	}
}

static float *mlp_scratch(struct pass *p, int32_t dim)
{
	return arena_alloc(p->scratch, 2 * (size_t)(p->n < TILE ? p->n : TILE) * (size_t)dim, sizeof(float));
}

/* Who chose which expert: expert e has tokens[start[e]] .. tokens[start[e + 1] - 1], ascending, with their weights. */
struct assignment {
	int32_t *start, *tokens;
	float *weights;
};

static struct assignment assign(struct pass *p, const int32_t *experts, const float *weights)
{
	int32_t n_experts = p->c->n_experts, k = p->c->experts_per_token;
	size_t n_choices = (size_t)p->n * (size_t)k;
	struct assignment a = {
		arena_alloc(p->scratch, (size_t)n_experts + 1, sizeof *a.start),
		arena_alloc(p->scratch, n_choices, sizeof *a.tokens),
		arena_alloc(p->scratch, n_choices, sizeof *a.weights),
	};
	int32_t *next = arena_alloc(p->scratch, (size_t)n_experts, sizeof *next);

	memset(a.start, 0, ((size_t)n_experts + 1) * sizeof *a.start);
	for (size_t i = 0; i < n_choices; i++)
		a.start[experts[i] + 1]++;
	for (int32_t e = 0; e < n_experts; e++) {
		a.start[e + 1] += a.start[e];
		next[e] = a.start[e];
	}
	for (size_t i = 0; i < n_choices; i++) {
		int32_t at = next[experts[i]]++;

		a.tokens[at] = (int32_t)(i / (size_t)k);
		a.weights[at] = weights[i];
	}
	return a;
}

static void experts_forward(struct pass *p, int32_t layer)
{
	const struct model_config *c = p->c;
	const struct layer *l = &p->m->layers[layer];
	size_t rows = (size_t)p->n, k = (size_t)c->experts_per_token;
	float *logits = arena_alloc(p->scratch, rows * (size_t)c->n_experts, sizeof *logits);
	float *weights = arena_alloc(p->scratch, rows * k, sizeof *weights);
	int32_t *experts = arena_alloc(p->scratch, rows * k, sizeof *experts);
	float *in = arena_alloc(p->scratch, rows * (size_t)c->hidden, sizeof *in);
	float *out = arena_alloc(p->scratch, rows * (size_t)c->hidden, sizeof *out);
	float *scratch = mlp_scratch(p, c->expert_dim);
	struct assignment a;

	p->ops->matmul(p->dev, logits, c->n_experts, p->u, c->hidden, &l->router, p->n, COMPUTE_F32);
	p->ops->router_topk(p->dev, experts, weights, logits, l->router_bias, p->n, c->n_experts,
			    c->experts_per_token, c->n_groups, c->topk_groups, c->normalize_topk, c->routed_scale);
	a = assign(p, experts, weights);
	for (int32_t e = 0; e < c->n_experts; e++) {
		int32_t first = a.start[e], n = a.start[e + 1] - first;

		if (!n)
			continue;
		p->ops->gather(p->dev, in, p->u, a.tokens + first, n, c->hidden);
		swiglu_mlp(p, &l->experts[e], out, in, n, scratch);
		p->ops->add_scaled(p->dev, p->h, out, a.tokens + first, a.weights + first, n, c->hidden);
	}
}

void mlp_forward(struct pass *p, int32_t layer)
{
	const struct model_config *c = p->c;
	const struct layer *l = &p->m->layers[layer];
	float *out;

	if (!c->layer_is_dense[layer])
		experts_forward(p, layer);
	if (!l->mlp.gate.data)
		return;
	out = arena_alloc(p->scratch, (size_t)p->n * (size_t)c->hidden, sizeof *out);
	swiglu_mlp(p, &l->mlp, out, p->u, p->n, mlp_scratch(p, l->mlp.gate.rows));
	p->ops->add_scaled(p->dev, p->h, out, NULL, NULL, p->n, c->hidden);
}
