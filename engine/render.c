#include "engine/render.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/json.h"
#include "config/mem.h"
#include "engine/md5.h"
#include "config/utf8.h"

enum { MAX_TEMPLATE_BYTES = 1 << 20, MAX_CONFIG_BYTES = 16 << 20 };

enum structure {
	GMASK,
	SOP,
	SYSTEM,
	USER,
	ASSISTANT,
	THINK,
	THINK_END,
	N_REQUIRED,
	/* Only where they are used. */
	OBSERVATION = N_REQUIRED,
	TOOL_CALL,
	TOOL_CALL_END,
	TOOL_RESPONSE,
	TOOL_RESPONSE_END,
	ARG_KEY,
	ARG_KEY_END,
	ARG_VALUE,
	ARG_VALUE_END,
	END_OF_TEXT,
	N_STRUCTURE
};

static const char *const spelled[N_STRUCTURE] = {
	[GMASK] = "[gMASK]",
	[SOP] = "<sop>",
	[SYSTEM] = "<|system|>",
	[USER] = "<|user|>",
	[ASSISTANT] = "<|assistant|>",
	[THINK] = "<think>",
	[THINK_END] = "</think>",
	[OBSERVATION] = "<|observation|>",
	[TOOL_CALL] = "<tool_call>",
	[TOOL_CALL_END] = "</tool_call>",
	[TOOL_RESPONSE] = "<tool_response>",
	[TOOL_RESPONSE_END] = "</tool_response>",
	[ARG_KEY] = "<arg_key>",
	[ARG_KEY_END] = "</arg_key>",
	[ARG_VALUE] = "<arg_value>",
	[ARG_VALUE_END] = "</arg_value>",
	[END_OF_TEXT] = "<|endoftext|>",
};

/* What differs between the templates. */
struct form {
	const char *name;
	const char *md5;   /* of its chat_template.jinja, NULL: not known */
	bool effort;       /* has an effort line */
	bool opens_think;  /* a turn without reasoning is <think></think>, else a bare </think> */
};

static const struct form forms[] = {
	{.name = "glm-5.2", .md5 = "42994f78b64752fe472149dd7e20410d", .effort = true, .opens_think = true},
	{.name = "glm-5", .effort = false, .opens_think = false},
};

struct renderer {
	const struct form *form;
	const struct tokenizer *tokenizer;
	int32_t id[N_STRUCTURE]; /* -1: the tokenizer has none */
	int32_t stop[3];
	size_t n_stop;
};

/* ---- Choosing --------------------------------------------------------------------------------------------- */

static const struct form *form_by_name(const char *name)
{
	for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
		if (!strcmp(forms[i].name, name))
			return &forms[i];
	return NULL;
}

/* The form of a template file. *out stays NULL if there is no file. */
static int form_of_template(const struct form **out, const char *dir, struct err *err)
{
	char *path = xasprintf("%s/chat_template.jinja", dir), *text, md5[MD5_HEX_BYTES];
	struct err why = {0};
	size_t bytes;
	int failed = 0;

	if (!file_read(&text, &bytes, path, MAX_TEMPLATE_BYTES, &why)) {
		md5_hex(md5, text, bytes);
		free(text);
		for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
			if (forms[i].md5 && !strcmp(forms[i].md5, md5))
				*out = &forms[i];
		if (!*out)
			failed = err_set(err, ERR_UNAVAILABLE,
					 "%s has md5 %s, and only GLM-5.2's template, md5 %s, is known; set model.template: "
					 "glm-5.2 to render questions in its way nevertheless", path, md5, forms[0].md5);
	} else if (why.code != ERR_NOT_FOUND) {
		failed = err_set(err, ERR_UNAVAILABLE, "cannot tell how to render a question: %s", why.text);
	}
	free(path);
	return failed;
}

/* Whether a value of one of those keys names a layer that has no indexer of its own: a frequency above 1, a pattern
 * with an S, a list with a "shared". */
