/*
 * Random edits of a directory and re-indexes, each sequence from a seed of its own: what the store holds must be what a
 * cold ingest of the same ordered documents makes, keys, records and logits (tests/support/edits.h). One JSON line. Seeds
 * that failed are named on stderr with what differed.
 *
 *   SEQUENCES=n    as many instead of 1000
 *   SEED=n         the first seed; SEQUENCES=1 SEED=n is one that failed, again
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "config/clock.h"
#include "tests/support/edits.h"
#include "tests/support/environment.h"

enum { STEPS = 5 };

int main(void)
{
	uint64_t n = count_from_environment("SEQUENCES", 1000), seed = count_from_environment("SEED", 1);
	int64_t began = clock_now_ms(), n_failed = 0;
	struct edits_counts counts = {0};
	struct edits_model model;
	struct err err;

	if (edits_model_open(&model, &err)) {
		fprintf(stderr, "edits: %s\n", err.text);
		return 1;
	}
	for (uint64_t i = 0; i < n; i++) {
		if (!edits_run(&model, seed + i, STEPS, &counts, &err))
			continue;
		fprintf(stderr, "edits: %s\nedits: again with SEQUENCES=1 SEED=%" PRIu64 "\n", err.text, seed + i);
		n_failed++;
	}
	printf("{\"soak\":\"edits\",\"sequences\":%" PRIu64 ",\"failed\":%" PRId64 ",\"reindexes\":%" PRId64, n, n_failed,
	       counts.n_reindexes);
	printf(",\"compared\":%" PRId64 ",\"cut_off\":%" PRId64 ",\"others\":%" PRId64, counts.n_compared, counts.n_cut,
	       counts.n_others);
	printf(",\"tokens\":%" PRId64 ",\"kept_tokens\":%" PRId64, counts.n_tokens, counts.kept_tokens);
	for (int i = 0; i < N_EDIT_KINDS; i++)
		printf(",\"%s\":%" PRId64, edit_names[i], counts.n_edits[i]);
	printf(",\"seconds\":%.1f}\n", (double)(clock_now_ms() - began) / 1000);
	edits_model_close(&model);
	return n_failed > 0;
}
