#include "engine/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/bpe.h"
#include "engine/pretokenize.h"
#include "engine/tokenizer_json.h"
#include "config/utf8.h"

enum { MAX_FILE_BYTES = 256 << 20 }; /* GLM-5.2's has about 20 MB */

/* Added tokens as a tree of bytes: the longest that begins at a place is found in one walk. */
struct trie_node {
	int32_t id; /* of the added token that ends here, -1 if none does */
	uint32_t child, sibling; /* 0: none; node 0 is the root */
	unsigned char byte;
};

struct trie {
	struct trie_node *nodes;
	uint32_t n, room;
	unsigned char begins[256]; /* whether any token begins with a byte */
};

struct tokenizer {
	struct tokenizer_file file;
	struct trie passes[2]; /* tokens that are not "normalized", then those that are, in what is left */
};

/* ---- Growable arrays -------------------------------------------------------------------------------------- */

static size_t grown(size_t room, size_t needed)
{
	return needed > room + room / 2 + 16 ? needed : room + room / 2 + 16;
}

void ids_reserve(struct ids *ids, size_t n)
{
	if (ids->room - ids->n >= n)
		return;
	ids->room = grown(ids->room, ids->n + n);
	ids->id = xrealloc(ids->id, ids->room, sizeof *ids->id);
}

void ids_push(struct ids *ids, int32_t id)
{
	if (ids->n == ids->room)
		ids_reserve(ids, 1);
	ids->id[ids->n++] = id;
}

void ids_append(struct ids *ids, const int32_t *id, size_t n)
{
	if (!n)
		return;
	ids_reserve(ids, n);
	memcpy(ids->id + ids->n, id, n * sizeof *id);
	ids->n += n;
}

void ids_free(struct ids *ids)
{
	free(ids->id);
	*ids = (struct ids){0};
}

void bytes_append(struct bytes *b, const char *data, size_t n)
{
	if (!n)
		return;
	if (b->room - b->n < n) {
		b->room = grown(b->room, b->n + n);
		b->data = xrealloc(b->data, b->room, 1);
	}
	memcpy(b->data + b->n, data, n);
	b->n += n;
}

void bytes_free(struct bytes *b)
{
	free(b->data);
	*b = (struct bytes){0};
}

/* ---- Added tokens ----------------------------------------------------------------------------------------- */

static uint32_t trie_node(struct trie *t, unsigned char byte)
{
	if (t->n == t->room) {
		t->room = t->room ? t->room * 2 : 256;
		t->nodes = xrealloc(t->nodes, t->room, sizeof *t->nodes);
	}
	t->nodes[t->n] = (struct trie_node){.id = -1, .byte = byte};
	return t->n++;
}

static uint32_t trie_child(const struct trie *t, uint32_t node, unsigned char byte)
{
	uint32_t c = t->nodes[node].child;

	while (c && t->nodes[c].byte != byte)
		c = t->nodes[c].sibling;
	return c;
}

static void trie_add(struct trie *t, const struct added_token *a)
{
	uint32_t at = 0;

	if (!t->n)
		trie_node(t, 0);
	t->begins[(unsigned char)a->text[0]] = 1;
	for (size_t i = 0; i < a->bytes; i++) {
		unsigned char byte = (unsigned char)a->text[i];
		uint32_t child = trie_child(t, at, byte);

		if (!child) {
			child = trie_node(t, byte);
			t->nodes[child].sibling = t->nodes[at].child;
			t->nodes[at].child = child;
		}
		at = child;
	}
	t->nodes[at].id = a->id;
}

/* The longest added token at the beginning of a text: its id and length; -1 if there is none. */
static int32_t trie_match(const struct trie *t, const char *text, size_t bytes, size_t *length)
{
	int32_t id = -1;
	uint32_t at = 0;

	for (size_t i = 0; i < bytes; i++) {
		at = trie_child(t, at, (unsigned char)text[i]);
		if (!at)
			break;
		if (t->nodes[at].id >= 0) {
			id = t->nodes[at].id;
			*length = i + 1;
		}
	}
	return id;
}

/* ---- Open ------------------------------------------------------------------------------------------------- */

int tokenizer_parse(struct tokenizer **out, const char *name, const char *text, size_t bytes, struct err *err)
{
	struct tokenizer *t = xcalloc(1, sizeof *t);

	if (tokenizer_file_parse(&t->file, name, text, bytes, err)) {
		free(t);
		return -1;
	}
	for (size_t i = 0; i < t->file.n_added; i++)
		trie_add(&t->passes[t->file.added[i].normalized], &t->file.added[i]);
	*out = t;
	return 0;
}

int tokenizer_open(struct tokenizer **out, const char *path, struct err *err)
{
	char *text;
	size_t bytes;
	int failed;

	if (file_read(&text, &bytes, path, MAX_FILE_BYTES, err))
		return -1;
	failed = tokenizer_parse(out, path, text, bytes, err);
	free(text);
	return failed;
}

void tokenizer_close(struct tokenizer *t)
{
	if (!t)
		return;
	tokenizer_file_free(&t->file);
	free(t->passes[0].nodes);
	free(t->passes[1].nodes);
	free(t);
}

/* ---- Encode ----------------------------------------------------------------------------------------------- */

struct encoding {
	const struct tokenizer *t;
	struct ids *out;
	struct pretokenize_room *pretokenize;
	struct bpe_room *bpe;
	struct err *err;
};

static int encode_pretoken(void *ctx, const char *piece, size_t bytes, struct err *err)
{
	struct encoding *e = ctx;

	return bpe_encode(e->t->file.bpe, e->bpe, e->out, piece, bytes, err);
}

