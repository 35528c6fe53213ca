/*
 * A disk that is slow and sometimes stalls: a backend for struct io (offload/io_backend.h) that carries out one operation after
 * another, each in the time that its bytes take, every so many a stall longer, and spoils what it is told to. What has been begun
 * cannot be taken back. busy_s is the time that was asked for.
 *
 * Its time is one of its own, which is the same on every machine: it passes while somebody waits for the drive, a little with each look
 * at it, and when a test says so. Nobody waits for real. Or time is real, so that who waits waits, and who computes uses time.
 */
#ifndef QUIRE_TESTS_SUPPORT_SLOW_IO_H
#define QUIRE_TESTS_SUPPORT_SLOW_IO_H

#include <stdbool.h>

#include "offload/io_backend.h"

enum { SLOW_IN_FLIGHT = 1024 };

struct slow_io {
	double bytes_per_s, stall_s;
	bool in_real_time;
	int stall_every;           /* operations; 0: none */
	int spoil_nth;             /* the operation, counted from 1, in whose bytes a bit is flipped; 0: none */
	bool then_on;              /* and in those of every later one */
	bool carries_nothing;      /* reads leave memory as it is: zeros, if it is of a large io_buffer_new and nobody has written to it. For
	                            * a drive that takes no time of a processor; weights of zeros are as much to compute with as others */

	/* What happened. */
	double busy_s;
	int n_begun, n_cancelled;  /* operations; of these named by a cancellation while in flight */
	int n_asked;               /* times that it was asked what is done */

	int64_t now;               /* that its own time has passed, ns */

	/* Its own: [n] in the order of their ends. */
	struct {
		struct io_operation o;
		int64_t ends_at;
		int number;
	} in_flight[SLOW_IN_FLIGHT];
	int n;
	int64_t free_at;
};

extern const struct io_backend slow_io_backend;

/* Who has the drive does something else for so long; of its own time. */
void slow_io_pass(struct slow_io *d, double seconds);

#endif
