/*
 * A disk in memory that forgets what was not synced, for the files of one store: index.sqlite and its logs through a
 * VFS of SQLite, segment files through the system calls of disk_calls.h. It writes down what is done to it; from that
 * it makes the states in which a power cut may leave a disk:
 *
 *     sim_disk_record    what is on it now is durable
 *     the real code at work
 *     sim_states_new     after each call of what was written down, what may be lost is lost: each write that no sync of
 *     sim_states_next    its file followed is there whole, or not at all, or torn at 512 bytes; each name that no
 *                        sync of the directory followed has come into being, or gone, or not
 *     the real code opens what is left
 *
 * Few unsynced calls: every subset of them, whole. Many: none, all, each alone, each missing, each beginning of them;
 * and always a number of random choices, torn writes among them. A set of sectors is all that an order of writes can
 * leave, so orders are not tried one by one. Writes to sectors besides those of a write never change (which is what
 * SQLite calls powersafe overwrite). One disk at a time; the thread that made it, and threads that read and write
 * segment files.
 */
#ifndef QUIRE_TESTS_SUPPORT_SIM_DISK_H
#define QUIRE_TESTS_SUPPORT_SIM_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sim_disk;

enum sim_swallow {
	SIM_SYNCS_ALL,        /* every sync is one */
	SIM_NO_SEGMENT_SYNCS, /* those of segment files are said to have gone well, and were not made */
	SIM_NO_INDEX_SYNCS,   /* the same of SQLite's */
};

/* dir is an empty directory, whose store is on this disk from now on. */
struct sim_disk *sim_disk_new(const char *dir);
/* Takes NULL. */
void sim_disk_free(struct sim_disk *d);

/* Begin to write down. What is on the disk is durable, and no store is open. */
void sim_disk_record(struct sim_disk *d, enum sim_swallow swallow);
/* The calls so far. */
size_t sim_disk_calls(const struct sim_disk *d);
/* No more of it is written down. */
void sim_disk_stop(struct sim_disk *d);

/* Another bit in a file that is there. */
void sim_disk_flip(struct sim_disk *d, const char *name, int64_t byte, int bit);

struct sim_options {
	uint64_t seed;
	int subsets_most;     /* so many unsynced calls have every subset tried */
	int n_random;         /* choices at each point besides */
	size_t done_at;       /* a state is another one when this many calls were made before it: more is asked of it */
	int part, n_parts;    /* only the states of this part of all: for processes that share the work */
};

struct sim_states;

/* Of what is written down; d must outlive it. */
struct sim_states *sim_states_new(struct sim_disk *d, const struct sim_options *opt);
/* Puts the next state that was not there before on the disk. false: that was all. */
bool sim_states_next(struct sim_states *s);
/* How many calls had been made before this one's power cut. */
size_t sim_states_at(const struct sim_states *s);
/* What is left of the unsynced ones, for a message; of s, until the next. */
const char *sim_states_text(const struct sim_states *s);
/* Takes NULL. */
void sim_states_free(struct sim_states *s);

#endif
