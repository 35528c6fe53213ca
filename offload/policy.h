/*
 * Which experts should be in the fast tier: what each is worth there, and which one goes (what is worth reading ahead
 * says offload/ahead.h).
 *
 * An expert is worth how often it will be chosen soon: the next token counts two fifths, each one after it .6 of the one before. That
 * is learned while it runs. Each time the router of a layer has scored its experts, their scores (how far above or below the
 * layer's mean, in deviations) go into averages over several time scales; the worth is a logistic function of those, and
 * its weights follow what is chosen, one small step at a time, alike for all layers. Scores of experts that were not chosen
 * count too: that is what a list of the recently used does not know. What is needed again later in the order of layers counts
 * less than what is needed at once.
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

/* What is known of a layer before its router speaks: the share of tokens [n_experts], each above 0 and below 1, that chose each
 * expert of it, elsewhere. The averages over more than a few tokens are then as if scores had been such. */
void policy_expect(struct policy *p, int32_t layer, const double *share);

/* 0 to 1. */
float policy_worth(const struct policy *p, int32_t layer, int32_t expert);
/* The same, less the later its layer is asked next: what policy_victim goes by. */
float policy_worth_now(const struct policy *p, int32_t layer, int32_t expert);

/* Residency, as the tier has it. An expert that is held may not go (its layer is under way, or bytes move). */
void policy_arrived(struct policy *p, int32_t layer, int32_t expert);
void policy_left(struct policy *p, int32_t layer, int32_t expert);
void policy_hold(struct policy *p, int32_t layer, int32_t expert, bool held);
bool policy_resident(const struct policy *p, int32_t layer, int32_t expert);

/* The resident expert that is worth least, by its worth and when its layer is asked next, which is what *worth says; false:
 * all are held, or none is there. */
bool policy_victim(const struct policy *p, int32_t *layer, int32_t *expert, float *worth);

#endif