static bool names_a_shared_layer(const json_t *value)
{
	size_t i;
	json_t *member;

	if (json_is_string(value))
		return strpbrk(json_string_value(value), "Ss") != NULL;
	json_array_foreach((json_t *)value, i, member)
	{
		const char *name = json_string_value(member);

		if (name && (*name == 'S' || *name == 's'))
			return true;
	}
	return json_is_integer(value) && json_integer_value(value) > 1;
}

/* Whether config.json shares index choices between layers: GLM-5.2 does, GLM-5 and GLM-5.1 do not. */
static int shares_index(bool *out, const char *dir, struct err *err)
{
	static const char *const keys[] = {"index_topk_freq", "index_topk_pattern", "indexer_types"};
	char *path = xasprintf("%s/config.json", dir);
	json_t *root = NULL;
	int failed = json_read(&root, path, MAX_CONFIG_BYTES, err);

	*out = false;
	for (size_t i = 0; !failed && i < sizeof keys / sizeof *keys; i++)
		*out |= names_a_shared_layer(json_object_get(root, keys[i]));
	json_decref(root);
	free(path);
	return failed ? err_set(err, ERR_UNAVAILABLE, "%s", err ? err->text : "") : 0;
}

static int choose(const struct form **out, const char *dir, const char *architecture, const char *override,
		  struct err *err)
{
	bool shares;

	*out = NULL;
	if (override) {
		*out = form_by_name(override);
		return *out ? 0 : err_set(err, ERR_UNAVAILABLE, "model.template is \"%s\", \"glm-5.2\" and \"glm-5\" are known",
					  override);
	}
	if (form_of_template(out, dir, err) || *out)
		return *out ? 0 : -1;
	if (!strcmp(architecture, "glm4_moe_lite")) {
		*out = form_by_name("glm-5");
		return 0;
	}
	if (strcmp(architecture, "glm_moe_dsa"))
		return err_set(err, ERR_UNAVAILABLE, "there is no chat renderer for architecture %s; eval, bench, info and "
			       "tokenize work, ask does not", architecture);
	if (shares_index(&shares, dir, err))
		return -1;
	*out = form_by_name(shares ? "glm-5.2" : "glm-5");
	return 0;
}

int renderer_open(struct renderer **out, const char *model_dir, const char *architecture, const char *override,
		  const struct tokenizer *t, struct err *err)
{
	static const enum structure stops[] = {END_OF_TEXT, USER, OBSERVATION};
	const struct form *form;
	struct renderer *r;

	if (choose(&form, model_dir, architecture, override, err))
		return -1;
	for (int i = 0; i < N_REQUIRED; i++)
		if (tokenizer_added_id(t, spelled[i]) < 0)
			return err_set(err, ERR_UNAVAILABLE, "%s/tokenizer.json has no added token %s, which the %s chat "
				       "renderer needs; eval, bench, info and tokenize work, ask does not", model_dir,
				       spelled[i], form->name);
	r = xcalloc(1, sizeof *r);
	r->form = form;
	r->tokenizer = t;
	for (int i = 0; i < N_STRUCTURE; i++)
		r->id[i] = tokenizer_added_id(t, spelled[i]);
	for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
		if (r->id[stops[i]] >= 0)
			r->stop[r->n_stop++] = r->id[stops[i]];
	*out = r;
	return 0;
}

void renderer_close(struct renderer *r)
{
	free(r);
}

const char *renderer_name(const struct renderer *r)
{
	return r->form->name;
}

const int32_t *renderer_stop_ids(const struct renderer *r, size_t *n)
{
	*n = r->n_stop;
	return r->stop;
}

int32_t renderer_think_end(const struct renderer *r)
{
	return r->id[THINK_END];
}

/* ---- Writing ---------------------------------------------------------------------------------------------- */

/* Text gathers until the next structure token, then is encoded in one piece. The first failure sticks. */
struct writing {
	const struct renderer *r;
	struct ids *out;
	struct bytes text;
	int failed;
	struct err *err;
};

