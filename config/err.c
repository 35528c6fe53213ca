#include "config/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "config/utf8.h"

static const struct {
	const char *name;
	int exit_status;
	int http_status;
} codes[N_ERR_CODES] = {
	[ERR_NONE] = {"ok", 0, 200},
	[ERR_FAILED] = {"failed", 1, 500},
	[ERR_USAGE] = {"usage", 2, 400},
	[ERR_PARTIAL] = {"partial", 3, 200},
	[ERR_NOT_FOUND] = {"not_found", 4, 404},
	[ERR_UNREACHABLE] = {"unreachable", 5, 502},
	[ERR_BUSY] = {"busy", 6, 409},
	[ERR_TOO_LARGE] = {"context_exceeded", 7, 413},
	[ERR_DAMAGED] = {"store_damaged", 8, 500},
	[ERR_MISMATCH] = {"mismatch", 9, 409},
	[ERR_PERMISSION] = {"permission", 10, 403},
	[ERR_DEADLINE] = {"deadline", 124, 504},
	[ERR_CANCELLED] = {"cancelled", 130, 499},
	[ERR_UNAVAILABLE] = {"unavailable", 1, 503},
	[ERR_IO] = {"io", 1, 500},
	[ERR_FORMAT] = {"format", 1, 500},
};

int err_exit_status(enum err_code code)
{
	return codes[code].exit_status;
}

int err_http_status(enum err_code code)
{
	return codes[code].http_status;
}

const char *err_code_name(enum err_code code)
{
	return codes[code].name;
}

enum err_code err_code_from_name(const char *name)
{
	for (int i = 0; i < N_ERR_CODES; i++)
		if (!strcmp(codes[i].name, name))
			return (enum err_code)i;
	return ERR_FAILED;
}

static int is_escaped(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x200e || c == 0x200f || c == 0x061c ||
	       (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff || c == 0xfffe || c == 0xffff;
}

char *err_escape(char *out, size_t out_bytes, const char *text, size_t text_bytes)
{
	const unsigned char *p = (const unsigned char *)text, *end = p + text_bytes;
	char *o = out;

	if (!out_bytes)
		return out;
	while (p < end) {
		char piece[12];
		uint32_t c = 0;
		size_t n = utf8_decode(p, (size_t)(end - p), &c), m;

		if (!n)
			m = (size_t)snprintf(piece, sizeof piece, "\\x%02x", *p);
		else if (!is_escaped(c))
			memcpy(piece, p, m = n);
		else if (c == '\n' || c == '\t' || c == '\r')
			m = (size_t)snprintf(piece, sizeof piece, "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : 'r');
		else
			m = (size_t)snprintf(piece, sizeof piece, c < 0x100 ? "\\x%02x" : "\\u%04x", c);
		if ((size_t)(o - out) + m + 1 > out_bytes)
			break;
		memcpy(o, piece, m);
		o += m;
		p += n ? n : 1;
	}
	*o = '\0';
	return out;
}

/* The sentence that format and args make, escaped, into err->text, and ": CAUSE" after it unless cause is NULL. The
 * cause matters more than where it was met: when both do not fit, the sentence is cut, at a character. */
static void set_text(struct err *err, const char *cause, const char *format, va_list args)
{
	char raw[sizeof err->text];
	size_t n_cause = cause ? strlen(cause) + 2 : 0, n, end;
	int n_whole = vsnprintf(raw, sizeof raw, format, args);
	unsigned point;

	n = n_whole < 0 ? 0 : strlen(raw);
	/* A character that vsnprintf cut in two would look like bytes that are not UTF-8. */
	if (n_whole >= (int)sizeof raw)
		for (end = n; end > 0 && n - end < 3; end--)
			if ((raw[end - 1] & 0xc0) == 0xc0 && !utf8_decode((unsigned char *)raw + end - 1, n - end + 1, &point))
				n = end - 1;
	if (n_cause + 1 >= sizeof err->text) {
		memcpy(err->text, cause, n_cause - 2 + 1);
		return;
	}
	err_escape(err->text, sizeof err->text - n_cause, raw, n);
	n = strlen(err->text);
	if (cause) {
		memcpy(err->text + n, ": ", 2);
		memcpy(err->text + n + 2, cause, n_cause - 2 + 1);
	}
}

int err_set(struct err *err, enum err_code code, const char *format, ...)
{
	va_list args;

	if (!err)
		return -1;
	va_start(args, format);
	set_text(err, NULL, format, args);
	va_end(args);
	err->code = code;
	return -1;
}

int err_wrap(struct err *err, const char *format, ...)
{
	char cause[sizeof err->text];
	va_list args;

	if (!err)
		return -1;
	memcpy(cause, err->text, strlen(err->text) + 1);
	va_start(args, format);
	set_text(err, cause, format, args);
	va_end(args);
	return -1;
}

int err_errno(struct err *err, int number, const char *format, ...)
{
	char cause[128];
	va_list args;

	if (!err)
		return -1;
	va_start(args, format);
	set_text(err, strerror_r(number, cause, sizeof cause), format, args);
	va_end(args);
	err->code = number == EACCES || number == EPERM ? ERR_PERMISSION : number == ENOENT ? ERR_NOT_FOUND : ERR_IO;
	return -1;
}
