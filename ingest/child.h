/*
 * A program that reads what strangers wrote, run so that little can come of it. Private to ingest/.
 *
 * It has our bytes on its standard input, a pipe for each of its outputs, and nothing else: no other descriptor, no
 * environment, limits on memory, processor time and descriptors, no new privileges, and a list of the system calls
 * that a filter of text needs, without sockets, other processes, or opening a file to write. Where the kernel has
 * Landlock it reads the system's own directories alone. Where the kernel cannot refuse system calls nothing is run.
 *
 * The child is made without copying our memory, which may be most of the machine's.
 */
#ifndef QUIRE_INGEST_CHILD_H
#define QUIRE_INGEST_CHILD_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct child_options {
	const char *program;            /* absolute */
	const char *const *arguments;   /* the program's name first, NULL last */
	const char *input;
	size_t input_bytes;
	size_t max_bytes;               /* of output; more is CHILD_TOO_LARGE */
	int64_t memory_bytes;           /* of address space */
	int deadline_ms;                /* of the clock; processor seconds are as many, rounded up */
	const atomic_bool *cancel;      /* may be NULL */
};

enum child_end {
	CHILD_DONE,        /* with status 0 */
	CHILD_FAILED,      /* with another, or by a signal */
	CHILD_TOO_LARGE,
	CHILD_DEADLINE,
	CHILD_CANCELLED,
	CHILD_NOT_RUN,     /* line says why */
};

enum { CHILD_LINE_BYTES = 128 };

/* Run it to its end; afterwards nothing of it is left. CHILD_DONE: *out (to be freed) is its output. line: the first
 * line of its standard error, "" if there is none. Blocks at most a little longer than the deadline. */
enum child_end child_run(const struct child_options *opt, char **out, size_t *bytes, char line[CHILD_LINE_BYTES]);

#endif
