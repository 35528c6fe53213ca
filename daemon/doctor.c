#include "daemon/doctor.h"

#include <assert.h>
#include <errno.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cache/cache.h"
#include "config/config.h"
#include "config/mem.h"
#include "daemon/api.h"
#include "daemon/client.h"
#include "daemon/machine.h"
#include "daemon/print.h"
#include "daemon/opened.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "engine/numa.h"
#include "engine/render.h"
#include "engine/tokenizer.h"
#include "offload/accelerator.h"

enum {
	DAEMON_MS = 3000,                     /* its loop answers at once, whatever the engine does */
	LITTLE_MEMLOCK_BYTES = 64 << 20,      /* for read buffers that the kernel keeps pinned */
	LITTLE_ROOM_BYTES = 1000 * 1000 * 1000, /* GLM-5.2 stores 51 kB a token: 20,000 tokens */
	MAX_ISAS = 8,
};

enum level {
	OK,
	WARN,
	FAIL,
	N_LEVELS
};

struct doctor {
	const struct doctor_options *opt;
	FILE *out;
	struct config config;      /* all zeros without have_config */
	bool have_config;
	bool daemon_has_model;     /* a daemon answers, and its model is in memory already */
	bool have_memory;
	struct machine_memory memory;
	int counts[N_LEVELS];
};

static const char *const level_names[N_LEVELS] = {"ok", "warn", "fail"};

/* One finding. values: what a program wants of it, or NULL; takes the reference. */
static void tell(struct doctor *d, enum level level, const char *name, json_t *values, const char *format, ...)
	__attribute__((format(printf, 5, 6)));

static void tell(struct doctor *d, enum level level, const char *name, json_t *values, const char *format, ...)
{
	char text[2048];
	va_list args;
	json_t *line;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	d->counts[level]++;
	if (d->opt->json) {
		line = json_pack("{s:s, s:s, s:o}", "level", level_names[level], "name", name, "text",
				 api_text(text, strlen(text)));
		json_object_set_new(line, "values", values ? values : json_object());
		print_json(d->out, "finding", line);
		return;
	}
	json_decref(values);
	fprintf(d->out, "%-4s  %-9s  ", level_names[level], name);
	print_line(d->out, text);
	putc('\n', d->out);
}

static json_t *text_value(const char *text)
{
	return text ? api_text(text, strlen(text)) : json_null();
}

/* What depends on a configuration that cannot be read. */
static bool needs_config(struct doctor *d, const char *name)
{
	if (!d->have_config)
		tell(d, WARN, name, NULL, "not looked at, because the configuration cannot be read");
	return d->have_config;
}

static void look_at_config(struct doctor *d)
{
	char *usual = d->opt->config ? NULL : config_default_file();
	const char *path = d->opt->config ? d->opt->config : usual;
	struct err err = {0};

	if (config_load(&d->config, d->opt->config, &err)) {
		tell(d, FAIL, "config", json_pack("{s:o}", "path", text_value(path)), "%s", err.text);
	} else {
		d->have_config = true;
		if (path && !access(path, F_OK))
			tell(d, OK, "config", json_pack("{s:o}", "path", text_value(path)), "%s", path);
		else
			tell(d, OK, "config", json_pack("{s:o}", "path", json_null()), "the defaults: there is no %s",
			     path ? path : "$HOME to have a file in");
	}
	free(usual);
}

/* ---- what computes ---- */

static void look_at_processor(struct doctor *d)
{
	char *name = machine_processor(d->opt->root);
	long n = sysconf(_SC_NPROCESSORS_ONLN);
	struct utsname u = {0};

	uname(&u);
	tell(d, OK, "processor", json_pack("{s:o, s:s, s:I}", "model", text_value(name), "machine", u.machine, "online",
					   (json_int_t)n),
	     "%s, %s, %ld processors online", name ? name : "no model name", u.machine, n);
	free(name);
}

