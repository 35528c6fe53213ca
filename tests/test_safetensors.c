/* A header is accepted when it describes the file exactly, and refused by a sentence that says where it does not. */
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "config/mem.h"
#include "engine/safetensors.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temp_dir.h"

#define TENSOR(dtype, shape, begin, end) \
	"{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," #end "]}"

static int new_dir(void **state)
{
	*state = temp_dir_new();
	return 0;
}

static int free_dir(void **state)
{
	temp_dir_free(*state);
	return 0;
}

static int parse(struct safetensors *s, const char *header, uint64_t data_bytes, struct err *err)
{
	return safetensors_parse(s, "f", header, strlen(header), data_bytes, err);
}

static void assert_refused(const char *header, uint64_t data_bytes, const char *why)
{
	struct safetensors s = {.file.fd = -1};
	struct err err = {0};

	if (!parse(&s, header, data_bytes, &err)) {
		safetensors_close(&s);
		fail_msg("accepted: %s", header);
	}
	if (!strstr(err.text, why))
		fail_msg("\"%s\" does not say \"%s\"", err.text, why);
	assert_null(s.tensors);
}

static void assert_accepted(const char *header, uint64_t data_bytes, size_t n_tensors)
{
	struct safetensors s = {.file.fd = -1};
	struct err err = {0};

	if (parse(&s, header, data_bytes, &err))
		fail_msg("%s: %s", header, err.text);
	assert_int_equal(s.n_tensors, n_tensors);
	safetensors_close(&s);
}

static void tensors_come_in_the_order_of_their_bytes(void **state)
{
	static const char header[] = " {\"__metadata__\":{\"format\":\"pt\"},\"b\":" TENSOR("BF16", "2,3", 4, 16)
		",\"a\":" TENSOR("F32", "", 0, 4) ",\"odd\":" TENSOR("Q7", "5", 16, 21) "} \n";
	struct safetensors s = {.file.fd = -1};
	struct err err;
	char text[TENSOR_SHAPE_TEXT];

	(void)state;
	assert_int_equal(parse(&s, header, 21, &err), 0);

	assert_int_equal(s.n_tensors, 3);
	assert_string_equal(s.tensors[0].name, "a");
	assert_int_equal(s.tensors[0].n_dims, 0);
	assert_int_equal(s.tensors[0].bytes, 4);
	assert_string_equal(s.tensors[1].name, "b");
	assert_string_equal(tensor_shape_text(text, &s.tensors[1]), "[2, 3]");
	assert_int_equal(s.tensors[1].offset, 8 + strlen(header) + 4);
	assert_string_equal(s.tensors[2].dtype, "Q7"); /* nobody knows it: only who wants it may complain */
	safetensors_close(&s);
}

static void what_is_legal_is_accepted(void **state)
{
	(void)state;
	assert_accepted("{}", 0, 0);
	assert_accepted("{\"__metadata__\":{}}", 0, 0);
	assert_accepted("{\"a\":" TENSOR("F32", "0", 0, 0) "}", 0, 1);
	assert_accepted("{\"a\":" TENSOR("F32", "3,0,5", 0, 0) ",\"b\":" TENSOR("U8", "1", 0, 1) ",\"c\":"
			TENSOR("I64", "0", 1, 1) "}", 1, 3);
	assert_accepted("{\"a\":" TENSOR("F4", "6", 0, 3) "}", 3, 1);
	assert_accepted("{\"a\":" TENSOR("F6_E2M3", "4", 0, 3) "}", 3, 1);
	assert_accepted("{\"a\":" TENSOR("BOOL", "1,1,1,1,1,1,1,1", 0, 1) "}", 1, 1);
}

