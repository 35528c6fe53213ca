#include "ingest/encoding.h"

#include <errno.h>
#include <iconv.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config/mem.h"
#include "config/utf8.h"

enum { CHARSET_LOOK_BYTES = 1024, CHARSET_NAME_BYTES = 40 };

/* Only these names reach iconv, whose rarer converters nobody needs here. */
static const char *const charsets[] = {
	"utf-8", "iso-8859-1", "iso-8859-2", "iso-8859-3", "iso-8859-4", "iso-8859-5", "iso-8859-6", "iso-8859-7",
	"iso-8859-8", "iso-8859-9", "iso-8859-10", "iso-8859-13", "iso-8859-14", "iso-8859-15", "iso-8859-16",
	"windows-1250", "windows-1251", "windows-1252", "windows-1253", "windows-1254", "windows-1255", "windows-1256",
	"windows-1257", "windows-1258", "koi8-r", "koi8-u", "macintosh", "gbk", "gb2312", "gb18030", "big5", "shift_jis",
	"euc-jp", "euc-kr",
};

/* 0x80 to 0x9f of Windows-1252; 0: no character. */
static const uint16_t windows[32] = {
	0x20ac, 0, 0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160, 0x2039, 0x0152, 0, 0x017d, 0,
	0, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0, 0x017e, 0x0178,
};

static void replace(char **text, size_t *bytes, char *by, size_t n)
{
	free(*text);
	*text = by;
	*bytes = n;
}

static bool from_utf16(char **text, size_t *bytes, bool big)
{
	const unsigned char *p = (const unsigned char *)*text + 2;
	size_t n = *bytes - 2, at = 0;
	char *out;

	if (n % 2)
		return false;
	out = xmalloc(n / 2 * 3 + 1, 1); /* two bytes are at most three of UTF-8, four are four */
	for (size_t i = 0; i < n; i += 2) {
		uint32_t c = (uint32_t)(big ? p[i] << 8 | p[i + 1] : p[i + 1] << 8 | p[i]);

		if (c >= 0xd800 && c < 0xdc00 && i + 3 < n) {
			uint32_t low = (uint32_t)(big ? p[i + 2] << 8 | p[i + 3] : p[i + 3] << 8 | p[i + 2]);

			if (low >= 0xdc00 && low < 0xe000) {
				c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
				i += 2;
			}
		}
		if (!c || (c >= 0xd800 && c < 0xe000)) {
			free(out);
			return false;
		}
		at += utf8_encode(out + at, c);
	}
	replace(text, bytes, out, at);
	return true;
}

/* The name in `charset=NAME` or `encoding="NAME"` near the beginning. */
static bool find_charset(const char *text, size_t bytes, char name[CHARSET_NAME_BYTES])
{
	char head[CHARSET_LOOK_BYTES + 1], *at;
	size_t n = bytes < CHARSET_LOOK_BYTES ? bytes : CHARSET_LOOK_BYTES;

	memcpy(head, text, n);
	head[n] = '\0';
	at = strcasestr(head, "charset=");
	at = at ? at + strlen("charset=") : (at = strcasestr(head, "encoding=")) ? at + strlen("encoding=") : NULL;
	if (!at)
		return false;
	at += strspn(at, "\"' ");
	n = strcspn(at, "\"' ;/>?");
	if (n >= CHARSET_NAME_BYTES)
		return false;
	memcpy(name, at, n);
	name[n] = '\0';
	for (size_t i = 0; i < sizeof charsets / sizeof *charsets; i++)
		if (!strcasecmp(name, charsets[i]))
			return true;
	return false;
}

/* The whole text, or false when some byte has no meaning in this charset. */
static bool from_charset(char **text, size_t *bytes, const char *charset)
{
	iconv_t cd = iconv_open("UTF-8", charset);
	size_t left = *bytes, room = 4 * *bytes + 16, free_bytes = room;
	char *in = *text, *out, *at;
	bool good;

	if (cd == (iconv_t)-1)
		return false;
	at = out = xmalloc(room, 1);
	good = iconv(cd, &in, &left, &at, &free_bytes) != (size_t)-1 && iconv(cd, NULL, NULL, &at, &free_bytes) != (size_t)-1;
	iconv_close(cd);
	if (!good || memchr(out, '\0', room - free_bytes)) {
		free(out);
		return false;
	}
	replace(text, bytes, out, room - free_bytes);
	return true;
}

struct counts {
	size_t characters;      /* of several bytes */
	size_t strays;          /* bytes that belong to no character */
	size_t high;            /* bytes from 0x80 */
	size_t controls;        /* that plain text does not have */
};

static struct counts count(const unsigned char *p, size_t n)
{
	struct counts c = {0};

	for (size_t i = 0; i < n; ) {
		size_t length = utf8_length(p[i]);
		bool whole = length && utf8_prefix(p + i, n - i) == length;

		c.characters += whole && length > 1;
		c.strays += !whole;
		c.high += whole ? (length > 1) * length : 1;
		c.controls += (p[i] < 0x20 && !memchr("\b\t\n\v\f\r\x1b", p[i], 7)) || p[i] == 0x7f;
		i += whole ? length : 1;
	}
	return c;
}

static void mend_utf8(char **text, size_t *bytes, size_t n_strays)
{
	const unsigned char *p = (const unsigned char *)*text;
	char *out = xmalloc(*bytes + 2 * n_strays + 1, 1);
	size_t at = 0;

	for (size_t i = 0; i < *bytes; ) {
		size_t length = utf8_length(p[i]);
		bool whole = length && utf8_prefix(p + i, *bytes - i) == length;

		if (whole)
			memcpy(out + at, p + i, length);
		at += whole ? length : utf8_encode(out + at, 0xfffd);
		i += whole ? length : 1;
	}
	replace(text, bytes, out, at);
}

static bool from_windows(char **text, size_t *bytes, size_t n_high)
{
	const unsigned char *p = (const unsigned char *)*text;
	char *out = xmalloc(*bytes + 2 * n_high + 1, 1);
	size_t at = 0;

	for (size_t i = 0; i < *bytes; i++) {
		uint32_t c = p[i] >= 0x80 && p[i] < 0xa0 ? windows[p[i] - 0x80] : p[i];

		if (!c) {
			free(out);
			return false;
		}
		at += utf8_encode(out + at, c);
	}
	replace(text, bytes, out, at);
	return true;
}

bool encoding_to_utf8(char **text, size_t *bytes, bool is_html)
{
	const char *t = *text;
	char charset[CHARSET_NAME_BYTES];
	struct counts c;

	if (*bytes >= 2 && (!memcmp(t, "\xff\xfe", 2) || !memcmp(t, "\xfe\xff", 2)))
		return from_utf16(text, bytes, t[0] == '\xfe');
	if (*bytes && memchr(t, '\0', *bytes))
		return false;
	c = count((const unsigned char *)t, *bytes);
	if (!c.strays) {
		if (*bytes >= 3 && !memcmp(t, "\xef\xbb\xbf", 3))
			memmove(*text, t + 3, *bytes -= 3);
		return true;
	}
	if (is_html && find_charset(t, *bytes, charset) && strcasecmp(charset, "utf-8") &&
	    from_charset(text, bytes, charset))
		return true;
	if (c.characters > c.strays && c.strays * 10 <= *bytes) {
		mend_utf8(text, bytes, c.strays);
		return true;
	}
	return !c.controls && c.high * 4 <= *bytes && from_windows(text, bytes, c.high);
}
