#include "engine/experts_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "config/mem.h"

enum {
	PIECES_MOST = 32,
	WARM_PIECES = 4,     /* of experts that nobody has asked for: who asks for another meanwhile waits for no more */
};

/* ---- opening ------------------------------------------------------------------------------------------------------ */

static int open_files(struct experts *x, struct err *err)
{
	x->direct = xcalloc(x->files->n_shards, sizeof *x->direct);
	for (size_t i = 0; i < x->files->n_shards; i++)
		x->direct[i].fd = x->direct[i].direct_fd = -1;
	for (size_t i = 0; i < x->files->n_shards; i++)
		if (io_open(&x->direct[i], x->files->shards[i].file.path, IO_OPEN_DIRECT, err))
			return -1;
	return 0;
}

static int take_slots(struct experts *x, int64_t bytes, int32_t n_slots, struct err *err)
{
	int64_t n, least = n_slots ? n_slots : x->n_chosen + 1;

	for (size_t i = 0; i < (size_t)x->n_layers * (size_t)x->n_experts; i++) {
		struct expert_reading r;

		if (!x->places[i].n_parts)
			continue;
		expert_reading_plan(&r, &x->places[i], x->direct);
		x->slot_bytes = r.bytes > x->slot_bytes ? r.bytes : x->slot_bytes;
		x->stats.n_experts++;
	}
	n = n_slots ? n_slots : x->slot_bytes ? bytes / (int64_t)x->slot_bytes : 0;
	if (n < least)
		return err_set(err, ERR_TOO_LARGE, "%lld bytes for experts are room for %lld; a token uses %d at a time, and one more must "
			       "fit: %lld bytes at least", (long long)bytes, (long long)n, x->n_chosen,
			       (long long)(least * (int64_t)x->slot_bytes));
	n = n < x->stats.n_experts ? n : x->stats.n_experts > least ? x->stats.n_experts : least;
	x->n_slots = (int32_t)n;
	x->memory = io_buffer_new((size_t)n * x->slot_bytes, "experts", err);
	if (!x->memory)
		return -1;
	x->slots = xcalloc((size_t)n, sizeof *x->slots);
	for (int32_t i = 0; i < x->n_slots; i++) {
		x->slots[i].memory = x->memory + (size_t)i * x->slot_bytes;
		x->slots[i].layer = x->slots[i].expert = NONE;
	}
	return 0;
}

static int start_io(struct experts *x, const struct experts_options *opt, struct err *err)
{
	size_t piece = x->slot_bytes && x->slot_bytes < x->piece_bytes ? x->slot_bytes : x->piece_bytes;
	int n = (int)(EXPERTS_IN_FLIGHT / piece);
	const struct io_options io = {.purpose = "experts", .piece_bytes = x->piece_bytes, .depth = n < PIECES_MOST ? n : PIECES_MOST,
				      .n_drives = io_drives(x->direct, x->files->n_shards), .backend = opt->backend,
				      .backend_state = opt->backend_state};

	if (io_new(&x->io, &io, err))
		return -1;
	for (size_t i = 0; i < x->files->n_shards; i++)
		io_use_file(x->io, &x->direct[i]);
	return 0;
}

static bool is_there(const void *ctx, int32_t layer, int32_t expert)
{
	const struct experts *x = ctx;

	return policy_resident(x->policy, layer, expert) || expert_is_on_device(x, layer, expert);
}

