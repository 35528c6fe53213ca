/*
 * Names for functions that are compiled once per instruction set (Makefile, ISAS): CPU(matmul) is matmul_scalar in one
 * object and matmul_avx512 in another. The source is the definition; compilers may only make it faster, since every
 * rounding is written out.
 */
#ifndef QUIRE_ENGINE_CPU_CPU_H
#define QUIRE_ENGINE_CPU_CPU_H

#if defined __AVX2__
#include <immintrin.h>
#endif

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

/*
 * Sixteen float32 side by side: the lanes of order (L), or sixteen outputs of order (A). All kernels are written in them;
 * an instruction set only says how to hold them.
 */
#if defined __AVX512F__
typedef __m512 lanes;

static inline lanes lanes_load(const float *p)
{
	return _mm512_loadu_ps(p);
}

static inline void lanes_store(float *p, lanes x)
{
	_mm512_storeu_ps(p, x);
}

static inline lanes lanes_all(float x)
{
	return _mm512_set1_ps(x);
}

/* a b + c, one rounding. */
static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
	return _mm512_fmadd_ps(a, b, c);
}
#elif defined __AVX2__
typedef struct {
	__m256 low, high;
} lanes;

static inline lanes lanes_load(const float *p)
{
	return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

static inline void lanes_store(float *p, lanes x)
{
	_mm256_storeu_ps(p, x.low);
	_mm256_storeu_ps(p + 8, x.high);
}

static inline lanes lanes_all(float x)
{
	return (lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
	return (lanes){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
#else
typedef struct {
	float lane[LANES];
} lanes;

static inline lanes lanes_load(const float *p)
{
	lanes x;

	memcpy(x.lane, p, sizeof x.lane);
	return x;
}

static inline void lanes_store(float *p, lanes x)
{
	memcpy(p, x.lane, sizeof x.lane);
}

static inline lanes lanes_all(float x)
{
	lanes y;

	for (int l = 0; l < LANES; l++)
		y.lane[l] = x;
	return y;
}

/* a b + c, one rounding. */
static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
	for (int l = 0; l < LANES; l++)
		c.lane[l] = fmaf(a.lane[l], b.lane[l], c.lane[l]);
	return c;
}
#endif

/* The tree at the end of order (L). */
static inline float lanes_sum(lanes x)
{
	float s[LANES];

	lanes_store(s, x);
	for (int step = LANES / 2; step; step /= 2)
		for (int l = 0; l < step; l++)
			s[l] += s[l + step];
	return s[0];
}

/* Columns k .. k + n - 1 of row r widened to float32, exact; scales are not applied. k is even. */
static inline void weight_widen(float *out, const struct weight *w, int32_t r, int32_t k, int n)
{
	const char *row = (const char *)w->data + (size_t)r * weight_row_bytes(w);

	switch (w->dtype) {
	case DTYPE_F32:
		memcpy(out, (const float *)row + k, (size_t)n * sizeof *out);
		break;
	case DTYPE_BF16:
		for (int i = 0; i < n; i++)
			out[i] = bf16_to_f32(((const uint16_t *)row)[k + i]);
		break;
	case DTYPE_F16:
		for (int i = 0; i < n; i++)
			out[i] = f16_to_f32(((const uint16_t *)row)[k + i]);
		break;
	case DTYPE_INT4:
		for (int i = 0; i < n; i++)
			out[i] = (float)((((const uint8_t *)row)[(k + i) / 2] >> i % 2 * 4 & 15) - 8);
		break;
	default:
		for (int i = 0; i < n; i++)
			out[i] = e4m3_to_f32(((const uint8_t *)row)[k + i]);
	}
}

/* The scale of row r of a view, for columns from k on. */
static inline float weight_scale(const struct weight *w, int32_t r, int32_t k)
{
	int64_t across = (w->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;

	if (w->group_scale)
		return bf16_to_f32(w->group_scale[(int64_t)r * weight_groups(w) + k / INT4_GROUP]);
	return w->scale[(w->first_row + r) / WEIGHT_BLOCK * across + k / WEIGHT_BLOCK];
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
void CPU(expand_values)(struct device *dev, float *out, const float *x, const struct weight *kv_b, int32_t n_heads,
			int32_t nope_dim, int32_t v_dim, int64_t n, enum compute_profile profile);
void CPU(attend)(struct device *dev, float *out, const float *q, const struct latent_rows *latents,
		 const struct selection *selections, int32_t n_heads, float scale, int64_t n,
		 enum compute_profile profile);
void CPU(index_scores)(struct device *dev, float *scores, int64_t scores_stride, const float *q, const float *w,
		       const void *keys, const int64_t *n_visible, int32_t n_heads, int32_t dim, int64_t n,
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
void CPU(exp)(float *out, const float *x, int64_t n);
bool CPU(to_bf16)(uint16_t *out, const float *x, int64_t n);
bool CPU(latent_pack)(enum latent_format format, uint8_t *row, const float *values, int32_t kv_lora, int32_t rope_dim);
bool CPU(latent_unpack)(enum latent_format format, float *values, const uint8_t *row, int32_t kv_lora, int32_t rope_dim);
int32_t CPU(int4_pack_row)(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w, int32_t r);
/* The definition, for twins that leave something to it. */
int32_t int4_pack_row_scalar(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w, int32_t r);

#endif
