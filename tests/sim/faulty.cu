#include "tests/sim/faulty.h"

#include <stdlib.h>

#include "engine/cuda/expert.h"
#include "engine/cuda/wrap.h"

enum { THREADS = 128, WARPS = THREADS / 32 };

static __device__ __forceinline__ float sum_of_warp(float v)
{
	for (int by = 16; by; by /= 2)
		v += __shfl_xor_sync(0xffffffff, v, by);
	return v;
}

template <int CASE> __global__ void __launch_bounds__(THREADS) sum(float *out, const float *x)
{
	__shared__ float partial[WARPS];
	int t = threadIdx.x, warp = t / 32, lane = t % 32;
	float v = x[blockIdx.x * THREADS + t];

	if (CASE == SUM_LANE_ABSENT && lane == 7)
		return;
	if (CASE == SUM_ENDED_EARLY && t == THREADS - 1)
		return;
	if (CASE == SUM_BAD_SHUFFLE && lane < 16)
		v += __shfl_xor_sync(0x0000ffff, v, 16);
	else if (CASE != SUM_ENDED_EARLY)
		v = sum_of_warp(v);
	if (lane == 0 && (CASE != SUM_NEVER_WRITTEN || warp < WARPS - 1))
		partial[warp] = v;

	if (CASE == SUM_DIVERGENT) {
		if (t < THREADS / 2)
			__syncthreads();
		else
			__syncthreads();
	} else if (CASE != SUM_WITHOUT_BARRIER) {
		__syncthreads();
	}

	if (t == 0) {
		for (int w = 1; w < WARPS; w++)
			v += partial[w];
		out[blockIdx.x] = v;
	}
}

template <int CASE> __global__ void __launch_bounds__(THREADS) swap(float *out, const float *x, int n)
{
	__shared__ float held[THREADS];
	DYNAMIC_SHARED(float, more);
	int t = threadIdx.x, i = blockIdx.x * THREADS + t;

	held[t] = x[i];
	if (CASE == SWAP_PAST_SHARED)
		more[t] = held[t];
	if (CASE != SWAP_WITHOUT_SYNCWARP)
		__syncwarp();
	if (CASE == SWAP_MISALIGNED && t == 0) {
		const uint2 *pair = (const uint2 *)(const void *)(x + 1);

		out[i] = f32_from_bits(pair->x);
	} else {
		out[i] = held[t ^ 1];
	}
	if (CASE == SWAP_PAST_THE_END && i == n - 1)
		out[n] = 0;
}

template <int CASE> __global__ void __launch_bounds__(THREADS) total(float *out, const float *x)
{
	float v = sum_of_warp(x[blockIdx.x * THREADS + threadIdx.x]);

	if (threadIdx.x % 32)
		return;
	if ((CASE == TOTAL_PLAIN_ADD && threadIdx.x == 0) || (CASE == TOTAL_HALF_ATOMIC && blockIdx.x == 1 && threadIdx.x == 0))
		*out += v;
	else if (CASE != TOTAL_PLAIN_ADD)
		atomicAdd(out, v);
}

template <int CASE> __global__ void __launch_bounds__(THREADS) tiles(float *out, const float *x, int n)
{
	DYNAMIC_SHARED(float, tile);
	int t = threadIdx.x;
	float v = 0;

	for (int at = 0; at < n; at += THREADS) {
		tile[t] = __ldg(x + at + t);
		__syncthreads();
		v = fused<false>(tile[THREADS - 1 - t], (float)(t + 1), v);
		if (CASE != TILES_REFILLED_EARLY)
			__syncthreads();
	}
	out[t] = v;
}

__global__ void __launch_bounds__(32) dot(float *out, const float *x, const float *weights, int n)
{
	float v = 0;

	for (int i = threadIdx.x; i < n; i += 32)
		v = fused<false>(x[i], weights[i], v);
	v = sum_of_warp(v);
	if (threadIdx.x == 0)
		*out = v;
}

