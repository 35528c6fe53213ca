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

/* What a look at the drive takes, so that who does nothing but look at it sees an end. And when time begins: 0 is no time to some. */
enum { LOOK_NS = 1000, FIRST_NS = 1000000000 };

static int64_t slow_now(void *state)
{
	const struct slow_io *d = state;

	return d->in_real_time ? clock_now_ns() : FIRST_NS + d->now;
}

static void sleep_ns(struct slow_io *d, int64_t ns)
{
	if (d->in_real_time)
		nanosleep(&(struct timespec){ns / 1000000000, ns % 1000000000}, NULL);
	else
		d->now += ns;
}

void slow_io_pass(struct slow_io *d, double seconds)
{
	assert(!d->in_real_time);
	d->now += (int64_t)(seconds * 1e9);
}

static void slow_start(void *state, const struct io_operation *o)
{
	struct slow_io *d = state;
	int64_t now = slow_now(d);
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
	int64_t now;
	int n = 0;

	d->n_asked += n_most > 0;
	if (!n_most || !d->n)
		return 0;
	if (!d->in_real_time)
		d->now += LOOK_NS;
	now = slow_now(d);
	if (timeout_ms && d->in_flight[0].ends_at > now) {
		int64_t wait = d->in_flight[0].ends_at - now;

		if (timeout_ms > 0 && wait > timeout_ms * (int64_t)1000000)
			wait = timeout_ms * (int64_t)1000000;
		sleep_ns(d, wait);
		now = slow_now(d);
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
	.now = slow_now,
};
