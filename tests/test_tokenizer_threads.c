#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "engine/tokenizer.h"

enum { N_THREADS = 3, N_ROUNDS = 20 };

struct work {
	const struct tokenizer *t;
	const char *text;
	size_t bytes;
	struct ids ids;
};

static void *encode_again_and_again(void *arg)
{
	struct work *w = arg;

	for (int i = 0; i < N_ROUNDS; i++) {
		w->ids.n = 0;
		if (tokenizer_encode(w->t, &w->ids, w->text, w->bytes, TOKENIZER_ADDED_TOKENS, NULL))
			w->ids.n = 0;
	}
	return NULL;
}

/* A tokenizer does not change after it is opened, and every call has room of its own. */
static void several_threads_use_one_tokenizer(void **state)
{
	struct work work[N_THREADS] = {0};
	pthread_t threads[N_THREADS];
	struct tokenizer *t;
	struct err err;
	char *text;
	size_t bytes;

	(void)state;
	assert_int_equal(tokenizer_open(&t, "tests/golden/tokenizer/glm.json", &err), 0);
	assert_int_equal(file_read(&text, &bytes, "engine/tokenizer_json.c", 1 << 20, &err), 0);
	for (int i = 0; i < N_THREADS; i++) {
		work[i] = (struct work){.t = t, .text = text, .bytes = bytes};
		assert_int_equal(pthread_create(&threads[i], NULL, encode_again_and_again, &work[i]), 0);
	}
	for (int i = 0; i < N_THREADS; i++)
		pthread_join(threads[i], NULL);
	assert_true(work[0].ids.n > 1000);
	for (int i = 0; i < N_THREADS; i++) {
		assert_int_equal(work[i].ids.n, work[0].ids.n);
		assert_memory_equal(work[i].ids.id, work[0].ids.id, work[0].ids.n * sizeof *work[0].ids.id);
	}
	for (int i = 0; i < N_THREADS; i++)
		ids_free(&work[i].ids);
	free(text);
	tokenizer_close(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(several_threads_use_one_tokenizer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
