#include "config/config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "config/mem.h"
#include "config/units.h"
#include "config/yaml.h"

enum kind {
	VERSION,
	COUNT,
	FRACTION,
	BYTES,
	PATH,
	SOCKET, /* a path that fits a socket address */
	CHOICE, /* text: one of `choices` */
	DEVICE, /* text: one of `choices`, or a kind and a number, as cuda:0 */
	LEVEL,  /* the index of one of `choices`, in an enum log_level */
	GLOBS,
};

struct key {
	const char *section, *name;
	enum kind kind;
	size_t offset;
	double least, most;
	const char *zero;   /* the word for 0; "" when 0 means unset and cannot be written */
	const char *const *choices;
};

static const char *const templates[] = {"glm-5.2", "glm-5", NULL};
static const char *const computes[] = {"bf16", "f32", NULL};
static const char *const latents[] = {"bf16", "fp8", NULL};
static const char *const isas[] = {"auto", "scalar", "avx2", "avx512", "avx512bf16", NULL};
static const char *const devices[] = {"auto", "none", NULL};
static const char *const levels[] = {
	[LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARN] = "warn", [LOG_LEVEL_INFO] = "info", [LOG_LEVEL_DEBUG] = "debug", NULL,
};

/* All there is to say about a key but its default, which is in config_defaults. The order is that of config_print;
 * the keys of a section stand together. */
#define AT(member) offsetof(struct config, member)
static const struct key keys[] = {
	{"", "version", VERSION, AT(version)},
	{"model", "path", PATH, AT(model.path)},
	{"model", "template", CHOICE, AT(model.template), .choices = templates},
	{"model", "compute", CHOICE, AT(model.compute), .choices = computes},
	{"model", "latents", CHOICE, AT(model.latents), .choices = latents},
	{"model", "mla_norm_eps", FRACTION, AT(model.mla_norm_eps), 1e-12, 1, .zero = ""},
	{"compute", "threads", COUNT, AT(compute.threads), 1, 1024, .zero = "auto"},
	{"compute", "isa", CHOICE, AT(compute.isa), .choices = isas},
	{"tiers", "host_experts", BYTES, AT(tiers.host_expert_bytes), 1 << 16, (double)(1LL << 46), .zero = "auto"},
	{"tiers", "device", DEVICE, AT(tiers.device), .choices = devices},
	{"tiers", "device_experts", BYTES, AT(tiers.device_expert_bytes), 1 << 16, (double)(1LL << 46), .zero = "auto"},
	{"context", "max_tokens", COUNT, AT(context.max_tokens), 1, 1 << 20, .zero = "auto"},
	{"context", "latent_cache", BYTES, AT(context.latent_cache_bytes), 1, (double)(1LL << 50), .zero = "auto"},
	{"store", "path", PATH, AT(store.path)},
	{"store", "max_bytes", BYTES, AT(store.max_bytes), 1 << 20, (double)(1LL << 50), .zero = "none"},
	{"store", "keep_snapshots", COUNT, AT(store.keep_snapshots), 0, 1 << 16},
	{"server", "socket", SOCKET, AT(server.socket)},
	{"server", "max_queue", COUNT, AT(server.max_queue), 1, 1 << 16},
	{"ingest", "max_file", BYTES, AT(ingest.max_file_bytes), 1, 1 << 30},
	{"ingest", "scratch", BYTES, AT(ingest.scratch_bytes), 1 << 16, (double)(1LL << 44)},
	{"ingest", "exclude", GLOBS, AT(ingest.exclude)},
	{"ingest", "include", GLOBS, AT(ingest.include)},
	{"query", "max_tokens", COUNT, AT(query.max_tokens), 1, 1 << 20},
	{"query", "temperature", FRACTION, AT(query.temperature), 0, 100},
	{"query", "top_p", FRACTION, AT(query.top_p), 0, 1},
	{"query", "top_k", COUNT, AT(query.top_k), 0, 1 << 20},
	{"query", "min_p", FRACTION, AT(query.min_p), 0, 1},
	{"query", "seed", COUNT, AT(query.seed), 0, (double)(1LL << 53)},
	{"log", "level", LEVEL, AT(log.level), .choices = levels},
};
enum { N_KEYS = sizeof keys / sizeof keys[0] };

