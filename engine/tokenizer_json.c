#include "engine/tokenizer_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "config/mem.h"
#include "config/utf8.h"

enum { MAX_ADDED = 65536, MAX_ADDED_BYTES = 1024 };

struct reading {
	const char *name;
	const json_t *root, *model, *vocab;
	struct tokenizer_file *f;
	int32_t n_ids;
	int32_t *added_of_id; /* [n_ids], index into f->added, or -1 */
	struct err *err;
};

/* ---- Byte-level characters -------------------------------------------------------------------------------- */

/* ByteLevel writes a byte as a printable character: itself where it is one in Latin-1, else one from U+0100 on,
 * in the order of the bytes. */
static int is_written_as_itself(unsigned c)
{
	return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

/* The byte that a character stands for, -1 if it stands for none. */
static int byte_of_char(uint32_t c)
{
	static const unsigned char others[] = {
		0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10,
		0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x7f,
		0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x90,
		0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xad,
	};

	if (c < 0x100)
		return is_written_as_itself(c) ? (int)c : -1;
	return c - 0x100 < sizeof others ? others[c - 0x100] : -1;
}

/* The bytes of a token as written; never more than its UTF-8. -1: not byte-level. out has room for n. */
static int64_t bytes_of_written(char *out, const char *written, size_t n)
{
	const unsigned char *p = (const unsigned char *)written, *end = p + n;
	int64_t bytes = 0;

	while (p < end) {
		uint32_t c = 0;
		size_t length = utf8_decode(p, (size_t)(end - p), &c);
		int byte = length ? byte_of_char(c) : -1;

		if (byte < 0)
			return -1;
		out[bytes++] = (char)byte;
		p += length;
	}
	return bytes;
}

/* ---- Added tokens ----------------------------------------------------------------------------------------- */

static int read_added_token(struct reading *r, const json_t *token, size_t index)
{
	static const char *const unsupported[] = {"single_word", "lstrip", "rstrip"};
	struct added_token *a = &r->f->added[index];
	char where[40];
	const char *text;
	const json_t *in_vocab;
	int64_t id;
	int yes;

	snprintf(where, sizeof where, "added_tokens[%zu]", index);
	if (!json_is_object(token))
		return err_set(r->err, ERR_FORMAT, "%s: %s is %s, an object is expected", r->name, where,
			       json_kind(token));
	if (json_get_integer(&id, token, "id", 0, BPE_MAX_IDS - 1, r->name, where, r->err) ||
	    json_get_string(&text, token, "content", r->name, where, r->err) ||
	    json_get_boolean(&a->special, token, "special", r->name, where, r->err) ||
	    json_get_boolean(&a->normalized, token, "normalized", r->name, where, r->err))
		return -1;
	for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
		if (json_get_boolean(&yes, token, unsupported[i], r->name, where, r->err))
			return -1;
		if (yes)
			return err_set(r->err, ERR_FORMAT, "%s: %s.%s is true, which is not supported", r->name, where,
				       unsupported[i]);
	}
	a->bytes = json_string_length(json_object_get(token, "content"));
	if (!a->bytes || a->bytes > MAX_ADDED_BYTES)
		return err_set(r->err, ERR_FORMAT, "%s: %s.content has %zu bytes, 1 to %d are expected", r->name, where,
			       a->bytes, MAX_ADDED_BYTES);
	a->text = xstrndup(text, a->bytes);
	a->id = (int32_t)id;
	in_vocab = json_object_get(r->vocab, text);
	if (json_is_integer(in_vocab) && json_integer_value(in_vocab) != id)
		return err_set(r->err, ERR_FORMAT, "%s: %s \"%.80s\" has id %lld, in model.vocab it has %lld", r->name,
			       where, text, (long long)id, (long long)json_integer_value(in_vocab));
	if (id >= r->n_ids)
		r->n_ids = (int32_t)id + 1;
	return 0;
}

static int by_text(const void *x, const void *y)
{
	const struct added_token *a = *(const struct added_token *const *)x, *b = *(const struct added_token *const *)y;

	return strcmp(a->text, b->text);
}

