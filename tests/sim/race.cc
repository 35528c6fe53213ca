/*
 * What happened to each byte of shared memory and of the device's, in this launch.
 *
 * Two accesses are ordered when one thread makes both, when a barrier of their block lies between them, or a __syncwarp of their
 * warp, or the end of a launch. Blocks of one launch are never ordered. Two that are not ordered are a race when one of them
 * writes, unless both are atomic.
 *
 * A byte has its last writer and two others that read it or added to it, of two warps where there were two: whoever comes next is
 * of another warp than one of them, so that nobody who was there before is missed. (Not seen: what __syncwarps of parts of a warp
 * leave unordered among its lanes; and what memcpy does, where the compiler calls it.)
 */
#include "tests/sim/race.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/fibers.h"
#include "tests/sim/memory.h"

enum access_kind { READ, WRITE, ATOMIC };

enum { BLOCK_BITS = 22, SYNC_BITS = 14, MOST_SYNCS = (1 << SYNC_BITS) - 1 };

/* Blocks have numbers of their own that go on from launch to launch, from 1, so that nothing must be wiped before the next. */
struct visit {
	uint64_t block : BLOCK_BITS, thread : 10, barriers : SYNC_BITS, warp_syncs : SYNC_BITS;
	uint64_t read : 1, atomic : 1; /* what it did */
	uint64_t many : 1;             /* not this thread alone, but others of its warp since the same __syncwarp */
};
static_assert(sizeof(struct visit) == 8, "a word");

struct cell {
	struct visit writer, one, other;
};

/* Set by kernels that are built for it, before anything runs. */
static bool is_on;

static struct memory *device;
static struct memory_range *device_range;
static struct cell *shared_cells, *dynamic_cells;
static size_t n_shared_cells, n_dynamic_cells;
static uint32_t last_block = 0, launch_first = 1, block_number;

extern "C" const char __ehdr_start[] __attribute__((visibility("hidden"))), _end[] __attribute__((visibility("hidden")));

void race_set_memory(struct memory *m)
{
	device = m;
	device_range = m ? memory_range_of(m) : NULL;
	if (!is_on || !m || device_range->shadow)
		return;
	device_range->shadow_bytes = (device_range->to - device_range->from) * sizeof(struct cell);
	device_range->shadow = memory_reserve(device_range->shadow_bytes);
	if (!device_range->shadow) {
		fprintf(stderr, "sim: no addresses for the race mode\n");
		abort();
	}
}

static void make_cells(struct cell **cells, size_t *n, size_t bytes)
{
	if (bytes <= *n)
		return;
	free(*cells);
	*cells = (struct cell *)calloc(bytes, sizeof **cells);
	*n = bytes;
	if (!*cells)
		abort();
}

void race_launch_begins(uint64_t n_blocks)
{
	if (!is_on)
		return;
	make_cells(&shared_cells, &n_shared_cells, sim_static_shared.to - sim_static_shared.from);
	make_cells(&dynamic_cells, &n_dynamic_cells, sim_dynamic.to - sim_dynamic.from);
	if (n_blocks + 1 >= 1u << BLOCK_BITS) {
		sim_fault("more blocks than the race mode counts");
		return;
	}
	if (last_block + n_blocks >= 1u << BLOCK_BITS) {
		last_block = 0;
		memset((void *)shared_cells, 0, n_shared_cells * sizeof *shared_cells);
		memset((void *)dynamic_cells, 0, n_dynamic_cells * sizeof *dynamic_cells);
		/* That of other devices has later numbers than come now. */
		memory_wipe_shadows();
	}
	launch_first = last_block + 1;
}

void race_block_begins(uint32_t number)
{
	block_number = number;
	last_block++;
}

/* Whether v lies before what this thread does now. oldest: the first block whose visits count, which is this one in shared
 * memory. */
