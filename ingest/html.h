/*
 * HTML to the text that a reader sees. Pure; private to ingest/.
 *
 * Blocks begin lines, paragraphs and headings have a blank line around them, items of lists begin with "- ", cells of
 * a table stand on one line with " | " between them, <pre> keeps its spaces. An image is its alternative text. A link
 * is its text, with the address behind it in parentheses if it is one on the web. Scripts, styles, templates,
 * drawings and comments are left out. Nothing is fetched; entities are HTML's own.
 */
#ifndef QUIRE_INGEST_HTML_H
#define QUIRE_INGEST_HTML_H

#include <stddef.h>

#include "ingest/skip.h"

/* `html` is UTF-8 without NULs. 1: *out (to be freed) is the text; 0: there is a reason against it, such as more than
 * max_bytes of text, or elements nested so deeply that no page means it. */
int html_to_text(const char *html, size_t bytes, size_t max_bytes, char **out, size_t *out_bytes,
		 char reason[SKIP_REASON_BYTES]);

#endif
