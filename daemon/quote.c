#include "daemon/quote.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"

/* A line of the answer: its text without the white space around it, and the first line of the corpus that reads so, or -1. */
struct line {
	size_t begin, end;
	int32_t found;
};

/* What is found in the answer: at first by its form alone, and with where it stands later. */
struct item {
	struct quote q;
	bool says_nothing;       /* short, and everywhere */
	bool is_taken;           /* a place that is a quotation's claim */
	bool is_block;           /* whole lines of the answer: */
	size_t line, last_line;  /* of the answer; of a fenced block all, its marks included */
	size_t own_line, n_lines; /* QUOTE_LINES: those that are quoted, without the marks */
	int32_t found;           /* QUOTE_LINES: a line of the corpus where they stand; -1: they stand nowhere */
};

struct finder {
	const struct lines *l;
	const char *answer;
	size_t bytes;
	bool is_cut;
	struct line *lines;
	size_t n_lines, n_said;  /* those that are not blank */
	struct item *items;      /* [QUOTE_MOST] */
	size_t n;
	int64_t work;            /* that is left */
	size_t checked;
	bool is_over;            /* too much: the answer is checked up to there */
	int32_t *candidates;
	size_t n_candidates;     /* there is room for */
};

enum { LOOK_COST = 16 }; /* of one line that is compared by its class, in the bytes that QUOTE_WORK counts */

const char *quote_kind_name(enum quote_kind kind)
{
	static const char *const names[N_QUOTE_KINDS] = {"lines", "span", "place"};

	return names[kind];
}

const char *quote_status_name(enum quote_status status)
{
	static const char *const names[N_QUOTE_STATUSES] = {"verified", "moved", "unverified"};

	return names[status];
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_letter_or_digit(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c & 0x80);
}

/* Letters and digits: what a text says. */
static size_t content(const char *text, size_t n)
{
	size_t letters = 0;

	for (size_t i = 0; i < n; i++)
		letters += is_letter_or_digit(text[i]);
	return letters;
}

static const char *line_text(const struct finder *f, size_t i, size_t *n)
{
	*n = f->lines[i].end - f->lines[i].begin;
	return f->answer + f->lines[i].begin;
}

static bool is_blank(const struct finder *f, size_t i)
{
	return f->lines[i].begin == f->lines[i].end;
}

/* NULL when there are too many. */
static struct item *add(struct finder *f, enum quote_kind kind, size_t line, size_t begin, size_t end)
{
	struct item *it = &f->items[f->n];

	if (f->n == QUOTE_MOST) {
		f->is_over = true;
		return NULL;
	}
	f->n++;
	*it = (struct item){.q = {.kind = kind, .begin = begin, .end = end}, .line = line, .last_line = line, .found = -1};
	return it;
}

static void spend(struct finder *f, int64_t work)
{
	f->work -= work;
	f->is_over |= f->work < 0;
}

static int32_t find_document(struct finder *f, const char *path, size_t n)
{
	spend(f, (int64_t)lines_n_documents(f->l) * LOOK_COST);
	return lines_find_document(f->l, path, n);
}

/*
 * Whole lines.
 */

static bool is_cut_line(const struct finder *f, size_t i)
{
	return f->is_cut && i + 1 == f->n_lines;
}

/* Whether this line of the corpus reads as line i of the answer, or, where that is cut, begins so. */
static bool reads_as(const struct finder *f, int32_t line, size_t i)
{
	const struct line *own = &f->lines[i];
	const char *text, *ours;
	size_t n, n_ours;

	if (lines_class(f->l, line) < 0)
		return false;
	if (!is_cut_line(f, i))
		return own->found >= 0 && lines_class(f->l, own->found) == lines_class(f->l, line);
	text = lines_text(f->l, line, &n);
	ours = line_text(f, i, &n_ours);
	return n >= n_ours && !memcmp(text, ours, n_ours);
}

