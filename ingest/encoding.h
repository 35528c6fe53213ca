/*
 * Bytes of a file to UTF-8, or the finding that they are no text. Pure; private to ingest/.
 *
 *   a byte order mark   UTF-8 (the mark goes), UTF-16 of either order
 *   valid UTF-8         as it is
 *   HTML                otherwise what its <meta charset> says, if it is one of the usual names
 *   damaged UTF-8       more characters of several bytes than stray bytes, which are at most a tenth: each stray byte
 *                       becomes U+FFFD
 *   Windows-1252        (Latin-1 with quotes and dashes where Latin-1 has nothing): no control characters but those of
 *                       plain text, no byte without a character, and at most a quarter is not ASCII
 *
 * Anything else is binary, and so is whatever has a NUL in it. UTF-16 without a mark has NULs: it is binary, since
 * nothing says what it is.
 */
#ifndef QUIRE_INGEST_ENCODING_H
#define QUIRE_INGEST_ENCODING_H

#include <stdbool.h>
#include <stddef.h>

/* Replace *text (malloc'ed) by its UTF-8. False: it is binary and stays as it is. */
bool encoding_to_utf8(char **text, size_t *bytes, bool is_html);

#endif
