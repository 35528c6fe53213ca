#include "engine/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "config/mem.h"

/* Below this many symbols, looking at all pairs for each merge beats keeping a heap. */
enum { SHORT_SYMBOLS = 40 };

static const uint32_t NO_RANK = UINT32_MAX;
static const uint32_t NONE = UINT32_MAX;

struct token {
	size_t offset; /* into text */
	uint32_t bytes;
	uint8_t kind;
};

struct word_slot {
	uint32_t tag; /* the hash's upper half: most wrong words differ here */
	uint32_t id1; /* id + 1; 0: empty */
};

struct pair_slot {
	uint64_t pair; /* left << 32 | right; all ones: empty, since ids are below 2^22 */
	uint32_t rank;
	int32_t merged;
};

struct bpe {
	struct token *tokens; /* [n_ids] */
	int32_t n_ids;
	struct bytes text; /* of all tokens */
	struct word_slot *words;
	size_t word_mask;
	struct pair_slot *pairs;
	unsigned pair_shift; /* 64 - log2 of the number of slots */
	size_t pair_mask;
	int32_t of_byte[256];
	int ignore_merges;
};

/* ---- Building --------------------------------------------------------------------------------------------- */

/* A power of two that n things fill by half at most. */
static size_t slots_for(size_t n, unsigned *log2)
{
	*log2 = 4;
	while ((size_t)1 << *log2 < n * 2)
		++*log2;
	return (size_t)1 << *log2;
}

struct bpe *bpe_new(int32_t n_ids, size_t n_tokens, size_t n_merges)
{
	struct bpe *b = xcalloc(1, sizeof *b);
	size_t n_words, n_pairs;
	unsigned log2;

	b->n_ids = n_ids;
	b->tokens = xcalloc((size_t)n_ids, sizeof *b->tokens);
	n_words = slots_for(n_tokens, &log2);
	b->words = xcalloc(n_words, sizeof *b->words);
	b->word_mask = n_words - 1;
	n_pairs = slots_for(n_merges, &log2);
	b->pairs = xmalloc(n_pairs, sizeof *b->pairs);
	memset(b->pairs, 0xff, n_pairs * sizeof *b->pairs);
	b->pair_mask = n_pairs - 1;
	b->pair_shift = 64 - log2;
	return b;
}

void bpe_free(struct bpe *b)
{
	if (!b)
		return;
	free(b->tokens);
	bytes_free(&b->text);
	free(b->words);
	free(b->pairs);
	free(b);
}

static struct word_slot *word_slot(const struct bpe *b, const char *piece, size_t bytes, uint64_t hash)
{
	uint32_t tag = (uint32_t)(hash >> 32);

	for (size_t i = hash & b->word_mask;; i = (i + 1) & b->word_mask) {
		struct word_slot *s = &b->words[i];
		const struct token *t;

		if (!s->id1)
			return s;
		if (s->tag != tag)
			continue;
		t = &b->tokens[s->id1 - 1];
		if (t->bytes == bytes && !memcmp(b->text.data + t->offset, piece, bytes))
			return s;
	}
}

void bpe_token(struct bpe *b, int32_t id, const char *piece, size_t bytes, enum bpe_kind kind)
{
	struct token *t = &b->tokens[id];

	assert(id >= 0 && id < b->n_ids && t->kind == BPE_NONE && kind != BPE_NONE && bytes);
	t->offset = b->text.n;
	t->bytes = (uint32_t)bytes;
	t->kind = (uint8_t)kind;
	bytes_append(&b->text, piece, bytes);
	if (kind == BPE_ORDINARY) {
		uint64_t hash = XXH3_64bits(piece, bytes);
		struct word_slot *s = word_slot(b, piece, bytes, hash);

		assert(!s->id1);
		s->tag = (uint32_t)(hash >> 32);
		s->id1 = (uint32_t)id + 1;
	}
}

int32_t bpe_find(const struct bpe *b, const char *piece, size_t bytes)
{
	return (int32_t)word_slot(b, piece, bytes, XXH3_64bits(piece, bytes))->id1 - 1;
}

static struct pair_slot *pair_slot(const struct bpe *b, uint32_t left, uint32_t right)
{
	uint64_t pair = (uint64_t)left << 32 | right;
	uint64_t hash = (pair ^ pair >> 29) * 0x9e3779b97f4a7c15u; /* odd; the upper bits are well mixed */

	for (size_t i = (hash >> b->pair_shift) & b->pair_mask;; i = (i + 1) & b->pair_mask)
		if (b->pairs[i].pair == pair || b->pairs[i].pair == UINT64_MAX)
			return &b->pairs[i];
}

int64_t bpe_merge(struct bpe *b, int32_t left, int32_t right, int32_t merged, uint32_t rank)
{
	struct pair_slot *s = pair_slot(b, (uint32_t)left, (uint32_t)right);

	assert(rank < NO_RANK);
	if (s->pair != UINT64_MAX)
		return s->rank;
	s->pair = (uint64_t)left << 32 | (uint32_t)right;
	s->rank = rank;
	s->merged = merged;
	return -1;
}

