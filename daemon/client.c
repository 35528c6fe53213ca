#include "daemon/client.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>

#include "config/mem.h"

enum { MAX_LINE = 16 << 20, MAX_REPLY = 256 << 20 };

/* Events. */

static int end_of_line(struct sse *s, int (*event)(void *, const char *, json_t *, struct err *), void *ctx,
		       struct err *err)
{
	const char *line = s->line;
	int result = 0;

	if (s->n_line && line[s->n_line - 1] == '\r')
		s->line[--s->n_line] = '\0';
	if (!strncmp(line, "event:", 6)) {
		snprintf(s->name, sizeof s->name, "%s", line + 6 + (line[6] == ' '));
	} else if (!strncmp(line, "data:", 5)) {
		free(s->data);
		s->data = xstrdup(line + 5 + (line[5] == ' '));
	} else if (!s->n_line && s->data) {
		json_t *data = json_loads(s->data, JSON_ALLOW_NUL, NULL);

		if (data)
			result = event(ctx, s->name, data, err);
		else
			result = err_set(err, ERR_FAILED, "the daemon's event \"%s\" is not JSON", s->name);
		json_decref(data);
		free(s->data);
		s->data = NULL;
		s->name[0] = '\0';
	} /* a comment, or a field we do not know, is nothing */
	s->n_line = 0;
	return result;
}

int sse_feed(struct sse *s, const char *bytes, size_t n,
	     int (*event)(void *ctx, const char *name, json_t *data, struct err *err), void *ctx, struct err *err)
{
	const char *end = bytes + n;

	while (bytes < end) {
		const char *newline = memchr(bytes, '\n', (size_t)(end - bytes));
		size_t piece = (size_t)((newline ? newline : end) - bytes);
		int result;

		if (s->n_line + piece > MAX_LINE)
			return err_set(err, ERR_FAILED, "the daemon sent a line of more than %d bytes", MAX_LINE);
		s->line = xrealloc(s->line, s->n_line + piece + 1, 1);
		memcpy(s->line + s->n_line, bytes, piece);
		s->n_line += piece;
		s->line[s->n_line] = '\0';
		if (!newline)
			break;
		bytes = newline + 1;
		if ((result = end_of_line(s, event, ctx, err)))
			return result;
	}
	return 0;
}

void sse_clear(struct sse *s)
{
	free(s->line);
	free(s->data);
	*s = (struct sse){0};
}

/* Requests. */

struct client {
	char *socket_path;
	int timeout_ms;
	CURL *curl;
	CURLM *multi;

	/* The request in progress. */
	char *reply;             /* of a plain one, or of an error */
	size_t n_reply;
	struct sse sse;
	int (*event)(void *ctx, const char *name, json_t *data, struct err *err);
	void *ctx;
	int stopped;             /* what `event` or sse_feed returned, when not 0 */
	struct err *err;
};

int client_open(struct client **out, const char *socket_path, struct err *err)
{
	struct client *c;

	if (strlen(socket_path) >= sizeof((struct sockaddr_un *)0)->sun_path)
		return err_set(err, ERR_USAGE, "the socket path %s is too long: %zu bytes, and %zu are possible", socket_path,
			       strlen(socket_path), sizeof((struct sockaddr_un *)0)->sun_path - 1);
	if (curl_global_init(CURL_GLOBAL_NOTHING))
		return err_set(err, ERR_FAILED, "libcurl does not start");
	c = xcalloc(1, sizeof *c);
	c->socket_path = xstrdup(socket_path);
	c->curl = curl_easy_init();
	c->multi = curl_multi_init();
	if (!c->curl || !c->multi) {
		client_close(c);
		return err_set(err, ERR_FAILED, "libcurl does not start");
	}
	*out = c;
	return 0;
}

void client_close(struct client *c)
{
	if (!c)
		return;
	curl_easy_cleanup(c->curl);
	curl_multi_cleanup(c->multi);
	curl_global_cleanup();
	sse_clear(&c->sse);
	free(c->reply);
	free(c->socket_path);
	free(c);
}

void client_set_timeout(struct client *c, int ms)
{
	c->timeout_ms = ms;
}

static long http_status(struct client *c)
{
	long status = 0;

	curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
	return status;
}

static size_t on_bytes(char *bytes, size_t size, size_t n, void *ctx)
{
	struct client *c = ctx;

	n *= size;
	if (c->event && http_status(c) == 200) {
		c->stopped = sse_feed(&c->sse, bytes, n, c->event, c->ctx, c->err);
		return c->stopped ? 0 : n;
	}
	if (c->n_reply + n > MAX_REPLY) {
		c->stopped = err_set(c->err, ERR_FAILED, "the daemon's reply has more than %d bytes", MAX_REPLY);
		return 0;
	}
	c->reply = xrealloc(c->reply, c->n_reply + n + 1, 1);
	memcpy(c->reply + c->n_reply, bytes, n);
	c->n_reply += n;
	c->reply[c->n_reply] = '\0';
	return n;
}

