/*
 * Blocks, warps and their meetings. Who is ready is a bit in a word of its warp, so that the next fiber is found in a few
 * instructions and a fiber that waits changes straight to it: kernels for one row of a matrix shuffle once for every 32 products.
 *
 *            sim_warp_wait              the last lane of the mask: values change hands, all are ready
 *     READY ---------------> waiting ------------------------------------------------------------------> READY
 *       |  ----------------> at_barrier ---------------------------------------------------------------> READY
 *       |    sim_barrier                the last thread of the block
 *       `------------------> ended
 *
 * When none is ready, run_block looks at who is left: nobody, or a deadlock.
 */
#include "tests/sim/fibers.h"

#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/sim/race.h"

#ifdef __x86_64__
#include <xmmintrin.h>
#else
#include <ucontext.h>
#endif

enum {
	MOST_THREADS = 1024, WARP = 32, MOST_WARPS = MOST_THREADS / WARP,
	MOST_GRID_YZ = 65535,
	MOST_SHARED = 227 << 10,  /* of the GPUs that kernels are written for */
	STACK = 64 << 10,
	EDGE = 256,               /* behind dynamic shared memory: whether something was written there is looked at */
};

static const uint64_t CANARY = 0x5afe57ac5afe57ac;

#ifdef __x86_64__
struct context {
	void *stack_pointer;
};

/* What a function must leave as it was goes onto the stack, and comes back from the other one. */
extern "C" void sim_switch(void **from, void *to) __attribute__((visibility("hidden")));
__asm__(".text\n"
	".globl sim_switch\n"
	".hidden sim_switch\n"
	".type sim_switch, @function\n"
	"sim_switch:\n"
	"	pushq %rbp\n	pushq %rbx\n	pushq %r12\n	pushq %r13\n	pushq %r14\n	pushq %r15\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	popq %r15\n	popq %r14\n	popq %r13\n	popq %r12\n	popq %rbx\n	popq %rbp\n"
	"	ret\n"
	".size sim_switch, . - sim_switch\n");

static inline void context_switch(struct context *from, struct context *to)
{
	sim_switch(&from->stack_pointer, to->stack_pointer);
}

static void context_make(struct context *c, unsigned char *, unsigned char *top, void (*entry)(void))
{
	void **frame = (void **)top;

	*--frame = NULL; /* entry has no caller */
	*--frame = (void *)entry;
	for (int i = 0; i < 6; i++)
		*--frame = NULL;
	c->stack_pointer = frame;
}
#else
struct context {
	ucontext_t u;
};

static inline void context_switch(struct context *from, struct context *to)
{
	swapcontext(&from->u, &to->u);
}

static void context_make(struct context *c, unsigned char *stack, unsigned char *top, void (*entry)(void))
{
	getcontext(&c->u);
	c->u.uc_stack.ss_sp = stack;
	c->u.uc_stack.ss_size = (size_t)(top - stack);
	c->u.uc_link = NULL;
	makecontext(&c->u, entry, 0);
}
#endif

struct fiber {
	struct sim_thread seen; /* by kernels */
	struct context context;
	const char *where;      /* it waits */
	enum sim_warp_op op;
	unsigned mask, from;
	uint64_t value, result;
};

/* Bits are lanes. A lane is in one of the four, or has none. */
struct warp {
	uint32_t ready, waiting, at_barrier, ended, lanes;
};

struct sim_thread *sim_self;
uint3 sim_block;
dim3 sim_block_shape, sim_grid_shape;
void *sim_dynamic_shared;
uint32_t sim_n_barriers;
struct sim_range sim_stacks, sim_static_shared, sim_dynamic, sim_arguments;

static struct fiber fibers[MOST_THREADS], *me;
static struct warp warps[MOST_WARPS];
static uint32_t ready_warps; /* a bit for each that has a ready lane */
static struct context host;
static unsigned n_threads, n_ended, n_at_barrier;
static int barrier_id;
static const struct fiber *barrier_first;
static const char *kernel_name = "none";
static void (*kernel_body)(void *);
static void *kernel_arguments;
static unsigned char *dynamic_memory;

static enum sim_order order;
static uint64_t random_state = 1;

static char fault_text[512];
static bool has_fault, is_over;

/* One of the variables of threads, which __shared__ ones are: where it lies among them, the others are found by. */
static thread_local char among_shared;
static uintptr_t among_shared_at;
static size_t all_shared_bytes;

void sim_set_order(enum sim_order o, uint64_t seed)
{
	order = o;
	random_state = seed * 0x9e3779b97f4a7c15 | 1;
}

static inline uint32_t random_word(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 32);
}

const char *sim_take_fault(void)
{
	bool had = has_fault;

	has_fault = false;
	return had ? fault_text : NULL;
}

