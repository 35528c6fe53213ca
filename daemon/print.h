/*
 * Printing for people: everything that comes from a file, a model or a request is escaped, so that it cannot drive
 * the terminal; progress is one redrawn line on a terminal and plain lines elsewhere.
 */
#ifndef QUIRE_DAEMON_PRINT_H
#define QUIRE_DAEMON_PRINT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Text on one line: line feeds and tabs are escaped too. */
void print_line(FILE *f, const char *text);
/* Text that may have lines of its own: line feeds and tabs stand. */
void print_text(FILE *f, const char *text, size_t bytes);

/* One line for a program: "type" and "v" come first. Takes the reference to `fields`. */
void print_json(FILE *f, const char *type, json_t *fields);

enum { PRINT_BYTES = 32 };
/* 81,204 */
const char *print_count(char out[PRINT_BYTES], int64_t n);
/* 1.31 GB */
const char *print_size(char out[PRINT_BYTES], int64_t bytes);
/* 2026-11-24 09:41, local time; "-" for 0 */
const char *print_time(char out[PRINT_BYTES], int64_t unix_s);

enum { PRINT_PACE_BYTES = 96 };
/* "  310 tokens/s, 0:01:57 left", when n tokens took so many ms and `left` are to come; "" in the first two seconds, which
 * say little. */
const char *print_pace(char out[PRINT_PACE_BYTES], int64_t n, int64_t ms, int64_t left);

struct print_progress {
	FILE *file;
	bool tty;
	int64_t last_ms;       /* when the last line was written */
	double last_share;
	char last_head[64];
};

void print_progress_begin(struct print_progress *p, FILE *file);
/* `head` says what is being done; a plain line is written when it changes, every 10 s, or every
 * 5 % of share, though not twice a second. */
void print_progress_line(struct print_progress *p, const char *head, double share, const char *line, int64_t now_ms);
/* Take the redrawn line away. */
void print_progress_end(struct print_progress *p);

#endif
