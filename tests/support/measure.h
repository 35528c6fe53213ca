/*
 * What every benchmark needs: clocks, medians, rounds in turn, the line a figure is printed in, and probes of what this
 * machine can do, to stand beside the figure as its limit.
 *
 * A probe measures once, for some tens of milliseconds, so that a benchmark can take it in the same rounds as what
 * it is the limit of: the neighbours on a machine then slow both. Probes use their results, or the compiler
 * would leave them out; and they run on the compute threads given, as the engine does. What a benchmark cannot have
 * (memory, a processor's model) ends it with a sentence: these functions do not return errors.
 */
#ifndef QUIRE_TESTS_SUPPORT_MEASURE_H
#define QUIRE_TESTS_SUPPORT_MEASURE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "config/err.h"
#include "engine/pool.h"

/* Seconds of the monotonic clock, and of processor time of the calling thread alone (what else the machine does does
 * not count). */
double measure_now(void);
double measure_thread_now(void);

/* n >= 1; sorts x. */
double measure_median(double *x, int n);

/* Things to measure in turn: each once a round, so that a slow minute of the machine meets all of them. fn returns
 * its figure (a rate, a time). After measure_rounds, `median` is that of n_rounds figures; a first round is
 * taken besides to warm up, and forgotten. */
struct measure_case {
	double (*fn)(void *arg);
	void *arg;
	double median;
};
void measure_rounds(struct measure_case *cases, int n_cases, int n_rounds);

/* "AMD EPYC 7B13, 2 processors, Linux x86_64": with the processors this process may use. Safe inside a JSON string. */
const char *measure_machine(void);

/*
 * One figure as one line of JSON: bench, value, unit, limit, fraction = value / limit, `extra`, machine. limit and
 * fraction are null when limit is 0 (there is none); a value that is not finite is null. extra is a format of
 * further members ("\"tokens\":%zu"), NULL or "" for none. The line is flushed, so that a long
 * benchmark shows what it has.
 */
void measure_print(FILE *out, const char *bench, double value, const char *unit, double limit, const char *extra, ...)
	__attribute__((format(printf, 6, 7)));

/* Print the sentence and end the benchmark, with status 1. */
void measure_fail(const struct err *err) __attribute__((noreturn));

/* Memory as weights have it: of its own pages, huge ones where the kernel gives them, written once (so that they
 * are there) by the pool's threads. measure_buffer_free takes the same size. */
void *measure_buffer(struct pool *p, size_t bytes);
void measure_buffer_free(void *buffer, size_t bytes);

/* ---- probes: what one call achieved, per second ----------------------------------------------------------------- */

/* Bytes read, each thread going through a part of its own of the buffer: once from front to back, and once in eight runs
 * abreast, which some memories serve faster; the better of the two. */
double probe_read(struct pool *p, const void *buffer, size_t bytes);
/* The first of these alone. */
double probe_read_in_order(struct pool *p, const void *buffer, size_t bytes);

/* Bytes read in rows of row_bytes, a multiple of 8: those with the numbers rows[n_rows], in that order, split among
 * the threads. */
double probe_gather(struct pool *p, const void *buffer, size_t row_bytes, const int32_t *rows, int64_t n_rows);

/* Float32 operations, a fused multiply-add being two, by the widest instruction there is. */
double probe_fma(struct pool *p);

/* The same of bf16 dot products (vdpbf16ps: 64 operations of an instruction). 0: this processor has none. */
double probe_bf16_dot(struct pool *p);

#endif
