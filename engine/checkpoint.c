#include "engine/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/json.h"
#include "config/log.h"
#include "config/mem.h"

enum { MAX_INDEX = 256 << 20 };

#define INDEX_NAME  "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(const struct tensor *const *)a)->name, (*(const struct tensor *const *)b)->name);
}

static const char *shard_name(const struct safetensors *s)
{
	return strrchr(s->file.path, '/') + 1;
}

static int open_shard(struct checkpoint *c, const char *name, struct err *err)
{
	char *path = xasprintf("%s/%s", c->dir, name);
	int failed = safetensors_open(&c->shards[c->n_shards], path, err);

	free(path);
	if (failed)
		return -1;
	c->n_shards++;
	return 0;
}

static int open_single(struct checkpoint *c, struct err *err)
{
	c->shards = xcalloc(1, sizeof *c->shards);
	return open_shard(c, SINGLE_NAME, err);
}

/* ---- the index ------------------------------------------------------------------------------------------------- */

static int check_shard_name(const char *path, const char *tensor, const json_t *shard, struct err *err)
{
	const char *name = json_string_value(shard);

	if (!name)
		return err_set(err, ERR_FORMAT, "%s: weight_map.%s is %s, the name of a file is expected", path, tensor,
			       json_kind(shard));
	if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return err_set(err, ERR_FORMAT, "%s: weight_map.%s is \"%s\"; a shard must be a name in the same "
			       "directory, not a path", path, tensor, name);
	return 0;
}

/* The distinct shards of the map, ascending. *names has room for one a tensor; the strings are the map's. */
static int list_shards(const char ***names, size_t *n_names, const char *path, const json_t *map, struct err *err)
{
	const char **list = xcalloc(json_object_size(map), sizeof *list);
	size_t n = 0, n_distinct = 0;
	const char *tensor;
	json_t *shard;

	json_object_foreach((json_t *)map, tensor, shard) {
		if (check_shard_name(path, tensor, shard, err)) {
			free(list);
			return -1;
		}
		list[n++] = json_string_value(shard);
	}
	qsort(list, n, sizeof *list, by_text);
	for (size_t i = 0; i < n; i++)
		if (!i || strcmp(list[i], list[i - 1]))
			list[n_distinct++] = list[i];
	*names = list;
	*n_names = n_distinct;
	return 0;
}

static int open_shards(struct checkpoint *c, const char *path, const json_t *map, struct err *err)
{
	const char **names;
	size_t n;
	int failed = 0;

	if (list_shards(&names, &n, path, map, err))
		return -1;
	c->shards = xcalloc(n, sizeof *c->shards);
	for (size_t i = 0; i < n && !failed; i++) {
		failed = open_shard(c, names[i], err);
		if (failed && err && err->code == ERR_NOT_FOUND)
			err_wrap(err, "%s names a shard that is not there; fetch it", path);
	}
	free(names);
	return failed;
}

/* The tensors of every shard, by name; none twice. */
static int collect(struct checkpoint *c, struct err *err)
{
	size_t n = 0;

	for (size_t i = 0; i < c->n_shards; i++)
		n += c->shards[i].n_tensors;
	c->tensors = xcalloc(n, sizeof *c->tensors);
	for (size_t i = 0; i < c->n_shards; i++)
		for (size_t j = 0; j < c->shards[i].n_tensors; j++)
			c->tensors[c->n_tensors++] = &c->shards[i].tensors[j];
	qsort(c->tensors, n, sizeof *c->tensors, by_name);
	for (size_t i = 1; i < n; i++)
		if (!strcmp(c->tensors[i]->name, c->tensors[i - 1]->name))
			return err_set(err, ERR_FORMAT, "%s: tensor %s is in two shards, here and in %s; remove the one "
				       "that is left over", c->tensors[i - 1]->file->path, c->tensors[i]->name,
				       c->tensors[i]->file->path);
	return 0;
}

/* Each tensor is where the index says, and the index names no other. */
static int check_index(const struct checkpoint *c, const char *path, const json_t *map, struct err *err)
{
	const char *name;
	json_t *shard;

	json_object_foreach((json_t *)map, name, shard) {
		const struct tensor *t = checkpoint_find(c, name);

		if (!t)
			return err_set(err, ERR_FORMAT, "%s: tensor %s should be in %s, which does not have it; fetch "
				       "both files again", path, name, json_string_value(shard));
		if (strcmp(strrchr(t->file->path, '/') + 1, json_string_value(shard)))
			return err_set(err, ERR_FORMAT, "%s: tensor %s should be in %s, but it is in %s; fetch the index "
				       "again", path, name, json_string_value(shard), t->file->path);
	}
	for (size_t i = 0; i < c->n_tensors; i++)
		if (!json_object_get(map, c->tensors[i]->name))
			return err_set(err, ERR_FORMAT, "%s: tensor %s is not in %s; the two files do not belong "
				       "together, fetch both again", c->tensors[i]->file->path, c->tensors[i]->name,
				       path);
	return 0;
}

