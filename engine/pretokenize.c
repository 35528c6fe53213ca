#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/pretokenize.h"

#include <assert.h>
#include <pcre2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "config/utf8.h"

enum {
	MAX_PATTERNS = 8,
	MAX_PATTERN_BYTES = 16384,
	JIT_STACK_BYTES = 32 << 10,
	JIT_STACK_MOST_BYTES = 1 << 20,
};

const char pretokenizer_gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct pattern {
	pcre2_code *code;
	int has_jit;
};

struct pretokenizer {
	struct pattern patterns[MAX_PATTERNS];
	int n_patterns;
};

struct pretokenize_room {
	pcre2_match_data *match[MAX_PATTERNS];
	pcre2_match_context *context;
	pcre2_jit_stack *stack;
};

/* ---- Rewriting a pattern ---------------------------------------------------------------------------------- */

static const struct {
	uint32_t first, last;
	char category[3];
} unicode_new[] = {
#include "engine/unicode_new.h"
};

/* White_Space as the content of a class. */
static const char white_space[] = "\\t-\\r\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"
				  "\\x{202f}\\x{205f}\\x{3000}";

struct rewrite {
	const char *name; /* of what is being read, for messages */
	const char *text, *p, *end;
	char *out;
	size_t n, room;
	struct err *err;
};

static void put(struct rewrite *w, const char *text, size_t n)
{
	if (w->n + n + 1 > w->room) {
		w->room = (w->n + n + 1) * 2;
		w->out = xrealloc(w->out, w->room, 1);
	}
	memcpy(w->out + w->n, text, n);
	w->n += n;
	w->out[w->n] = '\0';
}

static void put_text(struct rewrite *w, const char *text)
{
	put(w, text, strlen(text));
}

static int refuse(struct rewrite *w, const char *why)
{
	size_t left = (size_t)(w->end - w->p);

	return err_set(w->err, ERR_FORMAT, "pattern, byte %zu, at \"%.*s\": %s", (size_t)(w->p - w->text),
		       (int)(left < 24 ? left : 24), w->p, why);
}

static int ahead(const struct rewrite *w, const char *text)
{
	size_t n = strlen(text);

	return (size_t)(w->end - w->p) >= n && !memcmp(w->p, text, n);
}

static int is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static int is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int is_punctuation(char c)
{
	return c > ' ' && c < 0x7f && !is_digit(c) && !is_letter(c);
}

/* \p{..} as the content of a class: the category and the characters that joined it after Unicode 14. */
static int put_category(struct rewrite *w)
{
	static const char *const known[] = {"L", "N", "P", "S", "M", "Z", "Lu", "Ll", "Lt", "Lm", "Lo", "Nd"};
	const char *close = memchr(w->p, '}', (size_t)(w->end - w->p));
	char name[3] = "", range[64];
	size_t n = close ? (size_t)(close - w->p) - 3 : 0;
	int found = 0;

	if (!ahead(w, "\\p{") && !ahead(w, "\\P{"))
		return refuse(w, "\\p and \\P need braces here");
	if (!close || n < 1 || n > 2)
		return refuse(w, "only the categories L N P S M Z Lu Ll Lt Lm Lo Nd are known");
	memcpy(name, w->p + 3, n);
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		found |= !strcmp(name, known[i]);
	if (!found)
		return refuse(w, "only the categories L N P S M Z Lu Ll Lt Lm Lo Nd are known");
	put_text(w, "\\p{");
	put_text(w, name);
	put_text(w, "}");
	for (size_t i = 0; i < sizeof unicode_new / sizeof *unicode_new; i++) {
		uint32_t last;
		size_t j = i;

		if (strncmp(unicode_new[i].category, name, n))
			continue;
		/* Neighbours of the same category become one range: the matcher tries them one by one. */
		for (last = unicode_new[j].last; j + 1 < sizeof unicode_new / sizeof *unicode_new; j++) {
			if (unicode_new[j + 1].first != last + 1 || strncmp(unicode_new[j + 1].category, name, n))
				break;
			last = unicode_new[j + 1].last;
		}
		snprintf(range, sizeof range, "\\x{%x}-\\x{%x}", unicode_new[i].first, last);
		put_text(w, range);
		i = j;
	}
	w->p = close + 1;
	return 0;
}

