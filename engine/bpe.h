/*
 * Byte-pair encoding: the token table, the merges, and the loop that applies them to one pre-token.
 *
 * A pre-token begins as its bytes. While two neighbours have a merge, the pair of the lowest rank is merged, the
 * leftmost first among equals. Built once (bpe_token, bpe_merge, bpe_finish), read-only from then on.
 */
#ifndef QUIRE_ENGINE_BPE_H
#define QUIRE_ENGINE_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "engine/tokenizer.h"

enum {
	BPE_MAX_IDS = 1 << 22,
	BPE_MAX_TOKEN_BYTES = 4096,
};

enum bpe_kind {
	BPE_NONE,     /* no token has this id */
	BPE_ORDINARY, /* what text becomes */
	BPE_ADDED,    /* matched before BPE, or emitted by name; never what BPE makes of a text */
	BPE_SPECIAL,  /* an added token that skip-special decoding leaves out */
};

struct bpe;

/* Room is made for so many tokens and merges; n_ids is above every id. */
struct bpe *bpe_new(int32_t n_ids, size_t n_tokens, size_t n_merges);
/* Takes NULL. */
void bpe_free(struct bpe *b);

/* The caller has checked that the id is in range and free, and that no ordinary token has the same bytes. */
void bpe_token(struct bpe *b, int32_t id, const char *piece, size_t bytes, enum bpe_kind kind);
/* The ordinary token with these bytes; -1: there is none. */
int32_t bpe_find(const struct bpe *b, const char *piece, size_t bytes);
/* The rank of a pair, -1 if it has none yet; then it gets this one. Ranks and tokens as bpe_find gave them. */
int64_t bpe_merge(struct bpe *b, int32_t left, int32_t right, int32_t merged, uint32_t rank);
/* After the last merge. Fails if a byte has no token. ignore_merges: a pre-token that is a token is not merged. */
int bpe_finish(struct bpe *b, int ignore_merges, struct err *err);

int32_t bpe_n_ids(const struct bpe *b);
enum bpe_kind bpe_kind(const struct bpe *b, int32_t id);
/* NULL if the id has no token. */
const char *bpe_piece(const struct bpe *b, int32_t id, size_t *bytes);

/* Room for one thread's merging, and its memory of the short pre-tokens met; sized for a text of so many bytes. */
struct bpe_room;
struct bpe_room *bpe_room_new(size_t text_bytes);
/* Takes NULL. */
void bpe_room_free(struct bpe_room *r);

/* Append the ids of one pre-token of 1 to 2^31 bytes. Fails (ERR_TOO_LARGE) only without memory for a long one. */
int bpe_encode(const struct bpe *b, struct bpe_room *r, struct ids *out, const char *piece, size_t bytes,
	       struct err *err);

#endif
