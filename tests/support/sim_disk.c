#include "tests/support/sim_disk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/mem.h"
#include "tests/support/disk_calls.h"
#include "tests/support/sim_disk_inside.h"

/* A segment file is an empty real file of the same size too, so that listing the directory and asking for sizes need no
 * help; its bytes are here. */

enum { FDS_MOST = 65536, FD_NONE = -1, FD_DIRECTORY = -2 };

static struct sim_disk *disk;       /* the one there is */
static int fd_nodes[FDS_MOST];      /* node of an open segment file, or FD_... */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* reads and writes of segment files may be anybody's */

static void touch(struct sim_node *n, int64_t from, int64_t to)
{
	for (int64_t page = from / SIM_PAGE; page * SIM_PAGE < to; page++)
		n->touched[page] = 1;
}

void sim_node_resize(struct sim_node *n, int64_t bytes)
{
	int64_t was = n->bytes;

	if (bytes > n->room) {
		int64_t room = n->room ? n->room : SIM_PAGE;

		while (room < bytes)
			room *= 2;
		n->data = xrealloc(n->data, (size_t)room, 1);
		n->touched = xrealloc(n->touched, (size_t)(room / SIM_PAGE), 1);
		memset(n->touched + n->room / SIM_PAGE, 0, (size_t)((room - n->room) / SIM_PAGE));
		n->room = room;
	}
	if (bytes > was)
		memset(n->data + was, 0, (size_t)(bytes - was));
	n->bytes = bytes;
	touch(n, bytes < was ? bytes : was, bytes < was ? was : bytes);
}

void sim_node_write(struct sim_node *n, int64_t at, const void *data, int64_t bytes)
{
	if (at + bytes > n->bytes)
		sim_node_resize(n, at + bytes);
	memcpy(n->data + at, data, (size_t)bytes);
	touch(n, at, at + bytes);
}

void sim_node_copy(struct sim_node *to, const struct sim_node *from)
{
	sim_node_resize(to, 0);
	if (from->bytes)
		sim_node_write(to, 0, from->data, from->bytes);
}

void sim_node_clear(struct sim_node *n)
{
	free(n->data);
	free(n->touched);
	*n = (struct sim_node){0};
}

int sim_name_find(const struct sim_disk *d, const char *name)
{
	for (int i = 0; i < d->n_names; i++)
		if (!strcmp(d->names[i].name, name))
			return i;
	return -1;
}

static int name_make(struct sim_disk *d, const char *name)
{
	int i = sim_name_find(d, name);

	if (i >= 0)
		return i;
	assert(d->n_names < SIM_NAMES_MOST);
	d->names[d->n_names] = (struct sim_name){.name = xstrdup(name), .node = -1};
	return d->n_names++;
}

static int node_make(struct sim_disk *d)
{
	assert(d->n_nodes < SIM_NODES_MOST);
	d->nodes[d->n_nodes] = (struct sim_node){0};
	return d->n_nodes++;
}

static void write_down(struct sim_disk *d, struct sim_call call, const void *data)
{
	if (!d->recording)
		return;
	if (d->n_calls == d->call_room)
		d->calls = xrealloc(d->calls, d->call_room = d->call_room ? 2 * d->call_room : 256, sizeof *d->calls);
	if (call.kind == SIM_WRITE) {
		call.data = xmalloc((size_t)call.bytes, 1);
		memcpy(call.data, data, (size_t)call.bytes);
	}
	d->calls[d->n_calls++] = call;
}

/* The node of a name, made if need be. */
static int create(struct sim_disk *d, const char *text)
{
	int name = name_make(d, text);

	if (d->names[name].node < 0) {
		d->names[name].node = node_make(d);
		write_down(d, (struct sim_call){.kind = SIM_CREATE, .name = name, .node = d->names[name].node}, NULL);
	}
	return d->names[name].node;
}

static void node_write(struct sim_disk *d, int node, const void *data, int64_t n, int64_t at)
{
	sim_node_write(&d->nodes[node], at, data, n);
	write_down(d, (struct sim_call){.kind = SIM_WRITE, .node = node, .at = at, .bytes = n}, data);
}

