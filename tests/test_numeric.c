/* Conversions and transcendental functions of engine/numeric.h, against double arithmetic and by exhaustion. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>

#include "engine/numeric.h"

static void bf16_rounds_to_nearest_even(void **state)
{
	(void)state;
	assert_int_equal(f32_to_bf16(1.0f), 0x3f80);
	assert_int_equal(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);          /* a tie goes to the even code */
	assert_int_equal(f32_to_bf16(1.0f + 0x1p-7f + 0x1p-8f), 0x3f82); /* from below and from above */
	assert_int_equal(f32_to_bf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
	assert_int_equal(f32_to_bf16(-0.0f), 0x8000);
	assert_int_equal(f32_to_bf16(0x1.fffffep127f), 0x7f80); /* beyond the largest: infinity */
	assert_true(isnan(bf16_to_f32(f32_to_bf16(NAN))));
	for (uint32_t h = 0; h < 0x10000; h++)
		if ((h & 0x7fff) <= 0x7f80)
			assert_int_equal(f32_to_bf16(bf16_to_f32((uint16_t)h)), h);
}

/* IEEE half, decoded by its definition. */
static double f16_by_definition(uint32_t h)
{
	double sign = h & 0x8000 ? -1 : 1, fraction = (h & 0x3ff) / 1024.0;
	int exponent = h >> 10 & 31;

	return sign * (exponent ? ldexp(1 + fraction, exponent - 15) : ldexp(fraction, -14));
}

static void f16_widens_exactly(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 0x10000; h++) {
		if ((h & 0x7c00) != 0x7c00)
			assert_true((double)f16_to_f32((uint16_t)h) == f16_by_definition(h));
		else if (h & 0x3ff)
			assert_true(isnan(f16_to_f32((uint16_t)h)));
		else
			assert_true(isinf(f16_to_f32((uint16_t)h)));
	}
}

static double e4m3_by_definition(int c)
{
	double sign = c & 0x80 ? -1 : 1, fraction = (c & 7) / 8.0;
	int exponent = c >> 3 & 15;

	return sign * (exponent ? ldexp(1 + fraction, exponent - 7) : ldexp(fraction, -6));
}

static void e4m3_has_the_values_of_its_definition(void **state)
{
	(void)state;
	for (int c = 0; c < 256; c++) {
		if ((c & 0x7f) == 0x7f)
			assert_true(isnan(e4m3_to_f32((uint8_t)c)));
		else
			assert_true((double)e4m3_to_f32((uint8_t)c) == e4m3_by_definition(c));
	}
	assert_true(e4m3_to_f32(0x7e) == 448.0f);
}

static void e4m3_rounds_to_nearest_even_between_every_two_codes(void **state)
{
	(void)state;
	for (int c = 0; c < 0x7e; c++) {
		float low = e4m3_to_f32((uint8_t)c), high = e4m3_to_f32((uint8_t)(c + 1)), middle = (low + high) / 2;

		assert_int_equal(f32_to_e4m3(low), c);
		assert_int_equal(f32_to_e4m3(-low), c | 0x80);
		assert_int_equal(f32_to_e4m3(middle), c % 2 ? c + 1 : c);
		assert_int_equal(f32_to_e4m3(nextafterf(middle, 0)), c);
		assert_int_equal(f32_to_e4m3(nextafterf(middle, 1e9f)), c + 1);
	}
	assert_int_equal(f32_to_e4m3(1e9f), 0x7e);
	assert_true(isnan(e4m3_to_f32(f32_to_e4m3(NAN))));
}

static void exp_is_within_1_2e_7_of_the_double_function(void **state)
{
	double worst = 0;

	(void)state;
	for (float x = -87.33f; x < 88.72f; x += 0x1.9p-10f) {
		double e = exp((double)x), d = fabs((double)num_exp(x) - e) / e;

		worst = d > worst ? d : worst;
	}
	assert_true(worst < 1.2e-7);
}

static void exp_ends_well(void **state)
{
	(void)state;
	assert_true(num_exp(0.0f) == 1.0f);
	assert_true(num_exp(-0.0f) == 1.0f);
	assert_true(num_exp(-87.34f) == 0.0f);
	assert_true(num_exp(-INFINITY) == 0.0f);
	assert_true(isfinite(num_exp(88.72f)));
	assert_true(isinf(num_exp(88.73f)));
	assert_true(isinf(num_exp(INFINITY)));
	assert_true(isnan(num_exp(NAN)));
}

static void sigmoid_and_silu_follow_from_exp(void **state)
{
	(void)state;
	for (float x = -60; x < 60; x += 0.03f) {
		double s = 1 / (1 + exp(-(double)x));

		assert_true(fabs((double)num_sigmoid(x) - s) <= 3e-7 * s);
		assert_true(fabs((double)num_silu(x) - (double)x * s) <= 3e-7 * fabs((double)x * s));
	}
	assert_true(num_silu(-200.0f) == 0.0f);
	assert_true(num_silu(200.0f) == 200.0f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bf16_rounds_to_nearest_even),
		cmocka_unit_test(f16_widens_exactly),
		cmocka_unit_test(e4m3_has_the_values_of_its_definition),
		cmocka_unit_test(e4m3_rounds_to_nearest_even_between_every_two_codes),
		cmocka_unit_test(exp_is_within_1_2e_7_of_the_double_function),
		cmocka_unit_test(exp_ends_well),
		cmocka_unit_test(sigmoid_and_silu_follow_from_exp),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
