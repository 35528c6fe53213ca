#include "engine/expert_sums.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"
#include "config/xxh3.h"
#include "engine/model.h"

enum { UNKNOWN, FIRST_READ, VERIFIED };
static const char magic[16] = "quire-sums 2\n";

/* The file: magic, fingerprint, then for each expert its sum and how it is known, then the XXH3-64 of all of that. */
struct record {
	uint64_t sum, how;
};

struct expert_sums {
	char *path;
	uint8_t fingerprint[32];
	size_t n;
	struct record *records;
	bool changed, shipped;
};

static int read_file(struct expert_sums *s, const char *path, struct err *err)
{
	size_t wanted = sizeof magic + sizeof s->fingerprint + s->n * sizeof *s->records + sizeof(uint64_t), bytes;
	uint64_t sum;
	char *text;
	int rc = 0;

	if (file_read(&text, &bytes, path, wanted, err))
		return -1;
	if (bytes == wanted)
		memcpy(&sum, text + bytes - sizeof sum, sizeof sum);
	if (bytes != wanted || sum != xxh3_sum(text, bytes - sizeof sum, 0))
		rc = err_set(err, ERR_DAMAGED, "%s is damaged", path);
	else if (memcmp(text, magic, sizeof magic))
		rc = err_set(err, ERR_MISMATCH, "%s is of another version of quire", path);
	else if (memcmp(text + sizeof magic, s->fingerprint, sizeof s->fingerprint))
		rc = err_set(err, ERR_MISMATCH, "%s is of another model", path);
	else
		memcpy(s->records, text + sizeof magic + sizeof s->fingerprint, s->n * sizeof *s->records);
	free(text);
	return rc;
}

static int read_shipped(struct expert_sums *s, const char *dir, struct err *err)
{
	char *path = xasprintf("%s/" EXPERT_SUMS_NAME, dir);
	int rc = 0;

	s->shipped = !faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) || errno != ENOENT;
	if (s->shipped && read_file(s, path, err))
		rc = err_wrap(err, "checksums of packed experts (fetch or pack the model again; without the file each expert "
			      "is trusted from its first read on)");
	free(path);
	return rc;
}

int expert_sums_open(struct expert_sums **out, const char *dir, const char *path, const uint8_t *fingerprint, size_t n,
		     struct err *err)
{
	struct expert_sums *s = xcalloc(1, sizeof *s);
	struct err why;

	s->n = n;
	s->records = xcalloc(n, sizeof *s->records);
	if (dir && read_shipped(s, dir, err)) {
		expert_sums_close(s, NULL);
		return -1;
	}
	if (fingerprint)
		memcpy(s->fingerprint, fingerprint, sizeof s->fingerprint);
	if (path && !s->shipped) {
		s->path = xstrdup(path);
		if (!access(path, F_OK) && read_file(s, path, &why))
			log_warn("checksums of experts are noted anew: %s", why.text);
	}
	*out = s;
	return 0;
}

bool expert_sums_shipped(const struct expert_sums *s)
{
	return s->shipped;
}

static int write_file(const struct expert_sums *s, struct err *err)
{
	size_t bytes = sizeof magic + sizeof s->fingerprint + s->n * sizeof *s->records;
	char *text = xmalloc(bytes + sizeof(uint64_t), 1);
	uint64_t sum;
	int rc;

	memcpy(text, magic, sizeof magic);
	memcpy(text + sizeof magic, s->fingerprint, sizeof s->fingerprint);
	memcpy(text + sizeof magic + sizeof s->fingerprint, s->records, s->n * sizeof *s->records);
	sum = xxh3_sum(text, bytes, 0);
	memcpy(text + bytes, &sum, sizeof sum);
	rc = file_replace(s->path, text, bytes + sizeof sum, err);
	free(text);
	return rc;
}

int expert_sums_close(struct expert_sums *s, struct err *err)
{
	int rc = s->path && s->changed ? write_file(s, err) : 0;

	free(s->path);
	free(s->records);
	free(s);
	return rc;
}

uint64_t expert_sum(const uint64_t *sums, size_t n)
{
	return xxh3_sum(sums, n * sizeof *sums, 0);
}

uint64_t expert_sum_int4(const struct expert *e)
{
	const struct weight *all[] = {&e->gate, &e->up, &e->down};
	size_t n = 0;
	uint64_t *sums = NULL, sum;

	for (int i = 0; i < 6; i++) {
		const struct weight *w = all[i / 2];
		size_t bytes = (size_t)w->rows * (i % 2 ? (size_t)weight_groups(w) * sizeof *w->group_scale : weight_row_bytes(w));

		sums = xrealloc(sums, n + weight_n_sums(bytes), sizeof *sums);
		memset(sums + n, 0, weight_n_sums(bytes) * sizeof *sums);
		for (size_t k = 0; k < weight_n_sums(bytes); k++)
			weight_sum(sums + n, k, i % 2 ? (const void *)w->group_scale : w->data, bytes);
		n += weight_n_sums(bytes);
	}
	sum = expert_sum(sums, n);
	free(sums);
	return sum;
}

bool expert_sums_known(const struct expert_sums *s, size_t i)
{
	return s->records[i].how != UNKNOWN;
}

bool expert_sums_match(const struct expert_sums *s, size_t i, uint64_t sum)
{
	return s->records[i].how == UNKNOWN || s->records[i].sum == sum;
}

void expert_sums_note(struct expert_sums *s, size_t i, uint64_t sum)
{
	if (s->records[i].how != UNKNOWN)
		return;
	s->records[i] = (struct record){sum, FIRST_READ};
	s->changed = true;
}

void expert_sums_verified(struct expert_sums *s, size_t i)
{
	s->changed |= s->records[i].how != VERIFIED;
	s->records[i].how = VERIFIED;
}

int64_t expert_sums_trusted_first(const struct expert_sums *s)
{
	int64_t n = 0;

	for (size_t i = 0; i < s->n; i++)
		n += s->records[i].how == FIRST_READ;
	return n;
}