/* Before the first of 32, in the order that there is. */
static inline int before_first(void)
{
	return order == SIM_REVERSE ? 32 : -1;
}

/* The next of the set bits, of which there must be one: behind `last` where one is, from the beginning where none is. */
static inline int next_bit(uint32_t bits, int last)
{
	uint32_t beyond;
	unsigned turn;

	switch (order) {
	case SIM_FORWARD:
		beyond = (uint32_t)((uint64_t)bits >> (last + 1) << (last + 1));
		return __builtin_ctz(beyond ? beyond : bits);
	case SIM_REVERSE:
		beyond = (uint32_t)(bits & ((1ull << last) - 1));
		return 31 - __builtin_clz(beyond ? beyond : bits);
	default:
		turn = random_word() & 31;
		return (int)((__builtin_ctz(bits >> turn | (uint32_t)((uint64_t)bits << 32 >> turn)) + turn) & 31);
	}
}

static inline unsigned warp_of(const struct fiber *f) { return f->seen.number / WARP; }
static inline uint32_t lane_bit(const struct fiber *f) { return 1u << f->seen.lane; }

static void resume(struct context *from, struct fiber *f)
{
	me = f;
	sim_self = &f->seen;
	context_switch(from, &f->context);
}

static inline void change_to(struct fiber *f)
{
	if (f != me)
		resume(&me->context, f);
}

static struct fiber *first_fiber(void)
{
	unsigned w = (unsigned)next_bit(ready_warps, before_first());

	return &fibers[w * WARP + (unsigned)next_bit(warps[w].ready, before_first())];
}

static inline void back_to_host(void)
{
	sim_self = NULL;
	context_switch(&me->context, &host);
}

/* Somebody else's turn. Comes back when it is this fiber's again, if ever. */
static inline void give_way(void)
{
	unsigned w = warp_of(me);
	int last = (int)me->seen.lane;

	if (!ready_warps) {
		back_to_host();
		return;
	}
	if (!warps[w].ready || (order == SIM_RANDOM && random_word() % 64 == 0)) {
		w = (unsigned)next_bit(ready_warps, (int)w);
		last = before_first();
	}
	change_to(&fibers[w * WARP + (unsigned)next_bit(warps[w].ready, last)]);
}

void sim_fault(const char *format, ...)
{
	va_list args;
	int n;

	if (!has_fault) {
		n = snprintf(fault_text, sizeof fault_text, "kernel %s: ", kernel_name);
		va_start(args, format);
		vsnprintf(fault_text + n, sizeof fault_text - (size_t)n, format, args);
		va_end(args);
	}
	has_fault = true;
	is_over = true;
	/* Fibers own nothing: they are left where they are. */
	if (sim_self)
		back_to_host();
}

static void no_longer_ready(struct warp *w)
{
	w->ready &= ~lane_bit(me);
	if (!w->ready)
		ready_warps &= ~(1u << warp_of(me));
}

/* Only some of the block's threads can meet at the barrier, which orders nothing then. */
static void barrier_is_divergent(void)
{
	sim_fault("divergent barrier: %u of %u threads are at __syncthreads() in %s, the others have ended", n_at_barrier,
		  n_threads, barrier_first->where);
}

void sim_barrier(const char *where, int id)
{
	struct warp *w = &warps[warp_of(me)];

	me->where = where;
	if (!n_at_barrier++) {
		barrier_id = id;
		barrier_first = me;
	} else if (id != barrier_id) {
		sim_fault("divergent barrier: thread %u is at __syncthreads() in %s, thread %u in %s", barrier_first->seen.number,
			  barrier_first->where, me->seen.number, where);
	}
	w->at_barrier |= lane_bit(me);
	no_longer_ready(w);
	if (n_at_barrier + n_ended < n_threads) {
		give_way();
		return;
	}
	if (n_ended)
		barrier_is_divergent();
	n_at_barrier = 0;
	sim_n_barriers++;
	for (unsigned i = 0; i * WARP < n_threads; i++) {
		warps[i].ready = warps[i].at_barrier;
		warps[i].at_barrier = 0;
		ready_warps |= 1u << i;
	}
	change_to(first_fiber());
}

/* All lanes of the mask are there. Shuffles order no memory: only __syncwarp does. */
static void warp_meets(struct fiber *lanes, unsigned mask, enum sim_warp_op op)
{
	uint64_t votes = 0;
	uint32_t n_syncs = 0;

	for (unsigned left = mask; left; left &= left - 1) {
		struct fiber *f = &lanes[__builtin_ctz(left)];

		switch (op) {
		case SIM_SHUFFLE:
			if (!(mask >> f->from & 1))
				sim_fault("bad shuffle: %s, lane %u reads lane %u, which is not of the mask %08x", f->where,
					  f->seen.lane, f->from, mask);
			f->result = lanes[f->from].value;
			break;
		case SIM_BALLOT:
			votes |= f->value << f->seen.lane;
			break;
		case SIM_WARP_SYNC:
			n_syncs = max(n_syncs, f->seen.n_warp_syncs);
			break;
		}
	}
	for (unsigned left = op == SIM_SHUFFLE ? 0 : mask; left; left &= left - 1) {
		struct fiber *f = &lanes[__builtin_ctz(left)];

		f->result = votes;
		if (op == SIM_WARP_SYNC)
			f->seen.n_warp_syncs = n_syncs + 1;
	}
}