/* A file that could have been meant and is not read deserves a word; a second whole checkpoint is an error. */
static int look_for_extra_files(const struct checkpoint *c, struct err *err)
{
	DIR *dir = opendir(c->dir);
	struct dirent *entry;
	int failed = 0;

	if (!dir)
		return err_errno(err, errno, "open directory %s", c->dir);
	while (!failed && (entry = readdir(dir))) {
		const char *dot = strrchr(entry->d_name, '.');
		size_t i = 0;

		if (!dot || strcmp(dot, ".safetensors"))
			continue;
		while (i < c->n_shards && strcmp(shard_name(&c->shards[i]), entry->d_name))
			i++;
		if (i < c->n_shards)
			continue;
		if (!strcmp(entry->d_name, SINGLE_NAME))
			failed = err_set(err, ERR_FORMAT, "%s has both " SINGLE_NAME " and " INDEX_NAME ", which does not "
					 "name it; remove the one that is not meant", c->dir);
		else
			log_warn("%s/%s is not read: " INDEX_NAME " does not name it", c->dir, entry->d_name);
	}
	closedir(dir);
	return failed;
}

static int open_index(struct checkpoint *c, const char *path, struct err *err)
{
	json_t *index;
	const json_t *map;
	int failed;

	if (json_read(&index, path, MAX_INDEX, err))
		return -1;
	map = json_object_get(index, "weight_map");
	if (!json_is_object(map) || !json_object_size(map))
		failed = err_set(err, ERR_FORMAT, "%s: weight_map is %s, an object with tensors is expected", path,
				 json_is_object(map) ? "empty" : json_kind(map));
	else
		failed = open_shards(c, path, map, err) || collect(c, err) || check_index(c, path, map, err) ||
			 look_for_extra_files(c, err);
	json_decref(index);
	return failed ? -1 : 0;
}

/* Readable or not, and a dangling link too: what is in the way is better named than taken for nothing. */
static bool exists(const char *dir, const char *name)
{
	char *path = xasprintf("%s/%s", dir, name);
	bool there = faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT;

	free(path);
	return there;
}

bool checkpoint_exists(const char *dir)
{
	return exists(dir, INDEX_NAME) || exists(dir, SINGLE_NAME);
}

static int open_files(struct checkpoint *c, struct err *err)
{
	char *index;
	int failed;

	if (exists(c->dir, INDEX_NAME)) {
		index = xasprintf("%s/" INDEX_NAME, c->dir);
		failed = open_index(c, index, err);
		free(index);
		return failed;
	}
	if (exists(c->dir, SINGLE_NAME))
		return open_single(c, err) || collect(c, err) ? -1 : 0;
	return err_set(err, ERR_NOT_FOUND, "%s has neither " INDEX_NAME " nor " SINGLE_NAME, c->dir);
}

int checkpoint_open(struct checkpoint **out, const char *dir, struct err *err)
{
	struct checkpoint *c = xcalloc(1, sizeof *c);

	c->dir = xstrdup(dir);
	if (open_files(c, err)) {
		checkpoint_close(c);
		return -1;
	}
	*out = c;
	return 0;
}

void checkpoint_close(struct checkpoint *c)
{
	if (!c)
		return;
	for (size_t i = 0; i < c->n_shards; i++)
		safetensors_close(&c->shards[i]);
	free(c->shards);
	free(c->tensors);
	free(c->dir);
	free(c);
}

size_t checkpoint_index(const struct checkpoint *c, const char *name)
{
	size_t low = 0, high = c->n_tensors;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = strcmp(name, c->tensors[middle]->name);

		if (!order)
			return middle;
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return c->n_tensors;
}

const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name)
{
	size_t i = checkpoint_index(c, name);

	return i < c->n_tensors ? c->tensors[i] : NULL;
}

int checkpoint_check_unchanged(const struct checkpoint *c, struct err *err)
{
	for (size_t i = 0; i < c->n_shards; i++)
		if (io_check_unchanged(&c->shards[i].file, err))
			return -1;
	return 0;
}
