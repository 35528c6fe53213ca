/* Any bytes as a page: binary, refused, or text that is UTF-8, has no NUL and is not longer than allowed. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "config/utf8.h"
#include "ingest/encoding.h"
#include "ingest/html.h"
#include "ingest/skip.h"

enum { MOST_BYTES = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_text(const char *text, size_t n)
{
	const unsigned char *p = (const unsigned char *)text;

	if (n && memchr(text, '\0', n))
		abort();
	for (size_t i = 0; i < n; ) {
		size_t length = utf8_length(p[i]);

		if (!length || utf8_prefix(p + i, n - i) != length)
			abort();
		i += length;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	char *page = xmalloc(n, 1), *text, reason[SKIP_REASON_BYTES];
	size_t bytes;

	memcpy(page, data, n);
	if (encoding_to_utf8(&page, &n, true)) {
		check_text(page, n);
		reason[0] = '\0';
		if (html_to_text(page, n, MOST_BYTES, &text, &bytes, reason)) {
			if (bytes > MOST_BYTES + 1 || text[bytes])
				abort();
			check_text(text, bytes);
			(void)skip_by_text(text, bytes, reason);
			free(text);
		} else if (!*reason) {
			abort();
		}
	}
	free(page);
	return 0;
}
