/*
 * The list of all tensors that will be written is made first, and cut into files, so that every size is known before the
 * disk is touched. Then the files are written one after another: copied tensors, then a layer of experts each. Experts come
 * from the tier (experts.h), which reads the next ones past the page cache while all threads pack one, and leave through a
 * writer whose buffers, more than one expert has, are on their way meanwhile.
 */
#include "engine/pack.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/file.h"
#include "config/json.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/checkpoint.h"
#include "engine/expert_sums.h"
#include "engine/experts.h"
#include "engine/int4.h"
#include "engine/model.h"
#include "engine/ops.h"
#include "engine/pool.h"
#include "engine/shard_writer.h"

enum {
	N_SLOTS = 4,             /* experts of the source in memory */
	PIECE = 4 << 20,         /* of what is copied */
	MAX_CONFIG = 16 << 20,
	MAX_OTHER = 256 << 20,   /* a file beside the weights; what is larger is no part of a model that is read */
	ROWS = 32,               /* packed by a thread at a time: some hundred microseconds */
	N_MATRICES = 3,
	NAME_BYTES = 64,
};

#define INDEX_NAME "model.safetensors.index.json"

static const uint64_t shard_most = 4000000000u; /* bytes of tensors in one file of copies */

/* One tensor that will be written. */
struct output {
	char *name;
	const char *dtype;
	int n_dims;
	int64_t shape[TENSOR_MAX_DIMS];
	uint64_t bytes;
	const struct tensor *source; /* to copy; NULL: of an expert */
};

/* One file. */
struct span {
	size_t first, n;
	int32_t layer;               /* whose experts it has; -1: it has copies */
};

struct matrix {
	int32_t rows, cols;
	uint8_t *codes;              /* where it is packed to, in packer.packed */
	uint16_t *scales;
};

struct packer {
	const char *dir, *out;
	char *work;                  /* the directory that is written */
	const struct pack_options *opt;
	struct model *m;             /* the source */
	struct output *outputs;
	size_t n_outputs, room;
	struct span *spans;
	size_t n_spans;
	char **others;               /* names of files to copy as they are */
	size_t n_others;
	uint64_t other_bytes;
	struct pool *pool;
	const struct ops *ops;
	struct matrix matrices[N_MATRICES]; /* gate, up, down */
	char *packed;                /* one expert, as it lies in the file */
	uint64_t packed_bytes;
	struct int4_error *errors;   /* [rows of the one that has most] */
	int32_t *bad;                /* the same, as int4_pack_row */
	uint64_t *sums;              /* [n_layers, n_experts] */
	struct int4_error whole;
	int64_t n_done, n_all;
	struct pack_report report;
};

/* ---- what will be written ---------------------------------------------------------------------------------------- */

static struct output *add_output(struct packer *p, const char *name, const char *dtype, uint64_t bytes)
{
	struct output *o;

	if (p->n_outputs == p->room) {
		p->room = p->room ? 2 * p->room : 1024;
		p->outputs = xrealloc(p->outputs, p->room, sizeof *p->outputs);
	}
	o = &p->outputs[p->n_outputs++];
	*o = (struct output){.name = xstrdup(name), .dtype = dtype, .bytes = bytes};
	p->spans[p->n_spans - 1].n++;
	return o;
}

static void add_span(struct packer *p, int32_t layer)
{
	p->spans = xrealloc(p->spans, p->n_spans + 1, sizeof *p->spans);
	p->spans[p->n_spans++] = (struct span){.first = p->n_outputs, .layer = layer};
}

/* All tensors but those of routed experts, as they lie in the source's files. */
static void list_copies(struct packer *p)
{
	const struct checkpoint *files = p->m->files;
	bool *routed = xcalloc(files->n_tensors, sizeof *routed);
	uint64_t bytes = 0;

	for (int32_t l = 0; l < p->m->config.n_layers; l++)
		for (int32_t e = 0; e < p->m->config.n_experts; e++) {
			const struct expert_place *place = experts_place(p->m->experts, l, e);

			for (int i = 0; i < place->n_parts; i++)
				routed[checkpoint_index(files, place->parts[i].tensor->name)] = true;
		}
	for (size_t s = 0; s < files->n_shards; s++)
		for (size_t i = 0; i < files->shards[s].n_tensors; i++) {
			const struct tensor *t = &files->shards[s].tensors[i];
			struct output *o;

			if (routed[checkpoint_index(files, t->name)])
				continue;
			if (!p->n_spans || (bytes && bytes + t->bytes > shard_most)) {
				add_span(p, -1);
				bytes = 0;
			}
			o = add_output(p, t->name, t->dtype, t->bytes);
			o->n_dims = t->n_dims;
			memcpy(o->shape, t->shape, sizeof o->shape);
			o->source = t;
			bytes += t->bytes;
			p->report.copied_bytes += t->bytes;
		}
	free(routed);
}

