/*
 * Bytes to tokens and back: byte-level BPE as tokenizer.json describes it.
 *
 * Encoding any byte string and decoding the ids gives the same bytes, whether they are UTF-8 or not. Valid UTF-8
 * gets the ids that the tokenizers library gives, for the forms of tokenizer.json that are accepted; anything else
 * in the file is refused by its key path, never guessed:
 *
 *   normalizer      absent, null, or a Sequence of none
 *   pre_tokenizer   ByteLevel, or a Sequence of Split (a Regex, Isolated) that ends in ByteLevel, without a prefix
 *                   space. What a pattern may contain: engine/pretokenize.h
 *   model           BPE with all 256 bytes as tokens, ignore_merges or not; no dropout, byte fallback or affixes
 *   decoder         absent, null, or ByteLevel
 *   added_tokens    without lstrip, rstrip and single_word
 *
 * post_processor, truncation and padding are not applied: what surrounds a text is the renderer's business, and
 * nothing is cut silently.
 *
 * Time is linear in the text (n log n in the length of one unbroken pre-token), stack is below 48 KiB.
 */
#ifndef QUIRE_ENGINE_TOKENIZER_H
#define QUIRE_ENGINE_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

/* Token ids that grow; start with {0}. */
struct ids {
	int32_t *id;
	size_t n, room;
};
void ids_push(struct ids *ids, int32_t id);
void ids_append(struct ids *ids, const int32_t *id, size_t n);
/* Make room for n more than there are. */
void ids_reserve(struct ids *ids, size_t n);
void ids_free(struct ids *ids);

/* Bytes that grow; start with {0}. Not NUL-terminated. */
struct bytes {
	char *data;
	size_t n, room;
};
void bytes_append(struct bytes *b, const char *data, size_t n);
void bytes_free(struct bytes *b);

/* Does not change after it is opened: any number of threads may use it at once. */
struct tokenizer;

/* Read and check a tokenizer.json. Errors (ERR_FORMAT) name the path, the key path, and the values that disagree. */
int tokenizer_open(struct tokenizer **out, const char *path, struct err *err);
/* The same from memory; `name` stands for the path. */
int tokenizer_parse(struct tokenizer **out, const char *name, const char *text, size_t bytes, struct err *err);
/* Takes NULL. */
void tokenizer_close(struct tokenizer *t);

enum tokenizer_flags {
	TOKENIZER_ADDED_TOKENS = 1, /* encode: match added tokens. Without it their text is ordinary text, and no text
	                               at all gives the id of an added token */
	TOKENIZER_SKIP_SPECIAL = 2, /* decode: leave out added tokens that the file marks as special */
};

/* Append the ids of a text. Fails (ERR_TOO_LARGE) beyond 2 GiB, or without memory for one enormous pre-token;
 * *out is then as before. */
int tokenizer_encode(const struct tokenizer *t, struct ids *out, const char *text, size_t bytes, unsigned flags,
		     struct err *err);

/* Append the bytes of n ids; ids without a token string add nothing. */
void tokenizer_decode(const struct tokenizer *t, struct bytes *out, const int32_t *ids, size_t n, unsigned flags);

/* The bytes of a token, not NUL-terminated, valid until the tokenizer is closed. NULL: the id has no token string,
 * or is out of range. */
const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *bytes);

/* The id of an added token by its whole text; -1: there is none. */
int32_t tokenizer_added_id(const struct tokenizer *t, const char *text);
/* Whether an id is an added token, and whether the file marks it as special. */
int tokenizer_is_added(const struct tokenizer *t, int32_t id);
int tokenizer_is_special(const struct tokenizer *t, int32_t id);

/* The highest id that has a token string, plus 1. */
int32_t tokenizer_n_ids(const struct tokenizer *t);

/*
 * Tokens to text while they come: a character whose bytes are spread over several tokens is held back until it is
 * whole. Bytes that cannot belong to a character come out as U+FFFD, one for each longest beginning of a character
 * (as Python's errors="replace"), so what comes out is always UTF-8. Start with {0}.
 */
struct text_stream {
	unsigned char held[4];
	size_t n_held;
};
/* Append what is complete after these bytes. */
void text_stream_push(struct text_stream *s, struct bytes *out, const char *piece, size_t bytes);
/* Append what a character cut short at the end becomes; the stream is then as new. */
void text_stream_end(struct text_stream *s, struct bytes *out);

#endif
