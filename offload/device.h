/*
 * Where an op runs. Today there is one kind, "cpu"; its `queue` is the compute pool.
 *
 * Kernels report like ferror: the device remembers its first failure, and device_check hands it over where the host
 * waits anyway. Engine thread, but device_fail may be called from its pool.
 */
#ifndef QUIRE_OFFLOAD_DEVICE_H
#define QUIRE_OFFLOAD_DEVICE_H

#include <stdatomic.h>

#include "config/err.h"

struct device {
	const char *name;         /* "cpu" */
	void *queue;              /* cpu: struct pool */
	atomic_flag failing;
	atomic_int failed;
	struct err failure;
};

void device_init(struct device *dev, const char *name, void *queue);

/* Remember a failure unless there is one already. */
void device_fail(struct device *dev, enum err_code code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* -1 and the first failure since the last check, which is thereby forgotten; 0 when there was none. */
int device_check(struct device *dev, struct err *err);

#endif
