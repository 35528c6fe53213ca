#include "tests/support/tier_sim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "offload/policy.h"
#include "offload/spare.h"

const double tier_recall[N_AHEAD_KINDS] = {.81, .74, .50, .39};

/* What is predicted for a layer, best first. */
struct guesses {
	int n, next;         /* next: the first that nothing was done about */
	int32_t layer, ids[TIER_CHOSEN_MOST];
	bool missing[TIER_CHOSEN_MOST]; /* when it was guessed */
	bool kept[TIER_CHOSEN_MOST]; /* held, since it was there then */
};

/* What is fetched ahead: one for a layer at a time. */
struct flight {
	int32_t layer, expert;
	double left, piece;  /* seconds of the link; what cannot be taken back. left 0: there is none */
};

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
	struct ahead admission;
	struct guesses guesses[N_AHEAD_KINDS][TIER_DEPTHS]; /* by the step that is guessed */
	struct flight flights[TIER_DEPTHS]; /* by the step that they are for */
	struct spare *spare;                /* offload/spare.h; NULL: nothing is fetched that nobody guessed */
	struct flight spare_flight;
	struct flight *flying;              /* who had the link last */
	int64_t n_started;   /* transfers */
	int64_t step;        /* under way */
	double now, link_free;
};

static size_t place(const struct tier *s, int32_t layer, int32_t expert)
{
	return (size_t)layer * (size_t)s->t->n_experts + (size_t)expert;
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

	return s->opt->transfer_s * (stalls ? s->opt->stall : 1);
}

static int64_t ns(double seconds)
{
	return (int64_t)(seconds * 1e9) + 1; /* 0 is no time */
}

static struct guesses *guesses_of(struct tier *s, enum ahead_kind kind, int64_t step)
{
	return &s->guesses[kind][step % TIER_DEPTHS];
}

/* The nearest look that was taken at a step so far ahead. */
static enum ahead_kind nearest(struct tier *s, int depth, int64_t step)
{
	if (!depth && guesses_of(s, AHEAD_WHOLE, step)->n)
		return AHEAD_WHOLE;
	return AHEAD_NEXT + (enum ahead_kind)depth;
}

static struct flight *flight_of(struct tier *s, int64_t step)
{
	return &s->flights[step % TIER_DEPTHS];
}

static bool is_flying(const struct flight *f, int32_t layer, int32_t expert)
{
	return f->left > 0 && f->layer == layer && f->expert == expert;
}

static void fly(struct tier *s, struct flight *f, int32_t layer, int32_t expert)
{
	s->n_resident++; /* its slot is taken from now on */
	*f = (struct flight){.layer = layer, .expert = expert, .left = transfer(s)};
	f->piece = f->left / (s->opt->n_pieces ? s->opt->n_pieces : TIER_PIECES);
	s->r->transfers++;
}

/* The next guess of a layer that is worth fetching, at the time when the link is free; false: there is none now. */
static bool take_off(struct tier *s, int depth, struct flight *f)
{
	enum ahead_kind kind = nearest(s, depth, s->step + 1 + depth);
	struct guesses *g = guesses_of(s, kind, s->step + 1 + depth);

	while (g->next < g->n) {
		float bid = ahead_bid(&s->admission, kind, g->next, 0, ns(s->link_free));
		int32_t e = g->ids[g->next];

		if (!(bid > 0))
			return false;
		g->next++;
		if (s->resident[place(s, g->layer, e)] || is_flying(&s->spare_flight, g->layer, e) || !make_room(s, bid))
			continue;
		fly(s, f, g->layer, e);
		return true;
	}
	return false;
}

