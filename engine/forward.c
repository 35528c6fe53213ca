/*
 * The model, one layer after another, in the order of the paper: read this first.
 *
 *   h = embedding of the tokens
 *   for each layer:   h = h + attention(norm(h));   h = h + mlp(norm(h))
 *   logits = head(norm(h))
 *
 * A chunk of tokens goes through layer 0, then through layer 1, and so on; through a layer it goes in tiles. A tile of
 * attention stores its latents and attends to what is there: the tokens before it have stored theirs. When all tokens
 * of the chunk have been through attention and router, each expert runs once, over all the tokens that chose it.
 *
 * Every op computes a row the same way however many rows there are (ops.h), and attention sees latents as stored, so
 * neither chunks nor tiles change a bit: an answer takes a chunk of one token at a time, a question one of all its
 * tokens, an ingest the largest that fit into memory (sweep.c).
 */
#include "engine/internal.h"

#include <stdlib.h>

#include "config/clock.h"
#include "engine/experts.h"
#include "engine/experts_device.h"
#include "engine/numeric.h"

enum {
	HEAD_ROWS = 64, /* logits are the widest rows there are: this many at a time */
	LEAST_TILE = 16,
	LONG_NS = 500000000, SHORT_NS = 100000000,
	STREAMED = 32,  /* tokens of a chunk beyond which it goes through most experts, and comes round to each last */
};

/*
 * The chunk's memory
 */

void chunk_bytes(const struct model_config *c, enum compute_profile compute, struct sweep_bytes *token,
		 size_t *fixed_bytes)
{
	size_t hidden = (size_t)c->hidden, per_token = c->n_experts ? (size_t)c->experts_per_token : 0;

	*token = (struct sweep_bytes){
		.residual = hidden * sizeof(float),
		.input = hidden * (compute == COMPUTE_BF16 ? sizeof(uint16_t) : sizeof(float)),
		.choices = sizeof(struct selection) + (c->has_indexer ? (size_t)c->index_topk * sizeof(int32_t) : 0),
		.router = 2 * per_token * (sizeof(int32_t) + sizeof(float)),
		.angles = 2 * (size_t)(c->rope_dim / 2) * sizeof(float),
	};
	*fixed_bytes = ((size_t)c->n_experts + 2) * sizeof(int32_t) + (size_t)CHUNK_ARRAYS * CHUNK_ALIGN;
}

/* The next array of the chunk's memory. */
static void *carve(uint8_t **at, int64_t n, size_t bytes)
{
	uint8_t *array = *at;

	*at += ((size_t)n * bytes + CHUNK_ALIGN - 1) / CHUNK_ALIGN * CHUNK_ALIGN;
	return array;
}

int chunk_begin(struct chunk *k, const struct chunk_part *parts, int32_t n_parts, int64_t tile,
		const struct session_tap *tap, struct err *err)
{
	struct session *s = parts[0].s;
	const struct model_config *c = &s->model->config;
	struct sweep_bytes token;
	size_t fixed;
	int64_t per_token = c->n_experts ? c->experts_per_token : 0, n;
	uint8_t *at;

	n = parts[n_parts - 1].row + parts[n_parts - 1].n;
	*k = (struct chunk){.s = s, .tap = tap, .parts = parts, .n_parts = n_parts, .n = n};
	for (int i = 0; i < N_PACES; i++)
		k->pace[i].rows = k->pace[i].most = tile && tile < TILE_ROWS ? tile : TILE_ROWS;
	chunk_bytes(c, s->engine->compute, &token, &fixed);
	k->memory = at = mem_try(1, (size_t)n * sweep_token_bytes(&token) + fixed, "tokens on their way through the "
				 "layers", err);
	if (!at)
		return -1;
	k->h = carve(&at, n, token.residual);
	k->u = carve(&at, n, token.input);
	k->cos = carve(&at, n, token.angles / 2);
	k->sin = carve(&at, n, token.angles / 2);
	k->selections = carve(&at, n, sizeof *k->selections);
	k->sets = c->has_indexer ? carve(&at, n, (size_t)c->index_topk * sizeof *k->sets) : NULL;
	k->experts = carve(&at, n * per_token, sizeof *k->experts);
	k->weights = carve(&at, n * per_token, sizeof *k->weights);
	k->tokens = carve(&at, n * per_token, sizeof *k->tokens);
	k->token_weights = carve(&at, n * per_token, sizeof *k->token_weights);
	k->start = carve(&at, c->n_experts + 2, sizeof *k->start);
	return 0;
}

