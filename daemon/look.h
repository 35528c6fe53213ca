/*
 * What the daemon shows of what is stored, on the wire: the files and the snapshots of a corpus, the text of a file as the
 * model read it, and what is different between two snapshots. Read from the index alone, by whoever has a reader (the loop does); nothing here waits for the engine.
 *
 * API_FILES      {"documents": [{"path", "tokens", "lines"}], "skipped": [{"path", "reason"}]}
 * API_SNAPSHOTS  {"snapshots": [{"id", "current", "source", "commit", "created_s", "identity", "tokens", "documents",
 *                "skipped", "own_tokens", "own_bytes", "missing_tokens"}]}, the newest first
 * API_SNAPSHOT   {"corpus", "id", "current", "source", "commit", "created_s", "used_s", "identity" (64 digits), "tokens",
 *                "spans", "documents", "first", "last" (paths), "skipped", "bytes", "own_tokens", "own_bytes",
 *                "missing_tokens", "same_model" (if the daemon has one), "latents" (if it is the same), "record_bytes":
 *                [of a token in each group], "index_layers", "index_key_bytes"}
 * API_TEXT       the request is {"place": "PATH[:LINE[-LINE]]"}, where a file of the whole name comes first. The reply:
 *                {"corpus", "id", "path", "first_token", "tokens", "lines", "first_line", "last_line", "text"}, the text
 *                being that of these lines, decoded from the stored tokens and compared with the hash of what was read
 * API_DIFF       the request is {"from": NAME, "to": NAME}; without "from" it is the snapshot before "to". The reply:
 *                {"from", "to": {"corpus", "id", "current", "source", "commit", "created_s", "identity", "tokens", "spans",
 *                "documents"}, "same_identity", "shared_tokens", "shared_spans", "parting": {"path", "line"}, "removed",
 *                "added", "changed", "moved", "same", "files": [{"change", "path", "from_place", "to_place",
 *                "from_tokens", "to_tokens"}]} (cache/diff.h). Places count from 1, and so do lines: 0 is the header of
 *                a document. "parting" is missing where the newer one has nothing of its own
 *
 * A NAME is CORPUS or CORPUS@ID. A path with odd bytes is quoted as in C, as the model reads it.
 */
#ifndef QUIRE_DAEMON_LOOK_H
#define QUIRE_DAEMON_LOOK_H

#include <jansson.h>
#include <stddef.h>

#include "cache/cache.h"
#include "config/err.h"
#include "daemon/api.h"
#include "engine/tokenizer.h"

/* The daemon's model, as far as it is known. */
struct look {
	const struct tokenizer *tokenizer; /* NULL: no_tokenizer says why */
	struct err no_tokenizer;
	const char *identity;              /* 16 hex digits; "" without a model */
	const char *latents;               /* the format it stores them in */
};

/* The reply to one of the routes above; `name` is the {name} of those that have one. */
int look_reply(json_t **reply, const struct look *look, struct cache_reader *r, enum api_route route, const char *name,
	       const char *body, size_t bytes, struct err *err);

/* The body of API_DIFF; from may be NULL. free() it. */
char *look_diff_format(const char *from, const char *to);
/* The body of API_TEXT. free() it. */
char *look_text_format(const char *place);

#endif
