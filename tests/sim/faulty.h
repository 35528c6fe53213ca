/*
 * Kernels that are right, and the same with one mistake each: what libquire_faulty.so and libquire_faultyrace.so have in place of
 * experts. struct backend's `experts` runs the one that `profile` names, on floats: experts[0].n of x, and of
 * experts[0].gate.data where it says "weights".
 */
#ifndef QUIRE_TESTS_SIM_FAULTY_H
#define QUIRE_TESTS_SIM_FAULTY_H

/* A multiple of 128, one block each. */
enum faulty_kernel {
	/* out[b] = the sum of block b's 128: shuffles within warps, shared memory among them */
	SUM,
	SUM_WITHOUT_BARRIER,
	SUM_DIVERGENT,            /* two barriers, half of the threads at each */
	SUM_ENDED_EARLY,          /* a barrier that one thread does not reach, because it has returned */
	SUM_LANE_ABSENT,          /* lane 7 has returned before the shuffle */
	SUM_BAD_SHUFFLE,          /* of the lower half of a warp, with the upper one */
	SUM_NEVER_WRITTEN,        /* the last warp's sum */
	/* out[i] = x[i]'s neighbour at i ^ 1, through static shared memory */
	SWAP,
	SWAP_WITHOUT_SYNCWARP,
	SWAP_PAST_THE_END,        /* one more element, behind out */
	SWAP_PAST_SHARED,         /* the same of dynamic shared memory */
	SWAP_MISALIGNED,          /* two at once, from an odd place */
	SWAP_HOST_POINTER,        /* x is a copy in the host's memory */
	/* out[0] += the sum of all, by every block */
	TOTAL,
	TOTAL_PLAIN_ADD,
	TOTAL_HALF_ATOMIC,        /* one block adds plainly, the others do not */
	/* out[b] = sum over a chain of tiles: each is put into shared memory, and read turned round */
	TILES,
	TILES_REFILLED_EARLY,     /* no barrier between the last read and the next tile */
	/* out[0] = x . weights, one block */
	DOT,
	/* out[i] = lanes of i's warp that hold more than 0, in 4 by 32 threads; ballots, and shuffles of every kind against each
	 * other */
	BALLOT,
	TOO_MANY_THREADS,         /* in a block */
	N_FAULTY
};

#endif
