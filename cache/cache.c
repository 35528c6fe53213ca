#include "cache/cache.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/inside.h"
#include "cache/key.h"
#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"

/* (1) A row is committed only after the bytes that it names have been synced (run.c).
 * (2) Space is given back only after the transaction that dropped its rows has been committed.
 * (3) What is free is worked out from the rows at open. Nothing else records it, so a crash cannot lose any.
 * (4) After a sync or commit that failed, nobody knows what is on disk: `unsure`, no more writes by this handle.  */

/* One process has the store. The lock is the kernel's, so it goes with its holder; the pid is only for the message. */
static int lock_take(struct cache *c, struct err *err)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char *path = xasprintf("%s/lock", c->dir), pid[32] = "";
	int rc = 0;

	c->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (c->lock_fd < 0) {
		rc = err_errno(err, errno, "open %s", path);
	} else if (fcntl(c->lock_fd, F_OFD_SETLK, &lock)) {
		if (errno != EAGAIN && errno != EACCES)
			rc = err_errno(err, errno, "lock %s", path);
		else if (pread(c->lock_fd, pid, sizeof pid - 1, 0) > 0)
			rc = err_set(err, ERR_BUSY, "store %s is in use by process %ld", c->dir, strtol(pid, NULL, 10));
		else
			rc = err_set(err, ERR_BUSY, "store %s is in use by another process", c->dir);
	} else {
		snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
		if (ftruncate(c->lock_fd, 0) || pwrite(c->lock_fd, pid, strlen(pid), 0) < 0)
			rc = err_errno(err, errno, "write %s", path);
	}
	free(path);
	return rc;
}

/* The store holds what other people's files say: nobody else may look. */
int cache_check_directory(const char *dir, struct err *err)
{
	struct stat st;

	if (stat(dir, &st))
		return err_errno(err, errno, "look at %s", dir);
	if (!S_ISDIR(st.st_mode))
		return err_set(err, ERR_FORMAT, "%s is not a directory", dir);
	if (st.st_uid != geteuid())
		return err_set(err, ERR_PERMISSION, "store %s belongs to user %ld, this process is user %ld", dir,
			       (long)st.st_uid, (long)geteuid());
	if (st.st_mode & 0007)
		return err_set(err, ERR_PERMISSION, "store %s is open to everybody (mode %04o): chmod 700 %s", dir,
			       (unsigned)st.st_mode & 07777, dir);
	return 0;
}

static void take(void *ctx, struct extent x)
{
	segments_take(ctx, x);
}

/* In doubt it is: what is left is looked at again when the store is opened. */
static bool has_job(void *ctx, int64_t job)
{
	struct err err;

	return index_has_job(ctx, job, &err);
}

int cache_find_space(struct cache *c, struct err *err)
{
	/* What runs have written so far is synced here: files that are opened anew do not know of it. */
	if (c->runs && segments_sync(c->segments, err))
		return -1;
	segments_close(c->segments);
	c->segments = NULL;
	if (segments_open(&c->segments, c->dir, c->io, err))
		return -1;
	segments_set_limit(c->segments, c->max_bytes);
	return index_each_extent(c->index, take, c->segments, err) || cache_runs_take(c, err) ||
	       scratch_clean(c->dir, has_job, c->index, err) ? -1 : 0;
}

int cache_open(struct cache **out, const char *dir, struct err *err)
{
	return cache_open_with(out, dir, NULL, err);
}

int cache_open_with(struct cache **out, const char *dir, const struct io_options *io, struct err *err)
{
	struct cache *c = xcalloc(1, sizeof *c);

	c->io = io;
	c->dir = xstrdup(dir);
	c->lock_fd = -1;
	if (sodium_init() < 0) {
		cache_close(c);
		return err_set(err, ERR_FAILED, "open store %s: libsodium cannot start", dir);
	}
	if (file_make_directories(dir, err) || cache_check_directory(dir, err) || lock_take(c, err)) {
		cache_close(c);
		return -1;
	}
	if (index_open(&c->index, dir, true, err) || cache_find_space(c, err) || file_sync_directory(dir, err)) {
		cache_close(c);
		return err_wrap(err, "open store %s", dir);
	}
	*out = c;
	return 0;
}

void cache_close(struct cache *c)
{
	if (!c)
		return;
	assert(!c->runs);
	index_close(c->index);
	segments_close(c->segments);
	if (c->lock_fd >= 0)
		close(c->lock_fd);
	free(c->pinned);
	free(c->dir);
	free(c);
}

int cache_check_sure(const struct cache *c, struct err *err)
{
	if (c->unsure.code)
		return err_set(err, c->unsure.code, "store %s takes no more writes until quire is restarted, since one failed "
			       "halfway: %s", c->dir, c->unsure.text);
	return 0;
}

