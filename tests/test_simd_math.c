/* The functions of engine/simd/math.h against those of numeric.h, in vectors of plain C that every processor has; what
 * instruction sets make of them is seen where ops use them, in the other tests of kernels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#if defined __x86_64__
#pragma GCC diagnostic ignored "-Wpsabi"
#define SIMD_WIDE
#include "engine/simd/math.h"

static void assert_same(float got, float want, const char *function, float x)
{
	if (f32_bits(got) != f32_bits(want) && !(isnan(got) && isnan(want)))
		fail_msg("%s(%a) is %a, it should be %a", function, (double)x, (double)got, (double)want);
}

static void assert_same_functions(const float *x)
{
	float e[VL], sigmoid[VL], silu[VL];

	vf_store(e, vf_exp(vf_load(x)));
	vf_store(sigmoid, vf_sigmoid(vf_load(x)));
	vf_store(silu, vf_silu(vf_load(x)));
	for (int l = 0; l < VL; l++) {
		assert_same(e[l], num_exp(x[l]), "exp", x[l]);
		assert_same(sigmoid[l], num_sigmoid(x[l]), "sigmoid", x[l]);
		assert_same(silu[l], num_silu(x[l]), "silu", x[l]);
	}
}

/* One in 10,007, which is prime to every power of two, so exponents, signs and last bits of all kinds are among them. */
static void vectors_of_exp_have_its_bits_over_all_of_float32(void **state)
{
	(void)state;
	for (uint64_t first = 0; first < (uint64_t)1 << 32; first += (uint64_t)VL * 10007) {
		float x[VL];

		for (int l = 0; l < VL; l++)
			x[l] = f32_from_bits((uint32_t)(first + (uint64_t)l * 10007));
		assert_same_functions(x);
	}
}

/* Where exp turns to 0 and to infinity, and what is not finite. */
static void vectors_of_exp_have_its_bits_around_its_edges(void **state)
{
	static const float edges[] = {-87.33655f, 88.72284f, 0.0f, -0.0f, INFINITY, -INFINITY, NAN, 0x1.62e43p-2f};

	(void)state;
	for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
		float x[VL];

		for (int l = 0; l < VL; l++)
			x[l] = f32_from_bits(f32_bits(edges[i]) + (uint32_t)(l - VL / 2));
		assert_same_functions(x);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(vectors_of_exp_have_its_bits_over_all_of_float32),
		cmocka_unit_test(vectors_of_exp_have_its_bits_around_its_edges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
#include <stdio.h>

int main(void)
{
	puts("skipped: this processor has no vectors of engine/simd");
	return 0;
}
#endif
