/* Counts that whoever starts a long test may choose. */
#ifndef QUIRE_TESTS_SUPPORT_ENVIRONMENT_H
#define QUIRE_TESTS_SUPPORT_ENVIRONMENT_H

#include <stdint.h>

/* The number that the environment has for `name`, or the usual one. What is no number ends the program with status 2. */
uint64_t count_from_environment(const char *name, uint64_t usual);

#endif
