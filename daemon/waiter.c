#include "daemon/waiter.h"

#include <stdlib.h>

#include "config/clock.h"
#include "config/mem.h"

struct waiter *waiter_new(struct waiter **list, struct exchange *x, enum waiter_kind kind, int64_t id)
{
	struct waiter *w = xcalloc(1, sizeof *w);

	w->kind = kind;
	w->id = id;
	w->x = x;
	w->since_ms = clock_now_ms();
	w->next = *list;
	w->link = list;
	if (w->next)
		w->next->link = &w->next;
	*list = w;
	exchange_set_user(x, w);
	return w;
}

void waiter_free_if_over(struct waiter *w)
{
	if (w->x || w->engine_has_it)
		return;
	*w->link = w->next;
	if (w->next)
		w->next->link = w->link;
	free(w);
}

struct waiter *waiter_find(struct waiter *list, enum waiter_kind kind, int64_t id)
{
	for (struct waiter *w = list; w; w = w->next)
		if (w->kind == kind && w->id == id)
			return w;
	return NULL;
}

void waiter_gone(struct waiter *w)
{
	if (!w)
		return;
	w->x = NULL;
	if (w->engine_has_it)
		atomic_store(&w->cancel, true);
	waiter_free_if_over(w);
}

void waiter_tell(struct waiter *w, struct message *m)
{
	if (!w->x)
		return;
	exchange_event(w->x, "progress", m->report);
	m->report = NULL;
}

void waiter_end(struct waiter *w, struct message *m, bool stopping)
{
	struct err stop;

	w->engine_has_it = false;
	if (w->x && m->err.code) {
		err_set(&stop, ERR_UNAVAILABLE, "the daemon stops");
		exchange_error(w->x, 0, stopping && m->err.code == ERR_CANCELLED ? &stop : &m->err);
	} else if (w->x && exchange_is_stream(w->x)) {
		exchange_event(w->x, "report", m->report);
		exchange_end(w->x);
		m->report = NULL;
	} else if (w->x) {
		exchange_reply(w->x, 200, m->report, NULL, NULL);
		m->report = NULL;
	}
	waiter_free_if_over(w);
}
