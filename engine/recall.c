#include "engine/recall.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cache/view.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/experts.h"

/* A lost segment file is many damaged spans and one piece of news. */
enum { WARNINGS_MOST = 3 };

struct recall {
	struct session *s;
	struct recall_options opt;
	struct cache *cache;
	const struct cache_snapshot *snapshot;
	struct cache_view *view;
	int64_t n_tokens;              /* of the snapshot */
	int64_t n_lost;                /* spans */
	int64_t recomputed_tokens;
	bool loading;
};

static int check_identity(const struct recall_options *opt, const struct cache_snapshot *snapshot, struct err *err)
{
	uint8_t identity[MODEL_ID_BYTES];
	char theirs[17], ours[17];

	engine_identity(opt->engine, opt->model, opt->latents, identity);
	if (!memcmp(identity, snapshot->identity, sizeof identity))
		return 0;
	return err_set(err, ERR_MISMATCH, "corpus '%s' was made by model %s, this is %s: `quire ingest %s --as %s` makes it "
		       "again", snapshot->corpus, engine_identity_name(theirs, snapshot->identity), engine_identity_name(ours, identity),
		       snapshot->source, snapshot->corpus);
}

/*
 * What the session asks for
 */

/* Whether an error may be that of the bytes of one place, so that it is worth finding out which. */
static bool is_local(const struct err *err)
{
	return err->code == ERR_IO || err->code == ERR_DAMAGED;
}

/* Until the question is computed nobody asks for experts: those that the corpus's tokens chose come meanwhile. */
static void warm_experts(const struct recall *r)
{
	if (r->loading && r->opt.model->experts)
		experts_warm(r->opt.model->experts);
}

/* A taker of keys between which experts come. */
struct taking {
	const struct recall *r;
	latent_taker *take;
	void *taker;
};

static int take_keys(void *ctx, int32_t index_layer, int64_t at, int64_t n, const uint8_t *keys, int64_t *bad, struct err *err)
{
	const struct taking *t = ctx;

	warm_experts(t->r);
	return t->take(t->taker, index_layer, at, n, keys, bad, err);
}

static int give_index_keys(void *ctx, int32_t first_layer, int32_t n_layers, int64_t first, int64_t n, latent_taker *of_session,
			   void *session, int64_t *bad, struct err *err)
{
	const struct recall *r = ctx;
	struct taking taking = {r, of_session, session};
	latent_taker *take = take_keys;
	void *taker = &taking;

	if (!cache_view_take_index_keys(r->view, first_layer, n_layers, first, n, take, taker, bad, err))
		return 0;
	if (*bad >= 0 || !is_local(err))
		return -1;
	/* A drive that fails a read does not say for whom: span by span, and perhaps it works this time. */
	for (int64_t i = 0, m; i < n; i += m) {
		m = CACHE_SPAN_TOKENS - (first + i) % CACHE_SPAN_TOKENS;
		m = n - i < m ? n - i : m;
		if (!cache_view_take_index_keys(r->view, first_layer, n_layers, first + i, m, take, taker, bad, err))
			continue;
		if (*bad < 0 && is_local(err))
			*bad = first + i;
		return -1;
	}
	return 0;
}

static int give_records(void *ctx, int32_t group, const int32_t *positions, int64_t n, uint8_t *out, int64_t *bad,
			struct err *err)
{
	const struct recall *r = ctx;
	size_t bytes = layout_record_bytes(session_layout(r->s), group);

	warm_experts(r);
	if (!cache_view_gather(r->view, group, positions, n, out, bad, err))
		return 0;
	if (*bad >= 0 || !is_local(err))
		return -1;
	for (int64_t i = 0; i < n; i++) {
		if (!cache_view_gather(r->view, group, positions + i, 1, out + (size_t)i * bytes, bad, err))
			continue;
		if (*bad < 0 && is_local(err))
			*bad = positions[i];
		return -1;
	}
	return 0;
}

