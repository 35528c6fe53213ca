/*
 * The engine's own tier of experts in virtual time: what tier_run says of a model of it (tier_sim.h), this says of engine/experts.c and
 * of the passes that drive it. Small experts come from a drive with a time of its own (slow_io.h), routers choose what a trace
 * says, and each product takes as long as it has bytes in a layer of GLM-5.2: in the same time on every machine, and in seconds.
 */
#ifndef QUIRE_TESTS_SUPPORT_ENGINE_TIER_H
#define QUIRE_TESTS_SUPPORT_ENGINE_TIER_H

#include "tests/support/tier_sim.h"

struct engine_tier;

/* Who cannot have it ends the program with a sentence. */
struct engine_tier *engine_tier_new(int32_t n_layers, int32_t n_experts, int32_t n_chosen);
void engine_tier_free(struct engine_tier *e);

/* As tier_run, of a trace of as many layers and experts that lists all of these; opt->rule is TIER_POLICY, compute_s and transfer_s are
 * more than 0. Of the result, what the engine counts as well. */
void engine_tier_run(struct engine_tier *e, struct tier_result *r, const struct trace *t, const struct tier_options *opt);

#endif