uint64_t sim_warp_wait(const char *where, enum sim_warp_op op, unsigned mask, uint64_t value, unsigned from)
{
	struct warp *w = &warps[warp_of(me)];
	struct fiber *lanes = &fibers[warp_of(me) * WARP];
	bool all;

	/* "All lanes" includes none that there is not. */
	if (mask == 0xffffffff)
		mask = w->lanes;
	if (!(mask & lane_bit(me)))
		sim_fault("bad mask: %s, lane %u is not of its own mask %08x", where, me->seen.lane, mask);
	me->where = where;
	me->op = op;
	me->mask = mask;
	me->value = value;
	me->from = from;

	all = ((w->waiting | lane_bit(me)) & mask) == mask;
	for (unsigned left = mask; all && left; left &= left - 1) {
		const struct fiber *f = &lanes[__builtin_ctz(left)];

		all = f->mask == mask && f->op == op;
	}
	if (!all) {
		w->waiting |= lane_bit(me);
		no_longer_ready(w);
		give_way();
		return me->result;
	}
	warp_meets(lanes, mask, op);
	w->waiting &= ~mask;
	w->ready |= mask;
	ready_warps |= 1u << warp_of(me);
	return me->result;
}

static void fiber_entry(void)
{
	struct warp *w;

	kernel_body(kernel_arguments);

	w = &warps[warp_of(me)];
	w->ended |= lane_bit(me);
	n_ended++;
	no_longer_ready(w);
	if (n_at_barrier && n_at_barrier + n_ended == n_threads)
		barrier_is_divergent();
	give_way();
	abort(); /* an ended fiber is never ready */
}

static void say_deadlock(void)
{
	static const char *const names[] = {"__syncwarp", "a shuffle", "a ballot"};

	for (unsigned t = 0; t < n_threads; t++) {
		const struct fiber *f = &fibers[t], *absent;
		const struct warp *w = &warps[t / WARP];
		char how[200];

		if (!(w->waiting & lane_bit(f)))
			continue;
		absent = NULL;
		for (unsigned lane = 0; lane < WARP && !absent; lane++) {
			const struct fiber *other = &fibers[t / WARP * WARP + lane];

			if (f->mask >> lane & 1 && (!(w->waiting >> lane & 1) || other->mask != f->mask || other->op != f->op))
				absent = other;
		}
		if (!absent)
			continue;
		if (!(w->lanes & lane_bit(absent)))
			snprintf(how, sizeof how, "is none of this block's");
		else if (w->ended & lane_bit(absent))
			snprintf(how, sizeof how, "has ended");
		else if (w->at_barrier & lane_bit(absent))
			snprintf(how, sizeof how, "waits at __syncthreads() in %s", absent->where);
		else
			snprintf(how, sizeof how, "waits for %s in %s with the mask %08x", names[absent->op], absent->where,
				 absent->mask);
		sim_fault("deadlock: thread %u waits for %s in %s with the mask %08x, but lane %u %s", f->seen.number,
			  names[f->op], f->where, f->mask, absent->seen.lane, how);
		return;
	}
	sim_fault("deadlock: no thread can go on");
}

