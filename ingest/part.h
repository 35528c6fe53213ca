/*
 * What of one ingest is computed in one sweep: the tokens of the first spans that are missing, as many as its scratch memory
 * has room for. They have a session, a run of the store and what stands before them, from part_open to part_end. Private to
 * ingest/: job.c has the parts, batch.c sweeps them.
 *
 *     choose --> open --> (sequence of a sweep) --> commit
 *                  \--> end: what had a checkpoint waits for the next open
 */
#ifndef QUIRE_INGEST_PART_H
#define QUIRE_INGEST_PART_H

#include "engine/sweep.h"
#include "ingest/ingest.h"

struct part_limits {
	size_t scratch_bytes;
	bool always_checkpoint;
	size_t state_piece_bytes;
	int64_t max_tokens;
};
const struct part_limits *part_limits(const struct ingest *in);

/* The next part; *n_tokens 0: nothing is missing. What somebody else has stored meanwhile is not missing any more. */
int part_choose(struct ingest *in, int64_t *n_tokens, struct err *err);
/* Of the part that was chosen: tokens whose latents are in memory, group by group, while it is computed. */
int64_t part_row_tokens(const struct ingest *in);
/* A sweep of so many tokens, as this one's scratch memory allows. */
int part_plan(const struct ingest *in, int64_t n_tokens, struct sweep_plan *plan);
/* What is missing first is missing in the other one too, which will compute it. */
bool part_waits_for(const struct ingest *in, const struct ingest *other);

/* 1: the part that was chosen is open, and has been through the layers before *next_layer; 0: a span before it is missing
 * after all, so choose again; -1: it cannot be. */
int part_open(struct ingest *in, int32_t *next_layer, struct err *err);
/* Valid until part_end. */
void part_sequence(struct ingest *in, struct sweep_sequence *q);
/* It is in a sweep that has begun; and has now been through so many layers. */
void part_begun(struct ingest *in, int32_t first_layer);
void part_swept(struct ingest *in, int32_t n_layers);
/* All of it has been through all layers. Ends it, whether that goes well or not. */
int part_commit(struct ingest *in, struct err *err);
/* The sweep must have ended. Nothing happens when none is open. */
void part_end(struct ingest *in);

/* After a sweep that failed: whether this one's store did. */
enum part_fault {
	PART_SOUND,
	PART_SINK,   /* it does not take what was computed */
	PART_STATE,  /* it has not what its checkpoint kept */
};
enum part_fault part_fault(const struct ingest *in);
/* After the sweep: this position, which a part stands on, is computed again; a part begins anew at the first layer. Both end
 * it. */
int part_miss(struct ingest *in, int64_t position, const struct err *why, struct err *err);
int part_forget(struct ingest *in, const struct err *why, struct err *err);

/* Say whose error it is. */
int part_wrap(const struct ingest *in, struct err *err);

#endif
