/*
 * Routers that choose what a trace says (offload/trace.h), and guess at later layers as often rightly as they are told. Random weights
 * route like nothing real: here all that they decide is what a product costs.
 *
 * An op of a copied table, which has no state of its own: one model at a time, and one token after another.
 */
#ifndef QUIRE_TESTS_SUPPORT_FORCED_ROUTERS_H
#define QUIRE_TESTS_SUPPORT_FORCED_ROUTERS_H

#include "engine/internal.h"
#include "offload/trace.h"

/* `from` with such routers. */
struct ops forced_routers(const struct ops *from);

/* The next token that the model computes is that one of the trace, whose layers are those of the model with experts. recall
 * [N_AHEAD_KINDS], as in tier_sim.h; seed: of tier_guess. */
void forced_routers_token(const struct model *m, const struct trace *t, int64_t token, const double *recall, uint64_t seed);
/* It is computed. Ends the program when a router was not asked. */
void forced_routers_done(void);

#endif
