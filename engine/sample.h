/*
 * The next token from the logits of one position.
 *
 * temperature 0 takes the highest logit, the lower id on a tie. Otherwise, in this order: ids without a token
 * string are left out; logits are divided by the temperature; top_k keeps the k highest (the lower id on a tie);
 * probabilities are computed of what is left; top_p keeps the most probable ones up to the first at which their
 * sum reaches p; min_p leaves out those below p times the highest; one is drawn by what is left. The most probable
 * one is never left out.
 *
 * The same options and logits give the same ids on every machine: exp is ours, sums run in a fixed order, and the
 * nth draw depends on seed and n alone.
 */
#ifndef QUIRE_ENGINE_SAMPLE_H
#define QUIRE_ENGINE_SAMPLE_H

#include <stdint.h>

#include "config/err.h"
#include "engine/tokenizer.h"

struct sample_options {
	float temperature; /* 0: greedy */
	int32_t top_k;     /* 0: all */
	float top_p;       /* 1: all; at most 0 counts as the least there is: one */
	float min_p;       /* 0: all */
	uint64_t seed;
};

struct sampler;

/* vocab: how many logits there are. tokenizer may be NULL: then every id may be drawn. */
struct sampler *sampler_new(const struct sample_options *opt, const struct tokenizer *t, int32_t vocab);
/* Takes NULL. */
void sampler_free(struct sampler *s);

/* Fails (ERR_FORMAT) on a logit that is not finite, naming the first, and if no id has a token string. */
int sampler_next(struct sampler *s, const float *logits, int32_t *id, struct err *err);

#endif
