/*
 * libquire_cuda.so: offload/backend.h by the CUDA runtime. It is linked with the runtime, which looks for the driver itself when it is first
 * asked, so that the library can be opened, and say what is missing, where there is none.
 *
 * Each queue is a stream. A mark is an event; it goes back to a pool once it was seen done, and is remembered as done by its number.
 * Whatever fails in a queue shows in a later call of the runtime, which is when it is remembered.
 */
#include <assert.h>
#include <cuda_runtime_api.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cuda/expert.h"

#ifndef OLDEST_ARCH
#define OLDEST_ARCH 80
#endif

struct list {
	void **items;
	size_t n, room;
};

struct backend_device {
	int ordinal;
	cudaStream_t queues[N_BACKEND_QUEUES];
	/* Marks first .. next - 1: that of mark m is events[m & (room - 1)], NULL when it is done. Marks before `first` are done. */
	cudaEvent_t *events;
	int64_t room, first, next;
	struct list idle;             /* events that no mark needs */
	struct list memory, pinned;
	char failure[BACKEND_TEXT];   /* "": nothing has failed */
};

static void say(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(char *why, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, BACKEND_TEXT, format, args);
	va_end(args);
}

static void say_error(char *why, const char *call, cudaError_t e)
{
	say(why, "%s: %s: %s", call, cudaGetErrorName(e), cudaGetErrorString(e));
}

/* Whether a call succeeded; the first that does not is kept. */
static bool good(struct backend_device *d, const char *call, cudaError_t e)
{
	if (e == cudaSuccess)
		return true;
	cudaGetLastError();
	if (!*d->failure)
		say_error(d->failure, call, e);
	return false;
}

/* The runtime has a current device for each thread. */
static bool select_device(struct backend_device *d)
{
	return good(d, "cudaSetDevice", cudaSetDevice(d->ordinal));
}

static bool list_add(struct backend_device *d, struct list *l, void *item)
{
	if (l->n == l->room) {
		size_t room = l->room ? 2 * l->room : 64;
		void **items = realloc(l->items, room * sizeof *items);

		if (!items)
			return good(d, "memory for a list", cudaErrorMemoryAllocation);
		l->items = items;
		l->room = room;
	}
	l->items[l->n++] = item;
	return true;
}

/* Whether it was there. */
static bool list_remove(struct list *l, const void *item)
{
	for (size_t i = l->n; i-- > 0;)
		if (l->items[i] == item) {
			l->items[i] = l->items[--l->n];
			return true;
		}
	return false;
}

/* ---- devices ---- */

