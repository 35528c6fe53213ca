/*
 * What kernels use besides plain C++: one place for what differs between a compiler for GPUs and one for the processor, which builds the
 * same files for tests (tests/sim/cuda_on_host.h has threads, blocks, shuffles and LAUNCH then). Kernels themselves hold no assembly, no <<<>>>
 * and no header of CUDA.
 *
 * Arithmetic by rule (F) of ops.h is an instruction of GPUs: fma.rn.ftz. Without it numbers are as IEEE 754 has them, so sources are compiled
 * with -fmad=false and without -use_fast_math.
 */
#ifndef QUIRE_ENGINE_CUDA_WRAP_H
#define QUIRE_ENGINE_CUDA_WRAP_H

#include <stdint.h>

#include "engine/numeric.h"

#ifdef __CUDACC__

#define UNPAREN(...) __VA_ARGS__
#define LAUNCH(kernel, grid, block, shared, stream, ...) \
	UNPAREN kernel<<<(grid), (block), (shared), (cudaStream_t)(stream)>>>(__VA_ARGS__)

#define UNROLL(n) PRAGMA(unroll n)
#define PRAGMA(x) _Pragma(#x)

/* a b + c, once rounded; flush: rule (F). */
template <bool FLUSH> __device__ __forceinline__ float fused(float a, float b, float c)
{
	float r;

	if (!FLUSH)
		return __fmaf_rn(a, b, c);
	asm("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c));
	return r;
}

template <bool FLUSH> __device__ __forceinline__ float added(float a, float b)
{
	float r;

	if (!FLUSH)
		return __fadd_rn(a, b);
	asm("add.rn.ftz.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
	return r;
}

/* What is read once: not for the caches of what is read again. */
__device__ __forceinline__ uint32_t read_once(const uint32_t *p)
{
	uint32_t v;

	asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
	return v;
}
__device__ __forceinline__ uint2 read_once(const uint2 *p)
{
	uint2 v;

	asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
	return v;
}
__device__ __forceinline__ uint4 read_once(const uint4 *p)
{
	uint4 v;

	asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
	return v;
}

/* Four E4M3 codes, the first in the lowest byte. */
__device__ __forceinline__ void widen_e4m3(float v[4], uint32_t codes)
{
#if __CUDA_ARCH__ >= 890
	uint32_t low, high;

	asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b; }"
	    : "=r"(low), "=r"(high) : "r"(codes));
	asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }" : "=f"(v[0]), "=f"(v[1]) : "r"(low));
	asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }" : "=f"(v[2]), "=f"(v[3]) : "r"(high));
#else
	for (int i = 0; i < 4; i++)
		v[i] = e4m3_to_f32((uint8_t)(codes >> 8 * i));
#endif
}

#else /* for the processor */

#define UNROLL(n)

template <bool FLUSH> static inline float fused(float a, float b, float c) { return num_fma(a, b, c, FLUSH); }
template <bool FLUSH> static inline float added(float a, float b) { return num_add(a, b, FLUSH); }
template <class T> static inline T read_once(const T *p) { return *p; }
static inline void widen_e4m3(float v[4], uint32_t codes)
{
	for (int i = 0; i < 4; i++)
		v[i] = e4m3_to_f32((uint8_t)(codes >> 8 * i));
}

#endif

/* N int4 codes, the first in the lowest bits, less 8. A code at bits 4i .. of the mantissa of 2^23 makes 2^23 + 2^4i code: one exact fma makes
 * it what it should be. */
template <int N> __device__ __forceinline__ void widen_int4(float v[N], uint32_t codes)
{
	for (int i = 0; i < N; i++) {
		uint32_t from = i < 5 ? codes : codes >> 20;
		int place = 4 * (i < 5 ? i : i - 5);
		float scale = 1.0f / (float)(1 << place);

		v[i] = fused<false>(f32_from_bits(0x4b000000 | (from & (15u << place))), scale, -(0x1p23f * scale + 8));
	}
}

#endif
