/*
 * The bits themselves. One digest per checkpoint, profile and latent format over all logits of its longest case. A change here
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
	uint64_t digests[2][N_LATENT_FORMATS]; /* compute f32, bf16; latents bf16, fp8, f32 */
} expected[] = {
#include "tests/golden/digests.h"
};

enum { DIGESTS_OF_NUMERICS = 1 };

static uint64_t digest_of(struct engine *e, const struct model *m, enum latent_format latents, const struct golden_case *c)
{
	struct golden_run run;
	uint64_t digest;

	golden_run(&run, e, m, latents, c, 0);
	digest = XXH3_64bits(run.logits, (size_t)c->n_ids * (size_t)run.vocab * sizeof(float));
	golden_run_free(&run);
	return digest;
}

static void logits_have_the_bits_that_belong_to_this_numerics(void **state)
{
	int different = 0;

	(void)state;
	assert_int_equal(NUMERICS, DIGESTS_OF_NUMERICS);
	for (size_t k = 0; k < sizeof expected / sizeof expected[0]; k++) {
		char *dir = golden_dir(expected[k].checkpoint);
		struct model *m = NULL;
		struct golden_case *cases;
		int n;

		assert_int_equal(model_open(&m, dir, NULL, NULL), 0);
		cases = golden_load(expected[k].checkpoint, m->config.vocab, &n);
		printf("\t{\"%s\", {", expected[k].checkpoint);
		for (int compute = 0; compute < 2; compute++) {
			struct engine_options opt = {.n_threads = 2, .compute = (enum compute_profile)compute};
			struct engine *e = NULL;

			assert_int_equal(engine_open(&e, &opt, NULL), 0);
			printf(compute ? ", {" : "{");
			for (int latents = 0; latents < N_LATENT_FORMATS; latents++) {
				uint64_t digest = digest_of(e, m, (enum latent_format)latents, &cases[n - 1]);

				printf(latents ? ", 0x%016llx" : "0x%016llx", (unsigned long long)digest);
				different += digest != expected[k].digests[compute][latents];
			}
			printf("}");
			engine_close(e);
		}
		printf("}},\n");
		golden_free(cases, n);
		model_close(m);
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
