#include "daemon/print.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config/err.h"
#include "config/mem.h"
#include "daemon/api.h"

static void print_escaped(FILE *f, const char *text, size_t bytes)
{
	/* The longest escape of one byte is \x1b; of a character of two or three, \u202e */
	char *escaped = xmalloc(bytes + 1, 4);

	fputs(err_escape(escaped, 4 * (bytes + 1), text, bytes), f);
	free(escaped);
}

void print_line(FILE *f, const char *text)
{
	print_escaped(f, text, strlen(text));
}

void print_text(FILE *f, const char *text, size_t bytes)
{
	const char *end = text + bytes;

	while (text < end) {
		const char *p = text;

		while (p < end && *p != '\n' && *p != '\t')
			p++;
		print_escaped(f, text, (size_t)(p - text));
		if (p < end)
			putc(*p++, f);
		text = p;
	}
}

void print_json(FILE *f, const char *type, json_t *fields)
{
	json_t *line = json_object();
	char *text;

	json_object_set_new(line, "type", json_string(type));
	json_object_set_new(line, "v", json_integer(1));
	json_object_update_missing(line, fields);
	json_decref(fields);
	text = api_dump(line);
	fprintf(f, "%s\n", text);
	fflush(f);
	free(text);
}

const char *print_count(char out[PRINT_BYTES], int64_t n)
{
	char digits[24];
	int length = snprintf(digits, sizeof digits, "%lld", (long long)n), o = 0;

	for (int i = 0; i < length; i++) {
		if (i && digits[i - 1] != '-' && (length - i) % 3 == 0)
			out[o++] = ',';
		out[o++] = digits[i];
	}
	out[o] = '\0';
	return out;
}

const char *print_size(char out[PRINT_BYTES], int64_t bytes)
{
	static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
	double x = (double)bytes;
	int u = 0;

	while (x >= 999.5 && u < 5) {
		x /= 1000;
		u++;
	}
	snprintf(out, PRINT_BYTES, "%.*f %s", !u || x >= 99.95 ? 0 : x >= 9.995 ? 1 : 2, x, units[u]);
	return out;
}

const char *print_time(char out[PRINT_BYTES], int64_t unix_s)
{
	time_t t = (time_t)unix_s;
	struct tm tm;

	if (!unix_s || !localtime_r(&t, &tm))
		return strcpy(out, "-");
	strftime(out, PRINT_BYTES, "%Y-%m-%d %H:%M", &tm);
	return out;
}

const char *print_pace(char out[PRINT_PACE_BYTES], int64_t n, int64_t ms, int64_t left)
{
	char rate[PRINT_BYTES];
	double per_s;
	int64_t s;

	out[0] = '\0';
	if (n <= 0 || ms < 2000)
		return out;
	per_s = 1000 * (double)n / (double)ms;
	s = (int64_t)((double)left / per_s + .5);
	snprintf(out, PRINT_PACE_BYTES, "  %s tokens/s, %lld:%02d:%02d left", print_count(rate, (int64_t)(per_s + .5)),
		 (long long)(s / 3600), (int)(s / 60 % 60), (int)(s % 60));
	return out;
}

void print_progress_begin(struct print_progress *p, FILE *file)
{
	const char *term = getenv("TERM");

	*p = (struct print_progress){.file = file};
	p->tty = isatty(fileno(file)) && !(term && !strcmp(term, "dumb"));
}

void print_progress_line(struct print_progress *p, const char *head, double share, const char *line, int64_t now_ms)
{
	bool news = strcmp(head, p->last_head) != 0;

	if (p->tty) {
		if (!news && now_ms - p->last_ms < 100)
			return;
		fprintf(p->file, "\r\033[K%s", line);
	} else {
		int64_t since_ms = now_ms - p->last_ms;

		if (!news && since_ms < 10000 && (since_ms < 1000 || share - p->last_share < .05))
			return;
		fprintf(p->file, "%s\n", line);
	}
	fflush(p->file);
	p->last_ms = now_ms;
	p->last_share = share;
	snprintf(p->last_head, sizeof p->last_head, "%s", head);
}

void print_progress_end(struct print_progress *p)
{
	if (p->tty && p->last_head[0])
		fputs("\r\033[K", p->file);
	fflush(p->file);
	p->last_head[0] = '\0';
}
