#include "daemon/look.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "cache/diff.h"
#include "cache/history.h"
#include "config/json.h"

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

/* A request: one object. NULL: err. */
static json_t *load_object(const char *body, size_t bytes, struct err *err)
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

struct pair {
	struct api_snapshot from, to; /* corpus "": not said */
};

static int read_pair(struct pair *pair, const char *body, size_t bytes, struct err *err)
{
	json_t *root = load_object(body, bytes, err), *value;
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

int look_reply(json_t **reply, struct cache_reader *r, enum api_route route, const char *name, const char *body,
	       size_t bytes, struct err *err)
{
	switch (route) {
	case API_FILES:
		return files_reply(reply, r, name, err);
	case API_SNAPSHOTS:
		return snapshots_reply(reply, r, name, err);
	case API_DIFF:
		return diff_reply(reply, r, body, bytes, err);
	default:
		assert(!"a route that does not look at the store");
		return -1;
	}
}
