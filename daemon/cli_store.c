#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "daemon/cli_inside.h"
#include "daemon/print.h"
#include "daemon/upkeep.h"

/* A check or a repair, as its events tell. */
struct course {
	struct cli *c;
	struct print_progress progress;
	json_t *report;
};

static int on_event(void *ctx, const char *name, json_t *data, struct err *err)
{
	struct course *s = ctx;
	int64_t done = json_integer_value(json_object_get(data, "read_spans"));
	int64_t left = json_integer_value(json_object_get(data, "to_read"));
	char line[100], a[PRINT_BYTES], b[PRINT_BYTES], *body;

	if (!strcmp(name, "error")) {
		body = json_dumps(data, JSON_COMPACT);
		api_error_parse(err, 200, body, strlen(body));
		free(body);
		return -1;
	}
	if (!strcmp(name, "report")) {
		json_decref(s->report);
		s->report = json_incref(data);
		return 1;
	}
	if (strcmp(name, "progress") || s->c->given[OPTION_JSON] || done + left == 0)
		return 0;
	snprintf(line, sizeof line, "check     %3.0f %%  %s of %s spans", 100.0 * (double)done / (double)(done + left),
		 print_count(a, done), print_count(b, done + left));
	print_progress_line(&s->progress, "check", (double)done / (double)(done + left), line, clock_now_ms());
	return 0;
}

/* NULL: c->err. */
static json_t *run(struct cli *c, enum api_route route, const struct upkeep *u)
{
	struct course s = {.c = c};
	struct client *client = NULL;
	char *body;
	int status;

	if (cli_connect(c, &client))
		return NULL;
	body = upkeep_format(u);
	print_progress_begin(&s.progress, stderr);
	status = client_stream(client, route, NULL, body, on_event, &s, &cli_interrupted, &c->err);
	print_progress_end(&s.progress);
	if (!status && !s.report)
		status = err_set(&c->err, ERR_UNREACHABLE, "the daemon went away before the check was over");
	if (status) {
		json_decref(s.report);
		s.report = NULL;
	}
	free(body);
	client_close(client);
	return s.report;
}

static int read_corpus(struct cli *c, struct upkeep *u)
{
	if (!c->n_arguments)
		return 0;
	if (api_check_corpus_name(c->arguments[0], &c->err))
		return -1;
	snprintf(u->corpus, sizeof u->corpus, "%s", c->arguments[0]);
	return 0;
}

/* "5%" or "5": percent. */
static int read_percent(struct cli *c, double *out)
{
	const char *text = cli_value(c, OPTION_READ_DATA);
	char *end;

	*out = c->given[OPTION_READ_DATA] ? 100 : 0;
	if (!text)
		return 0;
	*out = strtod(text, &end);
	if (end == text || (*end && strcmp(end, "%")) || !(*out > 0 && *out <= 100))
		return err_set(&c->err, ERR_USAGE, "--read-data: \"%s\" is not a percentage above 0 and up to 100", text);
	return 0;
}

static int read_seed(struct cli *c, struct upkeep *u)
{
	const char *text = cli_value(c, API_SEED);
	char *end;
	double seed;

	if (!text)
		return 0;
	seed = strtod(text, &end);
	if (end == text || *end)
		return err_set(&c->err, ERR_USAGE, "--seed: \"%s\" is not a number", text);
	u->seed = (int64_t)seed;
	return api_check_number(API_SEED, "--seed", seed, &c->err);
}

int cli_check(struct cli *c)
{
	struct upkeep u = {.kind = UPKEEP_CHECK};
	json_t *report;
	int damaged;

	if (read_corpus(c, &u) || read_percent(c, &u.read_percent) || read_seed(c, &u))
		return -1;
	if (!(report = run(c, API_CHECK, &u)))
		return -1;
	damaged = json_integer_value(json_object_get(report, "damaged")) != 0;
	if (c->given[OPTION_JSON]) {
		print_json(stdout, "check", report);
	} else {
		upkeep_show_check(report);
		json_decref(report);
	}
	return damaged ? err_exit_status(ERR_FAILED) : 0;
}

int cli_repair(struct cli *c)
{
	struct upkeep u = {.kind = UPKEEP_REPAIR};
	json_t *report;

	if (read_corpus(c, &u) || !(report = run(c, API_REPAIR, &u)))
		return -1;
	if (c->given[OPTION_JSON]) {
		print_json(stdout, "repair", report);
	} else {
		upkeep_show_repair(report);
		json_decref(report);
	}
	return 0;
}

