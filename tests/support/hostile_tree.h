/*
 * A tree that nobody should have, for tests of what reads directories: many small files; FIFOs, sockets,
 * devices, links to above, to themselves and to nothing; sparse files of a terabyte; names of odd bytes; a
 * directory very deep; and a file that changes all the time. What cannot be made ends the test.
 */
#ifndef QUIRE_TESTS_SUPPORT_HOSTILE_TREE_H
#define QUIRE_TESTS_SUPPORT_HOSTILE_TREE_H

#include <stdint.h>

struct hostile_tree {
	char *root;
	int depth;
	/* What was made, by what an ingest has to say of it. The deepest file and "busy" are among n_plain. */
	int64_t n_plain, n_links, n_special, n_large;
	struct hostile_writer *writer;
};

/* n_files, a hundredth each of FIFOs, sockets, devices (where one may make them, else FIFOs), links and sparse files;
 * and a file in the last of `depth` directories within each other. */
void hostile_tree_make(struct hostile_tree *t, int64_t n_files, int depth);
void hostile_tree_remove(struct hostile_tree *t);

/* A thread that keeps changing the file "busy", whose 900 bytes are all alike in each version. */
void hostile_tree_write(struct hostile_tree *t);
void hostile_tree_write_end(struct hostile_tree *t);

/* How much more memory this process held at any time since (VmHWM over VmRSS) than it holds at the call of
 * _begin, which returns what to give to _grown. Where the kernel does not let the former peak be forgotten it
 * is never less than that. */
int64_t hostile_tree_memory_begin(void);
int64_t hostile_tree_memory_grown(int64_t begin);

#endif
