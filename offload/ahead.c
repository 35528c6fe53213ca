#include "offload/ahead.h"

#define FADE    .995 /* of a count with each new one: some hundred are remembered */
#define AVERAGE .85  /* of an average with each new number */
#define FORGIVE .99  /* of delays, with each window: a disk that was slow is tried again */

void ahead_init(struct ahead *a, int32_t n_chosen, double piece_share)
{
	*a = (struct ahead){.piece_share = piece_share < 1 ? piece_share : 1};
	/* As others found it: three guesses of four come true, the first ones more often; of those that are not there, fewer. */
	for (int i = 0; i < AHEAD_RANKS; i++) {
		a->guessed[i] = 10;
		a->needed[i] = 10 * (i < n_chosen ? .8 - .4 * i / n_chosen : .3);
	}
}

static void average(double *of, double x)
{
	*of = *of > 0 ? AVERAGE * *of + (1 - AVERAGE) * x : x;
}

void ahead_carried(struct ahead *a, double seconds)
{
	average(&a->transfer_s, seconds);
}

void ahead_idle(struct ahead *a, int n_to_compute, int64_t now)
{
	if (a->began)
		return;
	a->began = now;
	a->behind_s *= FORGIVE;
	a->stage = n_to_compute < AHEAD_STAGES ? n_to_compute : AHEAD_STAGES - 1;
}

void ahead_spoken(struct ahead *a, int64_t now)
{
	if (a->began)
		average(&a->window_s[a->stage], (double)(now - a->began) / 1e9);
	a->began = 0;
}

void ahead_forget(struct ahead *a)
{
	a->began = 0;
}

void ahead_judge(struct ahead *a, int32_t rank, bool needed)
{
	int i = rank < AHEAD_RANKS ? rank : AHEAD_RANKS - 1;

	a->guessed[i] = FADE * a->guessed[i] + 1;
	a->needed[i] = FADE * a->needed[i] + needed;
}

void ahead_held_up(struct ahead *a, int n_pieces, double seconds)
{
	double pieces = n_pieces * a->piece_share * a->transfer_s;

	a->behind_s = AVERAGE * a->behind_s + (1 - AVERAGE) * (seconds < pieces ? seconds : pieces);
}

double ahead_chance(const struct ahead *a, int32_t rank)
{
	int i = rank < AHEAD_RANKS ? rank : AHEAD_RANKS - 1;

	return a->needed[i] / a->guessed[i];
}

double ahead_left(const struct ahead *a, int64_t now)
{
	double left = a->began ? a->window_s[a->stage] - (double)(now - a->began) / 1e9 : 0;

	return left > 0 ? left : 0;
}

float ahead_bid(const struct ahead *a, int32_t rank, int n_before, int64_t now)
{
	double p = ahead_chance(a, rank), left = ahead_left(a, now) - n_before * a->transfer_s, saved, spilled, gain;

	if (!(left > 0 && a->transfer_s > 0))
		return 0;
	saved = left < a->transfer_s ? left : a->transfer_s;
	spilled = a->piece_share * a->transfer_s - left; /* of a piece that is longer than the window */
	spilled = spilled > 0 ? spilled : 0;
	gain = p * saved - (1 - p) * (spilled > a->behind_s ? spilled : a->behind_s);
	if (gain <= 0)
		return 0;
	gain /= (1 - p) * a->transfer_s + 1e-12;
	return gain < 1 ? (float)gain : 1;
}

int ahead_pieces(const struct ahead *a, int64_t now)
{
	double pieces = a->transfer_s > 0 ? ahead_left(a, now) / (a->piece_share * a->transfer_s) : 0;

	return pieces < 1 ? 1 : pieces > 1000 ? 1000 : (int)pieces;
}
