/*
 * io_uring as a backend: one ring, used by the thread that made it. No polling thread of the kernel's: on a machine
 * of few processors it takes one from the computation.
 *
 * The rings cannot overflow: they have room for every operation in flight and for a cancellation of each.
 */
#include "offload/io_backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <liburing.h>

#include "config/log.h"
#include "config/mem.h"

enum { OF_CANCELLATION = 0 }; /* user_data of a request to cancel, whose own outcome says nothing */

struct uring {
	struct io_uring ring;
	bool has_files, has_buffers; /* the kernel keeps tables of them for us */
	bool told_busy;
	int event_fd;                /* readable when there may be completions; -1: nobody asked for it yet */
};

static void ring_free(void *state)
{
	struct uring *u = state;

	io_uring_queue_exit(&u->ring);
	if (u->event_fd >= 0)
		close(u->event_fd);
	free(u);
}

/* What io_uring_enter said. What is short now (memory, room for completions) will be there again: a moment later the
 * caller's loop comes back. Anything else can only be our own mistake, and what is in flight could never be accounted
 * for again. */
static void check_entered(struct uring *u, int result)
{
	struct timespec moment = {.tv_nsec = 1000000};

	switch (result) {
	case -EAGAIN:
	case -EBUSY:
	case -ENOMEM:
		if (!u->told_busy)
			log_warn("io_uring is short of something and has to wait: %s", strerror(-result));
		u->told_busy = true;
		nanosleep(&moment, NULL);
		return;
	case -EINTR:
	case -ETIME:
		return;
	default:
		if (result >= 0)
			return;
		log_error("io_uring does not go on: %s", strerror(-result));
		abort();
	}
}

static void ring_start(void *state, const struct io_operation *o)
{
	struct uring *u = state;
	bool fixed = o->buffer_slot >= 0;
	struct io_uring_sqe *sqe;

	/* Full only after the kernel had refused to take what was there. */
	while (!(sqe = io_uring_get_sqe(&u->ring)))
		check_entered(u, io_uring_submit(&u->ring));
	if (o->op == IO_SYNC)
		io_uring_prep_fsync(sqe, o->fd, IORING_FSYNC_DATASYNC);
	else if (o->op == IO_READ && fixed)
		io_uring_prep_read_fixed(sqe, o->fd, o->memory, o->bytes, o->offset, o->buffer_slot);
	else if (o->op == IO_READ)
		io_uring_prep_read(sqe, o->fd, o->memory, o->bytes, o->offset);
	else if (fixed)
		io_uring_prep_write_fixed(sqe, o->fd, o->memory, o->bytes, o->offset, o->buffer_slot);
	else
		io_uring_prep_write(sqe, o->fd, o->memory, o->bytes, o->offset);
	if (o->file_slot >= 0) {
		sqe->fd = o->file_slot;
		io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	}
	io_uring_sqe_set_data64(sqe, o->id);
}

static void ring_cancel(void *state, uint64_t id)
{
	struct uring *u = state;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe) /* it is advice */
		return;
	io_uring_prep_cancel64(sqe, id, 0);
	io_uring_sqe_set_data64(sqe, OF_CANCELLATION);
}

/* Completions that are in the ring now. */
static int take(struct uring *u, struct io_completion *out, int n_most)
{
	struct io_uring_cqe *cqe;
	unsigned head, n_seen = 0;
	int n = 0;

	io_uring_for_each_cqe(&u->ring, head, cqe) {
		if (n == n_most)
			break;
		n_seen++;
		if (cqe->user_data == OF_CANCELLATION || cqe->user_data == LIBURING_UDATA_TIMEOUT)
			continue;
		out[n++] = (struct io_completion){cqe->user_data, cqe->res};
	}
	io_uring_cq_advance(&u->ring, n_seen);
	return n;
}

static int reap(struct uring *u, struct io_completion *out, int n_most, int timeout_ms)
{
	struct __kernel_timespec limit = {.tv_sec = timeout_ms / 1000, .tv_nsec = (long long)(timeout_ms % 1000) * 1000000};
	struct io_uring_cqe *cqe;
	int n = take(u, out, n_most);

	if (n || !timeout_ms) {
		/* The kernel puts completions into the ring only when it is entered for them (DEFER_TASKRUN). */
		if (io_uring_sq_ready(&u->ring) || !n)
			check_entered(u, io_uring_submit_and_get_events(&u->ring));
		return n ? n : take(u, out, n_most);
	}
	if (timeout_ms < 0)
		check_entered(u, io_uring_submit_and_wait(&u->ring, 1));
	else
		check_entered(u, io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &limit, NULL));
	return take(u, out, n_most);
}

static int ring_reap(void *state, struct io_completion *out, int n_most, int timeout_ms)
{
	struct uring *u = state;
	eventfd_t count;
	int n;

	if (!n_most) {
		if (io_uring_sq_ready(&u->ring))
			check_entered(u, io_uring_submit(&u->ring));
		return 0;
	}
	/* First the event, then what it stands for: so none is forgotten. It fails when there was none. */
	if (u->event_fd >= 0)
		(void)eventfd_read(u->event_fd, &count);
	n = reap(u, out, n_most, timeout_ms);
	if (u->event_fd >= 0 && io_uring_cq_ready(&u->ring))
		(void)eventfd_write(u->event_fd, 1); /* more than the caller took */
	return n;
}

