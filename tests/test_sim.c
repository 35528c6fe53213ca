/* The simulated devices can fail: every kind of mistake that they are there to find is made once, and found; and what is right is
 * left alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/weight.h"
#include "offload/backend.h"
#include "tests/sim/faulty.h"

enum { N = 512, BLOCK = 128, N_BLOCKS = N / BLOCK };

static struct backend plain, race;

/* A library lies beside this program. */
static void load(struct backend *b, const char *library)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
	backend_fill_fn *fill;
	void *so;

	assert_true(n > 0);
	path[n] = 0;
	assert_true((size_t)(strrchr(path, '/') + 1 - path) + strlen(library) < sizeof path);
	strcpy(strrchr(path, '/') + 1, library);
	so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!so)
		fail_msg("%s", dlerror());
	*(void **)&fill = dlsym(so, BACKEND_SYMBOL);
	assert_non_null(fill);
	fill(b);
	assert_int_equal(b->abi, BACKEND_ABI);
	assert_int_equal(b->bytes, sizeof *b);
	assert_string_equal(b->kind, "sim");
}

static int load_both(void **state)
{
	(void)state;
	load(&plain, "libquire_faulty.so");
	load(&race, "libquire_faultyrace.so");
	return 0;
}

static int forget_environment(void **state)
{
	(void)state;
	for (const char *const *name = (const char *const[]){"DEVICES", "MEMORY", "SEED", "ORDER", "FAIL", NULL}; *name; name++) {
		char text[40];

		snprintf(text, sizeof text, "QUIRE_SIM_%s", *name);
		unsetenv(text);
	}
	return 0;
}

static void set_number(const char *name, long value)
{
	char text[32];

	snprintf(text, sizeof text, "%ld", value);
	setenv(name, text, 1);
}

static struct backend_device *open_device(const struct backend *b)
{
	struct backend_info info;
	char why[BACKEND_TEXT];
	struct backend_device *d = b->open(0, &info, why);

	if (!d)
		fail_msg("%s", why);
	return d;
}

static void all_is_well(const struct backend *b, struct backend_device *d)
{
	char why[BACKEND_TEXT];

	if (b->check(d, why))
		fail_msg("%s", why);
}

static void has_failed(const struct backend *b, struct backend_device *d, const char *saying)
{
	char why[BACKEND_TEXT];

	assert_int_equal(b->check(d, why), -1);
	if (!strstr(why, saying))
		fail_msg("'%s' does not say '%s'", why, saying);
	assert_int_equal(b->check(d, why), -1); /* it stays so */
}

static void *host_to_device(const struct backend *b, struct backend_device *d, const void *from, size_t bytes)
{
	void *to = b->alloc(d, bytes);

	assert_non_null(to);
	b->upload(d, BACKEND_COMPUTE, to, from, bytes);
	b->wait(d, b->mark(d, BACKEND_COMPUTE));
	return to;
}

/* x is 0, 1, 2 ... at the beginning and 0, -1 ... from the middle on: small, so that sums are exact in any order. */
static void make_x(float *x)
{
	for (int i = 0; i < N; i++)
		x[i] = (float)(i < N / 2 ? i % 16 : -(i % 8));
}

/* Runs one kernel on a device of its own; out has n_out floats, and `more` that the kernel does not know of. Returns what check
 * says. */
static int run_kernel(const struct backend *b, enum faulty_kernel kernel, float *out, int n_out, char *why)
{
	struct backend_device *d = open_device(b);
	struct backend_expert e = {.n = N};
	float x[N], zero[N] = {0};
	float *on_device;
	int status;

	make_x(x);
	on_device = host_to_device(b, d, zero, (size_t)n_out * sizeof *zero);
	b->experts(d, on_device, on_device, host_to_device(b, d, x, sizeof x), NULL, &e, 1, kernel);
	b->download(d, BACKEND_COMPUTE, out, on_device, (size_t)n_out * sizeof *out);
	b->wait(d, b->mark(d, BACKEND_COMPUTE));
	status = b->check(d, why);
	b->close(d);
	return status;
}

/* Forward, reverse, and then seeds. */
static void set_order(int i)
{
	setenv("QUIRE_SIM_ORDER", i == 0 ? "forward" : i == 1 ? "reverse" : "random", 1);
	set_number("QUIRE_SIM_SEED", i);
}

