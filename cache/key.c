#include "cache/key.h"

#include <assert.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "config/xxh3.h"

/* The store is little-endian, like every host it has met; another kind of host would swap here. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the store's format is little-endian");

void span_key_make(struct span_key *key, const uint8_t identity[32], const struct span_key *parent,
		   const int32_t *ids, int32_t n)
{
	static const struct span_key first;
	crypto_generichash_state state;

	assert(n > 0 && n <= CACHE_SPAN_TOKENS);
	crypto_generichash_init(&state, NULL, 0, sizeof key->bytes);
	crypto_generichash_update(&state, identity, 32);
	crypto_generichash_update(&state, (parent ? parent : &first)->bytes, sizeof first.bytes);
	crypto_generichash_update(&state, (const unsigned char *)ids, (size_t)n * sizeof *ids);
	crypto_generichash_final(&state, key->bytes, sizeof key->bytes);
}

uint64_t record_sum(const struct span_key *key, enum extent_kind kind, uint32_t part, uint32_t token,
		    const void *data, size_t bytes)
{
	struct {
		struct span_key key;
		uint32_t kind, part, token;
	} place = {*key, (uint32_t)kind, part, token};

	_Static_assert(sizeof place == CACHE_KEY_BYTES + 12, "a seed is made of 44 bytes, without padding");
	return xxh3_sum(data, bytes, xxh3_sum(&place, sizeof place, 0));
}

int64_t sums_place(enum extent_kind kind, int32_t part, int64_t place, int64_t n_places, int32_t n_groups)
{
	if (kind == EXTENT_LATENTS)
		return (part * n_places + place) * CACHE_SPAN_TOKENS;
	return n_groups * n_places * CACHE_SPAN_TOKENS + part * n_places + place;
}

char *span_key_name(const struct span_key *key, char out[KEY_NAME_BYTES])
{
	for (int i = 0; i < (KEY_NAME_BYTES - 1) / 2; i++)
		snprintf(out + 2 * i, 3, "%02x", key->bytes[i]);
	return out;
}
