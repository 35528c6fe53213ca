/*
 * Ingest: a directory becomes a snapshot. Two halves, for two threads.
 *
 * ingest_prepare (ingest thread) walks, reads, orders, renders and tokenizes; it touches neither engine nor store
 * beyond what it is given. The `struct ingest` it makes is then handed to the engine thread, which binds it to the
 * store, may count what there is to do, begins, and goes step by step until it is done, with others (ingest/batch.h) or by
 * itself (ingest_step). New tokens are swept through the layers in the largest parts that the scratch memory holds
 * (engine/sweep.h), with one group of layers' latents in memory at a time; a step is one of the sweep's, so a question can be
 * served between steps. An ingest that is started again after a kill -9 goes on where the store ends, and in a part at the
 * layer of its last checkpoint: one is made at a group's end once 20 times what the last one took has passed since, and a
 * second at the least.
 */
#ifndef QUIRE_INGEST_INGEST_H
#define QUIRE_INGEST_INGEST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/cache.h"
#include "config/err.h"
#include "engine/engine.h"
#include "engine/tokenizer.h"

struct ingest_options {
	const char *corpus;
	const char *source;             /* directory, absolute */
	const char *ref;                /* read the files of this branch, tag or commit of the repository there, not those
	                                   on disk; NULL: those on disk. The corpus's source is then DIRECTORY@REF */
	int64_t max_file_bytes;         /* larger files are skipped, with the reason */
	int64_t max_tokens;             /* of the context: more is refused (ERR_TOO_LARGE) before anything is computed,
	                                   with the largest directories and an --exclude that would fit */
	const char *const *exclude;     /* globs, NULL-terminated; may be NULL */
	const char *const *include;     /* beats every skip but "not a regular file" and "outside the tree" */
	size_t scratch_bytes;           /* of a sweep: sweep_plan's budget; 0: no limit */
	bool always_checkpoint;         /* wherever one can be made, whatever it takes */
	size_t state_piece_bytes;       /* of a checkpoint, a step; 0: some megabytes */
	/* The corpus as it is; NULL: the first time. Its order of documents is kept as far as it goes (ingest/order.h).
	 * Snapshots are read only during ingest_prepare. */
	const struct cache_snapshot *previous;
	bool full;                      /* sort anew: nothing of the former order is kept */
	/* Follow the order of this snapshot, perhaps of another corpus, whatever `full` says; may be NULL. */
	const struct cache_snapshot *order_from;
};

struct ingest_progress {
	enum ingest_phase { INGEST_WALK, INGEST_TOKENIZE, INGEST_PREFILL, INGEST_COMMIT, INGEST_DONE } phase;
	int64_t n_files, n_skipped, read_bytes;
	int64_t n_tokens, reused_tokens, done_tokens; /* done: in the store, the reused ones among them */
	int64_t swept_tokens;           /* beyond done: computed and not yet written; a token in the middle of its layers
	                                   counts for the share of them that it has been through */
	int32_t resumed_layer;          /* where the part under way went on after an interruption; 0: nowhere */
	int32_t n_layers;               /* of the model; 0 until a part has begun */
};

struct ingest;

/* `cancel` is looked at between files; set: ERR_CANCELLED. `report`, called now and then from this thread, may be
 * NULL. */
int ingest_prepare(struct ingest **out, const struct ingest_options *opt, const struct tokenizer *t,
		   const atomic_bool *cancel, void (*report)(void *ctx, const struct ingest_progress *p), void *ctx,
		   struct err *err);

/* Engine thread, first: bind to engine, model and store, and see what is there already. Changes nothing. */
int ingest_bind(struct ingest *in, struct engine *e, const struct model *m, enum latent_format format,
		struct cache *c, struct err *err);

/* What there is to do, known before anything is computed. */
struct ingest_counts {
	int64_t n_documents, n_skipped, read_bytes;
	int64_t n_kept_documents;       /* at the beginning, unchanged and with nothing changed before them */
	int64_t n_tokens;               /* kept + new */
	int64_t kept_tokens;            /* in the store already */
	int64_t new_tokens;             /* to be computed */
	int64_t new_bytes;              /* that these will take in the store */
	/* What is read, or what is checked out where it is read: 40 hex digits, "" where there is no repository. */
	char commit[41];
	const char *order_from;         /* CORPUS@ID whose order is followed; NULL: its own; valid until ingest_free */
	int64_t n_followed_documents;   /* that stand in it, before all others */
	const char *history;            /* why the numbers of changes are not all; NULL; valid until ingest_free */
};

enum { INGEST_EXAMPLES = 3 };

struct ingest_skip_kind {
	char kind[32];                  /* "binary", "ignored", ...: ingest/skip.h has them all */
	int64_t n;
	const char *examples[INGEST_EXAMPLES]; /* the first ones, NULL where there are fewer; valid until ingest_free */
};

/* Engine thread, after ingest_bind and before ingest_begin. */
void ingest_count(const struct ingest *in, struct ingest_counts *counts);
/* The most frequent first; free() it. */
struct ingest_skip_kind *ingest_skip_kinds(const struct ingest *in, size_t *n);

/* Engine thread, after ingest_bind: from now on what is there of this corpus's beginning stays. */
int ingest_begin(struct ingest *in, struct err *err);

void ingest_progress(const struct ingest *in, struct ingest_progress *progress);

/* The snapshot, when all of its tokens are in the store: 0. 1: some have to be computed first. */
int ingest_commit(struct ingest *in, struct err *err);

/* Of one that shares its sweeps with no other: a step of a sweep, or a commit of what it computed, or of the snapshot. Returns
 * 1 when there is more to do, 0 when the snapshot is committed, -1 on error. */
int ingest_step(struct ingest *in, struct ingest_progress *progress, struct err *err);

/* What was left out and why, valid until ingest_free. */
const struct cache_skipped *ingest_skipped(const struct ingest *in, int32_t *n);

/* Takes NULL; any thread that holds it, from ingest_begin on the engine thread, while the store is open. What was computed
 * and made durable stays in the store. */
void ingest_free(struct ingest *in);

#endif
