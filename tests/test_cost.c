/* Compute or move: lines between measured points, and shares that end together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "engine/noise.h"
#include "offload/cost.h"

/* A host that takes 10 ms for up to 4 tokens and then 2.5 ms a token; a device that takes 1 ms for up to 64 and then 1/64 ms a token, 20 ms
 * of upload before it. */
static struct cost a_machine(void)
{
	struct cost c = {.upload_s = .020};

	for (int i = 0; i < COST_POINTS; i++) {
		int n = 1 << i;

		c.host_s[i] = n <= 4 ? .010 : .0025 * n;
		c.device_s[i] = n <= 64 ? .001 : .001 * n / 64;
	}
	return c;
}

static void points_are_joined_by_lines_and_the_last_goes_on_in_proportion(void **state)
{
	struct cost c = {.upload_s = 1};

	(void)state;
	for (int i = 0; i < COST_POINTS; i++) {
		c.host_s[i] = 1 + i;           /* 1, 2, 3 .. 10 s at 1, 2, 4 .. 512 tokens */
		c.device_s[i] = 10 * (1 + i);
	}
	assert_float_equal(cost_host(&c, 1), 1, 1e-12);
	assert_float_equal(cost_host(&c, 2), 2, 1e-12);
	assert_float_equal(cost_host(&c, 3), 2.5, 1e-12);
	assert_float_equal(cost_host(&c, 5), 3.25, 1e-12);
	assert_float_equal(cost_host(&c, 511), 9 + 255. / 256, 1e-12);
	assert_float_equal(cost_host(&c, 512), 10, 1e-12);
	assert_float_equal(cost_host(&c, 768), 15, 1e-12);
	assert_float_equal(cost_device(&c, 65536), 12800, 1e-9);
}

static void more_tokens_never_take_less(void **state)
{
	struct cost c = a_machine();

	(void)state;
	for (int64_t n = 1; n < 5000; n++) {
		assert_true(cost_host(&c, n + 1) >= cost_host(&c, n));
		assert_true(cost_device(&c, n + 1) >= cost_device(&c, n));
	}
}

/* Upload and device together take 21 ms: the processor's time for 8 tokens is 20 ms, for 9 it is 22.5. */
static void one_alone_is_moved_from_the_break_even_on(void **state)
{
	struct cost c = a_machine();

	(void)state;
	assert_int_equal(cost_break_even(&c), 9);
	assert_false(cost_moves(&c, 8, 1, 0));
	assert_true(cost_moves(&c, 9, 1, 0));
	assert_false(cost_moves(&c, 9, 1, .002)); /* the link is busy for too long: 23 ms */
	assert_true(cost_moves(&c, 1, 3, 0));     /* three take 30 ms */
	assert_false(cost_moves(&c, 1, 2, 0));
	c.upload_s = .002;
	assert_int_equal(cost_break_even(&c), 1);
}

static void what_never_pays_has_no_break_even(void **state)
{
	struct cost c = a_machine(), host_only = a_machine();

	(void)state;
	memcpy(c.device_s, c.host_s, sizeof c.device_s); /* a device no faster than the processor */
	assert_int_equal(cost_break_even(&c), 0);
	memset(host_only.device_s, 0, sizeof host_only.device_s);
	host_only.upload_s = 0;
	assert_false(cost_has_device(&host_only));
	assert_int_equal(cost_break_even(&host_only), 0);
	assert_false(cost_moves(&host_only, 512, 1000, 0));
	assert_true(isfinite(cost_device(&host_only, 700)));
}

/* A dip: moved at 9 to 90 tokens, not at 100 again, so that the break-even lies behind it. */
static void the_break_even_is_behind_the_last_loss(void **state)
{
	struct cost c = a_machine();

	(void)state;
	c.device_s[7] = 1; /* at 128 tokens, where the processor takes .32 s */
	assert_true(cost_moves(&c, 32, 1, 0));
	assert_false(cost_moves(&c, 128, 1, 0));
	assert_true(cost_break_even(&c) > 128);
	assert_true(cost_break_even(&c) < 256);
	assert_true(cost_moves(&c, cost_break_even(&c), 1, 0));
	assert_false(cost_moves(&c, cost_break_even(&c) - 1, 1, 0));
}

