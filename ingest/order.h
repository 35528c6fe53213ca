/*
 * The order of a corpus's documents. Pure; private to ingest/.
 *
 * A latent depends on every token before it, so a snapshot keeps of the former one what stands before the first
 * difference, and the order decides how much that is:
 *
 *   the first time    by (number of changes, path): what rarely changes stands first
 *   afterwards        the former order without the documents that changed or went, then the changed and the new ones
 *                     by (number of changes, path); documents that did not change never swap
 *
 * A document is the same when its path (which is rendered) and its text are: a rename is a change, a touch is none.
 */
#ifndef QUIRE_INGEST_ORDER_H
#define QUIRE_INGEST_ORDER_H

#include <stddef.h>
#include <stdint.h>

#include "cache/cache.h"

struct order_document {
	const char *path;               /* no two are equal */
	const uint8_t *content_hash;    /* [32] */
	int64_t n_changes;              /* over the known history; 0 where there is none */
};

/* order[n] receives the documents' indices, the first one first. `former`, in its order, is the snapshot to follow;
 * n_former 0: the first time, or sorted anew. Returns how many documents at the beginning stand where nothing before
 * them, nor they, changed: their tokens are kept. *n_followed (may be NULL): how many stand in the former order, and
 * before all others. The result depends on nothing but the arguments' values; the order in which `documents` come does
 * not matter. */
size_t order_documents(size_t *order, const struct order_document *documents, size_t n,
		       const struct cache_document *former, size_t n_former, size_t *n_followed);

#endif