int experts_open(struct experts **out, const struct checkpoint *files, struct expert_place *places, int32_t n_layers,
		 int32_t n_experts, int32_t n_chosen, const struct experts_options *opt, struct err *err)
{
	struct experts *x = xcalloc(1, sizeof *x);
	size_t n = (size_t)n_layers * (size_t)n_experts;

	x->files = files;
	x->places = places;
	x->n_layers = n_layers;
	x->n_experts = n_experts;
	x->n_chosen = n_chosen;
	x->no_prediction = opt->no_prediction;
	trial_init(&x->trial);
	x->piece_bytes = opt->piece_bytes ? opt->piece_bytes : EXPERT_PIECE;
	expert_guesses_init(&x->guesses, n_chosen);
	x->slot_of = xmalloc(n, sizeof *x->slot_of);
	for (size_t i = 0; i < n; i++)
		x->slot_of[i] = NONE;
	x->policy = policy_new(n_layers, n_experts, n_chosen);
	x->entries = xmalloc((size_t)n_experts, sizeof *x->entries);
	if (open_files(x, err) || take_slots(x, opt->bytes, opt->n_slots, err) || start_io(x, opt, err) ||
	    expert_sums_open(&x->sums, files->dir, opt->sums_path, opt->fingerprint, n, err)) {
		experts_close(x);
		return -1;
	}
	x->spent = xmalloc((size_t)x->n_slots, sizeof *x->spent);
	x->reading = xmalloc((size_t)x->n_slots, sizeof *x->reading);
	if (opt->device && expert_device_open(x, opt, err)) {
		experts_close(x);
		return -1;
	}
	x->spare = spare_new(x->policy, n_layers, n_experts, is_there, x);
	ahead_init(&x->admission, n_chosen, x->slot_bytes ? (double)x->piece_bytes / (double)x->slot_bytes : 1);
	*out = x;
	return 0;
}

void experts_close(struct experts *x)
{
	struct err err;

	if (!x)
		return;
	expert_device_close(x);
	io_free(x->io);
	for (size_t i = 0; x->direct && i < x->files->n_shards; i++)
		io_close(&x->direct[i]);
	if (x->sums && expert_sums_close(x->sums, &err))
		log_warn("checksums of experts are not kept: %s", err.text);
	spare_free(x->spare);
	policy_free(x->policy);
	for (int32_t i = 0; i < x->n_slots; i++)
		expert_look_free(x->slots[i].look);
	free(x->direct);
	free(x->places);
	free(x->slots);
	free(x->memory);
	free(x->slot_of);
	free(x->spent);
	free(x->reading);
	free(x->entries);
	expert_guesses_free(&x->guesses);
	expert_warming_clear(&x->warming);
	free(x);
}

/* ---- slots --------------------------------------------------------------------------------------------------------- */

static void point(struct experts *x, const struct slot *s, const struct expert_reading *r)
{
	const struct expert_place *place = &x->places[index_of(x, s->layer, s->expert)];

	for (int i = 0; i < place->n_parts; i++)
		*place->parts[i].where = r ? s->memory + r->fixed_at[i] : NULL;
}

void expert_empty(struct experts *x, struct slot *s)
{
	if (s->layer == NONE)
		return;
	if (s->state == SLOT_WARM) {
		policy_hold(x->policy, s->layer, s->expert, false);
		policy_left(x->policy, s->layer, s->expert);
		x->stats.resident--;
	}
	point(x, s, NULL);
	expert_look_free(s->look);
	s->look = NULL;
	x->slot_of[index_of(x, s->layer, s->expert)] = NONE;
	if (s->state == SLOT_WARM)
		expert_device_left(x, s->layer, s->expert);
	s->state = SLOT_FREE;
	if (s - x->slots < x->first_free)
		x->first_free = (int32_t)(s - x->slots);
	s->layer = s->expert = NONE;
	x->n_wanted -= s->wanted;
	s->wanted = s->ahead = s->later = s->spare = s->guessed = false;
	s->warmed = 0;
}

void expert_hold(struct experts *x, struct slot *s, bool wanted)
{
	x->n_wanted += wanted - s->wanted;
	s->wanted = wanted;
	if (s->state == SLOT_WARM)
		policy_hold(x->policy, s->layer, s->expert, wanted || s->guessed || s->lent);
}

/* A slot for somebody who is worth so much; NULL: everybody who is there is worth more, or is held. */
struct slot *expert_find_slot(struct experts *x, float worth)
{
	int32_t layer, expert;
	float least;

