#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/bpe.h"
#include "engine/pretokenize.h"
#include "engine/tokenizer.h"
#include "config/utf8.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static struct tokenizer *tokenizers[2]; /* glm, deepseek */
static char *corpus;
static size_t corpus_bytes;

static int open_all(void **state)
{
	struct err err;

	(void)state;
	if (tokenizer_open(&tokenizers[0], "tests/golden/tokenizer/glm.json", &err) ||
	    tokenizer_open(&tokenizers[1], "tests/golden/tokenizer/deepseek.json", &err) ||
	    file_read(&corpus, &corpus_bytes, "tests/golden/tokenizer/corpus.bin", 8 << 20, &err)) {
		print_error("%s\n", err.text);
		return -1;
	}
	return 0;
}

static int close_all(void **state)
{
	(void)state;
	tokenizer_close(tokenizers[0]);
	tokenizer_close(tokenizers[1]);
	free(corpus);
	return 0;
}

static uint64_t random_state = 52;

static uint32_t random_below(uint32_t n)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((random_state >> 32) * n >> 32);
}

static void encode(const struct tokenizer *t, struct ids *ids, const char *text, size_t n, unsigned flags)
{
	struct err err = {0};

	ids->n = 0;
	if (tokenizer_encode(t, ids, text, n, flags, &err))
		fail_msg("%s", err.text);
}

static void assert_round_trip(const struct tokenizer *t, const char *text, size_t n, unsigned flags)
{
	struct ids ids = {0};
	struct bytes back = {0};

	encode(t, &ids, text, n, flags);
	tokenizer_decode(t, &back, ids.id, ids.n, 0);
	assert_int_equal(back.n, n);
	if (n)
		assert_memory_equal(back.data, text, n);
	ids_free(&ids);
	bytes_free(&back);
}

/* ---- Against the tokenizers library ----------------------------------------------------------------------- */

static uint32_t read_u32(const char **p)
{
	uint32_t x;

	memcpy(&x, *p, sizeof x);
	*p += sizeof x;
	return x;
}

static uint32_t read_u16(const char **p)
{
	uint16_t x;

	memcpy(&x, *p, sizeof x);
	*p += sizeof x;
	return x;
}

/* Read k ids; k itself is returned. */
static uint32_t read_ids(const char **p, int32_t *ids)
{
	uint32_t k = read_u16(p);

	for (uint32_t i = 0; k != 0xffff && i < k; i++)
		ids[i] = (int32_t)read_u16(p);
	return k;
}

static void assert_ids(const struct ids *got, const int32_t *expected, uint32_t n, uint32_t string, const char *text,
		       uint32_t bytes)
{
	char shown[400];

	if (got->n == n && (!n || !memcmp(got->id, expected, n * sizeof *expected)))
		return;
	err_escape(shown, sizeof shown, text, bytes);
	for (size_t i = 0; i < got->n && i < n; i++)
		if (got->id[i] != expected[i])
			fail_msg("string %u \"%s\": id %zu is %d, not %d", string, shown, i, got->id[i], expected[i]);
	fail_msg("string %u \"%s\": %zu ids, not %u", string, shown, got->n, n);
}

static void every_string_of_the_corpus_has_the_librarys_ids(void **state)
{
	const char *p = corpus + 8;
	uint32_t n = read_u32(&p), m = read_u32(&p);
	static int32_t expected[65536];
	struct ids got = {0};

	(void)state;
	assert_memory_equal(corpus, "quiretok", 8);
	assert_true(n >= 20000);
	p += 2 * m * sizeof(uint32_t);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t bytes = read_u16(&p);
		const char *text = p;

		p += bytes;
		for (int t = 0; t < 2; t++) {
			uint32_t off = read_ids(&p, expected), on;

			encode(tokenizers[t], &got, text, bytes, 0);
			assert_ids(&got, expected, off, i, text, bytes);
			on = read_ids(&p, expected);
			encode(tokenizers[t], &got, text, bytes, TOKENIZER_ADDED_TOKENS);
			assert_ids(&got, expected, on == 0xffff ? off : on, i, text, bytes);
			assert_round_trip(tokenizers[t], text, bytes, TOKENIZER_ADDED_TOKENS);
			assert_round_trip(tokenizers[t], text, bytes, 0);
		}
	}
	assert_ptr_equal(p, corpus + corpus_bytes);
	ids_free(&got);
}

