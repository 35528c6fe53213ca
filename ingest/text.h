/*
 * A file's bytes to the text that the model reads. Private to ingest/.
 */
#ifndef QUIRE_INGEST_TEXT_H
#define QUIRE_INGEST_TEXT_H

#include "ingest/skip.h"
#include "ingest/walk.h"

struct text_options {
	int64_t max_bytes;              /* of text: ingest.max_file; a PDF may be TEXT_PDF_TIMES as large, its text not */
	const char *pdftotext;          /* NULL: where systems have it */
	const atomic_bool *cancel;      /* may be NULL: ends what takes long, with a reason that nobody will see */
};

enum { TEXT_PDF_TIMES = 64 };

/* How many bytes a file of this name may have. */
int64_t text_most_bytes(const char *path, bool included, int64_t max_bytes);

/* Read a file and make text of it: any encoding that text has (ingest/encoding.h), HTML (ingest/html.h), PDF. The name
 * says which it is. 1: *text (to be freed) is one version of it, whole, in UTF-8; 0: it is left out, and reason says
 * why (ingest/skip.h). A file that the caller included is binary to nobody: what is not text is given as it is. The
 * file is never waited for. */
int text_read(struct walk *w, const struct walk_file *f, const struct text_options *opt, char **text,
	      size_t *bytes, char reason[SKIP_REASON_BYTES]);

#endif
