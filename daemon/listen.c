#include "daemon/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "config/file.h"
#include "config/mem.h"

enum { BACKLOG = 128 };

struct listen {
	char *path, *lock_path;
	int lock_fd;
	bool bound;
};

/* The directories above the socket that are missing, each for us alone. */
static int make_directories(const char *socket_path, struct err *err)
{
	char *dir = xstrdup(socket_path), *slash = strrchr(dir, '/');
	struct stat st;
	int result;

	if (!slash || slash == dir) {
		free(dir);
		return 0;
	}
	*slash = '\0';
	result = file_make_directories(dir, err);
	if (!result && stat(dir, &st))
		result = err_errno(err, errno, "look at the directory %s", dir);
	/* In a directory that others may write to, they could put their own socket in our place. */
	if (!result && ((st.st_uid != getuid() && st.st_uid != 0) || ((st.st_mode & 022) && !(st.st_mode & S_ISVTX))))
		result = err_set(err, ERR_PERMISSION, "others can write to the directory %s: the socket needs one of its own",
				 dir);
	free(dir);
	return result;
}

static int take_lock(struct listen *l, struct err *err)
{
	char pid[32] = "";
	ssize_t n;

	l->lock_fd = open(l->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (l->lock_fd < 0)
		return err_errno(err, errno, "open the lock %s", l->lock_path);
	if (flock(l->lock_fd, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK)
			return err_errno(err, errno, "lock %s", l->lock_path);
		n = pread(l->lock_fd, pid, sizeof pid - 1, 0);
		pid[n > 0 ? strspn(pid, "0123456789") : 0] = '\0';
		return err_set(err, ERR_BUSY, "a daemon listens at %s already%s%s: stop it, or choose another socket",
			       l->path, pid[0] ? ", process " : "", pid);
	}
	n = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
	if (ftruncate(l->lock_fd, 0) || pwrite(l->lock_fd, pid, (size_t)n, 0) != n)
		return err_errno(err, errno, "write the lock %s", l->lock_path);
	return 0;
}

int listen_open(struct listen **out, const char *socket_path, struct err *err)
{
	struct listen *l;

	if (strlen(socket_path) >= sizeof((struct sockaddr_un *)0)->sun_path)
		return err_set(err, ERR_USAGE, "the socket path %s is too long: %zu bytes, and %zu are possible", socket_path,
			       strlen(socket_path), sizeof((struct sockaddr_un *)0)->sun_path - 1);
	l = xcalloc(1, sizeof *l);
	l->lock_fd = -1;
	l->path = xstrdup(socket_path);
	l->lock_path = xasprintf("%s.lock", socket_path);
	if (make_directories(socket_path, err) || take_lock(l, err)) {
		listen_close(l);
		return -1;
	}
	*out = l;
	return 0;
}

/* We hold the lock: a socket that is there belongs to nobody. */
static int remove_stale(struct listen *l, struct err *err)
{
	struct stat st;

	if (lstat(l->path, &st))
		return errno == ENOENT ? 0 : err_errno(err, errno, "look at %s", l->path);
	if (!S_ISSOCK(st.st_mode))
		return err_set(err, ERR_USAGE, "%s is there and is not a socket: remove it, or choose another path", l->path);
	return unlink(l->path) ? err_errno(err, errno, "remove the old socket %s", l->path) : 0;
}

int listen_begin(struct listen *l, int *fd, struct err *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	mode_t mask;
	int s, failed;

	if (remove_stale(l, err))
		return -1;
	memcpy(address.sun_path, l->path, strlen(l->path) + 1);
	s = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s < 0)
		return err_errno(err, errno, "make a socket");
	mask = umask(0177);
	failed = bind(s, (struct sockaddr *)&address, sizeof address) || listen(s, BACKLOG);
	umask(mask);
	if (failed) {
		err_errno(err, errno, "listen at %s", l->path);
		close(s);
		return -1;
	}
	l->bound = true;
	*fd = s;
	return 0;
}

void listen_close(struct listen *l)
{
	if (!l)
		return;
	if (l->bound)
		unlink(l->path);
	/* The lock file stays: removing it could take it from under a daemon that is just starting. */
	if (l->lock_fd >= 0)
		close(l->lock_fd);
	free(l->path);
	free(l->lock_path);
	free(l);
}
