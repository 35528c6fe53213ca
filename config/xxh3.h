/*
 * XXH3 with the widest vectors that the processor has: 50 GB/s on a thread with AVX-512, of what a cache holds, where the library's
 * plain functions, which keep to what every x86-64 has, give 19 (`make bench BENCH=kernels ARGS=sums`). The sums are the same.
 *
 * The functions that the library then chooses come back with the upper halves of vector registers in use. What is not compiled for
 * AVX, most of quire and of what it links, then runs at a third of its speed until somebody clears them. So they are called here and
 * nowhere else.
 */
#ifndef QUIRE_CONFIG_XXH3_H
#define QUIRE_CONFIG_XXH3_H

#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

/* XXH3_64bits_withSeed; seed 0: XXH3_64bits. */
uint64_t xxh3_sum(const void *data, size_t bytes, uint64_t seed);
/* XXH3_64bits_update of a state that the library made and reset. */
void xxh3_update(XXH3_state_t *state, const void *data, size_t bytes);

#endif
