/* One sequence of tokens and its latents: memory, and the way in and out of it. */
#include "engine/gather.h"

#include <assert.h>
#include <stdlib.h>

#include "config/pages.h"
#include "engine/latents.h"
#include "engine/noise.h"

enum { FIRST_ROOM = 256, IMPORT_ROWS = 256, KEY_ROWS = 1024, FILL_ROWS = 8192 };

int session_new(struct session **out, struct engine *e, const struct model *m, const struct session_options *opt,
		struct err *err)
{
	const struct model_config *c = &m->config;
	struct session *s = xcalloc(1, sizeof *s);

	assert(!opt->by_group || !opt->keep_records);
	s->engine = e;
	s->model = m;
	s->opt = *opt;
	if (!s->opt.max_tokens || s->opt.max_tokens > c->max_positions)
		s->opt.max_tokens = c->max_positions;
	if (s->opt.max_tokens > INT32_MAX / 2 - KEYS_ABREAST)
		s->opt.max_tokens = INT32_MAX / 2 - KEYS_ABREAST; /* positions in index sets are 32 bits, slots before them */
	s->layout = layout_new(c, opt->latents);
	s->arena = arena_new();
	s->scratch = arena_new();
	s->inv_freq = xcalloc((size_t)(c->rope_dim / 2), sizeof *s->inv_freq);
	rope_inv_freq(&c->rope, c->rope_dim, s->inv_freq);
	s->rows = xcalloc((size_t)c->n_layers, sizeof *s->rows);
	s->keys = xcalloc((size_t)s->layout->n_index_layers, sizeof *s->keys);
	if (opt->keep_records) {
		s->stored_rows = xcalloc((size_t)c->n_layers, sizeof *s->stored_rows);
		s->stored_keys = xcalloc((size_t)s->layout->n_index_layers, sizeof *s->stored_keys);
	}
	(void)err;
	*out = s;
	return 0;
}

int64_t session_n_tokens(const struct session *s)
{
	return s->n_tokens;
}

void session_skip(struct session *s, int64_t n)
{
	assert(s->opt.by_group && n >= 0);
	s->n_tokens += n;
}

const struct layout *session_layout(const struct session *s)
{
	return s->layout;
}

int32_t session_index_layer(const struct session *s, int32_t layer)
{
	int32_t i = 0;

	while (s->layout->index_layers[i] != layer)
		i++;
	return i;
}

/* Bytes of one token in each array of a layer, and of an index layer. */
size_t session_row_bytes(const struct model_config *c, enum compute_profile compute)
{
	size_t n = (size_t)(c->kv_lora + c->rope_dim);

	return compute == COMPUTE_BF16 ? n * sizeof(uint16_t) : n * sizeof(float);
}

size_t session_key_bytes(const struct model_config *c, enum compute_profile compute)
{
	size_t n = (size_t)c->index_dim;

	return compute == COMPUTE_BF16 ? (n + n % 2) * sizeof(uint16_t) : n * sizeof(float);
}

static size_t row_size(const struct session *s)
{
	return session_row_bytes(&s->model->config, s->engine->compute);
}

static size_t key_size(const struct session *s)
{
	return session_key_bytes(&s->model->config, s->engine->compute);
}

size_t session_bytes(const struct session *s)
{
	size_t row = row_size(s) + (s->stored_rows ? s->layout->row_bytes : 0);
	size_t key = key_size(s) + (s->stored_keys ? s->layout->index_key_bytes : 0);

	if (s->opt.by_group)
		return s->open_bytes;
	return (size_t)s->room * ((size_t)s->layout->n_layers * row + (size_t)s->layout->n_index_layers * key) +
	       (size_t)s->n_slots * (size_t)s->layout->n_layers * row_size(s);
}

/* Array i of the session, the bytes of one token in it, and how many it has before the session's own; NULL behind the last
 * one. */
static void **array_at(const struct session *s, int32_t i, size_t *bytes, int64_t *before)
{
	const struct layout *l = s->layout;
	const struct {
		void **arrays;
		int32_t n;
		size_t bytes;
	} kinds[] = {
		{s->rows, l->n_layers, row_size(s)},
		{s->keys, l->n_index_layers, key_size(s)},
		{(void **)s->stored_rows, s->stored_rows ? l->n_layers : 0, l->row_bytes},
		{(void **)s->stored_keys, s->stored_keys ? l->n_index_layers : 0, l->index_key_bytes},
	};

	for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; i -= kinds[k++].n) {
		*bytes = kinds[k].bytes;
		*before = k ? 0 : s->n_slots;
		if (i < kinds[k].n)
			return &kinds[k].arrays[i];
	}
	return NULL;
}

