/*
 * int4 weights times one row of x, with AVX2: decoding is what takes the time, so it is arranged to be short.
 *
 * Two rows of w at once, one in each half of a register, since shuffles do not cross halves. 16 bytes of a row are 32
 * inputs: the low nibbles the even ones, the high nibbles the odd ones, byte l for lane l. Two look-ups give the low and
 * the high bytes of their values in bf16, an interleaving makes bf16 words of them, and a word in the upper half of a
 * float32 is its value: a mask leaves every other lane, a shift brings the rest. So the lanes of a sum stand as
 *
 *     sum[0]  1 3 5 7    sum[1]  0 2 4 6    sum[2]  9 11 13 15    sum[3]  8 10 12 14      of row r, then of row r + 1
 *
 * and x is put in the same order, four lanes after four, to be loaded into both halves. Per lane the odd input is added
 * before the even one, and lanes start anew for each scale, as (L) has it.
 */
#include "engine/simd/matmul.h"

#if HAS_INT4_ROWS

enum { SETS = 4, PER_SET = 4, GROUP_BLOCKS = INT4_GROUP / BLOCK };

static const uint8_t lane_of[SETS][PER_SET] = {{1, 3, 5, 7}, {0, 2, 4, 6}, {9, 11, 13, 15}, {8, 10, 12, 14}};

void CPU(int4_order)(float *x, int64_t blocks)
{
	for (int64_t step = 0; step < 2 * blocks; step++, x += LANES) {
		float lanes_in_order[LANES];

		memcpy(lanes_in_order, x, sizeof lanes_in_order);
		for (int s = 0; s < SETS; s++)
			for (int l = 0; l < PER_SET; l++)
				x[s * PER_SET + l] = lanes_in_order[lane_of[s][l]];
	}
}

/* 32 nibbles in bytes, 16 of each row, times the 16 lanes at x. */
static ALWAYS_INLINE void add_nibbles(__m256 sum[SETS], __m256i codes, const float *x)
{
	/* bf16 of -8 .. 7: low bytes, high bytes. */
	const __m256i low = _mm256_broadcastsi128_si256(_mm_setr_epi8(
		0x00, (char)0xe0, (char)0xc0, (char)0xa0, (char)0x80, 0x40, 0x00, (char)0x80,
		0x00, (char)0x80, 0x00, 0x40, (char)0x80, (char)0xa0, (char)0xc0, (char)0xe0));
	const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(
		(char)0xc1, (char)0xc0, (char)0xc0, (char)0xc0, (char)0xc0, (char)0xc0, (char)0xc0, (char)0xbf,
		0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40));
	__m256i l = _mm256_shuffle_epi8(low, codes), h = _mm256_shuffle_epi8(high, codes);
	__m256i words[2] = {_mm256_unpacklo_epi8(l, h), _mm256_unpackhi_epi8(l, h)};

	for (int s = 0; s < SETS; s++) {
		__m256 w = s % 2 ? vf_even(words[s / 2]) : vf_odd(words[s / 2]);

		sum[s] = _mm256_fmadd_ps(_mm256_broadcast_ps((const __m128 *)(x + s * PER_SET)), w, sum[s]);
	}
}

/* 32 inputs of both rows. */
static ALWAYS_INLINE void add_block(__m256 sum[SETS], const char *a, const char *b, const float *x)
{
	const __m256i nibble = _mm256_set1_epi8(15);
	__m256i codes = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a)),
						_mm_loadu_si128((const __m128i *)b), 1);

	add_nibbles(sum, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble), x);
	add_nibbles(sum, _mm256_and_si256(codes, nibble), x + LANES);
}

/* total += scale x sum, the first row's scale in the lower half. */
static ALWAYS_INLINE void add_group(__m256 total[SETS], const __m256 sum[SETS], uint16_t a, uint16_t b)
{
	__m256i scale = _mm256_set1_epi32((int)((uint32_t)b << 16));

	scale = _mm256_blend_epi32(_mm256_set1_epi32((int)((uint32_t)a << 16)), scale, 0xf0);
	for (int s = 0; s < SETS; s++)
		total[s] = _mm256_fmadd_ps(_mm256_castsi256_ps(scale), sum[s], total[s]);
}

