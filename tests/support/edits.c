#include "tests/support/edits.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache.h"
#include "config/mem.h"
#include "engine/recall.h"
#include "engine/sweep.h"
#include "ingest/ingest.h"
#include "tests/support/temp_dir.h"

enum { MOST_FILES = 8, MOST_LINES = 14, MOST_TOKENS = 1 << 14, MOST_EDITS = 4 };

const char *const edit_names[N_EDIT_KINDS] = {"add", "delete", "rename", "touch", "grow", "shrink", "change", "swap"};

/* A file as it should be on disk. */
struct file {
	char *path;             /* relative to the source */
	struct bytes text;
};

struct edits {
	const struct edits_model *model;
	uint64_t random;
	char *dir, *source, *store_dir;
	enum latent_format format;
	struct cache *store;
	struct cache_snapshot *snapshot; /* the corpus's; NULL: none yet */
	struct file files[MOST_FILES];
	uint32_t n_files;
	bool has_other;         /* a second corpus of the same directory, in an order of its own, as old as it may be */
	int n_named;            /* no name comes twice, so that none is both a file and a directory */
	struct edits_counts counts;
};

int edits_model_open(struct edits_model *m, struct err *err)
{
	const struct engine_options opt = {.n_threads = 1, .compute = COMPUTE_F32};

	*m = (struct edits_model){0};
	if (!engine_open(&m->engine, &opt, err) && !model_open(&m->model, "tests/golden/glm52", NULL, err) &&
	    !tokenizer_open(&m->tokenizer, "tests/golden/glm52/tokenizer.json", err))
		return 0;
	edits_model_close(m);
	return -1;
}

void edits_model_close(struct edits_model *m)
{
	tokenizer_close(m->tokenizer);
	model_close(m->model);
	engine_close(m->engine);
	*m = (struct edits_model){0};
}

/* Less than n; n >= 1. */
static uint32_t draw(struct edits *e, uint32_t n)
{
	e->random = e->random * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(e->random >> 33) % n;
}

struct edits *edits_new(const struct edits_model *m, uint64_t seed)
{
	struct edits *e = xcalloc(1, sizeof *e);

	e->model = m;
	e->random = seed * 0x9e3779b97f4a7c15u + 1;
	for (int i = 0; i < 4; i++)
		draw(e, 1); /* seeds that are near each other begin alike */
	e->dir = temp_dir_new();
	e->source = temp_path(e->dir, "source");
	e->store_dir = temp_path(e->dir, "store");
	if (mkdir(e->source, 0700)) {
		perror(e->source);
		abort(); /* as temp_dir_new does */
	}
	e->format = draw(e, 2) ? LATENTS_FP8 : LATENTS_BF16;
	return e;
}

void edits_free(struct edits *e)
{
	if (!e)
		return;
	cache_free_snapshot(e->snapshot);
	cache_close(e->store);
	while (e->n_files) {
		free(e->files[--e->n_files].path);
		bytes_free(&e->files[e->n_files].text);
	}
	temp_dir_free(e->dir);
	free(e->source);
	free(e->store_dir);
	free(e);
}

const char *edits_source(const struct edits *e)
{
	return e->source;
}

const struct edits_counts *edits_counts(const struct edits *e)
{
	return &e->counts;
}

/*
 * Editing
 */

static char *new_path(struct edits *e)
{
	static const char *const forms[] = {
		"f%d.c", "Make%d", "src/f%d.c", "src/deep/er/f%d.h", "doc/ f%d.txt", "new\nline%d", "\xff\"%d\\", "z/\xc3\xa4%d",
	};

	char *path = xasprintf("%s", forms[draw(e, sizeof forms / sizeof *forms)]), *at = strstr(path, "%d"), *out;

	*at = '\0';
	out = xasprintf("%s%d%s", path, e->n_named++, at + 2);
	free(path);
	return out;
}