int cli_rm(struct cli *c)
{
	char size[PRINT_BYTES];
	json_t *reply;

	if (api_check_corpus_name(c->arguments[0], &c->err) ||
	    !(reply = cli_fetch(c, API_REMOVE, c->arguments[0], NULL)))
		return -1;
	if (c->given[OPTION_JSON]) {
		print_json(stdout, "removed", reply);
		return 0;
	}
	printf("%s is removed: %s are free\n", c->arguments[0],
	       print_size(size, json_integer_value(json_object_get(reply, "freed_bytes"))));
	json_decref(reply);
	return 0;
}

static void show_snapshot(const json_t *s)
{
	const char *commit = json_string_value(json_object_get(s, "commit"));
	int64_t missing = json_integer_value(json_object_get(s, "missing_tokens"));
	char tokens[PRINT_BYTES], documents[PRINT_BYTES], size[PRINT_BYTES], when[PRINT_BYTES];

	printf("%6lld  %s  %12s tokens  %9s documents  %10s of its own", (long long)json_integer_value(json_object_get(s, "id")),
	       print_time(when, json_integer_value(json_object_get(s, "created_s"))),
	       print_count(tokens, json_integer_value(json_object_get(s, "tokens"))),
	       print_count(documents, json_integer_value(json_object_get(s, "documents"))),
	       print_size(size, json_integer_value(json_object_get(s, "own_bytes"))));
	if (commit)
		printf("  commit %.12s", commit);
	if (missing)
		printf("  %s tokens to be computed again", print_count(tokens, missing));
	puts(json_is_true(json_object_get(s, "current")) ? "  current" : "");
}

int cli_snapshots(struct cli *c)
{
	json_t *reply, *s;
	size_t i;

	if (api_check_corpus_name(c->arguments[0], &c->err) ||
	    !(reply = cli_fetch(c, API_SNAPSHOTS, c->arguments[0], NULL)))
		return -1;
	json_array_foreach(json_object_get(reply, "snapshots"), i, s) {
		if (c->given[OPTION_JSON])
			print_json(stdout, "snapshot", json_incref(s));
		else
			show_snapshot(s);
	}
	json_decref(reply);
	return 0;
}

static int read_forget(struct cli *c, struct upkeep *u)
{
	const char *keep = cli_value(c, OPTION_KEEP);
	char *end;

	if (c->given[OPTION_SNAPSHOT] == c->given[OPTION_KEEP])
		return err_set(&c->err, ERR_USAGE, "forget: --snapshot ID or --keep N is needed, and not both");
	for (int i = 0; i < c->n_values; i++) {
		if (c->values[i].option != OPTION_SNAPSHOT)
			continue;
		if (u->n_snapshots == UPKEEP_SNAPSHOTS)
			return err_set(&c->err, ERR_USAGE, "forget: more than %d snapshots", UPKEEP_SNAPSHOTS);
		if (api_snapshot_id_parse(&u->snapshots[u->n_snapshots++], "--snapshot", c->values[i].text, &c->err))
			return -1;
	}
	if (!keep)
		return 0;
	u->keep = strtoll(keep, &end, 10);
	if (end == keep || *end || u->keep < 0 || u->keep > INT32_MAX)
		return err_set(&c->err, ERR_USAGE, "--keep: \"%s\" is not a whole number from 0", keep);
	return 0;
}

int cli_forget(struct cli *c)
{
	struct upkeep u = {.kind = UPKEEP_FORGET};
	char *body, size[PRINT_BYTES];
	json_t *reply, *ids, *id;
	size_t i;

	if (api_check_corpus_name(c->arguments[0], &c->err) || read_forget(c, &u))
		return -1;
	body = upkeep_format(&u);
	reply = cli_fetch(c, API_FORGET, c->arguments[0], body);
	free(body);
	if (!reply)
		return -1;
	if (c->given[OPTION_JSON]) {
		print_json(stdout, "forgotten", reply);
		return 0;
	}
	ids = json_object_get(reply, "forgotten");
	if (!json_array_size(ids))
		printf("%s has no snapshots to forget\n", c->arguments[0]);
	json_array_foreach(ids, i, id)
		printf("snapshot %lld of %s is forgotten\n", (long long)json_integer_value(id), c->arguments[0]);
	printf("%s are free\n", print_size(size, json_integer_value(json_object_get(reply, "freed_bytes"))));
	json_decref(reply);
	return 0;
}
