#include "ingest/ingest.h"

#include <assert.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/run.h"
#include "cache/view.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/render.h"
#include "engine/sweep.h"
#include "ingest/count.h"
#include "ingest/document.h"
#include "ingest/order.h"
#include "ingest/repo.h"
#include "ingest/text.h"
#include "ingest/walk.h"

/* Enough history to tell what changes often from what does not. */
enum { HISTORY_COMMITS = 50000, HISTORY_MS = 20000 };

/* A document while its place is not known yet. */
struct draft {
	struct cache_document document; /* all but first_token */
	int64_t n_changes;
	struct ids ids;                 /* dropped once the corpus is too large: from then on tokens are only counted */
};

struct ingest {
	struct arena *arena;
	struct walk *walk;
	size_t scratch_bytes;
	bool always_checkpoint;
	size_t state_piece_bytes;
	struct repo *repo;              /* while documents are read; NULL: none, or none that is read */
	char *no_history;               /* why */
	const char *history_note;
	char commit[41];
	char *corpus, *source;
	struct ids ids;
	struct cache_document *documents;
	int32_t n_documents;
	int32_t n_kept_documents;       /* at the beginning, as they were */
	char *order_from;               /* CORPUS@ID; NULL: its own order */
	size_t n_followed_documents;    /* as they were, in the order that is followed */
	struct ingest_progress progress;

	/* The engine thread's. */
	struct engine *engine;
	const struct model *model;
	enum latent_format format;
	struct cache *cache;
	uint8_t identity[MODEL_ID_BYTES];
	struct span_key *keys;          /* [n_spans] */
	bool *missing;                  /* [n_spans] not in the store */
	int32_t n_spans, first_missing;
	int32_t chunk_spans;            /* swept at a time */
	bool begun;

	/* The chunk under way, if sweep is not NULL: from first_missing on. */
	struct session *session;
	struct sweep *sweep;
	struct cache_run *run;
	struct cache_view *view;        /* of what is before it; NULL: nothing is */
	struct sweep_source from_store;
	struct sweep_sink to_store;
	int32_t chunk_last;             /* its last span */
	bool lost_state;                /* the store has no residual rows for where the run goes on */
};

/*
 * Preparing
 */

/* In which token each line of the text begins; the rendered document is the header, the text, and perhaps a line
 * feed. */
static int find_lines(struct ingest *in, struct draft *d, const struct tokenizer *t, const char *text, size_t bytes,
		      size_t header_bytes, size_t rendered_bytes, struct err *err)
{
	struct cache_document *doc = &d->document;
	uint32_t *lines;
	size_t start = header_bytes, end = 0, line = 0, n = 0;

	for (size_t i = 0; i < bytes; i++)
		n += text[i] == '\n' || i + 1 == bytes;
	if (n > INT32_MAX)
		return err_set(err, ERR_TOO_LARGE, "%s has %zu lines", doc->path, n);
	doc->line_tokens = lines = arena_alloc(in->arena, n, sizeof *lines);
	doc->n_lines = (int32_t)n;
	for (size_t i = 0; i < d->ids.n; i++) {
		size_t piece_bytes = 0;

		if (tokenizer_piece(t, d->ids.id[i], &piece_bytes))
			end += piece_bytes;
		while (line < n && start < end) {
			const char *feed = memchr(text + (start - header_bytes), '\n', bytes - (start - header_bytes));

			lines[line++] = (uint32_t)i;
			start = feed ? header_bytes + (size_t)(feed - text) + 1 : SIZE_MAX;
		}
	}
	if (end != rendered_bytes || line != n)
		return err_set(err, ERR_FORMAT, "%s: its tokens stand for %zu bytes, not %zu: this tokenizer does not give "
			       "every text back", doc->path, end, rendered_bytes);
	return 0;
}

/* Render and tokenize one document by itself: nothing before it changes its ids. */
static int make_document(struct ingest *in, struct draft *d, const struct tokenizer *t, const char *path,
			 const char *text, size_t bytes, bool only_count, struct err *err)
{
	struct bytes rendered = {0};
	size_t header_bytes;
	int rc;

	d->document.path = path;
	crypto_generichash(d->document.content_hash, sizeof d->document.content_hash, (const unsigned char *)text, bytes,
			   NULL, 0);
	header_bytes = document_render(&rendered, path, text, bytes);
	/* Where it is too large already tokens are only counted. */
	rc = tokenizer_encode(t, &d->ids, rendered.data, rendered.n, 0, err) ||
	     (!only_count && find_lines(in, d, t, text, bytes, header_bytes, rendered.n, err)) ? -1 : 0;
	d->document.n_tokens = (int64_t)d->ids.n;
	bytes_free(&rendered);
	return rc;
}

