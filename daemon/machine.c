#include "daemon/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "config/file.h"
#include "config/mem.h"

enum {
	MAX_CPUINFO_BYTES = 32 << 20, /* some 1.5 KiB for each of 8192 processors, and room */
	MAX_BYTES = 1 << 20,          /* of any other file */
	CAP_IPC_LOCK_BIT = 14,
};

/* root/path whole, to be freed. */
static int read_text(char **text, const char *root, const char *path, size_t max_bytes, struct err *err)
{
	char *whole = xasprintf("%s%s", root, path);
	int failed = file_read_kernel(text, whole, max_bytes, err);

	free(whole);
	return failed;
}

/* Behind "KEY" and what separates it from its value, at the beginning of a line; NULL: there is no such line. */
static const char *find_value(const char *text, const char *key)
{
	size_t n = strlen(key);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, n) && strchr(" \t:", line[n]))
			return line + n + strspn(line + n, " \t:");
	}
	return NULL;
}

/* ---- processor and memory ---- */

char *machine_processor(const char *root)
{
	char *text, *name = NULL;
	const char *value;

	if (read_text(&text, root, "/proc/cpuinfo", MAX_CPUINFO_BYTES, NULL))
		return NULL;
	value = find_value(text, "model name");
	if (value && *value != '\n')
		name = xstrndup(value, strcspn(value, "\n"));
	free(text);
	return name;
}

/* "MemTotal:       24684096 kB" */
static int read_kib(int64_t *bytes, const char *text, const char *key, const char *path, struct err *err)
{
	const char *value = find_value(text, key);
	char *end;
	long long n = value ? strtoll(value, &end, 10) : 0;

	if (!value || end == value || n < 0 || n > INT64_MAX / 1024 || strncmp(end, " kB\n", 4))
		return err_set(err, ERR_FORMAT, "%s has no line \"%s: N kB\"", path, key);
	*bytes = n * 1024;
	return 0;
}

/* A number in a file of a cgroup; "max", or no such file (as in the root): -1. */
static int64_t cgroup_number(const char *dir, const char *file, const char *key)
{
	char *path = xasprintf("%s/%s", dir, file), *text, *end;
	const char *value;
	int64_t n = -1;

	if (!file_read_kernel(&text, path, MAX_BYTES, NULL)) {
		value = key ? find_value(text, key) : text;
		if (value) {
			n = strtoll(value, &end, 10);
			if (end == value)
				n = -1;
		}
		free(text);
	}
	free(path);
	return n;
}

/* What one cgroup leaves of the memory. Its inactive files are dropped before anybody is killed. */
static void apply_cgroup(struct machine_memory *m, const char *dir)
{
	int64_t most = cgroup_number(dir, "memory.max", NULL), used = cgroup_number(dir, "memory.current", NULL);
	int64_t files = cgroup_number(dir, "memory.stat", "inactive_file"), left;

	if (most < 0)
		return;
	if (!m->limit_bytes || most < m->limit_bytes)
		m->limit_bytes = most;
	if (most < m->total_bytes)
		m->total_bytes = most;
	left = used < 0 ? most : most - used + (files > 0 ? files : 0);
	left = left < 0 ? 0 : left > most ? most : left;
	if (left < m->available_bytes)
		m->available_bytes = left;
}

/* "0::/user.slice/...": our cgroup of version 2, and all those above it. */
static void apply_cgroups(struct machine_memory *m, const char *root)
{
	size_t top = strlen(root) + strlen("/sys/fs/cgroup");
	const char *line;
	char *text, *dir, *slash;

	if (read_text(&text, root, "/proc/self/cgroup", MAX_BYTES, NULL))
		return;
	line = !strncmp(text, "0::", 3) ? text : strstr(text, "\n0::");
	if (line) {
		line += *line == '\n';
		dir = xasprintf("%s/sys/fs/cgroup%.*s", root, (int)strcspn(line + 3, "\n"), line + 3);
		do {
			apply_cgroup(m, dir);
			slash = strrchr(dir + top, '/');
			if (slash)
				*slash = '\0';
		} while (slash);
		free(dir);
	}
	free(text);
}