/* What is at the key's place is text that belongs to the struct. */
static bool is_string(const struct key *k)
{
	return k->kind == PATH || k->kind == SOCKET || k->kind == CHOICE || k->kind == DEVICE;
}

static void *field(const struct config *c, const struct key *k)
{
	return (char *)c + k->offset;
}

/* ---- where things are when nobody says ---- */

/* $variable/rest if the variable holds an absolute path, else $HOME/home_rest, else NULL. */
static char *user_path(const char *variable, const char *rest, const char *home_rest)
{
	const char *dir = getenv(variable), *home = getenv("HOME");

	if (dir && dir[0] == '/')
		return xasprintf("%s/%s", dir, rest);
	if (home && home[0] == '/')
		return xasprintf("%s/%s", home, home_rest);
	return NULL;
}

char *config_default_file(void)
{
	return user_path("XDG_CONFIG_HOME", "quire/quire.yaml", ".config/quire/quire.yaml");
}

static int check_socket_length(const char *path, struct err *err)
{
	const size_t room = sizeof((struct sockaddr_un *)0)->sun_path - 1;

	if (strlen(path) > room)
		return err_set(err, ERR_USAGE, "socket path \"%s\" has %zu bytes; a Unix socket's path has at most %zu",
			       path, strlen(path), room);
	return 0;
}

/* A path as a user gives it, perhaps as a URL like DOCKER_HOST's. */
static int socket_from_user(char **out, const char *from, const char *given, struct err *err)
{
	const char *path = strncmp(given, "unix://", 7) ? given : given + 7;

	if (!*path || strstr(path, "://"))
		return err_set(err, ERR_USAGE, "%s \"%s\" is not the path of a socket, nor unix:// and a path", from, given);
	if (check_socket_length(path, err))
		return err_wrap(err, "%s", from);
	*out = xstrdup(path);
	return 0;
}

int config_socket_path(char **out, const char *given, const char *configured, struct err *err)
{
	const char *variable = getenv("QUIRE_SOCKET"), *runtime = getenv("XDG_RUNTIME_DIR");
	unsigned uid = (unsigned)geteuid();
	char *path;
	struct stat st;

	if (given)
		return socket_from_user(out, "--socket", given, err);
	if (variable && *variable)
		return socket_from_user(out, "$QUIRE_SOCKET", variable, err);
	if (configured) {
		path = xstrdup(configured);
	} else if (runtime && runtime[0] == '/') {
		path = xasprintf("%s/quire/quire.sock", runtime);
	} else {
		path = xasprintf("/run/user/%u", uid);
		if (!stat(path, &st) && S_ISDIR(st.st_mode) && st.st_uid == uid) {
			free(path);
			path = xasprintf("/run/user/%u/quire/quire.sock", uid);
		} else {
			free(path);
			path = xasprintf("/run/quire-%u/quire.sock", uid);
		}
	}
	if (check_socket_length(path, err)) {
		free(path);
		return -1;
	}
	*out = path;
	return 0;
}

/* ---- defaults and their end ---- */

static char **no_globs(void)
{
	return xcalloc(1, sizeof(char *));
}

static void set_defaults(struct config *c)
{
	*c = (struct config){
		.version = 1,
		.model = {.compute = xstrdup("bf16"), .latents = xstrdup("bf16")},
		.compute = {.isa = xstrdup("auto")},
		.tiers = {.device = xstrdup("auto")},
		.store = {.path = user_path("XDG_DATA_HOME", "quire", ".local/share/quire"), .keep_snapshots = 3},
		.server = {.max_queue = 64},
		.ingest = {.max_file_bytes = 1 << 20, .scratch_bytes = 1 << 30,
			   .exclude = no_globs(), .include = no_globs()},
		.query = {.max_tokens = 4096, .top_p = 1},
		.log = {.level = LOG_LEVEL_INFO},
	};
}

/* A store has to be somewhere: by the file, or by the environment. */
static int check_store(struct config *c, struct err *err)
{
	if (c->store.path)
		return 0;
	config_free(c);
	return err_set(err, ERR_USAGE, "no place for the store: set store.path in the configuration, or $HOME");
}