/* Walk, read and tokenize: a draft for each document, in the order of the paths. */
static int read_documents(struct ingest *in, struct draft **out, size_t *n, const struct ingest_options *opt,
			  const struct tokenizer *t, const atomic_bool *cancel,
			  void (*report)(void *ctx, const struct ingest_progress *p), void *ctx, struct err *err)
{
	size_t n_files;
	const struct walk_file *files = walk_files(in->walk, &n_files);
	struct draft *drafts = *out = xcalloc(n_files, sizeof *drafts);
	struct ingest_progress *p = &in->progress;
	const struct text_options how = {.max_bytes = opt->max_file_bytes, .cancel = cancel};

	p->phase = INGEST_TOKENIZE;
	for (size_t i = 0; i < n_files; i++) {
		struct draft *d = &drafts[*n];
		char *text, reason[SKIP_REASON_BYTES];
		size_t bytes;
		int rc;

		if (cancel && atomic_load(cancel))
			return err_set(err, ERR_CANCELLED, "cancelled while reading %s", in->source);
		if (!text_read(in->walk, &files[i], &how, &text, &bytes, reason)) {
			walk_skip(in->walk, files[i].path, reason);
			p->n_skipped++;
			continue;
		}
		++*n;
		d->n_changes = files[i].n_changes;
		rc = make_document(in, d, t, files[i].path, text, bytes, p->n_tokens > opt->max_tokens, err);
		free(text);
		if (rc)
			return -1;
		p->n_files++;
		p->read_bytes += (int64_t)bytes;
		p->n_tokens += d->document.n_tokens;
		if (p->n_tokens > opt->max_tokens)
			ids_free(&d->ids);
		if (report)
			report(ctx, p);
	}
	return 0;
}

/* Too large: say what takes the room, and what to leave out. */
static int too_large(const struct ingest *in, const struct draft *drafts, size_t n, int64_t limit, struct err *err)
{
	struct count_document *documents = xmalloc(n, sizeof *documents);

	for (size_t i = 0; i < n; i++)
		documents[i] = (struct count_document){drafts[i].document.path, drafts[i].document.n_tokens};
	count_too_large(in->source, documents, n, in->progress.n_tokens, limit, err);
	free(documents);
	return -1;
}

/* Put the drafts in order: after the snapshot to follow, or anew. Returns how many at the beginning stay. */
static size_t sort_drafts(struct draft *drafts, size_t n, const struct cache_snapshot *follow, size_t *n_followed)
{
	struct order_document *documents = xmalloc(n, sizeof *documents);
	size_t *order = xmalloc(n, sizeof *order);
	struct draft *sorted = xmalloc(n, sizeof *sorted);
	size_t n_kept;

	for (size_t i = 0; i < n; i++)
		documents[i] = (struct order_document){drafts[i].document.path, drafts[i].document.content_hash,
							drafts[i].n_changes};
	n_kept = order_documents(order, documents, n, follow ? follow->documents : NULL,
				 follow ? (size_t)follow->n_documents : 0, n_followed);
	for (size_t i = 0; i < n; i++)
		sorted[i] = drafts[order[i]];
	memcpy(drafts, sorted, n * sizeof *drafts);
	free(documents);
	free(order);
	free(sorted);
	return n_kept;
}

static void join_documents(struct ingest *in, struct draft *drafts, size_t n)
{
	in->documents = arena_alloc(in->arena, n, sizeof *in->documents);
	in->n_documents = (int32_t)n;
	ids_reserve(&in->ids, (size_t)in->progress.n_tokens);
	for (size_t i = 0; i < n; i++) {
		drafts[i].document.first_token = (int64_t)in->ids.n;
		in->documents[i] = drafts[i].document;
		ids_append(&in->ids, drafts[i].ids.id, drafts[i].ids.n);
		ids_free(&drafts[i].ids);
	}
}

