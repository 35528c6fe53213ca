/*
 * Packing experts: a directory that is read like the one it was made from, the same bytes every time, and nothing written
 * over or left half done.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config/file.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/checkpoint.h"
#include "engine/numeric.h"
#include "tests/support/packing.h"
#include "tests/support/temp_dir.h"

static const struct pack_options usual = {.n_threads = 2};

static int quiet(void **state)
{
	(void)state;
	log_set_level(LOG_LEVEL_ERROR);
	return 0;
}

static void assert_nearest(const struct weight *packed, const struct weight *source)
{
	assert_int_equal(packed->dtype, DTYPE_INT4);
	for (int32_t r = 0; r < source->rows; r++)
		for (int32_t k = 0; k < source->cols; k++) {
			double step = (double)bf16_to_f32(packed->group_scale[r * (packed->cols / 64) + k / 64]);

			assert_true(fabs(packing_value(packed, r, k) - packing_value(source, r, k)) <= step * .5001);
		}
}

static void assert_same_tensor(const struct tensor *a, const struct tensor *b)
{
	char *x = xmalloc(a->bytes, 1), *y = xmalloc(a->bytes, 1);

	assert_non_null(b);
	assert_string_equal(a->dtype, b->dtype);
	assert_int_equal(a->bytes, b->bytes);
	assert_int_equal(a->n_dims, b->n_dims);
	assert_memory_equal(a->shape, b->shape, (size_t)a->n_dims * sizeof a->shape[0]);
	assert_int_equal(io_read_full(a->file, x, a->offset, a->bytes, NULL), 0);
	assert_int_equal(io_read_full(b->file, y, b->offset, b->bytes, NULL), 0);
	assert_memory_equal(x, y, a->bytes);
	free(x);
	free(y);
}

/* Every routed value is within half a step, every other tensor and file is what it was. */
static void every_expert_is_packed_and_everything_else_is_as_it_was(void **state)
{
	(void)state;
	for (int format = 0; format < 2; format++) {
		struct synth_options o = packing_options(format ? SYNTH_BF16 : SYNTH_FP8);
		char *dir = packing_prepare(&o), *a = temp_path(dir, "a"), *b = temp_path(dir, "b");
		struct checkpoint *before, *after;
		struct pack_report report;
		struct model *source, *packed;
		uint64_t copied = 0;

		free(temp_text(dir, "a/LICENSE", "as you like"));
		report = packing_pack(dir, "a", "b", NULL);
		source = packing_open(dir, "a", NULL);
		packed = packing_open(dir, "b", NULL);
		for (int l = 1; l < 5; l++)
			for (int e = 0; e < 9; e++) {
				const struct expert *x = &packed->layers[l].experts[e], *y = &source->layers[l].experts[e];

				assert_nearest(&x->gate, &y->gate);
				assert_nearest(&x->up, &y->up);
				assert_nearest(&x->down, &y->down);
			}
		assert_int_equal(checkpoint_open(&before, a, NULL), 0);
		assert_int_equal(checkpoint_open(&after, b, NULL), 0);
		for (size_t i = 0; i < before->n_tensors; i++) {
			const struct tensor *t = before->tensors[i];

			if (strstr(t->name, ".mlp.experts.")) {
				assert_null(checkpoint_find(after, t->name));
				continue;
			}
			assert_same_tensor(t, checkpoint_find(after, t->name));
			copied += t->bytes;
		}
		assert_same_tensor(before->tensors[0], checkpoint_find(after, before->tensors[0]->name));
		assert_int_equal(report.n_experts, 36);
		assert_int_equal(report.packed_bytes, 36 * 3 * 192 * 128 * 17 / 32);
		assert_int_equal(packed->bytes.routed, report.packed_bytes);
		assert_int_equal(report.read_bytes, source->bytes.routed);
		assert_int_equal(report.copied_bytes, copied);
		assert_true(report.error > 0.05 && report.error < 0.15 && report.worst_error >= report.error);
		checkpoint_close(before);
		checkpoint_close(after);
		model_close(source);
		model_close(packed);
		for (int i = 0; i < 2; i++) {
			const char *name = i ? "LICENSE" : "tokenizer.json";
			char *x, *y, *from = temp_path(a, name), *to = temp_path(b, name);
			size_t n, m;

			assert_int_equal(file_read(&x, &n, from, 1 << 20, NULL), 0);
			assert_int_equal(file_read(&y, &m, to, 1 << 20, NULL), 0);
			assert_int_equal(n, m);
			assert_memory_equal(x, y, n);
			free(x);
			free(y);
			free(from);
			free(to);
		}
		free(a);
		free(b);
		temp_dir_free(dir);
	}
}

