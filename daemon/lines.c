#include "daemon/lines.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "config/clock.h"
#include "config/mem.h"

struct document {
	char *path;
	size_t path_bytes;
	int32_t first, n_lines;
};

struct lines {
	char *text;              /* all documents, each line with its line feed, and an empty line behind each document */
	size_t n_text, text_room;
	size_t *start;           /* [n + 1] of each line */
	int32_t n, room;
	struct document *documents;
	int32_t n_documents, documents_room;

	/* By lines_index. A slot holds the first line of a text, plus 1, where the hash of the text or linear probing from
	 * there finds it; its number is the line's class. */
	uint32_t *slots, n_slots;
	int32_t *class, *next;
	uint64_t seed;           /* no corpus can be made to collide */
};

struct lines *lines_new(void)
{
	struct lines *l = xcalloc(1, sizeof *l);

	l->seed = (uint64_t)clock_now_ns();
	return l;
}

void lines_free(struct lines *l)
{
	if (!l)
		return;
	for (int32_t i = 0; i < l->n_documents; i++)
		free(l->documents[i].path);
	free(l->documents);
	free(l->text);
	free(l->start);
	free(l->slots);
	free(l->class);
	free(l->next);
	free(l);
}

static void add_line(struct lines *l, size_t start)
{
	if (l->n + 1 >= l->room) {
		l->room = l->room ? 2 * l->room : 1024;
		l->start = xrealloc(l->start, (size_t)l->room, sizeof *l->start);
	}
	l->start[l->n++] = start;
}

void lines_add(struct lines *l, const char *path, size_t path_bytes, const char *text, size_t bytes)
{
	size_t at = l->n_text, end = at + bytes;
	struct document *d;

	assert(!l->slots && bytes < INT32_MAX);
	if (l->n_documents == l->documents_room) {
		l->documents_room = l->documents_room ? 2 * l->documents_room : 64;
		l->documents = xrealloc(l->documents, (size_t)l->documents_room, sizeof *l->documents);
	}
	d = &l->documents[l->n_documents++];
	*d = (struct document){xstrndup(path, path_bytes), path_bytes, l->n, 0};
	if (end + 2 > l->text_room) {
		l->text_room = end + 2 > 2 * l->text_room ? end + 2 : 2 * l->text_room;
		l->text = xrealloc(l->text, l->text_room, 1);
	}
	if (bytes)
		memcpy(l->text + at, text, bytes);
	if (bytes && text[bytes - 1] != '\n')
		l->text[end++] = '\n';
	while (at < end) {
		add_line(l, at);
		at = (size_t)((char *)memchr(l->text + at, '\n', end - at) - l->text) + 1;
	}
	d->n_lines = l->n - d->first;
	add_line(l, end);
	l->text[end++] = '\n';
	l->start[l->n] = l->n_text = end;
}

static bool is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

size_t lines_trim(const char **text, size_t n)
{
	while (n && is_space(**text)) {
		(*text)++;
		n--;
	}
	while (n && is_space((*text)[n - 1]))
		n--;
	return n;
}

const char *lines_text(const struct lines *l, int32_t line, size_t *n)
{
	const char *text = l->text + l->start[line];

	*n = lines_trim(&text, l->start[line + 1] - l->start[line]);
	return text;
}

/* The slot of a text, or the empty one where it would be. */
static uint32_t find_slot(const struct lines *l, const char *text, size_t n)
{
	uint32_t slot = (uint32_t)XXH3_64bits_withSeed(text, n, l->seed) & (l->n_slots - 1);

	while (l->slots[slot]) {
		size_t other_n;
		const char *other = lines_text(l, (int32_t)l->slots[slot] - 1, &other_n);

		if (other_n == n && !memcmp(other, text, n))
			break;
		slot = (slot + 1) & (l->n_slots - 1);
	}
	return slot;
}

void lines_index(struct lines *l)
{
	int32_t document = l->n_documents;

	assert(!l->slots);
	l->room = l->n + 1;
	l->text_room = l->n_text;
	if (l->n) {
		l->start = xrealloc(l->start, (size_t)l->room, sizeof *l->start);
		l->text = xrealloc(l->text, l->text_room, 1);
	}
	for (l->n_slots = 16; l->n_slots < 2 * (uint32_t)l->n; l->n_slots *= 2)
		;
	l->slots = xcalloc(l->n_slots, sizeof *l->slots);
	l->class = xmalloc((size_t)l->n, sizeof *l->class);
	l->next = xmalloc((size_t)l->n, sizeof *l->next);
	/* From the end, so that the first line of a text comes to be in its slot, and the next ones behind it. */
	for (int32_t i = l->n - 1; i >= 0; i--) {
		const char *text;
		uint32_t slot;
		size_t n;

		if (document && i == l->documents[document - 1].first + l->documents[document - 1].n_lines) {
			l->class[i] = l->next[i] = -1;
			document--;
			continue;
		}
		text = lines_text(l, i, &n);
		slot = find_slot(l, text, n);
		l->class[i] = (int32_t)slot;
		l->next[i] = (int32_t)l->slots[slot] - 1;
		l->slots[slot] = (uint32_t)i + 1;
	}
}

