/*
 * What a compiler for GPUs would provide, for a C++ compiler for the processor: the kernels of engine/cuda become ordinary code,
 * whose threads are fibers (fibers.cc). The build includes this file before the first line of a kernel's (-include);
 * engine/cuda/wrap.h has the rest.
 *
 * Only what kernels here use. Threads of a block take turns and change only where they wait for each other, so that a plain += is
 * an atomic addition; what must not depend on that is found in the race mode (race.cc).
 */
#ifndef QUIRE_TESTS_SIM_CUDA_ON_HOST_H
#define QUIRE_TESTS_SIM_CUDA_ON_HOST_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
/* One block runs at a time, so one of each is enough. It is with the variables of threads (of the host's) because all of those of
 * one library lie together: fibers.cc knows where, poisons them, and the race mode watches them. (A section of their own would be
 * the same, did gcc not forget it in templates.) */
#define __shared__ static thread_local

#define SIM_VECTORS(of, name, at_2, at_4) \
	struct alignas(at_2) name##2 { of x, y; }; \
	struct name##3 { of x, y, z; }; \
	struct alignas(at_4) name##4 { of x, y, z, w; }; \
	static inline name##2 make_##name##2(of x, of y) { return {x, y}; } \
	static inline name##3 make_##name##3(of x, of y, of z) { return {x, y, z}; } \
	static inline name##4 make_##name##4(of x, of y, of z, of w) { return {x, y, z, w}; }
SIM_VECTORS(int, int, 8, 16)
SIM_VECTORS(unsigned, uint, 8, 16)
SIM_VECTORS(float, float, 8, 16)

struct dim3 {
	unsigned x, y, z;

	constexpr dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};

struct sim_thread {
	uint3 index;
	uint32_t number, lane;  /* in its block, in its warp */
	uint32_t n_warp_syncs;  /* __syncwarps that it has passed, or more: what orders the lanes of a warp */
};

extern struct sim_thread *sim_self; /* NULL: the host's code runs */
extern uint3 sim_block;
extern dim3 sim_block_shape, sim_grid_shape;
extern void *sim_dynamic_shared;

#define threadIdx (sim_self->index)
#define blockIdx sim_block
#define blockDim sim_block_shape
#define gridDim sim_grid_shape

#define DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(sim_dynamic_shared)

#define SIM_TEXT(x) #x
#define SIM_LINE(x) SIM_TEXT(x)
#define SIM_WHERE __FILE__ ":" SIM_LINE(__LINE__)

enum sim_warp_op { SIM_WARP_SYNC, SIM_SHUFFLE, SIM_BALLOT };

/* id: of the place in the source, so that two of them on one line are told apart. */
void sim_barrier(const char *where, int id);
/* Waits for the lanes of the mask. A shuffle gives the value of lane `from`, a ballot the lanes whose value is not 0. */
uint64_t sim_warp_wait(const char *where, enum sim_warp_op op, unsigned mask, uint64_t value, unsigned from);
/* Every thread calls body(arguments). */
void sim_run(const char *name, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void *), void *arguments, size_t bytes);
/* That an atomic operation is about to touch these bytes. */
void sim_atomic(void *p, size_t bytes);

#define __syncthreads() sim_barrier(SIM_WHERE, __COUNTER__)

struct sim_warp_sync {
	const char *where;

	void operator()(unsigned mask = 0xffffffff) const { sim_warp_wait(where, SIM_WARP_SYNC, mask, 0, 0); }
};
#define __syncwarp sim_warp_sync{SIM_WHERE}

template <class T> static inline T sim_shuffle(const char *where, unsigned mask, T v, unsigned from)
{
	uint64_t bits = 0;

	static_assert(sizeof v <= sizeof bits, "more than a shuffle moves");
	memcpy(&bits, &v, sizeof v);
	bits = sim_warp_wait(where, SIM_SHUFFLE, mask, bits, from);
	memcpy(&v, &bits, sizeof v);
	return v;
}

/* Lanes are in groups of `width`, a power of two; one that would look beyond its group sees its own value. */
template <class T> static inline T sim_shfl(const char *where, unsigned mask, T v, unsigned lane, unsigned width = 32)
{
	return sim_shuffle(where, mask, v, (sim_self->lane & ~(width - 1)) | (lane & (width - 1)));
}
template <class T> static inline T sim_shfl_xor(const char *where, unsigned mask, T v, unsigned bits, unsigned width = 32)
{
	unsigned me = sim_self->lane, from = me ^ bits;

	return sim_shuffle(where, mask, v, from < (me & ~(width - 1)) + width ? from : me);
}
template <class T> static inline T sim_shfl_down(const char *where, unsigned mask, T v, unsigned by, unsigned width = 32)
{
	unsigned me = sim_self->lane;

	return sim_shuffle(where, mask, v, (me & (width - 1)) + by < width ? me + by : me);
}
template <class T> static inline T sim_shfl_up(const char *where, unsigned mask, T v, unsigned by, unsigned width = 32)
{
	unsigned me = sim_self->lane;

	return sim_shuffle(where, mask, v, (me & (width - 1)) >= by ? me - by : me);
}
#define __shfl_sync(...) sim_shfl(SIM_WHERE, __VA_ARGS__)
#define __shfl_xor_sync(...) sim_shfl_xor(SIM_WHERE, __VA_ARGS__)
#define __shfl_down_sync(...) sim_shfl_down(SIM_WHERE, __VA_ARGS__)
#define __shfl_up_sync(...) sim_shfl_up(SIM_WHERE, __VA_ARGS__)
#define __ballot_sync(mask, yes) ((unsigned)sim_warp_wait(SIM_WHERE, SIM_BALLOT, (mask), (yes) ? 1 : 0, 0))

template <class T> static inline T __ldg(const T *p) { return *p; }

/* In its own function, whose accesses are not those of a kernel's plain code. */
template <class T> __attribute__((noinline, no_sanitize("thread"))) static T sim_add(T *p, T v)
{
	T was;

	sim_atomic(p, sizeof *p);
	was = *p;
	*p = was + v;
	return was;
}
static inline int atomicAdd(int *p, int v) { return sim_add(p, v); }
static inline unsigned atomicAdd(unsigned *p, unsigned v) { return sim_add(p, v); }
static inline float atomicAdd(float *p, float v) { return sim_add(p, v); }

template <class T> __forceinline__ T min(T a, T b) { return b < a ? b : a; }
template <class T> __forceinline__ T max(T a, T b) { return a < b ? b : a; }

/* Arguments are converted to the kernel's parameters once, before the first thread runs, and each thread has them by value. */
template <class... P, class... A>
static inline void sim_launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes, void *, void (*kernel)(P...),
			      A... with)
{
	struct launched {
		void (*kernel)(P...);
		std::tuple<P...> with;
	} l = {kernel, std::tuple<P...>(with...)};

	sim_run(name, grid, block, shared_bytes, [](void *p) {
		struct launched *it = static_cast<struct launched *>(p);

		std::apply(it->kernel, it->with);
	}, &l, sizeof l);
}
#define LAUNCH(kernel, grid, block, shared, stream, ...) \
	sim_launch(#kernel, (grid), (block), (shared), (stream), (kernel), __VA_ARGS__)

#endif
