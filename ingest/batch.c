#include "ingest/batch.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "config/mem.h"
#include "ingest/part.h"

/*   choose, of each ingest in turn --> sweep, step by step --> commit, of each part in turn --> choose ...
 *                                        \--> blame: the parts end, one of them as the error has it --> choose ...
 *
 * (1) A step does one of these for one ingest, so that no question waits for all of them.
 * (2) The first ingest that lacks anything always comes along: each round makes progress or ends somebody.
 * (3) A sweep has one chunk. Else it could not go on at a checkpoint, nor make one.                                  */

struct batch {
	struct ingest **all;    /* [n] in the order in which they were added */
	int32_t n;
	struct ingest **parts;  /* [n_parts] that have one open; sequence i of the sweep is of parts[i] */
	int32_t n_parts;
	int64_t part_tokens, row_tokens; /* of them all */
	int32_t first_layer;    /* of them all */
	enum { CHOOSE, SWEEP, COMMIT } stage;
	int32_t next;           /* all[next] is to choose */
	struct sweep *sweep;    /* NULL in SWEEP: it begins now */
	bool one_by_one;        /* somebody is to blame for an error, and nobody knows who */
	struct batch_stats stats;
};

struct batch *batch_new(void)
{
	return xcalloc(1, sizeof(struct batch));
}

/* The next round, whatever was under way. */
static void choose_anew(struct batch *b)
{
	sweep_end(b->sweep);
	b->sweep = NULL;
	for (int32_t i = 0; i < b->n_parts; i++)
		part_end(b->parts[i]);
	b->n_parts = 0;
	b->part_tokens = b->row_tokens = 0;
	b->stage = CHOOSE;
	b->next = 0;
}

void batch_free(struct batch *b)
{
	if (!b)
		return;
	choose_anew(b);
	free(b->all);
	free(b->parts);
	free(b);
}

void batch_add(struct batch *b, struct ingest *in)
{
	b->all = xrealloc(b->all, (size_t)b->n + 1, sizeof *b->all);
	b->parts = xrealloc(b->parts, (size_t)b->n + 1, sizeof *b->parts);
	b->all[b->n++] = in;
}

static int32_t place_of(struct ingest *const *list, int32_t n, const struct ingest *in)
{
	for (int32_t i = 0; i < n; i++)
		if (list[i] == in)
			return i;
	return -1;
}

static void take_out(struct ingest **list, int32_t *n, int32_t i)
{
	memmove(list + i, list + i + 1, (size_t)(*n - i - 1) * sizeof *list);
	--*n;
}

void batch_remove(struct batch *b, struct ingest *in)
{
	int32_t i = place_of(b->all, b->n, in), part = place_of(b->parts, b->n_parts, in);

	if (i < 0)
		return;
	take_out(b->all, &b->n, i);
	b->next -= b->next > i;
	if (part < 0)
		return;
	if (b->stage == COMMIT) { /* the others are computed */
		take_out(b->parts, &b->n_parts, part);
		part_end(in);
	} else {
		choose_anew(b);
	}
}

int32_t batch_n(const struct batch *b)
{
	return b->n;
}

void batch_count(const struct batch *b, struct batch_stats *stats)
{
	*stats = b->stats;
}

/* It has come to its end. */
static struct ingest *ended(struct batch *b, struct ingest *in)
{
	batch_remove(b, in);
	return in;
}

/*
 * Choosing
 */

/* Whether the part of an ingest finds room beside those that were chosen before. */
static bool fits(const struct batch *b, const struct ingest *in, int64_t n_tokens)
{
	const struct part_limits *l = part_limits(in);
	struct sweep_plan plan;

	if (!b->n_parts)
		return true;
	return !b->one_by_one && b->row_tokens + part_row_tokens(in) <= l->max_tokens &&
	       !part_plan(in, b->part_tokens + n_tokens, &plan) && plan.n_chunks == 1;
}

static bool must_wait(const struct batch *b, int32_t i)
{
	for (int32_t k = 0; k < i; k++)
		if (part_waits_for(b->all[i], b->all[k]))
			return true;
	return false;
}

/* Open what was chosen, and keep it unless it goes on elsewhere. */
static int open_part(struct batch *b, struct ingest *in, int64_t n_tokens, struct err *err)
{
	int32_t next_layer = 0;
	struct err why = {0};
	int rc = part_open(in, &next_layer, &why);

	/* When the others are done there may be room for it. */
	if (rc < 0 && why.code == ERR_TOO_LARGE && b->n_parts)
		return 0;
	if (rc < 0)
		*err = why;
	if (rc <= 0)
		return rc;
	if (b->n_parts && next_layer != b->first_layer) {
		part_end(in);
		return 0;
	}
	b->first_layer = next_layer;
	b->parts[b->n_parts++] = in;
	b->part_tokens += n_tokens;
	b->row_tokens += part_row_tokens(in);
	return 0;
}

