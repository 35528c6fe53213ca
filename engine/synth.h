/*
 * Synthetic checkpoints: seeded random weights in the published layout, at any dimensions, for measuring what does not
 * depend on what the weights say. By default a layer is GLM-5.2's to the byte.
 *
 * A directory has config.json, tokenizer.json (all bytes, a few merges, GLM's added tokens), shards of safetensors and
 * their index. The same options give the same bytes on every machine, whatever the number of threads. Values
 * are tame: matrices have a standard deviation of 1 / sqrt(inputs), norm weights lie near 1, so hidden states stay finite
 * through any number of layers.
 */
#ifndef QUIRE_ENGINE_SYNTH_H
#define QUIRE_ENGINE_SYNTH_H

#include <stdint.h>

#include "config/err.h"

enum synth_format {
	SYNTH_FP8,  /* projections E4M3 with 128 x 128 block scales, as the official build; the rest BF16 and F32 */
	SYNTH_BF16,
	SYNTH_INT4, /* routed experts as `quire model pack` writes them (docs/experts.md), but without checksums; the rest as FP8 */
	N_SYNTH_FORMATS
};

enum synth_schedule {
	SYNTH_GLM52, /* layers 0, 1, 2, 6, 10, ... have an indexer, the others share the choice before them */
	SYNTH_FULL,  /* every layer has one */
	N_SYNTH_SCHEDULES
};

struct synth_options {
	int32_t n_dense_layers, n_moe_layers; /* dense ones first */
	enum synth_format format;
	enum synth_schedule schedule;
	uint64_t seed;
	int32_t hidden, n_heads, q_lora, kv_lora, nope_dim, rope_dim, v_dim;
	int32_t dense_dim, expert_dim, n_experts, experts_per_token;
	int32_t index_n_heads, index_dim, index_topk;
	int32_t vocab;          /* at least SYNTH_LEAST_VOCAB */
	int64_t max_positions;
	uint64_t shard_bytes;   /* of tensors in one file, unless one tensor alone has more */
	int n_threads;          /* 0: all processors */
};

/* 256 bytes, 36 added tokens and the merges of the tokenizer, in round numbers. */
enum { SYNTH_LEAST_VOCAB = 320 };

/* GLM-5.2's dimensions in FP8, seed 1, shards of 4 GB; no layers yet. */
extern const struct synth_options synth_glm52;

/* "fp8", "bf16", "int4"; "glm52", "full". -1 for anything else. */
int synth_format_from_name(const char *name);
int synth_schedule_from_name(const char *name);

struct synth_report {
	uint64_t bytes;         /* of all tensors */
	int n_shards, n_tensors;
};

/* Bytes that synth_write would put into shards, and their number. Fails (ERR_USAGE) on dimensions that make no model,
 * with the sentence of who reads config.json, and on inputs of int4 experts that are no multiple of 64. */
int synth_measure(struct synth_report *report, const struct synth_options *opt, struct err *err);

/*
 * Write a checkpoint to `dir`, which is made if its parent is there, or must be empty. The free space is looked at
 * before anything is written, and both numbers are told (ERR_TOO_LARGE). Files are written in full, synced,
 * and config.json comes last: what a crash leaves has none, and is no model. On error what was written is removed.
 * report may be NULL.
 */
int synth_write(const char *dir, const struct synth_options *opt, struct synth_report *report, struct err *err);

/* The two files that are no tensors, to be freed (synth_json.c). */
char *synth_config_json(const struct synth_options *opt);
char *synth_tokenizer_json(const struct synth_options *opt);

#endif
