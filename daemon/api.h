/*
 * The wire: routes, and the JSON of requests and replies, both ways. The daemon and the command line share this
 * file, so that every name and every limit has one definition. Nothing here does I/O; any thread.
 *
 * Errors have one shape, {"error": {"code", "message", "type"}}, as a reply's body or as the last event of a stream.
 * Requests are strict: a field that is not known, given twice, of the wrong type or out of range is an error which
 * names it. Replies are not: a client ignores what it does not know.
 */
#ifndef QUIRE_DAEMON_API_H
#define QUIRE_DAEMON_API_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/cache.h"
#include "config/err.h"
#include "engine/experts.h"
#include "ingest/ingest.h"

#define QUIRE_VERSION "0.1.0"

enum {
	API_NAME_BYTES = 128,      /* a corpus name with its NUL; as cache_corpus.name */
	API_SNAPSHOT_BYTES = API_NAME_BYTES + 16, /* CORPUS@ID with its NUL */
	API_BODY_BYTES = 1 << 20,  /* of a request */
	API_MAX_GLOBS = 256,       /* exclude, and include */
};

enum api_route {
	API_INGEST,     /* POST /api/v1/corpora/{name}/ingest: 202, Location, a job */
	API_CORPORA,    /* GET  /api/v1/corpora */
	API_FILES,      /* GET  /api/v1/corpora/{name}/files: what was read, and what was skipped and why; of a former
			   snapshot where the name is CORPUS@ID */
	API_SNAPSHOTS,  /* GET  /api/v1/corpora/{name}/snapshots: the current one and the former ones */
	API_SNAPSHOT,   /* GET  /api/v1/corpora/{name}: what a snapshot is; {name} likewise */
	API_TEXT,       /* POST /api/v1/corpora/{name}/text: a file of it as the model read it; {name} likewise */
	API_DIFF,       /* POST /api/v1/diff: what is different between two snapshots (look.h) */
	API_JOBS,       /* GET  /api/v1/jobs */
	API_JOB,        /* GET  /api/v1/jobs/{id} */
	API_JOB_EVENTS, /* GET  /api/v1/jobs/{id}/events: `job` at each change, until it has ended */
	API_JOB_CANCEL, /* POST /api/v1/jobs/{id}/cancel */
	API_ASK,        /* POST /api/v1/ask: phase, token, usage, then done or error */
	API_CHECK,      /* POST /api/v1/check: progress, then report or error (upkeep.h) */
	API_REPAIR,     /* POST /api/v1/repair: likewise */
	API_REMOVE,     /* POST /api/v1/corpora/{name}/remove */
	API_FORGET,     /* POST /api/v1/corpora/{name}/forget: former snapshots */
	API_STATUS,     /* GET  /api/v1/status */
	API_HEALTHZ,    /* GET  /healthz: the loop answers */
	API_READYZ,     /* GET  /readyz: a model is loaded */
	N_API_ROUTES
};

const char *api_method(enum api_route route);
/* The path of a route; arg is the {name} or {id} of those that have one. free() it. A '@' stands as it is. */
char *api_path(enum api_route route, const char *arg);
/* The route of a request, -1 with ERR_NOT_FOUND when there is none. arg receives the {name} or {id}, percent-decoded.
 * When only the method is wrong, ERR_USAGE, and *allow is the one that would do (NULL otherwise). */
int api_route_find(const char *method, const char *path, char arg[API_SNAPSHOT_BYTES], const char **allow,
		   struct err *err);

/* Letters, digits, '.', '_' and '-', not beginning with '.' or '-', at most 127 bytes. */
int api_check_corpus_name(const char *name, struct err *err);

/* CORPUS@ID, or CORPUS: its current snapshot, whose id is 0 here. */
struct api_snapshot {
	char corpus[API_NAME_BYTES];
	int64_t id;
};

/* ERR_USAGE names what is wrong with it. */
int api_snapshot_parse(struct api_snapshot *out, const char *text, struct err *err);
void api_snapshot_format(char out[API_SNAPSHOT_BYTES], const struct api_snapshot *s);

/* The numbers of an ask: one table for the wire, the options of `quire ask` and its help. */
enum api_number {
	API_MAX_TOKENS,
	API_TEMPERATURE,
	API_TOP_P,
	API_TOP_K,
	API_MIN_P,
	API_SEED,
	N_API_NUMBERS
};

struct api_number_info {
	const char *field, *option; /* "max_tokens", "max-tokens" */
	bool integer;
	double least, most;
	const char *help;
};

extern const struct api_number_info api_numbers[N_API_NUMBERS];

/* ERR_USAGE naming `name`, the value and the range. */
int api_check_number(enum api_number number, const char *name, double value, struct err *err);

struct api_ask {
	char corpus[API_NAME_BYTES];
	char *question;
	int64_t snapshot;          /* 0: the current one */
	bool think;
	bool given[N_API_NUMBERS];
	double numbers[N_API_NUMBERS];
};

struct api_ingest {
	char corpus[API_NAME_BYTES];
	char *source;              /* absolute */
	char *ref;                 /* of the repository there: its files are read, not those on disk; NULL: those on disk */
	char **exclude, **include; /* globs, NULL-terminated; NULL when there are none */
	bool full;                 /* sort the documents anew */
	bool dry_run;              /* count, and compute nothing */
	char order_from[API_SNAPSHOT_BYTES]; /* the CORPUS[@ID] whose order is followed; "": its own */
};

