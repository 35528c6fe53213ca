#include "daemon/placing.h"

#include "config/log.h"
#include "daemon/machine.h"
#include "daemon/print.h"
#include "engine/model.h"
#include "engine/plan.h"

/* By what a parameter takes in the files: scales are a few hundredths. */
static enum plan_weights weights_of(const struct plan_model *m, const struct model *headers)
{
	double each = m->parameters[PLAN_ROUTED] ? (double)headers->bytes.routed / (double)m->parameters[PLAN_ROUTED]
						 : (double)headers->loaded_bytes / (double)m->total;

	return m->int4_experts ? PLAN_INT4 : each < 1.5 ? PLAN_FP8 : PLAN_BF16;
}

static int too_large(const struct config *c, const struct plan *p, int64_t available, struct err *err)
{
	char context[PRINT_BYTES], all[PRINT_BYTES], room[PRINT_BYTES];

	return err_set(err, ERR_TOO_LARGE, "the model %s does not fit into memory: weights that every token uses and a context of "
		       "%lld tokens take %s (the context %s) and work space, and %s are available; set context.max_tokens or "
		       "context.latent_cache lower, or free memory; `quire plan %s` shows what goes where", c->model.path,
		       (long long)p->context, print_size(all, (int64_t)(p->common_bytes + p->context_bytes)),
		       print_size(context, (int64_t)p->context_bytes), print_size(room, available), c->model.path);
}

int placing_make(int64_t *expert_bytes, const struct config *c, enum latent_format latents, const char *root, struct err *err)
{
	struct plan_options opt = {.latents = latents, .latent_cache_bytes = c->context.latent_cache_bytes};
	struct plan_machine machine = {.disk_bytes = INT64_MAX, .disk_read = 1, .host_read = 1, .host_flops = 1};
	struct machine_memory memory;
	struct model *headers;
	struct plan_model m;
	struct plan p;
	struct err why;

	*expert_bytes = c->tiers.host_expert_bytes;
	if (machine_memory(&memory, root, &why)) {
		log_warn("whether the model fits is not known: %s", why.text);
		return 0;
	}
	if (plan_model_load(&m, c->model.path, &why) || !m.runs || model_open_headers(&headers, c->model.path, NULL, &why))
		return 0;
	opt.weights = weights_of(&m, headers);
	model_close(headers);
	opt.context = c->context.max_tokens && c->context.max_tokens < m.max_positions ? c->context.max_tokens : m.max_positions;
	if (!opt.latent_cache_bytes)
		opt.latent_cache_bytes = memory.available_bytes / 4;
	machine.host_bytes = memory.available_bytes;
	plan_make(&p, &m, &machine, &opt);
	if (!p.fits)
		return too_large(c, &p, memory.available_bytes, err);
	if (!*expert_bytes) {
		if (p.expert_share[PLAN_HOST] < 1 && p.routed_bytes)
			*expert_bytes = (int64_t)(p.expert_share[PLAN_HOST] * (double)p.routed_bytes);
		return 0;
	}
	if ((uint64_t)*expert_bytes < p.routed_bytes &&
	    (double)*expert_bytes > (double)p.expert_share[PLAN_HOST] * (double)p.routed_bytes + (double)p.expert_bytes) {
		char asked[PRINT_BYTES], room[PRINT_BYTES];

		return err_set(err, ERR_TOO_LARGE, "tiers.host_experts is %s, and beside the other weights and the context there is memory "
			       "for %s; set it to auto or to no more than that (`quire plan %s` shows what goes where)",
			       print_size(asked, *expert_bytes),
			       print_size(room, (int64_t)(p.expert_share[PLAN_HOST] * (double)p.routed_bytes)), c->model.path);
	}
	return 0;
}

int64_t placing_beside(int64_t expert_bytes, int64_t device_bytes, const struct model *headers)
{
	enum { ON_THEIR_WAY = 32 };
	const struct model_config *c = &headers->config;
	int64_t n = 0, all = (int64_t)headers->bytes.routed, passing;

	for (int32_t l = 0; l < c->n_layers; l++)
		n += c->layer_is_dense[l] ? 0 : c->n_experts;
	passing = (ON_THEIR_WAY + c->experts_per_token) * (all / (n ? n : 1) + 4096);
	if (expert_bytes)
		return expert_bytes;
	return (all > device_bytes ? all - device_bytes : 0) + passing;
}
