#include "config/xxh3.h"

#include <stdlib.h>

#if defined __x86_64__
#include <xxh_x86dispatch.h>
#endif

static inline void clear_upper_halves(void)
{
#if defined __x86_64__
	if (__builtin_cpu_supports("avx"))
		__asm__ volatile("vzeroupper"); /* of registers that hold nothing across a call */
#endif
}

uint64_t xxh3_sum(const void *data, size_t bytes, uint64_t seed)
{
	uint64_t sum = XXH3_64bits_withSeed(data, bytes, seed);

	clear_upper_halves();
	return sum;
}

void xxh3_update(XXH3_state_t *state, const void *data, size_t bytes)
{
	if (XXH3_64bits_update(state, data, bytes))
		abort(); /* only without a state */
	clear_upper_halves();
}
