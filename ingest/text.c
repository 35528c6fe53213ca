#include "ingest/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"
#include "config/utf8.h"

enum { LOOK_BYTES = 8192, N_TRIES = 3 };

bool text_is_binary(const char *text, size_t bytes)
{
	const unsigned char *p = (const unsigned char *)text;
	size_t n = bytes < LOOK_BYTES ? bytes : LOOK_BYTES, odd = 0;

	if (memchr(text, '\0', n))
		return true;
	for (size_t i = 0; i < n; ) {
		size_t length = utf8_length(p[i]), whole = utf8_prefix(p + i, bytes - i);

		odd += !length || whole != length;
		i += length && whole == length ? length : 1;
	}
	return odd * 10 > n;
}

static bool same_version(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
	       a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static int leave_out(char reason[SKIP_REASON_BYTES], const char *why, int number)
{
	snprintf(reason, SKIP_REASON_BYTES, "%s%s%s", why, number ? ": " : "", number ? strerror(number) : "");
	return 0;
}

/* One try: 1 read, 0 left out, -1 it changed meanwhile. */
static int read_once(int fd, const struct walk_file *f, int64_t max_bytes, char **text, size_t *bytes,
		     char reason[SKIP_REASON_BYTES])
{
	struct stat before, after;
	char *buffer;
	size_t n = 0;

	if (fstat(fd, &before))
		return leave_out(reason, "unreadable", errno);
	if (!S_ISREG(before.st_mode))
		return leave_out(reason, "not a regular file", 0);
	if (!f->included && before.st_size > max_bytes)
		return leave_out(reason, "too large", 0);
	buffer = malloc((size_t)before.st_size + 1);
	if (!buffer)
		return leave_out(reason, "too large", 0);
	/* One byte more than it should have: a file that grows, or whose size is a lie, is noticed and not followed. */
	while (n <= (size_t)before.st_size) {
		ssize_t got = read(fd, buffer + n, (size_t)before.st_size + 1 - n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			int number = errno;

			free(buffer);
			return leave_out(reason, "unreadable", number);
		}
		if (!got)
			break;
		n += (size_t)got;
	}
	if (fstat(fd, &after) || !same_version(&before, &after) || n != (size_t)before.st_size) {
		free(buffer);
		return -1;
	}
	*text = buffer;
	*bytes = n;
	return 1;
}

int text_read(const struct walk *w, const struct walk_file *f, int64_t max_bytes, char **text, size_t *bytes,
	      char reason[SKIP_REASON_BYTES])
{
	for (int try = 0; try < N_TRIES; try++) {
		int fd = walk_open(w, f->path), rc;

		if (fd < 0 && (errno == ELOOP || errno == EXDEV || errno == ENOTDIR))
			return leave_out(reason, "outside the tree", 0); /* it became a link since it was listed */
		if (fd < 0)
			return leave_out(reason, errno == ENXIO ? "not a regular file" : "unreadable",
					 errno == ENXIO ? 0 : errno);
		rc = read_once(fd, f, max_bytes, text, bytes, reason);
		close(fd);
		if (rc == 1 && !f->included) {
			if (text_is_binary(*text, *bytes))
				rc = leave_out(reason, "binary", 0);
			else if (skip_by_text(*text, *bytes, reason))
				rc = 0;
			if (!rc)
				free(*text);
		}
		if (rc >= 0)
			return rc;
	}
	return leave_out(reason, "unstable: it changes while it is read", 0);
}
