#include "ingest/pdf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/err.h"
#include "ingest/child.h"

/* Enough for any document that people read; a page that takes a minute is an attack or a map. */
enum { DEADLINE_MS = 60000, MEMORY_BYTES = 1 << 30 };

/* Not PATH: what runs is the system's. */
static const char *const programs[] = {"/usr/bin/pdftotext", "/usr/local/bin/pdftotext", "/bin/pdftotext"};

static const char *find_program(void)
{
	for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
		if (!access(programs[i], X_OK))
			return programs[i];
	return NULL;
}

static int leave_out(char reason[SKIP_REASON_BYTES], const char *why, const char *line)
{
	char said[CHILD_LINE_BYTES]; /* by a program about a stranger's file */

	err_escape(said, sizeof said, line, strlen(line));
	snprintf(reason, SKIP_REASON_BYTES, "not extracted: %s%s%s", why, *line ? ": " : "", said);
	return 0;
}

static int is_blank(const char *text, size_t n)
{
	while (n && strchr(" \t\n\r\f", text[n - 1]))
		n--;
	return !n;
}

int pdf_to_text(const char *pdf, size_t bytes, size_t max_bytes, const char *program, const atomic_bool *cancel,
		char **out, size_t *out_bytes, char reason[SKIP_REASON_BYTES])
{
	static const char *const arguments[] = {"pdftotext", "-enc", "UTF-8", "-eol", "unix", "-nopgbrk", "-", "-", NULL};
	struct child_options opt = {
		.program = program ? program : find_program(), .arguments = arguments, .input = pdf, .input_bytes = bytes,
		.max_bytes = max_bytes, .memory_bytes = MEMORY_BYTES, .deadline_ms = DEADLINE_MS, .cancel = cancel,
	};
	char line[CHILD_LINE_BYTES];

	if (!opt.program)
		return leave_out(reason, "pdftotext is not installed (package poppler-utils)", "");
	switch (child_run(&opt, out, out_bytes, line)) {
	case CHILD_DONE:
		break;
	case CHILD_FAILED:
		return leave_out(reason, "pdftotext failed", line);
	case CHILD_TOO_LARGE:
		snprintf(reason, SKIP_REASON_BYTES, "too large");
		return 0;
	case CHILD_DEADLINE:
		return leave_out(reason, "pdftotext took more than a minute", line);
	case CHILD_CANCELLED:
		return leave_out(reason, "cancelled", "");
	case CHILD_NOT_RUN:
		return leave_out(reason, "pdftotext cannot be run", line);
	}
	if (is_blank(*out, *out_bytes)) {
		free(*out);
		return leave_out(reason, "there is no text in it, only pictures perhaps", "");
	}
	return 1;
}
