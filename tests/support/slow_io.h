/*
 * A disk that is slow and sometimes stalls: a backend for struct io (offload/io_backend.h) that carries out one operation after
 * another, each in the time that its bytes take, every so many a stall longer, and spoils what it is told to. What has been begun
 * cannot be taken back. Time is real, so that who waits waits; busy_s is the time that was asked for, whatever else the machine does.
 */
#ifndef QUIRE_TESTS_SUPPORT_SLOW_IO_H
#define QUIRE_TESTS_SUPPORT_SLOW_IO_H

#include <stdbool.h>

#include "offload/io_backend.h"

enum { SLOW_IN_FLIGHT = 1024 };

struct slow_io {
	double bytes_per_s, stall_s;
	int stall_every;           /* operations; 0: none */
	int spoil_nth;             /* the operation, counted from 1, in whose bytes a bit is flipped; 0: none */
	bool then_on;              /* and in those of every later one */
	bool carries_nothing;      /* reads leave memory as it is: zeros, if it is of io_buffer_new and nobody has written to it. For
	                            * a drive that takes no time of a processor; weights of zeros are as much to compute with as others */

	/* What happened. */
	double busy_s;
	int n_begun, n_cancelled;  /* operations; of these named by a cancellation while in flight */
	int n_asked;               /* times that it was asked what is done */

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

#endif
