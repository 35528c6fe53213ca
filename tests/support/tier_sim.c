#include "tests/support/tier_sim.h"

#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "offload/ahead.h"
#include "offload/policy.h"

enum { PIECES = 10 };

struct tier {
	const struct trace *t;
	const struct tier_options *opt;
	struct tier_result *r;
	struct policy *policy;
	int64_t n_resident, capacity;
	/* By layer and expert: */
	bool *resident, *held, *ahead;
	int64_t *used;       /* when last, in steps; LRU */
	int64_t *next_use;   /* Belady: of the step under way */
	int64_t *uses;       /* [n_tokens, n_layers, n_chosen] the next step that uses it again */
	/* What is fetched ahead for the next layer, and not done: */
	struct ahead admission;
	int32_t guesses[64];
	bool missing[64];    /* when it was guessed */
	int n_guesses, next_guess;
	int32_t flying;      /* -1: none */
	double flying_began, flying_piece;
	int64_t n_started;   /* transfers */
	double now, link_free;
	uint64_t seed;
};

static size_t place(const struct tier *s, int32_t layer, int32_t expert)
{
	return (size_t)layer * (size_t)s->t->n_experts + (size_t)expert;
}

static double draw(struct tier *s)
{
	s->seed = s->seed * 6364136223846793005u + 1442695040888963407u;
	return (double)(s->seed >> 11) * 0x1p-53;
}

static void hold(struct tier *s, int32_t layer, int32_t expert, bool held)
{
	s->held[place(s, layer, expert)] = held;
	if (s->policy)
		policy_hold(s->policy, layer, expert, held);
}

static void leave(struct tier *s, size_t i)
{
	int32_t layer = (int32_t)(i / (size_t)s->t->n_experts), expert = (int32_t)(i % (size_t)s->t->n_experts);

	s->resident[i] = false;
	s->n_resident--;
	if (s->policy)
		policy_left(s->policy, layer, expert);
}

/* Room for one. False: what would go is worth more than `worth`. */
static bool make_room(struct tier *s, float worth)
{
	size_t n = (size_t)s->t->n_layers * (size_t)s->t->n_experts, victim = n;

	if (s->n_resident < s->capacity)
		return true;
	if (s->policy) {
		int32_t layer, expert;
		float least;

		if (!policy_victim(s->policy, &layer, &expert, &least) || least >= worth)
			return false;
		leave(s, place(s, layer, expert));
		return true;
	}
	for (size_t i = 0; i < n; i++) {
		if (!s->resident[i] || s->held[i])
			continue;
		if (victim == n || (s->opt->rule == TIER_LRU ? s->used[i] < s->used[victim] : s->next_use[i] > s->next_use[victim]))
			victim = i;
	}
	if (victim == n)
		return false;
	leave(s, victim);
	return true;
}

static void arrive(struct tier *s, int32_t layer, int32_t expert)
{
	s->resident[place(s, layer, expert)] = true;
	s->n_resident++;
	if (s->policy)
		policy_arrived(s->policy, layer, expert);
}

/* Seconds of the transfer that begins. */
static double transfer(struct tier *s)
{
	bool stalls = s->opt->stall_every && s->n_started++ % s->opt->stall_every == 0;

	return stalls ? 10 * s->opt->transfer_s : s->opt->transfer_s;
}

static int64_t ns(double seconds)
{
	return (int64_t)(seconds * 1e9) + 1; /* 0 is no time */
}

/* The link goes on with what is fetched ahead, until `until`. */
static void fetch_ahead(struct tier *s, int32_t layer, double until)
{
	while (s->flying >= 0 || s->next_guess < s->n_guesses) {
		if (s->flying < 0) {
			int32_t rank = s->next_guess, e = s->guesses[rank];
			float bid;

			if (s->link_free >= until)
				return;
			bid = ahead_bid(&s->admission, rank, 0, ns(s->link_free));
			if (!(bid > 0))
				return;
			s->next_guess++;
			if (s->resident[place(s, layer, e)] || !make_room(s, bid))
				continue;
			s->n_resident++; /* its slot is taken from now on */
			s->flying = e;
			s->flying_began = s->link_free;
			s->link_free += transfer(s);
			s->flying_piece = (s->link_free - s->flying_began) / (s->opt->n_pieces ? s->opt->n_pieces : PIECES);
			s->r->transfers++;
		}
		if (s->link_free > until)
			return;
		s->n_resident--;
		arrive(s, layer, s->flying);
		hold(s, layer, s->flying, true);
		s->ahead[place(s, layer, s->flying)] = true;
		s->flying = -1;
	}
}