/* The one that is worth most of those that nobody guessed. */
static bool take_off_spare(struct tier *s)
{
	int32_t layer, expert, gone_layer = -1, gone_expert = -1;
	float worth, least;

	if (!s->spare || !ahead_is_worth(&s->admission, spare_may_save(s->spare), ns(s->link_free)) ||
	    !spare_next(s->spare, &layer, &expert, &worth))
		return false;
	for (int i = 0; i < TIER_DEPTHS; i++)
		if (is_flying(&s->flights[i], layer, expert))
			return false;
	if (s->n_resident >= s->capacity)
		policy_victim(s->policy, &gone_layer, &gone_expert, &least);
	if (!make_room(s, worth))
		return false;
	spare_began(s->spare, layer, expert, gone_layer, gone_expert);
	fly(s, &s->spare_flight, layer, expert);
	return true;
}

/* Who has the link next: the nearest. NULL: nobody wants it. */
static struct flight *next_flight(struct tier *s)
{
	for (int depth = 0; depth < TIER_DEPTHS; depth++) {
		struct flight *f = flight_of(s, s->step + 1 + depth);

		if (f->left > 0 || take_off(s, depth, f))
			return f;
	}
	return s->spare_flight.left > 0 || take_off_spare(s) ? &s->spare_flight : NULL;
}

static void land(struct tier *s, struct flight *f)
{
	f->left = 0;
	s->n_resident--;
	arrive(s, f->layer, f->expert);
	if (f == &s->spare_flight)
		return; /* it is a tenant like others */
	hold(s, f->layer, f->expert, true);
	s->ahead[place(s, f->layer, f->expert)] = true;
}

static void carry(struct tier *s, struct flight *f, double seconds)
{
	s->flying = f;
	s->link_free += seconds;
	f->left -= seconds;
	if (f->left <= 1e-9 * s->opt->transfer_s)
		land(s, f);
}

/* The piece under way, which ends before anything else begins. Returns what it takes. */
static double end_piece(struct tier *s)
{
	struct flight *f = s->flying;
	double rest = f && f->left > 0 ? fmod(f->left, f->piece) : 0;

	if (rest <= 1e-9 * s->opt->transfer_s || rest >= f->piece * (1 - 1e-9))
		return 0; /* none was begun */
	carry(s, f, rest);
	return rest;
}

/* The link goes on with what is fetched ahead, until `until`. */
static void fetch_ahead(struct tier *s, double until)
{
	struct flight *f;

	while (s->link_free < until && (f = next_flight(s))) {
		if (f != s->flying)
			end_piece(s);
		if (s->link_free < until)
			carry(s, f, f->left < until - s->link_free ? f->left : until - s->link_free);
	}
}

static bool is_chosen(const struct tier *s, const struct trace_entry *chosen, int32_t expert)
{
	for (int32_t k = 0; k < s->t->n_chosen; k++)
		if (chosen[k].expert == expert)
			return true;
	return false;
}

static void stop_keeping(struct tier *s, struct guesses *g)
{
	for (int i = 0; i < g->n; i++)
		if (g->kept[i])
			hold(s, g->layer, g->ids[i], false);
	memset(g->kept, 0, sizeof g->kept);
}

static void stop_keeping_any(struct tier *s)
{
	for (int kind = 0; kind < N_AHEAD_KINDS; kind++)
		for (int i = 0; i < TIER_DEPTHS; i++)
			stop_keeping(s, &s->guesses[kind][i]);
}

/* It will not be wanted. `pays`: somebody waits for the link, who loses what the piece under way takes. */
static void give_up(struct tier *s, struct flight *f, bool pays)
{
	ahead_held_up(&s->admission, f == s->flying, 0, f == s->flying && pays ? end_piece(s) : 0);
	if (f->left <= 0)
		return; /* that was all of it */
	f->left = 0;
	s->n_resident--;
	s->r->wasted++;
}

/* All of it is waited for. */
static void finish(struct tier *s, struct flight *f)
{
	if (f->left <= 0)
		return;
	if (f != s->flying)
		end_piece(s);
	if (f->left > 0)
		carry(s, f, f->left);
	s->now = s->link_free;
}

