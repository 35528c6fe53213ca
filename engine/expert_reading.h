/*
 * Reading one expert: which reads bring its parts into a slot and where they land, and what is looked at while they come: its
 * sum, and NaN and infinity when no sum of it is known. A disk takes five times as long to bring an expert as a thread to look at it,
 * so that little is left to do when the last bytes are there. Private to the engine.
 */
#ifndef QUIRE_ENGINE_EXPERT_READING_H
#define QUIRE_ENGINE_EXPERT_READING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/experts.h"
#include "offload/io.h"

enum {
	EXPERT_PIECE = 2 << 20, /* of a read; what is under way of a wrong guess is whole ones */
	/* Bytes under way at a time, on each drive. None needs more, and one that hands back together all it was asked for shall not
	 * bring several experts at once, since it waits while they are looked at. */
	EXPERTS_IN_FLIGHT = 16 << 20,
};

/* Parts that lie close together in one file come with one read; reads in the order in which they shall begin. */
struct expert_reading {
	int n;
	struct {
		size_t shard;
		struct io_aligned range;
		uint64_t least;      /* bytes without which the read has failed */
		size_t at;           /* in the slot */
	} runs[EXPERT_PARTS];
	int run_of[EXPERT_PARTS];      /* of a part */
	size_t part_at[EXPERT_PARTS];  /* as read */
	size_t fixed_at[EXPERT_PARTS]; /* where it is aligned for its type; the same, mostly */
	size_t bytes;                  /* of the slot */
};

/* shards: the files that part.shard counts, open. */
void expert_reading_plan(struct expert_reading *r, const struct expert_place *place, const struct io_file *shards);

struct expert_look;

/* first: NaN and infinity are looked for too. place must outlive it. */
struct expert_look *expert_look_new(const struct expert_place *place, const struct expert_reading *r, bool first);
/* Takes NULL. */
void expert_look_free(struct expert_look *l);
/* Look at some more of what has come into the slot, and put it where it is aligned; arrived [r.n]: so many of the first bytes of
 * each read. False: there is nothing that was not looked at. */
bool expert_look_on(struct expert_look *l, char *slot, const size_t *arrived);
/* All of gate and up has come and lies where it is aligned. */
bool expert_look_at_down(const struct expert_look *l);
/* After everything was looked at: XXH3-64 of all parts, one after another. */
uint64_t expert_look_sum(const struct expert_look *l);
/* The first part that holds NaN or infinity; -1: none does. */
int expert_look_bad_part(const struct expert_look *l);

#endif
