#include "ingest/html.h"

#include <libxml/HTMLparser.h>
#include <libxml/parserInternals.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "engine/tokenizer.h"

/* The parser compares each end tag with every element that is open, so their number is what bounds its time. */
enum { MAX_DEPTH = 2000, ADDRESS_BYTES = 1024 };

enum { BLOCK = 1, PARAGRAPH = 2, DROPPED = 3, PRE = 4, ITEM = 5, ROW = 6, CELL = 7, BREAK = 8, LINK = 9, IMAGE = 10 };

/* Sorted. What is not here is text within a line. */
static const struct element {
	const char *name;
	int kind;
} elements[] = {
	{"a", LINK}, {"address", BLOCK}, {"article", BLOCK}, {"aside", BLOCK}, {"blockquote", PARAGRAPH}, {"body", BLOCK},
	{"br", BREAK}, {"canvas", DROPPED}, {"caption", BLOCK}, {"center", BLOCK}, {"dd", BLOCK}, {"details", BLOCK},
	{"dialog", BLOCK}, {"dir", BLOCK}, {"div", BLOCK}, {"dl", PARAGRAPH}, {"dt", BLOCK}, {"fieldset", BLOCK},
	{"figcaption", BLOCK}, {"figure", BLOCK}, {"footer", BLOCK}, {"form", BLOCK}, {"h1", PARAGRAPH},
	{"h2", PARAGRAPH}, {"h3", PARAGRAPH}, {"h4", PARAGRAPH}, {"h5", PARAGRAPH}, {"h6", PARAGRAPH}, {"header", BLOCK},
	{"hr", PARAGRAPH}, {"iframe", DROPPED}, {"img", IMAGE}, {"legend", BLOCK}, {"li", ITEM}, {"main", BLOCK},
	{"menu", BLOCK}, {"nav", BLOCK}, {"noscript", DROPPED}, {"object", DROPPED}, {"ol", PARAGRAPH},
	{"optgroup", BLOCK}, {"option", BLOCK}, {"p", PARAGRAPH}, {"pre", PRE}, {"script", DROPPED}, {"section", BLOCK},
	{"style", DROPPED}, {"summary", BLOCK}, {"svg", DROPPED}, {"table", PARAGRAPH}, {"tbody", BLOCK}, {"td", CELL},
	{"template", DROPPED}, {"textarea", PRE}, {"tfoot", BLOCK}, {"th", CELL}, {"thead", BLOCK}, {"title", PARAGRAPH},
	{"tr", ROW}, {"ul", PARAGRAPH},
};

struct reader {
	htmlParserCtxtPtr parser;
	struct bytes out;
	size_t max_bytes;
	int depth, dropped, pre;
	int feeds;              /* line feeds to be written before what comes next */
	bool space;             /* likewise a space */
	bool cells;             /* the row has a cell already */
	bool too_deep, too_large;
	size_t link_at;         /* where the text of the link began */
	char address[ADDRESS_BYTES];
};

static int by_name(const void *name, const void *element)
{
	return strcasecmp(name, ((const struct element *)element)->name);
}

static int kind_of(const xmlChar *name)
{
	const struct element *e = bsearch(name, elements, sizeof elements / sizeof *elements, sizeof *elements, by_name);

	return e ? e->kind : 0;
}

static void stop(struct reader *r)
{
	xmlStopParser(r->parser);
}

static void put(struct reader *r, const char *text, size_t n)
{
	if (r->out.n + n > r->max_bytes) {
		r->too_large = true;
		stop(r);
		return;
	}
	bytes_append(&r->out, text, n);
}

/* Write what had to wait until something follows it. */
static void flush(struct reader *r)
{
	static const char feeds[] = "\n\n";

	if (r->out.n && r->feeds)
		put(r, feeds, (size_t)r->feeds);
	else if (r->out.n && r->space && r->out.data[r->out.n - 1] != '\n')
		put(r, " ", 1);
	r->feeds = 0;
	r->space = false;
}

static void break_line(struct reader *r, int feeds)
{
	r->feeds = r->feeds > feeds ? r->feeds : feeds;
	r->space = false;
}

static void literal(struct reader *r, const char *text)
{
	flush(r);
	put(r, text, strlen(text));
}

static size_t space_bytes(const char *text, size_t n)
{
	if (n > 1 && !memcmp(text, "\xc2\xa0", 2)) /* U+00A0 holds words together on a screen; here it is a space */
		return 2;
	return strchr(" \t\n\r\f", *text) ? 1 : 0;
}

static void add_text(struct reader *r, const char *text, size_t n)
{
	if (r->pre) {
		flush(r);
		put(r, text, n);
		return;
	}
	for (size_t i = 0; i < n && !r->too_large; ) {
		size_t word = 0, space = space_bytes(text + i, n - i);

		if (space) {
			r->space = true;
			i += space;
			continue;
		}
		while (i + word < n && !space_bytes(text + i + word, n - i - word))
			word++;
		flush(r);
		put(r, text + i, word);
		i += word;
	}
}

static const char *attribute(const xmlChar **attributes, const char *name)
{
	for (; attributes && *attributes; attributes += 2)
		if (!strcasecmp((const char *)attributes[0], name))
			return (const char *)attributes[1];
	return NULL;
}