static void expect(enum faulty_kernel kernel, float want[N], int *n_out)
{
	float x[N], v;

	make_x(x);
	memset(want, 0, N * sizeof *want);
	*n_out = N;
	switch (kernel) {
	case SUM:
		*n_out = N_BLOCKS;
		for (int i = 0; i < N; i++)
			want[i / BLOCK] += x[i];
		break;
	case SWAP:
		for (int i = 0; i < N; i++)
			want[i] = x[i ^ 1];
		break;
	case TOTAL:
		*n_out = 1;
		for (int i = 0; i < N; i++)
			want[0] += x[i];
		break;
	case TILES:
		*n_out = BLOCK;
		for (int t = 0; t < BLOCK; t++)
			for (int at = 0; at < N; at += BLOCK)
				want[t] += x[at + BLOCK - 1 - t] * (float)(t + 1);
		break;
	case BALLOT:
		*n_out = BLOCK;
		for (int t = 0; t < BLOCK; t++) {
			uint32_t bits = 0;

			for (int lane = 0; lane < 32; lane++)
				bits |= (uint32_t)(x[t / 32 * 32 + lane] > 0) << lane;
			v = (float)bits;
			want[t] = v;
		}
		break;
	default:
		fail();
	}
}

static void sound_kernels_are_right_and_give_no_report_in_any_order(void **state)
{
	static const enum faulty_kernel kernels[] = {SUM, SWAP, TOTAL, TILES, BALLOT};
	const struct backend *const modes[] = {&plain, &race};

	(void)state;
	for (int i = 0; i < 12; i++) {
		for (size_t k = 0; k < 2 * sizeof kernels / sizeof *kernels; k++) {
			float out[N], want[N];
			char why[BACKEND_TEXT];
			int n_out;

			set_order(i);
			expect(kernels[k / 2], want, &n_out);
			if (run_kernel(modes[k % 2], kernels[k / 2], out, n_out, why))
				fail_msg("kernel %d, order %d: %s", kernels[k / 2], i, why);
			for (int j = 0; j < n_out; j++)
				assert_float_equal(out[j], want[j], 0);
		}
	}
}

/* A mistake is reported with these words in every order. */
static void is_reported(const struct backend *b, enum faulty_kernel kernel, const char *word, const char *and)
{
	for (int i = 0; i < 8; i++) {
		float out[N];
		char why[BACKEND_TEXT];

		set_order(i);
		if (!run_kernel(b, kernel, out, N, why))
			fail_msg("kernel %d, order %d: no report", kernel, i);
		if (!strstr(why, word) || !strstr(why, and))
			fail_msg("kernel %d, order %d: '%s' without '%s' or '%s'", kernel, i, why, word, and);
	}
}

static void threads_that_do_not_meet_are_named(void **state)
{
	const struct backend *const modes[] = {&plain, &race};

	(void)state;
	for (int m = 0; m < 2; m++) {
		is_reported(modes[m], SUM_DIVERGENT, "divergent barrier", "faulty.cu:");
		is_reported(modes[m], SUM_ENDED_EARLY, "divergent barrier", "127 of 128 threads");
		is_reported(modes[m], SUM_LANE_ABSENT, "deadlock", "lane 7 has ended");
		is_reported(modes[m], SUM_BAD_SHUFFLE, "bad shuffle", "0000ffff");
		is_reported(modes[m], TOO_MANY_THREADS, "no GPU launches", "32 x 33");
	}
}

static void races_are_named_in_every_order(void **state)
{
	(void)state;
	is_reported(&race, SUM_WITHOUT_BARRIER, "race", "__shared__");
	is_reported(&race, SWAP_WITHOUT_SYNCWARP, "race", "__shared__");
	is_reported(&race, TOTAL_PLAIN_ADD, "race", "byte 0 of");
	is_reported(&race, TOTAL_HALF_ATOMIC, "race", "adds to");
	is_reported(&race, TILES_REFILLED_EARLY, "race", "dynamic shared memory");
}

static void memory_that_a_kernel_has_not_been_given_is_named(void **state)
{
	(void)state;
	is_reported(&race, SWAP_PAST_THE_END, "outside", "at byte 2048 of 2048");
	is_reported(&race, SWAP_PAST_SHARED, "outside", "no memory of the device");
	is_reported(&race, SWAP_HOST_POINTER, "outside", "no memory of the device");
	is_reported(&race, SWAP_MISALIGNED, "misaligned", "faulty.cu:");
	is_reported(&plain, SWAP_MISALIGNED, "misaligned", "faulty.cu:");
	is_reported(&plain, SWAP_PAST_THE_END, "just before or behind", "");
	is_reported(&plain, SWAP_PAST_SHARED, "outside", "byte 508 of 508 of dynamic");
}

