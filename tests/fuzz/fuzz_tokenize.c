/* Any bytes come back from encode and decode as they were, streamed in any pieces they give UTF-8, and with added
 * tokens off no text gives the id of one. The first byte chooses the tokenizer. Run from the top of the tree. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"
#include "config/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct tokenizer *tokenizer(int which)
{
	static const char *const paths[2] = {"tests/golden/tokenizer/glm.json", "tests/golden/tokenizer/deepseek.json"};
	static struct tokenizer *opened[2];
	struct err err;

	if (!opened[which] && tokenizer_open(&opened[which], paths[which], &err)) {
		fprintf(stderr, "%s\n", err.text);
		abort();
	}
	return opened[which];
}

static void check_stream(const struct tokenizer *t, const struct ids *ids, const char *text, size_t n)
{
	struct text_stream s = {0};
	struct bytes out = {0};
	uint32_t c;

	for (size_t i = 0; i < ids->n; i++) {
		size_t bytes;
		const char *piece = tokenizer_piece(t, ids->id[i], &bytes);

		text_stream_push(&s, &out, piece, bytes);
	}
	text_stream_end(&s, &out);
	for (size_t i = 0, length; i < out.n; i += length) {
		length = utf8_decode((const unsigned char *)out.data + i, out.n - i, &c);
		if (!length)
			abort();
	}
	for (size_t i = 0; i < n; i++) /* ASCII is never touched */
		if (!(text[i] & 0x80) && (!out.n || !memchr(out.data, text[i], out.n)))
			abort();
	bytes_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const struct tokenizer *t;
	const char *text = (const char *)data + 1;
	struct err err;

	if (!n--)
		return 0;
	t = tokenizer(data[0] & 1);
	for (unsigned flags = 0; flags < 2; flags++) {
		struct ids ids = {0};
		struct bytes back = {0};

		if (tokenizer_encode(t, &ids, text, n, flags, &err))
			abort();
		tokenizer_decode(t, &back, ids.id, ids.n, 0);
		if (back.n != n || (n && memcmp(back.data, text, n)))
			abort();
		for (size_t i = 0; !flags && i < ids.n; i++)
			if (tokenizer_is_added(t, ids.id[i]))
				abort();
		check_stream(t, &ids, text, n);
		ids_free(&ids);
		bytes_free(&back);
	}
	return 0;
}
