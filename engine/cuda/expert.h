/*
 * Launchers of engine/cuda/expert.cu. Private to libquire_cuda.so and to the tests' library of the same kernels.
 */
#ifndef QUIRE_ENGINE_CUDA_EXPERT_H
#define QUIRE_ENGINE_CUDA_EXPERT_H

#include "offload/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* struct backend's `experts`, into a stream (cudaStream_t). NULL, or what is wrong with the experts: nothing was launched then. What the
 * launch itself says is to be asked of the runtime. */
const char *expert_launch(void *stream, float *out, float *gate, const void *x, const int32_t *rows,
			  const struct backend_expert *experts, int n, int profile);

#ifdef __cplusplus
}
#endif
#endif
