/*
 * Routed experts that need not all be in memory: a number of slots, each with room for one, filled from the safetensors
 * files as they were published when a router asks for what is not there.
 *
 *     COLD  --want, take: a slot, reads submitted-->  READING  --all read, and looked at or to be-->  WARM
 *       ^                                                                                             |
 *       +---------------------------- its slot is wanted for another, nobody holds it ---------------+
 *
 * An expert is three matrices and their scales, wherever they lie; neighbours in a file are one read, past the page cache,
 * aligned around what is wanted. Each read is looked at once: the first time for NaN and infinity, and its checksum is noted (so it
 * is trusted from its first read on); later, and always where sums came with the files, the sum decides. A sum that differs is
 * read once more, then it is an error that names layer, expert and file. Numbers never depend on what is in which slot.
 *
 * Whoever waits looks at what has come so far. What is left when the last bytes are there is looked at by all threads as they compute
 * with it for the first time (expert_reading.h), and what they computed counts after that: one thread's look takes as long as a fast
 * drive takes to bring the next expert.
 *
 * Which expert goes: one that a sweep has just used, since a sweep comes round to it last; else the one that is worth least
 * (offload/policy.h). What a corpus chose often is read while nobody asks for anything. Engine thread.
 */
#ifndef QUIRE_ENGINE_EXPERTS_H
#define QUIRE_ENGINE_EXPERTS_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"
#include "engine/checkpoint.h"
#include "engine/weight.h"
#include "offload/ahead.h"
#include "offload/backend.h"

struct accelerator;
struct cost;

/* One tensor of an expert, or its share of a stacked one. */
struct expert_part {
	size_t shard;          /* of the checkpoint */
	uint64_t offset, bytes; /* in the file */
	enum dtype dtype;
	const struct tensor *tensor;
	const void **where;    /* set while a slot is the expert's: from when it is read on */
	uint64_t **sums;       /* where its matrix has checksums of it: set until they are known; NULL: it has none, of fp8's scales */
};

enum { EXPERT_PARTS = 6 };

/* Parts in the order in which they are used: those of gate and up, n_half of them, then those of down. */
struct expert_place {
	int n_parts, n_half;
	struct expert_part parts[EXPERT_PARTS];
};

struct experts_options {
	int64_t bytes;            /* of all slots */
	int32_t n_slots;          /* unless 0: so many, whatever a token uses; for who takes one at a time */
	const char *sums_path;    /* where sums are kept; NULL: in memory, until the end */
	const uint8_t *fingerprint; /* [32] of the model that the sums belong to, which the model fills in */
	bool no_prediction;
	/* A device with kernels of its own, which must outlive the experts (experts_device.h); NULL: none. Bytes of its memory for experts,
	 * 0: experts_device_room. What products and moves cost; NULL: nothing is moved to be computed once. */
	struct accelerator *device;
	int64_t device_bytes;
	const struct cost *cost;
	int32_t hidden, expert_dim;      /* of the experts, which the model fills in */
	const struct io_backend *backend; /* tests: as struct io_options */
	void *backend_state;
	size_t piece_bytes;              /* tests: of a read; 0: EXPERT_PIECE */
};

struct experts;

/* places [n_layers, n_experts], n_parts 0 where a layer has none; taken over. What `where` and `sums` point to is written, and must
 * outlive it, as must the checkpoint. ERR_TOO_LARGE, with the numbers, when there is no room for as many experts as a token uses and
 * one more. */
int experts_open(struct experts **out, const struct checkpoint *files, struct expert_place *places, int32_t n_layers,
		 int32_t n_experts, int32_t n_chosen, const struct experts_options *opt, struct err *err);
/* Takes NULL. Keeps the sums, if they have a path. */
void experts_close(struct experts *x);

int32_t experts_slots(const struct experts *x);
/* Where one lies; n_parts 0: the layer has none. */
const struct expert_place *experts_place(const struct experts *x, int32_t layer, int32_t expert);

/* These will be taken, in this order: reads begin for what is not there, as far as slots go. */
void experts_want(struct experts *x, int32_t layer, const int32_t *ids, int32_t n);
/* Wait until it is there; then its matrices can be used until experts_done. -1: it cannot be read, or is not what it was. */
int experts_take(struct experts *x, int32_t layer, int32_t expert, struct err *err);
/* The same, but whether it is what it was may turn out later: what is computed with it counts when experts_prove has said so. Products
 * look at what they read; what they have left is looked at then. */
