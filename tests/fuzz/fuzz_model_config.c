/* Any config.json is refused or gives a config that can be counted, printed and laid out. */
#include <stdint.h>
#include <stdlib.h>

#include "engine/layout.h"
#include "engine/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct model_config c;
	struct model_parameters p;
	struct err err;

	if (model_config_parse(&c, "config.json", (const char *)data, n, NULL, &err))
		return 0;
	p = model_count_parameters(&c);
	if (p.active > p.total || c.n_experts % c.n_groups || c.rope_dim % 2 || (c.has_indexer && !c.layer_is_full[0]))
		abort();
	free(model_config_text(&c));
	layout_free(layout_new(&c, LATENTS_FP8));
	return 0;
}
