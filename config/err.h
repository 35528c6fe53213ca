/*
 * One error: a code, and the sentence the user will read.
 *
 * A function that can fail for a reason in the world takes `struct err *err` last and returns -1 after it has
 * written there; each caller adds what it alone knows with err_wrap, and the command line prints the result
 * unchanged. What can only go wrong in our heads is an assert.
 *
 * A sentence starts lower-case, has no full stop, quotes the value that was wrong and, where there is something
 * to do, says so. Control characters that come from outside (paths, keys, tensor names) are escaped when the
 * sentence is formatted, so that a file name cannot drive somebody's terminal.
 */
#ifndef QUIRE_CONFIG_ERR_H
#define QUIRE_CONFIG_ERR_H

#include <stddef.h>

/* The code picks the exit status of the command line, and the status and `code` string of an HTTP reply. */
enum err_code {
	ERR_NONE,
	ERR_FAILED,      /* something else went wrong */
	ERR_USAGE,       /* the request itself is malformed */
	ERR_PARTIAL,     /* done, but some files could not be read */
	ERR_NOT_FOUND,   /* no such corpus, snapshot, job or verb */
	ERR_UNREACHABLE, /* the daemon does not answer */
	ERR_BUSY,        /* somebody else is at work there: try again, or cancel that */
	ERR_TOO_LARGE,   /* would exceed the context or memory; nothing was done */
	ERR_DAMAGED,     /* the store holds bytes that are not what was written */
	ERR_MISMATCH,    /* model and store, or corpus and source, do not belong together */
	ERR_PERMISSION,
	ERR_DEADLINE,
	ERR_CANCELLED,
	ERR_UNAVAILABLE, /* the daemon runs, but lacks what this needs (a model) */
	ERR_IO,          /* the operating system refused or failed a read or write */
	ERR_FORMAT,      /* a file is not what it claims to be */
	N_ERR_CODES
};

struct err {
	enum err_code code;
	char text[1024];
};

/* Replace what err holds. Returns -1, so that a failing function ends in one line. err may be NULL. */
int err_set(struct err *err, enum err_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Put "CONTEXT: " before what err holds; the code stays. Returns -1. */
int err_wrap(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As err_set with the sentence of errno value `number` after ": ". EACCES and EPERM become ERR_PERMISSION,
 * ENOENT ERR_NOT_FOUND, anything else ERR_IO. */
int err_errno(struct err *err, int number, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Exit status of `quire` for a code: 0 ok, 1 failed, 2 usage, 3 partial, 4 not found, 5 unreachable, 6 busy,
 * 7 too large, 8 damaged, 9 mismatch, 10 permission, 124 deadline, 130 cancelled. Stable. */
int err_exit_status(enum err_code code);

/* HTTP status of a reply that carries the error. */
int err_http_status(enum err_code code);

/* The `code` string of the wire ("not_found", "too_large", ...), and back (ERR_FAILED if unknown). */
const char *err_code_name(enum err_code code);
enum err_code err_code_from_name(const char *name);

/* Write `text` into out with every C0, C1, DEL and bidirectional control, byte order mark, U+FFFE and U+FFFF as \n, \t, \x1b or
 * \u202e, and every byte that is not UTF-8 as \xNN; cut at a character when out is too small. A line feed is escaped as well.
 * Returns out. */
char *err_escape(char *out, size_t out_bytes, const char *text, size_t text_bytes);

#endif
