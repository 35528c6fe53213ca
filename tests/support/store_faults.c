#include "tests/support/store_faults.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/cache.h"
#include "cache/check.h"
#include "config/mem.h"
#include "engine/experts.h"
#include "engine/model.h"
#include "engine/recall.h"
#include "tests/support/fake_io.h"
#include "tests/support/file_faults.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_ingest.h"

const char *const fault_work_names[N_FAULT_WORKS] = {"ingest", "resume", "query", "experts"};
const char *const fault_outcome_names[N_FAULT_OUTCOMES] = {"not_met", "void", "harmless", "mended", "refused"};

/* data: what goes wrong is an operation of struct io, of a segment or of the model's files, otherwise a system call on the index or a scratch file. lies:
 * nobody says that it went wrong. once: it cannot last. */
static const struct kind {
	const char *name;
	bool data;
	enum fake_fault operation;
	enum file_fault call;
	int error;
	bool lies, once;
} kinds[] = {
	{"EIO", true, FAKE_ERROR, .error = EIO},
	{"ENOSPC", true, FAKE_ERROR, .error = ENOSPC},
	{"EINTR", true, FAKE_ERROR, .error = EINTR, .once = true},
	{"short", true, FAKE_SHORT},
	{"zero-length", true, FAKE_ZERO},
	{"flipped bit in a read", true, FAKE_FLIP, .lies = true},
	{"flipped bit in a write", true, FAKE_ROT, .lies = true},
	{"swapped extents", true, FAKE_SWAP, .lies = true},
	{"stale completion", true, FAKE_STALE, .lies = true},
	{"late completion", true, FAKE_LATE, .once = true},
	{"completed twice", true, FAKE_TWICE, .lies = true},
	{"a stranger's completion", true, FAKE_STRANGER, .lies = true},
	{"more than was asked for", true, FAKE_LONG, .lies = true},
	{"EIO of a call", .call = FILE_ERROR, .error = EIO},
	{"ENOSPC of a call", .call = FILE_ERROR, .error = ENOSPC},
	{"EINTR of a call", .call = FILE_ERROR, .error = EINTR, .once = true},
	{"short call", .call = FILE_SHORT},
	{"zero-length call", .call = FILE_ZERO},
	{"flipped bit in a call", .call = FILE_FLIP, .lies = true},
	{"swapped pages", .call = FILE_SWAP, .lies = true},
	{"stale call", .call = FILE_STALE, .lies = true},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

enum { LINES = 12, LATENT_BYTES = 1 << 15, N_QUESTION = 5, INTERRUPTED_STEPS = 12 };
static const int32_t question[N_QUESTION] = {5, 6, 7, 8, 9};
#define MODEL "tests/golden/glm52" /* tiny_open's */
static const char *const files[] = {"index.sqlite", "scratch-", NULL};

struct store_faults {
	char *source, *store, *before[N_FAULT_WORKS]; /* a store in which the work begins; an ingest has none */
	char *sums;                   /* file with the checksums of experts */
	int64_t expert_bytes;         /* slots for no more experts than a token needs */
	const struct model *model;    /* of the work now */
	float *want, *got;            /* [vocab] */
	struct fake_io fake, experts; /* under the store, and under the model */
	struct file_faults calls;
	struct io_options io;
	char text[1024];
};

int store_faults_n_kinds(void)
{
	return N_KINDS;
}

const char *store_faults_kind_name(int kind)
{
	return kinds[kind].name;
}

bool store_faults_kind_lasts(int kind)
{
	return !kinds[kind].once;
}

const char *store_faults_text(const struct store_faults *f)
{
	return f->text;
}

/* ---- the work --------------------------------------------------------------------------------------------------- */

static int ingest(const struct store_faults *f, struct cache *c, int n_steps, struct err *err)
{
	const struct ingest_options opt = {.corpus = "code", .source = f->source, .max_file_bytes = 1 << 20,
					   .max_tokens = 4000, .always_checkpoint = true};
	struct ingest *in;
	int rc;

	if (ingest_prepare(&in, &opt, tiny.tokenizer, NULL, NULL, NULL, err))
		return -1;
	rc = ingest_bind(in, tiny.engine, f->model, LATENTS_BF16, c, err) || ingest_begin(in, err) ? -1 : 1;
	for (int i = 0; rc > 0 && i != n_steps; i++)
		rc = ingest_step(in, NULL, err);
	ingest_free(in);
	return rc < 0 ? -1 : 0;
}

/* The logits behind the corpus and a question; *recomputed: tokens that the store could not give. c NULL: of a session
 * that computes all of it. */
static int query(const struct model *m, struct cache *c, const struct cache_snapshot *s, float *logits,
		 int64_t *recomputed, struct err *err)
{
	const struct session_options opt = {.latents = LATENTS_BF16};
	const struct recall_options recall = {tiny.engine, m, LATENTS_BF16, LATENT_BYTES};
	struct recall_stats stats = {0};
	struct recall *r = NULL;
	struct session *session;
	int rc;

	if (session_new(&session, tiny.engine, m, &opt, err))
		return -1;
	if (c)
		rc = recall_open(&r, session, &recall, c, s, s->n_tokens, err) ||
		     recall_append(r, question, N_QUESTION, logits, NULL, err);
	else
		rc = session_append(session, s->ids, (size_t)s->n_tokens, NULL, NULL, err) ||
		     session_append(session, question, N_QUESTION, logits, NULL, err);
	if (!rc && r)
		recall_count(r, &stats);
	*recomputed = stats.recomputed_tokens;
	session_free(session);
	recall_close(r);
	return rc ? -1 : 0;
}

/* 1: wrong logits, 0: right ones, -1: an error. */
static int ask(struct store_faults *f, struct cache *c, int64_t *recomputed, struct err *err)
{
	size_t bytes = (size_t)tiny.model->config.vocab * sizeof *f->got;
	struct cache_snapshot *s;
	int rc;

	*recomputed = 0;
	if (cache_load_snapshot(c, "code", &s, err))
		return -1;
	memset(f->got, 0, bytes);
	rc = query(f->model, c, s, f->got, recomputed, err);
	cache_free_snapshot(s);
	return rc ? -1 : memcmp(f->got, f->want, bytes) != 0;
}

/* *n_damaged: what a check of every byte finds; mend: and repairs. */
static int check(struct cache *c, bool mend, int64_t *n_damaged, struct err *err)
{
	const struct cache_check_options all = {.read_share = 1};
	struct cache_repair_report mended;
	struct cache_check *k;
	int rc = cache_check_begin(&k, c, &all, err);

	if (rc)
		return -1;
	while ((rc = cache_check_step(k, err)) > 0)
		;
	*n_damaged = cache_check_report(k)->n_damaged;
	if (!rc && *n_damaged)
		err_set(err, ERR_DAMAGED, "%.300s", cache_check_report(k)->findings[0].text);
	if (!rc && mend && *n_damaged && !(rc = cache_repair(c, k, &mended, err)))
		cache_repair_clear(&mended);
	cache_check_free(k);
	return rc;
}

/* ---- one fault -------------------------------------------------------------------------------------------------- */

static int copy_store(const char *from, const char *to, struct err *err)
{
	struct stat st;

	if (!stat(to, &st))
		temp_dir_free(xstrdup(to));
	return from ? temp_dir_copy(from, to, err) : 0;
}

static struct fake_io *disk_of(struct store_faults *f, enum fault_work which)
{
	return which == FAULT_EXPERTS ? &f->experts : &f->fake;
}

static void spoil(struct store_faults *f, enum fault_work which, int kind, int nth, bool then_on)
{
	const struct kind *k = &kinds[kind];
	struct fake_io *disk = disk_of(f, which);

	f->calls = (struct file_faults){.names = files};
	if (k->data) {
		disk->fault = k->operation;
		disk->error = k->error;
		disk->nth = nth;
		disk->then_on = then_on;
	} else {
		f->calls = (struct file_faults){.names = files, .fault = k->call, .error = k->error, .nth = nth,
						.then_on = then_on};
	}
	file_faults_use(&f->calls);
}

static bool was_met(struct store_faults *f, enum fault_work which, int kind, int nth)
{
	return (kinds[kind].data ? disk_of(f, which)->n_begun : f->calls.n_calls) >= nth;
}

static bool has_happened(struct store_faults *f, enum fault_work which, int kind)
{
	return (kinds[kind].data ? disk_of(f, which)->n_spoiled : f->calls.n_spoiled) > 0;
}

static void heal(struct store_faults *f)
{
	file_faults_use(NULL);
	f->fake = (struct fake_io){0};
	f->experts = (struct fake_io){0};
}

/* The model with its experts on disk, their checksums known. */
static int open_experts(struct store_faults *f, struct model **out, struct err *err)
{
	const struct experts_options experts = {.bytes = f->expert_bytes, .sums_path = f->sums, .backend = &fake_io_backend,
						.backend_state = &f->experts};
	const struct model_options opt = {.experts = &experts};

	return model_open(out, MODEL, &opt, err);
}

/* Says what the user can find: a file of the store or of the model, or what was not in it. */
static bool is_clear(const struct store_faults *f, const struct err *err)
{
	return err->code && (strstr(err->text, f->store) || strstr(err->text, MODEL) || strstr(err->text, "corpus") ||
			     strstr(err->text, "snapshot"));
}

/* On a store that is open. As ask. */
static int work_in(struct store_faults *f, struct cache *c, enum fault_work which, int64_t *recomputed, struct err *err)
{
	if (which == FAULT_QUERY)
		return ask(f, c, recomputed, err);
	if (ingest(f, c, -1, err))
		return -1;
	return which == FAULT_EXPERTS ? ask(f, c, recomputed, err) : 0;
}

/* The work, with its fault. 0: done, -1: refused in clear words, -2: something that may never be, in *err. */
static int work(struct store_faults *f, enum fault_work which, int kind, int nth, bool then_on, int64_t *recomputed,
		struct err *err)
{
	struct model *m = NULL;
	struct cache *c = NULL;
	int rc;

	*recomputed = 0;
	if (which == FAULT_EXPERTS && open_experts(f, &m, err))
		return -2;
	f->model = m ? m : tiny.model;
	spoil(f, which, kind, nth, then_on);
	rc = cache_open_with(&c, f->store, &f->io, err);
	if (!rc)
		rc = work_in(f, c, which, recomputed, err);
	cache_close(c);
	model_close(m);
	f->model = tiny.model;
	if (rc > 0) {
		err_set(err, ERR_FAILED, "wrong logits");
		return -2;
	}
	if (rc && !is_clear(f, err)) {
		err_wrap(err, "an error that names nothing");
		return -2;
	}
	return rc;
}

/* On a sound disk again. done: the work said that it was. */
static int aftermath(struct store_faults *f, const struct kind *k, enum fault_work which, bool done, bool *mended,
		     struct err *err)
{
	struct cache *c;
	int64_t recomputed, n_damaged;
	int rc;

	if (cache_open_with(&c, f->store, &f->io, err))
		return k->lies && which != FAULT_QUERY && is_clear(f, err) ? 0 : err_wrap(err, "open, on a sound disk");
	/* What a question finds is right, or said not to be there. */
	rc = ask(f, c, &recomputed, err);
	*mended |= recomputed > 0;
	if (rc > 0)
		err_set(err, ERR_FAILED, "wrong logits, on a sound disk");
	else if (rc && !k->lies && (which == FAULT_QUERY || done))
		err_wrap(err, "a question, on a sound disk");
	else
		rc = 0;
	if (!rc && !k->lies && which != FAULT_QUERY && (check(c, false, &n_damaged, err) || n_damaged))
		rc = err_wrap(err, "check, on a sound disk");
	/* A repair and the same ingest again make it whole, unless the index itself is no more, which is said. */
	if (!rc && (check(c, true, &n_damaged, err) || ingest(f, c, -1, err)))
		rc = k->lies && is_clear(f, err) ? 1 : err_wrap(err, "repair and ingest, on a sound disk");
	if (!rc && (check(c, false, &n_damaged, err) || n_damaged))
		rc = err_wrap(err, "check, after a repair and an ingest");
	if (!rc && ((rc = ask(f, c, &recomputed, err)) || recomputed))
		rc = rc < 0 ? -1 : err_set(err, ERR_FAILED, "after a repair and an ingest %s",
					   rc ? "the logits are wrong" : "tokens are computed again");
	cache_close(c);
	return rc > 0 ? 0 : rc;
}

int store_faults_try(struct store_faults *f, enum fault_work which, int kind, int nth, bool then_on,
		     enum fault_outcome *outcome, struct err *err)
{
	const struct kind *k = &kinds[kind];
	int64_t recomputed;
	bool mended, met, happened;
	int rc;

	*outcome = FAULT_NOT_MET;
	if (which == FAULT_EXPERTS && !k->data)
		return 0;
	if (copy_store(f->before[which], f->store, err))
		return -1;
	*err = (struct err){0};
	heal(f); /* the counts begin here */
	rc = work(f, which, kind, nth, then_on, &recomputed, err);
	met = was_met(f, which, kind, nth);
	happened = has_happened(f, which, kind);
	heal(f);
	if (!met && !rc)
		return 0;
	if (rc == -1)
		snprintf(f->text, sizeof f->text, "%s", err->text);
	mended = recomputed > 0;
	*outcome = rc ? FAULT_REFUSED : FAULT_HARMLESS;
	if (rc == -2 || aftermath(f, k, which, !rc, &mended, err))
		return err_wrap(err, "%s, call %d%s: %s", fault_work_names[which], nth, then_on ? " and all that follow" : "",
				k->name);
	if (mended && !rc)
		*outcome = FAULT_MENDED;
	if (!happened && !rc && !mended)
		*outcome = FAULT_VOID;
	return 0;
}

/* ---- what they begin with --------------------------------------------------------------------------------------- */

/* A store after so many steps of an ingest, -1: all of it. */
static int make_before(struct store_faults *f, enum fault_work which, int n_steps, struct err *err)
{
	struct cache *c;
	int rc;

	if (cache_open_with(&c, f->before[which], &f->io, err))
		return -1;
	rc = ingest(f, c, n_steps, err);
	cache_close(c);
	return rc;
}

/* What a question gets that computes all of it, and that the store gives the same. */
static int find_truth(struct store_faults *f, struct err *err)
{
	struct cache_snapshot *s;
	int64_t recomputed;
	struct cache *c;
	int rc;

	if (cache_open_with(&c, f->before[FAULT_QUERY], &f->io, err))
		return -1;
	rc = cache_load_snapshot(c, "code", &s, err);
	if (!rc) {
		rc = query(f->model, NULL, s, f->want, &recomputed, err);
		cache_free_snapshot(s);
	}
	if (!rc && ((rc = ask(f, c, &recomputed, err)) || recomputed))
		rc = rc < 0 ? -1 : err_set(err, ERR_FAILED, "without a fault the store gives other logits");
	cache_close(c);
	return rc;
}

/* What every expert's checksum is, and how much the fewest slots take. */
static int note_experts(struct store_faults *f, struct err *err)
{
	struct experts_stats stats;
	struct model *m;
	int rc;

	f->expert_bytes = 1 << 30;
	if (open_experts(f, &m, err))
		return -1;
	rc = experts_verify(m->experts, NULL, NULL, err);
	experts_stats(m->experts, &stats);
	f->expert_bytes = (m->config.experts_per_token + 1) * stats.slot_bytes;
	model_close(m);
	f->experts = (struct fake_io){0};
	return rc;
}

int store_faults_open(struct store_faults **out, const char *dir, struct err *err)
{
	struct store_faults *f = xcalloc(1, sizeof *f);
	size_t vocab = (size_t)tiny.model->config.vocab;
	char line[64], text[LINES * 64] = "";

	f->source = temp_path(dir, "source");
	f->store = temp_path(dir, "store");
	f->sums = temp_path(dir, "sums");
	f->model = tiny.model;
	f->before[FAULT_RESUME] = temp_path(dir, "interrupted");
	f->before[FAULT_QUERY] = temp_path(dir, "whole");
	f->want = xcalloc(vocab, sizeof *f->want);
	f->got = xcalloc(vocab, sizeof *f->got);
	f->io = (struct io_options){.backend = &fake_io_backend, .backend_state = &f->fake, .depth = 8};
	for (int i = 0; i < LINES; i++) {
		snprintf(line, sizeof line, "int alpha_%d = %d;\n", i, i * i);
		strcat(text, line);
	}
	if (mkdir(f->source, 0700)) {
		err_errno(err, errno, "make %s", f->source);
		store_faults_close(f);
		return -1;
	}
	free(temp_text(f->source, "a.c", text));
	if (note_experts(f, err) || make_before(f, FAULT_RESUME, INTERRUPTED_STEPS, err) || make_before(f, FAULT_QUERY, -1, err) ||
	    find_truth(f, err)) {
		store_faults_close(f);
		return -1;
	}
	*out = f;
	return 0;
}

void store_faults_close(struct store_faults *f)
{
	if (!f)
		return;
	file_faults_use(NULL);
	for (int i = 0; i < N_FAULT_WORKS; i++)
		free(f->before[i]);
	free(f->source);
	free(f->store);
	free(f->sums);
	free(f->want);
	free(f->got);
	free(f);
}
