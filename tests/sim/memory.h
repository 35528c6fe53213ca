/*
 * The memory of one simulated device: a range of addresses that nothing else has, in which what is taken lies apart from its
 * neighbours. So it can be told of any pointer whether it is this device's, and whether what it points to is there. What is taken
 * and what is given back is filled with 0xff: NaN, as numbers. So is what lies just before it and behind, where a change is seen.
 */
#ifndef QUIRE_TESTS_SIM_MEMORY_H
#define QUIRE_TESTS_SIM_MEMORY_H

#include <stddef.h>
#include <stdint.h>

struct memory;

/* NULL: there is no room for it in the addresses of this process. */
struct memory *memory_new(size_t bytes);
/* Takes NULL. */
void memory_free(struct memory *m);

/* At a multiple of 256; NULL: too much is taken already. */
void *memory_take(struct memory *m, size_t bytes);
/* Whether it was one of m's. */
bool memory_give(struct memory *m, void *p);
size_t memory_left(const struct memory *m);

/* Whether all of it lies in one piece that is taken. */
bool memory_has(const struct memory *m, const void *p, size_t bytes);
/* What is taken, if it is, around which something has been written; NULL: all is well. */
void *memory_overrun(const struct memory *m);
/* Whether any of it is an address of any device. */
bool memory_is_devices(const void *p, size_t bytes);

/* Addresses whose pages come into being, as zeros, when they are touched; NULL: there are none. */
void *memory_reserve(size_t bytes);

/* For race.cc: like memory_has, at the price of a few instructions, for the few bytes of one access. */
enum { MEMORY_GRAIN = 256, MEMORY_APART = 64 << 10 };
struct memory_range {
	uintptr_t from, to;
	const uint16_t *taken;  /* of each MEMORY_GRAIN bytes, how many from the first on */
	void *shadow;           /* race.cc's, of m; NULL until it makes it */
	size_t shadow_bytes;
};
struct memory_range *memory_range_of(struct memory *m);
static inline bool memory_range_has(const struct memory_range *r, uintptr_t p)
{
	return p - r->from < r->to - r->from && p % MEMORY_GRAIN < r->taken[(p - r->from) / MEMORY_GRAIN];
}
/* Of all devices: as if made just now. */
void memory_wipe_shadows(void);
/* What was taken last before p, for messages; 0: nothing. */
uintptr_t memory_before(const struct memory *m, uintptr_t p, size_t *bytes);

#endif