static void flush(struct writing *w)
{
	if (w->text.n && !w->failed)
		w->failed = tokenizer_encode(w->r->tokenizer, w->out, w->text.data, w->text.n, 0, w->err);
	w->text.n = 0;
}

static void put(struct writing *w, enum structure s)
{
	flush(w);
	if (w->failed)
		return;
	if (w->r->id[s] < 0)
		w->failed = err_set(w->err, ERR_UNAVAILABLE, "tokenizer.json has no added token %s, which tools need",
				    spelled[s]);
	else
		ids_push(w->out, w->r->id[s]);
}

static void say(struct writing *w, const char *text)
{
	bytes_append(&w->text, text, strlen(text));
}

static void say_text(struct writing *w, struct chat_text text)
{
	if (text.data)
		bytes_append(&w->text, text.data, text.bytes);
}

/* What str.strip takes away. */
static bool is_blank(uint32_t c)
{
	return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
	       (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static struct chat_text stripped(struct chat_text t)
{
	const unsigned char *p = (const unsigned char *)t.data;
	size_t first = 0, end = t.bytes;
	uint32_t c;

	while (first < end) {
		size_t n = utf8_decode(p + first, end - first, &c);

		if (!n || !is_blank(c))
			break;
		first += n;
	}
	while (end > first) {
		size_t n = 1;

		while (n < 4 && n < end - first && (p[end - n] & 0xc0) == 0x80)
			n++;
		if (utf8_decode(p + end - n, n, &c) != n || !is_blank(c))
			break;
		end -= n;
	}
	return (struct chat_text){t.data ? t.data + first : NULL, end - first};
}

static int finish(struct writing *w, size_t n_before)
{
	flush(w);
	bytes_free(&w->text);
	if (w->failed)
		w->out->n = n_before;
	return w->failed;
}

static void say_effort(struct writing *w, bool high)
{
	put(w, SYSTEM);
	say(w, high ? "Reasoning Effort: High" : "Reasoning Effort: Max");
}

static void no_reasoning(struct writing *w)
{
	if (w->r->form->opens_think)
		put(w, THINK);
	put(w, THINK_END);
}

static void begin_answer(struct writing *w, bool think)
{
	put(w, ASSISTANT);
	if (think)
		put(w, THINK);
	else
		no_reasoning(w);
}

void render_opening(const struct tokenizer *t, struct ids *out)
{
	const int32_t opening[] = {tokenizer_added_id(t, "[gMASK]"), tokenizer_added_id(t, "<sop>"),
				   tokenizer_added_id(t, "<|user|>")};

	if (opening[0] >= 0 && opening[1] >= 0 && opening[2] >= 0)
		ids_append(out, opening, sizeof opening / sizeof *opening);
}

int render_question(const struct renderer *r, struct ids *out, const char *question, size_t bytes, bool think,
		    struct err *err)
{
	struct writing w = {.r = r, .out = out, .err = err};
	size_t n = out->n;

	say(&w, "=== end of documents ===\n\n");
	say_text(&w, (struct chat_text){question, bytes});
	if (think && r->form->effort)
		say_effort(&w, false);
	begin_answer(&w, think);
	return finish(&w, n);
}

/* ---- JSON as Python writes it ----------------------------------------------------------------------------- */

static void put_string(struct bytes *out, const char *text, size_t bytes)
{
	static const char special[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";

	bytes_append(out, "\"", 1);
	for (size_t i = 0; i < bytes; i++) {
		const char *s = text[i] ? strchr(special, text[i]) : NULL;
		char escape[8];

		if (s) {
			escape[0] = '\\';
			escape[1] = letters[s - special];
			bytes_append(out, escape, 2);
		} else if ((unsigned char)text[i] < 0x20) {
			bytes_append(out, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", text[i]));
		} else {
			bytes_append(out, text + i, 1);
		}
	}
	bytes_append(out, "\"", 1);
}

/* repr of a float: the fewest digits that give it back, plain between 1e-4 and 1e16. */
static void put_real(struct bytes *out, double x)
{
	char text[48], digits[32];
	int precision = 0, exponent, n = 0;

	do
		snprintf(text, sizeof text, "%.*e", precision, x);
	while (strtod(text, NULL) != x && ++precision < 17);
	exponent = atoi(strchr(text, 'e') + 1);
	for (const char *p = text; *p != 'e'; p++)
		if (*p >= '0' && *p <= '9')
			digits[n++] = *p;
	if (text[0] == '-')
		bytes_append(out, "-", 1);
	if (exponent < -4 || exponent >= 16) {
		bytes_append(out, digits, 1);
		if (n > 1)
			bytes_append(out, ".", 1);
		bytes_append(out, digits + 1, (size_t)n - 1);
		bytes_append(out, text, (size_t)snprintf(text, sizeof text, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent)));
		return;
	}
	if (exponent < 0)
		bytes_append(out, "0.000", (size_t)(1 - exponent));
	for (int i = 0; i < n || i <= exponent + 1; i++) {
		if (i == exponent + 1 && exponent >= 0)
			bytes_append(out, ".", 1);
		if (i < n || i <= exponent || exponent >= 0)
			bytes_append(out, i < n ? digits + i : "0", 1);
	}
}

void render_json(struct bytes *out, const json_t *value)
{
	char text[32];
	const char *key;
	json_t *member;
	size_t i, n = 0;

	switch (json_typeof(value)) {
	case JSON_OBJECT:
		bytes_append(out, "{", 1);
		json_object_foreach((json_t *)value, key, member)
		{
			if (n++)
				bytes_append(out, ", ", 2);
			put_string(out, key, strlen(key));
			bytes_append(out, ": ", 2);
			render_json(out, member);
		}
		bytes_append(out, "}", 1);
		break;
	case JSON_ARRAY:
		bytes_append(out, "[", 1);
		json_array_foreach((json_t *)value, i, member)
		{
			if (i)
				bytes_append(out, ", ", 2);
			render_json(out, member);
		}
		bytes_append(out, "]", 1);
		break;
	case JSON_STRING:
		put_string(out, json_string_value(value), json_string_length(value));
		break;
	case JSON_INTEGER:
		bytes_append(out, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value)));
		break;
	case JSON_REAL:
		put_real(out, json_real_value(value));
		break;
	case JSON_TRUE:
		bytes_append(out, "true", 4);
		break;
	case JSON_FALSE:
		bytes_append(out, "false", 5);
		break;
	case JSON_NULL:
		bytes_append(out, "null", 4);
		break;
	}
}

/* ---- A conversation --------------------------------------------------------------------------------------- */

static int bad_tools(struct writing *w, const char *what, size_t i)
{
	return w->failed = err_set(w->err, ERR_USAGE, "%s %zu: an object with \"name\" is expected, by itself or inside "
				   "\"function\"", what, i);
}

/* {"function": {..}} or {..} itself; NULL unless it has a name. */
static const json_t *function_of(const json_t *entry)
{
	const json_t *inner = json_object_get(entry, "function");
	const json_t *f = json_is_object(inner) ? inner : entry;

	return json_is_string(json_object_get(f, "name")) ? f : NULL;
}

static void say_tools(struct writing *w, const json_t *tools)
{
	size_t i;
	json_t *entry;

	put(w, SYSTEM);
	say(w, "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
	       "function signatures within <tools></tools> XML tags:\n<tools>\n");
	json_array_foreach((json_t *)tools, i, entry)
	{
		const json_t *f = function_of(entry);
		const char *key;
		json_t *value;
		int n = 0;

		if (!f) {
			bad_tools(w, "tool", i);
			return;
		}
		if (json_is_true(json_object_get(f, "defer_loading")) || json_is_true(json_object_get(entry, "defer_loading")))
			continue;
		say(w, "{");
		json_object_foreach((json_t *)f, key, value)
		{
			if (!strcmp(key, "defer_loading") || !strcmp(key, "strict"))
				continue;
			say(w, n++ ? ", \"" : "\"");
			say(w, key);
			say(w, "\": ");
			render_json(&w->text, value);
		}
		say(w, "}\n");
	}
	say(w, "</tools>\n\nFor each function call, output the function name and arguments within the following XML "
	       "format:\n");
	put(w, TOOL_CALL);
	say(w, "{function-name}");
	for (int k = 1; k <= 2; k++) {
		put(w, ARG_KEY);
		say(w, k == 1 ? "{arg-key-1}" : "{arg-key-2}");
		put(w, ARG_KEY_END);
		put(w, ARG_VALUE);
		say(w, k == 1 ? "{arg-value-1}" : "{arg-value-2}");
		put(w, ARG_VALUE_END);
	}
	say(w, "...");
	put(w, TOOL_CALL_END);
}

static void say_calls(struct writing *w, const json_t *calls)
{
	size_t i;
	json_t *entry;

	json_array_foreach((json_t *)calls, i, entry)
	{
		const json_t *f = function_of(entry), *arguments = json_object_get(f, "arguments");
		const char *key;
		json_t *value;

		if (!f || (arguments && !json_is_object(arguments))) {
			bad_tools(w, "tool call", i);
			return;
		}
		put(w, TOOL_CALL);
		say(w, json_string_value(json_object_get(f, "name")));
		json_object_foreach((json_t *)arguments, key, value)
		{
			put(w, ARG_KEY);
			say(w, key);
			put(w, ARG_KEY_END);
			put(w, ARG_VALUE);
			if (json_is_string(value))
				bytes_append(&w->text, json_string_value(value), json_string_length(value));
			else
				render_json(&w->text, value);
			put(w, ARG_VALUE_END);
		}
		put(w, TOOL_CALL_END);
	}
}

static void say_assistant(struct writing *w, const struct chat_message *m, bool keep_reasoning)
{
	put(w, ASSISTANT);
	if (m->reasoning.data && keep_reasoning) {
		put(w, THINK);
		say_text(w, m->reasoning);
		put(w, THINK_END);
	} else {
		no_reasoning(w);
	}
	say_text(w, stripped(m->content));
	if (m->tool_calls)
		say_calls(w, m->tool_calls);
}

int render_chat(const struct renderer *r, struct ids *out, const struct chat_message *messages, size_t n,
		const struct chat_options *opt, struct err *err)
{
	struct writing w = {.r = r, .out = out, .err = err};
	size_t n_before = out->n, last_user = 0;

	for (size_t i = 0; i < n; i++)
		if (messages[i].role == CHAT_USER)
			last_user = i;
	put(&w, GMASK);
	put(&w, SOP);
	if (opt->think && r->form->effort)
		say_effort(&w, opt->effort_high);
	if (json_array_size(opt->tools))
		say_tools(&w, opt->tools);
	for (size_t i = 0; i < n && !w.failed; i++) {
		const struct chat_message *m = &messages[i];

		switch (m->role) {
		case CHAT_SYSTEM:
			put(&w, SYSTEM);
			say_text(&w, m->content);
			break;
		case CHAT_USER:
			put(&w, USER);
			say_text(&w, m->content);
			break;
		case CHAT_ASSISTANT:
			say_assistant(&w, m, opt->keep_reasoning || i > last_user);
			break;
		case CHAT_TOOL:
			if (!i || messages[i - 1].role != CHAT_TOOL)
				put(&w, OBSERVATION);
			put(&w, TOOL_RESPONSE);
			say_text(&w, m->content);
			put(&w, TOOL_RESPONSE_END);
			break;
		}
	}
	begin_answer(&w, opt->think);
	return finish(&w, n_before);
}