static size_t array_bytes(size_t bytes, int64_t before, int64_t room)
{
	return room ? (size_t)(before + room) * bytes : 0;
}

/* All arrays to a room of so many tokens, or none of them. */
static int resize(struct session *s, int64_t room, struct err *err)
{
	size_t bytes;
	int64_t before;
	void **array;

	for (int32_t i = 0; (array = array_at(s, i, &bytes, &before)); i++) {
		if (!pages_resize(array, array_bytes(bytes, before, s->room), array_bytes(bytes, before, room),
				  "latents of the session", err))
			continue;
		while (i--) {
			array = array_at(s, i, &bytes, &before);
			pages_resize(array, array_bytes(bytes, before, room), array_bytes(bytes, before, s->room), "", NULL);
		}
		return -1;
	}
	s->room = room;
	return 0;
}

void session_free(struct session *s)
{
	size_t bytes;
	int64_t before;
	void **array;

	if (!s)
		return;
	for (int32_t i = 0; (array = array_at(s, i, &bytes, &before)); i++)
		pages_free(*array, array_bytes(bytes, before, s->room));
	gather_free(s->gather);
	free(s->rows);
	free(s->keys);
	free(s->stored_rows);
	free(s->stored_keys);
	free(s->inv_freq);
	arena_free(s->arena);
	arena_free(s->scratch);
	layout_free(s->layout);
	free(s);
}

static int too_long(const struct session *s, int64_t n, struct err *err)
{
	return err_set(err, ERR_TOO_LARGE, "%lld tokens are more than the context of %lld", (long long)n,
		       (long long)s->opt.max_tokens);
}

/* Room for n tokens in all. What is not used costs nothing, so room is taken generously. */
static int reserve(struct session *s, int64_t n, struct err *err)
{
	int64_t room = s->room ? s->room : FIRST_ROOM;

	assert(!s->opt.by_group);
	if (n > s->opt.max_tokens)
		return too_long(s, n, err);
	if (n <= s->room)
		return 0;
	while (room < n)
		room = room < (1 << 20) ? 2 * room : room + (1 << 20);
	if (room > s->opt.max_tokens)
		room = (s->opt.max_tokens + KEYS_ABREAST - 1) / KEYS_ABREAST * KEYS_ABREAST;
	return resize(s, room, err);
}

/* One array of a session by_group, open or closed. */
static int open_array(struct session *s, void **array, size_t bytes, struct err *err)
{
	if (pages_resize(array, 0, (size_t)s->room * bytes, "latents of a group of layers", err))
		return -1;
	s->open_bytes += (size_t)s->room * bytes;
	return 0;
}

static void close_array(struct session *s, void **array, size_t bytes)
{
	if (!*array)
		return;
	pages_free(*array, (size_t)s->room * bytes);
	*array = NULL;
	s->open_bytes -= (size_t)s->room * bytes;
}

static bool has_index_keys(const struct session *s, int32_t layer)
{
	return s->model->config.has_indexer && s->model->config.layer_is_full[layer];
}

int session_open_layer(struct session *s, int32_t layer, int64_t n_tokens, struct err *err)
{
	int64_t room = (n_tokens + KEYS_ABREAST - 1) / KEYS_ABREAST * KEYS_ABREAST;

	assert(s->opt.by_group && !s->rows[layer] && (!s->open_bytes || room == s->room));
	s->room = room;
	if (open_array(s, &s->rows[layer], row_size(s), err) ||
	    (has_index_keys(s, layer) && open_array(s, &s->keys[session_index_layer(s, layer)], key_size(s), err))) {
		session_close_layer(s, layer);
		return -1;
	}
	return 0;
}

void session_close_layer(struct session *s, int32_t layer)
{
	close_array(s, &s->rows[layer], row_size(s));
	if (has_index_keys(s, layer))
		close_array(s, &s->keys[session_index_layer(s, layer)], key_size(s));
}

