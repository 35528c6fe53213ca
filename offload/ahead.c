#include "offload/ahead.h"

#include <math.h>

#define FADE    .995 /* of a count with each new one: some hundred are remembered */
#define AVERAGE .85  /* of an average with each new number */
#define SURE    .8   /* of what the last window could save as well, counted as saved: it may have several to read */
#define NOTICED .5   /* of what is carried of a wrong guess, until a nearer look says that it is one */
#define STALL   4    /* times what others take: what is beyond that is no transfer's speed, but a drive that stalls */
#define FORGIVE .998 /* of delays, with each window: a disk that was slow is tried again */

/* Beside those of AHEAD_NEXT, as they are in the pocket model. */
static const double first_chances[N_AHEAD_KINDS] = {1.05, 1, .7, .5};

/* Routers that speak before that of a guess. */
static int routers_before(enum ahead_kind kind)
{
	return kind <= AHEAD_NEXT ? 0 : (int)kind - AHEAD_NEXT;
}

void ahead_init(struct ahead *a, int32_t n_chosen, double piece_share)
{
	*a = (struct ahead){.piece_share = piece_share < 1 ? piece_share : 1, .waited = 1};
	/* As others found it: three guesses of four come true, the first ones more often; of those that are not there, fewer. */
	for (int k = 0; k < N_AHEAD_KINDS; k++)
		for (int i = 0; i < AHEAD_RANKS; i++) {
			a->guessed[k][i] = 10;
			a->needed[k][i] = 10 * (i < n_chosen ? .8 - .4 * i / n_chosen : .3) * first_chances[k];
		}
}

static void average(double *of, double x)
{
	*of = *of > 0 ? AVERAGE * *of + (1 - AVERAGE) * x : x;
}

void ahead_carried(struct ahead *a, double seconds)
{
	average(&a->transfer_s, a->transfer_s > 0 ? fmin(seconds, STALL * a->transfer_s) : seconds);
}

void ahead_idle(struct ahead *a, int n_to_compute, int64_t now)
{
	if (a->began)
		return;
	a->began = now;
	a->behind_s *= FORGIVE;
	a->stage = n_to_compute < AHEAD_STAGES ? n_to_compute : AHEAD_STAGES - 1;
}

void ahead_spoken(struct ahead *a, int n_missing, int64_t now)
{
	double window = a->began ? (double)(now - a->began) / 1e9 : 0;

	if (a->began)
		average(&a->window_s[a->stage], window);
	a->idle_s = AVERAGE * a->idle_s + (1 - AVERAGE) * window;
	a->n_missing = AVERAGE * a->n_missing + (1 - AVERAGE) * n_missing;
	a->began = 0;
}

void ahead_forget(struct ahead *a)
{
	a->began = 0;
}

void ahead_judge(struct ahead *a, enum ahead_kind kind, int32_t rank, bool needed)
{
	int i = rank < AHEAD_RANKS ? rank : AHEAD_RANKS - 1;

	a->guessed[kind][i] = FADE * a->guessed[kind][i] + 1;
	a->needed[kind][i] = FADE * a->needed[kind][i] + needed;
}

void ahead_wanted(struct ahead *a, bool read_ahead)
{
	a->waited = FADE * a->waited + (1 - FADE) * !read_ahead;
}

void ahead_held_up(struct ahead *a, int n_pieces, int n_others, double seconds)
{
	double piece_s = a->piece_share * a->transfer_s, lost = fmin(seconds, n_pieces * piece_s);

	lost += fmax(seconds - STALL * (n_pieces + n_others) * piece_s, 0);
	a->behind_s = AVERAGE * a->behind_s + (1 - AVERAGE) * lost;
}

double ahead_chance(const struct ahead *a, enum ahead_kind kind, int32_t rank)
{
	int i = rank < AHEAD_RANKS ? rank : AHEAD_RANKS - 1;

	return a->needed[kind][i] / a->guessed[kind][i];
}

/* Until the next router is likely to speak. */
static double window_left(const struct ahead *a, int64_t now)
{
	double left = a->began ? a->window_s[a->stage] - (double)(now - a->began) / 1e9 : 0;

	return left > 0 ? left : 0;
}

double ahead_left(const struct ahead *a, enum ahead_kind kind, int64_t now)
{
	return window_left(a, now) + routers_before(kind) * a->idle_s;
}

/* What would be saved of it if it waited until its router is the next to speak. */
static double saved_later(const struct ahead *a)
{
	return fmin(a->n_missing > 1 ? a->idle_s / a->n_missing : a->idle_s, a->transfer_s);
}

/* Of what is saved by having others there that nobody guessed; guesses would have been in time for some of them. */
static double saved_instead(const struct ahead *a, double saves, double carried)
{
	return a->waited * saves * carried;
}

float ahead_bid(const struct ahead *a, enum ahead_kind kind, int32_t rank, int n_before, int64_t now)
{
	double before = n_before * a->transfer_s, left = ahead_left(a, kind, now) - before, p = ahead_chance(a, kind, rank);
	double carried, saved, spilled, lost, gain;

	if (!(left > 0 && a->transfer_s > 0))
		return 0;
	saved = carried = fmin(left, a->transfer_s);
	if (routers_before(kind))
		saved -= SURE * saved_later(a);
	spilled = a->piece_share * a->transfer_s - (window_left(a, now) - before); /* of a piece that is longer than the window */
	lost = fmax(spilled, a->behind_s) + saved_instead(a, a->saves_instead, NOTICED * carried);
	gain = p * saved - (1 - p) * lost;
	if (gain <= 0)
		return 0;
	gain /= (1 - p) * a->transfer_s + 1e-12;
	return gain < 1 ? (float)gain : 1;
}

bool ahead_is_worth(const struct ahead *a, double saves, int64_t now)
{
	return a->transfer_s > 0 && saved_instead(a, saves, fmin(window_left(a, now), a->transfer_s)) > a->behind_s;
}

void ahead_instead(struct ahead *a, double saves)
{
	a->saves_instead = saves;
}

int ahead_pieces(const struct ahead *a, int64_t now)
{
	double pieces = a->transfer_s > 0 ? window_left(a, now) / (a->piece_share * a->transfer_s) : 0;

	return pieces < 1 ? 1 : pieces > 1000 ? 1000 : (int)pieces;
}
