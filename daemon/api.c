#include "daemon/api.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "config/mem.h"
#include "ingest/document.h"

/* '*' stands for the one open part of a path. */
static const struct {
	const char *method, *path;
} routes[N_API_ROUTES] = {
	[API_INGEST] = {"POST", "/api/v1/corpora/*/ingest"},
	[API_CORPORA] = {"GET", "/api/v1/corpora"},
	[API_FILES] = {"GET", "/api/v1/corpora/*/files"},
	[API_SNAPSHOTS] = {"GET", "/api/v1/corpora/*/snapshots"},
	[API_SNAPSHOT] = {"GET", "/api/v1/corpora/*"},
	[API_TEXT] = {"POST", "/api/v1/corpora/*/text"},
	[API_DIFF] = {"POST", "/api/v1/diff"},
	[API_JOBS] = {"GET", "/api/v1/jobs"},
	[API_JOB] = {"GET", "/api/v1/jobs/*"},
	[API_JOB_EVENTS] = {"GET", "/api/v1/jobs/*/events"},
	[API_JOB_CANCEL] = {"POST", "/api/v1/jobs/*/cancel"},
	[API_ASK] = {"POST", "/api/v1/ask"},
	[API_CHECK] = {"POST", "/api/v1/check"},
	[API_REPAIR] = {"POST", "/api/v1/repair"},
	[API_REMOVE] = {"POST", "/api/v1/corpora/*/remove"},
	[API_FORGET] = {"POST", "/api/v1/corpora/*/forget"},
	[API_STATUS] = {"GET", "/api/v1/status"},
	[API_HEALTHZ] = {"GET", "/healthz"},
	[API_READYZ] = {"GET", "/readyz"},
};

/* A seed is a double on the wire, as every JSON number: 2^53 is the last before integers are skipped. */
const struct api_number_info api_numbers[N_API_NUMBERS] = {
	[API_MAX_TOKENS] = {"max_tokens", "max-tokens", true, 1, 1048576, "the longest answer, in tokens"},
	[API_TEMPERATURE] = {"temperature", "temperature", false, 0, 100, "0 takes the likeliest token each time"},
	[API_TOP_P] = {"top_p", "top-p", false, 0, 1, "sample from the likeliest tokens that make up this share"},
	[API_TOP_K] = {"top_k", "top-k", true, 0, 1048576, "sample from this many tokens; 0 is all"},
	[API_MIN_P] = {"min_p", "min-p", false, 0, 1, "leave out tokens below this share of the likeliest"},
	[API_SEED] = {"seed", "seed", true, 0, 9007199254740991.0, "the same seed gives the same answer"},
};

static const char *const state_names[N_JOB_STATES] = {"queued", "running", "done", "failed", "cancelled"};
static const char *const phase_names[] = {"walk", "tokenize", "prefill", "commit", "done"};
static const char *const model_state_names[N_MODEL_STATES] = {"none", "loading", "ready", "failed"};

const char *job_state_name(enum job_state state)
{
	return state_names[state];
}

int job_state_from_name(const char *name)
{
	for (int i = 0; i < N_JOB_STATES; i++)
		if (!strcmp(state_names[i], name))
			return i;
	return -1;
}

const char *ingest_phase_name(enum ingest_phase phase)
{
	return phase_names[phase];
}

/* Routes. */

const char *api_method(enum api_route route)
{
	return routes[route].method;
}

