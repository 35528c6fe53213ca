#include "config/json.h"

#include <stdlib.h>
#include <string.h>

#include "config/file.h"

/* jansson recurses to a depth of 2048, which is more than a small thread stack holds and more than any file of
 * ours needs, so the depth is counted before it is called. Brackets count wherever they stand outside strings:
 * in malformed text this can only name an error earlier than jansson would. */
static int depth_check(const char *name, const char *text, size_t bytes, struct err *err)
{
	size_t line = 1, column = 0;
	int depth = 0, in_string = 0;

	for (size_t i = 0; i < bytes; i++) {
		unsigned char c = (unsigned char)text[i];

		if ((c & 0xc0) == 0x80)
			continue;
		column++;
		if (c == '\n') {
			line++;
			column = 0;
		} else if (in_string) {
			if (c == '\\' && i + 1 < bytes && ((unsigned char)text[i + 1] & 0x80) == 0) {
				i++;
				column++;
			} else if (c == '"') {
				in_string = 0;
			}
		} else if (c == '"') {
			in_string = 1;
		} else if (c == '{' || c == '[') {
			if (++depth > JSON_DEPTH)
				return err_set(err, ERR_FORMAT, "%s:%zu:%zu: nested deeper than %d", name, line, column,
					       JSON_DEPTH);
		} else if ((c == '}' || c == ']') && depth > 0) {
			depth--;
		}
	}
	return 0;
}

int json_parse(json_t **out, const char *name, const char *text, size_t bytes, struct err *err)
{
	json_error_t e;

	if (!bytes)
		return err_set(err, ERR_FORMAT, "%s: empty, JSON is expected", name);
	if (bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
		return err_set(err, ERR_FORMAT, "%s:1:1: begins with a byte order mark", name);
	if (depth_check(name, text, bytes, err))
		return -1;
	*out = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &e);
	if (*out)
		return 0;
	return err_set(err, ERR_FORMAT, "%s:%d:%d: %s", name, e.line, e.column, e.text);
}

int json_read(json_t **out, const char *path, size_t max_bytes, struct err *err)
{
	char *text;
	size_t bytes;
	int failed;

	if (file_read(&text, &bytes, path, max_bytes, err))
		return -1;
	failed = json_parse(out, path, text, bytes, err);
	free(text);
	return failed;
}

const char *json_kind(const json_t *value)
{
	if (!value)
		return "absent";
	switch (json_typeof(value)) {
	case JSON_OBJECT:
		return "an object";
	case JSON_ARRAY:
		return "an array";
	case JSON_STRING:
		return "a string";
	case JSON_INTEGER:
		return "an integer";
	case JSON_REAL:
		return "a number";
	case JSON_TRUE:
		return "true";
	case JSON_FALSE:
		return "false";
	case JSON_NULL:
		return "null";
	}
	return "unknown";
}

static int wrong_kind(const json_t *value, const char *key, const char *expected, const char *name, const char *where,
		      struct err *err)
{
	return err_set(err, ERR_FORMAT, "%s: %s%s%s is %s, %s is expected", name, where, *where ? "." : "", key,
		       json_kind(value), expected);
}

int json_get_integer(int64_t *out, const json_t *object, const char *key, int64_t least, int64_t most, const char *name,
		     const char *where, struct err *err)
{
	const json_t *value = json_object_get(object, key);
	json_int_t n;

	if (!json_is_integer(value))
		return wrong_kind(value, key, "an integer", name, where, err);
	n = json_integer_value(value);
	if (n < least || n > most)
		return err_set(err, ERR_FORMAT, "%s: %s%s%s is %lld, it must lie between %lld and %lld", name, where,
			       *where ? "." : "", key, (long long)n, (long long)least, (long long)most);
	*out = n;
	return 0;
}

int json_get_string(const char **out, const json_t *object, const char *key, const char *name, const char *where,
		    struct err *err)
{
	const json_t *value = json_object_get(object, key);

	if (!json_is_string(value))
		return wrong_kind(value, key, "a string", name, where, err);
	*out = json_string_value(value);
	return 0;
}

int json_get_boolean(int *out, const json_t *object, const char *key, const char *name, const char *where,
		     struct err *err)
{
	const json_t *value = json_object_get(object, key);

	if (!json_is_boolean(value))
		return wrong_kind(value, key, "true or false", name, where, err);
	*out = json_is_true(value);
	return 0;
}
