/* Reading ahead: what is done about guesses at routers that have yet to speak (engine/experts.h). */
#include "engine/experts_state.h"

#include <string.h>

/* Guesses at layers further on that are being read: one, and one so that the drive has a next one. */
enum { LATER_MOST = 2 };

/* A guess that is there already stays until its router has spoken, if guesses come true as often as this. */
static const double likely = .3;

void expert_end_pass(struct experts *x)
{
	if (x->pass.whole && x->pass.n_spoken && !x->pass.is_sweep && !x->no_prediction) {
		double tokens = (double)x->pass.n_observed / (double)x->pass.n_spoken, asking_s = x->pass.asking_s / tokens;

		trial_passed(&x->trial, (x->stats.waited_s - x->pass.waited_s) / tokens + asking_s, asking_s);
	}
	memset(&x->pass, 0, sizeof x->pass);
	x->pass.waited_s = x->stats.waited_s;
}

/* What is there of a list stays, or may go. Returns how many that changes. */
static int keep_guesses(struct experts *x, const struct guess_list *l, bool keep)
{
	int n = 0;

	for (int32_t i = 0; i < l->n; i++) {
		struct slot *s = expert_slot(x, l->layer, l->ids[i]);

		if (!s || s->state != SLOT_WARM || s->guessed == keep || (keep && ahead_chance(&x->admission, l->kind, i) < likely))
			continue;
		s->guessed = keep;
		expert_hold(x, s, s->wanted);
		n++;
	}
	return n;
}

/* None of them stays for being guessed. Returns how many that lets go. */
int expert_free_guesses(struct experts *x)
{
	int n = 0;

	for (int32_t i = 0; i < x->n_slots; i++) {
		struct slot *s = &x->slots[i];

		if (!s->guessed)
			continue;
		s->guessed = false;
		expert_hold(x, s, s->wanted);
		n++;
	}
	return n;
}

/* Begin what is worth it of a list. */
static void read_guesses(struct experts *x, struct guess_list *l, int64_t now)
{
	bool later = l->kind >= AHEAD_SECOND;

	for (; l->next < l->n; l->next++) {
		struct slot *s;
		float bid;

		if (expert_slot(x, l->layer, l->ids[l->next]) || expert_is_on_device(x, l->layer, l->ids[l->next]))
			continue;
		if (later && x->n_guessed >= LATER_MOST)
			return;
		/* What is for later lets others pass. */
		bid = ahead_bid(&x->admission, l->kind, l->next, x->n_guessed - (later ? 0 : x->n_later), now);
		if (!(bid > 0))
			return; /* now: when one has come there may be time for it */
		s = expert_find_slot(x, bid);
		if (!s)
			continue;
		s->ahead = true;
		s->later = later;
		x->stats.ahead++;
		expert_begin_reading(x, s, l->layer, l->ids[l->next], later ? IO_CLASS_LATER : IO_CLASS_PREFETCH);
	}
}

/* Nothing guessed is being read, or is worth it: what is worth more than somebody who is there. */
static void read_spare(struct experts *x, int64_t now)
{
	int32_t layer, expert, gone_layer, gone_expert;
	float worth, least;
	struct slot *s;

	/* Where slots are few, the next router needs them. */
	if (x->n_guessed || x->n_spare || x->n_slots < 2 * x->n_chosen)
		return;
	if (!ahead_is_worth(&x->admission, spare_may_save(x->spare), now) || !spare_next(x->spare, &layer, &expert, &worth) ||
	    expert_slot(x, layer, expert))
		return;
	if (!policy_victim(x->policy, &gone_layer, &gone_expert, &least))
		gone_layer = NONE;
	s = expert_find_slot(x, worth);
	if (!s)
		return;
	if (gone_layer != NONE && policy_resident(x->policy, gone_layer, gone_expert))
		gone_layer = NONE; /* there was a free one */
	spare_began(x->spare, layer, expert, gone_layer, gone_expert);
	s->ahead = s->spare = true;
	x->stats.spare++;
	expert_begin_reading(x, s, layer, expert, IO_CLASS_SPARE);
}