/* When `moved` of k experts are moved one behind another and the processor computes the others: when all are done. */
static double makespan(const struct cost *c, int64_t n, int k, int moved)
{
	double link = 0, device = 0, host = (k - moved) * cost_host(c, n);

	for (int i = 0; i < moved; i++) {
		link += c->upload_s;
		device = (device > link ? device : link) + cost_device(c, n);
	}
	return device > host ? device : host;
}

/* As the header says to ask. */
static int share_moved(const struct cost *c, int64_t n, int k)
{
	double link = 0, device = 0;
	int moved = 0;

	while (moved < k && cost_moves(c, n, k - moved, device - c->upload_s > link ? device - c->upload_s : link)) {
		link += c->upload_s;
		device = (device > link ? device : link) + cost_device(c, n);
		moved++;
	}
	return moved;
}

static void a_share_is_moved_that_ends_with_the_rest(void **state)
{
	struct cost c = a_machine();

	(void)state;
	/* 8 experts of 1 token: 2 moved are there after 41 ms, and the other 6 computed after 60; a third would be there after 61 ms. */
	assert_int_equal(share_moved(&c, 1, 8), 2);
	/* 256 experts of 256 tokens: 24 ms a piece for the first moved and 20 for each after it, .64 s for each computed. */
	assert_int_equal(share_moved(&c, 256, 256), 249);
	assert_true(makespan(&c, 256, 256, 249) < makespan(&c, 256, 256, 247));
}

static void no_share_is_worse_than_the_best_by_more_than_an_expert(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 3000; seed++) {
		struct cost c = {.upload_s = 1e-4 * (double)(1 + noise_word(seed, 100) % 1000)};
		int64_t n = 1 + (int64_t)(noise_word(seed, 101) % 700);
		int k = 1 + (int)(noise_word(seed, 102) % 64), moved;
		double host = 0, device = 0, best = INFINITY;

		for (int i = 0; i < COST_POINTS; i++) {
			host += 1e-4 * (double)(1 + noise_word(seed, (uint64_t)i) % 500);
			device += 1e-5 * (double)(1 + noise_word(seed, 50 + (uint64_t)i) % (seed % 2 ? 100 : 5000));
			c.host_s[i] = host;
			c.device_s[i] = device;
		}
		for (int i = 0; i <= k; i++)
			best = makespan(&c, n, k, i) < best ? makespan(&c, n, k, i) : best;
		moved = share_moved(&c, n, k);
		if (makespan(&c, n, k, moved) > best + cost_host(&c, n) * (1 + 1e-9))
			fail_msg("seed %d: %d of %d moved take %g s, and the best share %g s", (int)seed, moved, k,
				 makespan(&c, n, k, moved), best);
	}
}

static void times_that_no_clock_gives_are_refused(void **state)
{
	static const double bad[] = {0, -1, INFINITY, NAN};
	struct err err;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct cost host = a_machine(), device = a_machine(), upload = a_machine();

		host.host_s[3] = bad[i];
		assert_int_equal(cost_check(&host, &err), -1);
		assert_int_equal(err.code, ERR_FORMAT);
		assert_non_null(strstr(err.text, "the processor's time for 8 tokens"));
		device.device_s[9] = bad[i];
		assert_int_equal(cost_check(&device, &err), -1);
		assert_non_null(strstr(err.text, "the device's time for 512 tokens"));
		upload.upload_s = bad[i];
		assert_int_equal(cost_check(&upload, &err), -1);
		assert_non_null(strstr(err.text, "way to the device"));
	}
	assert_int_equal(cost_check(&(struct cost){.host_s = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}, &err), 0);
	assert_int_equal(cost_check(&(struct cost){.host_s = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, .upload_s = 1}, &err), -1);
	assert_int_equal(cost_check(&(struct cost){0}, &err), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(points_are_joined_by_lines_and_the_last_goes_on_in_proportion),
		cmocka_unit_test(more_tokens_never_take_less),
		cmocka_unit_test(one_alone_is_moved_from_the_break_even_on),
		cmocka_unit_test(what_never_pays_has_no_break_even),
		cmocka_unit_test(the_break_even_is_behind_the_last_loss),
		cmocka_unit_test(a_share_is_moved_that_ends_with_the_rest),
		cmocka_unit_test(no_share_is_worse_than_the_best_by_more_than_an_expert),
		cmocka_unit_test(times_that_no_clock_gives_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
