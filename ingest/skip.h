/*
 * Why a file is left out: by its name, or by what it says. Pure; private to ingest/.
 *
 * A reason is a kind, and perhaps ": " and particulars. The kinds, of walk.c and text.c as well:
 *
 *   excluded             by the caller's globs
 *   version control      .git, .hg, ...
 *   ignored              by .gitignore, .quireignore and, in a work tree, what else git goes by
 *   may hold secrets     a name such as .env or id_rsa; or a private key, an access key or a token in the text
 *   vendored             node_modules/, vendor/, third_party/, ...: other people's
 *   generated            *.min.js, lock files, ...; or the head says so and asks not to be edited
 *   binary               it does not look like text
 *   not extracted        HTML or PDF of which no text could be made, and why
 *   too large            it has more than ingest.max_file bytes
 *   not a regular file   a FIFO, a socket, a device; they are not opened
 *   symbolic link        they are not followed: what one leads to inside the tree has a name of its own
 *   another repository   a submodule, in a commit
 *   outside the tree     it became a link while we looked
 *   path too long        of more than 256 KiB, in a commit of more than 4 KiB
 *   unreadable           with the system's reason
 *   unstable             it changed during each of three reads
 */
#ifndef QUIRE_INGEST_SKIP_H
#define QUIRE_INGEST_SKIP_H

#include <stdbool.h>
#include <stddef.h>

#include "config/mem.h"
#include "ingest/glob.h"

enum { SKIP_REASON_BYTES = 256 };

/* What names say, in the order in which they are asked. */
enum skip_kind { SKIP_VERSION_CONTROL, SKIP_SECRET, SKIP_VENDORED, SKIP_GENERATED, N_SKIP_KINDS };

struct skip_names {
	struct globs globs[N_SKIP_KINDS];
};

/* Memory is the arena's. */
void skip_names_init(struct skip_names *s, struct arena *a);

/* The reason, NULL for none; one kind alone. */
const char *skip_by_name(const struct skip_names *s, enum skip_kind kind, const char *path, bool is_directory);

/* Whether the text has a reason of its own: 1 and it, or 0. The reason says where, never what stands there. */
int skip_by_text(const char *text, size_t bytes, char reason[SKIP_REASON_BYTES]);

/* How many bytes of a reason are its kind. */
size_t skip_kind_bytes(const char *reason);

#endif
