#include "ingest/beneath.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "config/mem.h"

/* HELD descriptors at most. PIECE is what one system call is given of a long path; names have at most 255 bytes. */
enum { HELD = 64, PIECE_BYTES = 4000 };

struct beneath {
	int root;
	bool plain;             /* no openat2 here */
	int64_t n_opens;
	char *path;             /* of the deepest directory that is held */
	struct {
		int fd;
		size_t bytes;   /* of the path that leads to it */
	} held[HELD];           /* each somewhere below the one before it */
	int n_held;
};

static void close_keeping_errno(int fd)
{
	int number = errno;

	close(fd);
	errno = number;
}

/* `n` bytes of a path, beneath dir. */
static int open_piece(struct beneath *b, int dir, const char *path, size_t n, int flags)
{
	struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY),
			       .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
	char piece[PIECE_BYTES + 1];
	int fd;

	if (n > PIECE_BYTES) {
		errno = ENAMETOOLONG;
		return -1;
	}
	b->n_opens++;
	memcpy(piece, path, n);
	piece[n] = '\0';
	if (b->plain) {
		/* A single name then, and names come from directories: ".." is none of them. */
		if (!strcmp(piece, "..")) {
			errno = EXDEV;
			return -1;
		}
		return openat(dir, piece, (int)how.flags);
	}
	do
		fd = (int)syscall(SYS_openat2, dir, piece, &how, sizeof how);
	while (fd < 0 && (errno == EAGAIN || errno == EINTR)); /* somebody renames just now */
	return fd;
}

int beneath_new(struct beneath **out, const char *root, bool without_openat2, struct err *err)
{
	struct beneath *b = xcalloc(1, sizeof *b);
	int probe;

	b->root = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (b->root < 0) {
		err_errno(err, errno, "open directory %s", root);
		beneath_free(b);
		return -1;
	}
	probe = open_piece(b, b->root, ".", 1, O_RDONLY | O_DIRECTORY);
	b->plain = without_openat2 || (probe < 0 && (errno == ENOSYS || errno == EPERM));
	if (probe >= 0)
		close(probe);
	*out = b;
	return 0;
}

static void forget(struct beneath *b)
{
	while (b->n_held)
		close_keeping_errno(b->held[--b->n_held].fd);
}

void beneath_free(struct beneath *b)
{
	if (!b)
		return;
	forget(b);
	if (b->root >= 0)
		close(b->root);
	free(b->path);
	free(b);
}

/* Hold one more, the deepest. When there is no room another goes: the one whose neighbours lie closest together for how
 * far above they are. So the gaps grow with the distance, and a walk on its way up finds something held not far above,
 * opens what lies between, holds that in the same way, and never comes down from the root again. */
static void hold(struct beneath *b, int fd, size_t bytes)
{
	if (b->n_held == HELD) {
		int least = 0;
		double least_gap = 1; /* of none is it that much */

		for (int i = 0; i + 1 < HELD; i++) {
			size_t above = i ? b->held[i - 1].bytes : 0, below = b->held[i + 1].bytes;
			double gap = (double)(below - above) / (double)(bytes - above);

			if (gap < least_gap) {
				least_gap = gap;
				least = i;
			}
		}
		close(b->held[least].fd);
		memmove(b->held + least, b->held + least + 1, (size_t)(HELD - 1 - least) * sizeof *b->held);
		b->n_held--;
	}
	b->held[b->n_held].fd = fd;
	b->held[b->n_held++].bytes = bytes;
}

/* Where the last HELD names of a path begin. */
static const char *last_names(const char *path)
{
	const char *p = path + strlen(path);

	for (int names = 0; p > path; p--)
		if (p[-1] == '/' && ++names == HELD)
			break;
	return p;
}

/* The end of the next piece: several names up to `limit` where the kernel takes them, else one. */
static const char *piece_end(const struct beneath *b, const char *p, const char *limit)
{
	const char *slash;

	if (!b->plain && limit > p && limit - p <= PIECE_BYTES)
		return limit - 1; /* the slash before it */
	if (!b->plain && limit > p && (slash = memrchr(p, '/', PIECE_BYTES)))
		return slash;
	slash = strchr(p, '/');
	return slash ? slash : p + strlen(p);
}

int beneath_directory(struct beneath *b, const char *path)
{
	const char *p = path, *near = last_names(path);

	while (b->n_held) {
		size_t n = b->held[b->n_held - 1].bytes;

		if (!strncmp(path, b->path, n) && (path[n] == '/' || !path[n])) {
			p = path + n + (path[n] == '/');
			break;
		}
		close(b->held[--b->n_held].fd);
	}
	while (*p) {
		const char *end = piece_end(b, p, near);
		int at = b->n_held ? b->held[b->n_held - 1].fd : b->root;
		int fd = open_piece(b, at, p, (size_t)(end - p), O_RDONLY | O_DIRECTORY);

		if (fd < 0) {
			forget(b); /* b->path goes with what is held */
			return -1;
		}
		hold(b, fd, (size_t)(end - path));
		p = *end ? end + 1 : end;
	}
	free(b->path);
	b->path = xstrdup(path);
	return b->n_held ? b->held[b->n_held - 1].fd : b->root;
}

int beneath_open(struct beneath *b, const char *path, int flags)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	char *directory = slash ? xstrndup(path, (size_t)(slash - path)) : xstrdup("");
	int fd = -1, dir;

	/* What is held may have been moved away since: a second look begins at the root. */
	for (int try = 0; try < 2 && fd < 0; try++) {
		dir = beneath_directory(b, directory);
		if (dir >= 0)
			fd = open_piece(b, dir, name, strlen(name), flags);
		if (fd < 0)
			forget(b);
		if (fd < 0 && errno != ENOENT)
			break;
	}
	free(directory);
	return fd;
}

int64_t beneath_n_opens(const struct beneath *b)
{
	return b->n_opens;
}
