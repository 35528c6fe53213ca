#include "tests/support/steady_drive.h"

#include <assert.h>
#include <time.h>

#include "tests/support/measure.h"

#define LATENCY_S 100e-6 /* of the first one of several */

static void drive_free(void *state)
{
	(void)state;
}

/* A page that was only read would be one that all such pages share, and stays in the processor's cache. */
static void touch(char *memory, uint32_t bytes)
{
	for (uint32_t at = 0; at < bytes; at += 4096)
		((volatile char *)memory)[at] = 0;
}

static void drive_start(void *state, const struct io_operation *o)
{
	struct steady_drive *d = state;
	double now = measure_now();
	int i = (d->first + d->n) % STEADY_MOST;

	assert(o->op == IO_READ && d->n < STEADY_MOST);
	touch(o->memory, o->bytes);
	if (d->last_s < now)
		d->last_s = now + LATENCY_S;
	d->last_s += o->bytes / d->bytes_per_s;
	d->reads[i].id = o->id;
	d->reads[i].bytes = (int32_t)o->bytes;
	d->reads[i].end_s = d->last_s;
	d->n++;
}

static int drive_reap(void *state, struct io_completion *out, int n_most, int timeout_ms)
{
	struct steady_drive *d = state;
	double until = measure_now() + (timeout_ms < 0 ? 1e9 : timeout_ms / 1e3), now;
	int n = 0;

	while (n_most && d->n) {
		for (now = measure_now(); n < n_most && d->n && d->reads[d->first].end_s <= now; d->n--) {
			out[n++] = (struct io_completion){d->reads[d->first].id, d->reads[d->first].bytes};
			d->first = (d->first + 1) % STEADY_MOST;
		}
		if (n || now >= until)
			break;
		nanosleep(&(struct timespec){.tv_nsec = (long)((d->reads[d->first].end_s - now) * 1e9) % 1000000000}, NULL);
	}
	return n;
}

static void drive_cancel(void *state, uint64_t id)
{
	(void)state;
	(void)id;
}

static int drive_fd(void *state)
{
	(void)state;
	return -1;
}

const struct io_backend steady_drive_backend = {
	.name = "steady drive", .free = drive_free, .start = drive_start, .reap = drive_reap, .cancel = drive_cancel, .fd = drive_fd,
};