/* Remember an address of the web; one with spaces or control characters in it is none. */
static void begin_link(struct reader *r, const char *address)
{
	size_t n = address ? strlen(address) : 0;

	r->address[0] = '\0';
	r->link_at = r->out.n;
	if (n >= ADDRESS_BYTES || !n || (strncasecmp(address, "http://", 7) && strncasecmp(address, "https://", 8)))
		return;
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)address[i] <= ' ' || address[i] == 0x7f)
			return;
	memcpy(r->address, address, n + 1);
}

static void end_link(struct reader *r)
{
	size_t n = strlen(r->address);

	/* Without text there is nothing to click on; text that is the address says it already. */
	if (n && r->out.n > r->link_at && !memmem(r->out.data + r->link_at, r->out.n - r->link_at, r->address, n)) {
		r->space = false;
		literal(r, " (");
		put(r, r->address, n);
		put(r, ")", 1);
	}
	r->address[0] = '\0';
}

static void on_start(void *ctx, const xmlChar *name, const xmlChar **attributes)
{
	struct reader *r = ctx;
	int kind = kind_of(name);
	const char *alt;

	if (++r->depth > MAX_DEPTH) {
		r->too_deep = true;
		stop(r);
		return;
	}
	if (kind == DROPPED)
		r->dropped++;
	if (r->dropped)
		return;
	switch (kind) {
	case BLOCK:
		break_line(r, 1);
		break;
	case PARAGRAPH:
		break_line(r, 2);
		break;
	case PRE:
		break_line(r, 2);
		r->pre++;
		break;
	case ITEM:
		break_line(r, 1);
		literal(r, "- ");
		break;
	case ROW:
		break_line(r, 1);
		r->cells = false;
		break;
	case CELL:
		r->space = false;
		if (r->cells && !r->feeds)
			literal(r, " | ");
		r->cells = true;
		break;
	case BREAK:
		break_line(r, r->feeds < 2 ? r->feeds + 1 : 2);
		break;
	case LINK:
		begin_link(r, attribute(attributes, "href"));
		break;
	case IMAGE:
		alt = attribute(attributes, "alt");
		if (alt)
			add_text(r, alt, strlen(alt));
		break;
	default:
		break;
	}
}

static void on_end(void *ctx, const xmlChar *name)
{
	struct reader *r = ctx;
	int kind = kind_of(name);

	r->depth -= r->depth > 0;
	if (kind == DROPPED)
		r->dropped -= r->dropped > 0;
	if (r->dropped)
		return;
	if (kind == PRE)
		r->pre -= r->pre > 0;
	if (kind == LINK)
		end_link(r);
	if (kind == BLOCK || kind == ITEM || kind == ROW)
		break_line(r, 1);
	if (kind == PARAGRAPH || kind == PRE)
		break_line(r, 2);
}

static void on_text(void *ctx, const xmlChar *text, int n)
{
	struct reader *r = ctx;

	if (!r->dropped && n > 0)
		add_text(r, (const char *)text, (size_t)n);
}

/* Every page has errors. */
static void on_error(void *ctx, const char *format, ...)
{
	(void)ctx;
	(void)format;
}

int html_to_text(const char *html, size_t bytes, size_t max_bytes, char **out, size_t *out_bytes,
		 char reason[SKIP_REASON_BYTES])
{
	htmlSAXHandler sax = {.startElement = on_start, .endElement = on_end, .characters = on_text,
			      .ignorableWhitespace = on_text, .warning = on_error, .error = on_error,
			      .fatalError = on_error};
	struct reader r = {.max_bytes = max_bytes};

	if (bytes > INT_MAX / 2) {
		snprintf(reason, SKIP_REASON_BYTES, "too large");
		return 0;
	}
	if (bytes) {
		xmlInitParser();
		r.parser = htmlCreateMemoryParserCtxt(html, (int)bytes);
		if (!r.parser) {
			snprintf(reason, SKIP_REASON_BYTES, "not extracted: no memory for the HTML parser");
			return 0;
		}
		htmlCtxtUseOptions(r.parser, HTML_PARSE_NONET | HTML_PARSE_NOERROR | HTML_PARSE_NOWARNING |
					     HTML_PARSE_IGNORE_ENC);
		xmlSwitchEncoding(r.parser, XML_CHAR_ENCODING_UTF8);
		/* The handlers are the parser's to free; ours are copied over them. */
		memcpy(r.parser->sax, &sax, sizeof sax);
		r.parser->userData = &r;
		htmlParseDocument(r.parser);
		htmlFreeParserCtxt(r.parser);
	}
	if (r.too_deep || r.too_large) {
		snprintf(reason, SKIP_REASON_BYTES, r.too_large ? "too large" : "not extracted: its elements nest deeper than %d",
			 MAX_DEPTH);
		bytes_free(&r.out);
		return 0;
	}
	if (r.out.n && r.out.data[r.out.n - 1] != '\n')
		bytes_append(&r.out, "\n", 1);
	*out_bytes = r.out.n;
	bytes_append(&r.out, "", 1);
	*out = r.out.data;
	return 1;
}
