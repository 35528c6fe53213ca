/*
 * The command line's side of the socket: requests of api.h by libcurl, replies as JSON, streams event by event.
 * One thread, one request at a time.
 */
#ifndef QUIRE_DAEMON_CLIENT_H
#define QUIRE_DAEMON_CLIENT_H

#include <jansson.h>
#include <signal.h>
#include <stddef.h>

#include "config/err.h"
#include "daemon/api.h"

/* Server-sent events out of bytes that come in any pieces. */
struct sse {
	char *line;
	size_t n_line;
	char *data;
	char name[32];
};

/* One more piece. Each complete event goes to `event`; 1 from it stops the reading (and is returned), -1 is an error.
 * An event whose data is not JSON, or a line of more than 16 MiB, is ERR_FAILED. */
int sse_feed(struct sse *s, const char *bytes, size_t n,
	     int (*event)(void *ctx, const char *name, json_t *data, struct err *err), void *ctx, struct err *err);
void sse_clear(struct sse *s);

struct client;

/* Nothing is connected yet. */
int client_open(struct client **out, const char *socket_path, struct err *err);
/* Takes NULL. */
void client_close(struct client *c);

/* Requests from now on may take this long in all, and are then ERR_DEADLINE; 0, as at first: for ever. */
void client_set_timeout(struct client *c, int ms);

/* body may be NULL; it is not freed. *reply is to be json_decref'ed. A reply that is an error becomes err; no daemon
 * is ERR_UNREACHABLE with the socket and what to do. */
int client_request(struct client *c, enum api_route route, const char *arg, const char *body, json_t **reply,
		   struct err *err);

/* As client_request, for a route that answers with events. Ends with 0 when the stream does, or when `event` returns
 * 1; with ERR_CANCELLED soon after *interrupted is set. The callback only borrows data. */
int client_stream(struct client *c, enum api_route route, const char *arg, const char *body,
		  int (*event)(void *ctx, const char *name, json_t *data, struct err *err), void *ctx,
		  const volatile sig_atomic_t *interrupted, struct err *err);

#endif
