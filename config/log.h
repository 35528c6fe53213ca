/*
 * The log: one sink (standard error), one line an event: a sentence, then key=value pairs the caller wrote.
 * Lines are written whole, from any thread. Never document text or questions: sizes, names and hashes only.
 * Control characters are escaped as in err.h. Under systemd (JOURNAL_STREAM set) a line begins with its
 * priority, <3> to <7>; elsewhere with time and level.
 */
#ifndef QUIRE_CONFIG_LOG_H
#define QUIRE_CONFIG_LOG_H

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARN,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

/* What is printed; info at start. Any thread. */
void log_set_level(enum log_level level);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
