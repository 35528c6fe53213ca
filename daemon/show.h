/*
 * What the command line prints of the daemon's longer replies, for people and as JSON lines.
 */
#ifndef QUIRE_DAEMON_SHOW_H
#define QUIRE_DAEMON_SHOW_H

#include <jansson.h>
#include <stdbool.h>

#include "daemon/api.h"

/* The reply of API_FILES, to stdout: a line for each document with its tokens and lines, or for each file that was
 * skipped with the reason. */
void show_files(const json_t *reply, bool skipped, bool json);

/* The reply of API_SNAPSHOT, to stdout, for people. */
void show_snapshot(const json_t *reply);

/* The reply of API_TEXT, to stdout: its lines with their numbers; as JSON lines, all of it but the text, and each line. */
void show_text(json_t *reply, bool json);

/* The reply of API_DIFF, to stdout: the two snapshots, a line for each file that is not as it was, how many there are of
 * each kind, and what both share. As JSON lines, all of it but the files, and each file. */
void show_diff(json_t *reply, bool json);

/* The citations of an answer, of the last event of API_ASK, to stdout, for people: a line each. */
void show_citations(const json_t *done);

/* What a dry run counted, to stdout, for people. */
void show_report(const struct api_job *job);

/* The reply of API_STATUS, to stdout, for people. */
void show_status(const json_t *reply);

#endif
