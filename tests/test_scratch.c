#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/scratch.h"
#include "tests/support/disk_calls.h"
#include "tests/support/temp_dir.h"

enum { PIECE = SCRATCH_PIECE };

static int set_up(void **state)
{
	disk_calls_reset();
	*state = temp_dir_new();
	return 0;
}

static int tear_down(void **state)
{
	disk_calls_reset();
	temp_dir_free(*state);
	return 0;
}

static uint8_t *made(int64_t bytes, uint8_t seed)
{
	uint8_t *p = malloc((size_t)bytes + 1);

	for (int64_t i = 0; i < bytes; i++)
		p[i] = (uint8_t)(i * 31 + i / 251 + seed);
	return p;
}

/* In calls of so many bytes. */
static int write_calls(const char *dir, struct scratch_name name, const uint8_t *p, int64_t bytes, int64_t call,
		       uint64_t *sum, struct err *err)
{
	struct scratch *s = NULL;
	int rc = scratch_create(&s, dir, name, bytes, err);

	for (int64_t at = 0; !rc && at < bytes; at = scratch_at(s)) {
		rc = scratch_append(s, p + at, bytes - at < call ? bytes - at : call, err);
		if (rc)
			break;
	}
	rc = rc || scratch_finish(s, sum, err) ? -1 : 0;
	scratch_close(s);
	return rc;
}

/* 0, or the code of what went wrong first. */
static int read_calls(const char *dir, struct scratch_name name, const uint8_t *want, int64_t bytes, int64_t call,
		      uint64_t sum)
{
	uint8_t *out = malloc((size_t)call);
	struct scratch *s = NULL;
	struct err err = {0};
	int rc = scratch_open(&s, dir, name, bytes, sum, &err);

	for (int64_t at = 0, n; !rc && at < bytes; at += n) {
		n = bytes - at < call ? bytes - at : call;
		rc = scratch_read(s, out, n, &err);
		if (!rc)
			assert_memory_equal(out, want + at, (size_t)n);
	}
	scratch_close(s);
	free(out);
	return rc ? (int)err.code : 0;
}

static int read_back(const char *dir, struct scratch_name name, const uint8_t *want, int64_t bytes, uint64_t sum)
{
	return read_calls(dir, name, want, bytes, PIECE, sum);
}

static void a_state_of_any_length_comes_back_and_only_with_its_own_sum(void **state)
{
	static const int64_t lengths[] = {3 * PIECE, PIECE + 1, PIECE, PIECE - 1, 1, 0};
	const struct scratch_name name = {12, 1};

	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) { /* shorter and shorter, in one file */
		uint8_t *p = made(lengths[i], (uint8_t)i);
		uint64_t sum;
		struct err err;

		assert_int_equal(write_calls(*state, name, p, lengths[i], PIECE, &sum, &err), 0);
		/* The state, and eight bytes for each piece. */
		assert_int_equal(scratch_bytes(*state), lengths[i] + 8 * ((lengths[i] + PIECE - 1) / PIECE));
		assert_int_equal(read_back(*state, name, p, lengths[i], sum), 0);
		assert_int_equal(read_back(*state, name, p, lengths[i], sum + 1), ERR_DAMAGED);
		assert_int_equal(read_back(*state, name, p, lengths[i] + 1, sum), ERR_DAMAGED);
		assert_int_equal(read_back(*state, (struct scratch_name){12, 0}, p, lengths[i], sum), ERR_DAMAGED);
		free(p);
	}
}

/* Where the caller cuts it does not show in the file: it is read back by other cuts than it was written by. */
static void a_state_is_the_same_in_calls_of_any_length(void **state)
{
	static const int64_t calls[] = {3 * PIECE, PIECE, PIECE / 2 + 77, 1000003};
	const struct scratch_name name = {1, 0};
	int64_t bytes = 2 * PIECE + 12345;
	uint8_t *p = made(bytes, 9);
	uint64_t first = 0, sum;
	struct err err;

	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(write_calls(*state, name, p, bytes, calls[i], &sum, &err), 0);
		first = i ? first : sum;
		assert_int_equal(sum, first);
		for (size_t k = 0; k < 4; k++)
			assert_int_equal(read_calls(*state, name, p, bytes, calls[k], sum), 0);
	}
	free(p);
}

