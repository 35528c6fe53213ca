/* What an expert takes: points by a clock that the test holds, the processor's own, those of a device that looks at what it is given, and
 * what is kept of them in a file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/file.h"
#include "config/json.h"
#include "config/mem.h"
#include "engine/tune_file.h"
#include "tests/support/temp_dir.h"

/* ---- points ---- */

/* Something that takes base_s + token_s a token; try number disturbed_at takes a second more, and all take three times as long until
 * busy_s are spent. */
struct clockwork {
	double base_s, token_s, busy_s, spent_s;
	int tries, disturbed_at, fails_at;
	int64_t most;
};

static int tick(void *ctx, int64_t n, double *seconds, struct err *err)
{
	struct clockwork *c = ctx;

	c->tries++;
	c->most = n > c->most ? n : c->most;
	*seconds = c->base_s + c->token_s * (double)n + (c->tries == c->disturbed_at ? 1 : 0);
	*seconds *= c->spent_s < c->busy_s ? 3 : 1;
	c->spent_s += *seconds;
	return c->tries == c->fails_at ? err_set(err, ERR_FAILED, "a spring broke") : 0;
}

static void each_point_is_what_it_took(void **state)
{
	struct clockwork c = {.base_s = .001, .token_s = 1e-6};
	double s[COST_POINTS];
	struct err err;

	(void)state;
	assert_int_equal(tune_points(s, tick, &c, &err), 0);
	for (int i = 0; i < COST_POINTS; i++)
		assert_float_equal(s[i], .001 + 1e-6 * (1 << i), 1e-12);
	assert_int_equal(c.most, 512);
	assert_true(c.spent_s < .1);
}

/* 4 ms a token: 128 tokens take .512 s, more than is worth measuring; 256 and 512 are in proportion to that. */
static void what_takes_long_is_continued_in_proportion(void **state)
{
	struct clockwork c = {.token_s = .004};
	double s[COST_POINTS];
	struct err err;

	(void)state;
	assert_int_equal(tune_points(s, tick, &c, &err), 0);
	assert_int_equal(c.most, 128);
	assert_float_equal(s[7], .512, 1e-9);
	assert_float_equal(s[8], 1.024, 1e-9);
	assert_float_equal(s[9], 2.048, 1e-9);
	assert_true(c.spent_s < 1.5);
}

static void a_disturbed_try_is_no_point(void **state)
{
	struct err err;

	(void)state;
	for (int at = 1; at <= 60; at++) {
		struct clockwork c = {.base_s = .001, .token_s = 1e-6, .disturbed_at = at};
		double s[COST_POINTS];

		assert_int_equal(tune_points(s, tick, &c, &err), 0);
		for (int i = 0; i < COST_POINTS; i++)
			assert_float_equal(s[i], .001 + 1e-6 * (1 << i), 1e-12);
	}
	/* Points that are tried once, or twice: that they are far from the one before them, or behind them, tells. */
	for (int at = 1; at <= 20; at++) {
		struct clockwork c = {.token_s = .0005, .disturbed_at = at};
		double s[COST_POINTS];

		assert_int_equal(tune_points(s, tick, &c, &err), 0);
		for (int i = 0; i < 7; i++)
			assert_float_equal(s[i], .0005 * (1 << i), 1e-12);
	}
}

/* One of an H100 was .495 ms once, and .13 to .18 otherwise. */
static void a_few_busy_milliseconds_are_no_point(void **state)
{
	struct clockwork c = {.base_s = .00015, .token_s = 1e-7, .busy_s = .003};
	double s[COST_POINTS];
	struct err err;

	(void)state;
	assert_int_equal(tune_points(s, tick, &c, &err), 0);
	for (int i = 0; i < COST_POINTS; i++)
		assert_float_equal(s[i], .00015 + 1e-7 * (1 << i), 1e-12);
	assert_true(c.spent_s < .1);
}