int machine_memory(struct machine_memory *m, const char *root, struct err *err)
{
	static const char path[] = "/proc/meminfo";
	char *text;
	int failed;

	*m = (struct machine_memory){0};
	if (read_text(&text, root, path, MAX_BYTES, err))
		return -1;
	failed = read_kib(&m->total_bytes, text, "MemTotal", path, err) ||
		 read_kib(&m->available_bytes, text, "MemAvailable", path, err);
	free(text);
	if (failed)
		return -1;
	apply_cgroups(m, root);
	return 0;
}

int machine_memlock(struct machine_memlock *m, const char *root, struct err *err)
{
	struct rlimit limit;
	const char *value;
	char *text;

	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		return err_errno(err, errno, "ask for RLIMIT_MEMLOCK");
	if (read_text(&text, root, "/proc/self/status", MAX_BYTES, err))
		return -1;
	value = find_value(text, "CapEff");
	*m = (struct machine_memlock){
		.bytes = limit.rlim_cur == RLIM_INFINITY ? -1 : (int64_t)limit.rlim_cur,
		.most_bytes = limit.rlim_max == RLIM_INFINITY ? -1 : (int64_t)limit.rlim_max,
		.exempt = value && strtoull(value, NULL, 16) >> CAP_IPC_LOCK_BIT & 1,
	};
	free(text);
	return 0;
}

int machine_huge_pages(char **word, const char *root, struct err *err)
{
	static const char path[] = "/sys/kernel/mm/transparent_hugepage/enabled";
	const char *open, *close;
	char *text;

	*word = NULL;
	if (read_text(&text, root, path, MAX_BYTES, err))
		return -1;
	/* "always [madvise] never" */
	open = strchr(text, '[');
	close = open ? strchr(open, ']') : NULL;
	if (close)
		*word = xstrndup(open + 1, (size_t)(close - open - 1));
	else
		err_set(err, ERR_FORMAT, "%s holds \"%.60s\", and no word in brackets", path, text);
	free(text);
	return close ? 0 : -1;
}

/* ---- io_uring ---- */

/* The number in a file, or of a line of it; `otherwise` where there is none. */
static long number_or(const char *root, const char *path, const char *key, long otherwise)
{
	const char *value;
	char *text, *end;
	long n;

	if (read_text(&text, root, path, MAX_BYTES, NULL))
		return otherwise;
	value = key ? find_value(text, key) : text;
	n = value ? strtol(value, &end, 10) : 0;
	if (!value || end == value)
		n = otherwise;
	free(text);
	return n;
}

int machine_io_uring_refusal(int number, const char *root, struct err *err)
{
	long disabled = number_or(root, "/proc/sys/kernel/io_uring_disabled", NULL, 0);
	long group = number_or(root, "/proc/sys/kernel/io_uring_group", NULL, -1);
	bool filtered = number_or(root, "/proc/self/status", "Seccomp", 0) == 2;

	if (number == EPERM && disabled == 2)
		return err_set(err, ERR_UNAVAILABLE, "kernel.io_uring_disabled is 2, which refuses it to everybody");
	if (number == EPERM && disabled == 1)
		return err_set(err, ERR_UNAVAILABLE, "kernel.io_uring_disabled is 1, and this process is not in the group of "
			       "kernel.io_uring_group, which is %ld", group);
	if ((number == EPERM || number == EACCES || number == ENOSYS) && filtered)
		return err_set(err, ERR_UNAVAILABLE, "a seccomp filter refuses it (%s): allow io_uring_setup, io_uring_enter and "
			       "io_uring_register in the container's profile or the unit's SystemCallFilter", strerror(number));
	if (number == ENOSYS)
		return err_set(err, ERR_UNAVAILABLE, "this kernel has none");
	return err_set(err, ERR_UNAVAILABLE, "io_uring_setup says %s", strerror(number));
}

int machine_io_uring(const char *root, struct err *err)
{
	struct io_uring_params params = {0};
	long fd = syscall(SYS_io_uring_setup, 1, &params);

	if (fd < 0)
		return machine_io_uring_refusal(errno, root, err);
	close((int)fd);
	return 0;
}

/* ---- disks ---- */