/* The drive has nothing to do that is waited for: on with what is guessed, nearest layer first, then with what is worth it. */
void expert_go_ahead(struct experts *x)
{
	struct guess_list *lists[GUESS_ROUTERS];
	int64_t now;
	int n;

	if (!x->looks_ahead || x->n_awaited)
		return;
	now = io_now(x->io);
	if (!x->admission.began)
		ahead_idle(&x->admission, x->n_wanted, now);
	n = expert_guesses_all(&x->guesses, lists);
	if (!n && x->trial.asks && !x->none_to_ask)
		return; /* a router is about to be asked */
	expert_allow_ahead(x, ahead_pieces(&x->admission, now));
	for (int i = 0; i < n; i++)
		read_guesses(x, lists[i], now);
	read_spare(x, now);
}

/* A list is done with: its router chose ids, or will not speak. */
void expert_end_guesses(struct experts *x, struct guess_list *l, const int32_t *ids, int32_t n)
{
	for (int32_t i = 0; i < l->n; i++) {
		struct slot *s = expert_slot(x, l->layer, l->ids[i]);

		if (!s)
			continue;
		s->guessed = false;
		if (s->wanted)
			continue;
		if (expert_is_guess(s) && !expert_is_among(l->ids[i], ids, n))
			expert_no_guess(x, s, false);
		expert_hold(x, s, false);
	}
	l->n = 0;
}

/* These are wanted now: were they read ahead? What is still being read so lets them pass, which costs them what is under way of it. */
static void count_wanted(struct experts *x, int32_t layer, const int32_t *ids, int32_t n)
{
	int n_pieces = expert_pieces(x, true);
	bool waits = false, itself = false; /* somebody, for others; for what is being read ahead */

	for (int32_t i = 0; i < n; i++) {
		const struct slot *s = expert_slot(x, layer, ids[i]);
		bool is_missing = !s && !expert_is_on_device(x, layer, ids[i]), was_guessed = s && expert_is_guess(s);

		if (is_missing || was_guessed)
			ahead_wanted(&x->admission, was_guessed);
		waits |= is_missing;
		itself |= s && s->ahead && s->state == SLOT_READING;
	}
	if (!n_pieces || x->in_the_way.n_pieces || itself)
		return;
	if (waits) {
		x->in_the_way.n_pieces = n_pieces;
		x->in_the_way.since = io_now(x->io);
		x->stats.behind++;
	} else {
		ahead_held_up(&x->admission, 0, 0, 0);
	}
}

void experts_spoken(struct experts *x, int32_t layer, const int32_t *ids, int32_t n)
{
	const struct guess_list *best = expert_guesses_of(&x->guesses, layer);
	int n_missing = 0;

	for (int32_t i = 0; best && i < best->n; i++)
		n_missing += best->missing[i];
	if (x->looks_ahead)
		ahead_spoken(&x->admission, n_missing, io_now(x->io));
	for (int k = 0; k < N_AHEAD_KINDS; k++) {
		struct guess_list *l = expert_guesses_at(&x->guesses, layer, (enum ahead_kind)k);

		for (int32_t i = 0; i < l->n && l->layer == layer; i++)
			if (l->missing[i])
				ahead_judge(&x->admission, l->kind, i, expert_is_among(l->ids[i], ids, n));
		if (l->layer == layer)
			expert_end_guesses(x, l, ids, n);
	}
	count_wanted(x, layer, ids, n);
	x->pass.n_spoken++;
	x->looks_ahead = x->none_to_ask = false; /* until the next one is asked: what this one chose is wanted first */
}

