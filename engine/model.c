/*
 * A checkpoint's tensors to struct model.
 *
 * First every tensor the config asks for is *placed*: looked up by name, its shape compared with the config's, and
 * given an offset in one block of memory. Nothing is read or allocated at a tensor's size before all of them are
 * known to be there. Then the block is taken and every tensor read into its place, looked over for NaN and
 * infinity on the way while it is in the processor's cache.
 *
 * What a tensor is decides how it is read, never a list in config.json: FP8 is what is stored as F8_E4M3 and has
 * block scales beside it (NAME_scale_inv); a routed expert's matrix is int4 where NAME_packed is there instead of NAME
 * (docs/experts.md).
 */
#include "engine/model.h"

#include <assert.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/log.h"
#include "config/mem.h"
#include "config/pages.h"
#include "engine/checkpoint.h"
#include "engine/expert_sums.h"
#include "engine/experts.h"
#include "engine/fingerprint.h"

enum { ALIGN = 64, PIECE = 1 << 20, NAME_BYTES = 128, MAX_THREADS = 64, NAMED_IN_WARNING = 3 };

/* A tensor, and where it goes. */
struct load {
	const struct tensor *tensor;
	enum dtype dtype;
	bool widen;       /* to float32 */
	size_t offset;
};

/* A pointer of the model that will point into the block. */
struct slot {
	const void **where;
	size_t offset;
};

struct builder {
	struct model *m;
	const struct checkpoint *files;
	bool *used;       /* one a tensor of `files` */
	struct expert_place *places; /* [n_layers, n_experts] of experts that stay in their files; NULL: they are loaded */
	struct expert_place *place;  /* of the expert that is being placed; NULL: of none of those */
	bool in_mtp;      /* what is placed is the MTP layer's: account_for counts it, as it does where nobody asked for it */
	struct load *loads;
	size_t n_loads, room_loads;
	struct slot *slots;
	size_t n_slots, room_slots;
	size_t bytes;     /* of the block, so far */
	struct err *err;
};

/* A tensor's name, or the beginning of one. Ours are all far shorter than NAME_BYTES. */
__attribute__((format(printf, 2, 3))) static void text(char out[NAME_BYTES], const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(out, NAME_BYTES, format, args);
	va_end(args);
	assert(n >= 0 && n < NAME_BYTES);
}

/* ---- placing --------------------------------------------------------------------------------------------------- */

static void add_slot(struct builder *b, const void **where, size_t offset)
{
	if (b->n_slots == b->room_slots) {
		b->room_slots = b->room_slots ? 2 * b->room_slots : 1024;
		b->slots = xrealloc(b->slots, b->room_slots, sizeof *b->slots);
	}
	b->slots[b->n_slots++] = (struct slot){where, offset};
}

/* Give t a place; its offset in *offset. */
static int add_load(struct builder *b, size_t *offset, const struct tensor *t, enum dtype dtype, bool widen)
{
	uint64_t bytes = widen ? t->bytes / dtype_unit_bytes(dtype) * sizeof(float) : t->bytes, end;

	if (__builtin_add_overflow(b->bytes, bytes, &end) || end > SIZE_MAX / 2)
		return err_set(b->err, ERR_TOO_LARGE, "%s: its weights are more than any memory holds", b->files->dir);
	if (b->n_loads == b->room_loads) {
		b->room_loads = b->room_loads ? 2 * b->room_loads : 1024;
		b->loads = xrealloc(b->loads, b->room_loads, sizeof *b->loads);
	}
	*offset = b->bytes;
	b->loads[b->n_loads++] = (struct load){t, dtype, widen, b->bytes};
	b->bytes = (end + ALIGN - 1) / ALIGN * ALIGN;
	return 0;
}

/* `bytes` bytes of t from `offset` on stay in the file, until the expert under way is wanted. sums: as in struct expert_part. */
static void add_part(struct builder *b, const struct tensor *t, uint64_t offset, uint64_t bytes, enum dtype dtype,
		     const void **where, uint64_t **sums)
{
	size_t shard = 0;

	while (&b->files->shards[shard].file != t->file)
		shard++;
	assert(b->place->n_parts < EXPERT_PARTS);
	b->place->parts[b->place->n_parts++] = (struct expert_part){shard, t->offset + offset, bytes, dtype, t, where, sums};
}

/* The parts of down come next. */
static void half_placed(struct builder *b)
{
	if (b->place)
		b->place->n_half = b->place->n_parts;
}

/* The tensor called name, counted under *kind; NULL if there is none. */
static const struct tensor *take(struct builder *b, uint64_t *kind, const char *name)
{
	size_t i = checkpoint_index(b->files, name);

	if (i == b->files->n_tensors)
		return NULL;
	if (b->in_mtp)
		return b->files->tensors[i];
	b->used[i] = true;
	*kind += b->files->tensors[i]->bytes;
	return b->files->tensors[i];
}

static bool has(const struct builder *b, const char *name)
{
	return checkpoint_find(b->files, name);
}

/* `what` is the shape in the words of config.json. */
static int missing(const struct builder *b, const char *name, const char *what)
{
	return err_set(b->err, ERR_FORMAT, "%s: tensor %s (%s) is missing; either a file was not fetched, or config.json "
		       "belongs to another checkpoint", b->files->dir, name, what);
}