static void look_at_isas(struct doctor *d)
{
	const char *names[MAX_ISAS];
	int n = cpu_isas(names, MAX_ISAS);
	json_t *list = json_array();
	char text[256] = "";

	assert(n <= MAX_ISAS);
	for (int i = 0; i < n; i++) {
		json_array_append_new(list, json_string(names[i]));
		snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i ? ", " : "", names[i]);
	}
	tell(d, n > 1 ? OK : WARN, "isa", json_pack("{s:o}", "usable", list), "%s%s", text,
	     n > 1 ? "" : ": this processor has none of the vector instructions that there are kernels for, and will be slow");
}

/* Opened as the daemon opens it: what it refuses is refused here, in the same words. */
static void look_at_engine(struct doctor *d)
{
	struct engine_options opt;
	enum latent_format latents;
	struct engine *e = NULL;
	struct err err = {0};

	if (!needs_config(d, "engine"))
		return;
	if (opened_engine_options(&opt, &latents, &d->config, &err) || engine_open(&e, &opt, &err)) {
		tell(d, FAIL, "engine", json_pack("{s:s}", "isa", d->config.compute.isa), "%s", err.text);
		return;
	}
	tell(d, OK, "engine",
	     json_pack("{s:s, s:s, s:s, s:i}", "isa", engine_isa(e), "compute", compute_profile_name(engine_compute(e)),
		       "latents", latent_format_name(latents), "threads", engine_n_threads(e)),
	     "cpu, %s (compute.isa is %s), %d threads, compute %s, latents %s", engine_isa(e), d->config.compute.isa,
	     engine_n_threads(e), compute_profile_name(engine_compute(e)), latent_format_name(latents));
	engine_close(e);
}

static void look_at_threads(struct doctor *d, const struct numa *numa)
{
	int n = (int)d->config.compute.threads;
	json_t *values;

	if (!needs_config(d, "threads"))
		return;
	values = json_pack("{s:i, s:i}", "threads", n ? n : numa->n_cpus, "cpuset", numa->n_cpus);
	if (!n)
		tell(d, OK, "threads", values, "%d, one for each processor that this process may use", numa->n_cpus);
	else if (n <= numa->n_cpus)
		tell(d, OK, "threads", values, "%d of the %d processors that this process may use", n, numa->n_cpus);
	else
		tell(d, WARN, "threads", values, "compute.threads is %d, and this process may use %d processors: the threads "
		     "will wait for one another; set it to auto or at most %d", n, numa->n_cpus, numa->n_cpus);
}

static void look_at_numa(struct doctor *d, const struct numa *numa)
{
	int n_threads = d->config.compute.threads ? (int)d->config.compute.threads : numa->n_cpus;
	json_t *values = json_object(), *nodes = json_array();
	char text[1024] = "";

	for (int i = 0; i < numa->n_nodes; i++) {
		const struct numa_node *node = &numa->nodes[i];
		int n = 0;

		for (int t = 0; t < n_threads; t++)
			n += numa_node_of_thread(numa, t, n_threads) == i;
		snprintf(text + strlen(text), sizeof text - strlen(text), "%s node %d has %d processors and %d threads",
			 i ? "," : ":", node->id, node->n_cpus, n);
		json_array_append_new(nodes, json_pack("{s:i, s:i, s:i}", "id", node->id, "processors", node->n_cpus,
						       "threads", n));
	}
	json_object_set_new(values, "nodes", nodes);
	if (numa->trouble.code)
		tell(d, WARN, "numa", values, "counted as one node: %s", numa->trouble.text);
	else if (numa->n_nodes == 1)
		tell(d, OK, "numa", values, "1 node: no thread is bound");
	else
		tell(d, OK, "numa", values, "%d nodes, and threads are bound to theirs%s", numa->n_nodes, text);
}

/* ---- what the kernel gives ---- */

static void look_at_memory(struct doctor *d)
{
	char total[PRINT_BYTES], available[PRINT_BYTES];
	const struct machine_memory *m = &d->memory;
	struct err err = {0};

	if (machine_memory(&d->memory, d->opt->root, &err)) {
		tell(d, WARN, "memory", NULL, "%s", err.text);
		return;
	}
	d->have_memory = true;
	tell(d, OK, "memory", json_pack("{s:I, s:I, s:o}", "total_bytes", (json_int_t)m->total_bytes, "available_bytes",
					(json_int_t)m->available_bytes, "limit_bytes",
					m->limit_bytes ? json_integer(m->limit_bytes) : json_null()),
	     "%s, of which %s are available%s", print_size(total, m->total_bytes), print_size(available, m->available_bytes),
	     m->limit_bytes && m->limit_bytes == m->total_bytes ? " (the limit of this process's cgroup)" : "");
}

