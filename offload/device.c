#include "offload/device.h"

#include <stdarg.h>
#include <stdio.h>

void device_init(struct device *dev, const char *name, void *queue)
{
	dev->name = name;
	dev->queue = queue;
	atomic_flag_clear(&dev->failing);
	atomic_store(&dev->failed, 0);
}

void device_fail(struct device *dev, enum err_code code, const char *format, ...)
{
	char text[sizeof dev->failure.text];
	va_list args;

	if (atomic_flag_test_and_set(&dev->failing))
		return;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	err_set(&dev->failure, code, "%s", text);
	atomic_store(&dev->failed, 1);
}

int device_check(struct device *dev, struct err *err)
{
	if (!atomic_load(&dev->failed))
		return 0;
	if (err)
		*err = dev->failure;
	atomic_store(&dev->failed, 0);
	atomic_flag_clear(&dev->failing);
	return -1;
}
