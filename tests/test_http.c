#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "config/mem.h"
#include "daemon/http.h"
#include "daemon/listen.h"
#include "tests/support/temp_dir.h"

/* A server whose loop is this test: it moves when `run_for` says so. */
struct server {
	char *dir, *path;
	struct listen *listen;
	struct http *http;
	int n_requests, n_gone;
	struct exchange *last;   /* the last request, while it lives */
	bool reply_at_once;
};

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void on_request(void *ctx, struct exchange *x)
{
	struct server *s = ctx;
	size_t bytes;

	s->n_requests++;
	s->last = x;
	exchange_body(x, &bytes);
	if (s->reply_at_once)
		exchange_reply(x, 200, xasprintf("{\"bytes\":%zu}", bytes), NULL, NULL);
}

static void on_gone(void *ctx, struct exchange *x)
{
	struct server *s = ctx;

	s->n_gone++;
	if (s->last == x)
		s->last = NULL;
}

static void run_for(struct server *s, int64_t ms)
{
	int64_t end = now_ms() + ms;

	do {
		struct pollfd p = {.fd = http_epoll_fd(s->http), .events = POLLIN};

		poll(&p, 1, 2);
		http_accept(s->http);
		http_tick(s->http, now_ms());
		http_run(s->http);
	} while (now_ms() < end);
}

static int setup(void **state)
{
	struct http_options opt = {.body_bytes = 1000, .keepalive_ms = 50, .request_ms = 200};
	struct server *s = xcalloc(1, sizeof *s);
	struct err err;

	s->dir = temp_dir_new();
	s->path = temp_path(s->dir, "run/quire.sock");
	s->reply_at_once = true;
	opt.ctx = s;
	opt.request = on_request;
	opt.gone = on_gone;
	assert_int_equal(listen_open(&s->listen, s->path, &err), 0);
	assert_int_equal(listen_begin(s->listen, &opt.listen_fd, &err), 0);
	assert_int_equal(http_open(&s->http, &opt, &err), 0);
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct server *s = *state;

	http_close(s->http);
	listen_close(s->listen);
	temp_dir_free(s->dir);
	free(s->path);
	free(s);
	return 0;
}

static int connect_to(struct server *s)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%s", s->path);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
	return fd;
}

static void say(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* All that has come, as a string; "" for nothing, NULL when the other end is closed and nothing is left. */
static char *hear(int fd, char out[8192])
{
	ssize_t n = recv(fd, out, 8191, 0);

	if (!n)
		return NULL;
	out[n > 0 ? n : 0] = '\0';
	return out;
}

static bool is_closed(int fd)
{
	char rest[8192];

	for (int i = 0; i < 100000; i++) {
		ssize_t n = recv(fd, rest, sizeof rest, 0);

		if (n <= 0)
			return n == 0 || errno != EAGAIN;
	}
	return false;
}

static void a_request_is_handed_over_whole_and_answered(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);
	char text[8192];

	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n123");
	run_for(s, 20);
	assert_int_equal(s->n_requests, 0);
	say(fd, "4567");
	run_for(s, 20);
	assert_int_equal(s->n_requests, 1);
	assert_non_null(hear(fd, text));
	assert_memory_equal(text, "HTTP/1.1 200", 12);
	assert_non_null(strstr(text, "{\"bytes\":7}"));
	assert_int_equal(s->n_gone, 1);
	close(fd);
}

static void a_reply_may_come_later(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);
	char text[8192];

	s->reply_at_once = false;
	say(fd, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
	run_for(s, 20);
	assert_string_equal(hear(fd, text), "");
	assert_string_equal(exchange_method(s->last), "GET");
	assert_string_equal(exchange_path(s->last), "/healthz");
	exchange_reply(s->last, 503, xstrdup("{}"), "Retry-After", "5");
	run_for(s, 20);
	assert_non_null(hear(fd, text));
	assert_memory_equal(text, "HTTP/1.1 503", 12);
	assert_non_null(strstr(text, "Retry-After: 5"));
	close(fd);
}

