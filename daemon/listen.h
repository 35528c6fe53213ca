/*
 * The place where the daemon listens: a Unix socket of mode 0600 in a directory of mode 0700, and a lock file beside
 * it. Whoever holds the lock owns the path: a socket that nobody's lock guards is left over, and is replaced.
 */
#ifndef QUIRE_DAEMON_LISTEN_H
#define QUIRE_DAEMON_LISTEN_H

#include "config/err.h"

struct listen;

/* Take the lock: ERR_BUSY names the process that has it. A path that is too long, that is taken by something which is
 * no socket, or whose directory belongs to somebody else, is refused. */
int listen_open(struct listen **out, const char *socket_path, struct err *err);
/* Bind and listen: from here on clients find us. The descriptor is non-blocking, and the caller's to close. */
int listen_begin(struct listen *l, int *fd, struct err *err);
/* Remove the socket and give up the lock. Takes NULL. */
void listen_close(struct listen *l);

#endif