	for (; x->first_free < x->n_slots; x->first_free++)
		if (x->slots[x->first_free].state == SLOT_FREE)
			return &x->slots[x->first_free];
	while (x->n_spent) {
		struct slot *s = &x->slots[x->spent[--x->n_spent]];

		if (s->state == SLOT_WARM && !s->wanted && !s->lent) {
			expert_empty(x, s);
			return s;
		}
	}
	if (expert_device_gives_host_slot(x))
		return expert_find_slot(x, worth);
	if (!policy_victim(x->policy, &layer, &expert, &least))
		return worth > 1 && expert_free_guesses(x) ? expert_find_slot(x, worth) : NULL;
	if (least >= worth)
		return NULL;
	expert_empty(x, &x->slots[x->slot_of[index_of(x, layer, expert)]]);
	return expert_find_slot(x, worth);
}

void expert_allow_ahead(struct experts *x, int pieces)
{
	for (enum io_class c = IO_CLASS_PREFETCH; c < N_IO_CLASSES; c++)
		io_allow(x->io, c, pieces);
}

/* By the drive's time. */
static double seconds_since(const struct experts *x, int64_t ns)
{
	return (double)(io_now(x->io) - ns) * 1e-9;
}

/* One more is being read that is waited for; begins: it begins now. The last ones shall not share the drive. */
static void await(struct experts *x, bool begins)
{
	if (!x->n_awaited++) {
		x->busy_since = io_now(x->io);
		x->n_busy = 0;
		expert_allow_ahead(x, 0);
	}
	x->n_busy = x->n_busy == NONE || !begins ? NONE : x->n_busy + 1;
}

static int pieces_of(const struct slot *s)
{
	int n = 0;

	for (int k = 0; k < s->r.n; k++)
		n += s->requests[k].status == IO_PENDING ? s->requests[k].n_in_flight : 0;
	return n;
}

int expert_pieces(const struct experts *x, bool ahead_only)
{
	int n = 0;

	for (int32_t i = 0; i < x->n_reading; i++) {
		const struct slot *s = &x->slots[x->reading[i]];

		n += !ahead_only || s->ahead ? pieces_of(s) : 0;
	}
	return n;
}

/* Have those ended that were in the way of what is waited for? over: nobody waits any more. */
static void look_in_the_way(struct experts *x, bool over)
{
	if (!x->in_the_way.n_pieces || (!over && expert_pieces(x, true)))
		return;
	ahead_held_up(&x->admission, x->in_the_way.n_pieces, expert_pieces(x, false), seconds_since(x, x->in_the_way.since));
	x->in_the_way.n_pieces = 0;
}

static void no_longer_await(struct experts *x)
{
	if (--x->n_awaited)
		return;
	look_in_the_way(x, true);
	expert_allow_ahead(x, 1);
	if (x->n_busy > 0)
		ahead_carried(&x->admission, seconds_since(x, x->busy_since) / x->n_busy);
}

void expert_begin_reading(struct experts *x, struct slot *s, int32_t layer, int32_t expert, enum io_class class)
{
	const struct expert_place *place = &x->places[index_of(x, layer, expert)];
	struct io_request *requests[EXPERT_PARTS];

	s->state = SLOT_READING;
	s->reading = ++x->stats.reads;
	s->layer = layer;
	s->expert = expert;
	expert_reading_plan(&s->r, place, x->direct);
	s->look = expert_look_new(place, &s->r, !expert_sums_known(x->sums, index_of(x, layer, expert)));
	s->n_pending = s->r.n;
	s->err.code = ERR_NONE;
	s->cancelled = false;
	for (int i = 0; i < s->r.n; i++) {
		s->requests[i] = (struct io_request){.op = IO_READ, .class = class, .file = &x->direct[s->r.runs[i].shard],
						     .offset = s->r.runs[i].range.offset, .bytes = s->r.runs[i].range.bytes,
						     .at_least = s->r.runs[i].least, .buffer = s->memory + s->r.runs[i].at, .tag = s};
		requests[i] = &s->requests[i];
	}
	point(x, s, &s->r);
	if (s->spare) {
		x->n_spare++;
	} else if (s->ahead) {
		x->n_guessed++;
		x->n_later += s->later;
	} else {
		await(x, true);
	}
	x->slot_of[index_of(x, layer, expert)] = (int32_t)(s - x->slots);
	x->reading[x->n_reading++] = (int32_t)(s - x->slots);
	io_submit(x->io, requests, (size_t)s->r.n);
}