void chunk_end(struct chunk *k)
{
	if (k->memory && k->s->model->experts) {
		experts_device_end(k->s->model->experts, k);
		experts_forget(k->s->model->experts);
	}
	free(k->memory);
	k->memory = NULL;
}

/*
 * Tiles
 */

/* Tokens row .. row + n - 1 of the chunk, of this part as far as positions and session matter. */
static struct pass tile_of(struct chunk *k, const struct chunk_part *part, int64_t row, int64_t n)
{
	const struct model_config *c = &k->s->model->config;
	int64_t half = c->rope_dim / 2;

	return (struct pass){
		.s = part->s,
		.m = k->s->model,
		.c = c,
		.ops = k->s->engine->ops,
		.dev = &k->s->engine->device,
		.scratch = k->s->scratch,
		.tap = k->tap,
		.first = part->first + row - part->row,
		.n = n,
		.h = k->h + row * c->hidden,
		.cos = k->cos + row * half,
		.sin = k->sin + row * half,
		.selections = k->selections + row,
		.chosen = k->chosen ? k->chosen + row : NULL,
		.sets = k->sets ? k->sets + row * c->index_topk : NULL,
		.records = k->records ? k->records + (size_t)row * k->record_bytes : NULL,
		.record_bytes = k->record_bytes,
		.index_keys = k->index_keys ? k->index_keys + (size_t)row * k->s->layout->index_key_bytes : NULL,
	};
}

/* What a token brings along into its first layer. */
static void enter(struct chunk *k, const struct chunk_part *part, struct pass *p)
{
	if (!k->first_layer && part->ids)
		p->ops->embed(p->dev, p->h, &p->m->embedding, part->ids + (p->first - part->first), p->n);
	rope_cos_sin(k->s->inv_freq, p->c->rope_dim, p->first, p->n, p->cos, p->sin);
	for (int64_t i = 0; i < p->n; i++)
		p->selections[i] = p->chosen ? p->chosen[i] : (struct selection){NULL, (int32_t)(p->first + i + 1)};
}

/* h += attention(norm(h)), then what the MLP needs: the router's choice, and its input. */
static int attention_tile(struct chunk *k, int64_t row, int64_t n, struct err *err)
{
	const struct chunk_part *part = &k->parts[k->at_part];
	struct pass p = tile_of(k, part, row, n);
	const struct model_config *c = p.c;
	const struct layer *l = &p.m->layers[k->layer];
	size_t value_bytes = k->s->engine->compute == COMPUTE_BF16 ? sizeof(uint16_t) : sizeof(float);

	arena_reset(k->s->arena);
	p.u = arena_alloc(k->s->arena, (size_t)(n * c->hidden), sizeof *p.u);
	if (k->layer == k->first_layer)
		enter(k, part, &p);
	p.ops->rmsnorm(p.dev, p.u, c->hidden, p.h, c->hidden, l->input_norm, n, c->hidden, c->norm_eps);
	arena_reset(p.scratch);
	if (attention_forward(&p, k->layer, err))
		return -1;
	p.ops->rmsnorm(p.dev, p.u, c->hidden, p.h, c->hidden, l->post_attention_norm, n, c->hidden, c->norm_eps);
	arena_reset(p.scratch);
	if (!c->layer_is_dense[k->layer] && router_forward(&p, k->layer, k->experts + row * c->experts_per_token,
							   k->weights + row * c->experts_per_token, err))
		return -1;
	mlp_input_keep(&p, (uint8_t *)k->u + (size_t)(row * c->hidden) * value_bytes);
	return 0;
}

/* With a tier: this expert and those that follow are wanted, in as many as half of the slots, so that reads go on while it
 * computes. The matrices are there until experts_done; between two tiles somebody else may have pushed them out. *on_device: a device
 * has it, or will have it soon, and is to compute it; what was not taken needs no experts_done. */