static uint32_t crc32_of(const unsigned char *p, size_t n)
{
	static uint32_t table[256];
	uint32_t crc = UINT32_MAX;

	if (!table[1])
		for (uint32_t i = 0; i < 256; i++) {
			table[i] = i;
			for (int bit = 0; bit < 8; bit++)
				table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
		}
	for (size_t i = 0; i < n; i++)
		crc = crc >> 8 ^ table[(crc ^ p[i]) & 0xff];
	return ~crc;
}

/* Every code point beside a letter, a digit, a blank and itself: no category differs from the library's. */
static void every_code_point_is_cut_as_the_library_cuts_it(void **state)
{
	const char *p = corpus + 12;
	uint32_t m = read_u32(&p);
	struct bytes text = {0};
	struct ids got = {0};

	(void)state;
	for (int t = 0; t < 2; t++)
		for (uint32_t block = 0; block < m; block++) {
			uint32_t expected = read_u32(&p);

			text.n = 0;
			for (uint32_t c = block * 4096; c < (block + 1) * 4096; c++) {
				static const char between[] = "a\0 \0001\0\n\0";
				char utf8[4];
				size_t n = utf8_encode(utf8, c);

				if (c >= 0xd800 && c < 0xe000)
					continue;
				for (const char *b = between; b < between + sizeof between - 1; b += 2) {
					bytes_append(&text, utf8, n);
					bytes_append(&text, b, 1);
				}
				bytes_append(&text, utf8, n);
				bytes_append(&text, utf8, n);
			}
			encode(tokenizers[t], &got, text.data, text.n, 0);
			if (crc32_of((unsigned char *)got.id, got.n * sizeof *got.id) != expected)
				fail_msg("tokenizer %d: ids differ from the library's between U+%04X and U+%04X", t,
					 block * 4096, block * 4096 + 4095);
		}
	bytes_free(&text);
	ids_free(&got);
}

/* ---- Bytes in, bytes out ---------------------------------------------------------------------------------- */

static void any_bytes_come_back_as_they_were(void **state)
{
	static const char *const likely[] = {"\xe2\x82", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\xaf", "\0", " ", "a",
					     "\xff", "\xe4\xb8\xad", "\n", "\xf0\x9f\x98\x80", "1", "<|user|>"};
	char text[200];

	(void)state;
	for (int round = 0; round < (SANITIZED ? 2000 : 20000); round++) {
		size_t n = 0, most = random_below(180);

		while (n < most) {
			if (round % 2) {
				text[n++] = (char)random_below(256);
			} else {
				const char *s = likely[random_below(sizeof likely / sizeof *likely)];
				size_t bytes = *s ? strlen(s) : 1;

				memcpy(text + n, s, bytes);
				n += bytes;
			}
		}
		for (int t = 0; t < 2; t++)
			assert_round_trip(tokenizers[t], text, n, round % 3 ? TOKENIZER_ADDED_TOKENS : 0);
	}
}

/* What a run of broken bytes becomes does not depend on what surrounds it. */
static void broken_bytes_are_pretokens_of_their_own(void **state)
{
	struct ids whole = {0}, parts = {0};
	static const char *const pieces[] = {"caf\xc3\xa9 ", "\xff\xfe\xc3", "au lait\n", "\xe2\x82", "\0\0"};
	struct bytes text = {0};
	struct err err;

	(void)state;
	for (size_t i = 0; i < 5; i++) {
		size_t n = i == 4 ? 2 : strlen(pieces[i]);

		bytes_append(&text, pieces[i], n);
		assert_int_equal(tokenizer_encode(tokenizers[0], &parts, pieces[i], n, 0, &err), 0);
	}
	encode(tokenizers[0], &whole, text.data, text.n, 0);
	assert_int_equal(whole.n, parts.n);
	assert_memory_equal(whole.id, parts.id, parts.n * sizeof *parts.id);
	ids_free(&whole);
	ids_free(&parts);
	bytes_free(&text);
}

