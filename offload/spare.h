/*
 * What the link carries when it has nothing else to do: no expert is waited for, and no guess at a router is left that is worth it
 * (offload/ahead.h). Of the experts that are not there it is the one that is worth most (offload/policy.h), if that is more than the
 * worth of who goes for it. An expert comes otherwise only when it is chosen, though its scores say before that it is going to be:
 * where tokens stay with a subject for long, most of those that are missed can be there.
 *
 * Worth is a guess. So it is counted what came of it: how many of those that came were chosen before they went, and how many of those
 * that went for them were chosen again in as long, SPARE_TOKENS tokens at most. The difference is what a transfer saves of
 * others; while it is none, nothing is carried but one to try it now and then.
 *
 * Pure, as the policy is. One thread.
 */
#ifndef QUIRE_OFFLOAD_SPARE_H
#define QUIRE_OFFLOAD_SPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "offload/policy.h"

enum { SPARE_TOKENS = 32 };

struct spare;

/* Is it there? Residency is more than the policy knows where there is a tier above. */
typedef bool spare_is_there(const void *ctx, int32_t layer, int32_t expert);

/* The policy outlives it. is_there NULL: who the policy says is resident. */
struct spare *spare_new(const struct policy *p, int32_t n_layers, int32_t n_experts, spare_is_there *is_there, const void *ctx);
/* Takes NULL. */
void spare_free(struct spare *s);

/* A token's router has spoken, which the policy has been told. */
void spare_spoken(struct spare *s, int32_t layer, const int32_t *chosen, int32_t n_chosen);
/* Transfers of experts that one saves, 0 to 1. */
double spare_saves(const struct spare *s);
/* The same where it is none, or little, and it is time to try whether it has become more: as if it had. */
double spare_may_save(const struct spare *s);
/* The expert to be carried, and what it is worth (policy_worth_now); false: there is none. It may be on its way: then
 * there is nothing to do until it has come. */
bool spare_next(struct spare *s, int32_t *layer, int32_t *expert, float *worth);
/* It is on its way; for another one that went, or gone_layer is < 0. */
void spare_began(struct spare *s, int32_t layer, int32_t expert, int32_t gone_layer, int32_t gone_expert);
/* It could not be had. Whoever wants it will hear of that; for a while nothing is worth trying. */
void spare_failed(struct spare *s);

#endif
