/*
 * An answer's citations, as the last event of API_ASK has them: its quotations (quote.h), looked up in the text that the
 * store holds of the snapshot that was asked, whatever is on disk by now.
 *
 *   {"finish_reason", "snapshot": its id, "commit" (if it has one), "citations": [{
 *      "kind": "lines" | "span" | "place", "status": "verified" | "moved" | "unverified", "cut": true (if it is),
 *      "begin", "end": in the bytes of the answer, "text": these, CITE_TEXT_BYTES of them at most,
 *      "places": where it stands, in number; if it does, "path", "first", "last": one of them, and "others": [{"path",
 *      "first", "last"}], a few of the others,
 *      "claimed": {"path", "first", "last"} (if the answer says where)}],
 *    "unchecked_from": a byte of the answer (if there was too much to check), "citations_error": why there are none}
 *
 * The answer is all text that the tokens of the stream make up. Paths with odd bytes are quoted as in C.
 */
#ifndef QUIRE_DAEMON_CITE_H
#define QUIRE_DAEMON_CITE_H

#include <stddef.h>

#include "cache/cache.h"
#include "config/err.h"
#include "daemon/lines.h"
#include "engine/tokenizer.h"

enum { CITE_TEXT_BYTES = 160 };

/* The text of a snapshot by its lines, for lines_free. A document whose text its tokens do not give back is an error. */
int cite_lines(struct lines **out, const struct tokenizer *t, const struct cache_snapshot *s, struct err *err);

/* The event of an answer that ended for the reason `finish`, to be freed. What stands before `from` in it (reasoning) is
 * not checked. *lines is that of the snapshot; NULL: it is made, and stays for the next answer. */
char *cite_answer(const char *finish, const struct bytes *answer, size_t from, struct lines **lines, const struct tokenizer *t,
		  const struct cache_snapshot *s);

#endif
