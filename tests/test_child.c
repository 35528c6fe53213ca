#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <linux/landlock.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/mem.h"
#include "ingest/child.h"
#include "tests/support/temp_dir.h"

static int set_up(void **state)
{
	*state = temp_dir_new();
	return 0;
}

static int tear_down(void **state)
{
	temp_dir_free(*state);
	return 0;
}

/* A program of the test's own, which the child runs as it would pdftotext. */
static char *script(const char *dir, const char *text)
{
	char *whole = xasprintf("#!/bin/bash\n%s\n", text), *path = temp_text(dir, "program", whole);

	free(whole);
	if (chmod(path, 0755))
		fail_msg("chmod: %s", strerror(errno));
	return path;
}

static enum child_end run_script(const char *dir, const char *text, int deadline_ms, char **out,
				 char line[CHILD_LINE_BYTES])
{
	char *path = script(dir, text);
	const char *const arguments[] = {"program", NULL};
	const struct child_options opt = {.program = path, .arguments = arguments, .input = "some input\nmore\n",
					  .input_bytes = 16, .max_bytes = 1000, .memory_bytes = 1 << 30,
					  .deadline_ms = deadline_ms};
	enum child_end end;
	size_t n;

	end = child_run(&opt, out, &n, line);
	if (end == CHILD_DONE)
		assert_int_equal(strlen(*out), n);
	free(path);
	return end;
}

/* The script's output, or its first complaint. */
static char *output_of(const char *dir, const char *text)
{
	char *out, line[CHILD_LINE_BYTES];
	enum child_end end = run_script(dir, text, 10000, &out, line);

	if (end != CHILD_DONE)
		fail_msg("ended with %d: %s", (int)end, line);
	return out;
}

static void assert_says(const char *dir, const char *text, const char *want)
{
	char *out = output_of(dir, text);

	assert_string_equal(out, want);
	free(out);
}

static void a_child_gets_its_input_and_gives_its_output(void **state)
{
	char *out, line[CHILD_LINE_BYTES];

	assert_says(*state, "read -r a; echo \"got $a\"", "got some input\n");
	assert_int_equal(run_script(*state, "echo 'first line' >&2; echo second >&2; exit 3", 10000, &out, line),
			 CHILD_FAILED);
	assert_string_equal(line, "first line");
	assert_null(out);
}

static void a_child_that_does_not_end_or_says_too_much_is_ended(void **state)
{
	char *out, line[CHILD_LINE_BYTES];
	int64_t began = clock_now_ms();
	struct child_options opt = {.memory_bytes = 1 << 30, .max_bytes = 1000, .deadline_ms = 60000};
	const char *const arguments[] = {"program", NULL};
	const atomic_bool cancel = true;
	size_t n;

	assert_int_equal(run_script(*state, "while :; do :; done", 300, &out, line), CHILD_DEADLINE);
	/* With its outputs closed, so that nothing tells of its end. */
	assert_int_equal(run_script(*state, "exec >&- 2>&-; while :; do :; done", 300, &out, line), CHILD_DEADLINE);
	assert_int_equal(run_script(*state, "while :; do echo more; done", 60000, &out, line), CHILD_TOO_LARGE);
	/* What it complains of is not waited for either, and cannot fill a pipe. */
	assert_int_equal(run_script(*state, "for ((i = 0; i < 20000; i++)); do echo complaint >&2; done", 60000, &out,
				    line), CHILD_DONE);
	free(out);
	assert_string_equal(line, "complaint");
	opt.program = script(*state, "while :; do :; done");
	opt.arguments = arguments;
	opt.cancel = &cancel;
	assert_int_equal(child_run(&opt, &out, &n, line), CHILD_CANCELLED);
	free((char *)opt.program);
	opt.program = "/nowhere/at/all";
	opt.cancel = NULL;
	assert_int_equal(child_run(&opt, &out, &n, line), CHILD_NOT_RUN);
	assert_string_equal(line, "/nowhere/at/all: No such file or directory");
	assert_true(clock_now_ms() - began < 30000);
	errno = 0;
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nobody is left */
	assert_int_equal(errno, ECHILD);
}

static void a_child_can_neither_write_nor_talk_nor_start_others(void **state)
{
	char *victim = temp_text(*state, "victim", "untouched"), *program, *out, line[CHILD_LINE_BYTES];
	struct stat st;

	program = xasprintf("{ echo x >'%s'; } 2>/dev/null && echo wrote || echo refused", victim);
	assert_says(*state, program, "refused\n");
	free(program);
	program = xasprintf("{ echo x >'%s.new'; } 2>/dev/null && echo wrote || echo refused", victim);
	assert_says(*state, program, "refused\n");
	free(program);
	assert_int_equal(stat(victim, &st), 0);
	assert_int_equal(st.st_size, strlen("untouched"));
	assert_says(*state, "{ exec 9<>/dev/tcp/127.0.0.1/9; } 2>/dev/null && echo talked || echo refused", "refused\n");
	assert_says(*state, "{ kill -KILL $PPID; } 2>/dev/null && echo killed || echo refused", "refused\n");
	assert_int_equal(run_script(*state, "/bin/true; echo started", 10000, &out, line), CHILD_FAILED);
	assert_non_null(strstr(line, "fork: Operation not permitted"));
	free(victim);
}

static void a_child_reads_the_systems_places_alone(void **state)
{
	char *secret = temp_text(*state, "secret", "do not tell\n"), *program;

	if (syscall(SYS_landlock_create_ruleset, NULL, (size_t)0, LANDLOCK_CREATE_RULESET_VERSION) < 1) {
		puts("skipped: this kernel has no Landlock");
		free(secret);
		skip();
	}
	program = xasprintf("{ read -r a <'%s'; } 2>/dev/null; { read -r b </etc/passwd; } 2>/dev/null; echo \"<$a$b>\"",
			    secret);
	assert_says(*state, program, "<>\n");
	free(program);
	free(secret);
}

static void a_child_has_no_descriptors_and_no_environment_of_ours(void **state)
{
	setenv("QUIRE_TEST_SECRET", "x", 1);
	assert_says(*state, "echo \"<$QUIRE_TEST_SECRET>\"; for ((i = 3; i < 32; i++)); do { : <&$i; } 2>/dev/null && "
			    "[ $i != 255 ] && echo $i; done; exit 0", "<>\n");
	unsetenv("QUIRE_TEST_SECRET");
}

static void memory_has_a_limit(void **state)
{
	const char *const arguments[] = {"program", NULL};
	struct child_options opt = {.arguments = arguments, .memory_bytes = 64 << 20, .max_bytes = 10, .deadline_ms = 60000};
	char *program = script(*state, "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"), *out, line[CHILD_LINE_BYTES];
	size_t n;

	opt.program = program;
	assert_int_equal(child_run(&opt, &out, &n, line), CHILD_FAILED);
	assert_non_null(strstr(line, "cannot allocate"));
	free(program);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_child_gets_its_input_and_gives_its_output, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_child_that_does_not_end_or_says_too_much_is_ended, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_child_can_neither_write_nor_talk_nor_start_others, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_child_reads_the_systems_places_alone, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_child_has_no_descriptors_and_no_environment_of_ours, set_up, tear_down),
		cmocka_unit_test_setup_teardown(memory_has_a_limit, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
