/*
 * Whether it pays to ask routers ahead and to read what they are thought to choose: tried out. Admission (offload/ahead.h) begins
 * nothing that is likely to lose; but asking costs products, and where the drive is fast enough, or all is there, nobody waits for it,
 * asked or not. So now and then a few passes go the other way, and what their tokens lose is compared with what those right before and
 * after them did: the time that they waited for the drive, and what asking took. What they compute besides is the same. It asks until
 * not asking has turned out to lose less, by more than chance would explain.
 *
 * Pure: it measures nothing itself. One thread.
 */
#ifndef QUIRE_OFFLOAD_TRIAL_H
#define QUIRE_OFFLOAD_TRIAL_H

#include <stdbool.h>

/* What tokens lost in those passes of it that count. */
struct trial_block {
	double sum, squares;
};

enum { TRIAL_BEFORE, TRIAL_TRIED, TRIAL_AFTER, N_TRIAL_BLOCKS };

struct trial {
	bool asks;          /* in the pass under way */
	bool better;        /* of the passes that are no trial: to ask */
	int at;             /* the block that the next passes belong to; TRIAL_BEFORE: its last ones alone */
	double left;        /* passes of it */
	double interval;    /* passes from a trial to the next */
	struct trial_block blocks[N_TRIAL_BLOCKS];
	double less, error2, n_trials; /* what tokens lose less by not asking, an average of trials, and how far each may be off, squared */
	double lost_s, asking_s; /* averages of recent passes that were no trial, asking_s of those that asked; below 0: of none */
	double tried_s;     /* what those that were tried last lost */
};

/* It asks. */
void trial_init(struct trial *t);
/* A pass is over in which a token lost so many seconds, so many of them by asking; t->asks is for the next one. */
void trial_passed(struct trial *t, double lost_s, double asking_s);

#endif
