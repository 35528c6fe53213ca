#include "cache/routing.h"

#include <string.h>

#include "cache/inside.h"

int cache_routing(struct cache *c, const char *corpus, int64_t id, int32_t n_layers, int32_t n_experts, int64_t *chosen,
		  int64_t *n_tokens, struct err *err)
{
	*n_tokens = 0;
	memset(chosen, 0, (size_t)n_layers * (size_t)n_experts * sizeof *chosen);
	if (index_add_routing(c->index, corpus, id, n_layers, n_experts, chosen, n_tokens, err))
		return err_wrap(err, "the routing of corpus '%s'", corpus);
	return 0;
}

int cache_last_used(struct cache *c, const uint8_t identity[32], char corpus[128], int64_t *id, struct err *err)
{
	return index_last_used(c->index, identity, corpus, id, err);
}
