/*
 * Vectors, as the twins of engine/simd are written in them: VL float32 values, or as many 32-bit words, in one register.
 *
 * Three ways to hold them: AVX2 (VL = 8), AVX-512 (VL = 16), and SIMD_WIDE, which is AVX-512's width in plain C. The
 * last one is for tests: it runs the code that AVX-512 would run, tile sizes and all, on a processor that lacks it; with
 * SIMD_WIDE_PAIRS also what has bf16 dot products (HAS_DOT). A twin uses what is here and no intrinsics of its own,
 * unless an instruction set alone has a way to do it; then the other ways stand beside it.
 *
 * A mask (vm) says yes or no for each value; vm_less is no where either is a NaN. vm_bits: value l's in bit l.
 *
 * The 16 lanes of order (L) are HALVES vectors: lanes 0 .. VL - 1 in the first.
 */
#ifndef QUIRE_ENGINE_SIMD_VEC_H
#define QUIRE_ENGINE_SIMD_VEC_H

#include <immintrin.h>

#include "engine/cpu/cpu.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NEVER_INLINE __attribute__((noinline))

/* Before a loop of at most n turns over accumulators, so that they are registers. */
#if defined SIMD_WIDE
#define UNROLL(n)
#else
#define UNROLL_TEXT(x) _Pragma(#x)
#define UNROLL(n) UNROLL_TEXT(GCC unroll n)
#endif

#if defined __AVX512F__ || defined SIMD_WIDE
enum { VL = 16 };
#else
enum { VL = 8 };
#endif
enum { HALVES = LANES / VL };

#if defined __AVX512BF16__ || defined SIMD_WIDE_PAIRS
#define HAS_DOT 1
#else
#define HAS_DOT 0
#endif

#if defined SIMD_WIDE
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef float vf_any __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi_any __attribute__((vector_size(64), aligned(1), may_alias));

static ALWAYS_INLINE vf vf_load(const float *p) { return *(const vf_any *)p; }
static ALWAYS_INLINE void vf_store(float *p, vf x) { *(vf_any *)p = x; }
static ALWAYS_INLINE vf vf_all(float x) { return x - (vf){0}; }
static ALWAYS_INLINE vf vf_add(vf a, vf b) { return a + b; }
static ALWAYS_INLINE vf vf_sub(vf a, vf b) { return a - b; }
static ALWAYS_INLINE vf vf_mul(vf a, vf b) { return a * b; }
static ALWAYS_INLINE vf vf_div(vf a, vf b) { return a / b; }
static ALWAYS_INLINE vi vi_load(const void *p) { return *(const vi_any *)p; }
static ALWAYS_INLINE void vi_store(void *p, vi x) { *(vi_any *)p = x; }
static ALWAYS_INLINE vi vi_all(int32_t x) { return x - (vi){0}; }
static ALWAYS_INLINE vi vi_and(vi a, vi b) { return a & b; }
static ALWAYS_INLINE vi vi_or(vi a, vi b) { return a | b; }
static ALWAYS_INLINE vi vi_add(vi a, vi b) { return (vi)((vu)a + (vu)b); }
static ALWAYS_INLINE vf vf_of_bits(vi x) { return (vf)x; }
static ALWAYS_INLINE vi vi_bits(vf x) { return (vi)x; }
static ALWAYS_INLINE vi vi_sub(vi a, vi b) { return (vi)((vu)a - (vu)b); }
static ALWAYS_INLINE vi vi_xor(vi a, vi b) { return a ^ b; }
typedef vi vm;
static ALWAYS_INLINE vm vm_less(vf a, vf b) { return (vi)(a < b); }
static ALWAYS_INLINE vf vf_select(vm m, vf yes, vf no) { return (vf)((m & (vi)yes) | (~m & (vi)no)); }
static ALWAYS_INLINE vm vm_equal(vi a, vi b) { return a == b; }
static ALWAYS_INLINE vm vm_greater(vi a, vi b) { return a > b; }
#define vi_shift_left(x, n) ((vi)((vu)(x) << (n)))
#define vi_shift_right(x, n) ((vi)((vu)(x) >> (n)))

