#include "daemon/upkeep.h"

#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "config/mem.h"
#include "daemon/print.h"

static int read_number(double *out, const char *key, const json_t *value, double most, struct err *err)
{
	if (!json_is_number(value) || !(json_number_value(value) >= 0 && json_number_value(value) <= most))
		return err_set(err, ERR_USAGE, "%s: a number from 0 to %.17g is needed", key, most);
	*out = json_number_value(value);
	return 0;
}

static int read_snapshots(struct upkeep *u, const char *key, const json_t *value, struct err *err)
{
	if (!json_is_array(value) || !json_array_size(value) || json_array_size(value) > UPKEEP_SNAPSHOTS)
		return err_set(err, ERR_USAGE, "%s: an array of 1 to %d ids is needed", key, UPKEEP_SNAPSHOTS);
	u->n_snapshots = json_array_size(value);
	for (size_t i = 0; i < u->n_snapshots; i++) {
		u->snapshots[i] = json_integer_value(json_array_get(value, i));
		if (u->snapshots[i] < 1)
			return err_set(err, ERR_USAGE, "%s: the id of a snapshot is a whole number from 1", key);
	}
	return 0;
}

static int read_forget(struct upkeep *u, const char *key, const json_t *value, struct err *err)
{
	if (!strcmp(key, "snapshots"))
		return read_snapshots(u, key, value, err);
	if (!strcmp(key, "keep") && json_is_integer(value) && json_integer_value(value) >= 0) {
		u->keep = json_integer_value(value);
		return 0;
	}
	if (!strcmp(key, "keep"))
		return err_set(err, ERR_USAGE, "keep: a whole number from 0 is needed");
	return err_set(err, ERR_USAGE, "%.64s: there is no such field here", key);
}

static int read_field(struct upkeep *u, const char *key, const json_t *value, struct err *err)
{
	double seed = 0;

	if (u->kind == UPKEEP_FORGET)
		return read_forget(u, key, value, err);
	if (!strcmp(key, "corpus")) {
		if (!json_is_string(value))
			return err_set(err, ERR_USAGE, "corpus: a string is needed");
		if (api_check_corpus_name(json_string_value(value), err))
			return -1;
		strcpy(u->corpus, json_string_value(value));
		return 0;
	}
	if (u->kind == UPKEEP_CHECK && !strcmp(key, "read_percent"))
		return read_number(&u->read_percent, key, value, 100, err);
	if (u->kind == UPKEEP_CHECK && !strcmp(key, "seed")) {
		if (read_number(&seed, key, value, 9007199254740991.0, err))
			return -1;
		u->seed = (int64_t)seed;
		return 0;
	}
	return err_set(err, ERR_USAGE, "%.64s: there is no such field here", key);
}

int upkeep_parse(struct upkeep *u, enum upkeep_kind kind, const char *body, size_t bytes, struct err *err)
{
	const char *key;
	json_t *root, *value;
	int rc = 0;

	*u = (struct upkeep){.kind = kind, .keep = -1};
	if (!bytes && kind != UPKEEP_FORGET)
		return 0;
	if (json_parse(&root, "the body", body, bytes, err)) {
		err->code = ERR_USAGE;
		return -1;
	}
	if (!json_is_object(root))
		rc = err_set(err, ERR_USAGE, "the body is %s: an object is needed", json_kind(root));
	json_object_foreach(root, key, value)
		if (!rc)
			rc = read_field(u, key, value, err);
	json_decref(root);
	if (!rc && kind == UPKEEP_FORGET && (u->keep < 0) == !u->n_snapshots)
		rc = err_set(err, ERR_USAGE, "either snapshots or keep is needed");
	return rc;
}

char *upkeep_format(const struct upkeep *u)
{
	json_t *root = json_object();

	if (u->kind == UPKEEP_FORGET) {
		json_t *ids = json_array();

		for (size_t i = 0; i < u->n_snapshots; i++)
			json_array_append_new(ids, json_integer(u->snapshots[i]));
		json_object_set_new(root, u->n_snapshots ? "snapshots" : "keep",
				    u->n_snapshots ? json_incref(ids) : json_integer(u->keep));
		json_decref(ids);
		return api_dump(root);
	}
	if (*u->corpus)
		json_object_set_new(root, "corpus", json_string(u->corpus));
	if (u->kind == UPKEEP_CHECK) {
		json_object_set_new(root, "read_percent", json_real(u->read_percent));
		json_object_set_new(root, "seed", json_integer(u->seed));
	}
	return api_dump(root);
}