static void list_experts(struct packer *p, int32_t layer)
{
	static const char *const names[N_MATRICES] = {"gate_proj", "up_proj", "down_proj"};

	add_span(p, layer);
	for (int32_t e = 0; e < p->m->config.n_experts; e++)
		for (int i = 0; i < 2 * N_MATRICES; i++) {
			const struct matrix *m = &p->matrices[i / 2];
			char *name = xasprintf("model.layers.%d.mlp.experts.%d.%s.weight_%s", layer, e, names[i / 2],
					       i % 2 ? "scale" : "packed");
			struct output *o = i % 2 ? add_output(p, name, "BF16", int4_scale_bytes(m->rows, m->cols))
						 : add_output(p, name, "I32", int4_code_bytes(m->rows, m->cols));

			o->n_dims = 2;
			o->shape[0] = m->rows;
			o->shape[1] = m->cols / (i % 2 ? INT4_GROUP : 8);
			free(name);
		}
}

/* What is beside the weights: tokenizer, chat template, licence. */
static int list_others(struct packer *p, struct err *err)
{
	DIR *d = opendir(p->dir);
	const struct dirent *entry;

	if (!d)
		return err_errno(err, errno, "open directory %s", p->dir);
	while ((entry = readdir(d))) {
		const char *name = entry->d_name, *ending = strrchr(name, '.');
		struct stat st;

		if (name[0] == '.' || (ending && !strcmp(ending, ".safetensors")) || !strcmp(name, INDEX_NAME) ||
		    !strcmp(name, "config.json") || fstatat(dirfd(d), name, &st, 0) || !S_ISREG(st.st_mode))
			continue;
		if (st.st_size > MAX_OTHER) {
			log_warn("%s/%s is not copied: with its %lld bytes it looks like weights, and quire reads none from it", p->dir,
				 name, (long long)st.st_size);
			continue;
		}
		p->others = xrealloc(p->others, p->n_others + 1, sizeof *p->others);
		p->others[p->n_others++] = xstrdup(name);
		p->other_bytes += (uint64_t)st.st_size;
	}
	closedir(d);
	return 0;
}

static int list_all(struct packer *p, struct err *err)
{
	list_copies(p);
	for (int32_t l = 0; l < p->m->config.n_layers; l++)
		if (p->m->layers[l].experts)
			list_experts(p, l);
	return list_others(p, err);
}

static struct shard_tensor *tensors_of(const struct packer *p, const struct span *s)
{
	struct shard_tensor *t = xcalloc(s->n, sizeof *t);

	for (size_t i = 0; i < s->n; i++) {
		const struct output *o = &p->outputs[s->first + i];

		t[i] = (struct shard_tensor){o->name, o->dtype, o->n_dims, o->shape, o->bytes};
	}
	return t;
}

static int check_space(const struct packer *p, struct err *err)
{
	/* The index has a line a tensor, and every file an end that is no whole block. */
	uint64_t needed = p->other_bytes + 256 * (uint64_t)p->n_outputs + 4096 * (uint64_t)(p->n_spans + p->n_others) + (1 << 20),
		 free_bytes;
	struct statvfs fs;

	for (size_t i = 0; i < p->n_spans; i++) {
		struct shard_tensor *t = tensors_of(p, &p->spans[i]);

		needed += shard_file_bytes(t, p->spans[i].n);
		free(t);
	}
	if (statvfs(p->work, &fs))
		return err_errno(err, errno, "look at the free space of %s", p->work);
	free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (needed <= free_bytes)
		return 0;
	return err_set(err, ERR_TOO_LARGE, "%s: the packed model takes %.1f GB (%" PRIu64 " bytes), but %.1f GB (%" PRIu64 ") are free "
		       "there; free space or name a directory on another disk", p->out, (double)needed / 1e9, needed,
		       (double)free_bytes / 1e9, free_bytes);
}

/* ---- the source -------------------------------------------------------------------------------------------------- */

