/*
 * PDF to text by pdftotext of poppler-utils, as a confined child (ingest/child.h). Private to ingest/.
 */
#ifndef QUIRE_INGEST_PDF_H
#define QUIRE_INGEST_PDF_H

#include <stdatomic.h>
#include <stddef.h>

#include "ingest/skip.h"

/* `program` NULL: pdftotext where systems have it. 1: *out (to be freed) is the text, UTF-8; 0: the reason, which
 * names the package when there is no such program, and else ends with what the program said. */
int pdf_to_text(const char *pdf, size_t bytes, size_t max_bytes, const char *program, const atomic_bool *cancel,
		char **out, size_t *out_bytes, char reason[SKIP_REASON_BYTES]);

#endif
