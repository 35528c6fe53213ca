/*
 * A disk that is soon full: a tmpfs of a given size, mounted where only the calling process sees it. For a child made
 * by as_user, which needs no privilege for it: it becomes root of a user namespace of its own.
 */
#ifndef QUIRE_TESTS_SUPPORT_SMALL_DISK_H
#define QUIRE_TESTS_SUPPORT_SMALL_DISK_H

#include <stddef.h>

/* Mount on `dir`. Not 0 when this machine lets nobody do that; the process should then end. */
int small_disk_mount(const char *dir, size_t bytes);

#endif
