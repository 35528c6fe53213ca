#include "daemon/message.h"

#include <stdlib.h>

#include "config/mem.h"

struct message *message_new(enum message_kind kind, int64_t id)
{
	struct message *m = xcalloc(1, sizeof *m);

	m->kind = kind;
	m->id = id;
	return m;
}

void message_free(void *message)
{
	struct message *m = message;

	if (!m)
		return;
	switch (m->kind) {
	case MESSAGE_ASK:
		api_ask_clear(&m->ask.request);
		break;
	case MESSAGE_INGEST:
	case MESSAGE_PREPARE:
	case MESSAGE_PREPARED:
		ingest_free(m->ingest.in);
		cache_free_snapshot(m->ingest.previous);
		cache_free_snapshot(m->ingest.order_from);
		api_ingest_clear(&m->ingest.request);
		break;
	case MESSAGE_COUNTED:
	case MESSAGE_UPKEEP_PROGRESS:
	case MESSAGE_UPKEPT:
		free(m->report);
		break;
	case MESSAGE_ASKED:
		bytes_free(&m->asked.answer);
		free(m->asked.done);
		break;
	case MESSAGE_TOKEN:
		free(m->token.text);
		break;
	default:
		break;
	}
	free(m);
}