static void no_text_spells_an_added_token_unless_asked(void **state)
{
	static const char *const control[] = {"<|user|>", "[gMASK]", "<sop>", "<think>", "</think>", "<|", "|>", "user",
					      "<｜User｜>", "<｜begin▁of▁sentence｜>", "<", ">", " ", "\n", "<|EOT|>", "x"};
	struct ids ids = {0};
	int with = 0;

	(void)state;
	for (int round = 0; round < (SANITIZED ? 2000 : 30000); round++) {
		char text[300];
		size_t n = 0;

		for (uint32_t k = 1 + random_below(6); k > 0; k--) {
			const char *s = control[random_below(sizeof control / sizeof *control)];
			size_t from = random_below(4) ? 0 : random_below((uint32_t)strlen(s));

			n += (size_t)snprintf(text + n, sizeof text - n, "%s", s + from);
		}
		for (int t = 0; t < 2; t++) {
			encode(tokenizers[t], &ids, text, n, 0);
			for (size_t i = 0; i < ids.n; i++)
				assert_false(tokenizer_is_added(tokenizers[t], ids.id[i]));
			encode(tokenizers[t], &ids, text, n, TOKENIZER_ADDED_TOKENS);
			for (size_t i = 0; i < ids.n; i++)
				with += tokenizer_is_added(tokenizers[t], ids.id[i]);
		}
	}
	assert_true(with > 1000);
	ids_free(&ids);
}

static void skip_special_leaves_out_special_tokens_and_nothing_else(void **state)
{
	const char text[] = "[gMASK]<sop>a<think>b";
	struct ids ids = {0};
	struct bytes out = {0};
	size_t n;

	(void)state;
	encode(tokenizers[0], &ids, text, strlen(text), TOKENIZER_ADDED_TOKENS);
	assert_int_equal(ids.n, 5);
	assert_int_equal(ids.id[0], tokenizer_added_id(tokenizers[0], "[gMASK]"));
	assert_int_equal(ids.id[3], tokenizer_added_id(tokenizers[0], "<think>"));
	assert_int_equal(tokenizer_added_id(tokenizers[0], "a"), -1);
	tokenizer_decode(tokenizers[0], &out, ids.id, ids.n, TOKENIZER_SKIP_SPECIAL);
	assert_int_equal(out.n, 9);
	assert_memory_equal(out.data, "a<think>b", 9);
	assert_null(tokenizer_piece(tokenizers[0], -1, &n));
	assert_null(tokenizer_piece(tokenizers[0], tokenizer_n_ids(tokenizers[0]), &n));
	ids_free(&ids);
	bytes_free(&out);
}

/* ---- Merging ---------------------------------------------------------------------------------------------- */

/* The definition: look at all pairs, merge the leftmost of the lowest rank, again. */
static size_t merge_plainly(int64_t rank_of[64][64], int32_t merged[64][64], int32_t *ids, size_t n)
{
	for (;;) {
		size_t best = n;

		for (size_t i = 0; i + 1 < n; i++)
			if (rank_of[ids[i]][ids[i + 1]] >= 0 &&
			    (best == n || rank_of[ids[i]][ids[i + 1]] < rank_of[ids[best]][ids[best + 1]]))
				best = i;
		if (best == n)
			return n;
		ids[best] = merged[ids[best]][ids[best + 1]];
		memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
		n--;
	}
}

/* Ids 0 to 2 are a, b, c; further tokens are random concatenations, their merges in random order: new pairs may
 * rank below the one that made them, which no training would give. */
static void long_and_short_pretokens_merge_by_the_definition(void **state)
{
	(void)state;
	for (int round = 0; round < (SANITIZED ? 30 : 300); round++) {
		static int64_t rank_of[64][64];
		static int32_t merged[64][64];
		struct bpe *b = bpe_new(1024, 400, 64);
		struct bpe_room *room = bpe_room_new(1000);
		char pieces[64][600];
		size_t bytes[64], n_pieces = 3;
		struct err err;

		memset(rank_of, 0xff, sizeof rank_of);
		for (int i = 0; i < 256; i++) {
			char c = (char)i;

			bpe_token(b, i >= 'a' && i <= 'c' ? i - 'a' : 100 + i, &c, 1, BPE_ORDINARY);
		}
		for (size_t i = 0; i < 3; i++) {
			pieces[i][0] = (char)('a' + i);
			bytes[i] = 1;
		}
		for (int tries = 0; tries < 60; tries++) {
			size_t left = random_below((uint32_t)n_pieces), right = random_below((uint32_t)n_pieces);
			char piece[600];
			size_t n = bytes[left] + bytes[right];
			int32_t id;
			int64_t rank = random_below(1000) * 64 + tries;

			if (n > 20)
				continue;
			memcpy(piece, pieces[left], bytes[left]);
			memcpy(piece + bytes[left], pieces[right], bytes[right]);
			id = bpe_find(b, piece, n);
			if (id < 0) {
				id = (int32_t)n_pieces;
				memcpy(pieces[id], piece, n);
				bytes[n_pieces++] = n;
				bpe_token(b, id, piece, n, BPE_ORDINARY);
			}
			if (rank_of[left][right] < 0) {
				assert_int_equal(bpe_merge(b, (int32_t)left, (int32_t)right, id, (uint32_t)rank), -1);
				rank_of[left][right] = rank;
				merged[left][right] = id;
			}
		}
		assert_int_equal(bpe_finish(b, 0, &err), 0);
		for (int i = 0; i < 60; i++) {
			char text[300];
			int32_t expected[300];
			size_t n = 1 + random_below(i % 2 ? 45 : 300), k;
			uint32_t letters = 1 + random_below(3);
			struct ids got = {0};

			for (size_t j = 0; j < n; j++) {
				expected[j] = (int32_t)random_below(letters);
				text[j] = (char)('a' + expected[j]);
			}
			k = merge_plainly(rank_of, merged, expected, n);
			assert_int_equal(bpe_encode(b, room, &got, text, n, &err), 0);
			assert_int_equal(got.n, k);
			assert_memory_equal(got.id, expected, k * sizeof *expected);
			ids_free(&got);
		}
		bpe_room_free(room);
		bpe_free(b);
	}
}

