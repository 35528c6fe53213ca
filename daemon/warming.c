#include "daemon/warming.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "cache/routing.h"
#include "config/clock.h"
#include "config/log.h"
#include "config/mem.h"
#include "engine/experts.h"

/* How long a thread sleeps that no read can wake, while some are under way. */
enum { BLIND_MS = 5, TOLD_MS = 1000 };

static struct experts *tier(const struct worker *w)
{
	return w->no_model.code || !w->opened.model ? NULL : w->opened.model->experts;
}

void warming_expect(struct worker *w, const char *corpus, int64_t snapshot)
{
	const struct model_config *c;
	int64_t *chosen, n_tokens;
	size_t n;
	struct err err;

	if (!tier(w) || w->expected == snapshot)
		return;
	w->expected = snapshot;
	c = &w->opened.model->config;
	n = (size_t)c->n_layers * (size_t)c->n_experts;
	chosen = xcalloc(n, sizeof *chosen);
	if (cache_routing(w->cache, corpus, snapshot, c->n_layers, c->n_experts, chosen, &n_tokens, &err)) {
		log_warn("no expert is read before it is asked for: %s", err.text);
		memset(chosen, 0, n * sizeof *chosen);
	} else if (!n_tokens) {
		log_info("no expert is read before it is asked for: it was not counted which ones corpus '%s' chose", corpus);
	} else {
		log_info("experts that corpus '%s' chose are read before they are asked for counted_tokens=%lld", corpus,
			 (long long)n_tokens);
	}
	experts_expect(tier(w), chosen); /* nothing more of another corpus, in any case */
	free(chosen);
}

void warming_expect_last(struct worker *w)
{
	uint8_t identity[MODEL_ID_BYTES];
	char corpus[128];
	int64_t snapshot;
	struct err err;
	int found;

	if (!tier(w))
		return;
	engine_identity(w->opened.engine, w->opened.model, w->opened.latents, identity);
	found = cache_last_used(w->cache, identity, corpus, &snapshot, &err);
	if (found < 0)
		log_warn("no expert is read before it is asked for: %s", err.text);
	else if (found)
		warming_expect(w, corpus, snapshot);
}

/* Until there is a message, or more of the experts. */
static void sleep_until_either(struct worker *w)
{
	struct err err;
	int fd = experts_fd(tier(w), &err);
	struct pollfd fds[] = {{.fd = queue_fd(w->in), .events = POLLIN}, {.fd = fd, .events = POLLIN}};

	poll(fds, fd < 0 ? 1 : 2, fd < 0 ? BLIND_MS : TOLD_MS); /* whatever it says: both are looked at */
}

enum queue_state warming_wait(struct worker *w, void **message)
{
	int64_t told_ms = clock_now_ms();
	bool warms = false;
	enum queue_state state;

	while ((state = queue_try_pop(w->in, message)) == QUEUE_EMPTY && tier(w) && experts_warm(tier(w))) {
		warms = true;
		if (clock_now_ms() - told_ms >= TOLD_MS) {
			told_ms = clock_now_ms();
			worker_tell_experts(w);
		}
		sleep_until_either(w);
	}
	if (warms)
		worker_tell_experts(w);
	return state == QUEUE_EMPTY ? queue_pop(w->in, message) : state;
}
