/*
 * What the model is shown of a conversation: a chat template, as code.
 *
 * Templates are never executed. A model directory's chat_template.jinja is recognised by its MD5; the renderer
 * written here for that one is used, and with any other template there is none, so that nobody is answered from
 * a prompt the model was not trained on. The configuration's model.template overrides that. Without a
 * template file the architecture decides:
 *
 *   glm_moe_dsa     glm-5.2 if config.json has IndexShare (a layer that shares its indexer, by index_topk_freq,
 *                   index_topk_pattern or indexer_types), else glm-5. GLM-5.3 has GLM-5.2's config and a template of its
 *                   own: without that file it is taken for GLM-5.2, with it `ask` is refused
 *   glm4_moe_lite   glm-5
 *
 * Structure (roles, think and tool tags) is emitted by id. Everything that came from outside is encoded with
 * added-token matching off, so that no document, question or tool result can forge a turn. Text between two
 * structure tokens is encoded in one piece, as a whole rendering would be.
 *
 * Of a corpus and a question the rendering is (render format 1):
 *
 *   [gMASK]<sop><|user|> documents === end of documents ===\n\n question <|assistant|><think></think>
 *
 * which is the template's own rendering of one user message with thinking off. The documents are ingest's part;
 * render_question goes on from their last line feed. With thinking on, <|system|>Reasoning Effort: Max follows the
 * question in place of preceding the documents, so that one store serves both.
 */
#ifndef QUIRE_ENGINE_RENDER_H
#define QUIRE_ENGINE_RENDER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "engine/tokenizer.h"

struct renderer;

/* Choose the renderer of a model directory. override: the configuration's model.template ("glm-5.2", "glm-5"), or
 * NULL. Fails (ERR_UNAVAILABLE) with the sentence that `ask` is refused with: an unknown template, architecture or
 * override, or a tokenizer without the tokens that the renderer needs. The tokenizer must outlive it. */
int renderer_open(struct renderer **out, const char *model_dir, const char *architecture, const char *override,
		  const struct tokenizer *t, struct err *err);
/* Takes NULL. */
void renderer_close(struct renderer *r);

/* "glm-5.2" or "glm-5". */
const char *renderer_name(const struct renderer *r);

/* The ids that end an answer: <|endoftext|>, <|user|>, <|observation|>, as far as the tokenizer has them. */
const int32_t *renderer_stop_ids(const struct renderer *r, size_t *n);

/* </think>: of an answer that began in thinking, what precedes it is reasoning. */
int32_t renderer_think_end(const struct renderer *r);

/* Append what every corpus begins with: [gMASK]<sop><|user|>, or nothing where the tokenizer lacks one of them (a model
 * that cannot be asked, but can be measured). */
void render_opening(const struct tokenizer *t, struct ids *out);

/* Append the end of the documents, a question, and the answer's beginning. */
int render_question(const struct renderer *r, struct ids *out, const char *question, size_t bytes, bool think,
		    struct err *err);

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL };

struct chat_text {
	const char *data; /* NULL: none */
	size_t bytes;
};

struct chat_message {
	enum chat_role role;
	struct chat_text content;
	struct chat_text reasoning; /* of an assistant */
	const json_t *tool_calls;   /* of an assistant: NULL, or [{"name": .., "arguments": {..}}], or the same inside
	                               "function" */
};

struct chat_options {
	bool think;            /* the answer begins in thinking */
	bool effort_high;      /* "Reasoning Effort: High"; else Max */
	bool keep_reasoning;   /* of turns before the last user message too; else only of later ones */
	const json_t *tools;   /* NULL, or [{"type": "function", "function": {..}}] or the functions themselves */
};

/* Append a whole conversation and the beginning of the answer. ERR_USAGE for tools and calls of another form. */
int render_chat(const struct renderer *r, struct ids *out, const struct chat_message *messages, size_t n,
		const struct chat_options *opt, struct err *err);

/* Append a value as Python's json.dumps(value, ensure_ascii=False) writes it: what the template shows of tools and
 * of arguments that are no strings. */
void render_json(struct bytes *out, const json_t *value);

#endif