/* The router has spoken: what is on its way and not wanted stops at its next piece, the rest of the queue is forgotten. */
static void settle(struct tier *s, int32_t layer, const struct trace_entry *chosen)
{
	bool wanted = false;
	double piece = s->flying_piece;

	ahead_spoken(&s->admission, ns(s->now));
	for (int i = 0; i < s->n_guesses; i++) {
		bool needed = false;

		for (int32_t k = 0; k < s->t->n_chosen; k++)
			needed |= chosen[k].expert == s->guesses[i];
		if (s->missing[i])
			ahead_judge(&s->admission, i, needed);
	}
	s->n_guesses = s->next_guess = 0;
	for (int32_t k = 0; k < s->t->n_chosen; k++)
		wanted |= s->flying >= 0 && chosen[k].expert == s->flying;
	if (s->flying >= 0 && wanted) {
		s->n_resident--;
		arrive(s, layer, s->flying);
		s->ahead[place(s, layer, s->flying)] = true;
		s->now = s->link_free;
	} else if (s->flying >= 0) {
		double done = s->flying_began;

		while (done < s->now && piece > 0)
			done += piece;
		s->link_free = done < s->link_free ? done : s->link_free;
		ahead_held_up(&s->admission, 1, s->link_free > s->now ? s->link_free - s->now : 0);
		s->n_resident--;
		s->r->wasted++;
	}
	s->flying = -1;
	if (s->link_free < s->now)
		s->link_free = s->now;
}

/* What one would guess of the next layer: each choice with the chance `recall`, else the next best instead. */
static int predict(struct tier *s, int32_t *ids, const struct trace_entry *next)
{
	int32_t k = s->t->n_chosen, other = k;

	for (int32_t i = 0; i < k; i++)
		ids[i] = draw(s) < s->opt->recall || other >= s->t->n_listed ? next[i].expert : next[other++].expert;
	return k;
}

/* The prediction for the next layer, when this layer's router has spoken; resident ones may not go meanwhile. */
static int look_ahead(struct tier *s, int32_t next, int32_t *guesses, const struct trace_entry *then)
{
	int n = predict(s, guesses, then);

	for (int i = 0; i < n; i++)
		if (s->resident[place(s, next, guesses[i])])
			hold(s, next, guesses[i], true);
	return n;
}

/* What this layer waited for is there: the window for the next one begins. */
static void begin_window(struct tier *s, int32_t next, const int32_t *guesses, int n)
{
	s->n_guesses = n;
	s->next_guess = 0;
	for (int i = 0; i < n; i++) {
		s->guesses[i] = guesses[i];
		s->missing[i] = !s->resident[place(s, next, guesses[i])];
	}
	s->link_free = s->now;
	ahead_idle(&s->admission, 0, ns(s->now));
}

static void use(struct tier *s, int32_t layer, int32_t expert)
{
	size_t i = place(s, layer, expert);

	s->r->asked++;
	s->r->hits += s->resident[i] && !s->ahead[i];
	s->r->prefetched += s->resident[i] && s->ahead[i];
	s->ahead[i] = false;
	if (s->resident[i])
		return;
	s->r->transfers++;
	if (s->link_free < s->now)
		s->link_free = s->now;
	s->link_free += transfer(s);
	ahead_carried(&s->admission, s->opt->transfer_s);
	if (make_room(s, 2)) {
		arrive(s, layer, expert);
		hold(s, layer, expert, true);
	}
}