static void node_resize(struct sim_disk *d, int node, int64_t bytes)
{
	sim_node_resize(&d->nodes[node], bytes);
	write_down(d, (struct sim_call){.kind = SIM_RESIZE, .node = node, .bytes = bytes}, NULL);
}

/* ---- segment files ---------------------------------------------------------------------------------------------- */

static int node_of(int fd)
{
	return fd >= 0 && fd < FDS_MOST ? fd_nodes[fd] : FD_NONE;
}

static void hook_opened(int dir_fd, const char *path, int flags, int fd)
{
	const char *name = path;
	size_t n = strlen(disk->dir);
	int again, node = FD_NONE;

	if (fd >= FDS_MOST)
		return;
	pthread_mutex_lock(&lock);
	if (sscanf(path, "/proc/self/fd/%d", &again) == 1)
		node = node_of(again);
	else if (!strcmp(path, disk->dir) || (!strcmp(path, ".") && node_of(dir_fd) == FD_DIRECTORY))
		node = FD_DIRECTORY;
	else if (node_of(dir_fd) == FD_DIRECTORY || (!strncmp(path, disk->dir, n) && path[n] == '/')) {
		name = node_of(dir_fd) == FD_DIRECTORY ? path : path + n + 1;
		if (!strncmp(name, "segment-", 8) || (!strcmp(name, "index.sqlite") && flags & O_CREAT))
			node = create(disk, name);
	}
	fd_nodes[fd] = node;
	pthread_mutex_unlock(&lock);
}

static bool hook_read(int fd, void *bytes, size_t n, off_t offset, ssize_t *result)
{
	const struct sim_node *f;
	int node;

	pthread_mutex_lock(&lock);
	node = node_of(fd);
	if (node >= 0) {
		f = &disk->nodes[node];
		*result = offset >= f->bytes ? 0 : (ssize_t)n < f->bytes - offset ? (ssize_t)n : f->bytes - offset;
		if (*result)
			memcpy(bytes, f->data + offset, (size_t)*result);
	}
	pthread_mutex_unlock(&lock);
	return node >= 0;
}

static void set_real_size(int fd, int64_t bytes)
{
	struct stat st;
	char path[64];

	/* Not by ftruncate, which comes here. */
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (fstat(fd, &st) || (st.st_size != bytes && truncate(path, bytes)))
		assert(!"the size of a file in the test's directory");
}

static bool hook_write(int fd, const void *bytes, size_t n, off_t offset, ssize_t *result)
{
	int node;

	pthread_mutex_lock(&lock);
	node = node_of(fd);
	if (node >= 0) {
		node_write(disk, node, bytes, (int64_t)n, offset);
		set_real_size(fd, disk->nodes[node].bytes);
		*result = (ssize_t)n;
	}
	pthread_mutex_unlock(&lock);
	return node >= 0;
}

static bool hook_resize(int fd, off_t bytes, bool at_least, int *result)
{
	int node;

	pthread_mutex_lock(&lock);
	node = node_of(fd);
	if (node >= 0) {
		if (!at_least || bytes > disk->nodes[node].bytes)
			node_resize(disk, node, bytes);
		set_real_size(fd, disk->nodes[node].bytes);
		*result = 0;
	}
	pthread_mutex_unlock(&lock);
	return node >= 0;
}

static bool hook_sync(int fd, int *result)
{
	int node;

	pthread_mutex_lock(&lock);
	node = node_of(fd);
	if (node == FD_DIRECTORY)
		write_down(disk, (struct sim_call){.kind = SIM_SYNC_NAMES}, NULL);
	else if (node >= 0 && disk->swallow != SIM_NO_SEGMENT_SYNCS)
		write_down(disk, (struct sim_call){.kind = SIM_SYNC, .node = node}, NULL);
	pthread_mutex_unlock(&lock);
	*result = 0;
	return node != FD_NONE;
}

