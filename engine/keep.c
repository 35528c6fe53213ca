/* Latents and index keys into a session's memory: computed ones, and those that a store kept. */
#include "engine/internal.h"

#include "engine/latents.h"

struct keep_job {
	struct pass *p;
	int32_t layer;
	float *values;   /* index keys: rounded in place */
	uint8_t *stored; /* [n, bytes] */
	size_t bytes;
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
		float *ready = j->p->s->rows[j->layer] + (j->p->first + i) * width;

		if (!latent_pack(format, row, j->values + i * width, c->kv_lora, c->rope_dim) ||
		    !latent_unpack(format, ready, row, c->kv_lora, c->rope_dim))
			device_fail(j->p->dev, ERR_FORMAT,
				    "layer %d, position %lld: the latent is not finite; the weights are damaged, or "
				    "not those of this architecture",
				    j->layer, (long long)(j->p->first + i));
	}
}

void keep_latents(struct pass *p, int32_t layer, float *values)
{
	struct session *s = p->s;
	size_t bytes = s->layout->row_bytes;
	int32_t width = p->c->kv_lora + p->c->rope_dim;
	float *rows = s->rows[layer] + p->first * width;
	struct keep_job j = {p, layer, values, NULL, bytes};

	j.stored = s->stored_rows ? s->stored_rows[layer] + (size_t)p->first * bytes
				  : arena_alloc(p->scratch, (size_t)p->n, bytes);
	pool_run(p->dev->queue, pack_rows, &j, p->n, 16 * width);
	p->ops->rope(p->dev, rows + p->c->kv_lora, width, 1, 0, p->c->rope_dim, p->cos, p->sin, p->n,
		     p->c->rope_interleaved);
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
	}
}

void place_index_keys(struct session *s, int32_t index_layer, float *values, int64_t first, int64_t n,
		      const float *cos, const float *sin)
{
	const struct model_config *c = &s->model->config;
	int32_t dim = c->index_dim;

	s->engine->ops->rope(&s->engine->device, values, dim, 1, 0, c->rope_dim, cos, sin, n,
			     c->index_rope_interleaved);
	for (int64_t i = 0; i < n; i++) {
		int64_t t = first + i;
		float *block = s->keys[index_layer] + t / KEYS_ABREAST * KEYS_ABREAST * dim + t % KEYS_ABREAST;

		for (int32_t d = 0; d < dim; d++)
			block[d * KEYS_ABREAST] = values[i * dim + d];
	}
}

void keep_index_keys(struct pass *p, int32_t layer, float *values)
{
	struct session *s = p->s;
	size_t bytes = s->layout->index_key_bytes;
	int32_t index_layer = session_index_layer(s, layer);
	struct keep_job j = {p, layer, values, NULL, bytes};

	j.stored = s->stored_keys ? s->stored_keys[index_layer] + (size_t)p->first * bytes
				  : arena_alloc(p->scratch, (size_t)p->n, bytes);
	pool_run(p->dev->queue, pack_keys, &j, p->n, 8 * p->c->index_dim);
	place_index_keys(s, index_layer, values, p->first, p->n, p->cos, p->sin);
}
