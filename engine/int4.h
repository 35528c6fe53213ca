/*
 * Weights to int4 in groups of 64 (DTYPE_INT4 of weight.h), by the one rule that `quire model pack` has: a group's scale is its
 * greatest magnitude / 7, rounded to bf16; a code is 8 + the nearest whole number to value / scale, halves to even: from 1 to
 * 15. Where that scale would be below 2^-126, a group of zeros for one, it is 0 and the codes are 8. An FP8 value is the e4m3
 * value x its block's scale, rounded once to float32. Nothing of it depends on the processor or on how many rows are done
 * together.
 */
#ifndef QUIRE_ENGINE_INT4_H
#define QUIRE_ENGINE_INT4_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/weight.h"

struct int4_error {
	double lost, whole; /* sums of squares: of value - packed value, and of the values */
};

/* Row r of w, cols a multiple of 64, to codes [cols / 2] and scales [cols / 64] (bf16). -1: all is well; else the first
 * column that holds, or with its block's scale gives, a NaN or infinity. */
int32_t int4_pack_row(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w, int32_t r);

/* Bytes of a matrix's codes, and of its scales. */
static inline uint64_t int4_code_bytes(int64_t rows, int64_t cols)
{
	return (uint64_t)rows * (uint64_t)cols / 2;
}

static inline uint64_t int4_scale_bytes(int64_t rows, int64_t cols)
{
	return (uint64_t)rows * (uint64_t)(cols / INT4_GROUP) * sizeof(uint16_t);
}

#endif