static bool stacks_are_there(void)
{
	void *p;

	if (sim_stacks.to)
		return true;
	p = mmap(NULL, (size_t)MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return false;
	sim_stacks.from = (uintptr_t)p;
	sim_stacks.to = sim_stacks.from + (size_t)MOST_THREADS * STACK;
	return true;
}

static int look_at_library(struct dl_phdr_info *library, size_t, void *)
{
	uintptr_t variables = (uintptr_t)library->dlpi_tls_data;

	for (int i = 0; variables && i < library->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &library->dlpi_phdr[i];

		if (part->p_type != PT_TLS || (uintptr_t)&among_shared - variables >= part->p_memsz)
			continue;
		among_shared_at = (uintptr_t)&among_shared - variables;
		all_shared_bytes = part->p_memsz;
		return 1;
	}
	return 0;
}

/* They are others for each thread of the host, and come into being when one of them is first touched. */
static void find_shared(void)
{
	*(volatile char *)&among_shared = 0;
	if (!all_shared_bytes)
		dl_iterate_phdr(look_at_library, NULL);
	sim_static_shared.from = (uintptr_t)&among_shared - among_shared_at;
	sim_static_shared.to = sim_static_shared.from + all_shared_bytes;
}

static unsigned char *stack_of(unsigned thread)
{
	return (unsigned char *)sim_stacks.from + (size_t)thread * STACK;
}

static void run_block(size_t shared_bytes)
{
	memset(dynamic_memory, 0xff, shared_bytes + EDGE);
	memset((void *)sim_static_shared.from, 0xff, sim_static_shared.to - sim_static_shared.from);
	sim_n_barriers = 0;
	n_ended = n_at_barrier = 0;
	ready_warps = 0;
	for (unsigned w = 0; w * WARP < n_threads; w++) {
		uint32_t lanes = n_threads - w * WARP >= WARP ? 0xffffffff : (1u << (n_threads - w * WARP)) - 1;

		warps[w] = {lanes, 0, 0, 0, lanes};
		ready_warps |= 1u << w;
	}
	for (unsigned t = 0; t < n_threads; t++) {
		struct fiber *f = &fibers[t];

		f->seen.n_warp_syncs = 0;
		/* Tops of stacks would all lie in the same few lines of the caches, were they all at the end of their pages. */
		context_make(&f->context, stack_of(t), stack_of(t + 1) - t % 61 * 64, fiber_entry);
	}

	resume(&host, first_fiber());
	if (!is_over && n_ended < n_threads)
		say_deadlock();
	for (size_t i = shared_bytes; !is_over && i < shared_bytes + EDGE; i++)
		if (dynamic_memory[i] != 0xff)
			sim_fault("outside: something wrote byte %zu of %zu of dynamic shared memory", i, shared_bytes);
}

static void run_grid(dim3 grid, dim3 block, size_t shared_bytes)
{
	uint64_t n_blocks = (uint64_t)grid.x * grid.y * grid.z, first = 0;

	for (unsigned t = 0; t < n_threads; t++) {
		fibers[t].seen.index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
		fibers[t].seen.number = t;
		fibers[t].seen.lane = t % WARP;
		memcpy(stack_of(t), &CANARY, sizeof CANARY);
	}
	if (order == SIM_RANDOM)
		first = random_word() % n_blocks;
	race_launch_begins(n_blocks);
	for (uint64_t i = 0; i < n_blocks && !is_over; i++) {
		uint64_t b = order == SIM_REVERSE ? n_blocks - 1 - i : (first + i) % n_blocks;

		sim_block = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
		race_block_begins((uint32_t)b);
		run_block(shared_bytes);
	}
	for (unsigned t = 0; t < n_threads && !is_over; t++)
		if (memcmp(stack_of(t), &CANARY, sizeof CANARY))
			sim_fault("thread %u needs more than %d KiB of stack", t, STACK >> 10);
}

void sim_run(const char *name, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void *), void *arguments, size_t bytes)
{
	uint64_t in_block = (uint64_t)block.x * block.y * block.z;

	kernel_name = name;
	is_over = false;
	if (!in_block || in_block > MOST_THREADS || !grid.x || !grid.y || !grid.z || grid.x > INT32_MAX ||
	    grid.y > MOST_GRID_YZ || grid.z > MOST_GRID_YZ || shared_bytes > MOST_SHARED) {
		sim_fault("no GPU launches %u x %u x %u blocks of %u x %u x %u threads with %zu bytes of shared memory", grid.x,
			  grid.y, grid.z, block.x, block.y, block.z, shared_bytes);
		return;
	}
	if (!stacks_are_there()) {
		sim_fault("no memory for the stacks of its threads");
		return;
	}
	n_threads = (unsigned)in_block;
	kernel_body = body;
	kernel_arguments = arguments;
	sim_block_shape = block;
	sim_grid_shape = grid;
	dynamic_memory = (unsigned char *)aligned_alloc(EDGE, (shared_bytes + EDGE - 1) / EDGE * EDGE + EDGE);
	if (!dynamic_memory)
		abort();
	sim_dynamic_shared = dynamic_memory;
	sim_dynamic = {(uintptr_t)dynamic_memory, (uintptr_t)dynamic_memory + shared_bytes};
	find_shared();
	sim_arguments = {(uintptr_t)arguments, (uintptr_t)arguments + bytes};

	/* Kernels compute by IEEE 754, whatever the thread of the host has set for its own code. */
#ifdef __x86_64__
	unsigned rounding = _mm_getcsr();

	_mm_setcsr(0x1f80);
#endif
	run_grid(grid, block, shared_bytes);
#ifdef __x86_64__
	_mm_setcsr(rounding);
#endif
	free(dynamic_memory);
	dynamic_memory = NULL;
	sim_dynamic_shared = NULL;
	kernel_name = "none";
}
