#include "engine/tune.h"

#include <stdlib.h>

#include "config/clock.h"
#include "config/log.h"
#include "config/pages.h"
#include "engine/internal.h"
#include "engine/noise_weight.h"

#define POINT_S .06                    /* a point is tried again until that is spent, FEW times at most */
#define LEAST_S .008                   /* or until that is: what disturbs short tries lasts longer than a few of them */

enum {
	EXPERTS_BYTES = 256 << 20,     /* beyond caches */
	EXPERTS_MOST = 4096,
	FEW = 6,
	TRIES = 64,
};

int tune_shape_of(struct tune_shape *shape, const struct model *m, struct err *err)
{
	const struct model_config *c = &m->config;

	for (int32_t i = 0; i < c->n_layers; i++) {
		if (c->layer_is_dense[i])
			continue;
		*shape = (struct tune_shape){m->layers[i].experts[0].gate.dtype, c->hidden, c->expert_dim};
		return 0;
	}
	return err_set(err, ERR_USAGE, "%s has no routed experts", m->dir);
}

/* ---- points ---- */

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* Of tries as many as there is time for, one at least: of two the shorter one, of more the median. Twice the tokens take twice as long at
 * most: a first try that took far longer than the point before it (0: none) was disturbed, or found something cold, and is not the
 * only one. */
static int time_point(double *s, double before, tune_once *once, void *ctx, int64_t n, struct err *err)
{
	double all[TRIES], spent = 0;
	int tries = 0;

	do {
		if (once(ctx, n, &all[tries], err))
			return -1;
		spent += all[tries++];
	} while (tries < TRIES && (spent < LEAST_S || (tries < FEW && spent < POINT_S) || (tries == 1 && spent > 4 * before)));
	qsort(all, (size_t)tries, sizeof *all, by_size);
	*s = all[(tries - 1) / 2];
	return 0;
}

int tune_points(double s[COST_POINTS], tune_once *once, void *ctx, struct err *err)
{
	for (int i = 0; i < COST_POINTS; i++) {
		if (i && s[i - 1] > TUNE_TOO_LONG_S)
			s[i] = 2 * s[i - 1];
		else if (time_point(&s[i], i ? s[i - 1] : 0, once, ctx, 1 << i, err))
			return -1;
	}
	for (int i = COST_POINTS - 2; i >= 0; i--)
		if (s[i] > s[i + 1])
			s[i] = s[i + 1];
	return 0;
}

/* ---- experts ---- */

/* Experts of noise, each in one piece of `bytes`. */
struct made_up {
	void *memory;
	size_t bytes;
	int n;
	struct expert *experts;        /* [n] */
};

static size_t lay_out(struct expert *x, const struct tune_shape *s)
{
	x->gate = x->up = (struct weight){.dtype = s->dtype, .rows = s->dim, .cols = s->hidden};
	x->down = (struct weight){.dtype = s->dtype, .rows = s->hidden, .cols = s->dim};
	return noise_weight_bytes(&x->gate) + noise_weight_bytes(&x->up) + noise_weight_bytes(&x->down);
}

static void fill(struct expert *x, char *memory, uint64_t seed)
{
	struct weight *all[] = {&x->gate, &x->up, &x->down};

	for (int i = 0; i < 3; i++) {
		noise_weight_fill(all[i], memory, seed + (uint64_t)i);
		memory += noise_weight_bytes(all[i]);
	}
}

static int make_up(struct made_up *m, const struct tune_shape *s, struct err *err)
{
	struct expert one = {0};
	size_t n;

	m->bytes = lay_out(&one, s);
	n = EXPERTS_BYTES / m->bytes;
	m->n = n < 2 ? 2 : n > EXPERTS_MOST ? EXPERTS_MOST : (int)n;
	if (pages_resize(&m->memory, 0, (size_t)m->n * m->bytes, "experts to measure with", err))
		return -1;
	m->experts = xcalloc((size_t)m->n, sizeof *m->experts);
	for (int i = 0; i < m->n; i++) {
		m->experts[i] = one;
		fill(&m->experts[i], (char *)m->memory + (size_t)i * m->bytes, 3 * (uint64_t)i);
	}
	return 0;
}

static void made_up_free(struct made_up *m)
{
	pages_free(m->memory, (size_t)m->n * m->bytes);
	free(m->experts);
}

