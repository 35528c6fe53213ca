/*
 * Daemons that are killed at work, and what is there afterwards: for tests/test_daemon_kills.c and the soak. Failures
 * are err; nothing here ends a test.
 *
 *     a store is copied, of which an undisturbed daemon has shown what becomes
 *     a daemon begins its work on it, and SIGKILL ends it somewhere
 *     another daemon starts: what was accepted comes to its end, and everything is as if nothing had been
 *
 * Afterwards means: at once every corpus answers as before the work or as after it, and as after it if the work was
 * seen to end; `check --read-data` finds nothing, unless damage was there and not yet repaired; a job that was accepted
 * ends well, at its second attempt, with no token computed anew that was seen to be in the store; then the answers, the
 * check's report, the store's bytes and spans, its files and what its rows name are those of the undisturbed daemon
 * (after an eviction, whose extent depends on where it was interrupted, the bytes are within the limit), and the daemon
 * stops with status 0.
 */
#ifndef QUIRE_TESTS_SUPPORT_DAEMON_KILLS_H
#define QUIRE_TESTS_SUPPORT_DAEMON_KILLS_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

enum kill_activity {
	KILL_INGEST,    /* the first of a store that is not there yet */
	KILL_REINDEX,   /* of a corpus whose beginning is the same */
	KILL_EVICTION,  /* an ingest for which another corpus gives way */
	KILL_REPAIR,    /* of a flipped bit, and the ingest that computes again what it took */
	N_KILL_ACTIVITIES
};

extern const char *const kill_activity_names[N_KILL_ACTIVITIES];

struct kills_options {
	const char *dir;        /* empty; whoever gives it removes it */
	int lines;              /* of a document, of ten tokens each */
	const char *program;    /* quired; NULL: the daemon in this program, whose calls can be counted */
};

struct kills;

/* Makes what the daemons begin with. This process has a single thread. */
int kills_open(struct kills **out, const struct kills_options *opt, struct err *err);
/* Takes NULL. */
void kills_close(struct kills *k);

/* Killed before the nth call from its start, counted from 1, that changes a disk (tests/support/disk_calls.h); torn: that
 * one, if it is a write, is made by half. *killed false: it had stopped in good order before that. */
int kills_at_call(struct kills *k, enum kill_activity activity, int nth, bool torn, bool *killed, struct err *err);

/* Killed from outside after this share, 0 to 1, of the time that the work takes, its stop included. */
int kills_at_moment(struct kills *k, enum kill_activity activity, double share, bool *killed, struct err *err);

/* Done between each kill and the restart, for tests that want to see it found; NULL, as at first: nothing. */
void kills_spoil(struct kills *k, void (*spoil)(const char *store));

/* The file with what the daemons of the last kill have said. */
const char *kills_log(const struct kills *k);

#endif
