#include "engine/latents.h"

#include <stdatomic.h>

#include "engine/ops.h"

/* The kernels of this processor; the bits are those of all. Whoever comes first looks, and all find the same. */
static const struct ops *kernels(void)
{
	static _Atomic(const struct ops *) found;
	const struct ops *ops = atomic_load_explicit(&found, memory_order_relaxed);

	if (!ops) {
		ops = cpu_ops(NULL);
		atomic_store_explicit(&found, ops, memory_order_relaxed);
	}
	return ops;
}

/* An index key is a row without a latent: in FP8, too, all bf16. */
static enum latent_format key_format(enum latent_format format)
{
	return format == LATENTS_F32 ? LATENTS_F32 : LATENTS_BF16;
}

bool latent_pack(enum latent_format format, uint8_t *row, const float *values, int32_t kv_lora, int32_t rope_dim)
{
	return kernels()->latent_pack(format, row, values, kv_lora, rope_dim);
}

bool latent_unpack(enum latent_format format, float *values, const uint8_t *row, int32_t kv_lora, int32_t rope_dim)
{
	return kernels()->latent_unpack(format, values, row, kv_lora, rope_dim);
}

bool index_key_pack(enum latent_format format, uint8_t *key, const float *values, int32_t dim)
{
	return kernels()->latent_pack(key_format(format), key, values, dim, 0);
}

bool index_key_unpack(enum latent_format format, float *values, const uint8_t *key, int32_t dim)
{
	return kernels()->latent_unpack(key_format(format), values, key, dim, 0);
}