static inline bool is_ordered(const struct visit *v, uint32_t oldest)
{
	if (v->block < oldest)
		return true;
	if (v->block != last_block)
		return false;
	if (v->barriers < sim_n_barriers)
		return true;
	if (v->thread == sim_self->number)
		return !v->many;
	return v->thread / 32 == sim_self->number / 32 && v->warp_syncs < sim_self->n_warp_syncs;
}

/* A visit in one of the two places: that of its own warp, or of somebody who is of no more interest, or of who came earlier. */
static inline void remember(struct cell *c, struct visit now, uint32_t oldest)
{
	struct visit *was = &c->one;
	bool same_warp;

	if (was->block >= oldest && !(was->block == last_block && was->barriers < now.barriers)) {
		same_warp = was->block == now.block && was->thread / 32 == now.thread / 32;
		if (!same_warp) {
			c->other = *was;
		} else if (was->warp_syncs == now.warp_syncs) {
			now.read |= was->read;
			now.atomic |= was->atomic;
			now.many = was->many || was->thread != now.thread;
		}
	}
	*was = now;
}

/* "shared memory + 12": where p is, for people. */
static const char *place(uintptr_t p)
{
	static char text[120];
	size_t bytes;
	uintptr_t start;

	if (sim_in(&sim_static_shared, p)) {
		snprintf(text, sizeof text, "byte %zu of __shared__ variables", (size_t)(p - sim_static_shared.from));
	} else if (sim_in(&sim_dynamic, p)) {
		snprintf(text, sizeof text, "byte %zu of dynamic shared memory", (size_t)(p - sim_dynamic.from));
	} else {
		start = memory_before(device, p, &bytes);
		snprintf(text, sizeof text, "byte %zu of %zu at %p", (size_t)(p - start), bytes, (void *)start);
	}
	return text;
}

/* What addr2line needs of an address of this library. */
static size_t code_offset(const void *pc)
{
	return (size_t)((const char *)pc - __ehdr_start);
}

static void report_race(uintptr_t p, const struct visit *v, enum access_kind kind, const char *what, const void *pc)
{
	static const char *const does[] = {"reads", "writes", "adds to"};
	uint32_t n = v->block - launch_first;
	char block[40];

	if (v->block == last_block)
		snprintf(block, sizeof block, "of its block");
	else
		snprintf(block, sizeof block, "of the launch's block no. %u", n + 1);
	sim_fault("race: thread %u of block %u %s %s, which thread %u %s %s, in no order (code + 0x%zx)", sim_self->number,
		  block_number, does[kind], place(p), v->thread, block, what, code_offset(pc));
}

/* One access of one byte. */
static inline void note(uintptr_t p, struct cell *c, struct visit now, enum access_kind kind, uint32_t oldest, const void *pc)
{
	const struct visit *two[] = {&c->one, &c->other};

	if (!is_ordered(&c->writer, oldest))
		report_race(p, &c->writer, kind, "writes", pc);
	for (const struct visit *v : two) {
		bool matters = kind == WRITE || (kind == READ ? v->atomic : v->read);

		if (matters && !is_ordered(v, oldest))
			report_race(p, v, kind, v->atomic ? "adds to" : "reads", pc);
	}
	if (kind == WRITE)
		c->writer = now;
	else
		remember(c, now, oldest);
}

static void report_outside(uintptr_t p, size_t n, enum access_kind kind, const void *pc)
{
	const char *verb = kind == READ ? "reads" : "writes";
	char where[80];
	size_t bytes = 0;
	uintptr_t start = memory_before(device, p, &bytes);

	if (p - device_range->from < device_range->to - device_range->from)
		snprintf(where, sizeof where, "byte %zu of %zu at %p", (size_t)(p - start), bytes, (void *)start);
	else
		snprintf(where, sizeof where, "%p, which is %s", (void *)p,
			 memory_is_devices((void *)p, n) ? "another device's" : "no memory of the device");
	sim_fault("outside: thread %u of block %u %s %zu bytes at %s (code + 0x%zx)", sim_self->number, block_number, verb, n,
		  where, code_offset(pc));
}

