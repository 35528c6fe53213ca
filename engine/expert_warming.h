/*
 * Which experts are worth reading before anybody asks: the most chosen first, as far as there are slots (experts.h). The list
 * alone; experts.c reads. Private to the engine.
 */
#ifndef QUIRE_ENGINE_EXPERT_WARMING_H
#define QUIRE_ENGINE_EXPERT_WARMING_H

#include <stdint.h>

#include "offload/policy.h"

struct expert_warming {
	int32_t n_layers, n_experts;
	double *share;               /* [n_layers, n_experts] of the tokens that chose it */
	int32_t *list;               /* [n] places in share */
	int32_t n, next;             /* next: the first that nothing has been done about */
	int32_t next_raised;         /* likewise, of a device's memory */
};

/* chosen [n_layers, n_experts]: how often. What they say of each layer in which anybody chose any is told to the policy; the n_most
 * experts with the largest shares, layers alike, are listed. */
void expert_warming_list(struct expert_warming *w, const int64_t *chosen, int32_t n_layers, int32_t n_experts, int32_t n_chosen,
			 int32_t n_most, struct policy *policy);
/* Zeros are fine. */
void expert_warming_clear(struct expert_warming *w);

#endif