static int read_added_tokens(struct reading *r)
{
	const json_t *list = json_object_get(r->root, "added_tokens");
	const struct added_token **sorted;
	size_t n = json_array_size(list);
	int failed = 0;

	if (list && !json_is_array(list))
		return err_set(r->err, ERR_FORMAT, "%s: added_tokens is %s, an array is expected", r->name,
			       json_kind(list));
	if (n > MAX_ADDED)
		return err_set(r->err, ERR_FORMAT, "%s: added_tokens has %zu entries, at most %d are supported", r->name, n,
			       MAX_ADDED);
	r->f->added = xcalloc(n, sizeof *r->f->added);
	r->f->n_added = n;
	for (size_t i = 0; i < n; i++)
		if (read_added_token(r, json_array_get(list, i), i))
			return -1;
	sorted = xmalloc(n, sizeof *sorted);
	for (size_t i = 0; i < n; i++)
		sorted[i] = &r->f->added[i];
	qsort(sorted, n, sizeof *sorted, by_text);
	for (size_t i = 1; i < n && !failed; i++)
		if (!strcmp(sorted[i - 1]->text, sorted[i]->text))
			failed = err_set(r->err, ERR_FORMAT, "%s: added token \"%.80s\" is listed twice, with ids %d and %d",
					 r->name, sorted[i]->text, sorted[i - 1]->id, sorted[i]->id);
	free(sorted);
	return failed;
}

/* ---- Vocabulary and merges -------------------------------------------------------------------------------- */

static int vocab_ids(struct reading *r)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)r->vocab, key, value)
	{
		if (!json_is_integer(value))
			return err_set(r->err, ERR_FORMAT, "%s: model.vocab[\"%.80s\"] is %s, an integer is expected",
				       r->name, key, json_kind(value));
		if (json_integer_value(value) < 0 || json_integer_value(value) >= BPE_MAX_IDS)
			return err_set(r->err, ERR_FORMAT,
				       "%s: model.vocab[\"%.80s\"] is %lld, it must lie between 0 and %d", r->name, key,
				       (long long)json_integer_value(value), BPE_MAX_IDS - 1);
		if (json_integer_value(value) >= r->n_ids)
			r->n_ids = (int32_t)json_integer_value(value) + 1;
	}
	return 0;
}

/* The key that has an id, for a message. */
static const char *vocab_key(const struct reading *r, int32_t id, const char *other_than)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)r->vocab, key, value)
	{
		if (json_integer_value(value) == id && strcmp(key, other_than))
			return key;
	}
	return "?";
}

static int read_token(struct reading *r, const char *key, int32_t id)
{
	char piece[BPE_MAX_TOKEN_BYTES];
	size_t n = strlen(key);
	int64_t bytes;
	int32_t a = r->added_of_id[id];

	if (a >= 0 && !strcmp(r->f->added[a].text, key))
		return 0; /* listed in both places: the added one is meant */
	if (a >= 0)
		return err_set(r->err, ERR_FORMAT, "%s: id %d is both model.vocab[\"%.80s\"] and added token \"%.80s\"",
			       r->name, id, key, r->f->added[a].text);
	if (bpe_kind(r->f->bpe, id) != BPE_NONE)
		return err_set(r->err, ERR_FORMAT, "%s: model.vocab[\"%.80s\"] and model.vocab[\"%.80s\"] are both %d",
			       r->name, vocab_key(r, id, key), key, id);
	if (!n || n > BPE_MAX_TOKEN_BYTES)
		return err_set(r->err, ERR_FORMAT, "%s: model.vocab[\"%.80s\"] has %zu bytes, 1 to %d are expected",
			       r->name, key, n, BPE_MAX_TOKEN_BYTES);
	bytes = bytes_of_written(piece, key, n);
	if (bytes < 0)
		return err_set(r->err, ERR_FORMAT, "%s: model.vocab[\"%.80s\"] is neither byte-level text nor an added token",
			       r->name, key);
	bpe_token(r->f->bpe, id, piece, (size_t)bytes, BPE_ORDINARY);
	return 0;
}

