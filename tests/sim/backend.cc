/*
 * struct backend for tests: devices of which nothing is real but the kernels. Queues run late. What is put into one stays there
 * until somebody must have it, and then as little as will do runs, in any order that the queues and their marks allow, by a seed:
 *
 *   wait    runs what the mark needs, and nothing more
 *   done    runs up to three entries of any queue, and then says
 *   close   runs everything
 *
 * A copy reads when it runs, and where a download goes to holds 0xff from the moment it is asked for: whoever uses host memory
 * too early, or forgets to wait, computes with NaN.
 *
 * The environment, read by open:
 *
 *   QUIRE_SIM_DEVICES   how many there are (2); -1: that cannot be known
 *   QUIRE_SIM_MEMORY    bytes of each (256 MiB)
 *   QUIRE_SIM_SEED      of every choice (1)
 *   QUIRE_SIM_ORDER     forward, reverse or random: how threads take turns (random)
 *   QUIRE_SIM_FAIL      "upload:3", or several with commas between them: the third upload of each device fails it. alloc:N finds
 *                       no room and pin:N refuses, which are no failures; upload:N, download:N and experts:N are.
 *
 * A failure that nobody has asked for by the time of close is printed, and so is memory that is still pinned then.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "engine/cuda/expert.h"
#include "engine/weight.h"
#include "offload/backend.h"
#include "tests/sim/fibers.h"
#include "tests/sim/memory.h"
#include "tests/sim/race.h"

enum entry_kind { UPLOAD, DOWNLOAD, EXPERTS, MARK, AFTER };

struct entry {
	enum entry_kind kind;
	void *to;               /* of copies */
	const void *from;
	size_t bytes;
	int64_t mark;
	float *out, *gate;      /* of experts */
	const void *x;
	const int32_t *rows;
	struct backend_expert experts[BACKEND_EXPERTS];
	int n, profile;
};

struct queue {
	std::deque<struct entry> entries;
	uint64_t n_run;         /* entries before the first of those */
};

struct mark {
	enum backend_queue q;
	uint64_t place;         /* among all entries that q ever had */
	bool is_done;
};

enum counted { ALLOCS, PINS, UPLOADS, DOWNLOADS, EXPERT_CALLS, N_COUNTED };
static const char *const counted_names[N_COUNTED] = {"alloc", "pin", "upload", "download", "experts"};

struct backend_device {
	int ordinal;
	struct memory *memory;
	struct queue queues[N_BACKEND_QUEUES];
	std::vector<struct mark> marks;  /* mark m is marks[m - 1] */
	std::map<uintptr_t, size_t> pinned;
	uint64_t random_state;
	enum sim_order order;
	int64_t calls[N_COUNTED], fail_at[N_COUNTED];
	bool has_failed, was_told;
	char failure[BACKEND_TEXT];
};

/* Devices may belong to different threads; there is one set of fibers for all, and one list of memories. */
static std::mutex one_at_a_time;

static int64_t number_of(const char *name, int64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoll(text, NULL, 10) : otherwise;
}

static uint32_t random_word(struct backend_device *d)
{
	d->random_state ^= d->random_state << 13;
	d->random_state ^= d->random_state >> 7;
	d->random_state ^= d->random_state << 17;
	return (uint32_t)(d->random_state >> 32);
}