/* Requests. Parsing fills a zeroed struct; on error there is nothing to clear. Formatting gives a string to free(). */
int api_ask_parse(struct api_ask *ask, const char *body, size_t bytes, struct err *err);
char *api_ask_format(const struct api_ask *ask);
void api_ask_clear(struct api_ask *ask);
int api_ingest_parse(struct api_ingest *in, const char *corpus, const char *body, size_t bytes, struct err *err);
char *api_ingest_format(const struct api_ingest *in);
void api_ingest_clear(struct api_ingest *in);
void api_ingest_copy(struct api_ingest *to, const struct api_ingest *from);
/* What the corpus will be said to be made from: SOURCE or SOURCE@REF; free() it. */
char *api_ingest_source(const struct api_ingest *in);
bool api_ingest_equal(const struct api_ingest *a, const struct api_ingest *b);

enum job_state {
	JOB_QUEUED,
	JOB_RUNNING,
	JOB_DONE,
	JOB_FAILED,
	JOB_CANCELLED,
	N_JOB_STATES
};

const char *job_state_name(enum job_state state);
int job_state_from_name(const char *name);
static inline bool job_has_ended(enum job_state state)
{
	return state >= JOB_DONE;
}

const char *ingest_phase_name(enum ingest_phase phase);

struct api_job {
	int64_t id;                          /* 41; "j-41" on the wire and for people */
	struct api_ingest request;
	enum job_state state;
	int attempts;
	int64_t created_s, started_s, finished_s; /* Unix time; 0: not yet */
	struct ingest_progress progress;
	struct err error;                    /* of a failed or cancelled one */
	char *report;                        /* JSON of api_report_format; NULL until there is one */
};

/* "j-41" or "41"; ERR_USAGE for anything else. */
int api_job_id_parse(int64_t *id, const char *text, struct err *err);
json_t *api_job_json(const struct api_job *job);
int api_job_parse(struct api_job *job, const json_t *json, struct err *err);
void api_job_clear(struct api_job *job);

/* What an ingest is about to do: {"documents", "kept_documents", "skipped", "read_bytes", "tokens", "kept_tokens",
 * "new_tokens", "new_bytes", "commit" and "history" where there are, "order_from" and "followed_documents" where the
 * order is not its own, "skips": [{"reason", "files", "examples"}]}. free() it. */
char *api_report_format(const struct ingest_counts *counts, const struct ingest_skip_kind *kinds, size_t n_kinds);

/* The same report with "seconds", unless the speed is 0: not known. free() it. */
char *api_report_estimate(const char *report, double tokens_per_s);

/* What an answer cost. Tokens: prompt = cached + prefilled; cached ones came from the store or from a session that
 * still held them. */
struct api_usage {
	int64_t prompt_tokens, cached_tokens, loaded_tokens, recomputed_tokens, prefilled_tokens, completion_tokens;
	int64_t read_bytes;                    /* of the store's files */
	int64_t wanted_latents, held_latents;  /* records that its tokens chose of the corpus; those in memory already */
	double load_s, ttft_s, decode_s;
};

json_t *api_usage_json(const struct api_usage *usage);
void api_usage_parse(struct api_usage *usage, const json_t *json);

enum model_state {
	MODEL_NONE,    /* model.path is not set */
	MODEL_LOADING,
	MODEL_READY,
	MODEL_FAILED,
	N_MODEL_STATES
};

struct api_model_status {
	enum model_state state;
	const char *path;              /* NULL: none; the rest is known when it is ready, or failed */
	char error[1024];              /* MODEL_FAILED: why */
	char architecture[48];
	char renderer[16];             /* "glm-5.2"; "" when there is none, */
	char no_renderer[1024];        /* which is why questions are refused */
	char identity[17];             /* the first 16 hex digits */
	int64_t context_tokens, loaded_bytes;
	uint64_t parameters;
	double load_s;
};

struct api_engine_status {
	char isa[16], compute[8], latents[8];
	int n_threads;
};

/* What the daemon knows of itself; kept by the loop, so that a busy engine cannot delay it. */
struct api_status {
	int64_t pid, uptime_s;
	const char *socket;
	struct api_model_status model;
	struct api_engine_status engine;
	struct experts_stats experts;  /* n_slots 0: there is no tier, all experts are loaded */
	struct {
		const char *dir;
		struct cache_stats stats;
	} store;
	struct {
		int64_t asks, max_asks, jobs_queued, jobs_running, connections;
	} queue;
	struct {
		int64_t answered, refused, cancelled, prompt_tokens, cached_tokens, prefilled_tokens, completion_tokens;
		int64_t read_bytes, wanted_latents, held_latents;
	} total;
};

json_t *api_status_json(const struct api_status *status);
json_t *api_corpus_json(const struct cache_corpus *corpus);
/* A whole number from 1 to 2^53. ERR_USAGE names `name`. */
int api_snapshot_id_parse(int64_t *id, const char *name, const char *text, struct err *err);
/* A path with odd bytes is quoted as in C, as the model reads it. */
json_t *api_path_json(const char *path);

/* {"error": ...}; free() the string. */
char *api_error_format(const struct err *err);
/* The error of a reply whose status was `http_status`; a body of another shape gives a sentence that quotes it. */
void api_error_parse(struct err *err, int http_status, const char *body, size_t bytes);

/* The body of a request, which is one object; NULL, with ERR_USAGE, when it is not. */
json_t *api_load_object(const char *body, size_t bytes, struct err *err);
/* A JSON string of bytes that may not be UTF-8: what is not becomes U+FFFD. */
json_t *api_text(const char *text, size_t bytes);
/* One line, keys in the order they were set; free() it. Takes the reference. */
char *api_dump(json_t *json);

#endif
