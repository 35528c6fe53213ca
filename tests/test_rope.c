/* Angles of the rotary embedding, to the bit, and the two ways of pairing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config/file.h"
#include "engine/model.h"
#include "engine/numeric.h"
#include "engine/ops.h"
#include "engine/pool.h"
#include "tests/support/golden.h"

static void words_equal(const char *line, const float *x, int n)
{
	for (int j = 0; j < n; j++) {
		char *end;

		assert_int_equal(strtoul(line, &end, 16), f32_bits(x[j]));
		line = end;
	}
}

/* rope.txt: float32 products and double functions of them, at positions where products round. */
static void glm52_angles_have_the_reference_bits_at_telling_positions(void **state)
{
	struct rope_config r = {.theta = 8e6, .factor = 1};
	float inv_freq[32], cosine[32], sine[32];
	int n_lines = 0;
	char *text, *save, *line;
	size_t bytes;

	(void)state;
	rope_inv_freq(&r, 64, inv_freq);
	assert_int_equal(file_read(&text, &bytes, "tests/golden/rope.txt", 1 << 20, NULL), 0);
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		int position, at;

		if (!strncmp(line, "inv_freq", 8)) {
			words_equal(line + 8, inv_freq, 32);
		} else if (sscanf(line, "cos %d%n", &position, &at) == 1) {
			rope_cos_sin(inv_freq, 64, position, 1, cosine, sine);
			words_equal(line + at, cosine, 32);
		} else if (sscanf(line, "sin %d%n", &position, &at) == 1) {
			rope_cos_sin(inv_freq, 64, position, 1, cosine, sine);
			words_equal(line + at, sine, 32);
		} else {
			continue;
		}
		n_lines++;
	}
	assert_int_equal(n_lines, 1 + 2 * 7);
	free(text);
}

static void frequencies_of_every_checkpoint_have_the_reference_bits(void **state)
{
	(void)state;
	for (int i = 0; golden_checkpoints[i]; i++) {
		char *dir = golden_dir(golden_checkpoints[i]), path[256], *text;
		struct model_config c;
		float inv_freq[64];
		size_t bytes;

		assert_int_equal(model_config_load(&c, dir, NULL, NULL), 0);
		rope_inv_freq(&c.rope, c.rope_dim, inv_freq);
		snprintf(path, sizeof path, "%s/inv_freq.txt", dir);
		assert_int_equal(file_read(&text, &bytes, path, 1 << 20, NULL), 0);
		words_equal(text, inv_freq, c.rope_dim / 2);
		free(text);
		free(dir);
	}
}

static void a_quarter_turn_takes_the_first_of_a_pair_to_the_second(void **state)
{
	const float cosine[2] = {0, 1}, sine[2] = {1, 0}; /* the first pair turns by 90 degrees, the second stays */
	struct pool *pool = NULL;
	struct device dev;

	(void)state;
	assert_int_equal(pool_new(&pool, 1, NULL), 0);
	device_init(&dev, "cpu", pool);
	for (int isa = 0; isa < 2; isa++) {
		const struct ops *ops = cpu_ops(isa ? NULL : "scalar");
		float pairs[4] = {1, 2, 3, 4}, halves[4] = {1, 2, 3, 4};

		ops->rope(&dev, pairs, 4, 1, 0, 4, cosine, sine, 1, true);
		assert_true(pairs[0] == -2 && pairs[1] == 1 && pairs[2] == 3 && pairs[3] == 4);
		ops->rope(&dev, halves, 4, 1, 0, 4, cosine, sine, 1, false);
		assert_true(halves[0] == -3 && halves[1] == 2 && halves[2] == 1 && halves[3] == 4);
	}
	pool_free(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(glm52_angles_have_the_reference_bits_at_telling_positions),
		cmocka_unit_test(frequencies_of_every_checkpoint_have_the_reference_bits),
		cmocka_unit_test(a_quarter_turn_takes_the_first_of_a_pair_to_the_second),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