static void a_stream_gives_its_events_one_by_one_and_ends(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);
	char text[8192];

	s->reply_at_once = false;
	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
	run_for(s, 20);
	exchange_event(s->last, "token", xstrdup("{\"text\":\"a\"}"));
	run_for(s, 20);
	assert_non_null(hear(fd, text));
	assert_non_null(strstr(text, "text/event-stream"));
	assert_non_null(strstr(text, "event: token\ndata: {\"text\":\"a\"}\n\n"));
	exchange_event(s->last, "token", xstrdup("{\"text\":\"b\"}"));
	exchange_event(s->last, "done", xstrdup("{}"));
	exchange_end(s->last);
	run_for(s, 20);
	assert_non_null(hear(fd, text));
	assert_non_null(strstr(text, "\"b\"}\n\nevent: done\ndata: {}\n\n"));
	assert_non_null(strstr(text, "\r\n0\r\n\r\n"));
	assert_int_equal(s->n_gone, 1);
	close(fd);
}

static void an_error_in_a_stream_is_its_last_event(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);
	char text[8192];
	struct err err;

	s->reply_at_once = false;
	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
	run_for(s, 20);
	exchange_event(s->last, "phase", xstrdup("{}"));
	err_set(&err, ERR_DAMAGED, "span 7 is damaged");
	exchange_error(s->last, 0, &err);
	run_for(s, 20);
	assert_non_null(hear(fd, text));
	assert_non_null(strstr(text, "event: error\ndata: {\"error\":{\"code\":\"store_damaged\",\"message\":\"span 7 is "
				     "damaged\""));
	assert_int_equal(s->n_gone, 1);
	close(fd);
}

static void a_silent_stream_gets_comments(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);
	char text[8192];

	s->reply_at_once = false;
	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
	run_for(s, 20);
	exchange_event(s->last, "phase", xstrdup("{}"));
	run_for(s, 20);
	hear(fd, text);
	run_for(s, 120);
	assert_non_null(hear(fd, text));
	assert_non_null(strstr(text, ": still here\n\n"));
	close(fd);
}

static void a_client_that_went_is_noticed_within_a_comment(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);

	s->reply_at_once = false;
	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
	run_for(s, 20);
	exchange_event(s->last, "phase", xstrdup("{}"));
	run_for(s, 10);
	close(fd);
	assert_int_equal(s->n_gone, 0);
	run_for(s, 150);
	assert_int_equal(s->n_gone, 1);
}

static void a_client_that_never_reads_is_dropped(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);

	s->reply_at_once = false;
	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
	run_for(s, 20);
	for (int i = 0; i < 200 && s->last; i++) {
		char *text = xmalloc(65537, 1);

		memset(text, 'x', 65536);
		text[65536] = '\0';
		exchange_event(s->last, "token", text);
		run_for(s, 1);
	}
	run_for(s, 20);
	assert_int_equal(s->n_gone, 1);
	close(fd);
}

static void a_large_body_is_refused_before_it_is_read(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);
	char text[8192];

	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n");
	run_for(s, 20);
	assert_non_null(hear(fd, text));
	assert_memory_equal(text, "HTTP/1.1 413", 12);
	assert_int_equal(s->n_requests, 0);
	assert_int_equal(s->n_gone, 0);
	close(fd);
}

/* Who has asked first is told at once; who sends at once is told when all is sent, and not cut off in between. */
static void a_body_that_is_somewhat_too_large_is_read_before_it_is_refused(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);
	char text[8192], body[5001];

	memset(body, 'x', 5000);
	body[5000] = '\0';
	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n");
	run_for(s, 20);
	assert_int_equal(recv(fd, text, sizeof text, MSG_DONTWAIT), -1);
	say(fd, body);
	run_for(s, 20);
	assert_non_null(hear(fd, text));
	assert_memory_equal(text, "HTTP/1.1 413", 12);
	close(fd);
	fd = connect_to(s);
	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n");
	run_for(s, 20);
	assert_non_null(hear(fd, text));
	assert_memory_equal(text, "HTTP/1.1 413", 12);
	assert_int_equal(s->n_requests, 0);
	close(fd);
}

