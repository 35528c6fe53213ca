/*
 * A fast tier of experts in virtual time: a trace goes through it, and what is not there is transferred over one link. It
 * says what a policy would have moved and how long it would have taken, in less time than weights would take to load.
 *
 * A layer of a token is attention, then the router, then the experts when all of them are there. A transfer takes its
 * time on the link, one after another; what is fetched ahead for the layers that come goes when nothing that is waited for
 * does, and gives way at its next piece. Guesses are made when a router has spoken, at the routers of the next layers, and at the next
 * one once more when the layer is done; what is under way and not guessed any more is given up, as the engine does it.
 */
#ifndef QUIRE_TESTS_SUPPORT_TIER_SIM_H
#define QUIRE_TESTS_SUPPORT_TIER_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "offload/ahead.h"
#include "offload/trace.h"

enum tier_rule {
	TIER_LRU,     /* what was used longest ago goes */
	TIER_BELADY,  /* what is used again last goes: knows the future */
	TIER_POLICY,  /* offload/policy.h */
};

enum { TIER_DEPTHS = N_AHEAD_KINDS - 1, TIER_CHOSEN_MOST = 64, TIER_PIECES = 10 };

/* How much of what routers choose is guessed of the next layer, of all that comes before it and of a part, as measured on GLM-5.2; and of
 * those behind it: as much less as it is in the pocket model, above chance (pocket.lookahead_recall). */
extern const double tier_recall[N_AHEAD_KINDS];

/* From 0 to 1, of the choice that stands at `rank` in a step: a guess at it is right if the recall is more. The same for each look, so
 * that a nearer one sees more of the same. */
double tier_luck(uint64_t seed, int64_t step, int32_t rank);
/* What one would guess of a step, best first, [n_chosen]: each choice with the chance `recall`, else the next best instead. */
void tier_guess(int32_t *ids, const struct trace *t, int64_t token, int32_t layer, double recall, uint64_t seed);

struct tier_options {
	enum tier_rule rule;
	double share;           /* of all experts, resident */
	bool prefetch;          /* TIER_POLICY: fetch ahead what is predicted for later layers, as offload/ahead.h admits it */
	double recall[N_AHEAD_KINDS]; /* share of the prediction that comes true; 0: none is made */
	double transfer_s, compute_s; /* of one expert; of a layer, half of it before its router. 0: only counted */
	int n_pieces;           /* of a transfer: what is given up ends with the piece under way; 0: TIER_PIECES */
	int stall_every;        /* 0, or every so many transfers one takes `stall` times as long */
	double stall;
	int64_t warm_tokens;    /* at the beginning, not counted */
	uint64_t seed;
};

struct tier_result {
	int64_t asked, hits;    /* experts asked for; resident with no transfer made for the token */
	int64_t prefetched;     /* of those that are no hits: there in time because they were fetched ahead */
	int64_t transfers, wasted; /* all; fetched ahead and not asked for next */
	int64_t layers[TIER_CHOSEN_MOST + 1]; /* of tokens, by how many of their experts were not there when the router had spoken */
	double seconds;
};

void tier_run(struct tier_result *r, const struct trace *t, const struct tier_options *opt);

#endif
