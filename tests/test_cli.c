#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "config/mem.h"
#include "daemon/cli.h"
#include "daemon/client.h"
#include "daemon/print.h"
#include "tests/support/temp_dir.h"

enum { MAX_ARGS = 16 };

/* What one command line printed. */
struct said {
	int status;
	char out[16384], err[4096];
};

static void read_back(FILE *f, char *text, size_t bytes)
{
	size_t n;

	rewind(f);
	n = fread(text, 1, bytes - 1, f);
	text[n] = '\0';
	fclose(f);
}

/* Run `quire WORDS`, its two outputs into files. */
static struct said quire(const char *first, ...)
{
	static struct said s;
	char *argv[MAX_ARGS + 1] = {"quire"};
	FILE *out = tmpfile(), *err = tmpfile();
	int argc = 1, old_out, old_err;
	va_list words;

	va_start(words, first);
	for (const char *w = first; w && argc < MAX_ARGS; w = va_arg(words, const char *))
		argv[argc++] = xstrdup(w);
	va_end(words);
	fflush(NULL);
	old_out = dup(1);
	old_err = dup(2);
	dup2(fileno(out), 1);
	dup2(fileno(err), 2);
	s.status = cli_main(argc, argv);
	fflush(NULL);
	dup2(old_out, 1);
	dup2(old_err, 2);
	close(old_out);
	close(old_err);
	read_back(out, s.out, sizeof s.out);
	read_back(err, s.err, sizeof s.err);
	for (int i = 1; i < argc; i++)
		free(argv[i]);
	return s;
}

static void help_lists_every_verb_and_explains_each(void **state)
{
	static const char *const verbs[] = {"ingest", "reindex", "ask",   "corpora", "jobs",    "cancel", "status", "check", "repair", "rm", "snapshots", "forget", "diff", "files", "show",
					    "plan", "tune", "doctor", "serve", "model",   "version", "help"};
	struct said all = quire("help", NULL);

	(void)state;
	assert_int_equal(all.status, 0);
	assert_string_equal(all.err, "");
	for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
		struct said one;

		assert_non_null(strstr(all.out, verbs[i]));
		one = quire("help", verbs[i], NULL);
		assert_int_equal(one.status, 0);
		assert_non_null(strstr(one.out, "usage: quire "));
	}
	assert_non_null(strstr(quire("help", "ask", NULL).out, "--max-tokens N"));
	assert_non_null(strstr(quire("ask", "--help", NULL).out, "--temperature X"));
	assert_null(strstr(quire("help", "jobs", NULL).out, "--temperature"));
}

static void the_version_goes_to_stdout(void **state)
{
	(void)state;
	assert_string_equal(quire("version", NULL).out, "quire " QUIRE_VERSION "\n");
	assert_string_equal(quire("--version", NULL).out, "quire " QUIRE_VERSION "\n");
	assert_string_equal(quire("--json", "version", NULL).out,
			    "{\"type\":\"version\",\"v\":1,\"version\":\"" QUIRE_VERSION "\"}\n");
}