/* Tensors [rows, cols] of all experts of a layer below one another in one, as transformers saves them; those of each gate
 * before those of each up. */
static void stack(struct safetensors_writer *w, int layer, const char *to, const char *const *parts, int n_parts)
{
	struct written_tensor all = {0};
	char *name;

	for (int e = 0; e < 9; e++)
		for (int i = 0; i < n_parts; i++) {
			struct written_tensor *t;

			name = xasprintf("model.layers.%d.mlp.experts.%d.%s", layer, e, parts[i]);
			t = writer_find(w, name);
			snprintf(all.dtype, sizeof all.dtype, "%s", t->dtype);
			all.shape[1] = t->shape[0] * n_parts;
			all.shape[2] = t->shape[1];
			all.data = xrealloc(all.data, all.bytes + t->bytes, 1);
			memcpy(all.data + all.bytes, t->data, t->bytes);
			all.bytes += t->bytes;
			writer_remove(w, name);
			free(name);
		}
	all.shape[0] = 9;
	name = xasprintf("model.layers.%d.mlp.experts.%s", layer, to);
	writer_add(w, name, all.dtype, 3, all.shape, all.data, all.bytes);
	free(name);
	free(all.data);
}

/* FP8 blocks of gate_up lie one matrix below the other, so up's rows begin in the middle of its scales. */
static void stacked_experts_are_packed_like_single_ones(void **state)
{
	static const char *const both[] = {"gate_proj.weight", "up_proj.weight"}, *const down[] = {"down_proj.weight"};
	static const char *const both_scale[] = {"gate_proj.weight_scale_inv", "up_proj.weight_scale_inv"};
	static const char *const down_scale[] = {"down_proj.weight_scale_inv"};
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *from = temp_path(dir, "a/model-00001-of-00001.safetensors"), *to;
	struct safetensors_writer w = {0};

	(void)state;
	packing_copy(dir, "stacked");
	writer_load(&w, from);
	for (int l = 1; l < 5; l++) {
		stack(&w, l, "gate_up_proj", both, 2);
		stack(&w, l, "gate_up_proj_scale_inv", both_scale, 2);
		stack(&w, l, "down_proj", down, 1);
		stack(&w, l, "down_proj_scale_inv", down_scale, 1);
	}
	to = temp_path(dir, "stacked/model.safetensors");
	writer_save(&w, to);
	writer_free(&w);
	packing_pack(dir, "a", "b", NULL);
	packing_pack(dir, "stacked", "c", NULL);
	for (int i = 2; i <= 5; i++) {
		char *x, *y, *b = xasprintf("%s/b/model-0000%d-of-00005.safetensors", dir, i);
		char *c = xasprintf("%s/c/model-0000%d-of-00005.safetensors", dir, i);
		size_t n, m;

		assert_int_equal(file_read(&x, &n, b, 16 << 20, NULL), 0);
		assert_int_equal(file_read(&y, &m, c, 16 << 20, NULL), 0);
		assert_int_equal(n, m);
		assert_memory_equal(x, y, n);
		free(x);
		free(y);
		free(b);
		free(c);
	}
	free(from);
	free(to);
	temp_dir_free(dir);
}

/* It is not run, so nothing of it is changed. */
static void the_mtp_layer_is_copied_with_its_experts(void **state)
{
	static const char *const names[] = {"model.layers.5.eh_proj.weight", "model.layers.5.mlp.experts.0.gate_proj.weight"};
	static const uint16_t values[4] = {0x3f80, 0x4000, 0x4040, 0x4080};
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *path = temp_path(dir, "a/model-00001-of-00001.safetensors"), *to, *b = temp_path(dir, "b");
	struct safetensors_writer w = {0};
	struct checkpoint *files;
	struct model *m;

	(void)state;
	packing_copy(dir, "mtp");
	writer_load(&w, path);
	for (int i = 0; i < 2; i++)
		writer_add(&w, names[i], "BF16", 2, (const int64_t[]){2, 2}, values, sizeof values);
	to = temp_path(dir, "mtp/model.safetensors");
	writer_save(&w, to);
	writer_free(&w);
	packing_pack(dir, "mtp", "b", NULL);
	assert_int_equal(checkpoint_open(&files, b, NULL), 0);
	for (int i = 0; i < 2; i++) {
		const struct tensor *t = checkpoint_find(files, names[i]);
		uint16_t read[4];

		assert_non_null(t);
		assert_int_equal(io_read_full(t->file, read, t->offset, sizeof read, NULL), 0);
		assert_memory_equal(read, values, sizeof read);
	}
	checkpoint_close(files);
	m = packing_open(dir, "b", NULL);
	assert_int_equal(m->bytes.mtp, 2 * sizeof values);
	model_close(m);
	free(path);
	free(to);
	free(b);
	temp_dir_free(dir);
}

