/*
 * The text of a corpus by its lines: where a text stands, to the line. What quotations are looked up in (quote.h).
 * Lines are told apart by their text without the white space around it, a carriage return included; any bytes will do.
 * Pure. After lines_index nothing changes, and any thread may read.
 *
 * A million tokens of code are about 4 MB of text in 100,000 lines: that and 24 to 32 bytes a line are held.
 */
#ifndef QUIRE_DAEMON_LINES_H
#define QUIRE_DAEMON_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lines;

struct lines *lines_new(void);
/* One more document, both copied; the path as people see it (document_path). */
void lines_add(struct lines *l, const char *path, size_t path_bytes, const char *text, size_t bytes);
/* After the last one. */
void lines_index(struct lines *l);
/* Takes NULL. */
void lines_free(struct lines *l);

/* Bytes of text, and bytes held in all. */
size_t lines_text_bytes(const struct lines *l);
size_t lines_held_bytes(const struct lines *l);

/*
 * Lines have numbers over all documents, and between two documents stands one that is like no other: neighbours by
 * number that are both like some text are neighbours in one document.
 */

/* The n bytes at *text without the white space around them. */
size_t lines_trim(const char **text, size_t n);
/* The first line that reads so, *text being trimmed; -1: none. */
int32_t lines_find(const struct lines *l, const char *text, size_t n);
/* The next one that reads as this one does; -1: none. */
int32_t lines_next(const struct lines *l, int32_t line);
/* Equal for two lines that read the same, and for no others; -1 between documents. */
int32_t lines_class(const struct lines *l, int32_t line);
/* The trimmed text of a line. */
const char *lines_text(const struct lines *l, int32_t line, size_t *n);
/* The first line from `from` on in which these bytes stand, -1: none. Where they begin or end in an ASCII letter, a digit or
 * '_', none such may adjoin: a part of a name is not that name. An `open` end may be anywhere. n is not 0 and there is
 * no line feed in it. *cost grows by what was looked at, in bytes. */
int32_t lines_search(const struct lines *l, int32_t from, const char *text, size_t n, bool open, int64_t *cost);

int32_t lines_n_documents(const struct lines *l);
const char *lines_path(const struct lines *l, int32_t document);
int32_t lines_in_document(const struct lines *l, int32_t document);
/* The document of a line, and its number there, from 1. */
int32_t lines_document(const struct lines *l, int32_t line, int32_t *number);
/* A document by its path, or by the end of it, behind a '/', if that is of one document only; -1: none. */
int32_t lines_find_document(const struct lines *l, const char *path, size_t n);
/* Whether some document's name ends as this one's does, ".c" for example. */
bool lines_knows_ending(const struct lines *l, const char *path, size_t n);

#endif
