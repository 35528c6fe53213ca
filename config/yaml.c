#include "config/yaml.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "config/mem.h"

struct yaml {
	yaml_parser_t parser;
	yaml_event_t event;   /* the last one; all zeros is an event of no kind, which may be deleted */
	const char *name, *text;
	size_t bytes;
	int depth;
	struct {
		bool is_mapping, at_key;
	} open[YAML_MAX_DEPTH + 1]; /* [1 .. depth] */
};

int yaml_open(struct yaml **out, const char *name, const char *text, size_t bytes, struct err *err)
{
	struct yaml *y;

	if (bytes > YAML_MAX_BYTES)
		return err_set(err, ERR_USAGE, "%s has %zu bytes; a configuration has at most %d", name, bytes,
			       YAML_MAX_BYTES);
	y = xcalloc(1, sizeof *y);
	if (!yaml_parser_initialize(&y->parser)) {
		free(y);
		return err_set(err, ERR_FAILED, "%s: no memory for a YAML parser", name);
	}
	y->name = name;
	y->text = text;
	y->bytes = bytes;
	yaml_parser_set_encoding(&y->parser, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&y->parser, (const unsigned char *)text, bytes);
	*out = y;
	return 0;
}

void yaml_close(struct yaml *y)
{
	if (!y)
		return;
	yaml_event_delete(&y->event);
	yaml_parser_delete(&y->parser);
	free(y);
}

int yaml_refuse(const struct yaml *y, struct yaml_place at, struct err *err, const char *format, ...)
{
	/* A value may be as long as the file: what is left of the room is for the place. */
	char sentence[sizeof err->text / 2];
	va_list args;

	va_start(args, format);
	vsnprintf(sentence, sizeof sentence, format, args);
	va_end(args);
	err_set(err, ERR_USAGE, "%s", sentence);
	return err_wrap(err, "%s:%zu:%zu", y->name, at.line, at.column);
}

static struct yaml_place place_of(yaml_mark_t mark)
{
	return (struct yaml_place){mark.line + 1, mark.column + 1};
}

/* Bytes that are not text have no mark yet, only an offset. */
static struct yaml_place place_of_byte(const struct yaml *y, size_t offset)
{
	struct yaml_place at = {1, 1};

	for (size_t i = 0; i < offset && i < y->bytes; i++) {
		bool line_feed = y->text[i] == '\n';

		at.line += line_feed;
		at.column = line_feed ? 1 : at.column + ((y->text[i] & 0xc0) != 0x80);
	}
	return at;
}

static int refuse_syntax(const struct yaml *y, struct err *err)
{
	const yaml_parser_t *p = &y->parser;
	const char *problem = p->problem ? p->problem : "cannot be read";

	if (p->error == YAML_READER_ERROR)
		return yaml_refuse(y, place_of_byte(y, p->problem_offset), err, "not YAML: %s", problem);
	if (p->context)
		return yaml_refuse(y, place_of(p->problem_mark), err, "not YAML: %s: %s", p->context, problem);
	return yaml_refuse(y, place_of(p->problem_mark), err, "not YAML: %s", problem);
}

/* Directives and further documents end here, and what is left are the events between. */
static int next_event(struct yaml *y, struct err *err)
{
	const yaml_event_t *e = &y->event;

	for (;;) {
		bool first = e->type == YAML_STREAM_START_EVENT;

		yaml_event_delete(&y->event);
		if (!yaml_parser_parse(&y->parser, &y->event))
			return refuse_syntax(y, err);
		switch (e->type) {
		case YAML_STREAM_START_EVENT:
		case YAML_DOCUMENT_END_EVENT:
			continue;
		case YAML_DOCUMENT_START_EVENT:
			if (!first)
				return yaml_refuse(y, place_of(e->start_mark), err, "a second document begins here; a "
						   "configuration is one");
			if (e->data.document_start.version_directive ||
			    e->data.document_start.tag_directives.start != e->data.document_start.tag_directives.end)
				return yaml_refuse(y, place_of(e->start_mark), err, "YAML directives (%%) are not "
						   "accepted");
			continue;
		default:
			return 0;
		}
	}
}

