#include "daemon/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "daemon/api.h"

/* One client's connection, from accept to close. */
struct peer {
	struct http *http;
	struct peer *next, **link;
	int fd;
	int64_t since_ms;        /* it was accepted, or its last exchange ended: a request is due */
	struct exchange *exchange; /* in progress: its request is being read, or it is being answered */
};

/* One request and its answer.
 *
 *   READING --complete--> HANDED --reply--> REPLIED        the access handler queues the reply when it runs next
 *                            '---event--> STREAMING        the reader hands out `out` until `ended`
 *
 * MHD suspends a connection that has nothing to do; `suspended` says whether it is ours to resume. */
struct exchange {
	struct http *http;
	struct peer *peer;
	struct MHD_Connection *connection;
	enum { READING, HANDED, REPLIED, STREAMING } state;
	bool suspended, queued, ended;
	bool handed;             /* the loop knows of it */
	char *method, *path;
	char *body;
	size_t body_bytes;
	bool body_too_large;
	void *user;
	int status;
	struct MHD_Response *response;
	char *out;               /* of a stream: bytes [taken, n_out) are still to be sent */
	size_t n_out, taken;
	int64_t last_ms;         /* something was put into out */
};

struct http {
	struct http_options opt;
	struct MHD_Daemon *mhd;
	struct peer *peers;
	size_t n_peers;
	char *refusal;           /* the whole reply to one connection too many */
	bool closing;
};

/* Connections. */

static void peer_add(struct http *h, struct peer *p)
{
	p->next = h->peers;
	p->link = &h->peers;
	if (p->next)
		p->next->link = &p->next;
	h->peers = p;
	h->n_peers++;
}

static void peer_changed(void *ctx, struct MHD_Connection *connection, void **socket_context,
			 enum MHD_ConnectionNotificationCode code)
{
	struct http *h = ctx;
	struct peer *p = *socket_context;

	if (code == MHD_CONNECTION_NOTIFY_STARTED) {
		p = xcalloc(1, sizeof *p);
		p->http = h;
		p->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
		p->since_ms = clock_now_ms();
		peer_add(h, p);
		*socket_context = p;
		return;
	}
	*p->link = p->next;
	if (p->next)
		p->next->link = p->link;
	h->n_peers--;
	free(p);
}

