#include "tests/support/small_disk.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), rc;

	if (fd < 0)
		return -1;
	rc = write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1;
	close(fd);
	return rc;
}

int small_disk_mount(const char *dir, size_t bytes)
{
	char users[64], groups[64], size[64];

	snprintf(users, sizeof users, "0 %u 1", (unsigned)geteuid());
	snprintf(groups, sizeof groups, "0 %u 1", (unsigned)getegid());
	snprintf(size, sizeof size, "size=%zu", bytes);
	/* Who gave up being root owns its own /proc only so; and whom nobody maps may not make files. */
	return prctl(PR_SET_DUMPABLE, 1) || unshare(CLONE_NEWUSER | CLONE_NEWNS) ||
	       write_text("/proc/self/setgroups", "deny") || write_text("/proc/self/uid_map", users) ||
	       write_text("/proc/self/gid_map", groups) || mount("none", dir, "tmpfs", 0, size);
}
