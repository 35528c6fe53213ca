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

enum { PIECE = 4 << 20 };

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

/* 0, or the code of what went wrong first. */
static int read_back(const char *dir, struct scratch_name name, const uint8_t *want, int64_t bytes, uint64_t sum)
{
	uint8_t *out = malloc(PIECE);
	struct scratch *s = NULL;
	struct err err = {0};
	int64_t at = 0;
	int rc = scratch_open(&s, dir, name, bytes, sum, &err);

	for (int64_t i = 0; !rc && scratch_piece_bytes(s, i); i++) {
		rc = scratch_read(s, i, out, &err);
		if (!rc)
			assert_memory_equal(out, want + at, (size_t)scratch_piece_bytes(s, i));
		at += scratch_piece_bytes(s, i);
	}
	if (!rc)
		assert_int_equal(at, bytes);
	scratch_close(s);
	free(out);
	return rc ? (int)err.code : 0;
}

static void a_state_of_any_length_comes_back_and_only_with_its_own_sum(void **state)
{
	static const int64_t lengths[] = {3 * PIECE, PIECE + 1, PIECE, PIECE - 1, 1, 0};
	const struct scratch_name name = {12, 1};

	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) { /* shorter and shorter, in one file */
		uint8_t *p = made(lengths[i], (uint8_t)i);
		uint64_t sum;
		struct err err;

		assert_int_equal(scratch_write(*state, name, p, lengths[i], &sum, &err), 0);
		/* The state, and eight bytes for each piece. */
		assert_int_equal(scratch_bytes(*state), lengths[i] + 8 * ((lengths[i] + PIECE - 1) / PIECE));
		assert_int_equal(read_back(*state, name, p, lengths[i], sum), 0);
		assert_int_equal(read_back(*state, name, p, lengths[i], sum + 1), ERR_DAMAGED);
		assert_int_equal(read_back(*state, name, p, lengths[i] + 1, sum), ERR_DAMAGED);
		assert_int_equal(read_back(*state, (struct scratch_name){12, 0}, p, lengths[i], sum), ERR_DAMAGED);
		free(p);
	}
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
	assert_int_equal(scratch_write(*state, name, p, 2 * PIECE, &sum, &err), 0);
	fd = open(path, O_RDWR);
	assert_int_equal(pwrite(fd, p + PIECE, PIECE, 0), PIECE);
	assert_int_equal(pwrite(fd, p, PIECE, PIECE), PIECE);
	assert_int_equal(read_back(*state, name, p, 2 * PIECE, sum), ERR_DAMAGED);

	assert_int_equal(scratch_write(*state, name, p, 2 * PIECE, &sum, &err), 0);
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
		failed = scratch_write(*state, (struct scratch_name){n + 1, 0}, p, PIECE + 5, &sum, &err);
		disk_calls_reset();
		if (failed) {
			assert_int_equal(err.code, ERR_IO);
			assert_non_null(strstr(err.text, *state));
		} else {
			assert_int_equal(read_back(*state, (struct scratch_name){n + 1, 0}, p, PIECE + 5, sum), 0);
		}
	}
	assert_int_equal(n, 7); /* space, two pieces, their sums, two syncs; then nothing is left to fail */
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
		cmocka_unit_test_setup_teardown(pieces_in_each_others_place_and_sums_that_are_lost_are_found, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(every_failed_call_of_a_write_is_an_error_that_names_the_file, set_up, tear_down),
		cmocka_unit_test_setup_teardown(files_of_jobs_that_are_gone_are_removed_and_nothing_else, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
