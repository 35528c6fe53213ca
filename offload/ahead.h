/*
 * Whether a read ahead is worth beginning. A guess at experts of the layers that come is read while nothing that is waited for is:
 * from then until the next router speaks the link would be idle. What is read in that window is time saved if the guess comes
 * true. If it does not, what is still under way when the router speaks holds up those that are waited for, what was
 * pushed out for it may have to come back, and the link could have carried something else (offload/spare.h). A guess at a layer further
 * on is wrong more often, and has the windows of those before it too: where an expert takes longer than a layer, it is what makes it
 * come in time.
 *
 * How often guesses come true is counted by their kind and rank, over those that were not there (of those a cache knows nothing, and
 * they are wrong more often than others); how long windows, transfers and such delays are is averaged. All of it is learned
 * while it runs, whether anything is read ahead or not, so that reading ahead comes back when it pays again.
 *
 * Pure: time is an argument, in nanoseconds of any clock. One thread.
 */
#ifndef QUIRE_OFFLOAD_AHEAD_H
#define QUIRE_OFFLOAD_AHEAD_H

#include <stdbool.h>
#include <stdint.h>

enum { AHEAD_RANKS = 64, AHEAD_STAGES = 10 };

/* What is guessed and what of. */
enum ahead_kind {
	AHEAD_WHOLE,  /* the next router to speak, of all that comes before its attention */
	AHEAD_NEXT,   /* the same, of a part */
	AHEAD_SECOND, /* the router after it */
	AHEAD_THIRD,
	N_AHEAD_KINDS
};

struct ahead {
	double guessed[N_AHEAD_KINDS][AHEAD_RANKS], needed[N_AHEAD_KINDS][AHEAD_RANKS]; /* the older, the less they count */
	double window_s[AHEAD_STAGES]; /* by how many experts are still to be computed when it begins; 0: none was seen */
	double idle_s;                 /* a window, or 0 where there was none, for each router that spoke */
	double n_missing;              /* of the guesses at it */
	double transfer_s;             /* of one expert, stalls aside; 0: none was seen */
	double piece_share;            /* of an expert, that is read at once and cannot be taken back */
	double behind_s;               /* that a read which is not wanted holds up those that are waited for */
	double waited;                 /* the share that nobody had begun to read, of experts that were wanted and would not have been there */
	double saves_instead;          /* transfers, by one of what nobody guessed */
	int64_t began;                 /* of the window under way; 0: none */
	int stage;
};

void ahead_init(struct ahead *a, int32_t n_chosen, double piece_share);

/* An expert of those that are waited for took so long. */
void ahead_carried(struct ahead *a, double seconds);
/* The link has nothing to do that is waited for, n_to_compute experts are there to be computed; only the first call of a window
 * counts. */
void ahead_idle(struct ahead *a, int n_to_compute, int64_t now);
/* The router has spoken: the window is over. So many of the last guesses at it were not there when they were made. */
void ahead_spoken(struct ahead *a, int n_missing, int64_t now);
/* It will not speak. */
void ahead_forget(struct ahead *a);
/* What came of guess `rank`, 0 the best, that was not there when it was made. */
void ahead_judge(struct ahead *a, enum ahead_kind kind, int32_t rank, bool needed);
/* An expert is wanted that would not be there but for being read ahead, if it was. */
void ahead_wanted(struct ahead *a, bool read_ahead);
/* A read was given up, or left for later, with so many pieces under way, and its last one ended so much later. What those that are
 * waited for lost is no more than that, nor than what so many pieces take, since the link served them as well; and what it took
 * beyond some times what all needs that was under way in the end, n_others pieces of theirs with it: it stalled. 0, 0, 0: nobody was
 * waiting. */
void ahead_held_up(struct ahead *a, int n_pieces, int n_others, double seconds);

/* How often guesses of a rank come true, of those that are not there. */
double ahead_chance(const struct ahead *a, enum ahead_kind kind, int32_t rank);
/* Seconds in which the link is likely to be idle until the router of such a guess speaks. */
double ahead_left(const struct ahead *a, enum ahead_kind kind, int64_t now);
/* The most that what guess `rank` pushes out may be worth (offload/policy.h), with n_before experts to be read ahead before
 * it; 0: it is not worth beginning, though a slot be free. */
float ahead_bid(const struct ahead *a, enum ahead_kind kind, int32_t rank, int n_before, int64_t now);
/* One of what nobody guessed saves so many transfers later on: is it worth beginning, where no guess is? It goes on in later windows. */
bool ahead_is_worth(const struct ahead *a, double saves, int64_t now);
/* That is what guesses keep the link from. */
void ahead_instead(struct ahead *a, double saves);
/* Pieces that can be read until the next router is likely to speak, 1 at least. */
int ahead_pieces(const struct ahead *a, int64_t now);

#endif