static const struct {
	unsigned magic;
	const char *name;
	bool in_memory, remote;
} filesystems[] = {
	{EXT4_SUPER_MAGIC, "ext4", false, false}, {XFS_SUPER_MAGIC, "xfs", false, false},
	{BTRFS_SUPER_MAGIC, "btrfs", false, false}, {F2FS_SUPER_MAGIC, "f2fs", false, false},
	{0x2fc12fc1, "zfs", false, false}, {0xca451a4e, "bcachefs", false, false},
	{OVERLAYFS_SUPER_MAGIC, "overlay", false, false}, {ECRYPTFS_SUPER_MAGIC, "ecryptfs", false, false},
	{MSDOS_SUPER_MAGIC, "vfat", false, false}, {TMPFS_MAGIC, "tmpfs", true, false},
	{RAMFS_MAGIC, "ramfs", true, false}, {NFS_SUPER_MAGIC, "nfs", false, true},
	{SMB_SUPER_MAGIC, "smb", false, true}, {CIFS_SUPER_MAGIC, "cifs", false, true},
	{SMB2_SUPER_MAGIC, "smb2", false, true}, {CEPH_SUPER_MAGIC, "ceph", false, true},
	{AFS_SUPER_MAGIC, "afs", false, true}, {V9FS_MAGIC, "9p", false, true},
	{FUSE_SUPER_MAGIC, "fuse", false, true}, {0x0bd00bd0, "lustre", false, true},
	{0x47504653, "gpfs", false, true},
};

int machine_disk(struct machine_disk *d, const char *path, struct err *err)
{
	struct statfs fs;
	struct statvfs room;
	unsigned magic;

	if (statfs(path, &fs) || statvfs(path, &room))
		return err_errno(err, errno, "ask for the file system of %s", path);
	magic = (unsigned)fs.f_type;
	*d = (struct machine_disk){
		.total_bytes = (int64_t)room.f_blocks * (int64_t)room.f_frsize,
		.free_bytes = (int64_t)room.f_bavail * (int64_t)room.f_frsize,
	};
	snprintf(d->type, sizeof d->type, "0x%08x", magic);
	for (size_t i = 0; i < sizeof filesystems / sizeof *filesystems; i++) {
		if (filesystems[i].magic != magic)
			continue;
		snprintf(d->type, sizeof d->type, "%s", filesystems[i].name);
		d->in_memory = filesystems[i].in_memory;
		d->remote = filesystems[i].remote;
	}
	return 0;
}

/* The smallest alignment of 512 and 4096 at which the bytes of an open file come past the page cache. */
static int measure_direct_io(struct machine_direct_io *d, int fd, char *memory, struct err *err)
{
	d->measured = true;
	for (uint32_t align = 512; align <= 4096; align *= 8) {
		ssize_t n = pread(fd, memory + align, align, (off_t)align);

		if (n == (ssize_t)align) {
			d->memory_align = d->offset_align = align;
			return 0;
		}
		if (n >= 0 || errno != EINVAL)
			return err_errno(err, n >= 0 ? EIO : errno, "read %u bytes directly", align);
	}
	return 0;
}

static int ask_direct_io(struct machine_direct_io *d, int fd, char *memory, struct err *err)
{
	ssize_t n = pwrite(fd, memory, 8192, 0);
	int flags = fcntl(fd, F_GETFL);

	if (n != 8192)
		return err_errno(err, n < 0 ? errno : ENOSPC, "write 8 KiB");
#ifdef STATX_DIOALIGN
	struct statx stx;

	if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) && stx.stx_mask & STATX_DIOALIGN) {
		d->memory_align = stx.stx_dio_mem_align;
		d->offset_align = stx.stx_dio_offset_align;
		return 0;
	}
#endif
	if (fcntl(fd, F_SETFL, flags | O_DIRECT))
		return errno == EINVAL ? 0 : err_errno(err, errno, "ask for direct I/O");
	return measure_direct_io(d, fd, memory, err);
}

int machine_direct_io(struct machine_direct_io *d, const char *dir, struct err *err)
{
	char *path = xasprintf("%s/.quire-doctor-XXXXXX", dir), *memory = NULL;
	int fd = mkostemp(path, O_CLOEXEC), failed;

	*d = (struct machine_direct_io){0};
	if (fd < 0) {
		failed = err_errno(err, errno, "make a file in %s", dir);
	} else {
		unlink(path);
		memory = aligned_alloc(4096, 8192);
		if (!memory)
			abort(); /* as xmalloc does */
		memset(memory, 0, 8192);
		failed = ask_direct_io(d, fd, memory, err);
		if (failed)
			err_wrap(err, "a file in %s", dir);
		close(fd);
	}
	free(memory);
	free(path);
	return failed;
}
