#include "daemon/cli.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/config.h"
#include "config/err.h"
#include "config/log.h"
#include "config/mem.h"
#include "daemon/api.h"
#include "daemon/cli_inside.h"
#include "daemon/client.h"
#include "daemon/doctor.h"
#include "daemon/loop.h"
#include "daemon/model_verbs.h"
#include "daemon/print.h"
#include "daemon/show.h"

#define BIT(option) (1u << (option))
#define NUMBERS     (BIT(N_API_NUMBERS) - 1)
#define EVERYWHERE  (BIT(OPTION_SOCKET) | BIT(OPTION_CONFIG) | BIT(OPTION_JSON) | BIT(OPTION_HELP))

static const struct {
	const char *name, *value, *help;
} options[N_OPTIONS] = {
	[OPTION_AS] = {"as", "NAME", "the name of the corpus"},
	[OPTION_REF] = {"ref", "REF", "the files of this branch, tag or commit, not those on disk; DIR@REF says the same"},
	[OPTION_EXCLUDE] = {"exclude", "GLOB", "leave these files out (may be given again)"},
	[OPTION_INCLUDE] = {"include", "GLOB", "take these files whatever would leave them out (may be given again)"},
	[OPTION_FULL] = {"full", NULL, "sort the documents anew, though less can be kept of what is computed"},
	[OPTION_ORDER_FROM] = {"order-from", "NAME[@ID]", "keep the order of another snapshot: its unchanged documents first, then the others"},
	[OPTION_DRY_RUN] = {"dry-run", NULL, "count what would be read, skipped, kept and computed, and do none of it"},
	[OPTION_DETACH] = {"detach", NULL, "print the job and leave it to the daemon"},
	[OPTION_SKIPPED] = {"skipped", NULL, "what was left out, and why"},
	[OPTION_READ_DATA] = {"read-data", "[=N%]", "compare every stored byte with its checksum, or those of N percent of the spans"},
	[OPTION_CONTEXT] = {"context", "N", "tokens in the context (else all that the model takes)"},
	[OPTION_MACHINE] = {"machine", "FILE", "a machine that FILE describes, in YAML (else this one, measured)"},
	[OPTION_WEIGHTS] = {"weights", "FORMAT", "fp8, bf16, or int4 for routed experts (else fp8; int4 if packed)"},
	[OPTION_DEVICE] = {"device", "NAME", "the device beside the processor, or none (else cuda:0, if there is one)"},
	[OPTION_THREADS] = {"threads", "N", "of the processor (else as the configuration says)"},
	[OPTION_THINK] = {"think", NULL, "let the model think before it answers"},
	[OPTION_SNAPSHOT] = {"snapshot", "ID", "a former snapshot (`quire snapshots` lists them), not the current one"},
	[OPTION_KEEP] = {"keep", "N", "forget all former snapshots but the newest N"},
	[OPTION_SOCKET] = {"socket", "PATH", "where the daemon listens (else QUIRE_SOCKET, else the configuration)"},
	[OPTION_CONFIG] = {"config", "FILE", "the configuration (else ~/.config/quire/quire.yaml)"},
	[OPTION_JSON] = {"json", NULL, "JSON lines on stdout"},
	[OPTION_HELP] = {"help", NULL, "this text"},
	[OPTION_VERSION] = {"version", NULL, "the version"},
};

_Static_assert(N_OPTIONS <= 32, "an option is a bit of an unsigned");

static const char *option_name(int id)
{
	return id < N_API_NUMBERS ? api_numbers[id].option : options[id].name;
}

static const char *option_value(int id)
{
	return id < N_API_NUMBERS ? (api_numbers[id].integer ? "N" : "X") : options[id].value;
}

static const char *option_help(int id)
{
	return id < N_API_NUMBERS ? api_numbers[id].help : options[id].help;
}

/* A value in brackets may be left out. */
static int option_kind(int id)
{
	return !option_value(id) ? no_argument : *option_value(id) == '[' ? optional_argument : required_argument;
}

struct verb {
	const char *name, *arguments, *summary;
	int least, most;         /* arguments */
	unsigned takes;          /* BIT(option) beside EVERYWHERE */
	int (*run)(struct cli *c); /* -1: err is set; else the exit status */
};