static const char *limit_text(char out[PRINT_BYTES], int64_t bytes)
{
	return bytes < 0 ? "unlimited" : print_size(out, bytes);
}

static void look_at_memlock(struct doctor *d)
{
	char soft[PRINT_BYTES], hard[PRINT_BYTES];
	struct machine_memlock m;
	struct err err = {0};
	json_t *values;

	if (machine_memlock(&m, d->opt->root, &err)) {
		tell(d, WARN, "memlock", NULL, "%s", err.text);
		return;
	}
	values = json_pack("{s:o, s:o, s:b}", "bytes", m.bytes < 0 ? json_null() : json_integer(m.bytes), "most_bytes",
			   m.most_bytes < 0 ? json_null() : json_integer(m.most_bytes), "exempt", (int)m.exempt);
	if (m.exempt)
		tell(d, OK, "memlock", values, "%s, which does not hold for this process (CAP_IPC_LOCK)",
		     limit_text(soft, m.bytes));
	else if (m.bytes < 0 || m.bytes >= LITTLE_MEMLOCK_BYTES)
		tell(d, OK, "memlock", values, "%s", limit_text(soft, m.bytes));
	else
		tell(d, WARN, "memlock", values, "%s (hard limit %s) is little for pinned read buffers: set LimitMEMLOCK=infinity "
		     "in the unit, or ulimit -l", limit_text(soft, m.bytes), limit_text(hard, m.most_bytes));
}

static void look_at_huge_pages(struct doctor *d)
{
	struct err err = {0};
	json_t *values;
	char *word;

	if (machine_huge_pages(&word, d->opt->root, &err)) {
		if (err.code == ERR_NOT_FOUND)
			tell(d, WARN, "hugepages", NULL, "this kernel has no transparent huge pages");
		else
			tell(d, WARN, "hugepages", NULL, "%s", err.text);
		return;
	}
	values = json_pack("{s:o}", "setting", text_value(word));
	if (!strcmp(word, "madvise"))
		tell(d, OK, "hugepages", values, "madvise: memory that asks for them");
	else if (strcmp(word, "never"))
		tell(d, OK, "hugepages", values, "%s", word);
	else
		tell(d, WARN, "hugepages", values, "never: weights lie in pages of 4 KiB; write madvise or always to "
		     "/sys/kernel/mm/transparent_hugepage/enabled");
	free(word);
}

static void look_at_io_uring(struct doctor *d)
{
	struct err err = {0};

	if (machine_io_uring(d->opt->root, &err))
		tell(d, WARN, "io_uring", json_pack("{s:b}", "allowed", 0), "refused: %s; reads go by pread", err.text);
	else
		tell(d, OK, "io_uring", json_pack("{s:b}", "allowed", 1), "allowed");
}

/* ---- the store ---- */

/* The directory itself, or the nearest one above it that is there; to be freed. */
static char *nearest_directory(const char *path)
{
	char *dir = xstrdup(path), *slash;
	struct stat st;

	while (stat(dir, &st) && errno == ENOENT && (slash = strrchr(dir, '/')) && slash != dir)
		*slash = '\0';
	if (stat(dir, &st) && errno == ENOENT)
		strcpy(dir, "/");
	return dir;
}

static const char *user_name(char out[32], uid_t uid)
{
	const struct passwd *p = getpwuid(uid);

	if (p)
		snprintf(out, 32, "%s", p->pw_name);
	else
		snprintf(out, 32, "user %ld", (long)uid);
	return out;
}

/* Why it is a poor place for a store; "". */
static const char *judge_disk(enum level *level, const struct machine_disk *disk)
{
	*level = WARN;
	if (disk->in_memory)
		return ": what is stored there is gone when the machine stops";
	if (disk->remote)
		return ": over a network or in user space, locks and syncs may not hold what they promise; use a local disk";
	if (disk->free_bytes < LITTLE_ROOM_BYTES)
		return ": little room";
	*level = OK;
	return "";
}

