/* Tables that instructions with byte look-ups use, by themselves, so that a test can read them on any processor. */
#ifndef QUIRE_ENGINE_SIMD_TABLES_H
#define QUIRE_ENGINE_SIMD_TABLES_H

#include <stdint.h>

/* The bf16 bits of E4M3 magnitudes 0 .. 127: low bytes, high bytes. The sign is the code's. */
static const uint8_t e4m3_bf16[2][128] = {
#define NORMAL_LOW(e)  0x00 + (e % 2 << 7), 0x10 + (e % 2 << 7), 0x20 + (e % 2 << 7), 0x30 + (e % 2 << 7), \
		       0x40 + (e % 2 << 7), 0x50 + (e % 2 << 7), 0x60 + (e % 2 << 7), 0x70 + (e % 2 << 7)
#define NORMAL_HIGH(e) (120 + e) / 2, (120 + e) / 2, (120 + e) / 2, (120 + e) / 2, \
		       (120 + e) / 2, (120 + e) / 2, (120 + e) / 2, (120 + e) / 2
	{0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60, NORMAL_LOW(1), NORMAL_LOW(2), NORMAL_LOW(3), NORMAL_LOW(4),
	 NORMAL_LOW(5), NORMAL_LOW(6), NORMAL_LOW(7), NORMAL_LOW(8), NORMAL_LOW(9), NORMAL_LOW(10), NORMAL_LOW(11),
	 NORMAL_LOW(12), NORMAL_LOW(13), NORMAL_LOW(14), NORMAL_LOW(15)},
	{0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, NORMAL_HIGH(1), NORMAL_HIGH(2), NORMAL_HIGH(3), NORMAL_HIGH(4),
	 NORMAL_HIGH(5), NORMAL_HIGH(6), NORMAL_HIGH(7), NORMAL_HIGH(8), NORMAL_HIGH(9), NORMAL_HIGH(10),
	 NORMAL_HIGH(11), NORMAL_HIGH(12), NORMAL_HIGH(13), NORMAL_HIGH(14), NORMAL_HIGH(15)},
#undef NORMAL_LOW
#undef NORMAL_HIGH
};

#endif
