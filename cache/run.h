/*
 * Writing into the store, part by part: the records of a group and the keys of an index layer of many tokens, in any
 * order, as they are computed. Space for all of it is reserved at the beginning, so that a full disk is met before
 * anything is computed; data leaves memory as it is put; nothing of it is found by readers until the run is committed.
 *
 *     begin --> put, put, ... --> commit
 *         \--> checkpoint, now and then; after a crash begin takes it up there
 *
 * Several runs may be open, of different corpora. After a failure a run can only be freed, unless its function says
 * otherwise. Engine thread.
 */
#ifndef QUIRE_CACHE_RUN_H
#define QUIRE_CACHE_RUN_H

#include "cache/cache.h"

struct cache_run;

/*
 * ids [n_tokens] continue the chain after parent (NULL: from the beginning); parent must be in the store, and n_tokens
 * need not be a multiple of 64 only when these are the last tokens of a snapshot. Spans that are in the store already
 * are left alone, damaged ones replaced. Everything is copied. ERR_TOO_LARGE when the limit of the store leaves no room.
 *
 * An interrupted run of the corpus, of the same identity, parent and ids, is taken up where it had its last checkpoint:
 * *next_layer > 0 is what that said, parts that were whole then are there (putting them again does nothing), others are
 * put from their beginning, and cache_run_state has the state. Otherwise *next_layer = 0, and what was interrupted goes.
 */
int cache_run_begin(struct cache_run **out, struct cache *c, const char *corpus, const struct cache_layout *layout,
		    const uint8_t identity[32], const struct span_key *parent, const int32_t *ids, int64_t n_tokens,
		    int32_t *next_layer, struct err *err);

/* Tokens first .. first + n - 1, counted from the run's first, token-major. first is a multiple of 64, n as well unless
 * it reaches the end; each token of a part is put once, in any order, those too whose spans are in the store. */
int cache_run_records(struct cache_run *r, int32_t group, int64_t first, int64_t n, const uint8_t *records,
		      struct err *err);
int cache_run_index_keys(struct cache_run *r, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
			 struct err *err);

/*
 * A checkpoint, in a call for each piece of its state of `bytes`: bytes at .. at + n - 1, ascending from 0. They are on disk
 * when the call returns. With the last ones all parts that are whole are made durable, and the run's extents and the state are
 * named in one transaction: from now on they outlive this process. Until then the checkpoint before it counts; the state
 * goes to a scratch file, alternately one of two. When a call fails, this checkpoint is over, at = 0 begins another one,
 * and the run can go on as if it had not been asked for, unless the store takes no more writes.
 */
int cache_run_checkpoint(struct cache_run *r, int32_t next_layer, size_t bytes, size_t at, const void *piece, size_t n,
			 struct err *err);
/* The state of the checkpoint at which the run was taken up, piece by piece likewise; it is the state when all of them have
 * come. ERR_DAMAGED when it is not what was written, or has not these bytes: then cache_run_restart begins again with
 * nothing put. */
int cache_run_state(struct cache_run *r, size_t bytes, size_t at, void *piece, size_t n, struct err *err);
int cache_run_restart(struct cache_run *r, struct err *err);
/* Forget what the corpus was interrupted in, so that its space is free again; nothing happens when there is nothing.
 * A run that is open goes on without its checkpoints. */
int cache_run_forget(struct cache *c, const char *corpus, struct err *err);

/* How often the run's tokens have chosen each expert of each layer (routing.h): n_layers x n_experts, lent until the run is freed.
 * Each checkpoint and the commit put it into the store as it is then. Without this call nothing is counted. */
void cache_run_count(struct cache_run *r, const uint32_t *chosen, int32_t n_layers, int32_t n_experts);
/* What it was at the checkpoint at which the run was taken up: 1; 0: nothing was counted then; -1: it is damaged, or of another
 * shape. */
int cache_run_counted(struct cache_run *r, uint32_t *chosen, int32_t n_layers, int32_t n_experts, struct err *err);

/* Bytes that the corpus's interrupted run has reserved; 0: there is none. The next begin of the corpus has them. */
int cache_run_reserved(struct cache *c, const char *corpus, int64_t *bytes, struct err *err);

/* All tokens of every part have been put: they are synced, then found by readers, in one transaction. The spans are
 * pending for the corpus as with cache_write_spans. */
int cache_run_commit(struct cache_run *r, struct err *err);

/* Takes NULL. What was not committed is free space again, but a run that had a checkpoint waits for the next begin. */
void cache_run_free(struct cache_run *r);

#endif