static int take_expert(struct chunk *k, int64_t row, bool *on_device, bool *taken, struct err *err)
{
	enum { WANTED = 64 };
	struct experts *tier = k->s->model->experts;
	int32_t ids[WANTED], n = 0, most = experts_slots(tier) / 2 < WANTED ? experts_slots(tier) / 2 : WANTED;

	ids[n++] = k->expert;
	*on_device = !experts_split(tier, k->layer, ids, 1);
	*taken = !*on_device;
	if (!row) {
		for (int32_t e = k->expert + 1; e < k->s->model->config.n_experts && n < most; e++)
			if (k->start[e + 1] > k->start[e])
				ids[n++] = e;
		n = experts_split(tier, k->layer, ids, n);
		experts_want(tier, k->layer, ids, n);
	}
	if (*on_device)
		return 0;
	if (experts_take_unproved(tier, k->layer, k->expert, err))
		return -1;
	*on_device = experts_have_device(tier) && experts_device_move(tier, k->layer, k->expert, k->start[k->expert + 1] -
								      k->start[k->expert] - row, 1);
	return 0;
}

/* The same on a device, while the next expert is moved there. */
static int expert_tile_there(struct chunk *k, int64_t at, int64_t n, struct err *err)
{
	struct pass p = tile_of(k, k->parts, 0, 0);
	struct experts *tier = p.m->experts;
	const struct device_work work = {k->expert, 0, n};
	int32_t next = k->expert + 1;
	const float *out;

	experts_device_begin(tier, k, k->layer, k->u, k->tokens + at, n, NULL, n, k->s->engine->compute);
	experts_device_compute(tier, k->layer, p.m->layers[k->layer].experts, &work, 1, NULL);
	while (next < p.c->n_experts && k->start[next + 1] == k->start[next])
		next++;
	if (next < p.c->n_experts)
		experts_device_move_next(tier, k->layer, next, k->start[next + 1] - k->start[next]);
	out = experts_device_collect(tier, err);
	if (!out)
		return -1;
	p.ops->add_scaled(p.dev, k->h, out, k->tokens + at, k->token_weights + at, n, p.c->hidden);
	return 0;
}

/* And here, where what a read brought is added when it has turned out to be right. */
static int expert_tile_here(struct chunk *k, int64_t at, int64_t n, struct err *err)
{
	struct pass p = tile_of(k, k->parts, 0, 0);
	struct experts *tier = p.m->experts;
	bool again = true;
	float *out = NULL;

	while (again) {
		arena_reset(p.scratch);
		out = mlp_whole(&p, &p.m->layers[k->layer].experts[k->expert], k->u, k->tokens + at, n);
		again = false;
		if (tier && experts_prove(tier, k->layer, k->expert, &again, err))
			return -1;
	}
	p.ops->add_scaled(p.dev, k->h, out, k->tokens + at, k->token_weights + at, n, p.c->hidden);
	return 0;
}

/* h += weight x expert(u) for some of the tokens that chose the expert. */
static int expert_tile(struct chunk *k, int64_t row, int64_t n, struct err *err)
{
	struct experts *tier = k->s->model->experts;
	int64_t at = k->start[k->expert] + row;
	bool on_device = false, taken = false;
	int rc;

	if (tier && take_expert(k, row, &on_device, &taken, err))
		return -1;
	rc = on_device ? expert_tile_there(k, at, n, err) : expert_tile_here(k, at, n, err);
	if (taken && !rc)
		experts_done(tier, k->layer, k->expert, k->n > STREAMED && at + n == k->start[k->expert + 1]);
	return rc;
}

/* An expert is taken up once for all of its tokens, in however many tiles they come. */
static void count_expert(struct chunk *k, int64_t n, bool first)
{
	int64_t at = (int64_t)k->layer * k->s->model->config.n_experts + k->expert;

	if (!k->expert_reads)
		return;
	k->expert_reads[at] += first;
	k->expert_tokens[at] += n;
}