static void what_is_not_is_refused_by_name(void **state)
{
	static const struct {
		const char *header;
		uint64_t data_bytes;
		const char *why;
	} cases[] = {
		{"[]", 0, "an array, an object is expected"},
		{"1", 0, "'[' or '{' expected"},
		{"{\"a\":1}", 0, "f: tensor a is an integer"},
		{"{", 0, "f:1:1"},
		{"{}x", 0, "end of file expected"},
		{"\xef\xbb\xbf{}", 0, "byte order mark"},
		{"{\"a\xff\":1}", 0, "unable to decode byte 0xff"},
		{"{\"a\\u0000\":1}", 0, "\\u0000"},
		{"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__.a is an integer"},
		{"{\"__metadata__\":[]}", 0, "__metadata__ is an array"},
		{"{\"a\":" TENSOR("U8", "1", 0, 1) ",\"a\":" TENSOR("U8", "1", 0, 1) "}", 1, "duplicate"},
		{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "duplicate"},
		{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":[[[[[[[[]]]]]]]]}}", 1,
		 "unknown member \"x\""},
		{"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype is absent"},
		{"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "shape is absent"},
		{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "data_offsets is not a pair"},
		{"{\"a\":" TENSOR("", "1", 0, 1) "}", 1, "no name of a dtype"},
		{"{\"a\":" TENSOR("ABCDEFGHIJKLMNOP", "1", 0, 1) "}", 1, "no name of a dtype"},
		{"{\"a\":" TENSOR("U8", "1e0", 0, 1) "}", 1, "dimension 0 is a number"},
		{"{\"a\":" TENSOR("U8", "-1", 0, 1) "}", 1, "dimension 0 is -1"},
		{"{\"a\":" TENSOR("U8", "1,1,1,1,1,1,1,1,1", 0, 1) "}", 1, "9 dimensions, at most 8"},
		{"{\"a\":" TENSOR("U8", "18446744073709551617", 0, 1) "}", 1, "too big integer"},
		{"{\"a\":" TENSOR("U8", "1e999", 0, 1) "}", 1, "real number overflow"},
		{"{\"a\":" TENSOR("U8", "4294967296,4294967296", 0, 0) "}", 0, "no whole number of bytes"},
		{"{\"a\":" TENSOR("F32", "9223372036854775807,9223372036854775807,4", 0, 0) "}", 0,
		 "no whole number of bytes"},
		{"{\"a\":" TENSOR("U8", "4294967296,4294967296,0", 0, 0) "}", 0, "no whole number of bytes"},
		{"{\"a\":" TENSOR("F4", "3", 0, 1) "}", 1, "no whole number of bytes"},
		{"{\"a\":" TENSOR("F32", "2", 0, 7) "}", 7, "shape [2] of F32 needs 8 bytes, data_offsets give 7"},
		{"{\"a\":" TENSOR("U8", "1", 1, 0) "}", 1, "run backwards, from 1 to 0"},
		{"{\"a\":" TENSOR("U8", "1", -1, 0) "}", 1, "run backwards, from -1 to 0"},
		{"{\"a\":" TENSOR("U8", "2", 0, 2) "}", 1, "end at byte 2 of the data, but the file holds only 1"},
		{"{\"a\":" TENSOR("U8", "1", 0, 1) "}", 2, "end at byte 1 of the data, but the file goes on to byte 2"},
		{"{\"a\":" TENSOR("U8", "1", 1, 2) "}", 2, "bytes 0 to 1 of the data, before tensor a"},
		{"{\"a\":" TENSOR("U8", "2", 0, 2) ",\"b\":" TENSOR("U8", "2", 1, 3) "}", 3, "tensors a and b overlap"},
		{"{}", 1, "goes on to byte 1"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
		assert_refused(cases[i].header, cases[i].data_bytes, cases[i].why);
}

/* Whether three ranges cover [0, n) exactly, decided byte by byte. */
static bool covers(const uint64_t at[6], uint64_t n)
{
	int count[16] = {0};

	for (int i = 0; i < 6; i += 2) {
		if (at[i] > at[i + 1] || at[i + 1] > n)
			return false;
		for (uint64_t b = at[i]; b < at[i + 1]; b++)
			count[b]++;
	}
	for (uint64_t b = 0; b < n; b++)
		if (count[b] != 1)
			return false;
	/* An empty tensor may stand at any border, and nowhere else. */
	for (int i = 0; i < 6; i += 2)
		for (int j = 0; j < 6; j += 2)
			if (at[i] == at[i + 1] && at[j] < at[i] && at[i] < at[j + 1])
				return false;
	return true;
}

static void three_tensors_at_every_pair_of_boundary_offsets(void **state)
{
	enum { N = 9, CHOICES = 6 };
	static const uint64_t choices[CHOICES] = {0, 1, N - 1, N, N + 1, UINT64_MAX};
	int n_accepted = 0;

	(void)state;
	for (int code = 0; code < CHOICES * CHOICES * CHOICES * CHOICES * CHOICES * CHOICES; code++) {
		struct safetensors s = {.file.fd = -1};
		struct err err;
		uint64_t at[6];
		char header[512] = "{";
		bool accepted;

		for (int i = 0, rest = code; i < 6; i++, rest /= CHOICES)
			at[i] = choices[rest % CHOICES];
		for (int i = 0; i < 6; i += 2)
			snprintf(header + strlen(header), sizeof header - strlen(header),
				 "%s\"%c\":{\"dtype\":\"U8\",\"shape\":[%" PRIu64 "],\"data_offsets\":[%" PRIu64 ",%" PRIu64
				 "]}", i ? "," : "", 'a' + i, at[i + 1] > at[i] ? at[i + 1] - at[i] : 0, at[i], at[i + 1]);
		strcat(header, "}");
		accepted = !parse(&s, header, N, &err);
		if (accepted != covers(at, N))
			fail_msg("%s: %s", header, accepted ? "accepted" : err.text);
		n_accepted += accepted;
		safetensors_close(&s);
	}
	assert_true(n_accepted > 50);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static void assert_file_refused(const char *path, const char *why)
{
	struct safetensors s;
	struct err err = {0};

	if (!safetensors_open(&s, path, &err))
		fail_msg("accepted: %s", path);
	if (!strstr(err.text, why) || !strstr(err.text, path))
		fail_msg("\"%s\" does not say \"%s\" and \"%s\"", err.text, why, path);
	assert_int_equal(s.file.fd, -1);
}

static void a_length_is_compared_with_the_file_before_it_is_believed(void **state)
{
	static const struct {
		uint64_t length;
		const char *why;
	} cases[] = {
		{0, "its header has 0 bytes"},
		{3, "claims 3 bytes, but only 2 follow"},
		{100000000, "claims 100000000 bytes, but only 2 follow"},
		{100000001, "at most 100000000"},
		{(uint64_t)1 << 63, "at most 100000000"},
		{UINT64_MAX, "at most 100000000"},
		{UINT64_MAX - 7, "at most 100000000"},
	};

	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		size_t n;
		unsigned char *bytes = safetensors_raw("{}", 0, &n);
		char *path;

		for (int b = 0; b < 8; b++)
			bytes[b] = (unsigned char)(cases[i].length >> 8 * b);
		path = temp_file(*state, "f", bytes, n);
		assert_file_refused(path, cases[i].why);
		free(path);
		free(bytes);
	}
}

/* Two tensors, a name with an escape and metadata: about every token a header has. */
static unsigned char *small_file(size_t *n)
{
	static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},\"w\\u00e9\":" TENSOR("BF16", "2,3", 0, 12)
		",\"empty\":" TENSOR("F32", "0,7", 12, 12) ",\"s\":" TENSOR("F32", "", 12, 16) ",\"codes\":"
		TENSOR("F8_E4M3", "3000", 16, 3016) "}     ";

	return safetensors_raw(header, 3016, n);
}

static void a_file_cut_at_any_byte_is_refused(void **state)
{
	size_t n;
	unsigned char *bytes = small_file(&n);
	struct safetensors s;
	struct err err;
	char *path;

	for (size_t cut = 0; cut < n; cut++) {
		path = temp_file(*state, "f", bytes, cut);
		assert_file_refused(path, cut == 0 ? "empty" : cut < 8 ? "at least 8" : "truncated");
		free(path);
	}
	path = temp_file(*state, "f", bytes, n);
	assert_int_equal(safetensors_open(&s, path, &err), 0);
	assert_int_equal(s.n_tensors, 4);
	safetensors_close(&s);
	free(path);
	free(bytes);
}

static void a_flipped_bit_of_the_header_is_refused_or_moves_no_byte(void **state)
{
	size_t n;
	unsigned char *bytes = small_file(&n);
	size_t header = n - 3016 - 8;
	int n_refused = 0;

	(void)state;
	for (size_t bit = 0; bit < 8 * header; bit++) {
		struct safetensors s = {.file.fd = -1};
		struct err err;

		bytes[8 + bit / 8] ^= (unsigned char)(1 << bit % 8);
		if (safetensors_parse(&s, "f", (char *)bytes + 8, header, 3016, &err)) {
			n_refused++;
		} else {
			/* Names, metadata and the dtype's letters may differ; where bytes lie may not. */
			uint64_t end = 8 + header;

			for (size_t i = 0; i < s.n_tensors; i++) {
				assert_int_equal(s.tensors[i].offset, end);
				end += s.tensors[i].bytes;
			}
			assert_int_equal(end, n);
		}
		safetensors_close(&s);
		bytes[8 + bit / 8] ^= (unsigned char)(1 << bit % 8);
	}
	assert_true(n_refused > (int)(4 * header));
	free(bytes);
}

static void what_is_no_file_is_refused_by_what_it_is(void **state)
{
	char *dir = temp_path(*state, "d"), *fifo = temp_path(*state, "p"), *gone = temp_path(*state, "gone");

	assert_int_equal(mkdir(dir, 0700), 0);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	assert_file_refused(dir, "is a directory, not a regular file");
	assert_file_refused(fifo, "is a FIFO, not a regular file"); /* and nobody waited for its writer */
	assert_file_refused(gone, "No such file or directory");
	assert_file_refused("/dev/null", "is a device, not a regular file");
	free(dir);
	free(fifo);
	free(gone);
}

static void a_file_that_changes_after_it_was_opened_is_noticed(void **state)
{
	char *path = temp_text(*state, "f", "0123456789");
	struct io_file f;
	struct err err;
	char out[8];

	assert_int_equal(io_open_regular(&f, path, &err), 0);
	assert_int_equal(io_read_full(&f, out, 2, 8, &err), 0);
	assert_memory_equal(out, "23456789", 8);
	assert_int_equal(io_check_unchanged(&f, &err), 0);

	assert_int_equal(truncate(path, 5), 0);
	assert_int_equal(io_read_full(&f, out, 2, 8, &err), -1);
	assert_non_null(strstr(err.text, "the file ends at byte 5, 5 bytes short of the range 2 + 8"));
	assert_int_equal(io_check_unchanged(&f, &err), -1);
	assert_non_null(strstr(err.text, "it had 10 bytes and has 5 now"));

	/* A time of our own: the clock of the file system may not have ticked since the file was opened. */
	assert_int_equal(truncate(path, 10), 0);
	assert_int_equal(utimensat(AT_FDCWD, path, (struct timespec[2]){{1, 0}, {2, 0}}, 0), 0);
	assert_int_equal(io_check_unchanged(&f, &err), -1);
	assert_non_null(strstr(err.text, "modification or change time"));
	assert_int_equal(io_read_full(&f, out, UINT64_MAX - 3, 8, &err), -1);
	io_close(&f);
	free(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensors_come_in_the_order_of_their_bytes),
		cmocka_unit_test(what_is_legal_is_accepted),
		cmocka_unit_test(what_is_not_is_refused_by_name),
		cmocka_unit_test(three_tensors_at_every_pair_of_boundary_offsets),
		cmocka_unit_test_setup_teardown(a_length_is_compared_with_the_file_before_it_is_believed, new_dir, free_dir),
		cmocka_unit_test_setup_teardown(a_file_cut_at_any_byte_is_refused, new_dir, free_dir),
		cmocka_unit_test(a_flipped_bit_of_the_header_is_refused_or_moves_no_byte),
		cmocka_unit_test_setup_teardown(what_is_no_file_is_refused_by_what_it_is, new_dir, free_dir),
		cmocka_unit_test_setup_teardown(a_file_that_changes_after_it_was_opened_is_noticed, new_dir, free_dir),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