/* The repository that the source is or lies in, and its history. Only a ref needs one. */
static int open_history(struct ingest *in, const struct ingest_options *opt, const atomic_bool *cancel, struct err *err)
{
	const struct repo_limits limits = {HISTORY_COMMITS, HISTORY_MS};
	struct err why;

	if (repo_open(&in->repo, opt->source, opt->ref, opt->ref ? err : &why)) {
		in->repo = NULL;
		if (opt->ref)
			return -1;
		if (why.code != ERR_NOT_FOUND) {
			log_info("the history of %s does not help to order it: %s", opt->source, why.text);
			in->no_history = xstrdup(why.text);
		}
		return 0;
	}
	if (repo_count_changes(in->repo, &limits, cancel, &in->history_note, err))
		return -1;
	memcpy(in->commit, repo_commit(in->repo), sizeof in->commit);
	if (in->history_note)
		log_info("%s: %s", opt->source, in->history_note);
	return 0;
}

static int prepare(struct ingest *in, const struct ingest_options *opt, const struct tokenizer *t,
		   const atomic_bool *cancel, void (*report)(void *ctx, const struct ingest_progress *p), void *ctx,
		   struct err *err)
{
	struct walk_options walk = {.root = opt->source, .max_file_bytes = opt->max_file_bytes, .exclude = opt->exclude,
				    .include = opt->include, .from_commit = opt->ref};
	const struct cache_snapshot *previous = opt->previous;
	struct draft *drafts = NULL;
	size_t n = 0, n_skipped;
	int rc;

	if (previous && strcmp(previous->source, in->source))
		return err_set(err, ERR_MISMATCH, "corpus '%s' was made from %s, not from %s: choose another name",
			       opt->corpus, previous->source, in->source);
	if (report)
		report(ctx, &in->progress);
	if (open_history(in, opt, cancel, err))
		return -1;
	walk.repo = in->repo;
	if (walk_new(&in->walk, &walk, cancel, err))
		return -1;
	walk_skipped(in->walk, &n_skipped);
	in->progress.n_skipped = (int64_t)n_skipped;
	render_opening(t, &in->ids);
	in->progress.n_tokens = (int64_t)in->ids.n;
	rc = read_documents(in, &drafts, &n, opt, t, cancel, report, ctx, err);
	repo_close(in->repo); /* packs of it may be mapped */
	in->repo = NULL;
	if (!rc && !n)
		rc = err_set(err, ERR_USAGE, "nothing to read in %s: %" PRId64 " files and directories were skipped",
			     in->source, in->progress.n_skipped);
	if (!rc && in->progress.n_tokens > opt->max_tokens)
		rc = too_large(in, drafts, n, opt->max_tokens, err);
	if (!rc) {
		in->n_kept_documents = (int32_t)sort_drafts(drafts, n, opt->order_from ? opt->order_from
								       : opt->full ? NULL : previous,
							    &in->n_followed_documents);
		join_documents(in, drafts, n);
	}
	for (size_t i = 0; i < n; i++)
		ids_free(&drafts[i].ids);
	free(drafts);
	return rc;
}

int ingest_prepare(struct ingest **out, const struct ingest_options *opt, const struct tokenizer *t,
		   const atomic_bool *cancel, void (*report)(void *ctx, const struct ingest_progress *p), void *ctx,
		   struct err *err)
{
	struct ingest *in = xcalloc(1, sizeof *in);

	in->arena = arena_new();
	in->scratch_bytes = opt->scratch_bytes;
	in->always_checkpoint = opt->always_checkpoint;
	in->state_piece_bytes = opt->state_piece_bytes;
	in->corpus = xstrdup(opt->corpus);
	in->source = opt->ref ? xasprintf("%s@%s", opt->source, opt->ref) : xstrdup(opt->source);
	if (opt->order_from)
		in->order_from = xasprintf("%s@%" PRId64, opt->order_from->corpus, opt->order_from->id);
	if (prepare(in, opt, t, cancel, report, ctx, err)) {
		ingest_free(in);
		return -1;
	}
	*out = in;
	return 0;
}

const struct cache_skipped *ingest_skipped(const struct ingest *in, int32_t *n)
{
	size_t n_skipped;
	const struct cache_skipped *skipped = walk_skipped(in->walk, &n_skipped);

	*n = (int32_t)n_skipped;
	return skipped;
}

