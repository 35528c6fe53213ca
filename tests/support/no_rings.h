/* A kernel that gives no io_uring, as under a container's filter or in an old one. */
#ifndef QUIRE_TESTS_SUPPORT_NO_RINGS_H
#define QUIRE_TESTS_SUPPORT_NO_RINGS_H

/* From here on, in this process and its children, io_uring_setup fails with errno `number`. Not 0: there are no system call
 * filters here. */
int refuse_rings(int number);

#endif