/* The tree of (L), for the row in the lower half. */
static ALWAYS_INLINE float tree(__m128 odd_low, __m128 even_low, __m128 odd_high, __m128 even_high)
{
	__m128 odd = _mm_add_ps(odd_low, odd_high), even = _mm_add_ps(even_low, even_high); /* l and l + 8 */

	odd = _mm_add_ps(odd, _mm_movehl_ps(odd, odd)); /* l and l + 4 */
	even = _mm_add_ps(even, _mm_movehl_ps(even, even));
	odd = _mm_add_ss(odd, _mm_movehdup_ps(odd)); /* 1 and 3 */
	even = _mm_add_ss(even, _mm_movehdup_ps(even)); /* 0 and 2 */
	return _mm_cvtss_f32(_mm_add_ss(even, odd));
}

/* y[r] and y[other]; both may be the same row. */
static ALWAYS_INLINE void two_rows(const struct product *p, int32_t r, int32_t other)
{
	const struct weight *w = p->w;
	size_t row_bytes = weight_row_bytes(w);
	const char *a = (const char *)w->data + (size_t)r * row_bytes, *b = (const char *)w->data + (size_t)other * row_bytes;
	const uint16_t *scale_a = w->group_scale + (int64_t)r * weight_groups(w);
	const uint16_t *scale_b = w->group_scale + (int64_t)other * weight_groups(w);
	const float *x = (const float *)p->packed;
	int64_t whole = w->cols / BLOCK, groups = whole / GROUP_BLOCKS;
	__m256 total[SETS], sum[SETS];
	int rest = w->cols % BLOCK;

	for (int s = 0; s < SETS; s++)
		total[s] = _mm256_setzero_ps();
	for (int64_t g = 0; g < groups; g++) {
		for (int s = 0; s < SETS; s++)
			sum[s] = _mm256_setzero_ps();
		if (g % 2 == 0) { /* the next two rows */
			_mm_prefetch(a + 2 * row_bytes, _MM_HINT_T0);
			_mm_prefetch(b + 2 * row_bytes, _MM_HINT_T0);
		}
		for (int k = 0; k < GROUP_BLOCKS; k++, a += BLOCK / 2, b += BLOCK / 2, x += BLOCK)
			add_block(sum, a, b, x);
		add_group(total, sum, scale_a[g], scale_b[g]);
	}
	if (groups < weight_groups(w)) {
		char tail[2][BLOCK / 2];

		for (int s = 0; s < SETS; s++)
			sum[s] = _mm256_setzero_ps();
		if (groups * GROUP_BLOCKS < whole) {
			add_block(sum, a, b, x);
			a += BLOCK / 2;
			b += BLOCK / 2;
			x += BLOCK;
		}
		if (rest)
			add_block(sum, padded_block(tail[0], a, rest, DTYPE_INT4), padded_block(tail[1], b, rest, DTYPE_INT4),
				  x);
		add_group(total, sum, scale_a[groups], scale_b[groups]);
	}
	p->y[r] = tree(_mm256_castps256_ps128(total[0]), _mm256_castps256_ps128(total[1]), _mm256_castps256_ps128(total[2]),
		       _mm256_castps256_ps128(total[3]));
	p->y[other] = tree(_mm256_extractf128_ps(total[0], 1), _mm256_extractf128_ps(total[1], 1),
			   _mm256_extractf128_ps(total[2], 1), _mm256_extractf128_ps(total[3], 1));
}

void CPU(int4_rows)(const struct product *p, int32_t first, int32_t end)
{
	int32_t r = first;

	for (; r + 2 <= end; r += 2)
		two_rows(p, r, r + 1);
	if (r < end)
		two_rows(p, r, r);
}

#endif