/* With FMA's instruction where there is one: sixteen calls of fmaf take compilers minutes. */
static ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c)
{
#if defined __FMA__
	__m256 x[2], y[2], z[2];

	memcpy(x, &a, sizeof x);
	memcpy(y, &b, sizeof y);
	memcpy(z, &c, sizeof z);
	for (int i = 0; i < 2; i++)
		z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
	memcpy(&c, z, sizeof c);
#else
	for (int l = 0; l < VL; l++)
		c[l] = __builtin_fmaf(a[l], b[l], c[l]);
#endif
	return c;
}

/* The largest value; x has no NaN. */
static ALWAYS_INLINE float vf_highest(vf x)
{
	float highest = x[0];

	for (int l = 1; l < VL; l++)
		highest = x[l] > highest ? x[l] : highest;
	return highest;
}

/* Values 2 l and 2 l + 1 change places. */
static ALWAYS_INLINE vf vf_swap_pairs(vf x)
{
	return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

/* As vmaxps: the second where either is a NaN, or both are zero. */
static ALWAYS_INLINE vf vf_max(vf a, vf b)
{
	for (int l = 0; l < VL; l++)
		a[l] = a[l] > b[l] ? a[l] : b[l];
	return a;
}

static ALWAYS_INLINE unsigned vm_bits(vm m)
{
	unsigned bits = 0;

	for (int l = 0; l < VL; l++)
		bits |= (unsigned)(m[l] & 1) << l;
	return bits;
}

static ALWAYS_INLINE vi vi_load_u16(const uint16_t *p)
{
	uint16_t x __attribute__((vector_size(32)));

	memcpy(&x, p, sizeof x);
	return __builtin_convertvector(x, vi);
}

static ALWAYS_INLINE vi vi_load_i8(const int8_t *p)
{
	int8_t x __attribute__((vector_size(16)));

	memcpy(&x, p, sizeof x);
	return __builtin_convertvector(x, vi);
}

static ALWAYS_INLINE vf vf_load_f16(const uint16_t *p)
{
	vf x;

	for (int l = 0; l < VL; l++)
		x[l] = f16_to_f32(p[l]);
	return x;
}
#elif defined __AVX512F__
typedef __m512 vf;
typedef __m512i vi;

static ALWAYS_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static ALWAYS_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
static ALWAYS_INLINE vf vf_all(float x) { return _mm512_set1_ps(x); }
static ALWAYS_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static ALWAYS_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static ALWAYS_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static ALWAYS_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static ALWAYS_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static ALWAYS_INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
static ALWAYS_INLINE void vi_store(void *p, vi x) { _mm512_storeu_si512(p, x); }
static ALWAYS_INLINE vi vi_all(int32_t x) { return _mm512_set1_epi32(x); }
static ALWAYS_INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
static ALWAYS_INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
static ALWAYS_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static ALWAYS_INLINE vf vf_of_bits(vi x) { return _mm512_castsi512_ps(x); }
static ALWAYS_INLINE vi vi_bits(vf x) { return _mm512_castps_si512(x); }
static ALWAYS_INLINE vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
static ALWAYS_INLINE vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
typedef __mmask16 vm;
static ALWAYS_INLINE vm vm_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static ALWAYS_INLINE vf vf_select(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
static ALWAYS_INLINE vm vm_equal(vi a, vi b) { return _mm512_cmpeq_epi32_mask(a, b); }
static ALWAYS_INLINE vm vm_greater(vi a, vi b) { return _mm512_cmpgt_epi32_mask(a, b); }
static ALWAYS_INLINE unsigned vm_bits(vm m) { return m; }
static ALWAYS_INLINE vi vi_load_u16(const uint16_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)); }
static ALWAYS_INLINE vi vi_load_i8(const int8_t *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)); }
static ALWAYS_INLINE vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
static ALWAYS_INLINE float vf_highest(vf x) { return _mm512_reduce_max_ps(x); }
static ALWAYS_INLINE vf vf_swap_pairs(vf x) { return _mm512_permute_ps(x, 0xb1); }
#define vi_shift_left(x, n) _mm512_slli_epi32(x, n)
#define vi_shift_right(x, n) _mm512_srli_epi32(x, n)
#else
typedef __m256 vf;
typedef __m256i vi;

