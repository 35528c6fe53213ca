/*
 * The bits themselves. One digest per checkpoint and latent format over all logits of its longest case. A change here
 * means that latents in people's stores no longer have the bits a new run would give: it needs a new NUMERICS
 * (engine/engine.h), and then the digests that this program prints. It is also built by another compiler and without
 * optimisation, with the same digests.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <stdio.h>
#include <xxhash.h>

#include "config/mem.h"
#include "tests/support/golden.h"

static const struct {
	const char *checkpoint;
	uint64_t digests[N_LATENT_FORMATS]; /* bf16, fp8, f32 */
} expected[] = {
#include "tests/golden/digests.h"
};

enum { DIGESTS_OF_NUMERICS = 1 };

static void logits_have_the_bits_that_belong_to_this_numerics(void **state)
{
	int different = 0;

	(void)state;
	assert_int_equal(NUMERICS, DIGESTS_OF_NUMERICS);
	for (size_t k = 0; k < sizeof expected / sizeof expected[0]; k++) {
		struct engine_options opt = {.n_threads = 2};
		char *dir = golden_dir(expected[k].checkpoint);
		struct engine *e = NULL;
		struct model *m = NULL;
		struct golden_case *cases;
		int n;

		assert_int_equal(engine_open(&e, &opt, NULL), 0);
		assert_int_equal(model_open(&m, dir, NULL, NULL), 0);
		cases = golden_load(expected[k].checkpoint, m->config.vocab, &n);
		printf("\t{\"%s\", {", expected[k].checkpoint);
		for (int latents = 0; latents < N_LATENT_FORMATS; latents++) {
			struct golden_run run;
			uint64_t digest;

			golden_run(&run, e, m, (enum latent_format)latents, &cases[n - 1], 0);
			digest = XXH3_64bits(run.logits, (size_t)cases[n - 1].n_ids * (size_t)run.vocab * sizeof(float));
			golden_run_free(&run);
			printf(latents ? ", 0x%016llx" : "0x%016llx", (unsigned long long)digest);
			different += digest != expected[k].digests[latents];
		}
		printf("}},\n");
		golden_free(cases, n);
		model_close(m);
		engine_close(e);
		free(dir);
	}
	assert_int_equal(different, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(logits_have_the_bits_that_belong_to_this_numerics),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