__global__ void __launch_bounds__(THREADS) ballot(float *out, const float *x)
{
	unsigned lane = threadIdx.x, number = threadIdx.y * blockDim.x + lane, yes;
	int up, down, from;

	yes = __ballot_sync(0xffffffff, x[number] > 0);
	up = __shfl_up_sync(0xffffffff, (int)lane, 1);
	down = __shfl_down_sync(0xffffffff, (int)lane, 3, 8);
	from = __shfl_sync(0xffffffff, (int)lane, 5, 16);
	if (up != (int)max(lane, 1u) - 1 || down != (int)(lane % 8 < 5 ? lane + 3 : lane) || from != (int)(lane / 16 * 16 + 5))
		out[number] = -1;
	else
		out[number] = (float)yes;
}

#define CASE_OF(kernel, name, shared, ...) \
	case name: \
		LAUNCH((kernel<name>), dim3(n / THREADS), dim3(THREADS), (shared), stream, __VA_ARGS__); \
		break

extern "C" const char *expert_launch(void *stream, float *out, float *, const void *input, const int32_t *,
				     const struct backend_expert *experts, int, int profile)
{
	const float *x = (const float *)input, *weights = (const float *)experts[0].gate.data;
	unsigned n = (unsigned)experts[0].n;
	float *host;

	switch (profile) {
	CASE_OF(sum, SUM, 0, out, x);
	CASE_OF(sum, SUM_WITHOUT_BARRIER, 0, out, x);
	CASE_OF(sum, SUM_DIVERGENT, 0, out, x);
	CASE_OF(sum, SUM_ENDED_EARLY, 0, out, x);
	CASE_OF(sum, SUM_LANE_ABSENT, 0, out, x);
	CASE_OF(sum, SUM_BAD_SHUFFLE, 0, out, x);
	CASE_OF(sum, SUM_NEVER_WRITTEN, 0, out, x);
	CASE_OF(swap, SWAP, 0, out, x, (int)n);
	CASE_OF(swap, SWAP_WITHOUT_SYNCWARP, 0, out, x, (int)n);
	CASE_OF(swap, SWAP_PAST_THE_END, 0, out, x, (int)n);
	CASE_OF(swap, SWAP_PAST_SHARED, (THREADS - 1) * sizeof *out, out, x, (int)n);
	CASE_OF(swap, SWAP_MISALIGNED, 0, out, x, (int)n);
	CASE_OF(total, TOTAL, 0, out, x);
	CASE_OF(total, TOTAL_PLAIN_ADD, 0, out, x);
	CASE_OF(total, TOTAL_HALF_ATOMIC, 0, out, x);
	case SWAP_HOST_POINTER:
		host = (float *)malloc(n * sizeof *host);
		for (unsigned i = 0; i < n; i++)
			host[i] = x[i];
		LAUNCH((swap<SWAP>), dim3(n / THREADS), dim3(THREADS), 0, stream, out, host, (int)n);
		free(host);
		break;
	case TILES:
		LAUNCH((tiles<TILES>), dim3(1), dim3(THREADS), THREADS * sizeof *out, stream, out, x, (int)n);
		break;
	case TILES_REFILLED_EARLY:
		LAUNCH((tiles<TILES_REFILLED_EARLY>), dim3(1), dim3(THREADS), THREADS * sizeof *out, stream, out, x, (int)n);
		break;
	case DOT:
		LAUNCH((dot), 1, 32, 0, stream, out, x, weights, (int)n);
		break;
	case BALLOT:
		LAUNCH(ballot, dim3(1), dim3(32, 4), 0, stream, out, x);
		break;
	case TOO_MANY_THREADS:
		LAUNCH((ballot), dim3(1), dim3(32, 33), 0, stream, out, x);
		break;
	default:
		return "no such kernel";
	}
	return NULL;
}
