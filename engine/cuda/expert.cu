/*
 * Routed experts: out = down . swiglu(gate . x, up . x), in the order of summation of ops.h, (L): bit for bit what the processor gives.
 *
 * Four threads take 32 inputs of a row, each four of its sixteen lanes: by pairs elements 8t .. 8t + 7 (lane 4t + i: 8t + 2i + 1, then
 * 8t + 2i), else 4t .. 4t + 3 and 16 + 4t .. (lane 4t + i: both, in this order). In either case what four threads read lies side by side.
 * A lane stays in its thread until it is added: l + 8 and l + 4 lie with neighbours, l + 2 and l + 1 in the thread.
 *
 * `by_scales`, for weights with scales and few tokens, where reading weights takes the time. Lanes start anew with each scale, so that no
 * scale block waits for another: a warp has eight of them of two rows under way, and those that come next are on their way while it
 * computes. What the lanes give goes through shared memory to one thread for each lane, which adds it to the total in the order of the
 * blocks.
 * `by_rows`, for all else: a warp has eight times two rows, from their beginnings to their ends, and up to six tokens, so that a weight
 * that was widened is used as often. Blocks of one row and different tokens run side by side: weights come from the second cache then.
 *
 * The two rows of a thread are those of the gate and of the up projection, or two of the down projection: what was widened of x is used
 * twice.
 */
#include "engine/cuda/expert.h"
#include "engine/cuda/wrap.h"
#include "engine/engine.h"
#include "engine/weight.h"

enum {
	LANES = 16, THREADS_A_ROW = 4, LANES_EACH = 4,
	BLOCK = 32, EACH = 8,              /* inputs; of them a thread has */
	THREADS = 128, WARP = 32, WARPS = THREADS / WARP,
	ROWS_A_BLOCK = THREADS / THREADS_A_ROW,
	N_ROWS = 2,                        /* of a thread */
	ABREAST = WARP / THREADS_A_ROW,    /* scale blocks that a warp has under way */
	ROW_FLOATS = ABREAST * LANES + LANES, /* in shared memory; the last ones keep two rows out of each other's banks */
};

/* What `experts` of struct backend is given, as kernels take it. */
struct call {
	float *out, *gate;                 /* gate: float32, or bf16 in profile bf16, where it is to be rounded anyway */
	const void *x;
	const int32_t *rows;
	struct backend_expert experts[BACKEND_EXPERTS];
};

template <int DTYPE> __host__ __device__ constexpr int scale_block()
{
	return DTYPE == DTYPE_F8_E4M3 ? WEIGHT_BLOCK : DTYPE == DTYPE_INT4 ? INT4_GROUP : 0;
}

/* N values of a row from element k on; where WHOLE is not, some lie behind its end, and are zero. Whole blocks of types with scales are for
 * fetch. */
template <int DTYPE, int N, bool WHOLE> __device__ __forceinline__ void widen(float v[N], const char *row, int32_t k, int32_t cols)
{
	if (!WHOLE) {
		for (int i = 0; i < N; i++) {
			bool in = k + i < cols;

			if (DTYPE == DTYPE_F32)
				v[i] = in ? ((const float *)row)[k + i] : 0;
			else if (DTYPE == DTYPE_BF16)
				v[i] = in ? bf16_to_f32(((const uint16_t *)row)[k + i]) : 0;
			else if (DTYPE == DTYPE_F16)
				v[i] = in ? f16_to_f32(((const uint16_t *)row)[k + i]) : 0;
			else if (DTYPE == DTYPE_F8_E4M3)
				v[i] = in ? e4m3_to_f32(((const uint8_t *)row)[k + i]) : 0;
			else
				v[i] = in ? (float)((((const uint8_t *)row)[(k + i) / 2] >> 4 * ((k + i) % 2) & 15) - 8) : 0;
		}
	} else if (DTYPE == DTYPE_F32) {
		for (int i = 0; i < N; i += 4) {
			uint4 u = read_once((const uint4 *)(row + 4 * (size_t)(k + i)));

			v[i] = f32_from_bits(u.x);
			v[i + 1] = f32_from_bits(u.y);
			v[i + 2] = f32_from_bits(u.z);
			v[i + 3] = f32_from_bits(u.w);
		}
	} else if (DTYPE == DTYPE_BF16 || DTYPE == DTYPE_F16) {
		for (int i = 0; i < N; i += 4) {
			uint2 u = read_once((const uint2 *)(row + 2 * (size_t)(k + i)));
			uint32_t word[2] = {u.x, u.y};

			for (int j = 0; j < 4; j++) {
				uint16_t h = (uint16_t)(word[j / 2] >> 16 * (j % 2));

				v[i + j] = DTYPE == DTYPE_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
			}
		}
	}
}

