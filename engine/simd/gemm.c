/*
 * Many rows of x times a weight. K stays in the lanes, as in a row by row product, so an output is 16 sums until the very
 * end, and what a register blocking wins comes from TILE_X x TILE_W outputs that share what they load:
 *
 *     a step of a tile: TILE_W vectors of w, TILE_X of x, TILE_X x TILE_W multiply-adds
 *     AVX2     4 x 3, one half of the lanes after the other     12 sums, 3 + 1 operands: 16 registers
 *     AVX-512  4 x 6                                            24 sums, 6 + 1 operands: 31 registers
 *
 * x is made ready once, in panels of TILE_X rows; a thread makes BLOCK_W rows of w ready for K_BYTES of inputs at a time,
 * so that of a panel of each the first cache holds what a tile needs, and lets BLOCK_X rows of x pass. Sums wait in
 * memory between one part of K and the next: 64 bytes an output, which is why a block of outputs is small. With scales it
 * is the totals that wait, and lanes start anew for each scale.
 */
#include "engine/simd/matmul.h"

enum {
	TILE_X = 4,
	TILE_W = VL == 16 ? 6 : 3,
	BLOCK_X = 48,
	BLOCK_W = 48,
	K_BYTES = 2048,        /* of one row of a panel: 512 float32 values, 1024 of words */
	READY_BYTES = 16 << 20, /* of x made ready at a time */
};

/* What one multiplication needs to know, beside the product. */
struct gemm {
	struct product *p;
	int64_t first, n;      /* rows of x made ready */
	int64_t k_blocks;      /* blocks of 32 inputs in a whole part of K */
	size_t panel_bytes;    /* TILE_X rows of x, all of K */
};

/* Steps of a part of K that begins at block b. */
static ALWAYS_INLINE int64_t part_blocks(const struct gemm *g, int64_t b)
{
	int64_t left = product_blocks(g->p) - b;

	return left < g->k_blocks ? left : g->k_blocks;
}

/* ---- x made ready: [panel][part of K][half][step][TILE_X][VL] --------------------------------------------------- */

static void ready_panels(void *arg, int64_t first, int64_t end, int thread)
{
	const struct gemm *g = arg;
	const struct product *p = g->p;
	bool pairs = p->profile == COMPUTE_BF16;
	int steps = uses_words(p->w->dtype, pairs) ? 1 : 2;
	size_t vector = VL * 4, step = TILE_X * vector;

	(void)thread;
	for (int64_t panel = first; panel < end; panel++) {
		char *out = p->packed + (size_t)panel * g->panel_bytes;

		for (int64_t b = 0; b < product_blocks(p); b += g->k_blocks) {
			int64_t blocks = part_blocks(g, b);
			int32_t k = (int32_t)b * BLOCK, left = p->w->cols - k;
			int32_t cols = left < (int32_t)blocks * BLOCK ? left : (int32_t)blocks * BLOCK;
			size_t half = (size_t)(blocks * steps) * step;

			if ((panel + 1) * TILE_X > g->n)
				memset(out, 0, half * HALVES);
			for (int i = 0; i < TILE_X && panel * TILE_X + i < g->n; i++)
				CPU(ready_row)(out + (size_t)i * vector, step, half,
					       p->x + (g->first + panel * TILE_X + i) * p->x_stride + k, cols, p->w->dtype,
					       pairs);
			out += half * HALVES;
		}
	}
}

/* ---- a part of K of BLOCK_W rows of w made ready: [panel][half][step][TILE_W][VL] -------------------------------- */

struct ready_weights {
	char *panels;
	float *scales; /* [scale block of the part][BLOCK_W] */
};

static ALWAYS_INLINE void ready_weight_row(char *out, const char *in, int64_t blocks, int rest, size_t half, enum dtype dtype,
					   bool pairs)
{
	size_t step = TILE_W * VL * 4;
	char tail[4 * BLOCK];

	for (int64_t b = 0; b < blocks; b++, in += block_bytes(dtype)) {
		const char *at = b == blocks - 1 && rest ? padded_block(tail, in, rest, dtype) : in;
#if HAS_DOT
		if (uses_words(dtype, pairs)) {
			vi_store(out, decode_words(dtype, at));
			out += step;
			continue;
		}
#endif
		vf v[2][HALVES];

		decode_steps(v, dtype, pairs, at);
		for (int s = 0; s < 2; s++, out += step)
			for (int h = 0; h < HALVES; h++)
				vf_store((float *)(out + (size_t)h * half), v[s][h]);
	}
}