/* Some lines, the last one perhaps without its end. */
static void add_lines(struct edits *e, struct bytes *text)
{
	static const char *const words[] = {
		"int ", "return ", "x", "(", ");", "\t", "alpha", " = 7", "/* ", "\xc3\xa9", "===", "{", "",
	};
	uint32_t n = draw(e, MOST_LINES);

	for (uint32_t i = 0; i < n; i++) {
		uint32_t n_words = draw(e, 6);

		for (uint32_t w = 0; w < n_words; w++) {
			const char *word = words[draw(e, sizeof words / sizeof *words)];

			bytes_append(text, word, strlen(word));
		}
		if (i + 1 < n || draw(e, 4))
			bytes_append(text, "\n", 1);
	}
}

static void write_file(const struct edits *e, const struct file *f)
{
	free(temp_file(e->source, f->path, f->text.data ? f->text.data : "", f->text.n));
}

static void unlink_file(const struct edits *e, const struct file *f)
{
	char *path = temp_path(e->source, f->path);

	unlink(path);
	free(path);
}

static void add(struct edits *e)
{
	struct file *f = &e->files[e->n_files++];

	*f = (struct file){.path = new_path(e)};
	add_lines(e, &f->text);
	write_file(e, f);
}

static void delete(struct edits *e, struct file *f)
{
	unlink_file(e, f);
	free(f->path);
	bytes_free(&f->text);
	*f = e->files[--e->n_files];
}

/* A place in the text. Within a character it would make another encoding of it, and a text that is not the
 * file's bytes. */
static size_t draw_cut(struct edits *e, const struct bytes *text)
{
	size_t cut = text->n ? draw(e, (uint32_t)text->n) : 0;

	while (cut && ((unsigned char)text->data[cut] & 0xc0) == 0x80)
		cut--;
	return cut;
}

/* What stands before a place goes to the end or away, and lines come before all. */
static void change(struct edits *e, struct file *f)
{
	struct bytes text = {0}, was = f->text;
	size_t cut = draw_cut(e, &was);

	if (draw(e, 2))
		add_lines(e, &text);
	bytes_append(&text, was.data + cut, was.n - cut);
	if (draw(e, 2))
		bytes_append(&text, was.data, cut);
	bytes_free(&was);
	f->text = text;
}

static void edit(struct edits *e)
{
	enum edit_kind kind = (enum edit_kind)draw(e, N_EDIT_KINDS);
	struct file *f, *other;

	if (!e->n_files || (kind == EDIT_DELETE && e->n_files == 1) || (kind == EDIT_ADD && e->n_files == MOST_FILES))
		kind = e->n_files < MOST_FILES ? EDIT_ADD : EDIT_TOUCH;
	f = &e->files[e->n_files ? draw(e, e->n_files) : 0];
	e->counts.n_edits[kind]++;
	if (kind == EDIT_ADD) {
		add(e);
		return;
	} else if (kind == EDIT_DELETE) {
		delete(e, f);
		return;
	} else if (kind == EDIT_RENAME) {
		unlink_file(e, f);
		free(f->path);
		f->path = new_path(e);
	} else if (kind == EDIT_GROW) {
		if (f->text.n < 600)
			add_lines(e, &f->text);
	} else if (kind == EDIT_SHRINK) {
		f->text.n = draw_cut(e, &f->text);
	} else if (kind == EDIT_CHANGE) {
		change(e, f);
	} else if (kind == EDIT_SWAP) {
		struct bytes text = f->text;

		other = &e->files[draw(e, e->n_files)];
		f->text = other->text;
		other->text = text;
		write_file(e, other);
	}
	write_file(e, f); /* a touch is that alone */
}

/*
 * Ingesting
 */

/* Of `corpus` into `c`: cut off when so many tokens are computed. Returns 0 when it is committed, 1 when it was
 * cut off. */