static void look_at_direct_io(struct doctor *d, const char *dir)
{
	struct machine_direct_io io;
	struct err err = {0};
	json_t *values;

	if (machine_direct_io(&io, dir, &err)) {
		tell(d, WARN, "direct_io", NULL, "not known: %s", err.text);
		return;
	}
	values = json_pack("{s:I, s:I, s:b}", "memory_align_bytes", (json_int_t)io.memory_align, "offset_align_bytes",
			   (json_int_t)io.offset_align, "measured", (int)io.measured);
	if (!io.offset_align)
		tell(d, WARN, "direct_io", values, "none in %s: every read goes through the page cache", dir);
	else
		tell(d, OK, "direct_io", values, "aligned to %u bytes in memory and %u in the file (%s)", io.memory_align,
		     io.offset_align, io.measured ? "measured" : "says the kernel");
}

/* `dir`: the store, or the nearest directory above it. */
static void look_at_directory(struct doctor *d, const char *dir)
{
	const char *store = d->config.store.path, *complaint;
	bool is_there = !strcmp(dir, store);
	char owner[32], mode[8], room[PRINT_BYTES];
	struct machine_disk disk;
	struct err err = {0};
	struct stat st;
	enum level level;

	if (stat(dir, &st))
		err_errno(&err, errno, "look at %s", dir);
	if (err.code || machine_disk(&disk, dir, &err)) {
		tell(d, FAIL, "store", json_pack("{s:o}", "path", text_value(store)), "%s", err.text);
		return;
	}
	complaint = judge_disk(&level, &disk);
	snprintf(mode, sizeof mode, "%04o", (unsigned)st.st_mode & 07777);
	tell(d, level, "store",
	     json_pack("{s:o, s:b, s:I, s:s, s:s, s:I}", "path", text_value(store), "exists", (int)is_there, "owner_uid",
		       (json_int_t)st.st_uid, "mode", mode, "filesystem", disk.type, "free_bytes",
		       (json_int_t)disk.free_bytes),
	     "%s%s%s (%s, mode %s): %s free on %s%s", store, is_there ? "" : " will be made in ", is_there ? "" : dir,
	     user_name(owner, st.st_uid), mode, print_size(room, disk.free_bytes), disk.type, complaint);
	look_at_direct_io(d, dir);
}

static void look_at_store(struct doctor *d)
{
	const char *store = d->config.store.path;
	struct err err = {0};
	char *dir;

	if (!needs_config(d, "store"))
		return;
	dir = nearest_directory(store);
	/* Not there is no failure: the daemon makes it, if it may. */
	if (cache_check_directory(store, &err) && err.code == ERR_NOT_FOUND)
		err = (struct err){0};
	if (!err.code && eaccess(dir, W_OK | X_OK))
		err_errno(&err, errno, "store %s: write in %s", store, dir);
	if (err.code)
		tell(d, FAIL, "store", json_pack("{s:o}", "path", text_value(store)), "%s", err.text);
	else
		look_at_directory(d, dir);
	free(dir);
}

/* ---- the daemon ---- */

static void judge_daemon(struct doctor *d, const char *path, const json_t *status)
{
	const json_t *model = json_object_get(status, "model");
	const char *version = json_string_value(json_object_get(status, "version"));
	const char *state = json_string_value(json_object_get(model, "state"));
	const char *why = json_string_value(json_object_get(model, "error"));
	json_int_t pid = json_integer_value(json_object_get(status, "pid"));
	json_t *values = json_pack("{s:o, s:b, s:o, s:I, s:o}", "path", text_value(path), "answers", 1, "version",
				   text_value(version), "pid", pid, "model", text_value(state));

	version = version ? version : "of no version";
	state = state ? state : "unknown";
	d->daemon_has_model = !strcmp(state, "ready");
	if (!strcmp(state, "failed"))
		tell(d, FAIL, "socket", values, "quired %s answers at %s, process %lld, without its model: %s", version, path,
		     (long long)pid, why ? why : "it does not say why");
	else if (strcmp(version, QUIRE_VERSION))
		tell(d, WARN, "socket", values, "quired %s answers at %s, process %lld, and this is quire " QUIRE_VERSION
		     ": restart it", version, path, (long long)pid);
	else
		tell(d, OK, "socket", values, "quired %s answers at %s, process %lld, model %s", version, path,
		     (long long)pid, state);
}

