/* What the daemon opens for answering and ingesting: engine, model, tokenizer, renderer, by its configuration. */
#ifndef QUIRE_DAEMON_OPENED_H
#define QUIRE_DAEMON_OPENED_H

#include <stddef.h>
#include <stdint.h>

#include "config/config.h"
#include "config/err.h"
#include "daemon/api.h"
#include "engine/engine.h"
#include "engine/render.h"
#include "engine/tokenizer.h"

/* What the configuration asks of the engine, and how it wants latents stored: what the daemon opens, and what `quire
 * doctor` tries. opt points into config. */
int opened_engine_options(struct engine_options *opt, enum latent_format *latents, const struct config *config,
			  struct err *err);

struct opened {
	struct engine *engine;
	struct model *model;
	struct tokenizer *tokenizer;
	struct renderer *renderer;     /* NULL: no_renderer says why */
	struct err no_renderer;
	enum latent_format latents;
	int64_t context_tokens;
	size_t latent_bytes;           /* memory for the latents that questions attend to */
};

/* *o is zeros before; after an error it is for opened_close too. What `quire status` says of the model and of the engine is filled
 * in as far as it went; paths and states are the caller's. Engine thread. */
int opened_make(struct opened *o, const struct config *c, struct api_model_status *model, struct api_engine_status *engine,
		struct err *err);
void opened_close(struct opened *o);

#endif