static void what_was_never_written_is_nan(void **state)
{
	const struct backend *const modes[] = {&plain, &race};
	float out[N];
	char why[BACKEND_TEXT];

	(void)state;
	for (int i = 0; i < 8; i++) {
		set_order(i);
		assert_int_equal(run_kernel(modes[i % 2], SUM_NEVER_WRITTEN, out, N_BLOCKS, why), 0);
		for (int block = 0; block < N_BLOCKS; block++)
			assert_true(out[block] != out[block]);
	}
}

/* ---- queues ---- */

enum mistake { NONE, COMPUTE_BEFORE_UPLOAD, UPLOAD_BEFORE_LAST_READER, HOST_REUSED_EARLY, READ_BEFORE_DONE };
enum { N_SLOTS = 2, N_EXPERTS = 6 };

static float weight_of(int expert, int i)
{
	return (float)(expert + 1 + i % 3);
}

/* Six experts go through two slots, and through two buffers of the host's on their way: out[e] = x . expert e. Whether that is
 * what came out. */
static bool two_slots_give_the_right_products(const struct backend *b, enum mistake mistake)
{
	struct backend_device *d = open_device(b);
	float x[N], buffers[N_SLOTS][N], out[N_EXPERTS], want;
	float *slots[N_SLOTS], *products = b->alloc(d, sizeof out), *x_there;
	int64_t uploaded[N_SLOTS] = {0}, read[N_SLOTS] = {0}, done;
	bool right = true;

	make_x(x);
	x_there = host_to_device(b, d, x, sizeof x);
	for (int s = 0; s < N_SLOTS; s++)
		slots[s] = b->alloc(d, sizeof buffers[s]);

	for (int e = 0; e < N_EXPERTS; e++) {
		int s = e % N_SLOTS;
		struct backend_expert it = {.gate.data = slots[s], .n = N};

		if (uploaded[s] && mistake != HOST_REUSED_EARLY)
			b->wait(d, uploaded[s]);
		for (int i = 0; i < N; i++)
			buffers[s][i] = weight_of(e, i);

		if (read[s] && mistake != UPLOAD_BEFORE_LAST_READER)
			b->after(d, BACKEND_UP, read[s]);
		b->upload(d, BACKEND_UP, slots[s], buffers[s], sizeof buffers[s]);
		uploaded[s] = b->mark(d, BACKEND_UP);

		if (mistake != COMPUTE_BEFORE_UPLOAD)
			b->after(d, BACKEND_COMPUTE, uploaded[s]);
		b->experts(d, products + e, products, x_there, NULL, &it, 1, DOT);
		read[s] = b->mark(d, BACKEND_COMPUTE);
		b->done(d, read[s]);
	}
	b->after(d, BACKEND_DOWN, read[(N_EXPERTS - 1) % N_SLOTS]);
	b->download(d, BACKEND_DOWN, out, products, sizeof out);
	done = b->mark(d, BACKEND_DOWN);
	if (mistake != READ_BEFORE_DONE)
		b->wait(d, done);

	all_is_well(b, d);
	for (int e = 0; e < N_EXPERTS; e++) {
		want = 0;
		for (int i = 0; i < N; i++)
			want += x[i] * weight_of(e, i);
		right &= out[e] == want;
	}
	b->close(d);
	return right;
}

static int n_wrong_of_100_seeds(enum mistake mistake)
{
	int n = 0;

	for (int seed = 1; seed <= 100; seed++) {
		set_number("QUIRE_SIM_SEED", seed);
		n += !two_slots_give_the_right_products(seed % 20 ? &plain : &race, mistake);
	}
	return n;
}

static void marks_make_every_order_right(void **state)
{
	(void)state;
	assert_int_equal(n_wrong_of_100_seeds(NONE), 0);
}