/* How many lines from line i on, before `limit`, stand in a row in the corpus, at most and as they do first at *found. */
static size_t longest_run(struct finder *f, size_t i, size_t limit, int32_t *found)
{
	size_t n = 0, n_lines = 1, left;

	for (int32_t line = f->lines[i].found; line >= 0; line = lines_next(f->l, line)) {
		if (n == f->n_candidates) {
			f->n_candidates = n ? 2 * n : 64;
			f->candidates = xrealloc(f->candidates, f->n_candidates, sizeof *f->candidates);
		}
		f->candidates[n++] = line;
	}
	spend(f, (int64_t)n * LOOK_COST);
	if (!n)
		return 0;
	for (; i + n_lines < limit && !f->is_over; n_lines++, n = left) {
		spend(f, (int64_t)n * LOOK_COST);
		left = 0;
		for (size_t c = 0; c < n; c++)
			if (reads_as(f, f->candidates[c] + (int32_t)n_lines, i + n_lines))
				f->candidates[left++] = f->candidates[c];
		if (!left)
			break;
	}
	*found = f->candidates[0];
	return n_lines;
}

/* A line of the corpus, from one on, that begins as the cut line does. */
static int32_t next_beginning(struct finder *f, int32_t from, size_t i)
{
	size_t n;
	const char *text = line_text(f, i, &n);
	int64_t cost = 0;

	while (!f->is_over && (from = lines_search(f->l, from, text, n, true, &cost)) >= 0) {
		spend(f, cost);
		cost = 0;
		if (reads_as(f, from, i))
			return from;
		from++;
	}
	spend(f, cost);
	return -1;
}

static void add_lines(struct finder *f, size_t i, size_t n, int32_t found)
{
	struct item *it = add(f, QUOTE_LINES, i, f->lines[i].begin, f->lines[i + n - 1].end);

	if (!it)
		return;
	it->is_block = true;
	it->own_line = i;
	it->last_line = i + n - 1;
	it->n_lines = n;
	it->found = found;
	it->q.is_cut = is_cut_line(f, i + n - 1);
}

static size_t lines_content(const struct finder *f, size_t i, size_t n)
{
	size_t letters = 0;

	for (; n; n--, i++)
		letters += content(f->answer + f->lines[i].begin, f->lines[i].end - f->lines[i].begin);
	return letters;
}

/* The lines from line i on as a quotation, if they are one: how many it takes; 0: none. */
static size_t read_run(struct finder *f, size_t i, size_t limit)
{
	int32_t found = -1;
	size_t n = is_blank(f, i) ? 0 : longest_run(f, i, limit, &found);

	while (n && is_blank(f, i + n - 1))
		n--;
	if (n && lines_content(f, i, n) < (f->n_said == 1 ? QUOTE_SPAN_CONTENT : QUOTE_CONTENT))
		n = 0;
	if (!n && is_cut_line(f, i) && f->lines[i].end - f->lines[i].begin >= QUOTE_LONG && (found = next_beginning(f, 0, i)) >= 0)
		n = 1;
	if (n)
		add_lines(f, i, n, found);
	return n;
}

/* Lines of a fenced block that stand nowhere; the one that is cut may be anything. */
static void add_unfound(struct finder *f, size_t i, size_t end)
{
	while (end > i && (is_blank(f, end - 1) || is_cut_line(f, end - 1)))
		end--;
	while (i < end && is_blank(f, i))
		i++;
	if (lines_content(f, i, end - i) >= QUOTE_CONTENT)
		add_lines(f, i, end - i, -1);
}

/*
 * Places.
 */

enum { PATH_BYTES = 512, PATH_WORDS = 8 };

static bool read_number(const char **p, const char *end, int32_t *number)
{
	const char *q = *p;
	int32_t n = 0;

	while (q < end && is_digit(*q) && q - *p < 9)
		n = 10 * n + (*q++ - '0');
	if (q == *p || (q < end && is_digit(*q)))
		return false;
	*p = q;
	*number = n;
	return true;
}

