/* Weights to int4: the rule for a group, by hand, and that every instruction set has it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <string.h>

#include "config/mem.h"
#include "engine/int4.h"
#include "engine/ops.h"
#include "tests/support/op_cases.h"

static const struct ops *tables[MAX_TABLES];
static int n_tables;

static int code(const uint8_t *codes, int32_t i)
{
	return codes[i / 2] >> i % 2 * 4 & 15;
}

/* By all of them: they agree. Returns the column that is not finite, or -1. */
static int32_t pack_row(uint8_t *codes, uint16_t *scales, struct int4_error *error, const struct weight *w, int32_t r)
{
	size_t n_groups = (size_t)w->cols / 64;
	int32_t bad = cpu_ops("scalar")->int4_pack_row(codes, scales, error, w, r);

	for (int i = 0; i < n_tables; i++) {
		uint8_t *other_codes = xcalloc(n_groups, 32);
		uint16_t *other_scales = xcalloc(n_groups, sizeof *other_scales);
		struct int4_error other;

		assert_int_equal(tables[i]->int4_pack_row(other_codes, other_scales, &other, w, r), bad);
		if (bad < 0) {
			assert_memory_equal(other_codes, codes, n_groups * 32);
			assert_memory_equal(other_scales, scales, n_groups * sizeof *scales);
			assert_memory_equal(&other, error, sizeof other);
		}
		free(other_codes);
		free(other_scales);
	}
	return bad;
}

static void pack_f32(uint8_t codes[32], uint16_t *scale, const float x[64], struct int4_error *error)
{
	struct weight w = {.dtype = DTYPE_F32, .rows = 1, .cols = 64, .data = x};

	assert_int_equal(pack_row(codes, scale, error, &w, 0), -1);
}

static void a_group_is_scaled_by_its_greatest_magnitude_and_halves_go_to_even(void **state)
{
	float x[64] = {[0] = 3.5f, [1] = -3.5f, [2] = 0.25f, [3] = 0.75f, [4] = -0.25f, [5] = 1.25f, [6] = 1.2f, [63] = -1.75f};
	struct int4_error error;
	uint16_t scale;
	uint8_t codes[32];

	(void)state;
	pack_f32(codes, &scale, x, &error);
	assert_int_equal(scale, 0x3f00); /* 3.5 / 7 = .5 */
	assert_int_equal(code(codes, 0), 15);
	assert_int_equal(code(codes, 1), 1);
	assert_int_equal(code(codes, 2), 8);  /* .5 of a step: to 0 */
	assert_int_equal(code(codes, 3), 10); /* 1.5: to 2 */
	assert_int_equal(code(codes, 4), 8);
	assert_int_equal(code(codes, 5), 10); /* 2.5: to 2 */
	assert_int_equal(code(codes, 6), 10); /* 2.4 */
	assert_int_equal(code(codes, 7), 8);
	assert_int_equal(code(codes, 63), 4); /* -3.5: to -4 */
	assert_int_equal(codes[31] & 15, 8);  /* the low half is the even input's */
	/* .25, .75, .25, 1.25 and 1.75 are .25 off, 1.2 is .2 off. */
	assert_true(fabs(error.lost - (5 * .0625 + .04)) < 1e-6);
	assert_true(fabs(error.whole - (2 * 12.25 + 2 * .0625 + .5625 + 1.5625 + 1.44 + 3.0625)) < 1e-5);
}

static void a_scale_is_rounded_to_bf16_and_codes_are_of_the_rounded_one(void **state)
{
	float x[64] = {[0] = 1.0f, [1] = 0.5f};
	struct int4_error error;
	uint16_t scale;
	uint8_t codes[32];

	(void)state;
	pack_f32(codes, &scale, x, &error);
	assert_int_equal(scale, 0x3e12); /* 1/7 = .142857 lies between .142578 and .143555 */
	assert_int_equal(code(codes, 0), 15);
	assert_int_equal(code(codes, 1), 12); /* .5 / .142578 = 3.507; by the unrounded scale it is 3.5 */
}

static void a_group_of_zeros_or_of_almost_nothing_has_scale_zero(void **state)
{
	float x[64] = {0};
	struct int4_error error;
	uint16_t scale;
	uint8_t codes[32];

	(void)state;
	for (int i = 0; i < 2; i++) {
		pack_f32(codes, &scale, x, &error);
		assert_int_equal(scale, 0);
		for (int k = 0; k < 64; k++)
			assert_int_equal(code(codes, k), 8);
		x[9] = 0x1p-125f; /* / 7 is below 2^-126 */
	}
	x[9] = 0x1p-120f;
	pack_f32(codes, &scale, x, &error);
	assert_int_equal(code(codes, 9), 15);
}

