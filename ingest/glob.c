#include "ingest/glob.h"

#include <ctype.h>
#include <string.h>

/* [:name:] at p: whether c belongs to it; *end after it. NULL in *end: not a named class. */
static bool named_class(const char *p, unsigned char c, const char **end)
{
	static const struct {
		const char *name;
		int (*is)(int);
	} classes[] = {{"alnum", isalnum}, {"alpha", isalpha}, {"blank", isblank}, {"cntrl", iscntrl},
		       {"digit", isdigit}, {"graph", isgraph}, {"lower", islower}, {"print", isprint},
		       {"punct", ispunct}, {"space", isspace}, {"upper", isupper}, {"xdigit", isxdigit}};

	*end = NULL;
	for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
		size_t n = strlen(classes[i].name);

		if (!strncmp(p + 2, classes[i].name, n) && p[2 + n] == ':' && p[3 + n] == ']') {
			*end = p + n + 4;
			return c < 0x80 && classes[i].is(c);
		}
	}
	return false;
}

/* A [class] at p: whether c belongs to it; *end after it. One without an end matches nothing. */
static bool class_match(const char *p, unsigned char c, const char **end)
{
	bool negated = p[1] == '!' || p[1] == '^', found = false;
	const char *q = p + 1 + negated, *first = q;

	while (*q && (*q != ']' || q == first)) {
		const char *after;
		unsigned char low, high;

		if (q[0] == '[' && q[1] == ':') {
			bool in = named_class(q, c, &after);

			if (after) {
				found |= in;
				q = after;
				continue;
			}
		}
		q += *q == '\\' && q[1];
		low = high = (unsigned char)*q++;
		if (q[0] == '-' && q[1] && q[1] != ']') {
			q += 1 + (q[1] == '\\' && q[2]);
			high = (unsigned char)*q++;
		}
		found |= c >= low && c <= high;
	}
	*end = *q ? q + 1 : q;
	return *q && c != '/' && found != negated;
}

/* One element of the pattern that is not a star, against one byte; *end after it. */
static bool one_match(const char *p, unsigned char c, const char **end, int64_t *steps)
{
	if (*p == '[') {
		bool in = class_match(p, c, end);

		*steps += *end - p; /* it may be long */
		return in;
	}
	if (*p == '?') {
		*end = p + 1;
		return c != '/';
	}
	p += *p == '\\' && p[1];
	*end = p + 1;
	return (unsigned char)*p == c;
}

/* *steps grows by about the bytes that were compared. */
static bool match(const char *pattern, const char *path, int64_t *steps)
{
	const char *p = pattern, *s = path;
	/* Where the last * and the last ** stand, and how far they reach: only these can still be moved, since a longer
	 * reach of an earlier one gives nothing that the later one could not. */
	const char *star = NULL, *star_s = NULL, *deep = NULL, *deep_s = NULL, *end;

	for (;;) {
		bool at_name = p == pattern || p[-1] == '/';

		++*steps;
		if (at_name && p[0] == '*' && p[1] == '*' && !p[2])
			return *s != '\0';
		if (at_name && p[0] == '*' && p[1] == '*' && p[2] == '/') {
			deep = p += 3;
			deep_s = s;
			star = NULL;
		} else if (*p == '*') {
			p += strspn(p, "*");
			star = p;
			star_s = s;
		} else if (!*p && !*s) {
			return true;
		} else if (*p && *s && one_match(p, (unsigned char)*s, &end, steps)) {
			p = end;
			s++;
		} else if (star && *star_s && *star_s != '/') {
			p = star;
			s = ++star_s;
		} else if (deep && (end = strchr(deep_s, '/'))) {
			*steps += end - deep_s;
			p = deep;
			s = deep_s = end + 1;
			star = NULL;
		} else {
			return false;
		}
	}
}

bool glob_match(const char *pattern, const char *path)
{
	int64_t steps = 0;

	return match(pattern, path, &steps);
}

static void add_line(struct globs *g, struct arena *a, const char *line, size_t n)
{
	struct glob glob = {0};

	if (n && line[n - 1] == '\r')
		n--;
	while (n && line[n - 1] == ' ' && !(n > 1 && line[n - 2] == '\\'))
		n--;
	if (!n || line[0] == '#')
		return;
	if (line[0] == '!') {
		glob.negated = true;
		line++, n--;
	}
	if (n && line[n - 1] == '/') {
		glob.directory = true;
		n--;
	}
	glob.bound = memchr(line, '/', n);
	if (n && line[0] == '/')
		line++, n--;
	if (!n || memchr(line, '\0', n))
		return;
	if (g->n == g->room) {
		struct glob *list = arena_alloc(a, g->room = g->room ? 2 * g->room : 8, sizeof *list);

		if (g->n)
			memcpy(list, g->list, g->n * sizeof *list);
		g->list = list;
	}
	glob.pattern = arena_strndup(a, line, n);
	g->list[g->n++] = glob;
}

void globs_parse(struct globs *g, struct arena *a, const char *text, size_t bytes)
{
	const char *end = text + bytes;

	if (bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
		text += 3;
	while (text < end) {
		const char *feed = memchr(text, '\n', (size_t)(end - text));

		add_line(g, a, text, (size_t)((feed ? feed : end) - text));
		text = feed ? feed + 1 : end;
	}
}

enum glob_verdict globs_match(const struct globs *g, const char *path, bool is_directory)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	enum glob_verdict verdict = GLOB_SILENT;
	int64_t steps = 0;

	for (size_t i = g->n; i-- && verdict == GLOB_SILENT; ) {
		const struct glob *glob = &g->list[i];

		if ((is_directory || !glob->directory) && match(glob->pattern, glob->bound ? path : name, &steps))
			verdict = glob->negated ? GLOB_TAKEN_BACK : GLOB_MATCHES;
	}
	if (g->steps)
		*g->steps += steps + (int64_t)g->n;
	return verdict;
}
