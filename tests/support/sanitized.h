/*
 * Whether this is a build under AddressSanitizer, where everything takes ten times as long: loops over what the plain build
 * has gone through take a part of it then.
 */
#ifndef QUIRE_TESTS_SUPPORT_SANITIZED_H
#define QUIRE_TESTS_SUPPORT_SANITIZED_H

#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

#endif
