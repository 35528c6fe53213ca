/*
 * Measurements of engine/tune.h, kept: tune.json in the store's directory, an entry for each thing measured.
 *
 *     {"version": 1, "made": "2026-11-27T01:35:02Z", "entries": [
 *       {"device": "NVIDIA H200", "host": "AMD EPYC 9654 96-Core Processor, 96 threads, avx512bf16", "format": "F8_E4M3",
 *        "hidden": 6144, "expert_dim": 2048, "profile": "bf16", "made": "2026-11-27T01:35:02Z",
 *        "host_s": [..10 numbers], "device_s": [..10 numbers], "upload_s": 0.0007}]}
 *
 * All up to "profile" is what an entry is found by; "device" is null, and device_s and upload_s are not there, where the processor alone
 * was measured. "made" is when an entry was measured, and when the file was written last. It is replaced whole, with the 64 newest entries
 * at most. One that is damaged, or of another version, is a warning that names it, and counts as none.
 */
#ifndef QUIRE_ENGINE_TUNE_FILE_H
#define QUIRE_ENGINE_TUNE_FILE_H

#include <stdbool.h>

#include "engine/tune.h"

#define TUNE_FILE_NAME "tune.json"

enum { TUNE_TEXT = 320, TUNE_DATE = 24, TUNE_ENTRIES = 64 };

struct tune_key {
	char device[BACKEND_TEXT];     /* as the driver has it; "": none */
	char host[TUNE_TEXT];
	struct tune_shape shape;
	enum compute_profile compute;
};

struct tuned {
	struct cost cost;
	char made[TUNE_DATE];          /* "2026-11-27T01:35:02Z" */
};

/* processor: as the kernel has it (daemon/machine.h); NULL: it is not known. a NULL: no device. */
int tune_key_of(struct tune_key *key, const struct engine *e, const struct model *m, const struct accelerator *a, const char *processor,
		struct err *err);

/* False: there is none. */
bool tune_load(struct tuned *t, const struct tune_key *key, const char *path);
/* Takes the place of what there is for the key. Directories that are missing are made, and what it has of other keys stays. */
int tune_save(const struct tuned *t, const struct tune_key *key, const char *path, struct err *err);

/* Measured now, and dated. */
int tune_make(struct tuned *t, struct engine *e, const struct tune_key *key, struct accelerator *a, struct err *err);

/* For the start of a daemon: what the file has, else measured now and kept there (a warning where that cannot be), and in either case
 * a line in the log with its date and the break-even. path NULL: measured, and not kept. */
int tune_get(struct cost *c, struct engine *e, const struct model *m, struct accelerator *a, const char *processor, const char *path,
	     struct err *err);

#endif
