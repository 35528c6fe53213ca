/* A model's experts find their place by the memory that a machine has; a model that has none there is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "config/mem.h"
#include "daemon/placing.h"
#include "engine/model.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

enum { KB = 1024, MB = 1024 * KB, STEP = 16 * KB };

struct machine {
	char *root, *dir;
	struct config config;
	int64_t routed_bytes;
};

static int set_up(void **state)
{
	struct machine *m = xcalloc(1, sizeof *m);
	struct model *headers;
	struct err err;

	log_set_level(LOG_LEVEL_ERROR);
	m->root = temp_dir_new();
	m->dir = golden_dir("glm52");
	m->config.model.path = m->dir;
	m->config.context.latent_cache_bytes = 64 * KB;
	if (model_open_headers(&headers, m->dir, NULL, &err))
		return -1;
	m->routed_bytes = (int64_t)headers->bytes.routed;
	model_close(headers);
	*state = m;
	return 0;
}

static int tear_down(void **state)
{
	struct machine *m = *state;

	temp_dir_free(m->root);
	free(m->dir);
	free(m);
	return 0;
}

static int place(struct machine *m, int64_t available, int64_t *bytes, struct err *err)
{
	char *text = xasprintf("MemTotal: %lld kB\nMemAvailable: %lld kB\n", (long long)available / KB, (long long)available / KB);
	int rc;

	free(temp_text(m->root, "proc/meminfo", text));
	free(text);
	*bytes = -1;
	rc = placing_make(bytes, &m->config, LATENTS_BF16, m->root, err);
	return rc;
}

/* The least memory with which the model is not refused, to a step. */
static int64_t least(struct machine *m)
{
	int64_t too_little = MB, enough = (int64_t)1 << 40, bytes;
	struct err err;

	while (enough - too_little > STEP) {
		int64_t middle = too_little + (enough - too_little) / 2;

		*(place(m, middle, &bytes, &err) ? &too_little : &enough) = middle;
	}
	return enough;
}

static void with_little_memory_the_model_is_refused_with_the_numbers(void **state)
{
	struct machine *m = *state;
	struct err err = {0};
	int64_t bytes;

	assert_int_equal(place(m, MB, &bytes, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, m->dir));
	assert_non_null(strstr(err.text, " are available; set"));
	assert_non_null(strstr(err.text, "context.max_tokens"));
	assert_non_null(strstr(err.text, "quire plan"));
}

static void a_smaller_context_needs_less(void **state)
{
	struct machine *m = *state;
	int64_t all = least(m);

	m->config.context.max_tokens = 64;
	assert_true(least(m) < all);
}

static void experts_get_what_the_rest_leaves_until_all_are_in_memory(void **state)
{
	struct machine *m = *state;
	int64_t available = least(m), before = -1, bytes = 0;
	int n_tiers = 0;
	struct err err;

	for (; !place(m, available, &bytes, &err) && (bytes || !n_tiers); available += STEP) {
		assert_true(bytes >= before && bytes < 2 * m->routed_bytes);
		before = bytes;
		n_tiers++;
	}
	assert_int_equal(bytes, 0);
	assert_true(n_tiers > 3);
	assert_int_equal(place(m, (int64_t)1 << 40, &bytes, &err), 0);
	assert_int_equal(bytes, 0);
}

static void what_was_said_holds_unless_there_is_no_memory_for_it(void **state)
{
	struct machine *m = *state;
	int64_t available = least(m), bytes;
	struct err err = {0};

	m->config.tiers.host_expert_bytes = 100 * KB;
	assert_int_equal(place(m, (int64_t)1 << 40, &bytes, &err), 0);
	assert_int_equal(bytes, 100 * KB);
	m->config.tiers.host_expert_bytes = m->routed_bytes - KB;
	assert_int_equal(place(m, available, &bytes, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_non_null(strstr(err.text, "tiers.host_experts is "));
}

/* Whoever opens it says what is wrong. */
static void a_model_that_cannot_be_read_is_not_refused_here(void **state)
{
	struct machine *m = *state;
	int64_t bytes;
	struct err err;

	m->config.model.path = "/nowhere";
	assert_int_equal(place(m, (int64_t)1 << 34, &bytes, &err), 0);
	assert_int_equal(bytes, 0);
}

/* Beside a device host memory holds the part that does not fit there, and some that pass through, unless it was said how much it holds. */
static void beside_a_device_host_memory_holds_the_rest(void **state)
{
	struct machine *m = *state;
	int64_t all = m->routed_bytes, passing, most;
	struct model *headers;
	struct err err;

	assert_int_equal(model_open_headers(&headers, m->dir, NULL, &err), 0);
	passing = placing_beside(0, all, headers);
	most = placing_beside(0, 0, headers);
	assert_true(passing > 0);
	assert_int_equal(placing_beside(0, 2 * all, headers), passing);
	assert_int_equal(most, all + passing);
	assert_int_equal(placing_beside(0, all / 4, headers), most - all / 4);
	assert_int_equal(placing_beside(12345, all / 4, headers), 12345);
	model_close(headers);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		CASE(with_little_memory_the_model_is_refused_with_the_numbers),
		CASE(a_smaller_context_needs_less),
		CASE(experts_get_what_the_rest_leaves_until_all_are_in_memory),
		CASE(what_was_said_holds_unless_there_is_no_memory_for_it),
		CASE(a_model_that_cannot_be_read_is_not_refused_here),
		CASE(beside_a_device_host_memory_holds_the_rest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