/* Nothing of it is under way any more. */
static void end_reading(struct experts *x, struct slot *s)
{
	int32_t i = 0;

	while (&x->slots[x->reading[i]] != s)
		i++;
	memmove(x->reading + i, x->reading + i + 1, (size_t)(--x->n_reading - i) * sizeof *x->reading);
}

static void what_came(const struct experts *x, const struct slot *s, size_t arrived[EXPERT_PARTS])
{
	for (int i = 0; i < s->r.n; i++)
		arrived[i] = io_arrived(x->io, &s->requests[i]);
}

/* At some more of it. */
static bool look_on(struct experts *x, struct slot *s)
{
	size_t arrived[EXPERT_PARTS];

	what_came(x, s, arrived);
	return expert_look_on(s->look, s->memory, arrived);
}

/* Who computes with it looks at the rest of it. Not where it may go on to a device, which does not. */
static bool can_wait(const struct experts *x, const struct slot *s)
{
	return !x->device && !s->cancelled && expert_look_can_wait(s->look);
}

/* Of the first one of which there is something, those first that are waited for. */
static bool look_on_any(struct experts *x)
{
	for (int32_t i = 0; i < 2 * x->n_reading; i++) {
		struct slot *s = &x->slots[x->reading[i % x->n_reading]];

		if (!s->cancelled && s->ahead == (i >= x->n_reading) && look_on(x, s))
			return true;
	}
	return false;
}

static void is_warm(struct experts *x, struct slot *s)
{
	s->state = SLOT_WARM;
	x->stats.resident++;
	policy_arrived(x->policy, s->layer, s->expert);
	expert_hold(x, s, s->wanted);
}

void expert_landed(struct experts *x, struct slot *s)
{
	point(x, s, &s->r);
	is_warm(x, s);
}

/* All of it has come: is it what it should be? */
static int prove(struct experts *x, struct slot *s, struct err *err)
{
	const struct expert_place *place = &x->places[index_of(x, s->layer, s->expert)];
	uint64_t sum;
	int bad;

	if (!s->look)
		return 0;
	while (look_on(x, s))
		;
	sum = expert_look_sum(s->look);
	if (!expert_sums_match(x->sums, index_of(x, s->layer, s->expert), sum))
		return err_set(err, ERR_DAMAGED, "%s: the bytes read are not those that were %s (checksum %016" PRIx64 "); the disk or "
			       "the file is damaged: `quire model verify`", x->direct[place->parts[0].shard].path,
			       expert_sums_shipped(x->sums) ? "packed" : "read before", sum);
	bad = expert_look_bad_part(s->look);
	if (bad >= 0)
		return err_set(err, ERR_FORMAT, "%s: tensor %s holds a NaN or infinity; the file is damaged, fetch it again",
			       x->direct[place->parts[bad].shard].path, place->parts[bad].tensor->name);
	expert_sums_note(x->sums, index_of(x, s->layer, s->expert), sum);
	expert_look_free(s->look);
	s->look = NULL;
	return 0;
}

/* All reads of a slot are done. */
static int has_come(struct experts *x, struct slot *s, struct err *err)
{
	const struct expert_place *place = &x->places[index_of(x, s->layer, s->expert)];

	for (int i = 0; i < place->n_parts; i++)
		if (io_check_unchanged(&x->direct[place->parts[i].shard], err))
			return -1;
	if (!can_wait(x, s) && prove(x, s, err))
		return -1;
	s->guessed = expert_is_guess(s);
	is_warm(x, s);
	expert_device_came(x, s->layer, s->expert);
	return 0;
}

/* One that was read ahead is not on its way as such any more. */
static void end_guess(struct experts *x, struct slot *s)
{
	x->n_spare -= s->spare;
	x->n_guessed -= !s->spare;
	x->n_later -= s->later;
	s->later = false;
}

