/*
 * Numbers as people write them. Bytes, durations and counts are whole numbers of 0 or more, written without sign,
 * separators or leading zeros; bytes and durations need a unit, so that nobody has to know which one is meant.
 * What is refused leaves *out alone, and the sentence quotes it (ERR_USAGE).
 */
#ifndef QUIRE_CONFIG_UNITS_H
#define QUIRE_CONFIG_UNITS_H

#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

/* "64GiB", "5GB", "4096B": B, KiB to PiB (powers of 1024), KB to PB (powers of 1000). */
int bytes_parse(int64_t *out, const char *text, struct err *err);

/* "250ms", "5s", "30m", "12h", "7d". */
int duration_parse(int64_t *out_ms, const char *text, struct err *err);

/* "1048576", within [least, most]. */
int count_parse(int64_t *out, const char *text, int64_t least, int64_t most, struct err *err);

/* "0.7", "1e-6": a decimal fraction within [least, most]; no infinity, no NaN. */
int fraction_parse(double *out, const char *text, double least, double most, struct err *err);

/* Exact, in the unit that makes the number shortest: what the parser above reads as the same value. */
enum { UNITS_TEXT_BYTES = 32 };
char *bytes_print(char out[UNITS_TEXT_BYTES], int64_t bytes);
char *duration_print(char out[UNITS_TEXT_BYTES], int64_t ms);
/* The shortest decimal that reads back as the same double. */
char *fraction_print(char out[UNITS_TEXT_BYTES], double value);

/* The one of n names that was most likely meant: fewest letters inserted, lost, changed or swapped with their
 * neighbour, the first on a tie; NULL when none is near (more than a third of the letters differ). */
const char *nearest_name(const char *name, const char *const *names, size_t n);

#endif
