/* The first 8 bytes are the data's length, the rest the header: any header either is refused or describes exactly
 * that much data. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct safetensors s = {.file.fd = -1};
	struct err err;
	uint64_t data_bytes, end;

	if (n < sizeof data_bytes)
		return 0;
	memcpy(&data_bytes, data, sizeof data_bytes);
	n -= sizeof data_bytes;
	data_bytes &= INT64_MAX >> 1; /* as many as a file could hold */
	if (!safetensors_parse(&s, "f", (const char *)data + sizeof data_bytes, n, data_bytes, &err)) {
		end = sizeof data_bytes + n;
		for (size_t i = 0; i < s.n_tensors; i++) {
			char text[TENSOR_SHAPE_TEXT];

			tensor_shape_text(text, &s.tensors[i]);
			if (s.tensors[i].offset != end)
				abort();
			end += s.tensors[i].bytes;
		}
		if (end != sizeof data_bytes + n + data_bytes)
			abort();
	}
	safetensors_close(&s);
	return 0;
}