static int find_dtype(struct builder *b, enum dtype *dtype, const struct tensor *t)
{
	for (int i = 0; i < DTYPE_INT4; i++) { /* which no file has under that name */
		if (!strcmp(dtype_name((enum dtype)i), t->dtype)) {
			*dtype = (enum dtype)i;
			return 0;
		}
	}
	return err_set(b->err, ERR_FORMAT, "%s: tensor %s has dtype %s; F32, BF16, F16 and F8_E4M3 are read",
		       t->file->path, t->name, t->dtype);
}

/* The shape by the config, one dimension 0 to leave it out from the left. */
static int check_shape(struct builder *b, const struct tensor *t, int64_t d0, int64_t d1, int64_t d2, const char *what)
{
	struct tensor wanted = {.shape = {d2}, .n_dims = 1};
	char has_text[TENSOR_SHAPE_TEXT], wanted_text[TENSOR_SHAPE_TEXT];

	if (d1)
		wanted = (struct tensor){.shape = {d1, d2}, .n_dims = 2};
	if (d0)
		wanted = (struct tensor){.shape = {d0, d1, d2}, .n_dims = 3};
	if (t->n_dims == wanted.n_dims && !memcmp(t->shape, wanted.shape, (size_t)wanted.n_dims * sizeof t->shape[0]))
		return 0;
	return err_set(b->err, ERR_FORMAT, "%s: tensor %s has shape %s, but config.json makes it %s (%s); the two files "
		       "do not belong together", t->file->path, t->name, tensor_shape_text(has_text, t),
		       tensor_shape_text(wanted_text, &wanted), what);
}

