#include "daemon/look.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/diff.h"
#include "cache/history.h"
#include "config/json.h"
#include "config/mem.h"
#include "config/units.h"
#include "ingest/document.h"

static json_t *integer(int64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *hex(const uint8_t *bytes, size_t n)
{
	char text[65];

	assert(2 * n < sizeof text);
	for (size_t i = 0; i < n; i++)
		sprintf(text + 2 * i, "%02x", bytes[i]);
	return json_string(text);
}

static json_t *source_json(const char *source)
{
	return source && *source ? api_text(source, strlen(source)) : json_null();
}

static json_t *snapshots_json(const struct cache_history *list, size_t n)
{
	json_t *root = json_object(), *snapshots = json_array();

	for (size_t i = 0; i < n; i++) {
		const struct cache_history *h = &list[i];
		json_t *o = json_object();

		json_object_set_new(o, "id", integer(h->id));
		json_object_set_new(o, "current", json_boolean(h->is_current));
		json_object_set_new(o, "source", source_json(h->source));
		if (*h->revision)
			json_object_set_new(o, "commit", json_string(h->revision));
		json_object_set_new(o, "created_s", integer(h->created_s));
		json_object_set_new(o, "identity", hex(h->identity, 8));
		json_object_set_new(o, "tokens", integer(h->n_tokens));
		json_object_set_new(o, "documents", integer(h->n_documents));
		json_object_set_new(o, "skipped", integer(h->n_skipped));
		json_object_set_new(o, "own_tokens", integer(h->own_tokens));
		json_object_set_new(o, "own_bytes", integer(h->own_bytes));
		json_object_set_new(o, "missing_tokens", integer(h->missing_tokens));
		json_array_append_new(snapshots, o);
	}
	json_object_set_new(root, "snapshots", snapshots);
	return root;
}

static json_t *files_json(const struct cache_snapshot *s)
{
	json_t *root = json_object(), *documents = json_array(), *skipped = json_array();

	for (int32_t i = 0; i < s->n_documents; i++) {
		json_t *o = json_object();

		json_object_set_new(o, "path", api_path_json(s->documents[i].path));
		json_object_set_new(o, "tokens", integer(s->documents[i].n_tokens));
		json_object_set_new(o, "lines", integer(s->documents[i].n_lines));
		json_array_append_new(documents, o);
	}
	for (int32_t i = 0; i < s->n_skipped; i++) {
		json_t *o = json_object();

		json_object_set_new(o, "path", api_path_json(s->skipped[i].path));
		json_object_set_new(o, "reason", api_text(s->skipped[i].reason, strlen(s->skipped[i].reason)));
		json_array_append_new(skipped, o);
	}
	json_object_set_new(root, "documents", documents);
	json_object_set_new(root, "skipped", skipped);
	return root;
}

struct pair {
	struct api_snapshot from, to; /* corpus "": not said */
};

static int read_pair(struct pair *pair, const char *body, size_t bytes, struct err *err)
{
	json_t *root = api_load_object(body, bytes, err), *value;
	const char *key;
	int rc = 0;

	if (!root)
		return -1;
	json_object_foreach(root, key, value) {
		bool from = !strcmp(key, "from");

		if (!from && strcmp(key, "to"))
			rc = err_set(err, ERR_USAGE, "unknown field \"%.64s\": there are from and to", key);
		else if (!json_is_string(value))
			rc = err_set(err, ERR_USAGE, "%s: the name of a snapshot is needed, CORPUS or CORPUS@ID", key);
		else if (api_snapshot_parse(from ? &pair->from : &pair->to, json_string_value(value), err))
			rc = err_wrap(err, "%s", key);
		if (rc)
			break;
	}
	json_decref(root);
	if (!rc && !*pair->to.corpus)
		rc = err_set(err, ERR_USAGE, "to: the name of a snapshot is needed, CORPUS or CORPUS@ID");
	return rc;
}

static json_t *snapshot_json(const struct cache_snapshot *s)
{
	json_t *o = json_object();

	json_object_set_new(o, "corpus", json_string(s->corpus));
	json_object_set_new(o, "id", integer(s->id));
	json_object_set_new(o, "current", json_boolean(s->is_current));
	json_object_set_new(o, "source", source_json(s->source));
	if (*s->revision)
		json_object_set_new(o, "commit", json_string(s->revision));
	json_object_set_new(o, "created_s", integer(s->created_s));
	json_object_set_new(o, "identity", hex(s->identity, 8));
	json_object_set_new(o, "tokens", integer(s->n_tokens));
	json_object_set_new(o, "spans", integer((s->n_tokens + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS));
	json_object_set_new(o, "documents", integer(s->n_documents));
	return o;
}

static json_t *file_json(const struct cache_diff_file *f, const char *change)
{
	json_t *o = json_object();

	json_object_set_new(o, "change", json_string(change));
	json_object_set_new(o, "path", api_path_json(f->path));
	if (f->from_place >= 0) {
		json_object_set_new(o, "from_place", integer(f->from_place + 1));
		json_object_set_new(o, "from_tokens", integer(f->from_tokens));
	}
	if (f->to_place >= 0) {
		json_object_set_new(o, "to_place", integer(f->to_place + 1));
		json_object_set_new(o, "to_tokens", integer(f->to_tokens));
	}
	return o;
}

static json_t *diff_json(const struct cache_diff *d, const struct cache_snapshot *from, const struct cache_snapshot *to)
{
	static const char *const changes[N_CACHE_CHANGES] = {"removed", "added", "changed", "moved"};
	json_t *root = json_object(), *files = json_array(), *parting;

	json_object_set_new(root, "from", snapshot_json(from));
	json_object_set_new(root, "to", snapshot_json(to));
	json_object_set_new(root, "same_identity", json_boolean(d->same_identity));
	json_object_set_new(root, "shared_tokens", integer(d->shared_tokens));
	json_object_set_new(root, "shared_spans", integer(d->shared_spans));
	if (d->parting_place >= 0) {
		json_object_set_new(root, "parting", parting = json_object());
		json_object_set_new(parting, "path", api_path_json(to->documents[d->parting_place].path));
		json_object_set_new(parting, "line", integer(d->parting_line));
	}
	for (int i = 0; i < N_CACHE_CHANGES; i++)
		json_object_set_new(root, changes[i], integer(d->n[i]));
	json_object_set_new(root, "same", integer(d->n_same));
	for (size_t i = 0; i < d->n_files; i++)
		json_array_append_new(files, file_json(&d->files[i], changes[d->files[i].change]));
	json_object_set_new(root, "files", files);
	return root;
}

static int diff_reply(json_t **reply, struct cache_reader *r, const char *body, size_t bytes, struct err *err)
{
	struct pair pair = {0};
	struct cache_snapshot *from, *to;
	struct cache_diff d;
	int rc = 0;

	if (read_pair(&pair, body, bytes, err) ||
	    cache_read_pair(r, *pair.from.corpus ? pair.from.corpus : NULL, pair.from.id, pair.to.corpus, pair.to.id, &from, &to,
			    err))
		return -1;
	if (from->id == to->id) {
		rc = err_set(err, ERR_USAGE, "snapshot %lld of corpus '%s' would be compared with itself: name two of those "
			     "that `quire snapshots %s` lists", (long long)to->id, to->corpus, to->corpus);
	} else {
		cache_diff_make(&d, from, to);
		*reply = diff_json(&d, from, to);
		cache_diff_clear(&d);
	}
	cache_free_snapshot(from);
	cache_free_snapshot(to);
	return rc;
}

char *look_diff_format(const char *from, const char *to)
{
	json_t *root = json_object();

	if (from)
		json_object_set_new(root, "from", api_text(from, strlen(from)));
	json_object_set_new(root, "to", api_text(to, strlen(to)));
	return api_dump(root);
}

/* What a snapshot is. */

static json_t *facts_json(const struct look *look, const struct cache_history *h, const struct cache_snapshot *s)
{
	json_t *o = json_object(), *records = json_array(), *identity = hex(h->identity, sizeof h->identity);
	bool ours = *look->identity && !strncmp(json_string_value(identity), look->identity, strlen(look->identity));

	json_object_set_new(o, "corpus", json_string(s->corpus));
	json_object_set_new(o, "id", integer(h->id));
	json_object_set_new(o, "current", json_boolean(h->is_current));
	json_object_set_new(o, "source", source_json(h->source));
	if (*h->revision)
		json_object_set_new(o, "commit", json_string(h->revision));
	json_object_set_new(o, "created_s", integer(h->created_s));
	json_object_set_new(o, "used_s", integer(h->used_s));
	json_object_set_new(o, "identity", identity);
	json_object_set_new(o, "tokens", integer(h->n_tokens));
	json_object_set_new(o, "spans", integer((h->n_tokens + CACHE_SPAN_TOKENS - 1) / CACHE_SPAN_TOKENS));
	json_object_set_new(o, "documents", integer(h->n_documents));
	if (s->n_documents) {
		json_object_set_new(o, "first", api_path_json(s->documents[0].path));
		json_object_set_new(o, "last", api_path_json(s->documents[s->n_documents - 1].path));
	}
	json_object_set_new(o, "skipped", integer(h->n_skipped));
	json_object_set_new(o, "bytes", integer(h->bytes));
	json_object_set_new(o, "own_tokens", integer(h->own_tokens));
	json_object_set_new(o, "own_bytes", integer(h->own_bytes));
	json_object_set_new(o, "missing_tokens", integer(h->missing_tokens));
	if (*look->identity)
		json_object_set_new(o, "same_model", json_boolean(ours));
	if (ours)
		json_object_set_new(o, "latents", json_string(look->latents));
	for (int32_t i = 0; i < h->n_groups; i++)
		json_array_append_new(records, integer(h->record_bytes[i]));
	json_object_set_new(o, "record_bytes", records);
	json_object_set_new(o, "index_layers", integer(h->n_index_layers));
	json_object_set_new(o, "index_key_bytes", integer(h->index_key_bytes));
	return o;
}

static int snapshot_reply(json_t **reply, const struct look *look, struct cache_reader *r, const char *name, struct err *err)
{
	struct api_snapshot which;
	struct cache_history *list;
	struct cache_snapshot *s;
	size_t n;
	int rc = -1;

	if (api_snapshot_parse(&which, name, err) || cache_files(r, which.corpus, which.id, &s, err))
		return -1;
	if (cache_list_snapshots(r, which.corpus, &list, &n, err)) {
		cache_free_snapshot(s);
		return -1;
	}
	for (size_t i = 0; i < n && rc; i++) {
		if (list[i].id != s->id)
			continue;
		*reply = facts_json(look, &list[i], s);
		rc = 0;
	}
	if (rc) /* between the two readings */
		err_set(err, ERR_NOT_FOUND, "snapshot %" PRId64 " of corpus '%s' has just been forgotten", s->id, s->corpus);
	cache_free_history(list, n);
	cache_free_snapshot(s);
	return rc;
}

/* The text of a file. */

struct passage {
	const struct cache_document *document;
	int64_t first, last;   /* lines, from 1; 0: all */
};

static bool is_quoted_path(const struct cache_document *d, const char *path, size_t bytes)
{
	struct bytes quoted = {0};
	bool same;

	document_path(&quoted, d->path);
	same = quoted.n == bytes && !memcmp(quoted.data, path, bytes);
	bytes_free(&quoted);
	return same;
}

/* By its path, or by that as `quire files` shows it where it has odd bytes. */
static const struct cache_document *find_document(const struct cache_snapshot *s, const char *path, size_t bytes)
{
	for (int32_t i = 0; i < s->n_documents; i++)
		if (!strncmp(s->documents[i].path, path, bytes) && !s->documents[i].path[bytes])
			return &s->documents[i];
	for (int32_t i = 0; path[0] == '"' && i < s->n_documents; i++)
		if (is_quoted_path(&s->documents[i], path, bytes))
			return &s->documents[i];
	return NULL;
}

/* ":N" or ":N-M" at the end of a place: where it begins, or NULL. */
static const char *read_lines(const char *place, int64_t *first, int64_t *last)
{
	const char *colon = strrchr(place, ':'), *p;
	size_t digits;

	if (!colon || colon == place)
		return NULL;
	digits = strspn(colon + 1, "0123456789");
	if (!digits || digits > 9)
		return NULL;
	*first = *last = strtoll(colon + 1, NULL, 10);
	p = colon + 1 + digits;
	if (*p == '-') {
		digits = strspn(p + 1, "0123456789");
		if (!digits || digits > 9)
			return NULL;
		*last = strtoll(p + 1, NULL, 10);
		p += 1 + digits;
	}
	return *p ? NULL : colon;
}

static const char *name_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

enum { NEAREST_OF = 4096 }; /* paths that are compared letter by letter, for a hint */

/* A path that is perhaps meant: one that ends in the same name, or one of nearly the same letters. */
static const char *nearest_path(const struct cache_snapshot *s, const char *path)
{
	int32_t n = s->n_documents < NEAREST_OF ? s->n_documents : NEAREST_OF;
	const char **names, *nearest;

	for (int32_t i = 0; i < s->n_documents; i++)
		if (!strcmp(name_of(s->documents[i].path), name_of(path)))
			return s->documents[i].path;
	names = xmalloc((size_t)n, sizeof *names);
	for (int32_t i = 0; i < n; i++)
		names[i] = s->documents[i].path;
	nearest = nearest_name(path, names, (size_t)n);
	free(names);
	return nearest;
}

/* It was left out, or is not there. */
static int no_such_file(const struct cache_snapshot *s, const char *place, size_t bytes, struct err *err)
{
	char *path = xstrndup(place, bytes);
	const char *nearest;

	for (int32_t i = 0; i < s->n_skipped; i++) {
		size_t n = strlen(s->skipped[i].path);

		/* A directory that was left out ends in a slash. */
		if (strncmp(path, s->skipped[i].path, n) || !n || (path[n] && path[n - 1] != '/'))
			continue;
		err_set(err, ERR_NOT_FOUND, "%.200s is not in snapshot %" PRId64 " of corpus '%s': it was left out (%s: %s)", path,
			s->id, s->corpus, s->skipped[i].path, s->skipped[i].reason);
		free(path);
		return -1;
	}
	nearest = nearest_path(s, path);
	err_set(err, ERR_NOT_FOUND, "snapshot %" PRId64 " of corpus '%s' has no file \"%.200s\"%s%.200s%s; `quire files %s@%" PRId64
		"` lists those it has", s->id, s->corpus, path, nearest ? ": is \"" : "", nearest ? nearest : "",
		nearest ? "\" meant?" : "", s->corpus, s->id);
	free(path);
	return -1;
}

static int find_passage(struct passage *p, const struct cache_snapshot *s, const char *place, struct err *err)
{
	const char *colon;

	*p = (struct passage){.document = find_document(s, place, strlen(place))};
	if (p->document)
		return 0;
	colon = read_lines(place, &p->first, &p->last);
	if (colon)
		p->document = find_document(s, place, (size_t)(colon - place));
	if (!p->document)
		return no_such_file(s, place, colon ? (size_t)(colon - place) : strlen(place), err);
	if (p->last < p->first)
		return err_set(err, ERR_USAGE, "%s: the last line is before the first", place);
	if (p->first < 1 || p->last > p->document->n_lines)
		return err_set(err, ERR_NOT_FOUND, "%s: there is no line %" PRId64 ", the file has %" PRId32, place,
			       p->first < 1 ? p->first : p->last, p->document->n_lines);
	return 0;
}

/* Where a line begins, from 1; one behind the last: the end. */
static size_t line_start(const struct bytes *text, int64_t line)
{
	size_t at = 0;

	while (line-- > 1 && at < text->n) {
		const char *feed = memchr(text->data + at, '\n', text->n - at);

		at = feed ? (size_t)(feed - text->data) + 1 : text->n;
	}
	return at;
}

static json_t *passage_json(const struct cache_snapshot *s, const struct passage *p, const struct bytes *text)
{
	const struct cache_document *d = p->document;
	int64_t first = p->first ? p->first : d->n_lines ? 1 : 0, last = p->first ? p->last : d->n_lines;
	size_t begin = line_start(text, first), end = line_start(text, last + 1);
	json_t *o = json_object();

	json_object_set_new(o, "corpus", json_string(s->corpus));
	json_object_set_new(o, "id", integer(s->id));
	json_object_set_new(o, "path", api_path_json(d->path));
	json_object_set_new(o, "first_token", integer(d->first_token));
	json_object_set_new(o, "tokens", integer(d->n_tokens));
	json_object_set_new(o, "lines", integer(d->n_lines));
	json_object_set_new(o, "first_line", integer(first));
	json_object_set_new(o, "last_line", integer(last));
	json_object_set_new(o, "text", api_text(text->n ? text->data + begin : "", end - begin));
	return o;
}

static int read_place(char **place, const char *body, size_t bytes, struct err *err)
{
	json_t *root = api_load_object(body, bytes, err), *value;
	const char *key;
	int rc = 0;

	*place = NULL;
	if (!root)
		return -1;
	json_object_foreach(root, key, value) {
		if (strcmp(key, "place"))
			rc = err_set(err, ERR_USAGE, "unknown field \"%.64s\": there is place", key);
		else if (json_is_string(value) && json_string_length(value))
			*place = xstrdup(json_string_value(value));
	}
	json_decref(root);
	if (!rc && !*place)
		rc = err_set(err, ERR_USAGE, "place: PATH, PATH:LINE or PATH:LINE-LINE is needed");
	if (rc)
		free(*place);
	return rc;
}

/* The text as it was read, in the lines that are wanted. */
static int recover(json_t **reply, const struct look *look, const struct cache_snapshot *s, const struct passage *p,
		   struct err *err)
{
	struct bytes text = {0};
	json_t *identity;

	if (p->document->first_token < 0 || p->document->n_tokens < 0 ||
	    p->document->n_tokens > s->n_tokens - p->document->first_token)
		return err_set(err, ERR_DAMAGED, "%s is said to be in tokens %" PRId64 " to %" PRId64 " of %" PRId64 " of snapshot %"
			       PRId64 " of corpus '%s': see `quire check`", p->document->path, p->document->first_token,
			       p->document->first_token + p->document->n_tokens - 1, s->n_tokens, s->id, s->corpus);
	if (document_recover(&text, look->tokenizer, p->document, s->ids, err)) {
		identity = hex(s->identity, 8);
		err_wrap(err, "snapshot %" PRId64 " of corpus '%s' (identity %s, this daemon's is %s)", s->id, s->corpus,
			 json_string_value(identity), look->identity);
		json_decref(identity);
		return -1;
	}
	*reply = passage_json(s, p, &text);
	bytes_free(&text);
	return 0;
}

static int text_reply(json_t **reply, const struct look *look, struct cache_reader *r, const char *name, const char *body,
		      size_t bytes, struct err *err)
{
	struct api_snapshot which;
	struct cache_snapshot *s;
	struct passage passage;
	char *place;
	int rc;

	if (api_snapshot_parse(&which, name, err) || read_place(&place, body, bytes, err))
		return -1;
	rc = cache_read_snapshot(r, which.corpus, which.id, &s, err);
	if (!rc) {
		rc = find_passage(&passage, s, place, err);
		if (!rc && !look->tokenizer) {
			*err = look->no_tokenizer;
			rc = err_wrap(err, "a text is decoded by the model's tokenizer");
		}
		rc = rc || recover(reply, look, s, &passage, err) ? -1 : 0;
		cache_free_snapshot(s);
	}
	free(place);
	return rc;
}

char *look_text_format(const char *place)
{
	json_t *root = json_object();

	json_object_set_new(root, "place", api_text(place, strlen(place)));
	return api_dump(root);
}

static int files_reply(json_t **reply, struct cache_reader *r, const char *name, struct err *err)
{
	struct api_snapshot which;
	struct cache_snapshot *s;

	if (api_snapshot_parse(&which, name, err) || cache_files(r, which.corpus, which.id, &s, err))
		return -1;
	*reply = files_json(s);
	cache_free_snapshot(s);
	return 0;
}

static int snapshots_reply(json_t **reply, struct cache_reader *r, const char *corpus, struct err *err)
{
	struct cache_history *list;
	size_t n;

	if (cache_list_snapshots(r, corpus, &list, &n, err))
		return -1;
	*reply = snapshots_json(list, n);
	cache_free_history(list, n);
	return 0;
}

int look_reply(json_t **reply, const struct look *look, struct cache_reader *r, enum api_route route, const char *name,
	       const char *body, size_t bytes, struct err *err)
{
	switch (route) {
	case API_FILES:
		return files_reply(reply, r, name, err);
	case API_SNAPSHOTS:
		return snapshots_reply(reply, r, name, err);
	case API_SNAPSHOT:
		return snapshot_reply(reply, look, r, name, err);
	case API_TEXT:
		return text_reply(reply, look, r, name, body, bytes, err);
	case API_DIFF:
		return diff_reply(reply, r, body, bytes, err);
	default:
		assert(!"a route that does not look at the store");
		return -1;
	}
}
