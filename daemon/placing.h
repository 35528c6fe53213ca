/*
 * Where a model's routed experts will be on this machine, decided before it is loaded by the function that `quire plan` prints
 * (engine/plan.h): in memory all of them, or in a tier of so many bytes that reads the others from the disk.
 */
#ifndef QUIRE_DAEMON_PLACING_H
#define QUIRE_DAEMON_PLACING_H

#include <stdint.h>

#include "config/config.h"
#include "engine/layout.h"
#include "engine/model.h"

/*
 * For the model of c->model.path and the memory that is available now. *expert_bytes: of the tier, tiers.host_experts or,
 * where that is auto, what weights that every token uses, the context and work space leave; 0: all experts are loaded.
 * ERR_TOO_LARGE, with the numbers and what to change, when the model does not fit whatever goes to the disk. root: as in
 * machine.h. A model that cannot be read or planned is not refused here: whoever opens it says why.
 */
int placing_make(int64_t *expert_bytes, const struct config *c, enum latent_format latents, const char *root, struct err *err);

/*
 * Beside a device with so much memory for experts, what host memory still has to hold of them: of expert_bytes as placing_make has it, the
 * part that the device does not take, and some that are on their way to it. Never 0.
 */
int64_t placing_beside(int64_t expert_bytes, int64_t device_bytes, const struct model *headers);

#endif
