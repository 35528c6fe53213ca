/*
 * Permissions mean nothing to root, and a bare machine builds as root: what a test has to say about them is said by
 * a child process that is an ordinary user there.
 */
#ifndef QUIRE_TESTS_SUPPORT_AS_USER_H
#define QUIRE_TESTS_SUPPORT_AS_USER_H

/* Run fn(arg) in a child, as an ordinary user without groups when we are root, and return what it returned, 0 to
 * 255. The child sees a copy of our memory: what it finds out it says by its result, and it asserts nothing. A child
 * that dies of a signal gives 256. */
int as_user(int (*fn)(void *arg), void *arg);

/* Make that user the owner of a file or directory, such as one from temp_dir_new. Nothing to do unless we are root. */
void give_to_user(const char *path);

#endif
