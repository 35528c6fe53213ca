/*
 * A device with memory and kernels of its own, beside the processor that the daemon runs on: memory, copies, and the products of
 * routed experts, in queues.
 *
 * A library of a kind of device fills in struct backend: libquire_cuda.so for NVIDIA's (engine/cuda/), which is opened when a device
 * "cuda:N" is asked for, so that nothing else needs a driver; and one for tests, the same kernels on the processor with queues that
 * run late (tests/sim/). The table is a C ABI: whoever changes it raises BACKEND_ABI.
 *
 * Queues run their own entries in the order in which they were put, and each other's in any order, unless one is told to wait. Nothing but
 * wait, what takes and gives back memory, and close blocks. Nothing that is put into a queue reports: a device remembers its first
 * failure, and check hands it over.
 * A device belongs to one thread.
 */
#ifndef QUIRE_OFFLOAD_BACKEND_H
#define QUIRE_OFFLOAD_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { BACKEND_ABI = 1, BACKEND_TEXT = 256, BACKEND_EXPERTS = 8 };

enum backend_queue { BACKEND_COMPUTE, BACKEND_UP, BACKEND_DOWN, N_BACKEND_QUEUES };

/* A matrix in the device's memory: struct weight of engine/weight.h with one `scale` for both kinds. data and scale lie at multiples of
 * BACKEND_ALIGN. */
enum { BACKEND_ALIGN = 256 };
struct backend_weight {
	const void *data, *scale;
	int32_t dtype;                /* enum dtype of engine/weight.h */
	int32_t rows, cols, first_row;
};

struct backend_expert {
	struct backend_weight gate, up, down;
	int32_t first, n;             /* its rows of `rows` and `out` */
};

struct backend_info {
	char name[BACKEND_TEXT];      /* as the driver has it */
	uint64_t bytes, free_bytes;   /* of its memory */
	double read_bytes_per_s;      /* of its memory, by its data sheet or what it says of itself; 0: not known */
};

struct backend_device;

struct backend {
	uint32_t abi, bytes;          /* BACKEND_ABI; of this struct */
	const char *kind;             /* "cuda" */

	/* How many there are; -1 and why (BACKEND_TEXT bytes) where that cannot be known: no driver, an old one. */
	int (*count)(char *why);
	/* NULL and why. */
	struct backend_device *(*open)(int ordinal, struct backend_info *info, char *why);
	/* Takes NULL. All memory that was taken is given back. */
	void (*close)(struct backend_device *d);

	/* At multiples of BACKEND_ALIGN. NULL: there is no room for it, which is no failure. */
	void *(*alloc)(struct backend_device *d, size_t bytes);
	/* Takes NULL. */
	void (*free)(struct backend_device *d, void *p);
	/* Host memory that copies come from or go to without a detour, and while the host does other things; -1 and why: it cannot be
	 * pinned, and copies of it work, but may block. */
	int (*pin)(struct backend_device *d, void *host, size_t bytes, char *why);
	void (*unpin)(struct backend_device *d, void *host);

	/* Host memory must stay, and as it is, until the copy is done. */
	void (*upload)(struct backend_device *d, enum backend_queue q, void *to, const void *from, size_t bytes);
	void (*download)(struct backend_device *d, enum backend_queue q, void *to, const void *from, size_t bytes);

	/* All that was put into q so far. Marks count up from 1, whatever queue they are of, and can be asked for ever after. */
	int64_t (*mark)(struct backend_device *d, enum backend_queue q);
	/* What is put into q from now on waits for a mark. */
	void (*after)(struct backend_device *d, enum backend_queue q, int64_t mark);
	bool (*done)(struct backend_device *d, int64_t mark);
	void (*wait)(struct backend_device *d, int64_t mark);

	/*
	 * Into BACKEND_COMPUTE: out[first + i] = down . swiglu(gate . v, up . v) of each expert, v = x[rows[first + i]], i in [0, n):
	 * ops.h, matmul and swiglu, with the bits that it promises.
	 *   x     [any, hidden]  bf16 in profile bf16, else float32
	 *   rows  [total]        rows of x; NULL: the same
	 *   gate  [total, dim]   work space of float32
	 *   out   [total, hidden]
	 *   experts [n]          n in 1 .. BACKEND_EXPERTS, read before it returns; alike in dtypes and shapes
	 *   profile              enum compute_profile of engine/engine.h
	 * All but `experts` in the device's memory. */
	void (*experts)(struct backend_device *d, float *out, float *gate, const void *x, const int32_t *rows,
			const struct backend_expert *experts, int n, int profile);

	/* -1 and why: something has failed. It stays so: what the device did since cannot be believed. */
	int (*check)(struct backend_device *d, char *why);
};

/* What a library exports, and nothing else: fills in *b. */
typedef void backend_fill_fn(struct backend *b);
#define BACKEND_SYMBOL "quire_backend"

#ifdef __cplusplus
}
#endif
#endif