int bpe_finish(struct bpe *b, int ignore_merges, struct err *err)
{
	b->ignore_merges = ignore_merges;
	for (int i = 0; i < 256; i++) {
		char c = (char)i;

		b->of_byte[i] = bpe_find(b, &c, 1);
		if (b->of_byte[i] < 0)
			return err_set(err, ERR_FORMAT, "byte 0x%02x has no token, so not every text can be encoded", i);
	}
	return 0;
}

int32_t bpe_n_ids(const struct bpe *b)
{
	return b->n_ids;
}

enum bpe_kind bpe_kind(const struct bpe *b, int32_t id)
{
	return id < 0 || id >= b->n_ids ? BPE_NONE : (enum bpe_kind)b->tokens[id].kind;
}

const char *bpe_piece(const struct bpe *b, int32_t id, size_t *bytes)
{
	if (bpe_kind(b, id) == BPE_NONE)
		return NULL;
	*bytes = b->tokens[id].bytes;
	return b->text.data + b->tokens[id].offset;
}

/* ---- Merging ---------------------------------------------------------------------------------------------- */

/* A text repeats its words: most pre-tokens are answered here, from one cache line. A slot is overwritten by the
 * next word that falls on it, so a text made to collide costs what it would cost without. */
enum { REMEMBERED_BYTES = 24, REMEMBERED_IDS = 9 };

struct remembered {
	char piece[REMEMBERED_BYTES];
	uint8_t bytes, n_ids;
	int32_t ids[REMEMBERED_IDS];
};
_Static_assert(sizeof(struct remembered) == 64, "a cache line");

/* A long pre-token: a list of symbols, and a heap of the pairs that have a rank. */
struct symbol {
	uint32_t id;
	uint32_t prev, next; /* NONE at the ends */
	uint32_t rank;       /* of the pair that begins here, NO_RANK if none: a heap entry with another is stale */
};

struct bpe_room {
	struct remembered *words;
	size_t word_mask;
	struct symbol *symbols;
	size_t symbols_room;
	uint64_t *heap; /* rank << 32 | position: the order of merging. Four children each */
	size_t heap_n, heap_room;
};

struct bpe_room *bpe_room_new(size_t text_bytes)
{
	struct bpe_room *r = xcalloc(1, sizeof *r);
	size_t n = 64;

	while (n < 16384 && n < text_bytes / 16)
		n *= 2;
	r->words = xcalloc(n, sizeof *r->words);
	r->word_mask = n - 1;
	return r;
}

void bpe_room_free(struct bpe_room *r)
{
	if (!r)
		return;
	free(r->words);
	free(r->symbols);
	free(r->heap);
	free(r);
}

/* The plainest loop: find the lowest rank, merge, look up the two pairs that changed. */
static void encode_short(const struct bpe *b, struct ids *out, const char *piece, size_t n)
{
	uint32_t id[SHORT_SYMBOLS], rank[SHORT_SYMBOLS], merged[SHORT_SYMBOLS];

	for (size_t i = 0; i < n; i++)
		id[i] = (uint32_t)b->of_byte[(unsigned char)piece[i]];
	for (size_t i = 0; i + 1 < n; i++) {
		const struct pair_slot *s = pair_slot(b, id[i], id[i + 1]);

		rank[i] = s->rank; /* an empty slot's is NO_RANK */
		merged[i] = (uint32_t)s->merged;
	}
	for (;;) {
		size_t best = 0;

		for (size_t i = 1; i + 1 < n; i++)
			if (rank[i] < rank[best])
				best = i;
		if (n < 2 || rank[best] == NO_RANK)
			break;
		id[best] = merged[best];
		n--;
		for (size_t i = best + 1; i < n; i++)
			id[i] = id[i + 1];
		for (size_t i = best + 1; i + 1 < n; i++) {
			rank[i] = rank[i + 1];
			merged[i] = merged[i + 1];
		}
		for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
			const struct pair_slot *s = pair_slot(b, id[i], id[i + 1]);

			rank[i] = s->rank;
			merged[i] = (uint32_t)s->merged;
		}
	}
	for (size_t i = 0; i < n; i++)
		ids_push(out, (int32_t)id[i]);
}

static void sift_down(uint64_t *heap, size_t n, size_t i)
{
	uint64_t x = heap[i];

	for (;;) {
		size_t first = 4 * i + 1, least = first;

		if (first >= n)
			break;
		for (size_t c = first + 1; c < first + 4 && c < n; c++)
			if (heap[c] < heap[least])
				least = c;
		if (heap[least] >= x)
			break;
		heap[i] = heap[least];
		i = least;
	}
	heap[i] = x;
}

static void heap_push(struct bpe_room *r, uint64_t x)
{
	size_t i = r->heap_n++;

	while (i && r->heap[(i - 1) / 4] > x) {
		r->heap[i] = r->heap[(i - 1) / 4];
		i = (i - 1) / 4;
	}
	r->heap[i] = x;
}