static int check_source(struct packer *p, struct err *err)
{
	const struct model_config *c = &p->m->config;

	for (int32_t l = 0; l < c->n_layers; l++)
		p->n_all += p->m->layers[l].experts ? c->n_experts : 0;
	if (!p->n_all)
		return err_set(err, ERR_USAGE, "%s has no routed experts: there is nothing to pack", p->dir);
	for (int32_t l = 0; l < c->n_layers; l++)
		for (int32_t e = 0; e < c->n_experts && p->m->layers[l].experts; e++)
			if (p->m->layers[l].experts[e].gate.dtype == DTYPE_INT4)
				return err_set(err, ERR_USAGE, "%s: its experts are int4 already (layer %d, expert %d); pack the "
					       "checkpoint that they were made from", p->dir, l, e);
	if (c->hidden % INT4_GROUP)
		return err_set(err, ERR_USAGE, "%s: hidden_size is %d, and gate_proj and up_proj have as many inputs; int4-g64 has a "
			       "scale for each 64 of them and needs a multiple", p->dir, c->hidden);
	if (c->expert_dim % INT4_GROUP)
		return err_set(err, ERR_USAGE, "%s: moe_intermediate_size is %d, and down_proj has as many inputs; int4-g64 has a "
			       "scale for each 64 of them and needs a multiple", p->dir, c->expert_dim);
	return 0;
}

static int open_source(struct packer *p, struct err *err)
{
	struct experts_options experts = {.n_slots = N_SLOTS};
	struct model_options opt = {.experts = &experts};
	int n_threads = p->opt->n_threads ? p->opt->n_threads : pool_default_threads();
	const struct model_config *c;
	int64_t rows = 0;
	char *at;

	if (model_open_experts(&p->m, p->dir, &opt, err) || check_source(p, err) || pool_new(&p->pool, n_threads, err))
		return -1;
	c = &p->m->config;
	p->matrices[0] = p->matrices[1] = (struct matrix){.rows = c->expert_dim, .cols = c->hidden};
	p->matrices[2] = (struct matrix){.rows = c->hidden, .cols = c->expert_dim};
	for (int i = 0; i < N_MATRICES; i++) {
		const struct matrix *m = &p->matrices[i];

		p->packed_bytes += int4_code_bytes(m->rows, m->cols) + int4_scale_bytes(m->rows, m->cols);
		rows = m->rows > rows ? m->rows : rows;
	}
	p->packed = at = xmalloc(p->packed_bytes, 1);
	for (int i = 0; i < N_MATRICES; i++) {
		struct matrix *m = &p->matrices[i];

		m->codes = (uint8_t *)at;
		at += int4_code_bytes(m->rows, m->cols);
		m->scales = (uint16_t *)(void *)at;
		at += int4_scale_bytes(m->rows, m->cols);
	}
	p->errors = xmalloc((size_t)rows, sizeof *p->errors);
	p->bad = xmalloc((size_t)rows, sizeof *p->bad);
	p->sums = xcalloc((size_t)c->n_layers * (size_t)c->n_experts, sizeof *p->sums);
	p->report.n_threads = n_threads;
	return 0;
}

/* ---- an expert --------------------------------------------------------------------------------------------------- */

struct job {
	struct packer *p;
	const struct weight *from;
	const struct matrix *to;
	_Atomic int32_t next; /* row that nobody has taken */
};

/* Items are threads, which take rows as they get to them; who packs a row changes nothing of it. */
static void pack_rows(void *arg, int64_t first, int64_t end, int thread)
{
	struct job *j = arg;
	struct packer *p = j->p;
	const struct matrix *to = j->to;
	int32_t row;

	(void)first, (void)end;
	while ((row = atomic_fetch_add(&j->next, ROWS)) < to->rows) {
		for (int32_t r = row; r < row + ROWS && r < to->rows; r++)
			p->bad[r] = p->ops->int4_pack_row(to->codes + (int64_t)r * to->cols / 2,
							  to->scales + (int64_t)r * (to->cols / INT4_GROUP), &p->errors[r], j->from, r);
		if (!thread) /* the caller's: it sees to the disk, while others take more rows */
			experts_go_on(p->m->experts);
	}
}

/* The tensor that part `data` of an expert is of. */
static const char *tensor_of(const struct packer *p, int32_t layer, int32_t expert, const void *const *data)
{
	const struct expert_place *place = experts_place(p->m->experts, layer, expert);
	int i = 0;

	while (place->parts[i].where != data)
		i++;
	return place->parts[i].tensor->name;
}