/* One literal character in or out of a class: its UTF-8, or an escape; w->p behind it, *point its code. */
static int read_literal(struct rewrite *w, uint32_t *point)
{
	size_t n;

	if (*w->p == '\\') {
		static const char from[] = "rntf", to[] = "\r\n\t\f";
		char c = w->end - w->p < 2 ? '\0' : w->p[1];
		const char *e = c ? strchr(from, c) : NULL;

		if (!e && !is_punctuation(c) && c != ' ')
			return refuse(w, "this escape is not supported");
		*point = (unsigned char)(e ? to[e - from] : c);
		w->p += 2;
		return 0;
	}
	n = utf8_decode((const unsigned char *)w->p, (size_t)(w->end - w->p), point);
	if (!n)
		return refuse(w, "not UTF-8");
	w->p += n;
	return 0;
}

static void put_literal(struct rewrite *w, uint32_t point)
{
	char text[16];

	snprintf(text, sizeof text, "\\x{%x}", point);
	put_text(w, text);
}

static int put_class(struct rewrite *w)
{
	const char *start = w->p++;
	int n_members = 0;

	put_text(w, "[");
	if (w->p < w->end && *w->p == '^') {
		put_text(w, "^");
		w->p++;
	}
	for (;; n_members++) {
		uint32_t first, last;

		if (w->p == w->end) {
			w->p = start;
			return refuse(w, "this class does not end");
		}
		if (*w->p == ']' && n_members)
			break;
		if (*w->p == ']' || *w->p == '[' || *w->p == '-')
			return refuse(w, "must be escaped inside a class");
		if (ahead(w, "&&"))
			return refuse(w, "intersections of classes are not supported");
		if (ahead(w, "\\s")) {
			put_text(w, white_space);
			w->p += 2;
			continue;
		}
		if (ahead(w, "\\P"))
			return refuse(w, "\\P inside a class is not supported");
		if (ahead(w, "\\p")) {
			if (put_category(w))
				return -1;
			continue;
		}
		if (read_literal(w, &first))
			return -1;
		put_literal(w, first);
		if (w->end - w->p >= 2 && w->p[0] == '-' && w->p[1] != ']') {
			w->p++;
			if (*w->p == '[')
				return refuse(w, "must be escaped inside a class");
			if (read_literal(w, &last))
				return -1;
			if (last < first)
				return refuse(w, "the range before this ends before it begins");
			put_text(w, "-");
			put_literal(w, last);
		}
	}
	w->p++;
	put_text(w, "]");
	return 0;
}

/* What may follow one character. */
static int put_quantifier(struct rewrite *w)
{
	const char *start = w->p;
	unsigned least = 0, most = 0;
	char text[32];

	if (w->p == w->end || !strchr("?*+{", *w->p))
		return 0;
	if (*w->p != '{') {
		put(w, w->p++, 1);
	} else {
		w->p++;
		while (w->p < w->end && is_digit(*w->p) && least < 1000)
			least = least * 10 + (unsigned)(*w->p++ - '0');
		most = least;
		if (w->p < w->end && *w->p == ',')
			for (most = 0, w->p++; w->p < w->end && is_digit(*w->p) && most < 1000; w->p++)
				most = most * 10 + (unsigned)(*w->p - '0');
		if (w->p == w->end || *w->p != '}' || !is_digit(start[1]) || most < least || most > 255) {
			w->p = start;
			return refuse(w, "{m,n} needs m <= n <= 255");
		}
		w->p++;
		snprintf(text, sizeof text, "{%u,%u}", least, most);
		put_text(w, text);
	}
	if (w->p < w->end && strchr("?*+{", *w->p))
		return refuse(w, "lazy and possessive quantifiers are not supported");
	return 0;
}