void http_accept(struct http *h)
{
	int fd;

	while ((fd = accept4(h->opt.listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct sockaddr address = {.sa_family = AF_UNIX};

		if (h->n_peers >= HTTP_MAX_CONNECTIONS) {
			/* A courtesy: a socket that takes not even this is closed all the same. */
			if (send(fd, h->refusal, strlen(h->refusal), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
				log_debug("a client was refused and did not listen");
			close(fd);
		} else if (MHD_add_connection(h->mhd, fd, &address, sizeof address.sa_family) != MHD_YES) {
			log_warn("could not take a connection: %s", strerror(errno)); /* MHD closed fd */
		}
	}
	if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
		log_warn("could not accept a connection: %s", strerror(errno));
}

/* Exchanges. */

static void exchange_resume(struct exchange *x)
{
	if (x->suspended) {
		x->suspended = false;
		MHD_resume_connection(x->connection);
	}
}

static void exchange_suspend(struct exchange *x)
{
	x->suspended = true;
	MHD_suspend_connection(x->connection);
}

/* The client goes, by our will: MHD meets the end of its socket and reports the exchange gone. */
static void peer_drop(struct peer *p)
{
	shutdown(p->fd, SHUT_RDWR);
	if (p->exchange)
		exchange_resume(p->exchange);
}

static ssize_t stream_read(void *cls, uint64_t position, char *buffer, size_t most)
{
	struct exchange *x = cls;
	size_t n = x->n_out - x->taken;

	(void)position;
	if (!n) {
		if (x->ended || x->http->closing)
			return MHD_CONTENT_READER_END_OF_STREAM;
		exchange_suspend(x);
		return 0;
	}
	n = n < most ? n : most;
	memcpy(buffer, x->out + x->taken, n);
	x->taken += n;
	if (x->taken == x->n_out)
		x->taken = x->n_out = 0;
	return (ssize_t)n;
}

static void stream_put(struct exchange *x, const char *text, size_t bytes)
{
	if (x->n_out - x->taken + bytes > HTTP_UNREAD_BYTES) {
		if (!x->ended)
			log_info("a client leaves its answer unread: dropped");
		x->ended = true;
		peer_drop(x->peer);
		return;
	}
	if (x->taken) {
		memmove(x->out, x->out + x->taken, x->n_out - x->taken);
		x->n_out -= x->taken;
		x->taken = 0;
	}
	x->out = xrealloc(x->out, x->n_out + bytes, 1);
	memcpy(x->out + x->n_out, text, bytes);
	x->n_out += bytes;
	x->last_ms = clock_now_ms();
	exchange_resume(x);
}

void exchange_event(struct exchange *x, const char *name, char *json)
{
	char *text = xasprintf("event: %s\ndata: %s\n\n", name, json);

	free(json);
	if (x->state == HANDED) {
		x->response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, stream_read, x, NULL);
		MHD_add_response_header(x->response, "Content-Type", "text/event-stream");
		MHD_add_response_header(x->response, "Cache-Control", "no-store");
		x->status = 200;
		x->state = STREAMING;
	}
	if (x->state == STREAMING && !x->ended)
		stream_put(x, text, strlen(text));
	free(text);
}

void exchange_end(struct exchange *x)
{
	x->ended = true;
	exchange_resume(x);
}

void exchange_reply(struct exchange *x, int status, char *json, const char *header, const char *value)
{
	if (x->state != HANDED) {
		free(json);
		return;
	}
	x->response = MHD_create_response_from_buffer(strlen(json), json, MHD_RESPMEM_MUST_FREE);
	MHD_add_response_header(x->response, "Content-Type", "application/json");
	if (header)
		MHD_add_response_header(x->response, header, value);
	x->status = status;
	x->state = REPLIED;
	exchange_resume(x);
}

void exchange_error(struct exchange *x, int status, const struct err *err)
{
	status = status ? status : err_http_status(err->code);
	if (x->state == STREAMING) {
		exchange_event(x, "error", api_error_format(err));
		exchange_end(x);
	} else {
		exchange_reply(x, status, api_error_format(err), status == 429 ? "Retry-After" : NULL, "5");
	}
}

bool exchange_is_stream(const struct exchange *x)
{
	return x->state == STREAMING;
}

const char *exchange_method(const struct exchange *x)
{
	return x->method;
}

const char *exchange_path(const struct exchange *x)
{
	return x->path;
}

const char *exchange_body(const struct exchange *x, size_t *bytes)
{
	*bytes = x->body_bytes;
	return x->body ? x->body : "";
}

void exchange_set_user(struct exchange *x, void *user)
{
	x->user = user;
}

void *exchange_user(const struct exchange *x)
{
	return x->user;
}

/* What MHD calls. */

static enum MHD_Result refuse_body(struct exchange *x)
{
	struct err err;

	err_set(&err, ERR_USAGE, "the body has more than %zu bytes", x->http->opt.body_bytes);
	x->state = HANDED;
	exchange_error(x, 413, &err);
	x->queued = true;
	return MHD_queue_response(x->connection, (unsigned)x->status, x->response);
}

/* Who sends without waiting to be asked meets a closed connection if the answer comes first, and may not look for it there: so what is
 * left of a body that is not much too large is read and thrown away. The rest is refused before a byte of it is read. */
static bool is_refused_at_once(const struct http *h, struct MHD_Connection *connection, uint64_t body_bytes)
{
	return body_bytes / HTTP_DISCARD_TIMES > h->opt.body_bytes || MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Expect");
}

/* MHD calls this once with the headers, once for each piece of the body, once when it is complete, and once more
 * after each resume. */
static enum MHD_Result on_request(void *ctx, struct MHD_Connection *connection, const char *path, const char *method,
				  const char *version, const char *data, size_t *n_data, void **con_cls)
{
	struct http *h = ctx;
	struct exchange *x = *con_cls;

	(void)version;
	if (!x) {
		const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Content-Length");

		*con_cls = x = xcalloc(1, sizeof *x);
		x->http = h;
		x->connection = connection;
		x->peer = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
		x->peer->exchange = x;
		x->method = xstrdup(method);
		x->path = xstrdup(path);
		x->body_too_large = length && strtoull(length, NULL, 10) > h->opt.body_bytes; /* MHD has checked that it is a number */
		if (x->body_too_large && is_refused_at_once(h, connection, strtoull(length, NULL, 10)))
			return refuse_body(x);
		return MHD_YES;
	}
	if (*n_data) {
		/* A chunked body tells its size as it comes. No answer is possible in its middle. */
		x->body_too_large |= x->body_bytes + *n_data > h->opt.body_bytes;
		if (!x->body_too_large) {
			x->body = xrealloc(x->body, x->body_bytes + *n_data + 1, 1);
			memcpy(x->body + x->body_bytes, data, *n_data);
			x->body_bytes += *n_data;
			x->body[x->body_bytes] = '\0';
		}
		*n_data = 0;
		return MHD_YES;
	}
	if (x->state == READING && x->body_too_large)
		return refuse_body(x);
	if (x->state == READING) {
		x->state = HANDED;
		x->handed = true;
		x->last_ms = clock_now_ms();
		h->opt.request(h->opt.ctx, x);
	}
	if (x->state == HANDED) {
		if (h->closing)
			return MHD_NO;
		exchange_suspend(x);
		return MHD_YES;
	}
	if (x->queued)
		return MHD_YES;
	x->queued = true;
	return MHD_queue_response(connection, (unsigned)x->status, x->response);
}

static void on_completed(void *ctx, struct MHD_Connection *connection, void **con_cls,
			 enum MHD_RequestTerminationCode code)
{
	struct http *h = ctx;
	struct exchange *x = *con_cls;

	(void)connection;
	(void)code;
	if (!x)
		return;
	*con_cls = NULL;
	x->peer->exchange = NULL;
	x->peer->since_ms = clock_now_ms();
	if (x->handed)
		h->opt.gone(h->opt.ctx, x);
	if (x->response)
		MHD_destroy_response(x->response);
	free(x->method);
	free(x->path);
	free(x->body);
	free(x->out);
	free(x);
}

static void on_log(void *ctx, const char *format, va_list args)
{
	char text[512];

	(void)ctx;
	vsnprintf(text, sizeof text, format, args);
	text[strcspn(text, "\n")] = '\0';
	/* A Unix socket has none of the options of TCP that the library tries at each reply. */
	if (!strstr(text, "TCP_") && !strstr(text, "push the data"))
		log_debug("http: %s", text);
}

/* A path stays as it came: api_route_find decodes it, once. */
static size_t leave_escaped(void *ctx, struct MHD_Connection *connection, char *text)
{
	(void)ctx;
	(void)connection;
	return strlen(text);
}

static char *format_refusal(void)
{
	struct err err;
	char *body, *whole;

	err_set(&err, ERR_BUSY, "%d clients are connected already: try again", HTTP_MAX_CONNECTIONS);
	body = api_error_format(&err);
	whole = xasprintf("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
			  "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
	free(body);
	return whole;
}

int http_open(struct http **out, const struct http_options *opt, struct err *err)
{
	struct http *h = xcalloc(1, sizeof *h);

	h->opt = *opt;
	if (!h->opt.keepalive_ms)
		h->opt.keepalive_ms = HTTP_KEEPALIVE_MS;
	if (!h->opt.request_ms)
		h->opt.request_ms = HTTP_REQUEST_MS;
	h->mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET |
					  MHD_USE_ERROR_LOG,
				  0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
				  MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_NOTIFY_CONNECTION,
				  peer_changed, h, MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_MAX_CONNECTIONS,
				  MHD_OPTION_UNESCAPE_CALLBACK, leave_escaped, NULL, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)HTTP_IDLE_S,
				  MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HTTP_HEADER_BYTES, MHD_OPTION_END);
	h->refusal = format_refusal();
	if (!h->mhd) {
		free(h->refusal);
		free(h);
		return err_set(err, ERR_FAILED, "libmicrohttpd does not start: %s", strerror(errno));
	}
	*out = h;
	return 0;
}

void http_close(struct http *h)
{
	if (!h)
		return;
	h->closing = true;
	for (struct peer *p = h->peers; p; p = p->next)
		if (p->exchange) {
			p->exchange->ended = true;
			exchange_resume(p->exchange);
		}
	/* What was said last still goes out; MHD may not be stopped with suspended connections. */
	MHD_run(h->mhd);
	MHD_run(h->mhd);
	MHD_stop_daemon(h->mhd);
	close(h->opt.listen_fd);
	free(h->refusal);
	free(h);
}

int http_epoll_fd(const struct http *h)
{
	return MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
}

int64_t http_timeout_ms(const struct http *h)
{
	MHD_UNSIGNED_LONG_LONG ms;

	return MHD_get_timeout(h->mhd, &ms) == MHD_YES ? (int64_t)ms : -1;
}

void http_run(struct http *h)
{
	MHD_run(h->mhd);
}

size_t http_n_connections(const struct http *h)
{
	return h->n_peers;
}

void http_tick(struct http *h, int64_t now)
{
	static const char comment[] = ": still here\n\n";

	for (struct peer *p = h->peers; p; p = p->next) {
		struct exchange *x = p->exchange;

		if (!x || x->state == READING) {
			/* Since its last request ended, or it came: a byte now and then does not count. */
			if (now - p->since_ms > h->opt.request_ms)
				peer_drop(p);
		} else if (x->state == STREAMING && !x->ended && now - x->last_ms >= h->opt.keepalive_ms) {
			stream_put(x, comment, sizeof comment - 1);
		}
	}
}