static void a_large_body_in_chunks_is_refused_at_its_end(void **state)
{
	struct server *s = *state;
	int fd = connect_to(s);
	char text[8192];

	say(fd, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
	for (int i = 0; i < 20; i++) {
		say(fd, "64\r\n0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"
			"456789\r\n");
		run_for(s, 1);
	}
	say(fd, "0\r\n\r\n");
	run_for(s, 20);
	assert_non_null(hear(fd, text));
	assert_memory_equal(text, "HTTP/1.1 413", 12);
	assert_int_equal(s->n_requests, 0);
	close(fd);
}

static void what_is_not_http_is_refused(void **state)
{
	static const char *const bad[] = {
		"\r\n\r\n\r\n\r\nrubbish\r\n\r\n",
		"GET / HTTP/9.9\r\n\r\n",
		"POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
		"POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"\x16\x03\x01\x02",
	};
	struct server *s = *state;

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		int fd = connect_to(s);

		say(fd, bad[i]);
		run_for(s, 260);
		assert_true(is_closed(fd));
		close(fd);
	}
	assert_int_equal(s->n_requests, 0);
	assert_int_equal(http_n_connections(s->http), 0);
}

static void headers_without_end_are_refused(void **state)
{
	struct server *s = *state;
	char line[1024];
	int fd = connect_to(s);

	memset(line, 'a', sizeof line);
	memcpy(line, "X: ", 3);
	memcpy(line + sizeof line - 3, "\r\n", 3);
	say(fd, "GET /healthz HTTP/1.1\r\nHost: x\r\n");
	for (int i = 0; i < 100; i++)
		if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
			break;
	run_for(s, 260);
	assert_int_equal(s->n_requests, 0);
	assert_true(is_closed(fd));
	close(fd);
}