/* n rows as a chunk keeps them (struct chunk, u), of noise from 1 to 2 of either sign. */
static struct weight make_rows(enum compute_profile compute, int64_t n, int32_t hidden, void **memory)
{
	struct weight rows = {.dtype = compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32, .rows = (int32_t)n, .cols = hidden};

	*memory = xmalloc(noise_weight_bytes(&rows), 1);
	noise_weight_fill(&rows, *memory, UINT64_MAX);
	return rows;
}

/* ---- the processor ---- */

struct on_host {
	struct pass p;
	const struct made_up *experts;
	const void *u;
	int32_t rows[COST_LAST];
	float weights[COST_LAST];
	float *h;
	int next;
};

/* What a layer does for an expert (moe.c): its tokens' rows gathered, the products, and what comes of them added. */
static int on_host_once(void *ctx, int64_t n, double *seconds, struct err *err)
{
	struct on_host *r = ctx;
	int64_t from = clock_now_ns();

	arena_reset(r->p.scratch);
	mlp_forward(&r->p, &r->experts->experts[r->next], r->h, r->u, r->rows, r->weights, n);
	*seconds = clock_seconds_since(from);
	r->next = (r->next + 1) % r->experts->n;
	return device_check(r->p.dev, err);
}

static int measure_host(struct cost *c, struct engine *e, const struct tune_shape *s, const struct made_up *experts, struct err *err)
{
	struct model model = {.config.hidden = s->hidden};
	struct session session = {.engine = e, .model = &model};
	struct on_host *r = xcalloc(1, sizeof *r);
	void *memory;
	int rc;

	r->p = (struct pass){.s = &session, .m = &model, .c = &model.config, .ops = e->ops, .dev = &e->device, .scratch = arena_new()};
	r->experts = experts;
	r->u = make_rows(e->compute, COST_LAST, s->hidden, &memory).data;
	r->h = xcalloc((size_t)COST_LAST * (size_t)s->hidden, sizeof *r->h);
	for (int i = 0; i < COST_LAST; i++) {
		r->rows[i] = i;
		r->weights[i] = .125f;
	}
	rc = tune_points(c->host_s, on_host_once, r, err);
	arena_free(r->p.scratch);
	free(r->h);
	free(memory);
	free(r);
	return rc;
}

/* ---- a device ---- */

struct on_device {
	struct accelerator *a;
	enum compute_profile compute;
	const struct tune_shape *shape;
	const struct made_up *from;
	int n, next;                   /* of the experts in `from`, the first n are on the device */
	char *experts;                 /* there: [n] of from->bytes */
	void *x;                       /* there, as gate and out are: [COST_LAST, ..] */
	float *gate, *out;
	size_t row_bytes;              /* of x */
	void *rows;                    /* here, as result is */
	size_t rows_bytes, out_bytes;
	void *result;
};

static struct backend_weight place(const struct on_device *r, const struct weight *w)
{
	const char *from = r->from->memory;
	const void *scale = w->scale ? (const void *)w->scale : (const void *)w->group_scale;

	return (struct backend_weight){
		.data = r->experts + ((const char *)w->data - from),
		.scale = scale ? r->experts + ((const char *)scale - from) : NULL,
		.dtype = (int32_t)w->dtype, .rows = w->rows, .cols = w->cols,
	};
}

static void upload_expert(struct on_device *r, int i)
{
	size_t at = (size_t)i * r->from->bytes;

	r->a->api->upload(r->a->d, BACKEND_UP, r->experts + at, (const char *)r->from->memory + at, r->from->bytes);
}

static int upload_once(void *ctx, int64_t n, double *seconds, struct err *err)
{
	struct on_device *r = ctx;
	int64_t from = clock_now_ns();

	(void)n;
	upload_expert(r, r->next);
	r->a->api->wait(r->a->d, r->a->api->mark(r->a->d, BACKEND_UP));
	*seconds = clock_seconds_since(from);
	r->next = (r->next + 1) % r->n;
	return accelerator_check(r->a, err);
}