/* Of few tokens: these are computed on the device from now on. */
static void compute_few_there(struct chunk *k, const int32_t *ids, int32_t n)
{
	struct experts *tier = k->s->model->experts;
	struct device_work *work = k->on_device + k->n_on_device;

	if (!experts_device_begun(tier, k, k->layer))
		experts_device_begin(tier, k, k->layer, k->u, NULL, k->n, k->tokens, k->n * k->s->model->config.experts_per_token,
				     k->s->engine->compute);
	for (int32_t i = 0; i < n; i++) {
		int32_t at = k->start[ids[i]], n_tokens = k->start[ids[i] + 1] - at;

		work[i] = (struct device_work){ids[i], at, n_tokens};
		k->expert = ids[i];
		count_expert(k, n_tokens, true);
	}
	experts_device_compute(tier, k->layer, k->s->model->layers[k->layer].experts, work, n, k->few_out);
	k->n_on_device += n;
}

/* What the device has of the experts that few tokens chose. */
static void begin_few_there(struct chunk *k)
{
	int32_t n = k->n_few;

	k->on_device = arena_alloc(k->s->arena, (size_t)n, sizeof *k->on_device);
	k->n_few = experts_split(k->s->model->experts, k->layer, k->few, n);
	if (k->n_few < n)
		compute_few_there(k, k->few + k->n_few, n - k->n_few);
}

static bool is_there(const struct chunk *k, int32_t expert)
{
	for (int32_t i = 0; i < k->n_on_device; i++)
		if (k->on_device[i].expert == expert)
			return true;
	return false;
}

/* Who waits for experts waits least when those that are there are computed first. What each gives is kept, and added in the
 * order of ids when all are done: the sums are those of PART_EXPERTS. */
static void begin_few(struct chunk *k)
{
	const struct model_config *c = &k->s->model->config;

	k->few = arena_alloc(k->s->arena, (size_t)(k->n * c->experts_per_token), sizeof *k->few);
	k->few_out = arena_alloc(k->s->arena, (size_t)(k->n * c->experts_per_token) * (size_t)c->hidden, sizeof *k->few_out);
	k->half_gate = arena_alloc(k->s->arena, (size_t)k->n * (size_t)c->expert_dim, sizeof *k->half_gate);
	k->half_reading = 0;
	k->n_few = 0;
	for (int32_t e = 0; e < c->n_experts; e++)
		if (k->start[e + 1] > k->start[e])
			k->few[k->n_few++] = e;
	k->n_on_device = 0;
	if (experts_have_device(k->s->model->experts))
		begin_few_there(k);
}

static void add_few(struct chunk *k)
{
	struct pass p = tile_of(k, k->parts, 0, 0);

	for (int32_t e = 0; e < p.c->n_experts; e++) {
		int32_t at = k->start[e], n = k->start[e + 1] - at;

		if (n)
			p.ops->add_scaled(p.dev, k->h, k->few_out + (int64_t)at * p.c->hidden, k->tokens + at, k->token_weights + at, n,
					  p.c->hidden);
	}
}

/* Of the last token, with what the experts of the layer have given so far: a sum in another order than the one that counts. */
static const float *residual_so_far(void *ctx)
{
	struct chunk *k = ctx;
	struct pass p = tile_of(k, k->parts, 0, 0);
	int64_t hidden = p.c->hidden;
	const float *last = k->h + (k->n - 1) * hidden;
	float *h;

	if (k->part != PART_FEW)
		return last;
	h = arena_alloc(p.scratch, (size_t)hidden, sizeof *h);
	memcpy(h, last, (size_t)hidden * sizeof *h);
	for (int64_t i = 0; i < k->row; i++)
		for (int32_t at = k->start[k->few[i]]; at < k->start[k->few[i] + 1]; at++)
			if (k->tokens[at] == k->n - 1 && !is_there(k, k->few[i]))
				p.ops->add_scaled(p.dev, h, k->few_out + at * hidden, NULL, k->token_weights + at, 1, (int32_t)hidden);
	if (k->shared_out)
		p.ops->add_scaled(p.dev, h, k->shared_out + (k->n - 1) * hidden, NULL, NULL, 1, (int32_t)hidden);
	return h;
}

/* What the layers that come are going to choose, while the disk has nothing else to do. */
static void guess_ahead(struct chunk *k, bool waits)
{
	struct pass p = tile_of(k, k->parts, 0, 0);
	bool whole = k->part == PART_ATTENTION;

	if (!p.m->experts || k->n > CHUNK_FEW || k->take_up)
		return;
	arena_reset(p.scratch);
	look_ahead(&p, whole ? k->layer : k->layer + 1, whole, waits, residual_so_far, k);
}