/* ":5", ":5-7", "#L5", "#L5-L7" at p; where it ends, a column after it included. NULL: it is none. */
static const char *read_range(const char *p, const char *end, int32_t *first, int32_t *last)
{
	bool letter = *p == '#';
	int32_t column;
	const char *q;

	p++;
	if (letter && (p == end || *p++ != 'L'))
		return NULL;
	if (!read_number(&p, end, first))
		return NULL;
	*last = *first;
	if (p < end && *p == '-') {
		q = p + 1;
		q += letter && q < end && *q == 'L';
		if (read_number(&q, end, last))
			p = q;
	} else if (!letter && p < end && *p == ':') {
		q = p + 1;
		if (read_number(&q, end, &column))
			p = q;
	}
	if (p < end && (is_letter_or_digit(*p) || *p == '_' || (*p == '.' && p + 1 < end && is_digit(p[1]))))
		return NULL;
	return p;
}

static bool is_path_char(char c)
{
	return (unsigned char)c > ' ' && !strchr("`\"'()<>[]{},;*|=", c);
}

/* The path before p, where its line numbers begin, in what stands from `begin` on; its document, or -1. False: none. */
static bool read_path(struct finder *f, const char *begin, const char *p, const char **path, size_t *n, int32_t *document)
{
	const char *least = p - begin > PATH_BYTES ? p - PATH_BYTES : begin, *start = p, *end = p;

	/* In quotation marks, which are a part of it where it has odd bytes. */
	if (p - least > 2 && (p[-1] == '"' || p[-1] == '`')) {
		for (start = p - 2; start >= least; start--)
			if (*start == p[-1]) {
				*path = start;
				*n = (size_t)(p - start);
				if (*start == '"' && (*document = find_document(f, *path, *n)) >= 0)
					return true;
				if (*n > 2 && (*document = find_document(f, ++*path, *n -= 2)) >= 0)
					return true;
			}
		start = end = p - 1;
	}
	while (start > least && is_path_char(start[-1]))
		start--;
	spend(f, end - start);
	if (end - start > 2 && !memcmp(start, "./", 2))
		start += 2;
	*path = start;
	*n = (size_t)(end - start);
	if (!*n)
		return false;
	/* It may have blanks in it; the longest that is one will do. */
	*document = find_document(f, *path, *n);
	for (int words = 1; words < PATH_WORDS && start > least && start[-1] == ' '; words++) {
		int32_t longer;

		for (start--; start > least && is_path_char(start[-1]); start--)
			;
		if ((longer = find_document(f, start, (size_t)(end - start))) < 0)
			continue;
		*document = longer;
		*path = start;
		*n = (size_t)(end - start);
	}
	if (*document >= 0)
		return true;
	spend(f, (int64_t)lines_n_documents(f->l) * LOOK_COST);
	return !memmem(*path, *n, "://", 3) && lines_knows_ending(f->l, *path, *n);
}

static void read_places(struct finder *f, size_t i)
{
	size_t n, path_bytes;
	const char *begin = line_text(f, i, &n), *end = begin + n, *p = begin, *stop, *path;
	int32_t first, last, document;

	while (p < end && !f->is_over) {
		struct item *it;

		stop = *p == ':' || *p == '#' ? read_range(p, end, &first, &last) : NULL;
		if (!stop || !read_path(f, begin, p, &path, &path_bytes, &document)) {
			p++;
			continue;
		}
		it = add(f, QUOTE_PLACE, i, (size_t)(path - f->answer), (size_t)(stop - f->answer));
		if (it) {
			it->q.is_claimed = true;
			it->q.claim.begin = (size_t)(path - f->answer);
			it->q.claim.end = it->q.claim.begin + path_bytes;
			it->q.claim.document = document;
			it->q.claim.first = first;
			it->q.claim.last = last;
		}
		p = begin = stop; /* no part of a place belongs to the next one */
	}
}