static void look_at_socket(struct doctor *d)
{
	const char *given = d->opt->socket, *environment = getenv("QUIRE_SOCKET");
	struct client *client = NULL;
	json_t *status = NULL;
	struct err err = {0};
	char *path = NULL;

	if (!given && !(environment && *environment) && !needs_config(d, "socket"))
		return;
	if (config_socket_path(&path, given, d->config.server.socket, &err) || client_open(&client, path, &err)) {
		tell(d, FAIL, "socket", NULL, "%s", err.text);
	} else {
		client_set_timeout(client, DAEMON_MS);
		if (!client_request(client, API_STATUS, NULL, NULL, &status, &err))
			judge_daemon(d, path, status);
		else
			tell(d, err.code == ERR_UNREACHABLE ? WARN : FAIL, "socket",
			     json_pack("{s:o, s:b}", "path", text_value(path), "answers", 0), "%s", err.text);
	}
	json_decref(status);
	client_close(client);
	free(path);
}

/* ---- the model ---- */

static void judge_model(struct doctor *d, const struct model *m)
{
	struct model_parameters p = model_count_parameters(&m->config);
	char all[PRINT_BYTES], active[PRINT_BYTES], needed[PRINT_BYTES], memory[PRINT_BYTES], head[400];
	int64_t bytes = (int64_t)m->loaded_bytes;
	bool fits = d->have_memory && bytes <= d->memory.total_bytes;
	json_t *values = json_pack("{s:o, s:s, s:I, s:I, s:I, s:o}", "path", text_value(m->dir), "architecture",
				   m->config.architecture, "parameters", (json_int_t)p.total, "active_parameters",
				   (json_int_t)p.active, "loaded_bytes", (json_int_t)bytes, "fits",
				   d->have_memory ? json_boolean(fits) : json_null());

	snprintf(head, sizeof head, "%s, %s parameters (%s active), needs %s of memory", m->config.architecture,
		 print_count(all, (int64_t)p.total), print_count(active, (int64_t)p.active), print_size(needed, bytes));
	if (!d->have_memory)
		tell(d, WARN, "model", values, "%s: %s; how much there is, is not known", m->dir, head);
	else if (!fits)
		tell(d, FAIL, "model", values, "%s: %s, and there are %s in all: it does not fit", m->dir, head,
		     print_size(memory, d->memory.total_bytes));
	else if (bytes > d->memory.available_bytes && !d->daemon_has_model)
		tell(d, WARN, "model", values, "%s: %s, and %s are available now", m->dir, head,
		     print_size(memory, d->memory.available_bytes));
	else
		tell(d, OK, "model", values, "%s: %s, which it has", m->dir, head);
}

/* Questions need a tokenizer and a way to render them. */
static void look_at_tokenizer(struct doctor *d, const struct model *m)
{
	char *path = xasprintf("%s/tokenizer.json", m->dir), count[PRINT_BYTES];
	struct tokenizer *t = NULL;
	struct renderer *r = NULL;
	struct err err = {0};

	if (tokenizer_open(&t, path, &err))
		tell(d, FAIL, "tokenizer", NULL, "%s", err.text);
	else if (renderer_open(&r, m->dir, m->config.architecture, d->config.model.template, t, &err))
		tell(d, WARN, "tokenizer", json_pack("{s:i, s:n}", "ids", (int)tokenizer_n_ids(t), "renderer"),
		     "%s ids, and no questions: %s", print_count(count, tokenizer_n_ids(t)), err.text);
	else
		tell(d, OK, "tokenizer", json_pack("{s:i, s:s}", "ids", (int)tokenizer_n_ids(t), "renderer", renderer_name(r)),
		     "%s ids, questions are rendered for %s", print_count(count, tokenizer_n_ids(t)), renderer_name(r));
	renderer_close(r);
	tokenizer_close(t);
	free(path);
}