size_t lines_text_bytes(const struct lines *l)
{
	return l->n_text;
}

size_t lines_held_bytes(const struct lines *l)
{
	return l->text_room + (size_t)l->room * sizeof *l->start + (size_t)l->n * (sizeof *l->class + sizeof *l->next) +
	       (size_t)l->n_slots * sizeof *l->slots + (size_t)l->documents_room * sizeof *l->documents;
}

int32_t lines_find(const struct lines *l, const char *text, size_t n)
{
	return (int32_t)l->slots[find_slot(l, text, n)] - 1;
}

int32_t lines_next(const struct lines *l, int32_t line)
{
	return l->next[line];
}

int32_t lines_class(const struct lines *l, int32_t line)
{
	return l->class[line];
}

static bool is_word(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* The line of a place in the text. */
static int32_t line_of(const struct lines *l, size_t at)
{
	int32_t low = 0, high = l->n;

	while (high - low > 1) {
		int32_t middle = low + (high - low) / 2;

		*(l->start[middle] <= at ? &low : &high) = middle;
	}
	return low;
}

enum { RESTART_COST = 512 }; /* of memmem, which makes a table of the text that it looks for */

int32_t lines_search(const struct lines *l, int32_t from, const char *text, size_t n, bool open, int64_t *cost)
{
	bool begins = is_word(text[0]), ends = !open && is_word(text[n - 1]);
	const char *at, *end, *hit;

	if (from >= l->n)
		return -1;
	at = l->text + l->start[from];
	end = l->text + l->n_text;
	while ((hit = memmem(at, (size_t)(end - at), text, n))) {
		*cost += hit - at + RESTART_COST;
		/* Every line has its line feed, and so there is a byte behind; none of the first needs one before. */
		if (!(begins && hit > l->text && is_word(hit[-1])) && !(ends && is_word(hit[n])))
			return line_of(l, (size_t)(hit - l->text));
		/* In the middle of a word no other one begins. */
		for (at = hit + 1; begins && is_word(*at); at++)
			;
		*cost += at - hit;
	}
	*cost += end - at + RESTART_COST;
	return -1;
}

int32_t lines_n_documents(const struct lines *l)
{
	return l->n_documents;
}

const char *lines_path(const struct lines *l, int32_t document)
{
	return l->documents[document].path;
}

int32_t lines_in_document(const struct lines *l, int32_t document)
{
	return l->documents[document].n_lines;
}

int32_t lines_document(const struct lines *l, int32_t line, int32_t *number)
{
	int32_t low = 0, high = l->n_documents;

	while (high - low > 1) {
		int32_t middle = low + (high - low) / 2;

		*(l->documents[middle].first <= line ? &low : &high) = middle;
	}
	*number = line - l->documents[low].first + 1;
	return low;
}

int32_t lines_find_document(const struct lines *l, const char *path, size_t n)
{
	int32_t found = -1;
	bool several = false;

	for (int32_t i = 0; n && i < l->n_documents; i++) {
		const struct document *d = &l->documents[i];

		if (d->path_bytes < n || memcmp(d->path + d->path_bytes - n, path, n))
			continue;
		if (d->path_bytes == n)
			return i;
		if (d->path[d->path_bytes - n - 1] != '/')
			continue;
		several = found >= 0;
		found = i;
	}
	return several ? -1 : found;
}

/* ".c" of "a/b.c"; a name without a dot behind its first byte has no ending. */
static size_t ending(const char *path, size_t n)
{
	for (size_t i = n; i-- > 1; )
		if (path[i] == '/' || path[i - 1] == '/')
			return 0;
		else if (path[i] == '.')
			return n - i;
	return 0;
}

bool lines_knows_ending(const struct lines *l, const char *path, size_t n)
{
	size_t bytes = ending(path, n);

	for (int32_t i = 0; bytes > 1 && i < l->n_documents; i++) {
		const struct document *d = &l->documents[i];

		if (ending(d->path, d->path_bytes) == bytes && !memcmp(d->path + d->path_bytes - bytes, path + n - bytes, bytes))
			return true;
	}
	return false;
}
