/*
 * What the model reads of a document: render format 1 (design: `=== PATH ===`, the text, a line feed if it lacks
 * one).
 */
#ifndef QUIRE_INGEST_DOCUMENT_H
#define QUIRE_INGEST_DOCUMENT_H

#include "engine/tokenizer.h"

/* Append a path. One with control characters, quotes, backslashes or bytes that are not UTF-8 is quoted as in C, octal
 * escapes included, so that no name can look like a text and no two look alike. */
void document_path(struct bytes *out, const char *path);

/* Append the rendered document; returns the bytes of its header. */
size_t document_render(struct bytes *out, const char *path, const char *text, size_t bytes);

#endif