static int pack_matrix(struct packer *p, int32_t layer, int32_t expert, struct job *j, struct int4_error *error, struct err *err)
{
	int n_threads = pool_n_threads(p->pool);

	pool_run(p->pool, pack_rows, j, n_threads, (int64_t)j->to->rows * j->to->cols / n_threads);
	for (int32_t r = 0; r < j->to->rows; r++) {
		if (p->bad[r] >= 0)
			return err_set(err, ERR_FORMAT, "%s: layer %d, expert %d: tensor %s with its scale gives a NaN or infinity at "
				       "row %d, column %d; the file is damaged, fetch it again", p->dir, layer, expert,
				       tensor_of(p, layer, expert, (const void *const *)&j->from->data), r, p->bad[r]);
		error->lost += p->errors[r].lost;
		error->whole += p->errors[r].whole;
	}
	return 0;
}

static int pack_expert(struct packer *p, int32_t layer, int32_t expert, struct int4_error *error, struct err *err)
{
	const struct expert *e = &p->m->layers[layer].experts[expert];
	const struct weight *from[N_MATRICES] = {&e->gate, &e->up, &e->down};
	struct weight packed[N_MATRICES];

	for (int i = 0; i < N_MATRICES; i++) {
		const struct matrix *m = &p->matrices[i];
		struct job j = {.p = p, .from = from[i], .to = m};

		packed[i] = (struct weight){.dtype = DTYPE_INT4, .rows = m->rows, .cols = m->cols, .data = m->codes,
					    .group_scale = m->scales};
		if (pack_matrix(p, layer, expert, &j, error, err))
			return -1;
	}
	p->sums[(size_t)layer * (size_t)p->m->config.n_experts + (size_t)expert] =
		expert_sum_int4(&(struct expert){packed[0], packed[1], packed[2]});
	return 0;
}

/* The next ones are read meanwhile: of this layer, and at its end of the next that has experts. */
static void want_next(struct packer *p, int32_t layer, int32_t expert)
{
	int32_t ids[N_SLOTS], n = 0, first[N_SLOTS], m = 0;

	while (n < N_SLOTS && expert + n < p->m->config.n_experts) {
		ids[n] = expert + n;
		n++;
	}
	experts_want(p->m->experts, layer, ids, n);
	for (layer++; layer < p->m->config.n_layers && !p->m->layers[layer].experts;)
		layer++;
	for (; layer < p->m->config.n_layers && n + m < N_SLOTS && m < p->m->config.n_experts; m++)
		first[m] = m;
	if (m)
		experts_want(p->m->experts, layer, first, m);
}

