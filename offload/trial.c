#include "offload/trial.h"

#include <math.h>

enum {
	COUNTED = 3,   /* passes of each block, and one before them: what the other way has read may still be there */
	SOONEST = 12,  /* passes until the next trial, */
	RAREST = 1024,
	CLEAR = 32,    /* and so many times as many where it is clear that asking pays */
	TRIALS = 8,    /* that are remembered */
	SURE = 2,      /* times as far as an average may be off: so much less has to be lost without asking */
};

static const double average = .9; /* of an average with each new number */

static void begin(struct trial *t, int block, bool asks, double passes)
{
	t->at = block;
	t->asks = asks;
	t->left = passes;
	t->blocks[block] = (struct trial_block){0};
}

void trial_init(struct trial *t)
{
	*t = (struct trial){.better = true, .interval = SOONEST, .lost_s = -1, .asking_s = -1};
	begin(t, TRIAL_BEFORE, true, SOONEST);
}

static void follow(double *of, double x)
{
	*of = *of < 0 ? x : average * *of + (1 - average) * x;
}

static double mean(const struct trial_block *b)
{
	return b->sum / COUNTED;
}

/* How far that may be off, squared. */
static double error2(const struct trial_block *b)
{
	return fmax(b->squares / COUNTED - mean(b) * mean(b), 0) / (COUNTED - 1);
}

static void decide(struct trial *t)
{
	const struct trial_block *before = &t->blocks[TRIAL_BEFORE], *tried = &t->blocks[TRIAL_TRIED], *after = &t->blocks[TRIAL_AFTER];
	double less = (mean(before) + mean(after)) / 2 - mean(tried);
	bool better;

	t->n_trials = fmin(t->n_trials + 1, TRIALS);
	t->less += ((t->better ? less : -less) - t->less) / t->n_trials;
	t->error2 += ((error2(before) + error2(after)) / 4 + error2(tried) - t->error2) / t->n_trials;
	t->tried_s = mean(tried);
	better = t->better ? !(t->less > SURE * sqrt(t->error2 / t->n_trials)) : t->less < 0;
	t->interval = better != t->better ? SOONEST : fmin(2 * t->interval, RAREST);
	t->better = better;
}

/* Most of what is lost is waited for, which without asking would likely be more. */
static bool clearly_pays(const struct trial *t)
{
	return t->better && t->lost_s > 2 * t->asking_s;
}

void trial_passed(struct trial *t, double lost_s, double asking_s)
{
	struct trial_block *b = &t->blocks[t->at];

	if (t->asks)
		follow(&t->asking_s, asking_s);
	if (t->asks == t->better)
		follow(&t->lost_s, lost_s);
	if (t->left <= COUNTED) {
		b->sum += lost_s;
		b->squares += lost_s * lost_s;
	}
	/* It has become worse than asking was. */
	if (t->at == TRIAL_BEFORE && !t->better && t->lost_s > t->tried_s && t->left > SOONEST)
		t->left = SOONEST;
	t->left -= t->at == TRIAL_BEFORE && t->left > COUNTED && clearly_pays(t) ? 1.0 / CLEAR : 1;
	if (t->left > 0)
		return;
	switch (t->at) {
	case TRIAL_BEFORE:
		begin(t, TRIAL_TRIED, !t->better, COUNTED + 1);
		break;
	case TRIAL_TRIED:
		begin(t, TRIAL_AFTER, t->better, COUNTED + 1);
		break;
	default:
		decide(t);
		begin(t, TRIAL_BEFORE, t->better, t->interval);
	}
}
