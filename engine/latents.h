/*
 * One row of latents, and one index key, as stored and as attended to (docs: layout.h). Attention only ever sees what
 * unpack gives of what pack made, also while latents are first computed; that is why a warm answer has the bits of a
 * cold one.
 *
 * FP8: the scale of a run of 128 values is the smallest power of two s >= 2^-100 with 448 s >= the largest magnitude;
 * codes round to nearest even, so a value comes back exact in bf16.
 */
#ifndef QUIRE_ENGINE_LATENTS_H
#define QUIRE_ENGINE_LATENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/layout.h"

/* values [kv_lora + rope_dim] -> row [layout.row_bytes]. False when a value is not finite, or too large for bf16. */
bool latent_pack(enum latent_format format, uint8_t *row, const float *values, int32_t kv_lora, int32_t rope_dim);

/* The other way. False when the row holds what is not finite (bytes from a store). */
bool latent_unpack(enum latent_format format, float *values, const uint8_t *row, int32_t kv_lora, int32_t rope_dim);

/* Index keys are bf16 in every format but LATENTS_F32. */
bool index_key_pack(enum latent_format format, uint8_t *key, const float *values, int32_t dim);
bool index_key_unpack(enum latent_format format, float *values, const uint8_t *key, int32_t dim);

#endif
