/*
 * Former snapshots of corpora. A commit makes its snapshot the current one; those before it stay, as many as
 * cache_keep_snapshots says, and share their spans with it and with each other. What a former snapshot alone needs is
 * the first to give way to a limit of the store (cache_set_limit): its ids stay, and it is computed again when it is
 * asked about.
 */
#ifndef QUIRE_CACHE_HISTORY_H
#define QUIRE_CACHE_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/cache.h"

/* How many former snapshots of a corpus stay from the next commit on; 0, as at first: none. Engine thread. */
void cache_keep_snapshots(struct cache *c, int64_t n);

struct cache_history {
	int64_t id;                     /* ascending in time, and never used again */
	bool is_current;
	char *source;
	char revision[41];
	uint8_t identity[32];
	int64_t created_s;
	int64_t n_tokens, n_documents, n_skipped;
	int64_t own_tokens, own_bytes;  /* that no other snapshot needs: they come back when it alone goes */
	int64_t missing_tokens;         /* evicted or damaged: computed again when they are needed */
	int64_t used_s;                 /* it was asked last, or made */
	int64_t bytes;                  /* of all its tokens, whoever else needs them */
	/* How a token lies in it. */
	int32_t n_groups;
	uint32_t *record_bytes;         /* [n_groups] */
	int32_t n_index_layers;
	uint32_t index_key_bytes;       /* in one index layer */
};

/* All snapshots of a corpus, the newest first, to be freed with cache_free_history. ERR_NOT_FOUND names the nearest
 * corpus. */
int cache_list_snapshots(struct cache_reader *r, const char *corpus, struct cache_history **out, size_t *n,
			 struct err *err);
void cache_free_history(struct cache_history *list, size_t n);

/* As cache_load_snapshot, of any snapshot; id 0: the current one. ERR_NOT_FOUND names those that there are. Engine
 * thread. */
int cache_load_snapshot_of(struct cache *c, const char *corpus, int64_t id, struct cache_snapshot **out, struct err *err);

/* The former snapshot that is being read beside what cache_pin names, and which therefore does not make room; 0: none,
 * and so after each cache_pin. Engine thread. */
void cache_pin_former(struct cache *c, int64_t id);

/* Forget former snapshots, in one transaction: those of ids, or, when n_ids is 0, all but the newest `keep`. The current
 * one is refused (ERR_USAGE), an unknown one too (ERR_NOT_FOUND), and then nothing goes. *forgotten [n_ids or less] are
 * the ids of those that went; free() it. Engine thread. */
int cache_forget(struct cache *c, const char *corpus, const int64_t *ids, size_t n_ids, int64_t keep,
		 int64_t **forgotten, size_t *n_forgotten, struct err *err);

#endif