/* What was read ahead is wanted now, or is not going to be. */
void expert_no_guess(struct experts *x, struct slot *s, bool wanted)
{
	x->stats.useful += wanted && expert_is_guess(s);
	s->ahead = false;
	if (!s->n_pending)
		return;
	end_guess(x, s);
	s->spare = false;
	if (wanted) {
		await(x, false);
		return;
	}
	s->cancelled = true;
	s->cancelled_at = io_now(x->io);
	for (int k = 0; k < s->r.n; k++)
		io_cancel(x->io, &s->requests[k]);
	s->n_left = pieces_of(s);
}

/* A request came back. */
static void take_back(struct experts *x, struct io_request *r)
{
	struct slot *s = r->tag;
	struct err err;
	bool warm;

	if (io_request_check(r, &err) && s->err.code == ERR_NONE)
		s->err = err;
	if (--s->n_pending)
		return;
	end_reading(x, s);
	if (s->ahead) {
		end_guess(x, s);
	} else if (s->cancelled) {
		ahead_held_up(&x->admission, s->n_left, expert_pieces(x, false), x->n_awaited ? seconds_since(x, s->cancelled_at) : 0);
		x->stats.behind += x->n_awaited && s->n_left;
	} else {
		no_longer_await(x);
	}
	expert_go_ahead(x); /* the drive, while this is looked at */
	/* Of what was given up all may have come. To look at it takes its time, which others are waiting for. */
	warm = s->err.code == ERR_NONE && (!s->cancelled || s->wanted) && !has_come(x, s, &s->err);
	if (warm && (s->warmed || s->spare)) {
		x->stats.warmed += s->warmed > 0;
		s->ahead = s->spare = false; /* it is there like any other */
	}
	if (warm)
		return;
	if (s->spare)
		spare_failed(x->spare);
	expert_look_free(s->look);
	s->look = NULL;
	if (s->cancelled && s->wanted) /* since then */
		expert_begin_reading(x, s, s->layer, s->expert, IO_CLASS_EXPERT);
	else if (!s->wanted) /* nobody waits for it: who wants it later tries again */
		expert_empty(x, s);
}

void expert_poll(struct experts *x)
{
	struct io_request *r;

	while ((r = io_poll(x->io)))
		take_back(x, r);
	look_in_the_way(x, false);
	expert_go_ahead(x);
}

/* Take back what is done, or look at some of what has come; false: there is neither now. */
static bool go_on(struct experts *x)
{
	struct io_request *r = io_poll(x->io);

	look_in_the_way(x, false);
	if (!r)
		return look_on_any(x);
	take_back(x, r);
	expert_go_ahead(x);
	return true;
}

/* ---- what a pass asks for ----------------------------------------------------------------------------------------- */

int32_t experts_slots(const struct experts *x)
{
	return x->n_slots;
}

const struct expert_place *experts_place(const struct experts *x, int32_t layer, int32_t expert)
{
	return &x->places[index_of(x, layer, expert)];
}

/* Somebody asks for experts: what is on its way and not among them gives up its slot and the link, and comes another time. */
static void stop_warming(struct experts *x, int32_t layer, const int32_t *ids, int32_t n)
{
	for (int32_t i = 0; i < x->n_reading; i++) {
		struct slot *s = &x->slots[x->reading[i]];

		if (s->ahead && s->warmed && !(s->layer == layer && expert_is_among(s->expert, ids, n))) {
			x->warming.next = s->warmed - 1 < x->warming.next ? s->warmed - 1 : x->warming.next;
			expert_no_guess(x, s, false);
			s->warmed = 0;
		}
	}
}

/* What was warmed is wanted for the first time. */
static void count_warmed(struct experts *x, struct slot *s)
{
	x->stats.warmed += s->state == SLOT_READING; /* else it was counted when it came */
	x->stats.warmed_used++;
	s->warmed = 0;
}

/* It has a slot, and is wanted now. */
static void want_there(struct experts *x, struct slot *s)
{
	x->stats.hits += s->state == SLOT_WARM && !s->ahead;
	x->stats.late += s->state == SLOT_READING;
	if (s->ahead)
		expert_no_guess(x, s, true);
	if (s->warmed)
		count_warmed(x, s);
	s->guessed = false; /* its router has spoken */
	expert_hold(x, s, true);
	for (int k = 0; k < s->r.n && s->state == SLOT_READING; k++)
		io_raise(x->io, &s->requests[k], IO_CLASS_EXPERT);
}