static const struct disk_hook hook = {hook_opened, hook_read, hook_write, hook_resize, hook_sync};

/* ---- SQLite's files --------------------------------------------------------------------------------------------- */

struct vfs_file {
	sqlite3_file base;
	int node;              /* -1: a file without a name, which no power cut leaves */
	bool sync_name;        /* a log that is new: its first sync is one of the directory too, as SQLite's own VFS has it */
	struct sim_node nameless;
	void **shm;            /* [n_shm] what processes would share: this one is alone, and a power cut leaves nothing */
	int n_shm;
};

static struct sim_node *file_node(struct vfs_file *f)
{
	return f->node < 0 ? &f->nameless : &disk->nodes[f->node];
}

static int file_close(sqlite3_file *base)
{
	sim_node_clear(&((struct vfs_file *)base)->nameless);
	return SQLITE_OK;
}

static int file_read(sqlite3_file *base, void *out, int n, sqlite3_int64 at)
{
	const struct sim_node *f = file_node((struct vfs_file *)base);
	int64_t there = at >= f->bytes ? 0 : n < f->bytes - at ? n : f->bytes - at;

	if (there)
		memcpy(out, f->data + at, (size_t)there);
	memset((char *)out + there, 0, (size_t)(n - there));
	return there == n ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int file_write(sqlite3_file *base, const void *data, int n, sqlite3_int64 at)
{
	struct vfs_file *f = (struct vfs_file *)base;

	if (f->node >= 0) {
		node_write(disk, f->node, data, n, at);
		return SQLITE_OK;
	}
	sim_node_write(&f->nameless, at, data, n);
	return SQLITE_OK;
}

static int file_truncate(sqlite3_file *base, sqlite3_int64 bytes)
{
	struct vfs_file *f = (struct vfs_file *)base;

	if (f->node >= 0)
		node_resize(disk, f->node, bytes);
	else
		sim_node_resize(&f->nameless, bytes);
	return SQLITE_OK;
}

static int file_sync(sqlite3_file *base, int flags)
{
	struct vfs_file *f = (struct vfs_file *)base;

	(void)flags;
	if (f->node < 0 || disk->swallow == SIM_NO_INDEX_SYNCS)
		return SQLITE_OK;
	write_down(disk, (struct sim_call){.kind = SIM_SYNC, .node = f->node}, NULL);
	if (f->sync_name)
		write_down(disk, (struct sim_call){.kind = SIM_SYNC_NAMES}, NULL);
	f->sync_name = false;
	return SQLITE_OK;
}

static int file_size(sqlite3_file *base, sqlite3_int64 *bytes)
{
	*bytes = file_node((struct vfs_file *)base)->bytes;
	return SQLITE_OK;
}

static int file_lock(sqlite3_file *base, int level)
{
	(void)base;
	(void)level;
	return SQLITE_OK;
}

static int file_is_reserved(sqlite3_file *base, int *is)
{
	(void)base;
	*is = 0;
	return SQLITE_OK;
}

static int file_control(sqlite3_file *base, int op, void *arg)
{
	(void)base;
	(void)op;
	(void)arg;
	return SQLITE_NOTFOUND;
}

static int file_sector(sqlite3_file *base)
{
	(void)base;
	return 4096;
}

static int file_characteristics(sqlite3_file *base)
{
	(void)base;
	return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static int shm_map(sqlite3_file *base, int page, int bytes, int extend, void volatile **out)
{
	struct vfs_file *f = (struct vfs_file *)base;

	*out = NULL;
	if (page >= f->n_shm && !extend)
		return SQLITE_OK;
	for (; page >= f->n_shm; f->n_shm++) {
		f->shm = xrealloc(f->shm, (size_t)f->n_shm + 1, sizeof *f->shm);
		f->shm[f->n_shm] = xcalloc(1, (size_t)bytes);
	}
	*out = f->shm[page];
	return SQLITE_OK;
}

static int shm_lock(sqlite3_file *base, int offset, int n, int flags)
{
	(void)base;
	(void)offset;
	(void)n;
	(void)flags;
	return SQLITE_OK;
}

static void shm_barrier(sqlite3_file *base)
{
	(void)base;
}

static int shm_unmap(sqlite3_file *base, int delete)
{
	struct vfs_file *f = (struct vfs_file *)base;

	(void)delete;
	for (int i = 0; i < f->n_shm; i++)
		free(f->shm[i]);
	free(f->shm);
	f->shm = NULL;
	f->n_shm = 0;
	return SQLITE_OK;
}

static const sqlite3_io_methods methods = {
	.iVersion = 2, .xClose = file_close, .xRead = file_read, .xWrite = file_write, .xTruncate = file_truncate,
	.xSync = file_sync, .xFileSize = file_size, .xLock = file_lock, .xUnlock = file_lock,
	.xCheckReservedLock = file_is_reserved, .xFileControl = file_control, .xSectorSize = file_sector,
	.xDeviceCharacteristics = file_characteristics, .xShmMap = shm_map, .xShmLock = shm_lock,
	.xShmBarrier = shm_barrier, .xShmUnmap = shm_unmap,
};

/* The part of a path below the store; NULL: it is elsewhere. */
static const char *name_of(const char *path)
{
	size_t n = strlen(disk->dir);

	return path && !strncmp(path, disk->dir, n) && path[n] == '/' ? path + n + 1 : NULL;
}

static int vfs_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *base, int flags, int *out_flags)
{
	struct vfs_file *f = (struct vfs_file *)base;
	const char *name = name_of(path);
	int i = name ? sim_name_find(disk, name) : -1;
	bool there = i >= 0 && disk->names[i].node >= 0;

	(void)vfs;
	*f = (struct vfs_file){.node = -1};
	if (path && (!name || (!there && !(flags & SQLITE_OPEN_CREATE))))
		return SQLITE_CANTOPEN;
	if (name)
		f->node = there ? disk->names[i].node : create(disk, name);
	f->sync_name = name && !there && flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL);
	f->base.pMethods = &methods;
	if (out_flags)
		*out_flags = flags;
	return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *path, int sync)
{
	const char *name = name_of(path);
	int i = name ? sim_name_find(disk, name) : -1;

	(void)vfs;
	if (i < 0 || disk->names[i].node < 0)
		return SQLITE_IOERR_DELETE_NOENT;
	disk->names[i].node = -1;
	write_down(disk, (struct sim_call){.kind = SIM_DELETE, .name = i}, NULL);
	if (sync && disk->swallow != SIM_NO_INDEX_SYNCS)
		write_down(disk, (struct sim_call){.kind = SIM_SYNC_NAMES}, NULL);
	return SQLITE_OK;
}