static int on_device_once(void *ctx, int64_t n, double *seconds, struct err *err)
{
	struct on_device *r = ctx;
	const struct backend *api = r->a->api;
	struct backend_device *d = r->a->d;
	const struct expert *e = &r->from->experts[r->next];
	const struct backend_expert there = {place(r, &e->gate), place(r, &e->up), place(r, &e->down), 0, (int32_t)n};
	int64_t from = clock_now_ns();

	api->upload(d, BACKEND_UP, r->x, r->rows, (size_t)n * r->row_bytes);
	api->after(d, BACKEND_COMPUTE, api->mark(d, BACKEND_UP));
	api->experts(d, r->out, r->gate, r->x, NULL, &there, 1, (int)r->compute);
	api->after(d, BACKEND_DOWN, api->mark(d, BACKEND_COMPUTE));
	api->download(d, BACKEND_DOWN, r->result, r->out, (size_t)n * (size_t)r->shape->hidden * sizeof *r->out);
	api->wait(d, api->mark(d, BACKEND_DOWN));
	*seconds = clock_seconds_since(from);
	r->next = (r->next + 1) % r->n;
	return accelerator_check(r->a, err);
}

/* Room there for what the products need, and for as many of the experts as there can be. */
static int take_device_memory(struct on_device *r, struct err *err)
{
	const struct backend *api = r->a->api;
	struct backend_device *d = r->a->d;

	r->x = api->alloc(d, r->rows_bytes);
	r->gate = api->alloc(d, (size_t)COST_LAST * (size_t)r->shape->dim * sizeof *r->gate);
	r->out = api->alloc(d, r->out_bytes);
	for (r->n = r->from->n; r->x && r->gate && r->out && r->n; r->n /= 2)
		if ((r->experts = api->alloc(d, (size_t)r->n * r->from->bytes)))
			return 0;
	return err_set(err, ERR_TOO_LARGE, "%s has no room to measure an expert of %zu bytes with: close what else is using it", r->a->name,
		       r->from->bytes);
}

static bool pin(struct on_device *r, void *memory, size_t bytes)
{
	char why[BACKEND_TEXT] = "";

	if (!r->a->api->pin(r->a->d, memory, bytes, why))
		return true;
	log_warn("%zu bytes cannot be pinned for %s, and copies are measured without: %s", bytes, r->a->name, why);
	return false;
}

static int measure_there(struct on_device *r, struct cost *c, struct err *err)
{
	for (int i = 0; i < r->n; i++)
		upload_expert(r, i);
	r->a->api->wait(r->a->d, r->a->api->mark(r->a->d, BACKEND_UP));
	return accelerator_check(r->a, err) || time_point(&c->upload_s, 0, upload_once, r, 1, err) ||
	       tune_points(c->device_s, on_device_once, r, err) ? -1 : 0;
}

static int measure_device(struct cost *c, struct engine *e, const struct tune_shape *s, const struct made_up *experts,
			  struct accelerator *a, struct err *err)
{
	struct on_device r = {.a = a, .compute = e->compute, .shape = s, .from = experts};
	struct weight rows = make_rows(e->compute, COST_LAST, s->hidden, &r.rows);
	size_t bytes = (size_t)experts->n * experts->bytes;
	int rc;

	r.row_bytes = weight_row_bytes(&rows);
	r.rows_bytes = COST_LAST * r.row_bytes;
	r.out_bytes = (size_t)COST_LAST * (size_t)s->hidden * sizeof *r.out;
	r.result = xmalloc(r.out_bytes, 1);
	rc = take_device_memory(&r, err);
	if (!rc) {
		bool pinned = pin(&r, experts->memory, bytes), pinned_rows = pin(&r, r.rows, r.rows_bytes);
		bool pinned_result = pin(&r, r.result, r.out_bytes);

		rc = measure_there(&r, c, err);
		if (pinned)
			a->api->unpin(a->d, experts->memory);
		if (pinned_rows)
			a->api->unpin(a->d, r.rows);
		if (pinned_result)
			a->api->unpin(a->d, r.result);
	}
	a->api->free(a->d, r.experts);
	a->api->free(a->d, r.out);
	a->api->free(a->d, r.gate);
	a->api->free(a->d, r.x);
	free(r.result);
	free(r.rows);
	return rc;
}

int tune_measure(struct cost *c, struct engine *e, const struct tune_shape *s, struct accelerator *a, struct err *err)
{
	struct made_up experts = {0};
	int rc;

	*c = (struct cost){0};
	rc = make_up(&experts, s, err) || measure_host(c, e, s, &experts, err) || (a && measure_device(c, e, s, &experts, a, err)) ||
	     cost_check(c, err);
	made_up_free(&experts);
	return rc ? err_wrap(err, "measure what an expert takes") : 0;
}
