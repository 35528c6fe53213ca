/*
 * A synthetic checkpoint's tensors, and its files.
 *
 * First the list of all tensors in the published order is made, and cut into shards; sizes are known from it before
 * anything is written. Then each shard is written by all threads in pieces of the file. A value depends on the seed, its
 * tensor's name and its place in the tensor, so nothing depends on how the pieces were cut.
 */
#include "engine/synth.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include "config/mem.h"
#include "engine/model.h"
#include "engine/noise.h"
#include "engine/numeric.h"
#include "engine/pool.h"

enum { NAME_BYTES = 128, PIECE = 4 << 20, BLOCK = 4096, MAX_PATH_NAME = 64 };

#define INDEX_NAME "model.safetensors.index.json"

const struct synth_options synth_glm52 = {
	.seed = 1,
	.hidden = 6144, .n_heads = 64, .q_lora = 2048, .kv_lora = 512, .nope_dim = 192, .rope_dim = 64, .v_dim = 256,
	.dense_dim = 12288, .expert_dim = 2048, .n_experts = 256, .experts_per_token = 8,
	.index_n_heads = 32, .index_dim = 128, .index_topk = 2048,
	.vocab = 154880, .max_positions = 1 << 20, .shard_bytes = 4000000000u,
};

static int from_name(const char *name, const char *const *names, int n)
{
	for (int i = 0; i < n; i++)
		if (!strcmp(name, names[i]))
			return i;
	return -1;
}

int synth_format_from_name(const char *name)
{
	static const char *const names[N_SYNTH_FORMATS] = {"fp8", "bf16", "int4"};

	return from_name(name, names, N_SYNTH_FORMATS);
}

int synth_schedule_from_name(const char *name)
{
	static const char *const names[N_SYNTH_SCHEDULES] = {"glm52", "full"};

	return from_name(name, names, N_SYNTH_SCHEDULES);
}

/* ---- which codes a matrix is made of ----------------------------------------------------------------------------- */

enum { FIRST_CODE = 0x38, N_CODES = 64, N_BF16 = 512, N_GROUP_SCALES = 64 };

static double codes_deviation(void)
{
	double sum = 0;

	for (int i = 0; i < N_CODES; i++)
		sum += (double)e4m3_to_f32((uint8_t)(FIRST_CODE + i)) * (double)e4m3_to_f32((uint8_t)(FIRST_CODE + i));
	return sqrt(sum / N_CODES);
}

/* Of whole numbers from -7 to 7, 0 twice as often as another. */
static double int4_deviation(void)
{
	double sum = 0;

	for (int i = 0; i < 8; i++)
		sum += i * i;
	return sqrt(sum / 8);
}

/* The first of n bf16 codes whose values have root mean square std; it grows with the code. */
static uint16_t bf16_codes_of(double std, int n)
{
	int low = 0x0080, high = 0x7f80 - n;

	while (low < high) {
		int middle = (low + high) / 2;
		double sum = 0;

		for (int i = 0; i < n; i++)
			sum += (double)bf16_to_f32((uint16_t)(middle + i)) * (double)bf16_to_f32((uint16_t)(middle + i));
		if (sqrt(sum / n) < std)
			low = middle + 1;
		else
			high = middle;
	}
	return (uint16_t)low;
}

/* ---- the list of tensors --------------------------------------------------------------------------------------- */

enum content {
	CODES,      /* E4M3, of either sign, magnitudes spread evenly over their logarithms from 1 to 240 */
	SCALES,     /* F32, such that CODES times them have deviation `std` */
	MATRIX,     /* BF16, likewise of N_BF16 codes, four octaves, of deviation `std`; a vector, too */
	INT4_CODES, /* eight int4 codes each, from 1 to 15 */
	INT4_SCALES, /* BF16, within an octave, such that INT4_CODES times them have deviation `std` */
	NEAR_ONE,   /* BF16, from .875 to 1.24 */
	NEAR_ZERO,  /* F32, from -std to std */
	N_CONTENTS
};