/* What kernels have besides memory that others see: their stacks, parameters and constants. */
static bool is_private(uintptr_t p)
{
	return sim_in(&sim_stacks, p) || sim_in(&sim_arguments, p) || (p >= (uintptr_t)__ehdr_start && p < (uintptr_t)_end);
}

static void touch(const void *at, size_t n, enum access_kind kind, const void *pc)
{
	uintptr_t p = (uintptr_t)at;
	struct visit now = {};
	struct cell *cells, before;
	uint32_t oldest = last_block;

	if (!sim_self || !is_on || !n)
		return;
	if (memory_range_has(device_range, p) && memory_range_has(device_range, p + n - 1)) {
		cells = (struct cell *)device_range->shadow + (p - device_range->from);
		oldest = launch_first;
	} else if (sim_in(&sim_static_shared, p) && sim_in(&sim_static_shared, p + n - 1)) {
		cells = shared_cells + (p - sim_static_shared.from);
	} else if (sim_in(&sim_dynamic, p) && sim_in(&sim_dynamic, p + n - 1)) {
		cells = dynamic_cells + (p - sim_dynamic.from);
	} else {
		if (!is_private(p))
			report_outside(p, n, kind, pc);
		return;
	}
	if (sim_n_barriers > MOST_SYNCS || sim_self->n_warp_syncs > MOST_SYNCS)
		sim_fault("more barriers than the race mode counts");
	now.block = last_block;
	now.thread = sim_self->number;
	now.barriers = sim_n_barriers & MOST_SYNCS;
	now.warp_syncs = sim_self->n_warp_syncs & MOST_SYNCS;
	now.read = kind == READ;
	now.atomic = kind == ATOMIC;
	before = cells[0];
	note(p, &cells[0], now, kind, oldest, pc);
	/* What happened to one byte of a number happened to the others, mostly. */
	for (size_t i = 1; i < n; i++) {
		if (!memcmp(&cells[i], &before, sizeof before))
			cells[i] = cells[0];
		else
			note(p + i, &cells[i], now, kind, oldest, pc);
	}
}

void sim_atomic(void *p, size_t bytes)
{
	touch(p, bytes, ATOMIC, __builtin_return_address(0));
}

/* What gcc and clang call out of code built with -fsanitize=thread. */
extern "C" {
#define CALLED_FOR(n) \
	void __tsan_read##n(void *p) { touch(p, n, READ, __builtin_return_address(0)); } \
	void __tsan_write##n(void *p) { touch(p, n, WRITE, __builtin_return_address(0)); } \
	void __tsan_unaligned_read##n(void *p) { touch(p, n, READ, __builtin_return_address(0)); } \
	void __tsan_unaligned_write##n(void *p) { touch(p, n, WRITE, __builtin_return_address(0)); } \
	void __tsan_volatile_read##n(void *p) { touch(p, n, READ, __builtin_return_address(0)); } \
	void __tsan_volatile_write##n(void *p) { touch(p, n, WRITE, __builtin_return_address(0)); }
CALLED_FOR(1)
CALLED_FOR(2)
CALLED_FOR(4)
CALLED_FOR(8)
CALLED_FOR(16)
void __tsan_read_range(void *p, size_t n) { touch(p, n, READ, __builtin_return_address(0)); }
void __tsan_write_range(void *p, size_t n) { touch(p, n, WRITE, __builtin_return_address(0)); }
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_init(void) { is_on = true; }

/* And out of code built with -fsanitize=alignment, in every mode: the compiler takes a vector apart as it likes, so the width of
 * an access does not tell; GPUs do not. */
struct ubsan_place {
	const char *file;
	uint32_t line, column;
};
void __ubsan_handle_type_mismatch_v1(struct ubsan_place *place, const void *p);
void __ubsan_handle_type_mismatch_v1(struct ubsan_place *place, const void *p)
{
	if (sim_self)
		sim_fault("misaligned: thread %u of block %u accesses %p in %s:%u", sim_self->number, block_number, p,
			  place->file, place->line);
}
}