static int read_vocab(struct reading *r)
{
	const char *key;
	json_t *value;

	r->added_of_id = xmalloc((size_t)r->n_ids, sizeof *r->added_of_id);
	memset(r->added_of_id, 0xff, (size_t)r->n_ids * sizeof *r->added_of_id);
	for (size_t i = 0; i < r->f->n_added; i++) {
		const struct added_token *a = &r->f->added[i];

		if (r->added_of_id[a->id] >= 0)
			return err_set(r->err, ERR_FORMAT, "%s: added tokens \"%.80s\" and \"%.80s\" both have id %d",
				       r->name, r->f->added[r->added_of_id[a->id]].text, a->text, a->id);
		r->added_of_id[a->id] = (int32_t)i;
		bpe_token(r->f->bpe, a->id, a->text, a->bytes, a->special ? BPE_SPECIAL : BPE_ADDED);
	}
	json_object_foreach((json_t *)r->vocab, key, value)
	{
		if (read_token(r, key, (int32_t)json_integer_value(value)))
			return -1;
	}
	return 0;
}

/* The two sides of merge number `rank` as they are written: "a b" or ["a", "b"]. */
static int merge_sides(struct reading *r, const json_t *merge, size_t rank, const char *side[2], size_t bytes[2])
{
	const char *space;

	if (json_is_array(merge) && json_array_size(merge) == 2 && json_is_string(json_array_get(merge, 0)) &&
	    json_is_string(json_array_get(merge, 1))) {
		for (size_t i = 0; i < 2; i++) {
			side[i] = json_string_value(json_array_get(merge, i));
			bytes[i] = json_string_length(json_array_get(merge, i));
		}
		return 0;
	}
	if (!json_is_string(merge))
		return err_set(r->err, ERR_FORMAT, "%s: model.merges[%zu] is %s, \"a b\" or [\"a\", \"b\"] is expected",
			       r->name, rank, json_kind(merge));
	side[0] = json_string_value(merge);
	space = strchr(side[0], ' ');
	if (!space || strchr(space + 1, ' '))
		return err_set(r->err, ERR_FORMAT, "%s: model.merges[%zu] is \"%.80s\", two tokens and one space are expected",
			       r->name, rank, side[0]);
	bytes[0] = (size_t)(space - side[0]);
	side[1] = space + 1;
	bytes[1] = strlen(side[1]);
	return 0;
}

static int read_merge(struct reading *r, const json_t *merge, size_t rank)
{
	char piece[2 * BPE_MAX_TOKEN_BYTES];
	const char *side[2];
	size_t bytes[2], n = 0;
	int32_t id[2], merged;
	int64_t earlier;

	if (merge_sides(r, merge, rank, side, bytes))
		return -1;
	for (size_t i = 0; i < 2; i++) {
		int64_t got = bytes[i] && bytes[i] <= BPE_MAX_TOKEN_BYTES ? bytes_of_written(piece + n, side[i], bytes[i])
									   : -1;

		id[i] = got > 0 ? bpe_find(r->f->bpe, piece + n, (size_t)got) : -1;
		if (id[i] < 0)
			return err_set(r->err, ERR_FORMAT,
				       "%s: model.merges[%zu] names \"%.*s\", which is no ordinary token of model.vocab",
				       r->name, rank, (int)(bytes[i] < 80 ? bytes[i] : 80), side[i]);
		n += (size_t)got;
	}
	merged = bpe_find(r->f->bpe, piece, n);
	if (merged < 0)
		return err_set(r->err, ERR_FORMAT,
			       "%s: model.merges[%zu] makes \"%.*s%.*s\", which is no ordinary token of model.vocab",
			       r->name, rank, (int)(bytes[0] < 80 ? bytes[0] : 80), side[0],
			       (int)(bytes[1] < 80 ? bytes[1] : 80), side[1]);
	earlier = bpe_merge(r->f->bpe, id[0], id[1], merged, (uint32_t)rank);
	if (earlier >= 0)
		return err_set(r->err, ERR_FORMAT, "%s: model.merges[%zu] and model.merges[%zu] are the same pair",
			       r->name, (size_t)earlier, rank);
	return 0;
}

/* ---- The model -------------------------------------------------------------------------------------------- */

/* A member that must be absent, null, or the given harmless value. */
static int must_be_off(struct reading *r, const char *key)
{
	const json_t *v = json_object_get(r->model, key);

	if (!v || json_is_null(v) || json_is_false(v) || (json_is_string(v) && !json_string_length(v)) ||
	    (json_is_number(v) && json_number_value(v) == 0))
		return 0;
	return err_set(r->err, ERR_FORMAT, "%s: model.%s is %s, it must be absent, null or off", r->name, key,
		       json_kind(v));
}

