#include "engine/recall.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "config/mem.h"

/* A lost segment file is many damaged spans and one piece of news. */
enum { WARNINGS_MOST = 3 };

int recall_span(struct session *s, struct cache *c, const struct span_key *key, int32_t n_tokens, int32_t n_wanted,
		int64_t *read_bytes, struct err *err)
{
	const struct layout *l = session_layout(s);
	int64_t first = session_n_tokens(s);
	uint8_t *buffer = NULL;
	int rc = 0;

	assert(n_wanted <= n_tokens && n_tokens <= CACHE_SPAN_TOKENS);
	for (int32_t i = 0; !rc && i < l->n_groups + l->n_index_layers; i++) {
		int32_t k = i - l->n_groups;
		size_t bytes = (size_t)n_tokens * (k < 0 ? layout_record_bytes(l, i) : l->index_key_bytes);

		buffer = xrealloc(buffer, bytes, 1);
		if (k < 0)
			rc = cache_read_records(c, key, i, buffer, bytes, err) ||
			     session_import_records(s, i, first, n_wanted, buffer, err);
		else
			rc = cache_read_index_keys(c, key, k, buffer, bytes, err) ||
			     session_import_index_keys(s, k, first, n_wanted, buffer, err);
		*read_bytes += (int64_t)bytes;
	}
	free(buffer);
	if (rc)
		return -1;
	session_import_commit(s, n_wanted);
	return 0;
}

static char *identity_name(const uint8_t *identity, char out[17])
{
	for (int i = 0; i < 8; i++) {
		out[2 * i] = "0123456789abcdef"[identity[i] >> 4];
		out[2 * i + 1] = "0123456789abcdef"[identity[i] & 15];
	}
	out[16] = '\0';
	return out;
}

static int check_identity(struct engine *e, const struct model *m, enum latent_format format,
			  const struct cache_snapshot *snapshot, struct err *err)
{
	uint8_t identity[MODEL_ID_BYTES];
	char theirs[17], ours[17];

	engine_identity(e, m, format, identity);
	if (!memcmp(identity, snapshot->identity, sizeof identity))
		return 0;
	return err_set(err, ERR_MISMATCH, "corpus '%s' was made by model %s, this is %s: `quire ingest %s --as %s` makes it "
		       "again", snapshot->corpus, identity_name(snapshot->identity, theirs), identity_name(identity, ours),
		       snapshot->source, snapshot->corpus);
}

int recall_snapshot(struct session *s, struct engine *e, const struct model *m, enum latent_format format,
		    struct cache *c, const struct cache_snapshot *snapshot, int64_t n_tokens,
		    struct recall_stats *stats, struct err *err)
{
	struct span_key keys[2];
	int n_damaged = 0;

	assert(!session_n_tokens(s) && n_tokens <= snapshot->n_tokens);
	*stats = (struct recall_stats){0};
	if (check_identity(e, m, format, snapshot, err))
		return -1;
	for (int64_t at = 0, i = 0; at < n_tokens; at += CACHE_SPAN_TOKENS, i++) {
		int64_t left = snapshot->n_tokens - at;
		int32_t n = (int32_t)(left < CACHE_SPAN_TOKENS ? left : CACHE_SPAN_TOKENS);
		int32_t wanted = (int32_t)(n_tokens - at < n ? n_tokens - at : n);
		struct span_key *key = &keys[i & 1];
		struct err why, ignored;

		span_key_make(key, snapshot->identity, i ? &keys[(i - 1) & 1] : NULL, snapshot->ids + at, n);
		if (!recall_span(s, c, key, n, wanted, &stats->read_bytes, &why)) {
			stats->loaded_tokens += wanted;
			continue;
		}
		if (why.code == ERR_TOO_LARGE) {
			if (err)
				*err = why;
			return err_wrap(err, "recall corpus '%s'", snapshot->corpus);
		}
		if (n_damaged++ < WARNINGS_MOST)
			log_warn("tokens %" PRId64 " to %" PRId64 " of corpus '%s' are computed again: %s", at,
				 at + wanted - 1, snapshot->corpus, why.text);
		/* So that the next ingest stores them anew; a read that failed may succeed the next time. */
		if (why.code == ERR_DAMAGED && cache_quarantine(c, key, &ignored))
			log_warn("cannot note the damage: %s", ignored.text);
		if (session_append(s, snapshot->ids + at, (size_t)wanted, NULL, NULL, err))
			return err_wrap(err, "recall corpus '%s'", snapshot->corpus);
		stats->recomputed_tokens += wanted;
	}
	if (n_damaged)
		log_warn("corpus '%s': %" PRId64 " of %" PRId64 " tokens were computed again, since the store could not give "
			 "them; `quire ingest %s --as %s` mends it", snapshot->corpus, stats->recomputed_tokens, n_tokens,
			 snapshot->source, snapshot->corpus);
	return 0;
}