static void what_fails_is_said(void **state)
{
	struct err err;

	(void)state;
	for (int at = 1; at <= 10; at++) {
		struct clockwork c = {.base_s = .05, .fails_at = at};
		double s[COST_POINTS];

		assert_int_equal(tune_points(s, tick, &c, &err), -1);
		assert_string_equal(err.text, "a spring broke");
		assert_int_equal(c.tries, at);
	}
}

/* ---- the processor ---- */

static struct engine *open_engine(enum compute_profile compute)
{
	const struct engine_options opt = {.n_threads = 2, .compute = compute};
	struct engine *e;
	struct err err;

	if (engine_open(&e, &opt, &err))
		fail_msg("%s", err.text);
	return e;
}

static struct model *open_model(const char *name)
{
	char *dir = xasprintf("tests/golden/%s", name);
	struct model *m;
	struct err err;

	if (model_open_headers(&m, dir, NULL, &err))
		fail_msg("%s", err.text);
	free(dir);
	return m;
}

static void every_format_is_measured_on_the_processor(void **state)
{
	(void)state;
	for (int compute = COMPUTE_F32; compute <= COMPUTE_BF16; compute++) {
		struct engine *e = open_engine((enum compute_profile)compute);

		for (int dtype = 0; dtype < N_DTYPES; dtype++) {
			const struct tune_shape shape = {(enum dtype)dtype, 192, 64};
			struct cost c;
			struct err err;

			if (tune_measure(&c, e, &shape, NULL, &err))
				fail_msg("%s: %s", dtype_name(shape.dtype), err.text);
			assert_int_equal(cost_check(&c, &err), 0);
			assert_false(cost_has_device(&c));
			for (int i = 0; i + 1 < COST_POINTS; i++)
				assert_true(c.host_s[i] <= c.host_s[i + 1]);
			assert_true(c.host_s[9] > 2 * c.host_s[0]); /* 512 tokens are not one */
			assert_true(c.host_s[9] < 1);
		}
		engine_close(e);
	}
}

