#include "cache/segment.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"
#include "offload/io.h"

/* A file grows by half its size, so that a large store has few and long runs of blocks and a small one stays small. */
#define STEP_LEAST ((int64_t)1 << 20)
#define STEP_MOST ((int64_t)1 << 30)
#define SEGMENT_MOST ((int64_t)16 << 30)
enum { N_SEGMENTS_MOST = 999999 };

enum {
	DEPTH = 64,              /* where a virtual disk and an NVMe drive give no more small reads a second */
	PIECE_BYTES = 1 << 20,   /* of a write */
	READ_PIECE = SEGMENT_READ_GOOD,
	/* Bytes under way for segments_read_many: all of DEPTH, since disks differ in how much of it they make use of. */
	READING_MOST = DEPTH * READ_PIECE,
	/* A disk may give all of that back at once: then it is looked at while as much again is under way. Small reads are
	 * looked at in no time, and many begun at once keep a virtual disk waiting for the last of them. */
	N_READINGS = 2 * DEPTH,
	SMALL_READ = 64 << 10,   /* what a reading's own buffer has room for, at the least */
	SLOT_BYTES = READ_PIECE + 2 * EXTENT_ALIGN, /* larger reads: slots lie in huge pages, which the kernel pins as one */
};

struct file {
	struct io_file f;      /* fd -1: no such file */
	int64_t bytes;
	int64_t claimed;       /* where its last extent ends: beyond `bytes` when the file was cut */
	bool dirty;
};

/* A read in flight. */
struct reading {
	struct io_request r;
	size_t number;         /* of the caller's reads */
	int64_t skip;          /* bytes before those that are wanted */
	uint8_t *buffer;       /* `own`, or a slot of the segments' */
	uint8_t *own;          /* [room] */
	size_t room;
};

struct segments {
	char *dir;
	struct io_options io_options;
	struct io *io;         /* NULL: nothing was read or written yet */
	struct reading *readings;      /* [N_READINGS] */
	uint8_t *slots;        /* [N_READINGS][SLOT_BYTES] NULL: none was needed yet */
	int free_readings[N_READINGS], n_free_readings;
	int dir_fd;
	bool dir_dirty;        /* a file was made whose name may not be on disk yet */
	struct file *files;    /* [n_files], segment s at s - 1 */
	int32_t n_files;
	struct extent *free;   /* ascending, apart: neighbours are merged */
	size_t n_free, room;
	int64_t max_bytes;     /* 0: no limit */
	int64_t n_reads, read_bytes;
};

char *segment_name(int32_t segment, char out[SEGMENT_NAME_BYTES])
{
	snprintf(out, SEGMENT_NAME_BYTES, "segment-%06" PRId32, segment);
	return out;
}

static int64_t round_up(int64_t bytes)
{
	return (bytes + EXTENT_ALIGN - 1) / EXTENT_ALIGN * EXTENT_ALIGN;
}

static struct file *file_of(const struct segments *s, int32_t segment)
{
	return segment >= 1 && segment <= s->n_files ? &s->files[segment - 1] : NULL;
}

/* The sentence of a system call that failed on a segment, with what to do where there is something. */
static int file_error(const struct segments *s, struct err *err, int number, const char *what, int32_t segment,
		      int64_t at)
{
	char name[SEGMENT_NAME_BYTES];

	segment_name(segment, name);
	if (number == ENOSPC || number == EDQUOT || number == EFBIG)
		return err_set(err, ERR_IO, "%s %s/%s at byte %" PRId64 ": %s; free space there and start again: what "
			       "is stored stays", what, s->dir, name, at, strerror(number));
	return err_errno(err, number, "%s %s/%s at byte %" PRId64, what, s->dir, name, at);
}

