/*
 * UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF.
 */
#ifndef QUIRE_CONFIG_UTF8_H
#define QUIRE_CONFIG_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* How many bytes the character at p has by its first byte, 0 if no character begins with it. */
static inline size_t utf8_length(unsigned char first)
{
	return first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
}

/* How many of the `left` bytes at p are the beginning of some character; stops at its end. So a result equal to
 * utf8_length(*p) is a whole character, and a smaller one, 0 included, means that the next byte is missing
 * (result == left) or impossible. left >= 1. */
static inline size_t utf8_prefix(const unsigned char *p, size_t left)
{
	size_t length = utf8_length(p[0]), n = 1;
	unsigned char least = 0x80, most = 0xbf;

	if (!length)
		return 0;
	/* Only the second byte has bounds of its own: against overlong forms, surrogates, and U+110000. */
	if (p[0] == 0xe0)
		least = 0xa0;
	else if (p[0] == 0xed)
		most = 0x9f;
	else if (p[0] == 0xf0)
		least = 0x90;
	else if (p[0] == 0xf4)
		most = 0x8f;
	while (n < length && n < left && p[n] >= least && p[n] <= most) {
		least = 0x80;
		most = 0xbf;
		n++;
	}
	return n;
}

/* The character at p: its length, its code point in *point. 0: the bytes are not UTF-8. left >= 1. */
static inline size_t utf8_decode(const unsigned char *p, size_t left, uint32_t *point)
{
	size_t n = utf8_length(p[0]);

	if (!n || utf8_prefix(p, left) != n)
		return 0;
	*point = n == 1 ? p[0] : p[0] & (0xffu >> (n + 1));
	for (size_t i = 1; i < n; i++)
		*point = *point << 6 | (p[i] & 0x3f);
	return n;
}

/* Write a code point (not a surrogate, at most U+10FFFF); returns its length, 1 to 4. */
static inline size_t utf8_encode(char *out, uint32_t c)
{
	unsigned char *p = (unsigned char *)out;

	if (c < 0x80) {
		p[0] = (unsigned char)c;
		return 1;
	}
	if (c < 0x800) {
		p[0] = (unsigned char)(0xc0 | c >> 6);
		p[1] = (unsigned char)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		p[0] = (unsigned char)(0xe0 | c >> 12);
		p[1] = (unsigned char)(0x80 | (c >> 6 & 0x3f));
		p[2] = (unsigned char)(0x80 | (c & 0x3f));
		return 3;
	}
	p[0] = (unsigned char)(0xf0 | c >> 18);
	p[1] = (unsigned char)(0x80 | (c >> 12 & 0x3f));
	p[2] = (unsigned char)(0x80 | (c >> 6 & 0x3f));
	p[3] = (unsigned char)(0x80 | (c & 0x3f));
	return 4;
}

#endif
