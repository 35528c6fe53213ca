/*
 * The tiny checkpoints of tests/golden and what a float64 reference says about them (tests/golden/README.md).
 * Programs run from the top of the tree.
 */
#ifndef QUIRE_TESTS_GOLDEN_H
#define QUIRE_TESTS_GOLDEN_H

#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"

extern const char *const golden_checkpoints[]; /* names, NULL-terminated */

struct golden_set {
	int32_t layer, position, n;
	int32_t *set;
};

struct golden_case {
	char *checkpoint, *name;
	int32_t *ids, n_ids;
	int32_t *rows, n_rows;     /* positions whose logits are stored */
	float *logits;             /* [n_rows, vocab] */
	struct golden_set *sets;
	int32_t n_sets;
	int32_t *greedy, n_greedy; /* 0: the case has none */
};

/* All cases of a checkpoint; *n of them. Ends the test program when the files are not as they should be. */
struct golden_case *golden_load(const char *checkpoint, int32_t vocab, int *n);
void golden_free(struct golden_case *cases, int n);

/* "tests/golden/NAME", to be freed. */
char *golden_dir(const char *checkpoint);

/* What a run of a case gave. */
struct golden_run {
	float *logits;             /* [n_ids, vocab] every position */
	int32_t vocab;
	int32_t n_sets, room_sets;
	struct golden_set *sets;
};

/* Run a case's ids in chunks (0: at once). Fails the test on an error. */
void golden_run(struct golden_run *run, struct engine *e, const struct model *m, enum latent_format latents,
		const struct golden_case *c, int64_t chunk);
void golden_run_free(struct golden_run *run);

/* max |a - b| / max |b| over the case's stored rows. */
double golden_error(const struct golden_run *run, const struct golden_case *c);
/* Sets of the case that the run chose differently; *first names one. */
int golden_set_differences(const struct golden_run *run, const struct golden_case *c, const struct golden_set **first);

#endif