/* Gate and up of an expert that is chosen. */
static void compute_half(struct chunk *k, int32_t expert)
{
	struct pass p = tile_of(k, k->parts, 0, 0);
	int32_t at = k->start[expert];

	k->half = expert;
	k->half_reading = experts_reading(p.m->experts, k->layer, expert);
	arena_reset(p.scratch);
	mlp_half(&p, &p.m->layers[k->layer].experts[expert], k->half_gate, k->u, k->tokens + at, k->start[expert + 1] - at);
}

static void compute_shared(struct chunk *k)
{
	struct pass p = tile_of(k, k->parts, 0, 0);
	const struct expert *e = &p.m->layers[k->layer].mlp;
	float *gate;

	arena_reset(p.scratch);
	gate = arena_alloc(p.scratch, (size_t)k->n * (size_t)e->gate.rows, sizeof *gate);
	k->shared_out = arena_alloc(k->s->arena, (size_t)(k->n * p.c->hidden), sizeof *k->shared_out);
	mlp_half(&p, e, gate, k->u, NULL, k->n);
	mlp_down(&p, e, k->shared_out, gate, k->n);
}

/* Compute while none of them is whole, with what there is. Returns which one is to be taken. */
static int32_t wait_for_few(struct chunk *k, const int32_t *left, int32_t n_left)
{
	const struct model *m = k->s->model;
	int32_t which;

	for (;;) {
		bool shared_waits = m->layers[k->layer].mlp.gate.data && !k->shared_out;
		/* One half at a time: reads end in about the order in which they begin. */
		int flags = (shared_waits ? 0 : EXPERTS_WAIT) | (k->half_reading ? 0 : EXPERTS_HALVES);

		guess_ahead(k, flags & EXPERTS_WAIT);
		switch (experts_come(m->experts, k->layer, left, n_left, flags, &which)) {
		case EXPERTS_WHOLE:
			return which;
		case EXPERTS_HALF:
			compute_half(k, left[which]);
			break;
		case EXPERTS_NONE:
			compute_shared(k);
			break;
		}
	}
}

/* What the expert under way gives, all of it or down alone. */
static void compute_taken(struct chunk *k, int64_t at, int64_t n)
{
	struct pass p = tile_of(k, k->parts, 0, 0);
	const struct expert *e = &p.m->layers[k->layer].experts[k->expert];
	bool is_half = k->half_reading && k->half == k->expert;
	float *gate = k->half_gate;

	arena_reset(p.scratch);
	if (!is_half || k->half_reading != experts_reading(p.m->experts, k->layer, k->expert)) {
		gate = arena_alloc(p.scratch, (size_t)n * (size_t)e->gate.rows, sizeof *gate);
		mlp_half(&p, e, gate, k->u, k->tokens + at, n);
	}
	mlp_down(&p, e, k->few_out + at * p.c->hidden, gate, n);
	if (is_half)
		k->half_reading = 0;
}

/* What the device gives, when all is done that the processor has to do meanwhile. */
static int collect_few(struct chunk *k, struct err *err)
{
	if (k->s->model->layers[k->layer].mlp.gate.data && !k->shared_out)
		compute_shared(k);
	return experts_device_collect(k->s->model->experts, err) ? 0 : -1;
}

/* One of those that the device does not have, whichever is there. */
static int compute_one(struct chunk *k, struct err *err)
{
	struct experts *tier = k->s->model->experts;
	int32_t *left = k->few + k->row, n_left = k->n_few - (int32_t)k->row, which = wait_for_few(k, left, n_left);
	bool again = true;
	int64_t at, n;

	k->expert = left[which];
	if (experts_take_unproved(tier, k->layer, k->expert, err))
		return -1;
	left[which] = left[0];
	left[0] = k->expert;
	at = k->start[k->expert];
	n = k->start[k->expert + 1] - at;
	if (experts_have_device(tier) && experts_device_move(tier, k->layer, k->expert, n, n_left)) {
		compute_few_there(k, left, 1);
	} else {
		count_expert(k, n, true);
		while (again) {
			compute_taken(k, at, n);
			if (experts_prove(tier, k->layer, k->expert, &again, err))
				return -1;
		}
	}
	experts_done(tier, k->layer, k->expert, false);
	return 0;
}

