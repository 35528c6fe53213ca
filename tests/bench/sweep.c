/*
 * One sweep against chunks: how many bytes of experts' weights are taken up for each prompt token, by how many tokens the
 * scratch memory holds. These are counts, not times: all weights of this build lie in memory, and what an expert's
 * way from a slower tier would cost is not here to be measured.
 *
 *   sweep [TOKENS]                 8192 tokens unless said, in chunks of 256, 1024, 4096, ... and of all
 *
 *   sweep.reads_per_expert         times that an expert was taken up, the mean over the experts that some token chose.
 *                                  Limit: 1, of one sweep. "planned": sweep_plan's figure, which none exceeds
 *   sweep.bytes_per_token          bytes of the weights of the experts taken up, over the tokens. Limit: each
 *                                  expert that is chosen once. "scratch_bytes": the most held, equal to the plan's
 *
 * The model is synthetic (made once, below build/bench): three layers of 64 experts, 8 of them a token, and all else
 * small. Nothing here is a figure of GLM-5.2: with 256 experts a layer a chunk of the same size leaves fewer tokens to each.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/sweep.h"
#include "engine/synth.h"
#include "tests/support/measure.h"

enum { TOKENS = 8192, LEAST_CHUNK = 256, MOST_TOKENS = 1 << 20 };

static struct synth_options dimensions(void)
{
	struct synth_options o = synth_glm52;

	o.n_dense_layers = 1;
	o.n_moe_layers = 3;
	o.format = SYNTH_BF16;
	o.hidden = 128;
	o.n_heads = 4;
	o.q_lora = 64;
	o.kv_lora = 64;
	o.nope_dim = 32;
	o.rope_dim = 16;
	o.v_dim = 32;
	o.dense_dim = 256;
	o.expert_dim = 64;
	o.n_experts = 64;
	o.experts_per_token = 8;
	o.index_n_heads = 4;
	o.index_dim = 32;
	o.index_topk = 128;
	o.vocab = SYNTH_LEAST_VOCAB;
	o.max_positions = MOST_TOKENS;
	return o;
}

/* The checkpoint: one that an earlier run made, or a new one. */
static struct model *open_model(void)
{
	struct synth_options o = dimensions();
	char *config = synth_config_json(&o);
	char *dir = xasprintf("build/bench/sweep-%016llx",
			      (unsigned long long)XXH3_64bits_withSeed(config, strlen(config), o.seed));
	char *made = xasprintf("%s/config.json", dir);
	struct model *m = NULL;
	struct err err = {0};

	if (access(made, F_OK) && (file_make_directories(dir, &err) || synth_write(dir, &o, NULL, &err)))
		measure_fail(&err);
	if (model_open(&m, dir, NULL, &err))
		measure_fail(&err);
	free(made);
	free(dir);
	free(config);
	return m;
}

/* Experts that some token chose, and the bytes of their weights. */
static int64_t chosen(const struct model *m, const struct sweep_stats *s, uint64_t *bytes)
{
	const struct model_config *c = &m->config;
	int64_t n = 0;

	*bytes = 0;
	for (int32_t i = 0; i < c->n_layers; i++) {
		for (int32_t e = 0; !c->layer_is_dense[i] && e < c->n_experts; e++) {
			const struct expert *x = &m->layers[i].experts[e];

			if (!s->expert_tokens[(int64_t)i * c->n_experts + e])
				continue;
			*bytes += weight_bytes(&x->gate) + weight_bytes(&x->up) + weight_bytes(&x->down);
			n++;
		}
	}
	return n;
}

/* Somebody who takes what a group stores, so that it is held until then. */
static int drop(void *ctx, int32_t part, int64_t first, int64_t n, const uint8_t *tokens, struct err *err)
{
	(void)ctx;
	(void)part;
	(void)first;
	(void)n;
	(void)tokens;
	(void)err;
	return 0;
}

static void sweep_in_chunks(struct engine *e, const struct model *m, const int32_t *ids, int64_t n, int64_t chunk)
{
	const struct session_options session = {.latents = LATENTS_BF16};
	const struct sweep_sink sink = {NULL, drop, drop, NULL};
	struct sweep_sequence q = {.ids = ids, .n = n, .sink = &sink};
	struct sweep_options opt = {0};
	struct session *s = NULL;
	struct sweep *w = NULL;
	struct sweep_plan plan;
	struct sweep_stats stats;
	struct err err = {0};
	uint64_t once_bytes;
	int64_t experts;

	/* The memory that is needed for a chunk of this size. */
	if (sweep_plan(&plan, &m->config, engine_compute(e), session.latents, chunk, 0, &err))
		measure_fail(&err);
	opt.scratch_bytes = plan.scratch_bytes;
	if (sweep_plan(&plan, &m->config, engine_compute(e), session.latents, n, opt.scratch_bytes, &err) ||
	    session_new(&s, e, m, &session, &err))
		measure_fail(&err);
	q.session = s;
	if (sweep_begin(&w, &q, 1, &opt, &err) || sweep_run(w, NULL, NULL, &err))
		measure_fail(&err);
	sweep_count(w, &stats);
	if (stats.scratch_bytes != plan.scratch_bytes || stats.n_chunks != plan.n_chunks) {
		err_set(&err, ERR_FAILED, "planned were %lld chunks of %zu bytes, measured %lld of %zu", (long long)plan.n_chunks,
			plan.scratch_bytes, (long long)stats.n_chunks, stats.scratch_bytes);
		measure_fail(&err);
	}
	experts = chosen(m, &stats, &once_bytes);
	measure_print(stdout, "sweep.reads_per_expert", (double)stats.n_expert_reads / (double)experts, "reads", 1,
		      "\"chunk\":%lld,\"tokens\":%lld,\"planned\":%lld,\"experts\":%lld", (long long)chunk, (long long)n,
		      (long long)plan.reads_per_expert, (long long)experts);
	measure_print(stdout, "sweep.bytes_per_token", (double)stats.expert_read_bytes / (double)n, "bytes/token",
		      (double)once_bytes / (double)n, "\"chunk\":%lld,\"tokens\":%lld,\"scratch_bytes\":%zu",
		      (long long)chunk, (long long)n, stats.scratch_bytes);
	sweep_end(w);
	session_free(s);
}

int main(int argc, char **argv)
{
	const struct engine_options opt = {.compute = COMPUTE_BF16};
	long long n = argc > 1 ? atoll(argv[1]) : TOKENS;
	struct engine *e = NULL;
	struct err err = {0};
	struct model *m;
	int32_t *ids;

	if (argc > 2 || n < 1 || n > MOST_TOKENS) {
		fprintf(stderr, "usage: sweep [TOKENS], at most %d\n", MOST_TOKENS);
		return 2;
	}
	m = open_model();
	if (engine_open(&e, &opt, &err))
		measure_fail(&err);
	ids = xmalloc((size_t)n, sizeof *ids);
	for (long long i = 0; i < n; i++)
		ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)m->config.vocab);
	for (int64_t chunk = LEAST_CHUNK; chunk < n; chunk *= 4)
		sweep_in_chunks(e, m, ids, n, chunk);
	sweep_in_chunks(e, m, ids, n, n);
	free(ids);
	engine_close(e);
	model_close(m);
	return 0;
}
