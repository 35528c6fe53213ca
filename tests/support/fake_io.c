#include "tests/support/fake_io.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 512, A_STRANGER = 1 };

static bool is_spoiled(const struct fake_io *f, int number)
{
	return f->nth && (number == f->nth || (f->then_on && number > f->nth));
}

static void fake_free(void *state)
{
	struct fake_io *f = state;

	assert(!f->n_in_flight);
	f->n_in_flight = 0;
}

static void fake_start(void *state, const struct io_operation *o)
{
	struct fake_io *f = state;
	int i = f->n_in_flight++;

	assert(f->n_in_flight <= FAKE_IN_FLIGHT);
	if (f->n_begun < FAKE_LOG)
		f->begun[f->n_begun] = *o;
	f->n_begun++;
	f->n_not_run++;
	f->in_flight[i].o = *o;
	f->in_flight[i].number = f->n_begun;
	f->in_flight[i].hold = f->hold;
	f->in_flight[i].cancelled = false;
}

static void fake_cancel(void *state, uint64_t id)
{
	struct fake_io *f = state;

	for (int i = 0; i < f->n_in_flight; i++)
		if (f->in_flight[i].o.id == id) {
			f->in_flight[i].cancelled = true;
			f->in_flight[i].hold = 0;
			f->n_cancelled++;
		}
}

/* Move the first `bytes` of an operation, by way of memory of our own, so that nothing else is touched. */
static int32_t move(const struct io_operation *o, size_t bytes)
{
	void *memory = aligned_alloc(4096, (o->bytes + 4095) / 4096 * 4096);
	ssize_t n;

	assert(memory);
	if (o->op == IO_WRITE) {
		memcpy(memory, o->memory, bytes);
		n = pwrite(o->fd, memory, bytes, (off_t)o->offset);
	} else {
		n = pread(o->fd, memory, o->bytes, (off_t)o->offset);
		n = n > (ssize_t)bytes ? (ssize_t)bytes : n;
		if (n > 0)
			memcpy(o->memory, memory, (size_t)n);
	}
	n = n < 0 ? -errno : n;
	free(memory);
	return (int32_t)n;
}

/* Another place than the operation's own, of the same file: that of an earlier operation, or the next block. */
static uint64_t other_place(const struct fake_io *f, const struct io_operation *o)
{
	for (int i = 0; i < 2; i++)
		if (f->places[i].fd == o->fd && f->places[i].offset != o->offset)
			return f->places[i].offset;
	return o->offset + BLOCK * ((o->bytes + BLOCK - 1) / BLOCK);
}

static void flip_middle(const struct io_operation *o, int32_t n)
{
	((unsigned char *)o->memory)[n / 2] ^= 1;
}

static size_t half(const struct io_operation *o)
{
	size_t bytes = o->bytes / 2;

	if (o->op == IO_WRITE)
		return bytes < BLOCK ? o->bytes : bytes / BLOCK * BLOCK;
	return bytes ? bytes : 1;
}

/* A sync moves nothing, and nothing is read by a write. */
static bool can_happen(enum fake_fault fault, enum io_op op)
{
	if (op == IO_SYNC)
		return fault == FAKE_ERROR;
	return fault == FAKE_FLIP ? op == IO_READ : fault != FAKE_ROT || op == IO_WRITE;
}