static void a_forgotten_mark_is_seen_with_most_seeds(void **state)
{
	int n_early, n_overwritten, n_reused, n_unread;

	(void)state;
	n_early = n_wrong_of_100_seeds(COMPUTE_BEFORE_UPLOAD);
	n_overwritten = n_wrong_of_100_seeds(UPLOAD_BEFORE_LAST_READER);
	n_reused = n_wrong_of_100_seeds(HOST_REUSED_EARLY);
	n_unread = n_wrong_of_100_seeds(READ_BEFORE_DONE);
	printf("wrong with so many of 100 seeds: compute before upload %d, upload before the last reader %d, host memory reused "
	       "%d, read before done %d\n", n_early, n_overwritten, n_reused, n_unread);
	assert_in_range(n_early, 51, 100);
	assert_in_range(n_overwritten, 51, 100);
	assert_in_range(n_reused, 51, 100);
	assert_in_range(n_unread, 51, 100);
}

static void a_seed_is_one_order(void **state)
{
	bool first[20];

	(void)state;
	for (int i = 0; i < 40; i++) {
		bool right;

		set_number("QUIRE_SIM_SEED", i % 20);
		right = two_slots_give_the_right_products(&plain, UPLOAD_BEFORE_LAST_READER);
		if (i < 20)
			first[i] = right;
		else
			assert_int_equal(right, first[i - 20]);
	}
}

static void a_wait_runs_what_its_mark_needs_and_nothing_more(void **state)
{
	struct backend_device *d = open_device(&plain);
	float x[2] = {1, 2}, one = 0, other = 0, third = 0, *there = host_to_device(&plain, d, x, sizeof x);
	int64_t up, down;

	(void)state;
	plain.download(d, BACKEND_COMPUTE, &other, there, sizeof other);
	plain.download(d, BACKEND_UP, &third, there + 1, sizeof third);
	up = plain.mark(d, BACKEND_UP);
	plain.after(d, BACKEND_DOWN, up);
	plain.download(d, BACKEND_DOWN, &one, there, sizeof one);
	down = plain.mark(d, BACKEND_DOWN);
	assert_true(one != one && other != other && third != third);

	plain.wait(d, down);
	assert_float_equal(one, 1, 0);
	assert_float_equal(third, 2, 0); /* the mark that the third queue waited for */
	assert_true(other != other);
	assert_true(plain.done(d, up));

	plain.close(d);
	assert_float_equal(other, 1, 0);
}

static void asking_often_enough_gets_everything_done(void **state)
{
	struct backend_device *d = open_device(&plain);
	float x = 3, y = 0, *there = host_to_device(&plain, d, &x, sizeof x);
	int64_t mark;
	int asked = 1;

	(void)state;
	plain.download(d, BACKEND_DOWN, &y, there, sizeof y);
	mark = plain.mark(d, BACKEND_DOWN);
	while (!plain.done(d, mark))
		assert_true(asked++ < 100);
	assert_float_equal(y, 3, 0);
	plain.close(d);
}

/* ---- what is wrong with a call ---- */

static void a_copy_in_the_wrong_direction_is_a_failure(void **state)
{
	static const char here[] = "not in memory that was allocated", host[] = "not in the host's memory";
	static const char *const says[] = {here, here, here, host, host};
	float x[4] = {0}, *there;
	struct backend_device *d;

	(void)state;
	for (int i = 0; i < 5; i++) {
		d = open_device(&plain);
		there = plain.alloc(d, sizeof x);
		switch (i) {
		case 0: plain.upload(d, BACKEND_UP, x, x, sizeof x); break;
		case 1: plain.upload(d, BACKEND_UP, there + 1, x, sizeof x); break;
		case 2: plain.download(d, BACKEND_DOWN, x, x, sizeof x); break;
		case 3: plain.upload(d, BACKEND_UP, there, there, sizeof x); break;
		case 4: plain.download(d, BACKEND_DOWN, there, there, sizeof x); break;
		}
		has_failed(&plain, d, says[i]);
		plain.close(d);
	}
}

static void memory_of_another_device_is_a_failure(void **state)
{
	struct backend_info info;
	char why[BACKEND_TEXT];
	struct backend_device *one = open_device(&plain), *two = plain.open(1, &info, why);
	float x = 0;

	(void)state;
	assert_non_null(two);
	plain.upload(two, BACKEND_UP, plain.alloc(one, sizeof x), &x, sizeof x);
	has_failed(&plain, two, "not in memory that was allocated of this device");
	all_is_well(&plain, one);
	plain.close(one);
	plain.close(two);
	assert_null(plain.open(2, &info, why));
	assert_int_equal(plain.count(why), 2);
}