static int ingest(const struct edits *e, struct cache *c, struct ingest_options *opt, int64_t n_done,
		  struct ingest_progress *progress, struct err *err)
{
	struct ingest *in;
	int rc = 1;

	opt->source = e->source;
	opt->max_file_bytes = 1 << 20;
	opt->max_tokens = MOST_TOKENS;
	*progress = (struct ingest_progress){0};
	if (ingest_prepare(&in, opt, e->model->tokenizer, NULL, NULL, NULL, err))
		return -1;
	if (ingest_bind(in, e->model->engine, e->model->model, e->format, c, err) || ingest_begin(in, err))
		rc = -1;
	while (rc > 0 && progress->done_tokens + progress->swept_tokens < n_done)
		rc = ingest_step(in, progress, err);
	ingest_free(in);
	return rc;
}

/* Scratch memory for the sweep: for all, or for a span and some more. */
static int draw_scratch(struct edits *e, size_t *bytes, struct err *err)
{
	static const int64_t tokens[] = {64, 100, 200, 300};
	struct sweep_plan plan;
	uint32_t i = draw(e, 8);

	*bytes = 0;
	if (i >= sizeof tokens / sizeof *tokens)
		return 0;
	if (sweep_plan(&plan, &e->model->model->config, engine_compute(e->model->engine), e->format, tokens[i], 0, err))
		return -1;
	*bytes = plan.scratch_bytes;
	return 0;
}

static int reopen(struct edits *e, struct err *err)
{
	cache_close(e->store);
	e->store = NULL;
	return cache_open(&e->store, e->store_dir, err);
}

/* How many tokens of the snapshot are in whole spans that its former one has as well. */
static int64_t common_tokens(const struct cache_snapshot *former, const struct cache_snapshot *now)
{
	int64_t n = 0, most;

	if (!former)
		return 0;
	most = former->n_tokens < now->n_tokens ? former->n_tokens : now->n_tokens;
	while (n < most && former->ids[n] == now->ids[n])
		n++;
	return n == former->n_tokens && n == now->n_tokens ? n : n / CACHE_SPAN_TOKENS * CACHE_SPAN_TOKENS;
}

static const struct cache_document *find_document(const struct cache_snapshot *s, const char *path)
{
	for (int32_t i = 0; s && i < s->n_documents; i++)
		if (!strcmp(s->documents[i].path, path))
			return &s->documents[i];
	return NULL;
}

static int check_documents(const struct edits *e, const struct cache_snapshot *now, struct err *err)
{
	if (now->n_documents != (int32_t)e->n_files)
		return err_set(err, ERR_FAILED, "the snapshot has %d documents, the directory %u files", now->n_documents,
			       e->n_files);
	for (uint32_t i = 0; i < e->n_files; i++) {
		const struct file *f = &e->files[i];
		const struct cache_document *d = find_document(now, f->path);
		uint8_t hash[32];

		crypto_generichash(hash, sizeof hash, (const unsigned char *)(f->text.data ? f->text.data : ""), f->text.n,
				   NULL, 0);
		if (!d || memcmp(hash, d->content_hash, sizeof hash))
			return err_set(err, ERR_FAILED, "the snapshot %s %s", d ? "has other bytes for" : "lacks", f->path);
	}
	return 0;
}

/* What is as it was follows what it followed. */
static int check_order(const struct cache_snapshot *former, const struct cache_snapshot *now, struct err *err)
{
	const struct cache_document *last = NULL;
	bool some_changed = false;

	for (int32_t i = 0; former && i < now->n_documents; i++) {
		const struct cache_document *d = &now->documents[i], *was = find_document(former, d->path);

		if (!was || memcmp(was->content_hash, d->content_hash, sizeof d->content_hash)) {
			some_changed = true;
			continue;
		}
		if (some_changed)
			return err_set(err, ERR_FAILED, "%s is as it was and stands behind what changed", d->path);
		if (last && was < last)
			return err_set(err, ERR_FAILED, "%s stood before %s and now stands behind it", d->path, last->path);
		last = was;
	}
	return 0;
}