int session_admit(struct session *s, const int32_t *ids, size_t n, struct err *err)
{
	int64_t lost, n_lost;

	assert(n >= 1);
	if (session_lost(s, &lost, &n_lost))
		return err_set(err, ERR_DAMAGED, "the latents of tokens %lld to %lld were lost: compute those again first",
			       (long long)lost, (long long)(lost + n_lost - 1));
	for (size_t i = 0; i < n; i++)
		if (ids[i] < 0 || ids[i] >= s->model->config.vocab)
			return err_set(err, ERR_USAGE, "token id %d at position %lld is not below the vocabulary of %d",
				       ids[i], (long long)s->n_tokens + (long long)i, s->model->config.vocab);
	if (n > (size_t)s->opt.max_tokens)
		return err_set(err, ERR_TOO_LARGE, "%zu tokens are more than the context of %lld", n,
			       (long long)s->opt.max_tokens);
	if (!s->opt.by_group)
		return reserve(s, s->n_tokens + (int64_t)n, err);
	if (s->n_tokens + (int64_t)n > s->opt.max_tokens)
		return too_long(s, s->n_tokens + (int64_t)n, err);
	return 0;
}

int session_append(struct session *s, const int32_t *ids, size_t n, float *last_logits,
		   const struct session_tap *tap, struct err *err)
{
	if (session_admit(s, ids, n, err) || forward(s, ids, (int64_t)n, last_logits, tap, err))
		return -1;
	s->n_tokens += (int64_t)n;
	return 0;
}

void session_truncate(struct session *s, int64_t n_tokens)
{
	assert(n_tokens >= 0 && n_tokens <= s->n_tokens);
	s->n_tokens = n_tokens;
	if (s->gather)
		gather_truncate(s->gather, n_tokens);
}

void session_export_records(const struct session *s, int32_t group, int64_t first, int64_t n, uint8_t *out)
{
	const struct layout_group *g = &s->layout->groups[group];
	size_t bytes = s->layout->row_bytes;

	assert(s->stored_rows && first >= 0 && first + n <= s->n_tokens);
	for (int64_t t = first; t < first + n; t++)
		for (int32_t i = 0; i < g->n_layers; i++, out += bytes)
			memcpy(out, s->stored_rows[g->layers[i]] + (size_t)t * bytes, bytes);
}

void session_export_index_keys(const struct session *s, int32_t index_layer, int64_t first, int64_t n, uint8_t *out)
{
	size_t bytes = s->layout->index_key_bytes;

	assert(s->stored_keys && first >= 0 && first + n <= s->n_tokens);
	memcpy(out, s->stored_keys[index_layer] + (size_t)first * bytes, (size_t)n * bytes);
}

struct angle_job {
	const struct session *s;
	int64_t first;
	float *cos, *sin; /* [n, rope_dim / 2] */
};

static void find_angles(void *arg, int64_t first, int64_t end, int thread)
{
	const struct angle_job *j = arg;
	int32_t dim = j->s->model->config.rope_dim;

	(void)thread;
	rope_cos_sin(j->s->inv_freq, dim, j->first + first, end - first, j->cos + first * (dim / 2), j->sin + first * (dim / 2));
}

/* cos and sin of positions first .. first + n - 1, in the session's scratch. */
static void angles(struct session *s, int64_t first, int64_t n, float **cos, float **sin)
{
	int32_t dim = s->model->config.rope_dim;
	struct angle_job j = {.s = s, .first = first};

	j.cos = *cos = arena_alloc(s->scratch, (size_t)n * (size_t)(dim / 2), sizeof **cos);
	j.sin = *sin = arena_alloc(s->scratch, (size_t)n * (size_t)(dim / 2), sizeof **sin);
	pool_run(s->engine->pool, find_angles, &j, n, 64 * dim);
}

/*
 * Angles of positions that keys of many layers are imported for: of KEY_ROWS positions each, the last ones that were
 * asked for. Their cosines take longer than everything else that is done to a key.
 */
enum { ANGLE_PIECES = 64 };

struct angles_kept {
	int64_t piece[ANGLE_PIECES]; /* its number; -1: none */
	float *values;               /* [ANGLE_PIECES][2][KEY_ROWS][rope_dim / 2] cos, then sin */
};

