/*
 * Seeded noise by place: word i of a key, the same on every machine and whoever asks for it in whatever order. For
 * weights and latents that stand in for real ones where only speed is measured.
 */
#ifndef QUIRE_ENGINE_NOISE_H
#define QUIRE_ENGINE_NOISE_H

#include <stdint.h>

/* 64 bits: the i-th output of SplitMix64 (Steele, Lea and Flood, 2014) begun at `key`. */
static inline uint64_t noise_word(uint64_t key, uint64_t i)
{
	uint64_t x = key + (i + 1) * 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

#endif
