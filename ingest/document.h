/*
 * What the model reads of a document: render format 1 (design: `=== PATH ===`, the text, a line feed if it lacks
 * one). Private to ingest/.
 */
#ifndef QUIRE_INGEST_DOCUMENT_H
#define QUIRE_INGEST_DOCUMENT_H

#include "engine/tokenizer.h"

/* Append the rendered document; returns the bytes of its header. A path with control characters, quotes, backslashes
 * or bytes that are not UTF-8 is quoted as in C, octal escapes included, so that no name can look like a text. */
size_t document_render(struct bytes *out, const char *path, const char *text, size_t bytes);

#endif
