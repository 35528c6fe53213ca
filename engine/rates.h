/*
 * What this machine achieves with the engine's own kernels and reads, for a plan: some tenths of a second each, so that
 * they can be asked for in passing. The best of a few tries counts, since a plan is about a machine that is free.
 */
#ifndef QUIRE_ENGINE_RATES_H
#define QUIRE_ENGINE_RATES_H

#include "config/err.h"
#include "engine/engine.h"
#include "engine/weight.h"

/* Bytes per second of weights of a format that one row is multiplied with: what is to be widened first goes more slowly. */
int rates_read(struct engine *e, enum dtype dtype, double *bytes_per_s, struct err *err);
/* Operations per second of many rows times a bf16 weight; a multiply-add is two. */
int rates_compute(struct engine *e, double *flops, struct err *err);
/* Bytes per second of reads as large as experts, past the page cache, from the largest of a model's files; where these lie on several
 * drives, from the largest on each, and what all together give when each is read as much as it has of them.
 * ERR_NOT_FOUND: a drive has none of 64 MiB. */
int rates_disk(const char *dir, double *bytes_per_s, struct err *err);

#endif