static struct angles_kept *angles_kept_new(const struct session *s)
{
	struct angles_kept *k = xcalloc(1, sizeof *k);

	for (int i = 0; i < ANGLE_PIECES; i++)
		k->piece[i] = -1;
	k->values = xmalloc((size_t)ANGLE_PIECES * KEY_ROWS, (size_t)s->model->config.rope_dim * sizeof *k->values);
	return k;
}

static void angles_kept_free(struct angles_kept *k)
{
	if (k)
		free(k->values);
	free(k);
}

/* Of one piece's positions. They stay until ANGLE_PIECES others have been asked for. */
static void kept_angles(struct session *s, int64_t first, float **cos, float **sin)
{
	struct angles_kept *k = s->angles;
	int64_t piece = first / KEY_ROWS, half = s->model->config.rope_dim / 2, size = KEY_ROWS * half;
	float *values = k->values + piece % ANGLE_PIECES * 2 * size;
	struct angle_job j = {s, piece * KEY_ROWS, values, values + size};

	if (k->piece[piece % ANGLE_PIECES] != piece)
		pool_run(s->engine->pool, find_angles, &j, KEY_ROWS, 128 * half);
	k->piece[piece % ANGLE_PIECES] = piece;
	*cos = j.cos + first % KEY_ROWS * half;
	*sin = j.sin + first % KEY_ROWS * half;
}

static int import_rows(struct session *s, const struct layout_group *g, int64_t first, int64_t n,
		       const uint8_t *records, int64_t *bad, struct err *err)
{
	const struct model_config *c = &s->model->config;
	size_t bytes = s->layout->row_bytes;
	int64_t width = c->kv_lora + c->rope_dim;
	float *cos, *sin, *values;

	arena_reset(s->scratch);
	angles(s, first, n, &cos, &sin);
	values = arena_alloc(s->scratch, (size_t)(n * width), sizeof *values);
	for (int32_t i = 0; i < g->n_layers; i++) {
		int32_t layer = g->layers[i];

		for (int64_t t = 0; t < n; t++) {
			const uint8_t *row = records + ((size_t)t * (size_t)g->n_layers + (size_t)i) * bytes;

			if (!latent_unpack(s->opt.latents, values + t * width, row, c->kv_lora, c->rope_dim)) {
				*bad = first + t;
				return err_set(err, ERR_DAMAGED,
					       "layer %d, position %lld: the stored latent is not finite", layer,
					       (long long)(first + t));
			}
			if (s->stored_rows)
				memcpy(s->stored_rows[layer] + (size_t)(first + t) * bytes, row, bytes);
		}
		place_latents(s, layer, values, first, n, cos, sin);
	}
	return 0;
}

int session_place_records(struct session *s, int32_t group, int64_t first, int64_t n, const uint8_t *records,
			  int64_t *bad, struct err *err)
{
	for (int64_t i = 0; i < n; i += IMPORT_ROWS)
		if (import_rows(s, &s->layout->groups[group], first + i, n - i < IMPORT_ROWS ? n - i : IMPORT_ROWS,
				records + (size_t)i * layout_record_bytes(s->layout, group), bad, err))
			return -1;
	return 0;
}

int session_import_records(struct session *s, int32_t group, int64_t first, int64_t n, const uint8_t *records,
			   struct err *err)
{
	int64_t bad;

	assert(first == s->n_tokens);
	return reserve(s, first + n, err) || session_place_records(s, group, first, n, records, &bad, err) ? -1 : 0;
}

struct unpack_job {
	enum latent_format format;
	float *values;       /* [n, dim] */
	const uint8_t *keys; /* [n, bytes] */
	size_t bytes;
	int32_t dim;
	int64_t *bad;        /* [threads] the first that is not finite; -1: none */
};

static void unpack_keys(void *arg, int64_t first, int64_t end, int thread)
{
	const struct unpack_job *j = arg;

	for (int64_t t = first; t < end && j->bad[thread] < 0; t++)
		if (!index_key_unpack(j->format, j->values + t * j->dim, j->keys + (size_t)t * j->bytes, j->dim))
			j->bad[thread] = t;
}

