#include "engine/experts_device.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/experts_state.h"
#include "engine/internal.h"
#include "offload/accelerator.h"
#include "offload/cost.h"

enum {
	KEPT_FREE = 4,       /* slots that stay free of experts that the device alone has, if there are four times as many */
	LOOKED_AT = 64,      /* slots, for the one that is worth least: of thousands, a part in turn is as good and takes no time */
	RAISED_AT_A_TIME = 2,
	ONCE = 4,
};

/* One changes places with another that is worth so much more. */
static const float better = 1.2f;

struct device_slot {
	char *memory;
	int32_t layer, expert;       /* NONE: it is free */
	bool arriving, leaving;      /* until `mark`: its bytes come from host memory, or go there too */
	bool wanted;                 /* by the pass under way: it stays */
	int64_t mark, used;          /* used: the last of what was computed with it */
};

struct expert_device {
	struct accelerator *a;
	const struct backend *api;
	struct backend_device *d;
	struct cost cost;
	bool knows_cost;
	char *memory;
	size_t slot_bytes;
	struct device_slot *slots;
	int32_t n_slots;
	int32_t *slot_of;            /* [n_layers, n_experts] NONE: not there */
	int32_t *free, n_free;
	int32_t *moving, n_moving;   /* arriving or leaving */
	int32_t n_there, n_alone, most_alone;
	int32_t hand;                /* the slot that is looked at next */
	int32_t once[ONCE], n_once;  /* that a sweep is done with */
	int64_t link_free_at;        /* when what was sent will be there, about */
	/* Of the pass under way. On the device, and as copies come from and go to in host memory: */
	int64_t most_rows;
	int32_t hidden, dim;
	enum compute_profile profile;
	bool has_rows;
	void *x, *host_x;            /* [most_rows, hidden] */
	int32_t *rows, *host_rows;   /* [most_rows] */
	float *out, *host_out;       /* [most_rows, hidden] */
	float *gate;                 /* [most_rows, dim] */
	int64_t last;                /* mark of all that was begun with them */
	const void *owner;           /* of what is in x; NULL: nobody */
	int32_t layer;
	struct handing {
		float *to;
		int64_t first, n;
	} *handing;                  /* [n_handing] of n_experts: rows that are to be handed out */
	int32_t n_handing;
	bool slots_pinned, host_pinned;
	char *host;                  /* what host_x, host_rows and host_out are parts of */
};

static size_t aligned(size_t bytes)
{
	return (bytes + BACKEND_ALIGN - 1) / BACKEND_ALIGN * BACKEND_ALIGN;
}

static struct device_slot *device_slot(const struct experts *x, int32_t layer, int32_t expert)
{
	int32_t at = x->device ? x->device->slot_of[index_of(x, layer, expert)] : NONE;

	return at == NONE ? NULL : &x->device->slots[at];
}

