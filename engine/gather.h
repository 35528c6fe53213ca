/*
 * Latents that stay where they are until a layer attends to them: the records of a session's attached tokens, in slots.
 *
 * A slot holds a record: one position's rows in all layers of a group. Every group has as many slots as any other: a
 * token asks each of them for as many records, one group after another, and in one pool for all a group would find at
 * its next turn that the others have just taken the slots of what it needs again. Within a group the record that was
 * asked for longest ago gives way.
 *
 *     nowhere --fetched--> in a slot --evicted--> nowhere
 *        |                     |
 *        '------ lost ---------'  the source cannot give it, and the 64 tokens of its span wait to be computed again
 *                  |
 *                  '--computed--> the session's own, for good
 *
 * Slots are the first rows of a layer's array; position t of the session's own is row n_slots + t. What is attached and
 * not in a slot has no row, so that an array's middle costs address space and no memory.
 *
 * Private to engine; engine thread.
 */
#ifndef QUIRE_ENGINE_GATHER_H
#define QUIRE_ENGINE_GATHER_H

#include "engine/internal.h"

struct gather;

/* Slots for n tokens of an empty session in at most so many bytes (0: no limit); 0 slots for a model that attends to
 * everything. ERR_TOO_LARGE, with the bytes it takes, when one token's choice would not fit. */
int gather_new(struct gather **out, struct session *s, const struct latent_source *source, int64_t n, size_t bytes,
	       struct err *err);
/* Takes NULL. */
void gather_free(struct gather *g);

int32_t gather_slots(const struct gather *g);
int64_t gather_n_tokens(const struct gather *g);
void gather_count(const struct gather *g, struct session_gathers *out);

/* What is not attended to by index comes at once: index keys of all tokens, and the records of a model without an
 * indexer, into rows for which there is room. Spans that the source cannot give are lost. */
int gather_load(struct gather *g, struct err *err);

/* Rows for the choice of tokens first .. of the pass, which end at *n tokens at most: as many of them as the slots hold
 * together, at least one, and *n says how many. rows [*n], in the pass's scratch, says which rows each attends to. When the
 * source fails the session is as before, and knows what it lost. */
int gather_rows(struct pass *p, int32_t layer, int64_t first, int64_t *n, const struct selection **rows, struct err *err);

/* The lowest span that is lost: false, there is none. */
bool gather_lost(const struct gather *g, int64_t *first, int64_t *n);
/* The lowest lost span is being computed: the session's own rows count from now on. failed: it is lost again. */
void gather_own(struct gather *g, int64_t first);
void gather_own_failed(struct gather *g, int64_t first);

/* Positions from n on are no longer attached. */
void gather_truncate(struct gather *g, int64_t n);

#endif
