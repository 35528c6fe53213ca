/* Any bytes as a corpus, a NUL, and an answer about it: every citation is within the answer, and what is said to stand at a place
 * stands there. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/quote.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_place(const struct lines *l, const struct quote *q, const struct quote_place *p, const char *answer,
			const char *source, size_t bytes)
{
	const char *text = source, *end = source + bytes, *own = answer + q->begin;
	size_t n = q->end - q->begin;

	if (p->document || p->first < 1 || p->last < p->first || p->last > lines_in_document(l, 0))
		abort();
	if (q->kind == QUOTE_PLACE)
		return;
	for (int32_t i = 1; i < p->first; i++)
		text = (const char *)memchr(text, '\n', (size_t)(end - text)) + 1;
	if (q->kind == QUOTE_LINES && memchr(own, '\n', n))
		n = (size_t)((const char *)memchr(own, '\n', n) - own);
	n = lines_trim(&own, n);
	if (!memmem(text, (size_t)(end - text), own, n))
		abort();
}

static void check(const char *source, size_t bytes, const char *answer, size_t n, bool is_cut)
{
	struct lines *l = lines_new();
	struct quotes quotes;

	lines_add(l, "a/b.c", 5, source, bytes);
	lines_index(l);
	quotes_find(&quotes, l, answer, n, is_cut);
	if (quotes.checked > n || quotes.n > QUOTE_MOST)
		abort();
	for (size_t i = 0; i < quotes.n; i++) {
		const struct quote *q = &quotes.list[i];

		if (q->begin >= q->end || q->end > n || (i && q->begin < quotes.list[i - 1].begin))
			abort();
		if ((q->status == QUOTE_UNVERIFIED) != !q->n_places || (q->kind == QUOTE_PLACE && !q->is_claimed))
			abort();
		if (q->is_claimed && (q->claim.begin >= q->claim.end || q->claim.end > n))
			abort();
		for (int64_t p = 0; p < q->n_places && p < QUOTE_PLACES; p++)
			check_place(l, q, &q->places[p], answer, source, bytes);
	}
	quotes_clear(&quotes);
	lines_free(l);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const char *source = (const char *)data, *nul = n ? memchr(source, '\0', n) : NULL;
	size_t bytes = nul ? (size_t)(nul - source) : n;

	if (!nul)
		return 0;
	check(source, bytes, nul + 1, n - bytes - 1, false);
	check(source, bytes, nul + 1, n - bytes - 1, true);
	return 0;
}
