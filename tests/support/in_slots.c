#include "tests/support/in_slots.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include "engine/internal.h"

int in_slots_open(struct model **m, const char *dir, const struct experts_options *experts, struct err *err)
{
	struct model_options opt = {.experts = experts};

	return model_open(m, dir, &opt, err);
}

struct model *in_slots_model(const char *checkpoint, const struct experts_options *experts)
{
	char *dir = golden_dir(checkpoint);
	struct model *m;
	struct err err;

	if (in_slots_open(&m, dir, experts, &err))
		fail_msg("%s: %s", checkpoint, err.text);
	free(dir);
	return m;
}

int64_t in_slots_bytes(const char *checkpoint, int more)
{
	struct experts_options opt = {.bytes = (int64_t)1 << 30};
	struct model *m = in_slots_model(checkpoint, &opt);
	struct experts_stats stats;
	int64_t bytes;

	experts_stats(m->experts, &stats);
	bytes = (m->config.experts_per_token + 1 + more) * stats.slot_bytes;
	model_close(m);
	return bytes;
}

int in_slots_run(struct model *m, struct engine *e, float *logits, struct err *err)
{
	struct session_options session = {.latents = LATENTS_BF16};
	int32_t ids[40];
	struct session *s;
	int rc;

	for (int i = 0; i < 40; i++)
		ids[i] = (i * 37 + 11) % m->config.vocab;
	assert_int_equal(session_new(&s, e, m, &session, err), 0);
	rc = session_append(s, ids, 40, logits, NULL, err);
	session_free(s);
	return rc;
}

void in_slots_same_logits(const struct golden_run *a, const struct golden_run *b)
{
	assert_int_equal(a->n_positions, b->n_positions);
	assert_memory_equal(a->logits, b->logits, (size_t)a->n_positions * (size_t)a->vocab * sizeof(float));
}