static void memory_freed_before_a_copy_has_run_is_a_failure(void **state)
{
	struct backend_device *d = open_device(&plain);
	float x = 1, *there = plain.alloc(d, sizeof x);

	(void)state;
	plain.upload(d, BACKEND_UP, there, &x, sizeof x);
	plain.free(d, there);
	all_is_well(&plain, d);
	plain.wait(d, plain.mark(d, BACKEND_UP));
	has_failed(&plain, d, "freed before it ran");
	plain.free(d, NULL);
	plain.close(d);

	d = open_device(&plain);
	plain.free(d, &x);
	has_failed(&plain, d, "was not allocated");
	plain.close(d);
	plain.close(NULL);
}

static void there_is_room_for_what_the_memory_holds(void **state)
{
	struct backend_device *d;
	float nan, *a, *b;

	(void)state;
	set_number("QUIRE_SIM_MEMORY", 1 << 20);
	d = open_device(&plain);
	a = plain.alloc(d, 1 << 19);
	b = plain.alloc(d, (1 << 19) - 1);
	assert_non_null(a);
	assert_non_null(b);
	assert_int_equal((uintptr_t)a % BACKEND_ALIGN + (uintptr_t)b % BACKEND_ALIGN, 0);
	assert_null(plain.alloc(d, 1));
	plain.free(d, a);
	assert_null(plain.alloc(d, (1 << 19) + 1));
	a = plain.alloc(d, 1 << 19);
	assert_non_null(a);
	plain.download(d, BACKEND_DOWN, &nan, a, sizeof nan);
	plain.wait(d, plain.mark(d, BACKEND_DOWN));
	assert_true(nan != nan);
	all_is_well(&plain, d);
	plain.close(d);
}

static void what_is_pinned_is_unpinned_once(void **state)
{
	struct backend_device *d = open_device(&plain);
	char host[100], why[BACKEND_TEXT];

	(void)state;
	assert_int_equal(plain.pin(d, host, 50, why), 0);
	assert_int_equal(plain.pin(d, host + 50, 50, why), 0);
	assert_int_equal(plain.pin(d, host + 49, 2, why), -1);
	assert_int_equal(plain.pin(d, host, 1, why), -1);
	plain.unpin(d, host);
	plain.unpin(d, host + 50);
	all_is_well(&plain, d);
	plain.unpin(d, host);
	has_failed(&plain, d, "was not pinned");
	plain.close(d);
}

/* What goes to stderr until it is asked back. */
static int redirect(FILE *to)
{
	int was = dup(2);

	assert_true(was >= 0 && dup2(fileno(to), 2) == 2);
	return was;
}

static void what_nobody_asked_for_is_printed_at_the_end(void **state)
{
	struct backend_device *d = open_device(&plain);
	FILE *f = tmpfile();
	char host[100], text[500], why[BACKEND_TEXT];
	int stderr_was;

	(void)state;
	assert_non_null(f);
	assert_int_equal(plain.pin(d, host, sizeof host, why), 0);
	plain.free(d, host);
	stderr_was = redirect(f);
	plain.close(d);
	assert_int_equal(dup2(stderr_was, 2), 2);
	close(stderr_was);

	rewind(f);
	text[fread(text, 1, sizeof text - 1, f)] = 0;
	fclose(f);
	assert_non_null(strstr(text, "100 bytes at "));
	assert_non_null(strstr(text, "nobody asked: free of "));
}

/* A call of experts is looked at when it is made: where weights and rows lie, and how long they are. */
static void experts_that_do_not_fit_their_memory_are_a_failure(void **state)
{
	(void)state;
	for (int i = 0; i < 5; i++) {
		static const char *const says[] = {NULL, "a weight, 8192 bytes", "scales, 4 bytes", "out, 1024 bytes",
						   "at multiples of 256"};
		struct backend_device *d = open_device(&plain);
		char *at = plain.alloc(d, 1 << 13);
		struct backend_weight w = {.data = at, .scale = at, .dtype = DTYPE_F8_E4M3, .rows = 64, .cols = 64};
		struct backend_expert e = {.gate = w, .up = w, .down = w, .n = 4};
		float *out = plain.alloc(d, 4 * 64 * sizeof *out);

		if (i == 1)
			e.up = (struct backend_weight){.data = at + 256, .dtype = DTYPE_BF16, .rows = 64, .cols = 64};
		if (i == 2)
			e.down.scale = NULL;
		if (i == 4)
			e.gate.data = at + 128;
		plain.experts(d, i == 3 ? out + 1 : out, out, out, NULL, &e, 1, N_FAULTY);
		if (says[i])
			has_failed(&plain, d, says[i]);
		else
			all_is_well(&plain, d);
		plain.wait(d, plain.mark(d, BACKEND_COMPUTE));
		has_failed(&plain, d, says[i] ? says[i] : "no such kernel");
		plain.close(d);
	}
}

