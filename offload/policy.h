/*
 * Which experts should be in the fast tier: what each is worth there, which one goes, and what is worth fetching ahead.
 *
 * An expert is worth how often it will be chosen soon: the next token counts half, the one after it a quarter, and so on. That
 * is learned while it runs. Each time the router of a layer has scored its experts, their scores (how far above or below the
 * layer's mean, in deviations) go into averages over several time scales; the worth is a logistic function of those, and
 * its weights follow what is chosen, one small step at a time, alike for all layers. Scores of experts that were not chosen
 * count too: that is what a list of the recently used does not know. What is needed again later in the order of layers counts
 * less than what is needed at once.
 *
 * A prediction of the next layer's choice (its router on this layer's residual) is a list of experts, best guess first. How
 * often guesses of each rank come true is counted, and a guess is worth fetching when that, and what its expert is worth
 * anyway, is more than what it would push out.
 *
 * Pure: the same calls give the same answers; nothing here knows time or disks. One thread.
 */
#ifndef QUIRE_OFFLOAD_POLICY_H
#define QUIRE_OFFLOAD_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "offload/trace.h"

struct policy;

struct policy *policy_new(int32_t n_layers, int32_t n_experts, int32_t n_chosen);
/* Takes NULL. */
void policy_free(struct policy *p);

/* The router of a layer has spoken: entries from the highest score down, the first n_chosen chosen; n_listed of them. */
void policy_observe(struct policy *p, int32_t layer, const struct trace_entry *entries, int32_t n_listed);

/* 0 to 1. */
float policy_worth(const struct policy *p, int32_t layer, int32_t expert);

/* Residency, as the tier has it. An expert that is held may not go (its layer is under way, or bytes move). */
void policy_arrived(struct policy *p, int32_t layer, int32_t expert);
void policy_left(struct policy *p, int32_t layer, int32_t expert);
void policy_hold(struct policy *p, int32_t layer, int32_t expert, bool held);
bool policy_resident(const struct policy *p, int32_t layer, int32_t expert);

/* The resident expert that is worth least, by its worth and when its layer is asked next, which is what *worth says; false:
 * all are held, or none is there. */
bool policy_victim(const struct policy *p, int32_t *layer, int32_t *expert, float *worth);

/* What guess `rank` (0 the best) of a prediction for the next layer is worth. */
float policy_guess(const struct policy *p, int32_t layer, int32_t expert, int32_t rank);
/* What came of a prediction: ids[n], best guess first, and what was chosen. */
void policy_judge(struct policy *p, const int32_t *ids, int32_t n, const struct trace_entry *chosen);

#endif
