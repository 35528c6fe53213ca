/*
 * A checksum of each expert of a model, kept in a file of their own: published files carry none. It is the XXH3-64 of the XXH3-64s
 * (native byte order) of each WEIGHT_SUM_BYTES of each part, parts in their order, so that threads can look at an expert in whatever
 * order suits them. A sum is of the first read (trusted since then) or verified (`quire model verify`). The file has a sum of itself;
 * in the store one that is damaged, of another model or of another version is a warning and counts as none.
 *
 * `quire model pack` writes such a file beside the experts it packs, EXPERT_SUMS_NAME. Nothing is noted anew there: all that is
 * read must be what it says. It has no fingerprint (zeros), so that a damaged byte is found in its expert and not in the
 * fingerprint of all. Private to the engine.
 */
#ifndef QUIRE_ENGINE_EXPERT_SUMS_H
#define QUIRE_ENGINE_EXPERT_SUMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

struct expert;
struct expert_sums;

#define EXPERT_SUMS_NAME "expert-sums"

/* dir: of the model's files; where they came with sums, those count and no others. NULL: it is not looked at. path: where
 * sums are kept; NULL: in memory alone. fingerprint [32]; NULL: zeros. n: layers x experts. */
int expert_sums_open(struct expert_sums **out, const char *dir, const char *path, const uint8_t *fingerprint, size_t n,
		     struct err *err);
/* Whether they came with the model's files. */
bool expert_sums_shipped(const struct expert_sums *s);
/* Write what is new, then free. */
int expert_sums_close(struct expert_sums *s, struct err *err);

/* From the sums of an expert's parts. */
uint64_t expert_sum(const uint64_t *sums, size_t n);
/* Of an int4 expert in memory, the same as of its parts in a file: codes, then scales, of gate, up and down. */
uint64_t expert_sum_int4(const struct expert *e);

bool expert_sums_known(const struct expert_sums *s, size_t i);
/* True too when there is none yet. */
bool expert_sums_match(const struct expert_sums *s, size_t i, uint64_t sum);
void expert_sums_note(struct expert_sums *s, size_t i, uint64_t sum);
void expert_sums_verified(struct expert_sums *s, size_t i);
int64_t expert_sums_trusted_first(const struct expert_sums *s);

#endif
