/*
 * A file's bytes to the text that the model reads. Private to ingest/.
 */
#ifndef QUIRE_INGEST_TEXT_H
#define QUIRE_INGEST_TEXT_H

#include "ingest/skip.h"
#include "ingest/walk.h"

/* Read a file. 1: *text (to be freed) is one version of it, whole; 0: it is left out, and reason says why (ingest/skip.h); the file is never waited for. */
int text_read(const struct walk *w, const struct walk_file *f, int64_t max_bytes, char **text, size_t *bytes,
	      char reason[SKIP_REASON_BYTES]);

/* NUL, or more than a tenth that is not UTF-8, in the first 8 KiB. */
bool text_is_binary(const char *text, size_t bytes);

#endif