bool expert_is_on_device(const struct experts *x, int32_t layer, int32_t expert)
{
	return device_slot(x, layer, expert) != NULL;
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

/* Host memory that copies come from and go to. Where it cannot be pinned all works, more slowly: that is said once. */
static bool pin(struct expert_device *v, void *p, size_t bytes)
{
	char why[BACKEND_TEXT];

	if (!v->api->pin(v->d, p, bytes, why))
		return true;
	log_warn("device %s: host memory of %zu bytes cannot be pinned, so copies are slower: %s", v->a->name, bytes, why);
	return false;
}

static int no_room(const struct expert_device *v, size_t bytes, const char *what, struct err *err)
{
	return err_set(err, ERR_TOO_LARGE, "device %s has no room for %zu bytes for %s (%llu of %llu are free): give experts less of it "
		       "(tiers.device_experts, --device-experts), or none (tiers.device: none)", v->a->name, bytes, what,
		       (unsigned long long)v->a->info.free_bytes, (unsigned long long)v->a->info.bytes);
}

static int take_buffers(struct expert_device *v, struct err *err)
{
	size_t row = (size_t)v->hidden * sizeof(float), rows = (size_t)v->most_rows;
	size_t x = aligned(rows * row), ids = aligned(rows * sizeof(int32_t)), out = aligned(rows * row);
	size_t gate = aligned(rows * (size_t)v->dim * sizeof(float));
	char *at = v->api->alloc(v->d, x + ids + out + gate);

	if (!at)
		return no_room(v, x + ids + out + gate, "tokens", err);
	v->x = at;
	v->rows = (int32_t *)(at + x);
	v->out = (float *)(at + x + ids);
	v->gate = (float *)(at + x + ids + out);
	v->host = io_buffer_new(x + ids + out, "tokens on their way to a device", err);
	if (!v->host)
		return -1;
	v->host_x = v->host;
	v->host_rows = (int32_t *)(v->host + x);
	v->host_out = (float *)(v->host + x + ids);
	v->host_pinned = pin(v, v->host, x + ids + out);
	return 0;
}

static int take_device_slots(struct experts *x, struct expert_device *v, int64_t bytes, struct err *err)
{
	int64_t n;

	for (size_t i = 0; i < (size_t)x->n_layers * (size_t)x->n_experts; i++) {
		size_t all = 0;

		for (int k = 0; k < x->places[i].n_parts; k++)
			all += aligned(x->places[i].parts[k].bytes);
		v->slot_bytes = all > v->slot_bytes ? all : v->slot_bytes;
	}
	n = v->slot_bytes ? bytes / (int64_t)v->slot_bytes : 0;
	n = n < x->stats.n_experts ? n : x->stats.n_experts;
	if (n < 1 && (int64_t)v->slot_bytes > experts_device_room(v->a))
		return no_room(v, v->slot_bytes, "one expert", err);
	if (n < 1)
		return err_set(err, ERR_TOO_LARGE, "device %s: %lld bytes for experts are no room for one, which takes %zu: give it more "
			       "(tiers.device_experts, --device-experts), or none (tiers.device: none)", v->a->name, (long long)bytes,
			       v->slot_bytes);
	v->memory = v->api->alloc(v->d, (size_t)n * v->slot_bytes);
	if (!v->memory)
		return no_room(v, (size_t)n * v->slot_bytes, "experts", err);
	v->n_slots = (int32_t)n;
	v->most_alone = (int32_t)(n >= 4 * KEPT_FREE ? n - KEPT_FREE : n - (n + 3) / 4);
	v->slots = xcalloc((size_t)n, sizeof *v->slots);
	v->free = xmalloc((size_t)n, sizeof *v->free);
	v->moving = xmalloc((size_t)n, sizeof *v->moving);
	for (int32_t i = 0; i < v->n_slots; i++) {
		v->slots[i].memory = v->memory + (size_t)i * v->slot_bytes;
		v->slots[i].layer = v->slots[i].expert = NONE;
		v->free[v->n_free++] = v->n_slots - 1 - i;
	}
	return 0;
}

int64_t experts_device_room(const struct accelerator *a)
{
	return (int64_t)(a->info.free_bytes / 16 * 15);
}

int expert_device_open(struct experts *x, const struct experts_options *opt, struct err *err)
{
	size_t n = (size_t)x->n_layers * (size_t)x->n_experts;
	struct expert_device *v = xcalloc(1, sizeof *v);
	int64_t bytes = opt->device_bytes ? opt->device_bytes : experts_device_room(opt->device);

	x->device = v;
	v->a = opt->device;
	v->api = v->a->api;
	v->d = v->a->d;
	v->knows_cost = opt->cost != NULL;
	if (opt->cost)
		v->cost = *opt->cost;
	v->hidden = opt->hidden;
	v->dim = opt->expert_dim;
	v->most_rows = CHUNK_FEW * x->n_chosen > TILE_ROWS ? CHUNK_FEW * x->n_chosen : TILE_ROWS;
	v->handing = xmalloc((size_t)x->n_experts, sizeof *v->handing);
	v->slot_of = xmalloc(n, sizeof *v->slot_of);
	for (size_t i = 0; i < n; i++)
		v->slot_of[i] = NONE;
	if (take_buffers(v, err) || take_device_slots(x, v, bytes, err))
		return -1;
	v->slots_pinned = pin(v, x->memory, (size_t)x->n_slots * x->slot_bytes);
	return accelerator_check(v->a, err);
}

void expert_device_close(struct experts *x)
{
	struct expert_device *v = x->device;

	if (!v)
		return;
	for (int q = 0; q < N_BACKEND_QUEUES; q++) /* nothing reads or writes host memory any more */
		v->api->wait(v->d, v->api->mark(v->d, (enum backend_queue)q));
	if (v->slots_pinned)
		v->api->unpin(v->d, x->memory);
	if (v->host_pinned)
		v->api->unpin(v->d, v->host);
	v->api->free(v->d, v->memory);
	v->api->free(v->d, v->x);
	free(v->host);
	free(v->handing);
	free(v->slots);
	free(v->free);
	free(v->moving);
	free(v->slot_of);
	free(v);
	x->device = NULL;
}

/* ---- slots --------------------------------------------------------------------------------------------------------- */

static void device_slot_free(struct experts *x, struct device_slot *s)
{
	struct expert_device *v = x->device;

	if (!expert_slot(x, s->layer, s->expert))
		v->n_alone--;
	v->slot_of[index_of(x, s->layer, s->expert)] = NONE;
	s->layer = s->expert = NONE;
	v->n_there--;
	v->free[v->n_free++] = (int32_t)(s - v->slots);
}

/* Its bytes are in host memory too, and nobody needs it here now. */
static bool may_go(const struct experts *x, const struct device_slot *s)
{
	const struct slot *host = s->layer == NONE ? NULL : expert_slot(x, s->layer, s->expert);

	return host && host->state == SLOT_WARM && !s->wanted && !s->arriving && !s->leaving;
}

/* Of the slots that are looked at in turn, the one that is worth least: of those that may go, or of those that the device alone has. */
static struct device_slot *least(struct experts *x, bool alone, float *worth)
{
	struct expert_device *v = x->device;
	struct device_slot *found = NULL;

	for (int32_t i = 0; i < v->n_slots && i < LOOKED_AT; i++, v->hand = (v->hand + 1) % v->n_slots) {
		struct device_slot *s = &v->slots[v->hand];
		float w;

		if (s->layer == NONE)
			continue;
		if (alone ? expert_slot(x, s->layer, s->expert) || s->wanted || s->leaving : !may_go(x, s))
			continue;
		w = policy_worth(x->policy, s->layer, s->expert);
		if (found && w >= *worth)
			continue;
		found = s;
		*worth = w;
	}
	return found;
}

/* A slot for somebody who is worth so much. NULL: none is free of what is worth more, or is the only copy. */
static struct device_slot *find_device_slot(struct experts *x, float worth)
{
	struct expert_device *v = x->device;
	struct device_slot *s = NULL;
	float w;

	while (!v->n_free && v->n_once && !s) {
		s = &v->slots[v->once[--v->n_once]];
		s = may_go(x, s) ? s : NULL;
	}
	if (!v->n_free && !s && (!(s = least(x, false, &w)) || w >= worth))
		return NULL;
	if (s)
		device_slot_free(x, s);
	return &v->slots[v->free[--v->n_free]];
}

static void begin_moving(struct expert_device *v, struct device_slot *s, enum backend_queue q)
{
	s->mark = v->api->mark(v->d, q);
	v->moving[v->n_moving++] = (int32_t)(s - v->slots);
}

/* From its host slot, which is lent until then. */
static void upload(struct experts *x, struct device_slot *s, struct slot *host)
{
	struct expert_device *v = x->device;
	const struct expert_place *place = &x->places[index_of(x, host->layer, host->expert)];
	int64_t now = clock_now_ns();
	size_t at = 0;

	s->layer = host->layer;
	s->expert = host->expert;
	s->wanted = false;
	s->arriving = true;
	v->slot_of[index_of(x, s->layer, s->expert)] = (int32_t)(s - v->slots);
	v->n_there++;
	if (s->used)
		v->api->after(v->d, BACKEND_UP, s->used);
	for (int i = 0; i < place->n_parts; i++) {
		v->api->upload(v->d, BACKEND_UP, s->memory + at, host->memory + host->r.fixed_at[i], place->parts[i].bytes);
		at += aligned(place->parts[i].bytes);
		x->stats.device_up_bytes += (int64_t)place->parts[i].bytes;
	}
	host->lent++;
	expert_hold(x, host, host->wanted);
	begin_moving(v, s, BACKEND_UP);
	v->link_free_at = (v->link_free_at > now ? v->link_free_at : now) + (int64_t)(1e9 * v->cost.upload_s);
}

/* One that the device alone has, to a free host slot. */
static void download(struct experts *x, struct device_slot *s, struct slot *host)
{
	struct expert_device *v = x->device;
	const struct expert_place *place = &x->places[index_of(x, s->layer, s->expert)];
	size_t at = 0;

	expert_reading_plan(&host->r, place, x->direct);
	host->state = SLOT_LANDING;
	host->layer = s->layer;
	host->expert = s->expert;
	host->reading = 0; /* of no read */
	host->cancelled = false;
	x->slot_of[index_of(x, s->layer, s->expert)] = (int32_t)(host - x->slots);
	v->n_alone--;
	for (int i = 0; i < place->n_parts; i++) {
		v->api->download(v->d, BACKEND_DOWN, host->memory + host->r.fixed_at[i], s->memory + at, place->parts[i].bytes);
		at += aligned(place->parts[i].bytes);
		x->stats.device_down_bytes += (int64_t)place->parts[i].bytes;
	}
	s->leaving = true;
	begin_moving(v, s, BACKEND_DOWN);
	x->stats.lowered++;
}

/* One has arrived that is worth having here alone: the least of those that are takes its place in host memory. */
static void change_places(struct experts *x, struct device_slot *s)
{
	struct expert_device *v = x->device;
	struct slot *host = expert_slot(x, s->layer, s->expert);
	struct device_slot *other;
	float worth;

	if (v->n_alone < v->most_alone || !expert_may_empty(host) || !(other = least(x, true, &worth)) ||
	    better * worth >= policy_worth(x->policy, s->layer, s->expert))
		return;
	s->wanted = true; /* it stays, though there is one too many for a moment */
	expert_empty(x, host);
	s->wanted = false;
	download(x, other, host);
}

static void end_arriving(struct experts *x, struct device_slot *s)
{
	struct slot *host = expert_slot(x, s->layer, s->expert);

	s->arriving = false;
	host->lent--;
	expert_hold(x, host, host->wanted);
	change_places(x, s);
}

/* What a device that has failed said is not believed: who wants the expert reads it from the disk. */
static void end_leaving(struct experts *x, struct device_slot *s)
{
	struct slot *host = expert_slot(x, s->layer, s->expert);

	s->leaving = false;
	if (!accelerator_check(x->device->a, &host->err)) {
		expert_landed(x, host);
		return;
	}
	x->device->n_alone++;
	host->state = SLOT_READING;
	if (!host->wanted)
		expert_empty(x, host);
}

void expert_device_poll(struct experts *x)
{
	struct expert_device *v = x->device;

	for (int32_t i = 0; i < v->n_moving;) {
		struct device_slot *s = &v->slots[v->moving[i]];

		if (!v->api->done(v->d, s->mark)) {
			i++;
			continue;
		}
		v->moving[i] = v->moving[--v->n_moving]; /* before the end, which may begin another */
		if (s->arriving)
			end_arriving(x, s);
		else
			end_leaving(x, s);
	}
}

void expert_device_settle(struct experts *x, struct slot *host)
{
	struct device_slot *s = device_slot(x, host->layer, host->expert);

	x->device->api->wait(x->device->d, s->mark);
	expert_device_poll(x);
}

void expert_device_left(struct experts *x, int32_t layer, int32_t expert)
{
	struct expert_device *v = x->device;
	struct device_slot *s = device_slot(x, layer, expert);

	if (!s)
		return;
	v->n_alone++;
	if (v->n_alone > v->most_alone && !s->wanted) /* host memory gave it up for what is worth more */
		device_slot_free(x, s);
}

void expert_device_came(struct experts *x, int32_t layer, int32_t expert)
{
	if (device_slot(x, layer, expert))
		x->device->n_alone--;
}

bool expert_device_gives_host_slot(struct experts *x)
{
	struct expert_device *v = x->device;

	for (int32_t i = 0; v && v->n_alone < v->most_alone && v->n_there > v->n_alone && i < v->n_slots; i++) {
		const struct device_slot *s = &v->slots[i];
		struct slot *host = s->layer == NONE || s->arriving ? NULL : expert_slot(x, s->layer, s->expert);

		if (!host || !expert_may_empty(host))
			continue;
		expert_empty(x, host);
		return true;
	}
	return false;
}

void expert_device_consider(struct experts *x, struct slot *host)
{
	struct expert_device *v = x->device;
	struct device_slot *s, *other;
	float worth, least_worth;

	if (!v || host->state != SLOT_WARM || v->n_moving >= RAISED_AT_A_TIME || device_slot(x, host->layer, host->expert))
		return;
	worth = policy_worth(x->policy, host->layer, host->expert);
	if (v->n_alone >= v->most_alone && (!(other = least(x, true, &least_worth)) || better * least_worth >= worth))
		return;
	s = find_device_slot(x, worth);
	if (!s)
		return;
	upload(x, s, host);
	x->stats.raised++;
}

void expert_device_once(struct experts *x, int32_t layer, int32_t expert)
{
	struct expert_device *v = x->device;
	struct device_slot *s = device_slot(x, layer, expert);

	if (!s)
		return;
	if (v->n_once == ONCE)
		memmove(v->once, v->once + 1, (size_t)--v->n_once * sizeof *v->once);
	v->once[v->n_once++] = (int32_t)(s - v->slots);
}

bool expert_device_warm(struct experts *x)
{
	struct expert_device *v = x->device;
	struct expert_warming *w = &x->warming;

	if (!v)
		return false;
	expert_device_poll(x);
	for (; w->next_raised < w->next && v->n_free && v->n_moving < RAISED_AT_A_TIME; w->next_raised++) {
		int32_t layer = w->list[w->next_raised] / x->n_experts, expert = w->list[w->next_raised] % x->n_experts;
		struct slot *host = expert_slot(x, layer, expert);

		if (host && host->state == SLOT_READING)
			break;
		if (!host || host->state != SLOT_WARM || device_slot(x, layer, expert))
			continue;
		upload(x, find_device_slot(x, 0), host);
		x->stats.raised++;
	}
	return v->n_moving || (v->n_free && w->next_raised < w->next);
}

void expert_device_forget(struct experts *x)
{
	for (int32_t i = 0; x->device && i < x->device->n_slots; i++)
		x->device->slots[i].wanted = false;
}

int32_t expert_device_slots(const struct experts *x)
{
	return x->device ? x->device->n_slots : 0;
}

void expert_device_stats(const struct experts *x, struct experts_stats *out)
{
	const struct expert_device *v = x->device;

	if (!v)
		return;
	snprintf(out->device, sizeof out->device, "%s", v->a->info.name);
	out->device_slots = v->n_slots;
	out->device_resident = v->n_there;
	out->device_alone = v->n_alone;
}

/* ---- computing ----------------------------------------------------------------------------------------------------- */

bool experts_have_device(const struct experts *x)
{
	return x && x->device;
}

int32_t experts_split(struct experts *x, int32_t layer, int32_t *ids, int32_t n)
{
	int32_t n_others = 0;

	if (!x->device)
		return n;
	expert_device_poll(x);
	for (int32_t i = 0; i < n; i++) {
		struct device_slot *s = device_slot(x, layer, ids[i]);
		int32_t id = ids[i];

		if (s && !s->arriving) { /* what arrives is in host memory, too, and that is sooner */
			x->stats.device_hits += !s->wanted;
			s->wanted = true;
			continue;
		}
		/* Those before that the device has go one place up. */
		memmove(ids + n_others + 1, ids + n_others, (size_t)(i - n_others) * sizeof *ids);
		ids[n_others++] = id;
	}
	return n_others;
}

/* Wait for what was begun, and hand it out. */
static void hand_out(struct expert_device *v)
{
	if (v->last)
		v->api->wait(v->d, v->last);
	for (int32_t i = 0; i < v->n_handing; i++) {
		const struct handing *h = &v->handing[i];

		memcpy(h->to + h->first * v->hidden, v->host_out + h->first * v->hidden,
		       (size_t)h->n * (size_t)v->hidden * sizeof *h->to);
	}
	v->n_handing = 0;
}

bool experts_device_begun(const struct experts *x, const void *owner, int32_t layer)
{
	return x->device->owner == owner && x->device->layer == layer;
}

void experts_device_begin(struct experts *x, const void *owner, int32_t layer, const void *u, const int32_t *gather, int64_t n,
			  const int32_t *tokens, int64_t n_rows, enum compute_profile profile)
{
	struct expert_device *v = x->device;
	size_t row = (size_t)v->hidden * (profile == COMPUTE_BF16 ? sizeof(uint16_t) : sizeof(float));

	assert(n <= v->most_rows && n_rows <= v->most_rows);
	hand_out(v); /* nothing reads what is overwritten now */
	v->owner = owner;
	v->layer = layer;
	v->profile = profile;
	v->has_rows = tokens != NULL;
	for (int64_t i = 0; i < (gather ? n : 0); i++)
		memcpy((char *)v->host_x + (size_t)i * row, (const char *)u + (size_t)gather[i] * row, row);
	if (!gather)
		memcpy(v->host_x, u, (size_t)n * row);
	v->api->upload(v->d, BACKEND_COMPUTE, v->x, v->host_x, (size_t)n * row);
	if (tokens) {
		memcpy(v->host_rows, tokens, (size_t)n_rows * sizeof *tokens);
		v->api->upload(v->d, BACKEND_COMPUTE, v->rows, v->host_rows, (size_t)n_rows * sizeof *tokens);
	}
	v->last = v->api->mark(v->d, BACKEND_COMPUTE);
}

void experts_device_end(struct experts *x, const void *owner)
{
	if (!x->device || x->device->owner != owner)
		return;
	x->device->owner = NULL;
	x->device->n_handing = 0;
}

/* A matrix where an expert's slot has it. */
static struct backend_weight weight_at(const struct expert_place *place, const char *memory, const struct weight *w)
{
	struct backend_weight out = {.dtype = w->dtype, .rows = w->rows, .cols = w->cols, .first_row = w->first_row};

	for (int i = 0; i < place->n_parts; i++) {
		const void **where = place->parts[i].where;

		if (where == &w->data)
			out.data = memory;
		else if (where == (const void **)&w->scale || where == (const void **)&w->group_scale)
			out.scale = memory;
		memory += aligned(place->parts[i].bytes);
	}
	return out;
}

static bool alike(const struct expert *a, const struct expert *b)
{
	return a->gate.dtype == b->gate.dtype && a->up.dtype == b->up.dtype && a->down.dtype == b->down.dtype;
}

/* As many of them as one call takes. */
static int32_t launch(struct experts *x, int32_t layer, const struct expert *experts, const struct device_work *work, int32_t n)
{
	struct expert_device *v = x->device;
	struct backend_expert call[BACKEND_EXPERTS];
	int32_t n_call = 0;

	for (; n_call < n && n_call < BACKEND_EXPERTS; n_call++) {
		const struct device_work *w = &work[n_call];
		const struct device_slot *s = device_slot(x, layer, w->expert);
		const struct expert_place *place = &x->places[index_of(x, layer, w->expert)];
		const struct expert *e = &experts[w->expert];

		if (!alike(e, &experts[work->expert]))
			break;
		if (s->arriving)
			v->api->after(v->d, BACKEND_COMPUTE, s->mark);
		call[n_call] = (struct backend_expert){weight_at(place, s->memory, &e->gate), weight_at(place, s->memory, &e->up),
						       weight_at(place, s->memory, &e->down), (int32_t)w->first, (int32_t)w->n};
	}
	v->api->experts(v->d, v->out, v->gate, v->x, v->has_rows ? v->rows : NULL, call, n_call, v->profile);
	return n_call;
}

void experts_device_compute(struct experts *x, int32_t layer, const struct expert *experts, const struct device_work *work, int32_t n,
			    float *out)
{
	struct expert_device *v = x->device;
	int64_t first = INT64_MAX, end = 0;

	for (int32_t from = 0; from < n;)
		from += launch(x, layer, experts, work + from, n - from);
	for (int32_t i = 0; i < n; i++) {
		first = work[i].first < first ? work[i].first : first;
		end = work[i].first + work[i].n > end ? work[i].first + work[i].n : end;
	}
	v->api->download(v->d, BACKEND_COMPUTE, v->host_out + first * v->hidden, v->out + first * v->hidden,
			 (size_t)(end - first) * (size_t)v->hidden * sizeof *v->out);
	v->last = v->api->mark(v->d, BACKEND_COMPUTE);
	for (int32_t i = 0; i < n; i++) {
		struct device_slot *s = device_slot(x, layer, work[i].expert);

		s->used = v->last;
		s->wanted = false;
		if (out)
			v->handing[v->n_handing++] = (struct handing){out, work[i].first, work[i].n};
	}
}

const float *experts_device_collect(struct experts *x, struct err *err)
{
	struct expert_device *v = x->device;

	hand_out(v);
	expert_device_poll(x);
	return accelerator_check(v->a, err) ? NULL : v->host_out;
}

/* Seconds until the link has carried what was given to it. */
static double backlog(const struct expert_device *v)
{
	int64_t now = clock_now_ns();

	return v->link_free_at > now ? (double)(v->link_free_at - now) / 1e9 : 0;
}

bool experts_device_move(struct experts *x, int32_t layer, int32_t expert, int64_t n, int32_t n_left)
{
	struct expert_device *v = x->device;
	struct slot *host = expert_slot(x, layer, expert);
	struct device_slot *s = device_slot(x, layer, expert);

	if (s && !s->arriving)
		return true;
	if (!v->knows_cost || !cost_moves(&v->cost, n, n_left, s ? 0 : backlog(v)))
		return false;
	if (!s) {
		s = find_device_slot(x, 2);
		if (!s)
			return false;
		upload(x, s, host);
		x->stats.moved++;
	}
	s->wanted = true;
	return true;
}

void experts_device_move_next(struct experts *x, int32_t layer, int32_t expert, int64_t n)
{
	const struct slot *host = expert_slot(x, layer, expert);

	if (host && host->state == SLOT_WARM)
		(void)experts_device_move(x, layer, expert, n, 1);
}
