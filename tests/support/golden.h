/*
 * The tiny checkpoints of tests/golden and what a float64 reference says about them (tests/golden/README.md).
 * Programs run from the top of the tree.
 */
#ifndef QUIRE_TESTS_GOLDEN_H
#define QUIRE_TESTS_GOLDEN_H

#include <stdbool.h>
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
	float *logits;             /* [n_positions, vocab] */
	int32_t n_positions, vocab;
	int32_t n_sets, room_sets;
	struct golden_set *sets;
};

/* Run a case's ids in chunks (0: at once). Fails the test on an error. */
void golden_run(struct golden_run *run, struct engine *e, const struct model *m, enum latent_format latents,
		const struct golden_case *c, int64_t chunk);
/* Run a case's ids and then its greedy ids, whatever the run would have chosen itself (teacher-forced), at once. */
void golden_run_forced(struct golden_run *run, struct engine *e, const struct model *m, enum latent_format latents,
		       const struct golden_case *c);
void golden_run_free(struct golden_run *run);

/* max |a - b| / max |b| over the case's stored rows; a: the run, b: the reference. */
double golden_error(const struct golden_run *run, const struct golden_case *c);
/* Sets of the case that the run chose differently; *first names one. */
int golden_set_differences(const struct golden_run *run, const struct golden_case *c, const struct golden_set **first);
/* Where the largest of n numbers is; the first of equal ones. */
int32_t golden_greatest(const float *x, int32_t n);

/*
 * How near runs lie to the reference: of one case, or of several pooled as if they were one. runs[i] is of cases[i].
 * Why these figures, and which one judges: tests/golden/README.md. NAN: the cases have nothing to measure it by.
 */

/* sqrt(sum |a - b|^2 / sum |b|^2) over all stored rows. */
double golden_rms_error(const struct golden_run *runs, const struct golden_case *cases, int n);
/* The geometric mean over all stored rows of a row's |a - b| / |b|, which counts as 2^-24 at least: the stored logits
 * are float32, and tell no more. */
double golden_geometric_error(const struct golden_run *runs, const struct golden_case *cases, int n);
/* The mean over all stored index sets of the share of the set that the run chose, too. A set that the run has not is
 * a share of 0. */
double golden_set_overlap(const struct golden_run *runs, const struct golden_case *cases, int n);
/* The share of greedy steps at which golden_greatest is the reference's next id; of runs by golden_run_forced. */
double golden_greedy_agreement(const struct golden_run *runs, const struct golden_case *cases, int n);

struct golden_figures {
	double max_error;          /* the largest golden_error */
	double rms_error, geometric_error, set_overlap, greedy_agreement;
};

struct golden_figures golden_measure(const struct golden_run *runs, const struct golden_case *cases, int n);
/* What tests/golden/bf16.txt says of transformers in bf16: of a case, or of all of a checkpoint pooled ("all"). Ends
 * the test program when it does not say it exactly once. */
struct golden_figures golden_transformers_bf16(const char *checkpoint, const char *name);

#endif
