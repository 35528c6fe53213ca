/*
 * HTTP/1.1 on the Unix socket: libmicrohttpd's connections and parser, driven from outside by the loop's epoll.
 * A request arrives here as one `exchange` whose body is complete; it is answered now or later, by one reply or by a
 * stream of server-sent events.
 *
 * What a client may do to us is bounded here: connections (one too many is told so with 503), the time a request may
 * take to arrive, headers, body, and the bytes it leaves unread. A stream that is silent for HTTP_KEEPALIVE_MS gets a
 * comment, which keeps clients patient and is how a dead one is noticed.
 *
 * All of it belongs to the loop thread; the two callbacks run inside http_run and http_tick.
 */
#ifndef QUIRE_DAEMON_HTTP_H
#define QUIRE_DAEMON_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"

enum {
	HTTP_MAX_CONNECTIONS = 256,
	HTTP_HEADER_BYTES = 64 << 10,
	HTTP_DISCARD_TIMES = 16,       /* a body that is so many times too large is still read to its end before it is refused */
	HTTP_UNREAD_BYTES = 4 << 20,   /* of a stream; a client that leaves more unread is dropped */
	HTTP_REQUEST_MS = 10000,       /* from connection to complete request */
	HTTP_IDLE_S = 30,              /* nothing read or written */
	HTTP_KEEPALIVE_MS = 3000,
};

struct exchange;

struct http_options {
	int listen_fd;          /* bound and listening, non-blocking; closed by http_close */
	size_t body_bytes;      /* larger requests are refused with 413 */
	int64_t keepalive_ms;   /* 0: HTTP_KEEPALIVE_MS */
	int64_t request_ms;     /* 0: HTTP_REQUEST_MS */
	void *ctx;
	/* A request is complete. */
	void (*request)(void *ctx, struct exchange *x);
	/* An exchange that was handed over ends, answered or because its client went; x is gone afterwards. */
	void (*gone)(void *ctx, struct exchange *x);
};

struct http;

int http_open(struct http **out, const struct http_options *opt, struct err *err);
/* Ends every connection; each exchange is reported gone. Takes NULL. */
void http_close(struct http *h);

/* For the loop: readable when http_run has something to do; and at the latest after http_timeout_ms (-1: no limit). */
int http_epoll_fd(const struct http *h);
int64_t http_timeout_ms(const struct http *h);
void http_run(struct http *h);
/* The listening socket is readable. */
void http_accept(struct http *h);
/* About once a second: comments on silent streams, deadlines. */
void http_tick(struct http *h, int64_t now_ms);
size_t http_n_connections(const struct http *h);

const char *exchange_method(const struct exchange *x);
const char *exchange_path(const struct exchange *x);
const char *exchange_body(const struct exchange *x, size_t *bytes);

/* The caller's, to find its own state again. */
void exchange_set_user(struct exchange *x, void *user);
void *exchange_user(const struct exchange *x);

/* Answer with one JSON text, which is freed. header may be NULL, or name a header with its value. */
void exchange_reply(struct exchange *x, int status, char *json, const char *header, const char *value);
/* Answer with an error: a reply, or, on a stream that has begun, its last event. status 0: that of err->code. */
void exchange_error(struct exchange *x, int status, const struct err *err);
/* One event of a stream, begun by the first. The JSON text is freed. */
void exchange_event(struct exchange *x, const char *name, char *json);
/* No further events. */
void exchange_end(struct exchange *x);
bool exchange_is_stream(const struct exchange *x);

#endif