int experts_take_unproved(struct experts *x, int32_t layer, int32_t expert, struct err *err);
/* *again: it was not, and has been read once more, and is now: compute with it again. -1: as in experts_take. */
int experts_prove(struct experts *x, int32_t layer, int32_t expert, bool *again, struct err *err);
/* What there is to compute with of n >= 1, which are wanted from now on: ids[*which]. */
enum experts_came {
	EXPERTS_NONE,  /* nothing: not said to who waits */
	EXPERTS_HALF,  /* to who wants halves: gate and up have come and can be multiplied, though they may turn out to be damaged */
	EXPERTS_WHOLE, /* it is to be taken: that is all that can be done */
};
enum { EXPERTS_WAIT = 1, EXPERTS_HALVES = 2 };
enum experts_came experts_come(struct experts *x, int32_t layer, const int32_t *ids, int32_t n, int flags, int32_t *which);
/* Of one that came by half or was taken: the number of the read that brought it. With another number, nothing computed counts. */
int64_t experts_reading(const struct experts *x, int32_t layer, int32_t expert);
/* For whoever computes for long: the drive shall not wait for that. */
void experts_go_on(struct experts *x);
/* spent: it is not needed again before most others. */
void experts_done(struct experts *x, int32_t layer, int32_t expert, bool spent);
/* All that was wanted and not taken is let go: a forward pass ended early. */
void experts_forget(struct experts *x);

/* A router's scores of one token, higher is better, and its choice: what experts are worth is learned from them. */
void experts_observe(struct experts *x, int32_t layer, const float *scores, const int32_t *chosen);
/* A router has spoken: it chose these, for all tokens of a pass. What is to come of guesses at it is known, and what was read ahead
 * in vain is let go. */
void experts_spoken(struct experts *x, int32_t layer, const int32_t *ids, int32_t n);
/* Should a router that has yet to speak be asked now what it would choose? It costs a product, and pays when that can be read before
 * anything is waited for; whether that is so at all is tried now and then (offload/trial.h). waits: the caller is about to wait for
 * experts. */
bool experts_ask(struct experts *x, int32_t layer, enum ahead_kind kind, bool waits);
/* No router is left to ask in this pass, and what the last one chose is wanted already. */
void experts_ask_none(struct experts *x);
/* What it would choose, best guess first: what is worth it (offload/ahead.h) is read ahead, in moments when nothing that is waited
 * for is being read, the nearest layer first, and then what is worth most of those that are not there (offload/spare.h). A nearer
 * kind of guess takes the place of others at the same router. */
void experts_ahead(struct experts *x, int32_t layer, enum ahead_kind kind, const int32_t *ids, int32_t n);
/* Between two tokens: read ahead from now on, or not, whatever no_prediction said. */
void experts_predict(struct experts *x, bool on);

/*
 * How often a corpus's tokens chose each expert, [n_layers, n_experts] (cache/routing.h): what is worth having there before its first
 * question. Replaces what was expected before; what experts are worth begins from it.
 */
void experts_expect(struct experts *x, const int64_t *chosen);
/* A moment in which nobody asks for anything: take what came, and begin the next reads of those most chosen into slots that are free
 * or hold what is worth less. Never waits. The first experts_want ends what is on its way for nobody. False: all is done that
 * can be; true: call again, when experts_fd is readable or in the next such moment. */
bool experts_warm(struct experts *x);
/* For poll, as io_fd. */
int experts_fd(struct experts *x, struct err *err);

struct experts_stats {
	int64_t n_slots, slot_bytes;
	int64_t n_experts;                /* all there are */
	int64_t resident;
	int64_t taken, hits, late;        /* hits: resident when wanted; late: on their way then */
	int64_t ahead, useful;            /* reads begun since a router was thought to choose it, and of those wanted next */
	bool asks_ahead;                  /* routers are asked ahead: it pays, or it has not turned out not to (offload/trial.h) */
	int64_t spare;                    /* reads begun since it is worth more than who went for it */
	int64_t warmed, warmed_used;      /* that came before anybody asked; of those, asked for before they went */
	int64_t behind;                   /* times that what was waited for was held up by reads ahead given up, or left for later */
	int64_t reads, read_bytes;        /* of experts, begun; bytes that came of the files, of reads that were given up too */
	int64_t halves;                   /* computed with before they were whole */
	int64_t retried;                  /* read again since the sum was wrong */
	int64_t trusted_first;            /* experts whose sum is of their first read */
	bool sums_shipped;                /* sums came with the model's files */
	double waited_s;
	const char *backend;
	/* The device's, device_slots 0: there is none. */
	char device[BACKEND_TEXT];
	int64_t device_slots, device_resident, device_alone; /* alone: no copy in host memory */
	int64_t device_hits;              /* there when wanted; not among taken and hits */
	int64_t moved;                    /* to be computed once */
	int64_t raised, lowered;          /* to the device since they are worth it; from it to host memory */
	int64_t device_up_bytes, device_down_bytes; /* of experts */
};
void experts_stats(const struct experts *x, struct experts_stats *out);

/* Read every expert once and check or note its sum; `report` may be NULL. A sum noted so counts as verified. */
int experts_verify(struct experts *x, void (*report)(void *ctx, int64_t done, int64_t of), void *ctx, struct err *err);

#endif