json_t *upkeep_check_json(const struct cache_check_report *r)
{
	json_t *root = json_object(), *findings = json_array();

	json_object_set_new(root, "spans", json_integer(r->n_spans));
	json_object_set_new(root, "waiting_spans", json_integer(r->waiting_spans));
	json_object_set_new(root, "read_spans", json_integer(r->read_spans));
	json_object_set_new(root, "to_read", json_integer(r->to_read));
	json_object_set_new(root, "read_bytes", json_integer(r->read_bytes));
	json_object_set_new(root, "damaged", json_integer(r->n_damaged));
	for (size_t i = 0; i < r->n_findings; i++) {
		const struct cache_finding *f = &r->findings[i];
		json_t *o = json_object(), *corpora = json_array();

		json_object_set_new(o, "what", api_text(f->text, strlen(f->text)));
		for (size_t j = 0; j < f->n_corpora; j++)
			json_array_append_new(corpora, api_text(f->corpora[j], strlen(f->corpora[j])));
		json_object_set_new(o, "corpora", corpora);
		json_array_append_new(findings, o);
	}
	json_object_set_new(root, "findings", findings);
	return root;
}

json_t *upkeep_repair_json(const struct cache_check_report *r, const struct cache_repair_report *repaired)
{
	json_t *root = upkeep_check_json(r), *corpora = json_array();

	json_object_set_new(root, "quarantined_spans", json_integer(repaired->quarantined_spans));
	json_object_set_new(root, "lost_spans", json_integer(repaired->lost_spans));
	json_object_set_new(root, "lost_snapshots", json_integer(repaired->lost_snapshots));
	json_object_set_new(root, "dropped_jobs", json_integer(repaired->dropped_jobs));
	for (size_t i = 0; i < repaired->n_corpora; i++) {
		json_t *o = json_object();

		json_object_set_new(o, "name", api_text(repaired->corpora[i].name, strlen(repaired->corpora[i].name)));
		json_object_set_new(o, "source", api_text(repaired->corpora[i].source, strlen(repaired->corpora[i].source)));
		json_array_append_new(corpora, o);
	}
	json_object_set_new(root, "corpora", corpora);
	return root;
}

static int64_t number(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static void print_value(const json_t *value)
{
	const char *text = json_string_value(value);

	print_line(stdout, text ? text : "-");
}

static void show_findings(const json_t *report)
{
	const json_t *findings = json_object_get(report, "findings"), *f, *corpus;
	int64_t more = number(report, "damaged") - (int64_t)json_array_size(findings);
	size_t i, j;

	json_array_foreach(findings, i, f) {
		fputs("damaged: ", stdout);
		print_value(json_object_get(f, "what"));
		json_array_foreach(json_object_get(f, "corpora"), j, corpus) {
			fputs(j ? ", " : " (touches ", stdout);
			print_value(corpus);
		}
		puts(json_array_size(json_object_get(f, "corpora")) ? ")" : "");
	}
	if (more > 0)
		printf("and %lld more\n", (long long)more);
}

static void show_numbers(const json_t *report)
{
	char a[PRINT_BYTES], b[PRINT_BYTES], c[PRINT_BYTES], d[PRINT_BYTES];

	printf("%s spans, %s of them read (%s), %s wait to be computed again\n", print_count(a, number(report, "spans")),
	       print_count(b, number(report, "read_spans")), print_size(c, number(report, "read_bytes")),
	       print_count(d, number(report, "waiting_spans")));
}

void upkeep_show_check(const json_t *report)
{
	char count[PRINT_BYTES];

	show_findings(report);
	show_numbers(report);
	if (number(report, "damaged"))
		printf("%s damaged: `quire repair` mends it\n", print_count(count, number(report, "damaged")));
	else
		puts("nothing is damaged");
}

void upkeep_show_repair(const json_t *report)
{
	const json_t *corpora = json_object_get(report, "corpora"), *corpus;
	char a[PRINT_BYTES], b[PRINT_BYTES];
	size_t i;

	show_findings(report);
	show_numbers(report);
	printf("%s spans are quarantined, to be computed again when they are needed; %s are lost\n",
	       print_count(a, number(report, "quarantined_spans")), print_count(b, number(report, "lost_spans")));
	if (number(report, "dropped_jobs"))
		printf("%s interrupted ingests begin anew\n", print_count(a, number(report, "dropped_jobs")));
	if (number(report, "lost_snapshots"))
		printf("%s former snapshots could not be put together, and went\n", print_count(a, number(report, "lost_snapshots")));
	json_array_foreach(corpora, i, corpus) {
		fputs("corpus ", stdout);
		print_value(json_object_get(corpus, "name"));
		fputs(" cannot be put together any more: `quire ingest ", stdout);
		print_value(json_object_get(corpus, "source"));
		fputs(" --as ", stdout);
		print_value(json_object_get(corpus, "name"));
		puts("` makes it again");
	}
}
