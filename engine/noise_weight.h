/*
 * A weight of seeded noise that stands in for a real one where only speed is measured: its values, its scales, and the bytes that
 * they take, are those of the format. Private to the engine.
 */
#ifndef QUIRE_ENGINE_NOISE_WEIGHT_H
#define QUIRE_ENGINE_NOISE_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

#include "engine/weight.h"

enum { NOISE_WEIGHT_ALIGN = 256 };

/* Bytes that a weight of this dtype and shape needs to be filled: a multiple of NOISE_WEIGHT_ALIGN. */
size_t noise_weight_bytes(const struct weight *w);

/* Fills `memory`, so many bytes at a multiple of 8, and makes w point there: its values at the beginning, behind them at a multiple of
 * NOISE_WEIGHT_ALIGN its scales, if the format has any, all of them 1. Values are from 1 to 2 of either sign, in E4M3 below 2, in
 * int4 any code. */
void noise_weight_fill(struct weight *w, void *memory, uint64_t seed);

#endif
