/*
 * Reading one expert: which reads bring its parts into a slot and where they land, and what is looked at: its checksum, and NaN and
 * infinity when none is known. Whoever waits for the disk looks at what has come; what is left when all is there, products look at
 * (struct weight.sums): they have all threads, and those of few rows read all of it anyway. Private to the engine.
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

/* first: NaN and infinity are looked for too. place must outlive it; its matrices have room for sums until expert_look_free. */
struct expert_look *expert_look_new(const struct expert_place *place, const struct expert_reading *r, bool first);
/* Takes NULL. */
void expert_look_free(struct expert_look *l);
/* It can be computed with as it comes, and looked at then or later. Else that is to be done first. */
bool expert_look_can_wait(const struct expert_look *l);
/* Look at some more of what has come into the slot and has no sum, and put it where it is aligned; arrived [r.n]: so many of the first
 * bytes of each read. False: there is nothing that was not looked at. */
bool expert_look_on(struct expert_look *l, char *slot, const size_t *arrived);
/* All of gate and up has come, lies where it is aligned, and was looked at unless that can wait. */
bool expert_look_half(const struct expert_look *l, const size_t *arrived);
/* After everything was looked at: as expert_sums.h says. */
uint64_t expert_look_sum(const struct expert_look *l);
/* The first part that holds NaN or infinity; -1: none does. */
int expert_look_bad_part(const struct expert_look *l);

#endif
