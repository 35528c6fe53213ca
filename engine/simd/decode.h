/*
 * Weights on their way into registers: 32 inputs of a row, as stored, to the values that lanes are multiplied with.
 *
 * The order (L) of ops.h takes 32 inputs in two steps of 16 lanes: inputs l, then 16 + l (profile f32); inputs
 * 2l + 1, then 2l (profile bf16, `pairs`). decode_steps gives v[step][half]. Where there are bf16 dot products and a
 * value fits bf16 (all but F32 and F16), decode_words gives both steps of profile bf16 as one word a lane.
 *
 * dtype and pairs are constants where these are inlined. E4M3 goes through float16, which has its values times 2^-8, the
 * subnormal ones too; a multiplication by 256 is exact. NaN codes never get here (model.c).
 *
 * DTYPE_F8_LIFTED is E4M3 by moving bits alone: sign, exponent and fraction at float32's places are the value times 2^-120,
 * a subnormal float32 where the code is. So it must not run where subnormal operands count as zero; what it is multiplied
 * with is lifted by as much, or nearly (lift in gemv.c).
 */
#ifndef QUIRE_ENGINE_SIMD_DECODE_H
#define QUIRE_ENGINE_SIMD_DECODE_H

#include "engine/simd/tables.h"
#include "engine/simd/vec.h"

enum { BLOCK = LANE_PAD }; /* inputs decoded at a time */

#define DTYPE_F8_LIFTED ((enum dtype)N_DTYPES)

/* Bytes of BLOCK inputs. */
static ALWAYS_INLINE int block_bytes(enum dtype dtype)
{
	switch (dtype) {
	case DTYPE_F32:
		return 4 * BLOCK;
	case DTYPE_F8_E4M3:
		return BLOCK;
	case DTYPE_INT4:
		return BLOCK / 2;
	default:
		return dtype == DTYPE_F8_LIFTED ? BLOCK : 2 * BLOCK;
	}
}

static ALWAYS_INLINE bool is_fp8(enum dtype dtype)
{
	return dtype == DTYPE_F8_E4M3 || dtype == DTYPE_F8_LIFTED;
}

/* Inputs that share a scale; 0: no scales. */
static ALWAYS_INLINE int scale_block(enum dtype dtype)
{
	return is_fp8(dtype) ? WEIGHT_BLOCK : dtype == DTYPE_INT4 ? INT4_GROUP : 0;
}

/* Does profile bf16 use bf16 dot products for it? */
static ALWAYS_INLINE bool uses_words(enum dtype dtype, bool pairs)
{
	return HAS_DOT && pairs && dtype != DTYPE_F32 && dtype != DTYPE_F16 && dtype != DTYPE_F8_LIFTED;
}

#if defined SIMD_WIDE
static ALWAYS_INLINE void decode_plain(float *out, enum dtype dtype, const void *in)
{
	struct weight w = {.dtype = dtype, .rows = 1, .cols = BLOCK, .data = in};

	/* numeric.h's conversions pass through float32 subnormals, which may be zero where this runs. */
	if (dtype == DTYPE_F16)
		for (int k = 0; k < BLOCK; k++)
			out[k] = _cvtsh_ss(((const uint16_t *)in)[k]);
	else if (is_fp8(dtype))
		for (int k = 0; k < BLOCK; k++) {
			unsigned c = ((const uint8_t *)in)[k];

			out[k] = dtype == DTYPE_F8_LIFTED ? f32_from_bits((c & 0x80) << 24 | (c & 0x7f) << 20)
							  : _cvtsh_ss((unsigned short)((c & 0x80) << 8 | (c & 0x7f) << 7)) * 256;
		}
	else
		weight_widen(out, &w, 0, 0, BLOCK);
}

static ALWAYS_INLINE void decode_steps(vf v[2][HALVES], enum dtype dtype, bool pairs, const void *in)
{
	float x[BLOCK];

	decode_plain(x, dtype, in);
	for (int l = 0; l < LANES; l++) {
		v[0][0][l] = x[pairs ? 2 * l + 1 : l];
		v[1][0][l] = x[pairs ? 2 * l : LANES + l];
	}
}

