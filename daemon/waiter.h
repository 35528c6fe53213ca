/*
 * Who waits for what: a client (an exchange), and what the engine does for it. Either may end first, and the waiter goes
 * with the second:
 *
 *     client gone first:   cancel is set; the engine's last message frees the waiter
 *     engine done first:   the exchange is ended; its end frees the waiter
 *
 * Loop thread.
 */
#ifndef QUIRE_DAEMON_WAITER_H
#define QUIRE_DAEMON_WAITER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/http.h"
#include "daemon/message.h"

enum waiter_kind {
	WAITER_ASK,
	WAITER_JOB,
	WAITER_UPKEEP,
};

struct waiter {
	struct waiter *next, **link;
	enum waiter_kind kind;
	int64_t id;              /* of the ask or the upkeep, or of the job whose events are wanted */
	atomic_bool cancel;
	bool engine_has_it;
	struct exchange *x;      /* NULL: the client is gone */
	int64_t since_ms;
};

/* In front of the list, and the exchange's user. */
struct waiter *waiter_new(struct waiter **list, struct exchange *x, enum waiter_kind kind, int64_t id);
struct waiter *waiter_find(struct waiter *list, enum waiter_kind kind, int64_t id);
/* Its exchange has come to an end. Takes NULL. */
void waiter_gone(struct waiter *w);
void waiter_free_if_over(struct waiter *w);

/* MESSAGE_UPKEEP_PROGRESS and MESSAGE_UPKEPT, of which the report is taken; `stopping`: a cancelled one is told that the
 * daemon stops. */
void waiter_tell(struct waiter *w, struct message *m);
void waiter_end(struct waiter *w, struct message *m, bool stopping);

#endif