static const struct {
	const char *dtype;
	size_t bytes;
} contents[N_CONTENTS] = {
	[CODES] = {"F8_E4M3", 1}, [SCALES] = {"F32", 4}, [MATRIX] = {"BF16", 2}, [INT4_CODES] = {"I32", 4},
	[INT4_SCALES] = {"BF16", 2}, [NEAR_ONE] = {"BF16", 2}, [NEAR_ZERO] = {"F32", 4},
};

struct synth_tensor {
	char name[NAME_BYTES];
	enum content content;
	int64_t rows, cols;  /* rows 0: a vector */
	double std;
	uint16_t first_code;    /* MATRIX, INT4_SCALES */
	uint64_t bytes, offset; /* offset: in its shard's data */
	int shard;
};

struct plan {
	const struct synth_options *opt;
	struct synth_tensor *tensors;
	int n_tensors, room, n_shards;
	uint64_t bytes;
};

/* Put one more tensor into the last shard, or a new one. */
static void add(struct plan *p, enum content content, int64_t rows, int64_t cols, double std, const char *name)
{
	struct synth_tensor *t, *before;

	if (p->n_tensors == p->room) {
		p->room = p->room ? 2 * p->room : 1024;
		p->tensors = xrealloc(p->tensors, (size_t)p->room, sizeof *p->tensors);
	}
	t = &p->tensors[p->n_tensors];
	before = p->n_tensors ? t - 1 : NULL;
	*t = (struct synth_tensor){.content = content, .rows = rows, .cols = cols, .std = std};
	snprintf(t->name, sizeof t->name, "%s", name);
	if (content == MATRIX)
		t->first_code = bf16_codes_of(std, N_BF16);
	if (content == INT4_SCALES)
		t->first_code = bf16_codes_of(std / int4_deviation(), N_GROUP_SCALES);
	t->bytes = (uint64_t)(rows ? rows : 1) * (uint64_t)cols * contents[content].bytes;
	if (before) {
		t->shard = before->shard;
		t->offset = before->offset + before->bytes;
		if (t->offset + t->bytes > p->opt->shard_bytes) {
			t->shard++;
			t->offset = 0;
		}
	}
	p->n_tensors++;
	p->n_shards = t->shard + 1;
	p->bytes += t->bytes;
}

