/*
 * Strict JSON: jansson's parser behind a door that refuses what two readers could understand differently.
 *
 * Refused, with name:line:column: duplicate keys, invalid UTF-8, lone surrogates, an escaped or raw NUL, a byte
 * order mark, numbers that fit neither a 64-bit integer nor a finite double, anything after the value, an outermost
 * value that is neither object nor array, and nesting deeper than JSON_DEPTH. Columns count characters from 1.
 * 1e3 is a real, never an integer, so that json_is_integer answers for the spelling too.
 *
 * The values are jansson's own: read them with <jansson.h>, release the root with json_decref. Objects keep the
 * order of the file.
 */
#ifndef QUIRE_CONFIG_JSON_H
#define QUIRE_CONFIG_JSON_H

#include <jansson.h>
#include <stdint.h>

#include "config/err.h"

enum { JSON_DEPTH = 32 }; /* objects and arrays inside one another; the outermost is 1 */

/* Parse `bytes` bytes; `name` (a path, or what the text is) opens every sentence. */
int json_parse(json_t **out, const char *name, const char *text, size_t bytes, struct err *err);

/* Read a regular file of at most max_bytes whole (config/file.h) and parse it. */
int json_read(json_t **out, const char *path, size_t max_bytes, struct err *err);

/* What a value is, for sentences such as "model.type is a number, a string is expected": "an object", "an array",
 * "a string", "an integer", "a number", "true", "false", "null"; NULL gives "absent". */
const char *json_kind(const json_t *value);

/* A member that must be an integer between least and most. `where` is the key path of the object in the file,
 * "" for the outermost. ERR_FORMAT, with name, key, value and bounds. */
int json_get_integer(int64_t *out, const json_t *object, const char *key, int64_t least, int64_t most, const char *name,
		     const char *where, struct err *err);

/* The same for a string and for a boolean; *out of a string belongs to the object. */
int json_get_string(const char **out, const json_t *object, const char *key, const char *name, const char *where,
		    struct err *err);
int json_get_boolean(int *out, const json_t *object, const char *key, const char *name, const char *where,
		     struct err *err);

#endif