/* How many bytes from p are UTF-8. */
static size_t valid_run(const unsigned char *p, size_t bytes)
{
	size_t n = 0;

	while (n < bytes) {
		uint64_t eight;

		if (bytes - n >= sizeof eight) {
			memcpy(&eight, p + n, sizeof eight);
			if (!(eight & 0x8080808080808080u)) {
				n += sizeof eight;
				continue;
			}
		}
		size_t length = utf8_length(p[n]);

		if (!length || utf8_prefix(p + n, bytes - n) != length)
			break;
		n += length;
	}
	return n;
}

/* How many bytes from p begin no character. */
static size_t invalid_run(const unsigned char *p, size_t bytes)
{
	size_t n = 0;

	while (n < bytes) {
		size_t length = utf8_length(p[n]);

		if (length && utf8_prefix(p + n, bytes - n) == length)
			break;
		n++;
	}
	return n;
}

/* Text without added tokens. Patterns are for characters: each run of bytes that are none is a pre-token. */
static int encode_ordinary(struct encoding *e, const char *text, size_t bytes)
{
	while (bytes) {
		size_t n = valid_run((const unsigned char *)text, bytes);

		if (n && pretokenize(e->t->file.pretokenizer, e->pretokenize, text, n, encode_pretoken, e, e->err))
			return -1;
		text += n;
		bytes -= n;
		n = invalid_run((const unsigned char *)text, bytes);
		if (n && encode_pretoken(e, text, n, e->err))
			return -1;
		text += n;
		bytes -= n;
	}
	return 0;
}

static int encode_pass(struct encoding *e, int pass, const char *text, size_t bytes)
{
	const struct trie *t = &e->t->passes[pass < 2 ? pass : 0];
	size_t first = 0, at = 0;

	if (pass == 2)
		return encode_ordinary(e, text, bytes);
	if (!t->n)
		return encode_pass(e, pass + 1, text, bytes);
	while (at < bytes) {
		size_t length = 0;
		int32_t id = -1;

		if (t->begins[(unsigned char)text[at]])
			id = trie_match(t, text + at, bytes - at, &length);
		if (id < 0) {
			at++;
			continue;
		}
		if (encode_pass(e, pass + 1, text + first, at - first))
			return -1;
		ids_push(e->out, id);
		first = at += length;
	}
	return encode_pass(e, pass + 1, text + first, bytes - first);
}

int tokenizer_encode(const struct tokenizer *t, struct ids *out, const char *text, size_t bytes, unsigned flags,
		     struct err *err)
{
	struct encoding e = {.t = t, .out = out, .err = err};
	size_t before = out->n;
	int failed;

	if (bytes > (size_t)1 << 31)
		return err_set(err, ERR_TOO_LARGE, "text of %zu bytes, at most 2 GiB can be tokenized at once", bytes);
	e.pretokenize = pretokenize_room_new(t->file.pretokenizer);
	e.bpe = bpe_room_new(bytes);
	failed = encode_pass(&e, flags & TOKENIZER_ADDED_TOKENS ? 0 : 2, text, bytes);
	pretokenize_room_free(e.pretokenize);
	bpe_room_free(e.bpe);
	if (failed)
		out->n = before;
	return failed;
}

/* ---- Ids to bytes ----------------------------------------------------------------------------------------- */

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *bytes)
{
	return bpe_piece(t->file.bpe, id, bytes);
}

int32_t tokenizer_added_id(const struct tokenizer *t, const char *text)
{
	for (size_t i = 0; i < t->file.n_added; i++)
		if (!strcmp(t->file.added[i].text, text))
			return t->file.added[i].id;
	return -1;
}

int tokenizer_is_added(const struct tokenizer *t, int32_t id)
{
	return bpe_kind(t->file.bpe, id) == BPE_ADDED || bpe_kind(t->file.bpe, id) == BPE_SPECIAL;
}

int tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
	return bpe_kind(t->file.bpe, id) == BPE_SPECIAL;
}

int32_t tokenizer_n_ids(const struct tokenizer *t)
{
	return bpe_n_ids(t->file.bpe);
}

void tokenizer_decode(const struct tokenizer *t, struct bytes *out, const int32_t *ids, size_t n, unsigned flags)
{
	for (size_t i = 0; i < n; i++) {
		size_t bytes;
		const char *piece = tokenizer_piece(t, ids[i], &bytes);

		if (piece && !(flags & TOKENIZER_SKIP_SPECIAL && tokenizer_is_special(t, ids[i])))
			bytes_append(out, piece, bytes);
	}
}

/* ---- Text while it comes ---------------------------------------------------------------------------------- */

static const char replacement[] = "\xef\xbf\xbd";

void text_stream_push(struct text_stream *s, struct bytes *out, const char *piece, size_t bytes)
{
	size_t i = 0;

	while (i < bytes) {
		size_t length;

		if (!s->n_held) { /* the usual case: whole characters, straight through */
			size_t n = valid_run((const unsigned char *)piece + i, bytes - i);

			bytes_append(out, piece + i, n);
			i += n;
			if (i == bytes)
				return;
		}
		s->held[s->n_held++] = (unsigned char)piece[i++];
		length = utf8_length(s->held[0]);
		if (length && utf8_prefix(s->held, s->n_held) == s->n_held) {
			if (s->n_held == length) {
				bytes_append(out, (const char *)s->held, length);
				s->n_held = 0;
			}
			continue;
		}
		/* The last byte does not belong here. What came before it was cut short; the byte itself is looked at
		 * again, unless it is the one that can begin nothing. */
		bytes_append(out, replacement, 3);
		if (s->n_held > 1)
			i--;
		s->n_held = 0;
	}
}

void text_stream_end(struct text_stream *s, struct bytes *out)
{
	if (s->n_held)
		bytes_append(out, replacement, 3);
	s->n_held = 0;
}