/* A projection, in the checkpoint's format. */
static void add_projection(struct plan *p, const char *prefix, const char *suffix, int64_t rows, int64_t cols)
{
	double std = 1 / sqrt((double)cols);
	char name[NAME_BYTES];

	snprintf(name, sizeof name, "%s%s.weight", prefix, suffix);
	if (p->opt->format == SYNTH_BF16) {
		add(p, MATRIX, rows, cols, std, name);
		return;
	}
	add(p, CODES, rows, cols, std, name);
	snprintf(name, sizeof name, "%s%s.weight_scale_inv", prefix, suffix);
	add(p, SCALES, (rows + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK, (cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK, std, name);
}

/* A routed expert's, which is int4 where that is asked for. */
static void add_routed_projection(struct plan *p, const char *prefix, const char *suffix, int64_t rows, int64_t cols)
{
	double std = 1 / sqrt((double)cols);
	char name[NAME_BYTES];

	if (p->opt->format != SYNTH_INT4) {
		add_projection(p, prefix, suffix, rows, cols);
		return;
	}
	snprintf(name, sizeof name, "%s%s.weight_packed", prefix, suffix);
	add(p, INT4_CODES, rows, cols / 8, std, name);
	snprintf(name, sizeof name, "%s%s.weight_scale", prefix, suffix);
	add(p, INT4_SCALES, rows, cols / INT4_GROUP, std, name);
}

/* What stays BF16 or F32 in every format. */
static void add_other(struct plan *p, const char *prefix, const char *suffix, enum content content, int64_t rows,
		      int64_t cols, double std)
{
	char name[NAME_BYTES];

	snprintf(name, sizeof name, "%s%s", prefix, suffix);
	add(p, content, rows, cols, std, name);
}

static void add_mlp(struct plan *p, const char *prefix, int64_t dim)
{
	add_projection(p, prefix, "gate_proj", dim, p->opt->hidden);
	add_projection(p, prefix, "up_proj", dim, p->opt->hidden);
	add_projection(p, prefix, "down_proj", p->opt->hidden, dim);
}

static void add_routed_expert(struct plan *p, const char *prefix)
{
	add_routed_projection(p, prefix, "gate_proj", p->opt->expert_dim, p->opt->hidden);
	add_routed_projection(p, prefix, "up_proj", p->opt->expert_dim, p->opt->hidden);
	add_routed_projection(p, prefix, "down_proj", p->opt->hidden, p->opt->expert_dim);
}

static void add_attention(struct plan *p, const char *prefix, bool full)
{
	const struct synth_options *o = p->opt;

	add_projection(p, prefix, "q_a_proj", o->q_lora, o->hidden);
	add_other(p, prefix, "q_a_layernorm.weight", NEAR_ONE, 0, o->q_lora, 0);
	add_projection(p, prefix, "q_b_proj", (int64_t)o->n_heads * (o->nope_dim + o->rope_dim), o->q_lora);
	add_projection(p, prefix, "kv_a_proj_with_mqa", o->kv_lora + o->rope_dim, o->hidden);
	add_other(p, prefix, "kv_a_layernorm.weight", NEAR_ONE, 0, o->kv_lora, 0);
	add_projection(p, prefix, "kv_b_proj", (int64_t)o->n_heads * (o->nope_dim + o->v_dim), o->kv_lora);
	add_projection(p, prefix, "o_proj", o->hidden, (int64_t)o->n_heads * o->v_dim);
	if (!full)
		return;
	add_projection(p, prefix, "indexer.wq_b", (int64_t)o->index_n_heads * o->index_dim, o->q_lora);
	add_projection(p, prefix, "indexer.wk", o->index_dim, o->hidden);
	add_other(p, prefix, "indexer.k_norm.weight", NEAR_ONE, 0, o->index_dim, 0);
	add_other(p, prefix, "indexer.k_norm.bias", MATRIX, 0, o->index_dim, 0.1);
	add_other(p, prefix, "indexer.weights_proj.weight", MATRIX, o->index_n_heads, o->hidden,
		  1 / sqrt((double)o->hidden));
}

static void add_layer(struct plan *p, const struct model_config *c, int layer)
{
	const struct synth_options *o = p->opt;
	char prefix[48], part[96];

	snprintf(prefix, sizeof prefix, "model.layers.%d.", layer);
	add_other(p, prefix, "input_layernorm.weight", NEAR_ONE, 0, o->hidden, 0);
	snprintf(part, sizeof part, "%sself_attn.", prefix);
	add_attention(p, part, c->layer_is_full[layer]);
	add_other(p, prefix, "post_attention_layernorm.weight", NEAR_ONE, 0, o->hidden, 0);
	snprintf(part, sizeof part, "%smlp.", prefix);
	if (c->layer_is_dense[layer]) {
		add_mlp(p, part, o->dense_dim);
		return;
	}
	add_other(p, part, "gate.weight", MATRIX, o->n_experts, o->hidden, 1 / sqrt((double)o->hidden));
	add_other(p, part, "gate.e_score_correction_bias", NEAR_ZERO, 0, o->n_experts, 0.05);
	for (int e = 0; e < o->n_experts; e++) {
		snprintf(part, sizeof part, "%smlp.experts.%d.", prefix, e);
		add_routed_expert(p, part);
	}
	snprintf(part, sizeof part, "%smlp.shared_experts.", prefix);
	add_mlp(p, part, o->expert_dim);
}

/* Which layers are which is read from the config.json that will be written, and every dimension is checked there. */
static int make_plan(struct plan *p, const struct synth_options *opt, struct err *err)
{
	struct model_config c;
	char *config;
	int failed;

	*p = (struct plan){.opt = opt};
	if (opt->vocab < SYNTH_LEAST_VOCAB)
		return err_set(err, ERR_USAGE, "a vocabulary of %d has no room for the bytes and added tokens; %d is the "
			       "least", opt->vocab, SYNTH_LEAST_VOCAB);
	if (opt->n_dense_layers < 0 || opt->n_moe_layers < 0 ||
	    (int64_t)opt->n_dense_layers + opt->n_moe_layers > MODEL_MAX_LAYERS)
		return err_set(err, ERR_USAGE, "%d dense and %d MoE layers: their number must lie between 1 and %d",
			       opt->n_dense_layers, opt->n_moe_layers, MODEL_MAX_LAYERS);
	if (opt->format == SYNTH_INT4 && (opt->hidden % INT4_GROUP || opt->expert_dim % INT4_GROUP))
		return err_set(err, ERR_USAGE, "hidden size %d, expert dimension %d: int4 has a scale for each %d inputs of a row, and "
			       "both must be multiples", opt->hidden, opt->expert_dim, INT4_GROUP);
	config = synth_config_json(opt);
	failed = model_config_parse(&c, "config.json", config, strlen(config), NULL, err);
	free(config);
	if (failed) {
		if (err)
			err->code = ERR_USAGE;
		return err_wrap(err, "these dimensions make no model");
	}
	add(p, MATRIX, opt->vocab, opt->hidden, 1, "model.embed_tokens.weight");
	for (int i = 0; i < c.n_layers; i++)
		add_layer(p, &c, i);
	add(p, NEAR_ONE, 0, opt->hidden, 0, "model.norm.weight");
	add(p, MATRIX, opt->vocab, opt->hidden, 1 / sqrt((double)opt->hidden), "lm_head.weight");
	return 0;
}

int synth_measure(struct synth_report *report, const struct synth_options *opt, struct err *err)
{
	struct plan p;
	int failed = make_plan(&p, opt, err);

	if (!failed)
		*report = (struct synth_report){p.bytes, p.n_shards, p.n_tensors};
	free(p.tensors);
	return failed;
}

/* ---- values ---------------------------------------------------------------------------------------------------- */

/* Sixteen nibbles, eight bytes or four halves at a time: no sum below leaves its part of the word. */
#define EACH_NIBBLE 0x1111111111111111u
#define EACH_BYTE 0x0101010101010101u
#define EACH_HALF 0x0001000100010001u

/* Two float32 values of a word, from -1 to 1 in steps of 2^-23. */
static float unit(uint32_t bits)
{
	return (float)(int32_t)(bits >> 8) * 0x1p-23f - 1.0f;
}

static void fill_f32(uint64_t *out, size_t n, uint64_t key, uint64_t first, float middle, float spread)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t x = noise_word(key, first + i);
		float two[2] = {middle + spread * unit((uint32_t)x), middle + spread * unit((uint32_t)(x >> 32))};

		memcpy(&out[i], two, sizeof two);
	}
}