static ALWAYS_INLINE void ready_weight_block(struct ready_weights *to, const struct gemm *g, int32_t r0, int32_t rows,
					     int64_t b0, enum dtype dtype, bool pairs)
{
	const struct weight *w = g->p->w;
	int64_t blocks = part_blocks(g, b0), steps = blocks * (uses_words(dtype, pairs) ? 1 : 2);
	size_t row_bytes = weight_row_bytes(w), half = (size_t)steps * TILE_W * VL * 4;
	int rest = (b0 + blocks) * BLOCK > w->cols ? w->cols % BLOCK : 0;

	if (rows % TILE_W)
		memset(to->panels + (size_t)(rows / TILE_W) * half * HALVES, 0, half * HALVES);
	for (int32_t j = 0; j < rows; j++)
		ready_weight_row(to->panels + (size_t)(j / TILE_W) * half * HALVES + (size_t)(j % TILE_W) * VL * 4,
				 (const char *)w->data + (size_t)(r0 + j) * row_bytes + b0 * block_bytes(dtype), blocks, rest,
				 half, dtype, pairs);
	if (!scale_block(dtype))
		return;
	for (int64_t k = b0 * BLOCK, s = 0; k < (b0 + blocks) * BLOCK; k += scale_block(dtype), s++)
		for (int32_t j = 0; j < BLOCK_W; j++)
			to->scales[s * BLOCK_W + j] = j < rows ? weight_scale(w, r0 + j, (int32_t)k) : 0;
}

/* ---- a tile ------------------------------------------------------------------------------------------------------ */

/* `steps` steps of TILE_X x TILE_W outputs onto their sums. */
static ALWAYS_INLINE void add_steps(vf sum[TILE_X][TILE_W], const float *x, const float *w, int64_t steps, bool words)
{
	for (int64_t s = 0; s < steps; s++, x += TILE_X * VL, w += TILE_W * VL) {
#if HAS_DOT
		if (words) {
			vi b[TILE_W];

			for (int j = 0; j < TILE_W; j++)
				b[j] = vi_load(w + j * VL);
			for (int i = 0; i < TILE_X; i++) {
				vi a = vi_load(x + i * VL);

				for (int j = 0; j < TILE_W; j++)
					sum[i][j] = vf_dot(sum[i][j], a, b[j]);
			}
			continue;
		}
#endif
		vf b[TILE_W];

		for (int j = 0; j < TILE_W; j++)
			b[j] = vf_load(w + j * VL);
		for (int i = 0; i < TILE_X; i++) {
			vf a = vf_load(x + i * VL);

			for (int j = 0; j < TILE_W; j++)
				sum[i][j] = vf_fma(a, b[j], sum[i][j]);
		}
	}
	(void)words;
}

/* out [TILE_X][BLOCK_W][LANES], of which this is one half of the lanes of TILE_W columns. */
static ALWAYS_INLINE void tile(float *out, const float *x, const float *w, int64_t steps, int64_t per_scale,
			       const float *scales, bool words)
{
	vf sum[TILE_X][TILE_W];

	if (!per_scale) {
		for (int i = 0; i < TILE_X; i++)
			for (int j = 0; j < TILE_W; j++)
				sum[i][j] = vf_load(out + (i * BLOCK_W + j) * LANES);
		add_steps(sum, x, w, steps, words);
		for (int i = 0; i < TILE_X; i++)
			for (int j = 0; j < TILE_W; j++)
				vf_store(out + (i * BLOCK_W + j) * LANES, sum[i][j]);
		return;
	}
	for (int64_t s = 0; s < steps; s += per_scale, scales += BLOCK_W) {
		for (int i = 0; i < TILE_X; i++)
			for (int j = 0; j < TILE_W; j++)
				sum[i][j] = vf_zero();
		add_steps(sum, x + s * TILE_X * VL, w + s * TILE_W * VL, steps - s < per_scale ? steps - s : per_scale, words);
		for (int j = 0; j < TILE_W; j++) {
			vf scale = vf_all(scales[j]);

			for (int i = 0; i < TILE_X; i++) {
				float *to = out + (i * BLOCK_W + j) * LANES;

				vf_store(to, vf_fma(scale, sum[i][j], vf_load(to)));
			}
		}
	}
}