/* What was not committed is gone, or stays as of its last checkpoint. */
static void end_chunk(struct ingest *in)
{
	sweep_end(in->sweep);
	in->sweep = NULL;
	cache_run_free(in->run);
	in->run = NULL;
	cache_view_close(in->view);
	in->view = NULL;
	session_free(in->session);
	in->session = NULL;
}

void ingest_free(struct ingest *in)
{
	if (!in)
		return;
	end_chunk(in);
	walk_free(in->walk);
	repo_close(in->repo);
	free(in->no_history);
	ids_free(&in->ids);
	arena_free(in->arena);
	free(in->corpus);
	free(in->source);
	free(in->order_from);
	free(in->keys);
	free(in->missing);
	free(in);
}

/*
 * Computing
 *
 * A step does one thing: a step of the sweep of a chunk, which begins with the first span that is missing and has as
 * many missing ones behind it as the scratch memory has room for; or, when it is done, its commit; or, when no span is
 * missing, that of the snapshot. What stands before the chunk comes from the store group by group, and what is computed
 * leaves for it likewise.
 */

static int32_t span_end(const struct ingest *in, int32_t span)
{
	int64_t end = ((int64_t)span + 1) * CACHE_SPAN_TOKENS;

	return (int32_t)(end < (int64_t)in->ids.n ? end : (int64_t)in->ids.n);
}

static void find_missing(struct ingest *in)
{
	for (int32_t i = 0; i < in->n_spans; i++)
		in->missing[i] = !cache_has_span(in->cache, &in->keys[i]);
	in->first_missing = 0;
}

/* How many spans are swept at a time: all, or what fits. */
static int plan_chunks(struct ingest *in, struct err *err)
{
	int64_t n = (int64_t)in->ids.n, least = n < CACHE_SPAN_TOKENS ? n : CACHE_SPAN_TOKENS;
	struct sweep_plan plan, span;

	if (sweep_plan(&plan, &in->model->config, engine_compute(in->engine), in->format, n, in->scratch_bytes, err) ||
	    sweep_plan(&span, &in->model->config, engine_compute(in->engine), in->format, least, 0, err))
		return err_wrap(err, "ingest.scratch");
	if (plan.chunk_tokens < least)
		return err_set(err, ERR_TOO_LARGE, "ingest.scratch: a sweep of %" PRId64 " tokens, which are stored together, needs "
			       "%zu bytes of scratch memory, the budget is %zu: allow more", least, span.scratch_bytes,
			       in->scratch_bytes);
	in->chunk_spans = plan.n_chunks == 1 ? in->n_spans : (int32_t)(plan.chunk_tokens / CACHE_SPAN_TOKENS);
	return 0;
}

int ingest_bind(struct ingest *in, struct engine *e, const struct model *m, enum latent_format format,
		struct cache *c, struct err *err)
{
	int64_t n = (int64_t)in->ids.n;

	assert(!in->engine && format != LATENTS_F32);
	if (n > m->config.max_positions)
		return err_set(err, ERR_TOO_LARGE, "%s has %" PRId64 " tokens, the model's context %" PRId64, in->source, n,
			       m->config.max_positions);
	in->engine = e;
	in->model = m;
	in->format = format;
	in->cache = c;
	engine_identity(e, m, format, in->identity);
	in->n_spans = (int32_t)((n + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS);
	in->keys = xmalloc((size_t)in->n_spans, sizeof *in->keys);
	in->missing = xcalloc((size_t)in->n_spans, sizeof *in->missing);
	for (int32_t i = 0; i < in->n_spans; i++)
		span_key_make(&in->keys[i], in->identity, i ? &in->keys[i - 1] : NULL,
			      in->ids.id + (int64_t)i * CACHE_SPAN_TOKENS, span_end(in, i) - i * CACHE_SPAN_TOKENS);
	find_missing(in);
	return plan_chunks(in, err);
}

void ingest_count(const struct ingest *in, struct ingest_counts *counts)
{
	struct layout *l = layout_new(&in->model->config, in->format);
	int32_t run = 0;

	*counts = (struct ingest_counts){
		.n_documents = in->n_documents, .n_kept_documents = in->n_kept_documents,
		.n_skipped = in->progress.n_skipped, .read_bytes = in->progress.read_bytes,
		.n_tokens = (int64_t)in->ids.n,
	};
	counts->order_from = in->order_from;
	counts->n_followed_documents = (int64_t)in->n_followed_documents;
	counts->history = in->no_history ? in->no_history : in->history_note;
	memcpy(counts->commit, in->commit, sizeof counts->commit);
	/* In the chunks in which they will be written. */
	for (int32_t i = 0; i < in->n_spans; i++) {
		run += in->missing[i];
		if (run && (run == in->chunk_spans || i + 1 == in->n_spans || !in->missing[i + 1])) {
			int32_t n = span_end(in, i) - (i + 1 - run) * CACHE_SPAN_TOKENS;

			counts->new_tokens += n;
			counts->new_bytes += count_run_bytes(l, n);
			run = 0;
		}
	}
	counts->kept_tokens = counts->n_tokens - counts->new_tokens;
	layout_free(l);
}

struct ingest_skip_kind *ingest_skip_kinds(const struct ingest *in, size_t *n)
{
	size_t n_skipped;
	const struct cache_skipped *skipped = walk_skipped(in->walk, &n_skipped);