void experts_want(struct experts *x, int32_t layer, const int32_t *ids, int32_t n)
{
	stop_warming(x, layer, ids, n);
	expert_poll(x);
	/* Those that are there first, lest one that is not takes the place of one that is. A slot is left for one that is not. */
	for (int32_t i = 0; i < n && x->n_wanted < x->n_slots - 1; i++) {
		struct slot *s = expert_slot(x, layer, ids[i]);

		if (s && !s->wanted)
			want_there(x, s);
	}
	for (int32_t i = 0; i < n; i++) {
		struct slot *s = expert_slot(x, layer, ids[i]);

		if (s) {
			if (!s->wanted)
				want_there(x, s);
			continue;
		}
		s = expert_find_slot(x, 2);
		if (!s)
			return;
		expert_hold(x, s, true);
		expert_begin_reading(x, s, layer, ids[i], IO_CLASS_EXPERT);
	}
}

/* One more time: a transfer may have gone wrong where the disk has not. */
static int read_again(struct experts *x, struct slot *s, struct err *err)
{
	int32_t layer = s->layer, expert = s->expert;

	if (s->tries++ || s->err.code == ERR_FORMAT) {
		if (err)
			*err = s->err;
		expert_empty(x, s);
		return err_wrap(err, "layer %d, expert %d", layer, expert);
	}
	x->stats.retried++;
	log_warn("layer %d, expert %d is read again: %s", layer, expert, s->err.text);
	if (s->state == SLOT_WARM) {
		expert_empty(x, s);
		expert_hold(x, s, true);
	}
	expert_begin_reading(x, s, layer, expert, IO_CLASS_EXPERT);
	return 0;
}

/* Until all of it is there, and is what it should be if that is asked for. */
static int await_whole(struct experts *x, struct slot *s, bool proved, struct err *err)
{
	for (;;) {
		while (s->n_pending)
			if (!go_on(x))
				io_wait_piece(x->io);
		if (s->state == SLOT_WARM && (!proved || !prove(x, s, &s->err)))
			return 0;
		if (read_again(x, s, err))
			return -1;
	}
}

static int take(struct experts *x, int32_t layer, int32_t expert, bool proved, struct err *err)
{
	int64_t began = io_now(x->io);
	struct slot *s;

	experts_want(x, layer, &expert, 1);
	x->stats.taken++;
	/* All slots are being read into, or wanted by somebody who waits meanwhile, as a sweep does for a question. */
	while (x->slot_of[index_of(x, layer, expert)] == NONE) {
		struct io_request *r = io_wait(x->io, -1);

		if (r)
			take_back(x, r);
		else
			experts_forget(x);
		experts_want(x, layer, &expert, 1);
	}
	s = &x->slots[x->slot_of[index_of(x, layer, expert)]];
	if (s->state == SLOT_LANDING)
		expert_device_settle(x, s);
	s->tries = 0;
	if (await_whole(x, s, proved, err))
		return -1;
	x->stats.waited_s += seconds_since(x, began);
	return 0;
}

int experts_take(struct experts *x, int32_t layer, int32_t expert, struct err *err)
{
	return take(x, layer, expert, true, err);
}

int experts_take_unproved(struct experts *x, int32_t layer, int32_t expert, struct err *err)
{
	return take(x, layer, expert, false, err);
}

int experts_prove(struct experts *x, int32_t layer, int32_t expert, bool *again, struct err *err)
{
	struct slot *s = expert_slot(x, layer, expert);

	*again = prove(x, s, &s->err) != 0;
	s->tries = 0;
	return *again && (read_again(x, s, err) || await_whole(x, s, true, err)) ? -1 : 0;
}

/* What there is of them; EXPERTS_WHOLE too where experts_take must see to it: it has failed, or there is no slot for any. */
static enum experts_came look_for(const struct experts *x, int32_t layer, const int32_t *ids, int32_t n, int flags, int32_t *which)
{
	bool coming = false;

