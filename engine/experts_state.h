/*
 * The state of engine/experts.c, which has what happens to slots and reads, and of engine/experts_ahead.c, which has what is done
 * about guesses. Private to the two.
 */
#ifndef QUIRE_ENGINE_EXPERTS_STATE_H
#define QUIRE_ENGINE_EXPERTS_STATE_H

#include "config/err.h"
#include "engine/expert_guesses.h"
#include "engine/expert_reading.h"
#include "engine/expert_sums.h"
#include "engine/expert_warming.h"
#include "engine/experts.h"
#include "offload/ahead.h"
#include "offload/io.h"
#include "offload/policy.h"
#include "offload/spare.h"
#include "offload/trial.h"

enum { NONE = -1 };

enum slot_state { SLOT_FREE, SLOT_READING, SLOT_LANDING, SLOT_WARM }; /* LANDING: it comes from the device */

struct slot {
	char *memory;
	enum slot_state state;
	int32_t layer, expert;
	int64_t reading;             /* which one of all readings is in it, or on its way */
	int n_pending;               /* of r.n requests */
	struct io_request requests[EXPERT_PARTS];
	struct expert_reading r;     /* while it is being read, and this */
	struct expert_look *look;
	struct err err;              /* of a read */
	bool wanted;                 /* by the pass under way: it stays */
	bool ahead;                  /* read ahead, and not wanted yet */
	bool later;                  /* and that for a layer further on than the next */
	bool spare;                  /* or that for what it is worth: no router was thought to choose it */
	int32_t warmed;              /* read since tokens of a corpus chose it often, and not wanted yet: 1 + its place there; else 0 */
	bool guessed;                /* there, and its router is thought to choose it: it stays while there is room for what is wanted */
	int lent;                    /* copies to the device that are under way */
	bool cancelled;              /* it was, and then it was not going to be wanted: what still comes of it may be anything */
	int64_t cancelled_at;
	int n_left;                  /* pieces that were under way then */
	int tries;
};

struct experts {
	const struct checkpoint *files;
	struct io_file *direct;      /* [n_shards] the same files, past the page cache */
	struct io *io;
	struct expert_place *places;
	int32_t n_layers, n_experts, n_chosen;
	struct slot *slots;
	int32_t n_slots;
	int32_t first_free;          /* none before it is */
	int32_t n_wanted;            /* slots */
	size_t slot_bytes, piece_bytes;
	char *memory;
	int32_t *slot_of;            /* [n_layers, n_experts] NONE: cold */
	int32_t *spent;              /* [n_spent] slots, the last one used on top */
	int32_t n_spent;
	int32_t *reading;            /* [n_reading] slots that are being read into, the first one that began first */
	int32_t n_reading;
	struct policy *policy;
	struct trace_entry *entries; /* [n_experts] */
	struct expert_sums *sums;
	struct ahead admission;
	struct expert_guesses guesses;
	struct spare *spare;
	bool none_to_ask;            /* no router is left to speak in this pass, and looks_ahead */
	struct {
		int n_pieces;        /* of reads ahead, that were under way when others began that are waited for; 0: they have ended */
		int64_t since;
	} in_the_way;
	bool looks_ahead;            /* a router is going to speak, and nothing that was not said to be wanted is before that */
	int32_t n_awaited, n_guessed; /* experts that are being read since they are wanted; since they may be */
	int32_t n_later;             /* of these, for layers further on */
	int32_t n_spare;             /* since they are worth it */
	int64_t busy_since;          /* n_awaited was 0 until then */
	int32_t n_busy;              /* experts whose reads began since; NONE: one had begun before, so that no time of one is known */
	bool no_prediction;
	struct trial trial;          /* does prediction pay? */
	struct {
		bool whole;          /* all its routers have spoken */
		bool is_sweep;       /* one was in it: what was waited for is not known of its tokens alone */
		int64_t asked_at;    /* of a router it is being computed what it would choose; 0: of none */
		double asking_s, waited_s; /* waited_s: stats.waited_s when it began */
		int64_t n_observed, n_spoken;
	} pass;
	struct expert_warming warming;
	struct expert_device *device; /* NULL: there is none */
	struct experts_stats stats;
};

