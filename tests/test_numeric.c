/* Conversions and transcendental functions of engine/numeric.h, against double arithmetic and by exhaustion. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#if defined __x86_64__
#include <immintrin.h>
#endif

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

static void subnormals_count_as_zero_when_they_are_flushed(void **state)
{
	(void)state;
	assert_true(num_fma(0x1p-127f, 0x1p100f, 1.0f, true) == 1.0f);
	assert_true(num_fma(1.0f, 1.0f, 0x1p-140f, true) == 1.0f);
	assert_true(num_fma(0x1p-70f, 0x1p-70f, 0.0f, true) == 0.0f);
	assert_true(signbit(num_fma(-0x1p-70f, 0x1p-70f, 0.0f, true)));
	assert_true(num_fma(0x1p-70f, 0x1p-70f, 0.0f, false) == 0x1p-140f);
	assert_true(num_add(0x1.8p-126f, -0x1p-126f, true) == 0.0f);
	assert_true(num_mul(0x1p-63f, 0x1p-63f, true) == 0x1p-126f);
	/* 2^-126 (1 - 2^-24): within 24 bits less than 2^-126, in the subnormal range rounded to it. */
	assert_true(num_fma(0x1.fffffep-64f, 0x1p-63f, 0.0f, false) == 0x1p-126f);
	assert_true(num_fma(0x1.fffffep-64f, 0x1p-63f, 0.0f, true) == 0.0f);
	assert_true(num_mul(0x1.fffffep-64f, 0x1p-63f, true) == 0.0f);
}

#if defined __x86_64__
/* What the processor makes of it in the mode that rule (F) describes. Not inlined: the mode is set around the call. */
__attribute__((target("fma"), noinline)) static float hardware_fma(float a, float b, float c)
{
	return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

__attribute__((noinline)) static float hardware_mul(float a, float b)
{
	return _mm_cvtss_f32(_mm_mul_ss(_mm_set_ss(a), _mm_set_ss(b)));
}
#endif

static void flushing_is_what_the_processor_does(void **state)
{
	(void)state;
#if defined __x86_64__
	uint32_t seed = 1;
	unsigned mode = _mm_getcsr();

	if (!__builtin_cpu_supports("fma"))
		skip();
	for (int i = 0; i < 3000000; i++) {
		float x[3], want, product;

		for (int k = 0; k < 3; k++) {
			uint32_t u = seed = seed * 1664525u + 1013904223u;

			/* Exponents that meet near the least normal number; mantissas of few bits and of all ones. */
			u = (u & 0x807fffff) | (k < 2 ? 62 + (u >> 5) % 5 : 1 - (u >> 5) % 2 + (u >> 9) % 3) << 23;
			x[k] = f32_from_bits(i % 3 == k ? u | 0x7fffff : i % 5 == k ? u & 0xff870000 : u);
		}
		_mm_setcsr(mode | 0x8040);
		want = hardware_fma(x[0], x[1], x[2]);
		product = hardware_mul(x[0], x[1]);
		_mm_setcsr(mode);
		assert_int_equal(f32_bits(num_fma(x[0], x[1], x[2], true)), f32_bits(want));
		assert_int_equal(f32_bits(num_mul(x[0], x[1], true)), f32_bits(product));
	}
#else
	skip();
#endif
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
		cmocka_unit_test(subnormals_count_as_zero_when_they_are_flushed),
		cmocka_unit_test(flushing_is_what_the_processor_does),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
