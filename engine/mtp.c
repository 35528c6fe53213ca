#include "engine/mtp.h"

#include <assert.h>
#include <stdlib.h>

#include "engine/internal.h"

enum { JOINED = 256 }; /* rows before eh_proj at a time */

struct drafter {
	const struct mtp *mtp;
	struct model model;           /* the layer as a model of one; all but the struct itself is the checkpoint's */
	struct session *s;            /* of that model */
	bool ready;                   /* of the last row appended there are: */
	float *y;                     /* [hidden] what the head read */
	struct selection chosen;      /* what it attended to; its set is `set`, or NULL */
	int32_t *set;                 /* [index_topk] */
};

int drafter_new(struct drafter **out, struct engine *e, const struct model *m, enum latent_format latents, struct err *err)
{
	struct session_options opt = {.latents = latents};
	struct drafter *d;

	if (!m->mtp)
		return err_set(err, ERR_USAGE, "%s: nothing drafts: %s", m->dir,
			       m->config.n_mtp_layers ? "its MTP layer was not loaded" : "the model has no MTP layer");
	d = xcalloc(1, sizeof *d);
	d->mtp = m->mtp;
	d->model = *m;
	d->model.config.n_layers = 1;
	d->model.config.layer_is_full[0] = m->config.has_indexer;
	d->model.config.layer_is_dense[0] = false;
	d->model.embedding = m->mtp->embedding;
	d->model.head = m->mtp->head;
	d->model.final_norm = m->mtp->norm;
	d->model.layers = &m->mtp->layer;
	d->model.experts = NULL;
	d->y = xcalloc((size_t)m->config.hidden, sizeof *d->y);
	d->set = xcalloc((size_t)m->config.index_topk + 1, sizeof *d->set);
	if (session_new(&d->s, e, &d->model, &opt, err)) {
		drafter_free(d);
		return -1;
	}
	*out = d;
	return 0;
}

void drafter_free(struct drafter *d)
{
	if (!d)
		return;
	session_free(d->s);
	free(d->set);
	free(d->y);
	free(d);
}

int64_t drafter_n_rows(const struct drafter *d)
{
	return session_n_tokens(d->s);
}

void drafter_truncate(struct drafter *d, int64_t n_rows)
{
	session_truncate(d->s, n_rows);
	d->ready = false;
}

/* h [n, hidden] = eh_proj [norm(embedding) | norm(output)] of the rows to come. */
static void join(struct drafter *d, float *h, const float *outputs, const int32_t *next, int64_t n)
{
	const struct model_config *c = &d->model.config;
	const struct ops *ops = d->s->engine->ops;
	struct device *dev = &d->s->engine->device;
	int64_t rows = n < JOINED ? n : JOINED, hidden = c->hidden;
	float *e, *both;

	arena_reset(d->s->scratch);
	e = arena_alloc(d->s->scratch, (size_t)(rows * hidden), sizeof *e);
	both = arena_alloc(d->s->scratch, (size_t)(rows * 2 * hidden), sizeof *both);
	for (int64_t i = 0; i < n; i += rows) {
		rows = n - i < rows ? n - i : rows;
		ops->embed(dev, e, &d->mtp->embedding, next + i, rows);
		if (!d->s->n_tokens && !i)
			memset(e, 0, (size_t)hidden * sizeof *e);
		ops->rmsnorm(dev, both, 2 * hidden, e, hidden, d->mtp->enorm, rows, c->hidden, c->norm_eps);
		ops->rmsnorm(dev, both + hidden, 2 * hidden, outputs + i * hidden, hidden, d->mtp->hnorm, rows, c->hidden,
			     c->norm_eps);
		ops->matmul(dev, h + i * hidden, hidden, both, 2 * hidden, &d->mtp->eh_proj, rows, d->s->engine->compute);
	}
}

static void likeliest(struct drafter *d, const float *y, int32_t *id, float *logits)
{
	const struct model_config *c = &d->model.config;

	d->s->engine->ops->matmul(&d->s->engine->device, logits, c->vocab, y, c->hidden, &d->model.head, 1,
				  d->s->engine->compute);
	*id = 0;
	for (int32_t i = 1; i < c->vocab; i++)
		if (logits[i] > logits[*id])
			*id = i;
}

/* The layer over n rows, which stay. y [hidden]: what the head is to read of the last. chosen: what a draft's row attends to;
 * NULL: what it chooses. */
static int run(struct drafter *d, float *y, const float *outputs, const int32_t *next, int64_t n,
	       const struct selection *chosen, const struct session_tap *tap, struct err *err)
{
	const struct model_config *c = &d->model.config;
	const struct chunk_part part = {d->s, NULL, d->s->n_tokens, 0, n};
	struct chunk k;
	int more;

	if (session_admit(d->s, next, (size_t)n, err) || chunk_begin(&k, &part, 1, 0, tap, err))
		return -1;
	k.chosen = chosen;
	join(d, k.h, outputs, next, n);
	do
		more = chunk_step(&k, err);
	while (more > 0);
	if (!more)
		more = chunk_logits(&k, &part, NULL, err);
	if (!more) {
		d->s->engine->ops->rmsnorm(&d->s->engine->device, y, c->hidden, k.h + (n - 1) * c->hidden, c->hidden,
					   d->mtp->norm, 1, c->hidden, c->norm_eps);
		d->s->n_tokens += n;
	}
	if (!more && !chosen) {
		d->chosen = k.selections[n - 1];
		if (d->chosen.set)
			d->chosen.set = memcpy(d->set, d->chosen.set, (size_t)d->chosen.n * sizeof *d->set);
	}
	chunk_end(&k);
	return more;
}

int drafter_append(struct drafter *d, const float *outputs, const int32_t *next, size_t n, const struct session_tap *tap,
		   struct err *err)
{
	if (run(d, d->y, outputs, next, (int64_t)n, NULL, tap, err))
		return err_wrap(err, "MTP layer");
	d->ready = true;
	return 0;
}

int drafter_draft(struct drafter *d, int32_t *ids, int32_t n, struct err *err)
{
	const struct model_config *c = &d->model.config;
	int64_t n_rows = d->s->n_tokens;
	bool shares = c->has_indexer && c->mtp_shares_choice;
	float *y = xcalloc((size_t)c->hidden, sizeof *y), *logits = xcalloc((size_t)c->vocab, sizeof *logits);
	struct selection chosen = d->chosen;
	int failed = 0;

	assert(d->ready && n >= 1);
	memcpy(y, d->y, (size_t)c->hidden * sizeof *y);
	likeliest(d, y, &ids[0], logits);
	for (int32_t i = 1; i < n && !failed; i++) {
		failed = run(d, y, y, &ids[i - 1], 1, shares ? &chosen : NULL, NULL, err);
		if (!failed)
			likeliest(d, y, &ids[i], logits);
	}
	session_truncate(d->s, n_rows);
	free(y);
	free(logits);
	return failed ? err_wrap(err, "MTP layer: draft") : 0;
}
