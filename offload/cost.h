/*
 * Compute or move: a routed expert whose weights lie in host memory, beside a device with kernels of its own, is computed on the
 * processor, or moved to the device and computed there. What that takes depends on how many tokens chose it, and on the machine: it is
 * measured (engine/tune.h), and decided here. Pure.
 */
#ifndef QUIRE_OFFLOAD_COST_H
#define QUIRE_OFFLOAD_COST_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

enum { COST_POINTS = 10, COST_LAST = 1 << (COST_POINTS - 1) }; /* at 1, 2, 4 .. 512 tokens */

/* Of one expert, in seconds. */
struct cost {
	double host_s[COST_POINTS];   /* its three products on the processor */
	double device_s[COST_POINTS]; /* the same on the device, where its weights are: the tokens' inputs on their way there and what
					 comes of them on its way back included. All 0, as is upload_s: there is no device */
	double upload_s;              /* its bytes to the device, from pinned host memory */
};

bool cost_has_device(const struct cost *c);

/* For n >= 1 tokens: straight lines between points, in proportion to tokens beyond the last one. */
double cost_host(const struct cost *c, int64_t n);
double cost_device(const struct cost *c, int64_t n);

/*
 * Should one more expert that lies in host memory be moved? n_left >= 1 of them, this one included, which about n_tokens tokens chose
 * each, are still to be computed on the processor one after another, and the link is busy for backlog_s with those that are moved
 * already. Yes, when this one would be done no later than the processor with all n_left.
 *
 * Asked again and again while the answer is yes, with one less to compute and upload_s more of backlog, it moves a share that ends about
 * together with the rest: at most one expert's time on the processor later than the best share would. Where the device computes for
 * longer than an upload takes, its queue is what counts: backlog_s is then the time for which it is busy, less upload_s.
 */
bool cost_moves(const struct cost *c, int64_t n_tokens, int32_t n_left, double backlog_s);

/* From so many tokens on, to COST_MOST at least, one expert alone is moved; 0: not even at COST_MOST. */
enum { COST_MOST = 65536 };
int64_t cost_break_even(const struct cost *c);

/* ERR_FORMAT: a time is not finite, or not above 0. All of the device's may be 0. */
int cost_check(const struct cost *c, struct err *err);

#endif
