/*
 * What the operating system says of this machine, for `quire doctor`: each a question of its own, with no daemon and
 * no configuration. `root` stands before /proc and /sys: "" for this machine, a faked tree in tests.
 */
#ifndef QUIRE_DAEMON_MACHINE_H
#define QUIRE_DAEMON_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

/* "AMD EPYC 9654 96-Core Processor", to be freed; NULL where the kernel does not say, as on ARM. */
char *machine_processor(const char *root);

struct machine_memory {
	int64_t total_bytes, available_bytes; /* what this process could have: the machine's, or the cgroup's if less */
	int64_t limit_bytes;                  /* memory.max of the process's cgroups (version 2), the lowest; 0: none */
};

/* available: as MemAvailable counts it, so file caches that can be dropped are not in use. */
int machine_memory(struct machine_memory *m, const char *root, struct err *err);

struct machine_memlock {
	int64_t bytes, most_bytes; /* RLIMIT_MEMLOCK, soft and hard; -1: unlimited */
	bool exempt;               /* CAP_IPC_LOCK: the limit does not hold */
};

int machine_memlock(struct machine_memlock *m, const char *root, struct err *err);

/* The chosen word of transparent_hugepage/enabled: "always", "madvise" or "never", to be freed. */
int machine_huge_pages(char **word, const char *root, struct err *err);

/* 0: a ring can be made. Else ERR_UNAVAILABLE and who refuses it. */
int machine_io_uring(const char *root, struct err *err);
/* That sentence, for the errno of io_uring_setup. Returns -1. */
int machine_io_uring_refusal(int number, const char *root, struct err *err);

struct machine_disk {
	char type[24];      /* "ext4", "xfs"; "0x1234abcd" where only the kernel knows the name */
	bool in_memory;     /* gone when the machine stops */
	bool remote;        /* over a network, or by a process in user space */
	int64_t total_bytes, free_bytes; /* free: for this user */
};

int machine_disk(struct machine_disk *d, const char *path, struct err *err);

struct machine_direct_io {
	uint32_t memory_align, offset_align; /* bytes; 0: no direct I/O here */
	bool measured;      /* the kernel does not say; found out by reading */
};

/* Of files in a directory: makes one of 8 KiB there, which has no name by the time it is written. */
int machine_direct_io(struct machine_direct_io *d, const char *dir, struct err *err);

#endif
