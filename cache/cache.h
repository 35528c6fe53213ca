/*
 * The latent store: what survives a restart. Corpora, their snapshots, documents, and the latents of their tokens.
 *
 * The store knows bytes, not models: a `cache_layout` says how many groups there are and how many bytes a record
 * has. Tokens come in spans of 64; a span is named by a key that chains over all tokens before it, so equal
 * beginnings are shared between snapshots and corpora and nothing can be reused where it does not belong.
 *
 * On disk (format 5): segment files, preallocated and written once; index.sqlite (WAL, synchronous=FULL) names what
 * exists. Spans written together are a run: one extent for each group (its blocks, packed), one for each index layer
 * (its keys), and one with all their checksums, 64 for each block and one for each span of an index layer. Extents
 * begin and end on 4 KiB. Order of a write: data written, data synced, then one transaction; a crash leaves space to
 * reuse, never a row that lies. Every read is verified against the checksums of its records.
 *
 * One process has the store open (ERR_BUSY otherwise, naming the holder's pid). Everything here belongs to the
 * engine thread; cache_reader gives other threads their own read-only view of the index.
 */
#ifndef QUIRE_CACHE_CACHE_H
#define QUIRE_CACHE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

enum { CACHE_SPAN_TOKENS = 64, CACHE_KEY_BYTES = 32 };

struct cache_layout {
	int32_t n_groups;
	const uint32_t *record_bytes;   /* [n_groups] bytes of one token's record */
	int32_t n_index_layers;
	uint32_t index_key_bytes;       /* of one token in one index layer */
};

struct span_key {
	uint8_t bytes[CACHE_KEY_BYTES];
};

/* BLAKE2b-256 of (identity, parent, ids as little-endian uint32). parent NULL: the first span, 32 zeros. */
void span_key_make(struct span_key *key, const uint8_t identity[32], const struct span_key *parent,
		   const int32_t *ids, int32_t n);

/* The directory of a store is a directory, this user's, and not open to everybody; ERR_NOT_FOUND: it is not there.
 * Any thread. */
int cache_check_directory(const char *dir, struct err *err);

struct cache;

/* Open or create the store in dir (created with mode 0700, files 0600). A store of a newer format, or one that is
 * world-accessible, is refused. */
int cache_open(struct cache **out, const char *dir, struct err *err);
/* The same, its bytes read and written as `io` says (offload/io.h), which must outlive the store: tests fail reads and
 * writes so. */
struct io_options;
int cache_open_with(struct cache **out, const char *dir, const struct io_options *io, struct err *err);
/* Takes NULL. */
void cache_close(struct cache *c);

/*
 * Writing spans at once (run.h: part by part). `records` holds, for each group, the records of n_tokens consecutive tokens (token-major), and
 * `index_keys` for each index layer their keys. Whole call = one durable step: afterwards every span of it is
 * found by cache_has_span even after a power cut; before, none is. Spans that exist already are left alone,
 * damaged ones are replaced. n_tokens need not be a multiple of 64 only when these are the last tokens of a snapshot.
 *
 * The spans are pending for the corpus: kept, across restarts too, until it commits a snapshot or an ingest of it
 * begins whose tokens begin differently. After a failed sync or commit nobody knows what is on disk, so this handle
 * writes no more and says why; reads go on.
 */
int cache_write_spans(struct cache *c, const char *corpus, const struct cache_layout *layout,
		      const uint8_t identity[32], const struct span_key *parent, const int32_t *ids, int32_t n_tokens,
		      const uint8_t *const *records, const uint8_t *const *index_keys, struct err *err);

/* Begin an ingest of these tokens: whatever of their beginning is in the store, whoever computed it, becomes pending
 * for the corpus, so that it stays; other pending spans of the corpus go. *known as cache_known_prefix. */
int cache_begin_ingest(struct cache *c, const char *corpus, const uint8_t identity[32], const int32_t *ids, int64_t n,
		       int64_t *known, struct err *err);

/* Found, and not known to be damaged. */
bool cache_has_span(struct cache *c, const struct span_key *key);

/* Tokens at the beginning of ids whose spans are all in the store: a multiple of 64, or n. */
int64_t cache_known_prefix(struct cache *c, const uint8_t identity[32], const int32_t *ids, int64_t n);

/*
 * Reading. One span of one group, or the index keys of one span and layer, verified: ERR_DAMAGED names the span,
 * what did not match, and the file and offset. out has n_tokens x record bytes (or index key bytes).
 */
int cache_read_records(struct cache *c, const struct span_key *key, int32_t group, uint8_t *out, size_t bytes,
		       struct err *err);
int cache_read_index_keys(struct cache *c, const struct span_key *key, int32_t index_layer, uint8_t *out,
			  size_t bytes, struct err *err);

/* Remember that a span is damaged: cache_has_span denies it from now on, and the next cache_write_spans of it takes
 * its place. */