/* Words first .. first + n - 1 of a tensor. */
static void fill(const struct synth_tensor *t, uint64_t seed, uint64_t first, uint64_t *out, size_t n)
{
	uint64_t key = XXH3_64bits_withSeed(t->name, strlen(t->name), seed), base = t->first_code * EACH_HALF;

	switch (t->content) {
	case CODES:
		for (size_t i = 0; i < n; i++) {
			uint64_t x = noise_word(key, first + i);

			out[i] = (x & 0x80 * EACH_BYTE) | ((x & (N_CODES - 1) * EACH_BYTE) + FIRST_CODE * EACH_BYTE);
		}
		return;
	case MATRIX:
		for (size_t i = 0; i < n; i++) {
			uint64_t x = noise_word(key, first + i);

			out[i] = (x & 0x8000 * EACH_HALF) | ((x & (N_BF16 - 1) * EACH_HALF) + base);
		}
		return;
	case INT4_CODES: /* 8 + or - the lower three bits, as the highest says */
		for (size_t i = 0; i < n; i++) {
			uint64_t x = noise_word(key, first + i), less = (x >> 3 & EACH_NIBBLE) * 15, by = x & 7 * EACH_NIBBLE;

			out[i] = ((8 * EACH_NIBBLE - by) & less) | ((8 * EACH_NIBBLE + by) & ~less);
		}
		return;
	case INT4_SCALES:
		for (size_t i = 0; i < n; i++)
			out[i] = (noise_word(key, first + i) & (N_GROUP_SCALES - 1) * EACH_HALF) + base;
		return;
	case NEAR_ONE:
		for (size_t i = 0; i < n; i++)
			out[i] = (noise_word(key, first + i) & 0x3f * EACH_HALF) + 0x3f60 * EACH_HALF;
		return;
	case SCALES:
		fill_f32(out, n, key, first, (float)(t->std / codes_deviation()), (float)(t->std / codes_deviation() / 4));
		return;
	default:
		fill_f32(out, n, key, first, 0, (float)t->std);
	}
}

