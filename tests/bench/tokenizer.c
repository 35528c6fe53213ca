/*
 * How fast text becomes tokens: this project's own C sources, repeated to 16 MB, one thread. The limit beside it is
 * reading the same bytes once from memory, measured in the same rounds; medians of
 * seven interleaved rounds, in processor time.
 */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <xxhash.h>

#include "config/file.h"
#include "config/mem.h"
#include "engine/tokenizer.h"

enum { TEXT_BYTES = 16 << 20, ROUNDS = 7 };

/* Of this thread alone: what else the machine does should not count. */
static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *x)
{
	qsort(x, ROUNDS, sizeof *x, by_value);
	return x[ROUNDS / 2];
}

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

		if (file_read(&file, &bytes, found.gl_pathv[i], TEXT_BYTES, &err)) {
			fprintf(stderr, "%s\n", err.text);
			exit(1);
		}
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
	struct utsname machine;
	uint64_t sum = 0;

	if (tokenizer_open(&t, "tests/golden/tokenizer/glm.json", &err)) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	for (int round = -1; round < ROUNDS; round++) { /* the first one warms up */
		int r = round < 0 ? 0 : round;
		double start = now();

		sum += XXH3_64bits(text, TEXT_BYTES);
		read_s[r] = now() - start;
		ids.n = 0;
		start = now();
		if (tokenizer_encode(t, &ids, text, TEXT_BYTES, 0, &err)) {
			fprintf(stderr, "%s\n", err.text);
			return 1;
		}
		encode_s[r] = now() - start;
	}
	uname(&machine);
	speed = TEXT_BYTES / median(encode_s) / 1e6;
	limit = TEXT_BYTES / median(read_s) / 1e6;
	printf("{\"bench\":\"tokenizer\",\"value\":%.1f,\"unit\":\"MB/s\",\"limit\":%.0f,\"fraction\":%.4f,\"tokens\":%zu,"
	       "\"machine\":\"%s %s\",\"check\":\"%016llx\"}\n", speed, limit, speed / limit, ids.n, machine.sysname,
	       machine.machine, (unsigned long long)sum);
	tokenizer_close(t);
	ids_free(&ids);
	free(text);
	return 0;
}
