/*
 * What a model needs and how fast it can be on a machine, before any of it is loaded: bytes by tier, tokens per second as a
 * range with what binds, the time of an ingest. All pure arithmetic on a counted model (plan_model.h); rates come from
 * whoever measured them or wrote them down.
 *
 * Limits, a token at a time: the weights that every token uses, the chosen experts and the context are read once from
 * where they lie. `high`: all tiers at once, and experts found in the faster ones as often as others measured on GLM-5.2;
 * `low`: one tier after another, but that a layer computes the experts that are there while it reads those that are missing, and
 * experts found as seldom as the least local of the routers that were made up after those measurements allows (offload/trace.h, A).
 * A model whose router has no locality is slower than `low`.
 *
 * GPUs of a machine run everything, or routed experts alone, which is what quire does with one (docs/devices.md).
 */
#ifndef QUIRE_ENGINE_PLAN_H
#define QUIRE_ENGINE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"
#include "engine/layout.h"
#include "engine/plan_model.h"

enum plan_weights { PLAN_FP8, PLAN_BF16, PLAN_INT4, N_PLAN_WEIGHTS };

/* "fp8", "bf16", "int4"; -1 for anything else. */
const char *plan_weights_name(enum plan_weights w);
int plan_weights_from_name(const char *name);

/* Rates in bytes and operations per second. 0 GPUs: host memory is the fastest tier. */
struct plan_machine {
	char name[96];
	int64_t n_gpus, gpu_bytes;             /* of each, nine tenths of which are used; of each is the next line, too */
	double gpu_read, gpu_flops;            /* read: as products with one row do */
	bool gpus_run_experts;                 /* and nothing else */
	double link_read;                      /* from host memory to all GPUs together */
	int64_t host_bytes;                    /* that quire may have */
	double host_read, host_flops;
	int64_t disk_bytes;                    /* free, or holding the model already */
	double disk_read;
};

/* A YAML file: name, gpus, gpu_memory, gpu_read, gpu_tflops, gpus_run, link_read, host_memory, host_read, host_tflops, disk_memory,
 * disk_read; sizes as "141GB", rates as "7GB/s", gpus_run as "experts" or "all", which it is where it is missing. The others of GPUs
 * may be missing where gpus is. */
int plan_machine_load(struct plan_machine *m, const char *path, struct err *err);

struct plan_options {
	int64_t context;                       /* tokens; 0: all that the model takes */
	enum plan_weights weights;
	enum latent_format latents;
	int64_t latent_cache_bytes;            /* of records that are kept in memory; the others wait in the store */
	int64_t scratch_bytes;                 /* of an ingest; 0: no limit */
};

enum plan_tier { PLAN_GPU, PLAN_HOST, PLAN_DISK, N_PLAN_TIERS };
const char *plan_tier_name(enum plan_tier t);

struct plan {
	int64_t context;
	enum plan_weights weights;
	/* Bytes: of weights that every token uses, of one routed expert, of all of them; of a token in the store, and of the
	 * context in memory. */
	uint64_t common_bytes, expert_bytes, routed_bytes;
	uint64_t latent_bytes_per_token, index_bytes_per_token, context_bytes;
	/* Where they go: bytes of everything, and the share of routed experts. */
	uint64_t tier_bytes[N_PLAN_TIERS];
	double expert_share[N_PLAN_TIERS];
	bool fits;
	char why[256];                         /* it does not */
	/* Of one more token at the end of the context. */
	double flops_weights, flops_index, flops_attention;
	double low, high;                      /* tokens per second; 0 where active parameters are not known */
	const char *binds;                     /* what `high` is bound by: "disk", "link", "host memory", "GPU memory", "compute" */
	double ingest_seconds;                 /* of the whole context, from nothing */
	const char *ingest_binds;
	int64_t sweeps;                        /* times that it reads every expert */
};

/* Never fails: what does not fit says so in *p. */
void plan_make(struct plan *p, const struct plan_model *m, const struct plan_machine *machine, const struct plan_options *opt);

/* Of one routed expert in such weights. */
double plan_expert_bytes(const struct plan_model *m, enum plan_weights weights);

/* GPUs with so much memory that hold all weights in nine tenths of it. */
int64_t plan_gpus(const struct plan *p, int64_t gpu_bytes);

/* The share of a token's experts that are found in the fastest `share` of all, for GLM-5.2's routing: as measured, and the least
 * of it that a plan counts on. */
double plan_hits(double share);
double plan_hits_least(double share);

#endif