static inline size_t index_of(const struct experts *x, int32_t layer, int32_t expert)
{
	return (size_t)layer * (size_t)x->n_experts + (size_t)expert;
}

static inline struct slot *expert_slot(const struct experts *x, int32_t layer, int32_t expert)
{
	int32_t at = x->slot_of[index_of(x, layer, expert)];

	return at == NONE ? NULL : &x->slots[at];
}

static inline bool expert_is_among(int32_t id, const int32_t *ids, int32_t n)
{
	for (int32_t i = 0; i < n; i++)
		if (ids[i] == id)
			return true;
	return false;
}

/* Read ahead since a router is thought to choose it. */
static inline bool expert_is_guess(const struct slot *s)
{
	return s->ahead && !s->warmed && !s->spare;
}

/* Its bytes are here, and nobody needs them to stay. */
static inline bool expert_may_empty(const struct slot *s)
{
	return s->state == SLOT_WARM && !s->wanted && !s->guessed && !s->lent;
}

/* experts.c: what is wanted, guessed or neither may or may not go. */
void expert_hold(struct experts *x, struct slot *s, bool wanted);
/* A slot for somebody who is worth so much; NULL: everybody who is there is worth more, or is held. */
struct slot *expert_find_slot(struct experts *x, float worth);
void expert_begin_reading(struct experts *x, struct slot *s, int32_t layer, int32_t expert, enum io_class class);
/* What was read ahead is wanted now, or is not going to be. */
void expert_no_guess(struct experts *x, struct slot *s, bool wanted);
/* Pieces that may be under way of what nobody waits for. */
void expert_allow_ahead(struct experts *x, int pieces);
/* Pieces under way: of all, or of what is read ahead. */
int expert_pieces(const struct experts *x, bool ahead_only);
/* Take back all that is done. */
void expert_poll(struct experts *x);
/* The slot is free; what it held is cold, or the device's alone. */
void expert_empty(struct experts *x, struct slot *s);
/* What came from the device is there like any other. */
void expert_landed(struct experts *x, struct slot *s);

/* experts_device.c. Without a device they do nothing, and poll and settle are not called. */
int expert_device_open(struct experts *x, const struct experts_options *opt, struct err *err);
void expert_device_close(struct experts *x);
bool expert_is_on_device(const struct experts *x, int32_t layer, int32_t expert);
/* Take back copies that are done. */
void expert_device_poll(struct experts *x);
/* Wait for what lands in a slot. */
void expert_device_settle(struct experts *x, struct slot *s);
/* An expert has left its host slot, or has come into one. */
void expert_device_left(struct experts *x, int32_t layer, int32_t expert);
void expert_device_came(struct experts *x, int32_t layer, int32_t expert);
/* A host slot is free now, since the device has what it held. */
bool expert_device_gives_host_slot(struct experts *x);
/* The processor has just computed with it: is it worth having on the device? */
void expert_device_consider(struct experts *x, struct slot *s);
/* A sweep is done with it: what it takes on the device is free for the next. */
void expert_device_once(struct experts *x, int32_t layer, int32_t expert);
/* What was warmed, to the device, a few at a time. True: there is more to do. */
bool expert_device_warm(struct experts *x);
/* Nothing is wanted any more. */
void expert_device_forget(struct experts *x);
int32_t expert_device_slots(const struct experts *x);
void expert_device_stats(const struct experts *x, struct experts_stats *out);

/* experts_ahead.c: nothing stays for being guessed. Returns how many that lets go. */
int expert_free_guesses(struct experts *x);
/* The drive may have nothing to do that is waited for: on with what is guessed then. */
void expert_go_ahead(struct experts *x);
/* A pass has ended, early or not: does prediction pay? */
void expert_end_pass(struct experts *x);
/* A list is done with: its router chose ids, or will not speak. */
void expert_end_guesses(struct experts *x, struct guess_list *l, const int32_t *ids, int32_t n);

#endif