static int type_must_be(struct reading *r, const json_t *object, const char *where, const char *type)
{
	const char *got;

	if (json_get_string(&got, object, "type", r->name, where, r->err))
		return -1;
	if (strcmp(got, type))
		return err_set(r->err, ERR_FORMAT, "%s: %s.type is \"%.80s\", only \"%s\" is supported", r->name, where,
			       got, type);
	return 0;
}

static int read_model(struct reading *r)
{
	static const char *const off[] = {"dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"};
	const json_t *merges, *ignore;
	size_t i;
	json_t *merge;

	r->model = json_object_get(r->root, "model");
	if (!json_is_object(r->model))
		return err_set(r->err, ERR_FORMAT, "%s: model is %s, an object is expected", r->name,
			       json_kind(r->model));
	if (type_must_be(r, r->model, "model", "BPE"))
		return -1;
	for (i = 0; i < sizeof off / sizeof *off; i++)
		if (must_be_off(r, off[i]))
			return -1;
	r->vocab = json_object_get(r->model, "vocab");
	if (!json_is_object(r->vocab))
		return err_set(r->err, ERR_FORMAT, "%s: model.vocab is %s, an object is expected", r->name,
			       json_kind(r->vocab));
	merges = json_object_get(r->model, "merges");
	if (!json_is_array(merges))
		return err_set(r->err, ERR_FORMAT, "%s: model.merges is %s, an array is expected", r->name,
			       json_kind(merges));
	ignore = json_object_get(r->model, "ignore_merges");
	if (ignore && !json_is_boolean(ignore))
		return err_set(r->err, ERR_FORMAT, "%s: model.ignore_merges is %s, true or false is expected", r->name,
			       json_kind(ignore));
	if (vocab_ids(r) || read_added_tokens(r))
		return -1;
	r->f->bpe = bpe_new(r->n_ids, json_object_size(r->vocab), json_array_size(merges));
	if (read_vocab(r))
		return -1;
	json_array_foreach((json_t *)merges, i, merge)
	{
		if (read_merge(r, merge, i))
			return -1;
	}
	if (bpe_finish(r->f->bpe, json_is_true(ignore), r->err))
		return err_wrap(r->err, "%s: model.vocab", r->name);
	return 0;
}

/* ---- What comes before and after -------------------------------------------------------------------------- */

static int read_byte_level(struct reading *r, const json_t *step, const char *where)
{
	const json_t *use_regex = json_object_get(step, "use_regex");
	int prefix;

	if (json_get_boolean(&prefix, step, "add_prefix_space", r->name, where, r->err))
		return -1;
	if (prefix)
		return err_set(r->err, ERR_FORMAT, "%s: %s.add_prefix_space is true, which is not supported", r->name,
			       where);
	if (use_regex && !json_is_boolean(use_regex))
		return err_set(r->err, ERR_FORMAT, "%s: %s.use_regex is %s, true or false is expected", r->name, where,
			       json_kind(use_regex));
	if (json_is_false(use_regex))
		return 0;
	if (pretokenizer_add(r->f->pretokenizer, pretokenizer_gpt2, strlen(pretokenizer_gpt2), r->err))
		return err_wrap(r->err, "%s: %s", r->name, where);
	return 0;
}

static int read_split(struct reading *r, const json_t *step, const char *where)
{
	const json_t *pattern = json_object_get(step, "pattern"), *regex = json_object_get(pattern, "Regex");
	const json_t *invert = json_object_get(step, "invert");
	const char *behavior;

	if (!json_is_string(regex))
		return err_set(r->err, ERR_FORMAT, "%s: %s.pattern.Regex is %s, a string is expected", r->name, where,
			       json_kind(regex));
	if (json_get_string(&behavior, step, "behavior", r->name, where, r->err))
		return -1;
	if (strcmp(behavior, "Isolated"))
		return err_set(r->err, ERR_FORMAT, "%s: %s.behavior is \"%.80s\", only \"Isolated\" is supported",
			       r->name, where, behavior);
	if (invert && !json_is_false(invert))
		return err_set(r->err, ERR_FORMAT, "%s: %s.invert is %s, only false is supported", r->name, where,
			       json_kind(invert));
	if (pretokenizer_add(r->f->pretokenizer, json_string_value(regex), json_string_length(regex), r->err))
		return err_wrap(r->err, "%s: %s.pattern.Regex", r->name, where);
	return 0;
}

