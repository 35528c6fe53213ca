#include "cache/sql.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int index_put_routing(struct index *x, int64_t run, int64_t n_tokens, int32_t n_layers, int32_t n_experts,
		      const uint32_t *chosen, struct err *err)
{
	return sql_ask(x, PUT_ROUTING, err, "iiiib", run, n_tokens, (int64_t)n_layers, (int64_t)n_experts, chosen,
		       (size_t)n_layers * (size_t)n_experts * sizeof *chosen) < 0 ? -1 : 0;
}

int index_get_routing(struct index *x, int64_t run, int32_t n_layers, int32_t n_experts, uint32_t *chosen, int64_t *n_tokens,
		      struct err *err)
{
	int rc = sql_ask(x, GET_ROUTING, err, "i", run);
	int64_t layers, experts;

	if (rc <= 0)
		return rc;
	if (sql_whole(x, GET_ROUTING, 4, "routing", run, err))
		return -1;
	*n_tokens = sql_integer(x, GET_ROUTING, 0);
	layers = sql_integer(x, GET_ROUTING, 1);
	experts = sql_integer(x, GET_ROUTING, 2);
	if (layers != n_layers || experts != n_experts)
		rc = err_set(err, ERR_MISMATCH, "it was counted for %" PRId64 " layers of %" PRId64 " experts, and the model has %d of "
			     "%d: ingest again", layers, experts, n_layers, n_experts);
	else if (sql_blob(x, GET_ROUTING, 3, chosen, (size_t)n_layers * (size_t)n_experts * sizeof *chosen, err))
		rc = -1;
	sql_done(x, GET_ROUTING);
	return rc;
}

/* Of a run's counts as much as `share` of its tokens, nearest. */
static void add_share(int64_t *sum, const uint32_t *chosen, size_t n, int64_t share, int64_t of)
{
	for (size_t i = 0; i < n; i++)
		sum[i] += share == of ? chosen[i] : (int64_t)((double)chosen[i] * (double)share / (double)of + .5);
}

static int find_tip(struct index *x, const char *corpus, int64_t id, int64_t *tip, struct err *err)
{
	int rc = sql_ask(x, FIND_SNAPSHOT, err, "ti", corpus, id);

	if (rc <= 0)
		return rc ? -1 : index_no_such_snapshot(x, corpus, id, err);
	if (sql_whole(x, FIND_SNAPSHOT, 11, "snapshot", sql_integer(x, FIND_SNAPSHOT, 0), err))
		return -1;
	*tip = sql_integer(x, FIND_SNAPSHOT, 1);
	sql_done(x, FIND_SNAPSHOT);
	return 0;
}

int index_add_routing(struct index *x, const char *corpus, int64_t id, int32_t n_layers, int32_t n_experts, int64_t *chosen,
		      int64_t *n_tokens, struct err *err)
{
	size_t n = (size_t)n_layers * (size_t)n_experts;
	uint32_t *of_run;
	int64_t tip = 0;
	int rc;

	if (find_tip(x, corpus, id, &tip, err))
		return -1;
	of_run = xmalloc(n, sizeof *of_run);
	for (rc = sql_ask(x, CHAIN_RUNS, err, "i", tip); rc > 0; rc = sql_next(x, CHAIN_RUNS, err)) {
		int64_t share = sql_integer(x, CHAIN_RUNS, 1), of;
		int found;

		if (sql_whole(x, CHAIN_RUNS, 2, "span", sql_integer(x, CHAIN_RUNS, 3), err)) {
			rc = -1;
			break;
		}
		found = index_get_routing(x, sql_integer(x, CHAIN_RUNS, 0), n_layers, n_experts, of_run, &of, err);
		if (found < 0) {
			sql_done(x, CHAIN_RUNS);
			rc = -1;
			break;
		}
		if (!found)
			continue;
		share = share < of ? share : of;
		add_share(chosen, of_run, n, share, of);
		*n_tokens += share;
	}
	free(of_run);
	return rc < 0 ? -1 : 0;
}

int index_last_used(struct index *x, const uint8_t identity[32], char corpus[128], int64_t *id, struct err *err)
{
	int rc = sql_ask(x, LAST_USED, err, "b", identity, (size_t)32);

	if (rc <= 0)
		return rc;
	snprintf(corpus, 128, "%s", (const char *)sqlite3_column_text(x->statements[LAST_USED], 0));
	*id = sql_integer(x, LAST_USED, 1);
	sql_done(x, LAST_USED);
	return 1;
}
