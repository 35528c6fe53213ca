/*
 * Small synthetic models whose experts can be packed, for the tests of that. All functions end the test on an error that it does
 * not ask about.
 */
#ifndef QUIRE_TESTS_PACKING_H
#define QUIRE_TESTS_PACKING_H

#include <stdint.h>

#include "engine/experts.h"
#include "engine/model.h"
#include "engine/pack.h"
#include "engine/synth.h"
#include "tests/support/safetensors_writer.h"

/* Rows of whole groups, three and two of them in gate and down; FP8 blocks end within them. Layers 1 to 4 have 9 experts. */
struct synth_options packing_options(enum synth_format format);
/* A directory for the test, with such a checkpoint in "a". */
char *packing_prepare(const struct synth_options *o);
/* dir/from to dir/to; opt NULL: two threads. */
struct pack_report packing_pack(const char *dir, const char *from, const char *to, const struct pack_options *opt);

int packing_try_open(struct model **m, const char *dir, const char *name, const struct experts_options *experts,
		     struct err *err);
struct model *packing_open(const char *dir, const char *name, const struct experts_options *experts);

/* Code i of a row, and element k of row r of any matrix, scales applied. */
int packing_code(const uint8_t *codes, int32_t i);
double packing_value(const struct weight *w, int32_t r, int32_t k);

/* config.json and tokenizer.json of "a" to dir/to. */
void packing_copy(const char *dir, const char *to);

/* The tensors of "a", those of routed experts written anew by `fill` as `dtype` ("F32", or two bytes each), to
 * dir/to/model.safetensors. */
typedef void packing_fill(void *ctx, const struct written_tensor *t, void *data, int64_t rows, int64_t cols);
void packing_rewrite(const char *dir, const char *dtype, packing_fill *fill, void *ctx, const char *to);

/* A packing_fill of BF16: whole numbers from -7 to 7, the first of a row 7 or -7, times a power of two. */
packing_fill packing_exact;

/* The error is of this code and has these words. */
void packing_says(const struct err *err, enum err_code code, const char *words);

#endif