/*
 * Spans.
 */

static void add_span(struct finder *f, size_t i, size_t first_place, const char *text, size_t n)
{
	size_t begin;

	n = lines_trim(&text, n);
	begin = (size_t)(text - f->answer);
	if (content(text, n) < QUOTE_SPAN_CONTENT || find_document(f, text, n) >= 0)
		return;
	for (size_t k = first_place; k < f->n; k++)
		if (f->items[k].q.kind == QUOTE_PLACE && f->items[k].q.begin < begin + n && begin < f->items[k].q.end)
			return;
	add(f, QUOTE_SPAN, i, begin, begin + n);
}

/* Where `mark` of n bytes, and no longer row of it, stands next; NULL: nowhere. */
static const char *find_row(const char *p, const char *end, char mark, size_t n)
{
	while ((p = memchr(p, mark, (size_t)(end - p)))) {
		const char *q = p;

		while (q < end && *q == mark)
			q++;
		if ((size_t)(q - p) == n)
			return p;
		p = q;
	}
	return NULL;
}

static void read_spans(struct finder *f, size_t i, size_t first_place)
{
	size_t bytes, n;
	const char *p = line_text(f, i, &bytes), *end = p + bytes, *close;

	while (p < end && !f->is_over) {
		if (*p == '`') {
			for (n = 1; p + n < end && p[n] == '`'; n++)
				;
			close = find_row(p + n, end, '`', n);
			if (!close)
				spend(f, end - p); /* it is read again, for other marks */
		} else if (*p == '"') {
			n = 1;
			close = memchr(p + 1, '"', (size_t)(end - p - 1));
		} else if (end - p > 3 && !memcmp(p, "\xe2\x80\x9c", 3)) {
			n = 3;
			close = memmem(p + 3, (size_t)(end - p - 3), "\xe2\x80\x9d", 3);
			if (!close)
				spend(f, end - p);
		} else {
			p++;
			continue;
		}
		if (close)
			add_span(f, i, first_place, p + n, (size_t)(close - p) - n);
		p = (close ? close : p) + n;
	}
}

/*
 * The answer.
 */

/* The answer's own words; or "PATH:LINE: " and a line, as search programs print it. */
static void read_prose(struct finder *f, size_t i)
{
	struct line *line = &f->lines[i];
	size_t first_place = f->n, n, colon;
	const char *text;
	int32_t found;

	read_places(f, i);
	colon = f->n > first_place && f->items[first_place].q.begin == line->begin ? f->items[first_place].q.end : line->end;
	if (colon < line->end && f->answer[colon] == ':') {
		text = f->answer + colon + 1;
		n = lines_trim(&text, line->end - colon - 1);
		if (content(text, n) >= QUOTE_CONTENT && (found = lines_find(f->l, text, n)) >= 0) {
			*line = (struct line){(size_t)(text - f->answer), line->end, found};
			add_lines(f, i, 1, found);
			return;
		}
	}
	read_spans(f, i, first_place);
}

/* The marks that open a fenced block, or would close one; 0: none. */
static size_t fence(const struct finder *f, size_t i, bool closes)
{
	size_t n, marks = 0;
	const char *text = line_text(f, i, &n);

	while (marks < n && (text[marks] == '`' || text[marks] == '~') && text[marks] == text[0])
		marks++;
	if (marks < 3 || (closes ? marks < n : text[0] == '`' && memchr(text + marks, '`', n - marks)))
		return 0;
	return marks;
}

