/* Latents and index keys into a session's memory: computed ones, and those that a store kept. */
#include "engine/internal.h"

#include "engine/latents.h"
#include "engine/numeric.h"

struct place_job {
	const struct session *s;
	void *to;
	const float *values;
	int64_t first;
	int32_t dim;
};

static void place_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct place_job *j = arg;
	const float *values = j->values + first * j->dim;
	int64_t at = (j->first + first) * j->dim, n = (end - first) * j->dim;

	(void)thread;
	if (j->s->engine->compute == COMPUTE_BF16)
		j->s->engine->ops->to_bf16((uint16_t *)j->to + at, values, n);
	else
		memcpy((float *)j->to + at, values, (size_t)n * sizeof *values);
}

void session_place_row(const struct session *s, int32_t layer, int64_t row, const float *values)
{
	struct place_job j = {s, s->rows[layer], values, row, s->model->config.kv_lora + s->model->config.rope_dim};

	place_rows(&j, 0, 1, 0);
}

void place_latents(struct session *s, int32_t layer, float *values, int64_t first, int64_t n, const float *cos,
		   const float *sin)
{
	const struct model_config *c = &s->model->config;
	int32_t dim = c->kv_lora + c->rope_dim;
	struct place_job j = {s, s->rows[layer], values, s->n_slots + first, dim};

	s->engine->ops->rope(&s->engine->device, values + c->kv_lora, dim, 1, 0, c->rope_dim, cos, sin, n,
			     c->rope_interleaved);
	pool_run(s->engine->pool, place_rows, &j, n, dim);
}

/* Key `at` of a block, in pairs: a word is one pair, the even one in its low half. */
static void place_pairs(uint32_t *block, int64_t at, const uint16_t *value, int32_t dim)
{
	int32_t whole = dim / 2;

	for (int32_t p = 0; p < whole; p++)
		block[(int64_t)p * KEYS_ABREAST + at] = (uint32_t)value[2 * p] | (uint32_t)value[2 * p + 1] << 16;
	if (dim % 2)
		block[(int64_t)whole * KEYS_ABREAST + at] = value[dim - 1];
}

static void place_keys(void *arg, int64_t first, int64_t end, int thread)
{
	enum { PART = 256 }; /* values rounded at a time; even, so that no pair is torn */
	const struct place_job *j = arg;
	bool rounds = j->s->engine->compute == COMPUTE_BF16;
	int64_t words = rounds ? (j->dim + 1) / 2 : j->dim;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		int64_t block = (j->first + i) / KEYS_ABREAST, at = (j->first + i) % KEYS_ABREAST;
		const float *value = j->values + i * j->dim;
		uint32_t *to = (uint32_t *)j->to + block * words * KEYS_ABREAST;

		for (int32_t d = 0; rounds && d < j->dim; d += PART) {
			int32_t n = j->dim - d < PART ? j->dim - d : PART;
			uint16_t part[PART];

			j->s->engine->ops->to_bf16(part, value + d, n);
			place_pairs(to + (int64_t)d / 2 * KEYS_ABREAST, at, part, n);
		}
		for (int32_t d = 0; !rounds && d < j->dim; d++)
			to[(int64_t)d * KEYS_ABREAST + at] = f32_bits(value[d]);
	}
}

void place_index_keys(struct session *s, int32_t index_layer, float *values, int64_t first, int64_t n,
		      const float *cos, const float *sin)
{
	const struct model_config *c = &s->model->config;
	struct place_job j = {s, s->keys[index_layer], values, first, c->index_dim};

	s->engine->ops->rope(&s->engine->device, values, c->index_dim, 1, 0, c->rope_dim, cos, sin, n,
			     c->index_rope_interleaved);
	pool_run(s->engine->pool, place_keys, &j, n, 4 * c->index_dim);
}

struct keep_job {
	struct pass *p;
	int32_t layer;
	float *values;   /* rounded in place */
	uint8_t *stored; /* [n, bytes] */
	size_t bytes;
	uint8_t *copy;   /* the same at copy + i x copy_stride; NULL: nobody wants it */
	size_t copy_stride;
};

static void pack_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct keep_job *j = arg;
	const struct model_config *c = j->p->c;
	int32_t width = c->kv_lora + c->rope_dim;
	enum latent_format format = j->p->s->opt.latents;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		uint8_t *row = j->stored + (size_t)i * j->bytes;
		float *value = j->values + i * width;

		if (!latent_pack(format, row, value, c->kv_lora, c->rope_dim) ||
		    !latent_unpack(format, value, row, c->kv_lora, c->rope_dim))
			device_fail(j->p->dev, ERR_FORMAT,
				    "layer %d, position %lld: the latent is not finite; the weights are damaged, or "
				    "not those of this architecture",
				    j->layer, (long long)(j->p->first + i));
		if (j->copy)
			memcpy(j->copy + (size_t)i * j->copy_stride, row, j->bytes);
	}
}

void keep_latents(struct pass *p, int32_t layer, float *values)
{
	struct session *s = p->s;
	size_t bytes = s->layout->row_bytes;
	struct keep_job j = {p, layer, values, NULL, bytes, p->records, p->record_bytes};

	j.stored = s->stored_rows ? s->stored_rows[layer] + (size_t)p->first * bytes
				  : arena_alloc(p->scratch, (size_t)p->n, bytes);
	pool_run(p->dev->queue, pack_rows, &j, p->n, 16 * (p->c->kv_lora + p->c->rope_dim));
	place_latents(s, layer, values, p->first, p->n, p->cos, p->sin);
}

static void pack_keys(void *arg, int64_t first, int64_t end, int thread)
{
	const struct keep_job *j = arg;
	int32_t dim = j->p->c->index_dim;
	enum latent_format format = j->p->s->opt.latents;

	(void)thread;
	for (int64_t i = first; i < end; i++) {
		uint8_t *key = j->stored + (size_t)i * j->bytes;
		float *value = j->values + i * dim;

		if (!index_key_pack(format, key, value, dim) || !index_key_unpack(format, value, key, dim))
			device_fail(j->p->dev, ERR_FORMAT,
				    "layer %d, position %lld: the index key is not finite; the weights are damaged, "
				    "or not those of this architecture",
				    j->layer, (long long)(j->p->first + i));
		if (j->copy)
			memcpy(j->copy + (size_t)i * j->copy_stride, key, j->bytes);
	}
}

void keep_index_keys(struct pass *p, int32_t layer, float *values)
{
	struct session *s = p->s;
	size_t bytes = s->layout->index_key_bytes;
	int32_t index_layer = session_index_layer(s, layer);
	struct keep_job j = {p, layer, values, NULL, bytes, p->index_keys, bytes};

	j.stored = s->stored_keys ? s->stored_keys[index_layer] + (size_t)p->first * bytes
				  : arena_alloc(p->scratch, (size_t)p->n, bytes);
	pool_run(p->dev->queue, pack_keys, &j, p->n, 8 * p->c->index_dim);
	place_index_keys(s, index_layer, values, p->first, p->n, p->cos, p->sin);
}