#if HAS_DOT
static ALWAYS_INLINE vi decode_words(enum dtype dtype, const void *in)
{
	uint16_t word[BLOCK];
	float x[BLOCK];

	decode_plain(x, dtype, in);
	for (int k = 0; k < BLOCK; k++)
		word[k] = f32_to_bf16(x[k]);
	return vi_load(word);
}
#endif

#elif defined __AVX512F__
static ALWAYS_INLINE void split_pairs(vf v[2][HALVES], vf a, vf b, bool pairs)
{
	const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
	const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);

	v[0][0] = pairs ? _mm512_permutex2var_ps(a, odd, b) : a;
	v[1][0] = pairs ? _mm512_permutex2var_ps(a, even, b) : b;
}

/* Codes in the high bytes of words, to values. */
static ALWAYS_INLINE vf e4m3_values(__m256i high)
{
	vf x = _mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16((short)0xbf80)));

	return _mm512_mul_ps(x, _mm512_set1_ps(256));
}

/* Codes in the highest bytes of words, to values times 2^-120. */
static ALWAYS_INLINE vf lifted_values(__m512i codes)
{
	return vf_of_bits(_mm512_and_si512(_mm512_srai_epi32(codes, 4), _mm512_set1_epi32((int)0x87f00000)));
}

static ALWAYS_INLINE vf int4_values(__m512i codes)
{
	const __m512 values = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);

	return _mm512_permutexvar_ps(codes, values);
}

static ALWAYS_INLINE void decode_steps(vf v[2][HALVES], enum dtype dtype, bool pairs, const void *in)
{
	const char *p = in;

	if (dtype == DTYPE_F32) {
		split_pairs(v, _mm512_loadu_ps(p), _mm512_loadu_ps(p + 64), pairs);
	} else if (dtype == DTYPE_F16) {
		split_pairs(v, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)),
			    _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + 32))), pairs);
	} else if (dtype == DTYPE_BF16 && pairs) {
		vi w = vi_load(p);

		v[0][0] = vf_odd(w);
		v[1][0] = vf_even(w);
	} else if (dtype == DTYPE_BF16) {
		for (int s = 0; s < 2; s++) {
			__m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + 32 * s)));

			v[s][0] = vf_of_bits(_mm512_slli_epi32(w, 16));
		}
	} else if (dtype == DTYPE_F8_LIFTED && pairs) {
		__m512i c = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));

		v[0][0] = lifted_values(_mm512_slli_epi32(c, 16));
		v[1][0] = lifted_values(_mm512_slli_epi32(c, 24));
	} else if (dtype == DTYPE_F8_LIFTED) {
		for (int s = 0; s < 2; s++)
			v[s][0] = lifted_values(_mm512_slli_epi32(
				_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p + 16 * s))), 24));
	} else if (dtype == DTYPE_F8_E4M3 && pairs) {
		__m256i c = _mm256_loadu_si256((const __m256i *)p);

		v[0][0] = e4m3_values(c);
		v[1][0] = e4m3_values(_mm256_slli_epi16(c, 8));
	} else if (dtype == DTYPE_F8_E4M3) {
		for (int s = 0; s < 2; s++) {
			__m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(p + 16 * s)));

			v[s][0] = e4m3_values(_mm256_slli_epi16(c, 8));
		}
	} else {
		__m128i c = _mm_loadu_si128((const __m128i *)p), low = _mm_and_si128(c, _mm_set1_epi8(15));
		__m128i high = _mm_and_si128(_mm_srli_epi16(c, 4), _mm_set1_epi8(15));

		v[0][0] = int4_values(_mm512_cvtepu8_epi32(pairs ? high : _mm_unpacklo_epi8(low, high)));
		v[1][0] = int4_values(_mm512_cvtepu8_epi32(pairs ? low : _mm_unpackhi_epi8(low, high)));
	}
}