/* Eight weights of a type with scales as they lie in memory, those that a thread takes of 32 from k on, and what becomes of them when they
 * have come: in the order in which its lanes take them, lane i v[2i], then v[2i + 1]. Whole blocks alone. */
template <int DTYPE, bool PAIRS> __device__ __forceinline__ void fetch(uint32_t raw[2], const char *row, int32_t k, int t)
{
	if constexpr (DTYPE == DTYPE_F8_E4M3 && PAIRS) {
		uint2 u = read_once((const uint2 *)(row + k + EACH * t));

		raw[0] = u.x;
		raw[1] = u.y;
	} else if constexpr (DTYPE == DTYPE_F8_E4M3) {
		raw[0] = read_once((const uint32_t *)(row + k + LANES_EACH * t));
		raw[1] = read_once((const uint32_t *)(row + k + BLOCK / 2 + LANES_EACH * t));
	} else if constexpr (PAIRS) {
		raw[0] = read_once((const uint32_t *)(row + (k + EACH * t) / 2));
	} else {
		raw[0] = ((const uint16_t *)(row + (k + LANES_EACH * t) / 2))[0];
		raw[1] = ((const uint16_t *)(row + (k + BLOCK / 2 + LANES_EACH * t) / 2))[0];
	}
}

template <int DTYPE, bool PAIRS> __device__ __forceinline__ void unpack(float v[EACH], const uint32_t raw[2])
{
	float w[EACH];

	if constexpr (DTYPE == DTYPE_F8_E4M3) {
		widen_e4m3(w, raw[0]);
		widen_e4m3(w + 4, raw[1]);
	} else if constexpr (PAIRS) {
		widen_int4<8>(w, raw[0]);
	} else {
		widen_int4<4>(w, raw[0]);
		widen_int4<4>(w + 4, raw[1]);
	}
	for (int i = 0; i < LANES_EACH; i++) {
		v[2 * i] = PAIRS ? w[2 * i + 1] : w[i];
		v[2 * i + 1] = PAIRS ? w[2 * i] : w[LANES_EACH + i];
	}
}

/* The same of any type, and the eight of x that belong to them. */
template <int DTYPE, bool PAIRS, bool WHOLE>
__device__ __forceinline__ void take_weights(float v[EACH], const char *row, int32_t k, int32_t cols, int t)
{
	float w[EACH];

	if constexpr (WHOLE && scale_block<DTYPE>() > 0) {
		uint32_t raw[2];

		fetch<DTYPE, PAIRS>(raw, row, k, t);
		unpack<DTYPE, PAIRS>(v, raw);
	} else if (PAIRS) {
		widen<DTYPE, EACH, WHOLE>(w, row, k + EACH * t, cols);
		for (int i = 0; i < LANES_EACH; i++) {
			v[2 * i] = w[2 * i + 1];
			v[2 * i + 1] = w[2 * i];
		}
	} else {
		widen<DTYPE, LANES_EACH, WHOLE>(w, row, k + LANES_EACH * t, cols);
		widen<DTYPE, LANES_EACH, WHOLE>(w + LANES_EACH, row, k + BLOCK / 2 + LANES_EACH * t, cols);
		for (int i = 0; i < LANES_EACH; i++) {
			v[2 * i] = w[i];
			v[2 * i + 1] = w[LANES_EACH + i];
		}
	}
}

