/* What the files of a model are, in 32 bytes: the part of the model identity that they decide. */
#ifndef QUIRE_ENGINE_FINGERPRINT_H
#define QUIRE_ENGINE_FINGERPRINT_H

#include <stdint.h>

#include "config/err.h"
#include "engine/checkpoint.h"
#include "engine/model.h"

/* BLAKE2b-256 of: the config's text; tokenizer.json, if there is one; and for every tensor in name order its name,
 * dtype, shape and the BLAKE2b-256 of its bytes: all of them up to 1 MiB, else the first and last 4 KiB. Each part
 * is preceded by its length as u64, little-endian (all ones: there is no such part). Files of other names or a
 * different split into shards do not change it. */
int fingerprint_model(uint8_t out[MODEL_ID_BYTES], const struct model_config *config, const struct checkpoint *files,
		      struct err *err);

#endif