static int refuse_decoration(const struct yaml *y, const yaml_char_t *anchor, const yaml_char_t *tag,
			     struct err *err)
{
	struct yaml_place at = place_of(y->event.start_mark);

	if (anchor)
		return yaml_refuse(y, at, err, "anchors (&%s) are not accepted; write the value where it is needed",
				   (const char *)anchor);
	if (tag)
		return yaml_refuse(y, at, err, "tags (%s) are not accepted", (const char *)tag);
	return 0;
}

static int open_level(struct yaml *y, bool is_mapping, struct err *err)
{
	if (y->depth == YAML_MAX_DEPTH)
		return yaml_refuse(y, place_of(y->event.start_mark), err, "nested deeper than %d levels",
				   YAML_MAX_DEPTH);
	y->depth++;
	y->open[y->depth].is_mapping = is_mapping;
	y->open[y->depth].at_key = true;
	return 0;
}

static int check_scalar(const struct yaml *y, bool is_key, struct err *err)
{
	const char *text = (const char *)y->event.data.scalar.value;
	yaml_scalar_style_t style = y->event.data.scalar.style;
	struct yaml_place at = place_of(y->event.start_mark);

	if (strlen(text) != y->event.data.scalar.length)
		return yaml_refuse(y, at, err, "text with a NUL in it");
	if (style == YAML_LITERAL_SCALAR_STYLE || style == YAML_FOLDED_SCALAR_STYLE)
		return yaml_refuse(y, at, err, "block text (| or >) is not accepted; put the text in quotes");
	if (is_key && !strcmp(text, "<<"))
		return yaml_refuse(y, at, err, "merge keys (<<) are not accepted; write the keys out");
	return 0;
}

int yaml_next(struct yaml *y, struct yaml_piece *piece, struct err *err)
{
	const yaml_event_t *e = &y->event;
	bool in_mapping, is_key;

	if (next_event(y, err))
		return -1;
	in_mapping = y->depth && y->open[y->depth].is_mapping;
	is_key = in_mapping && y->open[y->depth].at_key;
	*piece = (struct yaml_piece){.kind = YAML_END, .at = place_of(e->start_mark)};
	if (in_mapping)
		y->open[y->depth].at_key = !is_key;
	switch (e->type) {
	case YAML_SCALAR_EVENT:
		piece->kind = YAML_SCALAR;
		piece->text = (const char *)e->data.scalar.value;
		piece->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
		if (refuse_decoration(y, e->data.scalar.anchor, e->data.scalar.tag, err))
			return -1;
		return check_scalar(y, is_key, err);
	case YAML_MAPPING_START_EVENT:
		piece->kind = YAML_MAPPING;
		if (refuse_decoration(y, e->data.mapping_start.anchor, e->data.mapping_start.tag, err))
			return -1;
		break;
	case YAML_SEQUENCE_START_EVENT:
		piece->kind = YAML_LIST;
		if (refuse_decoration(y, e->data.sequence_start.anchor, e->data.sequence_start.tag, err))
			return -1;
		break;
	case YAML_ALIAS_EVENT:
		return yaml_refuse(y, piece->at, err, "aliases (*%s) are not accepted; write the value out",
				   (const char *)e->data.alias.anchor);
	case YAML_MAPPING_END_EVENT:
	case YAML_SEQUENCE_END_EVENT:
		y->depth--;
		return 0;
	default: /* the end of the stream, at depth 0 */
		return 0;
	}
	if (is_key)
		return yaml_refuse(y, piece->at, err, "a key is a word, not a list or mapping");
	return open_level(y, piece->kind == YAML_MAPPING, err);
}

static bool is_one_of(const char *text, const char *const *words)
{
	for (; *words; words++)
		if (!strcmp(text, *words))
			return true;
	return false;
}

bool yaml_is_boolean(const char *plain)
{
	static const char *const words[] = {"y", "Y", "yes", "Yes", "YES", "n", "N", "no", "No", "NO", "true", "True",
					    "TRUE", "false", "False", "FALSE", "on", "On", "ON", "off", "Off", "OFF", NULL};

	return is_one_of(plain, words);
}

bool yaml_is_null(const char *plain)
{
	static const char *const words[] = {"", "~", "null", "Null", "NULL", NULL};

	return is_one_of(plain, words);
}