/* A fenced block, which begins in this line. Returns the line behind it. */
static size_t read_fenced(struct finder *f, size_t open)
{
	size_t marks = fence(f, open, false), close = open + 1, first_item, unfound, n;
	char mark = f->answer[f->lines[open].begin];

	while (close < f->n_lines &&
	       !(fence(f, close, true) >= marks && f->answer[f->lines[close].begin] == mark))
		close++;
	read_places(f, open);
	first_item = f->n;
	unfound = open + 1;
	for (size_t i = unfound; i < close && !f->is_over; i += n ? n : 1) {
		size_t before = f->n;

		n = read_run(f, i, close);
		if (!n)
			continue;
		if (f->n > before && i > unfound) {
			/* What is before it comes before it. */
			struct item run = f->items[--f->n];

			add_unfound(f, unfound, i);
			if (f->n < QUOTE_MOST)
				f->items[f->n++] = run;
		}
		unfound = i + n;
	}
	if (!f->is_over)
		add_unfound(f, unfound, close);
	for (size_t k = first_item; k < f->n; k++) {
		f->items[k].line = open;
		f->items[k].last_line = close < f->n_lines ? close : close - 1;
	}
	return close + 1;
}

static void read_answer(struct finder *f)
{
	size_t i = 0;

	while (i < f->n_lines && !f->is_over) {
		size_t n;

		f->checked = f->lines[i].begin;
		if (fence(f, i, false)) {
			i = read_fenced(f, i);
		} else if ((n = read_run(f, i, f->n_lines))) {
			i += n;
		} else {
			read_prose(f, i);
			i++;
		}
	}
	if (!f->is_over)
		f->checked = f->bytes;
}

static void split(struct finder *f)
{
	size_t room = 0;

	for (size_t at = 0; at < f->bytes; ) {
		const char *text = f->answer + at, *feed = memchr(text, '\n', f->bytes - at);
		size_t next = feed ? (size_t)(feed - f->answer) + 1 : f->bytes, n = lines_trim(&text, next - at);

		if (f->n_lines == room) {
			room = room ? 2 * room : 64;
			f->lines = xrealloc(f->lines, room, sizeof *f->lines);
		}
		f->lines[f->n_lines++] = (struct line){(size_t)(text - f->answer), (size_t)(text - f->answer) + n,
						       lines_find(f->l, text, n)};
		f->n_said += n > 0;
		at = next;
	}
	/* The cut is in the last line only where that has no end. */
	f->is_cut = f->is_cut && f->bytes && f->answer[f->bytes - 1] != '\n';
}

/*
 * Where they stand.
 */

enum { BESIDE, ABOVE, BELOW, NOT_NEAR };

/* How far a place is from a quotation: first by line, then by bytes. */
static int64_t distance(const struct finder *f, const struct item *q, const struct item *place)
{
	size_t above = q->line, below = q->last_line + 1;
	int64_t bytes = place->q.begin >= q->q.end ? (int64_t)(place->q.begin - q->q.end)
						    : (int64_t)q->q.begin - (int64_t)place->q.end;

	if (bytes < 0)
		bytes = 0;
	if (place->line >= q->line && place->line <= q->last_line)
		return (int64_t)BESIDE << 32 | bytes;
	if (!q->is_block)
		return (int64_t)NOT_NEAR << 32;
	while (above > place->line + 1 && is_blank(f, above - 1))
		above--;
	while (below < place->line && is_blank(f, below))
		below++;
	if (place->line + 1 == above)
		return (int64_t)ABOVE << 32 | bytes;
	return (int64_t)(place->line == below ? BELOW : NOT_NEAR) << 32 | bytes;
}

/* The places near a quotation, nearest first. */
static size_t list_near(const struct finder *f, const struct item *q, struct item *near[QUOTE_MOST])
{
	int64_t far[QUOTE_MOST];
	size_t n = 0;

	for (size_t i = 0; i < f->n; i++) {
		int64_t d;
		size_t at;

		if (f->items[i].q.kind != QUOTE_PLACE || (d = distance(f, q, &f->items[i])) >> 32 == NOT_NEAR)
			continue;
		for (at = n++; at && far[at - 1] > d; at--) {
			far[at] = far[at - 1];
			near[at] = near[at - 1];
		}
		far[at] = d;
		near[at] = &f->items[i];
	}
	return n;
}

