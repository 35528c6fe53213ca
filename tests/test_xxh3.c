/* Sums with wide vectors: the library's own, and nothing else is slower for them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>

#if defined __x86_64__
#include <cpuid.h>
#endif

#include "config/mem.h"
#include "config/xxh3.h"

enum { MOST = 300000 };

static uint8_t *some_bytes(void)
{
	uint8_t *data = xmalloc(MOST, 1);
	uint32_t x = 1;

	for (int i = 0; i < MOST; i++)
		data[i] = (uint8_t)((x = x * 1664525u + 1013904223u) >> 24);
	return data;
}

static void sums_are_those_of_the_plain_functions(void **state)
{
	static const size_t sizes[] = {0, 1, 16, 129, 240, 241, 656, 1024, 4608, 65537, MOST};
	uint8_t *data = some_bytes();

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		XXH3_state_t *s = XXH3_createState();
		size_t part = sizes[i] / 3;

		assert_true(xxh3_sum(data, sizes[i], 0) == XXH3_64bits(data, sizes[i]));
		assert_true(xxh3_sum(data, sizes[i], 77) == XXH3_64bits_withSeed(data, sizes[i], 77));
		assert_int_equal(XXH3_64bits_reset(s), 0);
		xxh3_update(s, data, part);
		xxh3_update(s, data + part, sizes[i] - part);
		assert_true(XXH3_64bits_digest(s) == XXH3_64bits(data, sizes[i]));
		XXH3_freeState(s);
	}
	free(data);
}

#if defined __x86_64__
/* Of 256 bits, and of 512 in the first sixteen registers. */
enum { UPPER_HALVES = 1 << 2 | 1 << 6 };

/* Does this processor say which parts of registers are not in their first state? */
static bool tells(void)
{
	uint32_t a, b, c, d;

	return __builtin_cpu_supports("avx") && __get_cpuid_count(0xd, 1, &a, &b, &c, &d) && a & 4;
}

static uint32_t upper_halves_in_use(void)
{
	uint32_t parts, high;

	__asm__ volatile("xgetbv" : "=a"(parts), "=d"(high) : "c"(1));
	return parts & UPPER_HALVES;
}

/* Nothing that clearing them changes. */
static void assert_clear(void)
{
	uint32_t before = upper_halves_in_use();

	__asm__ volatile("vzeroupper");
	assert_int_equal(before, upper_halves_in_use());
}

static void no_upper_half_of_a_register_is_in_use_after_a_sum(void **state)
{
	XXH3_state_t *s;
	uint8_t *data;

	(void)state;
	if (!tells())
		skip();
	data = some_bytes();
	s = XXH3_createState();
	(void)xxh3_sum(data, MOST, 1);
	assert_clear();
	assert_int_equal(XXH3_64bits_reset(s), 0);
	xxh3_update(s, data, MOST);
	assert_clear();
	XXH3_freeState(s);
	free(data);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sums_are_those_of_the_plain_functions),
#if defined __x86_64__
		cmocka_unit_test(no_upper_half_of_a_register_is_in_use_after_a_sum),
#endif
	};

	return cmocka_run_group_tests_name("xxh3", tests, NULL, NULL);
}