/* ---- a block of outputs ------------------------------------------------------------------------------------------ */

/* The trees of four outputs at once; in [4][LANES]. */
static ALWAYS_INLINE void four_totals(float *out, const float *in)
{
	__m128 t[4], a, b;

	for (int j = 0; j < 4; j++) {
		__m256 s = _mm256_add_ps(_mm256_loadu_ps(in + j * LANES), _mm256_loadu_ps(in + j * LANES + 8));

		t[j] = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
	}
	a = _mm_add_ps(_mm_movelh_ps(t[0], t[1]), _mm_movehl_ps(t[1], t[0]));
	b = _mm_add_ps(_mm_movelh_ps(t[2], t[3]), _mm_movehl_ps(t[3], t[2]));
	_mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(a, b, 0x88), _mm_shuffle_ps(a, b, 0xdd)));
}

static ALWAYS_INLINE void write_outputs(const struct product *p, const float *sums, int64_t i0, int64_t n, int32_t r0,
					int32_t rows)
{
	float y[BLOCK_W];

	for (int64_t i = 0; i < n; i++) {
		for (int32_t j = 0; j < rows; j += 4)
			four_totals(y + j, sums + (i * BLOCK_W + j) * LANES);
		memcpy(p->y + (i0 + i) * p->y_stride + r0, y, (size_t)rows * sizeof *y);
	}
}

/* Outputs [n <= BLOCK_X rows of x from panel row i0][rows <= BLOCK_W from r0]. */
static ALWAYS_INLINE void block(const struct gemm *g, float *sums, struct ready_weights *ready, int64_t i0, int64_t n, int32_t r0,
				int32_t rows, enum dtype dtype, bool pairs)
{
	const struct product *p = g->p;
	bool words = uses_words(dtype, pairs);
	int64_t per_scale = scale_block(dtype) / (words ? BLOCK : LANES), panels = (n + TILE_X - 1) / TILE_X, done = 0;

	memset(sums, 0, (size_t)(panels * TILE_X) * BLOCK_W * LANES * sizeof *sums);
	for (int64_t b = 0; b < product_blocks(p); b += g->k_blocks) {
		int64_t blocks = part_blocks(g, b), steps = blocks * (words ? 1 : 2);
		size_t x_half = (size_t)steps * TILE_X * VL, w_half = (size_t)steps * TILE_W * VL;

		ready_weight_block(ready, g, r0, rows, b, dtype, pairs);
		for (int32_t j = 0; j < rows; j += TILE_W)
			for (int h = 0; h < HALVES; h++) {
				const float *w = (const float *)ready->panels + ((size_t)(j / TILE_W) * HALVES + (size_t)h) * w_half;

				for (int64_t i = 0; i < panels; i++) {
					const char *panel = p->packed + (size_t)(i0 / TILE_X + i) * g->panel_bytes;

					tile(sums + (i * TILE_X * BLOCK_W + j) * LANES + h * VL,
					     (const float *)panel + (size_t)done * TILE_X * LANES + (size_t)h * x_half, w, steps,
					     per_scale, ready->scales + j, words);
				}
			}
		done += steps;
	}
	write_outputs(p, sums, i0 + g->first, n, r0, rows);
}

typedef void block_fn(const struct gemm *g, float *sums, struct ready_weights *ready, int64_t i0, int64_t n, int32_t r0,
		      int32_t rows);

#define BLOCK_OF(name, dtype, pairs) \
	static NEVER_INLINE void name(const struct gemm *g, float *sums, struct ready_weights *ready, int64_t i0, int64_t n, \
				      int32_t r0, int32_t rows) \
	{ \
		block(g, sums, ready, i0, n, r0, rows, dtype, pairs); \
	}