volatile sig_atomic_t cli_interrupted;

static void on_interrupt(int signal_number)
{
	(void)signal_number;
	cli_interrupted = 1;
}

const char *cli_value(const struct cli *c, int option)
{
	for (int i = c->n_values - 1; i >= 0; i--)
		if (c->values[i].option == option)
			return c->values[i].text;
	return NULL;
}

static void print_error(const struct err *err, bool json)
{
	char *text = api_error_format(err);

	if (json)
		print_json(stderr, "error", json_loads(text, 0, NULL));
	else
		fprintf(stderr, "quire: %s\n", err->text);
	free(text);
}

int cli_connect(struct cli *c, struct client **client)
{
	struct config config = {0};
	const char *socket = cli_value(c, OPTION_SOCKET), *environment = getenv("QUIRE_SOCKET");
	bool named = socket || (environment && *environment);
	char *path = NULL;
	int failed;

	/* A broken configuration must not keep anybody from a daemon whose socket was named. */
	if ((!named || c->given[OPTION_CONFIG]) && config_load(&config, cli_value(c, OPTION_CONFIG), &c->err))
		return -1;
	failed = config_socket_path(&path, socket, config.server.socket, &c->err) ||
		 client_open(client, path, &c->err);
	free(path);
	config_free(&config);
	return failed ? -1 : 0;
}

json_t *cli_fetch(struct cli *c, enum api_route route, const char *arg, const char *body)
{
	struct client *client = NULL;
	json_t *reply = NULL;

	if (!cli_connect(c, &client) && client_request(client, route, arg, body, &reply, &c->err))
		reply = NULL;
	client_close(client);
	return reply;
}

/* Corpora and status. */