	for (*which = 0; *which < n; ++*which) {
		const struct slot *s = expert_slot(x, layer, ids[*which]);

		if (s && (s->state == SLOT_WARM || !s->n_pending))
			return EXPERTS_WHOLE;
		coming |= s != NULL;
	}
	for (*which = 0; *which < n && flags & EXPERTS_HALVES; ++*which) {
		const struct slot *s = expert_slot(x, layer, ids[*which]);
		size_t arrived[EXPERT_PARTS];

		if (!s || s->cancelled)
			continue;
		what_came(x, s, arrived);
		if (expert_look_half(s->look, arrived))
			return EXPERTS_HALF;
	}
	*which = 0;
	return coming ? EXPERTS_NONE : EXPERTS_WHOLE;
}

enum experts_came experts_come(struct experts *x, int32_t layer, const int32_t *ids, int32_t n, int flags, int32_t *which)
{
	int64_t began = io_now(x->io);
	enum experts_came came;

	experts_want(x, layer, ids, n);
	while ((came = look_for(x, layer, ids, n, flags, which)) == EXPERTS_NONE)
		if (!go_on(x)) {
			if (!(flags & EXPERTS_WAIT))
				break;
			io_wait_piece(x->io);
		}
	x->stats.halves += came == EXPERTS_HALF;
	x->stats.waited_s += seconds_since(x, began);
	return came;
}

int64_t experts_reading(const struct experts *x, int32_t layer, int32_t expert)
{
	return expert_slot(x, layer, expert)->reading;
}

void experts_go_on(struct experts *x)
{
	expert_poll(x);
}

void experts_done(struct experts *x, int32_t layer, int32_t expert, bool spent)
{
	struct slot *s = &x->slots[x->slot_of[index_of(x, layer, expert)]];

	expert_hold(x, s, false);
	expert_poll(x);
	if (!spent) {
		expert_device_consider(x, s);
		return;
	}
	x->none_to_ask = false; /* in a sweep what comes next is known */
	x->pass.is_sweep = true;
	expert_device_once(x, layer, expert);
	/* Slots that are free again by themselves, or taken, leave the pile when it is full. */
	if (x->n_spent == x->n_slots) {
		memmove(x->spent, x->spent + 1, (size_t)(x->n_slots - 1) * sizeof *x->spent);
		x->n_spent--;
	}
	x->spent[x->n_spent++] = (int32_t)(s - x->slots);
}

void experts_forget(struct experts *x)
{
	for (int32_t i = 0; i < x->n_slots; i++)
		if (x->slots[i].wanted)
			expert_hold(x, &x->slots[i], false);
	for (int r = 0; r < GUESS_ROUTERS; r++)
		for (int k = 0; k < N_AHEAD_KINDS; k++)
			expert_end_guesses(x, &x->guesses.lists[r][k], NULL, 0);
	x->looks_ahead = x->none_to_ask = false;
	ahead_forget(&x->admission);
	expert_end_pass(x);
	expert_device_forget(x);
	for (int32_t i = 0; i < x->n_slots; i++)
		if (x->slots[i].state == SLOT_READING && !x->slots[i].n_pending)
			expert_empty(x, &x->slots[i]);
}

/* ---- what is learned, and read ahead ------------------------------------------------------------------------------ */

void experts_observe(struct experts *x, int32_t layer, const float *scores, const int32_t *chosen)
{
	int32_t n = 0;

	for (int32_t i = 0; i < x->n_chosen; i++)
		x->entries[n++] = (struct trace_entry){chosen[i], scores[chosen[i]]};
	for (int32_t e = 0; e < x->n_experts; e++) {
		bool is_chosen = false;

		for (int32_t i = 0; i < x->n_chosen; i++)
			is_chosen |= chosen[i] == e;
		if (!is_chosen)
			x->entries[n++] = (struct trace_entry){e, scores[e]};
	}
	x->pass.n_observed++;
	policy_observe(x->policy, layer, x->entries, n);
	spare_spoken(x->spare, layer, chosen, x->n_chosen);
	ahead_instead(&x->admission, spare_saves(x->spare));
}

/* ---- what is read before anybody asks ------------------------------------------------------------------------------ */

