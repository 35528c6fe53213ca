/*
 * The command line: one table of verbs, from which the parsing and the help come.
 *
 * Data goes to stdout, progress and diagnostics to stderr. The exit status is that of config/err.h. With --json
 * everything on stdout is one JSON object a line, with "type" and "v": 1, and an error is one on stderr.
 */
#ifndef QUIRE_DAEMON_CLI_H
#define QUIRE_DAEMON_CLI_H

/* `quire ...`; returns the exit status. */
int cli_main(int argc, char **argv);

/* `quired ...`, the same as `quire serve ...`. */
int cli_serve(int argc, char **argv);

#endif
