#include "tests/support/slow_io.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config/clock.h"

static void slow_free(void *state)
{
	assert(!((struct slow_io *)state)->n);
	(void)state;
}

static void slow_start(void *state, const struct io_operation *o)
{
	struct slow_io *d = state;
	int64_t now = clock_now_ns();
	double seconds = (double)o->bytes / d->bytes_per_s;

	assert(d->n < SLOW_IN_FLIGHT);
	d->n_begun++;
	if (d->stall_every && d->n_begun % d->stall_every == 0)
		seconds += d->stall_s;
	d->busy_s += seconds;
	d->free_at = (d->free_at > now ? d->free_at : now) + (int64_t)(seconds * 1e9);
	d->in_flight[d->n].o = *o;
	d->in_flight[d->n].number = d->n_begun;
	d->in_flight[d->n++].ends_at = d->free_at;
}

/* A page that nobody has written to is one that all such pages share, and stays in the processor's cache. */
static ssize_t touch(const struct io_operation *o)
{
	for (uint32_t at = 0; at < o->bytes; at += 4096)
		((volatile char *)o->memory)[at] = 0;
	return o->bytes;
}

static int slow_reap(void *state, struct io_completion *out, int n_most, int timeout_ms)
{
	struct slow_io *d = state;
	int64_t now = clock_now_ns();
	int n = 0;

	d->n_asked += n_most > 0;
	if (!n_most || !d->n)
		return 0;
	if (timeout_ms && d->in_flight[0].ends_at > now) {
		int64_t wait = d->in_flight[0].ends_at - now;

		if (timeout_ms > 0 && wait > timeout_ms * (int64_t)1000000)
			wait = timeout_ms * (int64_t)1000000;
		nanosleep(&(struct timespec){wait / 1000000000, wait % 1000000000}, NULL);
		now = clock_now_ns();
	}
	while (n < n_most && n < d->n && d->in_flight[n].ends_at <= now) {
		const struct io_operation *o = &d->in_flight[n].o;
		ssize_t moved = d->carries_nothing ? touch(o) : pread(o->fd, o->memory, o->bytes, (off_t)o->offset);

		if (moved > 0 && d->spoil_nth && (d->in_flight[n].number == d->spoil_nth ||
						  (d->then_on && d->in_flight[n].number > d->spoil_nth)))
			((char *)o->memory)[moved / 2 | 1] ^= 1; /* of a bf16: four times as much, or a fourth */
		out[n++] = (struct io_completion){o->id, moved < 0 ? -errno : (int32_t)moved};
	}
	d->n -= n;
	memmove(d->in_flight, d->in_flight + n, (size_t)d->n * sizeof d->in_flight[0]);
	return n;
}

static void slow_cancel(void *state, uint64_t id)
{
	struct slow_io *d = state;

	for (int i = 0; i < d->n; i++)
		d->n_cancelled += d->in_flight[i].o.id == id;
}

static int slow_fd(void *state)
{
	(void)state;
	return -1;
}

const struct io_backend slow_io_backend = {
	.name = "slow",
	.free = slow_free,
	.start = slow_start,
	.reap = slow_reap,
	.cancel = slow_cancel,
	.fd = slow_fd,
};