/* Positions of one piece of angles. */
static int import_keys(struct session *s, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
		       int64_t *bad, struct err *err)
{
	int32_t dim = s->model->config.index_dim, n_threads = pool_n_threads(s->engine->pool);
	struct unpack_job j = {.format = s->opt.latents, .keys = keys, .bytes = s->layout->index_key_bytes, .dim = dim};
	float *cos, *sin;

	arena_reset(s->scratch);
	if (s->angles)
		kept_angles(s, first, &cos, &sin);
	else
		angles(s, first, n, &cos, &sin);
	j.values = arena_alloc(s->scratch, (size_t)n * (size_t)dim, sizeof *j.values);
	j.bad = arena_alloc(s->scratch, (size_t)n_threads, sizeof *j.bad);
	for (int32_t i = 0; i < n_threads; i++)
		j.bad[i] = -1;
	pool_run(s->engine->pool, unpack_keys, &j, n, 4 * dim);
	for (int32_t i = 0; i < n_threads; i++) /* their shares ascend */
		if (j.bad[i] >= 0) {
			*bad = first + j.bad[i];
			return err_set(err, ERR_DAMAGED, "layer %d, position %lld: the stored index key is not finite",
				       s->layout->index_layers[index_layer], (long long)*bad);
		}
	if (s->stored_keys)
		memcpy(s->stored_keys[index_layer] + (size_t)first * j.bytes, keys, (size_t)n * j.bytes);
	place_index_keys(s, index_layer, j.values, first, n, cos, sin);
	return 0;
}

int session_place_index_keys(struct session *s, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
			     int64_t *bad, struct err *err)
{
	for (int64_t i = 0, m; i < n; i += m) {
		m = KEY_ROWS - (first + i) % KEY_ROWS;
		m = m < n - i ? m : n - i;
		if (import_keys(s, index_layer, first + i, m, keys + (size_t)i * s->layout->index_key_bytes, bad, err))
			return -1;
	}
	return 0;
}

int session_import_index_keys(struct session *s, int32_t index_layer, int64_t first, int64_t n, const uint8_t *keys,
			      struct err *err)
{
	int64_t bad;

	assert(first == s->n_tokens);
	return reserve(s, first + n, err) || session_place_index_keys(s, index_layer, first, n, keys, &bad, err) ? -1 : 0;
}

void session_import_commit(struct session *s, int64_t n)
{
	assert(s->n_tokens + n <= s->room);
	s->n_tokens += n;
}

/* ---- attached tokens ---- */

int session_attach(struct session *s, const struct latent_source *source, int64_t n, size_t latent_bytes,
		   struct err *err)
{
	struct gather *g;
	int rc;

	assert(!s->n_tokens && !s->stored_rows && !s->opt.by_group && n >= 1);
	if (n > s->opt.max_tokens)
		return err_set(err, ERR_TOO_LARGE, "%lld tokens are more than the context of %lld", (long long)n,
			       (long long)s->opt.max_tokens);
	resize(s, 0, NULL); /* smaller: it does not fail */
	gather_free(s->gather);
	s->gather = NULL;
	s->n_slots = 0;
	if (gather_new(&g, s, source, n, latent_bytes, err))
		return -1;
	s->n_slots = gather_slots(g);
	s->angles = angles_kept_new(s);
	rc = reserve(s, n, err) || gather_load(g, err) ? -1 : 0;
	angles_kept_free(s->angles);
	s->angles = NULL;
	if (rc) {
		resize(s, 0, NULL);
		s->n_slots = 0;
		gather_free(g);
		return -1;
	}
	s->gather = g;
	s->n_tokens = n;
	return 0;
}

size_t session_least_latent_bytes(const struct engine *e, const struct model *m)
{
	const struct model_config *c = &m->config;

	return c->has_indexer ? (size_t)c->index_topk * (size_t)c->n_layers * session_row_bytes(c, e->compute) : 0;
}

bool session_lost(const struct session *s, int64_t *first, int64_t *n)
{
	return s->gather && gather_lost(s->gather, first, n);
}

int session_recompute(struct session *s, const int32_t *ids, int64_t first, int64_t n, struct err *err)
{
	int64_t n_tokens = s->n_tokens, lost, n_lost;
	int rc;

	assert(session_lost(s, &lost, &n_lost) && lost == first && n_lost == n);
	/* As if the session ended there: tokens see what is before them, and the rows of these are the session's own. */
	s->n_tokens = first;
	gather_own(s->gather, first);
	rc = forward(s, ids, n, NULL, NULL, err);
	if (rc)
		gather_own_failed(s->gather, first);
	s->n_tokens = n_tokens;
	return rc;
}

