#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "config/mem.h"
#include "engine/expert_reading.h"

/* Two files: matrices and scales of two parts close together, the third matrix alone in the other file, and its scales at an odd
 * byte of the first. Sizes are not those of blocks that are looked at. */
static const struct expert_part parts[] = {
	{.shard = 0, .offset = 10000, .bytes = 700001, .dtype = DTYPE_F8_E4M3},
	{.shard = 0, .offset = 710001, .bytes = 4 * 333, .dtype = DTYPE_F32},
	{.shard = 1, .offset = 4096, .bytes = 1500000, .dtype = DTYPE_BF16},
	{.shard = 0, .offset = 9000000, .bytes = 4 * 99991, .dtype = DTYPE_F32},
};
enum { N_PARTS = sizeof parts / sizeof *parts, N_RUNS = 3 };

struct fixture {
	struct io_file shards[2];
	struct expert_place place;
	struct expert_reading r;
	char *slot;
	size_t all[EXPERT_PARTS]; /* bytes of each read */
	uint64_t sum;
};

static int set_up(void **state)
{
	struct fixture *x = xcalloc(1, sizeof *x);
	uint64_t sums[256];
	size_t n = 0;

	x->shards[0].align = x->shards[1].align = 512;
	x->place.n_parts = N_PARTS;
	x->place.n_half = 3;
	memcpy(x->place.parts, parts, sizeof parts);
	expert_reading_plan(&x->r, &x->place, x->shards);
	x->slot = aligned_alloc(4096, x->r.bytes);
	for (size_t i = 0; i < x->r.bytes; i++)
		x->slot[i] = (char)(i * 2654435761u >> 13 & 0x3f); /* finite, as whatever it is taken for */
	for (int i = 0; i < N_PARTS; i++)
		for (size_t at = 0; at < parts[i].bytes; at += 65536)
			sums[n++] = XXH3_64bits(x->slot + x->r.part_at[i] + at, parts[i].bytes - at < 65536 ? parts[i].bytes - at : 65536);
	x->sum = XXH3_64bits(sums, n * sizeof *sums);
	for (int i = 0; i < x->r.n; i++)
		x->all[i] = x->r.runs[i].range.bytes;
	*state = x;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *x = *state;

	free(x->slot);
	free(x);
	return 0;
}

static void neighbours_come_with_one_read_and_every_part_lies_as_its_type_wants(void **state)
{
	const struct fixture *x = *state;

	assert_int_equal(x->r.n, N_RUNS);
	assert_int_equal(x->r.run_of[0], x->r.run_of[1]);
	for (int i = 0; i < N_PARTS; i++) {
		int run = x->r.run_of[i];

		assert_int_equal(x->r.runs[run].shard, parts[i].shard);
		assert_int_equal(x->r.part_at[i] - x->r.runs[run].at, parts[i].offset - x->r.runs[run].range.offset);
		assert_true(x->r.part_at[i] + parts[i].bytes <= x->r.runs[run].at + x->r.runs[run].least);
		assert_int_equal(x->r.fixed_at[i] % dtype_unit_bytes(parts[i].dtype), 0);
		assert_true(x->r.fixed_at[i] + parts[i].bytes <= x->r.bytes);
	}
	assert_true(x->r.fixed_at[1] != x->r.part_at[1]);
}

/* Bytes come in steps of every size, in one read after another or in all at once; those that have not come yet are others. */
static void the_sum_is_that_of_all_parts_however_their_bytes_come(void **state)
{
	static const size_t steps[] = {512, 70000, 131072, 1 << 20, 1 << 30};
	const struct fixture *x = *state;
	char *slot = aligned_alloc(4096, x->r.bytes);

	for (size_t k = 0; k < 2 * sizeof steps / sizeof *steps; k++) {
		size_t step = steps[k / 2], arrived[EXPERT_PARTS] = {0};
		struct expert_look *l = expert_look_new(&x->place, &x->r, false);
		bool coming = true, in_turn = k % 2;

		memset(slot, 0xff, x->r.bytes);
		assert_false(expert_look_on(l, slot, arrived));
		while (coming) {
			coming = false;
			for (int i = x->r.n; i-- && !(coming && in_turn); ) {
				size_t n = x->all[i] - arrived[i] < step ? x->all[i] - arrived[i] : step;

				memcpy(slot + x->r.runs[i].at + arrived[i], x->slot + x->r.runs[i].at + arrived[i], n);
				arrived[i] += n;
				coming |= n > 0;
			}
			while (expert_look_on(l, slot, arrived))
				;
		}
		assert_int_equal(expert_look_sum(l), x->sum);
		assert_int_equal(expert_look_bad_part(l), -1);
		for (int i = 0; i < N_PARTS; i++)
			assert_memory_equal(slot + x->r.fixed_at[i], x->slot + x->r.part_at[i], parts[i].bytes);
		expert_look_free(l);
	}
	free(slot);
}