static void the_shape_is_that_of_the_models_experts(void **state)
{
	struct model *m = open_model("glm52-fp8");
	struct tune_shape s;
	struct err err;

	(void)state;
	assert_int_equal(tune_shape_of(&s, m, &err), 0);
	assert_int_equal(s.dtype, DTYPE_F8_E4M3);
	assert_int_equal(s.hidden, 160);
	assert_int_equal(s.dim, 36);
	for (int32_t i = 0; i < m->config.n_layers; i++)
		m->config.layer_is_dense[i] = true;
	assert_int_equal(tune_shape_of(&s, m, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_non_null(strstr(err.text, "glm52-fp8 has no routed experts"));
	model_close(m);
}

/* ---- a device ---- */

enum { BLOCKS = 16 };

/* Memory of the host that counts as a device's. What is put into a queue is done at once, and looked at: copies stay in what was taken, and
 * experts are what was uploaded. */
struct backend_device {
	struct {
		char *p;
		size_t bytes;
	} blocks[BLOCKS];
	const void *pinned[BLOCKS];
	size_t room, last;             /* bytes that can be taken; that were taken last */
	int64_t marks;
	int n_experts, n_checks, fails_at, n_pins_refused;
	bool pins;
	const struct tune_shape *shape;
};

static void *fake_alloc(struct backend_device *d, size_t bytes)
{
	void *p;

	if (bytes > d->room || posix_memalign(&p, BACKEND_ALIGN, bytes))
		return NULL;
	for (int i = 0; i < BLOCKS; i++) {
		if (d->blocks[i].p)
			continue;
		d->blocks[i].p = p;
		d->blocks[i].bytes = bytes;
		d->room -= bytes;
		d->last = bytes;
		return p;
	}
	fail_msg("more than %d blocks", BLOCKS);
	return NULL;
}

static void fake_free(struct backend_device *d, void *p)
{
	for (int i = 0; i < BLOCKS; i++) {
		if (!p || d->blocks[i].p != p)
			continue;
		d->room += d->blocks[i].bytes;
		d->blocks[i].p = NULL;
		free(p);
		return;
	}
	assert_null(p);
}

static void assert_there(const struct backend_device *d, const void *p, size_t bytes)
{
	for (int i = 0; i < BLOCKS; i++)
		if (d->blocks[i].p && (const char *)p >= d->blocks[i].p && (const char *)p + bytes <= d->blocks[i].p + d->blocks[i].bytes)
			return;
	fail_msg("%zu bytes at %p are not the device's", bytes, p);
}

static int fake_pin(struct backend_device *d, void *host, size_t bytes, char *why)
{
	assert_true(bytes > 0);
	if (!d->pins) {
		d->n_pins_refused++;
		snprintf(why, BACKEND_TEXT, "no more than 64 KiB");
		return -1;
	}
	for (int i = 0; i < BLOCKS; i++) {
		if (d->pinned[i])
			continue;
		d->pinned[i] = host;
		return 0;
	}
	fail();
	return -1;
}

static void fake_unpin(struct backend_device *d, void *host)
{
	for (int i = 0; i < BLOCKS; i++) {
		if (d->pinned[i] != host)
			continue;
		d->pinned[i] = NULL;
		return;
	}
	fail_msg("what was not pinned is unpinned");
}

static void fake_upload(struct backend_device *d, enum backend_queue q, void *to, const void *from, size_t bytes)
{
	assert_int_equal(q, BACKEND_UP);
	assert_there(d, to, bytes);
	memcpy(to, from, bytes);
}

static void fake_download(struct backend_device *d, enum backend_queue q, void *to, const void *from, size_t bytes)
{
	assert_int_equal(q, BACKEND_DOWN);
	assert_there(d, from, bytes);
	memcpy(to, from, bytes);
}

static int64_t fake_mark(struct backend_device *d, enum backend_queue q)
{
	assert_in_range(q, 0, N_BACKEND_QUEUES - 1);
	return ++d->marks;
}

static void fake_after(struct backend_device *d, enum backend_queue q, int64_t mark)
{
	assert_in_range(q, 0, N_BACKEND_QUEUES - 1);
	assert_true(mark > 0 && mark <= d->marks);
}

static void fake_wait(struct backend_device *d, int64_t mark)
{
	assert_true(mark > 0 && mark <= d->marks);
}

static void assert_weight(const struct backend_device *d, const struct backend_weight *w, int32_t rows, int32_t cols)
{
	const struct weight like = {.dtype = (enum dtype)w->dtype, .rows = w->rows, .cols = w->cols};
	size_t bytes = (size_t)w->rows * weight_row_bytes(&like), scale_bytes = weight_full_bytes(&like) - bytes;

	assert_int_equal(w->dtype, d->shape->dtype);
	assert_int_equal(w->rows, rows);
	assert_int_equal(w->cols, cols);
	assert_int_equal((uintptr_t)w->data % BACKEND_ALIGN, 0);
	assert_there(d, w->data, bytes);
	assert_false(weight_any_not_finite(w->data, (size_t)rows * (size_t)cols, like.dtype));
	assert_int_equal(w->scale != NULL, scale_bytes > 0);
	if (!scale_bytes)
		return;
	assert_int_equal((uintptr_t)w->scale % BACKEND_ALIGN, 0);
	assert_there(d, w->scale, scale_bytes);
	if (like.dtype == DTYPE_INT4)
		assert_int_equal(((const uint16_t *)w->scale)[scale_bytes / 2 - 1], 0x3f80);
	else
		assert_true(((const float *)w->scale)[scale_bytes / 4 - 1] == 1);
}

static void fake_experts(struct backend_device *d, float *out, float *gate, const void *x, const int32_t *rows,
			 const struct backend_expert *e, int n, int profile)
{
	size_t tokens = (size_t)e->n, hidden = (size_t)d->shape->hidden, dim = (size_t)d->shape->dim;

	assert_int_equal(n, 1);
	assert_int_equal(e->first, 0);
	assert_null(rows);
	assert_weight(d, &e->gate, d->shape->dim, d->shape->hidden);
	assert_weight(d, &e->up, d->shape->dim, d->shape->hidden);
	assert_weight(d, &e->down, d->shape->hidden, d->shape->dim);
	assert_there(d, x, tokens * hidden * (profile == COMPUTE_BF16 ? 2 : 4));
	assert_there(d, gate, tokens * dim * sizeof *gate);
	assert_there(d, out, tokens * hidden * sizeof *out);
	d->n_experts++;
}

static int fake_check(struct backend_device *d, char *why)
{
	if (++d->n_checks != d->fails_at)
		return 0;
	snprintf(why, BACKEND_TEXT, "a wire broke");
	return -1;
}

static const struct backend fake = {
	.abi = BACKEND_ABI, .bytes = sizeof fake, .kind = "fake", .alloc = fake_alloc, .free = fake_free, .pin = fake_pin, .unpin = fake_unpin,
	.upload = fake_upload, .download = fake_download, .mark = fake_mark, .after = fake_after, .wait = fake_wait,
	.experts = fake_experts, .check = fake_check,
};

static int measure_fake(struct cost *c, struct backend_device *d, enum compute_profile compute, struct err *err)
{
	struct accelerator a = {.api = &fake, .d = d, .info.name = "A Fake", .name = "fake:0"};
	struct engine *e = open_engine(compute);
	int rc = tune_measure(c, e, d->shape, &a, err);

	for (int i = 0; i < BLOCKS; i++) {
		assert_null(d->blocks[i].p);
		assert_null(d->pinned[i]);
	}
	engine_close(e);
	return rc;
}

static void every_format_is_measured_on_a_device(void **state)
{
	(void)state;
	for (int dtype = 0; dtype < N_DTYPES; dtype++) {
		const struct tune_shape shape = {(enum dtype)dtype, 72, 40};
		struct backend_device d = {.room = (size_t)1 << 30, .pins = true, .shape = &shape};
		struct cost c;
		struct err err;

		if (measure_fake(&c, &d, dtype % 2 ? COMPUTE_BF16 : COMPUTE_F32, &err))
			fail_msg("%s: %s", dtype_name(shape.dtype), err.text);
		assert_int_equal(cost_check(&c, &err), 0);
		assert_true(cost_has_device(&c));
		assert_true(d.n_experts >= COST_POINTS);
	}
}

/* As many experts as there is room for are there, one at least; without that it is said. */
static void a_device_with_little_room_gets_fewer_experts(void **state)
{
	const struct tune_shape shape = {DTYPE_F8_E4M3, 64, 48};
	size_t beside = COST_LAST * (64 * 2 + 48 * 4 + 64 * 4); /* rows, gate, results */
	size_t expert = 3 * (64 * 48 + 256); /* each with a few scales in the next 256 bytes */
	struct backend_device d = {.room = beside + 5 * expert, .pins = true, .shape = &shape};
	struct cost c;
	struct err err;

	(void)state;
	assert_int_equal(measure_fake(&c, &d, COMPUTE_BF16, &err), 0);
	assert_int_equal(d.last, 4 * expert); /* 4096, halved until there is room */
	d.room = beside + expert;
	assert_int_equal(measure_fake(&c, &d, COMPUTE_BF16, &err), 0);
	for (size_t room = 0; room < beside + expert; room += room + 40000) {
		d.room = room;
		assert_int_equal(measure_fake(&c, &d, COMPUTE_BF16, &err), -1);
		assert_int_equal(err.code, ERR_TOO_LARGE);
		assert_non_null(strstr(err.text, "fake:0 has no room"));
		assert_int_equal(d.room, room);
	}
}

static void memory_that_cannot_be_pinned_is_no_failure(void **state)
{
	const struct tune_shape shape = {DTYPE_BF16, 64, 32};
	struct backend_device d = {.room = (size_t)1 << 30, .shape = &shape};
	struct cost c;
	struct err err;

	(void)state;
	assert_int_equal(measure_fake(&c, &d, COMPUTE_BF16, &err), 0);
	assert_int_equal(d.n_pins_refused, 3);
}

static void a_device_that_fails_ends_the_measurement(void **state)
{
	const struct tune_shape shape = {DTYPE_BF16, 64, 32};

	(void)state;
	for (int at = 1; at < 40; at += at) {
		struct backend_device d = {.room = (size_t)1 << 30, .pins = true, .fails_at = at, .shape = &shape};
		struct cost c;
		struct err err;

		assert_int_equal(measure_fake(&c, &d, COMPUTE_BF16, &err), -1);
		assert_int_equal(d.n_checks, at);
		assert_string_equal(err.text, "measure what an expert takes: device fake:0: a wire broke");
	}
}

/* ---- the file ---- */

static struct tune_key a_key(void)
{
	return (struct tune_key){.device = "A Device", .host = "a processor, 2 threads, avx2",
				 .shape = {DTYPE_F8_E4M3, 6144, 2048}, .compute = COMPUTE_BF16};
}

static struct tuned times(double s)
{
	struct tuned t = {.cost.upload_s = s / 3, .made = "2026-11-27T01:35:02Z"};

	for (int i = 0; i < COST_POINTS; i++) {
		t.cost.host_s[i] = s * (i + 1);
		t.cost.device_s[i] = s / 7 * (i + 1);
	}
	return t;
}

static void assert_same(const struct tuned *a, const struct tuned *b)
{
	assert_memory_equal(&a->cost, &b->cost, sizeof a->cost); /* to the last bit */
	assert_string_equal(a->made, b->made);
}

static void what_was_saved_is_found_by_all_of_its_key(void **state)
{
	char *dir = temp_dir_new(), *path = temp_path(dir, "store/" TUNE_FILE_NAME);
	struct tune_key keys[8];
	struct tuned saved[8], t;
	struct err err;

	(void)state;
	for (int i = 0; i < 8; i++)
		keys[i] = a_key();
	strcpy(keys[1].device, "Another");
	strcpy(keys[2].device, "");
	strcpy(keys[3].host, "a processor, 4 threads, avx2");
	keys[4].shape.dtype = DTYPE_INT4;
	keys[5].shape.hidden = 2048;
	keys[6].shape.dim = 1024;
	keys[7].compute = COMPUTE_F32;
	for (int i = 0; i < 8; i++) {
		saved[i] = times(.001 * (i + 1));
		if (!*keys[i].device)
			memset(saved[i].cost.device_s, 0, sizeof saved[i].cost.device_s), saved[i].cost.upload_s = 0;
		assert_false(tune_load(&t, &keys[i], path));
		assert_int_equal(tune_save(&saved[i], &keys[i], path, &err), 0);
	}
	for (int i = 0; i < 8; i++) {
		assert_true(tune_load(&t, &keys[i], path));
		assert_same(&t, &saved[i]);
	}
	/* Measured again, it takes the place of what there was. */
	saved[0] = times(7);
	assert_int_equal(tune_save(&saved[0], &keys[0], path, &err), 0);
	assert_true(tune_load(&t, &keys[0], path));
	assert_same(&t, &saved[0]);
	assert_true(tune_load(&t, &keys[7], path));
	assert_same(&t, &saved[7]);
	free(path);
	temp_dir_free(dir);
}

static void the_file_keeps_the_newest_entries(void **state)
{
	char *dir = temp_dir_new(), *path = temp_path(dir, TUNE_FILE_NAME);
	struct tune_key key = a_key();
	struct tuned t = times(1);
	struct err err;
	json_t *root;

	(void)state;
	for (int i = 0; i < TUNE_ENTRIES + 3; i++) {
		key.shape.dim = 100 + i;
		assert_int_equal(tune_save(&t, &key, path, &err), 0);
	}
	assert_int_equal(json_read(&root, path, 1 << 20, &err), 0);
	assert_int_equal(json_array_size(json_object_get(root, "entries")), TUNE_ENTRIES);
	assert_int_equal(json_integer_value(json_object_get(root, "version")), 1);
	assert_int_equal(strlen(json_string_value(json_object_get(root, "made"))), 20);
	json_decref(root);
	assert_true(tune_load(&t, &key, path));
	key.shape.dim = 102;
	assert_false(tune_load(&t, &key, path));
	key.shape.dim = 103;
	assert_true(tune_load(&t, &key, path));
	free(path);
	temp_dir_free(dir);
}

/* What was logged while fn ran. */
static char *logged(bool (*fn)(struct tuned *t, const struct tune_key *key, const char *path), struct tuned *t,
		    const struct tune_key *key, const char *path, bool *result)
{
	FILE *f = tmpfile();
	int old = dup(2);
	char *text = xcalloc(4096, 1);

	fflush(stderr);
	dup2(fileno(f), 2);
	*result = fn(t, key, path);
	fflush(stderr);
	dup2(old, 2);
	close(old);
	rewind(f);
	text[fread(text, 1, 4095, f)] = '\0';
	fclose(f);
	return text;
}

/* The last character of the first place that says so. */
static void replace(char *text, const char *what, char with)
{
	char *at = strstr(text, what);

	assert_non_null(at);
	at[strlen(what) - 1] = with;
}

static void a_damaged_file_is_named_and_counts_as_none(void **state)
{
	static const struct {
		const char *what;
		char with;
		const char *word; /* of the warning; NULL: none, it is an entry of another key */
	} bad[] = {
		{"{", '[', ""},                          /* no JSON */
		{"\"version\"", ' ', ""},
		{": 1,", '-', ""},
		{"\"version\": 1", '2', "version 2"},
		{"entries", 'x', "entries is not a list"},
		{"device_s", 'x', "device_s is not a list of 10 numbers"},
		{"upload_s", 'x', "upload_s is no time"},
		{"host_s", 'x', "host_s is not a list of 10 numbers"},
		{"0.001", '0', "no measurement gives"},
		{"A Device", 'B', NULL},
		{"F8_E4M3", 'G', NULL},
		{"6144", '7', NULL},
	};
	char *dir = temp_dir_new(), *path = temp_path(dir, TUNE_FILE_NAME), *good;
	struct tune_key key = a_key();
	struct tuned saved = times(.001), t;
	struct err err;
	size_t bytes;

	(void)state;
	assert_int_equal(tune_save(&saved, &key, path, &err), 0);
	assert_int_equal(file_read(&good, &bytes, path, 1 << 20, &err), 0);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		char *text = xstrdup(good), *said;
		bool found;

		replace(text, bad[i].what, bad[i].with);
		free(temp_file(dir, TUNE_FILE_NAME, text, bytes));
		said = logged(tune_load, &t, &key, path, &found);
		assert_false(found);
		if (!bad[i].word)
			assert_string_equal(said, "");
		else if (!strstr(said, "measured anew") || !strstr(said, path) || !strstr(said, bad[i].word))
			fail_msg("%s for %c: \"%s\"", bad[i].what, bad[i].with, said);
		free(said);
		free(text);
	}
	/* Cut anywhere, it is none; and what is saved into it is whole. */
	for (size_t n = 0; n < bytes; n += 7) {
		bool found;

		free(temp_file(dir, TUNE_FILE_NAME, good, n));
		free(logged(tune_load, &t, &key, path, &found));
		assert_false(found);
	}
	assert_int_equal(tune_save(&saved, &key, path, &err), 0);
	assert_true(tune_load(&t, &key, path));
	assert_same(&t, &saved);
	free(good);
	free(path);
	temp_dir_free(dir);
}

static void what_is_known_is_not_measured_again(void **state)
{
	char *dir = temp_dir_new(), *path = temp_path(dir, TUNE_FILE_NAME);
	struct engine *e = open_engine(COMPUTE_BF16);
	struct model *m = open_model("glm52-fp8");
	struct tune_key key;
	struct tuned t, known = times(.5);
	struct cost c;
	struct err err;

	(void)state;
	assert_int_equal(tune_get(&c, e, m, NULL, "A \x1b[1m \xff processor", path, &err), 0);
	assert_int_equal(cost_check(&c, &err), 0);
	assert_int_equal(tune_key_of(&key, e, m, NULL, "A \x1b[1m \xff processor", &err), 0);
	assert_true(tune_load(&t, &key, path));
	assert_memory_equal(&t.cost, &c, sizeof c);
	assert_string_equal(key.device, "");
	assert_non_null(strstr(key.host, "2 threads, "));

	memset(known.cost.device_s, 0, sizeof known.cost.device_s);
	known.cost.upload_s = 0;
	assert_int_equal(tune_save(&known, &key, path, &err), 0);
	assert_int_equal(tune_get(&c, e, m, NULL, "A \x1b[1m \xff processor", path, &err), 0);
	assert_memory_equal(&c, &known.cost, sizeof c);
	/* Of another processor it is not known; and a place where nothing can be kept is no failure. */
	assert_int_equal(tune_get(&c, e, m, NULL, NULL, "/proc/no/such/" TUNE_FILE_NAME, &err), 0);
	assert_true(c.host_s[0] < known.cost.host_s[0]);
	assert_int_equal(tune_save(&known, &key, "/proc/no/such/" TUNE_FILE_NAME, &err), -1);
	model_close(m);
	engine_close(e);
	free(path);
	temp_dir_free(dir);
}

/* With kernels, queues and copies as on a GPU, all of it by the processor (tests/sim): whatever it takes, it is measured and found again. */
static void a_simulated_device_is_measured_and_known_by_its_name(void **state)
{
	char *dir = temp_dir_new(), *path = temp_path(dir, TUNE_FILE_NAME);
	struct engine *e = open_engine(COMPUTE_BF16);
	struct model *m = open_model("glm52");
	struct accelerator *a;
	struct tune_key key;
	struct tuned t, known = times(.5);
	struct cost c;
	struct err err;

	(void)state;
	unsetenv("QUIRE_BACKENDS"); /* its library is beside this program */
	if (accelerator_open(&a, "sim:0", &err))
		fail_msg("%s", err.text);
	if (tune_get(&c, e, m, a, NULL, path, &err))
		fail_msg("%s", err.text);
	assert_true(cost_has_device(&c));
	assert_true(c.device_s[9] > c.device_s[0]);
	assert_int_equal(cost_break_even(&c), 0); /* fibers are no match for vectors */
	assert_int_equal(tune_key_of(&key, e, m, a, NULL, &err), 0);
	assert_string_equal(key.device, a->info.name);
	assert_true(tune_load(&t, &key, path));
	assert_memory_equal(&t.cost, &c, sizeof c);

	assert_int_equal(tune_save(&known, &key, path, &err), 0);
	assert_int_equal(tune_get(&c, e, m, a, NULL, path, &err), 0);
	assert_memory_equal(&c, &known.cost, sizeof c);
	/* What is known of the processor and this device is not what is known of the processor alone. */
	assert_int_equal(tune_get(&c, e, m, NULL, NULL, path, &err), 0);
	assert_false(cost_has_device(&c));
	accelerator_close(a);
	model_close(m);
	engine_close(e);
	free(path);
	temp_dir_free(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_point_is_what_it_took),
		cmocka_unit_test(what_takes_long_is_continued_in_proportion),
		cmocka_unit_test(a_disturbed_try_is_no_point),
		cmocka_unit_test(a_few_busy_milliseconds_are_no_point),
		cmocka_unit_test(what_fails_is_said),
		cmocka_unit_test(every_format_is_measured_on_the_processor),
		cmocka_unit_test(every_format_is_measured_on_a_device),
		cmocka_unit_test(a_device_with_little_room_gets_fewer_experts),
		cmocka_unit_test(memory_that_cannot_be_pinned_is_no_failure),
		cmocka_unit_test(a_device_that_fails_ends_the_measurement),
		cmocka_unit_test(the_shape_is_that_of_the_models_experts),
		cmocka_unit_test(what_was_saved_is_found_by_all_of_its_key),
		cmocka_unit_test(the_file_keeps_the_newest_entries),
		cmocka_unit_test(a_damaged_file_is_named_and_counts_as_none),
		cmocka_unit_test(what_is_known_is_not_measured_again),
		cmocka_unit_test(a_simulated_device_is_measured_and_known_by_its_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