static struct ingest *choose(struct batch *b, struct err *err)
{
	int32_t i = b->next++;
	struct ingest *in = b->all[i];
	int64_t n_tokens;
	int rc = part_choose(in, &n_tokens, err);

	if (!rc && !n_tokens) {
		rc = ingest_commit(in, err);
		if (!rc)
			return ended(b, in);
		if (rc > 0) /* for the next round */
			return NULL;
	} else if (!rc && fits(b, in, n_tokens) && !must_wait(b, i)) {
		rc = open_part(b, in, n_tokens, err);
	}
	if (!rc)
		return NULL;
	part_wrap(in, err);
	return ended(b, in);
}

/*
 * Sweeping
 */

static int begin_sweep(struct batch *b, struct err *err)
{
	const struct part_limits *l = part_limits(b->parts[0]);
	const struct sweep_options opt = {.scratch_bytes = l->scratch_bytes, .first_layer = b->first_layer,
					  .always_checkpoint = l->always_checkpoint, .state_piece_bytes = l->state_piece_bytes};
	struct sweep_sequence *q = xcalloc((size_t)b->n_parts, sizeof *q);
	int rc;

	for (int32_t i = 0; i < b->n_parts; i++)
		part_sequence(b->parts[i], &q[i]);
	rc = sweep_begin(&b->sweep, q, b->n_parts, &opt, err);
	free(q);
	if (rc)
		b->sweep = NULL;
	return rc;
}

/* The sweep has failed. Whose fault is it, and what becomes of that one? */
static struct ingest *blame(struct batch *b, const struct err *why, struct err *err)
{
	struct ingest *guilty = b->n_parts == 1 ? b->parts[0] : NULL;
	enum part_fault fault = PART_SOUND;
	int32_t sequence = -1;
	int64_t bad = b->sweep ? sweep_bad_position(b->sweep, &sequence) : -1;
	int rc = -1;

	if (bad >= 0)
		guilty = b->parts[sequence];
	for (int32_t i = 0; bad < 0 && i < b->n_parts && !fault; i++)
		if ((fault = part_fault(b->parts[i])))
			guilty = b->parts[i];
	if (!guilty) {
		log_warn("%d corpora, which shared a sweep, are computed one by one: %s", b->n_parts, why->text);
		b->one_by_one = true;
	}
	choose_anew(b);
	if (!guilty)
		return NULL;
	if (bad >= 0)
		rc = part_miss(guilty, bad, why, err);
	else if (fault == PART_STATE)
		rc = part_forget(guilty, why, err);
	else
		*err = *why;
	if (!rc)
		return NULL;
	part_wrap(guilty, err);
	return ended(b, guilty);
}

static void end_sweep(struct batch *b)
{
	struct sweep_stats stats;

	sweep_count(b->sweep, &stats);
	b->stats.n_expert_reads += stats.n_expert_reads;
	sweep_end(b->sweep);
	b->sweep = NULL;
	b->stage = COMMIT;
}

static struct ingest *step_sweep(struct batch *b, struct err *err)
{
	bool begins = !b->sweep;
	struct err why = {0};
	int more;

	if (begins) {
		b->stats.n_sweeps++;
		if (b->n_parts > b->stats.most_together)
			b->stats.most_together = b->n_parts;
	}
	if ((begins && begin_sweep(b, &why)) || (more = sweep_step(b->sweep, &why)) < 0)
		return blame(b, &why, err);
	if (begins && b->n_parts > 1)
		log_info("%d corpora share a sweep tokens=%" PRId64, b->n_parts, b->part_tokens);
	for (int32_t i = 0; i < b->n_parts; i++) {
		if (begins)
			part_begun(b->parts[i], b->first_layer);
		part_swept(b->parts[i], (int32_t)(sweep_token_layers(b->sweep) / b->part_tokens));
	}
	if (!more)
		end_sweep(b);
	return NULL;
}

static struct ingest *commit_part(struct batch *b, struct err *err)
{
	struct ingest *in = b->parts[0];
	int rc = part_commit(in, err);

	take_out(b->parts, &b->n_parts, 0);
	if (!rc)
		return NULL;
	part_wrap(in, err);
	return ended(b, in);
}

struct ingest *batch_step(struct batch *b, struct err *err)
{
	struct ingest *end = NULL;

	assert(b->n);
	switch (b->stage) {
	case CHOOSE:
		end = choose(b, err);
		if (b->next == b->n && b->n_parts)
			b->stage = SWEEP;
		else if (b->next == b->n)
			b->next = 0;
		break;
	case SWEEP:
		end = step_sweep(b, err);
		break;
	case COMMIT:
		end = commit_part(b, err);
		break;
	}
	if (b->stage == COMMIT && !b->n_parts)
		choose_anew(b);
	return end;
}
