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
#include "ingest/batch.h"
#include "ingest/count.h"
#include "ingest/document.h"
#include "ingest/order.h"
#include "ingest/part.h"
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
	struct part_limits limits;
	struct batch *own;              /* of ingest_step */
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
	int32_t part_spans;             /* swept at a time, at most */
	bool begun;

	/* The part that is computed next, from first_missing to part_last; and where run is not NULL, under way. */
	int32_t part_last;
	struct session *session;
	struct cache_run *run;
	struct cache_view *view;        /* of what is before it; NULL: nothing is */
	struct sweep_source from_store;
	struct sweep_sink to_store;
	uint32_t *chosen;               /* [n_layers, n_experts] how often its tokens chose each expert; NULL: there are none */
	enum part_fault fault;
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
	in->limits = (struct part_limits){opt->scratch_bytes, opt->always_checkpoint, opt->state_piece_bytes,
					  opt->max_tokens};
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

void ingest_free(struct ingest *in)
{
	if (!in)
		return;
	batch_free(in->own);
	part_end(in);
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
 * What there is to do
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
static int plan_parts(struct ingest *in, struct err *err)
{
	int64_t n = (int64_t)in->ids.n, least = n < CACHE_SPAN_TOKENS ? n : CACHE_SPAN_TOKENS;
	struct sweep_plan plan, span;

	if (sweep_plan(&plan, &in->model->config, engine_compute(in->engine), in->format, n, in->limits.scratch_bytes, err) ||
	    sweep_plan(&span, &in->model->config, engine_compute(in->engine), in->format, least, 0, err))
		return err_wrap(err, "ingest.scratch");
	if (plan.chunk_tokens < least)
		return err_set(err, ERR_TOO_LARGE, "ingest.scratch: a sweep of %" PRId64 " tokens, which are stored together, needs "
			       "%zu bytes of scratch memory, the budget is %zu: allow more", least, span.scratch_bytes,
			       in->limits.scratch_bytes);
	in->part_spans = plan.n_chunks == 1 ? in->n_spans : (int32_t)(plan.chunk_tokens / CACHE_SPAN_TOKENS);
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
	return plan_parts(in, err);
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
	/* In the parts in which they will be written. */
	for (int32_t i = 0; i < in->n_spans; i++) {
		run += in->missing[i];
		if (run && (run == in->part_spans || i + 1 == in->n_spans || !in->missing[i + 1])) {
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

/*
 * Computing (part.h, batch.h)
 */

static int64_t part_first(const struct ingest *in)
{
	return (int64_t)in->first_missing * CACHE_SPAN_TOKENS;
}

static int64_t part_stop(const struct ingest *in)
{
	return span_end(in, in->part_last);
}

/* Who has computed the same beginning meanwhile has done it for this corpus too. */
static int skip_found(struct ingest *in, int32_t was, struct err *err)
{
	int64_t known, end = span_end(in, in->first_missing - 1);

	if (cache_begin_ingest(in->cache, in->corpus, in->identity, in->ids.id, (int64_t)in->ids.n, &known, err))
		return -1;
	in->progress.reused_tokens += end - (int64_t)was * CACHE_SPAN_TOKENS;
	if (in->progress.done_tokens < end)
		in->progress.done_tokens = end;
	return 0;
}

int part_choose(struct ingest *in, int64_t *n_tokens, struct err *err)
{
	int32_t was;

	*n_tokens = 0;
	while (in->first_missing < in->n_spans && !in->missing[in->first_missing])
		in->first_missing++;
	was = in->first_missing;
	while (in->first_missing < in->n_spans && in->missing[in->first_missing] &&
	       cache_has_span(in->cache, &in->keys[in->first_missing]))
		in->missing[in->first_missing++] = false;
	if (in->first_missing > was)
		return skip_found(in, was, err) ? -1 : part_choose(in, n_tokens, err);
	if (in->first_missing == in->n_spans)
		return 0;
	in->part_last = in->first_missing;
	while (in->part_last + 1 < in->n_spans && in->missing[in->part_last + 1] &&
	       in->part_last + 1 < in->first_missing + in->part_spans)
		in->part_last++;
	*n_tokens = part_stop(in) - part_first(in);
	return 0;
}

int64_t part_row_tokens(const struct ingest *in)
{
	return part_stop(in);
}

int part_plan(const struct ingest *in, int64_t n_tokens, struct sweep_plan *plan)
{
	return sweep_plan(plan, &in->model->config, engine_compute(in->engine), in->format, n_tokens,
			  in->limits.scratch_bytes, NULL);
}

bool part_waits_for(const struct ingest *in, const struct ingest *other)
{
	int32_t i = in->first_missing;

	return i < other->n_spans && other->missing[i] && !memcmp(&in->keys[i], &other->keys[i], sizeof in->keys[i]);
}

const struct part_limits *part_limits(const struct ingest *in)
{
	return &in->limits;
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

/* What the store has of a group before the part. A read that fails may go well once more; else its span is to blame. */
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

static int sink_failed(struct ingest *in)
{
	in->fault = PART_SINK;
	return -1;
}

static int write_records(void *ctx, int32_t group, int64_t first, int64_t n, const uint8_t *records, struct err *err)
{
	struct ingest *in = ctx;

	return cache_run_records(in->run, group, first - part_first(in), n, records, err) ? sink_failed(in) : 0;
}

static int write_index_keys(void *ctx, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
			    struct err *err)
{
	struct ingest *in = ctx;

	return cache_run_index_keys(in->run, index_layer, first - part_first(in), n, keys, err) ? sink_failed(in) : 0;
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
			     in->first_missing ? &in->keys[in->first_missing - 1] : NULL, in->ids.id + part_first(in), n,
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

	if (!cache_run_state(in->run, bytes, at, piece, n, err))
		return 0;
	in->fault = PART_STATE;
	return -1;
}

/* The store cannot give a span that the part stands on: from now on it is missing, and computed first. */
int part_miss(struct ingest *in, int64_t position, const struct err *why, struct err *err)
{
	int32_t i = (int32_t)(position / CACHE_SPAN_TOKENS);
	int64_t first = (int64_t)i * CACHE_SPAN_TOKENS;

	log_warn("tokens %" PRId64 " to %d of corpus '%s' are computed again: %s", first, span_end(in, i) - 1, in->corpus,
		 why->text);
	part_end(in);
	if (cache_quarantine(in->cache, &in->keys[i], err))
		return -1;
	in->missing[i] = true;
	in->first_missing = i;
	if (in->progress.reused_tokens > first)
		in->progress.reused_tokens -= span_end(in, i) - first;
	return 0;
}

/* What is before the part. 0: a span of it is missing after all, and comes first. */
static int open_view(struct ingest *in, struct err *err)
{
	int64_t n_whole = 0;
	struct err why;

	if (!in->first_missing)
		return 1;
	if (cache_view_open(&in->view, in->cache, in->identity, in->ids.id, part_first(in), &n_whole, err))
		return -1;
	if (n_whole == part_first(in))
		return 1;
	err_set(&why, ERR_DAMAGED, "the store has them no more, or cannot read their checksums");
	return part_miss(in, n_whole, &why, err);
}

/* Who chose which expert is counted from the first layer on, or from where the part goes on, beside what was counted until then. */
static void begin_counting(struct ingest *in, int32_t next_layer)
{
	const struct model_config *c = &in->model->config;
	size_t n = (size_t)c->n_layers * (size_t)c->n_experts;
	struct err why;
	int counted;

	if (!n)
		return;
	in->chosen = xcalloc(n, sizeof *in->chosen);
	cache_run_count(in->run, in->chosen, c->n_layers, c->n_experts);
	if (!next_layer)
		return;
	err_set(&why, ERR_NOT_FOUND, "it was interrupted in a quire that did not count");
	counted = cache_run_counted(in->run, in->chosen, c->n_layers, c->n_experts, &why);
	if (counted > 0)
		return;
	memset(in->chosen, 0, n * sizeof *in->chosen);
	log_warn("corpus '%s': which experts tokens %" PRId64 " to %" PRId64 " chose before layer %d is not known, which changes no "
		 "answer: %s", in->corpus, part_first(in), part_stop(in) - 1, next_layer, why.text);
}

int part_open(struct ingest *in, int32_t *next_layer, struct err *err)
{
	const struct session_options how = {.latents = in->format, .by_group = true};
	int rc;

	assert(!in->run);
	in->fault = PART_SOUND;
	rc = open_view(in, err);
	if (rc > 0 && session_new(&in->session, in->engine, in->model, &how, err))
		rc = -1;
	if (rc > 0) {
		session_skip(in->session, part_first(in));
		rc = begin_run(in, part_stop(in) - part_first(in), next_layer, err) ? -1 : 1;
	}
	if (rc > 0)
		begin_counting(in, *next_layer);
	else
		part_end(in);
	return rc;
}

void part_sequence(struct ingest *in, struct sweep_sequence *q)
{
	in->from_store = (struct sweep_source){in, read_records, read_index_keys};
	in->to_store = (struct sweep_sink){in, write_records, write_index_keys, write_checkpoint};
	*q = (struct sweep_sequence){
		.session = in->session, .ids = in->ids.id + part_first(in), .n = part_stop(in) - part_first(in),
		.source = &in->from_store, .sink = &in->to_store, .residual = read_checkpoint, .residual_ctx = in,
		.chosen = in->chosen,
	};
}

enum part_fault part_fault(const struct ingest *in)
{
	return in->fault;
}

int part_forget(struct ingest *in, const struct err *why, struct err *err)
{
	log_warn("tokens %" PRId64 " to %" PRId64 " of corpus '%s' are computed from the first layer: %s", part_first(in),
		 part_stop(in) - 1, in->corpus, why->text);
	part_end(in);
	return cache_run_forget(in->cache, in->corpus, err);
}

int part_commit(struct ingest *in, struct err *err)
{
	int rc = cache_run_commit(in->run, err);

	for (int32_t i = in->first_missing; !rc && i <= in->part_last; i++)
		in->missing[i] = false;
	if (!rc && in->progress.done_tokens < part_stop(in))
		in->progress.done_tokens = part_stop(in);
	part_end(in);
	return rc;
}

void part_end(struct ingest *in)
{
	cache_run_free(in->run);
	in->run = NULL;
	cache_view_close(in->view);
	in->view = NULL;
	session_free(in->session);
	in->session = NULL;
	free(in->chosen);
	in->chosen = NULL;
	in->progress.swept_tokens = 0;
}

void part_begun(struct ingest *in, int32_t first_layer)
{
	in->progress.resumed_layer = first_layer;
	in->progress.n_layers = in->model->config.n_layers;
	if (first_layer)
		log_info("tokens %" PRId64 " to %" PRId64 " of corpus '%s' go on at layer %d of %d", part_first(in),
			 part_stop(in) - 1, in->corpus, first_layer, in->model->config.n_layers);
}

/* Tokens beyond the durable ones: each counts for the share of the layers that it has been through. */
void part_swept(struct ingest *in, int32_t n_layers)
{
	int64_t n = part_stop(in) - part_first(in);

	n = part_first(in) + n * n_layers / in->model->config.n_layers - in->progress.done_tokens;
	in->progress.swept_tokens = n < 0 ? 0 : n; /* while a damaged span among them is computed again */
}

int part_wrap(const struct ingest *in, struct err *err)
{
	return err_wrap(err, "ingest corpus '%s'", in->corpus);
}

void ingest_progress(const struct ingest *in, struct ingest_progress *progress)
{
	*progress = in->progress;
}

/* 1: spans are missing after all (somebody found them damaged meanwhile); 0: committed. */
int ingest_commit(struct ingest *in, struct err *err)
{
	struct cache_snapshot s = {
		.corpus = in->corpus, .source = in->source, .revision = in->commit, .identity = in->identity, .created_s = (int64_t)time(NULL),
		.n_tokens = (int64_t)in->ids.n, .ids = in->ids.id,
		.n_documents = in->n_documents, .documents = in->documents,
	};
	int64_t id;

	assert(in->begun && !in->run && in->progress.phase != INGEST_DONE);
	in->progress.phase = INGEST_COMMIT;
	if (cache_known_prefix(in->cache, in->identity, s.ids, s.n_tokens) < s.n_tokens) {
		find_missing(in);
		in->progress.phase = INGEST_PREFILL;
		return 1;
	}
	s.skipped = ingest_skipped(in, &s.n_skipped);
	if (cache_commit_snapshot(in->cache, &s, &id, err))
		return part_wrap(in, err);
	in->progress.phase = INGEST_DONE;
	in->progress.done_tokens = s.n_tokens;
	return 0;
}

int ingest_step(struct ingest *in, struct ingest_progress *progress, struct err *err)
{
	struct ingest *ended;
	struct err why = {0};

	assert(in->begun && in->progress.phase != INGEST_DONE);
	if (!in->own)
		batch_add(in->own = batch_new(), in);
	ended = batch_step(in->own, &why);
	if (progress)
		*progress = in->progress;
	if (why.code && err)
		*err = why;
	return why.code ? -1 : !ended;
}
