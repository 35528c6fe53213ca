#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "config/mem.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_disk_inside.h"

/*   at = 0, 1, ... n_calls: the calls before `at` were made. Those that a sync covers are in `durable`; the others
 *   are `pending`, and each plan for them is a state: a fate for each.  */

enum fate { LOST, WHOLE, TORN };

struct sim_states {
	struct sim_disk *d;
	struct sim_options opt;
	uint64_t random;
	int n_names, n_nodes;            /* at the end of what was written down */
	struct sim_node durable[SIM_NODES_MOST];
	struct page_sums {
		uint64_t *of_page;       /* [n] */
		size_t n;
		uint64_t all;            /* their sum */
	} sums[SIM_NODES_MOST];          /* of what is durable */
	int names[SIM_NAMES_MOST];       /* durable nodes */
	size_t at;
	size_t *pending;                 /* [n_pending] calls, in order */
	size_t n_pending, room;
	uint8_t *fates;                  /* [n_pending] */
	int64_t plan, n_plans;           /* of this point */
	uint64_t *seen;                  /* [seen_room] hashes of states, 0: a free place */
	size_t n_seen, seen_room;
	char *text;
};

static uint64_t next_random(struct sim_states *s)
{
	uint64_t x = s->random += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static bool is_name(const struct sim_call *c)
{
	return c->kind == SIM_CREATE || c->kind == SIM_DELETE;
}

/* `n` becomes what it is after a call that reached the disk, or of which some sectors did. */
static void apply(struct sim_states *s, struct sim_node *n, const struct sim_call *c, bool torn)
{
	int64_t first = c->at / SIM_SECTOR, last = (c->at + c->bytes - 1) / SIM_SECTOR, cut;
	int how;

	if (c->kind == SIM_RESIZE) {
		sim_node_resize(n, c->bytes);
		return;
	}
	if (!torn) {
		sim_node_write(n, c->at, c->data, c->bytes);
		return;
	}
	/* A beginning, an end, any sectors, or the new size alone. */
	how = (int)(next_random(s) % 4);
	cut = first + (int64_t)(next_random(s) % (uint64_t)(last - first + 2));
	if (how == 3 && c->at + c->bytes > n->bytes)
		sim_node_resize(n, c->at + c->bytes);
	for (int64_t sector = first; how < 3 && sector <= last; sector++) {
		int64_t from = sector * SIM_SECTOR, to = from + SIM_SECTOR;

		if (how == 0 ? sector >= cut : how == 1 ? sector < cut : next_random(s) & 1)
			continue;
		from = from < c->at ? c->at : from;
		to = to > c->at + c->bytes ? c->at + c->bytes : to;
		sim_node_write(n, from, c->data + (from - c->at), to - from);
	}
}

static void apply_name(int *names, const struct sim_call *c)
{
	names[c->name] = c->kind == SIM_CREATE ? c->node : -1;
}

/* What this sync covers is durable. */
static void settle(struct sim_states *s, const struct sim_call *sync)
{
	size_t n = 0;

	for (size_t i = 0; i < s->n_pending; i++) {
		const struct sim_call *c = &s->d->calls[s->pending[i]];

		if (sync->kind == SIM_SYNC_NAMES && is_name(c))
			apply_name(s->names, c);
		else if (sync->kind == SIM_SYNC && !is_name(c) && c->node == sync->node)
			apply(s, &s->durable[c->node], c, false);
		else
			s->pending[n++] = s->pending[i];
	}
	s->n_pending = n;
}

/* One call more was made. */
static void advance(struct sim_states *s)
{
	const struct sim_call *c = &s->d->calls[s->at];

	if (c->kind == SIM_SYNC || c->kind == SIM_SYNC_NAMES) {
		settle(s, c);
	} else {
		if (s->n_pending == s->room) {
			s->room = s->room ? 2 * s->room : 64;
			s->pending = xrealloc(s->pending, s->room, sizeof *s->pending);
			s->fates = xrealloc(s->fates, s->room, sizeof *s->fates);
		}
		s->pending[s->n_pending++] = s->at;
	}
	s->at++;
}

static void count_plans(struct sim_states *s)
{
	int64_t n = (int64_t)s->n_pending;

	s->plan = 0;
	s->n_plans = (n <= s->opt.subsets_most ? (int64_t)1 << n : 2 + 3 * n) + (n ? s->opt.n_random : 0);
}

static void choose_fates(struct sim_states *s)
{
	int64_t n = (int64_t)s->n_pending, plan = s->plan, n_fixed = s->n_plans - (n ? s->opt.n_random : 0);

	for (int64_t i = 0; i < n; i++) {
		int64_t k = (plan - 2) / 3;
		uint64_t x;

		if (plan >= n_fixed) {
			x = next_random(s) % 8;
			s->fates[i] = x < 3 ? LOST : x < 6 ? WHOLE : TORN;
		} else if (n <= s->opt.subsets_most) {
			s->fates[i] = plan >> i & 1 ? WHOLE : LOST;
		} else if (plan < 2) {
			s->fates[i] = plan ? WHOLE : LOST;
		} else {
			s->fates[i] = ((plan - 2) % 3 == 0 ? i == k : (plan - 2) % 3 == 1 ? i != k : i < k) ? WHOLE : LOST;
		}
	}
}

static bool is_new(struct sim_states *s, uint64_t hash)
{
	size_t i;

	hash += !hash;
	if (2 * (s->n_seen + 1) > s->seen_room) {
		size_t room = s->seen_room ? 2 * s->seen_room : 1024;
		uint64_t *old = s->seen;

		s->seen = xcalloc(room, sizeof *s->seen);
		for (size_t k = 0; k < s->seen_room; k++)
			if (old[k]) {
				for (i = old[k] % room; s->seen[i]; i = (i + 1) % room)
					;
				s->seen[i] = old[k];
			}
		s->seen_room = room;
		free(old);
	}
	for (i = hash % s->seen_room; s->seen[i]; i = (i + 1) % s->seen_room)
		if (s->seen[i] == hash)
			return false;
	s->seen[i] = hash;
	s->n_seen++;
	return true;
}

/* 0 behind the end. */
static uint64_t page_sum(const struct sim_node *n, size_t page)
{
	int64_t at = (int64_t)page * SIM_PAGE, bytes = n->bytes - at < SIM_PAGE ? n->bytes - at : SIM_PAGE;

	return bytes > 0 ? XXH3_64bits_withSeed(n->data + at, (size_t)bytes, page) : 0;
}

static uint64_t durable_sum(const struct page_sums *sums, size_t page)
{
	return page < sums->n ? sums->of_page[page] : 0;
}

/* File i of the disk is what is durable of it; no page of either is marked. */
static void take_durable(struct sim_states *s, int i)
{
	struct sim_node *from = &s->durable[i], *to = &s->d->nodes[i];
	struct page_sums *sums = &s->sums[i];
	size_t n = (size_t)(from->room / SIM_PAGE);

	if (to->bytes != from->bytes)
		sim_node_resize(to, from->bytes);
	if (n > sums->n) {
		sums->of_page = xrealloc(sums->of_page, n, sizeof *sums->of_page);
		memset(sums->of_page + sums->n, 0, (n - sums->n) * sizeof *sums->of_page);
		sums->n = n;
	}
	for (size_t page = 0; page < n; page++) {
		int64_t at = (int64_t)page * SIM_PAGE, bytes = from->bytes - at < SIM_PAGE ? from->bytes - at : SIM_PAGE;

		if (from->touched[page]) {
			sums->all -= sums->of_page[page];
			sums->all += sums->of_page[page] = page_sum(from, page);
		}
		if (bytes > 0 && (from->touched[page] || to->touched[page]))
			memcpy(to->data + at, from->data + at, (size_t)bytes);
		from->touched[page] = 0;
	}
	if (to->room)
		memset(to->touched, 0, (size_t)(to->room / SIM_PAGE));
}

/* The state that the fates make, on the disk; its hash. */
static uint64_t make_state(struct sim_states *s)
{
	struct sim_disk *d = s->d;
	int names[SIM_NAMES_MOST];
	uint64_t value = 0;

	for (int i = s->n_nodes; i < d->n_nodes; i++)
		sim_node_clear(&d->nodes[i]); /* of the work on the last state */
	d->n_nodes = s->n_nodes;
	for (int i = 0; i < s->n_nodes; i++)
		take_durable(s, i);
	memcpy(names, s->names, sizeof names);
	for (size_t i = 0; i < s->n_pending; i++) {
		const struct sim_call *c = &d->calls[s->pending[i]];

		if (is_name(c) && s->fates[i] != LOST)
			apply_name(names, c);
		else if (!is_name(c) && s->fates[i] != LOST)
			apply(s, &d->nodes[c->node], c, s->fates[i] == TORN);
	}
	for (int i = 0; i < d->n_names; i++) {
		int node = d->names[i].node = i < s->n_names ? names[i] : -1;
		const struct sim_node *n = &d->nodes[node < 0 ? 0 : node];
		uint64_t of_name[3] = {(uint64_t)i, (uint64_t)n->bytes, 0};

		if (node < 0)
			continue;
		of_name[2] = s->sums[node].all;
		for (size_t page = 0; page < (size_t)(n->room / SIM_PAGE); page++)
			if (n->touched[page])
				of_name[2] += page_sum(n, page) - durable_sum(&s->sums[node], page);
		value += XXH3_64bits(of_name, sizeof of_name);
	}
	return value;
}

struct sim_states *sim_states_new(struct sim_disk *d, const struct sim_options *opt)
{
	struct sim_states *s = xcalloc(1, sizeof *s);

	assert(!d->recording && opt->subsets_most < 32 && opt->n_parts > 0);
	s->d = d;
	s->opt = *opt;
	s->random = opt->seed;
	s->n_names = d->n_names;
	s->n_nodes = d->n_nodes;
	for (int i = 0; i < d->n_base; i++)
		sim_node_copy(&s->durable[i], &d->base[i]);
	for (int i = 0; i < SIM_NAMES_MOST; i++)
		s->names[i] = i < d->n_base_names ? d->base_names[i] : -1;
	count_plans(s);
	return s;
}

bool sim_states_next(struct sim_states *s)
{
	for (;;) {
		uint64_t hash;

		while (s->plan == s->n_plans) {
			if (s->at == s->d->n_calls)
				return false;
			advance(s);
			count_plans(s);
		}
		choose_fates(s);
		s->plan++;
		hash = make_state(s) ^ (s->at >= s->opt.done_at);
		if (is_new(s, hash) && hash % (uint64_t)s->opt.n_parts == (uint64_t)s->opt.part) {
			sim_disk_place(s->d);
			return true;
		}
	}
}

size_t sim_states_at(const struct sim_states *s)
{
	return s->at;
}

const char *sim_states_text(const struct sim_states *s)
{
	struct sim_states *mine = (struct sim_states *)s; /* which has the memory */
	static const char fates[] = "-+~";
	char *p;

	free(mine->text);
	mine->text = p = xmalloc(160 + s->n_pending, 1);
	p += sprintf(p, "plan %lld after call %zu of %zu, unsynced calls (- lost, + there, ~ torn): ", (long long)s->plan, s->at,
		     s->d->n_calls);
	for (size_t i = 0; i < s->n_pending; i++)
		*p++ = fates[s->fates[i]];
	*p = '\0';
	return mine->text;
}

void sim_states_free(struct sim_states *s)
{
	if (!s)
		return;
	for (int i = 0; i < s->n_nodes; i++) {
		sim_node_clear(&s->durable[i]);
		free(s->sums[i].of_page);
	}
	free(s->pending);
	free(s->fates);
	free(s->seen);
	free(s->text);
	free(s);
}