int config_defaults(struct config *c, struct err *err)
{
	set_defaults(c);
	return check_store(c, err);
}

static void free_globs(char **globs)
{
	for (char **g = globs; g && *g; g++)
		free(*g);
	free(globs);
}

void config_free(struct config *c)
{
	for (const struct key *k = keys; k < keys + N_KEYS; k++) {
		if (k->kind == GLOBS)
			free_globs(*(char ***)field(c, k));
		else if (is_string(k))
			free(*(char **)field(c, k));
	}
	*c = (struct config){0};
}

/* ---- the file ---- */

struct reader {
	struct yaml *yaml;
	struct config *config;
	struct err *err;
	/* Where a key, and under [N_KEYS + k] the section of key k, was met; line 0: not yet. */
	struct yaml_place seen[2 * N_KEYS];
};

/* "section.name", or the name at top. */
static const char *full_name(char out[64], const char *section, const char *name)
{
	snprintf(out, 64, "%s%s%s", section, *section ? "." : "", name);
	return out;
}

static const struct key *find_key(const char *section, const char *name)
{
	for (const struct key *k = keys; k < keys + N_KEYS; k++)
		if (!strcmp(k->section, section) && !strcmp(k->name, name))
			return k;
	return NULL;
}

/* The first key of a section stands for it. */
static const struct key *find_section(const char *name)
{
	for (const struct key *k = keys; *name && k < keys + N_KEYS; k++)
		if (!strcmp(k->section, name))
			return k;
	return NULL;
}

/* Near names in the same section come first; a right name in the wrong section is the other usual slip. */
static int refuse_unknown(struct reader *r, const char *section, const struct yaml_piece *piece)
{
	const char *names[2 * N_KEYS], *near;
	char hint[64] = "";
	size_t n = 0;

	for (const struct key *k = keys; k < keys + N_KEYS; k++) {
		if (!strcmp(k->section, section))
			names[n++] = k->name;
		else if (!*section && find_section(k->section) == k)
			names[n++] = k->section;
	}
	near = nearest_name(piece->text, names, n);
	if (near)
		full_name(hint, section, near);
	for (const struct key *k = keys; !near && !*hint && k < keys + N_KEYS; k++)
		if (!strcmp(k->name, piece->text))
			full_name(hint, k->section, k->name);
	return yaml_refuse(r->yaml, piece->at, r->err, "unknown key \"%s%s%s\"%s%s%s", section, *section ? "." : "",
			   piece->text, *hint ? "; did you mean \"" : "", hint, *hint ? "\"?" : "");
}

static int refuse_value(struct reader *r, const struct key *k, struct yaml_place at, const char *why)
{
	char name[64];

	return yaml_refuse(r->yaml, at, r->err, "%s: %s", full_name(name, k->section, k->name), why);
}