static int64_t blocks(int64_t n)
{
	return (n + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;
}

/* The block scales of FP8 tensor t of n matrices (0: it is one matrix). */
static int find_scale(struct builder *b, const struct tensor **found, uint64_t *kind, const struct tensor *t, int64_t n,
		      int32_t rows, int32_t cols)
{
	static const char what[] = "one float32 scale for each 128 x 128 block";
	char name[NAME_BYTES];
	const struct tensor *scale;
	enum dtype dtype = DTYPE_F32;

	text(name, "%s_scale_inv", t->name);
	scale = take(b, kind, name);
	if (!scale)
		return missing(b, name, what);
	if (check_shape(b, scale, n, blocks(rows), blocks(cols), what) || find_dtype(b, &dtype, scale))
		return -1;
	if (dtype != DTYPE_F32)
		return err_set(b->err, ERR_FORMAT, "%s: tensor %s has dtype %s; scales are read as F32",
			       scale->file->path, name, scale->dtype);
	*found = scale;
	return 0;
}

/* All of t at *where: loaded, or left where it is. */
static int place_tensor(struct builder *b, const struct tensor *t, enum dtype dtype, const void **where, uint64_t **sums)
{
	size_t offset;

	if (b->place) {
		add_part(b, t, 0, t->bytes, dtype, where, sums);
		return 0;
	}
	if (add_load(b, &offset, t, dtype, false))
		return -1;
	add_slot(b, where, offset);
	return 0;
}

/* Part of an int4 matrix: its dtype by the file's word for it, rows x cols. */
static int place_int4_part(struct builder *b, const struct tensor *t, const char *dtype, int32_t rows, int32_t cols,
			   const char *what, enum dtype as, const void **where, uint64_t **sums)
{
	if (check_shape(b, t, 0, rows, cols, what))
		return -1;
	if (strcmp(t->dtype, dtype))
		return err_set(b->err, ERR_FORMAT, "%s: tensor %s has dtype %s; int4 is read as I32 of eight codes each and BF16 "
			       "scales", t->file->path, t->name, t->dtype);
	return place_tensor(b, t, as, where, sums);
}

/* A routed expert's matrix `name` of rows x cols as `quire model pack` writes it: NAME_packed and NAME_scale. */
static int place_int4(struct builder *b, struct weight *w, uint64_t *kind, const char *name, int32_t rows, int32_t cols)
{
	char packed[NAME_BYTES], scale[NAME_BYTES];
	const struct tensor *t, *scales;

	text(packed, "%s_packed", name);
	text(scale, "%s_scale", name);
	t = take(b, kind, packed);
	scales = take(b, kind, scale);
	if (!scales)
		return missing(b, scale, "one bf16 scale for 64 inputs of a row");
	if (has(b, name))
		return err_set(b->err, ERR_FORMAT, "%s: there are both %s and %s; remove the one that is not meant",
			       b->files->dir, name, packed);
	if (cols % INT4_GROUP)
		return err_set(b->err, ERR_FORMAT, "%s: tensor %s: config.json makes its rows %d inputs long, which is no "
			       "multiple of the %d that share a scale", t->file->path, packed, cols, INT4_GROUP);
	*w = (struct weight){.dtype = DTYPE_INT4, .rows = rows, .cols = cols};
	return place_int4_part(b, t, "I32", rows, cols / 8, "eight int4 codes each", DTYPE_INT4, &w->data, &w->sums) ||
	       place_int4_part(b, scales, "BF16", rows, cols / INT4_GROUP, "one scale for 64 inputs", DTYPE_BF16,
			       (const void **)&w->group_scale, &w->group_sums);
}

/* Matrix `name` of rows x cols into w; prefix ends in a dot or is empty. */
static int place_matrix(struct builder *b, struct weight *w, uint64_t *kind, const char *prefix, const char *suffix,
			int32_t rows, int32_t cols, const char *what)
{
	char name[NAME_BYTES], packed[NAME_BYTES], scale[NAME_BYTES];
	const struct tensor *t, *scales;

	text(name, "%s%s", prefix, suffix);
	text(packed, "%s_packed", name);
	if (kind == &b->m->bytes.routed && has(b, packed))
		return place_int4(b, w, kind, name, rows, cols);
	t = take(b, kind, name);
	if (!t)
		return missing(b, name, what);
	*w = (struct weight){.rows = rows, .cols = cols};
	if (check_shape(b, t, 0, rows, cols, what) || find_dtype(b, &w->dtype, t) ||
	    place_tensor(b, t, w->dtype, &w->data, &w->sums))
		return -1;
	text(scale, "%s_scale_inv", name);
	if (w->dtype != DTYPE_F8_E4M3)
		return has(b, scale) ? err_set(b->err, ERR_FORMAT, "%s: tensor %s has dtype %s, but there is a %s; only "
					       "F8_E4M3 has block scales", t->file->path, name, t->dtype, scale) : 0;
	return find_scale(b, &scales, kind, t, 0, rows, cols) ||
	       place_tensor(b, scales, DTYPE_F32, (const void **)&w->scale, NULL);
}

/* A vector, widened to float32 when it is read. */
static int place_vector(struct builder *b, const float **v, uint64_t *kind, const char *prefix, const char *suffix,
			int32_t n, const char *what)
{
	char name[NAME_BYTES];
	const struct tensor *t;
	enum dtype dtype = DTYPE_F32;
	size_t offset;

	text(name, "%s%s", prefix, suffix);
	t = take(b, kind, name);
	if (!t)
		return missing(b, name, what);
	if (check_shape(b, t, 0, 0, n, what) || find_dtype(b, &dtype, t))
		return -1;
	if (dtype == DTYPE_F8_E4M3)
		return err_set(b->err, ERR_FORMAT, "%s: tensor %s has dtype F8_E4M3; vectors are read as F32, BF16 and F16",
			       t->file->path, name);
	if (add_load(b, &offset, t, dtype, true))
		return -1;
	add_slot(b, (const void **)v, offset);
	return 0;
}

static int place_attention(struct builder *b, struct layer *l, const char *prefix)
{
	const struct model_config *c = &b->m->config;
	struct model_bytes *kinds = &b->m->bytes;
	int32_t query = c->n_heads * (c->nope_dim + c->rope_dim);
	uint64_t *kind = &kinds->attention;

	if (c->q_lora &&
	    (place_matrix(b, &l->q_a, kind, prefix, "self_attn.q_a_proj.weight", c->q_lora, c->hidden,
			  "q_lora_rank x hidden_size") ||
	     place_vector(b, &l->q_a_norm, &kinds->norms, prefix, "self_attn.q_a_layernorm.weight", c->q_lora,
			  "q_lora_rank") ||
	     place_matrix(b, &l->q_b, kind, prefix, "self_attn.q_b_proj.weight", query, c->q_lora,
			  "num_attention_heads (qk_nope_head_dim + qk_rope_head_dim) x q_lora_rank")))
		return -1;
	if (!c->q_lora && place_matrix(b, &l->q_b, kind, prefix, "self_attn.q_proj.weight", query, c->hidden,
				       "num_attention_heads (qk_nope_head_dim + qk_rope_head_dim) x hidden_size"))
		return -1;
	return place_matrix(b, &l->kv_a, kind, prefix, "self_attn.kv_a_proj_with_mqa.weight", c->kv_lora + c->rope_dim,
			    c->hidden, "(kv_lora_rank + qk_rope_head_dim) x hidden_size") ||
	       place_vector(b, &l->kv_a_norm, &kinds->norms, prefix, "self_attn.kv_a_layernorm.weight", c->kv_lora,
			    "kv_lora_rank") ||
	       place_matrix(b, &l->kv_b, kind, prefix, "self_attn.kv_b_proj.weight", c->n_heads * (c->nope_dim + c->v_dim),
			    c->kv_lora, "num_attention_heads (qk_nope_head_dim + v_head_dim) x kv_lora_rank") ||
	       place_matrix(b, &l->o, kind, prefix, "self_attn.o_proj.weight", c->hidden, c->n_heads * c->v_dim,
			    "hidden_size x num_attention_heads v_head_dim");
}

static int place_indexer(struct builder *b, struct layer *l, const char *prefix)
{
	const struct model_config *c = &b->m->config;
	uint64_t *kind = &b->m->bytes.indexer;

	return place_matrix(b, &l->index_q, kind, prefix, "self_attn.indexer.wq_b.weight", c->index_n_heads * c->index_dim,
			    c->q_lora, "index_n_heads index_head_dim x q_lora_rank") ||
	       place_matrix(b, &l->index_k, kind, prefix, "self_attn.indexer.wk.weight", c->index_dim, c->hidden,
			    "index_head_dim x hidden_size") ||
	       place_vector(b, &l->index_k_norm, kind, prefix, "self_attn.indexer.k_norm.weight", c->index_dim,
			    "index_head_dim") ||
	       place_vector(b, &l->index_k_norm_bias, kind, prefix, "self_attn.indexer.k_norm.bias", c->index_dim,
			    "index_head_dim") ||
	       place_matrix(b, &l->index_weights, kind, prefix, "self_attn.indexer.weights_proj.weight",
			    c->index_n_heads, c->hidden, "index_n_heads x hidden_size");
}

/* gate, up and down of one MLP; `width` says where dim comes from. */
static int place_mlp(struct builder *b, struct expert *e, uint64_t *kind, const char *prefix, int32_t dim,
		     const char *width)
{
	int32_t hidden = b->m->config.hidden;
	char wide[NAME_BYTES], tall[NAME_BYTES];

	text(wide, "%s x hidden_size", width);
	snprintf(tall, sizeof tall, "hidden_size x %s", width);
	if (place_matrix(b, &e->gate, kind, prefix, "gate_proj.weight", dim, hidden, wide) ||
	    place_matrix(b, &e->up, kind, prefix, "up_proj.weight", dim, hidden, wide))
		return -1;
	half_placed(b);
	return place_matrix(b, &e->down, kind, prefix, "down_proj.weight", hidden, dim, tall);
}

/* One matrix an expert, stacked in one tensor: the first into *first, whose view of rows first_row .. is for w. */
struct stack {
	struct weight matrix; /* of expert 0; data and scale are not known yet */
	const struct tensor *tensor, *scales;
	size_t data, scale;   /* offsets in the block, where experts are loaded */
};

static int place_stack(struct builder *b, struct stack *s, const char *name, int32_t rows, int32_t cols, const char *what)
{
	uint64_t *kind = &b->m->bytes.routed;
	int32_t n = b->m->config.n_experts;
	const struct tensor *t = take(b, kind, name);

	if (!t)
		return missing(b, name, what);
	s->matrix = (struct weight){.rows = rows, .cols = cols};
	s->tensor = t;
	if (check_shape(b, t, n, rows, cols, what) || find_dtype(b, &s->matrix.dtype, t) ||
	    (s->matrix.dtype == DTYPE_F8_E4M3 && find_scale(b, &s->scales, kind, t, n, rows, cols)))
		return -1;
	if (b->places)
		return 0;
	return add_load(b, &s->data, t, s->matrix.dtype, false) ||
	       (s->matrix.dtype == DTYPE_F8_E4M3 && add_load(b, &s->scale, s->scales, DTYPE_F32, false)) ? -1 : 0;
}

/* Rows first .. first + n - 1 of matrix `expert` of a stack. */
static void place_from_stack(struct builder *b, struct weight *w, const struct stack *s, int32_t expert, int32_t first,
			     int32_t n)
{
	const struct weight *m = &s->matrix;
	size_t element = ((size_t)expert * (size_t)m->rows + (size_t)first) * (size_t)m->cols;
	size_t scale_bytes = sizeof(float) * (size_t)(blocks(m->rows) * blocks(m->cols));

	*w = (struct weight){.dtype = m->dtype, .rows = n, .cols = m->cols, .first_row = first};
	if (b->place)
		add_part(b, s->tensor, element * dtype_bytes(m->dtype), (size_t)n * (size_t)m->cols * dtype_bytes(m->dtype),
			 m->dtype, &w->data, &w->sums);
	else
		add_slot(b, &w->data, s->data + element * dtype_bytes(m->dtype));
	if (m->dtype != DTYPE_F8_E4M3)
		return;
	if (b->place)
		add_part(b, s->scales, (size_t)expert * scale_bytes, scale_bytes, DTYPE_F32, (const void **)&w->scale, NULL);
	else
		add_slot(b, (const void **)&w->scale, s->scale + (size_t)expert * scale_bytes);
}

/* Expert e of a layer is placed from now on; -1: none is. */
static void at_expert(struct builder *b, const struct layer *l, int32_t e)
{
	b->place = b->places && e >= 0 ? &b->places[(l - b->m->layers) * b->m->config.n_experts + e] : NULL;
}

/* Experts stacked as transformers saves them: gate rows first, then up; the names may end in .weight. */
static int place_fused_experts(struct builder *b, struct layer *l, const char *prefix, const char *ending)
{
	const struct model_config *c = &b->m->config;
	char both[NAME_BYTES], down[NAME_BYTES], single[NAME_BYTES];
	struct stack gate_up, downs;

	text(both, "%smlp.experts.gate_up_proj%s", prefix, ending);
	text(down, "%smlp.experts.down_proj%s", prefix, ending);
	text(single, "%smlp.experts.0.gate_proj.weight", prefix);
	if (has(b, single))
		return err_set(b->err, ERR_FORMAT, "%s: experts are there both stacked (%s) and one by one (%s); remove the "
			       "ones that are not meant", b->files->dir, both, single);
	if (place_stack(b, &gate_up, both, 2 * c->expert_dim, c->hidden,
			"n_routed_experts x 2 moe_intermediate_size x hidden_size") ||
	    place_stack(b, &downs, down, c->hidden, c->expert_dim,
			"n_routed_experts x hidden_size x moe_intermediate_size"))
		return -1;
	for (int32_t e = 0; e < c->n_experts; e++) {
		at_expert(b, l, e);
		place_from_stack(b, &l->experts[e].gate, &gate_up, e, 0, c->expert_dim);
		place_from_stack(b, &l->experts[e].up, &gate_up, e, c->expert_dim, c->expert_dim);
		half_placed(b);
		place_from_stack(b, &l->experts[e].down, &downs, e, 0, c->hidden);
	}
	at_expert(b, l, -1);
	return 0;
}

static int place_experts(struct builder *b, struct layer *l, const char *prefix)
{
	static const char *const endings[] = {"", ".weight"};
	const struct model_config *c = &b->m->config;
	char name[NAME_BYTES];

	for (int i = 0; i < 2; i++) {
		text(name, "%smlp.experts.gate_up_proj%s", prefix, endings[i]);
		if (has(b, name))
			return place_fused_experts(b, l, prefix, endings[i]);
	}
	for (int32_t e = 0; e < c->n_experts; e++) {
		text(name, "%smlp.experts.%d.", prefix, e);
		at_expert(b, l, e);
		if (place_mlp(b, &l->experts[e], &b->m->bytes.routed, name, c->expert_dim, "moe_intermediate_size"))
			return -1;
	}
	at_expert(b, l, -1);
	/* One expert too many would otherwise pass as a tensor that nobody knows. */
	for (int i = 0; i < 2; i++) {
		text(name, "%smlp.experts.%d.gate_proj.weight%s", prefix, c->n_experts, i ? "_packed" : "");
		if (has(b, name))
			return err_set(b->err, ERR_FORMAT, "%s: there is a tensor %s, but config.json has n_routed_experts %d; the "
				       "two do not belong together", b->files->dir, name, c->n_experts);
	}
	return 0;
}

static int place_moe(struct builder *b, struct layer *l, const char *prefix)
{
	const struct model_config *c = &b->m->config;
	char shared[NAME_BYTES];

	text(shared, "%smlp.shared_experts.", prefix);
	if (place_matrix(b, &l->router, &b->m->bytes.router, prefix, "mlp.gate.weight", c->n_experts, c->hidden,
			 "n_routed_experts x hidden_size") ||
	    place_vector(b, &l->router_bias, &b->m->bytes.router, prefix, "mlp.gate.e_score_correction_bias",
			 c->n_experts, "n_routed_experts") ||
	    place_mlp(b, &l->mlp, &b->m->bytes.shared, shared, c->n_shared_experts * c->expert_dim,
		      "n_shared_experts moe_intermediate_size"))
		return -1;
	/* The router's shape has shown that the file knows of so many. */
	l->experts = xcalloc((size_t)c->n_experts, sizeof *l->experts);
	return place_experts(b, l, prefix);
}

static bool is_mtp_layer(const struct builder *b, int32_t layer)
{
	char name[NAME_BYTES];

	text(name, "model.layers.%d.eh_proj.weight", layer);
	return has(b, name);
}

static int place_layer(struct builder *b, struct layer *l, const char *prefix, bool is_full, bool is_dense)
{
	const struct model_config *c = &b->m->config;
	char mlp[NAME_BYTES];

	text(mlp, "%smlp.", prefix);
	if (place_vector(b, &l->input_norm, &b->m->bytes.norms, prefix, "input_layernorm.weight", c->hidden,
			 "hidden_size") ||
	    place_attention(b, l, prefix) || (is_full && place_indexer(b, l, prefix)) ||
	    place_vector(b, &l->post_attention_norm, &b->m->bytes.norms, prefix, "post_attention_layernorm.weight",
			 c->hidden, "hidden_size"))
		return -1;
	return is_dense ? place_mlp(b, &l->mlp, &b->m->bytes.dense, mlp, c->dense_dim, "intermediate_size")
			: place_moe(b, l, prefix);
}

/* A copy of the model's matrix that the MTP layer may have for itself. */
static int place_own(struct builder *b, struct weight *w, const char *prefix, const char *suffix)
{
	const struct model_config *c = &b->m->config;
	char name[NAME_BYTES];

	text(name, "%s%s", prefix, suffix);
	return has(b, name) ? place_matrix(b, w, &b->m->bytes.mtp, prefix, suffix, c->vocab, c->hidden,
					   "vocab_size x hidden_size") : 0;
}

static int place_mtp(struct builder *b)
{
	const struct model_config *c = &b->m->config;
	struct mtp *mtp = b->m->mtp = xcalloc(1, sizeof *mtp);
	struct expert_place *places = b->places;
	uint64_t *kind = &b->m->bytes.mtp;
	char prefix[NAME_BYTES];
	int failed;

	if (c->n_mtp_layers != 1)
		return err_set(b->err, ERR_USAGE, "%s: config.json has num_nextn_predict_layers %d; what drafts is a model with one "
			       "MTP layer", b->files->dir, c->n_mtp_layers);
	text(prefix, "model.layers.%d.", c->n_layers);
	b->in_mtp = true;
	b->places = NULL;
	failed = place_vector(b, &mtp->enorm, kind, prefix, "enorm.weight", c->hidden, "hidden_size") ||
		 place_vector(b, &mtp->hnorm, kind, prefix, "hnorm.weight", c->hidden, "hidden_size") ||
		 place_matrix(b, &mtp->eh_proj, kind, prefix, "eh_proj.weight", c->hidden, 2 * c->hidden,
			      "hidden_size x 2 hidden_size") ||
		 place_layer(b, &mtp->layer, prefix, c->has_indexer, false) ||
		 place_vector(b, &mtp->norm, kind, prefix, "shared_head.norm.weight", c->hidden, "hidden_size") ||
		 place_own(b, &mtp->embedding, prefix, "embed_tokens.weight") ||
		 place_own(b, &mtp->head, prefix, "shared_head.head.weight");
	b->in_mtp = false;
	b->places = places;
	return failed ? -1 : 0;
}

static int place_all(struct builder *b, bool mtp)
{
	const struct model_config *c = &b->m->config;
	struct model *m = b->m;

	if (place_matrix(b, &m->embedding, &m->bytes.embedding, "", "model.embed_tokens.weight", c->vocab, c->hidden,
			 "vocab_size x hidden_size"))
		return -1;
	if (!c->tied_head && place_matrix(b, &m->head, &m->bytes.head, "", "lm_head.weight", c->vocab, c->hidden,
					  "vocab_size x hidden_size"))
		return -1;
	if (place_vector(b, &m->final_norm, &m->bytes.norms, "", "model.norm.weight", c->hidden, "hidden_size"))
		return -1;
	m->layers = xcalloc((size_t)c->n_layers, sizeof *m->layers);
	for (int32_t i = 0; i < c->n_layers; i++) {
		char prefix[NAME_BYTES];

		if (is_mtp_layer(b, i))
			return err_set(b->err, ERR_FORMAT, "%s: layer %d is an MTP layer (it has eh_proj), but config.json has "
				       "num_hidden_layers %d; the two do not belong together", b->files->dir, i, c->n_layers);
		text(prefix, "model.layers.%d.", i);
		if (place_layer(b, &m->layers[i], prefix, c->layer_is_full[i], c->layer_is_dense[i]))
			return -1;
	}
	return mtp ? place_mtp(b) : 0;
}

/* ---- what is left over ----------------------------------------------------------------------------------------- */

/* N and the rest of "model.layers.N.rest"; -1 for other names. */
static int32_t layer_of(const char *name, const char **rest)
{
	static const char prefix[] = "model.layers.";
	int32_t n = 0;
	const char *p = name + strlen(prefix);

	if (strncmp(name, prefix, strlen(prefix)) || *p < '0' || *p > '9')
		return -1;
	for (; *p >= '0' && *p <= '9' && n < 10000000; p++)
		n = n * 10 + (*p - '0');
	if (*p != '.')
		return -1;
	*rest = p + 1;
	return n;
}

/* Layers behind the last one are MTP layers, with or without copies of embedding and head; an ordinary one there
 * means that config.json has too few. */
static int account_for(struct builder *b, const struct tensor *t, size_t *n_unknown, const struct tensor **unknown)
{
	const struct model_config *c = &b->m->config;
	const char *rest;
	int32_t layer = layer_of(t->name, &rest);

	if (layer >= c->n_layers) {
		if (!is_mtp_layer(b, layer))
			return err_set(b->err, ERR_FORMAT, "%s: tensor %s belongs to layer %d, which is no MTP layer (it has no "
				       "eh_proj), but config.json has num_hidden_layers %d; the two do not belong together",
				       t->file->path, t->name, layer, c->n_layers);
		b->m->bytes.mtp += t->bytes;
		return 0;
	}
	if (layer >= 0 && c->has_indexer && !c->layer_is_full[layer] && !strncmp(rest, "self_attn.indexer.", 18)) {
		b->m->bytes.indexer += t->bytes; /* some files repeat the indexer on layers that share one */
		return 0;
	}
	b->m->bytes.other += t->bytes;
	if (*n_unknown < NAMED_IN_WARNING)
		unknown[*n_unknown] = t;
	++*n_unknown;
	return 0;
}

static int account_for_rest(struct builder *b)
{
	const struct tensor *unknown[NAMED_IN_WARNING];
	char names[NAMED_IN_WARNING * NAME_BYTES] = "";
	size_t n = 0;

	for (size_t i = 0; i < b->files->n_tensors; i++)
		if (!b->used[i] && account_for(b, b->files->tensors[i], &n, unknown))
			return -1;
	for (size_t i = 0; i < n && i < NAMED_IN_WARNING; i++)
		snprintf(names + strlen(names), sizeof names - strlen(names), "%s%.100s", i ? ", " : "",
			 unknown[i]->name);
	if (n)
		log_warn("%s: %zu tensors are nothing %s has a use for, and are not loaded: %s%s bytes=%llu",
			 b->files->dir, n, b->m->config.architecture, names, n > NAMED_IN_WARNING ? ", ..." : "",
			 (unsigned long long)b->m->bytes.other);
	return 0;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

/* Name the first bad value among those that begin at element `first` of t. */
static int refuse_not_finite(const struct tensor *t, const void *data, enum dtype dtype, uint64_t first, struct err *err)
{
	size_t size = dtype_bytes(dtype), i = 0;
	uint64_t cols = t->n_dims ? (uint64_t)t->shape[t->n_dims - 1] : 1, at;

	while (!weight_any_not_finite((const char *)data + i * size, 1, dtype))
		i++;
	at = first + i;
	return err_set(err, ERR_FORMAT, "%s: tensor %s holds a NaN or infinity at row %llu, column %llu; the file is "
		       "damaged, fetch it again", t->file->path, t->name, (unsigned long long)(at / cols),
		       (unsigned long long)(at % cols));
}

static float half_to_float(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, fraction = h & 0x3ff, bits;
	float f;

	if (!exponent) /* zero or subnormal: fraction x 2^-24, exact */
		return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
	bits = sign | (exponent + 112) << 23 | fraction << 13;
	memcpy(&f, &bits, sizeof f);
	return f;
}

static void widen(float *out, const void *data, size_t n, enum dtype dtype)
{
	const uint16_t *from = data;

	if (dtype == DTYPE_F32) {
		memcpy(out, data, n * sizeof *out);
		return;
	}
	for (size_t i = 0; i < n; i++) {
		uint32_t bits = (uint32_t)from[i] << 16;

		if (dtype == DTYPE_F16)
			out[i] = half_to_float(from[i]);
		else
			memcpy(&out[i], &bits, sizeof bits);
	}
}

/* Read one tensor into its place, by pieces that stay in the cache until they have been looked at. */
static int read_tensor(const struct load *l, char *memory, struct err *err)
{
	const struct tensor *t = l->tensor;
	size_t size = dtype_unit_bytes(l->dtype), out_size = l->widen ? sizeof(float) : size;
	char *piece = l->widen ? xmalloc(PIECE, 1) : NULL, *out = memory + l->offset;
	int failed = 0;

	for (uint64_t done = 0; done < t->bytes && !failed; done += PIECE) {
		size_t bytes = t->bytes - done < PIECE ? (size_t)(t->bytes - done) : PIECE, n = bytes / size;
		char *to = out + done / size * out_size, *read = l->widen ? piece : to;

		failed = io_read_full(t->file, read, t->offset + done, bytes, err);
		if (failed)
			err_wrap(err, "tensor %s", t->name);
		else if (weight_any_not_finite(read, n, l->dtype))
			failed = refuse_not_finite(t, read, l->dtype, done / size, err);
		else if (l->widen)
			widen((float *)(void *)to, read, n, l->dtype);
	}
	free(piece);
	return failed;
}

/* One thread's share of the loads. */
struct reader {
	pthread_t thread;
	const struct load *loads;
	size_t n;
	char *memory;
	int failed;
	struct err err;
};

static void *read_share(void *arg)
{
	struct reader *r = arg;

	for (size_t i = 0; i < r->n && !r->failed; i++)
		r->failed = read_tensor(&r->loads[i], r->memory, &r->err);
	return NULL;
}

/* Cut the loads into n_threads runs of about the same bytes. Threads share nothing but the block, in which each
 * load has a place of its own; of several errors the first in the order of loading is told. */
static int read_all(struct builder *b, char *memory, int n_threads)
{
	struct reader *readers;
	size_t next = 0;
	int n = n_threads < 1 ? 1 : n_threads > MAX_THREADS ? MAX_THREADS : n_threads, failed = 0, started = 0;

	readers = xcalloc((size_t)n, sizeof *readers);
	for (int i = 0; i < n; i++) {
		struct reader *r = &readers[i];
		size_t end = b->bytes / (size_t)n * (size_t)(i + 1);

		r->memory = memory;
		r->loads = b->loads + next;
		while (next < b->n_loads && (i == n - 1 || b->loads[next].offset < end)) {
			next++;
			r->n++;
		}
	}
	/* The last share is this thread's, and any that no thread could be started for. */
	while (started < n - 1 && !pthread_create(&readers[started].thread, NULL, read_share, &readers[started]))
		started++;
	for (int i = started; i < n; i++)
		read_share(&readers[i]);
	for (int i = 0; i < started; i++)
		pthread_join(readers[i].thread, NULL);
	for (int i = 0; i < n && !failed; i++)
		if (readers[i].failed)
			failed = err_set(b->err, readers[i].err.code, "%s", readers[i].err.text);
	free(readers);
	return failed;
}

/* Packed experts that were loaded are those that were packed, if their checksums came with them. A tier looks for itself,
 * at each read. */
static int check_sums(struct builder *b)
{
	const struct model_config *c = &b->m->config;
	size_t n = (size_t)c->n_layers * (size_t)c->n_experts;
	struct expert_sums *sums;
	int failed = 0;

	if (expert_sums_open(&sums, b->files->dir, NULL, NULL, n, b->err))
		return -1;
	for (size_t i = 0; i < n && !failed && expert_sums_shipped(sums); i++) {
		size_t layer = i / (size_t)c->n_experts, id = i % (size_t)c->n_experts;
		const struct expert *e = b->m->layers[layer].experts ? &b->m->layers[layer].experts[id] : NULL;

		if (e && e->gate.dtype == DTYPE_INT4 && !expert_sums_match(sums, i, expert_sum_int4(e)))
			failed = err_set(b->err, ERR_DAMAGED, "%s: layer %zu, expert %zu: the bytes read are not those that were "
					 "packed; the disk or the file is damaged: fetch or pack the model again", b->files->dir,
					 layer, id);
	}
	expert_sums_close(sums, NULL);
	return failed;
}

static int load_all(struct builder *b, int n_threads)
{
	char *memory;

	/* Huge pages: weights are read from end to end again and again. */
	if (pages_resize(&b->m->memory, 0, b->bytes, "weights", b->err))
		return err_wrap(b->err, "%s", b->files->dir);
	memory = b->m->memory;
	for (size_t i = 0; i < b->n_slots; i++)
		*b->slots[i].where = memory + b->slots[i].offset;
	return read_all(b, memory, n_threads) || fingerprint_model(b->m->fingerprint, &b->m->config, b->files, b->err) ||
	       checkpoint_check_unchanged(b->files, b->err) || (b->m->config.n_experts && !b->places && check_sums(b));
}

/* ---- opening and closing --------------------------------------------------------------------------------------- */

/* The tier of experts that stay in their files. */
static int open_experts(struct builder *b, const struct experts_options *opt)
{
	const struct model_config *c = &b->m->config;
	struct experts_options own = *opt;
	struct expert_place *places = b->places;

	own.fingerprint = b->m->fingerprint;
	own.hidden = c->hidden;
	own.expert_dim = c->expert_dim;
	b->places = NULL; /* the tier's from now on */
	return experts_open(&b->m->experts, b->files, places, c->n_layers, c->n_experts, c->experts_per_token, &own, b->err);
}

enum extent { HEADERS, EXPERTS_ALONE, EVERYTHING };

static int build(struct model *m, const struct checkpoint *files, enum extent extent, const struct model_options *opt,
		 struct err *err)
{
	struct builder b = {.m = m, .files = files, .err = err, .used = xcalloc(files->n_tensors, sizeof *b.used)};
	bool tiered = extent != HEADERS && opt && opt->experts && m->config.n_experts;
	int failed;

	if (tiered)
		b.places = xcalloc((size_t)m->config.n_layers * (size_t)m->config.n_experts, sizeof *b.places);
	failed = place_all(&b, opt && opt->mtp) || account_for_rest(&b);
	m->loaded_bytes = b.bytes;
	failed = failed || (extent == EVERYTHING && load_all(&b, opt ? opt->n_threads : 1)) ||
		 (extent == EXPERTS_ALONE && fingerprint_model(m->fingerprint, &m->config, files, err)) ||
		 (tiered && open_experts(&b, opt->experts));
	free(b.places);
	if (m->config.tied_head)
		m->head = m->embedding;
	if (m->mtp && !m->mtp->embedding.rows)
		m->mtp->embedding = m->embedding;
	if (m->mtp && !m->mtp->head.rows)
		m->mtp->head = m->head;
	m->n_tensors = files->n_tensors;
	free(b.used);
	free(b.loads);
	free(b.slots);
	return failed ? -1 : 0;
}

static int open_model(struct model **out, const char *dir, const struct model_options *opt, enum extent extent,
		      struct err *err)
{
	struct model *m = xcalloc(1, sizeof *m);
	struct checkpoint *files = NULL;
	int failed;

	m->dir = xstrdup(dir);
	failed = model_config_load(&m->config, dir, opt, err) || checkpoint_open(&files, dir, err) ||
		 build(m, files, extent, opt, err);
	if (m->experts)
		m->files = files;
	else
		checkpoint_close(files);
	if (failed) {
		model_close(m);
		return -1;
	}
	*out = m;
	return 0;
}

int model_open(struct model **out, const char *dir, const struct model_options *opt, struct err *err)
{
	return open_model(out, dir, opt, EVERYTHING, err);
}

int model_open_headers(struct model **out, const char *dir, const struct model_options *opt, struct err *err)
{
	return open_model(out, dir, opt, HEADERS, err);
}

int model_open_experts(struct model **out, const char *dir, const struct model_options *opt, struct err *err)
{
	return open_model(out, dir, opt, EXPERTS_ALONE, err);
}

void model_close(struct model *m)
{
	if (!m)
		return;
	experts_close(m->experts); /* which writes into the layers */
	for (int32_t i = 0; i < m->config.n_layers && m->layers; i++)
		free(m->layers[i].experts);
	free(m->layers);
	if (m->mtp)
		free(m->mtp->layer.experts);
	free(m->mtp);
	checkpoint_close(m->files);
	pages_free(m->memory, m->memory ? m->loaded_bytes : 0);
	free(m->dir);
	free(m);
}