static int64_t get_integer(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static const char *get_string(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "-";
}

static int run_corpora(struct cli *c)
{
	json_t *reply = cli_fetch(c, API_CORPORA, NULL, NULL), *list, *corpus;
	char tokens[PRINT_BYTES], documents[PRINT_BYTES], size[PRINT_BYTES], when[PRINT_BYTES];
	size_t i;

	if (!reply)
		return -1;
	list = json_object_get(reply, "corpora");
	if (!json_array_size(list) && !c->given[OPTION_JSON])
		fputs("no corpora yet: quire ingest DIR --as NAME\n", stderr);
	json_array_foreach(list, i, corpus) {
		if (c->given[OPTION_JSON]) {
			print_json(stdout, "corpus", json_incref(corpus));
			continue;
		}
		print_line(stdout, get_string(corpus, "name"));
		printf("  %s tokens  %s documents  %s  %s  ", print_count(tokens, get_integer(corpus, "tokens")),
		       print_count(documents, get_integer(corpus, "documents")),
		       print_size(size, get_integer(corpus, "bytes")), print_time(when, get_integer(corpus, "created_s")));
		print_line(stdout, get_string(corpus, "source"));
		if (json_is_string(json_object_get(corpus, "commit")))
			printf("  commit %.12s", get_string(corpus, "commit"));
		if (get_integer(corpus, "snapshots") > 1)
			printf("  %s snapshots", print_count(tokens, get_integer(corpus, "snapshots")));
		putchar('\n');
	}
	json_decref(reply);
	return 0;
}

static int run_status(struct cli *c)
{
	json_t *reply = cli_fetch(c, API_STATUS, NULL, NULL);

	if (!reply)
		return -1;
	if (c->given[OPTION_JSON]) {
		print_json(stdout, "status", reply);
		return 0;
	}
	show_status(reply);
	json_decref(reply);
	return 0;
}

/* Ask. */

struct answer {
	struct cli *c;
	struct print_progress progress;
	bool any_text, ends_line, done;
	struct api_usage usage;
	char finish[16];
	json_t *last;            /* the event with the citations */
};

static void print_phase(struct answer *a, const json_t *data)
{
	const char *phase = get_string(data, "phase");
	char line[100], count[PRINT_BYTES];

	if (!a->progress.tty)
		return;
	if (!strcmp(phase, "load"))
		snprintf(line, sizeof line, "loading %s tokens from the store", print_count(count, get_integer(data, "tokens")));
	else if (!strcmp(phase, "prefill"))
		snprintf(line, sizeof line, "reading the question: %s tokens", print_count(count, get_integer(data, "tokens")));
	else
		snprintf(line, sizeof line, "waiting for the engine");
	print_progress_line(&a->progress, phase, 0, line, clock_now_ms());
}

static int on_ask_event(void *ctx, const char *name, json_t *data, struct err *err)
{
	struct answer *a = ctx;
	const json_t *text;
	char *body;

	if (!strcmp(name, "error")) {
		body = json_dumps(data, JSON_COMPACT);
		api_error_parse(err, 200, body, strlen(body));
		free(body);
		return -1;
	}
	if (a->c->given[OPTION_JSON])
		print_json(stdout, name, json_incref(data));
	if (!strcmp(name, "phase") && !a->c->given[OPTION_JSON]) {
		print_phase(a, data);
	} else if (!strcmp(name, "token") && !a->c->given[OPTION_JSON]) {
		text = json_object_get(data, "text");
		print_progress_end(&a->progress);
		print_text(stdout, json_string_value(text), json_string_length(text));
		fflush(stdout);
		a->any_text = true;
		a->ends_line = json_string_length(text) && json_string_value(text)[json_string_length(text) - 1] == '\n';
	} else if (!strcmp(name, "usage")) {
		api_usage_parse(&a->usage, data);
	} else if (!strcmp(name, "done")) {
		snprintf(a->finish, sizeof a->finish, "%s", get_string(data, "finish_reason"));
		a->last = json_incref(data);
		a->done = true;
		return 1;
	}
	return 0;
}

static void print_usage(const struct answer *a)
{
	const struct api_usage *u = &a->usage;
	char cached[PRINT_BYTES], prefilled[PRINT_BYTES], completed[PRINT_BYTES], again[PRINT_BYTES + 32] = "";

	if (u->recomputed_tokens)
		snprintf(again, sizeof again, " (%s that the store did not have)", print_count(cached, u->recomputed_tokens));
	fprintf(stderr, "%s tokens from the store%s, %s prefilled%s, %s generated; loaded in %.2f s, first token after %.2f s, "
		"%.1f tokens/s%s\n", print_count(cached, u->cached_tokens), u->loaded_tokens ? "" : " (still in memory)",
		print_count(prefilled, u->prefilled_tokens), again, print_count(completed, u->completion_tokens), u->load_s,
		u->ttft_s, u->decode_s > 0 ? (double)u->completion_tokens / u->decode_s : 0.0,
		strcmp(a->finish, "length") ? "" : "; cut at max-tokens");
}

/* A number that strtod takes whole, in the range that the daemon will check too. */
static int read_number(struct cli *c, struct api_ask *ask, int number)
{
	const char *text = cli_value(c, number);
	char name[40], *end;

	snprintf(name, sizeof name, "--%s", api_numbers[number].option);
	ask->numbers[number] = strtod(text, &end);
	ask->given[number] = true;
	if (end == text || *end)
		return err_set(&c->err, ERR_USAGE, "%s: \"%s\" is not a number", name, text);
	return api_check_number((enum api_number)number, name, ask->numbers[number], &c->err);
}

static int run_ask(struct cli *c)
{
	struct api_ask ask = {.question = c->arguments[1], .think = c->given[OPTION_THINK]};
	struct answer a = {.c = c};
	struct client *client = NULL;
	char *body;
	int status;

	if (api_check_corpus_name(c->arguments[0], &c->err))
		return -1;
	if (!*c->arguments[1])
		return err_set(&c->err, ERR_USAGE, "ask: the question is empty");
	snprintf(ask.corpus, sizeof ask.corpus, "%s", c->arguments[0]);
	if (c->given[OPTION_SNAPSHOT] &&
	    api_snapshot_id_parse(&ask.snapshot, "--snapshot", cli_value(c, OPTION_SNAPSHOT), &c->err))
		return -1;
	for (int i = 0; i < N_API_NUMBERS; i++)
		if (c->given[i] && read_number(c, &ask, i))
			return -1;
	if (cli_connect(c, &client))
		return -1;
	body = api_ask_format(&ask);
	print_progress_begin(&a.progress, stderr);
	status = client_stream(client, API_ASK, NULL, body, on_ask_event, &a, &cli_interrupted, &c->err);
	print_progress_end(&a.progress);
	if (a.any_text && !a.ends_line)
		putchar('\n');
	if (!c->given[OPTION_JSON])
		show_citations(a.last);
	fflush(stdout);
	json_decref(a.last);
	if (!status && !a.done)
		status = err_set(&c->err, ERR_UNREACHABLE, "the daemon went away before the answer was complete");
	if (!status && !c->given[OPTION_JSON])
		print_usage(&a);
	free(body);
	client_close(client);
	return status;
}

/* The rest. */

static int run_serve(struct cli *c)
{
	struct config config;
	char *path = NULL;
	int status;

	if (config_load(&config, cli_value(c, OPTION_CONFIG), &c->err))
		return -1;
	log_set_level(config.log.level);
	status = config_socket_path(&path, cli_value(c, OPTION_SOCKET), config.server.socket, &c->err) ||
		 loop_run(&config, path, &c->err);
	free(path);
	config_free(&config);
	return status ? -1 : 0;
}

static int run_doctor(struct cli *c)
{
	const struct doctor_options opt = {cli_value(c, OPTION_CONFIG), cli_value(c, OPTION_SOCKET), "", c->given[OPTION_JSON]};

	return doctor_run(stdout, &opt) ? err_exit_status(ERR_FAILED) : 0;
}

static int run_version(struct cli *c)
{
	if (c->given[OPTION_JSON])
		print_json(stdout, "version", json_pack("{s:s}", "version", QUIRE_VERSION));
	else
		printf("quire %s\n", QUIRE_VERSION);
	return 0;
}

static int run_help(struct cli *c);

/* model_verbs.c reads its own arguments. */
static int run_model(struct cli *c)
{
	return err_set(&c->err, ERR_USAGE, "model: see quire model");
}

static const struct verb verbs[] = {
	{"ingest", "DIR[@REF] --as NAME", "read a directory and keep what the model computes from it", 1, 1,
	 BIT(OPTION_AS) | BIT(OPTION_REF) | BIT(OPTION_EXCLUDE) | BIT(OPTION_INCLUDE) | BIT(OPTION_FULL) |
	 BIT(OPTION_ORDER_FROM) | BIT(OPTION_DRY_RUN) | BIT(OPTION_DETACH), cli_ingest},
	{"reindex", "NAME", "read a corpus's directory again", 1, 1,
	 BIT(OPTION_EXCLUDE) | BIT(OPTION_INCLUDE) | BIT(OPTION_FULL) | BIT(OPTION_ORDER_FROM) | BIT(OPTION_DRY_RUN) |
	 BIT(OPTION_DETACH), cli_reindex},
	{"ask", "NAME QUESTION", "answer a question about a corpus", 2, 2, NUMBERS | BIT(OPTION_THINK) | BIT(OPTION_SNAPSHOT), run_ask},
	{"corpora", "", "what has been read", 0, 0, 0, run_corpora},
	{"files", "NAME[@ID]", "the files of a corpus in its order; with --skipped, those left out and why", 1, 1,
	 BIT(OPTION_SKIPPED) | BIT(OPTION_SNAPSHOT), cli_files},
	{"show", "NAME[@ID] [PATH[:LINE[-LINE]]]", "what a snapshot is; or the text of a file as the model read it, from the "
	 "store and with line numbers", 1, 2, BIT(OPTION_SNAPSHOT), cli_show},
	{"snapshots", "NAME", "the current snapshot of a corpus and its former ones, and what each alone takes", 1, 1, 0,
	 cli_snapshots},
	{"diff", "NAME[@ID] [NAME[@ID]]", "what changed between two snapshots: the one before and the current one, @ID and the "
	 "current one, or the two named", 1, 2, 0, cli_diff},
	{"forget", "NAME", "forget former snapshots: --snapshot ID (may be given again), or --keep N; the current one stays", 1, 1,
	 BIT(OPTION_SNAPSHOT) | BIT(OPTION_KEEP), cli_forget},
	{"check", "[NAME]", "is the store whole? what is damaged, and the corpora that it touches (status 1)", 0, 1,
	 BIT(OPTION_READ_DATA) | BIT(API_SEED), cli_check},
	{"repair", "[NAME]", "read all of the store, quarantine what is damaged; what is whole stays", 0, 1, 0, cli_repair},
	{"rm", "NAME", "remove a corpus; what other corpora share stays", 1, 1, 0, cli_rm},
	{"jobs", "[JOB]", "ingests, newest first; or one of them", 0, 1, 0, cli_jobs},
	{"cancel", "JOB", "end a job that waits or runs; what it computed is kept", 1, 1, 0, cli_cancel},
	{"status", "", "the daemon, its model, its store and its queue", 0, 0, 0, run_status},
	{"plan", "MODEL|CONFIG.JSON", "what a model needs, and how fast it can be here or elsewhere (status 7: it does not fit)", 1, 1,
	 BIT(OPTION_CONTEXT) | BIT(OPTION_MACHINE) | BIT(OPTION_DEVICE) | BIT(OPTION_WEIGHTS), cli_plan},
	{"tune", "MODEL", "measure what an expert takes here, on the processor and on a device beside it, and keep it for the daemon", 1, 1,
	 BIT(OPTION_DEVICE) | BIT(OPTION_THREADS), cli_tune},
	{"doctor", "", "is this machine ready? a line a finding: ok, warn or fail (status 1)", 0, 0, 0, run_doctor},
	{"serve", "", "run the daemon here (as quired does)", 0, 0, 0, run_serve},
	{"model", "info|eval|tokenize|bench|verify|synth DIR ...", "look at a model directory without a daemon", 0, 0, 0, run_model},
	{"version", "", "the version", 0, 0, 0, run_version},
	{"help", "[VERB]", "this text, or that of a verb", 0, 1, 0, run_help},
};

enum { N_VERBS = sizeof verbs / sizeof *verbs };

static const struct verb *find_verb(const char *name)
{
	for (int i = 0; i < N_VERBS; i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

static int unknown_verb(const char *name, struct err *err)
{
	return err_set(err, ERR_USAGE, "there is no verb \"%.40s\": see quire help", name);
}

static void print_verb_help(FILE *f, const struct verb *v)
{
	unsigned takes = v->takes | EVERYWHERE;

	fprintf(f, "usage: quire %s %s%s[options]\n%s\n\n", v->name, v->arguments, *v->arguments ? " " : "", v->summary);
	for (int i = 0; i < N_OPTIONS; i++) {
		char head[40];

		if (!(takes & BIT(i)))
			continue;
		snprintf(head, sizeof head, "--%s%s%s", option_name(i), option_kind(i) == required_argument ? " " : "",
			 option_value(i) ? option_value(i) : "");
		fprintf(f, "  %-18s %s", head, option_help(i));
		if (i < N_API_NUMBERS)
			fprintf(f, " (%.17g to %.17g)", api_numbers[i].least, api_numbers[i].most);
		putc('\n', f);
	}
}

static void print_help(FILE *f)
{
	fputs("usage: quire [--socket PATH] [--config FILE] [--json] VERB ...\n\n", f);
	for (int i = 0; i < N_VERBS; i++) {
		char head[60];

		snprintf(head, sizeof head, "%s %s", verbs[i].name, verbs[i].arguments);
		fprintf(f, "  %-38s %s\n", head, verbs[i].summary);
	}
	fputs("\nexit status: 0 ok, 1 failed, 2 usage, 3 partial, 4 not found, 5 no daemon, 6 busy, 7 too large,\n"
	      "             8 store damaged, 9 mismatch, 10 permission, 124 deadline, 130 interrupted or cancelled\n", f);
}

static int run_help(struct cli *c)
{
	const struct verb *v;

	if (!c->n_arguments) {
		print_help(stdout);
		return 0;
	}
	if (!(v = find_verb(c->arguments[0])))
		return unknown_verb(c->arguments[0], &c->err);
	print_verb_help(stdout, v);
	return 0;
}

/* Read options up to the verb (`verb` NULL, those that go with none), or all the options and arguments of one. */
static int parse(struct cli *c, int argc, char **argv, const struct verb *verb, struct err *err)
{
	struct option known[N_OPTIONS + 1] = {0};
	unsigned takes = EVERYWHERE | (verb ? verb->takes : BIT(OPTION_VERSION));
	int n = 0, option;

	for (int i = 0; i < N_OPTIONS; i++)
		if (takes & BIT(i))
			known[n++] = (struct option){option_name(i), option_kind(i), NULL,
						     i + 256};
	opterr = 0;
	optind = 0; /* begin anew, whatever was parsed before */
	while ((option = getopt_long(argc, argv, verb ? ":h" : "+:h", known, NULL)) != -1) {
		if (option == ':')
			return err_set(err, ERR_USAGE, "%s needs a value", argv[optind - 1]);
		if (option == '?')
			return err_set(err, ERR_USAGE, "%s%sunknown option %s: see quire help%s%s", verb ? verb->name : "",
				       verb ? ": " : "", argv[optind - 1], verb ? " " : "", verb ? verb->name : "");
		option = option == 'h' ? OPTION_HELP : option - 256;
		c->given[option] = true;
		if (!option_value(option) || !optarg)
			continue;
		if (c->n_values == MAX_VALUES)
			return err_set(err, ERR_USAGE, "more than %d options", MAX_VALUES);
		c->values[c->n_values].option = option;
		c->values[c->n_values++].text = optarg;
	}
	if (!verb || c->given[OPTION_HELP])
		return 0;
	if (argc - optind < verb->least || argc - optind > verb->most)
		return err_set(err, ERR_USAGE, "%s takes %s: see quire help %s", verb->name,
			       *verb->arguments ? verb->arguments : "no arguments", verb->name);
	while (optind < argc)
		c->arguments[c->n_arguments++] = argv[optind++];
	return 0;
}

static int run_verb(struct cli *c, const struct verb *verb)
{
	struct sigaction action = {.sa_handler = on_interrupt};
	int status;

	if (c->given[OPTION_HELP]) {
		print_verb_help(stdout, verb);
		return 0;
	}
	if (verb->run != run_serve) {
		sigaction(SIGINT, &action, NULL);
		action.sa_handler = SIG_IGN;
		sigaction(SIGPIPE, &action, NULL);
	}
	status = verb->run(c);
	/* An answer that could not be written was not given. */
	if (status >= 0 && (fflush(stdout) || ferror(stdout)))
		status = err_errno(&c->err, errno, "write the output");
	if (status < 0) {
		print_error(&c->err, c->given[OPTION_JSON]);
		status = err_exit_status(c->err.code);
	}
	return status;
}

static int usage_error(struct cli *c)
{
	print_error(&c->err, c->given[OPTION_JSON]);
	return err_exit_status(c->err.code);
}

int cli_main(int argc, char **argv)
{
	struct cli *c = xcalloc(1, sizeof *c);
	const struct verb *verb;
	int at, status;

	if (parse(c, argc, argv, NULL, &c->err)) {
		status = usage_error(c);
	} else if ((at = optind) == argc || c->given[OPTION_HELP] || c->given[OPTION_VERSION]) {
		if (c->given[OPTION_VERSION])
			status = run_version(c);
		else
			print_help((status = c->given[OPTION_HELP] ? 0 : err_exit_status(ERR_USAGE)) ? stderr : stdout);
	} else if (!(verb = find_verb(argv[at]))) {
		unknown_verb(argv[at], &c->err);
		status = usage_error(c);
	} else if (verb->run == run_model) {
		optind = 0;
		status = model_verb(argc - at - 1, argv + at + 1);
	} else {
		status = parse(c, argc - at, argv + at, verb, &c->err) ? usage_error(c) : run_verb(c, verb);
	}
	free(c);
	return status;
}

int cli_serve(int argc, char **argv)
{
	struct cli *c = xcalloc(1, sizeof *c);
	const struct verb *verb = find_verb("serve");
	int status = parse(c, argc, argv, verb, &c->err) ? usage_error(c) : run_verb(c, verb);

	free(c);
	return status;
}