static int vfs_access(sqlite3_vfs *vfs, const char *path, int flags, int *out)
{
	const char *name = name_of(path);
	int i = name ? sim_name_find(disk, name) : -1;

	(void)vfs;
	/* As SQLite's own: an empty file is none, to whoever asks whether there is a log. */
	*out = i >= 0 && disk->names[i].node >= 0 &&
	       (flags != SQLITE_ACCESS_EXISTS || disk->nodes[disk->names[i].node].bytes > 0);
	return SQLITE_OK;
}

static int vfs_path(sqlite3_vfs *vfs, const char *path, int n, char *out)
{
	(void)vfs;
	snprintf(out, (size_t)n, "%s", path);
	return SQLITE_OK;
}

static int vfs_randomness(sqlite3_vfs *vfs, int n, char *out)
{
	static uint64_t x = 1;

	(void)vfs;
	for (int i = 0; i < n; i++) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		out[i] = (char)(x >> 56);
	}
	return n;
}

static int vfs_sleep(sqlite3_vfs *vfs, int us)
{
	(void)vfs;
	return us;
}

static int vfs_time(sqlite3_vfs *vfs, sqlite3_int64 *ms)
{
	(void)vfs;
	*ms = 212587200000000; /* any */
	return SQLITE_OK;
}