int cache_finish(struct cache *c, int rc, struct err *err)
{
	const struct extent *freed;
	const int64_t *ended;
	bool unsure;
	size_t n;

	if (rc) {
		index_rollback(c->index);
		return -1;
	}
	if (index_commit(c->index, &unsure, err)) {
		if (unsure)
			c->unsure = *err;
		return -1;
	}
	freed = index_freed(c->index, &n);
	for (size_t i = 0; i < n; i++)
		segments_release(c->segments, freed[i]);
	ended = index_ended(c->index, &n);
	for (size_t i = 0; i < n; i++) {
		cache_runs_end_job(c, ended[i]);
		scratch_remove(c->dir, ended[i]);
	}
	return 0;
}

bool cache_has_span(struct cache *c, const struct span_key *key)
{
	struct err err;
	int64_t span;
	int rc = index_find_span(c->index, key, true, &span, &err);

	if (rc < 0)
		log_warn("cannot look for a span: %s", err.text);
	return rc > 0;
}

/* The longest beginning that is stored whole; *tip is its last span, 0: none. */
static int known_prefix(struct cache *c, const uint8_t identity[32], const int32_t *ids, int64_t n, int64_t *known,
			int64_t *tip, struct err *err)
{
	struct span_key keys[2];

	*tip = 0;
	for (*known = 0; *known < n; ) {
		int64_t i = *known / CACHE_SPAN_TOKENS;
		int32_t m = span_tokens(n, *known);
		int found;

		span_key_make(&keys[i & 1], identity, i ? &keys[(i - 1) & 1] : NULL, ids + *known, m);
		found = index_find_span(c->index, &keys[i & 1], true, tip, err);
		if (found < 0)
			return -1;
		if (!found)
			break;
		*known += m;
	}
	return 0;
}

int64_t cache_known_prefix(struct cache *c, const uint8_t identity[32], const int32_t *ids, int64_t n)
{
	int64_t known, tip;
	struct err err;

	if (known_prefix(c, identity, ids, n, &known, &tip, &err)) {
		log_warn("cannot look for spans: %s", err.text);
		return 0;
	}
	return known;
}

int cache_begin_ingest(struct cache *c, const char *corpus, const uint8_t identity[32], const int32_t *ids, int64_t n,
		       int64_t *known, struct err *err)
{
	int64_t tip;

	if (cache_check_sure(c, err) || known_prefix(c, identity, ids, n, known, &tip, err) || index_begin(c->index, err))
		return -1;
	return cache_finish(c, index_set_pending(c->index, corpus, tip, err), err);
}

/* Read and verify a span's share of one extent. */
static int read_block(struct cache *c, const struct span_key *key, enum extent_kind kind, int32_t part, uint8_t *out,
		      size_t bytes, struct err *err)
{
	uint64_t sums[CACHE_SPAN_TOKENS];
	int32_t n_sums, sum_tokens;
	struct block b;
	int rc = index_find_block(c->index, key, kind, part, &b, err);
	int64_t at;
	char name[SEGMENT_NAME_BYTES];

	if (rc <= 0)
		return rc ? -1 : err_set(err, ERR_NOT_FOUND, "it is not in the store");
	if ((int64_t)bytes != b.n_tokens * b.token_bytes || b.n_tokens < 1 || b.n_tokens > CACHE_SPAN_TOKENS ||
	    b.place < 0 || b.place >= b.n_places)
		return err_set(err, ERR_DAMAGED, "index of %s says %d tokens of %" PRId64 " bytes, place %d of %d, for %zu "
			       "bytes", c->dir, b.n_tokens, b.token_bytes, b.place, b.n_places, bytes);
	n_sums = kind == EXTENT_LATENTS ? b.n_tokens : 1;
	sum_tokens = kind == EXTENT_LATENTS ? 1 : b.n_tokens;
	at = (int64_t)b.place * CACHE_SPAN_TOKENS * b.token_bytes;
	if (segments_read(c->segments, b.sums, sums_place(kind, part, b.place, b.n_places, b.n_groups) *
			  (int64_t)sizeof *sums, sums, n_sums * (int64_t)sizeof *sums, err) ||
	    segments_read(c->segments, b.extent, at, out, (int64_t)bytes, err))
		return -1;
	c->reads++;
	c->read_bytes += (int64_t)bytes + n_sums * (int64_t)sizeof *sums;
	for (int32_t i = 0; i < n_sums; i++) {
		int64_t offset = (int64_t)i * sum_tokens * b.token_bytes;

		if (record_sum(key, kind, (uint32_t)part, (uint32_t)i, out + offset,
			       (size_t)(sum_tokens * b.token_bytes)) != sums[i])
			return err_set(err, ERR_DAMAGED, "checksum of %s/%s at byte %" PRId64 " is wrong", c->dir,
				       segment_name(b.extent.segment, name), b.extent.offset + at + offset);
	}
	return 0;
}