/* The first free extent that ends after (segment, offset). */
static size_t free_find(const struct segments *s, int32_t segment, int64_t offset)
{
	size_t low = 0, high = s->n_free;

	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct extent *f = &s->free[mid];

		if (f->segment < segment || (f->segment == segment && f->offset + f->bytes <= offset))
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void free_insert(struct segments *s, size_t at, struct extent x)
{
	if (s->n_free == s->room) {
		s->room = s->room ? 2 * s->room : 64;
		s->free = xrealloc(s->free, s->room, sizeof *s->free);
	}
	memmove(&s->free[at + 1], &s->free[at], (s->n_free - at) * sizeof *s->free);
	s->free[at] = x;
	s->n_free++;
}

static void free_delete(struct segments *s, size_t at)
{
	s->n_free--;
	memmove(&s->free[at], &s->free[at + 1], (s->n_free - at) * sizeof *s->free);
}

static void free_add(struct segments *s, struct extent x)
{
	size_t at = free_find(s, x.segment, x.offset);
	struct extent *f = s->free;

	assert(at == s->n_free || f[at].segment != x.segment || f[at].offset >= x.offset + x.bytes);
	if (at < s->n_free && f[at].segment == x.segment && f[at].offset == x.offset + x.bytes) {
		x.bytes += f[at].bytes;
		free_delete(s, at);
	}
	if (at && f[at - 1].segment == x.segment && f[at - 1].offset + f[at - 1].bytes == x.offset)
		f[at - 1].bytes += x.bytes;
	else
		free_insert(s, at, x);
}

/* Room for `segment`; those before it that do not exist have fd -1. */
static void files_grow(struct segments *s, int32_t segment)
{
	if (segment <= s->n_files)
		return;
	s->files = xrealloc(s->files, (size_t)segment, sizeof *s->files);
	for (; s->n_files < segment; s->n_files++)
		s->files[s->n_files] = (struct file){.f = {.fd = -1, .direct_fd = -1}};
}

/* Tolerant, since its numbers come from rows that may be damaged: space that two rows claim is taken once, and
 * may be given back twice. */
void segments_take(struct segments *s, struct extent x)
{
	size_t at;

	if (x.segment < 1 || x.segment > N_SEGMENTS_MOST || x.bytes <= 0 || x.offset < 0 ||
	    x.bytes > INT64_MAX / 2 - x.offset)
		return;
	files_grow(s, x.segment);
	if (s->files[x.segment - 1].claimed < x.offset + x.bytes)
		s->files[x.segment - 1].claimed = x.offset + x.bytes;
	for (at = free_find(s, x.segment, x.offset); at < s->n_free; ) {
		struct extent f = s->free[at];
		int64_t from = f.offset > x.offset ? f.offset : x.offset;
		int64_t to = f.offset + f.bytes < x.offset + x.bytes ? f.offset + f.bytes : x.offset + x.bytes;

		if (f.segment != x.segment || f.offset >= x.offset + x.bytes)
			break;
		free_delete(s, at);
		if (f.offset < from)
			free_insert(s, at++, (struct extent){f.segment, f.offset, from - f.offset});
		if (to < f.offset + f.bytes)
			free_insert(s, at++, (struct extent){f.segment, to, f.offset + f.bytes - to});
	}
}

void segments_release(struct segments *s, struct extent x)
{
	const struct file *file = file_of(s, x.segment);

	/* An extent of a lost or shortened file is not space to write to. */
	if (!file || x.offset < 0 || x.bytes <= 0 || x.bytes > file->bytes || x.offset > file->bytes - x.bytes)
		return;
	segments_take(s, x); /* it may be free already */
	free_add(s, x);
}

/* `files` may move when it grows: no request is pending then, as none outlives the call that made it. */
static int file_open(struct segments *s, int32_t segment, int flags, struct err *err)
{
	char name[SEGMENT_NAME_BYTES];
	struct file *file;

	files_grow(s, segment);
	file = &s->files[segment - 1];
	if (io_open_at(&file->f, s->dir_fd, s->dir, segment_name(segment, name),
		       IO_OPEN_WRITE | IO_OPEN_NOFOLLOW | IO_OPEN_DIRECT | flags, err)) {
		file->f = (struct io_file){.fd = -1, .direct_fd = -1};
		return -1;
	}
	if (file->f.align > EXTENT_ALIGN) { /* extents do not begin on such blocks */
		close(file->f.direct_fd);
		file->f.direct_fd = -1;
		file->f.align = EXTENT_ALIGN;
		file->f.why_not_direct = "its file system has blocks above 4096 bytes for direct access";
	}
	/* A file cut in the middle of a page has nothing to offer after the last whole one. */
	file->bytes = (int64_t)file->f.bytes / EXTENT_ALIGN * EXTENT_ALIGN;
	if (file->bytes)
		free_add(s, (struct extent){segment, 0, file->bytes});
	if (s->io)
		io_use_file(s->io, &file->f);
	return 0;
}

int segments_open(struct segments **out, const char *dir, const struct io_options *io, struct err *err)
{
	struct segments *s = xcalloc(1, sizeof *s);
	DIR *d = NULL;
	int fd, rc = 0;

	s->dir = xstrdup(dir);
	if (io)
		s->io_options = *io;
	s->io_options.purpose = "the store's segments";
	if (!s->io_options.depth)
		s->io_options.depth = DEPTH;
	if (!s->io_options.piece_bytes)
		s->io_options.piece_bytes = PIECE_BYTES;
	s->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fd = s->dir_fd < 0 ? -1 : openat(s->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || !(d = fdopendir(fd))) {
		rc = err_errno(err, errno, "open %s", dir);
		if (fd >= 0)
			close(fd);
		segments_close(s);
		return rc;
	}
	for (struct dirent *e; !rc && (e = readdir(d)); ) {
		char name[SEGMENT_NAME_BYTES];
		int32_t segment;

		if (sscanf(e->d_name, "segment-%6" SCNd32, &segment) == 1 && segment >= 1 &&
		    !strcmp(segment_name(segment, name), e->d_name))
			rc = file_open(s, segment, 0, err);
	}
	closedir(d);
	if (rc)
		segments_close(s);
	else
		*out = s;
	return rc;
}

void segments_close(struct segments *s)
{
	if (!s)
		return;
	io_free(s->io);
	for (int32_t i = 0; i < s->n_files; i++)
		if (s->files[i].f.fd >= 0)
			io_close(&s->files[i].f);
	for (int i = 0; s->readings && i < N_READINGS; i++)
		free(s->readings[i].own);
	free(s->readings);
	free(s->slots);
	if (s->dir_fd >= 0)
		close(s->dir_fd);
	free(s->files);
	free(s->free);
	free(s->dir);
	free(s);
}

/* Where a file may grow: not over the place of an extent that was cut off, whose row still names it. */
static int64_t file_end(const struct file *file)
{
	return file->bytes > file->claimed ? file->bytes : file->claimed;
}

/* Preallocate, so that a full disk is met here and not in the middle of a write. */
static int file_extend(struct segments *s, int32_t segment, int64_t bytes, struct err *err)
{
	struct file *file = &s->files[segment - 1];
	int64_t step = file->bytes / 2 / EXTENT_ALIGN * EXTENT_ALIGN, end = file_end(file);
	int rc;

	step = step < STEP_LEAST ? STEP_LEAST : step > STEP_MOST ? STEP_MOST : step;
	if (s->max_bytes) {
		int64_t used, all;

		segments_sizes(s, &used, &all);
		if (step > s->max_bytes - all)
			step = s->max_bytes > all ? (s->max_bytes - all) / EXTENT_ALIGN * EXTENT_ALIGN : 0;
	}
	if (step < bytes)
		step = bytes;
	rc = fallocate(file->f.fd, 0, end, step) ? errno : 0;
	if ((rc == ENOSPC || rc == EDQUOT || rc == EFBIG) && step > bytes) {
		step = bytes; /* the last corner of a full disk */
		rc = fallocate(file->f.fd, 0, end, step) ? errno : 0;
	}
	if (rc == EOPNOTSUPP || rc == ENOSYS) /* this file system cannot; then a full disk shows at the write */
		rc = ftruncate(file->f.fd, end + step) ? errno : 0;
	if (rc)
		return file_error(s, err, rc, "extend", segment, end);
	free_add(s, (struct extent){segment, end, step});
	file->bytes = end + step;
	file->dirty = true;
	return 0;
}

int segments_reserve(struct segments *s, int64_t bytes, struct extent *out, struct err *err)
{
	int32_t last = s->n_files;
	int64_t tail = 0;

	assert(bytes > 0);
	bytes = round_up(bytes);
	for (size_t i = 0; i < s->n_free; i++) {
		if (s->free[i].bytes < bytes)
			continue;
		*out = (struct extent){s->free[i].segment, s->free[i].offset, bytes};
		segments_take(s, *out);
		return 0;
	}
	if (!last || s->files[last - 1].f.fd < 0 || file_end(&s->files[last - 1]) + bytes > SEGMENT_MOST) {
		if (last == N_SEGMENTS_MOST)
			return err_set(err, ERR_FAILED, "store %s has used up its segment numbers", s->dir);
		if (file_open(s, ++last, IO_OPEN_CREATE, err))
			return -1;
		s->dir_dirty = true;
	}
	if (s->n_free && s->free[s->n_free - 1].segment == last &&
	    s->free[s->n_free - 1].offset + s->free[s->n_free - 1].bytes == file_end(&s->files[last - 1]))
		tail = s->free[s->n_free - 1].bytes;
	if (file_extend(s, last, bytes - tail, err))
		return -1;
	*out = (struct extent){last, s->free[s->n_free - 1].offset, bytes};
	segments_take(s, *out);
	return 0;
}

static int engine_start(struct segments *s, struct err *err)
{
	if (s->io)
		return 0;
	if (io_new(&s->io, &s->io_options, err))
		return -1;
	for (int32_t i = 0; i < s->n_files; i++)
		if (s->files[i].f.fd >= 0)
			io_use_file(s->io, &s->files[i].f);
	s->readings = xcalloc(N_READINGS, sizeof *s->readings);
	for (int i = N_READINGS; i--; )
		s->free_readings[s->n_free_readings++] = i;
	return 0;
}

int segments_write(struct segments *s, struct extent x, int64_t at, const void *data, int64_t bytes, struct err *err)
{
	struct file *file = file_of(s, x.segment);
	struct io_request r = {.op = IO_WRITE, .class = IO_CLASS_WRITE, .offset = (uint64_t)(x.offset + at),
			       .bytes = (size_t)bytes, .buffer = (void *)(uintptr_t)data};

	assert(file && file->f.fd >= 0 && at >= 0 && bytes >= 0 && bytes <= x.bytes - at);
	assert(!(at % EXTENT_ALIGN) && !(bytes % EXTENT_ALIGN) && !((uintptr_t)data % EXTENT_ALIGN));
	file->dirty = true;
	if (engine_start(s, err))
		return -1;
	r.file = &file->f;
	io_submit(s->io, (struct io_request *[]){&r}, 1);
	if (!io_finish(s->io, &r, err))
		return 0;
	return r.failure > 0 ? file_error(s, err, r.failure, "write", x.segment, (int64_t)r.failed_at) : -1;
}

int segments_sync(struct segments *s, struct err *err)
{
	for (int32_t i = 0; i < s->n_files; i++) {
		if (!s->files[i].dirty)
			continue;
		if (fdatasync(s->files[i].f.fd))
			return file_error(s, err, errno, "sync", i + 1, 0);
		s->files[i].dirty = false;
	}
	if (s->dir_dirty && fsync(s->dir_fd))
		return err_errno(err, errno, "sync directory %s", s->dir);
	s->dir_dirty = false;
	return 0;
}

/* The file that has this part of an extent. */
static struct file *check_place(const struct segments *s, struct extent x, int64_t at, int64_t bytes, struct err *err)
{
	struct file *file = file_of(s, x.segment);
	char name[SEGMENT_NAME_BYTES];

	segment_name(x.segment, name);
	if (!file || file->f.fd < 0)
		err_set(err, ERR_DAMAGED, "%s/%s is missing", s->dir, name);
	else if (x.offset < 0 || at < 0 || bytes < 0 || x.bytes < bytes || at > x.bytes - bytes ||
		 x.offset > INT64_MAX / 2 - at || x.offset + at > INT64_MAX / 2 - bytes)
		err_set(err, ERR_DAMAGED, "index of %s names %" PRId64 " bytes at byte %" PRId64 " of an extent of %" PRId64,
			s->dir, bytes, at, x.bytes);
	else
		return file;
	return NULL;
}

static int give_buffer(struct segments *s, struct reading *g, size_t bytes, struct err *err)
{
	static const char what[] = "a read of the store";

	if (bytes > SMALL_READ && bytes <= SLOT_BYTES) {
		if (!s->slots && !(s->slots = io_buffer_new((size_t)N_READINGS * SLOT_BYTES, what, err)))
			return -1;
		g->buffer = s->slots + (size_t)(g - s->readings) * SLOT_BYTES;
		return 0;
	}
	if (g->room < bytes) {
		free(g->own);
		g->room = bytes > SMALL_READ ? bytes : SMALL_READ;
		g->own = io_buffer_new(g->room, what, err);
		if (!g->own) {
			g->room = 0;
			return -1;
		}
	}
	g->buffer = g->own;
	return 0;
}

/* Make a free place of s->readings ready for a read. The caller submits it. */
static struct reading *read_prepare(struct segments *s, const struct segment_read *read, size_t number, struct err *err)
{
	struct file *file = check_place(s, read->x, read->at, read->bytes, err);
	struct reading *g = &s->readings[s->free_readings[s->n_free_readings - 1]];
	struct io_aligned a;

	if (!file)
		return NULL;
	a = io_align((uint64_t)(read->x.offset + read->at), (uint64_t)read->bytes, file->f.align);
	if (give_buffer(s, g, a.bytes, err))
		return NULL;
	s->n_free_readings--;
	g->number = number;
	g->skip = a.skip;
	g->r = (struct io_request){
		.op = IO_READ, .class = IO_CLASS_KV, .file = &file->f, .offset = a.offset, .bytes = a.bytes,
		.at_least = a.skip + (size_t)read->bytes, .buffer = g->buffer, .tag = g
	};
	s->n_reads++;
	s->read_bytes += (int64_t)a.bytes;
	return g;
}

/* Why a read that came back failed: a file that is too short is damage, whatever the system says of it. */
static int read_check(const struct segments *s, const struct reading *g, const struct segment_read *read,
		      struct err *err)
{
	int64_t end = read->x.offset + read->at + read->bytes;
	char name[SEGMENT_NAME_BYTES];
	struct stat st;

	if (!io_request_check(&g->r, err))
		return 0;
	if (!fstat(g->r.file->fd, &st) && st.st_size < end)
		return err_set(err, ERR_DAMAGED, "%s/%s ends before byte %" PRId64, s->dir,
			       segment_name(read->x.segment, name), end);
	return -1;
}

/* Reads of one call on their way. */
struct stream {
	const struct segment_read *reads;
	size_t n, next, done;     /* next: the first that was not begun */
	int64_t in_flight;        /* bytes */
	struct reading *back[N_READINGS]; /* came back, in this order, and were not looked at yet */
	size_t first_back, n_back;
	size_t *failed;
};

static bool may_begin(const struct stream *t)
{
	int64_t bytes = t->reads[t->next].bytes;
	size_t n = t->next - t->done; /* in flight or back */

	return n - t->n_back < DEPTH && n < (bytes > SMALL_READ ? N_READINGS : DEPTH) &&
	       (!t->in_flight || t->in_flight + bytes <= READING_MOST);
}

/* As many as may be under way. */
static int begin_reads(struct segments *s, struct stream *t, struct err *err)
{
	struct io_request *batch[DEPTH];
	size_t n_batch = 0;
	int rc = 0;

	while (t->next < t->n && may_begin(t)) {
		struct reading *g;

		assert(t->reads[t->next].bytes <= SEGMENT_READ_MOST);
		g = read_prepare(s, &t->reads[t->next], t->next, err);
		if (!g) {
			*t->failed = t->next;
			rc = -1;
			break;
		}
		t->in_flight += t->reads[t->next++].bytes;
		batch[n_batch++] = &g->r;
	}
	if (n_batch)
		io_submit(s->io, batch, n_batch);
	return rc;
}

static void note_back(struct stream *t, struct io_request *r)
{
	struct reading *g = r->tag;

	t->in_flight -= t->reads[g->number].bytes;
	t->back[(t->first_back + t->n_back++) % N_READINGS] = g;
}

/* What began before a failure ends before its buffers are used again. */
static void cancel_reads(struct segments *s)
{
	for (int i = 0; i < N_READINGS; i++)
		if (s->readings[i].r.status == IO_PENDING)
			io_cancel(s->io, &s->readings[i].r);
}

int segments_read_many(struct segments *s, const struct segment_read *reads, size_t n,
		       int (*fn)(void *ctx, size_t i, const uint8_t *bytes, struct err *err), void *ctx, size_t *failed,
		       struct err *err)
{
	struct stream t = {.reads = reads, .n = n, .failed = failed};
	int rc = 0;

	*failed = 0;
	if (n && engine_start(s, err))
		return -1;
	while (t.done < t.next || (!rc && t.next < n)) {
		struct io_request *r;
		struct reading *g;

		/* The disk has its next reads before anybody looks at what it gave: then it works meanwhile. */
		while ((r = io_poll(s->io)))
			note_back(&t, r);
		if (!rc && begin_reads(s, &t, err)) {
			cancel_reads(s);
			rc = -1;
		}
		if (!t.n_back) {
			if (t.done < t.next)
				note_back(&t, io_wait(s->io, -1));
			continue;
		}
		g = t.back[t.first_back++ % N_READINGS];
		t.n_back--;
		t.done++;
		if (!rc && (read_check(s, g, &reads[g->number], err) || fn(ctx, g->number, g->buffer + g->skip, err))) {
			*failed = g->number;
			cancel_reads(s);
			rc = -1;
		}
		s->free_readings[s->n_free_readings++] = (int)(g - s->readings);
	}
	return rc;
}

struct into {
	uint8_t *out;
	const struct segment_read *reads;
};

static int put_piece(void *ctx, size_t i, const uint8_t *bytes, struct err *err)
{
	const struct into *to = ctx;

	(void)err;
	memcpy(to->out + (to->reads[i].at - to->reads[0].at), bytes, (size_t)to->reads[i].bytes);
	return 0;
}

int segments_read(struct segments *s, struct extent x, int64_t at, void *out, int64_t bytes, struct err *err)
{
	int64_t n = bytes > 0 ? (bytes + READ_PIECE - 1) / READ_PIECE : 1;
	struct segment_read one, *reads;
	struct into to = {.out = out};
	size_t failed;
	int rc;

	/* A damaged row may ask for any number. */
	if (!check_place(s, x, at, bytes, err))
		return -1;
	if (!bytes)
		return 0;
	to.reads = reads = n == 1 ? &one : xmalloc((size_t)n, sizeof *reads);
	for (int64_t i = 0; i < n; i++)
		reads[i] = (struct segment_read){
			x, at + i * READ_PIECE, i < n - 1 ? READ_PIECE : bytes - i * READ_PIECE
		};
	rc = segments_read_many(s, reads, (size_t)n, put_piece, &to, &failed, err);
	if (reads != &one)
		free(reads);
	return rc;
}

void segments_counts(const struct segments *s, int64_t *n_reads, int64_t *bytes)
{
	*n_reads = s->n_reads;
	*bytes = s->read_bytes;
}

void segments_set_limit(struct segments *s, int64_t max_bytes)
{
	s->max_bytes = max_bytes;
}

int64_t segments_file_bytes(const struct segments *s, int32_t segment)
{
	const struct file *file = file_of(s, segment);

	return file && file->f.fd >= 0 ? file->bytes : 0;
}

void segments_sizes(const struct segments *s, int64_t *used_bytes, int64_t *file_bytes)
{
	*file_bytes = 0;
	for (int32_t i = 0; i < s->n_files; i++)
		*file_bytes += s->files[i].bytes;
	*used_bytes = *file_bytes;
	for (size_t i = 0; i < s->n_free; i++)
		*used_bytes -= s->free[i].bytes;
}
