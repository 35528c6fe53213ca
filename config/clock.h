/*
 * The monotonic clock: for durations and deadlines, never for dates.
 */
#ifndef QUIRE_CONFIG_CLOCK_H
#define QUIRE_CONFIG_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t clock_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int64_t clock_now_ms(void)
{
	return clock_now_ns() / 1000000;
}

/* Seconds since a clock_now_ns. */
static inline double clock_seconds_since(int64_t ns)
{
	return (double)(clock_now_ns() - ns) * 1e-9;
}

#endif
