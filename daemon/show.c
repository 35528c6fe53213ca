#include "daemon/show.h"

#include <stdio.h>
#include <string.h>

#include "daemon/print.h"

static int64_t get_integer(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static const char *get_string(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "-";
}

static void show_document(const json_t *file)
{
	char tokens[PRINT_BYTES], lines[PRINT_BYTES];

	printf("%12s tokens  %9s lines  ", print_count(tokens, get_integer(file, "tokens")),
	       print_count(lines, get_integer(file, "lines")));
	print_line(stdout, get_string(file, "path"));
	putchar('\n');
}

static void show_skipped(const json_t *file)
{
	print_line(stdout, get_string(file, "path"));
	fputs(": ", stdout);
	print_line(stdout, get_string(file, "reason"));
	putchar('\n');
}

void show_files(const json_t *reply, bool skipped, bool json)
{
	json_t *file;
	size_t i;

	json_array_foreach(json_object_get(reply, skipped ? "skipped" : "documents"), i, file) {
		if (json)
			print_json(stdout, skipped ? "skipped" : "document", json_incref(file));
		else if (skipped)
			show_skipped(file);
		else
			show_document(file);
	}
}

/* 3 groups of 2,624 bytes a token, 1 of 1,312 */
static void show_records(const json_t *records)
{
	char n[PRINT_BYTES], bytes[PRINT_BYTES];
	size_t i = 0, same;

	for (; i < json_array_size(records); i += same) {
		int64_t size = json_integer_value(json_array_get(records, i));

		for (same = 1; json_integer_value(json_array_get(records, i + same)) == size; same++)
			;
		printf("%s%s%s of %s bytes%s", i ? ", " : "", print_count(n, (int64_t)same),
		       i ? "" : same == 1 ? " group" : " groups", print_count(bytes, size), i ? "" : " a token");
	}
}

void show_snapshot(const json_t *reply)
{
	char a[PRINT_BYTES], b[PRINT_BYTES];
	bool ours = json_is_true(json_object_get(reply, "same_model"));
	int64_t id = get_integer(reply, "id");

	printf("corpus    %s\nsnapshot  %lld, %s\nsource    ", get_string(reply, "corpus"), (long long)id,
	       json_is_true(json_object_get(reply, "current")) ? "the current one" : "a former one");
	print_line(stdout, get_string(reply, "source"));
	if (json_is_string(json_object_get(reply, "commit")))
		printf("\ncommit    %s", get_string(reply, "commit"));
	printf("\nmade      %s, last used %s\n", print_time(a, get_integer(reply, "created_s")),
	       print_time(b, get_integer(reply, "used_s")));
	printf("identity  %s%s\n", get_string(reply, "identity"),
	       ours ? " (the daemon's model)"
		    : json_object_get(reply, "same_model") ? " (not the daemon's model: it cannot be asked)" : "");
	printf("tokens    %s in %s spans\n", print_count(a, get_integer(reply, "tokens")),
	       print_count(b, get_integer(reply, "spans")));
	printf("order     %s files, ", print_count(a, get_integer(reply, "documents")));
	print_line(stdout, get_string(reply, "first"));
	fputs(" first and ", stdout);
	print_line(stdout, get_string(reply, "last"));
	printf(" last; %s left out\n", print_count(a, get_integer(reply, "skipped")));
	printf("rows      %s%s", ours ? get_string(reply, "latents") : "", ours ? ": " : "");
	show_records(json_object_get(reply, "record_bytes"));
	printf("; index keys in %s layers, %s bytes each\n", print_count(a, get_integer(reply, "index_layers")),
	       print_count(b, get_integer(reply, "index_key_bytes")));
	printf("bytes     %s", print_size(a, get_integer(reply, "bytes")));
	printf(", of which %s (%s tokens) no other snapshot needs\n", print_size(a, get_integer(reply, "own_bytes")),
	       print_count(b, get_integer(reply, "own_tokens")));
	if (get_integer(reply, "missing_tokens"))
		printf("missing   %s tokens, computed again when it is asked\n",
		       print_count(a, get_integer(reply, "missing_tokens")));
}

void show_text(json_t *reply, bool json)
{
	json_t *held = json_incref(json_object_get(reply, "text")), *o;
	const char *text = json_string_value(held), *end = text ? text + json_string_length(held) : NULL;
	int64_t line = get_integer(reply, "first_line"), last = get_integer(reply, "last_line");
	int width = snprintf(NULL, 0, "%lld", (long long)last);

	if (json) {
		json_object_del(reply, "text");
		print_json(stdout, "document", json_incref(reply));
	}
	for (; text < end; line++) {
		const char *feed = memchr(text, '\n', (size_t)(end - text));
		size_t bytes = (size_t)((feed ? feed : end) - text);

		if (json) {
			o = json_object();
			json_object_set_new(o, "line", json_integer(line));
			json_object_set_new(o, "text", json_stringn(text, bytes));
			print_json(stdout, "line", o);
		} else {
			printf("%*lld  ", width < 4 ? 4 : width, (long long)line);
			print_text(stdout, text, bytes);
			putchar('\n');
		}
		text += bytes + (feed != NULL);
	}
	json_decref(held);
}

static void show_compared(const char *word, const json_t *s)
{
	const char *commit = json_string_value(json_object_get(s, "commit"));
	char tokens[PRINT_BYTES], documents[PRINT_BYTES], when[PRINT_BYTES];

	printf("%-8s %s@%lld  %s  %s tokens  %s documents", word, get_string(s, "corpus"), (long long)get_integer(s, "id"),
	       print_time(when, get_integer(s, "created_s")), print_count(tokens, get_integer(s, "tokens")),
	       print_count(documents, get_integer(s, "documents")));
	if (commit)
		printf("  commit %.12s", commit);
	puts(json_is_true(json_object_get(s, "current")) ? "  current" : "");
}

static void show_change(const json_t *file)
{
	char from[PRINT_BYTES], to[PRINT_BYTES], tokens[2 * PRINT_BYTES + 8], places[2 * PRINT_BYTES + 16] = "";
	const char *change = get_string(file, "change");
	bool before = json_is_integer(json_object_get(file, "from_place"));
	bool after = json_is_integer(json_object_get(file, "to_place"));

	print_count(from, get_integer(file, "from_tokens"));
	print_count(to, get_integer(file, "to_tokens"));
	if (before && after && strcmp(from, to))
		snprintf(tokens, sizeof tokens, "%s -> %s", from, to);
	else
		snprintf(tokens, sizeof tokens, "%s", after ? to : from);
	if (!strcmp(change, "moved"))
		snprintf(places, sizeof places, "  place %s -> %s", print_count(from, get_integer(file, "from_place")),
			 print_count(to, get_integer(file, "to_place")));
	printf("%-8s %20s tokens  ", change, tokens);
	print_line(stdout, get_string(file, "path"));
	puts(places);
}

static void show_shared(const json_t *reply)
{
	const json_t *parting = json_object_get(reply, "parting"), *from = json_object_get(reply, "from");
	const json_t *to = json_object_get(reply, "to");
	int64_t spans = get_integer(reply, "shared_spans");
	char tokens[PRINT_BYTES], a[PRINT_BYTES], b[PRINT_BYTES], n[PRINT_BYTES];

	if (!json_is_true(json_object_get(reply, "same_identity"))) {
		printf("shared   nothing: made by two models or with two settings (identities %s and %s)\n",
		       get_string(from, "identity"), get_string(to, "identity"));
		return;
	}
	printf("shared   the first %s tokens", print_count(tokens, get_integer(reply, "shared_tokens")));
	if (spans)
		printf("; spans 0 to %s of %s and %s are one in the store", print_count(n, spans - 1),
		       print_count(a, get_integer(from, "spans")), print_count(b, get_integer(to, "spans")));
	else
		fputs("; no span is one in the store", stdout);
	if (parting) {
		fputs("; then ", stdout);
		print_line(stdout, get_string(parting, "path"));
		if (get_integer(parting, "line"))
			printf(" line %s", print_count(n, get_integer(parting, "line")));
	}
	putchar('\n');
}

void show_diff(json_t *reply, bool json)
{
	json_t *files = json_incref(json_object_get(reply, "files")), *file;
	size_t i;

	if (json) {
		json_object_del(reply, "files");
		print_json(stdout, "diff", json_incref(reply));
	} else {
		show_compared("from", json_object_get(reply, "from"));
		show_compared("to", json_object_get(reply, "to"));
	}
	json_array_foreach(files, i, file) {
		if (json)
			print_json(stdout, "change", json_incref(file));
		else
			show_change(file);
	}
	json_decref(files);
	if (json)
		return;
	printf("files    %lld removed, %lld added, %lld changed, %lld moved, %lld as they were\n",
	       (long long)get_integer(reply, "removed"), (long long)get_integer(reply, "added"),
	       (long long)get_integer(reply, "changed"), (long long)get_integer(reply, "moved"),
	       (long long)get_integer(reply, "same"));
	show_shared(reply);
}

static void show_range(const json_t *range)
{
	long long first = (long long)get_integer(range, "first"), last = (long long)get_integer(range, "last");

	print_line(stdout, get_string(range, "path"));
	printf(last == first ? ":%lld" : ":%lld-%lld", first, last);
}

enum { SHOWN_TEXT_BYTES = 60 };

/* Of a text that stands nowhere, its first line, as far as it takes to know it again. */
static void show_quoted(const json_t *citation)
{
	const char *text = get_string(citation, "text");
	size_t line = strcspn(text, "\n"), n = line;

	if (n > SHOWN_TEXT_BYTES)
		for (n = SHOWN_TEXT_BYTES; n && (text[n] & 0xc0) == 0x80; n--)
			;
	putchar('"');
	print_text(stdout, text, n);
	fputs(n < line || text[line] ? "...\"" : "\"", stdout);
}

static void show_citation(const json_t *c)
{
	bool is_place = !strcmp(get_string(c, "kind"), "place");
	const json_t *claimed = json_object_get(c, "claimed"), *other;
	int64_t places = get_integer(c, "places");
	char count[PRINT_BYTES];
	size_t i;

	fputs("  ", stdout);
	if (places)
		show_range(c);
	else if (is_place)
		show_range(claimed);
	else
		show_quoted(c);
	printf("  %s", get_string(c, "status"));
	if (is_place) {
		fputs(places ? ": the lines are there; nothing is quoted" : ": there is no such file, or no such line", stdout);
	} else if (claimed && strcmp(get_string(c, "status"), "verified")) {
		fputs(": the answer says ", stdout);
		show_range(claimed);
	}
	if (!places && !is_place)
		fputs(claimed ? ", and it stands nowhere" : ": it stands nowhere", stdout);
	json_array_foreach(json_object_get(c, "others"), i, other) {
		fputs(i ? ", " : "; also ", stdout);
		show_range(other);
	}
	if (places > (int64_t)i + 1)
		printf(" and %s more", print_count(count, places - (int64_t)i - 1));
	putchar('\n');
}

void show_citations(const json_t *done)
{
	const json_t *citation;
	size_t i;

	json_array_foreach(json_object_get(done, "citations"), i, citation)
		show_citation(citation);
	if (json_is_integer(json_object_get(done, "unchecked_from")))
		printf("  the rest of the answer, from byte %lld on, is not checked: it quotes too much\n",
		       (long long)get_integer(done, "unchecked_from"));
	if (json_is_string(json_object_get(done, "citations_error"))) {
		fputs("  not checked: ", stdout);
		print_line(stdout, get_string(done, "citations_error"));
		putchar('\n');
	}
}

static void show_skips(const json_t *skips)
{
	char count[PRINT_BYTES];
	json_t *kind, *example;
	size_t i, e;

	json_array_foreach(skips, i, kind) {
		printf("%-11s %9s %s: ", i ? "" : "skipped", print_count(count, get_integer(kind, "files")),
		       get_string(kind, "reason"));
		json_array_foreach(json_object_get(kind, "examples"), e, example) {
			fputs(e ? ", " : "", stdout);
			print_line(stdout, json_string_value(example));
		}
		puts(get_integer(kind, "files") > (int64_t)e ? ", ..." : "");
	}
}

void show_report(const struct api_job *job)
{
	json_t *r = json_loads(job->report ? job->report : "{}", 0, NULL);
	int64_t documents = get_integer(r, "documents"), kept = get_integer(r, "kept_documents");
	char a[PRINT_BYTES], b[PRINT_BYTES], s[PRINT_BYTES];

	printf("%s: nothing was computed\n", job->request.corpus);
	printf("%-11s %9s documents %12s tokens, %s read\n", "read", print_count(a, documents),
	       print_count(b, get_integer(r, "tokens")), print_size(s, get_integer(r, "read_bytes")));
	printf("%-11s %9s documents %12s tokens\n", "kept", print_count(a, kept),
	       print_count(b, get_integer(r, "kept_tokens")));
	printf("%-11s %9s documents %12s tokens, %s more in the store, ", "to compute", print_count(a, documents - kept),
	       print_count(b, get_integer(r, "new_tokens")), print_size(s, get_integer(r, "new_bytes")));
	if (json_is_number(json_object_get(r, "seconds")))
		printf("about %s s\n", print_count(a, (int64_t)(json_number_value(json_object_get(r, "seconds")) + 0.5)));
	else
		puts("time unknown until something has been computed");
	if (json_is_string(json_object_get(r, "order_from")))
		printf("%-11s %9s documents as in %s, then %s others\n", "order", print_count(a, get_integer(r, "followed_documents")),
		       get_string(r, "order_from"), print_count(b, documents - get_integer(r, "followed_documents")));
	show_skips(json_object_get(r, "skips"));
	if (json_is_string(json_object_get(r, "commit")))
		printf("commit      %s\n", get_string(r, "commit"));
	if (json_is_string(json_object_get(r, "history"))) {
		fputs("history     ", stdout);
		print_line(stdout, get_string(r, "history"));
		putchar('\n');
	}
	json_decref(r);
}

static void print_model_status(const json_t *m)
{
	char a[PRINT_BYTES], b[PRINT_BYTES], s[PRINT_BYTES];
	const char *state = get_string(m, "state");

	printf("model    %s", state);
	if (!strcmp(state, "none")) {
		puts(": set model.path in the configuration");
		return;
	}
	fputs("  ", stdout);
	print_line(stdout, get_string(m, "path"));
	if (!strcmp(state, "failed")) {
		fputs(": ", stdout);
		print_line(stdout, get_string(m, "error"));
	}
	putchar('\n');
	if (strcmp(state, "ready"))
		return;
	printf("         %s, %s parameters, %s in memory, context %s tokens, identity %s\n",
	       get_string(m, "architecture"), print_count(a, get_integer(m, "parameters")),
	       print_size(s, get_integer(m, "loaded_bytes")), print_count(b, get_integer(m, "context_tokens")),
	       get_string(m, "identity"));
	if (json_is_string(json_object_get(m, "no_renderer"))) {
		fputs("         no questions: ", stdout);
		print_line(stdout, get_string(m, "no_renderer"));
		putchar('\n');
	}
}

static void print_device(const json_t *d)
{
	char a[PRINT_BYTES], b[PRINT_BYTES], c[PRINT_BYTES];

	printf("device   ");
	print_line(stdout, get_string(d, "name"));
	printf(": room for %s experts, %s there", print_count(a, get_integer(d, "slots")), print_count(b, get_integer(d, "resident")));
	if (get_integer(d, "hits") || get_integer(d, "moved"))
		printf("; %s computed of those there, %s moved to be computed", print_count(a, get_integer(d, "hits")),
		       print_count(b, get_integer(d, "moved")));
	if (get_integer(d, "lowered"))
		printf("; %s changed places with better ones", print_count(c, get_integer(d, "lowered")));
	putchar('\n');
}

/* Without a tier there is nothing to say. */
static void print_experts(const json_t *x)
{
	char a[PRINT_BYTES], b[PRINT_BYTES], d[PRINT_BYTES];
	int64_t taken = get_integer(x, "taken");

	if (!x)
		return;
	printf("experts  %s of %s in memory, %s", print_count(a, get_integer(x, "resident")), print_count(b, get_integer(x, "all")),
	       print_size(d, get_integer(x, "slots") * get_integer(x, "slot_bytes")));
	if (taken)
		printf("; %s used, %.0f %% of them there when they were chosen, %s read", print_count(a, taken),
		       100.0 * (double)get_integer(x, "hits") / (double)taken, print_size(d, get_integer(x, "read_bytes")));
	if (get_integer(x, "ahead"))
		printf(", %s ahead and %s of those in vain", print_count(a, get_integer(x, "ahead")),
		       print_count(b, get_integer(x, "wasted")));
	if (get_integer(x, "spare"))
		printf(", %s while there was nothing else to read", print_count(a, get_integer(x, "spare")));
	if (get_integer(x, "behind"))
		printf(", %s in somebody's way", print_count(a, get_integer(x, "behind")));
	putchar('\n');
	if (get_integer(x, "ahead") && !json_is_true(json_object_get(x, "asks_ahead")))
		printf("         routers are not asked ahead: that costs more than it saves\n");
	if (get_integer(x, "warmed"))
		printf("         %s came before they were asked for, %s of those were used\n", print_count(a, get_integer(x, "warmed")),
		       print_count(b, get_integer(x, "warmed_used")));
	if (json_object_get(x, "device"))
		print_device(json_object_get(x, "device"));
	if (!json_is_true(json_object_get(x, "sums_shipped")) && get_integer(x, "trusted_first"))
		printf("         %s are trusted from their first read on: `quire model verify`\n",
		       print_count(a, get_integer(x, "trusted_first")));
}

void show_status(const json_t *reply)
{
	char a[PRINT_BYTES], b[PRINT_BYTES], d[PRINT_BYTES], e[PRINT_BYTES];
	const json_t *o;

	printf("quired   %s, process %lld, up %s s, ", get_string(reply, "version"), (long long)get_integer(reply, "pid"),
	       print_count(a, get_integer(reply, "uptime_s")));
	print_line(stdout, get_string(reply, "socket"));
	putchar('\n');
	print_model_status(json_object_get(reply, "model"));
	o = json_object_get(reply, "engine");
	if (json_is_string(json_object_get(o, "isa")))
		printf("engine   cpu, %s, %lld threads, compute %s, latents %s\n", get_string(o, "isa"),
		       (long long)get_integer(o, "threads"), get_string(o, "compute"), get_string(o, "latents"));
	print_experts(json_object_get(reply, "experts"));
	o = json_object_get(reply, "store");
	fputs("store    ", stdout);
	print_line(stdout, get_string(o, "path"));
	printf(": %s corpora, %s spans, %s of %s used, %s damaged reads", print_count(a, get_integer(o, "corpora")),
	       print_count(b, get_integer(o, "spans")), print_size(d, get_integer(o, "used_bytes")),
	       print_size(e, get_integer(o, "file_bytes")), print_count((char[PRINT_BYTES]){0}, get_integer(o, "damaged")));
	if (get_integer(o, "scratch_bytes"))
		printf(", %s to go on with interrupted ingests", print_size(d, get_integer(o, "scratch_bytes")));
	putchar('\n');
	o = json_object_get(reply, "queue");
	printf("queue    %lld of %lld questions, %lld jobs running, %lld waiting, %lld connections\n",
	       (long long)get_integer(o, "asks"), (long long)get_integer(o, "max_asks"),
	       (long long)get_integer(o, "jobs_running"), (long long)get_integer(o, "jobs_queued"),
	       (long long)get_integer(o, "connections"));
	o = json_object_get(reply, "total");
	printf("total    %s answered, %s refused, %s cancelled", print_count(a, get_integer(o, "answered")),
	       print_count(b, get_integer(o, "refused")), print_count(d, get_integer(o, "cancelled")));
	printf("; %s prompt tokens, %s of them from the store\n", print_count(a, get_integer(o, "prompt_tokens")),
	       print_count(b, get_integer(o, "cached_tokens")));
	printf("latents  %s chosen, %s of them in memory, %s read for questions\n", print_count(a, get_integer(o, "wanted_latents")),
	       print_count(b, get_integer(o, "held_latents")), print_size(d, get_integer(o, "read_bytes")));
}
