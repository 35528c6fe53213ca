/* Models with some of their experts in memory, in tests. */
#ifndef QUIRE_TESTS_SUPPORT_IN_SLOTS_H
#define QUIRE_TESTS_SUPPORT_IN_SLOTS_H

#include <stdint.h>

#include "config/err.h"
#include "engine/engine.h"
#include "engine/experts.h"
#include "tests/support/golden.h"

/* model_open with these; NULL: all in memory. */
int in_slots_open(struct model **m, const char *dir, const struct experts_options *experts, struct err *err);
/* The same of a golden checkpoint, by its name; an error ends the test. */
struct model *in_slots_model(const char *checkpoint, const struct experts_options *experts);
/* Bytes of the fewest slots that a golden checkpoint runs with, and so many more. */
int64_t in_slots_bytes(const char *checkpoint, int more);
/* 40 tokens at once. logits: of the last, NULL: none. -1 and what went wrong. */
int in_slots_run(struct model *m, struct engine *e, float *logits, struct err *err);
/* The same positions, and the same bits of all logits; else the test fails. */
void in_slots_same_logits(const struct golden_run *a, const struct golden_run *b);

#endif
