/*
 * Which experts a router chose, token by token: recorded from a run, read from a file, or made up. What policies of tiers
 * are tried on, without weights.
 *
 * A step is one token in one layer with experts. It lists the n_chosen experts that the token uses, from the highest score down,
 * then others in the same way. A list may be shorter than all experts: those left out scored no more than its last.
 *
 * As text: a line "quire-trace 1 layers L experts E chosen K listed M", then a line for each step, tokens in their order and
 * layers within a token, of M words ID:SCORE. Lines that begin with # are left out.
 */
#ifndef QUIRE_OFFLOAD_TRACE_H
#define QUIRE_OFFLOAD_TRACE_H

#include <stdint.h>
#include <stdio.h>

#include "config/err.h"

struct trace_entry {
	int32_t expert;
	float score;
};

struct trace {
	int32_t n_layers, n_experts, n_chosen, n_listed;
	int64_t n_tokens;
	struct trace_entry *entries; /* [n_tokens, n_layers, n_listed] */
	int64_t room;                /* tokens that there is memory for */
};

static inline const struct trace_entry *trace_step(const struct trace *t, int64_t token, int32_t layer)
{
	return t->entries + (token * t->n_layers + layer) * t->n_listed;
}

/*
 * A made-up router: score(t) = fast w_fast + slow w_slow + bias w_bias + noise w_noise, all of unit variance, `fast` and
 * `slow` autoregressive with phi_fast and phi_slow a token, bias drawn once. With such sums of three time scales,
 * measured hit rates of caches on GLM-5.2 can be met from both sides (A, "focused").
 */
struct trace_preset {
	const char *name; /* "A", "focused", "topic", "uniform" */
	double phi_fast, phi_slow, w_fast, w_slow, w_bias, w_noise;
};
enum { N_TRACE_PRESETS = 4 };
extern const struct trace_preset trace_presets[N_TRACE_PRESETS];

/* Without tokens. */
struct trace *trace_new(int32_t n_layers, int32_t n_experts, int32_t n_chosen, int32_t n_listed);
/* One step: scores [n_experts], chosen [n_chosen] in any order. Tokens and layers may come in any order; a trace has
 * all tokens up to the largest, and every step must come. */
void trace_put(struct trace *t, int64_t token, int32_t layer, const float *scores, const int32_t *chosen);

/* All experts listed. The same seed gives the same trace everywhere. */
struct trace *trace_make(const struct trace_preset *p, int32_t n_layers, int32_t n_experts, int32_t n_chosen, int64_t n_tokens,
			 uint64_t seed);

/* Errors name the file's line. */
int trace_read(struct trace **out, const char *path, struct err *err);
/* 0, or -1 with errno. Scores with six digits. */
int trace_write(FILE *f, const struct trace *t);

/* Takes NULL. */
void trace_free(struct trace *t);

/* The share of a token's experts that the token before it chose too, over all steps but the first token's. */
double trace_overlap(const struct trace *t);

#endif
