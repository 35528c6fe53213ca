/*
 * The part of YAML that a configuration needs: mappings, lists and scalars, one piece after another, in file order.
 * Anything that makes a file mean something else than it seems to is refused where it stands: anchors, aliases, tags,
 * merge keys, directives, a second document, nesting beyond YAML_MAX_DEPTH, block text, a NUL. Messages begin with
 * NAME:LINE:COLUMN (from 1).
 */
#ifndef QUIRE_CONFIG_YAML_H
#define QUIRE_CONFIG_YAML_H

#include <stdbool.h>
#include <stddef.h>

#include "config/err.h"

enum { YAML_MAX_DEPTH = 8, YAML_MAX_BYTES = 1 << 20 };

struct yaml;

struct yaml_place {
	size_t line, column;
};

struct yaml_piece {
	enum yaml_piece_kind {
		YAML_SCALAR,  /* a key or a value, in turn, inside a mapping */
		YAML_MAPPING, /* until the YAML_END of the same depth */
		YAML_LIST,    /* likewise */
		YAML_END,     /* of the innermost mapping or list; at depth 0, of the file */
	} kind;
	const char *text;     /* YAML_SCALAR: UTF-8, valid until the next call of yaml_next */
	bool quoted;
	struct yaml_place at;
};

/* text must outlive the reader; `name` is the path that messages show. */
int yaml_open(struct yaml **out, const char *name, const char *text, size_t bytes, struct err *err);
/* Takes NULL. */
void yaml_close(struct yaml *y);

/* The next piece. An empty file has no piece but YAML_END. Not after an error, nor after the last YAML_END. */
int yaml_next(struct yaml *y, struct yaml_piece *piece, struct err *err);

/* As err_set (ERR_USAGE), with the place before the sentence. */
int yaml_refuse(const struct yaml *y, struct yaml_place at, struct err *err, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* What a plain scalar would be to a YAML reader that guesses: "no" is false to most of them, and 1.10 is 1.1. */
bool yaml_is_boolean(const char *plain);
bool yaml_is_null(const char *plain);

#endif
