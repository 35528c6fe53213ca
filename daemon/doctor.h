/*
 * `quire doctor`: is this machine ready, and if not, what is in the way? Every finding is one line that begins with
 * ok, warn (it works, but not as well as it could, or not yet) or fail (the daemon would not start, or would refuse
 * what it is for). It looks with the same functions as the daemon, needs none, and leaves nothing behind.
 */
#ifndef QUIRE_DAEMON_DOCTOR_H
#define QUIRE_DAEMON_DOCTOR_H

#include <stdbool.h>
#include <stdio.h>

struct doctor_options {
	const char *config; /* --config, or NULL */
	const char *socket; /* --socket, or NULL */
	const char *root;   /* before /proc and /sys; "" but in tests */
	bool json;          /* {"type":"finding", ...} a line, and a {"type":"summary", ...} */
};

/* Look at everything and print it; returns the number of findings that fail. One thread at a time. */
int doctor_run(FILE *out, const struct doctor_options *opt);

#endif