/* ---- writing a shard ------------------------------------------------------------------------------------------- */

static int write_at(int fd, const char *path, const void *data, size_t bytes, uint64_t at, struct err *err)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n = pwrite(fd, (const char *)data + done, bytes - done, (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno, "write %s at byte %" PRIu64, path, at + done);
		done += (size_t)n;
	}
	return 0;
}

/* Take the room first: a full disk is met here, and not after an hour. Where the file system has no such call, its
 * free space has been looked at. */
static int take_room(int fd, const char *path, uint64_t bytes, struct err *err)
{
	while (fallocate(fd, 0, 0, (off_t)bytes)) {
		if (errno == EINTR)
			continue;
		if (errno == EOPNOTSUPP || errno == ENOSYS)
			return ftruncate(fd, (off_t)bytes) ? err_errno(err, errno, "extend %s", path) : 0;
		return err_errno(err, errno, "take %" PRIu64 " bytes for %s", bytes, path);
	}
	return 0;
}

struct shard {
	const struct synth_tensor *first, *end;
	char *header, *path;
	size_t header_bytes;
	uint64_t bytes, seed;
	int fd;
	atomic_bool stop;
	struct writer {
		char *piece; /* of PIECE bytes, aligned for direct writes */
		bool failed;
		struct err err;
	} *writers; /* one a thread */
};

/* Bytes first .. first + n - 1 of a tensor. */
static void fill_bytes(const struct synth_tensor *t, uint64_t seed, uint64_t first, char *out, size_t n)
{
	enum { WORDS = 512 };
	uint64_t words[WORDS], skip = first % sizeof words[0];

	while (n) {
		size_t part = sizeof words - skip < n ? sizeof words - skip : n;

		fill(t, seed, first / sizeof words[0], words, (skip + part + sizeof words[0] - 1) / sizeof words[0]);
		memcpy(out, (const char *)words + skip, part);
		first += part;
		out += part;
		n -= part;
		skip = 0;
	}
}

/* Bytes at .. at + n - 1 of the file. */
static void fill_piece(const struct shard *s, char *out, uint64_t at, size_t n)
{
	const struct synth_tensor *t = s->first;
	uint64_t end = at + n;

	if (at < s->header_bytes) {
		size_t part = s->header_bytes - at < n ? (size_t)(s->header_bytes - at) : n;

		memcpy(out, s->header + at, part);
		out += part;
		at += part;
	}
	while (t < s->end && s->header_bytes + t->offset + t->bytes <= at)
		t++;
	for (; at < end; t++) {
		uint64_t from = at - s->header_bytes - t->offset, left = t->bytes - from;
		size_t part = left < end - at ? (size_t)left : (size_t)(end - at);

		fill_bytes(t, s->seed, from, out, part);
		out += part;
		at += part;
	}
}

static void write_pieces(void *arg, int64_t first, int64_t end, int thread)
{
	struct shard *s = arg;
	struct writer *own = &s->writers[thread];

	for (int64_t i = first; i < end && !atomic_load(&s->stop); i++) {
		uint64_t at = (uint64_t)i * PIECE;
		size_t n = s->bytes - at < PIECE ? (size_t)(s->bytes - at) : PIECE;
		/* Direct writes come in whole blocks; what is too much is cut off at the end. */
		size_t whole = (n + BLOCK - 1) / BLOCK * BLOCK;

		fill_piece(s, own->piece, at, n);
		memset(own->piece + n, 0, whole - n);
		own->failed = write_at(s->fd, s->path, own->piece, whole, at, &own->err);
		if (own->failed)
			atomic_store(&s->stop, true);
	}
}

