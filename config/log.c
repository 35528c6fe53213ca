#include "config/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config/err.h"

static atomic_int threshold = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
	atomic_store(&threshold, (int)level);
}

static void write_line(enum log_level level, const char *format, va_list args)
{
	static const char *const names[] = {"error", "warn", "info", "debug"};
	static const int priorities[] = {3, 4, 6, 7};
	char text[2048], escaped[2048], line[2200];
	int n;

	if ((int)level > atomic_load(&threshold))
		return;
	vsnprintf(text, sizeof text, format, args);
	err_escape(escaped, sizeof escaped, text, strlen(text));
	if (getenv("JOURNAL_STREAM")) {
		n = snprintf(line, sizeof line, "<%d>%s\n", priorities[level], escaped);
	} else {
		struct timespec now;
		struct tm tm;
		char when[32];

		clock_gettime(CLOCK_REALTIME, &now);
		gmtime_r(&now.tv_sec, &tm);
		strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
		n = snprintf(line, sizeof line, "%s.%03ldZ %s %s\n", when, now.tv_nsec / 1000000, names[level],
			     escaped);
	}
	/* One write, so that lines of several threads do not mix; a log that cannot be written has no other
	 * place to complain. */
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return;
}

#define LEVEL(name, level)                                                                                   \
	void name(const char *format, ...)                                                                   \
	{                                                                                                    \
		va_list args;                                                                                \
                                                                                                             \
		va_start(args, format);                                                                      \
		write_line(level, format, args);                                                             \
		va_end(args);                                                                                \
	}

LEVEL(log_error, LOG_LEVEL_ERROR)
LEVEL(log_warn, LOG_LEVEL_WARN)
LEVEL(log_info, LOG_LEVEL_INFO)
LEVEL(log_debug, LOG_LEVEL_DEBUG)
