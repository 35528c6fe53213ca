#include "offload/accelerator.h"

#include <assert.h>
#include <ctype.h>
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/mem.h"

enum { MAX_KIND = 8, MAX_DIGITS = 4 };

/* An accelerator with the table that its api is. */
struct opened {
	struct accelerator a;
	struct backend table;
};

/* "cuda:0" to "cuda" and 0. A kind becomes part of a file's name: letters and digits, nothing that leads elsewhere. */
static int parse(const char *name, char kind[MAX_KIND + 1], int *ordinal, struct err *err)
{
	size_t letters = 0, digits = 0;
	const char *number;

	while (islower((unsigned char)name[letters]) || (letters && isdigit((unsigned char)name[letters])))
		letters++;
	number = name + letters + (name[letters] == ':');
	while (isdigit((unsigned char)number[digits]))
		digits++;
	if (!letters || letters > MAX_KIND || name[letters] != ':' || !digits || digits > MAX_DIGITS || number[digits])
		return err_set(err, ERR_USAGE, "'%s' is no name of a device: they are a kind and a number, as cuda:0", name);
	memcpy(kind, name, letters);
	kind[letters] = '\0';
	*ordinal = atoi(number);
	return 0;
}

/* The directory that this program lies in, to be freed; NULL: not known. */
static char *program_directory(void)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
	char *slash;

	if (n < 0)
		return NULL;
	path[n] = '\0';
	slash = strrchr(path, '/');
	return slash ? xstrndup(path, (size_t)(slash - path)) : NULL;
}

static void *open_library(const char *path, struct err *err)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	if (!library)
		err_set(err, ERR_UNAVAILABLE, "%s", dlerror());
	return library;
}

/* The path, to be freed, of a library that is there; NULL: none is. */
static char *library_in(const char *dir, const char *below, const char *file)
{
	char *path = dir ? xasprintf("%s%s/%s", dir, below, file) : NULL;

	if (path && !access(path, F_OK))
		return path;
	free(path);
	return NULL;
}

static void *find_library(const char *kind, struct err *err)
{
	const char *given = secure_getenv("QUIRE_BACKENDS");
	char *file = xasprintf("libquire_%s.so", kind), *dir = program_directory(), *path;
	void *library;

	given = given && *given ? given : NULL;
	if (given) {
		path = library_in(given, "", file);
	} else {
		path = library_in(dir, "", file);
		path = path ? path : library_in(dir, "/../lib/quire", file);
	}
	if (path) {
		library = open_library(path, err);
	} else if (given) {
		library = NULL;
		err_set(err, ERR_UNAVAILABLE, "there is no %s in %s, which QUIRE_BACKENDS names", file, given);
	} else if (!(library = dlopen(file, RTLD_NOW | RTLD_LOCAL))) {
		err_set(err, ERR_UNAVAILABLE, "there is no %s in %s, in its ../lib/quire, or among the system's libraries%s", file,
			dir ? dir : "the program's directory",
			strcmp(kind, "cuda") ? "" : ": make CUDA=1 builds it, make CUDA=1 install installs it");
	}
	free(path);
	free(dir);
	free(file);
	return library;
}

/* The table of a library of this build. */
static int load(void **library, struct backend *table, const char *kind, struct err *err)
{
	backend_fill_fn *fill;
	void *symbol;

	memset(table, 0, sizeof *table);
	*library = find_library(kind, err);
	if (!*library)
		return -1;
	symbol = dlsym(*library, BACKEND_SYMBOL);
	if (!symbol) {
		err_set(err, ERR_FORMAT, "libquire_%s.so has no function " BACKEND_SYMBOL ": it is no library of devices", kind);
	} else {
		memcpy(&fill, &symbol, sizeof fill);
		fill(table);
		if (table->abi != BACKEND_ABI || table->bytes != sizeof *table)
			err_set(err, ERR_MISMATCH, "libquire_%s.so is of another build: its table is of version %u and %u bytes, and "
				"that of this program of version %u and %zu bytes; rebuild both (make CUDA=1)", kind, table->abi,
				table->bytes, BACKEND_ABI, sizeof *table);
		else if (!table->kind || strcmp(table->kind, kind))
			err_set(err, ERR_MISMATCH, "libquire_%s.so has devices of kind '%s'", kind,
				table->kind ? table->kind : "");
		else
			return 0;
	}
	dlclose(*library);
	*library = NULL;
	return -1;
}

static int count_devices(const struct backend *table, struct err *err)
{
	char why[BACKEND_TEXT] = "";
	int n = table->count(why);

	if (n <= 0)
		err_set(err, ERR_UNAVAILABLE, "%s", *why ? why : "there are no devices of this kind");
	return n < 0 ? -1 : n;
}

static int open_device(struct opened *o, const char *kind, int ordinal, struct err *err)
{
	char why[BACKEND_TEXT] = "";
	int n;

	if (load(&o->a.library, &o->table, kind, err) || (n = count_devices(&o->table, err)) <= 0)
		return -1;
	if (ordinal >= n && n == 1)
		return err_set(err, ERR_NOT_FOUND, "there is no such device: there is one, %s:0", kind);
	if (ordinal >= n)
		return err_set(err, ERR_NOT_FOUND, "there is no such device: there are %d, %s:0 to %s:%d", n, kind, kind, n - 1);
	o->a.d = o->table.open(ordinal, &o->a.info, why);
	return o->a.d ? 0 : err_set(err, ERR_FAILED, "%s", *why ? why : "it cannot be opened");
}

int accelerator_open(struct accelerator **out, const char *name, struct err *err)
{
	char kind[MAX_KIND + 1];
	struct opened *o;
	int ordinal = 0;

	*out = NULL;
	if (parse(name, kind, &ordinal, err))
		return -1;
	o = xcalloc(1, sizeof *o);
	o->a.api = &o->table;
	snprintf(o->a.name, sizeof o->a.name, "%s:%d", kind, ordinal);
	if (open_device(o, kind, ordinal, err)) {
		err_wrap(err, "device %s", o->a.name);
		accelerator_close(&o->a);
		return -1;
	}
	*out = &o->a;
	return 0;
}

void accelerator_close(struct accelerator *a)
{
	if (!a)
		return;
	if (a->d)
		a->api->close(a->d);
	if (a->library)
		dlclose(a->library);
	free((struct opened *)((char *)a - offsetof(struct opened, a)));
}

int accelerator_count(const char *kind, struct err *err)
{
	struct backend table;
	void *library;
	int n;

	assert(strlen(kind) <= MAX_KIND);
	if (load(&library, &table, kind, err))
		return -1;
	n = count_devices(&table, err);
	dlclose(library);
	return n;
}

int accelerator_check(struct accelerator *a, struct err *err)
{
	char why[BACKEND_TEXT] = "";

	if (!a->api->check(a->d, why))
		return 0;
	return err_set(err, ERR_FAILED, "device %s: %s", a->name, why);
}
