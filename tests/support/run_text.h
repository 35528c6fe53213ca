/*
 * An ingest that is saved as it goes, through cache/run.h: each part of a text's latents is a layer, with a checkpoint
 * after each but the last. What it begins with is compared with what was saved; failures end the test.
 */
#ifndef QUIRE_TESTS_SUPPORT_RUN_TEXT_H
#define QUIRE_TESTS_SUPPORT_RUN_TEXT_H

#include "cache/run.h"
#include "tests/support/store_text.h"

enum { N_PARTS = N_GROUPS + N_INDEX_LAYERS, STATE_BYTES = 5000, STATE_PIECE = 1900 };

/* The tokens of a text from `first` on. */
int run_begin(struct cache_run **r, struct cache *c, const struct text *t, int32_t first, int32_t *next_layer,
	      struct err *err);
/* n tokens of one part, where `from` is the text's token with which the run begins. */
int run_put(struct cache_run *r, const struct text *t, int32_t from, int part, int32_t first, int32_t n, struct err *err);
/* The state of an ingest before a layer. */
void run_state_of(uint8_t out[STATE_BYTES], const struct text *t, int32_t next_layer);

/* A whole checkpoint, or a whole state, in pieces of so many bytes. */
int run_save(struct cache_run *r, int32_t next_layer, const uint8_t *state, size_t bytes, size_t piece, struct err *err);
int run_saved(struct cache_run *r, uint8_t *state, size_t bytes, size_t piece, struct err *err);

/* The whole way, to the snapshot; or, `until` less than N_PARTS, until that many layers are saved, and no further.
 * *from is the layer with which it began. A state that is damaged is begun anew, a checkpoint that fails is done
 * without. */
int run_text(struct cache *c, const struct text *t, int until, int32_t *from, struct err *err);

/* Every rule holds and every stored byte is right. */
void must_be_whole(struct cache *c);

#endif