/* Tokens are to be computed again. */
static void give_up(struct recall *r, const struct span_key *key, int64_t first, int64_t n, const struct err *why)
{
	struct err ignored;

	if (r->n_lost++ < WARNINGS_MOST)
		log_warn("tokens %" PRId64 " to %" PRId64 " of corpus '%s' are computed again: %s", first, first + n - 1,
			 r->snapshot->corpus, why->text);
	else if (r->n_lost == WARNINGS_MOST + 1)
		log_warn("corpus '%s': more of its tokens are computed again, since the store cannot give them; `quire ingest "
			 "%s --as %s` mends it", r->snapshot->corpus, r->snapshot->source, r->snapshot->corpus);
	/* So that the next ingest stores them anew; a read that failed may succeed the next time. */
	if (why->code == ERR_DAMAGED && cache_quarantine(r->cache, key, &ignored))
		log_warn("cannot note the damage: %s", ignored.text);
}

static void note_loss(void *ctx, int64_t first, int64_t n, const struct err *why)
{
	struct recall *r = ctx;

	give_up(r, cache_view_key(r->view, first), first, n, why);
}

/* What was mended leaves no trace in the caller's err, as if it had never been. */
static int fail(struct err *err, const struct err *why)
{
	if (err)
		*err = *why;
	return -1;
}

/* What is lost, lowest first; while it is computed more may turn out to be. */
static int mend(struct recall *r, struct err *err)
{
	int64_t first, n;

	while (session_lost(r->s, &first, &n)) {
		int64_t n_lost = r->n_lost;
		struct err why;

		if (!session_recompute(r->s, r->snapshot->ids + first, first, n, &why))
			r->recomputed_tokens += n;
		else if (r->n_lost == n_lost)
			return fail(err, &why);
	}
	return 0;
}

int recall_append(struct recall *r, const int32_t *ids, size_t n, float *last_logits, const struct session_tap *tap,
		  struct err *err)
{
	for (;;) {
		int64_t n_lost = r->n_lost;
		struct err why;

		if (!session_append(r->s, ids, n, last_logits, tap, &why))
			return 0;
		if (r->n_lost == n_lost)
			return fail(err, &why);
		/* Each time a span is lost that was not, and it becomes the session's own: this ends. */
		if (mend(r, err))
			return -1;
	}
}

/*
 * Opening
 */

static int load(struct recall *r, struct err *err)
{
	const struct latent_source source = {r, give_index_keys, give_records, note_loss};
	const struct cache_snapshot *snapshot = r->snapshot;
	int64_t n_whole; /* what is missing behind them is lost when it is asked for, like what is damaged */

	if (cache_view_open(&r->view, r->cache, snapshot->identity, snapshot->ids, snapshot->n_tokens, &n_whole, err) ||
	    session_attach(r->s, &source, r->n_tokens, r->opt.latent_bytes, err))
		return -1;
	return mend(r, err);
}

int recall_open(struct recall **out, struct session *s, const struct recall_options *opt, struct cache *c,
		const struct cache_snapshot *snapshot, int64_t n_tokens, struct err *err)
{
	struct recall *r;
	int rc;

	assert(!session_n_tokens(s) && n_tokens <= snapshot->n_tokens);
	if (check_identity(opt, snapshot, err))
		return -1;
	r = xcalloc(1, sizeof *r);
	*r = (struct recall){.s = s, .opt = *opt, .cache = c, .snapshot = snapshot, .n_tokens = n_tokens,
			     .loading = true};
	rc = load(r, err);
	r->loading = false;
	if (rc) {
		/* Nothing of the session may go on asking for what is about to go. */
		session_truncate(s, 0);
		recall_close(r);
		return err_wrap(err, "recall corpus '%s'", snapshot->corpus);
	}
	*out = r;
	return 0;
}

void recall_close(struct recall *r)
{
	if (!r)
		return;
	cache_view_close(r->view);
	free(r);
}

void recall_count(const struct recall *r, struct recall_stats *stats)
{
	struct cache_view_stats view;

	cache_view_stats(r->view, &view);
	*stats = (struct recall_stats){
		.loaded_tokens = r->n_tokens - r->recomputed_tokens,
		.recomputed_tokens = r->recomputed_tokens,
		.read_bytes = view.read_bytes,
	};
	session_count_gathers(r->s, &stats->gathers);
}