static int write_experts(struct packer *p, struct shard_writer *w, int32_t layer, struct err *err)
{
	struct int4_error error = {0};
	double relative;

	for (int32_t e = 0; e < p->m->config.n_experts; e++) {
		int failed;

		want_next(p, layer, e);
		if (experts_take(p->m->experts, layer, e, err))
			return -1;
		failed = pack_expert(p, layer, e, &error, err);
		experts_done(p->m->experts, layer, e, true);
		if (failed || shard_writer_put(w, p->packed, p->packed_bytes, err))
			return -1;
		if (p->opt->report)
			p->opt->report(p->opt->ctx, ++p->n_done, p->n_all);
	}
	relative = error.whole > 0 ? sqrt(error.lost / error.whole) : 0;
	if (relative >= p->report.worst_error) {
		p->report.worst_error = relative;
		p->report.worst_layer = layer;
	}
	p->whole.lost += error.lost;
	p->whole.whole += error.whole;
	return 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static int write_copies(struct packer *p, struct shard_writer *w, const struct span *s, struct err *err)
{
	char *piece = xmalloc(PIECE, 1);
	int failed = 0;

	for (size_t i = 0; i < s->n && !failed; i++) {
		const struct tensor *t = p->outputs[s->first + i].source;

		for (uint64_t done = 0; done < t->bytes && !failed; done += PIECE) {
			size_t bytes = t->bytes - done < PIECE ? (size_t)(t->bytes - done) : PIECE;

			failed = io_read_full(t->file, piece, t->offset + done, bytes, err);
			if (failed)
				err_wrap(err, "tensor %s", t->name);
			else
				failed = shard_writer_put(w, piece, bytes, err);
		}
	}
	free(piece);
	return failed;
}

static void span_name(char out[NAME_BYTES], const struct packer *p, size_t i)
{
	snprintf(out, NAME_BYTES, "model-%05zu-of-%05zu.safetensors", i + 1, p->n_spans);
}

static int write_spans(struct packer *p, struct err *err)
{
	int failed = 0;

	for (size_t i = 0; i < p->n_spans && !failed; i++) {
		const struct span *s = &p->spans[i];
		struct shard_tensor *t = tensors_of(p, s);
		struct shard_writer *w = NULL;
		int64_t began = clock_now_ns();
		char name[NAME_BYTES], *path;

		span_name(name, p, i);
		path = xasprintf("%s/%s", p->work, name);
		failed = shard_writer_open(&w, path, t, s->n, err);
		if (!failed)
			failed = s->layer < 0 ? write_copies(p, w, s, err) : write_experts(p, w, s->layer, err);
		failed = shard_writer_close(w, failed, err);
		if (s->layer >= 0)
			p->report.expert_seconds += clock_seconds_since(began);
		free(path);
		free(t);
	}
	return failed;
}

static int write_whole(const struct packer *p, const char *name, const char *data, size_t bytes, struct err *err)
{
	char *path = xasprintf("%s/%s", p->work, name);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666), failed = 0;

	if (fd < 0)
		failed = err_errno(err, errno, "create %s", path);
	for (size_t done = 0; done < bytes && !failed;) {
		ssize_t n = write(fd, data + done, bytes - done);

		if (n < 0 && errno != EINTR)
			failed = err_errno(err, errno, "write %s", path);
		done += n > 0 ? (size_t)n : 0;
	}
	if (!failed && fsync(fd))
		failed = err_errno(err, errno, "sync %s", path);
	if (fd >= 0 && close(fd) && !failed)
		failed = err_errno(err, errno, "close %s", path);
	free(path);
	return failed;
}

static int copy_others(const struct packer *p, struct err *err)
{
	for (size_t i = 0; i < p->n_others; i++) {
		char *path = xasprintf("%s/%s", p->dir, p->others[i]), *data;
		size_t bytes;
		int failed = file_read(&data, &bytes, path, MAX_OTHER, err);

		if (!failed) {
			failed = write_whole(p, p->others[i], data, bytes, err);
			free(data);
		}
		free(path);
		if (failed)
			return -1;
	}
	return 0;
}

/* Takes root over. */
static int write_json(const struct packer *p, const char *name, json_t *root, struct err *err)
{
	char *text = json_dumps(root, JSON_INDENT(2)), *line;
	int failed;

	json_decref(root);
	if (!text)
		abort();
	line = xasprintf("%s\n", text);
	failed = write_whole(p, name, line, strlen(line), err);
	free(line);
	free(text);
	return failed;
}

static int write_index(const struct packer *p, struct err *err)
{
	json_t *map = json_object();
	uint64_t bytes = 0;

	for (size_t i = 0; i < p->n_spans; i++)
		for (size_t k = 0; k < p->spans[i].n; k++) {
			const struct output *o = &p->outputs[p->spans[i].first + k];
			char name[NAME_BYTES];

			span_name(name, p, i);
			json_object_set_new(map, o->name, json_string(name));
			bytes += o->bytes;
		}
	return write_json(p, INDEX_NAME, json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)bytes, "weight_map",
						   map), err);
}

json_t *pack_quantization(json_t *rest)
{
	json_t *now = json_pack("{s:s, s:i, s:i, s:b, s:s}", "quant_method", "int4-g64", "bits", 4, "group_size", INT4_GROUP, "sym", 1,
				"applies_to", "routed experts");

	if (rest)
		json_object_set_new(now, "rest", rest);
	return now;
}

/* The source's, and how its experts are stored now; `rest` is how it says that the other tensors are. */
static int write_config(const struct packer *p, struct err *err)
{
	char *path = xasprintf("%s/config.json", p->dir);
	json_t *root, *before;
	int failed = json_read(&root, path, MAX_CONFIG, err);

	free(path);
	if (failed)
		return -1;
	before = json_object_get(root, "quantization_config");
	json_object_set_new(root, "quantization_config", pack_quantization(json_is_object(before) ? json_incref(before) : NULL));
	return write_json(p, "config.json", root, err);
}

