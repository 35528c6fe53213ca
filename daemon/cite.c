#include "daemon/cite.h"

#include <string.h>

#include "config/log.h"
#include "daemon/api.h"
#include "daemon/quote.h"
#include "ingest/document.h"

int cite_lines(struct lines **out, const struct tokenizer *t, const struct cache_snapshot *s, struct err *err)
{
	struct lines *l = lines_new();
	struct bytes text = {0}, path = {0};
	int rc = 0;

	for (int32_t i = 0; i < s->n_documents && !rc; i++) {
		const struct cache_document *d = &s->documents[i];

		text.n = path.n = 0;
		if (d->first_token < 0 || d->n_tokens < 0 || d->n_tokens > s->n_tokens - d->first_token)
			rc = err_set(err, ERR_DAMAGED, "%s is said to be in tokens %lld to %lld of %lld: see `quire check`", d->path,
				     (long long)d->first_token, (long long)(d->first_token + d->n_tokens - 1), (long long)s->n_tokens);
		else
			rc = document_recover(&text, t, d, s->ids, err);
		document_path(&path, d->path);
		if (!rc)
			lines_add(l, path.data, path.n, text.data, text.n);
	}
	bytes_free(&text);
	bytes_free(&path);
	if (rc) {
		lines_free(l);
		return -1;
	}
	lines_index(l);
	*out = l;
	return 0;
}

static json_t *integer(int64_t n)
{
	return json_integer((json_int_t)n);
}

static void set_range(json_t *o, const char *path, size_t path_bytes, int32_t first, int32_t last)
{
	json_object_set_new(o, "path", api_text(path, path_bytes));
	json_object_set_new(o, "first", integer(first));
	json_object_set_new(o, "last", integer(last));
}

static void set_place(json_t *o, const struct lines *l, const struct quote_place *p)
{
	const char *path = lines_path(l, p->document);

	set_range(o, path, strlen(path), p->first, p->last);
}

/* At most CITE_TEXT_BYTES, whole characters. */
static json_t *begin_of(const char *text, size_t n)
{
	if (n > CITE_TEXT_BYTES)
		for (n = CITE_TEXT_BYTES; n && (text[n] & 0xc0) == 0x80; n--)
			;
	return api_text(text, n);
}

static json_t *citation(const struct quote *q, const struct lines *l, const char *answer, size_t from)
{
	json_t *o = json_object(), *others = json_array(), *one;

	json_object_set_new(o, "kind", json_string(quote_kind_name(q->kind)));
	json_object_set_new(o, "status", json_string(quote_status_name(q->status)));
	if (q->is_cut)
		json_object_set_new(o, "cut", json_true());
	json_object_set_new(o, "begin", integer((int64_t)(from + q->begin)));
	json_object_set_new(o, "end", integer((int64_t)(from + q->end)));
	json_object_set_new(o, "text", begin_of(answer + q->begin, q->end - q->begin));
	json_object_set_new(o, "places", integer(q->n_places));
	if (q->n_places)
		set_place(o, l, &q->places[0]);
	for (int64_t i = 1; i < q->n_places && i < QUOTE_PLACES; i++) {
		json_array_append_new(others, one = json_object());
		set_place(one, l, &q->places[i]);
	}
	if (json_array_size(others))
		json_object_set(o, "others", others);
	json_decref(others);
	if (q->is_claimed) {
		json_object_set_new(o, "claimed", one = json_object());
		set_range(one, answer + q->claim.begin, q->claim.end - q->claim.begin, q->claim.first, q->claim.last);
	}
	return o;
}

char *cite_answer(const char *finish, const struct bytes *answer, size_t from, struct lines **lines, const struct tokenizer *t,
		  const struct cache_snapshot *s)
{
	json_t *done = json_object(), *citations = json_array();
	struct quotes quotes;
	struct err err;

	json_object_set_new(done, "finish_reason", json_string(finish));
	json_object_set_new(done, "snapshot", integer(s->id));
	if (s->revision && *s->revision)
		json_object_set_new(done, "commit", json_string(s->revision));
	json_object_set_new(done, "citations", citations);
	if (from >= answer->n)
		return api_dump(done);
	if (!*lines && cite_lines(lines, t, s, &err)) {
		log_warn("an answer about corpus %s has no citations: %s", s->corpus, err.text);
		json_object_set_new(done, "citations_error", api_text(err.text, strlen(err.text)));
		return api_dump(done);
	}
	quotes_find(&quotes, *lines, answer->data + from, answer->n - from, !strcmp(finish, "length"));
	for (size_t i = 0; i < quotes.n; i++)
		json_array_append_new(citations, citation(&quotes.list[i], *lines, answer->data + from, from));
	if (quotes.checked < answer->n - from)
		json_object_set_new(done, "unchecked_from", integer((int64_t)(from + quotes.checked)));
	quotes_clear(&quotes);
	return api_dump(done);
}
