/* The inside of a simulated disk, for sim_disk.c and sim_states.c. */
#ifndef QUIRE_TESTS_SUPPORT_SIM_DISK_INSIDE_H
#define QUIRE_TESTS_SUPPORT_SIM_DISK_INSIDE_H

#include "tests/support/sim_disk.h"

enum { SIM_NAMES_MOST = 16, SIM_NODES_MOST = 256, SIM_SECTOR = 512, SIM_PAGE = 4096 };

/* A file, whatever name it has or had. Most of a file is the same in most states: pages that were written, added or cut off
 * since somebody cleared the marks are all that has to be copied and hashed. */
struct sim_node {
	uint8_t *data;
	int64_t bytes, room;   /* room is whole pages */
	uint8_t *touched;      /* [room / SIM_PAGE] */
};

struct sim_name {
	char *name;
	int node;              /* -1: no such file */
};

enum sim_kind { SIM_WRITE, SIM_RESIZE, SIM_SYNC, SIM_CREATE, SIM_DELETE, SIM_SYNC_NAMES };

struct sim_call {
	enum sim_kind kind;
	int name, node;
	int64_t at, bytes;     /* of a write; bytes: the new size too */
	uint8_t *data;         /* [bytes] of a write */
};

struct sim_disk {
	char *dir;
	struct sim_name names[SIM_NAMES_MOST];
	int n_names;
	struct sim_node nodes[SIM_NODES_MOST];
	int n_nodes;
	/* What was durable when the writing down began. */
	int base_names[SIM_NAMES_MOST]; /* [n_base_names] nodes */
	int n_base_names;
	struct sim_node *base;          /* [n_base] */
	int n_base;
	bool recording;
	enum sim_swallow swallow;
	struct sim_call *calls;
	size_t n_calls, call_room;
};

int sim_name_find(const struct sim_disk *d, const char *name);
/* What is new is zeros. */
void sim_node_resize(struct sim_node *n, int64_t bytes);
void sim_node_write(struct sim_node *n, int64_t at, const void *data, int64_t bytes);
/* All of it; every page is marked. */
void sim_node_copy(struct sim_node *to, const struct sim_node *from);
void sim_node_clear(struct sim_node *n);
/* Let the directory list what the names say. No file of it is open. */
void sim_disk_place(struct sim_disk *d);

#endif
