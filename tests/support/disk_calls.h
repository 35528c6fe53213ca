/*
 * The calls by which a process changes a disk, counted: pwrite, fallocate, ftruncate, fsync, fdatasync, of our code
 * and of SQLite alike. A test program that is linked with this chooses one of them, which then kills the process or
 * fails. The syncs are counted and not made, which is most of a test's time.
 */
#ifndef QUIRE_TESTS_SUPPORT_DISK_CALLS_H
#define QUIRE_TESTS_SUPPORT_DISK_CALLS_H

/* Calls since the last disk_calls_reset, which also forgets what was chosen. */
int disk_calls(void);
void disk_calls_reset(void);

/* The nth call from now (from 1) ends the process before it is made, as kill -9 would. A write is made by half
 * first, if `torn`. */
void disk_calls_kill(int nth, int torn);
/* The nth call from now fails with errno `number`; `then_on`: every later one too. */
void disk_calls_fail(int nth, int number, int then_on);
/* Every fsync and fdatasync from now on fails with errno `number`. */
void disk_calls_fail_sync(int number);

#endif