static uint64_t heap_pop(struct bpe_room *r)
{
	uint64_t x = r->heap[0];

	r->heap[0] = r->heap[--r->heap_n];
	if (r->heap_n)
		sift_down(r->heap, r->heap_n, 0);
	return x;
}

static int make_room(struct bpe_room *r, size_t n, struct err *err)
{
	if (n > r->symbols_room) {
		free(r->symbols);
		r->symbols_room = 0;
		r->symbols = mem_try(n, sizeof *r->symbols, "an unbroken pre-token", err);
		if (!r->symbols)
			return -1;
		r->symbols_room = n;
	}
	/* n - 1 pairs at first; each of at most n - 1 merges takes one entry and leaves at most two. */
	if (2 * n > r->heap_room) {
		free(r->heap);
		r->heap_room = 0;
		r->heap = mem_try(2 * n, sizeof *r->heap, "an unbroken pre-token", err);
		if (!r->heap)
			return -1;
		r->heap_room = 2 * n;
	}
	r->heap_n = 0;
	return 0;
}

/* The pair that begins at `at` is new: note its rank, and queue it if it has one. */
static void queue_pair(const struct bpe *b, struct bpe_room *r, uint32_t at)
{
	struct symbol *s = &r->symbols[at];

	s->rank = s->next == NONE ? NO_RANK : pair_slot(b, s->id, r->symbols[s->next].id)->rank;
	if (s->rank != NO_RANK)
		heap_push(r, (uint64_t)s->rank << 32 | at);
}

static int encode_long(const struct bpe *b, struct bpe_room *r, struct ids *out, const char *piece, size_t n,
		       struct err *err)
{
	struct symbol *symbols;

	if (make_room(r, n, err))
		return -1;
	symbols = r->symbols;
	for (size_t i = 0; i < n; i++) {
		symbols[i].id = (uint32_t)b->of_byte[(unsigned char)piece[i]];
		symbols[i].prev = i ? (uint32_t)i - 1 : NONE;
		symbols[i].next = i + 1 < n ? (uint32_t)i + 1 : NONE;
	}
	for (size_t i = 0; i < n; i++) {
		symbols[i].rank = i + 1 < n ? pair_slot(b, symbols[i].id, symbols[i + 1].id)->rank : NO_RANK;
		if (symbols[i].rank != NO_RANK)
			r->heap[r->heap_n++] = (uint64_t)symbols[i].rank << 32 | i;
	}
	for (size_t i = r->heap_n / 4 + 1; i-- > 0;)
		if (i < r->heap_n)
			sift_down(r->heap, r->heap_n, i);
	while (r->heap_n) {
		uint64_t x = heap_pop(r);
		uint32_t at = (uint32_t)x, gone;
		struct symbol *s = &symbols[at];

		/* A symbol that was merged away, or whose pair changed, has another rank by now: a pair of the same
		 * rank is the same two tokens, and what lies at one place only ever grows. */
		if (s->rank != (uint32_t)(x >> 32))
			continue;
		gone = s->next;
		s->id = (uint32_t)pair_slot(b, s->id, symbols[gone].id)->merged;
		s->next = symbols[gone].next;
		symbols[gone].rank = NO_RANK;
		if (s->next != NONE)
			symbols[s->next].prev = at;
		queue_pair(b, r, at);
		if (s->prev != NONE)
			queue_pair(b, r, s->prev);
	}
	for (uint32_t at = 0; at != NONE; at = symbols[at].next)
		ids_push(out, (int32_t)symbols[at].id);
	return 0;
}

static int encode_new(const struct bpe *b, struct bpe_room *r, struct ids *out, const char *piece, size_t bytes,
		      struct err *err)
{
	int32_t whole = b->ignore_merges && bytes <= BPE_MAX_TOKEN_BYTES ? bpe_find(b, piece, bytes) : -1;

	if (whole >= 0) {
		ids_push(out, whole);
		return 0;
	}
	if (bytes > SHORT_SYMBOLS)
		return encode_long(b, r, out, piece, bytes, err);
	encode_short(b, out, piece, bytes);
	return 0;
}

int bpe_encode(const struct bpe *b, struct bpe_room *r, struct ids *out, const char *piece, size_t bytes,
	       struct err *err)
{
	struct remembered *w;
	size_t first = out->n;

	assert(bytes && bytes <= (size_t)1 << 31);
	if (bytes > REMEMBERED_BYTES)
		return encode_new(b, r, out, piece, bytes, err);
	w = &r->words[XXH3_64bits(piece, bytes) & r->word_mask];
	if (w->bytes == bytes && !memcmp(w->piece, piece, bytes)) {
		ids_append(out, w->ids, w->n_ids);
		return 0;
	}
	if (encode_new(b, r, out, piece, bytes, err))
		return -1;
	if (out->n - first <= REMEMBERED_IDS) {
		w->bytes = (uint8_t)bytes;
		memcpy(w->piece, piece, bytes);
		w->n_ids = (uint8_t)(out->n - first);
		memcpy(w->ids, out->id + first, w->n_ids * sizeof *w->ids);
	}
	return 0;
}
