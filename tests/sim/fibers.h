/*
 * Kernels on the processor: every thread of a block is a fiber, one block runs at a time, and a fiber runs until it waits for
 * others. What threads may not do ends the launch and is remembered as its fault: a lane that is missing, a barrier that only
 * some reach, and in the race mode (race.cc) an access that nothing orders or that memory does not have.
 *
 * For one thread of the host at a time.
 */
#ifndef QUIRE_TESTS_SIM_FIBERS_H
#define QUIRE_TESTS_SIM_FIBERS_H

#include <stddef.h>
#include <stdint.h>

#include "tests/sim/cuda_on_host.h"

/* Who runs next, where several could: warps and lanes by their numbers, up or down, or any. With `random` one warp gets as far as
 * it can before another does, mostly: in step, most mistakes with barriers would go unseen. */
enum sim_order { SIM_FORWARD, SIM_REVERSE, SIM_RANDOM };
void sim_set_order(enum sim_order order, uint64_t seed);

/* The first fault since this was asked last, NULL: none. Valid until the next launch. */
const char *sim_take_fault(void);

/* Ends the launch, and does not return, where a fiber calls it. */
void sim_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* For race.cc. */
extern uint32_t sim_n_barriers;           /* that this block has passed */
struct sim_range { uintptr_t from, to; };
extern struct sim_range sim_stacks, sim_static_shared, sim_dynamic, sim_arguments;

static inline bool sim_in(const struct sim_range *r, uintptr_t p)
{
	return p - r->from < r->to - r->from;
}

#endif
