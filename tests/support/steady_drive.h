/*
 * A drive that never has a slow second: a backend for struct io (offload/io_backend.h) whose reads come one after another, at a rate that
 * it is told, and carry nothing: memory keeps the zeros that it had. What an engine makes of its drive can be seen with it where the
 * machine's own changes from one second to the next. It takes no time of a processor, and none of the memory's, as a real one does.
 *
 * Weights of zeros are as much to compute with as others. For memory from io_buffer_new that nobody has written to.
 */
#ifndef QUIRE_TESTS_SUPPORT_STEADY_DRIVE_H
#define QUIRE_TESTS_SUPPORT_STEADY_DRIVE_H

#include "offload/io_backend.h"

enum { STEADY_MOST = 64 };

/* Zeros, but for bytes_per_s. The struct outlives the engine. */
struct steady_drive {
	double bytes_per_s;
	double last_s;              /* when the last one begun ends */
	int first, n;               /* under way: a ring of them */
	struct {
		uint64_t id;
		int32_t bytes;
		double end_s;
	} reads[STEADY_MOST];
};

extern const struct io_backend steady_drive_backend;

#endif