static void pieces_in_each_others_place_and_sums_that_are_lost_are_found(void **state)
{
	const struct scratch_name name = {1, 0};
	uint8_t *p = made(2 * PIECE, 0);
	char *path = temp_path(*state, "scratch-000001-0");
	uint64_t sum;
	struct err err;
	int fd;

	assert_memory_not_equal(p, p + PIECE, PIECE);
	assert_int_equal(write_calls(*state, name, p, 2 * PIECE, PIECE, &sum, &err), 0);
	fd = open(path, O_RDWR);
	assert_int_equal(pwrite(fd, p + PIECE, PIECE, 0), PIECE);
	assert_int_equal(pwrite(fd, p, PIECE, PIECE), PIECE);
	assert_int_equal(read_back(*state, name, p, 2 * PIECE, sum), ERR_DAMAGED);

	assert_int_equal(write_calls(*state, name, p, 2 * PIECE, PIECE, &sum, &err), 0);
	assert_int_equal(read_back(*state, name, p, 2 * PIECE, sum), 0);
	assert_int_equal(ftruncate(fd, 2 * PIECE), 0);
	assert_int_equal(read_back(*state, name, p, 2 * PIECE, sum), ERR_DAMAGED);
	assert_int_equal(ftruncate(fd, 2 * PIECE + 16), 0); /* as long as it was, with zeros for sums */
	assert_int_equal(read_back(*state, name, p, 2 * PIECE, sum), ERR_DAMAGED);
	close(fd);
	free(path);
	free(p);
}

static void every_failed_call_of_a_write_is_an_error_that_names_the_file(void **state)
{
	uint8_t *p = made(PIECE + 5, 3);
	int n = 0;

	for (int failed = 1; failed; n++) {
		uint64_t sum;
		struct err err;

		disk_calls_reset();
		disk_calls_fail(n + 1, n % 2 ? EIO : ENOSPC, 0);
		failed = write_calls(*state, (struct scratch_name){n + 1, 0}, p, PIECE + 5, PIECE, &sum, &err);
		disk_calls_reset();
		if (failed) {
			assert_int_equal(err.code, ERR_IO);
			assert_non_null(strstr(err.text, *state));
		} else {
			assert_int_equal(read_back(*state, (struct scratch_name){n + 1, 0}, p, PIECE + 5, sum), 0);
		}
	}
	assert_int_equal(n, 9); /* space, two pieces and a sync of each, their sums, two syncs; then nothing is left to fail */
	free(p);
}

static bool is_even(void *ctx, int64_t job)
{
	++*(int *)ctx;
	return !(job % 2);
}

static void files_of_jobs_that_are_gone_are_removed_and_nothing_else(void **state)
{
	static const char *const names[] = {"scratch-000001-0", "scratch-000002-0", "scratch-000002-1", "scratch-000003-1",
					    "scratch-000000-0", "scratch-000003-2", "scratch-3-1", "scratch-000003-1.bak", "segment-000001"};
	static const bool stays[] = {false, true, true, false, true, true, true, true, true};
	int n_asked = 0;
	struct err err;

	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		free(temp_text(*state, names[i], "x"));

	assert_int_equal(scratch_clean(*state, is_even, &n_asked, &err), 0);

	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		char *path = temp_path(*state, names[i]);

		if (access(path, F_OK) != (stays[i] ? 0 : -1))
			fail_msg("%s", names[i]);
		free(path);
	}
	assert_int_equal(n_asked, 4);
	scratch_remove(*state, 2);
	assert_int_equal(scratch_bytes(*state), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_state_of_any_length_comes_back_and_only_with_its_own_sum, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_state_is_the_same_in_calls_of_any_length, set_up, tear_down),
		cmocka_unit_test_setup_teardown(pieces_in_each_others_place_and_sums_that_are_lost_are_found, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(every_failed_call_of_a_write_is_an_error_that_names_the_file, set_up, tear_down),
		cmocka_unit_test_setup_teardown(files_of_jobs_that_are_gone_are_removed_and_nothing_else, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
