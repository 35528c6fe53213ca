/* Rows as stored: what packing rounds, what it refuses, and that unpacking gives it back exactly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "engine/latents.h"
#include "engine/numeric.h"

enum { LATENT = 300, ROPE = 8, WIDTH = LATENT + ROPE, ROW = 4 * WIDTH };

static uint32_t next(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state;
}

/* Values over many magnitudes, both signs. */
static void random_row(float *x, uint32_t seed)
{
	for (int i = 0; i < WIDTH; i++)
		x[i] = ldexpf((float)(int32_t)next(&seed) * 0x1p-31f, (int)(next(&seed) >> 27) - 20);
}

static void a_stored_row_comes_back_the_same_bits_however_often(void **state)
{
	(void)state;
	for (int format = 0; format < N_LATENT_FORMATS; format++)
		for (uint32_t seed = 0; seed < 200; seed++) {
			float x[WIDTH], y[WIDTH], z[WIDTH];
			uint8_t row[ROW], again[ROW];

			random_row(x, seed);
			assert_true(latent_pack((enum latent_format)format, row, x, LATENT, ROPE));
			assert_true(latent_unpack((enum latent_format)format, y, row, LATENT, ROPE));
			assert_true(latent_pack((enum latent_format)format, again, y, LATENT, ROPE));
			assert_true(latent_unpack((enum latent_format)format, z, again, LATENT, ROPE));
			assert_memory_equal(y, z, sizeof y);
			if (format == LATENTS_F32)
				assert_memory_equal(x, y, sizeof x);
		}
}

static void fp8_uses_the_least_power_of_two_that_holds_the_run(void **state)
{
	/* by hand: 448 s >= most */
	static const struct {
		float most, scale;
	} cases[] = {
		{448.0f, 1.0f}, {449.0f, 2.0f}, {224.0f, 0.5f}, {0x1.c00002p8f, 2.0f}, {1.0f, 0x1p-8f},
		{1.75f, 0x1p-8f}, {1.76f, 0x1p-7f}, {0.0f, 0x1p-100f}, {0x1p-120f, 0x1p-100f},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		float x[WIDTH] = {0}, scale;
		uint8_t row[ROW];

		x[5] = -cases[i].most;
		assert_true(latent_pack(LATENTS_FP8, row, x, LATENT, ROPE));
		memcpy(&scale, row + LATENT, 4);
		assert_true(scale == cases[i].scale);
	}
}

static void runs_of_128_have_scales_of_their_own_and_the_last_may_be_short(void **state)
{
	float x[WIDTH] = {0}, y[WIDTH];
	uint8_t row[ROW];

	(void)state;
	x[0] = 448;
	x[128] = 0x1p-10f;
	x[299] = 0x1p-30f;
	assert_true(latent_pack(LATENTS_FP8, row, x, LATENT, ROPE));
	assert_true(latent_unpack(LATENTS_FP8, y, row, LATENT, ROPE));
	assert_memory_equal(x, y, sizeof x);
}

static void a_dequantised_latent_is_exact_in_bf16(void **state)
{
	(void)state;
	for (uint32_t seed = 0; seed < 200; seed++) {
		float x[WIDTH], y[WIDTH];
		uint8_t row[ROW];

		random_row(x, seed);
		latent_pack(LATENTS_FP8, row, x, LATENT, ROPE);
		latent_unpack(LATENTS_FP8, y, row, LATENT, ROPE);
		for (int i = 0; i < WIDTH; i++)
			assert_true(bf16_to_f32(f32_to_bf16(y[i])) == y[i]);
	}
}

static void what_is_not_finite_is_refused_wherever_it_stands(void **state)
{
	static const float bad[] = {NAN, INFINITY, -INFINITY};

	(void)state;
	for (int format = 0; format < N_LATENT_FORMATS; format++)
		for (int b = 0; b < 3; b++)
			for (int at = 0; at < WIDTH; at++) {
				float x[WIDTH];
				uint8_t row[ROW];

				random_row(x, 1);
				x[at] = bad[b];
				assert_false(latent_pack((enum latent_format)format, row, x, LATENT, ROPE));
			}
}

static void damaged_rows_are_refused(void **state)
{
	float x[WIDTH], y[WIDTH];
	uint8_t row[ROW], bad[ROW];

	(void)state;
	random_row(x, 2);
	latent_pack(LATENTS_FP8, row, x, LATENT, ROPE);
	memcpy(bad, row, ROW);
	bad[17] = 0x7f; /* the code of a NaN */
	assert_false(latent_unpack(LATENTS_FP8, y, bad, LATENT, ROPE));
	memcpy(bad, row, ROW);
	memset(bad + LATENT, 0xff, 4); /* a scale */
	assert_false(latent_unpack(LATENTS_FP8, y, bad, LATENT, ROPE));
	latent_pack(LATENTS_BF16, row, x, LATENT, ROPE);
	row[1] = 0x7f;
	row[0] = 0x80; /* infinity */
	assert_false(latent_unpack(LATENTS_BF16, y, row, LATENT, ROPE));
}

static void index_keys_are_bf16_in_a_store_and_float32_for_comparison(void **state)
{
	float x[4] = {1.0f, 1.0f + 0x1p-12f, -3.0f, 0.0f}, y[4];
	uint8_t key[16];

	(void)state;
	assert_true(index_key_pack(LATENTS_FP8, key, x, 4));
	assert_true(index_key_unpack(LATENTS_FP8, y, key, 4));
	assert_true(y[0] == 1.0f && y[1] == 1.0f && y[2] == -3.0f && y[3] == 0.0f);
	assert_true(index_key_pack(LATENTS_F32, key, x, 4));
	assert_true(index_key_unpack(LATENTS_F32, y, key, 4));
	assert_memory_equal(x, y, sizeof x);
	x[2] = NAN;
	assert_false(index_key_pack(LATENTS_BF16, key, x, 4));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_stored_row_comes_back_the_same_bits_however_often),
		cmocka_unit_test(fp8_uses_the_least_power_of_two_that_holds_the_run),
		cmocka_unit_test(runs_of_128_have_scales_of_their_own_and_the_last_may_be_short),
		cmocka_unit_test(a_dequantised_latent_is_exact_in_bf16),
		cmocka_unit_test(what_is_not_finite_is_refused_wherever_it_stands),
		cmocka_unit_test(damaged_rows_are_refused),
		cmocka_unit_test(index_keys_are_bf16_in_a_store_and_float32_for_comparison),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