/* Names and bytes of a directory's files, to be freed. */
static char *contents(const char *dir, const char *name, size_t *bytes)
{
	char *path = temp_path(dir, name), *all = NULL;
	struct dirent **list;
	int n = scandir(path, &list, NULL, alphasort);

	*bytes = 0;
	for (int i = 0; i < n; i++) {
		char *file = temp_path(path, list[i]->d_name), *text;
		size_t size;

		if (list[i]->d_name[0] != '.') {
			assert_int_equal(file_read(&text, &size, file, 64 << 20, NULL), 0);
			all = xrealloc(all, *bytes + strlen(list[i]->d_name) + size, 1);
			memcpy(all + *bytes, list[i]->d_name, strlen(list[i]->d_name));
			memcpy(all + *bytes + strlen(list[i]->d_name), text, size);
			*bytes += strlen(list[i]->d_name) + size;
			free(text);
		}
		free(file);
		free(list[i]);
	}
	free(list);
	free(path);
	return all;
}

static void packing_twice_and_with_other_threads_gives_the_same_bytes(void **state)
{
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *b, *c;
	size_t b_bytes, c_bytes;

	(void)state;
	packing_pack(dir, "a", "b", &(struct pack_options){.n_threads = 1});
	packing_pack(dir, "a", "c", &(struct pack_options){.n_threads = 3});
	b = contents(dir, "b", &b_bytes);
	c = contents(dir, "c", &c_bytes);
	assert_true(b_bytes > 100000);
	assert_int_equal(b_bytes, c_bytes);
	assert_memory_equal(b, c, b_bytes);
	free(b);
	free(c);
	temp_dir_free(dir);
}

/* What lies in a layer's file begins on a page, and one expert's parts are one read. */
static void an_expert_lies_in_one_piece(void **state)
{
	static const char *const parts[] = {"gate_proj.weight_packed", "gate_proj.weight_scale", "up_proj.weight_packed",
					    "up_proj.weight_scale", "down_proj.weight_packed", "down_proj.weight_scale"};
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *b = temp_path(dir, "b");
	struct checkpoint *files;
	uint64_t end = 0;

	(void)state;
	packing_pack(dir, "a", "b", NULL);
	assert_int_equal(checkpoint_open(&files, b, NULL), 0);
	for (int e = 0; e < 9; e++)
		for (int i = 0; i < 6; i++) {
			char *name = xasprintf("model.layers.3.mlp.experts.%d.%s", e, parts[i]);
			const struct tensor *t = checkpoint_find(files, name);

			assert_non_null(t);
			assert_true(e || i ? t->offset == end : t->offset % 4096 == 0);
			end = t->offset + t->bytes;
			free(name);
		}
	checkpoint_close(files);
	free(b);
	temp_dir_free(dir);
}

/* ---- what is refused, and what is left behind -------------------------------------------------------------------- */

static void assert_refused(const char *dir, const char *from, const char *to, enum err_code code, const char *words)
{
	char *a = temp_path(dir, from), *b = temp_path(dir, to), *work = xasprintf("%s.packing", b);
	bool there = !access(b, F_OK), work_there = !access(work, F_OK);
	struct err err = {0};

	assert_int_equal(model_pack(a, b, &usual, NULL, &err), -1);
	packing_says(&err, code, words);
	assert_int_equal(!access(b, F_OK), there);
	assert_int_equal(!access(work, F_OK), work_there);
	free(a);
	free(b);
	free(work);
}

