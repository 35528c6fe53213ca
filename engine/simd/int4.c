/* Rows of weights to int4, a vector at a time. */
#include "engine/simd/decode.h"

#include "engine/int4.h"

enum { RUN = 16 }; /* groups that are widened before they are packed */

/* A group's codes stand in words; each pair of them goes to a byte, the even one first. */
static ALWAYS_INLINE void store_codes(uint8_t out[VL / 2], vi codes)
{
#if defined SIMD_WIDE
	for (int i = 0; i < VL / 2; i++)
		out[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
#elif defined __AVX512F__
	__m512i pairs = _mm512_or_si512(codes, _mm512_srli_epi64(codes, 28));

	_mm_storel_epi64((__m128i *)out, _mm512_cvtepi64_epi8(pairs));
#else
	const __m256i low = _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 8, -1, -1, -1, -1, -1, -1,
					     -1, -1, -1, -1, -1, -1, -1, -1);
	__m256i pairs = _mm256_shuffle_epi8(_mm256_or_si256(codes, _mm256_srli_epi64(codes, 28)), low);

	_mm_storeu_si32(out, _mm_unpacklo_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
#endif
}

static ALWAYS_INLINE void add_lanes(double sums[LANES], const vf x[HALVES])
{
	float lane[LANES];

	for (int h = 0; h < HALVES; h++)
		vf_store(lane + h * VL, x[h]);
	for (int l = 0; l < LANES; l++)
		sums[l] += (double)lane[l];
}

/* Of values x, whose scale is not 0. */
static ALWAYS_INLINE void pack_group(uint8_t codes[INT4_GROUP / 2], float scale, double lost[LANES], double whole[LANES],
				     const float x[INT4_GROUP])
{
	const vf to_whole = vf_all(0x1.8p23f), each = vf_all(scale);
	vf off_squared[HALVES], squared[HALVES];

	for (int h = 0; h < HALVES; h++) {
		off_squared[h] = squared[h] = vf_zero();
		UNROLL(4)
		for (int i = h * VL; i < INT4_GROUP; i += LANES) {
			vf v = vf_load(x + i), rounded = vf_add(vf_div(v, each), to_whole);
			vf off = vf_sub(v, vf_mul(vf_sub(rounded, to_whole), each));

			store_codes(codes + i / 2, vi_and(vi_add(vi_bits(rounded), vi_all(8)), vi_all(15)));
			off_squared[h] = vf_add(off_squared[h], vf_mul(off, off));
			squared[h] = vf_add(squared[h], vf_mul(v, v));
		}
	}
	add_lanes(lost, off_squared);
	add_lanes(whole, squared);
}

/* A group's values times `scale`, as they are stored. Returns the greatest magnitude. */
static ALWAYS_INLINE float widen(float out[INT4_GROUP], const char *stored, enum dtype dtype, float scale)
{
	const vi magnitude = vi_all(0x7fffffff);
	vf most = vf_zero();

	for (int i = 0; i < INT4_GROUP; i += BLOCK, stored += block_bytes(dtype)) {
		vf v[2][HALVES];

		decode_steps(v, dtype, false, stored);
		for (int s = 0; s < 2; s++)
			for (int h = 0; h < HALVES; h++) {
				vf x = is_fp8(dtype) ? vf_mul(v[s][h], vf_all(scale)) : v[s][h];

				vf_store(out + i + s * LANES + h * VL, x);
				most = vf_max(most, vf_of_bits(vi_and(vi_bits(x), magnitude)));
			}
	}
	return vf_highest(most);
}

/* False: not all is finite. Some groups are widened before any of them is packed: what a group's scale waits for is long, and so the
 * next ones pass it. */
static ALWAYS_INLINE bool pack_row(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w, int32_t r,
				   enum dtype dtype)
{
	const char *row = (const char *)w->data + (size_t)r * weight_row_bytes(w);
	double lost[LANES] = {0}, whole[LANES] = {0};
	float x[RUN][INT4_GROUP];

	if (weight_any_not_finite(row, (size_t)w->cols, dtype))
		return false;
	for (int32_t k = 0; k < w->cols; k += RUN * INT4_GROUP) {
		int n = (w->cols - k) / INT4_GROUP < RUN ? (w->cols - k) / INT4_GROUP : RUN;

		for (int g = 0; g < n; g++, row += INT4_GROUP / BLOCK * block_bytes(dtype)) {
			float scale = is_fp8(dtype) ? weight_scale(w, r, k + g * INT4_GROUP) : 1, most = widen(x[g], row, dtype, scale);

			if (!num_all_finite(&scale, 1) || !num_all_finite(&most, 1))
				return false;
			scales[g] = int4_scale(most);
		}
		for (int g = 0; g < n; g++, codes += INT4_GROUP / 2)
			if (scales[g])
				pack_group(codes, bf16_to_f32(scales[g]), lost, whole, x[g]);
			else
				memset(codes, INT4_NOTHING, INT4_GROUP / 2);
		scales += n;
	}
	*error = (struct int4_error){int4_sum(lost), int4_sum(whole)};
	return true;
}

int32_t CPU(int4_pack_row)(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w, int32_t r)
{
	bool packed = w->dtype == DTYPE_F8_E4M3 ? pack_row(codes, scales, error, w, r, DTYPE_F8_E4M3) :
		      w->dtype == DTYPE_BF16    ? pack_row(codes, scales, error, w, r, DTYPE_BF16) :
		      w->dtype == DTYPE_F16     ? pack_row(codes, scales, error, w, r, DTYPE_F16) :
						  pack_row(codes, scales, error, w, r, DTYPE_F32);

	/* Which value it is, the definition finds. */
	return packed ? -1 : int4_pack_row_scalar(codes, scales, error, w, r);
}