/* What products looked at is not looked at again: a wrong sum of theirs is believed, and the rest is as it is. */
static void what_a_product_has_summed_is_taken_as_it_is(void **state)
{
	struct fixture *x = *state;

	for (int wrong = 0; wrong < 2; wrong++) {
		uint64_t *of_first, *of_third, right;
		struct expert_look *l;

		x->place.parts[0].sums = &of_first;
		x->place.parts[2].sums = &of_third;
		l = expert_look_new(&x->place, &x->r, false);
		for (int i = 0; i < 11; i++)
			assert_true(!of_first[i]);
		weight_sum(of_third, 22, x->slot + x->r.part_at[2], parts[2].bytes);
		right = of_third[22];
		assert_true(right == XXH3_64bits(x->slot + x->r.part_at[2] + 22 * 65536, 1500000 - 22 * 65536));
		of_third[22] += (uint64_t)wrong;
		while (expert_look_on(l, x->slot, x->all))
			;
		assert_true(of_third[22] == right + (uint64_t)wrong);
		assert_true((expert_look_sum(l) == x->sum) == !wrong);
		expert_look_free(l);
		assert_true(!of_first && !of_third);
	}
}

static void a_look_is_over_soon_and_goes_on_later(void **state)
{
	struct fixture *x = *state;
	struct expert_look *l = expert_look_new(&x->place, &x->r, true);
	int n = 0;

	while (expert_look_on(l, x->slot, x->all))
		n++;
	assert_true(n >= 2 && n <= 4); /* 2.6 million bytes, about a million at a time */
	assert_int_equal(expert_look_sum(l), x->sum);
	expert_look_free(l);
}

static void nan_in_any_part_is_found_and_only_when_it_is_looked_for(void **state)
{
	struct fixture *x = *state;

	for (int i = 0; i < N_PARTS; i++)
		for (int end = 0; end < 2; end++)
			for (int first = 0; first < 2; first++) {
				struct expert_look *l = expert_look_new(&x->place, &x->r, first);
				size_t unit = dtype_unit_bytes(parts[i].dtype);
				char *at = x->slot + x->r.part_at[i] + (end ? parts[i].bytes - unit : 0), kept[4];

				memcpy(kept, at, unit);
				memset(at, 0x7f, unit);
				if (parts[i].dtype != DTYPE_F8_E4M3) /* little-endian: the highest bits of the exponent are in the last two */
					memset(at + unit - 2, 0xff, 2);
				while (expert_look_on(l, x->slot, x->all))
					;
				assert_int_equal(expert_look_bad_part(l), first ? i : -1);
				assert_int_not_equal(expert_look_sum(l), x->sum);
				expert_look_free(l);
				memcpy(at, kept, unit);
			}
}

/* Files that are sorted by name, scales first: down, gate, up. What is used first comes first, after the scales, which nobody waits
 * for; and who computes hears of it while down is still missing. */
static void gate_and_up_come_before_down_wherever_they_lie(void **state)
{
	enum { GATE, GATE_SCALES, UP, UP_SCALES, DOWN, DOWN_SCALES, N, MATRIX = 2 << 20, SCALES = 3072, AT = 1 << 20 };
	static const uint64_t offsets[N] = {AT + MATRIX, 4096 + SCALES, AT + 2 * MATRIX, 4096 + 2 * SCALES, AT, 4096};
	struct io_file shard = {.align = 512};
	struct expert_place place = {.n_parts = N, .n_half = DOWN};
	size_t arrived[EXPERT_PARTS] = {0};
	struct expert_reading r;
	struct expert_look *l;
	char *slot;

	(void)state;
	for (int i = 0; i < N; i++)
		place.parts[i] = (struct expert_part){.offset = offsets[i], .bytes = i % 2 ? SCALES : MATRIX,
						      .dtype = i % 2 ? DTYPE_F32 : DTYPE_F8_E4M3};
	expert_reading_plan(&r, &place, &shard);
	assert_int_equal(r.n, 3);
	for (int i = 0; i < N; i++)
		assert_int_equal(r.run_of[i], i % 2 ? 0 : i == DOWN ? 2 : 1);
	slot = aligned_alloc(4096, r.bytes);
	memset(slot, 0, r.bytes);
	for (int first = 0; first < 2; first++) {
		memset(arrived, 0, sizeof arrived);
		l = expert_look_new(&place, &r, first);
		assert_true(expert_look_can_wait(l) == !first);
		for (int run = 0; run < 2; run++) {
			assert_false(expert_look_half(l, arrived));
			arrived[run] = r.runs[run].range.bytes;
			while (first && expert_look_on(l, slot, arrived)) /* else who computes does */
				;
		}
		assert_true(expert_look_half(l, arrived));
		expert_look_free(l);
	}
	free(slot);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		CASE(neighbours_come_with_one_read_and_every_part_lies_as_its_type_wants),
		CASE(the_sum_is_that_of_all_parts_however_their_bytes_come),
		CASE(what_a_product_has_summed_is_taken_as_it_is),
		CASE(a_look_is_over_soon_and_goes_on_later),
		CASE(gate_and_up_come_before_down_wherever_they_lie),
		CASE(nan_in_any_part_is_found_and_only_when_it_is_looked_for),
#undef CASE
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