template <bool PAIRS, bool WHOLE> __device__ __forceinline__ void take_inputs(float v[EACH], const void *x, int32_t k, int32_t cols, int t)
{
	if constexpr (PAIRS && WHOLE) {
		uint4 u = ((const uint4 *)x)[(k + EACH * t) / EACH];
		uint32_t both[LANES_EACH] = {u.x, u.y, u.z, u.w};

		for (int i = 0; i < LANES_EACH; i++) {
			v[2 * i] = f32_from_bits(both[i] & 0xffff0000);
			v[2 * i + 1] = f32_from_bits(both[i] << 16);
		}
	} else {
		for (int i = 0; i < LANES_EACH; i++) {
			int32_t first = PAIRS ? k + EACH * t + 2 * i + 1 : k + LANES_EACH * t + i;
			int32_t second = PAIRS ? first - 1 : first + BLOCK / 2;

			if (PAIRS) {
				v[2 * i] = first < cols ? bf16_to_f32(((const uint16_t *)x)[first]) : 0;
				v[2 * i + 1] = second < cols ? bf16_to_f32(((const uint16_t *)x)[second]) : 0;
			} else {
				v[2 * i] = WHOLE || first < cols ? ((const float *)x)[first] : 0;
				v[2 * i + 1] = WHOLE || second < cols ? ((const float *)x)[second] : 0;
			}
		}
	}
}

template <int DTYPE> __device__ __forceinline__ const char *row_of(const struct backend_weight *w, int32_t r)
{
	size_t n = (size_t)w->cols;

	return (const char *)w->data + (size_t)r * (DTYPE == DTYPE_F32 ? 4 * n : DTYPE == DTYPE_BF16 || DTYPE == DTYPE_F16 ? 2 * n
						    : DTYPE == DTYPE_F8_E4M3 ? n : (n + 1) / 2);
}