/* (?i:'s|'t|..): words that fold one letter to one letter in every engine. */
static int put_caseless_words(struct rewrite *w)
{
	static const char *const ligatures[] = {"ff", "fi", "fl", "ss", "st"};

	put_text(w, "(?i:");
	for (w->p += 4; w->p < w->end && *w->p != ')'; w->p++) {
		if (*w->p != '|' && *w->p != '\'' && !is_letter(*w->p))
			return refuse(w, "only words of ASCII letters and ' are supported in (?i:..)");
		for (size_t i = 0; i < sizeof ligatures / sizeof *ligatures; i++)
			if (w->end - w->p >= 2 && (w->p[0] | 0x20) == ligatures[i][0] &&
			    (w->p[1] | 0x20) == ligatures[i][1])
				return refuse(w, "these letters have a ligature, which would match as well");
		put(w, w->p, 1);
	}
	if (w->p == w->end)
		return refuse(w, "this group does not end");
	w->p++;
	put_text(w, ")");
	return 0;
}

static int put_one_character(struct rewrite *w)
{
	uint32_t point;

	if (*w->p == '[')
		return put_class(w);
	if (ahead(w, "\\s") || ahead(w, "\\S")) {
		put_text(w, w->p[1] == 's' ? "[" : "[^");
		put_text(w, white_space);
		put_text(w, "]");
		w->p += 2;
		return 0;
	}
	if (ahead(w, "\\p") || ahead(w, "\\P")) {
		put_text(w, w->p[1] == 'p' ? "[" : "[^");
		if (put_category(w))
			return -1;
		put_text(w, "]");
		return 0;
	}
	if (strchr("?*+{}()^$.|]", *w->p))
		return refuse(w, "not supported here");
	if (read_literal(w, &point))
		return -1;
	put_literal(w, point);
	return 0;
}

/* Alternatives up to the end of the pattern or, inside a group, to its bracket. */
static int put_alternatives(struct rewrite *w, int in_group)
{
	while (w->p < w->end && !(in_group && *w->p == ')')) {
		if (*w->p == '|') {
			put(w, w->p++, 1);
		} else if (ahead(w, "(?!\\S)")) {
			w->p += 6;
			if (w->p < w->end && *w->p != '|' && *w->p != ')')
				return refuse(w, "(?!\\S) is supported at the end of an alternative only");
			put_text(w, "(?![^");
			put_text(w, white_space);
			put_text(w, "])");
		} else if (ahead(w, "(?i:") || ahead(w, "(?:")) {
			if (in_group)
				return refuse(w, "a group inside a group is not supported");
			if (w->p[2] == 'i') {
				if (put_caseless_words(w))
					return -1;
			} else {
				put_text(w, "(?:");
				w->p += 3;
				if (put_alternatives(w, 1))
					return -1;
				if (w->p == w->end)
					return refuse(w, "this group does not end");
				put_text(w, ")");
				w->p++;
			}
			if (w->p < w->end && *w->p == '?')
				put(w, w->p++, 1);
			if (w->p < w->end && strchr("?*+{", *w->p))
				return refuse(w, "a group may be optional, it may not repeat");
		} else if (put_one_character(w) || put_quantifier(w)) {
			return -1;
		}
	}
	return 0;
}

/* ---- Patterns --------------------------------------------------------------------------------------------- */

struct pretokenizer *pretokenizer_new(void)
{
	return xcalloc(1, sizeof(struct pretokenizer));
}

void pretokenizer_free(struct pretokenizer *p)
{
	if (!p)
		return;
	for (int i = 0; i < p->n_patterns; i++)
		pcre2_code_free(p->patterns[i].code);
	free(p);
}

static int compile(struct pattern *pattern, const char *text, size_t bytes, struct err *err)
{
	char why[120];
	int code;
	uint32_t matches_empty;
	PCRE2_SIZE offset;

	pattern->code = pcre2_compile((PCRE2_SPTR)text, bytes, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code,
				      &offset, NULL);
	if (!pattern->code) {
		pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
		return err_set(err, ERR_FORMAT, "pattern: %s", why);
	}
	pcre2_pattern_info(pattern->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
	if (matches_empty) {
		pcre2_code_free(pattern->code);
		return err_set(err, ERR_FORMAT, "pattern: can match nothing at all, so it cannot cut a text");
	}
	/* Where memory may not become executable there is no JIT; the interpreter gives the same matches. */
	pattern->has_jit = !pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE);
	return 0;
}