static int vfs_error(sqlite3_vfs *vfs, int n, char *out)
{
	(void)vfs;
	(void)n;
	(void)out;
	return 0;
}

static sqlite3_vfs vfs = {
	.iVersion = 2, .szOsFile = (int)sizeof(struct vfs_file), .mxPathname = 1024, .zName = "quire-sim-disk",
	.xOpen = vfs_open, .xDelete = vfs_delete, .xAccess = vfs_access, .xFullPathname = vfs_path,
	.xRandomness = vfs_randomness, .xSleep = vfs_sleep, .xGetLastError = vfs_error, .xCurrentTimeInt64 = vfs_time,
};

/* ---- the disk --------------------------------------------------------------------------------------------------- */

struct sim_disk *sim_disk_new(const char *dir)
{
	assert(!disk);
	disk = xcalloc(1, sizeof *disk);
	disk->dir = xstrdup(dir);
	for (int i = 0; i < FDS_MOST; i++)
		fd_nodes[i] = FD_NONE;
	disk_calls_hook(&hook);
	if (sqlite3_vfs_register(&vfs, 1))
		assert(!"SQLite takes a VFS");
	return disk;
}

static void forget_calls(struct sim_disk *d)
{
	for (size_t i = 0; i < d->n_calls; i++)
		free(d->calls[i].data);
	d->n_calls = 0;
}

static void forget_base(struct sim_disk *d)
{
	for (int i = 0; i < d->n_base; i++)
		sim_node_clear(&d->base[i]);
	free(d->base);
	d->base = NULL;
	d->n_base = 0;
}

void sim_disk_free(struct sim_disk *d)
{
	if (!d)
		return;
	sqlite3_vfs_unregister(&vfs);
	disk_calls_hook(NULL);
	forget_calls(d);
	forget_base(d);
	free(d->calls);
	for (int i = 0; i < d->n_names; i++)
		free(d->names[i].name);
	for (int i = 0; i < d->n_nodes; i++)
		sim_node_clear(&d->nodes[i]);
	free(d->dir);
	free(d);
	disk = NULL;
}

void sim_disk_record(struct sim_disk *d, enum sim_swallow swallow)
{
	forget_calls(d);
	forget_base(d);
	d->n_base_names = d->n_names;
	for (int i = 0; i < d->n_names; i++)
		d->base_names[i] = d->names[i].node;
	d->base = xcalloc((size_t)d->n_nodes + 1, sizeof *d->base);
	for (; d->n_base < d->n_nodes; d->n_base++)
		sim_node_copy(&d->base[d->n_base], &d->nodes[d->n_base]);
	d->recording = true;
	d->swallow = swallow;
}

size_t sim_disk_calls(const struct sim_disk *d)
{
	return d->n_calls;
}

void sim_disk_stop(struct sim_disk *d)
{
	d->recording = false;
	d->swallow = SIM_SYNCS_ALL;
}

void sim_disk_flip(struct sim_disk *d, const char *name, int64_t byte, int bit)
{
	int i = sim_name_find(d, name);
	struct sim_node *n;
	uint8_t other;

	assert(i >= 0 && d->names[i].node >= 0 && byte < d->nodes[d->names[i].node].bytes);
	n = &d->nodes[d->names[i].node];
	other = n->data[byte] ^ (uint8_t)(1 << bit);
	sim_node_write(n, byte, &other, 1);
}

void sim_disk_place(struct sim_disk *d)
{
	for (int i = 0; i < d->n_names; i++) {
		const char *name = d->names[i].name;
		char *path = xasprintf("%s/%s", d->dir, name);
		int fd;

		if (strncmp(name, "segment-", 8)) {
			/* SQLite's files are found by this disk alone. */
		} else if (d->names[i].node < 0) {
			if (unlink(path) && errno != ENOENT)
				assert(!"removing a file of the test's directory");
		} else {
			fd = openat(AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
			assert(fd >= 0);
			set_real_size(fd, d->nodes[d->names[i].node].bytes);
			close(fd);
		}
		free(path);
	}
}