BLOCK_OF(f32_in_order, DTYPE_F32, false)
BLOCK_OF(bf16_in_order, DTYPE_BF16, false)
BLOCK_OF(f16_in_order, DTYPE_F16, false)
BLOCK_OF(fp8_in_order, DTYPE_F8_E4M3, false)
BLOCK_OF(int4_in_order, DTYPE_INT4, false)
BLOCK_OF(f32_in_pairs, DTYPE_F32, true)
BLOCK_OF(bf16_in_pairs, DTYPE_BF16, true)
BLOCK_OF(f16_in_pairs, DTYPE_F16, true)
BLOCK_OF(fp8_in_pairs, DTYPE_F8_E4M3, true)
BLOCK_OF(int4_in_pairs, DTYPE_INT4, true)

static block_fn *const block_of[2][N_DTYPES] = {
	{[DTYPE_F32] = f32_in_order, [DTYPE_BF16] = bf16_in_order, [DTYPE_F16] = f16_in_order, [DTYPE_F8_E4M3] = fp8_in_order,
	 [DTYPE_INT4] = int4_in_order},
	{[DTYPE_F32] = f32_in_pairs, [DTYPE_BF16] = bf16_in_pairs, [DTYPE_F16] = f16_in_pairs, [DTYPE_F8_E4M3] = fp8_in_pairs,
	 [DTYPE_INT4] = int4_in_pairs},
};

/* Item: a block of outputs, all of x before the next rows of w. */
static void run_blocks(void *arg, int64_t first, int64_t end, int thread)
{
	const struct gemm *g = arg;
	const struct product *p = g->p;
	int64_t across = (g->n + BLOCK_X - 1) / BLOCK_X;
	size_t sums_bytes = (size_t)BLOCK_X * BLOCK_W * LANES * sizeof(float), panels_bytes = (size_t)BLOCK_W * K_BYTES;
	char *scratch = pool_scratch(p->pool, thread, sums_bytes + panels_bytes + K_BYTES / 2 / INT4_GROUP * BLOCK_W * sizeof(float));
	struct ready_weights ready = {scratch + sums_bytes, (float *)(scratch + sums_bytes + panels_bytes)};
	unsigned mode = flush_begin(p->profile);

	for (int64_t item = first; item < end; item++) {
		int64_t i0 = item % across * BLOCK_X, n = g->n - i0 < BLOCK_X ? g->n - i0 : BLOCK_X;
		int32_t r0 = (int32_t)(item / across) * BLOCK_W, rows = p->w->rows - r0 < BLOCK_W ? p->w->rows - r0 : BLOCK_W;

		block_of[p->profile == COMPUTE_BF16][p->w->dtype](g, (float *)scratch, &ready, i0, n, r0, rows);
	}
	flush_end(mode);
}

void CPU(gemm)(struct product *p)
{
	size_t ready = (size_t)ready_bytes(p->w->dtype, p->profile == COMPUTE_BF16);
	size_t row_bytes = (size_t)product_blocks(p) * ready;
	int64_t most = (int64_t)(READY_BYTES / row_bytes) / BLOCK_X * BLOCK_X;
	struct gemm g = {.p = p, .k_blocks = (int64_t)(K_BYTES / ready), .panel_bytes = TILE_X * row_bytes};

	most = most < BLOCK_X ? BLOCK_X : most;
	for (g.first = 0; g.first < p->n; g.first += g.n) {
		int64_t panels;

		g.n = p->n - g.first < most ? p->n - g.first : most;
		panels = (g.n + TILE_X - 1) / TILE_X;
		p->packed = pool_scratch(p->pool, pool_n_threads(p->pool), (size_t)panels * g.panel_bytes);
		pool_run(p->pool, ready_panels, &g, panels, TILE_X * (int64_t)p->w->cols);
		pool_run(p->pool, run_blocks, &g,
			 (g.n + BLOCK_X - 1) / BLOCK_X * ((p->w->rows + BLOCK_W - 1) / BLOCK_W),
			 (int64_t)BLOCK_X * BLOCK_W * p->w->cols);
	}
}