static void a_value_that_is_not_finite_is_found_by_its_column(void **state)
{
	const struct {
		enum dtype dtype;
		uint8_t bytes[4];
	} bad[] = {{DTYPE_F32, {0, 0, 0x80, 0x7f}}, {DTYPE_BF16, {0x80, 0xff}}, {DTYPE_F16, {1, 0x7c}}, {DTYPE_F8_E4M3, {0xff}}};
	uint8_t data[2 * 128 * 4], codes[64];
	float scale[1] = {1};
	uint16_t scales[2];
	struct int4_error error;

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		struct weight w = {.dtype = bad[i].dtype, .rows = 2, .cols = 128, .data = data, .scale = scale};
		size_t size = dtype_bytes(w.dtype);

		memset(data, 0, sizeof data);
		memcpy(data + (128 + 77) * size, bad[i].bytes, size);
		assert_int_equal(pack_row(codes, scales, &error, &w, 0), -1);
		assert_int_equal(pack_row(codes, scales, &error, &w, 1), 77);
	}
	/* 448 with a scale that is too large for it. */
	struct weight w = {.dtype = DTYPE_F8_E4M3, .rows = 1, .cols = 128, .data = data, .scale = scale};

	memset(data, 0, sizeof data);
	data[3] = 0x7e;
	scale[0] = 1e37f;
	assert_int_equal(pack_row(codes, scales, &error, &w, 0), 3);
}

/* Hostile ones too, of which some are not finite. */
static void every_instruction_set_packs_rows_of_every_type_and_length_to_the_same_bits(void **state)
{
	enum { ROWS = 130, COLS = 2112 }; /* two blocks of rows with scales of their own */
	static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_F8_E4M3};
	static const int32_t cols[] = {64, 128, 192, 1024, 1088, COLS}; /* around what is widened at a time */
	struct random seed = {5};

	(void)state;
	for (size_t i = 0; i < 2 * (sizeof dtypes / sizeof *dtypes) * (sizeof cols / sizeof *cols); i++) {
		bool hostile = i % 2;
		struct weight w = random_weight(&seed, dtypes[i / 2 % 4], ROWS, cols[i / 8], hostile);
		uint8_t codes[COLS / 2];
		uint16_t scales[COLS / 64];
		struct int4_error error;

		for (int32_t r = 0; r < ROWS; r++) {
			int32_t bad = pack_row(codes, scales, &error, &w, r);

			assert_true(hostile || (bad == -1 && error.whole > 0 && error.lost < error.whole));
		}
		free_weight(&w);
	}
}

/* Subnormal numbers, groups that vanish, the largest there are, and both ends of a scale's rounding. */
static void every_instruction_set_packs_extreme_groups_to_the_same_bits(void **state)
{
	static const float sizes[] = {0, 0x1p-149f, 0x1p-130f, 0x1.cp-124f, 0x1.bfp-124f, 0x1p-60f, 0x1p60f, 0x1.fffffep127f};
	float x[8][64];
	uint8_t codes[8 * 32];
	uint16_t scales[8];
	struct int4_error error;
	struct weight w = {.dtype = DTYPE_F32, .rows = 1, .cols = 8 * 64, .data = x};
	struct random seed = {6};

	(void)state;
	for (int round = 0; round < 100; round++) {
		for (int g = 0; g < 8; g++)
			for (int i = 0; i < 64; i++)
				x[g][i] = i == round % 64 ? sizes[g] : sizes[g] * random_uniform(&seed);
		assert_int_equal(pack_row(codes, scales, &error, &w, 0), -1);
		assert_int_equal(scales[0], 0);
		assert_int_equal(scales[1], 0);
		assert_true(scales[7] > 0);
		assert_int_equal(code(codes, 7 * 64 + round % 64), 15);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_group_is_scaled_by_its_greatest_magnitude_and_halves_go_to_even),
		cmocka_unit_test(a_scale_is_rounded_to_bf16_and_codes_are_of_the_rounded_one),
		cmocka_unit_test(a_group_of_zeros_or_of_almost_nothing_has_scale_zero),
		cmocka_unit_test(a_value_that_is_not_finite_is_found_by_its_column),
		cmocka_unit_test(every_instruction_set_packs_rows_of_every_type_and_length_to_the_same_bits),
		cmocka_unit_test(every_instruction_set_packs_extreme_groups_to_the_same_bits),
	};

	n_tables = op_tables(tables);
	return cmocka_run_group_tests_name("int4", tests, NULL, NULL);
}