/* Experts of few tokens: one, and what the device gave with the last. */
static int few_tile(struct chunk *k, struct err *err)
{
	if (k->row < k->n_few && compute_one(k, err))
		return -1;
	if (k->row + 1 < k->n_few)
		return 0;
	if (k->n_on_device && collect_few(k, err))
		return -1;
	add_few(k);
	return 0;
}

/* h += mlp(u), dense, or the shared expert. */
static void mlp_tile(struct chunk *k, int64_t row, int64_t n)
{
	struct pass p = tile_of(k, k->parts, row, n);
	size_t value_bytes = k->s->engine->compute == COMPUTE_BF16 ? sizeof(uint16_t) : sizeof(float);

	if (k->shared_out) {
		p.ops->add_scaled(p.dev, p.h, k->shared_out + row * p.c->hidden, NULL, NULL, n, p.c->hidden);
		return;
	}
	arena_reset(p.scratch);
	mlp_forward(&p, &p.m->layers[k->layer].mlp, p.h,
		    (const uint8_t *)k->u + (size_t)(row * p.c->hidden) * value_bytes, NULL, NULL, n);
}

/*
 * The way through
 */

/* Rows of the part under way. */
static int64_t part_rows(const struct chunk *k)
{
	switch (k->part) {
	case PART_EXPERTS:
		return k->start[k->expert + 1] - k->start[k->expert];
	case PART_FEW:
		return k->n_few ? k->n_few : 1; /* the device has them all */
	case PART_MLP:
		return k->s->model->layers[k->layer].mlp.gate.data ? k->n : 0; /* no shared expert, perhaps */
	default:
		return k->n;
	}
}

/* Go to the next part that has rows; 0 behind the last layer. */
static int next_part(struct chunk *k)
{
	const struct model_config *c = &k->s->model->config;

	do {
		k->row = 0;
		k->at_part = 0;
		if (k->part == PART_ATTENTION && !c->layer_is_dense[k->layer]) {
			experts_assign(k);
			k->shared_out = NULL;
			k->part = k->s->model->experts && k->n <= CHUNK_FEW && !k->take_up ? PART_FEW : PART_EXPERTS;
			k->expert = 0;
			if (k->part == PART_FEW)
				begin_few(k);
		} else if (k->part == PART_EXPERTS && k->expert + 1 < c->n_experts) {
			k->expert++;
		} else if (k->part != PART_MLP) {
			k->part = PART_MLP;
		} else {
			k->part = PART_ATTENTION;
			if (++k->layer == c->n_layers)
				return 0;
		}
	} while (!part_rows(k));
	return 1;
}

static struct pace *pace_of(struct chunk *k)
{
	if (k->part != PART_ATTENTION)
		return &k->pace[PACE_MLP];
	return &k->pace[k->s->model->config.layer_is_full[k->layer] ? PACE_FULL : PACE_SHARED];
}

void pace_learn(struct pace *p, int64_t rows, int64_t ns)
{
	if (ns > LONG_NS && rows > LEAST_TILE)
		p->rows = rows / 2 < LEAST_TILE ? LEAST_TILE : rows / 2;
	else if (ns < SHORT_NS && rows == p->rows)
		p->rows = 2 * p->rows < p->most ? 2 * p->rows : p->most;
}