int cache_quarantine(struct cache *c, const struct span_key *key, struct err *err);

/* A document of a snapshot: where its rendered text stands, and where each of its lines begins. */
struct cache_document {
	const char *path;               /* relative to the source, bytes as on disk */
	uint8_t content_hash[32];       /* BLAKE2b-256 of the text as read */
	int64_t first_token, n_tokens;  /* header included */
	int32_t n_lines;
	const uint32_t *line_tokens;    /* [n_lines] token, counted from first_token, in which the line begins */
};

struct cache_skipped {
	const char *path;
	const char *reason;
};

struct cache_snapshot {
	int64_t id;
	bool is_current;                /* of a loaded one: not a former one */
	const char *corpus, *source;
	const char *revision;           /* the commit of the repository there, 40 hex digits; "" or NULL: none is known */
	const uint8_t *identity;        /* [32] */
	int64_t created_s;              /* Unix time */
	int64_t n_tokens;
	const int32_t *ids;             /* [n_tokens] */
	int32_t n_documents;
	const struct cache_document *documents;
	int32_t n_skipped;
	const struct cache_skipped *skipped;
};

/* Make a snapshot the current one of its corpus, in one transaction; its spans must all be in the store. `snapshot`
 * is only read; id is assigned and returned in *id. The one before becomes a former one (history.h), unless both have
 * the same tokens: then it goes. With the snapshots that go, go the spans that nobody names any more. */
int cache_commit_snapshot(struct cache *c, const struct cache_snapshot *snapshot, int64_t *id, struct err *err);

/* The current snapshot of a corpus, whole, in memory of its own: ERR_NOT_FOUND names the nearest corpus. */
int cache_load_snapshot(struct cache *c, const char *corpus, struct cache_snapshot **out, struct err *err);
/* Takes NULL. */
void cache_free_snapshot(struct cache_snapshot *s);

/* Drop a corpus with all its snapshots, and the ingest that it was interrupted in: its space is free again as far as no
 * other corpus needs it.
 * ERR_NOT_FOUND names the nearest. */
int cache_drop_corpus(struct cache *c, const char *corpus, struct err *err);

/*
 * How many bytes spans may take; 0: no limit, as at first. A write that would go beyond takes the space of corpora that
 * were used longest ago, from their ends: their spans are computed again when they are needed. What the corpus
 * that is written needs, a pinned one, and spans that several share stay; ERR_TOO_LARGE when the rest is not enough, and
 * then nothing goes. Segment files grow in steps and keep their size, within the limit as far as its holes allow.
 */
void cache_set_limit(struct cache *c, int64_t max_bytes);
/* The corpus that is being read; NULL: none. It takes the place of the one before. */
void cache_pin(struct cache *c, const char *corpus);
/* Called as a write begins whose room only the pinned corpus can give, when that and all else that may go are enough: who
 * reads it ends that, and calls cache_pin(c, NULL). The corpus then goes like any other, as the one that was used last. NULL,
 * as at first: what is pinned stays. */
void cache_on_shortage(struct cache *c, void (*let_go)(void *ctx), void *ctx);
/* It is used at this Unix time. No such corpus: nothing happens. */
int cache_touch(struct cache *c, const char *corpus, int64_t now_s, struct err *err);

struct cache_corpus {
	char name[128];
	char *source;
	char revision[41];              /* as of the snapshot */
	uint8_t identity[32];
	int64_t snapshot_id, created_s;
	int64_t n_snapshots;            /* the current one and the former ones */
	int64_t n_tokens, n_documents, n_skipped;
	int64_t bytes;                  /* on disk, shared spans counted in each corpus */
};

/* A read-only view for any one thread: what `quire corpora` and `quire status` print while the engine works. */
struct cache_reader;
int cache_reader_open(struct cache_reader **out, const char *dir, struct err *err);
void cache_reader_close(struct cache_reader *r);
/* All corpora by name, in an array to be freed with cache_free_corpora. */
int cache_list(struct cache_reader *r, struct cache_corpus **out, size_t *n, struct err *err);
/* A snapshot of a corpus without its tokens (ids is NULL), for cache_free_snapshot: its documents, and what was
 * skipped. id 0: the current one. ERR_NOT_FOUND names the nearest corpus, or the snapshots there are. */
int cache_files(struct cache_reader *r, const char *corpus, int64_t id, struct cache_snapshot **out, struct err *err);
void cache_free_corpora(struct cache_corpus *corpora, size_t n);

struct cache_stats {
	int64_t n_corpora, n_spans, used_bytes, file_bytes;
	int64_t max_bytes;              /* 0: no limit */
	int64_t scratch_bytes;          /* of interrupted ingests, beside used_bytes; the limit does not count it */
	int64_t reads, read_bytes, damaged; /* since open; of this handle */
};
void cache_stats(struct cache *c, struct cache_stats *out);

#endif