static void fail(struct backend_device *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fail(struct backend_device *d, const char *format, ...)
{
	va_list args;

	if (d->has_failed)
		return;
	d->has_failed = true;
	va_start(args, format);
	vsnprintf(d->failure, sizeof d->failure, format, args);
	va_end(args);
}

/* Whether this call is the one that QUIRE_SIM_FAIL names. */
static bool fails_now(struct backend_device *d, enum counted what)
{
	return ++d->calls[what] == d->fail_at[what];
}

static void read_failures(struct backend_device *d)
{
	const char *text = getenv("QUIRE_SIM_FAIL");

	while (text && *text) {
		for (int i = 0; i < N_COUNTED; i++) {
			size_t n = strlen(counted_names[i]);

			if (!strncmp(text, counted_names[i], n) && text[n] == ':')
				d->fail_at[i] = strtoll(text + n + 1, NULL, 10);
		}
		text = strchr(text, ',');
		text += text != NULL;
	}
}

static int sim_count(char *why)
{
	int64_t n = number_of("QUIRE_SIM_DEVICES", 2);

	if (n < 0) {
		snprintf(why, BACKEND_TEXT, "QUIRE_SIM_DEVICES says that it cannot be known");
		return -1;
	}
	return (int)n;
}

static struct backend_device *sim_open(int ordinal, struct backend_info *info, char *why)
{
	std::lock_guard<std::mutex> lock(one_at_a_time);
	size_t bytes = (size_t)number_of("QUIRE_SIM_MEMORY", 256 << 20);
	const char *order = getenv("QUIRE_SIM_ORDER");
	struct backend_device *d;

	if (ordinal < 0 || ordinal >= number_of("QUIRE_SIM_DEVICES", 2)) {
		snprintf(why, BACKEND_TEXT, "there is no simulated device %d", ordinal);
		return NULL;
	}
	d = new struct backend_device();
	d->ordinal = ordinal;
	d->memory = memory_new(bytes);
	if (!d->memory) {
		snprintf(why, BACKEND_TEXT, "no addresses for %zu bytes of a simulated device", bytes);
		delete d;
		return NULL;
	}
	d->random_state = ((uint64_t)number_of("QUIRE_SIM_SEED", 1) * 64 + (uint64_t)ordinal) * 0x9e3779b97f4a7c15 | 1;
	for (int i = 0; i < 8; i++)
		random_word(d);
	d->order = !order || !strcmp(order, "random") ? SIM_RANDOM : !strcmp(order, "reverse") ? SIM_REVERSE : SIM_FORWARD;
	read_failures(d);
	memset(info, 0, sizeof *info);
	snprintf(info->name, sizeof info->name, "simulated device");
	info->bytes = info->free_bytes = bytes;
	return d;
}

/* ---- what runs, once it does ---- */

static void run_experts(struct backend_device *d, const struct entry *e)
{
	std::lock_guard<std::mutex> lock(one_at_a_time);
	const char *wrong, *fault;
	void *overrun;

	race_set_memory(d->memory);
	sim_set_order(d->order, random_word(d));
	wrong = expert_launch(d, e->out, e->gate, e->x, e->rows, e->experts, e->n, e->profile);
	fault = sim_take_fault();
	if (wrong)
		fail(d, "experts: %s", wrong);
	else if (fault)
		fail(d, "%s", fault);
	overrun = memory_overrun(d->memory);
	if (overrun)
		fail(d, "experts wrote just before or behind what was allocated at %p", overrun);
}

static void run(struct backend_device *d, const struct entry *e)
{
	switch (e->kind) {
	case UPLOAD:
		if (!memory_has(d->memory, e->to, e->bytes))
			fail(d, "an upload to memory that was freed before it ran");
		break;
	case DOWNLOAD:
		if (!memory_has(d->memory, e->from, e->bytes))
			fail(d, "a download from memory that was freed before it ran");
		break;
	case MARK:
		d->marks[(size_t)e->mark - 1].is_done = true;
		return;
	case AFTER:
		return;
	case EXPERTS:
		break;
	}
	/* A failed device gets through its queues, but does nothing. */
	if (d->has_failed)
		return;
	if (e->kind == EXPERTS)
		run_experts(d, e);
	else
		memcpy(e->to, e->from, e->bytes);
}

static bool can_run(const struct backend_device *d, const struct queue *q)
{
	const struct entry *e;

	if (q->entries.empty())
		return false;
	e = &q->entries.front();
	return e->kind != AFTER || d->marks[(size_t)e->mark - 1].is_done;
}

/* The first entry of one of the queues of which `most` lets another run; any, where there are several. False: there is none. */
static bool run_one(struct backend_device *d, const uint64_t most[N_BACKEND_QUEUES])
{
	struct queue *ready[N_BACKEND_QUEUES], *q;
	struct entry e;
	uint32_t n = 0;

	for (int i = 0; i < N_BACKEND_QUEUES; i++)
		if (d->queues[i].n_run < most[i] && can_run(d, &d->queues[i]))
			ready[n++] = &d->queues[i];
	if (!n)
		return false;
	q = ready[random_word(d) % n];
	e = q->entries.front();
	q->entries.pop_front();
	q->n_run++;
	run(d, &e);
	return true;
}

static const uint64_t everything[N_BACKEND_QUEUES] = {UINT64_MAX, UINT64_MAX, UINT64_MAX};

/* How much of each queue must have run before the mark is done. A mark is older than what waits for it, so this comes to an end.
 * */
static void need_mark(const struct backend_device *d, uint64_t needed[N_BACKEND_QUEUES], int64_t mark)
{
	const struct mark *m = &d->marks[(size_t)mark - 1];
	const struct queue *q = &d->queues[m->q];
	uint64_t from = needed[m->q] > q->n_run ? needed[m->q] : q->n_run;

	if (m->is_done || needed[m->q] > m->place)
		return;
	needed[m->q] = m->place + 1;
	for (uint64_t i = from; i < needed[m->q]; i++) {
		const struct entry *e = &q->entries[i - q->n_run];

		if (e->kind == AFTER)
			need_mark(d, needed, e->mark);
	}
}

/* ---- the table ---- */

static void sim_close(struct backend_device *d)
{
	if (!d)
		return;
	while (run_one(d, everything))
		;
	if (d->has_failed && !d->was_told)
		fprintf(stderr, "sim: device %d has failed, and nobody asked: %s\n", d->ordinal, d->failure);
	for (const auto &p : d->pinned)
		fprintf(stderr, "sim: device %d is closed with %zu bytes at %p pinned\n", d->ordinal, p.second, (void *)p.first);

	std::lock_guard<std::mutex> lock(one_at_a_time);
	race_set_memory(NULL);
	memory_free(d->memory);
	delete d;
}

static void *sim_alloc(struct backend_device *d, size_t bytes)
{
	std::lock_guard<std::mutex> lock(one_at_a_time);

	return fails_now(d, ALLOCS) ? NULL : memory_take(d->memory, bytes);
}

static void sim_free(struct backend_device *d, void *p)
{
	std::lock_guard<std::mutex> lock(one_at_a_time);

	if (p && !memory_give(d->memory, p))
		fail(d, "free of %p, which was not allocated", p);
}

static int sim_pin(struct backend_device *d, void *host, size_t bytes, char *why)
{
	uintptr_t p = (uintptr_t)host;
	auto behind = d->pinned.lower_bound(p + bytes);

	if (fails_now(d, PINS)) {
		snprintf(why, BACKEND_TEXT, "QUIRE_SIM_FAIL says that it cannot be pinned");
		return -1;
	}
	if (!bytes || memory_is_devices(host, bytes)) {
		snprintf(why, BACKEND_TEXT, "no host memory");
		return -1;
	}
	if (behind != d->pinned.begin() && std::prev(behind)->first + std::prev(behind)->second > p) {
		snprintf(why, BACKEND_TEXT, "some of it is pinned already");
		return -1;
	}
	d->pinned[p] = bytes;
	return 0;
}

static void sim_unpin(struct backend_device *d, void *host)
{
	if (!d->pinned.erase((uintptr_t)host))
		fail(d, "unpin of %p, which was not pinned", host);
}

static bool is_queue(struct backend_device *d, enum backend_queue q)
{
	if ((int)q >= 0 && q < N_BACKEND_QUEUES)
		return true;
	fail(d, "there is no queue %d", (int)q);
	return false;
}

/* Both ends of a copy, where it is asked for. */
static bool is_copy(struct backend_device *d, const char *what, const void *here, const void *host, size_t bytes)
{
	if (!memory_has(d->memory, here, bytes))
		fail(d, "%s: %zu bytes at %p are not in memory that was allocated of this device", what, bytes, here);
	else if (memory_is_devices(host, bytes))
		fail(d, "%s: %p is not in the host's memory", what, host);
	else
		return true;
	return false;
}

static void put_copy(struct backend_device *d, enum backend_queue q, enum entry_kind kind, void *to, const void *from,
		     size_t bytes)
{
	struct entry e = {};

	e.kind = kind;
	e.to = to;
	e.from = from;
	e.bytes = bytes;
	d->queues[q].entries.push_back(e);
}

static void sim_upload(struct backend_device *d, enum backend_queue q, void *to, const void *from, size_t bytes)
{
	std::lock_guard<std::mutex> lock(one_at_a_time);

	if (fails_now(d, UPLOADS))
		fail(d, "QUIRE_SIM_FAIL says that upload %lld fails", (long long)d->calls[UPLOADS]);
	if (bytes && is_queue(d, q) && is_copy(d, "upload", to, from, bytes))
		put_copy(d, q, UPLOAD, to, from, bytes);
}

static void sim_download(struct backend_device *d, enum backend_queue q, void *to, const void *from, size_t bytes)
{
	std::lock_guard<std::mutex> lock(one_at_a_time);

	if (fails_now(d, DOWNLOADS))
		fail(d, "QUIRE_SIM_FAIL says that download %lld fails", (long long)d->calls[DOWNLOADS]);
	if (!bytes || !is_queue(d, q) || !is_copy(d, "download", from, to, bytes))
		return;
	memset(to, 0xff, bytes);
	put_copy(d, q, DOWNLOAD, to, from, bytes);
}

static int64_t sim_mark(struct backend_device *d, enum backend_queue q)
{
	struct entry e = {};

	if (!is_queue(d, q))
		q = BACKEND_COMPUTE;
	d->marks.push_back({q, d->queues[q].n_run + d->queues[q].entries.size(), false});
	e.kind = MARK;
	e.mark = (int64_t)d->marks.size();
	d->queues[q].entries.push_back(e);
	return e.mark;
}

static bool is_mark(struct backend_device *d, const char *what, int64_t mark)
{
	if (mark >= 1 && mark <= (int64_t)d->marks.size())
		return true;
	fail(d, "%s: there is no mark %lld", what, (long long)mark);
	return false;
}

static void sim_after(struct backend_device *d, enum backend_queue q, int64_t mark)
{
	struct entry e = {};

	if (!is_queue(d, q) || !is_mark(d, "after", mark))
		return;
	e.kind = AFTER;
	e.mark = mark;
	d->queues[q].entries.push_back(e);
}

static bool sim_done(struct backend_device *d, int64_t mark)
{
	if (!is_mark(d, "done", mark))
		return true;
	for (uint32_t n = random_word(d) % 4; n; n--)
		run_one(d, everything);
	return d->marks[(size_t)mark - 1].is_done;
}

static void sim_wait(struct backend_device *d, int64_t mark)
{
	uint64_t needed[N_BACKEND_QUEUES] = {};

	if (!is_mark(d, "wait", mark))
		return;
	need_mark(d, needed, mark);
	while (!d->marks[(size_t)mark - 1].is_done && run_one(d, needed))
		;
}

static bool has(struct backend_device *d, const char *what, const void *p, size_t bytes)
{
	if (memory_has(d->memory, p, bytes ? bytes : 1))
		return true;
	fail(d, "experts: %s, %zu bytes at %p, not in memory that was allocated of this device", what, bytes, p);
	return false;
}

/* As engine/weight.h has them. */
static bool has_weight(struct backend_device *d, const struct backend_weight *w)
{
	size_t rows = (size_t)w->rows, cols = (size_t)w->cols, blocks = (cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;
	size_t bytes = rows * cols, scale = 0;

	switch (w->dtype) {
	case DTYPE_F32:
		bytes *= 4;
		break;
	case DTYPE_BF16:
	case DTYPE_F16:
		bytes *= 2;
		break;
	case DTYPE_F8_E4M3:
		scale = ((size_t)w->first_row + rows + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK * blocks * 4;
		break;
	case DTYPE_INT4:
		bytes = rows * ((cols + 1) / 2);
		scale = rows * ((cols + INT4_GROUP - 1) / INT4_GROUP) * 2;
		break;
	}
	if ((uintptr_t)w->data % BACKEND_ALIGN || (scale && (uintptr_t)w->scale % BACKEND_ALIGN)) {
		fail(d, "experts: a weight at %p, its scales at %p: not at multiples of %d", w->data, w->scale, BACKEND_ALIGN);
		return false;
	}
	return !bytes || (has(d, "a weight", w->data, bytes) && (!scale || has(d, "scales", w->scale, scale)));
}

static void sim_experts(struct backend_device *d, float *out, float *gate, const void *x, const int32_t *rows,
			const struct backend_expert *experts, int n, int profile)
{
	std::lock_guard<std::mutex> lock(one_at_a_time);
	size_t total = 0, hidden, dim;
	struct entry e = {};

	if (fails_now(d, EXPERT_CALLS))
		fail(d, "QUIRE_SIM_FAIL says that call %lld of experts fails", (long long)d->calls[EXPERT_CALLS]);
	if (n < 1 || n > BACKEND_EXPERTS) {
		fail(d, "experts: %d of them", n);
		return;
	}
	for (int i = 0; i < n; i++) {
		if (!has_weight(d, &experts[i].gate) || !has_weight(d, &experts[i].up) || !has_weight(d, &experts[i].down))
			return;
		total = max(total, (size_t)experts[i].first + (size_t)experts[i].n);
	}
	hidden = (size_t)experts[0].down.rows;
	dim = (size_t)experts[0].gate.rows;
	if (!has(d, "out", out, total * hidden * sizeof *out) || !has(d, "gate", gate, total * dim * sizeof *gate) ||
	    !has(d, "x", x, rows ? 1 : total * hidden * 2) || (rows && !has(d, "rows", rows, total * sizeof *rows)))
		return;
	e.kind = EXPERTS;
	e.out = out;
	e.gate = gate;
	e.x = x;
	e.rows = rows;
	memcpy(e.experts, experts, (size_t)n * sizeof *experts);
	e.n = n;
	e.profile = profile;
	d->queues[BACKEND_COMPUTE].entries.push_back(e);
}

static int sim_check(struct backend_device *d, char *why)
{
	if (!d->has_failed)
		return 0;
	d->was_told = true;
	snprintf(why, BACKEND_TEXT, "%s", d->failure);
	return -1;
}

extern "C" __attribute__((visibility("default"))) void quire_backend(struct backend *b)
{
	memset(b, 0, sizeof *b);
	b->abi = BACKEND_ABI;
	b->bytes = sizeof *b;
	b->kind = "sim";
	b->count = sim_count;
	b->open = sim_open;
	b->close = sim_close;
	b->alloc = sim_alloc;
	b->free = sim_free;
	b->pin = sim_pin;
	b->unpin = sim_unpin;
	b->upload = sim_upload;
	b->download = sim_download;
	b->mark = sim_mark;
	b->after = sim_after;
	b->done = sim_done;
	b->wait = sim_wait;
	b->experts = sim_experts;
	b->check = sim_check;
}
