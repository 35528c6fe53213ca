/*
 * The race mode: kernels whose accesses are called out to us (-fsanitize=thread, without its library). An access that another
 * thread's leaves unordered is a fault, and so is one of memory that the kernel has not been given. A fault says where in the
 * code that was: addr2line -e build/tests/libquire_simrace.so 0x... names the line.
 */
#ifndef QUIRE_TESTS_SIM_RACE_H
#define QUIRE_TESTS_SIM_RACE_H

#include <stdint.h>

struct memory;

/* The device that launches from now on. */
void race_set_memory(struct memory *m);
void race_launch_begins(uint64_t n_blocks);
void race_block_begins(uint32_t number);

#endif
