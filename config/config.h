/*
 * The configuration: one YAML file to one struct.
 *
 * The file is read strictly, because a setting that is silently ignored is worse than none. Refused, with
 * FILE:LINE:COLUMN and where it helps the key that was probably meant: unknown keys, keys given twice, values of the
 * wrong type or range, sizes without a unit, strings that YAML would read as a boolean, a number where text is
 * expected or the reverse, anchors, aliases, merge keys, tags, directives, a second document, files above 1 MiB, and
 * files that everybody may write. Nesting goes as deep as the keys below, three levels. Relative paths are refused,
 * as a daemon's working directory is nobody's; "~/" is $HOME.
 *
 *     version: 1                       # required: the format of this file
 *     model:
 *       path: /srv/models/glm-5.2-fp8  # as published: config.json, tokenizer.json, *.safetensors; none: no model
 *       template: glm-5.2              # or glm-5: render so whatever chat template the model brings; unset: by the model
 *       compute: bf16                  # activations: bf16 | f32
 *       latents: bf16                  # as stored: bf16 | fp8
 *       mla_norm_eps: 1e-6             # unset: the architecture's
 *     compute:
 *       threads: auto                  # auto: every processor this process may use; else 1 to 1024
 *       isa: auto                      # auto: the best instruction set this processor has; else scalar, avx2, avx512
 *                                      # or avx512bf16, refused at start where it is missing. Decides speed, no bit
 *     tiers:                           # where routed experts are. Decides speed, no bit
 *       host_experts: auto             # memory for them; those that do not fit are read from the model's files when they are
 *                                      # chosen. auto: what the other weights and a whole context leave of the memory that
 *                                      # is available at the start
 *       device: auto                   # what computes those in its own memory: cuda:0; none; or auto: cuda:0 if it is there
 *       device_experts: auto           # memory of the device for them; auto: 15 sixteenths of what is free
 *     context:
 *       max_tokens: auto               # auto: what the model was made for; else 1 to 1048576
 *       latent_cache: auto             # memory for latents of a corpus that questions attend to; the others stay in the
 *                                      # store. auto: a quarter of the memory that is available at the start
 *     store:
 *       path: ~/.local/share/quire
 *       max_bytes: none                # of latents and index keys; beyond it what was used longest ago gives way
 *       keep_snapshots: 3              # former ones of each corpus, beside its current one; 0 to 65536
 *     server:
 *       socket: /run/user/1000/quire/quire.sock
 *       max_queue: 64                  # jobs and questions that wait; more are answered "busy"
 *     ingest:
 *       max_file: 1MiB                 # larger files are skipped, and listed as such
 *       scratch: 1GiB                  # memory for tokens on their way through the layers: as many as it holds go
 *                                      # together, and kill -9 costs as many
 *       exclude: ["*.min.js"]          # globs
 *       include: []                    # globs that beat every skip
 *     query:                           # what a question that does not say otherwise gets
 *       max_tokens: 4096               # of an answer
 *       temperature: 0                 # 0: always the likeliest token
 *       top_p: 1
 *       top_k: 0                       # 0: all
 *       min_p: 0
 *       seed: 0
 *     log: {level: info}               # error | warn | info | debug
 */
#ifndef QUIRE_CONFIG_CONFIG_H
#define QUIRE_CONFIG_CONFIG_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "config/err.h"
#include "config/log.h"

/* Text belongs to the struct. Named as in the file; defaults behind. */
struct config {
	int64_t version;                 /* 1 */
	struct {
		char *path;              /* NULL: the daemon runs without a model */
		char *template;          /* NULL: by the model; else "glm-5.2" or "glm-5" */
		char *compute;           /* "bf16"; or "f32" */
		char *latents;           /* "bf16"; or "fp8" */
		double mla_norm_eps;     /* 0: the architecture's */
	} model;
	struct {
		int64_t threads;         /* 0: auto */
		char *isa;               /* "auto"; or an instruction set */
	} compute;
	struct {
		int64_t host_expert_bytes; /* 0: auto */
		char *device;              /* "auto"; or "none", or a name as in offload/accelerator.h */
		int64_t device_expert_bytes; /* 0: auto */
	} tiers;
	struct {
		int64_t max_tokens;      /* 0: auto */
		int64_t latent_cache_bytes; /* 0: auto */
	} context;
	struct {
		char *path;              /* $XDG_DATA_HOME/quire, else ~/.local/share/quire */
		int64_t max_bytes;       /* 0: none */
		int64_t keep_snapshots;  /* 3; former ones of each corpus */
	} store;
	struct {
		char *socket;            /* NULL: config_socket_path decides */
		int64_t max_queue;       /* 64 */
	} server;
	struct {
		int64_t max_file_bytes;  /* 1 MiB */
		int64_t scratch_bytes;   /* 1 GiB */
		char **exclude;          /* NULL-terminated, never NULL; none */
		char **include;          /* likewise */
	} ingest;
	struct {
		int64_t max_tokens;      /* 4096 */
		double temperature;      /* 0, to 100 */
		double top_p;            /* 1 */
		int64_t top_k;           /* 0: all */
		double min_p;            /* 0 */
		int64_t seed;            /* 0 */
	} query;
	struct {
		enum log_level level;    /* LOG_LEVEL_INFO */
	} log;
};

/* The defaults above, without a file. Fails only when the environment names no place for the store. */
int config_defaults(struct config *c, struct err *err);

/* Read `path`; NULL: the default file, whose absence gives the defaults. On failure c holds nothing to be freed. */
int config_load(struct config *c, const char *path, struct err *err);

/* The same from memory; `name` stands for the path in messages. */
int config_parse(struct config *c, const char *name, const char *text, size_t bytes, struct err *err);

/* Takes a struct that was loaded, or is all zeros. */
void config_free(struct config *c);

/* The effective configuration as YAML that config_load reads as the same; keys that are unset are left out.
 * Control characters are escaped. Returns nonzero when the stream has failed. */
int config_print(const struct config *c, FILE *out);

/* The default configuration file, to be freed: $XDG_CONFIG_HOME/quire/quire.yaml, else ~/.config/quire/quire.yaml.
 * NULL when the environment names no place. */
char *config_default_file(void);

/*
 * Where the daemon listens and its clients connect, to be freed: `given` (--socket), else $QUIRE_SOCKET, else
 * `configured` (server.socket), else $XDG_RUNTIME_DIR/quire/quire.sock, else /run/user/UID/quire/quire.sock if there
 * is such a directory, else /run/quire-UID/quire.sock. The first two may begin with unix:// and may be relative.
 * given and configured may be NULL. A path that does not fit a socket address is refused with both lengths.
 */
int config_socket_path(char **out, const char *given, const char *configured, struct err *err);

#endif