static void misuse_is_status_2_and_names_what_was_wrong(void **state)
{
	static const struct {
		const char *words[6];
		const char *word;
	} bad[] = {
		{{"frobnicate"}, "frobnicate"},
		{{"--frob", "status"}, "--frob"},
		{{"status", "now"}, "status takes no arguments"},
		{{"ask", "linux"}, "NAME QUESTION"},
		{{"ask", "linux", ""}, "empty"},
		{{"ask", "a/b", "why?"}, "a/b"},
		{{"ask", "linux", "why?", "--max-tokens"}, "--max-tokens"},
		{{"ask", "linux", "why?", "--max-tokens", "many"}, "many"},
		{{"ask", "linux", "why?", "--max-tokens", "0"}, "--max-tokens"},
		{{"ask", "linux", "why?", "--temperature", "nan"}, "--temperature"},
		{{"ask", "linux", "why?", "--as", "x"}, "--as"},
		{{"ingest", "/tmp"}, "--as"},
		{{"ingest", "/tmp", "--as", "-x"}, "-x"},
		{{"ingest", "/tmp", "--as", "x", "--order-from", "y@z"}, "y@z"},
		{{"jobs", "first"}, "first"},
		{{"cancel"}, "JOB"},
		{{"rm"}, "NAME"},
		{{"rm", "a/b"}, "a/b"},
		{{"check", "--read-data=0"}, "--read-data"},
		{{"check", "--read-data=101%"}, "101%"},
		{{"check", "--seed", "x"}, "--seed"},
		{{"repair", "--read-data"}, "--read-data"},
		{{"show"}, "NAME[@ID] [PATH"},
		{{"show", "a@0"}, "a@0"},
		{{"show", "a", "b", "c"}, "NAME[@ID] [PATH"},
		{{"files", "a@1", "--snapshot", "2"}, "one is enough"},
		{{"files", "a", "--snapshot", "x"}, "--snapshot"},
		{{"diff"}, "NAME[@ID] [NAME[@ID]]"},
		{{"diff", "a@b"}, "a@b"},
		{{"diff", "a", "b c"}, "b c"},
		{{"tune"}, "MODEL"},
		{{"tune", "tests/golden/glm52", "--threads", "0"}, "--threads"},
		{{"tune", "tests/golden/glm52", "--threads", "many"}, "many"},
		{{"help", "frobnicate"}, "frobnicate"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct said s = quire(bad[i].words[0], bad[i].words[1], bad[i].words[2], bad[i].words[3],
				      bad[i].words[4], bad[i].words[5], NULL);

		assert_int_equal(s.status, 2);
		assert_string_equal(s.out, "");
		assert_memory_equal(s.err, "quire: ", 7);
		if (!strstr(s.err, bad[i].word))
			fail_msg("%s does not name %s", s.err, bad[i].word);
	}
	assert_int_equal(quire(NULL).status, 2);
}

static void no_daemon_is_status_5_with_the_socket_and_what_to_do(void **state)
{
	char *dir = temp_dir_new(), *socket = temp_path(dir, "quire.sock");
	struct said s = quire("--socket", socket, "status", NULL);

	(void)state;
	assert_int_equal(s.status, 5);
	assert_non_null(strstr(s.err, socket));
	assert_non_null(strstr(s.err, "quire serve"));
	s = quire("status", "--json", "--socket", socket, NULL);
	assert_int_equal(s.status, 5);
	assert_ptr_equal(strstr(s.err, "{\"type\":\"error\",\"v\":1,\"error\":{\"code\":\"unreachable\","), s.err);
	free(socket);
	temp_dir_free(dir);
}

static void a_directory_is_looked_at_before_the_daemon_is_asked(void **state)
{
	char *dir = temp_dir_new(), *socket = temp_path(dir, "quire.sock"), *file = temp_text(dir, "file", "x");
	struct said s = quire("--socket", socket, "ingest", "/no/such/place\x1b[2J", "--as", "x", NULL);

	(void)state;
	assert_int_equal(s.status, 4);
	assert_string_equal(s.err, "quire: /no/such/place\\x1b[2J: No such file or directory\n");
	s = quire("--socket", socket, "ingest", file, "--as", "x", NULL);
	assert_int_equal(s.status, 2);
	assert_non_null(strstr(s.err, "not a directory"));
	free(socket);
	free(file);
	temp_dir_free(dir);
}

/* A daemon that hangs: it listens, and never answers. */
static void a_request_with_a_timeout_does_not_wait_for_ever(void **state)
{
	char *dir = temp_dir_new(), *path = temp_path(dir, "quire.sock");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct client *client;
	json_t *reply = NULL;
	struct err err;

	(void)state;
	memcpy(address.sun_path, path, strlen(path) + 1);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(client_open(&client, path, &err), 0);
	client_set_timeout(client, 50);
	assert_int_equal(client_request(client, API_STATUS, NULL, NULL, &reply, &err), -1);
	assert_int_equal(err.code, ERR_DEADLINE);
	assert_non_null(strstr(err.text, path));
	assert_non_null(strstr(err.text, "has not answered within 50 ms"));
	client_close(client);
	close(fd);
	free(path);
	temp_dir_free(dir);
}

static void the_doctor_ends_with_1_when_something_fails(void **state)
{
	char *dir = temp_dir_new(), *socket = temp_path(dir, "quire.sock");
	char *text = xasprintf("version: 1\nstore: {path: %s/store}\n", dir), *good = temp_text(dir, "good.yaml", text);
	char *bad = temp_text(dir, "bad.yaml", "version: 3\n");
	struct said s = quire("doctor", "--config", good, "--socket", socket, NULL);

	(void)state;
	assert_int_equal(s.status, 0);
	assert_string_equal(s.err, "");
	assert_non_null(strstr(s.out, ", 0 fail\n"));
	s = quire("doctor", "--config", bad, "--socket", socket, "--json", NULL);
	assert_int_equal(s.status, 1);
	assert_ptr_equal(strstr(s.out, "{\"type\":\"finding\",\"v\":1,\"level\":\"fail\",\"name\":\"config\","), s.out);
	assert_non_null(strstr(s.out, "\"fail\":1}\n"));
	free(good);
	free(bad);
	free(text);
	free(socket);
	temp_dir_free(dir);
}

/* Events. */

struct heard {
	char text[1024];
	int stop_after;
};

static int on_event(void *ctx, const char *name, json_t *data, struct err *err)
{
	struct heard *h = ctx;
	char *json = json_dumps(data, JSON_COMPACT);

	(void)err;
	snprintf(h->text + strlen(h->text), sizeof h->text - strlen(h->text), "%s=%s;", name, json);
	free(json);
	return h->stop_after && !--h->stop_after;
}

static const char stream[] = ": still here\n\nevent: phase\r\ndata: {\"phase\":\"load\"}\r\n\r\nevent:token\ndata:[1]\n\n"
			     "id: 7\nretry: 1\n\nevent: done\ndata: {}\n\n";

static void events_are_the_same_in_whatever_pieces_they_come(void **state)
{
	(void)state;
	for (size_t piece = 1; piece < sizeof stream; piece++) {
		struct heard h = {0};
		struct sse s = {0};
		struct err err;

		for (size_t i = 0; i < sizeof stream - 1; i += piece) {
			size_t left = sizeof stream - 1 - i;

			assert_int_equal(sse_feed(&s, stream + i, left < piece ? left : piece, on_event, &h, &err), 0);
		}
		assert_string_equal(h.text, "phase={\"phase\":\"load\"};token=[1];done={};");
		sse_clear(&s);
	}
}

static void events_stop_when_they_are_told_to(void **state)
{
	struct heard h = {.stop_after = 2};
	struct sse s = {0};
	struct err err;

	(void)state;
	assert_int_equal(sse_feed(&s, stream, sizeof stream - 1, on_event, &h, &err), 1);
	assert_string_equal(h.text, "phase={\"phase\":\"load\"};token=[1];");
	sse_clear(&s);
}

static void an_event_that_is_not_json_is_an_error(void **state)
{
	static const char text[] = "event: token\ndata: {oops\n\n";
	struct heard h = {0};
	struct sse s = {0};
	struct err err;

	(void)state;
	assert_int_equal(sse_feed(&s, text, sizeof text - 1, on_event, &h, &err), -1);
	assert_int_equal(err.code, ERR_FAILED);
	sse_clear(&s);
}

/* Printing. */

static void what_a_model_says_cannot_drive_the_terminal(void **state)
{
	static const char hostile[] = "a\tb\n\x1b]0;x\x07 \xe2\x80\xae \xff\n";
	char text[256];
	FILE *f = tmpfile();

	(void)state;
	print_text(f, hostile, sizeof hostile - 1);
	read_back(f, text, sizeof text);
	assert_string_equal(text, "a\tb\n\\x1b]0;x\\x07 \\u202e \\xff\n");
	f = tmpfile();
	print_line(f, "two\nlines");
	read_back(f, text, sizeof text);
	assert_string_equal(text, "two\\nlines");
}

static void the_pace_is_told_once_it_is_known(void **state)
{
	char out[PRINT_PACE_BYTES];

	(void)state;
	assert_string_equal(print_pace(out, 6200, 20000, 36270), "  310 tokens/s, 0:01:57 left");
	assert_string_equal(print_pace(out, 1000, 1000000, 10000), "  1 tokens/s, 2:46:40 left");
	assert_string_equal(print_pace(out, 500, 1999, 500), "");
	assert_string_equal(print_pace(out, 0, 5000, 500), "");
}

static void numbers_are_printed_for_people(void **state)
{
	char out[PRINT_BYTES];

	(void)state;
	assert_string_equal(print_count(out, 0), "0");
	assert_string_equal(print_count(out, 999), "999");
	assert_string_equal(print_count(out, 1000), "1,000");
	assert_string_equal(print_count(out, -1234567), "-1,234,567");
	assert_string_equal(print_count(out, -123456), "-123,456");
	assert_string_equal(print_size(out, 0), "0 B");
	assert_string_equal(print_size(out, 999), "999 B");
	assert_string_equal(print_size(out, 1310000000), "1.31 GB");
	assert_string_equal(print_size(out, 21040000000), "21.0 GB");
	assert_string_equal(print_size(out, 999600), "1.00 MB");
	assert_string_equal(print_time(out, 0), "-");
}

/* A pipe gets a line when something begins, every 5 % (once a second at most) and every 10 s: never nothing, and never
 * a flood. */
static void progress_on_a_pipe_is_plain_lines_now_and_then(void **state)
{
	struct print_progress p;
	FILE *f = tmpfile();
	char text[256];

	(void)state;
	print_progress_begin(&p, f);
	print_progress_line(&p, "walk", 0, "walk 1", 1000);
	print_progress_line(&p, "walk", 0, "walk 2", 1200);
	print_progress_line(&p, "prefill", .01, "prefill 1", 1300);
	print_progress_line(&p, "prefill", .50, "prefill 5", 2200);
	print_progress_line(&p, "prefill", .07, "prefill 7", 2400);
	print_progress_line(&p, "prefill", .08, "prefill 8", 11600);
	print_progress_line(&p, "prefill", .09, "prefill 9", 12500);
	print_progress_end(&p);
	read_back(f, text, sizeof text);
	assert_string_equal(text, "walk 1\nprefill 1\nprefill 7\nprefill 9\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_pace_is_told_once_it_is_known),
		cmocka_unit_test(help_lists_every_verb_and_explains_each),
		cmocka_unit_test(the_version_goes_to_stdout),
		cmocka_unit_test(misuse_is_status_2_and_names_what_was_wrong),
		cmocka_unit_test(no_daemon_is_status_5_with_the_socket_and_what_to_do),
		cmocka_unit_test(a_directory_is_looked_at_before_the_daemon_is_asked),
		cmocka_unit_test(a_request_with_a_timeout_does_not_wait_for_ever),
		cmocka_unit_test(the_doctor_ends_with_1_when_something_fails),
		cmocka_unit_test(events_are_the_same_in_whatever_pieces_they_come),
		cmocka_unit_test(events_stop_when_they_are_told_to),
		cmocka_unit_test(an_event_that_is_not_json_is_an_error),
		cmocka_unit_test(what_a_model_says_cannot_drive_the_terminal),
		cmocka_unit_test(numbers_are_printed_for_people),
		cmocka_unit_test(progress_on_a_pipe_is_plain_lines_now_and_then),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