static void look_at_model(struct doctor *d)
{
	struct model_options opt = {.mla_norm_eps = (float)d->config.model.mla_norm_eps};
	const char *path = d->config.model.path;
	struct model *m = NULL;
	struct err err = {0};

	if (!needs_config(d, "model"))
		return;
	if (!path) {
		tell(d, WARN, "model", json_pack("{s:n}", "path"),
		     "model.path is not set: the daemon starts, and refuses ask and ingest");
	} else if (model_open_headers(&m, path, &opt, &err)) {
		tell(d, FAIL, "model", json_pack("{s:o}", "path", text_value(path)), "%s", err.text);
	} else {
		judge_model(d, m);
		look_at_tokenizer(d, m);
	}
	model_close(m);
}

/* ---- devices beside the processor ---- */

/* The words of one that opens, for people and for programs. */
static void describe_gpu(char *text, size_t room, json_t *list, const struct accelerator *a)
{
	char all[PRINT_BYTES], unused[PRINT_BYTES];

	json_array_append_new(list, json_pack("{s:s, s:o, s:I, s:I}", "name", a->name, "model", text_value(a->info.name), "bytes",
					      (json_int_t)a->info.bytes, "free_bytes", (json_int_t)a->info.free_bytes));
	snprintf(text + strlen(text), room - strlen(text), "%s%s %s, %s, of which %s are free", *text ? "; " : "", a->name,
		 a->info.name, print_size(all, (int64_t)a->info.bytes), print_size(unused, (int64_t)a->info.free_bytes));
}

/* It is as well to have none: the processor computes then. A library or a device that is there and does not open is a warning. */
static void look_at_gpus(struct doctor *d)
{
	struct err err = {0}, trouble = {0};
	int n = accelerator_count("cuda", &err);
	json_t *list = json_array();
	char text[1024] = "";

	for (int i = 0; i < n; i++) {
		char *name = xasprintf("cuda:%d", i);
		struct accelerator *a;

		if (!accelerator_open(&a, name, &err)) {
			describe_gpu(text, sizeof text, list, a);
			accelerator_close(a);
		} else if (!trouble.code) {
			trouble = err;
		}
		free(name);
	}
	if (n <= 0)
		tell(d, err.code == ERR_UNAVAILABLE ? OK : WARN, "gpu",
		     json_pack("{s:i, s:o, s:o}", "n", 0, "devices", list, "why", text_value(err.text)),
		     "none, the CPU computes: %s", err.text);
	else
		tell(d, trouble.code ? WARN : OK, "gpu",
		     json_pack("{s:i, s:o, s:o}", "n", (int)json_array_size(list), "devices", list, "why",
			       trouble.code ? text_value(trouble.text) : json_null()),
		     "%s%s%s", text, *text && trouble.code ? "; " : "", trouble.code ? trouble.text : "");
}

int doctor_run(FILE *out, const struct doctor_options *opt)
{
	struct doctor d = {.opt = opt, .out = out};
	char *sysfs = xasprintf("%s/sys", opt->root);
	struct numa *numa = numa_read(sysfs, NULL);

	look_at_config(&d);
	look_at_processor(&d);
	look_at_isas(&d);
	look_at_engine(&d);
	look_at_threads(&d, numa);
	look_at_numa(&d, numa);
	look_at_memory(&d);
	look_at_memlock(&d);
	look_at_huge_pages(&d);
	look_at_io_uring(&d);
	look_at_store(&d);
	look_at_socket(&d);
	look_at_model(&d);
	look_at_gpus(&d);
	if (opt->json)
		print_json(out, "summary", json_pack("{s:i, s:i, s:i}", "ok", d.counts[OK], "warn", d.counts[WARN], "fail",
						     d.counts[FAIL]));
	else
		fprintf(out, "%d ok, %d warn, %d fail\n", d.counts[OK], d.counts[WARN], d.counts[FAIL]);
	config_free(&d.config);
	numa_free(numa);
	free(sysfs);
	return d.counts[FAIL];
}