static int read_pretokenizer(struct reading *r)
{
	const json_t *pre = json_object_get(r->root, "pre_tokenizer"), *steps;
	const char *type;
	char where[64];
	size_t n;

	r->f->pretokenizer = pretokenizer_new();
	if (!json_is_object(pre))
		return err_set(r->err, ERR_FORMAT, "%s: pre_tokenizer is %s, an object is expected", r->name,
			       json_kind(pre));
	if (json_get_string(&type, pre, "type", r->name, "pre_tokenizer", r->err))
		return -1;
	if (!strcmp(type, "ByteLevel"))
		return read_byte_level(r, pre, "pre_tokenizer");
	if (strcmp(type, "Sequence"))
		return err_set(r->err, ERR_FORMAT,
			       "%s: pre_tokenizer.type is \"%.80s\", only \"Sequence\" and \"ByteLevel\" are supported",
			       r->name, type);
	steps = json_object_get(pre, "pretokenizers");
	n = json_array_size(steps);
	if (!n)
		return err_set(r->err, ERR_FORMAT, "%s: pre_tokenizer.pretokenizers is %s, steps are expected", r->name,
			       steps ? "empty or no array" : "absent");
	for (size_t i = 0; i < n; i++) {
		const json_t *step = json_array_get(steps, i);

		snprintf(where, sizeof where, "pre_tokenizer.pretokenizers[%zu]", i);
		if (i + 1 == n) {
			if (type_must_be(r, step, where, "ByteLevel") || read_byte_level(r, step, where))
				return -1;
		} else if (type_must_be(r, step, where, "Split") || read_split(r, step, where)) {
			return -1;
		}
	}
	return 0;
}

static int check_normalizer_and_decoder(struct reading *r)
{
	const json_t *normalizer = json_object_get(r->root, "normalizer"), *decoder = json_object_get(r->root, "decoder");
	const json_t *steps = json_object_get(normalizer, "normalizers");

	if (normalizer && !json_is_null(normalizer)) {
		if (type_must_be(r, normalizer, "normalizer", "Sequence"))
			return -1;
		if (!json_is_array(steps))
			return err_set(r->err, ERR_FORMAT, "%s: normalizer.normalizers is %s, an array is expected",
				       r->name, json_kind(steps));
		if (json_array_size(steps)) {
			const char *type = json_string_value(json_object_get(json_array_get(steps, 0), "type"));

			return err_set(r->err, ERR_FORMAT,
				       "%s: normalizer.normalizers[0] is of type \"%.80s\", no normalizer is supported",
				       r->name, type ? type : "?");
		}
	}
	if (decoder && !json_is_null(decoder))
		return type_must_be(r, decoder, "decoder", "ByteLevel");
	return 0;
}

int tokenizer_file_parse(struct tokenizer_file *f, const char *name, const char *text, size_t bytes, struct err *err)
{
	struct reading r = {.name = name, .f = f, .err = err};
	json_t *root;
	int failed;

	memset(f, 0, sizeof *f);
	if (json_parse(&root, name, text, bytes, err))
		return -1;
	r.root = root;
	if (json_is_object(root))
		failed = check_normalizer_and_decoder(&r) || read_pretokenizer(&r) || read_model(&r);
	else
		failed = err_set(err, ERR_FORMAT, "%s: an object is expected", name);
	json_decref(root);
	free(r.added_of_id);
	if (failed) {
		tokenizer_file_free(f);
		return -1;
	}
	return 0;
}

void tokenizer_file_free(struct tokenizer_file *f)
{
	bpe_free(f->bpe);
	pretokenizer_free(f->pretokenizer);
	for (size_t i = 0; i < f->n_added; i++)
		free(f->added[i].text);
	free(f->added);
	memset(f, 0, sizeof *f);
}
