/* Any tokenizer.json is refused, or gives a tokenizer that takes every text apart and puts it together again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void round_trip(const struct tokenizer *t, const char *text, size_t n, unsigned flags)
{
	struct ids ids = {0};
	struct bytes back = {0};
	struct err err;

	/* A pattern of the file's own may backtrack too much: an error, and nothing is appended. */
	if (tokenizer_encode(t, &ids, text, n, flags, &err)) {
		if (ids.n)
			abort();
	} else {
		tokenizer_decode(t, &back, ids.id, ids.n, 0);
		if (back.n != n || memcmp(back.data, text, n))
			abort();
		for (size_t i = 0; i < ids.n; i++)
			if (ids.id[i] >= tokenizer_n_ids(t) || (!flags && tokenizer_is_added(t, ids.id[i])))
				abort();
	}
	ids_free(&ids);
	bytes_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const char text[] = "int main(void)\n{\n\treturn 12345;  // it's \xe4\xb8\xad\xe6\x96\x87\xff\xf0\x9f\x98\x80<s><|user|>\n"
				   "ababababcababababcababababcababababcababababcababababc \r\n\r\n   x";
	struct tokenizer *t;
	struct err err;

	if (tokenizer_parse(&t, "tokenizer.json", (const char *)data, n, &err))
		return 0;
	for (unsigned flags = 0; flags < 2; flags++) {
		round_trip(t, text, sizeof text, flags);
		round_trip(t, (const char *)data, n < 300 ? n : 300, flags);
	}
	tokenizer_close(t);
	return 0;
}