static int read_part(struct cache *c, const struct span_key *key, enum extent_kind kind, int32_t part, uint8_t *out,
		     size_t bytes, struct err *err)
{
	char name[KEY_NAME_BYTES];
	struct err local;

	if (!read_block(c, key, kind, part, out, bytes, err ? err : (err = &local)))
		return 0;
	c->damaged += err->code == ERR_DAMAGED;
	return err_wrap(err, "span %s, %s %d", span_key_name(key, name),
			kind == EXTENT_LATENTS ? "latents of group" : "index keys of full layer", part);
}

int cache_read_records(struct cache *c, const struct span_key *key, int32_t group, uint8_t *out, size_t bytes,
		       struct err *err)
{
	return read_part(c, key, EXTENT_LATENTS, group, out, bytes, err);
}

int cache_read_index_keys(struct cache *c, const struct span_key *key, int32_t index_layer, uint8_t *out,
			  size_t bytes, struct err *err)
{
	return read_part(c, key, EXTENT_INDEX_KEYS, index_layer, out, bytes, err);
}

int cache_quarantine(struct cache *c, const struct span_key *key, struct err *err)
{
	if (cache_check_sure(c, err) || index_begin(c->index, err))
		return -1;
	return cache_finish(c, index_mark_damaged(c->index, key, err), err);
}

/* The last span of a snapshot, all of whose spans must be there and whole. */
static int snapshot_tip(struct cache *c, const struct cache_snapshot *s, int64_t *tip, struct err *err)
{
	int64_t known;

	if (known_prefix(c, s->identity, s->ids, s->n_tokens, &known, tip, err))
		return -1;
	if (known < s->n_tokens)
		return err_set(err, ERR_FAILED, "token %" PRId64 " of %" PRId64 " is not in the store", known, s->n_tokens);
	return 0;
}

int cache_commit_snapshot(struct cache *c, const struct cache_snapshot *s, int64_t *id, struct err *err)
{
	size_t name_bytes = strlen(s->corpus);
	int64_t tip, layout;

	if (!name_bytes || name_bytes >= sizeof ((struct cache_corpus *)0)->name)
		return err_set(err, ERR_USAGE, "corpus name '%s' must have 1 to %zu bytes", s->corpus,
			       sizeof ((struct cache_corpus *)0)->name - 1);
	if (s->n_tokens <= 0)
		return err_set(err, ERR_USAGE, "corpus '%s' would have no tokens", s->corpus);
	if (cache_check_sure(c, err))
		return -1;
	if (snapshot_tip(c, s, &tip, err) || index_layout(c->index, s->identity, NULL, &layout, err) ||
	    index_begin(c->index, err) ||
	    cache_finish(c, index_add_snapshot(c->index, s, layout, tip, c->keep_snapshots, id, err), err))
		return err_wrap(err, "commit corpus '%s'", s->corpus);
	return 0;
}

int cache_drop_corpus(struct cache *c, const char *corpus, struct err *err)
{
	if (cache_check_sure(c, err) || index_begin(c->index, err))
		return -1;
	return cache_finish(c, index_drop_corpus(c->index, corpus, err), err);
}

int cache_touch(struct cache *c, const char *corpus, int64_t now_s, struct err *err)
{
	if (cache_check_sure(c, err) || index_begin(c->index, err))
		return -1;
	return cache_finish(c, index_touch(c->index, corpus, now_s, err), err);
}

int cache_load_snapshot(struct cache *c, const char *corpus, struct cache_snapshot **out, struct err *err)
{
	return index_load_snapshot(c->index, corpus, 0, out, err);
}

void cache_stats(struct cache *c, struct cache_stats *out)
{
	struct err err;

	*out = (struct cache_stats){.reads = c->reads, .read_bytes = c->read_bytes, .damaged = c->damaged};
	if (index_count(c->index, &out->n_corpora, &out->n_spans, &err))
		log_warn("cannot count the store: %s", err.text);
	out->max_bytes = c->max_bytes;
	segments_sizes(c->segments, &out->used_bytes, &out->file_bytes);
	out->scratch_bytes = scratch_bytes(c->dir);
}

int cache_reader_open(struct cache_reader **out, const char *dir, struct err *err)
{
	struct cache_reader *r = xcalloc(1, sizeof *r);

	if (index_open(&r->index, dir, false, err)) {
		cache_reader_close(r);
		return err_wrap(err, "open store %s", dir);
	}
	*out = r;
	return 0;
}

void cache_reader_close(struct cache_reader *r)
{
	if (!r)
		return;
	index_close(r->index);
	free(r);
}

int cache_list(struct cache_reader *r, struct cache_corpus **out, size_t *n, struct err *err)
{
	return index_list(r->index, out, n, err);
}

int cache_files(struct cache_reader *r, const char *corpus, int64_t id, struct cache_snapshot **out, struct err *err)
{
	int rc = index_begin_reading(r->index, err) || index_load_files(r->index, corpus, id, out, err) ? -1 : 0;

	index_rollback(r->index);
	return rc;
}

void cache_free_corpora(struct cache_corpus *corpora, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(corpora[i].source);
	free(corpora);
}