/* ---- Time and stack --------------------------------------------------------------------------------------- */

enum { N_SHAPES = 12 };

/* Text on which a splitter or a merge loop may turn quadratic or recursive. */
static void fill_shape(char *text, size_t n, int shape)
{
	static const char *const repeated[] = {"a", "\xcc\x81", " ", "\xff", "\0", "a\xcc\x81", "\n ", "\xe4\xb8\xad", "="};

	if (shape < 9) {
		size_t unit = shape == 4 ? 1 : strlen(repeated[shape]);

		for (size_t i = 0; i < n; i++)
			text[i] = repeated[shape][i % unit];
	} else if (shape == 9) { /* blanks, and then not the end */
		memset(text, ' ', n);
		text[n - 1] = 'x';
	} else if (shape == 10) { /* one base64 line */
		for (size_t i = 0; i < n; i++)
			text[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[random_below(64)];
	} else { /* letters that keep merging */
		for (size_t i = 0; i < n; i++)
			text[i] = "etaoinshr"[random_below(9)];
	}
}

static double seconds_to_encode(const struct tokenizer *t, const char *text, size_t n)
{
	struct timespec a, b;
	struct ids ids = {0};

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
	encode(t, &ids, text, n, TOKENIZER_ADDED_TOKENS);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
	ids_free(&ids);
	return (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

static void twice_the_text_takes_twice_the_time(void **state)
{
	size_t n = SANITIZED ? 200000 : 1500000; /* beyond the caches, both times */
	char *text = malloc(2 * n);

	(void)state;
	for (int shape = 0; shape < N_SHAPES; shape++)
		for (int t = 0; t < 2; t++) {
			double once, twice;
			int tries = 0;

			/* The machine has other work: one quiet moment is enough. A quadratic step gives 4 every time. */
			do {
				fill_shape(text, n, shape);
				once = seconds_to_encode(tokenizers[t], text, n);
				fill_shape(text, 2 * n, shape);
				twice = seconds_to_encode(tokenizers[t], text, 2 * n);
			} while (twice > 2.6 * once && ++tries < 12);
			if (twice > 2.6 * once)
				fail_msg("shape %d, tokenizer %d: %zu bytes took %.4f s, twice as many %.4f s", shape, t, n, once,
					 twice);
		}
	free(text);
}

static void *encode_every_shape(void *text)
{
	size_t n = SANITIZED ? 300000 : 10000000;

	for (int shape = 0; shape < N_SHAPES; shape++) {
		fill_shape(text, n, shape);
		assert_round_trip(tokenizers[shape % 2], text, n, 0);
		if (SANITIZED)
			assert_round_trip(tokenizers[!(shape % 2)], text, n, TOKENIZER_ADDED_TOKENS);
	}
	return text;
}

static void ten_megabytes_of_anything_need_no_more_than_64_kib_of_stack(void **state)
{
	char *text = malloc(10000000);
	pthread_attr_t attr;
	pthread_t thread;
	void *result;

	(void)state;
	pthread_attr_init(&attr);
	assert_int_equal(pthread_attr_setstacksize(&attr, SANITIZED ? 1 << 20 : 64 << 10), 0);
	assert_int_equal(pthread_create(&thread, &attr, encode_every_shape, text), 0);
	assert_int_equal(pthread_join(thread, &result), 0);
	assert_ptr_equal(result, text);
	pthread_attr_destroy(&attr);
	free(text);
}

/* ---- Patterns --------------------------------------------------------------------------------------------- */

static int join_pieces(void *ctx, const char *piece, size_t bytes, struct err *err)
{
	(void)err;
	bytes_append(ctx, piece, bytes);
	bytes_append(ctx, "|", 1);
	return 0;
}

/* The pieces of a text, each followed by a bar; or why the pattern is refused. */
static const char *cut_by(const char *pattern, const char *text)
{
	static char shown[1100];
	struct pretokenizer *p = pretokenizer_new();
	struct bytes out = {0};
	struct err err = {0};

	if (pretokenizer_add(p, pattern, strlen(pattern), &err)) {
		snprintf(shown, sizeof shown, "%s", err.text);
	} else {
		struct pretokenize_room *room = pretokenize_room_new(p);

		assert_int_equal(pretokenize(p, room, text, strlen(text), join_pieces, &out, &err), 0);
		snprintf(shown, sizeof shown, "%.*s", (int)out.n, out.data);
		pretokenize_room_free(room);
	}
	pretokenizer_free(p);
	bytes_free(&out);
	return shown;
}

static void patterns_cut_by_hand_checked_rules(void **state)
{
	(void)state;
	assert_string_equal(cut_by(pretokenizer_gpt2, "I'm  here, 12345 x\n"), "I|'m| | here|,| 12345| x|\n|");
	assert_string_equal(cut_by("\\p{N}{1,3}", "a12345 6"), "a|123|45| |6|");
	assert_string_equal(cut_by("(?i:'s|'ll)", "IT'S 'LL 'l"), "IT|'S| |'LL| 'l|");
	assert_string_equal(cut_by("[^\\s]+", "a\xc2\x85" "b"), "a|\xc2\x85|b|"); /* U+0085 is a blank */
	assert_string_equal(cut_by("\\s+", "a\xe1\xa0\x8e" "b"), "a\xe1\xa0\x8e" "b|"); /* U+180E is none */
	assert_string_equal(cut_by("\\p{L}+", "\xe1\xb2\x89-"), "\xe1\xb2\x89|-|"); /* U+1C89: Unicode 16 */
	assert_string_equal(cut_by("[+\\-]x?", "+x--x"), "+x|-|-x|");
}

static void patterns_that_engines_read_differently_are_refused(void **state)
{
	static const char *const refused[][2] = {
		{"[a&&b]", "intersections"}, {"[[a]b]", "must be escaped"}, {"[\\S]", "escape"}, {"[a-]", "must be escaped"},
		{"a++", "possessive"}, {"a*?", "lazy"}, {"(a+)+", "not supported here"}, {"(?:a+)+", "may not repeat"},
		{"(?<=a)b", "not supported here"}, {"a$", "not supported here"}, {".", "not supported here"},
		{"\\w+", "escape"}, {"\\h", "escape"}, {"\\p{Han}", "categories"}, {"\\pL", "braces"}, {"\\p{Mn}", "categories"},
		{"(?i:stop)", "ligature"}, {"(?i:[a])", "only words"}, {"a|", "match nothing"}, {"a*", "match nothing"},
		{"a{2,1}", "m <= n"}, {"a{,3}", "m <= n"}, {"a{1,300}", "m <= n"}, {"[a", "does not end"}, {"(?:a", "does not end"},
		{"(?i:a", "does not end"}, {"(?!\\S)a", "at the end"}, {"[b-a]", "ends before"}, {"a\\", "escape"}, {"\\x41", "escape"},
		{"(?:(?:a))", "inside a group"}, {"\xff", "UTF-8"}, {"[]a]", "must be escaped"}, {"", "match nothing"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
		const char *got = cut_by(refused[i][0], "");

		if (strncmp(got, "pattern", 7) || !strstr(got, refused[i][1]))
			fail_msg("%s: \"%s\" does not say \"%s\"", refused[i][0], got, refused[i][1]);
	}
}

/* ---- Bad files -------------------------------------------------------------------------------------------- */

/* A tokenizer.json with tokens for all bytes, ab 256, abc 257 and <s> 300, where each part may be another. */
struct parts {
	const char *normalizer, *pre_tokenizer, *decoder, *added, *vocab, *merges, *model;
};

static const char *or_else(const char *text, const char *usual)
{
	return text ? text : usual;
}

static char *make_json(struct parts p)
{
	static char out[16384];
	char vocab[8192];
	size_t n = 0;
	uint32_t other = 0x100;

	for (int b = 0; b < 256; b++) {
		char c[8];
		size_t bytes;

		if ((b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad))
			bytes = utf8_encode(c, (uint32_t)b);
		else
			bytes = utf8_encode(c, other++);
		n += (size_t)snprintf(vocab + n, sizeof vocab - n, "\"%s%.*s\": %d, ", b == '"' || b == '\\' ? "\\" : "",
				      (int)bytes, c, b);
	}
	snprintf(out, sizeof out,
		 "{\"normalizer\": %s, \"pre_tokenizer\": %s, \"decoder\": %s, \"added_tokens\": [%s], "
		 "\"model\": {\"type\": \"BPE\", %s \"vocab\": {%s %s}, \"merges\": [%s]}}",
		 or_else(p.normalizer, "null"),
		 or_else(p.pre_tokenizer, "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}"),
		 or_else(p.decoder, "{\"type\": \"ByteLevel\"}"),
		 or_else(p.added, "{\"id\": 300, \"content\": \"<s>\", \"single_word\": false, \"lstrip\": false, "
				  "\"rstrip\": false, \"normalized\": false, \"special\": true}"),
		 or_else(p.model, ""), vocab, or_else(p.vocab, "\"ab\": 256, \"abc\": 257"),
		 or_else(p.merges, "\"a b\", [\"ab\", \"c\"]"));
	return out;
}

static const char *refusal_of(const char *json)
{
	static struct err err;
	struct tokenizer *t;

	err.text[0] = '\0';
	if (!tokenizer_parse(&t, "t.json", json, strlen(json), &err))
		tokenizer_close(t);
	return err.text;
}

#define REFUSED(sentence, ...) assert_string_equal(refusal_of(make_json((struct parts){__VA_ARGS__})), sentence)
#define TOKEN(id, text, more) "{\"id\": " #id ", \"content\": \"" text "\", \"normalized\": false, \"special\": true, " more "}"
#define PLAIN "\"single_word\": false, \"lstrip\": false, \"rstrip\": false"

static void a_file_in_order_is_accepted(void **state)
{
	struct tokenizer *t;
	struct err err;
	struct ids ids = {0};
	const char *json = make_json((struct parts){0});
	size_t n;

	(void)state;
	assert_int_equal(tokenizer_parse(&t, "t.json", json, strlen(json), &err), 0);
	encode(t, &ids, "abcab<s>", 8, TOKENIZER_ADDED_TOKENS);
	assert_int_equal(ids.n, 3);
	assert_int_equal(ids.id[0], 257);
	assert_int_equal(ids.id[1], 256);
	assert_int_equal(ids.id[2], 300);
	assert_int_equal(tokenizer_n_ids(t), 301);
	assert_null(tokenizer_piece(t, 299, &n)); /* a hole between the vocabulary and the added token */
	assert_string_equal(refusal_of(make_json((struct parts){.normalizer = "{\"type\": \"Sequence\", \"normalizers\": []}"})),
			    "");
	ids_free(&ids);
	tokenizer_close(t);
}

static void what_disagrees_is_refused_by_name_and_value(void **state)
{
	(void)state;
	REFUSED("t.json: model.vocab[\"ab\"] and model.vocab[\"abc\"] are both 256", .vocab = "\"ab\": 256, \"abc\": 256");
	REFUSED("t.json: model.vocab[\"ab\"] is -1, it must lie between 0 and 4194303", .vocab = "\"ab\": -1");
	REFUSED("t.json: model.vocab[\"ab\"] is 4194304, it must lie between 0 and 4194303", .vocab = "\"ab\": 4194304");
	REFUSED("t.json: model.vocab[\"ab\"] is a number, an integer is expected", .vocab = "\"ab\": 1e3");
	REFUSED("t.json: model.vocab[\"a b\"] is neither byte-level text nor an added token", .vocab = "\"a b\": 256");
	REFUSED("t.json: model.vocab[\"\"] has 0 bytes, 1 to 4096 are expected", .vocab = "\"\": 256");
	REFUSED("t.json: model.merges[1] names \"bd\", which is no ordinary token of model.vocab",
		.merges = "\"a b\", \"ab bd\"");
	REFUSED("t.json: model.merges[0] makes \"ba\", which is no ordinary token of model.vocab", .merges = "\"b a\"");
	REFUSED("t.json: model.merges[0] and model.merges[2] are the same pair",
		.merges = "\"a b\", \"ab c\", [\"a\", \"b\"]");
	REFUSED("t.json: model.merges[0] is \"ab\", two tokens and one space are expected", .merges = "\"ab\"");
	REFUSED("t.json: model.merges[0] is \"a b c\", two tokens and one space are expected", .merges = "\"a b c\"");
	REFUSED("t.json: model.merges[0] names \"\", which is no ordinary token of model.vocab", .merges = "\" b\"");
	REFUSED("t.json: model.merges[0] is an array, \"a b\" or [\"a\", \"b\"] is expected", .merges = "[\"a\"]");
	REFUSED("t.json: added_tokens[0].content has 0 bytes, 1 to 1024 are expected", .added = TOKEN(300, "", PLAIN));
	REFUSED("t.json: id 257 is both model.vocab[\"abc\"] and added token \"<s>\"", .added = TOKEN(257, "<s>", PLAIN));
	REFUSED("t.json: added_tokens[0] \"ab\" has id 300, in model.vocab it has 256", .added = TOKEN(300, "ab", PLAIN));
	/* Text must not be able to spell an added token: one that merges lead to is no token for merges. */
	REFUSED("t.json: model.merges[0] makes \"ab\", which is no ordinary token of model.vocab",
		.added = TOKEN(256, "ab", PLAIN));
	REFUSED("t.json: added tokens \"<s>\" and \"<t>\" both have id 300",
		.added = TOKEN(300, "<s>", PLAIN) ", " TOKEN(300, "<t>", PLAIN));
	REFUSED("t.json: added token \"<s>\" is listed twice, with ids 300 and 301",
		.added = TOKEN(300, "<s>", PLAIN) ", " TOKEN(301, "<s>", PLAIN));
	REFUSED("t.json: added_tokens[0].lstrip is true, which is not supported",
		.added = TOKEN(300, "<s>", "\"single_word\": false, \"lstrip\": true, \"rstrip\": false"));
	REFUSED("t.json: added_tokens[0].single_word is absent, true or false is expected",
		.added = TOKEN(300, "<s>", "\"lstrip\": true"));
	REFUSED("t.json: model.byte_fallback is true, it must be absent, null or off", .model = "\"byte_fallback\": true,");
	REFUSED("t.json: model.dropout is a number, it must be absent, null or off", .model = "\"dropout\": 0.1,");
	REFUSED("t.json: model.ignore_merges is an integer, true or false is expected", .model = "\"ignore_merges\": 1,");
}

static void what_is_not_supported_is_refused_by_its_key(void **state)
{
	(void)state;
	REFUSED("t.json: normalizer.type is \"NFC\", only \"Sequence\" is supported", .normalizer = "{\"type\": \"NFC\"}");
	REFUSED("t.json: normalizer.normalizers[0] is of type \"NFC\", no normalizer is supported",
		.normalizer = "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}]}");
	REFUSED("t.json: pre_tokenizer is null, an object is expected", .pre_tokenizer = "null");
	REFUSED("t.json: pre_tokenizer.type is \"Metaspace\", only \"Sequence\" and \"ByteLevel\" are supported",
		.pre_tokenizer = "{\"type\": \"Metaspace\"}");
	REFUSED("t.json: pre_tokenizer.add_prefix_space is true, which is not supported",
		.pre_tokenizer = "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}");
	REFUSED("t.json: pre_tokenizer.pretokenizers[0].type is \"Digits\", only \"Split\" is supported",
		.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\"}, {\"type\": \"ByteLevel\"}]}");
	REFUSED("t.json: pre_tokenizer.pretokenizers[0].type is \"Split\", only \"ByteLevel\" is supported",
		.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\"}]}");
	REFUSED("t.json: pre_tokenizer.pretokenizers[0].pattern.Regex is absent, a string is expected",
		.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": "
				 "{\"String\": \"x\"}}, {\"type\": \"ByteLevel\"}]}");
	REFUSED("t.json: pre_tokenizer.pretokenizers[0].behavior is \"Removed\", only \"Isolated\" is supported",
		.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": "
				 "{\"Regex\": \"x\"}, \"behavior\": \"Removed\"}, {\"type\": \"ByteLevel\"}]}");
	REFUSED("t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: pattern, byte 2, at \"+\": lazy and possessive "
		"quantifiers are not supported",
		.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": "
				 "{\"Regex\": \"x++\"}, \"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\"}]}");
	REFUSED("t.json: decoder.type is \"WordPiece\", only \"ByteLevel\" is supported",
		.decoder = "{\"type\": \"WordPiece\"}");
	assert_string_equal(refusal_of("[]"), "t.json: an object is expected");
	assert_string_equal(refusal_of("{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}}"),
			    "t.json: model is absent, an object is expected");
}

static void a_byte_without_a_token_is_refused(void **state)
{
	(void)state;
	assert_string_equal(
		refusal_of("{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, "
			   "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": []}}"),
		"t.json: model.vocab: byte 0x00 has no token, so not every text can be encoded");
}

static void a_file_cut_anywhere_is_refused(void **state)
{
	const char *json = make_json((struct parts){0});
	size_t n = strlen(json);
	struct tokenizer *t;
	struct err err;

	(void)state;
	for (size_t i = 0; i < n; i += 1 + i % 3)
		assert_int_equal(tokenizer_parse(&t, "t.json", json, i, &err), -1);
}

/* ---- Streaming -------------------------------------------------------------------------------------------- */

/* Right-hand sides: bytes.decode("utf-8", "replace") of the left-hand ones. */
static void a_stream_gives_whole_characters_however_it_is_cut(void **state)
{
	static const char *const cases[][2] = {
		{"caf\xc3\xa9 \xe4\xb8\xad\xf0\x9f\x98\x80!", "caf\xc3\xa9 \xe4\xb8\xad\xf0\x9f\x98\x80!"},
		{"a\xff" "b", "a\xef\xbf\xbd" "b"},
		{"\xe4\xb8", "\xef\xbf\xbd"},
		{"\xe4\xb8" "a", "\xef\xbf\xbd" "a"},
		{"\xf0\x9f\x98\xe4\xb8\xad", "\xef\xbf\xbd\xe4\xb8\xad"},
		{"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
		{"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
		{"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
		{"\xe2\x82\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac"},
		{"\xc3\xc3\xa9", "\xef\xbf\xbd\xc3\xa9"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		for (unsigned cuts = 0; cuts < 256; cuts++) { /* a bit for each place to cut at */
			struct text_stream s = {0};
			struct bytes out = {0};
			const char *text = cases[i][0];
			size_t n = strlen(text), first = 0;

			for (size_t at = 1; at <= n; at++)
				if (at == n || cuts >> at % 8 & 1) {
					text_stream_push(&s, &out, text + first, at - first);
					first = at;
				}
			text_stream_end(&s, &out);
			assert_int_equal(out.n, strlen(cases[i][1]));
			assert_memory_equal(out.data, cases[i][1], out.n);
			bytes_free(&out);
		}
}

static void a_stream_holds_back_no_more_than_a_character(void **state)
{
	struct text_stream s = {0};
	struct bytes out = {0};

	(void)state;
	text_stream_push(&s, &out, "ab\xf0\x9f", 4);
	assert_int_equal(out.n, 2);
	text_stream_push(&s, &out, "\x98", 1);
	assert_int_equal(out.n, 2);
	text_stream_push(&s, &out, "\x80", 1);
	assert_int_equal(out.n, 6);
	bytes_free(&out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_string_of_the_corpus_has_the_librarys_ids),
		cmocka_unit_test(every_code_point_is_cut_as_the_library_cuts_it),
		cmocka_unit_test(any_bytes_come_back_as_they_were),
		cmocka_unit_test(broken_bytes_are_pretokens_of_their_own),
		cmocka_unit_test(no_text_spells_an_added_token_unless_asked),
		cmocka_unit_test(skip_special_leaves_out_special_tokens_and_nothing_else),
		cmocka_unit_test(long_and_short_pretokens_merge_by_the_definition),
		cmocka_unit_test(twice_the_text_takes_twice_the_time),
		cmocka_unit_test(ten_megabytes_of_anything_need_no_more_than_64_kib_of_stack),
		cmocka_unit_test(patterns_cut_by_hand_checked_rules),
		cmocka_unit_test(patterns_that_engines_read_differently_are_refused),
		cmocka_unit_test(a_file_in_order_is_accepted),
		cmocka_unit_test(what_disagrees_is_refused_by_name_and_value),
		cmocka_unit_test(what_is_not_supported_is_refused_by_its_key),
		cmocka_unit_test(a_byte_without_a_token_is_refused),
		cmocka_unit_test(a_file_cut_anywhere_is_refused),
		cmocka_unit_test(a_stream_gives_whole_characters_however_it_is_cut),
		cmocka_unit_test(a_stream_holds_back_no_more_than_a_character),
	};

	return cmocka_run_group_tests(tests, open_all, close_all);
}