	return count_skip_kinds(skipped, n_skipped, n);
}

int ingest_begin(struct ingest *in, struct err *err)
{
	int64_t known;

	assert(in->engine && !in->begun);
	if (cache_begin_ingest(in->cache, in->corpus, in->identity, in->ids.id, (int64_t)in->ids.n, &known, err))
		return err_wrap(err, "ingest corpus '%s'", in->corpus);
	in->begun = true;
	in->progress.phase = INGEST_PREFILL;
	in->progress.reused_tokens = in->progress.done_tokens = known;
	return 0;
}

static int64_t chunk_first(const struct ingest *in)
{
	return (int64_t)in->first_missing * CACHE_SPAN_TOKENS;
}

/* Span by span, to learn which one it is that cannot be read. */
static int read_spans(struct ingest *in, int32_t group, int32_t index_layer, int64_t first, int64_t n, uint8_t *out,
		      int64_t *bad, struct err *err)
{
	const struct layout *l = session_layout(in->session);
	size_t token_bytes = group >= 0 ? layout_record_bytes(l, group) : l->index_key_bytes;

	for (int64_t at = first; at < first + n; at += CACHE_SPAN_TOKENS) {
		const struct span_key *key = &in->keys[at / CACHE_SPAN_TOKENS];
		size_t bytes = CACHE_SPAN_TOKENS * token_bytes;
		uint8_t *to = out + (size_t)(at - first) * token_bytes;

		*bad = at;
		if (group >= 0 ? cache_read_records(in->cache, key, group, to, bytes, err)
			       : cache_read_index_keys(in->cache, key, index_layer, to, bytes, err))
			return -1;
	}
	return 0;
}

/* What the store has of a group before the chunk. A read that fails may go well once more; else its span is to blame. */
static int read_records(void *ctx, int32_t group, int64_t first, int64_t n, uint8_t *out, int64_t *bad, struct err *err)
{
	struct ingest *in = ctx;

	if (!cache_view_records(in->view, group, first, n, out, bad, err))
		return 0;
	return *bad >= 0 ? -1 : read_spans(in, group, -1, first, n, out, bad, err);
}

static int read_index_keys(void *ctx, int32_t index_layer, int64_t first, int64_t n, uint8_t *out, int64_t *bad,
			   struct err *err)
{
	struct ingest *in = ctx;

	if (!cache_view_index_keys(in->view, index_layer, first, n, out, bad, err))
		return 0;
	return *bad >= 0 ? -1 : read_spans(in, -1, index_layer, first, n, out, bad, err);
}

static int write_records(void *ctx, int32_t group, int64_t first, int64_t n, const uint8_t *records, struct err *err)
{
	struct ingest *in = ctx;

	return cache_run_records(in->run, group, first - chunk_first(in), n, records, err);
}

static int write_index_keys(void *ctx, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
			    struct err *err)
{
	struct ingest *in = ctx;

