/*
 * The store's upkeep on the wire: what `quire check`, `repair`, `rm` and `forget` ask of the daemon, and its reports.
 * Nothing here does I/O; any thread.
 */
#ifndef QUIRE_DAEMON_UPKEEP_H
#define QUIRE_DAEMON_UPKEEP_H

#include <jansson.h>
#include <stdint.h>

#include "cache/check.h"
#include "daemon/api.h"

enum upkeep_kind {
	UPKEEP_CHECK,
	UPKEEP_REPAIR,  /* a check that reads everything, and then the mending */
	UPKEEP_REMOVE,
	UPKEEP_FORGET,  /* former snapshots */
};

enum { UPKEEP_SNAPSHOTS = 256 }; /* that one request may name */

struct upkeep {
	enum upkeep_kind kind;
	char corpus[API_NAME_BYTES];   /* "": all; a removal has one */
	double read_percent;           /* of the spans of a check whose bytes are read; 0 to 100 */
	int64_t seed;                  /* which ones */
	int64_t snapshots[UPKEEP_SNAPSHOTS]; /* [n_snapshots] to forget; none: all former ones but the newest `keep` */
	size_t n_snapshots;
	int64_t keep;
};

/* The body of API_CHECK and API_REPAIR, {"corpus", "read_percent", "seed"}, each of which may be missing; a repair
 * takes the corpus alone. That of API_FORGET, {"snapshots": [ID, ...]} or {"keep": N}. No bytes: {}. ERR_USAGE names the
 * field. */
int upkeep_parse(struct upkeep *u, enum upkeep_kind kind, const char *body, size_t bytes, struct err *err);
/* free() it. */
char *upkeep_format(const struct upkeep *u);

/* {"spans", "waiting_spans", "read_spans", "to_read", "read_bytes", "damaged", "findings": [{"what", "corpora"}]} */
json_t *upkeep_check_json(const struct cache_check_report *r);
/* The check's, with "quarantined_spans", "lost_spans", "lost_snapshots", "dropped_jobs" and "corpora": [{"name",
 * "source"}] that have to be ingested again. */
json_t *upkeep_repair_json(const struct cache_check_report *r, const struct cache_repair_report *repaired);

/* The reports for people, to stdout. */
void upkeep_show_check(const json_t *report);
void upkeep_show_repair(const json_t *report);

#endif
