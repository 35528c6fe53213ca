/*
 * XXH3 with the widest vectors that the processor has. The library's plain functions keep to those of every x86-64, 10 GB/s on a
 * thread, where memory gives half as much again; its chosen ones have other names, which their header puts in place. The sums are
 * the same.
 */
#ifndef QUIRE_CONFIG_XXH3_H
#define QUIRE_CONFIG_XXH3_H

#include <xxhash.h>
#if defined __x86_64__
#include <xxh_x86dispatch.h>
#endif

#endif