#if HAS_DOT
/* Each byte twice, then a table for the low and one for the high byte of a word. */
static ALWAYS_INLINE vi e4m3_words(__m256i codes)
{
	const __m512i twice = _mm512_set_epi8(31, 31, 30, 30, 29, 29, 28, 28, 27, 27, 26, 26, 25, 25, 24, 24, 23, 23, 22, 22,
					      21, 21, 20, 20, 19, 19, 18, 18, 17, 17, 16, 16, 15, 15, 14, 14, 13, 13, 12, 12,
					      11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
	__m512i c = _mm512_permutexvar_epi8(twice, _mm512_castsi256_si512(codes));
	__m512i low = _mm512_permutex2var_epi8(vi_load(e4m3_bf16[0]), c, vi_load(e4m3_bf16[0] + 64));
	__m512i high = _mm512_permutex2var_epi8(vi_load(e4m3_bf16[1]), c, vi_load(e4m3_bf16[1] + 64));
	__m512i words = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, low, high);

	return _mm512_or_si512(words, _mm512_and_si512(c, _mm512_set1_epi16((short)0x8000)));
}

/*
 * Both words of a lane from its byte, the upper one 4 bits down: what indexes a table of 16 values, which stands twice,
 * because the fifth bit is one of the other code.
 */
static ALWAYS_INLINE vi int4_words(__m128i codes)
{
	const __m512i twice = _mm512_set_epi32(0x800f800f, 0x800e800e, 0x800d800d, 0x800c800c, 0x800b800b, 0x800a800a, 0x80098009,
					       0x80088008, 0x80078007, 0x80068006, 0x80058005, 0x80048004, 0x80038003, 0x80028002,
					       0x80018001, 0x80008000);
	const __m512i down = _mm512_set1_epi32(4 << 16);
	const __m256i values = _mm256_set_epi16(0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0x0000, (short)0xbf80,
						(short)0xc000, (short)0xc040, (short)0xc080, (short)0xc0a0, (short)0xc0c0,
						(short)0xc0e0, (short)0xc100);
	__m512i c = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(codes), twice);

	return _mm512_permutexvar_epi16(_mm512_srlv_epi16(c, down), _mm512_broadcast_i64x4(values));
}

static ALWAYS_INLINE vi decode_words(enum dtype dtype, const void *in)
{
	if (dtype == DTYPE_F8_E4M3)
		return e4m3_words(_mm256_loadu_si256(in));
	if (dtype == DTYPE_INT4)
		return int4_words(_mm_loadu_si128(in));
	return vi_load(in);
}
#endif

#else
/* a, b: inputs 0 .. 15 in order; the odd ones, and the even ones. */
static ALWAYS_INLINE vf odd_of(vf a, vf b)
{
	return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
}

static ALWAYS_INLINE vf even_of(vf a, vf b)
{
	return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
}

static ALWAYS_INLINE void split_pairs(vf v[2][HALVES], const vf x[4], bool pairs)
{
	for (int h = 0; h < HALVES; h++) {
		v[0][h] = pairs ? odd_of(x[2 * h], x[2 * h + 1]) : x[h];
		v[1][h] = pairs ? even_of(x[2 * h], x[2 * h + 1]) : x[2 + h];
	}
}

/* 8 codes in the high bytes of words, to values. In halves of registers: to bring the upper one down costs more. */
static ALWAYS_INLINE vf e4m3_values(__m128i high)
{
	vf x = _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(high, 1), _mm_set1_epi16((short)0xbf80)));

	return _mm256_mul_ps(x, _mm256_set1_ps(256));
}

/* 8 codes in the highest bytes of words, to values times 2^-120. */
static ALWAYS_INLINE vf lifted_values(__m256i codes)
{
	return vf_of_bits(_mm256_and_si256(_mm256_srai_epi32(codes, 4), _mm256_set1_epi32((int)0x87f00000)));
}

