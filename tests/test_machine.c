/* What the operating system says, on this machine and on others that are only trees of files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "config/mem.h"
#include "daemon/machine.h"
#include "tests/support/temp_dir.h"

static void put(const char *root, const char *name, const char *text)
{
	free(temp_text(root, name, text));
}

static void the_processor_has_the_name_that_the_kernel_gives_it(void **state)
{
	char *root = temp_dir_new(), *name;

	(void)state;
	assert_null(machine_processor(root));
	put(root, "proc/cpuinfo", "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654 96-Core\nstepping\t: 1\n\n"
				  "processor\t: 1\nmodel name\t: other\n");
	name = machine_processor(root);
	assert_string_equal(name, "AMD EPYC 9654 96-Core");
	free(name);
	put(root, "proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\n\nprocessor\t: 1\n");
	assert_null(machine_processor(root));
	temp_dir_free(root);
}

static void memory_is_what_the_machine_has(void **state)
{
	char *root = temp_dir_new();
	struct machine_memory m;
	struct err err;

	(void)state;
	put(root, "proc/meminfo", "MemTotal:       24684096 kB\nMemFree:               1 kB\nMemAvailable:   24052556 kB\n");
	assert_int_equal(machine_memory(&m, root, &err), 0);
	assert_true(m.total_bytes == 24684096LL * 1024);
	assert_true(m.available_bytes == 24052556LL * 1024);
	assert_true(m.limit_bytes == 0);
	put(root, "proc/meminfo", "MemTotal:       24684096 kB\n");
	assert_int_equal(machine_memory(&m, root, &err), -1);
	assert_string_equal(err.text, "/proc/meminfo has no line \"MemAvailable: N kB\"");
	put(root, "proc/meminfo", "MemTotal: much\nMemAvailable: 1 kB\n");
	assert_int_equal(machine_memory(&m, root, &err), -1);
	assert_string_equal(err.text, "/proc/meminfo has no line \"MemTotal: N kB\"");

	assert_int_equal(machine_memory(&m, "", &err), 0);
	assert_true(m.total_bytes > 0 && m.available_bytes > 0 && m.available_bytes <= m.total_bytes);
	temp_dir_free(root);
}

/* A container with 4 GiB of a large machine's memory. It uses 1 GiB, of which 512 MiB are files that can go. */
static void memory_is_no_more_than_the_cgroups_give(void **state)
{
	char *root = temp_dir_new();
	struct machine_memory m;
	struct err err;

	(void)state;
	put(root, "proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 50331648 kB\n");
	put(root, "proc/self/cgroup", "1:name=systemd:/x\n0::/pod/app\n");
	put(root, "sys/fs/cgroup/pod/app/memory.max", "max\n");
	put(root, "sys/fs/cgroup/pod/memory.max", "4294967296\n");
	put(root, "sys/fs/cgroup/pod/memory.current", "1073741824\n");
	put(root, "sys/fs/cgroup/pod/memory.stat", "anon 536870912\nfile 536870912\ninactive_file 536870912\n");
	assert_int_equal(machine_memory(&m, root, &err), 0);
	assert_true(m.limit_bytes == 4LL << 30);
	assert_true(m.total_bytes == 4LL << 30);
	assert_true(m.available_bytes == (4LL << 30) - (512 << 20));

	/* The lowest limit counts; what is above the machine's memory limits nothing. */
	put(root, "sys/fs/cgroup/pod/app/memory.max", "2147483648\n");
	put(root, "sys/fs/cgroup/pod/app/memory.current", "3000000000\n");
	assert_int_equal(machine_memory(&m, root, &err), 0);
	assert_true(m.total_bytes == 2LL << 30);
	assert_true(m.available_bytes == 0);
	put(root, "sys/fs/cgroup/pod/memory.max", "99999999999999\n");
	put(root, "sys/fs/cgroup/pod/app/memory.max", "max\n");
	assert_int_equal(machine_memory(&m, root, &err), 0);
	assert_true(m.total_bytes == 64LL << 30);
	assert_true(m.available_bytes == 48LL << 30);

	/* In a container's own namespace its cgroup is the root. */
	put(root, "proc/self/cgroup", "0::/\n");
	put(root, "sys/fs/cgroup/memory.max", "1073741824\n");
	assert_int_equal(machine_memory(&m, root, &err), 0);
	assert_true(m.total_bytes == 1LL << 30);
	temp_dir_free(root);
}

static void the_limit_of_locked_memory_does_not_hold_for_everybody(void **state)
{
	char *root = temp_dir_new();
	struct rlimit before, low;
	struct machine_memlock m;
	struct err err;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &before), 0);
	low = before;
	low.rlim_cur = 65536;
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &low), 0);
	put(root, "proc/self/status", "Name:\tquire\nCapInh:\t0000000000004000\nCapEff:\t0000000000000000\n");
	assert_int_equal(machine_memlock(&m, root, &err), 0);
	assert_true(m.bytes == 65536);
	assert_true(m.most_bytes == (before.rlim_max == RLIM_INFINITY ? -1 : (int64_t)before.rlim_max));
	assert_false(m.exempt);
	put(root, "proc/self/status", "CapEff:\t0000000000004000\n");
	assert_int_equal(machine_memlock(&m, root, &err), 0);
	assert_true(m.exempt);
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &before), 0);
	temp_dir_free(root);
}