/* Where the scales of a row begin. */
template <int DTYPE> __device__ __forceinline__ const char *scales_of(const struct backend_weight *w, int32_t r)
{
	if (DTYPE == DTYPE_F8_E4M3)
		return (const char *)((const float *)w->scale +
				      (size_t)((w->first_row + r) / WEIGHT_BLOCK) * ((w->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK));
	return (const char *)((const uint16_t *)w->scale + (size_t)r * ((w->cols + INT4_GROUP - 1) / INT4_GROUP));
}

template <int DTYPE> __device__ __forceinline__ float scale_at(const char *scales, int32_t block)
{
	return DTYPE == DTYPE_F8_E4M3 ? ((const float *)scales)[block] : bf16_to_f32(((const uint16_t *)scales)[block]);
}

/* By rows. y[j][i] = row r[j] of w[j] times x[i], in all four threads of the row; w[0] and w[1] are of one shape. U: blocks of 32 that are
 * read at a time, as many as registers allow on every architecture. */
template <int DTYPE, bool PAIRS, bool WHOLE, int T, int U>
__device__ __forceinline__ void dots(float y[N_ROWS][T], const struct backend_weight *const w[N_ROWS], const int32_t r[N_ROWS],
				     const void *const x[T], int t)
{
	constexpr int SCALED = scale_block<DTYPE>();
	float lane[N_ROWS][T][LANES_EACH], total[N_ROWS][T][LANES_EACH];
	int32_t cols = w[0]->cols, step = SCALED ? SCALED : cols;
	const char *row[N_ROWS];

	for (int j = 0; j < N_ROWS; j++) {
		row[j] = row_of<DTYPE>(w[j], r[j]);
		for (int i = 0; i < T; i++)
			for (int l = 0; l < LANES_EACH; l++)
				lane[j][i][l] = total[j][i][l] = 0;
	}
	for (int32_t from = 0; from < cols; from += step) {
		int32_t end = cols - from < step ? cols : from + step;

		UNROLL(U)
		for (int32_t k = from; k < end; k += BLOCK) {
			float a[N_ROWS][EACH];

			for (int j = 0; j < N_ROWS; j++)
				take_weights<DTYPE, PAIRS, WHOLE>(a[j], row[j], k, cols, t);
			for (int i = 0; i < T; i++) {
				float b[EACH];

				take_inputs<PAIRS, WHOLE>(b, x[i], k, cols, t);
				for (int j = 0; j < N_ROWS; j++)
					for (int l = 0; l < LANES_EACH; l++) {
						lane[j][i][l] = fused<PAIRS>(b[2 * l], a[j][2 * l], lane[j][i][l]);
						lane[j][i][l] = fused<PAIRS>(b[2 * l + 1], a[j][2 * l + 1], lane[j][i][l]);
					}
			}
		}
		for (int j = 0; j < (SCALED ? N_ROWS : 0); j++) {
			float scale = scale_at<DTYPE>(scales_of<DTYPE>(w[j], r[j]), from / step);

			for (int i = 0; i < T; i++)
				for (int l = 0; l < LANES_EACH; l++) {
					total[j][i][l] = fused<PAIRS>(scale, lane[j][i][l], total[j][i][l]);
					lane[j][i][l] = 0;
				}
		}
	}
	for (int j = 0; j < N_ROWS; j++)
		for (int i = 0; i < T; i++) {
			float s[LANES_EACH];

			for (int l = 0; l < LANES_EACH; l++) {
				s[l] = SCALED ? total[j][i][l] : lane[j][i][l];
				s[l] = added<PAIRS>(s[l], __shfl_xor_sync(0xffffffff, s[l], 2)); /* l and l + 8 */
				s[l] = added<PAIRS>(s[l], __shfl_xor_sync(0xffffffff, s[l], 1)); /* l and l + 4 */
			}
			y[j][i] = added<PAIRS>(added<PAIRS>(s[0], s[2]), added<PAIRS>(s[1], s[3]));
		}
}

/* total = fma(scale, lane, total) for n blocks from `first` on, one thread for each lane of a row. */
template <int DTYPE, bool PAIRS, int T>
__device__ __forceinline__ void add_scaled(float total[T], const float *lanes, const char *scales, int32_t first, int n)
{
	float scale[ABREAST];

	UNROLL(ABREAST)
	for (int g = 0; g < ABREAST; g++)
		scale[g] = g < n ? scale_at<DTYPE>(scales, first + g) : 0;
	UNROLL(ABREAST)
	for (int g = 0; g < ABREAST; g++)
		for (int i = 0; g < n && i < T; i++)
			total[i] = fused<PAIRS>(scale[g], lanes[i * N_ROWS * ROW_FLOATS + g * LANES], total[i]);
}

/* By scales. y[i] = row r[j] of w[j] times x[i], j the half of the warp that a thread is in. lanes: [T][N_ROWS][ROW_FLOATS] of the warp.
 * Threads whose block would lie behind the row's end take the last one again, which nobody adds. */
template <int DTYPE, bool PAIRS, int T>
__device__ __forceinline__ void dots_by_scales(float y[T], const struct backend_weight *const w[N_ROWS], const int32_t r[N_ROWS],
					       const void *const x[T], float *lanes)
{
	constexpr int SCALED = scale_block<DTYPE>(), STEPS = SCALED / BLOCK;
	int at = (int)threadIdx.x % WARP, group = at / THREADS_A_ROW, t = at % THREADS_A_ROW, j_mine = at / LANES, l_mine = at % LANES;
	int32_t cols = w[0]->cols, n_blocks = cols / SCALED, block = group < n_blocks ? group : n_blocks - 1;
	const char *const row[N_ROWS] = {row_of<DTYPE>(w[0], r[0]), row_of<DTYPE>(w[1], r[1])};
	const char *scales = j_mine ? scales_of<DTYPE>(w[1], r[1]) : scales_of<DTYPE>(w[0], r[0]);
	float *mine = lanes + group * LANES + t * LANES_EACH, *whole = lanes + j_mine * ROW_FLOATS + l_mine;
	uint32_t next[N_ROWS][STEPS][2];

	for (int i = 0; i < T; i++)
		y[i] = 0;
	for (int j = 0; j < N_ROWS; j++)
		for (int s = 0; s < STEPS; s++)
			fetch<DTYPE, PAIRS>(next[j][s], row[j], block * SCALED + s * BLOCK, t);
	for (int32_t first = 0; first < n_blocks; first += ABREAST) {
		int32_t coming = block + ABREAST < n_blocks ? block + ABREAST : n_blocks - 1;
		float sum[T][N_ROWS][LANES_EACH] = {};

		for (int s = 0; s < STEPS; s++) {
			float a[N_ROWS][EACH];

			for (int j = 0; j < N_ROWS; j++) {
				unpack<DTYPE, PAIRS>(a[j], next[j][s]);
				fetch<DTYPE, PAIRS>(next[j][s], row[j], coming * SCALED + s * BLOCK, t);
			}
			for (int i = 0; i < T; i++) {
				float b[EACH];

				take_inputs<PAIRS, true>(b, x[i], block * SCALED + s * BLOCK, cols, t);
				for (int j = 0; j < N_ROWS; j++)
					for (int l = 0; l < LANES_EACH; l++) {
						sum[i][j][l] = fused<PAIRS>(b[2 * l], a[j][2 * l], sum[i][j][l]);
						sum[i][j][l] = fused<PAIRS>(b[2 * l + 1], a[j][2 * l + 1], sum[i][j][l]);
					}
			}
		}
		for (int i = 0; i < T; i++)
			for (int j = 0; j < N_ROWS; j++)
				*(float4 *)(mine + (i * N_ROWS + j) * ROW_FLOATS) = make_float4(sum[i][j][0], sum[i][j][1], sum[i][j][2],
												sum[i][j][3]);
		__syncwarp();
		if (first + ABREAST <= n_blocks)
			add_scaled<DTYPE, PAIRS, T>(y, whole, scales, first, ABREAST);
		else
			add_scaled<DTYPE, PAIRS, T>(y, whole, scales, first, n_blocks - first);
		__syncwarp();
		block = coming;
	}
	for (int i = 0; i < T; i++)
		for (int step = LANES / 2; step; step /= 2)
			y[i] = added<PAIRS>(y[i], __shfl_xor_sync(0xffffffff, y[i], step));
}

/* x of tokens first .. first + T - 1 of an expert; those behind its last one are the last one again. */
template <bool PAIRS, int T>
__device__ __forceinline__ void inputs_of(const void *x[T], const void *all, const int32_t *rows, int32_t cols, int32_t first, int32_t n,
					  int32_t expert_first)
{
	for (int i = 0; i < T; i++) {
		int32_t at = expert_first + (first + i < n ? first + i : n - 1);

		x[i] = (const char *)all + (size_t)(rows ? rows[at] : at) * cols * (PAIRS ? sizeof(uint16_t) : sizeof(float));
	}
}

template <bool PAIRS> __device__ __forceinline__ void put_gate(const struct call *c, size_t at, float gate, float up)
{
	float g = num_silu(gate) * up;

	if (PAIRS)
		((uint16_t *)c->gate)[at] = f32_to_bf16(g);
	else
		c->gate[at] = g;
}

/* Block (token tile, rows of gate and up, expert): gate = swiglu(gate . x, up . x), rounded where the next product would round it. */
template <int DTYPE, bool PAIRS, bool WHOLE, int T>
__global__ void __launch_bounds__(THREADS) gate_and_up(const __grid_constant__ struct call c)
{
	const struct backend_expert *e = &c.experts[blockIdx.z];
	int32_t first = (int32_t)blockIdx.x * T, dim = e->gate.rows;
	int32_t r = (int32_t)blockIdx.y * ROWS_A_BLOCK + (int32_t)threadIdx.x / THREADS_A_ROW;
	int t = (int)threadIdx.x % THREADS_A_ROW;
	const struct backend_weight *const w[N_ROWS] = {&e->gate, &e->up};
	const int32_t row[N_ROWS] = {r < dim ? r : dim - 1, r < dim ? r : dim - 1};
	const void *x[T];
	float y[N_ROWS][T];

	if (first >= e->n)
		return;
	inputs_of<PAIRS, T>(x, c.x, c.rows, e->gate.cols, first, e->n, e->first);
	dots<DTYPE, PAIRS, WHOLE, T, (!WHOLE || T > (scale_block<DTYPE>() ? 1 : 2) ? 1 : T == 2 || DTYPE == DTYPE_INT4 ? 2 : 4)>(y, w, row, x, t);
	for (int i = 0; i < T; i++) {
		size_t at = (size_t)(e->first + first + i) * dim + r;

		if (t == 0 && r < dim && first + i < e->n)
			put_gate<PAIRS>(&c, at, y[0][i], y[1][i]);
	}
}

/* Block (token tile, twice as many rows of down, expert). */
template <int DTYPE, bool PAIRS, bool WHOLE, int T> __global__ void __launch_bounds__(THREADS) down(const __grid_constant__ struct call c)
{
	const struct backend_expert *e = &c.experts[blockIdx.z];
	int32_t first = (int32_t)blockIdx.x * T, hidden = e->down.rows;
	int32_t r = (int32_t)blockIdx.y * ROWS_A_BLOCK * N_ROWS + (int32_t)threadIdx.x / THREADS_A_ROW;
	int t = (int)threadIdx.x % THREADS_A_ROW;
	const struct backend_weight *const w[N_ROWS] = {&e->down, &e->down};
	int32_t row[N_ROWS];
	const void *x[T];
	float y[N_ROWS][T];

	if (first >= e->n)
		return;
	for (int j = 0; j < N_ROWS; j++)
		row[j] = r + j * ROWS_A_BLOCK < hidden ? r + j * ROWS_A_BLOCK : hidden - 1;
	inputs_of<PAIRS, T>(x, c.gate, NULL, e->down.cols, first, e->n, e->first);
	dots<DTYPE, PAIRS, WHOLE, T, (!WHOLE || T > 2 ? 1 : T == 2 || DTYPE == DTYPE_BF16 ? 2 : 4)>(y, w, row, x, t);
	for (int j = 0; j < N_ROWS; j++)
		for (int i = 0; i < T; i++)
			if (t == 0 && r + j * ROWS_A_BLOCK < hidden && first + i < e->n)
				c.out[(size_t)(e->first + first + i) * hidden + r + j * ROWS_A_BLOCK] = y[j][i];
}

/* The same by scales: a warp has a row of gate and up. */
template <int DTYPE, bool PAIRS, int T>
__global__ void __launch_bounds__(THREADS) gate_and_up_by_scales(const __grid_constant__ struct call c)
{
	__shared__ float4 lanes[WARPS][T * N_ROWS * ROW_FLOATS / 4];
	const struct backend_expert *e = &c.experts[blockIdx.z];
	int warp = (int)threadIdx.x / WARP, at = (int)threadIdx.x % WARP;
	int32_t first = (int32_t)blockIdx.x * T, dim = e->gate.rows, r = (int32_t)blockIdx.y * WARPS + warp;
	const struct backend_weight *const w[N_ROWS] = {&e->gate, &e->up};
	const int32_t row[N_ROWS] = {r < dim ? r : dim - 1, r < dim ? r : dim - 1};
	const void *x[T];
	float y[T];

	if (first >= e->n)
		return;
	inputs_of<PAIRS, T>(x, c.x, c.rows, e->gate.cols, first, e->n, e->first);
	dots_by_scales<DTYPE, PAIRS, T>(y, w, row, x, (float *)lanes[warp]);
	for (int i = 0; i < T; i++) {
		float up = __shfl_xor_sync(0xffffffff, y[i], LANES);

		if (at == 0 && r < dim && first + i < e->n)
			put_gate<PAIRS>(&c, (size_t)(e->first + first + i) * dim + r, y[i], up);
	}
}

/* A warp has two rows of down. */
template <int DTYPE, bool PAIRS, int T> __global__ void __launch_bounds__(THREADS) down_by_scales(const __grid_constant__ struct call c)
{
	__shared__ float4 lanes[WARPS][T * N_ROWS * ROW_FLOATS / 4];
	const struct backend_expert *e = &c.experts[blockIdx.z];
	int warp = (int)threadIdx.x / WARP, at = (int)threadIdx.x % WARP;
	int32_t first = (int32_t)blockIdx.x * T, hidden = e->down.rows, r = ((int32_t)blockIdx.y * WARPS + warp) * N_ROWS;
	const struct backend_weight *const w[N_ROWS] = {&e->down, &e->down};
	const int32_t row[N_ROWS] = {r < hidden ? r : hidden - 1, r + 1 < hidden ? r + 1 : hidden - 1};
	const void *x[T];
	float y[T];

	if (first >= e->n)
		return;
	inputs_of<PAIRS, T>(x, c.gate, NULL, e->down.cols, first, e->n, e->first);
	dots_by_scales<DTYPE, PAIRS, T>(y, w, row, x, (float *)lanes[warp]);
	for (int i = 0; i < T; i++)
		if (at % LANES == 0 && r + at / LANES < hidden && first + i < e->n)
			c.out[(size_t)(e->first + first + i) * hidden + r + at / LANES] = y[i];
}

/* ---- launching ------------------------------------------------------------------------------------------------------ */

static unsigned tiles(int32_t n, int32_t each)
{
	return (unsigned)((n + each - 1) / each);
}

template <int DTYPE, bool PAIRS, bool WHOLE, int T> static void launch_tiled(void *stream, const struct call *c, int n, int32_t most)
{
	int32_t dim = c->experts[0].gate.rows, hidden = c->experts[0].down.rows;
	dim3 first(tiles(most, T), tiles(dim, ROWS_A_BLOCK), (unsigned)n);
	dim3 second(tiles(most, T), tiles(hidden, ROWS_A_BLOCK * N_ROWS), (unsigned)n);

	LAUNCH((gate_and_up<DTYPE, PAIRS, WHOLE, T>), first, dim3(THREADS), 0, stream, *c);
	LAUNCH((down<DTYPE, PAIRS, WHOLE, T>), second, dim3(THREADS), 0, stream, *c);
}

template <int DTYPE, bool PAIRS, int T> static void launch_by_scales(void *stream, const struct call *c, int n, int32_t most)
{
	dim3 first(tiles(most, T), tiles(c->experts[0].gate.rows, WARPS), (unsigned)n);
	dim3 second(tiles(most, T), tiles(c->experts[0].down.rows, WARPS * N_ROWS), (unsigned)n);

	LAUNCH((gate_and_up_by_scales<DTYPE, PAIRS, T>), first, dim3(THREADS), 0, stream, *c);
	LAUNCH((down_by_scales<DTYPE, PAIRS, T>), second, dim3(THREADS), 0, stream, *c);
}

/* Whether that was for it: few tokens, and weights of whole scale blocks. */
template <int DTYPE, bool PAIRS> static bool launch_few(void *stream, const struct call *c, int n, int32_t most)
{
	constexpr int SCALED = scale_block<DTYPE>();

	if constexpr (SCALED > 0) {
		if (most > 4 || c->experts[0].gate.cols % SCALED || c->experts[0].down.cols % SCALED)
			return false;
		if (most == 1)
			launch_by_scales<DTYPE, PAIRS, 1>(stream, c, n, most);
		else if (most == 2)
			launch_by_scales<DTYPE, PAIRS, 2>(stream, c, n, most);
		else
			launch_by_scales<DTYPE, PAIRS, 4>(stream, c, n, most);
		return true;
	}
	return false;
}

/* Odd shapes, and types that large models do not have, take what is there for one token or four. */
template <int DTYPE, bool PAIRS> static void launch_of(void *stream, const struct call *c, int n, int32_t most, bool whole)
{
	constexpr bool COMMON = DTYPE == DTYPE_BF16 || DTYPE == DTYPE_F8_E4M3 || DTYPE == DTYPE_INT4;

	if (launch_few<DTYPE, PAIRS>(stream, c, n, most))
		return;
	if (!whole)
		launch_tiled<DTYPE, PAIRS, false, 1>(stream, c, n, most);
	else if (most == 1)
		launch_tiled<DTYPE, PAIRS, true, 1>(stream, c, n, most);
	else if (COMMON && most == 2)
		launch_tiled<DTYPE, PAIRS, true, COMMON ? 2 : 1>(stream, c, n, most);
	else if (COMMON && most > 4)
		launch_tiled<DTYPE, PAIRS, true, COMMON ? 6 : 1>(stream, c, n, most);
	else
		launch_tiled<DTYPE, PAIRS, true, 4>(stream, c, n, most);
}

template <int DTYPE> static void launch_typed(void *stream, const struct call *c, int n, int32_t most, bool whole, int profile)
{
	if (profile == COMPUTE_BF16)
		launch_of<DTYPE, true>(stream, c, n, most, whole);
	else
		launch_of<DTYPE, false>(stream, c, n, most, whole);
}

static bool alike(const struct backend_weight *a, const struct backend_weight *b)
{
	return a->dtype == b->dtype && a->rows == b->rows && a->cols == b->cols;
}

const char *expert_launch(void *stream, float *out, float *gate, const void *x, const int32_t *rows, const struct backend_expert *experts,
			  int n, int profile)
{
	const struct backend_expert *e = experts;
	struct call c = {out, gate, x, rows, {}};
	int32_t most = 0;
	bool whole;

	if (n < 1 || n > BACKEND_EXPERTS)
		return "a call takes 1 to 8 experts";
	for (int i = 0; i < n; i++) {
		if (!alike(&experts[i].gate, &e->gate) || !alike(&experts[i].up, &e->gate) || !alike(&experts[i].down, &e->down))
			return "experts of one call differ in their types or shapes";
		if (experts[i].n < 0)
			return "an expert has fewer than no tokens";
		most = experts[i].n > most ? experts[i].n : most;
		c.experts[i] = experts[i];
	}
	if (e->down.dtype != e->gate.dtype || e->down.cols != e->gate.rows || e->down.rows != e->gate.cols)
		return "the matrices of an expert do not belong together";
	if (!most)
		return NULL;
	whole = e->gate.cols % BLOCK == 0 && e->down.cols % BLOCK == 0;
	switch (e->gate.dtype) {
	case DTYPE_F32:
		launch_typed<DTYPE_F32>(stream, &c, n, most, whole, profile);
		return NULL;
	case DTYPE_BF16:
		launch_typed<DTYPE_BF16>(stream, &c, n, most, whole, profile);
		return NULL;
	case DTYPE_F16:
		launch_typed<DTYPE_F16>(stream, &c, n, most, whole, profile);
		return NULL;
	case DTYPE_F8_E4M3:
		launch_typed<DTYPE_F8_E4M3>(stream, &c, n, most, whole, profile);
		return NULL;
	case DTYPE_INT4:
		launch_typed<DTYPE_INT4>(stream, &c, n, most, whole, profile);
		return NULL;
	}
	return "experts are of a type that is not known";
}
