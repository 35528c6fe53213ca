/*
 * What the model reads of a document: render format 1 (design: `=== PATH ===`, the text, a line feed if it lacks
 * one).
 */
#ifndef QUIRE_INGEST_DOCUMENT_H
#define QUIRE_INGEST_DOCUMENT_H

#include "cache/cache.h"
#include "engine/tokenizer.h"

/* Append a path. One with control characters, quotes, backslashes or bytes that are not UTF-8 is quoted as in C, octal
 * escapes included, so that no name can look like a text and no two look alike. */
void document_path(struct bytes *out, const char *path);

/* Append the rendered document; returns the bytes of its header. */
size_t document_render(struct bytes *out, const char *path, const char *text, size_t bytes);

/* Append the text of a snapshot's document as it was read, out of its tokens; ids are the snapshot's. It is compared with
 * the document's content_hash: ERR_MISMATCH when it is another text, since another tokenizer made the tokens. */
int document_recover(struct bytes *out, const struct tokenizer *t, const struct cache_document *d, const int32_t *ids,
		     struct err *err);

#endif