/* The line of the corpus, behind `line` (-1: the first), from which on the quotation stands; -1: no more. */
static int32_t next_stand(struct finder *f, const struct item *q, int32_t line)
{
	bool by_beginning = q->q.is_cut && q->n_lines == 1;
	int64_t cost = 0;

	if (q->q.kind == QUOTE_SPAN) {
		line = lines_search(f->l, line + 1, f->answer + q->q.begin, q->q.end - q->q.begin, false, &cost);
		spend(f, cost);
		return line;
	}
	if (q->found < 0)
		return -1;
	if (by_beginning)
		return next_beginning(f, line + 1, q->own_line);
	for (line = line < 0 ? q->found : lines_next(f->l, line); line >= 0 && !f->is_over; line = lines_next(f->l, line)) {
		size_t k = 1;

		while (k < q->n_lines && reads_as(f, line + (int32_t)k, q->own_line + k))
			k++;
		spend(f, (int64_t)k * LOOK_COST);
		if (k == q->n_lines)
			return line;
	}
	return -1;
}

/* 0 and up: it is where the first, second, ... of the places near it is; then the nearer to the first in its file the
 * better; then anywhere. */
static int64_t rank(const struct quote_place *p, struct item *const *near, size_t n_near)
{
	for (size_t i = 0; i < n_near; i++)
		if (near[i]->q.claim.document == p->document && near[i]->q.claim.first <= p->last && near[i]->q.claim.last >= p->first)
			return (int64_t)i;
	if (n_near && near[0]->q.claim.document == p->document)
		return QUOTE_MOST + llabs((int64_t)near[0]->q.claim.first - p->first);
	return INT64_MAX;
}

/* p to the front of those that are named; it is one of them, or takes the place of the last. */
static void name_first(struct quote *q, const struct quote_place *p)
{
	int64_t n = q->n_places < QUOTE_PLACES ? q->n_places : QUOTE_PLACES, i = 0;

	while (i < n - 1 && memcmp(&q->places[i], p, sizeof *p))
		i++;
	memmove(q->places + 1, q->places, (size_t)i * sizeof *p);
	q->places[0] = *p;
}

static void claim(struct item *q, struct item *place)
{
	q->q.is_claimed = true;
	q->q.claim = place->q.claim;
	place->is_taken = true;
}

/* Count where a quotation stands; it is where a place near it says, if it stands there too. */
static void look_up(struct finder *f, struct item *it)
{
	struct item *near[QUOTE_MOST];
	size_t n_near = list_near(f, it, near), bytes = it->q.end - it->q.begin;
	struct quote *q = &it->q;
	struct quote_place best = {0};
	int64_t best_rank = -1;
	int32_t number;
	bool is_short = q->kind == QUOTE_SPAN ? bytes < QUOTE_LONG : it->n_lines == 1 && lines_content(f, it->own_line, 1) < QUOTE_CONTENT;

	for (int32_t line = next_stand(f, it, -1); line >= 0 && !f->is_over; line = next_stand(f, it, line)) {
		int32_t document = lines_document(f->l, line, &number);
		struct quote_place p = {document, number, number + (it->n_lines ? (int32_t)it->n_lines - 1 : 0)};
		int64_t r = rank(&p, near, n_near);

		spend(f, (int64_t)n_near);
		if (q->n_places < QUOTE_PLACES)
			q->places[q->n_places] = p;
		if (!q->n_places++ || r < best_rank) {
			best_rank = r;
			best = p;
		}
	}
	if (f->is_over || !q->n_places) {
		q->status = QUOTE_UNVERIFIED;
		return;
	}
	q->status = QUOTE_VERIFIED;
	name_first(q, &best);
	if (best_rank < QUOTE_MOST)
		claim(it, near[best_rank]);
	else if (is_short && q->n_places > QUOTE_RARE)
		it->says_nothing = true;
}

