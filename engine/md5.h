/*
 * MD5 (RFC 1321), for one purpose: published chat templates are known by it. It proves nothing against anybody
 * who wants two files to have the same one.
 */
#ifndef QUIRE_ENGINE_MD5_H
#define QUIRE_ENGINE_MD5_H

#include <stddef.h>

enum { MD5_HEX_BYTES = 33 };

/* The digest as 32 lower-case hex digits and a NUL. */
void md5_hex(char out[MD5_HEX_BYTES], const void *data, size_t bytes);

#endif
