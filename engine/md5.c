#include "engine/md5.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static uint32_t rotated(uint32_t x, unsigned bits)
{
	return x << bits | x >> (32 - bits);
}

/* Four rounds of 16 steps: the function, the order of the words, and the rotations change from round to round. */
static void add_block(uint32_t state[4], const unsigned char block[64])
{
	static const unsigned char rotations[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
	uint32_t a = state[0], b = state[1], c = state[2], d = state[3], word[16];

	for (int i = 0; i < 16; i++)
		word[i] = block[4 * i] | (uint32_t)block[4 * i + 1] << 8 | (uint32_t)block[4 * i + 2] << 16 |
			  (uint32_t)block[4 * i + 3] << 24;
	for (int i = 0; i < 64; i++) {
		/* The constant of step i: the integer part of 2^32 |sin(i + 1)|, which a double holds. */
		uint32_t constant = (uint32_t)(4294967296.0 * fabs(sin(i + 1.0))), f, next;
		int w;

		switch (i / 16) {
		case 0:
			f = (b & c) | (~b & d);
			w = i;
			break;
		case 1:
			f = (b & d) | (c & ~d);
			w = 5 * i + 1;
			break;
		case 2:
			f = b ^ c ^ d;
			w = 3 * i + 5;
			break;
		default:
			f = c ^ (b | ~d);
			w = 7 * i;
		}
		next = b + rotated(a + f + word[w % 16] + constant, rotations[i / 16][i % 4]);
		a = d;
		d = c;
		c = b;
		b = next;
	}
	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
}

void md5_hex(char out[MD5_HEX_BYTES], const void *data, size_t bytes)
{
	uint32_t state[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
	const unsigned char *p = data;
	unsigned char last[128] = {0};
	size_t left = bytes % 64, padded = left < 56 ? 64 : 128;

	for (size_t i = 0; i + 64 <= bytes; i += 64)
		add_block(state, p + i);
	if (left)
		memcpy(last, p + bytes - left, left);
	last[left] = 0x80;
	for (int i = 0; i < 8; i++)
		last[padded - 8 + (size_t)i] = (unsigned char)((uint64_t)bytes * 8 >> 8 * i);
	for (size_t i = 0; i < padded; i += 64)
		add_block(state, last + i);
	for (int i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", state[i / 4] >> i % 4 * 8 & 0xff);
}
