/*
 * What an expert takes on this machine, on the processor and on a device beside it: struct cost (offload/cost.h), measured with the
 * engine's own kernels on made-up weights, so many experts in turn that caches do not hold them.
 *
 * Each point is the median of a few tries. Once one takes more than TUNE_TOO_LONG_S, those beyond it are taken to be in proportion, which
 * is what a product of many rows comes to: a slow machine shall not need seconds for them. A point that took longer than one with more
 * tokens was disturbed, and counts as that one. It takes some tenths of a second for the processor, about one on a slow one, as much for
 * a device, and 256 MiB of memory, or two experts where these are larger. Engine thread; the machine should have nothing else to do.
 */
#ifndef QUIRE_ENGINE_TUNE_H
#define QUIRE_ENGINE_TUNE_H

#include "config/err.h"
#include "engine/engine.h"
#include "offload/accelerator.h"
#include "offload/cost.h"

#define TUNE_TOO_LONG_S 0.3

/* Of gate [dim, hidden], up [dim, hidden] and down [hidden, dim]. */
struct tune_shape {
	enum dtype dtype;
	int32_t hidden, dim;
};

/* Of a model's routed experts, which need not be loaded: the first one's, in the dtype of its gate. ERR_USAGE: it has none. */
int tune_shape_of(struct tune_shape *shape, const struct model *m, struct err *err);

/* With the threads, instruction set and compute profile of the engine. a NULL: on the processor alone. */
int tune_measure(struct cost *c, struct engine *e, const struct tune_shape *shape, struct accelerator *a, struct err *err);

/* The points alone, of whatever is timed: once(ctx, n, ..) does it for n tokens and says how long that took. */
typedef int tune_once(void *ctx, int64_t n, double *seconds, struct err *err);
int tune_points(double s[COST_POINTS], tune_once *once, void *ctx, struct err *err);

#endif