/* Is it worth a product? */
static bool is_worth_asking(struct experts *x, int32_t layer, enum ahead_kind kind, bool waits)
{
	const struct guess_list *l = expert_guesses_at(&x->guesses, layer, kind);

	if (!x->trial.asks || (l->n && l->layer == layer))
		return false;
	if (x->n_awaited)
		return waits && kind == AHEAD_NEXT;
	if (kind == AHEAD_NEXT)
		return true;
	if (kind >= AHEAD_SECOND && x->n_guessed >= LATER_MOST)
		return false;
	return ahead_bid(&x->admission, kind, 0, x->n_guessed, io_now(x->io)) > 0;
}

bool experts_ask(struct experts *x, int32_t layer, enum ahead_kind kind, bool waits)
{
	if (x->no_prediction)
		return false;
	if (x->none_to_ask) { /* of the pass before: how long it was until this one is nothing to learn from */
		x->looks_ahead = x->none_to_ask = false;
		ahead_forget(&x->admission);
	}
	if (!x->looks_ahead) {
		x->looks_ahead = true;
		expert_go_ahead(x); /* as each look at the drive does from now on */
	}
	if (!is_worth_asking(x, layer, kind, waits))
		return false;
	x->pass.asked_at = io_now(x->io);
	return true;
}

void experts_ask_none(struct experts *x)
{
	x->pass.whole = true;
	if (x->no_prediction || x->looks_ahead)
		return;
	x->looks_ahead = x->none_to_ask = true;
	expert_go_ahead(x);
}

/* A nearer look: what is not guessed any more is given up. */
static void correct_guesses(struct experts *x, struct guess_list *before, const struct guess_list *l)
{
	keep_guesses(x, before, false);
	for (int32_t i = 0; i < before->n; i++) {
		struct slot *s = expert_slot(x, l->layer, before->ids[i]);

		if (s && expert_is_guess(s) && s->state == SLOT_READING && !s->wanted &&
		    !expert_is_among(before->ids[i], l->ids, l->n))
			expert_no_guess(x, s, false);
	}
}

/* What is being read for later, or for what it is worth, is for the next layer now. */
static void hurry_guesses(struct experts *x, const struct guess_list *l)
{
	for (int32_t i = 0; i < l->n && l->kind < AHEAD_SECOND; i++) {
		struct slot *s = expert_slot(x, l->layer, l->ids[i]);

		if (!s || !s->ahead || s->state != SLOT_READING || !(s->later || s->spare))
			continue;
		x->n_later -= s->later;
		s->later = false;
		for (int k = 0; k < s->r.n; k++)
			io_raise(x->io, &s->requests[k], IO_CLASS_PREFETCH);
	}
}

void experts_ahead(struct experts *x, int32_t layer, enum ahead_kind kind, const int32_t *ids, int32_t n)
{
	struct guess_list *l = expert_guesses_at(&x->guesses, layer, kind), *before;

	if (x->no_prediction)
		return;
	if (x->pass.asked_at)
		x->pass.asking_s += (double)(io_now(x->io) - x->pass.asked_at) * 1e-9;
	x->pass.asked_at = 0;
	/* Of a pass that ended early, or a router that was never asked. */
	for (int k = 0; k < N_AHEAD_KINDS; k++) {
		struct guess_list *old = expert_guesses_at(&x->guesses, layer, (enum ahead_kind)k);

		if (old->layer != layer || k == (int)kind)
			expert_end_guesses(x, old, NULL, 0);
	}
	before = expert_guesses_of(&x->guesses, layer);
	l->layer = layer;
	l->kind = kind;
	l->n = n < x->n_chosen ? n : x->n_chosen;
	l->next = 0;
	memcpy(l->ids, ids, (size_t)l->n * sizeof *ids);
	for (int32_t i = 0; i < l->n; i++)
		l->missing[i] = !expert_slot(x, layer, ids[i]) && !expert_is_on_device(x, layer, ids[i]);
	if (before && before->kind > kind)
		correct_guesses(x, before, l);
	hurry_guesses(x, l);
	keep_guesses(x, expert_guesses_of(&x->guesses, layer), true);
	expert_poll(x);
}

void experts_predict(struct experts *x, bool on)
{
	x->no_prediction = !on;
}
