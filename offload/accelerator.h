/*
 * Devices beside the processor, by name: "KIND:N" is device N of libquire_KIND.so (backend.h), which is opened when it is asked for.
 *
 * The library is looked for in the directory that QUIRE_BACKENDS in the environment names; without that beside the program, in
 * ../lib/quire from there, and where the system has its libraries. A device belongs to one thread.
 */
#ifndef QUIRE_OFFLOAD_ACCELERATOR_H
#define QUIRE_OFFLOAD_ACCELERATOR_H

#include "config/err.h"
#include "offload/backend.h"

enum { ACCELERATOR_NAME = 16 };

struct accelerator {
	const struct backend *api;
	struct backend_device *d;
	struct backend_info info;        /* as it was when the device was opened */
	char name[ACCELERATOR_NAME];     /* "cuda:0" */
	void *library;
};

/* ERR_USAGE: no name of a device; ERR_UNAVAILABLE: no library or no driver; ERR_NOT_FOUND: no such device;
 * ERR_FORMAT, ERR_MISMATCH: the library is none, or not of this build; ERR_FAILED: the device does not open. */
int accelerator_open(struct accelerator **out, const char *name, struct err *err);
/* Takes NULL. */
void accelerator_close(struct accelerator *a);

/* How many devices of a kind there are; -1: that cannot be known. 0 is no failure, and *err says why, too. */
int accelerator_count(const char *kind, struct err *err);

/* -1 and the first thing that failed on the device, for ever. */
int accelerator_check(struct accelerator *a, struct err *err);

#endif
