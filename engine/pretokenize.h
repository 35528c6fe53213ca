/*
 * Text to pre-tokens: the stretches within which BPE merges. A pre-tokenizer is a list of patterns; each cuts every
 * piece that the previous one left into its matches and the gaps between them, and sees nothing beyond the piece.
 *
 * Patterns come from tokenizer.json, where they mean what Oniguruma makes of them; here PCRE2 matches them. Only
 * what both understand alike is accepted, or is rewritten until it is, and the rest is refused with its position:
 *
 *   literals, \r \n \t \f, escaped punctuation
 *   \s \S           rewritten: Unicode's White_Space. PCRE2's own \s contains U+180E as well
 *   \p{..} \P{..}   categories L N P S M Z, Lu Ll Lt Lm Lo, Nd; rewritten, see below
 *   [..] [^..]      of the above and ranges; no nested sets, no &&, no \S or \P inside
 *   ? * + {m,n}     greedy, on one character; ? also on a group
 *   (?:..) (?i:..)  not nested; in (?i:..) only ASCII letters and ', without ff fi fl ss st, which Oniguruma would
 *                   also find in ligatures
 *   (?!\S)          at the end of an alternative
 *
 * PCRE2 10.42 knows Unicode 14, the tokenizers library (0.23) Unicode 16. The 10,294 letters,
 * marks, numbers, punctuation and symbols assigned in between are listed in unicode_new.h and added to their
 * categories, so that both agree on every character; a later PCRE2 knows them already, which does
 * no harm. One mark changed from Mn to Mc (U+1171E): both are M, and finer categories of marks are refused.
 *
 * A pattern of this kind matches a character or a run, so the JIT's stack does not grow with the text. Time is
 * linear for the patterns in use (GLM, DeepSeek-V3, GPT-2, Llama 3: every run of blanks is scanned at most three
 * times); one that backtracks more than a few times per character fails with an error instead of taking forever.
 */
#ifndef QUIRE_ENGINE_PRETOKENIZE_H
#define QUIRE_ENGINE_PRETOKENIZE_H

#include <stddef.h>

#include "config/err.h"

struct pretokenizer;

struct pretokenizer *pretokenizer_new(void);
/* Takes NULL. */
void pretokenizer_free(struct pretokenizer *p);

/* Add a pattern; errors (ERR_FORMAT) say what is refused at which byte of the pattern. */
int pretokenizer_add(struct pretokenizer *p, const char *pattern, size_t bytes, struct err *err);

/* GPT-2's pattern: what ByteLevel means by use_regex. */
extern const char pretokenizer_gpt2[];

/* Room for one thread's matching. */
struct pretokenize_room;
struct pretokenize_room *pretokenize_room_new(const struct pretokenizer *p);
/* Takes NULL. */
void pretokenize_room_free(struct pretokenize_room *r);

typedef int (*pretoken_fn)(void *ctx, const char *piece, size_t bytes, struct err *err);

/* Call fn for every pre-token of a text in order; a result other than 0 ends it and is returned. The text must be
 * UTF-8 and at most 2 GiB. */
int pretokenize(const struct pretokenizer *p, struct pretokenize_room *r, const char *text, size_t bytes,
		pretoken_fn fn, void *ctx, struct err *err);

#endif