static void huge_pages_are_the_word_in_brackets(void **state)
{
	static const char name[] = "sys/kernel/mm/transparent_hugepage/enabled";
	char *root = temp_dir_new(), *word;
	struct err err;

	(void)state;
	assert_int_equal(machine_huge_pages(&word, root, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	put(root, name, "always [madvise] never\n");
	assert_int_equal(machine_huge_pages(&word, root, &err), 0);
	assert_string_equal(word, "madvise");
	free(word);
	put(root, name, "always madvise never\n");
	assert_int_equal(machine_huge_pages(&word, root, &err), -1);
	assert_non_null(strstr(err.text, "no word in brackets"));
	temp_dir_free(root);
}

static void assert_refusal(const char *root, int number, const char *words)
{
	struct err err = {0};

	assert_int_equal(machine_io_uring_refusal(number, root, &err), -1);
	assert_int_equal(err.code, ERR_UNAVAILABLE);
	if (!strstr(err.text, words))
		fail_msg("\"%s\" does not say \"%s\"", err.text, words);
}

static void a_refused_ring_says_who_refuses_it(void **state)
{
	char *root = temp_dir_new();

	(void)state;
	assert_refusal(root, ENOSYS, "this kernel has none");
	assert_refusal(root, ENOMEM, "io_uring_setup says Cannot allocate memory");
	assert_refusal(root, EPERM, "io_uring_setup says Operation not permitted");
	put(root, "proc/self/status", "Name:\tquire\nSeccomp:\t2\nSeccomp_filters:\t1\n");
	assert_refusal(root, EPERM, "a seccomp filter refuses it");
	assert_refusal(root, ENOSYS, "a seccomp filter refuses it");
	assert_refusal(root, ENOMEM, "io_uring_setup says Cannot allocate memory");
	put(root, "proc/sys/kernel/io_uring_disabled", "2\n");
	assert_refusal(root, EPERM, "kernel.io_uring_disabled is 2");
	put(root, "proc/sys/kernel/io_uring_disabled", "1\n");
	put(root, "proc/sys/kernel/io_uring_group", "-1\n");
	assert_refusal(root, EPERM, "kernel.io_uring_disabled is 1, and this process is not in the group of "
				    "kernel.io_uring_group, which is -1");
	temp_dir_free(root);
}

static int count_files(const char *dir)
{
	DIR *d = opendir(dir);
	int n = 0;

	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n;
}

/* What is said is tried: one read at the alignment that was named. */
static void try_direct_io(const char *dir, const struct machine_direct_io *io)
{
	char *bytes = xcalloc(1, 1 << 17), *path = temp_file(dir, "direct", bytes, 1 << 17), *memory;
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	size_t n = io->offset_align;

	if (!n) {
		assert_int_equal(fd, -1);
	} else {
		assert_true(fd >= 0 && n <= 1 << 16);
		assert_true(io->memory_align > 0 && io->memory_align <= 1 << 16);
		memory = aligned_alloc(1 << 16, 1 << 17);
		assert_int_equal(pread(fd, memory + io->memory_align, n, (off_t)n), n);
		free(memory);
		close(fd);
	}
	unlink(path);
	free(path);
	free(bytes);
}

static void direct_reads_have_the_alignment_that_was_found(void **state)
{
	char *dir = temp_dir_new(), *absent = temp_path(dir, "absent"), shm[] = "/dev/shm/quire-XXXXXX";
	struct machine_direct_io io;
	struct err err;

	(void)state;
	assert_int_equal(machine_direct_io(&io, dir, &err), 0);
	assert_int_equal(count_files(dir), 0);
	try_direct_io(dir, &io);
	assert_int_equal(machine_direct_io(&io, absent, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, absent));
	/* A file system of which the kernel does not say it: there it is measured, or there is none. */
	if (mkdtemp(shm)) {
		assert_int_equal(machine_direct_io(&io, shm, &err), 0);
		try_direct_io(shm, &io);
		assert_int_equal(rmdir(shm), 0);
	}
	free(absent);
	temp_dir_free(dir);
}

static void a_disk_has_a_type_and_room(void **state)
{
	char *dir = temp_dir_new();
	struct machine_disk disk;
	struct statfs fs;
	struct err err;

	(void)state;
	assert_int_equal(machine_disk(&disk, dir, &err), 0);
	assert_true(disk.total_bytes > 0 && disk.free_bytes <= disk.total_bytes);
	assert_int_equal(machine_disk(&disk, "/proc", &err), 0);
	assert_string_equal(disk.type, "0x00009fa0"); /* PROC_SUPER_MAGIC: nobody keeps a store there */
	assert_false(disk.in_memory || disk.remote);
	if (!statfs("/dev/shm", &fs) && fs.f_type == 0x01021994) {
		assert_int_equal(machine_disk(&disk, "/dev/shm", &err), 0);
		assert_string_equal(disk.type, "tmpfs");
		assert_true(disk.in_memory);
	}
	assert_int_equal(machine_disk(&disk, "/no/such/place", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	temp_dir_free(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_processor_has_the_name_that_the_kernel_gives_it),
		cmocka_unit_test(memory_is_what_the_machine_has),
		cmocka_unit_test(memory_is_no_more_than_the_cgroups_give),
		cmocka_unit_test(the_limit_of_locked_memory_does_not_hold_for_everybody),
		cmocka_unit_test(huge_pages_are_the_word_in_brackets),
		cmocka_unit_test(a_refused_ring_says_who_refuses_it),
		cmocka_unit_test(direct_reads_have_the_alignment_that_was_found),
		cmocka_unit_test(a_disk_has_a_type_and_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
