#include "engine/engine.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"
#include "offload/accelerator.h"

static const char *const compute_names[] = {"f32", "bf16"};

const char *compute_profile_name(enum compute_profile compute)
{
	return compute_names[compute];
}

int compute_profile_from_name(const char *name)
{
	for (int i = 0; i < 2; i++)
		if (!strcmp(name, compute_names[i]))
			return i;
	return -1;
}

int engine_open(struct engine **out, const struct engine_options *opt, struct err *err)
{
	struct engine *e;
	int n_threads = opt->n_threads ? opt->n_threads : pool_default_threads();

	if (sodium_init() < 0)
		return err_set(err, ERR_FAILED, "libsodium cannot be initialised");
	e = xcalloc(1, sizeof *e);
	e->compute = opt->compute;
	e->ops = cpu_ops(opt->isa);
	if (!e->ops) {
		engine_close(e);
		return err_set(err, ERR_USAGE, "instruction set '%s' is unknown, or this processor lacks it; "
			       "known are scalar, avx2, avx512 and avx512bf16", opt->isa);
	}
	if (pool_new(&e->pool, n_threads, err)) {
		engine_close(e);
		return -1;
	}
	device_init(&e->device, "cpu", e->pool);
	if (opt->device && accelerator_open(&e->accelerator, opt->device, err)) {
		engine_close(e);
		return -1;
	}
	*out = e;
	return 0;
}

void engine_close(struct engine *e)
{
	if (!e)
		return;
	accelerator_close(e->accelerator);
	pool_free(e->pool);
	free(e);
}

struct accelerator *engine_device(const struct engine *e)
{
	return e->accelerator;
}

int engine_n_threads(const struct engine *e)
{
	return pool_n_threads(e->pool);
}

const char *engine_isa(const struct engine *e)
{
	return e->ops->isa;
}

enum compute_profile engine_compute(const struct engine *e)
{
	return e->compute;
}

void engine_identity(const struct engine *e, const struct model *m, enum latent_format format,
		     uint8_t identity[MODEL_ID_BYTES])
{
	/* Fields in this order, integers little-endian, strings with their zero: what two stores must agree on. */
	crypto_generichash_state h;
	uint8_t numbers[8] = {NUMERICS & 0xff, NUMERICS >> 8 & 0xff, 0, 0, RENDER_FORMAT & 0xff, 0, 0, 0};
	const char *strings[] = {e->device.name, compute_profile_name(e->compute), latent_format_name(format)};

	crypto_generichash_init(&h, NULL, 0, MODEL_ID_BYTES);
	crypto_generichash_update(&h, numbers, sizeof numbers);
	crypto_generichash_update(&h, m->fingerprint, MODEL_ID_BYTES);
	for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++)
		crypto_generichash_update(&h, (const uint8_t *)strings[i], strlen(strings[i]) + 1);
	crypto_generichash_final(&h, identity, MODEL_ID_BYTES);
}

char *engine_identity_name(char out[17], const uint8_t *identity)
{
	for (int i = 0; i < 8; i++)
		sprintf(out + 2 * i, "%02x", identity[i]);
	return out;
}
