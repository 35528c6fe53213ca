/* What benchmarks stand on: a figure that says what it does not mean is worse than none. */
#include "tests/support/measure.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void a_median_of_an_even_count_lies_between_the_two_in_the_middle(void **state)
{
	double odd[] = {9, 1, 5}, even[] = {4, 1, 3, 2}, one[] = {7};

	(void)state;
	assert_true(measure_median(odd, 3) == 5);
	assert_true(measure_median(even, 4) == 2.5);
	assert_true(measure_median(one, 1) == 7);
}

struct counter {
	int calls;
	char *order, name;
};

static double count(void *arg)
{
	struct counter *c = arg;
	size_t n = strlen(c->order);

	c->order[n] = c->name;
	return c->calls++; /* 0 is the first round's, to be forgotten */
}

static void rounds_go_in_turn_and_forget_the_first(void **state)
{
	char order[16] = "";
	struct counter a = {0, order, 'a'}, b = {10, order, 'b'};
	struct measure_case cases[] = {{count, &a, 0}, {count, &b, 0}};

	(void)state;
	measure_rounds(cases, 2, 3);
	assert_string_equal(order, "abababab");
	assert_true(cases[0].median == 2); /* of 1, 2, 3 */
	assert_true(cases[1].median == 12);
}

/* What measure_print makes of a value, parsed again. */
static json_t *line_of(double value, double limit)
{
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);
	json_t *root;

	measure_print(out, "x.y", value, "MB/s", limit, "\"tokens\":%d,\"context\":\"%s\"", 12, "1M");
	fclose(out);
	root = json_loads(text, 0, NULL);
	assert_non_null(root);
	assert_ptr_equal(strchr(text, '\n'), text + bytes - 1);
	free(text);
	return root;
}

static void a_figure_is_one_line_of_json_with_its_limit_beside_it(void **state)
{
	json_t *line = line_of(30, 120);

	(void)state;
	assert_string_equal(json_string_value(json_object_get(line, "bench")), "x.y");
	assert_string_equal(json_string_value(json_object_get(line, "unit")), "MB/s");
	assert_true(json_number_value(json_object_get(line, "value")) == 30);
	assert_true(json_number_value(json_object_get(line, "limit")) == 120);
	assert_true(json_number_value(json_object_get(line, "fraction")) == 0.25);
	assert_int_equal(json_integer_value(json_object_get(line, "tokens")), 12);
	assert_string_equal(json_string_value(json_object_get(line, "context")), "1M");
	assert_non_null(strstr(json_string_value(json_object_get(line, "machine")), " processors, Linux"));
	json_decref(line);
}

static void what_is_no_number_is_null_and_never_a_word_that_json_lacks(void **state)
{
	json_t *line = line_of(NAN, 0);

	(void)state;
	assert_true(json_is_null(json_object_get(line, "value")));
	assert_true(json_is_null(json_object_get(line, "limit")));
	assert_true(json_is_null(json_object_get(line, "fraction")));
	json_decref(line);
}

/* A compiler that left the work out would let a probe be faster than any processor. */
static void no_probe_is_faster_than_a_processor_can_be(void **state)
{
	enum { BYTES = 32 << 20, ROW = 256, ROWS = 1000 };
	const double clock_hz = 10e9, threads = 2;
	int32_t rows[ROWS];
	struct pool *p;
	char *buffer;
	double x;

	(void)state;
	assert_int_equal(pool_new(&p, (int)threads, NULL), 0);
	buffer = measure_buffer(p, BYTES);
	for (int i = 0; i < ROWS; i++)
		rows[i] = (int32_t)((uint32_t)i * 2654435761u % (BYTES / ROW));

	x = probe_fma(p);
	assert_true(x > 1e6 && x < threads * clock_hz * 2 * 32);
	x = probe_bf16_dot(p);
	assert_true(x >= 0 && x < threads * clock_hz * 2 * 64);
	x = probe_read(p, buffer, BYTES);
	assert_true(x > 1e6 && x < threads * clock_hz * 2 * 64);
	x = probe_gather(p, buffer, ROW, rows, ROWS);
	assert_true(x > 1e6 && x < threads * clock_hz * 2 * 64);

	measure_buffer_free(buffer, BYTES);
	pool_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_median_of_an_even_count_lies_between_the_two_in_the_middle),
		cmocka_unit_test(rounds_go_in_turn_and_forget_the_first),
		cmocka_unit_test(a_figure_is_one_line_of_json_with_its_limit_beside_it),
		cmocka_unit_test(what_is_no_number_is_null_and_never_a_word_that_json_lacks),
		cmocka_unit_test(no_probe_is_faster_than_a_processor_can_be),
	};

	return cmocka_run_group_tests_name("measure", tests, NULL, NULL);
}