/* 8 codes in words, to values: a code in the last bits of 2^23 is 2^23 + code. */
static ALWAYS_INLINE vf int4_values(__m256i codes)
{
	vf x = _mm256_castsi256_ps(_mm256_or_si256(codes, _mm256_castps_si256(_mm256_set1_ps(0x1p23f))));

	return _mm256_sub_ps(x, _mm256_set1_ps(0x1p23f + 8));
}

static ALWAYS_INLINE void decode_steps(vf v[2][HALVES], enum dtype dtype, bool pairs, const void *in)
{
	const char *p = in;
	vf x[4];

	if (dtype == DTYPE_F32 || dtype == DTYPE_F16) {
		for (int i = 0; i < 4; i++)
			x[i] = dtype == DTYPE_F32 ? _mm256_loadu_ps((const float *)p + 8 * i)
						  : _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + i));
		split_pairs(v, x, pairs);
	} else if (dtype == DTYPE_BF16 && pairs) {
		for (int h = 0; h < HALVES; h++) {
			vi w = vi_load(p + 32 * h);

			v[0][h] = vf_odd(w);
			v[1][h] = vf_even(w);
		}
	} else if (dtype == DTYPE_BF16) {
		for (int i = 0; i < 4; i++)
			v[i / 2][i % 2] = vf_of_bits(_mm256_slli_epi32(
				_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p + i)), 16));
	} else if (dtype == DTYPE_F8_LIFTED && pairs) {
		/* Bytes 1, 3, .. and 0, 2, .. of 16 that both halves have, to the highest places. */
		const __m256i odd = _mm256_setr_epi8(-1, -1, -1, 1, -1, -1, -1, 3, -1, -1, -1, 5, -1, -1, -1, 7,
						     -1, -1, -1, 9, -1, -1, -1, 11, -1, -1, -1, 13, -1, -1, -1, 15);
		const __m256i even = _mm256_setr_epi8(-1, -1, -1, 0, -1, -1, -1, 2, -1, -1, -1, 4, -1, -1, -1, 6,
						      -1, -1, -1, 8, -1, -1, -1, 10, -1, -1, -1, 12, -1, -1, -1, 14);

		for (int h = 0; h < HALVES; h++) {
			__m256i c = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p + 16 * h)));

			v[0][h] = lifted_values(_mm256_shuffle_epi8(c, odd));
			v[1][h] = lifted_values(_mm256_shuffle_epi8(c, even));
		}
	} else if (dtype == DTYPE_F8_LIFTED) {
		for (int i = 0; i < 4; i++)
			v[i / 2][i % 2] = lifted_values(_mm256_slli_epi32(
				_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8 * i))), 24));
	} else if (dtype == DTYPE_F8_E4M3) {
		for (int i = 0; i < 4; i++) {
			const char *at = p + (pairs ? 16 * (i % 2) : 8 * i);
			__m128i c = pairs ? _mm_loadu_si128((const __m128i *)at)
					  : _mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *)at));

			v[i / 2][i % 2] = e4m3_values(pairs && i / 2 ? _mm_slli_epi16(c, 8) : c);
		}
	} else if (pairs) {
		for (int h = 0; h < HALVES; h++) {
			__m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8 * h)));

			v[0][h] = int4_values(_mm256_srli_epi32(c, 4));
			v[1][h] = int4_values(_mm256_and_si256(c, _mm256_set1_epi32(15)));
		}
	} else {
		__m128i c = _mm_loadu_si128((const __m128i *)p), low = _mm_and_si128(c, _mm_set1_epi8(15));
		__m128i high = _mm_and_si128(_mm_srli_epi16(c, 4), _mm_set1_epi8(15));

		for (int s = 0; s < 2; s++) {
			__m128i in_order = s ? _mm_unpackhi_epi8(low, high) : _mm_unpacklo_epi8(low, high);

			v[s][0] = int4_values(_mm256_cvtepu8_epi32(in_order));
			v[s][1] = int4_values(_mm256_cvtepu8_epi32(_mm_srli_si128(in_order, 8)));
		}
	}
}
#endif

#endif