static void what_is_there_is_not_written_over(void **state)
{
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *b = temp_path(dir, "b"), *work = temp_path(dir, "b.packing");

	(void)state;
	assert_int_equal(mkdir(b, 0777), 0);
	assert_refused(dir, "a", "b", ERR_FAILED, "is there already");
	assert_refused(dir, "a", "b/", ERR_FAILED, "is there already");
	assert_int_equal(rmdir(b), 0);
	assert_int_equal(symlink("nowhere", b), 0);
	assert_refused(dir, "a", "b", ERR_FAILED, "is there already");
	assert_int_equal(unlink(b), 0);
	assert_int_equal(mkdir(work, 0777), 0);
	assert_refused(dir, "a", "b", ERR_BUSY, "or one was interrupted");
	assert_int_equal(rmdir(work), 0);
	assert_refused(dir, "a", "no/where", ERR_NOT_FOUND, "make directory");
	packing_pack(dir, "a", "b/", NULL);
	assert_refused(dir, "b", "c", ERR_USAGE, "its experts are int4 already");
	free(b);
	free(work);
	temp_dir_free(dir);
}

static void models_that_cannot_be_packed_are_refused_with_the_number(void **state)
{
	struct synth_options o = packing_options(SYNTH_BF16);
	char *dir;

	(void)state;
	o.hidden = 200;
	dir = packing_prepare(&o);
	assert_refused(dir, "a", "b", ERR_USAGE, "hidden_size is 200");
	temp_dir_free(dir);
	o = packing_options(SYNTH_FP8);
	o.expert_dim = 96;
	dir = packing_prepare(&o);
	assert_refused(dir, "a", "b", ERR_USAGE, "moe_intermediate_size is 96");
	temp_dir_free(dir);
	o.n_dense_layers = 2;
	o.n_moe_layers = 0;
	dir = packing_prepare(&o);
	assert_refused(dir, "a", "b", ERR_USAGE, "there is nothing to pack");
	temp_dir_free(dir);
}

static void spoil(void *ctx, const struct written_tensor *t, void *data, int64_t rows, int64_t cols)
{
	packing_exact(NULL, t, data, rows, cols);
	if (!strcmp(t->name, ctx))
		((uint16_t *)data)[3 * cols + 17] = 0x7fc0;
}

static void a_weight_that_is_not_finite_is_refused_by_its_tensor(void **state)
{
	static char name[] = "model.layers.3.mlp.experts.4.down_proj.weight";
	struct synth_options o = packing_options(SYNTH_BF16);
	char *dir = packing_prepare(&o);

	(void)state;
	packing_copy(dir, "bad");
	packing_rewrite(dir, "BF16", spoil, name, "bad");
	assert_refused(dir, "bad", "b", ERR_FORMAT, "layer 3, expert 4");
	assert_refused(dir, "bad", "b", ERR_FORMAT, name);
	temp_dir_free(dir);
}

/* A value that only its block's scale makes infinite. */
static void a_scale_that_makes_infinity_is_refused_by_its_tensor(void **state)
{
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *path = temp_path(dir, "a/model-00001-of-00001.safetensors");
	struct safetensors_writer w = {0};

	(void)state;
	writer_load(&w, path);
	((float *)(void *)writer_find(&w, "model.layers.1.mlp.experts.0.gate_proj.weight_scale_inv")->data)[1] = 3e38f;
	writer_save(&w, path);
	writer_free(&w);
	assert_refused(dir, "a", "b", ERR_FORMAT, "layer 1, expert 0: tensor model.layers.1.mlp.experts.0.gate_proj.weight with its "
						  "scale gives a NaN or infinity");
	free(path);
	temp_dir_free(dir);
}

