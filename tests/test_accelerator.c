/* Devices by name: what opens a library, and what is said of one that is not there, not of this build, or without devices. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/mem.h"
#include "offload/accelerator.h"
#include "tests/support/temp_dir.h"

/* DIR/NAME beside this program. */
static char *beside(const char *name)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);

	assert_true(n > 0);
	path[n] = '\0';
	*strrchr(path, '/') = '\0';
	return xasprintf("%s/%s", path, name);
}

/* The libraries of tests/backends/fake.c. */
static int setup(void **state)
{
	char *dir = beside("backends");

	(void)state;
	setenv("QUIRE_BACKENDS", dir, 1);
	free(dir);
	return 0;
}

static void assert_refused(const char *name, enum err_code code, const char *words)
{
	struct accelerator *a;
	struct err err = {0};

	assert_int_equal(accelerator_open(&a, name, &err), -1);
	assert_null(a);
	if (err.code != code || !strstr(err.text, words))
		fail_msg("\"%s\" is refused with %s, \"%s\"; wanted %s, \"%s\"", name, err_code_name(err.code), err.text,
			 err_code_name(code), words);
}

static void a_device_opens_by_its_name(void **state)
{
	struct accelerator *a, *other;
	struct err err = {0};

	(void)state;
	assert_int_equal(accelerator_open(&a, "cuda:1", &err), 0);
	assert_int_equal(accelerator_open(&other, "cuda:0", &err), 0);
	assert_string_equal(a->name, "cuda:1");
	assert_string_equal(a->info.name, "Fake 1");
	assert_string_equal(other->info.name, "Fake 0");
	assert_true(a->info.bytes == 80000000000);
	accelerator_close(other);
	accelerator_close(a);
	accelerator_close(NULL);
}

static void a_failure_is_told_with_the_name_of_the_device(void **state)
{
	struct accelerator *a;
	struct err err = {0};

	(void)state;
	assert_int_equal(accelerator_open(&a, "one:0", &err), 0);
	assert_int_equal(accelerator_check(a, &err), 0);
	assert_int_equal(accelerator_check(a, &err), -1);
	assert_int_equal(err.code, ERR_FAILED);
	assert_string_equal(err.text, "device one:0: a fake failure");
	accelerator_close(a);
}

static void what_is_no_name_is_refused(void **state)
{
	static const char *const names[] = {"", ":", "cuda", "cuda:", ":0", "cuda:x", "cuda:-1", "cuda:0x", "cuda:0:1", "cuda: 0",
					    "cuda:12345", "CUDA:0", "0:0", "../cuda:0", "a/b:0", "verylongkind:0"};

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
		assert_refused(names[i], ERR_USAGE, "is no name of a device: they are a kind and a number, as cuda:0");
	assert_refused("cu\nda:0", ERR_USAGE, "'cu\\nda:0'");
}

static void a_library_that_is_not_there_is_named_with_the_places(void **state)
{
	char *dir = temp_dir_new();

	(void)state;
	assert_refused("absent:0", ERR_UNAVAILABLE, "device absent:0: there is no libquire_absent.so in ");
	assert_refused("absent:0", ERR_UNAVAILABLE, "which QUIRE_BACKENDS names");
	setenv("QUIRE_BACKENDS", dir, 1);
	assert_refused("cuda:0", ERR_UNAVAILABLE, "device cuda:0: there is no libquire_cuda.so in ");
	/* Not beside this program, nor where it would be installed. */
	unsetenv("QUIRE_BACKENDS");
	assert_refused("absent:0", ERR_UNAVAILABLE, "its ../lib/quire, or among the system's libraries");
	temp_dir_free(dir);
}

static void a_file_that_is_no_library_is_refused_with_the_linkers_words(void **state)
{
	char *dir = temp_dir_new();

	(void)state;
	free(temp_text(dir, "libquire_text.so", "no library\n"));
	setenv("QUIRE_BACKENDS", dir, 1);
	assert_refused("text:0", ERR_UNAVAILABLE, "libquire_text.so: ");
	temp_dir_free(dir);
}

static void a_library_of_another_build_is_refused_with_both_numbers(void **state)
{
	char *words = xasprintf("version 99 and %zu bytes, and that of this program of version %d and %zu bytes; rebuild both "
				"(make CUDA=1)", sizeof(struct backend), BACKEND_ABI, sizeof(struct backend));

	(void)state;
	assert_refused("abi:0", ERR_MISMATCH, words);
	assert_refused("bytes:0", ERR_MISMATCH, "and 8 bytes, ");
	assert_refused("liar:0", ERR_MISMATCH, "libquire_liar.so has devices of kind 'honest'");
	assert_refused("nosymbol:0", ERR_FORMAT, "libquire_nosymbol.so has no function quire_backend");
	free(words);
}

static void a_device_that_there_is_not_is_refused_with_how_many_there_are(void **state)
{
	(void)state;
	assert_refused("cuda:2", ERR_NOT_FOUND, "device cuda:2: there is no such device: there are 2, cuda:0 to cuda:1");
	assert_refused("one:1", ERR_NOT_FOUND, "there is one, one:0");
	assert_refused("none:0", ERR_UNAVAILABLE, "device none:0: the fake driver has no device");
	assert_refused("unknown:0", ERR_UNAVAILABLE, "device unknown:0: the fake driver has no device");
	assert_refused("shut:1", ERR_FAILED, "device shut:1: device 1 is shut");
}

static void devices_are_counted(void **state)
{
	struct err err = {0};

	(void)state;
	assert_int_equal(accelerator_count("cuda", &err), 2);
	assert_int_equal(err.code, ERR_NONE);
	assert_int_equal(accelerator_count("none", &err), 0);
	assert_string_equal(err.text, "the fake driver has no device");
	assert_int_equal(accelerator_count("unknown", &err), -1);
	assert_int_equal(accelerator_count("absent", &err), -1);
}

/* The library of NVIDIA's devices, where it was built, on a machine that has none: a sentence, and no crash. */
static void without_a_driver_there_is_a_sentence(void **state)
{
	char *dir = beside(".."), *library = beside("../libquire_cuda.so");
	struct accelerator *a = NULL;
	struct err err = {0};
	const char *skipped = NULL;

	(void)state;
	setenv("QUIRE_BACKENDS", dir, 1);
	if (access(library, F_OK))
		skipped = "libquire_cuda.so was not built";
	else if (!accelerator_open(&a, "cuda:0", &err))
		skipped = "this machine has a device that cuda:0 is";
	accelerator_close(a);
	free(library);
	free(dir);
	if (skipped) {
		printf("skipped: %s\n", skipped);
		skip();
	}
	assert_int_equal(err.code, ERR_UNAVAILABLE);
	assert_non_null(strstr(err.text, "device cuda:0: "));
	assert_non_null(strstr(err.text, "NVIDIA driver"));
}

#define CASE(f) cmocka_unit_test_setup(f, setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(a_device_opens_by_its_name),
		CASE(a_failure_is_told_with_the_name_of_the_device),
		CASE(what_is_no_name_is_refused),
		CASE(a_library_that_is_not_there_is_named_with_the_places),
		CASE(a_file_that_is_no_library_is_refused_with_the_linkers_words),
		CASE(a_library_of_another_build_is_refused_with_both_numbers),
		CASE(a_device_that_there_is_not_is_refused_with_how_many_there_are),
		CASE(devices_are_counted),
		CASE(without_a_driver_there_is_a_sentence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
