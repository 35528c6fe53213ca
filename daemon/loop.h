/*
 * The loop thread: the socket, the clients, timers and signals, and jobs.sqlite. It never waits for the engine: a
 * request becomes a message, and what comes back becomes events and replies; `status` is answered from its own
 * numbers.
 */
#ifndef QUIRE_DAEMON_LOOP_H
#define QUIRE_DAEMON_LOOP_H

#include "config/config.h"
#include "config/err.h"

/* Run the daemon until SIGTERM or SIGINT. Returns 0 when it stopped in good order. Blocks both signals in the calling
 * thread, which must be the only one. */
int loop_run(const struct config *config, const char *socket_path, struct err *err);

#endif
