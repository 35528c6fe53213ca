/*
 * A chain of spans opened for reading: where each lies, and its checksums in memory. What a question reads: the index
 * keys from one end to the other, and of the records those that it selects.
 *
 * Reads of neighbours, and of what lies nearly beside each other, become one; what is asked for at once is in flight at
 * once, and is verified while the rest is still coming. Nothing that was not verified is handed out. Engine thread; the
 * store must outlive the view, and nothing that the view names may be dropped while it is open (cache_pin, or a
 * pending row, sees to that). Spans written after it was opened are not its own: it reads what it found.
 */
#ifndef QUIRE_CACHE_VIEW_H
#define QUIRE_CACHE_VIEW_H

#include "cache/cache.h"

struct cache_view;

/*
 * n_tokens of ids, from the beginning. Reads and holds the checksum pages: 8 bytes for each token and group. *n_whole:
 * tokens at the beginning whose spans are all found and whose checksum pages could be read. 0 when it worked, even if
 * *n_whole < n_tokens: a span that is missing is a hole, and what is behind it is read like what is before. Where
 * cache_has_span says that the span of a hole is there, it is its checksum pages that could not be read, and the log says
 * why.
 */
int cache_view_open(struct cache_view **out, struct cache *c, const uint8_t identity[32], const int32_t *ids,
		    int64_t n_tokens, int64_t *n_whole, struct err *err);
/* Takes NULL. */
void cache_view_close(struct cache_view *v);

/* Tokens first .. first + n - 1, token-major, verified. After a failure `out` holds nothing to be used. ERR_DAMAGED:
 * *bad (if not NULL) is a position whose span must be quarantined. ERR_NOT_FOUND, or ERR_IO with a position in *bad: that is in
 * a hole. -1 after other errors. */
int cache_view_records(struct cache_view *v, int32_t group, int64_t first, int64_t n, uint8_t *out, int64_t *bad,
		       struct err *err);
/* Keys are verified span by span: those at both ends are read whole. */
int cache_view_index_keys(struct cache_view *v, int32_t index_layer, int64_t first, int64_t n, uint8_t *out,
			  int64_t *bad, struct err *err);
/* Takes keys of tokens at .. at + n - 1, which are lent for the call. It must not use the store. Not 0, with err set and, where
 * it is one token's fault, *bad, ends the reading. */
typedef int cache_view_taker(void *ctx, int32_t index_layer, int64_t at, int64_t n, const uint8_t *keys, int64_t *bad,
			     struct err *err);
/* The same of n_layers >= 1 index layers, without a copy: take is called while the rest is on its way, each token of each
 * layer once, in any order of parts; but CACHE_VIEW_STRETCH tokens of all layers are asked for before the next ones, so that
 * what a taker works out of positions serves all layers. After a failure some parts have been taken. */
enum { CACHE_VIEW_STRETCH = 8192 };
int cache_view_take_index_keys(struct cache_view *v, int32_t first_layer, int32_t n_layers, int64_t first, int64_t n,
			       cache_view_taker *take, void *ctx, int64_t *bad, struct err *err);
/* Records of n ascending positions of one group, coalesced reads, each verified. */
int cache_view_gather(struct cache_view *v, int32_t group, const int32_t *positions, int64_t n, uint8_t *out,
		      int64_t *bad, struct err *err);

/* The span of a position, a hole's too. */
const struct span_key *cache_view_key(const struct cache_view *v, int64_t position);

struct cache_view_stats {
	int64_t sum_bytes, key_bytes, record_bytes; /* wanted: of checksums, index keys, records */
	int64_t read_bytes;                         /* of the device for them: with gaps, and what alignment adds */
	int64_t n_reads;
};
void cache_view_stats(const struct cache_view *v, struct cache_view_stats *out);

#endif
