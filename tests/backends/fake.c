/*
 * Libraries that tests of the loader open: FAKE_KIND is the one that a library says it is of, FAKE_DEVICES how many it has (-1: it cannot
 * know), and what is wrong with it is FAKE_NO_SYMBOL, FAKE_ABI, FAKE_BYTES or FAKE_SHUT. Their devices have memory to say something of,
 * and nothing else works.
 */
#include <stdio.h>
#include <stdlib.h>

#include "offload/backend.h"

#ifndef FAKE_DEVICES
#define FAKE_DEVICES 2
#endif
#ifndef FAKE_ABI
#define FAKE_ABI BACKEND_ABI
#endif
#ifndef FAKE_BYTES
#define FAKE_BYTES sizeof(struct backend)
#endif

#ifdef FAKE_NO_SYMBOL
int quire_something_else(void);
int quire_something_else(void)
{
	return 0;
}
#else

struct backend_device {
	int n_checks;
};

static int count(char *why)
{
	snprintf(why, BACKEND_TEXT, "%s", FAKE_DEVICES < 1 ? "the fake driver has no device" : "");
	return FAKE_DEVICES;
}

static struct backend_device *open_device(int ordinal, struct backend_info *info, char *why)
{
#ifdef FAKE_SHUT
	(void)info;
	snprintf(why, BACKEND_TEXT, "device %d is shut", ordinal);
	return NULL;
#else
	*info = (struct backend_info){.bytes = 80000000000, .free_bytes = 79000000000, .read_bytes_per_s = 3e12};
	snprintf(info->name, sizeof info->name, "Fake %d", ordinal);
	*why = '\0';
	return calloc(1, sizeof(struct backend_device));
#endif
}

static void close_device(struct backend_device *d)
{
	free(d);
}

/* The second time something has failed. */
static int check(struct backend_device *d, char *why)
{
	if (!d->n_checks++)
		return 0;
	snprintf(why, BACKEND_TEXT, "a fake failure");
	return -1;
}

backend_fill_fn quire_backend;
void quire_backend(struct backend *b)
{
	*b = (struct backend){.abi = FAKE_ABI, .bytes = (uint32_t)(FAKE_BYTES), .kind = FAKE_KIND, .count = count,
			      .open = open_device, .close = close_device, .check = check};
}
#endif