/* The router has spoken: what is on its way and not wanted stops at its next piece. What is on its way for others waits. */
static void settle(struct tier *s, int32_t layer, const struct trace_entry *chosen)
{
	struct flight *f = flight_of(s, s->step);
	const struct guesses *best;
	bool waits = false; /* somebody, for the link */
	int n_missing = 0;

	best = guesses_of(s, nearest(s, 0, s->step), s->step);
	for (int i = 0; i < best->n; i++)
		n_missing += best->missing[i];
	ahead_spoken(&s->admission, n_missing, ns(s->now));
	for (int kind = 0; kind < N_AHEAD_KINDS; kind++) {
		struct guesses *g = guesses_of(s, (enum ahead_kind)kind, s->step);

		for (int i = 0; i < g->n; i++)
			if (g->missing[i])
				ahead_judge(&s->admission, (enum ahead_kind)kind, i, is_chosen(s, chosen, g->ids[i]));
		g->n = 0;
	}
	for (int32_t k = 0; k < s->t->n_chosen; k++)
		waits |= !s->resident[place(s, layer, chosen[k].expert)];
	if (s->link_free < s->now)
		s->link_free = s->now;
	if (s->spare_flight.layer == layer && is_chosen(s, chosen, s->spare_flight.expert))
		finish(s, &s->spare_flight);
	if (is_chosen(s, chosen, f->expert))
		finish(s, f);
	else if (f->left > 0)
		give_up(s, f, waits);
	if (s->flying && s->flying->left > 0)
		ahead_held_up(&s->admission, 1, 0, waits ? end_piece(s) : 0);
}

double tier_luck(uint64_t seed, int64_t step, int32_t rank)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + ((uint64_t)step << 8 | (uint64_t)rank);

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

void tier_guess(int32_t *ids, const struct trace *t, int64_t token, int32_t layer, double recall, uint64_t seed)
{
	const struct trace_entry *entries = trace_step(t, token, layer);
	int32_t other = t->n_chosen;

	for (int32_t i = 0; i < t->n_chosen; i++) {
		bool right = tier_luck(seed, token * t->n_layers + layer, i) < recall || other >= t->n_listed;

		ids[i] = entries[right ? i : other++].expert;
	}
}

/* Resident ones may not go meanwhile. */
static void look_ahead(struct tier *s, enum ahead_kind kind, int64_t step)
{
	const struct trace *t = s->t;
	struct guesses *g = guesses_of(s, kind, step);

	*g = (struct guesses){.n = t->n_chosen, .layer = (int32_t)(step % t->n_layers)};
	tier_guess(g->ids, t, step / t->n_layers, g->layer, s->opt->recall[kind], s->opt->seed);
	for (int32_t i = 0; i < g->n; i++) {
		size_t at = place(s, g->layer, g->ids[i]);

		g->missing[i] = !s->resident[at];
		g->kept[i] = s->resident[at] && !s->held[at];
		if (g->kept[i])
			hold(s, g->layer, g->ids[i], true);
	}
}

/* A nearer look was taken: what is on its way for a guess that is not repeated goes. */
static void correct(struct tier *s, const struct guesses *nearer, int64_t step)
{
	struct flight *f = flight_of(s, step);

	if (f->left <= 0)
		return;
	for (int i = 0; i < nearer->n; i++)
		if (nearer->ids[i] == f->expert)
			return;
	if (f == s->flying)
		end_piece(s);
	if (f->left > 0)
		give_up(s, f, false);
}

static void look(struct tier *s, enum ahead_kind kind, int64_t step)
{
	if (kind == AHEAD_WHOLE)
		stop_keeping(s, guesses_of(s, AHEAD_NEXT, step));
	look_ahead(s, kind, step);
	correct(s, guesses_of(s, kind, step), step);
}

/* What this layer waited for is there: the window for the next ones begins. */
static void begin_window(struct tier *s)
{
	s->link_free = s->now;
	ahead_idle(&s->admission, 0, ns(s->now));
}