/* A place that no quotation stands at belongs to the nearest one that it is near to, which is not there then. */
static void place_nearest(struct finder *f, struct item *place)
{
	struct item *nearest = NULL;
	int64_t least = (int64_t)NOT_NEAR << 32;

	for (size_t i = 0; i < f->n; i++) {
		struct item *it = &f->items[i];
		int64_t d;

		if (it->q.kind == QUOTE_PLACE || it->says_nothing || it->q.is_claimed || (d = distance(f, it, place)) >= least)
			continue;
		least = d;
		nearest = it;
	}
	if (nearest) {
		claim(nearest, place);
		if (nearest->q.status == QUOTE_VERIFIED)
			nearest->q.status = QUOTE_MOVED;
	} else if (place->q.claim.document >= 0 && place->q.claim.first >= 1 && place->q.claim.first <= place->q.claim.last &&
		   place->q.claim.last <= lines_in_document(f->l, place->q.claim.document)) {
		place->q.status = QUOTE_VERIFIED;
		place->q.n_places = 1;
		place->q.places[0] = (struct quote_place){place->q.claim.document, place->q.claim.first, place->q.claim.last};
	} else {
		place->q.status = QUOTE_UNVERIFIED;
	}
}

static bool are_same(const struct finder *f, const struct quote *a, const struct quote *b)
{
	size_t n = a->end - a->begin;

	return a->kind == b->kind && a->status == b->status && n == b->end - b->begin &&
	       !memcmp(f->answer + a->begin, f->answer + b->begin, n) && a->is_claimed == b->is_claimed &&
	       (!a->is_claimed || !memcmp(&a->claim.document, &b->claim.document, 3 * sizeof a->claim.document));
}

static int by_begin(const void *a, const void *b)
{
	const struct item *x = a, *y = b;

	return (x->q.begin > y->q.begin) - (x->q.begin < y->q.begin);
}

/* What was said before is not said again. */
static void hand_out(const struct finder *f, struct quotes *out)
{
	out->list = xcalloc(f->n, sizeof *out->list);
	for (size_t i = 0; i < f->n; i++) {
		const struct item *it = &f->items[i];
		bool again = false;

		if (it->is_taken || it->says_nothing || it->q.begin >= f->checked)
			continue;
		for (size_t k = 0; k < out->n && !again; k++)
			again = are_same(f, &out->list[k], &it->q);
		if (!again)
			out->list[out->n++] = it->q;
	}
}

void quotes_find(struct quotes *out, const struct lines *l, const char *answer, size_t bytes, bool is_cut)
{
	struct finder f = {.l = l, .answer = answer, .bytes = bytes, .is_cut = is_cut, .work = QUOTE_WORK};

	*out = (struct quotes){0};
	if (bytes > QUOTE_ANSWER_BYTES) {
		f.bytes = QUOTE_ANSWER_BYTES;
		f.is_cut = true;
	}
	f.items = xcalloc(QUOTE_MOST, sizeof *f.items);
	split(&f);
	read_answer(&f);
	qsort(f.items, f.n, sizeof *f.items, by_begin);
	f.is_over = f.work < 0;
	for (size_t i = 0; i < f.n && !f.is_over; i++) {
		if (f.items[i].q.kind != QUOTE_PLACE)
			look_up(&f, &f.items[i]);
		if (f.is_over)
			f.checked = f.items[i].q.begin;
	}
	for (size_t i = 0; i < f.n; i++)
		if (f.items[i].q.kind == QUOTE_PLACE && !f.items[i].is_taken)
			place_nearest(&f, &f.items[i]);
	hand_out(&f, out);
	out->checked = f.checked;
	free(f.items);
	free(f.lines);
	free(f.candidates);
}

void quotes_clear(struct quotes *q)
{
	free(q->list);
	*q = (struct quotes){0};
}
