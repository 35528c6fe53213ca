/*
 * Random edits of a directory, a re-index after each few of them, and the comparison that stands behind
 * incremental ingest: what the store then holds is what a cold ingest of the same documents in the same order
 * makes in an empty one, key by key and bit by bit, and so are the logits.
 *
 * Everything follows from the seed: files, edits, when an ingest is cut off and when the store is closed and
 * opened, scratch memory and latent format. Errors say what differs; edits_run adds the seed.
 */
#ifndef QUIRE_TESTS_SUPPORT_EDITS_H
#define QUIRE_TESTS_SUPPORT_EDITS_H

#include <stdint.h>

#include "config/err.h"
#include "engine/engine.h"
#include "engine/tokenizer.h"

enum edit_kind {
	EDIT_ADD, EDIT_DELETE, EDIT_RENAME, EDIT_TOUCH, EDIT_GROW, EDIT_SHRINK, EDIT_CHANGE, EDIT_SWAP,
	N_EDIT_KINDS
};

/* "add", "delete", ... */
extern const char *const edit_names[N_EDIT_KINDS];

/* The tiny checkpoint, opened once and lent to any number of sequences. */
struct edits_model {
	struct engine *engine;
	struct model *model;
	struct tokenizer *tokenizer;
};
int edits_model_open(struct edits_model *m, struct err *err);
void edits_model_close(struct edits_model *m);

struct edits_counts {
	int64_t n_edits[N_EDIT_KINDS];
	int64_t n_reindexes, n_cut;     /* cut: ingests that were dropped in their midst */
	int64_t n_others;               /* times that a second corpus of the directory joined the store */
	int64_t n_compared;             /* snapshots compared with a cold ingest */
	int64_t n_tokens, kept_tokens;  /* over the re-indexes that were not resumed and shared nothing */
};

struct edits;

/* An empty directory and an empty store below $TMPDIR. */
struct edits *edits_new(const struct edits_model *m, uint64_t seed);
/* Takes NULL. */
void edits_free(struct edits *e);
/* Where the files are; valid until edits_free. */
const char *edits_source(const struct edits *e);
const struct edits_counts *edits_counts(const struct edits *e);

/* Some edits, then a re-index, which may be cut off, edited further and taken up again. Checked: the snapshot
 * has just the files' bytes, no document that stayed the same has swapped with another, exactly the spans
 * before the first difference were kept, and the store has no others: unless a second corpus, which comes and
 * goes, shares it. ERR_FAILED: one of these is not so. */
int edits_step(struct edits *e, struct err *err);

/* The store's snapshot against a cold ingest into an empty store that follows its order: documents, ids, keys,
 * records, index keys, and logits after it, recalled from both stores and computed. ERR_FAILED: they differ,
 * and where. */
int edits_compare(struct edits *e, struct err *err);

/* A whole sequence: n_steps steps, compared at the end and after about every third one. Adds to *counts. */
int edits_run(const struct edits_model *m, uint64_t seed, int n_steps, struct edits_counts *counts, struct err *err);

#endif
