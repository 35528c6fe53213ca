#include "engine/expert_guesses.h"

#include <stdlib.h>

#include "config/mem.h"

void expert_guesses_init(struct expert_guesses *g, int32_t n_chosen)
{
	*g = (struct expert_guesses){0};
	for (int r = 0; r < GUESS_ROUTERS; r++)
		for (int k = 0; k < N_AHEAD_KINDS; k++) {
			g->lists[r][k].ids = xmalloc((size_t)n_chosen, sizeof(int32_t));
			g->lists[r][k].missing = xmalloc((size_t)n_chosen, sizeof(bool));
		}
}

void expert_guesses_free(struct expert_guesses *g)
{
	for (int r = 0; r < GUESS_ROUTERS; r++)
		for (int k = 0; k < N_AHEAD_KINDS; k++) {
			free(g->lists[r][k].ids);
			free(g->lists[r][k].missing);
		}
	*g = (struct expert_guesses){0};
}

struct guess_list *expert_guesses_at(struct expert_guesses *g, int32_t layer, enum ahead_kind kind)
{
	return &g->lists[layer % GUESS_ROUTERS][kind];
}

struct guess_list *expert_guesses_of(struct expert_guesses *g, int32_t layer)
{
	for (int k = 0; k < N_AHEAD_KINDS; k++) {
		struct guess_list *l = expert_guesses_at(g, layer, (enum ahead_kind)k);

		if (l->n && l->layer == layer)
			return l;
	}
	return NULL;
}

int expert_guesses_all(struct expert_guesses *g, struct guess_list **out)
{
	int n = 0;

	for (int r = 0; r < GUESS_ROUTERS; r++) {
		struct guess_list *l = NULL;
		int at = n;

		for (int k = N_AHEAD_KINDS; k--; )
			if (g->lists[r][k].n)
				l = &g->lists[r][k];
		if (!l)
			continue;
		for (; at && out[at - 1]->layer > l->layer; at--)
			out[at] = out[at - 1];
		out[at] = l;
		n++;
	}
	return n;
}
