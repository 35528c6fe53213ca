/*
 * Names for functions that are compiled once per instruction set (Makefile, ISAS): CPU(matmul) is matmul_scalar in one
 * object and matmul_fma in the next. The source is the definition; compilers may only make it faster, since every
 * rounding is written out.
 */
#ifndef QUIRE_ENGINE_CPU_CPU_H
#define QUIRE_ENGINE_CPU_CPU_H

#include "engine/numeric.h"
#include "engine/ops.h"
#include "engine/pool.h"

#ifndef CPU_ISA
#define CPU_ISA scalar
#endif
#define CPU_JOIN(name, isa) name##_##isa
#define CPU_NAME(name, isa) CPU_JOIN(name, isa)
#define CPU(name) CPU_NAME(name, CPU_ISA)
#define CPU_STRING2(x) #x
#define CPU_STRING(x) CPU_STRING2(x)

enum { LANES = 16, LANE_PAD = 32 };

/* The tree at the end of order (L). */
static inline float lanes_sum(const float *lane)
{
	float s[8];

	for (int l = 0; l < 8; l++)
		s[l] = lane[l] + lane[l + 8];
	for (int l = 0; l < 4; l++)
		s[l] += s[l + 4];
	s[0] += s[2];
	s[1] += s[3];
	return s[0] + s[1];
}

/* n values widened to float32; exact. FP8 scales are not applied. */
static inline void widen(float *out, enum dtype dtype, const void *data, int64_t first, int n)
{
	switch (dtype) {
	case DTYPE_F32:
		memcpy(out, (const float *)data + first, (size_t)n * sizeof *out);
		break;
	case DTYPE_BF16:
		for (int i = 0; i < n; i++)
			out[i] = bf16_to_f32(((const uint16_t *)data)[first + i]);
		break;
	case DTYPE_F16:
		for (int i = 0; i < n; i++)
			out[i] = f16_to_f32(((const uint16_t *)data)[first + i]);
		break;
	default:
		for (int i = 0; i < n; i++)
			out[i] = e4m3_to_f32(((const uint8_t *)data)[first + i]);
	}
}

/* FP8 scale of row r of a view, columns from column on. */
static inline float weight_scale(const struct weight *w, int32_t r, int32_t column)
{
	int64_t across = (w->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;

	return w->scale[(w->first_row + r) / WEIGHT_BLOCK * across + column / WEIGHT_BLOCK];
}

extern const struct ops CPU(ops);

void CPU(embed)(struct device *dev, float *out, const struct weight *w, const int32_t *ids, int64_t n);
void CPU(rmsnorm)(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
		  const float *weight, int64_t n, int32_t dim, float eps);
void CPU(layernorm)(struct device *dev, float *out, int64_t out_stride, const float *x, int64_t x_stride,
		    const float *weight, const float *bias, int64_t n, int32_t dim, float eps);
void CPU(matmul)(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride,
		 const struct weight *w, int64_t n, enum compute_profile profile);
void CPU(rope)(struct device *dev, float *x, int64_t stride, int32_t n_heads, int64_t head_stride, int32_t dim,
	       const float *cos, const float *sin, int64_t n, bool interleaved);
void CPU(absorb_query)(struct device *dev, float *out, int64_t out_head, const float *q, int64_t q_head,
		       const struct weight *kv_b, int32_t n_heads, int32_t nope_dim, int32_t v_dim, int64_t n);
void CPU(attend)(struct device *dev, float *out, const float *q, const struct latent_rows *latents,
		 const struct selection *selections, int32_t n_heads, float scale, int64_t n,
		 enum compute_profile profile);
void CPU(index_scores)(struct device *dev, float *scores, int64_t scores_stride, const float *q, const float *w,
		       const float *keys, const int64_t *n_visible, int32_t n_heads, int32_t dim, int64_t n,
		       enum compute_profile profile);
void CPU(topk_positions)(struct device *dev, int32_t *set, int64_t set_stride, int32_t *n_set, const float *scores,
			 int64_t scores_stride, const int64_t *n_visible, int32_t k, int64_t n);
void CPU(router_topk)(struct device *dev, int32_t *experts, float *weights, const float *logits, const float *bias,
		      int64_t n, int32_t n_experts, int32_t k, int32_t n_groups, int32_t topk_groups, bool normalize,
		      float scale);
void CPU(swiglu)(struct device *dev, float *gate, const float *up, int64_t n, int32_t dim);
void CPU(gather)(struct device *dev, float *out, const float *x, const int32_t *rows, int64_t n, int32_t dim);
void CPU(add_scaled)(struct device *dev, float *h, const float *x, const int32_t *rows, const float *weights,
		     int64_t n, int32_t dim);

#endif