int pretokenizer_add(struct pretokenizer *p, const char *pattern, size_t bytes, struct err *err)
{
	struct rewrite w = {.text = pattern, .p = pattern, .end = pattern + bytes, .err = err};
	int failed;

	if (p->n_patterns == MAX_PATTERNS)
		return err_set(err, ERR_FORMAT, "more than %d patterns", MAX_PATTERNS);
	if (bytes > MAX_PATTERN_BYTES || memchr(pattern, '\0', bytes))
		return err_set(err, ERR_FORMAT, "pattern: %zu bytes; at most %d, and no NUL, are supported", bytes,
			       MAX_PATTERN_BYTES);
	put(&w, "", 0);
	failed = put_alternatives(&w, 0) || compile(&p->patterns[p->n_patterns], w.out, w.n, err);
	free(w.out);
	if (failed)
		return -1;
	p->n_patterns++;
	return 0;
}

/* ---- Matching --------------------------------------------------------------------------------------------- */

struct pretokenize_room *pretokenize_room_new(const struct pretokenizer *p)
{
	struct pretokenize_room *r = xcalloc(1, sizeof *r);

	for (int i = 0; i < p->n_patterns; i++)
		r->match[i] = pcre2_match_data_create(1, NULL);
	r->context = pcre2_match_context_create(NULL);
	/* Without a stack of its own the JIT takes 32 KiB of the thread's. */
	r->stack = pcre2_jit_stack_create(JIT_STACK_BYTES, JIT_STACK_MOST_BYTES, NULL);
	pcre2_jit_stack_assign(r->context, NULL, r->stack);
	return r;
}

void pretokenize_room_free(struct pretokenize_room *r)
{
	if (!r)
		return;
	for (int i = 0; i < MAX_PATTERNS; i++)
		pcre2_match_data_free(r->match[i]);
	pcre2_match_context_free(r->context);
	pcre2_jit_stack_free(r->stack);
	free(r);
}

struct pass {
	const struct pretokenizer *p;
	struct pretokenize_room *r;
	pretoken_fn fn;
	void *ctx;
	struct err *err;
};

static int no_match(const struct pass *pass, int code, size_t at)
{
	char why[120];

	if (code == PCRE2_ERROR_MATCHLIMIT || code == PCRE2_ERROR_JIT_STACKLIMIT)
		return err_set(pass->err, ERR_FORMAT,
			       "the tokenizer's pattern backtracks too much at byte %zu of a piece of text", at);
	pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
	return err_set(pass->err, ERR_FAILED, "the tokenizer's pattern failed at byte %zu of a piece of text: %s", at,
		       why);
}

/* Cut a piece by pattern number `level`, and what comes out by the next ones. At most MAX_PATTERNS deep. */
static int cut(const struct pass *pass, int level, const char *text, size_t bytes)
{
	const struct pattern *pattern = &pass->p->patterns[level];
	pcre2_match_data *match = pass->r->match[level];
	const PCRE2_SIZE *found;
	size_t at = 0;
	int result;

	if (level == pass->p->n_patterns)
		return pass->fn(pass->ctx, text, bytes, pass->err);
	found = pcre2_get_ovector_pointer(match);
	while (at < bytes) {
		int code = pattern->has_jit
				   ? pcre2_jit_match(pattern->code, (PCRE2_SPTR)text, bytes, at, 0, match, pass->r->context)
				   : pcre2_match(pattern->code, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, match,
						 pass->r->context);
		size_t first = bytes, end = bytes;

		if (code >= 0) {
			first = found[0];
			end = found[1];
			assert(first >= at && end > first && end <= bytes);
		} else if (code != PCRE2_ERROR_NOMATCH) {
			return no_match(pass, code, at);
		}
		result = first > at ? cut(pass, level + 1, text + at, first - at) : 0;
		if (!result && end > first)
			result = cut(pass, level + 1, text + first, end - first);
		if (result)
			return result;
		at = end;
	}
	return 0;
}

int pretokenize(const struct pretokenizer *p, struct pretokenize_room *r, const char *text, size_t bytes,
		pretoken_fn fn, void *ctx, struct err *err)
{
	struct pass pass = {p, r, fn, ctx, err};

	/* The interpreter counts a step for each character it gives back. */
	pcre2_set_match_limit(r->context, bytes < 100000000 ? 1000000 + 16 * (uint32_t)bytes : UINT32_MAX);
	return bytes ? cut(&pass, 0, text, bytes) : 0;
}
