/* Ranges: few reads for many, and the aligned read around any. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "offload/io.h"

static void the_aligned_read_is_the_smallest_one_around_every_offset_and_length(void **state)
{
	(void)state;
	for (uint32_t align = 512; align <= 4096; align *= 8)
		for (uint64_t offset = 0; offset <= 2 * align + 1; offset++)
			for (uint64_t bytes = 1; bytes <= 2 * align + 1; bytes += offset % 7 ? 61 : 1) {
				struct io_aligned a = io_align(offset, bytes, align);

				assert_true(a.offset % align == 0 && a.bytes % align == 0);
				assert_true(a.offset <= offset && a.offset + a.bytes >= offset + bytes);
				assert_true(offset - a.offset < align);
				assert_true(a.offset + a.bytes - (offset + bytes) < align);
				assert_int_equal(a.skip, offset - a.offset);
			}
}

static void what_is_aligned_is_read_as_it_is(void **state)
{
	struct io_aligned a = io_align(8192, 4096, 4096), one = io_align(12345, 678, 1);

	(void)state;
	assert_int_equal(a.offset, 8192);
	assert_int_equal(a.bytes, 4096);
	assert_int_equal(a.skip, 0);
	assert_int_equal(one.offset, 12345);
	assert_int_equal(one.bytes, 678);
	/* Nothing is wanted and nothing is read, when it is nothing at the edge of a block. */
	assert_int_equal(io_align(4096, 0, 4096).bytes, 0);
	/* The last byte that a file can have. */
	a = io_align(INT64_MAX - 1, 1, 512);
	assert_true(a.offset + a.bytes == (uint64_t)1 << 63);
}

static void neighbours_become_one_read_and_distant_ones_do_not(void **state)
{
	/* Two touch; then a gap of 100, a gap of 101, one inside another, the same twice. */
	const struct io_range in[] = {
		{1000, 50}, {1050, 50}, {1200, 10}, {1311, 100}, {1320, 10}, {1320, 10}, {9000, 1},
	};
	struct io_run out[7];

	(void)state;
	assert_int_equal(io_coalesce(out, in, 7, 100, 10000), 3);
	assert_int_equal(out[0].offset, 1000);
	assert_int_equal(out[0].bytes, 210);
	assert_int_equal(out[0].first, 0);
	assert_int_equal(out[0].n, 3);
	assert_int_equal(out[1].offset, 1311);
	assert_int_equal(out[1].bytes, 100);
	assert_int_equal(out[1].first, 3);
	assert_int_equal(out[1].n, 3);
	assert_int_equal(out[2].offset, 9000);
	assert_int_equal(out[2].first, 6);
	assert_int_equal(io_coalesce(out, in, 0, 100, 10000), 0);
}

static void no_read_grows_above_the_most_and_nothing_is_cut(void **state)
{
	const struct io_range in[] = {{0, 400}, {400, 400}, {800, 300}, {1100, 5000}, {1200, 10}, {6100, 1}};
	struct io_run out[6];

	(void)state;
	assert_int_equal(io_coalesce(out, in, 6, 0, 1000), 4);
	assert_int_equal(out[0].bytes, 800);
	assert_int_equal(out[1].bytes, 300);
	/* Larger than the most: alone, but for what it covers already. */
	assert_int_equal(out[2].bytes, 5000);
	assert_int_equal(out[2].n, 2);
	assert_int_equal(out[3].offset, 6100);
}

static int by_offset(const void *a, const void *b)
{
	const struct io_range *x = a, *y = b;

	return (x->offset > y->offset) - (x->offset < y->offset);
}

static void every_wanted_byte_is_in_its_run_whatever_the_ranges(void **state)
{
	enum { N = 40 };
	struct io_range in[N];
	struct io_run out[N];

	(void)state;
	srand(1);
	for (int round = 0; round < 5000; round++) {
		size_t n = 1 + (size_t)rand() % N, n_out, next = 0;
		uint64_t gap = (uint64_t)rand() % 50, most = 1 + (uint64_t)rand() % 400, span = 50 + (uint64_t)rand() % 4000;

		for (size_t i = 0; i < n; i++)
			in[i] = (struct io_range){(uint64_t)rand() % span, 1 + (uint64_t)rand() % 60};
		qsort(in, n, sizeof *in, by_offset);
		n_out = io_coalesce(out, in, n, gap, most);
		for (size_t i = 0; i < n_out; i++) {
			uint64_t covered, end = out[i].offset + out[i].bytes;

			assert_int_equal(out[i].first, next);
			assert_true(out[i].n >= 1);
			next += out[i].n;
			assert_int_equal(out[i].offset, in[out[i].first].offset);
			covered = out[i].offset;
			for (size_t k = out[i].first; k < next; k++) {
				assert_true(in[k].offset + in[k].bytes <= end);
				/* No more than the gap lies between what is wanted. */
				assert_true(in[k].offset <= covered + gap);
				if (covered < in[k].offset + in[k].bytes)
					covered = in[k].offset + in[k].bytes;
			}
			assert_int_equal(covered, end);
			/* Above the most only when one range is so large, and then nothing was added to it. */
			if (out[i].bytes > most)
				assert_int_equal(out[i].bytes, in[out[i].first].bytes);
			/* The next run stands apart for a reason. */
			if (i + 1 < n_out)
				assert_true(out[i + 1].offset > end + gap ||
					    in[next].offset + in[next].bytes - out[i].offset > most);
		}
		assert_int_equal(next, n);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_aligned_read_is_the_smallest_one_around_every_offset_and_length),
		cmocka_unit_test(what_is_aligned_is_read_as_it_is),
		cmocka_unit_test(neighbours_become_one_read_and_distant_ones_do_not),
		cmocka_unit_test(no_read_grows_above_the_most_and_nothing_is_cut),
		cmocka_unit_test(every_wanted_byte_is_in_its_run_whatever_the_ranges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