static int check_kept(const struct edits *e, const struct cache_snapshot *now, int64_t reused, bool resumed,
		      struct err *err)
{
	int64_t want = common_tokens(e->snapshot, now);
	struct cache_stats stats;

	/* One that is taken up again has more, what the one before it wrote; and so may the other corpus. */
	if (resumed || e->has_other ? reused < want : reused != want)
		return err_set(err, ERR_FAILED, "%" PRId64 " tokens were kept, and %" PRId64 " are as they were", reused, want);
	cache_stats(e->store, &stats);
	want = (now->n_tokens + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS;
	if (e->has_other ? stats.n_spans < want : stats.n_spans != want)
		return err_set(err, ERR_FAILED, "the store has %" PRId64 " spans, the snapshot needs %" PRId64, stats.n_spans,
			       want);
	return 0;
}

/* The corpus has been ingested: look at what became of it. */
static int take_snapshot(struct edits *e, int64_t reused, bool resumed, struct err *err)
{
	struct cache_snapshot *now;

	if (cache_load_snapshot(e->store, "code", &now, err))
		return -1;
	if (check_documents(e, now, err) || check_order(e->snapshot, now, err) ||
	    check_kept(e, now, reused, resumed, err)) {
		cache_free_snapshot(now);
		return -1;
	}
	e->counts.n_reindexes++;
	if (!resumed && !e->has_other) {
		e->counts.n_tokens += now->n_tokens;
		e->counts.kept_tokens += reused;
	}
	cache_free_snapshot(e->snapshot);
	e->snapshot = now;
	return 0;
}

/* The second corpus comes, and shares what it can, or goes, and what it shared must stay. */
static int turn_other(struct edits *e, struct err *err)
{
	struct ingest_options opt = {.corpus = "other"};
	struct ingest_progress progress;

	if (e->has_other ? cache_drop_corpus(e->store, "other", err) : ingest(e, e->store, &opt, INT64_MAX, &progress, err))
		return -1;
	e->has_other = !e->has_other;
	e->counts.n_others += e->has_other;
	return 0;
}

int edits_step(struct edits *e, struct err *err)
{
	struct ingest_options opt = {.corpus = "code"};
	struct ingest_progress progress;
	bool resumed = false;
	int rc;

	if ((!e->store || !draw(e, 4)) && reopen(e, err))
		return -1;
	if (e->snapshot && !draw(e, 4) && turn_other(e, err))
		return -1;
	do {
		int64_t n_done = draw(e, 4) ? INT64_MAX : draw(e, 250);

		for (uint32_t n = draw(e, MOST_EDITS + 1) + !e->n_files; n; n--)
			edit(e);
		opt.previous = e->snapshot;
		if (draw_scratch(e, &opt.scratch_bytes, err))
			return -1;
		rc = ingest(e, e->store, &opt, n_done, &progress, err);
		e->counts.n_cut += rc > 0;
		if (rc > 0 && draw(e, 2) && reopen(e, err))
			return -1;
		if (rc > 0)
			resumed = true;
	} while (rc > 0);
	return rc ? -1 : take_snapshot(e, progress.reused_tokens, resumed, err);
}

/*
 * Comparing
 */

static int differ(const char *what, int64_t position, struct err *err)
{
	return err_set(err, ERR_FAILED, "%s from token %" PRId64 " on differ from those of a cold ingest", what, position);
}

/* One span in both stores: x and y have room for any part of it. */
static int compare_span(const struct edits *e, struct cache *cold, const struct layout *l, const struct span_key *key,
			int64_t at, int32_t n, uint8_t *x, uint8_t *y, struct err *err)
{
	if (!cache_has_span(e->store, key) || !cache_has_span(cold, key))
		return err_set(err, ERR_FAILED, "the span of token %" PRId64 " is not in %s", at,
			       cache_has_span(e->store, key) ? "the cold store" : "the store");
	for (int32_t g = 0; g < l->n_groups; g++) {
		size_t bytes = (size_t)n * layout_record_bytes(l, g);

		if (cache_read_records(e->store, key, g, x, bytes, err) || cache_read_records(cold, key, g, y, bytes, err))
			return -1;
		if (memcmp(x, y, bytes))
			return differ("records", at, err);
	}
	for (int32_t i = 0; i < l->n_index_layers; i++) {
		size_t bytes = (size_t)n * l->index_key_bytes;

		if (cache_read_index_keys(e->store, key, i, x, bytes, err) || cache_read_index_keys(cold, key, i, y, bytes, err))
			return -1;
		if (memcmp(x, y, bytes))
			return differ("index keys", at, err);
	}
	return 0;
}

static int compare_spans(const struct edits *e, struct cache *cold, const struct cache_snapshot *s, struct err *err)
{
	struct layout *l = layout_new(&e->model->model->config, e->format);
	size_t most = l->index_key_bytes;
	struct span_key key, parent;
	uint8_t *x, *y;
	int rc = 0;

	for (int32_t g = 0; g < l->n_groups; g++)
		most = layout_record_bytes(l, g) > most ? layout_record_bytes(l, g) : most;
	x = xmalloc(CACHE_SPAN_TOKENS, most);
	y = xmalloc(CACHE_SPAN_TOKENS, most);
	for (int64_t at = 0; !rc && at < s->n_tokens; at += CACHE_SPAN_TOKENS) {
		int32_t n = (int32_t)(s->n_tokens - at < CACHE_SPAN_TOKENS ? s->n_tokens - at : CACHE_SPAN_TOKENS);

		span_key_make(&key, s->identity, at ? &parent : NULL, s->ids + at, n);
		rc = compare_span(e, cold, l, &key, at, n, x, y, err);
		parent = key;
	}
	free(x);
	free(y);
	layout_free(l);
	return rc;
}

/* Logits of a question after the snapshot, whose latents come from the store, or are computed when c is NULL. */
static int ask(const struct edits *e, struct cache *c, const struct cache_snapshot *s, float *logits, struct err *err)
{
	static const int32_t question[] = {5, 6, 7};
	const struct session_options opt = {.latents = e->format};
	const struct edits_model *m = e->model;
	const struct recall_options recall = {m->engine, m->model, e->format, 0};
	const size_t n = sizeof question / sizeof *question;
	struct recall_stats stats = {0};
	struct recall *r = NULL;
	struct session *session;
	int rc;

	if (session_new(&session, m->engine, m->model, &opt, err))
		return -1;
	rc = c ? recall_open(&r, session, &recall, c, s, s->n_tokens, err)
	       : session_append(session, s->ids, (size_t)s->n_tokens, NULL, NULL, err);
	if (!rc)
		rc = r ? recall_append(r, question, n, logits, NULL, err) : session_append(session, question, n, logits, NULL, err);
	if (!rc && r)
		recall_count(r, &stats);
	if (!rc && stats.recomputed_tokens)
		rc = err_set(err, ERR_FAILED, "%" PRId64 " tokens could not be recalled", stats.recomputed_tokens);
	session_free(session);
	recall_close(r);
	return rc;
}

static int compare_logits(const struct edits *e, struct cache *cold, const struct cache_snapshot *s,
			  const struct cache_snapshot *of_cold, struct err *err)
{
	size_t n = (size_t)e->model->model->config.vocab;
	float *warm = xmalloc(n, sizeof *warm), *again = xmalloc(n, sizeof *again), *fresh = xmalloc(n, sizeof *fresh);
	int rc = ask(e, e->store, s, warm, err) || ask(e, cold, of_cold, again, err) || ask(e, NULL, s, fresh, err) ? -1 : 0;

	if (!rc && memcmp(warm, again, n * sizeof *warm))
		rc = differ("logits", s->n_tokens, err);
	if (!rc && memcmp(warm, fresh, n * sizeof *warm))
		rc = err_set(err, ERR_FAILED, "logits after the snapshot differ from those computed without a store");
	free(warm);
	free(again);
	free(fresh);
	return rc;
}

static int compare_snapshots(const struct cache_snapshot *a, const struct cache_snapshot *b, struct err *err)
{
	if (a->n_documents != b->n_documents)
		return err_set(err, ERR_FAILED, "%d documents, and %d in a cold ingest", a->n_documents, b->n_documents);
	for (int32_t i = 0; i < a->n_documents; i++) {
		const struct cache_document *d = &a->documents[i], *f = &b->documents[i];

		if (strcmp(d->path, f->path) || d->first_token != f->first_token || d->n_tokens != f->n_tokens ||
		    memcmp(d->content_hash, f->content_hash, sizeof d->content_hash) || d->n_lines != f->n_lines ||
		    (d->n_lines && memcmp(d->line_tokens, f->line_tokens, (size_t)d->n_lines * sizeof *d->line_tokens)))
			return err_set(err, ERR_FAILED, "document %d is %s, and in a cold ingest %s or otherwise placed", i, d->path,
				       f->path);
	}
	if (a->n_tokens != b->n_tokens || memcmp(a->ids, b->ids, (size_t)a->n_tokens * sizeof *a->ids))
		return err_set(err, ERR_FAILED, "the documents are those of a cold ingest, their tokens are not");
	if (memcmp(a->identity, b->identity, MODEL_ID_BYTES))
		return err_set(err, ERR_FAILED, "a cold ingest has another identity");
	return 0;
}

static int compare_with(struct edits *e, struct cache *cold, struct err *err)
{
	struct ingest_options opt = {.corpus = "cold", .order_from = e->snapshot};
	struct ingest_progress progress;
	struct cache_snapshot *s;
	int rc;

	if (ingest(e, cold, &opt, INT64_MAX, &progress, err) || cache_load_snapshot(cold, "cold", &s, err))
		return -1;
	rc = compare_snapshots(e->snapshot, s, err) || compare_spans(e, cold, s, err) ||
	     compare_logits(e, cold, e->snapshot, s, err) ? -1 : 0;
	cache_free_snapshot(s);
	return rc;
}

int edits_compare(struct edits *e, struct err *err)
{
	char *dir = temp_path(e->dir, "cold");
	struct cache *cold = NULL;
	int rc = cache_open(&cold, dir, err);

	if (!rc)
		rc = compare_with(e, cold, err);
	cache_close(cold);
	temp_dir_free(dir);
	e->counts.n_compared += !rc;
	return rc;
}

int edits_run(const struct edits_model *m, uint64_t seed, int n_steps, struct edits_counts *counts, struct err *err)
{
	struct edits *e = edits_new(m, seed);
	int rc = 0;

	for (int i = 0; !rc && i < n_steps; i++) {
		rc = edits_step(e, err);
		if (!rc && (i + 1 == n_steps || !draw(e, 3)))
			rc = edits_compare(e, err);
		if (rc)
			err_wrap(err, "edits of seed %" PRIu64 ", step %d of %d", seed, i + 1, n_steps);
	}
	for (int i = 0; i < N_EDIT_KINDS; i++)
		counts->n_edits[i] += e->counts.n_edits[i];
	counts->n_reindexes += e->counts.n_reindexes;
	counts->n_cut += e->counts.n_cut;
	counts->n_others += e->counts.n_others;
	counts->n_compared += e->counts.n_compared;
	counts->n_tokens += e->counts.n_tokens;
	counts->kept_tokens += e->counts.kept_tokens;
	edits_free(e);
	return rc;
}