static int count(char *why)
{
	int n = 0, driver = 0, runtime = 0;
	cudaError_t e = cudaGetDeviceCount(&n);

	cudaGetLastError();
	*why = '\0';
	if (e == cudaErrorInsufficientDriver) {
		cudaDriverGetVersion(&driver);
		cudaRuntimeGetVersion(&runtime);
		if (!driver)
			say(why, "there is no NVIDIA driver (libcuda.so.1): install the one for this device");
		else
			say(why, "the NVIDIA driver knows CUDA %d.%d, and libquire_cuda.so needs %d.%d: update the driver",
			    driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
		return -1;
	}
	if (e == cudaErrorStubLibrary) {
		say(why, "libcuda.so.1 is the stub that programs are linked with, and no NVIDIA driver: take its directory off "
		    "LD_LIBRARY_PATH");
		return -1;
	}
	if (e == cudaErrorNoDevice || (e == cudaSuccess && n == 0)) {
		say(why, "the NVIDIA driver has no device to show (nvidia-smi lists them; CUDA_VISIBLE_DEVICES may hide them)");
		return 0;
	}
	if (e != cudaSuccess) {
		say_error(why, "cudaGetDeviceCount", e);
		return -1;
	}
	return n;
}

static void close_device(struct backend_device *d)
{
	if (!d)
		return;
	/* What is under way must not outlive the memory it works on. Errors have been told, or are nobody's any more. */
	cudaSetDevice(d->ordinal);
	for (int q = 0; q < N_BACKEND_QUEUES; q++)
		if (d->queues[q])
			cudaStreamSynchronize(d->queues[q]);
	for (int64_t m = d->first; m < d->next; m++)
		if (d->events[m & (d->room - 1)])
			cudaEventDestroy(d->events[m & (d->room - 1)]);
	for (size_t i = 0; i < d->idle.n; i++)
		cudaEventDestroy(d->idle.items[i]);
	for (size_t i = 0; i < d->pinned.n; i++)
		cudaHostUnregister(d->pinned.items[i]);
	for (size_t i = 0; i < d->memory.n; i++)
		cudaFree(d->memory.items[i]);
	for (int q = 0; q < N_BACKEND_QUEUES; q++)
		if (d->queues[q])
			cudaStreamDestroy(d->queues[q]);
	cudaGetLastError();
	free(d->events);
	free(d->idle.items);
	free(d->memory.items);
	free(d->pinned.items);
	free(d);
}

static int attribute(const struct backend_device *d, enum cudaDeviceAttr which)
{
	int value = 0;

	if (cudaDeviceGetAttribute(&value, which, d->ordinal) != cudaSuccess) {
		cudaGetLastError();
		return 0;
	}
	return value;
}

static bool look(struct backend_device *d, struct backend_info *info)
{
	struct cudaDeviceProp prop;
	size_t unused = 0, bytes = 0;

	if (!good(d, "cudaGetDeviceProperties", cudaGetDeviceProperties(&prop, d->ordinal)) ||
	    !good(d, "cudaMemGetInfo", cudaMemGetInfo(&unused, &bytes)))
		return false;
	memset(info, 0, sizeof *info);
	snprintf(info->name, sizeof info->name, "%s", prop.name);
	info->bytes = bytes;
	info->free_bytes = unused;
	/* Kilohertz and bits, two transfers a cycle; 0 where the driver does not say. */
	info->read_bytes_per_s = 2e3 * attribute(d, cudaDevAttrMemoryClockRate) * attribute(d, cudaDevAttrGlobalMemoryBusWidth) / 8;
	if (10 * prop.major + prop.minor >= OLDEST_ARCH)
		return true;
	say(d->failure, "%s is of compute capability %d.%d, and libquire_cuda.so was built for %d.%d and later", prop.name,
	    prop.major, prop.minor, OLDEST_ARCH / 10, OLDEST_ARCH % 10);
	return false;
}

static struct backend_device *open_device(int ordinal, struct backend_info *info, char *why)
{
	struct backend_device *d = calloc(1, sizeof *d);
	bool ok;

	*why = '\0';
	if (!d) {
		say(why, "no memory for a device");
		return NULL;
	}
	d->ordinal = ordinal;
	d->first = d->next = 1;
	ok = select_device(d) && look(d, info);
	/* Not blocking: a stream that the null stream, which nobody here uses, would wait for and hold up. */
	for (int q = 0; ok && q < N_BACKEND_QUEUES; q++)
		ok = good(d, "cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&d->queues[q], cudaStreamNonBlocking));
	if (ok)
		return d;
	say(why, "%s", d->failure);
	close_device(d);
	return NULL;
}

/* ---- memory ---- */

static void *alloc(struct backend_device *d, size_t bytes)
{
	void *p = NULL;
	cudaError_t e;

	if (!select_device(d))
		return NULL;
	e = cudaMalloc(&p, bytes ? bytes : 1);
	if (e == cudaErrorMemoryAllocation) {
		cudaGetLastError();
		return NULL;
	}
	if (!good(d, "cudaMalloc", e))
		return NULL;
	assert((uintptr_t)p % BACKEND_ALIGN == 0); /* the runtime promises 256 */
	if (list_add(d, &d->memory, p))
		return p;
	cudaFree(p);
	return NULL;
}

static void give_back(struct backend_device *d, void *p)
{
	if (p && select_device(d) && list_remove(&d->memory, p))
		good(d, "cudaFree", cudaFree(p));
}

static int pin(struct backend_device *d, void *host, size_t bytes, char *why)
{
	cudaError_t e;

	*why = '\0';
	if (!select_device(d)) {
		say(why, "%s", d->failure);
		return -1;
	}
	e = cudaHostRegister(host, bytes, cudaHostRegisterPortable);
	if (e != cudaSuccess)
		cudaGetLastError();
	if (e == cudaErrorHostMemoryAlreadyRegistered) /* by another open device, for all of them */
		return 0;
	if (e != cudaSuccess) {
		say_error(why, "cudaHostRegister", e);
		return -1;
	}
	if (list_add(d, &d->pinned, host))
		return 0;
	cudaHostUnregister(host);
	say(why, "%s", d->failure);
	return -1;
}

static void unpin(struct backend_device *d, void *host)
{
	if (select_device(d) && list_remove(&d->pinned, host))
		good(d, "cudaHostUnregister", cudaHostUnregister(host));
}

/* ---- queues ---- */

static void copy(struct backend_device *d, const char *call, enum backend_queue q, void *to, const void *from, size_t bytes,
		 enum cudaMemcpyKind kind)
{
	if (bytes && select_device(d))
		good(d, call, cudaMemcpyAsync(to, from, bytes, kind, d->queues[q]));
}

static void upload(struct backend_device *d, enum backend_queue q, void *to, const void *from, size_t bytes)
{
	copy(d, "cudaMemcpyAsync to the device", q, to, from, bytes, cudaMemcpyHostToDevice);
}

static void download(struct backend_device *d, enum backend_queue q, void *to, const void *from, size_t bytes)
{
	copy(d, "cudaMemcpyAsync from the device", q, to, from, bytes, cudaMemcpyDeviceToHost);
}

/* Where a mark's event stands; NULL when it was seen done. */
static cudaEvent_t *event_of(struct backend_device *d, int64_t mark)
{
	cudaEvent_t *e;

	assert(mark >= 1 && mark < d->next);
	if (mark < d->first)
		return NULL;
	e = &d->events[mark & (d->room - 1)];
	return *e ? e : NULL;
}

static void forget_done(struct backend_device *d)
{
	while (d->first < d->next && !d->events[d->first & (d->room - 1)])
		d->first++;
}

/* Seen done, or never to be: after a failure nobody waits for anything. */
static void retire(struct backend_device *d, cudaEvent_t *e)
{
	if (!list_add(d, &d->idle, *e))
		cudaEventDestroy(*e);
	*e = NULL;
	forget_done(d);
}

static bool query(struct backend_device *d, cudaEvent_t *event)
{
	cudaError_t e = cudaEventQuery(*event);

	if (e == cudaErrorNotReady) {
		cudaGetLastError();
		return false;
	}
	good(d, "cudaEventQuery", e);
	retire(d, event);
	return true;
}

static bool grow_marks(struct backend_device *d)
{
	int64_t room = d->room ? 2 * d->room : 256;
	cudaEvent_t *events = calloc((size_t)room, sizeof *events);

	if (!events)
		return good(d, "memory for marks", cudaErrorMemoryAllocation);
	for (int64_t m = d->first; m < d->next; m++)
		events[m & (room - 1)] = d->events[m & (d->room - 1)];
	free(d->events);
	d->events = events;
	d->room = room;
	return true;
}

static cudaEvent_t idle_event(struct backend_device *d)
{
	cudaEvent_t e = NULL, *oldest;

	/* Marks that nobody asks for are retired here, so that there are as many events as marks under way. */
	while (!d->idle.n && d->first < d->next && (oldest = event_of(d, d->first)) && query(d, oldest))
		;
	if (d->idle.n)
		return d->idle.items[--d->idle.n];
	/* A waiting thread spins: what it waits for takes less time than to be woken. */
	good(d, "cudaEventCreateWithFlags", cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
	return e;
}

static int64_t mark(struct backend_device *d, enum backend_queue q)
{
	int64_t m = d->next;
	cudaEvent_t e = NULL;

	/* A mark without an event counts as done: there are none but after a failure. */
	forget_done(d);
	if (d->next - d->first == d->room && !grow_marks(d)) {
		d->next++;
		d->first = d->next;
		return m;
	}
	if (select_device(d) && (e = idle_event(d)) && !good(d, "cudaEventRecord", cudaEventRecord(e, d->queues[q]))) {
		cudaEventDestroy(e);
		e = NULL;
	}
	d->events[m & (d->room - 1)] = e;
	d->next++;
	return m;
}

static void after(struct backend_device *d, enum backend_queue q, int64_t of)
{
	cudaEvent_t *e = event_of(d, of);

	if (e && select_device(d))
		good(d, "cudaStreamWaitEvent", cudaStreamWaitEvent(d->queues[q], *e, 0));
}

static bool done(struct backend_device *d, int64_t of)
{
	cudaEvent_t *e = event_of(d, of);

	return !e || !select_device(d) || query(d, e);
}

static void wait_for(struct backend_device *d, int64_t of)
{
	cudaEvent_t *e = event_of(d, of);

	if (!e || !select_device(d))
		return;
	good(d, "cudaEventSynchronize", cudaEventSynchronize(*e));
	retire(d, e);
}

static void compute_experts(struct backend_device *d, float *out, float *gate, const void *x, const int32_t *rows,
			    const struct backend_expert *experts, int n, int profile)
{
	const char *wrong;

	if (!select_device(d))
		return;
	wrong = expert_launch(d->queues[BACKEND_COMPUTE], out, gate, x, rows, experts, n, profile);
	if (wrong && !*d->failure)
		say(d->failure, "experts cannot be computed: %s", wrong);
	good(d, "launch of experts", cudaGetLastError());
}

static int check(struct backend_device *d, char *why)
{
	say(why, "%s", d->failure);
	return *d->failure ? -1 : 0;
}

backend_fill_fn quire_backend;

__attribute__((visibility("default"))) void quire_backend(struct backend *b)
{
	*b = (struct backend){
		.abi = BACKEND_ABI, .bytes = sizeof *b, .kind = "cuda",
		.count = count, .open = open_device, .close = close_device,
		.alloc = alloc, .free = give_back, .pin = pin, .unpin = unpin,
		.upload = upload, .download = download,
		.mark = mark, .after = after, .done = done, .wait = wait_for,
		.experts = compute_experts, .check = check,
	};
}