char *api_path(enum api_route route, const char *arg)
{
	const char *path = routes[route].path, *star = strchr(path, '*');
	char *escaped, *o, *whole;

	if (!star)
		return xstrdup(path);
	o = escaped = xmalloc(strlen(arg) + 1, 3);
	for (const unsigned char *p = (const unsigned char *)arg; *p; p++)
		if (strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~@", *p))
			*o++ = (char)*p;
		else
			o += sprintf(o, "%%%02X", *p);
	*o = '\0';
	whole = xasprintf("%.*s%s%s", (int)(star - path), path, escaped, star + 1);
	free(escaped);
	return whole;
}

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
					      : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Match one path against one pattern; the part for '*' is not empty and has no '/'. */
static bool path_matches(const char *pattern, const char *path, char arg[API_SNAPSHOT_BYTES])
{
	const char *star = strchr(pattern, '*');
	size_t before = star ? (size_t)(star - pattern) : 0, n = 0;

	if (!star)
		return !strcmp(pattern, path);
	if (strncmp(pattern, path, before))
		return false;
	for (path += before; *path && *path != '/'; path++) {
		char c = *path;

		if (c == '%') {
			int high = hex_digit(path[1]), low = high < 0 ? -1 : hex_digit(path[2]);

			if (low < 0 || !(high | low))
				return false;
			c = (char)(high << 4 | low);
			path += 2;
		}
		if (n + 1 >= API_SNAPSHOT_BYTES)
			return false;
		arg[n++] = c;
	}
	arg[n] = '\0';
	return n && !strcmp(star + 1, path);
}

int api_route_find(const char *method, const char *path, char arg[API_SNAPSHOT_BYTES], const char **allow,
		   struct err *err)
{
	*allow = NULL;
	for (int i = 0; i < N_API_ROUTES; i++) {
		arg[0] = '\0';
		if (!path_matches(routes[i].path, path, arg))
			continue;
		if (!strcmp(method, routes[i].method))
			return i;
		*allow = routes[i].method;
	}
	arg[0] = '\0';
	if (*allow)
		return err_set(err, ERR_USAGE, "%.16s does not go with %.200s: use %s", method, path, *allow);
	return err_set(err, ERR_NOT_FOUND, "there is nothing at %.200s", path);
}

/* Checks. */

int api_check_corpus_name(const char *name, struct err *err)
{
	size_t n = strlen(name);

	if (!n || n >= API_NAME_BYTES || name[0] == '.' || name[0] == '-' ||
	    strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != n)
		return err_set(err, ERR_USAGE,
			       "\"%.*s\" cannot name a corpus: use up to %d letters, digits, '.', '_' and '-', beginning "
			       "with none of '.' and '-'",
			       API_NAME_BYTES, name, API_NAME_BYTES - 1);
	return 0;
}

int api_check_number(enum api_number number, const char *name, double value, struct err *err)
{
	const struct api_number_info *i = &api_numbers[number];

	/* The comparison is this way round so that a NaN fails it. */
	if (!(value >= i->least && value <= i->most) || (i->integer && value != floor(value)))
		return err_set(err, ERR_USAGE, "%s: %.17g is not %s from %.17g to %.17g", name, value,
			       i->integer ? "a whole number" : "a number", i->least, i->most);
	return 0;
}

int api_job_id_parse(int64_t *id, const char *text, struct err *err)
{
	const char *digits = strncmp(text, "j-", 2) ? text : text + 2;
	size_t n = strlen(digits);

	if (!n || n > 18 || strspn(digits, "0123456789") != n)
		return err_set(err, ERR_USAGE, "\"%.64s\" is not a job: they are called j-1, j-2, ...", text);
	*id = strtoll(digits, NULL, 10);
	return 0;
}

int api_snapshot_id_parse(int64_t *id, const char *name, const char *text, struct err *err)
{
	size_t n = strlen(text);

	if (!n || n > 15 || strspn(text, "0123456789") != n || (*id = strtoll(text, NULL, 10)) < 1)
		return err_set(err, ERR_USAGE, "%s: \"%.64s\" is not the id of a snapshot: `quire snapshots` lists them", name,
			       text);
	return 0;
}

int api_snapshot_parse(struct api_snapshot *out, const char *text, struct err *err)
{
	const char *at = strchr(text, '@');
	size_t n = at ? (size_t)(at - text) : strlen(text);

	out->id = 0;
	snprintf(out->corpus, sizeof out->corpus, "%.*s", (int)(n < API_NAME_BYTES ? n : API_NAME_BYTES - 1), text);
	if (n >= API_NAME_BYTES || !at)
		return api_check_corpus_name(text, err);
	if (api_check_corpus_name(out->corpus, err))
		return -1;
	return api_snapshot_id_parse(&out->id, text, at + 1, err);
}

void api_snapshot_format(char out[API_SNAPSHOT_BYTES], const struct api_snapshot *s)
{
	if (s->id)
		snprintf(out, API_SNAPSHOT_BYTES, "%s@%lld", s->corpus, (long long)s->id);
	else
		snprintf(out, API_SNAPSHOT_BYTES, "%s", s->corpus);
}

/* Reading requests. */

json_t *api_load_object(const char *body, size_t bytes, struct err *err)
{
	json_t *root;

	if (json_parse(&root, "the body", body, bytes, err)) {
		err->code = ERR_USAGE;
		return NULL;
	}
	if (!json_is_object(root)) {
		err_set(err, ERR_USAGE, "the body is %s: an object is needed", json_kind(root));
		json_decref(root);
		return NULL;
	}
	return root;
}

/* A string of at least one byte. */
static int read_string(char **out, const char *key, const json_t *value, struct err *err)
{
	if (!json_is_string(value) || !json_string_length(value))
		return err_set(err, ERR_USAGE, "%s: a string that is not empty is needed", key);
	free(*out);
	*out = xstrdup(json_string_value(value));
	return 0;
}

static void free_globs(char **globs)
{
	for (char **g = globs; g && *g; g++)
		free(*g);
	free(globs);
}

static int read_globs(char ***out, const char *key, const json_t *value, struct err *err)
{
	size_t n = json_array_size(value);
	char **globs;

	if (!json_is_array(value) || n > API_MAX_GLOBS)
		return err_set(err, ERR_USAGE, "%s: an array of at most %d globs is needed", key, API_MAX_GLOBS);
	if (!n)
		return 0;
	globs = xcalloc(n + 1, sizeof *globs);
	for (size_t i = 0; i < n; i++)
		if (read_string(&globs[i], key, json_array_get(value, i), err)) {
			free_globs(globs);
			return -1;
		}
	free_globs(*out);
	*out = globs;
	return 0;
}

static int unknown_field(const char *key, const char *known, struct err *err)
{
	return err_set(err, ERR_USAGE, "unknown field \"%.64s\": there are %s", key, known);
}

static int read_boolean(bool *out, const char *key, const json_t *value, struct err *err)
{
	if (!json_is_boolean(value))
		return err_set(err, ERR_USAGE, "%s: true or false is needed", key);
	*out = json_is_true(value);
	return 0;
}

static int read_corpus_name(char out[API_NAME_BYTES], const char *key, const json_t *value, struct err *err)
{
	char *name = NULL;
	int failed = read_string(&name, key, value, err) || api_check_corpus_name(name, err);

	if (!failed)
		memcpy(out, name, strlen(name) + 1);
	free(name);
	return failed ? -1 : 0;
}

static int read_snapshot_name(char out[API_SNAPSHOT_BYTES], const char *key, const json_t *value, struct err *err)
{
	char *name = NULL;
	struct api_snapshot s;
	int failed = read_string(&name, key, value, err) || api_snapshot_parse(&s, name, err);

	if (!failed)
		api_snapshot_format(out, &s);
	free(name);
	return failed ? -1 : 0;
}

static int ask_field(struct api_ask *ask, const char *key, const json_t *value, struct err *err)
{
	if (!strcmp(key, "question"))
		return read_string(&ask->question, key, value, err);
	if (!strcmp(key, "corpus"))
		return read_corpus_name(ask->corpus, key, value, err);
	if (!strcmp(key, "think"))
		return read_boolean(&ask->think, key, value, err);
	if (!strcmp(key, "snapshot")) {
		ask->snapshot = json_integer_value(value);
		return ask->snapshot > 0 ? 0 : err_set(err, ERR_USAGE, "snapshot: the id of a snapshot is needed, a whole number "
						       "from 1");
	}
	for (int i = 0; i < N_API_NUMBERS; i++) {
		if (strcmp(key, api_numbers[i].field))
			continue;
		if (!json_is_number(value))
			return err_set(err, ERR_USAGE, "%s: a number is needed", key);
		ask->given[i] = true;
		ask->numbers[i] = json_number_value(value);
		return api_check_number((enum api_number)i, key, ask->numbers[i], err);
	}
	return unknown_field(key, "corpus, question, snapshot, think, max_tokens, temperature, top_p, top_k, min_p and seed", err);
}

int api_ask_parse(struct api_ask *ask, const char *body, size_t bytes, struct err *err)
{
	json_t *root = api_load_object(body, bytes, err);
	const char *key;
	json_t *value;
	int failed = 0;

	if (!root)
		return -1;
	json_object_foreach(root, key, value)
		if ((failed = ask_field(ask, key, value, err)))
			break;
	json_decref(root);
	if (!failed && !ask->corpus[0])
		failed = err_set(err, ERR_USAGE, "corpus: the name of a corpus is needed");
	if (!failed && !ask->question)
		failed = err_set(err, ERR_USAGE, "question: a question is needed");
	if (failed)
		api_ask_clear(ask);
	return failed;
}

char *api_ask_format(const struct api_ask *ask)
{
	json_t *root = json_object();

	json_object_set_new(root, "corpus", api_text(ask->corpus, strlen(ask->corpus)));
	json_object_set_new(root, "question", api_text(ask->question, strlen(ask->question)));
	if (ask->snapshot)
		json_object_set_new(root, "snapshot", json_integer(ask->snapshot));
	if (ask->think)
		json_object_set_new(root, "think", json_true());
	for (int i = 0; i < N_API_NUMBERS; i++)
		if (ask->given[i])
			json_object_set_new(root, api_numbers[i].field,
					    api_numbers[i].integer ? json_integer((json_int_t)ask->numbers[i])
								   : json_real(ask->numbers[i]));
	return api_dump(root);
}

void api_ask_clear(struct api_ask *ask)
{
	free(ask->question);
	*ask = (struct api_ask){0};
}

static int ingest_field(struct api_ingest *in, const char *key, const json_t *value, struct err *err)
{
	if (!strcmp(key, "source"))
		return read_string(&in->source, key, value, err);
	if (!strcmp(key, "ref"))
		return read_string(&in->ref, key, value, err);
	if (!strcmp(key, "exclude"))
		return read_globs(&in->exclude, key, value, err);
	if (!strcmp(key, "include"))
		return read_globs(&in->include, key, value, err);
	if (!strcmp(key, "full"))
		return read_boolean(&in->full, key, value, err);
	if (!strcmp(key, "order_from"))
		return read_snapshot_name(in->order_from, key, value, err);
	if (!strcmp(key, "dry_run"))
		return read_boolean(&in->dry_run, key, value, err);
	return unknown_field(key, "source, ref, exclude, include, full, order_from and dry_run", err);
}

int api_ingest_parse(struct api_ingest *in, const char *corpus, const char *body, size_t bytes, struct err *err)
{
	json_t *root, *value;
	const char *key;
	int failed = 0;

	if (api_check_corpus_name(corpus, err) || !(root = api_load_object(body, bytes, err)))
		return -1;
	memcpy(in->corpus, corpus, strlen(corpus) + 1);
	json_object_foreach(root, key, value)
		if ((failed = ingest_field(in, key, value, err)))
			break;
	json_decref(root);
	if (!failed && (!in->source || in->source[0] != '/'))
		failed = err_set(err, ERR_USAGE, "source: the absolute path of a directory is needed");
	if (failed)
		api_ingest_clear(in);
	return failed;
}

static json_t *globs_json(char *const *globs)
{
	json_t *array = json_array();

	for (; *globs; globs++)
		json_array_append_new(array, api_text(*globs, strlen(*globs)));
	return array;
}

static void set_ingest(json_t *root, const struct api_ingest *in)
{
	json_object_set_new(root, "source", api_text(in->source, strlen(in->source)));
	if (in->ref)
		json_object_set_new(root, "ref", api_text(in->ref, strlen(in->ref)));
	if (in->exclude)
		json_object_set_new(root, "exclude", globs_json(in->exclude));
	if (in->include)
		json_object_set_new(root, "include", globs_json(in->include));
	if (in->full)
		json_object_set_new(root, "full", json_true());
	if (in->dry_run)
		json_object_set_new(root, "dry_run", json_true());
	if (*in->order_from)
		json_object_set_new(root, "order_from", json_string(in->order_from));
}

char *api_ingest_format(const struct api_ingest *in)
{
	json_t *root = json_object();

	set_ingest(root, in);
	return api_dump(root);
}

void api_ingest_clear(struct api_ingest *in)
{
	free(in->source);
	free(in->ref);
	free_globs(in->exclude);
	free_globs(in->include);
	*in = (struct api_ingest){0};
}

static char **copy_globs(char *const *from)
{
	size_t n = 0;
	char **to;

	if (!from)
		return NULL;
	while (from[n])
		n++;
	to = xcalloc(n + 1, sizeof *to);
	for (size_t i = 0; i < n; i++)
		to[i] = xstrdup(from[i]);
	return to;
}

void api_ingest_copy(struct api_ingest *to, const struct api_ingest *from)
{
	*to = *from;
	to->source = from->source ? xstrdup(from->source) : NULL;
	to->ref = from->ref ? xstrdup(from->ref) : NULL;
	to->exclude = copy_globs(from->exclude);
	to->include = copy_globs(from->include);
}

static bool globs_equal(char *const *a, char *const *b)
{
	if (!a || !b)
		return !a && !b;
	for (; *a && *b; a++, b++)
		if (strcmp(*a, *b))
			return false;
	return !*a && !*b;
}

char *api_ingest_source(const struct api_ingest *in)
{
	return in->ref ? xasprintf("%s@%s", in->source, in->ref) : xstrdup(in->source);
}

bool api_ingest_equal(const struct api_ingest *a, const struct api_ingest *b)
{
	if (!a->ref != !b->ref || (a->ref && strcmp(a->ref, b->ref)))
		return false;
	return !strcmp(a->corpus, b->corpus) && !strcmp(a->source, b->source) && globs_equal(a->exclude, b->exclude) &&
	       globs_equal(a->include, b->include) && a->full == b->full && a->dry_run == b->dry_run &&
	       !strcmp(a->order_from, b->order_from);
}

/* Replies. */

static json_t *integer(int64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *error_json(const struct err *err)
{
	int status = err_http_status(err->code);
	json_t *error = json_object();

	json_object_set_new(error, "code", json_string(err_code_name(err->code)));
	json_object_set_new(error, "message", api_text(err->text, strlen(err->text)));
	json_object_set_new(error, "type", json_string(status >= 400 && status < 500 ? "invalid_request" : "server_error"));
	return error;
}

char *api_error_format(const struct err *err)
{
	json_t *root = json_object();

	json_object_set_new(root, "error", error_json(err));
	return api_dump(root);
}

static bool error_from_json(struct err *err, const json_t *error)
{
	const char *code = json_string_value(json_object_get(error, "code"));
	const char *message = json_string_value(json_object_get(error, "message"));

	if (!code || !message)
		return false;
	err_set(err, err_code_from_name(code), "%s", message);
	return true;
}

void api_error_parse(struct err *err, int http_status, const char *body, size_t bytes)
{
	json_t *root = json_loadb(body, bytes, 0, NULL);

	if (!error_from_json(err, json_object_get(root, "error")))
		err_set(err, ERR_FAILED, "the daemon answered with status %d: %.*s", http_status,
			bytes > 200 ? 200 : (int)bytes, body);
	json_decref(root);
}

json_t *api_job_json(const struct api_job *job)
{
	const struct ingest_progress *p = &job->progress;
	json_t *root = json_object(), *progress = json_object();
	char id[32];

	snprintf(id, sizeof id, "j-%lld", (long long)job->id);
	json_object_set_new(root, "id", json_string(id));
	json_object_set_new(root, "corpus", json_string(job->request.corpus));
	set_ingest(root, &job->request);
	json_object_set_new(root, "state", json_string(job_state_name(job->state)));
	json_object_set_new(root, "attempts", integer(job->attempts));
	json_object_set_new(root, "created_s", integer(job->created_s));
	json_object_set_new(root, "started_s", integer(job->started_s));
	json_object_set_new(root, "finished_s", integer(job->finished_s));
	json_object_set_new(progress, "phase", json_string(phase_names[p->phase]));
	json_object_set_new(progress, "files", integer(p->n_files));
	json_object_set_new(progress, "skipped", integer(p->n_skipped));
	json_object_set_new(progress, "read_bytes", integer(p->read_bytes));
	json_object_set_new(progress, "tokens", integer(p->n_tokens));
	json_object_set_new(progress, "reused_tokens", integer(p->reused_tokens));
	json_object_set_new(progress, "done_tokens", integer(p->done_tokens));
	json_object_set_new(progress, "swept_tokens", integer(p->swept_tokens));
	json_object_set_new(progress, "resumed_layer", integer(p->resumed_layer));
	json_object_set_new(progress, "layers", integer(p->n_layers));
	json_object_set_new(root, "progress", progress);
	if (job->report)
		json_object_set_new(root, "report", json_loads(job->report, 0, NULL));
	if (job->error.code)
		json_object_set_new(root, "error", error_json(&job->error));
	return root;
}

json_t *api_path_json(const char *path)
{
	struct bytes quoted = {0};
	json_t *text;

	document_path(&quoted, path);
	text = api_text(quoted.data, quoted.n);
	bytes_free(&quoted);
	return text;
}

char *api_report_format(const struct ingest_counts *counts, const struct ingest_skip_kind *kinds, size_t n_kinds)
{
	json_t *root = json_object(), *skips = json_array();

	json_object_set_new(root, "documents", integer(counts->n_documents));
	json_object_set_new(root, "kept_documents", integer(counts->n_kept_documents));
	json_object_set_new(root, "skipped", integer(counts->n_skipped));
	json_object_set_new(root, "read_bytes", integer(counts->read_bytes));
	json_object_set_new(root, "tokens", integer(counts->n_tokens));
	json_object_set_new(root, "kept_tokens", integer(counts->kept_tokens));
	json_object_set_new(root, "new_tokens", integer(counts->new_tokens));
	json_object_set_new(root, "new_bytes", integer(counts->new_bytes));
	if (*counts->commit)
		json_object_set_new(root, "commit", json_string(counts->commit));
	if (counts->order_from) {
		json_object_set_new(root, "order_from", json_string(counts->order_from));
		json_object_set_new(root, "followed_documents", integer(counts->n_followed_documents));
	}
	if (counts->history)
		json_object_set_new(root, "history", api_text(counts->history, strlen(counts->history)));
	for (size_t i = 0; i < n_kinds; i++) {
		json_t *o = json_object(), *examples = json_array();

		json_object_set_new(o, "reason", json_string(kinds[i].kind));
		json_object_set_new(o, "files", integer(kinds[i].n));
		for (int e = 0; e < INGEST_EXAMPLES && kinds[i].examples[e]; e++)
			json_array_append_new(examples, api_path_json(kinds[i].examples[e]));
		json_object_set_new(o, "examples", examples);
		json_array_append_new(skips, o);
	}
	json_object_set_new(root, "skips", skips);
	return api_dump(root);
}

static int64_t get_integer(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

int api_job_parse(struct api_job *job, const json_t *json, struct err *err)
{
	const char *id = json_string_value(json_object_get(json, "id"));
	const char *corpus = json_string_value(json_object_get(json, "corpus"));
	const char *source = json_string_value(json_object_get(json, "source"));
	const char *state = json_string_value(json_object_get(json, "state"));
	const json_t *progress = json_object_get(json, "progress");
	const char *phase = json_string_value(json_object_get(progress, "phase"));
	const json_t *report;

	*job = (struct api_job){0};
	if (!id || !corpus || !source || !state || job_state_from_name(state) < 0 ||
	    strlen(corpus) >= sizeof job->request.corpus || api_job_id_parse(&job->id, id, err))
		return err_set(err, ERR_FAILED, "the daemon's reply is not a job: are quire and quired of one version?");
	memcpy(job->request.corpus, corpus, strlen(corpus) + 1);
	job->request.source = xstrdup(source);
	job->state = (enum job_state)job_state_from_name(state);
	job->attempts = (int)get_integer(json, "attempts");
	job->created_s = get_integer(json, "created_s");
	job->started_s = get_integer(json, "started_s");
	job->finished_s = get_integer(json, "finished_s");
	for (size_t i = 0; phase && i < sizeof phase_names / sizeof *phase_names; i++)
		if (!strcmp(phase, phase_names[i]))
			job->progress.phase = (enum ingest_phase)i;
	job->progress.n_files = get_integer(progress, "files");
	job->progress.n_skipped = get_integer(progress, "skipped");
	job->progress.read_bytes = get_integer(progress, "read_bytes");
	job->progress.n_tokens = get_integer(progress, "tokens");
	job->progress.reused_tokens = get_integer(progress, "reused_tokens");
	job->progress.done_tokens = get_integer(progress, "done_tokens");
	job->progress.swept_tokens = get_integer(progress, "swept_tokens");
	job->progress.resumed_layer = (int32_t)get_integer(progress, "resumed_layer");
	job->progress.n_layers = (int32_t)get_integer(progress, "layers");
	error_from_json(&job->error, json_object_get(json, "error"));
	job->request.dry_run = json_is_true(json_object_get(json, "dry_run"));
	if (json_is_string(json_object_get(json, "ref")))
		job->request.ref = xstrdup(json_string_value(json_object_get(json, "ref")));
	report = json_object_get(json, "report");
	if (json_is_object(report))
		job->report = api_dump(json_incref((json_t *)report));
	return 0;
}

void api_job_clear(struct api_job *job)
{
	api_ingest_clear(&job->request);
	free(job->report);
	*job = (struct api_job){0};
}

static const struct {
	const char *key;
	size_t offset;
} usage_counts[] = {
	{"prompt_tokens", offsetof(struct api_usage, prompt_tokens)},
	{"cached_tokens", offsetof(struct api_usage, cached_tokens)},
	{"loaded_tokens", offsetof(struct api_usage, loaded_tokens)},
	{"recomputed_tokens", offsetof(struct api_usage, recomputed_tokens)},
	{"prefilled_tokens", offsetof(struct api_usage, prefilled_tokens)},
	{"completion_tokens", offsetof(struct api_usage, completion_tokens)},
	{"read_bytes", offsetof(struct api_usage, read_bytes)},
	{"wanted_latents", offsetof(struct api_usage, wanted_latents)},
	{"held_latents", offsetof(struct api_usage, held_latents)},
}, usage_times[] = {
	{"load_s", offsetof(struct api_usage, load_s)},
	{"ttft_s", offsetof(struct api_usage, ttft_s)},
	{"decode_s", offsetof(struct api_usage, decode_s)},
};

enum { N_COUNTS = sizeof usage_counts / sizeof *usage_counts, N_TIMES = sizeof usage_times / sizeof *usage_times };

json_t *api_usage_json(const struct api_usage *usage)
{
	json_t *root = json_object();

	for (int i = 0; i < N_COUNTS; i++)
		json_object_set_new(root, usage_counts[i].key,
				    integer(*(const int64_t *)((const char *)usage + usage_counts[i].offset)));
	for (int i = 0; i < N_TIMES; i++)
		json_object_set_new(root, usage_times[i].key,
				    json_real(*(const double *)((const char *)usage + usage_times[i].offset)));
	return root;
}

void api_usage_parse(struct api_usage *usage, const json_t *json)
{
	for (int i = 0; i < N_COUNTS; i++)
		*(int64_t *)((char *)usage + usage_counts[i].offset) = get_integer(json, usage_counts[i].key);
	for (int i = 0; i < N_TIMES; i++)
		*(double *)((char *)usage + usage_times[i].offset) =
			json_number_value(json_object_get(json, usage_times[i].key));
}

char *api_report_estimate(const char *report, double tokens_per_s)
{
	json_t *root = json_loads(report, 0, NULL);

	if (tokens_per_s > 0)
		json_object_set_new(root, "seconds", json_real((double)get_integer(root, "new_tokens") / tokens_per_s));
	return api_dump(root);
}

static json_t *text_or_null(const char *s)
{
	return s && *s ? api_text(s, strlen(s)) : json_null();
}

static json_t *device_json(const struct experts_stats *s)
{
	json_t *o = json_object();

	json_object_set_new(o, "name", api_text(s->device, strlen(s->device)));
	json_object_set_new(o, "slots", integer(s->device_slots));
	json_object_set_new(o, "resident", integer(s->device_resident));
	json_object_set_new(o, "alone", integer(s->device_alone));
	json_object_set_new(o, "hits", integer(s->device_hits));
	json_object_set_new(o, "moved", integer(s->moved));
	json_object_set_new(o, "raised", integer(s->raised));
	json_object_set_new(o, "lowered", integer(s->lowered));
	json_object_set_new(o, "up_bytes", integer(s->device_up_bytes));
	json_object_set_new(o, "down_bytes", integer(s->device_down_bytes));
	return o;
}

/* An expert that was read ahead and then not chosen was wasted. */
static json_t *experts_json(const struct experts_stats *s)
{
	json_t *o = json_object();

	json_object_set_new(o, "all", integer(s->n_experts));
	json_object_set_new(o, "slots", integer(s->n_slots));
	json_object_set_new(o, "slot_bytes", integer(s->slot_bytes));
	json_object_set_new(o, "resident", integer(s->resident));
	json_object_set_new(o, "taken", integer(s->taken));
	json_object_set_new(o, "hits", integer(s->hits));
	json_object_set_new(o, "late", integer(s->late));
	json_object_set_new(o, "ahead", integer(s->ahead));
	json_object_set_new(o, "useful", integer(s->useful));
	json_object_set_new(o, "asks_ahead", json_boolean(s->asks_ahead));
	json_object_set_new(o, "wasted", integer(s->ahead - s->useful));
	json_object_set_new(o, "spare", integer(s->spare));
	json_object_set_new(o, "behind", integer(s->behind));
	json_object_set_new(o, "warmed", integer(s->warmed));
	json_object_set_new(o, "warmed_used", integer(s->warmed_used));
	json_object_set_new(o, "reads", integer(s->reads));
	json_object_set_new(o, "read_bytes", integer(s->read_bytes));
	json_object_set_new(o, "retried", integer(s->retried));
	json_object_set_new(o, "trusted_first", integer(s->trusted_first));
	json_object_set_new(o, "sums_shipped", json_boolean(s->sums_shipped));
	json_object_set_new(o, "waited_s", json_real(s->waited_s));
	if (s->device_slots)
		json_object_set_new(o, "device", device_json(s));
	return o;
}

json_t *api_status_json(const struct api_status *s)
{
	json_t *root = json_object(), *o;

	json_object_set_new(root, "version", json_string(QUIRE_VERSION));
	json_object_set_new(root, "pid", integer(s->pid));
	json_object_set_new(root, "uptime_s", integer(s->uptime_s));
	json_object_set_new(root, "socket", text_or_null(s->socket));

	json_object_set_new(root, "model", o = json_object());
	json_object_set_new(o, "state", json_string(model_state_names[s->model.state]));
	json_object_set_new(o, "path", text_or_null(s->model.path));
	json_object_set_new(o, "error", text_or_null(s->model.error));
	if (s->model.state == MODEL_READY) {
		json_object_set_new(o, "architecture", text_or_null(s->model.architecture));
		json_object_set_new(o, "renderer", text_or_null(s->model.renderer));
		json_object_set_new(o, "no_renderer", text_or_null(s->model.no_renderer));
		json_object_set_new(o, "identity", text_or_null(s->model.identity));
		json_object_set_new(o, "context_tokens", integer(s->model.context_tokens));
		json_object_set_new(o, "parameters", integer((int64_t)s->model.parameters));
		json_object_set_new(o, "loaded_bytes", integer(s->model.loaded_bytes));
		json_object_set_new(o, "load_s", json_real(s->model.load_s));
	}

	json_object_set_new(root, "engine", o = json_object());
	json_object_set_new(o, "isa", text_or_null(s->engine.isa));
	json_object_set_new(o, "threads", integer(s->engine.n_threads));
	json_object_set_new(o, "compute", text_or_null(s->engine.compute));
	json_object_set_new(o, "latents", text_or_null(s->engine.latents));

	if (s->experts.n_slots)
		json_object_set_new(root, "experts", experts_json(&s->experts));

	json_object_set_new(root, "store", o = json_object());
	json_object_set_new(o, "path", text_or_null(s->store.dir));
	json_object_set_new(o, "corpora", integer(s->store.stats.n_corpora));
	json_object_set_new(o, "spans", integer(s->store.stats.n_spans));
	json_object_set_new(o, "used_bytes", integer(s->store.stats.used_bytes));
	json_object_set_new(o, "file_bytes", integer(s->store.stats.file_bytes));
	json_object_set_new(o, "scratch_bytes", integer(s->store.stats.scratch_bytes));
	json_object_set_new(o, "reads", integer(s->store.stats.reads));
	json_object_set_new(o, "read_bytes", integer(s->store.stats.read_bytes));
	json_object_set_new(o, "damaged", integer(s->store.stats.damaged));

	json_object_set_new(root, "queue", o = json_object());
	json_object_set_new(o, "asks", integer(s->queue.asks));
	json_object_set_new(o, "max_asks", integer(s->queue.max_asks));
	json_object_set_new(o, "jobs_queued", integer(s->queue.jobs_queued));
	json_object_set_new(o, "jobs_running", integer(s->queue.jobs_running));
	json_object_set_new(o, "connections", integer(s->queue.connections));

	json_object_set_new(root, "total", o = json_object());
	json_object_set_new(o, "answered", integer(s->total.answered));
	json_object_set_new(o, "refused", integer(s->total.refused));
	json_object_set_new(o, "cancelled", integer(s->total.cancelled));
	json_object_set_new(o, "prompt_tokens", integer(s->total.prompt_tokens));
	json_object_set_new(o, "cached_tokens", integer(s->total.cached_tokens));
	json_object_set_new(o, "prefilled_tokens", integer(s->total.prefilled_tokens));
	json_object_set_new(o, "completion_tokens", integer(s->total.completion_tokens));
	json_object_set_new(o, "read_bytes", integer(s->total.read_bytes));
	json_object_set_new(o, "wanted_latents", integer(s->total.wanted_latents));
	json_object_set_new(o, "held_latents", integer(s->total.held_latents));
	return root;
}

json_t *api_corpus_json(const struct cache_corpus *c)
{
	json_t *root = json_object();
	char identity[17];

	for (int i = 0; i < 8; i++)
		sprintf(identity + 2 * i, "%02x", c->identity[i]);
	json_object_set_new(root, "name", api_text(c->name, strlen(c->name)));
	json_object_set_new(root, "source", text_or_null(c->source));
	if (*c->revision)
		json_object_set_new(root, "commit", json_string(c->revision));
	json_object_set_new(root, "snapshot", integer(c->snapshot_id));
	json_object_set_new(root, "snapshots", integer(c->n_snapshots));
	json_object_set_new(root, "created_s", integer(c->created_s));
	json_object_set_new(root, "identity", json_string(identity));
	json_object_set_new(root, "tokens", integer(c->n_tokens));
	json_object_set_new(root, "documents", integer(c->n_documents));
	json_object_set_new(root, "skipped", integer(c->n_skipped));
	json_object_set_new(root, "bytes", integer(c->bytes));
	return root;
}

json_t *api_text(const char *text, size_t bytes)
{
	json_t *whole = json_stringn(text, bytes);
	char *fixed, *o;

	if (whole)
		return whole;
	o = fixed = xmalloc(bytes + 1, 3);
	for (size_t i = 0; i < bytes;) {
		json_t *one = NULL;
		size_t n = 0;

		/* The shortest run of up to four bytes that the library takes is one character. */
		while (!one && n < 4 && i + n < bytes)
			one = json_stringn(text + i, ++n);
		memcpy(o, one ? text + i : "\xef\xbf\xbd", one ? n : 3);
		o += one ? n : 3;
		i += one ? n : 1;
		json_decref(one);
	}
	whole = json_stringn(fixed, (size_t)(o - fixed));
	free(fixed);
	return whole;
}

char *api_dump(json_t *json)
{
	char *text = json_dumps(json, JSON_COMPACT);
	char *copy = xstrdup(text ? text : "null");

	free(text);
	json_decref(json);
	return copy;
}