static int32_t carry_out(struct fake_io *f, const struct io_operation *o, int number)
{
	enum fake_fault fault = is_spoiled(f, number) && can_happen(f->fault, o->op) ? f->fault : FAKE_NONE;
	struct io_operation there = *o;
	int32_t n;

	f->n_spoiled += fault != FAKE_NONE;
	if (fault == FAKE_ERROR)
		return -f->error;
	if (o->op == IO_SYNC) /* which tests count, and do not make (disk_calls.h) */
		return fdatasync(o->fd) ? -errno : 0;
	if (fault == FAKE_ZERO)
		return 0;
	if (fault == FAKE_STALE)
		return (int32_t)o->bytes;
	if (fault == FAKE_SWAP)
		there.offset = other_place(f, o);
	if (fault == FAKE_ROT)
		flip_middle(o, (int32_t)o->bytes);
	n = move(&there, fault == FAKE_SHORT ? half(o) : o->bytes);
	if (fault == FAKE_ROT)
		flip_middle(o, (int32_t)o->bytes); /* memory is the caller's, and as it was */
	if (fault == FAKE_FLIP && n > 0)
		flip_middle(o, n);
	f->places[number % 2].fd = o->fd;
	f->places[number % 2].offset = o->offset;
	if (fault == FAKE_LONG)
		n = (int32_t)o->bytes + BLOCK;
	if (fault == FAKE_TWICE || fault == FAKE_STRANGER) {
		f->extra = (struct io_completion){fault == FAKE_TWICE ? o->id : (uint64_t)A_STRANGER << 60, n};
		f->has_extra = true;
	}
	return n;
}

/* The operation that ends next, -1 if none may yet. */
static int choose(const struct fake_io *f)
{
	int late = -1;

	for (int k = 0; k < f->n_in_flight; k++) {
		int i = f->backwards ? f->n_in_flight - 1 - k : k;

		if (f->in_flight[i].hold > 0)
			continue;
		if (f->fault == FAKE_LATE && is_spoiled(f, f->in_flight[i].number)) {
			late = i;
			continue;
		}
		return i;
	}
	return late >= 0 && f->n_in_flight == 1 ? late : -1;
}

static int fake_reap(void *state, struct io_completion *out, int n_most, int timeout_ms)
{
	struct fake_io *f = state;
	int n = 0, i;

	f->n_not_run = 0;
	if (!n_most)
		return 0;
	if (f->has_extra) {
		f->has_extra = false;
		out[n++] = f->extra;
	}
	while (n < n_most && !f->has_extra && (i = choose(f)) >= 0) {
		struct io_operation o = f->in_flight[i].o;
		int number = f->in_flight[i].number;
		bool cancelled = f->in_flight[i].cancelled;

		f->n_in_flight--;
		memmove(&f->in_flight[i], &f->in_flight[i + 1], (size_t)(f->n_in_flight - i) * sizeof f->in_flight[0]);
		out[n++] = (struct io_completion){o.id, cancelled ? -ECANCELED : carry_out(f, &o, number)};
	}
	for (i = 0; i < f->n_in_flight; i++)
		f->in_flight[i].hold -= f->in_flight[i].hold > 0;
	if (n || timeout_ms >= 0)
		return n;
	if (!f->n_in_flight) {
		fprintf(stderr, "fake_io: somebody waits for ever: nothing is in flight\n");
		abort();
	}
	/* Several late ones: the first of them may come now. */
	for (i = 0; i < f->n_in_flight; i++)
		if (f->in_flight[i].hold > 0)
			return fake_reap(state, out, n_most, timeout_ms);
	f->fault = f->fault == FAKE_LATE ? FAKE_NONE : f->fault;
	return fake_reap(state, out, n_most, timeout_ms);
}

static int fake_fd(void *state)
{
	(void)state;
	return -1; /* nobody sleeps on a disk that answers at once */
}

static int fake_register_buffer(void *state, int slot, void *memory, size_t bytes)
{
	struct fake_io *f = state;

	(void)slot;
	assert(bytes <= IO_BUFFER_MOST);
	if (memory && f->n_buffers == f->n_buffers_most)
		return ENOMEM;
	f->n_buffers += memory ? 1 : -1;
	return 0;
}

const struct io_backend fake_io_backend = {
	.name = "fake",
	.free = fake_free,
	.start = fake_start,
	.reap = fake_reap,
	.cancel = fake_cancel,
	.fd = fake_fd,
	.register_buffer = fake_register_buffer,
};
