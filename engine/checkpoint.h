/*
 * The safetensors files of a model's directory, their headers read, as one table of tensors by name.
 *
 * Either model.safetensors.index.json and the shards it names, or a single model.safetensors; both at once is
 * refused unless the index names the file. A shard is a name in the directory, never a path. Symbolic links are
 * followed: a Hugging Face cache is a directory of links into a directory of blobs.
 */
#ifndef QUIRE_ENGINE_CHECKPOINT_H
#define QUIRE_ENGINE_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>

#include "config/err.h"
#include "engine/safetensors.h"

struct checkpoint {
	char *dir;
	size_t n_shards;
	struct safetensors *shards;
	size_t n_tensors;
	const struct tensor **tensors; /* ascending by name, each name once */
};

/* Every header is checked, and index and shards against each other, tensor by tensor. No weight is read. */
int checkpoint_open(struct checkpoint **out, const char *dir, struct err *err);
/* Whether the directory has an index or a single file at all, readable or not. */
bool checkpoint_exists(const char *dir);
/* Takes NULL. */
void checkpoint_close(struct checkpoint *c);

/* NULL when there is none. */
const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name);
/* As its position in c->tensors; c->n_tensors when there is none. */
size_t checkpoint_index(const struct checkpoint *c, const char *name);

/* Error when a shard changed since it was opened. */
int checkpoint_check_unchanged(const struct checkpoint *c, struct err *err);

#endif