static void one_step(struct tier *s, int64_t token, int32_t layer, bool counts)
{
	const struct trace *t = s->t;
	const struct trace_entry *chosen = trace_step(t, token, layer), *then = NULL;
	int64_t step = token * t->n_layers + layer;
	int32_t next = (layer + 1) % t->n_layers, guesses[64];
	struct tier_result before = *s->r;
	int n_guesses = 0;

	s->now += s->opt->compute_s / 2;
	if (s->opt->prefetch) {
		fetch_ahead(s, layer, s->now);
		settle(s, layer, chosen);
	}
	for (int32_t k = 0; k < t->n_chosen; k++) {
		size_t i = place(s, layer, chosen[k].expert);

		s->used[i] = step;
		s->next_use[i] = s->uses ? s->uses[step * t->n_chosen + k] : 0;
		if (s->resident[i])
			hold(s, layer, chosen[k].expert, true);
	}
	if (s->policy)
		policy_observe(s->policy, layer, chosen, t->n_listed);
	if (s->opt->recall > 0 && (next || token + 1 < t->n_tokens)) {
		then = trace_step(t, token + !next, next);
		n_guesses = look_ahead(s, next, guesses, then);
	}
	for (int32_t k = 0; k < t->n_chosen; k++)
		use(s, layer, chosen[k].expert);
	if (s->link_free > s->now)
		s->now = s->link_free;
	/* What was fetched ahead for this layer in vain is a tenant like others now. */
	for (int32_t e = 0; e < t->n_experts && s->opt->prefetch; e++)
		if (s->ahead[place(s, layer, e)]) {
			s->ahead[place(s, layer, e)] = false;
			hold(s, layer, e, false);
			s->r->wasted++;
		}
	for (int32_t k = 0; k < t->n_chosen; k++)
		hold(s, layer, chosen[k].expert, false);
	if (s->opt->prefetch) {
		begin_window(s, next, guesses, n_guesses);
		fetch_ahead(s, next, s->now + s->opt->compute_s / 2);
	}
	for (int i = 0; i < n_guesses; i++)
		if (!s->ahead[place(s, next, guesses[i])])
			hold(s, next, guesses[i], false);
	s->now += s->opt->compute_s / 2;
	if (!counts)
		*s->r = before;
}

static void find_uses(struct tier *s)
{
	const struct trace *t = s->t;
	size_t n = (size_t)t->n_layers * (size_t)t->n_experts;
	int64_t never = t->n_tokens * t->n_layers, *next = xmalloc(n, sizeof *next);

	s->uses = xmalloc((size_t)(never * t->n_chosen), sizeof *s->uses);
	for (size_t i = 0; i < n; i++)
		next[i] = never;
	for (int64_t step = never - 1; step >= 0; step--) {
		int32_t layer = (int32_t)(step % t->n_layers);
		const struct trace_entry *chosen = trace_step(t, step / t->n_layers, layer);

		for (int32_t k = 0; k < t->n_chosen; k++) {
			int64_t *at = &next[place(s, layer, chosen[k].expert)];

			s->uses[step * t->n_chosen + k] = *at;
			*at = step;
		}
	}
	free(next);
}

void tier_run(struct tier_result *r, const struct trace *t, const struct tier_options *opt)
{
	struct tier s = {.t = t, .opt = opt, .r = r, .flying = -1, .seed = opt->seed};
	size_t n = (size_t)t->n_layers * (size_t)t->n_experts;
	double began = 0;

	*r = (struct tier_result){0};
	s.capacity = (int64_t)((double)n * opt->share + .5);
	if (s.capacity < 2 * t->n_chosen)
		s.capacity = 2 * t->n_chosen;
	s.resident = xcalloc(n, sizeof *s.resident);
	s.held = xcalloc(n, sizeof *s.held);
	s.ahead = xcalloc(n, sizeof *s.ahead);
	s.used = xcalloc(n, sizeof *s.used);
	s.next_use = xcalloc(n, sizeof *s.next_use);
	if (opt->rule == TIER_POLICY)
		s.policy = policy_new(t->n_layers, t->n_experts, t->n_chosen);
	ahead_init(&s.admission, t->n_chosen, 1.0 / (opt->n_pieces ? opt->n_pieces : PIECES));
	if (opt->rule == TIER_BELADY)
		find_uses(&s);
	for (int64_t token = 0; token < t->n_tokens; token++) {
		if (token == opt->warm_tokens)
			began = s.now;
		for (int32_t layer = 0; layer < t->n_layers; layer++)
			one_step(&s, token, layer, token >= opt->warm_tokens);
	}
	r->seconds = s.now - began;
	policy_free(s.policy);
	free(s.resident);
	free(s.held);
	free(s.ahead);
	free(s.used);
	free(s.next_use);
	free(s.uses);
}
