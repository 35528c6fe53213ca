/*
 * The command line as its verbs see it: for the files that have verbs. Private to daemon/cli*.c.
 */
#ifndef QUIRE_DAEMON_CLI_INSIDE_H
#define QUIRE_DAEMON_CLI_INSIDE_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>

#include "config/err.h"
#include "daemon/api.h"
#include "daemon/client.h"
#include "offload/accelerator.h"

enum { MAX_VALUES = 2 * API_MAX_GLOBS, MAX_ARGUMENTS = 2 };

/* The options of all verbs; a verb lists those it takes. The first N_API_NUMBERS are those of api_numbers. */
enum option_id {
	OPTION_AS = N_API_NUMBERS,
	OPTION_REF,
	OPTION_EXCLUDE,
	OPTION_INCLUDE,
	OPTION_FULL,
	OPTION_ORDER_FROM,
	OPTION_DRY_RUN,
	OPTION_DETACH,
	OPTION_SKIPPED,
	OPTION_READ_DATA,
	OPTION_CONTEXT,
	OPTION_MACHINE,
	OPTION_WEIGHTS,
	OPTION_DEVICE,
	OPTION_THREADS,
	OPTION_THINK,
	OPTION_SNAPSHOT,
	OPTION_KEEP,
	OPTION_SOCKET,
	OPTION_CONFIG,
	OPTION_JSON,
	OPTION_HELP,
	OPTION_VERSION,
	N_OPTIONS
};

struct cli {
	const struct verb *verb;
	int n_arguments;
	char *arguments[MAX_ARGUMENTS];
	bool given[N_OPTIONS];
	int n_values;
	struct {
		int option;
		char *text;
	} values[MAX_VALUES];
	struct err err;
};

/* Set by Ctrl-C. */
extern volatile sig_atomic_t cli_interrupted;

/* The last value of an option, or NULL. */
const char *cli_value(const struct cli *c, int option);
/* The daemon that --socket, the environment or the configuration name. */
int cli_connect(struct cli *c, struct client **client);
/* One request without arguments to speak of. NULL: c->err. */
json_t *cli_fetch(struct cli *c, enum api_route route, const char *arg, const char *body);

/* The device that --device names; without it the first there is. *out NULL: there is none, or --device none, and why. */
int cli_open_device(struct cli *c, struct accelerator **out, struct err *why);

/* Verbs: -1 and c->err, or the exit status. */
int cli_ingest(struct cli *c);
int cli_reindex(struct cli *c);
int cli_jobs(struct cli *c);
int cli_cancel(struct cli *c);
int cli_check(struct cli *c);
int cli_plan(struct cli *c);
int cli_repair(struct cli *c);
int cli_rm(struct cli *c);
int cli_snapshots(struct cli *c);
int cli_forget(struct cli *c);
int cli_files(struct cli *c);
int cli_diff(struct cli *c);
int cli_show(struct cli *c);
int cli_tune(struct cli *c);

#endif