/* Not the ring itself: with DEFER_TASKRUN a sleeper in poll is not woken by completions that wait to be fetched, while
 * an event is sent for them (found on Linux 6.18). */
static int ring_fd(void *state)
{
	struct uring *u = state;
	int fd;

	if (u->event_fd >= 0)
		return u->event_fd;
	fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK); /* something may have come already */
	if (fd >= 0 && io_uring_register_eventfd(&u->ring, fd) < 0) {
		close(fd);
		fd = -1;
	}
	return u->event_fd = fd;
}

static int ring_register_file(void *state, int slot, int fd)
{
	struct uring *u = state;
	int rc = u->has_files ? io_uring_register_files_update(&u->ring, (unsigned)slot, &fd, 1) : -EOPNOTSUPP;

	return rc < 0 ? -rc : 0;
}

static int ring_register_buffer(void *state, int slot, void *memory, size_t bytes)
{
	struct uring *u = state;
	struct iovec v = {memory, bytes};
	__u64 tag = 0;
	int rc;

	if (!u->has_buffers)
		return EOPNOTSUPP;
	rc = io_uring_register_buffers_update_tag(&u->ring, (unsigned)slot, &v, &tag, 1);
	return rc < 0 ? -rc : 0;
}

const struct io_backend io_ring_backend = {
	.name = "io_uring",
	.free = ring_free,
	.start = ring_start,
	.reap = ring_reap,
	.cancel = ring_cancel,
	.fd = ring_fd,
	.register_file = ring_register_file,
	.register_buffer = ring_register_buffer,
};

/* Why the kernel gives no ring. */
static int refused(int number, struct err *err)
{
	int disabled = 0;
	FILE *f;

	if (number == ENOSYS)
		return err_set(err, ERR_UNAVAILABLE, "io_uring is not in this kernel, or a system call filter hides it");
	if (number != EPERM)
		return err_errno(err, number, "io_uring is refused");
	f = fopen("/proc/sys/kernel/io_uring_disabled", "r");
	if (f && fscanf(f, "%d", &disabled) != 1)
		disabled = 0;
	if (f)
		fclose(f);
	if (disabled)
		return err_set(err, ERR_PERMISSION, "io_uring is switched off: kernel.io_uring_disabled is %d", disabled);
	return err_set(err, ERR_PERMISSION, "io_uring is refused: a system call filter of the service or container does "
		       "not let it through");
}

/* A ring that was given may still not work, or be too old: ask what it knows and let it do nothing once. */
static int try_out(struct uring *u, struct err *err)
{
	static const int needed[] = {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED,
				     IORING_OP_FSYNC, IORING_OP_ASYNC_CANCEL};
	struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
	struct io_uring_cqe *cqe;
	int rc;

	for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
		if (!probe || !io_uring_opcode_supported(probe, needed[i])) {
			if (probe)
				io_uring_free_probe(probe);
			return err_set(err, ERR_UNAVAILABLE, "io_uring of this kernel is too old: it lacks operation %d",
				       needed[i]);
		}
	io_uring_free_probe(probe);
	io_uring_prep_nop(io_uring_get_sqe(&u->ring));
	do
		rc = io_uring_submit_and_wait(&u->ring, 1);
	while (rc == -EINTR);
	if (rc >= 0)
		rc = io_uring_wait_cqe(&u->ring, &cqe);
	if (rc >= 0) {
		rc = cqe->res;
		io_uring_cqe_seen(&u->ring, cqe);
	}
	return rc < 0 ? err_errno(err, -rc, "io_uring was given, but does nothing") : 0;
}

int io_ring_new(void **state, int *depth, struct err *err)
{
	/* The first set spares interrupts of the owner's computation (Linux 6.1); the second is for older kernels. */
	static const unsigned flags[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0};
	struct uring *u = xcalloc(1, sizeof *u);
	unsigned entries = 2 * (unsigned)*depth;
	int rc = -EINVAL;

	u->event_fd = -1;
	for (size_t i = 0; rc == -EINVAL && i < sizeof flags / sizeof *flags; i++)
		rc = io_uring_queue_init(entries, &u->ring, flags[i]);
	if (rc < 0) {
		free(u);
		return refused(-rc, err);
	}
	if (try_out(u, err)) {
		ring_free(u);
		return -1;
	}
	(void)io_uring_ring_dontfork(&u->ring);
	/* All three only save time. */
	(void)io_uring_register_ring_fd(&u->ring);
	u->has_files = io_uring_register_files_sparse(&u->ring, IO_FILE_SLOTS) >= 0;
	u->has_buffers = io_uring_register_buffers_sparse(&u->ring, IO_BUFFER_SLOTS) >= 0;
	*state = u;
	return 0;
}