/* A byte now and then keeps a connection active for ever; what counts is when it came. */
static void a_slow_request_is_dropped_and_hinders_nobody(void **state)
{
	struct server *s = *state;
	int slow = connect_to(s), quick;
	char text[8192];

	for (int i = 0; i < 12; i++) {
		/* The server may have hung up already. */
		send(slow, "G", 1, MSG_NOSIGNAL);
		run_for(s, 30);
	}
	assert_true(is_closed(slow));
	quick = connect_to(s);
	say(quick, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
	run_for(s, 20);
	assert_non_null(hear(quick, text));
	assert_memory_equal(text, "HTTP/1.1 200", 12);
	close(slow);
	close(quick);
}

static void one_connection_too_many_is_told_so(void **state)
{
	struct server *s = *state;
	int fds[HTTP_MAX_CONNECTIONS + 1];
	char text[8192];

	for (int i = 0; i <= HTTP_MAX_CONNECTIONS; i++) {
		fds[i] = connect_to(s);
		if (i % 64 == 0)
			run_for(s, 0);
	}
	run_for(s, 10);
	assert_int_equal(http_n_connections(s->http), HTTP_MAX_CONNECTIONS);
	assert_non_null(hear(fds[HTTP_MAX_CONNECTIONS], text));
	assert_memory_equal(text, "HTTP/1.1 503", 12);
	assert_non_null(strstr(text, "\"code\":\"busy\""));
	close(fds[0]);
	run_for(s, 10);
	close(fds[HTTP_MAX_CONNECTIONS]);
	fds[0] = connect_to(s);
	say(fds[0], "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
	run_for(s, 20);
	assert_non_null(hear(fds[0], text));
	assert_memory_equal(text, "HTTP/1.1 200", 12);
	for (int i = 0; i < HTTP_MAX_CONNECTIONS; i++)
		close(fds[i]);
}

static void closing_ends_what_is_in_progress(void **state)
{
	struct server *s = *state;
	int waits = connect_to(s), streams = connect_to(s), half = connect_to(s);
	int fd;
	struct err err;
	struct http_options opt = {.body_bytes = 1000, .ctx = s, .request = on_request, .gone = on_gone};

	s->reply_at_once = false;
	say(streams, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
	run_for(s, 20);
	exchange_event(s->last, "phase", xstrdup("{}"));
	say(waits, "POST /api/v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
	say(half, "POST /api/v1/ask HTTP/1.1\r\nHo");
	run_for(s, 20);
	http_close(s->http);
	assert_int_equal(s->n_gone, 2);
	assert_true(is_closed(waits) && is_closed(streams) && is_closed(half));
	close(waits);
	close(streams);
	close(half);
	assert_int_equal(listen_begin(s->listen, &fd, &err), 0);
	opt.listen_fd = fd;
	assert_int_equal(http_open(&s->http, &opt, &err), 0);
}

static void the_socket_is_for_its_owner_alone(void **state)
{
	struct server *s = *state;
	char *dir = temp_path(s->dir, "run");
	struct stat st;

	assert_int_equal(stat(s->path, &st), 0);
	assert_true(S_ISSOCK(st.st_mode));
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(stat(dir, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	free(dir);
}

static void a_socket_in_use_is_refused_with_the_process_that_has_it(void **state)
{
	struct server *s = *state;
	struct listen *second;
	struct err err;
	char pid[32];

	assert_int_equal(listen_open(&second, s->path, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	snprintf(pid, sizeof pid, "process %d", (int)getpid());
	assert_non_null(strstr(err.text, pid));
	assert_non_null(strstr(err.text, s->path));
}

static void a_socket_that_nobody_holds_is_replaced(void **state)
{
	struct server *s = *state;
	char *path = temp_path(s->dir, "stale.sock");
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int old = socket(AF_UNIX, SOCK_STREAM, 0), fd;
	struct listen *l;
	struct err err;

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	assert_int_equal(bind(old, (struct sockaddr *)&a, sizeof a), 0);
	close(old);
	assert_int_equal(listen_open(&l, path, &err), 0);
	assert_int_equal(listen_begin(l, &fd, &err), 0);
	close(fd);
	listen_close(l);
	assert_int_equal(access(path, F_OK), -1);
	free(path);
}

static void what_is_no_place_for_a_socket_is_refused(void **state)
{
	struct server *s = *state;
	char *file = temp_text(s->dir, "file", "precious"), *longest = temp_path(s->dir, "");
	char *open_dir = temp_path(s->dir, "open"), *in_open = temp_path(s->dir, "open/quire.sock");
	struct listen *l;
	struct err err;
	int fd;

	assert_int_equal(listen_open(&l, file, &err), 0);
	assert_int_equal(listen_begin(l, &fd, &err), -1);
	assert_non_null(strstr(err.text, "not a socket"));
	listen_close(l);
	assert_int_equal(access(file, F_OK), 0);

	longest = xrealloc(longest, 200, 1);
	memset(longest + strlen(longest), 'x', 150 - strlen(longest));
	longest[150] = '\0';
	assert_int_equal(listen_open(&l, longest, &err), -1);
	assert_non_null(strstr(err.text, "150 bytes, and 107"));

	mkdir(open_dir, 0700);
	chmod(open_dir, 0777);
	assert_int_equal(listen_open(&l, in_open, &err), -1);
	assert_int_equal(err.code, ERR_PERMISSION);
	free(file);
	free(longest);
	free(open_dir);
	free(in_open);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(a_request_is_handed_over_whole_and_answered),
		CASE(a_reply_may_come_later),
		CASE(a_stream_gives_its_events_one_by_one_and_ends),
		CASE(an_error_in_a_stream_is_its_last_event),
		CASE(a_silent_stream_gets_comments),
		CASE(a_client_that_went_is_noticed_within_a_comment),
		CASE(a_client_that_never_reads_is_dropped),
		CASE(a_large_body_is_refused_before_it_is_read),
		CASE(a_body_that_is_somewhat_too_large_is_read_before_it_is_refused),
		CASE(a_large_body_in_chunks_is_refused_at_its_end),
		CASE(what_is_not_http_is_refused),
		CASE(headers_without_end_are_refused),
		CASE(a_slow_request_is_dropped_and_hinders_nobody),
		CASE(one_connection_too_many_is_told_so),
		CASE(closing_ends_what_is_in_progress),
		CASE(the_socket_is_for_its_owner_alone),
		CASE(a_socket_in_use_is_refused_with_the_process_that_has_it),
		CASE(a_socket_that_nobody_holds_is_replaced),
		CASE(what_is_no_place_for_a_socket_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