/* A second file with one tensor that nobody knows, as large as the free disk, all of it a hole. */
static void a_disk_too_small_is_refused_with_both_numbers(void **state)
{
	struct synth_options o = packing_options(SYNTH_BF16);
	char *dir = packing_prepare(&o), *one = temp_path(dir, "a/model-00001-of-00001.safetensors"), *hole, *header, *index;
	unsigned long long bytes;
	struct safetensors_writer w = {0};
	char *map = NULL, *next;
	struct statvfs fs;
	uint64_t length;
	int fd;

	(void)state;
	assert_int_equal(statvfs(dir, &fs), 0);
	bytes = (unsigned long long)fs.f_bavail * fs.f_frsize + (64 << 20);
	header = xasprintf("{\"hole\":{\"dtype\":\"U8\",\"shape\":[%llu],\"data_offsets\":[0,%llu]}}", bytes, bytes);
	length = strlen(header);
	hole = temp_file(dir, "a/hole.safetensors", &length, sizeof length);
	fd = open(hole, O_WRONLY | O_APPEND | O_CLOEXEC);
	assert_int_equal(write(fd, header, length), (ssize_t)length);
	if (ftruncate(fd, (off_t)(8 + length + bytes))) {
		print_message("skipped: no file here can be as large as the free disk: %s\n", strerror(errno));
		close(fd);
		skip();
	}
	close(fd);
	writer_load(&w, one);
	for (size_t i = 0; i < w.n_tensors; i++) {
		next = xasprintf("%s\"%s\":\"model-00001-of-00001.safetensors\",", map ? map : "", w.tensors[i].name);
		free(map);
		map = next;
	}
	index = xasprintf("{\"weight_map\":{%s\"hole\":\"hole.safetensors\"}}", map);
	free(temp_text(dir, "a/model.safetensors.index.json", index));
	assert_refused(dir, "a", "b", ERR_TOO_LARGE, "bytes), but ");
	writer_free(&w);
	free(map);
	free(index);
	free(header);
	free(hole);
	free(one);
	temp_dir_free(dir);
}

/* A limit on the size of files stands in for a disk that fills up: the first layer's file cannot be written. */
static void what_was_written_before_an_error_is_removed(void **state)
{
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *a = temp_path(dir, "a"), *b = temp_path(dir, "b"), *work = temp_path(dir, "b.packing");
	int status;
	pid_t child = fork();

	(void)state;
	if (!child) {
		struct rlimit limit = {100000, 100000};
		struct err err = {0};

		signal(SIGXFSZ, SIG_IGN);
		setrlimit(RLIMIT_FSIZE, &limit);
		_exit(model_pack(a, b, &usual, NULL, &err) == -1 && strstr(err.text, "File too large") ? 7 : 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 7);
	assert_int_equal(access(b, F_OK), -1);
	assert_int_equal(access(work, F_OK), -1);
	free(a);
	free(b);
	free(work);
	temp_dir_free(dir);
}

static void die_at(void *ctx, int64_t done, int64_t of)
{
	(void)of;
	if (done == *(int64_t *)ctx)
		kill(getpid(), SIGKILL);
}

static void a_kill_leaves_no_model_but_what_says_so(void **state)
{
	struct synth_options o = packing_options(SYNTH_FP8);
	char *dir = packing_prepare(&o), *a = temp_path(dir, "a"), *b = temp_path(dir, "b");

	(void)state;
	for (int64_t at = 1; at <= 36; at += 35) {
		char *command = xasprintf("rm -r %s.packing", b);
		pid_t child = fork();
		int status;

		if (!child) {
			struct pack_options opt = {.n_threads = 2, .report = die_at, .ctx = &at};

			model_pack(a, b, &opt, NULL, NULL);
			_exit(0);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		assert_int_equal(access(b, F_OK), -1);
		assert_refused(dir, "a", "b", ERR_BUSY, command); /* which is what it says to do */
		assert_int_equal(system(command), 0);
		free(command);
	}
	packing_pack(dir, "a", "b", NULL);
	model_close(packing_open(dir, "b", NULL));
	free(a);
	free(b);
	temp_dir_free(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_expert_is_packed_and_everything_else_is_as_it_was),
		cmocka_unit_test(stacked_experts_are_packed_like_single_ones),
		cmocka_unit_test(the_mtp_layer_is_copied_with_its_experts),
		cmocka_unit_test(packing_twice_and_with_other_threads_gives_the_same_bytes),
		cmocka_unit_test(an_expert_lies_in_one_piece),
		cmocka_unit_test(what_is_there_is_not_written_over),
		cmocka_unit_test(models_that_cannot_be_packed_are_refused_with_the_number),
		cmocka_unit_test(a_weight_that_is_not_finite_is_refused_by_its_tensor),
		cmocka_unit_test(a_scale_that_makes_infinity_is_refused_by_its_tensor),
		cmocka_unit_test(a_disk_too_small_is_refused_with_both_numbers),
		cmocka_unit_test(what_was_written_before_an_error_is_removed),
		cmocka_unit_test(a_kill_leaves_no_model_but_what_says_so),
	};

	return cmocka_run_group_tests_name("pack", tests, quiet, NULL);
}
