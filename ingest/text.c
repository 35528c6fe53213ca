#include "ingest/text.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ingest/encoding.h"
#include "ingest/html.h"
#include "ingest/pdf.h"

/* What the caller includes may be larger than other files, and is never endless: a sparse file has any size. */
enum { N_TRIES = 3, TICK_MS = 10, INCLUDED_TIMES = 64 };

enum kind { TEXT, HTML, PDF };

static enum kind kind_of(const char *path)
{
	static const char *const html[] = {".html", ".htm", ".xhtml"};
	size_t n = strlen(path);

	for (size_t i = 0; i < sizeof html / sizeof *html; i++)
		if (n > strlen(html[i]) && !strcasecmp(path + n - strlen(html[i]), html[i]))
			return HTML;
	return n > 4 && !strcasecmp(path + n - 4, ".pdf") ? PDF : TEXT;
}

int64_t text_most_bytes(const char *path, bool included, int64_t max_bytes)
{
	return max_bytes * (kind_of(path) == PDF ? TEXT_PDF_TIMES : included ? INCLUDED_TIMES : 1);
}

static bool same_version(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
	       a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* The clock of a file system ticks: a write within the tick of the last change leaves no trace. So a file that changed
 * just now is given time for its tick to pass. */
static void let_tick_pass(const struct stat *st)
{
	struct timespec now;
	int64_t age_ms;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	age_ms = ((int64_t)now.tv_sec - st->st_ctim.tv_sec) * 1000 + (now.tv_nsec - st->st_ctim.tv_nsec) / 1000000;
	if (age_ms > -TICK_MS && age_ms < TICK_MS)
		poll(NULL, 0, TICK_MS);
}

static int leave_out(char reason[SKIP_REASON_BYTES], const char *why, int number)
{
	snprintf(reason, SKIP_REASON_BYTES, "%s%s%s", why, number ? ": " : "", number ? strerror(number) : "");
	return 0;
}

/* One try: 1 read, 0 left out, -1 it changed meanwhile. */
static int read_once(int fd, int64_t most, char **text, size_t *bytes, char reason[SKIP_REASON_BYTES])
{
	struct stat before, after;
	char *buffer;
	size_t n = 0;

	if (fstat(fd, &before))
		return leave_out(reason, "unreadable", errno);
	if (!S_ISREG(before.st_mode))
		return leave_out(reason, "not a regular file", 0);
	if (before.st_size > most)
		return leave_out(reason, "too large", 0);
	let_tick_pass(&before);
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

/* One version of the file, as it is on disk. */
static int read_file(struct walk *w, const char *path, int64_t most, char **text, size_t *bytes,
		     char reason[SKIP_REASON_BYTES])
{
	if (walk_commit(w))
		return repo_read(walk_commit(w), path, most, text, bytes, reason);
	for (int try = 0; try < N_TRIES; try++) {
		int fd = walk_open(w, path), rc;

		if (fd < 0 && (errno == ELOOP || errno == EXDEV || errno == ENOTDIR))
			return leave_out(reason, "outside the tree", 0); /* it became a link since it was listed */
		if (fd < 0)
			return leave_out(reason, errno == ENXIO ? "not a regular file" : "unreadable",
					 errno == ENXIO ? 0 : errno);
		rc = read_once(fd, most, text, bytes, reason);
		close(fd);
		if (rc >= 0)
			return rc;
	}
	return leave_out(reason, "unstable: it changes while it is read", 0);
}

/* Make text of what was read; 0 and the reason leave *text as it was. */
static int extract(const struct walk_file *f, const struct text_options *opt, char **text, size_t *bytes,
		   char reason[SKIP_REASON_BYTES])
{
	enum kind kind = kind_of(f->path);
	size_t most = (size_t)text_most_bytes("", f->included, opt->max_bytes);
	char *out;
	int rc;

	if (kind == PDF) {
		if (!pdf_to_text(*text, *bytes, most, opt->pdftotext, opt->cancel, &out, bytes, reason))
			return 0;
		free(*text);
		*text = out;
	}
	if (!encoding_to_utf8(text, bytes, kind == HTML))
		return f->included ? 1 : leave_out(reason, "binary", 0);
	if (kind == HTML) {
		rc = html_to_text(*text, *bytes, most, &out, bytes, reason);
		if (!rc)
			return 0;
		free(*text);
		*text = out;
	}
	return f->included || !skip_by_text(*text, *bytes, reason);
}

int text_read(struct walk *w, const struct walk_file *f, const struct text_options *opt, char **text,
	      size_t *bytes, char reason[SKIP_REASON_BYTES])
{
	int64_t most = text_most_bytes(f->path, f->included, opt->max_bytes);

	if (!read_file(w, f->path, most, text, bytes, reason))
		return 0;
	if (extract(f, opt, text, bytes, reason))
		return 1;
	free(*text);
	return 0;
}