void experts_expect(struct experts *x, const int64_t *chosen)
{
	expert_warming_list(&x->warming, chosen, x->n_layers, x->n_experts, x->n_chosen, x->n_slots + expert_device_slots(x), x->policy);
}

/* A slot that is free, or whose expert is worth less; a sweep shall not take it for one that it has used. */
static struct slot *slot_to_warm(struct experts *x, float worth)
{
	struct slot *found = NULL;
	int32_t n = 0;

	(void)expert_device_gives_host_slot(x);
	for (int32_t i = 0; i < x->n_slots && !(found && found->state == SLOT_FREE); i++) {
		struct slot *s = &x->slots[i];

		if (s->state == SLOT_FREE) {
			found = s;
		} else if (expert_may_empty(s)) {
			float w = policy_worth(x->policy, s->layer, s->expert);

			if (w < worth) {
				worth = w;
				found = s;
			}
		}
	}
	if (!found)
		return NULL;
	expert_empty(x, found);
	for (int32_t i = 0; i < x->n_spent; i++)
		if (&x->slots[x->spent[i]] != found)
			x->spent[n++] = x->spent[i];
	x->n_spent = n;
	return found;
}

bool experts_warm(struct experts *x)
{
	struct expert_warming *w = &x->warming;
	int32_t most = 2 + (int32_t)(WARM_PIECES * (int64_t)x->piece_bytes / (int64_t)x->slot_bytes); /* so that the drive has a next one */

	expert_poll(x);
	io_allow(x->io, IO_CLASS_PREFETCH, WARM_PIECES);
	for (; w->next < w->n && x->n_guessed < most && !x->n_awaited; w->next++) {
		int32_t layer = w->list[w->next] / x->n_experts, expert = w->list[w->next] % x->n_experts;
		struct slot *s;

		if (!x->places[w->list[w->next]].n_parts || expert_slot(x, layer, expert) || expert_is_on_device(x, layer, expert))
			continue;
		s = slot_to_warm(x, policy_worth(x->policy, layer, expert));
		if (!s && expert_device_warm(x))
			break; /* there will be one when some that came have gone on */
		if (!s)
			continue;
		s->ahead = true;
		s->warmed = 1 + w->next;
		expert_begin_reading(x, s, layer, expert, IO_CLASS_PREFETCH);
	}
	while (look_on_any(x)) /* piece by piece: whoever comes waits for no whole expert */
		;
	return w->next < w->n || x->n_guessed || expert_device_warm(x);
}

int experts_fd(struct experts *x, struct err *err)
{
	return io_fd(x->io, err);
}

/* ---- the rest ----------------------------------------------------------------------------------------------------- */

void experts_stats(const struct experts *x, struct experts_stats *out)
{
	struct io_stats io;

	*out = x->stats;
	expert_device_stats(x, out);
	out->n_slots = x->n_slots;
	out->slot_bytes = (int64_t)x->slot_bytes;
	out->asks_ahead = x->trial.better && !x->no_prediction;
	out->trusted_first = expert_sums_trusted_first(x->sums);
	out->sums_shipped = expert_sums_shipped(x->sums);
	io_stats(x->io, &io);
	out->backend = io.backend;
	for (enum io_class c = IO_CLASS_EXPERT; c < N_IO_CLASSES; c++)
		out->read_bytes += io.of[c].moved;
}

int experts_verify(struct experts *x, void (*report)(void *ctx, int64_t done, int64_t of), void *ctx, struct err *err)
{
	int64_t done = 0;

	for (int32_t l = 0; l < x->n_layers; l++)
		for (int32_t e = 0; e < x->n_experts; e++) {
			int32_t ahead[16];
			int n = 0;

			if (!x->places[index_of(x, l, e)].n_parts)
				continue;
			for (int32_t i = e; i < x->n_experts && n < 16 && n < x->n_slots - 1; i++)
				ahead[n++] = i;
			experts_want(x, l, ahead, n);
			if (experts_take(x, l, e, err))
				return -1;
			experts_done(x, l, e, true);
			expert_sums_verified(x->sums, index_of(x, l, e));
			if (report)
				report(ctx, ++done, x->stats.n_experts);
		}
	return 0;
}