static void use(struct tier *s, int32_t layer, int32_t expert)
{
	size_t i = place(s, layer, expert);

	s->r->asked++;
	s->r->hits += s->resident[i] && !s->ahead[i];
	s->r->prefetched += s->resident[i] && s->ahead[i];
	if (!s->resident[i] || s->ahead[i])
		ahead_wanted(&s->admission, s->ahead[i]);
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

static void spare_step(struct tier *s, int32_t layer, const struct trace_entry *chosen)
{
	int32_t ids[TIER_CHOSEN_MOST];

	for (int32_t k = 0; k < s->t->n_chosen; k++)
		ids[k] = chosen[k].expert;
	spare_spoken(s->spare, layer, ids, s->t->n_chosen);
	ahead_instead(&s->admission, spare_saves(s->spare));
}

static void one_step(struct tier *s, int64_t token, int32_t layer, bool counts)
{
	const struct trace *t = s->t;
	const struct trace_entry *chosen = trace_step(t, token, layer);
	int64_t step = token * t->n_layers + layer, last = t->n_tokens * t->n_layers - 1;
	struct tier_result before = *s->r;
	int n_missing = 0;

	if (s->opt->prefetch && s->opt->recall[AHEAD_WHOLE] > 0 && step)
		look(s, AHEAD_WHOLE, step);
	s->now += s->opt->compute_s / 2;
	if (s->opt->prefetch)
		fetch_ahead(s, s->now);
	s->step = step;
	stop_keeping_any(s);
	if (s->opt->prefetch)
		settle(s, layer, chosen);
	for (int32_t k = 0; k < t->n_chosen; k++) {
		size_t i = place(s, layer, chosen[k].expert);

		n_missing += !s->resident[i];
		s->used[i] = step;
		s->next_use[i] = s->uses ? s->uses[step * t->n_chosen + k] : 0;
		if (s->resident[i])
			hold(s, layer, chosen[k].expert, true);
	}
	s->r->layers[n_missing]++;
	if (s->policy)
		policy_observe(s->policy, layer, chosen, t->n_listed);
	if (s->spare)
		spare_step(s, layer, chosen);
	for (int kind = AHEAD_NEXT; kind < N_AHEAD_KINDS && step + kind <= last; kind++)
		if (s->opt->recall[kind] > 0)
			look(s, (enum ahead_kind)kind, step + kind);
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
		begin_window(s);
		fetch_ahead(s, s->now + s->opt->compute_s / 2);
	}
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

/* No slot is lost, and none is used twice. */
static void check_slots(const struct tier *s)
{
	int64_t n = 0;

	for (size_t i = 0; i < (size_t)s->t->n_layers * (size_t)s->t->n_experts; i++)
		n += s->resident[i];
	for (int i = 0; i < TIER_DEPTHS; i++)
		n += s->flights[i].left > 0;
	n += s->spare_flight.left > 0;
	if (n != s->n_resident || n > s->capacity)
		abort();
}

void tier_run(struct tier_result *r, const struct trace *t, const struct tier_options *opt)
{
	struct tier s = {.t = t, .opt = opt, .r = r};
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
	if (s.policy && opt->prefetch)
		s.spare = spare_new(s.policy, t->n_layers, t->n_experts, NULL, NULL);
	ahead_init(&s.admission, t->n_chosen, 1.0 / (opt->n_pieces ? opt->n_pieces : TIER_PIECES));
	if (opt->rule == TIER_BELADY)
		find_uses(&s);
	for (int64_t token = 0; token < t->n_tokens; token++) {
		if (token == opt->warm_tokens)
			began = s.now;
		for (int32_t layer = 0; layer < t->n_layers; layer++)
			one_step(&s, token, layer, token >= opt->warm_tokens);
	}
	r->seconds = s.now - began;
	check_slots(&s);
	spare_free(s.spare);
	policy_free(s.policy);
	free(s.resident);
	free(s.held);
	free(s.ahead);
	free(s.used);
	free(s.next_use);
	free(s.uses);
}
