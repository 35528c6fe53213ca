/* Files: what is opened, how direct access is found or done without, and what a full disk says. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <cmocka.h>

#include "config/mem.h"
#include "offload/io_backend.h"
#include "tests/support/as_user.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

enum { BYTES = 20000 };

static int new_dir(void **state)
{
	*state = temp_dir_new();
	return 0;
}

static int free_dir(void **state)
{
	temp_dir_free(*state);
	return 0;
}

static char *some_file(const char *dir, const char *name)
{
	unsigned char *bytes = xmalloc(BYTES, 1);
	char *path;

	for (int i = 0; i < BYTES; i++)
		bytes[i] = (unsigned char)(i * 7 + i / 256);
	path = temp_file(dir, name, bytes, BYTES);
	free(bytes);
	return path;
}

static void assert_says(const struct err *err, const char *what)
{
	if (!strstr(err->text, what))
		fail_msg("\"%s\" does not say \"%s\"", err->text, what);
}

static void assert_refused(const char *path, int flags, const char *why)
{
	struct io_file f = {.fd = 77};
	struct err err = {0};

	assert_int_equal(io_open(&f, path, flags, &err), -1);
	assert_says(&err, why);
	assert_says(&err, path);
	assert_int_equal(f.fd, -1);
	io_close(&f); /* may be closed all the same */
}

static void what_is_no_regular_file_is_refused_by_what_it_is(void **state)
{
	char *fifo = temp_path(*state, "fifo"), *file = some_file(*state, "file"), *link = temp_path(*state, "link");
	char *none = temp_path(*state, "none"), *name = temp_path(*state, "socket");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	struct io_file f;
	struct err err;

	snprintf(address.sun_path, sizeof address.sun_path, "%s", name);
	assert_int_equal(bind(s, (struct sockaddr *)&address, sizeof address), 0);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	assert_int_equal(symlink(file, link), 0);
	for (int direct = 0; direct <= IO_OPEN_DIRECT; direct += IO_OPEN_DIRECT) {
		assert_refused(fifo, direct, "is a FIFO, not a regular file");
		assert_refused(*state, direct, "is a directory, not a regular file");
		assert_refused("/dev/null", direct, "is a device, not a regular file");
		assert_refused(name, direct, "is a socket or device, not a regular file");
		assert_refused(none, direct, "No such file or directory");
		assert_refused(link, direct | IO_OPEN_NOFOLLOW, "is a symbolic link, not a regular file");
		assert_refused(file, direct | IO_OPEN_WRITE | IO_OPEN_CREATE, "File exists");
		assert_int_equal(io_open(&f, link, direct, &err), 0);
		io_close(&f);
	}
	close(s);
	free(fifo);
	free(file);
	free(link);
	free(none);
	free(name);
}

