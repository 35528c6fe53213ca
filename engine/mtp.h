/*
 * Drafting: what the MTP layer of a checkpoint (GLM-5.2's layer 78) makes of the model's output.
 *
 * Row i is made of the model's output at position i and of token i + 1, and drafts token i + 2:
 *
 *   e = embedding of token i + 1, zero at position 0
 *   h = eh_proj [norm(e, enorm) | norm(output, hnorm)]
 *   h = decoder layer(h), at position i, with latents and index keys of its own
 *   y = norm(h, shared_head.norm);   logits of token i + 2 = head(y)
 *
 * The output is what the model's head reads, after the final norm. For the token after that the same layer runs again, with
 * the token just drafted and y in place of the output, at position i + 1; where the config says
 * index_share_for_mtp_iteration, it then attends to what row i chose, and to no draft. Sources: tensor names and shapes are the
 * published checkpoint's; vLLM's nvidia/mtp.py has the order of the halves, the position, the zero and the output after the
 * norm; what drafts attend to is in its set_skip_topk, and in SGLang and TensorRT-LLM alike.
 *
 * A drafter is to the MTP layer what a session is to the other layers, and its bits depend on as little: not on how rows come
 * in calls, threads or instruction set. It needs a row for every position from 0 on: outputs of tokens that were attached are
 * not there, and no store keeps its latents. All of it belongs to the engine thread.
 */
#ifndef QUIRE_ENGINE_MTP_H
#define QUIRE_ENGINE_MTP_H

#include "engine/engine.h"

struct drafter;

/* For a model opened with model_options.mtp, else ERR_USAGE. Engine and model must outlive it. Memory grows with its rows. */
int drafter_new(struct drafter **out, struct engine *e, const struct model *m, enum latent_format latents, struct err *err);
/* Takes NULL. */
void drafter_free(struct drafter *d);

int64_t drafter_n_rows(const struct drafter *d);

/* Rows at positions n_rows .. n_rows + n - 1, n >= 1:
 *   outputs [n, hidden]  of the model there, as session_tap.output shows them
 *   next    [n]          the ids that follow them
 * Of the tap, which may be NULL, logits and output are those of drafts, and the layer is 0. Errors as of session_append. */
int drafter_append(struct drafter *d, const float *outputs, const int32_t *next, size_t n, const struct session_tap *tap,
		   struct err *err);

/* Draft the n >= 1 tokens that come after the last row's next id: ids [n], each the likeliest, the lowest of equals. What is
 * appended after it is as if there had been no drafts. Not right after drafter_new or drafter_truncate. ERR_TOO_LARGE beyond
 * the model's positions. */
int drafter_draft(struct drafter *d, int32_t *ids, int32_t n, struct err *err);

/* Forget all rows from n_rows on. */
void drafter_truncate(struct drafter *d, int64_t n_rows);

#endif