static void failures_come_when_they_are_asked_for(void **state)
{
	struct backend_device *d;
	struct backend_expert e = {.n = N};
	float x[N] = {0}, out[N_BLOCKS], *there;
	char why[BACKEND_TEXT];

	(void)state;
	setenv("QUIRE_SIM_FAIL", "alloc:2,pin:1", 1);
	d = open_device(&plain);
	assert_non_null(plain.alloc(d, 1));
	assert_null(plain.alloc(d, 1));
	assert_non_null(plain.alloc(d, 1));
	assert_int_equal(plain.pin(d, x, sizeof x, why), -1);
	assert_int_equal(plain.pin(d, x, sizeof x, why), 0);
	plain.unpin(d, x);
	all_is_well(&plain, d);
	plain.close(d);

	setenv("QUIRE_SIM_FAIL", "upload:2", 1);
	d = open_device(&plain);
	there = host_to_device(&plain, d, x, sizeof x);
	all_is_well(&plain, d);
	plain.upload(d, BACKEND_UP, there, x, sizeof x);
	has_failed(&plain, d, "upload 2");
	plain.close(d);

	/* What a failed device gives cannot be believed, and does not hang. */
	setenv("QUIRE_SIM_FAIL", "experts:1", 1);
	d = open_device(&plain);
	there = host_to_device(&plain, d, x, sizeof x);
	plain.experts(d, there, there, there, NULL, &e, 1, SUM);
	has_failed(&plain, d, "experts");
	plain.download(d, BACKEND_COMPUTE, out, there, sizeof out);
	plain.wait(d, plain.mark(d, BACKEND_COMPUTE));
	assert_true(out[0] != out[0]);
	plain.close(d);
}

static void a_launcher_that_refuses_fails_the_device(void **state)
{
	float out[N];
	char why[BACKEND_TEXT];

	(void)state;
	assert_int_equal(run_kernel(&plain, N_FAULTY, out, N, why), -1);
	assert_non_null(strstr(why, "no such kernel"));
}

static void the_libraries_of_the_real_kernels_open_and_copy(void **state)
{
	static const char *const names[] = {"libquire_sim.so", "libquire_simrace.so"};

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct backend b;
		struct backend_device *d;
		float x = 5, y = 0, *there;

		load(&b, names[i]);
		d = open_device(&b);
		there = host_to_device(&b, d, &x, sizeof x);
		b.download(d, BACKEND_DOWN, &y, there, sizeof y);
		b.wait(d, b.mark(d, BACKEND_DOWN));
		all_is_well(&b, d);
		assert_float_equal(y, 5, 0);
		b.close(d);
	}
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup(name, forget_environment)
	const struct CMUnitTest tests[] = {
		CASE(sound_kernels_are_right_and_give_no_report_in_any_order),
		CASE(threads_that_do_not_meet_are_named),
		CASE(races_are_named_in_every_order),
		CASE(memory_that_a_kernel_has_not_been_given_is_named),
		CASE(what_was_never_written_is_nan),
		CASE(marks_make_every_order_right),
		CASE(a_forgotten_mark_is_seen_with_most_seeds),
		CASE(a_seed_is_one_order),
		CASE(a_wait_runs_what_its_mark_needs_and_nothing_more),
		CASE(asking_often_enough_gets_everything_done),
		CASE(a_copy_in_the_wrong_direction_is_a_failure),
		CASE(memory_of_another_device_is_a_failure),
		CASE(memory_freed_before_a_copy_has_run_is_a_failure),
		CASE(there_is_room_for_what_the_memory_holds),
		CASE(what_is_pinned_is_unpinned_once),
		CASE(what_nobody_asked_for_is_printed_at_the_end),
		CASE(experts_that_do_not_fit_their_memory_are_a_failure),
		CASE(failures_come_when_they_are_asked_for),
		CASE(a_launcher_that_refuses_fails_the_device),
		CASE(the_libraries_of_the_real_kernels_open_and_copy),
	};

	return cmocka_run_group_tests(tests, load_both, NULL);
}