int chunk_step(struct chunk *k, struct err *err)
{
	struct pace *pace = pace_of(k);
	int64_t left = part_rows(k) - k->row, most = k->part == PART_FEW ? 1 : pace->rows, n = left < most ? left : most;
	const struct model_config *c = &k->s->model->config;
	int64_t from = clock_now_ns();
	int rc = 0;

	switch (k->part) {
	case PART_ATTENTION:
		while (k->row >= k->parts[k->at_part].row + k->parts[k->at_part].n)
			k->at_part++;
		if (n > k->parts[k->at_part].row + k->parts[k->at_part].n - k->row)
			n = k->parts[k->at_part].row + k->parts[k->at_part].n - k->row;
		if (!k->row && k->layer > k->first_layer)
			guess_ahead(k, false);
		rc = attention_tile(k, k->row, n, err);
		break;
	case PART_EXPERTS:
		count_expert(k, n, !k->row);
		if (k->take_up && !k->row && k->take_up(k->take_up_ctx, k->layer, k->expert, err))
			return -1;
		rc = expert_tile(k, k->row, n, err);
		break;
	case PART_FEW:
		rc = few_tile(k, err);
		break;
	case PART_MLP:
		if (!k->row && c->layer_is_dense[k->layer])
			guess_ahead(k, false);
		mlp_tile(k, k->row, n);
		break;
	}
	if (rc || device_check(&k->s->engine->device, err)) /* here, so that it cannot be taken for somebody else's */
		return -1;
	if (k->part != PART_FEW) /* whose time is the disk's */
		pace_learn(pace, n, clock_now_ns() - from);
	k->row += n;
	return n < left ? 1 : next_part(k);
}

static int show_outputs(struct pass *p, int64_t first, int64_t n, struct err *err)
{
	for (int64_t r = 0; r < n; r++) {
		const float *row = p->u + r * p->c->hidden;

		if (!num_all_finite(row, p->c->hidden))
			return err_set(err, ERR_FORMAT, "position %lld: the output of the last layer is not finite; the weights are "
				       "damaged, or not those of this architecture", (long long)(first + r));
		if (p->tap->output(p->tap->ctx, first + r, row, err))
			return -1;
	}
	return 0;
}

int chunk_logits(struct chunk *k, const struct chunk_part *part, float *last_logits, struct err *err)
{
	const struct model_config *c = &k->s->model->config;
	bool outputs = k->tap && k->tap->output, all = k->tap && k->tap->logits, each = outputs || all;
	struct pass p = tile_of(k, part, part->row, part->n);
	float *logits;

	if (!each && !last_logits)
		return 0;
	arena_reset(k->s->arena);
	p.u = arena_alloc(k->s->arena, (size_t)c->hidden * (each && part->n > 1 ? HEAD_ROWS : 1), sizeof *p.u);
	arena_reset(p.scratch);
	logits = arena_alloc(p.scratch, (size_t)c->vocab * (each && part->n > 1 ? HEAD_ROWS : 1), sizeof *logits);
	for (int64_t i = each ? 0 : part->n - 1; i < part->n; i += HEAD_ROWS) {
		int64_t n = part->n - i < HEAD_ROWS ? part->n - i : HEAD_ROWS;

		p.ops->rmsnorm(p.dev, p.u, c->hidden, p.h + i * c->hidden, c->hidden, p.m->final_norm, n, c->hidden,
			       c->norm_eps);
		if (outputs && show_outputs(&p, p.first + i, n, err))
			return -1;
		if (!all && !(last_logits && i + n == part->n))
			continue;
		p.ops->matmul(p.dev, logits, c->vocab, p.u, c->hidden, &p.m->head, n, k->s->engine->compute);
		for (int64_t r = 0; r < n; r++) {
			const float *row = logits + r * c->vocab;

			if (!num_all_finite(row, c->vocab))
				return err_set(err, ERR_FORMAT,
					       "position %lld: the logits are not finite; the weights are damaged, or "
					       "not those of this architecture",
					       (long long)(p.first + i + r));
			if (all && k->tap->logits(k->tap->ctx, p.first + i + r, row, err))
				return -1;
			if (last_logits && i + r == part->n - 1)
				memcpy(last_logits, row, (size_t)c->vocab * sizeof *row);
		}
	}
	return 0;
}

int forward(struct session *s, const int32_t *ids, int64_t n, float *last_logits, const struct session_tap *tap,
	    struct err *err)
{
	const struct chunk_part part = {s, ids, s->n_tokens, 0, n};
	struct chunk k;
	int more;

	if (chunk_begin(&k, &part, 1, 0, tap, err))
		return -1;
	do
		more = chunk_step(&k, err);
	while (more > 0);
	if (!more)
		more = chunk_logits(&k, &part, last_logits, err);
	chunk_end(&k);
	return more;
}
