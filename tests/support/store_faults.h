/*
 * An ingest or a question during which one read or write of the store goes wrong, or all from one on: for
 * tests/test_store_faults.c and the soak. Whatever it is, the work ends well or with an error that names a file of the
 * store or what was not found in it, no logit is ever another one, and nothing of it outlives a repair and an ingest.
 *
 * A store has two kinds of files. Segments are reached through struct io (tests/support/fake_io.h), the index and
 * scratch files by system calls (tests/support/file_faults.h). Errno, short and empty calls are the operating system's
 * word: after them a sound disk has all that was said to be there, and check finds nothing. A call that is said to have
 * gone well and did something else is a lie: after it the store may be damaged, and check finds it; or, where the index
 * itself is hit, the store does not open, and says which file it is.
 *
 * Needs tiny_open (tests/support/tiny_ingest.h). Failures are err.
 */
#ifndef QUIRE_TESTS_SUPPORT_STORE_FAULTS_H
#define QUIRE_TESTS_SUPPORT_STORE_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

enum fault_work {
	FAULT_INGEST,   /* into a store that is not there yet, with a checkpoint wherever one can be made */
	FAULT_RESUME,   /* an ingest that was interrupted behind a checkpoint */
	FAULT_QUERY,    /* of a corpus, with memory for few of its latents */
	FAULT_EXPERTS,  /* an ingest and a question whose routed experts are read from the model's files as they are
	                   chosen, their checksums being known; what goes wrong is one of these reads */
	N_FAULT_WORKS
};

extern const char *const fault_work_names[N_FAULT_WORKS];

/* Ways to go wrong, by number. */
int store_faults_n_kinds(void);
const char *store_faults_kind_name(int kind);
/* It can last: what is interrupted for ever would be tried for ever. */
bool store_faults_kind_lasts(int kind);

enum fault_outcome {
	FAULT_NOT_MET,  /* the work has fewer calls, or none of these */
	FAULT_VOID,     /* it cannot happen to this call: nothing was read by it, or written */
	FAULT_HARMLESS, /* done, as without a fault: it was tried again, or met what nobody asked for */
	FAULT_MENDED,   /* done, and tokens were computed again for it, at once or later */
	FAULT_REFUSED,  /* an error */
	N_FAULT_OUTCOMES
};

extern const char *const fault_outcome_names[N_FAULT_OUTCOMES];

struct store_faults;

/* dir is empty; whoever gives it removes it. */
int store_faults_open(struct store_faults **out, const char *dir, struct err *err);
/* Takes NULL. */
void store_faults_close(struct store_faults *f);

/* The nth call goes wrong, counted from 1. -1: something was as it may never be. */
int store_faults_try(struct store_faults *f, enum fault_work work, int kind, int nth, bool then_on,
		     enum fault_outcome *outcome, struct err *err);
/* The error of the last FAULT_REFUSED. */
const char *store_faults_text(const struct store_faults *f);

#endif