static int write_content(struct shard *s, struct pool *pool, struct err *err)
{
	int flags = fcntl(s->fd, F_GETFL);

	/* Past the page cache, which is the slower way to fill a disk and has better uses. Not every file system can. */
	if (flags >= 0)
		(void)fcntl(s->fd, F_SETFL, flags | O_DIRECT);
	pool_run(pool, write_pieces, s, (int64_t)((s->bytes + PIECE - 1) / PIECE), PIECE);
	for (int i = 0; i < pool_n_threads(pool); i++)
		if (s->writers[i].failed)
			return err_set(err, s->writers[i].err.code, "%s", s->writers[i].err.text);
	return ftruncate(s->fd, (off_t)s->bytes) ? err_errno(err, errno, "cut %s to its size", s->path) : 0;
}

/* Length, header and spaces up to a multiple of 8, as the safetensors library writes them. To be freed. */
static char *header_of(const struct synth_tensor *first, const struct synth_tensor *end, size_t *bytes)
{
	char *header = NULL;
	uint64_t length;
	FILE *f = open_memstream(&header, bytes);

	if (!f)
		abort();
	fputs("        {\"__metadata__\":{\"format\":\"pt\"}", f); /* the length's 8 bytes come first */
	for (const struct synth_tensor *t = first; t < end; t++) {
		fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, contents[t->content].dtype);
		if (t->rows)
			fprintf(f, "%" PRId64 ",", t->rows);
		fprintf(f, "%" PRId64 "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", t->cols, t->offset,
			t->offset + t->bytes);
	}
	fputc('}', f);
	while (ftell(f) % 8)
		fputc(' ', f);
	if (fclose(f))
		abort();
	length = *bytes - sizeof length;
	memcpy(header, &length, sizeof length);
	return header;
}

static void shard_name(char out[MAX_PATH_NAME], int shard, int n_shards)
{
	snprintf(out, MAX_PATH_NAME, "model-%05d-of-%05d.safetensors", shard + 1, n_shards);
}

static int create(int *fd, const char *path, struct err *err)
{
	*fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	return *fd < 0 ? err_errno(err, errno, "create %s", path) : 0;
}

/* Close what was written, to the disk if all went well so far. */
static int finish(int fd, const char *path, int failed, struct err *err)
{
	if (!failed && fsync(fd))
		failed = err_errno(err, errno, "sync %s", path);
	if (close(fd) && !failed)
		failed = err_errno(err, errno, "close %s", path);
	return failed;
}

static int write_shard(const struct plan *p, const char *dir, struct pool *pool, struct writer *writers, int number,
		       struct err *err)
{
	const struct synth_tensor *first = p->tensors, *all = p->tensors + p->n_tensors, *end;
	struct shard s = {.seed = p->opt->seed, .writers = writers};
	char name[MAX_PATH_NAME];
	int failed;

	while (first->shard != number)
		first++;
	for (end = first; end < all && end->shard == number;)
		end++;
	s.first = first;
	s.end = end;
	shard_name(name, number, p->n_shards);
	s.path = xasprintf("%s/%s", dir, name);
	s.header = header_of(first, end, &s.header_bytes);
	s.bytes = s.header_bytes + end[-1].offset + end[-1].bytes;
	failed = create(&s.fd, s.path, err);
	if (!failed) {
		failed = take_room(s.fd, s.path, s.bytes, err) || write_content(&s, pool, err);
		failed = finish(s.fd, s.path, failed, err);
	}
	free(s.header);
	free(s.path);
	return failed;
}

static int write_shards(const struct plan *p, const char *dir, struct err *err)
{
	int n_threads = p->opt->n_threads ? p->opt->n_threads : pool_default_threads(), failed = 0;
	struct writer *writers;
	struct pool *pool;

	if (pool_new(&pool, n_threads, err))
		return -1;
	writers = xcalloc((size_t)n_threads, sizeof *writers);
	for (int i = 0; i < n_threads && !failed; i++) {
		writers[i].piece = aligned_alloc(BLOCK, PIECE);
		if (!writers[i].piece)
			failed = err_set(err, ERR_TOO_LARGE, "no memory for %d bytes to write from", PIECE);
	}
	for (int i = 0; i < p->n_shards && !failed; i++)
		failed = write_shard(p, dir, pool, writers, i, err);
	for (int i = 0; i < n_threads; i++)
		free(writers[i].piece);
	free(writers);
	pool_free(pool);
	return failed;
}