static void a_name_in_an_open_directory_is_called_by_its_path(void **state)
{
	int dir = open(*state, O_RDONLY | O_DIRECTORY);
	struct io_file f;
	struct err err;
	char *path = temp_path(*state, "made");
	struct stat st;

	assert_int_equal(io_open_at(&f, dir, *state, "made", IO_OPEN_WRITE, &err), -1);
	assert_says(&err, path);
	assert_int_equal(io_open_at(&f, dir, *state, "made", IO_OPEN_WRITE | IO_OPEN_CREATE | IO_OPEN_DIRECT, &err), 0);
	assert_string_equal(f.path, path);
	assert_int_equal(fstat(f.fd, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(io_preallocate(&f, 0, 100000, &err), 0);
	assert_int_equal(fstat(f.fd, &st), 0);
	assert_int_equal(st.st_size, 100000);
	assert_int_equal(io_preallocate(&f, 5000, 10, &err), 0); /* does not shrink */
	assert_int_equal(fstat(f.fd, &st), 0);
	assert_int_equal(st.st_size, 100000);
	assert_int_equal(io_sync_file(&f, &err), 0);
	assert_int_equal(io_preallocate(&f, INT64_MAX, 10, &err), -1);
	assert_says(&err, "beyond any file");
	io_close(&f);
	close(dir);
	free(path);
}

/* What the kernel says and what trying finds are the same, where both can be had. */
static void the_alignment_of_direct_reads_is_found(void **state)
{
	char *path = some_file(*state, "file");
	struct io_file f;
	struct err err;
	void *memory;

	assert_int_equal(io_open(&f, path, IO_OPEN_DIRECT, &err), 0);
	if (f.direct_fd < 0) {
		print_message("skipped: direct access below %s: %s\n", (char *)*state, f.why_not_direct);
		io_close(&f);
		free(path);
		skip();
	}
	assert_null(f.why_not_direct);
	assert_true(f.align >= 512 && f.align <= 65536);
	assert_true(fcntl(f.direct_fd, F_GETFL) & O_DIRECT);
	/* Set while opening alone: io_uring would give EAGAIN for it on some file systems. */
	assert_false(fcntl(f.direct_fd, F_GETFL) & O_NONBLOCK);
	assert_false(fcntl(f.fd, F_GETFL) & O_NONBLOCK);
	assert_int_equal(io_probe_alignment(f.direct_fd, f.bytes), f.align);
	assert_int_equal(io_probe_alignment(f.direct_fd, 100), 4096); /* nothing there to try with */
	/* It is enough: one block, at one block, in memory that is aligned to no more. */
	memory = aligned_alloc(65536, 4 * 65536);
	assert_int_equal(pread(f.direct_fd, (char *)memory + f.align, f.align, f.align), f.align);
	free(memory);
	io_close(&f);
	free(path);
}

static void a_file_in_memory_is_read_through_the_cache_and_says_so(void **state)
{
	struct statfs fs;
	struct io_file f;
	struct err err;
	char *path;

	(void)state;
	if (statfs("/dev/shm", &fs) || fs.f_type != 0x01021994 || access("/dev/shm", W_OK)) {
		print_message("skipped: /dev/shm is no tmpfs that we may write to\n");
		skip();
	}
	path = xasprintf("/dev/shm/quire-test-%ld", (long)getpid());
	assert_int_equal(io_open(&f, path, IO_OPEN_WRITE | IO_OPEN_CREATE | IO_OPEN_DIRECT, &err), 0);
	unlink(path);
	assert_int_equal(f.direct_fd, -1);
	assert_string_equal(f.why_not_direct, "its file system is memory");
	/* Requests keep to blocks here as well. */
	assert_int_equal(f.align, 4096);
	io_close(&f);
	free(path);
}

static void a_range_behind_the_end_says_how_much_was_there(void **state)
{
	char *path = some_file(*state, "file");
	unsigned char got[64];
	struct io_file f;
	struct err err;

	assert_int_equal(io_open_regular(&f, path, &err), 0);
	assert_int_equal(f.align, 1);
	assert_int_equal(io_read_full(&f, got, BYTES - 64, 64, &err), 0);
	assert_int_equal(got[63], (unsigned char)((BYTES - 1) * 7 + (BYTES - 1) / 256));
	assert_int_equal(io_read_full(&f, got, BYTES - 60, 64, &err), -1);
	assert_says(&err, "the file ends at byte 20000, 4 bytes short of the range 19940 + 64");
	assert_int_equal(io_read_full(&f, got, INT64_MAX, 64, &err), -1);
	assert_says(&err, "beyond any file");
	assert_int_equal(io_check_unchanged(&f, &err), 0);
	assert_int_equal(truncate(path, 100), 0);
	assert_int_equal(io_check_unchanged(&f, &err), -1);
	assert_says(&err, "it had 20000 bytes and has 100 now");
	io_close(&f);
	free(path);
}

/* In a child that has a file system of 1 MiB of its own: 0 as it should be, 77 if there is no such thing here. */
static int fill_a_small_disk(void *dir)
{
	struct io_file f;
	struct err err = {0};

	if (small_disk_mount(dir, 1 << 20))
		return 77;
	if (chdir(dir) || io_open(&f, "file", IO_OPEN_WRITE | IO_OPEN_CREATE, &err) ||
	    io_preallocate(&f, 0, 500000, &err))
		return 1;
	if (!io_preallocate(&f, 500000, 5000000, &err))
		return 2;
	return strcmp(err.text, "extend file by 5000000 bytes at byte 500000: No space left on device; free space there "
		      "and try again") ? 3 : 0;
}

static void a_full_disk_is_met_when_space_is_taken(void **state)
{
	int rc;

	give_to_user(*state);
	rc = as_user(fill_a_small_disk, *state);
	if (rc == 77) {
		print_message("skipped: a user may not mount a small file system here\n");
		skip();
	}
	assert_int_equal(rc, 0);
}

static int take_more_than_is_allowed(void *dir)
{
	struct rlimit limit = {1 << 20, 1 << 20};
	struct io_file f;
	struct err err = {0};

	signal(SIGXFSZ, SIG_IGN);
	if (setrlimit(RLIMIT_FSIZE, &limit) || chdir(dir) || io_open(&f, "limited", IO_OPEN_WRITE | IO_OPEN_CREATE, &err))
		return 1;
	if (!io_preallocate(&f, 0, 2 << 20, &err))
		return 2;
	return strstr(err.text, "File too large; free space there and try again") ? 0 : 3;
}

static void a_file_above_the_limit_of_the_process_is_an_error(void **state)
{
	give_to_user(*state);
	assert_int_equal(as_user(take_more_than_is_allowed, *state), 0);
}

static void no_descriptor_is_left_behind(void **state)
{
	char *path = some_file(*state, "file"), *fifo = temp_path(*state, "fifo");
	struct io_file f;
	struct err err;
	int before = dup(0), after;

	close(before);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	assert_int_equal(io_open(&f, path, IO_OPEN_DIRECT, &err), 0);
	io_close(&f);
	io_close(&f);
	assert_refused(fifo, IO_OPEN_DIRECT, "FIFO");
	after = dup(0);
	close(after);
	assert_int_equal(after, before);
	free(path);
	free(fifo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_is_no_regular_file_is_refused_by_what_it_is, new_dir, free_dir),
		cmocka_unit_test_setup_teardown(a_name_in_an_open_directory_is_called_by_its_path, new_dir, free_dir),
		cmocka_unit_test_setup_teardown(the_alignment_of_direct_reads_is_found, new_dir, free_dir),
		cmocka_unit_test(a_file_in_memory_is_read_through_the_cache_and_says_so),
		cmocka_unit_test_setup_teardown(a_range_behind_the_end_says_how_much_was_there, new_dir, free_dir),
		cmocka_unit_test_setup_teardown(a_full_disk_is_met_when_space_is_taken, new_dir, free_dir),
		cmocka_unit_test_setup_teardown(a_file_above_the_limit_of_the_process_is_an_error, new_dir, free_dir),
		cmocka_unit_test_setup_teardown(no_descriptor_is_left_behind, new_dir, free_dir),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
