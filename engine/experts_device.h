/*
 * The fastest tier of routed experts: slots in the memory of a device with kernels of its own (offload/backend.h), which computes what
 * lies there while the processor computes what lies in host memory.
 *
 *     WARM, chosen, worth it --upload-->  both  --its host slot is wanted for another-->  HOT (the device alone)
 *                                           ^                                               |
 *                                           +--- download: a better one has come up --------+
 *
 * An expert whose only copy is the device's takes no host memory, so that both memories count. A few slots of the device are kept free of
 * such ones: what is moved to be computed once goes there, and what takes a better one's place. When one comes up that is worth more than
 * the least of those that the device alone has, the two change places: its host slot receives the other.
 *
 * Numbers are the same wherever an expert is computed. Engine thread.
 */
#ifndef QUIRE_ENGINE_EXPERTS_DEVICE_H
#define QUIRE_ENGINE_EXPERTS_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"
#include "engine/engine.h"
#include "engine/experts.h"
#include "engine/model.h"

/* Bytes of a device's memory that experts get where nobody says how many. With less a device that nobody named is left alone. */
enum { EXPERTS_DEVICE_LEAST = 1 << 30 };
int64_t experts_device_room(const struct accelerator *a);

/* Whether there is such a tier. NULL: no. */
bool experts_have_device(const struct experts *x);

/* Those of ids [n] that the device has go to the end, and stay there until they are computed or experts_forget; returns how many others
 * there are, in their order. They count as hits. */
int32_t experts_split(struct experts *x, int32_t layer, int32_t *ids, int32_t n);

/* Inputs for an owner's products at a layer: rows gather[0 .. n) of u (NULL: 0 .. n - 1), each [hidden], as a chunk keeps them (bf16 in
 * profile bf16); and tokens [n_rows], which of these n each row that is computed is of (NULL: the same n). Both n and n_rows are at most
 * TILE_ROWS, or what CHUNK_FEW tokens choose. What another owner has begun is waited for and handed out first. */
void experts_device_begin(struct experts *x, const void *owner, int32_t layer, const void *u, const int32_t *gather, int64_t n,
			  const int32_t *tokens, int64_t n_rows, enum compute_profile profile);
/* The owner ends, perhaps early: nothing is handed out to it any more. */
void experts_device_end(struct experts *x, const void *owner);
/* The inputs there are those of this owner at this layer. */
bool experts_device_begun(const struct experts *x, const void *owner, int32_t layer);

/* Compute experts of a layer that the device has, each with its rows of `tokens`: some time between now and the end of
 * experts_device_collect. They may go then. experts: the layer's. n >= 1. out [n_rows, hidden]: rows first .. first + n - 1 of each are
 * written to it by then, or when somebody else begins; NULL: the next experts_device_collect hands them out. */
struct device_work {
	int32_t expert;
	int64_t first, n;
};
void experts_device_compute(struct experts *x, int32_t layer, const struct expert *experts, const struct device_work *work, int32_t n,
			    float *out);
/* Wait. Returns all rows [n_rows, hidden], which last until the next begin; NULL: the device has failed, which is final. */
const float *experts_device_collect(struct experts *x, struct err *err);

/* Should an expert that was taken (experts_take), n_left of which wait for the processor, this one included, be moved rather than computed
 * there with n tokens? If so it is on its way when this returns true, and can be computed; and experts_done may be said of it. */
bool experts_device_move(struct experts *x, int32_t layer, int32_t expert, int64_t n, int32_t n_left);
/* It will be taken next, and is moved already if it has come and that pays. */
void experts_device_move_next(struct experts *x, int32_t layer, int32_t expert, int64_t n);

#endif