/* What was written is opened like any model, and the sums are put beside it. */
static int write_sums(const struct packer *p, struct err *err)
{
	const struct model_config *c = &p->m->config;
	size_t n = (size_t)c->n_layers * (size_t)c->n_experts;
	struct expert_sums *sums = NULL;
	struct model *written;
	char *path;
	int failed;

	if (model_open_experts(&written, p->work, NULL, err))
		return err_wrap(err, "what was packed cannot be read again");
	path = xasprintf("%s/" EXPERT_SUMS_NAME, p->work);
	failed = expert_sums_open(&sums, NULL, path, NULL, n, err);
	for (size_t i = 0; i < n && !failed; i++)
		if (p->m->layers[i / (size_t)c->n_experts].experts) {
			expert_sums_note(sums, i, p->sums[i]);
			expert_sums_verified(sums, i);
		}
	if (!failed)
		failed = expert_sums_close(sums, err);
	model_close(written);
	free(path);
	return failed;
}

/* ---- the directory ----------------------------------------------------------------------------------------------- */

static int make_work(struct packer *p, struct err *err)
{
	struct stat st;
	size_t n = strlen(p->out);

	while (n > 1 && p->out[n - 1] == '/')
		n--;
	p->work = xasprintf("%.*s.packing", (int)n, p->out);
	if (!lstat(p->out, &st))
		return err_set(err, ERR_FAILED, "%s is there already; name a directory that is not", p->out);
	if (errno != ENOENT)
		return err_errno(err, errno, "look at %s", p->out);
	if (!mkdir(p->work, 0777))
		return 0;
	if (errno == EEXIST)
		return err_set(err, ERR_BUSY, "%s is there: another `quire model pack` is at work, or one was interrupted; if none is, "
			       "remove it: rm -r %s", p->work, p->work);
	return err_errno(err, errno, "make directory %s", p->work);
}

/* It was made here, so all that is in it is ours. */
static void remove_work(const struct packer *p)
{
	DIR *d = opendir(p->work);
	const struct dirent *entry;

	if (!d) /* in its place already */
		return;
	while ((entry = readdir(d)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			(void)unlinkat(dirfd(d), entry->d_name, 0);
	closedir(d);
	if (rmdir(p->work))
		log_warn("%s could not be removed: %s", p->work, strerror(errno));
}

static int put_in_place(const struct packer *p, struct err *err)
{
	const char *name = strrchr(p->work, '/');
	char *parent = name == p->work ? xstrdup("/") : name ? xasprintf("%.*s", (int)(name - p->work), p->work) : xstrdup(".");
	int failed = file_sync_directory(p->work, err);

	if (!failed && rename(p->work, p->out))
		failed = err_errno(err, errno, "rename %s to %s", p->work, p->out);
	if (!failed)
		failed = file_sync_directory(parent, err);
	free(parent);
	return failed;
}

static int write_all(struct packer *p, struct err *err)
{
	return check_space(p, err) || copy_others(p, err) || write_spans(p, err) || write_index(p, err) || write_config(p, err) ||
	       checkpoint_check_unchanged(p->m->files, err) || write_sums(p, err) || put_in_place(p, err);
}

static void free_packer(struct packer *p)
{
	for (size_t i = 0; i < p->n_outputs; i++)
		free(p->outputs[i].name);
	for (size_t i = 0; i < p->n_others; i++)
		free(p->others[i]);
	pool_free(p->pool);
	model_close(p->m);
	free(p->outputs);
	free(p->spans);
	free(p->others);
	free(p->packed);
	free(p->errors);
	free(p->bad);
	free(p->sums);
	free(p->work);
}

int model_pack(const char *dir, const char *out, const struct pack_options *opt, struct pack_report *report, struct err *err)
{
	struct packer p = {.dir = dir, .out = out, .opt = opt, .ops = cpu_ops(NULL)};
	int64_t began = clock_now_ns();
	int failed = open_source(&p, err) || list_all(&p, err) || make_work(&p, err);

	if (!failed && write_all(&p, err)) {
		remove_work(&p);
		failed = 1;
	}
	if (!failed && report) {
		*report = p.report;
		report->n_experts = p.n_all;
		report->read_bytes = p.m->bytes.routed;
		report->packed_bytes = (uint64_t)p.n_all * p.packed_bytes;
		report->error = p.whole.whole > 0 ? sqrt(p.whole.lost / p.whole.whole) : 0;
		report->seconds = clock_seconds_since(began);
	}
	free_packer(&p);
	return failed ? -1 : 0;
}
