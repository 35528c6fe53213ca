/*
 * XXH3-64 of each expert of a model, kept in a file of their own: published files carry none. A sum is of the first read
 * (trusted since then) or verified (`quire model verify`). The file has a sum of itself; one that is damaged, or of
 * another model, is a warning and counts as none. Private to engine/experts.c.
 */
#ifndef QUIRE_ENGINE_EXPERT_SUMS_H
#define QUIRE_ENGINE_EXPERT_SUMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

struct expert_sums;

/* path NULL: in memory alone. fingerprint [32] may be NULL then. */
int expert_sums_open(struct expert_sums **out, const char *path, const uint8_t *fingerprint, size_t n, struct err *err);
/* Write what is new, then free. */
int expert_sums_close(struct expert_sums *s, struct err *err);

bool expert_sums_known(const struct expert_sums *s, size_t i);
/* True too when there is none yet. */
bool expert_sums_match(const struct expert_sums *s, size_t i, uint64_t sum);
void expert_sums_note(struct expert_sums *s, size_t i, uint64_t sum);
void expert_sums_verified(struct expert_sums *s, size_t i);
int64_t expert_sums_trusted_first(const struct expert_sums *s);

#endif
