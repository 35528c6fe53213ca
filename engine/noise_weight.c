#include "engine/noise_weight.h"

#include "engine/noise.h"

enum { BF16_ONE = 0x3f80 };

static size_t round_up(size_t bytes)
{
	return (bytes + NOISE_WEIGHT_ALIGN - 1) / NOISE_WEIGHT_ALIGN * NOISE_WEIGHT_ALIGN;
}

static size_t data_bytes(const struct weight *w)
{
	return (size_t)w->rows * weight_row_bytes(w);
}

size_t noise_weight_bytes(const struct weight *w)
{
	return round_up(data_bytes(w)) + round_up(weight_full_bytes(w) - data_bytes(w));
}

void noise_weight_fill(struct weight *w, void *memory, uint64_t seed)
{
	static const struct {
		uint64_t keep, set; /* bits of noise, and others */
	} bits[N_DTYPES] = {
		[DTYPE_F32] = {0x807fffff807fffff, 0x3f8000003f800000},
		[DTYPE_BF16] = {0x807f807f807f807f, 0x3f803f803f803f80},
		[DTYPE_F16] = {0x83ff83ff83ff83ff, 0x3c003c003c003c00},
		[DTYPE_F8_E4M3] = {0xbfbfbfbfbfbfbfbf, 0},
		[DTYPE_INT4] = {UINT64_MAX, 0},
	};
	size_t bytes = round_up(data_bytes(w)), scale_bytes = weight_full_bytes(w) - data_bytes(w);
	void *scales = (char *)memory + bytes;

	for (size_t i = 0; i < bytes / sizeof(uint64_t); i++)
		((uint64_t *)memory)[i] = (noise_word(seed, i) & bits[w->dtype].keep) | bits[w->dtype].set;
	w->data = memory;
	if (w->dtype == DTYPE_F8_E4M3) {
		w->scale = scales;
		for (size_t i = 0; i < scale_bytes / sizeof(float); i++)
			((float *)scales)[i] = 1;
	} else if (w->dtype == DTYPE_INT4) {
		w->group_scale = scales;
		for (size_t i = 0; i < scale_bytes / sizeof(uint16_t); i++)
			((uint16_t *)scales)[i] = BF16_ONE;
	}
}