static int read_choice(const char *text, const char *const *choices, struct err *err)
{
	char all[128] = "";
	const char *near;
	size_t n = 0;

	for (; choices[n]; n++) {
		if (!strcmp(choices[n], text))
			return (int)n;
		snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", n ? ", " : "", choices[n]);
	}
	near = nearest_name(text, choices, n);
	return err_set(err, ERR_USAGE, "\"%s\" is not a value it may have (known: %s)%s%s%s", text, all,
		       near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

static int read_path(char **out, const char *text, struct err *err)
{
	const char *home = getenv("HOME");

	if (text[0] == '/') {
		*out = xstrdup(text);
		return 0;
	}
	if (strncmp(text, "~/", 2))
		return err_set(err, ERR_USAGE, "\"%s\" is not an absolute path; write one that begins with / or ~/", text);
	if (!home || home[0] != '/')
		return err_set(err, ERR_USAGE, "\"%s\" needs $HOME, which is not set", text);
	*out = xasprintf("%s/%s", home, text + 2);
	return 0;
}

/* As in offload/accelerator.h, which says whether there is one of that name. */
static bool names_device(const char *text)
{
	size_t kind = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789"), number;

	if (!kind || text[kind] != ':')
		return false;
	number = strspn(text + kind + 1, "0123456789");
	return number && !text[kind + 1 + number];
}

/* What the text of one scalar means to a key; the sentence does not know the place yet. */
static int read_scalar(struct config *c, const struct key *k, const struct yaml_piece *piece, struct err *err)
{
	const char *text = piece->text;
	char low[UNITS_TEXT_BYTES], high[UNITS_TEXT_BYTES], *path = NULL;
	int64_t bytes;
	int choice;

	if ((k->kind == COUNT || k->kind == FRACTION || k->kind == VERSION) && piece->quoted)
		return err_set(err, ERR_USAGE, "\"%s\" is text, because of its quotes; write a number", text);
	switch (k->kind) {
	case VERSION:
		if (strcmp(text, "1"))
			return err_set(err, ERR_USAGE, "this quire reads configurations of version 1, not \"%s\"", text);
		return 0;
	case COUNT:
		if (k->zero && !strcmp(text, k->zero)) {
			*(int64_t *)field(c, k) = 0;
			return 0;
		}
		return count_parse(field(c, k), text, (int64_t)k->least, (int64_t)k->most, err);
	case FRACTION:
		return fraction_parse(field(c, k), text, k->least, k->most, err);
	case BYTES:
		if (k->zero && !strcmp(text, k->zero)) {
			*(int64_t *)field(c, k) = 0;
			return 0;
		}
		if (bytes_parse(&bytes, text, err))
			return -1;
		if ((double)bytes < k->least || (double)bytes > k->most)
			return err_set(err, ERR_USAGE, "%s is not between %s and %s", text,
				       bytes_print(low, (int64_t)k->least), bytes_print(high, (int64_t)k->most));
		*(int64_t *)field(c, k) = bytes;
		return 0;
	case PATH:
	case SOCKET:
		if (read_path(&path, text, err))
			return -1;
		if (k->kind == SOCKET && check_socket_length(path, err)) {
			free(path);
			return -1;
		}
		free(*(char **)field(c, k));
		*(char **)field(c, k) = path;
		return 0;
	case DEVICE:
		if (!names_device(text) && read_choice(text, k->choices, err) < 0)
			return err_set(err, ERR_USAGE, "\"%s\" is neither auto nor none nor a kind and a number, as cuda:0", text);
		free(*(char **)field(c, k));
		*(char **)field(c, k) = xstrdup(text);
		return 0;
	case CHOICE:
	case LEVEL:
		choice = read_choice(text, k->choices, err);
		if (choice < 0)
			return -1;
		if (k->kind == LEVEL) {
			*(enum log_level *)field(c, k) = (enum log_level)choice;
			return 0;
		}
		free(*(char **)field(c, k));
		*(char **)field(c, k) = xstrdup(text);
		return 0;
	case GLOBS:
		break;
	}
	assert(!"a list is no scalar");
	return -1;
}

/* Text that a YAML reader would take for something else has to be quoted, so that everybody reads the same. */
static int check_text(const struct key *k, const struct yaml_piece *piece, struct err *err)
{
	bool is_text = is_string(k) || k->kind == LEVEL || k->kind == GLOBS;
	double number;

	if (!piece->quoted && yaml_is_null(piece->text))
		return err_set(err, ERR_USAGE, "has no value; write one, or leave the key out");
	if (!*piece->text)
		return err_set(err, ERR_USAGE, "is empty; write a value, or leave the key out");
	if (!is_text || piece->quoted)
		return 0;
	if (yaml_is_boolean(piece->text))
		return err_set(err, ERR_USAGE, "%s is a boolean in YAML, and text is expected; if you mean the word, put "
			       "it in quotes", piece->text);
	if (!fraction_parse(&number, piece->text, -1e308, 1e308, NULL))
		return err_set(err, ERR_USAGE, "%s is a number in YAML, and text is expected; if you mean the text, put "
			       "it in quotes", piece->text);
	return 0;
}

static int read_globs(struct reader *r, const struct key *k)
{
	char ***globs = field(r->config, k);
	struct yaml_piece piece;
	struct err why = {0};
	size_t n = 0;

	for (;;) {
		if (yaml_next(r->yaml, &piece, r->err))
			return -1;
		if (piece.kind == YAML_END)
			return 0;
		if (piece.kind != YAML_SCALAR)
			return refuse_value(r, k, piece.at, "holds a list or mapping where text is expected");
		if (check_text(k, &piece, &why))
			return refuse_value(r, k, piece.at, why.text);
		*globs = xrealloc(*globs, n + 2, sizeof **globs);
		(*globs)[n++] = xstrdup(piece.text);
		(*globs)[n] = NULL;
	}
}

static int read_value(struct reader *r, const struct key *k)
{
	struct yaml_piece piece;
	struct err why = {0};

	if (yaml_next(r->yaml, &piece, r->err))
		return -1;
	if (k->kind == GLOBS && piece.kind == YAML_LIST)
		return read_globs(r, k);
	if (k->kind == GLOBS)
		return refuse_value(r, k, piece.at, "a list is expected, such as [\"*.min.js\"]");
	if (piece.kind != YAML_SCALAR)
		return refuse_value(r, k, piece.at, piece.kind == YAML_LIST ? "one value is expected, not a list"
									     : "one value is expected, not a mapping");
	if (check_text(k, &piece, &why) || read_scalar(r->config, k, &piece, &why))
		return refuse_value(r, k, piece.at, why.text);
	return 0;
}

static int check_first_time(struct reader *r, struct yaml_place *seen, const struct yaml_piece *piece)
{
	if (seen->line)
		return yaml_refuse(r->yaml, piece->at, r->err, "\"%s\" is given twice, first in line %zu", piece->text,
				   seen->line);
	*seen = piece->at;
	return 0;
}

/* The keys of a mapping that has been opened, up to its end: of the whole file (""), or of one section. */
static int read_mapping(struct reader *r, const char *section)
{
	const struct key *k, *inner;
	struct yaml_piece piece;

	for (;;) {
		if (yaml_next(r->yaml, &piece, r->err))
			return -1;
		if (piece.kind == YAML_END)
			return 0;
		k = find_key(section, piece.text);
		inner = *section ? NULL : find_section(piece.text);
		if (!k && !inner)
			return refuse_unknown(r, section, &piece);
		if (check_first_time(r, &r->seen[k ? k - keys : N_KEYS + (inner - keys)], &piece))
			return -1;
		if (k) {
			if (read_value(r, k))
				return -1;
			continue;
		}
		if (yaml_next(r->yaml, &piece, r->err))
			return -1;
		if (piece.kind != YAML_MAPPING)
			return yaml_refuse(r->yaml, piece.at, r->err, "%s: keys are expected below it, such as \"%s: ...\"",
					   inner->section, inner->name);
		if (read_mapping(r, inner->section))
			return -1;
	}
}

static int read_file(struct reader *r, const char *name)
{
	struct yaml_piece piece;

	if (yaml_next(r->yaml, &piece, r->err))
		return -1;
	if (piece.kind == YAML_MAPPING) {
		if (read_mapping(r, "") || yaml_next(r->yaml, &piece, r->err))
			return -1;
	} else if (piece.kind != YAML_END) {
		return yaml_refuse(r->yaml, piece.at, r->err, "keys are expected, such as \"version: 1\"");
	}
	if (!r->seen[find_key("", "version") - keys].line)
		return err_set(r->err, ERR_USAGE, "%s: \"version\" is missing; begin the file with \"version: 1\"", name);
	return 0;
}

int config_parse(struct config *c, const char *name, const char *text, size_t bytes, struct err *err)
{
	struct reader r = {.config = c, .err = err};

	if (yaml_open(&r.yaml, name, text, bytes, err))
		return -1;
	set_defaults(c);
	if (read_file(&r, name)) {
		yaml_close(r.yaml);
		config_free(c);
		return -1;
	}
	yaml_close(r.yaml);
	return check_store(c, err);
}

/* The whole file, which nobody but its owner and group may have written. One byte more than is allowed is read, so
 * that a file that is too long is seen to be so. */
static int slurp(char **text, size_t *bytes, int fd, const char *path, struct err *err)
{
	struct stat st;
	ssize_t n = 1;

	if (fstat(fd, &st))
		return err_errno(err, errno, "look at %s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_USAGE, "configuration %s is not a regular file", path);
	if (st.st_mode & S_IWOTH)
		return err_set(err, ERR_PERMISSION, "configuration %s may be written by everybody; run chmod o-w on it", path);
	*text = xmalloc(YAML_MAX_BYTES + 1, 1);
	for (*bytes = 0; n && *bytes <= YAML_MAX_BYTES; *bytes += (size_t)n) {
		n = read(fd, *text + *bytes, YAML_MAX_BYTES + 1 - *bytes);
		if (n < 0) {
			free(*text);
			return err_errno(err, errno, "read configuration %s", path);
		}
	}
	return 0;
}

static int load(struct config *c, const char *path, bool may_be_absent, struct err *err)
{
	/* O_NONBLOCK: a FIFO would otherwise hold us here. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), failed;
	char *text = NULL;
	size_t bytes = 0;

	if (fd < 0 && may_be_absent && (errno == ENOENT || errno == ENOTDIR))
		return config_defaults(c, err);
	if (fd < 0)
		return err_errno(err, errno, "open configuration %s", path);
	failed = slurp(&text, &bytes, fd, path, err);
	close(fd);
	if (failed)
		return -1;
	failed = config_parse(c, path, text, bytes, err);
	free(text);
	return failed;
}

int config_load(struct config *c, const char *path, struct err *err)
{
	char *usual = path ? NULL : config_default_file();
	int failed;

	*c = (struct config){0};
	if (path)
		return load(c, path, false, err);
	if (!usual)
		return config_defaults(c, err);
	failed = load(c, usual, true, err);
	free(usual);
	return failed;
}

/* ---- print ---- */

/* In double quotes, where YAML knows the escapes that err_escape writes. */
static void print_text(FILE *out, const char *text)
{
	size_t n = strlen(text), n_doubled = 0, room = 12 * n + 1;
	char *doubled = xmalloc(2 * n + 1, 1), *escaped = xmalloc(room, 1);

	for (const char *p = text; *p; p++) {
		if (*p == '"' || *p == '\\')
			doubled[n_doubled++] = '\\';
		doubled[n_doubled++] = *p;
	}
	fprintf(out, "\"%s\"", err_escape(escaped, room, doubled, n_doubled));
	free(escaped);
	free(doubled);
}

static bool is_unset(const struct config *c, const struct key *k)
{
	if (is_string(k))
		return !*(char **)field(c, k);
	return k->kind == FRACTION && k->zero && *(double *)field(c, k) == 0;
}

static void print_value(const struct config *c, const struct key *k, FILE *out)
{
	char text[UNITS_TEXT_BYTES];
	int64_t count;

	switch (k->kind) {
	case VERSION:
	case COUNT:
		count = *(int64_t *)field(c, k);
		if (!count && k->zero)
			fputs(k->zero, out);
		else
			fprintf(out, "%lld", (long long)count);
		break;
	case FRACTION:
		fputs(fraction_print(text, *(double *)field(c, k)), out);
		break;
	case BYTES:
		count = *(int64_t *)field(c, k);
		fputs(!count && k->zero ? k->zero : bytes_print(text, count), out);
		break;
	case PATH:
	case SOCKET:
		print_text(out, *(char **)field(c, k));
		break;
	case CHOICE:
	case DEVICE:
		fputs(*(char **)field(c, k), out);
		break;
	case LEVEL:
		fputs(k->choices[*(enum log_level *)field(c, k)], out);
		break;
	case GLOBS:
		putc('[', out);
		for (char **g = *(char ***)field(c, k); *g; g++) {
			if (g != *(char ***)field(c, k))
				fputs(", ", out);
			print_text(out, *g);
		}
		putc(']', out);
		break;
	}
}

int config_print(const struct config *c, FILE *out)
{
	for (const struct key *k = keys; k < keys + N_KEYS; k++) {
		if (find_section(k->section) == k)
			fprintf(out, "%s:\n", k->section);
		if (is_unset(c, k))
			continue;
		fprintf(out, "%s%s: ", *k->section ? "  " : "", k->name);
		print_value(c, k, out);
		putc('\n', out);
	}
	return ferror(out) || fflush(out) ? -1 : 0;
}
