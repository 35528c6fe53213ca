/*
 * System calls on some files that go wrong on order: what tests/support/fake_io.h is for the operations of struct io,
 * for the calls of SQLite and of our own code (tests/support/disk_calls.h, whose hook this is). One at a time.
 */
#ifndef QUIRE_TESTS_SUPPORT_FILE_FAULTS_H
#define QUIRE_TESTS_SUPPORT_FILE_FAULTS_H

#include <stdbool.h>

enum file_fault {
	FILE_NONE,
	FILE_ERROR,    /* errno `error`, nothing moved; files of shared memory (-shm) have this one alone */
	FILE_SHORT,    /* half of the bytes moved */
	FILE_ZERO,     /* nothing moved, and no error */
	FILE_FLIP,     /* the lowest bit of the middle byte that is read or written is another */
	FILE_SWAP,     /* the place of an earlier call on the same file, or the page behind, is read or written */
	FILE_STALE,    /* said to be done, and nothing was moved: memory and disk keep what they held */
};

struct file_faults {
	const char *const *names; /* beginnings of the names of files; NULL behind the last */
	enum file_fault fault;
	int error;
	int nth;               /* the call to spoil, counted from 1; 0: none. Reads, writes, changes of size, syncs */
	bool then_on;          /* and every later one */
	/* What happened: all calls, and those that the fault could happen to, and did. */
	int n_calls, n_spoiled;
};

/* From now on, for files that are opened from now on; NULL: no more. It must stay until then. */
void file_faults_use(struct file_faults *f);

#endif
