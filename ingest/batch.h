/*
 * Ingests that are computed together. What each of them lacks goes through the layers in one sweep with what the others
 * lack, so that an expert is taken up once for all of them. Nothing else is shared: each has its own progress, its own
 * checkpoints, its own end, and the bits that it would have by itself.
 *
 * The sweeps of a batch, one after another: in the order in which the ingests were added, each comes along with its next
 * part that fits besides those before it,
 *   - into the scratch memory, which is the sweep's;
 *   - with all its tokens into the context: of so many the latents of a group may be in memory, as with one large ingest;
 *   - into the store;
 * and that goes on at the layer at which the first one does. One whose beginning is missing in an ingest before it waits
 * until that has it. The others come along next time.
 *
 * What ends an ingest ends no other: a sweep of which one has failed, or was taken out, is ended, and in the next one the others
 * go on at their last checkpoint, if they have one. An error that is nobody's is looked for one by one.
 *
 * Engine thread.
 */
#ifndef QUIRE_INGEST_BATCH_H
#define QUIRE_INGEST_BATCH_H

#include "ingest/ingest.h"

struct batch;

struct batch *batch_new(void);
/* Takes NULL. What was not committed ends as with batch_remove. */
void batch_free(struct batch *b);

/* One that has begun; it stays the caller's. All are bound to the same engine, model, latent format and store, and have
 * the same options of a sweep. */
void batch_add(struct batch *b, struct ingest *in);
/* Before ingest_free of one that has not ended. Nothing happens when it is not in the batch. */
void batch_remove(struct batch *b, struct ingest *in);
int32_t batch_n(const struct batch *b);

/* A step of about that of a sweep. One that came to its end with it, or NULL: its snapshot is committed, or err->code
 * (0 before) and err say why not; it is not of the batch any more. There is at least one in the batch. */
struct ingest *batch_step(struct batch *b, struct err *err);

struct batch_stats {
	int64_t n_sweeps;               /* begun */
	int32_t most_together;          /* ingests in one of them */
	int64_t n_expert_reads;         /* of sweeps that came to an end, as sweep_stats has them */
};
void batch_count(const struct batch *b, struct batch_stats *stats);

#endif
