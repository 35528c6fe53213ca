/* What tests and benchmarks of kernels share: the tables there are, and numbers to feed them. */
#ifndef QUIRE_TESTS_OP_CASES_H
#define QUIRE_TESTS_OP_CASES_H

#include "engine/ops.h"
#include "engine/pool.h"

/* Every table this processor can run: the scalar definition first, then its instruction sets, then those that are
 * AVX-512 in plain C (engine/simd/vec.h), where it has AVX2. What is missing is printed, once, as skipped. */
enum { MAX_TABLES = 8 };
int op_tables(const struct ops **tables);

struct backend {
	struct pool *pool;
	struct device dev;
	const struct ops *ops;
};

void backend_open(struct backend *b, const struct ops *ops, int n_threads);
void backend_close(struct backend *b);

/* A generator of one's own; equal seeds, equal numbers. */
struct random {
	uint32_t state;
};

float random_uniform(struct random *r);            /* in [-1, 1) */
int32_t random_below(struct random *r, int32_t n); /* in [0, n) */
float *random_floats(struct random *r, size_t n);  /* uniform; free() */

/* Subnormals, infinities, huge and tiny ones, signed zeros, in about one place of three. */
void make_hostile(struct random *r, float *x, size_t n);

/* Random data of a type, with scales where it has them. Of hostile data types get what they can hold: FP8 and int4
 * values are all the codes there are but NaN. */
struct weight random_weight(struct random *r, enum dtype dtype, int32_t rows, int32_t cols, bool hostile);
void free_weight(struct weight *w);

/* The same number: bit for bit, but that a NaN is a NaN. The first difference is printed, with `what`. */
bool same_numbers(const float *a, const float *b, size_t n, const char *what);

#endif