/* ---- the directory --------------------------------------------------------------------------------------------- */

/* Frees text. */
static int write_text(const char *dir, const char *name, char *text, struct err *err)
{
	char *path = xasprintf("%s/%s", dir, name);
	int fd, failed = create(&fd, path, err);

	if (!failed)
		failed = finish(fd, path, write_at(fd, path, text, strlen(text), 0, err), err);
	free(path);
	free(text);
	return failed;
}

static char *index_json(const struct plan *p)
{
	json_t *map = json_object(), *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)p->bytes,
						       "weight_map", map);
	char name[MAX_PATH_NAME], *text;

	for (int i = 0; i < p->n_tensors; i++) {
		shard_name(name, p->tensors[i].shard, p->n_shards);
		json_object_set_new(map, p->tensors[i].name, json_string(name));
	}
	text = json_dumps(root, JSON_INDENT(2));
	json_decref(root);
	if (!text)
		abort();
	return text;
}

/* Empty and ours, made if it was not there (*made). */
static int take_directory(const char *dir, bool *made, struct err *err)
{
	const struct dirent *entry;
	DIR *d;

	*made = !mkdir(dir, 0777);
	if (!*made && errno != EEXIST)
		return err_errno(err, errno, "make directory %s", dir);
	d = opendir(dir);
	if (!d)
		return err_errno(err, errno, "open directory %s", dir);
	while ((entry = readdir(d)) && (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")))
		;
	if (entry)
		err_set(err, ERR_FAILED, "%s is not empty: it holds '%s'; name a directory that is new or empty", dir,
			entry->d_name);
	closedir(d);
	return entry ? -1 : 0;
}

static int check_space(const struct plan *p, const char *dir, struct err *err)
{
	/* Headers, index and inodes: below 1 KB a tensor, and a block a file. */
	uint64_t needed = p->bytes + 1024 * (uint64_t)p->n_tensors + (1 << 20), free_bytes;
	struct statvfs fs;

	if (statvfs(dir, &fs))
		return err_errno(err, errno, "look at the free space of %s", dir);
	free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (needed <= free_bytes)
		return 0;
	return err_set(err, ERR_TOO_LARGE, "%s: the checkpoint takes %.1f GB (%" PRIu64 " bytes), but %.1f GB (%" PRIu64 ") "
		       "are free there; take fewer layers or another disk", dir, (double)needed / 1e9, needed,
		       (double)free_bytes / 1e9, free_bytes);
}

static int sync_directory(const char *dir, struct err *err)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return err_errno(err, errno, "open directory %s", dir);
	return finish(fd, dir, 0, err);
}

static void remove_all(const struct plan *p, const char *dir, bool made)
{
	char name[MAX_PATH_NAME];

	for (int i = -3; i < p->n_shards; i++) {
		char *path;

		if (i < 0)
			snprintf(name, sizeof name, "%s",
				 i == -3 ? "config.json" : i == -2 ? "tokenizer.json" : INDEX_NAME);
		else
			shard_name(name, i, p->n_shards);
		path = xasprintf("%s/%s", dir, name);
		unlink(path); /* it was empty, so what is there is ours; what is not was never made */
		free(path);
	}
	if (made)
		rmdir(dir);
}

static int write_all(const struct plan *p, const char *dir, struct err *err)
{
	return check_space(p, dir, err) || write_text(dir, "tokenizer.json", synth_tokenizer_json(p->opt), err) ||
	       write_shards(p, dir, err) || write_text(dir, INDEX_NAME, index_json(p), err) ||
	       sync_directory(dir, err) || write_text(dir, "config.json", synth_config_json(p->opt), err) ||
	       sync_directory(dir, err);
}

int synth_write(const char *dir, const struct synth_options *opt, struct synth_report *report, struct err *err)
{
	struct plan p;
	bool made = false;
	int failed = make_plan(&p, opt, err) || take_directory(dir, &made, err);

	if (!failed && write_all(&p, dir, err)) {
		remove_all(&p, dir, made);
		failed = 1;
	}
	if (!failed && report)
		*report = (struct synth_report){p.bytes, p.n_shards, p.n_tensors};
	free(p.tensors);
	return failed ? -1 : 0;
}
