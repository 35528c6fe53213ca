/*
 * How fast text becomes tokens: this project's own C sources, repeated to 16 MB, one thread. The limit beside it is
 * reading the same bytes once from memory, measured in the same rounds; medians of seven interleaved rounds, in
 * processor time of this thread, since what else the machine does should not count.
 */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/tokenizer.h"
#include "tests/support/measure.h"

enum { TEXT_BYTES = 16 << 20, ROUNDS = 7 };

/* All sources, over and over. */
static char *sources(void)
{
	char *text = xmalloc(TEXT_BYTES, 1);
	size_t n = 0;
	glob_t found;

	if (glob("*/*.[ch]", 0, NULL, &found)) {
		fprintf(stderr, "no sources here: run it from the top of the tree\n");
		exit(1);
	}
	for (size_t i = 0; n < TEXT_BYTES; i = (i + 1) % found.gl_pathc) {
		struct err err = {0};
		size_t bytes, part;
		char *file;

		if (file_read(&file, &bytes, found.gl_pathv[i], TEXT_BYTES, &err))
			measure_fail(&err);
		part = bytes < TEXT_BYTES - n ? bytes : TEXT_BYTES - n;
		memcpy(text + n, file, part);
		n += part;
		free(file);
	}
	globfree(&found);
	return text;
}

int main(void)
{
	double encode_s[ROUNDS], read_s[ROUNDS], speed, limit;
	char *text = sources();
	struct tokenizer *t = NULL;
	struct ids ids = {0};
	struct err err = {0};
	uint64_t sum = 0;

	if (tokenizer_open(&t, "tests/golden/tokenizer/glm.json", &err))
		measure_fail(&err);
	for (int round = -1; round < ROUNDS; round++) { /* the first one warms up */
		int r = round < 0 ? 0 : round;
		double start = measure_thread_now();

		sum += XXH3_64bits(text, TEXT_BYTES);
		read_s[r] = measure_thread_now() - start;
		ids.n = 0;
		start = measure_thread_now();
		if (tokenizer_encode(t, &ids, text, TEXT_BYTES, 0, &err))
			measure_fail(&err);
		encode_s[r] = measure_thread_now() - start;
	}
	speed = TEXT_BYTES / measure_median(encode_s, ROUNDS) / 1e6;
	limit = TEXT_BYTES / measure_median(read_s, ROUNDS) / 1e6;
	measure_print(stdout, "tokenizer", speed, "MB/s", limit, "\"tokens\":%zu,\"check\":\"%016llx\"", ids.n,
		      (unsigned long long)sum);
	tokenizer_close(t);
	ids_free(&ids);
	free(text);
	return 0;
}