static ALWAYS_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static ALWAYS_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
static ALWAYS_INLINE vf vf_all(float x) { return _mm256_set1_ps(x); }
static ALWAYS_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static ALWAYS_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static ALWAYS_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static ALWAYS_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static ALWAYS_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static ALWAYS_INLINE vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
static ALWAYS_INLINE void vi_store(void *p, vi x) { _mm256_storeu_si256(p, x); }
static ALWAYS_INLINE vi vi_all(int32_t x) { return _mm256_set1_epi32(x); }
static ALWAYS_INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
static ALWAYS_INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
static ALWAYS_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static ALWAYS_INLINE vf vf_of_bits(vi x) { return _mm256_castsi256_ps(x); }
static ALWAYS_INLINE vi vi_bits(vf x) { return _mm256_castps_si256(x); }
static ALWAYS_INLINE vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
static ALWAYS_INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
typedef __m256i vm;
static ALWAYS_INLINE vm vm_less(vf a, vf b) { return vi_bits(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
static ALWAYS_INLINE vf vf_select(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, vf_of_bits(m)); }
static ALWAYS_INLINE vm vm_equal(vi a, vi b) { return _mm256_cmpeq_epi32(a, b); }
static ALWAYS_INLINE vm vm_greater(vi a, vi b) { return _mm256_cmpgt_epi32(a, b); }
static ALWAYS_INLINE unsigned vm_bits(vm m) { return (unsigned)_mm256_movemask_ps(vf_of_bits(m)); }
static ALWAYS_INLINE vi vi_load_u16(const uint16_t *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)); }
static ALWAYS_INLINE vi vi_load_i8(const int8_t *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)); }
static ALWAYS_INLINE vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
static ALWAYS_INLINE vf vf_swap_pairs(vf x) { return _mm256_permute_ps(x, 0xb1); }

/* The largest value; x has no NaN. */
static ALWAYS_INLINE float vf_highest(vf x)
{
	__m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

	m = _mm_max_ps(m, _mm_movehl_ps(m, m));
	return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
#define vi_shift_left(x, n) _mm256_slli_epi32(x, n)
#define vi_shift_right(x, n) _mm256_srli_epi32(x, n)
#endif

static ALWAYS_INLINE vf vf_zero(void)
{
	return vf_all(0);
}

/* A word is a pair of bf16 values, the even one in its low half: each half widened. */
static ALWAYS_INLINE vf vf_odd(vi pairs)
{
	return vf_of_bits(vi_and(pairs, vi_all((int32_t)0xffff0000)));
}

static ALWAYS_INLINE vf vf_even(vi pairs)
{
	return vf_of_bits(vi_shift_left(pairs, 16));
}

static ALWAYS_INLINE vf vf_load_bf16(const uint16_t *p)
{
	return vf_of_bits(vi_shift_left(vi_load_u16(p), 16));
}

/* Rounded to bf16, each in the high half of its word: f32_to_bf16. */
static ALWAYS_INLINE vf vf_round_bf16(vf x)
{
	vi u = vi_bits(x), up = vi_add(vi_all(0x7fff), vi_and(vi_shift_right(u, 16), vi_all(1)));
	vm is_nan = vm_greater(vi_and(u, vi_all(0x7fffffff)), vi_all(0x7f800000));
	vf rounded = vf_select(is_nan, vf_of_bits(vi_or(u, vi_all(0x400000))), vf_of_bits(vi_add(u, up)));

	return vf_of_bits(vi_and(vi_bits(rounded), vi_all((int32_t)0xffff0000)));
}

#if HAS_DOT
/* sum + a.odd b.odd, then + a.even b.even, each fused; subnormals are zero, so it belongs between flush_begin and flush_end. */
static ALWAYS_INLINE vf vf_dot(vf sum, vi a, vi b)
{
#if defined __AVX512BF16__
	return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
	return vf_fma(vf_even(a), vf_even(b), vf_fma(vf_odd(a), vf_odd(b), sum));
#endif
}
#endif

/*
 * Rule (F) by the processor's own mode: subnormals are zero from flush_begin to flush_end, in this thread. What computes
 * between them must be a call that is not inlined, since compilers move arithmetic across the change of mode.
 */
static inline unsigned flush_begin(enum compute_profile profile)
{
	unsigned old = _mm_getcsr();

	if (profile == COMPUTE_BF16)
		_mm_setcsr(old | 0x8040);
	return old;
}

/* The same of results alone: for work that uses subnormal operands on purpose, and sees to the others itself. */
static inline unsigned flush_results_begin(enum compute_profile profile)
{
	unsigned old = _mm_getcsr();

	if (profile == COMPUTE_BF16)
		_mm_setcsr(old | 0x8000);
	return old;
}

static inline void flush_end(unsigned old)
{
	_mm_setcsr(old);
}

#endif