static int connection_error(struct client *c, CURLcode code)
{
	long number = 0;

	curl_easy_getinfo(c->curl, CURLINFO_OS_ERRNO, &number);
	if (code == CURLE_OPERATION_TIMEDOUT)
		return err_set(c->err, ERR_DEADLINE, "the daemon at %s has not answered within %d ms", c->socket_path,
			       c->timeout_ms);
	if (code != CURLE_COULDNT_CONNECT)
		return err_set(c->err, ERR_UNREACHABLE, "the daemon at %s went away in the middle: %s", c->socket_path,
			       curl_easy_strerror(code));
	if (number == EACCES || number == EPERM)
		return err_set(c->err, ERR_PERMISSION, "the daemon's socket %s is not yours to use: %s", c->socket_path,
			       strerror((int)number));
	return err_set(c->err, ERR_UNREACHABLE, "no daemon answers at %s (%s): start one with `quire serve`, or name "
		       "its socket with --socket or QUIRE_SOCKET", c->socket_path, strerror(number ? (int)number : ENOENT));
}

/* Run the easy handle to its end, looking up now and then. CURLE_ABORTED_BY_CALLBACK: interrupted. */
static CURLcode run_to_end(struct client *c, const volatile sig_atomic_t *interrupted)
{
	CURLcode code = CURLE_ABORTED_BY_CALLBACK;
	int running = 1, left;
	CURLMsg *m;

	curl_multi_add_handle(c->multi, c->curl);
	while (!(interrupted && *interrupted)) {
		if (curl_multi_perform(c->multi, &running) || !running)
			break;
		curl_multi_poll(c->multi, NULL, 0, 100, NULL);
	}
	while ((m = curl_multi_info_read(c->multi, &left)))
		if (m->msg == CURLMSG_DONE)
			code = m->data.result;
	curl_multi_remove_handle(c->multi, c->curl);
	return code;
}

static int perform(struct client *c, enum api_route route, const char *arg, const char *body,
		   const volatile sig_atomic_t *interrupted, struct err *err)
{
	static const struct timespec pause = {0, 20 * 1000 * 1000};
	bool post = !strcmp(api_method(route), "POST");
	char *path = api_path(route, arg), *url = xasprintf("http://localhost%s", path);
	struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
	long number = 0;
	CURLcode code;

	/* No waiting for 100 Continue: the daemon takes or refuses a body at once. */
	headers = curl_slist_append(headers, "Expect:");
	c->err = err;
	c->n_reply = 0;
	c->stopped = 0;
	sse_clear(&c->sse);
	curl_easy_reset(c->curl);
	curl_easy_setopt(c->curl, CURLOPT_UNIX_SOCKET_PATH, c->socket_path);
	curl_easy_setopt(c->curl, CURLOPT_URL, url);
	curl_easy_setopt(c->curl, CURLOPT_PROTOCOLS_STR, "http");
	curl_easy_setopt(c->curl, CURLOPT_PROXY, "");
	curl_easy_setopt(c->curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c->curl, CURLOPT_TIMEOUT_MS, (long)c->timeout_ms);
	curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, on_bytes);
	curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, c);
	if (post) {
		curl_easy_setopt(c->curl, CURLOPT_POST, 1L);
		curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, body ? body : "");
		curl_easy_setopt(c->curl, CURLOPT_POSTFIELDSIZE, body ? (long)strlen(body) : 0L);
	}
	/* A Unix socket whose backlog is full refuses with EAGAIN at once instead of waiting. */
	for (int tries = 0; tries < 50; tries++) {
		code = run_to_end(c, interrupted);
		curl_easy_getinfo(c->curl, CURLINFO_OS_ERRNO, &number);
		if (code != CURLE_COULDNT_CONNECT || number != EAGAIN)
			break;
		nanosleep(&pause, NULL);
	}
	curl_slist_free_all(headers);
	free(path);
	free(url);
	if (interrupted && *interrupted && code != CURLE_OK)
		return err_set(err, ERR_CANCELLED, "interrupted");
	if (c->stopped)
		return c->stopped < 0 ? -1 : 0;
	if (code != CURLE_OK)
		return connection_error(c, code);
	if (http_status(c) >= 300) {
		api_error_parse(err, (int)http_status(c), c->reply ? c->reply : "", c->n_reply);
		return -1;
	}
	return 0;
}

int client_request(struct client *c, enum api_route route, const char *arg, const char *body, json_t **reply,
		   struct err *err)
{
	c->event = NULL;
	if (perform(c, route, arg, body, NULL, err))
		return -1;
	*reply = json_loadb(c->reply ? c->reply : "", c->n_reply, JSON_ALLOW_NUL, NULL);
	return *reply ? 0 : err_set(err, ERR_FAILED, "the daemon's reply is not JSON");
}

int client_stream(struct client *c, enum api_route route, const char *arg, const char *body,
		  int (*event)(void *ctx, const char *name, json_t *data, struct err *err), void *ctx,
		  const volatile sig_atomic_t *interrupted, struct err *err)
{
	c->event = event;
	c->ctx = ctx;
	return perform(c, route, arg, body, interrupted, err);
}
