#include "tests/support/engine_tier.h"

#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/experts.h"
#include "engine/internal.h"
#include "engine/synth.h"
#include "tests/support/forced_routers.h"
#include "tests/support/measure.h"
#include "tests/support/slow_io.h"
#include "tests/support/temp_dir.h"

enum { DENSE = 1 };

struct engine_tier {
	char *base, *dir;
	struct engine *e;
	struct ops ops;
	double expert_bytes; /* that are read of one, the mean */
};

/* What products are of, and how long they take. An op has no state of its own. */
static struct {
	const struct ops *ops;
	const struct model *m;
	struct slow_io *drive; /* NULL: no time passes */
	double s_per_byte;
} computing;

/* Bytes of a layer of GLM-5.2 in fp8, whose router is in bf16. */
static double attention_bytes(void)
{
	const struct synth_options *o = &synth_glm52;
	double heads = o->n_heads, hidden = o->hidden;

	return o->q_lora * (hidden + heads * (o->nope_dim + o->rope_dim)) + (o->kv_lora + o->rope_dim) * hidden +
	       heads * ((o->nope_dim + o->v_dim) * o->kv_lora + o->v_dim * hidden);
}

static double router_bytes(void)
{
	return 2.0 * synth_glm52.n_experts * synth_glm52.hidden;
}

static double expert_bytes(void)
{
	return 3.0 * synth_glm52.hidden * synth_glm52.expert_dim;
}

static bool is_of(const struct expert *e, const struct weight *w)
{
	return w == &e->gate || w == &e->up || w == &e->down;
}

static double bytes_of(const struct weight *w)
{
	const struct model_config *c = &computing.m->config;

	for (int32_t l = DENSE; l < c->n_layers; l++) {
		const struct layer *layer = &computing.m->layers[l];
		const void *at = w, *first = layer->experts, *end = layer->experts + c->n_experts;

		if (is_of(&layer->mlp, w) || (at >= first && at < end))
			return expert_bytes() / 3;
		if (w == &layer->router)
			return router_bytes();
		if (w == &layer->o)
			return attention_bytes(); /* all of it */
	}
	return 0;
}

static void matmul(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride, const struct weight *w, int64_t n,
		   enum compute_profile profile)
{
	if (computing.drive)
		slow_io_pass(computing.drive, bytes_of(w) * computing.s_per_byte);
	computing.ops->matmul(dev, y, y_stride, x, x_stride, w, n, profile);
}

static struct model *open_model(const struct engine_tier *e, const struct experts_options *opt)
{
	struct model_options model = {.experts = opt};
	struct model *m;
	struct err err;

	if (model_open(&m, e->dir, &model, &err))
		measure_fail(&err);
	return m;
}

/* With what lies around it, since reads are aligned. */
static double bytes_of_one(const struct engine_tier *e, int32_t n_experts)
{
	struct slow_io drive = {.bytes_per_s = 1};
	struct experts_options opt = {.n_slots = 2, .backend = &slow_io_backend, .backend_state = &drive};
	struct model *m = open_model(e, &opt);
	struct err err;

	for (int32_t i = 0; i < n_experts; i++) {
		if (experts_take(m->experts, DENSE, i, &err))
			measure_fail(&err);
		experts_done(m->experts, DENSE, i, false);
	}
	model_close(m);
	return drive.busy_s / n_experts;
}

struct engine_tier *engine_tier_new(int32_t n_layers, int32_t n_experts, int32_t n_chosen)
{
	struct engine_tier *e = xcalloc(1, sizeof *e);
	struct synth_options o = synth_glm52;
	struct err err;

	o.n_dense_layers = DENSE;
	o.n_moe_layers = n_layers;
	o.format = SYNTH_BF16;
	o.n_experts = n_experts;
	o.experts_per_token = n_chosen;
	o.hidden = 128;
	o.expert_dim = o.q_lora = o.kv_lora = o.dense_dim = o.index_dim = 64;
	o.n_heads = o.index_n_heads = 2;
	o.nope_dim = o.rope_dim = o.v_dim = 32;
	o.vocab = SYNTH_LEAST_VOCAB;
	o.max_positions = 1 << 16;
	e->base = temp_dir_new_in_memory(); /* the drive is as slow as it is told to be, not as slow as a disk */
	e->dir = temp_path(e->base, "checkpoint");
	if (synth_write(e->dir, &o, NULL, &err) || engine_open(&e->e, &(struct engine_options){.n_threads = 1}, &err))
		measure_fail(&err);
	computing.ops = e->e->ops;
	e->ops = forced_routers(computing.ops);
	e->ops.matmul = matmul;
	e->e->ops = &e->ops;
	e->expert_bytes = bytes_of_one(e, n_experts);
	return e;
}

void engine_tier_free(struct engine_tier *e)
{
	engine_close(e->e);
	free(e->dir);
	temp_dir_free(e->base);
	free(e);
}

void engine_tier_run(struct engine_tier *e, struct tier_result *r, const struct trace *t, const struct tier_options *opt)
{
	int n_pieces = opt->n_pieces ? opt->n_pieces : TIER_PIECES;
	struct slow_io drive = {
		.bytes_per_s = e->expert_bytes / opt->transfer_s,
		.stall_s = (opt->stall - 1) * opt->transfer_s,
		.stall_every = opt->stall_every * n_pieces,
	};
	struct experts_options experts = {
		.n_slots = (int32_t)(t->n_layers * t->n_experts * opt->share + .5),
		.no_prediction = !opt->prefetch,
		.backend = &slow_io_backend,
		.backend_state = &drive,
		.piece_bytes = (size_t)(e->expert_bytes / n_pieces / 4096 + 1) * 4096,
	};
	struct session_options session = {.latents = LATENTS_BF16};
	struct model *m = open_model(e, &experts);
	struct experts_stats before = {0}, after;
	struct session *s;
	int64_t began = 0;
	struct err err;

	if (session_new(&s, e->e, m, &session, &err))
		measure_fail(&err);
	computing.m = m;
	computing.drive = &drive;
	computing.s_per_byte = opt->compute_s / (attention_bytes() + router_bytes() + (t->n_chosen + 1) * expert_bytes());
	for (int64_t i = 0; i < t->n_tokens; i++) {
		const int32_t id = (int32_t)(i % 256);

		if (i == opt->warm_tokens) {
			experts_stats(m->experts, &before);
			began = drive.now;
		}
		forced_routers_token(m, t, i, opt->recall, opt->seed);
		if (session_append(s, &id, 1, NULL, NULL, &err))
			measure_fail(&err);
		forced_routers_done();
	}
	experts_stats(m->experts, &after);
	*r = (struct tier_result){
		.asked = after.taken - before.taken,
		.hits = after.hits - before.hits,
		.prefetched = after.useful - before.useful,
		.transfers = after.reads - before.reads,
		.wasted = after.ahead - before.ahead - (after.useful - before.useful),
		.seconds = (double)(drive.now - began) * 1e-9,
	};
	computing.drive = NULL;
	session_free(s);
	model_close(m);
}