	return cache_run_index_keys(in->run, index_layer, first - chunk_first(in), n, keys, err);
}

static int begin_run(struct ingest *in, int64_t n, int32_t *next_layer, struct err *err)
{
	const struct layout *l = session_layout(in->session);
	uint32_t *record_bytes = xmalloc((size_t)l->n_groups, sizeof *record_bytes);
	const struct cache_layout layout = {l->n_groups, record_bytes, l->n_index_layers, (uint32_t)l->index_key_bytes};
	int rc;

	for (int32_t g = 0; g < l->n_groups; g++)
		record_bytes[g] = (uint32_t)layout_record_bytes(l, g);
	rc = cache_run_begin(&in->run, in->cache, in->corpus, &layout, in->identity,
			     in->first_missing ? &in->keys[in->first_missing - 1] : NULL, in->ids.id + chunk_first(in), n,
			     next_layer, err);
	free(record_bytes);
	return rc;
}

static int write_checkpoint(void *ctx, int32_t next_layer, size_t bytes, size_t at, const void *piece, size_t n,
			    struct err *err)
{
	struct ingest *in = ctx;
	struct err why;

	(void)err;
	if (!cache_run_checkpoint(in->run, next_layer, bytes, at, piece, n, &why))
		return 0;
	/* Nothing is lost but what it is for: a store that takes no more writes says so when the next latents leave. */
	log_warn("an ingest of corpus '%s' would not go on at layer %d after an interruption: %s", in->corpus, next_layer,
		 why.text);
	return 1;
}

static int read_checkpoint(void *ctx, size_t bytes, size_t at, void *piece, size_t n, struct err *err)
{
	struct ingest *in = ctx;

	in->lost_state = cache_run_state(in->run, bytes, at, piece, n, err);
	return in->lost_state ? -1 : 0;
}

/* From a layer on, through which the tokens of the run have not been. */
static int begin_sweep(struct ingest *in, int32_t first_layer, struct err *err)
{
	const struct sweep_options opt = {.scratch_bytes = in->scratch_bytes, .first_layer = first_layer,
					  .always_checkpoint = in->always_checkpoint,
					  .state_piece_bytes = in->state_piece_bytes};
	const struct sweep_sequence q = {
		.session = in->session, .ids = in->ids.id + chunk_first(in),
		.n = span_end(in, in->chunk_last) - chunk_first(in), .source = &in->from_store, .sink = &in->to_store,
		.residual = read_checkpoint, .residual_ctx = in,
	};

	in->from_store = (struct sweep_source){in, read_records, read_index_keys};
	in->to_store = (struct sweep_sink){in, write_records, write_index_keys, write_checkpoint};
	in->progress.resumed_layer = first_layer;
	in->progress.n_layers = in->model->config.n_layers;
	return sweep_begin(&in->sweep, &q, 1, &opt, err);
}

/* The store cannot give a span that the chunk stands on: from now on it is missing, and computed first. */
static int miss_span(struct ingest *in, int64_t position, const struct err *why, struct err *err)
{
	int32_t i = (int32_t)(position / CACHE_SPAN_TOKENS);
	int64_t first = (int64_t)i * CACHE_SPAN_TOKENS;

	log_warn("tokens %" PRId64 " to %d of corpus '%s' are computed again: %s", first, span_end(in, i) - 1, in->corpus,
		 why->text);
	end_chunk(in);
	if (cache_quarantine(in->cache, &in->keys[i], err))
		return -1;
	in->missing[i] = true;
	in->first_missing = i;
	if (in->progress.reused_tokens > first)
		in->progress.reused_tokens -= span_end(in, i) - first;
	return 0;
}

/* What is before the chunk. 0: a span of it is missing after all, and comes first. */
static int open_view(struct ingest *in, struct err *err)
{
	int64_t n_whole = 0;
	struct err why;

	if (!in->first_missing)
		return 1;
	if (cache_view_open(&in->view, in->cache, in->identity, in->ids.id, chunk_first(in), &n_whole, err))
		return -1;
	if (n_whole == chunk_first(in))
		return 1;
	err_set(&why, ERR_DAMAGED, "the store has them no more, or cannot read their checksums");
	return miss_span(in, n_whole, &why, err);
}

/* The missing spans from the first one on, as many as fit; perhaps somebody was interrupted in them. */
static int begin_chunk(struct ingest *in, struct err *err)
{
	const struct session_options how = {.latents = in->format, .by_group = true};
	int32_t next_layer;
	int rc = open_view(in, err);

	if (rc <= 0)
		return rc;
	in->chunk_last = in->first_missing;
	while (in->chunk_last + 1 < in->n_spans && in->missing[in->chunk_last + 1] &&
	       in->chunk_last + 1 < in->first_missing + in->chunk_spans)
		in->chunk_last++;
	if (session_new(&in->session, in->engine, in->model, &how, err))
		return -1;
	session_skip(in->session, chunk_first(in));
	if (begin_run(in, span_end(in, in->chunk_last) - chunk_first(in), &next_layer, err) ||
	    begin_sweep(in, next_layer, err))
		return -1;
	if (next_layer)
		log_info("tokens %" PRId64 " to %d of corpus '%s' go on at layer %d of %d", chunk_first(in),
			 span_end(in, in->chunk_last) - 1, in->corpus, next_layer, in->model->config.n_layers);
	return 0;
}

/* What the checkpoint kept cannot be read: from the beginning, then. */
static int begin_again(struct ingest *in, const struct err *why, struct err *err)
{
	log_warn("tokens %" PRId64 " to %d of corpus '%s' are computed from the first layer: %s", chunk_first(in),
		 span_end(in, in->chunk_last) - 1, in->corpus, why->text);
	in->lost_state = false;
	sweep_end(in->sweep);
	in->sweep = NULL;
	return cache_run_restart(in->run, err) || begin_sweep(in, 0, err) ? -1 : 0;
}

static int commit_chunk(struct ingest *in, struct err *err)
{
	if (cache_run_commit(in->run, err))
		return -1;
	for (int32_t i = in->first_missing; i <= in->chunk_last; i++)
		in->missing[i] = false;
	if (in->progress.done_tokens < span_end(in, in->chunk_last))
		in->progress.done_tokens = span_end(in, in->chunk_last);
	end_chunk(in);
	return 0;
}

static int step_chunk(struct ingest *in, struct err *err)
{
	struct err why = {0};
	int32_t sequence;
	int64_t bad;
	int more;

	if (!in->sweep && begin_chunk(in, err)) {
		end_chunk(in);
		return -1;
	}
	if (!in->sweep) /* a span before it comes first */
		return 0;
	more = sweep_step(in->sweep, &why);
	if (!more)
		return commit_chunk(in, err);
	if (more > 0)
		return 0;
	if (in->lost_state)
		return begin_again(in, &why, err);
	bad = sweep_bad_position(in->sweep, &sequence);
	if (bad >= 0)
		return miss_span(in, bad, &why, err);
	if (err)
		*err = why;
	return -1;
}

/* Tokens beyond the durable ones: each counts for the share of the layers that it has been through. */
static int64_t swept_tokens(const struct ingest *in)
{
	int64_t n;

	if (!in->sweep)
		return 0;
	n = chunk_first(in) + sweep_token_layers(in->sweep) / in->model->config.n_layers - in->progress.done_tokens;
	return n < 0 ? 0 : n; /* while a damaged span among them is computed again */
}

/* 1: spans are missing after all (somebody found them damaged meanwhile); 0: committed. */
static int commit(struct ingest *in, struct err *err)
{
	struct cache_snapshot s = {
		.corpus = in->corpus, .source = in->source, .revision = in->commit, .identity = in->identity, .created_s = (int64_t)time(NULL),
		.n_tokens = (int64_t)in->ids.n, .ids = in->ids.id,
		.n_documents = in->n_documents, .documents = in->documents,
	};
	int64_t id;

	in->progress.phase = INGEST_COMMIT;
	if (cache_known_prefix(in->cache, in->identity, s.ids, s.n_tokens) < s.n_tokens) {
		find_missing(in);
		in->progress.phase = INGEST_PREFILL;
		return 1;
	}
	s.skipped = ingest_skipped(in, &s.n_skipped);
	if (cache_commit_snapshot(in->cache, &s, &id, err))
		return -1;
	in->progress.phase = INGEST_DONE;
	in->progress.done_tokens = s.n_tokens;
	return 0;
}

int ingest_step(struct ingest *in, struct ingest_progress *progress, struct err *err)
{
	int rc;

	assert(in->begun && in->progress.phase != INGEST_DONE);
	while (in->first_missing < in->n_spans && !in->missing[in->first_missing])
		in->first_missing++;
	rc = in->first_missing == in->n_spans ? commit(in, err) : step_chunk(in, err) ? -1 : 1;
	in->progress.swept_tokens = in->progress.phase == INGEST_PREFILL ? swept_tokens(in) : 0;
	if (progress)
		*progress = in->progress;
	return rc < 0 ? err_wrap(err, "ingest corpus '%s'", in->corpus) : rc;
}