void session_count_gathers(const struct session *s, struct session_gathers *out)
{
	*out = (struct session_gathers){0};
	if (s->gather)
		gather_count(s->gather, out);
}

/* ---- random latents ---- */

/* One array of a layer, at some positions: values made, rounded as a store would, and left where they are placed from. */
struct fill_job {
	struct session *s;
	float *values;   /* [n, dim] */
	uint8_t *stored; /* [n, bytes], NULL: not kept */
	size_t bytes;
	int64_t first;
	int32_t dim;
	bool index_keys;
	uint64_t key;
};

/* n values of unit variance, evenly spread, four a word. */
static void noise(float *out, int32_t n, uint64_t key)
{
	for (int32_t i = 0; i < n; i += 4) {
		uint64_t x = noise_word(key, (uint64_t)i / 4);

		for (int32_t k = i; k < n && k < i + 4; k++, x >>= 16)
			out[k] = (float)(int16_t)x * (1.7320508f / 32768);
	}
}

static void fill_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct fill_job *j = arg;
	const struct session *s = j->s;
	const struct model_config *c = &s->model->config;
	uint8_t *own = j->stored ? NULL : pool_scratch(s->engine->pool, thread, j->bytes);
	enum latent_format format = s->opt.latents;

	for (int64_t i = first; i < end; i++) {
		float *value = j->values + i * j->dim;
		uint8_t *row = own ? own : j->stored + (size_t)i * j->bytes;

		/* By position, so that it does not matter in how many calls or by how many threads. */
		noise(value, j->dim, noise_word(j->key, (uint64_t)(j->first + i)));
		if (j->index_keys) {
			index_key_pack(format, row, value, j->dim);
			index_key_unpack(format, value, row, j->dim);
		} else {
			latent_pack(format, row, value, c->kv_lora, c->rope_dim);
			latent_unpack(format, value, row, c->kv_lora, c->rope_dim);
		}
	}
}

/* n more positions, at most FILL_ROWS, for which there is room. */
static void fill_part(struct session *s, int64_t n, uint64_t seed)
{
	const struct model_config *c = &s->model->config;
	const struct layout *l = s->layout;
	int32_t width = c->kv_lora + c->rope_dim, widest = width > c->index_dim ? width : c->index_dim;
	int64_t first = s->n_tokens;
	float *cos, *sin, *values;

	arena_reset(s->scratch);
	angles(s, first, n, &cos, &sin);
	values = arena_alloc(s->scratch, (size_t)n * (size_t)widest, sizeof *values);
	for (int32_t i = 0; i < l->n_layers; i++) {
		struct fill_job j = {s, values, NULL, l->row_bytes, first, width, false, noise_word(seed, 2 * (uint64_t)i)};

		j.stored = s->stored_rows ? s->stored_rows[i] + (size_t)first * l->row_bytes : NULL;
		pool_run(s->engine->pool, fill_rows, &j, n, 16 * width);
		place_latents(s, i, values, first, n, cos, sin);
	}
	for (int32_t i = 0; i < l->n_index_layers; i++) {
		struct fill_job j = {s, values, NULL, l->index_key_bytes, first, c->index_dim, true,
				     noise_word(seed, 2 * (uint64_t)l->index_layers[i] + 1)};

		j.stored = s->stored_keys ? s->stored_keys[i] + (size_t)first * l->index_key_bytes : NULL;
		pool_run(s->engine->pool, fill_rows, &j, n, 16 * c->index_dim);
		place_index_keys(s, i, values, first, n, cos, sin);
	}
	s->n_tokens += n;
}

int session_fill(struct session *s, int64_t n, uint64_t seed, struct err *err)
{
	assert(n >= 0 && s->n_tokens <= INT64_MAX - n);
	if (reserve(s, s->n_tokens + n, err))
		return -1;
	for (int64_t end = s->n_tokens + n; s->n_tokens < end;)
		fill_part(s, end - s->n_tokens < FILL_ROWS ? end - s->n_tokens : FILL_ROWS, seed);
	return 0;
}
