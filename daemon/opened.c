#include "daemon/opened.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "daemon/machine.h"
#include "daemon/placing.h"
#include "daemon/print.h"
#include "engine/experts.h"
#include "engine/experts_device.h"
#include "engine/model.h"
#include "engine/tune_file.h"
#include "offload/accelerator.h"
#include "offload/cost.h"

int opened_engine_options(struct engine_options *opt, enum latent_format *latents, const struct config *c,
			  struct err *err)
{
	int compute = compute_profile_from_name(c->model.compute), format = latent_format_from_name(c->model.latents);

	if (compute < 0 || format < 0)
		return err_set(err, ERR_USAGE, "model.compute %s or model.latents %s is not known", c->model.compute,
			       c->model.latents);
	*opt = (struct engine_options){
		.n_threads = (int)c->compute.threads,
		.compute = (enum compute_profile)compute,
		.isa = strcmp(c->compute.isa, "auto") ? c->compute.isa : NULL,
	};
	*latents = (enum latent_format)format;
	return 0;
}

/* Memory for the latents that questions attend to: what was said, or a quarter of what is available when the model is
 * open, which leaves the greater part to index keys, an ingest's scratch memory and the files' cache; and never less
 * than one token needs, which is a refusal otherwise. */
static size_t latent_bytes(const struct opened *o, const struct config *c)
{
	size_t least = session_least_latent_bytes(o->engine, o->model);
	struct machine_memory memory;
	struct err err;

	if (c->context.latent_cache_bytes)
		return (size_t)c->context.latent_cache_bytes;
	if (machine_memory(&memory, "", &err)) {
		log_warn("context.latent_cache: auto is 1 GiB, since the memory that is available is not known: %s", err.text);
		memory.available_bytes = 4LL << 30;
	}
	return (size_t)memory.available_bytes / 4 > least ? (size_t)memory.available_bytes / 4 : least;
}

/* The device that computes experts, by its name, to be freed; NULL: none. Where nobody said which, and none is there, that is told. */
static char *device_of(const struct config *c)
{
	struct err err;

	if (strcmp(c->tiers.device, "auto"))
		return strcmp(c->tiers.device, "none") ? xstrdup(c->tiers.device) : NULL;
	if (accelerator_count("cuda", &err) > 0)
		return xstrdup("cuda:0");
	log_info("the processor computes everything: %s", err.text);
	return NULL;
}

/* A device that nobody named is left alone where others have taken nearly all of its memory. */
static bool is_taken(const struct accelerator *device, const struct config *c)
{
	char room[PRINT_BYTES];

	if (strcmp(c->tiers.device, "auto") || experts_device_room(device) >= EXPERTS_DEVICE_LEAST)
		return false;
	log_warn("the processor computes everything: device %s has %s to spare", device->name,
		 print_size(room, experts_device_room(device)));
	return true;
}

/* What products and moves cost on the device, and what is left to host memory beside it. */
static int place_beside(struct opened *o, const struct config *c, struct experts_options *experts, struct cost *cost, struct err *err)
{
	struct accelerator *device = experts->device = engine_device(o->engine);
	char *path = xasprintf("%s/%s", c->store.path, TUNE_FILE_NAME), *processor = machine_processor("");
	struct model *headers = NULL;
	int rc = model_open_headers(&headers, c->model.path, NULL, err);

	if (!rc && headers->config.n_experts) {
		experts->device_bytes = c->tiers.device_expert_bytes ? c->tiers.device_expert_bytes : experts_device_room(device);
		experts->bytes = placing_beside(experts->bytes, experts->device_bytes, headers);
		rc = tune_get(cost, o->engine, headers, device, processor, path, err);
		experts->cost = cost;
	}
	model_close(headers);
	free(processor);
	free(path);
	return rc;
}

static int open_weights(struct opened *o, const struct config *c, struct err *err)
{
	struct model_options opt = {.mla_norm_eps = (float)c->model.mla_norm_eps, .n_threads = engine_n_threads(o->engine)};
	struct experts_options experts = {0};
	struct cost cost;
	char *sums;
	int rc;

	if (placing_make(&experts.bytes, c, o->latents, "", err) ||
	    (engine_device(o->engine) && !is_taken(engine_device(o->engine), c) && place_beside(o, c, &experts, &cost, err)))
		return -1;
	experts.sums_path = sums = xasprintf("%s/expert-sums", c->store.path);
	if (experts.bytes)
		opt.experts = &experts;
	rc = model_open(&o->model, c->model.path, &opt, err);
	free(sums);
	return rc;
}

static int open_text(struct opened *o, const struct config *c, struct err *err)
{
	char *path = xasprintf("%s/tokenizer.json", c->model.path);
	int rc = tokenizer_open(&o->tokenizer, path, err);

	free(path);
	if (rc)
		return -1;
	(void)renderer_open(&o->renderer, c->model.path, o->model->config.architecture, c->model.template, o->tokenizer,
			    &o->no_renderer); /* then only questions are refused */
	return 0;
}

static void describe(const struct opened *o, struct api_model_status *model)
{
	uint8_t identity[MODEL_ID_BYTES];

	if (o->renderer)
		snprintf(model->renderer, sizeof model->renderer, "%s", renderer_name(o->renderer));
	else
		snprintf(model->no_renderer, sizeof model->no_renderer, "%s", o->no_renderer.text);
	engine_identity(o->engine, o->model, o->latents, identity);
	engine_identity_name(model->identity, identity);
	memcpy(model->architecture, o->model->config.architecture, sizeof model->architecture);
	model->parameters = model_count_parameters(&o->model->config).total;
	model->context_tokens = o->context_tokens;
	model->loaded_bytes = (int64_t)o->model->loaded_bytes;
}

int opened_make(struct opened *o, const struct config *c, struct api_model_status *model, struct api_engine_status *engine,
		struct err *err)
{
	struct engine_options opt;
	int64_t began = clock_now_ns();
	char *device;
	int rc;

	if (opened_engine_options(&opt, &o->latents, c, err))
		return -1;
	opt.device = device = device_of(c);
	rc = engine_open(&o->engine, &opt, err);
	free(device);
	if (rc)
		return -1;
	snprintf(engine->isa, sizeof engine->isa, "%s", engine_isa(o->engine));
	snprintf(engine->compute, sizeof engine->compute, "%s", c->model.compute);
	snprintf(engine->latents, sizeof engine->latents, "%s", c->model.latents);
	engine->n_threads = engine_n_threads(o->engine);
	if (open_weights(o, c, err) || open_text(o, c, err))
		return -1;
	o->latent_bytes = latent_bytes(o, c);
	o->context_tokens = o->model->config.max_positions;
	if (c->context.max_tokens && c->context.max_tokens < o->context_tokens)
		o->context_tokens = c->context.max_tokens;
	describe(o, model);
	model->load_s = clock_seconds_since(began);
	return 0;
}

void opened_close(struct opened *o)
{
	renderer_close(o->renderer);
	tokenizer_close(o->tokenizer);
	model_close(o->model);
	engine_close(o->engine);
}
