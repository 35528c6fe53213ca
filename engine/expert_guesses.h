/*
 * What routers that are going to speak are thought to choose: a list for each router and kind of guess (offload/ahead.h), kept
 * until it has spoken, so that each kind learns what came of it. Of several lists of a router the nearest kind counts. Memory and
 * nothing else; what is done about guesses says engine/experts_ahead.c. Private to engine/experts*.c.
 */
#ifndef QUIRE_ENGINE_EXPERT_GUESSES_H
#define QUIRE_ENGINE_EXPERT_GUESSES_H

#include <stdbool.h>
#include <stdint.h>

#include "offload/ahead.h"

/* No fewer than the routers that are guessed at, and the one that has just spoken. */
enum { GUESS_ROUTERS = 4 };

struct guess_list {
	int32_t layer, n;      /* n 0: there is none */
	enum ahead_kind kind;
	int32_t next;          /* the first that nothing was done about */
	int32_t *ids;          /* [n_chosen] best first */
	bool *missing;         /* [n_chosen] it was not there when it was guessed, nor on its way */
};

struct expert_guesses {
	struct guess_list lists[GUESS_ROUTERS][N_AHEAD_KINDS];
};

void expert_guesses_init(struct expert_guesses *g, int32_t n_chosen);
/* Takes one that is all zeros. */
void expert_guesses_free(struct expert_guesses *g);

/* Where the guesses of a kind at a layer's router are, or go. */
struct guess_list *expert_guesses_at(struct expert_guesses *g, int32_t layer, enum ahead_kind kind);
/* The list that counts; NULL: nothing is guessed of that layer. */
struct guess_list *expert_guesses_of(struct expert_guesses *g, int32_t layer);
/* The lists that count, nearest layer first. Returns how many. */
int expert_guesses_all(struct expert_guesses *g, struct guess_list **out);

#endif
